"""Adapts networks: other classes, other inputs, frozen stages, features.

A stage is the prefix of its layers' names: `conv1` is the stem, `conv2` to
`conv5` are ResNeXt-50's four stages of blocks.
"""

import functools

import keras
import numpy as np

from keras_resnext import arguments, copies, nested
from keras_resnext.registry import require, require_count
from keras_resnext.resnext import classifier

_TOP = (keras.layers.Dense, keras.layers.Dropout)
_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.Softmax,
)
_POOLING = (
    keras.layers.GlobalAveragePooling1D,  # of positions, as attention has them
    keras.layers.GlobalMaxPooling1D,
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
            `Dropout` layers, which are left out, also where they are the end
            of a model inside. Feature maps are averaged. Below
            `TimeDistributed` each step is classified.
        classes: Number of classes.
        dropout: Share of the features that training drops before the
            classifier, 0 to below 1.
        activation: Activation of the classifier; `None` returns logits.

    Returns:
        A functional `keras.Model` with the inputs and the name of `model` and
        the output `(batch, classes)`, not compiled. As in `ResNeXt`, that is
        float32 unless Keras's policy is now a pure one of another type. Its
        new layers are `predictions`, `predictions_drop` and `avg_pool`, as
        needed, with a number where a layer that stays has that name.

    Raises:
        ValueError: if an argument is out of its range, or if the model has
            another end.
    """
    arguments.check_classes(classes)
    arguments.check_rate("dropout", dropout)
    _check_graph(model)
    require(
        len(model.outputs) == 1,
        "`model` must have one output, which gets the classifier",
        "Pass `keras.Model(model.input, y)` with the tensor `y` below it.",
        number_of_outputs=len(model.outputs),
    )
    x = _without_top(model.outputs[0])
    end = nested.end(x)
    require(
        x is not model.outputs[0]
        or len(x.shape) in (4, 5)
        or isinstance(end, _POOLING),
        "`model` must end in feature maps, global pooling or Dense layers",
        "Pass the part with such an end, as `keras.Model(model.input, "
        "model.layers[-2].output)`.",
        last_layer=end.name,
    )
    inputs = copies.graph(model).input
    taken = {layer.name for layer in keras.Model(inputs, x).operations}
    order = {"data_format": nested.data_format(x)}
    if len(x.shape) == 4:
        name = _free("avg_pool", taken)
        x = keras.layers.GlobalAveragePooling2D(name=name, **order)(x)
    elif len(x.shape) == 3 and getattr(end, "keepdims", False):
        x = keras.layers.Flatten()(x)
    elif len(x.shape) == 5:
        pool = keras.layers.GlobalAveragePooling2D(**order)
        name = _free("avg_pool", taken)
        x = keras.layers.TimeDistributed(pool, name=name)(x)
    if dropout:
        name = _free("predictions_drop", taken)
        x = keras.layers.Dropout(float(dropout), name=name)(x)
    x = classifier(x, classes, activation, _free("predictions", taken))
    return keras.Model(inputs, x, name=model.name)


def _free(name, taken):
    """Returns a layer's name, with a number where another layer has it."""
    names = (f"{name}_{i}" for i in range(1, 1 + len(taken)))
    return next(n for n in (name, *names) if n not in taken)


def _without_top(x):
    """Returns the tensor below the Dense and Dropout layers above it."""
    node = nested.source(x)
    if not node.input_tensors:
        return x
    below = node.input_tensors[0]
    if _is_top(node.operation) or (
        isinstance(node.operation, _ACTIVATIONS)
        and _is_top(nested.source(below).operation)
    ):
        return _without_top(below)
    place = x._keras_history.tensor_index
    body = nested.rewrap(node.operation, lambda inner: _body(inner, place))
    if body is None:
        return x
    return body(*node.arguments.args, **node.arguments.kwargs)


def _body(model, place):
    """Returns a model to what is below the top of one of its outputs.

    None if that output has no top.
    """
    x = _without_top(model.outputs[place])
    if x is model.outputs[place]:
        return None
    return keras.Model(copies.graph(model).input, x, name=model.name)


def _is_top(layer):
    if isinstance(layer, keras.layers.TimeDistributed):
        return _is_top(layer.layer)
    if copies.has_graph(layer) and len(layer.outputs) == 1:
        below = _without_top(layer.outputs[0])
        return not nested.source(below).input_tensors
    return isinstance(layer, _TOP)


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
        A `keras.Model`, of a `Pyramid` another one, with weights of its own,
        not compiled; all but the first kernel are those of `model`, and so is
        what is frozen. Layers that a copy could not be told from for certain
        are shared: those of a person's own classes, and those that have been
        adapted to data or quantised.

    Raises:
        ValueError: if `channels` is out of range, if the model has no such
            convolution of three channels, or if what stands before it does
            not take that many.

    Source: timm's `adapt_input_conv`.
    """
    require_count("A grey image has 1.", channels=channels)
    conv = _first_convolution(model)
    require(
        conv is not None and conv.kernel.shape[2] == 3,
        "`model` must have a layer conv1_conv that takes RGB images",
        "Pass the network itself, before anything is put around it"
        f"{_inside(model, 'conv1')}.",
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
    if isinstance(model, Pyramid):  # stays one
        new = Pyramid(new.input, new.output, name=new.name)
        if not model.trainable:
            new.trainable = False
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
    stages = nested.stages(model)
    _check_stage(through, stages, "through")
    for stage, layers in stages.items():
        for layer in layers:
            layer.trainable = False
        if stage == through:
            break


def unfreeze(model):
    """Includes all layers in training again, wherever they are in the model.

    Sets `trainable = True`, also on what `freeze_statistics` has frozen;
    `compile` the model afterwards.

    Args:
        model: Any model. Changed in place.
    """
    model.trainable = True
    # Keras passes it on, but not on all backends beyond a model or wrapper
    # that was True before.
    for layer in nested.sublayers(model):
        layer.trainable = True


def freeze_statistics(model):
    """Excludes batch normalisation from training, wherever it is.

    Its statistics, scales and offsets stay as they are, and are what it
    normalises with in training as well; convolutions train on. This is what
    detectors do, and what batches of few images want, whose own statistics
    say little. As always in Keras, `compile` the model afterwards.

    Args:
        model: Any model. Changed in place; other layers stay as frozen as
            they are.

    Raises:
        ValueError: if the model has no batch normalisation.
    """
    found = [
        layer
        for layer in nested.sublayers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    require(
        found,
        "`model` must have layers of `keras.layers.BatchNormalization`",
        "Build it first, if it is made of layers that are not yet there.",
        model=model.name,
    )
    for layer in found:
        layer.trainable = False


def features(model, stages=None):
    """Returns the network from the images to the last map of each stage.

    This is the pyramid for detection and segmentation. The layers are shared
    with `model`.

    Args:
        model: Functional or sequential model made by this package, with or
            without a top, also loaded from `.keras`, or one that has it
            inside, also below `keras.layers.TimeDistributed`.
        stages: Names of stages, in any order; by default the last three.

    Returns:
        A `Pyramid`: a functional `keras.Model` with the inputs of `model`
        whose output is a dictionary from stage to feature maps `(batch,
        height / s, width / s, channels)`, sizes rounded up. With ImageNet's
        stem the stride s is 2 for `conv1`, then 4, 8, 16 and 32, but at most
        the network's `output_stride`. Below `TimeDistributed` the maps are
        `(batch, steps, height / s, ...)`. Of a network that `model` calls
        several times there is a list of maps, one for each call.

    Raises:
        ValueError: if the model has no such stage, or has it inside of a
            layer that is not made of Keras tensors.
    """
    known = nested.stages(model)
    if stages is None:
        stages = list(known)[-3:] or ["conv1"]
    require(
        len(stages) > 0 and not isinstance(stages, str),
        "`stages` must be a list of one name at least",
        "Leave it out for the last three.",
        stages=stages,
    )
    for stage in stages:
        _check_stage(stage, known, "stages")
    tapped = nested.tap(model, stages) if copies.has_graph(model) else None
    maps = {} if tapped is None else tapped.output
    for stage in stages:
        require(
            stage in maps,
            "The stages must be in models made of Keras tensors",
            f"Pass the network itself{_inside(model, stage)}.",
            stages=stage,
        )
    maps = {k: v[0] if len(v) == 1 else v for k, v in maps.items()}
    return Pyramid(tapped.input, maps, name=f"{model.name}_features")


@keras.saving.register_keras_serializable("keras_resnext")
class Pyramid(keras.Model):
    """A functional model from images to feature maps, also for KerasHub."""

    @functools.cached_property
    def pyramid_outputs(self):
        """The maps that KerasHub's detectors and segmenters build on.

        A dictionary of Keras tensors: `"P2"` is `2**2` times smaller than the
        images, and so on. It holds the last map of each size, from the first
        blocks on, up to the deepest stage that this model has. Levels that
        the network's `output_stride` leaves out, as `"P5"` with 16, are every
        second pixel of the level before. Of what stands before the network,
        convolutions and pooling count; what else resizes images does not.

        Raises:
            ValueError: if the network is called several times.
        """
        maps, levels = nested.tap(self).output, {}
        stages = sorted(set(maps) - {"conv1"}, key=lambda stage: int(stage[4:]))
        for stage in stages:
            require(
                len(maps[stage]) == 1,
                "A pyramid for KerasHub must be of one network, called once",
                "Pass the network itself to `features`.",
                calls=len(maps[stage]),
            )
            (x,) = maps[stage]
            require(
                len(x.shape) == 4,
                "A pyramid for KerasHub must be of single pictures",
                "Pass the network itself to `features`.",
                shape=x.shape,
            )
            reached = nested.level(x)
            if stage == stages[0]:
                first = reached - int(stage[4:])
            levels[f"P{reached}"] = x
        # Every stage behind the first one would halve the maps.
        while stages and reached < first + int(stages[-1][4:]):
            order = nested.data_format(x)
            x = keras.layers.MaxPooling2D(1, 2, data_format=order)(x)
            reached += 1
            levels[f"P{reached}"] = x
        return levels


def stage_rates(model, optimizer, factors):
    """Gives stages learning rates of their own.

        optimizer = stage_rates(model, "adam", {"conv4": 0.1, "conv5": 0.3})

    Keras's `MultiOptimizer` does it, with a copy of the optimizer for each
    stage; it is saved with the model in `.keras`. Callbacks as
    `LearningRateScheduler` and `ReduceLROnPlateau` change the rate of each
    copy in turn: a function of the epoch and the rate so far keeps the
    factors, one of the epoch alone gives all the same rate. They and
    `TensorBoard` log each, as `learning_rate_adam_conv4`. Its limits: it
    has no `learning_rate` of its own, and below a `LossScaleOptimizer`, as
    with `mixed_float16`, these callbacks fail (give the optimizer a
    schedule); norms of gradients are clipped stage by stage; and what is
    excluded from weight decay must be excluded in each of its `optimizers`.

    Args:
        model: Model made by this package, or one that has it inside.
        optimizer: Keras optimizer, not used before, or its name, for all that
            has no factor. It has one learning rate, or a schedule; a
            `LossScaleOptimizer` goes around what is made of the one inside.
        factors: Dictionary from a stage to what its learning rate, and its
            weight decay, is multiplied with.

    Returns:
        The optimizer to compile `model` with.

    Raises:
        ValueError: if the model has no such stage, a factor is not positive,
            or the optimizer has not one learning rate.
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
    stages = nested.stages(model)
    for stage, factor in factors.items():
        _check_stage(stage, stages, "factors")
        require(
            factor > 0,
            "A factor must be positive",
            "Use `freeze` for a stage that must not change.",
            factors=factors,
        )
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # Keras wants it outside: one scale for the loss of all.
        config = optimizer.get_config()
        config["inner_optimizer"] = stage_rates(
            model, optimizer.inner_optimizer, factors
        )
        return keras.optimizers.LossScaleOptimizer(**config)
    # Of a variable, whole: the innermost stage in it is this one.
    optimizers = {
        rf"(.*/)?{stage}_[^/]*(/(?!conv\d+_)[^/]*)+": _scaled(
            optimizer, factor, stage
        )
        for stage, factor in factors.items()
    }
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(optimizer, optimizers),
        # Else Keras takes it away from the optimizers inside.
        loss_scale_factor=optimizer.loss_scale_factor,
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


def _scaled(optimizer, factor, stage):
    """Copies an optimizer with a learning rate times `factor`."""
    config = optimizer.get_config()
    if "name" in config:  # under which callbacks log its rate
        config["name"] += f"_{stage}"
    rate = config.get("learning_rate")
    if isinstance(rate, dict):
        # The object itself: a person's own class may not be registered.
        rate = optimizer._learning_rate
    schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    require(
        schedule or isinstance(rate, (int, float, np.number)),
        "`optimizer` must have one learning rate, a number or a Keras schedule",
        "Pass the optimizer itself, as `keras.optimizers.Adam(1e-3)`; what "
        "goes around it, put around what `stage_rates` returns.",
        optimizer=type(optimizer).__name__,
    )
    factor = float(factor)  # Keras knows no NumPy here
    rate = ScaledSchedule(rate, factor) if schedule else float(rate) * factor
    return type(optimizer).from_config(config | {"learning_rate": rate})


def _inside(model, stage):
    """Returns where a stage is, as the end of a sentence."""
    names = [
        layer.name
        for layer in nested.sublayers(model)
        if isinstance(layer, keras.Model) and stage in nested.stages(layer)
    ]
    return f", which is the layer {names[-1]!r} in it" if names else ""


def _check_graph(model):
    require(
        copies.has_graph(model),
        "`model` must be a functional or sequential model that is built",
        "Pass the network inside, or give `keras.Sequential` a `keras.Input`.",
        model=getattr(model, "name", model),
    )


def _check_stage(stage, stages, name):
    require(
        stage in stages,
        f"`{name}` must be of the model's stages, {list(stages)}",
        "A stage is what a network of this package begins its layers' names "
        "with, as conv4 in conv4_block1_out.",
        **{name: stage},
    )
