"""Adapts networks: other classes, other inputs, frozen stages, features.

A stage is the prefix of its layers' names: `conv1` is the stem, `conv2` to
`conv5` are ResNeXt-50's four stages of blocks.
"""

import functools
import re

import keras
import numpy as np

from keras_resnext import arguments, copies
from keras_resnext.arguments import require
from keras_resnext.resnext import classifier

_TOP = (keras.layers.Dense, keras.layers.Dropout)
_POOLING = (
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)


def replace_top(model, classes, dropout=0.0, activation="softmax"):
    """Puts a new classifier on a network in place of the old one, if any.

    The layers below are shared, not copied: training or freezing them in one
    of the models does so in the other.

    Args:
        model: Functional or sequential model, also one loaded from `.keras`,
            that ends in feature maps, in global pooling, or in `Dense` and
            `Dropout` layers, which are left out. Feature maps are averaged.
        classes: Number of classes.
        dropout: Share of the features that training drops before the
            classifier, 0 to below 1.
        activation: Activation of the classifier; `None` returns logits.

    Returns:
        A functional `keras.Model` with the inputs and the name of `model` and
        the output `(batch, classes)`, float32, not compiled. Its new layers
        are `predictions`, `predictions_drop` and `avg_pool`, as needed.

    Raises:
        ValueError: if an argument is out of its range, or if the model has
            another end.
    """
    arguments.check_classes(classes)
    arguments.check_rate("dropout", dropout)
    layers, x = list(model.layers), model.outputs[0]
    while isinstance(layers[-1], _TOP):
        x = layers.pop().input
    end = layers[-1]
    while isinstance(end, keras.Model):
        end = end.layers[-1]
    require(
        len(model.outputs) == 1
        and (len(x.shape) == 4 or isinstance(end, _POOLING)),
        "`model` must end in feature maps, global pooling or Dense layers",
        "Pass the network below, as in `replace_top(model.layers[0], 5)`.",
        last_layer=end.name,
    )
    if len(x.shape) == 4:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="predictions_drop")(x)
    x = classifier(x, classes, activation)
    return keras.Model(model.inputs[0], x, name=model.name)


def replace_input(model, channels):
    """Copies a network for images with another number of channels than RGB.

    The first kernel of a grey image is the sum over red, green and blue: the
    network then sees the grey image repeated three times. More channels get
    the three in turns, times `3 / channels`, so that the response keeps its
    magnitude. The channels should be normalised as RGB was.

    Args:
        model: Functional model made by this package: its first convolution
            is `conv1_conv` or, of a deep stem, `conv1_1_conv`. For a model
            around it, replace the input first and add the rest then.
        channels: Number of channels, a positive integer.

    Returns:
        A `keras.Model` with weights of its own, not compiled; all but the
        first kernel are those of `model`, and so is what is frozen. Layers
        that a copy could not be told from for certain are shared: those of
        a person's own classes, and those that have been adapted to data.

    Raises:
        ValueError: if `channels` is out of range, if the model has no such
            convolution of three channels, or if what stands before it does
            not take that many.

    Source: timm's `adapt_input_conv`.
    """
    require(
        isinstance(channels, (int, np.integer)) and channels > 0,
        "`channels` must be a positive integer",
        "A grey image has 1.",
        channels=channels,
    )
    conv = _first_convolution(model)
    require(
        conv is not None and conv.kernel.shape[2] == 3,
        "`model` must have a layer conv1_conv that takes RGB images",
        "Pass the network itself, before anything is put around it.",
        model=model.name,
    )
    axis = -1 if conv.data_format == "channels_last" else 1
    channels = int(channels)

    @functools.cache  # a layer that is used twice stays one
    def copy(layer):
        if layer is conv:
            kernel, *bias = map(
                keras.ops.convert_to_numpy,
                [conv.kernel, conv.bias] if conv.use_bias else [conv.kernel],
            )
            weights = [_adapt(kernel, channels), *bias]
            return copies.copy(conv, weights, _with(conv.input, axis, channels))
        if copies.has_graph(layer):
            return copies.rebuild(layer, copy)
        return copies.copy(layer) if copies.is_plain(layer) else layer

    images = [x for x in model.inputs if len(x.shape) == 4]
    shapes = [(x, _with(x, axis, channels)[1:]) for x in images]
    try:
        new = copies.rebuild(model, copy, shapes=shapes)
        _check_before(model, new, axis, channels)
    except Exception as error:  # of any layer and backend
        raise ValueError(
            "What stands before conv1_conv must do the same to each channel, "
            f"however many. Received: channels={channels} ({error}). Replace "
            "the input of the network alone, and put the rest before it then."
        ) from error
    return new


def _first_convolution(model):
    """Returns the layer that takes the images, or `None`."""
    layers = {layer.name: layer for layer in model.layers}
    return layers.get("conv1_1_conv", layers.get("conv1_conv"))


def _check_before(model, new, axis, channels):
    """Sends a grey image through what stands before both first kernels."""
    maps = []
    for net, count in ((model, 3), (new, channels)):
        x = _first_convolution(net).input
        if any(x is y for y in net.inputs):
            return
        (images,) = (y for y in net.inputs if len(y.shape) == 4)
        shape = [size or 32 for size in _with(images, axis, 1)[1:]]
        grey = np.random.default_rng(0).uniform(0, 255, (1, *shape))
        colour = np.repeat(grey, count, axis).astype(images.dtype)
        map_ = keras.ops.convert_to_numpy(keras.Model(images, x)(colour))
        width = max(channels, 3)
        if map_.shape[axis] != count:
            raise ValueError(f"it makes {map_.shape[axis]}")
        maps.append(map_.take(np.arange(width) % count, axis))
    if not np.allclose(*maps, rtol=1e-3, atol=1e-3 * np.abs(maps[0]).max()):
        raise ValueError("it treats them differently")


def _with(tensor, axis, size):
    """Returns the shape of a tensor with another size in one axis."""
    shape = list(tensor.shape)
    shape[axis] = size
    return tuple(shape)


def _adapt(kernel, channels):
    """Turns a kernel `(height, width, 3, filters)` to other channels."""
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return kernel[:, :, np.arange(channels) % 3] * (3 / channels)


def freeze(model, through="conv4"):
    """Excludes the first stages from training, up to one of them.

    Sets `trainable = False` on their layers, wherever they are in the model:
    weights stay, and batch normalisation uses and keeps its statistics. As
    always in Keras, `compile` the model afterwards.

    Args:
        model: Model made by this package, or one that has it inside, also
            loaded from `.keras`. Changed in place.
        through: The last stage to freeze, `"conv1"` to `"conv5"`. What is
            frozen further up stays so; `unfreeze` first to freeze less.

    Raises:
        ValueError: if the model has no such stage.
    """
    stages = _stages(model)
    _check_stage(through, stages, "through")
    for stage, layers in stages.items():
        for layer in layers:
            layer.trainable = False
        if stage == through:
            break


def unfreeze(model):
    """Includes all layers in training again, those of models inside, too.

    Sets `trainable = True`; `compile` the model afterwards.

    Args:
        model: Any model. Changed in place.
    """
    # Not the model alone: on TensorFlow, one that was True before does not
    # pass the value on to a frozen model inside.
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            unfreeze(layer)
        layer.trainable = True
    model.trainable = True


def features(model, stages=("conv3", "conv4", "conv5")):
    """Returns the network from the images to the last map of each stage.

    This is the pyramid for detection and segmentation. The layers are shared
    with `model`.

    Args:
        model: Functional model made by this package, with or without a top,
            also loaded from `.keras`. Of a model that has it inside, pass
            that inner model.
        stages: Names of stages, in any order.

    Returns:
        A functional `keras.Model` whose output is a dictionary from stage to
        feature maps `(batch, height / s, width / s, channels)`, sizes rounded
        up. With ImageNet's stem the stride s is 2 for `conv1`, then 4, 8, 16
        and 32, but at most the network's `output_stride`.

    Raises:
        ValueError: if the model has no such stage.
    """
    ends = {}
    for layer in model.layers:
        match = re.fullmatch(r"(conv\d+)_(relu|block\d+_out)", layer.name)
        if match:
            ends[match[1]] = layer  # the last block's, at the end
    for stage in stages:
        _check_stage(stage, ends, "stages")
    outputs = {stage: ends[stage].output for stage in stages}
    return keras.Model(model.inputs[0], outputs, name=f"{model.name}_features")


def stage_rates(model, optimizer, factors):
    """Gives stages learning rates of their own.

        optimizer = stage_rates(model, "adam", {"conv4": 0.1, "conv5": 0.3})

    Keras's `MultiOptimizer` does it, with a copy of the optimizer for each
    stage; it is saved with the model in `.keras`. Its limits: it has no
    `learning_rate`, so that callbacks cannot change it (give the optimizer a
    schedule); norms of gradients are clipped stage by stage; and what is
    excluded from weight decay must be excluded in each of its `optimizers`.

    Args:
        model: Model made by this package, or one that has it inside.
        optimizer: Keras optimizer, not used before, or its name, for all that
            has no factor.
        factors: Dictionary from a stage to what its learning rate, and its
            weight decay, is multiplied with.

    Returns:
        The optimizer to compile `model` with.

    Raises:
        ValueError: if the model has no such stage, or a factor is not
            positive.
        ImportError: if Keras is older than 3.15.

    Source: Howard and Ruder, https://arxiv.org/abs/1801.06146, section 3.2,
    where each layer has the rate of the next one divided by 2.6.
    """
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        raise ImportError(
            "Learning rates by stage need `keras.optimizers.MultiOptimizer`. "
            f"Received: keras.__version__={keras.__version__!r}. Install "
            "Keras 3.15 or newer."
        )
    stages = _stages(model)
    optimizer = keras.optimizers.get(optimizer)
    optimizers = {}
    for stage, factor in factors.items():
        _check_stage(stage, stages, "factors")
        require(
            factor > 0,
            "A factor must be positive",
            "Use `freeze` for a stage that must not change.",
            factors=factors,
        )
        path = rf"(.*/)?{stage}_[^/]*/[^/]*"  # of a variable, whole
        optimizers[path] = _scaled(optimizer, factor)
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(optimizer, optimizers)
    )


@keras.saving.register_keras_serializable("keras_resnext")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of learning rates, times a factor.

    Attributes:
        schedule: A Keras schedule.
        factor: The number to multiply it with.
    """

    def __init__(self, schedule, factor):
        """Takes the attributes."""
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step):
        """Returns the rate at a step."""
        return self.schedule(step) * self.factor

    def get_config(self):
        """Returns what Keras saves."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        """Makes the schedule from what Keras saved."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["factor"])


def _scaled(optimizer, factor):
    """Copies an optimizer with a learning rate times `factor`."""
    config = optimizer.get_config()
    rate = config["learning_rate"]
    if isinstance(rate, dict):
        schedule = keras.saving.deserialize_keras_object(rate)
        rate = ScaledSchedule(schedule, factor)
    else:
        rate *= factor
    return type(optimizer).from_config(config | {"learning_rate": rate})


def _stages(model):
    """Returns the layers of each stage, also those of models inside."""
    stages = {}
    for layer in _layers(model):
        match = re.match(r"(conv\d+)_", layer.name)
        if match:
            stages.setdefault(match[1], []).append(layer)
    return stages


def _layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _check_stage(stage, stages, name):
    require(
        stage in stages,
        f"`{name}` must be of the model's stages, {list(stages)}",
        "A stage is what a network of this package begins its layers' names "
        "with, as conv4 in conv4_block1_out.",
        **{name: stage},
    )
