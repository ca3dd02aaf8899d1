#include "core/ops.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/error.h"

namespace q4 {

const std::vector<OpDef>& all_ops() {
  static const std::vector<OpDef> table = [] {
    std::vector<OpDef> ops;
    add_forward_ops(ops);
    add_backward_ops(ops);
    add_optimizer_ops(ops);
    add_decode_ops(ops);
    return ops;
  }();
  return table;
}

const OpDef& find_op(std::string_view name) {
  for (const OpDef& def : all_ops())
    if (name == def.name) return def;
  throw Error("Q4510", "unknown op '" + std::string(name) + "' in a program");
}

namespace {

bool is_optional(const char* name) { return name[std::strlen(name) - 1] == '?'; }

void check_presence(const OpDef& def, const std::vector<const char*>& names, const std::vector<Tensor>& tensors,
                    const char* side) {
  if (names.size() != tensors.size())
    throw Error("Q4510", std::string(def.name) + " takes " + std::to_string(names.size()) + " " + side + ", not " +
                             std::to_string(tensors.size()));
  for (size_t i = 0; i < names.size(); ++i)
    if (!tensors[i] && !is_optional(names[i]))
      throw Error("Q4510", std::string(def.name) + ": " + names[i] + " is required");
}

}  // namespace

void check_op(const OpDef& def, const OpCall& call) {
  check_presence(def, def.inputs, call.in, "inputs");
  check_presence(def, def.outputs, call.out, "outputs");
  for (size_t i = 0; i < def.attrs.size(); ++i)
    if (!std::isfinite(call.attrs[i]))
      throw Error("Q4510", std::string(def.name) + ": attribute " + def.attrs[i] + " is not a finite number");
  OpChecker checker(def, call);
  def.check(checker);
}

int64_t OpChecker::count(int i) const {
  const double value = attr(i);
  // Products of two stay within 64 bits.
  if (!(value >= 1 && value <= INT32_MAX && value == std::floor(value)))
    throw Error("Q4510", std::string(def_.name) + ": attribute " + def_.attrs[i] + " must be a positive whole number");
  return static_cast<int64_t>(value);
}

void OpChecker::whole(int i, double least, double most) const {
  const double value = attr(i);
  if (value >= least && value <= most && value == std::floor(value)) return;
  throw Error("Q4510", std::string(def_.name) + ": attribute " + def_.attrs[i] + " is out of range");
}

void OpChecker::require(bool condition, const char* what) const {
  if (!condition) throw Error("Q4510", std::string(def_.name) + ": " + what);
}

void OpChecker::slot(int attribute, const Tensor& vector) const {
  const double value = attr(attribute);
  require(value >= 0 && value == std::floor(value) && value < static_cast<double>(vector.elements()),
          "a slot lies outside its vector");
}

void OpChecker::operand(const char* name, const Tensor& tensor, unsigned dtypes,
                        std::initializer_list<int64_t> dims) const {
  if (!tensor) return;  // presence was checked
  const bool fits = tensor.rank == static_cast<int>(dims.size()) &&
                    std::equal(dims.begin(), dims.end(), tensor.dims.begin(),
                               [](int64_t want, int64_t have) { return want == -1 || want == have; });
  if (fits && (dtypes & dtype_bit(tensor.dtype))) return;
  std::string expected;
  for (int i = 0; i < 6; ++i)
    if (dtypes >> i & 1) expected += (expected.empty() ? "" : "|") + std::string(dtype_name(static_cast<DType>(i)));
  expected += "[";
  for (const int64_t* dim = dims.begin(); dim != dims.end(); ++dim)
    expected += (dim == dims.begin() ? "" : ", ") + (*dim == -1 ? std::string("·") : std::to_string(*dim));
  throw Error("Q4510",
              std::string(def_.name) + ": " + name + " must be " + expected + "], but it is " + describe(tensor));
}

void OpChecker::in_is(int i, unsigned dtypes, std::initializer_list<int64_t> dims) const {
  operand(def_.inputs[i], call_.in[i], dtypes, dims);
}
void OpChecker::out_is(int i, unsigned dtypes, std::initializer_list<int64_t> dims) const {
  operand(def_.outputs[i], call_.out[i], dtypes, dims);
}

}  // namespace q4
