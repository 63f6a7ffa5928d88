"""Exports from Keras on JAX or PyTorch, in a process of its own on TensorFlow.

The converters are TensorFlow's, and a process has one backend. A `.keras`
file is the same on all of them.
"""

import collections.abc
import importlib.util
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile

import keras
import numpy as np

from keras_resnext import copies
from keras_resnext.arguments import require

_TOLERANCE = 1e-4  # between two backends, relative to the greatest output


def run(export, model, options):
    """Exports a model from a backend that is not TensorFlow.

    Args:
        export: `keras_resnext.export.export`, which that process calls.
        model: Keras model whose layers are Keras's and this package's.
        options: The other arguments of `export`.

    Returns:
        Its `Report`.

    Raises:
        ValueError: As it does; and if the model cannot be loaded on
            TensorFlow, or computes something else there.
        ImportError: As it does; and if TensorFlow is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            "TensorFlow is required to export, also from another backend. "
            f"Received: backend={keras.backend.backend()!r}. Run `pip install "
            '".[export]"` in a checkout.'
        )
    if isinstance(options["calibration"], collections.abc.Iterator):
        options["calibration"] = list(options["calibration"])  # to be sent
    model = copies.recast(model, "float32")  # two backends round differently
    inputs = _some_inputs(model)
    outputs = [
        keras.ops.convert_to_numpy(y)
        for y in keras.tree.flatten(model(inputs, training=False))
    ]
    with tempfile.TemporaryDirectory(prefix="keras_resnext-") as folder:
        model.save(pathlib.Path(folder, "model.keras"))
        job = pathlib.Path(folder, "job")
        job.write_bytes(pickle.dumps((export, inputs, outputs, options)))
        done = subprocess.run(
            [sys.executable, "-m", "keras_resnext.export.elsewhere", folder],
            env=os.environ
            | {
                "KERAS_BACKEND": "tensorflow",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        answer = pathlib.Path(folder, "answer")
        require(
            answer.exists(),
            "The process on TensorFlow must come to its end",
            "Its last words: " + done.stderr[-500:],
            exit_status=done.returncode,
        )
        answer = pickle.loads(answer.read_bytes())  # of our own process
    if isinstance(answer, Exception):
        raise answer
    print(done.stdout, end="")
    return answer


def _some_inputs(model):
    """Returns inputs of noise, two of each."""
    random = np.random.default_rng(0)

    def noise(x):
        levels = random.uniform(0, 255, (2, *(n or 64 for n in x.shape[1:])))
        return levels.astype(x.dtype) if "int" in x.dtype else levels / 255

    return keras.tree.map_structure(noise, copies.graph(model).input)


def _main(folder):
    """Does a job and leaves its answer, a `Report` or an exception."""
    job = pathlib.Path(folder, "job").read_bytes()
    # Of the process that waits; its function comes as the name of a module's.
    export, inputs, outputs, options = pickle.loads(job)
    try:
        answer = export(_load(folder, inputs, outputs), **options)
    except (ValueError, ImportError, OSError) as error:
        answer = type(error)(str(error))
    part = pathlib.Path(folder, "part")
    part.write_bytes(pickle.dumps(answer))
    part.replace(pathlib.Path(folder, "answer"))


def _load(folder, inputs, outputs):
    """Loads the model, and proves that it is the same on TensorFlow."""
    try:
        model = keras.models.load_model(
            pathlib.Path(folder, "model.keras"), compile=False
        )
        found = keras.tree.flatten(model(inputs, training=False))
    except Exception as error:  # of any layer
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            "A model that Keras can load on TensorFlow is required. Received: "
            f"{type(error).__name__}: {reason}. Save it as `.keras`, and call "
            "`export` with KERAS_BACKEND=tensorflow where its layers are "
            "defined."
        ) from error
    difference = np.max(  # which keeps a NaN
        [
            np.abs(np.asarray(a, "float64") - b).max()
            / (np.abs(b).max() or 1.0)
            for a, b in zip(found, outputs, strict=True)
        ]
    )
    require(
        difference <= _TOLERANCE,
        f"On TensorFlow the model must compute the same within {_TOLERANCE}",
        "Look for a layer that depends on the backend.",
        difference=float(difference),
    )
    return model


if __name__ == "__main__":
    _main(*sys.argv[1:])
