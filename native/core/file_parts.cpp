#include "core/file_parts.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "core/e4m3.h"
#include "core/file_convert.h"
#include "core/file_error.h"

namespace q4 {

namespace {

std::string number_text(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string value_text(FileType type, const void* data, int64_t i) {
  double value = 0;
  convert_elements(type, static_cast<const uint8_t*>(data) + i * file_type_bytes(type), FileType::f64, &value, 1);
  return number_text(value);
}

[[noreturn]] void fail_value(const char* code, const char* brief, const FileEntry& entry, FileType type,
                             int64_t element, const std::string& expected, const std::string& found, const char* hint,
                             const std::string& path) {
  throw FileError(code, brief,
                  {path, escape_name(entry.name), entry.offset + element * file_type_bytes(type), expected,
                   found + " at element " + std::to_string(element), hint});
}

}  // namespace

TensorPart tensor_part_from_name(std::string_view name) {
  if (name == "data") return TensorPart::data;
  if (name == "qdata") return TensorPart::qdata;
  if (name == "scale") return TensorPart::scale;
  if (name == "global_scale") return TensorPart::global_scale;
  throw Error("Q4227", "unknown part '" + escape_name(name) + "' of a tensor");
}

PartView view_part(const Tensor& tensor, TensorPart part, const std::string& name) {
  const bool quantised = tensor.dtype == DType::nvfp4;
  if (quantised == (part == TensorPart::data))
    throw Error("Q4227", "tensor '" + escape_name(name) + "' (" + describe(tensor) + ") has no such part");
  PartView view;
  if (part == TensorPart::data) {
    view.memory = tensor.as<uint8_t>();
    view.type = file_type_of(tensor.dtype);
    view.shape.assign(tensor.dims.begin(), tensor.dims.begin() + tensor.rank);
  } else if (part == TensorPart::qdata) {
    view.memory = tensor.as<uint8_t>();
    view.type = FileType::u8;
    view.shape = {tensor.dims[0], tensor.dims[1] / 2};
  } else if (part == TensorPart::scale) {
    view.memory = tensor.scale;
    view.type = FileType::e4m3;
    view.shape = {tensor.dims[0], tensor.dims[1] / kBlock};
  } else {
    view.memory = reinterpret_cast<uint8_t*>(tensor.global_scale);
    view.type = FileType::f32;
    view.shape = {1};
  }
  view.elements = 1;
  for (const int64_t dim : view.shape) view.elements *= dim;
  return view;
}

void check_part_fits(const FileEntry& entry, const PartView& view, TensorPart part, FileType from, FileType to,
                     const std::string& path) {
  const bool codes = part == TensorPart::qdata && (from == FileType::u8 || from == FileType::e2m1x2) &&
                     (to == FileType::u8 || to == FileType::e2m1x2);
  FileProblem problem{path, escape_name(entry.name), entry.offset, "", "", ""};
  if (!codes && !can_convert(from, to)) {
    problem.expected = std::string("a type that becomes ") + file_type_name(to);
    problem.found = file_type_name(from);
    problem.hint = "convert the tensor with the tool that made the file";
    throw FileError("Q4225", "an entry's type does not fit its tensor", problem);
  }
  const bool scalar = part == TensorPart::global_scale && entry.shape.empty();
  if (entry.shape == view.shape || scalar) return;
  problem.expected = shape_text(view.shape);
  problem.found = shape_text(entry.shape);
  problem.hint = "the file and the config belong to different models";
  throw FileError("Q4224", "an entry's shape does not fit its tensor", problem);
}

int64_t check_piece(const FileEntry& entry, TensorPart part, FileType type, const void* data, int64_t first, int64_t n,
                    bool allow_non_finite, const std::string& path) {
  int64_t floor = 0;
  if (part == TensorPart::qdata) return 0;
  if (part == TensorPart::scale) {
    const auto* scales = static_cast<const uint8_t*>(data);
    const int64_t bad = first_bad_scale(scales, n, floor);
    if (bad < 0) return floor;
    const bool nan = (scales[bad] & 0x7f) == kE4m3Nan;
    fail_value("Q4219", "a block scale is not a number that may stand there", entry, type, first + bad,
               "an E4M3 number that is not negative", nan ? "NaN" : number_text(e4m3_to_f32(scales[bad])),
               "the file is damaged, or its scales are not row-major E4M3FN", path);
  }
  const int64_t special = first_non_finite(type, data, n);
  if (part == TensorPart::global_scale && n > 0) {
    double value = 0;
    convert_elements(type, data, FileType::f64, &value, 1);
    if (special < 0 && value >= 0) return 0;
    fail_value("Q4219", "a global scale is not a number that may stand there", entry, type, first,
               "a finite number that is not negative", number_text(value), "the file is damaged", path);
  }
  if (special < 0 || allow_non_finite) return 0;
  fail_value("Q4220", "a weight is not finite", entry, type, first + special, "finite values",
             value_text(type, data, special), "the model diverged before it was saved, or the file is damaged", path);
}

}  // namespace q4
