// What the parts of the binding share: handles that can be disposed twice, errors with codes, work off the JS thread.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>
#include <string>

#include "core/error.h"
#include "core/program.h"
#include "core/store.h"

namespace q4 {

// A native object as JavaScript holds it: an External around a shared pointer. dispose() lets go of the pointer; work in
// flight keeps its own. Using a disposed handle, or one of another kind, is Error(Q4514).
struct HandleBox {
  const char* kind;
  std::shared_ptr<void> object;
};

template <typename T>
struct HandleKind;
template <>
struct HandleKind<Device> {
  static constexpr const char* name = "engine";
};
template <>
struct HandleKind<Store> {
  static constexpr const char* name = "store";
};
template <>
struct HandleKind<Allocation> {
  static constexpr const char* name = "arena";
};
template <>
struct HandleKind<Program> {
  static constexpr const char* name = "executable";
};
template <>
struct HandleKind<CancelFlag> {
  static constexpr const char* name = "cancel flag";
};

template <typename T>
Napi::Value make_handle(Napi::Env env, std::shared_ptr<T> object) {
  auto* box = new HandleBox{HandleKind<T>::name, std::move(object)};
  return Napi::External<HandleBox>::New(env, box, [](Napi::Env, HandleBox* dead) { delete dead; });
}

HandleBox& handle_box(const Napi::Value& value);

template <typename T>
std::shared_ptr<T> get_handle(const Napi::Value& value) {
  HandleBox& box = handle_box(value);
  if (std::string(box.kind) != HandleKind<T>::name)
    throw Error("Q4514", std::string("expected a handle of an ") + HandleKind<T>::name + ", got one of an " + box.kind);
  if (!box.object) throw Error("Q4514", std::string("this ") + box.kind + " was disposed");
  return std::static_pointer_cast<T>(box.object);
}

// A JS Error with `code` and `hint`; anything but q4::Error gets Q4900 (std::bad_alloc Q4401).
Napi::Error to_js_error(Napi::Env env, std::exception_ptr thrown);

// Exports `name`; a C++ exception becomes a JS Error with its code.
void export_function(Napi::Env env, Napi::Object exports, const char* name,
                     std::function<Napi::Value(const Napi::CallbackInfo&)> body);

// Runs `work` on a libuv thread and settles a promise with `finish` (on the JS thread) or the error.
Napi::Promise run_async(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> finish);

// Arguments by kind. Q4514 for anything else.
std::string text(const Napi::Value& value);
Napi::Object object(const Napi::Value& value);
Napi::Array array(const Napi::Value& value);
int64_t to_int64(const Napi::Value& value);
std::vector<int64_t> to_int64s(const Napi::Value& value);

void register_engine(Napi::Env env, Napi::Object exports);
void register_files(Napi::Env env, Napi::Object exports);

}  // namespace q4
