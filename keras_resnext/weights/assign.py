"""Fills models with weights: finds the file, maps its names, assigns."""

import os
import pathlib
import re

import keras
import numpy as np
from safetensors.numpy import save_file

from keras_resnext.registry import CHECKPOINTS, Checkpoint, resolve
from keras_resnext.weights import checkpoints, downloads, values

_TORCH_NAME = re.compile(
    r"(?:layer(?P<stage>\d)\.(?P<block>\d+)\.)?"
    r"(?:(?P<kind>conv|bn)(?P<index>\d)|downsample\.(?P<down>[01])|(?P<fc>fc))"
    r"\.(?P<variable>weight|bias|running_mean|running_var)"
)
_VARIABLES = {
    "conv": {"weight": "kernel"},
    "bn": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
    "fc": {"weight": "kernel", "bias": "bias"},
}


def choose(architecture, weights, accept_noncommercial=False):
    """Turns the `weights` argument of a constructor into a source.

    Args:
        architecture: Name of a row of `registry.ARCHITECTURES`.
        weights: `None`, a tag, a path, or a row of `registry.CHECKPOINTS`,
            which counts as its tag.
        accept_noncommercial: Whether rows with a non-commercial licence may
            be chosen.

    Returns:
        `None`, a `Checkpoint`, or a `pathlib.Path`.

    Raises:
        ValueError: if no such tag or file is known, or the licence needs
            `accept_noncommercial=True`.
    """
    if weights is None:
        return None
    if isinstance(weights, Checkpoint):
        # Nothing is downloaded that can't fit or has not been accepted.
        return resolve(architecture, weights.tag, accept_noncommercial)
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            "`weights` must be None, a tag, a path or a row of CHECKPOINTS. "
            f"Received: weights={weights!r}. Print the tags with "
            "`python -m keras_resnext list`."
        )
    name = os.fspath(weights)
    tag = name.lower()
    is_tag = tag == "imagenet" or (architecture, tag) in CHECKPOINTS
    if not is_tag and (os.path.exists(name) or re.search(r"[/\\.]", name)):
        return pathlib.Path(name)
    return resolve(architecture, name, accept_noncommercial)


def locate(source):
    """Returns the path of a source's file; downloads it where needed.

    Raises:
        FileNotFoundError: if a path does not exist.
        ConnectionError: if a checkpoint can't be downloaded.
        ValueError: if the downloaded file is not the expected one.
    """
    if source is None:
        return None
    if isinstance(source, Checkpoint):
        if source.file:
            return pathlib.Path(__file__).parents[1] / source.file
        return downloads.fetch(source.url, source.sha256)
    path = pathlib.Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            "`weights` must be None, the path of a file or, for the named "
            f"constructors, a tag. Received: weights='{path}', which is no "
            "file. Check the path, or print the tags with `python -m "
            "keras_resnext list`."
        )
    return path


def cardinality(source):
    """Reads `(groups, width_per_group)` off the kernels of a file.

    Returns:
        The pair for the first grouped convolution, whose kernel has the shape
        `(3, 3, width_per_group, groups * width_per_group)`, or `None` where
        the file does not name it.
    """
    if source is None:
        return None
    arrays = _named_as_keras(checkpoints.read(locate(source)))
    kernel = arrays.get("conv2_block1_2_conv/kernel")
    if kernel is None or kernel.ndim != 4 or not kernel.size:
        return None  # `load` says what is wrong
    width_per_group, width = kernel.shape[2:]
    return width // width_per_group, width_per_group


def load(model, path):
    """Assigns the weights in a file to a model, all of them or none.

    Args:
        model: Model made by this package, with or without a top.
        path: File in any format of `checkpoints.read`.

    Raises:
        ValueError: if an array is missing, unexpected, of another shape, or
            not of finite floating-point numbers; the message lists them.
    """
    layers = [
        (type(layer).__name__, layer.name, [v.name for v in layer.weights])
        for layer in model.layers
    ]
    arrays = _named_as_keras(checkpoints.read(path, layers))
    variables = _variables(model)
    if "predictions/kernel" not in variables:
        arrays = values.without_top(arrays)
    _check(arrays, variables, path)
    for name, variable in variables.items():
        variable.assign(arrays[name])


def save(model, path, dtype="float16"):
    """Writes a model's weights, named `layer/variable`, as `.safetensors`.

    Args:
        model: Model made by this package.
        path: File to write; it appears only when it is complete.
        dtype: Type of the numbers in the file; a variable with values beyond
            its range is written in its own.
    """
    arrays = {
        name: _in_range(keras.ops.convert_to_numpy(v), dtype)
        for name, v in _variables(model).items()
    }
    partial = pathlib.Path(f"{path}.part")
    try:
        save_file(arrays, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _in_range(array, dtype):
    with np.errstate(over="ignore"):
        smaller = np.ascontiguousarray(array, dtype)
    return smaller if np.isfinite(smaller).all() else array


def _variables(model):
    """Returns the weights by name; `v.path` would have name scopes in it.

    Unlike the variables, they leave out the random states of dropout.
    """
    return {
        f"{layer.name}/{v.name}": v
        for layer in model.layers
        for v in layer.weights
    }


def _named_as_keras(arrays):
    """Renames PyTorch's arrays and turns their axes; keeps all others."""
    named = {}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked") or "/seed_generator/" in name:
            continue  # a counter, dropout's state: inference uses neither
        match = _TORCH_NAME.fullmatch(name)
        if match:
            name, array = _keras_name(**match.groupdict()), _keras_axes(array)
        named[name.replace("probs/", "predictions/")] = array
    return checkpoints.grouped_from_depthwise(named)


def _keras_name(stage, block, kind, index, down, fc, variable):
    if fc:
        return f"predictions/{_VARIABLES['fc'].get(variable)}"
    kind = kind or ("conv", "bn")[int(down)]
    layer = f"conv{index}"
    if stage:
        layer = f"conv{int(stage) + 1}_block{int(block) + 1}_{index or 0}"
    return f"{layer}_{kind}/{_VARIABLES[kind].get(variable, variable)}"


def _keras_axes(array):
    """(out, in, height, width) to (height, width, in, out), or a transpose."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _check(arrays, variables, path):
    faults = values.faults(arrays, variables)
    if faults:
        raise ValueError(
            "The weights must match the network by name and shape and be "
            f"finite. Received: weights='{path}' with {len(faults)} faults. "
            "Build the network, with the `classes`, that the file was made "
            "for. The faults are\n" + "\n".join(faults)
        )
