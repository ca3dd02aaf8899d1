// Writes one tensor file from the entries of others in a single pass: plain values are converted, matrices quantised to
// NVFP4 or decoded from it, codes and scales taken over as they are. Memory is a few pieces a thread, whatever the size of
// a tensor. The caller owns the writer, and commits when everything else is in place too.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/file_parts.h"
#include "core/file_writer.h"
#include "core/weight_kernels.h"

namespace q4 {

// A file as its index saw it; one that differs is refused (Q4221).
struct TranscodeFile {
  std::string path;
  int64_t file_bytes = 0, modified_ns = 0;
};

struct TranscodeEntry {
  int file = -1;  // in TranscodeJob::files; -1: none
  FileEntry entry;
};

// Values to be read: plain ones, or an NVFP4 matrix from its parts (possibly of several files).
struct TranscodeSource {
  TranscodeEntry plain;
  TranscodeEntry codes, scales;
  float global_scale = 1;
  bool nvfp4() const { return codes.file >= 0; }
};

struct TranscodeAction {
  // copy: the bytes of `plain` become those of an entry, checked as `part`.  convert: values become plain ones of the
  // entry's type.  quantise: values become codes and scales.  data: the entry is given.
  enum class Kind : uint8_t { copy, convert, quantise, data } kind = Kind::copy;
  TranscodeSource source;
  TensorPart part = TensorPart::data;
  size_t entry = 0;           // of the output; the codes when quantising
  size_t scale_entry = 0;     // quantise
  int64_t global_entry = -1;  // quantise: f32 [1]; -1: block scales alone
  // Quantise: actions with one number, which stand side by side, share a global scale from the amax of all of them.
  int64_t group = 0;
  ScaleSearch search = ScaleSearch::amax;
  std::vector<uint8_t> data;
};

struct TranscodeJob {
  std::vector<TranscodeFile> files;
  std::vector<TranscodeAction> actions;
};

struct QuantiseReport {
  size_t action = 0;
  int64_t elements = 0;
  float amax = 0, global_scale = 1;  // amax of the group; 0 when nothing needed it
  QuantiseSums sums;
};

struct TranscodeReport {
  int64_t source_bytes = 0;
  double seconds = 0;
  std::vector<QuantiseReport> quantised;  // in the order of the actions
};

using TranscodeProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

// Writes every entry of `writer`. Throws FileError: Q4201/Q4202/Q4205/Q4221 for a source, Q4219/Q4220 for a value,
// Q4217/Q4225 for an entry that does not fit, Q4226 for a value that the new type cannot hold, Q4412/Q4413 for the output,
// Q4501 when cancelled. The file is the same whatever the number of threads. `progress` is called from one thread, in bytes
// of sources.
TranscodeReport transcode(FileWriter& writer, const TranscodeJob& job, const WeightKernels& kernels,
                          const std::atomic<bool>& cancel, const TranscodeProgress& progress);

}  // namespace q4
