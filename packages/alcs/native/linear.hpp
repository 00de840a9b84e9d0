// A dense matrix times a vector: every weight is read once, so memory is the limit. A block of rows
// is computed with lanes over the rows; several partial sums hide the latency of the multiplier.
#pragma once

#include "epilogue.hpp"
#include "lanes.hpp"

namespace alcs {
namespace {

void linear(const LinearArgs& a, i32 begin, i32 end) {
  constexpr int kVectorsARow = kLinearBlock / kLanes;
  constexpr int kWays = kVectorsARow >= 8 ? 1 : 8 / kVectorsARow;
  for (i32 block = begin; block < end; ++block) {
    const float* w = a.weights + static_cast<i64>(block) * a.in * kLinearBlock;
    V sums[kWays][kVectorsARow] = {};
    i32 i = 0;
    for (; i + kWays <= a.in; i += kWays) {
#pragma GCC unroll 8
      for (int way = 0; way < kWays; ++way, w += kLinearBlock) {
        const V x = splat(a.x[i + way]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectorsARow; ++v) sums[way][v] += x * load(w + v * kLanes);
      }
    }
    for (; i < a.in; ++i, w += kLinearBlock) {
      for (int v = 0; v < kVectorsARow; ++v) sums[0][v] += splat(a.x[i]) * load(w + v * kLanes);
    }
    const Epilogue& epilogue = a.epilogue;
    for (int v = 0; v < kVectorsARow; ++v) {
      const i32 row = block * kLinearBlock + v * kLanes;
      const i32 count = a.out - row;
      if (count <= 0) break;
      V sum = load_some(epilogue.bias + row, count);
      for (int way = 0; way < kWays; ++way) sum += sums[way][v];
      if (epilogue.residual) sum += load_some(epilogue.residual + row, count);
      sum = activate(sum, epilogue.activation, epilogue.low, epilogue.high);
      store_some(a.y + row, sum, count);
    }
  }
}

}  // namespace
}  // namespace alcs
