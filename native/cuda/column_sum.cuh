// The second pass of reductions over rows: out[c] (+)= Σ_r partial[r, c], rows in order.
#pragma once
#include "cuda/device.cuh"

namespace q4::gpu {

// partial f32 [rows, width] → out f32 [width]; accumulates when asked, overwrites otherwise.
void column_sum(const float* partial, int64_t rows, int64_t width, bool accumulate, float* out, cudaStream_t stream,
                bool overlap);

}  // namespace q4::gpu
