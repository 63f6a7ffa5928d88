"""Training on JAX: gone on with, without TensorFlow, and on two devices."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train import (
    BARE,
    SHALLOW,
    archive,  # noqa: F401 (a fixture)
    arrays,  # noqa: F401 (a fixture)
    assert_equal_runs,
    keep,
    log,
    run,
    shipped,  # noqa: F401 (a fixture)
    state,
)

pytest.importorskip("jax")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def training(archive, shipped, on_jax):  # noqa: F811
    """Trains into a folder, without TensorFlow, on so many devices."""
    options = (
        *("--data", archive, "--recipe", "finetune", "--weights", shipped),
        # From trained weights and at a low rate: in a new network, what
        # rounding has moved grows a thousandfold in a step.
        *("--freeze", "conv2", "--learning-rate", 0.01, "--flip"),
        *("--cutmix", 1, "--erasing", 0.5, "--ema", 0.5, "--dtype", "float32"),
        *("--sizes", 8, "--epochs", 2, "--batch-size", 16, "--save-every", 1),
    )

    def train(out, before="", devices=1):
        flags = f"--xla_force_host_platform_device_count={devices}"
        # A thread waits where devices exchange something. With as many threads
        # as devices, each may wait for another exchange, and none goes on.
        environment = on_jax | {"XLA_FLAGS": flags, "PJRT_NPROC": "16"}
        result = run(
            *(*options, "--out", out),
            *("--strategy", "none" if devices == 1 else "mirrored"),
            before=BARE + SHALLOW + before,
            **environment,
        )
        assert result.returncode == 0, result.stderr

    return train


@pytest.fixture(scope="module")
def whole(training, tmp_path_factory):
    """A complete run on one device, and its copy in the middle of an epoch."""
    out = tmp_path_factory.mktemp("jax") / "whole"
    keeping, kept = keep((1, 2), out)
    training(out, keeping)
    return out, kept


def test_it_goes_on_bit_by_bit(whole, training):
    out, killed = whole
    stored = json.loads((out / "result.json").read_text())
    assert "jax" in stored["versions"]
    assert state(killed)[0]["step"] == 2
    training(killed)
    assert_equal_runs(out, killed)


def test_two_devices_are_as_one(whole, training, tmp_path):
    training(tmp_path / "two", devices=2)
    one, two = log(whole[0]), log(tmp_path / "two")
    assert len(one) == 2 and float(one[1]["loss"]) < float(one[0]["loss"])
    for row, other in zip(one, two, strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert float(other[name]) == pytest.approx(float(row[name]), 1e-3)
    one, two = (
        load_file(folder / "weights.safetensors")
        for folder in (whole[0], tmp_path / "two")
    )
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, 1e-2, 1e-3, err_msg=name)
