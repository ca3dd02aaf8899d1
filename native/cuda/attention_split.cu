// Attention of a few queries over a cache: the keys of a sequence are split between blocks, and the block of a head that
// ends last joins the parts in order ("flash decoding").
#include <algorithm>

#include "core/error.h"
#include "cuda/attention.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kTile = 32, kKeysPerWarp = kTile / kWarps;

struct SplitCall {
  AttentionCall call;
  float* parts;       // per (batch, kv_head, split, query): maximum, sum, D values
  uint32_t* tickets;  // one per (batch, kv_head), zero between kernels
  int splits, queries;
};

// kQueries ≥ queries = steps · group; a lane holds kElements of D. Two blocks a multiprocessor leave a wide head's keys,
// values and sums the registers that they need.
template <int kQueries, int kElements>
__global__ void __launch_bounds__(kThreads, kElements > 4 ? 2 : 4) split_kernel(const SplitCall s) {
  constexpr int kMaxDim = 32 * kElements;
  __shared__ float q[kQueries][kMaxDim], score[kQueries][kTile], joined[kWarps][kMaxDim];
  __shared__ float top[kQueries], sum[kQueries], shrink[kQueries];
  __shared__ bool last;
  begin();
  const AttentionCall& call = s.call;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = call.dim, group = call.heads / call.kv_heads;
  const int split = blockIdx.x, kv_head = blockIdx.y, b = blockIdx.z;
  const int past = call.past ? call.past[b] : 0, end = min(call.keys, past + call.steps);
  // Whole tiles to each split.
  const int tiles = (end + kTile - 1) / kTile, per_split = (tiles + s.splits - 1) / s.splits;
  const int first_key = split * per_split * kTile, last_key = min(end, (split + 1) * per_split * kTile);
  const int64_t stride = int64_t{call.kv_heads} * dim, base = int64_t{b} * call.keys * stride + kv_head * dim;
  const bf16 *k = static_cast<const bf16*>(call.k) + base, *v = static_cast<const bf16*>(call.v) + base;
  // Query i of the group's: step i / group, head i % group.
  const auto row = [&](int i) {
    return (int64_t{b} * call.steps + i / group) * call.heads + kv_head * group + i % group;
  };

  for (int i = 0; i < s.queries; ++i)
    for (int d = threadIdx.x; d < dim; d += kThreads)
      q[i][d] = to_f32(static_cast<const bf16*>(call.q)[row(i) * dim + d]) * call.scale;
  for (int i = threadIdx.x; i < kQueries; i += kThreads) top[i] = -INFINITY, sum[i] = 0;
  float out[kQueries][kElements] = {};
  int lanes = 1;  // a power of two of lanes shares a key, eight elements each
  while (lanes * 8 < dim) lanes *= 2;
  __syncthreads();

  const int d = lane * kElements;
  for (int first = first_key; first < last_key; first += kTile) {
    // All of this warp's keys and values at once: one wait for memory, not one a key. Lane groups take keys in turn.
    const int at = lane % lanes * 8, turns = kKeysPerWarp * lanes / 32;
    uint4 keys[kKeysPerWarp];
    uint2 values[kKeysPerWarp][kElements / 4];
#pragma unroll
    for (int r = 0; r < kKeysPerWarp; ++r) {
      const int j = warp * kKeysPerWarp + r * (32 / lanes) + lane / lanes;
      keys[r] = make_uint4(0, 0, 0, 0);
      if (r < turns && at < dim && first + j < last_key)
        keys[r] = *reinterpret_cast<const uint4*>(k + (first + j) * stride + at);
    }
#pragma unroll
    for (int r = 0; r < kKeysPerWarp; ++r) {
      const int j = warp * kKeysPerWarp + r;
#pragma unroll
      for (int e = 0; e < kElements / 4; ++e) {
        values[r][e] = make_uint2(0, 0);
        if (d < dim && first + j < last_key)
          values[r][e] = *reinterpret_cast<const uint2*>(v + (first + j) * stride + d + e * 4);
      }
    }
#pragma unroll
    for (int r = 0; r < kKeysPerWarp; ++r) {
      if (r >= turns) break;
      const int j = warp * kKeysPerWarp + r * (32 / lanes) + lane / lanes, key = first + j;
      const float x[8] = {low_bf16(keys[r].x), high_bf16(keys[r].x), low_bf16(keys[r].y), high_bf16(keys[r].y),
                          low_bf16(keys[r].z), high_bf16(keys[r].z), low_bf16(keys[r].w), high_bf16(keys[r].w)};
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= s.queries) break;
        float partial = 0;
        if (at < dim)
#pragma unroll
          for (int e = 0; e < 8; ++e) partial += x[e] * q[i][at + e];
        for (int offset = lanes / 2; offset; offset /= 2) partial += __shfl_xor_sync(0xffffffffu, partial, offset);
        if (lane % lanes == 0) {
          const int step = i / group, from = call.attend_from ? call.attend_from[b * call.steps + step] : 0;
          score[i][j] = key < last_key && key >= from && key <= past + step ? partial : -INFINITY;
        }
      }
    }
    __syncthreads();
    for (int i = warp; i < s.queries; i += kWarps) {
      const float a = score[i][lane], before = top[i];
      const float now = fmaxf(before, warp_max(a)), origin = now == -INFINITY ? 0.0f : now;
      const float p = expf(a - origin), added = warp_sum(p);
      score[i][lane] = p;
      __syncwarp();
      if (lane == 0) {
        shrink[i] = expf(before - origin);
        sum[i] = sum[i] * shrink[i] + added;
        top[i] = now;
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i >= s.queries) break;
#pragma unroll
      for (int e = 0; e < kElements; ++e) out[i][e] *= shrink[i];
#pragma unroll
      for (int r = 0; r < kKeysPerWarp; ++r) {
        const float weight = score[i][warp * kKeysPerWarp + r];
#pragma unroll
        for (int e = 0; e < kElements; e += 4) {
          out[i][e] += weight * low_bf16(values[r][e / 4].x), out[i][e + 1] += weight * high_bf16(values[r][e / 4].x);
          out[i][e + 2] += weight * low_bf16(values[r][e / 4].y),
              out[i][e + 3] += weight * high_bf16(values[r][e / 4].y);
        }
      }
    }
    __syncthreads();
  }

  // The warps' sums of each query, in order, to this split's part.
  const int64_t head_item = int64_t{b} * call.kv_heads + kv_head;
  const auto part = [&](int which, int i) {
    return s.parts + ((head_item * s.splits + which) * s.queries + i) * (dim + 2);
  };
  for (int i = 0; i < s.queries; ++i) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      float value = 0;
#pragma unroll
      for (int at = 0; at < kQueries; ++at)
        if (at == i) value = out[at][e];
      joined[warp][lane * kElements + e] = value;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += kThreads)
      part(split, i)[2 + d] = ((joined[0][d] + joined[1][d]) + joined[2][d]) + joined[3][d];
    if (threadIdx.x == 0) part(split, i)[0] = top[i], part(split, i)[1] = sum[i];
    __syncthreads();
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(s.tickets + head_item, 1u) == static_cast<uint32_t>(s.splits) - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int used = min(s.splits, per_split ? (tiles + per_split - 1) / per_split : 0);
  for (int i = warp; i < s.queries; i += kWarps) {
    // Lane w of a round holds part w's statistics; values are read with all loads of a round in flight.
    float largest = -INFINITY;
    for (int w = lane; w < used; w += 32) largest = fmaxf(largest, __ldcg(part(w, i)));
    largest = warp_max(largest);
    const float origin = largest == -INFINITY ? 0.0f : largest;
    float total = 0, value[kElements] = {};
    for (int first = 0; first < used; first += 32) {
      const float factor = first + lane < used ? expf(__ldcg(part(first + lane, i)) - origin) : 0.0f;
      total += first + lane < used ? factor * __ldcg(part(first + lane, i) + 1) : 0.0f;
#pragma unroll 8
      for (int w = 0; w < min(32, used - first); ++w) {
        const float weight = __shfl_sync(0xffffffffu, factor, w);
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          if (lane + 32 * e < dim) value[e] += weight * __ldcg(part(first + w, i) + 2 + lane + 32 * e);
      }
    }
    total = warp_sum(total);
    if (lane == 0) call.lse[row(i)] = largest + logf(total);
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (lane + 32 * e < dim)
        static_cast<bf16*>(call.out)[row(i) * dim + lane + 32 * e] =
            from_f32<bf16>(total > 0 ? value[e] / total : 0.0f);
  }
  if (threadIdx.x == 0) s.tickets[head_item] = 0;
}

}  // namespace

void split_attention(const AttentionCall& call, float* partials, int64_t partial_floats, uint32_t* tickets,
                     int processors, cudaStream_t stream, bool overlap) {
  const int heads = call.batch * call.kv_heads, queries = call.steps * call.heads / call.kv_heads;
  const int64_t room = partial_floats / (int64_t{heads} * queries * (call.dim + 2));
  const int tiles = (call.keys + kTile - 1) / kTile;
  const int splits =
      static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({room, tiles, (2 * processors + heads - 1) / heads})));
  const SplitCall s{call, partials, tickets, splits, queries};
  const Launch how{
      {static_cast<unsigned>(splits), static_cast<unsigned>(call.kv_heads), static_cast<unsigned>(call.batch)},
      kThreads,
      stream,
      0,
      overlap};
  if (call.dim > 128)
    launch(how, split_kernel<8, 8>, s);
  else if (queries <= 4)
    launch(how, split_kernel<4, 4>, s);
  else
    launch(how, split_kernel<8, 4>, s);
}

}  // namespace q4::gpu
