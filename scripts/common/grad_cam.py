"""Finds what in a picture speaks for a class: Grad-CAM, on TensorFlow."""

import keras
import numpy as np

from keras_resnext import copies, nested

_ACTIVATIONS = (keras.layers.Activation, keras.layers.Softmax)


def grad_cam(model, images, classes):
    """Computes which places in the pictures speak for a class.

    Channels of the last feature maps are added up, weighted with the mean
    gradient of the class's score before the softmax; what speaks against it
    is left out.

    Args:
        model: Functional or sequential network made by this package, or one
            that has it inside, also below `keras.layers.TimeDistributed`.
        images: Normalised pictures, `(n, height, width, 3)`, or what else the
            model takes, as a list of them.
        classes: A class for each, integers `(n,)`.

    Returns:
        Heat maps in 0..1, `(n, rows, columns)`, or `(n, steps, rows,
        columns)` of sequences; a list of them, one for each call, where the
        model calls the network several times.

    Raises:
        ValueError: If the network has no such feature maps.

    Source: Selvaraju et al., https://arxiv.org/abs/1610.02391.
    """
    import tensorflow as tf

    stage, tapped = list(nested.stages(model))[-1:], None
    if stage and copies.has_graph(model):
        tapped = nested.tap(_logits(model) or model, stage, outputs=True)
    if tapped is None:
        raise ValueError(
            "The network must have feature maps as conv4_block3_out, in "
            f"models made of Keras tensors. Received: {model.name} without "
            "any. Pass a network made by this package."
        )
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        # The tape keeps what depends on these; frozen ones are not trainable.
        tape.watch([variable.value for variable in tapped.weights])
        maps, scores = tapped(images, training=False)
        # Of a sequence of scores the sum.
        chosen = tf.one_hot(classes, scores.shape[-1], dtype=scores.dtype)
        chosen = tf.einsum("n...c,nc->n", scores, chosen)
    maps = maps[stage[0]]
    gradients = tape.gradient(chosen, maps)
    heat = [_heat(*pair) for pair in zip(maps, gradients, strict=True)]
    if len(model.inputs[0].shape) == 5:  # the steps are in one batch
        shape = len(classes), -1
        heat = [one.reshape(shape + one.shape[1:]) for one in heat]
    return heat[0] if len(heat) == 1 else heat


def _heat(maps, gradients):
    """Weighs the channels of maps, and brings the sum to 0..1."""
    import tensorflow as tf

    weights = tf.reduce_mean(gradients, (-3, -2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * maps, -1))
    heat = tf.cast(heat, "float32").numpy()
    most = heat.max((-2, -1), keepdims=True)
    return heat / np.maximum(most, np.finfo("float32").tiny)


def activation(model):
    """Returns the activation at the end of a network, of one inside, too."""
    end = model.layers[-1]
    if copies.has_graph(model):
        end = nested.end(model.outputs[0])
    if isinstance(end, keras.layers.Softmax):
        return keras.activations.softmax
    return getattr(end, "activation", keras.activations.linear)


def _logits(model):
    """Returns a network without the activation at its end.

    The layers are shared, but for the last one.

    Returns:
        A functional `keras.Model`, or `None` if there is no activation.
    """
    if activation(model) is keras.activations.linear:
        return None
    node = nested.source(model.outputs[0])
    layer = node.operation
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if isinstance(layer, _ACTIVATIONS):
        scores = node.input_tensors[0]
    elif hasattr(layer, "activation") and copies.is_plain(layer):
        scores = copies.copy(layer, activation="linear")(*args, **kwargs)
    else:
        inner = nested.rewrap(layer, _logits)
        if inner is None:
            return None
        scores = inner(*args, **kwargs)
    return keras.Model(copies.graph(model).input, scores, name=model.name)
