// K1: sparse convolution with vector lanes over pixels.
//
// A tile of up to kVectors vectors of neighbouring pixels is computed for kRows output filters at
// once. For each entry of a group every vector of the input is loaded once and multiplied by the
// group's weights, which are broadcast: rows * vectors multiply-adds for `vectors` loads, so that
// with four rows the multiplier is the limit and not the cache. Weights of zero cost nothing: they
// are not there. Pixels that do not fill a vector are computed with lanes over the four filters.
#pragma once

#include "epilogue.hpp"
#include "lanes.hpp"

namespace alcs {
namespace {

// Accumulators that leave room for an input vector and for weights that no memory operand holds.
#if ALCS_LANES == 16 || defined(__aarch64__)
constexpr int kSums = 28;  // of 32 registers
constexpr bool kFewRegisters = false;
#else
constexpr int kSums = 12;  // of 16
constexpr bool kFewRegisters = true;  // one weight at a time must do
#endif

template <int kRows>
constexpr int kVectors = kRows == 1 ? kSums / 2 : kSums / kRows;

constexpr int kTail = 4;  // pixels beyond whole vectors that are worth a path of their own

// How the pixels are cut: `vectors` of them, and `tail` pixels after the last one.
struct Cut {
  i32 vectors, tail, tiles;
};

ALCS_INLINE Cut cut_pixels(i32 pixels, i32 group) {
  const i32 rest = pixels % kLanes;
  const bool tailed = group >= 4 && rest <= kTail;
  const i32 most = group == 1 ? kVectors<1> : group == 2 ? kVectors<2> : kVectors<4>;
  Cut cut;
  cut.tail = tailed ? rest : 0;
  cut.vectors = pixels / kLanes + (rest && !tailed);
  cut.tiles = (cut.vectors + (cut.tail > 0) + most - 1) / most;
  return cut;
}


// The sums of one group of filters over one tile: kCount vectors and kRest pixels behind them.
template <int kRows, int kCount, int kRest>
struct Sums {
  V whole[kCount ? kCount : 1][kRows];
  V4 rest[kRest ? kRest : 1];

  ALCS_INLINE void start(const float* bias) {
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int m = 0; m < kCount; ++m) whole[m][row] = splat(bias[row]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kRest; ++t) rest[t] = load4(bias);
  }

  // Adds entries that read from `x` on. With kMasked a pixel whose mask is zero counts as zero: the
  // entry reads beyond its row there.
  template <bool kMasked>
  ALCS_INLINE void add(const float* x, const i32* offset, const float* w, i32 count, i32 group,
                       const u32* mask) {
    M kept[kCount ? kCount : 1];
    bool rest_kept[kRest ? kRest : 1];
    if (kMasked) {
#pragma GCC unroll 16
      for (int m = 0; m < kCount; ++m) kept[m] = load_mask(mask + m * kLanes);
#pragma GCC unroll 4
      for (int t = 0; t < kRest; ++t) rest_kept[t] = mask[kCount * kLanes + t] != 0;
    }
    for (; count > 0; --count, ++offset, w += group) {
      const float* from = x + *offset;
      V pixels[kCount ? kCount : 1];
#pragma GCC unroll 16
      for (int m = 0; m < kCount; ++m) {
        pixels[m] = load(from + m * kLanes);
        if (kMasked) pixels[m] = kept[m] != M{} ? pixels[m] : V{};
        if (!kFewRegisters) {
#pragma GCC unroll 4
          for (int row = 0; row < kRows; ++row) whole[m][row] += pixels[m] * w[row];
        } else if (kRows > 1) {
          pixels[m] = in_register(pixels[m]);
        }
      }
#pragma GCC unroll 4
      for (int row = 0; kFewRegisters && row < kRows; ++row) {
        const V weight = in_register(splat(w[row]));
#pragma GCC unroll 16
        for (int m = 0; m < kCount; ++m) whole[m][row] += pixels[m] * weight;
      }
      if (kRest) {
        const V4 weights = load4(w);
#pragma GCC unroll 4
        for (int t = 0; t < kRest; ++t) {
          const float pixel = from[kCount * kLanes + t];
          rest[t] += weights * (!kMasked || rest_kept[t] ? pixel : 0.0F);
        }
      }
    }
  }
};

// One tile, from `pixel` on, for kRows filters of each group in turn; a group of 8 or 16 is computed
// four rows at a time. Without kMasked there is one pass.
template <int kRows, int kCount, int kRest, bool kMasked>
void conv_k1_tile(const ConvArgs& a, i32 pixel, i32 group_begin, i32 group_end) {
  const float* x = a.x + pixel;
  const Clip clip(a.epilogue);
  const bool bounded = clip.high[0] < __builtin_inff();  // ReLU6, not ReLU
  const i32 count = kCount * kLanes;
  const bool ends = pixel + count + kRest >= a.out.pixels;  // the last tile owns the gap
  const i32 written = ends ? a.out.pixels - pixel : count;
  const i32 last = kMasked ? a.passes - 1 : 0;
  const i64 entries = a.indptr[last + 1];

  for (i32 group = group_begin; group < group_end; ++group) {
    const i32* indptr = a.indptr + (a.shared ? 0 : group * (last + 1));
    const i64 skipped = a.shared ? group * entries : 0;
    for (i32 part = 0; part < a.group; part += kRows) {
      const i32 channel = group * a.group + part;
      if (channel >= a.out_channels) break;
      Sums<kRows, kCount, kRest> sums;
      sums.start(a.epilogue.bias + channel);
      const auto weights = [&](i32 entry) {
        return a.values + (skipped + entry) * a.group + part;
      };
      for (i32 pass = 0; kMasked && pass < last; ++pass) {
        const i32 begin = indptr[pass];
        sums.template add<true>(x, a.offsets + begin, weights(begin), indptr[pass + 1] - begin,
                                a.group, a.masks + pass * a.mask_stride + pixel);
      }
      const i32 begin = indptr[last];
      sums.template add<false>(x, a.offsets + begin, weights(begin), indptr[last + 1] - begin,
                               a.group, nullptr);

      const i32 rows = channel + kRows <= a.out_channels ? kRows : a.out_channels - channel;
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        if (row >= rows) break;
        float* y = a.out.y + (channel + row) * a.out.stride + pixel;
        const float* residual = a.epilogue.residual;
        if (residual) residual += (channel + row) * a.epilogue.residual_stride + pixel;
#pragma GCC unroll 16
        for (int m = 0; m < kCount; ++m) {
          V v = sums.whole[m][row];
          if (residual) v += load(residual + m * kLanes);
          store(y + m * kLanes, bounded ? clip(v) : at_least(v, clip.low));
        }
#pragma GCC unroll 4
        for (int t = 0; t < kRest; ++t) {
          float v = sums.rest[t][row];
          if (residual) v += residual[count + t];
          y[count + t] = clip(splat(v))[0];
        }
        if (a.epilogue.activation > kClip) activate_stored(y, written, a.epilogue);
      }
      for (i32 row = 0; ends && row < rows; ++row) zero_gap(a.out, channel + row);
    }
  }
}

// Maps of one pixel (a vector times a sparse matrix): four partial sums, as one alone would wait
// for itself.
template <int kRows>
void conv_k1_pixel(const ConvArgs& a, i32 group_begin, i32 group_end) {
  constexpr int kWays = 4;
  for (i32 group = group_begin; group < group_end; ++group) {
    const i32 begin = a.indptr[a.shared ? 0 : group * a.passes];
    const i32 end = a.indptr[a.shared ? a.passes : (group + 1) * a.passes];
    const i64 skipped = a.shared ? static_cast<i64>(group) * a.indptr[a.passes] : 0;
    for (i32 part = 0; part < a.group; part += kRows) {
      const i32 channel = group * a.group + part;
      if (channel >= a.out_channels) break;
      float sums[kWays][kRows] = {};
      i32 entry = begin;
      for (; entry + kWays <= end; entry += kWays) {
#pragma GCC unroll 4
        for (int way = 0; way < kWays; ++way) {
          const float pixel = a.x[a.offsets[entry + way]];
          const float* w = a.values + (skipped + entry + way) * a.group + part;
#pragma GCC unroll 4
          for (int row = 0; row < kRows; ++row) sums[way][row] += pixel * w[row];
        }
      }
      for (; entry < end; ++entry) {
        const float* w = a.values + (skipped + entry) * a.group + part;
        for (int row = 0; row < kRows; ++row) sums[0][row] += a.x[a.offsets[entry]] * w[row];
      }
      for (int row = 0; row < kRows && channel + row < a.out_channels; ++row) {
        float v = a.epilogue.bias[channel + row];
        v += (sums[0][row] + sums[1][row]) + (sums[2][row] + sums[3][row]);
        float* y = a.out.y + (channel + row) * a.out.stride;
        if (a.epilogue.residual) {
          v += a.epilogue.residual[(channel + row) * a.epilogue.residual_stride];
        }
        *y = activate(v, a.epilogue.activation, a.epilogue.low, a.epilogue.high);
        zero_gap(a.out, channel + row);
      }
    }
  }
}

using TileFunction = void (*)(const ConvArgs&, i32, i32, i32);

template <int kRows, int kRest, bool kMasked, int... kCount>
ALCS_INLINE TileFunction pick_tile(i32 vectors, Lanes<kCount...>) {
  constexpr TileFunction kTable[] = {conv_k1_tile<kRows, kCount, kRest, kMasked>...};
  return kTable[vectors];
}

// The function for a tile of `vectors` vectors, 0 .. kVectors, and kRest pixels.
template <int kRows, int kRest = 0>
TileFunction tile_function(i32 vectors, bool masked) {
  const auto counts = typename CountLanes<kVectors<kRows> + 1>::All();
  return masked ? pick_tile<kRows, kRest, true>(vectors, counts)
                : pick_tile<kRows, kRest, false>(vectors, counts);
}

i32 conv_k1_tiles(i32 pixels, i32 group) {
  return pixels == 1 ? 1 : cut_pixels(pixels, group).tiles;
}

void conv_k1(const ConvArgs& a, i32 tile, i32 group_begin, i32 group_end) {
  if (a.out.pixels == 1) {
    (a.group == 1   ? conv_k1_pixel<1>
     : a.group == 2 ? conv_k1_pixel<2>
                    : conv_k1_pixel<4>)(a, group_begin, group_end);
    return;
  }
  const Cut cut = cut_pixels(a.out.pixels, a.group);
  const i64 share = cut.vectors;  // nearly equal tiles
  const i32 begin = static_cast<i32>(share * tile / cut.tiles);
  const i32 end = static_cast<i32>(share * (tile + 1) / cut.tiles);
  const i32 tail = tile + 1 == cut.tiles ? cut.tail : 0;
  const i32 vectors = end - begin;
  const bool masked = a.passes > 1;
  TileFunction function = nullptr;
  if (a.group == 1) function = tile_function<1>(vectors, masked);
  else if (a.group == 2) function = tile_function<2>(vectors, masked);
  else if (tail == 0) function = tile_function<4>(vectors, masked);
  else if (tail == 1) function = tile_function<4, 1>(vectors, masked);
  else if (tail == 2) function = tile_function<4, 2>(vectors, masked);
  else if (tail == 3) function = tile_function<4, 3>(vectors, masked);
  else function = tile_function<4, 4>(vectors, masked);
  function(a, begin * kLanes, group_begin, group_end);
}

}  // namespace
}  // namespace alcs
