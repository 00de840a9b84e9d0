#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace alcs {
namespace {

constexpr int kSpins = 3000;  // some tens of microseconds

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Epoch::advance() {
  value_.fetch_add(1);
  if (sleepers_.load() > 0) {  // who sleeps later sees the new value first
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
}

void Epoch::wait_beyond(std::uint32_t seen) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (now() != seen) return;
    pause_briefly();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1);
  changed_.wait(lock, [&] { return value_.load() != seen; });
  sleepers_.fetch_sub(1);
}

Team::Team(int size) : size_(size) {
  threads_.reserve(static_cast<std::size_t>(size - 1));
  for (int member = 1; member < size; ++member) threads_.emplace_back([=] { serve(member); });
}

Team::~Team() {
  ends_ = true;
  started_.advance();
  for (std::thread& thread : threads_) thread.join();
}

void Team::serve(int member) {
  FlushDenormals flush;
  for (std::uint32_t seen = 0;; ++seen) {
    started_.wait_beyond(seen);
    if (ends_) return;
    (*work_)(member);
    barrier();
  }
}

void Team::run(const std::function<void(int)>& work) {
  FlushDenormals flush;
  if (size_ == 1) {
    work(0);
    return;
  }
  work_ = &work;
  started_.advance();
  work(0);
  barrier();
}

void Team::barrier() {
  if (size_ == 1) return;
  const std::uint32_t seen = met_.now();
  if (arrived_.fetch_add(1) + 1 == size_) {
    arrived_.store(0);
    met_.advance();
  } else {
    met_.wait_beyond(seen);
  }
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : before_(_mm_getcsr()) {
  _mm_setcsr(static_cast<unsigned>(before_) | 0x8040U);  // flush results, take inputs as zero
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" : : "r"(before_ | (std::uint64_t{1} << 24)));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
FlushDenormals::FlushDenormals() : before_(0) {}
FlushDenormals::~FlushDenormals() = default;
#endif

}  // namespace alcs
