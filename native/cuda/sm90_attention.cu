// Flash attention forward on Hopper, D = 128: one warp copies tiles, two warpgroups of 64 queries each multiply and keep
// the running softmax; the scores of the next tile are multiplied while this one's are exponentiated.
// Source: Shah et al., "FlashAttention-3" (2024), algorithm 1.
#include "cuda/attention.h"
#include "cuda/sm90.cuh"

namespace q4::gpu {
namespace {

constexpr int kDim = 128, kQueries = 128, kKeys = 128, kStages = 2, kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * 128;
constexpr int kHalf = 128 * 128;  // bytes of a tile [128][64]
constexpr float kLog2e = 1.4426950408889634f;

struct Shared {
  uint8_t q[2 * kHalf], k[kStages][2 * kHalf], v[kStages][2 * kHalf];
  uint64_t q_full, k_full[kStages], v_full[kStages], k_empty[kStages], v_empty[kStages];
  int lowest, highest;  // of attend_from over the tile's queries
};

// Grid: heads × batch × query tiles, longest first.
__global__ void __launch_bounds__(kThreads, 1)
    sm90_forward_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                        const __grid_constant__ CUtensorMap v_map, const AttentionCall call) {
#if defined(Q4_SM90)
  using namespace sm90;
  extern __shared__ uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int tile = gridDim.z - 1 - blockIdx.z, head = blockIdx.x, b = blockIdx.y,
            kv_head = head / (call.heads / call.kv_heads);
  const int first_query = tile * kQueries, group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    barrier_init(&shared.q_full, 1);
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&shared.k_full[s], 1), barrier_init(&shared.v_full[s], 1);
      barrier_init(&shared.k_empty[s], kConsumers * 4), barrier_init(&shared.v_empty[s], kConsumers * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("fence.proxy.async;" ::: "memory");
    shared.lowest = call.keys, shared.highest = 0;
  }
  release_next();
  __syncthreads();
  wait_previous();
  const int past = call.past ? call.past[b] : 0;
  int first_tile = 0, highest = 0;
  if (call.attend_from) {
    const int query = first_query + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kQueries && query < call.steps) {
      const int from = max(0, call.attend_from[b * call.steps + query]);
      atomicMin(&shared.lowest, from), atomicMax(&shared.highest, from);
    }
    __syncthreads();
    first_tile = shared.lowest / kKeys, highest = shared.highest;
  }
  const int key_end = min(call.keys, past + min(call.steps, first_query + kQueries));
  const int tiles = max(0, (key_end + kKeys - 1) / kKeys - first_tile);

  if (group == 0) {
    give_registers<32>();
    if (threadIdx.x != 0 || tiles == 0) return;
    barrier_expect(&shared.q_full, 2 * kHalf);
    for (int half = 0; half < 2; ++half)
      copy_box(shared.q + half * kHalf, &q_map, head * kDim + half * 64, first_query, b, &shared.q_full);
    // From the diagonal down: the masked tile first.
    for (int i = 0; i < tiles; ++i) {
      const int stage = i % kStages, parity = (i / kStages & 1) ^ 1, row = (first_tile + tiles - 1 - i) * kKeys;
      barrier_wait(&shared.k_empty[stage], parity);
      barrier_expect(&shared.k_full[stage], 2 * kHalf);
      for (int half = 0; half < 2; ++half)
        copy_box(shared.k[stage] + half * kHalf, &k_map, kv_head * kDim + half * 64, row, b, &shared.k_full[stage]);
      barrier_wait(&shared.v_empty[stage], parity);
      barrier_expect(&shared.v_full[stage], 2 * kHalf);
      for (int half = 0; half < 2; ++half)
        copy_box(shared.v[stage] + half * kHalf, &v_map, kv_head * kDim + half * 64, row, b, &shared.v_full[stage]);
    }
    return;
  }

  take_registers<232>();
  const int consumer = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, g = lane / 4, c = lane % 4;
  const int query = first_query + consumer * 64 + warp * 16 + g;  // and query + 8
  int from[2] = {0, 0};
  if (call.attend_from)
    for (int half = 0; half < 2; ++half)
      if (query + half * 8 < call.steps) from[half] = max(0, call.attend_from[b * call.steps + query + half * 8]);
  const float scale = call.scale * kLog2e;
  float out[64] = {}, score[64], largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, shrink[2];
  uint32_t weights[8][4];
  const uint32_t q_base = address_of(shared.q) + consumer * 64 * 128;

  const auto multiply_keys = [&](int stage) {
    const uint32_t base = address_of(shared.k[stage]);
    products_begin();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t at = k / 4 * kHalf + k % 4 * 32;
      if (k == 0)
        product_128_new(score, rows_operand(q_base + at), rows_operand(base + at));
      else
        product_128(score, rows_operand(q_base + at), rows_operand(base + at), true);
    }
    products_commit();
  };
  const auto multiply_values = [&](int stage) {
    const uint32_t base = address_of(shared.v[stage]);
    products_begin();
#pragma unroll
    for (int k = 0; k < 8; ++k) product_128_columns(out, weights[k], columns_operand(base + k * 2048, kHalf), true);
    products_commit();
  };
  // Scores of tile i → weights before normalisation, the new maximum and what earlier sums shrink by.
  const auto exponentiate = [&](int i) {
    const int key = (first_tile + tiles - 1 - i) * kKeys;
    if (key + kKeys > min(key_end, past + first_query + consumer * 64 + 1) || key < highest) {
#pragma unroll
      for (int e = 0; e < 64; ++e) {
        const int half = e >> 1 & 1, j = key + e / 4 * 8 + 2 * c + (e & 1);
        if (j > min(key_end - 1, past + query + half * 8) || j < from[half]) score[e] = -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = largest[half];
#pragma unroll
      for (int n = 0; n < 16; ++n) top = fmaxf(top, fmaxf(score[n * 4 + half * 2], score[n * 4 + half * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float origin = top == -INFINITY ? 0.0f : top * scale;
      shrink[half] = exp2f(largest[half] * scale - origin);
      largest[half] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 16; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[n * 4 + half * 2 + e];
          s = exp2f(s * scale - origin);
          sum += s;
        }
      total[half] = total[half] * shrink[half] + sum;
    }
  };
  const auto pack = [&] {
#pragma unroll
    for (int k = 0; k < 8; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) weights[k][e] = pack_bf16(score[k * 8 + e * 2], score[k * 8 + e * 2 + 1]);
  };

  if (tiles > 0) {
    barrier_wait(&shared.q_full, 0);
    barrier_wait(&shared.k_full[0], 0);
    multiply_keys(0);
    products_wait<0>();
    settle(score);
    if (lane == 0) barrier_arrive(&shared.k_empty[0]);
    exponentiate(0);
    pack();
    for (int i = 0; i < tiles; ++i) {
      const int stage = i % kStages, parity = i / kStages & 1;
      if (i + 1 < tiles) {
        const int next = (i + 1) % kStages;
        barrier_wait(&shared.k_full[next], (i + 1) / kStages & 1);
        multiply_keys(next);
        barrier_wait(&shared.v_full[stage], parity);
        multiply_values(stage);
        products_wait<1>();
        settle(score);
        if (lane == 0) barrier_arrive(&shared.k_empty[next]);
        exponentiate(i + 1);
        products_wait<0>();
        settle(out);
        if (lane == 0) barrier_arrive(&shared.v_empty[stage]);
        pack();
#pragma unroll
        for (int e = 0; e < 64; ++e) out[e] *= shrink[e >> 1 & 1];
      } else {
        barrier_wait(&shared.v_full[stage], parity);
        multiply_values(stage);
        products_wait<0>();
        settle(out);
      }
    }
  }

  const int64_t stride = int64_t{call.heads} * kDim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = total[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (query + half * 8 >= call.steps) continue;
    const int64_t row = int64_t{b} * call.steps + query + half * 8;
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    if (c == 0) call.lse[row * call.heads + head] = largest[half] * call.scale + logf(sum);
    bf16* to = static_cast<bf16*>(call.out) + row * stride + head * kDim;
#pragma unroll
    for (int n = 0; n < 16; ++n)
      *reinterpret_cast<uint32_t*>(to + n * 8 + 2 * c) =
          pack_bf16(out[n * 4 + half * 2] * inverse, out[n * 4 + half * 2 + 1] * inverse);
  }
#endif
}

}  // namespace

bool sm90_flash_attention(const AttentionCall& call, int capability, cudaStream_t stream, bool overlap) {
  if (capability != 90 || call.dim != kDim) return false;
  using sm90::tile_map;
  const size_t bytes = sizeof(Shared) + 1024;
  allow_shared(sm90_forward_kernel, bytes);
  const dim3 grid(static_cast<unsigned>(call.heads), static_cast<unsigned>(call.batch),
                  blocks_for(call.steps, kQueries));
  launch({grid, kThreads, stream, bytes, overlap}, sm90_forward_kernel,
         tile_map(call.q, int64_t{call.heads} * kDim, call.steps, call.batch, kQueries),
         tile_map(call.k, int64_t{call.kv_heads} * kDim, call.keys, call.batch, kKeys),
         tile_map(call.v, int64_t{call.kv_heads} * kDim, call.keys, call.batch, kKeys), call);
  return true;
}

}  // namespace q4::gpu
