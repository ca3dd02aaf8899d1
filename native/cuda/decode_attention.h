// Attention of a decode step, with head norms, RoPE and the cache's append in the same kernel: decode_attention.cu.
#pragma once
#include <cstdint>

#include "cuda/check.h"
#include "cuda/rope_frequencies.h"

namespace q4::gpu {

struct bf16;

// One new token a sequence. q [B, heads·D], k and v [B, kv_heads·D] before norm and RoPE; caches [B·S, kv_heads·D].
// D is 64 or 128, heads / kv_heads ≤ 8.
struct DecodeAttention {
  const bf16 *q, *k, *v;
  const float *q_weight, *k_weight;
  float q_eps, k_eps;
  double theta;
  const int32_t *positions, *past, *attend_from;  // [B]; attend_from may be null
  bf16 *k_cache, *v_cache, *out;
  float* lse;
  // What the separate ops would leave; any may be null.
  bf16 *q_out, *k_out, *v_out, *q_rotated, *k_rotated;
  float *q_rstd, *k_rstd;
  int batch, heads, kv_heads, dim, keys;
  float scale;
};

// Needs capability 9.0.
void decode_attention(const DecodeAttention& call, cudaStream_t stream);

}  // namespace q4::gpu
