// Stands in for cuda/ in a build without nvcc.
#include "core/backend.h"
#include "core/error.h"

namespace q4 {

namespace {
constexpr const char* kReason = "this build of q4run has no CUDA: nvcc was not found when it was compiled";
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  throw Error("Q4402", kReason, "install the CUDA toolkit and run `npm run build:native`, or set runtime.device: cpu");
}

CudaProbe probe_cuda() { return {false, "", 0, kReason, {}}; }

}  // namespace q4
