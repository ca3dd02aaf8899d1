// The parts of a tensor as files hold them: a plain tensor's data, or codes, block scales and global scale of an nvfp4 one.
#pragma once
#include <string_view>

#include "core/file_types.h"
#include "core/tensor.h"

namespace q4 {

enum class TensorPart : uint8_t { data, qdata, scale, global_scale };

// Q4227 for a name that is none of "data", "qdata", "scale", "global_scale".
TensorPart tensor_part_from_name(std::string_view name);

struct PartView {
  uint8_t* memory = nullptr;  // on the tensor's device
  FileType type = FileType::u8;
  std::vector<int64_t> shape;
  int64_t elements = 0;
};

// Where `part` of a bound tensor lies. Q4227 when the tensor has no such part; `name` is for the message.
PartView view_part(const Tensor& tensor, TensorPart part, const std::string& name);

// Throws Q4225 unless elements of type `from` may become elements of `to` in this part, and Q4224 unless the shapes are
// the same (a global scale may also be a scalar).
void check_part_fits(const FileEntry& entry, const PartView& view, TensorPart part, FileType from, FileType to,
                     const std::string& path);

// Streaming check of one piece of file values: Q4219 bad scale, Q4220 NaN or infinity (unless allowed). `first` is the
// index of the piece's first element in the entry. Returns the number of block scales at 2^-6.
int64_t check_piece(const FileEntry& entry, TensorPart part, FileType type, const void* data, int64_t first, int64_t n,
                    bool allow_non_finite, const std::string& path);

}  // namespace q4
