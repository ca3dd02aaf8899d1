// Linear cross-entropy over chunks of rows, and the L1 debugging loss.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/loss_chunks.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

void ReferenceBackend::linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels,
                                            const Tensor& scale, bool accumulate, const Tensor& loss, const Tensor& dx,
                                            const Tensor& dweight, const Tensor& scratch) {
  f32_activation(x, "linear_cross_entropy");
  const int64_t vocabulary = weight.rows();
  const float factor = *scale.f32();
  double sum = 0;
  for_each_chunk(x, labels, dx, scratch, [&](const LossChunk& chunk) {
    linear(chunk.x, weight, chunk.logits);
    for (int64_t n = 0; n < chunk.x.rows(); ++n) {
      float* logit = chunk.logits.f32() + n * vocabulary;
      const int32_t label = chunk.labels[n];
      check_label(label, vocabulary);
      float largest = logit[0];
      for (int64_t c = 1; c < vocabulary; ++c) largest = std::max(largest, logit[c]);
      double total = 0;
      for (int64_t c = 0; c < vocabulary; ++c) total += std::exp(double{logit[c]} - largest);
      const double lse = largest + std::log(total);
      if (label >= 0) sum += lse - logit[label];
      if (!dx && !dweight) continue;
      // In place: the gradient of the logits.
      for (int64_t c = 0; c < vocabulary; ++c) {
        const double p = std::exp(double{logit[c]} - lse) - (c == label ? 1.0 : 0.0);
        logit[c] = label >= 0 ? static_cast<float>(p * factor) : 0.0f;
      }
    }
    if (dx) linear_dgrad(chunk.logits, weight, false, chunk.dx);
    if (dweight) linear_wgrad(chunk.logits, chunk.x, accumulate || chunk.first_row > 0, dweight);
  });
  if (x.rows() == 0 && dweight && !accumulate) fill(0, dweight);
  *loss.f32() = static_cast<float>((accumulate ? *loss.f32() : 0.0) + sum * factor);
}

void ReferenceBackend::l1_loss(const Tensor& x, const Tensor& target, const Tensor& scale, bool accumulate,
                               const Tensor& loss, const Tensor& dx) {
  const float *in = f32_activation(x, "l1_loss"), *goal = target.f32(), factor = *scale.f32();
  double sum = 0;
  for (int64_t i = 0; i < x.elements(); ++i) {
    const float difference = in[i] - goal[i];
    sum += std::fabs(double{in[i]} - goal[i]);
    // A NaN difference keeps its NaN.
    if (dx) dx.f32()[i] = difference > 0 ? factor : difference < 0 ? -factor : difference * factor;
  }
  *loss.f32() = static_cast<float>((accumulate ? *loss.f32() : 0.0) + sum * factor);
}

}  // namespace q4
