"""Keras: `predict`, `predict_on_batch` and `fit`, on any backend."""

import numpy as np

from benchmarks import tasks

# Fields of an architecture that `ResNeXt` takes by name.
SWITCHES = (
    "block",
    "stem",
    "stem_width",
    "squeeze_excite",
    "average_shortcut",
    "anti_aliased",
)


def build(task, stock=False):
    """Builds the network; of Keras's own layers where `stock`."""
    import keras_resnext

    row = tasks.network(task)
    model = keras_resnext.ResNeXt(
        row.depths,
        row.groups,
        row.width_per_group,
        weights=task.folder / "weights.safetensors",
        input_shape=(task.side, task.side, 3),
        classes=row.classes,
        classifier_activation=None,
        **{name: getattr(row, name) for name in SWITCHES},
    )
    return with_stock_layers(model) if stock else model


def with_stock_layers(model):
    """Returns the same network of the layers that Keras ships."""
    import keras

    from keras_resnext import layers

    kinds = {
        layers.Add: keras.layers.Add,
        layers.BatchNormalization: keras.layers.BatchNormalization,
        layers.GroupedConv2D: keras.layers.Conv2D,
        layers.MaxPooling2D: keras.layers.MaxPooling2D,
    }
    return exchanged(model, kinds)


def exchanged(model, kinds):
    """Returns the same network, with its weights, of other layers.

    Args:
        model: A functional `keras.Model`.
        kinds: Dictionary from a class of layers to the one in its place, of
            the same configuration.
    """
    import keras

    def exchange(layer):
        kind = kinds.get(type(layer), type(layer))
        return kind.from_config(layer.get_config())

    clone = keras.models.clone_model(model, clone_function=exchange)
    clone.set_weights(model.get_weights())
    return clone


def without_groups(model):
    """Returns a network whose grouped convolutions only stride.

    That is how long all the rest takes.
    """
    import keras

    from keras_resnext import layers

    @keras.saving.register_keras_serializable("benchmarks")
    class Strides(layers.GroupedConv2D):
        def convolution_op(self, inputs, kernel):
            if self.groups == 1:
                return super().convolution_op(inputs, kernel)
            edge = self.kernel_size[0] // 2 if self.padding == "valid" else 0
            first, step = edge or None, self.strides[0]
            part = slice(first, -first if first else None, step)
            return inputs[:, part, part] * keras.ops.sum(kernel)

    return exchanged(model, {layers.GroupedConv2D: Strides})


def predict(task, policy="float32", stock=False, at_once=False):
    """Keras's `predict` with its defaults, or `predict_on_batch`."""
    import keras

    keras.config.set_dtype_policy(policy)
    model, images = build(task, stock), tasks.images(task)
    if at_once:
        return lambda: model.predict_on_batch(images)
    return lambda: model.predict(images, batch_size=task.batch, verbose=0)


def folded(task, dtype="float32"):
    """The model that `export.fold` returns; `predict_on_batch`."""
    from keras_resnext.export import fold

    model, images = fold(build(task), dtype), tasks.images(task)
    return lambda: model.predict_on_batch(images)


def fit(task, policy="float32", dataset=False):
    """Keras's `compile` and `fit` with their defaults; gives the loss.

    `fit` takes arrays or, as the docs advise, a dataset that is not tuned.
    """
    import keras

    keras.config.set_dtype_policy(policy)
    model, (images, labels) = build(task), tasks.steps(task)
    model.compile(
        keras.optimizers.SGD(tasks.LEARNING_RATE, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = (images, labels, task.batch)
    if dataset:
        data = (_dataset(*data),)

    def run():
        history = model.fit(*data, shuffle=False, verbose=0)
        return np.array(history.history["loss"])

    return run


def _dataset(images, labels, batch):
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return dataset.batch(batch).with_options(options)
