// What the attention kernels take. Kernels stand in attention*.cu, one launcher each.
#pragma once
#include <cstdint>

#include "core/backend.h"
#include "cuda/check.h"

namespace q4::gpu {

struct bf16;

// q, out [batch·T, heads·D]; k, v [batch·S, kv_heads·D]; lse [batch·T, heads]. Query t of sequence b sees keys
// attend_from[b·T+t] ≤ j ≤ past[b]+t, j < S.
struct AttentionCall {
  const void *q, *k, *v;
  const int32_t *attend_from, *past;  // either may be null: 0
  void* out;
  float* lse;
  int batch, heads, kv_heads, dim, steps, keys;  // T, S
  float scale;                                   // 1/√D
};

struct AttentionBackwardCall {
  AttentionCall forward;  // out and lse are inputs here
  const void* dout;
  const float* delta;  // Σ dout·out per row and head, [batch·T, heads]
  void *dq, *dk, *dv;
};

// Tensor cores, bf16, D ≤ 128 and D % 8 == 0.
void flash_attention(const AttentionCall& call, cudaStream_t stream, bool overlap);
void flash_attention_backward(const AttentionBackwardCall& call, cudaStream_t stream, bool overlap);
// The same on Hopper's own instructions, for D = 128; `ticket` is zero between kernels. False when this device or build
// has none.
bool sm90_flash_attention(const AttentionCall& call, int capability, int processors, uint32_t* ticket,
                          cudaStream_t stream, bool overlap);
bool sm90_flash_attention_backward(const AttentionBackwardCall& call, int capability, int processors, uint32_t* ticket,
                                   float* workspace, int64_t workspace_floats, cudaStream_t stream, bool overlap);
// Few queries over a cache, split along the cache; `partials` holds `partial_floats` floats,
// `tickets` a zero for every sequence and key head. steps · heads / kv_heads ≤ 8, bf16, D ≤ 256, D % 8 == 0.
void split_attention(const AttentionCall& call, float* partials, int64_t partial_floats, uint32_t* tickets,
                     int processors, cudaStream_t stream, bool overlap);
// fp32 arithmetic, any D ≤ 256, f32 or bf16: what defines the others, and precision: fp32.
void scalar_attention(const AttentionCall& call, DType dtype, cudaStream_t stream, bool overlap);
void scalar_attention_backward(const AttentionBackwardCall& call, DType dtype, cudaStream_t stream, bool overlap);
// delta[n, h] = Σ_d dout·out.
void attention_delta(const void* dout, const void* out, DType dtype, int64_t rows, int heads, int dim, float* delta,
                     cudaStream_t stream, bool overlap);

}  // namespace q4::gpu
