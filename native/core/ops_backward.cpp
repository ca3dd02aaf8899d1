// Gradient ops: checks and calls.
#include "core/ops.h"

namespace q4 {

namespace {
unsigned same(const Tensor& tensor) { return dtype_bit(tensor.dtype); }
}  // namespace

void add_backward_ops(std::vector<OpDef>& table) {
  table.push_back(
      {"embedding_backward",
       {"dy", "ids"},
       {"dtable"},
       {"accumulate"},
       [](OpChecker& c) {
         c.in_is(0, kAct, {-1, -1});
         c.in_is(1, kI32, {c.in(0).rows()});
         c.out_is(0, kAct, {-1, c.in(0).cols()});
       },
       [](Backend& b, const OpCall& o) { b.embedding_backward(o.in[0], o.in[1], o.attrs[0] != 0, o.out[0]); }});
  table.push_back({"rms_norm_backward",
                   {"dy", "x", "weight", "rstd", "dresidual?"},
                   {"dx", "dweight?", "scratch?"},
                   {"accumulate"},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols();
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, same(c.in(0)), {n, width});
                     c.in_is(2, kF32, {width});
                     c.in_is(3, kF32, {n});
                     c.in_is(4, same(c.in(0)), {n, width});
                     c.out_is(0, same(c.in(0)), {n, width});
                     c.out_is(1, kF32, {width});
                     c.out_is(2, kF32, {-1});
                     c.require(!c.out(1) || c.out(2), "dweight needs scratch");
                   },
                   [](Backend& b, const OpCall& o) {
                     b.rms_norm_backward(o.in[0], o.in[1], o.in[2], o.in[3], o.in[4], o.attrs[0] != 0, o.out[0],
                                         o.out[1], o.out[2]);
                   }});
  table.push_back({"head_norm_rope_backward",
                   {"dy", "x", "weight", "rstd", "positions"},
                   {"dx", "dweight?", "scratch?"},
                   {"head_dim", "theta", "accumulate"},
                   [](OpChecker& c) {
                     const int64_t n = c.in(0).rows(), width = c.in(0).cols(), dim = c.count(0);
                     c.require(dim % 2 == 0 && width % dim == 0, "width must be whole heads of an even head_dim");
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, same(c.in(0)), {n, width});
                     c.in_is(2, kF32, {dim});
                     c.in_is(3, kF32, {n, width / dim});
                     c.in_is(4, kI32, {n});
                     c.out_is(0, same(c.in(0)), {n, width});
                     c.out_is(1, kF32, {dim});
                     c.out_is(2, kF32, {-1});
                     c.require(!c.out(1) || c.out(2), "dweight needs scratch");
                   },
                   [](Backend& b, const OpCall& o) {
                     b.head_norm_rope_backward(o.in[0], o.in[1], o.in[2], o.in[3], o.in[4],
                                               static_cast<int64_t>(o.attrs[0]), o.attrs[1], o.attrs[2] != 0, o.out[0],
                                               o.out[1], o.out[2]);
                   }});
  table.push_back({"linear_dgrad",
                   {"dy", "weight"},
                   {"dx"},
                   {"accumulate"},
                   [](OpChecker& c) {
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kWeight, {c.in(0).cols(), -1});
                     c.out_is(0, same(c.in(0)), {c.in(0).rows(), c.in(1).cols()});
                   },
                   [](Backend& b, const OpCall& o) { b.linear_dgrad(o.in[0], o.in[1], o.attrs[0] != 0, o.out[0]); }});
  table.push_back({"linear_wgrad",
                   {"dy", "x"},
                   {"dweight"},
                   {"accumulate"},
                   [](OpChecker& c) {
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, same(c.in(0)), {c.in(0).rows(), -1});
                     c.out_is(0, kAct, {c.in(0).cols(), c.in(1).cols()});
                   },
                   [](Backend& b, const OpCall& o) { b.linear_wgrad(o.in[0], o.in[1], o.attrs[0] != 0, o.out[0]); }});
  table.push_back({"attention_backward",
                   {"dout", "q", "k", "v", "out", "lse", "attend_from?"},
                   {"dq", "dk", "dv", "scratch?"},
                   {"batch", "heads", "kv_heads", "head_dim"},
                   [](OpChecker& c) {
                     const int64_t batch = c.count(0), heads = c.count(1), kv_heads = c.count(2), dim = c.count(3);
                     const int64_t rows = c.in(0).rows();
                     c.require(heads % kv_heads == 0, "heads must be a multiple of kv_heads");
                     c.require(rows % batch == 0, "rows must divide into the batch");
                     const unsigned act = same(c.in(0));
                     c.in_is(0, kAct, {rows, heads * dim});
                     c.in_is(1, act, {rows, heads * dim});
                     c.in_is(2, act, {rows, kv_heads * dim});
                     c.in_is(3, act, {rows, kv_heads * dim});
                     c.in_is(4, act, {rows, heads * dim});
                     c.in_is(5, kF32, {rows, heads});
                     c.in_is(6, kI32, {rows});
                     c.out_is(0, act, {rows, heads * dim});
                     c.out_is(1, act, {rows, kv_heads * dim});
                     c.out_is(2, act, {rows, kv_heads * dim});
                     c.out_is(3, kF32, {-1});
                   },
                   [](Backend& b, const OpCall& o) {
                     const AttentionShape shape{static_cast<int64_t>(o.attrs[0]), static_cast<int64_t>(o.attrs[1]),
                                                static_cast<int64_t>(o.attrs[2]), static_cast<int64_t>(o.attrs[3])};
                     b.attention_backward(o.in[0], o.in[1], o.in[2], o.in[3], o.in[4], o.in[5], o.in[6], shape,
                                          o.out[0], o.out[1], o.out[2], o.out[3]);
                   }});
  table.push_back(
      {"swiglu_backward",
       {"dy", "gate", "up"},
       {"dgate", "dup"},
       {},
       [](OpChecker& c) {
         const int64_t n = c.in(0).rows(), width = c.in(0).cols();
         c.in_is(0, kAct, {-1, -1});
         c.in_is(1, same(c.in(0)), {n, width});
         c.in_is(2, same(c.in(0)), {n, width});
         c.out_is(0, same(c.in(0)), {n, width});
         c.out_is(1, same(c.in(0)), {n, width});
       },
       [](Backend& b, const OpCall& o) { b.swiglu_backward(o.in[0], o.in[1], o.in[2], o.out[0], o.out[1]); }});
}

}  // namespace q4
