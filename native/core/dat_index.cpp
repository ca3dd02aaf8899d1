#include "core/dat_index.h"

#include <array>
#include <unordered_set>

#include "core/file_names.h"

namespace q4 {

namespace {

constexpr const char* kCutHint = "the file was cut short: copy or download it again, and compare sizes or checksums";

// In the order of FileType.
constexpr std::array<uint64_t, kFileTypes> kNumbers = {0, 1, 2, 3, 4, 5, 15, 6, 7, 11, 100, 101};

// The smallest entry: key length, one byte of key, type, rank; its payload may be empty.
constexpr int64_t kSmallestEntry = 4;

class Parser {
 public:
  explicit Parser(const ByteSource& source) : source_(source), cursor_(source) {}

  FileIndex parse() {
    FileIndex index;
    index.format = FileFormat::dat;
    index.path = source_.path();
    index.file_bytes = source_.size();
    const uint64_t count = number("the number of entries");
    const int64_t room = cursor_.left() / kSmallestEntry;
    if (count > static_cast<uint64_t>(room) || count > static_cast<uint64_t>(kMaxEntries))
      fail("Q4207", "impossible number of entries", 0, "at most " + std::to_string(std::min(room, kMaxEntries)),
           std::to_string(count), "this is no .dat weight file, or it was cut short");
    std::unordered_set<std::string> names;
    for (uint64_t i = 0; i < count; ++i) {
      FileEntry parsed = entry();
      if (!names.insert(parsed.name).second)
        fail("Q4214", "two entries have the same name", parsed.header_offset, "each name once", "a second one",
             "the tool that wrote the file merged two sets of weights; keep one of them");
      index.entries.push_back(std::move(parsed));
    }
    entry_.clear();
    if (cursor_.left() > 0)
      fail("Q4204", "bytes follow the last entry", cursor_.position(), "the end of the file",
           std::to_string(cursor_.left()) + " more bytes",
           "the file's count of entries is wrong, or something was appended to it");
    return index;
  }

 private:
  [[noreturn]] void fail(const char* code, const std::string& brief, int64_t offset, const std::string& expected,
                         const std::string& found, const char* hint) const {
    throw FileError(code, brief, {source_.path(), entry_, offset, expected, found, hint});
  }

  // Unsigned LEB128: seven bits a byte, low group first, minimal, at most 64 bits.
  uint64_t number(const char* what) {
    const int64_t begin = cursor_.position();
    uint64_t value = 0;
    for (int i = 0;; ++i) {
      if (cursor_.left() < 1)
        fail("Q4203", "the file ends inside a header", begin, what, "the end of the file", kCutHint);
      const uint8_t byte = cursor_.next();
      if (i == 9 && byte > 1)
        fail("Q4206", std::string("a number is too large: ") + what, begin, "a LEB128 of at most 10 bytes and 64 bits",
             byte & 0x80 ? "an eleventh byte" : "a 65th bit", "this is no .dat weight file, or it is damaged");
      value |= uint64_t{byte & 0x7fu} << (7 * i);
      if (byte & 0x80) continue;
      if (i > 0 && byte == 0)
        fail("Q4222", std::string("a number is not written in its shortest form: ") + what, begin, "a minimal LEB128",
             "a trailing zero byte", "this is no .dat weight file, or it is damaged");
      return value;
    }
  }

  FileEntry entry() {
    FileEntry parsed;
    parsed.header_offset = cursor_.position();
    entry_.clear();
    parsed.name = name(parsed.header_offset);
    entry_ = escape_name(parsed.name);
    parsed.type = type();
    parsed.shape = shape();
    parsed.offset = cursor_.position();
    parsed.bytes = payload_bytes(parsed.type, parsed.shape);
    if (parsed.bytes < 0)
      fail("Q4211", "the size of a tensor overflows", parsed.header_offset, "a size below 2^63 bytes",
           std::string(file_type_name(parsed.type)) + shape_text(parsed.shape), "the file is damaged");
    if (parsed.bytes > cursor_.left())
      fail("Q4210", "a tensor reaches past the end of the file", parsed.offset,
           std::to_string(parsed.bytes) + " bytes for " + file_type_name(parsed.type) + shape_text(parsed.shape),
           std::to_string(cursor_.left()), kCutHint);
    cursor_.skip(parsed.bytes);
    return parsed;
  }

  std::string name(int64_t begin) {
    const uint64_t length = number("the length of a name");
    if (length < 1 || length > static_cast<uint64_t>(kMaxNameBytes))
      fail("Q4208", "an entry's name has an impossible length", begin, "1 to 1,024 bytes", std::to_string(length),
           "this is no .dat weight file, or it is damaged just before this entry");
    if (static_cast<int64_t>(length) > cursor_.left())
      fail("Q4203", "the file ends inside a header", begin, "a name of " + std::to_string(length) + " bytes",
           std::to_string(cursor_.left()) + " bytes", kCutHint);
    std::string text(length, '\0');
    cursor_.take(text.data(), static_cast<int64_t>(length));
    check_entry_name(text, {source_.path(), "", begin, "", "", ""});
    return text;
  }

  FileType type() {
    const int64_t begin = cursor_.position();
    const uint64_t wanted = number("an element type");
    for (int i = 0; i < kFileTypes; ++i)
      if (kNumbers[i] == wanted) return static_cast<FileType>(i);
    fail("Q4215", "unknown element type", begin, "0–7, 11, 15, 100 or 101", std::to_string(wanted),
         "write the tensor as fp16, bf16, fp32, or as qdata and scale");
  }

  std::vector<int64_t> shape() {
    const int64_t begin = cursor_.position();
    const uint64_t rank = number("a tensor's rank");
    if (rank > static_cast<uint64_t>(kMaxRank))
      fail("Q4209", "a tensor has too many dimensions", begin, "at most 8", std::to_string(rank),
           "the file is damaged");
    std::vector<int64_t> dims;
    for (uint64_t i = 0; i < rank; ++i) {
      const int64_t at = cursor_.position();
      const uint64_t dim = number("a dimension");
      if (dim > static_cast<uint64_t>(kMaxSize))
        fail("Q4211", "the size of a tensor overflows", at, "a dimension below 2^53", std::to_string(dim),
             "the file is damaged");
      dims.push_back(static_cast<int64_t>(dim));
    }
    return dims;
  }

  const ByteSource& source_;
  SourceCursor cursor_;
  std::string entry_;  // escaped name of the entry being read, once it is known
};

}  // namespace

FileIndex parse_dat(const ByteSource& source) {
  FileIndex index = Parser(source).parse();
  check_dat_pairs(index);
  return index;
}

FileIndex index_dat(const std::string& path) {
  const FileSource source(path);
  FileIndex index = parse_dat(source);
  source.check_unchanged();
  index.modified_ns = source.modified_ns();
  return index;
}

uint64_t dat_type_number(FileType type) { return kNumbers[static_cast<int>(type)]; }

}  // namespace q4
