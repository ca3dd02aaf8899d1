// Causal attention with grouped queries, and its gradient.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/reference/reference_backend.h"

namespace q4 {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double{a[i]} * b[i];
  return sum;
}

// Keys [begin, end) that query t of sequence b sees.
struct Visible {
  int64_t begin, end;
};
Visible visible(const Tensor& attend_from, int64_t past, int64_t query, int64_t t, int64_t keys) {
  const int64_t begin = attend_from ? std::max<int64_t>(0, attend_from.i32()[query]) : 0;
  return {begin, std::min(past + t + 1, keys)};
}

}  // namespace

void ReferenceBackend::attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& attend_from,
                                 const Tensor& past, const AttentionShape& shape, const Tensor& out, const Tensor& lse,
                                 const Tensor&) {
  const float *queries = f32_activation(q, "attention"), *keys = f32_activation(k, "attention"), *values = v.f32();
  if (shape.batch == 0) return;
  const int64_t steps = q.rows() / shape.batch, capacity = k.rows() / shape.batch, head_dim = shape.head_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  std::vector<double> score(static_cast<size_t>(capacity));
  std::vector<double> sum(static_cast<size_t>(head_dim));
  for (int64_t b = 0; b < shape.batch; ++b)
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t query = b * steps + t, at = (query * shape.heads + h) * head_dim;
        const Visible seen = visible(attend_from, past ? past.i32()[b] : 0, query, t, capacity);
        // Key or value j of this sequence, for this query's head.
        const auto row = [&](int64_t j) { return ((b * capacity + j) * shape.kv_heads + h / group) * head_dim; };
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        for (int64_t j = seen.begin; j < seen.end; ++j) {
          const double s = scale * dot(queries + at, keys + row(j), head_dim);
          score[static_cast<size_t>(j)] = s;
          largest = s > largest || s != s ? s : largest;
        }
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t j = seen.begin; j < seen.end; ++j) {
          const double p = std::exp(score[static_cast<size_t>(j)] - largest);
          total += p;
          for (int64_t d = 0; d < head_dim; ++d) sum[static_cast<size_t>(d)] += p * values[row(j) + d];
        }
        for (int64_t d = 0; d < head_dim; ++d)
          out.f32()[at + d] = seen.begin < seen.end ? static_cast<float>(sum[static_cast<size_t>(d)] / total) : 0.0f;
        lse.f32()[query * shape.heads + h] = static_cast<float>(largest + std::log(total));
      }
}

void ReferenceBackend::attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                          const Tensor& out, const Tensor& lse, const Tensor& attend_from,
                                          const AttentionShape& shape, const Tensor& dq, const Tensor& dk,
                                          const Tensor& dv, const Tensor&) {
  const float *g = f32_activation(dout, "attention_backward"), *queries = q.f32(), *keys = k.f32(), *values = v.f32();
  if (shape.batch == 0) return;
  const int64_t steps = q.rows() / shape.batch, head_dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  std::vector<double> key_gradient(static_cast<size_t>(k.elements()), 0.0), value_gradient(key_gradient);
  std::vector<double> query_gradient(static_cast<size_t>(head_dim));
  for (int64_t b = 0; b < shape.batch; ++b)
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t query = b * steps + t, at = (query * shape.heads + h) * head_dim;
        const Visible seen = visible(attend_from, 0, query, t, steps);
        const double delta = dot(g + at, out.f32() + at, head_dim);  // Σ_j p·dp
        std::fill(query_gradient.begin(), query_gradient.end(), 0.0);
        for (int64_t j = seen.begin; j < seen.end; ++j) {
          const int64_t row = ((b * steps + j) * shape.kv_heads + h / group) * head_dim;
          const double score = scale * dot(queries + at, keys + row, head_dim);
          const double p = std::exp(score - lse.f32()[query * shape.heads + h]);
          const double ds = p * (dot(g + at, values + row, head_dim) - delta) * scale;
          for (int64_t d = 0; d < head_dim; ++d) {
            value_gradient[static_cast<size_t>(row + d)] += p * g[at + d];
            key_gradient[static_cast<size_t>(row + d)] += ds * queries[at + d];
            query_gradient[static_cast<size_t>(d)] += ds * keys[row + d];
          }
        }
        for (int64_t d = 0; d < head_dim; ++d)
          dq.f32()[at + d] = static_cast<float>(query_gradient[static_cast<size_t>(d)]);
      }
  for (int64_t i = 0; i < k.elements(); ++i) {
    dk.f32()[i] = static_cast<float>(key_gradient[static_cast<size_t>(i)]);
    dv.f32()[i] = static_cast<float>(value_gradient[static_cast<size_t>(i)]);
  }
}

}  // namespace q4
