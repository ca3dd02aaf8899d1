// Sampling and the state of a decode loop: checks and calls.
#include <cstdint>

#include "core/ops.h"

namespace q4 {

void add_decode_ops(std::vector<OpDef>& table) {
  table.push_back({"sample",
                   {"logits", "sampling", "rng", "past"},
                   {"seen", "ids", "scratch?"},
                   {"greedy"},
                   [](OpChecker& c) {
                     const int64_t batch = c.in(0).rows(), vocabulary = c.in(0).cols();
                     c.in_is(0, kF32, {-1, -1});
                     c.in_is(1, kF32, {batch, 8});
                     c.in_is(2, kI32, {batch, 2});
                     c.in_is(3, kI32, {batch});
                     c.out_is(0, kU8, {batch, vocabulary});
                     c.out_is(1, kI32, {batch});
                     c.out_is(2, kF32, {-1});
                     c.whole(0, 0, 1);
                   },
                   [](Backend& b, const OpCall& o) {
                     b.sample(o.in[0], o.in[1], o.in[2], o.in[3], o.attrs[0] != 0, o.out[0], o.out[1], o.out[2]);
                   }});
  table.push_back({"increment",
                   {},
                   {"x"},
                   {"by", "max"},
                   [](OpChecker& c) {
                     c.require(c.out(0).dtype == DType::i32, "x must be i32");
                     c.whole(0, INT32_MIN, INT32_MAX);
                     c.whole(1, INT32_MIN, INT32_MAX);
                   },
                   [](Backend& b, const OpCall& o) {
                     b.increment(static_cast<int64_t>(o.attrs[0]), static_cast<int64_t>(o.attrs[1]), o.out[0]);
                   }});
}

}  // namespace q4
