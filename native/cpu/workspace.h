// Scratch memory that grows to what was asked and is kept: floats, aligned for vectors.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace q4 {

class Workspace {
 public:
  // At least `count` floats; their contents are undefined and an earlier pointer is void.
  float* floats(int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(
          static_cast<float*>(::operator new(static_cast<size_t>(count) * sizeof(float), std::align_val_t{64})));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t capacity_ = 0;
};

}  // namespace q4
