// A decode step is hundreds of small ops; one kernel each would cost more time between kernels than in them. Ops of one
// to sixteen rows are therefore put off while they look like half a decoder layer, and become phases of a chain when they
// are; a chain is launched when something else needs the stream, or when it is full (decode_chain.h):
//   norm · q · rotate q · k · rotate k · v · append · attention     norm · gate · up · swiglu · down
// What memory holds afterwards is the same as after the ops one by one: every result is written, except where a later op
// of the same half wrote over it (the program's arena gives the place of a tensor that is no longer read to another).
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

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; }

// The tensor's place, or null where one of `later` is written over it.
template <typename T>
T* unless_overwritten(const Tensor& t, std::initializer_list<Tensor> later) {
  for (const Tensor& other : later)
    if (overlap_in_memory(t, other)) return nullptr;
  return t.as<T>();
}

DecodeMatrix matrix_of(const Tensor& weight, void* y) {
  return {weight.as<uint8_t>(), weight.scale, weight.global_scale, y, static_cast<int>(weight.rows())};
}

}  // namespace

// Whether `op` is what should follow the ops put off so far.
bool CudaBackend::continues(const Deferred& op) const {
  using K = Deferred::Kind;
  const auto& d = deferred_;
  const size_t n = d.size();
  const auto fits = [&](int64_t rows, int64_t width, bool whole) {
    return decode_fits(static_cast<int>(rows), static_cast<int>(width), whole, machine_);
  };
  const auto streams = [&](const Tensor& x, const Tensor& weight, const Tensor& y) {
    return weight.dtype == DType::nvfp4 && x.dtype == DType::bf16 && y.dtype == DType::bf16 && aligned(weight) &&
           aligned(x) && fits(x.rows(), weight.cols(), true);
  };
  if (n == 0)
    return op.kind == K::norm && op.t[0].dtype == DType::bf16 && op.t[0].rows() <= kDecodeRows &&
           fits(op.t[0].rows(), op.t[0].cols(), true) && aligned(op.t[0]) && aligned(op.t[4]) && aligned(op.t[2]) &&
           (!op.t[1] || (aligned(op.t[1]) && aligned(op.t[3])));
  const Tensor& normed = d[0].t[4];
  if (op.kind == K::linear && op.t[1].dtype == DType::nvfp4 && same_place(op.t[0], normed)) {
    // The head's logits may be f32; the projections of a layer are not.
    if (n == 1) return aligned(op.t[1]) && (op.t[2].dtype == DType::bf16 || op.t[2].dtype == DType::f32);
    if (d[1].t[2].dtype != DType::bf16 || !streams(op.t[0], op.t[1], op.t[2])) return false;
    return (n == 2 && op.t[1].rows() == d[1].t[1].rows() &&
            decode_pair_fits(static_cast<int>(op.t[0].rows()), static_cast<int>(op.t[1].rows()))) ||
           (n == 3 && d[2].kind == K::rotate) || (n == 5 && op.t[1].rows() == d[3].t[1].rows());
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
             fits(rows, op.t[1].cols(), !may_split(op.t[2], op.t[1].cols()));
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
  if (ops.size() == 5 && ops[3].kind == Deferred::Kind::swiglu && run_mlp_half(ops)) return;
  undeferring_ = true;
  try {
    size_t first = 0;
    if (ops.size() == 2 && run_norm_and_linear(ops)) first = 2;
    for (size_t i = first; i < ops.size(); ++i) {
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

DecodePhase& CudaBackend::add_phase(PhaseKind kind, int64_t rows) {
  DecodeChain& chain = *chain_;
  if (chain.phases > 0 && (chain.rows != rows || chain.phases == kChainPhases)) launch_chain();
  chain.rows = static_cast<int>(rows);
  DecodePhase& phase = chain.phase[chain.phases++];
  phase = DecodePhase{};
  phase.kind = kind;
  return phase;
}

void CudaBackend::launch_chain() {
  DecodeChain& chain = *chain_;
  if (chain.phases == 0) return;
  chain.counters = ticket() + kTickets - 2;
  chain.tickets = ticket() + 1;
  chain.attention_parts = reinterpret_cast<float*>(static_cast<char*>(weight_buffer()) + kAttentionPartsAt);
  // However it ends, the next chain starts anew.
  struct Empty {
    DecodeChain& chain;
    ~Empty() { empty_chain(chain); }
  } empty{chain};
  decode_chain(chain, machine_, stream_.get());
}

// A result that is still in parts is joined before anything but a norm reads it.
void CudaBackend::join_open() {
  if (!open_) return;
  const Tensor y = std::exchange(open_, Tensor{});
  DecodePhase& phase = add_phase(PhaseKind::join, y.rows());
  phase.norm.parts = {parts(), decode_splits(chain_->rows, static_cast<int>(open_width_))};
  phase.norm.branch_out = y.as<bf16>(), phase.norm.width = static_cast<int>(y.cols());
}

void CudaBackend::run_chain() {
  join_open();
  launch_chain();
}

// Adds the norm at the head of a half to the chain: to the product that follows where rows are few, else as a phase.
// `later`: results of the half that are written after the norm's.
DecodePhase& CudaBackend::add_norm_and_product(const Deferred& d, std::initializer_list<Tensor> later) {
  const Tensor &x = d.t[0], &branch = d.t[1], &sum = d.t[3], &y = d.t[4], &rstd = d.t[5];
  DecodeNorm norm{};
  norm.width = static_cast<int>(x.cols()), norm.eps = d.eps, norm.weight = d.t[2].f32();
  norm.x = x.as<bf16>(), norm.branch = branch.as<bf16>();
  const bool fused = x.rows() <= kFusedNormRows;
  if (fused) {
    // What the norm leaves is written a phase later, when every block has read x and branch.
    norm.sum = unless_overwritten<bf16>(sum, later), norm.normed_out = unless_overwritten<bf16>(y, later);
    norm.rstd = unless_overwritten<float>(rstd, later);
  } else {
    // Products read a copy of their own: results of theirs may take the place of y while others still read it.
    norm.sum = sum.as<bf16>(), norm.normed_out = y.as<bf16>(), norm.rstd = rstd.f32();
    norm.normed = reinterpret_cast<bf16*>(static_cast<char*>(weight_buffer()) + kNormedAt);
  }
  if (open_ && branch && same_place(open_, branch)) {
    norm.parts = {parts(), decode_splits(static_cast<int>(open_.rows()), static_cast<int>(open_width_))};
    const bool overwritten = !unless_overwritten<bf16>(branch, later) || overlap_in_memory(branch, sum) ||
                             overlap_in_memory(branch, y) || overlap_in_memory(branch, rstd);
    norm.branch_out = overwritten ? nullptr : branch.as<bf16>();
    open_ = Tensor{};
  }
  join_open();
  if (!fused) add_phase(PhaseKind::norm, x.rows()).norm = norm;
  DecodePhase& phase = add_phase(PhaseKind::product, x.rows());
  if (fused)
    phase.norm = norm;
  else
    phase.product.x = norm.normed;
  phase.product.width = norm.width, phase.product.splits = 1;
  return phase;
}

// Whether a product may leave y in parts.
bool CudaBackend::may_split(const Tensor& y, int64_t width) {
  const int64_t splits = decode_splits(static_cast<int>(y.rows()), static_cast<int>(width));
  return y.dtype == DType::bf16 && y.cols() % 8 == 0 && aligned(y) &&
         splits * y.elements() * 4 <= kAttentionPartsAt - kPartsAt;
}

// y = x·Wᵀ as a phase, its width split over blocks where that pays. y is then open until a norm or a join takes it.
DecodeProduct& CudaBackend::add_product(const bf16* x, const Tensor& weight, const Tensor& y) {
  join_open();
  DecodeProduct& product = add_phase(PhaseKind::product, y.rows()).product;
  product.x = x, product.width = static_cast<int>(weight.cols());
  product.matrices = 1, product.matrix[0] = matrix_of(weight, y.data), product.wide_output = y.dtype == DType::f32;
  product.items = decode_items(chain_->rows, product), product.splits = 1;
  if (may_split(y, weight.cols()))
    product.splits = decode_splits(chain_->rows, product.width), product.parts = parts(), open_ = y,
    open_width_ = product.width;
  return product;
}

void CudaBackend::run_attention_half(const std::vector<Deferred>& d) {
  const Tensor &q = d[1].t[2], &rotated_q = d[2].t[3], &q_rstd = d[2].t[4], &k = d[3].t[2], &rotated_k = d[4].t[3],
               &k_rstd = d[4].t[4], &v = d[5].t[2], &out = d[7].t[5], &lse = d[7].t[6];
  // q, k and v stay in the workspace between the two phases: their places may be ones that the first still reads.
  bf16* const q_raw = static_cast<bf16*>(weight_buffer());
  bf16* const k_raw = reinterpret_cast<bf16*>(reinterpret_cast<char*>(q_raw) + align_up(q.elements() * 2));
  bf16* const v_raw = reinterpret_cast<bf16*>(reinterpret_cast<char*>(k_raw) + align_up(k.elements() * 2));
  const Frequencies f = frequencies(d[7].shape.head_dim, d[2].theta);
  const int32_t *const positions = d[2].t[2].i32(), *const past = d[6].t[2].i32(), *const attend_from = d[7].t[3].i32();
  if (chain_->past && (std::memcmp(&chain_->frequencies, &f, sizeof f) != 0 || chain_->positions != positions ||
                       chain_->past != past || chain_->attend_from != attend_from))
    launch_chain();
  DecodeProduct& product =
      add_norm_and_product(d[0], {q, rotated_q, q_rstd, k, rotated_k, k_rstd, v, out, lse}).product;
  product.matrices = 3;
  product.matrix[0] = matrix_of(d[1].t[1], q_raw), product.matrix[1] = matrix_of(d[3].t[1], k_raw),
  product.matrix[2] = matrix_of(d[5].t[1], v_raw);
  product.items = decode_items(chain_->rows, product);

  const AttentionShape& shape = d[7].shape;
  DecodeAttention& call = add_phase(PhaseKind::attention, q.rows()).attention;
  chain_->frequencies = f;
  chain_->positions = positions, chain_->past = past, chain_->attend_from = attend_from;
  call.q = q_raw, call.k = k_raw, call.v = v_raw;
  call.q_weight = d[2].t[1].f32(), call.k_weight = d[4].t[1].f32(), call.q_eps = d[2].eps, call.k_eps = d[4].eps;
  call.k_cache = d[6].t[3].as<bf16>(), call.v_cache = d[6].t[4].as<bf16>(), call.out = out.as<bf16>(),
  call.lse = lse.f32();
  call.q_out = unless_overwritten<bf16>(q, {rotated_q, q_rstd, k, rotated_k, k_rstd, v, out, lse});
  call.q_rotated = unless_overwritten<bf16>(rotated_q, {q_rstd, k, rotated_k, k_rstd, v, out, lse});
  call.q_rstd = unless_overwritten<float>(q_rstd, {k, rotated_k, k_rstd, v, out, lse});
  call.k_out = unless_overwritten<bf16>(k, {rotated_k, k_rstd, v, out, lse});
  call.k_rotated = unless_overwritten<bf16>(rotated_k, {k_rstd, v, out, lse});
  call.k_rstd = unless_overwritten<float>(k_rstd, {v, out, lse});
  call.v_out = unless_overwritten<bf16>(v, {out, lse});
  call.heads = static_cast<int>(shape.heads), call.kv_heads = static_cast<int>(shape.kv_heads);
  call.keys = static_cast<int>(d[7].t[1].rows() / shape.batch);
  call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
}

bool CudaBackend::run_mlp_half(const std::vector<Deferred>& d) {
  const Tensor &gate = d[1].t[2], &up = d[2].t[2], &activated = d[3].t[2], &out = d[4].t[2];
  // Blocks write gate, up and activated while others still read x and branch.
  const bool branch_read = d[0].t[1] && !(open_ && same_place(open_, d[0].t[1]));
  for (const Tensor& written : {gate, up, activated})
    if (overlap_in_memory(written, d[0].t[0]) || (branch_read && overlap_in_memory(written, d[0].t[1]))) return false;
  bf16* inner = unless_overwritten<bf16>(activated, {out});
  if (!inner) inner = static_cast<bf16*>(weight_buffer());
  DecodeProduct& first = add_norm_and_product(d[0], {gate, up, activated, out}).product;
  first.matrices = 2, first.paired = true, first.activated = inner;
  first.matrix[0] = matrix_of(d[1].t[1], unless_overwritten<bf16>(gate, {up, activated, out}));
  first.matrix[1] = matrix_of(d[2].t[1], unless_overwritten<bf16>(up, {activated, out}));
  first.items = decode_items(chain_->rows, first);
  add_product(inner, d[4].t[1], out);
  return true;
}

bool CudaBackend::run_norm_and_linear(const std::vector<Deferred>& d) {
  const Tensor &weight = d[1].t[1], &y = d[1].t[2];
  // Blocks write y while others still read x and branch.
  if (overlap_in_memory(y, d[0].t[0]) || overlap_in_memory(y, d[0].t[1])) return false;
  DecodeProduct& product = add_norm_and_product(d[0], {y}).product;
  product.matrices = 1, product.matrix[0] = matrix_of(weight, y.data), product.wide_output = y.dtype == DType::f32;
  product.items = decode_items(chain_->rows, product);
  // What a fused norm leaves is written a phase late: nothing may follow in this chain that reads or overwrites it.
  if (d[0].t[0].rows() <= kFusedNormRows) launch_chain();
  return true;
}

bool CudaBackend::linear_streamed(const Tensor& x, const Tensor& weight, const Tensor& y) {
  if (x.dtype != DType::bf16 || weight.dtype != DType::nvfp4 || !aligned(x) || !aligned(weight) ||
      x.rows() > kDecodeRows)
    return false;
  if (!decode_fits(static_cast<int>(x.rows()), static_cast<int>(weight.cols()), !may_split(y, weight.cols()), machine_))
    return false;
  if (!deferred_.empty()) run_deferred();
  add_product(x.as<bf16>(), weight, y);
  return true;
}

}  // namespace q4::gpu
