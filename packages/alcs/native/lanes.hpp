// Moving floats between the lanes of vectors, and vectors that are only partly there.
#pragma once

#include "vec.hpp"

namespace alcs {
namespace {

// The numbers 0 .. kCount - 1 as a parameter pack, from which shuffles compute their indices.
template <int...>
struct Lanes {};
template <int kCount, int... kLane>
struct CountLanes : CountLanes<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct CountLanes<0, kLane...> {
  using All = Lanes<kLane...>;
};
using AllLanes = CountLanes<kLanes>::All;

// Every second float of the 2 * kLanes from `a` to `b`.
template <int kFirst, int... kLane>
ALCS_INLINE V every_second(V a, V b, Lanes<kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane + kFirst)...);
}
ALCS_INLINE V evens(V a, V b) { return every_second<0>(a, b, AllLanes()); }
ALCS_INLINE V odds(V a, V b) { return every_second<1>(a, b, AllLanes()); }

// The lanes moved by one, `edge` at the end that is left free.
template <int... kLane>
ALCS_INLINE V move_up(V v, V edge, Lanes<kLane...>) {
  return __builtin_shufflevector(edge, v, (kLane + kLanes - 1)...);
}
template <int... kLane>
ALCS_INLINE V move_down(V v, V edge, Lanes<kLane...>) {
  return __builtin_shufflevector(v, edge, (kLane + 1)...);
}

// Says that a vector which was loaded is used more than once: GCC may otherwise load it each time.
ALCS_INLINE V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Exchanges the lanes of `a` in which bit kStep is set with the lanes of `b` where it is not.
template <int kStep, int... kLane>
ALCS_INLINE void exchange(V& a, V& b, Lanes<kLane...>) {
  const V first =
      __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + kLanes : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kStep ? kLane + kLanes : kLane + kStep)...);
  a = first;
}

// Transposes kLanes vectors in log2(kLanes) rounds.
template <int kStep = kLanes / 2>
ALCS_INLINE void transpose(V (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & kStep)) exchange<kStep>(rows[i], rows[i + kStep], AllLanes());
  }
  if constexpr (kStep > 1) transpose<kStep / 2>(rows);
}

// Loads the first `count` lanes, zeros behind them.
ALCS_INLINE V load_some(const float* p, int count) {
  if (count >= kLanes) return load(p);
  V v = V{};
  std::memcpy(&v, p, sizeof(float) * static_cast<std::size_t>(count));
  return v;
}

}  // namespace
}  // namespace alcs
