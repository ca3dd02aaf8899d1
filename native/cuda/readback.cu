// Small results on their way to the host while the next run is already enqueued.
#include <cstring>
#include <thread>

#include "core/error.h"
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

// A recording that is one chain, which tells its tokens itself: a kernel for that, and an event, would stand between it and the
// next.
void CudaBackend::run_recorded(const DecodeLaunch& chain) {
  DecodeTold told{};
  if (chain.ids) {
    if (told_.buffer.bytes == 0) {
      constexpr size_t kBytes = Told::kPlaces * kDecodeRows * sizeof(uint2);
      reserve(told_.buffer, kBytes, "reading results");
      std::memset(told_.buffer.memory.get(), 0, kBytes);
    }
    if (++told_.number == 0) ++told_.number;
    told = {told_.place(told_.number), told_.number};
  }
  chain.launch(stream_.get(), told);
  told_.ids = chain.ids, told_.rows = chain.rows;
}

void CudaBackend::start_download(int slot, const void* device, int64_t bytes) {
  use_device();
  Pinned& buffer = readback_[slot];
  reserve(buffer, bytes, "reading results");
  if (told_.ids && told_.ids == device && bytes == int64_t{4} * told_.rows) {
    buffer.number = told_.number, buffer.words = told_.rows;
    return;
  }
  buffer.number = 0;
  const int64_t words = bytes / 4;
  launch({blocks_for(words, kThreads), kThreads, stream(), 0, overlap()}, read_back_kernel,
         static_cast<const uint32_t*>(device), static_cast<uint32_t*>(buffer.memory.get()), words);
  Q4_CHECK(cudaEventRecord(buffer.copied.get(), stream()));
}

const void* CudaBackend::finish_download(int slot) {
  use_device();
  Pinned& buffer = readback_[slot];
  if (buffer.number > 0)
    await_told(buffer);
  else
    Q4_CHECK(cudaEventSynchronize(buffer.copied.get()));
  return buffer.memory.get();
}

// Looks for the tokens of the chain that the buffer waits for; and now and then whether it may still tell them.
void CudaBackend::await_told(Pinned& buffer) {
  const volatile uint64_t* const told = reinterpret_cast<const volatile uint64_t*>(told_.place(buffer.number));
  int32_t* const ids = static_cast<int32_t*>(buffer.memory.get());
  bool over = false;
  for (int row = 0, looks = 0; row < buffer.words;) {
    const uint64_t word = told[row];
    if (word >> 32 == buffer.number) {
      ids[row++] = static_cast<int32_t>(word);
      continue;
    }
    if (over) throw Error("Q4900", "a decode step ended without telling its tokens");
    if (++looks % 256 != 0) {
      std::this_thread::yield();
      continue;
    }
    const cudaError_t status = cudaStreamQuery(stream_.get());
    if (status != cudaErrorNotReady) check(status, "cudaStreamQuery"), over = true;
  }
}

}  // namespace q4::gpu
