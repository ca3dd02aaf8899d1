#include "binding/file_progress.h"

#include <chrono>
#include <utility>

namespace q4 {

namespace {
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace

FileProgress::FileProgress(Napi::Env env, const Napi::Value& callback) {
  if (!callback.IsFunction()) return;
  callback_ = std::make_unique<Napi::ThreadSafeFunction>(
      Napi::ThreadSafeFunction::New(env, callback.As<Napi::Function>(), "q4run file progress", 0, 1));
}

FileProgress::~FileProgress() {
  if (callback_) callback_->Release();
}

void FileProgress::tell(int64_t done, int64_t total) {
  constexpr double kInterval = 0.05;
  if (!callback_ || now() < told_at_ + kInterval) return;
  told_at_ = now();
  auto* bytes = new std::pair<int64_t, int64_t>(done, total);
  const napi_status sent =
      callback_->NonBlockingCall(bytes, [](Napi::Env env, Napi::Function call, std::pair<int64_t, int64_t>* owned) {
        const std::unique_ptr<std::pair<int64_t, int64_t>> freed(owned);
        if (env == nullptr) return;  // the environment is going away
        call.Call({Napi::Number::New(env, static_cast<double>(owned->first)),
                   Napi::Number::New(env, static_cast<double>(owned->second))});
      });
  if (sent != napi_ok) delete bytes;
}

}  // namespace q4
