// Named tensors in device memory: weights, masters, moments, caches, inputs, outputs.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/claim.h"

namespace q4 {

// A backend with the flag that keeps programs and store accesses apart, and a count of what is held through it.
struct Device {
  std::shared_ptr<Backend> backend;
  std::atomic<bool> busy{false};
  std::atomic<int64_t> allocated_bytes{0}, peak_bytes{0};
};

// One allocation on a device; programs bound to it keep it alive after the store lets go.
class Allocation {
 public:
  Allocation(std::shared_ptr<Device> device, int64_t bytes);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  void* memory() const { return memory_; }
  const std::shared_ptr<Device>& device() const { return device_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Device> device_;
  void* memory_;
  int64_t bytes_;
};

class Store {
 public:
  explicit Store(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  // Zeroed memory. Q4511 if the name exists; Q4510 for a shape that is no tensor; Q4401 out of memory.
  void allocate(const std::string& name, DType dtype, const std::vector<int64_t>& shape);
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  // Q4511 if there is none.
  Tensor find(const std::string& name) const;
  std::shared_ptr<Allocation> allocation(const std::string& name) const;
  void free(const std::string& name);
  // Gives a tensor another name; Q4511 if `from` does not exist or `to` does. Programs bound to it stay bound.
  void rename(const std::string& from, const std::string& to);
  std::vector<std::string> names() const;
  int64_t bytes() const { return bytes_; }

  Backend& backend() const { return *device_->backend; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  struct Entry {
    Tensor tensor;
    std::shared_ptr<Allocation> allocation;
  };
  const Entry& entry(const std::string& name) const;
  std::shared_ptr<Device> device_;
  std::map<std::string, Entry> tensors_;
  int64_t bytes_ = 0;
};

// Checks dtype, rank ≤ 4, sizes and overflow, and returns an unbound tensor. Q4510 otherwise.
Tensor make_tensor(DType dtype, const std::vector<int64_t>& shape, const std::string& name);

// Takes the device for one access; Q4513 when something else has it (waiting could deadlock a callback). Work for
// another thread takes it before it is handed over: a call that returned has the device, and no later one gets ahead.
Claim acquire(const std::shared_ptr<Device>& device);

}  // namespace q4
