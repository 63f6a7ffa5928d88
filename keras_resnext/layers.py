"""The layers that ResNeXt needs and Keras does badly on TensorFlow or JAX."""

import functools

import keras
import numpy as np
from keras import ops

_PACKAGE = "keras_resnext"
# What TensorFlow's fused normalisation takes, beside weights of float32.
_FUSED_DTYPES = {"float32", "bfloat16", "float16"}
# Channels of groups that are convolved together; measured on ResNeXt-50.
_MERGED = 16
# Beyond so many taps of a kernel for each position of the feature map, scaling
# the kernel takes longer than normalising one image's feature map; measured.
_TAPS_FOR_EACH_POSITION = 8


def _on_tensorflow():
    return keras.backend.backend() == "tensorflow"


def _on_jax_cpu():
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


@functools.cache
def _trains_directly(dtype="float32"):
    """Tells whether TensorFlow here has gradients of grouped convolutions.

    It has them on GPUs and, through oneDNN, on CPUs. Where oneDNN is off
    (`TF_ENABLE_ONEDNN_OPTS=0`, older CPUs, macOS) they raise, and where it is
    on they raise in the types that it lacks: float64, and without AVX-512
    bfloat16 and float16. Which of these holds is told by no public function,
    so a tiny convolution is tried.
    """
    import tensorflow as tf

    with tf.init_scope():  # at once, also while a graph is being traced
        try:
            tf.raw_ops.Conv2DBackpropFilter(
                input=tf.ones((1, 3, 3, 4), dtype),
                filter_sizes=(3, 3, 2, 4),
                out_backprop=tf.ones((1, 1, 1, 4), dtype),
                strides=(1, 1, 1, 1),
                padding="VALID",
            )
        except tf.errors.OpError:
            return False
    return True


def _on_cpu():
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def _on_images(operation, images):
    """Applies an operation to images, of which there can be none.

    A replica can be without an image at the end of an epoch. On a CPU with
    oneDNN, convolutions of nothing then have the shape of their input, and
    the gradient of pooling ends the process: so they get one of zeros.

    Not so in a graph of one device for any number of images: what cuts the
    zeros off again would part each convolution from what is fused with it.
    It raises without an image, as docs/errors.md says.

    Args:
        operation: From feature maps to feature maps, one for each image.
        images: `(batch, ...)`, a tensor of TensorFlow.

    Returns:
        A tensor `(batch, ...)`.
    """
    import tensorflow as tf

    batch = images.shape[0]
    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if batch or (batch is None and not (shared and _on_cpu())):
        return operation(images)
    shape = tf.shape(images)
    missing = tf.cast(tf.equal(shape[:1], 0), shape.dtype)
    zeros = tf.zeros(tf.concat([missing, shape[1:]], 0), images.dtype)
    # Not `tf.pad`, which becomes part of a convolution that follows.
    padded = tf.concat([images, zeros], 0)
    padded.set_shape((None, *images.shape[1:]))
    return operation(padded)[: shape[0]]


def _kept_apart(x):
    """Returns a tensor with which Grappler fuses nothing that follows.

    To a tape there is no operation: TensorFlow's forward accumulators, which
    products with the Hessian need, fail at this one in a graph.
    """
    import tensorflow as tf
    from tensorflow.python.eager import record

    with record.stop_recording():
        y = tf.ensure_shape(x, x.shape)
    record.record_operation("KeptApart", [y], [x], lambda gradient: [gradient])
    return y


@keras.saving.register_keras_serializable(_PACKAGE)
class GroupedConv2D(keras.layers.Conv2D):
    """A `keras.layers.Conv2D` whose groups are fast and export cleanly.

    Arguments, weights, kernel layout `(height, width, channels // groups,
    filters)` and results are those of `keras.layers.Conv2D`. The difference
    is what runs on TensorFlow: Keras compiles every grouped convolution with
    XLA, which makes the gradient of the kernel hundreds of times slower on a
    CPU and the exported model fail where XLA is disabled, as in TF Serving.
    Here TensorFlow's own operation runs or, where that one has no gradient,
    several convolutions without groups. These also give the gradients under
    JAX on a CPU, where XLA's are as slow. Otherwise other backends keep
    Keras's path.

    A replica of a `tf.distribute.Strategy` can be without an image.

    On a CPU the layer also says `supports_jit = False`, so that
    `compile(jit_compile="auto")` does not compile the whole train step with
    XLA, which would bring the slow gradient back.

    Input and output shapes: as `keras.layers.Conv2D`, 4D, either data format.

    Raises:
        ValueError: as `keras.layers.Conv2D`, for instance if `filters` or the
            number of input channels is not a multiple of `groups`.
    """

    def __init__(self, *args, **kwargs):
        """Takes the arguments of `keras.layers.Conv2D`."""
        super().__init__(*args, **kwargs)
        if _on_tensorflow() and self.groups > 1 and _on_cpu():
            self.supports_jit = False

    def convolution_op(self, inputs, kernel):
        """Convolves `inputs` with `kernel` in `self.groups` groups."""
        if _on_tensorflow():
            return _on_images(lambda x: self._convolve(x, kernel), inputs)
        if self.groups > 1 and _on_jax_cpu():
            return self._convolve_on_jax(inputs, ops.convert_to_tensor(kernel))
        return super().convolution_op(inputs, kernel)

    def _convolve_on_jax(self, inputs, kernel):
        """Convolves as Keras does, and differentiates what `_split` does.

        Inference stays one operation, which XLA compiles in less time.
        """
        import jax

        convolve = jax.custom_jvp(super().convolution_op)
        convolve.defjvp(lambda values, by: jax.jvp(self._split, values, by))
        return convolve(inputs, kernel)

    def _convolve(self, inputs, kernel):
        import tensorflow as tf

        if self.groups == 1:
            return super().convolution_op(inputs, kernel)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if not _trains_directly(dtype):
            return self._split(inputs, kernel)
        channels_last = self.data_format == "channels_last"
        outputs = tf.nn.convolution(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding.upper(),
            data_format="NHWC" if channels_last else "NCHW",
            dilations=list(self.dilation_rate),
        )
        # Keeps Grappler from fusing what follows: a graph traced here may be
        # served where oneDNN is off, and there the fused operation has no
        # groups.
        return _kept_apart(outputs)

    def _split(self, inputs, kernel):
        """Convolves the groups one after the other, small ones together.

        Groups are put together with zeros between them: many times the
        arithmetic, which takes less time than convolutions of few channels.
        """
        each, filters = kernel.shape[-2], kernel.shape[-1] // self.groups
        together = max(
            n
            for n in range(1, self.groups + 1)
            if self.groups % n == 0 and (n == 1 or n * each <= _MERGED)
        )
        if together > 1:
            # 1 where a channel and a filter of `together` groups are of one.
            ones = np.kron(np.eye(together), np.ones((each, filters)))
            ones = np.tile(ones, self.groups // together)
            kernel = ops.tile(kernel, (1, 1, together, 1))
            kernel *= ops.convert_to_tensor(ones, kernel.dtype)
        count = self.groups // together
        axis = -1 if self.data_format == "channels_last" else 1
        outputs = map(
            super().convolution_op,
            ops.split(inputs, count, axis=axis),
            ops.split(kernel, count, axis=-1),
        )
        return ops.concatenate(list(outputs), axis=axis)


@keras.saving.register_keras_serializable(_PACKAGE)
class MaxPooling2D(keras.layers.MaxPooling2D):
    """A `keras.layers.MaxPooling2D` that trains without an image, too.

    Arguments and results are those of `keras.layers.MaxPooling2D`; a replica
    of a `tf.distribute.Strategy` can be without an image.
    """

    def call(self, inputs):
        """Pools `inputs`, 4D, either data format."""
        if not _on_tensorflow():
            return super().call(inputs)
        return _on_images(super().call, inputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class Add(keras.layers.Add):
    """A `keras.layers.Add` before a ReLU, fast for a single image.

    Arguments and results are those of `keras.layers.Add`.
    """

    def call(self, inputs):
        """Adds up `inputs`, a list of tensors of one shape."""
        outputs = super().call(inputs)
        if _on_tensorflow() and any(map(_has_scaled_kernel, inputs)):
            # Else Grappler fuses the ReLU, too. For one image and a kernel
            # that is no constant oneDNN takes a matrix product, and behind
            # that without AVX-512 a sum with a ReLU takes three times as long
            # as the product; a sum alone takes nothing.
            outputs = _kept_apart(outputs)
        return outputs


def _has_scaled_kernel(inputs):
    """Tells whether these are of `BatchNormalization`'s own convolution."""
    import tensorflow as tf

    if not tf.is_symbolic_tensor(inputs) or inputs.op.type != "BiasAdd":
        return False
    conv = inputs.op.inputs[0].op
    return conv.type == "Conv2D" and conv.inputs[1].op.type == "Mul"


def _convolution_behind(inputs):
    """Returns the operation if these are of a convolution, else `None`."""
    conv = inputs.op
    if conv.type == "EnsureShape":  # of `GroupedConv2D`
        conv = conv.inputs[0].op
    found = conv.type == "Conv2D" and conv.get_attr("data_format") == b"NHWC"
    return conv if found else None


def _is_quickly_scaled(kernel, maps):
    """Tells whether scaling a kernel takes less time than one image's maps."""
    _, height, width, filters = maps.shape
    if not (height and width and filters):
        return True
    taps = kernel.shape.num_elements() // filters
    return taps <= _TAPS_FOR_EACH_POSITION * height * width


def _scaled_convolution(conv, kernel, inputs, scale, shift):
    """Repeats a convolution so that it gives `inputs * scale + shift`.

    Args:
        conv: The operation, channels last, of one or more groups.
        kernel: Its kernel, before it was rounded.
        inputs: What it gives by itself.
        scale: Factor for each of its filters.
        shift: What is added to each, of the type of `inputs`.
    """
    import tensorflow as tf
    from tensorflow.python.eager import record

    with record.stop_recording():
        scaled = tf.cast(tf.cast(kernel, scale.dtype) * scale, inputs.dtype)
        names = "strides padding explicit_paddings dilations data_format"
        outputs = tf.raw_ops.Conv2D(
            input=conv.inputs[0],
            filter=scaled,
            **{name: conv.get_attr(name) for name in names.split()},
        )
        # With groups: Grappler fuses a BiasAdd always, which fails where
        # oneDNN is off, but an addition only where oneDNN is on.
        grouped = conv.inputs[0].shape[-1] != kernel.shape[2]
        outputs = (tf.add if grouped else tf.nn.bias_add)(outputs, shift)

    def gradients(gradient):
        products = tf.cast(gradient * inputs, scale.dtype)
        return [
            gradient * tf.cast(scale, inputs.dtype),
            tf.reduce_sum(products, (0, 1, 2)),
            tf.reduce_sum(gradient, (0, 1, 2)),
        ]

    # To a tape it is `inputs * scale + shift`: who asks for the gradient at
    # the convolution's output, as Grad-CAM does, else gets none.
    record.record_operation(
        "Folded", [outputs], [inputs, scale, shift], gradients
    )
    return outputs


@keras.saving.register_keras_serializable(_PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """A `keras.layers.BatchNormalization` that is one fused operation.

    Arguments, weights and results are those of Keras's layer. On TensorFlow
    it is one operation instead of a chain of elementwise ones, and in the
    inference of a graph part of the convolution before it. There the moving
    variance follows the unbiased variance of the batch, as in PyTorch. Other
    backends keep Keras's path, whose moving variance follows the biased one,
    and so do tensors of other than 4 axes, layers without scale or offset and
    policies of pure float64, float16 or bfloat16. Under a
    `tf.distribute.Strategy` each replica normalises with its own share of the
    batch, and the moving statistics of all follow their mean; those of a
    replica without an image stay as they are.
    """

    def add_weight(self, *args, trainable=True, **kwargs):
        """Takes the arguments of `keras.layers.Layer.add_weight`."""
        if not trainable:
            # Keras's default lets the statistics of each replica go their own
            # way, and saves those of the first one.
            kwargs["aggregation"] = "mean"
        return super().add_weight(*args, trainable=trainable, **kwargs)

    def call(self, inputs, training=None, mask=None):
        """Normalises `inputs`, shape `(batch, ..., channels, ...)`."""
        if not self._fuses(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        training = bool(training and self.trainable)
        if not training and tf.is_symbolic_tensor(inputs) and _on_cpu():
            outputs = self._folded(inputs)
            if outputs is not None:
                return outputs
            # Else Grappler fuses it with the convolution, which without
            # AVX-512 oneDNN computes twenty times slower for a single image.
            inputs = _kept_apart(inputs)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=() if training else self.moving_mean,
            variance=() if training else self.moving_variance,
            epsilon=self.epsilon,
            data_format="NHWC" if self.axis in (-1, 3) else "NCHW",
            is_training=training,
        )
        if not training:
            return outputs
        # A replica can be without an image, at the end of an epoch; the mean
        # of nothing is no number.
        empty = tf.equal(tf.size(inputs), 0)
        for moving, batch in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            new = moving * self.momentum + batch * (1.0 - self.momentum)
            moving.assign(tf.where(empty, moving, new))
        return outputs

    def _folded(self, inputs):
        """Returns the outputs by a convolution with kernel and bias of its own.

        The convolution that made `inputs` is left without a use, and falls
        out of the graph. `None` without such a convolution, or where scaling
        its kernel takes longer than normalising the feature map.
        """
        import tensorflow as tf

        conv = _convolution_behind(inputs)
        if conv is None or self.axis == 1:  # whose channels come last
            return None
        kernel = conv.inputs[1]
        if kernel.op.type == "Cast":  # of mixed precision: rounds once only
            kernel = kernel.op.inputs[0]
        if not _is_quickly_scaled(kernel, inputs):
            return None
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        shift = tf.cast(self.beta - self.moving_mean * scale, inputs.dtype)
        return _scaled_convolution(conv, kernel, inputs, scale, shift)

    def _fuses(self, inputs, mask):
        return (
            _on_tensorflow()
            and len(inputs.shape) == 4
            and self.axis in (-1, 1, 3)
            and self.scale
            and self.center
            and mask is None
            and not getattr(self, "renorm", False)  # newer Keras has it
            and not self.synchronized
            and self.variable_dtype == "float32"
            and keras.backend.standardize_dtype(inputs.dtype) in _FUSED_DTYPES
        )
