// Cuts the rows of a cross-entropy into chunks whose logits fit in the scratch tensor.
#pragma once
#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/tensor.h"

namespace q4 {

struct LossChunk {
  int64_t first_row;
  Tensor x, dx, logits;  // [n, H], [n, H] or absent, [n, V]
  const int32_t* labels;
};

inline void check_label(int32_t label, int64_t vocabulary) {
  if (label >= vocabulary)
    throw Error("Q4510", "linear_cross_entropy: label " + std::to_string(label) + " lies outside the vocabulary of " +
                             std::to_string(vocabulary));
}

// Rows [first, first + count) of a matrix; an absent tensor stays absent.
inline Tensor row_slice(const Tensor& matrix, int64_t first, int64_t count) {
  Tensor slice = matrix;
  if (matrix) slice.data = matrix.as<char>() + first * matrix.cols() * element_bytes(matrix.dtype);
  slice.dims[0] = count;
  return slice;
}

// x [N, H], labels i32 [N], dx [N, H] optional, scratch f32 [R, V], R ≥ 1 → body(chunk) for chunks of R rows in order.
template <typename Body>
void for_each_chunk(const Tensor& x, const Tensor& labels, const Tensor& dx, const Tensor& scratch, Body&& body) {
  const int64_t rows = x.rows();
  if (rows == 0) return;
  if (!scratch || scratch.rows() < 1) throw Error("Q4510", "linear_cross_entropy: scratch [R, V] is missing");
  for (int64_t first = 0; first < rows; first += scratch.rows()) {
    const int64_t count = std::min(scratch.rows(), rows - first);
    body(LossChunk{first, row_slice(x, first, count), row_slice(dx, first, count), row_slice(scratch, 0, count),
                   labels.i32() + first});
  }
}

}  // namespace q4
