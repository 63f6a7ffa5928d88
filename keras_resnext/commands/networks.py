"""Finds the network that a command line names, and runs it on pictures."""

import dataclasses
import functools
import json
import pathlib
import sys

import keras
import numpy as np

from keras_resnext import preprocessing, resnext, weights
from keras_resnext.commands import keras_files, random_weights
from keras_resnext.export import serving
from keras_resnext.export.formats import PICTURES
from keras_resnext.export.preparing import row_for
from keras_resnext.registry import (
    CHECKPOINTS,
    PREPROCESSING,
    Checkpoint,
    advise,
    check_preprocessing,
    find_architecture,
    is_line,
    resolve,
    usual,
)
from keras_resnext.weights import hub


def load(args, resize=None, crop=None, assume=False):
    """Returns a network and the preprocessing of its pictures.

    Args:
        args: What `arguments.add_network` has read.
        resize: Length of the shorter side, or `None` for the checkpoint's.
        crop: Side of what is cut out, or `None` for the checkpoint's.
        assume: Whether a file of which nothing is known gets the usual
            preprocessing, which is said on the error stream.

    Returns:
        `(model, checkpoint)`. The checkpoint is a row of the registry with
        these sizes, or `None` for a file of which nothing is known.

    Raises:
        ValueError: If there is no such network, or no such weights.
        OSError: If a file cannot be read.
    """
    # As pictures are, whatever Keras's own file of settings says.
    keras.config.set_image_data_format("channels_last")
    file, row = find(args)
    guessed = assume and row is None
    model = None
    if file is not None and file.suffix == ".keras":
        model = keras_files.load(file)
    if guessed:
        if model is not None:
            require_classifier(model, None)
        side = None if model is None else model.input_shape[1]
        row = assumed(args.model, side)
    if row is not None:
        sizes = {"resize": resize, "crop": crop}
        row = dataclasses.replace(row, **{k: v for k, v in sizes.items() if v})
    if guessed:
        print(
            f"Pictures get the preprocessing of {row.architecture}/{row.tag}, "
            f"{row.resize}/{row.crop} {row.interpolation}, as nothing else is "
            f"known of {file}; --checkpoint names another one.",
            file=sys.stderr,
        )
    if model is not None:
        return model, row and row_for(model.inputs[0], row)
    return _built(args, file, row), row


def _built(args, file, row):
    """Builds the network that is no `.keras` file."""
    shape = (row.crop, row.crop, 3) if row else None
    if args.model.startswith(hub.PREFIX):
        return resnext.from_hub(
            args.model,
            input_shape=shape,
            accept_noncommercial=args.accept_noncommercial,
        )
    architecture = find_architecture(args.model)
    random = args.weights == "random"
    if random:
        keras.utils.set_random_seed(0)
    if architecture.constructor is None:  # registered by somebody
        construct = functools.partial(resnext.build, architecture.name)
    else:
        construct = getattr(resnext, architecture.constructor)
    known = None if random else trained(file) if file else row
    model = construct(
        weights=None if random else args.weights,
        input_shape=shape,
        classes=args.classes or (known or architecture).classes,
        accept_noncommercial=args.accept_noncommercial,
    )
    if random:
        transform = preprocessing.eval_transform(row)
        images = np.stack([transform(picture) for picture in PICTURES])
        random_weights.fill(model, images)
    return model


def read_labels(file):
    """Returns the names in a file, or `None` for those of the checkpoint.

    Raises:
        ValueError: If it is no text in UTF-8.
        OSError: If it cannot be read.
    """
    if file is None:
        return None
    try:
        # Editors on Windows may put a mark at the start.
        return file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--labels must be a text file in UTF-8. Received: {file} "
            f"({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error


def require_classifier(model, row, option=None):
    """Checks that a network takes RGB pictures and gives a score a class.

    Args:
        model: What was loaded, which may be anybody's.
        row: The `Checkpoint` whose preprocessing its pictures get, or `None`.
        option: Which changes their size, if there is one.

    Raises:
        ValueError: If it does not, or takes pictures of another size.
    """
    inputs = getattr(model, "input_shape", None)
    outputs = getattr(model, "output_shape", None)
    if not all(isinstance(shape, tuple) for shape in (inputs, outputs)) or (
        (len(inputs), inputs[-1], len(outputs)) != (4, 3, 2)
        or outputs[1] is None
    ):
        raise ValueError(
            "A network that takes RGB pictures and gives one score for each "
            f"class is required. Received: {model.name} with inputs of "
            f"{inputs} and outputs of {outputs}. Pass another one."
        )
    sides = inputs[1:3]
    if len({*sides} - {None}) == 2:
        raise ValueError(
            "A network that takes square pictures is required. Received: "
            f"{model.name} with inputs of {inputs}. Pass another one."
        )
    if row is not None and any(s not in (None, row.crop) for s in sides):
        raise ValueError(
            "Pictures must have the size that the network takes. Received: "
            f"{row.crop} pixels for {sides[0]}x{sides[1]}. Pass "
            + (f"{option} {sides[0]}, or " if option else "")
            + "another --checkpoint."
        )


def find(args):
    """Returns the file of the network or its weights, and the checkpoint.

    Either may be `None`: weights with a tag have no file here, and of a file
    there may be no more to know. Without `args.weights`, it gets those that
    ship with the architecture, or `"imagenet"`.
    """
    source = _source(args)
    file = None if isinstance(source, Checkpoint) else source
    row = trained(file) if file else source
    if args.checkpoint is not None:
        named = preprocessing.eval_transform(args.checkpoint).checkpoint
        if row is None:  # of whose weights nothing is known
            return file, dataclasses.replace(named, licence="unknown")
        taken = {name: getattr(named, name) for name in PREPROCESSING}
        row = dataclasses.replace(row, **taken)
    return file, row


def _source(args):
    """Returns the `Checkpoint`, or the file, that the command line names."""
    of_hub = args.model.startswith(hub.PREFIX)
    if (of_hub or args.model.endswith(".keras")) and (
        args.weights is not None or args.classes is not None
    ):
        raise ValueError(
            "A .keras file, or a network on the hub, must be named alone: it "
            f"has its own weights and classes. Received: {args.model} with "
            f"--weights {args.weights} and --classes {args.classes}. Leave "
            "both out."
        )
    if of_hub:
        return weights.choose(None, args.model, args.accept_noncommercial)
    if args.model.endswith(".keras"):
        file = pathlib.Path(args.model)
        if not file.exists():
            raise FileNotFoundError(
                "The network must be a .keras file that is there, or an "
                f"architecture. Received: {file}. Check the path."
            )
        return file
    try:
        name = find_architecture(args.model).name
    except ValueError as error:
        advice = advise(args.model)
        if pathlib.Path(args.model).exists():
            advice = "Pass the .keras file, as model.keras in train.py's --out."
        raise ValueError(
            "The network must be a .keras file or an architecture. Received: "
            f"{args.model}. {advice}"
        ) from error
    rows = [row for row in CHECKPOINTS.values() if row.architecture == name]
    if args.weights is None:
        args.weights = next((r.tag for r in rows if r.file), "imagenet")
    if args.weights == "random":
        return rows[0] if rows else usual(256, 224)
    return weights.choose(name, args.weights, args.accept_noncommercial)


def assumed(name, side=None):
    """Returns the preprocessing of a file of which nothing is known.

    Args:
        name: Of the file or, of a file of weights, of its architecture.
        side: Of the pictures that the network takes, or `None` for any.

    Returns:
        A `Checkpoint`: of the architecture what `"imagenet"` stands for, else
        its first row, else a plain one. It does not say whose classes the
        network has.
    """
    rows = []
    if not name.endswith(".keras"):
        name = find_architecture(name).name
        rows = [row for row in CHECKPOINTS.values() if row.architecture == name]
    try:
        row = resolve(name, "imagenet")
    except ValueError:
        row = rows[0] if rows else usual(256, 224)
    if side not in (None, row.crop):
        row = dataclasses.replace(row, resize=side, crop=side)
    return dataclasses.replace(row, labels=())


def exported(path):
    """Returns what an export says of the pictures that an artifact takes.

    Args:
        path: Of the artifact, `pathlib.Path`; what is said is in it, or beside
            it.

    Returns:
        `(checkpoint, dtype)`: a `Checkpoint` whose preprocessing pictures get,
        with the names of the classes, and the pictures' type; `None` where
        nothing is said.

    Raises:
        ValueError: If no export can have said that.
    """
    file = serving.facts_of(path)
    if not file.exists():
        return None
    try:
        facts = json.loads(file.read_text("utf-8"))
        sides, labels = (facts["resize"], facts["crop"]), facts["labels"]
        row = dataclasses.replace(
            usual(*sides),
            classes=len(labels),
            labels=tuple(labels),
            **{name: facts[name] for name in ("interpolation", "mean", "std")},
        )
        dtype = keras.backend.standardize_dtype(facts.get("dtype"))
        if _can_be(sides, labels):
            return check_preprocessing(row), dtype
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # said below, as it may be anybody's
    raise ValueError(
        "The file of what pictures an artifact takes must be as an export "
        f"wrote it. Received: {file}, which is not. Export the network again."
    )


def trained(file):
    """Returns how `train.py` tested the network that it wrote into a file.

    It says so in result.json, beside the file.

    Returns:
        A `Checkpoint`, whose labels are the classes' names, its tag that of
        the folder, its licence that of the weights from which the training
        began; `None` where there is no such file, or what it says cannot be.
    """
    try:
        text = file.with_name("result.json").read_text("utf-8")
        result = json.loads(text)
        options, classes = result["options"], tuple(result["classes"])
        crop = options["test_size"] or options["sizes"][-1]
        resize = options["test_resize"] or crop
        architecture, start = options["model"], options["weights"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # It may be anybody's, as the network is.
    if not _can_be((resize, crop), (architecture, *classes)):
        return None
    try:
        licence = resolve(architecture, start, True).licence
    except ValueError:  # random ones, or anybody's
        licence = "unknown"
    return dataclasses.replace(
        usual(resize, crop),
        architecture=architecture,
        tag=file.absolute().parent.name,
        licence=licence,
        classes=len(classes),
        labels=classes,
    )


def _can_be(sides, names):
    """Tells whether a file may ask for such pictures and have such names."""
    return all(
        type(side) is int and 0 < side <= hub.MAX_SIDE for side in sides
    ) and all(isinstance(name, str) and is_line(name) for name in names)
