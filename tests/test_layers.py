"""GroupedConv2D and BatchNormalization against Keras, NumPy and each other."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_resnext.layers import (
    Add,
    BatchNormalization,
    GroupedConv2D,
    MaxPooling2D,
    _trains_directly,
)

numpy = keras.ops.convert_to_numpy
BACKEND = keras.backend.backend()
TENSORFLOW = BACKEND == "tensorflow"
needs_tensorflow = pytest.mark.skipif(
    not TENSORFLOW, reason="about TensorFlow's graph"
)


def reference(x, kernel, stride, dilation, groups):
    """Convolves as the definition says, channels last, no padding."""
    size = (kernel.shape[0] - 1) * dilation + 1
    height = (x.shape[1] - size) // stride + 1
    width = (x.shape[2] - size) // stride + 1
    each = kernel.shape[2]
    out = kernel.shape[3] // groups
    y = np.zeros((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            patch = x[
                :, top : top + size : dilation, left : left + size : dilation
            ]
            for g in range(groups):
                y[:, i, j, g * out : (g + 1) * out] = np.tensordot(
                    patch[..., g * each : (g + 1) * each],
                    kernel[..., g * out : (g + 1) * out],
                    3,
                )
    return y


@pytest.fixture(params=["direct", "split"])
def path(request, monkeypatch):
    """Runs a test on either of the two ways through TensorFlow."""
    if request.param == "split" and not TENSORFLOW:
        pytest.skip("other backends have one way only")
    monkeypatch.setattr(
        "keras_resnext.layers._trains_directly",
        lambda dtype: request.param == "direct",
    )
    return request.param


def integers(shape, seed=0):
    """Small whole numbers, so that sums are exact in every precision."""
    random = np.random.default_rng(seed)
    return random.integers(-2, 3, shape).astype("float32")


@pytest.mark.parametrize(
    "stride, dilation", [(1, 1), (2, 1), (1, 2)], ids=["plain", "stride", "dil"]
)
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_equals_the_definition(path, groups, stride, dilation):
    x, kernel = integers((2, 9, 8, 8)), integers((3, 3, 8 // groups, 16), 1)
    layer = GroupedConv2D(
        16,
        3,
        strides=stride,
        dilation_rate=dilation,
        groups=groups,
        use_bias=False,
    )
    layer.build(x.shape)
    layer.set_weights([kernel])
    np.testing.assert_array_equal(
        numpy(layer(x)),
        reference(x, kernel, stride, dilation, groups),
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equals_keras(path, dtype, padding):
    options = dict(
        filters=16,
        kernel_size=3,
        groups=4,
        padding=padding,
        activation="relu",
        dtype=dtype,
    )
    ours = GroupedConv2D(**options)
    theirs = keras.layers.Conv2D(**options)
    x = integers((2, 7, 8, 8))
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.set_weights([integers((3, 3, 2, 16), 1), integers((16,), 2)])
    y = ours(x)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    np.testing.assert_array_equal(
        numpy(keras.ops.cast(y, "float32")),
        numpy(keras.ops.cast(theirs(x), "float32")),
    )
    assert ours.compute_output_shape(x.shape) == tuple(y.shape)


@needs_tensorflow
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_gradients_are_the_transposed_convolution(
    path, stride, dilation, graph
):
    # A convolution is linear in both arguments, so that for any z
    # <conv(x, k), z> = <x, dx> = <k, dk>: exact in whole numbers.
    import tensorflow as tf

    # Asked of the machine before `path` decided for it.
    possible = path == "split" or _trains_directly()
    layer = GroupedConv2D(
        8, 3, strides=stride, dilation_rate=dilation, groups=4, use_bias=False
    )
    x, kernel = integers((2, 9, 9, 8)), integers((3, 3, 2, 8), 1)
    layer.build(x.shape)
    layer.set_weights([kernel])

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            z = tf.constant(integers(y.shape, 2))
            inner = tf.reduce_sum(y * z)
        return [inner, *tape.gradient(inner, [x, layer.kernel.value])]

    if graph:
        gradients = tf.function(gradients)
    if not possible:  # the reason why there is another way
        with pytest.raises(tf.errors.InvalidArgumentError):
            gradients(tf.constant(x))
        return
    inner, dx, dk = (np.array(a) for a in gradients(tf.constant(x)))
    y = reference(x, kernel, stride, dilation, 4)
    assert inner == (y * integers(y.shape, 2)).sum()
    assert (x * dx).sum() == inner
    assert (kernel * dk).sum() == inner


def convolutions(function, *arrays):
    """Returns the `(groups, batch groups)` of each one that JAX computes."""
    import jax

    found, waiting = [], [jax.make_jaxpr(function)(*arrays).jaxpr]
    while waiting:
        for equation in waiting.pop().eqns:
            p = equation.params
            if equation.primitive.name == "conv_general_dilated":
                found.append((p["feature_group_count"], p["batch_group_count"]))
            elif equation.primitive.name == "custom_jvp_call":
                waiting.append(p["call_jaxpr"].jaxpr)  # not its derivative
            elif "jaxpr" in p:
                waiting.append(getattr(p["jaxpr"], "jaxpr", p["jaxpr"]))
    return found


@pytest.mark.skipif(BACKEND != "jax", reason="about JAX's gradients")
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("groups, channels", [(4, 8), (2, 32), (32, 32)])
def test_gradients_on_jax(groups, channels, stride, dilation, dtype, first):
    """XLA's own of a grouped kernel take hundreds of times as long."""
    import jax

    layer = GroupedConv2D(
        2 * channels,
        3,
        strides=stride,
        dilation_rate=dilation,
        groups=groups,
        use_bias=False,
        dtype=dtype,
        data_format="channels_first" if first else "channels_last",
    )
    x = integers((2, 9, 9, channels))
    kernel = integers((3, 3, channels // groups, 2 * channels), 1)
    y = reference(x, kernel, stride, dilation, groups)
    z = integers(y.shape, 2)
    if first:
        x, z = np.moveaxis(x, -1, 1), np.moveaxis(z, -1, 1)
    layer.build(x.shape)

    def convolve(x, kernel):
        return layer.stateless_call([kernel], [], x)[0].astype("float32")

    def product(x, kernel):
        return (convolve(x, kernel) * z).sum()

    # As above: linear in both.
    gradients = jax.jit(jax.grad(product, (0, 1)))
    inner = np.moveaxis(y, -1, 1) if first else y
    inner = (inner * z).sum()
    dx, dk = gradients(x, kernel)
    assert (x * dx).sum() == pytest.approx(inner, rel=1e-2)
    assert (kernel * dk).sum() == pytest.approx(inner, rel=1e-2)
    if dtype == "float32":
        assert (x * dx).sum() == (kernel * dk).sum() == inner
    # Forwards as well, and twice.
    _, forward = jax.jvp(product, (x, kernel), (x, 0 * kernel))
    assert forward == pytest.approx(inner, rel=1e-2)
    _, twice = jax.jvp(jax.grad(product), (x, kernel), (0 * x, kernel))
    np.testing.assert_allclose(twice, dx, rtol=1e-2, atol=1)
    assert {*convolutions(gradients, x, kernel)} == {(1, 1)}
    # Inference is one operation, which compiles in less time.
    assert convolutions(convolve, x, kernel) == [(groups, 1)]


@needs_tensorflow
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("kind", ["plain", "grouped", "same", "pooling"])
def test_no_image(path, kind, first, graph):
    """Sizes are as for any other number of images, and gradients zero.

    In a graph, this one is traced for no image; those for any number are of
    replicas (test_distribute.py) or raise (docs/errors.md).
    """
    import tensorflow as tf

    if (first or path == "direct") and not _trains_directly():
        pytest.skip("TensorFlow on a CPU needs oneDNN for it")
    if first and kind == "pooling":
        pytest.skip("TensorFlow has no gradient of it on a CPU")
    options = {
        "strides": 2,
        "padding": "same" if kind == "same" else "valid",
        "data_format": "channels_first" if first else "channels_last",
    }
    if kind == "pooling":
        layer = MaxPooling2D(3, **options)
    else:
        groups = 1 if kind == "plain" else 4
        layer = GroupedConv2D(16, 3, groups=groups, **options)
    shape = (8, 9, 10) if first else (9, 10, 8)
    layer.build((None, *(8 if size == 8 else None for size in shape)))

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * y)
        weights = [v.value for v in layer.trainable_weights]
        return y, *tape.gradient(loss, [x, *weights])

    if graph:
        gradients = tf.function(gradients)
    y, dx, *rest = (np.array(a) for a in gradients(tf.zeros((0, *shape))))
    assert y.shape == (0, *layer.compute_output_shape((1, *shape))[1:])
    assert dx.shape == (0, *shape)
    for gradient, variable in zip(rest, layer.trainable_weights, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(variable.shape))


@needs_tensorflow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_trains_in_every_type(dtype):
    """Also in those whose gradients oneDNN lacks on some CPUs."""
    import tensorflow as tf

    layer = GroupedConv2D(8, 3, groups=4, use_bias=False, dtype=dtype)
    x, kernel = integers((2, 9, 9, 8)), integers((3, 3, 2, 8), 1)
    layer.build(x.shape)
    layer.set_weights([kernel])
    with tf.GradientTape() as tape:
        y = layer(tf.constant(x, dtype))
        z = integers(y.shape, 2)
        inner = tf.reduce_sum(y * tf.constant(z, dtype))
    dk = tape.gradient(inner, layer.kernel.value)
    expected = (reference(x, kernel, 1, 1, 4) * z).sum()
    tolerance = {"float64": 0, "float16": 1e-2, "bfloat16": 0.1}[dtype]
    assert dk.dtype == dtype
    np.testing.assert_allclose(
        (kernel * tf.cast(dk, "float64").numpy()).sum(),
        expected,
        rtol=tolerance,
    )


@needs_tensorflow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_at_a_convolution_in_a_graph(groups, frozen):
    """As Grad-CAM asks for: where the normalisation has its own convolution."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    conv = GroupedConv2D(8, 3, groups=groups, use_bias=False)
    normalise = BatchNormalization()
    x = tf.constant(random.normal(size=(2, 8, 8, 4)), "float32")
    normalise(conv(x))
    normalise.set_weights(random.uniform(0.5, 2, (4, 8)))
    normalise.trainable = conv.trainable = not frozen

    def gradients(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                maps = conv(x)
                y = normalise(maps, training=False)
                loss = tf.reduce_sum(y**3) + tf.reduce_sum(maps**2)
            at = [x, maps, *(w.value for w in conv.weights)]
            at += [normalise.gamma.value, normalise.beta.value]
            found = first.gradient(loss, at)
        return found, tape.gradient(found[:3], x)

    graph = tf.function(gradients)
    norms = {
        operation.type
        for operation in graph.get_concrete_function(x).graph.get_operations()
        if "Norm" in operation.type
    }
    if groups == 1 or _trains_directly():
        assert not norms  # else the convolution's own output would be used
    both = map(tf.nest.flatten, (graph(x), gradients(x)))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-4 * np.abs(b).max())


@needs_tensorflow
@pytest.mark.parametrize("side", [4, 8])  # normalises maps, scales a kernel
def test_products_with_the_hessian_in_a_graph(side):
    import tensorflow as tf

    random = np.random.default_rng(0)
    conv = GroupedConv2D(4, 3, groups=2, padding="same", use_bias=False)
    normalise = BatchNormalization()
    x, v = (random.normal(size=(2, side, side, 4)) for _ in "xv")
    normalise(conv(x))
    normalise.set_weights(random.uniform(0.5, 2, (4, 4)))

    def product(x, v):
        with tf.autodiff.ForwardAccumulator(x, v) as forward:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = Add()([x, normalise(conv(x), training=False)])
                loss = tf.reduce_sum(y**4)
            gradient = tape.gradient(loss, x)
        return loss, gradient, forward.jvp(gradient)

    x, v = (tf.constant(a, "float32") for a in (x, v))
    both = zip(tf.function(product)(x, v), product(x, v), strict=True)
    for a, b in both:
        np.testing.assert_allclose(a, b, 1e-4, 1e-4 * np.abs(b).max())
    # And of a gradient's definition.
    step = 1e-2
    _, more, _ = product(x + step * v, v)
    _, less, _ = product(x - step * v, v)
    slope = (more - less) / (2 * step)
    np.testing.assert_allclose(b, slope, 1e-2, 1e-2 * np.abs(b).max())


@needs_tensorflow
def test_graph_has_no_xla():
    import tensorflow as tf

    def marked(layer):
        traced = tf.function(lambda x: layer(x)).get_concrete_function(
            tf.TensorSpec((1, 8, 8, 8))
        )
        return (
            b"_XlaMustCompile"
            in traced.graph.as_graph_def(add_shapes=False).SerializeToString()
        )

    assert not marked(GroupedConv2D(8, 3, groups=4))
    # What this looks for is there in Keras's own layer.
    assert marked(keras.layers.Conv2D(8, 3, groups=4))


@needs_tensorflow
@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`")
@pytest.mark.parametrize("jit_compile", ["auto", True])
def test_compile_leaves_xla_out(jit_compile):
    layer = GroupedConv2D(8, 3, groups=4)
    model = keras.Sequential([keras.Input((8, 8, 8)), layer])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    assert not model.jit_compile
    # The switch is the layer's: Keras 3.15 looks at the devices, too.
    assert not layer.supports_jit
    assert keras.layers.Conv2D(8, 3).supports_jit


def test_serialisation(tmp_path):
    inputs = keras.Input((8, 8, 8))
    x = GroupedConv2D(8, 3, groups=4, use_bias=False)(inputs)
    model = keras.Model(inputs, BatchNormalization(momentum=0.9)(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(a) for a in loaded.layers] == [type(a) for a in model.layers]
    x = integers((2, 8, 8, 8))
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


def test_sum_is_that_of_keras(tmp_path):
    inputs = keras.Input((8, 8, 8))
    x = GroupedConv2D(8, 1, use_bias=False)(inputs)
    x = BatchNormalization()(x)
    own = keras.layers.ReLU()(Add()([inputs, x]))
    usual = keras.layers.ReLU()(keras.layers.Add()([inputs, x]))
    model = keras.Model(inputs, [own, usual])
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        assert Add in map(type, each.layers)
        found, expected = each.predict(integers((2, 8, 8, 8)), verbose=0)
        np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


@pytest.mark.parametrize(
    "channels, groups, filters", [(8, 3, 9), (8, 4, 6), (8, 0, 8)]
)
def test_wrong_groups(channels, groups, filters):
    with pytest.raises(ValueError, match="groups"):
        GroupedConv2D(filters, 3, groups=groups).build((1, 8, 8, channels))


@pytest.mark.slow
@needs_tensorflow
def test_without_onednn():
    """One step of training where TensorFlow lacks the gradients."""
    code = """
import keras, numpy as np
from keras_resnext import layers
keras.utils.set_random_seed(0)
layer = layers.GroupedConv2D(8, 3, groups=4, use_bias=True, activation="relu")
model = keras.Sequential(
    [keras.Input((8, 8, 8)), layer, layers.BatchNormalization()]
)
model.compile("sgd", "mse")
before = layer.get_weights()[0]
# Not all the same: normalised, that would be zero whatever the kernel is.
x = np.random.default_rng(0).standard_normal((2, 8, 8, 8), "float32")
model.fit(x, np.ones((2, 6, 6, 8)), verbose=0)
assert np.abs(layer.get_weights()[0] - before).max() > 0
assert np.isfinite(model.predict(x, verbose=0)).all()
print("directly" if layers._trains_directly() else "split")
"""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == "split"


@pytest.mark.slow
@needs_tensorflow
def test_graph_is_served_without_onednn(tmp_path):
    """A graph traced where oneDNN is on, by `export` of Keras."""
    x = integers((2, 8, 8, 8))
    model = keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            GroupedConv2D(8, 3, groups=4, activation="relu"),
            GroupedConv2D(8, 3, groups=4, use_bias=False),
            BatchNormalization(),
            keras.layers.ReLU(),
        ]
    )
    model.export(tmp_path / "model", verbose=False)
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
import numpy as np, tensorflow as tf
v1 = tf.compat.v1
with v1.Session(graph=tf.Graph()) as session:
    loaded = v1.saved_model.load(session, ["serve"], sys.argv[1] + "/model")
    signature = loaded.signature_def["serving_default"]
    (x,), (y,) = signature.inputs.values(), signature.outputs.values()
    y = session.run(y.name, {x.name: np.load(sys.argv[1] + "/x.npy")})
np.save(sys.argv[1] + "/y.npy", y)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        check=True,
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"),
        model.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


class TestBatchNormalization:
    @pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
    def test_trains_as_keras(self, dtype):
        x = np.random.default_rng(0).normal(2, 3, (8, 5, 6, 4))
        pair = [
            cls(momentum=0.9, epsilon=1e-5, dtype=dtype)
            for cls in (BatchNormalization, keras.layers.BatchNormalization)
        ]
        y, expected = (
            numpy(keras.ops.cast(layer(x, training=True), "float32"))
            for layer in pair
        )
        tolerance = 1e-5 if dtype == "float32" else 0.05
        np.testing.assert_allclose(y, expected, atol=tolerance)
        ours, theirs = (
            {v.name: numpy(v) for v in layer.variables} for layer in pair
        )
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(
            ours["moving_mean"],
            theirs["moving_mean"],
            rtol=1e-5 if dtype == "float32" else 1e-2,
        )
        # Unbiased, as PyTorch's: n / (n - 1) of the batch's part.
        n = 8 * 5 * 6 if TENSORFLOW else np.inf
        batch = (theirs["moving_variance"] - 0.9) * (
            n / (n - 1) if TENSORFLOW else 1
        )
        np.testing.assert_allclose(
            ours["moving_variance"],
            0.9 + batch,
            rtol=1e-5 if dtype == "float32" else 1e-2,
        )

    @pytest.mark.parametrize(
        "options", [{"dtype": "float64"}, {"scale": False}, {"axis": 2}]
    )
    def test_variance_is_keras_where_it_is_not_fused(self, options):
        if BACKEND == "jax" and "dtype" in options:
            pytest.skip("JAX has float64 only where it is switched on")
        x = np.random.default_rng(0).normal(2, 3, (2, 1, 3, 2))
        layer = BatchNormalization(momentum=0.0, **options)
        layer(x, training=True)
        axis = options.get("axis", 3)
        biased = x.var(tuple({0, 1, 2, 3} - {axis}))
        np.testing.assert_allclose(
            numpy(layer.moving_variance), biased, rtol=1e-5
        )

    @pytest.mark.parametrize("axis", [-1, 1])
    @pytest.mark.parametrize("options", [{}, {"trainable": False}])
    @pytest.mark.parametrize(
        "dtype", ["float32", "mixed_bfloat16", "bfloat16", "float16"]
    )
    def test_inference_is_keras(self, dtype, options, axis):
        random = np.random.default_rng(0)
        x = random.normal(2, 3, (8, 4, 6, 4))
        weights = random.uniform(0.5, 2, (4, 4))
        outputs = []
        for cls in (BatchNormalization, keras.layers.BatchNormalization):
            layer = cls(axis=axis, dtype=dtype, **options)
            layer.build(x.shape)
            layer.set_weights(weights)
            y = layer(keras.ops.cast(x, "float32"), training=bool(options))
            assert keras.backend.standardize_dtype(y.dtype) == (
                layer.compute_dtype
            )
            outputs.append(numpy(keras.ops.cast(y, "float32")))
            np.testing.assert_allclose(layer.get_weights(), weights, rtol=1e-2)
        tolerance = 1e-5 if dtype == "float32" else 1e-2
        np.testing.assert_allclose(*outputs, rtol=tolerance, atol=tolerance)

    @needs_tensorflow
    @pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
    def test_gradients_of_inference_are_keras(self, dtype):
        import tensorflow as tf

        random = np.random.default_rng(0)
        x = tf.constant(random.normal(2, 3, (8, 4, 6, 4)), "float32")
        weights = random.uniform(0.5, 2, (4, 4))
        gradients = []
        for cls in (BatchNormalization, keras.layers.BatchNormalization):
            layer = cls(dtype=dtype)
            layer.build(x.shape)
            layer.set_weights(weights)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.cast(layer(x, training=False), "float32")
                loss = tf.reduce_sum(y * y)
            gradients.append(
                tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
            )
        tolerance = 1e-5 if dtype == "float32" else 1e-2
        for ours, theirs in zip(*gradients, strict=True):
            np.testing.assert_allclose(
                ours.numpy(), theirs.numpy(), rtol=tolerance, atol=tolerance
            )

    @needs_tensorflow
    @pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
    @pytest.mark.parametrize("groups", [1, 4])
    @pytest.mark.parametrize("side", [9, 2], ids=["scaled", "apart"])
    def test_inference_in_a_graph_follows_the_weights(
        self, side, groups, dtype
    ):
        """There the scale is part of the convolution before, or follows it."""
        import tensorflow as tf

        random = np.random.default_rng(0)
        inputs = keras.Input((side, side, 8))
        conv = GroupedConv2D(
            8, 3, groups=groups, use_bias=False, padding="same", dtype=dtype
        )
        bn = BatchNormalization(dtype=dtype)
        outputs = keras.layers.ReLU(dtype=dtype)(bn(conv(inputs)))
        model = keras.Model(inputs, outputs)
        x = random.normal(size=(2, side, side, 8)).astype("float32")
        graph = tf.function(lambda x: tf.cast(model(x), "float32"))
        for _ in range(2):
            bn.set_weights(random.uniform(0.5, 2, (4, 8)))
            conv.set_weights([random.normal(size=conv.kernel.shape)])
            np.testing.assert_allclose(
                graph(x),
                tf.cast(model(x), "float32"),  # eager: one after the other
                rtol=1e-5 if dtype == "float32" else 0.05,
                atol=1e-5 if dtype == "float32" else 0.1,
            )

    @needs_tensorflow
    @pytest.mark.parametrize("axis", [1, 3])
    @pytest.mark.parametrize("side", [8, 6], ids=["as many", "others"])
    def test_axis_counts_in_a_graph(self, side, axis):
        """The convolution's channels come last, whatever is normalised."""
        random = np.random.default_rng(0)
        inputs = keras.Input((side, side, 4))
        maps = GroupedConv2D(8, 1, use_bias=False)(inputs)
        bn = BatchNormalization(axis=axis)
        model = keras.Model(inputs, bn(maps))
        bn.set_weights(random.uniform(0.5, 2, (4, maps.shape[axis])))
        x = random.normal(size=(2, side, side, 4)).astype("float32")
        np.testing.assert_allclose(
            model.predict(x, verbose=0), numpy(model(x)), rtol=1e-5, atol=1e-5
        )

    @needs_tensorflow
    def test_gradients_of_frozen_statistics_in_a_graph(self):
        import tensorflow as tf

        random = np.random.default_rng(0)
        conv = GroupedConv2D(8, 3, groups=4, use_bias=False)
        bn = BatchNormalization(trainable=False)
        x = tf.constant(random.normal(size=(2, 9, 9, 8)), "float32")
        model = keras.Sequential([keras.Input(x.shape[1:]), conv, bn])
        bn.set_weights(random.uniform(0.5, 2, (4, 8)))

        def gradients(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(model(x, training=True) ** 2)
            return tape.gradient(loss, [x, conv.kernel.value])

        for one, other in zip(
            tf.function(gradients)(x), gradients(x), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
