"""Ships models: every format, each loaded again and compared."""

import collections.abc
import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import statistics
import time

import keras
import numpy as np

from keras_resnext import copies, pillow, preprocessing, processor
from keras_resnext.arguments import require
from keras_resnext.export import elsewhere, fastest, serving
from keras_resnext.export.folding import (
    folded,
    input_names,
    output_names,
    wrapped,
)
from keras_resnext.export.formats import FORMATS, PICTURES, Job, one_by_one
from keras_resnext.export.swap import moved, writing
from keras_resnext.pillow import MAX_PIXELS
from keras_resnext.registry import usual

# Of a checkpoint's row, for models that normalise by themselves.
_LEVELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
_COMPARED = 32  # pictures at most, beside the packaged ones
_SIDE = 224  # pixels, where neither model nor checkpoint say
# Greatest difference from the model, relative to its greatest output. In
# float32 our networks stay below 1e-5 here; but how much is rounded depends on
# the processor and grows with the depth, while what is wrong differs by more
# than 1e-4. Eight bits may round every score of an untrained network away.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.5}

# Both are written as one message of protobuf or flatbuffers, from float32 in
# every precision. A message ends at 2 GiB, and holds more than weights.
_LIMITED = ("onnx", "litert")
_LIMIT = 2_000_000_000  # bytes


@dataclasses.dataclass(frozen=True)
class Report:
    """What has been written, and what its own runtime made of it.

    Attributes:
        path: The artifact, `pathlib.Path`.
        runtime: Name and version of the runtime that loaded it.
        precision: Type in which it computes or stores its weights.
        size: Of all its files, in bytes.
        max_difference: From the Keras model's outputs, relative to the
            greatest of them.
        agreement: Share of pictures whose best class is the Keras model's.
        pictures: Number of pictures compared.
        latency: Median for one picture on this machine, in milliseconds.
        notes: Sentences on what has been left out.
    """

    path: pathlib.Path
    runtime: str
    precision: str
    size: int
    max_difference: float
    agreement: float
    pictures: int
    latency: float
    notes: tuple[str, ...] = ()

    def __str__(self):
        """Returns the report as one line, and one for each note."""
        line = (
            f"{self.path}: {self.runtime}, {self.precision}, "
            f"{self.size / 1e6:.1f} MB, difference {self.max_difference:.1e}, "
            f"top-1 agreement {self.agreement:.1%} of {self.pictures} "
            f"pictures, {self.latency:.1f} ms a picture"
        )
        return "\n".join((line, *self.notes))


def export(
    model,
    path,
    format="saved_model",
    precision=None,
    *,
    checkpoint=None,
    labels=None,
    top=5,
    calibration=None,
    version=None,
    tolerance=None,
    max_pixels=MAX_PIXELS,
    batch=1,
    max_loss=0.5,
):
    """Writes a model for a runtime, and proves that it runs there.

    Batch normalisation is folded into the convolutions. The artifact is
    written beside its place, loaded by its own runtime and compared with
    `model` on photographs; only then it is moved in. If anything fails
    before, what was at `path` stays as it was.

    On JAX and PyTorch a process of its own does this on TensorFlow, which is
    required; the model has to be one that Keras can save and load.

        export(model, "served/resnext50", checkpoint="resnext50_32x4d")
        export(model, "resnext50.tflite", "litert", "int8",
               checkpoint="resnext50_32x4d", calibration="pictures/")

    Args:
        model: Keras model of images, `(batch, height, width, channels)`, of
            variable batch and sizes, or `(batch, pictures, height, width,
            channels)`. The input is named `images`; several, as of a network
            that compares pictures, have the names of their `keras.Input`.
            Outputs are named `outputs`; of several, those in a dictionary
            have its keys, those in a list `outputs_0`, `outputs_1`...
            Integers as inputs are levels of 0 to 255.
        path: Where to write. `"saved_model"`: the servable's folder, of which
            `path/1/` is the first version. `"openvino"`: a folder, for
            `model.xml` and `model.bin`. Else a file. A file, or a folder
            that OpenVINO wrote, is replaced. `"fastest"`: a folder, in which
            the kept one is `saved_model/`, `model.onnx`, `model.tflite` or
            `openvino/`.
        format: `"saved_model"`, `"onnx"`, `"litert"` or `"openvino"`; or
            `"fastest"`, which writes what this machine can run, times all of
            them in turns, prints a table, and keeps the fastest that agrees
            with the model.
        precision: `"float32"`, the default; `"float16"`; `"bfloat16"`, for
            `"saved_model"`; `"int8"`, for the others. Inputs have the model's
            type; outputs are float32, or integers where the model's are. For
            `"fastest"`, a list of those allowed, by default float32, bfloat16
            and, with `calibration`, int8.
        checkpoint: What `keras_resnext.eval_transform` takes. A SavedModel
            gets the signature `serving_bytes` with this preprocessing: see
            `keras_resnext.export.serving.save`. Also prepares `calibration`;
            without it, ImageNet's usual preprocessing does.
        labels: Names of the classes for `serving_bytes`. By default those of
            the checkpoint, ImageNet or CIFAR-10, if the model has as many
            outputs.
        top: Number of classes that `serving_bytes` returns.
        calibration: Pictures that are like those to come: a folder, a list of
            paths, or an array of the model's inputs, of several a dictionary
            by their names. `"int8"` needs them, a hundred or more; up to 32
            are compared.
        version: Of the SavedModel, a positive integer; by default 1, and
            always the next one for `"fastest"`.
        tolerance: Greatest difference from the model's outputs, relative to
            the greatest one, or `None` for that of the precision: 1e-4 for
            float32, 0.02 for float16, 0.1 for bfloat16, 0.5 for int8. Of
            several outputs the worst counts; of integers, the share of those
            that differ.
        max_pixels: Greatest number of pixels of a picture, for `serving_bytes`
            and `calibration`: see `keras_resnext.eval_transform`. While it is
            decoded, `serving_bytes` takes 6 bytes for each, of a GIF 9.
        batch: For `"fastest"`, the number of pictures at once to time.
        max_loss: For `"fastest"`, the percentage of the pictures of
            `calibration` that may be lost: of those right, if they are in
            folders with the classes' names; else of those whose best class
            is the model's.

    Returns:
        A `Report`, which is printed, too.

    Raises:
        ValueError: If an argument is out of its range, if the model cannot be
            exported, or if the artifact's outputs are not the model's.
        FileExistsError: If that version, or something else, is at `path`.
        ImportError: If the format needs a package that is not installed.
        OSError: If `path` cannot be written.
    """
    options = {
        "checkpoint": checkpoint,
        "labels": labels,
        "top": top,
        "calibration": calibration,
        "max_pixels": max_pixels,
    }
    if keras.backend.backend() != "tensorflow":
        _check_model(model, "saved_model")
        if checkpoint is not None:  # its table may have more rows here
            row = preprocessing.eval_transform(checkpoint).checkpoint
            options["checkpoint"] = row
        options |= {"path": path, "format": format, "precision": precision}
        options |= {"version": version, "tolerance": tolerance}
        options |= {"batch": batch, "max_loss": max_loss}
        return elsewhere.export(model, options)
    if format == "fastest":
        require(
            version is None,
            '`version` must be left out for "fastest", which takes the next',
            "Choose a format, or rename the folder.",
            version=version,
        )
        precisions = fastest.checked(precision, batch, max_loss)
        return _fastest(
            model, path, precisions, batch, max_loss, tolerance, options
        )
    precision = precision or "float32"
    _check_arguments(model, format, precision, calibration, top)
    final = destination(pathlib.Path(path), format, version)
    job, _, notes = _job(model, **options)
    expected = _expected(model, job.samples)
    report = _export(job, final, format, precision, tolerance, expected)
    report = dataclasses.replace(report, notes=notes + report.notes)
    print(report)
    return report


def _fastest(model, path, precisions, batch, max_loss, tolerance, options):
    """Chooses among all formats; the arguments are those of `export`."""
    calibration, top = options["calibration"], options["top"]
    if calibration is None:
        precisions = [p for p in precisions if p != "int8"]
    _check_arguments(model, "saved_model", "float32", calibration, top)
    for one, those in (("input", model.inputs), ("output", model.outputs)):
        require(
            len(those) == 1,
            f'"fastest" takes models with one {one}',
            "Choose a format.",
            number=len(those),
        )
    for name, kind in FORMATS.items():
        if name != "saved_model":  # gets a new version
            destination(pathlib.Path(path, kind.file), name, None)
    job, files, notes = _job(model, **options)
    for note in notes:
        print(note)
    compared = expected = _expected(model, job.samples)
    if calibration is not None:
        expected = _expected(model, job.calibration)

    def write(path, format, precision):
        _check_arguments(model, format, precision, calibration, top)
        path.parent.mkdir(parents=True, exist_ok=True)
        final = destination(path, format, None)
        return _export(job, final, format, precision, tolerance, compared)

    return fastest.choose(
        write,
        pathlib.Path(path),
        (job.calibration or job.samples)["images"],
        *expected,
        fastest.labels_of(calibration, files, job.labels),
        batch,
        max_loss,
        precisions,
    )


def _job(model, checkpoint, labels, top, calibration, max_pixels):
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


def _export(job, final, format, precision, tolerance, expected):
    """Writes and proves one artifact, and says nothing.

    Args:
        job: What `_job` returned.
        final: What `destination` returned.
        format: As for `export`.
        precision: As for `export`.
        tolerance: As for `export`.
        expected: What the model makes of the job's samples.

    Returns:
        Its `Report`.
    """
    kind = FORMATS[format]
    dtype = precision if format == "saved_model" else "float32"
    new = folded(job.model, dtype, bits=format == "saved_model")
    job = dataclasses.replace(job, model=new, precision=precision)
    notes = ()
    if precision == "bfloat16" and not processor.computes_bfloat16():
        notes = (
            "bfloat16 is emulated here, by a processor with "
            f"{processor.instruction_set()}; it is fast with AMX or AVX-512's.",
        )
    if tolerance is None:
        tolerance = _TOLERANCE[precision]
    # A version that another process has written meanwhile may serve already.
    with moved(final, new=format == "saved_model") as part:
        with writing(final), _converting(format, new):
            notes += kind.write(job, part) or ()
        with _converting(format, new):
            runtime, run = kind.load(part)
            outputs = run(job.samples)  # all at once: the batch is variable
        facts = _compare(job, runtime, outputs, expected, tolerance)
        latency = _latency(run, job.samples)
        if job.checkpoint and format == "saved_model":
            notes += _compare_bytes(job, run, *expected, tolerance)
        with writing(final):
            if part.is_dir() and job.facts():
                serving.write_facts(job.facts(), serving.facts_of(part))
        size = sum(f.stat().st_size for f in _files(part))
        if format == "saved_model":
            with writing(final):
                serving.write_batching(final.parent, part.parent)
    if final.is_file() and job.facts():
        with moved(serving.facts_of(final)) as part:
            serving.write_facts(job.facts(), part)
    elif final.is_file():  # of the artifact that was there
        serving.facts_of(final).unlink(missing_ok=True)
    return Report(
        final, runtime, precision, size, **facts, latency=latency, notes=notes
    )


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


def _check_arguments(model, format, precision, calibration, top):
    """Checks the arguments that need no file."""
    check_format(format, precision)
    require(
        precision != "int8" or calibration is not None,
        "int8 needs pictures that show the range of every feature map",
        "Pass a folder of a hundred pictures or more.",
        calibration=calibration,
    )
    require(
        isinstance(top, int) and top > 0,
        "`top` must be a positive integer",
        "Leave it out for 5.",
        top=top,
    )
    _check_model(model, format)


def _check_model(model, format):
    """Checks what of a model shows without converting it."""
    require(
        isinstance(model, keras.Model) and getattr(model, "inputs", None),
        "`model` must be a functional or sequential Keras model",
        "Call a subclassed one on a `keras.Input`, and make a `keras.Model` "
        "of both.",
        model=type(model).__name__,
    )
    shapes = [tuple(x.shape) for x in model.inputs]
    require(
        all(len(s) == 4 or (len(s) == 5 and s[1]) for s in shapes),
        "The model's inputs must be images, or as many images each",
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
    names += output_names(copies.graph(model))
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


def destination(path, format, version):
    """Returns what `path` stands for, if that may be written."""
    require(
        version is None or (isinstance(version, int) and version > 0),
        "`version` must be a positive integer, or None for 1",
        "It is the name of a folder in `path`.",
        version=version,
    )
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
    own = (
        {"model.xml", "model.bin", serving.PREPROCESSING}
        if format == "openvino"
        else None
    )
    if path.is_dir() and (
        own is None or not {p.name for p in path.iterdir()} <= own
    ):
        raise FileExistsError(
            f"`path` must not be a folder of other things for {format}. "
            f"Received: path='{path}'. Choose a new name in it."
        )
    return path


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


def _files(path):
    return [p for p in (path, *path.rglob("*")) if p.is_file()]


@contextlib.contextmanager
def _converting(format, model):
    """Turns what a converter or a runtime says into one sentence."""
    import tensorflow as tf

    try:
        yield
    except (OSError, MemoryError, tf.errors.OpError):
        raise
    except Exception as error:  # each converter has its own
        text = re.sub(r"\x1b\[\d*m", "", str(error))  # bold, of Keras
        start = max(0, text.rfind("Exception encountered when"))
        reason = " ".join(text[start:].split())[:300]
        ways = ["export the network below that operation"]
        if any(None in x.shape[1:] for x in model.inputs):
            ways += [
                "give its input a size with `x = keras.Input((224, 224, 3))` "
                "and `keras.Model(x, model(x))`"
            ]
        if format != "saved_model":
            ways += ['choose "saved_model", which has all of them']
        raise ValueError(
            "A model is required whose operations the format's converter "
            f"knows, and its runtime. Received: format={format!r} "
            f"({type(error).__name__}: {reason}). Nothing was written; "
            f"{', or '.join(ways)}."
        ) from error


def _logits(outputs):
    """Undoes a softmax, which hides differences where it saturates."""
    if (
        outputs.shape[-1] == 1
        or outputs.min() < 0
        or np.abs(outputs.sum(-1) - 1).max() > 0.02
    ):
        return outputs
    logits = np.log(np.maximum(outputs, 1e-30))
    return logits - logits.mean(-1, keepdims=True)


def _difference(outputs, expected, compared):
    """Returns the greatest difference of one output, as `Report` has it."""
    if not np.issubdtype(expected.dtype, np.floating):
        return (outputs != expected).mean()
    outputs, expected = compared(outputs), compared(expected)
    return np.abs(outputs - expected).max() / (np.abs(expected).max() or 1.0)


def _best(outputs):
    """Returns the best class, or the side of one half for a single score."""
    if not np.issubdtype(outputs.dtype, np.floating):
        return outputs
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return outputs > 0.5
    return outputs.argmax(-1)


def _expected(model, inputs):
    """Returns the outputs, in their order, to compare an artifact's with.

    Args:
        model: The Keras model.
        inputs: From a name of `input_names` to an array.

    Raises:
        ValueError: If they are not finite.
    """
    model = copies.recast(model, "float32")
    structure = copies.graph(model).input
    inputs = keras.tree.pack_sequence_as(structure, list(inputs.values()))
    if type(model).predict_step is not keras.Model.predict_step:
        model = wrapped(model)  # a detector's decodes what is not exported
    outputs = model.predict(inputs, batch_size=8, verbose=0)
    outputs = [
        y if y.dtype.kind in "iub" else y.astype("float32")
        for y in map(np.asarray, keras.tree.flatten(outputs))
    ]
    finite = np.mean([np.isfinite(y).mean() for y in outputs])
    require(
        finite == 1,
        "What the model makes of photographs must be finite numbers",
        "Nothing was written; look for the first layer with NaN or infinity.",
        share_that_is_finite=float(finite),
    )
    return outputs


def _compare(job, runtime, outputs, expected, tolerance):
    """Returns what a `Report` says of an artifact's outputs."""
    names = output_names(job.model)
    if not isinstance(outputs, dict):
        outputs = dict.fromkeys(names, outputs)
    outputs = [np.asarray(outputs[name]) for name in names]
    # Eight bits have no logits: the steps of a probability are 1/256.
    compared = np.asarray if job.precision == "int8" else _logits
    difference = max(
        _difference(a, b, compared)
        for a, b in zip(outputs, expected, strict=True)
    )
    exact = job.precision == "float32"
    other = "another `format`" if exact else "a more precise `precision`"
    require(
        difference <= tolerance,
        f"What {runtime} computes must be within {tolerance:.1e} of what the "
        "model does, relative to its greatest output",
        f"Nothing was written; choose {other}, or set `tolerance`.",
        difference=float(difference),
    )
    agreement = np.mean(
        [
            (_best(a) == _best(b)).mean()
            for a, b in zip(outputs, expected, strict=True)
        ]
    )
    return {
        "max_difference": float(difference),
        "agreement": float(agreement),
        "pictures": len(expected[0]),
    }


def _latency(run, inputs):
    """Returns the median time for one picture, in milliseconds."""
    times = []
    first = next(one_by_one(inputs))
    for _ in range(12):
        start = time.perf_counter()
        run(first)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def _compare_bytes(job, run, expected, tolerance):
    """Compares `serving_bytes` with Pillow's pictures in the Keras model."""
    data = [file.read_bytes() for file in PICTURES]
    answer = run({"pictures": data}, "serving_bytes")
    expected = expected[: len(PICTURES)]  # the first of `job.samples`
    best = -np.sort(-expected)[:, : job.top]
    difference = np.abs(answer["scores"] - best).max() / np.abs(best).max()
    # A pixel in five hundred is rounded differently.
    limit = max(tolerance, 0.02)
    require(
        difference <= limit and not answer["errors"].any(),
        f"The scores of serving_bytes must be within {limit:.1e} of the "
        "model's, relative to the greatest, and without errors",
        "Nothing was written; set `tolerance`.",
        difference=float(difference),
    )
    return (f"Scores of serving_bytes: difference {difference:.1e}.",)
