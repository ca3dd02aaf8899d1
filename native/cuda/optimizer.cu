// Gradient statistics and AdamW.
#include "core/nvfp4.h"
#include "core/philox.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;
// Blocks of a reduction: a fixed number, so that the order of the sum does not depend on the device.
constexpr int kMaxBlocks = 1024;

struct SumOfSquares {
  __device__ static float step(float total, float x) { return total + x * x; }
  __device__ static float join(float a, float b) { return a + b; }
};
struct LargestMagnitude {
  __device__ static float step(float total, float x) { return amax_step(total, x); }
  __device__ static float join(float a, float b) { return amax_step(a, b); }
};

template <typename Op>
__device__ float block_reduce(float x, float* shared) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) total = Op::join(total, shared[w]);
  return total;
}

// *out = reduction of x. Each block reduces a stride; the block that ends last joins the partials in order and resets the
// ticket for the next kernel.
template <typename Op, typename T, int W>
__global__ void reduce_kernel(const T* x, int64_t elements, float* partial, uint32_t* ticket, float* out) {
  begin();
  __shared__ float shared[kThreads / 32];
  __shared__ bool last;
  float total = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads * W;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < elements; i += stride) {
    const Pack<W> v = load<W>(x + i);
#pragma unroll
    for (int j = 0; j < W; ++j) total = Op::step(total, v.v[j]);
  }
  total = block_reduce<Op>(total, shared);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = total;
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  total = 0;
  for (int i = threadIdx.x; i < static_cast<int>(gridDim.x); i += kThreads)
    total = Op::join(total, __ldcg(partial + i));
  total = block_reduce<Op>(total, shared);
  if (threadIdx.x == 0) {
    *out = total;
    *ticket = 0;
  }
}

__global__ void grad_stats_kernel(const float* partials, int64_t count, const float* loss, float max_norm,
                                  float* stats) {
  begin();
  __shared__ double shared[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) sum += shared[i];
  const float norm = static_cast<float>(sqrt(sum)), loss_value = *loss;
  const float coefficient = max_norm / (norm + 1e-6f);
  stats[0] = norm;
  stats[1] = max_norm == 0 || coefficient > 1 ? 1.0f : coefficient;
  stats[2] = isfinite(norm) && isfinite(loss_value) ? 1.0f : 0.0f;
  stats[3] = loss_value;
}

template <typename G, typename Master, int W>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const G* grad, const float* stats, const float* hyper, const uint32_t* rng, bool decay,
                 uint32_t stream, Master* master, float* m, float* v, int64_t elements) {
  begin_weights();
  if (stats[2] == 0) return;
  const float clip = stats[1], lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
  const float shrink = decay ? lr * hyper[4] : 0.0f, correction1 = 1.0f / hyper[5], correction2 = 1.0f / hyper[6];
  const int64_t stride = int64_t{gridDim.x} * kThreads * W;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < elements; i += stride) {
    const Pack<W> g_in = load<W>(grad + i);
    Pack<W> w = load<W>(master + i), m_i = load<W>(m + i), v_i = load<W>(v + i);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float g = g_in.v[j] * clip;
      m_i.v[j] = beta1 * m_i.v[j] + (1.0f - beta1) * g;
      v_i.v[j] = beta2 * v_i.v[j] + (1.0f - beta2) * (g * g);
      w.v[j] = w.v[j] - shrink * w.v[j];
      w.v[j] = w.v[j] - lr * (m_i.v[j] * correction1) / (sqrtf(v_i.v[j] * correction2) + eps);
    }
    store<W>(m + i, m_i);
    store<W>(v + i, v_i);
    if constexpr (std::is_same_v<Master, bf16>) {
      // Four elements share a Philox call.
#pragma unroll
      for (int j = 0; j < W; j += 4) {
        const Philox4 draw =
            philox_group(rng[0], rng[1], Draw::rounding, stream, rng[2], static_cast<uint64_t>((i + j) / 4));
#pragma unroll
        for (int k = j; k < j + 4 && k < W; ++k)
          w.v[k] = bf16_to_f32(f32_to_bf16_stochastic(w.v[k], draw.word[(W == 1 ? static_cast<int>(i % 4) : k - j)]));
      }
    }
    store<W>(master + i, w);
  }
}

unsigned reduction_blocks(int64_t elements, int width) {
  return std::min<unsigned>(blocks_for(elements, int64_t{kThreads} * width * 4), kMaxBlocks);
}

}  // namespace

void CudaBackend::sum_squares(const Tensor& x, int64_t slot, const Tensor& out) {
  const int64_t elements = x.elements();
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(elements, x), [&](auto w) {
      launch({reduction_blocks(elements, w), kThreads, stream(), 0, overlap()}, reduce_kernel<SumOfSquares, T, w>,
             x.as<T>(), elements, partials(), ticket(), out.f32() + slot);
    });
  });
}

void CudaBackend::amax(const Tensor& x, int64_t slot, const Tensor& out) {
  const int64_t elements = x.elements();
  by_float(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(elements, x), [&](auto w) {
      launch({reduction_blocks(elements, w), kThreads, stream(), 0, overlap()}, reduce_kernel<LargestMagnitude, T, w>,
             x.as<T>(), elements, partials(), ticket(), out.f32() + slot);
    });
  });
}

void CudaBackend::grad_stats(const Tensor& partials, const Tensor& loss, float max_norm, const Tensor& stats) {
  launch({1, kThreads, stream(), 0, overlap()}, grad_stats_kernel, partials.f32(), partials.elements(), loss.f32(),
         max_norm, stats.f32());
}

void CudaBackend::adamw(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                        int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v) {
  const int64_t elements = master.elements();
  by_activation(grad.dtype, [&](auto g) {
    by_activation(master.dtype, [&](auto p) {
      by_width(wide(elements, grad, master, m, v), [&](auto w) {
        launch({blocks_for(elements, kThreads * w), kThreads, this->stream(), 0, overlap()},
               adamw_kernel<decltype(g), decltype(p), w>, grad.as<decltype(g)>(), stats.f32(), hyper.f32(),
               rng.as<uint32_t>(), decay, static_cast<uint32_t>(stream), master.as<decltype(p)>(), m.f32(), v.f32(),
               elements);
      });
    });
  });
}

}  // namespace q4::gpu
