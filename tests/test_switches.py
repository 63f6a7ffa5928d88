"""The switches of the family, each alone and all together."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_resnext import (
    BACKEND,
    assert_close,
    assert_refused,
    channels_first,  # noqa: F401 (a fixture)
    gradients,
    images,
    numpy,
    policy,  # noqa: F401 (a fixture)
    randomise,
    run,
    shapes,
    tiny,
)

import keras_resnext
from keras_resnext import transfer, weights
from keras_resnext.registry import Architecture

SWITCHES = [
    {"stem": "deep"},
    {"stem": "deep", "stem_width": 16},
    {"stem": "tiered"},
    {"stem": "legacy"},
    {"squeeze_excite": True},
    {"planes": 16},
    {"planes": 16, "stem": "cifar", "width_per_group": 64},
    {"average_shortcut": True},
    {"anti_aliased": True},
    {"anti_aliased": True, "stem": "cifar"},
]
ALL = dict(
    stem="tiered",
    squeeze_excite=True,
    average_shortcut=True,
    anti_aliased=True,
)
BASIC = dict(block="basic", groups=1, width_per_group=64)


def name(options):
    return "-".join(f"{k}={v}" for k, v in options.items())


@pytest.mark.parametrize("block", [{}, BASIC], ids=["bottleneck", "basic"])
@pytest.mark.parametrize("switch", [*SWITCHES, ALL], ids=name)
def test_each_is_that_of_pytorch(switch, block, tmp_path):
    torch = pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    from torch_reference import torch_resnext

    options = {"stem": "imagenet", "groups": 2, "width_per_group": 4}
    options |= switch | block
    row = Architecture("row", None, (1, 2), **options)
    net = torch_resnext.Net(row, row.groups, 5).eval()
    state = torch_resnext.randomise(net).state_dict()
    path = tmp_path / "net.safetensors"
    save_file({key: value.numpy() for key, value in state.items()}, path)
    if row.stem == "legacy":
        # Cadene's names tell this stem from the usual one.
        arrays = {
            f"layer0.{k}" if k.startswith(("conv1", "bn1")) else k: v.numpy()
            for k, v in state.items()
        }
        save_file(arrays, path)
    ours = tiny(classes=5, classifier_activation=None, weights=path, **options)
    # Sides of 4 n - 1 and 4 n pixels leave even maps, others do not.
    sizes = [(31, 40)] if row.anti_aliased else [(40, 40), (33, 42)]
    if row.stem == "cifar":
        sizes = [(16, 18)]
    for size in sizes:
        x = images(*size)
        with torch.inference_mode():
            theirs = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        assert_close(run(ours, x), theirs, 1e-4)
        assert np.ptp(theirs[0] - theirs[1]) > 0.01 * np.abs(theirs).max()


@pytest.mark.parametrize(
    "name, size",
    [
        ("resnext50d_32x4d", (75, 89)),
        ("seresnext26t_32x4d", (75, 89)),
        ("seresnextaa101d_32x8d", (64, 96)),
        pytest.param(
            *("seresnextaa201d_32x8d", (64, 96)), marks=pytest.mark.slow
        ),
        ("legacy_seresnext26_32x4d", (75, 89)),
    ],
)
def test_is_that_of_timm(name, size, tmp_path):
    torch = pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    timm = pytest.importorskip("timm", reason="pip install timm")
    from torch_reference import torch_resnext

    net = timm.create_model(name, num_classes=5).eval()
    for key, value in torch_resnext.randomise(net).state_dict().items():
        # Otherwise the values grow from block to block, and squeeze and
        # excite makes of rounding what is left of them: timm's own logits
        # would differ by 18 % from those that it computes in float64.
        if key.endswith("bn3.weight"):
            value.mul_(0.2)
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    x = images(*size)
    with torch.inference_mode():
        theirs = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    ours = keras_resnext.build(
        name,
        weights=path,
        classes=5,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )
    assert_close(run(ours, x), theirs, 1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A network with all of them, and the path of its weights."""
    path = tmp_path_factory.mktemp("weights") / "whole.safetensors"
    model = randomise(tiny(**ALL))
    weights.save(model, path, dtype="float32")
    return model, path


def test_names_of_layers(whole):
    names = [layer.name for layer in whole[0].layers]
    for index in (1, 2):
        for kind in ("conv", "bn", "relu"):
            assert f"conv1_{index}_{kind}" in names
    assert names.index("conv1_2_relu") < names.index("conv1_conv")
    block = [n for n in names if n.startswith("conv3_block1_")]
    assert set(block) == {
        f"conv3_block1_{part}"
        for part in (
            *(f"{i}_{kind}" for i in (1, 2) for kind in ("conv", "bn", "relu")),
            *(f"{i}_{kind}" for i in (0, 3) for kind in ("conv", "bn")),
            *("0_pool", "2_pool", "add", "out"),
            *(f"se_{step}" for step in ("squeeze", "reduce", "expand")),
            "se_excite",
        )
    }


def test_odd_maps_are_refused_where_they_show(whole):
    maps = tiny(weights=whole[1], include_top=False, **ALL)
    for side in (29, 30, 35, 36):
        with pytest.raises(ValueError) as caught:
            tiny(input_shape=(32, side, 3), **ALL)
        assert_refused(
            str(caught.value),
            "Anti-aliased networks need feature maps of even sides wherever a "
            "stage halves them",
            f"input_shape=(32, {side}, 3)",
        )
        # Where they do not, they are rounded up.
        shape = (2, 4, 4 + (side > 32), 512)
        assert run(maps, images(32, side)).shape == shape
    for taken in (31, 32, 33, 34):
        tiny(input_shape=(32, taken, 3), **ALL)


@pytest.mark.parametrize(
    "options, received",
    [
        ({"stem_width": 64}, "stem_width=64"),
        ({"stem": "tiered", "stem_width": 30}, "stem_width=30"),
        ({"stem": "deep", "stem_width": 0}, "stem_width=0"),
        ({"squeeze_excite": 16}, "squeeze_excite=16"),
        ({"average_shortcut": None}, "average_shortcut=None"),
        ({"anti_aliased": "blur"}, "anti_aliased='blur'"),
    ],
)
def test_wrong_switches(options, received):
    with pytest.raises(ValueError, match=rf"Received: {received}\. "):
        tiny(**options)


def test_every_parameter_gets_a_gradient():
    model = randomise(tiny(**ALL))
    found = gradients(model, images(32, 32, count=4), np.arange(4))
    for v, gradient in zip(model.trainable_weights, found, strict=True):
        assert numpy(gradient).any(), v.path


def test_squeeze_and_excite_by_hand():
    inputs = keras.Input((3, 2, 32))
    outputs = keras_resnext.resnext.squeeze_and_excite(inputs, "se")
    model = randomise(keras.Model(inputs, outputs))
    a, b, c, d = (
        array[0, 0] if array.ndim == 4 else array
        for array in model.get_weights()
    )
    assert a.shape == (32, 8)
    x = images(3, 2, channels=32)
    hidden = np.maximum(x.mean((1, 2)) @ a + b, 0)
    scale = 1 / (1 + np.exp(-(hidden @ c + d)))
    assert_close(run(model, x), x * scale[:, None, None], 1e-5)


def test_output_stride():
    # Without means of whole maps, every second pixel is the usual network's.
    options = dict(ALL, squeeze_excite=False, include_top=False)
    options["depths"] = (1, 1, 2)
    usual = randomise(tiny(**options))
    model = tiny(output_stride=8, **options)
    assert shapes(model) == shapes(usual)
    model.set_weights(usual.get_weights())
    x = images(64, 96)
    y, expected = run(model, x), run(usual, x)
    assert y.shape[1:3] == (8, 12)
    # The second of two dilated convolutions sees the padding elsewhere.
    assert_close(y[:, :-2:2, :-2:2], expected[:, :-1, :-1], 1e-4)


def test_use(whole, tmp_path):
    model, path = whole
    x = images(32, 32)
    expected = run(model, x)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(run(copy, x), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(loaded, x), expected)
    for file in (path, tmp_path / "model.keras"):
        assert_close(run(tiny(weights=file, **ALL), x), expected)
    dropped = tiny(weights=path, stochastic_depth=0.5, zero_gamma=True, **ALL)
    assert_close(run(dropped, x), expected)
    maps = transfer.features(model, ["conv1", "conv2", "conv3"])(x)
    assert [tuple(v.shape[1:3]) for v in maps.values()] == [
        (16, 16),
        (8, 8),
        (4, 4),
    ]
    grey = transfer.replace_input(model, 1)
    one = images(32, 32, channels=1)
    assert_close(run(grey, one), run(model, np.repeat(one, 3, -1)), 1e-4)
    transfer.freeze(loaded, through="conv2")
    assert {
        layer.name.split("_")[0]
        for layer in loaded.layers
        if layer.trainable_weights
    } == {"conv3", "predictions"}


@pytest.mark.parametrize("mixed", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(mixed, whole, policy):  # noqa: F811
    x = images(32, 32)
    expected = run(whole[0], x)
    policy(mixed)
    assert_close(run(tiny(weights=whole[1], **ALL), x), expected, 0.05)


def test_channels_first(whole, channels_first):  # noqa: F811
    x = images(32, 40)
    expected = run(whole[0], x)
    channels_first()
    first = tiny(input_shape=(3, None, None), weights=whole[1], **ALL)
    assert_close(run(first, x.transpose(0, 3, 1, 2)), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports are TensorFlow's")
@pytest.mark.parametrize(
    "format, precision",
    [
        ("saved_model", "float32"),
        ("onnx", "float32"),
        ("litert", "float32"),
        ("litert", "int8"),
        ("openvino", "float32"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                *(("saved_model", p) for p in ("bfloat16", "float16")),
                *(("onnx", p) for p in ("float16", "int8")),
                ("litert", "float16"),
                *(("openvino", p) for p in ("float16", "int8")),
            )
        ),
    ],
)
def test_exports(format, precision, whole, tmp_path, eagerly):
    from keras_resnext.export import export
    from keras_resnext.export.formats import FORMATS

    packages = FORMATS[format].packages
    if precision == "int8":
        packages += FORMATS[format].quantizer
    for package in packages:
        pytest.importorskip(package, reason="pip install -e '.[export]'")
    fixed = tiny(weights=whole[1], input_shape=(64, 64, 3), **ALL)
    calibration = images(64, 64, count=8) if precision == "int8" else None
    report = export(
        fixed,
        tmp_path / "artifact",
        format,
        precision,
        calibration=calibration,
    )
    limits = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "int8": 0.5}
    assert report.max_difference < limits[precision]
    assert report.precision == precision
