// Products of a decode step: NVFP4 matrices streamed through shared memory against 1–16 rows, with what comes before and
// after them in the same kernel. Kernel: decode_product.cu.
#pragma once
#include <cstdint>

#include "cuda/check.h"

namespace q4::gpu {

struct bf16;

constexpr int kDecodeRows = 16;

struct DecodeMatrix {
  const uint8_t *codes, *scales;
  const float* global;
  void* y;  // [rows, outputs]; may be null for the two matrices of a pair
  int outputs;
};

struct DecodeProduct {
  // y_m = x·W_mᵀ for up to three matrices of one width. paired: matrices 0 and 1 are gate and up, and
  // activated = silu(gate)·up.
  DecodeMatrix matrix[3];
  int matrices, rows, width;
  bool paired, wide_output;  // wide_output: y is f32
  bf16* activated;
  // x, or with norm_weight its RMSNorm; with branch the norm of x + branch.
  const bf16 *x, *branch;
  const float* norm_weight;
  float eps;
  // What the norm leaves behind; written when every block has read x and branch, so `sum` may be in place of either.
  bf16 *sum, *normed;
  float* rstd;
  uint32_t* ticket;  // zero between kernels
  // Copies made on the way, between buffers that nothing else here touches.
  struct Copy {
    const bf16* from;
    bf16* to;
    int count;
  } copies[3];
};

// Whether decode_product takes this shape: activations stay in shared memory, so width · rows is bounded.
bool decode_product_fits(int rows, int width);
// And, for a pair of matrices, these outputs.
bool decode_pair_fits(int width, int outputs);
void decode_product(const DecodeProduct& call, int processors, cudaStream_t stream, bool overlap);
// Only call.copies.
void decode_copies(const DecodeProduct& call, cudaStream_t stream, bool overlap);

}  // namespace q4::gpu
