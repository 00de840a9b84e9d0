"""Checkpoints that are damaged, hostile or interrupted: one sentence, nothing run, nothing lost.

`craft` writes the format a second time, from its description; torch.save makes the pickles.
"""

import copy
import hashlib
import io
import json
import math
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from effcv.errors import CheckpointError
from effcv.runtime.checkpoint import load, save


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 2))


def same(left, right):
    """Equal names, dtypes, shapes and bits."""
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left
    )


def craft(path, contents, *, digest=None, stored=None, **changes):
    """Writes a checkpoint by the description of the format, with whatever lies are asked for."""
    entries = {
        name: {
            "dtype": str(tensor.dtype)[6:],
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor.numpy().tobytes()).hexdigest(),
        }
        for name, tensor in contents.items()
    }
    manifest = {"format": 1, "writer": "x", "tensors": entries, "shared": {}, "metadata": {}}
    text = json.dumps(manifest | changes)
    digest = digest or hashlib.sha256(text.encode()).hexdigest()
    stored = contents if stored is None else stored
    path.write_bytes(safetensors.torch.save(stored, metadata={"effcv": f"{digest} {text}"}))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.safetensors"


# Damage


def test_a_second_writer_of_the_format_is_understood(file):
    tensors = {"a": torch.rand(2, 3), "b": torch.arange(3)}
    craft(file, tensors, metadata={"k": [1]}, shared={"c": "b"})
    checkpoint = load(file)
    assert same(checkpoint.tensors, {**tensors, "c": tensors["b"]})
    assert checkpoint.metadata == {"k": [1]}


def test_a_flip_of_any_payload_byte_is_refused(file):
    save(file, net())
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    for position in range(start, len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load(file)
    assert len(data) - start > 200


def test_other_damage_is_refused_or_changes_nothing(file):
    """2,000 flips in the header, 200 truncations and other tails: no other exception, no lie."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True]), "c": torch.ones(0)}
    save(file, tensors, metadata={"k": "v"})
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    refused = 0
    for trial in range(2200):
        damaged = bytearray(data)
        if trial < 2000:
            damaged[rng.randrange(header)] ^= 1 << rng.randrange(8)
        elif trial % 2:
            del damaged[rng.randrange(len(data)) :]
        else:
            damaged[rng.randrange(len(data)) :] = rng.randbytes(rng.randrange(1, 40))
        file.write_bytes(damaged)
        try:
            checkpoint = load(file)
        except CheckpointError:
            refused += 1
        else:
            assert same(checkpoint.tensors, tensors)
            assert checkpoint.metadata == {"k": "v"}
    assert refused > 2100


def test_the_error_names_the_damaged_tensor(file):
    craft(file, {"a": torch.ones(2), "b": torch.ones(3)})
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"net.safetensors is damaged: '[ab]' is not what"):
        load(file)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"digest": "0" * 64}, "its manifest does not match its SHA-256"),
        ({"format": 2}, "a manifest of another format, expected 1"),
        ({"tensors": []}, "a manifest of another format"),
        ({"tensors": {}}, "its names are not those of its manifest"),
        ({"shared": {"c": "none"}}, "its names are not those of its manifest"),
        ({"shared": {"a": "a"}}, "its names are not those of its manifest"),
        ({"stored": {"a": torch.zeros(2, 3)}}, "'a' is not what its manifest says"),
        ({"stored": {"a": torch.ones(3, 2)}}, "'a' is not what its manifest says"),
        ({"stored": {"a": torch.ones(2, 3).view(torch.int32)}}, "'a' is not what its manifest"),
        ({"stored": {"b": torch.ones(2, 3)}}, "its names are not those of its manifest"),
        ({"metadata": [1]}, "a manifest of another format"),
    ],
)
def test_a_manifest_that_lies_is_refused(file, lie, message):
    craft(file, {"a": torch.ones(2, 3)}, **lie)
    with pytest.raises(CheckpointError, match=message):
        load(file)


def test_a_manifest_nested_too_deeply_is_refused(file):
    deep = "[" * 100_000 + "]" * 100_000
    text = f'{{"format":1,"writer":"","tensors":{{}},"shared":{{}},"metadata":{{"a":{deep}}}}}'
    digest = hashlib.sha256(text.encode()).hexdigest()
    file.write_bytes(safetensors.torch.save({}, metadata={"effcv": f"{digest} {text}"}))
    with pytest.raises(CheckpointError, match="another format"):
        load(file)


def test_plain_safetensors_are_refused_with_the_remedy(file):
    safetensors.torch.save_file({"a": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match="has no manifest; if you trust it"):
        load(file)
    save(file, safetensors.torch.load_file(file))
    assert load(file).tensors["a"].sum() == 2


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ["absent.safetensors", ".", "pipe", "nul\0l"]:
        with pytest.raises(CheckpointError, match="does not exist or is not a file"):
            load(tmp_path / name)


# Values that must not be there


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_refused_at_save_and_the_old_file_stays(file, value, dtype):
    save(file, {"a": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="'bad' holds NaN or infinite values; nothing was"):
        save(file, {"ok": torch.ones(2), "bad": torch.tensor([1, value], dtype=dtype)})
    assert same(load(file).tensors, {"a": torch.zeros(3)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_at_load(file, value):
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    craft(file, {"weight": torch.tensor([[1.0, value]]), "bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="'weight' holds NaN or infinite values"):
        load(file, model=model)
    assert same(dict(model.state_dict()), dict(before))


class Bomb:
    """Writes the marker file when it is unpickled, by the call it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles(marker):
    """Yields files that would create ``marker`` if anything unpickled them."""
    touch = f"open({str(marker)!r}, 'w').close()"
    bombs = [
        Bomb(os.system, f"touch '{marker}'"),
        Bomb(eval, touch),
        Bomb(exec, touch),
        Bomb(open, str(marker), "w"),
        Bomb(subprocess.Popen, ["touch", str(marker)]),
        Bomb(getattr(os, "mknod", os.mkdir), str(marker)),
        Bomb(getattr, Bomb(__import__, "os"), "system"),
        Bomb(torch._utils._rebuild_tensor_v2, Bomb(eval, touch), 0, (1,), (1,), False, {}),
    ]
    for bomb in bombs:
        for protocol in (0, 2, 4):
            yield pickle.dumps(bomb, protocol=protocol)
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save(
            {"weight": torch.ones(2), "x": bombs[0]},
            buffer,
            _use_new_zipfile_serialization=not legacy,
        )
        yield buffer.getvalue()
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bombs[1]))
        archive.writestr("archive/inner.zip", buffer.getvalue())
    yield nested.getvalue()
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(payload := pickle.dumps(bombs[0]))
        archive.addfile(member, io.BytesIO(payload))
    yield tarred.getvalue()


def test_pickles_are_refused_whatever_their_name_and_none_is_executed(tmp_path):
    marker = tmp_path / "executed"
    pickles = list(hostile_pickles(marker))
    for suffix in ("safetensors", "pt", "pth", "bin", "ckpt"):
        for data in pickles:
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match=r"pickles .* are never opened"):
                load(path)
    assert len(pickles) == 28
    assert not marker.exists()
    pickle.loads(pickles[3])  # the bombs are real
    assert marker.exists()


def test_an_honest_pickle_is_refused_and_converts_in_one_line(tmp_path, file):
    torch.save(net().state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"net.pth is not a readable .* never opened"):
        load(tmp_path / "net.pth")
    save(file, torch.load(tmp_path / "net.pth", weights_only=True))
    assert same(load(file).tensors, dict(net().state_dict()))


def test_small_files_that_claim_much_are_refused_without_taking_memory(file):
    def header(shape, end, length=None):
        entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
        text = json.dumps(entry).encode()
        return struct.pack("<Q", length or len(text)) + text + bytes(16)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in [
        header([2**40], 2**42),
        header([2**40], 16),
        header([2**62, 2**62], 16),
        header([2**32, 2**32, 0], 0),
        header([4], 16, length=2**40),
        header([4], 16, length=2**63),
        header([4], 16, length=2**64 - 1),
    ]:
        file.write_bytes(data)
        with pytest.raises(CheckpointError):
            load(file)
    torch.save(torch.ones(1).expand(2**40), file)
    with pytest.raises(CheckpointError):
        load(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


# Accidents


def in_child(code, *arguments):
    """Runs ``code`` after imports in a process of its own; its assertions are the test's."""
    head = """
import os, random, resource, signal, sys, time
import torch
from effcv.errors import CheckpointError
from effcv.runtime.checkpoint import load, save
torch.set_num_threads(1)
def state(k):
    return {"a": torch.full((40_000,), float(k)), "b": torch.tensor(k), "c": torch.ones(k % 7)}
def known(checkpoint):
    k = checkpoint.metadata["k"]
    assert all(torch.equal(checkpoint.tensors[n], t) for n, t in state(k).items())
    return k
folder = sys.argv[1]
path = f"{folder}/net.safetensors"
"""
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_fifty_random_instants_a_whole_known_state_is_there(tmp_path):
    out = in_child(
        """
rng = random.Random(0)
save(path, state(0), metadata={"k": 0})
last, advanced, in_the_middle = 0, 0, 0
for _ in range(50):
    child = os.fork()
    if not child:
        for k in range(last + 1, last + 10_000):
            save(path, state(k), metadata={"k": k})
        os._exit(1)
    time.sleep(rng.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found = known(load(path))
    assert found >= last
    advanced += found > last
    last = found
    left = [name for name in os.listdir(folder) if ".tmp" in name]
    in_the_middle += bool(left)
    for name in left:
        os.remove(f"{folder}/{name}")
print(advanced, in_the_middle)
""",
        tmp_path,
    )
    advanced, in_the_middle = map(int, out.split())
    assert advanced >= 10
    assert in_the_middle >= 10  # the kills did hit the writing


def test_on_a_full_disk_the_old_file_survives_and_nothing_is_left(tmp_path):
    in_child(
        """
save(path, state(1), metadata={"k": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(path, state(2), metadata={"k": 2})
except CheckpointError as error:
    assert str(error) == f"{path} could not be written: File too large", error
else:
    raise AssertionError("the limit was not felt")
assert known(load(path)) == 1
assert sorted(os.listdir(folder)) == ["net.json", "net.safetensors"], os.listdir(folder)
""",
        tmp_path,
    )


def test_in_a_read_only_folder_the_old_file_survives(tmp_path):
    in_child(
        """
import tempfile
save(path, state(1), metadata={"k": 1})
os.chmod(folder, 0o555)
os.chdir(folder)  # the folders above may be closed to the other user
if os.getuid() == 0:
    os.setuid(65534)  # root writes anywhere
try:
    save("net.safetensors", state(2), metadata={"k": 2})
except CheckpointError as error:
    assert str(error) == "net.safetensors could not be written: Permission denied", error
else:
    raise AssertionError("the folder was writable")
assert known(load("net.safetensors")) == 1
assert sorted(os.listdir(".")) == ["net.json", "net.safetensors"]
""",
        tmp_path,
    )
    tmp_path.chmod(0o755)


def test_in_a_folder_that_is_not_there_the_error_names_the_file(tmp_path):
    path = tmp_path / "no" / "net.safetensors"
    with pytest.raises(CheckpointError, match=r"no/net.safetensors could not be written: No such"):
        save(path, {"a": torch.ones(1)})
