// Fills a Kernels table from the templates of this directory.
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd/elementwise.h"
#include "cpu/simd/gemm_tile.h"
#include "cpu/simd/gemv.h"
#include "cpu/simd/optimizer.h"
#include "cpu/simd/pack.h"
#include "cpu/simd/rows.h"

namespace q4::simd {

template <typename V, int m>
void fill_tiles(Kernels& table) {
  if constexpr (m > 0) {
    table.tile[m] = gemm_tile<V, m>;
    fill_tiles<V, m - 1>(table);
  }
}

template <typename V>
Kernels make_kernels() {
  Kernels table{};
  table.name = V::name;
  table.width = V::width;
  table.tile_rows = V::tile_rows;
  table.tile_cols = V::width * V::tile_vectors;
  fill_tiles<V, V::tile_rows>(table);
  table.pack_rows = pack_rows<V>;
  table.pack_cols = pack_cols<V>;
  table.pack_transposed = pack_transposed<V>;
  table.pack_straight = pack_straight<V>;
  table.arranged_size = arranged_size<V>;
  table.arrange = arrange<V>;
  table.gemv = gemv<V>;
  table.norm_row = norm_row<V>;
  table.norm_row_backward = norm_row_backward<V>;
  table.norm_weight_gradient = norm_weight_gradient<V>;
  table.rotate = rotate<V>;
  table.row_max = row_max<V>;
  table.exp_row = exp_row<V>;
  table.exp_sum = exp_sum<V>;
  table.softmax_gradient = softmax_gradient<V>;
  table.scale_row = scale_row<V>;
  table.dot = dot<V>;
  table.dot_rows = dot_rows<V>;
  table.weigh_rows = weigh_rows<V>;
  table.add = add<V>;
  table.swiglu = swiglu<V>;
  table.swiglu_backward = swiglu_backward<V>;
  table.convert = convert<V>;
  table.sum_squares = sum_squares<V>;
  table.amax = amax<V>;
  table.adamw = adamw<V>;
  table.quantize = quantize<V>;
  return table;
}

}  // namespace q4::simd
