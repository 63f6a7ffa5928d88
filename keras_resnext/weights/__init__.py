"""Weights: reads files of any format, downloads them, fills models."""

from keras_resnext.weights.assign import (
    cardinality,
    choose,
    load,
    locate,
    save,
)
