// Writes a tensor file aside, reads it back with the parser that readers use, and renames it into place: a file under the
// wanted name is always whole. Nothing is left behind when the writer is destroyed before commit(); what a killed process
// left is removed by the next writer in that directory.
#pragma once
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/file_layout.h"
#include "core/file_parts.h"

namespace q4 {

class FileWriter {
 public:
  // Creates the temporary file in the directory of `path` and writes the headers. Q4202 when `path` is something other
  // than a regular file, Q4413 when it cannot be written, Q4412 when the disk has not enough room.
  FileWriter(std::string path, FileLayout layout);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  const FileLayout& layout() const { return layout_; }
  // Where the file will be put.
  const std::string& path() const { return path_; }

  struct Options {
    bool allow_non_finite = false;
    const std::atomic<bool>* cancel = nullptr;
    std::function<void(int64_t bytes)> progress;  // bytes written since the last call
  };
  // Each entry is written once. Plain values are converted to the entry's type (round to nearest even; Q4226 when one
  // overflows). Q4219/Q4220 for values that a reader would refuse, Q4224/Q4225 for a shape or type that does not fit.
  void write_tensor(size_t entry, Backend& backend, const Tensor& tensor, TensorPart part, const std::string& name,
                    const Options& options);
  // `elements` values of type `type` in host memory.
  void write_host(size_t entry, FileType type, const void* data, int64_t elements, const Options& options);
  // A piece of an entry's payload as it will stand there, from any thread; the caller has checked its values. Whoever has
  // written all of them says so once.
  void write_piece(size_t entry, int64_t offset, const void* data, int64_t bytes);
  void end_entry(size_t entry);
  // Starts writing what the file system still holds in memory, without waiting: less to wait for in commit().
  void flush_early() const;

  // Syncs, reads back (Q4241 when that differs from the layout), renames and syncs the directory. Returns the file's bytes.
  int64_t commit();
  // Removes the temporary file; safe at any time, also twice.
  void abort() noexcept;

 private:
  using Fetch = std::function<const void*(int64_t first, int64_t n, void* scratch)>;
  void stream(size_t entry, TensorPart part, FileType from, int64_t elements, const Fetch& fetch,
              const Options& options);
  void put(int64_t offset, const void* data, int64_t bytes);
  void begin_entry(size_t entry);
  void read_back() const;
  std::string path_, temporary_;
  FileLayout layout_;
  std::vector<uint8_t> written_;
  int fd_ = -1;
};

}  // namespace q4
