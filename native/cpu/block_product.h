// A product of packed blocks on one thread, and the cutting of rows into panels that it shares with Gemm.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"

namespace q4 {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cuts `rows` ≥ 1 into panels of at most `largest` rows, as equal as can be.
struct Panels {
  int64_t count, base, larger;  // the first `larger` panels have base + 1 rows
  Panels(int64_t rows, int64_t largest) : count(ceil_div(rows, largest)), base(rows / count), larger(rows % count) {}
  int64_t first(int64_t panel) const { return panel * base + std::min(panel, larger); }
  int64_t rows(int64_t panel) const { return base + (panel < larger ? 1 : 0); }
};

class BlockProduct {
 public:
  explicit BlockProduct(const Kernels& kernels) : kernels_(kernels) {}

  // Floats that packed operands take.
  int64_t left_size(int64_t rows, int64_t k) const { return rows * k + kPackSlack; }
  int64_t right_size(int64_t cols, int64_t k) const {
    return ceil_div(cols, kernels_.tile_cols) * kernels_.tile_cols * k;
  }

  // A[i, p] = x[i·ld + p], or x[p·ld + i] when transposed.
  void pack_left(const float* x, int64_t ld, bool transposed, int64_t rows, int64_t k, float* out) const {
    const Panels panels(rows, kernels_.tile_rows);
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.first(p);
      if (transposed)
        kernels_.pack_cols(x + first, ld, panels.rows(p), k, out + first * k);
      else
        kernels_.pack_rows(x + first * ld, ld, panels.rows(p), k, out + first * k);
    }
  }
  // B[p, j] = w[row + p, col + j].
  void pack_right(const MatrixView& w, int64_t row, int64_t k, int64_t col, int64_t cols, float* out) const {
    for (int64_t j = 0; j < cols; j += kernels_.tile_cols)
      kernels_.pack_straight(w, row, k, col + j, std::min<int64_t>(kernels_.tile_cols, cols - j), out + j * k);
  }
  // B[p, j] = w[row + j, col + p].
  void pack_right_transposed(const MatrixView& w, int64_t row, int64_t cols, int64_t col, int64_t k, float* out) const {
    for (int64_t j = 0; j < cols; j += kernels_.tile_cols)
      kernels_.pack_transposed(w, row + j, std::min<int64_t>(kernels_.tile_cols, cols - j), col, k, out + j * k);
  }
  // c [rows, cols] (+)= alpha·A·B.
  void multiply(int64_t rows, int64_t cols, int64_t k, const float* a, const float* b, float alpha, bool add, float* c,
                int64_t ldc) const {
    const Panels panels(rows, kernels_.tile_rows);
    for (int64_t p = 0; p < panels.count; ++p)
      for (int64_t j = 0; j < cols; j += kernels_.tile_cols)
        kernels_.tile[panels.rows(p)](k, a + panels.first(p) * k, b + j * k, alpha, add, c + panels.first(p) * ldc + j,
                                      ldc, std::min<int64_t>(kernels_.tile_cols, cols - j));
  }

 private:
  const Kernels& kernels_;
};

}  // namespace q4
