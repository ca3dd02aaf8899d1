// Where bytes are read from: a regular file, opened once, or memory (fuzzers, tests). Reads never pass the end.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/file_error.h"

namespace q4 {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual const std::string& path() const = 0;
  virtual int64_t size() const = 0;
  // Reads exactly `bytes` at `offset`, which lie inside size(). Thread-safe. Q4221 when the file got shorter meanwhile.
  virtual void read(int64_t offset, void* into, int64_t bytes) const = 0;
};

class MemorySource : public ByteSource {
 public:
  MemorySource(const uint8_t* data, size_t bytes) : data_(data), bytes_(static_cast<int64_t>(bytes)) {}
  const std::string& path() const override { return path_; }
  int64_t size() const override { return bytes_; }
  void read(int64_t offset, void* into, int64_t bytes) const override;

 private:
  const uint8_t* data_;
  int64_t bytes_;
  std::string path_ = "memory";
};

// A regular file held open for reading; size and modification time are the descriptor's.
class FileSource : public ByteSource {
 public:
  // Q4201 cannot be opened, Q4202 not a regular file.
  explicit FileSource(const std::string& path);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  const std::string& path() const override { return path_; }
  int64_t size() const override { return size_; }
  int64_t modified_ns() const { return modified_ns_; }
  void read(int64_t offset, void* into, int64_t bytes) const override;
  // Throws Q4221 unless size and modification time are still what they were when the file was opened.
  void check_unchanged() const;
  // Tells the kernel that the payloads will be read in order.
  void expect_sequential() const;

 private:
  [[noreturn]] void changed(const std::string& found) const;
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0, modified_ns_ = 0;
};

// Reads a source from front to back through a small buffer; skipping over payloads reads nothing.
class SourceCursor {
 public:
  explicit SourceCursor(const ByteSource& source) : source_(source) {}
  int64_t position() const { return position_; }
  int64_t left() const { return source_.size() - position_; }
  // Both need left() ≥ what they take.
  uint8_t next();
  void take(void* into, int64_t bytes);
  void skip(int64_t bytes) { position_ += bytes; }

 private:
  static constexpr int64_t kBuffer = 16 << 10;
  const ByteSource& source_;
  int64_t position_ = 0, begin_ = 0, end_ = 0;  // the buffer holds [begin_, end_)
  std::vector<uint8_t> buffer_;
};

}  // namespace q4
