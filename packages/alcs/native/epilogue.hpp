// What every kernel does with a finished sum: the activation, on a vector of any width or a number.
#pragma once

#include "lanes.hpp"

namespace alcs {
namespace {

// e^x within 2e-7 of it, saturating at e^-87 and e^87 so that a power of two stays a normal number.
template <class T>
ALCS_INLINE T exponential(T x) {
  using Bits = decltype(x < x);  // integers of the same width
  x = at_most(at_least(x, T{} - 87.0F), T{} + 87.0F);
  const T shifter = T{} + 12582912.0F;             // 1.5 * 2^23: adding it rounds to an integer,
  const T shifted = x * 1.44269504F + shifter;     // which then stands in the lowest bits
  const T exponent = shifted - shifter;
  // log 2 in two parts, the first one exact in few bits: the product loses nothing.
  const T r = (x - exponent * 0.693359375F) + exponent * 2.12194440e-4F;
  T p = r * 8.31252021e-3F + 4.18901571e-2F;  // least largest error on |r| <= log(2) / 2
  p = p * r + 1.66671147e-1F;
  p = p * r + 4.99992315e-1F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return p * reinterpret_cast<T>((reinterpret_cast<Bits>(shifted) + 127) << 23);
}

template <class T>
ALCS_INLINE T sigmoid(T x) {
  return 1.0F / (1.0F + exponential(-x));
}

template <class T>
ALCS_INLINE T hard_sigmoid(T x) {
  return at_most(at_least(x * (1.0F / 6.0F) + 0.5F, T{}), T{} + 1.0F);
}

// `low` and `high` are the bounds of kClip.
template <class T>
ALCS_INLINE T activate(T x, i32 activation, float low, float high) {
  switch (activation) {
    case kClip:
      return at_most(at_least(x, low - T{}), high - T{});
    case kHardSwish:
      return x * hard_sigmoid(x);
    case kHardSigmoid:
      return hard_sigmoid(x);
    case kSigmoid:
      return sigmoid(x);
    case kSilu:
      return x * sigmoid(x);
    default:
      return x;
  }
}

ALCS_INLINE float activate(float x, i32 activation, float low, float high) {
  return activate(x - V4{}, activation, low, high)[0];
}

// The common case, in registers: a clip, without bounds where the activation is another one.
struct Clip {
  V low, high;
  explicit Clip(const Epilogue& e)
      : low(splat(e.activation == kClip ? e.low : -__builtin_inff())),
        high(splat(e.activation == kClip ? e.high : __builtin_inff())) {}
  ALCS_INLINE V operator()(V x) const { return at_most(at_least(x, low), high); }
};

// The rare case: applies what is more than a clip to pixels that were just written.
__attribute__((noinline)) void activate_stored(float* y, i32 count, const Epilogue& e) {
  if (e.activation <= kClip) return;
  for (i32 i = 0; i < count; i += kLanes) {
    const V x = load_some(y + i, count - i);
    store_some(y + i, activate(x, e.activation, e.low, e.high), count - i);
  }
}

// Clears what lies behind the pixels of a plane, as far as somebody reads it as padding.
ALCS_INLINE void zero_gap(const Output& out, i32 channel) {
  float* plane = out.y + channel * out.stride;
  for (i32 i = out.pixels; i < out.zero_to; ++i) plane[i] = 0;
}

}  // namespace
}  // namespace alcs
