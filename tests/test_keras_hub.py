"""KerasHub's detectors and segmenters on our networks."""

import keras
import numpy as np
import pytest
from test_resnext import assert_close, images, randomise, run

import keras_resnext
from keras_resnext import transfer


@pytest.fixture(scope="module")
def keras_hub():
    """Imported where it is needed, as that takes seconds."""
    return pytest.importorskip(
        "keras_hub", reason='pip install ".[kerashub]", for docs/detection.md'
    )


def pyramid(**options):
    net = keras_resnext.ResNeXt(
        (1, 1, 1, 1), 2, 4, include_top=False, **options
    )
    return transfer.features(randomise(net))


def arrays(model):
    return [keras.ops.convert_to_numpy(v) for v in model.weights]


def trains(model, y, loss, backbone, tmp_path):
    """Trains a step; saves and loads the backbone, as KerasHub's tasks do."""
    x = images(64, 64)
    model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
    encoder = backbone.image_encoder
    before = arrays(encoder)
    model.fit(x, y, batch_size=2, verbose=0)
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(before, arrays(encoder), strict=True)
    ]
    assert before and np.mean(moved) > 0.9
    # KerasHub 0.32 cannot load its pyramid pooling inside of another model.
    backbone.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected, found = backbone(x, training=False), loaded(x, training=False)
    for one, right in zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    ):
        assert_close(one, right)


DEEP = ([32, 32, 64], [3, 3, 3])
RESNET_D = {"stem": "deep", "average_shortcut": True}


def resnet(keras_hub, block, stem, **options):
    return keras_hub.models.ResNetBackbone(
        *stem, [64, 128], [2, 1], [1, 2], block, **options
    )


@pytest.mark.parametrize(
    "block, stem, options",
    [
        ("bottleneck_block", ([64], [7]), {}),
        ("bottleneck_block", DEEP, {"stem": "deep"}),
        ("bottleneck_block_vd", DEEP, RESNET_D),
        ("basic_block", ([64], [7]), {"block": "basic"}),
    ],
)
def test_weights_of_its_resnets(keras_hub, block, stem, options, tmp_path):
    hub = randomise(resnet(keras_hub, block, stem))
    hub.save_weights(tmp_path / "model.weights.h5")
    hub.save(tmp_path / "model.keras")
    head = keras.layers.Dense(7, name="predictions")(
        keras.layers.GlobalAveragePooling2D()(hub.output)
    )
    keras.Model(hub.input, head).save(tmp_path / "more.keras")
    field = "average_shortcut"
    other = options | {field: field not in options}
    for file in tmp_path.iterdir():

        def build(options, weights=file):
            return keras_resnext.ResNeXt(
                (2, 1), 1, 64, include_top=False, weights=weights, **options
            )

        x = images(75, 64)
        assert_close(run(build(options), x), run(hub, x))
        with pytest.raises(ValueError, match=f"\n{field}: "):
            build(other)


def test_its_resnets_of_version_2_are_refused(keras_hub, tmp_path):
    """Without a warning that layers are left out."""
    hub = resnet(
        *(keras_hub, "bottleneck_block", ([64], [7])), use_pre_activation=True
    )
    hub.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"\nmissing: conv1_bn/beta\n"):
        keras_resnext.ResNeXt(
            *((2, 1), 1, 64),
            include_top=False,
            weights=tmp_path / "model.weights.h5",
        )


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [None, 16])
def test_deeplab(keras_hub, output_stride, tmp_path):
    encoder = pyramid(output_stride=output_stride)
    deepest = "P4" if output_stride else "P5"
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        projection_filters=8,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key=deepest,
        upsampling_size=4 if output_stride else 8,
        dilation_rates=[1, 2],
        image_shape=(64, 64, 3),
    )
    # With our weights, right where KerasHub reads them.
    maps = backbone.layers[1](images(64, 64))
    assert_close(maps[deepest], encoder(images(64, 64))["conv5"])
    x = keras.layers.Conv2D(2, 1, activation="softmax")(backbone.output)
    masks = np.arange(2 * 64 * 64).reshape(2, 64, 64) // 32 % 2
    model = keras.Model(backbone.input, x)
    loss = "sparse_categorical_crossentropy"
    trains(model, masks, loss, backbone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [None, 16])
def test_retinanet(keras_hub, output_stride, tmp_path):
    encoder = pyramid(output_stride=output_stride)
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=encoder,
        min_level=3,
        max_level=6,
        use_p5=False,
        image_shape=(64, 64, 3),
    )
    sizes = {k: v.shape[1] for k, v in backbone.output.items()}
    assert sizes == {"P3": 8, "P4": 4, "P5": 2, "P6": 1}
    targets = {k: np.zeros((2, n, n, 256)) for k, n in sizes.items()}
    trains(backbone, targets, "mse", backbone, tmp_path)
