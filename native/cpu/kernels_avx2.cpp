#include "cpu/kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/table.h"
#include "cpu/simd/vector_avx2.h"

namespace q4 {
const Kernels* avx2_kernels() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return nullptr;
  static const Kernels table = simd::make_kernels<Avx2>();
  return &table;
}
}  // namespace q4
#else
namespace q4 {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace q4
#endif
