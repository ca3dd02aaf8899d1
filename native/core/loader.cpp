#include "core/loader.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <vector>

#include "core/file_convert.h"
#include "core/file_source.h"
#include "core/file_threads.h"

namespace q4 {

namespace {

constexpr int64_t kPieceBytes = 256 << 10;  // stays in a core's cache between reading, checking and converting
// What one thread takes at a time: a huge page of the target, so that no two threads make the kernel clear the same one.
constexpr int64_t kSpanBytes = 2 << 20;
// One staging buffer: so much that starting the threads anew for each costs nothing beside reading it. Its spans are
// small, so that no thread is left waiting for long for the last one.
constexpr int64_t kStageBytes = 32 << 20;
constexpr int64_t kStageSpanBytes = 512 << 10;

void check_index(const FileSource& source, int64_t file_bytes, int64_t modified_ns) {
  if (source.size() == file_bytes && source.modified_ns() == modified_ns) return;
  throw FileError("Q4221", "the file changed after it was checked",
                  {source.path(), "", -1, std::to_string(file_bytes) + " bytes, not modified since",
                   source.size() == file_bytes ? "a newer modification time" : std::to_string(source.size()) + " bytes",
                   "another process replaced the file; start again"});
}

// An index comes through JavaScript: nothing in it is believed.
void check_entry(const FileEntry& entry, int64_t file_bytes) {
  const int64_t bytes = payload_bytes(entry.type, entry.shape);
  if (bytes < 0 || bytes != entry.bytes || entry.offset < 0 || entry.offset > file_bytes ||
      bytes > file_bytes - entry.offset)
    throw Error("Q4227", "the index of entry '" + escape_name(entry.name) + "' contradicts itself");
}

class Loader {
 public:
  Loader(Backend& backend, const LoadJob& job, const std::atomic<bool>& cancel, const LoadProgress& progress)
      : backend_(backend),
        job_(job),
        cancel_(cancel),
        progress_(progress),
        source_(job.path),
        threads_(file_threads()) {}

  LoadReport run() {
    const auto begin = std::chrono::steady_clock::now();
    check_index(source_, job_.file_bytes, job_.modified_ns);
    plan();
    source_.expect_sequential();
    if (backend_.host_accessible())
      load_to_host();
    else
      load_to_device();
    source_.check_unchanged();
    if (progress_) progress_(report_.bytes, report_.bytes);
    report_.floor_blocks = floor_.load();
    report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return report_;
  }

 private:
  struct Target {
    const LoadRequest* request;
    PartView view;
    int64_t from_size, to_size;
    int64_t piece;  // elements
  };
  struct Span {
    const Target* target;
    int64_t first, n;  // elements
    uint8_t* into;
  };

  void plan() {
    std::set<std::pair<std::string, TensorPart>> seen;
    for (const LoadRequest& request : job_.requests) {
      check_entry(request.entry, job_.file_bytes);
      Target target{&request, view_part(request.target, request.part, request.tensor), 0, 0, 0};
      check_part_fits(request.entry, target.view, request.part, request.entry.type, target.view.type, job_.path);
      if (!seen.emplace(request.tensor, request.part).second)
        throw Error("Q4227", "two entries go into tensor '" + escape_name(request.tensor) + "'");
      target.from_size = file_type_bytes(request.entry.type), target.to_size = file_type_bytes(target.view.type);
      target.piece = kPieceBytes / std::max(target.from_size, target.to_size);
      report_.bytes += request.entry.bytes;
      if (request.part == TensorPart::scale) report_.scale_blocks += target.view.elements;
      targets_.push_back(target);
    }
    std::sort(targets_.begin(), targets_.end(),
              [](const Target& a, const Target& b) { return a.request->entry.offset < b.request->entry.offset; });
  }

  // Elements [begin, end) that will stand at `into`, cut where addresses are multiples of `span_bytes`.
  static void cut(const Target& target, int64_t begin, int64_t end, uint8_t* into, int64_t span_bytes,
                  std::vector<Span>& spans) {
    for (int64_t first = begin; first < end;) {
      const int64_t room = span_bytes - static_cast<int64_t>(reinterpret_cast<uintptr_t>(into) % span_bytes);
      const int64_t n = std::min(std::max<int64_t>(room / target.to_size, 1), end - first);
      spans.push_back({&target, first, n, into});
      first += n, into += n * target.to_size;
    }
  }

  // Reads one span, checked and converted piece by piece.
  void fill(const Span& span) {
    const int64_t piece = span.target->piece, end = span.first + span.n;
    for (int64_t first = span.first; first < end; first += piece)
      fill_piece(*span.target, first, std::min(piece, end - first),
                 span.into + (first - span.first) * span.target->to_size);
  }
  void fill(const std::vector<Span>& spans) {
    run_in_threads(
        static_cast<int64_t>(spans.size()), threads_, cancel_, [&](int64_t i) { fill(spans[static_cast<size_t>(i)]); },
        [&] { tell(); });
  }

  void fill_piece(const Target& target, int64_t first, int64_t n, uint8_t* into) {
    const FileEntry& entry = target.request->entry;
    const bool same = entry.type == target.view.type || target.request->part == TensorPart::qdata;
    thread_local std::vector<double> buffer;  // doubles: aligned for every type
    if (!same) buffer.resize(kPieceBytes / sizeof(double));
    void* raw = same ? static_cast<void*>(into) : buffer.data();
    const int64_t bytes = n * target.from_size;
    source_.read(entry.offset + first * target.from_size, raw, bytes);
    const int64_t floor =
        check_piece(entry, target.request->part, entry.type, raw, first, n, job_.allow_non_finite, job_.path);
    if (floor) floor_ += floor;
    if (!same) {
      const int64_t lost = convert_elements(entry.type, raw, target.view.type, into, n);
      if (lost >= 0 && !job_.allow_non_finite)
        throw FileError("Q4226", "a value does not fit the tensor's type",
                        {job_.path, escape_name(entry.name), entry.offset + (first + lost) * target.from_size,
                         std::string("values within ") + file_type_name(target.view.type),
                         "element " + std::to_string(first + lost), "use a wider dtype for this tensor"});
    }
    done_ += bytes;
  }

  void tell() {
    if (progress_) progress_(done_.load(), report_.bytes);
  }

  void load_to_host() {
    std::vector<Span> spans;
    for (const Target& target : targets_) cut(target, 0, target.view.elements, target.view.memory, kSpanBytes, spans);
    fill(spans);
  }

  // While one staging buffer is being copied to the device, the other is filled, with as many tensors as it holds.
  void load_to_device() {
    struct Copy {
      uint8_t* target;
      int64_t offset, bytes;
    };
    std::vector<Span> spans;
    std::vector<Copy> copies;
    int slot = 0;
    size_t next = 0;        // target to go on with
    int64_t next_from = 0;  // and its element
    while (next < targets_.size()) {
      auto* stage = static_cast<uint8_t*>(backend_.staging(slot, kStageBytes));
      spans.clear(), copies.clear();
      for (int64_t used = 0; next < targets_.size();) {
        const Target& target = targets_[next];
        const int64_t n = std::min((kStageBytes - used) / target.to_size, target.view.elements - next_from);
        if (n <= 0) break;
        cut(target, next_from, next_from + n, stage + used, kStageSpanBytes, spans);
        copies.push_back({target.view.memory + next_from * target.to_size, used, n * target.to_size});
        used = align_up(used + n * target.to_size);
        next_from += n;
        if (next_from < target.view.elements) break;  // the buffer is full
        ++next, next_from = 0;
      }
      fill(spans);
      for (const Copy& copy : copies) backend_.upload_staged(copy.target, slot, copy.offset, copy.bytes);
      slot ^= 1;
    }
    backend_.synchronize();
  }

  Backend& backend_;
  const LoadJob& job_;
  const std::atomic<bool>& cancel_;
  const LoadProgress& progress_;
  FileSource source_;
  int threads_;
  std::vector<Target> targets_;
  std::atomic<int64_t> done_{0}, floor_{0};
  LoadReport report_;
};

}  // namespace

LoadReport load_entries(Backend& backend, const LoadJob& job, const std::atomic<bool>& cancel,
                        const LoadProgress& progress) {
  return Loader(backend, job, cancel, progress).run();
}

void read_entry(const std::string& path, int64_t file_bytes, int64_t modified_ns, const FileEntry& entry, void* into) {
  const FileSource source(path);
  check_index(source, file_bytes, modified_ns);
  check_entry(entry, file_bytes);
  source.read(entry.offset, into, entry.bytes);
  source.check_unchanged();
}

}  // namespace q4
