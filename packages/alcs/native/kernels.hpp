// What the engine asks of one instruction set.
//
// The kernels are compiled once for each instruction set, from the same source with other flags,
// and reached through the table `Kernels`. Only plain structs of pointers and numbers cross that
// border: no inline function and nothing of the standard library, of which the linker would keep a
// single copy, compiled for whatever set came first.
//
// A feature map is `channels` planes of floats. A plane holds height * width pixels without padding
// between rows, then a gap of zeros up to its stride; the same gap lies before plane 0. So a tap of
// a K x K convolution is a constant offset into the plane: rows above and below fall into a gap,
// and only the columns that wrap around to the next row have to be masked. Where no reader needs
// zeros, what lies between the pixels and the stride is undefined.
// Strides are multiples of 16 floats and planes are 64-byte aligned, but for maps of one pixel,
// whose stride is 1 (a vector).
#pragma once

#include <cstdint>

namespace alcs {

using i32 = std::int32_t;
using i64 = std::int64_t;
using u32 = std::uint32_t;

enum Activation : i32 { kNone, kClip, kHardSwish, kHardSigmoid, kSigmoid, kSilu };

// y = activation(sum + bias[channel] + residual)
struct Epilogue {
  const float* bias;      // one number a channel; never null
  const float* residual;  // plane 0 of a map of the output's size, or null
  i64 residual_stride;
  i32 activation;
  float low, high;  // of kClip
};

// Where results go: plane 0, and how far each plane must be zero behind its pixels.
struct Output {
  float* y;
  i64 stride;
  i32 pixels;
  i32 zero_to;  // 0: nobody reads the gap; else the plane is zero in [pixels, zero_to)
};

// Convolution of any kernel size over weights in groups of `group` output filters that share their
// zeros (BlockCSR). An entry is one (input channel, kh, kw): `offsets` says where it reads, relative
// to the pixel that is computed, `values` holds its `group` weights. The entries of a group are cut
// into passes, one for each horizontal shift; the results of all passes but the last one are
// masked, where the shift leaves the row.
struct ConvArgs {
  const float* x;  // plane 0
  Output out;
  Epilogue epilogue;  // bias padded to whole groups
  i32 out_channels;
  i32 group;   // 1, 2, 4, 8, 16
  i32 groups;  // ceil(out_channels / group)
  i32 passes;
  const i32* indptr;   // (groups * passes + 1), or (passes + 1) where `shared`
  const i32* offsets;  // (entries)
  const float* values;  // (entries, group), or (groups, entries, group) where `shared`
  i32 shared;           // a dense layer: all groups have the same entries
  const u32* masks;     // (passes - 1, mask_stride): all ones where the pixel counts, else zero
  i64 mask_stride;      // pixels rounded up to 16, and 16 more
};

// Depthwise convolution of a KH x KW kernel; out = (out_h, out_w).
struct DepthwiseArgs {
  const float* x;
  i64 x_stride;
  i32 height, width;
  Output out;
  i32 out_h, out_w;
  i32 kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  i32 gap;               // zeros that surround each input plane
  const float* weights;  // (channels, kernel_h * kernel_w)
  Epilogue epilogue;
  const u32* masks;  // (kernel_w, mask_stride): for each tap column, pixels whose column exists
  i64 mask_stride;
};

// Maximum or mean over windows; kernel 0 x 0 is the mean over the whole plane.
struct PoolArgs {
  const float* x;
  i64 x_stride;
  i32 height, width;
  Output out;
  i32 out_h, out_w;
  i32 kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  i32 maximum;
  i32 count_padding;
};

enum Element : i32 { kAdd, kMul, kGate, kAffine, kApply };

// y = activation(a + b), (a * b), (a * b[channel]), (a * b[channel] + shift[channel]) or (a).
struct ElementArgs {
  i32 op;
  const float* a;
  i64 a_stride;
  const float* b;
  i64 b_stride;
  const float* shift;
  Output out;
  i32 activation;
  float low, high;
};

// y = activation(W x + bias + residual) of a vector; weights lie in blocks of `kLinearBlock` rows:
// (ceil(out / block), in, block), padded with zeros.
constexpr i32 kLinearBlock = 32;
struct LinearArgs {
  const float* x;
  i32 in, out;
  float* y;
  const float* weights;
  Epilogue epilogue;  // residual_stride is 1
};

// Copies planes onto another grid: plane (c * phases + p) of y holds, at (i, j), the pixel
// (i * stride_h + row[p], j * stride_w + column[p]) of plane c of x, or 0 outside.
struct StageArgs {
  const float* x;
  i64 x_stride;
  i32 height, width;
  float* y;
  i64 y_stride;
  i32 zero_to;
  i32 grid_h, grid_w;
  i32 stride_h, stride_w;
  i32 phases;
  const i32* rows;
  const i32* columns;
};

struct Kernels {
  const char* name;
  i32 lanes;  // floats a vector
  // Pixel tiles into which a convolution is cut; depends on nothing but these numbers.
  i32 (*conv_k1_tiles)(i32 pixels, i32 group);
  void (*conv_k1)(const ConvArgs&, i32 tile, i32 group_begin, i32 group_end);
  i32 (*conv_k2_tiles)(i32 pixels, i32 group);  // 0 where this set has no k2 for the group
  void (*conv_k2)(const ConvArgs&, i32 tile, i32 group_begin, i32 group_end);
  void (*depthwise)(const DepthwiseArgs&, i32 begin, i32 end);
  void (*pool)(const PoolArgs&, i32 begin, i32 end);
  void (*element)(const ElementArgs&, i32 begin, i32 end);  // channels
  void (*linear)(const LinearArgs&, i32 begin, i32 end);    // blocks
  void (*stage)(const StageArgs&, i32 begin, i32 end);      // channels of x
  double (*multiply_add)(i64 rounds);  // FLOP done in registers alone, for the peak
};

// The sets this build holds, best first, ended by null; `supported` asks processor and system.
const Kernels* const* all_kernels();
bool supported(const Kernels& kernels);

}  // namespace alcs
