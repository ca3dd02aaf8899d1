#include "core/file_types.h"

#include "core/file_error.h"

namespace q4 {

namespace {
struct TypeRow {
  const char* name;
  int64_t bytes;
};
// In the order of FileType.
constexpr TypeRow kTypes[kFileTypes] = {{"u8", 1},   {"i8", 1},  {"i16", 2}, {"i32", 4},  {"i64", 8},    {"f16", 2},
                                        {"bf16", 2}, {"f32", 4}, {"f64", 8}, {"bool", 1}, {"e2m1x2", 1}, {"e4m3", 1}};
}  // namespace

int64_t file_type_bytes(FileType type) { return kTypes[static_cast<int>(type)].bytes; }

const char* file_type_name(FileType type) { return kTypes[static_cast<int>(type)].name; }

FileType file_type_from_name(std::string_view name) {
  for (int i = 0; i < kFileTypes; ++i)
    if (name == kTypes[i].name) return static_cast<FileType>(i);
  throw Error("Q4227", "unknown element type '" + escape_name(name) + "' for a file entry");
}

int64_t payload_bytes(FileType type, const std::vector<int64_t>& shape) {
  int64_t bytes = file_type_bytes(type);
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0 || dim > kMaxSize) return -1;
    if (dim == 0)
      empty = true;
    else if (__builtin_mul_overflow(bytes, dim, &bytes))
      return -1;
  }
  return empty ? 0 : bytes;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace q4
