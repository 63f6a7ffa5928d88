"""Fills models with weights: reads the file, maps its names, assigns."""

import dataclasses
import pathlib
import re

import keras
import numpy as np
from safetensors.numpy import save as serialise

from keras_resnext import copies
from keras_resnext.files import replacing
from keras_resnext.nested import sublayers
from keras_resnext.weights import checkpoints, sources, structure, values
from keras_resnext.weights.unread import printable

_TORCH_NAME = re.compile(
    # Cadene's nets have the stem in a layer of its own.
    r"(?:layer0\.|layer(?P<stage>[1-9]\d?)\.(?P<block>\d{1,3})\.)?"
    r"(?:(?P<kind>conv|bn)(?P<index>\d)|conv1\.(?P<stem>[01346])"
    r"|downsample\.(?P<down>[012])|(?:se|se_module)\.fc(?P<se>[12])"
    r"|(?P<top>fc|last_linear))"
    r"\.(?P<variable>weight|bias|running_mean|running_var)"
)
# Of a block, or in the stem, where a stage is called a stack: in KerasHub's
# ResNets, and in keras_cv_attention_models.
_STACK_NAME = re.compile(
    r"(?<![^/])(?:stack(?P<stage>\d)_block(?P<block>\d{1,3})_(?:deep_)?"
    r"(?P<layer>[^/]+)|(?P<stem>conv[123]|stem(?:_[123])?)(?=_(?:conv|bn)/))"
)
# What normalisations count with: PyTorch's, and that of
# https://github.com/vacancy/Synchronized-BatchNorm-PyTorch.
_OF_TRAINING = ("num_batches_tracked", "_running_iter")
_OF_TRAINING += ("_tmp_running_mean", "_tmp_running_var")
_LISTED = 10  # faults of a file, at most
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_VARIABLES = {
    "conv": {"weight": "kernel"},
    "bn": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
    "biased": {"weight": "kernel", "bias": "bias"},
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a file of weights holds.

    Attributes:
        path: The file.
        arrays: Dictionary from `layer/variable` to array.
        facts: What shows of the network, fields of an `Architecture`.
        crop: Side of the pictures that it is tested with, where a
            `Checkpoint` says it.
    """

    path: pathlib.Path
    arrays: dict
    facts: dict
    crop: int | None = None

    @property
    def classes(self):
        """Number of classes, or `None` where it does not show."""
        return self.facts.get("classes")

    @property
    def channels(self):
        """Number of channels of the pictures, 3 where it does not show."""
        shapes = {name: array.shape for name, array in self.arrays.items()}
        return structure.channels(shapes)


def read(source):
    """Reads a source's file; downloads it where needed.

    Args:
        source: What `sources.choose` returns, or `Stored`.

    Returns:
        `Stored`, or `None` for `None`.
    """
    if source is None or isinstance(source, Stored):
        return source
    path = sources.locate(source)
    arrays = checkpoints.read(path)
    named = _named_as_keras(arrays)
    facts = structure.describe({n: a.shape for n, a in named.items()})
    if facts:
        shapes = {n: a.shape for n, a in arrays.items()}
        facts |= structure.describe_pytorch(shapes)
        structure.refuse(facts, arrays, path)
        facts |= structure.describe_layers(checkpoints.layers(path))
        facts |= structure.describe_metadata(checkpoints.metadata(path))
        structure.require_backed(facts, path)
    if getattr(source, "hub", None):
        structure.check(facts, source)
    return Stored(path, named, facts, getattr(source, "crop", None))


def load(model, path):
    """Assigns the weights in a file to a model, all of them or none.

    Args:
        model: Model made by this package, with or without a top, or a model
            with such a network in it: the file is of all of it then.
        path: File in any format of `checkpoints.read`.

    Raises:
        ValueError: if an array is missing, unexpected, of another shape, or
            not of finite floating-point numbers; the message lists the faults
            and tells what network the file is of. Also if the file has
            weights of a layer that has not been built.
    """
    fill(model, read(pathlib.Path(path)))


def fill(model, stored):
    """Assigns what `read` returned to a model, as `load`."""
    variables = structure.variables(model)
    arrays = _renamed(stored.arrays, model, variables)
    _check_built(arrays, model)
    _check_names(arrays, variables, stored)
    if "predictions/kernel" not in variables:
        arrays = values.without_top(arrays, variables)
    else:
        arrays = values.with_top(arrays, variables)
        arrays = values.without_others(arrays, variables)
    _check(arrays, variables, model, stored)
    for name, variable in variables.items():
        variable.assign(arrays[name])
    for layer, _, kind in structure.adapted(model):  # as Keras does
        added = getattr(layer, f"lora_{kind}_b")
        added.assign(np.zeros(added.shape))


def save(model, path, dtype="float16"):
    """Writes a model's weights, named `layer/variable`, as `.safetensors`.

    What no array shows of the network, as `anti_aliased`, is in the metadata.
    What LoRA has learned is added to the kernels, as in Keras's own files.

    Args:
        model: Model made by this package, alone or inside of another one.
        path: File to write, whose name ends in .safetensors; it appears only
            when it is complete.
        dtype: Type of the numbers in the file, as NumPy names it: "float16",
            "bfloat16", "float32" or "float64". A variable with values beyond
            its range is written in its own, as are integers and bool.

    Raises:
        ValueError: if the name ends otherwise, its folder is not there, the
            type is another one, or Keras's `quantize` has changed the model.
        OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            "`path` must end in .safetensors, in a folder that is there. "
            f"Received: path='{path}'. Make the folder, or choose another "
            "name."
        )
    if _name_of(dtype) not in _DTYPES:
        raise ValueError(
            f"`dtype` must be one of {', '.join(_DTYPES)}. Received: dtype="
            f"{dtype!r}. Pass one of these names: weights are read only as "
            "such numbers."
        )
    copies.require_unquantised(
        model, "Save the weights before `quantize`, or the model as `.keras`."
    )
    found = structure.variables(model)
    for layer, name, kind in structure.adapted(model):
        found[f"{name}/{kind}"] = getattr(layer, kind)
    arrays = {
        name: _in_range(keras.ops.convert_to_numpy(v), dtype)
        for name, v in found.items()
    }
    with replacing(path) as part:
        part.write_bytes(serialise(arrays, structure.metadata(model)))


def _name_of(dtype):
    """Returns what NumPy calls a type, `None` if it does not know it."""
    try:
        return None if dtype is None else np.dtype(dtype).name
    except TypeError:
        return None


def _in_range(array, dtype):
    if array.dtype.kind in "iub":  # an index must not become the next one
        return array
    with np.errstate(over="ignore"):
        smaller = np.asarray(array, dtype, order="C")
    return smaller if np.isfinite(smaller).all() else array


def _renamed(arrays, model, variables):
    """Names what a `.weights.h5` only numbers after the model's layers."""
    if all("/vars/" in name for name in arrays):
        arrays = checkpoints.rename_keras_variables(arrays, _triples(model))
    known = {id(v): name for name, v in variables.items()}
    names = {
        f"{group or 'vars'}/{i}": known[id(v)]
        for group, layer, _ in structure.owners(model)
        # A layer's own come first among its weights.
        for i, v in enumerate(layer.weights)
        if id(v) in known
    }
    layers = {name.rpartition("/")[0] for name in variables}
    if "probs" in layers and "predictions" not in layers:  # `_named_as_keras`
        names |= {f"predictions/{n}": f"probs/{n}" for n in ("kernel", "bias")}
    return {names.get(name, name): array for name, array in arrays.items()}


def _triples(model):
    return [
        (
            type(layer).__name__,
            layer.name,
            _triples(layer)
            if isinstance(layer, keras.Model)
            else [v.name for v in layer.weights],
        )
        for layer in model.layers
    ]


def _named_as_keras(arrays):
    """Renames PyTorch's arrays and turns their axes; keeps all others."""
    named = {}
    for name, array in arrays.items():
        if name.endswith(_OF_TRAINING) or "/seed_generator/" in name:
            continue  # counters, dropout's state: inference uses neither
        match = _TORCH_NAME.fullmatch(name)
        if match:
            ours = _keras_name(array.ndim == 4, **match.groupdict())
            if ours not in named:  # else it is one too many
                name, array = ours, _keras_axes(array)
        named[name] = array
    if not any(name.startswith("predictions/") for name in named):
        # The classifier of keras-applications.
        named = {re.sub("^probs/", "predictions/", n): named[n] for n in named}
    return checkpoints.grouped_from_depthwise(_renamed_from_stacks(named))


# Of a stem of three convolutions: 0 and 1 are the first, with its norm.
_STEM = {"0": "conv1_1", "1": "conv1_1", "3": "conv1_2", "4": "conv1_2"}


def _keras_name(
    is_kernel, stage, block, kind, index, stem, down, se, top, variable
):
    layer = f"conv{int(stage) + 1}_block{int(block) + 1}" if stage else "conv1"
    if top:
        layer, kind = "predictions", "biased"
    elif se:
        layer += ("_se_reduce", "_se_expand")[int(se) - 1]
        kind = "biased"
    else:
        # A number in a sequence does not tell what it is, its shape does.
        kind = kind or ("conv" if is_kernel else "bn")
        if stem:
            layer = _STEM.get(stem, layer)
        elif stage:
            layer += f"_{index or 0}"
        elif index != "1":
            layer = f"conv{index}"
        layer += f"_{kind}"
    return f"{layer}/{_VARIABLES[kind].get(variable, variable)}"


_HUB_STEM = {"conv1": "conv1_1", "conv2": "conv1_2", "conv3": "conv1"}
_ATTENTION_STEM = {"stem_1": "conv1_1", "stem_2": "conv1_2"}
_ATTENTION_STEM |= {"stem_3": "conv1", "stem": "conv1"}


def _renamed_from_stacks(arrays):
    """Renames the arrays where a stage is called a stack; keeps all others.

    Sources: `ResNetBackbone` in `keras_hub/src/models/resnet`; `aotnet.py` of
    https://pypi.org/project/keras-cv-attention-models, which counts from 1.
    """
    first = int("stack1_block1_deep_1_conv/kernel" in arrays)
    stem = _ATTENTION_STEM if first else {}
    # CLIP's stem has three convolutions of these names as well, and averages.
    if {"conv3_conv/kernel", "stack0_block0_1_conv/kernel"} <= arrays.keys():
        stem = _HUB_STEM

    def ours(match):
        if match["stem"]:
            return stem.get(match["stem"], match[0])
        stage, block = (int(match[key]) - first for key in ("stage", "block"))
        layer = re.sub("^shortcut_", "0_", match["layer"]).replace("_GC_", "_")
        return f"conv{stage + 2}_block{block + 1}_{layer}"

    names = [_STACK_NAME.sub(ours, name) for name in arrays]
    return dict(zip(names, arrays.values(), strict=True))


def _keras_axes(array):
    """(out, in, height, width) to (height, width, in, out), or a transpose."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _check_built(arrays, model):
    """Refuses a model in which layers do not have their weights yet."""
    layers = {layer for name in arrays for layer in name.split("/")[:-1]}
    unbuilt = [
        layer.name
        for layer in sublayers(model)
        if not layer.built and layer.name in layers
    ]
    if unbuilt:
        raise ValueError(
            "The model must have been built. Received: "
            f"model={model.name!r} whose layers {unbuilt[:5]} have no weights "
            "yet, as the file has. Call the model on a picture first."
        )


def _check_names(arrays, variables, stored):
    """Refuses a file in which no array belongs to a layer of the model."""
    layers = {name.rpartition("/")[0] for name in variables}
    layers -= {"predictions", ""}
    found = {name.rpartition("/")[0] for name in arrays}
    if found & layers:
        return
    if several := _around(layers, found):
        raise ValueError(
            "The model must be one network, as the file is of one. Received: "
            f"several ({', '.join(several)}). Pass one of them, as by "
            f"`model.get_layer({several[0]!r})`."
        )
    if several := _around(found, layers):
        raise ValueError(
            "The file must be of one network, as the model is. Received: "
            f"weights='{stored.path}' of several "
            f"({', '.join(map(printable, several[:5]))}). Save the one you "
            "want in a file of its own, as by "
            "`model.get_layer(name).save(path)`."
        )
    names = ", ".join(map(printable, list(stored.arrays)[:5]))
    raise ValueError(
        "The names in a file must be torchvision's, timm's, Keras's, "
        "this package's, or of a library that docs/weights.md names. "
        f"Received: weights='{stored.path}' with {len(stored.arrays)} "
        f"arrays, none of a layer of the network ({names}). Name them as "
        "torchvision does (conv1.weight, layer1.0.conv1.weight, "
        "fc.weight), and save them again."
    )


def _around(layers, others):
    """Lists what is around those layers that are also among the others."""
    ways = [layer.rpartition("/") for layer in layers]
    return sorted(
        {around for around, _, own in ways if around and own in others}
    )


def _check(arrays, variables, model, stored):
    faults = values.faults(arrays, variables)
    facts = structure.describe_model(model)
    for field in facts.keys() & structure.UNSEEN:
        received = stored.facts.get(field, facts[field])
        if received != facts[field]:
            faults.append(f"{field}: {received!r}, not {facts[field]!r}")
    if faults:
        advice = _advice(stored.facts, facts)
        if "predictions/kernel" in variables.keys() - arrays:
            found = map(printable, sorted(values.matrices(arrays))[:5])
            advice += (
                " The classifier must be `fc`, `predictions`, or the only "
                "layer outside of the network, a matrix with a bias; found: "
                f"{', '.join(found) or 'none'}. To do without one, pass "
                "`include_top=False`."
            )
        raise ValueError(
            "The weights must match the network by name and shape and be "
            f"finite. Received: weights='{stored.path}' with {len(faults)} "
            f"fault{'s' * (len(faults) > 1)}. {advice} What does not fit"
            + f", the first {_LISTED} of them" * (len(faults) > _LISTED)
            + ":\n"
            + "\n".join(faults[:_LISTED])
        )


def _advice(received, required):
    """Says what network a file is of, if it is not the required one."""
    shared = received.keys() & required
    if all(received[field] == required[field] for field in shared):
        return "Build the network that the file was made for."
    fields = [f"{k}={v!r}" for k, v in received.items() if k != "classes"]
    names = structure.fitting(received) or [f"ResNeXt({', '.join(fields)})"]
    looks = f"It looks like {' or '.join(names)}"
    if "classes" not in received:
        return f"{looks}: build that network."
    return (
        f"{looks} with classes={received['classes']}: build that network, and "
        "for other classes use `keras_resnext.transfer.replace_top`."
    )
