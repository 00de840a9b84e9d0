// The Python module alcs._native; see src/alcs/_native.pyi for what its functions mean.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace alcs {
namespace {

template <class T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
using Images = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Results = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Pair = std::array<i32, 2>;

template <class T>
std::vector<T> copy(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

std::vector<std::string> sets() {
  std::vector<std::string> names;
  for (const Kernels* const* k = all_kernels(); *k; ++k) {
    if (supported(**k)) names.emplace_back((*k)->name);
  }
  return names;
}

const Kernels& set_of(const std::string& isa) {
  for (const Kernels* const* k = all_kernels(); *k; ++k) {
    if (isa == (*k)->name && supported(**k)) return **k;
  }
  throw std::invalid_argument("this build or processor has no " + isa);
}

template <class F>
double seconds_of(F&& work) {
  const auto before = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

// The best of many short runs: a disturbance can only lengthen one.
double peak(const std::string& isa, double milliseconds) {
  const Kernels& kernels = set_of(isa);
  double best = 0, spent = 0;
  while (spent < milliseconds * 1e-3) {
    double operations = 0;
    const double seconds = seconds_of([&] { operations = kernels.multiply_add(20000); });
    best = std::max(best, operations / seconds);
    spent += seconds;
  }
  return best * 1e-9;
}

double copy_bandwidth(i64 bytes, double milliseconds) {
  if (bytes < 64) throw std::invalid_argument("a copy needs 64 bytes at least");
  std::vector<char> from(static_cast<std::size_t>(bytes), 1), to(from.size());
  double best = 0, spent = 0;
  while (spent < milliseconds * 1e-3) {
    const double seconds = seconds_of([&] {
      std::memcpy(to.data(), from.data(), from.size());
      asm volatile("" : : "r"(to.data()) : "memory");
    });
    best = std::max(best, 2.0 * static_cast<double>(bytes) / seconds);
    spent += seconds;
  }
  return best * 1e-9;
}

i64 checked_batch(const Engine& engine, const std::vector<Images>& inputs,
                  const std::vector<Results>& outputs) {
  if (inputs.size() != engine.inputs() || outputs.size() != engine.outputs()) {
    throw std::invalid_argument("the number of inputs or outputs is wrong");
  }
  const i64 batch = inputs.empty() || inputs[0].ndim() == 0
                        ? 0
                        : static_cast<i64>(inputs[0].shape(0));
  const auto fits = [&](const auto& array, Shape shape) {
    return array.ndim() > 0 && static_cast<i64>(array.shape(0)) == batch &&
           static_cast<i64>(array.size()) == batch * shape.channels * shape.pixels;
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!fits(inputs[i], engine.input_shape(i))) {
      throw std::invalid_argument("an input has the wrong shape");
    }
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!fits(outputs[i], engine.output_shape(i))) {
      throw std::invalid_argument("an output has the wrong shape");
    }
  }
  return batch;
}

std::vector<double> run(Engine& engine, const std::vector<Images>& inputs,
                        const std::vector<Results>& outputs, bool timed) {
  const i64 batch = checked_batch(engine, inputs, outputs);
  std::vector<const float*> from;
  std::vector<float*> to;
  for (const Images& input : inputs) from.push_back(input.data());
  for (const Results& output : outputs) to.push_back(output.data());
  std::vector<double> seconds;
  nb::gil_scoped_release release;
  engine.run(batch, from, to, timed ? &seconds : nullptr);
  return seconds;
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("supported", &sets);
  m.def("peak", &peak, "isa"_a, "milliseconds"_a = 50.0, nb::call_guard<nb::gil_scoped_release>());
  m.def("copy_bandwidth", &copy_bandwidth, "bytes"_a, "milliseconds"_a = 50.0,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("k2_tiles", [](const std::string& isa, i32 pixels, i32 group) {
    return set_of(isa).conv_k2_tiles(pixels, group);
  }, "isa"_a, "pixels"_a, "group"_a);

  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const std::string&, int, i64>(), "isa"_a, "threads"_a, "arena_floats"_a)
      .def("add_map", [](Engine& e, i64 offset, i32 channels, i32 height, i32 width, i64 stride,
                         i32 gap) {
        return e.add_map({offset, channels, height, width, stride, gap});
      }, "offset"_a, "channels"_a, "height"_a, "width"_a, "stride"_a, "gap"_a)
      .def("add_input", &Engine::add_input, "map"_a, "staged"_a)
      .def("add_output", &Engine::add_output, "map"_a)
      .def("add_conv", [](Engine& e, int x, int y, bool channel_lanes, i32 group, i32 passes,
                          const Array<i32>& indptr, const Array<i32>& offsets,
                          const Array<float>& values, bool shared, const Array<u32>& masks,
                          const Array<float>& bias, int residual, i32 activation, float low,
                          float high) {
        e.add_conv(x, y, channel_lanes, group, passes, copy(indptr), copy(offsets), copy(values),
                   shared, copy(masks), copy(bias), residual, activation, low, high);
      }, nb::kw_only(), "x"_a, "y"_a, "channel_lanes"_a, "group"_a, "passes"_a, "indptr"_a,
         "offsets"_a, "values"_a, "shared"_a, "masks"_a, "bias"_a, "residual"_a, "activation"_a,
         "low"_a, "high"_a)
      .def("add_depthwise", [](Engine& e, int x, int y, const Pair& kernel, const Pair& stride,
                               const Pair& pads, const Array<float>& weights,
                               const Array<float>& bias, int residual, i32 activation, float low,
                               float high) {
        e.add_depthwise(x, y, {kernel[0], kernel[1]}, {stride[0], stride[1]}, {pads[0], pads[1]},
                        copy(weights), copy(bias), residual, activation, low, high);
      }, nb::kw_only(), "x"_a, "y"_a, "kernel"_a, "stride"_a, "pads"_a, "weights"_a, "bias"_a,
         "residual"_a, "activation"_a, "low"_a, "high"_a)
      .def("add_pool", [](Engine& e, int x, int y, const Pair& kernel, const Pair& stride,
                          const Pair& pads, bool maximum, bool count_padding) {
        e.add_pool(x, y, {kernel[0], kernel[1]}, {stride[0], stride[1]}, {pads[0], pads[1]},
                   maximum, count_padding);
      }, nb::kw_only(), "x"_a, "y"_a, "kernel"_a, "stride"_a, "pads"_a, "maximum"_a,
         "count_padding"_a)
      .def("add_element", [](Engine& e, i32 operation, int a, int b, int y,
                             const Array<float>& factor, const Array<float>& shift,
                             i32 activation, float low, float high) {
        e.add_element(operation, a, b, y, copy(factor), copy(shift), activation, low, high);
      }, nb::kw_only(), "operation"_a, "a"_a, "b"_a, "y"_a, "factor"_a, "shift"_a,
         "activation"_a, "low"_a, "high"_a)
      .def("add_linear", [](Engine& e, int x, int y, const Array<float>& blocks,
                            const Array<float>& bias, int residual, i32 activation, float low,
                            float high) {
        e.add_linear(x, y, copy(blocks), copy(bias), residual, activation, low, high);
      }, nb::kw_only(), "x"_a, "y"_a, "blocks"_a, "bias"_a, "residual"_a, "activation"_a, "low"_a,
         "high"_a)
      .def("add_stage", [](Engine& e, int x, int y, const Pair& stride, const Array<i32>& rows,
                           const Array<i32>& columns) {
        e.add_stage(x, y, {stride[0], stride[1]}, copy(rows), copy(columns));
      }, nb::kw_only(), "x"_a, "y"_a, "stride"_a, "rows"_a, "columns"_a)
      .def("run", &run, "inputs"_a, "outputs"_a, "timed"_a = false)
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("operations", &Engine::operations);
}

}  // namespace alcs
