#include "core/store.h"

#include "core/error.h"

namespace q4 {

Allocation::Allocation(std::shared_ptr<Device> device, int64_t bytes)
    : device_(std::move(device)), memory_(device_->backend->allocate(bytes)), bytes_(bytes) {
  const int64_t now = device_->allocated_bytes += bytes;
  int64_t peak = device_->peak_bytes;
  while (now > peak && !device_->peak_bytes.compare_exchange_weak(peak, now)) {
  }
}

Allocation::~Allocation() {
  device_->backend->release(memory_);
  device_->allocated_bytes -= bytes_;
}

Tensor make_tensor(DType dtype, const std::vector<int64_t>& shape, const std::string& name) {
  Tensor tensor;
  tensor.dtype = dtype;
  if (shape.size() > 4) throw Error("Q4510", "tensor '" + name + "' has more than 4 dimensions");
  tensor.rank = static_cast<int>(shape.size());
  int64_t elements = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 1) throw Error("Q4510", "tensor '" + name + "' has a dimension below 1");
    if (__builtin_mul_overflow(elements, shape[i], &elements) || elements > (int64_t{1} << 48))
      throw Error("Q4510", "tensor '" + name + "' is too large");
    tensor.dims[i] = shape[i];
  }
  if (dtype == DType::nvfp4 && (tensor.rank != 2 || tensor.dims[1] % kBlock != 0))
    throw Error("Q4510", "nvfp4 tensor '" + name + "' must be a matrix whose inputs are a multiple of 16");
  return tensor;
}

Claim acquire(const std::shared_ptr<Device>& device) {
  Claim claim = try_claim(device);
  if (!claim) throw Error("Q4513", "the device is busy: a program or a file is using it");
  return claim;
}

void Store::allocate(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
  if (has(name)) throw Error("Q4511", "tensor '" + name + "' exists already");
  Tensor tensor = make_tensor(dtype, shape, name);
  auto allocation = std::make_shared<Allocation>(device_, tensor_bytes(tensor));
  bind_tensor(tensor, allocation->memory());
  bytes_ += allocation->bytes();
  tensors_.emplace(name, Entry{tensor, std::move(allocation)});
}

const Store::Entry& Store::entry(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw Error("Q4511", "there is no tensor '" + name + "' in the store");
  return found->second;
}

Tensor Store::find(const std::string& name) const { return entry(name).tensor; }

std::shared_ptr<Allocation> Store::allocation(const std::string& name) const { return entry(name).allocation; }

void Store::free(const std::string& name) {
  bytes_ -= entry(name).allocation->bytes();
  tensors_.erase(name);
}

void Store::rename(const std::string& from, const std::string& to) {
  if (has(to)) throw Error("Q4511", "tensor '" + to + "' exists already");
  entry(from);
  auto node = tensors_.extract(from);
  node.key() = to;
  tensors_.insert(std::move(node));
}

std::vector<std::string> Store::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

}  // namespace q4
