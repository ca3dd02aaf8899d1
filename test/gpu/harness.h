// Runs an op on the CPU's scalar fp32 reference and on the GPU, on the same values, and compares.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/error.h"
#include "core/half.h"

namespace q4::test {

// One logical tensor on both sides: f32 (or the same integers or NVFP4 bytes) on the CPU, `gpu.dtype` on the GPU. Values
// are rounded to the GPU's dtype before either side sees them.
struct Both {
  Tensor cpu, gpu;
};

class Harness {
 public:
  Harness() : cpu(make_cpu_backend({1, true, 0})), gpu(make_cuda_backend({})) {}
  ~Harness() {
    for (void* p : gpu_memory_) gpu->release(p);
    for (void* p : cpu_memory_) cpu->release(p);
  }

  std::unique_ptr<Backend> cpu, gpu;
  int passed = 0, failed = 0;

  void seed(uint32_t value) { random_.seed(value); }
  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_); }
  float normal() { return std::normal_distribution<float>()(random_); }
  int below(int limit) { return static_cast<int>(random_() % static_cast<unsigned>(limit)); }

  // Frees what tests made so far.
  void clear() {
    for (void* p : gpu_memory_) gpu->release(p);
    for (void* p : cpu_memory_) cpu->release(p);
    gpu_memory_.clear();
    cpu_memory_.clear();
  }

  Tensor on(Backend& backend, DType dtype, std::vector<int64_t> shape) {
    Tensor tensor;
    tensor.dtype = dtype;
    tensor.rank = static_cast<int>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) tensor.dims[i] = shape[i];
    void* memory = backend.allocate(tensor_bytes(tensor));
    (&backend == gpu.get() ? gpu_memory_ : cpu_memory_).push_back(memory);
    bind_tensor(tensor, memory);
    return tensor;
  }
  Both make(DType dtype, std::vector<int64_t> shape, const std::function<float(int64_t)>& value) {
    const bool plain = dtype == DType::bf16 || dtype == DType::f16;
    Both both{on(*cpu, plain ? DType::f32 : dtype, shape), on(*gpu, dtype, shape)};
    const int64_t n = both.cpu.elements();
    for (int64_t i = 0; i < n; ++i) {
      const float x = value(i);
      if (dtype == DType::i32)
        both.cpu.i32()[i] = static_cast<int32_t>(x);
      else if (dtype == DType::u8)
        both.cpu.as<uint8_t>()[i] = static_cast<uint8_t>(x);
      else
        both.cpu.f32()[i] = dtype == DType::bf16  ? bf16_to_f32(f32_to_bf16(x))
                            : dtype == DType::f16 ? f16_to_f32(f32_to_f16(x))
                                                  : x;
    }
    send(both);
    return both;
  }
  Both normals(DType dtype, std::vector<int64_t> shape, float scale = 1) {
    return make(dtype, std::move(shape), [&](int64_t) { return scale * normal(); });
  }
  Both integers(std::vector<int64_t> shape, const std::function<int(int64_t)>& value) {
    return make(DType::i32, std::move(shape), [&](int64_t i) { return static_cast<float>(value(i)); });
  }
  // Bytes of 0xff (NaN in every float dtype) on the GPU, zeros on the CPU: everything must be written.
  Both output(DType dtype, std::vector<int64_t> shape) {
    const bool plain = dtype == DType::bf16 || dtype == DType::f16;
    Both both{on(*cpu, plain ? DType::f32 : dtype, shape), on(*gpu, dtype, shape)};
    const std::vector<uint8_t> poison(static_cast<size_t>(tensor_bytes(both.gpu)), 0xff);
    gpu->upload(both.gpu.data, poison.data(), static_cast<int64_t>(poison.size()));
    return both;
  }
  // An NVFP4 matrix of normals, quantised by the reference.
  Both nvfp4(int64_t rows, int64_t cols, float scale = 0.05f) {
    Both both{on(*cpu, DType::nvfp4, {rows, cols}), on(*gpu, DType::nvfp4, {rows, cols})};
    const Tensor master = on(*cpu, DType::f32, {rows, cols}), largest = on(*cpu, DType::f32, {1}),
                 changed = on(*cpu, DType::i32, {1});
    for (int64_t i = 0; i < rows * cols; ++i) master.f32()[i] = scale * normal();
    cpu->amax(master, 0, largest);
    cpu->quantize_nvfp4(master, largest, {0, 1}, 0, both.cpu, changed);
    gpu->upload(both.gpu.data, both.cpu.data, tensor_bytes(both.cpu));
    return both;
  }
  // A weight of any dtype.
  Both weight(DType dtype, int64_t rows, int64_t cols) {
    return dtype == DType::nvfp4 ? nvfp4(rows, cols) : normals(dtype, {rows, cols}, 0.05f);
  }

  std::vector<float> read(const Tensor& tensor) {
    const int64_t n = tensor.elements();
    std::vector<uint8_t> raw(static_cast<size_t>(tensor_bytes(tensor)));
    gpu->download(raw.data(), tensor.data, static_cast<int64_t>(raw.size()));
    std::vector<float> out(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* at = raw.data() + i * element_bytes(tensor.dtype);
      uint16_t half = 0;
      int32_t whole = 0;
      if (element_bytes(tensor.dtype) == 2) std::memcpy(&half, at, 2);
      if (element_bytes(tensor.dtype) == 4) std::memcpy(&whole, at, 4);
      switch (tensor.dtype) {
        case DType::bf16:
          out[i] = bf16_to_f32(half);
          break;
        case DType::f16:
          out[i] = f16_to_f32(half);
          break;
        case DType::i32:
          out[i] = static_cast<float>(whole);
          break;
        case DType::f32:
          out[i] = bits_f32(static_cast<uint32_t>(whole));
          break;
        default:
          out[i] = *at;
      }
    }
    return out;
  }
  std::vector<uint8_t> bytes(const Tensor& tensor) {
    std::vector<uint8_t> raw(static_cast<size_t>(tensor.elements() * element_bytes(tensor.dtype)));
    gpu->download(raw.data(), tensor.data, static_cast<int64_t>(raw.size()));
    return raw;
  }

  // Another tensor with the bytes of a plain one on the GPU, on the backend that is asked for.
  Tensor copy(const Tensor& tensor, Backend& to) {
    const Tensor out = on(to, tensor.dtype, {tensor.dims.begin(), tensor.dims.begin() + tensor.rank});
    const std::vector<uint8_t> raw = bytes(tensor);
    to.upload(out.data, raw.data(), static_cast<int64_t>(raw.size()));
    return out;
  }

  // ‖gpu − cpu‖ / ‖cpu‖ ≤ bound; NaN fails.
  void close(const std::string& name, const Both& both, double bound) {
    const std::vector<float> got = read(both.gpu);
    double error = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double want = both.cpu.dtype == DType::i32 ? both.cpu.i32()[i] : both.cpu.f32()[i];
      error += (got[i] - want) * (got[i] - want);
      norm += want * want;
    }
    const double relative = std::sqrt(error / std::max(norm, 1e-60));
    verdict(name, relative <= bound, relative, bound);
  }
  void same(const std::string& name, const Tensor& cpu_tensor, const Tensor& gpu_tensor, int64_t byte_count) {
    std::vector<uint8_t> got(static_cast<size_t>(byte_count));
    gpu->download(got.data(), gpu_tensor.data, byte_count);
    int64_t differing = 0;
    for (int64_t i = 0; i < byte_count; ++i) differing += got[i] != cpu_tensor.as<uint8_t>()[i];
    verdict(name, differing == 0, static_cast<double>(differing), 0);
  }
  void verdict(const std::string& name, bool ok, double value, double bound) {
    (ok ? passed : failed) += 1;
    if (!ok || verbose) std::printf("%s %-64s %.3g (bound %.3g)\n", ok ? "ok  " : "FAIL", name.c_str(), value, bound);
    std::fflush(stdout);
  }
  bool verbose = false;
  bool small = false;  // leave out what only makes a kernel do more of the same

  void send(const Both& both) {
    const int64_t n = both.cpu.elements();
    if (both.gpu.dtype != DType::bf16 && both.gpu.dtype != DType::f16)
      return gpu->upload(both.gpu.data, both.cpu.data, n * element_bytes(both.gpu.dtype));
    std::vector<uint16_t> halves(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
      halves[i] = both.gpu.dtype == DType::bf16 ? f32_to_bf16(both.cpu.f32()[i]) : f32_to_f16(both.cpu.f32()[i]);
    gpu->upload(both.gpu.data, halves.data(), n * 2);
  }

 private:
  std::mt19937 random_{7};
  std::vector<void*> gpu_memory_, cpu_memory_;
};

inline const char* label(DType dtype) { return dtype_name(dtype); }
// Elementwise in fp32: 1e-5. In bf16 the result is rounded once or twice to 8 bits: 2^-8 bounds it, 5e-3 for products.
inline double elementwise_bound(DType dtype) { return dtype == DType::bf16 ? 4e-3 : 1e-5; }
inline double product_bound(DType dtype) { return dtype == DType::bf16 ? 5e-3 : 1e-5; }

void test_elementwise(Harness& h);
void test_norms(Harness& h);
void test_linear(Harness& h);
void test_losses(Harness& h);
void test_attention(Harness& h);
void test_optimizer(Harness& h);
void test_nvfp4(Harness& h);
void test_sampling(Harness& h);
void test_decode_layer(Harness& h);
void test_machinery(Harness& h);
void bench_roofs(Harness& h);
void bench_attention(Harness& h);
void bench_training(Harness& h);
void bench_decode(Harness& h);

}  // namespace q4::test
