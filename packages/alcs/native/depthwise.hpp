// Depthwise convolution, with lanes over neighbouring outputs.
//
// A block of kRows vectors, one below the other, is computed at once: a vector of input is loaded
// once and used by every output row that it is a tap of. Rows above and below the plane are zeros
// of the gap. Taps that leave the row to the left or right are masked when they are loaded. Where a
// row is shorter than a vector, the vector goes on into the next rows, which is right for stride 1
// and is written again for stride 2.
#pragma once

#include "epilogue.hpp"
#include "lanes.hpp"

namespace alcs {
namespace {

// What is the same for all blocks that stand one below the other.
struct Strip {
  i64 pitch;      // floats from one row of the input to the next
  i64 out_pitch;  // floats from one vector of outputs to the one below it
  V bias;
  Clip clip;
  M masks[5];
};

// The taps of one input row, kKernel vectors, as seen by outputs that are kStride apart.
template <int kKernel, int kStride>
ALCS_INLINE void load_taps(const float* x, const M (&masks)[5], V (&taps)[kKernel]) {
  if (kStride == 1) {
#pragma GCC unroll 5
    for (int k = 0; k < kKernel; ++k) taps[k] = load(x + k);
  } else {
    constexpr int kMiddle = kKernel / 2;
    const V first = in_register(load(x + kMiddle));
    const V second = in_register(load(x + kMiddle + kLanes));
    taps[kMiddle] = evens(first, second);
    taps[kMiddle + 1] = odds(first, second);
#pragma GCC unroll 5
    for (int k = kMiddle - 1; k >= 0; --k) {
      taps[k] = move_up(taps[k + 2], splat(x[k]), AllLanes());
    }
#pragma GCC unroll 5
    for (int k = kMiddle + 2; k < kKernel; ++k) {
      taps[k] = move_down(taps[k - 2], splat(x[k + 2 * kLanes - 2]), AllLanes());
    }
  }
#pragma GCC unroll 5
  for (int k = 0; k < kKernel; ++k) {
    if (kStride != 1 || k != kKernel / 2) taps[k] = masks[k] != M{} ? taps[k] : V{};
  }
}

// One block; `room` floats from y on belong to the plane. Pointers come in registers: memory that
// was just written in parts is slow to read as a whole. kDown: rows of input from one output vector
// to the one below it.
template <int kKernel, int kStride, int kDown, int kRows>
__attribute__((noinline)) void depthwise_block(const float* x, const float* w, float* y, i64 room,
                                               const float* residual, const Strip& strip) {
  V sums[kRows];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) sums[row] = strip.bias;
#pragma GCC unroll 32
  for (int i = 0; i < kDown * (kRows - 1) + kKernel; ++i) {
    V taps[kKernel];
    load_taps<kKernel, kStride>(x, strip.masks, taps);
    x += strip.pitch;
    asm("" : "+r"(x));  // else the addresses of all rows are kept, and registers run out
#pragma GCC unroll 5
    for (int k = 0; k < kKernel; ++k) {
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const int tap = i - kDown * row;
        if (tap >= 0 && tap < kKernel) sums[row] += taps[k] * w[tap * kKernel + k];
      }
    }
  }
  if (residual) {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) sums[row] += load(residual + row * strip.out_pitch);
  }
  // Results behind the pixels may lie in the gap, but not in the next plane.
  const bool fits = room >= (kRows - 1) * strip.out_pitch + kLanes;
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row, y += strip.out_pitch, room -= strip.out_pitch) {
    const V v = strip.clip(sums[row]);
    if (fits) {
      store(y, v);
    } else if (room > 0) {
      store_some(y, v, static_cast<int>(room));
    }
  }
}

// kStep: rows of output in a vector's worth of neighbours, 2 where a row fills at most half of it.
template <int kKernel, int kStrideH, int kStride, int kStep = 1>
void depthwise_planes(const DepthwiseArgs& a, i32 begin, i32 end) {
  constexpr int kRows = kLanes == 16 && kStep == 1 ? 7 : 4;
  const i32 vectors = (a.out_h + kStep - 1) / kStep;  // one below the other
  Strip strip = {a.width, static_cast<i64>(a.out_w) * kStep, V{}, Clip(a.epilogue), {}};
  constexpr int kDown = kStrideH * kStep;
  for (i32 channel = begin; channel < end; ++channel) {
    const float* x = a.x + channel * a.x_stride - a.pad_top * a.width - a.pad_left;
    const float* w = a.weights + channel * kKernel * kKernel;
    float* y = a.out.y + channel * a.out.stride;
    const float* residual = a.epilogue.residual;
    if (residual) residual += channel * a.epilogue.residual_stride;
    strip.bias = splat(a.epilogue.bias[channel]);
    for (i32 column = 0; column < a.out_w; column += kLanes) {
      // The last vector of a row ends with it.
      const i32 from = a.out_w >= kLanes && column > a.out_w - kLanes ? a.out_w - kLanes : column;
      for (int k = 0; k < kKernel; ++k) {
        strip.masks[k] = load_mask(a.masks + k * a.mask_stride + from);
      }
      for (i32 vector = 0; vector < vectors;) {
        const i64 pixel = vector * strip.out_pitch + from;
        const float* from_x = x + static_cast<i64>(vector) * kDown * a.width + from * kStride;
        const float* add = residual ? residual + pixel : nullptr;
        const i64 room = a.out.stride - pixel;
        if (vectors - vector >= kRows) {
          depthwise_block<kKernel, kStride, kDown, kRows>(from_x, w, y + pixel, room, add, strip);
          vector += kRows;
        } else {
          depthwise_block<kKernel, kStride, kDown, 1>(from_x, w, y + pixel, room, add, strip);
          ++vector;
        }
      }
    }
    if (a.epilogue.activation > kClip) activate_stored(y, a.out.pixels, a.epilogue);
    zero_gap(a.out, channel);
  }
}

// kCount vectors of neighbouring pixels for a kernel of any size that keeps height and width.
template <int kCount>
ALCS_INLINE void depthwise_flat_tile(const DepthwiseArgs& a, const float* x, const float* w,
                                     const float* residual, float* y, i32 pixel, V bias,
                                     const Clip& clip) {
  V sums[kCount];
#pragma GCC unroll 4
  for (int m = 0; m < kCount; ++m) sums[m] = bias;
  for (i32 kw = 0; kw < a.kernel_w; ++kw) {
    M masks[kCount];
#pragma GCC unroll 4
    for (int m = 0; m < kCount; ++m) {
      masks[m] = load_mask(a.masks + kw * a.mask_stride + pixel + m * kLanes);
    }
    for (i32 kh = 0; kh < a.kernel_h; ++kh) {
      const float* from = x + kh * a.width + kw;
      const float weight = w[kh * a.kernel_w + kw];
#pragma GCC unroll 4
      for (int m = 0; m < kCount; ++m) {
        const V taps = load(from + m * kLanes);
        sums[m] += (masks[m] != M{} ? taps : V{}) * weight;
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kCount; ++m) {
    if (residual) sums[m] += load(residual + m * kLanes);
    store(y + m * kLanes, clip(sums[m]));
  }
}

void depthwise_flat(const DepthwiseArgs& a, i32 begin, i32 end) {
  const Clip clip(a.epilogue);
  for (i32 channel = begin; channel < end; ++channel) {
    const float* x = a.x + channel * a.x_stride - a.pad_top * a.width - a.pad_left;
    const float* w = a.weights + channel * a.kernel_h * a.kernel_w;
    float* y = a.out.y + channel * a.out.stride;
    const float* residual = a.epilogue.residual;
    if (residual) residual += channel * a.epilogue.residual_stride;
    const V bias = splat(a.epilogue.bias[channel]);
    for (i32 pixel = 0; pixel < a.out.pixels;) {
      const float* add = residual ? residual + pixel : nullptr;
      if (a.out.pixels - pixel > 3 * kLanes) {
        depthwise_flat_tile<4>(a, x + pixel, w, add, y + pixel, pixel, bias, clip);
        pixel += 4 * kLanes;
      } else {
        depthwise_flat_tile<1>(a, x + pixel, w, add, y + pixel, pixel, bias, clip);
        pixel += kLanes;
      }
    }
    if (a.epilogue.activation > kClip) activate_stored(y, a.out.pixels, a.epilogue);
    zero_gap(a.out, channel);
  }
}

// Any kernel, stride and padding, one pixel after the other.
void depthwise_plain(const DepthwiseArgs& a, i32 begin, i32 end) {
  const Epilogue& epilogue = a.epilogue;
  for (i32 channel = begin; channel < end; ++channel) {
    const float* x = a.x + channel * a.x_stride;
    const float* w = a.weights + channel * a.kernel_h * a.kernel_w;
    float* y = a.out.y + channel * a.out.stride;
    for (i32 pixel = 0; pixel < a.out.pixels; ++pixel) {
      const i32 top = pixel / a.out_w * a.stride_h - a.pad_top;
      const i32 left = pixel % a.out_w * a.stride_w - a.pad_left;
      float sum = epilogue.bias[channel];
      for (i32 kh = 0; kh < a.kernel_h; ++kh) {
        for (i32 kw = 0; kw < a.kernel_w; ++kw) {
          const i32 row = top + kh, column = left + kw;
          if (row < 0 || row >= a.height || column < 0 || column >= a.width) continue;
          sum += x[row * a.width + column] * w[kh * a.kernel_w + kw];
        }
      }
      if (epilogue.residual) sum += epilogue.residual[channel * epilogue.residual_stride + pixel];
      y[pixel] = activate(sum, epilogue.activation, epilogue.low, epilogue.high);
    }
    zero_gap(a.out, channel);
  }
}


template <int kKernel>
void depthwise_square(const DepthwiseArgs& a, i32 begin, i32 end) {
  const bool down_two = a.stride_h == 2;
  if (a.stride_w == 2) {
    (down_two ? depthwise_planes<kKernel, 2, 2> : depthwise_planes<kKernel, 1, 2>)(a, begin, end);
  } else if (a.pad_left != kKernel / 2 || a.out_w != a.width) {
    depthwise_plain(a, begin, end);
  } else if (down_two) {
    depthwise_planes<kKernel, 2, 1>(a, begin, end);
  } else if (2 * a.out_w <= kLanes) {
    depthwise_planes<kKernel, 1, 1, 2>(a, begin, end);
  } else {
    depthwise_planes<kKernel, 1, 1>(a, begin, end);
  }
}

void depthwise(const DepthwiseArgs& a, i32 begin, i32 end) {
  const bool square = a.kernel_h == a.kernel_w && a.stride_h <= 2 && a.stride_w <= 2;
  // What a window reaches below and to the right; it must find zeros there.
  const i32 below = (a.out_h - 1) * a.stride_h + a.kernel_h - a.pad_top - a.height;
  const i32 right = (a.out_w - 1) * a.stride_w + a.kernel_w - a.pad_left - a.width;
  const bool padded = a.gap >= a.pad_top * a.width + a.pad_left &&
                      a.gap >= (below > 0 ? below : 0) * a.width + (right > 0 ? right : 0);
  if (square && padded && a.kernel_w == 3) {
    depthwise_square<3>(a, begin, end);
  } else if (square && padded && a.kernel_w == 5) {
    depthwise_square<5>(a, begin, end);
  } else if (padded && a.stride_h == 1 && a.stride_w == 1 && a.out_w == a.width &&
             a.out_h == a.height && a.out.stride > 1) {
    depthwise_flat(a, begin, end);
  } else {
    depthwise_plain(a, begin, end);
  }
}

}  // namespace
}  // namespace alcs
