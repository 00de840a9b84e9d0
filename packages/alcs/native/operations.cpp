// The operations of a network: their sizes checked, their arrays kept, their work shared out.
#include <algorithm>
#include <utility>

#include "engine.hpp"

namespace alcs {
namespace {

constexpr i64 kEntryCost = 8;  // what a group costs besides its entries, in entries

}  // namespace

// Shares a convolution out, tile by tile, equal by the number of entries. Results do not depend on
// the cut.
std::vector<std::vector<Piece>> Engine::shares(const ConvArgs& a, i32 tiles) const {
  const auto cost = [&](i32 group) {
    return kEntryCost + (a.shared ? a.indptr[a.passes]
                                  : a.indptr[(group + 1) * a.passes] - a.indptr[group * a.passes]);
  };
  i64 total = 0, done = 0;
  for (i32 group = 0; group < a.groups; ++group) total += cost(group) * tiles;
  std::vector<std::vector<Piece>> found(static_cast<std::size_t>(threads_));
  for (i32 tile = 0; tile < tiles; ++tile) {
    for (i32 group = 0; group < a.groups; done += cost(group++)) {
      std::vector<Piece>& own = found[static_cast<std::size_t>(done * threads_ / total)];
      if (own.empty() || own.back().tile != tile) own.push_back({tile, group, group});
      own.back().end = group + 1;
    }
  }
  return found;
}

void Engine::add_conv(int x_id, int y_id, bool channel_lanes, i32 group, i32 passes,
                      std::vector<i32> indptr, std::vector<i32> offsets, std::vector<float> values,
                      bool shared, std::vector<u32> masks, std::vector<float> bias, int residual,
                      i32 activation, float low, float high) {
  const Map &x = map(x_id), &y = map(y_id);
  check(group == 1 || group == 2 || group == 4 || group == 8 || group == 16,
        "groups have 1, 2, 4, 8 or 16 filters");
  check(passes >= 1, "a convolution needs a pass");
  ConvArgs a{};
  a.groups = (y.channels + group - 1) / group;
  const i64 lists = shared ? passes : static_cast<i64>(a.groups) * passes;
  const i64 entries = static_cast<i64>(offsets.size());
  check(static_cast<i64>(indptr.size()) == lists + 1 && indptr.front() == 0 &&
            indptr.back() == entries && std::is_sorted(indptr.begin(), indptr.end()),
        "indptr does not cut the entries");
  if (!offsets.empty()) {
    const auto [low_at, high_at] = std::minmax_element(offsets.begin(), offsets.end());
    check(*low_at >= -x.gap && *high_at + static_cast<i64>(y.pixels()) <=
                                   (x.channels - 1) * x.stride + x.pixels() + x.gap,
          "an entry reads outside its map");
  }
  a.x = plane(x);
  a.out = output(y);
  a.epilogue = epilogue(bias, y, residual, activation, low, high);
  a.out_channels = y.channels;
  a.group = group;
  a.passes = passes;
  a.shared = shared;
  a.indptr = hold(std::move(indptr), lists + 1, "indptr");
  a.offsets = hold(std::move(offsets), entries, "offsets");
  a.values = hold(std::move(values), entries * group * (shared ? a.groups : 1), "values");
  a.mask_stride = (y.pixels() + 15) / 16 * 16 + 16;
  a.masks = hold(std::move(masks), (passes - 1) * a.mask_stride, "masks");
  const i32 tiles = channel_lanes ? kernels_->conv_k2_tiles(y.pixels(), group)
                                  : kernels_->conv_k1_tiles(y.pixels(), group);
  check(tiles > 0, std::string(kernels_->name) + " has no channel lanes for this group");
  const auto kernel = channel_lanes ? kernels_->conv_k2 : kernels_->conv_k1;
  push(y, [a, kernel, shares = shares(a, tiles)](int member) {
    for (const Piece& piece : shares[static_cast<std::size_t>(member)]) {
      kernel(a, piece.tile, piece.begin, piece.end);
    }
  });
}

// What depthwise convolution and pooling have in common.
template <class Args>
Args Engine::windows(const Map& x, const Map& y, const i32 (&kernel)[2], const i32 (&stride)[2],
                     const i32 (&pads)[2]) {
  Args a{};
  a.x = plane(x);
  a.x_stride = x.stride;
  a.height = x.height;
  a.width = x.width;
  a.out = output(y);
  a.out_h = y.height;
  a.out_w = y.width;
  a.kernel_h = kernel[0];
  a.kernel_w = kernel[1];
  a.stride_h = stride[0];
  a.stride_w = stride[1];
  a.pad_top = pads[0];
  a.pad_left = pads[1];
  return a;
}

void Engine::add_depthwise(int x_id, int y_id, const i32 (&kernel)[2], const i32 (&stride)[2],
                           const i32 (&pads)[2], std::vector<float> weights,
                           std::vector<float> bias, int residual, i32 activation, float low,
                           float high) {
  const Map &x = map(x_id), &y = map(y_id);
  check(x.channels == y.channels, "a depthwise convolution keeps its channels");
  check(kernel[0] > 0 && kernel[1] > 0 && stride[0] > 0 && stride[1] > 0, "a kernel is empty");
  auto a = windows<DepthwiseArgs>(x, y, kernel, stride, pads);
  a.gap = x.gap;
  a.weights = hold(std::move(weights), static_cast<i64>(x.channels) * kernel[0] * kernel[1],
                   "a depthwise weight");
  a.epilogue = epilogue(bias, y, residual, activation, low, high);
  a.mask_stride = (y.pixels() + 15) / 16 * 16 + 16;
  std::vector<u32> masks(static_cast<std::size_t>(kernel[1] * a.mask_stride), 0);
  for (i32 tap = 0; tap < kernel[1]; ++tap) {
    for (i32 pixel = 0; pixel < y.pixels(); ++pixel) {
      const i32 column = pixel % y.width * stride[1] + tap - pads[1];
      masks[static_cast<std::size_t>(tap * a.mask_stride + pixel)] =
          column >= 0 && column < x.width ? ~u32{0} : 0;
    }
  }
  a.masks = hold(std::move(masks), kernel[1] * a.mask_stride, "masks");
  push(y, [this, a, channels = y.channels](int member) {
    const auto [begin, end] = part(channels, member, threads_);
    kernels_->depthwise(a, begin, end);
  });
}

void Engine::add_pool(int x_id, int y_id, const i32 (&kernel)[2], const i32 (&stride)[2],
                      const i32 (&pads)[2], bool maximum, bool count_padding) {
  const Map &x = map(x_id), &y = map(y_id);
  check(x.channels == y.channels, "pooling keeps its channels");
  check(kernel[0] >= 0 && kernel[1] >= 0 && stride[0] > 0 && stride[1] > 0, "a kernel is empty");
  auto a = windows<PoolArgs>(x, y, kernel, stride, pads);
  a.maximum = maximum;
  a.count_padding = count_padding;
  push(y, [this, a, channels = y.channels](int member) {
    const auto [begin, end] = part(channels, member, threads_);
    kernels_->pool(a, begin, end);
  });
}

void Engine::add_element(i32 op, int a_id, int b_id, int y_id, std::vector<float> factor,
                         std::vector<float> shift, i32 activation, float low, float high) {
  const Map &first = map(a_id), &y = map(y_id);
  check(op >= kAdd && op <= kApply, "there is no such operation");
  check(first.channels == y.channels && first.pixels() == y.pixels(), "maps differ in size");
  ElementArgs a{};
  a.op = op;
  a.a = plane(first);
  a.a_stride = first.stride;
  a.out = output(y);
  a.activation = activation;
  a.low = low;
  a.high = high;
  if (op == kAffine) {
    a.b = hold(std::move(factor), y.channels, "a factor");
    a.b_stride = 1;
    a.shift = hold(std::move(shift), y.channels, "a shift");
  } else if (op != kApply) {
    const Map& b = map(b_id);
    check(b.channels == y.channels && b.pixels() == (op == kGate ? 1 : y.pixels()),
          "maps differ in size");
    a.b = plane(b);
    a.b_stride = b.stride;
  }
  push(y, [this, a, channels = y.channels](int member) {
    const auto [begin, end] = part(channels, member, threads_);
    kernels_->element(a, begin, end);
  });
}

void Engine::add_linear(int x_id, int y_id, std::vector<float> blocks, std::vector<float> bias,
                        int residual, i32 activation, float low, float high) {
  const Map &x = map(x_id), &y = map(y_id);
  check(x.pixels() == 1 && y.pixels() == 1 && x.stride == 1 && y.stride == 1,
        "a linear layer works on vectors");
  LinearArgs a{};
  a.x = plane(x);
  a.in = x.channels;
  a.out = y.channels;
  a.y = plane(y);
  const i32 count = (y.channels + kLinearBlock - 1) / kLinearBlock;
  a.weights = hold(std::move(blocks), static_cast<i64>(count) * x.channels * kLinearBlock,
                   "a linear weight");
  a.epilogue = epilogue(bias, y, residual, activation, low, high);
  push(y, [this, a, count](int member) {
    const auto [begin, end] = part(count, member, threads_);
    kernels_->linear(a, begin, end);
  });
}

void Engine::add_stage(int x_id, int y_id, const i32 (&stride)[2], std::vector<i32> rows,
                       std::vector<i32> columns) {
  const Map &x = map(x_id), &y = map(y_id);
  const i32 phases = static_cast<i32>(rows.size());
  check(phases > 0 && columns.size() == rows.size() && y.channels == x.channels * phases,
        "the phases of a map do not fit");
  StageArgs a{};
  a.x = plane(x);
  a.x_stride = x.stride;
  a.height = x.height;
  a.width = x.width;
  a.y = plane(y);
  a.y_stride = y.stride;
  a.zero_to = y.gap ? static_cast<i32>(y.stride) : 0;
  a.grid_h = y.height;
  a.grid_w = y.width;
  a.stride_h = stride[0];
  a.stride_w = stride[1];
  a.phases = phases;
  a.rows = hold(std::move(rows), phases, "rows");
  a.columns = hold(std::move(columns), phases, "columns");
  const float* const* image = staged_input(x_id);
  if (image) a.x_stride = x.pixels();
  push(y, [this, a, image, channels = x.channels](int member) {
    StageArgs now = a;
    if (image) now.x = *image;
    const auto [begin, end] = part(channels, member, threads_);
    kernels_->stage(now, begin, end);
  });
}

}  // namespace alcs
