"""Every architecture gives the logits of PyTorch's model of that name."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from reference import (
    CLASSES,
    GOLDEN,
    draw,
    golden,
    images,
    sizes,
    structure,
)
from safetensors.numpy import save_file

import keras_resnext
from keras_resnext.registry import ARCHITECTURES

# The largest difference allowed, in units of the largest logit.
TOLERANCE = 1e-4


def build(name, **options):
    """Builds the network of a row, narrow where the row is too large."""
    row, groups = structure(name)
    if groups == row.groups and name != "resnext29":
        return getattr(keras_resnext, row.constructor)(**options)
    fields = dataclasses.asdict(row) | {"groups": groups}
    structural = inspect.signature(keras_resnext.ResNeXt).parameters
    fields = {k: v for k, v in fields.items() if k in structural}
    return keras_resnext.ResNeXt(**(fields | options))


# Of more than 50 layers, only what has a switch that no smaller one has; the
# others repeat the same blocks, as the wide ones do, and take minutes together:
# of these one size, against the golden logits, which are PyTorch's own.
SLOW = {name for name, row in ARCHITECTURES.items() if sum(row.depths) > 16} - {
    "seresnextaa101d_32x8d"
} | {"wide_resnet50_2"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in ARCHITECTURES
    ],
)
def network(request, tmp_path_factory):
    """Gives each architecture's name, weights and our logits with them.

    Of the slow ones the logits of the first size alone.
    """
    path = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    drawn = draw(request.param)
    save_file(drawn, path)
    model = build(
        request.param,
        weights=path,
        classes=CLASSES,
        input_shape=(None, None, 3),
        classifier_activation=None,
    )
    path.unlink()
    chosen = sizes(request.param)[: 1 if request.param in SLOW else None]
    logits = [model(images(size), training=False) for size in chosen]
    logits = [keras.ops.convert_to_numpy(y) for y in logits]
    return request.param, drawn, logits


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape == (2, CLASSES)
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


def test_golden(network):
    name, _, logits = network
    assert_equal(logits, golden(name)[: len(logits)])


@pytest.mark.parametrize(
    "network", [n for n in ARCHITECTURES if n not in SLOW], indirect=True
)
def test_live(network):
    pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    import torch_reference

    name, drawn, logits = network
    assert_equal(logits, torch_reference.logits(name, drawn))


def test_every_architecture_has_golden_logits():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["resnext29", "resnet18", "resnext50_32x4d"])
def test_golden_logits_depend_on_the_image(name):
    # Otherwise the comparison would be one of the classifier's biases.
    for logits in golden(name):
        assert np.abs(logits[0] - logits[1]).max() > 1e-2
