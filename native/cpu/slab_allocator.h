// Memory for tensors: zeroed, aligned, on huge pages. Small blocks share large mappings ("slabs"), so that a layer's
// weights lie on a few huge pages instead of thousands of small ones, where every page would be looked up and the
// hardware's prefetcher would stop. Pages are taken from the system when they are first touched.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>

namespace q4 {

class SlabAllocator {
 public:
  SlabAllocator() = default;
  ~SlabAllocator();
  SlabAllocator(const SlabAllocator&) = delete;
  SlabAllocator& operator=(const SlabAllocator&) = delete;

  // `bytes` ≥ 1, a multiple of kAlignment. Null when the system has no address space or memory left.
  void* allocate(int64_t bytes);
  // The size of the block that was given back; 0 for an address that is none.
  int64_t release(void* memory);

 private:
  struct Free {
    int64_t bytes;
    bool clean;  // never used since it was mapped: still zero
  };
  struct Slab {
    int64_t bytes = 0, used_bytes = 0;
    std::map<char*, Free> free;  // by address; neighbours are merged
  };
  Slab* find_slab(char* memory);

  std::mutex mutex_;
  std::map<char*, Slab> slabs_;                      // by address
  std::unordered_map<char*, int64_t> blocks_;        // in slabs
  std::unordered_map<char*, int64_t> own_mappings_;  // large blocks: bytes asked
};

}  // namespace q4
