#include "cpu/thread_pool.h"

namespace q4 {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kJoined = kOpen - 1;
// How long an idle worker watches for the next loop before it sleeps: some tens of microseconds, longer than the gap
// between two ops of a program.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : shares_(static_cast<size_t>(threads)) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  signal_.fetch_add(1);
  signal_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::claim_tasks(int worker) {
  const int count = threads();
  for (int i = 0; i < count; ++i) {
    Share& share = shares_[static_cast<size_t>((worker + i) % count)];
    for (;;) {
      // A look before the claim: what is empty is only read, so its line stays where it is.
      if (share.next.load(std::memory_order_relaxed) >= share.end) break;
      const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      try {
        task_(context_, task, worker);
      } catch (...) {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
      }
    }
  }
}

void ThreadPool::run_tasks(int64_t tasks, Task task, void* context) {
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty()) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
    return;
  }
  const std::lock_guard lock(mutex_);
  task_ = task;
  context_ = context;
  failed_ = false;
  const int64_t count = threads();
  for (int64_t i = 0; i < count; ++i) {
    Share& share = shares_[static_cast<size_t>(i)];
    share.next.store(tasks * i / count, std::memory_order_relaxed);
    share.end = tasks * (i + 1) / count;
  }
  const uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(generation << 32 | kOpen, std::memory_order_release);
  signal_.store(static_cast<uint32_t>(generation));
  if (sleeping_.load() > 0) signal_.notify_all();
  claim_tasks(0);
  // No one may join any more; wait for those who did. A worker that never woke up is not waited for.
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (state_.load(std::memory_order_acquire) & kJoined) != 0; ++spins) {
    if (spins < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
  if (failed_) {
    const std::exception_ptr failure = failure_;
    failure_ = nullptr;
    std::rethrow_exception(failure);
  }
}

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; signal_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) pause();
    if (signal_.load() == seen) {
      ++sleeping_;
      signal_.wait(seen);
      --sleeping_;
    }
    if (stop_) return;
    seen = signal_.load(std::memory_order_acquire);
    uint64_t state = state_.load(std::memory_order_acquire);
    while ((state & kOpen) != 0 && !state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
    }
    if ((state & kOpen) == 0) continue;
    claim_tasks(worker);
    state_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace q4
