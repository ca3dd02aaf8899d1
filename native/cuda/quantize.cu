// NVFP4: quantising masters, dequantising, counting what changed.
#include "core/nvfp4.h"
#include "cuda/cuda_backend.h"
#include "cuda/nvfp4_bf16.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;
// Half-blocks a thread of quantize_kernel, a block of threads apart.
constexpr int kHalves = 2;

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

// nvfp4_code for a step that is neither tiny nor huge. The quotient with one residual correction is on the same side of
// every tie as the correctly rounded one (tried for all 2^23 mantissas of a step, with all values near a tie); adding a
// power of two whose last bit is worth what E2M1's is there rounds it, to even at a tie.
__device__ uint32_t code_of(float value, float step, float reciprocal) {
  const float estimate = value * reciprocal;
  const float quotient = fminf(fabsf(fmaf(fmaf(-estimate, step, value), reciprocal, estimate)), kE2m1Max);
  const uint32_t exponent = max(__float_as_uint(quotient) & 0x7f800000u, 0x3f800000u), power = exponent + (22u << 23);
  const uint32_t mantissa = __float_as_uint(quotient + __uint_as_float(power)) - power;
  return mantissa + (exponent >> 22) - 254u | (__float_as_uint(value) >> 28 & 8u);
}

// Eight codes for any step. Rare: not inlined, it would crowd the instruction cache.
__device__ __noinline__ uint32_t general_codes(Pack<8> x, float step) {
  uint32_t packed = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) packed |= nvfp4_code(x.v[j], step) << (4 * j);
  return packed;
}

// Half a block at a time a thread. master [O·K] → codes, scales; every thread computes the same global scale from the
// amax slots.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* master, const float* amax, int64_t slot_begin, int64_t slot_end, uint32_t* codes,
                    uint8_t* scales, float* global_out, int32_t* tally, int32_t* changed, int64_t halves) {
  begin_weights();
  float global = 1.0f;
  if (amax) {
    float largest = 0;
#pragma unroll 1
    for (int64_t i = slot_begin; i < slot_end; ++i) largest = largest_magnitude(largest, amax[i]);
    global = nvfp4_global_scale(largest);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *global_out = global;
  int differing = 0;
  // From the end: what an update wrote last is still in the L2 cache.
  const int64_t first = int64_t{gridDim.x - 1 - blockIdx.x} * kThreads * kHalves + threadIdx.x;
  Pack<8> pieces[kHalves]{};
  uint32_t before[kHalves] = {};
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const int64_t half = first + i * kThreads;
    if (half < halves) pieces[i] = load<8>(master + half * 8), before[i] = codes[half];
  }
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const int64_t half = first + i * kThreads;
    const Pack<8>& x = pieces[i];
    float largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) largest = largest_magnitude(largest, x.v[j]);
    largest = largest_magnitude(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    const uint8_t scale = nvfp4_block_scale(largest, global);
    const float step = e4m3_to_f32(scale) * global;
    uint32_t packed = 0;
    if (step > 0x1p-80f && step < 0x1p80f) {
      const float reciprocal = __frcp_rn(step);
#pragma unroll
      for (int j = 0; j < 8; ++j) packed |= code_of(x.v[j], step, reciprocal) << (4 * j);
    } else {
      packed = general_codes(x, step);
    }
    if (half >= halves) continue;
    if (half % 2 == 0) scales[half / 2] = scale;
    differing += __popc(nvfp4_differing_codes(before[i], packed));
    codes[half] = packed;
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
