// The gradient of attention: one pass for the queries, one for keys and values, each recomputing the scores from the
// stored log-sum-exp. Every output belongs to one task, so nothing is summed across threads.
#include <cmath>

#include "cpu/attention_rows.h"
#include "cpu/block_product.h"
#include "cpu/fast_backend.h"

namespace q4 {
namespace {

// Buffers of one task; q and dout are left operands, the rest as named.
struct Buffers {
  float *q, *dout, *k, *v, *right, *scores, *dweights, *weights, *left, *delta;
};

Buffers carve(Workspace& workspace, const BlockProduct& product, int64_t dim) {
  const int64_t left = product.left_size(kQueryBlock, dim), square = kQueryBlock * kKeyBlock;
  const int64_t sizes[] = {left,
                           left,
                           product.right_size(kKeyBlock, dim),
                           product.right_size(kKeyBlock, dim),
                           product.right_size(dim, kKeyBlock),
                           square,
                           square,
                           square,
                           product.left_size(kKeyBlock, kKeyBlock),
                           kQueryBlock};
  int64_t offset[11] = {};
  for (int i = 0; i < 10; ++i) offset[i + 1] = offset[i] + (sizes[i] + 15) / 16 * 16;
  float* base = workspace.floats(offset[10]);
  return {base + offset[0], base + offset[1], base + offset[2], base + offset[3], base + offset[4],
          base + offset[5], base + offset[6], base + offset[7], base + offset[8], base + offset[9]};
}

struct Operands {
  const float *dout, *q, *out, *lse;
  MatrixView keys, values, queries, douts;
};

}  // namespace

void FastBackend::attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& out, const Tensor& lse, const Tensor& attend_from,
                                     const AttentionShape& shape, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                     const Tensor&) {
  const float* g = f32_activation(dout, "attention_backward");
  if (shape.batch == 0 || q.rows() == 0) return;
  const AttentionLayout layout(shape, q, k);
  const int64_t dim = layout.dim, heads = layout.heads, steps = layout.steps, q_stride = layout.q_stride();
  const int64_t kv_stride = layout.kv_stride();
  const BlockProduct product(kernels_);
  const Operands in{g,
                    q.f32(),
                    out.f32(),
                    lse.f32(),
                    {DType::f32, k.data, nullptr, kv_stride},
                    {DType::f32, v.data, nullptr, kv_stride},
                    {DType::f32, q.data, nullptr, q_stride},
                    {DType::f32, dout.data, nullptr, q_stride}};

  // Packs queries [t0, t0 + rows) of head h and the sums Σ_j p·dp = dout·out.
  const auto load_queries = [&](const Buffers& buffer, int64_t b, int64_t h, int64_t t0, int64_t rows) {
    const int64_t at = layout.q_offset(b, t0, h);
    product.pack_left(in.q + at, q_stride, false, rows, dim, buffer.q);
    product.pack_left(in.dout + at, q_stride, false, rows, dim, buffer.dout);
    for (int64_t i = 0; i < rows; ++i)
      buffer.delta[i] = kernels_.dot(in.dout + at + i * q_stride, in.out + at + i * q_stride, dim);
  };
  // Packs keys and values [j0, j0 + count), transposed, of kv head `kv`.
  const auto load_keys = [&](const Buffers& buffer, int64_t b, int64_t kv, int64_t j0, int64_t count) {
    product.pack_right_transposed(in.keys, b * steps + j0, count, kv * dim, dim, buffer.k);
    product.pack_right_transposed(in.values, b * steps + j0, count, kv * dim, dim, buffer.v);
  };
  // scores becomes their gradient, weights the attention probabilities; both 0 where a query does not see a key.
  const auto score_gradients = [&](const Buffers& buffer, int64_t b, int64_t h, int64_t t0, int64_t rows, int64_t j0,
                                   int64_t count) {
    product.multiply(rows, count, dim, buffer.q, buffer.k, layout.scale, false, buffer.scores, kKeyBlock);
    product.multiply(rows, count, dim, buffer.dout, buffer.v, 1.0f, false, buffer.dweights, kKeyBlock);
    for (int64_t i = 0; i < rows; ++i) {
      const KeyRange range = visible_keys(layout, attend_from, Tensor{}, b, t0 + i);
      const int64_t low = std::clamp<int64_t>(range.begin - j0, 0, count);
      const int64_t high = std::clamp<int64_t>(range.end - j0, low, count);
      float *score = buffer.scores + i * kKeyBlock, *weight = buffer.weights + i * kKeyBlock;
      for (float* row : {score, weight}) {
        std::fill(row, row + low, 0.0f);
        std::fill(row + high, row + count, 0.0f);
      }
      kernels_.softmax_gradient(score + low, buffer.dweights + i * kKeyBlock + low, high - low,
                                in.lse[(b * steps + t0 + i) * heads + h], buffer.delta[i], layout.scale, weight + low);
    }
  };

  const int64_t query_blocks = ceil_div(steps, kQueryBlock), key_blocks = ceil_div(steps, kKeyBlock);
  pool_.run(layout.batch * heads * query_blocks, [&](int64_t task, int worker) {
    const int64_t h = task % heads, b = task / heads % layout.batch,
                  block = query_blocks - 1 - task / heads / layout.batch;
    const int64_t t0 = block * kQueryBlock, rows = std::min(kQueryBlock, steps - t0);
    const Buffers buffer = carve(per_thread_[static_cast<size_t>(worker)], product, dim);
    load_queries(buffer, b, h, t0, rows);
    int64_t begin = steps;
    for (int64_t i = 0; i < rows; ++i)
      begin = std::min(begin, visible_keys(layout, attend_from, Tensor{}, b, t0 + i).begin);
    const int64_t first = begin / kKeyBlock * kKeyBlock;
    for (int64_t j0 = first; j0 < t0 + rows; j0 += kKeyBlock) {
      const int64_t count = std::min(kKeyBlock, t0 + rows - j0), kv = h / layout.group;
      load_keys(buffer, b, kv, j0, count);
      score_gradients(buffer, b, h, t0, rows, j0, count);
      product.pack_left(buffer.scores, kKeyBlock, false, rows, count, buffer.left);
      product.pack_right(in.keys, b * steps + j0, count, kv * dim, dim, buffer.right);
      product.multiply(rows, dim, count, buffer.left, buffer.right, 1.0f, j0 > first,
                       dq.f32() + layout.q_offset(b, t0, h), q_stride);
    }
  });

  pool_.run(layout.batch * layout.kv_heads * key_blocks, [&](int64_t task, int worker) {
    const int64_t kv = task % layout.kv_heads, b = task / layout.kv_heads % layout.batch;
    const int64_t j0 = task / layout.kv_heads / layout.batch * kKeyBlock, count = std::min(kKeyBlock, steps - j0);
    const Buffers buffer = carve(per_thread_[static_cast<size_t>(worker)], product, dim);
    load_keys(buffer, b, kv, j0, count);
    float* dkey = dk.f32() + ((b * steps + j0) * layout.kv_heads + kv) * dim;
    float* dvalue = dv.f32() + ((b * steps + j0) * layout.kv_heads + kv) * dim;
    bool add = false;
    for (int64_t h = kv * layout.group; h < (kv + 1) * layout.group; ++h)
      for (int64_t t0 = j0 / kQueryBlock * kQueryBlock; t0 < steps; t0 += kQueryBlock, add = true) {
        const int64_t rows = std::min(kQueryBlock, steps - t0);
        load_queries(buffer, b, h, t0, rows);
        score_gradients(buffer, b, h, t0, rows, j0, count);
        product.pack_left(buffer.weights, kKeyBlock, true, count, rows, buffer.left);
        product.pack_right(in.douts, b * steps + t0, rows, h * dim, dim, buffer.right);
        product.multiply(count, dim, rows, buffer.left, buffer.right, 1.0f, add, dvalue, kv_stride);
        product.pack_left(buffer.scores, kKeyBlock, true, count, rows, buffer.left);
        product.pack_right(in.queries, b * steps + t0, rows, h * dim, dim, buffer.right);
        product.multiply(count, dim, rows, buffer.left, buffer.right, 1.0f, add, dkey, kv_stride);
      }
  });
}

}  // namespace q4
