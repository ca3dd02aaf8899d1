// What both CPU classes share: memory, identity, the clock, and the rule that activations are fp32.
#pragma once
#include <atomic>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cpu/slab_allocator.h"

namespace q4 {

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, std::string instructions);
  ~CpuBackend() override;
  DeviceInfo info() const override;

  void* allocate(int64_t bytes) override;
  void release(void* memory) noexcept override;
  void upload(void* device, const void* host, int64_t bytes) override;
  void download(void* host, const void* device, int64_t bytes) override;
  bool host_accessible() const override { return true; }
  void* staging(int slot, int64_t bytes) override;
  void upload_staged(void* device, int slot, int64_t offset, int64_t bytes) override;
  void start_download(int slot, const void* device, int64_t bytes) override;
  const void* finish_download(int slot) override { return readback_[slot].data(); }
  bool runs_ahead() const override { return false; }
  void synchronize() override {}
  double now() override;

 private:
  const int threads_;
  const std::string instructions_;
  SlabAllocator memory_;
  std::vector<uint8_t> readback_[2];
  std::atomic<int64_t> own_bytes_{0};  // held through this backend
};

// The fp32 elements of an activation; throws Error(Q4512) naming the op when the program's activations are bf16.
float* f32_activation(const Tensor& tensor, const char* op);
// Throws Error(Q4510) unless every index lies in [0, bound): token ids and row numbers are data, not part of a program.
void check_ids(const Tensor& ids, int64_t bound, const char* op);

}  // namespace q4
