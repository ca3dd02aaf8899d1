// Indexing shared by attention and its gradient: which keys a query sees, and where rows lie.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/backend.h"

namespace q4 {

// Blocks of queries and keys. Key blocks start at multiples of kKeyBlock from key 0, whatever the cache's capacity, so
// a cache gives the same bits as the keys themselves.
constexpr int64_t kQueryBlock = 112, kKeyBlock = 128;

struct AttentionLayout {
  int64_t batch, heads, kv_heads, dim, group, steps, capacity;
  float scale;
  AttentionLayout(const AttentionShape& shape, const Tensor& q, const Tensor& k)
      : batch(shape.batch),
        heads(shape.heads),
        kv_heads(shape.kv_heads),
        dim(shape.head_dim),
        group(shape.heads / shape.kv_heads),
        steps(q.rows() / shape.batch),
        capacity(k.rows() / shape.batch),
        scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)))) {}
  // Floats from one token's row to the next.
  int64_t q_stride() const { return heads * dim; }
  int64_t kv_stride() const { return kv_heads * dim; }
  int64_t q_offset(int64_t b, int64_t t, int64_t h) const { return ((b * steps + t) * heads + h) * dim; }
};

// Keys [begin, end) that query t of sequence b sees.
struct KeyRange {
  int64_t begin, end;
};
inline KeyRange visible_keys(const AttentionLayout& layout, const Tensor& attend_from, const Tensor& past, int64_t b,
                             int64_t t) {
  const int64_t end = std::min((past ? past.i32()[b] : 0) + t + 1, layout.capacity);
  const int64_t begin = attend_from ? std::max<int64_t>(0, attend_from.i32()[b * layout.steps + t]) : 0;
  return {std::min(begin, end), end};
}

}  // namespace q4
