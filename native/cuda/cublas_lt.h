// cuBLASLt through dlopen, with our own prototypes: builds need no cuBLAS headers, and a machine without the library
// gets Error(Q4403) instead of an addon that does not load.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "cuda/check.h"

namespace q4::gpu {

// Values of cublasLt.h (CUDA 12 and 13); test/gpu/cublas_lt_values.cpp checks them where the header is installed.
namespace lt {
constexpr int kR32F = 0, kR16BF = 14;                                  // cudaDataType_t
constexpr int kCompute32F = 68;                                        // cublasComputeType_t: fp32, without TF32
constexpr int kOpN = 0, kOpT = 1;                                      // cublasOperation_t
constexpr int kDescPointerMode = 2, kDescTransA = 3, kDescTransB = 4;  // cublasLtMatmulDescAttributes_t
constexpr int kPointerModeDevice = 1;                                  // cublasLtPointerMode_t
constexpr int kPreferenceWorkspace = 1, kPreferenceReduction = 3, kPreferenceAlignA = 5, kPreferenceAlignB = 6,
              kPreferenceAlignC = 7, kPreferenceAlignD = 8;  // cublasLtMatmulPreferenceAttributes_t
constexpr uint32_t kReductionComputeType = 2;                // cublasLtReductionScheme_t: fp32 partials, fixed order

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};
}  // namespace lt

enum class Element : int { f32 = lt::kR32F, bf16 = lt::kR16BF };

// Column-major, as cuBLAS has it: D[m,n] = alpha · op(A)[m,k] · op(B)[k,n] + beta · D, in fp32.
struct Product {
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  Element inputs = Element::bf16, output = Element::bf16;
  const void *a = nullptr, *b = nullptr;
  void* d = nullptr;
  int64_t lda = 0, ldb = 0, ldd = 0;
  // In device memory, so that a graph replays with the scale of the day; null is 1.
  const float* alpha = nullptr;
  bool accumulate = false;  // beta is 1 instead of 0
};

class CublasLt {
 public:
  // `workspace` and `constants` (device floats {0, 1}) outlive this. Throws Q4403 when the library is missing.
  CublasLt(void* workspace, int64_t workspace_bytes, const float* constants);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  void run(const Product& product, cudaStream_t stream);
  static bool available();

 private:
  struct Library;
  struct Plan;
  const Plan& plan(const Product& product);
  using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint32_t>;

  static const Library& library();
  void* handle_ = nullptr;
  void* workspace_;
  int64_t workspace_bytes_;
  const float* constants_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace q4::gpu
