"""Weights: reads files of any format, downloads them, fills models."""

from keras_resnext.weights.assign import fill, load, read, save
from keras_resnext.weights.sources import choose, locate
