// The rules that tie qdata, scale and global_scale together, as far as they need no config.
#include <string_view>
#include <unordered_map>

#include "core/dat_index.h"
#include "core/tensor.h"

namespace q4 {

namespace {

class PairCheck {
 public:
  explicit PairCheck(const FileIndex& index) : index_(index) {
    for (const FileEntry& entry : index.entries) by_name_.emplace(entry.name, &entry);
  }

  void run() const {
    for (const FileEntry& entry : index_.entries) {
      if (std::string base; strip(entry, ".qdata", base)) {
        check_matrix(entry, base);
      } else if (strip(entry, ".scale", base) || strip(entry, ".global_scale", base)) {
        if (!find(base + ".qdata"))
          fail("Q4216", "a scale without its codes", entry, "an entry '" + escape_name(base) + ".qdata'", "none",
               "the export was incomplete; write codes and scales together");
      }
    }
  }

 private:
  [[noreturn]] void fail(const char* code, const char* brief, const FileEntry& entry, const std::string& expected,
                         const std::string& found, const char* hint) const {
    throw FileError(code, brief, {index_.path, escape_name(entry.name), entry.header_offset, expected, found, hint});
  }

  static bool strip(const FileEntry& entry, std::string_view suffix, std::string& base) {
    if (entry.name.size() <= suffix.size() || !entry.name.ends_with(suffix)) return false;
    base = entry.name.substr(0, entry.name.size() - suffix.size());
    return true;
  }

  const FileEntry* find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }

  static std::string found(const FileEntry& entry) { return file_type_name(entry.type) + shape_text(entry.shape); }

  void check_matrix(const FileEntry& codes, const std::string& base) const {
    const FileEntry* scale = find(base + ".scale");
    if (!scale)
      fail("Q4216", "codes without their block scales", codes, "an entry '" + escape_name(base) + ".scale'", "none",
           "the export was incomplete; write codes and scales together");
    if (find(base))
      fail("Q4214", "a tensor is stored twice", codes, "either plain or quantised", "both",
           "remove one of the two from the file");
    if (base.ends_with(".weight") && find(base.substr(0, base.size() - 7) + ".qdata"))
      fail("Q4214", "a tensor is stored twice", codes, "X.weight.qdata or X.qdata", "both",
           "remove one of the two from the file");
    if ((codes.type != FileType::u8 && codes.type != FileType::e2m1x2) || codes.shape.size() != 2)
      fail("Q4217", "codes of the wrong kind", codes, "u8 or e2m1x2 of shape [out, in/2]", found(codes),
           "each byte holds two E2M1 codes, element 2j in the low half");
    const int64_t out = codes.shape[0], in = codes.shape[1] * 2;
    if (in % kBlock != 0)
      fail("Q4218", "a quantised matrix whose inputs are no multiple of 16", codes, "16, 32, 48, … inputs",
           std::to_string(in), "pad the matrix, or keep it unquantised");
    const std::vector<int64_t> blocks = {out, in / kBlock};
    if (scale->type != FileType::e4m3 || scale->shape != blocks)
      fail("Q4217", "block scales that do not match their codes", *scale, "e4m3" + shape_text(blocks), found(*scale),
           "one E4M3 scale for 16 elements along the inputs");
    const FileEntry* global = find(base + ".global_scale");
    if (global && (global->type != FileType::f32 || global->shape != std::vector<int64_t>{1}))
      fail("Q4217", "a global scale of the wrong kind", *global, "f32[1]", found(*global),
           "one fp32 number that multiplies the whole tensor");
  }

  const FileIndex& index_;
  std::unordered_map<std::string_view, const FileEntry*> by_name_;
};

}  // namespace

void check_dat_pairs(const FileIndex& index) { PairCheck(index).run(); }

}  // namespace q4
