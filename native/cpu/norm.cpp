// RMSNorm, residual add + RMSNorm, per-head RMSNorm + RoPE, and their gradients.
#include <algorithm>
#include <cstring>

#include "cpu/fast_backend.h"

namespace q4 {
namespace {
int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width)); }
// Rows whose weight gradients are summed together before they meet the others: fixed, so that threads do not show.
constexpr int64_t kGradientRows = 64;
}  // namespace

void FastBackend::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, const Tensor& rstd) {
  const float* in = f32_activation(x, "rms_norm");
  const int64_t width = x.cols();
  pool_.run_ranges(x.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n)
      rstd.f32()[n] =
          kernels_.norm_row(in + n * width, nullptr, weight.f32(), width, eps, nullptr, y.f32() + n * width);
  });
}

void FastBackend::add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight, float eps,
                               const Tensor& sum, const Tensor& y, const Tensor& rstd) {
  const float *in = f32_activation(x, "add_rms_norm"), *other = f32_activation(branch, "add_rms_norm");
  const int64_t width = x.cols();
  pool_.run_ranges(x.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n)
      rstd.f32()[n] = kernels_.norm_row(in + n * width, other + n * width, weight.f32(), width, eps,
                                        sum.f32() + n * width, y.f32() + n * width);
  });
}

void FastBackend::norm_weight_gradients(const float* dy, const float* x, const float* rstd, int64_t rows, int64_t width,
                                        bool accumulate, float* dweight) {
  const int64_t pieces = (rows + kGradientRows - 1) / kGradientRows;
  float* partial = shared_.floats(pieces * width);
  std::memset(partial, 0, static_cast<size_t>(pieces * width) * sizeof(float));
  pool_.run_ranges(rows, kGradientRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n)
      kernels_.norm_weight_gradient(dy + n * width, x + n * width, rstd[n], width,
                                    partial + begin / kGradientRows * width);
  });
  for (int64_t i = 0; i < width; ++i) {
    double sum = accumulate ? dweight[i] : 0.0;
    for (int64_t p = 0; p < pieces; ++p) sum += partial[p * width + i];
    dweight[i] = static_cast<float>(sum);
  }
}

void FastBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                    const Tensor& dresidual, bool accumulate, const Tensor& dx, const Tensor& dweight,
                                    const Tensor&) {
  const float* g = f32_activation(dy, "rms_norm_backward");
  const int64_t width = x.cols();
  if (dweight) norm_weight_gradients(g, x.f32(), rstd.f32(), x.rows(), width, accumulate, dweight.f32());
  pool_.run_ranges(x.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n)
      kernels_.norm_row_backward(g + n * width, x.f32() + n * width, weight.f32(), rstd.f32()[n],
                                 dresidual ? dresidual.f32() + n * width : nullptr, width, dx.f32() + n * width);
  });
}

void FastBackend::head_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& positions, int64_t head_dim,
                                 float eps, double theta, const Tensor& y, const Tensor& rstd) {
  const float* in = f32_activation(x, "head_norm_rope");
  const int64_t width = x.cols(), heads = width / head_dim, half = head_dim / 2;
  rope_.prepare(positions.i32(), positions.elements(), head_dim, theta);
  pool_.run_ranges(x.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* angles = rope_.row(positions.i32()[n]);
      for (int64_t h = 0; h < heads; ++h) {
        float* out = y.f32() + n * width + h * head_dim;
        rstd.f32()[n * heads + h] =
            kernels_.norm_row(in + n * width + h * head_dim, nullptr, weight.f32(), head_dim, eps, nullptr, out);
        kernels_.rotate(out, angles, angles + half, head_dim, false, out);
      }
    }
  });
}

void FastBackend::head_norm_rope_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                          const Tensor& positions, int64_t head_dim, double theta, bool accumulate,
                                          const Tensor& dx, const Tensor& dweight, const Tensor&) {
  const float* g = f32_activation(dy, "head_norm_rope_backward");
  const int64_t width = x.cols(), heads = width / head_dim, half = head_dim / 2, rows = x.rows();
  rope_.prepare(positions.i32(), positions.elements(), head_dim, theta);
  // dx first holds the gradient before the rotation.
  float* out = dx.f32();
  pool_.run_ranges(rows, rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* angles = rope_.row(positions.i32()[n]);
      for (int64_t at = n * width; at < (n + 1) * width; at += head_dim)
        kernels_.rotate(g + at, angles, angles + half, head_dim, true, out + at);
    }
  });
  if (dweight) norm_weight_gradients(out, x.f32(), rstd.f32(), rows * heads, head_dim, accumulate, dweight.f32());
  pool_.run_ranges(rows, rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = n * width + h * head_dim;
        kernels_.norm_row_backward(out + at, x.f32() + at, weight.f32(), rstd.f32()[n * heads + h], nullptr, head_dim,
                                   out + at);
      }
  });
}

}  // namespace q4
