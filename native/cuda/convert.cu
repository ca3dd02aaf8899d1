// Filling, casting and random numbers.
#include "core/philox.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;

__global__ void fill32_kernel(uint32_t* y, int64_t elements, uint32_t bits) {
  begin_weights();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += int64_t{gridDim.x} * blockDim.x)
    y[i] = bits;
}
__global__ void fill16_kernel(uint16_t* y, int64_t elements, uint16_t bits) {
  begin_weights();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += int64_t{gridDim.x} * blockDim.x)
    y[i] = bits;
}

template <typename In, typename Out>
__global__ void cast_kernel(const In* x, Out* y, int64_t elements) {
  begin_weights();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += int64_t{gridDim.x} * blockDim.x)
    y[i] = from_f32<Out>(to_f32(x[i]));
}

// y = std · normal; one thread a Philox group of four elements.
__global__ void random_normal_kernel(uint32_t seed_lo, uint32_t seed_hi, uint32_t stream, float std, float* y,
                                     int64_t elements) {
  begin_weights();
  for (int64_t group = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; group * 4 < elements;
       group += int64_t{gridDim.x} * blockDim.x) {
    const Philox4 draw = philox_group(seed_lo, seed_hi, Draw::normal, stream, 0, static_cast<uint64_t>(group));
    float normal[4];
    philox_normal(draw.word[0], draw.word[1], normal[0], normal[1]);
    philox_normal(draw.word[2], draw.word[3], normal[2], normal[3]);
    for (int64_t j = 0; j < 4 && group * 4 + j < elements; ++j) y[group * 4 + j] = std * normal[j];
  }
}

}  // namespace

void CudaBackend::fill(float value, const Tensor& y) {
  const int64_t elements = y.elements();
  const Launch how{std::min(blocks_for(elements, kThreads * 4), 65535u), kThreads, stream(), 0, overlap()};
  if (y.dtype == DType::bf16)
    launch(how, fill16_kernel, y.as<uint16_t>(), elements, f32_to_bf16(value));
  else if (y.dtype == DType::i32)
    launch(how, fill32_kernel, y.as<uint32_t>(), elements, static_cast<uint32_t>(static_cast<int32_t>(value)));
  else
    launch(how, fill32_kernel, y.as<uint32_t>(), elements, f32_bits(value));
}

void CudaBackend::cast(const Tensor& x, const Tensor& y) {
  const int64_t elements = y.elements();
  by_float(x.dtype, [&](auto in) {
    by_float(y.dtype, [&](auto out) {
      launch({std::min(blocks_for(elements, kThreads * 4), 65535u), kThreads, stream(), 0, overlap()},
             cast_kernel<decltype(in), decltype(out)>, x.as<decltype(in)>(), y.as<decltype(out)>(), elements);
    });
  });
}

void CudaBackend::random_normal(uint64_t seed, int64_t stream, float std, const Tensor& y) {
  const int64_t elements = y.elements();
  launch({std::min(blocks_for(elements, kThreads * 4), 65535u), kThreads, this->stream(), 0, overlap()},
         random_normal_kernel, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
         static_cast<uint32_t>(stream), std, y.f32(), elements);
}

}  // namespace q4::gpu
