// NVFP4 weights on their way to the products of a decode chain. Every team of warps that compute has a ring of its own in
// shared memory, with the strips that it will multiply, in order, across items and phases. Warps that do nothing else have the
// rings filled by the copy engine: weights do not depend on what is computed, so that memory is read without a pause while
// the blocks wait for each other. (Were warps to ask for their own tiles, that took as long as multiplying them; and loads
// of theirs would stand in the same queue as what a phase waits for.)
#pragma once
#include "cuda/copy_engine.cuh"
#include "cuda/decode_share.cuh"
#include "cuda/mma.cuh"

namespace q4::gpu::decode {

__device__ inline uint32_t shared_load_u32(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
__device__ inline void shared_store(uint32_t address, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ inline void shared_store(uint32_t address, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
// Without a branch.
__device__ inline void shared_store2_if(bool condition, uint32_t address, uint32_t v, uint32_t w) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.shared.v2.u32 [%1], {%2, %3};\n}" ::"r"(
                   static_cast<uint32_t>(condition)),
               "r"(address), "r"(v), "r"(w)
               : "memory");
}
__device__ inline void shared_store_if(bool condition, uint32_t address, uint32_t v) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.shared.u32 [%1], %2;\n}" ::"r"(static_cast<uint32_t>(condition)),
      "r"(address), "r"(v)
      : "memory");
}

// Of a strip in rows from `row` on, from tile `tile` of the width: codes, which are read once and should not drive out what
// is read again, and scales.
__device__ inline void copy_codes(uint32_t to, const DecodeMaps* maps, int row, int tile, uint32_t barrier) {
  constexpr uint64_t kEvictFirst = 0x12f0000000000000;  // what createpolicy.fractional.L2::evict_first makes of 1.0
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
      "l"(&maps->codes), "r"(0), "r"(row), "r"(0), "r"(tile), "r"(barrier), "l"(kEvictFirst)
      : "memory");
}
__device__ inline void copy_scales(uint32_t to, const DecodeMaps* maps, int row, int byte, uint32_t barrier) {
  copy_box(to, maps->scales, byte, row, 0, barrier);
}
// From memory into the second-level cache.
__device__ inline void prefetch_box(const CUtensorMap& map, int x, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// Where a tile is in shared memory.
struct Stage {
  uint32_t codes, scales;
};

// The rings of all teams, kDepth strips each, with barriers: of strips that have come, and of places that are free.
template <typename Tiles, int kDepth>
struct Rings {
  static constexpr int kStages = Tiles::kTeams * kDepth, kFreeAfterCome = kStages * 8,
                       kScalesAt = kStages * Tiles::kTeam * Tiles::kCodes, kBarriersAt = kStages * Tiles::kStrip,
                       kAt = kBarriersAt + kStages * 16, kBytes = kAt + kWarps * 4;
  uint32_t memory;  // kBytes, at a multiple of 1024

  // Of the strip in place n, the tile of the team's warp `part`.
  __device__ Stage stage(int n, int part) const {
    return {memory + (n * Tiles::kTeam + part) * Tiles::kCodes,
            memory + kScalesAt + n * Tiles::kTeam * Tiles::kAllScales + part * Tiles::kScales};
  }
  __device__ uint32_t come(int n) const { return memory + kBarriersAt + n * 8; }
  __device__ uint32_t free(int n) const { return come(n) + kFreeAfterCome; }

  // Where a warp reads on, kept here rather than in registers from phase to phase.
  __device__ uint32_t at(int warp) const { return memory + kAt + warp * 4; }

  // By the first threads of the block, which must then meet.
  __device__ void init() const {
    const int n = threadIdx.x;
    if (n < kWarps) shared_store(at(n), 0);
    if (n < kStages) barrier_init(come(n), 1), barrier_init(free(n), Tiles::kTeam);
    if (n < max(kStages, kWarps)) fence_barriers();
  }
};

// A team's ring, as a lane of one of its warps reads it.
template <typename Tiles, int kDepth>
class WeightStream {
 public:
  __device__ explicit WeightStream(const Rings<Tiles, kDepth>& rings) : rings_(rings) {
    const int warp = threadIdx.x / 32, place = warp / Tiles::kTeam * kDepth;
    go_on();
    come_ = rings.come(place);
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    stage_ = rings.stage(place, warp % Tiles::kTeam);
    stage_.codes += Tiles::place(g, 2 * c), stage_.scales += g * (Tiles::kTeam * Tiles::kScales) + c * 4;
  }
  // From where keep() was called last.
  __device__ void go_on() { taken_ = shared_load_u32(remembered()); }
  // For the next round, or the warp's next product.
  __device__ void keep() const {
    __syncwarp();  // all lanes have read it
    if (threadIdx.x % 32 == 0) shared_store(remembered(), taken_);
    __syncwarp();
  }

  // The warp's tile of the next strip, once that has come.
  __device__ Stage take() {
    uint32_t at = place();
    asm volatile("" : "+r"(at));  // or every product with it would be a shift and more
    come_now_ = come_ + at * 8;
    asm volatile("" : "+r"(come_now_));
    barrier_wait(come_now_, parity());
    return {stage_.codes + at * (Tiles::kTeam * Tiles::kCodes),
            stage_.scales + at * (Tiles::kTeam * Tiles::kAllScales)};
  }
  __device__ void give() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(come_now_ + Rings<Tiles, kDepth>::kFreeAfterCome);
    if (kCounts)
      ++taken_;
    else if (place() + 1 == kDepth)
      taken_ = parity() ^ 1;
    else
      taken_ += 2;
  }

 private:
  // Strips taken, where the ring's place and parity are bits of that; else the place, and below it the parity.
  static constexpr bool kCounts = (kDepth & (kDepth - 1)) == 0;
  __device__ uint32_t place() const { return kCounts ? taken_ % kDepth : taken_ >> 1; }
  __device__ uint32_t parity() const { return (kCounts ? taken_ / kDepth : taken_) & 1; }
  // Found anew, rather than held while tiles are multiplied.
  __device__ uint32_t remembered() const {
    int warp = threadIdx.x / 32;
    asm volatile("" : "+r"(warp));
    return rings_.at(warp);
  }

  const Rings<Tiles, kDepth> rings_;
  uint32_t come_, come_now_;
  Stage stage_;  // of the ring's first place
  uint32_t taken_;
};

// All a warp ever does: fills some rings until the chain has no more weights, a lane a ring. Of a strip the codes are one
// box, and the scales another, whose neighbours, in the same lines of the second-level cache, are wanted soon. (Loads by
// the lanes would do for those, but what other loads of the multiprocessor bring is handed out in the order in which it
// was asked for: a phase would wait for the scales of the next.) With boxes of a single tile a multiprocessor did not get
// more than two thirds of what memory can give. kPause: nanoseconds between looks for a free place: those that compute need
// the time that looking takes; but where rings are shallow a free place should not wait. q_came: the barrier passed when an
// attention has its queries, for which weights that are held wait, so that q does not wait behind them (of sixteen rows: of fewer,
// and with deeper rings, products would then begin late); 0 where none are held.
template <int kRingsOfWarp, int kPause, typename Tiles, int kDepth>
__device__ inline void fill_rings(const DecodeMaps* maps, const Table& table, const Rings<Tiles, kDepth>& rings,
                                  uint32_t q_came) {
  const int lane = threadIdx.x % 32, team = (threadIdx.x / 32 - kWarps) * kRingsOfWarp + lane;
  if (lane >= kRingsOfWarp) return;
  constexpr uint32_t kLanes = (1u << kRingsOfWarp) - 1;
  const Segment *next = nullptr, *end = nullptr;
  // The last warp may have fewer rings than lanes that look.
  constexpr bool kEven = Tiles::kTeams % kRingsOfWarp == 0;
  int product = kEven || team < Tiles::kTeams ? -1 : table.products, at = 0;
  uint32_t parity = 1;  // places that were never used are free
  bool held = false;
  uint32_t q_parity = 1;
  // The next strip, of `left` in its segment: of which maps, its first row and tile.
  const DecodeMaps* map = nullptr;
  int row = 0, tile = 0, left = 0;
  for (;;) {
    while (left == 0 && product < table.products) {
      if (next == end) {
        if (++product == table.products) break;
        const Share& share = table.share[table.weights[product].shape];
        held = q_came && table.weights[product].held, q_parity ^= held;
        next = table.segments + share.segments[team], end = table.segments + share.segments[team + 1];
        continue;
      }
      const Segment segment = *next++;
      left = segment.count;
      if (left == 0) continue;
      const DecodeWeights& weights = table.weights[product];
      row = segment.group * (weights.paired ? Tiles::kGroup / 2 : Tiles::kGroup);
      tile = table.share[weights.shape].first_tile + segment.strip * Tiles::kTeam;
      map = maps + weights.maps + (weights.paired ? 0 : segment.matrix);
    }
    if (!__any_sync(kLanes, left > 0)) break;
    if (held && barrier_test(q_came, q_parity)) held = false;
    const bool free = left > 0 && !held && barrier_test(rings.free(team * kDepth + at), parity);
    if (!__any_sync(kLanes, free)) __nanosleep(kPause);
    if (!free) continue;
    const Stage to = rings.stage(team * kDepth + at, 0);
    const uint32_t barrier = rings.come(team * kDepth + at);
    barrier_expect(barrier, Tiles::kStrip);
    copy_codes(to.codes, map, row, tile, barrier);
    copy_scales(to.scales, map, row, tile * Tiles::kScales, barrier);
    tile += Tiles::kTeam, --left;
    at = at + 1 == kDepth ? 0 : at + 1;
    parity ^= at == 0;
  }
}

}  // namespace q4::gpu::decode
