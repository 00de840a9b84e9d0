"""Odd and hostile image files, made on the spot: `corpus` gives each with what a reader owes it.

An expected array was composed here in numpy and encoded losslessly, so it owes nothing to the
reader under test; ``None`` means that the file must be refused.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP_GRAY = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
DEEP_RGBA = RNG.integers(0, 65536, (5, 7, 4), dtype=np.uint16)


def three(gray):
    return np.repeat(gray[..., None], 3, axis=2)


def over_white(rgba):
    """Composites in floating point, the textbook's way."""
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def eight(deep):
    return np.rint(deep / 257).astype(np.uint8)


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(pixels, *, colour, depth=8, before=b"", size=None, end=True, idat=None, crc=None):
    """Writes a PNG chunk by chunk, so that every field can lie."""
    height, width = size or pixels.shape[:2]
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    if idat is None:
        rows = pixels.astype(">u2") if depth == 16 else pixels
        idat = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    body = chunk(b"IHDR", ihdr) + before + chunk(b"IDAT", idat, crc)
    return b"\x89PNG\r\n\x1a\n" + body + (chunk(b"IEND", b"") if end else b"")


def bomb(side=20_000):
    """A PNG of side x side black pixels in a few dozen kilobytes."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    return png(None, colour=0, depth=1, size=(side, side), idat=data)


def saved(pixels, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(RGB, "PNG", exif=exif)


def upright(orientation):
    """What the EXIF standard says of each value, in the words of its table."""
    return {
        1: RGB,
        2: np.fliplr(RGB),
        3: np.rot90(RGB, 2),
        4: np.flipud(RGB),
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }.get(orientation, RGB)


def frames(kind, **options):
    images = [Image.fromarray(f) for f in (RGB, 255 - RGB, RGB // 2)]
    stream = io.BytesIO()
    images[0].save(stream, kind, save_all=True, append_images=images[1:], duration=50, **options)
    return stream.getvalue()


def tiff(entries, data=b"", *, next_ifd=0):
    """A little-endian TIFF with one directory at byte 8, its data right behind it."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + rows + struct.pack("<I", next_ifd) + data


def gray_tiff(width, height, data, *, offset=None, next_ifd=0, **changed):
    """One strip of gray; ``changed`` are tags by name."""
    at = 8 + 2 + 12 * 9 + 4 if offset is None else offset
    tags = {"bits": 8, "photometric": 1, "rows": height, "sample_format": 1} | changed
    fields = ((256, width), (257, height), (258, tags["bits"]), (259, 1))
    fields = (*fields, (262, tags["photometric"]), (273, at), (278, tags["rows"]))
    entries = [(tag, 4, 1, value) for tag, value in (*fields, (279, len(data)))]
    return tiff([*entries, (339, 4, 1, tags["sample_format"])], data, next_ifd=next_ifd)


def palette_png(alphas=b""):
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    index = RNG.integers(0, 4, (5, 7), dtype=np.uint8)
    before = chunk(b"PLTE", colours.tobytes()) + (chunk(b"tRNS", alphas) if alphas else b"")
    opacity = np.full(4, 255, np.uint8)
    opacity[: len(alphas)] = list(alphas)
    rgba = np.concatenate([colours, opacity[:, None]], axis=1)[index]
    return png(index, colour=3, before=before), over_white(rgba)


def key_colour_png():
    key = RGB[2, 3]
    hit = (key == RGB).all(axis=2)
    before = chunk(b"tRNS", key.astype(">u2").tobytes())
    return png(RGB, colour=2, before=before), np.where(hit[..., None], 255, RGB).astype(np.uint8)


def gif_frame(width, height):
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    place = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    return head, place + b"\x02\x02\x44\x01\x00"


def animation_of(count):
    head, frame = gif_frame(1, 1)
    return head + frame * count + b";"


def odd():
    """Valid files that a careless reader gets wrong: {name: (bytes, expected (H, W, 3))}."""
    bits = RNG.integers(0, 2, (5, 8), dtype=np.uint8)
    packed = np.packbits(bits, axis=1)
    gray_alpha = RGBA[..., [0, 0, 0, 3]]
    index, opaque = palette_png()
    clear_index, clear = palette_png(b"\x00\x80")
    keyed, keyed_pixels = key_colour_png()
    thin = np.arange(65_000, dtype=np.uint16).astype(np.uint8)[None]
    deep_key = struct.pack(">H", DEEP_GRAY[2, 3])
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile at all"))
    cases = {
        "one_pixel.png": (png(RGB[:1, :1], colour=2), RGB[:1, :1]),
        "gray.png": (png(GRAY, colour=0), three(GRAY)),
        "gray_1bit.png": (png(packed, colour=0, depth=1, size=(5, 8)), three(bits * 255)),
        "gray_16bit.png": (png(DEEP_GRAY, colour=0, depth=16), three(eight(DEEP_GRAY))),
        "rgb_16bit.png": (png(DEEP_RGB, colour=2, depth=16), eight(DEEP_RGB)),
        "rgba_16bit.png": (png(DEEP_RGBA, colour=6, depth=16), over_white(eight(DEEP_RGBA))),
        "gray_alpha_16bit.png": (
            png(DEEP_RGBA[..., [0, 3]], colour=4, depth=16),
            over_white(eight(DEEP_RGBA[..., [0, 0, 0, 3]])),
        ),
        "gray_16bit_key.png": (
            png(DEEP_GRAY, colour=0, depth=16, before=chunk(b"tRNS", deep_key)),
            three(np.where(DEEP_GRAY[2, 3] == DEEP_GRAY, 255, eight(DEEP_GRAY))),
        ),
        "gray_alpha.png": (png(RGBA[..., [0, 3]], colour=4), over_white(gray_alpha)),
        "rgba.png": (png(RGBA, colour=6), over_white(RGBA)),
        "palette.png": (index, opaque),
        "palette_transparent.png": (clear_index, clear),
        "key_colour.png": (keyed, keyed_pixels),
        "png_called.jpg": (png(RGB, colour=2), RGB),
        "no_extension": (png(RGB, colour=2), RGB),
        "trailing_bytes.png": (png(RGB, colour=2) + b"PK\3\4 and more", RGB),
        "broken_profile.png": (png(RGB, colour=2, before=profile), RGB),
        "text.png": (png(RGB, colour=2, before=chunk(b"tEXt", b"a\0" + b"b" * 900)), RGB),
        "thin.png": (png(thin, colour=0), three(thin)),
        "animated.png": (frames("PNG"), RGB),
        "animated.webp": (frames("WEBP", lossless=True), RGB),
        "lossless.webp": (saved(RGB, "WEBP", lossless=True), RGB),
        "alpha.webp": (saved(RGBA, "WEBP", lossless=True, exact=True), over_white(RGBA)),
        "gray.gif": (saved(GRAY, "GIF"), three(GRAY)),
        "many_frames.gif": (animation_of(50_000), np.zeros((1, 1, 3), np.uint8)),
        "rgb.bmp": (saved(RGB, "BMP"), RGB),
        "rgb.tiff": (saved(RGB, "TIFF", compression="tiff_lzw"), RGB),
        "pages.tiff": (frames("TIFF"), RGB),
        "fax.tiff": (saved(bits > 0, "TIFF", compression="group4"), three(bits * 255)),
        "gray_16bit.tiff": (saved(DEEP_GRAY, "TIFF"), three(eight(DEEP_GRAY))),
        "own_successor.tiff": (gray_tiff(7, 5, GRAY.tobytes(), next_ifd=8), three(GRAY)),
        "rgb.ppm": (b"P6\n# note\n7 5\n255\n" + RGB.tobytes(), RGB),
        "plain.ppm": (b"P3 7 5 255\n" + b" ".join(b"%d" % v for v in RGB.ravel()), RGB),
        "bits.pbm": (b"P4 8 5\n" + (~packed).tobytes(), three(bits * 255)),
        "gray_16bit.pgm": (
            b"P5 7 5 65535\n" + DEEP_GRAY.astype(">u2").tobytes(),
            three(eight(DEEP_GRAY)),
        ),
    }
    for value in (*range(1, 9), 0, 99):
        cases[f"orientation_{value}.png"] = (oriented(value), upright(value))
    notes = {
        "broken_exif.png": b"II*\0\xff\xff\xff\xff",
        "orientation_in_words.png": b"II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\0up\0\0\0\0\0\0",
    }
    for name, note in notes.items():
        cases[name] = (png(RGB, colour=2, before=chunk(b"eXIf", note)), RGB)
    return cases


def refused():
    """Files that must end in an error: {name: bytes}."""
    whole = png(RGB, colour=2)
    big = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg, webp, gif = saved(big, "JPEG"), saved(big, "WEBP"), saved(big[..., 0], "GIF")
    sof = jpeg.index(b"\xff\xc0") + 5  # height and width, two bytes each
    bmp = saved(RGB, "BMP")
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 9))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 9))
    lossless = saved(RGB, "WEBP", lossless=True)
    return {
        "empty.png": b"",
        "one_byte.png": b"\x89",
        "words.png": b"this is not an image, it only says so",
        "page.jpg": b"<!doctype html><title>404</title>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "archive.png": b"PK\3\4" + bytes(60),
        "pickle.png": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "icon.png": b"\0\0\1\0\1\0" + bytes(40),
        "zeros.png": bytes(4096),
        "signature_only.png": whole[:8],
        "half.png": png(big, colour=2)[:6000],
        "no_pixels.png": png(RGB, colour=2, size=(0, 7)),
        "no_data.png": png(RGB, colour=2, idat=b""),
        "data_not_deflate.png": png(RGB, colour=2, idat=b"nonsense" * 9),
        "data_crc.png": png(RGB, colour=2, crc=1),
        "header_crc.png": whole[:29] + b"\0\0\0\0" + whole[33:],
        "depth_7.png": png(RGB, colour=2, depth=7),
        "colour_type_5.png": png(RGB, colour=5),
        "taller_than_its_data.png": png(RGB, colour=2, size=(500, 7)),
        "bomb.png": bomb(9_000),
        "bomb_header.png": png(RGB, colour=2, size=(2**31 - 1, 2**31 - 1)),
        "endless_chunk.png": whole[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(99),
        "text_bomb.png": png(RGB, colour=2, before=text),
        "profile_bomb.png": png(RGB, colour=2, before=profile),
        "half.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:sof],
        "bomb.jpg": jpeg[:sof] + struct.pack(">HH", 65_500, 65_500) + jpeg[sof + 4 :],
        "no_height.jpg": jpeg[:sof] + struct.pack(">HH", 0, 64) + jpeg[sof + 4 :],
        "half.gif": gif[: len(gif) // 2],
        "no_frame.gif": gif_frame(9, 9)[0] + b";",
        "bomb.gif": gif_frame(65_535, 65_535)[0] + gif_frame(1, 1)[1] + b";",
        "half.webp": webp[: len(webp) // 2],
        "bomb.webp": lossless[:21] + b"\xff\xff\xff\x0f" + lossless[25:],
        "half.bmp": saved(big, "BMP")[:700],
        "bomb.bmp": bmp[:18] + struct.pack("<ii", 2**30, 2**30) + bmp[26:],
        "negative.bmp": bmp[:18] + struct.pack("<ii", -7, 5) + bmp[26:],
        "bomb.tiff": gray_tiff(2**31 - 1, 2**31 - 1, GRAY.tobytes()),
        "taller_than_its_strips.tiff": gray_tiff(7, 8_000_000, GRAY.tobytes(), rows=5),
        "beyond_end.tiff": gray_tiff(7, 5, GRAY.tobytes(), offset=10**6),
        "no_directory.tiff": b"II*\0" + struct.pack("<I", 10**6),
        "no_tags.tiff": tiff([]),
        "float.tiff": gray_tiff(2, 2, bytes(16), bits=32, sample_format=3),
        "int32.tiff": gray_tiff(2, 2, bytes(16), bits=32),
        "signed.tiff": gray_tiff(2, 2, bytes(4), sample_format=2),
        "white_is_zero_16bit.tiff": gray_tiff(2, 2, bytes(8), bits=16, photometric=0),
        "half.ppm": b"P6 7 5 255\n" + RGB.tobytes()[:50],
        "bomb.ppm": b"P6 1000000 1000000 255\n" + bytes(99),
        "wide_header.ppm": b"P6 " + b"9" * 5000 + b" 5 255\n",
        "maximum_0.ppm": b"P5 7 5 0\n" + GRAY.tobytes(),
        "float.pfm": b"Pf\n2 2\n-1.0\n" + bytes(16),
    }


def warned_about():
    """Valid files at which Pillow warns: an animation of no frames, a tag with too many values."""
    actl = chunk(b"acTL", struct.pack(">II", 0, 0))
    many = gray_tiff(7, 5, GRAY.tobytes()).replace(
        struct.pack("<HHI", 259, 4, 1), struct.pack("<HHI", 259, 3, 2)
    )
    return [png(RGB, colour=2, before=actl), many]


def corpus():
    """All cases: {name: (bytes, expected (H, W, 3) uint8 or None where it must be refused)}."""
    return odd() | {name: (data, None) for name, data in refused().items()}
