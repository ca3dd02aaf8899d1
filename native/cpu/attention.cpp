// Causal attention with grouped queries: blocks of queries over blocks of keys with a running softmax (as FlashAttention,
// Dao et al. 2022), and a direct path for the few queries of a decode step.
#include <cmath>
#include <limits>

#include "cpu/attention_rows.h"
#include "cpu/block_product.h"
#include "cpu/fast_backend.h"

namespace q4 {
namespace {

// Up to this many queries a sequence go through the direct path.
constexpr int64_t kDirectSteps = 4;

struct Buffers {
  float *q, *k, *v, *scores, *weights, *out, *largest;
  double* total;
};

Buffers carve(Workspace& workspace, const BlockProduct& product, int64_t dim) {
  const int64_t sizes[] = {product.left_size(kQueryBlock, dim),
                           product.right_size(kKeyBlock, dim),
                           product.right_size(dim, kKeyBlock),
                           kQueryBlock * kKeyBlock,
                           product.left_size(kQueryBlock, kKeyBlock),
                           kQueryBlock * dim,
                           kQueryBlock,
                           2 * kQueryBlock};
  int64_t offset[9] = {};
  for (int i = 0; i < 8; ++i) offset[i + 1] = offset[i] + (sizes[i] + 15) / 16 * 16;
  float* base = workspace.floats(offset[8]);
  return {base + offset[0], base + offset[1], base + offset[2], base + offset[3],
          base + offset[4], base + offset[5], base + offset[6], reinterpret_cast<double*>(base + offset[7])};
}

}  // namespace

void FastBackend::attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& attend_from,
                            const Tensor& past, const AttentionShape& shape, const Tensor& out, const Tensor& lse,
                            const Tensor&) {
  const float *queries = f32_activation(q, "attention"), *keys = f32_activation(k, "attention"), *values = v.f32();
  if (shape.batch == 0 || q.rows() == 0) return;
  const AttentionLayout layout(shape, q, k);
  const int64_t dim = layout.dim, heads = layout.heads, steps = layout.steps, stride = layout.kv_stride();
  const float infinity = std::numeric_limits<float>::infinity();

  if (steps <= kDirectSteps) {
    pool_.run(layout.batch * steps * heads, [&](int64_t task, int worker) {
      const int64_t h = task % heads, t = task / heads % steps, b = task / heads / steps, at = layout.q_offset(b, t, h);
      const KeyRange range = visible_keys(layout, attend_from, past, b, t);
      const int64_t count = range.end - range.begin;
      const int64_t first = (b * layout.capacity + range.begin) * stride + h / layout.group * dim;
      float* score = per_thread_[static_cast<size_t>(worker)].floats(layout.capacity);
      kernels_.dot_rows(queries + at, keys + first, stride, count, dim, layout.scale, score);
      const float largest = kernels_.row_max(score, count);
      const double total = count > 0 ? kernels_.exp_row(score, count, 1.0f, largest, score) : 0.0;
      kernels_.weigh_rows(score, values + first, stride, count, dim, count > 0 ? static_cast<float>(1.0 / total) : 0.0f,
                          out.f32() + at);
      lse.f32()[(b * steps + t) * heads + h] = count > 0 ? static_cast<float>(largest + std::log(total)) : -infinity;
    });
    return;
  }

  const BlockProduct product(kernels_);
  const MatrixView key_view{DType::f32, keys, nullptr, stride}, value_view{DType::f32, values, nullptr, stride};
  const int64_t blocks = ceil_div(steps, kQueryBlock);
  pool_.run(layout.batch * heads * blocks, [&](int64_t task, int worker) {
    // Later blocks see more keys: they are handed out first.
    const int64_t b = task % (layout.batch * heads) / heads, h = task % heads,
                  block = blocks - 1 - task / (layout.batch * heads);
    const int64_t t0 = block * kQueryBlock, rows = std::min(kQueryBlock, steps - t0);
    const Buffers buffer = carve(per_thread_[static_cast<size_t>(worker)], product, dim);
    const int64_t col = h / layout.group * dim;
    KeyRange ranges[kQueryBlock], all{layout.capacity, 0};
    for (int64_t i = 0; i < rows; ++i) {
      ranges[i] = visible_keys(layout, attend_from, past, b, t0 + i);
      all = {std::min(all.begin, ranges[i].begin), std::max(all.end, ranges[i].end)};
      buffer.largest[i] = -infinity;
      buffer.total[i] = 0;
    }
    std::fill(buffer.out, buffer.out + rows * dim, 0.0f);
    product.pack_left(queries + layout.q_offset(b, t0, h), layout.q_stride(), false, rows, dim, buffer.q);

    for (int64_t j0 = all.begin / kKeyBlock * kKeyBlock; j0 < all.end; j0 += kKeyBlock) {
      const int64_t count = std::min(kKeyBlock, all.end - j0), row = b * layout.capacity + j0;
      product.pack_right_transposed(key_view, row, count, col, dim, buffer.k);
      product.pack_right(value_view, row, count, col, dim, buffer.v);
      product.multiply(rows, count, dim, buffer.q, buffer.k, layout.scale, false, buffer.scores, kKeyBlock);
      for (int64_t i = 0; i < rows; ++i) {
        float* score = buffer.scores + i * kKeyBlock;
        const int64_t low = std::clamp<int64_t>(ranges[i].begin - j0, 0, count);
        const int64_t high = std::clamp<int64_t>(ranges[i].end - j0, low, count);
        std::fill(score, score + low, 0.0f);
        std::fill(score + high, score + count, 0.0f);
        if (low == high) continue;
        const float here = kernels_.row_max(score + low, high - low), before = buffer.largest[i];
        const float largest = here > before || here != here ? here : before;
        const double sum = kernels_.exp_row(score + low, high - low, 1.0f, largest, score + low);
        const float shrink = std::exp(before - largest);
        buffer.largest[i] = largest;
        buffer.total[i] = buffer.total[i] * shrink + sum;
        if (shrink != 1.0f) kernels_.scale_row(buffer.out + i * dim, shrink, dim);
      }
      product.pack_left(buffer.scores, kKeyBlock, false, rows, count, buffer.weights);
      product.multiply(rows, dim, count, buffer.weights, buffer.v, 1.0f, true, buffer.out, dim);
    }

    for (int64_t i = 0; i < rows; ++i) {
      const double total = buffer.total[i];
      float* row = buffer.out + i * dim;
      kernels_.scale_row(row, total == 0 ? 0.0f : static_cast<float>(1.0 / total), dim);
      std::copy(row, row + dim, out.f32() + layout.q_offset(b, t0 + i, h));
      lse.f32()[(b * steps + t0 + i) * heads + h] = static_cast<float>(buffer.largest[i] + std::log(total));
    }
  });
}

}  // namespace q4
