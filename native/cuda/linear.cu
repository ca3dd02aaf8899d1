// Projections and their gradients. A weight that is not what cuBLASLt takes is converted into the workspace, a piece at a
// time where it does not fit: NVFP4 exactly, without its global scale, which the product's alpha brings in.
#include <algorithm>

#include "core/nvfp4.h"
#include "cuda/cuda_backend.h"
#include "cuda/nvfp4_bf16.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 256;

// Half-blocks per thread, all loaded before the first is converted.
constexpr int kHalves = 4;

// Rows [0, rows) × columns [first_col, first_col + cols) of a matrix of `width` columns → y [rows, cols] bf16,
// code · block scale. Eight codes a step; cols and first_col are multiples of 16. kWhole: the rows are whole, so that no
// step needs to know its row.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads)
    unpack_bf16_kernel(const uint8_t* codes, const uint8_t* scales, bf16* y, int64_t rows, int64_t width,
                       int64_t first_col, int64_t cols) {
  begin();
  const int64_t per_row = cols / 8, total = rows * per_row;
  const int64_t first = int64_t{blockIdx.x} * kThreads * kHalves + threadIdx.x;
  uint32_t packed[kHalves], scale[kHalves];
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= total) continue;
    const int64_t element = kWhole ? at * 8 : at / per_row * width + first_col + at % per_row * 8;
    packed[i] = *reinterpret_cast<const uint32_t*>(codes + element / 2);
    scale[i] = scales[element / kBlock];
  }
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= total) continue;
    const uint32_t factor = scale_pair(scale[i] | scale[i] << 16);
    uint32_t pair[4];
    code_pairs(packed[i], pair);
#pragma unroll
    for (int p = 0; p < 4; ++p) pair[p] = mul_bf16x2(mul_bf16x2(pair[p], factor), bf16_pair_power(8));
    reinterpret_cast<uint4*>(y)[at] =
        make_uint4(__byte_perm(pair[0], pair[1], 0x5410), __byte_perm(pair[2], pair[3], 0x5410),
                   __byte_perm(pair[0], pair[1], 0x7632), __byte_perm(pair[2], pair[3], 0x7632));
  }
}

// The same piece in fp32, global scale included: the value itself.
__global__ void unpack_f32_kernel(const uint8_t* codes, const uint8_t* scales, const float* global, float* y,
                                  int64_t rows, int64_t width, int64_t first_col, int64_t cols) {
  begin();
  const int64_t per_row = cols / 8, at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= rows * per_row) return;
  const int64_t row = at / per_row, column = first_col + at % per_row * 8;
  const uint32_t packed = *reinterpret_cast<const uint32_t*>(codes + (row * width + column) / 2);
  const uint8_t scale = scales[(row * width + column) / kBlock];
  Pack<8> out;
#pragma unroll
  for (int j = 0; j < 8; ++j) out.v[j] = nvfp4_value(packed >> (4 * j) & 15u, scale, *global);
  store<8>(y + at * 8, out);
}

// A piece of a plain weight, in the activations' dtype; W elements a step.
template <typename In, typename Out, int W>
__global__ void __launch_bounds__(kThreads)
    convert_piece_kernel(const In* x, Out* y, int64_t rows, int64_t width, int64_t first_col, int64_t cols) {
  begin();
  const int64_t per_row = cols / W, pieces = rows * per_row;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < pieces; at += int64_t{gridDim.x} * kThreads)
    store<W>(y + at * W, load<W>(x + at / per_row * width + first_col + at % per_row * W));
}

Element element_of(DType dtype) { return dtype == DType::bf16 ? Element::bf16 : Element::f32; }

}  // namespace

bool CudaBackend::in_place(const Tensor& weight, DType act) { return weight.dtype == act; }

int64_t CudaBackend::operand_capacity(DType act) { return Workspace::kWeightBytes / element_bytes(act); }

int64_t CudaBackend::output_piece(const Tensor& weight, DType act) {
  const int64_t fitting = operand_capacity(act) / weight.cols();
  if (in_place(weight, act) || weight.rows() <= fitting) return weight.rows();
  // Whole tiles, so that every piece of the result starts at an address that fast kernels take.
  return std::max<int64_t>(1, fitting >= 256 ? fitting / 256 * 256 : fitting);
}

CudaBackend::Operand CudaBackend::operand(const Tensor& weight, DType act, int64_t first_row, int64_t rows,
                                          int64_t first_col, int64_t cols, void* buffer) {
  const int64_t width = weight.cols(), start = first_row * width;
  if (in_place(weight, act)) return {weight.as<char>() + (start + first_col) * element_bytes(act), width, nullptr};
  if (weight.dtype == DType::nvfp4) {
    const uint8_t *codes = weight.as<uint8_t>() + start / 2, *scales = weight.scale + start / kBlock;
    if (act == DType::bf16) {
      auto* kernel = cols == width ? unpack_bf16_kernel<true> : unpack_bf16_kernel<false>;
      launch({blocks_for(rows * cols / 8, kThreads * kHalves), kThreads, stream(), 0, overlap()}, kernel, codes, scales,
             static_cast<bf16*>(buffer), rows, width, first_col, cols);
      return {buffer, cols, weight.global_scale};
    }
    launch({blocks_for(rows * cols / 8, kThreads), kThreads, stream(), 0, overlap()}, unpack_f32_kernel, codes, scales,
           weight.global_scale, static_cast<float*>(buffer), rows, width, first_col, cols);
    return {buffer, cols, nullptr};
  }
  by_float(weight.dtype, [&](auto in) {
    by_activation(act, [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      by_width(wide(width, weight) && cols % 8 == 0 && first_col % 8 == 0, [&](auto w) {
        launch({std::min(blocks_for(rows * cols, int64_t{kThreads} * w * 4), 65535u), kThreads, stream(), 0, overlap()},
               convert_piece_kernel<In, Out, w>, weight.as<In>() + start, static_cast<Out*>(buffer), rows, width,
               first_col, cols);
      });
    });
  });
  return {buffer, cols, nullptr};
}

void CudaBackend::linear_product(const void* x, int64_t n, int64_t ldx, DType act, const Tensor& weight, int64_t first,
                                 int64_t count, void* y, DType y_dtype, int64_t ldy) {
  const Operand w = operand(weight, act, first, count, 0, weight.cols(), weight_buffer());
  Product p;
  p.transpose_a = true;
  p.m = count, p.n = n, p.k = weight.cols();
  p.inputs = element_of(act), p.output = element_of(y_dtype);
  p.a = w.data, p.lda = w.ld, p.alpha = w.alpha;
  p.b = x, p.ldb = ldx;
  p.d = static_cast<char*>(y) + first * element_bytes(y_dtype), p.ldd = ldy;
  lt_->run(p, stream());
}

void CudaBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& y) {
  if (defer({Deferred::Kind::linear, {x, weight, y}})) return;
  const int64_t n = x.rows(), width = weight.cols(), outputs = weight.rows();
  if (linear_streamed(x, weight, y) || linear_few_rows(x, weight, y)) return;
  const int64_t piece = output_piece(weight, x.dtype);
  for (int64_t first = 0; first < outputs; first += piece)
    linear_product(x.data, n, width, x.dtype, weight, first, std::min(piece, outputs - first), y.data, y.dtype,
                   outputs);
}

void CudaBackend::linear_dgrad(const Tensor& dy, const Tensor& weight, bool accumulate, const Tensor& dx) {
  const int64_t n = dy.rows(), width = weight.cols(), outputs = weight.rows();
  // Cut along the inputs: each piece of dx is one whole product, never a sum of rounded ones.
  int64_t piece = width;
  if (!in_place(weight, dy.dtype) && outputs * width > operand_capacity(dy.dtype))
    piece = std::max<int64_t>(kBlock, operand_capacity(dy.dtype) / outputs / kBlock * kBlock);
  for (int64_t first = 0; first < width; first += piece) {
    const int64_t cols = std::min(piece, width - first);
    const Operand w = operand(weight, dy.dtype, 0, outputs, first, cols, weight_buffer());
    Product p;
    p.m = cols, p.n = n, p.k = outputs;
    p.inputs = element_of(dy.dtype), p.output = element_of(dx.dtype);
    p.a = w.data, p.lda = w.ld, p.alpha = w.alpha;
    p.b = dy.data, p.ldb = outputs;
    p.d = dx.as<char>() + first * element_bytes(dx.dtype), p.ldd = width;
    p.accumulate = accumulate;
    lt_->run(p, stream());
  }
}

void CudaBackend::linear_wgrad(const Tensor& dy, const Tensor& x, bool accumulate, const Tensor& dweight) {
  Product p;
  p.transpose_b = true;
  p.m = x.cols(), p.n = dy.cols(), p.k = x.rows();
  p.inputs = element_of(dy.dtype), p.output = element_of(dweight.dtype);
  p.a = x.data, p.lda = x.cols();
  p.b = dy.data, p.ldb = dy.cols();
  p.d = dweight.data, p.ldd = dweight.cols();
  p.accumulate = accumulate;
  lt_->run(p, stream());
}

}  // namespace q4::gpu
