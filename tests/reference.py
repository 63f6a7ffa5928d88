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
# Too large for a test at full width, or varied in what no width changes: as
# deep, with fewer groups.
NARROW_GROUPS = {
    "resnext101_32x16d": 4,
    "resnext101_32x32d": 2,
    "resnext101_32x48d": 2,
} | {
    name: 2
    for name, row in ARCHITECTURES.items()
    if row.squeeze_excite or row.average_shortcut
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


def sizes(name):
    """Returns sizes, even and odd, square and not: (height, width) in pixels.

    An anti-aliased network takes the odd ones that give it even maps.
    """
    odd = (63, 95) if structure(name)[0].anti_aliased else (75, 89)
    return [(64, 64), odd]


def shapes(name):
    """Returns the shapes of a PyTorch state dict, in order."""
    row, groups = structure(name)
    found = {}

    def conv(key, out, channels, kernel):
        found[f"{key}.weight"] = (out, channels, kernel, kernel)

    def norm(key, channels):
        for variable in ("weight", "bias", "running_mean", "running_var"):
            found[f"{key}.{variable}"] = (channels,)

    channels = 64
    if row.stem in ("deep", "tiered"):
        w = row.stem_width
        first, channels = (w if row.stem == "deep" else 3 * w // 4), 2 * w
        conv("conv1.0", first, 3, 3)
        norm("conv1.1", first)
        conv("conv1.3", w, first, 3)
        norm("conv1.4", w)
        conv("conv1.6", channels, w, 3)
        norm("bn1", channels)
    else:
        prefix = "layer0." * (row.stem == "legacy")
        conv(f"{prefix}conv1", 64, 3, 3 if row.stem == "cifar" else 7)
        norm(f"{prefix}bn1", 64)
    legacy = row.stem == "legacy"
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
            if row.squeeze_excite:
                module, less = "se_module" if legacy else "se", out // 16
                for fc, (a, b) in enumerate([(less, out), (out, less)], 1):
                    conv(f"{key}.{module}.fc{fc}", a, b, 1)
                    found[f"{key}.{module}.fc{fc}.bias"] = (a,)
            if i == 0 and (stage > 0 or channels != out):
                first = int(row.average_shortcut)
                conv(f"{key}.downsample.{first}", out, channels, 1)
                norm(f"{key}.downsample.{first + 1}", out)
            channels = out
    top = "last_linear" if legacy else "fc"
    found[f"{top}.weight"] = (CLASSES, channels)
    found[f"{top}.bias"] = (CLASSES,)
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
            # NumPy 2 does so by itself.
            array = array.astype("float64") * np.sqrt(2 / np.prod(shape[1:]))
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
    return [np.array(stored["logits"][f"{h}x{w}"]) for h, w in sizes(name)]
