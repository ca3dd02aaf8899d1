// A decode step as a chain of phases that one persistent kernel runs: decode_chain.cu. One to sixteen rows (a token each).
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/check.h"
#include "cuda/rope_frequencies.h"

namespace q4::gpu {

struct bf16;

constexpr int kDecodeRows = 16;
constexpr int kDecodeQueries = 8;  // heads of queries that share a key head
// Up to this many rows every block normalises all of x for itself; of more, each row is normalised once, in a phase.
constexpr int kFusedNormRows = 2;

// A tensor [rows, width] as fp32 sums to be added in order and rounded; none when count is 0.
struct DecodeParts {
  const float* sums;  // [count][rows][width]
  int count;
};

// y = rms_norm(x + branch) · weight, with what the separate ops would leave; any of the results may be null.
struct DecodeNorm {
  const bf16 *x, *branch;
  DecodeParts parts;  // branch, where it is given in parts
  const float* weight;
  bf16 *branch_out, *sum, *normed_out;
  bf16* normed;  // where a norm that is a phase of its own leaves y for products; in 16-byte pieces
  float* rstd;
  float eps;
  int width;
};

struct DecodeMatrix {
  const uint8_t *codes, *scales;
  const float* global;
  void* y;  // [rows, outputs] bf16 (f32 where the product is wide); may be null for the two of a pair
  int outputs;
};

// y_m = x·W_mᵀ for up to three matrices of one width. paired: matrices 0 and 1 are gate and up, and
// activated = silu(gate)·up.
struct DecodeProduct {
  DecodeMatrix matrix[3];
  const bf16* x;  // unused where the phase has a norm
  bf16* activated;
  float* parts;  // where given: instead of y, fp32 sums over a piece of the width each, [splits][rows][outputs]
  int matrices, width, items, splits;  // items: groups of rows of W
  bool paired, wide_output;
};

// One new token a sequence. q [B, heads·D], k and v [B, kv_heads·D] before norm and RoPE; caches [B·S, kv_heads·D].
// D is 128, heads / kv_heads ≤ kDecodeQueries.
struct DecodeAttention {
  const bf16 *q, *k, *v;
  const float *q_weight, *k_weight;
  bf16 *k_cache, *v_cache, *out;
  float* lse;
  // What the separate ops would leave; any may be null.
  bf16 *q_out, *k_out, *v_out, *q_rotated, *k_rotated;
  float *q_rstd, *k_rstd;
  float q_eps, k_eps, scale;
  int heads, kv_heads, keys;
};

enum class PhaseKind : int { product, norm, attention, join };

struct DecodePhase {
  PhaseKind kind;
  DecodeNorm norm;  // of a norm or a join (branch_out alone); of a product where weight is given
  union {
    DecodeProduct product;
    DecodeAttention attention;
  };
};

constexpr int kChainPhases = 88;

struct DecodeChain {
  DecodePhase phase[kChainPhases];
  int phases, rows;
  // Of all attentions in the chain.
  Frequencies frequencies;
  const int32_t *positions, *past, *attend_from;  // [rows]; attend_from may be null
  uint32_t* counters;                             // [2], zero between kernels
  uint32_t* tickets;                              // [rows · heads], zero between kernels
  // Parts of a softmax, kDecodeQueries a block: a maximum, a sum and D values, padded to 132 floats.
  float* attention_parts;
};

// Without phases, and without operands that may no longer exist when the next chain is run.
inline void empty_chain(DecodeChain& chain) {
  chain.phases = 0;
  chain.positions = chain.past = chain.attend_from = nullptr;
}

// What one device allows; asked for once.
struct DecodeMachine {
  int processors, shared_bytes;
};

// Groups of rows that the matrices of a product have, and in how many pieces its width is best split.
int decode_items(int rows, const DecodeProduct& product);
int decode_splits(int rows, int width);
// Whether a product of this shape can be a phase (whole: its width may not be split).
bool decode_fits(int rows, int width, bool whole, const DecodeMachine& machine);
// For a pair of matrices, these outputs.
bool decode_pair_fits(int rows, int outputs);

void decode_chain(const DecodeChain& chain, const DecodeMachine& machine, cudaStream_t stream);

}  // namespace q4::gpu
