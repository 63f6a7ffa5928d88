"""Fills networks with random weights that hide nothing that is wrong."""

import keras
import numpy as np


def fill(model, images):
    """Gives a new classifier the statistics and logits that it lacks.

    A fresh network's statistics are 0 and 1, so that two of them may be
    swapped unnoticed, and its classes are nearly tied. Here all statistics
    differ, and `images` get logits of about 5. What the classes are called
    means nothing.

    Args:
        model: Made by this package, with its top.
        images: Preprocessed, `(batch, height, width, 3)`.

    Returns:
        `model`, always with the same normalisations.
    """
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape
            gamma, variance = random.uniform(0.5, 1.5, (2, *n))
            if layer.name.endswith("_3_bn"):
                gamma /= 4  # else sums of branches grow beyond float16
            signs = random.normal(0, 0.2, (2, *n))
            layer.set_weights([gamma, *signs, variance])
    last = model.get_layer("predictions")
    features = keras.Model(model.input, last.input)(images)
    kernel, bias = last.get_weights()
    scale = 5 / np.abs(np.asarray(features) @ kernel).max()
    last.set_weights([scale * kernel, random.normal(0, 0.2, bias.shape)])
    return model
