// Which devices are usable, and why not; the backend for one of them.
#include <string>

#include "core/error.h"
#include "cuda/cuda_backend.h"

namespace q4 {
namespace gpu {

namespace {

// Q4_CUDA_TARGETS: what this build was compiled for, e.g. "80 89 90a 100a 120f".
struct Target {
  int capability;
  char suffix;  // 0: runs on later minor versions too; 'a': this one alone; 'f': later ones of the family
};

std::vector<Target> targets() {
  std::vector<Target> list;
  Target target{};
  for (const char c : std::string(Q4_CUDA_TARGETS) + ";") {
    if (c >= '0' && c <= '9')
      target.capability = target.capability * 10 + (c - '0');
    else if (c == 'a' || c == 'f')
      target.suffix = c;
    else if (target.capability)
      list.push_back(std::exchange(target, Target{}));
  }
  return list;
}

std::string spell(const Target& target) {
  return "sm_" + std::to_string(target.capability) + (target.suffix ? std::string(1, target.suffix) : "");
}

DeviceInfo describe_device(int index) {
  cudaDeviceProp properties{};
  Q4_CHECK(cudaGetDeviceProperties(&properties, index));
  DeviceInfo info;
  info.kind = "cuda";
  info.name = properties.name;
  info.instructions = target_for(properties.major * 10 + properties.minor);
  info.index = index;
  info.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  // Free memory would need a context on each device; `info()` of an opened backend tells it.
  return info;
}

}  // namespace

std::string target_for(int capability) {
  std::string best;
  for (const Target& target : targets()) {
    const bool same_major = target.capability / 10 == capability / 10;
    const bool runs =
        target.suffix == 'a' ? target.capability == capability : same_major && target.capability <= capability;
    if (runs) best = spell(target);  // the list is in rising order
  }
  return best;
}

}  // namespace gpu

CudaProbe probe_cuda() {
  CudaProbe probe;
  probe.built = true;
  for (const gpu::Target& target : gpu::targets())
    probe.targets += (probe.targets.empty() ? "" : " ") + gpu::spell(target);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    probe.reason = std::string("the CUDA driver offers no device: ") + cudaGetErrorString(status);
    return probe;
  }
  if (count == 0) probe.reason = "the CUDA driver sees no device";
  try {
    for (int i = 0; i < count; ++i) {
      const DeviceInfo device = gpu::describe_device(i);
      if (device.instructions.empty())
        probe.reason = device.name + " is none of the GPUs that this build has code for (" + probe.targets + ")";
      else
        probe.list.push_back(device);
    }
  } catch (const std::exception& error) {
    probe.reason = error.what();
  }
  probe.devices = static_cast<int>(probe.list.size());
  if (probe.devices && !gpu::CublasLt::available()) {
    probe.reason = "cuBLASLt (libcublasLt.so.13) was not found; install the CUDA 13 toolkit's libcublas";
    probe.devices = 0;
    probe.list.clear();
  }
  if (probe.devices) probe.reason.clear();
  return probe;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    throw Error("Q4402", std::string("no CUDA device is usable: ") + cudaGetErrorString(status),
                "install the NVIDIA driver, or set runtime.device: cpu");
  }
  if (options.index < 0 || options.index >= count)
    throw Error(
        "Q4402",
        "there is no CUDA device " + std::to_string(options.index) + ": the machine has " + std::to_string(count),
        "set runtime.device: cuda:0");
  const DeviceInfo device = gpu::describe_device(options.index);
  if (device.instructions.empty())
    throw Error("Q4402", device.name + " is none of the GPUs that this build has code for",
                "build with -DQ4_CUDA_ARCHS set to its architecture, or set runtime.device: cpu");
  return std::make_unique<gpu::CudaBackend>(options.index);
}

}  // namespace q4
