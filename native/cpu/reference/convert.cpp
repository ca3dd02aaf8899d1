// Filling, casting and random numbers.
#include "core/philox.h"
#include "cpu/reference/element.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

void ReferenceBackend::fill(float value, const Tensor& y) {
  for (int64_t i = 0; i < y.elements(); ++i)
    if (y.dtype == DType::i32)
      y.i32()[i] = static_cast<int32_t>(value);
    else
      set_element(y, i, value);
}

void ReferenceBackend::cast(const Tensor& x, const Tensor& y) {
  for (int64_t i = 0; i < y.elements(); ++i) set_element(y, i, element(x, i));
}

void ReferenceBackend::random_normal(uint64_t seed, int64_t stream, float std, const Tensor& y) {
  for (int64_t i = 0; i < y.elements(); i += 4) {
    const Philox4 draw = philox_group(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), Draw::normal,
                                      static_cast<uint32_t>(stream), 0, static_cast<uint64_t>(i / 4));
    float normal[4];
    philox_normal(draw.word[0], draw.word[1], normal[0], normal[1]);
    philox_normal(draw.word[2], draw.word[3], normal[2], normal[3]);
    for (int64_t j = 0; j < 4 && i + j < y.elements(); ++j) y.f32()[i + j] = std * normal[j];
  }
}

}  // namespace q4
