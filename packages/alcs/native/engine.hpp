// Runs a network: feature maps in one arena, operations in order, all threads through each of them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "threads.hpp"

namespace alcs {

// A feature map in the arena; see kernels.hpp for what lies between planes.
struct Map {
  i64 offset;  // of plane 0, in floats
  i32 channels, height, width;
  i64 stride;
  i32 gap;  // zeros before plane 0 and behind every plane, 0 if nobody reads them

  i32 pixels() const { return height * width; }
};

inline void check(bool holds, const std::string& words) {
  if (!holds) throw std::invalid_argument(words);
}

// What a member of a team takes of `count` things: from .first up to .second.
inline std::pair<i32, i32> part(i32 count, int member, int members) {
  return {static_cast<i32>(static_cast<i64>(count) * member / members),
          static_cast<i32>(static_cast<i64>(count) * (member + 1) / members)};
}

// A part of a convolution: a tile of pixels, for the groups of filters [begin, end).
struct Piece {
  i32 tile, begin, end;
};

struct Shape {
  i32 channels, pixels;
};

class Engine {
 public:
  // Throws std::invalid_argument where the set is unknown or the processor lacks it.
  Engine(const std::string& isa, int threads, i64 arena_floats);

  int add_map(const Map& map);
  // `staged`: only `add_stage` reads it, which takes it from where the caller has it.
  void add_input(int map, bool staged);
  void add_output(int map);
  void add_conv(int x, int y, bool channel_lanes, i32 group, i32 passes, std::vector<i32> indptr,
                std::vector<i32> offsets, std::vector<float> values, bool shared,
                std::vector<u32> masks, std::vector<float> bias, int residual, i32 activation,
                float low, float high);
  void add_depthwise(int x, int y, const i32 (&kernel)[2], const i32 (&stride)[2],
                     const i32 (&pads)[2], std::vector<float> weights, std::vector<float> bias,
                     int residual, i32 activation, float low, float high);
  void add_pool(int x, int y, const i32 (&kernel)[2], const i32 (&stride)[2],
                const i32 (&pads)[2], bool maximum, bool count_padding);
  // `b`: a map, or -1 where numbers a channel are given.
  void add_element(i32 op, int a, int b, int y, std::vector<float> factor,
                   std::vector<float> shift, i32 activation, float low, float high);
  void add_linear(int x, int y, std::vector<float> blocks, std::vector<float> bias, int residual,
                  i32 activation, float low, float high);
  void add_stage(int x, int y, const i32 (&stride)[2], std::vector<i32> rows,
                 std::vector<i32> columns);

  // One image after the other. `inputs` and `outputs` point to (batch, channels, height, width)
  // in the order in which they were added. `seconds`, if given, gets the time of each operation.
  void run(i64 batch, const std::vector<const float*>& inputs,
           const std::vector<float*>& outputs, std::vector<double>* seconds);

  std::size_t operations() const { return operations_.size(); }
  Shape input_shape(std::size_t i) const;
  Shape output_shape(std::size_t i) const;
  std::size_t inputs() const { return inputs_.size(); }
  std::size_t outputs() const { return outputs_.size(); }
  int threads() const { return threads_; }

 private:
  using Work = std::function<void(int member)>;

  const Map& map(int id) const;
  float* plane(const Map& m) { return arena_ + m.offset; }
  Output output(const Map& m);
  template <class Args>
  Args windows(const Map& x, const Map& y, const i32 (&kernel)[2], const i32 (&stride)[2],
               const i32 (&pads)[2]);
  Epilogue epilogue(const std::vector<float>& bias, const Map& y, int residual, i32 activation,
                    float low, float high);
  template <class T>
  const T* hold(std::vector<T> data, i64 expected, const char* what);
  void push(const Map& y, Work work);
  std::vector<std::vector<Piece>> shares(const ConvArgs& args, i32 tiles) const;
  void copy_in(const Map& m, const float* from, int member);
  const float* const* staged_input(int map) const;
  void copy_out(const Map& m, float* to, int member);

  const Kernels* kernels_;
  int threads_;
  i64 arena_floats_;
  std::unique_ptr<float, void (*)(void*)> memory_;
  float* arena_;
  std::vector<Map> maps_;
  std::vector<int> inputs_, outputs_;
  std::vector<bool> staged_;
  std::vector<const float*> images_;  // where the caller has the image of each input
  std::vector<Work> operations_;
  std::vector<std::shared_ptr<void>> held_;
  std::unique_ptr<Team> team_;
  int owner_ = 0;  // process that started the team
  std::mutex busy_;
};

template <class T>
const T* Engine::hold(std::vector<T> data, i64 expected, const char* what) {
  check(static_cast<i64>(data.size()) == expected, std::string(what) + " has the wrong size");
  data.resize(data.size() + 16, T{});  // room for a vector that is read at the last number
  auto kept = std::make_shared<std::vector<T>>(std::move(data));
  held_.push_back(kept);
  return kept->data();
}

}  // namespace alcs
