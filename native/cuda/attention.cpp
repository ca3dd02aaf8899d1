// Which attention kernel a call takes.
#include "cuda/attention.h"

#include <cmath>

#include "core/error.h"
#include "cuda/cuda_backend.h"

namespace q4::gpu {
namespace {

AttentionCall describe_call(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& attend_from,
                            const Tensor& past, const AttentionShape& shape, const Tensor& out, const Tensor& lse) {
  if (shape.head_dim > 256) throw Error("Q4510", "the CUDA backend takes heads of up to 256 elements");
  AttentionCall call{};
  call.q = q.data, call.k = k.data, call.v = v.data;
  call.attend_from = attend_from.i32(), call.past = past.i32();
  call.out = out.data, call.lse = lse.f32();
  call.batch = static_cast<int>(shape.batch), call.heads = static_cast<int>(shape.heads);
  call.kv_heads = static_cast<int>(shape.kv_heads), call.dim = static_cast<int>(shape.head_dim);
  call.steps = static_cast<int>(q.rows() / shape.batch), call.keys = static_cast<int>(k.rows() / shape.batch);
  call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  return call;
}

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0; }

// Rows are whole 16-byte pieces of bf16.
bool takes_tiles(const Tensor& q, const Tensor& k, const Tensor& v, int64_t dim) {
  return q.dtype == DType::bf16 && dim % 8 == 0 && aligned(q) && aligned(k) && aligned(v);
}

}  // namespace

void CudaBackend::attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& attend_from,
                            const Tensor& past, const AttentionShape& shape, const Tensor& out, const Tensor& lse,
                            const Tensor&) {
  if (defer({Deferred::Kind::attention, {q, k, v, attend_from, past, out, lse}, 0, 0, 0, shape})) return;
  const AttentionCall call = describe_call(q, k, v, attend_from, past, shape, out, lse);
  const bool tiles = takes_tiles(q, k, v, shape.head_dim);
  if (tiles && past && call.steps * call.heads / call.kv_heads <= 8 &&
      call.batch * call.kv_heads < kTickets - kChainCounters)
    return split_attention(call, partials(), Workspace::kPartialBytes / 4, ticket() + 1, processors_, stream(),
                           overlap());
  if (tiles && call.dim <= 128) {
    if (sm90_flash_attention(call, capability_, processors_, ticket(), stream(), overlap())) return;
    return flash_attention(call, stream(), overlap());
  }
  scalar_attention(call, q.dtype, stream(), overlap());
}

void CudaBackend::attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& out, const Tensor& lse, const Tensor& attend_from,
                                     const AttentionShape& shape, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                     const Tensor&) {
  AttentionBackwardCall call{};
  call.forward = describe_call(q, k, v, attend_from, Tensor{}, shape, out, lse);
  call.dout = dout.data;
  call.dq = dq.data, call.dk = dk.data, call.dv = dv.data;
  const bool tiles = takes_tiles(q, k, v, shape.head_dim) && aligned(dout) && call.forward.dim <= 128;
  if (tiles && sm90_flash_attention_backward(call, capability_, processors_, ticket(), partials(),
                                             Workspace::kPartialBytes / 4, stream(), overlap()))
    return;
  const int64_t rows = q.rows();
  if (rows * shape.heads > Workspace::kPartialBytes / 4)
    throw Error("Q4510", "attention_backward: more than 12 million rows times heads", "lower batch_size or seq_len");
  call.delta = partials();
  attention_delta(dout.data, out.data, q.dtype, rows, call.forward.heads, call.forward.dim, partials(), stream(),
                  overlap());
  if (tiles) return flash_attention_backward(call, stream(), overlap());
  scalar_attention_backward(call, q.dtype, stream(), overlap());
}

}  // namespace q4::gpu
