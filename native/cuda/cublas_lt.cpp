#include "cuda/cublas_lt.h"

#include <dlfcn.h>

#include <string>

#include "core/error.h"

namespace q4::gpu {

// Prototypes of cublasLt.h; descriptors are opaque, statuses are 0 for success.
struct CublasLt::Library {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*desc_create)(void** desc, int compute_type, int scale_type);
  int (*desc_destroy)(void* desc);
  int (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(void* layout);
  int (*preference_create)(void** preference);
  int (*preference_destroy)(void* preference);
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int asked,
                   lt::Heuristic* found, int* count);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* layout_a, const void* b,
                void* layout_b, const void* beta, const void* c, void* layout_c, void* d, void* layout_d,
                const lt::Algorithm* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream);
  std::string reason;  // why it is not there; empty when it is

  Library() {
    // The toolkit's own directories are often in no search path.
    constexpr const char* kNames[] = {
        "libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "/usr/local/cuda-13/lib64/libcublasLt.so.13",
        "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.12", "libcublasLt.so"};
    void* found = nullptr;
    for (const char* name : kNames)
      if ((found = dlopen(name, RTLD_NOW | RTLD_LOCAL))) break;
    if (!found) {
      reason = "libcublasLt.so.13 was not found";
      return;
    }
    const auto bind = [&](auto& function, const char* name) {
      void* symbol = dlsym(found, name);
      if (!symbol) reason = std::string("libcublasLt lacks ") + name;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    bind(create, "cublasLtCreate");
    bind(destroy, "cublasLtDestroy");
    bind(desc_create, "cublasLtMatmulDescCreate");
    bind(desc_destroy, "cublasLtMatmulDescDestroy");
    bind(desc_set, "cublasLtMatmulDescSetAttribute");
    bind(layout_create, "cublasLtMatrixLayoutCreate");
    bind(layout_destroy, "cublasLtMatrixLayoutDestroy");
    bind(preference_create, "cublasLtMatmulPreferenceCreate");
    bind(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    bind(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    bind(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    bind(matmul, "cublasLtMatmul");
  }
};

namespace {

void succeed(int status, const char* call) {
  if (status == 0) return;
  // 13 is CUBLAS_STATUS_EXECUTION_FAILED: what a fault of earlier work looks like from here.
  throw Error(status == 13 ? "Q4701" : "Q4900",
              std::string("cuBLASLt: ") + call + " failed with status " + std::to_string(status));
}

// Bytes the address is a multiple of, at most 256 (what cudaMalloc guarantees).
uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uint32_t bytes = 256;
  while (address % bytes) bytes /= 2;
  return bytes;
}

}  // namespace

const CublasLt::Library& CublasLt::library() {
  // Never unloaded: cuBLAS keeps state of its own in the process.
  static const Library* loaded = new Library();
  return *loaded;
}

bool CublasLt::available() { return library().reason.empty(); }

struct CublasLt::Plan {
  const Library& lib;
  void *desc = nullptr, *a = nullptr, *b = nullptr, *d = nullptr, *preference = nullptr;
  lt::Heuristic chosen{};

  explicit Plan(const Library& library) : lib(library) {}
  ~Plan() {
    for (void* layout : {a, b, d})
      if (layout) lib.layout_destroy(layout);
    if (preference) lib.preference_destroy(preference);
    if (desc) lib.desc_destroy(desc);
  }
};

CublasLt::CublasLt(void* workspace, int64_t workspace_bytes, const float* constants)
    : workspace_(workspace), workspace_bytes_(workspace_bytes), constants_(constants) {
  if (!available())
    throw Error(
        "Q4403", "the CUDA backend needs cuBLASLt: " + library().reason,
        "install the CUDA 13 toolkit's libcublas, put its directory on LD_LIBRARY_PATH, or set runtime.device: cpu");
  succeed(library().create(&handle_), "cublasLtCreate");
}

CublasLt::~CublasLt() {
  plans_.clear();
  if (handle_) library().destroy(handle_);
}

const CublasLt::Plan& CublasLt::plan(const Product& p) {
  const int flags = (p.transpose_a ? 1 : 0) | (p.transpose_b ? 2 : 0) | (p.alpha ? 4 : 0) | (p.accumulate ? 8 : 0) |
                    (p.inputs == Element::f32 ? 16 : 0) | (p.output == Element::f32 ? 32 : 0);
  const uint32_t align_a = alignment(p.a), align_b = alignment(p.b), align_d = alignment(p.d);
  const Key key{flags, p.m, p.n, p.k, p.lda, p.ldb, p.ldd, align_a << 20 | align_b << 10 | align_d};
  if (const auto found = plans_.find(key); found != plans_.end()) return *found->second;

  const Library& lib = library();
  auto plan = std::make_unique<Plan>(lib);
  succeed(lib.desc_create(&plan->desc, lt::kCompute32F, lt::kR32F), "cublasLtMatmulDescCreate");
  const auto describe = [&](int attribute, int32_t value) {
    succeed(lib.desc_set(plan->desc, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  };
  describe(lt::kDescTransA, p.transpose_a ? lt::kOpT : lt::kOpN);
  describe(lt::kDescTransB, p.transpose_b ? lt::kOpT : lt::kOpN);
  if (p.alpha) describe(lt::kDescPointerMode, lt::kPointerModeDevice);
  const auto layout = [&](void** out, Element type, int64_t rows, int64_t cols, int64_t ld) {
    succeed(
        lib.layout_create(out, static_cast<int>(type), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
        "cublasLtMatrixLayoutCreate");
  };
  layout(&plan->a, p.inputs, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda);
  layout(&plan->b, p.inputs, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb);
  layout(&plan->d, p.output, p.m, p.n, p.ldd);
  succeed(lib.preference_create(&plan->preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](int attribute, const auto& value) {
    succeed(lib.preference_set(plan->preference, attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(lt::kPreferenceWorkspace, static_cast<size_t>(workspace_bytes_));
  // Split-K only through fp32 partials that one kernel adds in order: no atomics whose order shows.
  prefer(lt::kPreferenceReduction, lt::kReductionComputeType);
  prefer(lt::kPreferenceAlignA, align_a);
  prefer(lt::kPreferenceAlignB, align_b);
  prefer(lt::kPreferenceAlignC, align_d);
  prefer(lt::kPreferenceAlignD, align_d);
  int count = 0;
  const int status = lib.heuristic(handle_, plan->desc, plan->a, plan->b, plan->d, plan->d, plan->preference, 1,
                                   &plan->chosen, &count);
  if (status != 0 || count == 0)
    throw Error("Q4900", "cuBLASLt offers no algorithm for a product of m " + std::to_string(p.m) + ", n " +
                             std::to_string(p.n) + ", k " + std::to_string(p.k) + " (status " + std::to_string(status) +
                             ")");
  return *plans_.emplace(key, std::move(plan)).first->second;
}

void CublasLt::run(const Product& p, cudaStream_t stream) {
  if (p.m == 0 || p.n == 0) return;
  const Plan& chosen = plan(p);
  const float zero = 0, one = 1;
  // In device-pointer mode both scalars live on the device.
  const float* alpha = p.alpha ? p.alpha : &one;
  const float* beta = p.alpha ? constants_ + (p.accumulate ? 1 : 0) : p.accumulate ? &one : &zero;
  succeed(
      chosen.lib.matmul(handle_, chosen.desc, alpha, p.a, chosen.a, p.b, chosen.b, beta, p.d, chosen.d, p.d, chosen.d,
                        &chosen.chosen.algorithm, workspace_, static_cast<size_t>(workspace_bytes_), stream),
      "cublasLtMatmul");
}

}  // namespace q4::gpu
