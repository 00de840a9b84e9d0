#include "engine.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace alcs {
namespace {

constexpr i64 kAlign = 64;
constexpr i64 kSlack = 64;  // floats that kernels may read past the last plane
constexpr std::size_t kMostInputs = 64;

const Kernels* find_kernels(const std::string& isa) {
  for (const Kernels* const* k = all_kernels(); *k; ++k) {
    if (isa == (*k)->name) {
      check(supported(**k), "this processor lacks " + isa);
      return *k;
    }
  }
  throw std::invalid_argument("this build has no kernels for " + isa);
}

}  // namespace

Engine::Engine(const std::string& isa, int threads, i64 arena_floats)
    : kernels_(find_kernels(isa)),
      threads_(threads),
      arena_floats_(arena_floats),
      memory_(nullptr, std::free),
      arena_(nullptr),
      images_(kMostInputs, nullptr) {
  check(threads >= 1, "an engine needs a thread");
  check(arena_floats >= 0 && arena_floats < (i64{1} << 40), "the arena's size is out of range");
  const i64 bytes = (arena_floats + kSlack) * static_cast<i64>(sizeof(float));
  const i64 whole = (bytes + kAlign - 1) / kAlign * kAlign;
  memory_.reset(static_cast<float*>(
      std::aligned_alloc(static_cast<std::size_t>(kAlign), static_cast<std::size_t>(whole))));
  if (!memory_) throw std::bad_alloc();
  arena_ = memory_.get();
  std::memset(arena_, 0, static_cast<std::size_t>(whole));
}

const Map& Engine::map(int id) const {
  check(id >= 0 && static_cast<std::size_t>(id) < maps_.size(), "there is no such map");
  return maps_[static_cast<std::size_t>(id)];
}

int Engine::add_map(const Map& m) {
  const i64 pixels = static_cast<i64>(m.height) * m.width;
  check(m.channels > 0 && m.height > 0 && m.width > 0 && pixels < (i64{1} << 30),
        "a map has no pixels, or too many");
  check(m.gap >= 0 && m.stride >= pixels + m.gap, "the planes of a map overlap");
  check(m.stride % 16 == 0 || (pixels == 1 && m.stride == 1),
        "the stride of a map is not a multiple of 16");
  check(m.offset >= m.gap && m.offset + m.channels * m.stride <= arena_floats_,
        "a map lies outside the arena");
  check(m.channels * m.stride < (i64{1} << 31), "a map is too large for offsets of 32 bits");
  maps_.push_back(m);
  return static_cast<int>(maps_.size()) - 1;
}

Output Engine::output(const Map& m) {
  return {plane(m), m.stride, m.pixels(), m.gap ? static_cast<i32>(m.stride) : 0};
}

Epilogue Engine::epilogue(const std::vector<float>& bias, const Map& y, int residual,
                          i32 activation, float low, float high) {
  check(activation >= kNone && activation <= kSilu, "there is no such activation");
  Epilogue e{};
  const i64 padded = (y.channels + 31) / 32 * 32;
  std::vector<float> whole(bias);
  check(static_cast<i64>(whole.size()) == y.channels, "a bias has the wrong size");
  whole.resize(static_cast<std::size_t>(padded), 0.0F);
  e.bias = hold(std::move(whole), padded, "a bias");
  if (residual >= 0) {
    const Map& r = map(residual);
    check(r.channels == y.channels && r.pixels() == y.pixels(), "a residual has another size");
    e.residual = plane(r);
    e.residual_stride = r.stride;
  }
  e.activation = activation;
  e.low = low;
  e.high = high;
  return e;
}

void Engine::push(const Map& y, Work work) {
  float* first = plane(y);
  const i32 gap = y.gap;
  operations_.push_back([=](int member) {
    if (member == 0 && gap) std::memset(first - gap, 0, sizeof(float) * static_cast<size_t>(gap));
    work(member);
  });
}

void Engine::add_input(int id, bool staged) {
  map(id);
  check(operations_.empty() && inputs_.size() < kMostInputs, "inputs come before operations");
  inputs_.push_back(id);
  staged_.push_back(staged);
}

const float* const* Engine::staged_input(int id) const {
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i] == id && staged_[i]) return &images_[i];
  }
  return nullptr;
}

void Engine::add_output(int id) {
  map(id);
  outputs_.push_back(id);
}

Shape Engine::input_shape(std::size_t i) const {
  const Map& m = map(inputs_.at(i));
  return {m.channels, m.pixels()};
}

Shape Engine::output_shape(std::size_t i) const {
  const Map& m = map(outputs_.at(i));
  return {m.channels, m.pixels()};
}

void Engine::copy_in(const Map& m, const float* from, int member) {
  const auto [begin, end] = part(m.channels, member, threads_);
  const std::size_t pixels = static_cast<std::size_t>(m.pixels());
  for (i32 c = begin; c < end; ++c) {
    float* to = plane(m) + c * m.stride;
    std::memcpy(to, from + static_cast<std::size_t>(c) * pixels, sizeof(float) * pixels);
    if (m.gap) std::fill(to + pixels, to + m.stride, 0.0F);
  }
  if (member == 0 && m.gap) std::fill(plane(m) - m.gap, plane(m), 0.0F);
}

void Engine::copy_out(const Map& m, float* to, int member) {
  const auto [begin, end] = part(m.channels, member, threads_);
  const std::size_t pixels = static_cast<std::size_t>(m.pixels());
  for (i32 c = begin; c < end; ++c) {
    std::memcpy(to + static_cast<std::size_t>(c) * pixels, plane(m) + c * m.stride,
                sizeof(float) * pixels);
  }
}

void Engine::run(i64 batch, const std::vector<const float*>& inputs,
                 const std::vector<float*>& outputs, std::vector<double>* seconds) {
  using Clock = std::chrono::steady_clock;
  check(inputs.size() == inputs_.size() && outputs.size() == outputs_.size(),
        "the number of inputs or outputs is wrong");
  std::lock_guard<std::mutex> lock(busy_);
  if (!team_ || owner_ != getpid()) {
    team_.release();  // after a fork its threads are gone, and nothing of it may be touched
    team_ = std::make_unique<Team>(threads_);
    owner_ = getpid();
  }
  if (seconds) seconds->assign(operations_.size(), 0.0);
  team_->run([&](int member) {
    for (i64 image = 0; image < batch; ++image) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const Map& m = map(inputs_[i]);
        const float* from = inputs[i] + image * m.channels * m.pixels();
        if (!staged_[i]) copy_in(m, from, member);
        else if (member == 0) images_[i] = from;
      }
      team_->barrier();
      Clock::time_point before = Clock::now();
      for (std::size_t i = 0; i < operations_.size(); ++i) {
        operations_[i](member);
        team_->barrier();
        if (seconds && member == 0) {
          const Clock::time_point after = Clock::now();
          (*seconds)[i] += std::chrono::duration<double>(after - before).count();
          before = after;
        }
      }
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        const Map& m = map(outputs_[i]);
        copy_out(m, outputs[i] + image * m.channels * m.pixels(), member);
      }
      team_->barrier();  // the next image overwrites what was copied
    }
  });
}

}  // namespace alcs
