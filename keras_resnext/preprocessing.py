"""Feeds the networks: pixels in, names out."""

import collections.abc
import concurrent.futures
import csv
import dataclasses
import functools
import os
import pathlib
import re
import sys

import keras
import numpy as np
from PIL import Image

from keras_resnext import pillow, registry
from keras_resnext.pillow import MAX_PIXELS
from keras_resnext.registry import require, require_count
from keras_resnext.weights import hub

_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# What a picture begins with that may be without a zero byte: its sizes, after
# comments.
_PPM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s")


def preprocess_input(x, data_format=None):
    """Normalises images as all ImageNet checkpoints of this package expect.

    Scales to 0..1, then subtracts ImageNet's mean and divides by its standard
    deviation, channel by channel. Unlike `keras.applications`, never writes
    to `x`, and takes integers.

    Args:
        x: RGB values in 0..255, `(batch, height, width, 3)` or `(height,
            width, 3)`, or `(batch, 3, height, width)` or `(3, height, width)`
            with `"channels_first"`: a NumPy array, a tensor of the backend, a
            symbolic Keras tensor or, with any backend, a TensorFlow tensor as
            in `tf.data`.
        data_format: `"channels_last"`, `"channels_first"` or `None` for
            Keras's setting.

    Returns:
        Values in about -2.2..2.7, of the shape and kind of `x`; of its dtype
        if that is a floating one, else of `keras.config.floatx()`.

    Raises:
        ValueError: If `data_format` is unknown, or if `x` is no array or has
            no such shape.
    """
    if data_format is None:
        data_format = keras.config.image_data_format()
    require(
        data_format in ("channels_first", "channels_last"),
        "`data_format` must be 'channels_last' or 'channels_first'",
        "Leave it out for Keras's own setting.",
        data_format=data_format,
    )
    require(
        hasattr(x, "shape") and hasattr(x, "dtype"),
        "`x` must be an array or a tensor",
        "Pass `numpy.asarray(x)` of a list or a picture.",
        x=type(x).__name__,
    )
    axis = -1 if data_format == "channels_last" else -3
    # In tf.data, not even the rank has to be known.
    if getattr(x.shape, "rank", 0) is not None:
        shape = tuple(x.shape)
        if len(shape) not in (3, 4) or shape[axis] not in (3, None):
            raise ValueError(
                "`x` must be RGB images, 3D or 4D with 3 channels. Received: "
                f"x.shape={shape} with data_format={data_format!r}. Check the "
                "order of the axes; repeat a grey channel three times."
            )
    return _normalise(x, registry.IMAGENET_MEAN, registry.IMAGENET_STD, axis)


def _normalise(x, mean, std, axis=-1):
    """Returns `(x / 255 - mean) / std`, with the channels on `axis`."""
    if isinstance(x, np.ndarray):
        cast = np.asarray
    elif _is_tensorflow(x):
        cast = sys.modules["tensorflow"].cast
    else:
        cast = keras.ops.cast
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not keras.backend.is_float_dtype(dtype):
        dtype = keras.config.floatx()
    shape = (3,) if axis == -1 else (3, 1, 1)
    mean, std = (cast(np.reshape(v, shape), dtype) for v in (mean, std))
    normalised = (cast(x, dtype) / 255.0 - mean) / std
    if isinstance(x, np.ndarray):  # NumPy makes float32 of bfloat16
        return normalised.astype(dtype, copy=False)
    return normalised


def _is_tensorflow(x):
    """Tells whether `x` is a TensorFlow tensor, without importing it."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and tf.is_tensor(x)


def decode_predictions(preds, top=5, labels=None):
    """Names the most probable classes.

    The class names are those of `keras.applications`; they are packaged, so
    this works offline.

    Args:
        preds: Scores, `(batch, 1000)` for ImageNet's classes, `(batch, 10)`
            for CIFAR-10's, or `(batch, len(labels))`; an array or a tensor.
        top: Number of classes to name, at least 1.
        labels: Names of the classes, in their order, if they are others; or
            `"hf://USER/NAME"` for those of a network on the hub.

    Returns:
        A list for each image, of tuples `(id, name, score)`, best first and
        of equal scores the lower class first. The id is ImageNet's WordNet
        id, as `"n02124075"`, or as `"cifar10_3"`; with `labels` it is the
        name.

    Raises:
        ValueError: If `preds` has no such shape, if `top` is no such integer,
            or if `labels` are no list of names, one for each class.
    """
    if isinstance(labels, str) and labels.startswith(hub.PREFIX):
        row = eval_transform(labels).checkpoint
        if row.labels is None and row.classes != 1000:
            raise ValueError(
                "A network on the hub must name its classes, or have the 1000 "
                f"of ImageNet. Received: labels={labels!r} with {row.classes} "
                "classes without names. Pass a list of names."
            )
        labels = row.labels
    require_count("Leave it out for 5.", top=top)
    preds = _to_numpy(preds)
    if labels is not None:
        require(
            isinstance(labels, collections.abc.Iterable)
            and not isinstance(labels, str)
            and all(isinstance(label, str) for label in labels),
            "`labels` must be a list of names, one for each class",
            "Pass strings.",
            labels=str(labels)[:40],
        )
        require(
            preds.ndim == 2 and preds.shape[1] == len(labels),
            f"`preds` must have the shape (batch, {len(labels)}), a score for "
            "each label",
            "Pass as many labels as there are classes.",
            **{"preds.shape": preds.shape},
        )
        names = [(label, label) for label in labels]
    else:
        names = usual_classes(preds.shape[1]) if preds.ndim == 2 else []
        require(
            names,
            "`preds` must have the shape (batch, 1000) of ImageNet or (batch, "
            "10) of CIFAR-10",
            "Pass `labels` for other classes.",
            **{"preds.shape": preds.shape},
        )
    order = np.argsort(-preds.astype("float64"), axis=1, kind="stable")
    return [
        [(*names[i], scores[i]) for i in best]
        for scores, best in zip(preds, order[:, :top], strict=True)
    ]


def class_names(checkpoint, outputs):
    """Returns the names of a network's outputs, as far as anybody knows.

    Args:
        checkpoint: The `keras_resnext.registry.Checkpoint` of its weights, or
            `None` for a file of which nothing is known.
        outputs: Their number.

    Returns:
        A list of names, or `None`: ten classes of a stranger are not those of
        CIFAR-10.
    """
    row = checkpoint
    if row is not None and row.labels and len(row.labels) == outputs:
        return list(row.labels)
    ten = row is not None and row.labels is None and not row.hub
    if outputs == 1000 or (outputs == 10 and ten and row.classes == 10):
        return [name for _, name in usual_classes(outputs)]
    return None


def usual_classes(outputs):
    """Returns the classes that networks with so many outputs usually have.

    Args:
        outputs: Their number.

    Returns:
        Pairs of id and name, in the order of the outputs: ImageNet's for
        1000, CIFAR-10's for 10, else none.
    """
    if outputs == 1000:
        return list(_imagenet_classes())
    if outputs == 10:
        return [(f"cifar10_{i}", name) for i, name in enumerate(_CIFAR10)]
    return []


@functools.cache
def _imagenet_classes():
    """Returns the 1000 pairs of WordNet id and name, in the classes' order."""
    path = pathlib.Path(__file__).with_name("imagenet_classes.csv")
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["wnid"], row["name"]) for row in csv.DictReader(file)]


def _to_numpy(x):
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, list) or _is_tensorflow(x):
        return np.asarray(x)
    return keras.ops.convert_to_numpy(x)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Turns pictures into the input with which a checkpoint was evaluated.

    Attributes:
        checkpoint: The `keras_resnext.registry.Checkpoint` whose `resize`,
            `crop`, `interpolation`, `mean` and `std` are applied.
        max_pixels: Greatest number of pixels of a picture.
    """

    checkpoint: registry.Checkpoint
    max_pixels: int = MAX_PIXELS

    def __call__(self, image):
        """Decodes, resizes, crops and normalises one picture, or many.

        Many are worked on in threads, as Pillow does outside of Python's lock.

        Transparency and EXIF rotation are ignored, 16-bit grey values lose
        their lower byte, so do 32-bit ones unless all are below 256, and of
        an animation the first frame is taken.

        Args:
            image: One of: a path; `bytes` of an encoded picture in one of
                `pillow.FORMATS`; a `PIL.Image.Image`; an array or tensor of
                uint8 in 0..255, `(height, width, 3)` RGB, `(height, width)`
                or `(height, width, 1)` grey, or `(height, width, 4)` RGBA; a
                TensorFlow string, path or encoded picture. Or many: a list
                of these, an array or tensor `(batch, height, width,
                channels)`, or one of strings `(batch,)`. With TensorFlow
                tensors it works inside `dataset.map(transform)`.

        Returns:
            float32, `(crop, crop, 3)`, or `(batch, crop, crop, 3)` of many,
            normalised: a TensorFlow tensor of this static shape for a
            TensorFlow tensor, else a NumPy array.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it cannot be decoded, if it is too large, or if an
                array has another shape or dtype. Inside `dataset.map`, both
                come out as `tf.errors.OpError`.
        """
        if not _is_tensorflow(image):
            return (self._all if _many(image) else self._apply)(image)
        import tensorflow as tf

        side = self.checkpoint.crop
        many = image.shape.rank == (1 if image.dtype == tf.string else 4)

        def apply(value):
            if many:
                return self._all([_from_tensorflow(one) for one in value])
            return self._apply(_from_tensorflow(value))

        # The same Pillow code: TensorFlow's own decoders and filters differ.
        output = tf.numpy_function(apply, [image], tf.float32)
        batch = (image.shape[0],) if many else ()
        return tf.ensure_shape(output, (*batch, side, side, 3))

    def _all(self, images):
        side, images = self.checkpoint.crop, list(images)
        inputs = np.empty((len(images), side, side, 3), "float32")
        # Where each one is: an opened picture that is there several times is
        # decoded at its first use, which no two threads may do.
        places = {}
        for i, image in enumerate(images):
            places.setdefault(id(image), []).append(i)

        def fill(same):
            inputs[same] = self._apply(images[same[0]])

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(fill, places.values()):
                pass  # asks for each result, as that may be an error
        return inputs

    def _apply(self, image):
        row = self.checkpoint
        image = _open(image, self.max_pixels)
        image = image.resize(
            _resized(image.size, row), _INTERPOLATIONS[row.interpolation]
        )
        left, top = (_offset(length, row.crop) for length in image.size)
        box = (left, top, left + row.crop, top + row.crop)
        if row.crop_mode == "border":
            colour = tuple(round(255 * v) for v in row.mean)
            canvas = Image.new("RGB", (row.crop, row.crop), colour)
            canvas.paste(image, (-left, -top))
            image = canvas
        else:
            image = image.crop(box)
        return _normalise(np.asarray(image, "float32"), row.mean, row.std)


def _resized(size, row):
    """Returns the size that a picture gets before it is cropped.

    Source: timm's `transforms_imagenet_eval` and `ResizeKeepRatio`.
    """
    if row.crop_mode == "squash":
        return row.resize, row.resize
    if row.crop_mode == "border":
        ratio = row.resize / max(size)
        return tuple(max(1, round(length * ratio)) for length in size)
    return tuple(int(row.resize * length / min(size)) for length in size)


def eval_transform(checkpoint, max_pixels=MAX_PIXELS):
    """Returns the preprocessing with which a checkpoint was evaluated.

    Resizes the shorter side to `checkpoint.resize` pixels with Pillow's
    antialiased filter, crops the centre (padding what is smaller with black)
    and normalises, pixel by pixel as torchvision and timm do. The licence of
    the weights plays no part here.

        transform = eval_transform("resnext50_32x4d/imagenet1k_v2")
        transform("cat.jpg")                                 # NumPy array
        transform(["cat.jpg", "dog.jpg"])                    # a batch
        tf.data.Dataset.list_files("*.jpg").map(transform)   # tensors

    Source: torchvision's `ImageClassification` preset and timm's
    `transforms_imagenet_eval`, both with PIL images.

    Args:
        checkpoint: A `keras_resnext.registry.Checkpoint`, or its architecture
            and tag as `"resnext50_32x4d/imagenet1k_v2"`; the architecture
            alone stands for its `"imagenet"` checkpoint. Or a network on the
            hub, `"hf://USER/NAME"`, whose config.json says how it is tested.
        max_pixels: Greatest number of pixels of a picture, read off its
            header before it is decoded; each takes 4 to 9 bytes. A picture
            whose longer side is more than 100 times its shorter one is
            refused as well, so that none has more than `100 * resize**2`
            pixels after resizing.

    Returns:
        An `EvalTransform`, which maps one picture to a float32 array `(crop,
        crop, 3)`, and a list or batch of them to `(batch, crop, crop, 3)`.

    Raises:
        ValueError: If there is no such checkpoint, if what it says of its
            pictures is none of the above, or if `max_pixels` is not a
            positive integer.
    """
    require_count(f"Leave it out for {MAX_PIXELS:,}.", max_pixels=max_pixels)
    if str(checkpoint).startswith(hub.PREFIX):
        checkpoint = hub.describe(checkpoint)
    if not isinstance(checkpoint, registry.Checkpoint):
        checkpoint = _row(checkpoint)
    return EvalTransform(registry.check_preprocessing(checkpoint), max_pixels)


def _row(checkpoint):
    """Returns the row that an architecture, or that and a tag, stand for."""
    require(
        isinstance(checkpoint, str),
        "`checkpoint` must be a row of CHECKPOINTS, or its architecture and "
        "tag",
        "Pass, for instance, 'resnext50_32x4d/imagenet1k_v2'.",
        checkpoint=checkpoint,
    )
    name, _, tag = checkpoint.partition("/")
    name = registry.find_architecture(name).name
    try:
        return registry.resolve(name, tag or "imagenet", True)
    except ValueError as error:
        known = [f"{n}/{t}" for n, t in registry.CHECKPOINTS if n == name]
        raise ValueError(
            "`checkpoint` must be one of its architecture. Received: "
            f"checkpoint={checkpoint!r}. Pass one of "
            f"{', '.join(known) or 'another architecture'}."
        ) from error


def _offset(length, crop):
    """Returns where a centred crop begins, below 0 if it needs padding.

    Source: torchvision's `center_crop`: `round` goes to the even neighbour,
    while of an odd number of black pixels the greater part comes last.
    """
    if length >= crop:
        return round((length - crop) / 2)
    return -((crop - length) // 2)


def _many(image):
    """Tells whether what is no TensorFlow tensor is a batch of pictures."""
    shape = getattr(image, "shape", ())
    texts = isinstance(image, np.ndarray) and image.dtype.kind in "OSU"
    return (
        isinstance(image, (list, tuple))
        or len(shape) == 4
        or (texts and len(shape) == 1)
    )


def _from_tensorflow(value):
    """Returns the string that TensorFlow gives as bytes, if it is a path.

    No path has a zero byte; the headers of JPEG, PNG, GIF and TIFF all do.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()  # what an eager call gives
    if not isinstance(value, bytes) or not value or b"\0" in value:
        return value
    return value if _PPM.match(value) else os.fsdecode(value)


def _open(image, max_pixels):
    """Returns a path's, bytes', array's or picture's `PIL.Image` in RGB."""
    if isinstance(image, (bytes, str, os.PathLike)):
        return pillow.decode(image, max_pixels)
    if isinstance(image, Image.Image):
        pillow.require_size(image.size, "a picture", max_pixels)
        return pillow.decoded(image, "a picture")
    image = _to_numpy(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    colour = image.ndim == 3 and image.shape[2] in (3, 4)
    shaped = image.size and (colour or image.ndim == 2)
    if image.dtype != "uint8" or not shaped:
        raise ValueError(
            "`image` must be uint8 of the shape (height, width, 3), (height, "
            "width) or (height, width, 4). Received: "
            f"image.shape={image.shape}, image.dtype={image.dtype}. Pass one "
            "picture, channels last, with values in 0..255."
        )
    pillow.require_size(image.shape[1::-1], "an array", max_pixels)
    return pillow.to_rgb(Image.fromarray(image))
