"""Pictures in the graph of `serving_bytes`: as Pillow has them, or refused."""

import dataclasses
import io
import os
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnext.preprocessing import eval_transform

if keras.backend.backend() != "tensorflow":
    pytest.skip("the graph is TensorFlow's", allow_module_level=True)
import tensorflow as tf

from keras_resnext.export import decoding, formats, serving

WIDTH, HEIGHT = 60, 40
ROW = dataclasses.replace(
    eval_transform("resnext50_32x4d/imagenet1k_v2").checkpoint,
    resize=36,
    crop=32,
)
TRANSFORM = eval_transform(ROW)
# All of the picture, on black, and by the other filter.
WHOLE = dataclasses.replace(ROW, crop=60, interpolation="bicubic")
PICTURE = Image.open(formats.PICTURES[1]).resize((WIDTH, HEIGHT))
GREY = PICTURE.convert("L")
PIXELS = np.asarray(PICTURE)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bmp(bits, pixels, compression=0, header=40, masks=(), down=False):
    """A BMP of rows of bytes, the last row first unless `down`."""
    rows = [row.tobytes() for row in (pixels if down else pixels[::-1])]
    data = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    height = -HEIGHT if down else HEIGHT
    info = struct.pack("<IiiHHI", header, WIDTH, height, 1, bits, compression)
    extra = struct.pack(f"<{len(masks)}I", *masks)
    info = (info + bytes(20) + extra).ljust(header, b"\0")
    place = 14 + len(info)
    size = struct.pack("<IHHI", place + len(data), 0, 0, place)
    return b"BM" + size + info + data


def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(width, height, depth, colour, rows, extra=b"", interlace=0):
    """A PNG of rows of bytes, none of them filtered."""
    header = struct.pack(
        ">IIBBBBB", width, height, depth, colour, 0, 0, interlace
    )
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def with_canvas(gif, width, height):
    return gif[:6] + struct.pack("<HH", width, height) + gif[10:]


def with_adobe(jpeg, keep=True, transform=0):
    """A JPEG of Pillow with another colour transform, or without its mark."""
    place = jpeg.index(b"\xff\xee")
    end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    mark = jpeg[place : end - 1] + bytes([transform])
    return jpeg[:place] + (mark if keep else b"") + jpeg[end:]


def good():
    blue = PIXELS[..., ::-1]
    alpha = np.full((HEIGHT, WIDTH, 1), 77, "uint8")
    four = np.concatenate([blue, alpha], -1)
    usual = (0xFF0000, 0xFF00, 0xFF)
    wide = (PIXELS.astype(">u2") << 8) + np.arange(3, dtype=">u2")
    wide_rows = wide.view("uint8").reshape(HEIGHT, -1)
    palette = PICTURE.convert("P")
    usual_colour = int(np.bincount(np.ravel(palette)).argmax())
    frames = [PICTURE.transpose(0), GREY.convert("RGB")]
    cmyk = encoded(PICTURE.convert("CMYK"), "JPEG")
    return {
        "BMP of a palette": encoded(palette, "BMP"),
        "BMP of a short palette": encoded(PICTURE.quantize(20), "BMP"),
        "BMP, grey": encoded(GREY, "BMP"),
        "BMP, from top to bottom": bmp(24, blue, down=True),
        "BMP of 32 bits": bmp(32, four),
        "BMP of 32 bits with the usual masks": bmp(32, four, 3, 40, usual),
        "BMP with a long header": bmp(32, four, 3, 124, usual),
        "GIF": encoded(PICTURE, "GIF"),
        "GIF, interlaced": encoded(palette, "GIF", interlace=1),
        "GIF with a comment": encoded(PICTURE, "GIF", comment=b"." * 999),
        "GIF, transparent": encoded(palette, "GIF", transparency=usual_colour),
        **{
            f"GIF of frames, disposal {disposal}": encoded(
                PICTURE,
                "GIF",
                save_all=True,
                append_images=frames,
                disposal=disposal,
                transparency=3,
            )
            for disposal in range(4)
        },
        "PNG of one bit": encoded(PICTURE.convert("1"), "PNG"),
        "PNG of a palette of 4 bits": encoded(
            PICTURE.quantize(16), "PNG", bits=4
        ),
        "PNG of a transparent palette": encoded(
            palette, "PNG", transparency=bytes(range(256))
        ),
        "PNG, transparent": encoded(PICTURE.convert("LA"), "PNG"),
        "PNG of 16 bits": png(WIDTH, HEIGHT, 16, 2, wide_rows),
        "PNG, grey of 16 bits": png(
            WIDTH, HEIGHT, 16, 0, wide_rows.reshape(HEIGHT, WIDTH, 6)[..., :2]
        ),
        "PNG with gamma": png(
            WIDTH,
            HEIGHT,
            8,
            2,
            PIXELS.reshape(HEIGHT, -1),
            extra=chunk(b"gAMA", struct.pack(">I", 100000)),
        ),
        "PNG, animated": encoded(
            PICTURE, "PNG", save_all=True, append_images=frames
        ),
        "JPEG, grey": encoded(GREY, "JPEG"),
        "JPEG, progressive": encoded(PICTURE, "JPEG", progressive=True),
        "JPEG of RGB": encoded(PICTURE, "JPEG", keep_rgb=True),
        "JPEG of four inks": cmyk,
        "JPEG of YCCK": with_adobe(cmyk, transform=2),
        "narrow": encoded(PICTURE.resize((1, 100)), "PNG"),
    }


def bad():
    gif = encoded(PICTURE, "GIF")
    broken = bytearray(gif)
    broken[-200:-100] = b"\xff" * 100  # in the middle of the frame
    jpeg = encoded(PICTURE, "JPEG")
    precise = jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    masks = (0xFF, 0xFF00, 0xFF0000)
    four = np.zeros((HEIGHT, WIDTH, 4), "uint8")
    nothing = np.zeros((HEIGHT, 0), "uint8")
    return {
        "nothing": b"",
        **{f"{m!r} alone": m for m in (b"B", b"BM", b"\xff\xd8\xff", b"GIF8")},
        "BMP of one bit": encoded(PICTURE.convert("1"), "BMP"),
        "BMP of 16 bits": bmp(16, four[..., :2]),
        "BMP with other masks": bmp(32, four, 3, 124, masks),
        "BMP of runs": bmp(8, nothing, 1),
        "BMP without pixels": bmp(24, nothing),
        "GIF with a smaller frame": with_canvas(gif, 80, 80),
        "GIF of a canvas of 4 GB": with_canvas(gif, 65535, 65535),
        "GIF, cut off": gif[:-300],
        "GIF, broken": bytes(broken),
        "PNG, cut off": encoded(PICTURE, "PNG")[:-300],
        "PNG of 400 million pixels": png(20000, 20000, 8, 0, []),
        "PNG of 2**62 pixels": png(2**31 - 1, 2**31 - 1, 8, 0, []),
        "PNG that is too narrow": png(1, 101, 8, 0, [b"7"] * 101),
        "JPEG, cut off": jpeg[:-300],
        "JPEG of 12 bits": precise,
        "JPEG of four inks of nobody": with_adobe(
            encoded(PICTURE.convert("CMYK"), "JPEG"), keep=False
        ),
        **{f: encoded(PICTURE, f) for f in ("TIFF", "WEBP", "PPM")},
    }


GOOD, BAD = good(), bad()


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def in_graph(data):
    return serving.transform(data, ROW)


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def whole_in_graph(data):
    return serving.transform(data, WHOLE)


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_accepted_is_pillows(kind):
    for run, row in (in_graph, ROW), (whole_in_graph, WHOLE):
        gap = np.abs(run(GOOD[kind]) - eval_transform(row)(GOOD[kind]))
        assert (gap * 255 * np.array(row.std)).max() < 2.01


@pytest.mark.parametrize("kind", BAD)
def test_all_else_is_refused(kind):
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(BAD[kind])


def test_frames_after_the_first_are_not_read():
    frames = [PICTURE.transpose(0)] * 3
    data = encoded(PICTURE, "GIF", save_all=True, append_images=frames)
    alone = encoded(PICTURE, "GIF")
    cut = data[: len(alone) + 200]  # ends in the second frame
    assert np.array_equal(in_graph(cut), in_graph(alone))


def test_a_million_blocks_take_no_time_each():
    """One step for each would take minutes."""
    gif = encoded(PICTURE, "GIF")
    place = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    data = gif[:place] + b"!\xfe\1.\0" * 200_000 + gif[place:]
    assert np.array_equal(in_graph(data), in_graph(gif))


@pytest.mark.parametrize("form", ["GIF", "JPEG"])
def test_what_follows_a_picture_is_not_looked_at(form, monkeypatch):
    """Of an upload of any length as much is read as its picture needs."""
    mode = {"GIF": "RGB", "JPEG": "CMYK"}[form]
    data = encoded(PICTURE.convert(mode), form)
    read, values = [], decoding._values

    def counting(text):
        result = values(text)
        tf.py_function(lambda n: read.append(int(n)), [tf.size(result)], [])
        return result

    monkeypatch.setattr(decoding, "_values", counting)
    function = tf.function(lambda x: serving.transform(x, ROW))
    found = function(tf.constant(data + bytes(5_000_000)))
    assert np.array_equal(found, in_graph(data))
    assert read and max(read) < 1_200_000


MEMORY = """
import resource, sys
import tensorflow as tf
from test_decoding import TRANSFORM, in_graph, png

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

run = {"graph": in_graph, "pillow": TRANSFORM}[sys.argv[1]]
run(png(30, 30, 1, 0, [bytes(4)] * 30))
before = peak()
for sides in ((20000, 20000), (1, 100000), (100000, 1)):
    try:
        run(png(*sides, 1, 0, [bytes(sides[0] // 8 + 1)] * sides[1]))
    except (ValueError, tf.errors.InvalidArgumentError):
        print(peak() - before)
run(png(4000, 4000, 1, 0, [bytes(500)] * 4000))
print((peak() - before) / 4000 / 4000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["graph", "pillow"])
def test_memory(way):
    """Refused before they are decoded; else a few bytes for each pixel."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, way],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    *refused, each = map(float, result.stdout.split())
    assert len(refused) == 3 and max(refused) < 200e6  # the files take some
    assert each < 8
