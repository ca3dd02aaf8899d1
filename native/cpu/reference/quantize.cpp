// NVFP4: quantising masters, dequantising, counting what changed.
#include "cpu/reference/element.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

void ReferenceBackend::quantize_nvfp4(const Tensor& master, const Tensor& amax, Slots slots, int64_t changed_slot,
                                      const Tensor& weight, const Tensor& changed) {
  float global = 1.0f;
  if (amax) {
    float largest = 0;
    for (int64_t i = slots.begin; i < slots.end; ++i) largest = amax_step(largest, amax.f32()[i]);
    global = nvfp4_global_scale(largest);
  }
  *weight.global_scale = global;
  int32_t differing = 0;
  for (int64_t block = 0; block < weight.rows() * weight.cols() / kBlock; ++block) {
    float block_amax = 0;
    for (int64_t i = 0; i < kBlock; ++i) block_amax = amax_step(block_amax, element(master, block * kBlock + i));
    const uint8_t scale = nvfp4_block_scale(block_amax, global);
    weight.scale[block] = scale;
    const float step = e4m3_to_f32(scale) * global;
    uint8_t* codes = weight.as<uint8_t>() + block * (kBlock / 2);
    for (int64_t i = 0; i < kBlock; i += 2) {
      const uint32_t low = nvfp4_code(element(master, block * kBlock + i), step);
      const uint32_t high = nvfp4_code(element(master, block * kBlock + i + 1), step);
      const uint32_t before = codes[i / 2];
      differing += (low != (before & 15)) + (high != before >> 4);
      codes[i / 2] = static_cast<uint8_t>(low | high << 4);
    }
  }
  if (changed) changed.i32()[changed_slot] = differing;
}

void ReferenceBackend::dequantize_nvfp4(const Tensor& weight, const Tensor& y) {
  for (int64_t i = 0; i < y.elements(); ++i) set_element(y, i, element(weight, i));
}

void ReferenceBackend::count_changed(const Tensor& a, const Tensor& b, int64_t slot, const Tensor& out) {
  int32_t differing = 0;
  for (int64_t i = 0; i < a.elements() / 2; ++i) {
    const uint8_t x = a.as<uint8_t>()[i], y = b.as<uint8_t>()[i];
    differing += ((x & 15) != (y & 15)) + (x >> 4 != y >> 4);
  }
  out.i32()[slot] = differing;
}

}  // namespace q4
