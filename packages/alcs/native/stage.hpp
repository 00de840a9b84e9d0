// Copies planes onto another grid, so that a convolution with strides becomes one without: each
// phase of a stride is a plane of its own.
#pragma once

#include "lanes.hpp"

namespace alcs {
namespace {

// y[j] = x[j * stride] for `count` pixels.
ALCS_INLINE void stage_row(const float* x, float* y, i32 count, i32 stride) {
  if (stride == 1) {
    std::memcpy(y, x, sizeof(float) * static_cast<std::size_t>(count));
  } else if (stride == 2 && count >= kLanes) {
    for (i32 j = 0; j < count; j += kLanes) {
      const i32 at = j + kLanes <= count ? j : count - kLanes;  // the last vector ends with the row
      store(y + at, evens(load(x + 2 * at), load(x + 2 * at + kLanes)));
    }
  } else {
    for (i32 j = 0; j < count; ++j) y[j] = x[static_cast<i64>(j) * stride];
  }
}

ALCS_INLINE void stage_plane(const StageArgs& a, const float* x, float* y, i32 row, i32 column) {
  // Columns first .. last - 1 of the grid lie inside the map.
  i32 first = 0, last = a.grid_w;
  while (first < last && first * a.stride_w + column < 0) ++first;
  while (last > first && (last - 1) * a.stride_w + column >= a.width) --last;
  for (i32 i = 0; i < a.grid_h; ++i, y += a.grid_w) {
    const i32 from = i * a.stride_h + row;
    const bool inside = from >= 0 && from < a.height;
    const i32 begin = inside ? first : a.grid_w, end = inside ? last : a.grid_w;
    for (i32 j = 0; j < begin; ++j) y[j] = 0;
    if (begin < end) {
      const float* pixels = x + from * a.width + begin * a.stride_w + column;
      stage_row(pixels, y + begin, end - begin, a.stride_w);
    }
    for (i32 j = end; j < a.grid_w; ++j) y[j] = 0;
  }
}

void stage(const StageArgs& a, i32 begin, i32 end) {
  for (i32 channel = begin; channel < end; ++channel) {
    for (i32 phase = 0; phase < a.phases; ++phase) {
      float* y = a.y + (static_cast<i64>(channel) * a.phases + phase) * a.y_stride;
      stage_plane(a, a.x + channel * a.x_stride, y, a.rows[phase], a.columns[phase]);
      for (i32 i = a.grid_h * a.grid_w; i < a.zero_to; ++i) y[i] = 0;
    }
  }
}

}  // namespace
}  // namespace alcs
