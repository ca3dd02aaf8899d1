// A program: the flat list of ops that TypeScript derived, checked and bound once, then run with no JavaScript.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/ops.h"
#include "core/store.h"

namespace q4 {

// runtime/program.ts, as structs.
struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  bool in_store = false;
  std::string store_name;
  int64_t offset = 0;  // bytes, into the arena or the store tensor
};
struct OpSpec {
  std::string op, scope, phase;
  std::vector<int> inputs, outputs;  // -1 = absent
  std::map<std::string, double> attrs;
};
struct ProgramSpec {
  std::string name;
  std::vector<TensorSpec> tensors;
  std::vector<OpSpec> ops;
  int64_t arena_bytes = 0;
};

using CancelFlag = std::atomic<bool>;

// When a row of a decode loop ends.
struct DecodeLimits {
  int64_t max_tokens = 0;
  std::vector<int32_t> stop_tokens;
};
struct DecodeOutcome {
  int64_t steps = 0;
  bool cancelled = false;
};

class Program {
 public:
  // Checks every op, shape, dtype and bound and binds operands. `arena` must hold spec.arena_bytes; null allocates one.
  // Throws Q4510 (invalid), Q4511 (no such store tensor), Q4401 (memory).
  Program(std::shared_ptr<Store> store, const ProgramSpec& spec, std::shared_ptr<Allocation> arena);
  ~Program();

  // The device, for a run or a decode that follows; whoever calls those holds it. Q4513 when it is busy.
  Claim claim() const { return acquire(store_->device()); }

  // Runs once and waits. With `op_seconds`, times every op. Q4501 when cancelled.
  void run(const CancelFlag& cancel, std::vector<double>* op_seconds);

  // Runs until every row of `tokens` (i32 [B] in the store) has ended. After each run `on_step` gets the sampled tokens
  // and the rows' liveness before this step; it may end rows by clearing their flags. Cancelling ends it without an
  // error; a step that was under way then is not counted. On a backend that runs ahead, step n+1 is enqueued before the
  // tokens of step n are waited for: when n turns out to be the last, one more run has gone over the program's tensors.
  // There are never more than max_tokens runs.
  DecodeOutcome decode(const std::string& tokens, const DecodeLimits& limits, const CancelFlag& cancel,
                       const std::function<void(const std::vector<int32_t>&, std::vector<uint8_t>& live)>& on_step);

  Backend& backend() const { return store_->backend(); }

 private:
  Tensor bind(const TensorSpec& spec);
  void execute(const CancelFlag& cancel, std::vector<double>* op_seconds);
  // A run of a decode loop: its tokens are on their way to `slot` when it returns true; false when it was cancelled.
  bool start_step(const Tensor& sampled, int slot, const CancelFlag& cancel);

  std::shared_ptr<Store> store_;
  std::shared_ptr<Allocation> arena_;
  std::vector<std::shared_ptr<Allocation>> held_;  // store tensors stay alive while a program is bound to them
  struct BoundOp {
    const OpDef* def;
    OpCall call;
  };
  std::vector<BoundOp> ops_;
  uint64_t id_;
};

}  // namespace q4
