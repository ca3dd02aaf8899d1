// Losses. Cross-entropy is fused with the head: one chunk of rows at a time, the logits of a batch are never held.
#include <algorithm>

#include "core/error.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 512;
// Threads of a block that takes a row of logits. Where it reads the row twice, more: the fewer rows are under way, the more
// of them the L2 cache still holds.
constexpr int row_threads(bool gradient) { return gradient ? 1024 : 512; }
// The weight is converted whole only where at least so many rows of logits (or all) fit beside it.
constexpr int64_t kFewestRows = 16;

// Where a row's gradient stands in the row, counted in its fp32 logits: a bf16 row takes half the bytes, and takes the
// latter half, from a multiple of 32 bytes on.
int64_t gradient_at(int64_t vocabulary, DType act) { return act == DType::bf16 ? vocabulary / 2 / 8 * 8 : 0; }

// One block a row of logits f32 [R,V]: row_loss = lse − logit[label]; with kGradient the row is overwritten by
// scale·(softmax − onehot) in the activation dtype, from logit `at` on. The logits are read backwards for it, because what
// was read last is still in the cache, and what is written lies over logits that have been read.
template <typename T, bool kGradient, int W>
__global__ void __launch_bounds__(row_threads(kGradient))
    cross_entropy_kernel(float* logits, const int32_t* labels, const float* scale, float* row_loss, int64_t vocabulary,
                         int64_t at) {
  begin();
  constexpr int kRowThreads = row_threads(kGradient);
  __shared__ float shared_max[32], shared_sum[32];
  float* row = logits + int64_t{blockIdx.x} * vocabulary;
  const int label = labels[blockIdx.x];
  float largest = -INFINITY, total = 0;
  // Neighbouring threads take neighbouring logits; each keeps a running maximum and sum.
  for (int64_t c = int64_t{threadIdx.x} * W; c < vocabulary; c += kRowThreads * W) {
    const Pack<W> x = load<W>(row + c);
    float top = x.v[0];
#pragma unroll
    for (int j = 1; j < W; ++j) top = fmaxf(top, x.v[j]);
    if (top > largest) {
      total *= exp2f((largest - top) * kLog2e);
      largest = top;
    }
    if (largest == -INFINITY) continue;
#pragma unroll
    for (int j = 0; j < W; ++j) total += exp2f((x.v[j] - largest) * kLog2e);
  }
  const float warp_largest = warp_max(largest);
  total = warp_sum(total == 0 ? 0.0f : total * exp2f((largest - warp_largest) * kLog2e));
  if (threadIdx.x % 32 == 0) shared_max[threadIdx.x / 32] = warp_largest, shared_sum[threadIdx.x / 32] = total;
  __syncthreads();
  largest = shared_max[0];
  for (int w = 1; w < kRowThreads / 32; ++w) largest = fmaxf(largest, shared_max[w]);
  total = 0;
  for (int w = 0; w < kRowThreads / 32; ++w)
    if (shared_sum[w] != 0) total += shared_sum[w] * expf(shared_max[w] - largest);
  const float lse = largest + logf(total);
  if (threadIdx.x == 0) row_loss[blockIdx.x] = label >= 0 ? lse - row[label] : 0.0f;
  if constexpr (kGradient) {
    const float factor = label >= 0 ? *scale : 0.0f;
    T* out = reinterpret_cast<T*>(row + at);
    constexpr int64_t kTile = kRowThreads * W;
    for (int64_t first = (vocabulary - 1) / kTile * kTile; first >= 0; first -= kTile) {
      const int64_t c = first + threadIdx.x * W;
      Pack<W> x{};
      if (c < vocabulary) x = load<W>(row + c);
      __syncthreads();  // everything up to here is read (the label's logit too) before anything over it is written
      if (c >= vocabulary) continue;
#pragma unroll
      for (int j = 0; j < W; ++j)
        x.v[j] = label >= 0 ? (exp2f((x.v[j] - lse) * kLog2e) - (c + j == label ? 1.0f : 0.0f)) * factor : 0.0f;
      store<W>(out + c, x);
    }
  }
}

// loss (+)= scale · Σ rows, in order, in double. One block.
__global__ void sum_rows_kernel(const float* rows, int64_t count, const float* scale, bool accumulate, float* loss) {
  begin();
  __shared__ double shared[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += rows[i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) sum += shared[i];
  *loss = static_cast<float>((accumulate ? double{*loss} : 0.0) + sum * *scale);
}

template <typename T>
__global__ void narrow_kernel(const float* x, T* y, int64_t elements) {
  begin();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements; i += int64_t{gridDim.x} * kThreads)
    y[i] = from_f32<T>(x[i]);
}

// partial[block] = Σ |x − target| over the block's elements; dx = scale · sign(x − target).
template <typename T>
__global__ void l1_kernel(const T* x, const float* target, const float* scale, T* dx, float* partial,
                          int64_t elements) {
  begin();
  __shared__ float shared[32];
  const float factor = *scale;
  float sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements; i += int64_t{gridDim.x} * kThreads) {
    const float difference = to_f32(x[i]) - target[i];
    sum += fabsf(difference);
    // A NaN difference keeps its NaN.
    if (dx) dx[i] = from_f32<T>(difference > 0 ? factor : difference < 0 ? -factor : difference * factor);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace

void CudaBackend::linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& scale,
                                       bool accumulate, const Tensor& loss, const Tensor& dx, const Tensor& dweight,
                                       const Tensor& scratch) {
  const DType act = x.dtype;
  const int64_t rows = x.rows(), width = x.cols(), vocabulary = weight.rows();
  const bool bf16_act = act == DType::bf16;
  const int64_t act_bytes = element_bytes(act);
  // A weight that is not what products take is converted once, before the logits in `scratch`, where that leaves room for
  // them; else a piece at a time, over and over, and dx adds up in fp32.
  const int64_t copy_rows = in_place(weight, act) ? 0 : (width * act_bytes + 3) / 4;
  const bool copied = copy_rows > 0 && scratch.rows() - copy_rows >= std::min<int64_t>(rows, kFewestRows);
  const bool whole = in_place(weight, act) || copied;
  const int64_t piece = whole ? vocabulary : output_piece(weight, act);
  // The workspace's partials hold the losses of all rows, then dx of one chunk in fp32.
  const int64_t dx_rows = whole ? rows : (Workspace::kPartialBytes / 4 - rows) / width;
  const int64_t chunk = std::min({rows, scratch.rows() - (copied ? copy_rows : 0), dx_rows});
  if (chunk < 1) throw Error("Q4510", "linear_cross_entropy: scratch holds less than one row of logits");
  float *row_loss = partials(), *dx_sum = partials() + rows;
  float* logits = scratch.f32() + (copied ? copy_rows * vocabulary : 0);
  Operand copy{};
  if (copied) copy = operand(weight, act, 0, vocabulary, 0, width, scratch.data);
  const auto rows_of_weight = [&](int64_t first, int64_t count) {
    return copied ? copy : operand(weight, act, first, count, 0, width, weight_buffer());
  };
  // Gradients stand where the fp32 logits stood, row by row.
  const int64_t at = gradient_at(vocabulary, act);
  const int64_t ld_gradient = bf16_act ? vocabulary * 2 : vocabulary;
  const Element element = bf16_act ? Element::bf16 : Element::f32;

  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t count = std::min(chunk, rows - first);
    const char* x_chunk = x.as<char>() + first * width * act_bytes;
    for (int64_t v = 0; v < vocabulary; v += piece) {
      const int64_t outputs = std::min(piece, vocabulary - v);
      const Operand w = rows_of_weight(v, outputs);
      Product p;
      p.transpose_a = true;
      p.m = outputs, p.n = count, p.k = width;
      p.inputs = element, p.output = Element::f32;
      p.a = w.data, p.lda = w.ld, p.alpha = w.alpha;
      p.b = x_chunk, p.ldb = width;
      p.d = logits + v, p.ldd = vocabulary;
      lt_->run(p, stream());
    }
    by_activation(act, [&](auto tag) {
      using T = decltype(tag);
      by_width(vocabulary % 8 == 0, [&](auto w) {
        const bool gradient = dx || dweight;
        auto* kernel = gradient ? cross_entropy_kernel<T, true, w> : cross_entropy_kernel<T, false, w>;
        launch({static_cast<unsigned>(count), row_threads(gradient), stream(), 0, overlap()}, kernel, logits,
               labels.i32() + first, scale.f32(), row_loss + first, vocabulary, at);
      });
    });
    if (dx) {
      const bool direct = whole;  // one product, straight into dx
      for (int64_t v = 0; v < vocabulary; v += piece) {
        const int64_t outputs = std::min(piece, vocabulary - v);
        const Operand w = rows_of_weight(v, outputs);
        Product p;
        p.m = width, p.n = count, p.k = outputs;
        p.inputs = element, p.output = direct ? element : Element::f32;
        p.a = w.data, p.lda = w.ld, p.alpha = w.alpha;
        p.b = reinterpret_cast<char*>(logits + at) + v * act_bytes, p.ldb = ld_gradient;
        p.d = direct ? static_cast<void*>(dx.as<char>() + first * width * act_bytes) : dx_sum, p.ldd = width;
        p.accumulate = v > 0;
        lt_->run(p, stream());
      }
      if (!direct)
        by_activation(act, [&](auto tag) {
          using T = decltype(tag);
          launch({std::min(blocks_for(count * width, kThreads * 4), 65535u), kThreads, stream(), 0, overlap()},
                 narrow_kernel<T>, dx_sum, dx.as<T>() + first * width, count * width);
        });
    }
    if (dweight) {
      Product p;
      p.transpose_b = true;
      p.m = width, p.n = vocabulary, p.k = count;
      p.inputs = element, p.output = dweight.dtype == DType::bf16 ? Element::bf16 : Element::f32;
      p.a = x_chunk, p.lda = width;
      p.b = logits + at, p.ldb = ld_gradient;
      p.d = dweight.data, p.ldd = width;
      p.accumulate = accumulate || first > 0;
      lt_->run(p, stream());
    }
  }
  launch({1, kThreads, stream(), 0, overlap()}, sum_rows_kernel, row_loss, rows, scale.f32(), accumulate, loss.f32());
}

void CudaBackend::l1_loss(const Tensor& x, const Tensor& target, const Tensor& scale, bool accumulate,
                          const Tensor& loss, const Tensor& dx) {
  const int64_t elements = x.elements();
  const unsigned blocks = std::min(blocks_for(elements, kThreads * 4), 1024u);
  by_activation(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch({blocks, kThreads, stream(), 0, overlap()}, l1_kernel<T>, x.as<T>(), target.f32(), scale.f32(), dx.as<T>(),
           partials(), elements);
  });
  launch({1, kThreads, stream(), 0, overlap()}, sum_rows_kernel, partials(), int64_t{blocks}, scale.f32(), accumulate,
         loss.f32());
}

}  // namespace q4::gpu
