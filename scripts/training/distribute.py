"""Trains one network on several devices of a machine, or on several machines.

Each replica of the network gets its share of each batch, and all replicas take
the same step. docs/machines.md says how to start it.
"""

import contextlib
import functools
import json
import os

import keras


def has_gpu():
    """Tells whether Keras's backend has a GPU, or another accelerator."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import torch

    return torch.cuda.is_available()


class Single:
    """One device; what the other strategies have in common.

    Attributes:
        worker: Number of this process.
        workers: Number of processes that train together, each with its share
            of a batch. Process 0, the chief, writes the files.
        replicas: Number of devices of all of them, of which each gets as many
            pictures of a batch.
    """

    worker, workers, replicas = 0, 1, 1

    def scope(self):
        """Returns the context in which networks are built and compiled."""
        return contextlib.nullcontext()

    def fit(self, model, batches, **options):
        """Trains for one epoch, as `model.fit`, which returns a `History`."""
        return model.fit(batches, **options)

    def on_one_device(self, model):
        """Returns a compiled model to test with; here that is `model`."""
        return model


class Mirrored(Single):
    """All devices of this machine, by `tf.distribute.MirroredStrategy`."""

    def __init__(self):
        """Takes all GPUs, or else all CPU devices."""
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        self.strategy = tf.distribute.MirroredStrategy(
            [device.name for device in devices]
        )
        self.replicas = self.strategy.num_replicas_in_sync

    def scope(self):
        """Returns the context in which variables get a copy each device."""
        return self.strategy.scope()

    def on_one_device(self, model):
        """Returns a copy without replicas, which any batches suit."""
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        copy.compile(loss=model.loss, metrics=[accuracy])
        return copy


class MultiWorker(Mirrored):
    """Machines of `TF_CONFIG`, by `tf.distribute.MultiWorkerMirroredStrategy`.

    Keras 3's `fit` does not work with that strategy
    (https://github.com/keras-team/keras/issues/20585). Here is TensorFlow's
    custom training loop in its place, with Keras's step and callbacks.
    """

    def __init__(self):
        """Waits until all workers are there.

        Raises:
            ValueError: If the environment does not describe the cluster.
        """
        import tensorflow as tf

        try:
            config = json.loads(os.environ.get("TF_CONFIG", ""))
            self.workers = len(config["cluster"]["worker"])
            self.worker = config["task"]["index"]
            if not 0 <= self.worker < self.workers:
                raise ValueError("an index that no worker has")
            # Of a chief and its workers, two would be number 0.
            if {*config["cluster"], config["task"]["type"]} != {"worker"}:
                raise ValueError("tasks of another type")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                "TF_CONFIG must describe workers, no chief or other type of "
                "task, and which of them this one is. Received: TF_CONFIG="
                f"{os.environ.get('TF_CONFIG')!r}. Set it as docs/machines.md "
                "shows."
            ) from error
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self.replicas = self.strategy.num_replicas_in_sync

    def fit(self, model, batches, **options):
        """Trains for one epoch on this worker's share of each batch."""
        devices = self.replicas // self.workers
        share = batches.element_spec[0].shape[0] // devices
        batches = self.strategy.distribute_datasets_from_function(
            lambda context: batches.rebatch(share, drop_remainder=True)
        )
        epoch = options["initial_epoch"]
        callbacks = keras.callbacks.CallbackList(
            options["callbacks"],
            add_history=True,
            model=model,
            epochs=options["epochs"],
            steps=options["steps_per_epoch"],
        )
        step = self._step(model, model.optimizer)
        callbacks.on_train_begin()
        model.reset_metrics()
        callbacks.on_epoch_begin(epoch)
        for i, batch in enumerate(batches):
            callbacks.on_train_batch_begin(i)
            callbacks.on_train_batch_end(i, step(batch))
        # Reading the metrics adds up those of all workers.
        logs = {k: float(v) for k, v in model.get_metrics_result().items()}
        callbacks.on_epoch_end(epoch, logs)
        # Puts the moving average in place of the weights, if there is one.
        model.optimizer.finalize_variable_values(model.trainable_weights)
        callbacks.on_train_end(logs)
        return model.history

    # Traced once a phase, of which there are two at most: each compiles anew,
    # with an optimizer and metrics of its own.
    @functools.cache  # noqa: B019
    def _step(self, model, optimizer):
        import tensorflow as tf

        @tf.function
        def step(batch):
            logs = self.strategy.run(model.train_step, args=(batch,))
            return {
                name: self.strategy.reduce("MEAN", value, axis=None)
                for name, value in logs.items()
            }

        return step


class DataParallel(Mirrored):
    """All devices that JAX has, by `keras.distribution.DataParallel`.

    Batch normalisation sees the whole batch, as on one device.
    """

    def __init__(self):
        """Takes all devices."""
        self.strategy = keras.distribution.DataParallel()
        self.replicas = len(keras.distribution.list_devices())

    def fit(self, model, batches, **options):
        """Trains for one epoch, as `model.fit`."""
        with self.scope():
            return super().fit(model, batches, **options)


def choose(name, accumulate=1):
    """Returns the strategy of `train.py`'s name for it.

    Args:
        name: Of the strategy.
        accumulate: Steps whose gradients make one update.

    Raises:
        ValueError: If the backend has none of that name, or none that
            accumulates, or if the environment does not describe the cluster.
    """
    if name == "none":
        return Single()
    found = {
        ("tensorflow", "mirrored"): Mirrored,
        ("tensorflow", "multi_worker"): MultiWorker,
        ("jax", "mirrored"): DataParallel,
    }
    backend = keras.backend.backend()
    if (backend, name) not in found:
        raise ValueError(
            "--strategy multi_worker needs TensorFlow, and mirrored needs "
            f"TensorFlow or JAX. Received: {name} under {backend}. Set "
            "KERAS_BACKEND, or leave --strategy out."
        )
    if accumulate > 1 and backend == "tensorflow":
        # Keras updates behind a condition, in which replicas cannot meet.
        raise ValueError(
            "--accumulate must be 1 with --strategy under TensorFlow. "
            f"Received: --accumulate {accumulate} with --strategy {name}. "
            "Leave one of both out, or, for mirrored, set KERAS_BACKEND=jax."
        )
    return found[backend, name]()
