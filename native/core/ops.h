// The table of ops: how a program's op is checked once, when it is loaded, and then called on a backend.
#pragma once
#include <string_view>
#include <vector>

#include "core/backend.h"

namespace q4 {

// An op with its operands bound, in the order of backend.h: inputs, then outputs; absent optionals convert to false.
struct OpCall {
  std::vector<Tensor> in, out;
  std::vector<double> attrs;  // in the order of OpDef::attrs
};

class OpChecker;

struct OpDef {
  const char* name;
  std::vector<const char*> inputs, outputs;  // a trailing '?' marks an optional operand
  std::vector<const char*> attrs;
  void (*check)(OpChecker&);
  void (*run)(Backend&, const OpCall&);
};

// Q4510 for an unknown name.
const OpDef& find_op(std::string_view name);
// All ops, for tests and tools.
const std::vector<OpDef>& all_ops();
// Arity, presence, dtypes, shapes, attributes. Throws Q4510 with the op, the operand, what was expected and found.
void check_op(const OpDef& def, const OpCall& call);

// What a check function reads and asserts.
class OpChecker {
 public:
  OpChecker(const OpDef& def, const OpCall& call) : def_(def), call_(call) {}
  const Tensor& in(int i) const { return call_.in[i]; }
  const Tensor& out(int i) const { return call_.out[i]; }
  double attr(int i) const { return call_.attrs[i]; }
  // A positive whole number.
  int64_t count(int i) const;
  // Attribute i must be a whole number in [least, most]: what is cast to an integer has to fit it.
  void whole(int i, double least, double most) const;
  // Operand i has one of the dtypes (bit mask) and exactly these dimensions; -1 takes any. Absent optionals pass.
  void in_is(int i, unsigned dtypes, std::initializer_list<int64_t> dims) const;
  void out_is(int i, unsigned dtypes, std::initializer_list<int64_t> dims) const;
  void slot(int attribute, const Tensor& vector) const;
  void require(bool condition, const char* what) const;

 private:
  void operand(const char* name, const Tensor& tensor, unsigned dtypes, std::initializer_list<int64_t> dims) const;
  const OpDef& def_;
  const OpCall& call_;
};

constexpr unsigned dtype_bit(DType dtype) { return 1u << static_cast<int>(dtype); }
constexpr unsigned kF32 = dtype_bit(DType::f32), kI32 = dtype_bit(DType::i32), kU8 = dtype_bit(DType::u8),
                   kNvfp4 = dtype_bit(DType::nvfp4), kAct = kF32 | dtype_bit(DType::bf16),
                   kPlain = kAct | dtype_bit(DType::f16), kWeight = kPlain | kNvfp4;

// The groups of the table, one file each.
void add_forward_ops(std::vector<OpDef>& table);
void add_backward_ops(std::vector<OpDef>& table);
void add_optimizer_ops(std::vector<OpDef>& table);
void add_decode_ops(std::vector<OpDef>& table);

}  // namespace q4
