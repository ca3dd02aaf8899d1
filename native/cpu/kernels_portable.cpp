#include "core/e4m3.h"
#include "cpu/kernels.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vector_portable.h"

namespace q4 {
namespace {

struct E4m3Values {
  float value[256];
  E4m3Values() {
    for (int i = 0; i < 256; ++i) value[i] = e4m3_to_f32(static_cast<uint8_t>(i));
  }
};
const E4m3Values e4m3_values;

}  // namespace

const float* const kE4m3Values = e4m3_values.value;

const Kernels* portable_kernels() {
  static const Kernels table = simd::make_kernels<Portable>();
  return &table;
}

}  // namespace q4
