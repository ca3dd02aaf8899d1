#include "cpu/gemm.h"

#include <algorithm>

#include "cpu/block_product.h"

namespace q4 {
namespace {

// A step of K: a left panel of 14 rows (14 KB) stays in the first cache level. A multiple of the NVFP4 block.
constexpr int64_t kStepK = 256;
// What is packed of A at a time (8 MB): stays in the last cache level.
constexpr int64_t kRowsPacked = 2048, kDepthPacked = 1024;
// Columns that one task packs and multiplies at a time, at most: 256 KB, stays in the second cache level.
constexpr int64_t kTaskCols = 256;
// Rows a task must have for its packing of B to be cheap beside its products.
constexpr int64_t kTaskRows = 256;

}  // namespace

void Gemm::run(int64_t m, int64_t n, int64_t k, const LeftOperand& a, const RightOperand& b, float alpha, bool add,
               float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (!add)
      for (int64_t i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + n, 0.0f);
    return;
  }
  const int64_t tile_cols = kernels_.tile_cols, tile_rows = kernels_.tile_rows;
  for (int64_t row0 = 0; row0 < m; row0 += kRowsPacked) {
    const int64_t rows = std::min(kRowsPacked, m - row0);
    const Panels panels(rows, tile_rows);
    // Enough tasks for the threads to share evenly: first fewer columns each, then blocks of rows.
    const int64_t wanted = pool_.threads() == 1 ? 1 : 4 * int64_t{pool_.threads()};
    const int64_t task_cols = std::clamp(ceil_div(ceil_div(n, wanted), tile_cols) * tile_cols, tile_cols, kTaskCols);
    const int64_t col_tasks = ceil_div(n, task_cols);
    const int64_t row_tasks = std::clamp<int64_t>(wanted / col_tasks, 1, std::max<int64_t>(1, rows / kTaskRows));
    const Panels row_groups(panels.count, ceil_div(panels.count, row_tasks));
    for (int64_t depth0 = 0; depth0 < k; depth0 += kDepthPacked) {
      const int64_t depth = std::min(kDepthPacked, k - depth0);
      float* left = left_.floats(rows * depth + kPackSlack * panels.count);
      // A panel starts behind the slack of those before it, so that spilling stores of two threads never meet.
      const auto panel_at = [&](int64_t panel) { return left + panels.first(panel) * depth + panel * kPackSlack; };
      pool_.run(panels.count, [&](int64_t panel, int) {
        const int64_t row = row0 + panels.first(panel), height = panels.rows(panel);
        if (a.transposed)
          kernels_.pack_cols(a.data + depth0 * a.ld + row, a.ld, height, depth, panel_at(panel));
        else
          kernels_.pack_rows(a.data + row * a.ld + depth0, a.ld, height, depth, panel_at(panel));
      });
      pool_.run(col_tasks * row_groups.count, [&](int64_t task, int worker) {
        const int64_t col0 = task % col_tasks * task_cols, cols = std::min(task_cols, n - col0);
        const int64_t group = task / col_tasks;
        float* right = right_[static_cast<size_t>(worker)].floats(task_cols * kStepK + kPackSlack);
        for (int64_t step0 = 0; step0 < depth; step0 += kStepK) {
          const int64_t step = std::min(kStepK, depth - step0), at = depth0 + step0;
          for (int64_t j = 0; j < cols; j += tile_cols) {
            const int64_t width = std::min(tile_cols, cols - j);
            if (b.transposed)
              kernels_.pack_transposed(b.matrix, col0 + j, width, at, step, right + j * step);
            else
              kernels_.pack_straight(b.matrix, at, step, col0 + j, width, right + j * step);
          }
          const bool keep = add || at > 0;
          for (int64_t p = row_groups.first(group); p < row_groups.first(group) + row_groups.rows(group); ++p) {
            const int64_t height = panels.rows(p);
            const float* packed = panel_at(p) + step0 * height;
            float* out = c + (row0 + panels.first(p)) * ldc + col0;
            for (int64_t j = 0; j < cols; j += tile_cols)
              kernels_.tile[height](step, packed, right + j * step, alpha, keep, out + j, ldc,
                                    std::min(tile_cols, cols - j));
          }
        }
      });
    }
  }
}

}  // namespace q4
