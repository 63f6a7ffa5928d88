"""Export of what people build around our networks."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from test_export import compiles

import keras_resnext
from keras_resnext import transfer
from keras_resnext.export import export, folding
from keras_resnext.export.formats import FORMATS, PICTURES
from keras_resnext.layers import GroupedConv2D

if keras.backend.backend() != "tensorflow":
    pytest.skip("export is TensorFlow's", allow_module_level=True)
tf = pytest.importorskip("tensorflow")

# An export compares what it writes with what `predict` gives.
pytestmark = pytest.mark.usefixtures("eagerly")
layers, ops = keras.layers, keras.ops
FORMAT_PACKAGES = {
    "saved_model": "tensorflow",
    "onnx": "tf2onnx",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
}
SHAPE = (16, 16, 3)
SURE = keras.initializers.Constant(20.0)
PIXELS = np.stack(
    [keras.utils.img_to_array(keras.utils.load_img(p)) for p in PICTURES[:1]]
)[:, 40:56, 40:56]


def net(**options):
    usual = dict(include_top=False, pooling="avg", input_shape=SHAPE)
    keras.utils.set_random_seed(0)
    return keras_resnext.ResNeXt((1,), 2, 4, stem="cifar", **(usual | options))


def loaded(report, format):
    _, run = FORMATS[format].load(report.path)
    return run


def difference(outputs, expected):
    return np.abs(outputs - expected).max() / np.abs(expected).max()


def test_sizes_that_differ_have_no_name_in_common(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="not installed")
    left, right = (
        keras.Input((None, None, 3), name=name) for name in ("left", "right")
    )
    shrink = layers.Conv2D(4, 3, 2)
    for count, model in enumerate(
        (
            keras.Model(left, shrink(left)),
            keras.Model([left, right], [shrink(left), shrink(right)]),
        ),
        1,
    ):
        export(model, tmp_path / "net.onnx", "onnx")
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        shapes = [
            x.shape for x in (*session.get_inputs(), *session.get_outputs())
        ]
        names = [name for shape in shapes for name in shape[1:3]]
        assert len({*names}) == len(names) == 4 * count
        assert {shape[0] for shape in shapes} == {"batch"}


@pytest.mark.parametrize("format", FORMAT_PACKAGES)
def test_named_outputs(tmp_path, format):
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    x = keras.Input(SHAPE)
    y = net()(x / 2.0)
    outputs = {
        "scores": layers.Dense(3)(y),
        "mask": layers.Dense(1, activation="sigmoid", bias_initializer=SURE)(y),
        "large": ops.cast(y > 0.5, "int32"),
    }
    model = keras.Model(x, outputs)
    report = export(model, tmp_path / "a", format)
    assert report.max_difference < 1e-5 and report.agreement == 1
    found = loaded(report, format)(PIXELS)
    assert set(found) == set(outputs)
    expected = model.predict(PIXELS, verbose=0)
    for name in ("scores", "mask"):
        assert difference(found[name], expected[name]) < 1e-4
    assert (found["large"] == expected["large"]).all()


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_operations_that_a_converter_lacks(tmp_path, format):
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    model = net()
    model = keras.Model(model.input, ops.signbit(model.output))
    with pytest.raises(ValueError, match=f"converter knows.*{format}.*Bitcast"):
        export(model, tmp_path / "a", format)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert export(model, tmp_path / "b").agreement == 1


def test_what_a_runtime_refuses(tmp_path, monkeypatch):
    """As LiteRT's delegate, in eight bits, where a ReLU gives zeros alone."""

    def load(path):
        assert path.exists()
        raise RuntimeError("node 3 failed\nto prepare")

    kind = dataclasses.replace(FORMATS["saved_model"], load=load)
    monkeypatch.setitem(FORMATS, "saved_model", kind)
    with pytest.raises(ValueError, match=r"its runtime.*node 3 failed to prep"):
        export(net(), tmp_path / "a")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("format", FORMAT_PACKAGES)
def test_the_greatest_and_the_least(tmp_path, format):
    """Class maps: also where all are equal, and in models inside."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    keras.utils.set_random_seed(0)
    frames = keras.Input((3, 12, 12, 3))
    image = keras.Input((12, 12, 3))
    y = layers.Conv2D(6, 3, padding="same")(image)
    inner = keras.Model(image, ops.argmin(y, axis=1, keepdims=True))
    outputs = {
        "map": ops.argmax(layers.Softmax()(y), axis=-1),
        "zeros": ops.argmax(ops.relu(y - 100.0), axis=-1),
        "whole": ops.argmax(ops.cast(100 * y, "int32"), axis=3),
        "inner": inner(image),
    }
    for number, model in enumerate(
        (
            keras.Model(image, outputs),
            keras.Model(frames, layers.TimeDistributed(inner)(frames)),
        )
    ):
        report = export(model, tmp_path / str(number), format)
        assert report.max_difference == 0 and report.agreement == 1
        images = np.random.default_rng(1).normal(
            size=(2, *model.input.shape[1:])
        )
        images = images.astype("float32")
        found = loaded(report, format)(images)
        expected = model.predict(images, verbose=0)
        keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("format", ["saved_model", "onnx", "openvino"])
def test_maps_of_any_size(tmp_path, format):
    """Which Keras itself enlarges in no graph: keras-team/keras#22079."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    keras.utils.set_random_seed(0)
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(4, 3, 2, padding="same")(x)
    outputs = {
        kind: layers.UpSampling2D((2, 4), interpolation=kind)(y)
        for kind in ("nearest", "bilinear")
    }
    model = keras.Model(x, outputs)
    report = export(model, tmp_path / "a", format)
    assert report.max_difference < 1e-4 and report.agreement > 0.999
    run = loaded(report, format)
    for shape in ((1, 12, 20, 3), (2, 9, 8, 3)):
        images = np.random.default_rng(1).normal(size=shape).astype("float32")
        found, expected = run(images), model.predict_on_batch(images)
        for kind in outputs:
            assert found[kind].shape == expected[kind].shape
            assert difference(found[kind], expected[kind]) < 1e-4


@pytest.mark.parametrize(
    "format, side",
    [
        ("saved_model", None),
        *(("onnx", None), ("openvino", None)),
        *(("openvino", 16), ("litert", 16)),
    ],
)
def test_groups_with_holes(tmp_path, format, side):
    """As with `output_stride`, for maps of one size and of any."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    keras.utils.set_random_seed(0)
    x = keras.Input((side, side, 3))
    y = layers.Conv2D(8, 2, padding="same", dilation_rate=3)(x)
    for rate in (2, (2, 3)):
        y = GroupedConv2D(8, 3, groups=4, dilation_rate=rate, padding="same")(y)
        y = layers.BatchNormalization()(y)
    y = GroupedConv2D(8, 2, groups=2, dilation_rate=2, padding="valid")(y)
    model = keras.Model(x, y)
    report = export(model, tmp_path / "a", format)
    assert report.max_difference < 1e-4
    run = loaded(report, format)
    for shape in ((2, 16, 16, 3), (1, side or 15, side or 20, 3)):
        images = np.random.default_rng(1).normal(size=shape).astype("float32")
        found, expected = run(images), model.predict_on_batch(images)
        assert found.shape == expected.shape
        assert difference(found, expected) < 1e-4


class UpperHalf(layers.Layer):
    def call(self, x):
        return x[:, : x.shape[1] // 2]

    def compute_output_shape(self, shape):
        return (shape[0], None, *shape[2:])


class Own(layers.Layer):
    """Has a grouped convolution of Keras's, where `fold` does not look."""

    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(8, 3, groups=4)

    def call(self, inputs):
        return self.convolution(inputs)


def _in_a_row(maps):
    rows = layers.Reshape((-1, maps.shape[-1]))(maps)
    return layers.Conv1D(8, 3, groups=4, activation="relu")(rows)


def _as_operation(maps):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 8))
    kernel = kernel.astype("float32")
    return layers.Lambda(lambda x: ops.conv(x, kernel))(maps)


@pytest.mark.parametrize("format", FORMAT_PACKAGES)
@pytest.mark.parametrize(
    "convolve", [lambda maps: Own()(maps), _in_a_row, _as_operation]
)
def test_grouped_convolutions_of_keras(tmp_path, convolve, format):
    """Of any rank, and inside of layers: runtimes have no XLA."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    base = net(pooling=None)
    model = keras.Model(base.input, convolve(base.output))
    report = export(model, tmp_path / FORMATS[format].file, format)
    assert report.max_difference < 1e-4
    assert not compiles(report.path)


@pytest.mark.parametrize("format", ["saved_model", "onnx"])
@pytest.mark.parametrize("kind", ["jit_compile=True", "tf.numpy_function"])
def test_what_no_runtime_has(tmp_path, kind, format):
    """In this process it runs, so that no comparison would tell."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")

    def in_python(x):
        y = tf.numpy_function(lambda values: 2 * values, [x], tf.float32)
        return tf.ensure_shape(y, x.shape)

    twice = tf.function(lambda x: 2 * x, jit_compile=True)
    traced = twice.get_concrete_function(tf.TensorSpec((None, *SHAPE)))
    function = traced if kind == "jit_compile=True" else in_python
    x = keras.Input(SHAPE)
    model = keras.Model(x, layers.Lambda(function, output_shape=SHAPE)(x))
    with pytest.raises(ValueError, match=f"^A model that runs .*{kind}"):
        export(model, tmp_path / f"net{FORMATS[format].ending}", format)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def _with_facts():
    """Takes an image, two facts and the number of a shop."""
    base = net()
    facts = keras.Input((2,), name="facts")
    shop = keras.Input((1,), dtype="int32", name="shop")
    place = layers.Flatten()(layers.Embedding(3, 4)(shop))
    every = layers.Concatenate()([base.output, 5.0 * facts, place])
    image = keras.Input(SHAPE, name="image")
    part = keras.Model([base.input, facts, shop], layers.Dense(3)(every))
    return keras.Model([image, facts, shop], part([image, facts, shop]))


@pytest.mark.parametrize("format", FORMAT_PACKAGES)
def test_numbers_beside_an_image(tmp_path, format):
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    model, random = _with_facts(), np.random.default_rng(1)
    path = tmp_path / FORMATS[format].file
    report = export(model, path, format)
    assert "Beside photographs there were random numbers" in str(report)
    inputs = {
        "image": random.normal(size=(3, *SHAPE)).astype("float32"),
        "facts": random.normal(size=(3, 2)).astype("float32"),
        "shop": np.array([[2], [0], [1]], "int32"),
    }
    expected = model.predict(list(inputs.values()), verbose=0)
    assert difference(loaded(report, format)(inputs), expected) < 1e-4
    for name in ("facts", "shop"):
        other = inputs | {name: inputs[name][::-1]}
        assert difference(loaded(report, format)(other), expected) > 1e-3
    if format != "saved_model":  # which has other bits
        with pytest.raises(ValueError, match="what comes in beside the images"):
            export(model, path, format, "int8", calibration=PICTURES)


def test_numbers_of_any_number_beside_an_image(tmp_path):
    x, row = keras.Input(SHAPE), keras.Input((None, 2))
    y = layers.Concatenate()([net()(x), layers.GlobalMaxPooling1D()(row)])
    with pytest.raises(ValueError, match="beside them only what has one shape"):
        export(keras.Model([x, row], y), tmp_path / "net")


@pytest.mark.parametrize("format", FORMAT_PACKAGES)
def test_names_of_classes_as_outputs(tmp_path, format):
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    names = tf.constant(["Löwe", "fox"] * 4)
    x = keras.Input(SHAPE)
    y = layers.Conv2D(8, 16)(x)
    name = layers.Lambda(
        lambda y: tf.gather(names, tf.argmax(y[:, 0, 0], -1)), output_shape=()
    )(y)
    model = keras.Model(x, [y, name])
    report = export(model, tmp_path / f"net{FORMATS[format].ending}", format)
    answer = loaded(report, format)(PIXELS)["outputs_1"][0]
    answer = answer.encode() if isinstance(answer, str) else answer
    assert answer in ("Löwe".encode(), b"fox")


def test_tables_in_onnx(tmp_path):
    pytest.importorskip("tf2onnx", reason="a runtime is missing")
    x = keras.Input(SHAPE)
    kind = keras.Input((1,), dtype="int64")
    index = layers.IntegerLookup(vocabulary=[7, 9])(kind)
    y = layers.Embedding(3, 256)(index)[:, 0]
    model = keras.Model([x, kind], layers.Dot(1)([net()(x), y]))
    with pytest.raises(ValueError, match="takes no tables"):
        export(model, tmp_path / "net.onnx", "onnx")
    assert export(model, tmp_path / "net").agreement == 1


def test_a_layer_that_must_know_the_size(tmp_path):
    x = keras.Input((None, None, 3))
    model = keras.Model(x, UpperHalf()(layers.Conv2D(4, 3)(x)))
    with pytest.raises(ValueError, match=r"give its input a size") as caught:
        export(model, tmp_path / "a")
    assert "when calling UpperHalf.call()" in str(caught.value)
    assert 'choose "saved_model"' not in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    x = keras.Input((32, 32, 3))
    assert export(keras.Model(x, model(x)), tmp_path / "a").agreement == 1


class Deciding(keras.Model):
    """As KerasHub's detectors, whose `predict` decodes boxes."""

    def call(self, *args, **options):
        return 3.0 * super().call(*args, **options)

    def predict_step(self, data):
        return ops.argmax(super().predict_step(data), axis=-1)


def test_what_predict_adds_stays_outside(tmp_path):
    model = net(classes=3, include_top=True)
    deciding = Deciding(model.input, model.output)
    assert deciding.predict(PIXELS, verbose=0).shape == (1,)
    report = export(deciding, tmp_path / "a")
    assert report.agreement == 1
    found = loaded(report, "saved_model")(PIXELS)
    expected = 3 * model.predict(PIXELS, verbose=0)
    assert difference(found, expected) < 1e-5


class Shifted(layers.Layer):
    """Holds tensors that are no weights, a large one and a small one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        random = np.random.default_rng(0)
        shift = random.normal(size=(12, 12, 8)).astype("float32")
        self.shift = ops.convert_to_tensor(shift)
        self.order = ops.convert_to_tensor([7, 6, 5, 4, 3, 2, 1, 0])

    def call(self, x):
        return ops.take(x + self.shift, self.order, axis=-1)


def test_what_tf2onnx_itself_cannot(tmp_path):
    """Unknown operations, constants taken for inputs, sizes rounded down."""
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    x = keras.Input((12, 12, 3))
    centred = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 4])(x)
    y = layers.Conv2D(8, 1)(centred)
    ways = {
        "gelu": layers.Activation("gelu"),
        "celu": layers.Activation("celu"),
        "gate": layers.Activation("hard_sigmoid"),  # a scalar is added
        "scaled": layers.Rescaling([1.0, 2.0] * 4, offset=0.5),
        "shifted": Shifted(),
        "smooth": layers.Resizing(7, 9),
        "twice": keras.Sequential(
            [layers.Resizing(7, 9), layers.Resizing(5, 11)]
        ),
        "nearest": layers.Resizing(14, 7, interpolation="nearest"),
        "larger": layers.UpSampling2D(2, interpolation="bilinear"),
    }
    model = keras.Model(x, {name: way(y) for name, way in ways.items()})
    report = export(model, tmp_path / "a.onnx", "onnx")
    assert report.max_difference < 1e-5
    images = np.random.default_rng(1).normal(size=(2, 12, 12, 3))
    images = images.astype("float32")
    found = loaded(report, "onnx")(images)
    expected = model.predict_on_batch(images)
    assert set(found) == set(ways)
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        assert difference(found[name], values) < 1e-5, name


@pytest.mark.parametrize(
    "precision, side", [("int8", 12), ("float16", 12), ("float16", None)]
)
def test_sizes_in_fewer_bits(tmp_path, precision, side):
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    keras.utils.set_random_seed(0)
    x = keras.Input((side, side, 3))
    y = layers.Resizing(7, 9)(layers.Conv2D(8, 3, padding="same")(x))
    y = layers.GlobalMaxPooling2D()(layers.Conv2D(8, 7)(y))
    side = side or 224  # where none is said
    images = np.random.default_rng(1).normal(size=(2, side, side, 3))
    report = export(
        keras.Model(x, y),
        tmp_path / "a.onnx",
        "onnx",
        precision,
        **({"calibration": images} if precision == "int8" else {}),
        tolerance=0.5,
    )
    assert loaded(report, "onnx")(images.astype("float32")).shape == (2, 8)


@pytest.mark.parametrize("scale", [(), (1 / 127.5, -1)])
def test_int8_of_pixels_in_a_range_of_their_own(tmp_path, scale):
    """Photographs with ImageNet's normalisation are not in it."""
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 3))
    y = layers.Rescaling(*scale)(x) if scale else x
    y = layers.Conv2D(8, 3, activation="relu")(y)
    y = layers.Dense(3)(layers.GlobalAveragePooling2D()(y))
    pixels = np.random.default_rng(1).uniform(size=(40, 4, 4, 3))
    pixels = pixels.repeat(4, 1).repeat(4, 2) * (255 if scale else 1)
    model, path = keras.Model(x, y), tmp_path / "a.onnx"
    report = export(model, path, "onnx", "int8", calibration=pixels)
    assert report.max_difference < 0.05


def test_a_softmax_over_places_in_float16(tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    x = keras.Input((8, 8, 3))
    y = layers.Softmax(axis=(1, 2))(layers.Conv2D(4, 3)(x))
    report = export(keras.Model(x, y), tmp_path / "a.onnx", "onnx", "float16")
    assert report.max_difference < 1e-2


def test_scalars_behind_convolutions(tmp_path):
    """tf2onnx then no longer leaves each convolution between transposes."""
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    import onnx

    x = y = keras.Input((8, 8, 3))
    for _ in range(3):
        y = layers.Activation("hard_sigmoid")(layers.Conv2D(4, 1)(y))
        y = 2.0 + layers.Conv2D(4, 1, use_bias=False)(y)
    y = layers.GlobalAveragePooling2D()(y)
    report = export(keras.Model(x, y), tmp_path / "a.onnx", "onnx")
    nodes = [node.op_type for node in onnx.load(report.path).graph.node]
    assert nodes.count("Conv") == 6
    assert nodes.count("Transpose") <= 2  # at both ends


def test_a_single_named_output_and_a_list(tmp_path):
    x = keras.Input(SHAPE)
    y = net()(x)
    model = keras.Model(x, {"probabilities": layers.Dense(3, "softmax")(y)})
    path = export(model, tmp_path / "a").path
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert list(served.structured_outputs) == ["probabilities"]
    path = export(keras.Model(x, [y, y[:, :4]]), tmp_path / "b").path
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert sorted(served.structured_outputs) == ["outputs_0", "outputs_1"]
    row = keras_resnext.eval_transform("resnet50/imagenet1k_v2").checkpoint
    with pytest.raises(ValueError, match="A model of classes is required"):
        export(keras.Model(x, [y, y]), tmp_path / "c", checkpoint=row)


@pytest.mark.parametrize("head", ["sure", "mask", "nothing"])
def test_scores_that_have_no_logits(tmp_path, head):
    model = net(pooling=None)
    y = model.output
    if head == "mask":
        y = layers.Conv2D(1, 1, activation="sigmoid", bias_initializer=SURE)(y)
    else:
        y = layers.GlobalAveragePooling2D()(y)
        zero = head == "nothing"
        y = layers.Dense(
            1,
            kernel_initializer="zeros" if zero else "ones",
            activation="relu" if zero else "sigmoid",
        )(y)
    report = export(keras.Model(model.input, y), tmp_path / "a")
    assert 0 <= report.max_difference < 1e-5
    assert report.agreement == 1


def test_outputs_that_are_not_numbers(tmp_path):
    model = net()
    model = keras.Model(model.input, ops.log(0 * model.output))
    with pytest.raises(
        ValueError, match=r"must be finite numbers.*_finite=0\.0"
    ):
        export(model, tmp_path / "a")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "dtype", ["uint8", pytest.param("int32", marks=pytest.mark.slow)]
)
def test_levels_as_inputs(tmp_path, dtype):
    """The model normalises by itself, so pictures come as they are."""
    x = keras.Input((32, 32, 3), dtype=dtype)
    y = net(input_shape=(32, 32, 3))(ops.cast(x, "float32") / 127.5 - 1.0)
    y = layers.Dense(10, activation="softmax", name="predictions")(y)
    model = keras.Model(x, y)
    transform = keras_resnext.eval_transform("resnext29/cifar10")
    row = transform.checkpoint
    report = export(model, tmp_path / "a", checkpoint=row)
    assert report.max_difference < 1e-5
    _, run = FORMATS["saved_model"].load(report.path)
    answer = run({"pictures": [PICTURES[0].read_bytes()]}, "serving_bytes")
    image = transform(PICTURES[0])
    levels = np.rint(255 * (image * row.std + row.mean)).astype(dtype)
    assert levels.max() > 100
    best = np.sort(model.predict(levels[np.newaxis], verbose=0)[0])[:-6:-1]
    assert difference(answer["scores"][0], best) < 0.02


def sequential():
    return keras.Sequential(
        [keras.Input(SHAPE), layers.RandomFlip(), net(), layers.Dense(3)]
    )


def headed():
    return keras.Sequential([net(), layers.Dense(3)])


def siamese():
    x, shared = keras.Input(SHAPE), net()
    return keras.Model(x, shared(x) - shared(x[:, :, ::-1]))


def video():
    x = keras.Input((2, *SHAPE))
    return keras.Model(x, layers.LSTM(3)(layers.TimeDistributed(net())(x)))


def pyramid():
    x = keras.Input(SHAPE)
    maps = transfer.features(net(), ["conv1", "conv2"])(x)
    return keras.Model(x, layers.Conv2D(2, 1)(maps["conv2"]))


def adapted():
    normalise, bins = layers.Normalization(), layers.Discretization(num_bins=5)
    random = np.random.default_rng(0).normal(size=(9, *SHAPE))
    normalise.adapt(random)
    bins.adapt(random.reshape(-1))
    x = keras.Input(SHAPE)
    codes = layers.IntegerLookup(vocabulary=[0, 1, 3])(bins(x))
    return keras.Model(x, net()(normalise(x) + ops.cast(codes, "float32")))


@pytest.mark.parametrize(
    "build", [sequential, headed, siamese, video, pyramid, adapted]
)
def test_nets_inside_nets(tmp_path, build):
    report = export(build(), tmp_path / "a")
    assert report.max_difference < 1e-5 and report.agreement > 0.8


@pytest.mark.parametrize("format", FORMAT_PACKAGES)
@pytest.mark.parametrize("own", [False, True])
def test_mixed_precision(tmp_path, own, format):
    """A net that computes in bfloat16 is exported with all its digits."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = net(pooling=None)
        y = Own()(model.output) if own else model.output
        model = keras.Model(model.input, layers.GlobalMaxPooling2D()(y))
    finally:
        keras.config.set_dtype_policy("float32")
    types = [layer.compute_dtype for layer in model._flatten_layers()]
    before = model.predict(PIXELS, verbose=0)
    report = export(model, tmp_path / FORMATS[format].file, format)
    assert report.precision == "float32" and report.max_difference < 1e-4
    # It is the model's own layer that was lent another type.
    assert [x.compute_dtype for x in model._flatten_layers()] == types
    np.testing.assert_array_equal(model.predict(PIXELS, verbose=0), before)


def compared(dtype="float32", free=False):
    """A network that compares two pictures; the inputs are out of order."""
    shape = (None, None, 3) if free else SHAPE
    right = keras.Input(shape, dtype=dtype, name="right")
    left = keras.Input(shape, dtype=dtype, name="left")
    shared = net(input_shape=shape)
    y = shared(left / 255) - 2 * shared(right / 255)
    return keras.Model([right, left], layers.Dense(3)(y))


def two_batches(dtype="float32"):
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 5, *SHAPE)).astype(dtype)
    return dict(zip(("right", "left"), images, strict=True))


@pytest.mark.parametrize(
    "format, dtype, free",
    [
        *((format, "float32", False) for format in FORMAT_PACKAGES),
        pytest.param("litert", "float32", True, marks=pytest.mark.slow),
        pytest.param("onnx", "uint8", False, marks=pytest.mark.slow),
    ],
)
def test_two_pictures_at_once(tmp_path, format, dtype, free):
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    model, images = compared(dtype, free), two_batches(dtype)
    report = export(model, tmp_path / "a", format)
    assert report.max_difference < 1e-4 and report.agreement == 1
    run = loaded(report, format)
    expected = model.predict(list(images.values()), verbose=0)
    assert difference(run(images), expected) < 1e-5
    swapped = {"right": images["left"], "left": images["right"]}
    assert difference(run(swapped), expected) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["litert", "openvino", "onnx"])
def test_two_pictures_in_eight_bits(tmp_path, format):
    for package in (FORMAT_PACKAGES[format], *FORMATS[format].quantizer):
        pytest.importorskip(package, reason=f"{package} is missing")
    model, images = compared(), two_batches()
    images["left"] /= 50  # so that each has a range of its own
    report = export(model, tmp_path / "a", format, "int8", calibration=images)
    assert report.pictures == 5
    expected = model.predict(list(images.values()), verbose=0)
    assert difference(loaded(report, format)(images), expected) < 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(format="fastest"), '"fastest" takes models with one input'),
        (dict(checkpoint="resnet18"), "with one input of pictures .* by their"),
        (
            dict(calibration={"left": PIXELS}),
            r"must be inputs \[\(16, 16, 3\), \(16, 16, 3\)\], as many",
        ),
        (dict(calibration=PIXELS), "by the names of the inputs if there"),
    ],
)
def test_what_two_pictures_cannot_have(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(compared(), tmp_path / "a", **options)
    assert not [*tmp_path.iterdir()]


def test_inputs_that_are_no_pictures(tmp_path):
    row = keras.Input((4,))
    model = keras.Model(row, layers.Dense(2)(row))
    text = keras.Input((4, 4, 3), dtype="string")
    with pytest.raises(ValueError, match=r"must be numbers.*'string'"):
        export(keras.Model(text, text), tmp_path / "text", "onnx")
    pair = [keras.Input((4, 4, 3), name=name) for name in ("left image", "b")]
    for inputs, outputs, format, message in (
        (pair, keras.layers.Add()(pair), "litert", "of letters, digits and _"),
        (pair[1], {"images": 2 * pair[1]}, "onnx", "must have different names"),
        (
            pair[1],
            {"a": [2 * pair[1], 3 * pair[1]], "a_0": 4 * pair[1]},
            "openvino",
            r"Outputs must have .* names=\['a_0', 'a_1', 'a_0'\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export(keras.Model(inputs, outputs), tmp_path / "names", format)
    with pytest.raises(ValueError, match="must take images, or as many"):
        export(model, tmp_path / "a")


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_files_that_would_be_too_large(tmp_path, format):
    """Before anything is done with the weights, which have no memory."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    with keras.StatelessScope(initialize_variables=False):
        model = keras.Model(
            x := keras.Input(SHAPE), layers.Dense(680_000)(layers.Flatten()(x))
        )
    message = (
        f"less than 2 GB are required for {format}. "
        f"Received: weights_in_bytes={4 * 769 * 680_000}. "
        'Choose "openvino" or "saved_model"'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        export(model, tmp_path / "a", format)
    assert not [*tmp_path.iterdir()]
    keras.utils.clear_session()  # forgets the variables without memory


@pytest.mark.parametrize("format", ["saved_model", "openvino"])
def test_large_weights_are_in_no_message(tmp_path, monkeypatch, format):
    """Which is why these two formats have no limit."""
    pytest.importorskip(FORMAT_PACKAGES[format], reason="a runtime is missing")
    monkeypatch.setattr(folding, "_MAX_CONSTANTS", 0)
    report = export(net(), tmp_path / "a", format)
    assert report.max_difference < 1e-5
    if format == "saved_model":
        loaded = tf.saved_model.load(str(report.path))
        served = loaded.signatures["serving_default"]
        kernels = [v for v in served.variables if len(v.shape) == 4]
        assert len(kernels) == 5
        graph = (report.path / "saved_model.pb").read_bytes()
        assert not any(v.numpy().tobytes() in graph for v in kernels)
