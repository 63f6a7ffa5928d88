"""The process on TensorFlow that `elsewhere.export` starts and waits for."""

import pathlib
import pickle
import sys

import keras
import numpy as np

from keras_resnext.export import artifact
from keras_resnext.registry import require

_TOLERANCE = 1e-4  # between two backends, relative to the greatest output


def main(folder):
    """Does a job and leaves its answer, a `Report` or an exception."""
    job = pathlib.Path(folder, "job").read_bytes()
    inputs, outputs, options = pickle.loads(job)  # of the process that waits
    try:
        answer = artifact.export(_load(folder, inputs, outputs), **options)
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
    main(*sys.argv[1:])
