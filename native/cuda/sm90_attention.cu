// Flash attention forward on Hopper, D = 128. One warp hands out tiles of 128 queries and copies, two warpgroups of 64
// queries each multiply and keep the running softmax: the scores of the next keys are multiplied while this step's are
// exponentiated, and the warpgroups take turns, so that one multiplies while the other exponentiates.
// Source: Shah et al., "FlashAttention-3" (2024), algorithms 1 and 2.
#include "cuda/sm90_attention_tiles.cuh"

namespace q4::gpu {
namespace {

constexpr int kDim = sm90::kHeadDim, kQueries = sm90::kTileQueries, kKeys = 128, kStages = 2, kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * 128, kHalf = sm90::kTileHalf;

struct Shared {
  uint8_t q[2 * kHalf], out[2 * kHalf], k[kStages][2 * kHalf], v[kStages][2 * kHalf];
  uint64_t q_full, q_empty, k_full[kStages], v_full[kStages], k_empty[kStages], v_empty[kStages];
  sm90::TileItem item;
};

#if defined(Q4_SM90)
using namespace sm90;

// The copying warp.
__device__ inline void produce(Shared& shared, const CUtensorMap& q_map, const CUtensorMap& k_map,
                               const CUtensorMap& v_map, const AttentionCall& call, const TileOrder& order) {
  int turn = 0, count = 0;
  for_each_tile<kKeys>(call, order, [&](const TileItem& item) {
    barrier_wait(&shared.q_empty, (turn++ & 1) ^ 1);
    if (threadIdx.x != 0) return;
    hand_out(shared.item, item);
    if (item.steps <= 0) return barrier_arrive(&shared.q_full);
    const int kv_head = item.head / (call.heads / call.kv_heads);
    barrier_expect(&shared.q_full, 2 * kHalf);
    for (int half = 0; half < 2; ++half)
      copy_box(shared.q + half * kHalf, &q_map, item.head * kDim + half * 64, item.first_query, item.b, &shared.q_full);
    // From the diagonal down: the masked keys first.
    for (int i = item.steps - 1; i >= 0; --i, ++count) {
      const int stage = count % kStages, parity = (count / kStages & 1) ^ 1, row = (item.first_step + i) * kKeys;
      const auto copy = [&](uint8_t* to, const CUtensorMap* map, uint64_t* empty, uint64_t* full) {
        barrier_wait(empty, parity);
        barrier_expect(full, 2 * kHalf);
        for (int half = 0; half < 2; ++half)
          copy_box(to + half * kHalf, map, kv_head * kDim + half * 64, row, item.b, full);
      };
      copy(shared.k[stage], &k_map, &shared.k_empty[stage], &shared.k_full[stage]);
      copy(shared.v[stage], &v_map, &shared.v_empty[stage], &shared.v_full[stage]);
    }
  });
}
#endif

__global__ void __launch_bounds__(kThreads, 1)
    sm90_forward_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                        const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap out_map,
                        const AttentionCall call, const sm90::TileOrder order) {
#if defined(Q4_SM90)
  Shared& shared = shared_memory<Shared>();
  const int group = begin_groups([&] {
    barrier_init(&shared.q_full, 1), barrier_init(&shared.q_empty, kConsumers * 4);
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&shared.k_full[s], 1), barrier_init(&shared.v_full[s], 1);
      barrier_init(&shared.k_empty[s], kConsumers * 4), barrier_init(&shared.v_empty[s], kConsumers * 4);
    }
  });
  if (group == 0) {
    give_registers<32>();
    if (threadIdx.x < 32) produce(shared, q_map, k_map, v_map, call, order);
    return;
  }

  take_registers<232>();
  const int consumer = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, g = lane / 4, c = lane % 4;
  const float scale = call.scale * kLog2e;
  float out[64], score[64], largest[2], total[2], shrink[2];
  uint32_t q[8][4], weights[8][4];
  const int my_turn = 1 + consumer, other_turn = 2 - consumer;  // barriers: who multiplies next
  if (consumer == 1) warps_arrive(other_turn, kConsumers * 128);
  int count = 0;
  for (int turn = 0;; ++turn) {
    barrier_wait(&shared.q_full, turn & 1);
    const TileItem item = read_tile(shared.item);
    if (item.steps < 0) break;
    const int first_query = item.first_query, past = item.past;
    const int query = first_query + consumer * 64 + warp * 16 + g;  // and query + 8
    const int key_end = min(call.keys, past + min(call.steps, first_query + kQueries));
    int from[2] = {0, 0};
    if (item.highest > 0)
      for (int half = 0; half < 2; ++half)
        if (query + half * 8 < call.steps)
          from[half] = max(0, call.attend_from[int64_t{item.b} * call.steps + query + half * 8]);
#pragma unroll
    for (int half = 0; half < 2; ++half) largest[half] = -INFINITY, total[half] = 0;
#pragma unroll
    for (int e = 0; e < 64; ++e) out[e] = 0;
    settle(out);  // not between products

    const auto multiply_keys = [&](int stage) {
      const uint32_t base = shared_address(shared.k[stage]);
      products_begin();
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const uint32_t at = k / 4 * kHalf + k % 4 * 32;
        if (k == 0)
          product_held_new(score, q[k], rows_operand(base, at));
        else
          product_held(score, q[k], rows_operand(base, at));
      }
      products_commit();
    };
    const auto multiply_values = [&](int stage) {
      const uint32_t base = shared_address(shared.v[stage]);
      products_begin();
#pragma unroll
      for (int k = 0; k < 8; ++k) product_columns(out, weights[k], columns_operand(base, k * 2048, kHalf));
      products_commit();
    };
    // Scores of step i → weights before normalisation, the new maximum and what earlier sums shrink by.
    const auto exponentiate = [&](int i) {
      const int key = (item.first_step + item.steps - 1 - i) * kKeys;
      if (key + kKeys > min(key_end, past + first_query + consumer * 64 + 1) || key < item.highest) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int last = min(key_end - 1, past + query + half * 8) - key - 2 * c, first = from[half] - key - 2 * c;
#pragma unroll
          for (int n = 0; n < 16; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (n * 8 + e > last || n * 8 + e < first) score[n * 4 + half * 2 + e] = -INFINITY;
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
        shrink[half] = exp2_fast(largest[half] * scale - origin);
        largest[half] = top;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 16; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[n * 4 + half * 2 + e];
            s = exp2_fast(s * scale - origin);
            sum += s;
          }
        total[half] = total[half] * shrink[half] + sum;
      }
      finish_before(total[0] + total[1]);  // the values are still being multiplied
    };
    const auto pack = [&] {
#pragma unroll
      for (int k = 0; k < 8; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e) weights[k][e] = pack_bf16(score[k * 8 + e * 2], score[k * 8 + e * 2 + 1]);
    };

    if (item.steps > 0) {
      hold_rows(q, shared.q, consumer * 64 + warp * 16);
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.q_empty);
      barrier_wait(&shared.k_full[count % kStages], count / kStages & 1);
      multiply_keys(count % kStages);
      products_wait<0>();
      settle(score);
      if (lane == 0) barrier_arrive(&shared.k_empty[count % kStages]);
      exponentiate(0);
      pack();
      for (int i = 1; i < item.steps; ++i, ++count) {
        const int stage = count % kStages, next = (count + 1) % kStages;
        barrier_wait(&shared.k_full[next], (count + 1) / kStages & 1);
        warps_sync(my_turn, kConsumers * 128);
        multiply_keys(next);
        barrier_wait(&shared.v_full[stage], count / kStages & 1);
        multiply_values(stage);
        warps_arrive(other_turn, kConsumers * 128);
        products_wait<1>();
        settle(score);
        if (lane == 0) barrier_arrive(&shared.k_empty[next]);
        exponentiate(i);
        products_wait<0>();
        settle(out);
        if (lane == 0) barrier_arrive(&shared.v_empty[stage]);
        pack();
#pragma unroll
        for (int e = 0; e < 64; ++e) out[e] *= shrink[e >> 1 & 1];
      }
      const int stage = count % kStages;
      barrier_wait(&shared.v_full[stage], count / kStages & 1);
      multiply_values(stage);
      ++count;
    } else {
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.q_empty);
    }

    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      inverse[half] = sum > 0 ? 1.0f / sum : 0.0f;
      if (c == 0 && query + half * 8 < call.steps)
        call.lse[(int64_t{item.b} * call.steps + query + half * 8) * call.heads + item.head] =
            largest[half] * call.scale + logf(sum);
    }
    products_wait<0>();
    settle(out);
    if (item.steps > 0 && lane == 0) barrier_arrive(&shared.v_empty[(count - 1) % kStages]);
    store_rows(out, inverse, shared.out + (consumer * 64 + warp * 16) * 128, &out_map, item.head * kDim,
               first_query + consumer * 64 + warp * 16, item.b);
  }
  if (lane == 0) stores_wait();
#endif
}

}  // namespace

bool sm90_flash_attention(const AttentionCall& call, int capability, int processors, uint32_t* ticket,
                          cudaStream_t stream, bool overlap) {
  if (capability != 90 || call.dim != kDim) return false;
  using sm90::tile_map;
  const size_t bytes = sizeof(Shared) + 1024;
  allow_shared(sm90_forward_kernel, bytes);
  const sm90::TileOrder order = sm90::tile_order(call, ticket);
  launch({static_cast<unsigned>(std::min(order.items, processors)), kThreads, stream, bytes, overlap},
         sm90_forward_kernel, tile_map(call.q, int64_t{call.heads} * kDim, call.steps, call.batch, kQueries),
         tile_map(call.k, int64_t{call.kv_heads} * kDim, call.keys, call.batch, kKeys),
         tile_map(call.v, int64_t{call.kv_heads} * kDim, call.keys, call.batch, kKeys),
         tile_map(call.out, int64_t{call.heads} * kDim, call.steps, call.batch, 16), call, order);
  return true;
}

}  // namespace q4::gpu
