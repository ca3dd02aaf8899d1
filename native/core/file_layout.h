// Where everything will stand in a tensor file that is about to be written: known before the first byte is.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/file_types.h"

namespace q4 {

struct FileLayout {
  FileFormat format = FileFormat::dat;
  std::vector<FileEntry> entries;                        // in the caller's order, with offsets
  std::vector<std::pair<int64_t, std::string>> headers;  // bytes around the payloads, with their offsets
  int64_t file_bytes = 0;
};

// Both check what their reader would refuse: names, duplicates, sizes and, for .dat, pairs (the same codes; `path` is for
// the message). `entries` need name, type and shape.
FileLayout layout_dat(const std::string& path, std::vector<FileEntry> entries);
// Payloads are laid out by falling element size, so that each is aligned to its element. Packed E2M1 becomes U8.
FileLayout layout_safetensors(const std::string& path, std::vector<FileEntry> entries,
                              const std::map<std::string, std::string>& metadata);

}  // namespace q4
