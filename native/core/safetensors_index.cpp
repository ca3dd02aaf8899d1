#include "core/safetensors_index.h"

#include <algorithm>
#include <set>
#include <unordered_set>

#include "core/file_names.h"
#include "core/safetensors_json.h"

namespace q4 {

namespace {

constexpr const char* kCutHint = "the file was cut short: copy or download it again, and compare sizes or checksums";
constexpr const char* kDamagedHint = "the file is damaged, or was written by a broken tool";

struct TypeName {
  const char* name;
  FileType type;
};
constexpr TypeName kTypes[] = {{"U8", FileType::u8},        {"I8", FileType::i8},       {"I16", FileType::i16},
                               {"I32", FileType::i32},      {"I64", FileType::i64},     {"F16", FileType::f16},
                               {"BF16", FileType::bf16},    {"F32", FileType::f32},     {"F64", FileType::f64},
                               {"BOOL", FileType::boolean}, {"F8_E4M3", FileType::e4m3}};

class Parser {
 public:
  Parser(const ByteSource& source, std::string_view header)
      : source_(source), json_(header, source.path(), 8), data_begin_(8 + static_cast<int64_t>(header.size())) {}

  FileIndex parse() {
    index_.format = FileFormat::safetensors;
    index_.path = source_.path();
    index_.file_bytes = source_.size();
    if (json_.offset() != 8) json_.fail("'{' as the first byte of the header");
    object([&](const std::string& key, int64_t at) {
      if (key == "__metadata__") return metadata();
      tensor(key, at);
    });
    json_.end();
    check_cover();
    return std::move(index_);
  }

 private:
  [[noreturn]] void fail(const char* code, const std::string& brief, int64_t offset, const std::string& expected,
                         const std::string& found, const char* hint) const {
    throw FileError(code, brief, {source_.path(), entry_, offset, expected, found, hint});
  }

  // {"key": <what `member` reads>, ...}; keys must differ.
  template <typename Member>
  void object(Member member) {
    json_.expect('{');
    std::unordered_set<std::string> keys;
    if (json_.accept('}')) return;
    do {
      const int64_t at = json_.offset();
      const std::string key = json_.string();
      if (static_cast<int64_t>(keys.size()) == kMaxEntries)
        fail("Q4207", "impossible number of entries", at, "at most " + std::to_string(kMaxEntries), "more",
             kDamagedHint);
      if (!keys.insert(key).second)
        fail("Q4214", "two keys of the header are the same", at, "each key once", "'" + escape_name(key) + "' again",
             "the file is damaged, or made to mislead: readers would disagree about it");
      json_.expect(':');
      member(key, at);
    } while (json_.accept(','));
    json_.expect('}');
  }

  template <typename Element>
  void array(Element element) {
    json_.expect('[');
    if (json_.accept(']')) return;
    do element(json_.offset());
    while (json_.accept(','));
    json_.expect(']');
  }

  void metadata() {
    object([&](const std::string& key, int64_t) { index_.metadata[key] = json_.string(); });
  }

  void tensor(const std::string& key, int64_t at) {
    entry_.clear();
    check_entry_name(key, {source_.path(), "", at, "", "", ""});
    entry_ = escape_name(key);
    json_.about(entry_);
    FileEntry parsed;
    parsed.name = key, parsed.header_offset = at;
    std::vector<int64_t> offsets;
    std::string members;
    object([&](const std::string& member, int64_t where) {
      members += member + " ";
      if (member == "dtype")
        parsed.type = type(where);
      else if (member == "shape")
        parsed.shape = shape();
      else if (member == "data_offsets")
        array([&](int64_t place) {
          if (offsets.size() == 2) fail("Q4231", "too many data_offsets", place, "two", "three or more", kDamagedHint);
          offsets.push_back(json_.whole_number());
        });
      else
        fail("Q4231", "unknown key in a tensor's header", where, "dtype, shape, data_offsets", escape_name(member),
             kDamagedHint);
    });
    // Keys differ (object saw to it), so three known ones are all of them.
    if (std::count(members.begin(), members.end(), ' ') != 3 || offsets.size() != 2)
      fail("Q4231", "a tensor's header is not complete", at, "dtype, shape and two data_offsets", members,
           kDamagedHint);
    check_place(parsed, offsets[0], offsets[1]);
    index_.entries.push_back(std::move(parsed));
    entry_.clear();
    json_.about({});
  }

  FileType type(int64_t at) {
    const std::string wanted = json_.string();
    for (const TypeName& row : kTypes)
      if (wanted == row.name) return row.type;
    fail("Q4215", "unknown element type", at, "F64, F32, F16, BF16, F8_E4M3, I64, I32, I16, I8, U8 or BOOL",
         escape_name(wanted), "convert the tensor with the tool that made the file");
  }

  std::vector<int64_t> shape() {
    std::vector<int64_t> dims;
    array([&](int64_t at) {
      if (static_cast<int64_t>(dims.size()) == kMaxRank)
        fail("Q4209", "a tensor has too many dimensions", at, "at most 8", "more", kDamagedHint);
      dims.push_back(json_.whole_number());
    });
    return dims;
  }

  void check_place(FileEntry& entry, int64_t begin, int64_t end) {
    const std::string text = file_type_name(entry.type) + shape_text(entry.shape);
    entry.bytes = payload_bytes(entry.type, entry.shape);
    if (entry.bytes < 0)
      fail("Q4211", "the size of a tensor overflows", entry.header_offset, "a size below 2^63 bytes", text,
           kDamagedHint);
    if (end < begin || end - begin != entry.bytes)
      fail("Q4233", "a tensor's offsets do not match its shape", entry.header_offset,
           std::to_string(entry.bytes) + " bytes for " + text, "data_offsets " + shape_text({begin, end}),
           kDamagedHint);
    if (end > source_.size() - data_begin_)
      fail("Q4210", "a tensor reaches past the end of the file", data_begin_ + begin,
           std::to_string(entry.bytes) + " bytes for " + text,
           std::to_string(std::max<int64_t>(0, source_.size() - data_begin_ - begin)), kCutHint);
    entry.offset = data_begin_ + begin;
  }

  // In the order of the buffer, each tensor must begin where the one before ended.
  void check_cover() {
    std::vector<const FileEntry*> order;
    for (const FileEntry& entry : index_.entries) order.push_back(&entry);
    std::sort(order.begin(), order.end(), [](const FileEntry* a, const FileEntry* b) {
      return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
    });
    int64_t at = data_begin_;
    for (const FileEntry* entry : order) {
      entry_ = escape_name(entry->name);
      if (entry->offset < at)
        fail("Q4234", "two tensors overlap", entry->offset, "byte " + std::to_string(at) + " or later",
             "byte " + std::to_string(entry->offset), kDamagedHint);
      if (entry->offset > at)
        fail("Q4235", "bytes belong to no tensor", at, "a tensor",
             std::to_string(entry->offset - at) + " bytes before this entry", kDamagedHint);
      at = entry->offset + entry->bytes;
    }
    entry_.clear();
    if (at < source_.size())
      fail("Q4204", "bytes follow the last entry", at, "the end of the file",
           std::to_string(source_.size() - at) + " more bytes",
           "something was appended to the file, or its header is wrong");
  }

  const ByteSource& source_;
  JsonReader json_;
  int64_t data_begin_;
  std::string entry_;
  FileIndex index_;
};

}  // namespace

FileIndex parse_safetensors(const ByteSource& source) {
  const int64_t size = source.size();
  const auto fail = [&](const char* code, const char* brief, const std::string& expected, const std::string& found) {
    throw FileError(code, brief,
                    {source.path(), "", 0, expected, found, "this is no safetensors file, or it was cut short"});
  };
  if (size < 8)
    fail("Q4203", "the file ends inside a header", "8 bytes of header length", std::to_string(size) + " bytes");
  uint64_t length = 0;
  source.read(0, &length, 8);
  if (length < 2 || length > static_cast<uint64_t>(kMaxSafetensorsHeader))
    fail("Q4230", "impossible header length", "2 to 100,000,000 bytes", std::to_string(length));
  if (static_cast<int64_t>(length) > size - 8)
    fail("Q4203", "the file ends inside a header", "a header of " + std::to_string(length) + " bytes",
         std::to_string(size - 8) + " bytes");
  std::string header(length, '\0');
  source.read(8, header.data(), static_cast<int64_t>(length));
  return Parser(source, header).parse();
}

FileIndex index_safetensors(const std::string& path) {
  const FileSource source(path);
  FileIndex index = parse_safetensors(source);
  source.check_unchanged();
  index.modified_ns = source.modified_ns();
  return index;
}

const char* safetensors_type_name(FileType type) {
  if (type == FileType::e2m1x2) return "U8";
  for (const TypeName& row : kTypes)
    if (row.type == type) return row.name;
  return "";
}

}  // namespace q4
