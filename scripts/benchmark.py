"""Measures the grouped convolution against the one that Keras ships.

    python scripts/benchmark.py layer
    python scripts/benchmark.py step
    TF_ENABLE_ONEDNN_OPTS=0 python scripts/benchmark.py step

`layer` times a 3x3 convolution of 128 channels in 32 groups on 8 feature maps
of 56x56; `step` a whole training step of ResNeXt-50 on 8 images of 224x224,
through `compile` and `fit` with their defaults. Both sides run in turns in
this process, and what counts is the ratio of the medians: a machine's speed
drifts, the ratio of neighbours does not. Takes one and ten minutes on two
cores: Keras's side is that slow.
"""

import argparse
import os
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import tqdm

import keras_resnext
from keras_resnext.layers import BatchNormalization, GroupedConv2D


def milliseconds(function):
    """Returns how long one call takes."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def compare(name, stock, ours, repeats):
    """Times two functions in turns and prints one row of a table."""
    stock(), ours()  # traces and compiles
    times = [
        (milliseconds(stock), milliseconds(ours))
        for _ in tqdm.trange(repeats, desc=name, leave=False, disable=None)
    ]
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"| {name} | {a:,.1f} | {b:,.1f} | {a / b:,.1f} |", flush=True)


def layer_functions(layer_class):
    """Returns the forward pass of one layer and the gradient of its kernel.

    Both are functions without arguments.
    """
    random = np.random.default_rng(0)
    x = tf.constant(random.standard_normal((8, 56, 56, 128)), "float32")
    layer = layer_class(128, 3, padding="same", groups=32, use_bias=False)
    layer.build(x.shape)
    kernel = layer.kernel.value

    @tf.function
    def forward():
        return layer(x)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = layer(x)
        return tape.gradient(y, kernel)

    return forward, gradient


def layer():
    """Times one layer."""
    forward, gradient = layer_functions(GroupedConv2D)
    stock_forward, stock_gradient = layer_functions(keras.layers.Conv2D)
    compare("forward", stock_forward, forward, repeats=15)
    compare("gradient of the kernel", stock_gradient, gradient, repeats=3)


def with_stock_layers(model):
    """Returns the same network of the layers that Keras ships."""

    def stock(layer):
        config = layer.get_config()
        if isinstance(layer, GroupedConv2D):
            return keras.layers.Conv2D.from_config(config)
        if isinstance(layer, BatchNormalization):
            return keras.layers.BatchNormalization.from_config(config)
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=stock)


def step():
    """Times one step of training."""
    random = np.random.default_rng(0)
    x = random.standard_normal((8, 224, 224, 3), dtype="float32")
    y = random.integers(0, 1000, 8)
    ours = keras_resnext.ResNeXt50(weights=None)
    stock = with_stock_layers(ours)
    for model in (ours, stock):
        model.compile("sgd", "sparse_categorical_crossentropy")

    def fit(model):
        return lambda: model.fit(x, y, batch_size=8, verbose=0)

    compare("training step", fit(stock), fit(ours), repeats=3)


def main():
    """Runs the measurement that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["layer", "step"])
    what = parser.parse_args().what
    print(
        f"Keras {keras.__version__}, TensorFlow {tf.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} CPUs, "
        f"TF_ENABLE_ONEDNN_OPTS={os.environ.get('TF_ENABLE_ONEDNN_OPTS')}\n"
    )
    print("| | Conv2D, ms | GroupedConv2D, ms | ratio |")
    print("|---|---|---|---|")
    {"layer": layer, "step": step}[what]()


if __name__ == "__main__":
    main()
