// Devices, stores, arenas and programs. Converts to plain structs, works, converts back.
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>

#include "binding/handles.h"

namespace q4 {

namespace {

// ---- programs ------------------------------------------------------------------------------------------------------

TensorSpec tensor_spec(const Napi::Object& js) {
  TensorSpec spec;
  spec.name = text(js.Get("name"));
  spec.dtype = dtype_from_name(text(js.Get("dtype")));
  spec.shape = to_int64s(js.Get("shape"));
  const Napi::Object storage = object(js.Get("storage"));
  const std::string kind = text(storage.Get("kind"));
  if (kind == "arena") {
    spec.offset = to_int64(storage.Get("offset"));
  } else if (kind == "store") {
    spec.in_store = true;
    spec.store_name = text(storage.Get("name"));
    if (storage.Has("byteOffset")) spec.offset = to_int64(storage.Get("byteOffset"));
  } else {
    throw Error("Q4510", "tensor '" + spec.name + "' has an unknown storage kind");
  }
  return spec;
}

// Positions in a program's tensors; what is no position at all stays none.
std::vector<int> positions(const Napi::Value& value) {
  std::vector<int> found;
  for (const int64_t i : to_int64s(value)) {
    if (i < -1 || i > INT32_MAX) throw Error("Q4510", "an operand names a tensor that does not exist");
    found.push_back(static_cast<int>(i));
  }
  return found;
}

OpSpec op_spec(const Napi::Object& js) {
  OpSpec spec;
  spec.op = text(js.Get("op"));
  spec.scope = text(js.Get("scope"));
  spec.phase = text(js.Get("phase"));
  spec.inputs = positions(js.Get("inputs"));
  spec.outputs = positions(js.Get("outputs"));
  const Napi::Object attrs = object(js.Get("attrs"));
  const Napi::Array names = attrs.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); ++i) {
    const Napi::Value value = attrs.Get(names.Get(i));
    if (!value.IsNumber()) throw Error("Q4510", "attributes are numbers");
    spec.attrs[text(names.Get(i))] = value.As<Napi::Number>().DoubleValue();
  }
  return spec;
}

ProgramSpec program_spec(const Napi::Object& js) {
  ProgramSpec spec;
  if (to_int64(js.Get("version")) != 1) throw Error("Q4510", "unknown program version");
  spec.name = text(js.Get("name"));
  spec.arena_bytes = to_int64(js.Get("arenaBytes"));
  const Napi::Array tensors = array(js.Get("tensors")), ops = array(js.Get("ops"));
  for (uint32_t i = 0; i < tensors.Length(); ++i) spec.tensors.push_back(tensor_spec(object(tensors.Get(i))));
  for (uint32_t i = 0; i < ops.Length(); ++i) spec.ops.push_back(op_spec(object(ops.Get(i))));
  return spec;
}

// ---- devices -------------------------------------------------------------------------------------------------------

Napi::Object device_info(Napi::Env env, const DeviceInfo& info) {
  Napi::Object js = Napi::Object::New(env);
  js.Set("kind", info.kind);
  js.Set("name", info.name);
  js.Set("instructions", info.instructions);
  js.Set("index", info.index);
  js.Set("threads", info.threads);
  js.Set("totalBytes", static_cast<double>(info.total_bytes));
  js.Set("freeBytes", static_cast<double>(info.free_bytes));
  return js;
}

// openDevice(kind, index, threads, reference) → handle
Napi::Value open_device(const Napi::CallbackInfo& info) {
  BackendOptions options;
  const std::string kind = text(info[0]);
  options.index = static_cast<int>(to_int64(info[1]));
  options.threads = static_cast<int>(to_int64(info[2]));
  options.reference = info[3].ToBoolean();
  auto device = std::make_shared<Device>();
  device->backend = kind == "cuda" ? make_cuda_backend(options) : make_cpu_backend(options);
  return make_handle(info.Env(), std::move(device));
}

// probe() → { cudaBuilt, cudaTargets, cudaReason, cudaDevices }
Napi::Value probe(const Napi::CallbackInfo& info) {
  const CudaProbe cuda = probe_cuda();
  Napi::Object js = Napi::Object::New(info.Env());
  js.Set("cudaBuilt", cuda.built);
  js.Set("cudaTargets", cuda.targets);
  js.Set("cudaReason", cuda.reason);
  Napi::Array devices = Napi::Array::New(info.Env());
  for (size_t i = 0; i < cuda.list.size(); ++i) devices.Set(i, device_info(info.Env(), cuda.list[i]));
  js.Set("cudaDevices", devices);
  return js;
}

// ---- stores --------------------------------------------------------------------------------------------------------

struct PartView {
  void* data;
  int64_t bytes;
  DType dtype;
};

// The bytes behind a tensor's part; what `store.read` and `store.write` copy.
PartView part_view(const Tensor& tensor, const std::string& part) {
  if (tensor.dtype != DType::nvfp4) {
    if (part != "data") throw Error("Q4511", "a plain tensor has no part '" + part + "'");
    return {tensor.data, tensor.elements() * element_bytes(tensor.dtype), tensor.dtype};
  }
  const Nvfp4Layout layout = nvfp4_layout(tensor.dims[0], tensor.dims[1]);
  if (part == "qdata") return {tensor.data, layout.code_bytes, DType::u8};
  if (part == "scale") return {tensor.scale, layout.scale_bytes, DType::u8};
  if (part == "global_scale") return {tensor.global_scale, 4, DType::f32};
  throw Error("Q4511", "an nvfp4 tensor has parts qdata, scale and global_scale, not '" + part + "'");
}

Napi::Value typed_array(Napi::Env env, DType dtype, Napi::ArrayBuffer buffer, size_t bytes) {
  switch (dtype) {
    case DType::f32:
      return Napi::Float32Array::New(env, bytes / 4, buffer, 0);
    case DType::i32:
      return Napi::Int32Array::New(env, bytes / 4, buffer, 0);
    case DType::bf16:
    case DType::f16:
      return Napi::Uint16Array::New(env, bytes / 2, buffer, 0);
    default:
      return Napi::Uint8Array::New(env, bytes, buffer, 0);
  }
}

bool array_type_fits(DType dtype, napi_typedarray_type type) {
  switch (dtype) {
    case DType::f32:
      return type == napi_float32_array;
    case DType::i32:
      return type == napi_int32_array;
    case DType::bf16:
    case DType::f16:
      return type == napi_uint16_array;
    default:
      return type == napi_uint8_array;
  }
}

// storeRead(store, name, part) → typed array
Napi::Value store_read(const Napi::CallbackInfo& info) {
  const auto store = get_handle<Store>(info[0]);
  const PartView part = part_view(store->find(text(info[1])), text(info[2]));
  const auto lock = acquire(store->device());
  auto buffer = Napi::ArrayBuffer::New(info.Env(), part.bytes);
  store->backend().download(buffer.Data(), part.data, part.bytes);
  return typed_array(info.Env(), part.dtype, buffer, part.bytes);
}

// storeWrite(store, name, part, typed array)
Napi::Value store_write(const Napi::CallbackInfo& info) {
  const auto store = get_handle<Store>(info[0]);
  const std::string name = text(info[1]);
  const PartView part = part_view(store->find(name), text(info[2]));
  if (!info[3].IsTypedArray()) throw Error("Q4514", "expected a typed array");
  const auto source = info[3].As<Napi::TypedArray>();
  if (!array_type_fits(part.dtype, source.TypedArrayType()) || static_cast<int64_t>(source.ByteLength()) != part.bytes)
    throw Error("Q4511", "the data written to '" + name + "' must be " + std::to_string(part.bytes) + " bytes of " +
                             dtype_name(part.dtype));
  const auto lock = acquire(store->device());
  store->backend().upload(part.data, static_cast<const uint8_t*>(source.ArrayBuffer().Data()) + source.ByteOffset(),
                          part.bytes);
  return info.Env().Undefined();
}

Napi::Value store_info(const Napi::CallbackInfo& info) {
  const auto store = get_handle<Store>(info[0]);
  const std::string name = text(info[1]);
  const Tensor tensor = store->find(name);
  Napi::Object js = Napi::Object::New(info.Env());
  Napi::Array shape = Napi::Array::New(info.Env());
  for (int i = 0; i < tensor.rank; ++i) shape.Set(static_cast<uint32_t>(i), static_cast<double>(tensor.dims[i]));
  js.Set("name", name);
  js.Set("dtype", dtype_name(tensor.dtype));
  js.Set("shape", shape);
  js.Set("bytes", static_cast<double>(tensor_bytes(tensor)));
  return js;
}

// ---- running -------------------------------------------------------------------------------------------------------

// executableRun(executable, cancel, profile) → Promise<Float64Array | undefined>
Napi::Value executable_run(const Napi::CallbackInfo& info) {
  auto program = get_handle<Program>(info[0]);
  auto cancel = get_handle<CancelFlag>(info[1]);
  auto seconds = info[2].ToBoolean() ? std::make_shared<std::vector<double>>() : nullptr;
  return run_async(
      info.Env(), [device = program->claim(), program, cancel, seconds] { program->run(*cancel, seconds.get()); },
      [seconds](Napi::Env env) -> Napi::Value {
        if (!seconds) return env.Undefined();
        auto times = Napi::Float64Array::New(env, seconds->size());
        std::copy(seconds->begin(), seconds->end(), times.Data());
        return times;
      });
}

// What a decode loop and its JavaScript callback share.
struct DecodeState {
  std::mutex mutex;
  std::condition_variable delivered;
  int64_t waiting = 0;         // steps sent and not yet delivered
  std::vector<uint8_t> ended;  // rows that the callback ended
  std::exception_ptr thrown;
  DecodeOutcome outcome;
};

// executableDecode(executable, tokens, maxTokens, stopTokens, cancel, onStep(Int32Array) → ended rows | undefined)
//   → Promise<{ steps, cancelled }>.  At most 8 steps run ahead of the callback.
Napi::Value executable_decode(const Napi::CallbackInfo& info) {
  auto program = get_handle<Program>(info[0]);
  const std::string tokens = text(info[1]);
  DecodeLimits limits;
  limits.max_tokens = to_int64(info[2]);
  for (const int64_t token : to_int64s(info[3]))
    if (token >= 0 && token <= INT32_MAX) limits.stop_tokens.push_back(static_cast<int32_t>(token));
  auto cancel = get_handle<CancelFlag>(info[4]);
  auto state = std::make_shared<DecodeState>();
  // Before the callback is made, which somebody must release.
  Claim device = program->claim();
  auto callback = Napi::ThreadSafeFunction::New(info.Env(), info[5].As<Napi::Function>(), "q4run decode", 8, 1);

  const auto deliver = [state, cancel](Napi::Env env, Napi::Function on_step, std::vector<int32_t>* step) {
    const std::unique_ptr<std::vector<int32_t>> owned(step);
    struct Delivered {
      DecodeState& state;
      ~Delivered() {
        const std::lock_guard lock(state.mutex);
        if (--state.waiting == 0) state.delivered.notify_all();
      }
    } delivered{*state};
    if (env == nullptr) return;  // the environment is going away
    try {
      auto array = Napi::Int32Array::New(env, owned->size());
      std::copy(owned->begin(), owned->end(), array.Data());
      const Napi::Value result = on_step.Call({array});
      if (!result.IsArray()) return;
      const std::lock_guard lock(state->mutex);
      for (const int64_t row : to_int64s(result))
        if (row >= 0) {
          if (state->ended.size() <= static_cast<size_t>(row)) state->ended.resize(row + 1);
          state->ended[row] = 1;
        }
    } catch (const std::exception& error) {
      const std::lock_guard lock(state->mutex);
      state->thrown = std::make_exception_ptr(Error("Q4900", std::string("a token callback threw: ") + error.what()));
      cancel->store(true);
    }
  };
  return run_async(
      info.Env(),
      [device = std::move(device), program, tokens, limits, cancel, state, callback, deliver]() mutable {
        struct Release {
          Napi::ThreadSafeFunction& callback;
          ~Release() { callback.Release(); }
        } release{callback};
        state->outcome =
            program->decode(tokens, limits, *cancel, [&](const std::vector<int32_t>& step, std::vector<uint8_t>& live) {
              auto* copy = new std::vector<int32_t>(step);
              {
                const std::lock_guard lock(state->mutex);
                ++state->waiting;
              }
              if (callback.BlockingCall(copy, deliver) != napi_ok) {
                delete copy;
                throw Error("Q4501", "cancelled: the environment is closing");
              }
              const std::lock_guard lock(state->mutex);
              for (size_t row = 0; row < std::min(live.size(), state->ended.size()); ++row)
                if (state->ended[row]) live[row] = 0;
            });
        // The promise must not settle before the last token was seen.
        std::unique_lock lock(state->mutex);
        state->delivered.wait(lock, [&] { return state->waiting == 0; });
      },
      [state](Napi::Env env) -> Napi::Value {
        if (state->thrown) std::rethrow_exception(state->thrown);
        Napi::Object js = Napi::Object::New(env);
        js.Set("steps", static_cast<double>(state->outcome.steps));
        js.Set("cancelled", state->outcome.cancelled);
        return js;
      });
}

}  // namespace

void register_engine(Napi::Env env, Napi::Object exports) {
  const auto add = [&](const char* name, Napi::Value (*body)(const Napi::CallbackInfo&)) {
    export_function(env, exports, name, body);
  };
  add("openDevice", open_device);
  add("probe", probe);
  add("deviceInfo", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const auto device = get_handle<Device>(info[0]);
    Napi::Object js = device_info(info.Env(), device->backend->info());
    js.Set("allocatedBytes", static_cast<double>(device->allocated_bytes));
    js.Set("peakBytes", static_cast<double>(device->peak_bytes));
    return js;
  });
  add("dispose", [](const Napi::CallbackInfo& info) -> Napi::Value {
    handle_box(info[0]).object.reset();
    return info.Env().Undefined();
  });
  add("createCancel", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return make_handle(info.Env(), std::make_shared<CancelFlag>(false));
  });
  add("cancel", [](const Napi::CallbackInfo& info) -> Napi::Value {
    get_handle<CancelFlag>(info[0])->store(true);
    return info.Env().Undefined();
  });
  add("createStore", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return make_handle(info.Env(), std::make_shared<Store>(get_handle<Device>(info[0])));
  });
  add("createArena", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const auto device = get_handle<Device>(info[0]);
    const int64_t bytes = to_int64(info[1]);
    if (bytes < 0) throw Error("Q4510", "an arena cannot have a negative size");
    return make_handle(info.Env(), std::make_shared<Allocation>(device, std::max(bytes, kAlignment)));
  });
  // storeAllocate(store, name, dtype, shape)
  add("storeAllocate", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const auto store = get_handle<Store>(info[0]);
    const auto lock = acquire(store->device());
    store->allocate(text(info[1]), dtype_from_name(text(info[2])), to_int64s(info[3]));
    return info.Env().Undefined();
  });
  add("storeHas", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::Boolean::New(info.Env(), get_handle<Store>(info[0])->has(text(info[1])));
  });
  add("storeInfo", store_info);
  add("storeNames", [](const Napi::CallbackInfo& info) -> Napi::Value {
    Napi::Array names = Napi::Array::New(info.Env());
    uint32_t i = 0;
    for (const std::string& name : get_handle<Store>(info[0])->names()) names.Set(i++, name);
    return names;
  });
  add("storeBytes", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::Number::New(info.Env(), static_cast<double>(get_handle<Store>(info[0])->bytes()));
  });
  add("storeFree", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const auto store = get_handle<Store>(info[0]);
    const auto lock = acquire(store->device());
    store->free(text(info[1]));
    return info.Env().Undefined();
  });
  add("storeRename", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const auto store = get_handle<Store>(info[0]);
    const auto lock = acquire(store->device());
    store->rename(text(info[1]), text(info[2]));
    return info.Env().Undefined();
  });
  add("storeRead", store_read);
  add("storeWrite", store_write);
  // loadProgram(store, program, arena | null) → executable
  add("loadProgram", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const auto store = get_handle<Store>(info[0]);
    std::shared_ptr<Allocation> arena;
    if (info[2].IsExternal()) arena = get_handle<Allocation>(info[2]);
    const ProgramSpec spec = program_spec(object(info[1]));
    const auto lock = acquire(store->device());
    return make_handle(info.Env(), std::make_shared<Program>(store, spec, std::move(arena)));
  });
  add("executableRun", executable_run);
  add("executableDecode", executable_decode);
}

}  // namespace q4
