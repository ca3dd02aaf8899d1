#include "core/transcode.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/file_convert.h"
#include "core/file_source.h"
#include "core/file_threads.h"
#include "core/nvfp4.h"
#include "core/tensor.h"

namespace q4 {

ScaleSearch scale_search_from_name(std::string_view name) {
  if (name == "amax") return ScaleSearch::amax;
  if (name == "four_over_six") return ScaleSearch::four_over_six;
  if (name == "mse") return ScaleSearch::mse;
  throw Error("Q4227", "unknown scale search '" + std::string(name) + "'");
}

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr int64_t kSpan = 256 << 10;     // elements that a thread takes at a time; what it reads stays in its cache
constexpr int64_t kSumSpan = 128 << 10;  // elements whose statistics are summed alone: their last bits depend on it
constexpr int64_t kSums = kSpan / kSumSpan;
constexpr int64_t kFlushBytes = 64 << 20;  // of sources, between two early flushes of the output

int64_t elements_of(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t dim : shape) n *= dim;
  return n;
}

DType dtype_of(FileType type) {
  if (type == FileType::f16) return DType::f16;
  return type == FileType::bf16 ? DType::bf16 : DType::f32;
}

struct Buffers {
  std::vector<double> raw, values, out;  // doubles: aligned for every type
  static void* at_least(std::vector<double>& buffer, int64_t bytes) {
    const size_t wanted = static_cast<size_t>((bytes + 7) / 8);
    if (buffer.size() < wanted) buffer.resize(wanted);
    return buffer.data();
  }
};

struct Span {
  const TranscodeAction* action;
  int64_t first, n;  // elements
};

class Transcoder {
 public:
  Transcoder(FileWriter& writer, const TranscodeJob& job, const WeightKernels& kernels, const std::atomic<bool>& cancel,
             const TranscodeProgress& progress)
      : writer_(writer), job_(job), kernels_(kernels), cancel_(cancel), progress_(progress), threads_(file_threads()) {
    for (const TranscodeFile& file : job.files) open(file);
    for (const TranscodeAction& action : job.actions) check(action, writer.layout());
  }

  ~Transcoder() { end_flush(); }
  Transcoder(const Transcoder&) = delete;
  Transcoder& operator=(const Transcoder&) = delete;

  TranscodeReport run() {
    const auto begin = Clock::now();
    for (size_t i = 0; i < job_.actions.size();) {
      size_t end = i + 1;
      if (job_.actions[i].kind == TranscodeAction::Kind::quantise) {
        while (end < job_.actions.size() && same_group(job_.actions[i], job_.actions[end])) ++end;
        quantise(i, end);
      } else {
        copy(job_.actions[i]);
      }
      i = end;
      if (done_ - flushed_ > kFlushBytes) flush_aside(), flushed_ = done_;
    }
    end_flush();
    for (const auto& source : sources_) source->check_unchanged();
    writer_.flush_early();
    report_.source_bytes = total_;
    report_.seconds = seconds_since(begin);
    if (progress_) progress_(total_, total_);
    return std::move(report_);
  }

 private:
  // Handing pages to the disk takes milliseconds, in which the next tensors are worked on. One flush at a time: what a
  // slow disk has not taken yet is left to the next one.
  void flush_aside() {
    if (flushing_.exchange(true)) return;
    end_flush();
    try {
      flusher_ = std::thread([this] {
        writer_.flush_early();
        flushing_ = false;
      });
    } catch (const std::system_error&) {
      flushing_ = false;  // no thread to be had: commit() writes everything
    }
  }
  void end_flush() {
    if (flusher_.joinable()) flusher_.join();
  }

  static bool same_group(const TranscodeAction& a, const TranscodeAction& b) {
    return b.kind == TranscodeAction::Kind::quantise && a.group == b.group;
  }

  void open(const TranscodeFile& file) {
    auto source = std::make_unique<FileSource>(file.path);
    if (source->size() != file.file_bytes || source->modified_ns() != file.modified_ns)
      throw FileError("Q4221", "the file changed after it was checked",
                      {file.path, "", -1, std::to_string(file.file_bytes) + " bytes, not modified since",
                       "another size or modification time", "another process replaced the file; start again"});
    source->expect_sequential();
    sources_.push_back(std::move(source));
  }

  // The job comes through JavaScript: nothing in it is believed.
  void check_entry(const TranscodeEntry& from) {
    if (from.file < 0 || from.file >= static_cast<int>(job_.files.size()))
      throw Error("Q4227", "a file entry belongs to no file");
    const FileEntry& entry = from.entry;
    const int64_t bytes = payload_bytes(entry.type, entry.shape);
    const int64_t size = sources_[static_cast<size_t>(from.file)]->size();
    if (bytes < 0 || bytes != entry.bytes || entry.offset < 0 || entry.offset > size || bytes > size - entry.offset)
      throw Error("Q4227", "the index of entry '" + escape_name(entry.name) + "' contradicts itself");
    total_ += bytes;
  }

  const FileEntry& output(const FileLayout& layout, int64_t entry) const {
    if (entry < 0 || entry >= static_cast<int64_t>(layout.entries.size())) throw Error("Q4227", "no such file entry");
    return layout.entries[static_cast<size_t>(entry)];
  }

  void refuse(const TranscodeEntry& from, const char* code, const std::string& brief, const std::string& expected,
              const std::string& found) const {
    throw FileError(
        code, brief,
        {job_.files[static_cast<size_t>(from.file)].path, escape_name(from.entry.name), from.entry.offset, expected,
         found, "the file and the config belong to different models, or it is of another format"});
  }

  // Values of the source, and that they are what the kernels take.
  int64_t check_source(const TranscodeSource& source) {
    if (!source.nvfp4()) {
      check_entry(source.plain);
      const FileType type = source.plain.entry.type;
      if (type != FileType::f16 && type != FileType::bf16 && type != FileType::f32)
        refuse(source.plain, "Q4225", "a tensor's type is none of those that weights have", "f16, bf16 or f32",
               file_type_name(type));
      return elements_of(source.plain.entry.shape);
    }
    check_entry(source.codes);
    check_entry(source.scales);
    const int64_t blocks = elements_of(source.scales.entry.shape);
    if (file_type_bytes(source.codes.entry.type) != 1 || source.scales.entry.type != FileType::e4m3 ||
        source.codes.entry.bytes != blocks * (kBlock / 2))
      refuse(source.scales, "Q4217", "codes and block scales of a matrix do not match",
             "one e4m3 scale for 8 bytes of codes",
             shape_text(source.scales.entry.shape) + " for " + shape_text(source.codes.entry.shape));
    if (!(source.global_scale >= 0) || !std::isfinite(source.global_scale))
      refuse(source.codes, "Q4219", "a global scale is not a number that may stand there",
             "a finite number that is not negative", std::to_string(source.global_scale));
    return blocks * kBlock;
  }

  void check(const TranscodeAction& action, const FileLayout& layout) {
    using Kind = TranscodeAction::Kind;
    const FileEntry& entry = output(layout, static_cast<int64_t>(action.entry));
    const int64_t n = elements_of(entry.shape);
    const auto fits = [](bool ok) {
      if (!ok) throw Error("Q4227", "an entry to be written does not fit its source");
    };
    if (action.kind == Kind::data) return fits(static_cast<int64_t>(action.data.size()) == entry.bytes);
    if (action.kind == Kind::copy) {
      check_entry(action.source.plain);
      return fits(action.source.plain.entry.bytes == entry.bytes &&
                  file_type_bytes(action.source.plain.entry.type) == file_type_bytes(entry.type));
    }
    const int64_t values = check_source(action.source);
    if (action.kind == Kind::convert) return fits(values == n && can_convert(FileType::f32, entry.type));
    const FileEntry& scales = output(layout, static_cast<int64_t>(action.scale_entry));
    fits(values % kBlock == 0 && entry.bytes == values / 2 && scales.bytes == values / kBlock);
    if (action.global_entry >= 0) fits(output(layout, action.global_entry).bytes == 4);
  }

  const void* read(const TranscodeEntry& from, int64_t first, int64_t n, std::vector<double>& buffer) const {
    const int64_t size = file_type_bytes(from.entry.type);
    void* into = Buffers::at_least(buffer, n * size);
    sources_[static_cast<size_t>(from.file)]->read(from.entry.offset + first * size, into, n * size);
    return into;
  }

  const std::string& path_of(const TranscodeEntry& from) const {
    return job_.files[static_cast<size_t>(from.file)].path;
  }

  // Plain values of a span, in the type that values_type() says. Block scales are checked here, plain values elsewhere.
  const void* values(const TranscodeSource& source, const Span& span, Buffers& buffers) const {
    if (!source.nvfp4()) return read(source.plain, span.first, span.n, buffers.values);
    const int64_t block = span.first / kBlock, blocks = span.n / kBlock;
    const void* scales = read(source.scales, block, blocks, buffers.out);
    check_piece(source.scales.entry, TensorPart::scale, FileType::e4m3, scales, block, blocks, false,
                path_of(source.scales));
    const void* codes = read(source.codes, span.first / 2, span.n / 2, buffers.raw);
    auto* out = static_cast<float*>(Buffers::at_least(buffers.values, span.n * 4));
    kernels_.dequantise(static_cast<const uint8_t*>(codes), static_cast<const uint8_t*>(scales), blocks,
                        source.global_scale, out);
    return out;
  }
  static FileType values_type(const TranscodeSource& source) {
    return source.nvfp4() ? FileType::f32 : source.plain.entry.type;
  }

  void refuse_special(const TranscodeSource& source, const Span& span, const void* data) const {
    const TranscodeEntry& from = source.nvfp4() ? source.codes : source.plain;
    if (source.nvfp4())
      refuse(from, "Q4219", "a matrix holds values beyond fp32", "finite values", "codes × scales that overflow");
    check_piece(from.entry, TensorPart::data, from.entry.type, data, span.first, span.n, false, path_of(from));
  }

  void each(const std::vector<Span>& spans, const std::function<void(size_t, Buffers&)>& body) {
    run_in_threads(
        static_cast<int64_t>(spans.size()), threads_, cancel_,
        [&](int64_t i) {
          thread_local Buffers buffers;
          body(static_cast<size_t>(i), buffers);
        },
        [&] {
          if (progress_) progress_(std::min(done_.load(), total_), total_);
        });
  }

  static void cut(const TranscodeAction& action, int64_t elements, std::vector<Span>& spans) {
    for (int64_t first = 0; first < elements; first += kSpan)
      spans.push_back({&action, first, std::min(kSpan, elements - first)});
  }

  static int64_t values_of(const TranscodeAction& action) {
    return action.source.nvfp4() ? elements_of(action.source.scales.entry.shape) * kBlock
                                 : elements_of(action.source.plain.entry.shape);
  }
  static int64_t source_bytes(const TranscodeSource& source, int64_t n) {
    return source.nvfp4() ? n / 2 + n / kBlock : n * file_type_bytes(source.plain.entry.type);
  }

  void copy(const TranscodeAction& action) {
    using Kind = TranscodeAction::Kind;
    if (action.kind == Kind::data) {
      writer_.write_piece(action.entry, 0, action.data.data(), static_cast<int64_t>(action.data.size()));
      return writer_.end_entry(action.entry);
    }
    const FileEntry& entry = writer_.layout().entries[action.entry];
    std::vector<Span> spans;
    cut(action, values_of(action), spans);
    each(spans, [&](size_t i, Buffers& buffers) {
      const Span& span = spans[i];
      const int64_t size = file_type_bytes(entry.type);
      if (action.kind == Kind::copy) {
        const TranscodeEntry& from = action.source.plain;
        const void* raw = read(from, span.first, span.n, buffers.values);
        check_piece(from.entry, action.part, from.entry.type, raw, span.first, span.n, false, path_of(from));
        writer_.write_piece(action.entry, span.first * size, raw, span.n * size);
        done_ += span.n * size;
        return;
      }
      const FileType type = values_type(action.source);
      const void* from = values(action.source, span, buffers);
      if (first_non_finite(type, from, span.n) >= 0) refuse_special(action.source, span, from);
      const void* out = from;
      if (type != entry.type) {
        void* into = Buffers::at_least(buffers.out, span.n * size);
        const int64_t lost = convert_elements(type, from, entry.type, into, span.n);
        if (lost >= 0)
          throw FileError(
              "Q4226", "a value does not fit the tensor's type",
              {writer_.path(), escape_name(entry.name), -1, std::string("values within ") + file_type_name(entry.type),
               "element " + std::to_string(span.first + lost), "write this tensor as bf16 or fp32"});
        out = into;
      }
      writer_.write_piece(action.entry, span.first * size, out, span.n * size);
      done_ += source_bytes(action.source, span.n);
    });
    writer_.end_entry(action.entry);
  }

  // The largest magnitude of actions [begin, end); every value is looked at, so that what is not finite is refused here.
  float group_amax(const std::vector<Span>& spans) {
    std::vector<float> found(spans.size());
    each(spans, [&](size_t i, Buffers& buffers) {
      const Span& span = spans[i];
      const TranscodeSource& source = span.action->source;
      const void* data = values(source, span, buffers);
      found[i] = kernels_.amax(dtype_of(values_type(source)), data, span.n);
      if (!std::isfinite(found[i])) refuse_special(source, span, data);
    });
    float amax = 0;
    for (const float value : found) amax = std::max(amax, value);
    return amax;
  }

  void quantise(size_t begin, size_t end) {
    std::vector<Span> spans;
    for (size_t i = begin; i < end; ++i) cut(job_.actions[i], values_of(job_.actions[i]), spans);
    const TranscodeAction& leader = job_.actions[begin];
    const bool two_level = leader.global_entry >= 0;
    const float amax = group_amax(spans);
    const float ratio = amax / (scale_ceiling(leader.search) * kE2m1Max);
    const float global = two_level && ratio != 0 ? ratio : 1.0f;
    std::vector<std::array<QuantiseSums, kSums>> sums(spans.size());
    each(spans, [&](size_t i, Buffers& buffers) {
      const Span& span = spans[i];
      const TranscodeAction& action = *span.action;
      const void* data = values(action.source, span, buffers);
      const int64_t blocks = span.n / kBlock;
      auto* codes = static_cast<uint8_t*>(Buffers::at_least(buffers.out, blocks * (kBlock / 2 + 1)));
      uint8_t* scales = codes + blocks * (kBlock / 2);
      const FileType type = values_type(action.source);
      for (int64_t first = 0; first < span.n; first += kSumSpan)
        kernels_.quantise(dtype_of(type), static_cast<const uint8_t*>(data) + first * file_type_bytes(type),
                          std::min(kSumSpan, span.n - first) / kBlock, global, action.search, codes + first / 2,
                          scales + first / kBlock, sums[i][static_cast<size_t>(first / kSumSpan)]);
      writer_.write_piece(action.entry, span.first / 2, codes, span.n / 2);
      writer_.write_piece(action.scale_entry, span.first / kBlock, scales, blocks);
      done_ += source_bytes(action.source, span.n);
    });
    for (size_t i = begin; i < end; ++i) {
      const TranscodeAction& action = job_.actions[i];
      QuantiseReport report;
      report.action = i, report.elements = values_of(action);
      report.amax = amax, report.global_scale = global;
      for (size_t s = 0; s < spans.size(); ++s) {
        if (spans[s].action != &action) continue;
        for (const QuantiseSums& part : sums[s]) {
          report.sums.signal += part.signal, report.sums.noise += part.noise;
          report.sums.zero_codes += part.zero_codes, report.sums.saturated += part.saturated;
          report.sums.floor_blocks += part.floor_blocks;
        }
      }
      report_.quantised.push_back(report);
      writer_.end_entry(action.entry);
      writer_.end_entry(action.scale_entry);
      if (action.global_entry < 0) continue;
      writer_.write_piece(static_cast<size_t>(action.global_entry), 0, &global, sizeof global);
      writer_.end_entry(static_cast<size_t>(action.global_entry));
    }
  }

  FileWriter& writer_;
  const TranscodeJob& job_;
  const WeightKernels& kernels_;
  const std::atomic<bool>& cancel_;
  const TranscodeProgress& progress_;
  const int threads_;
  std::vector<std::unique_ptr<FileSource>> sources_;
  std::atomic<int64_t> done_{0};
  std::atomic<bool> flushing_{false};
  std::thread flusher_;
  int64_t total_ = 0, flushed_ = 0;
  TranscodeReport report_;
};

}  // namespace

TranscodeReport transcode(FileWriter& writer, const TranscodeJob& job, const WeightKernels& kernels,
                          const std::atomic<bool>& cancel, const TranscodeProgress& progress) {
  return Transcoder(writer, job, kernels, cancel, progress).run();
}

}  // namespace q4
