"""Prepares what all formats need: pictures, preprocessing, classes."""

import collections.abc
import dataclasses
import os
import pathlib

import numpy as np

from keras_resnext import pillow, preprocessing
from keras_resnext.arguments import require
from keras_resnext.export.folding import input_names
from keras_resnext.export.formats import PICTURES, Job
from keras_resnext.registry import usual

# Of a checkpoint's row, for models that normalise by themselves.
_LEVELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
_COMPARED = 32  # pictures at most, beside the packaged ones
_SIDE = 224  # pixels, where neither model nor checkpoint say


def job(model, checkpoint, labels, top, calibration, max_pixels):
    """Returns what all formats need, the pictures' files, and notes.

    The job still has the model itself, and no precision but its own.
    """
    row, labels = _classes(model, checkpoint, labels)
    side = _side(model, row)
    transform = _transform(model, row, side, max_pixels)
    samples, files, notes = _inputs(model, transform, PICTURES, side)
    if calibration is not None:
        calibration, files, notes = _inputs(model, transform, calibration, side)
        samples = {
            name: np.concatenate([x, calibration[name][:_COMPARED]])
            for name, x in samples.items()
        }
    job = Job(
        model,
        "float32",
        side,
        samples,
        calibration,
        row,
        labels,
        top,
        max_pixels,
    )
    return job, files, notes


def _classes(model, checkpoint, labels):
    """Returns the checkpoint and the classes' names for `serving_bytes`."""
    if checkpoint is None:
        require(
            labels is None,
            "`labels` needs a `checkpoint`, whose preprocessing pictures get",
            "Pass the one from which the model was made.",
            checkpoint=checkpoint,
        )
        return None, None
    require(
        len(model.inputs) == 1,
        "A model with one input of pictures is required with a `checkpoint`",
        "Leave it out: the artifact takes all inputs by their names.",
        inputs=input_names(model),
    )
    row = preprocessing.eval_transform(checkpoint).checkpoint
    if _takes_levels(model):
        row = dataclasses.replace(row, **_LEVELS)
    shape = tuple(model.outputs[0].shape)
    require(
        len(shape) == 2 and len(model.outputs) == 1,
        "A model of classes is required with a `checkpoint`",
        "Leave it out to export features.",
        output_shape=shape,
    )
    require(
        row.crop_mode == "center",
        "An artifact cuts the centre out of a picture",
        "Pass `dataclasses.replace(checkpoint, crop_mode='center')`.",
        crop_mode=row.crop_mode,
    )
    classes = shape[1]
    if labels is None:
        labels = preprocessing.class_names(row, classes)
    require(
        labels is not None and len(labels) == classes,
        f"`labels` must name the model's {classes} classes",
        "Pass a list of names in the classes' order.",
        number_of_labels=None if labels is None else len(labels),
    )
    require(
        all("\n" not in label for label in labels),
        "`labels` must be names of one line each",
        "Remove the line breaks.",
        labels=labels,
    )
    return row, list(labels)


def _side(model, row):
    """Returns the longer side of the images to compare, in pixels."""
    if row is None:
        return max(n or _SIDE for x in model.inputs for n in x.shape[-3:-1])
    *sides, channels = model.inputs[0].shape[-3:]
    require(
        all(side in (None, row.crop) for side in sides)
        and channels == 3
        and len(model.inputs[0].shape) == 4,
        f"The model must take images of {row.crop}x{row.crop} pixels and 3 "
        "channels, as the checkpoint's preprocessing makes them",
        "Build it with this `input_shape`, or pass a `dataclasses.replace` of "
        "the checkpoint's row with another `resize` and `crop`.",
        input_shape=tuple(model.inputs[0].shape[1:]),
    )
    return row.crop


def _takes_levels(model):
    """Tells whether a model's inputs are integers, so pixels as they are."""
    return "int" in model.inputs[0].dtype


def _transform(model, row, side, max_pixels):
    """Returns the checkpoint's preprocessing, or ImageNet's usual one."""
    row = row or usual(side)
    if _takes_levels(model):
        row = dataclasses.replace(row, **_LEVELS)
    return preprocessing.eval_transform(row, max_pixels)


def _inputs(model, transform, pictures, side):
    """Returns inputs by their names, the pictures, and notes."""
    names = input_names(model)
    files, notes = (), ()
    if isinstance(pictures, collections.abc.Mapping):
        arrays = [
            np.asarray(pictures[name]) if name in pictures else None
            for name in names
        ]
    elif isinstance(pictures, np.ndarray):
        arrays = [pictures]
    else:
        made, files, notes = _transformed(transform, pictures)
        made = np.stack(made)
        # Each input gets the picture after the one before it has.
        arrays = [
            _arranged(np.roll(made, -i, axis=0), x, side)
            for i, x in enumerate(model.inputs)
        ]
    wanted = [tuple(n or side for n in x.shape[1:]) for x in model.inputs]
    shapes = [np.shape(array)[1:] for array in arrays]
    require(
        shapes == wanted and len(set(map(len, arrays))) == 1,
        f"`calibration` must be inputs {wanted}, as many of each",
        "Pass what `model.predict` takes, by the names of the inputs if there "
        "are several, or paths of pictures.",
        calibration_shapes=shapes,
    )
    require(
        arrays[0].size and all(np.isfinite(array).all() for array in arrays),
        "`calibration` must be one picture or more, of finite numbers",
        "Check what makes the arrays.",
        calibration=f"{len(arrays[0])} of them",
    )
    if _takes_levels(model):
        arrays = [np.rint(array) for array in arrays]
    inputs = {
        name: array.astype(x.dtype)
        for name, array, x in zip(names, arrays, model.inputs, strict=True)
    }
    return inputs, files, notes


def _arranged(pictures, x, side):
    """Cuts pictures, and puts several together, for one input."""
    *frames, height, width, channels = (n or side for n in x.shape[1:])
    pictures = pictures[:, :height, :width, np.arange(channels) % 3]
    for count in frames:  # each picture, and those that follow it
        pictures = np.stack(
            [np.roll(pictures, -i, axis=0) for i in range(count)], axis=1
        )
    return pictures


def _transformed(transform, pictures):
    """Returns inputs, their pictures, and a note of what else was there."""
    if not isinstance(pictures, (str, os.PathLike)):
        iterable = isinstance(pictures, collections.abc.Iterable)
        kept = list(pictures) if iterable else []
        require(
            kept,
            "`calibration` must be one picture or more",
            "Pass a folder, a list of paths, or an array.",
            calibration=pictures,
        )
        return [transform(picture) for picture in kept], kept, ()
    made, kept, skipped = [], [], []
    require(
        os.path.isdir(pictures),
        "`calibration` must be a folder of pictures",
        "Pass one picture as `[path]`; of .npz its array.",
        calibration=os.fspath(pictures),
    )
    for path in pillow.files_in(pathlib.Path(pictures)):
        try:
            made.append(transform(path))
            kept.append(path)
        except ValueError:  # a README.md
            skipped.append(path.name)
    require(
        made,
        "`calibration` must be one picture or more",
        f"None of its {len(skipped)} files can be decoded: check the folder.",
        calibration=os.fspath(pictures),
    )
    if not skipped:
        return made, kept, ()
    names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    return (
        made,
        kept,
        (
            f"Skipped {len(skipped)} of {len(made) + len(skipped)} files in "
            f"{pictures}, which are not pictures that can be decoded: {names}.",
        ),
    )
