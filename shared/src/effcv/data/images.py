"""The one place where image files are read and written.

`read` looks at the header, refuses what is larger than a cap, then decodes: it gives a defined
array or one `DataError`. PNG, JPEG, WebP, BMP, GIF, TIFF and PPM are known by content, whatever
the extension; an animation gives its first frame. The EXIF orientation is applied unless told
otherwise (a damaged note is ignored). Alpha, a transparent palette entry and a key colour are
composited over white. 16-bit samples are scaled to 8 with rounding (colour PPM always); other
depths above 8 bits, and the rarer kinds of TIFF, are refused. CMYK becomes RGB by Pillow's formula,
colour profiles are ignored.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from effcv.errors import ArgumentError, DataError, choose
from effcv.runtime.files import atomic_write

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
Channels = Literal["rgb", "gray", "rgba", "keep16"]
Source = str | os.PathLike[str] | bytes | BinaryIO
Pixels = npt.NDArray[Any]

_WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def read(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    channels: Channels = "rgb",
    upright: bool = True,
) -> Pixels:
    """Reads an image by the rules at the top of this module.

    Args:
        source: A path, the bytes of a file, or an open binary file.
        max_pixels: Largest width times height that is decoded.
        channels: ``"rgb"`` (H, W, 3) uint8; ``"gray"`` (H, W) uint8, ITU-R 601 luma; ``"rgba"``
            (H, W, 4) uint8; ``"keep16"`` (H, W, 3), uint16 where the file has 16 bits a sample.
        upright: Apply the EXIF orientation; False gives the pixels as they are stored, which is
            what label maps and boxes describe.

    Raises:
        DataError: The file is absent, too large, damaged, or not an image; the message names it.
        ArgumentError: ``channels`` or the type of ``source`` is unknown.
    """
    choose(channels, get_args(Channels), "channels")
    with _opened(source) as (stream, name):
        try:
            with _pillow_muted():
                return _as_channels(_decode(stream, max_pixels, upright=upright), channels)
        except DataError as error:
            raise DataError(f"{name} {error}") from None
        except Exception as error:  # decoders of hostile bytes raise nearly anything
            raise DataError(f"{name} is a damaged image: {brief(error)}") from error


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """Gives a seekable stream and the name that messages call it by."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), f"the image in memory ({len(source)} bytes)"
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if not os.path.isfile(name):  # a pipe or a device would block or never end
            raise DataError(f"{name} {'is not a file' if os.path.exists(name) else 'is absent'}")
        try:
            stream = open(name, "rb")  # noqa: SIM115 - closed below, errors of use are not ours
        except OSError as error:
            raise DataError(f"{name} cannot be opened: {brief(error)}") from None
        with stream:
            yield stream, name
    else:
        data = source.read() if hasattr(source, "read") else None
        if not isinstance(data, bytes):
            found = type(source).__name__
            raise ArgumentError(f"source is {found}, expected a path, bytes or a binary file")
        yield io.BytesIO(data), str(getattr(source, "name", "the open file"))


def _decode(stream: BinaryIO, max_pixels: int, *, upright: bool) -> Pixels:
    """Gives (H, W, 1, 3 or 4), uint8 or uint16."""
    image = _header(stream)
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise DataError(
            f"is {width}x{height}, expected 1 to {max_pixels:,} pixels (max_pixels raises the cap)"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    rawmode = str(image.tile[0].args) if image.tile else ""  # load() empties the list
    image.decodermaxblock = max(image.decodermaxblock, 8 * width)  # else quadratic in the width
    image.load()
    if image.format == "PNG":
        check_png(stream)
    pixels = _pixels(image, rawmode, stream)
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1)) if upright else 1
    except Exception:  # a damaged note must not lose the picture
        orientation = 1
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _header(stream: BinaryIO) -> ImageFile.ImageFile:
    """Opens by content; ``Image.open`` would put its own pixel cap, a global, before ours."""
    Image.init()
    prefix = stream.read(16)
    stream.seek(0)
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if prefix and accept is not None and accept(prefix) is True:
            return factory(stream, "")
    raise DataError(f"is {'not an image' if prefix else 'empty'}, expected {', '.join(FORMATS)}")


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuses what Pillow would read wrongly, and strips that do not cover the announced rows."""
    tags = image.tag_v2
    bits = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    formats = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
    colours = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)
    extra = tags.get(TiffImagePlugin.EXTRASAMPLES, (2,))
    plain = planes == 1 and colours in (1, 2) and extra == (2,)  # white is high, alpha is alpha
    if not bits <= {1, 2, 4, 8, 16} or formats != {1} or (16 in bits and not plain):
        raise DataError(
            f"is a TIFF with samples of {bits} bits, format {formats}, photometry {colours}, "
            f"layout {planes} {extra}, expected unsigned 8 bits or plain 16"
        )
    last_row = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if last_row < image.height:
        raise DataError(f"is a damaged TIFF: its strips end before its {image.height} rows")


def check_png(stream: BinaryIO) -> None:
    """Checks what decoders do not: each chunk's CRC, and that the data fill the announced rows.

    Raises:
        DataError: The file is not sound; the message has no name in it.
    """
    needed, inflater = 0, zlib.decompressobj()
    for kind, body in png_chunks(stream):
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
            needed = height * (width * depth * samples // 8 + (not interlaced))
        while kind == b"IDAT" and body and needed > 0:
            rows = inflater.decompress(body, 1 << 20)
            needed, body = needed - len(rows), inflater.unconsumed_tail
    if needed > 0:
        raise DataError(f"is a damaged PNG: its data end before its {height} rows")


def png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Gives kind and body of each chunk of a PNG, to the last; nothing is inflated.

    Raises:
        DataError: A chunk is cut, its CRC is not that of its bytes, or IHDR is not the first.
    """
    stream.seek(8)
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        body = stream.read(size)
        checked = zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(stream.read(4), "big")
        if len(kind) < 4 or not checked or (kind == b"IHDR") != (stream.tell() == 33):
            raise DataError(f"is a damaged PNG: its chunk {kind!r} is not sound")
        yield kind, body


def _pixels(image: ImageFile.ImageFile, rawmode: str, stream: BinaryIO) -> Pixels:
    if image.mode == "F":
        raise DataError("has samples in floating point, expected 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; wider ones only in TIFF, and refused there
        gray, key = np.asarray(image).astype(np.uint16)[..., None], image.info.get("transparency")
        alpha = [] if key is None else [np.where(gray == key, 0, 65_535).astype(np.uint16)]
        return np.concatenate([*[gray] * (3 if alpha else 1), *alpha], axis=2)
    if ";16" not in rawmode or image.mode not in ("RGB", "RGBA"):
        return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    import cv2  # Pillow has found the file sound but keeps the high bytes only

    stream.seek(0)
    deep = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        raise DataError(f"has 16-bit colour in a layout that is not supported ({rawmode})")
    return np.asarray(deep[..., [2, 1, 0, 3][: deep.shape[2]]])


def _as_channels(pixels: Pixels, channels: Channels) -> Pixels:
    if pixels.dtype == np.uint16 and channels != "keep16":
        scaled = pixels.astype(np.uint32) * np.uint32(255) + np.uint32(32_895)
        pixels = (scaled >> np.uint32(16)).astype(np.uint8)  # exactly round(value / 257)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if channels == "rgba":
        opaque = np.full_like(pixels[..., :1], 255)
        return pixels if pixels.shape[2] == 4 else np.concatenate([pixels, opaque], axis=2)
    if pixels.shape[2] == 4:  # over white, rounded; exact in uint32 for 16 bits too
        top = np.uint32(np.iinfo(pixels.dtype).max)
        alpha = pixels[..., 3:].astype(np.uint32)
        colour = pixels[..., :3] * alpha + top * (top - alpha)
        pixels = ((colour + top // np.uint32(2)) // top).astype(pixels.dtype)
    return np.array(Image.fromarray(pixels).convert("L")) if channels == "gray" else pixels


_lock, _readers, _saved_filters = threading.Lock(), [0], contextlib.ExitStack()


@contextlib.contextmanager
def _pillow_muted() -> Iterator[None]:
    """Mutes Pillow's warnings from the first reader's entry to the last one's exit.

    ``warnings.catch_warnings`` in each thread would leave its filter behind when threads overlap.
    """
    with _lock:
        _readers[0] += 1
        if _readers[0] == 1:
            _saved_filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    try:
        yield
    finally:
        with _lock:
            _readers[0] -= 1
            if _readers[0] == 0:
                _saved_filters.close()


def write(path: str | os.PathLike[str], image: Pixels, *, quality: int = 95) -> Path:
    """Writes an image; at every instant the file is the old one or the whole new one.

    Args:
        path: Ends in ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``; its folder exists.
        image: uint8, (H, W), (H, W, 3) or, except for JPEG, (H, W, 4).
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        ArgumentError: Unknown extension, or an image of another shape or type.
        DataError: The file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    kind = _WRITTEN[choose(path.suffix.lower(), _WRITTEN, "image extension")]
    image = np.asarray(image)
    shape = image.shape if image.ndim == 3 else (*image.shape, 3)
    if image.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (3, 4) or image.size == 0:
        raise ArgumentError(
            f"image is {image.dtype} {image.shape}, expected uint8 (H, W[, 3 or 4])"
        )
    if kind == "JPEG" and shape[2] == 4:
        raise ArgumentError(f"image has an alpha channel, which {path.name} cannot hold: use .png")
    try:
        with atomic_write(path) as temporary:
            Image.fromarray(image).save(temporary, kind, quality=quality)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {brief(error)}") from None
    return path


def brief(error: Exception) -> str:
    """Returns one line of an error, without the path that the sentence around it names."""
    text = str(getattr(error, "strerror", None) or error)
    return " ".join(text.split())[:200] or type(error).__name__
