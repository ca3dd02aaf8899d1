#include "cpu/kernels.h"

#if defined(__x86_64__)
// GCC 12 warns about the deliberately undefined pass-through operands of its own AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "cpu/simd/table.h"
#include "cpu/simd/vector_avx512.h"

namespace q4 {
const Kernels* avx512_kernels() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return nullptr;
  static const Kernels table = simd::make_kernels<Avx512>();
  return &table;
}
}  // namespace q4
#else
namespace q4 {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace q4
#endif
