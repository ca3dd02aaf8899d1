// Errors about files: where, what was expected, what was found. The parts travel separately so that terminals, logs and
// reports can lay them out; what() is a full sentence for whoever has only that.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "core/error.h"

namespace q4 {

struct FileProblem {
  std::string file;     // path as the caller gave it
  std::string entry;    // name of the tensor, escaped; empty when the problem is not in an entry
  int64_t offset = -1;  // byte in the file; -1 when the problem has no place
  std::string expected, found, hint;
};

class FileError : public Error {
 public:
  FileError(std::string code, std::string brief, FileProblem problem);
  // What is wrong, without the place and the parts below.
  const std::string& brief() const { return brief_; }
  const FileProblem& problem() const { return problem_; }

 private:
  std::string brief_;
  FileProblem problem_;
};

// Error(code) for a failed system call: "cannot open 'x': No such file or directory". ENOSPC and EDQUOT become Q4412.
[[noreturn]] void throw_errno(const char* code, const std::string& action, const std::string& path, int error_number);

// Printable ASCII stays; everything else, quotes and backslashes become \xNN; cut after 200 characters.
std::string escape_name(std::string_view name);

}  // namespace q4
