// Streams entries of a tensor file into device memory, in large pieces and by several threads, checking every value on
// the way. Memory beyond the tensors: one piece a thread, or the backend's two staging buffers.
#pragma once
#include <atomic>
#include <functional>
#include <memory>

#include "core/file_parts.h"
#include "core/store.h"

namespace q4 {

struct LoadRequest {
  FileEntry entry;
  TensorPart part = TensorPart::data;
  Tensor target;
  std::shared_ptr<Allocation> held;  // keeps the target's memory while it is filled
  std::string tensor;                // its name in the store
};

struct LoadJob {
  std::string path;
  // What the index saw; a file that differs is refused (Q4221).
  int64_t file_bytes = 0, modified_ns = 0;
  std::vector<LoadRequest> requests;
  bool allow_non_finite = false;
};

struct LoadReport {
  int64_t bytes = 0;  // read from the file
  double seconds = 0;
  int64_t scale_blocks = 0, floor_blocks = 0;  // block scales, and those at exactly 2^-6
};

using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

// Throws FileError: Q4201/Q4202/Q4205/Q4221 for the file, Q4219/Q4220/Q4226 for a value (the first in the order of the
// file, whatever the threads), Q4224/Q4225 for an entry that does not fit, Q4501 when cancelled. Targets are then half
// filled: free them. `progress` is called from one thread.
LoadReport load_entries(Backend& backend, const LoadJob& job, const std::atomic<bool>& cancel,
                        const LoadProgress& progress);

// One entry's payload as it stands in the file; `into` holds entry.bytes.
void read_entry(const std::string& path, int64_t file_bytes, int64_t modified_ns, const FileEntry& entry, void* into);

}  // namespace q4
