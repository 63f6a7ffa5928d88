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


def _moved(image, matrix, fill):
    """Moves pixels; what is uncovered gets a colour, or black."""
    affine = Image.Transform.AFFINE
    return image.transform(
        image.size, affine, matrix, _BILINEAR, fillcolor=fill
    )


def _add(image, x):
    """Makes the darker half of all numbers greater, each colour's."""
    table = [min(i + x, 255) if i < 128 else i for i in range(256)]
    return image.point(3 * table)


# Name: what is done to a picture, with a value and what is uncovered.
# fmt: off
_OPERATIONS = {
    "identity": lambda i, x, fill: i,
    "shear_x": lambda i, x, fill: _moved(i, (1, x, 0, 0, 1, 0), fill),
    "shear_y": lambda i, x, fill: _moved(i, (1, 0, 0, x, 1, 0), fill),
    "shift_x": lambda i, x, fill: _moved(i, (1, 0, x, 0, 1, 0), fill),
    "shift_y": lambda i, x, fill: _moved(i, (1, 0, 0, 0, 1, x), fill),
    "rotate": lambda i, x, fill: i.rotate(x, _BILINEAR, fillcolor=fill),
    "brightness": lambda i, x, fill: ImageEnhance.Brightness(i).enhance(1 + x),
    "color": lambda i, x, fill: ImageEnhance.Color(i).enhance(1 + x),
    "contrast": lambda i, x, fill: ImageEnhance.Contrast(i).enhance(1 + x),
    "sharpness": lambda i, x, fill: ImageEnhance.Sharpness(i).enhance(1 + x),
    "posterize": lambda i, x, fill: ImageOps.posterize(i, x),
    "solarize": lambda i, x, fill: ImageOps.solarize(i, x),
    "add": lambda i, x, fill: _add(i, x),
    "autocontrast": lambda i, x, fill: ImageOps.autocontrast(i),
    "equalize": lambda i, x, fill: ImageOps.equalize(i),
    "invert": lambda i, x, fill: ImageOps.invert(i),
}
# fmt: on

# Half of their values are negative.
_SIGNED = {
    *("shear_x", "shear_y", "shift_x", "shift_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
}

# Name: the value at strength 1, to which others are in proportion, or the
# value as a function of the strength, 0..1, and the picture's side. Source:
# torchvision's `TrivialAugmentWide`, and timm's `rand-…-inc1`.
_TRIVIAL = {
    "identity": 0,
    **dict.fromkeys(("shear_x", "shear_y"), 0.99),
    **dict.fromkeys(("shift_x", "shift_y"), lambda s, side: int(32 * s)),
    "rotate": 135,
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99),
    "posterize": lambda s, side: 8 - round(6 * s),
    "solarize": lambda s, side: 255 - 255 * s,
    **dict.fromkeys(("autocontrast", "equalize"), 0),
}
_RAND = {
    **dict.fromkeys(("shear_x", "shear_y"), 0.3),
    **dict.fromkeys(("shift_x", "shift_y"), lambda s, side: 0.45 * s * side),
    "rotate": 30,
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.9),
    "posterize": lambda s, side: max(1, 4 - int(4 * s)),  # Pillow's least
    "solarize": lambda s, side: 256 - int(256 * s),
    "add": lambda s, side: int(110 * s),
    **dict.fromkeys(("autocontrast", "equalize", "invert"), 0),
}


def trivial_augment(image, random):
    """Applies one operation of any strength.

    Source: Müller and Hutter, https://arxiv.org/abs/2103.10158.

    Args:
        image: `PIL.Image.Image` in RGB.
        random: `np.random.Generator`.
    """
    return _change(image, random, _TRIVIAL, random.integers(31) / 30, None)


def rand_augment(image, random, magnitude, colour):
    """Applies up to two operations of about one strength.

    As timm does, by which the recipes of "ResNet strikes back" were made: each
    of the two is left out with a probability of 0.5, and the strength deviates
    by 0.5 from one to the next. timm draws bicubic interpolation, too; this is
    bilinear.

    Source: Cubuk et al., https://arxiv.org/abs/1909.13719, and
    https://github.com/huggingface/pytorch-image-models.

    Args:
        image: `PIL.Image.Image` in RGB, a square.
        random: `np.random.Generator`.
        magnitude: 0..10.
        colour: What is uncovered, three numbers in 0..255.
    """
    for _ in range(2):
        if random.random() < 0.5:
            strength = np.clip(random.normal(magnitude, 0.5), 0, 10) / 10
            image = _change(image, random, _RAND, strength, tuple(colour))
    return image


def _change(image, random, values, strength, fill):
    """Applies one of the operations in a table of values."""
    name = list(values)[random.integers(len(values))]
    value = values[name]
    if callable(value):
        value = value(strength, image.width)
    else:
        value = value * strength
    if name in _SIGNED and random.random() < 0.5:
        value = -value
    return _OPERATIONS[name](image, value, fill)


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
        change = _OPERATIONS[names[i]]
        image = change(image, random.uniform(-0.4, 0.4), None)
    light = _DIRECTIONS @ (random.normal(0, 0.1, 3) * _VARIANCES)
    pixels = np.rint(np.asarray(image) + 255 * light)
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))
