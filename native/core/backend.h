// The backend contract. cpu/ and cuda/ implement it under the same basenames; programs, stages and YAML never change.
//
// Conventions
//   N rows of tokens = batch·T; C, H hidden width; D head_dim; K inputs and O outputs of a projection; V vocabulary.
//   act: the activation dtype of the program, f32 or bf16. All reductions, statistics and losses are fp32 or better.
//   A weight W is nvfp4, f32, bf16 or f16; the value used is the dequantised one (code · block scale · global scale).
//   "overwrites": every element of the output is written. "accumulates": added to what is there when the flag is set,
//   overwritten when it is not. Outputs never alias inputs unless the op says "in place".
//   An absent optional tensor converts to false.
//   Shapes and dtypes were checked by core/ops when the program was loaded; implementations may rely on them.
//   Deterministic: same inputs, same bytes, on the same device, whatever the number of threads.
// Formulas: doc/architecture.md and formats.md's wiring contract (Hugging Face modeling_qwen3 semantics).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace q4 {

struct DeviceInfo {
  std::string kind;          // "cpu" or "cuda"
  std::string name;          // as a person knows it: "AMD EPYC", "NVIDIA H200"
  std::string instructions;  // "reference", "avx2", "avx512", "sm_90a", ...
  int index = 0;             // which device of its kind
  int threads = 0;           // worker threads (cpu)
  int64_t total_bytes = 0, free_bytes = 0;
};

struct AttentionShape {
  int64_t batch = 1, heads = 1, kv_heads = 1, head_dim = 1;
};

// Where a slice of a partials vector lies: quantize_nvfp4 takes the largest of amax[begin, end).
struct Slots {
  int64_t begin = 0, end = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceInfo info() const = 0;

  // ---- memory ------------------------------------------------------------------------------------------------------
  // Throws Error(Q4401) naming what was asked and what is free. Contents are zero.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  // Blocking copies, ordered after all work enqueued before.
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  // True when the host may read and write device memory directly (cpu).
  virtual bool host_accessible() const = 0;
  // Two pinned staging buffers for streaming files to the device, reading one while the other copies. staging(slot)
  // waits until the slot's last upload_staged is done; that copies from `offset` of the buffer on. Never called when
  // host_accessible().
  virtual void* staging(int slot, int64_t bytes) = 0;
  virtual void upload_staged(void* device, int slot, int64_t offset, int64_t bytes) = 0;
  // Reading a small result (whole 4-byte words) while later work is already enqueued: start_download copies it, ordered
  // after all work enqueued before and before all that comes after; finish_download waits for the last copy of this slot
  // alone and gives its bytes, valid until the slot's next start. Slots 0 and 1. A device fault surfaces in
  // finish_download as Error(Q4701).
  virtual void start_download(int slot, const void* device, int64_t bytes) = 0;
  virtual const void* finish_download(int slot) = 0;
  // True when ops only enqueue their work: then the next run can be enqueued before the results of this one are read.
  virtual bool runs_ahead() const = 0;
  // Waits for all enqueued work; a device fault surfaces here as Error(Q4701).
  virtual void synchronize() = 0;

  // ---- steady state ------------------------------------------------------------------------------------------------
  // A program calls begin_run / end_run around its ops. A backend that can record and replay a sequence (CUDA graphs)
  // returns false from begin_run when it replays `program`, and the ops are then not called.
  virtual bool begin_run(uint64_t program, bool profiled) {
    (void)program, (void)profiled;
    return true;
  }
  virtual void end_run(uint64_t program) { (void)program; }
  virtual void forget(uint64_t program) noexcept { (void)program; }
  // For profiles: seconds since an arbitrary start, on the device's clock, after the work enqueued so far.
  virtual double now() = 0;

  // ---- forward -----------------------------------------------------------------------------------------------------
  // y[n,:] = table[ids[n],:].   table [V,H] f32|f16|bf16, ids i32 [N] in [0,V) → y act [N,H]; overwrites.
  virtual void embedding(const Tensor& table, const Tensor& ids, const Tensor& y) = 0;

  // rstd = rsqrt(mean(x²)+eps); y = act(x·rstd)·weight.  x act [N,C], weight f32 [C] → y act [N,C], rstd f32 [N].
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, const Tensor& rstd) = 0;

  // sum = x + branch (rounded to act), then rms_norm(sum).  All act [N,C] → sum, y act [N,C], rstd f32 [N]. `sum` may be
  // in place of x or branch.
  virtual void add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight, float eps, const Tensor& sum,
                            const Tensor& y, const Tensor& rstd) = 0;

  // rms_norm over each head's D, then RoPE (half-split; angle = position·theta^(-2i/D), fp32).
  // x act [N, heads·D], weight f32 [D], positions i32 [N] → y act [N, heads·D], rstd f32 [N·heads]; overwrites.
  virtual void head_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& positions, int64_t head_dim,
                              float eps, double theta, const Tensor& y, const Tensor& rstd) = 0;

  // y = x·Wᵀ.  x act [N,K], W [O,K] → y act or f32 [N,O]; overwrites. Small N must be bound by reading W once.
  virtual void linear(const Tensor& x, const Tensor& weight, const Tensor& y) = 0;

  // Causal attention with grouped queries, scale 1/√D; K and V are never expanded.
  // q act [batch·T, heads·D]; k, v act [batch·S, kv_heads·D] (S ≥ T: a cache's capacity, or T itself).
  // Query t of sequence b sees keys j of b with attend_from[b·T+t] ≤ j ≤ past[b]+t.
  // attend_from i32 [batch·T] optional (0); past i32 [batch] optional (0).
  // → out act [batch·T, heads·D]; lse f32 [batch·T, heads], the log-sum-exp of the scaled scores; both overwritten.
  virtual void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& attend_from,
                         const Tensor& past, const AttentionShape& shape, const Tensor& out, const Tensor& lse,
                         const Tensor& scratch) = 0;

  // Appends T rows a sequence: cache[b, past[b]+t, :] = rows[b·T+t, :], for k and v, in place.
  // k, v act [batch·T, kv]; past i32 [batch]; caches act [batch·S, kv]. Rows that would fall at S or beyond are dropped.
  virtual void kv_append(const Tensor& k, const Tensor& v, const Tensor& past, int64_t batch, const Tensor& k_cache,
                         const Tensor& v_cache) = 0;

  // y = silu(gate)·up.  act [N,I]; overwrites.
  virtual void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) = 0;

  // y = a + b, any equal shape, act or f32; overwrites; y may be a or b.
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& y) = 0;

  // y[m,:] = x[rows[m],:].  x act [N,C], rows i32 [M] → y act [M,C]; overwrites.
  virtual void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y) = 0;

  // ---- losses ------------------------------------------------------------------------------------------------------
  // Mean cross-entropy of x·Wᵀ against labels, without ever holding all logits: `scratch` holds one chunk.
  // loss (+)= scale·Σ_{label≥0} (lse − logit[label]); rows with label < 0 do not count and get a zero gradient.
  // x act [N,H], W [V,H], labels i32 [N], scale f32 [1] (1 / counted tokens of the whole step)
  // → loss f32 [1] (accumulates); and when given, the gradients of that loss: dx act [N,H] (overwrites) and
  //   dW f32 [V,H] (accumulates).  scratch f32 [rows of a chunk, V]; what is more may hold the weight in x's dtype.
  virtual void linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& labels, const Tensor& scale,
                                    bool accumulate, const Tensor& loss, const Tensor& dx, const Tensor& dweight,
                                    const Tensor& scratch) = 0;

  // The predecessor's debugging loss: loss (+)= scale·Σ |x − target|; dx = scale·sign(x − target).
  // x act [N,C], target f32 [N,C], scale f32 [1] (1 / elements of the whole step) → loss f32 [1], dx act [N,C].
  virtual void l1_loss(const Tensor& x, const Tensor& target, const Tensor& scale, bool accumulate, const Tensor& loss,
                       const Tensor& dx) = 0;

  // ---- backward ----------------------------------------------------------------------------------------------------
  // dtable[ids[n],:] += dy[n,:], in the order of n.  dy act [N,H] → dtable f32 [V,H]; accumulates (else zeroed first).
  virtual void embedding_backward(const Tensor& dy, const Tensor& ids, bool accumulate, const Tensor& dtable) = 0;

  // dx = dresidual + gradient of rms_norm; dweight (+)= Σ_n dy·x·rstd.
  // dy, x act [N,C], weight f32 [C], rstd f32 [N], dresidual act [N,C] optional → dx act [N,C] (overwrites; may be in
  // place of dresidual), dweight f32 [C] (accumulates).
  virtual void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                 const Tensor& dresidual, bool accumulate, const Tensor& dx, const Tensor& dweight,
                                 const Tensor& scratch) = 0;

  // Gradient of head_norm_rope.  dy, x act [N, heads·D] → dx act (overwrites), dweight f32 [D] (accumulates).
  virtual void head_norm_rope_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                       const Tensor& positions, int64_t head_dim, double theta, bool accumulate,
                                       const Tensor& dx, const Tensor& dweight, const Tensor& scratch) = 0;

  // dx (+)= dy·W.  dy act [N,O], W [O,K] → dx act [N,K]; accumulates.
  virtual void linear_dgrad(const Tensor& dy, const Tensor& weight, bool accumulate, const Tensor& dx) = 0;

  // dW (+)= dyᵀ·x.  dy act [N,O], x act [N,K] → dW f32|bf16 [O,K]; accumulates. Straight through: the gradient of the
  // dequantised weight is the gradient of its master.
  virtual void linear_wgrad(const Tensor& dy, const Tensor& x, bool accumulate, const Tensor& dweight) = 0;

  // Gradient of attention without a cache (S = T, past absent).
  // dout, q, out act [N, heads·D]; k, v act [N, kv_heads·D]; lse f32 [N, heads] → dq, dk, dv act; overwrites.
  virtual void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& out, const Tensor& lse, const Tensor& attend_from,
                                  const AttentionShape& shape, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                  const Tensor& scratch) = 0;

  // dgate, dup of swiglu.  All act [N,I]; overwrites; dgate may be in place of dy.
  virtual void swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                               const Tensor& dup) = 0;

  // ---- optimizer ---------------------------------------------------------------------------------------------------
  // partials[slot] = Σ x².  x f32|bf16, partials f32 [P]; fixed order.
  virtual void sum_squares(const Tensor& x, int64_t slot, const Tensor& partials) = 0;

  // stats f32 [4] = { norm, clip coefficient, applied, loss }: norm = √Σ partials; coefficient = min(1, max_norm/(norm+1e-6))
  // (1 when max_norm is 0, as torch.nn.utils.clip_grad_norm_); applied = 1 if norm and loss are finite, else 0.
  virtual void grad_stats(const Tensor& partials, const Tensor& loss, float max_norm, const Tensor& stats) = 0;

  // Decoupled AdamW on one tensor, in place; does nothing when stats.applied is 0.
  // hyper f32 [8] = { lr, beta1, beta2, eps, weight_decay, 1−beta1^t, 1−beta2^t, 0 }, rng i32 [4] = { seed lo, hi, step, 0 }
  //   g = grad·clip; m = β1·m+(1−β1)·g; v = β2·v+(1−β2)·g²; w −= lr·wd·w (if decay); w −= lr·(m/bc1)/(√(v/bc2)+eps)
  // grad f32|bf16; master f32, or bf16 written with stochastic rounding (Philox keyed by seed, stream, step, element);
  // m, v f32.
  virtual void adamw(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                     int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v) = 0;

  // adamw, then amax of the master it leaves, in one pass: amax[slot] = max |master|, applied or not.  amax f32 [P].
  virtual void adamw_amax(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                          int64_t stream, int64_t slot, const Tensor& master, const Tensor& m, const Tensor& v,
                          const Tensor& amax) = 0;

  // out[slot] = max |x|.  x f32|bf16|f16, out f32 [P].
  virtual void amax(const Tensor& x, int64_t slot, const Tensor& out) = 0;

  // ---- NVFP4 -------------------------------------------------------------------------------------------------------
  // Two-level (amax given): global = max(amax[slots]) / (448·6), 1 if that is 0; single-level (amax absent): global = 1.
  // Per 16 inputs: scale = e4m3(block amax / 6 / global); code = RNE_e2m1(x / (scale·global)), saturated; codes 0 where
  // the scale is 0. master f32|bf16 [O,K] → weight nvfp4 [O,K]; changed i32 [P]: [slot] = codes that now differ.
  virtual void quantize_nvfp4(const Tensor& master, const Tensor& amax, Slots slots, int64_t changed_slot,
                              const Tensor& weight, const Tensor& changed) = 0;

  // y = code · block scale · global.  weight nvfp4 [O,K] → y f32|bf16 [O,K]; overwrites.
  virtual void dequantize_nvfp4(const Tensor& weight, const Tensor& y) = 0;

  // out[slot] = number of codes that differ, as `changed` of quantize_nvfp4 counts them: a scale that moved under the
  // same code does not count, +0 against -0 does.  a, b nvfp4 of one shape; out i32 [P]; overwrites the slot.
  virtual void count_changed(const Tensor& a, const Tensor& b, int64_t slot, const Tensor& out) = 0;

  // ---- filling and converting --------------------------------------------------------------------------------------
  virtual void fill(float value, const Tensor& y) = 0;      // y f32|bf16|i32; overwrites
  virtual void cast(const Tensor& x, const Tensor& y) = 0;  // f32|bf16|f16 → f32|bf16|f16, RNE; overwrites
  // y = std · normal(Philox(seed, stream, element)), Box–Muller.  y f32.
  virtual void random_normal(uint64_t seed, int64_t stream, float std, const Tensor& y) = 0;

  // ---- decode ------------------------------------------------------------------------------------------------------
  // One token a row. sampling f32 [B,8] = { temperature, top_k, top_p, min_p, repetition_penalty, 0, 0, 0 };
  // rng i32 [B,2] = seed lo, hi; past i32 [B] is the draw's counter; seen u8 [B,V] (in place) marks the tokens that the
  // penalty applies to, and the sampled one is added. Order: penalty (logit>0 ? /p : ·p), temperature, top-k, top-p,
  // min-p, renormalise, inverse CDF in order of falling probability (ties by id). temperature 0 is argmax (lowest id on
  // a tie). At least one token always survives. greedy: every row as with temperature 0, whatever its own is.
  // logits f32 [B,V] → ids i32 [B].
  virtual void sample(const Tensor& logits, const Tensor& sampling, const Tensor& rng, const Tensor& past, bool greedy,
                      const Tensor& seen, const Tensor& ids, const Tensor& scratch) = 0;

  // x[i] = min(x[i] + by, max), in place.  x i32.
  virtual void increment(int64_t by, int64_t max, const Tensor& x) = 0;
};

struct BackendOptions {
  int threads = 0;         // cpu: 0 = all cores
  bool reference = false;  // cpu: the plain scalar fp32 path that defines what is right
  int index = 0;           // cuda: which device
};

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
// Throws Error(Q4402) with the reason when no CUDA device is usable or the build has no CUDA.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

// What a build has and a machine offers, for `doctor` and `device: auto`. Never throws.
struct CudaProbe {
  bool built = false;   // compiled with CUDA
  std::string targets;  // "sm_90a sm_100a sm_120a ..."
  int devices = 0;      // usable devices
  std::string reason;   // why there is none
  std::vector<DeviceInfo> list;
};
CudaProbe probe_cuda();

}  // namespace q4
