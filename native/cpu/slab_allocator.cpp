#include "cpu/slab_allocator.h"

#include <sys/mman.h>

#include <cstring>

namespace q4 {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20, kSlab = int64_t{64} << 20;
// Blocks from here on have a mapping of their own, which goes back to the system when they are released.
constexpr int64_t kOwnMapping = int64_t{16} << 20;

int64_t whole_pages(int64_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// Zeroed memory that starts on a huge page; null when there is none.
char* map_pages(int64_t bytes) {
  // One huge page more than needed, and the ends given back.
  char* base = static_cast<char*>(mmap(nullptr, static_cast<size_t>(bytes + kHugePage), PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED) return nullptr;
  const int64_t lead = (kHugePage - reinterpret_cast<intptr_t>(base) % kHugePage) % kHugePage;
  if (lead > 0) munmap(base, static_cast<size_t>(lead));
  munmap(base + lead + bytes, static_cast<size_t>(kHugePage - lead));
#if defined(MADV_HUGEPAGE)
  madvise(base + lead, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return base + lead;
}

}  // namespace

SlabAllocator::~SlabAllocator() {
  for (const auto& [base, slab] : slabs_) munmap(base, static_cast<size_t>(slab.bytes));
  for (const auto& [base, bytes] : own_mappings_) munmap(base, static_cast<size_t>(whole_pages(bytes)));
}

void* SlabAllocator::allocate(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes >= kOwnMapping) {
    char* memory = map_pages(whole_pages(bytes));
    if (memory) own_mappings_[memory] = bytes;
    return memory;
  }
  // The lowest place that fits.
  for (auto& [base, slab] : slabs_)
    for (auto place = slab.free.begin(); place != slab.free.end(); ++place) {
      const auto [at, free] = *place;
      if (free.bytes < bytes) continue;
      slab.free.erase(place);
      if (free.bytes > bytes) slab.free[at + bytes] = {free.bytes - bytes, free.clean};
      slab.used_bytes += bytes;
      blocks_[at] = bytes;
      if (!free.clean) std::memset(at, 0, static_cast<size_t>(bytes));
      return at;
    }
  char* base = map_pages(kSlab);
  if (!base) return nullptr;
  Slab& slab = slabs_[base];
  slab.bytes = kSlab;
  slab.used_bytes = bytes;
  slab.free[base + bytes] = {kSlab - bytes, true};
  blocks_[base] = bytes;
  return base;
}

SlabAllocator::Slab* SlabAllocator::find_slab(char* memory) {
  auto after = slabs_.upper_bound(memory);
  return after == slabs_.begin() ? nullptr : &std::prev(after)->second;
}

int64_t SlabAllocator::release(void* pointer) {
  char* memory = static_cast<char*>(pointer);
  const std::lock_guard lock(mutex_);
  if (const auto own = own_mappings_.find(memory); own != own_mappings_.end()) {
    const int64_t bytes = own->second;
    own_mappings_.erase(own);
    munmap(memory, static_cast<size_t>(whole_pages(bytes)));
    return bytes;
  }
  const auto block = blocks_.find(memory);
  if (block == blocks_.end()) return 0;
  const int64_t bytes = block->second;
  blocks_.erase(block);
  Slab& slab = *find_slab(memory);
  slab.used_bytes -= bytes;
  if (slab.used_bytes == 0) {
    char* base = std::prev(slabs_.upper_bound(memory))->first;
    munmap(base, static_cast<size_t>(slab.bytes));
    slabs_.erase(base);
    return bytes;
  }
  auto place = slab.free.emplace(memory, Free{bytes, false}).first;
  const auto next = std::next(place);
  if (next != slab.free.end() && place->first + place->second.bytes == next->first) {
    place->second.bytes += next->second.bytes;
    slab.free.erase(next);
  }
  if (place != slab.free.begin()) {
    const auto previous = std::prev(place);
    if (previous->first + previous->second.bytes == place->first) {
      previous->second = {previous->second.bytes + place->second.bytes, false};
      slab.free.erase(place);
    }
  }
  return bytes;
}

}  // namespace q4
