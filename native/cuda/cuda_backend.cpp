// Memory, copies, identity and faults.
#include "cuda/cuda_backend.h"

#include <string>

#include "core/error.h"

namespace q4::gpu {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // an error that is not sticky must not surface again at the next launch
  throw Error("Q4701", std::string("the GPU reported '") + cudaGetErrorString(status) + "' (" +
                           cudaGetErrorName(status) + ") at " + call);
}

namespace {

std::string mebibytes(int64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

[[noreturn]] void out_of_memory(int64_t asked) {
  (void)cudaGetLastError();
  size_t free_bytes = 0, total_bytes = 0;
  (void)cudaMemGetInfo(&free_bytes, &total_bytes);
  throw Error("Q4401",
              "the GPU has no room for " + mebibytes(asked) + ": " + mebibytes(static_cast<int64_t>(free_bytes)) +
                  " of " + mebibytes(static_cast<int64_t>(total_bytes)) + " are free",
              "lower batch_size or seq_len, set recompute: block, or use masters: bf16");
}

}  // namespace

void* CudaBackend::take(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) out_of_memory(bytes);
  check(status, "cudaMalloc");
  return memory;
}

CudaBackend::CudaBackend(int index) : index_(index) {
  use_device();
  cudaDeviceProp properties{};
  Q4_CHECK(cudaGetDeviceProperties(&properties, index));
  name_ = properties.name;
  processors_ = properties.multiProcessorCount;
  capability_ = properties.major * 10 + properties.minor;
  machine_ = {processors_, static_cast<int>(properties.sharedMemPerBlockOptin), capability_};
  target_ = target_for(capability_);
  Q4_CHECK(cudaStreamCreateWithFlags(stream_.out(), cudaStreamNonBlocking));
  Q4_CHECK(cudaEventCreate(epoch_.out()));
  Q4_CHECK(cudaEventCreate(mark_.out()));
  workspace_ = DeviceMemory(take(Workspace::kBytes));
  workspace_bytes_ = static_cast<char*>(workspace_.get());
  Q4_CHECK(cudaMemsetAsync(small(), 0, Workspace::kSmallBytes + kExchangeBytes, stream_.get()));
  const float zero_one[2] = {0, 1};
  Q4_CHECK(cudaMemcpyAsync(constants(), zero_one, sizeof zero_one, cudaMemcpyHostToDevice, stream_.get()));
  Q4_CHECK(cudaEventRecord(epoch_.get(), stream_.get()));
  Q4_CHECK(cudaStreamSynchronize(stream_.get()));
  lt_ = std::make_unique<CublasLt>(workspace_bytes_, Workspace::kProductBytes, constants());
}

CudaBackend::~CudaBackend() {
  (void)cudaSetDevice(index_);
  (void)cudaStreamSynchronize(stream_.get());
  for (void* memory : blocks_) (void)cudaFree(memory);
}

void CudaBackend::use_device() const { Q4_CHECK(cudaSetDevice(index_)); }

DeviceInfo CudaBackend::info() const {
  use_device();
  size_t free_bytes = 0, total_bytes = 0;
  Q4_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  DeviceInfo info;
  info.kind = "cuda";
  info.name = name_;
  info.instructions = target_;
  info.index = index_;
  info.total_bytes = static_cast<int64_t>(total_bytes);
  info.free_bytes = static_cast<int64_t>(free_bytes);
  return info;
}

void* CudaBackend::allocate(int64_t bytes) {
  use_device();
  const int64_t size = bytes > 0 ? bytes : kAlignment;
  size_t free_bytes = 0, total_bytes = 0;
  Q4_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (size > static_cast<int64_t>(free_bytes)) out_of_memory(size);
  void* memory = take(size);
  {
    const std::lock_guard lock(memory_mutex_);
    blocks_.insert(memory);
  }
  Q4_CHECK(cudaMemsetAsync(memory, 0, static_cast<size_t>(size), stream_.get()));
  return memory;
}

void CudaBackend::release(void* memory) noexcept {
  const std::lock_guard lock(memory_mutex_);
  if (blocks_.erase(memory) == 0) return;
  (void)cudaSetDevice(index_);
  (void)cudaStreamSynchronize(stream_.get());
  (void)cudaFree(memory);
}

void CudaBackend::upload(void* device, const void* host, int64_t bytes) {
  if (bytes <= 0) return;
  use_device();
  Q4_CHECK(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream()));
  Q4_CHECK(cudaStreamSynchronize(stream()));
}

void CudaBackend::download(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0) return;
  use_device();
  Q4_CHECK(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream()));
  Q4_CHECK(cudaStreamSynchronize(stream()));
}

void CudaBackend::reserve(Pinned& buffer, int64_t bytes, const char* purpose) {
  if (!buffer.copied) Q4_CHECK(cudaEventCreateWithFlags(buffer.copied.out(), cudaEventDisableTiming));
  Q4_CHECK(cudaEventSynchronize(buffer.copied.get()));
  if (buffer.bytes >= bytes) return;
  buffer.memory = PinnedMemory();
  buffer.bytes = 0;
  void* pinned = nullptr;
  if (cudaMallocHost(&pinned, static_cast<size_t>(bytes)) != cudaSuccess) {
    (void)cudaGetLastError();
    throw Error("Q4401", "the machine has no " + mebibytes(bytes) + " of pinned memory left for " + purpose);
  }
  buffer.memory = PinnedMemory(pinned);
  buffer.bytes = bytes;
}

void* CudaBackend::staging(int slot, int64_t bytes) {
  use_device();
  reserve(staging_[slot], bytes, "reading weights");
  return staging_[slot].memory.get();
}

void CudaBackend::upload_staged(void* device, int slot, int64_t offset, int64_t bytes) {
  use_device();
  Pinned& buffer = staging_[slot];
  const char* from = static_cast<const char*>(buffer.memory.get()) + offset;
  if (bytes > 0) Q4_CHECK(cudaMemcpyAsync(device, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream()));
  Q4_CHECK(cudaEventRecord(buffer.copied.get(), stream()));
}

void CudaBackend::synchronize() {
  use_device();
  Q4_CHECK(cudaStreamSynchronize(stream()));
}

double CudaBackend::now() {
  use_device();
  Q4_CHECK(cudaEventRecord(mark_.get(), stream()));
  Q4_CHECK(cudaEventSynchronize(mark_.get()));
  float milliseconds = 0;
  Q4_CHECK(cudaEventElapsedTime(&milliseconds, epoch_.get(), mark_.get()));
  return double{milliseconds} * 1e-3;
}

}  // namespace q4::gpu
