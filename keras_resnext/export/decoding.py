"""Decodes pictures with TensorFlow alone, exactly as Pillow does.

TensorFlow's decoders take files that they do not understand, and allocate
what a header claims. So the header is read first: what would differ from
Pillow's picture, or is too large, is an error of its own.
"""

from keras_resnext.pillow import MAX_ASPECT

# A file has a few dozen, a colour profile of 16 MB 256.
_MAX_SEGMENTS = 1000
# Bytes of a GIF that are looked at: of its first frame two for each pixel, and
# as many of what may stand before it.
_GIF_BEFORE = 2**20
_BMP_HEADERS = (40, 52, 56, 64, 108, 124)  # bytes; those that Pillow knows
_BMP_MASKS = (0xFF0000, 0xFF00, 0xFF)  # blue first, as without masks
# A GIF's frame of one pixel, with colours of its own.
_GIF_DOT = b",\0\0\0\0\1\0\1\0\x80" + bytes(6) + b"\2\2\x4c\1\0"


def decode(data, max_pixels):
    """Decodes a JPEG, PNG, GIF or BMP picture.

    Of a GIF the first frame is taken, which has to fill the canvas. A BMP
    has to have 8, 24 or 32 bits a pixel, uncompressed.

    Args:
        data: The encoded picture, a string tensor `()`.
        max_pixels: Greatest number of pixels.

    Returns:
        uint8, `(height, width, 3)`, RGB.

    Raises:
        tf.errors.InvalidArgumentError: If the picture is of another kind, is
            too large, or cannot be decoded.
    """
    import tensorflow as tf

    kinds = {
        b"\xff\xd8\xff": _jpeg,
        b"\x89PNG\r\n\x1a\n": _png,
        b"GIF87a": _gif,
        b"GIF89a": _gif,
        b"BM": _bmp,
    }
    # The empty picture stands for every unknown kind: it cannot be decoded.
    read = lambda: _png(tf.constant(b""), max_pixels)  # noqa: E731
    for magic, kind in kinds.items():
        read = _case(data, magic, kind, max_pixels, read)
    return read()


def _case(data, magic, kind, max_pixels, otherwise):
    import tensorflow as tf

    return lambda: tf.cond(
        tf.strings.substr(data, 0, len(magic)) == magic,
        lambda: kind(data, max_pixels),
        otherwise,
    )


def _jpeg(data, max_pixels):
    import tensorflow as tf

    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(data))
    # Of four inks without Adobe's mark, Pillow and TensorFlow guess apart.
    known = tf.cond(channels == 4, lambda: _adobe(data), lambda: True)
    with tf.control_dependencies([_fits(height, width, max_pixels, known)]):
        # Pillow's accuracy; TensorFlow's default is the fastest one.
        return tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")


def _adobe(data):
    """Tells whether one of a JPEG's segments is Adobe's."""
    import tensorflow as tf

    def at(place):
        return tf.unstack(_values(tf.strings.substr(data, place, 4)), 4)

    def goes_on(place):
        begin, marker, _, _ = at(place)
        return (begin == 0xFF) & (marker != 0xDA) & (marker != 0xEE)

    def following(place):
        _, marker, high, low = at(place)
        return [place + tf.where(marker == 0xFF, 1, 2 + 256 * high + low)]

    # Behind the start; a file that ends before is an error, as a broken one.
    (place,) = tf.while_loop(
        goes_on, following, [2], maximum_iterations=_MAX_SEGMENTS
    )
    return (tf.strings.substr(data, place, 2) == b"\xff\xee") & (
        tf.strings.substr(data, place + 4, 5) == b"Adobe"
    )


def _png(data, max_pixels):
    import tensorflow as tf

    height, width = _number(data, 20, 4, "big"), _number(data, 16, 4, "big")
    with tf.control_dependencies([_fits(height, width, max_pixels)]):
        return tf.io.decode_png(data, 3)


def _gif(data, max_pixels):
    """Decodes the first frame; the others never reach the decoder."""
    import tensorflow as tf

    sides = [_number(data, i, 2) for i in (6, 8)]
    with tf.control_dependencies([_fits(*sides, max_pixels)]):
        most = 2 * sides[0] * sides[1] + _GIF_BEFORE
    # What follows, as an animation's other frames, would cost as much.
    data = tf.strings.substr(data, tf.constant(0, tf.int64), most)
    values = tf.concat([_values(data), [0]], 0)
    here = tf.range(tf.size(values))
    # Blocks of data, each behind its length, end with one of length 0.
    end = _follow(tf.where(values == 0, here, here + 1 + values))
    after = tf.gather(end, tf.minimum(here + 2, here[-1])) + 1
    begin = 13 + _table(values[10])
    frame = _follow(tf.where(values == 0x21, after, here))[begin]
    origin = [_number(data, frame + i, 2) for i in (1, 3)]
    width, height = (_number(data, frame + i, 2) for i in (5, 7))
    whole = (
        (values[frame] == 0x2C)
        & tf.reduce_all(tf.stack(origin) == 0)
        & (width >= sides[0])
        & (height >= sides[1])
    )
    stop = end[11 + frame + _table(values[frame + 9])]
    # Without the extensions before: where one of them says that a colour is
    # transparent, TensorFlow shows black, Pillow the colour.
    first = tf.strings.substr(data, 0, begin)
    first += tf.strings.substr(data, frame, stop - frame) + b"\0"
    with tf.control_dependencies([_fits(height, width, max_pixels, whole)]):
        # The decoder stops at a broken frame, keeps what it has of it, and
        # tells nobody: only a frame behind it does, by its absence.
        frames = tf.io.decode_gif(first + _GIF_DOT + b";")
    with tf.control_dependencies(
        [tf.debugging.assert_equal(tf.shape(frames)[0], 2)]
    ):
        return frames[0]


def _table(flags):
    """Returns the length of a GIF's table of colours."""
    import tensorflow as tf

    size = 3 * tf.bitwise.left_shift(2, flags & 7)
    return tf.where(flags & 0x80 > 0, size, 0)


def _bmp(data, max_pixels):
    import tensorflow as tf

    header, bits = _number(data, 14, 4), _number(data, 28, 2)
    compression, colours = _number(data, 30, 4), _number(data, 46, 4)
    masks = tf.stack([_number(data, 54 + 4 * i, 4) for i in range(3)])
    usual = (compression == 3) & tf.reduce_all(masks == _BMP_MASKS)
    plain = (bits == 24) | (bits == 8) | (bits == 32)
    known = (colours <= 256) & tf.reduce_any(header == _BMP_HEADERS)
    known &= tf.where(compression == 0, plain, usual & (bits == 32))
    # A negative height: from top to bottom.
    height, width = _number(data, 22, 4), _number(data, 18, 4)
    height = tf.minimum(height, 2**32 - height)

    def palette():
        indices = tf.io.decode_bmp(data, 3)[..., 0]
        size = 4 * tf.where(colours > 0, colours, 256)
        table = tf.strings.substr(data, 14 + header, size)
        table = tf.reshape(tf.io.decode_raw(table, tf.uint8), (-1, 4))
        return tf.gather(table[:, 2::-1], tf.cast(indices, tf.int32))

    with tf.control_dependencies([_fits(height, width, max_pixels, known)]):
        return tf.cond(bits == 8, palette, lambda: tf.io.decode_bmp(data, 3))


def _fits(height, width, max_pixels, known=True):
    """Asserts that a picture is neither too large nor too narrow."""
    import tensorflow as tf

    sides = tf.stack([tf.cast(n, tf.int64) for n in (height, width)])
    short, long = tf.reduce_min(sides), tf.reduce_max(sides)
    # Divided, as a product of what a header claims may overflow.
    fits = (short > 0) & (long <= max_pixels // tf.maximum(short, 1))
    return tf.debugging.Assert(
        known & fits & (long <= MAX_ASPECT * short), [sides]
    )


def _number(data, place, length, order="little"):
    """Returns a whole number of a file, int64, without a sign."""
    import tensorflow as tf

    values = _values(tf.strings.substr(data, place, length))
    places = range(length) if order == "little" else range(length)[::-1]
    factors = [256**i for i in places]
    return tf.reduce_sum(tf.cast(values, tf.int64) * factors)


def _values(data):
    import tensorflow as tf

    return tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int32)


def _follow(following):
    """Returns where chains end, from each place to its last.

    In logarithmically many steps, each twice as long as the one before; a
    step for each link would take seconds where a file has a million.

    Args:
        following: The place after each place, int32; itself at the end.
    """
    import tensorflow as tf

    following = tf.minimum(following, tf.size(following) - 1)
    return tf.while_loop(
        lambda places, length: length < tf.size(places),
        lambda places, length: (tf.gather(places, places), 2 * length),
        (following, 1),
    )[0]
