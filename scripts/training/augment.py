"""Changes training pictures at random, each one on its own.

Keras has layers for this, too, but its RandomCrop and RandAugment draw once
for a whole batch, which is another augmentation than the published one.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_BILINEAR = Image.Resampling.BILINEAR


def pad_and_crop(images, random, colour=None):
    """Moves each image by up to four pixels.

    Args:
        images: uint8 `(n, height, width, 3)`.
        random: `np.random.Generator`.
        colour: What is uncovered, three numbers in 0..255, or `None` for the
            picture mirrored at its border.

    Returns:
        uint8 array of the same shape.
    """
    n, height, width, _ = images.shape
    if colour is None:
        border = ((0, 0), (4, 4), (4, 4), (0, 0))
        padded = np.pad(images, border, mode="reflect")
    else:
        padded = np.empty((n, height + 8, width + 8, 3), "uint8")
        padded[:] = colour
        padded[:, 4:-4, 4:-4] = images
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width), axis=(1, 2)
    )
    top, left = random.integers(9, size=(2, n))
    return np.moveaxis(windows[np.arange(n), top, left], 1, -1)


def mirror(images, random):
    """Mirrors about half of the images, uint8 `(n, height, width, 3)`."""
    chosen = random.random(len(images)) < 0.5
    return np.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def resized_crop(image, side, random):
    """Cuts a part of 8 to 100 % out of a picture and resizes it to a square.

    Source: Szegedy et al., https://arxiv.org/abs/1409.4842, section 6; as in
    torchvision's `RandomResizedCrop`.

    Args:
        image: `PIL.Image.Image`.
        side: Side of the result, in pixels.
        random: `np.random.Generator`.
    """
    for _ in range(10):
        area = image.width * image.height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = round(math.sqrt(area * ratio))
        height = round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = random.integers(image.width - width + 1)
            top = random.integers(image.height - height + 1)
            box = (left, top, left + width, top + height)
            return image.resize((side, side), _BILINEAR, box)
    return ImageOps.fit(image, (side, side), _BILINEAR)


def _moved(image, *matrix):
    """Moves pixels; what is uncovered turns black."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, _BILINEAR
    )


# Name: the operation, its strongest values in TrivialAugment and RandAugment,
# and whether half of the values are negative. Source: as torchvision's
# `TrivialAugmentWide` and `RandAugment`; RandAugment shifts by a share.
# fmt: off
_OPERATIONS = {
    "identity": (lambda image, x: image, 0, 0, False),
    "shear_x": (lambda i, x: _moved(i, 1, x, 0, 0, 1, 0), 0.99, 0.3, True),
    "shear_y": (lambda i, x: _moved(i, 1, 0, 0, x, 1, 0), 0.99, 0.3, True),
    "shift_x": (lambda i, x: _moved(i, 1, 0, int(x), 0, 1, 0), 32, None, True),
    "shift_y": (lambda i, x: _moved(i, 1, 0, 0, 0, 1, int(x)), 32, None, True),
    "rotate": (lambda i, x: i.rotate(x, _BILINEAR), 135, 30, True),
    "brightness": (
        lambda i, x: ImageEnhance.Brightness(i).enhance(1 + x), 0.99, 0.9, True
    ),
    "color": (
        lambda i, x: ImageEnhance.Color(i).enhance(1 + x), 0.99, 0.9, True
    ),
    "contrast": (
        lambda i, x: ImageEnhance.Contrast(i).enhance(1 + x), 0.99, 0.9, True
    ),
    "sharpness": (
        lambda i, x: ImageEnhance.Sharpness(i).enhance(1 + x), 0.99, 0.9, True
    ),
    "posterize": (
        lambda i, x: ImageOps.posterize(i, 8 - round(x)), 6, 4, False
    ),
    "solarize": (lambda i, x: ImageOps.solarize(i, 255 - x), 255, 255, False),
    "autocontrast": (lambda i, x: ImageOps.autocontrast(i), 0, 0, False),
    "equalize": (lambda i, x: ImageOps.equalize(i), 0, 0, False),
}
# fmt: on


def trivial_augment(image, random):
    """Applies one operation of any strength.

    Source: Müller and Hutter, https://arxiv.org/abs/2103.10158.

    Args:
        image: `PIL.Image.Image` in RGB.
        random: `np.random.Generator`.
    """
    operation, most, _, signed = _draw(random)
    value = most * random.integers(31) / 30
    return operation(image, _sign(random, signed) * value)


def rand_augment(image, random, magnitude):
    """Applies two operations of about one strength.

    Source: Cubuk et al., https://arxiv.org/abs/1909.13719, with timm's
    deviation of 0.5 from one picture to the next. timm, by which the recipes
    of "ResNet strikes back" were made, leaves out each of the two with a
    probability of 0.5, and has Invert and SolarizeAdd in place of the identity.

    Args:
        image: `PIL.Image.Image` in RGB.
        random: `np.random.Generator`.
        magnitude: 0..10.
    """
    for _ in range(2):
        operation, _, most, signed = _draw(random)
        if most is None:
            most = 150 / 331 * image.width
        value = most * np.clip(random.normal(magnitude, 0.5), 0, 10) / 10
        image = operation(image, _sign(random, signed) * value)
    return image


# Of ImageNet's colours, red, green and blue in 0..1: the directions in which
# they vary most, one in each column, and how much they do.
_DIRECTIONS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)
_VARIANCES = np.array([0.2175, 0.0188, 0.0045])


def change_colours(image, random):
    """Changes brightness, contrast, saturation and the colour of the light.

    The first three by up to 40 %, in any order; then one colour is added to
    all pixels, drawn along the directions in which ImageNet's colours vary.

    Source: Krizhevsky et al., https://papers.nips.cc/paper/4824, section 4.1,
    for the light; all as in https://github.com/facebookresearch/ResNeXt,
    which does not cut off what leaves 0..255, as 8 bits have to.

    Args:
        image: `PIL.Image.Image` in RGB.
        random: `np.random.Generator`.
    """
    names = "brightness", "contrast", "color"
    for i in random.permutation(3):
        image = _OPERATIONS[names[i]][0](image, random.uniform(-0.4, 0.4))
    light = _DIRECTIONS @ (random.normal(0, 0.1, 3) * _VARIANCES)
    pixels = np.rint(np.asarray(image) + 255 * light)
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))


def _draw(random):
    return list(_OPERATIONS.values())[random.integers(len(_OPERATIONS))]


def _sign(random, signed):
    return -1 if signed and random.random() < 0.5 else 1
