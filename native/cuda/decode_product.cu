// One block a multiprocessor streams its groups of sixteen rows of W through a ring in shared memory: a warp issues bulk
// copies, sixteen warps decode codes into A fragments of mma m16n8k16 (rows of W are m, rows of x are n). The warps form
// teams, each with groups of its own: the fewer warps share a group, the less is spent beside decoding, as long as there
// are groups for all. The k dimension is permuted so that a lane's fragments of one row of W are 16 contiguous bytes. The
// copies start before the kernel waits for its predecessor, and half of shared memory stays free for the next kernel to
// do the same: weights flow without a pause. Needs 9.0 (bulk copies); linear_decode.cu serves the others.
#include "cuda/decode_product.h"

#include <algorithm>
#include <utility>

#include "cuda/mma.cuh"
#include "cuda/nvfp4_bf16.cuh"
#include "cuda/sm90.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 16, kThreads = (kWarps + 1) * 32, kGroup = 16, kUnit = 128, kMaxStages = 12;
constexpr int kPaired = kGroup / 2;  // rows of gate and of up in a group of a pair
// Shared memory of one block: two of them fit a multiprocessor, unless x alone is too large for that.
constexpr int kHalfShared = 108 * 1024, kOneStageShared = 116 * 1024, kWholeShared = 224 * 1024;

struct Layout {
  int units, row_pitch, scale_offset, stage_bytes, stages, x_pitch, x_bytes, total;
  int team;     // warps that share a group
  int each;     // stages of a team: a stage is only ever used by one, whose reads follow its copies in order
  int batch;    // groups of a team whose sums are joined at a time
  int buffers;  // for sums: with two, one can be written while the other is read
};

// items: groups of one block.
Layout layout_for(int rows, int width, int items) {
  Layout l{};
  l.units = (width + kUnit - 1) / kUnit;
  // A group's rows stay as they lie in memory: one large copy, where a copy a row would be held up by their number.
  l.row_pitch = width / 2;
  l.scale_offset = (kGroup * l.row_pitch + 127) / 128 * 128;
  // Reads of the last, partial unit may run past the codes or the scales: 128 bytes are left for them.
  l.stage_bytes = l.scale_offset + (kGroup * (width / kBlock) + 127) / 128 * 128 + 128;
  l.x_pitch = l.units * 256 + 64;
  l.x_bytes = rows * l.x_pitch;
  l.batch = rows <= 4 ? 4 : rows <= 8 ? 2 : 1;
  l.buffers = rows <= 4 ? 2 : 1;
  const int fixed = l.x_bytes + l.buffers * l.batch * kWarps * kGroup * rows * 4 + 1024;
  // One stage will do where most blocks have one group.
  for (const auto& [room, stages] :
       {std::pair{kHalfShared, 2}, {items <= 2 ? kOneStageShared : 0, 1}, {kWholeShared, 2}}) {
    const int fitting = std::min((room - fixed) / l.stage_bytes, kMaxStages);
    if (fitting < stages) continue;
    // The least time of the busiest warp: about 180 instructions a unit and 150 a group.
    int least = 0;
    for (const int team : {2, 4, 8, 16}) {
      const int rounds = (items * team + kWarps - 1) / kWarps,
                cost = rounds * ((l.units + team - 1) / team * 180 + 150);
      if (kWarps / team <= fitting && (l.team == 0 || cost < least)) l.team = team, least = cost;
    }
    l.each = fitting * l.team / kWarps;
    l.stages = l.each * (kWarps / l.team);
    l.total = fixed + l.stages * l.stage_bytes;
    return l;
  }
  l.stages = 0;
  return l;
}

#if defined(Q4_SM90) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define Q4_BULK 1
#endif

#if defined(Q4_BULK)
__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
__device__ inline void barrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over: }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
__device__ inline void copy_bytes(uint32_t to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
__device__ inline void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory"); }

__device__ inline uint4 shared_load(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
__device__ inline uint32_t shared_load_u16(uint32_t address) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}
// Eight neighbouring elements in the order of code_pairs, and back.
__device__ inline uint4 to_pairs(uint4 x) {
  return make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632), __byte_perm(x.y, x.w, 0x5410),
                    __byte_perm(x.y, x.w, 0x7632));
}
__device__ inline uint4 from_pairs(uint4 p) {
  return make_uint4(__byte_perm(p.x, p.y, 0x5410), __byte_perm(p.z, p.w, 0x5410), __byte_perm(p.x, p.y, 0x7632),
                    __byte_perm(p.z, p.w, 0x7632));
}
__device__ inline uint4 pack8(const Pack<8>& v) {
  return make_uint4(pack_bf16(v.v[0], v.v[1]), pack_bf16(v.v[2], v.v[3]), pack_bf16(v.v[4], v.v[5]),
                    pack_bf16(v.v[6], v.v[7]));
}
#endif

// Which matrix and which of its groups of sixteen rows item `i` is. A pair's items hold eight rows of each of its matrices.
struct Item {
  int matrix, group;
};
__device__ Item item_of(const DecodeProduct& call, int i) {
  int matrix = 0;
  while (!call.paired && matrix + 1 < call.matrices) {
    const int groups = (call.matrix[matrix].outputs + kGroup - 1) / kGroup;
    if (i < groups) break;
    i -= groups;
    ++matrix;
  }
  return {matrix, i};
}

template <bool kMoreThanEight>
__global__ void __launch_bounds__(kThreads, kMoreThanEight ? 1 : 2)
    decode_product_kernel(const __grid_constant__ DecodeProduct call, const __grid_constant__ Layout layout,
                          int items) {
#if defined(Q4_BULK)
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  __shared__ float partial[kWarps], scales_of_rows[kDecodeRows];
  __shared__ bool writer;
  uint32_t order = 0;  // of this block among those that have read x and branch
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const uint32_t ring = shared_address(memory), x_base = ring + layout.stages * layout.stage_bytes;
  float* const sums = reinterpret_cast<float*>(memory + layout.stages * layout.stage_bytes + layout.x_bytes);
  // A block's item l is item l · blocks + block of all.
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x),
            mine = (items - block + blocks - 1) / blocks;
  if (threadIdx.x == 0) {
    for (int s = 0; s < layout.stages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], layout.team);
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  release_next();
  __syncthreads();

  if (warp == kWarps) {
    if (lane != 0) return;
    for (int l = 0; l < mine; ++l) {
      // Turn t of its team, as below.
      const int teams = kWarps / layout.team, t = l / teams, stage = l % teams * layout.each + t % layout.each;
      const Item item = item_of(call, l * blocks + block);
      const uint32_t to = ring + stage * layout.stage_bytes;
      const int row_scales = call.width / kBlock;
      barrier_wait(&empty[stage], (t / layout.each & 1) ^ 1);
      if (call.paired) {
        barrier_expect(&full[stage], kGroup * (layout.row_pitch + row_scales));
        for (int half = 0; half < 2; ++half) {
          const int64_t first = int64_t{item.group} * kPaired;
          copy_bytes(to + half * kPaired * layout.row_pitch, call.matrix[half].codes + first * layout.row_pitch,
                     kPaired * layout.row_pitch, &full[stage]);
          copy_bytes(to + layout.scale_offset + half * kPaired * row_scales,
                     call.matrix[half].scales + first * row_scales, kPaired * row_scales, &full[stage]);
        }
      } else {
        const DecodeMatrix& m = call.matrix[item.matrix];
        const int64_t first = int64_t{item.group} * kGroup;
        const int rows = min(kGroup, m.outputs - item.group * kGroup);
        // Bulk copies come in sixteens of bytes; scales of a last, partial group are padded to that in their tensor.
        const int code_bytes = rows * layout.row_pitch, scale_bytes = (rows * row_scales + 15) / 16 * 16;
        barrier_expect(&full[stage], code_bytes + scale_bytes);
        copy_bytes(to, m.codes + first * layout.row_pitch, code_bytes, &full[stage]);
        copy_bytes(to + layout.scale_offset, m.scales + first * row_scales, scale_bytes, &full[stage]);
      }
    }
    return;
  }

  wait_previous();
  // x, or its norm, into shared memory: piece of eight elements (unit, i of 4, c of 4) at slot (unit·4 + i)·4 + c.
  const int pieces = call.width / 8, slots = layout.units * 16;
  const auto slot_of = [](int piece) { return (piece & ~15) | (piece & 3) << 2 | (piece >> 2 & 3); };
  const auto at = [&](int row, int slot) {
    return reinterpret_cast<uint4*>(memory + layout.stages * layout.stage_bytes + row * layout.x_pitch + slot * 16);
  };
  for (int i = threadIdx.x; i < call.rows * (slots - pieces); i += kWarps * 32)
    *at(i / (slots - pieces), slot_of(pieces + i % (slots - pieces))) = make_uint4(0, 0, 0, 0);
  int sharing = 1;  // warps that share a row of x
  while (sharing * 2 * call.rows <= kWarps) sharing *= 2;
  const int row = warp / sharing, first_piece = warp % sharing * 32 + lane;
  if (!call.norm_weight) {
    for (int i = threadIdx.x; i < call.rows * pieces; i += kWarps * 32) {
      const int r = i / pieces, piece = i % pieces;
      *at(r, slot_of(piece)) = to_pairs(*reinterpret_cast<const uint4*>(call.x + int64_t{r} * call.width + piece * 8));
    }
  } else {
    float squares = 0;
    if (row < call.rows)
      for (int piece = first_piece; piece < pieces; piece += sharing * 32) {
        Pack<8> v = load<8>(call.x + int64_t{row} * call.width + piece * 8);
        if (call.branch) {
          const Pack<8> other = load<8>(call.branch + int64_t{row} * call.width + piece * 8);
#pragma unroll
          for (int j = 0; j < 8; ++j) v.v[j] = rounded<bf16>(v.v[j] + other.v[j]);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += v.v[j] * v.v[j];
        *at(row, slot_of(piece)) = pack8(v);
      }
    squares = warp_sum(squares);
    if (lane == 0) partial[warp] = squares;
    consumers_sync();
    // Everything of x and branch that this block needs is read. The answer is not waited for before the end.
    if (threadIdx.x == 0 && call.ticket) order = atomicAdd(call.ticket, 1u);
    if (row < call.rows) {
      float total = 0;
      for (int w = 0; w < sharing; ++w) total += partial[row * sharing + w];
      const float scale = rsqrtf(total / static_cast<float>(call.width) + call.eps);
      if (warp % sharing == 0 && lane == 0) scales_of_rows[row] = scale;
      for (int piece = first_piece; piece < pieces; piece += sharing * 32) {
        uint4* const slot = at(row, slot_of(piece));
        const uint4 words = *slot;
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
        const Pack<8> weight = load<8>(call.norm_weight + piece * 8);
        Pack<8> v;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v.v[2 * j] = rounded<bf16>(low_bf16(w[j]) * scale) * weight.v[2 * j];
          v.v[2 * j + 1] = rounded<bf16>(high_bf16(w[j]) * scale) * weight.v[2 * j + 1];
        }
        *slot = to_pairs(pack8(v));
      }
    }
  }
  consumers_sync();

  const uint32_t x_lane = x_base + min(g, call.rows - 1) * layout.x_pitch + c * 16;
  const uint32_t x_lane_high = x_base + min(g + 8, call.rows - 1) * layout.x_pitch + c * 16;
  const uint32_t w_lane = g * layout.row_pitch + c * 16,
                 s_lane = layout.scale_offset + g * (call.width / kBlock) + c * 2;
  const uint32_t w_half = 8 * layout.row_pitch, s_half = 8 * (call.width / kBlock);  // from row g to row g + 8
  const int row_floats = kGroup * call.rows;
  const bool partial_unit = call.width % kUnit != 0;
  const int team = layout.team, teams = kWarps / team, my_team = warp / team, rank = warp % team;
  const int team_thread = rank * 32 + lane, team_threads = team * 32;
  // A team's item t is the block's item t · teams + team.
  const int team_items = mine > my_team ? (mine - my_team + teams - 1) / teams : 0;
  // sums[buffer][item of the batch][rank][row of W][row of x] of this team
  float* const team_sums = sums + my_team * layout.buffers * layout.batch * team * row_floats;
  for (int t = 0; t < team_items; ++t) {
    const int stage = my_team * layout.each + t % layout.each;
    constexpr int kTiles = kMoreThanEight ? 2 : 1;     // eight rows of x each
    float sum[kTiles][4] = {}, other[kTiles][4] = {};  // two, so that products need not wait for each other
    const uint32_t base = ring + stage * layout.stage_bytes;
    barrier_wait(&full[stage], t / layout.each & 1);
    // Units go round the warps from item to item, so that none is always the one with more.
    int unit = (rank + team - t * layout.units % team) % team;
#pragma unroll 2
    for (; unit < layout.units; unit += team) {
      const uint32_t code_place = base + w_lane + unit * 64, scale_place = base + s_lane + unit * 8;
      uint4 codes[2] = {shared_load(code_place), shared_load(code_place + w_half)};
      uint32_t scale_bytes[2] = {shared_load_u16(scale_place), shared_load_u16(scale_place + s_half)};
      // Past the row's end lies another row, or nothing: it must not even be multiplied by zero.
      if (partial_unit && unit * kUnit + c * 32 >= call.width)
        codes[0] = codes[1] = make_uint4(0, 0, 0, 0), scale_bytes[0] = scale_bytes[1] = 0;
      uint32_t both[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        both[half] = scale_pair((scale_bytes[half] & 0xffu) | (scale_bytes[half] & 0xff00u) << 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          code_pairs(i == 0 ? codes[half].x : i == 1 ? codes[half].y : i == 2 ? codes[half].z : codes[half].w, a[half]);
          const uint32_t factor = __byte_perm(both[half], both[half], i < 2 ? 0x1010 : 0x3232);
#pragma unroll
          for (int p = 0; p < 4; ++p) a[half][p] = mul_bf16x2(a[half][p], factor);
        }
        const uint32_t first[4] = {a[0][0], a[1][0], a[0][1], a[1][1]},
                       second[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4 x = shared_load((tile ? x_lane_high : x_lane) + (unit * 4 + i) * 64);
          mma(sum[tile], first, x.x, x.y);
          mma(other[tile], second, x.z, x.w);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[stage]);

    const int buffer = t / layout.batch % layout.buffers, place_in_batch = t % layout.batch;
    float* const to = team_sums + ((buffer * layout.batch + place_in_batch) * team + rank) * row_floats;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (tile * 8 + 2 * c + (e & 1) < call.rows)
          to[(g + (e >> 1) * 8) * call.rows + tile * 8 + 2 * c + (e & 1)] = sum[tile][e] + other[tile][e];
    if (place_in_batch != layout.batch - 1 && t != team_items - 1) continue;

    asm volatile("bar.sync %0, %1;" ::"r"(my_team + 2), "r"(team_threads) : "memory");
    const int batch_first = t - place_in_batch, batch_items = place_in_batch + 1;
    const float* const from = team_sums + buffer * layout.batch * team * row_floats;
    const auto joined = [&](int item, int r, int n) {
      float total = 0;
      for (int w = 0; w < team; ++w) total += from[(item * team + w) * row_floats + r * call.rows + n];
      return total * kPairEpilogue;
    };
    const int outputs_each = call.paired ? kPaired : kGroup;
    for (int i = team_thread; i < batch_items * outputs_each * call.rows; i += team_threads) {
      const int r = i % outputs_each, which = i / outputs_each % batch_items, n = i / outputs_each / batch_items;
      const Item item = item_of(call, ((batch_first + which) * teams + my_team) * blocks + block);
      const DecodeMatrix& m = call.matrix[item.matrix];
      const int output = item.group * outputs_each + r;
      if (output >= m.outputs) continue;
      const int64_t place = int64_t{n} * m.outputs + output;
      float value = joined(which, r, n) * *m.global;
      if (call.paired) {
        // As the separate ops: gate and up are rounded before they meet.
        value = rounded<bf16>(value);
        const float up = rounded<bf16>(joined(which, r + kPaired, n) * *call.matrix[1].global);
        if (m.y) static_cast<bf16*>(m.y)[place] = from_f32<bf16>(value);
        if (call.matrix[1].y) static_cast<bf16*>(call.matrix[1].y)[place] = from_f32<bf16>(up);
        call.activated[place] = from_f32<bf16>(value / (1.0f + expf(-value)) * up);
      } else if (call.wide_output) {
        static_cast<float*>(m.y)[place] = value;
      } else {
        static_cast<bf16*>(m.y)[place] = from_f32<bf16>(value);
      }
    }
    if (layout.buffers == 1) asm volatile("bar.sync %0, %1;" ::"r"(my_team + 2), "r"(team_threads) : "memory");
  }

  for (const DecodeProduct::Copy& copy : call.copies)
    for (int i = static_cast<int>(blockIdx.x) * kWarps * 32 + static_cast<int>(threadIdx.x); i < copy.count;
         i += static_cast<int>(gridDim.x) * kWarps * 32)
      copy.to[i] = copy.from[i];
  if (!call.ticket) return;
  if (threadIdx.x == 0) writer = order == gridDim.x - 1;
  consumers_sync();
  if (!writer) return;
  // The last block to have read x and branch leaves the norm's results; its own copy of them is still in shared memory.
  __threadfence();
  for (int i = threadIdx.x; i < call.rows * pieces; i += kWarps * 32) {
    const int r = i / pieces, piece = i % pieces;
    const int64_t place = int64_t{r} * call.width + piece * 8;
    if (call.sum) {
      Pack<8> v = load<8>(call.x + place);
      const Pack<8> other = load<8>(call.branch + place);
#pragma unroll
      for (int j = 0; j < 8; ++j) v.v[j] += other.v[j];
      store<8>(call.sum + place, v);
    }
    if (call.normed) *reinterpret_cast<uint4*>(call.normed + place) = from_pairs(*at(r, slot_of(piece)));
  }
  if (call.rstd && threadIdx.x < static_cast<unsigned>(call.rows)) call.rstd[threadIdx.x] = scales_of_rows[threadIdx.x];
  if (threadIdx.x == 0) *call.ticket = 0;
#endif
}

// The copies of a product, alone.
__global__ void decode_copy_kernel(const __grid_constant__ DecodeProduct call) {
  begin();
  for (const DecodeProduct::Copy& copy : call.copies)
    for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < copy.count;
         i += static_cast<int>(gridDim.x * blockDim.x))
      copy.to[i] = copy.from[i];
}

}  // namespace

void decode_copies(const DecodeProduct& call, cudaStream_t stream, bool overlap) {
  launch({64, 256, stream, 0, overlap}, decode_copy_kernel, call);
}

bool decode_pair_fits(int width, int outputs) { return width % 32 == 0 && outputs % kPaired == 0; }

bool decode_product_fits(int rows, int width) {
  return rows <= kDecodeRows && width % 32 == 0 && layout_for(rows, width, 3).stages >= 2;
}

void decode_product(const DecodeProduct& call, int processors, cudaStream_t stream, bool overlap) {
  int items = 0;
  for (int m = 0; m < call.matrices; ++m) items += (call.matrix[m].outputs + kGroup - 1) / kGroup;
  if (call.paired) items = call.matrix[0].outputs / kPaired;
  const int blocks = std::min(processors, items);
  const Layout layout = layout_for(call.rows, call.width, (items + blocks - 1) / blocks);
  const Launch how{static_cast<unsigned>(blocks), kThreads, stream, static_cast<size_t>(layout.total), overlap};
  const auto run = [&](auto* kernel) {
    allow_shared(kernel, how.shared_bytes);
    launch(how, kernel, call, layout, items);
  };
  if (call.rows > 8)
    run(decode_product_kernel<true>);
  else
    run(decode_product_kernel<false>);
}

}  // namespace q4::gpu
