// Blocked matrix products over threads: C[M, N] (+)= alpha · A[M, K] · B[K, N].
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace q4 {

// fp32 left operand: A[i, p] = data[i·ld + p], or data[p·ld + i] when transposed.
struct LeftOperand {
  const float* data;
  int64_t ld;
  bool transposed;
};
// Right operand: B[p, j] = w[p, j], or w[j, p] when transposed (x·Wᵀ).
struct RightOperand {
  MatrixView matrix;
  bool transposed;
};

class Gemm {
 public:
  Gemm(const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), right_(static_cast<size_t>(pool.threads())) {}
  // c row-major with ldc floats a row. Every output is one chain over K in order, so neither the number of threads nor
  // the blocking shows in the bits.
  void run(int64_t m, int64_t n, int64_t k, const LeftOperand& a, const RightOperand& b, float alpha, bool add,
           float* c, int64_t ldc);

 private:
  const Kernels& kernels_;
  ThreadPool& pool_;
  Workspace left_;
  std::vector<Workspace> right_;  // a thread's packed piece of B
};

}  // namespace q4
