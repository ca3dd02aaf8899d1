// Attention in fp32 arithmetic, one warp a query (or a key): precision: fp32, and shapes the tensor-core kernels do not take.
#include "cuda/attention.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kMaxDim = 256, kHeld = kMaxDim / 32;

template <typename T>
__device__ float dot(const float* shared, const T* row, int dim) {
  float sum = 0;
  for (int d = 0; d < dim; ++d) sum += shared[d] * to_f32(row[d]);
  return sum;
}

// Keys [begin, end) that a query sees.
struct Visible {
  int begin, end;
};
__device__ Visible visible(const AttentionCall& call, int b, int query) {
  const int past = call.past ? call.past[b] : 0;
  return {call.attend_from ? max(0, call.attend_from[b * call.steps + query]) : 0, min(call.keys, past + query + 1)};
}

// A warp's query or key in shared memory.
template <typename T>
__device__ void hold(float* shared, const T* row, int dim) {
  __syncwarp();
  for (int d = threadIdx.x % 32; d < dim; d += 32) shared[d] = to_f32(row[d]);
  __syncwarp();
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const AttentionCall call) {
  __shared__ float shared[kWarps][kMaxDim];
  begin();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = call.dim;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp;
  if (item >= int64_t{call.batch} * call.steps * call.heads) return;
  const int head = static_cast<int>(item % call.heads), query = static_cast<int>(item / call.heads % call.steps);
  const int b = static_cast<int>(item / call.heads / call.steps);
  const int64_t stride = int64_t{call.kv_heads} * dim,
                base = b * call.keys * stride + head / (call.heads / call.kv_heads) * dim;
  const T *k = static_cast<const T*>(call.k) + base, *v = static_cast<const T*>(call.v) + base;
  hold(shared[warp], static_cast<const T*>(call.q) + item * dim, dim);
  const Visible seen = visible(call, b, query);
  float largest = -INFINITY, total = 0, out[kHeld] = {};
  for (int first = seen.begin; first < seen.end; first += 32) {
    const int j = first + lane;
    const float score = j < seen.end ? dot(shared[warp], k + j * stride, dim) * call.scale : -INFINITY;
    const float top = fmaxf(largest, warp_max(score)), shrink = expf(largest - top);
    const float p = j < seen.end ? expf(score - top) : 0.0f;
    largest = top;
    total = total * shrink + warp_sum(p);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) out[i] *= shrink;
    for (int other = 0; other < min(32, seen.end - first); ++other) {
      const float weight = __shfl_sync(0xffffffffu, p, other);
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (lane + 32 * i < dim) out[i] += weight * to_f32(v[(first + other) * stride + lane + 32 * i]);
    }
  }
  T* to = static_cast<T*>(call.out) + item * dim;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (lane + 32 * i < dim) to[lane + 32 * i] = from_f32<T>(total > 0 ? out[i] / total : 0.0f);
  if (lane == 0) call.lse[item] = largest + logf(total);
}

// dq: one warp a query and head.
template <typename T>
__global__ void __launch_bounds__(kThreads) query_kernel(const AttentionBackwardCall call) {
  __shared__ float q_shared[kWarps][kMaxDim], g_shared[kWarps][kMaxDim];
  begin();
  const AttentionCall& f = call.forward;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = f.dim;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp;
  if (item >= int64_t{f.batch} * f.steps * f.heads) return;
  const int head = static_cast<int>(item % f.heads), query = static_cast<int>(item / f.heads % f.steps);
  const int b = static_cast<int>(item / f.heads / f.steps);
  const int64_t stride = int64_t{f.kv_heads} * dim, base = b * f.keys * stride + head / (f.heads / f.kv_heads) * dim;
  const T *k = static_cast<const T*>(f.k) + base, *v = static_cast<const T*>(f.v) + base;
  hold(q_shared[warp], static_cast<const T*>(f.q) + item * dim, dim);
  hold(g_shared[warp], static_cast<const T*>(call.dout) + item * dim, dim);
  const Visible seen = visible(f, b, query);
  const float lse = f.lse[item], delta = call.delta[item];
  float sum[kHeld] = {};
  for (int first = seen.begin; first < seen.end; first += 32) {
    const int j = first + lane;
    float ds = 0;
    if (j < seen.end) {
      const float p = expf(dot(q_shared[warp], k + j * stride, dim) * f.scale - lse);
      ds = p * (dot(g_shared[warp], v + j * stride, dim) - delta) * f.scale;
    }
    for (int other = 0; other < min(32, seen.end - first); ++other) {
      const float weight = __shfl_sync(0xffffffffu, ds, other);
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (lane + 32 * i < dim) sum[i] += weight * to_f32(k[(first + other) * stride + lane + 32 * i]);
    }
  }
  T* to = static_cast<T*>(call.dq) + item * dim;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (lane + 32 * i < dim) to[lane + 32 * i] = from_f32<T>(sum[i]);
}

// dk, dv: one warp a key and key head, over the heads of the group and the queries from that key on, in order.
template <typename T>
__global__ void __launch_bounds__(kThreads) key_kernel(const AttentionBackwardCall call) {
  __shared__ float k_shared[kWarps][kMaxDim], v_shared[kWarps][kMaxDim];
  begin();
  const AttentionCall& f = call.forward;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = f.dim, group = f.heads / f.kv_heads;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp;
  if (item >= int64_t{f.batch} * f.steps * f.kv_heads) return;
  const int kv_head = static_cast<int>(item % f.kv_heads), j = static_cast<int>(item / f.kv_heads % f.steps);
  const int b = static_cast<int>(item / f.kv_heads / f.steps);
  hold(k_shared[warp], static_cast<const T*>(f.k) + item * dim, dim);
  hold(v_shared[warp], static_cast<const T*>(f.v) + item * dim, dim);
  float dk[kHeld] = {}, dv[kHeld] = {};
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const auto row = [&](int t) { return (int64_t{b} * f.steps + t) * f.heads + head; };
    for (int first = j; first < f.steps; first += 32) {
      const int t = first + lane;
      float p = 0, ds = 0;
      if (t < f.steps && visible(f, b, t).begin <= j) {
        const T *q = static_cast<const T*>(f.q) + row(t) * dim, *g = static_cast<const T*>(call.dout) + row(t) * dim;
        p = expf(dot(k_shared[warp], q, dim) * f.scale - f.lse[row(t)]);
        ds = p * (dot(v_shared[warp], g, dim) - call.delta[row(t)]) * f.scale;
      }
      for (int other = 0; other < min(32, f.steps - first); ++other) {
        const float weight = __shfl_sync(0xffffffffu, p, other), gradient = __shfl_sync(0xffffffffu, ds, other);
        const T* q = static_cast<const T*>(f.q) + row(first + other) * dim;
        const T* g = static_cast<const T*>(call.dout) + row(first + other) * dim;
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
          if (lane + 32 * i < dim) {
            dk[i] += gradient * to_f32(q[lane + 32 * i]);
            dv[i] += weight * to_f32(g[lane + 32 * i]);
          }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (lane + 32 * i < dim) {
      static_cast<T*>(call.dk)[item * dim + lane + 32 * i] = from_f32<T>(dk[i]);
      static_cast<T*>(call.dv)[item * dim + lane + 32 * i] = from_f32<T>(dv[i]);
    }
}

// One warp a row and head.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const T* dout, const T* out, int64_t items, int dim, float* delta) {
  begin();
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= items) return;
  float sum = 0;
  for (int d = threadIdx.x % 32; d < dim; d += 32) sum += to_f32(dout[item * dim + d]) * to_f32(out[item * dim + d]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[item] = sum;
}

}  // namespace

void scalar_attention(const AttentionCall& call, DType dtype, cudaStream_t stream, bool overlap) {
  const int64_t items = int64_t{call.batch} * call.steps * call.heads;
  by_activation(dtype, [&](auto act) {
    launch({blocks_for(items, kWarps), kThreads, stream, 0, overlap}, forward_kernel<decltype(act)>, call);
  });
}

void scalar_attention_backward(const AttentionBackwardCall& call, DType dtype, cudaStream_t stream, bool overlap) {
  const int64_t rows = int64_t{call.forward.batch} * call.forward.steps;
  by_activation(dtype, [&](auto act) {
    using T = decltype(act);
    launch({blocks_for(rows * call.forward.heads, kWarps), kThreads, stream, 0, overlap}, query_kernel<T>, call);
    launch({blocks_for(rows * call.forward.kv_heads, kWarps), kThreads, stream, 0, overlap}, key_kernel<T>, call);
  });
}

void attention_delta(const void* dout, const void* out, DType dtype, int64_t rows, int heads, int dim, float* delta,
                     cudaStream_t stream, bool overlap) {
  by_activation(dtype, [&](auto act) {
    using T = decltype(act);
    launch({blocks_for(rows * heads, kWarps), kThreads, stream, 0, overlap}, delta_kernel<T>,
           static_cast<const T*>(dout), static_cast<const T*>(out), rows * heads, dim, delta);
  });
}

}  // namespace q4::gpu
