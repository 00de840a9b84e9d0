// Maximum and mean over windows, with lanes over neighbouring outputs; the mean of a whole plane.
#pragma once

#include "epilogue.hpp"
#include "lanes.hpp"

namespace alcs {
namespace {

// The lanes below `count`.
ALCS_INLINE M first_lanes(i32 count) {
  M lane = M{};
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<u32>(i);
  return reinterpret_cast<M>(lane < M{} + static_cast<u32>(count));
}

// Means of up to kLanes whole planes: a vector of partial sums for each, which are transposed.
void global_means(const PoolArgs& a, i32 channel, i32 count) {
  const i32 pixels = a.height * a.width, whole = pixels / kLanes * kLanes;
  const M rest = first_lanes(pixels - whole);
  V sums[kLanes] = {};
  for (i32 i = 0; i < count; ++i) {
    const float* x = a.x + (channel + i) * a.x_stride;
    V sum = keep(load(x + whole), rest);
    for (i32 at = 0; at < whole; at += kLanes) sum += load(x + at);
    sums[i] = sum;
  }
  transpose(sums);
  V mean = V{};
  for (int lane = 0; lane < kLanes; ++lane) mean += sums[lane];
  mean /= splat(static_cast<float>(pixels));
  for (i32 i = 0; i < count; ++i) a.out.y[(channel + i) * a.out.stride] = mean[i];
}

// The rows or columns of a window that lie inside the map.
struct Span {
  i32 begin, end;
};
ALCS_INLINE Span inside(i32 at, i32 kernel, i32 extent) {
  return {at < 0 ? -at : 0, at + kernel > extent ? extent - at : kernel};
}

// NaN wins, as in torch.
template <bool kMaximum, class T>
ALCS_INLINE T pooled(T sum, T pixel) {
  if (!kMaximum) return sum + pixel;
  return (pixel > sum) | (pixel != pixel) ? pixel : sum;
}

// The window of one vector of outputs that are kStride pixels apart.
template <bool kMaximum, int kStride>
ALCS_INLINE V pool_window(const float* x, i32 width, Span rows, Span columns) {
  V sum = kMaximum ? splat(-__builtin_inff()) : V{};
  for (i32 row = rows.begin; row < rows.end; ++row) {
    for (i32 column = columns.begin; column < columns.end; ++column) {
      const float* p = x + row * width + column;
      sum = pooled<kMaximum>(sum, kStride == 1 ? load(p) : evens(load(p), load(p + kLanes)));
    }
  }
  return sum;
}

template <bool kMaximum>
ALCS_INLINE float pool_window(const float* x, i32 width, Span rows, Span columns) {
  float sum = kMaximum ? -__builtin_inff() : 0.0F;
  for (i32 row = rows.begin; row < rows.end; ++row) {
    for (i32 column = columns.begin; column < columns.end; ++column) {
      sum = pooled<kMaximum>(sum, x[row * width + column]);
    }
  }
  return sum;
}

template <bool kMaximum>
ALCS_INLINE float divisor(const PoolArgs& a, Span rows, Span columns) {
  if (kMaximum) return 1;
  if (a.count_padding) return static_cast<float>(a.kernel_h * a.kernel_w);
  return static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
}

template <bool kMaximum>
void pool_row(const PoolArgs& a, const float* x, float* y, Span rows) {
  const Span whole = {0, a.kernel_w};
  for (i32 j = 0; j < a.out_w;) {
    const i32 column = j * a.stride_w - a.pad_left;
    const Span columns = inside(column, a.kernel_w, a.width);
    // Outputs from j on whose windows lose no column.
    const i32 room = a.width - a.kernel_w - column;
    i32 count = columns.begin == 0 && room >= 0 ? room / a.stride_w + 1 : 0;
    count = count < a.out_w - j ? count : a.out_w - j;
    if (a.stride_w <= 2 && count > 1) {
      count = count < kLanes ? count : kLanes;
      const V sum = a.stride_w == 1 ? pool_window<kMaximum, 1>(x + column, a.width, rows, whole)
                                    : pool_window<kMaximum, 2>(x + column, a.width, rows, whole);
      store_some(y + j, sum / splat(divisor<kMaximum>(a, rows, whole)), count);
      j += count;
    } else {
      const float sum = pool_window<kMaximum>(x + column, a.width, rows, columns);
      y[j++] = sum / divisor<kMaximum>(a, rows, columns);
    }
  }
}

template <bool kMaximum>
void pool_plane(const PoolArgs& a, i32 channel) {
  float* y = a.out.y + channel * a.out.stride;
  for (i32 i = 0; i < a.out_h; ++i, y += a.out_w) {
    const i32 row = i * a.stride_h - a.pad_top;
    const float* x = a.x + channel * a.x_stride + static_cast<i64>(row) * a.width;
    pool_row<kMaximum>(a, x, y, inside(row, a.kernel_h, a.height));
  }
}

void pool(const PoolArgs& a, i32 begin, i32 end) {
  const bool global = a.kernel_h == 0;
  for (i32 channel = begin; global && channel < end; channel += kLanes) {
    global_means(a, channel, end - channel < kLanes ? end - channel : kLanes);
  }
  for (i32 channel = begin; channel < end; ++channel) {
    if (!global && a.maximum) pool_plane<true>(a, channel);
    if (!global && !a.maximum) pool_plane<false>(a, channel);
    zero_gap(a.out, channel);
  }
}

}  // namespace
}  // namespace alcs
