// Gradients of queries on Hopper, D = 128: one warp hands out tiles of 128 queries and copies steps of 64 keys, two
// warpgroups of 64 queries each multiply. The weights of a step are exponentiated while dq of the step before and
// dP = dout·vᵀ are multiplied.
#include "cuda/sm90_attention_backward.cuh"

namespace q4::gpu {
namespace {

using sm90::kStep, sm90::kStepHalf;
constexpr int kDim = sm90::kHeadDim, kRows = sm90::kTileQueries, kStages = 3, kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * 128, kHalf = sm90::kTileHalf;

struct Shared {
  uint8_t q[2 * kHalf], dout[2 * kHalf], dq[2 * kHalf], k[kStages][2 * kStepHalf], v[kStages][2 * kStepHalf];
  uint64_t queries_full, queries_empty, full[kStages], empty[kStages];
  sm90::TileItem item;
};

// One block a multiprocessor, which takes tiles of queries as long as there are any.
__global__ void __launch_bounds__(kThreads, 1)
    sm90_query_gradient_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap dout_map,
                               const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                               const __grid_constant__ CUtensorMap dq_map, const AttentionBackwardCall call,
                               const sm90::Statistics statistics, const sm90::TileOrder order) {
#if defined(Q4_SM90)
  using namespace sm90;
  Shared& shared = shared_memory<Shared>();
  const AttentionCall& f = call.forward;
  const int group = begin_groups([&] {
    barrier_init(&shared.queries_full, 1), barrier_init(&shared.queries_empty, kConsumers * 4);
    for (int s = 0; s < kStages; ++s) barrier_init(&shared.full[s], 1), barrier_init(&shared.empty[s], kConsumers * 4);
  });

  if (group == 0) {
    give_registers<32>();
    if (threadIdx.x >= 32) return;
    int turn = 0, stage = 0, parity = 1;
    for_each_tile<kStep>(f, order, [&](const TileItem& item) {
      barrier_wait(&shared.queries_empty, (turn++ & 1) ^ 1);
      if (threadIdx.x != 0) return;
      hand_out(shared.item, item);
      if (item.steps <= 0) return barrier_arrive(&shared.queries_full);
      const int kv_head = item.head / (f.heads / f.kv_heads);
      barrier_expect(&shared.queries_full, 4 * kHalf);
      for (int half = 0; half < 2; ++half) {
        const int column = item.head * kDim + half * 64;
        copy_box(shared.q + half * kHalf, &q_map, column, item.first_query, item.b, &shared.queries_full);
        copy_box(shared.dout + half * kHalf, &dout_map, column, item.first_query, item.b, &shared.queries_full);
      }
      for (int i = 0; i < item.steps; ++i) {
        const int row = (item.first_step + i) * kStep, column = kv_head * kDim;
        uint64_t* full = &shared.full[stage];
        barrier_wait(&shared.empty[stage], parity);
        barrier_expect(full, 4 * kStepHalf);
        for (int half = 0; half < 2; ++half)
          copy_box(shared.k[stage] + half * kStepHalf, &k_map, column + half * 64, row, item.b, full);
        for (int half = 0; half < 2; ++half)
          copy_box(shared.v[stage] + half * kStepHalf, &v_map, column + half * 64, row, item.b, full);
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    });
    return;
  }

  take_registers<232>();
  const int consumer = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, g = lane / 4, c = lane % 4;
  const float scale = f.scale * kLog2e;
  float dq[64], p[32], ds[32];
  uint32_t gradients[4][4], q[8][4];
  const uint32_t dout = shared_address(shared.dout) + consumer * 64 * 128;
  int stage = 0, parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) stage = 0, parity ^= 1;
  };
  const auto accumulate = [&](uint32_t step) {
#pragma unroll
    for (int k = 0; k < 4; ++k) product_columns(dq, gradients[k], columns_operand(step, k * 2048, kStepHalf));
    products_commit();
  };
  const auto multiply_keys = [&] {
    const uint32_t step = shared_address(shared.k[stage]);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t b = rows_operand(step, k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_held_new(p, q[k], b);
      else
        product_held(p, q[k], b);
    }
    products_commit();
  };
  const auto multiply_values = [&] {
    const uint32_t step = shared_address(shared.v[stage]);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t a = rows_operand(dout, k / 4 * kHalf + k % 4 * 32),
                     b = rows_operand(step, k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_new(ds, a, b);
      else
        product(ds, a, b);
    }
    products_commit();
  };
  for (int turn = 0;; ++turn) {
    barrier_wait(&shared.queries_full, turn & 1);
    const TileItem item = read_tile(shared.item);
    if (item.steps < 0) break;
    const int first_row = item.first_query + consumer * 64, query = first_row + warp * 16 + g;  // and query + 8
    float lse[2], delta[2];
    int from[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = query + half * 8;
      const int64_t at = (int64_t{item.b} * f.heads + item.head) * statistics.padded + t;
      lse[half] = statistics.lse[at], delta[half] = statistics.delta[at];
      if (item.highest > 0 && t < f.steps) from[half] = max(0, f.attend_from[int64_t{item.b} * f.steps + t]);
    }
#pragma unroll
    for (int e = 0; e < 64; ++e) dq[e] = 0;
    settle(dq);  // not between products
    // The warpgroup's rows may end before the tile's last step.
    const int steps = max(0, min(item.steps, first_row / kStep + 1 - item.first_step));
    if (steps == 0) {
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.queries_empty);
    } else {
      hold_rows(q, shared.q, consumer * 64 + warp * 16);
      barrier_wait(&shared.full[stage], parity);
      products_begin();
      multiply_keys(), multiply_values();
      products_wait<1>();
      for (int i = 0;; ++i) {
        settle(p);
        const int first_key = (item.first_step + i) * kStep;
        if (first_key + kStep > first_row + 1 || first_key < item.highest) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int last = query + half * 8 - first_key - 2 * c, first = from[half] - first_key - 2 * c;
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
              for (int e = 0; e < 2; ++e)
                if (n * 8 + e > last || n * 8 + e < first) p[n * 4 + half * 2 + e] = -INFINITY;
          }
        }
#pragma unroll
        for (int e = 0; e < 32; ++e) p[e] = exp2_fast(p[e] * scale - lse[e >> 1 & 1]);
        finish_before(p);  // dq and dP are still being multiplied
        products_wait<0>();
        settle(ds), settle(dq);
        if (i > 0 && lane == 0) barrier_arrive(&shared.empty[stage == 0 ? kStages - 1 : stage - 1]);
#pragma unroll
        for (int e = 0; e < 32; ++e) ds[e] = p[e] * (ds[e] - delta[e >> 1 & 1]);
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int e = 0; e < 4; ++e) gradients[k][e] = pack_bf16(ds[k * 8 + e * 2], ds[k * 8 + e * 2 + 1]);
        const uint32_t k_base = shared_address(shared.k[stage]);
        if (i + 1 == steps) {
          if (lane == 0) barrier_arrive(&shared.queries_empty);
          products_begin();
          accumulate(k_base);
          break;
        }
        advance();
        barrier_wait(&shared.full[stage], parity);
        products_begin();
        multiply_keys(), accumulate(k_base), multiply_values();
        products_wait<2>();
      }
      products_wait<0>();
      settle(dq);
      if (lane == 0) barrier_arrive(&shared.empty[stage]);
      advance();
    }
    for (int i = steps; i < item.steps; ++i) {
      barrier_wait(&shared.full[stage], parity);
      if (lane == 0) barrier_arrive(&shared.empty[stage]);
      advance();
    }
    const float times[2] = {f.scale, f.scale};
    store_rows(dq, times, shared.dq + (consumer * 64 + warp * 16) * 128, &dq_map, item.head * kDim,
               first_row + warp * 16, item.b);
  }
  if (lane == 0) stores_wait();
#endif
}

}  // namespace

namespace sm90 {

void query_gradients(const AttentionBackwardCall& call, const Statistics& statistics, int processors, uint32_t* ticket,
                     cudaStream_t stream, bool overlap) {
  const AttentionCall& f = call.forward;
  const auto map = [&](const void* data, int heads, int box_rows) {
    return tile_map(data, int64_t{heads} * kDim, f.steps, f.batch, box_rows);
  };
  const TileOrder order = tile_order(f, ticket);
  const unsigned blocks = static_cast<unsigned>(std::min(order.items, processors));
  allow_shared(sm90_query_gradient_kernel, sizeof(Shared) + 1024);
  launch({blocks, kThreads, stream, sizeof(Shared) + 1024, overlap}, sm90_query_gradient_kernel,
         map(f.q, f.heads, kRows), map(call.dout, f.heads, kRows), map(f.k, f.kv_heads, kStep),
         map(f.v, f.kv_heads, kStep), map(call.dq, f.heads, 16), call, statistics, order);
}

}  // namespace sm90
}  // namespace q4::gpu
