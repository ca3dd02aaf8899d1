// y = x·Wᵀ for 1–16 rows of x: bound by reading W once. Weights go from memory to registers as they are stored and are
// decoded there into fragments of mma m16n8k16, whose k dimension is permuted so that a lane's fragment is 16 contiguous
// bytes: lane (g, c) of a warp owns rows g and g + 8 and the inputs [32c, 32c + 32) of a unit of 128. The loads are issued
// before the kernel waits for its predecessor: weights do not depend on it.
#include <algorithm>

#include "cuda/cuda_backend.h"
#include "cuda/mma.cuh"
#include "cuda/nvfp4_bf16.cuh"

namespace q4::gpu {
namespace {

constexpr int kRows = 16;   // of W, a block
constexpr int kUnit = 128;  // inputs a warp takes at a time
constexpr int kMaxWarps = 16;

__device__ inline uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 32 inputs of one row in registers, and their four groups of eight as A-fragment pairs.
struct Nvfp4Weight {
  static constexpr int kUnitsHeld = 5;
  static constexpr bool kSplitPairs = true;  // pair p holds elements p and p + 4 of eight
  static constexpr float kEpilogue = kPairEpilogue;
  uint4 codes;
  uint32_t scales;
  __device__ void load(const void* data, const uint8_t* scale, int64_t element) {
    codes = load_once(static_cast<const uint8_t*>(data) + element / 2);
    scales = *reinterpret_cast<const uint16_t*>(scale + element / kBlock);
  }
  __device__ void clear() { codes = make_uint4(0, 0, 0, 0), scales = 0; }
  __device__ uint32_t both_factors() const { return scale_pair((scales & 0xffu) | (scales & 0xff00u) << 8); }
  __device__ void pairs(int i, uint32_t both, uint32_t (&out)[4]) const {
    const uint32_t factor = __byte_perm(both, both, i < 2 ? 0x1010 : 0x3232);
    code_pairs(i == 0 ? codes.x : i == 1 ? codes.y : i == 2 ? codes.z : codes.w, out);
#pragma unroll
    for (int p = 0; p < 4; ++p) out[p] = mul_bf16x2(out[p], factor);
  }
};

template <typename T>
struct PlainWeight {
  static constexpr int kUnitsHeld = std::is_same_v<T, bf16> ? 2 : 1;
  static constexpr bool kSplitPairs = false;  // pair p holds elements 2p and 2p + 1
  static constexpr float kEpilogue = 1.0f;
  static constexpr int kWords = 32 * static_cast<int>(sizeof(T)) / 16;
  uint4 words[kWords];
  __device__ void load(const void* data, const uint8_t*, int64_t element) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = load_once(static_cast<const T*>(data) + element + i * (16 / sizeof(T)));
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = make_uint4(0, 0, 0, 0);
  }
  __device__ uint32_t both_factors() const { return 0; }
  __device__ void pairs(int i, uint32_t, uint32_t (&out)[4]) const {
    if constexpr (std::is_same_v<T, float>) {
      const uint4 a = words[2 * i], b = words[2 * i + 1];
      out[0] = pack_bf16(__uint_as_float(a.x), __uint_as_float(a.y));
      out[1] = pack_bf16(__uint_as_float(a.z), __uint_as_float(a.w));
      out[2] = pack_bf16(__uint_as_float(b.x), __uint_as_float(b.y));
      out[3] = pack_bf16(__uint_as_float(b.z), __uint_as_float(b.w));
    } else {
      const uint32_t w[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        if constexpr (std::is_same_v<T, bf16>)
          out[p] = w[p];
        else
          out[p] = pack_bf16(f16_to_f32(static_cast<uint16_t>(w[p])), f16_to_f32(static_cast<uint16_t>(w[p] >> 16)));
      }
    }
  }
};

struct FewRows {
  const void* weight;
  const uint8_t* scale;
  const float* global;  // null: 1
  const bf16* x;
  void* y;
  int rows, outputs, width;
  bool wide_output;  // y is f32
};

// One block sixteen rows of W; its warps share the inputs. kTiles: 8 rows of x each.
template <typename Weight, int kTiles>
__global__ void __launch_bounds__(kMaxWarps * 32) few_rows_kernel(const FewRows call) {
  extern __shared__ float joined[];  // [warps][16][8·kTiles]
  release_next();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane / 4, c = lane % 4;
  const int first_row = blockIdx.x * kRows, units = (call.width + kUnit - 1) / kUnit;
  const int64_t row[2] = {std::min(first_row + g, call.outputs - 1), std::min(first_row + g + 8, call.outputs - 1)};
  Weight held[Weight::kUnitsHeld][2];
  const auto fetch = [&](int first_unit) {
#pragma unroll
    for (int u = 0; u < Weight::kUnitsHeld; ++u) {
      const int input = (first_unit + u * warps) * kUnit + c * 32;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (input < call.width)
          held[u][half].load(call.weight, call.scale, row[half] * call.width + input);
        else
          held[u][half].clear();
      }
    }
  };
  fetch(warp);
  wait_previous();
  float sum[kTiles][4] = {};
  for (int first_unit = warp; first_unit < units; first_unit += Weight::kUnitsHeld * warps) {
    if (first_unit != warp) fetch(first_unit);
#pragma unroll
    for (int u = 0; u < Weight::kUnitsHeld; ++u) {
      const int input = (first_unit + u * warps) * kUnit + c * 32;
      if (input - c * 32 >= call.width) break;
      const uint32_t both[2] = {held[u][0].both_factors(), held[u][1].both_factors()};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[2][4];
        held[u][0].pairs(i, both[0], a[0]);
        held[u][1].pairs(i, both[1], a[1]);
        const uint32_t low[4] = {a[0][0], a[1][0], a[0][1], a[1][1]}, high[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const int n = t * 8 + g;
          uint4 x = make_uint4(0, 0, 0, 0);
          if (n < call.rows && input < call.width)
            x = *reinterpret_cast<const uint4*>(call.x + int64_t{n} * call.width + input + i * 8);
          uint32_t b[4] = {x.x, x.y, x.z, x.w};
          if constexpr (Weight::kSplitPairs) {
            b[0] = __byte_perm(x.x, x.z, 0x5410), b[1] = __byte_perm(x.x, x.z, 0x7632);
            b[2] = __byte_perm(x.y, x.w, 0x5410), b[3] = __byte_perm(x.y, x.w, 0x7632);
          }
          mma(sum[t], low, b[0], b[1]);
          mma(sum[t], high, b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      joined[(warp * kRows + g + (e >> 1) * 8) * (8 * kTiles) + t * 8 + 2 * c + (e & 1)] = sum[t][e];
  __syncthreads();
  const float factor = Weight::kEpilogue * (call.global ? *call.global : 1.0f);
  for (int i = threadIdx.x; i < kRows * call.rows; i += blockDim.x) {
    const int r = i % kRows, n = i / kRows;
    if (first_row + r >= call.outputs) continue;
    float total = 0;
    for (int w = 0; w < warps; ++w) total += joined[(w * kRows + r) * (8 * kTiles) + n];
    total *= factor;
    const int64_t at = int64_t{n} * call.outputs + first_row + r;
    if (call.wide_output)
      static_cast<float*>(call.y)[at] = total;
    else
      static_cast<bf16*>(call.y)[at] = from_f32<bf16>(total);
  }
}

template <typename Weight>
void run(const FewRows& call, cudaStream_t stream, bool overlap) {
  const int units = (call.width + kUnit - 1) / kUnit;
  // Enough warps to hold all of a block's weights at once, where that is few enough.
  const int warps = std::clamp((units + Weight::kUnitsHeld - 1) / Weight::kUnitsHeld, 1, kMaxWarps);
  const int tiles = call.rows > 8 ? 2 : 1;
  const Launch how{blocks_for(call.outputs, kRows), static_cast<unsigned>(warps * 32), stream,
                   static_cast<size_t>(warps * kRows * 8 * tiles * 4), overlap};
  if (tiles == 1)
    launch(how, few_rows_kernel<Weight, 1>, call);
  else
    launch(how, few_rows_kernel<Weight, 2>, call);
}

}  // namespace

bool CudaBackend::linear_few_rows(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const int64_t width = weight.cols();
  if (x.dtype != DType::bf16 || x.rows() > 16 || width % 32 != 0) return false;
  for (const void* p : {x.data, weight.data})
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  const FewRows call{weight.data,
                     weight.scale,
                     weight.dtype == DType::nvfp4 ? weight.global_scale : nullptr,
                     x.as<bf16>(),
                     y.data,
                     static_cast<int>(x.rows()),
                     static_cast<int>(weight.rows()),
                     static_cast<int>(width),
                     y.dtype == DType::f32};
  switch (weight.dtype) {
    case DType::nvfp4:
      run<Nvfp4Weight>(call, stream(), overlap());
      break;
    case DType::bf16:
      run<PlainWeight<bf16>>(call, stream(), overlap());
      break;
    case DType::f16:
      run<PlainWeight<f16>>(call, stream(), overlap());
      break;
    default:
      run<PlainWeight<float>>(call, stream(), overlap());
  }
  return true;
}

}  // namespace q4::gpu
