// A decode step is hundreds of small ops; one kernel each would cost more time between kernels than in them. Ops of one
// to sixteen rows are therefore put off while they look like half a decoder layer, and run as two kernels when they are:
//   norm · q · rotate q · k · rotate k · v · append · attention     norm · gate · up · swiglu · down
// What memory holds afterwards is the same as after the ops one by one: every result is written, except where a later op
// of the same half wrote over it (the program's arena gives the place of a tensor that is no longer read to another).
#include <cmath>
#include <utility>

#include "cuda/cuda_backend.h"
#include "cuda/decode_attention.h"
#include "cuda/decode_product.h"

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
  const auto streams = [&](const Tensor& x, const Tensor& weight, const Tensor& y) {
    return weight.dtype == DType::nvfp4 && x.dtype == DType::bf16 && y.dtype == DType::bf16 && aligned(weight) &&
           aligned(x) && decode_product_fits(static_cast<int>(x.rows()), static_cast<int>(weight.cols()));
  };
  if (n == 0)
    return op.kind == K::norm && capability_ >= 90 && op.t[0].dtype == DType::bf16 && op.t[0].rows() <= kDecodeRows &&
           decode_product_fits(static_cast<int>(op.t[0].rows()), static_cast<int>(op.t[0].cols())) &&
           aligned(op.t[0]) && aligned(op.t[4]) && aligned(op.t[2]) &&
           (!op.t[1] || (aligned(op.t[1]) && aligned(op.t[3])));
  const Tensor& normed = d[0].t[4];
  if (op.kind == K::linear && op.t[1].dtype == DType::nvfp4 && same_place(op.t[0], normed)) {
    // The head's logits may be f32; the projections of a layer are not.
    if (n == 1) return aligned(op.t[1]) && (op.t[2].dtype == DType::bf16 || op.t[2].dtype == DType::f32);
    if (d[1].t[2].dtype != DType::bf16 || !streams(op.t[0], op.t[1], op.t[2])) return false;
    return (n == 2 && op.t[1].rows() == d[1].t[1].rows() &&
            decode_pair_fits(static_cast<int>(op.t[1].cols()), static_cast<int>(op.t[1].rows()))) ||
           (n == 3 && d[2].kind == K::rotate) || (n == 5 && op.t[1].rows() == d[3].t[1].rows());
  }
  const int64_t rows = normed.rows();
  switch (op.kind) {
    case K::rotate:
      if (n == 2)
        return d[1].t[2].dtype == DType::bf16 && same_place(op.t[0], d[1].t[2]) &&
               (op.number == 64 || op.number == 128);
      return n == 4 && same_place(op.t[0], d[3].t[2]) && op.number == d[2].number && op.theta == d[2].theta &&
             same_place(op.t[2], d[2].t[2]);
    case K::append:
      return n == 6 && same_place(op.t[0], d[4].t[3]) && same_place(op.t[1], d[5].t[2]) && op.number == rows;
    case K::attention:
      return n == 7 && same_place(op.t[0], d[2].t[3]) && same_place(op.t[1], d[6].t[3]) &&
             same_place(op.t[2], d[6].t[4]) && op.t[4] && same_place(op.t[4], d[6].t[2]) && op.shape.batch == rows &&
             op.shape.head_dim == d[2].number && op.shape.heads / op.shape.kv_heads <= 8 && aligned(op.t[1]) &&
             aligned(op.t[2]);
    case K::swiglu:
      return n == 3 && d[2].kind == K::linear && same_place(op.t[0], d[1].t[2]) && same_place(op.t[1], d[2].t[2]);
    case K::linear:
      return n == 4 && d[3].kind == K::swiglu && same_place(op.t[0], d[3].t[2]) && op.t[1].dtype == DType::nvfp4 &&
             op.t[2].dtype == DType::bf16 && aligned(op.t[1]) && op.t[1].cols() % 32 == 0;
    case K::norm:
      return false;
  }
  return false;
}

bool CudaBackend::defer(const Deferred& op) {
  if (undeferring_) return false;
  if (!continues(op)) {
    run_deferred();
    if (!continues(op)) return false;
  }
  deferred_.push_back(op);
  if (deferred_.size() == 8)
    run_attention_half(std::exchange(deferred_, {}));
  else if (deferred_.size() == 5 && deferred_[3].kind == Deferred::Kind::swiglu)
    run_mlp_half(std::exchange(deferred_, {}));
  return true;
}

// One by one, or norm and head together.
void CudaBackend::run_deferred() {
  if (deferred_.empty()) return;
  const std::vector<Deferred> ops = std::exchange(deferred_, {});
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

namespace {

// The norm at the head of a half as the prologue of a product.
void add_norm(DecodeProduct& product, const std::array<Tensor, 7>& norm, float eps, bf16* normed, uint32_t* ticket) {
  product.rows = static_cast<int>(norm[0].rows()), product.width = static_cast<int>(norm[0].cols());
  product.x = norm[0].as<bf16>(), product.branch = norm[1].as<bf16>();
  product.norm_weight = norm[2].f32(), product.eps = eps;
  product.sum = norm[3].as<bf16>(), product.normed = normed, product.rstd = norm[5].f32(), product.ticket = ticket;
}

}  // namespace

void CudaBackend::run_attention_half(const std::vector<Deferred>& d) {
  const Tensor &q = d[1].t[2], &rotated_q = d[2].t[3], &q_rstd = d[2].t[4], &k = d[3].t[2], &rotated_k = d[4].t[3],
               &k_rstd = d[4].t[4], &v = d[5].t[2], &out = d[7].t[5], &lse = d[7].t[6];
  // q, k and v stay in the workspace between the two kernels: their places may be ones that the first kernel still reads.
  bf16* const q_raw = static_cast<bf16*>(weight_buffer());
  bf16* const k_raw = reinterpret_cast<bf16*>(reinterpret_cast<char*>(q_raw) + align_up(q.elements() * 2));
  bf16* const v_raw = reinterpret_cast<bf16*>(reinterpret_cast<char*>(k_raw) + align_up(k.elements() * 2));
  DecodeProduct product{};
  add_norm(product, d[0].t, d[0].eps,
           unless_overwritten<bf16>(d[0].t[4], {q, rotated_q, q_rstd, k, rotated_k, k_rstd, v, out, lse}),
           ticket() + kTickets - 1);
  product.matrices = 3;
  product.matrix[0] = matrix_of(d[1].t[1], q_raw), product.matrix[1] = matrix_of(d[3].t[1], k_raw),
  product.matrix[2] = matrix_of(d[5].t[1], v_raw);
  decode_product(product, processors_, stream_.get(), overlap());

  const AttentionShape& shape = d[7].shape;
  DecodeAttention call{};
  call.q = q_raw, call.k = k_raw, call.v = v_raw;
  call.q_weight = d[2].t[1].f32(), call.k_weight = d[4].t[1].f32();
  call.q_eps = d[2].eps, call.k_eps = d[4].eps, call.theta = d[2].theta;
  call.positions = d[2].t[2].i32(), call.past = d[6].t[2].i32(), call.attend_from = d[7].t[3].i32();
  call.k_cache = d[6].t[3].as<bf16>(), call.v_cache = d[6].t[4].as<bf16>(), call.out = out.as<bf16>(),
  call.lse = lse.f32();
  call.q_out = unless_overwritten<bf16>(q, {rotated_q, q_rstd, k, rotated_k, k_rstd, v, out, lse});
  call.q_rotated = unless_overwritten<bf16>(rotated_q, {q_rstd, k, rotated_k, k_rstd, v, out, lse});
  call.q_rstd = unless_overwritten<float>(q_rstd, {k, rotated_k, k_rstd, v, out, lse});
  call.k_out = unless_overwritten<bf16>(k, {rotated_k, k_rstd, v, out, lse});
  call.k_rotated = unless_overwritten<bf16>(rotated_k, {k_rstd, v, out, lse});
  call.k_rstd = unless_overwritten<float>(k_rstd, {v, out, lse});
  call.v_out = unless_overwritten<bf16>(v, {out, lse});
  call.batch = static_cast<int>(shape.batch), call.heads = static_cast<int>(shape.heads),
  call.kv_heads = static_cast<int>(shape.kv_heads);
  call.dim = static_cast<int>(shape.head_dim), call.keys = static_cast<int>(d[7].t[1].rows() / shape.batch);
  call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  decode_attention(call, stream_.get());
}

void CudaBackend::run_mlp_half(const std::vector<Deferred>& d) {
  const Tensor &gate = d[1].t[2], &up = d[2].t[2], &activated = d[3].t[2], &out = d[4].t[2];
  bf16* const gate_raw = static_cast<bf16*>(weight_buffer());
  const auto after = [](bf16* p, const Tensor& t) {
    return reinterpret_cast<bf16*>(reinterpret_cast<char*>(p) + align_up(t.elements() * 2));
  };
  bf16 *const up_raw = after(gate_raw, gate), *const activated_raw = after(up_raw, up);
  bf16* const gate_out = unless_overwritten<bf16>(gate, {up, activated, out});
  bf16* const up_out = unless_overwritten<bf16>(up, {activated, out});
  bf16* const activated_out = unless_overwritten<bf16>(activated, {out});
  DecodeProduct first{};
  add_norm(first, d[0].t, d[0].eps, unless_overwritten<bf16>(d[0].t[4], {gate, up, activated, out}),
           ticket() + kTickets - 1);
  first.matrices = 2, first.paired = true, first.activated = activated_raw;
  first.matrix[0] = matrix_of(d[1].t[1], gate_out ? gate_raw : nullptr),
  first.matrix[1] = matrix_of(d[2].t[1], up_out ? up_raw : nullptr);
  decode_product(first, processors_, stream_.get(), overlap());

  DecodeProduct second{};
  second.rows = static_cast<int>(activated.rows()), second.width = static_cast<int>(activated.cols()),
  second.x = activated_raw;
  second.matrices = 1, second.matrix[0] = matrix_of(d[4].t[1], out.data);
  const auto copy = [](const bf16* from, bf16* to, const Tensor& t) {
    return DecodeProduct::Copy{from, to, to ? static_cast<int>(t.elements()) : 0};
  };
  second.copies[0] = copy(gate_raw, gate_out, gate), second.copies[1] = copy(up_raw, up_out, up),
  second.copies[2] = copy(activated_raw, activated_out, activated);
  if (decode_product_fits(second.rows, second.width)) {
    decode_product(second, processors_, stream_.get(), overlap());
    return;
  }
  // Too many activations for shared memory.
  Tensor x = activated;
  x.data = activated_raw;
  linear_few_rows(x, d[4].t[1], out);
  decode_copies(second, stream_.get(), overlap());
}

bool CudaBackend::run_norm_and_linear(const std::vector<Deferred>& d) {
  const Tensor &weight = d[1].t[1], &y = d[1].t[2];
  // Blocks write y while others still read x and branch.
  if (overlap_in_memory(y, d[0].t[0]) || overlap_in_memory(y, d[0].t[1])) return false;
  DecodeProduct product{};
  add_norm(product, d[0].t, d[0].eps, unless_overwritten<bf16>(d[0].t[4], {y}), ticket() + kTickets - 1);
  product.matrices = 1, product.matrix[0] = matrix_of(weight, y.data), product.wide_output = y.dtype == DType::f32;
  decode_product(product, processors_, stream_.get(), overlap());
  return true;
}

bool CudaBackend::linear_streamed(const Tensor& x, const Tensor& weight, const Tensor& y) {
  if (capability_ < 90 || x.dtype != DType::bf16 || weight.dtype != DType::nvfp4 || !aligned(x) || !aligned(weight) ||
      x.rows() > kDecodeRows || !decode_product_fits(static_cast<int>(x.rows()), static_cast<int>(weight.cols())))
    return false;
  const cudaStream_t stream = this->stream();
  DecodeProduct product{};
  product.rows = static_cast<int>(x.rows()), product.width = static_cast<int>(x.cols()), product.x = x.as<bf16>();
  product.matrices = 1, product.matrix[0] = matrix_of(weight, y.data), product.wide_output = y.dtype == DType::f32;
  decode_product(product, processors_, stream, overlap());
  return true;
}

}  // namespace q4::gpu
