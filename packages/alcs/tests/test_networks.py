"""Random networks of every kind of layer, on every instruction set; torch in float64 judges."""

import numpy as np
import pytest
import torch

from alcs.engine import SparseEngine
from alcs.fallback import run_program
from alcs.groups import GROUPS, group_mask
from alcs.plan import Activation, Choice, Layer, Network, Port, Program, Value
from alcs.segments import native_module
from alcs.validation import validate, windows
from effcv.errors import DataError

native = native_module()
pytestmark = pytest.mark.skipif(native is None, reason="built without kernels")
SETS = native.supported() if native else []
NETWORKS = 120
KINDS = ("conv", "conv", "depthwise", "linear", "max_pool", "average_pool", "global_pool", "add",
         "mul", "affine", "activation", "concat", "concat")  # fmt: skip
FUNCTIONS = [Activation(f) for f in ("none", "hardswish", "hardsigmoid", "sigmoid", "silu")]
FUNCTIONS += [Activation("clip"), Activation("clip", -1.0, 6.0)]


class Draft:
    """A network that grows by random layers, each of which reads some of the latest maps."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.values, self.weights, self.layers, self.choices = {}, {}, [], {}
        self.value(*self.rng.integers(1, (10, 15, 15)))
        for _ in range(self.rng.integers(3, 14)):
            self.grow()

    def pick(self, *of):
        return of[self.rng.integers(len(of))]

    def value(self, *size):
        name = f"v{len(self.values)}"
        self.values[name] = Value(name, *map(int, size))
        return name

    def like(self, *size):
        """All maps of a size; None fits any channels."""
        return [name for name, v in self.values.items()
                if size == (size[0] and v.channels, v.height, v.width)]  # fmt: skip

    def weight(self, name, *shape):
        scale = np.sqrt(np.prod(shape[1:]))
        self.weights[name] = (self.rng.standard_normal(shape) / scale).astype(np.float32)
        return name

    def sparse(self, name):
        group = self.pick(*GROUPS)
        mask = group_mask(self.weights[name], group, sparsity=self.pick(0.0, 0.5, 0.9, 1.0))
        self.weights[name] *= mask
        if self.rng.random() < 0.8:
            self.choices[name] = Choice(self.pick("dense", "k1", "k2"), group)

    def windowed(self, kind):
        kernel = (self.pick(1, 3, 5),) * 2 if self.rng.random() < 0.6 else self.pair(1, 4)
        stride = self.pick((1, 1), (1, 1), (2, 2), self.pair(1, 3))
        pads = (kernel[0] // 2, kernel[1] // 2) * 2
        if self.rng.random() < 0.4:
            pads = tuple(self.rng.integers(0, 3, 4).tolist())
        if kind.endswith("pool"):
            pads = tuple(min(pad, size - 1) for pad, size in zip(pads, kernel * 2, strict=True))
        dilation = self.pair(1, 2) if kind == "conv" and self.rng.random() < 0.2 else (1, 1)
        return {"kernel": kernel, "stride": stride, "pads": pads, "dilation": dilation}

    def pair(self, low, high):
        return tuple(self.rng.integers(low, high + 1, 2).tolist())

    def grow(self):
        kind, name = self.pick(*KINDS), f"l{len(self.layers)}"
        x = self.values[self.pick(*list(self.values)[-5:])]
        if kind == "linear" and x.pixels > 1:
            kind = "global_pool"
        try:
            inputs, size, settings = self.shaped(kind, name, x)
        except DataError:  # the kernel is larger than the map
            return
        if kind in ("conv", "linear"):
            self.sparse(name)
        if kind in ("conv", "linear", "depthwise"):
            settings["residual"] = self.pick("", *self.like(*size))
        if "weight" in settings and self.rng.random() < 0.7:
            settings["bias"] = self.weight(f"{name} bias", size[0])
        if not kind.endswith("pool") and kind != "concat":
            settings["activation"] = self.pick(*FUNCTIONS)
        self.layers.append(Layer(name, kind, inputs, self.value(*size), **settings))

    def shaped(self, kind, name, x):
        """Returns inputs, size of the output, and settings."""
        inputs, size = (x.name,), (x.channels, x.height, x.width)
        if kind in ("conv", "depthwise", "max_pool", "average_pool"):
            settings = self.windowed(kind)
            channels = self.pick(1, 4, 8, 17, 33) if kind == "conv" else x.channels
            size = (channels, *windows(Layer(name, kind, inputs, "", **settings), x))
            if not kind.endswith("pool"):
                depth = x.channels if kind == "conv" else 1
                settings["weight"] = self.weight(name, channels, depth, *settings["kernel"])
            return inputs, size, settings
        if kind == "linear":
            filters = self.pick(1, 5, 16, 40)
            return inputs, (filters, 1, 1), {"weight": self.weight(name, filters, x.channels)}
        if kind in ("add", "mul"):
            gates = self.like(x.channels, 1, 1) if kind == "mul" else []
            return (x.name, self.pick(*self.like(*size), *gates)), size, {}
        if kind == "concat":
            found = self.like(None, *size[1:])
            inputs = tuple(self.pick(*found) for _ in range(self.rng.integers(1, 4)))
            return inputs, (sum(self.values[n].channels for n in inputs), *size[1:]), {}
        size = (x.channels, 1, 1) if kind == "global_pool" else size
        return inputs, size, {"weight": self.weight(name, x.channels)} if kind == "affine" else {}

    def program(self):
        made = [layer.output for layer in self.layers]
        outputs = tuple(dict.fromkeys([made[-1], self.pick(*made)]))
        network = Network(tuple(self.layers), self.values, self.weights, ("v0",), outputs)
        ports = {n: Port(n, n, (1, v.channels, v.height, v.width)) for n, v in self.values.items()}
        program = Program((network,), (ports["v0"],), tuple(ports[n] for n in outputs),
                          choices=self.choices)  # fmt: skip
        validate(program)
        return program


@pytest.mark.parametrize("isa", SETS)
def test_random_networks_equal_torch_whatever_ran_before(isa, monkeypatch):
    monkeypatch.setenv("ALCS_ISA", isa)
    kinds = set()
    for seed in range(NETWORKS):
        draft = Draft(seed)
        if not draft.layers:
            continue
        program = draft.program()
        kinds.update(layer.kind for layer in draft.layers)
        x = draft.rng.standard_normal((2, *program.inputs[0].shape[1:])).astype(np.float32)
        engine = SparseEngine(program, num_threads=1 + seed % 2)
        engine.run([np.full_like(x, np.nan)])
        judged = run_program(program, {"v0": x}, dtype=torch.float64)
        for y, expected in zip(engine.run([x]), judged, strict=True):
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4 * scale, err_msg=f"{seed}")
    assert kinds == set(KINDS)


def test_a_vector_that_a_padded_convolution_reads_may_be_made_by_a_linear_layer():
    """As in MobileNetV1 on 32 x 32 pixels, whose last maps are of one pixel."""
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 4), "b": (6, 1, 3, 3), "c": (5, 6, 3, 1), "d": (5, 6)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    layers = (
        Layer("a", "linear", ("x",), "a", "a"),
        Layer("b", "depthwise", ("a",), "b", "b", kernel=(3, 3), pads=(1,) * 4),
        Layer("c", "conv", ("b",), "c", "c", kernel=(3, 1), pads=(2, 0, 2, 0)),
        Layer("d", "linear", ("b",), "d", "d"),
    )
    sizes = {"x": (4,), "a": (6,), "b": (6,), "c": (5, 3), "d": (5,)}
    values = {name: Value(name, *size) for name, size in sizes.items()}
    network = Network(layers, values, weights, ("x",), ("c", "d"))
    ports = (Port("c", "c", (1, 5, 3, 1)), Port("d", "d", (1, 5)))
    choices = {"a": Choice("dense"), "d": Choice("dense")}
    program = Program((network,), (Port("x", "x", (1, 4)),), ports, choices=choices)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    for y, expected in zip(SparseEngine(program).run([x]), run_program(program, {"x": x}),
                           strict=True):  # fmt: skip
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
