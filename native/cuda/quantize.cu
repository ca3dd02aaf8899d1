// NVFP4: quantising masters, dequantising, counting what changed.
#include "core/nvfp4.h"
#include "cuda/cuda_backend.h"
#include "cuda/nvfp4_bf16.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;
// Half-blocks a thread of quantize_kernel, a whole grid's stride apart.
constexpr int kHalves = 4;

// *total = Σ count over the grid. Integer sums are the same in any order. `tally` holds { sum, blocks done }, zero between
// kernels. One atomic a block: more would queue up at the one address.
__device__ void add_up(int count, int32_t* tally, int32_t* total) {
  __shared__ int shared[kThreads / 32];
  count = __reduce_add_sync(0xffffffffu, count);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = count;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) count += shared[w];
  if (count) atomicAdd(tally, count);
  __threadfence();
  if (atomicAdd(tally + 1, 1) != static_cast<int>(gridDim.x) - 1) return;
  __threadfence();
  *total = atomicExch(tally, 0);
  tally[1] = 0;
}

// nvfp4_code for a step that is neither tiny nor huge: the same quotient, correctly rounded by two residual corrections
// (Markstein), and the same rounding to E2M1 in integer arithmetic, without their general cases.
__device__ uint32_t code_of(float value, float step, float reciprocal) {
  float quotient = value * reciprocal;
  quotient = fmaf(fmaf(-quotient, step, value), reciprocal, quotient);
  quotient = fmaf(fmaf(-quotient, step, value), reciprocal, quotient);
  const uint32_t bits = __float_as_uint(quotient), magnitude = bits & 0x7fffffffu;
  // From 1 on: round to one mantissa bit; code 2 is 1.0. Below: the sum leaves multiples of 0.5 in the last bits.
  const uint32_t large = min((magnitude + 0x1fffffu + (magnitude >> 22 & 1u)) >> 22, 259u) - 252u;
  const uint32_t small = __float_as_uint(__uint_as_float(magnitude) + 4194304.0f) & 7u;
  return (magnitude >= 0x3f800000u ? large : small) | (__float_as_uint(value) >> 28 & 8u);
}

// Half a block a thread. master [O·K] → codes, scales; every thread computes the same global scale from the amax slots.
template <typename T>
__global__ void quantize_kernel(const T* master, const float* amax, int64_t slot_begin, int64_t slot_end,
                                uint32_t* codes, uint8_t* scales, float* global_out, int32_t* tally, int32_t* changed,
                                int64_t halves) {
  begin_weights();
  // From the end: what an update wrote last is still in the L2 cache.
  const int64_t block = gridDim.x - 1 - blockIdx.x;
  float global = 1.0f;
  if (amax) {
    float largest = 0;
    for (int64_t i = slot_begin; i < slot_end; ++i) largest = amax_step(largest, amax[i]);
    global = nvfp4_global_scale(largest);
  }
  int differing = 0;
  Pack<8> pieces[kHalves]{};
  uint32_t before[kHalves] = {};
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const int64_t half = (block * kHalves + i) * kThreads + threadIdx.x;
    if (half < halves) pieces[i] = load<8>(master + half * 8), before[i] = codes[half];
  }
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const int64_t half = (block * kHalves + i) * kThreads + threadIdx.x;
    const bool inside = half < halves;
    const Pack<8>& x = pieces[i];
    float largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) largest = amax_step(largest, x.v[j]);
    largest = amax_step(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    const uint8_t scale = nvfp4_block_scale(largest, global);
    const float step = e4m3_to_f32(scale) * global;
    uint32_t packed = 0;
    if (step > 0x1p-80f && step < 0x1p80f) {
      float reciprocal = __frcp_rn(step);
#pragma unroll
      for (int j = 0; j < 8; ++j) packed |= code_of(x.v[j], step, reciprocal) << (4 * j);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) packed |= nvfp4_code(x.v[j], step) << (4 * j);
    }
    if (inside) {
      if (half == 0) *global_out = global;
      if (half % 2 == 0) scales[half / 2] = scale;
      differing += __popc(nvfp4_differing_codes(before[i], packed));
      codes[half] = packed;
    }
  }
  if (changed) add_up(differing, tally, changed);
}

// y = code · scale · global, half a block a thread.
template <typename T>
__global__ void dequantize_kernel(const uint32_t* codes, const uint8_t* scales, const float* global, T* y,
                                  int64_t halves) {
  begin_weights();
  const int64_t half = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (half >= halves) return;
  const uint32_t packed = codes[half];
  const uint8_t scale = scales[half / 2];
  const float factor = *global;
  Pack<8> out;
#pragma unroll
  for (int j = 0; j < 8; ++j) out.v[j] = nvfp4_value(packed >> (4 * j) & 15u, scale, factor);
  store<8>(y + half * 8, out);
}

__global__ void count_changed_kernel(const uint32_t* a, const uint32_t* b, int32_t* tally, int32_t* out,
                                     int64_t halves) {
  begin();
  const int64_t half = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  add_up(half < halves ? __popc(nvfp4_differing_codes(a[half], b[half])) : 0, tally, out);
}

}  // namespace

void CudaBackend::quantize_nvfp4(const Tensor& master, const Tensor& amax, Slots slots, int64_t changed_slot,
                                 const Tensor& weight, const Tensor& changed) {
  const int64_t halves = master.elements() / 8;
  int32_t* count = changed ? changed.i32() + changed_slot : nullptr;
  by_activation(master.dtype, [&](auto act) {
    using T = decltype(act);
    launch({blocks_for(halves, kThreads * kHalves), kThreads, stream(), 0, overlap()}, quantize_kernel<T>,
           master.as<T>(), amax.f32(), slots.begin, slots.end, weight.as<uint32_t>(), weight.scale, weight.global_scale,
           tally(), count, halves);
  });
}

void CudaBackend::dequantize_nvfp4(const Tensor& weight, const Tensor& y) {
  const int64_t halves = y.elements() / 8;
  by_activation(y.dtype, [&](auto act) {
    using T = decltype(act);
    launch({blocks_for(halves, kThreads), kThreads, stream(), 0, overlap()}, dequantize_kernel<T>,
           weight.as<uint32_t>(), weight.scale, weight.global_scale, y.as<T>(), halves);
  });
}

void CudaBackend::count_changed(const Tensor& a, const Tensor& b, int64_t slot, const Tensor& out) {
  const int64_t halves = a.elements() / 8;
  launch({blocks_for(halves, kThreads), kThreads, stream(), 0, overlap()}, count_changed_kernel, a.as<uint32_t>(),
         b.as<uint32_t>(), tally(), out.i32() + slot, halves);
}

}  // namespace q4::gpu
