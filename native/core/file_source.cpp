#include "core/file_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

namespace q4 {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian and read without swapping");

namespace {

#if defined(__APPLE__)
int64_t modified(const struct stat& s) {
  return int64_t{s.st_mtimespec.tv_sec} * 1'000'000'000 + s.st_mtimespec.tv_nsec;
}
#else
int64_t modified(const struct stat& s) { return int64_t{s.st_mtim.tv_sec} * 1'000'000'000 + s.st_mtim.tv_nsec; }
#endif

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  if (S_ISSOCK(mode)) return "a socket";
  return "something else";
}

[[noreturn]] void refuse_kind(const std::string& path, const std::string& found) {
  FileProblem problem{path, "", -1, "a regular file", found, "name the weight file itself"};
  throw FileError("Q4202", "not a regular file", problem);
}

}  // namespace

void MemorySource::read(int64_t offset, void* into, int64_t bytes) const {
  if (bytes > 0) std::memcpy(into, data_ + offset, static_cast<size_t>(bytes));
}

FileSource::FileSource(const std::string& path) : path_(path) {
  if (path.empty() || path.find('\0') != path.npos)
    throw FileError("Q4201", "a file name is empty or holds a zero byte", {path, "", -1, "", "", ""});
  // O_NONBLOCK: opening a pipe must not wait for a writer.
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) {
    if (errno == ENXIO) refuse_kind(path, "a socket or device");
    throw_errno("Q4201", "cannot open the file", path, errno);
  }
  struct stat state;
  if (fstat(fd_, &state) != 0) {
    const int error_number = errno;
    close(fd_);
    throw_errno("Q4201", "cannot open the file", path, error_number);
  }
  if (!S_ISREG(state.st_mode)) {
    close(fd_);
    refuse_kind(path, kind_of(state.st_mode));
  }
  size_ = state.st_size, modified_ns_ = modified(state);
}

FileSource::~FileSource() { close(fd_); }

void FileSource::changed(const std::string& found) const {
  FileProblem problem{path_, "",
                      -1,    std::to_string(size_) + " bytes that stay as they are",
                      found, "another process wrote to the file; wait until it is done and start again"};
  throw FileError("Q4221", "the file changed while it was read", problem);
}

void FileSource::read(int64_t offset, void* into, int64_t bytes) const {
  auto* out = static_cast<uint8_t*>(into);
  while (bytes > 0) {
    // Linux transfers at most 0x7ffff000 bytes a call.
    const ssize_t got = pread(fd_, out, static_cast<size_t>(std::min<int64_t>(bytes, 1 << 30)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("Q4205", "cannot read the file", path_, errno);
    if (got == 0) changed("the end of the file at byte " + std::to_string(offset));
    out += got, offset += got, bytes -= got;
  }
}

void FileSource::check_unchanged() const {
  struct stat state;
  if (fstat(fd_, &state) != 0) throw_errno("Q4205", "cannot read the file", path_, errno);
  if (state.st_size != size_) changed(std::to_string(state.st_size) + " bytes");
  if (modified(state) != modified_ns_) changed("a newer modification time");
}

void FileSource::expect_sequential() const {
#if defined(POSIX_FADV_SEQUENTIAL)
  posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
}

uint8_t SourceCursor::next() {
  uint8_t byte;
  take(&byte, 1);
  return byte;
}

void SourceCursor::take(void* into, int64_t bytes) {
  auto* out = static_cast<uint8_t*>(into);
  while (bytes > 0) {
    if (position_ < begin_ || position_ >= end_) {
      const int64_t fill = std::min(kBuffer, left());
      buffer_.resize(static_cast<size_t>(fill));
      source_.read(position_, buffer_.data(), fill);
      begin_ = position_, end_ = position_ + fill;
    }
    const int64_t piece = std::min(bytes, end_ - position_);
    std::memcpy(out, buffer_.data() + (position_ - begin_), static_cast<size_t>(piece));
    out += piece, position_ += piece, bytes -= piece;
  }
}

}  // namespace q4
