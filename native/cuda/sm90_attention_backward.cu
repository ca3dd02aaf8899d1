// Flash attention backward on Hopper, D = 128. As attention_flash_backward.cu: one kernel sums dk and dv of 128 keys over
// all queries and heads of the group, one sums dq of 128 queries over all keys, each in one block and in one order. This
// file has what runs before them.
#include <climits>

#include "cuda/sm90_attention_backward.cuh"

namespace q4::gpu {
namespace {

// Each warp takes four rows and heads, 16 lanes a row.
__global__ void statistics_kernel(const AttentionBackwardCall call, const sm90::Statistics to) {
  begin();
  const AttentionCall& f = call.forward;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const int items = f.batch * to.padded * f.heads, first = warp * 4 + lane / 16;
  float sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int item = first + i * 2, head = item % f.heads, t = item / f.heads % to.padded,
              b = item / f.heads / to.padded;
    if (item >= items || t >= f.steps) continue;
    const int64_t at = ((int64_t{b} * f.steps + t) * f.heads + head) * sm90::kHeadDim + lane % 16 * 8;
    const Pack<8> x = load<8>(static_cast<const bf16*>(call.dout) + at),
                  y = load<8>(static_cast<const bf16*>(f.out) + at);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[i] += x.v[e] * y.v[e];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int offset = 8; offset; offset /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
  if (lane % 16 < 2) {
    const int i = lane % 16, item = first + i * 2, head = item % f.heads, t = item / f.heads % to.padded,
              b = item / f.heads / to.padded;
    if (item < items) {
      const float lse = t < f.steps ? f.lse[(int64_t{b} * f.steps + t) * f.heads + head] : -INFINITY;
      const int64_t at = (int64_t{b} * f.heads + head) * to.padded + t;
      to.lse[at] = lse == -INFINITY ? INFINITY : lse * kLog2e;  // a row that sees nothing weighs nothing
      to.delta[at] = i ? sum[1] : sum[0];
    }
  }
  // One warp a step of one sequence.
  const int steps = to.padded / sm90::kStep;
  if (warp >= f.batch * steps) return;
  const int b = warp / steps, first_query = warp % steps * sm90::kStep;
  sm90::Starts& starts = to.starts[warp];
  int lowest = INT_MAX, highest = 0;
  for (int i = lane; i < sm90::kStep; i += 32) {
    const int query = first_query + i;
    const bool inside = query < f.steps;
    const int from = inside && f.attend_from ? max(0, f.attend_from[int64_t{b} * f.steps + query]) : 0;
    starts.from[i] = from;
    if (inside) lowest = min(lowest, from), highest = max(highest, from);
  }
  lowest = __reduce_min_sync(0xffffffffu, lowest), highest = __reduce_max_sync(0xffffffffu, highest);
  if (lane == 0) starts.lowest = lowest, starts.highest = highest;
}

}  // namespace

bool sm90_flash_attention_backward(const AttentionBackwardCall& call, int capability, int processors, uint32_t* ticket,
                                   float* workspace, int64_t workspace_floats, cudaStream_t stream, bool overlap) {
  const AttentionCall& f = call.forward;
  if (capability != 90 || f.dim != sm90::kHeadDim) return false;
  const int padded = (f.steps + sm90::kTileQueries - 1) / sm90::kTileQueries * sm90::kTileQueries;
  const int64_t rows = int64_t{f.batch} * f.heads * padded, steps = int64_t{f.batch} * (padded / sm90::kStep);
  if (2 * rows + steps * static_cast<int64_t>(sizeof(sm90::Starts) / 4) > workspace_floats) return false;
  const sm90::Statistics statistics{workspace, workspace + rows, reinterpret_cast<sm90::Starts*>(workspace + 2 * rows),
                                    padded};
  launch({blocks_for(rows, 32), 256, stream, 0, overlap}, statistics_kernel, call, statistics);
  sm90::key_gradients(call, statistics, stream, overlap);
  sm90::query_gradients(call, statistics, processors, ticket, stream, overlap);
  return true;
}

}  // namespace q4::gpu
