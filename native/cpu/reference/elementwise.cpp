// embedding, swiglu, add, gather_rows, kv_append and their gradients.
#include <cmath>
#include <vector>

#include "cpu/reference/element.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

void ReferenceBackend::embedding(const Tensor& table, const Tensor& ids, const Tensor& y) {
  float* out = f32_activation(y, "embedding");
  const int64_t width = y.cols();
  check_ids(ids, table.rows(), "embedding");
  for (int64_t n = 0; n < y.rows(); ++n)
    for (int64_t c = 0; c < width; ++c) out[n * width + c] = element(table, ids.i32()[n] * width + c);
}

void ReferenceBackend::embedding_backward(const Tensor& dy, const Tensor& ids, bool accumulate, const Tensor& dtable) {
  const float* g = f32_activation(dy, "embedding_backward");
  const int64_t width = dtable.cols();
  check_ids(ids, dtable.rows(), "embedding_backward");
  // Summed in fp32 and rounded once, whatever the table's dtype.
  std::vector<float> sum(static_cast<size_t>(dtable.elements()), 0.0f);
  if (accumulate)
    for (int64_t i = 0; i < dtable.elements(); ++i) sum[static_cast<size_t>(i)] = element(dtable, i);
  for (int64_t n = 0; n < dy.rows(); ++n)
    for (int64_t c = 0; c < width; ++c) sum[static_cast<size_t>(ids.i32()[n] * width + c)] += g[n * width + c];
  for (int64_t i = 0; i < dtable.elements(); ++i) set_element(dtable, i, sum[static_cast<size_t>(i)]);
}

void ReferenceBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) {
  const float *g = f32_activation(gate, "swiglu"), *u = f32_activation(up, "swiglu");
  for (int64_t i = 0; i < y.elements(); ++i) y.f32()[i] = g[i] / (1.0f + std::exp(-g[i])) * u[i];
}

void ReferenceBackend::swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                       const Tensor& dup) {
  const float *d = f32_activation(dy, "swiglu_backward"), *g = gate.f32(), *u = up.f32();
  for (int64_t i = 0; i < dy.elements(); ++i) {
    const float d_i = d[i];  // dgate may lie over dy
    const float sigmoid = 1.0f / (1.0f + std::exp(-g[i]));
    dup.f32()[i] = d_i * g[i] * sigmoid;
    dgate.f32()[i] = d_i * u[i] * sigmoid * (1.0f + g[i] * (1.0f - sigmoid));
  }
}

void ReferenceBackend::add(const Tensor& a, const Tensor& b, const Tensor& y) {
  const float *p = f32_activation(a, "add"), *q = f32_activation(b, "add");
  float* out = f32_activation(y, "add");
  for (int64_t i = 0; i < y.elements(); ++i) out[i] = p[i] + q[i];
}

void ReferenceBackend::gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y) {
  const float* in = f32_activation(x, "gather_rows");
  const int64_t width = x.cols();
  check_ids(rows, x.rows(), "gather_rows");
  for (int64_t m = 0; m < y.rows(); ++m)
    for (int64_t c = 0; c < width; ++c) y.f32()[m * width + c] = in[rows.i32()[m] * width + c];
}

void ReferenceBackend::kv_append(const Tensor& k, const Tensor& v, const Tensor& past, int64_t batch,
                                 const Tensor& k_cache, const Tensor& v_cache) {
  const float *keys = f32_activation(k, "kv_append"), *values = f32_activation(v, "kv_append");
  if (batch == 0) return;
  const int64_t width = k.cols(), steps = k.rows() / batch, capacity = k_cache.rows() / batch;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t slot = past.i32()[b] + t;
      if (slot < 0 || slot >= capacity) continue;
      const int64_t from = (b * steps + t) * width, to = (b * capacity + slot) * width;
      for (int64_t c = 0; c < width; ++c) {
        k_cache.f32()[to + c] = keys[from + c];
        v_cache.f32()[to + c] = values[from + c];
      }
    }
}

void ReferenceBackend::increment(int64_t by, int64_t max, const Tensor& x) {
  for (int64_t i = 0; i < x.elements(); ++i) {
    const int64_t next = x.i32()[i] + by;
    x.i32()[i] = static_cast<int32_t>(next < max ? next : max);
  }
}

}  // namespace q4
