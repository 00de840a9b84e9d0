// K2: sparse convolution with vector lanes over output channels.
//
// A tile of up to kMostPixels neighbouring pixels is computed for kLanes filters at once. For each
// entry of a group the vector of its weights is loaded once and multiplied by every pixel, which is
// broadcast. Maps of few pixels waste no lane this way, but groups must be as wide as a vector, and
// the finished tile has to be transposed into the planes of its channels.
#pragma once

#include "epilogue.hpp"
#include "lanes.hpp"

namespace alcs {
namespace {

constexpr int kMostPixels = kLanes == 16 ? 16 : 8;  // accumulators beside weights and broadcasts

// Adds the entries [begin, end) of a group to the sums of kPixels pixels from `x` on. Sums of few
// pixels would wait for themselves, so they are taken in several ways at once.
template <int kPixels>
ALCS_INLINE void add_entries(const float* x, const i32* offsets, const float* weights, i64 group,
                             i32 begin, i32 end, V (&sums)[kPixels]) {
  constexpr int kWays = kPixels >= 8 ? 1 : kPixels >= 4 ? 2 : 4;
  V more[kWays][kPixels] = {};
#pragma GCC unroll 16
  for (int t = 0; t < kPixels; ++t) more[0][t] = sums[t];
  i32 entry = begin;
  for (; entry + kWays <= end; entry += kWays) {
#pragma GCC unroll 4
    for (int way = 0; way < kWays; ++way) {
      const float* from = x + offsets[entry + way];
      const V w = load(weights + (entry + way) * group);
#pragma GCC unroll 16
      for (int t = 0; t < kPixels; ++t) more[way][t] += w * from[t];
    }
  }
  for (; entry < end; ++entry) {
    const V w = load(weights + entry * group);
    for (int t = 0; t < kPixels; ++t) more[0][t] += w * x[offsets[entry] + t];
  }
#pragma GCC unroll 16
  for (int t = 0; t < kPixels; ++t) {
    sums[t] = more[0][t];
#pragma GCC unroll 4
    for (int way = 1; way < kWays; ++way) sums[t] += more[way][t];
  }
}

// Writes `rows` channels from `channel` on of kPixels pixels from `pixel` on.
template <int kPixels>
ALCS_INLINE void finish(const ConvArgs& a, i32 channel, i32 rows, i32 pixel, V (&sums)[kPixels]) {
  const Epilogue& epilogue = a.epilogue;
#pragma GCC unroll 2
  for (int first = 0; first < kPixels; first += kLanes) {
    constexpr int kRest = kPixels % kLanes;
    const int count = kPixels - first < kLanes ? kRest : kLanes;
    V block[kLanes];
#pragma GCC unroll 16
    for (int t = 0; t < kLanes; ++t) block[t] = first + t < kPixels ? sums[first + t] : V{};
    transpose(block);
    float* y = a.out.y + channel * a.out.stride + pixel + first;
    const float* residual = epilogue.residual;
    if (residual) residual += channel * epilogue.residual_stride + pixel + first;
    const Clip clip(epilogue);
#pragma GCC unroll 16
    for (int row = 0; row < kLanes; ++row) {
      if (row >= rows) break;
      V v = block[row];
      if (residual) v += load_some(residual + row * epilogue.residual_stride, count);
      store_some(y + row * a.out.stride, clip(v), count);
    }
    if (epilogue.activation <= kClip) continue;
    for (int row = 0; row < rows; ++row) activate_stored(y + row * a.out.stride, count, epilogue);
  }
}

// One pixel needs no transposition.
template <>
ALCS_INLINE void finish<1>(const ConvArgs& a, i32 channel, i32 rows, i32 pixel, V (&sums)[1]) {
  const Epilogue& epilogue = a.epilogue;
  V v = sums[0];
  if (epilogue.residual) {
    for (int row = 0; row < rows; ++row) {
      v[row] += epilogue.residual[(channel + row) * epilogue.residual_stride + pixel];
    }
  }
  v = activate(v, epilogue.activation, epilogue.low, epilogue.high);
  for (int row = 0; row < rows; ++row) a.out.y[(channel + row) * a.out.stride + pixel] = v[row];
}

template <int kPixels>
void conv_k2_tile(const ConvArgs& a, i32 pixel, i32 group_begin, i32 group_end) {
  const float* x = a.x + pixel;
  const bool ends = pixel + kPixels == a.out.pixels;
  for (i32 group = group_begin; group < group_end; ++group) {
    const i32* indptr = a.indptr + (a.shared ? 0 : group * a.passes);
    const i64 skipped = a.shared ? static_cast<i64>(group) * a.indptr[a.passes] : 0;
    for (i32 part = 0; part < a.group; part += kLanes) {
      const i32 channel = group * a.group + part;
      if (channel >= a.out_channels) break;
      const float* weights = a.values + skipped * a.group + part;
      V total[kPixels];
#pragma GCC unroll 16
      for (int t = 0; t < kPixels; ++t) total[t] = load(a.epilogue.bias + channel);
      for (i32 pass = 0; pass + 1 < a.passes; ++pass) {
        if (indptr[pass] == indptr[pass + 1]) continue;
        V sums[kPixels] = {};
        add_entries(x, a.offsets, weights, a.group, indptr[pass], indptr[pass + 1], sums);
        const u32* mask = a.masks + pass * a.mask_stride + pixel;
#pragma GCC unroll 16
        for (int t = 0; t < kPixels; ++t) total[t] += keep(sums[t], M{} + mask[t]);
      }
      add_entries(x, a.offsets, weights, a.group, indptr[a.passes - 1], indptr[a.passes], total);
      const i32 rows = a.out_channels - channel < kLanes ? a.out_channels - channel : kLanes;
      finish(a, channel, rows, pixel, total);
      for (i32 row = 0; ends && row < rows; ++row) zero_gap(a.out, channel + row);
    }
  }
}

using PixelTile = void (*)(const ConvArgs&, i32, i32, i32);

template <int... kPixels>
ALCS_INLINE PixelTile pixel_tile(i32 pixels, Lanes<kPixels...>) {
  constexpr PixelTile kTable[] = {conv_k2_tile<kPixels + 1>...};
  return kTable[pixels - 1];
}

i32 conv_k2_tiles(i32 pixels, i32 group) {
  return group % kLanes ? 0 : (pixels + kMostPixels - 1) / kMostPixels;
}

void conv_k2(const ConvArgs& a, i32 tile, i32 group_begin, i32 group_end) {
  const i64 tiles = conv_k2_tiles(a.out.pixels, a.group);  // nearly equal ones
  const i32 begin = static_cast<i32>(a.out.pixels * tile / tiles);
  const i32 end = static_cast<i32>(a.out.pixels * (tile + i64{1}) / tiles);
  pixel_tile(end - begin, CountLanes<kMostPixels>::All())(a, begin, group_begin, group_end);
}

}  // namespace
}  // namespace alcs
