// Flash attention backward on Hopper, D = 128. As attention_flash_backward.cu: one kernel sums dk and dv of 128 keys over
// all queries and heads of the group, one sums dq of 128 queries over all keys, each in one block and in one order. Two
// warpgroups of 64 rows multiply, one warp copies; while one warpgroup exponentiates, the other multiplies.
#include "cuda/attention.h"
#include "cuda/sm90.cuh"

namespace q4::gpu {
namespace {

constexpr int kDim = 128, kRows = 128, kStep = 64, kStages = 2, kConsumers = 2, kThreads = (kConsumers + 1) * 128;
constexpr int kHalf = kRows * 128, kStepHalf = kStep * 128;  // bytes of tiles [128][64] and [64][64]
constexpr float kLog2e = 1.4426950408889634f;

// What the score kernels read per query, rearranged so that a tile of it is one piece: [batch][heads][padded], padded to
// whole steps with rows that weigh nothing.
struct Statistics {
  float *lse, *delta;  // lse · log2e
  int* from;           // [batch][padded]
  int padded;
};

// One warp a row and head.
__global__ void statistics_kernel(const AttentionBackwardCall call, const Statistics to) {
  begin();
  const AttentionCall& f = call.forward;
  const int lane = threadIdx.x % 32;
  const int64_t item = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  const int head = static_cast<int>(item % f.heads), t = static_cast<int>(item / f.heads % to.padded);
  const int64_t b = item / f.heads / to.padded;
  if (b >= f.batch) return;
  const bool inside = t < f.steps;
  float sum = 0;
  const int64_t row = b * f.steps + t;
  if (inside) {
    const int64_t at = (row * f.heads + head) * kDim + lane * 4;
    const uint2 x = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(call.dout) + at);
    const uint2 y = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(f.out) + at);
    sum = low_bf16(x.x) * low_bf16(y.x) + high_bf16(x.x) * high_bf16(y.x) + low_bf16(x.y) * low_bf16(y.y) +
          high_bf16(x.y) * high_bf16(y.y);
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  to.lse[(b * f.heads + head) * to.padded + t] = inside ? f.lse[row * f.heads + head] * kLog2e : INFINITY;
  to.delta[(b * f.heads + head) * to.padded + t] = sum;
  if (head == 0) to.from[b * to.padded + t] = inside && f.attend_from ? max(0, f.attend_from[row]) : 0;
}

struct KeyShared {
  uint8_t k[2 * kHalf], v[2 * kHalf], q[kStages][2 * kStepHalf], dout[kStages][2 * kStepHalf];
  float lse[kStages][kStep], delta[kStages][kStep];
  int from[kStages][kStep];
  uint64_t keys_full, full[kStages], empty[kStages];
};

// Grid: kv heads × batch × key tiles, longest first.
__global__ void __launch_bounds__(kThreads, 1)
    sm90_key_gradient_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap dout_map,
                             const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                             const AttentionBackwardCall call, const Statistics statistics) {
#if defined(Q4_SM90)
  using namespace sm90;
  extern __shared__ uint8_t memory[];
  KeyShared& shared = *reinterpret_cast<KeyShared*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  const AttentionCall& f = call.forward;
  const int kv_head = blockIdx.x, b = blockIdx.y, first_key = blockIdx.z * kRows, heads = f.heads / f.kv_heads,
            group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    barrier_init(&shared.keys_full, 1);
    for (int s = 0; s < kStages; ++s) barrier_init(&shared.full[s], 1), barrier_init(&shared.empty[s], kConsumers * 4);
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  release_next();
  __syncthreads();
  wait_previous();
  const int first_step = first_key / kStep, steps = statistics.padded / kStep - first_step, items = steps * heads;

  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x != 0) return;
    barrier_expect(&shared.keys_full, 4 * kHalf);
    for (int half = 0; half < 2; ++half) {
      copy_box(shared.k + half * kHalf, &k_map, kv_head * kDim + half * 64, first_key, b, &shared.keys_full);
      copy_box(shared.v + half * kHalf, &v_map, kv_head * kDim + half * 64, first_key, b, &shared.keys_full);
    }
    for (int i = 0; i < items; ++i) {
      const int stage = i % kStages, head = kv_head * heads + i / steps, row = (first_step + i % steps) * kStep;
      barrier_wait(&shared.empty[stage], (i / kStages & 1) ^ 1);
      barrier_expect(&shared.full[stage], 4 * kStepHalf + 3 * kStep * 4);
      for (int half = 0; half < 2; ++half) {
        copy_box(shared.q[stage] + half * kStepHalf, &q_map, head * kDim + half * 64, row, b, &shared.full[stage]);
        copy_box(shared.dout[stage] + half * kStepHalf, &dout_map, head * kDim + half * 64, row, b,
                 &shared.full[stage]);
      }
      const int64_t at = (int64_t{b} * f.heads + head) * statistics.padded + row;
      copy_bytes(shared.lse[stage], statistics.lse + at, kStep * 4, &shared.full[stage]);
      copy_bytes(shared.delta[stage], statistics.delta + at, kStep * 4, &shared.full[stage]);
      copy_bytes(shared.from[stage], statistics.from + int64_t{b} * statistics.padded + row, kStep * 4,
                 &shared.full[stage]);
    }
    return;
  }

  take_registers<240>();
  const int consumer = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, g = lane / 4, c = lane % 4;
  const int first_row = first_key + consumer * 64, key = first_row + warp * 16 + g;  // and key + 8
  const float scale = f.scale * kLog2e;
  float dk[64] = {}, dv[64] = {}, p[32], ds[32];
  uint32_t weights[4][4], gradients[4][4];
  const uint32_t k_base = address_of(shared.k) + consumer * 64 * 128,
                 v_base = address_of(shared.v) + consumer * 64 * 128;
  barrier_wait(&shared.keys_full, 0);
  for (int i = 0; i < items; ++i) {
    const int stage = i % kStages, first_query = (first_step + i % steps) * kStep;
    const uint32_t q_base = address_of(shared.q[stage]), g_base = address_of(shared.dout[stage]);
    barrier_wait(&shared.full[stage], i / kStages & 1);
    products_begin();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t a = rows_operand(k_base + k / 4 * kHalf + k % 4 * 32),
                     b = rows_operand(q_base + k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_64_new(p, a, b);
      else
        product_64(p, a, b, true);
    }
    products_commit();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t a = rows_operand(v_base + k / 4 * kHalf + k % 4 * 32),
                     b = rows_operand(g_base + k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_64_new(ds, a, b);
      else
        product_64(ds, a, b, true);
    }
    products_commit();
    products_wait<1>();
    settle(p);
    const bool diagonal = first_query < first_row + 64;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 lse = *reinterpret_cast<const float2*>(&shared.lse[stage][n * 8 + 2 * c]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = p[n * 4 + e];
        x = exp2f(x * scale - (e & 1 ? lse.y : lse.x));
        if (diagonal && key + (e >> 1) * 8 > first_query + n * 8 + 2 * c + (e & 1)) x = 0;
      }
    }
    if (f.attend_from) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int2 from = *reinterpret_cast<const int2*>(&shared.from[stage][n * 8 + 2 * c]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (key + (e >> 1) * 8 < (e & 1 ? from.y : from.x)) p[n * 4 + e] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) weights[k][e] = pack_bf16(p[k * 8 + e * 2], p[k * 8 + e * 2 + 1]);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      product_128_columns(dv, weights[k], columns_operand(g_base + k * 2048, kStepHalf), true);
    products_commit();
    products_wait<1>();
    settle(ds);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(&shared.delta[stage][n * 8 + 2 * c]);
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[n * 4 + e] = p[n * 4 + e] * (ds[n * 4 + e] - (e & 1 ? delta.y : delta.x));
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients[k][e] = pack_bf16(ds[k * 8 + e * 2], ds[k * 8 + e * 2 + 1]);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      product_128_columns(dk, gradients[k], columns_operand(q_base + k * 2048, kStepHalf), true);
    products_commit();
    products_wait<0>();
    settle(dv);
    settle(dk);
    if (lane == 0) barrier_arrive(&shared.empty[stage]);
  }
  const int64_t stride = int64_t{f.kv_heads} * kDim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (key + half * 8 >= f.steps) continue;
    const int64_t at = (int64_t{b} * f.steps + key + half * 8) * stride + kv_head * kDim + 2 * c;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      *reinterpret_cast<uint32_t*>(static_cast<bf16*>(call.dk) + at + n * 8) =
          pack_bf16(dk[n * 4 + half * 2] * f.scale, dk[n * 4 + half * 2 + 1] * f.scale);
      *reinterpret_cast<uint32_t*>(static_cast<bf16*>(call.dv) + at + n * 8) =
          pack_bf16(dv[n * 4 + half * 2], dv[n * 4 + half * 2 + 1]);
    }
  }
#endif
}

struct QueryShared {
  uint8_t q[2 * kHalf], dout[2 * kHalf], k[kStages][2 * kStepHalf], v[kStages][2 * kStepHalf];
  uint64_t queries_full, full[kStages], empty[kStages];
  int lowest;
};

// Grid: heads × batch × query tiles, longest first.
__global__ void __launch_bounds__(kThreads, 1)
    sm90_query_gradient_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap dout_map,
                               const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                               const AttentionBackwardCall call, const Statistics statistics) {
#if defined(Q4_SM90)
  using namespace sm90;
  extern __shared__ uint8_t memory[];
  QueryShared& shared = *reinterpret_cast<QueryShared*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  const AttentionCall& f = call.forward;
  const int head = blockIdx.x, b = blockIdx.y, first_query = (gridDim.z - 1 - blockIdx.z) * kRows,
            kv_head = head / (f.heads / f.kv_heads);
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    barrier_init(&shared.queries_full, 1);
    for (int s = 0; s < kStages; ++s) barrier_init(&shared.full[s], 1), barrier_init(&shared.empty[s], kConsumers * 4);
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("fence.proxy.async;" ::: "memory");
    shared.lowest = f.steps;
  }
  release_next();
  __syncthreads();
  wait_previous();
  const int* from_row = statistics.from + int64_t{b} * statistics.padded;
  int first_step = 0;
  if (f.attend_from) {
    if (threadIdx.x < kRows && first_query + static_cast<int>(threadIdx.x) < f.steps)
      atomicMin(&shared.lowest, from_row[first_query + threadIdx.x]);
    __syncthreads();
    first_step = shared.lowest / kStep;
  }
  const int end = min(f.steps, first_query + kRows), items = max(0, (end + kStep - 1) / kStep - first_step);

  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x != 0) return;
    barrier_expect(&shared.queries_full, 4 * kHalf);
    for (int half = 0; half < 2; ++half) {
      copy_box(shared.q + half * kHalf, &q_map, head * kDim + half * 64, first_query, b, &shared.queries_full);
      copy_box(shared.dout + half * kHalf, &dout_map, head * kDim + half * 64, first_query, b, &shared.queries_full);
    }
    for (int i = 0; i < items; ++i) {
      const int stage = i % kStages, row = (first_step + i) * kStep;
      barrier_wait(&shared.empty[stage], (i / kStages & 1) ^ 1);
      barrier_expect(&shared.full[stage], 4 * kStepHalf);
      for (int half = 0; half < 2; ++half) {
        copy_box(shared.k[stage] + half * kStepHalf, &k_map, kv_head * kDim + half * 64, row, b, &shared.full[stage]);
        copy_box(shared.v[stage] + half * kStepHalf, &v_map, kv_head * kDim + half * 64, row, b, &shared.full[stage]);
      }
    }
    return;
  }

  take_registers<240>();
  const int consumer = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, g = lane / 4, c = lane % 4;
  const int first_row = first_query + consumer * 64, query = first_row + warp * 16 + g;  // and query + 8
  const float scale = f.scale * kLog2e;
  float lse[2], delta[2];
  int from[2];
  for (int half = 0; half < 2; ++half) {
    const int t = min(query + half * 8, statistics.padded - 1);  // rows past the padding are never stored
    const int64_t at = (int64_t{b} * f.heads + head) * statistics.padded + t;
    lse[half] = statistics.lse[at], delta[half] = statistics.delta[at], from[half] = from_row[t];
  }
  float dq[64] = {}, p[32], ds[32];
  uint32_t gradients[4][4];
  const uint32_t q_base = address_of(shared.q) + consumer * 64 * 128,
                 g_base = address_of(shared.dout) + consumer * 64 * 128;
  barrier_wait(&shared.queries_full, 0);
  for (int i = 0; i < items; ++i) {
    const int stage = i % kStages, first_key = (first_step + i) * kStep;
    const uint32_t k_base = address_of(shared.k[stage]), v_base = address_of(shared.v[stage]);
    barrier_wait(&shared.full[stage], i / kStages & 1);
    products_begin();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t a = rows_operand(q_base + k / 4 * kHalf + k % 4 * 32),
                     b = rows_operand(k_base + k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_64_new(p, a, b);
      else
        product_64(p, a, b, true);
    }
    products_commit();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t a = rows_operand(g_base + k / 4 * kHalf + k % 4 * 32),
                     b = rows_operand(v_base + k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_64_new(ds, a, b);
      else
        product_64(ds, a, b, true);
    }
    products_commit();
    products_wait<1>();
    settle(p);
    const bool masked = first_key + kStep > first_row + 1 || f.attend_from != nullptr;
#pragma unroll
    for (int e = 0; e < 32; ++e) p[e] = exp2f(p[e] * scale - lse[e >> 1 & 1]);
    if (masked) {
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        const int half = e >> 1 & 1, key = first_key + e / 4 * 8 + 2 * c + (e & 1);
        if (key > query + half * 8 || key < from[half]) p[e] = 0;
      }
    }
    products_wait<0>();
    settle(ds);
#pragma unroll
    for (int e = 0; e < 32; ++e) ds[e] = p[e] * (ds[e] - delta[e >> 1 & 1]);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients[k][e] = pack_bf16(ds[k * 8 + e * 2], ds[k * 8 + e * 2 + 1]);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      product_128_columns(dq, gradients[k], columns_operand(k_base + k * 2048, kStepHalf), true);
    products_commit();
    products_wait<0>();
    settle(dq);
    if (lane == 0) barrier_arrive(&shared.empty[stage]);
  }
  const int64_t stride = int64_t{f.heads} * kDim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (query + half * 8 >= f.steps) continue;
    bf16* to = static_cast<bf16*>(call.dq) + (int64_t{b} * f.steps + query + half * 8) * stride + head * kDim + 2 * c;
#pragma unroll
    for (int n = 0; n < 16; ++n)
      *reinterpret_cast<uint32_t*>(to + n * 8) =
          pack_bf16(dq[n * 4 + half * 2] * f.scale, dq[n * 4 + half * 2 + 1] * f.scale);
  }
#endif
}

}  // namespace

bool sm90_flash_attention_backward(const AttentionBackwardCall& call, int capability, float* workspace,
                                   int64_t workspace_floats, cudaStream_t stream, bool overlap) {
  const AttentionCall& f = call.forward;
  if (capability != 90 || f.dim != kDim) return false;
  const int padded = (f.steps + kRows - 1) / kRows * kRows;
  const int64_t rows = int64_t{f.batch} * f.heads * padded;
  if (2 * rows + int64_t{f.batch} * padded > workspace_floats) return false;
  const Statistics statistics{workspace, workspace + rows, reinterpret_cast<int*>(workspace + 2 * rows), padded};
  using sm90::tile_map;
  const auto map = [&](const void* data, int heads, int box_rows) {
    return tile_map(data, int64_t{heads} * kDim, f.steps, f.batch, box_rows);
  };
  const unsigned tiles = blocks_for(f.steps, kRows), batch = static_cast<unsigned>(f.batch);
  allow_shared(sm90_key_gradient_kernel, sizeof(KeyShared) + 1024);
  allow_shared(sm90_query_gradient_kernel, sizeof(QueryShared) + 1024);
  launch({blocks_for(rows, 8), 256, stream, 0, overlap}, statistics_kernel, call, statistics);
  launch({{static_cast<unsigned>(f.kv_heads), batch, tiles}, kThreads, stream, sizeof(KeyShared) + 1024, overlap},
         sm90_key_gradient_kernel, map(f.q, f.heads, kStep), map(call.dout, f.heads, kStep),
         map(f.k, f.kv_heads, kRows), map(f.v, f.kv_heads, kRows), call, statistics);
  launch({{static_cast<unsigned>(f.heads), batch, tiles}, kThreads, stream, sizeof(QueryShared) + 1024, overlap},
         sm90_query_gradient_kernel, map(f.q, f.heads, kRows), map(call.dout, f.heads, kRows),
         map(f.k, f.kv_heads, kStep), map(f.v, f.kv_heads, kStep), call, statistics);
  return true;
}

}  // namespace q4::gpu
