// The one exception of native code: a stable code (runtime/error-codes.ts explains it) and a sentence for people.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

namespace q4 {

class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message, std::string hint = {})
      : std::runtime_error(message), code_(std::move(code)), hint_(std::move(hint)) {}
  const std::string& code() const { return code_; }
  const std::string& hint() const { return hint_; }

 private:
  std::string code_, hint_;
};

}  // namespace q4
