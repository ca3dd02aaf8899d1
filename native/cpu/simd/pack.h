// Packing of the operands of a matrix product, transposed and decoded on the way.
#pragma once
#include <cstdint>

#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/simd/load.h"
#include "cpu/simd/scale.h"

namespace q4::simd {

template <typename V>
void pack_rows(const float* x, int64_t ld, int64_t m, int64_t k, float* out) {
  constexpr int width = V::width;
  for (int64_t p = 0; p < k; p += width) {
    const int64_t count = k - p < width ? k - p : width;
    typename V::F rows[width];
    for (int64_t i = 0; i < m; ++i)
      rows[i] = count == width ? V::load(x + i * ld + p) : V::load_n(x + i * ld + p, count);
    for (int64_t i = m; i < width; ++i) rows[i] = V::zero();
    V::transpose(rows);
    // Each store spills over into the next column, which is written after it; the buffer has slack at its end.
    for (int64_t j = 0; j < count; ++j) V::store(out + (p + j) * m, rows[j]);
  }
}

template <typename V>
void pack_cols(const float* x, int64_t ld, int64_t m, int64_t k, float* out) {
  for (int64_t p = 0; p < k; ++p) V::store_n(out + p * m, V::load_n(x + p * ld, m), m);
}

// `rows` ≤ width rows of plain elements, transposed into a column group of the panel.
template <typename V, DType dtype>
void transpose_plain(const MatrixView& w, int64_t row, int64_t rows, int64_t col, int64_t k, float* out) {
  constexpr int width = V::width, stride = V::width * V::tile_vectors;
  for (int64_t p = 0; p < k; p += width) {
    const int64_t count = k - p < width ? k - p : width;
    typename V::F block[width];
    for (int64_t i = 0; i < width; ++i)
      block[i] = i < rows ? load_as<V, dtype>(w.data, (row + i) * w.cols + col + p, count) : V::zero();
    V::transpose(block);
    for (int64_t j = 0; j < count; ++j) V::store(out + (p + j) * stride, block[j]);
  }
}

// The same for NVFP4: a lane takes eight codes of its row at once, so shifting through them transposes.
template <typename V>
void transpose_nvfp4(const MatrixView& w, int64_t row, int64_t rows, int64_t col, int64_t k, float* out) {
  constexpr int width = V::width, stride = V::width * V::tile_vectors;
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + (row * w.cols + col) / 2;
  const uint8_t* scales = w.scale + (row * w.cols + col) / kBlock;
  const int64_t code_stride = w.cols / 2, scale_stride = w.cols / kBlock;
  for (int64_t p = 0; p < k; p += kBlock) {
    alignas(64) uint8_t scale_bytes[width];
    for (int64_t i = 0; i < width; ++i) scale_bytes[i] = i < rows ? scales[i * scale_stride + p / kBlock] : 0;
    const typename V::F scale = e4m3<V>(V::bytes_to_int(scale_bytes));
    for (int64_t half = 0; half < 2; ++half) {
      const uint8_t* base = codes + p / 2 + half * 4;
      typename V::I word;
      if (rows == width) {
        word = V::gather_words(base, code_stride);
      } else {
        alignas(64) uint8_t part[width * 4] = {};
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t byte = 0; byte < 4; ++byte) part[i * 4 + byte] = base[i * code_stride + byte];
        word = V::load_int(part);
      }
      float* to = out + (p + half * 8) * stride;
      for (int j = 0; j < 8; ++j) {
        V::store(to + j * stride, V::mul(V::e2m1(word), scale));
        word = V::template right<4>(word);
      }
    }
  }
}

template <typename V>
void pack_transposed(const MatrixView& w, int64_t row, int64_t rows, int64_t col, int64_t k, float* out) {
  constexpr int width = V::width, stride = V::width * V::tile_vectors;
  for (int group = 0; group < V::tile_vectors; ++group) {
    const int64_t first = group * width;
    int64_t count = rows - first < width ? rows - first : width;
    float* to = out + first;
    if (count <= 0) {
      for (int64_t p = 0; p < k; ++p) V::store(to + p * stride, V::zero());
    } else if (w.dtype == DType::nvfp4) {
      transpose_nvfp4<V>(w, row + first, count, col, k, to);
    } else {
      with_dtype(w.dtype, [&]<DType dtype>() { transpose_plain<V, dtype>(w, row + first, count, col, k, to); });
    }
  }
}

template <typename V>
void pack_straight(const MatrixView& w, int64_t row, int64_t k, int64_t col, int64_t cols, float* out) {
  constexpr int width = V::width, vectors = V::tile_vectors;
  if (w.dtype == DType::nvfp4) {
    for (int64_t p = 0; p < k; ++p)
      for (int group = 0; group < vectors; ++group) {
        float* to = out + (p * vectors + group) * width;
        const int64_t at = (row + p) * w.cols + col + group * width;
        if (group * width >= cols) {  // columns come in whole blocks, so a group is there or not
          V::store(to, V::zero());
          continue;
        }
        const typename V::F scale = V::set(kE4m3Values[w.scale[at / kBlock]]);
        V::store(to, V::mul(V::e2m1(V::nibbles(static_cast<const uint8_t*>(w.data) + at / 2)), scale));
      }
    return;
  }
  with_dtype(w.dtype, [&]<DType dtype>() {
    for (int64_t p = 0; p < k; ++p)
      for (int group = 0; group < vectors; ++group) {
        const int64_t left = cols - group * width;
        V::store(out + (p * vectors + group) * width,
                 left > 0 ? load_as<V, dtype>(w.data, (row + p) * w.cols + col + group * width, left) : V::zero());
      }
  });
}

}  // namespace q4::simd
