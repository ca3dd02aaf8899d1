// The addon: everything JavaScript sees is registered here, and runtime/engine/addon.ts alone loads it.
#include "binding/handles.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  q4::register_engine(env, exports);
#ifdef Q4_HAS_FILES
  q4::register_files(env, exports);
#endif
  return exports;
}

}  // namespace

NODE_API_MODULE(q4run_native, init)
