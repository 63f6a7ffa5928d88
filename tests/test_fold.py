"""Folding, on the models that people make of our networks."""

import pickle

import keras
import numpy as np
import pytest

import keras_resnext
from keras_resnext import copies, transfer
from keras_resnext.export import fold

layers, ops = keras.layers, keras.ops
SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).random((2, *SHAPE), "float32")


def randomise(model):
    """Gives biases, scales and statistics values that show."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "kernel" not in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def net(**options):
    usual = dict(include_top=False, pooling="avg", input_shape=SHAPE)
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt((1,), 2, 4, stem="cifar", **(usual | options))
    return randomise(model)


def maps():
    """Returns a network's images and its feature maps as a sequence."""
    model = net(pooling=None)
    return model.input, layers.Reshape((64, -1))(model.output)


class Twice(layers.Conv2D):
    """Makes a kernel of its own."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, 2.0 * kernel)


class Holder(layers.Layer):
    """Has a network inside, and a number that no configuration has."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.factor = 1.0

    def call(self, x):
        return self.factor * self.inner(x)


class Around(keras.Model):
    """Computes something else than its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


# Each takes the images, and returns the outputs, of its model, whose number
# of normalisations after folding is its default argument.


def operations(x, left=0):
    y = net()(keras_resnext.preprocess_input(255 * x))
    y = ops.concatenate([ops.relu(y), 1.0 - y], axis=-1)
    return layers.Dense(3)(y)[:, None, 1:]


def constants(x, left=0):
    y = (x - np.float32([0.1, 0.2, 0.3])) / ops.convert_to_tensor([1.0, 2, 3])
    return ops.where(ops.mean(x) > 0, net()(y), ops.zeros(()))


def lambda_layer(x, left=0):
    return layers.Lambda(lambda v: v**2)(net()(x))


def attention(x, left=0):
    x, y = x if isinstance(x, tuple) else maps()
    y, scores = layers.MultiHeadAttention(2, 4)(
        query=y, value=y, return_attention_scores=True
    )
    return x, [y, scores]


def whole_numbers(x, left=0):
    """Layers whose type is of integers, which round and count."""
    levels = layers.Resizing(6, 6, dtype="uint8")(255 * x)
    classes = layers.Hashing(5)(ops.cast(levels[:, 0, 0], "int32"))
    counts = layers.CategoryEncoding(5, "count", dtype="int32")(classes)
    y = net(input_shape=(6, 6, 3))(layers.Rescaling(1 / 255)(levels))
    return [y, levels, counts]


def states(x, left=0):
    x, y = maps()
    y, *state = layers.LSTM(4, return_state=True)(layers.Masking()(y))
    return x, layers.Concatenate()([y, *state])


def dictionary_inside(x, left=0):
    pyramid = transfer.features(net(), ["conv1", "conv2"])
    return layers.Conv2D(2, 1)(pyramid(x)["conv2"])


def dictionary(x, left=0):
    y = net()(x)
    return {"probabilities": layers.Dense(3, "softmax")(y), "features": y}


def siamese(x, left=0):
    other, shared = keras.Input(SHAPE), net()
    return [x, other], layers.Dot(-1)([shared(x), shared(other)])


def two_calls(x, left=0):
    convolve = layers.Conv2D(4, 3, use_bias=False)
    normalise = layers.BatchNormalization()
    return normalise(convolve(x)) + normalise(convolve(ops.flip(x, 1)))


def normalises_something_else(x, left=1):
    convolve = layers.Conv2D(3, 3, padding="same")
    normalise = layers.BatchNormalization()
    return normalise(convolve(x)) + normalise(x)


def convolves_for_something_else(x, left=1):
    convolve = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(convolve(x)) + convolve(ops.flip(x, 1))


def statistics_of_the_batch(x, left=1):
    y = layers.Conv2D(3, 3, padding="same")(x)
    return layers.BatchNormalization()(y, training=True)


def other_axis(x, left=1):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(3, 3)(x))


def own_kernel(x, left=1):
    return layers.BatchNormalization()(Twice(4, 3)(x))


def dense(x, left=0):
    return layers.BatchNormalization()(layers.Dense(3)(net()(x)))


def channels_first(x, left=0):
    maps = layers.Permute((3, 1, 2))(layers.Conv2D(4, 1)(x))
    order = {"data_format": "channels_first", "groups": 2}
    return keras_resnext.layers.GroupedConv2D(8, 3, **order)(maps)


def video(x, left=0):
    x = keras.Input((2, *SHAPE))
    y = layers.TimeDistributed(net())(x)
    return x, layers.Bidirectional(layers.LSTM(3))(y)


def sequential(x, left=0):
    parts = [layers.RandomFlip(), layers.Rescaling(2.0), net()]
    return keras.Sequential([*parts, layers.Dropout(0.5), layers.Dense(3)])(x)


def holder(x, left=5):
    layer = Holder(net())
    layer.factor = 3.0
    return layers.Dense(2)(layer(x))


def own_call(x, left=5):
    model = net()
    return Around(model.input, model.output)(x)


def adapted(x, left=0):
    normalise, bins = layers.Normalization(), layers.Discretization(num_bins=5)
    normalise.adapt(IMAGES)
    bins.adapt(IMAGES.reshape(-1))
    codes = layers.IntegerLookup(vocabulary=[0, 1, 3])(bins(x))
    return net()(normalise(x) + ops.cast(codes, "float32"))


def unregistered(x, left=0):
    return layers.Dense(
        3,
        activation=lambda v: v * v,
        kernel_initializer=lambda shape, dtype: ops.ones(shape, dtype),
        kernel_regularizer=lambda kernel: ops.sum(kernel),
    )(net()(x))


def low_rank(x, left=0):
    model, last = net(), layers.Dense(3)
    y = last(model(x))
    for layer in (model.get_layer("conv1_conv"), last):
        layer.enable_lora(2, lora_alpha=5.0)
        layer.lora_kernel_b.assign(ops.ones(layer.lora_kernel_b.shape))
    return y


def classes(x, left=0):
    y = net()(x)
    return [y, (ops.argmax(y, -1), y > 0.5)]


CASES = [
    operations,
    constants,
    lambda_layer,
    attention,
    states,
    dictionary_inside,
    whole_numbers,
    dictionary,
    siamese,
    two_calls,
    normalises_something_else,
    convolves_for_something_else,
    statistics_of_the_batch,
    other_axis,
    own_kernel,
    dense,
    video,
    sequential,
    holder,
    own_call,
    adapted,
    unregistered,
    low_rank,
    classes,
]


def build(case):
    x = keras.Input(SHAPE)
    made = case(x)
    return keras.Model(*made if isinstance(made, tuple) else (x, made))


def inputs_of(model):
    """Returns other images for each input, and two of them for a video."""
    inputs = []
    for i, x in enumerate(model.inputs):
        images = IMAGES[:, ::-1] if i else IMAGES
        inputs.append(
            np.stack([images, images**2], 1) if len(x.shape) == 5 else images
        )
    return inputs[0] if len(inputs) == 1 else inputs


def assert_same(actual, expected):
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(*map(keras.tree.flatten, (actual, expected)), strict=True):
        a, b = map(ops.convert_to_numpy, (a, b))
        assert a.dtype == b.dtype
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.filterwarnings("ignore:The object being serialized includes a")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_folded_model_computes_the_same(case):
    model = build(case)
    weights = [ops.convert_to_numpy(w) for w in model.weights]
    folded = fold(model)
    inputs = inputs_of(model)
    expected = model(inputs, training=False)
    assert_same(folded(inputs, training=False), expected)
    (left,) = case.__defaults__
    assert (
        sum(
            isinstance(layer, keras.layers.BatchNormalization)
            for layer in folded._flatten_layers()
        )
        == left
    )
    # The model is as it was, and can be folded again.
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(after))


@pytest.mark.parametrize("case", [siamese, classes])
def test_predictions_of_a_folded_model(case):
    model = build(case)
    inputs, folded = inputs_of(model), fold(model)
    for _ in range(2):
        for part in (2, 1):
            some = keras.tree.map_structure(lambda x, n=part: x[:n], inputs)
            assert_same(
                folded.predict_on_batch(some), model.predict_on_batch(some)
            )
    assert_same(
        folded.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )
    assert_same(
        fold(folded).predict_on_batch(some), model.predict_on_batch(some)
    )


def attended(frames):
    x = layers.MultiHeadAttention(2, 4)(frames, frames)
    return layers.GroupQueryAttention(4, 2, 1)(x, x)


def recurrent(frames):
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(frames)
    return layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])(x)


def by_step(frames):
    wrapped = layers.SpectralNormalization(layers.Dense(3))
    x = layers.TimeDistributed(wrapped)(frames)
    return layers.Dense(2, activation=layers.LeakyReLU())(x)


def own_activation(frames):
    return layers.GRU(3, activation=lambda v: v * 0.5)(frames)


@pytest.mark.parametrize(
    "head", [None, attended, recurrent, by_step, own_activation]
)
def test_networks_of_mixed_precision_in_wrappers(head):
    """What an artifact is compared with is float32 in all its parts."""
    x = keras.Input((2, *SHAPE))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        y = layers.TimeDistributed(net())(x)
        model = keras.Model(x, y if head is None else head(y))
        expected = copies.recast(model, "float32")
        folded = fold(model)
    finally:
        keras.config.set_dtype_policy("float32")
    for made in (expected, folded):
        kinds = {
            layer.dtype_policy.name
            for layer in made._flatten_layers(include_self=False)
            if layer.weights and not isinstance(layer, keras.Model)
        }
        # A function of a person's own is in no configuration.
        assert kinds - {"mixed_bfloat16"} == {"float32"}
        assert len(kinds) == 1 + (head is own_activation)
    images = inputs_of(model)
    assert_same(folded(images), expected(images))
    exact, alike = map(ops.convert_to_numpy, (model(images), expected(images)))
    np.testing.assert_allclose(exact.astype("float32"), alike, 0.1, 0.1)


@pytest.mark.parametrize("again", [lambda m: copies.recast(m, "float32"), fold])
def test_what_is_folded_gets_another_type(again):
    """A folded network of 16 bits is exported to formats of 32, too."""
    inner = net(pooling=None)
    x = keras.Input(SHAPE)
    y = layers.UpSampling2D(2, interpolation="bilinear")(inner(x))
    folded = fold(keras.Model(x, y), "bfloat16")
    made = again(folded)
    kinds = {layer.dtype_policy.name for layer in made._flatten_layers(False)}
    assert kinds == {"float32"}
    exact, found = (
        ops.convert_to_numpy(ops.cast(m(IMAGES), "float32"))
        for m in (folded, made)
    )
    np.testing.assert_allclose(exact, found, 0.1, 0.1)


def test_pyramids_of_videos_are_folded():
    x = keras.Input((2, *SHAPE))
    model = keras.Model(x, layers.TimeDistributed(net(pooling=None))(x))
    pyramid = transfer.features(model, ["conv1", "conv2"])
    folded, images = fold(pyramid), inputs_of(model)
    assert_same(folded(images), pyramid(images))
    assert not any(
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in folded._flatten_layers()
    )


def test_what_an_artifact_is_compared_with_rounds_as_the_model_does():
    model = build(whole_numbers)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        x = keras.Input(SHAPE)
        *_, levels, counts = whole_numbers(x)
        mixed = keras.Model(x, [levels, counts])
    finally:
        keras.config.set_dtype_policy("float32")
    for made in (model, mixed):
        recast = copies.recast(made, "float32")
        assert_same(recast(IMAGES)[-2:], model(IMAGES)[-2:])


def test_a_sequential_model_that_is_built_late():
    model = keras.Sequential([net(), layers.Dense(3)])
    model(IMAGES)
    assert_same(fold(model)(IMAGES), model(IMAGES, training=False))


def test_a_model_whose_class_has_its_own_call():
    inner = net()
    model = Around(inner.input, inner.output)
    assert_same(fold(model)(IMAGES), model(IMAGES, training=False))


def test_a_folded_model_keeps_its_weights():
    model = net()
    folded = fold(model)
    expected = folded.predict_on_batch(IMAGES)
    for weight in model.weights:
        weight.assign(weight + 1.0)
    assert_same(folded.predict_on_batch(IMAGES), expected)
    folded.compile("sgd", "mse")
    with pytest.raises(ValueError, match="A model that can be trained is req"):
        folded.fit(IMAGES, expected, verbose=0)


def test_only_what_follows_alone_in_this_graph_is_folded():
    """Another model that uses the same layers changes nothing."""
    x = keras.Input(SHAPE)
    y = layers.Conv2D(4, 3)(x)
    model = keras.Model(x, randomise_output(y))
    keras.Model(x, layers.Dense(2)(y))
    kinds = {type(layer) for layer in fold(model).layers}
    assert layers.BatchNormalization not in kinds
    both = keras.Model(x, [model.output, y])
    kinds = {type(layer) for layer in fold(both).layers}
    assert layers.BatchNormalization in kinds


def randomise_output(y):
    bn = layers.BatchNormalization()
    y = bn(y)
    randomise(bn)
    return y


def test_what_cannot_be_folded():
    class Own(keras.Model):
        def call(self, x):
            return x

    for model in (Own(), keras.Sequential([layers.Dense(1)]), layers.ReLU()):
        with pytest.raises(ValueError, match="be a functional or sequential"):
            fold(model)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    outer = keras.Sequential([keras.Input((4,)), model])
    model.layers[0].quantize("int8")
    with pytest.raises(ValueError, match="must not have been quantised"):
        fold(outer)


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8"])
def test_inputs_of_another_type(dtype):
    model = net()
    images = (255 * IMAGES).astype(dtype)
    folded = fold(model)
    for predict in ("predict", "predict_on_batch"):
        np.testing.assert_allclose(
            getattr(folded, predict)(images),
            getattr(model, predict)(images),
            rtol=1e-4,
        )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras's own sentence"
)
def test_inputs_of_another_size():
    with pytest.raises(ValueError, match=r"shape \(None, 8, 8, 3\) is requ"):
        fold(net()).predict_on_batch(IMAGES[:, :6])


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs_by_name(named):
    last, first = (keras.Input((2,), name=name) for name in ("z", "a"))
    inputs = {"z": last, "a": first} if named else [last, first]
    model = keras.Model(inputs, layers.Subtract()([last, first]))
    data = {"a": np.ones((3, 2), "float32"), "z": np.zeros((3, 2), "float32")}
    np.testing.assert_array_equal(fold(model).predict(data), -data["a"])


@pytest.mark.parametrize("way", ["save", "pickle", "config"])
def test_what_is_folded_is_not_saved(way, tmp_path):
    folded = fold(net())
    with pytest.raises(ValueError, match="Save the model that was folded"):
        if way == "save":
            folded.save(tmp_path / "net.keras")
        elif way == "pickle":
            pickle.dumps(folded)
        else:
            folded.get_config()
    assert not list(tmp_path.iterdir())
