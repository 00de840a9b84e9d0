// A team of threads that runs one function together, with barriers inside it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace alcs {

// A flag that counts up; waiters spin for some microseconds, then sleep. A network of thirty layers
// in three milliseconds cannot pay for a system call at each layer, and a process that waits for
// long, or shares its cores with others, must not burn them.
class Epoch {
 public:
  std::uint32_t now() const { return value_.load(std::memory_order_acquire); }
  void advance();
  void wait_beyond(std::uint32_t seen);

 private:
  std::atomic<std::uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // Calls work(0) on this thread and work(1 .. size - 1) on the others; returns when all are done.
  void run(const std::function<void(int)>& work);
  // Inside `run`: nobody passes before all have come.
  void barrier();

 private:
  void serve(int member);

  const int size_;
  Epoch started_, met_;
  std::atomic<int> arrived_{0};
  std::atomic<bool> ends_{false};
  const std::function<void(int)>* work_ = nullptr;
  std::vector<std::thread> threads_;
};

// While it lives, numbers too small to be normal count as zero on this thread: arithmetic on them
// is a hundred times slower.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();

 private:
  std::uint64_t before_;
};

}  // namespace alcs
