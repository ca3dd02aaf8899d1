// Every CUDA call and launch goes through these; a failure becomes an Error with a stable code.
#pragma once
#include <cuda_runtime_api.h>

namespace q4::gpu {

// Throws Error(Q4701) with the call and CUDA's own words; memory failures are handled where memory is taken.
void check(cudaError_t status, const char* call);

}  // namespace q4::gpu

#define Q4_CHECK(call) ::q4::gpu::check((call), #call)
