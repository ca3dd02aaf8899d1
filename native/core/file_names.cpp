#include "core/file_names.h"

#include "core/file_types.h"

namespace q4 {

int64_t invalid_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto continues = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  for (size_t i = 0; i < text.size();) {
    const unsigned first = byte(i);
    if (first < 0x80) {
      i += 1;
    } else if (first >= 0xc2 && first <= 0xdf && continues(i + 1)) {
      i += 2;
    } else if (first >= 0xe0 && first <= 0xef && continues(i + 1) && continues(i + 2) &&
               !(first == 0xe0 && byte(i + 1) < 0xa0) && !(first == 0xed && byte(i + 1) > 0x9f)) {
      i += 3;
    } else if (first >= 0xf0 && first <= 0xf4 && continues(i + 1) && continues(i + 2) && continues(i + 3) &&
               !(first == 0xf0 && byte(i + 1) < 0x90) && !(first == 0xf4 && byte(i + 1) > 0x8f)) {
      i += 4;
    } else {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

namespace {

// What a valid UTF-8 name must not hold, or null.
const char* forbidden(std::string_view name) {
  for (size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    if (byte < 0x20 || byte == 0x7f) return "a control character";
    // U+0080–U+009F are C2 80–C2 9F.
    if (byte == 0xc2 && static_cast<unsigned char>(name[i + 1]) < 0xa0) return "a control character";
    if (byte == '/' || byte == '\\') return "a slash";
  }
  for (size_t begin = 0; begin <= name.size();) {
    const size_t dot = name.find('.', begin);
    const std::string_view part = name.substr(begin, dot == name.npos ? name.npos : dot - begin);
    if (part.empty()) return "an empty part between dots";
    if (part == "__proto__") return "the part '__proto__'";
    if (dot == name.npos) break;
    begin = dot + 1;
  }
  return nullptr;
}

}  // namespace

void check_entry_name(std::string_view name, FileProblem problem) {
  problem.entry = escape_name(name);
  if (name.empty() || static_cast<int64_t>(name.size()) > kMaxNameBytes) {
    problem.expected = "1 to 1,024 bytes";
    problem.found = std::to_string(name.size());
    throw FileError("Q4208", "an entry's name has an impossible length", problem);
  }
  if (const int64_t bad = invalid_utf8(name); bad >= 0) {
    problem.expected = "UTF-8";
    problem.found = "an invalid byte at position " + std::to_string(bad) + " of the name";
    problem.hint = "the file is damaged, or was written by a tool that counts characters instead of bytes";
    throw FileError("Q4212", "an entry's name is not UTF-8", problem);
  }
  if (const char* what = forbidden(name)) {
    problem.expected = "a dotted tensor name such as model.layers.0.mlp.up_proj.weight";
    problem.found = what;
    throw FileError("Q4213", "an entry's name is not allowed", problem);
  }
}

}  // namespace q4
