// What alcs-check needs around each kernel: random numbers, guarded feature maps and the judge.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace alcs::check {

const float kNan = std::nanf("48879");  // unlike what a kernel makes by itself
constexpr i64 kGuard = 256;  // floats before and behind each map that nobody may write
constexpr i64 kSlack = 64;   // floats behind the last plane that may be read, whatever they hold

struct Random {
  std::mt19937 bits;
  i32 in(i32 low, i32 high) { return std::uniform_int_distribution<i32>(low, high)(bits); }
  bool chance(double p) { return std::bernoulli_distribution(p)(bits); }
  float number() { return std::normal_distribution<float>()(bits); }
  template <class T>
  T of(std::initializer_list<T> some) {
    return some.begin()[in(0, static_cast<i32>(some.size()) - 1)];
  }
  std::vector<float> numbers(i64 count) {
    std::vector<float> all(static_cast<std::size_t>(count));
    for (float& one : all) one = number();
    return all;
  }
};

inline i32 round_up(i32 n, i32 step) { return (n + step - 1) / step * step; }

// Planes with a gap of zeros around each; everything else is NaN, the guards included.
struct Map {
  i32 channels, height, width, gap;
  i64 stride;
  std::vector<float> storage;
  i64 start;

  Map(i32 channels, i32 height, i32 width, i32 gap)
      : channels(channels), height(height), width(width), gap(gap) {
    stride = pixels() == 1 && gap == 0 ? 1 : round_up(pixels() + gap, 16);
    storage.assign(static_cast<std::size_t>(2 * kGuard + 2 * gap + channels * stride + kSlack + 16),
                   kNan);
    // Planes are aligned to 64 bytes.
    start = kGuard + gap;
    while (reinterpret_cast<std::uintptr_t>(storage.data() + start) % 64) ++start;
    std::fill_n(plane(0) - gap, gap, 0.0F);
    const i64 behind = gap ? stride - pixels() : 0;
    for (i32 c = 0; c < channels; ++c) std::fill_n(plane(c) + pixels(), behind, 0.0F);
  }
  i32 pixels() const { return height * width; }
  float* plane(i32 channel) { return storage.data() + start + channel * stride; }
  const float* plane(i32 channel) const { return storage.data() + start + channel * stride; }
  void fill(Random& random) {
    for (i32 c = 0; c < channels; ++c) {
      for (i32 i = 0; i < pixels(); ++i) plane(c)[i] = random.number();
    }
  }
  // The pixel, or 0 outside.
  double at(i32 channel, i32 row, i32 column) const {
    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
    return inside ? plane(channel)[row * width + column] : 0.0;
  }
};

struct Activated {
  i32 function;
  float low, high;

  static Activated random(Random& r) {
    return {r.in(kNone, kSilu), r.of({0.0F, -1.0F}), r.of({6.0F, 0.5F, INFINITY})};
  }
  double operator()(double x) const {
    const double hard = std::clamp(x / 6 + 0.5, 0.0, 1.0);
    const double soft = 1 / (1 + std::exp(-x));
    switch (function) {
      case kClip:
        return std::clamp<double>(x, low, high);
      case kHardSwish:
        return x * hard;
      case kHardSigmoid:
        return hard;
      case kSigmoid:
        return soft;
      case kSilu:
        return x * soft;
      default:
        return x;
    }
  }
};

// Holds a kernel's results against expected ones and remembers the worst.
struct Judge {
  double worst = 0;  // error over tolerance
  i64 faults = 0;

  void fault(const char* what, i32 channel, i64 at, double found, double expected) {
    if (++faults <= 5) {
      std::printf("  %s at channel %d, pixel %lld: %.9g instead of %.9g\n", what, channel,
                  static_cast<long long>(at), found, expected);
    }
  }
  // `scale` is the sum of the absolute values of what was added up.
  void value(float found, double expected, double scale, i32 channel, i64 at) {
    const double error = std::abs(found - expected) / (2e-6 * scale + 1e-7);
    if (!(error <= 1)) fault("wrong value", channel, at, found, expected);
    worst = std::max(worst, error);
  }
  // Nothing written outside the planes, and zeros where the next layer reads padding.
  void borders(const Map& map, const Map& before, i32 zero_to) {
    const float *now = map.storage.data(), *old = before.storage.data();
    for (i64 i = 0; i < static_cast<i64>(map.storage.size()); ++i) {
      if (i == map.start) i += map.channels * map.stride;
      if (std::memcmp(now + i, old + i, sizeof(float)) != 0) {
        fault("written outside", -1, i - map.start, now[i], old[i]);
      }
    }
    for (i32 c = 0; c < map.channels; ++c) {
      for (i32 i = map.pixels(); i < zero_to; ++i) {
        if (map.plane(c)[i] != 0) fault("gap not zero", c, i, map.plane(c)[i], 0);
      }
    }
  }
};

// A map for results: no pixel set, its gap not cleared.
struct Target {
  Map map, before;
  i32 zero_to;

  Target(Random& random, i32 channels, i32 height, i32 width)
      : map(channels, height, width, random.of({0, 1, width + 1, 3 * width})), before(map) {
    std::fill_n(map.plane(0), channels * map.stride, kNan);
    zero_to = map.gap ? static_cast<i32>(map.stride) : 0;
  }
  Output output() { return {map.plane(0), map.stride, map.pixels(), zero_to}; }
};

}  // namespace alcs::check
