"""Rebuilds models for inference: normalisation folded into convolutions."""

import collections
import contextlib
import functools
import itertools

import keras

from keras_resnext import copies
from keras_resnext.layers import BatchNormalization, GroupedConv2D
from keras_resnext.registry import require

# Constants make ResNeXt-50 15 to 20 % faster as TensorFlow Serving loads it
# (47 against 54-57 ms), but take 15 times their size in memory there, and
# variables 5 times. ResNeXt-101 32x4d is below this limit.
_MAX_CONSTANTS = 200_000_000  # bytes
# Exactly these: a class derived from them may compute something else.
_CONVOLUTIONS = (keras.layers.Conv2D, GroupedConv2D)
_KERNELS = (*_CONVOLUTIONS, keras.layers.Dense)
_NORMALISATIONS = (keras.layers.BatchNormalization, BatchNormalization)


@keras.saving.register_keras_serializable("keras_resnext")
class _Convolution(GroupedConv2D):
    """A grouped convolution for inference alone, which runs everywhere.

    `GroupedConv2D` takes another path where gradients are missing; an
    artifact must not depend on the machine that wrote it. For holes, whose
    gradient not every CPU has, TensorFlow convolves a batch of small maps and
    puts these together again, which hides from OpenVINO that there are groups.
    """

    def call(self, inputs):
        if keras.backend.backend() != "tensorflow":
            return super().call(inputs)
        import tensorflow as tf

        outputs = tf.nn.conv2d(
            inputs,
            self.kernel,
            self.strides,
            self.padding.upper(),
            dilations=self.dilation_rate,
        )
        if self.use_bias:
            # Grappler fuses a BiasAdd always, which fails where oneDNN is
            # off, but an addition only where oneDNN is on.
            outputs = tf.raw_ops.AddV2(x=outputs, y=self.bias)
        return self.activation(outputs)


def fold(model, dtype="float32"):
    """Rebuilds a model for inference, faster than the model itself.

    Every batch normalisation that alone follows a convolution or `Dense`
    becomes its kernel and bias, `kernel * s` and `beta - mean * s` with
    `s = gamma / sqrt(variance + epsilon)`, computed in float64. Layers of
    grouped convolutions become TensorFlow's operation, never XLA's. What LoRA
    has learned is added to the kernels.

        folded = keras_resnext.export.fold(model)
        scores = folded.predict_on_batch(images)

    Training is dropped: the result is not compiled, `fit` refuses, and its
    weights are constants from the first prediction on. They are copies,
    which later training of `model` leaves as they are. Layers of a person's
    own classes, and those with `adapt`, are used as they are, and shared.

    Args:
        model: Functional or sequential model, with any layers, operations,
            inputs and outputs. Models inside are rebuilt, too.
        dtype: Type of feature maps and of the weights that make them; what
            follows the pooling is float32, also of a model of mixed precision.
            Layers whose type is of integers keep it.

    Returns:
        A `keras.Model` of the same inputs and outputs. In float32 its outputs
        are those of `model` within 1e-5 of the largest.

    Raises:
        ValueError: If `model` is neither functional nor sequential, or has
            been quantised by Keras.
    """
    return folded(model, dtype)


def folded(model, dtype, bits=True):
    """Does what `fold` does, for any format.

    Args:
        model: As for `fold`.
        dtype: As for `fold`.
        bits: Whether `argmax` and `argmin` may look at bits, which of all
            formats only the SavedModel can.

    Returns:
        As `fold` does.
    """
    if isinstance(model, keras.Function) and not copies.has_graph(model):
        model = wrapped(model)
    require(
        copies.has_graph(model),
        "`model` must be a functional or sequential Keras model",
        "Call a subclassed one on a `keras.Input`, and make a `keras.Model` "
        "of both.",
        model=type(model).__name__,
    )
    copies.require_unquantised(
        model,
        'Use the model before `quantize`; `export` has `precision="int8"`.',
    )
    new = _rebuilt(model, dtype, bits)
    return _Folded(new.input, new.output, name=new.name)


def savable(op):
    """Puts graphs in place of what `fold` returned, which refuses to be saved.

    Args:
        op: Model, or an operation of one.

    Returns:
        `op` itself if nothing in it has been folded.
    """
    parts = op._flatten_layers() if isinstance(op, keras.Layer) else ()
    if not any(isinstance(part, _Folded) for part in parts):
        return op
    if copies.has_graph(op):
        return copies.rebuild(op, savable)
    if copies.wraps_steps(op):
        return type(op)(savable(op.layer), name=op.name, dtype=op.dtype_policy)
    return op


class _Folded(keras.Model):
    """A model for predictions alone, its weights constants as in a file."""

    def train_step(self, *_):
        raise ValueError(
            "A model that can be trained is required, not what `fold` "
            f"returned. Received: model={self.name!r}. Train the model that "
            "was folded, and fold it again."
        )

    def get_config(self):
        raise ValueError(
            "A model that can be saved is required, not what `fold` returned. "
            f"Received: model={self.name!r}. Save the model that was folded, "
            "and fold it again, or `export` it."
        )

    def save(self, *_, **__):
        self.get_config()  # which Keras asks for when the file has begun

    def predict_step(self, data, *rest):
        if keras.backend.backend() != "tensorflow":
            return super().predict_step(data, *rest)
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(inputs, dict) and not isinstance(self.input, dict):
            inputs = [inputs[own.name] for own in self.inputs]
        given = map(_cast, keras.tree.flatten(inputs), self.inputs)
        outputs = self._frozen(*given).values()
        return keras.tree.pack_sequence_as(self.output, list(outputs))

    @functools.cached_property
    def _frozen(self):
        import tensorflow as tf

        with tf.init_scope():  # also while a graph is being traced
            return frozen(self)


def _cast(given, own):
    """Returns an input in the type of the model's own, as Keras casts."""
    require(
        given.shape.is_compatible_with(own.shape),
        f"An input of the shape {own.shape} is required",
        "Resize the pictures, or build the model for any size.",
        shape=tuple(given.shape),
    )
    given.set_shape(own.shape)  # Keras traces without the sizes that varied
    return keras.ops.cast(given, own.dtype)


def takes_images(x):
    """Tells whether an input is for an image, or as many in each row."""
    shape = x.shape
    return len(shape) == 4 or (len(shape) == 5 and shape[1] is not None)


def input_names(model):
    """Names the inputs of a model, in their order.

    Returns:
        `images` for a single input; for several their own names.
    """
    names = [x.name for x in model.inputs]
    return names if len(names) > 1 else ["images"]


def output_names(model):
    """Names the outputs of a model, in their order.

    Returns:
        The keys of a dictionary; `outputs` for a single output, and
        `outputs_0`, `outputs_1`... for several.
    """
    prefix = () if isinstance(model.output, dict) else ("outputs",)
    return [
        "_".join(map(str, (*prefix, *path)))
        for path, _ in keras.tree.flatten_with_path(model.output)
    ]


def frozen(model, context=contextlib.nullcontext):
    """Returns a model as a `tf.function`, its weights constants if small.

    oneDNN prepares constant kernels once instead of in each call.

    Args:
        model: What `fold` returned.
        context: Function that returns a context, in which it is traced.

    Returns:
        From the inputs, named as `input_names` has them, to a dictionary by
        `output_names`, of float32 where the model computes with fractions.
        The weights of a model beyond 200 MB stay variables.
    """
    import tensorflow as tf

    groups = model.trainable_variables, model.non_trainable_variables
    size = sum(
        v.value.dtype.size * v.value.shape.num_elements()
        for group in groups
        for v in group
    )
    small = size <= _MAX_CONSTANTS
    arrays = small and [[v.value.numpy() for v in group] for group in groups]
    specs = [
        tf.TensorSpec(x.shape, x.dtype, name)
        for x, name in zip(model.inputs, input_names(model), strict=True)
    ]

    @tf.function(input_signature=specs)
    def run(*images):
        # A session forgets the shape of what it is fed, and Grappler then
        # cannot tell that both sides of a sum have the same.
        images = [
            tf.ensure_shape(x, spec.shape)
            for x, spec in zip(images, specs, strict=True)
        ]
        images = keras.tree.pack_sequence_as(model.input, images)
        with context(), copies.in_float32(model):
            if not small:
                outputs = model(images, training=False)
            else:
                values = [[tf.constant(a) for a in group] for group in arrays]
                outputs, _ = model.stateless_call(
                    *values, images, training=False
                )
        return {
            name: tf.cast(y, tf.float32) if y.dtype.is_floating else y
            for name, y in zip(
                output_names(model), keras.tree.flatten(outputs), strict=True
            )
        }

    return run


class NotServable(ValueError):
    """Says what of a model no runtime has."""


def servable(model):
    """Does what `frozen` does, for a runtime without XLA and without Python.

    Keras puts grouped convolutions into functions that XLA must compile. Those
    that `fold` has not replaced, as of a person's own layers, are a part of
    the graph here.

    Raises:
        NotServable: If the model has functions that only XLA or Python runs.
    """
    run = frozen(model)
    xla, python = _needs(run)
    if xla:
        run = frozen(model, _inlining)
        xla, python = _needs(run)
    if python or xla:
        kind = "`jit_compile=True`, traced before"
        if python:
            kind = "`tf.numpy_function` or `tf.py_function`"
        raise NotServable(
            "A model that runs without Python and XLA is required, as runtimes "
            f"have neither. Received: model={model.name!r} with "
            f"{python or xla}, a function of {kind}. Nothing was written; use "
            "Keras's operations there, or export the network below it."
        )
    return run


def _needs(run):
    """Returns the names of what XLA, and Python, must run, or `None`."""
    graph = run.get_concrete_function().graph.as_graph_def()
    functions = graph.library.function
    compiled = (
        f.signature.name for f in functions if f.attr["_XlaMustCompile"].b
    )
    nodes = itertools.chain(graph.node, *(f.node_def for f in functions))
    python = (node.name for node in nodes if "PyFunc" in node.op)
    return next(compiled, None), next(python, None)


@contextlib.contextmanager
def _inlining():
    """Has functions that are called while a graph is traced be part of it.

    A convolution with groups is kept apart from what follows, with which
    Grappler would fuse it: where oneDNN is off, there are no groups then.
    """
    import tensorflow as tf

    usual = tf.config.functions_run_eagerly()
    convolve = tf.nn.convolution

    def apart(inputs, kernel, *args, **options):
        outputs = convolve(inputs, kernel, *args, **options)
        grouped = inputs.shape[-1] != kernel.shape[-2]
        return tf.ensure_shape(outputs, outputs.shape) if grouped else outputs

    tf.config.run_functions_eagerly(True)
    tf.nn.convolution = apart
    try:
        yield
    finally:
        tf.nn.convolution = convolve
        tf.config.run_functions_eagerly(usual)


@keras.saving.register_keras_serializable("keras_resnext")
class _UpSampling2D(keras.layers.UpSampling2D):
    """Takes maps of any size in a graph, too.

    Keras 3.15 compares the new size there: keras-team/keras#22079.
    """

    def call(self, inputs):
        if (
            keras.backend.backend() != "tensorflow"
            or self.interpolation == "nearest"
            or self.data_format == "channels_first"
            or None not in inputs.shape[1:3]
        ):
            return super().call(inputs)
        import tensorflow as tf

        size = tf.shape(inputs)[1:3] * self.size
        outputs = tf.image.resize(inputs, size, self.interpolation)
        return tf.cast(outputs, inputs.dtype)


class _Index(keras.Operation):
    """Keras's `argmax` or `argmin` as one operation of TensorFlow.

    Keras tells -0.0 from 0.0 by their bits, which of all formats only the
    SavedModel can look at. Here they are equal, and the first one counts.
    """

    def __init__(self, op):
        super().__init__(name=op.name)
        self.op = op

    def call(self, x):
        import tensorflow as tf

        find = getattr(tf, type(self.op).__name__.lower())
        x = tf.cast(x, tf.float32) if x.dtype.is_floating else x
        found = find(x, self.op.axis, tf.int32)
        if self.op.keepdims:
            found = tf.expand_dims(found, self.op.axis)
        return found

    def compute_output_spec(self, x):
        return self.op.compute_output_spec(x)


def _is_index(op):
    kind = type(op)
    return (
        kind.__module__.startswith("keras.src.ops.")
        and kind.__name__ in ("Argmax", "Argmin")
        and op.axis is not None
    )


def wrapped(model, side=None):
    """Makes a functional model, whatever its class adds, a layer of another.

    Args:
        model: Functional model whose class may have a `call` of its own.
        side: Of the images where the model leaves it open, in pixels; `None`
            leaves it open.

    Returns:
        An uncompiled functional `keras.Model` of the same inputs and outputs.
    """
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(
            tuple(n or side for n in x.shape[1:]), dtype=x.dtype, name=x.name
        ),
        model.input,
    )
    return keras.Model(inputs, model(inputs), name=f"{model.name}_folded")


def _rebuilt(model, dtype, bits):
    """Rebuilds a model that has a graph."""
    pairs = _pairs(copies.graph(model))
    skipped = {id(bn) for bn in pairs.values()}

    def clone(op):
        if id(op) in skipped:
            return op
        if copies.has_graph(op):
            return _rebuilt(op, dtype, bits)
        if copies.wraps_steps(op):  # hides a whole network
            inner = _rebuilt(op.layer, dtype, bits)
            return type(op)(inner, name=op.name, dtype=dtype)
        if _is_index(op) and not bits:
            return _Index(op)
        if not isinstance(op, keras.Layer) or not copies.is_plain(op):
            return copies.recast_inside(op, "float32")
        if not copies.has_fractions(op):
            return op
        maps = all(len(x.shape) == 4 for x in keras.tree.flatten(op.output))
        policy = dtype if maps else "float32"
        if type(op) in _KERNELS:
            weights = _weights(op, pairs.get(id(op)))
            grouped = getattr(op, "groups", 1) > 1
            grouped &= getattr(op, "data_format", None) != "channels_first"
            return copies.copy(
                op,
                weights,
                kind=_Convolution if grouped else None,
                use_bias=len(weights) == 2,
                dtype=policy,
            )
        if type(op) is keras.layers.UpSampling2D:
            return copies.copy(op, kind=_UpSampling2D, dtype=policy)
        if op.weights or op.dtype_policy.name != policy:
            return copies.copy(op, dtype=policy)
        return op

    def call(op, *args, **options):
        if id(op) in skipped:
            return _tensors(args, options)[0]
        return op(*args, **options)

    return copies.rebuild(model, clone, call)


def _pairs(graph):
    """Finds what can be folded: a convolution's `id` to its normalisation."""
    nodes = [n for level in graph._nodes_by_depth.values() for n in level]
    calls = collections.defaultdict(set)  # of an operation
    users = collections.defaultdict(set)  # of a tensor
    for node in nodes:
        calls[node.operation].add(node)
        for tensor in node.input_tensors:
            users[id(tensor)].add(node)
    ends = {id(tensor) for tensor in graph.outputs}
    found = {}
    for conv in calls:
        tensors = {id(y) for node in calls[conv] for y in node.outputs}
        followers = set().union(*(users[tensor] for tensor in tensors))
        kinds = {node.operation for node in followers}
        if not (
            type(conv) in _KERNELS
            and copies.is_plain(conv)
            and conv.activation is keras.activations.linear
            and getattr(conv, "data_format", None) != "channels_first"
            and len(kinds) == 1
            and not tensors & ends
        ):
            continue
        (bn,) = kinds
        if (
            type(bn) in _NORMALISATIONS
            and copies.is_plain(bn)
            and bn.axis in (-1, len(conv.output.shape) - 1)
            and followers == calls[bn]
            and all(map(_is_inference, followers))
        ):
            found[id(conv)] = bn
    return found


def _is_inference(node):
    """Tells whether a normalisation was called for its own statistics."""
    arguments = node.arguments.args, node.arguments.kwargs
    rest = [x for x in keras.tree.flatten(arguments) if not _is_tensor(x)]
    return len(_tensors(*arguments)) == 1 and not any(rest)


def _is_tensor(x):
    return isinstance(x, keras.KerasTensor)


def _tensors(args, options):
    return [x for x in keras.tree.flatten((args, options)) if _is_tensor(x)]


def _weights(layer, bn):
    """Returns the kernel and the bias, if any, of a folded layer."""
    kernel = _array(layer.kernel)
    bias = _array(layer.bias) if layer.use_bias else None
    if bn is None:
        return [kernel] if bias is None else [kernel, bias]
    scale = (_array(bn.moving_variance) + bn.epsilon) ** -0.5
    if bn.scale:
        scale *= _array(bn.gamma)
    bias = ((0.0 if bias is None else bias) - _array(bn.moving_mean)) * scale
    if bn.center:
        bias += _array(bn.beta)
    return [kernel * scale, bias]


def _array(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")
