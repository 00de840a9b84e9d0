// alcs-check: compares every kernel of every instruction set with plain loops on random shapes.
//
//   alcs-check [--isa NAME] [--shapes COUNT]
//
// Prints one line a kernel and set; exits with 1 where a number differs, where something is
// written outside the planes, or where a gap that the next layer reads is not zero. What a kernel
// must not look at is NaN.
#include "check_map.hpp"

namespace alcs::check {
namespace {

// What every layer adds to its sums, for `channels` rounded up to whole groups of 16.
struct Finish {
  std::vector<float> bias;
  Map residual;
  bool adds;
  Activated activated;

  Finish(Random& random, const Map& out)
      : bias(random.numbers(round_up(out.channels, 16))),
        residual(out.channels, out.height, out.width, 0),
        adds(random.chance(0.3)),
        activated(Activated::random(random)) {
    residual.fill(random);
  }
  Epilogue epilogue() const {
    return {bias.data(),         adds ? residual.plane(0) : nullptr, residual.stride,
            activated.function,  activated.low,                      activated.high};
  }
  void judge(Judge& judge, float found, double sum, double scale, i32 channel, i32 pixel) const {
    const double more = adds ? residual.plane(channel)[pixel] : 0;
    const double expected = activated(sum + bias[channel] + more);
    scale += std::abs(bias[channel]) + std::abs(more);
    judge.value(found, expected, scale, channel, pixel);
  }
};

// A convolution as the engine lowers it: entries by group and pass, offsets, masks.
struct Convolution {
  Map x;
  i32 out_channels, kernel_h, kernel_w, pad_top, pad_left;
  i32 group, groups, passes;
  bool shared;
  std::vector<float> weights;  // (groups * group, channels, kernel_h, kernel_w)
  std::vector<i32> indptr{0}, offsets;
  std::vector<float> values;
  std::vector<u32> masks;
  i64 mask_stride;

  float& weight(i32 o, i32 c, i32 kh, i32 kw) {
    return weights[((o * x.channels + c) * kernel_h + kh) * kernel_w + kw];
  }

  Convolution(Random& random, i32 group, i32 channels, i32 height, i32 width, i32 kernel_h,
              i32 kernel_w)
      : x(channels, height, width, (kernel_h - 1) * width + kernel_w / 2),
        out_channels(random.in(1, 50)),
        kernel_h(kernel_h),
        kernel_w(kernel_w),
        pad_top(random.in(0, kernel_h / 2)),
        pad_left(kernel_w / 2),
        group(group),
        groups((out_channels + group - 1) / group),
        passes(kernel_w),
        shared(random.chance(0.3)),
        weights(random.numbers(i64{groups} * group * channels * kernel_h * kernel_w)),
        mask_stride(round_up(x.pixels(), 16) + 16) {
    x.fill(random);
    const double density = random.of({0.0, 0.1, 0.5, 1.0});
    std::vector<std::vector<float>> of_group(groups);
    for (i32 g = 0; g < groups; ++g) {
      for (i32 pass = 0; pass < passes; ++pass) {
        // The shift that leaves no row comes last.
        const i32 kw = (pad_left + 1 + pass) % kernel_w;
        for (i32 kh = 0; kh < kernel_h; ++kh) {
          for (i32 c = 0; c < channels; ++c) {
            const bool kept = shared || random.chance(density);
            if (kept && (g == 0 || !shared)) {
              offsets.push_back(static_cast<i32>(c * x.stride) + (kh - pad_top) * width + kw -
                                pad_left);
            }
            for (i32 row = 0; row < group; ++row) {
              float& w = weight(g * group + row, c, kh, kw);
              if (kept) values.push_back(w);
              w = kept ? w : 0;
            }
          }
        }
        if (g == 0 || !shared) indptr.push_back(static_cast<i32>(offsets.size()));
      }
    }
    masks.assign(passes * mask_stride, 0);
    for (i32 pass = 0; pass + 1 < passes; ++pass) {
      const i32 shift = (pad_left + 1 + pass) % kernel_w - pad_left;
      for (i32 i = 0; i < x.pixels(); ++i) {
        const i32 column = i % width + shift;
        if (column >= 0 && column < width) masks[pass * mask_stride + i] = ~0U;
      }
    }
  }

  ConvArgs args(const Output& out, const Epilogue& epilogue) const {
    return {x.plane(0), out, epilogue, out_channels, group, groups, passes, indptr.data(),
            offsets.data(), values.data(), shared ? 1 : 0, masks.data(), mask_stride};
  }

  void judge(Judge& judge, const Map& y, const Finish& finish) {
    for (i32 o = 0; o < out_channels; ++o) {
      for (i32 i = 0; i < x.pixels(); ++i) {
        double sum = 0, scale = 0;
        for (i32 c = 0; c < x.channels; ++c) {
          for (i32 kh = 0; kh < kernel_h; ++kh) {
            for (i32 kw = 0; kw < kernel_w; ++kw) {
              const double product = weight(o, c, kh, kw) * x.at(c, i / x.width + kh - pad_top,
                                                                 i % x.width + kw - pad_left);
              sum += product;
              scale += std::abs(product);
            }
          }
        }
        finish.judge(judge, y.plane(o)[i], sum, scale, o, i);
      }
    }
  }
};

using Tiles = i32 (*)(i32, i32);
using Conv = void (*)(const ConvArgs&, i32, i32, i32);

void check_conv(Random& random, Judge& judge, Tiles tiles, Conv conv) {
  const i32 group = random.of({1, 2, 4, 8, 16});
  const bool single = random.chance(0.15);
  const i32 height = single ? 1 : random.in(1, 20), width = single ? 1 : random.in(1, 20);
  const i32 kernel_h = single ? 1 : random.of({1, 1, 3, 5});
  const i32 kernel_w = single ? 1 : random.of({1, 1, 3, 5});
  Convolution c(random, group, random.in(1, 24), height, width, kernel_h, kernel_w);
  const i32 count = tiles(c.x.pixels(), group);
  if (count == 0) return;  // this set has no such kernel
  Target target(random, c.out_channels, height, width);
  const Finish finish(random, target.map);
  const ConvArgs args = c.args(target.output(), finish.epilogue());
  // Threads take tiles and groups in any order.
  std::vector<i32> order(count);
  for (i32 i = 0; i < count; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random.bits);
  const i32 cut = random.in(0, c.groups);
  for (const i32 tile : order) conv(args, tile, cut, c.groups);
  for (const i32 tile : order) conv(args, tile, 0, cut);
  c.judge(judge, target.map, finish);
  judge.borders(target.map, target.before, target.zero_to);
}

void check_conv_k1(const Kernels& k, Random& random, Judge& judge) {
  check_conv(random, judge, k.conv_k1_tiles, k.conv_k1);
}

void check_conv_k2(const Kernels& k, Random& random, Judge& judge) {
  check_conv(random, judge, k.conv_k2_tiles, k.conv_k2);
}

// A window that moves over a map: what depthwise convolution and pooling share.
struct Window {
  i32 kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right;
  i32 height, width, out_h, out_w;

  static Window random(Random& random) {
    Window w{};
    w.kernel_h = random.in(1, 5), w.kernel_w = random.in(1, 5);
    w.stride_h = random.in(1, 3), w.stride_w = random.in(1, 3);
    w.pad_top = random.in(0, w.kernel_h - 1), w.pad_bottom = random.in(0, w.kernel_h - 1);
    w.pad_left = random.in(0, w.kernel_w - 1), w.pad_right = random.in(0, w.kernel_w - 1);
    if (random.chance(0.8)) {  // square and "same", the usual ones
      w.kernel_h = w.kernel_w = random.of({3, 5});
      w.stride_h = w.stride_w = random.in(1, 2);
      w.pad_bottom = w.pad_right = w.kernel_w / 2;
      w.pad_top = w.pad_left = w.kernel_w / 2 - (w.stride_h == 2 ? random.in(0, 1) : 0);
    }
    w.height = random.in(w.kernel_h, 40), w.width = random.in(w.kernel_w, 40);
    w.out_h = (w.height + w.pad_top + w.pad_bottom - w.kernel_h) / w.stride_h + 1;
    w.out_w = (w.width + w.pad_left + w.pad_right - w.kernel_w) / w.stride_w + 1;
    return w;
  }
  static Window whole(i32 height, i32 width) {
    return {height, width, 1, 1, 0, 0, 0, 0, height, width, 1, 1};
  }
  i32 gap() const { return std::max(pad_top, pad_bottom) * width + std::max(pad_left, pad_right); }
};

void check_depthwise(const Kernels& k, Random& random, Judge& judge) {
  const Window w = Window::random(random);
  const i32 channels = random.in(1, 5);
  Map x(channels, w.height, w.width, random.chance(0.9) ? w.gap() : 0);
  x.fill(random);
  const std::vector<float> weights = random.numbers(i64{channels} * w.kernel_h * w.kernel_w);
  Target target(random, channels, w.out_h, w.out_w);
  const Finish finish(random, target.map);
  const i64 mask_stride = round_up(target.map.pixels(), 16) + 16;
  std::vector<u32> masks(w.kernel_w * mask_stride);
  for (i32 kw = 0; kw < w.kernel_w; ++kw) {
    for (i32 i = 0; i < target.map.pixels(); ++i) {
      const i32 column = i % w.out_w * w.stride_w + kw - w.pad_left;
      if (column >= 0 && column < w.width) masks[kw * mask_stride + i] = ~0U;
    }
  }
  const DepthwiseArgs args = {x.plane(0),     x.stride,   w.height,          w.width,
                              target.output(), w.out_h,   w.out_w,           w.kernel_h,
                              w.kernel_w,     w.stride_h, w.stride_w,        w.pad_top,
                              w.pad_left,     x.gap,      weights.data(),    finish.epilogue(),
                              masks.data(),   mask_stride};
  const i32 cut = random.in(0, channels);
  k.depthwise(args, cut, channels);
  k.depthwise(args, 0, cut);
  for (i32 c = 0; c < channels; ++c) {
    for (i32 i = 0; i < target.map.pixels(); ++i) {
      double sum = 0, scale = 0;
      for (i32 tap = 0; tap < w.kernel_h * w.kernel_w; ++tap) {
        const i32 row = i / w.out_w * w.stride_h + tap / w.kernel_w - w.pad_top;
        const i32 column = i % w.out_w * w.stride_w + tap % w.kernel_w - w.pad_left;
        const double product = weights[c * w.kernel_h * w.kernel_w + tap] * x.at(c, row, column);
        sum += product;
        scale += std::abs(product);
      }
      finish.judge(judge, target.map.plane(c)[i], sum, scale, c, i);
    }
  }
  judge.borders(target.map, target.before, target.zero_to);
}

void check_pool(const Kernels& k, Random& random, Judge& judge) {
  Window w = Window::random(random);
  const bool global = random.chance(0.2), maximum = random.chance(0.5), counts = random.chance(0.5);
  // A window of nothing but padding has no result.
  w.pad_top = std::min(w.pad_top, w.kernel_h / 2);
  w.pad_left = std::min(w.pad_left, w.kernel_w / 2);
  w.out_h = global ? 1 : (w.height + w.pad_top + w.kernel_h / 2 - w.kernel_h) / w.stride_h + 1;
  w.out_w = global ? 1 : (w.width + w.pad_left + w.kernel_w / 2 - w.kernel_w) / w.stride_w + 1;
  const i32 channels = random.in(1, 5);
  Map x(channels, w.height, w.width, 0);
  x.fill(random);
  Target target(random, channels, w.out_h, w.out_w);
  k.pool({x.plane(0), x.stride, w.height, w.width, target.output(), w.out_h, w.out_w,
          global ? 0 : w.kernel_h, global ? 0 : w.kernel_w, w.stride_h, w.stride_w, w.pad_top,
          w.pad_left, maximum, counts},
         0, channels);
  if (global) w = Window::whole(w.height, w.width);
  for (i32 c = 0; c < channels; ++c) {
    for (i32 i = 0; i < target.map.pixels(); ++i) {
      double sum = 0, scale = 0, most = -INFINITY;
      i32 count = 0;
      for (i32 tap = 0; tap < w.kernel_h * w.kernel_w; ++tap) {
        const i32 row = i / w.out_w * w.stride_h + tap / w.kernel_w - w.pad_top;
        const i32 column = i % w.out_w * w.stride_w + tap % w.kernel_w - w.pad_left;
        if (row < 0 || row >= w.height || column < 0 || column >= w.width) continue;
        const double pixel = x.at(c, row, column);
        most = std::max(most, pixel);
        sum += pixel;
        scale += std::abs(pixel);
        ++count;
      }
      if (counts && !global) count = w.kernel_h * w.kernel_w;
      const bool takes_most = maximum && !global;
      judge.value(target.map.plane(c)[i], takes_most ? most : sum / count,
                  takes_most ? 0 : scale / count, c, i);
    }
  }
  judge.borders(target.map, target.before, target.zero_to);
}

void check_element(const Kernels& k, Random& random, Judge& judge) {
  const i32 channels = random.in(1, 40);
  const i32 height = random.of({1, 1, 3, 9}), width = height == 1 ? 1 : random.in(1, 20);
  const i32 op = random.in(kAdd, kApply);
  Map a(channels, height, width, 0), b(channels, height, width, 0), gate(channels, 1, 1, 0);
  a.fill(random), b.fill(random), gate.fill(random);
  const std::vector<float> shift = random.numbers(channels);
  const bool planes = op == kAdd || op == kMul;
  const Activated activated = Activated::random(random);
  Target target(random, channels, height, width);
  k.element({op, a.plane(0), a.stride, planes ? b.plane(0) : gate.plane(0),
             planes ? b.stride : gate.stride, shift.data(), target.output(), activated.function,
             activated.low, activated.high},
            0, channels);
  for (i32 c = 0; c < channels; ++c) {
    for (i32 i = 0; i < a.pixels(); ++i) {
      const double x = a.plane(c)[i], other = planes ? b.plane(c)[i] : gate.plane(c)[0];
      const double sum = op == kAdd      ? x + other
                         : op == kAffine ? x * other + shift[c]
                         : op == kApply  ? x
                                         : x * other;
      const double scale = std::abs(x) + std::abs(x * other) + std::abs(other) + std::abs(shift[c]);
      judge.value(target.map.plane(c)[i], activated(sum), scale, c, i);
    }
  }
  judge.borders(target.map, target.before, target.zero_to);
}

void check_linear(const Kernels& k, Random& random, Judge& judge) {
  const i32 in = random.in(1, 200), out = random.in(1, 150);
  const i32 blocks = (out + kLinearBlock - 1) / kLinearBlock;
  Map x(in, 1, 1, 0), y(out, 1, 1, 0);
  x.fill(random);
  std::vector<float> weights = random.numbers(i64{blocks} * in * kLinearBlock);
  Finish finish(random, y);
  finish.bias.resize(out);
  const Map before = y;
  k.linear({x.plane(0), in, out, y.plane(0), weights.data(), finish.epilogue()}, 0, blocks);
  for (i32 o = 0; o < out; ++o) {
    double sum = 0, scale = 0;
    for (i32 i = 0; i < in; ++i) {
      const i64 at = (i64{o / kLinearBlock} * in + i) * kLinearBlock + o % kLinearBlock;
      const double product = static_cast<double>(weights[at]) * x.plane(i)[0];
      sum += product;
      scale += std::abs(product);
    }
    finish.judge(judge, y.plane(o)[0], sum, scale, o, 0);
  }
  judge.borders(y, before, 0);
}

void check_stage(const Kernels& k, Random& random, Judge& judge) {
  const i32 channels = random.in(1, 4), phases = random.in(1, 4);
  const i32 stride_h = random.in(1, 3), stride_w = random.in(1, 3);
  Map x(channels, random.in(1, 40), random.in(1, 40), 0);
  x.fill(random);
  const i32 grid_h = random.in(1, x.height / stride_h + 2);
  const i32 grid_w = random.in(1, x.width / stride_w + 2);
  std::vector<i32> rows(phases), columns(phases);
  for (i32 p = 0; p < phases; ++p) rows[p] = random.in(-2, 2), columns[p] = random.in(-2, 2);
  Target target(random, channels * phases, grid_h, grid_w);
  k.stage({x.plane(0), x.stride, x.height, x.width, target.map.plane(0), target.map.stride,
           target.zero_to, grid_h, grid_w, stride_h, stride_w, phases, rows.data(),
           columns.data()},
          0, channels);
  for (i32 c = 0; c < channels * phases; ++c) {
    for (i32 i = 0; i < grid_h * grid_w; ++i) {
      const i32 row = i / grid_w * stride_h + rows[c % phases];
      const i32 column = i % grid_w * stride_w + columns[c % phases];
      judge.value(target.map.plane(c)[i], x.at(c / phases, row, column), 0, c, i);
    }
  }
  judge.borders(target.map, target.before, target.zero_to);
}

struct Case {
  const char* name;
  void (*check)(const Kernels&, Random&, Judge&);
};
constexpr Case kCases[] = {
    {"conv_k1", check_conv_k1}, {"conv_k2", check_conv_k2}, {"depthwise", check_depthwise},
    {"pool", check_pool},       {"element", check_element}, {"linear", check_linear},
    {"stage", check_stage},
};

// Returns how many faults there are in all kernels of a set.
i64 check_set(const Kernels& kernels, i32 shapes) {
  i64 faults = 0;
  for (const Case& one : kCases) {
    Judge judge;
    for (i32 shape = 0; shape < shapes; ++shape) {
      Random random{std::mt19937(static_cast<std::uint32_t>(shape))};
      const i64 before = judge.faults;
      one.check(kernels, random, judge);
      if (judge.faults != before && before == 0) std::printf("  first wrong: shape %d\n", shape);
    }
    std::printf("%-8s %-10s %d shapes, worst error %.2f of its tolerance, %lld faults\n",
                kernels.name, one.name, shapes, judge.worst, static_cast<long long>(judge.faults));
    faults += judge.faults;
  }
  return faults;
}

int run(int argc, char** argv) {
  std::string isa;
  i32 shapes = 300;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--isa") isa = argv[i + 1];
    if (std::string(argv[i]) == "--shapes") shapes = std::atoi(argv[i + 1]);
  }
  i64 faults = 0;
  bool any = false;
  for (const Kernels* const* set = all_kernels(); *set; ++set) {
    if (!supported(**set) || (!isa.empty() && isa != (*set)->name)) continue;
    any = true;
    faults += check_set(**set, shapes);
  }
  if (!any) std::printf("no instruction set %s here\n", isa.c_str());
  return any && faults == 0 ? 0 : 1;
}

}  // namespace
}  // namespace alcs::check

int main(int argc, char** argv) { return alcs::check::run(argc, argv); }
