// RMSNorm over each head followed by RoPE, and its gradient.
#include "cuda/column_sum.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/rope_frequencies.h"

namespace q4::gpu {
namespace {

constexpr int kWarps = 4;
// Heads that one warp takes when there are many rows: the angles are computed once for all of them.
constexpr int kHeadsPerWarp = 8;
// Heads whose loads are under way at once.
constexpr int kForwardTogether = 4, kBackwardTogether = 2;

// A lane holds W neighbouring pairs (i, i + D/2) from i = W·lane on, then from 32·W further on, and so forth.
template <int W>
struct Held {
  static constexpr int kSteps = kMaxHalf / 32 / W;
  float v[kSteps * W];
};

// Half a head: elements [0, half) of `p`, zeros beyond.
template <int W, typename T>
__device__ Held<W> load_half(const T* p, int lane, int half) {
  Held<W> out;
#pragma unroll
  for (int s = 0; s < Held<W>::kSteps; ++s) {
    const int i = (s * 32 + lane) * W;
    const Pack<W> x = i < half ? load<W>(p + i) : Pack<W>{};
#pragma unroll
    for (int j = 0; j < W; ++j) out.v[s * W + j] = x.v[j];
  }
  return out;
}
template <int W, typename T>
__device__ void store_half(T* p, const Held<W>& x, int lane, int half) {
#pragma unroll
  for (int s = 0; s < Held<W>::kSteps; ++s) {
    const int i = (s * 32 + lane) * W;
    Pack<W> out;
#pragma unroll
    for (int j = 0; j < W; ++j) out.v[j] = x.v[s * W + j];
    if (i < half) store<W>(p + i, out);
  }
}

template <int W>
struct Rotation {
  Held<W> cosine, sine;
};

template <int W>
__device__ Rotation<W> rotation(const Frequencies& f, int32_t position, int lane, int half) {
  Rotation<W> r;
#pragma unroll
  for (int e = 0; e < Held<W>::kSteps * W; ++e) {
    const int i = (e / W * 32 + lane) * W + e % W;
    if (i < half) sincosf(static_cast<float>(position) * f.value[i], &r.sine.v[e], &r.cosine.v[e]);
  }
  return r;
}

// x [N, heads·D] → y, rstd [N·heads]. One warp takes `per_warp` neighbouring heads of one row.
template <typename T, int W>
__global__ void __launch_bounds__(kWarps * 32)
    head_norm_rope_kernel(const T* x, const float* weight, const int32_t* positions,
                          const __grid_constant__ Frequencies f, float eps, T* y, float* rstd, int64_t rows, int heads,
                          int dim, int per_warp) {
  const int lane = threadIdx.x % 32, half = dim / 2;
  begin();
  const int groups = (heads + per_warp - 1) / per_warp;
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= rows * groups) return;
  const int64_t n = item / groups;
  const int first = static_cast<int>(item % groups) * per_warp;
  const Rotation<W> r = rotation<W>(f, positions[n], lane, half);
  const Held<W> low_weight = load_half<W>(weight, lane, half), high_weight = load_half<W>(weight + half, lane, half);
  const int end = min(heads, first + per_warp);
  for (int next = first; next < end; next += kForwardTogether) {
    Held<W> lows[kForwardTogether], highs[kForwardTogether];
#pragma unroll
    for (int t = 0; t < kForwardTogether; ++t) {
      const T* in = x + (n * heads + next + t) * dim;
      if (next + t < end) lows[t] = load_half<W>(in, lane, half), highs[t] = load_half<W>(in + half, lane, half);
    }
#pragma unroll
    for (int t = 0; t < kForwardTogether; ++t) {
      const int h = next + t;
      if (h >= end) break;
      Held<W>&low = lows[t], &high = highs[t];
      float squares = 0;
#pragma unroll
      for (int e = 0; e < Held<W>::kSteps * W; ++e) squares += low.v[e] * low.v[e] + high.v[e] * high.v[e];
      const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(dim) + eps);
      if (lane == 0) rstd[n * heads + h] = scale;
#pragma unroll
      for (int e = 0; e < Held<W>::kSteps * W; ++e) {
        const float a = rounded<T>(low.v[e] * scale) * low_weight.v[e];
        const float b = rounded<T>(high.v[e] * scale) * high_weight.v[e];
        low.v[e] = a * r.cosine.v[e] - b * r.sine.v[e];
        high.v[e] = b * r.cosine.v[e] + a * r.sine.v[e];
      }
      T* out = y + (n * heads + h) * dim;
      store_half<W>(out, low, lane, half);
      store_half<W>(out + half, high, lane, half);
    }
  }
}

// dy, x [N, heads·D] → dx; partial[block, D] = Σ dy·x·rstd over the block's rows and heads.
template <typename T, int W>
__global__ void __launch_bounds__(kWarps * 32)
    head_norm_rope_backward_kernel(const T* dy, const T* x, const float* weight, const float* rstd,
                                   const int32_t* positions, const __grid_constant__ Frequencies f, T* dx,
                                   float* partial, int64_t rows, int heads, int dim) {
  constexpr int kElements = Held<W>::kSteps * W;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = dim / 2;
  begin();
  const Held<W> low_weight = load_half<W>(weight, lane, half), high_weight = load_half<W>(weight + half, lane, half);
  Held<W> low_sum{}, high_sum{};
  const int groups = (heads + kHeadsPerWarp - 1) / kHeadsPerWarp;
  for (int64_t item = int64_t{blockIdx.x} * kWarps + warp; item < rows * groups; item += int64_t{gridDim.x} * kWarps) {
    const int64_t n = item / groups;
    const int first = static_cast<int>(item % groups) * kHeadsPerWarp;
    const Rotation<W> r = rotation<W>(f, positions[n], lane, half);
    const int end = min(heads, first + kHeadsPerWarp);
    for (int next = first; next < end; next += kBackwardTogether) {
      Held<W> low_dys[kBackwardTogether], high_dys[kBackwardTogether], low_xs[kBackwardTogether],
          high_xs[kBackwardTogether];
      float scales[kBackwardTogether];
#pragma unroll
      for (int t = 0; t < kBackwardTogether; ++t) {
        if (next + t >= end) break;
        const int64_t at = (n * heads + next + t) * dim;
        low_dys[t] = load_half<W>(dy + at, lane, half), high_dys[t] = load_half<W>(dy + at + half, lane, half);
        low_xs[t] = load_half<W>(x + at, lane, half), high_xs[t] = load_half<W>(x + at + half, lane, half);
        scales[t] = rstd[n * heads + next + t];
      }
#pragma unroll
      for (int t = 0; t < kBackwardTogether; ++t) {
        if (next + t >= end) break;
        const int64_t at = (n * heads + next + t) * dim;
        const Held<W>&low_dy = low_dys[t], &high_dy = high_dys[t];
        Held<W>&low_x = low_xs[t], &high_x = high_xs[t];
        const float scale = scales[t];
        Held<W> low_gradient, high_gradient;
        float dot = 0;
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          const bool inside = (e / W * 32 + lane) * W < half;
          low_x.v[e] *= scale, high_x.v[e] *= scale;
          // The rotation backwards: by the negative angle.
          const float low = inside ? low_dy.v[e] * r.cosine.v[e] + high_dy.v[e] * r.sine.v[e] : 0.0f;
          const float high = inside ? high_dy.v[e] * r.cosine.v[e] - low_dy.v[e] * r.sine.v[e] : 0.0f;
          low_sum.v[e] += low * low_x.v[e];
          high_sum.v[e] += high * high_x.v[e];
          low_gradient.v[e] = low * low_weight.v[e];
          high_gradient.v[e] = high * high_weight.v[e];
          dot += low_gradient.v[e] * low_x.v[e] + high_gradient.v[e] * high_x.v[e];
        }
        const float mean = warp_sum(dot) / static_cast<float>(dim);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          low_gradient.v[e] = scale * (low_gradient.v[e] - low_x.v[e] * mean);
          high_gradient.v[e] = scale * (high_gradient.v[e] - high_x.v[e] * mean);
        }
        store_half<W>(dx + at, low_gradient, lane, half);
        store_half<W>(dx + at + half, high_gradient, lane, half);
      }
    }
  }
  if (!partial) return;
  __shared__ __align__(8) float shared[kWarps][2 * kMaxHalf];
  store_half<W>(shared[warp], low_sum, lane, half);
  store_half<W>(shared[warp] + half, high_sum, lane, half);
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w][i];
    partial[int64_t{blockIdx.x} * dim + i] = sum;
  }
}

// Two neighbouring elements at a time where halves of heads allow it.
template <typename Body>
void by_pairs(bool even, Body&& body) {
  if (even)
    body(std::integral_constant<int, 2>{});
  else
    body(std::integral_constant<int, 1>{});
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
    by_pairs(head_dim % 4 == 0, [&](auto w) {
      launch({blocks_for(items, kWarps), kWarps * 32, stream(), 0, overlap()}, head_norm_rope_kernel<T, w>, x.as<T>(),
             weight.f32(), positions.i32(), frequencies(head_dim, theta), eps, y.as<T>(), rstd.f32(), rows,
             static_cast<int>(heads), static_cast<int>(head_dim), per_warp);
    });
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
    by_pairs(head_dim % 4 == 0, [&](auto w) {
      launch({static_cast<unsigned>(blocks), kWarps * 32, stream(), 0, overlap()}, head_norm_rope_backward_kernel<T, w>,
             dy.as<T>(), x.as<T>(), weight.f32(), rstd.f32(), positions.i32(), frequencies(head_dim, theta), dx.as<T>(),
             dweight ? partials() : nullptr, rows, static_cast<int>(heads), static_cast<int>(head_dim));
    });
  });
  if (dweight) column_sum(partials(), blocks, head_dim, accumulate, dweight.f32(), stream(), overlap());
}

}  // namespace q4::gpu
