#include "core/tensor.h"

#include "core/error.h"

namespace q4 {

namespace {
constexpr const char* kNames[] = {"f32", "bf16", "f16", "i32", "u8", "nvfp4"};
}

const char* dtype_name(DType dtype) { return kNames[static_cast<int>(dtype)]; }

DType dtype_from_name(std::string_view name) {
  for (int i = 0; i < 6; ++i)
    if (name == kNames[i]) return static_cast<DType>(i);
  throw Error("Q4510", "unknown dtype '" + std::string(name) + "' in a program");
}

void bind_tensor(Tensor& tensor, void* base) {
  tensor.data = base;
  if (tensor.dtype != DType::nvfp4) return;
  const Nvfp4Layout layout = nvfp4_layout(tensor.dims[0], tensor.dims[1]);
  auto* bytes = static_cast<uint8_t*>(base);
  tensor.scale = bytes + layout.scale_offset;
  tensor.global_scale = reinterpret_cast<float*>(bytes + layout.global_offset);
}

std::string describe(const Tensor& tensor) {
  std::string text = std::string(dtype_name(tensor.dtype)) + "[";
  for (int i = 0; i < tensor.rank; ++i) text += (i ? ", " : "") + std::to_string(tensor.dims[i]);
  return text + "]";
}

}  // namespace q4
