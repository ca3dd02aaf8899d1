#include "cpu/weights.h"

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "cpu/kernels.h"
#include "cpu/simd/quantise_blocks.h"
#include "cpu/simd/vector_portable.h"

namespace q4 {

const WeightKernels* portable_weight_kernels() {
  static const WeightKernels table = simd::make_weight_kernels<Portable>();
  return &table;
}

const WeightKernels& weight_kernels() {
  const char* forced = std::getenv("Q4RUN_CPU_ISA");
  const std::string wanted = forced ? forced : "";
  if (wanted.empty() || wanted == "avx512")
    if (avx512_kernels()) return *avx512_weight_kernels();
  if (wanted.empty() || wanted == "avx2")
    if (avx2_kernels()) return *avx2_weight_kernels();
  if (wanted.empty() || wanted == "portable") return *portable_weight_kernels();
  throw Error("Q4512", "Q4RUN_CPU_ISA=" + wanted + ": this machine or build does not have that instruction set",
              "Use avx512, avx2 or portable, or leave it unset.");
}

}  // namespace q4
