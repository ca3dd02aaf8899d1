// Flash attention backward on mma.sync: every GPU from 8.0. Two kernels, so that every gradient is summed by one block in
// one order: dk and dv by key tiles over all queries and heads of the group, dq by query tiles over all keys. Both compute
// P = exp(scale·QKᵀ − lse) and dS = P ∘ (dO·Vᵀ − delta) anew from tiles. Source: Dao, "FlashAttention-2", algorithm 2.
#include "cuda/attention.h"
#include "cuda/mma.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kTile = 64;

template <int D>
using Operand = Tile<D, true>;

template <int D>
constexpr int shared_bytes() {
  return 6 * Tile<D>::bytes(kTile) + 4 * kTile * 4 + 2 * kTile * 4;
}

// The statistics of a tile of queries, for columns of a transposed score: lse·log2e, delta, first visible key.
struct Rows {
  float* lse;
  float* delta;
  int* from;
};

__device__ void load_rows(const Rows& rows, const AttentionBackwardCall& call, int b, int head, int first) {
  for (int i = threadIdx.x; i < kTile; i += kThreads) {
    const int query = first + i;
    const int64_t row = int64_t{b} * call.forward.steps + query;
    const bool inside = query < call.forward.steps;
    rows.lse[i] = inside ? call.forward.lse[row * call.forward.heads + head] * kLog2e : 0.0f;
    rows.delta[i] = inside ? call.delta[row * call.forward.heads + head] : 0.0f;
    rows.from[i] = inside && call.forward.attend_from ? call.forward.attend_from[row] : 0;
  }
}

// Packs the fp32 fragments of a 16×kTile score into the A fragment of its 16 columns [16j, +16).
__device__ void pack_a(uint32_t (&a)[4], const float (&s)[kTile / 8][4], int j) {
  a[0] = pack_bf16(s[2 * j][0], s[2 * j][1]);
  a[1] = pack_bf16(s[2 * j][2], s[2 * j][3]);
  a[2] = pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]);
  a[3] = pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3]);
}

// out[16, kTile] = rows [row, +16) of `a` · rows of `b`ᵀ.
template <int D>
__device__ void product(float (&out)[kTile / 8][4], const Operand<D>& a, int row, const Operand<D>& b) {
#pragma unroll 2
  for (int d = 0; d < D / 16; ++d) {
    const Four left = load_a(a, row, d * 2);
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n) {
      const Four right = load_b(b, n * 16, d * 2);
      mma(out[2 * n], left.r, right.r[0], right.r[1]);
      mma(out[2 * n + 1], left.r, right.r[2], right.r[3]);
    }
  }
}

// sum[16, D] += s[16, kTile] · b[kTile, D].
template <int D>
__device__ void accumulate(float (&sum)[D / 8][4], const float (&s)[kTile / 8][4], const Operand<D>& b) {
#pragma unroll
  for (int j = 0; j < kTile / 16; ++j) {
    uint32_t a[4];
    pack_a(a, s, j);
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      const Four right = load_b_transposed(b, j * 16, d * 2);
      mma(sum[2 * d], a, right.r[0], right.r[1]);
      mma(sum[2 * d + 1], a, right.r[2], right.r[3]);
    }
  }
}

template <int D>
__device__ void store_rows(void* to, int64_t stride, int first, int limit, int dim, const float (&sum)[D / 8][4],
                           float factor) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + half * 8 + g;
    if (row >= limit) continue;
    bf16* at = static_cast<bf16*>(to) + row * stride;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      if (n * 8 < dim)
        *reinterpret_cast<uint32_t*>(at + n * 8 + 2 * c) =
            pack_bf16(sum[n][half * 2] * factor, sum[n][half * 2 + 1] * factor);
  }
}

// dk, dv of one tile of keys: a loop over the heads of the group and the tiles of queries that see it. Scores are kept
// transposed (keys are rows), so that P and dS go from accumulators to A fragments without leaving registers.
template <int D>
__global__ void __launch_bounds__(kThreads, 1) key_gradient_kernel(const AttentionBackwardCall call) {
  extern __shared__ __align__(128) uint8_t shared[];
  begin();
  const AttentionCall& f = call.forward;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int first_key = blockIdx.x * kTile, kv_head = blockIdx.y, b = blockIdx.z, group = f.heads / f.kv_heads;
  const int64_t q_stride = int64_t{f.heads} * f.dim, k_stride = int64_t{f.kv_heads} * f.dim;
  const int64_t q_base = b * f.steps * q_stride, kv_base = b * f.steps * k_stride + kv_head * f.dim;

  const Operand<D> k_tile{shared_address(shared)}, v_tile{k_tile.base + Tile<D>::bytes(kTile)};
  const auto q_tile = [&](int stage) { return Operand<D>{k_tile.base + (2 + stage) * Tile<D>::bytes(kTile)}; };
  const auto g_tile = [&](int stage) { return Operand<D>{k_tile.base + (4 + stage) * Tile<D>::bytes(kTile)}; };
  float* const statistics = reinterpret_cast<float*>(shared + 6 * Tile<D>::bytes(kTile));
  const auto rows = [&](int stage) {
    return Rows{statistics + stage * 3 * kTile, statistics + stage * 3 * kTile + kTile,
                reinterpret_cast<int*>(statistics + stage * 3 * kTile + 2 * kTile)};
  };

  load_tile<D, kTile, kThreads>(k_tile, static_cast<const bf16*>(f.k) + kv_base, k_stride, first_key, f.steps, f.dim);
  load_tile<D, kTile, kThreads>(v_tile, static_cast<const bf16*>(f.v) + kv_base, k_stride, first_key, f.steps, f.dim);

  const int first_tile = first_key / kTile, query_tiles = (f.steps + kTile - 1) / kTile - first_tile;
  const int items = query_tiles * group;
  const auto fetch = [&](int item, int stage) {
    const int head = kv_head * group + item / query_tiles, first = (first_tile + item % query_tiles) * kTile;
    const int64_t at = q_base + head * f.dim;
    load_tile<D, kTile, kThreads>(q_tile(stage), static_cast<const bf16*>(f.q) + at, q_stride, first, f.steps, f.dim);
    load_tile<D, kTile, kThreads>(g_tile(stage), static_cast<const bf16*>(call.dout) + at, q_stride, first, f.steps,
                                  f.dim);
    load_rows(rows(stage), call, b, head, first);
    copy_commit();
  };
  fetch(0, 0);

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int item = 0; item < items; ++item) {
    const int stage = item & 1, first_query = (first_tile + item % query_tiles) * kTile;
    if (item + 1 < items) {
      fetch(item + 1, stage ^ 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const Rows r = rows(stage);
    float p[kTile / 8][4] = {};
    product<D>(p, k_tile, warp * 16, q_tile(stage));
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + 2 * c + (e & 1), query = first_query + i, key = first_key + warp * 16 + g + (e >> 1) * 8;
        const bool seen = query < f.steps && key <= query && key >= r.from[i];
        p[n][e] = seen ? exp2f(p[n][e] * f.scale * kLog2e - r.lse[i]) : 0.0f;
      }
    accumulate<D>(dv, p, g_tile(stage));
    float ds[kTile / 8][4] = {};
    product<D>(ds, v_tile, warp * 16, g_tile(stage));
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - r.delta[n * 8 + 2 * c + (e & 1)]);
    accumulate<D>(dk, ds, q_tile(stage));
    __syncthreads();
  }
  store_rows<D>(static_cast<bf16*>(call.dk) + kv_base, k_stride, first_key + warp * 16, f.steps, f.dim, dk, f.scale);
  store_rows<D>(static_cast<bf16*>(call.dv) + kv_base, k_stride, first_key + warp * 16, f.steps, f.dim, dv, 1.0f);
}

// dq of one tile of queries of one head: a loop over the tiles of keys that it sees.
template <int D>
__global__ void __launch_bounds__(kThreads, 2) query_gradient_kernel(const AttentionBackwardCall call) {
  extern __shared__ __align__(128) uint8_t shared[];
  begin();
  const AttentionCall& f = call.forward;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int first_query = (gridDim.x - 1 - blockIdx.x) * kTile, head = blockIdx.y, b = blockIdx.z;
  const int64_t q_stride = int64_t{f.heads} * f.dim, k_stride = int64_t{f.kv_heads} * f.dim;
  const int64_t q_base = b * f.steps * q_stride + head * f.dim;
  const int64_t kv_base = b * f.steps * k_stride + head / (f.heads / f.kv_heads) * f.dim;

  const Operand<D> q_tile{shared_address(shared)}, g_tile{q_tile.base + Tile<D>::bytes(kTile)};
  const auto k_tile = [&](int stage) { return Operand<D>{q_tile.base + (2 + stage) * Tile<D>::bytes(kTile)}; };
  const auto v_tile = [&](int stage) { return Operand<D>{q_tile.base + (4 + stage) * Tile<D>::bytes(kTile)}; };
  load_tile<D, kTile, kThreads>(q_tile, static_cast<const bf16*>(f.q) + q_base, q_stride, first_query, f.steps, f.dim);
  load_tile<D, kTile, kThreads>(g_tile, static_cast<const bf16*>(call.dout) + q_base, q_stride, first_query, f.steps,
                                f.dim);

  float lse[2], delta[2];
  int from[2], lowest = f.steps;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + warp * 16 + half * 8 + g;
    const int64_t row = int64_t{b} * f.steps + query;
    const bool inside = query < f.steps;
    lse[half] = inside ? f.lse[row * f.heads + head] * kLog2e : 0.0f;
    delta[half] = inside ? call.delta[row * f.heads + head] : 0.0f;
    from[half] = inside && f.attend_from ? max(0, f.attend_from[row]) : 0;
    if (inside) lowest = min(lowest, from[half]);
  }
  if (f.attend_from) {
    __shared__ int bound;
    if (threadIdx.x == 0) bound = f.steps;
    __syncthreads();
    atomicMin(&bound, lowest);
    __syncthreads();
    lowest = bound;
  } else {
    lowest = 0;
  }
  const int first_tile = lowest / kTile, tiles = first_query / kTile + 1;
  const auto fetch = [&](int t, int stage) {
    load_tile<D, kTile, kThreads>(k_tile(stage), static_cast<const bf16*>(f.k) + kv_base, k_stride, t * kTile, f.steps,
                                  f.dim);
    load_tile<D, kTile, kThreads>(v_tile(stage), static_cast<const bf16*>(f.v) + kv_base, k_stride, t * kTile, f.steps,
                                  f.dim);
    copy_commit();
  };
  if (first_tile < tiles) fetch(first_tile, 0);

  float dq[D / 8][4] = {};
  for (int t = first_tile; t < tiles; ++t) {
    const int stage = (t - first_tile) & 1;
    if (t + 1 < tiles) {
      fetch(t + 1, stage ^ 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    float p[kTile / 8][4] = {}, ds[kTile / 8][4] = {};
    product<D>(p, q_tile, warp * 16, k_tile(stage));
    product<D>(ds, g_tile, warp * 16, v_tile(stage));
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e >> 1, query = first_query + warp * 16 + half * 8 + g,
                  key = t * kTile + n * 8 + 2 * c + (e & 1);
        const bool seen = query < f.steps && key <= query && key >= from[half];
        const float weight = seen ? exp2f(p[n][e] * f.scale * kLog2e - lse[half]) : 0.0f;
        ds[n][e] = weight * (ds[n][e] - delta[half]);
      }
    accumulate<D>(dq, ds, k_tile(stage));
    __syncthreads();
  }
  copy_wait<0>();
  store_rows<D>(static_cast<bf16*>(call.dq) + q_base, q_stride, first_query + warp * 16, f.steps, f.dim, dq, f.scale);
}

template <int D>
void run(const AttentionBackwardCall& call, cudaStream_t stream, bool overlap) {
  const AttentionCall& f = call.forward;
  const unsigned tiles = blocks_for(f.steps, kTile), batch = static_cast<unsigned>(f.batch);
  const size_t bytes = shared_bytes<D>();
  allow_shared(key_gradient_kernel<D>, bytes);
  allow_shared(query_gradient_kernel<D>, bytes);
  launch({{tiles, static_cast<unsigned>(f.kv_heads), batch}, kThreads, stream, bytes, overlap}, key_gradient_kernel<D>,
         call);
  launch({{tiles, static_cast<unsigned>(f.heads), batch}, kThreads, stream, bytes, overlap}, query_gradient_kernel<D>,
         call);
}

}  // namespace

void flash_attention_backward(const AttentionBackwardCall& call, cudaStream_t stream, bool overlap) {
  if (call.forward.dim <= 64)
    run<64>(call, stream, overlap);
  else
    run<128>(call, stream, overlap);
}

}  // namespace q4::gpu
