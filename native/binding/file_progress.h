// Progress of long file work, told to JavaScript at most every 50 ms. The callback must not throw: files.ts wraps it.
#pragma once
#include <napi.h>

#include <cstdint>
#include <memory>

namespace q4 {

class FileProgress {
 public:
  // `callback` is undefined or a function (doneBytes, totalBytes).
  FileProgress(Napi::Env env, const Napi::Value& callback);
  ~FileProgress();
  FileProgress(const FileProgress&) = delete;
  FileProgress& operator=(const FileProgress&) = delete;

  // From the one thread that does the work.
  void tell(int64_t done, int64_t total);

 private:
  std::unique_ptr<Napi::ThreadSafeFunction> callback_;
  double told_at_ = 0;
};

}  // namespace q4
