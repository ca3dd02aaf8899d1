// The products of a projection: y = x·Wᵀ, dx = dy·W, dW = dyᵀ·x.
#include <algorithm>

#include "core/half.h"
#include "cpu/fast_backend.h"

namespace q4 {

MatrixView matrix_view(const Tensor& weight) { return {weight.dtype, weight.data, weight.scale, weight.cols()}; }

void FastBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const float* in = f32_activation(x, "linear");
  float* out = f32_activation(y, "linear");
  const int64_t rows = x.rows(), inputs = x.cols(), outputs = weight.rows();
  if (rows == 0 || outputs == 0) return;
  const MatrixView view = matrix_view(weight);
  if (rows > kMaxVectorRows) {
    gemm_.run(rows, outputs, inputs, {in, inputs, false}, {view, true}, global_factor(weight), false, out, outputs);
    return;
  }
  const int64_t size = kernels_.arranged_size(weight.dtype, inputs);
  float* arranged = shared_.floats(rows * size);
  for (int64_t n = 0; n < rows; ++n) kernels_.arrange(weight.dtype, in + n * inputs, inputs, arranged + n * size);
  // Each thread takes long runs of memory, but never so long that others wait for it: 8 pieces each, 32 KB to 1 MB.
  const int64_t row_bytes =
      std::max<int64_t>(1, weight.dtype == DType::nvfp4 ? inputs / 2 : inputs * element_bytes(weight.dtype));
  const int64_t piece = std::clamp<int64_t>(outputs * row_bytes / (8 * pool_.threads()), 32768, 1 << 20);
  const int64_t grain = std::max<int64_t>(2, piece / row_bytes / 2 * 2);
  pool_.run_ranges(outputs, grain, [&](int64_t begin, int64_t end, int) {
    kernels_.gemv(view, begin, end, arranged, rows, global_factor(weight), out, outputs);
  });
}

void FastBackend::linear_dgrad(const Tensor& dy, const Tensor& weight, bool accumulate, const Tensor& dx) {
  const float* g = f32_activation(dy, "linear_dgrad");
  float* out = f32_activation(dx, "linear_dgrad");
  const int64_t rows = dy.rows(), outputs = dy.cols(), inputs = dx.cols();
  gemm_.run(rows, inputs, outputs, {g, outputs, false}, {matrix_view(weight), false}, global_factor(weight), accumulate,
            out, inputs);
}

void FastBackend::linear_wgrad(const Tensor& dy, const Tensor& x, bool accumulate, const Tensor& dweight) {
  const float *g = f32_activation(dy, "linear_wgrad"), *in = f32_activation(x, "linear_wgrad");
  const int64_t rows = dy.rows(), outputs = dy.cols(), inputs = x.cols();
  const RightOperand right{{DType::f32, in, nullptr, inputs}, false};
  if (dweight.dtype == DType::f32) {
    gemm_.run(outputs, inputs, rows, {g, outputs, true}, right, 1.0f, accumulate, dweight.f32(), inputs);
    return;
  }
  // bf16 gradients: in fp32 for a block of rows at a time, rounded once.
  constexpr int64_t kBlockRows = 512;
  for (int64_t first = 0; first < outputs; first += kBlockRows) {
    const int64_t count = std::min(kBlockRows, outputs - first);
    float* block = shared_.floats(count * inputs);
    uint16_t* out = dweight.as<uint16_t>() + first * inputs;
    if (accumulate) kernels_.convert(DType::bf16, out, DType::f32, block, count * inputs);
    gemm_.run(count, inputs, rows, {g + first, outputs, true}, right, 1.0f, accumulate, block, inputs);
    pool_.run_ranges(count, 16, [&](int64_t begin, int64_t end, int) {
      kernels_.convert(DType::f32, block + begin * inputs, DType::bf16, out + begin * inputs, (end - begin) * inputs);
    });
  }
}

}  // namespace q4
