// Chooses the CPU class: reference by request, otherwise the fast path for the best instruction set of this machine.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

#include "core/backend.h"
#include "core/error.h"
#include "cpu/fast_backend.h"

namespace q4 {
namespace {

// Q4RUN_CPU_ISA=avx512_vnni|avx512|avx2|portable forces an instruction set; for tests and comparisons.
const Kernels& choose_kernels() {
  const char* forced = std::getenv("Q4RUN_CPU_ISA");
  const std::string wanted = forced ? forced : "";
  const Kernels* kernels = nullptr;
  if (wanted.empty()) {
    kernels = avx512vnni_kernels();
    if (!kernels) kernels = avx512_kernels();
    if (!kernels) kernels = avx2_kernels();
    if (!kernels) kernels = portable_kernels();
  } else if (wanted == "avx512_vnni") {
    kernels = avx512vnni_kernels();
  } else if (wanted == "avx512") {
    kernels = avx512_kernels();
  } else if (wanted == "avx2") {
    kernels = avx2_kernels();
  } else if (wanted == "portable") {
    kernels = portable_kernels();
  }
  if (!kernels)
    throw Error("Q4512", "Q4RUN_CPU_ISA=" + wanted + ": this machine or build does not have that instruction set",
                "Use avx512_vnni, avx512, avx2 or portable, or leave it unset.");
  return *kernels;
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.reference) return std::make_unique<ReferenceBackend>();
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  return std::make_unique<FastBackend>(choose_kernels(), std::clamp(threads, 1, 1024));
}

}  // namespace q4
