// The register tile of the matrix product.
#pragma once
#include <cstdint>

namespace q4::simd {

// a [k][m], b [k][tile_cols] packed. Each output is one chain of fused multiply-adds over k, in order, wherever in a
// tile it stands: so it does not depend on how rows and columns were grouped.
template <typename V, int m>
void gemm_tile(int64_t k, const float* a, const float* b, float alpha, bool add, float* c, int64_t ldc, int64_t n) {
  constexpr int vectors = V::tile_vectors, width = V::width;
  typename V::F sum[m][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < m; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = V::zero();
  for (int64_t p = 0; p < k; ++p) {
    typename V::F right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = V::load(b + j * width);
#pragma GCC unroll 16
    for (int i = 0; i < m; ++i) {
      const typename V::F left = V::set(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = V::fma(left, right[j], sum[i][j]);
    }
    a += m;
    b += vectors * width;
  }
  const typename V::F factor = V::set(alpha);
#pragma GCC unroll 16
  for (int i = 0; i < m; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* out = c + i * ldc + j * width;
      const int64_t left = n - j * width;
      if (left >= width) {
        V::store(out, add ? V::fma(factor, sum[i][j], V::load(out)) : V::mul(factor, sum[i][j]));
      } else if (left > 0) {
        const typename V::F result = add ? V::fma(factor, sum[i][j], V::load_n(out, left)) : V::mul(factor, sum[i][j]);
        V::store_n(out, result, left);
      }
    }
}

}  // namespace q4::simd
