"""Tells which packages a result came of."""

import sys

import keras
import numpy as np


def loaded():
    """Returns the versions of Keras, its backend and NumPy, by their names.

    The modules say them themselves: the package of TensorFlow that brings
    `tensorflow` may have another name, as `tensorflow-cpu` has.
    """
    backend = keras.backend.backend()
    return {
        "keras": keras.__version__,
        backend: sys.modules[backend].__version__,
        "numpy": np.__version__,
    }
