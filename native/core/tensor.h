// A view of device memory: pointers, a dtype and a shape. Owns nothing; lifetimes belong to Store and Program.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace q4 {

// Elements of one NVFP4 block along the input (K) dimension.
constexpr int64_t kBlock = 16;
// Every tensor, and each of an NVFP4 tensor's three parts, starts at a multiple of this.
constexpr int64_t kAlignment = 256;

constexpr int64_t align_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Tensor {
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 4> dims{1, 1, 1, 1};
  // Plain tensors: row-major elements. nvfp4 [out, in]: packed codes [out, in/2], element 2j in the low nibble.
  void* data = nullptr;
  // nvfp4 only: E4M3FN block scales [out, in/16], row-major, and the fp32 global (decode) scale, in device memory.
  uint8_t* scale = nullptr;
  float* global_scale = nullptr;

  explicit operator bool() const { return data != nullptr; }
  int64_t elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
  int64_t rows() const { return dims[0]; }
  int64_t cols() const { return rank < 2 ? 1 : dims[1] * dims[2] * dims[3]; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  float* f32() const { return as<float>(); }
  int32_t* i32() const { return as<int32_t>(); }
};

// Byte layout of an nvfp4 matrix in one allocation: codes at 0, scales, then the global scale.
struct Nvfp4Layout {
  int64_t code_bytes, scale_offset, scale_bytes, global_offset, total_bytes;
};
constexpr Nvfp4Layout nvfp4_layout(int64_t out, int64_t in) {
  const int64_t codes = out * in / 2, scales = out * in / kBlock;
  const int64_t scale_offset = align_up(codes), global_offset = scale_offset + align_up(scales);
  return {codes, scale_offset, scales, global_offset, global_offset + kAlignment};
}

// Bytes a tensor of this dtype and shape takes in a store or arena (aligned up).
inline int64_t tensor_bytes(const Tensor& tensor) {
  if (tensor.dtype == DType::nvfp4) return nvfp4_layout(tensor.dims[0], tensor.dims[1]).total_bytes;
  return align_up(tensor.elements() * element_bytes(tensor.dtype));
}
// Points the tensor (dtype and shape set) at `base`.
void bind_tensor(Tensor& tensor, void* base);
// "bf16[8, 128]"
std::string describe(const Tensor& tensor);

}  // namespace q4
