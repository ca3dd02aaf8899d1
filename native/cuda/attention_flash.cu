// Flash attention forward on mma.sync: every GPU from 8.0. Source: Dao, "FlashAttention-2" (2023), algorithm 1.
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/mma.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kRowTiles = 2;                       // 16-row tiles a warp: each B fragment serves 32 rows
constexpr int kQueries = kWarps * kRowTiles * 16;  // 128
constexpr int kMostKeys = 48;                      // of a tile

template <int D>
constexpr int shared_bytes() {
  return Tile<D>::bytes(kQueries) + 4 * Tile<D>::bytes(kMostKeys);
}

// Keys of a tile. From 10.0 on the compiler needs more registers for the same loop and would spill.
template <int D>
__device__ constexpr int tile_keys() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return D > 64 ? 16 : kMostKeys;
#else
  return kMostKeys;
#endif
}

// Grid: query tiles (longest first) × heads × batch.
template <int D>
__global__ void __launch_bounds__(kThreads, 2) flash_kernel(const AttentionCall call) {
  constexpr int kKeys = tile_keys<D>();
  extern __shared__ __align__(128) uint8_t shared[];
  begin();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, b = blockIdx.z;
  const int first_query = tile * kQueries;
  const int64_t q_stride = int64_t{call.heads} * call.dim, k_stride = int64_t{call.kv_heads} * call.dim;
  const bf16* q = static_cast<const bf16*>(call.q) + b * call.steps * q_stride + head * call.dim;
  const int64_t kv_offset = b * call.keys * k_stride + head / (call.heads / call.kv_heads) * call.dim;
  const auto k = [&] { return static_cast<const bf16*>(call.k) + kv_offset; };
  const auto v = [&] { return static_cast<const bf16*>(call.v) + kv_offset; };

  const Tile<D> q_tile{shared_address(shared)};
  const auto k_tile = [&](int stage) {
    return Tile<D>{q_tile.base + Tile<D>::bytes(kQueries) + stage * Tile<D>::bytes(kKeys)};
  };
  const auto v_tile = [&](int stage) { return Tile<D>{k_tile(2).base + stage * Tile<D>::bytes(kKeys)}; };

  // First visible key of a query. Read again where a tile is masked: no registers are left to keep them.
  const auto from = [&](int query) {
    return call.attend_from && query < call.steps ? max(0, call.attend_from[b * call.steps + query]) : 0;
  };
  // The least and the greatest of these over the tile of queries; stays in shared memory for want of registers.
  __shared__ int bounds[3];
  if (threadIdx.x == 0)
    bounds[0] = call.attend_from ? call.keys : 0, bounds[1] = 0, bounds[2] = call.past ? call.past[b] : 0;
  __syncthreads();
  if (call.attend_from) {
    static_assert(kQueries == kThreads);
    const int query = first_query + static_cast<int>(threadIdx.x);
    if (query < call.steps) {
      atomicMin(&bounds[0], from(query));
      atomicMax(&bounds[1], from(query));
    }
    __syncthreads();
  }
  const int last_query = min(call.steps, first_query + kQueries) - 1;
  const int key_end = min(call.keys, bounds[2] + last_query + 1);
  const int first_tile = bounds[0] / kKeys, tiles = (key_end + kKeys - 1) / kKeys;

  load_tile<D, kQueries, kThreads>(q_tile, q, q_stride, first_query, call.steps, call.dim);
  if (first_tile < tiles) {
    load_tile<D, kKeys, kThreads>(k_tile(first_tile & 1), k(), k_stride, first_tile * kKeys, key_end, call.dim);
    load_tile<D, kKeys, kThreads>(v_tile(first_tile & 1), v(), k_stride, first_tile * kKeys, key_end, call.dim);
  }
  copy_commit();

  float out[kRowTiles][D / 8][4] = {}, largest[kRowTiles][2], total[kRowTiles][2] = {};
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) largest[m][0] = largest[m][1] = -INFINITY;
  const float scale = call.scale * kLog2e;

  for (int t = first_tile; t < tiles; ++t) {
    const int stage = t & 1;
    if (t + 1 < tiles) {
      load_tile<D, kKeys, kThreads>(k_tile(stage ^ 1), k(), k_stride, (t + 1) * kKeys, key_end, call.dim);
      load_tile<D, kKeys, kThreads>(v_tile(stage ^ 1), v(), k_stride, (t + 1) * kKeys, key_end, call.dim);
      copy_commit();
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();

    float score[kRowTiles][kKeys / 8][4] = {};
    // Unrolled further, the fragments read ahead would spill.
#pragma unroll 4
    for (int d = 0; d < D / 16; ++d) {
      Four a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = load_a(q_tile, (warp * kRowTiles + m) * 16, d * 2);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        const Four f = load_b(k_tile(stage), n * 16, d * 2);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(score[m][2 * n], a[m].r, f.r[0], f.r[1]);
          mma(score[m][2 * n + 1], a[m].r, f.r[2], f.r[3]);
        }
      }
    }

    const int key = t * kKeys, past = bounds[2];
    const bool masked = key + kKeys > min(key_end, past + first_query + 1) || key < bounds[1];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (masked) {
          const int query = first_query + (warp * kRowTiles + m) * 16 + half * 8 + g, begin = from(query),
                    to = min(key_end - 1, past + query);
#pragma unroll
          for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int j = key + n * 8 + 2 * c + e;
              if (j > to || j < begin) score[m][n][half * 2 + e] = -INFINITY;
            }
        }
        float top = largest[m][half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(score[m][n][half * 2], score[m][n][half * 2 + 1]));
        top = quad_max(top);
        // A row that has seen no key yet stays at −∞, and its weights at 0.
        const float origin = top == -INFINITY ? 0.0f : top * scale;
        const float shrink = exp2f(largest[m][half] * scale - origin);
        largest[m][half] = top;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[m][n][half * 2 + e];
            s = exp2f(s * scale - origin);
            sum += s;
          }
        total[m][half] = total[m][half] * shrink + sum;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) out[m][n][half * 2] *= shrink, out[m][n][half * 2 + 1] *= shrink;
      }
    }

#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        p[m][0] = pack_bf16(score[m][2 * j][0], score[m][2 * j][1]);
        p[m][1] = pack_bf16(score[m][2 * j][2], score[m][2 * j][3]);
        p[m][2] = pack_bf16(score[m][2 * j + 1][0], score[m][2 * j + 1][1]);
        p[m][3] = pack_bf16(score[m][2 * j + 1][2], score[m][2 * j + 1][3]);
      }
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        const Four f = load_b_transposed(v_tile(stage), j * 16, d * 2);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(out[m][2 * d], p[m], f.r[0], f.r[1]);
          mma(out[m][2 * d + 1], p[m], f.r[2], f.r[3]);
        }
      }
    }
    __syncthreads();
  }
  copy_wait<0>();

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(total[m][half]);
      const int query = first_query + (warp * kRowTiles + m) * 16 + half * 8 + g;
      if (query >= call.steps) continue;
      const int64_t row = int64_t{b} * call.steps + query;
      const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
      if (c == 0) call.lse[row * call.heads + head] = largest[m][half] * call.scale + logf(sum);
      bf16* to = static_cast<bf16*>(call.out) + row * q_stride + head * call.dim;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        if (n * 8 < call.dim)
          *reinterpret_cast<uint32_t*>(to + n * 8 + 2 * c) =
              pack_bf16(out[m][n][half * 2] * inverse, out[m][n][half * 2 + 1] * inverse);
    }
}

}  // namespace

void flash_attention(const AttentionCall& call, cudaStream_t stream, bool overlap) {
  const dim3 grid(blocks_for(call.steps, kQueries), static_cast<unsigned>(call.heads),
                  static_cast<unsigned>(call.batch));
  const auto run = [&](auto* kernel, int bytes) {
    allow_shared(kernel, static_cast<size_t>(bytes));
    launch({grid, kThreads, stream, static_cast<size_t>(bytes), overlap}, kernel, call);
  };
  if (call.dim <= 64)
    run(flash_kernel<64>, shared_bytes<64>());
  else
    run(flash_kernel<128>, shared_bytes<128>());
}

}  // namespace q4::gpu
