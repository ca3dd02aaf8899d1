// Optimizer and NVFP4 ops: checks and calls.
#include <cstdint>

#include "core/ops.h"

namespace q4 {

namespace {

unsigned same(const Tensor& tensor) { return dtype_bit(tensor.dtype); }
int64_t whole(double value) { return static_cast<int64_t>(value); }

void check_adamw(OpChecker& c) {
  const Tensor& grad = c.in(0);
  c.require(same(grad) & kAct, "grad must be f32 or bf16");
  c.in_is(1, kF32, {4});
  c.in_is(2, kF32, {8});
  c.in_is(3, kI32, {4});
  c.require(same(c.out(0)) & kAct, "master must be f32 or bf16");
  for (int i = 0; i < 3; ++i) c.require(c.out(i).dims == grad.dims, "all shapes must equal grad's");
  c.require(c.out(1).dtype == DType::f32 && c.out(2).dtype == DType::f32, "m and v must be f32");
  c.whole(1, 0, UINT32_MAX);
}

}  // namespace

void add_optimizer_ops(std::vector<OpDef>& table) {
  table.push_back({"sum_squares",
                   {"x"},
                   {"partials"},
                   {"slot"},
                   [](OpChecker& c) {
                     c.require(same(c.in(0)) & kAct, "x must be f32 or bf16");
                     c.out_is(0, kF32, {-1});
                     c.slot(0, c.out(0));
                   },
                   [](Backend& b, const OpCall& o) { b.sum_squares(o.in[0], whole(o.attrs[0]), o.out[0]); }});
  table.push_back(
      {"grad_stats",
       {"partials", "loss"},
       {"stats"},
       {"max_norm"},
       [](OpChecker& c) {
         c.in_is(0, kF32, {-1});
         c.in_is(1, kF32, {1});
         c.out_is(0, kF32, {4});
         c.require(c.attr(0) >= 0, "max_norm must not be negative");
       },
       [](Backend& b, const OpCall& o) { b.grad_stats(o.in[0], o.in[1], static_cast<float>(o.attrs[0]), o.out[0]); }});
  table.push_back({"adamw",
                   {"grad", "stats", "hyper", "rng"},
                   {"master", "m", "v"},
                   {"decay", "stream"},
                   check_adamw,
                   [](Backend& b, const OpCall& o) {
                     b.adamw(o.in[0], o.in[1], o.in[2], o.in[3], o.attrs[0] != 0, whole(o.attrs[1]), o.out[0], o.out[1],
                             o.out[2]);
                   }});
  table.push_back({"adamw_amax",
                   {"grad", "stats", "hyper", "rng"},
                   {"master", "m", "v", "amax"},
                   {"decay", "stream", "slot"},
                   [](OpChecker& c) {
                     check_adamw(c);
                     c.out_is(3, kF32, {-1});
                     c.slot(2, c.out(3));
                   },
                   [](Backend& b, const OpCall& o) {
                     b.adamw_amax(o.in[0], o.in[1], o.in[2], o.in[3], o.attrs[0] != 0, whole(o.attrs[1]),
                                  whole(o.attrs[2]), o.out[0], o.out[1], o.out[2], o.out[3]);
                   }});
  table.push_back({"amax",
                   {"x"},
                   {"out"},
                   {"slot"},
                   [](OpChecker& c) {
                     c.require(same(c.in(0)) & kPlain, "x must be a plain float tensor");
                     c.out_is(0, kF32, {-1});
                     c.slot(0, c.out(0));
                   },
                   [](Backend& b, const OpCall& o) { b.amax(o.in[0], whole(o.attrs[0]), o.out[0]); }});
  table.push_back({"quantize_nvfp4",
                   {"master", "amax?"},
                   {"weight", "changed"},
                   {"slot_begin", "slot_end", "changed_slot"},
                   [](OpChecker& c) {
                     c.in_is(0, kAct, {-1, -1});
                     c.in_is(1, kF32, {-1});
                     c.out_is(0, kNvfp4, {c.in(0).rows(), c.in(0).cols()});
                     c.out_is(1, kI32, {-1});
                     c.whole(0, 0, INT32_MAX);
                     c.whole(1, 0, INT32_MAX);
                     if (c.in(1)) {
                       c.slot(0, c.in(1));
                       c.require(c.attr(1) > c.attr(0) && c.attr(1) <= static_cast<double>(c.in(1).elements()),
                                 "slots lie outside amax");
                     }
                     c.slot(2, c.out(1));
                   },
                   [](Backend& b, const OpCall& o) {
                     b.quantize_nvfp4(o.in[0], o.in[1], {whole(o.attrs[0]), whole(o.attrs[1])}, whole(o.attrs[2]),
                                      o.out[0], o.out[1]);
                   }});
  table.push_back({"dequantize_nvfp4",
                   {"weight"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     c.in_is(0, kNvfp4, {-1, -1});
                     c.out_is(0, kAct, {c.in(0).rows(), c.in(0).cols()});
                   },
                   [](Backend& b, const OpCall& o) { b.dequantize_nvfp4(o.in[0], o.out[0]); }});
  table.push_back(
      {"count_changed",
       {"a", "b"},
       {"out"},
       {"slot"},
       [](OpChecker& c) {
         c.in_is(0, kNvfp4, {-1, -1});
         c.in_is(1, kNvfp4, {c.in(0).rows(), c.in(0).cols()});
         c.out_is(0, kI32, {-1});
         c.slot(0, c.out(0));
       },
       [](Backend& b, const OpCall& o) { b.count_changed(o.in[0], o.in[1], whole(o.attrs[0]), o.out[0]); }});
  table.push_back({"fill",
                   {},
                   {"y"},
                   {"value"},
                   [](OpChecker& c) {
                     c.require(same(c.out(0)) & (kAct | kI32), "y must be f32, bf16 or i32");
                     if (c.out(0).dtype == DType::i32) c.whole(0, INT32_MIN, INT32_MAX - 127);  // as a float it fits
                   },
                   [](Backend& b, const OpCall& o) { b.fill(static_cast<float>(o.attrs[0]), o.out[0]); }});
  table.push_back({"cast",
                   {"x"},
                   {"y"},
                   {},
                   [](OpChecker& c) {
                     c.require((same(c.in(0)) & kPlain) && (same(c.out(0)) & kPlain),
                               "x and y must be plain float tensors");
                     c.require(c.in(0).dims == c.out(0).dims, "shapes must be equal");
                   },
                   [](Backend& b, const OpCall& o) { b.cast(o.in[0], o.out[0]); }});
  table.push_back({"random_normal",
                   {},
                   {"y"},
                   {"seed_lo", "seed_hi", "stream", "std"},
                   [](OpChecker& c) {
                     c.require(c.out(0).dtype == DType::f32, "y must be f32");
                     for (int i = 0; i < 3; ++i) c.whole(i, 0, UINT32_MAX);
                   },
                   [](Backend& b, const OpCall& o) {
                     const auto lo = static_cast<uint32_t>(o.attrs[0]), hi = static_cast<uint32_t>(o.attrs[1]);
                     b.random_normal(uint64_t{hi} << 32 | lo, whole(o.attrs[2]), static_cast<float>(o.attrs[3]),
                                     o.out[0]);
                   }});
}

}  // namespace q4
