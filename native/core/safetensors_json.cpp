#include "core/safetensors_json.h"

#include "core/file_names.h"
#include "core/file_types.h"

namespace q4 {

namespace {

void append_utf8(std::string& text, uint32_t point) {
  const auto put = [&](uint32_t byte) { text += static_cast<char>(byte); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xc0 | (point >> 6)), put(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    put(0xe0 | (point >> 12)), put(0x80 | ((point >> 6) & 0x3f)), put(0x80 | (point & 0x3f));
  } else {
    put(0xf0 | (point >> 18)), put(0x80 | ((point >> 12) & 0x3f));
    put(0x80 | ((point >> 6) & 0x3f)), put(0x80 | (point & 0x3f));
  }
}

}  // namespace

JsonReader::JsonReader(std::string_view text, std::string path, int64_t base)
    : text_(text), path_(std::move(path)), base_(base) {
  if (const int64_t bad = invalid_utf8(text); bad >= 0) {
    at_ = static_cast<size_t>(bad);
    fail("UTF-8");
  }
}

void JsonReader::fail(const std::string& expected) {
  FileProblem problem{
      path_,
      entry_,
      base_ + static_cast<int64_t>(at_),
      expected,
      at_ < text_.size() ? std::string("'") + escape_name(text_.substr(at_, 1)) + "'" : "the end of the header",
      "this is no safetensors file, or it is damaged"};
  throw FileError("Q4231", "the safetensors header is not the JSON it should be", problem);
}

void JsonReader::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
}

int64_t JsonReader::offset() {
  skip_space();
  return base_ + static_cast<int64_t>(at_);
}

bool JsonReader::accept(char c) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void JsonReader::expect(char c) {
  if (!accept(c)) fail(std::string("'") + c + "'");
}

uint32_t JsonReader::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : ' ';
    if (c >= '0' && c <= '9')
      value = value * 16 + static_cast<uint32_t>(c - '0');
    else if (c >= 'a' && c <= 'f')
      value = value * 16 + static_cast<uint32_t>(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F')
      value = value * 16 + static_cast<uint32_t>(c - 'A' + 10);
    else
      fail("four hexadecimal digits");
  }
  return value;
}

std::string JsonReader::string() {
  if (!accept('"')) fail("a string");
  std::string value;
  for (;;) {
    if (at_ >= text_.size()) fail("the end of a string");
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) < 0x20) fail("no control character in a string");
    if (c == '"') {
      ++at_;
      return value;
    }
    ++at_;
    if (c != '\\') {
      value += c;
      continue;
    }
    const char escape = at_ < text_.size() ? text_[at_] : ' ';
    constexpr std::string_view kEscapes = "\"\\/bfnrtu", kMeanings = "\"\\/\b\f\n\r\t";
    const size_t which = kEscapes.find(escape);
    if (which == kEscapes.npos) fail("an escape such as \\n");
    ++at_;
    if (which < kMeanings.size()) {
      value += kMeanings[which];
      continue;
    }
    uint32_t point = hex4();
    if (point >= 0xd800 && point < 0xdc00) {
      if (text_.substr(at_, 2) != "\\u") fail("the second half of a surrogate pair");
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xdc00 || low > 0xdfff) fail("the second half of a surrogate pair");
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    } else if (point >= 0xdc00 && point < 0xe000) {
      fail("no lone surrogate");
    }
    append_utf8(value, point);
  }
}

int64_t JsonReader::whole_number() {
  skip_space();
  const size_t begin = at_;
  int64_t value = 0;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    if (at_ == begin + 1 && text_[begin] == '0') fail("a number without leading zeros");
    value = value * 10 + (text_[at_] - '0');
    if (value > kMaxSize) fail("a whole number below 2^53");
  }
  if (at_ == begin) fail("a whole number");
  return value;
}

void JsonReader::end() {
  skip_space();
  if (at_ != text_.size()) fail("nothing after the header's object");
}

}  // namespace q4
