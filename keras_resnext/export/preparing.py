"""Prepares what all formats need: pictures, preprocessing, classes."""

import collections.abc
import dataclasses
import functools
import math
import os
import pathlib

import keras
import numpy as np

from keras_resnext import pillow, preprocessing
from keras_resnext.export.folding import input_names, takes_images
from keras_resnext.export.formats import PICTURES, Job
from keras_resnext.registry import is_line, require, usual

_LEVELS = (0.0,) * 3, (1 / 255,) * 3  # mean and deviation: pixels as they are
_COMPARED = 32  # pictures of the calibration at most
_SIDE = 224  # pixels, where neither model nor checkpoint say
_MOST = (
    4e9  # bytes of one input's pictures for calibration: 6,600 of 224 pixels
)


def job(model, checkpoint, labels, top, calibration, max_pixels):
    """Returns what all formats need, the pictures' files, and notes.

    The job still has the model itself, and no precision but its own.
    """
    row, labels = _classes(model, checkpoint, labels)
    side = _side(model, row)
    usual_row = row or usual(side)
    inputs = functools.partial(_inputs, model, usual_row, side, max_pixels)
    samples, files, notes = inputs(PICTURES)
    if calibration is not None:
        calibration, files, notes = inputs(calibration)
        # Arrays alone say what range a model without a checkpoint takes.
        before = samples if row or files else {}
        samples = {
            name: np.concatenate([before.get(name, x[:0]), x[:_COMPARED]])
            for name, x in calibration.items()
        }
    job = Job(
        model=model,
        precision="float32",
        side=side,
        samples=samples,
        calibration=calibration,
        checkpoint=row,
        labels=labels,
        top=top,
        max_pixels=max_pixels,
    )
    return job, files, notes + _normalising(model, row)


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
    row = row_for(model.inputs[0], row)
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
    listed = isinstance(labels, list | tuple | np.ndarray)
    require(
        listed and len(labels) == classes,
        f"`labels` must name the model's {classes} classes",
        "Pass a list of names in the classes' order.",
        labels=f"{len(labels)} of them" if listed else labels,
    )
    require(
        all(isinstance(x, str) and is_line(x) for x in labels),
        "`labels` must be names of one line each",
        "Pass text without line breaks and control characters.",
        labels=labels,
    )
    return row, [str(label) for label in labels]


def _side(model, row):
    """Returns the longer side of the images to compare, in pixels."""
    if row is None:
        images = filter(takes_images, model.inputs)
        return max(n or _SIDE for x in images for n in x.shape[-3:-1])
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


def row_for(x, row):
    """Returns a checkpoint's row with the normalisation that an input wants.

    Args:
        x: An input of a model. One of integers takes pixels as they are, and
            the model normalises by itself.
        row: A `Checkpoint`.
    """
    if "int" not in x.dtype:
        return row
    mean, std = _LEVELS
    return dataclasses.replace(row, mean=mean, std=std)


def as_input(x, array):
    """Returns pictures of such a row as the numbers that an input takes."""
    array = np.rint(array) if "int" in x.dtype else array
    return array.astype(x.dtype, copy=False)


def _normalising(model, row):
    """Returns a note if pictures may be normalised twice."""
    kinds = keras.layers.Rescaling | keras.layers.Normalization
    layers = [x for x in model._flatten_layers() if isinstance(x, kinds)]
    if not layers or row is None or (row.mean, row.std) == _LEVELS:
        return ()
    return (
        "Pictures are normalised as the checkpoint says, and again by the "
        f"layer {layers[0].name}. If that is to do it alone, build the model "
        'with `keras.Input(shape, dtype="uint8")`.',
    )


def _inputs(model, row, side, max_pixels, pictures):
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
        arrays, files, notes = _made(model, row, side, max_pixels, pictures)
    wanted = [_shape(x, side) for x in model.inputs]
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
    inputs = {
        name: as_input(x, array)
        for name, array, x in zip(names, arrays, model.inputs, strict=True)
    }
    return inputs, files, notes


def _made(model, row, side, max_pixels, pictures):
    """Returns an array for each input, the pictures' files, and notes."""
    found, folder = _found(pictures)
    images = list(filter(takes_images, model.inputs))
    size = max(4 * math.prod(_shape(x, side)) for x in images)
    require(
        size * len(found) <= _MOST,
        f"`calibration` must be {_MOST // size:.0f} pictures of this size at "
        "most, as all of them are in memory",
        "Pass a part of them: for int8 a hundred do.",
        pictures=len(found),
    )
    made = {}
    for one in {row_for(x, row) for x in images}:
        transform = preprocessing.eval_transform(one, max_pixels)
        made[one], files, notes = _transformed(transform, found, folder)
    # Each input gets the picture after the one before it has.
    arrays = [
        _arranged(made[row_for(x, row)], i, _shape(x, side))
        if takes_images(x)
        else drawn(x, len(files))
        for i, x in enumerate(model.inputs)
    ]
    if len(images) < len(arrays):
        notes += (
            "Beside photographs there were random numbers, and zeros for "
            "integers. To compare with others, pass `calibration`, a "
            "dictionary with all inputs.",
        )
    return arrays, files, notes


def drawn(x, count):
    """Returns numbers for an input that takes no pictures.

    Zeros for integers, any other of which an embedding may not have.
    """
    shape = (count, *x.shape[1:])
    if "float" not in x.dtype:
        return np.zeros(shape)
    return np.random.default_rng(0).normal(size=shape)


def _shape(x, side):
    """Returns the shape of one input, where the model leaves it open, too."""
    return tuple(n or side for n in x.shape[1:])


def _arranged(pictures, first, shape):
    """Cuts pictures, and puts several together, for one input.

    Args:
        pictures: A list of arrays.
        first: Number of the one to begin with.
        shape: Of what the input takes, of one picture or several.
    """
    first %= len(pictures)
    pictures = np.stack(pictures[first:] + pictures[:first])
    *frames, height, width, channels = shape
    pictures = pictures[:, :height, :width]
    if channels != 3:
        pictures = pictures[..., np.arange(channels) % 3]
    for count in frames:  # each picture, and those that follow it
        pictures = np.stack(
            [np.roll(pictures, -i, axis=0) for i in range(count)], axis=1
        )
    return pictures


def _found(pictures):
    """Returns pictures, or the files in a folder, as a list; and the folder."""
    if not isinstance(pictures, str | os.PathLike):
        iterable = isinstance(pictures, collections.abc.Iterable)
        found = list(pictures) if iterable else []
        require(
            found,
            "`calibration` must be one picture or more",
            "Pass a folder, a list of paths, or an array.",
            calibration=pictures,
        )
        return found, None
    require(
        os.path.isdir(pictures),
        "`calibration` must be a folder of pictures",
        "Pass one picture as `[path]`; of .npz its array.",
        calibration=os.fspath(pictures),
    )
    return pillow.files_in(pathlib.Path(pictures)), os.fspath(pictures)


def _transformed(transform, found, folder):
    """Returns inputs, their pictures, and a note of what else was there."""
    made, kept, skipped = [], [], []
    for picture in found:
        try:
            made.append(transform(picture))
            kept.append(picture)
        except ValueError:
            if folder is None:
                raise
            skipped.append(picture.name)  # a README.md
    require(
        made,
        "`calibration` must be one picture or more",
        f"None of its {len(skipped)} files can be decoded: check the folder.",
        calibration=folder,
    )
    if not skipped:
        return made, kept, ()
    names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    note = (
        f"Skipped {len(skipped)} of {len(found)} files in {folder}, which are "
        f"not pictures that can be decoded: {names}."
    )
    return made, kept, (note,)
