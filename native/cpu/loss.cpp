// Linear cross-entropy over chunks of rows.
#include <cmath>
#include <vector>

#include "cpu/fast_backend.h"
#include "cpu/loss_chunks.h"

namespace q4 {

void FastBackend::linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& scale,
                                       bool accumulate, const Tensor& loss, const Tensor& dx, const Tensor& dweight,
                                       const Tensor& scratch) {
  f32_activation(x, "linear_cross_entropy");
  const int64_t vocabulary = weight.rows();
  const float factor = *scale.f32();
  double sum = 0;
  std::vector<double> row_loss;
  for_each_chunk(x, labels, dx, scratch, [&](const LossChunk& chunk) {
    const int64_t rows = chunk.x.rows();
    for (int64_t n = 0; n < rows; ++n) check_label(chunk.labels[n], vocabulary);
    linear(chunk.x, weight, chunk.logits);
    row_loss.assign(static_cast<size_t>(rows), 0.0);
    pool_.run(rows, [&](int64_t n, int) {
      float* logit = chunk.logits.f32() + n * vocabulary;
      const int32_t label = chunk.labels[n];
      const bool gradient = dx || dweight;
      if (label < 0) {
        if (gradient) std::fill(logit, logit + vocabulary, 0.0f);
        return;
      }
      const float largest = kernels_.row_max(logit, vocabulary), own = logit[label];
      if (!gradient) {
        row_loss[static_cast<size_t>(n)] = std::log(kernels_.exp_sum(logit, vocabulary, largest, 1.0f)) + largest - own;
        return;
      }
      const double total = kernels_.exp_row(logit, vocabulary, 1.0f, largest, logit);
      row_loss[static_cast<size_t>(n)] = std::log(total) + largest - own;
      // In place: the gradient of the logits.
      const float p = static_cast<float>((logit[label] / total - 1.0) * factor);
      kernels_.scale_row(logit, static_cast<float>(factor / total), vocabulary);
      logit[label] = p;
    });
    for (const double value : row_loss) sum += value;
    if (dx) linear_dgrad(chunk.logits, weight, false, chunk.dx);
    if (dweight) linear_wgrad(chunk.logits, chunk.x, accumulate || chunk.first_row > 0, dweight);
  });
  if (x.rows() == 0 && dweight && !accumulate) fill(0, dweight);
  *loss.f32() = static_cast<float>((accumulate ? *loss.f32() : 0.0) + sum * factor);
}

}  // namespace q4
