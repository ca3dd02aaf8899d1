// Reading tensor files: converts to plain structs, works off the JS thread, converts back.
#include "binding/files.h"

#include "binding/file_progress.h"
#include "core/dat_index.h"
#include "core/file_error.h"
#include "core/loader.h"
#include "core/safetensors_index.h"

namespace q4 {

namespace {

struct IndexedFile {
  std::string path;
  int64_t bytes = 0, modified_ns = 0;
};

// { path, fileBytes, modifiedNs }
IndexedFile indexed_file(const Napi::Object& js) {
  IndexedFile file{text(js.Get("path")), to_int64(js.Get("fileBytes")), 0};
  const Napi::Value modified = js.Get("modifiedNs");
  bool lossless = false;
  if (modified.IsBigInt()) file.modified_ns = modified.As<Napi::BigInt>().Int64Value(&lossless);
  if (!lossless) throw Error("Q4514", "modifiedNs must be a bigint of 64 bits");
  return file;
}

Napi::Object entry_to_js(Napi::Env env, const FileEntry& entry) {
  Napi::Array shape = Napi::Array::New(env, entry.shape.size());
  for (uint32_t d = 0; d < entry.shape.size(); ++d) shape.Set(d, static_cast<double>(entry.shape[d]));
  Napi::Object js = Napi::Object::New(env);
  js.Set("name", entry.name);
  js.Set("type", file_type_name(entry.type));
  js.Set("shape", shape);
  js.Set("offset", static_cast<double>(entry.offset));
  js.Set("bytes", static_cast<double>(entry.bytes));
  return js;
}

Napi::Value index_to_js(Napi::Env env, const FileIndex& index) {
  Napi::Array entries = Napi::Array::New(env, index.entries.size());
  for (uint32_t i = 0; i < index.entries.size(); ++i) {
    const Napi::HandleScope scope(env);
    entries.Set(i, entry_to_js(env, index.entries[i]));
  }
  // Keys come from the file: pairs, so that none of them can be special to an object.
  Napi::Array metadata = Napi::Array::New(env);
  uint32_t at = 0;
  for (const auto& [key, value] : index.metadata) {
    Napi::Array pair = Napi::Array::New(env, 2);
    pair.Set(0u, key);
    pair.Set(1u, value);
    metadata.Set(at++, pair);
  }
  Napi::Object js = Napi::Object::New(env);
  js.Set("format", index.format == FileFormat::dat ? "dat" : "safetensors");
  js.Set("path", index.path);
  js.Set("fileBytes", static_cast<double>(index.file_bytes));
  js.Set("modifiedNs", Napi::BigInt::New(env, index.modified_ns));
  js.Set("entries", entries);
  js.Set("metadata", metadata);
  return js;
}

Napi::Value typed_array(Napi::Env env, FileType type, Napi::ArrayBuffer buffer) {
  const size_t n = buffer.ByteLength() / static_cast<size_t>(file_type_bytes(type));
  switch (type) {
    case FileType::f32:
      return Napi::Float32Array::New(env, n, buffer, 0);
    case FileType::f64:
      return Napi::Float64Array::New(env, n, buffer, 0);
    case FileType::i64:
      return Napi::BigInt64Array::New(env, n, buffer, 0);
    case FileType::i32:
      return Napi::Int32Array::New(env, n, buffer, 0);
    case FileType::i16:
      return Napi::Int16Array::New(env, n, buffer, 0);
    case FileType::i8:
      return Napi::Int8Array::New(env, n, buffer, 0);
    case FileType::f16:
    case FileType::bf16:
      return Napi::Uint16Array::New(env, n, buffer, 0);
    default:
      return Napi::Uint8Array::New(env, n, buffer, 0);
  }
}

// fileIndex(path, format) → Promise<index>
Napi::Value file_index(const Napi::CallbackInfo& info) {
  const std::string path = text(info[0]);
  const FileFormat wanted = file_format_from_js(info[1]);
  auto index = std::make_shared<FileIndex>();
  return run_async(
      info.Env(), [=] { *index = wanted == FileFormat::dat ? index_dat(path) : index_safetensors(path); },
      [=](Napi::Env env) { return index_to_js(env, *index); });
}

// { entry, tensor, part }
LoadRequest load_request(const Napi::Object& item, const Store& store) {
  LoadRequest request;
  request.entry = file_entry_from_js(item.Get("entry"), true);
  request.tensor = text(item.Get("tensor"));
  request.part = tensor_part_from_name(text(item.Get("part")));
  request.target = store.find(request.tensor);
  request.held = store.allocation(request.tensor);
  return request;
}

// fileLoad(store, index, [{ entry, tensor, part }], allowNonFinite, cancel, onProgress?) → Promise<report>
Napi::Value file_load(const Napi::CallbackInfo& info) {
  auto store = get_handle<Store>(info[0]);
  auto job = std::make_shared<LoadJob>();
  const IndexedFile file = indexed_file(object(info[1]));
  job->path = file.path, job->file_bytes = file.bytes, job->modified_ns = file.modified_ns;
  const Napi::Array items = array(info[2]);
  for (uint32_t i = 0; i < items.Length(); ++i) {
    const Napi::HandleScope scope(info.Env());
    job->requests.push_back(load_request(object(items.Get(i)), *store));
  }
  job->allow_non_finite = info[3].ToBoolean();
  auto cancel = get_handle<CancelFlag>(info[4]);
  auto progress = std::make_shared<FileProgress>(info.Env(), info[5]);
  auto report = std::make_shared<LoadReport>();
  return run_async(
      info.Env(),
      [=, device = acquire(store->device())] {
        *report = load_entries(store->backend(), *job, *cancel,
                               [&](int64_t done, int64_t total) { progress->tell(done, total); });
      },
      [report](Napi::Env env) -> Napi::Value {
        Napi::Object js = Napi::Object::New(env);
        js.Set("bytes", static_cast<double>(report->bytes));
        js.Set("seconds", report->seconds);
        js.Set("scaleBlocks", static_cast<double>(report->scale_blocks));
        js.Set("floorBlocks", static_cast<double>(report->floor_blocks));
        return js;
      });
}

// fileRead(index, entry) → Promise<typed array>
Napi::Value file_read(const Napi::CallbackInfo& info) {
  const IndexedFile file = indexed_file(object(info[0]));
  auto entry = std::make_shared<FileEntry>(file_entry_from_js(info[1], true));
  if (entry->bytes < 0 || entry->bytes > file.bytes || entry->bytes % file_type_bytes(entry->type) != 0)
    throw Error("Q4227", "the index of entry '" + escape_name(entry->name) + "' contradicts itself");
  auto buffer = Napi::ArrayBuffer::New(info.Env(), static_cast<size_t>(entry->bytes));
  void* memory = buffer.Data();
  auto kept = std::make_shared<Napi::Reference<Napi::ArrayBuffer>>(Napi::Persistent(buffer));
  return run_async(
      info.Env(), [=] { read_entry(file.path, file.bytes, file.modified_ns, *entry, memory); },
      [=](Napi::Env env) {
        const Napi::Value values = typed_array(env, entry->type, kept->Value());
        kept->Reset();  // references are let go of on the JS thread
        return values;
      });
}

}  // namespace

FileEntry file_entry_from_js(const Napi::Value& value, bool placed) {
  const Napi::Object js = object(value);
  FileEntry entry;
  entry.name = text(js.Get("name"));
  entry.type = file_type_from_name(text(js.Get("type")));
  entry.shape = to_int64s(js.Get("shape"));
  if (placed) entry.offset = to_int64(js.Get("offset")), entry.bytes = to_int64(js.Get("bytes"));
  return entry;
}

FileFormat file_format_from_js(const Napi::Value& value) {
  const std::string name = text(value);
  if (name == "dat") return FileFormat::dat;
  if (name == "safetensors") return FileFormat::safetensors;
  throw Error("Q4227", "unknown file format '" + escape_name(name) + "'");
}

void register_files(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "fileIndex", file_index);
  export_function(env, exports, "fileLoad", file_load);
  export_function(env, exports, "fileRead", file_read);
  register_file_writer(env, exports);
  register_transcode(env, exports);
}

}  // namespace q4
