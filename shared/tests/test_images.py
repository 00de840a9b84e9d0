"""Claims about `effcv.data.images`; the judges are arrays composed in numpy, OpenCV and Pillow."""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from effcv.data import images
from effcv.errors import ArgumentError, DataError

spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parent / "hostile.py")
hostile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hostile)
CORPUS = hostile.corpus()
NOISE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
PHOTO = cv2.GaussianBlur(NOISE, (0, 0), 3)
ROTATED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"


def child(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_corpus_holds_at_least_forty_odd_and_forty_refused_files():
    refused = sum(expected is None for _, expected in CORPUS.values())
    assert refused >= 40
    assert len(CORPUS) - refused >= 40


@pytest.mark.parametrize("name", CORPUS)
def test_each_file_gives_its_array_or_one_sentence_that_names_it(name, tmp_path):
    data, expected = CORPUS[name]
    path = tmp_path / name
    path.write_bytes(data)
    if expected is None:
        with pytest.raises(DataError) as caught:
            images.read(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
    else:
        found = images.read(path)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert found.flags.writeable
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [n for n, (_, e) in CORPUS.items() if e is not None])
def test_path_bytes_and_open_file_give_the_same(name, tmp_path):
    data, _ = CORPUS[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as stream:
        from_file = images.read(stream)
    np.testing.assert_array_equal(from_file, images.read(data))
    np.testing.assert_array_equal(from_file, images.read(str(path)))


def test_a_bomb_is_refused_within_50_ms_and_20_mb(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(hostile.bomb(20_000))
    assert path.stat().st_size < 60_000  # as RGB it would take 1.2 GB
    seconds, megabytes = map(float, child(
        """
        import resource, sys, time
        from effcv.data import images
        from effcv.errors import DataError
        try: images.read(b"")   # whatever is imported at first use
        except DataError: pass
        before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        for _ in range(5):
            start = time.perf_counter()
            try: images.read(sys.argv[1])
            except DataError as error: assert "20000x20000" in str(error), error
            else: raise SystemExit("it was decoded")
            times.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(min(times), (after - before) / 1024)
        """, path).split())  # fmt: skip
    assert seconds < 0.05
    assert megabytes < 20


def test_the_cap_is_an_argument_and_pillows_own_limits_do_not_matter(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would refuse at 20
    data = hostile.png(PHOTO, colour=2)
    np.testing.assert_array_equal(images.read(data, max_pixels=48 * 64), PHOTO)
    with pytest.raises(DataError, match="64x48, expected 1 to 3,071 pixels"):
        images.read(data, max_pixels=48 * 64 - 1)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "quality": 60}),
        (
            "JPEG",
            {"subsampling": 0, "exif": ROTATED},
        ),
        ("WEBP", {"quality": 70}),
    ],
)
def test_lossy_formats_agree_with_opencv(kind, options):
    data = hostile.saved(PHOTO, kind, **options)
    judge = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    found = images.read(data)
    assert found.shape == judge.shape
    assert np.abs(found.astype(int) - judge).max() <= 2  # two builds of the same codec


def test_cmyk_and_gray_jpeg_agree_with_pillow():
    stream = io.BytesIO()
    Image.fromarray(PHOTO).convert("CMYK").save(stream, "JPEG")
    judge = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(images.read(stream.getvalue()), judge)
    gray = hostile.saved(PHOTO[..., 0], "JPEG")
    judge = np.asarray(Image.open(io.BytesIO(gray)))
    np.testing.assert_array_equal(images.read(gray), hostile.three(judge))


def test_other_channels_on_request():
    rgba = hostile.png(hostile.RGBA, colour=6)
    np.testing.assert_array_equal(images.read(rgba, channels="rgba"), hostile.RGBA)
    rgb = hostile.png(hostile.RGB, colour=2)
    opaque = images.read(rgb, channels="rgba")
    np.testing.assert_array_equal(opaque[..., :3], hostile.RGB)
    assert (opaque[..., 3] == 255).all()
    gray = hostile.png(hostile.GRAY, colour=0)
    np.testing.assert_array_equal(images.read(gray, channels="gray"), hostile.GRAY)
    luma = hostile.RGB @ [0.299, 0.587, 0.114]
    assert np.abs(images.read(rgb, channels="gray") - luma).max() <= 0.5 + 1e-2
    with pytest.raises(ArgumentError, match="did you mean 'gray'"):
        images.read(rgb, channels="grey")


def test_sixteen_bits_are_kept_on_request_and_only_where_they_are():
    deep = hostile.png(hostile.DEEP_RGB, colour=2, depth=16)
    np.testing.assert_array_equal(images.read(deep, channels="keep16"), hostile.DEEP_RGB)
    gray = hostile.png(hostile.DEEP_GRAY, colour=0, depth=16)
    kept = images.read(gray, channels="keep16")
    np.testing.assert_array_equal(kept, hostile.three(hostile.DEEP_GRAY))
    encoded, tiff = cv2.imencode(".tiff", hostile.DEEP_RGB[..., ::-1])
    assert encoded
    np.testing.assert_array_equal(images.read(tiff.tobytes(), channels="keep16"), hostile.DEEP_RGB)
    assert images.read(hostile.png(PHOTO, colour=2), channels="keep16").dtype == np.uint8


DEEP = np.random.default_rng(5).integers(0, 65536, (20, 33, 4)).astype(np.uint16)


@pytest.mark.parametrize("layout", ["plain", "big end first", "tiled", "planes", "white is zero"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["gray", "rgb", "alpha", "premultiplied"])
def test_a_tiff_is_read_as_tifffile_reads_it_or_refused(kind, depth, layout):
    import tifffile

    pixels = DEEP if depth == 16 else DEEP.astype(np.uint8)
    pixels = {"gray": pixels[..., 0], "rgb": pixels[..., :3]}.get(kind, pixels)
    options = {"photometric": "minisblack" if kind == "gray" else "rgb"}
    if pixels.shape[-1] == 4:
        options["extrasamples"] = ["unassalpha" if kind == "alpha" else "assocalpha"]
        if kind == "premultiplied":  # as it must be: no colour above its alpha
            pixels = np.minimum(pixels, pixels[..., 3:])
    stored = pixels
    if layout == "big end first":
        options["byteorder"] = ">"
    elif layout == "tiled":
        options["tile"] = (16, 16)
    elif layout == "planes" and kind != "gray":
        options["planarconfig"], stored = "separate", np.moveaxis(pixels, -1, 0)
    elif layout == "white is zero" and kind == "gray":
        options["photometric"], stored = "miniswhite", np.iinfo(pixels.dtype).max - pixels
    stream = io.BytesIO()
    tifffile.imwrite(stream, stored, **options)
    data = stream.getvalue()
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), stored)
    try:
        found = images.read(data, channels="keep16" if kind in ("gray", "rgb") else "rgba")
    except DataError:
        rare = layout in ("planes", "white is zero") or kind == "premultiplied"
        assert rare if depth == 16 else (kind, layout) == ("premultiplied", "planes")
        return
    expected = hostile.three(pixels) if kind == "gray" else pixels
    if depth == 16 and kind == "alpha":
        expected = hostile.eight(pixels)
    if kind == "premultiplied":
        alpha = np.maximum(pixels[..., 3:].astype(float), 1)
        expected = np.concatenate([pixels[..., :3] * 255.0 / alpha, pixels[..., 3:]], axis=2)
        assert np.abs(found - expected).max() <= 1
    else:
        np.testing.assert_array_equal(found, expected)


@settings(deadline=None)  # a slow disk is not a defect
@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(4))))
def test_sixteen_bit_alpha_is_composited_as_real_numbers_would_be(rgba):
    found = images.read(hostile.png(rgba, colour=6, depth=16), channels="keep16")
    alpha = rgba[..., 3:] / 65535
    ideal = rgba[..., :3] * alpha + 65535 * (1 - alpha)
    assert np.abs(found - ideal).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "loop", "nul"])
def test_what_is_not_a_file_is_named_and_never_waited_for(kind, tmp_path):
    path = tmp_path / "thing.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "nul":
        path = f"{path}\0.png"
    with pytest.raises(DataError, match=r"is not a file|is absent"):
        images.read(path)


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(hostile.png(PHOTO, colour=2))
    path.chmod(0)
    tmp_path.chmod(0o755)
    out = child(
        """
        import os, sys
        from effcv.data import images
        from effcv.errors import DataError
        if os.getuid() == 0: os.setgid(65534), os.setuid(65534)  # root may read anything
        os.stat(sys.argv[1])
        try: images.read(sys.argv[1])
        except DataError as error: print(error)
        """, _open_to_all(path))  # fmt: skip
    assert out.strip() == f"{path} cannot be opened: Permission denied"


def _open_to_all(path):
    """Lets another user walk to ``path``; pytest's folders are private."""
    for folder in path.parents:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    return path


@pytest.mark.parametrize("wrong", [3, None, [1, 2], np.zeros((2, 2)), io.StringIO("x")])
def test_a_source_of_another_type_is_an_argument_error(wrong):
    with pytest.raises(ArgumentError, match="expected a path, bytes or a binary file"):
        images.read(wrong)


def valid_files():
    noise = np.random.default_rng(1).integers(0, 256, (24, 31, 3), np.uint8)
    lossy = {
        "jpeg": hostile.saved(noise, "JPEG"),
        "progressive": hostile.saved(noise, "JPEG", progressive=True),
        "webp": hostile.saved(noise, "WEBP"),
        "gif": hostile.saved(noise[..., 0], "GIF"),
        "lzw": hostile.saved(noise, "TIFF", compression="tiff_lzw"),
        "deflate": hostile.saved(noise, "TIFF", compression="tiff_adobe_deflate"),
    }
    return lossy | {n: d for n, (d, e) in CORPUS.items() if e is not None and len(d) < 5000}


@pytest.mark.parametrize("name", valid_files())
def test_no_flipped_or_cut_file_escapes_the_error_tree(name):
    data = valid_files()[name]
    rng = np.random.default_rng(len(data))
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)
        for at in rng.integers(0, len(damaged), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        # A small cap, so that what a flipped header claims does not make the test slow.
        with contextlib.suppress(DataError):
            found = images.read(bytes(damaged), max_pixels=1_000_000)
            assert found.dtype == np.uint8
            assert found.shape[2] == 3


@settings(deadline=None)  # a slow disk is not a defect
@given(st.data())
def test_a_png_that_is_read_after_damage_is_read_right(data):
    whole = bytearray(hostile.png(hostile.RGB, colour=2))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        found = images.read(bytes(whole))
    except DataError:
        return
    np.testing.assert_array_equal(found, hostile.RGB)


def test_a_wide_picture_takes_time_in_proportion_to_its_size():
    wide = hostile.saved(np.zeros((1, 60_000_000), np.uint8), "TIFF")
    tall = hostile.saved(np.zeros((60_000, 1_000), np.uint8), "TIFF")

    def seconds(data):
        start = time.perf_counter()
        images.read(data)
        return time.perf_counter() - start

    assert seconds(wide) < 4 * seconds(tall)


def test_warnings_neither_leak_nor_stay_muted_after_eight_threads():
    noisy = [*hostile.warned_about(), hostile.saved(hostile.RGB, "TIFF")[:-30]]
    before = list(warnings.filters)

    def work():
        for _ in range(40):
            for data in noisy:
                try:
                    images.read(data)
                except DataError:
                    continue

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert caught == []
        Image.MAX_IMAGE_PIXELS, kept = 10, Image.MAX_IMAGE_PIXELS
        try:
            Image.open(io.BytesIO(hostile.png(hostile.RGB[:3, :5], colour=2)))
        finally:
            Image.MAX_IMAGE_PIXELS = kept
        assert [w.category for w in caught] == [Image.DecompressionBombWarning]
    assert warnings.filters == before


@settings(deadline=None)  # a slow disk is not a defect
@given(
    hnp.arrays(
        np.uint8,
        st.one_of(
            st.tuples(st.integers(1, 9), st.integers(1, 9)),
            st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 4])),
        ),
    )
)
def test_png_comes_back_as_it_was_written(tmp_path_factory, pixels):
    path = images.write(tmp_path_factory.mktemp("w") / "a.png", pixels)
    channels = {2: "gray"}.get(pixels.ndim, "rgba" if pixels.shape[-1] == 4 else "rgb")
    np.testing.assert_array_equal(images.read(path, channels=channels), pixels)


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "webp", "png"])
def test_what_is_written_is_what_opencv_reads(extension, tmp_path):
    path = images.write(tmp_path / f"a.{extension}", PHOTO)
    judge = cv2.imread(str(path))[..., ::-1]
    assert np.abs(judge.astype(int) - PHOTO).max() <= (0 if extension == "png" else 12)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert list(tmp_path.iterdir()) == [path]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("name", "image", "match"),
    [
        ("a.bmpp", PHOTO, "unknown image extension"),
        ("a", PHOTO, "unknown image extension"),
        ("a.png", PHOTO.astype(np.float32), "float32"),
        ("a.png", PHOTO[None], r"\(1, 48, 64, 3\)"),
        ("a.png", PHOTO[..., :2], r"\(48, 64, 2\)"),
        ("a.png", PHOTO[:0], r"\(0, 64, 3\)"),
        ("a.jpg", hostile.RGBA, "alpha channel"),
        ("a.png", "text", "image is"),
    ],
)
def test_wrong_arguments_of_write_are_named(name, image, match, tmp_path):
    with pytest.raises(ArgumentError, match=match):
        images.write(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["no/such/a.png", "taken.png", "too_wide.webp"])
def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(where, tmp_path):
    (tmp_path / "taken.png").mkdir()
    image = np.zeros((1, 20_000), np.uint8) if where == "too_wide.webp" else PHOTO
    with pytest.raises(DataError, match="cannot be written"):
        images.write(tmp_path / where, image)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = images.write(tmp_path / "a.png", PHOTO)
    old = path.read_bytes()
    out = child(
        """
        import resource, signal, sys
        import numpy as np
        from effcv.data import images
        from effcv.errors import DataError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
        try: images.write(sys.argv[1], noise)
        except DataError as error: print(error)
        """, path, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
    assert "cannot be written: File too large" in out
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_beside_a_writer_never_sees_half_a_file(tmp_path):
    path = images.write(tmp_path / "a.png", PHOTO)
    other = 255 - PHOTO
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            images.write(path, other)
            images.write(path, PHOTO)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(150):
            found = images.read(path)
            assert (found == PHOTO).all() or (found == other).all()
    finally:
        stop.set()
        writer.join()


def test_the_reader_needs_no_torch():
    code = "import sys, effcv.data.images; print('torch' in sys.modules, 'cv2' in sys.modules)"
    assert child(code).split() == ["False", "False"]
