// A weight matrix times one to eight rows of activations: bound by reading the weight once.
#pragma once
#include <cstdint>

#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/simd/load.h"
#include "cpu/simd/scale.h"

namespace q4::simd {

// NVFP4: a chunk is one vector of 32-bit words, lane i holding the eight codes 8i..8i+7. Activations are arranged so
// that vector j of a chunk holds x[8i + j] in lane i; then shifting the words by 4j meets them. Zero beyond k.
template <typename V>
int64_t arranged_size(DType weight, int64_t k) {
  const int64_t chunk = weight == DType::nvfp4 ? 8 * V::width : V::width;
  return (k + chunk - 1) / chunk * chunk;
}

template <typename V>
void arrange(DType weight, const float* x, int64_t k, float* out) {
  const int64_t size = arranged_size<V>(weight, k);
  if (weight != DType::nvfp4) {
    for (int64_t p = 0; p < size; ++p) out[p] = p < k ? x[p] : 0.0f;
    return;
  }
  constexpr int64_t chunk = 8 * V::width;
  for (int64_t base = 0; base < size; base += chunk)
    for (int64_t j = 0; j < 8; ++j)
      for (int64_t i = 0; i < V::width; ++i) {
        const int64_t p = base + 8 * i + j;
        out[base + j * V::width + i] = p < k ? x[p] : 0.0f;
      }
}

// Rows o .. o+group of W against `rows` rows of x.
template <typename V, int group, int rows>
void gemv_nvfp4(const MatrixView& w, int64_t o, const float* x, int64_t x_stride, float alpha, float* y, int64_t ldy) {
  constexpr int width = V::width, chunk = 8 * V::width;
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + o * (w.cols / 2);
  const uint8_t* scales = w.scale + o * (w.cols / kBlock);
  typename V::F total[group][rows];
  for (int g = 0; g < group; ++g)
    for (int r = 0; r < rows; ++r) total[g][r] = V::zero();
  for (int64_t p = 0; p < w.cols; p += chunk) {
    const int64_t left = w.cols - p < chunk ? w.cols - p : chunk;
    typename V::I word[group];
    typename V::F sum[group][rows];
#pragma GCC unroll 8
    for (int g = 0; g < group; ++g) {
      const uint8_t* at = codes + g * (w.cols / 2) + p / 2;
      __builtin_prefetch(at + 1024);
      word[g] = left == chunk ? V::load_int(at) : V::load_int_n(at, left / 8);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) sum[g][r] = V::zero();
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
#pragma GCC unroll 8
      for (int g = 0; g < group; ++g) {
        const typename V::F value = V::e2m1(word[g]);
        word[g] = V::template right<4>(word[g]);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum[g][r] = V::fma(value, V::load(x + r * x_stride + p + j * width), sum[g][r]);
      }
#pragma GCC unroll 8
    for (int g = 0; g < group; ++g) {
      const uint8_t* at = scales + g * (w.cols / kBlock) + p / kBlock;
      const typename V::F scale = e4m3<V>(V::bytes_twice(at, left / kBlock));
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) total[g][r] = V::fma(sum[g][r], scale, total[g][r]);
    }
  }
  for (int g = 0; g < group; ++g)
    for (int r = 0; r < rows; ++r) y[r * ldy + o + g] = alpha * V::sum(total[g][r]);
}

template <typename V, DType dtype, int group, int rows>
void gemv_plain(const MatrixView& w, int64_t o, const float* x, int64_t x_stride, float alpha, float* y, int64_t ldy) {
  typename V::F total[group][rows];
  for (int g = 0; g < group; ++g)
    for (int r = 0; r < rows; ++r) total[g][r] = V::zero();
  for (int64_t p = 0; p < w.cols; p += V::width)
#pragma GCC unroll 8
    for (int g = 0; g < group; ++g) {
      const typename V::F value = load_as<V, dtype>(w.data, (o + g) * w.cols + p, w.cols - p);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) total[g][r] = V::fma(value, V::load(x + r * x_stride + p), total[g][r]);
    }
  for (int g = 0; g < group; ++g)
    for (int r = 0; r < rows; ++r) y[r * ldy + o + g] = alpha * V::sum(total[g][r]);
}

template <typename V, int group, int rows>
void gemv_group(const MatrixView& w, int64_t o, const float* x, int64_t x_stride, float alpha, float* y, int64_t ldy) {
  if (w.dtype == DType::nvfp4)
    gemv_nvfp4<V, group, rows>(w, o, x, x_stride, alpha, y, ldy);
  else
    with_dtype(w.dtype, [&]<DType dtype>() { gemv_plain<V, dtype, group, rows>(w, o, x, x_stride, alpha, y, ldy); });
}

template <typename V, int rows>
void gemv_rows(const MatrixView& w, int64_t begin, int64_t end, const float* x, float alpha, float* y, int64_t ldy) {
  // Rows of W in flight: as many as leave registers for the sums.
  constexpr int group = rows == 1 ? 4 : rows <= 4 ? 2 : 1;
  const int64_t stride = arranged_size<V>(w.dtype, w.cols);
  int64_t o = begin;
  for (; o + group <= end; o += group) gemv_group<V, group, rows>(w, o, x, stride, alpha, y, ldy);
  for (; o < end; ++o) gemv_group<V, 1, rows>(w, o, x, stride, alpha, y, ldy);
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
