// Quantising weights from files: which block scale is chosen, and the loops that do it. The loops live with the CPU's
// vector code; the binding hands them to transcode().
#pragma once
#include <cstdint>
#include <string_view>

#include "core/dtype.h"

namespace q4 {

// How the E4M3 scale of a block is found. b(c) = e4m3_rne(block_amax / c / global), all in fp32; the error of a scale s is
//   Σ_i (|x_i| − (q_i·s)·global)²,  q_i = e2m1_rne(min(|x_i|·(1 / (s·global)), 6)),
// summed in fp32 in the order of the elements.
enum class ScaleSearch : uint8_t {
  // b(6). The two-level global scale is amax / (448·6).
  amax,
  // b(6) or b(4), whichever has the smaller error; ties take b(6). The global scale is amax / (256·6), so that b(4) never
  // passes 448. Source: "Four Over Six" (arXiv 2512.02010).
  four_over_six,
  // The E4M3 number with the smallest error among kSearchBelow below b(6) to kSearchAbove above it, kept within 2^-9 and
  // 448; ties take the smallest. The global scale is amax / (256·6). A block of zeros has scale 0.
  mse,
};
constexpr int kSearchBelow = 2;
constexpr int kSearchAbove = 6;

// Q4227 for a name that is none of "amax", "four_over_six", "mse".
ScaleSearch scale_search_from_name(std::string_view name);
// The largest block scale that b(6) reaches in a two-level matrix.
constexpr float scale_ceiling(ScaleSearch search) { return search == ScaleSearch::amax ? 448.0f : 256.0f; }

// What quantising did to some blocks.
struct QuantiseSums {
  double signal = 0, noise = 0;  // Σ x², Σ (x − decoded)²
  int64_t zero_codes = 0;        // codes of magnitude 0
  int64_t saturated = 0;         // values beyond the largest code: |x| / step > 6
  int64_t floor_blocks = 0;      // blocks that are not zero, with a scale at or below the least E4M3 number, 2^-9
};

struct WeightKernels {
  const char* name;
  // The largest magnitude of f32, bf16 or f16 values; NaN when one is among them.
  float (*amax)(DType type, const void* x, int64_t n);
  // `blocks` blocks of 16 f32, bf16 or f16 values, all finite. Codes are x / step as core/nvfp4.h says, whatever the search.
  // Overwrites codes and scales; accumulates into sums.
  void (*quantise)(DType type, const void* x, int64_t blocks, float global, ScaleSearch search, uint8_t* codes,
                   uint8_t* scales, QuantiseSums& sums);
  // out[i] = (code · scale) · global, `blocks` blocks of 16.
  void (*dequantise)(const uint8_t* codes, const uint8_t* scales, int64_t blocks, float global, float* out);
};

// For the best instruction set of this machine (or Q4RUN_CPU_ISA). Defined in cpu/weights.cpp.
const WeightKernels& weight_kernels();

}  // namespace q4
