"""The networks: counts, names, arguments, initial values, equivalent forms."""

import dataclasses
import inspect
import json
import math
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file
from test_registry import PARAMETERS  # torchvision's and timm's, as literals

import keras_resnext
from keras_resnext import weights
from keras_resnext.layers import _trains_directly
from keras_resnext.registry import ARCHITECTURES, Architecture
from keras_resnext.resnext import residual

BACKEND = keras.backend.backend()
NAMES = json.loads(
    pathlib.Path(__file__).with_name("layer_names.json").read_text()
)
numpy = ops.convert_to_numpy
anywhere = pytest.mark.anywhere
# Those of more than 50 layers repeat the same blocks, and take long together.
every_architecture = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (sum(row.depths) > 16))
        for name, row in ARCHITECTURES.items()
    ],
)


def tiny(depths=(1, 2), **options):
    """Builds a network of two groups that takes images of any size."""
    defaults = dict(
        groups=2,
        width_per_group=4,
        classes=10,
        input_shape=(None, None, 3),
        stem="cifar",
    )
    return keras_resnext.ResNeXt(depths, **(defaults | options))


def build(name, **options):
    """Builds an architecture with random weights."""
    constructor = getattr(keras_resnext, ARCHITECTURES[name].constructor)
    return constructor(weights=None, **options)


def randomise(model, seed=0):
    """Draws all weights; with a fresh normalisation's many a fault hides."""
    random = np.random.default_rng(seed)
    for v in model.weights:
        array = random.standard_normal(v.shape, dtype="float32")
        if v.name == "kernel":
            array *= math.sqrt(2 / math.prod(v.shape[:-1]))
        elif v.name in ("gamma", "moving_variance", "variance"):
            array = 0.8 + 0.2 * np.tanh(array)
        else:
            array *= 0.1
        v.assign(array)
    return model


def images(*size, channels=3, count=2):
    random = np.random.default_rng(size)
    shape = (count, *size, channels)
    return random.standard_normal(shape, dtype="float32")


def run(model, x):
    return numpy(ops.cast(model(x, training=False), "float32"))


def assert_close(a, b, tolerance=1e-5):
    a, b = map(keras.ops.convert_to_numpy, (a, b))
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def shapes(model):
    return [(v.path, tuple(v.shape)) for v in model.variables]


def of_type(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def assert_refused(message, requirement, received):
    """Checks for the one form that the messages of this package have."""
    assert message.startswith(f"{requirement}. Received: {received}. ")
    advice = message.removeprefix(f"{requirement}. Received: {received}. ")
    assert re.fullmatch(r"[A-Z`].*\.", advice)


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def fetch(url, sha256):
        pytest.fail(f"downloads {url}")

    monkeypatch.setattr("keras_resnext.weights.downloads.fetch", fetch)


@pytest.fixture
def fetched(monkeypatch):
    """Gives the list of URLs asked for; each of them is out of reach."""
    urls = []

    def fetch(url, sha256):
        urls.append(url)
        raise ConnectionError("no network here")

    monkeypatch.setattr("keras_resnext.weights.downloads.fetch", fetch)
    return urls


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Gives the path of random weights for `tiny`."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(randomise(tiny()), path, dtype="float32")
    return path


@pytest.fixture
def shallow(monkeypatch):
    """Leaves one block a stage of each architecture."""
    for name, row in ARCHITECTURES.items():
        row = dataclasses.replace(row, depths=(1,) * len(row.depths))
        monkeypatch.setitem(ARCHITECTURES, name, row)


@pytest.fixture
def policy():
    """Gives the function that sets the dtype policy, and undoes it."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.fixture
def channels_first():
    if BACKEND == "tensorflow" and not _trains_directly():
        pytest.skip("TensorFlow on a CPU needs oneDNN for channels first")

    def configure():
        keras.config.set_image_data_format("channels_first")

    before = keras.config.image_data_format()
    yield configure
    keras.config.set_image_data_format(before)


# What is built


@anywhere
@every_architecture
def test_parameters_and_names_of_layers(name, unallocated):
    row = ARCHITECTURES[name]
    model = build(name)
    count = sum(math.prod(v.shape) for v in model.trainable_weights)
    assert count == PARAMETERS[name][0]
    if name != "resnext29":  # which has no single cardinality
        constructor = getattr(keras_resnext, row.constructor)
        assert f" of {count:,} trainable parameters" in constructor.__doc__
    assert model.name == name
    assert model.output_shape == (None, row.classes)
    maps = model.get_layer("avg_pool").input
    assert maps.shape[-1] == CHANNELS.get(name, 2048)
    if name in NAMES:
        # Without the input, whose name is counted up by Keras.
        assert [layer.name for layer in model.layers[1:]] == NAMES[name]


@anywhere
def test_every_architecture_has_a_count_and_a_constructor():
    assert set(PARAMETERS) == set(ARCHITECTURES)
    public = {
        n for n in dir(keras_resnext) if re.match("(Legacy)?(SE)?Res|Wide", n)
    }
    rows = [row.constructor for row in ARCHITECTURES.values()]
    assert sorted([*rows, "ResNeXt"]) == sorted(public)


@anywhere
def test_golden_layer_names_are_of_each_kind():
    # Written down once by the package, and reviewed.
    lengths = {name: len(names) for name, names in NAMES.items()}
    assert lengths == {"resnext50_32x4d": 179, "resnet18": 73, "resnext29": 103}


@anywhere
@pytest.mark.parametrize(
    "name",
    [
        "ResNet50",
        pytest.param("ResNet101", marks=pytest.mark.slow),
        pytest.param("ResNet152", marks=pytest.mark.slow),
    ],
)
def test_layers_are_named_as_in_keras_applications(name, unallocated):
    ours, theirs = (
        getattr(module, name)(weights=None)
        for module in (keras_resnext, keras.applications)
    )
    assert [layer.name for layer in ours.layers if layer.weights] == [
        layer.name for layer in theirs.layers if layer.weights
    ]
    # Theirs are the original ResNets: with biases before the normalisation,
    # and the stride in the block's first convolution, which needs no padding.
    kernels = dict(shapes(ours))
    assert kernels == {
        path: shape
        for path, shape in shapes(theirs)
        if not path.endswith("conv/bias")
    }
    names = [
        {layer.name for layer in model.layers[1:]} for model in (ours, theirs)
    ]
    assert names[0] - names[1] == {
        f"conv{stage}_block1_2_pad" for stage in (3, 4, 5)
    }
    assert not names[1] - names[0]


@anywhere
def test_normalisations_are_as_in_pytorch():
    # The parity tests have variances of about 1: they show no epsilon.
    norms = of_type(tiny(), keras.layers.BatchNormalization)
    assert len(norms) == 12
    assert {(n.momentum, n.epsilon) for n in norms} == {(0.9, 1e-5)}


# Signatures


@anywhere
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_signature_is_that_of_keras_applications(name):
    row = ARCHITECTURES[name]
    function = getattr(keras_resnext, row.constructor)
    defaults = {
        p.name: p.default
        for p in inspect.signature(
            keras.applications.ResNet50
        ).parameters.values()
    }
    defaults["name"] = name
    if name == "resnext29":
        defaults |= {"weights": "cifar10", "classes": 10}
    assert [
        (p.name, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ] == list(defaults.items())


@anywhere
def test_signature_of_the_builder():
    keras_names = list(
        inspect.signature(keras.applications.ResNet50).parameters
    )
    ours = list(inspect.signature(keras_resnext.ResNeXt).parameters)
    assert ours[:3] == ["depths", "groups", "width_per_group"]
    assert ours[3 : 3 + len(keras_names)] == keras_names


@anywhere
@pytest.mark.parametrize(
    "name", ["ResNeXt", *(row.constructor for row in ARCHITECTURES.values())]
)
def test_documentation(name):
    function = getattr(keras_resnext, name)
    assert function.__name__ == function.__qualname__ == name
    documented = re.search(r"Args:\n(.+?)\n\n", inspect.getdoc(function), re.S)
    assert re.findall(r"^    \**(\w+):", documented[1], re.M) == list(
        inspect.signature(function).parameters
    )


@anywhere
@pytest.mark.parametrize(
    "function, first",
    [
        (keras_resnext.ResNet18, ()),
        (keras_resnext.ResNeXt29, ()),
        (keras_resnext.ResNeXt, ((1, 1), 2, 4)),
    ],
    ids=["ResNet18", "ResNeXt29", "ResNeXt"],
)
def test_arguments_by_position(function, first, shallow, unallocated):
    tensor = keras.Input((40, 48, 1), name="mine")
    model = function(
        *first, True, None, tensor, None, None, 7, "sigmoid", "net"
    )
    assert model.inputs[0] is tensor
    assert (model.name, model.output_shape) == ("net", (None, 7))
    top = model.get_layer("predictions")
    assert top.activation is keras.activations.sigmoid
    assert top.dtype == "float32"
    model = function(*first, False, None, None, (40, 48, 1), "max")
    assert model.input_shape == (None, 40, 48, 1)
    assert len(model.output_shape) == 2
    assert isinstance(model.layers[-1], keras.layers.GlobalMaxPooling2D)


# Shapes


CHANNELS = {"resnet18": 512, "resnet34": 512, "resnext29": 1024}


# The maps of all others: `test_parameters_and_names_of_layers`.
@anywhere
@pytest.mark.parametrize("name", ["resnext50_32x4d", *CHANNELS])
def test_without_top(name, shallow, unallocated):
    channels = CHANNELS.get(name, 2048)
    assert build(name, include_top=False).output_shape == (
        (None, None, None, channels)
    )


@anywhere
@pytest.mark.parametrize(
    "pooling, channels", [(None, 1), ("avg", 3), ("max", 4)]
)
@pytest.mark.parametrize("name", ["resnet18", "resnext29"])
def test_channels_and_pooling(name, pooling, channels, shallow, unallocated):
    model = build(
        name,
        include_top=False,
        pooling=pooling,
        input_shape=(None, None, channels),
    )
    out = CHANNELS[name]
    assert model.output_shape == (
        (None, out) if pooling else (None, None, None, out)
    )
    assert model.get_layer("conv1_conv").kernel.shape[2] == channels


def test_pooled_values(file):
    x = images(20, 17)
    maps, average, largest = (
        run(tiny(include_top=False, pooling=pooling, weights=file), x)
        for pooling in (None, "avg", "max")
    )
    assert maps.shape == (2, 10, 9, 512)
    assert_close(average, maps.mean((1, 2)))
    np.testing.assert_array_equal(largest, maps.max((1, 2)))


@anywhere
@pytest.mark.parametrize(
    "name, shape",
    [("resnet18", (224, 224, 3)), ("resnext29", (32, 32, 3))],
)
def test_default_shape(name, shape, shallow, unallocated):
    assert build(name).input_shape == (None, *shape)
    model = build(name, include_top=False)
    assert model.input_shape == (None, None, None, 3)


FREE = dict(depths=(1, 1, 1, 1), stem="imagenet", include_top=False)


@pytest.fixture(scope="module")
def free():
    """Gives a network of four stages that takes any size."""
    return randomise(tiny(**FREE))


@pytest.mark.parametrize(
    "size",
    [
        (33, 47),
        *(
            pytest.param(size, marks=anywhere)
            for size in ((32, 32), (64, 65), (97, 50))
        ),
    ],
)
def test_sizes(size, free):
    # Strides round up, at every level.
    fixed = tiny(input_shape=(*size, 3), **FREE)
    fixed.set_weights(free.get_weights())
    x = images(*size)
    expected = (math.ceil(size[0] / 32), math.ceil(size[1] / 32), 2048)
    assert fixed.output_shape == (None, *expected)
    y = run(fixed, x)
    assert y.shape == (2, *expected)
    assert_close(run(free, x), y)


@pytest.mark.parametrize("stem, depths", [("imagenet", 4), ("cifar", 3)])
def test_least_size(stem, depths):
    options = dict(depths=(1,) * depths, stem=stem, classes=10)
    side = {"imagenet": 32, "cifar": 4}[stem]
    model = tiny(input_shape=(side, side, 3), **options)
    assert np.isfinite(run(model, images(side, side))).all()
    for shape in ((side - 1, 2 * side, 3), (None, side - 1, 3)):
        with pytest.raises(ValueError) as caught:
            tiny(input_shape=shape, **options)
        assert_refused(
            str(caught.value),
            f"Images must be at least {side}x{side} pixels",
            f"input_shape={shape}",
        )


# Input tensors


def test_input_tensor(file):
    inputs = keras.Input((16, 16, 1))
    before = keras.Sequential(
        [inputs, keras.layers.Conv2D(3, 1), keras.layers.Rescaling(2.0)]
    )
    kept = before.get_weights()
    model = tiny(weights=file, input_tensor=before(inputs))
    assert model.inputs[0] is inputs
    for old, new in zip(kept, before.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    x = images(16, 16, channels=1)
    expected = run(tiny(weights=file), run(before, x))
    assert_close(run(model, x), expected)
    assert len(model.weights) == len(tiny().weights) + len(kept)


def test_input_tensor_from_single_layers(file):
    # They become layers of the model itself, beside its own.
    inputs = keras.Input((16, 16, 1))
    convolution = keras.layers.Conv2D(3, 1, name="mine")
    x = convolution(inputs)
    kept = convolution.get_weights()
    model = tiny(weights=file, input_tensor=keras.layers.ReLU()(x))
    np.testing.assert_array_equal(convolution.get_weights()[0], kept[0])
    stored = load_file(file)
    for v in model.variables:
        if not v.path.startswith("mine"):
            np.testing.assert_array_equal(numpy(v), stored.pop(v.path))
    assert not stored


@pytest.mark.parametrize(
    "policy, dtype",
    [("mixed_bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_type_of_the_output(policy, dtype):
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        model = tiny((1,))
        top = keras_resnext.transfer.replace_top(model, 3)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.output.dtype == top.output.dtype == dtype


def test_input_tensor_of_two_inputs():
    grey, colour = keras.Input((16, 16, 1)), keras.Input((16, 16, 2))
    model = tiny(input_tensor=keras.layers.Concatenate()([grey, colour]))
    assert [tuple(t.shape) for t in model.inputs] == [
        (None, 16, 16, 1),
        (None, 16, 16, 2),
    ]
    y = run(model, [images(16, 16, channels=c) for c in (1, 2)])
    assert y.shape == (2, 10)


def test_built_twice_shares_nothing():
    inputs = keras.Input((16, 16, 3))
    one = randomise(tiny(input_tensor=inputs, name="one"), 1)
    two = randomise(tiny(input_tensor=inputs, name="two"), 2)
    # Together in one model, and one of them twice.
    y = keras.layers.Concatenate()([one(inputs), two(inputs), one(inputs)])
    x = images(16, 16)
    a, b, c = np.split(run(keras.Model(inputs, y), x), 3, axis=-1)
    assert_close(a, run(one, x))
    assert_close(b, run(two, x))
    np.testing.assert_array_equal(a, c)
    assert np.abs(a - b).max() > 1e-3


@anywhere
@pytest.mark.parametrize("tensor", [np.zeros((1, 32, 32, 3)), "image", [1]])
def test_input_tensor_must_be_of_keras(tensor):
    with pytest.raises(ValueError) as caught:
        tiny(input_tensor=tensor)
    assert_refused(
        str(caught.value),
        "`input_tensor` must be a Keras tensor",
        f"input_tensor='{type(tensor).__name__}'",
    )


@anywhere
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, None), (2, 1, 3)])
def test_shape_of_input_tensor_is_checked(shape):
    with pytest.raises(ValueError, match=re.escape(f"input_shape={shape}")):
        tiny((1, 1, 1), input_tensor=keras.Input(shape), input_shape=None)


@anywhere
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_input_tensor_must_be_of_floats(dtype):
    inputs = keras.Input((16, 16, 3), dtype=dtype)
    with pytest.raises(ValueError) as caught:
        tiny(input_tensor=inputs)
    assert_refused(
        str(caught.value),
        "`input_tensor` must be of floats",
        f"input_tensor='{dtype}'",
    )
    model = tiny(input_tensor=keras_resnext.preprocess_input(inputs))
    assert run(model, images(16, 16).astype(dtype)).shape == (2, 10)


@anywhere
@pytest.mark.parametrize("shape", [(16, 16, 3), (24, None, 4), (24, 24), 24])
def test_input_shape_must_not_contradict_input_tensor(shape):
    inputs = keras.Input((24, None, 3))
    with pytest.raises(ValueError) as caught:
        tiny(input_tensor=inputs, input_shape=shape)
    assert_refused(
        str(caught.value),
        "`input_shape` must be that of `input_tensor`, (24, None, 3)",
        f"input_shape={shape}",
    )
    for same in ((24, None, 3), [None, 24, 3]):
        model = tiny(input_tensor=inputs, input_shape=same)
        assert model.input_shape == (None, 24, None, 3)


# Wrong arguments


SHAPE = "`input_shape` must be (height, width, channels)"
CHANNEL = "The number of channels must be a positive integer"
DEPTHS = "`depths` must be positive integers, one for each stage"
BASIC = "The basic block takes groups=1 and width_per_group=64 only"
BLOCK = "`block` must be one of ('basic', 'bottleneck')"
STEM = "`stem` must be one of ('imagenet', 'cifar', 'deep', 'tiered', 'legacy')"
CLASSES = "`classes` must be a positive integer"
POOLING = "`pooling` must be None, 'avg' or 'max'"
STRIDE = "`output_stride` must be None or one of"
DEEP = dict(depths=(1, 1, 1, 1), stem="imagenet")
WRONG = [
    (dict(block="wide"), BLOCK, "block='wide'"),
    (dict(block=None), BLOCK, "block=None"),
    (dict(stem="caffe"), STEM, "stem='caffe'"),
    (dict(depths=()), DEPTHS, "depths=()"),
    (dict(depths=3), DEPTHS, "depths=3"),
    (dict(depths=(1, 0)), DEPTHS, "depths=(1, 0)"),
    (dict(depths=(1, 2.0)), DEPTHS, "depths=(1, 2.0)"),
    (dict(depths=(1, (2, 3))), DEPTHS, "depths=(1, (2, 3))"),
    (dict(groups=0), "`groups` must be a positive integer", "groups=0"),
    (dict(groups=2.0), "`groups` must be a positive integer", "groups=2.0"),
    (
        dict(width_per_group=-4),
        "`width_per_group` must be a positive integer",
        "width_per_group=-4",
    ),
    (dict(planes=0), "`planes` must be a positive integer", "planes=0"),
    (dict(planes=16.0), "`planes` must be a positive integer", "planes=16.0"),
    (
        dict(planes=15),
        "`width_per_group` must leave each group a channel: at least 64 / "
        "planes, here 5",
        "width_per_group=4",
    ),
    (dict(block="basic"), BASIC, "groups_and_width_per_group=(2, 4)"),
    (
        dict(block="basic", groups=1, width_per_group=32),
        BASIC,
        "groups_and_width_per_group=(1, 32)",
    ),
    (dict(DEEP, output_stride=4), f"{STRIDE} [8, 16, 32]", None),
    (dict(DEEP, output_stride=12), f"{STRIDE} [8, 16, 32]", None),
    (dict(DEEP, output_stride=64), f"{STRIDE} [8, 16, 32]", None),
    (
        dict(depths=(1, 1), stem="imagenet", output_stride=16),
        f"{STRIDE} [8]",
        None,
    ),
    (
        dict(DEEP, block="basic", groups=1, width_per_group=64)
        | dict(output_stride=16),
        f"{STRIDE} [32]",
        None,
    ),
    (dict(pooling="mean"), POOLING, "pooling='mean'"),
    (dict(pooling="mean", include_top=False), POOLING, "pooling='mean'"),
    (dict(classes=True), CLASSES, "classes=True"),
    (dict(input_shape=224), SHAPE, "input_shape=224"),
    (dict(classes=0), CLASSES, "classes=0"),
    (dict(classes=None), CLASSES, "classes=None"),
    (dict(classes=10.0), CLASSES, "classes=10.0"),
    (dict(input_shape=(32, 32)), SHAPE, "input_shape=(32, 32)"),
    (dict(input_shape=(1, 8, 8, 3)), SHAPE, "input_shape=(1, 8, 8, 3)"),
    (dict(input_shape=(8, 8, None)), CHANNEL, "input_shape=(8, 8, None)"),
    (dict(input_shape=(8, 8, 0)), CHANNEL, "input_shape=(8, 8, 0)"),
]


@anywhere
@pytest.mark.parametrize("options, requirement, received", WRONG)
def test_wrong_argument(options, requirement, received):
    with pytest.raises(ValueError) as caught:
        tiny(**options)
    received = received or f"output_stride={options['output_stride']}"
    assert_refused(str(caught.value), requirement, received)


@anywhere
def test_integers_of_numpy():
    labels = np.array([0, 1, 2])
    model = tiny(depths=np.array([1, 1]), classes=labels.max() + 1)
    assert model.output_shape == (None, 3)


@anywhere
def test_unknown_argument():
    with pytest.raises(TypeError, match="'strides'"):
        keras_resnext.ResNet18(weights=None, strides=2)
    with pytest.raises(TypeError, match="'strides'"):
        keras_resnext.ResNeXt29(
            weights=None, accept_noncommercial=True, strides=2
        )


FEW = "`classes` must be 1000, as in the checkpoint"
SOFTMAX = (
    "`classifier_activation` must be None or 'softmax' with pretrained weights"
)
RGB = "Pretrained weights take images of 3 channels"


@anywhere
@pytest.mark.parametrize(
    "options, requirement, received",
    [
        (dict(classes=10), FEW, "classes=10"),
        (dict(classes=1001), FEW, "classes=1001"),
        (
            dict(classifier_activation="relu"),
            SOFTMAX,
            "classifier_activation='relu'",
        ),
        (
            dict(input_shape=(None, None, 1)),
            RGB,
            "input_shape=(None, None, 1)",
        ),
        (
            dict(input_shape=(64, 64, 4), include_top=False),
            RGB,
            "input_shape=(64, 64, 4)",
        ),
        (
            dict(input_shape=(31, 64, 3)),
            "Images must be at least 32x32 pixels",
            "input_shape=(31, 64, 3)",
        ),
        (dict(pooling="mean"), POOLING, "pooling='mean'"),
        (dict(output_stride=16), f"{STRIDE} [32]", None),
        (dict(input_tensor=1), "`input_tensor` must be a Keras tensor", None),
    ],
)
def test_wrong_argument_is_found_before_the_download(
    options, requirement, received
):
    with pytest.raises(ValueError) as caught:
        keras_resnext.ResNet18(**options)
    if received is None:
        assert str(caught.value).startswith(f"{requirement}. Received: ")
    else:
        assert_refused(str(caught.value), requirement, received)


# Which weights


TORCHVISION = "https://download.pytorch.org/models"


@anywhere
@pytest.mark.parametrize(
    "name, options, url",
    [
        ("ResNet18", {}, f"{TORCHVISION}/resnet18-f37072fd.pth"),
        (
            "ResNet18",
            {"classes": 5, "include_top": False},
            f"{TORCHVISION}/resnet18-f37072fd.pth",
        ),
        (
            "ResNet50",
            {"weights": "IMAGENET1K_V1"},
            f"{TORCHVISION}/resnet50-0676ba61.pth",
        ),
        (
            "ResNeXt101_32x16d",
            {
                "weights": "fb_wsl_ig1b_ft_in1k",
                "accept_noncommercial": True,
            },
            f"{TORCHVISION}/ig_resnext101_32x16-c6f796b0.pth",
        ),
    ],
)
def test_chosen_checkpoint(name, options, url, fetched):
    with pytest.raises(ConnectionError):
        getattr(keras_resnext, name)(**options)
    assert fetched == [url]


@anywhere
def test_a_folder_named_as_the_weights(tmp_path, monkeypatch, fetched):
    # Many a dataset is in a folder "imagenet" beside the script.
    (tmp_path / "imagenet").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConnectionError):
        keras_resnext.ResNet18()
    assert fetched == [f"{TORCHVISION}/resnet18-f37072fd.pth"]


def test_download(tmp_path, monkeypatch, shallow):
    path = tmp_path / "resnet18.safetensors"
    weights.save(randomise(build("resnet18")), path, dtype="float32")
    monkeypatch.setattr(
        "keras_resnext.weights.downloads.fetch", lambda *_: path
    )
    stored = load_file(path)
    for include_top in (True, False):
        model = keras_resnext.ResNet18(include_top=include_top)
        for v in model.variables:
            np.testing.assert_array_equal(numpy(v), stored[v.path])
        assert len(model.variables) == len(stored) - (0 if include_top else 2)


@anywhere
@pytest.mark.parametrize(
    "name, requirement, received",
    [
        (
            "ResNet18",
            "`weights` must be a checkpoint of resnet18, and there is no such "
            "one",
            "weights='unknown'",
        ),
        (
            "ResNeXt152",
            "`weights` must be a checkpoint of resnext152_32x4d, and there is "
            "no permissively licensed ImageNet one",
            "weights='imagenet'",
        ),
        (
            "ResNeXt50",
            "cc-by-nc-4.0, which forbids commercial use, must be accepted for "
            "these weights",
            "weights='fb_swsl_ig1b_ft_in1k'",
        ),
    ],
)
def test_refused_checkpoint(name, requirement, received):
    with pytest.raises(ValueError) as caught:
        getattr(keras_resnext, name)(weights=received.split("'")[1])
    assert_refused(str(caught.value), requirement, received)


@anywhere
@pytest.mark.parametrize("build", [tiny, keras_resnext.ResNeXt29])
@pytest.mark.parametrize("folder", [False, True])
def test_no_file(tmp_path, build, folder):
    path = tmp_path / "weights.h5"
    if folder:
        path.mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        build(weights=str(path))
    assert_refused(
        str(caught.value),
        "`weights` must be None, the path of a file or, for the named "
        "constructors, a tag",
        f"weights='{path}', which is no file",
    )


@anywhere
def test_file_and_activation(file):
    with pytest.raises(ValueError, match="None or 'softmax'"):
        tiny(weights=file, classifier_activation="relu")
    # Without a top there is nothing to activate.
    tiny(weights=file, classifier_activation="relu", include_top=False)


def test_loads_inside_a_name_scope(file):
    # As where a layer of the user's builds the network in its `build`.
    with keras.name_scope("outer"):
        model = tiny(weights=file)
    x = images(16, 16)
    np.testing.assert_array_equal(run(model, x), run(tiny(weights=file), x))


@anywhere
class TestResNeXt29:
    @staticmethod
    def structure(model):
        layer = model.get_layer("conv2_block1_2_conv")
        return layer.groups, layer.filters // layer.groups

    @pytest.mark.parametrize(
        "options, expected",
        [
            ({}, (32, 4)),
            ({"groups": 8}, (8, 4)),
            ({"width_per_group": 64}, (32, 64)),
            ({"groups": 32, "width_per_group": 8}, (32, 8)),
            ({"width_per_group": 24, "planes": 16}, (32, 6)),
        ],
    )
    def test_default_cardinality(self, options, expected, shallow, unallocated):
        model = keras_resnext.ResNeXt29(weights=None, **options)
        assert self.structure(model) == expected

    @pytest.mark.parametrize("option", ["groups", "width_per_group"])
    def test_zero(self, option):
        with pytest.raises(ValueError, match=f"`{option}` must be a positive"):
            keras_resnext.ResNeXt29(weights=None, **{option: 0})

    # As in table 7 of the paper.
    @pytest.mark.parametrize("groups, millions", [(8, 34.4), (16, 68.1)])
    def test_parameters_of_the_paper(self, groups, millions, unallocated):
        model = keras_resnext.ResNeXt29(
            weights=None, groups=groups, width_per_group=64
        )
        count = sum(math.prod(v.shape) for v in model.trainable_weights)
        assert abs(count / 1e6 - millions) < 0.1


# Numbers


def test_probabilities(file):
    x = images(16, 16)
    probabilities = run(tiny(weights=file), x)
    logits = run(tiny(weights=file, classifier_activation=None), x)
    assert probabilities.shape == (2, 10)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    exponentials = np.exp(logits)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert np.ptp(probabilities) > 0.01


@pytest.mark.parametrize(
    "mixed, compute",
    [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")],
)
def test_mixed_precision(mixed, compute, file, policy):
    x = images(16, 16)
    expected = run(tiny(weights=file, classifier_activation=None), x)
    policy(mixed)
    model = tiny(weights=file, classifier_activation=None)
    y = model(x, training=False)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert {v.dtype for v in model.variables} == {"float32"}
    assert {
        layer.compute_dtype
        for layer in model.layers[1:]
        if layer.name != "predictions"
    } == {compute}
    assert_close(numpy(y), expected, 0.05)


@pytest.mark.parametrize(
    "stem", ["imagenet", pytest.param("cifar", marks=anywhere)]
)
def test_channels_first(stem, channels_first, tmp_path):
    path = tmp_path / "weights.safetensors"
    options = dict(stem=stem, classifier_activation=None)
    last = randomise(tiny(**options))
    weights.save(last, path, dtype="float32")
    x = images(33, 40)
    expected = run(last, x)
    channels_first()
    first = tiny(input_shape=(3, None, None), weights=path, **options)
    assert_close(run(first, x.transpose(0, 3, 1, 2)), expected)
    maps = tiny(include_top=False, stem=stem, input_shape=(3, 33, 40))
    side = {"imagenet": (5, 5), "cifar": (17, 20)}[stem]
    assert maps.output_shape == (None, 512, *side)
    with pytest.raises(ValueError, match=r"\(channels, height, width\)"):
        tiny(input_shape=(3, 32))
    with pytest.raises(ValueError, match="at least 2x2"):
        tiny(input_shape=(3, 32, 1))


@anywhere
def test_default_shape_with_channels_first(
    channels_first, shallow, unallocated
):
    channels_first()
    assert build("resnet18").input_shape == (None, 3, 224, 224)
    model = build("resnet18", include_top=False)
    assert model.input_shape == (None, 3, None, None)


BASIC_BLOCK = dict(block="basic", groups=1, width_per_group=64)


@pytest.mark.parametrize(
    "options, last",
    [
        pytest.param({}, 3, id="bottleneck"),
        pytest.param(BASIC_BLOCK, 2, id="basic", marks=anywhere),
    ],
)
def test_zero_gamma(options, last):
    blocks = ["conv2_block1", "conv3_block1", "conv3_block2"]
    x = images(16, 16)
    model = tiny(zero_gamma=True, **options)
    norms = of_type(model, keras.layers.BatchNormalization)
    zero = {n.name for n in norms if not numpy(n.gamma).any()}
    assert zero == {f"{block}_{last}_bn" for block in blocks}
    # The identity, or the projection, of what went in: already rectified.
    stages = {"conv2_block1": "conv1_relu", "conv3_block1": "conv2_block1_out"}
    stages["conv3_block2"] = "conv3_block1_out"
    names = [layer.name for layer in model.layers]
    for block, before in stages.items():
        if f"{block}_0_bn" in names:
            before = f"{block}_0_bn"
        pair = [
            model.get_layer(name).output for name in (before, f"{block}_out")
        ]
        given, out = map(numpy, keras.Model(model.input, pair)(x))
        np.testing.assert_array_equal(np.maximum(given, 0), out)
        assert out.any()


def test_gamma_starts_at_one():
    for norm in of_type(tiny(), keras.layers.BatchNormalization):
        np.testing.assert_array_equal(numpy(norm.gamma), 1)


@anywhere
def test_initial_scale(quick_kernels, monkeypatch):
    scaled = keras.initializers.VarianceScaling
    monkeypatch.setattr(scaled, "__call__", quick_kernels)  # as without tests
    keras.utils.set_random_seed(0)
    model = tiny(groups=2, width_per_group=16)
    convolutions = of_type(model, keras.layers.Conv2D)
    assert len(convolutions) == 12
    for layer in convolutions:
        kernel = numpy(layer.kernel)
        assert layer.bias is None
        # 864 numbers or more: the error of the estimate is below 3 %.
        fan_in = math.prod(kernel.shape[:3])
        assert kernel.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
        assert abs(kernel.mean()) < 0.1 * kernel.std()


def gradients(model, x, labels):
    """Returns the cross-entropy's gradient for each trainable weight."""

    def loss(y):
        return ops.mean(keras.losses.sparse_categorical_crossentropy(labels, y))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(model(x, training=True))
        return tape.gradient(value, model.trainable_weights)
    if BACKEND == "jax":
        import jax

        def stateless(trainable):
            fixed = [v.value for v in model.non_trainable_variables]
            return loss(
                model.stateless_call(trainable, fixed, x, training=True)[0]
            )

        # Compiled as a whole, which takes less than each operation alone.
        compiled = jax.jit(jax.grad(stateless))
        return compiled([v.value for v in model.trainable_weights])
    loss(model(x, training=True)).backward()
    return [v.value.grad for v in model.trainable_weights]


@pytest.mark.parametrize(
    "stem, options",
    [
        pytest.param("imagenet", {}, id="imagenet-bottleneck"),
        pytest.param("cifar", BASIC_BLOCK, id="cifar-basic"),
        pytest.param("cifar", {}, id="cifar-bottleneck", marks=anywhere),
        pytest.param(
            "imagenet", BASIC_BLOCK, id="imagenet-basic", marks=anywhere
        ),
    ],
)
def test_every_parameter_gets_a_gradient(stem, options):
    model = randomise(tiny(stem=stem, **options))
    found = gradients(model, images(17, 20, count=4), np.arange(4))
    for v, gradient in zip(model.trainable_weights, found, strict=True):
        assert gradient is not None, v.path
        assert tuple(gradient.shape) == tuple(v.shape)
        assert np.isfinite(numpy(gradient)).all(), v.path
        assert numpy(gradient).any(), v.path


# Use with Keras


def test_saved_model(tmp_path):
    model = randomise(tiny(input_shape=(16, 16, 3)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(a) for a in loaded.layers] == [type(a) for a in model.layers]
    assert shapes(loaded) == shapes(model)
    x = images(16, 16)
    np.testing.assert_array_equal(run(loaded, x), run(model, x))


def test_saved_weights(tmp_path):
    model = randomise(tiny())
    model.save_weights(tmp_path / "model.weights.h5")
    other = tiny()
    other.load_weights(tmp_path / "model.weights.h5")
    ours = tiny(weights=tmp_path / "model.weights.h5")
    x = images(16, 16)
    np.testing.assert_array_equal(run(other, x), run(model, x))
    np.testing.assert_array_equal(run(ours, x), run(model, x))


@pytest.mark.parametrize(
    "copy",
    [
        keras.models.clone_model,
        lambda model: type(model).from_config(model.get_config()),
        lambda model: keras.models.model_from_json(model.to_json()),
    ],
    ids=["clone", "config", "json"],
)
def test_copies(copy):
    model = randomise(tiny())
    copied = copy(model)
    assert copied.name == model.name
    # Cloning names the input anew.
    assert [(type(a), a.name) for a in copied.layers[1:]] == [
        (type(a), a.name) for a in model.layers[1:]
    ]
    copied.set_weights(model.get_weights())
    x = images(16, 16)
    np.testing.assert_array_equal(run(copied, x), run(model, x))


@anywhere
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_backbone(frozen, file):
    # The weights that train when it is not frozen show that this can fail.
    base = tiny(weights=file, include_top=False, pooling="avg")
    base.trainable = not frozen
    head = keras.layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((16, 16, 3)), base, head])
    model.compile(
        keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy"
    )
    before = [numpy(v).copy() for v in base.variables]
    kernel = numpy(head.kernel).copy()
    model.fit(images(16, 16, count=4), np.array([0, 1, 2, 0]), verbose=0)
    for v, old in zip(base.variables, before, strict=True):
        assert np.array_equal(numpy(v), old) == frozen, v.path
    assert not np.array_equal(numpy(head.kernel), kernel)


# Output stride


DILATED = dict(depths=(1, 2, 2, 2), stem="imagenet", include_top=False)


@pytest.fixture(scope="module")
def strided(tmp_path_factory):
    """Gives a usual network and the path of its weights."""
    path = tmp_path_factory.mktemp("weights") / "strided.safetensors"
    model = randomise(tiny(**DILATED))
    weights.save(model, path, dtype="float32")
    return model, path


@anywhere
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride(output_stride, strided):
    usual, path = strided
    model = tiny(weights=path, output_stride=output_stride, **DILATED)
    assert shapes(model) == shapes(usual)
    for size in ((64, 64), (75, 89)):
        x = images(*size)
        y, expected = run(model, x), run(usual, x)
        assert y.shape[1:3] == tuple(
            math.ceil(side / output_stride) for side in size
        )
        # The usual network computes every second or fourth of these pixels,
        # provided that a stage's first block still has the old dilation.
        step = 32 // output_stride
        assert_close(y[:, ::step, ::step], expected, 1e-4)


@anywhere
@pytest.mark.parametrize(
    "output_stride, expected",
    [
        (8, [1, 1, 1, 1, 2, 2, 4]),
        (16, [1, 1, 1, 1, 1, 1, 2]),
        (None, [1] * 7),
    ],
)
def test_dilations(output_stride, expected):
    model = tiny(output_stride=output_stride, **DILATED)
    layers = [layer for layer in model.layers if layer.name.endswith("_2_conv")]
    assert [layer.dilation_rate for layer in layers] == [
        (d, d) for d in expected
    ]


@pytest.mark.parametrize("output_stride", [8, pytest.param(16, marks=anywhere)])
def test_output_stride_is_that_of_pytorch(output_stride, tmp_path):
    torch = pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    from torch_reference import torch_resnext

    row = dataclasses.replace(
        ARCHITECTURES["resnext50_32x4d"], depths=(1, 2, 2, 2)
    )
    net = torch_resnext.Net(row, 2, 5, output_stride).eval()
    state = torch_resnext.randomise(net).state_dict()
    path = tmp_path / "net.safetensors"
    save_file({key: value.numpy() for key, value in state.items()}, path)
    ours = tiny(
        row.depths,
        weights=path,
        classes=5,
        classifier_activation=None,
        stem="imagenet",
        output_stride=output_stride,
    )
    x = images(75, 89)
    with torch.inference_mode():
        theirs = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    assert_close(run(ours, x), theirs, 1e-4)
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01 * np.abs(theirs).max()


# The three forms of the block, figure 3 of the paper


PLANES, PATHS, WIDTH = 64, 4, 3


def draw(model, whole):
    """Draws a block's weights; whole ones make every sum exact."""
    if not whole:
        return randomise(model)
    random = np.random.default_rng(0)
    # With the epsilon added, exactly one.
    variance = np.float32(1) - np.float32(1e-5)
    assert variance + np.float32(1e-5) == 1
    for v in model.variables:
        array = random.integers(-1, 2, v.shape)
        if v.name == "moving_variance":
            array = np.full(v.shape, variance)
        elif v.name == "gamma":
            array = random.integers(1, 3, v.shape)
        v.assign(array.astype("float32"))
    return model


def plain(x, arrays, stride=1, relu=True):
    """Convolves with a kernel, then normalises, in layers of Keras."""
    kernel, *norm = arrays
    size = kernel.shape[0]
    if size > 1:
        x = keras.layers.ZeroPadding2D(size // 2)(x)
    conv = keras.layers.Conv2D(
        kernel.shape[-1], size, strides=stride, use_bias=False
    )
    x = conv(x)
    conv.set_weights([kernel])
    if norm:
        layer = keras.layers.BatchNormalization(epsilon=1e-5)
        x = layer(x)
        layer.set_weights(norm)
    return keras.layers.ReLU()(x) if relu else x


def normalise(x, norm):
    layer = keras.layers.BatchNormalization(epsilon=1e-5)
    y = layer(x)
    layer.set_weights(norm)
    return y


def path_of(x, g, model, stride):
    """Reduces and transforms as one path of figures 3(a) and 3(b) does."""
    part = slice(g * WIDTH, (g + 1) * WIDTH)
    for i in (1, 2):
        arrays = [
            array[..., part]
            for kind in ("conv", "bn")
            for array in model.get_layer(f"block_{i}_{kind}").get_weights()
        ]
        x = plain(x, arrays, stride if i == 2 else 1)
    return x


@pytest.mark.parametrize(
    "stride, whole",
    [
        pytest.param(2, True, id="2-integers"),
        pytest.param(1, True, id="1-integers", marks=anywhere),
        pytest.param(1, False, id="1-floats", marks=anywhere),
        pytest.param(2, False, id="2-floats", marks=anywhere),
    ],
)
def test_three_equivalent_forms_of_the_block(stride, whole):
    inputs = keras.Input((9, 8, 4 * PLANES))
    row = Architecture("mine", None, (1,), groups=PATHS, width_per_group=WIDTH)
    out = residual(inputs, PLANES, "block", row, stride)
    block = draw(keras.Model(inputs, out), whole)
    grouped = keras.Model(inputs, block.get_layer("block_3_bn").output)

    (expand,) = block.get_layer("block_3_conv").get_weights()
    norm = block.get_layer("block_3_bn").get_weights()
    paths = [path_of(inputs, g, block, stride) for g in range(PATHS)]
    # (a): every path expands its own channels, then all are added up.
    separate = keras.layers.Add()(
        [
            plain(path, [expand[:, :, g * WIDTH : (g + 1) * WIDTH]], relu=False)
            for g, path in enumerate(paths)
        ]
    )
    # (b): the paths are concatenated, then expanded.
    concatenated = plain(
        keras.layers.Concatenate()(paths), [expand], relu=False
    )

    x = images(9, 8, channels=4 * PLANES)
    x = np.rint(x) if whole else x
    c = run(grouped, x)
    assert c.any()
    for form in (separate, concatenated):
        y = run(keras.Model(inputs, normalise(form, norm)), x)
        if whole:  # exact, but for what the normalisation rounds
            np.testing.assert_allclose(y, c, rtol=1e-6, atol=1e-4)
        else:
            assert_close(y, c)
