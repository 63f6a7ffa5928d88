"""Ships models: every format, each loaded again and compared."""

import contextlib
import dataclasses
import pathlib
import re

import keras

from keras_resnext import preprocessing, processor
from keras_resnext.export import (
    comparing,
    elsewhere,
    fastest,
    preparing,
    serving,
)
from keras_resnext.export.checking import (
    check_arguments,
    check_ending,
    check_model,
    destination,
)
from keras_resnext.export.folding import NotServable, folded
from keras_resnext.export.formats import FORMATS
from keras_resnext.export.swap import errors, moved, writing
from keras_resnext.pillow import MAX_PIXELS
from keras_resnext.registry import require

# Greatest difference from the model, relative to its greatest output. In
# float32 our networks stay below 1e-5 here; but how much is rounded depends on
# the processor and grows with the depth, while what is wrong differs by more
# than 1e-4. Eight bits may round every score of an untrained network away.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.5}


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
            channels)`. LiteRT gets one size where they vary: the checkpoint's
            crop, or 224. The input is named `images`; several, as of a network
            that compares pictures, have the names of their `keras.Input`.
            Beside images there may be what has one shape, as the age of a
            patient: it gets random numbers to compare, and zeros for integers,
            unless `calibration` has it. Outputs are named `outputs`; of
            several, those in a dictionary have its keys, those in a list
            `outputs_0`, `outputs_1`... Integers as images are levels of 0 to
            255.
        path: Where to write. `"saved_model"`: the servable's folder, of which
            `path/1/` is the first version. `"openvino"`: a folder, for
            `model.xml` and `model.bin`. Else a file, `.onnx` or `.tflite`. A
            file, or a folder that OpenVINO wrote, is replaced. `"fastest"`: a
            folder, in which the kept one is `saved_model/`, `model.onnx`,
            `model.tflite` or `openvino/`.
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
            are compared, with photographs that are in the package or, as an
            array without a `checkpoint`, alone, since they may have any range.
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
        check_model(model, "saved_model")
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
    check_arguments(model, format, precision, calibration, top)
    final = destination(pathlib.Path(path), format, version)
    job, _, notes = preparing.job(model, **options)
    expected = comparing.expected(model, job.samples)
    report = _export(job, final, format, precision, tolerance, expected)
    report = dataclasses.replace(report, notes=notes + report.notes)
    print(report)
    return report


def _fastest(model, path, precisions, batch, max_loss, tolerance, options):
    """Chooses among all formats; the arguments are those of `export`."""
    check_ending(pathlib.Path(path), "fastest")
    calibration, top = options["calibration"], options["top"]
    if calibration is None:
        precisions = [p for p in precisions if p != "int8"]
    check_arguments(model, "saved_model", "float32", calibration, top)
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
    job, files, notes = preparing.job(model, **options)
    for note in notes:
        print(note)
    compared = expected = comparing.expected(model, job.samples)
    if calibration is not None:
        expected = comparing.expected(model, job.calibration)

    def write(path, format, precision):
        check_arguments(model, format, precision, calibration, top)
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


def _export(job, final, format, precision, tolerance, expected):
    """Writes and proves one artifact, and says nothing.

    Args:
        job: What `preparing.job` returned.
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
            outputs = comparing.run_all(run, job.samples)
        facts = comparing.compare(job, runtime, outputs, expected, tolerance)
        latency = comparing.latency(run, job.samples)
        if job.checkpoint and format == "saved_model":
            notes += comparing.compare_bytes(job, run, *expected, tolerance)
        with writing(final):
            if part.is_dir() and job.facts():
                serving.write_facts(job.facts(), serving.facts_of(part))
        size = sum(f.stat().st_size for f in _files(part))
        with writing(final):
            if format == "saved_model":
                serving.write_batching(final.parent, part.parent)
            if part.is_file():  # of the artifact that was there
                serving.facts_of(final).unlink(missing_ok=True)
    if final.is_file() and job.facts():
        with moved(serving.facts_of(final)) as part:
            serving.write_facts(job.facts(), part)
    return Report(
        final, runtime, precision, size, **facts, latency=latency, notes=notes
    )


def _files(path):
    return [p for p in (path, *path.rglob("*")) if p.is_file()]


@contextlib.contextmanager
def _converting(format, model):
    """Turns what a converter or a runtime says into one sentence."""
    try:
        yield
    except (MemoryError, NotServable, *errors()):
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
