// The three products of a projection: y = x·Wᵀ, dx = dy·W, dW = dyᵀ·x.
#include "cpu/reference/element.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

void ReferenceBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const float* in = f32_activation(x, "linear");
  float* out = f32_activation(y, "linear");
  const int64_t rows = x.rows(), inputs = x.cols(), outputs = weight.rows();
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t o = 0; o < outputs; ++o) {
      double sum = 0;
      for (int64_t k = 0; k < inputs; ++k) sum += double{in[n * inputs + k]} * element(weight, o * inputs + k);
      out[n * outputs + o] = static_cast<float>(sum);
    }
}

void ReferenceBackend::linear_dgrad(const Tensor& dy, const Tensor& weight, bool accumulate, const Tensor& dx) {
  const float* g = f32_activation(dy, "linear_dgrad");
  float* out = f32_activation(dx, "linear_dgrad");
  const int64_t rows = dy.rows(), outputs = dy.cols(), inputs = dx.cols();
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t k = 0; k < inputs; ++k) {
      double sum = accumulate ? out[n * inputs + k] : 0.0;
      for (int64_t o = 0; o < outputs; ++o) sum += double{g[n * outputs + o]} * element(weight, o * inputs + k);
      out[n * inputs + k] = static_cast<float>(sum);
    }
}

void ReferenceBackend::linear_wgrad(const Tensor& dy, const Tensor& x, bool accumulate, const Tensor& dweight) {
  const float *g = f32_activation(dy, "linear_wgrad"), *in = f32_activation(x, "linear_wgrad");
  const int64_t rows = dy.rows(), outputs = dy.cols(), inputs = x.cols();
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t k = 0; k < inputs; ++k) {
      double sum = accumulate ? element(dweight, o * inputs + k) : 0.0;
      for (int64_t n = 0; n < rows; ++n) sum += double{g[n * outputs + o]} * in[n * inputs + k];
      set_element(dweight, o * inputs + k, static_cast<float>(sum));
    }
}

}  // namespace q4
