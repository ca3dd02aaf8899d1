#include "cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "cpu/system_memory.h"

namespace q4 {
namespace {

// From this size on the system is asked what it has left before memory is taken.
constexpr int64_t kChecked = int64_t{1} << 20;

// Bytes that all CPU backends of this process hold. Pages that were never touched are not yet missing from the
// system's account, so they are subtracted here.
std::atomic<int64_t> held_bytes{0};

int64_t available_bytes() {
  const int64_t untouched = std::max<int64_t>(0, held_bytes.load() - resident_bytes());
  return std::max<int64_t>(0, system_memory().available_bytes - untouched);
}

[[noreturn]] void out_of_memory(int64_t bytes) {
  throw Error("Q4401",
              "out of memory: asked for " + std::to_string(bytes) + " bytes, " + std::to_string(available_bytes()) +
                  " bytes are available on this machine",
              "Lower batch_size or seq_len, set recompute: block, or use masters: bf16.");
}

}  // namespace

CpuBackend::CpuBackend(int threads, std::string instructions)
    : threads_(threads), instructions_(std::move(instructions)) {}

CpuBackend::~CpuBackend() { held_bytes -= own_bytes_; }

DeviceInfo CpuBackend::info() const {
  DeviceInfo info;
  info.kind = "cpu";
  info.name = cpu_name();
  info.instructions = instructions_;
  info.threads = threads_;
  info.total_bytes = system_memory().total_bytes;
  info.free_bytes = available_bytes();
  return info;
}

void* CpuBackend::allocate(int64_t bytes) {
  const int64_t size = align_up(std::max<int64_t>(bytes, 1));
  if (bytes < 0 || size < bytes) out_of_memory(bytes);
  if (size >= kChecked) {
    const int64_t available = available_bytes();
    if (available > 0 && size > available) out_of_memory(bytes);
  }
  void* memory = memory_.allocate(size);
  if (!memory) out_of_memory(bytes);
  held_bytes += size;
  own_bytes_ += size;
  return memory;
}

void CpuBackend::release(void* memory) noexcept {
  const int64_t size = memory_.release(memory);
  held_bytes -= size;
  own_bytes_ -= size;
}

void CpuBackend::upload(void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void CpuBackend::download(void* host, const void* device, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

void CpuBackend::start_download(int slot, const void* device, int64_t bytes) {
  const auto* from = static_cast<const uint8_t*>(device);
  readback_[slot].assign(from, from + bytes);
}

void* CpuBackend::staging(int, int64_t) {
  throw Error("Q4900", "staging buffers were asked of a device whose memory the host can reach");
}

void CpuBackend::upload_staged(void*, int, int64_t, int64_t) {
  throw Error("Q4900", "a staged upload was asked of a device whose memory the host can reach");
}

double CpuBackend::now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

float* f32_activation(const Tensor& tensor, const char* op) {
  if (tensor.dtype != DType::f32)
    throw Error("Q4512", std::string(op) + ": the CPU computes with f32 activations, found " + describe(tensor),
                "Set precision: fp32, or run on a CUDA device.");
  return tensor.f32();
}

void check_ids(const Tensor& ids, int64_t bound, const char* op) {
  for (int64_t i = 0; i < ids.elements(); ++i) {
    const int32_t id = ids.i32()[i];
    if (id < 0 || id >= bound)
      throw Error("Q4510", std::string(op) + ": index " + std::to_string(id) + " at " + std::to_string(i) +
                               " lies outside [0, " + std::to_string(bound) + ")");
  }
}

}  // namespace q4
