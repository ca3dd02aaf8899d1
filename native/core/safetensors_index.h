// safetensors: u64 header length, a JSON header {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...,
// "__metadata__": {string: string}}, then the buffer that the offsets count from. Source: the format section of
// github.com/huggingface/safetensors; as there, the tensors must cover the buffer without overlap or hole.
#pragma once
#include "core/file_source.h"
#include "core/file_types.h"

namespace q4 {

constexpr int64_t kMaxSafetensorsHeader = 100'000'000;

// Throws FileError: Q4203 cut in the header, Q4204 trailing bytes, Q4208/Q4212/Q4213 names, Q4209 rank, Q4210 past the end,
// Q4211 overflow, Q4214 duplicate keys, Q4215 dtype, Q4230 header length, Q4231 JSON, Q4233 size, Q4234 overlap, Q4235 hole.
FileIndex parse_safetensors(const ByteSource& source);
// Opens, parses and closes. Q4201, Q4202, Q4221 besides.
FileIndex index_safetensors(const std::string& path);

// "F8_E4M3", "BF16", ...; packed E2M1 pairs are U8, as ModelOpt and compressed-tensors store them.
const char* safetensors_type_name(FileType type);

}  // namespace q4
