#include "cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cpu/system_memory.h"

namespace q4 {
namespace {

// Blocks from here on are mapped: zeroed lazily by the kernel, and aligned so that huge pages can back them.
constexpr int64_t kMapped = int64_t{4} << 20, kHugePage = int64_t{2} << 20;

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

CpuBackend::~CpuBackend() {
  while (!blocks_.empty()) release(blocks_.begin()->first);
}

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
  void* memory = nullptr;
  if (size < kMapped) {
    memory = std::aligned_alloc(kAlignment, static_cast<size_t>(size));
    if (!memory) out_of_memory(bytes);
    std::memset(memory, 0, static_cast<size_t>(size));
  } else {
    const int64_t available = available_bytes();
    if (available > 0 && size > available) out_of_memory(bytes);
    // One huge page more than needed, and the ends given back, so that the block starts on a huge page.
    const int64_t mapped = (size + kHugePage - 1) / kHugePage * kHugePage;
    char* base = static_cast<char*>(mmap(nullptr, static_cast<size_t>(mapped + kHugePage), PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) out_of_memory(bytes);
    const int64_t lead = (kHugePage - reinterpret_cast<intptr_t>(base) % kHugePage) % kHugePage;
    if (lead > 0) munmap(base, static_cast<size_t>(lead));
    if (lead < kHugePage) munmap(base + lead + mapped, static_cast<size_t>(kHugePage - lead));
    memory = base + lead;
#if defined(MADV_HUGEPAGE)
    madvise(memory, static_cast<size_t>(mapped), MADV_HUGEPAGE);
#endif
  }
  held_bytes += size;
  const std::lock_guard lock(mutex_);
  blocks_[memory] = size;
  return memory;
}

void CpuBackend::release(void* memory) noexcept {
  int64_t size = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(memory);
    if (found == blocks_.end()) return;
    size = found->second;
    blocks_.erase(found);
  }
  held_bytes -= size;
  if (size < kMapped)
    std::free(memory);
  else
    munmap(memory, static_cast<size_t>((size + kHugePage - 1) / kHugePage * kHugePage));
}

void CpuBackend::upload(void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void CpuBackend::download(void* host, const void* device, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

void* CpuBackend::staging(int, int64_t) {
  throw Error("Q4900", "staging buffers were asked of a device whose memory the host can reach");
}

void CpuBackend::upload_staged(void*, int, int64_t) {
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
