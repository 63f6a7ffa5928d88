"""Checks what can be exported, and whereto, before anything is done."""

import collections.abc
import importlib
import re

import keras

from keras_resnext import copies
from keras_resnext.export import serving
from keras_resnext.export.folding import (
    input_names,
    output_names,
    takes_images,
)
from keras_resnext.export.formats import FORMATS
from keras_resnext.registry import require, require_count

# Both are written as one message of protobuf or flatbuffers, from float32 in
# every precision. A message ends at 2 GiB, and holds more than weights.
_LIMITED = ("onnx", "litert")
_LIMIT = 2_000_000_000  # bytes


def check_format(format, precision):
    """Checks that there is such a format, with all that it needs.

    Raises:
        ValueError: If there is none.
        ImportError: If a package is not installed.
    """
    require(
        format in FORMATS,
        f"`format` must be one of {', '.join(FORMATS)}",
        "Choose the one of your runtime.",
        format=format,
    )
    precisions = FORMATS[format].precisions
    require(
        precision in precisions,
        f"`precision` must be one of {', '.join(precisions)} for {format}",
        "Choose one of them, or another format.",
        precision=precision,
    )
    if keras.backend.backend() != "tensorflow":
        return  # a process of its own does this
    packages = FORMATS[format].packages
    if precision == "int8":
        packages += FORMATS[format].quantizer
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"The package {package} is required for this format. "
                f"Received: format={format!r}, precision={precision!r} "
                f"({error}). Run `pip install "
                '".[export]"` in a checkout.'
            ) from error


def check_arguments(model, format, precision, calibration, top):
    """Checks the arguments that need no file."""
    check_format(format, precision)
    require(
        precision != "int8" or calibration is not None,
        "int8 needs pictures that show the range of every feature map",
        "Pass a folder of a hundred pictures or more.",
        calibration=calibration,
    )
    require_count("Leave it out for 5.", top=top)
    check_model(model, format)
    named = isinstance(calibration, collections.abc.Mapping)
    require(
        precision != "int8" or named or all(map(takes_images, model.inputs)),
        "int8 needs to know what comes in beside the images",
        "Pass a dictionary of arrays, all inputs by their names.",
        calibration=type(calibration).__name__,
    )


def check_model(model, format):
    """Checks what of a model shows without converting it."""
    require(
        isinstance(model, keras.Model) and getattr(model, "inputs", None),
        "`model` must be a functional or sequential Keras model",
        "Call a subclassed one on a `keras.Input`, and make a `keras.Model` "
        "of both.",
        model=type(model).__name__,
    )
    shapes = [tuple(x.shape) for x in model.inputs]
    others = [x.shape for x in model.inputs if not takes_images(x)]
    require(
        len(others) < len(shapes) and not any(None in s[1:] for s in others),
        "The model must take images, or as many images each, and beside them "
        "only what has one shape",
        "Export the part that takes images.",
        input_shapes=shapes,
    )
    require(
        all(re.match("b?float|u?int|bool", x.dtype) for x in model.inputs),
        "The model's inputs must be numbers",
        "Export the part that takes decoded images.",
        input_types=[x.dtype for x in model.inputs],
    )
    names = input_names(model)
    require(
        format not in ("saved_model", "litert")
        or all(re.fullmatch(r"[A-Za-z]\w*", n, re.ASCII) for n in names),
        f"Several inputs must have names of letters, digits and _ for {format}",
        "Call the model on `keras.Input(shape, name=...)`.",
        names=names,
    )
    outputs = output_names(copies.graph(model))
    require(
        len({*outputs}) == len(outputs),
        "Outputs must have different names, of keys and places joined by _",
        "Return a dictionary with other keys.",
        names=outputs,
    )
    names += outputs
    require(
        format != "onnx" or len({*names}) == len(names),
        "Inputs and outputs must have different names for onnx",
        "Return a dictionary with other keys.",
        names=names,
    )
    size = 4 * model.count_params()
    require(
        format not in _LIMITED or size < _LIMIT,
        f"Weights of less than {_LIMIT / 1e9:.0f} GB are required for {format}",
        'Choose "openvino" or "saved_model", which have no limit.',
        weights_in_bytes=size,
    )
    formats = {
        getattr(layer, "data_format", None) for layer in model._flatten_layers()
    }
    require(
        "channels_first" not in formats,
        "The model must have its channels last, as all runtimes on CPUs do",
        "Build it after `keras.config.set_image_data_format("
        "'channels_last')`; the weights are the same.",
        data_format="channels_first",
    )


def check_ending(path, format):
    """Checks that no path, `pathlib.Path`, has the ending of other formats.

    Raises:
        ValueError: If it has: what is at such a name would not be that.
    """
    for name, kind in FORMATS.items():
        require(
            name == format or not kind.ending or path.suffix != kind.ending,
            f"`path` must not end in {kind.ending} for {format}",
            f'Pass format="{name}" (--format {name} on the command line), or '
            "choose another name.",
            path=str(path),
        )


def destination(path, format, version):
    """Returns what `path` stands for, if that may be written."""
    check_ending(path, format)
    if version is not None:
        require_count("Leave it out for 1.", version=version)
    if format == "saved_model":
        final = path / str(version or 1)
        if final.exists():
            free = max(serving.versions(path)) + 1
            raise FileExistsError(
                "A new version is required: a server may be reading this "
                f"one. Received: path='{final}', which exists. Pass "
                f"version={free} (--version {free} on the command line)."
            )
        return final
    if format == "openvino":
        own = {"model.xml", "model.bin", serving.PREPROCESSING}
        taken = path.is_file() or (
            path.is_dir() and not {p.name for p in path.iterdir()} <= own
        )
    else:
        taken = path.is_dir()
    if taken:
        kind = "file" if path.is_file() else "folder of other things"
        raise FileExistsError(
            f"`path` must not be a {kind} for {format}. Received: "
            f"path='{path}'. Choose a new name."
        )
    facts = serving.facts_of(path)
    if format != "openvino" and facts.exists() and not serving.is_facts(facts):
        raise FileExistsError(
            "The file beside an artifact, which says what its inputs are, must "
            f"not be anybody's. Received: path='{path}' with '{facts}', which "
            "this package has not written. Move that, or choose a new name."
        )
    return path
