// Forward and loss ops: checks and calls.
#include "core/ops.h"

namespace q4 {

namespace {

unsigned same(const Tensor& tensor) { return dtype_bit(tensor.dtype); }

// q/out rows [batch·T, heads·D], k/v rows [batch·S, kv_heads·D]; attributes 0..3 are batch, heads, kv_heads, head_dim.
AttentionShape attention_shape(const OpCall& call) {
  return {static_cast<int64_t>(call.attrs[0]), static_cast<int64_t>(call.attrs[1]), static_cast<int64_t>(call.attrs[2]),
          static_cast<int64_t>(call.attrs[3])};
}

void check_attention(OpChecker& c) {
  const int64_t batch = c.count(0), heads = c.count(1), kv_heads = c.count(2), dim = c.count(3);
  const Tensor &q = c.in(0), &k = c.in(1);
  const int64_t rows = q.rows();
  c.require(heads % kv_heads == 0, "heads must be a multiple of kv_heads");
  c.require(rows % batch == 0 && k.rows() % batch == 0, "rows must divide into the batch");
  c.require(k.rows() >= rows, "there are fewer keys than queries");
  c.in_is(0, kAct, {rows, heads * dim});
  c.in_is(1, same(q), {k.rows(), kv_heads * dim});
  c.in_is(2, same(q), {k.rows(), kv_heads * dim});
  c.in_is(3, kI32, {rows});
  c.in_is(4, kI32, {batch});
  c.require(c.in(4) || k.rows() == rows, "a cache needs past");
  c.out_is(0, same(q), {rows, heads * dim});
  c.out_is(1, kF32, {rows, heads});
  c.out_is(2, kF32, {-1});
}

}  // namespace

void add_forward_ops(std::vector<OpDef>& table) {
  table.push_back({"embedding",
                   {"table", "ids"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     c.in_is(0, kPlain, {-1, -1});
                     c.in_is(1, kI32, {-1});
                     c.out_is(0, kAct, {c.in(1).rows(), c.in(0).cols()});
                   },
                   [](Backend& b, const OpCall& o) { b.embedding(o.in[0], o.in[1], o.out[0]); }});
  table.push_back({"rms_norm",
                   {"x", "weight"},
                   {"y", "rstd"},
                   {"eps"},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols();
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kF32, {width});
                     c.out_is(0, same(c.in(0)), {n, width});
                     c.out_is(1, kF32, {n});
                   },
                   [](Backend& b, const OpCall& o) {
                     b.rms_norm(o.in[0], o.in[1], static_cast<float>(o.attrs[0]), o.out[0], o.out[1]);
                   }});
  table.push_back({"add_rms_norm",
                   {"x", "branch", "weight"},
                   {"sum", "y", "rstd"},
                   {"eps"},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols();
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, same(c.in(0)), {n, width});
                     c.in_is(2, kF32, {width});
                     c.out_is(0, same(c.in(0)), {n, width});
                     c.out_is(1, same(c.in(0)), {n, width});
                     c.out_is(2, kF32, {n});
                   },
                   [](Backend& b, const OpCall& o) {
                     b.add_rms_norm(o.in[0], o.in[1], o.in[2], static_cast<float>(o.attrs[0]), o.out[0], o.out[1],
                                    o.out[2]);
                   }});
  table.push_back({"head_norm_rope",
                   {"x", "weight", "positions"},
                   {"y", "rstd"},
                   {"head_dim", "eps", "theta"},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols(), dim = c.count(0);
                     c.require(dim % 2 == 0 && width % dim == 0, "width must be whole heads of an even head_dim");
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kF32, {dim});
                     c.in_is(2, kI32, {n});
                     c.out_is(0, same(c.in(0)), {n, width});
                     c.out_is(1, kF32, {n, width / dim});
                   },
                   [](Backend& b, const OpCall& o) {
                     b.head_norm_rope(o.in[0], o.in[1], o.in[2], static_cast<int64_t>(o.attrs[0]),
                                      static_cast<float>(o.attrs[1]), o.attrs[2], o.out[0], o.out[1]);
                   }});
  table.push_back({"linear",
                   {"x", "weight"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kWeight, {-1, c.in(0).cols()});
                     c.out_is(0, kF32 | same(c.in(0)), {c.in(0).rows(), c.in(1).rows()});
                   },
                   [](Backend& b, const OpCall& o) { b.linear(o.in[0], o.in[1], o.out[0]); }});
  table.push_back({"attention",
                   {"q", "k", "v", "attend_from?", "past?"},
                   {"out", "lse", "scratch?"},
                   {"batch", "heads", "kv_heads", "head_dim"},
                   check_attention,
                   [](Backend& b, const OpCall& o) {
                     b.attention(o.in[0], o.in[1], o.in[2], o.in[3], o.in[4], attention_shape(o), o.out[0], o.out[1],
                                 o.out[2]);
                   }});
  table.push_back({"kv_append",
                   {"k", "v", "past"},
                   {"k_cache", "v_cache"},
                   {"batch"},
                   [](OpChecker& c) {
                     const int64_t batch = c.count(0), n = c.in(0).rows(), width = c.in(0).cols();
                     const int64_t capacity = c.out(0).rows();
                     c.require(n % batch == 0 && capacity % batch == 0, "rows must divide into the batch");
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, same(c.in(0)), {n, width});
                     c.in_is(2, kI32, {batch});
                     c.out_is(0, same(c.in(0)), {-1, width});
                     c.out_is(1, same(c.in(0)), {capacity, width});
                   },
                   [](Backend& b, const OpCall& o) {
                     b.kv_append(o.in[0], o.in[1], o.in[2], static_cast<int64_t>(o.attrs[0]), o.out[0], o.out[1]);
                   }});
  table.push_back({"swiglu",
                   {"gate", "up"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols();
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, same(c.in(0)), {n, width});
                     c.out_is(0, same(c.in(0)), {n, width});
                   },
                   [](Backend& b, const OpCall& o) { b.swiglu(o.in[0], o.in[1], o.out[0]); }});
  table.push_back({"add",
                   {"a", "b"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     const Tensor &a = c.in(0), &b = c.in(1), &y = c.out(0);
                     c.require(a.dims == b.dims && a.dims == y.dims, "shapes must be equal");
                     c.require((same(a) & kAct) && same(a) == same(b) && same(a) == same(y),
                               "dtypes must be one of f32, bf16");
                   },
                   [](Backend& b, const OpCall& o) { b.add(o.in[0], o.in[1], o.out[0]); }});
  table.push_back({"gather_rows",
                   {"x", "rows"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kI32, {-1});
                     c.out_is(0, same(c.in(0)), {c.in(1).rows(), c.in(0).cols()});
                   },
                   [](Backend& b, const OpCall& o) { b.gather_rows(o.in[0], o.in[1], o.out[0]); }});
  table.push_back({"linear_cross_entropy",
                   {"x", "weight", "labels", "scale"},
                   {"loss", "dx?", "dweight?", "scratch"},
                   {"accumulate"},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols(), vocabulary = c.in(1).rows();
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kWeight, {-1, width});
                     c.in_is(2, kI32, {n});
                     c.in_is(3, kF32, {1});
                     c.out_is(0, kF32, {1});
                     c.out_is(1, same(c.in(0)), {n, width});
                     c.out_is(2, kAct, {vocabulary, width});
                     c.out_is(3, kF32, {-1, vocabulary});
                     c.require(!c.out(2) || c.out(1), "dweight needs dx");
                   },
                   [](Backend& b, const OpCall& o) {
                     b.linear_cross_entropy(o.in[0], o.in[1], o.in[2], o.in[3], o.attrs[0] != 0, o.out[0], o.out[1],
                                            o.out[2], o.out[3]);
                   }});
  table.push_back(
      {"l1_loss",
       {"x", "target", "scale"},
       {"loss", "dx?"},
       {"accumulate"},
       [](OpChecker& c) {
         const int64_t n = c.in(0).rows(), width = c.in(0).cols();
         c.in_is(0, kAct, {-1, -1});
         c.in_is(1, kF32, {n, width});
         c.in_is(2, kF32, {1});
         c.out_is(0, kF32, {1});
         c.out_is(1, same(c.in(0)), {n, width});
       },
       [](Backend& b, const OpCall& o) { b.l1_loss(o.in[0], o.in[1], o.in[2], o.attrs[0] != 0, o.out[0], o.out[1]); }});
}

}  // namespace q4
