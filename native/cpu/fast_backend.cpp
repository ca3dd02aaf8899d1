#include "cpu/fast_backend.h"

namespace q4 {

FastBackend::FastBackend(const Kernels& kernels, int threads)
    : ReferenceBackend(threads, kernels.name),
      kernels_(kernels),
      pool_(threads),
      gemm_(kernels, pool_),
      per_thread_(static_cast<size_t>(threads)) {}

}  // namespace q4
