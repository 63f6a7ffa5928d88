"""Files of weights, through the public constructors."""

import dataclasses
import os
import pathlib
import pickle
import re
import warnings

import h5py
import keras
import numpy as np
import pytest
import reference
from reference import CLASSES, TINY, draw, shapes
from safetensors.numpy import load_file, save_file

import keras_resnext
from keras_resnext import files, weights
from keras_resnext.registry import ARCHITECTURES, CHECKPOINTS
from keras_resnext.weights import downloads, structure

anywhere = pytest.mark.anywhere
FIXTURES = pathlib.Path(__file__).with_name("fixtures")
# Written out by hand: PyTorch's name, ours, and the order of the axes.
NAMES = [
    ("conv1.weight", "conv1_conv/kernel", (2, 3, 1, 0)),
    ("bn1.weight", "conv1_bn/gamma", (0,)),
    ("bn1.bias", "conv1_bn/beta", (0,)),
    ("bn1.running_mean", "conv1_bn/moving_mean", (0,)),
    ("bn1.running_var", "conv1_bn/moving_variance", (0,)),
    ("layer1.0.conv1.weight", "conv2_block1_1_conv/kernel", (2, 3, 1, 0)),
    ("layer1.0.conv2.weight", "conv2_block1_2_conv/kernel", (2, 3, 1, 0)),
    ("layer1.0.bn3.running_var", "conv2_block1_3_bn/moving_variance", (0,)),
    ("layer1.0.downsample.0.weight", "conv2_block1_0_conv/kernel", None),
    ("layer1.0.downsample.1.bias", "conv2_block1_0_bn/beta", (0,)),
    ("fc.weight", "predictions/kernel", (1, 0)),
    ("fc.bias", "predictions/bias", (0,)),
]


def tiny(**options):
    options = {"classes": CLASSES, **options}
    return keras_resnext.ResNeXt((1,), 2, 1, stem="cifar", **options)


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.variables}


def _halved(arrays):
    """What is left of them in a file of 16 bits a number."""
    return {k: v.astype("float16").astype("float32") for k, v in arrays.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_weights(model, other):
    """Checks that two models of the same layers have the same weights."""
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(
            *map(keras.ops.convert_to_numpy, (one, two))
        )


@pytest.fixture(scope="module")
def drawn():
    """Our values after loading a file that PyTorch wrote."""
    return values(tiny(weights=FIXTURES / "net_zip.pth"))


@pytest.fixture
def net(drawn):
    """The same values as a file's content, to be spoilt."""
    return dict(load_file(FIXTURES / "net.safetensors"))


def of_shapes(name):
    """Returns a state dict of an architecture that takes no memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "NARROW_GROUPS", {})
        return {
            key: np.broadcast_to(np.float32(0), shape)
            for key, shape in shapes(name).items()
        }


def keras_applications(drawn, later):
    """The layout of keras-applications, before and after its change 85."""
    arrays = {}
    for name, array in drawn.items():
        layer, variable = name.replace("predictions", "probs").split("/")
        if layer.endswith("_2_conv"):
            variable = "depthwise_kernel"
            c, groups = array.shape[2], 2
            array = np.concatenate(
                [
                    # in-channel a of group g makes all of g's outputs
                    array[:, :, a, None, g * c : (g + 1) * c]
                    for g in range(groups)
                    for a in range(c)
                ],
                axis=2,
            )
            if later:
                # `block3` of keras_applications/resnet_common.py
                filters = groups * c
                kernel = np.zeros((1, 1, filters * c, filters), "float32")
                for i in range(filters):
                    start = (i // c) * c * c + i % c
                    kernel[:, :, start : start + c * c : c, i] = 1.0
                arrays[f"{layer[:-5]}_gconv/kernel"] = kernel
        arrays[f"{layer}/{variable}"] = array
    return arrays


def write_keras_2(arrays, path):
    with h5py.File(path, "w") as file:
        layers = {}
        for name, array in arrays.items():
            layer = name.split("/")[0]
            file.create_dataset(f"{layer}/{name}:0", data=array)
            layers.setdefault(layer, []).append(f"{name}:0")
        file.attrs["layer_names"] = [n.encode() for n in layers]
        for layer, names in layers.items():
            file[layer].attrs["weight_names"] = [n.encode() for n in names]


def of_attention(name, stem):
    """Returns the name in keras_cv_attention_models, of its `aotnet.py`."""
    layer, _, variable = name.partition("/")
    third = "stem_3_conv" if stem == "deep" else "stem_conv"
    layer = {"conv1_conv": third, "conv1_bn": "stem_bn"}.get(layer, layer)
    layer = re.sub("conv1_(?=[12])", "stem_", layer)
    if parts := re.fullmatch(r"conv(\d)_block(\d)_(\d_(?:conv|bn))", layer):
        stage, block, part = parts.groups()
        part = {"2_conv": "2_GC_conv"}.get(part, part)
        deep = "" if part in ("0_conv", "0_bn", "3_bn") else "deep_"
        part = part.replace("0_", "shortcut_")
        layer = f"stack{int(stage) - 1}_block{block}_{deep}{part}"
    return f"{layer}/{variable}"


def written(arrays, folder):
    path = folder / "net.safetensors"
    save_file(arrays, path)
    return path


def written_by(model, path):
    """Writes a model in the format that the name of the file says."""
    if path.suffix == ".safetensors":
        weights.save(model, path, "float32")
    elif path.suffix == ".keras":
        model.save(path)
    else:
        model.save_weights(path)


def sequential(base):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            base,
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="head"),
        ]
    )


def functional(base):
    inputs = keras.Input((2, 32, 32, 3))
    maps = keras.layers.TimeDistributed(base)(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(maps))


class Own(keras.layers.Layer):
    """A layer that describes nothing of itself, not even its name."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def call(self, x):
        return self.base(x)

    def get_config(self):
        return {}


def own(base):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(Own(base)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


class Around(keras.Model):
    def __init__(self, base):
        super().__init__()
        self.parts = [base]

    def call(self, x):
        return self.parts[0](x)


NESTED = {
    "sequential": sequential,
    "functional": functional,
    "own": own,
    "subclass": Around,
}


class TestFormats:
    @pytest.mark.parametrize(
        "file", ["net_zip.pth", "net_legacy.pth", "net.safetensors"]
    )
    def test_pytorch(self, file):
        loaded = values(tiny(weights=FIXTURES / file))
        theirs = draw("tiny")
        assert len(loaded) == len(theirs)
        for torch_name, name, axes in NAMES:
            axes = (2, 3, 1, 0) if axes is None else axes
            np.testing.assert_array_equal(
                loaded[name], theirs[torch_name].transpose(axes)
            )

    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    @pytest.mark.parametrize("include_top", [True, False])
    def test_keras(self, drawn, suffix, include_top, tmp_path):
        path = tmp_path / f"net{suffix}"
        model = tiny(weights=FIXTURES / "net_zip.pth")
        model.save(path) if suffix == ".keras" else model.save_weights(path)
        loaded = values(tiny(weights=path, include_top=include_top))
        expected = {
            name: array
            for name, array in drawn.items()
            if include_top or not name.startswith("predictions")
        }
        assert_same(loaded, expected)

    @pytest.mark.parametrize("later", [False, True])
    def test_keras_applications(self, drawn, later, tmp_path):
        """Its ResNeXt had depthwise kernels, and a classifier `probs`."""
        path = tmp_path / "old.h5"
        write_keras_2(keras_applications(drawn, later), path)
        assert_same(values(tiny(weights=path)), drawn)

    @anywhere
    @pytest.mark.parametrize("averages", [False, True])
    @pytest.mark.parametrize("stem", ["imagenet", "deep"])
    def test_keras_cv_attention_models(self, stem, averages, tmp_path):
        def build(averages, **more):
            options = {"stem": stem, "average_shortcut": averages} | more
            return keras_resnext.ResNeXt((1, 2), 2, 1, classes=3, **options)

        expected = {
            name: np.random.default_rng(i).random(array.shape, "float32")
            for i, (name, array) in enumerate(values(build(averages)).items())
        }
        theirs = {of_attention(n, stem): a for n, a in expected.items()}
        path = tmp_path / "theirs.h5"
        write_keras_2(theirs, path)
        if averages:
            with h5py.File(path, "a") as file:
                file.create_group("stack2_block1_shortcut_down")
        assert_same(values(build(averages, weights=path)), expected)
        with pytest.raises(
            ValueError, match=f"ut: {averages}, not {not averages}"
        ):
            build(not averages, weights=path)
        name = "stack1_block1_deep_2_se_1_conv/bias"
        write_keras_2(theirs | {name: np.ones(8, "float32")}, path)
        with pytest.raises(ValueError, match="unexpected: conv2_block1_2_se_1"):
            build(False, weights=path)

    @anywhere
    @pytest.mark.parametrize("name", ["probs", "my_probs"])
    def test_probs_beside_predictions(self, drawn, name, tmp_path):
        """Only where there are no `predictions` is `probs` the classifier."""
        others = {
            f"{name}/kernel": np.zeros((256, CLASSES), "float32"),
            f"{name}/bias": np.zeros(CLASSES, "float32"),
        }
        for arrays in (drawn | others, others | drawn):
            path = written(arrays, tmp_path)
            with pytest.warns(UserWarning, match=f"2 arrays .*{name}/bias"):
                assert_same(values(tiny(weights=path)), drawn)

    @anywhere
    @pytest.mark.parametrize("spoil", ["twice", "elsewhere", "more"])
    def test_sums_of_another_kind(self, drawn, spoil, tmp_path):
        """Only the constant that adds up the groups may be left out."""
        arrays = keras_applications(drawn, later=True)
        sums = arrays["conv2_block1_2_gconv/kernel"]
        if spoil == "twice":
            sums *= 2
        elif spoil == "elsewhere":
            sums[:] = np.roll(sums, 1, axis=2)
        else:
            sums[0, 0, 1, 0] += 1
        path = tmp_path / "old.h5"
        write_keras_2(arrays, path)
        with pytest.raises(ValueError, match="unexpected: conv2_block1_2_gc"):
            tiny(weights=path)

    def test_save(self, drawn, tmp_path):
        path = tmp_path / "net.safetensors"
        weights.save(tiny(weights=FIXTURES / "net_zip.pth"), path)
        assert os.listdir(tmp_path) == ["net.safetensors"]
        loaded = values(tiny(weights=path))
        for name, array in drawn.items():
            np.testing.assert_array_equal(
                loaded[name], array.astype("float16").astype("float32")
            )

    @pytest.mark.parametrize("kind", NESTED)
    def test_save_of_a_network_inside(self, kind, tmp_path):
        model, other = (NESTED[kind](tiny(include_top=False)) for _ in "ab")
        file = tmp_path / "net.safetensors"
        weights.save(model, file, "float32")
        assert len(load_file(file)) == len(model.weights)
        weights.load(other, file)
        loaded = [other]
        if kind != "subclass":  # Keras names its layers after attributes
            theirs = tmp_path / "net.weights.h5"
            model.save_weights(theirs)
            if kind == "sequential":
                with h5py.File(theirs, "a") as file:  # as before Keras 3.10
                    file.visititems(lambda _, item: item.attrs.clear())
            model.save(tmp_path / "net.keras")
            for path in (theirs, tmp_path / "net.keras"):
                loaded.append(NESTED[kind](tiny(include_top=False)))
                weights.load(loaded[-1], path)
        for other in loaded:
            assert_same_weights(model, other)

    @anywhere
    def test_save_of_a_network_that_is_called_at_several_depths(self, tmp_path):
        net = tiny(include_top=False)
        x, y = keras.Input((32, 32, 3)), keras.Input((2, 32, 32, 3))
        z = x
        for _ in range(4):
            z = keras.layers.Activation("relu")(z)
        steps = keras.layers.TimeDistributed(net, name="steps")
        model = keras.Model([x, y], [net(z), steps(y)])
        file = tmp_path / "net.safetensors"
        weights.save(model, file)
        other = tiny(include_top=False)
        weights.load(other, file)
        assert_same(_halved(values(net)), values(other))

    @anywhere
    @pytest.mark.parametrize("suffix", ["safetensors", "keras", "weights.h5"])
    def test_other_layers_around_a_network(self, suffix, tmp_path):
        """`Normalization` counts, and Keras's files number its variables.

        Layers have layers, and a variable may be that of two.
        """

        def build():
            x = keras.Input((32, 32, 3))
            y = keras.layers.Normalization(name="own")(x)
            y = tiny(include_top=False)(y)
            y = keras.layers.BatchNormalization(scale=False, name="bn")(y)
            y = keras.layers.GroupNormalization(2, name="groups")(y)
            y = keras.layers.SeparableConv2D(3, 1, name="separable")(y)
            y = keras.layers.MultiHeadAttention(1, 2, name="attention")(y, y)
            y = keras.layers.TimeDistributed(
                keras.layers.Dense(2, name="dense"), name="each"
            )(y)
            y = keras.layers.SpectralNormalization(
                keras.layers.Conv2D(3, 1, name="conv"), name="spectral"
            )(y)
            y = keras.layers.GlobalAveragePooling2D()(y)
            y = keras.layers.Dense(3, name="probs")(y)
            return keras.Model(x, y)

        model, other = build(), build()
        random = np.random.default_rng(0)
        model.get_layer("own").adapt(random.random((4, 32, 32, 3), "float32"))
        for layer in model.layers[2:]:
            for v in layer.weights:
                v.assign(random.random(v.shape, "float32"))
        file = tmp_path / f"net.{suffix}"
        written_by(model, file)
        weights.load(other, file)
        assert keras.ops.ndim(other.get_layer("own").count) == 0
        assert_same_weights(model, other)

    @anywhere
    @pytest.mark.parametrize("suffix", ["safetensors", "keras", "weights.h5"])
    def test_inner_layers_of_one_name(self, suffix, tmp_path):
        """As the `query` of each attention, and a cell for each direction."""

        def build(seed):
            keras.utils.set_random_seed(seed)
            layers, net = keras.layers, tiny(include_top=False)
            y = layers.Reshape((-1, net.output_shape[-1]))(net.output)
            for i in range(2):
                y = layers.MultiHeadAttention(1, 2, name=f"look_{i}")(y, y)
            y = layers.Bidirectional(layers.GRU(2, name="gru"), name="ways")(y)
            return keras.Model(net.input, y)

        model, other = build(0), build(1)
        file = tmp_path / f"net.{suffix}"
        written_by(model, file)
        weights.load(other, file)
        assert_same_weights(model, other)
        net = tiny(include_top=False)
        with pytest.warns(UserWarning, match=r"22 arrays .*\(backward_gru/"):
            weights.load(net, file)

    @anywhere
    @pytest.mark.parametrize("suffix", ["safetensors", "keras", "weights.h5"])
    def test_two_networks(self, suffix, tmp_path):
        """As one for colours and one for depths, each with its own name."""

        def build(seed):
            keras.utils.set_random_seed(seed)
            nets = [
                tiny(include_top=False, pooling="avg", name=name)
                for name in ("colours", "depths")
            ]
            xs = [keras.Input((32, 32, 3)) for _ in nets]
            y = keras.layers.Add()(
                [f(x) for f, x in zip(nets, xs, strict=True)]
            )
            y = keras.layers.Dense(2, name="predictions")(y)
            return keras.Model(xs, y)

        model, other = build(0), build(1)
        file = tmp_path / f"net.{suffix}"
        written_by(model, file)
        weights.load(other, file)
        assert_same_weights(model, other)
        several = r"several \(colours, depths\)"
        for top in (True, False):
            with pytest.raises(ValueError, match=f"file must .*{several}.*Sav"):
                weights.load(tiny(include_top=top), file)
        with pytest.raises(ValueError, match=f"model must .*{several}.*Pass"):
            weights.load(model, FIXTURES / "net.safetensors")

    @anywhere
    @pytest.mark.parametrize("suffix", ["safetensors", "weights.h5"])
    def test_a_model_that_is_not_built(self, suffix, tmp_path):
        """Else the head would get its first values after the file was read."""

        def build():
            layers = keras.layers
            net = tiny(include_top=False, pooling="avg")
            head = layers.Dense(3, name="head")
            return keras.Sequential([layers.RandomFlip(), net, head])

        model, other = build(), build()
        model.build((None, 32, 32, 3))
        written_by(model, tmp_path / f"net.{suffix}")
        with pytest.raises(ValueError, match=r"built.*\['head'\].*Call the"):
            weights.load(other, tmp_path / f"net.{suffix}")
        other.build((None, 32, 32, 3))
        weights.load(other, tmp_path / f"net.{suffix}")
        assert_same_weights(model, other)

    @anywhere
    @pytest.mark.parametrize("suffix", ["safetensors", "weights.h5"])
    def test_integers_are_kept_exactly(self, suffix, tmp_path):
        """As the ids of classes: float16 has 2048 and 2050."""
        model, other = (Around(tiny(include_top=False)) for _ in "ab")
        for m in (model, other):
            for dtype in ("int32", "bool"):
                zeros = {"initializer": "zeros", "trainable": False}
                v = m.add_weight((2,), dtype=dtype, name=dtype, **zeros)
                setattr(m, dtype, v)
            m.build((1, 32, 32, 3))
        model.int32.assign([2049, -5])
        model.bool.assign([True, False])
        path = tmp_path / f"net.{suffix}"
        if suffix == "safetensors":
            weights.save(model, path)
        else:
            model.save_weights(path)
        weights.load(other, path)
        for name in ("int32", "bool"):
            np.testing.assert_array_equal(
                getattr(other, name), getattr(model, name)
            )

    @anywhere
    @pytest.mark.parametrize("suffix", ["safetensors", "weights.h5"])
    def test_weights_of_the_model_itself(self, suffix, tmp_path):
        """As a temperature: they are of none of its layers."""
        model, other = (Around(tiny(include_top=False)) for _ in "ab")
        for m, value in ((model, 2.0), (other, 1.0)):
            m.scale = m.add_weight(shape=(), name="scale")
            m.mean = m.add_weight(shape=(3,), name="mean", trainable=False)
            m.build((1, 32, 32, 3))
            m.scale.assign(value)
            m.mean.assign(np.full(3, -value))
        written_by(model, tmp_path / f"net.{suffix}")
        weights.load(other, tmp_path / f"net.{suffix}")
        for variable, value in ((other.scale, 2), (other.mean, [-2, -2, -2])):
            array = keras.ops.convert_to_numpy(variable)
            np.testing.assert_array_equal(array, value)

    def test_save_of_what_lora_has_learned(self, tmp_path):
        model = tiny()
        for name in ("predictions", "conv1_conv"):
            layer = model.get_layer(name)
            layer.enable_lora(2)
            layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
        file = tmp_path / "net.safetensors"
        weights.save(model, file, "float32")
        x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
        expected = model.predict(x, verbose=0)
        for loaded in (tiny(), model):
            weights.load(loaded, file)
            np.testing.assert_allclose(
                loaded.predict(x, verbose=0), expected, atol=1e-5
            )

    @pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
    @pytest.mark.filterwarnings("ignore:.model.quantize:UserWarning")
    def test_save_of_a_quantised_network(self, tmp_path):
        model = tiny()
        model.quantize("int8")
        with pytest.raises(ValueError, match="must not have been quantised by"):
            weights.save(model, tmp_path / "net.safetensors")
        assert not os.listdir(tmp_path)

    def test_more_of_a_layer_is_not_left_out(self, tmp_path):
        """As its scales: without them its kernel means something else."""
        file = tmp_path / "net.safetensors"
        weights.save(tiny(), file)
        scale = {"predictions/kernel_scale": np.ones(CLASSES, "float32")}
        save_file(load_file(file) | scale, file)
        with pytest.raises(ValueError, match="unexpected: predictions/kernel_"):
            tiny(weights=file)

    @anywhere
    def test_save_of_two_networks(self, tmp_path):
        model = Around(tiny(include_top=False))
        model.parts.append(tiny(include_top=False))
        with pytest.raises(ValueError, match=r"name of its own.* twice"):
            weights.save(model, tmp_path / "net.safetensors")
        assert not os.listdir(tmp_path)
        with pytest.raises(ValueError, match=r"name of its own.* twice"):
            weights.load(model, FIXTURES / "net.safetensors")

    def test_save_of_what_float16_cannot_hold(self, tmp_path):
        path, model = tmp_path / "net.safetensors", tiny()
        layer = model.get_layer("conv1_bn")
        variance = np.full(layer.moving_variance.shape, 1e6, "float32")
        layer.moving_variance.assign(variance)
        weights.save(model, path)
        loaded = values(tiny(weights=path))
        np.testing.assert_array_equal(
            loaded["conv1_bn/moving_variance"], variance
        )

    @anywhere
    @pytest.mark.parametrize("name", ["a.h5", "a", "none/a.safetensors"])
    def test_save_of_no_such_name(self, name, tmp_path):
        message = rf"must end in \.safetensors, in .*: path='.*{name}'\. "
        with pytest.raises(ValueError, match=message):
            weights.save(None, tmp_path / name)

    @anywhere
    @pytest.mark.parametrize("dtype", ["int8", "nonsense", None])
    def test_save_as_no_such_numbers(self, dtype, tmp_path):
        message = rf"one of float16, .*float64\. Received: dtype={dtype!r}\. "
        with pytest.raises(ValueError, match=message):
            weights.save(tiny(), tmp_path / "net.safetensors", dtype)
        assert not os.listdir(tmp_path)

    @pytest.mark.parametrize("dtype", ["bfloat16", "f4", np.float64])
    def test_save_as_other_numbers(self, drawn, dtype, tmp_path):
        path = tmp_path / "net.safetensors"
        weights.save(tiny(weights=FIXTURES / "net_zip.pth"), path, dtype)
        for name, array in values(tiny(weights=path)).items():
            expected = drawn[name].astype(dtype).astype("float32")
            np.testing.assert_array_equal(array, expected)

    @anywhere
    def test_two_saves_at_once(self, tmp_path):
        """Each has a place of its own, and the later one stays, whole."""
        path = tmp_path / "net.safetensors"
        with files.replacing(path) as one:
            one.write_text("on")
            with files.replacing(path) as other:
                other.write_text("other")
            assert path.read_text() == "other"
            assert one.read_text() == "on"
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_text() == "on" and one.name == path.name
        ordinary = tmp_path / "ordinary"
        ordinary.touch()
        assert path.stat().st_mode == ordinary.stat().st_mode

    @anywhere
    def test_failed_save_leaves_nothing(self, tmp_path, monkeypatch):
        write = pathlib.Path.write_bytes

        def broken(path, data):
            write(path, data[: len(data) // 2])
            raise OSError("disk full")

        monkeypatch.setattr(pathlib.Path, "write_bytes", broken)
        with pytest.raises(OSError, match="disk full"):
            weights.save(tiny(), tmp_path / "net.safetensors")
        assert not os.listdir(tmp_path)


class TestPackaged:
    def test_the_cat_is_a_cat(self):
        data = pytest.importorskip("skimage.data")
        model = keras_resnext.ResNeXt29(weights="cifar10")
        image = keras_resnext.eval_transform("resnext29/cifar10")(
            data.chelsea()
        )
        scores = model.predict(image[None], verbose=0)
        ((best, *_),) = keras_resnext.decode_predictions(scores)
        assert best[1] == "cat" and best[2] > 0.5

    @anywhere
    def test_without_a_top(self):
        whole = keras_resnext.ResNeXt29()
        base = keras_resnext.ResNeXt29(include_top=False, pooling="avg")
        expected = values(whole)
        for name in ("predictions/kernel", "predictions/bias"):
            del expected[name]
        assert_same(values(base), expected)


class TestFaults:
    def fail(self, path, *patterns, **options):
        with pytest.raises(ValueError) as caught:
            tiny(weights=path, **options)
        for pattern in patterns:
            assert re.search(pattern, str(caught.value)), caught.value
        return str(caught.value)

    def test_all_are_listed_at_once(self, net, tmp_path):
        del net["bn1.bias"], net["layer1.0.conv1.weight"]
        net["extra"] = np.zeros(3, "float32")
        net["layer9.0.conv1.weight"] = np.zeros((1, 1, 1, 1), "float32")
        net["bn1.weight"] = np.zeros(5, "float32")
        net["fc.bias"] = np.full(CLASSES, np.nan, "float32")
        message = self.fail(
            written(net, tmp_path),
            "with 6 faults",
            "missing: conv1_bn/beta",
            "missing: conv2_block1_1_conv/kernel",
            "unexpected: extra",
            "unexpected: conv10_block1_1_conv/kernel",
            r"shape of conv1_bn/gamma: \(5,\), not \(64,\)",
            "not finite: predictions/bias, as float32",
        )
        assert message.count("\n") == 6

    @anywhere
    @pytest.mark.parametrize(
        ("name", "change", "pattern"),
        [
            ("fc.weight", lambda a: a.astype("float64") + 1e300, "not finite"),
            ("fc.weight", lambda a: a * np.inf, "not finite"),
            ("fc.weight", lambda a: a.astype("int32"), "point: .*int32"),
            ("fc.weight", lambda a: a > 0, "point: .*bool"),
            ("conv1.weight", lambda a: a.astype("int8"), "point: .*int8"),
            ("bn1.running_var", lambda a: -a, "negative: conv1_bn"),
            ("bn1.running_var", lambda a: a - 2.0**100, "negative: conv1_bn"),
        ],
    )
    def test_numbers(self, net, name, change, pattern, tmp_path):
        net[name] = change(net[name])
        self.fail(written(net, tmp_path), pattern, r"with 1 fault\.")

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_numbers_beyond_a_small_type(self, dtype):
        variable = keras.Variable(np.zeros(1), dtype=dtype)
        largest = np.array([3.39e38 if dtype == "bfloat16" else 6e4])
        for array, fits in ((largest, True), (largest * 1.1, False)):
            faults = weights.values.faults({"v": array}, {"v": variable})
            assert faults == ([] if fits else [f"not finite: v, as {dtype}"])

    def test_zero_variance_and_wider_numbers_are_read(self, net, tmp_path):
        net["bn1.running_var"] = np.zeros(64)
        net["fc.bias"] = net["fc.bias"].astype("float16")
        loaded = values(tiny(weights=written(net, tmp_path)))
        assert not loaded["conv1_bn/moving_variance"].any()

    @anywhere
    @pytest.mark.parametrize(
        "name",
        [
            "conv2_block1_1_conv",
            "conv1_conv",
            "predictions",
            "conv2_block1_add",
        ],
    )
    @pytest.mark.parametrize("shape", [(3, 3, 4, 2), (3, 3, 4, 0), (3, 3)])
    def test_a_depthwise_kernel_elsewhere(self, net, name, shape, tmp_path):
        net[f"{name}/depthwise_kernel"] = np.zeros(shape, "float32")
        del net["layer1.0.conv1.weight"]
        self.fail(written(net, tmp_path), f"{name}/(depthwise_)?kernel")

    @anywhere
    @pytest.mark.parametrize(
        "shape",
        [(3, 3, 0, 2), (3, 3, 2, 0), (3, 3), (), (3, 3, 9, 2), (1,) * 5],
    )
    @pytest.mark.parametrize("name", ["kernel", "depthwise_kernel"])
    def test_a_kernel_of_no_group(self, shape, name, tmp_path):
        """The cardinality is read off this kernel before all is checked."""
        net = {f"conv2_block1_2_conv/{name}": np.zeros(shape, "float32")}
        with pytest.raises(ValueError, match=r"must match the network.*faults"):
            keras_resnext.ResNeXt29(weights=written(net, tmp_path))

    @anywhere
    def test_names_are_shortened_and_escaped(self, net, tmp_path):
        net["n" * 1_000_000] = net["\x1b[2J\r\u202e"] = np.zeros(1, "float32")
        message = self.fail(
            written(net, tmp_path), r"\\x1b\[2J\\r\\u202e", "n{50}\\.\\.\\.n{5}"
        )
        assert len(message) < 2000
        assert message.replace("\n", "").isprintable()

    @anywhere
    def test_wrong_classes(self):
        self.fail(
            FIXTURES / "net_zip.pth",
            r"predictions/kernel: \(256, 16\), not \(256, 7\)",
            classes=7,
        )

    @anywhere
    @pytest.mark.parametrize("channels", [1, 4])
    def test_channels_are_those_of_the_file(self, net, channels, tmp_path):
        kernel = np.repeat(net["conv1.weight"][:, :1], channels, axis=1)
        net["conv1.weight"] = kernel
        path = written(net, tmp_path)
        for options in ({}, {"input_shape": (64, 64, channels)}):
            loaded = tiny(weights=path, **options).get_layer("conv1_conv")
            np.testing.assert_array_equal(
                loaded.kernel, kernel.transpose(2, 3, 1, 0)
            )
        self.fail(
            path,
            rf"take images of {channels} channels.*input_shape=\(64, 64, 3\)",
            input_shape=(64, 64, 3),
        )

    @anywhere
    def test_another_network(self, unallocated):
        with pytest.raises(ValueError) as caught:
            keras_resnext.ResNeXt50(weights=FIXTURES / "net_zip.pth")
        message, *faults = str(caught.value).split("\n")
        assert len(faults) == 10
        assert "with 255 faults. It looks like ResNeXt(depths=(1,), " in message
        assert faults[0] == "missing: conv2_block2_1_bn/beta"

    @anywhere
    def test_another_architecture(self, tmp_path, monkeypatch, unallocated):
        path = tmp_path / "net.safetensors"
        with path.open("wb") as file:
            file.truncate(10**9)  # as large as such a file, of nothing
        monkeypatch.setattr(
            weights.assign.checkpoints,
            "read",
            lambda path: of_shapes("resnext101_32x4d"),
        )
        with pytest.raises(
            ValueError,
            match=r"with \d+ faults. It looks like resnext101_32x4d with "
            r"classes=16: .* `keras_resnext.transfer.replace_top`",
        ):
            keras_resnext.ResNet18(weights=path, classes=16)

    @anywhere
    @pytest.mark.parametrize(
        "there, here",
        [
            ({"average_shortcut": True}, {}),
            ({}, {"average_shortcut": True}),
            ({"stem": "legacy"}, {"stem": "imagenet"}),
            ({"stem": "imagenet"}, {"stem": "legacy"}),
        ],
    )
    def test_what_no_shape_shows(self, there, here, tmp_path, monkeypatch):
        options = dict(groups=2, width_per_group=1, classes=CLASSES)
        options["stem"] = there.get("stem", "cifar")
        row = dataclasses.replace(TINY, depths=(1, 1), **there)
        monkeypatch.setattr(reference, "TINY", row)
        path = written(draw("tiny"), tmp_path)
        keras_resnext.ResNeXt((1, 1), weights=path, **(options | there))
        field = next(iter(there or here))
        with pytest.raises(ValueError, match=rf"with 1 fault\. .*\n{field}: "):
            keras_resnext.ResNeXt((1, 1), weights=path, **(options | here))

    @anywhere
    @pytest.mark.parametrize(
        "block, groups, field, there, here",
        [
            ("bottleneck", 2, "average_shortcut", True, False),
            ("bottleneck", 2, "average_shortcut", False, True),
            ("bottleneck", 2, "anti_aliased", True, False),
            ("bottleneck", 2, "anti_aliased", False, True),
            ("bottleneck", 2, "stem", "legacy", "imagenet"),
            ("bottleneck", 1, "stem", "legacy", "imagenet"),
            ("bottleneck", 2, "stem", "imagenet", "legacy"),
            ("basic", 1, "anti_aliased", True, False),
            ("basic", 1, "stem", "imagenet", "legacy"),
        ],
    )
    def test_what_files_say(self, block, groups, field, there, here, tmp_path):
        """In a file of our own or Keras's, what its arrays do not show."""

        def build(value):
            options = {"stem": "cifar", "classes": CLASSES, field: value}
            return keras_resnext.ResNeXt(
                (1, 1), groups, 64 // groups, block=block, **options
            )

        net, other = build(there), build(here)
        inside = keras.Sequential([keras.Input(net.input_shape[1:]), net])
        own = keras.Sequential([keras.Input(net.input_shape[1:]), Own(net)])
        written_by(own, tmp_path / "own.keras")
        written_by(own, tmp_path / "own.weights.h5")
        net.save(tmp_path / "net.h5")
        written_by(net, tmp_path / "net.safetensors")
        written_by(inside, tmp_path / "inside.safetensors")
        written_by(net, tmp_path / "net.keras")
        written_by(inside, tmp_path / "inside.keras")
        written_by(net, tmp_path / "net.weights.h5")
        written_by(inside, tmp_path / "inside.weights.h5")
        for file in tmp_path.iterdir():
            weights.load(net, file)
            hdf5 = file.suffix == ".h5" or file.name == "own.keras"
            if field == "stem" and hdf5:
                weights.load(other, file)  # HDF5 does not say the padding
                continue
            with pytest.raises(
                ValueError, match=rf"with 1 fault\. .*\n{field}: "
            ):
                weights.load(other, file)

    @anywhere
    def test_metadata(self, tmp_path):
        """They do not change from one file to the next; without is read."""
        file, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        weights.save(tiny(), file)
        weights.save(tiny(weights=file), again)
        assert file.read_bytes() == again.read_bytes()
        save_file(load_file(file), again)
        tiny(weights=again)

    @anywhere
    def test_metadata_of_others(self, tmp_path):
        weights.save(tiny(), tmp_path / "net.safetensors")
        arrays = load_file(tmp_path / "net.safetensors")
        for text in ("", "stem", "stem=deep", "anti_aliased=1", "x" * 10**6):
            save_file(
                arrays,
                tmp_path / "net.safetensors",
                {"format": "pt", "stem": "legacy", "keras_resnext": text},
            )
            tiny(weights=tmp_path / "net.safetensors")

    @anywhere
    def test_clips_stem(self, tmp_path, monkeypatch):
        """Three convolutions, and an average where ours have a maximum."""
        row = dataclasses.replace(TINY, stem="deep")
        monkeypatch.setattr(reference, "TINY", row)
        theirs = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2"}
        theirs |= {"conv1.4": "bn2", "conv1.6": "conv3", "bn1": "bn3"}
        net = {}
        for name, array in draw("tiny").items():
            layer, _, variable = name.rpartition(".")
            net[f"{theirs.get(layer, layer)}.{variable}"] = array
        with pytest.raises(ValueError, match="missing: conv1_1_bn/beta"):
            keras_resnext.ResNeXt(
                *((1,), 2, 1),
                stem="deep",
                classes=CLASSES,
                weights=written(net, tmp_path),
            )

    @anywhere
    def test_csails_stem(self, tmp_path, monkeypatch):
        """The same names, and a stem of more channels than CLIP's."""
        row = dataclasses.replace(TINY, stem="deep", stem_width=TINY.planes)
        monkeypatch.setattr(reference, "TINY", row)
        net = draw("tiny")
        options = dict(stem="deep", stem_width=TINY.planes, classes=CLASSES)
        expected = keras_resnext.ResNeXt(
            *((1,), 2, 1), weights=written(net, tmp_path), **options
        )
        theirs = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2"}
        theirs |= {"conv1.4": "bn2", "conv1.6": "conv3", "bn1": "bn3"}
        parts = {name: name.rpartition(".") for name in net}
        net = {
            f"{theirs.get(layer, layer)}.{variable}": net[name]
            for name, (layer, _, variable) in parts.items()
        }
        # What their normalisations count with.
        net["bn1._running_iter"] = np.ones(1, "float32")
        net["layer1.0.bn1._tmp_running_mean"] = np.ones(3, "float32")
        net["layer1.0.bn1._tmp_running_var"] = np.ones(3, "float32")
        read = keras_resnext.ResNeXt(
            *((1,), 2, 1), weights=written(net, tmp_path), **options
        )
        assert_same(values(read), values(expected))

    @anywhere
    def test_cadenes_strides(self, tmp_path, monkeypatch):
        options = dict(groups=1, width_per_group=64, stem="legacy")
        row = dataclasses.replace(TINY, **options)
        monkeypatch.setattr(reference, "TINY", row)
        path = written(draw("tiny"), tmp_path)
        with pytest.raises(ValueError, match=r"Cadene's SE-ResNet.*Use"):
            keras_resnext.ResNeXt((1,), weights=path, **options)

    @anywhere
    def test_keras_own_resnet(self, drawn, tmp_path):
        arrays = {n: a for n, a in drawn.items() if "predict" not in n}
        arrays["conv1_conv/bias"] = np.zeros(64, "float32")
        write_keras_2(arrays, tmp_path / "net.h5")
        self.fail(tmp_path / "net.h5", "Keras's own .*`keras.applications`")

    @anywhere
    def test_biases_are_not_only_keras(self, net, tmp_path):
        """PyTorch's, as of folded normalisations, are no ResNet of Keras's."""
        net["conv1.bias"] = np.zeros(64, "float32")
        self.fail(written(net, tmp_path), "unexpected: conv1_conv/bias")

    @anywhere
    def test_names_of_nothing_here(self, net, tmp_path):
        net = {
            f"resnet.{n}".replace("layer", "stages.").replace("v1.", "v."): a
            for n, a in net.items()
        }
        message = self.fail(
            written(net, tmp_path),
            r"arrays, none of a layer of the network \(resnet\..*Name them as",
        )
        assert "missing" not in message

    @anywhere
    @pytest.mark.parametrize("prefix", ["", "f.", "0."])
    @pytest.mark.parametrize("first", [3, 4])  # without the pooling, and with
    def test_children_in_a_sequence(self, net, drawn, prefix, first, tmp_path):
        parts = {"conv1": 0, "bn1": 1, "layer1": first, "fc": 9}
        for name in list(net):
            part, _, rest = name.partition(".")
            net[f"{prefix}{parts[part]}.{rest}"] = net.pop(name)
        assert_same(values(tiny(weights=written(net, tmp_path))), drawn)

    @anywhere
    def test_two_names_for_one_array(self, net, tmp_path):
        net["last_linear.bias"] = net["fc.bias"]
        self.fail(written(net, tmp_path), r"unexpected: (last_linear|fc).bias")

    def test_a_model_keeps_its_values(self, net, tmp_path):
        model = tiny()
        before = values(model)
        net["fc.bias"] = net["fc.bias"][:3]
        with pytest.raises(ValueError, match="predictions/bias"):
            weights.load(model, written(net, tmp_path))
        assert_same(before, values(model))

    @anywhere
    @pytest.mark.parametrize("length", [0, 1, 100, 50_000])
    @pytest.mark.parametrize(
        "file", ["net_zip.pth", "net_legacy.pth", "net.safetensors"]
    )
    def test_truncated(self, file, length, tmp_path):
        path = tmp_path / file
        path.write_bytes((FIXTURES / file).read_bytes()[:length])
        self.fail(path, "A checkpoint must be", re.escape(str(path)))

    @anywhere
    def test_code_is_not_run(self, tmp_path):
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {marker}",)

        path = tmp_path / "evil.pth"
        path.write_bytes(pickle.dumps({"state_dict": Evil()}, 2))
        self.fail(path, "A checkpoint must be")
        assert not marker.exists()

    @anywhere
    @pytest.mark.parametrize(
        "path, advice",
        [
            ("nowhere.pth", "Check the path, or"),
            ("./nowhere", "Check the path, or"),
            (".", "it is a folder"),
            (
                "https://example.com/a.pth",
                "weights='https://example.com/a.pth', .* Download the file",
            ),
        ],
    )
    def test_no_file(self, path, advice, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=advice):
            keras_resnext.ResNeXt50(weights=path)


class TestLeftOut:
    """What a file holds beside the network, with a sentence about it."""

    HEADS = (
        {"fc.weight": (7, 256), "fc.bias": (7,)},
        {"fc.0.weight": (9, 256), "fc.0.bias": (9,), "fc.2.weight": (7, 9)},
        {"head.weight": (256, 7)},
        {"classifier.1.weight": (7, 256), "classifier.1.bias": (7,)},
        {"last_linear.weight": (7, 256)},
        {"my_head/kernel": (256, 7), "my_head/bias": (7,)},
    )

    @anywhere
    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("prefix", ["", "model.", "a.backbone."])
    def test_other_tops(self, net, drawn, head, prefix, tmp_path):
        del net["fc.weight"], net["fc.bias"]
        net |= {n: np.zeros(shape, "float32") for n, shape in head.items()}
        path = written({f"{prefix}{n}": a for n, a in net.items()}, tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = tiny(weights=path, include_top=False)
        said = [str(w.message) for w in caught if w.category is UserWarning]
        if head.keys() & {"fc.weight", "last_linear.weight"}:
            assert not said
        else:
            assert next(iter(head)) in said[0]
        assert_same(
            values(model),
            {n: a for n, a in drawn.items() if not n.startswith("pred")},
        )
        match = r"found: (fc\.0\.weight|head\.weight).*`include_top=False`"
        if head not in (self.HEADS[1], self.HEADS[2]):
            match = "predictions"
        with pytest.raises(ValueError, match=match):
            tiny(weights=path)

    @anywhere
    @pytest.mark.parametrize("prefix", ["", "backbone.", "a.model."])
    @pytest.mark.parametrize("top", ["fc.1", "head.fc", "classifier"])
    def test_a_top_of_another_name(self, net, drawn, prefix, top, tmp_path):
        kernel, bias = net.pop("fc.weight"), net.pop("fc.bias")
        net = {f"{prefix}{n}": a for n, a in net.items()}
        net |= {f"{top}.weight": kernel, f"{top}.bias": bias}
        assert_same(values(tiny(weights=written(net, tmp_path))), drawn)
        for name, array in (
            ("neck.weight", kernel[:3]),  # which of the two?
            ("neck.bias", bias),  # of a layer between
            ("neck.running_mean", bias),
            ("neck.weight", kernel[0]),  # a normalisation without bias
            ("pool.p", bias[:1]),  # the power of a generalised mean
        ):
            path = written({**net, name: array}, tmp_path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(ValueError, match="the only layer outside"):
                    tiny(weights=path)
        if prefix:  # of a loss
            path = written({**net, "criterion.weight": bias}, tmp_path)
            with pytest.warns(UserWarning, match="1 others: criterion"):
                assert_same(values(tiny(weights=path)), drawn)

    @pytest.mark.parametrize("kind", [".keras", ".weights.h5"])
    def test_layers_of_keras_around_it(self, kind, tmp_path):
        base = tiny(include_top=False, pooling="avg")
        base.compile("adam", "mse")
        base.optimizer.build(base.trainable_variables)
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Normalization()
        x.adapt(np.arange(24, dtype="float32").reshape(1, 2, 4, 3))
        x = keras.layers.Dense(7, name="mine")(base(x(inputs)))
        whole = keras.Model(inputs, x)
        path = tmp_path / f"net{kind}"
        whole.save(path) if kind == ".keras" else whole.save_weights(path)
        with pytest.warns(UserWarning, match=r"Left out are 3 .*normalization"):
            loaded = tiny(weights=path, classes=7)
        theirs = structure.variables(whole)
        for name, ours in structure.variables(loaded).items():
            name = name.replace("predictions", "mine")
            np.testing.assert_array_equal(ours, theirs[name])

    @anywhere
    @pytest.mark.parametrize("kind", [".keras", ".weights.h5", ".safetensors"])
    @pytest.mark.parametrize(
        "layer", ["BatchNormalization", "LayerNormalization", "PReLU"]
    )
    def test_a_layer_between_network_and_top(self, layer, kind, tmp_path):
        base = tiny(include_top=False, pooling="avg")
        between = getattr(keras.layers, layer)(name="between")
        x = keras.layers.Dense(7, name="mine")(between(base.output))
        path = tmp_path / f"net{kind}"
        written_by(keras.Model(base.input, x), path)
        with pytest.raises(ValueError, match="the only layer outside"):
            tiny(weights=path, classes=7)
        with pytest.warns(UserWarning, match="Left out"):
            assert_same(
                values(tiny(weights=path, include_top=False)), values(base)
            )

    @anywhere
    def test_another_network_is_not_left_out(self, net, tmp_path):
        for name in ("layer5.0.conv1.weight", "layer1.0.extra", "conv9.weight"):
            path = written({**net, name: np.zeros(3, "float32")}, tmp_path)
            with pytest.raises(ValueError, match="unexpected: "):
                tiny(weights=path, include_top=False)


class TestSources:
    def test_a_tag_is_downloaded_and_verified(self, monkeypatch):
        asked = []

        def fetch(url, sha256):
            asked.append((url, sha256))
            return FIXTURES / "net_zip.pth"

        monkeypatch.setattr(downloads, "fetch", fetch)
        row = dataclasses.replace(
            CHECKPOINTS["resnext50_32x4d", "imagenet1k_v2"], classes=CLASSES
        )
        model = tiny(weights=row)
        assert asked == [(row.url, row.sha256)]
        assert_same(
            values(model), values(tiny(weights=FIXTURES / "net_zip.pth"))
        )

    @anywhere
    def test_tags_and_paths(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        choose = weights.choose
        best = CHECKPOINTS["resnext50_32x4d", "a1h_in1k"]
        assert choose("resnext50_32x4d", None) is None
        assert choose("resnext50_32x4d", best) is best
        assert choose("resnext50_32x4d", "imagenet") is best
        assert choose("resnext50_32x4d", "A1H_in1k") is best
        (tmp_path / "file").write_bytes(b"")
        assert str(choose("resnext50_32x4d", "file")) == "file"
        assert str(choose("resnext50_32x4d", "a.pth")) == "a.pth"
        # A file can't stand in for a verified download.
        (tmp_path / "imagenet").write_bytes(b"")
        assert choose("resnext50_32x4d", "imagenet") is best
        with pytest.raises(ValueError, match="'imagenet1k_v1'"):
            choose("resnext50_32x4d", "unknown")

    @anywhere
    def test_noncommercial_weights_need_consent(self):
        tag = "fb_swsl_ig1b_ft_in1k"
        with pytest.raises(ValueError, match="accept_noncommercial=True"):
            keras_resnext.ResNeXt50(weights=tag)
        row = weights.choose("resnext50_32x4d", tag, accept_noncommercial=True)
        assert row.licence == "cc-by-nc-4.0"

    @anywhere
    def test_rows_are_checked_before_the_download(self, monkeypatch):
        monkeypatch.setattr(
            downloads, "fetch", lambda *_: pytest.fail("downloaded")
        )
        row = CHECKPOINTS["resnext50_32x4d", "fb_swsl_ig1b_ft_in1k"]
        with pytest.raises(ValueError, match="accept_noncommercial=True"):
            keras_resnext.ResNeXt50(weights=row)
        with pytest.raises(ValueError, match="accept_noncommercial=True"):
            keras_resnext.ResNeXt((3, 4, 6, 3), weights=row)
        other = CHECKPOINTS["resnext101_32x8d", "imagenet1k_v2"]
        for given in (row, other):  # the last has a tag of ResNet-18's, too
            with pytest.raises(ValueError, match="a checkpoint of resnet18"):
                keras_resnext.ResNet18(weights=given)
        with pytest.raises(ValueError, match=r"weights=dict\. Save arrays"):
            keras_resnext.ResNet18(weights=draw("tiny"))

    @anywhere
    @pytest.mark.parametrize(
        "options",
        [
            dict(groups=4, width_per_group=2),
            dict(groups=4, width_per_group=9, planes=16),  # 2 channels, too
        ],
    )
    def test_the_cardinality_is_that_of_the_file(
        self, options, tmp_path, monkeypatch
    ):
        row = dataclasses.replace(ARCHITECTURES["resnext29"], depths=(1, 1, 1))
        monkeypatch.setitem(ARCHITECTURES, "resnext29", row)
        path = tmp_path / "net.safetensors"
        model = keras_resnext.ResNeXt29(weights=None, **options)
        weights.save(model, path, "float32")
        loaded = keras_resnext.ResNeXt29(weights=path)
        assert_same(values(loaded), values(model))
        layer = loaded.get_layer("conv2_block1_2_conv")
        assert (layer.groups, layer.filters) == (4, 8)
        with pytest.raises(ValueError, match="shape of conv2_block1_2_conv"):
            keras_resnext.ResNeXt29(weights=path, groups=2)


class TestStructure:
    @anywhere
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_is_read_off_every_architecture(self, name):
        arrays = of_shapes(name)
        named = weights.assign._named_as_keras(arrays)
        assert len(named) == len(arrays)
        facts = structure.describe({n: a.shape for n, a in named.items()})
        facts |= structure.describe_pytorch(
            {n: a.shape for n, a in arrays.items()}
        )
        row = dataclasses.asdict(ARCHITECTURES[name]) | {"classes": CLASSES}
        assert {field: row[field] for field in facts} == facts
        # Nearly all of the kernels, and no more: else it would be refused.
        kernels = sum(a.size for a in arrays.values() if a.ndim == 4)
        assert 0.99 < structure.kernel_numbers(facts) / kernels <= 1
        others = structure.fitting(facts)
        # Averages in place of strides have no weights.
        assert others == [name] or {n.replace("aa", "") for n in others} == {
            name.replace("aa", "")
        }

    @anywhere
    @pytest.mark.parametrize(
        "shapes",
        [
            {},
            {"a": (1,)},
            {"conv2_block1_2_conv/kernel": (3, 3, 0, 2)},
            {"conv2_block1_2_conv/kernel": (3, 3)},
            {"conv2_block7_2_conv/kernel": (3, 3, 4, 8)},
            {"conv9_block1_2_conv/kernel": (3, 3, 4, 8)},
        ],
    )
    def test_of_what_is_no_network(self, shapes):
        assert structure.describe(shapes) == {}

    @anywhere
    def test_of_a_narrow_network(self, monkeypatch, unallocated):
        row = dataclasses.replace(
            TINY, name="narrow", width_per_group=14, planes=16
        )
        monkeypatch.setitem(ARCHITECTURES, "narrow", row)
        model = keras_resnext.build("narrow", weights=None)
        assert model.get_layer("conv2_block1_2_conv").filters == 2 * 3
        facts = structure.describe_model(model)
        # 12 / 4 is 3 as well.
        assert (facts["planes"], facts["width_per_group"]) == (16, 12)
        assert structure.fitting(facts) == ["narrow"]
