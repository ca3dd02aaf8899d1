// Measures the CPU's roofs (fused multiply-add rate, memory reads) and the products of the CPU backend beside them, in
// one run, and prints one JSON object. Rounds alternate between what is compared, and the best of each counts: on a
// machine that does other things too, the best is what the code can do.
//
//   q4bench_cpu [threads] [rounds]
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/backend.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using q4::DType;
using q4::Tensor;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void on_all(int threads, const std::function<void(int)>& body) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
  body(0);
  for (std::thread& thread : others) thread.join();
}

volatile float float_sink;
volatile uint64_t word_sink;

// ---- roofs: GFLOP/s of independent fused multiply-adds on one thread; bytes of a sum over memory -------------------
constexpr int64_t kPeakRounds = 2000000;

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void peak_avx2() {
  __m256 sum[12];
  for (int i = 0; i < 12; ++i) sum[i] = _mm256_set1_ps(0.1f * static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int64_t round = 0; round < kPeakRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = _mm256_fmadd_ps(sum[i], a, b);
  }
  for (int i = 0; i < 12; ++i) float_sink = sum[i][0];
}
__attribute__((target("avx512f"))) void peak_avx512() {
  __m512 sum[12];
  for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_ps(0.1f * static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int64_t round = 0; round < kPeakRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = _mm512_fmadd_ps(sum[i], a, b);
  }
  for (int i = 0; i < 12; ++i) float_sink = sum[i][0];
}
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
uint64_t
sum_words(const uint64_t* words, int64_t count) {
  uint64_t sum[32] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32)
    for (int j = 0; j < 32; ++j) sum[j] ^= words[i + j];
  uint64_t total = 0;
  for (const uint64_t word : sum) total ^= word;
  return total;
}

// The best GFLOP/s that all threads reach together; 0 where it is not known how to measure it.
double peak_gflops(int threads) {
  double best = 0;
#if defined(__x86_64__)
  const auto measure = [&](void (*loop)(), int lanes) {
    const double start = now();
    on_all(threads, [&](int) { loop(); });
    best = std::max(best, static_cast<double>(threads) * kPeakRounds * 12 * lanes * 2 / (now() - start) / 1e9);
  };
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) measure(peak_avx2, 8);
  if (__builtin_cpu_supports("avx512f")) measure(peak_avx512, 16);
#else
  (void)threads;
#endif
  return best;
}

// ---- operands -------------------------------------------------------------------------------------------------------
class Operands {
 public:
  explicit Operands(q4::Backend& backend) : backend_(backend) {}
  ~Operands() {
    for (void* memory : held_) backend_.release(memory);
  }
  Tensor make(DType dtype, int64_t rows, int64_t cols) {
    Tensor tensor;
    tensor.dtype = dtype;
    tensor.rank = 2;
    tensor.dims = {rows, cols, 1, 1};
    held_.push_back(backend_.allocate(q4::tensor_bytes(tensor)));
    q4::bind_tensor(tensor, held_.back());
    uint64_t state = 88172645463325252ull + held_.size();
    const auto next = [&] {  // xorshift64
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      return state;
    };
    if (dtype == DType::nvfp4) {
      for (int64_t block = 0; block < rows * cols / q4::kBlock; ++block) {
        const uint64_t codes = next();
        std::memcpy(tensor.as<char>() + block * 8, &codes, 8);
        tensor.scale[block] = static_cast<uint8_t>(0x30 + codes % 16);
      }
      *tensor.global_scale = 0.01f;
    } else {
      for (int64_t i = 0; i < tensor.elements(); ++i)
        tensor.f32()[i] = static_cast<float>(next() >> 40) * 0x1p-24f - 0.5f;
    }
    return tensor;
  }

 private:
  q4::Backend& backend_;
  std::vector<void*> held_;
};

struct Timed {
  const char* name;
  std::function<void()> body;
  double best = 1e30;
};
void run_rounds(std::vector<Timed>& timed, int rounds) {
  for (int round = 0; round <= rounds; ++round)  // round 0 warms up
    for (Timed& one : timed) {
      const double start = now();
      one.body();
      if (round > 0) one.best = std::min(one.best, now() - start);
    }
}

using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);

}  // namespace

int main(int count, char** arguments) {
  q4::BackendOptions options;
  options.threads = count > 1 ? std::atoi(arguments[1]) : 0;
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 10;
  const std::unique_ptr<q4::Backend> backend = q4::make_cpu_backend(options);
  const q4::DeviceInfo info = backend->info();
  Operands operands(*backend);

  // 1024³ products, with the peak and OpenBLAS between them.
  constexpr int64_t n = 1024;
  const Tensor x = operands.make(DType::f32, n, n), w = operands.make(DType::f32, n, n);
  const Tensor q = operands.make(DType::nvfp4, n, n), y = operands.make(DType::f32, n, n);
  double peak = 0;
  std::vector<Timed> products = {
      {"peak", [&] { peak = std::max(peak, peak_gflops(info.threads)); }},
      {"fp32", [&] { backend->linear(x, w, y); }},
      {"nvfp4", [&] { backend->linear(x, q, y); }},
      {"fp32_dgrad", [&] { backend->linear_dgrad(x, w, false, y); }},
      {"nvfp4_dgrad", [&] { backend->linear_dgrad(x, q, false, y); }},
      {"wgrad", [&] { backend->linear_wgrad(x, x, false, y); }},
  };
  void* library = nullptr;
  for (const char* name : {"libopenblas.so.0", "libopenblas.so"})
    if (!library) library = dlopen(name, RTLD_NOW);
  if (library) {
    const auto gemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
    const auto set_threads = reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
    if (set_threads) set_threads(info.threads);
    constexpr int size = static_cast<int>(n);
    // Row-major (101), A as it is (111), B transposed (112): the product that `linear` makes.
    if (gemm)
      products.push_back({"openblas", [=] {
                            gemm(101, 111, 112, size, size, size, 1, x.f32(), size, w.f32(), size, 0, y.f32(), size);
                          }});
  }
  run_rounds(products, rounds);
  std::printf("{\"device\": \"%s\", \"instructions\": \"%s\", \"threads\": %d, \"peak_gflops\": %.1f, \"gflops\": {",
              info.name.c_str(), info.instructions.c_str(), info.threads, peak);
  for (size_t i = 1; i < products.size(); ++i)
    std::printf("%s\"%s\": %.1f", i > 1 ? ", " : "", products[i].name, 2.0 * n * n * n / products[i].best / 1e9);

  // The projections of a decode step: 16 layers of a hidden size of 1024 and a head, some 300 M weights, one row.
  struct Shape {
    int64_t outputs, inputs;
  };
  std::vector<Shape> shapes;
  for (int layer = 0; layer < 16; ++layer)
    for (const Shape shape :
         {Shape{2048, 1024}, {1024, 1024}, {1024, 1024}, {1024, 2048}, {3072, 1024}, {3072, 1024}, {1024, 3072}})
      shapes.push_back(shape);
  shapes.push_back({50176, 1024});
  std::vector<Tensor> weights;
  double bytes = 0, parameters = 0;
  for (const Shape& shape : shapes) {
    weights.push_back(operands.make(DType::nvfp4, shape.outputs, shape.inputs));
    parameters += static_cast<double>(shape.outputs * shape.inputs);
  }
  bytes = parameters * (0.5 + 1.0 / q4::kBlock);
  const Tensor in = operands.make(DType::f32, 8, 3072), out = operands.make(DType::f32, 8, 50176);
  const auto step = [&](int64_t rows) {
    for (const Tensor& weight : weights) {
      Tensor from = in, to = out;
      from.dims = {rows, weight.cols(), 1, 1};
      to.dims = {rows, weight.rows(), 1, 1};
      backend->linear(from, weight, to);
    }
  };
  const Tensor memory = operands.make(DType::f32, 1, int64_t{64} << 20);
  const int64_t share = memory.elements() / 2 / info.threads / 32 * 32;
  std::vector<Timed> reads = {
      {"read",
       [&] { on_all(info.threads, [&](int i) { word_sink = sum_words(memory.as<uint64_t>() + i * share, share); }); }},
      {"rows_1", [&] { step(1); }},
      {"rows_2", [&] { step(2); }},
      {"rows_4", [&] { step(4); }},
      {"rows_8", [&] { step(8); }},
  };
  run_rounds(reads, rounds);
  std::printf("}, \"read_gbs\": %.1f, \"matvec_parameters\": %.0f, \"matvec_gbs\": {",
              static_cast<double>(share * info.threads * 8) / reads[0].best / 1e9, parameters);
  for (size_t i = 1; i < reads.size(); ++i)
    std::printf("%s\"%s\": %.1f", i > 1 ? ", " : "", reads[i].name, bytes / reads[i].best / 1e9);
  std::printf("}}\n");
}
