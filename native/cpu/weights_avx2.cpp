#include "cpu/weights.h"

#if defined(__x86_64__)
#include "cpu/simd/quantise_blocks.h"
#include "cpu/simd/vector_avx2.h"

namespace q4 {
const WeightKernels* avx2_weight_kernels() {
  static const WeightKernels table = simd::make_weight_kernels<Avx2>();
  return &table;
}
}  // namespace q4
#else
namespace q4 {
const WeightKernels* avx2_weight_kernels() { return nullptr; }
}  // namespace q4
#endif
