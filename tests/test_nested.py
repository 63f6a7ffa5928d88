"""Networks inside of models: in layers, wrappers and lists, called twice."""

import re

import keras
import numpy as np
import pytest
from test_resnext import assert_close, assert_refused, images, randomise, run

import keras_resnext
from keras_resnext import nested
from keras_resnext.transfer import (
    features,
    freeze,
    freeze_statistics,
    replace_input,
    replace_top,
    stage_rates,
    unfreeze,
)

CLASSES = 3
STAGES = ["conv1", "conv2", "conv3"]


def backbone(**options):
    """Builds a random network of a stem and two stages."""
    options = dict(include_top=False, pooling="avg", name="base") | options
    options = dict(stem="cifar", input_shape=(8, 8, 3)) | options
    return randomise(keras_resnext.ResNeXt((1, 1), 2, 4, **options))


@keras.saving.register_keras_serializable("tests")
class Own(keras.layers.Layer):
    """Holds a network as a person's own layer may."""

    def __init__(self, net, held="attribute", **options):
        super().__init__(**options)
        self.held = held
        self.kept = {
            "attribute": net,
            "list": [net],
            "dictionary": {"net": net},
            "list in a dictionary": {"nets": [net]},
        }[held]

    def call(self, x, training=None):
        net = self.kept
        while not isinstance(net, keras.layers.Layer):
            (net,) = net.values() if isinstance(net, dict) else net
        return net(x, training=training)

    def get_config(self):
        (net,) = self._layers
        return super().get_config() | {
            "net": keras.saving.serialize_keras_object(net),
            "held": self.held,
        }

    @classmethod
    def from_config(cls, config):
        net = keras.saving.deserialize_keras_object(config.pop("net"))
        return cls(net, **config)


@keras.saving.register_keras_serializable("tests")
class Cell(keras.layers.Layer):
    """A recurrent cell that looks at a picture in each step."""

    def __init__(self, net, **options):
        super().__init__(**options)
        self.net = net
        self.state_size = self.output_size = net.output_shape[-1]

    def build(self, shape):
        self.built = True

    def call(self, x, states, training=None):
        y = self.net(x, training=training) + 0.5 * states[0]
        return y, [y]

    def get_config(self):
        net = keras.saving.serialize_keras_object(self.net)
        return super().get_config() | {"net": net}

    @classmethod
    def from_config(cls, config):
        net = keras.saving.deserialize_keras_object(config.pop("net"))
        return cls(net, **config)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model that is no graph."""

    def __init__(self, net, **options):
        super().__init__(**options)
        self.net = net
        self.top = keras.layers.Dense(CLASSES, "softmax", name="head")

    def call(self, x, training=None):
        return self.top(self.net(x, training=training))

    def get_config(self):
        net = keras.saving.serialize_keras_object(self.net)
        return super().get_config() | {"net": net}

    from_config = Cell.__dict__["from_config"]


def head():
    return keras.layers.Dense(CLASSES, "softmax", name="head")


def sequential(base):
    augmentation = keras.Sequential(
        [keras.layers.RandomFlip("horizontal"), keras.layers.Rescaling(0.5)],
        name="augmentation",
    )
    return keras.Sequential(
        [keras.Input((8, 8, 3)), augmentation, base, head()]
    )


def siamese(base):
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.Subtract()([base(a), base(b)])
    return keras.Model([a, b], head()(x))


def frames(base):
    x = keras.Input((2, 8, 8, 3))
    y = keras.layers.TimeDistributed(base, name="frames")(x)
    return keras.Model(x, head()(keras.layers.LSTM(4)(y)))


def own(held):
    def build(base):
        x = keras.Input((8, 8, 3))
        return keras.Model(x, head()(Own(base, held, name="own")(x)))

    return build


def recurrent(base):
    x = keras.Input((2, 8, 8, 3))
    layer = keras.layers.RNN(Cell(base))
    return keras.Model(x, head()(keras.layers.Bidirectional(layer)(x)))


def models(base):
    inner = keras.Sequential([keras.Input((8, 8, 3)), base], name="inner")
    x = keras.Input((8, 8, 3))
    return keras.Model(x, head()(keras.Model(x, inner(x), name="outer")(x)))


def subclassed(base):
    model = Subclassed(base)
    model(images(8, 8))  # builds it
    return model


FORMS = {
    "sequential": sequential,
    "siamese": siamese,
    "frames": frames,
    "models in models": models,
    "attribute": own("attribute"),
    "list": own("list"),
    "dictionary": own("dictionary"),
    "list in a dictionary": own("list in a dictionary"),
    "recurrent": recurrent,
    "subclassed": subclassed,
}
any_form = pytest.mark.parametrize("form", FORMS)


def inputs(model, count=4):
    """Returns random images in the structure of a model's inputs."""
    if not hasattr(model, "inputs"):
        return images(8, 8, count=count)
    return [
        np.random.default_rng(i).normal(size=(count, *x.shape[1:])).astype("f4")
        for i, x in enumerate(model.inputs)
    ]


def fit(model, optimizer=None):
    """Trains one step; returns the weights before and after it, by path."""
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    # Not traced: that takes longer than the step.
    model.compile(
        optimizer, "sparse_categorical_crossentropy", run_eagerly=True
    )
    before = arrays(model)
    model.fit(inputs(model), np.arange(4) % CLASSES, batch_size=4, verbose=0)
    return before, arrays(model)


def arrays(model):
    # Both directions of `Bidirectional` have the same paths.
    return [(v.path, keras.ops.convert_to_numpy(v)) for v in model.weights]


def changed(before, after):
    """Returns the names of layers with changed weights."""
    return {
        path.split("/")[-2]
        for (path, old), (_, new) in zip(before, after, strict=True)
        if not np.array_equal(old, new)
    }


def stages_of(names):
    found = (re.match(r"conv\d", name) for name in names)
    return sorted({match[0] for match in found if match})


# Stages are found wherever they are


def trained(model):
    """Returns the stages with variables that training changes."""
    names = {v.path.split("/")[-2] for v in model.trainable_variables}
    return stages_of(names)


@any_form
def test_freeze_and_unfreeze(form, tmp_path):
    base = backbone()
    model = FORMS[form](base)
    assert list(nested.stages(model)) == STAGES
    assert trained(model) == STAGES
    if form != "recurrent":  # which copies what it is made with
        base.trainable = False
        assert trained(model) == []
    unfreeze(model)
    freeze(model, through="conv2")
    assert trained(model) == ["conv3"]
    freeze_statistics(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (model, loaded):
        assert trained(other) == ["conv3"]
        names = [v.path for v in other.trainable_variables]
        assert not [name for name in names if "_bn/" in name]
    unfreeze(loaded)
    assert trained(loaded) == STAGES


@pytest.mark.parametrize("form", ["sequential", "frames", "dictionary"])
def test_frozen_statistics(form, tmp_path):
    model = FORMS[form](backbone())
    freeze_statistics(model)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    convolutions = {
        layer.name
        for layer in nested.sublayers(model)
        if isinstance(layer, keras.layers.Conv2D)
    }
    moved = changed(*fit(model))
    assert convolutions and convolutions < moved
    assert not [name for name in moved if name.endswith("_bn")]


def test_frozen_statistics_leave_frozen_kernels_and_normalise_with_them():
    model = sequential(backbone())
    freeze(model, "conv2")
    freeze_statistics(model)
    assert trained(model) == ["conv3"]
    bn = model.layers[1].get_layer("conv3_block1_3_bn")
    x = images(4, 4, channels=512)
    assert_close(bn(x, training=True), bn(x, training=False))


def test_frozen_statistics_need_a_normalisation():
    model = keras.Sequential([keras.Input((4,)), head()], name="dense")
    with pytest.raises(ValueError) as caught:
        freeze_statistics(model)
    assert_refused(
        str(caught.value),
        "`model` must have layers of `keras.layers.BatchNormalization`",
        "model='dense'",
    )


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras before 3.15"
)
@any_form
def test_stage_rates(form):
    model = FORMS[form](backbone())
    factors = {"conv2": 0.25, "conv3": 0.5}
    optimizer = stage_rates(model, keras.optimizers.SGD(1.0), factors)
    optimizer.build(model.trainable_variables)
    rates = {
        variable.path: float(one.learning_rate)
        for one in optimizer.optimizers
        for variable in one._trainable_variables
    }
    assert set(rates.values()) == {0.25, 0.5, 1}
    for path, rate in rates.items():
        stage = stages_of(path.split("/"))
        assert rate == (factors.get(*stage, 1) if stage else 1), path


def test_innermost_stage_counts():
    # A block's own layer, with layers of other names inside, and a network
    # that is named after a stage of another one.
    squeeze = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="reduce")],
        name="conv2_block1_se",
    )
    x = keras.Input((8, 8, 3))
    outer = keras.Model(x, backbone(name="conv9_net")(x))
    found = nested.stages(outer)
    assert list(found) == [*STAGES, "conv9"]
    assert found["conv9"][-1].name == "avg_pool"
    assert outer.layers[-1] not in found["conv9"]
    found = nested.stages(keras.Sequential([keras.Input((4,)), squeeze]))
    names = [layer.name for layer in found["conv2"]]
    assert names[-2:] == ["reduce", "conv2_block1_se"]


# Feature maps


def test_features_of_a_sequential_model(tmp_path):
    base = backbone()
    model = sequential(base)
    pyramid = features(model)
    x = images(8, 8)
    expected = features(base)(0.5 * x)
    assert set(pyramid.output) == set(STAGES)
    pyramid.save(tmp_path / "pyramid.keras")
    for other in (pyramid, keras.models.load_model(tmp_path / "pyramid.keras")):
        for stage, maps in other(x, training=False).items():
            assert_close(maps, expected[stage])


def test_features_compute_no_more_than_they_must():
    pyramid = features(sequential(backbone()), ["conv2"])
    names = [layer.name for layer in nested.sublayers(pyramid)]
    assert "conv2_block1_out" in names
    assert not [n for n in names if n.startswith(("conv3", "avg_pool"))]


def test_features_of_a_siamese_model(tmp_path):
    base = backbone()
    pyramid = features(siamese(base), ["conv3", "conv1"])
    pyramid.save(tmp_path / "pyramid.keras")
    loaded = keras.models.load_model(tmp_path / "pyramid.keras")
    pair = [images(8, 8), 1 - images(8, 8)]
    expected = [features(base)(x) for x in pair]
    for other in (pyramid, loaded):
        maps = other(pair)
        assert set(maps) == {"conv1", "conv3"}
        for stage, found in maps.items():
            for one, right in zip(found, expected, strict=True):
                assert_close(one, right[stage])


@pytest.mark.parametrize("steps", [2, None])
def test_features_of_frames(steps, tmp_path):
    base = backbone(input_shape=(None, None, 3))
    x = keras.Input((steps, None, None, 3))
    y = keras.layers.TimeDistributed(base, name="frames")(x)
    pyramid = features(keras.Model(x, y), ["conv2", "conv3"])
    assert pyramid.output["conv3"].shape == (None, steps, None, None, 512)
    pyramid.save(tmp_path / "pyramid.keras")
    loaded = keras.models.load_model(tmp_path / "pyramid.keras")
    clip = images(8, 6, count=6).reshape(2, 3, 8, 6, 3)[:, : steps or 3]
    for other in (pyramid, loaded):
        maps = other(clip)
        for i in range(clip.shape[1]):
            for stage, right in features(base)(clip[:, i]).items():
                if stage in maps:
                    assert_close(maps[stage][:, i], right)


def test_features_through_models_in_models():
    base = backbone()
    x = images(8, 8)
    maps = features(models(base), ["conv3"])(x)
    assert_close(maps["conv3"], features(base)(x)["conv3"])


def test_features_of_layers_called_anew():
    # Each layer by hand: its first call belongs to another graph.
    base = backbone()
    x = keras.Input((8, 8, 3))
    model = keras.models.clone_model(
        base, x, clone_function=lambda layer: layer
    )
    pixels = images(8, 8)
    assert_close(
        features(model)(pixels)["conv3"], features(base)(pixels)["conv3"]
    )


def test_features_change_nothing():
    model = sequential(backbone())
    before = [
        len(layer._inbound_nodes) for layer in nested.sublayers(model.layers[1])
    ]
    features(model)
    after = [
        len(layer._inbound_nodes) for layer in nested.sublayers(model.layers[1])
    ]
    assert before == after


@pytest.mark.parametrize("form", ["attribute", "subclassed"])
def test_features_say_where_the_network_is(form):
    model = FORMS[form](backbone())
    with pytest.raises(ValueError) as caught:
        features(model, ["conv3"])
    assert_refused(
        str(caught.value),
        "The stages must be in models made of Keras tensors",
        "stages='conv3'",
    )
    assert "which is the layer 'base' in it" in str(caught.value)


def test_default_pyramid_of_the_packaged_network(unallocated):
    pyramid = features(keras_resnext.ResNeXt29(weights=None))
    assert {k: v.shape[1:3] for k, v in pyramid.output.items()} == {
        "conv2": (32, 32),
        "conv3": (16, 16),
        "conv4": (8, 8),
    }
    # Nothing was left out, so nothing is added.
    assert list(pyramid.pyramid_outputs) == ["P0", "P1", "P2"]


def test_a_pyramid_of_frames_is_none_for_kerashub():
    x = keras.Input((2, 8, 8, 3))
    y = keras.layers.TimeDistributed(backbone(pooling=None))(x)
    with pytest.raises(ValueError, match="must be of single pictures"):
        _ = features(keras.Model(x, y)).pyramid_outputs


# Heads


@pytest.mark.parametrize(
    "form", ["sequential", "siamese", "frames", "models in models", "list"]
)
def test_replace_top(form, tmp_path):
    model = FORMS[form](backbone())
    new = replace_top(model, 5, dropout=0.1, activation=None)
    new.save(tmp_path / "new.keras")
    new = keras.models.load_model(tmp_path / "new.keras")
    assert new.output_shape == (None, 5)
    x = inputs(model)
    x = x[0] if len(x) == 1 else x
    top = new.get_layer("predictions")
    body = keras.Model(new.input, new.get_layer("predictions_drop").input)
    below = model.layers[-1].input
    below = keras.Model(model.inputs, below)
    assert_close(run(body, x), run(below, x))
    assert top.kernel.shape[0] == below.output_shape[-1]


def test_replace_top_that_is_inside():
    base = backbone(include_top=True, classes=4, pooling=None)
    x = images(8, 8)
    pooled = run(keras.Model(base.input, base.get_layer("avg_pool").output), x)
    end = keras.layers.Activation("softmax", dtype="float32")
    heads = {
        "a network with its top": [base],
        "a head of its own": [
            backbone_of(base),
            keras.Sequential([keras.layers.Dropout(0.2), head(), end]),
        ],
        "a head that pools": [
            keras.Model(base.input, base.get_layer("conv3_block1_out").output),
            keras.Sequential([keras.layers.GlobalAveragePooling2D(), head()]),
        ],
        "an activation apart": [backbone_of(base), keras.layers.Dense(3), end],
    }
    for case, layers in heads.items():
        model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        new = replace_top(model, 5)
        assert new.output_shape == (None, 5), case
        body = keras.Model(new.input, new.get_layer("predictions").input)
        assert_close(run(body, x), pooled)


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda net: net, keras.layers.TimeDistributed]
)
def test_replace_top_of_one_of_several_outputs(top, wrap):
    """The one that the model around it uses."""
    base = backbone(pooling=None)
    maps = base.get_layer("conv2_block1_out").output
    pool = keras.layers.GlobalAveragePooling2D
    ends = [pool()(maps), pool()(base.output)]
    if top:
        ends = [keras.layers.Dense(2)(y) for y in ends]
    x = keras.Input((8, 8, 3))
    inner = keras.Model(base.input, ends)
    for place, width in enumerate((256, 512)):
        new = replace_top(keras.Model(x, inner(x)[place]), 5)
        assert new.output_shape == (None, 5)
        assert new.get_layer("predictions").kernel.shape == (width, 5)


def backbone_of(base):
    return keras.Model(base.input, base.get_layer("avg_pool").output)


def test_replace_top_of_each_frame():
    x = keras.Input((2, 8, 8, 3))
    for options in (
        dict(),
        dict(pooling=None),
        dict(pooling=None, include_top=True, classes=4),
    ):
        y = keras.layers.TimeDistributed(backbone(**options))(x)
        new = replace_top(keras.Model(x, y), 5)
        assert new.output_shape == (None, 2, 5)
        assert new.get_layer("predictions").kernel.shape == (512, 5)


@pytest.mark.parametrize("form", ["unbuilt", "subclassed"])
def test_replace_top_needs_a_graph(form):
    if form == "unbuilt":
        model = keras.Sequential([head()])
    else:
        model = subclassed(backbone())
    with pytest.raises(ValueError) as caught:
        replace_top(model, 5)
    assert_refused(
        str(caught.value),
        "`model` must be a functional or sequential model that is built",
        f"model='{model.name}'",
    )


# Inputs


def own_loss(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 2, -1)


@pytest.mark.parametrize("loss", ["mse", own_loss])
@pytest.mark.parametrize("trained", [False, True])
def test_replace_input_leaves_what_is_compiled(loss, trained):
    model = backbone()
    model.compile("adam", loss, metrics=["mae"], run_eagerly=True)
    x = images(8, 8)
    if trained:
        model.fit(x, np.zeros((2, 512)), verbose=0)
    optimizer, weights = model.optimizer, model.get_weights()
    state = [keras.ops.convert_to_numpy(v) for v in optimizer.variables]
    new = replace_input(model, 1)
    assert not new.compiled
    assert model.compiled and model.optimizer is optimizer
    assert model.loss is loss
    for old, variable in zip(state, optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(variable))
    for old, array in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, array)
    assert_close(run(new, x[..., :1]), run(model, np.repeat(x[..., :1], 3, -1)))


def test_replace_input_says_where_the_network_is():
    with pytest.raises(ValueError, match="which is the layer 'base' in it"):
        replace_input(sequential(backbone()), 1)


# KerasHub's view of a pyramid; with KerasHub itself: test_keras_hub.py


@pytest.mark.parametrize("output_stride", [None, 16, 8])
def test_levels_are_powers_of_two(output_stride, tmp_path):
    net = keras_resnext.ResNeXt(
        (1, 1, 1, 1), 2, 4, include_top=False, output_stride=output_stride
    )
    pyramid = features(net)
    x = images(64, 96)
    maps, same = pyramid(x), [pyramid]
    if output_stride == 16:  # as it is with the others
        pyramid.save(tmp_path / "pyramid.keras")
        same.append(keras.models.load_model(tmp_path / "pyramid.keras"))
    for other in same:
        levels = other.pyramid_outputs
        found = keras.Model(other.inputs, levels)(x)
        assert {k: tuple(v.shape[1:3]) for k, v in found.items()} == {
            f"P{n}": (64 // 2**n, 96 // 2**n) for n in (2, 3, 4, 5)
        }
        deepest = {None: "P5", 16: "P4", 8: "P3"}[output_stride]
        assert_close(found[deepest], maps["conv5"])


def test_levels_of_a_network_inside_of_a_model():
    net = keras_resnext.ResNeXt((1, 1, 1), 2, 4, include_top=False)
    layers = [keras.Input((64, 64, 3)), keras.layers.AveragePooling2D(2), net]
    levels = features(keras.Sequential(layers)).pyramid_outputs
    assert {k: v.shape[1] for k, v in levels.items()} == {
        "P3": 8,
        "P4": 4,
        "P5": 2,
    }
    assert features(net, ["conv1"]).pyramid_outputs == {}


def test_levels_need_one_call():
    with pytest.raises(ValueError) as caught:
        features(siamese(backbone())).pyramid_outputs  # noqa: B018
    assert_refused(
        str(caught.value),
        "A pyramid for KerasHub must be of one network, called once",
        "calls=2",
    )
