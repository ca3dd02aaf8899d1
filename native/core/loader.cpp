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
constexpr int64_t kStageBytes = 16 << 20;   // one staging buffer

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
      : backend_(backend), job_(job), cancel_(cancel), progress_(progress), source_(job.path),
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
  struct Piece {
    const Target* target;
    int64_t first, n;  // elements
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

  static void cut(const Target& target, int64_t begin, int64_t end, std::vector<Piece>& pieces) {
    for (int64_t first = begin; first < end; first += target.piece)
      pieces.push_back({&target, first, std::min(target.piece, end - first)});
  }

  // Reads one piece into `into`, checked and converted.
  void fill(const Piece& piece, uint8_t* into) {
    const Target& target = *piece.target;
    const FileEntry& entry = target.request->entry;
    const bool same = entry.type == target.view.type || target.request->part == TensorPart::qdata;
    thread_local std::vector<double> buffer;  // doubles: aligned for every type
    if (!same) buffer.resize(kPieceBytes / sizeof(double));
    void* raw = same ? static_cast<void*>(into) : buffer.data();
    const int64_t bytes = piece.n * target.from_size;
    source_.read(entry.offset + piece.first * target.from_size, raw, bytes);
    const int64_t floor = check_piece(entry, target.request->part, entry.type, raw, piece.first, piece.n,
                                      job_.allow_non_finite, job_.path);
    if (floor) floor_ += floor;
    if (!same) {
      const int64_t lost = convert_elements(entry.type, raw, target.view.type, into, piece.n);
      if (lost >= 0 && !job_.allow_non_finite)
        throw FileError("Q4226", "a value does not fit the tensor's type",
                        {job_.path, escape_name(entry.name), entry.offset + (piece.first + lost) * target.from_size,
                         std::string("values within ") + file_type_name(target.view.type),
                         "element " + std::to_string(piece.first + lost), "use a wider dtype for this tensor"});
    }
    done_ += bytes;
  }

  void tell() {
    if (progress_) progress_(done_.load(), report_.bytes);
  }

  void load_to_host() {
    std::vector<Piece> pieces;
    for (const Target& target : targets_) cut(target, 0, target.view.elements, pieces);
    run_in_threads(
        static_cast<int64_t>(pieces.size()), threads_, cancel_,
        [&](int64_t i) {
          const Piece& piece = pieces[static_cast<size_t>(i)];
          fill(piece, piece.target->view.memory + piece.first * piece.target->to_size);
        },
        [&] { tell(); });
  }

  // While one staging buffer is being copied to the device, the other is filled.
  void load_to_device() {
    int slot = 0;
    std::vector<Piece> pieces;
    for (const Target& target : targets_) {
      const int64_t batch = kStageBytes / target.to_size;
      for (int64_t begin = 0; begin < target.view.elements; begin += batch, slot ^= 1) {
        const int64_t end = std::min(target.view.elements, begin + batch);
        auto* stage = static_cast<uint8_t*>(backend_.staging(slot, kStageBytes));
        pieces.clear();
        cut(target, begin, end, pieces);
        run_in_threads(
            static_cast<int64_t>(pieces.size()), threads_, cancel_,
            [&](int64_t i) {
              const Piece& piece = pieces[static_cast<size_t>(i)];
              fill(piece, stage + (piece.first - begin) * target.to_size);
            },
            [&] { tell(); });
        backend_.upload_staged(target.view.memory + begin * target.to_size, slot, (end - begin) * target.to_size);
      }
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
