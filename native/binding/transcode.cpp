// Writing a tensor file from others: plain structs in, one call off the JS thread, a report and the writer out.
#include "core/transcode.h"

#include "binding/file_progress.h"
#include "binding/files.h"

namespace q4 {

namespace {

// { path, fileBytes, modifiedNs }
TranscodeFile source_file(const Napi::Value& value) {
  const Napi::Object js = object(value);
  TranscodeFile file{text(js.Get("path")), to_int64(js.Get("fileBytes")), 0};
  const Napi::Value modified = js.Get("modifiedNs");
  bool lossless = false;
  if (modified.IsBigInt()) file.modified_ns = modified.As<Napi::BigInt>().Int64Value(&lossless);
  if (!lossless) throw Error("Q4514", "modifiedNs must be a bigint of 64 bits");
  return file;
}

// { file, entry }
TranscodeEntry source_entry(const Napi::Value& value) {
  const Napi::Object js = object(value);
  return {static_cast<int>(to_int64(js.Get("file"))), file_entry_from_js(js.Get("entry"), true)};
}

// { plain } | { codes, scales, globalScale }
TranscodeSource source(const Napi::Value& value) {
  const Napi::Object js = object(value);
  TranscodeSource from;
  if (!js.Get("plain").IsUndefined()) {
    from.plain = source_entry(js.Get("plain"));
    return from;
  }
  from.codes = source_entry(js.Get("codes"));
  from.scales = source_entry(js.Get("scales"));
  from.global_scale = js.Get("globalScale").ToNumber().FloatValue();
  return from;
}

std::vector<uint8_t> bytes_of(const Napi::Value& value) {
  if (!value.IsTypedArray()) throw Error("Q4514", "expected a typed array");
  const auto values = value.As<Napi::TypedArray>();
  const auto* begin = static_cast<const uint8_t*>(values.ArrayBuffer().Data()) + values.ByteOffset();
  return {begin, begin + values.ByteLength()};
}

// { kind, entry, source?, part?, data?, scaleEntry?, globalEntry?, group?, scales? }
TranscodeAction action(const Napi::Value& value) {
  using Kind = TranscodeAction::Kind;
  const Napi::Object js = object(value);
  const std::string kind = text(js.Get("kind"));
  TranscodeAction out;
  out.entry = static_cast<size_t>(to_int64(js.Get("entry")));
  if (kind == "data") {
    out.kind = Kind::data;
    out.data = bytes_of(js.Get("data"));
    return out;
  }
  out.source = source(js.Get("source"));
  if (kind == "copy") {
    out.part = tensor_part_from_name(text(js.Get("part")));
  } else if (kind == "convert") {
    out.kind = Kind::convert;
  } else if (kind == "quantise") {
    out.kind = Kind::quantise;
    out.scale_entry = static_cast<size_t>(to_int64(js.Get("scaleEntry")));
    out.global_entry = to_int64(js.Get("globalEntry"));
    out.group = to_int64(js.Get("group"));
    out.search = scale_search_from_name(text(js.Get("scales")));
  } else {
    throw Error("Q4514", "unknown kind of action");
  }
  return out;
}

Napi::Object report_to_js(Napi::Env env, const TranscodeReport& report) {
  Napi::Array quantised = Napi::Array::New(env, report.quantised.size());
  for (uint32_t i = 0; i < report.quantised.size(); ++i) {
    const Napi::HandleScope scope(env);
    const QuantiseReport& from = report.quantised[i];
    Napi::Object js = Napi::Object::New(env);
    js.Set("action", static_cast<double>(from.action));
    js.Set("elements", static_cast<double>(from.elements));
    js.Set("amax", static_cast<double>(from.amax));
    js.Set("globalScale", static_cast<double>(from.global_scale));
    js.Set("signal", from.sums.signal);
    js.Set("noise", from.sums.noise);
    js.Set("zeroCodes", static_cast<double>(from.sums.zero_codes));
    js.Set("saturated", static_cast<double>(from.sums.saturated));
    js.Set("floorBlocks", static_cast<double>(from.sums.floor_blocks));
    quantised.Set(i, js);
  }
  Napi::Object js = Napi::Object::New(env);
  js.Set("sourceBytes", static_cast<double>(report.source_bytes));
  js.Set("seconds", report.seconds);
  js.Set("quantised", quantised);
  return js;
}

// fileTranscode({ path, format, entries, metadata, files, actions }, cancel, onProgress?)
//   → Promise<report and writer, whose entries are all written>
Napi::Value file_transcode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object js = object(info[0]);
  const std::string path = text(js.Get("path"));
  const FileFormat format = file_format_from_js(js.Get("format"));
  auto entries = std::make_shared<std::vector<FileEntry>>();
  auto metadata = std::make_shared<std::map<std::string, std::string>>();
  auto job = std::make_shared<TranscodeJob>();
  const auto all = [&](const char* key, const std::function<void(const Napi::Value&)>& take) {
    const Napi::Array items = array(js.Get(key));
    for (uint32_t i = 0; i < items.Length(); ++i) {
      const Napi::HandleScope scope(env);
      take(items.Get(i));
    }
  };
  all("entries", [&](const Napi::Value& item) { entries->push_back(file_entry_from_js(item, false)); });
  all("metadata", [&](const Napi::Value& item) {
    const Napi::Array pair = array(item);
    (*metadata)[text(pair.Get(0u))] = text(pair.Get(1u));
  });
  all("files", [&](const Napi::Value& item) { job->files.push_back(source_file(item)); });
  all("actions", [&](const Napi::Value& item) { job->actions.push_back(action(item)); });
  auto cancel = get_handle<CancelFlag>(info[1]);
  auto progress = std::make_shared<FileProgress>(env, info[2]);
  auto report = std::make_shared<TranscodeReport>();
  auto writer = std::make_shared<std::shared_ptr<WriterBox>>();
  return run_async(
      env,
      [=] {
        FileLayout layout = format == FileFormat::dat ? layout_dat(path, std::move(*entries))
                                                      : layout_safetensors(path, std::move(*entries), *metadata);
        auto box = std::make_shared<WriterBox>(path, std::move(layout));
        *report = transcode(box->writer, *job, weight_kernels(), *cancel,
                            [&](int64_t done, int64_t total) { progress->tell(done, total); });
        *writer = std::move(box);
      },
      [report, writer](Napi::Env here) -> Napi::Value {
        Napi::Object made = report_to_js(here, *report);
        made.Set("writer", make_handle(here, std::move(*writer)));
        return made;
      });
}

}  // namespace

void register_transcode(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "fileTranscode", file_transcode);
}

}  // namespace q4
