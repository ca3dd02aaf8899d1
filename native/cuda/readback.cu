// Small results on their way to the host while the next run is already enqueued.
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 128;

// Into pinned memory, by a kernel: the copy engines would have to be woken between two runs. The event recorded after it
// makes the words visible to the host.
__global__ void read_back_kernel(const uint32_t* from, uint32_t* to, int64_t words) {
  begin();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < words) to[i] = from[i];
}

}  // namespace

void CudaBackend::start_download(int slot, const void* device, int64_t bytes) {
  use_device();
  Pinned& buffer = readback_[slot];
  reserve(buffer, bytes, "reading results");
  const int64_t words = bytes / 4;
  launch({blocks_for(words, kThreads), kThreads, stream(), 0, overlap()}, read_back_kernel,
         static_cast<const uint32_t*>(device), static_cast<uint32_t*>(buffer.memory.get()), words);
  Q4_CHECK(cudaEventRecord(buffer.copied.get(), stream()));
}

const void* CudaBackend::finish_download(int slot) {
  use_device();
  Q4_CHECK(cudaEventSynchronize(readback_[slot].copied.get()));
  return readback_[slot].memory.get();
}

}  // namespace q4::gpu
