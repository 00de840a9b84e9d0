// A vector of ALCS_LANES floats by the compiler's vector extensions (GCC, Clang): one source for
// every instruction set. Everything has internal linkage, so that no copy of a function compiled
// for one set can be taken for another's.
#pragma once

#include <cstring>

#include "kernels.hpp"

#ifndef ALCS_LANES
#error "ALCS_LANES, the floats in a vector of this instruction set, is set by the build"
#endif

namespace alcs {
namespace {

constexpr int kLanes = ALCS_LANES;

typedef float V __attribute__((vector_size(4 * ALCS_LANES)));
typedef u32 M __attribute__((vector_size(4 * ALCS_LANES)));
typedef float UnalignedV __attribute__((vector_size(4 * ALCS_LANES), aligned(4), may_alias));
typedef u32 UnalignedM __attribute__((vector_size(4 * ALCS_LANES), aligned(4), may_alias));
typedef float V4 __attribute__((vector_size(16)));
typedef float UnalignedV4 __attribute__((vector_size(16), aligned(4), may_alias));

#define ALCS_INLINE inline __attribute__((always_inline))

ALCS_INLINE V load(const float* p) { return *reinterpret_cast<const UnalignedV*>(p); }
ALCS_INLINE void store(float* p, V v) { *reinterpret_cast<UnalignedV*>(p) = v; }
ALCS_INLINE M load_mask(const u32* p) { return *reinterpret_cast<const UnalignedM*>(p); }
ALCS_INLINE V splat(float s) { return s - V{}; }  // s + 0 is another number than -0
ALCS_INLINE V keep(V v, M mask) { return reinterpret_cast<V>(reinterpret_cast<M>(v) & mask); }
ALCS_INLINE V4 load4(const float* p) { return *reinterpret_cast<const UnalignedV4*>(p); }

// NaN passes through both, as in torch.
template <class T>
ALCS_INLINE T at_least(T v, T low) {
  return v < low ? low : v;
}
template <class T>
ALCS_INLINE T at_most(T v, T high) {
  return v > high ? high : v;
}

// Stores the first `count` lanes.
ALCS_INLINE void store_some(float* p, V v, int count) {
  if (count >= kLanes) {
    store(p, v);
  } else {
    std::memcpy(p, &v, sizeof(float) * static_cast<std::size_t>(count));
  }
}

ALCS_INLINE float lane_sum(V v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

}  // namespace
}  // namespace alcs
