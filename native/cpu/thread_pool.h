// A few threads that run one loop at a time. Each thread has a run of neighbouring tasks of its own, so that it streams
// through memory, and then helps the others: who runs a task is open, so callers must give every output to exactly one
// task; then results do not depend on the number of threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace q4 {

class ThreadPool {
 public:
  // The caller is one of the `threads`.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, worker) for task in [0, tasks), worker in [0, threads()); returns when all are done. The first
  // exception of a task is rethrown here.
  template <typename Body>
  void run(int64_t tasks, Body&& body) {
    run_tasks(
        tasks, [](void* context, int64_t task, int worker) { (*static_cast<Body*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
  // Calls body(begin, end, worker) for pieces of [0, count) of `grain` items: a fixed partition.
  template <typename Body>
  void run_ranges(int64_t count, int64_t grain, Body&& body) {
    run((count + grain - 1) / grain, [&](int64_t task, int worker) {
      const int64_t begin = task * grain;
      body(begin, begin + grain < count ? begin + grain : count, worker);
    });
  }

 private:
  using Task = void (*)(void*, int64_t, int);
  void run_tasks(int64_t tasks, Task task, void* context);
  void work(int worker);
  void claim_tasks(int worker);

  std::mutex mutex_;  // one loop at a time
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false};
  // What each thread still has to do: [next, end).
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares_;
  // Generation of the loop in the high half; whether it may be joined (kOpen) and how many have, in the low half.
  alignas(64) std::atomic<uint64_t> state_{0};
  // Changes with every loop: what idle workers watch.
  alignas(64) std::atomic<uint32_t> signal_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace q4
