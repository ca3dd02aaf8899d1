// What an instruction set provides: single-threaded loops over contiguous data. The fast backend splits work over
// threads and calls these; simd/*.h holds each loop once, as a template over the vector type.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace q4 {

// A row-major matrix in any weight dtype. nvfp4 values leave out the global scale: callers put it into the product.
struct MatrixView {
  DType dtype = DType::f32;
  const void* data = nullptr;
  const uint8_t* scale = nullptr;
  int64_t cols = 0;
};

constexpr int kMaxTileRows = 14;
// Rows of activations that the dequantising matrix-vector product takes at most.
constexpr int kMaxVectorRows = 8;
// Most floats that a kernel may write past the end of what it packs.
constexpr int64_t kPackSlack = 16;

struct AdamwStep {
  float clip, lr, beta1, beta2, eps, shrink, correction1, correction2;  // shrink = lr·weight_decay, 0 without decay
  uint32_t seed_lo, seed_hi, stream, step;
};

struct Kernels {
  const char* name;
  int width;      // fp32 lanes
  int tile_rows;  // rows and columns of the matrix product's register tile
  int tile_cols;

  // ---- matrix product (simd/gemm_tile.h, simd/pack.h) ----------------------------------------------------------
  // c[i, j] = (add ? c[i, j] : 0) + alpha·Σ_p a[p·m + i]·b[p·tile_cols + j] for i < m, j < n; indexed by m.
  using Tile = void (*)(int64_t k, const float* a, const float* b, float alpha, bool add, float* c, int64_t ldc,
                        int64_t n);
  Tile tile[kMaxTileRows + 1];
  // out[p·m + i] = x[i·ld + p], m ≤ tile_rows.
  void (*pack_rows)(const float* x, int64_t ld, int64_t m, int64_t k, float* out);
  // out[p·m + i] = x[p·ld + i].
  void (*pack_cols)(const float* x, int64_t ld, int64_t m, int64_t k, float* out);
  // out[p·tile_cols + j] = w[row + j, col + p], j < rows ≤ tile_cols, zero beyond.  For x·Wᵀ.
  void (*pack_transposed)(const MatrixView& w, int64_t row, int64_t rows, int64_t col, int64_t k, float* out);
  // out[p·tile_cols + j] = w[row + p, col + j], j < cols ≤ tile_cols, zero beyond.  For dy·W.
  void (*pack_straight)(const MatrixView& w, int64_t row, int64_t k, int64_t col, int64_t cols, float* out);

  // ---- matrix × few vectors (simd/gemv.h) ------------------------------------------------------------------------
  // Floats that one row of k activations takes when arranged.
  int64_t (*arranged_size)(DType weight, int64_t k);
  void (*arrange)(DType weight, const float* x, int64_t k, float* out);
  // y[i·ldy + o] = alpha·Σ_p x[i, p]·w[o, p] for o in [begin, end), i < rows; x arranged, one row after another.
  void (*gemv)(const MatrixView& w, int64_t begin, int64_t end, const float* x, int64_t rows, float alpha, float* y,
               int64_t ldy);

  // ---- rows (simd/norm.h, simd/softmax.h) ----------------------------------------------------------------------
  // y = (x·rstd)·weight; returns rstd. With `branch`, sum = x + branch first, and that is normalised.
  float (*norm_row)(const float* x, const float* branch, const float* weight, int64_t n, float eps, float* sum,
                    float* y);
  // dx = residual + rstd·(g − x·rstd·mean(g·x·rstd)), g = dy·weight; residual may be null; dx may be dy or residual.
  void (*norm_row_backward)(const float* dy, const float* x, const float* weight, float rstd, const float* residual,
                            int64_t n, float* dx);
  // out += dy·x·rstd.
  void (*norm_weight_gradient)(const float* dy, const float* x, float rstd, int64_t n, float* out);
  // Half-split rotation of one head: by the angles, or back (gradient).
  void (*rotate)(const float* x, const float* cos, const float* sin, int64_t head_dim, bool back, float* y);
  float (*row_max)(const float* x, int64_t n);
  // y = exp(x·scale − shift); returns Σ y. y may be x.
  double (*exp_row)(const float* x, int64_t n, float scale, float shift, float* y);
  // Σ exp((x − shift)·scale).
  double (*exp_sum)(const float* x, int64_t n, float shift, float scale);
  // x = p·(dp − delta)·scale where p = exp(x − lse): the scores' gradient in place, and p kept in `probability`.
  void (*softmax_gradient)(float* x, const float* dp, int64_t n, float lse, float delta, float scale,
                           float* probability);
  void (*scale_row)(float* x, float factor, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  // out[j] = scale·Σ_d q[d]·rows[j·ld + d], j < n, d < dim.
  void (*dot_rows)(const float* q, const float* rows, int64_t ld, int64_t n, int64_t dim, float scale, float* out);
  // y[d] = factor·Σ_j weight[j]·rows[j·ld + d].
  void (*weigh_rows)(const float* weight, const float* rows, int64_t ld, int64_t n, int64_t dim, float factor,
                     float* y);

  // ---- elementwise (simd/elementwise.h) --------------------------------------------------------------------------
  void (*add)(const float* a, const float* b, int64_t n, float* y);
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* y);
  void (*swiglu_backward)(const float* dy, const float* gate, const float* up, int64_t n, float* dgate, float* dup);
  // f32, bf16, f16 → the same.
  void (*convert)(DType from, const void* x, DType to, void* y, int64_t n);

  // ---- optimizer (simd/optimizer.h) --------------------------------------------------------------------------------
  double (*sum_squares)(DType dtype, const void* x, int64_t n);
  float (*amax)(DType dtype, const void* x, int64_t n);
  // Elements [first, first + n) of a tensor; first is a multiple of 64. The bits of the reference.
  void (*adamw)(const AdamwStep& step, DType grad_dtype, const void* grad, DType master_dtype, void* master, float* m,
                float* v, int64_t first, int64_t n);
  // n / 16 blocks; returns how many codes changed. The bits of the reference.
  int64_t (*quantize)(DType dtype, const void* x, int64_t n, float global, uint8_t* codes, uint8_t* scales);
};

// Null when the build or the machine does not have the instruction set.
const Kernels* avx512vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

// All E4M3 values, by their bits.
extern const float* const kE4m3Values;

}  // namespace q4
