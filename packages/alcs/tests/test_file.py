"""The .alcs file: nothing is lost, little is stored, and nothing that is damaged is believed."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open

from alcs.file import load, save
from alcs.groups import apply_mask, group_mask
from alcs.plan import Network
from alcs.single import one_layer
from effcv.errors import DataError
from effcv.runtime.seed import numpy_rng


def pruned(group, sparsity, shape=(64, 64, 1, 1)):
    weight = numpy_rng(0, "weight").normal(size=shape).astype(np.float32)
    return apply_mask(weight, group_mask(weight, group, sparsity=sparsity))


def identical(a, b):
    """Whether two programs are the same, arrays included."""
    same = dataclasses.replace(a, segments=()) == dataclasses.replace(b, segments=())
    for one, other in zip(a.segments, b.segments, strict=True):
        if isinstance(one, Network):
            same &= one.weights.keys() == other.weights.keys()
            same &= all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)
            one, other = (dataclasses.replace(n, weights={}) for n in (one, other))
        same &= one == other
    return same


def altered(path, change):
    """Writes the file again with a changed plan, and sums that fit: what an attacker can do."""
    with safe_open(path, framework="np") as file:
        plan = json.loads(file.metadata()["alcs"].partition(" ")[2])
        tensors = {name: file.get_tensor(name) for name in plan["sha256"]}
    change(plan, tensors)
    plan["sha256"] = {name: hashlib.sha256(t).hexdigest() for name, t in tensors.items()}
    text = json.dumps(plan)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_bytes(safetensors_numpy.save(tensors, {"alcs": f"{digest} {text}"}))


def test_a_program_comes_back_as_it_was(tmp_path, every_layer):
    loaded = load(save(tmp_path / "m.alcs", every_layer))

    assert identical(loaded, every_layer)
    assert loaded.segments[0].layers[0].activation.high == 6
    assert loaded.segments[0].layers[3].activation.high == float("inf")
    loaded.segments[0].weights["scale"][0] += 1
    assert not identical(loaded, every_layer)


def test_the_same_program_gives_the_same_bytes(tmp_path, every_layer):
    first, second = (save(tmp_path / name, every_layer).read_bytes() for name in "ab")

    assert first == second


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_the_file_is_smaller_than_the_dense_one_from_thirty_percent_sparsity_on(tmp_path, group):
    shape = (62, 64, 1, 1)  # with a tail
    dense = save(tmp_path / "dense.alcs", one_layer(pruned(group, 0, shape))).stat().st_size
    sizes = [
        save(tmp_path / "m.alcs", one_layer(pruned(group, share, shape))).stat().st_size / dense
        for share in (0.3, 0.5, 0.8, 0.9)
    ]

    assert sizes[0] < 0.9
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.25


@pytest.mark.parametrize("group", [1, 4, 16])
def test_weights_with_zeros_come_back_exactly(tmp_path, group):
    weight = pruned(group, 0.9, (37, 5, 3, 3))
    loaded = load(save(tmp_path / "m.alcs", one_layer(weight, 8, 8)))

    assert np.array_equal(loaded.segments[0].weights["weight"], weight)


def test_a_file_is_read_and_written_without_torch_or_onnx(tmp_path):
    save(tmp_path / "m.alcs", one_layer(pruned(4, 0.8)))
    code = (
        "import sys; from alcs.file import load, save; save('n.alcs', load('m.alcs'));"
        "print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)

    assert found.strip() == "set()"


def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path, every_layer):
    path = save(tmp_path / "m.alcs", every_layer)
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    rng, refused = numpy_rng(0, "places"), 0
    places = {*range(40), *rng.integers(0, len(data), 400).tolist(), header + 7, len(data) - 1}
    for place in places:
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        error = None
        try:
            loaded = load(path)
        except DataError as problem:
            error = str(problem)
        if error is None:
            assert identical(loaded, every_layer)
        else:
            assert str(path) in error
            assert "\n" not in error
            refused += 1
    assert refused > 0.9 * len(places)


def test_a_plan_that_was_edited_is_refused(tmp_path, every_layer):
    path = save(tmp_path / "m.alcs", every_layer)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a note", b"b note"))

    assert b"a note" in data
    with pytest.raises(DataError, match="plan was altered"):
        load(path)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, every_layer):
    path = save(tmp_path / "m.alcs", every_layer)
    data = path.read_bytes()
    ends = [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"m\.alcs is damaged"):
            load(path)
    assert len(ends) == 8


def test_absent_foreign_and_newer_files_are_refused_in_words(tmp_path, every_layer):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "absent.alcs")
    with pytest.raises(DataError, match="is not a file"):
        load(tmp_path)
    other = tmp_path / "other.alcs"
    safetensors_numpy.save_file({"a": np.zeros(3)}, other)
    with pytest.raises(DataError, match="no plan"):
        load(other)
    path = save(tmp_path / "m.alcs", every_layer)
    altered(path, lambda plan, tensors: plan.update(format=2))
    with pytest.raises(DataError, match="format 2 and this version of alcs reads 1"):
        load(path)


def _first(plan):
    return plan["segments"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, t: _first(p)["values"][1].update(height=7), "'stem'"),
        (lambda p, t: _first(p)["values"][0].update(width=-10), "'x'"),
        (lambda p, t: _first(p)["values"][0].update(width=2**40), "more than"),
        (lambda p, t: _first(p)["values"][0].update(width="10"), "expected int"),
        (lambda p, t: _first(p)["values"][0].update(width=True), "expected int"),
        (lambda p, t: _first(p)["layers"][0].update(kernel=[5, 5]), "'stem'"),
        (lambda p, t: _first(p)["layers"][0].update(kernel=[3]), "2 entries"),
        (lambda p, t: _first(p)["layers"][0].update(stride=[0, 1]), "outside"),
        (lambda p, t: _first(p)["layers"][0]["activation"].update(low=10**400), "too large"),
        (lambda p, t: _first(p)["layers"][0].update(pads=[-1, 1, 1, 1]), "pads"),
        (lambda p, t: _first(p)["layers"][2].update(dilation=[2, 2]), "dilation"),
        (lambda p, t: _first(p)["layers"][0].update(kind="deconv"), "deconv"),
        (lambda p, t: _first(p)["layers"][0].update(extra=1), "has the field 'extra'"),
        (lambda p, t: _first(p)["layers"][0].update(weight="wide"), "'wide'"),
        (lambda p, t: _first(p)["layers"][0].update(bias="deep_bias"), "'deep_bias'"),
        (lambda p, t: _first(p)["layers"][0].update(output="narrow"), "'stem'"),
        (lambda p, t: _first(p)["layers"][3].update(residual="wide"), "cannot add"),
        (lambda p, t: _first(p)["layers"][7].update(inputs=["narrow", "stem", "stem"]), "3 inputs"),
        (lambda p, t: _first(p)["layers"][8].update(inputs=["gate", "wide"]), "joins"),
        (lambda p, t: _first(p)["layers"][1].update(name="stem"), "two layers"),
        (lambda p, t: _first(p)["layers"][13].update(pads=[3, 3, 0, 0]), "hold nothing"),
        (lambda p, t: _first(p)["layers"].pop(), "expected values that it makes"),
        (lambda p, t: _first(p)["layers"].reverse(), "nothing before it makes"),
        (lambda p, t: p["inputs"][0].update(shape=[1, 3, 12, 11]), "port 'images'"),
        (lambda p, t: p["outputs"][0].update(shape=[]), "port 'probabilities'"),
        (lambda p, t: p["outputs"][0].update(value="deep"), "nothing before it makes"),
        (lambda p, t: p["choices"]["wide"].update(group=3), "does not exist"),
        (lambda p, t: p["choices"].update(deep=p["choices"]["wide"]), "no convolution"),
        (lambda p, t: p["segments"].clear(), "is empty"),
        (lambda p, t: _first(p)["weights"]["wide"].update(group=4096), "known form"),
        (lambda p, t: _first(p)["weights"]["wide"].update(shape=[16, 8, 1, 4096]), "kept bits"),
        (lambda p, t: _first(p)["weights"]["stem"].update(shape=[8, 3, 3, 9]), "3, 9"),
        (lambda p, t: t.pop("kept:0:wide"), "known form"),
        (lambda p, t: t.pop("dense:0:stem"), "'stem' is absent"),
        (lambda p, t: t.update({"kept:0:wide": ~t["kept:0:wide"]}), "values for"),
        (lambda p, t: t.update({"dense:0:stem": t["dense:0:stem"].astype("f8")}), "not float32"),
        (lambda p, t: t.update({"values:0:wide": t["values:0:wide"][:, :-1].copy()}), "values for"),
        (lambda p, t: t.update({"dense:0:stem": t["dense:0:stem"] * np.nan}), "NaN"),
    ],
)
def test_a_file_made_by_hand_cannot_make_the_engine_leave_its_memory(
    tmp_path, every_layer, change, words
):
    path = save(tmp_path / "m.alcs", every_layer)
    altered(path, change)

    with pytest.raises(DataError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_that_cannot_run_is_not_written(tmp_path):
    program = one_layer(np.ones((4, 4, 1, 1), np.float32))
    program.segments[0].weights["weight"][0] = np.nan

    with pytest.raises(DataError, match="NaN"):
        save(tmp_path / "m.alcs", program)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_absent_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        save(tmp_path / "absent" / "m.alcs", one_layer(np.ones((4, 4), np.float32)))
