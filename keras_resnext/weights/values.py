"""Checks that the arrays of a file can be the weights of a model."""

import re
import warnings

import keras
import ml_dtypes  # noqa: F401 (tells NumPy of bfloat16)
import numpy as np

from keras_resnext.weights.torch_names import has_layers
from keras_resnext.weights.unread import printable

# What the names of a network's layers begin with, ours and PyTorch's.
_BACKBONE = re.compile(r"(?:conv|bn|layer)\d")


def matrices(arrays):
    """Lists the arrays that may be classifiers, whatever their names."""
    return [
        name
        for name, array in arrays.items()
        if array.ndim == 2 and not _BACKBONE.match(name)
    ]


def with_top(arrays, variables):
    """Names the classifier `predictions`, where it has a name of its own.

    Args:
        arrays: dictionary from `layer/variable` to array.
        variables: dictionary from `layer/variable` to the model's variable.

    Returns:
        The arrays. If the model has a layer `predictions` and the file none,
        the only matrix outside of the network, of as many features and with
        a bias, is its kernel; PyTorch's is turned. Another layer there may
        stand between the two: then there is no such kernel.
    """
    kernel, bias = "predictions/kernel", "predictions/bias"
    found = matrices(arrays)
    if kernel not in variables or kernel in arrays or len(found) != 1:
        return arrays
    name = found[0]
    array = arrays[name].T if name.endswith("weight") else arrays[name]
    other = re.sub(r"(weight|kernel)$", "bias", name)
    classes = arrays.get(other, array).shape
    if (variables[kernel].shape[0], *classes) != array.shape:
        return arrays
    rest = {n: a for n, a in arrays.items() if n not in (name, other)}
    others = {n: a for n, a in rest.items() if not _BACKBONE.match(n)}
    if has_layers(others, tuple(classes)):
        return arrays
    return rest | {kernel: array, bias: arrays[other]}


def without_others(arrays, variables):
    """Leaves out other layers of a Keras file that has the whole network.

    They are what prepares the pictures, or another output. A warning names
    them. What more a layer of the network has is none of these: the rest of
    it would mean something else without.
    """
    layers = {name.rpartition("/")[0] for name in variables}
    others = [
        name
        for name in arrays.keys() - variables
        if "/" in name
        and not _BACKBONE.match(name)
        and name.rpartition("/")[0] not in layers
    ]
    if not others or variables.keys() - arrays:
        return arrays
    names = ", ".join(map(printable, sorted(others)[:5]))
    warnings.warn(
        f"Left out are {len(others)} arrays of the file, of layers that are "
        f"not in the network ({names}). If they prepare the pictures, put "
        "such layers before it.",
        stacklevel=2,
    )
    return {n: a for n, a in arrays.items() if n not in others}


def without_top(arrays, variables):
    """Leaves out the classifier, whatever its name, and what else is no layer.

    Args:
        arrays: dictionary from `layer/variable` to array.
        variables: dictionary from `layer/variable` to the model's variable.

    Returns:
        The arrays of the model, of convolutions and of normalisations. A
        warning names the others, unless they are those of the layer
        `predictions`, or the file is not of this network.
    """
    kept = {
        name: array
        for name, array in arrays.items()
        if name in variables or _BACKBONE.match(name)
    }
    left_out = [
        name
        for name in arrays.keys() - kept
        if not name.startswith("predictions/")
    ]
    if left_out and not variables.keys() - kept:
        names = ", ".join(map(printable, sorted(left_out)[:5]))
        warnings.warn(
            f"Left out, as the network has no top: {len(left_out)} arrays of "
            f"the file ({names}).",
            stacklevel=2,
        )
    return kept


def faults(arrays, variables):
    """Compares what a file holds with what a model needs.

    Args:
        arrays: dictionary from `layer/variable` to array.
        variables: dictionary from `layer/variable` to Keras variable.

    Returns:
        List of a text for each fault: names that are missing or too many,
        other shapes, and numbers that are neither floating-point nor of the
        variable's kind, where that is integers or bool, that are not finite
        in the type of the variable, or negative variances.
    """
    missing, extra = variables.keys() - arrays, arrays.keys() - variables
    found = [f"missing: {name}" for name in sorted(missing)]
    found += [f"unexpected: {printable(name)}" for name in sorted(extra)]
    for name in sorted(arrays.keys() & variables):
        if fault := _fault(name, arrays[name], variables[name]):
            found.append(fault)
    return found


def _fault(name, array, variable):
    required = tuple(variable.shape)
    if array.shape != required:
        received = printable(str(array.shape))
        return f"shape of {name}: {received}, not {required}"
    dtype = keras.backend.standardize_dtype(variable.dtype)
    exact = "iu" if "int" in dtype else "b" if dtype == "bool" else ""
    if array.dtype.kind not in f"f{exact}":
        return f"not floating-point: {name}, but {array.dtype}"
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        return f"not finite: {name}, as {dtype}"
    if name.endswith("/moving_variance") and (array < 0).any():
        return f"negative: {name}"
    return None
