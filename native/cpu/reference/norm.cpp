// RMSNorm, residual add + RMSNorm, per-head RMSNorm + RoPE, and their gradients.
#include <cmath>
#include <vector>

#include "cpu/reference/reference_backend.h"
#include "cpu/rope_angles.h"

namespace q4 {
namespace {

// y = (x·rstd)·weight over one row of n elements; returns rstd.
float norm_row(const float* x, const float* weight, int64_t n, float eps, float* y) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double{x[i]} * x[i];
  const float rstd = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * rstd * weight[i];
  return rstd;
}

// dx = residual + rstd·(g − x̂·mean(g·x̂)) with g = dy·weight, x̂ = x·rstd; dweight += dy·x̂ in double.
void norm_row_backward(const float* dy, const float* x, const float* weight, float rstd, const float* residual,
                       int64_t n, float* dx, double* dweight) {
  double dot = 0;
  for (int64_t i = 0; i < n; ++i) {
    dot += double{dy[i]} * weight[i] * x[i] * rstd;
    dweight[i] += double{dy[i]} * x[i] * rstd;
  }
  const double mean = dot / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    const double g = rstd * (double{dy[i]} * weight[i] - double{x[i]} * rstd * mean);
    dx[i] = static_cast<float>((residual ? residual[i] : 0.0) + g);
  }
}

void store_gradient(const std::vector<double>& sum, bool accumulate, const Tensor& dweight) {
  if (!dweight) return;
  float* out = dweight.f32();
  for (size_t i = 0; i < sum.size(); ++i) out[i] = static_cast<float>((accumulate ? out[i] : 0.0) + sum[i]);
}

}  // namespace

void ReferenceBackend::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, const Tensor& rstd) {
  const float* in = f32_activation(x, "rms_norm");
  const int64_t width = x.cols();
  for (int64_t n = 0; n < x.rows(); ++n)
    rstd.f32()[n] = norm_row(in + n * width, weight.f32(), width, eps, y.f32() + n * width);
}

void ReferenceBackend::add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight, float eps,
                                    const Tensor& sum, const Tensor& y, const Tensor& rstd) {
  add(x, branch, sum);
  rms_norm(sum, weight, eps, y, rstd);
}

void ReferenceBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                         const Tensor& dresidual, bool accumulate, const Tensor& dx,
                                         const Tensor& dweight, const Tensor&) {
  const float* g = f32_activation(dy, "rms_norm_backward");
  const int64_t width = x.cols();
  std::vector<double> gradient(static_cast<size_t>(width), 0.0);
  for (int64_t n = 0; n < x.rows(); ++n)
    norm_row_backward(g + n * width, x.f32() + n * width, weight.f32(), rstd.f32()[n],
                      dresidual ? dresidual.f32() + n * width : nullptr, width, dx.f32() + n * width, gradient.data());
  store_gradient(gradient, accumulate, dweight);
}

void ReferenceBackend::head_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& positions, int64_t head_dim,
                                      float eps, double theta, const Tensor& y, const Tensor& rstd) {
  const float* in = f32_activation(x, "head_norm_rope");
  const int64_t heads = x.cols() / head_dim, half = head_dim / 2;
  const std::vector<float> frequency = rope_frequencies(head_dim, theta);
  for (int64_t n = 0; n < x.rows(); ++n)
    for (int64_t h = 0; h < heads; ++h) {
      float* out = y.f32() + (n * heads + h) * head_dim;
      rstd.f32()[n * heads + h] = norm_row(in + (n * heads + h) * head_dim, weight.f32(), head_dim, eps, out);
      for (int64_t i = 0; i < half; ++i) {
        const RopeAngle a = rope_angle(positions.i32()[n], frequency[static_cast<size_t>(i)]);
        const float low = out[i], high = out[i + half];
        out[i] = low * a.cos - high * a.sin;
        out[i + half] = high * a.cos + low * a.sin;
      }
    }
}

void ReferenceBackend::head_norm_rope_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                               const Tensor& rstd, const Tensor& positions, int64_t head_dim,
                                               double theta, bool accumulate, const Tensor& dx, const Tensor& dweight,
                                               const Tensor&) {
  const float* g = f32_activation(dy, "head_norm_rope_backward");
  const int64_t heads = x.cols() / head_dim, half = head_dim / 2;
  const std::vector<float> frequency = rope_frequencies(head_dim, theta);
  std::vector<double> gradient(static_cast<size_t>(head_dim), 0.0);
  std::vector<float> unrotated(static_cast<size_t>(head_dim));
  for (int64_t n = 0; n < x.rows(); ++n)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = (n * heads + h) * head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const RopeAngle a = rope_angle(positions.i32()[n], frequency[static_cast<size_t>(i)]);
        const float low = g[at + i], high = g[at + i + half];
        unrotated[static_cast<size_t>(i)] = low * a.cos + high * a.sin;
        unrotated[static_cast<size_t>(i + half)] = high * a.cos - low * a.sin;
      }
      norm_row_backward(unrotated.data(), x.f32() + at, weight.f32(), rstd.f32()[n * heads + h], nullptr, head_dim,
                        dx.f32() + at, gradient.data());
    }
  store_gradient(gradient, accumulate, dweight);
}

}  // namespace q4
