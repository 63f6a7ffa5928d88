"""Transfer: heads, inputs, freezing, pyramids, rates, stochastic depth."""

import re

import keras
import numpy as np
import pytest
from test_resnext import (
    BACKEND,
    anywhere,
    assert_close,
    assert_refused,
    images,
    randomise,
    run,
)

import keras_resnext
from keras_resnext import transfer, weights
from keras_resnext.transfer import (
    features,
    freeze,
    replace_input,
    replace_top,
    stage_rates,
    unfreeze,
)

CLASSES = 3


def tiny(**options):
    """Builds a random network of all five stages and 4 classes."""
    defaults = dict(
        depths=(1, 1, 1, 2),
        groups=2,
        width_per_group=4,
        classes=4,
        input_shape=(None, None, 3),
        name="tiny",
    )
    return randomise(keras_resnext.ResNeXt(**(defaults | options)))


@pytest.fixture(scope="module")
def shared():
    """Gives a network that no test may change."""
    return tiny()


@pytest.fixture(scope="module")
def path(shared, tmp_path_factory):
    """Gives that network in a file."""
    path = tmp_path_factory.mktemp("models") / "tiny.keras"
    shared.save(path)
    return path


def fit(model, optimizer="sgd", traced=False):
    """Trains one step and returns the old and the new weights by path."""
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        # TensorFlow takes longer to trace a step than to take it.
        run_eagerly=BACKEND == "tensorflow" and not traced,
    )
    before = arrays(model)
    x, y = images(32, 32, count=6), np.arange(6) % CLASSES
    model.fit(x, y, batch_size=6, verbose=0)
    return before, arrays(model)


def arrays(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def changed(before, after):
    """Returns the first part of the names of layers with changed weights."""
    assert before.keys() == after.keys()
    return {
        path.split("/")[-2].split("_")[0]
        for path in before
        if not np.array_equal(before[path], after[path])
    }


def with_head(base):
    dense = keras.layers.Dense(CLASSES, activation="softmax", name="head_dense")
    return keras.Sequential([base, dense])


# Heads


@anywhere
def test_replace_top(shared, path):
    x = images(32, 40)
    expected = run(keras.Model(shared.input, shared.layers[-1].input), x)
    for model in (
        shared,
        keras.models.load_model(path),
        tiny(include_top=False),
        tiny(include_top=False, pooling="avg"),
        with_head(tiny(include_top=False, pooling="avg")),
    ):
        new = replace_top(model, CLASSES)
        assert new.name == model.name
        top = new.get_layer("predictions")
        assert_close(run(keras.Model(new.input, top.input), x), expected)
        y = run(new, x)
        assert y.shape == (2, CLASSES)
        np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-5)


@anywhere
def test_replace_top_shares_the_layers(shared):
    new = replace_top(shared, np.int64(7), 0.5, activation=None)
    assert [layer.name for layer in new.layers[-3:]] == [
        "avg_pool",
        "predictions_drop",
        "predictions",
    ]
    assert new.layers[-2].rate == 0.5
    assert new.layers[-1].activation is keras.activations.linear
    assert new.get_layer("conv1_conv") is shared.get_layer("conv1_conv")
    # The old model still has its own top, and a top can be replaced again.
    assert shared.output_shape == (None, 4)
    again = replace_top(new, 2)
    assert again.output_shape == (None, 2)
    assert again.layers[-2].name == "avg_pool"


@pytest.fixture
def data_format():
    """Gives what sets Keras's order of the axes; puts it back at the end."""
    before = keras.config.image_data_format()
    yield keras.config.set_image_data_format
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
@pytest.mark.parametrize("steps", [False, True], ids=["maps", "steps"])
def test_the_order_of_the_axes_is_the_networks(order, steps, data_format):
    """Whatever Keras is set to when it is adapted."""
    first = order == "channels_first"
    shape = (3, 64, 64) if first else (64, 64, 3)
    data_format(order)
    model = tiny(include_top=False, input_shape=shape)
    if steps:
        inputs = keras.Input((2, *shape))
        model = keras.Model(inputs, keras.layers.TimeDistributed(model)(inputs))
    data_format("channels_last" if first else "channels_first")
    top = replace_top(model, CLASSES).get_layer("predictions")
    assert top.input.shape == ((None, 2, 2048) if steps else (None, 2048))


@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_pyramid_outputs_have_the_order_of_the_network(order, data_format):
    first = order == "channels_first"
    data_format(order)
    model = tiny(
        include_top=False,
        input_shape=(3, 64, 64) if first else (64, 64, 3),
        output_stride=8,
    )
    data_format("channels_last" if first else "channels_first")
    levels = features(model).pyramid_outputs
    assert {k: v.shape[1:] for k, v in levels.items()} == {
        f"P{n}": (filters, side, side) if first else (side, side, filters)
        for n, filters, side in (
            (2, 256, 16),
            (3, 2048, 8),
            (4, 2048, 4),
            (5, 2048, 2),
        )
    }


@pytest.mark.parametrize("turn", ["layer", "operation"])
def test_reordered_axes_are_those_of_keras(turn):
    inputs = x = keras.Input((3, 16, 16))
    x = keras.layers.Conv2D(8, 1, data_format="channels_first")(x)
    if turn == "layer":
        x = keras.layers.Permute((2, 3, 1))(x)
    else:
        x = keras.ops.transpose(x, (0, 2, 3, 1))
    new = replace_top(keras.Model(inputs, x), CLASSES)
    assert new.get_layer("predictions").input.shape == (None, 8)


@keras.saving.register_keras_serializable("tests")
class Halve(keras.layers.Layer):
    """A person's layer, whose `strides` are not a step for each axis."""

    strides = 2

    def call(self, x):
        return x[:, ::2, ::2]


def test_levels_count_the_steps_of_keras_layers():
    inputs = keras.Input((128, 128, 3))
    model = tiny(input_tensor=Halve()(inputs), input_shape=None)
    assert {
        level: maps.shape[1]
        for level, maps in features(model).pyramid_outputs.items()
    } == {"P2": 16, "P3": 8, "P4": 4, "P5": 2}


def test_replace_top_survives_saving(shared, tmp_path):
    new = replace_top(shared, 2, dropout=0.3)
    new.save(tmp_path / "new.keras")
    x = images(32, 32)
    loaded = keras.models.load_model(tmp_path / "new.keras")
    assert_close(run(loaded, x), run(new, x))
    # The constructors read the file, too; dropout has no weights for them.
    built = tiny(classes=2)
    weights.load(built, tmp_path / "new.keras")
    assert_close(run(built, x), run(new, x))


@anywhere
@pytest.mark.parametrize(
    "options, requirement, received",
    [
        (
            dict(classes=0),
            "`classes` must be a positive integer",
            "classes=0",
        ),
        (
            dict(classes=2, dropout=1),
            "`dropout` must be a number from 0 to below 1",
            "dropout=1",
        ),
        (
            dict(classes=2, dropout="half"),
            "`dropout` must be a number from 0 to below 1",
            "dropout='half'",
        ),
    ],
)
def test_replace_top_refuses(shared, options, requirement, received):
    with pytest.raises(ValueError) as caught:
        replace_top(shared, **options)
    assert_refused(str(caught.value), requirement, received)


@anywhere
def test_replace_top_behind_layers_of_the_names_that_it_gives(shared):
    x = shared.get_layer("conv3_block1_out").output
    gate = keras.layers.GlobalAveragePooling2D(name="avg_pool", keepdims=True)
    y = keras.layers.Multiply()([x, gate(x)])
    facts = keras.Input((2,), name="predictions")
    pooled = keras.layers.GlobalMaxPooling1D()(
        keras.layers.Reshape((-1, x.shape[-1]))(x)
    )
    kept = keras.layers.GlobalAveragePooling1D(keepdims=True)(
        keras.layers.Reshape((-1, x.shape[-1]))(x)
    )
    both = keras.layers.Concatenate()([pooled, facts])
    both = keras.layers.LayerNormalization()(both)
    for model, names in (
        (keras.Model(shared.input, y), ["avg_pool_1", "predictions"]),
        (keras.Model(shared.input, pooled), ["predictions"]),
        (keras.Model(shared.input, kept), ["predictions"]),
        (
            keras.Model([shared.input, facts], keras.layers.Dense(3)(both)),
            ["predictions_1"],
        ),
    ):
        new = replace_top(model, 5)
        assert [layer.name for layer in new.layers][-len(names) :] == names
        assert new.output_shape == (None, 5)


@anywhere
def test_replace_top_refuses_two_outputs(shared):
    pooled = shared.get_layer("avg_pool").output
    heads = [keras.layers.Dense(n)(pooled) for n in (3, 2)]
    with pytest.raises(ValueError) as caught:
        replace_top(keras.Model(shared.input, heads), 5)
    assert_refused(
        str(caught.value),
        "`model` must have one output, which gets the classifier",
        "number_of_outputs=2",
    )


@anywhere
def test_replace_top_refuses_another_end(shared):
    requirement = (
        "`model` must end in feature maps, global pooling or Dense layers"
    )
    model = keras.Sequential([shared, keras.layers.Rescaling(2, name="twice")])
    with pytest.raises(ValueError) as caught:
        replace_top(model, 5)
    assert_refused(str(caught.value), requirement, "last_layer='twice'")


# Inputs


def test_grey_input(shared):
    grey = replace_input(shared, 1)
    assert grey.input_shape == (None, None, None, 1)
    x = images(32, 40, channels=1)
    assert_close(run(grey, x), run(shared, np.repeat(x, 3, -1)))


@pytest.mark.parametrize("channels", [pytest.param(3, marks=anywhere), 6])
def test_repeated_channels_respond_alike(shared, channels):
    new = replace_input(shared, channels)
    x = images(32, 40)
    assert_close(run(new, np.tile(x, channels // 3)), run(shared, x))


def test_five_channels(shared):
    new = replace_input(keras.Model(shared.input, shared.output), np.int64(5))
    old, kernel = (
        keras.ops.convert_to_numpy(model.get_layer("conv1_conv").kernel)
        for model in (shared, new)
    )
    np.testing.assert_allclose(
        kernel, old[:, :, [0, 1, 2, 0, 1]] * 0.6, rtol=1e-6
    )
    # It is a copy, so that the pretrained model stays as it was.
    assert new.get_layer("conv2_block1_1_conv") is not shared.get_layer(
        "conv2_block1_1_conv"
    )


@anywhere
def test_replaced_input_keeps_what_is_frozen(path):
    model = keras.models.load_model(path)
    freeze(model, through="conv2")
    new = replace_input(model, 2)
    assert not new.get_layer("conv2_block1_1_conv").trainable
    assert new.get_layer("conv3_block1_1_conv").trainable


@anywhere
@pytest.mark.parametrize("channels", [0, 1.0, None, True])
def test_wrong_channels(shared, channels):
    with pytest.raises(ValueError) as caught:
        replace_input(shared, channels)
    assert_refused(
        str(caught.value),
        "`channels` must be a positive integer",
        f"channels={channels}",
    )


@anywhere
def test_replace_input_needs_rgb(shared):
    for model in (
        tiny(input_shape=(None, None, 4)),
        keras.Sequential([shared], name="around"),
    ):
        with pytest.raises(ValueError) as caught:
            replace_input(model, 1)
        assert_refused(
            str(caught.value),
            "`model` must have a layer conv1_conv that takes RGB images",
            f"model='{model.name}'",
        )


# Freezing


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("functional", marks=anywhere),
        pytest.param("nested", marks=anywhere),
        "loaded",
    ],
)
def test_frozen_stages_stay_bit_identical(form, path, tmp_path):
    if form == "nested":
        model = with_head(tiny(include_top=False, pooling="avg"))
    else:
        model = replace_top(keras.models.load_model(path), CLASSES)
    freeze(model, through="conv4")
    if form == "loaded":
        model.save(tmp_path / "frozen.keras")
        model = keras.models.load_model(tmp_path / "frozen.keras")
    before, after = fit(model, traced=form == "functional")
    # Of conv5, the statistics of the normalisation as well.
    for path_, array in before.items():
        stage = re.search(r"conv\d|head|predictions", path_)[0]
        frozen = stage in ("conv1", "conv2", "conv3", "conv4")
        assert np.array_equal(array, after[path_]) == frozen, path_


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("nested", marks=anywhere),
        "loaded nested",
        pytest.param("loaded", marks=anywhere),
    ],
)
def test_unfreeze(form, path, tmp_path):
    if form == "loaded":
        base = keras.models.load_model(path)
        model, head = replace_top(base, CLASSES), "predictions"
        base.trainable = False
    else:
        base = tiny(include_top=False, pooling="avg")
        base.trainable = False
        model, head = with_head(base), "head"
    if form.startswith("loaded"):
        model.save(tmp_path / "frozen.keras")
        model = keras.models.load_model(tmp_path / "frozen.keras")
    before, after = fit(model)
    assert changed(before, after) == {head}
    unfreeze(model)
    freeze(model, through="conv2")
    before, after = fit(model)
    assert changed(before, after) == {"conv3", "conv4", "conv5", head}


@anywhere
def test_untrainable_base_keeps_its_statistics_in_a_functional_model():
    base = tiny(include_top=False)
    base.trainable = False
    before, after = fit(replace_top(base, CLASSES))
    assert changed(before, after) == {"predictions"}


@anywhere
def test_freeze_of_keras_applications():
    # Its layers have the same names.
    model = keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    freeze(model, through="conv3")
    assert not model.get_layer("conv3_block4_3_bn").trainable
    assert model.get_layer("conv4_block1_1_conv").trainable


new_keras = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras before 3.15"
)
STAGES = ["conv1", "conv2", "conv3", "conv4", "conv5"]


@anywhere
@pytest.mark.parametrize(
    "function, name",
    [
        (lambda model: freeze(model, "conv6"), "through"),
        (lambda model: features(model, ["conv3", "conv6"]), "stages"),
        pytest.param(
            lambda model: stage_rates(model, "sgd", {"conv6": 1}),
            "factors",
            marks=new_keras,
        ),
    ],
)
def test_unknown_stage(shared, function, name):
    with pytest.raises(ValueError) as caught:
        function(shared)
    assert_refused(
        str(caught.value),
        f"`{name}` must be of the model's stages, {STAGES}",
        f"{name}='conv6'",
    )


@anywhere
@pytest.mark.parametrize("function", [freeze, features])
def test_model_without_stages(function):
    with pytest.raises(ValueError, match=r"stages, \[\]\. Received: .*conv"):
        function(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


# Pyramids


@anywhere
def test_features(shared, path):
    x = images(64, 75)
    for model in (shared, keras.models.load_model(path)):
        maps = features(model, ["conv5", "conv3", "conv4", "conv2", "conv1"])(x)
        shapes = {k: tuple(v.shape) for k, v in maps.items()}
        assert shapes == {
            "conv1": (2, 32, 38, 64),
            "conv2": (2, 16, 19, 256),
            "conv3": (2, 8, 10, 512),
            "conv4": (2, 4, 5, 1024),
            "conv5": (2, 2, 3, 2048),
        }
    pooled = keras.ops.convert_to_numpy(maps["conv5"]).mean((1, 2))
    avg_pool = shared.get_layer("avg_pool")
    assert_close(run(keras.Model(shared.input, avg_pool.output), x), pooled)


def test_default_pyramid(shared, tmp_path):
    pyramid = features(shared)
    assert pyramid.name == "tiny_features"
    assert {k: v.shape for k, v in pyramid.output.items()} == {
        "conv3": (None, None, None, 512),
        "conv4": (None, None, None, 1024),
        "conv5": (None, None, None, 2048),
    }
    pyramid.save(tmp_path / "pyramid.keras")
    loaded = keras.models.load_model(tmp_path / "pyramid.keras")
    x = images(32, 32)
    expected = pyramid(x)
    for stage, maps in loaded(x).items():
        np.testing.assert_array_equal(
            *map(keras.ops.convert_to_numpy, (maps, expected[stage]))
        )


@anywhere
@pytest.mark.parametrize("stages", ["conv3", []])
def test_stages_are_a_list_of_names(shared, stages):
    with pytest.raises(ValueError) as caught:
        features(shared, stages)
    assert_refused(
        str(caught.value),
        "`stages` must be a list of one name at least",
        f"stages={stages!r}",
    )


@anywhere
@pytest.mark.parametrize(
    "output_stride, strides", [(8, (8, 8, 8)), (16, (8, 16, 16))]
)
def test_dilated_pyramid(output_stride, strides):
    model = tiny(include_top=False, output_stride=output_stride)
    maps = features(model)(images(64, 96))
    assert [tuple(v.shape[1:3]) for v in maps.values()] == [
        (64 // stride, 96 // stride) for stride in strides
    ]


@anywhere
def test_ends_are_those_of_the_last_blocks():
    model = tiny(depths=(1, 11), include_top=False)
    pyramid = features(model, ["conv3"])
    assert pyramid.layers[-1].name == "conv3_block11_out"


# Learning rates


FACTORS = {"conv4": 0.25, "conv5": 0.5}


@new_keras
@pytest.mark.parametrize(
    ("schedule", "form"),
    [pytest.param(False, "nested", marks=anywhere), (True, "loaded")],
)
def test_stage_rates(schedule, form, path, tmp_path):
    rate = 0.1
    if schedule:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [1], [0.1, 0.0]
        )
    if form == "nested":
        model = with_head(tiny(include_top=False, pooling="avg"))
    else:
        model = replace_top(keras.models.load_model(path), CLASSES)
    start = model.get_weights()
    before, plain = fit(model, keras.optimizers.SGD(0.1))
    # All stages are trained, so that ratios say something of each.
    stages = {"conv1", "conv2", "conv3", "conv4", "conv5"}
    assert stages < changed(before, plain)
    model.set_weights(start)
    optimizer = stage_rates(model, keras.optimizers.SGD(rate), FACTORS)
    _, after = fit(model, optimizer)
    for name, old in before.items():
        if "moving" in name:
            continue
        factor = FACTORS.get(name.split("_")[0].split("/")[-1], 1)
        assert_close(after[name] - old, factor * (plain[name] - old), 1e-3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    rates = [
        keras.ops.convert_to_numpy(rate(1) if schedule else rate)
        for rate in (o._learning_rate for o in loaded.optimizer.optimizers)
    ]
    np.testing.assert_allclose(rates, [0.025, 0.05, 0.1], rtol=1e-6)


@anywhere
@new_keras
def test_factors_may_be_of_numpy(shared):
    optimizer = stage_rates(shared, "sgd", {"conv5": np.float32(0.5)})
    shared.compile(optimizer)
    rates = sorted(float(o.learning_rate) for o in optimizer.optimizers)
    np.testing.assert_allclose(rates, [0.005, 0.01], rtol=1e-6)


@anywhere
@new_keras
def test_stage_rates_refuse(shared):
    with pytest.raises(ValueError) as caught:
        stage_rates(shared, "sgd", {"conv5": 0})
    assert_refused(
        str(caught.value), "A factor must be positive", "factors={'conv5': 0}"
    )


def dense():
    """Builds a model of a stage and a head without convolutions."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="conv1_conv"),
            keras.layers.Dense(2),
        ]
    )


@new_keras
def test_callbacks_change_the_rates_of_all_stages():
    model, rates = dense(), []
    optimizer = stage_rates(model, keras.optimizers.SGD(0.1), {"conv1": 0.5})
    model.compile(optimizer, "mse", run_eagerly=True)
    slower = keras.callbacks.LearningRateScheduler(lambda _, rate: rate * 0.1)
    # An improvement of 1e9 does not come.
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=1e9
    )
    for callback, epochs in ((slower, 1), (plateau, 2)):
        x, y = np.ones((2, 4)), np.zeros((2, 2))
        logs = model.fit(x, y, epochs=epochs, verbose=0, callbacks=[callback])
        rates.append([float(o.learning_rate) for o in optimizer.optimizers])
        logged = [v[0] for k, v in logs.history.items() if "learning" in k]
        np.testing.assert_allclose(logged, [0.005, 0.01], 1e-5)
    np.testing.assert_allclose(rates, [[0.005, 0.01], [0.0025, 0.005]], 1e-5)


@new_keras
def test_stage_rates_inside_of_a_loss_scale():
    model, optimizers = dense(), keras.optimizers
    optimizer = stage_rates(
        model,
        optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=8.0),
        {"conv1": 0.5},
    )
    assert isinstance(optimizer, optimizers.LossScaleOptimizer)
    assert optimizer.initial_scale == 8
    inner = optimizer.inner_optimizer.optimizers
    np.testing.assert_allclose(
        [float(o.learning_rate) for o in inner], [0.05, 0.1]
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    before = model.get_weights()
    model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert not np.array_equal(old, new)
    scheduler = keras.callbacks.LearningRateScheduler(lambda _, rate: rate)
    with pytest.raises((AttributeError, ValueError), match=r"[Ll]earning.rate"):
        model.fit(
            np.ones((2, 4)), np.ones((2, 2)), verbose=0, callbacks=[scheduler]
        )


@anywhere
@new_keras
def test_stage_rates_keep_the_factor_of_the_loss():
    optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=8.0)
    optimizer = stage_rates(dense(), optimizer, {"conv1": 0.5})
    assert optimizer.scale_loss(1.0) == 8
    assert [o.loss_scale_factor for o in optimizer.optimizers] == [8, 8]


@anywhere
@new_keras
def test_stage_rates_of_a_schedule_that_is_not_registered():
    class Halved(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5

        def get_config(self):
            return {}

    optimizer = stage_rates(
        dense(), keras.optimizers.SGD(Halved()), {"conv1": 0.5}
    )
    rates = [float(o._learning_rate(0)) for o in optimizer.optimizers]
    assert rates == [0.25, 0.5]


@anywhere
@new_keras
def test_stage_rates_need_one_learning_rate():
    optimizer = stage_rates(dense(), "sgd", {"conv1": 0.5})
    with pytest.raises(ValueError) as caught:
        stage_rates(dense(), optimizer, {"conv1": 0.5})
    assert_refused(
        str(caught.value),
        "`optimizer` must have one learning rate, a number or a Keras schedule",
        "optimizer='MultiOptimizer'",
    )


@anywhere
def test_stage_rates_say_that_keras_is_too_old(shared, monkeypatch):
    monkeypatch.delattr(keras.optimizers, "MultiOptimizer", raising=False)
    with pytest.raises(ImportError, match=r"Install Keras 3\.15 or newer"):
        transfer.stage_rates(shared, "sgd", FACTORS)


# Stochastic depth


def drops(model):
    return {
        layer.name: layer.rate
        for layer in model.layers
        if isinstance(layer, keras.layers.Dropout)
    }


@anywhere
@pytest.mark.parametrize(
    "options", [{}, dict(block="basic", groups=1, width_per_group=64)]
)
def test_rates_of_stochastic_depth(options):
    assert not drops(tiny(**options))
    model = tiny(stochastic_depth=0.5, **options)
    assert drops(model) == pytest.approx(
        {
            "conv2_block1_drop": 0.1,
            "conv3_block1_drop": 0.2,
            "conv4_block1_drop": 0.3,
            "conv5_block1_drop": 0.4,
            "conv5_block2_drop": 0.5,
        }
    )
    add = model.get_layer("conv5_block2_add")
    assert [x._keras_history.operation.name for x in add.input] == [
        "conv5_block1_out",
        "conv5_block2_drop",
    ]


def test_stochastic_depth_drops_whole_branches():
    keras.utils.set_random_seed(0)
    model = tiny(stochastic_depth=0.5, depths=(1,), stem="cifar")
    drop = model.get_layer("conv2_block1_drop")
    x = 1 + np.abs(images(4, 4, channels=256, count=400))
    y = keras.ops.convert_to_numpy(drop(x, training=True))
    shares = y / x  # 0 or 2, one for each image
    np.testing.assert_allclose(shares, shares[:, :1, :1, :1] + 0 * x, rtol=1e-6)
    kept = shares[:, 0, 0, 0]
    assert set(np.round(kept, 3)) == {0, 2}
    assert 0.4 < (kept > 0).mean() < 0.6
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(drop(x, training=False)), x
    )


@pytest.mark.parametrize(
    "suffix",
    [
        pytest.param("keras", marks=anywhere),
        pytest.param("weights.h5", marks=anywhere),
        "safetensors",
    ],
)
def test_stochastic_depth_has_no_weights(shared, path, suffix, tmp_path):
    # Weights go from a network without it to one with it, and back.
    model = tiny(stochastic_depth=0.2)
    weights.load(model, path)
    file = tmp_path / f"model.{suffix}"
    save = {
        "keras": model.save,
        "weights.h5": model.save_weights,
        "safetensors": lambda p: weights.save(model, p, dtype="float32"),
    }[suffix]
    save(file)
    other = tiny()
    weights.load(other, file)
    x = images(32, 32)
    assert_close(run(model, x), run(shared, x))
    np.testing.assert_array_equal(run(other, x), run(shared, x))


@anywhere
@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, "much", None, False])
def test_wrong_rate(rate):
    with pytest.raises(ValueError) as caught:
        tiny(stochastic_depth=rate)
    assert_refused(
        str(caught.value),
        "`stochastic_depth` must be a number from 0 to below 1",
        f"stochastic_depth={rate!r}",
    )


@anywhere
def test_rates_may_be_of_numpy(tmp_path):
    rate = np.float32(0.25)
    model = replace_top(tiny(stochastic_depth=rate), CLASSES, dropout=rate)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name in ("predictions_drop", "conv5_block2_drop"):
        assert loaded.get_layer(name).rate == 0.25


@anywhere
def test_named_constructors_have_stochastic_depth(unallocated):
    model = keras_resnext.ResNet18(weights=None, stochastic_depth=0.3)
    rates = list(drops(model).values())
    assert len(rates) == 8 and rates[-1] == 0.3


# Layers that keep more than weights


@keras.saving.register_keras_serializable("test_transfer")
class Shift(keras.layers.Layer):
    """Keeps a number that its configuration does not have."""

    amount = 0.0

    def call(self, x):
        return x + self.amount

    def compute_output_shape(self, shape):
        return shape


def before(kind, x):
    """Puts something before a network whose state is not in its weights."""
    if kind == "adapted":
        layer = keras.layers.Normalization(axis=None)
        layer.adapt(np.linspace(0, 255, 99).reshape(1, -1))
    elif kind in ("own", "wrapped"):
        layer = Shift()
        layer.amount = -3.0
        if kind == "wrapped":  # for each row of pixels
            layer = keras.layers.TimeDistributed(layer)
    elif kind == "bins":
        bins = keras.layers.Discretization(num_bins=9)
        bins.adapt(np.linspace(0, 255, 99))
        return keras.ops.cast(bins(x), "float32") - 4.0
    else:
        return keras.ops.flip(x, -1) / 127.5 - 1.0  # torch cannot slice so
    return layer(x)


@pytest.mark.parametrize(
    "kind",
    [
        "adapted",
        pytest.param("own", marks=anywhere),
        "wrapped",
        pytest.param("bins", marks=anywhere),
        "operations",
    ],
)
def test_replaced_input_keeps_what_is_not_in_weights(kind):
    x = keras.Input((8, 8, 3))
    options = dict(stem="cifar", depths=(1,), input_shape=None)
    model = tiny(input_tensor=before(kind, x), **options)
    x = 255 * np.random.default_rng(0).random((2, 8, 8, 1), "float32")
    expected = run(model, np.repeat(x, 3, -1))
    assert_close(run(replace_input(model, 1), x), expected)
    six = replace_input(model, 6)
    if kind != "operations":
        assert_close(run(six, np.repeat(x, 6, -1)), expected)
    # A copy of the rest.
    kernels = [m.get_layer("conv1_conv").kernel for m in (model, six)]
    assert kernels[0] is not kernels[1]


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_replaced_input_shares_what_is_quantised(mode):
    model = tiny(stem="cifar", depths=(1,), input_shape=(8, 8, 3))
    head = model.layers[-1]
    head.quantize(mode)
    grey = replace_input(model, 1)
    assert grey.layers[-1] is head
    x = np.random.default_rng(0).random((2, 8, 8, 1), "float32")
    assert_close(run(grey, x), run(model, np.repeat(x, 3, -1)))


@pytest.mark.parametrize(
    "kind",
    [
        "adapted",
        *(
            pytest.param(kind, marks=anywhere)
            for kind in ("fixed", "rescaled", "weights")
        ),
    ],
)
def test_replace_input_refuses_what_wants_three_channels(kind):
    images = 255 * np.random.default_rng(0).random((9, 8, 8, 3), "float32")
    layers = keras.layers
    layer = {
        "adapted": layers.Normalization(),
        "fixed": layers.Normalization(mean=[9, 8, 7], variance=[1, 2, 3]),
        "rescaled": layers.Rescaling([0.1, 0.2, 0.3]),
        "weights": layers.BatchNormalization(),
    }[kind]
    if kind == "adapted":
        layer.adapt(images)
    options = dict(stem="cifar", depths=(1,), input_shape=None)
    model = tiny(input_tensor=layer(keras.Input((8, 8, 3))), **options)
    for channels in (1, 4):
        message = rf"do the same to each channel.*Received: channels={channels}"
        with pytest.raises(ValueError, match=message):
            replace_input(model, channels)


@pytest.mark.parametrize("trainable", [True, False])
def test_replaced_input_of_a_pyramid(trainable):
    pyramid = features(tiny(include_top=False), ["conv3", "conv5"])
    freeze(pyramid, "conv2")
    if not trainable:
        pyramid.trainable = False
    new = replace_input(pyramid, 1)
    assert type(new) is transfer.Pyramid
    assert new.name == pyramid.name and set(new.output) == {"conv3", "conv5"}
    assert set(new.pyramid_outputs) == {"P2", "P3", "P4", "P5"}
    assert [layer.trainable for layer in new.layers] == [
        layer.trainable for layer in pyramid.layers
    ]
    assert new.trainable == trainable


def test_replaced_input_shares_what_two_models_share():
    """A layer used twice stays one, and a model inside is a copy."""
    inner = keras.Sequential([keras.layers.Conv2D(3, 1, padding="same")])
    x = keras.Input((8, 8, 3))
    options = dict(stem="cifar", depths=(1,), input_shape=None)
    model = tiny(input_tensor=x, include_top=False, **options)

    y = keras.layers.Conv2D(3, 1)(model.output)
    y = keras.layers.Add()([inner(y), inner(keras.ops.flip(y, 1))])
    whole = keras.Model(x, y)
    x = np.random.default_rng(0).random((2, 8, 8, 1), "float32")
    new = replace_input(whole, 1)
    assert_close(run(new, x), run(whole, np.repeat(x, 3, -1)))
    assert len(new.weights) == len(whole.weights)
    assert not {id(w) for w in new.weights} & {id(w) for w in whole.weights}
