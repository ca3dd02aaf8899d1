// One block a multiprocessor streams its groups of eight rows of W through a ring in shared memory: a warp issues bulk
// copies, sixteen warps decode codes into fragments of mma m16n8k16 (rows of x are m, rows of W are n). The k dimension is
// permuted so that a lane's fragments of one row of W are 16 contiguous bytes. The copies start before the kernel waits
// for its predecessor, and half of shared memory stays free for the next kernel to do the same: weights flow without a
// pause. Needs 9.0 (bulk copies); linear_decode.cu serves the others.
#include "cuda/decode_product.h"

#include <algorithm>

#include "cuda/mma.cuh"
#include "cuda/nvfp4_bf16.cuh"
#include "cuda/sm90.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 16, kThreads = (kWarps + 1) * 32, kGroup = 8, kUnit = 128, kMaxStages = 12;
// Shared memory of one block: two of them fit a multiprocessor, unless x alone is too large for that.
constexpr int kHalfShared = 112 * 1024, kWholeShared = 224 * 1024;

struct Layout {
  int units, row_pitch, scale_offset, stage_bytes, stages, x_pitch, x_bytes, total;
  int batch;  // groups whose sums are joined at a time; even, as pairs are
};

Layout layout_for(int rows, int width) {
  Layout l{};
  l.units = (width + kUnit - 1) / kUnit;
  // A group's rows stay as they lie in memory: one large copy, where a copy a row would be held up by their number.
  l.row_pitch = width / 2;
  l.scale_offset = (kGroup * l.row_pitch + 127) / 128 * 128;
  // Reads of the last, partial unit may run past the codes or the scales: 128 bytes are left for them.
  l.stage_bytes = l.scale_offset + (width / 2 + 127) / 128 * 128 + 128;
  l.x_pitch = l.units * 256 + 64;
  l.x_bytes = rows * l.x_pitch;
  l.batch = rows == 1 ? 16 : rows == 2 ? 8 : rows <= 4 ? 4 : 2;
  const int fixed = l.x_bytes + 2 * l.batch * kWarps * kGroup * rows * 4 + 1024;
  for (const int room : {kHalfShared, kWholeShared}) {
    l.stages = std::min((room - fixed) / l.stage_bytes, kMaxStages);
    l.total = fixed + l.stages * l.stage_bytes;
    if (l.stages >= 2) return l;
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
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
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
      "over: }" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
__device__ inline void copy_bytes(uint32_t to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
__device__ inline void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory"); }

__device__ inline uint4 shared_load(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
// Eight neighbouring elements in the order of code_pairs, and back.
__device__ inline uint4 to_pairs(uint4 x) {
  return make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632), __byte_perm(x.y, x.w, 0x5410), __byte_perm(x.y, x.w, 0x7632));
}
__device__ inline uint4 from_pairs(uint4 p) {
  return make_uint4(__byte_perm(p.x, p.y, 0x5410), __byte_perm(p.z, p.w, 0x5410), __byte_perm(p.x, p.y, 0x7632), __byte_perm(p.z, p.w, 0x7632));
}
__device__ inline uint4 pack8(const Pack<8>& v) {
  return make_uint4(pack_bf16(v.v[0], v.v[1]), pack_bf16(v.v[2], v.v[3]), pack_bf16(v.v[4], v.v[5]), pack_bf16(v.v[6], v.v[7]));
}
#endif

// Which matrix and which of its groups of eight rows item `i` is; pairs alternate.
struct Item {
  int matrix, group;
};
__device__ Item item_of(const DecodeProduct& call, int i) {
  if (call.paired) return {i & 1, i >> 1};
  int matrix = 0;
  while (matrix + 1 < call.matrices) {
    const int groups = (call.matrix[matrix].outputs + kGroup - 1) / kGroup;
    if (i < groups) break;
    i -= groups;
    ++matrix;
  }
  return {matrix, i};
}

// Items come to blocks in pieces of two where they are pairs.
template <bool kMoreThanEight>
__global__ void __launch_bounds__(kThreads, kMoreThanEight ? 1 : 2)
    decode_product_kernel(const __grid_constant__ DecodeProduct call, const __grid_constant__ Layout layout, int items) {
#if defined(Q4_BULK)
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  __shared__ float partial[kWarps], scales_of_rows[kDecodeRows];
  __shared__ bool writer;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const uint32_t ring = shared_address(memory), x_base = ring + layout.stages * layout.stage_bytes;
  float* const sums = reinterpret_cast<float*>(memory + layout.stages * layout.stage_bytes + layout.x_bytes);
  const int step = call.paired ? 2 : 1;
  // Local item l is global item (l / step · blocks + block) · step + l % step.
  const int turns = items / step, mine = (turns - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x) * step;
  const auto global_item = [&](int l) { return (l / step * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)) * step + l % step; };
  if (threadIdx.x == 0) {
    for (int s = 0; s < layout.stages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], kWarps);
    writer = false;
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  release_next();
  __syncthreads();

  if (warp == kWarps) {
    if (lane != 0) return;
    for (int l = 0, stage = 0, parity = 1; l < mine; ++l) {
      const Item item = item_of(call, global_item(l));
      const DecodeMatrix& m = call.matrix[item.matrix];
      const int first = item.group * kGroup, rows = min(kGroup, m.outputs - first);
      const uint32_t to = ring + stage * layout.stage_bytes;
      // Bulk copies come in sixteens of bytes; scales of a last, partial group are padded to that in their tensor.
      const int code_bytes = rows * (call.width / 2), scale_bytes = (rows * (call.width / kBlock) + 15) / 16 * 16;
      barrier_wait(&empty[stage], parity);
      barrier_expect(&full[stage], code_bytes + scale_bytes);
      copy_bytes(to, m.codes + int64_t{first} * (call.width / 2), code_bytes, &full[stage]);
      copy_bytes(to + layout.scale_offset, m.scales + int64_t{first} * (call.width / kBlock), scale_bytes, &full[stage]);
      if (++stage == layout.stages) stage = 0, parity ^= 1;
    }
    return;
  }

  wait_previous();
  // x, or its norm, into shared memory: piece of eight elements (unit, i of 4, c of 4) at slot (unit·4 + i)·4 + c.
  const int pieces = call.width / 8, slots = layout.units * 16;
  const auto slot_of = [](int piece) { return (piece & ~15) | (piece & 3) << 2 | (piece >> 2 & 3); };
  const auto at = [&](int row, int slot) { return reinterpret_cast<uint4*>(memory + layout.stages * layout.stage_bytes + row * layout.x_pitch + slot * 16); };
  for (int i = threadIdx.x; i < call.rows * (slots - pieces); i += kWarps * 32)
    *at(i / (slots - pieces), slot_of(pieces + i % (slots - pieces))) = make_uint4(0, 0, 0, 0);
  int team = 1;  // warps that share a row
  while (team * 2 * call.rows <= kWarps) team *= 2;
  const int row = warp / team, first_piece = warp % team * 32 + lane;
  if (!call.norm_weight) {
    for (int i = threadIdx.x; i < call.rows * pieces; i += kWarps * 32) {
      const int r = i / pieces, piece = i % pieces;
      *at(r, slot_of(piece)) = to_pairs(*reinterpret_cast<const uint4*>(call.x + int64_t{r} * call.width + piece * 8));
    }
  } else {
    float squares = 0;
    if (row < call.rows)
      for (int piece = first_piece; piece < pieces; piece += team * 32) {
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
    // Everything of x and branch that this block needs is read.
    if (threadIdx.x == 0 && call.ticket) {
      __threadfence();
      writer = atomicAdd(call.ticket, 1u) == gridDim.x - 1;
    }
    if (row < call.rows) {
      float total = 0;
      for (int w = 0; w < team; ++w) total += partial[row * team + w];
      const float scale = rsqrtf(total / static_cast<float>(call.width) + call.eps);
      if (warp % team == 0 && lane == 0) scales_of_rows[row] = scale;
      for (int piece = first_piece; piece < pieces; piece += team * 32) {
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
  const uint32_t w_lane = g * layout.row_pitch + c * 16, s_lane = layout.scale_offset + g * (call.width / kBlock) + c * 2;
  const int row_floats = kGroup * call.rows;
  for (int l = 0, stage = 0, parity = 0; l < mine; ++l) {
    float sum[4] = {0, 0, 0, 0}, other[4] = {0, 0, 0, 0};  // two, so that products need not wait for each other
    const uint32_t base = ring + stage * layout.stage_bytes;
    // Units go round the warps from item to item, so that none is always the one with more.
    int unit = (warp + kWarps - l * layout.units % kWarps) % kWarps;
    barrier_wait(&full[stage], parity);
    for (; unit < layout.units; unit += kWarps) {
      uint4 codes = shared_load(base + w_lane + unit * 64);
      uint16_t scale_bytes;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(scale_bytes) : "r"(base + s_lane + unit * 8));
      // Past the row's end lies another row, or nothing: it must not even be multiplied by zero.
      if (unit * kUnit + c * 32 >= call.width) codes = make_uint4(0, 0, 0, 0), scale_bytes = 0;
      const uint32_t both = scale_pair((scale_bytes & 0xffu) | (scale_bytes & 0xff00u) << 8);
      const uint32_t factor[2] = {__byte_perm(both, both, 0x1010), __byte_perm(both, both, 0x3232)};
      const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t b[4];
        code_pairs(word[i], b);
#pragma unroll
        for (int p = 0; p < 4; ++p) b[p] = mul_bf16x2(b[p], factor[i / 2]);
        const uint4 x = shared_load(x_lane + (unit * 4 + i) * 64);
        uint4 high = make_uint4(0, 0, 0, 0);
        if constexpr (kMoreThanEight) high = shared_load(x_lane_high + (unit * 4 + i) * 64);
        const uint32_t first[4] = {x.x, high.x, x.y, high.y}, second[4] = {x.z, high.z, x.w, high.w};
        mma(sum, first, b[0], b[1]);
        mma(other, second, b[2], b[3]);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[stage]);
    if (++stage == layout.stages) stage = 0, parity ^= 1;

#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += other[e];
    // sums[buffer][item of the batch][warp][row of W][row of x]
    float* const to = sums + ((l / layout.batch % 2 * layout.batch + l % layout.batch) * kWarps + warp) * row_floats;
    if (g < call.rows) to[2 * c * call.rows + g] = sum[0], to[(2 * c + 1) * call.rows + g] = sum[1];
    if (kMoreThanEight && g + 8 < call.rows) to[2 * c * call.rows + g + 8] = sum[2], to[(2 * c + 1) * call.rows + g + 8] = sum[3];
    if (l % layout.batch != layout.batch - 1 && l != mine - 1) continue;

    consumers_sync();
    const int batch_first = l / layout.batch * layout.batch, batch_items = l - batch_first + 1;
    const float* const from = sums + l / layout.batch % 2 * layout.batch * kWarps * row_floats;
    const auto joined = [&](int item, int r, int n) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += from[(item * kWarps + w) * row_floats + r * call.rows + n];
      return total * kPairEpilogue;
    };
    for (int i = threadIdx.x; i < batch_items / step * row_floats; i += kWarps * 32) {
      const int r = i % kGroup, which = i / kGroup % (batch_items / step), n = i / kGroup / (batch_items / step);
      const Item item = item_of(call, global_item(batch_first + which * step));
      const DecodeMatrix& m = call.matrix[item.matrix];
      const int output = item.group * kGroup + r;
      if (output >= m.outputs) continue;
      const int64_t place = int64_t{n} * m.outputs + output;
      float value = joined(which * step, r, n) * *m.global;
      if (call.paired) {
        // As the separate ops: gate and up are rounded before they meet.
        value = rounded<bf16>(value);
        const float up = rounded<bf16>(joined(which * 2 + 1, r, n) * *call.matrix[1].global);
        if (m.y) static_cast<bf16*>(m.y)[place] = from_f32<bf16>(value);
        if (call.matrix[1].y) static_cast<bf16*>(call.matrix[1].y)[place] = from_f32<bf16>(up);
        call.activated[place] = from_f32<bf16>(value / (1.0f + expf(-value)) * up);
      } else if (call.wide_output) {
        static_cast<float*>(m.y)[place] = value;
      } else {
        static_cast<bf16*>(m.y)[place] = from_f32<bf16>(value);
      }
    }
  }

  for (const DecodeProduct::Copy& copy : call.copies)
    for (int i = static_cast<int>(blockIdx.x) * kWarps * 32 + static_cast<int>(threadIdx.x); i < copy.count; i += static_cast<int>(gridDim.x) * kWarps * 32)
      copy.to[i] = copy.from[i];
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

}  // namespace

bool decode_product_fits(int rows, int width) {
  return rows <= kDecodeRows && width % 32 == 0 && layout_for(rows, width).stages >= 2;
}

void decode_product(const DecodeProduct& call, int processors, cudaStream_t stream, bool overlap) {
  const Layout layout = layout_for(call.rows, call.width);
  int items = 0;
  for (int m = 0; m < call.matrices; ++m) items += (call.matrix[m].outputs + kGroup - 1) / kGroup;
  const int turns = call.paired ? items / 2 : items;
  const Launch how{static_cast<unsigned>(std::min(processors, turns)), kThreads, stream, static_cast<size_t>(layout.total), overlap};
  const auto run = [&](auto* kernel) {
    allow_shared(kernel, how.shared_bytes);
    launch(how, kernel, call, layout, items);
  };
  if (call.rows > 8) run(decode_product_kernel<true>);
  else run(decode_product_kernel<false>);
}

}  // namespace q4::gpu
