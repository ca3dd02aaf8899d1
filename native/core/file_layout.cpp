#include "core/file_layout.h"

#include <algorithm>
#include <unordered_set>

#include "core/dat_index.h"
#include "core/file_names.h"
#include "core/safetensors_index.h"

namespace q4 {

namespace {

// Everything a reader checks entry by entry; fills in `bytes`.
void check_entries(const std::string& path, std::vector<FileEntry>& entries) {
  if (static_cast<int64_t>(entries.size()) > kMaxEntries)
    throw FileError("Q4207", "impossible number of entries",
                    {path, "", -1, "at most " + std::to_string(kMaxEntries), std::to_string(entries.size()), ""});
  std::unordered_set<std::string_view> names;
  int64_t total = 0;
  for (FileEntry& entry : entries) {
    FileProblem problem{path, "", -1, "", "", ""};
    check_entry_name(entry.name, problem);
    problem.entry = escape_name(entry.name);
    if (!names.insert(entry.name).second) throw FileError("Q4214", "two entries have the same name", problem);
    if (static_cast<int64_t>(entry.shape.size()) > kMaxRank)
      throw FileError("Q4209", "a tensor has too many dimensions", problem);
    entry.bytes = payload_bytes(entry.type, entry.shape);
    if (entry.bytes < 0 || __builtin_add_overflow(total, entry.bytes, &total) || total > kMaxSize) {
      problem.found = file_type_name(entry.type) + shape_text(entry.shape);
      throw FileError("Q4211", "the size of a tensor overflows", problem);
    }
  }
}

void append_leb128(std::string& bytes, uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7f) | 0x80);
  bytes += static_cast<char>(value);
}

void append_json_string(std::string& json, std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  json += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      json += std::string("\\u00") + kHex[byte >> 4] + kHex[byte & 15];
    } else {
      if (c == '"' || c == '\\') json += '\\';
      json += c;
    }
  }
  json += '"';
}

std::string json_numbers(const std::vector<int64_t>& numbers) {
  std::string text = "[";
  for (size_t i = 0; i < numbers.size(); ++i) text += (i ? "," : "") + std::to_string(numbers[i]);
  return text + "]";
}

std::string json_metadata(const std::string& path, const std::map<std::string, std::string>& metadata) {
  std::string json = "\"__metadata__\":{";
  bool first = true;
  for (const auto& [key, value] : metadata) {
    if (invalid_utf8(key) >= 0 || invalid_utf8(value) >= 0)
      throw FileError("Q4212", "metadata is not UTF-8", {path, escape_name(key), -1, "", "", ""});
    if (!first) json += ',';
    first = false;
    append_json_string(json, key);
    json += ':';
    append_json_string(json, value);
  }
  return json + "}";
}

}  // namespace

FileLayout layout_dat(const std::string& path, std::vector<FileEntry> entries) {
  check_entries(path, entries);
  FileLayout layout;
  std::string header;
  append_leb128(header, entries.size());
  int64_t at = 0;
  for (FileEntry& entry : entries) {
    entry.header_offset = at + (at == 0 ? static_cast<int64_t>(header.size()) : 0);
    append_leb128(header, entry.name.size());
    header += entry.name;
    append_leb128(header, dat_type_number(entry.type));
    append_leb128(header, entry.shape.size());
    for (const int64_t dim : entry.shape) append_leb128(header, static_cast<uint64_t>(dim));
    layout.headers.emplace_back(at, std::move(header));
    entry.offset = at + static_cast<int64_t>(layout.headers.back().second.size());
    at = entry.offset + entry.bytes;
    header.clear();
  }
  if (!header.empty()) {  // no entries: the count alone
    at = static_cast<int64_t>(header.size());
    layout.headers.emplace_back(0, std::move(header));
  }
  layout.file_bytes = at;
  layout.entries = std::move(entries);
  FileIndex index;
  index.path = path;
  index.entries = layout.entries;
  check_dat_pairs(index);
  return layout;
}

FileLayout layout_safetensors(const std::string& path, std::vector<FileEntry> entries,
                              const std::map<std::string, std::string>& metadata) {
  check_entries(path, entries);
  FileLayout layout;
  layout.format = FileFormat::safetensors;
  std::vector<FileEntry*> order;
  for (FileEntry& entry : entries) {
    if (entry.type == FileType::e2m1x2) entry.type = FileType::u8;
    order.push_back(&entry);
  }
  std::stable_sort(order.begin(), order.end(), [](const FileEntry* a, const FileEntry* b) {
    return file_type_bytes(a->type) > file_type_bytes(b->type);
  });
  std::string json = "{";
  if (!metadata.empty()) json += json_metadata(path, metadata);
  int64_t at = 0;
  for (FileEntry* entry : order) {
    if (json.size() > 1) json += ',';
    append_json_string(json, entry->name);
    json += std::string(":{\"dtype\":\"") + safetensors_type_name(entry->type) +
            "\",\"shape\":" + json_numbers(entry->shape) +
            ",\"data_offsets\":" + json_numbers({at, at + entry->bytes}) + "}";
    entry->offset = at;
    at += entry->bytes;
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const auto length = static_cast<int64_t>(json.size());
  if (length > kMaxSafetensorsHeader)
    throw FileError("Q4230", "impossible header length",
                    {path, "", -1, "at most 100,000,000 bytes", std::to_string(length), "write several shards"});
  std::string header(8, '\0');
  for (int i = 0; i < 8; ++i) header[static_cast<size_t>(i)] = static_cast<char>(length >> (8 * i));
  header += json;
  for (FileEntry& entry : entries) entry.offset += 8 + length;
  layout.file_bytes = 8 + length + at;
  layout.headers.emplace_back(0, std::move(header));
  layout.entries = std::move(entries);
  return layout;
}

}  // namespace q4
