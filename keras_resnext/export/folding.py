"""Rebuilds models for inference: normalisation folded into convolutions."""

import keras
import numpy as np

from keras_resnext.layers import GroupedConv2D

# Constants make ResNeXt-50 15 to 20 % faster as TensorFlow Serving loads it
# (47 against 54-57 ms), but take 15 times their size in memory there, and
# variables 5 times. ResNeXt-101 32x4d is below this limit.
_MAX_CONSTANTS = 200_000_000  # bytes


class _Convolution(GroupedConv2D):
    """A grouped convolution with a bias that TensorFlow runs everywhere.

    `GroupedConv2D` takes another path where gradients are missing; an
    artifact must not depend on the machine that wrote it.
    """

    def call(self, inputs):
        import tensorflow as tf

        outputs = self._direct(inputs, self.kernel)
        if self.use_bias:
            # Grappler fuses a BiasAdd always, which fails where oneDNN is
            # off, but an addition only where oneDNN is on.
            outputs = tf.raw_ops.AddV2(x=outputs, y=self.bias)
        return self.activation(outputs)


def fold(model, dtype="float32"):
    """Rebuilds a model for inference, with new weights.

    Every batch normalisation that alone follows a convolution becomes the
    convolution's kernel and bias, `kernel * s` and `beta - mean * s` with
    `s = gamma / sqrt(variance + epsilon)`, computed in float64. Grouped
    convolutions become TensorFlow's operation, never XLA's.

    Args:
        model: Functional or sequential model with one input of channels last
            and one output. Nested models are rebuilt, too.
        dtype: Type of feature maps and of the weights that make them; what
            follows the pooling is float32, also of a model of mixed precision.

    Returns:
        A `keras.Model`. In float32 its outputs are those of `model` within
        1e-5 of the largest.
    """
    inputs, outputs = model.inputs[0], model.outputs[0]
    model = keras.Model(inputs, outputs, name=model.name)
    folded = _folded(model)
    skipped = {bn.name for bn in folded.values()}

    def clone(layer):
        if isinstance(layer, keras.Model):
            return fold(layer, dtype)
        config = layer.get_config()
        maps = len(layer.output.shape) == 4
        config["dtype"] = dtype if maps else "float32"
        if not isinstance(layer, keras.layers.Conv2D):
            return type(layer).from_config(config)
        kernel, bias = _weights(layer, folded.get(layer.name))
        config["use_bias"] = bias is not None
        new = (_Convolution if layer.groups > 1 else type(layer)).from_config(
            config
        )
        new.build(layer.input.shape)
        new.set_weights([kernel] if bias is None else [kernel, bias])
        return new

    new = keras.models.clone_model(
        model,
        keras.Input(inputs.shape[1:], name="images", dtype=inputs.dtype),
        clone_function=clone,
        call_function=lambda layer, x, **options: (
            x if layer.name in skipped else layer(x, **options)
        ),
    )
    filled = keras.layers.Conv2D, keras.Model
    for layer in new.layers:
        if layer.weights and not isinstance(layer, filled):
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return new


def frozen(model):
    """Returns a model as a `tf.function`, its weights constants if small.

    oneDNN prepares constant kernels once instead of in each call.

    Args:
        model: What `fold` returned.

    Returns:
        From `images`, as the model takes them, to `{"outputs": float32}`. The
        weights of a model beyond 200 MB stay variables.
    """
    import tensorflow as tf

    arrays = [
        [v.value.numpy() for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    ]
    size = sum(array.nbytes for group in arrays for array in group)
    image = model.inputs[0]

    @tf.function(
        input_signature=[tf.TensorSpec(image.shape, image.dtype, "images")]
    )
    def run(images):
        # A session forgets the shape of what it is fed, and Grappler then
        # cannot tell that both sides of a sum have the same.
        images = tf.ensure_shape(images, image.shape)
        if size > _MAX_CONSTANTS:
            outputs = model(images, training=False)
        else:
            constants = [[tf.constant(a) for a in group] for group in arrays]
            outputs, _ = model.stateless_call(
                *constants, images, training=False
            )
        return {"outputs": tf.cast(outputs, tf.float32)}

    return run


def _folded(model):
    """Returns the layers to fold: a convolution's name to its BN."""
    found = {}
    ends = {id(tensor) for tensor in model.outputs}
    for bn in model.layers:
        if not isinstance(bn, keras.layers.BatchNormalization):
            continue
        conv = bn.input._keras_history.operation
        if (
            isinstance(conv, keras.layers.Conv2D)
            and conv.activation is keras.activations.linear
            and len(conv._inbound_nodes) == len(conv._outbound_nodes) == 1
            and id(conv.output) not in ends
            and bn.axis in (-1, 3)
        ):
            found[conv.name] = bn
    return found


def _weights(conv, bn):
    """Returns the kernel and the bias, or None, of a folded convolution."""
    kernel = np.asarray(conv.kernel, "float64")
    bias = np.asarray(conv.bias, "float64") if conv.use_bias else None
    if bn is None:
        return kernel, bias
    scale = (np.asarray(bn.moving_variance, "float64") + bn.epsilon) ** -0.5
    if bn.scale:
        scale *= np.asarray(bn.gamma, "float64")
    shift = (0.0 if bias is None else bias) - np.asarray(bn.moving_mean)
    bias = shift * scale
    if bn.center:
        bias += np.asarray(bn.beta, "float64")
    return kernel * scale, bias
