#include "binding/handles.h"

#include <cmath>
#include <new>

#include "core/file_error.h"

namespace q4 {

HandleBox& handle_box(const Napi::Value& value) {
  if (!value.IsExternal()) throw Error("Q4514", "expected a native handle");
  return *value.As<Napi::External<HandleBox>>().Data();
}

// The parts of a message about a file, for runtime/engine/files.ts to lay out.
static Napi::Error file_error_to_js(Napi::Env env, const FileError& error) {
  Napi::Error js = Napi::Error::New(env, error.what());
  Napi::Object value = js.Value();
  const FileProblem& problem = error.problem();
  value.Set("code", error.code());
  value.Set("brief", error.brief());
  value.Set("file", problem.file);
  if (!error.hint().empty()) value.Set("hint", error.hint());
  if (!problem.entry.empty()) value.Set("entry", problem.entry);
  if (problem.offset >= 0) value.Set("offset", static_cast<double>(problem.offset));
  if (!problem.expected.empty()) value.Set("expected", problem.expected);
  if (!problem.found.empty()) value.Set("found", problem.found);
  return js;
}

Napi::Error to_js_error(Napi::Env env, std::exception_ptr thrown) {
  std::string code = "Q4900", message = "unknown native error", hint;
  try {
    std::rethrow_exception(thrown);
  } catch (const FileError& error) {
    return file_error_to_js(env, error);
  } catch (const Error& error) {
    code = error.code(), message = error.what(), hint = error.hint();
  } catch (const std::bad_alloc&) {
    code = "Q4401", message = "the machine has no memory left";
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
  }
  Napi::Error js = Napi::Error::New(env, message);
  js.Value().Set("code", code);
  if (!hint.empty()) js.Value().Set("hint", hint);
  return js;
}

void export_function(Napi::Env env, Napi::Object exports, const char* name,
                     std::function<Napi::Value(const Napi::CallbackInfo&)> body) {
  exports.Set(name, Napi::Function::New(
                        env,
                        [body = std::move(body)](const Napi::CallbackInfo& info) -> Napi::Value {
                          try {
                            return body(info);
                          } catch (const Napi::Error&) {
                            throw;  // already a JS error
                          } catch (...) {
                            throw to_js_error(info.Env(), std::current_exception());
                          }
                        },
                        name));
}

namespace {

class PromiseWorker : public Napi::AsyncWorker {
 public:
  PromiseWorker(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> finish)
      : Napi::AsyncWorker(env, "q4run"),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        finish_(std::move(finish)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    try {
      work_();
    } catch (...) {
      thrown_ = std::current_exception();
    }
    work_ = nullptr;  // lets go of what the work held, off the JS thread
  }
  void OnOK() override {
    Napi::HandleScope scope(Env());
    if (thrown_) return deferred_.Reject(to_js_error(Env(), thrown_).Value());
    try {
      deferred_.Resolve(finish_(Env()));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    } catch (...) {
      deferred_.Reject(to_js_error(Env(), std::current_exception()).Value());
    }
  }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  std::function<void()> work_;
  std::function<Napi::Value(Napi::Env)> finish_;
  std::exception_ptr thrown_;
};

}  // namespace

Napi::Promise run_async(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> finish) {
  auto* worker = new PromiseWorker(env, std::move(work), std::move(finish));
  Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

std::string text(const Napi::Value& value) {
  if (!value.IsString()) throw Error("Q4514", "expected a string");
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object object(const Napi::Value& value) {
  if (!value.IsObject()) throw Error("Q4514", "expected an object");
  return value.As<Napi::Object>();
}

Napi::Array array(const Napi::Value& value) {
  if (!value.IsArray()) throw Error("Q4514", "expected an array");
  return value.As<Napi::Array>();
}

int64_t to_int64(const Napi::Value& value) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(std::abs(number) <= 9007199254740991.0 && number == std::floor(number)))
    throw Error("Q4514", "expected a whole number");
  return static_cast<int64_t>(number);
}

std::vector<int64_t> to_int64s(const Napi::Value& value) {
  if (!value.IsArray()) throw Error("Q4514", "expected an array of whole numbers");
  const auto array = value.As<Napi::Array>();
  std::vector<int64_t> numbers;
  for (uint32_t i = 0; i < array.Length(); ++i) numbers.push_back(to_int64(array.Get(i)));
  return numbers;
}

}  // namespace q4
