// Work on the pieces of a file by a few threads that live as long as the call.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace q4 {

// Threads that keep one disk or page cache busy: the cores, at most 8.
int file_threads();

// Calls body(0 … n−1), handed out in order, from the calling thread and up to threads−1 others. When calls throw, the
// exception of the lowest index is thrown, after all calls below it were made: the outcome does not depend on timing.
// Q4501 when `cancel` becomes true first. `tick` runs on the calling thread after each of its own calls.
void run_in_threads(int64_t n, int threads, const std::atomic<bool>& cancel, const std::function<void(int64_t)>& body,
                    const std::function<void()>& tick);

}  // namespace q4
