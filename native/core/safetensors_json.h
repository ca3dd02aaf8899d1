// The JSON subset that a safetensors header needs, read strictly: objects, arrays and strings as RFC 8259 has them, and
// whole numbers without sign, fraction or exponent. The grammar is spelt out by the caller, so depth is bounded by it.
#pragma once
#include <string>
#include <string_view>

#include "core/file_source.h"

namespace q4 {

class JsonReader {
 public:
  // `text` must outlive the reader; `base` is its offset in the file, for messages.
  JsonReader(std::string_view text, std::string path, int64_t base);

  // Offset in the file of the next character that is not white space.
  int64_t offset();
  // True, and past it, when the next character is `c`.
  bool accept(char c);
  // Q4231 unless the next character is `c`.
  void expect(char c);
  // A string with its escapes resolved. Q4231 on control characters, bad escapes, lone surrogates.
  std::string string();
  // 0 … 2^53 − 1. Q4231 otherwise.
  int64_t whole_number();
  // Q4231 unless only white space is left.
  void end();
  [[noreturn]] void fail(const std::string& expected);
  // The tensor that the text is about from here on, escaped, for messages; empty for none.
  void about(std::string entry) { entry_ = std::move(entry); }

 private:
  void skip_space();
  uint32_t hex4();
  std::string_view text_;
  std::string path_, entry_;
  int64_t base_;
  size_t at_ = 0;
};

}  // namespace q4
