// Gradient statistics and AdamW.
#include <cmath>

#include "core/philox.h"
#include "cpu/reference/element.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

void ReferenceBackend::sum_squares(const Tensor& x, int64_t slot, const Tensor& partials) {
  double sum = 0;
  for (int64_t i = 0; i < x.elements(); ++i) {
    const double value = element(x, i);
    sum += value * value;
  }
  partials.f32()[slot] = static_cast<float>(sum);
}

void ReferenceBackend::grad_stats(const Tensor& partials, const Tensor& loss, float max_norm, const Tensor& stats) {
  double sum = 0;
  for (int64_t i = 0; i < partials.elements(); ++i) sum += partials.f32()[i];
  const float norm = static_cast<float>(std::sqrt(sum)), loss_value = *loss.f32();
  const float coefficient = max_norm / (norm + 1e-6f);
  float* out = stats.f32();
  out[0] = norm;
  out[1] = max_norm == 0 || coefficient > 1 ? 1.0f : coefficient;
  out[2] = std::isfinite(norm) && std::isfinite(loss_value) ? 1.0f : 0.0f;
  out[3] = loss_value;
}

void ReferenceBackend::adamw(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng,
                             bool decay, int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v) {
  const float *s = stats.f32(), *h = hyper.f32();
  if (s[2] == 0) return;
  const float clip = s[1], lr = h[0], beta1 = h[1], beta2 = h[2], eps = h[3], shrink = decay ? lr * h[4] : 0.0f;
  const float correction1 = h[5], correction2 = h[6];
  for (int64_t i = 0; i < master.elements(); ++i) {
    const float g = element(grad, i) * clip;
    const float m_i = beta1 * m.f32()[i] + (1.0f - beta1) * g;
    const float v_i = beta2 * v.f32()[i] + (1.0f - beta2) * (g * g);
    float w = element(master, i);
    w = w - shrink * w;
    w = w - lr * (m_i / correction1) / (std::sqrt(v_i / correction2) + eps);
    m.f32()[i] = m_i;
    v.f32()[i] = v_i;
    if (master.dtype == DType::bf16) {
      const auto* seed = rng.as<uint32_t>();
      const Philox4 draw = philox_group(seed[0], seed[1], Draw::rounding, static_cast<uint32_t>(stream), seed[2],
                                        static_cast<uint64_t>(i / 4));
      master.as<uint16_t>()[i] = f32_to_bf16_stochastic(w, draw.word[i % 4]);
    } else {
      master.f32()[i] = w;
    }
  }
}

void ReferenceBackend::amax(const Tensor& x, int64_t slot, const Tensor& out) {
  float largest = 0;
  for (int64_t i = 0; i < x.elements(); ++i) largest = amax_step(largest, element(x, i));
  out.f32()[slot] = largest;
}

void ReferenceBackend::adamw_amax(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng,
                                  bool decay, int64_t stream, int64_t slot, const Tensor& master, const Tensor& m,
                                  const Tensor& v, const Tensor& out) {
  adamw(grad, stats, hyper, rng, decay, stream, master, m, v);
  amax(master, slot, out);
}

}  // namespace q4
