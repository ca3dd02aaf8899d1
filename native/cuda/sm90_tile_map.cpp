// Tensor maps are encoded by the driver; its entry point is asked for at run time, so that nothing links with libcuda.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "core/error.h"
#include "cuda/check.h"

namespace q4::gpu::sm90 {

CUtensorMap tile_map(const void* data, int64_t columns, int64_t rows, int64_t batch, int box_rows) {
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
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(columns) * 2, static_cast<cuuint64_t>(columns * rows) * 2};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), 1}, steps[3] = {1, 1, 1};
  CUtensorMap map{};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw Error("Q4900", "cuTensorMapEncodeTiled failed with status " + std::to_string(status));
  return map;
}

}  // namespace q4::gpu::sm90
