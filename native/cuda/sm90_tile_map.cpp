// Tensor maps are encoded by the driver; its entry point is asked for at run time, so that nothing links with libcuda.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>

#include "core/error.h"
#include "cuda/check.h"

namespace q4::gpu::sm90 {

namespace {

// A matrix of any rank up to 4, innermost first; strides in bytes, from the second dimension on.
struct Matrix {
  const void* data;
  CUtensorMapDataType type;
  std::array<int64_t, 4> sizes, box;
  std::array<int64_t, 3> strides;
  int rank;
  CUtensorMapSwizzle swizzle;
};

CUtensorMap encoded(const Matrix& m) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    Q4_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    return reinterpret_cast<Encode>(function);
  }();
  if (!encode)
    throw Error("Q4402", "the CUDA driver is too old: it has no cuTensorMapEncodeTiled",
                "install a driver for CUDA 13");
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4];
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; ++i)
    sizes[i] = static_cast<cuuint64_t>(m.sizes[i]), box[i] = static_cast<cuuint32_t>(m.box[i]);
  for (int i = 0; i < 3; ++i) strides[i] = static_cast<cuuint64_t>(m.strides[i]);
  CUtensorMap map{};
  const CUresult status = encode(&map, m.type, static_cast<cuuint32_t>(m.rank), const_cast<void*>(m.data), sizes,
                                 strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, m.swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw Error("Q4900", "cuTensorMapEncodeTiled failed with status " + std::to_string(status));
  return map;
}

}  // namespace

CUtensorMap tile_map(const void* data, int64_t columns, int64_t rows, int64_t batch, int box_rows) {
  return encoded({data,
                  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                  {columns, rows, batch},
                  {64, box_rows, 1},
                  {columns * 2, columns * rows * 2},
                  3,
                  CU_TENSOR_MAP_SWIZZLE_128B});
}

// Of NVFP4 codes, 16 rows, or 8 of each of two matrices, and `lines` times 128 bytes, one after the other, swizzled.
CUtensorMap code_map(const void* data, int64_t row_bytes, int64_t rows, int64_t apart, int lines) {
  constexpr int64_t kLine = 128;
  const bool pair = apart > 0;
  return encoded({data,
                  CU_TENSOR_MAP_DATA_TYPE_UINT8,
                  {kLine, rows, pair ? 2 : 1, row_bytes / kLine},
                  {kLine, pair ? 8 : 16, pair ? 2 : 1, lines},
                  {row_bytes, pair ? apart : row_bytes * rows, kLine},
                  4,
                  CU_TENSOR_MAP_SWIZZLE_128B});
}
// Of scales, the same rows.
CUtensorMap scale_map(const void* data, int64_t row_bytes, int64_t rows, int64_t apart, int box_bytes) {
  const bool pair = apart > 0;
  return encoded({data,
                  CU_TENSOR_MAP_DATA_TYPE_UINT8,
                  {row_bytes, rows, pair ? 2 : 1},
                  {box_bytes, pair ? 8 : 16, pair ? 2 : 1},
                  {row_bytes, pair ? apart : row_bytes * rows},
                  3,
                  CU_TENSOR_MAP_SWIZZLE_NONE});
}

// Of a cache, rows of heads of 256 bytes: halves of a head in so many rows, one after the other, swizzled.
CUtensorMap cache_map(const void* data, int64_t row_bytes, int64_t rows, int box_rows) {
  constexpr int64_t kHalf = 128;
  return encoded({data,
                  CU_TENSOR_MAP_DATA_TYPE_UINT8,
                  {kHalf, rows, row_bytes / kHalf},
                  {kHalf, box_rows, 2},
                  {row_bytes, kHalf},
                  3,
                  CU_TENSOR_MAP_SWIZZLE_128B});
}

}  // namespace q4::gpu::sm90
