// The multiply-adds that this instruction set can do in registers alone: the roof of the roofline.
#pragma once

#include "vec.hpp"

namespace alcs {
namespace {

double multiply_add(i64 rounds) {
  constexpr int kChains = 12;  // more than latency times ports; fits 16 registers
  V sums[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sums[i] = splat(static_cast<float>(i));
  V factor = splat(0.999F), term = splat(1e-3F);
  for (i64 round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
  }
  V total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) total += sums[i];
  volatile float sink = lane_sum(total);
  static_cast<void>(sink);
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

}  // namespace
}  // namespace alcs
