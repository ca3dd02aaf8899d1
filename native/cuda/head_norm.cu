// RMSNorm over each head followed by RoPE, and its gradient.
#include <algorithm>

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

// L lanes share a head, so that a warp takes 32 / L neighbouring ones side by side. A lane holds W neighbouring pairs
// (i, i + D/2) from i = W·lane on, then from L·W further on, S times.
template <int W, int S>
struct Held {
  static constexpr int kElements = S * W;
  float v[kElements];
};

// Half a head: elements [0, half) of `p`, zeros beyond.
template <int W, int S, int L, typename T>
__device__ Held<W, S> load_half(const T* p, int lane, int half) {
  Held<W, S> out;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const int i = (s * L + lane) * W;
    const Pack<W> x = i < half ? load<W>(p + i) : Pack<W>{};
#pragma unroll
    for (int j = 0; j < W; ++j) out.v[s * W + j] = x.v[j];
  }
  return out;
}
template <int W, int S, int L, typename T>
__device__ void store_half(T* p, const Held<W, S>& x, int lane, int half) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const int i = (s * L + lane) * W;
    Pack<W> out;
#pragma unroll
    for (int j = 0; j < W; ++j) out.v[j] = x.v[s * W + j];
    if (i < half) store<W>(p + i, out);
  }
}

// The lane's frequencies. Lanes read different ones, which constant memory hands out one at a time: once a kernel.
template <int W, int S, int L>
__device__ Held<W, S> held_frequencies(const Frequencies& f, int lane, int half) {
  Held<W, S> out;
#pragma unroll
  for (int e = 0; e < S * W; ++e) {
    const int i = (e / W * L + lane) * W + e % W;
    out.v[e] = i < half ? f.value[i] : 0.0f;
  }
  return out;
}

template <int W, int S>
struct Rotation {
  Held<W, S> cosine, sine;
};

template <int W, int S>
__device__ Rotation<W, S> rotation(const Held<W, S>& frequencies, int32_t position) {
  Rotation<W, S> r;
#pragma unroll
  for (int e = 0; e < S * W; ++e)
    sincosf(static_cast<float>(position) * frequencies.v[e], &r.sine.v[e], &r.cosine.v[e]);
  return r;
}

// x [N, heads·D] → y, rstd [N·heads]. One warp takes `per_warp` neighbouring heads of one row, then of another.
template <typename T, int W, int S, int L>
__global__ void __launch_bounds__(kWarps * 32)
    head_norm_rope_kernel(const T* x, const float* weight, const int32_t* positions,
                          const __grid_constant__ Frequencies f, float eps, T* y, float* rstd, int64_t rows, int heads,
                          int dim, int per_warp) {
  using Half = Held<W, S>;
  constexpr int kBeside = 32 / L, kTurns = kForwardTogether / kBeside;
  const int lane = threadIdx.x % L, beside = threadIdx.x % 32 / L, half = dim / 2;
  const int groups = (heads + per_warp - 1) / per_warp;
  const Half frequencies = held_frequencies<W, S, L>(f, lane, half);
  begin();
  const Half low_weight = load_half<W, S, L>(weight, lane, half),
             high_weight = load_half<W, S, L>(weight + half, lane, half);
  for (int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; item < rows * groups;
       item += int64_t{gridDim.x} * kWarps) {
    const int64_t n = item / groups;
    const int first = static_cast<int>(item % groups) * per_warp, end = min(heads, first + per_warp);
    const Rotation<W, S> r = rotation(frequencies, positions[n]);
    for (int next = first; next < end; next += kForwardTogether) {
      Half lows[kTurns], highs[kTurns];
#pragma unroll
      for (int t = 0; t < kTurns; ++t) {
        const T* in = x + (n * heads + min(next + t * kBeside + beside, end - 1)) * dim;
        lows[t] = load_half<W, S, L>(in, lane, half), highs[t] = load_half<W, S, L>(in + half, lane, half);
      }
#pragma unroll
      for (int t = 0; t < kTurns; ++t) {
        Half &low = lows[t], &high = highs[t];
        float squares = 0;
#pragma unroll
        for (int e = 0; e < Half::kElements; ++e) squares += low.v[e] * low.v[e] + high.v[e] * high.v[e];
        const float scale = rsqrtf(warp_sum<L>(squares) / static_cast<float>(dim) + eps);
        const int64_t head = n * heads + next + t * kBeside + beside;
        if (next + t * kBeside + beside >= end) continue;
        if (lane == 0) rstd[head] = scale;
#pragma unroll
        for (int e = 0; e < Half::kElements; ++e) {
          const float a = rounded<T>(low.v[e] * scale) * low_weight.v[e];
          const float b = rounded<T>(high.v[e] * scale) * high_weight.v[e];
          low.v[e] = a * r.cosine.v[e] - b * r.sine.v[e];
          high.v[e] = b * r.cosine.v[e] + a * r.sine.v[e];
        }
        store_half<W, S, L>(y + head * dim, low, lane, half);
        store_half<W, S, L>(y + head * dim + half, high, lane, half);
      }
    }
  }
}

// dy, x [N, heads·D] → dx; partial[block, D] = Σ dy·x·rstd over the block's rows and heads.
template <typename T, int W, int S, int L>
__global__ void __launch_bounds__(kWarps * 32)
    head_norm_rope_backward_kernel(const T* dy, const T* x, const float* weight, const float* rstd,
                                   const int32_t* positions, const __grid_constant__ Frequencies f, T* dx,
                                   float* partial, int64_t rows, int heads, int dim) {
  using Half = Held<W, S>;
  constexpr int kBeside = 32 / L, kTurns = kBackwardTogether / kBeside;
  const int lane = threadIdx.x % L, beside = threadIdx.x % 32 / L, warp = threadIdx.x / 32, half = dim / 2;
  const Half frequencies = held_frequencies<W, S, L>(f, lane, half);
  begin();
  const Half low_weight = load_half<W, S, L>(weight, lane, half),
             high_weight = load_half<W, S, L>(weight + half, lane, half);
  Half low_sum{}, high_sum{};
  const int groups = (heads + kHeadsPerWarp - 1) / kHeadsPerWarp;
  for (int64_t item = int64_t{blockIdx.x} * kWarps + warp; item < rows * groups; item += int64_t{gridDim.x} * kWarps) {
    const int64_t n = item / groups;
    const int first = static_cast<int>(item % groups) * kHeadsPerWarp, end = min(heads, first + kHeadsPerWarp);
    const Rotation<W, S> r = rotation(frequencies, positions[n]);
    for (int next = first; next < end; next += kBackwardTogether) {
      Half low_dys[kTurns], high_dys[kTurns], low_xs[kTurns], high_xs[kTurns];
      float scales[kTurns];
#pragma unroll
      for (int t = 0; t < kTurns; ++t) {
        const int64_t head = n * heads + min(next + t * kBeside + beside, end - 1), at = head * dim;
        low_dys[t] = load_half<W, S, L>(dy + at, lane, half);
        high_dys[t] = load_half<W, S, L>(dy + at + half, lane, half);
        low_xs[t] = load_half<W, S, L>(x + at, lane, half);
        high_xs[t] = load_half<W, S, L>(x + at + half, lane, half);
        scales[t] = rstd[head];
      }
#pragma unroll
      for (int t = 0; t < kTurns; ++t) {
        const bool inside = next + t * kBeside + beside < end;
        const int64_t at = (n * heads + next + t * kBeside + beside) * dim;
        const Half &low_dy = low_dys[t], &high_dy = high_dys[t];
        Half &low_x = low_xs[t], &high_x = high_xs[t], low_gradient, high_gradient;
        const float scale = scales[t];
        float dot = 0;
#pragma unroll
        for (int e = 0; e < Half::kElements; ++e) {
          low_x.v[e] *= scale, high_x.v[e] *= scale;
          // The rotation backwards: by the negative angle. Beyond half a head everything is 0.
          const float low = low_dy.v[e] * r.cosine.v[e] + high_dy.v[e] * r.sine.v[e];
          const float high = high_dy.v[e] * r.cosine.v[e] - low_dy.v[e] * r.sine.v[e];
          if (inside) low_sum.v[e] += low * low_x.v[e], high_sum.v[e] += high * high_x.v[e];
          low_gradient.v[e] = low * low_weight.v[e];
          high_gradient.v[e] = high * high_weight.v[e];
          dot += low_gradient.v[e] * low_x.v[e] + high_gradient.v[e] * high_x.v[e];
        }
        const float mean = warp_sum<L>(dot) / static_cast<float>(dim);
#pragma unroll
        for (int e = 0; e < Half::kElements; ++e) {
          low_gradient.v[e] = scale * (low_gradient.v[e] - low_x.v[e] * mean);
          high_gradient.v[e] = scale * (high_gradient.v[e] - high_x.v[e] * mean);
        }
        if (!inside) continue;
        store_half<W, S, L>(dx + at, low_gradient, lane, half);
        store_half<W, S, L>(dx + at + half, high_gradient, lane, half);
      }
    }
  }
  if (!partial) return;
  __shared__ __align__(16) float shared[kWarps * kBeside][2 * kMaxHalf];
  store_half<W, S, L>(shared[warp * kBeside + beside], low_sum, lane, half);
  store_half<W, S, L>(shared[warp * kBeside + beside] + half, high_sum, lane, half);
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    float sum = 0;
    for (int w = 0; w < kWarps * kBeside; ++w) sum += shared[w][i];
    partial[int64_t{blockIdx.x} * dim + i] = sum;
  }
}

// Wide loads where heads allow them, and no more registers than the half needs: W, S and L.
template <typename Body>
void by_half(int64_t head_dim, bool is_wide, Body&& body) {
  using std::integral_constant;
  if (is_wide && head_dim <= 128)
    body(integral_constant<int, 4>{}, integral_constant<int, 1>{}, integral_constant<int, 16>{});
  else if (head_dim % 4 == 0)
    body(integral_constant<int, 2>{}, integral_constant<int, kMaxHalf / 64>{}, integral_constant<int, 32>{});
  else
    body(integral_constant<int, 1>{}, integral_constant<int, kMaxHalf / 32>{}, integral_constant<int, 32>{});
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
    by_half(head_dim, wide(head_dim, x, weight, y), [&](auto w, auto s, auto l) {
      auto* kernel = head_norm_rope_kernel<T, w, s, l>;
      const unsigned blocks = std::min(blocks_for(items, kWarps), resident_blocks(kernel, kWarps * 32, processors_));
      launch({blocks, kWarps * 32, stream(), 0, overlap()}, kernel, x.as<T>(), weight.f32(), positions.i32(),
             frequencies(head_dim, theta), eps, y.as<T>(), rstd.f32(), rows, static_cast<int>(heads),
             static_cast<int>(head_dim), per_warp);
    });
  });
}

void CudaBackend::head_norm_rope_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                          const Tensor& positions, int64_t head_dim, double theta, bool accumulate,
                                          const Tensor& dx, const Tensor& dweight, const Tensor&) {
  const int64_t rows = x.rows(), heads = x.cols() / head_dim;
  const int64_t items = rows * ((heads + kHeadsPerWarp - 1) / kHeadsPerWarp);
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_half(head_dim, wide(head_dim, dy, x, weight, dx), [&](auto w, auto s, auto l) {
      auto* kernel = head_norm_rope_backward_kernel<T, w, s, l>;
      // All at once: a second round of blocks would find most of the device idle.
      const unsigned blocks = std::min(blocks_for(items, kWarps), resident_blocks(kernel, kWarps * 32, processors_));
      launch({blocks, kWarps * 32, stream(), 0, overlap()}, kernel, dy.as<T>(), x.as<T>(), weight.f32(), rstd.f32(),
             positions.i32(), frequencies(head_dim, theta), dx.as<T>(), dweight ? partials() : nullptr, rows,
             static_cast<int>(heads), static_cast<int>(head_dim));
      if (dweight) column_sum(partials(), blocks, head_dim, accumulate, dweight.f32(), stream(), overlap());
    });
  });
}

}  // namespace q4::gpu
