#include "core/file_writer.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <random>
#include <string_view>
#include <unordered_map>

#include "core/dat_index.h"
#include "core/file_convert.h"
#include "core/file_error.h"
#include "core/safetensors_index.h"

namespace q4 {

namespace {

constexpr int64_t kPieceElements = 512 << 10;  // at most 4 MiB of any type

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == path.npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

constexpr std::string_view kPrefix = ".q4run-", kSuffix = ".tmp";

// A short name of its own: adding to the target's could pass the file system's limit.
std::string temporary_name(const std::string& directory) {
  std::random_device random;
  char name[64];
  std::snprintf(name, sizeof name, "%ld-%08x%08x", static_cast<long>(getpid()), random(), random());
  return directory + "/" + std::string(kPrefix) + name + std::string(kSuffix);
}

// Removes what writers left behind that were killed: a living writer holds a lock on its file.
void sweep(const std::string& directory) {
  DIR* listing = opendir(directory.c_str());
  if (!listing) return;
  while (const dirent* entry = readdir(listing)) {
    const std::string_view name = entry->d_name;
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    const int fd = openat(dirfd(listing), entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) continue;
    struct stat state;
    if (fstat(fd, &state) == 0 && S_ISREG(state.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
      unlinkat(dirfd(listing), entry->d_name, 0);
    close(fd);
  }
  closedir(listing);
}

// Creates a locked temporary file. Another process may sweep it away between its creation and the lock: then try again.
int create_temporary(const std::string& directory, const std::string& path, std::string& name) {
  for (;;) {
    name = temporary_name(directory);
    const int fd = open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) throw_errno("Q4413", "cannot write the file", path, errno);
    struct stat state;
    // File systems without locks are written to all the same; nobody sweeps there either.
    const bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
    if (locked && fstat(fd, &state) == 0 && state.st_nlink > 0) return fd;
    close(fd);
    unlink(name.c_str());
  }
}

void check_room(const std::string& path, const std::string& directory, int64_t bytes) {
  struct statvfs state;
  if (statvfs(directory.c_str(), &state) != 0 || state.f_blocks == 0) return;  // unknown: the writes will tell
  const auto free = static_cast<unsigned __int128>(state.f_bavail) * state.f_frsize;
  if (free >= static_cast<unsigned __int128>(bytes)) return;
  throw FileError(
      "Q4412", "the disk has not enough room for the file",
      {path, "", -1, std::to_string(bytes) + " bytes", std::to_string(static_cast<uint64_t>(free)) + " free",
       "free space on that file system, or write somewhere else"});
}

// What the parser will check as a scale when the file is read again.
TensorPart part_of(const FileLayout& layout, const FileEntry& entry) {
  if (layout.format != FileFormat::dat) return TensorPart::data;
  if (entry.name.ends_with(".global_scale")) return TensorPart::global_scale;
  if (entry.name.ends_with(".scale")) return TensorPart::scale;
  return entry.name.ends_with(".qdata") ? TensorPart::qdata : TensorPart::data;
}

}  // namespace

FileWriter::FileWriter(std::string path, FileLayout layout) : path_(std::move(path)), layout_(std::move(layout)) {
  if (path_.empty() || path_.back() == '/' || path_.find('\0') != path_.npos)
    throw FileError("Q4413", "a file name is empty, ends in a slash or holds a zero byte", {path_, "", -1, "", "", ""});
  struct stat state;
  if (stat(path_.c_str(), &state) == 0 && !S_ISREG(state.st_mode))
    throw FileError("Q4202", "not a regular file",
                    {path_, "", -1, "a file name to write to",
                     S_ISDIR(state.st_mode) ? "a directory" : "something else", "name the file itself"});
  const std::string directory = directory_of(path_);
  written_.assign(layout_.entries.size(), 0);
  sweep(directory);
  fd_ = create_temporary(directory, path_, temporary_);
  try {
    check_room(path_, directory, layout_.file_bytes);
    for (const auto& [offset, bytes] : layout_.headers) put(offset, bytes.data(), static_cast<int64_t>(bytes.size()));
  } catch (...) {
    abort();
    throw;
  }
}

FileWriter::~FileWriter() { abort(); }

void FileWriter::abort() noexcept {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  if (!temporary_.empty()) unlink(temporary_.c_str());
  temporary_.clear();
}

void FileWriter::put(int64_t offset, const void* data, int64_t bytes) {
  const auto* from = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t did = pwrite(fd_, from, static_cast<size_t>(bytes), offset);
    if (did < 0 && errno == EINTR) continue;
    if (did <= 0) throw_errno("Q4413", "cannot write the file", path_, did < 0 ? errno : ENOSPC);
    from += did, offset += did, bytes -= did;
  }
}

void FileWriter::begin_entry(size_t entry) {
  if (fd_ < 0) throw Error("Q4227", "this file writer is closed");
  if (entry >= layout_.entries.size() || written_[entry])
    throw Error("Q4227", "a file entry is written twice or unknown");
}

void FileWriter::stream(size_t index, TensorPart part, FileType from, int64_t elements, const Fetch& fetch,
                        const Options& options) {
  const FileEntry& entry = layout_.entries[index];
  const int64_t from_size = file_type_bytes(from), to_size = file_type_bytes(entry.type);
  const bool same = from_size == to_size && (from == entry.type || part == TensorPart::qdata);
  const int64_t piece = std::min(kPieceElements, elements);
  std::vector<double> scratch(static_cast<size_t>((piece * from_size + 7) / 8));
  std::vector<double> converted(same ? 0 : static_cast<size_t>((piece * to_size + 7) / 8));
  for (int64_t first = 0; first < elements; first += piece) {
    if (options.cancel && *options.cancel) throw Error("Q4501", "cancelled");
    const int64_t n = std::min(piece, elements - first);
    const void* values = fetch(first, n, scratch.data());
    check_piece(entry, part, from, values, first, n, options.allow_non_finite, path_);
    if (!same) {
      const int64_t lost = convert_elements(from, values, entry.type, converted.data(), n);
      if (lost >= 0 && !options.allow_non_finite)
        throw FileError("Q4226", "a value does not fit the tensor's type",
                        {path_, escape_name(entry.name), -1, std::string("values within ") + file_type_name(entry.type),
                         "element " + std::to_string(first + lost), "write this tensor as bf16 or fp32"});
      values = converted.data();
    }
    put(entry.offset + first * to_size, values, n * to_size);
    if (options.progress) options.progress(n * to_size);
  }
  written_[index] = 1;
}

void FileWriter::write_tensor(size_t index, Backend& backend, const Tensor& tensor, TensorPart part,
                              const std::string& name, const Options& options) {
  begin_entry(index);
  const PartView view = view_part(tensor, part, name);
  check_part_fits(layout_.entries[index], view, part, view.type, layout_.entries[index].type, path_);
  const int64_t size = file_type_bytes(view.type);
  const bool direct = backend.host_accessible();
  if (direct) backend.synchronize();
  stream(
      index, part, view.type, view.elements,
      [&](int64_t first, int64_t n, void* scratch) -> const void* {
        const uint8_t* memory = view.memory + first * size;
        if (direct) return memory;
        backend.download(scratch, memory, n * size);
        return scratch;
      },
      options);
}

void FileWriter::write_host(size_t index, FileType type, const void* data, int64_t elements, const Options& options) {
  begin_entry(index);
  const FileEntry& entry = layout_.entries[index];
  PartView view;
  view.shape = entry.shape;
  const TensorPart part = part_of(layout_, entry);
  check_part_fits(entry, view, part, type, entry.type, path_);
  if (elements * file_type_bytes(entry.type) != entry.bytes)
    throw Error("Q4227", "the data for entry '" + escape_name(entry.name) + "' has " + std::to_string(elements) +
                             " elements, its shape is " + shape_text(entry.shape));
  stream(
      index, part, type, elements,
      [&](int64_t first, int64_t, void*) -> const void* {
        return static_cast<const uint8_t*>(data) + first * file_type_bytes(type);
      },
      options);
}

void FileWriter::write_piece(size_t index, int64_t offset, const void* data, int64_t bytes) {
  const FileEntry& entry = layout_.entries.at(index);
  if (fd_ < 0 || offset < 0 || bytes < 0 || offset > entry.bytes - bytes)
    throw Error("Q4227", "a piece of a file entry lies outside it");
  put(entry.offset + offset, data, bytes);
}

void FileWriter::end_entry(size_t index) {
  begin_entry(index);
  written_[index] = 1;
}

void FileWriter::flush_early() const {
#if defined(SYNC_FILE_RANGE_WRITE)
  if (fd_ >= 0) sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE);  // advice: commit() is what must not fail
#endif
}

void FileWriter::read_back() const {
  const FileIndex index = layout_.format == FileFormat::dat ? index_dat(temporary_) : index_safetensors(temporary_);
  std::unordered_map<std::string_view, const FileEntry*> found;
  for (const FileEntry& entry : index.entries) found.emplace(entry.name, &entry);
  bool same = index.file_bytes == layout_.file_bytes && index.entries.size() == layout_.entries.size();
  for (const FileEntry& entry : layout_.entries) {
    const auto read = found.find(entry.name);
    same = same && read != found.end() && read->second->type == entry.type && read->second->shape == entry.shape &&
           read->second->offset == entry.offset;
  }
  if (!same)
    throw FileError("Q4241", "the file that was written reads back differently",
                    {path_, "", -1, std::to_string(layout_.entries.size()) + " entries",
                     std::to_string(index.entries.size()), "the disk may be failing; nothing was put in place"});
}

int64_t FileWriter::commit() {
  if (fd_ < 0) throw Error("Q4227", "this file writer is closed");
  for (size_t i = 0; i < written_.size(); ++i)
    if (!written_[i]) throw Error("Q4227", "entry '" + escape_name(layout_.entries[i].name) + "' was never written");
  // Trailing empty payloads write nothing, but the size is fixed by the headers; a short file would not parse.
  if (fsync(fd_) != 0) throw_errno("Q4413", "cannot write the file", path_, errno);
  read_back();
  if (rename(temporary_.c_str(), path_.c_str()) != 0)
    throw_errno("Q4413", "cannot rename the file into place", path_, errno);
  temporary_.clear();
  close(fd_);
  fd_ = -1;
  const int directory = open(directory_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    // The rename has happened; a file system that cannot sync directories (EINVAL) keeps its own promises.
    const bool failed = fsync(directory) != 0 && errno != EINVAL && errno != ENOTSUP;
    const int error_number = errno;
    close(directory);
    if (failed) throw_errno("Q4413", "cannot write the directory of the file", path_, error_number);
  }
  return layout_.file_bytes;
}

}  // namespace q4
