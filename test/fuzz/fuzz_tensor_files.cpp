// libFuzzer target for the parsers of tensor files, as a plain library: no Node, no device.
//   Q4_FUZZ_SAFETENSORS selects the safetensors parser; otherwise the .dat parser is built.
// Whatever the bytes: an index whose entries lie inside the file, or a FileError with a code and a readable message. What
// is accepted is also laid out again by the writer and parsed once more: same entries, and for .dat the same bytes.
#include <cstdlib>
#include <cstring>

#include "core/dat_index.h"
#include "core/file_convert.h"
#include "core/file_layout.h"
#include "core/file_parts.h"
#include "core/safetensors_index.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

q4::FileIndex parse(const q4::ByteSource& source) {
#ifdef Q4_FUZZ_SAFETENSORS
  return q4::parse_safetensors(source);
#else
  return q4::parse_dat(source);
#endif
}

void check_message(const q4::FileError& error) {
  require(error.code().size() == 5 && error.code()[0] == 'Q' && !error.brief().empty());
  for (const char c : std::string(error.what())) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  require(std::strlen(error.what()) < 4096);
}

// Values are checked while they stream: any bytes may be there.
void check_values(const q4::FileEntry& entry, const uint8_t* data) {
  const int64_t n = entry.bytes / q4::file_type_bytes(entry.type);
  std::vector<double> aligned(static_cast<size_t>(entry.bytes / 8 + 1));
  if (entry.bytes > 0) std::memcpy(aligned.data(), data + entry.offset, static_cast<size_t>(entry.bytes));
  const auto part = entry.type == q4::FileType::e4m3 ? q4::TensorPart::scale : q4::TensorPart::data;
  try {
    q4::check_piece(entry, part, entry.type, aligned.data(), 0, n, false, "memory");
  } catch (const q4::FileError& error) {
    check_message(error);
  }
  std::vector<double> converted(static_cast<size_t>(n + 1));
  for (int to = 0; to < q4::kFileTypes; ++to)
    if (q4::can_convert(entry.type, static_cast<q4::FileType>(to)))
      q4::convert_elements(entry.type, aligned.data(), static_cast<q4::FileType>(to), converted.data(), n);
}

void check_index(const q4::FileIndex& index, const uint8_t* data, int64_t size) {
  require(index.file_bytes == size);
  for (const q4::FileEntry& entry : index.entries) {
    require(!entry.name.empty() && entry.offset >= 0 && entry.bytes >= 0 && entry.offset + entry.bytes <= size);
    require(entry.bytes == q4::payload_bytes(entry.type, entry.shape));
    check_values(entry, data);
  }
}

void check_round_trip(const q4::FileIndex& index, const uint8_t* data) {
#ifdef Q4_FUZZ_SAFETENSORS
  const q4::FileLayout layout = q4::layout_safetensors("memory", index.entries, index.metadata);
#else
  const q4::FileLayout layout = q4::layout_dat("memory", index.entries);
  require(layout.file_bytes == index.file_bytes);
#endif
  std::vector<uint8_t> bytes(static_cast<size_t>(layout.file_bytes));
  for (const auto& [offset, header] : layout.headers) std::memcpy(bytes.data() + offset, header.data(), header.size());
  for (size_t i = 0; i < layout.entries.size(); ++i)
    if (index.entries[i].bytes > 0)
      std::memcpy(bytes.data() + layout.entries[i].offset, data + index.entries[i].offset,
                  static_cast<size_t>(index.entries[i].bytes));
#ifndef Q4_FUZZ_SAFETENSORS
  require(std::memcmp(bytes.data(), data, bytes.size()) == 0);
#endif
  const q4::FileIndex again = parse(q4::MemorySource(bytes.data(), bytes.size()));
  require(again.entries.size() == index.entries.size() && again.metadata == index.metadata);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const q4::FileIndex index = parse(q4::MemorySource(data, size));
    check_index(index, data, static_cast<int64_t>(size));
    check_round_trip(index, data);
  } catch (const q4::FileError& error) {
    check_message(error);
  }
  return 0;
}
