"""Loaded before any test: this package before Keras, as users should."""

import keras_resnext  # noqa: F401
