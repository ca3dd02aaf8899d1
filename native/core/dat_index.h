// The `.dat` weight file (a TorchSharp state-dict stream):
//   file  := uleb128(entry_count) entry*
//   entry := uleb128(key_bytes) key_utf8  uleb128(elem_type)  uleb128(ndim) uleb128(dim)*  payload
// Row-major, little-endian, no header, alignment, index or checksum. Element types: 0/1/11 u8/i8/bool, 2 i16, 3 i32,
// 4 i64, 5/15 f16/bf16, 6 f32, 7 f64, 100 two packed E2M1 values, 101 E4M3FN.
#pragma once
#include "core/file_source.h"
#include "core/file_types.h"

namespace q4 {

// One pass over the headers, which must end exactly at the end of the file; payloads are skipped. Checks everything that
// needs no config: numbers, names, sizes (dat_index.cpp), pairs of qdata and scale (dat_pairs.cpp). Memory taken is
// bounded by what the file holds. Throws FileError Q4203–Q4218 and Q4222, each with the entry's name and byte offset.
FileIndex parse_dat(const ByteSource& source);
// Opens, parses and closes. Q4201, Q4202, Q4221 besides.
FileIndex index_dat(const std::string& path);

// The number that stands for `type` in a file.
uint64_t dat_type_number(FileType type);

// Every `.qdata` needs its `.scale` and the reverse (Q4216); types and shapes must match each other (Q4217), with a
// multiple of 16 inputs (Q4218); a tensor stored twice, plain and quantised, is refused (Q4214).
void check_dat_pairs(const FileIndex& index);

}  // namespace q4
