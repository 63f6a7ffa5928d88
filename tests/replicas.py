"""Trains a small network by a strategy of scripts/distribute.py.

    python tests/replicas.py STRATEGY DEVICES BATCHES WEIGHTS OUT

Run by test_distribute.py in processes of their own, since devices are made
before anything is computed. OUT gets the losses and the final weights.
"""

import pathlib
import sys

import keras_resnext  # before Keras and TensorFlow

# isort: split
import keras
import numpy as np
import tensorflow as tf

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from training import distribute  # noqa: E402

STRATEGY, DEVICES, BATCHES, WEIGHTS, OUT = sys.argv[1:]


def network(weights=None):
    """Returns the network and its optimizer."""
    model = keras_resnext.ResNeXt(
        (1,), 2, 8, True, weights, None, (8, 8, 3), None, 3, stem="cifar"
    )
    return model, keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)


def share(strategy, images, labels):
    """Returns this worker's part of each batch, as scripts/batches.py."""

    def part(array):
        return np.array_split(array, strategy.workers)[strategy.worker]

    pairs = [(part(x), part(y)) for x, y in zip(images, labels, strict=True)]
    return tf.data.Dataset.from_tensor_slices(
        tuple(np.concatenate(column) for column in zip(*pairs, strict=True))
    ).batch(len(pairs[0][0]), drop_remainder=True)


def main():
    """Trains for one epoch."""
    if int(DEVICES) > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(DEVICES),
        )
    strategy = distribute.choose(STRATEGY)
    with np.load(BATCHES) as file:
        images, labels = file["images"], file["labels"]
    losses = []
    with strategy.scope():
        model, optimizer = network(WEIGHTS)
        model.compile(optimizer, "categorical_crossentropy")
        optimizer.build(model.trainable_variables)
    strategy.fit(
        model,
        share(strategy, images, labels),
        initial_epoch=0,
        epochs=1,
        steps_per_epoch=len(images),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda _, logs: losses.append(logs["loss"])
            )
        ],
        verbose=0,
    )
    names = [v.path for v in model.variables]
    values = map(keras.ops.convert_to_numpy, model.variables)
    arrays = dict(zip(names, values, strict=True))
    np.savez(OUT, losses=np.array(losses, "f4"), **arrays)


if __name__ == "__main__":
    main()
