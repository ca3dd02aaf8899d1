// What one user at a time may have, taken at once or not at all.
#pragma once
#include <atomic>
#include <memory>

namespace q4 {

// Held by whoever uses a thing; the thing is kept alive, and free again when the last copy goes. Unlike a lock, a claim
// may be let go of on another thread than it was made on.
using Claim = std::shared_ptr<void>;

// Sets `owner->busy`, an atomic flag; an empty claim when it was set already.
template <typename T>
Claim try_claim(const std::shared_ptr<T>& owner) {
  if (owner->busy.exchange(true, std::memory_order_acquire)) return nullptr;
  return Claim(owner.get(), [owner](void*) { owner->busy.store(false, std::memory_order_release); });
}

}  // namespace q4
