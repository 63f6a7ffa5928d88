"""The names that PyTorch's libraries give to a network's arrays.

Torchvision's and timm's are the usual ones: `conv1.weight`, `bn1.weight`,
`layer1.0.conv2.weight`, `layer1.0.downsample.0.weight`, `fc.weight`. Those of
other libraries are turned into these, and what stands before them is taken
off. A classifier keeps its name.
"""

import dataclasses
import re
import warnings

import numpy as np

from keras_resnext.weights.unread import Unread, printable, unique

# How the usual names of a network go on behind its prefix, if it has one.
_STAGE = re.compile(r"(?:^|\.)(?=layer\d\.\d+\.)")
_STEM = re.compile(r"(?:^|\.)(?=conv1\.(?:\d\.)?weight$)")

# Of a network, or a part of it, in a wrapper: `torch.compile`'s, activation
# checkpointing's, and that of training in shards.
_WRAPPER = re.compile(
    r"(?<![^.])_(?:orig_mod|(?:checkpoint|fsdp)_wrapped_module)\."
)

# A deep stem whose layers are beside the stages.
# Source: https://github.com/CSAILVision/semantic-segmentation-pytorch.
_BESIDE = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3"}
_BESIDE |= {"bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}

# The first of a block, where `nn.Sequential(*resnet.children())` has left
# numbers of the network's parts.
_NUMBERED = re.compile(r"((?:.+\.)?)(\d{1,3})\.\d{1,3}\.conv1\.weight")


@dataclasses.dataclass(frozen=True)
class _Library:
    """What a library calls the layers.

    Attributes:
        block: Regular expression of a block's name, with the numbers of its
            stage and of itself.
        first: These two numbers of the very first block.
        stem: Dictionary from the names of layers before the blocks to the
            usual ones.
        layers: The same of a block's layers.
        strides: Whether its bottlenecks have their stride in the 3x3
            convolution, as ours, also where that is not grouped.
    """

    block: re.Pattern
    first: tuple[int, int]
    stem: dict[str, str]
    layers: dict[str, str]
    strides: bool = True

    def usual(self, name):
        """Returns an array's usual name; the same where it has no other.

        What is unknown in a block stays in it, so that it shows as a fault.
        """
        if match := self.block.search(name):
            layer, dot, variable = name[match.end() :].rpartition(".")
            stage, block = (
                int(number) - first
                for number, first in zip(
                    match.groups(), self.first, strict=True
                )
            )
            start = f"{name[: match.start()]}layer{stage + 1}.{block}."
            return f"{start}{self.layers.get(layer, layer)}{dot}{variable}"
        layer, _, variable = name.rpartition(".")
        for theirs, usual in self.stem.items():
            if f".{layer}".endswith(f".{theirs}"):
                return f"{layer.removesuffix(theirs)}{usual}.{variable}"
        return name


def _block(pattern):
    return re.compile(rf"(?<![^.]){pattern}\.")


def _layers(*names):
    usual = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    usual += ("downsample.0", "downsample.1", "se.fc1", "se.fc2")
    return dict(zip(names, usual, strict=False))


_LIBRARIES = (
    # https://github.com/prlz77/ResNeXt.pytorch, and with the usual shortcuts
    # https://github.com/google-research/augmix
    _Library(
        _block(r"stage_(\d)\.(?:stage_\d_bottleneck_)?(\d{1,3})"),
        (1, 0),
        {"conv_1_3x3": "conv1", "bn_1": "bn1"},
        _layers(
            *("conv_reduce", "bn_reduce", "conv_conv", "bn"),
            *("conv_expand", "bn_expand"),
            *("shortcut.shortcut_conv", "shortcut.shortcut_bn"),
        ),
    ),
    _Library(  # https://pypi.org/project/pytorchcv
        _block(r"features\.stage(\d)\.unit(\d{1,3})"),
        (1, 1),
        {
            "features.init_block.conv.conv": "conv1",
            "features.init_block.conv.bn": "bn1",
            "features.init_block.conv": "conv1",  # of its nets for CIFAR
            "features.init_block.bn": "bn1",
        },
        _layers(
            *("body.conv1.conv", "body.conv1.bn", "body.conv2.conv"),
            *("body.conv2.bn", "body.conv3.conv", "body.conv3.bn"),
            *("identity_conv.conv", "identity_conv.bn"),
            *("se.conv1", "se.conv2"),
        ),
        strides=False,
    ),
    _Library(  # https://github.com/facebookresearch/detectron2
        _block(r"res(\d)\.(\d{1,3})"),
        (2, 0),
        {"stem.conv1": "conv1", "stem.conv1.norm": "bn1"},
        _layers(
            *("conv1", "conv1.norm", "conv2", "conv2.norm"),
            *("conv3", "conv3.norm", "shortcut", "shortcut.norm"),
        ),
        strides=False,
    ),
    _Library(  # https://github.com/huggingface/transformers
        _block(r"encoder\.stages\.(\d)\.layers\.(\d{1,3})"),
        (0, 0),
        {
            "embedder.embedder.convolution": "conv1",
            "embedder.embedder.normalization": "bn1",
        },
        _layers(
            *(
                f"layer.{i}.{kind}"
                for i in range(3)
                for kind in ("convolution", "normalization")
            ),
            *("shortcut.convolution", "shortcut.normalization"),
        ),
    ),
    _Library(  # https://github.com/weiaicunzai/pytorch-cifar100
        _block(r"conv(\d)_x\.(\d{1,3})"),
        (2, 0),
        {"conv1.0": "conv1", "conv1.1": "bn1"},
        _layers(
            *(f"residual_function.{i}" for i in (0, 1, 3, 4, 6, 7)),
            *("shortcut.0", "shortcut.1"),
        ),
    ),
    _Library(  # https://pypi.org/project/pretrainedmodels: what was Lua's
        _block(r"([4-7])\.(\d{1,3})\.0"),
        (4, 0),
        {"0": "conv1", "1": "bn1"},
        _layers(
            *("0.0.0", "0.0.1", "0.0.3", "0.0.4", "0.1", "0.2"),
            *("1.0", "1.1"),
        ),
    ),
    _Library(  # https://github.com/hysts/pytorch_image_classification
        _block(r"stage(\d)\.block(\d{1,3})"),
        (1, 1),
        {"conv": "conv1", "bn": "bn1"},
        {"shortcut.conv": "downsample.0", "shortcut.bn": "downsample.1"},
    ),
    # https://github.com/facebookresearch/ClassyVision, its bottlenecks
    _Library(
        _block(r"blocks\.(\d)\.block\d-(\d{1,3})"),
        (0, 0),
        {"initial_block._module.0": "conv1", "initial_block._module.1": "bn1"},
        _layers(
            *(f"convolutional_block.{i}" for i in (0, 1, 3, 4, 6)),
            *("bn", "downsample.0", "downsample.1"),
            *("se.excitation.0", "se.excitation.2"),
        ),
    ),
    _Library(  # https://github.com/NVIDIA/DeepLearningExamples
        _block(r"layers\.(\d)\.(\d{1,3})"),
        (0, 0),
        {},
        {},
    ),
    _Library(  # https://github.com/open-mmlab/mmpretrain: SE, deep stem
        _block(r"layer(\d)\.(\d{1,3})"),
        (1, 0),
        {f"stem.{i}": f"conv1.{i}" for i in (0, 1, 3, 4, 6)}
        | {"stem.7": "bn1"},
        {"se_layer.conv1.conv": "se.fc1", "se_layer.conv2.conv": "se.fc2"},
    ),
    _Library(  # https://github.com/kuangliu/pytorch-cifar
        _block(r"layer(\d)\.(\d{1,3})"),
        (1, 0),
        {},
        {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1"},
    ),
)


def is_of_network(name):
    """Whether an array of this name is of a block of a network."""
    name = _WRAPPER.sub("", name)
    return any(library.block.search(name) for library in _LIBRARIES)


def strip(arrays):
    """Leaves the usual names, of one network and its classifier.

    DataParallel, torch.compile, averaged models, PyTorch Lightning and every
    larger model give the network a prefix: the name of its attribute.

    Args:
        arrays: Dictionary from a name in a file to an array.

    Returns:
        Dictionary from the name behind the prefix to an array. A warning
        names what is outside of the prefix and left out, which the only
        matrix is not: it is the classifier.

    Raises:
        Unread: If there are several networks.
    """
    arrays = unique(
        (_WRAPPER.sub("", name), array)
        for name, array in arrays.items()
        # The number of models in an average: `torch.optim.swa_utils`.
        if name.rpartition(".")[2] != "n_averaged"
    )
    arrays = unique(zip(_usual(arrays), arrays.values(), strict=True))
    prefixes = _prefixes(arrays, _STAGE)
    # A part of another network may have stages, too, but no such stem.
    prefixes = prefixes & _prefixes(arrays, _STEM) or prefixes
    if len(prefixes) > 1:
        one = max(prefixes)  # the least may be empty, which takes all
        names = ", ".join(repr(printable(p)) for p in sorted(prefixes)[:5])
        raise Unread(
            f"it holds {len(prefixes)} networks, whose names begin with "
            f"{names}",
            "Save the one you want in a file of its own, as `{name"
            f".removeprefix({printable(one)!r}): tensor for name, tensor in "
            f"state.items() if name.startswith({printable(one)!r})"
            "}`.",
        )
    if not prefixes:  # no network, or one without a stem and stages
        for _ in range(2):  # DataParallel around another one
            inside = _inside(arrays, "module.")
            arrays = inside if len(inside) == len(arrays) else arrays
        return arrays
    (prefix,) = prefixes
    inside = _inside(arrays, prefix)
    outside = {n: a for n, a in arrays.items() if not n.startswith(prefix)}
    top = {} if _matrices(inside) else _only_top(outside)
    if left_out := [name for name in outside if name not in top]:
        warnings.warn(
            f"The file's network has names that begin with '"
            f"{printable(prefix)}'. Left out are {len(left_out)} others: "
            f"{', '.join(map(printable, left_out[:5]))}.",
            stacklevel=2,
        )
    return top | inside


def has_layers(arrays, classes):
    """Tells whether arrays beside a classifier make a layer that computes.

    Not so a mean of pictures, as of Keras's `Normalization`, or the weights
    of classes in a loss of PyTorch's.

    Args:
        arrays: Dictionary from a name to an array.
        classes: Shape of the classifier's bias.
    """

    def computes(name):
        if "/" in name:
            return name.rpartition("/")[2] not in {"mean", "variance", "count"}
        variable = name.rpartition(".")[2]
        if variable == "weight":  # a normalisation may have no bias
            return arrays[name].shape != classes
        # The last is the power whose mean is taken in pooling ("GeM").
        return variable in {"bias", "running_mean", "p"}

    return any(map(computes, arrays))


def _inside(arrays, prefix):
    """Returns the arrays behind a prefix, without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _usual(arrays):
    """Returns the names of arrays as torchvision has them."""
    names = list(arrays)
    for library in _LIBRARIES:
        if any(map(library.block.search, names)):
            if not library.strides:
                _check_strides(arrays, library)
            names = list(map(library.usual, names))
    names = _with_stem(names, arrays)
    return _without_numbers(names, arrays)


def _check_strides(arrays, library):
    """Refuses bottlenecks that may have their strides in the first kernel.

    Raises:
        Unread: If there are such, which are not grouped: ResNeXt's never do.
    """
    shapes = {
        library.usual(name)[-len("conv2.weight") :]: array.shape
        for name, array in arrays.items()
        if library.block.search(name)
    }
    middle = shapes.get("conv2.weight", (0, 0))
    if "conv3.weight" in shapes and middle[:1] == middle[1:2]:
        raise Unread(
            "it is a ResNet, with names of a library whose ResNets stride "
            "elsewhere",
            "Use the weights of torchvision or timm.",
        )


def _with_stem(names, arrays):
    """Returns the usual names where a deep stem is beside the stages.

    Not so CLIP's, whose averages in place of strides no array shows: behind
    its stem the first block has four times the channels, elsewhere twice.
    """
    shapes = dict(zip(names, map(np.shape, arrays.values()), strict=True))
    usual = {}
    for prefix in _prefixes(names, _STAGE):
        stem = shapes.get(f"{prefix}bn3.weight")
        block = shapes.get(f"{prefix}layer1.0.bn3.weight")
        if stem and block != tuple(4 * channels for channels in stem):
            usual |= {
                f"{prefix}{n}": f"{prefix}{u}" for n, u in _BESIDE.items()
            }
    parts = [name.rpartition(".") for name in names]
    return ["".join((usual.get(n, n), dot, last)) for n, dot, last in parts]


def _without_numbers(names, arrays):
    """Returns the usual names where a network's parts have numbers.

    Raises:
        Unread: If the numbers show that no max pooling is before the blocks,
            but for the 3x3 convolution of networks for small pictures.
    """
    blocks = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    prefixes = {match[1] for match in blocks}
    stages = sorted({int(match[2]) for match in blocks})
    if len(prefixes) != 1 or stages[0] < 2:  # behind the stem, 0 and 1
        return names
    (prefix,) = prefixes
    kernel = arrays.get(f"{prefix}0.weight")
    is_large = kernel is not None and kernel.shape[2:] != (3, 3)
    if stages[0] < 4 and is_large:  # ReLU is 2, max pooling 3
        raise Unread(
            f"the number {stages[0]} of its first blocks leaves no place for "
            "a max pooling before them",
            "Use weights of a network that has one, with the numbers of "
            "`torch.nn.Sequential(*resnet.children())`.",
        )
    parts = {str(n): f"layer{i}" for i, n in enumerate(stages, 1)}
    parts |= {"0": "conv1", "1": "bn1"}
    usual = []
    for name in names:
        part, dot, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and part in parts:
            name = f"{prefix}{parts[part]}{dot}{rest}"
        usual.append(name)
    return usual


def _matrices(arrays):
    """Lists what may be classifiers: matrices that belong to no block."""
    return [
        name
        for name, array in arrays.items()
        if array.ndim == 2 and not _STAGE.search(name)
    ]


def _only_top(arrays):
    """Returns the only matrix and its bias, or nothing if there is more.

    Another layer may stand between it and the network.
    """
    if len(found := _matrices(arrays)) != 1:
        return {}
    layer = found[0].rpartition(".")[0]
    names = (f"{layer}.weight", f"{layer}.bias")
    rest = {name: a for name, a in arrays.items() if name not in names}
    if has_layers(rest, arrays[found[0]].shape[:1]):
        return {}
    return {name: arrays[name] for name in names if name in arrays}


def _prefixes(names, pattern):
    return {name[: m.end()] for name in names if (m := pattern.search(name))}
