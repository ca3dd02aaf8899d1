// Writing tensor files: a handle around core's FileWriter. Disposing the handle removes a file that was not committed.
#include <cstring>

#include "binding/file_progress.h"
#include "binding/files.h"
#include "core/file_error.h"

namespace q4 {

namespace {

// A typed array's element type in files; 16-bit words are the bits of `wanted`, bytes whatever has one byte.
FileType array_type(const Napi::TypedArray& data, FileType wanted) {
  switch (data.TypedArrayType()) {
    case napi_float32_array:
      return FileType::f32;
    case napi_float64_array:
      return FileType::f64;
    case napi_int32_array:
      return FileType::i32;
    case napi_bigint64_array:
      return FileType::i64;
    case napi_int16_array:
      return FileType::i16;
    case napi_int8_array:
      return FileType::i8;
    case napi_uint16_array:
      if (wanted == FileType::f16 || wanted == FileType::bf16) return wanted;
      break;
    case napi_uint8_array:
      if (file_type_bytes(wanted) == 1) return wanted;
      break;
    default:
      break;
  }
  throw Error("Q4227", std::string("this kind of array cannot be written as ") + file_type_name(wanted));
}

// fileCreate(path, format, [{ name, type, shape }], [[key, value]]) → Promise<writer>
Napi::Value file_create(const Napi::CallbackInfo& info) {
  const std::string path = text(info[0]);
  const FileFormat wanted = file_format_from_js(info[1]);
  auto entries = std::make_shared<std::vector<FileEntry>>();
  const Napi::Array items = array(info[2]), pairs = array(info[3]);
  for (uint32_t i = 0; i < items.Length(); ++i) {
    const Napi::HandleScope scope(info.Env());
    entries->push_back(file_entry_from_js(items.Get(i), false));
  }
  auto metadata = std::make_shared<std::map<std::string, std::string>>();
  for (uint32_t i = 0; i < pairs.Length(); ++i) {
    const Napi::Array pair = array(pairs.Get(i));
    (*metadata)[text(pair.Get(0u))] = text(pair.Get(1u));
  }
  auto writer = std::make_shared<std::shared_ptr<WriterBox>>();
  return run_async(
      info.Env(),
      [=] {
        FileLayout layout = wanted == FileFormat::dat ? layout_dat(path, std::move(*entries))
                                                      : layout_safetensors(path, std::move(*entries), *metadata);
        *writer = std::make_shared<WriterBox>(path, std::move(layout));
      },
      [writer](Napi::Env env) { return make_handle(env, std::move(*writer)); });
}

Claim acquire_writer(const std::shared_ptr<WriterBox>& box) {
  Claim claim = try_claim(box);
  if (!claim) throw Error("Q4227", "this file writer is busy");
  return claim;
}

struct WriteRequest {
  size_t entry = 0;
  // From the store,
  Tensor tensor;
  TensorPart part = TensorPart::data;
  std::string name;
  std::shared_ptr<Allocation> held;
  // or from memory: a copy, because the array may be detached while it is written.
  FileType type = FileType::u8;
  std::vector<double> data;  // doubles: aligned for every type
  int64_t elements = 0;
};

// { entry, tensor, part } | { entry, data }
WriteRequest write_request(const Napi::Value& value, const std::shared_ptr<Store>& store, const FileLayout& layout) {
  const Napi::Object item = object(value);
  WriteRequest request;
  const int64_t entry = to_int64(item.Get("entry"));
  if (entry < 0 || entry >= static_cast<int64_t>(layout.entries.size())) throw Error("Q4227", "no such file entry");
  request.entry = static_cast<size_t>(entry);
  const Napi::Value data = item.Get("data");
  if (data.IsUndefined()) {
    if (!store) throw Error("Q4227", "a tensor can only be written from a store");
    request.name = text(item.Get("tensor"));
    request.part = tensor_part_from_name(text(item.Get("part")));
    request.tensor = store->find(request.name);
    request.held = store->allocation(request.name);
    return request;
  }
  if (!data.IsTypedArray()) throw Error("Q4514", "expected a typed array");
  const auto values = data.As<Napi::TypedArray>();
  request.type = array_type(values, layout.entries[request.entry].type);
  request.elements = static_cast<int64_t>(values.ElementLength());
  request.data.resize((values.ByteLength() + 7) / 8);
  if (values.ByteLength() > 0)
    std::memcpy(request.data.data(), static_cast<const uint8_t*>(values.ArrayBuffer().Data()) + values.ByteOffset(),
                values.ByteLength());
  return request;
}

// fileWrite(writer, store | null, [{ entry, tensor, part } | { entry, data }], allowNonFinite, cancel, onProgress?)
//   → Promise<undefined>
Napi::Value file_write(const Napi::CallbackInfo& info) {
  auto box = get_handle<WriterBox>(info[0]);
  std::shared_ptr<Store> store;
  if (!info[1].IsNull()) store = get_handle<Store>(info[1]);
  auto requests = std::make_shared<std::vector<WriteRequest>>();
  const Napi::Array items = array(info[2]);
  int64_t total = 0;
  for (uint32_t i = 0; i < items.Length(); ++i) {
    const Napi::HandleScope scope(info.Env());
    requests->push_back(write_request(items.Get(i), store, box->writer.layout()));
    total += box->writer.layout().entries[requests->back().entry].bytes;
  }
  const bool allow_non_finite = info[3].ToBoolean();
  auto cancel = get_handle<CancelFlag>(info[4]);
  auto progress = std::make_shared<FileProgress>(info.Env(), info[5]);
  return run_async(
      info.Env(),
      [=, writer = acquire_writer(box), device = store ? acquire(store->device()) : nullptr] {
        int64_t done = 0;
        FileWriter::Options options;
        options.allow_non_finite = allow_non_finite;
        options.cancel = cancel.get();
        options.progress = [&](int64_t bytes) { progress->tell(done += bytes, total); };
        for (const WriteRequest& request : *requests) {
          if (request.held)
            box->writer.write_tensor(request.entry, store->backend(), request.tensor, request.part, request.name,
                                     options);
          else
            box->writer.write_host(request.entry, request.type, request.data.data(), request.elements, options);
        }
      },
      [](Napi::Env env) { return env.Undefined(); });
}

// fileCommit(writer) → Promise<bytes>
Napi::Value file_commit(const Napi::CallbackInfo& info) {
  auto box = get_handle<WriterBox>(info[0]);
  auto bytes = std::make_shared<int64_t>(0);
  return run_async(
      info.Env(), [=, writer = acquire_writer(box)] { *bytes = box->writer.commit(); },
      [bytes](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, static_cast<double>(*bytes)); });
}

}  // namespace

void register_file_writer(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "fileCreate", file_create);
  export_function(env, exports, "fileWrite", file_write);
  export_function(env, exports, "fileCommit", file_commit);
}

}  // namespace q4
