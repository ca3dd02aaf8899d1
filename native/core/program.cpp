#include "core/program.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "core/error.h"

namespace q4 {

namespace {
std::atomic<uint64_t> next_program_id{1};

// Bytes the view itself spans, without padding.
int64_t span_bytes(const Tensor& tensor) {
  return tensor.dtype == DType::nvfp4 ? tensor_bytes(tensor) : tensor.elements() * element_bytes(tensor.dtype);
}
bool overlap(const Tensor& a, const Tensor& b) {
  const auto *x = a.as<uint8_t>(), *y = b.as<uint8_t>();
  return a && b && x < y + span_bytes(b) && y < x + span_bytes(a);
}

// Whole numbers among an op's inputs say where in memory it reads: they are checked before the op writes, so it must
// not write over them.
void check_indices_apart(const OpCall& call) {
  for (const Tensor& input : call.in)
    for (const Tensor& output : call.out)
      if (input.dtype == DType::i32 && overlap(input, output))
        throw Error("Q4510", "an op would write over the indices that it reads");
}
}  // namespace

Tensor Program::bind(const TensorSpec& spec) {
  Tensor tensor = make_tensor(spec.dtype, spec.shape, spec.name);
  const int64_t bytes = span_bytes(tensor);
  if (spec.offset < 0) throw Error("Q4510", "tensor '" + spec.name + "' has a negative offset");
  if (!spec.in_store) {
    if (spec.offset % kAlignment != 0 || spec.offset > arena_->bytes() - bytes)
      throw Error("Q4510", "tensor '" + spec.name + "' does not fit its arena");
    bind_tensor(tensor, static_cast<uint8_t*>(arena_->memory()) + spec.offset);
    return tensor;
  }
  const Tensor stored = store_->find(spec.store_name);
  const auto allocation = store_->allocation(spec.store_name);
  const bool whole = spec.offset == 0 && stored.dims == tensor.dims;
  const bool fits =
      spec.offset % std::max<int64_t>(1, element_bytes(tensor.dtype)) == 0 && spec.offset <= span_bytes(stored) - bytes;
  if (stored.dtype != tensor.dtype || (tensor.dtype == DType::nvfp4 ? !whole : !fits))
    throw Error("Q4510", "tensor '" + spec.name + "' is " + describe(tensor) + " in the program, but '" +
                             spec.store_name + "' is " + describe(stored) + " in the store");
  bind_tensor(tensor, static_cast<uint8_t*>(allocation->memory()) + spec.offset);
  if (std::find(held_.begin(), held_.end(), allocation) == held_.end()) held_.push_back(allocation);
  return tensor;
}

Program::Program(std::shared_ptr<Store> store, const ProgramSpec& spec, std::shared_ptr<Allocation> arena)
    : store_(std::move(store)), arena_(std::move(arena)), id_(next_program_id++) {
  if (spec.arena_bytes < 0) throw Error("Q4510", "program '" + spec.name + "' has an arena of a negative size");
  if (!arena_) arena_ = std::make_shared<Allocation>(store_->device(), std::max<int64_t>(spec.arena_bytes, kAlignment));
  if (arena_->device() != store_->device())
    throw Error("Q4510", "program '" + spec.name + "' was given the arena of another engine");
  if (arena_->bytes() < spec.arena_bytes)
    throw Error("Q4510",
                "program '" + spec.name + "' needs an arena of " + std::to_string(spec.arena_bytes) + " bytes");
  std::vector<Tensor> tensors;
  tensors.reserve(spec.tensors.size());
  for (const TensorSpec& tensor : spec.tensors) tensors.push_back(bind(tensor));

  const auto operands = [&](const OpSpec& op, const std::vector<int>& indices) {
    std::vector<Tensor> bound;
    for (const int index : indices) {
      if (index < -1 || index >= static_cast<int>(tensors.size()))
        throw Error("Q4510", op.op + " at " + op.scope + " names a tensor that does not exist");
      bound.push_back(index == -1 ? Tensor{} : tensors[index]);
    }
    return bound;
  };
  ops_.reserve(spec.ops.size());
  for (const OpSpec& op : spec.ops) {
    const OpDef& def = find_op(op.op);
    OpCall call{operands(op, op.inputs), operands(op, op.outputs), {}};
    for (const char* name : def.attrs) {
      const auto found = op.attrs.find(name);
      if (found == op.attrs.end()) throw Error("Q4510", op.op + " at " + op.scope + " lacks attribute " + name);
      call.attrs.push_back(found->second);
    }
    if (op.attrs.size() != def.attrs.size())
      throw Error("Q4510", op.op + " at " + op.scope + " has unknown attributes");
    try {
      check_op(def, call);
      check_indices_apart(call);
    } catch (const Error& error) {
      throw Error(error.code(), std::string(error.what()) + " (at " + op.scope + " in program '" + spec.name + "')");
    }
    ops_.push_back({&def, std::move(call)});
  }
}

Program::~Program() { backend().forget(id_); }

void Program::execute(const CancelFlag& cancel, std::vector<double>* op_seconds) {
  Backend& device = backend();
  if (op_seconds) op_seconds->assign(ops_.size(), 0);
  if (!device.begin_run(id_, op_seconds != nullptr)) return device.end_run(id_);
  try {
    double before = op_seconds ? device.now() : 0;
    for (size_t i = 0; i < ops_.size(); ++i) {
      if (cancel.load(std::memory_order_relaxed)) throw Error("Q4501", "cancelled");
      ops_[i].def->run(device, ops_[i].call);
      if (!op_seconds) continue;
      const double after = device.now();
      (*op_seconds)[i] = after - before;
      before = after;
    }
  } catch (...) {
    device.end_run(id_);
    throw;
  }
  device.end_run(id_);
}

void Program::run(const CancelFlag& cancel, std::vector<double>* op_seconds) {
  execute(cancel, op_seconds);
  backend().synchronize();
}

bool Program::start_step(const Tensor& sampled, int slot, const CancelFlag& cancel) {
  try {
    if (cancel.load(std::memory_order_relaxed)) return false;
    execute(cancel, nullptr);
  } catch (const Error& error) {
    // Cancelled within a step: what that step began is not told, and the loop ends as between steps.
    if (error.code() != "Q4501") throw;
    return false;
  }
  backend().start_download(slot, sampled.data, sampled.elements() * 4);
  return true;
}

DecodeOutcome Program::decode(const std::string& tokens, const DecodeLimits& limits, const CancelFlag& cancel,
                              const std::function<void(const std::vector<int32_t>&, std::vector<uint8_t>&)>& on_step) {
  const Tensor sampled = store_->find(tokens);
  if (sampled.dtype != DType::i32) throw Error("Q4510", "decode reads its tokens from an i32 tensor");
  std::vector<int32_t> step_tokens(sampled.elements());
  std::vector<uint8_t> live(sampled.elements(), 1);
  DecodeOutcome outcome;
  const int64_t ahead = backend().runs_ahead() ? 1 : 0;
  int64_t started = 0;
  bool stopped = false;        // no further step may start
  std::exception_ptr failure;  // of starting a step: told after the tokens of the steps before it
  const auto some_live = [&] { return std::find(live.begin(), live.end(), 1) != live.end(); };
  while (outcome.steps < limits.max_tokens && some_live()) {
    while (!stopped && started < std::min(limits.max_tokens, outcome.steps + 1 + ahead)) {
      try {
        if (start_step(sampled, static_cast<int>(started % 2), cancel))
          ++started;
        else
          stopped = true;
      } catch (...) {
        failure = std::current_exception();
        stopped = true;
      }
    }
    if (started == outcome.steps) {
      outcome.cancelled = !failure;
      break;
    }
    std::memcpy(step_tokens.data(), backend().finish_download(static_cast<int>(outcome.steps % 2)),
                step_tokens.size() * 4);
    ++outcome.steps;
    on_step(step_tokens, live);
    for (size_t row = 0; row < live.size(); ++row)
      if (std::find(limits.stop_tokens.begin(), limits.stop_tokens.end(), step_tokens[row]) != limits.stop_tokens.end())
        live[row] = 0;
    // What is under way when the loop is cancelled is not counted.
    if (cancel.load(std::memory_order_relaxed)) stopped = true, started = outcome.steps;
  }
  backend().synchronize();
  if (failure) std::rethrow_exception(failure);
  return outcome;
}

}  // namespace q4
