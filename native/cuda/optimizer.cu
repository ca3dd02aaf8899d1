// Gradient statistics and AdamW.
#include <algorithm>
#include <utility>

#include "core/nvfp4.h"
#include "core/philox.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;

struct SumOfSquares {
  __device__ static float step(float total, float x) { return total + x * x; }
  __device__ static float join(float a, float b) { return a + b; }
};
struct LargestMagnitude {
  __device__ static float step(float total, float x) { return largest_magnitude(total, x); }
  __device__ static float join(float a, float b) { return largest_magnitude(a, b); }
};

template <typename Op>
__device__ float block_reduce(float x, float* shared) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) total = Op::join(total, shared[w]);
  return total;
}

// *out = join of the `total` of every thread of `blocks` blocks, of which this is number `block`. The one that ends last
// joins their partials in order and resets the ticket for the next kernel.
template <typename Op>
__device__ void finish_reduction(float total, uint32_t block, uint32_t blocks, float* partial, uint32_t* ticket,
                                 float* out) {
  __shared__ float shared[kThreads / 32];
  __shared__ bool last;
  total = block_reduce<Op>(total, shared);
  if (threadIdx.x == 0) {
    partial[block] = total;
    __threadfence();
    last = atomicAdd(ticket, 1u) == blocks - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  total = 0;
  for (uint32_t i = threadIdx.x; i < blocks; i += kThreads) total = Op::join(total, __ldcg(partial + i));
  total = block_reduce<Op>(total, shared);
  if (threadIdx.x == 0) {
    *out = total;
    *ticket = 0;
  }
}

// Elements that one block reduces: a fixed number, so that the order of a sum depends on nothing but its length.
constexpr int64_t kShare = 32768;
// Loads of a thread that are under way at once.
constexpr int kPieces = 4;

template <typename Op, typename T, int W>
__device__ float reduce_share(const T* x, int64_t elements) {
  constexpr int64_t kStep = int64_t{kThreads} * W;
  float total = 0;
  for (int64_t first = threadIdx.x * W; first < elements; first += kStep * kPieces) {
    Pack<W> v[kPieces]{};
#pragma unroll
    for (int p = 0; p < kPieces; ++p)
      if (first + p * kStep < elements) v[p] = load<W>(x + first + p * kStep);
#pragma unroll
    for (int p = 0; p < kPieces; ++p)
#pragma unroll
      for (int j = 0; j < W; ++j) total = Op::step(total, v[p].v[j]);
  }
  return total;
}

template <typename Op, typename T>
__device__ float reduce_share(const Reduction& item, int64_t first, int64_t elements) {
  const T* x = static_cast<const T*>(item.x) + first;
  // A thread's 16 bytes lie beside its neighbours'.
  return item.wide ? reduce_share<Op, T, 16 / sizeof(T)>(x, elements) : reduce_share<Op, T, 1>(x, elements);
}

template <typename Op>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const __grid_constant__ Reductions all, float* partial, uint32_t* tickets) {
  begin();
  int at = 0;  // the last that begins at this block or before
#pragma unroll
  for (int step = 64; step; step /= 2)
    if (at + step < all.count && all.item[at + step].first_block <= blockIdx.x) at += step;
  const Reduction& item = all.item[at];
  const uint32_t end = at + 1 < all.count ? all.item[at + 1].first_block : all.blocks;
  const uint32_t block = blockIdx.x - item.first_block;
  const int64_t first = block * kShare, elements = min(kShare, item.elements - first);
  const float total = item.dtype == DType::bf16  ? reduce_share<Op, bf16>(item, first, elements)
                      : item.dtype == DType::f16 ? reduce_share<Op, f16>(item, first, elements)
                                                 : reduce_share<Op, float>(item, first, elements);
  finish_reduction<Op>(total, block, end - item.first_block, partial + item.first_block, tickets + at, item.out);
}

// *out = the largest of every thread's `largest`, which is a magnitude or NaN: as bits these are ordered, NaN last. `tally`
// holds { largest, blocks done }, zero between kernels.
__device__ void finish_largest(float largest, uint32_t* tally, float* out) {
  __shared__ uint32_t shared[kThreads / 32];
  uint32_t bits = __reduce_max_sync(0xffffffffu, __float_as_uint(largest));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = bits;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) bits = max(bits, shared[w]);
  atomicMax(tally, bits);
  __threadfence();
  if (atomicAdd(tally + 1, 1u) != gridDim.x - 1) return;
  __threadfence();
  *out = __uint_as_float(atomicExch(tally, 0u));
  tally[1] = 0;
}

__global__ void grad_stats_kernel(const float* partials, int64_t count, const float* loss, float max_norm,
                                  float* stats) {
  begin();
  __shared__ double shared[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) sum += shared[i];
  const float norm = static_cast<float>(sqrt(sum)), loss_value = *loss;
  const float coefficient = max_norm / (norm + 1e-6f);
  stats[0] = norm;
  stats[1] = max_norm == 0 || coefficient > 1 ? 1.0f : coefficient;
  stats[2] = isfinite(norm) && isfinite(loss_value) ? 1.0f : 0.0f;
  stats[3] = loss_value;
}

// Numbers of one step that every element shares.
struct AdamwCall {
  const float *stats, *hyper;
  const uint32_t* rng;
  bool decay;
  uint32_t stream;
};

// One block kQuads pieces of kThreads · W elements. With kAmax, *amax becomes the largest magnitude of the master that is
// left.
constexpr int kQuads = 2;
template <typename G, typename Master, int W, bool kAmax>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const G* grad, AdamwCall call, Master* master, float* m,
                                                         float* v, int64_t elements, uint32_t* tally, float* amax) {
  // A master whose amax is wanted is quantised next; no product reads it. Any other may be a weight itself.
  if constexpr (kAmax)
    begin();
  else
    begin_weights();
  const bool applied = call.stats[2] != 0;
  if (!kAmax && !applied) return;
  const float *hyper = call.hyper, clip = call.stats[1];
  const float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
  const float shrink = call.decay ? lr * hyper[4] : 0.0f, correction1 = 1.0f / hyper[5], correction2 = 1.0f / hyper[6];
  constexpr int64_t kStep = int64_t{kThreads} * W;
  const int64_t first = blockIdx.x * (kStep * kQuads) + threadIdx.x * W;
  float largest = 0;
  Pack<W> g_i[kQuads]{}, w_i[kQuads]{}, m_i[kQuads]{}, v_i[kQuads]{};
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int64_t i = first + q * kStep;
    if (i >= elements) continue;
    w_i[q] = load<W>(master + i);
    if (applied) g_i[q] = load<W>(grad + i), m_i[q] = load<W>(m + i), v_i[q] = load<W>(v + i);
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int64_t i = first + q * kStep;
    if (i >= elements) continue;
    Pack<W>& w = w_i[q];
    if (applied) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float g = g_i[q].v[j] * clip;
        float &m_j = m_i[q].v[j], &v_j = v_i[q].v[j];
        m_j = beta1 * m_j + (1.0f - beta1) * g;
        v_j = beta2 * v_j + (1.0f - beta2) * (g * g);
        w.v[j] = w.v[j] - shrink * w.v[j];
        w.v[j] = w.v[j] - lr * (m_j * correction1) / (sqrtf(v_j * correction2) + eps);
      }
      store<W>(m + i, m_i[q]);
      store<W>(v + i, v_i[q]);
      if constexpr (std::is_same_v<Master, bf16>) {
        // Four elements share a Philox call.
        const Philox4 draw = philox_group(call.rng[0], call.rng[1], Draw::rounding, call.stream, call.rng[2],
                                          static_cast<uint64_t>(i / 4));
#pragma unroll
        for (int j = 0; j < W; ++j)
          w.v[j] = bf16_to_f32(f32_to_bf16_stochastic(w.v[j], draw.word[W == 1 ? static_cast<int>(i % 4) : j]));
      }
      store<W>(master + i, w);
    }
    if constexpr (kAmax)
#pragma unroll
      for (int j = 0; j < W; ++j) largest = largest_magnitude(largest, w.v[j]);
  }
  if constexpr (kAmax) finish_largest(largest, tally, amax);
}

void put(Reductions& all, const Tensor& x, float* out) {
  const int64_t elements = x.elements();
  all.item[all.count++] = {x.data, elements, out, all.blocks, x.dtype, wide(elements, x)};
  all.blocks += blocks_for(elements, kShare);
}

}  // namespace

void CudaBackend::sum_squares(const Tensor& x, int64_t slot, const Tensor& out) {
  float* const to = out.f32() + slot;
  const auto inside = [](const void* p, const void* begin, int64_t elements, DType dtype) {
    return p >= begin && p < static_cast<const char*>(begin) + elements * element_bytes(dtype);
  };
  // Those of one launch run in any order.
  const bool depends = std::any_of(squares_.item, squares_.item + squares_.count, [&](const Reduction& other) {
    return other.out == to || inside(other.out, x.data, x.elements(), x.dtype) ||
           inside(to, other.x, other.elements, other.dtype);
  });
  if (depends || squares_.count == Reductions::kMost) run_squares();
  if (squares_.count == 0) (void)stream();  // what is put off already comes first
  put(squares_, x, to);
}

void CudaBackend::run_squares() {
  const Reductions all = std::exchange(squares_, {});
  launch({all.blocks, kThreads, stream_.get(), 0, overlap()}, reduce_kernel<SumOfSquares>, all, partials(), ticket());
}

void CudaBackend::amax(const Tensor& x, int64_t slot, const Tensor& out) {
  Reductions one{};
  put(one, x, out.f32() + slot);
  launch({one.blocks, kThreads, stream(), 0, overlap()}, reduce_kernel<LargestMagnitude>, one, partials(), ticket());
}

void CudaBackend::grad_stats(const Tensor& partials, const Tensor& loss, float max_norm, const Tensor& stats) {
  launch({1, kThreads, stream(), 0, overlap()}, grad_stats_kernel, partials.f32(), partials.elements(), loss.f32(),
         max_norm, stats.f32());
}

void CudaBackend::update(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                         int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v, float* amax) {
  const int64_t elements = master.elements();
  const AdamwCall call{stats.f32(), hyper.f32(), rng.as<uint32_t>(), decay, static_cast<uint32_t>(stream)};
  by_activation(grad.dtype, [&](auto g) {
    by_activation(master.dtype, [&](auto p) {
      const auto run = [&](auto width) {
        using G = decltype(g);
        using P = decltype(p);
        constexpr int kWidth = decltype(width)::value;
        const unsigned blocks = blocks_for(elements, int64_t{kThreads} * kWidth * kQuads);
        auto* kernel = amax ? adamw_kernel<G, P, kWidth, true> : adamw_kernel<G, P, kWidth, false>;
        launch({blocks, kThreads, this->stream(), 0, overlap()}, kernel, grad.as<G>(), call, master.as<P>(), m.f32(),
               v.f32(), elements, ticket(), amax);
      };
      if (wide(elements, grad, master, m, v))
        run(std::integral_constant<int, 4>{});
      else
        run(std::integral_constant<int, 1>{});
    });
  });
}

void CudaBackend::adamw(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                        int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v) {
  update(grad, stats, hyper, rng, decay, stream, master, m, v, nullptr);
}

void CudaBackend::adamw_amax(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng,
                             bool decay, int64_t stream, int64_t slot, const Tensor& master, const Tensor& m,
                             const Tensor& v, const Tensor& amax) {
  update(grad, stats, hyper, rng, decay, stream, master, m, v, amax.f32() + slot);
}

}  // namespace q4::gpu
