// NVFP4: quantising masters, dequantising, counting what changed.
#include <algorithm>
#include <atomic>
#include <bit>

#include "core/nvfp4.h"
#include "cpu/fast_backend.h"
#include "cpu/reference/element.h"

namespace q4 {
namespace {
constexpr int64_t kPiece = 16384;  // a multiple of the block
}

void FastBackend::quantize_nvfp4(const Tensor& master, const Tensor& amax, Slots slots, int64_t changed_slot,
                                 const Tensor& weight, const Tensor& changed) {
  float global = 1.0f;
  if (amax) {
    float largest = 0;
    for (int64_t i = slots.begin; i < slots.end; ++i) largest = amax_step(largest, amax.f32()[i]);
    global = nvfp4_global_scale(largest);
  }
  *weight.global_scale = global;
  std::atomic<int64_t> differing{0};  // whole numbers: the order of the sum does not show
  pool_.run_ranges(weight.rows() * weight.cols(), kPiece, [&](int64_t begin, int64_t end, int) {
    differing += kernels_.quantize(master.dtype, master.as<char>() + begin * element_bytes(master.dtype), end - begin,
                                   global, weight.as<uint8_t>() + begin / 2, weight.scale + begin / kBlock);
  });
  if (changed) changed.i32()[changed_slot] = static_cast<int32_t>(differing);
}

void FastBackend::dequantize_nvfp4(const Tensor& weight, const Tensor& y) {
  pool_.run_ranges(y.elements(), kPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) set_element(y, i, element(weight, i));
  });
}

void FastBackend::count_changed(const Tensor& a, const Tensor& b, int64_t slot, const Tensor& out) {
  std::atomic<int64_t> differing{0};
  pool_.run_ranges(a.elements(), kPiece, [&](int64_t begin, int64_t end, int) {
    int64_t count = 0;
    for (int64_t i = begin / 8; i < end / 8; ++i)
      count += std::popcount(nvfp4_differing_codes(a.as<uint32_t>()[i], b.as<uint32_t>()[i]));
    differing += count;
  });
  out.i32()[slot] = static_cast<int32_t>(differing);
}

}  // namespace q4
