// Element values between files and tensors: checks while streaming, and conversions.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/file_types.h"

namespace q4 {

// How a plain tensor's elements are spelt in files. Not for nvfp4.
FileType file_type_of(DType dtype);

// Same type; any float to f16, bf16, f32 or f64; any whole number or bool to a wider or equal whole number type, and i64
// to i32 when the value fits.
bool can_convert(FileType from, FileType to);

// Converts n elements, rounding to nearest, ties to even, once (f64 to 16 bits as well). Returns the index of the first
// value that the target cannot hold (a finite one that became infinite, an i64 beyond i32), or -1.
int64_t convert_elements(FileType from, const void* source, FileType to, void* target, int64_t n);

// Index of the first NaN or infinity, or -1; always -1 for types without them.
int64_t first_non_finite(FileType type, const void* data, int64_t n);

// Block scales must be E4M3 numbers that are not negative: the index of the first that is not, or -1. Adds to `floor` how
// many are exactly 2^-6, the smallest normal E4M3 number, at which the predecessor clamped its scales.
int64_t first_bad_scale(const uint8_t* scales, int64_t n, int64_t& floor);

}  // namespace q4
