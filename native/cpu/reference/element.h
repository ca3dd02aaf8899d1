// One element of a tensor, whatever its dtype, as fp32.
#pragma once
#include "core/nvfp4.h"
#include "core/tensor.h"

namespace q4 {

// Element i, row-major; of an nvfp4 matrix the dequantised value.
inline float element(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::f32:
      return tensor.f32()[i];
    case DType::bf16:
      return bf16_to_f32(tensor.as<uint16_t>()[i]);
    case DType::f16:
      return f16_to_f32(tensor.as<uint16_t>()[i]);
    case DType::i32:
      return static_cast<float>(tensor.i32()[i]);
    case DType::u8:
      return tensor.as<uint8_t>()[i];
    case DType::nvfp4: {
      // Rows are a whole number of blocks, so the flat index finds the scale too.
      const uint8_t pair = tensor.as<uint8_t>()[i / 2];
      return nvfp4_value(i % 2 ? pair >> 4 : pair & 15, tensor.scale[i / kBlock], *tensor.global_scale);
    }
  }
  return 0;
}

// Rounds to nearest even. f32, bf16 and f16 only.
inline void set_element(const Tensor& tensor, int64_t i, float value) {
  if (tensor.dtype == DType::bf16)
    tensor.as<uint16_t>()[i] = f32_to_bf16(value);
  else if (tensor.dtype == DType::f16)
    tensor.as<uint16_t>()[i] = f32_to_f16(value);
  else
    tensor.f32()[i] = value;
}

}  // namespace q4
