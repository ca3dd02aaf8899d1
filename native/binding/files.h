// Tensor files as JavaScript sees them: index, load, read, write.
#pragma once
#include <atomic>

#include "binding/handles.h"
#include "core/claim.h"
#include "core/file_writer.h"

namespace q4 {

// A writer and the flag that keeps its calls apart.
struct WriterBox {
  WriterBox(std::string path, FileLayout layout) : writer(std::move(path), std::move(layout)) {}
  FileWriter writer;
  std::atomic<bool> busy{false};
};

template <>
struct HandleKind<WriterBox> {
  static constexpr const char* name = "file writer";
};

// Parts of files.cpp that stand in files of their own.
void register_file_writer(Napi::Env env, Napi::Object exports);
void register_transcode(Napi::Env env, Napi::Object exports);

// { name, type, shape } and, when `placed`, { offset, bytes }
FileEntry file_entry_from_js(const Napi::Value& value, bool placed);
FileFormat file_format_from_js(const Napi::Value& value);

}  // namespace q4
