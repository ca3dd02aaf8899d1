// What kernels share: activation types, wide loads and stores, fixed-order reductions, launches.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/half.h"
#include "core/tensor.h"
#include "cuda/check.h"

namespace q4::gpu {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(bf16 x) { return bf16_to_f32(x.bits); }
__device__ inline float to_f32(f16 x) { return f16_to_f32(x.bits); }

// Two bf16 in one word, `low` in the low half; round to nearest even.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ inline float low_bf16(uint32_t word) { return __uint_as_float(word << 16); }
__device__ inline float high_bf16(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

constexpr float kLog2e = 1.4426950408889634f, kLog2 = 0.6931471805599453f;
// 2^x to 2 ulp, denormals to zero.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x to 1 ulp, and 1 / √x to 2; denormals count as zero.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

template <typename T>
__device__ inline T from_f32(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else if constexpr (std::is_same_v<T, bf16>)
    return {static_cast<uint16_t>(pack_bf16(x, 0.0f))};
  else
    return {f32_to_f16(x)};
}
// x as it reads back after a store.
template <typename T>
__device__ inline float rounded(float x) {
  return to_f32(from_f32<T>(x));
}

// W neighbouring elements in fp32: 8 where rows are whole 16-byte pieces, 4 where fp32 streams are to be coalesced piece by
// piece, 2 or 1 elsewhere.
template <int W>
struct Pack {
  float v[W];
};

template <int W, typename T>
__device__ inline Pack<W> load(const T* p) {
  Pack<W> out;
  if constexpr (W == 1) {
    out.v[0] = to_f32(*p);
  } else if constexpr (W == 2) {
    if constexpr (std::is_same_v<T, float>) {
      const float2 words = *reinterpret_cast<const float2*>(p);
      out.v[0] = words.x, out.v[1] = words.y;
    } else {
      static_assert(std::is_same_v<T, bf16>);
      const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
      out.v[0] = low_bf16(word), out.v[1] = high_bf16(word);
    }
  } else if constexpr (W == 4) {
    if constexpr (std::is_same_v<T, float>) {
      const float4 words = *reinterpret_cast<const float4*>(p);
      out.v[0] = words.x, out.v[1] = words.y, out.v[2] = words.z, out.v[3] = words.w;
    } else {
      const uint2 words = *reinterpret_cast<const uint2*>(p);
      if constexpr (std::is_same_v<T, bf16>) {
        out.v[0] = low_bf16(words.x), out.v[1] = high_bf16(words.x);
        out.v[2] = low_bf16(words.y), out.v[3] = high_bf16(words.y);
      } else {
        out.v[0] = f16_to_f32(static_cast<uint16_t>(words.x)),
        out.v[1] = f16_to_f32(static_cast<uint16_t>(words.x >> 16));
        out.v[2] = f16_to_f32(static_cast<uint16_t>(words.y)),
        out.v[3] = f16_to_f32(static_cast<uint16_t>(words.y >> 16));
      }
    }
  } else if constexpr (std::is_same_v<T, float>) {
    static_assert(W == 8);
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    out.v[0] = a.x, out.v[1] = a.y, out.v[2] = a.z, out.v[3] = a.w;
    out.v[4] = b.x, out.v[5] = b.y, out.v[6] = b.z, out.v[7] = b.w;
  } else {
    static_assert(W == 8);
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, bf16>) {
        out.v[2 * i] = low_bf16(w[i]), out.v[2 * i + 1] = high_bf16(w[i]);
      } else {
        out.v[2 * i] = f16_to_f32(static_cast<uint16_t>(w[i])),
                  out.v[2 * i + 1] = f16_to_f32(static_cast<uint16_t>(w[i] >> 16));
      }
    }
  }
  return out;
}

// W elements as they lie in memory: what is loaded long before it is needed takes fewer registers, and nothing waits for it.
template <int W, typename T>
struct Loaded {
  static constexpr int kBytes = W * sizeof(T);
  using Word = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes == 2, uint16_t, uint32_t>>;
  Word word[kBytes / sizeof(Word)];
};
template <int W, typename T>
__device__ inline Loaded<W, T> load_ahead(const T* p) {
  Loaded<W, T> out;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof out.word / sizeof out.word[0]); ++i)
    out.word[i] = reinterpret_cast<const typename Loaded<W, T>::Word*>(p)[i];
  return out;
}
template <int W, typename T>
__device__ inline Pack<W> opened(const Loaded<W, T>& x) {
  return load<W>(reinterpret_cast<const T*>(x.word));
}

template <int W, typename T>
__device__ inline void store(T* p, const Pack<W>& x) {
  if constexpr (W == 1) {
    *p = from_f32<T>(x.v[0]);
  } else if constexpr (W == 2) {
    if constexpr (std::is_same_v<T, float>)
      *reinterpret_cast<float2*>(p) = make_float2(x.v[0], x.v[1]);
    else
      *reinterpret_cast<uint32_t*>(p) = pack_bf16(x.v[0], x.v[1]);
  } else if constexpr (W == 4) {
    if constexpr (std::is_same_v<T, float>)
      *reinterpret_cast<float4*>(p) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    else
      *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]));
  } else if constexpr (std::is_same_v<T, float>) {
    reinterpret_cast<float4*>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
  } else if constexpr (std::is_same_v<T, bf16>) {
    *reinterpret_cast<uint4*>(p) = make_uint4(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]),
                                              pack_bf16(x.v[4], x.v[5]), pack_bf16(x.v[6], x.v[7]));
  } else {
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = f32_to_f16(x.v[2 * i]) | uint32_t{f32_to_f16(x.v[2 * i + 1])} << 16;
    *reinterpret_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
  }
}

// amax_step as one instruction: max(m, |x|), NaN once either is.
__device__ inline float largest_magnitude(float m, float x) {
  float largest;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(largest) : "f"(m), "f"(fabsf(x)));
  return largest;
}

// Over each kLanes neighbouring lanes, in all of them.
template <int kLanes = 32>
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// The sum over the block in a fixed order, in every thread. blockDim.x is a multiple of 32; `shared` holds 32 floats that
// nobody still reads.
__device__ inline float block_sum_into(float x, float* shared) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) total += shared[w];
  return total;
}
__device__ inline float block_sum(float x, float* shared) {
  __syncthreads();
  return block_sum_into(x, shared);
}

// Programmatic dependent launch (9.0 on): the next kernel may be set up while this one runs; it waits before it touches
// what earlier kernels write. Every kernel calls begin() first: then completion of one implies completion of all before.
__device__ inline void release_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void begin() {
  release_next();
  wait_previous();
}
// For kernels that write what may be a weight: later kernels fetch weights before they wait, so none may start early.
__device__ inline void begin_weights() { wait_previous(); }

struct Launch {
  dim3 grid, block;
  cudaStream_t stream;
  size_t shared_bytes = 0;
  bool overlap = false;  // programmatic dependent launch: capability 9.0 and up only
};

template <typename... Parameters, typename... Arguments>
void launch(const Launch& how, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = how.overlap ? 1 : 0;
  Q4_CHECK(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

// Lets a kernel use more than 48 KiB of shared memory, static and dynamic; once per kernel and device is enough, and cheap.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes > 16 * 1024)
    Q4_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
}

// How many blocks of a kernel the device runs at the same time.
template <typename Kernel>
unsigned resident_blocks(Kernel* kernel, int threads, int processors, size_t shared_bytes = 0) {
  int blocks = 0;
  Q4_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return static_cast<unsigned>(blocks > 0 ? blocks * processors : 1);
}

// Calls body with a value of the activation type.
template <typename Body>
void by_activation(DType dtype, Body&& body) {
  if (dtype == DType::bf16)
    body(bf16{});
  else
    body(float{});
}
template <typename Body>
void by_float(DType dtype, Body&& body) {
  if (dtype == DType::bf16)
    body(bf16{});
  else if (dtype == DType::f16)
    body(f16{});
  else
    body(float{});
}

// True when every tensor's rows of `width` elements are whole 16-byte pieces.
template <typename... Tensors>
bool wide(int64_t width, const Tensors&... tensors) {
  return width % 8 == 0 && ((reinterpret_cast<uintptr_t>(tensors.data) % 16 == 0) && ...);
}
template <typename Body>
void by_width(bool is_wide, Body&& body) {
  if (is_wide)
    body(std::integral_constant<int, 8>{});
  else
    body(std::integral_constant<int, 1>{});
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(items <= 0 ? 1 : (items + per_block - 1) / per_block);
}

}  // namespace q4::gpu
