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
from keras_resnext.export import folding, preparing
from keras_resnext.registry import require


def export(model, options):
    """Exports a model from a backend that is not TensorFlow.

    Args:
        model: Keras model whose layers are Keras's and this package's.
        options: The other arguments of `keras_resnext.export.export`.

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
    # Two backends round differently.
    model = folding.savable(copies.recast(model, "float32"))
    inputs = _some_inputs(model)
    outputs = [
        keras.ops.convert_to_numpy(y)
        for y in keras.tree.flatten(model(inputs, training=False))
    ]
    with tempfile.TemporaryDirectory(prefix="keras_resnext-") as folder:
        model.save(pathlib.Path(folder, "model.keras"))
        job = pathlib.Path(folder, "job")
        job.write_bytes(pickle.dumps((inputs, outputs, options)))
        done = subprocess.run(
            [sys.executable, "-m", "keras_resnext.export", folder],
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
        if not folding.takes_images(x):
            return preparing.drawn(x, 2).astype(x.dtype)
        levels = random.uniform(0, 255, (2, *(n or 64 for n in x.shape[1:])))
        return levels.astype(x.dtype) if "int" in x.dtype else levels / 255

    return keras.tree.map_structure(noise, copies.graph(model).input)
