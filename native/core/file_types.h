// What a checked tensor file holds: element types as files know them, and the index of entries.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace q4 {

enum class FileType : uint8_t { u8, i8, i16, i32, i64, f16, bf16, f32, f64, boolean, e2m1x2, e4m3 };
constexpr int kFileTypes = 12;

// Bytes of one element; e2m1x2 counts packed pairs.
int64_t file_type_bytes(FileType type);
// "u8", "bf16", "bool", "e2m1x2", ...
const char* file_type_name(FileType type);
// Q4227 for a name that is none of these.
FileType file_type_from_name(std::string_view name);

enum class FileFormat : uint8_t { dat, safetensors };

struct FileEntry {
  std::string name;
  FileType type = FileType::u8;
  std::vector<int64_t> shape;
  int64_t header_offset = 0;  // where the entry begins (in a safetensors file: its name in the JSON)
  int64_t offset = 0;         // of the payload, from the start of the file
  int64_t bytes = 0;
};

struct FileIndex {
  FileFormat format = FileFormat::dat;
  std::string path;
  int64_t file_bytes = 0;
  int64_t modified_ns = 0;
  std::vector<FileEntry> entries;               // in the order of the file's headers
  std::map<std::string, std::string> metadata;  // safetensors only
};

// An index may not outgrow a machine's memory: more entries than any model has are refused.
constexpr int64_t kMaxEntries = int64_t{1} << 20;
constexpr int64_t kMaxRank = 8;
constexpr int64_t kMaxNameBytes = 1024;
// Sizes cross to JavaScript as numbers.
constexpr int64_t kMaxSize = (int64_t{1} << 53) - 1;

// Product of the dims times the element's size, or -1 when that overflows in any order of multiplication (a zero dim does
// not hide an overflow of the others) or a dim is negative or over kMaxSize.
int64_t payload_bytes(FileType type, const std::vector<int64_t>& shape);
// "[4096, 2560]"
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace q4
