"""The engine as a whole, judged by torch and onnxruntime; and how it behaves among other code."""

import dataclasses
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from alcs.engine import SparseEngine
from alcs.fallback import run_program
from alcs.plan import Activation, Choice, Layer, Network, OnnxPart, Port, Program, Value
from alcs.segments import NativeSegment, native_module
from effcv.errors import ArgumentError, DataError

native = native_module()
needs_kernels = pytest.mark.skipif(native is None, reason="built without kernels")
SETS = native.supported() if native else []
X = np.random.default_rng(0).standard_normal((2, 3, 12, 10)).astype(np.float32)


def chain(layers, values, weights=None):
    """A program from its layers; the first value goes in, the last one comes out."""
    named = {name: Value(name, *size) for name, size in values.items()}
    first, last = next(iter(values)), list(values)[-1]
    network = Network(tuple(layers), named, weights or {}, (first,), (last,))
    ports = [Port(name, name, (1, *values[name])) for name in (first, last)]
    return Program((network,), (ports[0],), (ports[1],))


@pytest.mark.parametrize("isa", [*SETS, "torch"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_layer_equals_torch(isa, threads, every_layer, monkeypatch):
    monkeypatch.setenv("ALCS_ISA", isa)
    engine = SparseEngine(every_layer, num_threads=threads)
    found = engine.run({"images": X})
    for y, expected in zip(found, run_program(every_layer, {"images": X}), strict=True):
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)
    assert engine.backend == isa
    assert set(engine.program.choices) >= {"stem", "wide", "narrow", "head"} or isa == "torch"


@needs_kernels
def test_a_used_engine_gives_what_a_fresh_one_gives(every_layer):
    used = SparseEngine(every_layer)
    used.run([np.full_like(X, np.nan)])
    expected = SparseEngine(every_layer).run([X])
    for y, fresh in zip(used.run([X]), expected, strict=True):
        assert np.isfinite(y).all()
        assert np.array_equal(y, fresh)


@needs_kernels
def test_concatenations_within_concatenations_are_computed_in_place():
    """As in a DenseNet: each map is a part of two concatenations; judged by numpy."""
    relu = Activation("clip")
    layers = [
        Layer("a", "activation", ("x",), "a", activation=relu),
        Layer("ab", "concat", ("x", "a"), "ab"),
        Layer("b", "activation", ("ab",), "b", activation=Activation("sigmoid")),
        Layer("abc", "concat", ("ab", "b"), "abc"),
        Layer("twice", "concat", ("abc", "a", "abc"), "y"),
    ]
    values = {"x": (2, 3, 5), "a": (2, 3, 5), "ab": (4, 3, 5), "b": (4, 3, 5),
              "abc": (8, 3, 5), "y": (18, 3, 5)}  # fmt: skip
    x = np.random.default_rng(1).standard_normal((1, 2, 3, 5)).astype(np.float32)
    a = x.clip(0)
    ab = np.concatenate([x, a], 1)
    abc = np.concatenate([ab, 1 / (1 + np.exp(-ab))], 1)
    (y,) = SparseEngine(chain(layers, values)).run([x])
    np.testing.assert_allclose(y, np.concatenate([abc, a, abc], 1), rtol=0, atol=1e-6)


@needs_kernels
def test_a_residual_is_added_where_surplus_columns_are_cut_off():
    """Without padding the grid is wider than the output, so conv, cut and sum are three steps."""
    rng = np.random.default_rng(2)
    weights = {"w": rng.standard_normal((4, 2, 3, 3)).astype(np.float32),
               "p": rng.standard_normal((4, 2, 3, 3)).astype(np.float32)}  # fmt: skip
    layers = [
        Layer("p", "conv", ("x",), "p", "p", kernel=(3, 3)),
        Layer("w", "conv", ("x",), "y", "w", kernel=(3, 3), residual="p",
              activation=Activation("clip")),
    ]  # fmt: skip
    program = chain(layers, {"x": (2, 7, 9), "p": (4, 5, 7), "y": (4, 5, 7)}, weights)
    x = rng.standard_normal((2, 2, 7, 9)).astype(np.float32)
    (y,) = SparseEngine(program).run([x])
    (expected,) = run_program(program, {"x": x})
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert len(y[y > 0]) > len(y.reshape(-1)) // 4


@needs_kernels
def test_a_network_of_thirty_layers_is_one_native_call(monkeypatch):
    values = {f"v{i}": (4, 6, 6) for i in range(31)}
    layers = [Layer(f"l{i}", "activation", (f"v{i}",), f"v{i + 1}",
                    activation=Activation("clip")) for i in range(30)]  # fmt: skip
    engine = SparseEngine(chain(layers, values))
    calls = []
    run = NativeSegment.run
    monkeypatch.setattr(NativeSegment, "run", lambda *a: calls.append(1) or run(*a))
    engine.run([np.ones((1, 4, 6, 6), np.float32)])
    assert len(calls) == 1
    assert engine._parts[0]._engine.operations == 30


@needs_kernels
def test_the_profile_times_every_layer(every_layer):
    times = SparseEngine(every_layer).profile(rounds=3)
    names = [layer.name for layer in every_layer.segments[0].layers]
    assert [time.name for time in times[:-1]] == names
    assert times[-1].kind == "onnxruntime"
    by_name = {time.name: time for time in times}
    assert all(time.seconds > 0 for time in times if time.name != "both")
    wide = by_name["wide"]
    # One of four groups of filters keeps one of eight channels, on 30 pixels.
    assert wide.density == pytest.approx((3 * 8 + 1) / 32)
    assert wide.macs == 100 * 30
    assert (wide.kernel, wide.group) == ("k1", 4)


@needs_kernels
def test_threads_may_share_an_engine(every_layer):
    engine = SparseEngine(every_layer, num_threads=2)
    inputs = [np.random.default_rng(i).standard_normal(X.shape).astype(np.float32)
              for i in range(4)]  # fmt: skip
    expected = [engine.run([x]) for x in inputs]
    found = {}

    def work(i):
        found[i] = [engine.run([inputs[i]]) for _ in range(20)][-1]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    for i, outputs in enumerate(expected):
        assert all(np.array_equal(a, b) for a, b in zip(found[i], outputs, strict=True))


def script(code, **env):
    """Runs Python code in a process of its own and returns what it printed."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60,
        env=os.environ | env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_runtime_imports_neither_torch_nor_onnx():
    loaded = script("""
        import sys
        import alcs, alcs.engine, alcs.file
        print([n for n in ("torch", "onnx", "onnxruntime", "cv2", "scipy") if n in sys.modules])
    """)
    assert loaded == "[]"


@needs_kernels
def test_an_engine_works_in_a_forked_process():
    """Data loaders fork; the threads of the parent are not there then."""
    code = """
        import os
        import numpy as np
        from alcs.engine import SparseEngine
        from alcs.single import one_layer
        engine = SparseEngine(one_layer(np.ones((64, 64, 1, 1), np.float32), 28, 28),
                              num_threads=2)
        x = np.ones((1, 64, 28, 28), np.float32)
        engine.run([x])
        child = os.fork()
        if not child:
            os._exit(int(not (engine.run([x])[0] == 64).all()))
        print(os.waitpid(child, 0)[1])
    """
    assert script(code) == "0"


@pytest.mark.parametrize("name", ["avx1024", "neon" if "neon" not in SETS else "avx2"])
def test_an_instruction_set_that_is_not_here_is_refused(name, every_layer, monkeypatch):
    monkeypatch.setenv("ALCS_ISA", name)
    with pytest.raises(DataError, match=f"ALCS_ISA is '{name}', and this build and processor run"):
        SparseEngine(every_layer)


@pytest.mark.parametrize(("inputs", "words"), [
    ({"image": X}, "inputs named 'image' were given, the model takes 'images'"),
    ([X, X], "2 inputs were given, the model takes 1"),
    ([X.astype(np.float64)], "input 'images' is float64, expected float32"),
    ([X[0]], r"has shape \(3, 12, 10\), expected \(N, 3, 12, 10\)"),
    ([X[:, :, :, :9]], r"has shape \(2, 3, 12, 9\)"),
    ([X[:0]], "N of at least 1"),
])  # fmt: skip
def test_wrong_inputs_are_refused_in_one_sentence(inputs, words, every_layer):
    with pytest.raises(DataError, match=words):
        SparseEngine(every_layer).run(inputs)


def test_threads_are_at_most_the_cores_of_the_process(every_layer):
    from effcv.bench import usable_cores

    assert SparseEngine(every_layer, num_threads=10_000).num_threads == usable_cores()
    with pytest.raises(ArgumentError, match="num_threads is 0"):
        SparseEngine(every_layer, num_threads=0)


@needs_kernels
def test_a_map_too_large_for_32_bit_offsets_is_refused():
    layer = Layer("l", "activation", ("x",), "y", activation=Activation("clip"))
    program = chain([layer], {"x": (3, 30_000, 30_000), "y": (3, 30_000, 30_000)})
    with pytest.raises(DataError, match="too large: offsets have 32 bits"):
        SparseEngine(program)


@needs_kernels
def test_the_native_engine_trusts_nobody():
    """Arrays that would make a kernel read or write outside of its maps are refused."""
    engine = native.Engine(SETS[-1], 1, 4096)
    x = engine.add_map(16, 2, 4, 4, 32, 5)
    y = engine.add_map(512, 4, 4, 4, 16, 0)
    good = {
        "x": x, "y": y, "channel_lanes": False, "group": 4, "passes": 1,
        "indptr": np.array([0, 1], np.int32), "offsets": np.array([32], np.int32),
        "values": np.ones((1, 4), np.float32), "shared": False, "masks": np.zeros(0, np.uint32),
        "bias": np.zeros(4, np.float32), "residual": -1, "activation": 0, "low": 0.0, "high": 0.0,
    }  # fmt: skip
    engine.add_conv(**good)
    for change in (
        {"offsets": np.array([38], np.int32)},
        {"offsets": np.array([-6], np.int32)},
        {"indptr": np.array([0, 2], np.int32)},
        {"indptr": np.array([1, 1], np.int32)},
        {"values": np.ones((2, 4), np.float32)},
        {"group": 3},
        {"x": 7},
        {"residual": x},
        {"activation": 9},
        {"bias": np.zeros(3, np.float32)},
        {"passes": 2},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            engine.add_conv(**good | change)
    with pytest.raises(ValueError, match="outside the arena"):
        engine.add_map(4000, 4, 8, 8, 64, 0)
    with pytest.raises(ValueError, match="overlap"):
        engine.add_map(16, 4, 8, 8, 64, 9)
    with pytest.raises(ValueError, match="no kernels for"):
        native.Engine("mmx", 1, 16)


@needs_kernels
def test_choices_for_another_instruction_set_still_run(every_layer, monkeypatch):
    """A file compiled where channel lanes exist for groups of four runs where they do not."""
    program = dataclasses.replace(every_layer, choices={"wide": Choice("k2", 4)})
    monkeypatch.setenv("ALCS_ISA", SETS[0])
    found = SparseEngine(program).run([X])
    for y, expected in zip(found, run_program(every_layer, {"images": X}), strict=True):
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("text", "words"), [
    ("y = ReduceMean<keepdims=1>(x, axes)", r"as float32 \(2, 1, 12, 10\), expected float32"),
    ("y = ReduceMean<keepdims=1>(x, first)", r"as float32 \(1, 3, 12, 10\), expected float32"),
    ("y = Cast<to=11>(x)", r"as float64 \(2, 3, 12, 10\), expected float32"),
])  # fmt: skip
def test_a_part_that_gives_what_the_network_does_not_take_is_named(text, words, onnx_of):
    """Such a part comes from a file that was made by hand; the importer makes none."""
    model = onnx_of(f"p (float[N,3,12,10] x) => (float[N,3,12,10] y) {{ {text} }}", opset=18,
                    axes=np.array([1]), first=np.array([0]))  # fmt: skip
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.elem_type = 11 if "Cast" in text else 1
    part = OnnxPart(model.SerializeToString(), ("x",), ("y",), ())
    rest = chain([Layer("l", "activation", ("y",), "z", activation=Activation("clip"))],
                 {"y": (3, 12, 10), "z": (3, 12, 10)})  # fmt: skip
    program = dataclasses.replace(
        rest, segments=(part, *rest.segments), inputs=(Port("x", "x", (1, 3, 12, 10)),)
    )
    engine = SparseEngine(program)
    with pytest.raises(DataError, match=f"onnxruntime gave 'y' {words}"):
        engine.run([X])
    with pytest.raises(DataError, match="onnxruntime gave 'y'"):
        engine.profile([X])


@needs_kernels
def test_the_profile_is_of_one_image_and_of_the_kernel_that_ran(every_layer, monkeypatch):
    program = dataclasses.replace(every_layer, choices={"wide": Choice("dense")})
    engine = SparseEngine(program)
    call = NativeSegment._call
    monkeypatch.setattr(NativeSegment, "_call", lambda self, values, *, timed: (
        call(self, values, timed=False)[0], [0.25] * self._engine.operations))  # fmt: skip
    by_name = {time.name: time for time in engine.profile([X], rounds=3)}
    assert by_name["deep"].seconds == 0.25 / len(X)
    assert (by_name["wide"].density, by_name["wide"].macs) == (1, 16 * 8 * 30)  # zeros too
