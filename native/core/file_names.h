// Names of entries come from files that anybody may have made; they end up as keys, in messages and in file names.
#pragma once
#include <string_view>

#include "core/file_error.h"

namespace q4 {

// Strict UTF-8 (no overlong forms, surrogates or values over U+10FFFF): the first byte that breaks it, or -1.
int64_t invalid_utf8(std::string_view text);

// Accepts 1–1,024 bytes of UTF-8 whose parts between dots are not empty. Otherwise throws with `problem` completed:
// Q4208 length, Q4212 not UTF-8, Q4213 control characters, slashes, empty parts, `__proto__`.
void check_entry_name(std::string_view name, FileProblem problem);

}  // namespace q4
