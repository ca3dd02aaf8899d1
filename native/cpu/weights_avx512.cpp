#include "cpu/weights.h"

#if defined(__x86_64__)
// GCC 12 warns about the deliberately undefined pass-through operands of its own AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "cpu/simd/quantise_blocks.h"
#include "cpu/simd/vector_avx512.h"

namespace q4 {
const WeightKernels* avx512_weight_kernels() {
  static const WeightKernels table = simd::make_weight_kernels<Avx512>();
  return &table;
}
}  // namespace q4
#else
namespace q4 {
const WeightKernels* avx512_weight_kernels() { return nullptr; }
}  // namespace q4
#endif
