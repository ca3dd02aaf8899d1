#include "cpu/kernels.h"

#if defined(__x86_64__)
// GCC 12 warns about the deliberately undefined pass-through operands of its own AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "cpu/simd/gemv.h"
#include "cpu/simd/vector_avx512vnni.h"

namespace q4 {
const Kernels* avx512vnni_kernels() {
  const Kernels* base = avx512_kernels();
  if (!base || !__builtin_cpu_supports("avx512vnni")) return nullptr;
  static const Kernels table = [base] {
    Kernels kernels = *base;
    kernels.name = "avx512_vnni";
    kernels.gemv = simd::gemv<Avx512Vnni>;
    return kernels;
  }();
  return &table;
}
}  // namespace q4
#else
namespace q4 {
const Kernels* avx512vnni_kernels() { return nullptr; }
}  // namespace q4
#endif
