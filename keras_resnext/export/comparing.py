"""Compares what an artifact computes with the model from which it is."""

import statistics
import time

import keras
import numpy as np

from keras_resnext import copies
from keras_resnext.export.folding import output_names, wrapped
from keras_resnext.export.formats import PICTURES, one_by_one
from keras_resnext.registry import require

_AT_ONCE = 8  # pictures


def expected(model, inputs):
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
    # A detector's decodes what is not exported; and a model must not keep what
    # was traced of its layers in another type.
    own = type(model).predict_step is not keras.Model.predict_step
    if own or copies.mixed(model):
        model = wrapped(model)
    with copies.in_float32(model):
        outputs = model.predict(inputs, batch_size=_AT_ONCE, verbose=0)
    outputs = [
        y if y.dtype.kind in "iubSO" else y.astype("float32")  # O are strings
        for y in map(np.asarray, keras.tree.flatten(outputs))
    ]
    finite = [np.isfinite(y).mean() for y in outputs if y.dtype.kind == "f"]
    finite = np.mean(finite or 1.0)
    require(
        finite == 1,
        "What the model makes of photographs must be finite numbers",
        "Nothing was written; look for the first layer with NaN or infinity.",
        share_that_is_finite=float(finite),
    )
    return outputs


def compare(job, runtime, outputs, expected, tolerance):
    """Returns what a `Report` says of an artifact's outputs."""
    names = output_names(job.model)
    if not isinstance(outputs, dict):
        outputs = dict.fromkeys(names, outputs)
    outputs = [_bytes(np.asarray(outputs[name])) for name in names]
    # Eight bits have no logits: the steps of a probability are 1/256.
    compared = np.asarray if job.precision == "int8" else _logits
    # NumPy's maximum keeps a NaN, which Python's loses.
    difference = np.max(
        [
            _difference(a, b, compared)
            for a, b in zip(outputs, expected, strict=True)
        ]
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
            (best(a) == best(b)).mean()
            for a, b in zip(outputs, expected, strict=True)
        ]
    )
    return {
        "max_difference": float(difference),
        "agreement": float(agreement),
        "pictures": len(expected[0]),
    }


def run_all(run, inputs):
    """Returns the outputs of all inputs, which are run a few at a time.

    So many large pictures need little memory. Where the last batch is smaller
    than the others, it also shows that the size is variable.

    Args:
        run: What a `Format` has loaded.
        inputs: An array, or several by their names.
    """

    def part(start):
        some = slice(start, start + _AT_ONCE)
        return run(keras.tree.map_structure(lambda x: x[some], inputs))

    count = len(keras.tree.flatten(inputs)[0])
    parts = map(part, range(0, count, _AT_ONCE))
    return keras.tree.map_structure(lambda *y: np.concatenate(y), *parts)


def compare_bytes(job, run, expected, tolerance):
    """Compares `serving_bytes` with Pillow's pictures in the Keras model."""
    data = [file.read_bytes() for file in PICTURES]
    answer = run({"pictures": data}, "serving_bytes")
    expected = expected[: len(PICTURES)]  # the first of `job.samples`
    scores = -np.sort(-expected)[:, : job.top]
    difference = np.abs(answer["scores"] - scores).max() / np.abs(scores).max()
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


def latency(run, inputs):
    """Returns the median time for one picture, in milliseconds."""
    times = []
    first = next(one_by_one(inputs))
    for _ in range(12):
        start = time.perf_counter()
        run(first)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def _bytes(outputs):
    """Encodes the strings of runtimes that decode them; TensorFlow does not."""
    if outputs.dtype.kind not in "OU":
        return outputs
    encoded = [y.encode() if isinstance(y, str) else y for y in outputs.flat]
    return np.array(encoded, object).reshape(outputs.shape)


def _difference(outputs, expected, compared):
    """Returns the greatest difference of one output, as `Report` has it."""
    if not np.issubdtype(expected.dtype, np.floating):
        return (outputs != expected).mean()
    outputs, expected = compared(outputs), compared(expected)
    return np.abs(outputs - expected).max() / (np.abs(expected).max() or 1.0)


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


def best(outputs):
    """Returns the best class, or the side of one half for a single score.

    Integers, as of a map of classes, are what they are.
    """
    if not np.issubdtype(outputs.dtype, np.floating):
        return outputs
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return outputs > 0.5
    return outputs.argmax(-1)
