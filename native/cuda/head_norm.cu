// RMSNorm over each head followed by RoPE, and its gradient.
#include "cuda/column_sum.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/rope_frequencies.h"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4;
// Heads that one warp takes when there are many rows: the angles are computed once for all of them.
constexpr int kHeadsPerWarp = 8;

// What a lane holds of a head: pairs (i, i + D/2) for i = lane, lane + 32, ...
constexpr int kPairs = kMaxHalf / 32;

struct Rotation {
  float cosine[kPairs], sine[kPairs];
};

__device__ Rotation rotation(const Frequencies& f, int32_t position, int lane, int half) {
  Rotation r;
#pragma unroll
  for (int p = 0; p < kPairs; ++p)
    if (lane + 32 * p < half) sincosf(static_cast<float>(position) * f.value[lane + 32 * p], &r.sine[p], &r.cosine[p]);
  return r;
}

// x [N, heads·D] → y, rstd [N·heads]. One warp takes `per_warp` neighbouring heads of one row.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) head_norm_rope_kernel(const T* x, const float* weight, const int32_t* positions,
                                                                     const __grid_constant__ Frequencies f, float eps, T* y,
                                                                     float* rstd, int64_t rows, int heads, int dim, int per_warp) {
  const int lane = threadIdx.x % 32, half = dim / 2;
  begin();
  const int groups = (heads + per_warp - 1) / per_warp;
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= rows * groups) return;
  const int64_t n = item / groups;
  const int first = static_cast<int>(item % groups) * per_warp;
  const Rotation r = rotation(f, positions[n], lane, half);
  for (int h = first; h < min(heads, first + per_warp); ++h) {
    const T* in = x + (n * heads + h) * dim;
    float low[kPairs], high[kPairs], squares = 0;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int i = lane + 32 * p;
      low[p] = i < half ? to_f32(in[i]) : 0.0f;
      high[p] = i < half ? to_f32(in[i + half]) : 0.0f;
      squares += low[p] * low[p] + high[p] * high[p];
    }
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(dim) + eps);
    if (lane == 0) rstd[n * heads + h] = scale;
    T* out = y + (n * heads + h) * dim;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int i = lane + 32 * p;
      if (i >= half) continue;
      const float a = rounded<T>(low[p] * scale) * weight[i], b = rounded<T>(high[p] * scale) * weight[i + half];
      out[i] = from_f32<T>(a * r.cosine[p] - b * r.sine[p]);
      out[i + half] = from_f32<T>(b * r.cosine[p] + a * r.sine[p]);
    }
  }
}

// dy, x [N, heads·D] → dx; partial[block, D] = Σ dy·x·rstd over the block's rows and heads.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    head_norm_rope_backward_kernel(const T* dy, const T* x, const float* weight, const float* rstd, const int32_t* positions,
                                   const __grid_constant__ Frequencies f, T* dx, float* partial, int64_t rows, int heads,
                                   int dim) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = dim / 2;
  begin();
  float low_weight[kPairs], high_weight[kPairs], low_sum[kPairs] = {}, high_sum[kPairs] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int i = lane + 32 * p;
    low_weight[p] = i < half ? weight[i] : 0.0f;
    high_weight[p] = i < half ? weight[i + half] : 0.0f;
  }
  const int groups = (heads + kHeadsPerWarp - 1) / kHeadsPerWarp;
  for (int64_t item = int64_t{blockIdx.x} * kWarps + warp; item < rows * groups; item += int64_t{gridDim.x} * kWarps) {
    const int64_t n = item / groups;
    const int first = static_cast<int>(item % groups) * kHeadsPerWarp;
    const Rotation r = rotation(f, positions[n], lane, half);
    for (int h = first; h < min(heads, first + kHeadsPerWarp); ++h) {
      const int64_t at = (n * heads + h) * dim;
      const float scale = rstd[n * heads + h];
      float low_gradient[kPairs], high_gradient[kPairs], low_x[kPairs], high_x[kPairs], dot = 0;
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const int i = lane + 32 * p;
        const bool inside = i < half;
        const float a = inside ? to_f32(dy[at + i]) : 0.0f, b = inside ? to_f32(dy[at + i + half]) : 0.0f;
        low_x[p] = inside ? to_f32(x[at + i]) * scale : 0.0f;
        high_x[p] = inside ? to_f32(x[at + i + half]) * scale : 0.0f;
        // The rotation backwards: by the negative angle.
        const float low = inside ? a * r.cosine[p] + b * r.sine[p] : 0.0f;
        const float high = inside ? b * r.cosine[p] - a * r.sine[p] : 0.0f;
        low_sum[p] += low * low_x[p];
        high_sum[p] += high * high_x[p];
        low_gradient[p] = low * low_weight[p];
        high_gradient[p] = high * high_weight[p];
        dot += low_gradient[p] * low_x[p] + high_gradient[p] * high_x[p];
      }
      const float mean = warp_sum(dot) / static_cast<float>(dim);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const int i = lane + 32 * p;
        if (i >= half) continue;
        dx[at + i] = from_f32<T>(scale * (low_gradient[p] - low_x[p] * mean));
        dx[at + i + half] = from_f32<T>(scale * (high_gradient[p] - high_x[p] * mean));
      }
    }
  }
  if (!partial) return;
  __shared__ float shared[kWarps][2 * kMaxHalf];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int i = lane + 32 * p;
    if (i < half) shared[warp][i] = low_sum[p], shared[warp][i + half] = high_sum[p];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w][i];
    partial[int64_t{blockIdx.x} * dim + i] = sum;
  }
}

}  // namespace

void CudaBackend::head_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& positions, int64_t head_dim,
                                 float eps, double theta, const Tensor& y, const Tensor& rstd) {
  if (defer({Deferred::Kind::rotate, {x, weight, positions, y, rstd}, eps, theta, head_dim})) return;
  const int64_t rows = x.rows(), heads = x.cols() / head_dim;
  const int per_warp = rows * heads > int64_t{processors_} * 64 ? kHeadsPerWarp : 1;
  const int64_t items = rows * ((heads + per_warp - 1) / per_warp);
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    launch({blocks_for(items, kWarps), kWarps * 32, stream(), 0, overlap()}, head_norm_rope_kernel<T>, x.as<T>(),
           weight.f32(), positions.i32(), frequencies(head_dim, theta), eps, y.as<T>(), rstd.f32(), rows,
           static_cast<int>(heads), static_cast<int>(head_dim), per_warp);
  });
}

void CudaBackend::head_norm_rope_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                          const Tensor& positions, int64_t head_dim, double theta, bool accumulate,
                                          const Tensor& dx, const Tensor& dweight, const Tensor&) {
  const int64_t rows = x.rows(), heads = x.cols() / head_dim;
  const int64_t items = rows * ((heads + kHeadsPerWarp - 1) / kHeadsPerWarp);
  const int64_t blocks = std::min<int64_t>((items + kWarps - 1) / kWarps, int64_t{processors_} * 12);
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    launch({static_cast<unsigned>(blocks), kWarps * 32, stream(), 0, overlap()}, head_norm_rope_backward_kernel<T>,
           dy.as<T>(), x.as<T>(), weight.f32(), rstd.f32(), positions.i32(), frequencies(head_dim, theta), dx.as<T>(),
           dweight ? partials() : nullptr, rows, static_cast<int>(heads), static_cast<int>(head_dim));
  });
  if (dweight) column_sum(partials(), blocks, head_dim, accumulate, dweight.f32(), stream(), overlap());
}

}  // namespace q4::gpu
