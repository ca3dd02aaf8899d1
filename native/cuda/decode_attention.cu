// One decoded token a sequence, from raw projections to the attention's output: q and k are normalised and rotated, k and v
// appended to the cache, and the cache is attended to. A cluster of blocks shares the keys of a sequence and a key head;
// every warp keeps a softmax of its own over its keys, and the warps' and blocks' parts are joined in order through
// (distributed) shared memory. Needs 9.0.
#include "cuda/decode_attention.h"

#include <algorithm>

#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kCluster = 8, kKeys = 8;  // keys a warp takes at a time
constexpr int kStride = kCluster * kWarps * kKeys;                          // keys the cluster takes at a time

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define Q4_CLUSTERS 1
#endif

// One head, normalised and rotated by a warp, to shared memory; what the separate op would leave, where asked.
template <int D>
__device__ void rotate_head(const bf16* x, const float* weight, const Frequencies& f, int position, float eps,
                            float* to, bf16* rotated, bf16* raw, float* rstd) {
  constexpr int kHalf = D / 2, kPairs = (kHalf + 31) / 32;
  const int lane = threadIdx.x % 32;
  float low[kPairs], high[kPairs], low_weight[kPairs], high_weight[kPairs], squares = 0;
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int i = lane + 32 * p;
    low[p] = to_f32(x[i]), high[p] = to_f32(x[i + kHalf]);
    low_weight[p] = weight[i], high_weight[p] = weight[i + kHalf];
    squares += low[p] * low[p] + high[p] * high[p];
  }
  const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(D) + eps);
  if (rstd && lane == 0) *rstd = scale;
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int i = lane + 32 * p;
    float sine, cosine;
    sincosf(static_cast<float>(position) * f.value[i], &sine, &cosine);
    const float a = rounded<bf16>(low[p] * scale) * low_weight[p], b = rounded<bf16>(high[p] * scale) * high_weight[p];
    const bf16 first = from_f32<bf16>(a * cosine - b * sine), second = from_f32<bf16>(b * cosine + a * sine);
    to[i] = to_f32(first), to[i + kHalf] = to_f32(second);
    if (rotated) rotated[i] = first, rotated[i + kHalf] = second;
    if (raw) raw[i] = x[i], raw[i + kHalf] = x[i + kHalf];
  }
}

// A part of the softmax: its maximum, sum and weighted values.
template <int kQueries, int D>
struct Part {
  float top[kQueries], sum[kQueries], out[kQueries][D];
};

// Grid: cluster × kv heads × batch. kQueries ≥ the heads of a group; D is 64 or 128.
template <int kQueries, int D>
__global__ void __launch_bounds__(kThreads)
    decode_attention_kernel(const __grid_constant__ DecodeAttention call, const __grid_constant__ Frequencies f) {
#if defined(Q4_CLUSTERS)
  constexpr int kLanes = D / 8, kAtOnce = 32 / kLanes, kRounds = kKeys / kAtOnce,
                kOut = D / 32;  // lanes a key, keys at once
  __shared__ float q[kQueries][D], new_k[D];
  __shared__ Part<kQueries, D> parts[kWarps], joined;
  __shared__ __align__(16) bf16 new_row[2][D];  // this step's key and value
  begin();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = call.heads / call.kv_heads;
  const int rank = blockIdx.x, kv_head = blockIdx.y, b = blockIdx.z;
  const int64_t stride = int64_t{call.kv_heads} * D, base = int64_t{b} * call.keys * stride + kv_head * D;
  bf16 *const k = call.k_cache + base, *const v = call.v_cache + base;
  const int64_t q_row = int64_t{b} * call.heads + kv_head * group, kv_row = int64_t{b} * call.kv_heads + kv_head;

  // The first keys and values, before it is known how many count.
  const int part_lane = lane % kLanes, which = lane / kLanes;
  uint4 keys[kRounds];
  uint2 values[kKeys];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int j = first + r * kAtOnce + which;
      keys[r] =
          j < call.keys ? *reinterpret_cast<const uint4*>(k + j * stride + part_lane * 8) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int r = 0; r < kKeys; ++r) {
      const bf16* from = v + (first + r) * stride + lane * kOut;
      values[r] = make_uint2(0, 0);
      if (first + r >= call.keys) continue;
      if constexpr (kOut == 4)
        values[r] = *reinterpret_cast<const uint2*>(from);
      else
        values[r].x = *reinterpret_cast<const uint32_t*>(from);
    }
  };
  int first = (rank * kWarps + warp) * kKeys;
  fetch(first);
  const int past = call.past[b], position = call.positions[b], end = min(call.keys, past + 1);
  const int from = call.attend_from ? call.attend_from[b] : 0;

  const bool leader = rank == 0, owner = past < call.keys && past / (kWarps * kKeys) % kCluster == rank;
  for (int i = warp; i < group; i += kWarps)
    rotate_head<D>(call.q + (q_row + i) * D, call.q_weight, f, position, call.q_eps, q[i],
                   leader && call.q_rotated ? call.q_rotated + (q_row + i) * D : nullptr,
                   leader && call.q_out ? call.q_out + (q_row + i) * D : nullptr,
                   leader && call.q_rstd ? call.q_rstd + q_row + i : nullptr);
  // A key that does not fit is dropped, but its projections are results like any other.
  if (warp == kWarps - 1 && (owner || (past >= call.keys && leader))) {
    rotate_head<D>(call.k + kv_row * D, call.k_weight, f, position, call.k_eps, new_k,
                   call.k_rotated ? call.k_rotated + kv_row * D : nullptr,
                   call.k_out ? call.k_out + kv_row * D : nullptr, call.k_rstd ? call.k_rstd + kv_row : nullptr);
    __syncwarp();
    for (int d = lane; d < D; d += 32) {
      const bf16 value = call.v[kv_row * D + d];
      new_row[0][d] = from_f32<bf16>(new_k[d]), new_row[1][d] = value;
      if (owner) k[past * stride + d] = new_row[0][d], v[past * stride + d] = value;
      if (call.v_out) call.v_out[kv_row * D + d] = value;
    }
  }
  __syncthreads();

  float top[kQueries], sum[kQueries], out[kQueries][kOut] = {};
#pragma unroll
  for (int i = 0; i < kQueries; ++i) top[i] = -INFINITY, sum[i] = 0;
  for (; first < end; first += kStride) {
    // The key and value of this step are not in the cache that was read.
    if (owner && past >= first && past < first + kKeys) {
#pragma unroll
      for (int r = 0; r < kRounds; ++r)
        if (first + r * kAtOnce + which == past) keys[r] = *reinterpret_cast<const uint4*>(&new_row[0][part_lane * 8]);
#pragma unroll
      for (int r = 0; r < kKeys; ++r)
        if (first + r == past) {
          if constexpr (kOut == 4)
            values[r] = *reinterpret_cast<const uint2*>(&new_row[1][lane * kOut]);
          else
            values[r].x = *reinterpret_cast<const uint32_t*>(&new_row[1][lane * kOut]);
        }
    }
    float score[kRounds][kQueries];  // after the sum over lanes: of key r · kAtOnce + which, in every lane of the key
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const float x[8] = {low_bf16(keys[r].x), high_bf16(keys[r].x), low_bf16(keys[r].y), high_bf16(keys[r].y),
                          low_bf16(keys[r].z), high_bf16(keys[r].z), low_bf16(keys[r].w), high_bf16(keys[r].w)};
      const int j = first + r * kAtOnce + which;
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= group) break;
        const float4 a = *reinterpret_cast<const float4*>(&q[i][part_lane * 8]),
                     c = *reinterpret_cast<const float4*>(&q[i][part_lane * 8 + 4]);
        float partial = (x[0] * a.x + x[1] * a.y) + (x[2] * a.z + x[3] * a.w) + (x[4] * c.x + x[5] * c.y) +
                        (x[6] * c.z + x[7] * c.w);
#pragma unroll
        for (int offset = kLanes / 2; offset; offset /= 2) partial += __shfl_xor_sync(0xffffffffu, partial, offset);
        score[r][i] = j < end && j >= from ? partial * call.scale : -INFINITY;
      }
    }
    uint2 held[kKeys];
#pragma unroll
    for (int r = 0; r < kKeys; ++r) held[r] = values[r];
    if (first + kStride < end) fetch(first + kStride);
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i >= group) break;
      float now = top[i];
#pragma unroll
      for (int r = 0; r < kRounds; ++r) now = fmaxf(now, score[r][i]);
#pragma unroll
      for (int offset = kLanes; offset < 32; offset *= 2) now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, offset));
      const float origin = now == -INFINITY ? 0.0f : now, shrink = expf(top[i] - origin);
      top[i] = now;
      float added = 0;
#pragma unroll
      for (int r = 0; r < kRounds; ++r) score[r][i] = expf(score[r][i] - origin), added += score[r][i];
#pragma unroll
      for (int offset = kLanes; offset < 32; offset *= 2) added += __shfl_xor_sync(0xffffffffu, added, offset);
      sum[i] = sum[i] * shrink + added;
#pragma unroll
      for (int e = 0; e < kOut; ++e) out[i][e] *= shrink;
#pragma unroll
      for (int r = 0; r < kKeys; ++r) {
        const float weight = __shfl_sync(0xffffffffu, score[r / kAtOnce][i], r % kAtOnce * kLanes);
        out[i][0] += weight * low_bf16(held[r].x), out[i][1] += weight * high_bf16(held[r].x);
        if constexpr (kOut == 4) out[i][2] += weight * low_bf16(held[r].y), out[i][3] += weight * high_bf16(held[r].y);
      }
    }
  }

  // The warps' parts, then the blocks'.
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    if (i >= group) break;
    if (lane == 0) parts[warp].top[i] = top[i], parts[warp].sum[i] = sum[i];
#pragma unroll
    for (int e = 0; e < kOut; ++e) parts[warp].out[i][lane * kOut + e] = out[i][e];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * D; i += kThreads) {
    const int query = i / D, d = i % D;
    float largest = -INFINITY, total = 0, value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, parts[w].top[query]);
    const float origin = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = expf(parts[w].top[query] - origin);
      total += factor * parts[w].sum[query], value += factor * parts[w].out[query][d];
    }
    joined.out[query][d] = value;
    if (d == 0) joined.top[query] = largest, joined.sum[query] = total;
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(&joined));
  const auto of_block = [&](int block, const float& place) {
    const uint32_t offset =
        static_cast<uint32_t>(reinterpret_cast<const char*>(&place) - reinterpret_cast<const char*>(&joined));
    uint32_t address;
    float x;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(here + offset), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(address));
    return x;
  };
  const int each = (group * D + kCluster - 1) / kCluster;  // elements that this block writes
  for (int i = rank * each + static_cast<int>(threadIdx.x); i < min(group * D, (rank + 1) * each); i += kThreads) {
    const int query = i / D, d = i % D;
    float tops[kCluster], largest = -INFINITY, total = 0, value = 0;
#pragma unroll
    for (int block = 0; block < kCluster; ++block)
      tops[block] = of_block(block, joined.top[query]), largest = fmaxf(largest, tops[block]);
    const float origin = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
    for (int block = 0; block < kCluster; ++block) {
      const float factor = expf(tops[block] - origin);
      total += factor * of_block(block, joined.sum[query]), value += factor * of_block(block, joined.out[query][d]);
    }
    if (d == 0) call.lse[q_row + query] = largest + logf(total);
    call.out[(q_row + query) * D + d] = from_f32<bf16>(total > 0 ? value / total : 0.0f);
  }
  // No block leaves while others read its part.
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

}  // namespace

void decode_attention(const DecodeAttention& call, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kCluster, static_cast<unsigned>(call.kv_heads), static_cast<unsigned>(call.batch));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kCluster, attributes[0].val.clusterDim.y = 1, attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  const Frequencies f = frequencies(call.dim, call.theta);
  const auto run = [&](auto* kernel) { Q4_CHECK(cudaLaunchKernelEx(&config, kernel, call, f)); };
  const bool many = call.heads / call.kv_heads > 4;
  if (call.dim == 128)
    many ? run(decode_attention_kernel<8, 128>) : run(decode_attention_kernel<4, 128>);
  else
    many ? run(decode_attention_kernel<8, 64>) : run(decode_attention_kernel<4, 64>);
}

}  // namespace q4::gpu
