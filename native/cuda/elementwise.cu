// embedding, swiglu, add, gather_rows, kv_append, increment and their gradients: bound by memory.
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;

// y[r,:] = x[rows[r],:].  x [V,C], rows [M] → y [M,C]. One thread a piece of W elements.
template <typename In, typename Out, int W>
__global__ void copy_rows(const In* x, const int32_t* rows, Out* y, int64_t count, int64_t width) {
  begin();
  const int64_t pieces = width / W;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count * pieces;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / pieces, at = i % pieces * W;
    store<W>(y + row * width + at, load<W>(x + int64_t{rows[row]} * width + at));
  }
}

template <int W, typename T, typename Body>
__device__ void each_piece(int64_t elements, Body&& body) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * W;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * W; i < elements; i += stride) body(i);
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T, int W>
__global__ void swiglu_kernel(const T* gate, const T* up, T* y, int64_t elements) {
  begin();
  each_piece<W, T>(elements, [=](int64_t i) {
    const Pack<W> g = load<W>(gate + i), u = load<W>(up + i);
    Pack<W> out;
#pragma unroll
    for (int j = 0; j < W; ++j) out.v[j] = g.v[j] * sigmoid(g.v[j]) * u.v[j];
    store<W>(y + i, out);
  });
}

// dgate may lie over dy: each thread reads its piece before it writes it.
template <typename T, int W>
__global__ void swiglu_backward_kernel(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t elements) {
  begin();
  each_piece<W, T>(elements, [=](int64_t i) {
    const Pack<W> d = load<W>(dy + i), g = load<W>(gate + i), u = load<W>(up + i);
    Pack<W> dg, du;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float s = sigmoid(g.v[j]);
      du.v[j] = d.v[j] * g.v[j] * s;
      dg.v[j] = d.v[j] * u.v[j] * s * (1.0f + g.v[j] * (1.0f - s));
    }
    store<W>(dgate + i, dg);
    store<W>(dup + i, du);
  });
}

template <typename T, int W>
__global__ void add_kernel(const T* a, const T* b, T* y, int64_t elements) {
  begin();
  each_piece<W, T>(elements, [=](int64_t i) {
    Pack<W> p = load<W>(a + i);
    const Pack<W> q = load<W>(b + i);
#pragma unroll
    for (int j = 0; j < W; ++j) p.v[j] += q.v[j];
    store<W>(y + i, p);
  });
}

// cache[b, past[b]+t, :] = rows[b·T+t, :] for k and v; rows beyond the capacity S are dropped.
template <typename T, int W>
__global__ void kv_append_kernel(const T* k, const T* v, const int32_t* past, T* k_cache, T* v_cache, int64_t rows,
                                 int64_t steps, int64_t capacity, int64_t width) {
  begin();
  each_piece<W, T>(rows * width, [=](int64_t i) {
    const int64_t row = i / width, b = row / steps, slot = past[b] + row % steps;
    if (slot < 0 || slot >= capacity) return;
    const int64_t to = (b * capacity + slot) * width + i % width;
    store<W>(k_cache + to, load<W>(k + i));
    store<W>(v_cache + to, load<W>(v + i));
  });
}

__global__ void increment_kernel(int32_t* x, int64_t elements, int64_t by, int64_t max) {
  begin();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= elements) return;
  const int64_t next = x[i] + by;
  x[i] = static_cast<int32_t>(next < max ? next : max);
}

// dtable[ids[n],:] += Σ dy over all rows with that id, in the order of n: the block of the first such row adds them all,
// the others leave. dy [N,C], ids [N] → dtable [V,C] (accumulates). A thread holds the sums of kHeld columns.
constexpr int kHeld = 16;
template <typename T, typename Out>
__global__ void embedding_backward_kernel(const T* dy, const int32_t* ids, Out* dtable, int rows, int64_t width) {
  begin();
  const int n = blockIdx.x, id = ids[n];
  bool earlier = false;
  for (int i = threadIdx.x; i < n; i += blockDim.x) earlier |= ids[i] == id;
  if (__syncthreads_or(earlier)) return;
  __shared__ uint32_t matches[kThreads / 32];
  for (int64_t column = threadIdx.x; column < (width + kThreads - 1) / kThreads * kThreads;
       column += kThreads * kHeld) {
    float sum[kHeld];
    Out* const to = dtable + int64_t{id} * width;
#pragma unroll
    for (int h = 0; h < kHeld; ++h) sum[h] = column + h * kThreads < width ? to_f32(to[column + h * kThreads]) : 0.0f;
    for (int first = n / kThreads * kThreads; first < rows; first += kThreads) {
      const int i = first + threadIdx.x;
      const uint32_t vote = __ballot_sync(0xffffffffu, i >= n && i < rows && ids[i] == id);
      __syncthreads();
      if (threadIdx.x % 32 == 0) matches[threadIdx.x / 32] = vote;
      __syncthreads();
      for (int w = 0; w < kThreads / 32; ++w)
        for (uint32_t left = matches[w]; left; left &= left - 1) {
          const T* from = dy + int64_t{first + w * 32 + __ffs(static_cast<int>(left)) - 1} * width;
#pragma unroll
          for (int h = 0; h < kHeld; ++h)
            if (column + h * kThreads < width) sum[h] += to_f32(from[column + h * kThreads]);
        }
    }
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
      if (column + h * kThreads < width) to[column + h * kThreads] = from_f32<Out>(sum[h]);
  }
}

}  // namespace

void CudaBackend::embedding(const Tensor& table, const Tensor& ids, const Tensor& y) {
  (void)stream();
  embedded_ = {table, ids, y};
  if (!may_begin_chain(embedded_)) run_embedding();
}

void CudaBackend::run_embedding() {
  const Embedded e = std::exchange(embedded_, {});
  const Tensor &table = e.table, &ids = e.ids, &y = e.y;
  const int64_t rows = y.rows(), width = y.cols();
  by_float(table.dtype, [&](auto in) {
    by_activation(y.dtype, [&](auto out) {
      by_width(wide(width, table, y), [&](auto w) {
        launch({blocks_for(rows * (width / w), kThreads), kThreads, stream_.get(), 0, overlap()},
               copy_rows<decltype(in), decltype(out), w>, table.as<decltype(in)>(), ids.i32(), y.as<decltype(out)>(),
               rows, width);
      });
    });
  });
}

void CudaBackend::gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y) {
  const int64_t count = y.rows(), width = y.cols();
  by_activation(x.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(width, x, y), [&](auto w) {
      launch({blocks_for(count * (width / w), kThreads), kThreads, stream(), 0, overlap()}, copy_rows<T, T, w>,
             x.as<T>(), rows.i32(), y.as<T>(), count, width);
    });
  });
}

void CudaBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) {
  if (defer({Deferred::Kind::swiglu, {gate, up, y}})) return;
  const int64_t elements = y.elements();
  by_activation(y.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(elements, gate, up, y), [&](auto w) {
      launch({blocks_for(elements / w, kThreads), kThreads, stream(), 0, overlap()}, swiglu_kernel<T, w>, gate.as<T>(),
             up.as<T>(), y.as<T>(), elements);
    });
  });
}

void CudaBackend::swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                  const Tensor& dup) {
  const int64_t elements = dy.elements();
  by_activation(dy.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(elements, dy, gate, up, dgate, dup), [&](auto w) {
      launch({blocks_for(elements / w, kThreads), kThreads, stream(), 0, overlap()}, swiglu_backward_kernel<T, w>,
             dy.as<T>(), gate.as<T>(), up.as<T>(), dgate.as<T>(), dup.as<T>(), elements);
    });
  });
}

void CudaBackend::add(const Tensor& a, const Tensor& b, const Tensor& y) {
  const int64_t elements = y.elements();
  by_activation(y.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(elements, a, b, y), [&](auto w) {
      launch({blocks_for(elements / w, kThreads), kThreads, stream(), 0, overlap()}, add_kernel<T, w>, a.as<T>(),
             b.as<T>(), y.as<T>(), elements);
    });
  });
}

void CudaBackend::kv_append(const Tensor& k, const Tensor& v, const Tensor& past, int64_t batch, const Tensor& k_cache,
                            const Tensor& v_cache) {
  if (defer({Deferred::Kind::append, {k, v, past, k_cache, v_cache}, 0, 0, batch})) return;
  const int64_t rows = k.rows(), width = k.cols();
  by_activation(k.dtype, [&](auto act) {
    using T = decltype(act);
    by_width(wide(width, k, v, k_cache, v_cache), [&](auto w) {
      launch({blocks_for(rows * width / w, kThreads), kThreads, stream(), 0, overlap()}, kv_append_kernel<T, w>,
             k.as<T>(), v.as<T>(), past.i32(), k_cache.as<T>(), v_cache.as<T>(), rows, rows / batch,
             k_cache.rows() / batch, width);
    });
  });
}

void CudaBackend::increment(int64_t by, int64_t max, const Tensor& x) {
  if (count_in_chain(by, max, x)) return;
  (void)stream();
  count(by, max, x);
}

// Behind what was launched, whatever is put off.
void CudaBackend::count(int64_t by, int64_t max, const Tensor& x) {
  launch({blocks_for(x.elements(), kThreads), kThreads, stream_.get(), 0, overlap()}, increment_kernel, x.i32(),
         x.elements(), by, max);
}

void CudaBackend::embedding_backward(const Tensor& dy, const Tensor& ids, bool accumulate, const Tensor& dtable) {
  if (!accumulate) fill(0, dtable);
  if (dy.rows() == 0) return;
  by_activation(dy.dtype, [&](auto act) {
    by_activation(dtable.dtype, [&](auto out) {
      launch({static_cast<unsigned>(dy.rows()), kThreads, stream(), 0, overlap()},
             embedding_backward_kernel<decltype(act), decltype(out)>, dy.as<decltype(act)>(), ids.i32(),
             dtable.as<decltype(out)>(), static_cast<int>(dy.rows()), dtable.cols());
    });
  });
}

}  // namespace q4::gpu
