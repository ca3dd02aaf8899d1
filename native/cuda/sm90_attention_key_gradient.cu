// Gradients of keys and values on Hopper, D = 128: 128 keys a block, two warpgroups of 64 keys each multiply, one warp
// copies steps of 64 queries. Products are issued ahead of the arithmetic that does not need them: the weights of a step
// are exponentiated while dk of the step before and dP = dout·vᵀ are multiplied, their gradients while dv is.
#include <algorithm>

#include "cuda/sm90_attention_backward.cuh"

namespace q4::gpu {
namespace {

using sm90::kStep, sm90::kStepHalf;
constexpr int kDim = sm90::kHeadDim, kRows = 128, kStages = 4, kConsumers = 2, kThreads = (kConsumers + 1) * 128;
constexpr int kHalf = sm90::kTileHalf;
static_assert(kStages > 2, "a warpgroup holds the step before while it passes over one that does not concern it");

struct Shared {
  uint8_t k[2 * kHalf], v[2 * kHalf], q[kStages][2 * kStepHalf], dout[kStages][2 * kStepHalf];
  float lse[kStages][kStep], delta[kStages][kStep];
  sm90::Starts starts[kStages];
  int first_query[kStages];  // of the step; < 0: no more
  uint64_t keys_full, full[kStages], empty[kStages];
};

#if defined(Q4_SM90)
using namespace sm90;

// The copying warp: the steps of queries that see some of the keys, for one head after another.
__device__ inline void produce_queries(Shared& shared, const CUtensorMap& q_map, const CUtensorMap& dout_map,
                                       const AttentionCall& f, const Statistics& statistics, int kv_head, int b,
                                       int first_key) {
  const int lane = threadIdx.x % 32, group = f.heads / f.kv_heads, steps = statistics.padded / kStep;
  const Starts* starts = statistics.starts + int64_t{b} * steps;
  int stage = 0, parity = 1;
  const auto advance = [&] {
    if (++stage == kStages) stage = 0, parity ^= 1;
  };
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
    for (int base = first_key / kStep; base < steps; base += 32) {
      const bool needed = base + lane < steps && (!f.attend_from || starts[base + lane].lowest < first_key + kRows);
      for (uint32_t left = __ballot_sync(0xffffffffu, needed); left; left &= left - 1) {
        const int step = base + __ffs(static_cast<int>(left)) - 1, row = step * kStep;
        uint64_t* full = &shared.full[stage];
        barrier_wait(&shared.empty[stage], parity);
        if (lane == 0) {
          shared.first_query[stage] = row;
          barrier_expect(full, 4 * kStepHalf + 2 * kStep * 4 + static_cast<int>(sizeof(Starts)));
          for (int half = 0; half < 2; ++half)
            copy_box(shared.q[stage] + half * kStepHalf, &q_map, head * kDim + half * 64, row, b, full);
          const int64_t at = (int64_t{b} * f.heads + head) * statistics.padded + row;
          copy_bytes(shared.lse[stage], statistics.lse + at, kStep * 4, full);
          copy_bytes(&shared.starts[stage], starts + step, sizeof(Starts), full);
          for (int half = 0; half < 2; ++half)
            copy_box(shared.dout[stage] + half * kStepHalf, &dout_map, head * kDim + half * 64, row, b, full);
          copy_bytes(shared.delta[stage], statistics.delta + at, kStep * 4, full);
        }
        __syncwarp();
        advance();
      }
    }
  barrier_wait(&shared.empty[stage], parity);
  if (lane == 0) shared.first_query[stage] = -1, barrier_arrive(&shared.full[stage]);
}
#endif

// Grid: tiles of 128 keys, those of `section` sequences and key heads together, the longest first.
__global__ void __launch_bounds__(kThreads, 1)
    sm90_key_gradient_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap dout_map,
                             const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                             const AttentionBackwardCall call, const sm90::Statistics statistics, int section) {
#if defined(Q4_SM90)
  Shared& shared = shared_memory<Shared>();
  const AttentionCall& f = call.forward;
  const int per_section = section * (statistics.padded / kRows), at_section = blockIdx.x / per_section,
            rest = blockIdx.x % per_section, width = min(section, f.batch * f.kv_heads - at_section * section),
            pair = at_section * section + rest % width, kv_head = pair % f.kv_heads, b = pair / f.kv_heads,
            first_key = rest / width * kRows;
  const int group = begin_groups([&] {
    barrier_init(&shared.keys_full, 1);
    for (int s = 0; s < kStages; ++s) barrier_init(&shared.full[s], 1), barrier_init(&shared.empty[s], kConsumers * 4);
  });

  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x >= 32) return;
    if (threadIdx.x == 0) {
      barrier_expect(&shared.keys_full, 4 * kHalf);
      for (int half = 0; half < 2; ++half) {
        copy_box(shared.k + half * kHalf, &k_map, kv_head * kDim + half * 64, first_key, b, &shared.keys_full);
        copy_box(shared.v + half * kHalf, &v_map, kv_head * kDim + half * 64, first_key, b, &shared.keys_full);
      }
    }
    __syncwarp();
    produce_queries(shared, q_map, dout_map, f, statistics, kv_head, b, first_key);
    return;
  }

  take_registers<240>();
  const int consumer = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, g = lane / 4, c = lane % 4;
  const int first_row = first_key + consumer * 64, key = first_row + warp * 16 + g;  // and key + 8
  const float scale = f.scale * kLog2e;
  float dk[64] = {}, dv[64] = {}, p[32], ds[32];
  uint32_t weights[4][4], gradients[4][4] = {};
  settle(dk), settle(dv);  // not between products
  const uint32_t k_base = shared_address(shared.k) + consumer * 64 * 128,
                 v_base = shared_address(shared.v) + consumer * 64 * 128;
  // d = rows of the warpgroup · step, both in shared memory.
  const auto multiply = [&](float(&d)[32], uint32_t rows, uint32_t step) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint64_t a = rows_operand(rows, k / 4 * kHalf + k % 4 * 32),
                     b = rows_operand(step, k / 4 * kStepHalf + k % 4 * 32);
      if (k == 0)
        product_new(d, a, b);
      else
        product(d, a, b);
    }
  };
  const auto accumulate = [&](float(&d)[64], const uint32_t(&a)[4][4], uint32_t step) {
#pragma unroll
    for (int k = 0; k < 4; ++k) product_columns(d, a[k], columns_operand(step, k * 2048, kStepHalf));
  };
  int stage = 0, parity = 0, previous = 0, first_query;
  bool begun = false;  // there is a previous step, whose dk is still to be added
  const auto await_step = [&] {
    barrier_wait(&shared.full[stage], parity);
    first_query = shared.first_query[stage];
  };
  const auto advance = [&] {
    if (++stage == kStages) stage = 0, parity ^= 1;
  };
  barrier_wait(&shared.keys_full, 0);
  await_step();
  while (__any_sync(0xffffffffu, first_query >= 0)) {
    if (__any_sync(0xffffffffu, first_query < first_row)) {  // none sees these keys; never two such steps in a row
      if (lane == 0) barrier_arrive(&shared.empty[stage]);
      advance(), await_step();
      continue;
    }
    if (!begun) previous = stage;  // of which nothing is added
    products_begin();
    multiply(p, k_base, shared_address(shared.q[stage]));
    products_commit();
    accumulate(dk, gradients, shared_address(shared.q[previous]));
    products_commit();
    multiply(ds, v_base, shared_address(shared.dout[stage]));
    products_commit();
    products_wait<2>();
    settle(p);
    if (first_query < first_row + 63 || first_row < shared.starts[stage].highest) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int2 from = *reinterpret_cast<const int2*>(&shared.starts[stage].from[n * 8 + 2 * c]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int j = key + (e >> 1) * 8;
          if (j > first_query + n * 8 + 2 * c + (e & 1) || j < (e & 1 ? from.y : from.x)) p[n * 4 + e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 lse = *reinterpret_cast<const float2*>(&shared.lse[stage][n * 8 + 2 * c]);
#pragma unroll
      for (int e = 0; e < 4; ++e) p[n * 4 + e] = exp2_fast(p[n * 4 + e] * scale - (e & 1 ? lse.y : lse.x));
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) weights[k][e] = pack_bf16(p[k * 8 + e * 2], p[k * 8 + e * 2 + 1]);
    products_begin();
    accumulate(dv, weights, shared_address(shared.dout[stage]));
    products_commit();
    products_wait<1>();
    settle(ds);
    if (begun && lane == 0) barrier_arrive(&shared.empty[previous]);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(&shared.delta[stage][n * 8 + 2 * c]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t word = weights[n / 2][n % 2 * 2 + e / 2];  // rounded: p's registers are needed by now
        ds[n * 4 + e] = (e & 1 ? high_bf16(word) : low_bf16(word)) * (ds[n * 4 + e] - (e & 1 ? delta.y : delta.x));
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients[k][e] = pack_bf16(ds[k * 8 + e * 2], ds[k * 8 + e * 2 + 1]);
    previous = stage, begun = true;
    advance(), await_step();
    products_wait<0>();  // here, so that the arithmetic above is not moved behind it
  }
  if (__any_sync(0xffffffffu, begun)) {
    products_begin();
    accumulate(dk, gradients, shared_address(shared.q[previous]));
    products_commit();
  }
  products_wait<0>();
  settle(dv);
  settle(dk);
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

}  // namespace

namespace sm90 {

void key_gradients(const AttentionBackwardCall& call, const Statistics& statistics, cudaStream_t stream, bool overlap) {
  const AttentionCall& f = call.forward;
  const auto map = [&](const void* data, int heads, int box_rows) {
    return tile_map(data, int64_t{heads} * kDim, f.steps, f.batch, box_rows);
  };
  constexpr int64_t kSectionBytes = int64_t{64} << 20;  // of queries and gradients of outputs
  const int64_t pair_bytes = int64_t{f.steps} * kDim * 4 * (f.heads / f.kv_heads);
  const int pairs = f.batch * f.kv_heads,
            section = static_cast<int>(std::clamp<int64_t>(kSectionBytes / pair_bytes, 1, pairs));
  const unsigned blocks = static_cast<unsigned>(pairs * (statistics.padded / kRows));
  allow_shared(sm90_key_gradient_kernel, sizeof(Shared) + 1024);
  launch({blocks, kThreads, stream, sizeof(Shared) + 1024, overlap}, sm90_key_gradient_kernel, map(f.q, f.heads, kStep),
         map(call.dout, f.heads, kStep), map(f.k, f.kv_heads, kRows), map(f.v, f.kv_heads, kRows), call, statistics,
         section);
}

}  // namespace sm90
}  // namespace q4::gpu
