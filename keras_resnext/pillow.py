"""Decodes pictures: anybody's files, into RGB, within limits."""

import contextlib
import io
import os
import threading

import numpy as np
import PIL
from PIL import Image

# Of a picture, for all that decode it: phones make 16320 x 12240 pixels.
MAX_PIXELS = 200_000_000
# Longer side to shorter one. Resizing makes the latter some hundred pixels.
MAX_ASPECT = 100
# Those that nothing is decoded of before the size is known, as Pillow does it
# for icons, and that are no programs, as PostScript.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "AVIF"),
    *("JPEG2000", "PPM", "TGA", "PSD", "PCX", "SGI", "QOI"),
    "HEIF",  # if pillow-heif has registered it
)
# What macOS adds to archives, Windows and Linux to disks and folders, and
# Synology, whose thumbnails would be pictures, too.
_OF_SYSTEMS = {
    *("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"),
    *("system volume information", "lost+found", "@eadir", "#recycle"),
}
_OPENING = threading.Lock()  # for Pillow's limit, which all threads share


def decode(source, max_pixels=MAX_PIXELS, draft=None):
    """Returns an encoded picture of one of `FORMATS` in RGB.

    Transparency and EXIF rotation are ignored, 16-bit grey values lose their
    lower byte, and so do 32-bit ones unless all are below 256. Of an
    animation the first frame is taken. Of a file that is no picture, or too
    large a one, only the header is read.

    Args:
        source: A path, or the `bytes` of a picture.
        max_pixels: Greatest number of its pixels.
        draft: For who wants to know only whether it is sound: `(width,
            height)` that do, in pixels, which is faster for JPEG.

    Returns:
        A `PIL.Image.Image` of mode `"RGB"`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it cannot be decoded, or if it is too large.
    """
    encoded = isinstance(source, bytes)
    name = f"{len(source)} bytes" if encoded else repr(str(source))
    if not encoded and "\0" in os.fsdecode(source):
        raise _broken(name, "no path has a zero byte")
    if not encoded and os.path.exists(source) and not os.path.isfile(source):
        raise _broken(name, "it is no regular file")  # a pipe may never end
    with io.BytesIO(source) if encoded else open(source, "rb") as file:
        try:
            with _own_limit():  # else Pillow refuses what phones make
                image = Image.open(file, formats=_known_formats())
        except PIL.UnidentifiedImageError:  # which names an address
            # HEIC is in one of `FORMATS`, which Pillow may lack all the same.
            formats = ", ".join(_known_formats())
            known = f"it is in none of the formats {formats}"
            raise _broken(name, known) from ValueError(known)
        except Exception as error:  # Pillow raises a dozen different ones.
            raise _broken(name, error) from error
        require_size(image.size, name, max_pixels)
        return decoded(image, name, draft)


def decoded(image, name, draft=None):
    """Returns the pixels of what Pillow has opened, as `decode` does."""
    try:
        if draft:
            image.draft("RGB", draft)
        return to_rgb(image)
    except Exception as error:
        raise _broken(name, error) from error


def files_in(folder, links=False):
    """Returns the files of a folder, at any depth, in order.

    What is hidden is left out: names that begin with a dot, as of a desktop's
    or a notebook's own files, and what systems add to folders. Links to
    folders are not followed; with `links` they are among the files, as are
    those to nothing, so that whoever reads them can say so.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if (path.is_file() or (links and path.is_symlink()))
        and not any(map(is_hidden, path.relative_to(folder).parts))
    )


def is_hidden(name):
    """Tells whether a file or folder of that name is not for people."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _broken(name, reason):
    return ValueError(
        "A picture that Pillow can decode is required. Received: "
        f"image={name} ({reason}). Replace or remove it."
    )


def _known_formats():
    """Returns those of `FORMATS` that Pillow has here."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def require_size(size, name, max_pixels=MAX_PIXELS):
    """Raises if a picture is too large, or too narrow to be resized."""
    width, height = size
    narrow = max(size) > MAX_ASPECT * min(size)
    if width * height > max_pixels or narrow:
        raise ValueError(
            f"A picture of at most {max_pixels:,} pixels, the longer side at "
            f"most {MAX_ASPECT} times the shorter one, is required. Received: "
            f"image={name} of {width} x {height} pixels. Make it smaller"
            + ("." if narrow else ", or in Python allow more by `max_pixels`.")
        )


@contextlib.contextmanager
def _own_limit():
    """Lifts Pillow's limit of pixels, while a header is read."""
    with _OPENING:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def to_rgb(image):
    """Returns a `PIL.Image.Image` of any mode in RGB.

    Raises:
        ValueError: If its values have no range, or if Pillow would start
            another program for it.
    """
    if image.format == "EPS":
        raise ValueError("PostScript is a program, which is not run")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling.
        values = np.asarray(image)
        if not _holds_bytes(image, values):
            values = values >> 8
        image = Image.fromarray(np.clip(values, 0, 255).astype("uint8"))
    elif image.mode == "F":
        raise ValueError("its values are floating-point and have no range")
    elif "transparency" in image.info:
        # Straight to RGB, Pillow warns about palettes with transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _holds_bytes(image, values):
    """Tells whether 32-bit values are 8-bit ones, as of NumPy's `int32`.

    Nothing in the picture says so, but taken for 16 bits it would be black.
    In other formats than TIFF the mode stands for 16 bits.
    """
    unsure = image.mode == "I" and image.format in (None, "TIFF")
    return unsure and values.max() < 256
