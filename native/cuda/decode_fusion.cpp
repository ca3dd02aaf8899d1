// A decode step is hundreds of small ops; one kernel each would cost more time between kernels than in them. Ops of one
// to sixteen rows are therefore put off while they look like half a decoder layer, and become phases of a chain when they
// are; a chain is launched when something else needs the stream, or when it is full (decode_chain.h):
//   norm · q · rotate q · k · rotate k · v · append · attention     norm · gate · up · swiglu · down
// What memory holds afterwards is the same as after the ops one by one: every result is written, except where a later op
// of the same chain wrote over it (the program's arena gives the place of a tensor that is no longer read to another).
#include <cmath>
#include <cstring>
#include <utility>

#include "cuda/cuda_backend.h"

namespace q4::gpu {
namespace {

bool same_place(const Tensor& a, const Tensor& b) {
  return a.data == b.data && a.dtype == b.dtype && a.elements() == b.elements();
}

bool overlap_in_memory(const Tensor& a, const Tensor& b) {
  if (!a || !b) return false;
  const char *a_begin = a.as<char>(), *b_begin = b.as<char>();
  return a_begin < b_begin + b.elements() * element_bytes(b.dtype) &&
         b_begin < a_begin + a.elements() * element_bytes(a.dtype);
}

// For copies of 16 bytes: of a weight, its scales too.
bool aligned(const Tensor& t) {
  return (reinterpret_cast<uintptr_t>(t.data) | reinterpret_cast<uintptr_t>(t.scale)) % 16 == 0;
}

}  // namespace

// Whether `op` is what should follow the ops put off so far.
bool CudaBackend::continues(const Deferred& op) const {
  using K = Deferred::Kind;
  const auto& d = deferred_;
  const size_t n = d.size();
  const auto fits = [&](int64_t rows, int64_t width, int64_t outputs, const DecodeSplit& split = {}) {
    return decode_fits(static_cast<int>(rows), static_cast<int>(width), static_cast<int>(outputs), split, machine_);
  };
  // With so many outputs of the same product before.
  const auto streams = [&](const Tensor& x, const Tensor& weight, const Tensor& y, int64_t outputs) {
    return weight.dtype == DType::nvfp4 && x.dtype == DType::bf16 && y.dtype == DType::bf16 && aligned(weight) &&
           aligned(x) && fits(x.rows(), weight.cols(), outputs + weight.rows());
  };
  if (n == 0)
    return op.kind == K::norm && op.t[0].dtype == DType::bf16 && op.t[0].rows() <= kDecodeRows &&
           fits(op.t[0].rows(), op.t[0].cols(), 0) && aligned(op.t[0]) && aligned(op.t[4]) && aligned(op.t[2]) &&
           (!op.t[1] || (aligned(op.t[1]) && aligned(op.t[3])));
  const Tensor& normed = d[0].t[4];
  if (op.kind == K::linear && op.t[1].dtype == DType::nvfp4 && same_place(op.t[0], normed)) {
    // The head's logits may be f32; the projections of a layer are not.
    if (n == 1)
      return aligned(op.t[1]) && (op.t[2].dtype == DType::bf16 || op.t[2].dtype == DType::f32) &&
             fits(op.t[0].rows(), op.t[1].cols(), op.t[1].rows());
    const int64_t outputs = d[1].t[1].rows() + (n > 3 ? d[3].t[1].rows() : 0);
    if (d[1].t[2].dtype != DType::bf16 || !streams(op.t[0], op.t[1], op.t[2], outputs)) return false;
    return (n == 2 && decode_pair_fits(d[1].t[1], op.t[1])) || (n == 3 && d[2].kind == K::rotate) ||
           (n == 5 && op.t[1].rows() == d[3].t[1].rows());
  }
  const int64_t rows = normed.rows();
  switch (op.kind) {
    case K::rotate:
      if (n == 2) return d[1].t[2].dtype == DType::bf16 && same_place(op.t[0], d[1].t[2]) && op.number == 128;
      return n == 4 && same_place(op.t[0], d[3].t[2]) && op.number == d[2].number && op.theta == d[2].theta &&
             same_place(op.t[2], d[2].t[2]);
    case K::append:
      return n == 6 && same_place(op.t[0], d[4].t[3]) && same_place(op.t[1], d[5].t[2]) && op.number == rows;
    case K::attention:
      return n == 7 && same_place(op.t[0], d[2].t[3]) && same_place(op.t[1], d[6].t[3]) &&
             same_place(op.t[2], d[6].t[4]) && op.t[4] && same_place(op.t[4], d[6].t[2]) && op.shape.batch == rows &&
             op.shape.head_dim == d[2].number && op.shape.heads / op.shape.kv_heads <= kDecodeQueries &&
             aligned(op.t[1]) && aligned(op.t[2]);
    case K::swiglu:
      return n == 3 && d[2].kind == K::linear && same_place(op.t[0], d[1].t[2]) && same_place(op.t[1], d[2].t[2]);
    case K::linear:
      return n == 4 && d[3].kind == K::swiglu && same_place(op.t[0], d[3].t[2]) && op.t[1].dtype == DType::nvfp4 &&
             op.t[2].dtype == DType::bf16 && aligned(op.t[1]) &&
             fits(rows, op.t[1].cols(), op.t[1].rows(), split_of(op.t[2], op.t[1].cols()));
    case K::norm:
      return false;
  }
  return false;
}

bool CudaBackend::defer(const Deferred& op) {
  if (undeferring_) return false;
  if (squares_.count > 0) run_squares();
  if (!continues(op)) {
    run_deferred();
    if (!continues(op)) return false;
  }
  deferred_.push_back(op);
  if (deferred_.size() == 8)
    run_attention_half(std::exchange(deferred_, {}));
  else if (deferred_.size() == 5 && deferred_[3].kind == Deferred::Kind::swiglu)
    run_deferred();
  return true;
}

// Half a layer, norm and head together, or one by one.
void CudaBackend::run_deferred() {
  if (deferred_.empty()) return;
  const std::vector<Deferred> ops = std::exchange(deferred_, {});
  if (ops.size() == 5 && ops[3].kind == Deferred::Kind::swiglu) return run_mlp_half(ops);
  if (ops.size() == 2) return run_norm_and_linear(ops);
  undeferring_ = true;
  try {
    for (size_t i = 0; i < ops.size(); ++i) {
      const auto& t = ops[i].t;
      switch (ops[i].kind) {
        case Deferred::Kind::norm:
          if (t[1])
            add_rms_norm(t[0], t[1], t[2], ops[i].eps, t[3], t[4], t[5]);
          else
            rms_norm(t[0], t[2], ops[i].eps, t[4], t[5]);
          break;
        case Deferred::Kind::linear:
          linear(t[0], t[1], t[2]);
          break;
        case Deferred::Kind::rotate:
          head_norm_rope(t[0], t[1], t[2], ops[i].number, ops[i].eps, ops[i].theta, t[3], t[4]);
          break;
        case Deferred::Kind::append:
          kv_append(t[0], t[1], t[2], ops[i].number, t[3], t[4]);
          break;
        case Deferred::Kind::attention:
          attention(t[0], t[1], t[2], t[3], t[4], ops[i].shape, t[5], t[6], Tensor{});
          break;
        case Deferred::Kind::swiglu:
          swiglu(t[0], t[1], t[2]);
          break;
      }
    }
  } catch (...) {
    undeferring_ = false;
    throw;
  }
  undeferring_ = false;
}

// ---- the chain ----

namespace {

// Takes back what is written over later in the same chain: nobody could read it, and blocks do not wait for each other's
// writes.
class Overwritten {
 public:
  explicit Overwritten(DecodePlan& plan) {
    const int64_t rows = plan.chain.rows;
    for (size_t p = plan.phases.size(); p-- > 0;) {
      DecodePhase& phase = plan.phases[p];
      if (phase.kind == PhaseKind::attention) {
        DecodeAttention& a = phase.attention;
        const int64_t queries = rows * a.heads, keys = rows * a.kv_heads;
        visit(a.lse, queries), visit(a.out, queries * kHead), visit(a.v_out, keys * kHead), visit(a.k_rstd, keys);
        visit(a.k_rotated, keys * kHead), visit(a.k_out, keys * kHead), visit(a.q_rstd, queries);
        visit(a.q_rotated, queries * kHead), visit(a.q_out, queries * kHead);
      } else if (phase.kind == PhaseKind::product) {
        DecodeProduct& product = phase.product;
        visit(product.activated, rows * product.matrix[0].outputs);
        for (int m = product.matrices - 1; m >= 0; --m) {
          auto* y = static_cast<char*>(product.matrix[m].y);
          visit(y, rows * product.matrix[m].outputs * (product.wide_output ? 4 : 2));
          product.matrix[m].y = y;
        }
      }
      const int64_t elements = rows * phase.norm.width;
      visit(phase.norm.rstd, rows), visit(phase.norm.normed_out, elements), visit(phase.norm.sum, elements);
      visit(phase.norm.branch_out, elements);
      if (p == 0) visit(plan.chain.embedding.x, elements);
    }
  }

 private:
  static constexpr int64_t kHead = 128;
  template <typename T>
  void visit(T*& place, int64_t elements) {
    if (!place) return;
    constexpr int64_t kBytes = std::is_same_v<T, float> ? 4 : std::is_same_v<T, bf16> ? 2 : 1;
    const char* const begin = reinterpret_cast<const char*>(place);
    const char* const end = begin + elements * kBytes;
    for (const auto& [other_begin, other_end] : later_)
      if (begin < other_end && other_begin < end) {
        place = nullptr;
        return;
      }
    later_.emplace_back(begin, end);
  }
  std::vector<std::pair<const char*, const char*>> later_;
};

}  // namespace

DecodePhase& CudaBackend::add_phase(PhaseKind kind, int64_t rows) {
  if (embedded_.y) run_embedding();
  plan_.chain.rows = static_cast<int>(rows);
  DecodePhase& phase = plan_.phases.emplace_back();
  phase.kind = kind;
  return phase;
}

// What the last phase left must be `x`; before a norm (kept: its x) it must be one product's result, and what norms keep
// must be `kept`; and there must be room for more phases: otherwise a new chain begins, which reads x from memory.
void CudaBackend::continue_chain(const Tensor& x, const Tensor& kept, int phases) {
  if (plan_.chain.rows > kWholeRows) phases += 2;  // a sum and a join
  if (plan_.phases.empty()) return;
  const DecodePhase& last = plan_.phases.back();
  const bool may_add =
      kept_ && kept && same_place(kept, kept_) && last.kind == PhaseKind::product && last.product.matrices == 1;
  const bool goes_on =
      x && handed_on_ && same_place(x, handed_on_) && plan_.chain.rows == x.rows() && (kept ? may_add : !open_);
  // A norm begins with a sum.
  const bool sum_is_due = plan_.chain.rows > kWholeRows && !kept && phases_since_sum() + 1 >= kClearedAhead;
  if (!goes_on || sum_is_due || !decode_has_room(plan_, phases, machine_)) run_chain();
}

int CudaBackend::phases_since_sum() const {
  int count = 0;
  for (auto p = plan_.phases.rbegin(); p != plan_.phases.rend() && p->kind != PhaseKind::sum; ++p) ++count;
  return count;
}

// Launches the chain; a result that is still in parts is joined first.
void CudaBackend::run_chain() {
  if (plan_.phases.empty()) return;
  // However it ends, the next chain starts anew.
  struct Empty {
    CudaBackend& backend;
    ~Empty() { backend.discard_chain(); }
  } empty{*this};
  if (open_) {
    DecodePhase& phase = add_phase(PhaseKind::join, open_.rows());
    phase.norm.branch_out = open_.as<bf16>(), phase.norm.width = static_cast<int>(open_.cols());
  }
  DecodeChain& chain = plan_.chain;
  chain.counters = ticket() + kTickets - kChainCounters;
  chain.tickets = ticket() + 1;
  chain.exchange = exchange();
  chain.attention_parts = reinterpret_cast<float*>(static_cast<char*>(weight_buffer()) + kAttentionPartsAt);
  const Overwritten overwritten(plan_);
  chain.overlaps = mode_ == Mode::recording;
  place_script();
  const DecodeLaunch launch = decode_launch(plan_, machine_);
  launch.launch(stream_.get(), {});
  if (mode_ == Mode::recording) last_chain_ = launch;
  if (counted_.x && plan_.phases.back().kind != PhaseKind::choice) count(counted_.by, counted_.max, counted_.x);
}

// Puts into device memory what the chain's kernel reads there. What is recorded is placed once, when the recording ends.
void CudaBackend::place_script() {
  const int phases = static_cast<int>(plan_.phases.size());
  if (mode_ != Mode::recording) {
    use_tags(phases);
    const std::vector<char> script = decode_script(plan_, script_place(), machine_);
    Q4_CHECK(cudaMemcpyAsync(script_place(), script.data(), script.size(), cudaMemcpyHostToDevice, stream_.get()));
    decode_announce(plan_.chain.maps, static_cast<int>(plan_.maps.size()), machine_, stream_.get());
    return;
  }
  // Memory cannot be asked for in the stream's own mode.
  struct Relaxed {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    Relaxed() { Q4_CHECK(cudaThreadExchangeStreamCaptureMode(&mode)); }
    ~Relaxed() { (void)cudaThreadExchangeStreamCaptureMode(&mode); }
  } relaxed;
  Script& script = scripts_.emplace_back();
  script.memory = DeviceMemory(take(kScriptBytes));
  script.contents = decode_script(plan_, static_cast<char*>(script.memory.get()), machine_), script.phases = phases;
  script.maps = plan_.chain.maps, script.mapped = static_cast<int>(plan_.maps.size());
}

void CudaBackend::use_tags(int phases) {
  used_tags_ += phases;
  if (used_tags_ <= kShortTags) return;
  used_tags_ = phases;
  Q4_CHECK(cudaMemset2DAsync(exchange(), kExchangeSlotBytes, 0, kTaggedBytes, kExchangeSlots, stream_.get()));
}

// The matrices of a product: one, three of one input, or a pair.
void CudaBackend::add_matrices(DecodeProduct& product, std::initializer_list<Projection> projections, bool paired) {
  product.paired = paired, product.maps = static_cast<int>(plan_.maps.size());
  for (const auto& [weight, y] : projections)
    product.matrix[product.matrices++] = {weight.global_scale, y, static_cast<int>(weight.rows()), 0};
  const auto map = [&](const Tensor& weight, const Tensor& second) {
    plan_.maps.push_back(decode_maps(weight, second));
  };
  if (paired) {
    const Tensor &first = projections.begin()[0].weight, &second = projections.begin()[1].weight;
    product.swapped = second.as<uint8_t>() < first.as<uint8_t>();
    if (product.swapped) std::swap(product.matrix[0], product.matrix[1]);
    map(product.swapped ? second : first, product.swapped ? first : second);
  } else {
    for (const auto& [weight, y] : projections) map(weight, Tensor{});
  }
  product.items = decode_items(product);
}

// The norm at the head of a half and the product after it. Of few rows the product before sums up, of more a phase.
DecodePhase& CudaBackend::add_norm_and_product(const Deferred& d, int phases) {
  const Tensor &x = d.t[0], &branch = d.t[1], &sum = d.t[3], &y = d.t[4], &rstd = d.t[5];
  continue_chain(branch, x, phases);
  if (embedded_.y && plan_.phases.empty() && !branch && same_place(x, embedded_.y)) {
    const Embedded e = std::exchange(embedded_, {});
    plan_.chain.embedding = {e.table.data, e.ids.i32(), e.y.as<bf16>(), e.table.dtype};
  }
  DecodeNorm norm{};
  norm.width = static_cast<int>(x.cols()), norm.eps = d.eps, norm.weight = d.t[2].f32();
  norm.x = x.as<bf16>(), norm.branch = branch.as<bf16>();
  norm.sum = sum.as<bf16>(), norm.normed_out = y.as<bf16>(), norm.rstd = rstd.f32();
  if (open_) norm.branch_out = branch.as<bf16>();
  open_ = Tensor{};
  kept_ = branch ? sum : x;
  if (!plan_.phases.empty() && x.rows() <= kWholeRows) {
    plan_.phases.back().product.adds = true;
  } else {
    DecodeNorm& adds = add_phase(PhaseKind::sum, x.rows()).norm;
    adds = norm;
    adds.normed_out = nullptr, adds.rstd = nullptr;
    norm.sum = norm.branch_out = nullptr;
  }
  DecodePhase& phase = add_phase(PhaseKind::product, x.rows());
  phase.norm = norm;
  phase.product.width = norm.width, phase.product.splits = 1, phase.product.most_strips = 0;
  return phase;
}

// A place that norms keep the contents of is written to: they keep them no longer.
void CudaBackend::written(std::initializer_list<Tensor> results) {
  for (const Tensor& t : results)
    if (overlap_in_memory(t, kept_)) kept_ = Tensor{};
}

// How the width of a product is split where y may be left in parts; elsewhere it is not.
DecodeSplit CudaBackend::split_of(const Tensor& y, int64_t width) const {
  const int rows = static_cast<int>(y.rows()), outputs = static_cast<int>(y.cols());
  const DecodeSplit split = decode_split(rows, static_cast<int>(width), outputs, machine_);
  DecodeProduct product{};
  product.matrices = 1, product.matrix[0].outputs = outputs, product.splits = split.splits;
  return y.dtype == DType::bf16 && aligned(y) && decode_hands_on(rows, product) ? split : DecodeSplit{};
}

// Whether a chain may begin with it, as far as the norm after it does not say.
bool CudaBackend::may_begin_chain(const Embedded& e) { return e.y.rows() <= kDecodeRows && aligned(e.table); }

// y = x·Wᵀ as a phase, its width split over blocks where that pays. y is then open until a norm or a join takes it.
void CudaBackend::add_product(const Tensor& x, const Tensor& weight, const Tensor& y) {
  continue_chain(x, Tensor{}, 1);
  if (plan_.phases.empty()) {
    DecodeNorm& plain = add_phase(PhaseKind::sum, y.rows()).norm;
    plain.x = x.as<bf16>(), plain.width = static_cast<int>(x.cols());
  }
  DecodeProduct& product = add_phase(PhaseKind::product, y.rows()).product;
  product.width = static_cast<int>(weight.cols());
  add_matrices(product, {{weight, y.data}}), product.wide_output = y.dtype == DType::f32;
  const DecodeSplit split = split_of(y, weight.cols());
  product.splits = split.splits, product.most_strips = split.most_strips;
  if (product.splits > 1) product.matrix[0].y = nullptr, open_ = y;
  written({y});
  handed_on_ = y.dtype == DType::bf16 && decode_hands_on(plan_.chain.rows, product) ? y : Tensor{};
}

void CudaBackend::run_attention_half(const std::vector<Deferred>& d) {
  const Tensor &q = d[1].t[2], &rotated_q = d[2].t[3], &q_rstd = d[2].t[4], &k = d[3].t[2], &rotated_k = d[4].t[3],
               &k_rstd = d[4].t[4], &v = d[5].t[2], &out = d[7].t[5], &lse = d[7].t[6];
  const Frequencies f = frequencies(d[7].shape.head_dim, d[2].theta);
  const int32_t *const positions = d[2].t[2].i32(), *const past = d[6].t[2].i32(), *const attend_from = d[7].t[3].i32();
  DecodeChain& chain = plan_.chain;
  if (chain.past && (std::memcmp(&chain.frequencies, &f, sizeof f) != 0 || chain.positions != positions ||
                     chain.past != past || chain.attend_from != attend_from))
    run_chain();
  DecodeProduct& product = add_norm_and_product(d[0], 2).product;
  add_matrices(product, {{d[1].t[1], nullptr}, {d[3].t[1], nullptr}, {d[5].t[1], nullptr}});
  // Of more rows blocks have half of x to stage where that does not make the slowest slower.
  const int outputs = static_cast<int>(q.cols() + k.cols() + v.cols());
  const DecodeSplit split = decode_halves(static_cast<int>(q.rows()), product.width, outputs, machine_);
  product.splits = split.splits, product.most_strips = split.most_strips;

  const AttentionShape& shape = d[7].shape;
  DecodeAttention& call = add_phase(PhaseKind::attention, q.rows()).attention;
  chain.frequencies = f;
  chain.positions = positions, chain.past = past, chain.attend_from = attend_from;
  if (q.rows() > kWholeRows) {
    call.maps = static_cast<int>(plan_.maps.size());
    plan_.maps.push_back(decode_maps_of_cache(d[6].t[3], d[6].t[4]));
  }
  call.q_weight = d[2].t[1].f32(), call.k_weight = d[4].t[1].f32(), call.q_eps = d[2].eps, call.k_eps = d[4].eps;
  call.k_cache = d[6].t[3].as<bf16>(), call.v_cache = d[6].t[4].as<bf16>();
  call.q_out = q.as<bf16>(), call.q_rotated = rotated_q.as<bf16>(), call.q_rstd = q_rstd.f32();
  call.k_out = k.as<bf16>(), call.k_rotated = rotated_k.as<bf16>(), call.k_rstd = k_rstd.f32();
  call.v_out = v.as<bf16>(), call.out = out.as<bf16>(), call.lse = lse.f32();
  call.heads = static_cast<int16_t>(shape.heads), call.kv_heads = static_cast<int16_t>(shape.kv_heads);
  call.keys = static_cast<int>(d[7].t[1].rows() / shape.batch);
  call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  written({d[0].t[4], d[0].t[5], q, rotated_q, q_rstd, k, rotated_k, k_rstd, v, out, lse});
  handed_on_ = out;
}

void CudaBackend::run_mlp_half(const std::vector<Deferred>& d) {
  const Tensor &gate = d[1].t[2], &up = d[2].t[2], &activated = d[3].t[2], &out = d[4].t[2];
  DecodeProduct& product = add_norm_and_product(d[0], 1).product;
  product.activated = activated.as<bf16>();
  add_matrices(product, {{d[1].t[1], gate.data}, {d[2].t[1], up.data}}, true);
  written({d[0].t[4], d[0].t[5], gate, up, activated});
  handed_on_ = activated;
  add_product(activated, d[4].t[1], out);
}

void CudaBackend::run_norm_and_linear(const std::vector<Deferred>& d) {
  const Tensor &weight = d[1].t[1], &y = d[1].t[2];
  DecodeProduct& product = add_norm_and_product(d[0], 1).product;
  add_matrices(product, {{weight, y.data}}), product.wide_output = y.dtype == DType::f32;
  written({d[0].t[4], d[0].t[5], y});
  handed_on_ = y.dtype == DType::bf16 && decode_hands_on(plan_.chain.rows, product) ? y : Tensor{};
}

bool CudaBackend::ends_in_logits(int64_t rows) const {
  if (plan_.phases.empty() || plan_.chain.rows != rows) return false;
  const DecodePhase& last = plan_.phases.back();
  return last.kind == PhaseKind::product && last.product.wide_output && last.product.matrices == 1 &&
         last.product.splits == 1;
}

// After logits: the choice of the next tokens counts x up too.
bool CudaBackend::count_in_chain(int64_t by, int64_t max, const Tensor& x) {
  if (!deferred_.empty()) run_deferred();
  if (counted_.x || !ends_in_logits(x.elements())) return false;
  counted_ = {x, by, max};
  return true;
}

// As the last phase of the chain that ends in these logits.
bool CudaBackend::choose_in_chain(const Tensor& logits, const Tensor& sampling, const Tensor& seen, const Tensor& ids) {
  if (!deferred_.empty()) run_deferred();
  if (!ends_in_logits(logits.rows()) || plan_.phases.size() == kChainPhases || machine_.processors < logits.rows())
    return false;
  const DecodeMatrix& head = plan_.phases.back().product.matrix[0];
  if (head.y != logits.data || head.outputs != logits.cols()) return false;
  DecodeChoice& choice = add_phase(PhaseKind::choice, logits.rows()).choice;
  choice = {};
  choice.logits = logits.f32(), choice.sampling = sampling.f32(), choice.seen = seen.as<uint8_t>();
  choice.ids = ids.i32(), choice.vocabulary = static_cast<int>(logits.cols());
  if (counted_.x) {
    choice.counted = counted_.x.i32(), choice.by = static_cast<int>(counted_.by);
    choice.max = static_cast<int>(counted_.max);
  }
  run_chain();
  return true;
}

bool CudaBackend::linear_streamed(const Tensor& x, const Tensor& weight, const Tensor& y) {
  if (x.dtype != DType::bf16 || weight.dtype != DType::nvfp4 || !aligned(x) || !aligned(weight) ||
      x.rows() > kDecodeRows)
    return false;
  if (!decode_fits(static_cast<int>(x.rows()), static_cast<int>(weight.cols()), static_cast<int>(weight.rows()),
                   split_of(y, weight.cols()), machine_))
    return false;
  if (!deferred_.empty()) run_deferred();
  add_product(x, weight, y);
  return true;
}

}  // namespace q4::gpu
