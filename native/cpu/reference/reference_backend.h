// The plain scalar fp32 backend. One loop per formula, one thread, no blocking: it defines what is right, and every
// other implementation is measured against it.
#pragma once
#include "cpu/cpu_backend.h"

namespace q4 {

class ReferenceBackend : public CpuBackend {
 public:
  explicit ReferenceBackend(int threads = 1, std::string instructions = "reference")
      : CpuBackend(threads, std::move(instructions)) {}

  void embedding(const Tensor& table, const Tensor& ids, const Tensor& y) override;
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, const Tensor& rstd) override;
  void add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight, float eps, const Tensor& sum,
                    const Tensor& y, const Tensor& rstd) override;
  void head_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& positions, int64_t head_dim, float eps,
                      double theta, const Tensor& y, const Tensor& rstd) override;
  void linear(const Tensor& x, const Tensor& weight, const Tensor& y) override;
  void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& attend_from, const Tensor& past,
                 const AttentionShape& shape, const Tensor& out, const Tensor& lse, const Tensor& scratch) override;
  void kv_append(const Tensor& k, const Tensor& v, const Tensor& past, int64_t batch, const Tensor& k_cache,
                 const Tensor& v_cache) override;
  void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) override;
  void add(const Tensor& a, const Tensor& b, const Tensor& y) override;
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y) override;

  void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& scale,
                            bool accumulate, const Tensor& loss, const Tensor& dx, const Tensor& dweight,
                            const Tensor& scratch) override;
  void l1_loss(const Tensor& x, const Tensor& target, const Tensor& scale, bool accumulate, const Tensor& loss,
               const Tensor& dx) override;

  void embedding_backward(const Tensor& dy, const Tensor& ids, bool accumulate, const Tensor& dtable) override;
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                         const Tensor& dresidual, bool accumulate, const Tensor& dx, const Tensor& dweight,
                         const Tensor& scratch) override;
  void head_norm_rope_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                               const Tensor& positions, int64_t head_dim, double theta, bool accumulate,
                               const Tensor& dx, const Tensor& dweight, const Tensor& scratch) override;
  void linear_dgrad(const Tensor& dy, const Tensor& weight, bool accumulate, const Tensor& dx) override;
  void linear_wgrad(const Tensor& dy, const Tensor& x, bool accumulate, const Tensor& dweight) override;
  void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                          const Tensor& lse, const Tensor& attend_from, const AttentionShape& shape, const Tensor& dq,
                          const Tensor& dk, const Tensor& dv, const Tensor& scratch) override;
  void swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                       const Tensor& dup) override;

  void sum_squares(const Tensor& x, int64_t slot, const Tensor& partials) override;
  void grad_stats(const Tensor& partials, const Tensor& loss, float max_norm, const Tensor& stats) override;
  void adamw(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
             int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v) override;
  void adamw_amax(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                  int64_t stream, int64_t slot, const Tensor& master, const Tensor& m, const Tensor& v,
                  const Tensor& amax) override;
  void amax(const Tensor& x, int64_t slot, const Tensor& out) override;

  void quantize_nvfp4(const Tensor& master, const Tensor& amax, Slots slots, int64_t changed_slot, const Tensor& weight,
                      const Tensor& changed) override;
  void dequantize_nvfp4(const Tensor& weight, const Tensor& y) override;
  void count_changed(const Tensor& a, const Tensor& b, int64_t slot, const Tensor& out) override;

  void fill(float value, const Tensor& y) override;
  void cast(const Tensor& x, const Tensor& y) override;
  void random_normal(uint64_t seed, int64_t stream, float std, const Tensor& y) override;

  void sample(const Tensor& logits, const Tensor& sampling, const Tensor& rng, const Tensor& past, bool greedy,
              const Tensor& seen, const Tensor& ids, const Tensor& scratch) override;
  void increment(int64_t by, int64_t max, const Tensor& x) override;
};

}  // namespace q4
