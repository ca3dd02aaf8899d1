// The CUDA backend: one device, one stream, everything on it in order. Each op is a method, defined beside its kernels.
#pragma once
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "core/backend.h"
#include "cuda/cublas_lt.h"
#include "cuda/decode_chain.h"
#include "cuda/handles.h"

namespace q4::gpu {

// Memory that the backend owns for as long as it lives, beside the programs' arenas.
struct Workspace {
  static constexpr int64_t kProductBytes = int64_t{32} << 20;  // cuBLASLt's
  static constexpr int64_t kWeightBytes = int64_t{64} << 20;   // one dequantised matrix, or a piece of it
  static constexpr int64_t kPartialBytes = int64_t{48} << 20;  // partial sums between the passes of one op
  static constexpr int64_t kSmallBytes = int64_t{1} << 16;     // constants and tickets
  static constexpr int64_t kBytes =
      kProductBytes + kWeightBytes + kPartialBytes + kSmallBytes + kExchangeBytes + kScriptBytes;
};

// *out = a reduction of x [elements], by the blocks from first_block on.
struct Reduction {
  const void* x;
  int64_t elements;
  float* out;
  uint32_t first_block;
  DType dtype;
  bool wide;  // whole 16-byte pieces
};
// As many as the parameters of one kernel hold.
struct Reductions {
  static constexpr int kMost = 120;
  Reduction item[kMost];
  int count;
  uint32_t blocks;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index);
  ~CudaBackend() override;
  DeviceInfo info() const override;

  void* allocate(int64_t bytes) override;
  void release(void* memory) noexcept override;
  void upload(void* device, const void* host, int64_t bytes) override;
  void download(void* host, const void* device, int64_t bytes) override;
  bool host_accessible() const override { return false; }
  void* staging(int slot, int64_t bytes) override;
  void upload_staged(void* device, int slot, int64_t offset, int64_t bytes) override;
  void start_download(int slot, const void* device, int64_t bytes) override;
  const void* finish_download(int slot) override;
  bool runs_ahead() const override { return true; }
  void synchronize() override;

  bool begin_run(uint64_t program, bool profiled) override;
  void end_run(uint64_t program) override;
  void forget(uint64_t program) noexcept override;
  double now() override;

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

 private:
  // Plain device memory; Q4401 when it does not fit.
  static void* take(int64_t bytes);
  // Makes this device current for the calling thread: runs come from whichever thread the engine chose.
  void use_device() const;

  // A weight as a cuBLAS operand of the activations' dtype.
  struct Operand {
    const void* data;
    int64_t ld;
    const float* alpha;  // what the product is still to be multiplied by; null is 1
  };
  // The part [first_row, +rows) × [first_col, +cols) of a weight; converted into `buffer` where need be.
  Operand operand(const Tensor& weight, DType act, int64_t first_row, int64_t rows, int64_t first_col, int64_t cols,
                  void* buffer);
  // Whether `weight` is used where it stands, and otherwise how many elements of it the workspace holds.
  static bool in_place(const Tensor& weight, DType act);
  static int64_t operand_capacity(DType act);
  // Rows of a weight that are converted at a time.
  static int64_t output_piece(const Tensor& weight, DType act);
  // y[N,O] (ld `ldy`) = x·Wᵀ for rows [first, first + count) of W, column offset `first` in y.
  void linear_product(const void* x, int64_t n, int64_t ldx, DType act, const Tensor& weight, int64_t first,
                      int64_t count, void* y, DType y_dtype, int64_t ldy);
  // adamw; with `amax`, *amax = max |master| as well.
  void update(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
              int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v, float* amax);
  // One token a sequence, or a handful: decode_chain.cu, linear_decode.cu. False when the shape is not one they take.
  bool linear_streamed(const Tensor& x, const Tensor& weight, const Tensor& y);
  bool linear_few_rows(const Tensor& x, const Tensor& weight, const Tensor& y);
  // Sums of squares that are put off: a step wants those of all gradients, one after another, and one kernel takes many.
  Reductions squares_{};
  void run_squares();
  // ---- fusing the ops of a decode step: decode_fusion.cpp ----
  // An op that is put off because, with those that should follow it, it makes up half of a decoder layer.
  struct Deferred {
    enum class Kind { norm, linear, rotate, append, attention, swiglu } kind;
    std::array<Tensor, 7> t;  // operands in the order of backend.h; norm: x, branch, weight, sum, y, rstd
    float eps = 0;
    double theta = 0;
    int64_t number = 0;  // head_dim or batch
    AttentionShape shape{};
  };
  // True when the op was taken: it is done, or will be before anything that could tell.
  bool defer(const Deferred& op);
  bool continues(const Deferred& op) const;
  void run_deferred();
  void run_attention_half(const std::vector<Deferred>& ops);
  void run_mlp_half(const std::vector<Deferred>& ops);
  void run_norm_and_linear(const std::vector<Deferred>& ops);
  DecodePhase& add_phase(PhaseKind kind, int64_t rows);
  struct Projection {
    const Tensor& weight;
    void* y;
  };
  void add_matrices(DecodeProduct& product, std::initializer_list<Projection> projections, bool paired = false);
  DecodePhase& add_norm_and_product(const Deferred& norm, int phases);
  void add_product(const Tensor& x, const Tensor& weight, const Tensor& y);
  DecodeSplit split_of(const Tensor& y, int64_t width) const;
  void continue_chain(const Tensor& x, const Tensor& kept, int phases);
  int phases_since_sum() const;
  void written(std::initializer_list<Tensor> results);
  bool ends_in_logits(int64_t rows) const;
  bool count_in_chain(int64_t by, int64_t max, const Tensor& x);
  bool choose_in_chain(const Tensor& logits, const Tensor& sampling, const Tensor& seen, const Tensor& ids);
  void count(int64_t by, int64_t max, const Tensor& x);
  void run_chain();
  void place_script();
  // Before chains with so many phases run.
  void use_tags(int phases);
  void discard_chain() {
    plan_.maps.clear(), plan_.phases.clear();
    plan_.chain = DecodeChain{};  // its operands may no longer exist when the next is run
    open_ = handed_on_ = kept_ = Tensor{};
    counted_ = {};
  }
  // The stream, with nothing put off.
  cudaStream_t stream() {
    told_.ids = nullptr;  // something else comes after the chain that told its tokens
    if (squares_.count > 0) run_squares();
    if (!deferred_.empty()) run_deferred();
    if (!plan_.phases.empty()) run_chain();
    if (embedded_.y) run_embedding();
    return stream_.get();
  }
  void discard_put_off() {
    squares_.count = 0;
    embedded_ = {};
    deferred_.clear();
    discard_chain();
  }
  std::vector<Deferred> deferred_;
  bool undeferring_ = false;
  DecodePlan plan_;  // phases that are not launched yet
  // What its last phase leaves to the next; the same, where that is in parts and not in memory; what its norms keep.
  Tensor handed_on_, open_, kept_;
  // An embedding that is put off, for a chain to begin with; nothing else is put off before it.
  struct Embedded {
    Tensor table, ids, y;
  } embedded_;
  static bool may_begin_chain(const Embedded& e);
  void run_embedding();
  // increment() of x, put off until the chain, which ends in logits, goes on to choose tokens, or is launched without.
  struct Count {
    Tensor x;
    int64_t by = 0, max = 0;
  } counted_;
  // A place in the weight buffer.
  static constexpr int64_t kAttentionPartsAt = int64_t{48} << 20;
  char* exchange() const { return small() + Workspace::kSmallBytes; }
  int used_tags_ = 0;  // since the exchange was cleared
  // For chains that are not recorded, one after the other.
  char* script_place() const { return exchange() + kExchangeBytes; }

  float* partials() const {
    return reinterpret_cast<float*>(workspace_bytes_ + Workspace::kProductBytes + Workspace::kWeightBytes);
  }
  void* weight_buffer() const { return workspace_bytes_ + Workspace::kProductBytes; }
  float* constants() const { return reinterpret_cast<float*>(small()); }
  // Zero between kernels: a kernel whose last block finishes the work counts its blocks here and resets it.
  static constexpr int kTickets = (Workspace::kSmallBytes - 256) / 4;
  // { sum, blocks done } of a count, zero between kernels too; behind the constants.
  int32_t* tally() const { return reinterpret_cast<int32_t*>(small() + 128); }
  uint32_t* ticket() const { return reinterpret_cast<uint32_t*>(small() + 256); }
  char* small() const {
    return workspace_bytes_ + Workspace::kProductBytes + Workspace::kWeightBytes + Workspace::kPartialBytes;
  }

  // Kernels may be set up while their predecessor still runs.
  bool overlap() const { return capability_ >= 90; }

  const int index_;
  int processors_ = 0, capability_ = 0;  // multiprocessors; 90 for 9.0
  DecodeMachine machine_{};
  std::string name_, target_;
  Stream stream_;
  DeviceMemory workspace_;
  char* workspace_bytes_ = nullptr;
  std::unique_ptr<CublasLt> lt_;

  std::mutex memory_mutex_;
  std::set<void*> blocks_;
  // Host memory that the device copies from or into, with the end of the last such copy.
  struct Pinned {
    PinnedMemory memory;
    int64_t bytes = 0;
    Event copied;
    // Of the chain that tells what is read, instead of a copy, and how many words.
    uint32_t number = 0;
    int words = 0;
  };
  // Waits for the last copy and makes the buffer hold `bytes`; Q4401 when it cannot, saying what it is for.
  static void reserve(Pinned& buffer, int64_t bytes, const char* purpose);
  Pinned staging_[2], readback_[2];
  // The tokens that recorded chains have told, of the last few; where on the device those of the last are, while nothing else
  // has been enqueued.
  struct Told {
    static constexpr int kPlaces = 4;
    Pinned buffer;
    uint32_t number = 0;  // of the last; 0 is none
    const int32_t* ids = nullptr;
    int rows = 0;
    uint2* place(uint32_t of) const { return static_cast<uint2*>(buffer.memory.get()) + of % kPlaces * kDecodeRows; }
  } told_;
  void run_recorded(const DecodeLaunch& chain);
  void await_told(Pinned& buffer);
  Event epoch_, mark_;

  // A program is run plainly once (so that everything lazy exists), recorded the second time, replayed from then on.
  // What its decode chains read from device memory lives as long.
  struct Script {
    DeviceMemory memory;
    std::vector<char> contents;  // until it is there
    int phases = 0, mapped = 0;
    const DecodeMaps* maps = nullptr;
  };
  // What is but one chain is launched as such, as then every launch can be told where to put its tokens.
  struct Recording {
    int runs = 0;
    std::vector<Script> scripts;
    GraphExec graph;
    DecodeLaunch chain;
  };
  std::vector<Script> scripts_;  // of the recording that is being made
  DecodeLaunch last_chain_;      // in it
  std::map<uint64_t, Recording> recordings_;
  enum class Mode { plain, recording, replaying } mode_ = Mode::plain;
};

// The target this build has code for that a device of this capability runs, e.g. "sm_90a"; empty when none.
std::string target_for(int capability);

}  // namespace q4::gpu
