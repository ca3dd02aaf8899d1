#include "core/file_threads.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"

namespace q4 {

namespace {

class Crew {
 public:
  Crew(int64_t n, const std::atomic<bool>& cancel, const std::function<void(int64_t)>& body)
      : n_(n), cancel_(cancel), body_(body) {}

  void work(const std::function<void()>* tick) noexcept {
    for (;;) {
      if (cancel_.load(std::memory_order_relaxed)) return;
      const int64_t i = next_.fetch_add(1);
      // Lower indices than a failed one were handed out before it and are still done to the end.
      if (i >= n_ || i > failed_.load()) return;
      try {
        body_(i);
        if (tick) (*tick)();
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (i < failed_) failed_ = i, thrown_ = std::current_exception();
      }
    }
  }

  void finish() {
    if (thrown_) std::rethrow_exception(thrown_);
    if (cancel_ && next_ < n_) throw Error("Q4501", "cancelled");
  }

 private:
  const int64_t n_;
  const std::atomic<bool>& cancel_;
  const std::function<void(int64_t)>& body_;
  std::atomic<int64_t> next_{0}, failed_{std::numeric_limits<int64_t>::max()};
  std::mutex mutex_;
  std::exception_ptr thrown_;
};

}  // namespace

int file_threads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 8); }

void run_in_threads(int64_t n, int threads, const std::atomic<bool>& cancel, const std::function<void(int64_t)>& body,
                    const std::function<void()>& tick) {
  Crew crew(n, cancel, body);
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads));
  for (int64_t i = 1; i < std::min<int64_t>(threads, n); ++i) {
    try {
      others.emplace_back([&] { crew.work(nullptr); });
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the ones there are do the work
    }
  }
  crew.work(&tick);
  for (std::thread& other : others) other.join();
  crew.finish();
}

}  // namespace q4
