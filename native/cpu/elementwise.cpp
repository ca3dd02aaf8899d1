// embedding, swiglu, add and their gradients.
#include <algorithm>
#include <cstring>

#include "cpu/fast_backend.h"

namespace q4 {
namespace {
// Elements a task takes: enough to outweigh handing it out.
constexpr int64_t kGrain = 16384;
}  // namespace

void FastBackend::embedding(const Tensor& table, const Tensor& ids, const Tensor& y) {
  float* out = f32_activation(y, "embedding");
  check_ids(ids, table.rows(), "embedding");
  const int64_t width = y.cols(), bytes = width * element_bytes(table.dtype);
  pool_.run_ranges(
      y.rows(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; ++n)
          kernels_.convert(table.dtype, table.as<char>() + ids.i32()[n] * bytes, DType::f32, out + n * width, width);
      });
}

void FastBackend::embedding_backward(const Tensor& dy, const Tensor& ids, bool accumulate, const Tensor& dtable) {
  if (dtable.dtype != DType::f32) return ReferenceBackend::embedding_backward(dy, ids, accumulate, dtable);
  const float* g = f32_activation(dy, "embedding_backward");
  check_ids(ids, dtable.rows(), "embedding_backward");
  const int64_t width = dtable.cols(), rows = dy.rows();
  float* out = dtable.f32();
  if (!accumulate) fill(0, dtable);
  // A task owns some columns and goes through the tokens in order.
  pool_.run_ranges(width, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = 0; n < rows; ++n) {
      float* to = out + ids.i32()[n] * width + begin;
      kernels_.add(to, g + n * width + begin, end - begin, to);
    }
  });
}

void FastBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) {
  const float *g = f32_activation(gate, "swiglu"), *u = f32_activation(up, "swiglu");
  pool_.run_ranges(y.elements(), kGrain, [&](int64_t begin, int64_t end, int) {
    kernels_.swiglu(g + begin, u + begin, end - begin, y.f32() + begin);
  });
}

void FastBackend::swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                  const Tensor& dup) {
  const float *d = f32_activation(dy, "swiglu_backward"), *g = gate.f32(), *u = up.f32();
  pool_.run_ranges(dy.elements(), kGrain, [&](int64_t begin, int64_t end, int) {
    kernels_.swiglu_backward(d + begin, g + begin, u + begin, end - begin, dgate.f32() + begin, dup.f32() + begin);
  });
}

void FastBackend::add(const Tensor& a, const Tensor& b, const Tensor& y) {
  const float *p = f32_activation(a, "add"), *q = f32_activation(b, "add");
  float* out = f32_activation(y, "add");
  pool_.run_ranges(y.elements(), kGrain, [&](int64_t begin, int64_t end, int) {
    kernels_.add(p + begin, q + begin, end - begin, out + begin);
  });
}

}  // namespace q4
