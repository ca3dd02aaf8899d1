// Element types of tensors inside programs. Names in the program text are the lower-case spellings below.
#pragma once
#include <cstdint>
#include <string_view>

namespace q4 {

enum class DType : uint8_t {
  f32,
  bf16,
  f16,
  i32,
  u8,
  nvfp4,  // a matrix [out, in]: packed E2M1 codes, E4M3 block scales, one fp32 global scale (see Tensor)
};

// Bytes of one element; nvfp4 has none (use tensor_bytes).
constexpr int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
    case DType::nvfp4:
      return 0;
  }
  return 0;
}

const char* dtype_name(DType dtype);
// Throws Error(Q4510) for a name that is none of the above.
DType dtype_from_name(std::string_view name);

}  // namespace q4
