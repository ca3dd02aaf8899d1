// The weight kernels of each instruction set.
#pragma once
#include "core/weight_kernels.h"

namespace q4 {

// Null where the build does not have the instruction set; call only what kernels.h says the machine has.
const WeightKernels* avx512_weight_kernels();
const WeightKernels* avx2_weight_kernels();
const WeightKernels* portable_weight_kernels();

}  // namespace q4
