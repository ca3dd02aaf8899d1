#include "core/file_error.h"

#include <cerrno>
#include <cstring>

namespace q4 {

namespace {

std::string sentence(const std::string& brief, const FileProblem& problem) {
  std::string text = escape_name(problem.file) + ": " + brief;
  if (!problem.entry.empty()) text += ", entry '" + problem.entry + "'";
  if (problem.offset >= 0) text += ", at byte " + std::to_string(problem.offset);
  if (!problem.expected.empty()) text += ": expected " + problem.expected;
  if (!problem.found.empty()) text += (problem.expected.empty() ? ": found " : ", found ") + problem.found;
  return text;
}

}  // namespace

FileError::FileError(std::string code, std::string brief, FileProblem problem)
    : Error(std::move(code), sentence(brief, problem), problem.hint),
      brief_(std::move(brief)),
      problem_(std::move(problem)) {}

void throw_errno(const char* code, const std::string& action, const std::string& path, int error_number) {
  FileProblem problem;
  problem.file = path;
  problem.found = std::strerror(error_number);
  if (error_number == ENOSPC || error_number == EDQUOT) {
    problem.hint = "free space on that file system, or write somewhere else; nothing was left behind";
    throw FileError("Q4412", "the disk is full: " + action, problem);
  }
  if (error_number == ENOENT) problem.hint = "check the path; relative paths start at the YAML file that holds them";
  if (error_number == EACCES || error_number == EPERM)
    problem.hint = "check the permissions of the file and its directory";
  throw FileError(code, action, problem);
}

std::string escape_name(std::string_view name) {
  constexpr size_t kLongest = 200;
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (const char c : name) {
    if (text.size() >= kLongest) return text + "…";
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && byte != '\\' && byte != '\'')
      text += c;
    else
      text += std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
  }
  return text;
}

}  // namespace q4
