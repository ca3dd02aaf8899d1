// A weight matrix times one to eight rows of activations: bound by reading the weight once.
#pragma once
#include <cstdint>

#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/simd/gemv_nvfp4.h"
#include "cpu/simd/load.h"
#include "cpu/simd/scale.h"

namespace q4::simd {

// Floats of one row of k activations, arranged for gemv: integers for NVFP4 where the machine has byte products,
// otherwise fp32 padded with zeros.
template <typename V>
int64_t arranged_size(DType weight, int64_t k) {
  if constexpr (V::byte_products) {
    constexpr int64_t chunk = V::width * kBlock;
    if (weight == DType::nvfp4) return (k + chunk - 1) / chunk * kChunkVectors<V> * V::width;
  }
  const int64_t chunk = weight == DType::nvfp4 ? 8 * V::width : V::width;
  return (k + chunk - 1) / chunk * chunk;
}

template <typename V>
void arrange(DType weight, const float* x, int64_t k, float* out) {
  if constexpr (V::byte_products) {
    if (weight == DType::nvfp4) return arrange_integers<V>(x, k, out);
  }
  const int64_t size = arranged_size<V>(weight, k);
  if (weight != DType::nvfp4) {
    for (int64_t p = 0; p < size; ++p) out[p] = p < k ? x[p] : 0.0f;
    return;
  }
  // A chunk is one vector of 32-bit words, lane i holding the codes 8i..8i+7: vector j takes x[8i + j] in lane i.
  constexpr int64_t chunk = 8 * V::width;
  for (int64_t base = 0; base < size; base += chunk)
    for (int64_t j = 0; j < 8; ++j)
      for (int64_t i = 0; i < V::width; ++i) {
        const int64_t p = base + 8 * i + j;
        out[base + j * V::width + i] = p < k ? x[p] : 0.0f;
      }
}

// NVFP4 in fp32 lanes: shifting the words by 4j meets vector j of a chunk.
template <typename V, int rows>
void gemv_lanes(const MatrixView& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, float alpha,
                float* y, int64_t ldy) {
  using F = typename V::F;
  constexpr int width = V::width, chunk = 8 * V::width;
  for (int64_t o = begin; o < end; ++o) {
    const uint8_t* codes = static_cast<const uint8_t*>(w.data) + o * (w.cols / 2);
    const uint8_t* scales = w.scale + o * (w.cols / kBlock);
    F total[rows];
    for (int r = 0; r < rows; ++r) total[r] = V::zero();
    for (int64_t p = 0; p < w.cols; p += chunk) {
      const int64_t left = w.cols - p < chunk ? w.cols - p : chunk;
      typename V::I word = left == chunk ? V::load_int(codes + p / 2) : V::load_int_n(codes + p / 2, left / 8);
      F sum[rows];
      for (int r = 0; r < rows; ++r) sum[r] = V::zero();
      for (int j = 0; j < 8; ++j) {
        const F value = V::e2m1(word);
        word = V::template right<4>(word);
        for (int r = 0; r < rows; ++r) sum[r] = V::fma(value, V::load(x + r * x_stride + p + j * width), sum[r]);
      }
      const F scale = e4m3<V>(V::bytes_twice(scales + p / kBlock, left / kBlock));
      for (int r = 0; r < rows; ++r) total[r] = V::fma(sum[r], scale, total[r]);
    }
    for (int r = 0; r < rows; ++r) y[r * ldy + o] = alpha * V::sum(total[r]);
  }
}

template <typename V, DType dtype, int rows>
void gemv_plain(const MatrixView& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, float alpha,
                float* y, int64_t ldy) {
  using F = typename V::F;
  constexpr int width = V::width;
  // Chains a row: enough to hide the latency of the sums.
  constexpr int chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;
  for (int64_t o = begin; o < end; ++o) {
    F total[rows][chains];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) total[r][c] = V::zero();
    const int64_t base = o * w.cols;
    int64_t p = 0;
    for (; p + chains * width <= w.cols; p += chains * width)
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) {
        const F value = load_as<V, dtype>(w.data, base + p + c * width, width);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
          total[r][c] = V::fma(value, V::load(x + r * x_stride + p + c * width), total[r][c]);
      }
    for (; p < w.cols; p += width) {
      const F value = load_as<V, dtype>(w.data, base + p, w.cols - p);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) total[r][0] = V::fma(value, V::load(x + r * x_stride + p), total[r][0]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      F sum = total[r][0];
#pragma GCC unroll 4
      for (int c = 1; c < chains; ++c) sum = V::add(sum, total[r][c]);
      y[r * ldy + o] = alpha * V::sum(sum);
    }
  }
}

template <typename V, int rows>
void gemv_rows(const MatrixView& w, int64_t begin, int64_t end, const float* x, float alpha, float* y, int64_t ldy) {
  const int64_t stride = arranged_size<V>(w.dtype, w.cols);
  if (w.dtype == DType::nvfp4) {
    if constexpr (V::byte_products)
      gemv_integers<V, rows>(w, begin, end, x, stride, alpha, y, ldy);
    else
      gemv_lanes<V, rows>(w, begin, end, x, stride, alpha, y, ldy);
    return;
  }
  with_dtype(w.dtype, [&]<DType dtype>() { gemv_plain<V, dtype, rows>(w, begin, end, x, stride, alpha, y, ldy); });
}

template <typename V>
void gemv(const MatrixView& w, int64_t begin, int64_t end, const float* x, int64_t rows, float alpha, float* y,
          int64_t ldy) {
  switch (rows) {
    case 1:
      return gemv_rows<V, 1>(w, begin, end, x, alpha, y, ldy);
    case 2:
      return gemv_rows<V, 2>(w, begin, end, x, alpha, y, ldy);
    case 3:
      return gemv_rows<V, 3>(w, begin, end, x, alpha, y, ldy);
    case 4:
      return gemv_rows<V, 4>(w, begin, end, x, alpha, y, ldy);
    case 5:
      return gemv_rows<V, 5>(w, begin, end, x, alpha, y, ldy);
    case 6:
      return gemv_rows<V, 6>(w, begin, end, x, alpha, y, ldy);
    case 7:
      return gemv_rows<V, 7>(w, begin, end, x, alpha, y, ldy);
    default:
      return gemv_rows<V, 8>(w, begin, end, x, alpha, y, ldy);
  }
}

}  // namespace q4::simd
