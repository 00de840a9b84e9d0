// Elementwise layers: sums, products, gates, BatchNorm on its own, activations.
#pragma once

#include "epilogue.hpp"
#include "lanes.hpp"

namespace alcs {
namespace {

template <i32 kOp>
ALCS_INLINE void element_plane(const ElementArgs& e, i32 channel) {
  const float* a = e.a + channel * e.a_stride;
  const float* b = kOp == kAdd || kOp == kMul ? e.b + channel * e.b_stride : nullptr;
  const V factor = kOp == kGate || kOp == kAffine ? splat(e.b[channel * e.b_stride]) : V{};
  const V shift = kOp == kAffine ? splat(e.shift[channel]) : V{};
  float* y = e.out.y + channel * e.out.stride;
  for (i32 i = 0; i < e.out.pixels; i += kLanes) {
    const i32 count = e.out.pixels - i;
    V v = load_some(a + i, count);
    if (kOp == kAdd) v += load_some(b + i, count);
    if (kOp == kMul) v *= load_some(b + i, count);
    if (kOp == kGate) v *= factor;
    if (kOp == kAffine) v = v * factor + shift;
    store_some(y + i, activate(v, e.activation, e.low, e.high), count);
  }
}

template <i32 kOp>
void element_planes(const ElementArgs& e, i32 begin, i32 end) {
  for (i32 channel = begin; channel < end; ++channel) {
    element_plane<kOp>(e, channel);
    zero_gap(e.out, channel);
  }
}

void element(const ElementArgs& e, i32 begin, i32 end) {
  switch (e.op) {
    case kAdd:
      return element_planes<kAdd>(e, begin, end);
    case kMul:
      return element_planes<kMul>(e, begin, end);
    case kGate:
      return element_planes<kGate>(e, begin, end);
    case kAffine:
      return element_planes<kAffine>(e, begin, end);
    default:
      return element_planes<kApply>(e, begin, end);
  }
}

}  // namespace
}  // namespace alcs
