// RMSNorm, residual add + RMSNorm, and their gradient.
#include <algorithm>

#include "cuda/column_sum.cuh"
#include "cuda/cuda_backend.h"

namespace q4::gpu {
namespace {

constexpr int kColumns = 32, kLanes = 32;

// One block a strip of kColumns columns; kLanes threads a column take every kLanes-th row, then add up in order.
__global__ void column_sum_kernel(const float* partial, int64_t rows, int64_t width, bool accumulate, float* out) {
  begin();
  __shared__ float shared[kLanes][kColumns];
  const int64_t column = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  float sum = 0;
  if (column < width) {
    // Few blocks: what counts is how many loads are under way.
#pragma unroll 8
    for (int64_t r = threadIdx.y; r < rows; r += kLanes) sum += partial[r * width + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int lane = 1; lane < kLanes; ++lane) sum += shared[lane][threadIdx.x];
  out[column] = (accumulate ? out[column] : 0.0f) + sum;
}

// One block a row. x (and branch) [N,C] → sum (only with branch), y [N,C], rstd [N].
template <typename T, int W, bool kAdd>
__global__ void rms_norm_kernel(const T* x, const T* branch, const float* weight, float eps, T* sum, T* y, float* rstd,
                                int64_t width) {
  begin();
  __shared__ float shared[32];
  const int64_t row = int64_t{blockIdx.x} * width;
  float squares = 0;
  for (int64_t c = int64_t{threadIdx.x} * W; c < width; c += int64_t{blockDim.x} * W) {
    Pack<W> v = load<W>(x + row + c);
    if constexpr (kAdd) {
      const Pack<W> b = load<W>(branch + row + c);
#pragma unroll
      for (int j = 0; j < W; ++j) v.v[j] = rounded<T>(v.v[j] + b.v[j]);
      store<W>(sum + row + c, v);
    }
#pragma unroll
    for (int j = 0; j < W; ++j) squares += v.v[j] * v.v[j];
  }
  const float scale = rsqrtf(block_sum(squares, shared) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  // Each thread reads back what it read or wrote itself.
  const T* from = kAdd ? sum : x;
  for (int64_t c = int64_t{threadIdx.x} * W; c < width; c += int64_t{blockDim.x} * W) {
    Pack<W> v = load<W>(from + row + c);
    const Pack<W> w = load<W>(weight + c);
#pragma unroll
    for (int j = 0; j < W; ++j) v.v[j] = rounded<T>(v.v[j] * scale) * w.v[j];
    store<W>(y + row + c, v);
  }
}

// The same where a thread's one piece covers its share of the row: it stays in registers between the two passes.
template <typename T, int W, bool kAdd>
__global__ void rms_norm_held_kernel(const T* x, const T* branch, const float* weight, float eps, T* sum, T* y,
                                     float* rstd, int64_t width) {
  begin();
  __shared__ float shared[32];
  const int64_t c = int64_t{threadIdx.x} * W, at = int64_t{blockIdx.x} * width + c;
  const bool inside = c < width;
  Pack<W> v{}, w{};
  if (inside) {
    v = load<W>(x + at), w = load<W>(weight + c);
    if constexpr (kAdd) {
      const Pack<W> b = load<W>(branch + at);
#pragma unroll
      for (int j = 0; j < W; ++j) v.v[j] = rounded<T>(v.v[j] + b.v[j]);
      store<W>(sum + at, v);
    }
  }
  float squares = 0;
#pragma unroll
  for (int j = 0; j < W; ++j) squares += v.v[j] * v.v[j];
  const float scale = rsqrtf(block_sum(squares, shared) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  if (!inside) return;
#pragma unroll
  for (int j = 0; j < W; ++j) v.v[j] = rounded<T>(v.v[j] * scale) * w.v[j];
  store<W>(y + at, v);
}

// Block b takes rows b, b + gridDim, ...; dx [N,C], and with kWeight partial[b, C] = Σ dy·x·rstd over its rows.
template <typename T, int W, bool kWeight>
__global__ void rms_norm_backward_kernel(const T* dy, const T* x, const float* weight, const float* rstd,
                                         const T* residual, T* dx, float* partial, int64_t rows, int64_t width) {
  begin();
  __shared__ float shared[32];
  extern __shared__ float dweight[];  // [C]; each thread touches only its own columns
  if constexpr (kWeight)
    for (int64_t c = int64_t{threadIdx.x} * W; c < width; c += int64_t{blockDim.x} * W)
#pragma unroll
      for (int j = 0; j < W; ++j) dweight[c + j] = 0;
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    const int64_t row = n * width;
    const float scale = rstd[n];
    float dot = 0;
    for (int64_t c = int64_t{threadIdx.x} * W; c < width; c += int64_t{blockDim.x} * W) {
      const Pack<W> d = load<W>(dy + row + c), v = load<W>(x + row + c), w = load<W>(weight + c);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float product = d.v[j] * v.v[j] * scale;
        dot += product * w.v[j];
        if constexpr (kWeight) dweight[c + j] += product;
      }
    }
    const float mean = block_sum(dot, shared) / static_cast<float>(width);
    for (int64_t c = int64_t{threadIdx.x} * W; c < width; c += int64_t{blockDim.x} * W) {
      const Pack<W> d = load<W>(dy + row + c), v = load<W>(x + row + c), w = load<W>(weight + c);
      Pack<W> out;
      if (residual) out = load<W>(residual + row + c);
#pragma unroll
      for (int j = 0; j < W; ++j)
        out.v[j] = (residual ? out.v[j] : 0.0f) + scale * (d.v[j] * w.v[j] - v.v[j] * scale * mean);
      store<W>(dx + row + c, out);
    }
  }
  if constexpr (kWeight)
    for (int64_t c = int64_t{threadIdx.x} * W; c < width; c += int64_t{blockDim.x} * W)
#pragma unroll
      for (int j = 0; j < W; ++j) partial[blockIdx.x * width + c + j] = dweight[c + j];
}

constexpr int kMaxThreads = 512;

// The same where a thread's one piece covers its share of the row; its sums for dweight stay in registers too, and the
// next row is on its way while this one is worked on.
template <typename T, int W, bool kWeight>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_backward_held_kernel(const T* dy, const T* x, const float* weight, const float* rstd, const T* residual,
                                  T* dx, float* partial, int64_t rows, int64_t width) {
  begin();
  __shared__ float shared[2][32];
  const int64_t c = int64_t{threadIdx.x} * W;
  const bool inside = c < width;
  Pack<W> w{}, dweight{};
  if (inside) w = load<W>(weight + c);
  struct Row {
    Loaded<W, T> dy, x, residual;
    float scale;
  };
  const auto fetch = [&](int64_t n) {
    Row row{};
    if (n >= rows || !inside) return row;
    const int64_t at = n * width + c;
    row.dy = load_ahead<W>(dy + at), row.x = load_ahead<W>(x + at), row.scale = rstd[n];
    if (residual) row.residual = load_ahead<W>(residual + at);
    return row;
  };
  Row next = fetch(blockIdx.x);
  int turn = 0;
#pragma unroll 1
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x, turn ^= 1) {
    const Row row = next;
    next = fetch(n + gridDim.x);
    const Pack<W> d = opened(row.dy), v = opened(row.x);
    const float scale = row.scale;
    float dot = 0;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float product = d.v[j] * v.v[j] * scale;
      dot += product * w.v[j];
      if constexpr (kWeight) dweight.v[j] += product;
    }
    // Two places in turn: who still reads the one has not passed the barrier after the other.
    const float mean = block_sum_into(dot, shared[turn]) / static_cast<float>(width);
    if (!inside) continue;
    Pack<W> out = opened(row.residual);
#pragma unroll
    for (int j = 0; j < W; ++j) out.v[j] += scale * (d.v[j] * w.v[j] - v.v[j] * scale * mean);
    store<W>(dx + n * width + c, out);
  }
  if (kWeight && inside) store<W>(partial + blockIdx.x * width + c, dweight);
}

// Threads that cover a row in few steps.
unsigned row_threads(int64_t pieces) {
  const int64_t threads = (pieces + 31) / 32 * 32;
  return static_cast<unsigned>(threads < 32 ? 32 : threads > kMaxThreads ? kMaxThreads : threads);
}

bool row_is_held(int64_t pieces) { return pieces <= row_threads(pieces); }

}  // namespace

void column_sum(const float* partial, int64_t rows, int64_t width, bool accumulate, float* out, cudaStream_t stream,
                bool overlap) {
  launch({blocks_for(width, kColumns), {kColumns, kLanes}, stream, 0, overlap}, column_sum_kernel, partial, rows, width,
         accumulate, out);
}

void CudaBackend::rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, const Tensor& rstd) {
  if (defer({Deferred::Kind::norm, {x, Tensor{}, weight, Tensor{}, y, rstd}, eps})) return;
  const int64_t rows = x.rows(), width = x.cols();
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(width, x, weight, y), [&](auto w) {
      auto* kernel = row_is_held(width / w) ? rms_norm_held_kernel<T, w, false> : rms_norm_kernel<T, w, false>;
      launch({static_cast<unsigned>(rows), row_threads(width / w), stream(), 0, overlap()}, kernel, x.as<T>(), nullptr,
             weight.f32(), eps, nullptr, y.as<T>(), rstd.f32(), width);
    });
  });
}

void CudaBackend::add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight, float eps,
                               const Tensor& sum, const Tensor& y, const Tensor& rstd) {
  if (defer({Deferred::Kind::norm, {x, branch, weight, sum, y, rstd}, eps})) return;
  const int64_t rows = x.rows(), width = x.cols();
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(width, x, branch, weight, sum, y), [&](auto w) {
      auto* kernel = row_is_held(width / w) ? rms_norm_held_kernel<T, w, true> : rms_norm_kernel<T, w, true>;
      launch({static_cast<unsigned>(rows), row_threads(width / w), stream(), 0, overlap()}, kernel, x.as<T>(),
             branch.as<T>(), weight.f32(), eps, sum.as<T>(), y.as<T>(), rstd.f32(), width);
    });
  });
}

void CudaBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                    const Tensor& dresidual, bool accumulate, const Tensor& dx, const Tensor& dweight,
                                    const Tensor&) {
  const int64_t rows = x.rows(), width = x.cols();
  // No more rows of partial sums than the workspace holds.
  int64_t blocks = rows;
  if (dweight) blocks = std::max<int64_t>(1, std::min(blocks, Workspace::kPartialBytes / 4 / width));
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(width, dy, x, weight, dx, dresidual), [&](auto w) {
      const bool held = row_is_held(width / w);
      const size_t shared = dweight && !held ? static_cast<size_t>(width) * 4 : 0;
      const unsigned threads = row_threads(width / w);
      auto* kernel = dweight ? held ? rms_norm_backward_held_kernel<T, w, true> : rms_norm_backward_kernel<T, w, true>
                     : held ? rms_norm_backward_held_kernel<T, w, false>
                             : rms_norm_backward_kernel<T, w, false>;
      allow_shared(kernel, shared);
      // All at once: a second round of blocks would find most of the device idle.
      blocks = std::min<int64_t>(blocks, resident_blocks(kernel, static_cast<int>(threads), processors_, shared));
      const Launch how{static_cast<unsigned>(blocks), threads, stream(), shared, overlap()};
      launch(how, kernel, dy.as<T>(), x.as<T>(), weight.f32(), rstd.f32(), dresidual.as<T>(), dx.as<T>(), partials(),
             rows, width);
    });
  });
  if (dweight) column_sum(partials(), blocks, width, accumulate, dweight.f32(), stream(), overlap());
}

}  // namespace q4::gpu
