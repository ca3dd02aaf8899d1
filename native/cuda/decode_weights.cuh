// NVFP4 weights on their way to the products of a decode chain. Every warp has a ring of its own in shared memory, which
// the copy engine fills with the tiles that the warp will multiply, in order, across items and phases: weights do not
// depend on what is computed, so that memory is read without a pause while the blocks wait for each other. (Loads of the
// warps themselves would stand in the same queue as what a phase waits for.)
#pragma once
#include "cuda/decode_chain.h"
#include "cuda/mma.cuh"

namespace q4::gpu::decode {

constexpr int kWarps = 16, kThreads = kWarps * 32;
constexpr int kUnit = 128;  // inputs of a step of a product

// Tiles of W: kGroup rows (of a pair, half of them of each matrix) and kTile inputs. In shared memory the codes lie row
// by row, 128 bytes each, swizzled by the copy engine: piece q of row r, 16 bytes, is where q ^ r % 8 would be.
template <int kGroup_, int kTile_>
struct Tiles {
  static constexpr int kGroup = kGroup_, kTile = kTile_;
  static constexpr int kRow = kTile / 2, kScales = kTile / 16;  // bytes of a row's codes and scales
  static constexpr int kCodes = kGroup * kRow, kAllScales = kGroup * kScales;
  static_assert(kRow == 128 && kScales == 16 && kGroup % 16 == 0);
  __device__ static uint32_t place(int r, int q) { return r * kRow + (q ^ (r & 7)) * 16; }
};
// Where a tile is in shared memory.
struct Stage {
  uint32_t codes, scales;
};

// What a block computes of a product: tiles [first_tile, +tiles) of the width, of `count` items.
struct Share {
  int first_tile, tiles, first_item, step, count;
  int pair;           // 1: two neighbouring items at a time, which together have sixteen outputs
  uint32_t per_tile;  // n / tiles = n · per_tile >> 20, for the n that occur here
  int done;           // where its items are in the list of what is to be finished

  __device__ int item(int i) const { return (first_item + (i >> pair) * step << pair) | (i & pair); }
  __device__ int item_of_tile(int n) const { return static_cast<int>(static_cast<uint32_t>(n) * per_tile >> 20); }
};

template <typename Tiles>
__device__ inline Share share_of(const DecodeProduct& product) {
  const int per_piece = static_cast<int>(gridDim.x) / product.splits, piece = blockIdx.x % product.splits,
            place = blockIdx.x / product.splits;
  const int all = (product.width + Tiles::kTile - 1) / Tiles::kTile, first = all * piece / product.splits;
  const int tiles = all * (piece + 1) / product.splits - first, pair = product.paired ? 1 : 0,
            groups = (product.items + pair) >> pair;
  int count = place < per_piece && place < groups ? ((groups - place + per_piece - 1) / per_piece) << pair : 0;
  // The last group of all may be half of one.
  if (count && (product.items & pair) && (groups - 1 - place) % per_piece == 0) --count;
  return {first, tiles, place, per_piece, count, pair, ((1u << 20) + tiles - 1) / max(1, tiles), 0};
}

// A round is up to kWarps items, whose tiles are dealt to the warps in order, in equal numbers; where they cannot be equal
// the first have one less: those finish the outputs.
struct Range {
  int items, begin, end;  // end > begin where the warp has work
};
__device__ inline Range range_of(const Share& share, int round, int warp) {
  const int items = min(kWarps, share.count - round * kWarps), total = items * share.tiles;
  if (total < kWarps) return {items, min(warp, total), min(warp + 1, total)};
  const int each = total / kWarps, with_less = kWarps - total % kWarps, begin = each * warp + max(0, warp - with_less);
  return {items, begin, begin + each + (warp >= with_less)};
}
// The warp that has tile n of a round.
__device__ inline int warp_of_tile(int n, int total) {
  if (total < kWarps) return n;
  const int each = total / kWarps, with_less = kWarps - total % kWarps;
  return n < each * with_less ? n / each : with_less + (n - each * with_less) / (each + 1);
}

// Which matrix and which of its groups of rows item `i` of a product is.
struct Item {
  int matrix, group;
};
template <typename Tiles>
__device__ inline Item item_of(const DecodeProduct& product, int i) {
  int matrix = 0;
  if (!product.paired)
    for (; matrix + 1 < product.matrices; ++matrix) {
      const int groups = (product.matrix[matrix].outputs + Tiles::kGroup - 1) / Tiles::kGroup;
      if (i < groups) break;
      i -= groups;
    }
  return {matrix, i};
}

// An item whose warps have left their sums: how many, where the first did, and which outputs they are.
struct Done {
  uint16_t first;
  uint8_t parts, matrix;
  int group;
};

// All warps of a block.
__device__ inline void block_sync() { __syncthreads(); }

// The phases of a chain, in shared memory: reading them from the kernel's parameters would miss the constant cache in
// every phase anew.
struct Table {
  const DecodePhase* phase;
  const Share* share;  // of this block in each
  int phases, rows;
};

// A barrier in shared memory that copies complete; parity: of how often it was waited for.
__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again_%=;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// The box of a map at (column, row). Weights are read once: they should not drive out what is read again.
__device__ inline void copy_box(uint32_t to, const CUtensorMap* map, int column, int row, uint32_t barrier) {
  constexpr uint64_t kEvictFirst = 0x12f0000000000000;  // what createpolicy.fractional.L2::evict_first makes of 1.0
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(0), "r"(barrier), "l"(kEvictFirst)
      : "memory");
}

// The codes of a tile are one box; its scales, rows of 16 bytes, of which the engine copies only some ten cycles each, are
// copied by lanes.
template <typename Tiles, int kDepth>
class WeightStream {
  static constexpr int kStages = kWarps * kDepth, kScalesAt = kStages * Tiles::kCodes,
                       kBarriersAt = kScalesAt + kStages * Tiles::kAllScales;

 public:
  static constexpr int kBytes = kBarriersAt + kStages * 8;

  // By all threads of the block; memory: kBytes, at a multiple of 1024.
  __device__ WeightStream(const CUtensorMap* maps, const Table& table, uint32_t memory)
      : maps_(maps), phase_of_(table.phase), share_of_(table.share), phases_(table.phases), memory_(memory) {
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kDepth; ++i) barrier_init(barrier(i), 1 + Tiles::kGroup);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < kDepth; ++i) issue(i);
  }

  // The next tile, once it has arrived.
  __device__ Stage take() const {
    barrier_wait(barrier(at_), parity_);
    return stage(at_);
  }
  // Gives it back, and starts the copy of the tile kDepth further on in its place.
  __device__ void give() {
    __syncwarp();
    issue(at_);
    at_ = at_ + 1 == kDepth ? 0 : at_ + 1;
    parity_ ^= at_ == 0;
  }

 private:
  __device__ uint32_t number(int i) const { return threadIdx.x / 32 * kDepth + i; }
  __device__ uint32_t barrier(int i) const { return memory_ + kBarriersAt + number(i) * 8; }
  __device__ Stage stage(int i) const {
    return {memory_ + number(i) * Tiles::kCodes, memory_ + kScalesAt + number(i) * Tiles::kAllScales};
  }

  __device__ void issue(int i) {
    if (left_ == 0) seek();
    if (phase_ >= phases_) return;
    const Stage to = stage(i);
    const int lane = threadIdx.x % 32;
    if (lane == 0) {
      barrier_expect(barrier(i), Tiles::kCodes);
      copy_box(to.codes, maps_ + map_, tile_ * Tiles::kRow, row_, barrier(i));
    }
    if (lane < Tiles::kGroup) {
      copy_async(to.scales + lane * Tiles::kScales, scales_, inside_);
      asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier(i)) : "memory");
    }
    ++at_tile_, --left_, ++tile_;
    if (inside_) scales_ += Tiles::kScales;
  }

  // Finds tile `at_tile_` of its round, or the first of the next round in which this warp has any.
  __device__ void seek() {
    while (phase_ < phases_) {
      if (phase_ >= 0 && phase_of_[phase_].kind == PhaseKind::product) {
        const DecodeProduct& product = phase_of_[phase_].product;
        const Share& share = share_of_[phase_];
        while (at_tile_ == end_ && (round_ + 1) * kWarps < share.count) {
          const Range range = range_of(share, ++round_, threadIdx.x / 32);
          at_tile_ = range.begin, end_ = range.end;
        }
        if (at_tile_ != end_) {
          const int which = share.item_of_tile(at_tile_), in_item = at_tile_ - which * share.tiles;
          const Item item = item_of<Tiles>(product, share.item(round_ * kWarps + which));
          constexpr int kHalf = Tiles::kGroup / 2;
          map_ = product.maps + (product.paired ? 0 : item.matrix);
          row_ = item.group * (product.paired ? kHalf : Tiles::kGroup);
          tile_ = share.first_tile + in_item, left_ = min(share.tiles - in_item, end_ - at_tile_);
          const int lane = threadIdx.x % 32, row = row_ + (product.paired ? lane % kHalf : lane);
          const DecodeMatrix& matrix = product.matrix[product.paired ? lane / kHalf % 2 : item.matrix];
          inside_ = row < matrix.outputs;
          scales_ = matrix.scales + (inside_ ? int64_t{row} * (product.width / 16) + tile_ * Tiles::kScales : 0);
          return;
        }
      }
      ++phase_, round_ = -1, at_tile_ = end_ = 0;
    }
  }

  const CUtensorMap* const maps_;
  const DecodePhase* const phase_of_;
  const Share* const share_of_;
  const int phases_;
  const uint32_t memory_;
  int at_ = 0;
  uint32_t parity_ = 0;
  // What is copied next: of which map, its first row and its place in the rows; this lane's row of scales.
  const uint8_t* scales_ = nullptr;
  bool inside_ = false;
  int map_ = 0, row_ = 0, tile_ = 0;
  int left_ = 0;  // tiles of the item, for this warp
  int phase_ = -1, round_ = -1, at_tile_ = 0, end_ = 0;
};

}  // namespace q4::gpu::decode
