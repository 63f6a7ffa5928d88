"""Random weights and images for the parity tests, in PyTorch's names.

Needs NumPy only, so that the golden logits can be checked without torch.
"""

import json
import pathlib
import zlib

import numpy as np

from keras_resnext.registry import ARCHITECTURES, Architecture

GOLDEN = pathlib.Path(__file__).with_name("golden")
CLASSES = 16
# Even and odd, square and not: (height, width) in pixels.
SIZES = [(64, 64), (75, 89)]
# Too large for a test at full width: as deep, with fewer groups.
NARROW_GROUPS = {
    "resnext101_32x16d": 4,
    "resnext101_32x32d": 2,
    "resnext101_32x48d": 2,
}
# The smallest network with everything in it, for files of weights.
TINY = Architecture(
    "tiny",
    "ResNeXt",
    depths=(1,),
    groups=2,
    width_per_group=1,
    stem="cifar",
    num_params=0,
    gmacs=0,
)


def structure(name):
    """Returns the architecture's row and the number of groups to test."""
    row = TINY if name == TINY.name else ARCHITECTURES[name]
    return row, NARROW_GROUPS.get(name, row.groups)


def shapes(name):
    """Returns the shapes of a PyTorch state dict, in order."""
    row, groups = structure(name)
    found = {}

    def conv(key, out, channels, kernel):
        found[f"{key}.weight"] = (out, channels, kernel, kernel)

    def norm(key, channels):
        for variable in ("weight", "bias", "running_mean", "running_var"):
            found[f"{key}.{variable}"] = (channels,)

    conv("conv1", 64, 3, 7 if row.stem == "imagenet" else 3)
    norm("bn1", 64)
    channels = 64
    for stage, depth in enumerate(row.depths):
        planes = 64 * 2**stage
        width = planes * row.width_per_group // 64 * groups
        out = planes if row.block == "basic" else 4 * planes
        for i in range(depth):
            key = f"layer{stage + 1}.{i}"
            if row.block == "basic":
                convs = [(planes, channels, 3), (planes, planes, 3)]
            else:
                convs = [
                    (width, channels, 1),
                    (width, width // groups, 3),
                    (out, width, 1),
                ]
            for j, convolution in enumerate(convs, 1):
                conv(f"{key}.conv{j}", *convolution)
                norm(f"{key}.bn{j}", convolution[0])
            if i == 0 and (stage > 0 or channels != out):
                conv(f"{key}.downsample.0", out, channels, 1)
                norm(f"{key}.downsample.1", out)
            channels = out
    found["fc.weight"] = (CLASSES, channels)
    found["fc.bias"] = (CLASSES,)
    return found


def draw(name):
    """Returns a state dict of seeded random numbers, float32.

    Every statistic of the normalisations is random, too: with the values of
    a fresh network, two of them that were swapped would not be noticed.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    weights = {}
    for key, shape in shapes(name).items():
        array = random.standard_normal(shape, dtype="float32")
        if len(shape) == 4:
            array *= np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("running_var"):
            array = 1 + 0.2 * np.tanh(array)
        elif key.endswith(".weight") and len(shape) == 1:
            array = 0.6 + 0.2 * np.tanh(array)
        else:
            array *= 0.1
        weights[key] = array.astype("float32")
    return weights


def images(size):
    """Returns two normalised images, (2, height, width, 3)."""
    random = np.random.default_rng(size)
    return random.standard_normal((2, *size, 3), dtype="float32")


def golden(name):
    """Returns the logits that PyTorch computed, one array for each size."""
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    return [np.array(stored["logits"][f"{h}x{w}"]) for h, w in SIZES]
