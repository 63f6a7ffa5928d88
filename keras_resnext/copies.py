"""Copies layers and graphs without losing what a layer keeps to itself.

A layer made anew from its configuration is its old self only if configuration
and weights are all it has. That holds for Keras's layers and ours, but for
the few named here; of any other nobody knows, and it is used as it is.
"""

import contextlib

import keras

from keras_resnext.registry import require

# Keras's and ours, of networks and of folded ones.
_LAYERS = (
    "keras.src.layers.",
    "keras_resnext.layers",
    "keras_resnext.export.folding",
)
# What Keras writes into a configuration by name, which only finds what is
# registered; the objects themselves are at hand.
_OBJECTS = ("activation", "initializer", "regularizer", "constraint")
_CALLS = ("keras.src.models.functional", "keras.src.models.sequential")


def has_graph(model):
    """Tells whether what a model computes is the graph of its layers.

    Args:
        model: Any operation.

    Returns:
        True for functional and built sequential models, unless their class
        has a `call` of its own.
    """
    if (
        not isinstance(model, keras.Model)
        or type(model).call.__module__ not in _CALLS
        or "call" in vars(model)
    ):
        return False
    if isinstance(model, keras.Sequential):
        return model.built and len(getattr(model, "outputs", ())) == 1
    return True


def graph(model):
    """Returns the graph of a model that `has_graph`.

    Returns:
        An uncompiled functional `keras.Model` with the same layers, inputs,
        outputs and name.
    """
    if isinstance(model, keras.Sequential):
        # Its `input` and `output` are those of the first call.
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def is_plain(layer):
    """Tells whether configuration and weights are all that a layer has.

    Args:
        layer: Any operation.

    Returns:
        True for layers of exactly Keras's classes and ours, without state
        that `adapt` or `quantize` has made, functions of a person's own, or
        layers inside.
    """
    return _is_known(layer) and len(layer._flatten_layers()) == 1


def _is_known(layer):
    """Tells whether a class is Keras's or ours, and nothing was added to it."""
    kind = type(layer)
    return (
        kind.__module__.startswith(_LAYERS)
        and kind is not keras.layers.Lambda
        and not hasattr(layer, "adapt")
        and not getattr(layer, "quantization_mode", None)
        and "call" not in vars(layer)
    )


def has_fractions(layer):
    """Tells whether a layer computes with fractions, and could in other types.

    A type of integers is a part of what a layer computes: `Resizing(...,
    dtype="uint8")` rounds.
    """
    return keras.backend.is_float_dtype(layer.compute_dtype)


def wraps_steps(op):
    """Tells whether an operation is a model with a graph for each step."""
    return (
        isinstance(op, keras.layers.TimeDistributed)
        and type(op).__module__.startswith(("keras.src.", "keras_resnext."))
        and has_graph(op.layer)
    )


def require_unquantised(model, advice):
    """Refuses a model whose layers Keras's `quantize` has changed."""
    quantised = [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "quantization_mode", None)
    ]
    require(
        not quantised,
        "The model must not have been quantised by Keras",
        advice,
        layers=quantised,
    )


def copy(layer, weights=None, shape=None, kind=None, **changes):
    """Makes a plain layer anew.

    Args:
        layer: Layer that `is_plain` and has been built.
        weights: Arrays for the copy, which has no LoRA then; or `None` for
            those of `layer`.
        shape: Of the copy's input, or `None` for that of `layer`.
        kind: Class of the copy, or `None` for that of `layer`.
        **changes: Of the configuration.

    Returns:
        A built layer of the same name with weights of its own.
    """
    config = layer.get_config()
    for key in config:
        if key.endswith(_OBJECTS) and hasattr(layer, key):
            config[key] = getattr(layer, key)
    if weights is not None:
        config = {k: v for k, v in config.items() if not k.startswith("lora")}
    new = (kind or type(layer)).from_config(config | changes)
    if shape is None:
        new.build_from_config(layer.get_build_config())
    else:
        new.build(shape)
    if getattr(new, "lora_enabled", False):
        new.lora_alpha = layer.lora_alpha  # which `Dense` would forget
    new.set_weights(layer.get_weights() if weights is None else weights)
    return new


def rebuild(model, clone, call=None, shapes=()):
    """Builds the graph of a model anew.

    Args:
        model: Model that `has_graph`.
        clone: Function from an operation of the graph to the one that takes
            its place, which may be the same.
        call: Function that calls it, of itself and its arguments.
        shapes: Pairs of an input of the model and the new shape, without the
            batch, where it changes.

    Returns:
        An uncompiled functional `keras.Model` of the same name, structure of
        inputs and outputs, and trainability.
    """
    old = graph(model)

    def renew(x):
        shape = next((s for y, s in shapes if y is x), x.shape[1:])
        return keras.Input(shape, dtype=x.dtype, name=x.name)

    inputs = keras.tree.map_structure(renew, old.input)
    new = keras.models.clone_model(old, inputs, clone, call)
    if not model.trainable:
        new.trainable = False
    return new


def recast(model, dtype):
    """Makes the layers of a model anew that compute in another type.

    Args:
        model: Any model.
        dtype: Of the layers that compute with fractions and are plain, or
            hold only such.

    Returns:
        `model` itself if there is no such layer, else a model of the same
        graph, names and weights.
    """

    def clone(op):
        if has_graph(op):
            return recast(op, dtype)
        if wraps_steps(op):  # hides a whole network
            inner = recast(op.layer, dtype)
            if inner is op.layer:
                return op
            return type(op)(inner, name=op.name, dtype=dtype)
        return (
            copy(op, dtype=dtype) if differs(op) else recast_inside(op, dtype)
        )

    def differs(op):
        return (
            isinstance(op, keras.Layer)
            and is_plain(op)
            and has_fractions(op)
            and not isinstance(op, keras.layers.InputLayer)
            and op.dtype_policy.name != dtype
        )

    if has_graph(model) and any(map(differs, model._flatten_layers())):
        return rebuild(model, clone)
    return model


def recast_inside(op, dtype):
    """Makes a layer that holds others anew, to compute in another type.

    Attention, recurrent layers and wrappers, if all that is inside is Keras's
    or ours, and configurations and weights tell it.

    Args:
        op: Any operation.
        dtype: Of all that is inside.

    Returns:
        A built layer of the same name with weights of its own; `op` itself
        where it has that type, or cannot be told from a copy for certain.
    """
    if not isinstance(op, keras.Layer) or not op.weights:
        return op
    parts = op._flatten_layers()
    if len(parts) == 1 or not all(map(_is_told_by_names, parts)):
        return op
    if all(part.dtype_policy.name == dtype for part in parts):
        return op
    new = type(op).from_config(_with_type(op.get_config(), dtype))
    new.build_from_config(op.get_build_config())
    new.set_weights(op.get_weights())
    return new


def mixed(model):
    """Lists the layers of a model, and inside of them, of mixed precision."""
    return [
        layer
        for layer in model._flatten_layers()
        if layer.dtype_policy.name.startswith("mixed_")
    ]


@contextlib.contextmanager
def in_float32(model):
    """Has what a model has of mixed precision compute in float32 meanwhile.

    For the layers that `recast` leaves, which cannot be made anew.
    """
    policies = [(layer, layer.dtype_policy) for layer in mixed(model)]
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def _is_told_by_names(layer):
    """Tells whether a configuration within another one says all of a layer."""
    return (
        _is_known(layer)
        and has_fractions(layer)
        and not getattr(layer, "lora_enabled", False)  # which some forget
        and not getattr(layer, "stateful", False)
        and all(
            value is None or _module(value).startswith("keras.src.")
            for key, value in vars(layer).items()
            if key.endswith(_OBJECTS)
        )
    )


def _module(value):
    return getattr(value, "__module__", None) or type(value).__module__


def _with_type(config, dtype):
    """Returns a configuration, and those in it, with another type."""
    if isinstance(config, dict):
        return {
            key: dtype if key == "dtype" else _with_type(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_with_type(value, dtype) for value in config]
    return config
