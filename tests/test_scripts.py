"""The scripts, run as a user runs them, on a small scale."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_resnext

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the scripts use tf.data"
)


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def data(tmp_path):
    """Images of three classes that even a small training tells apart."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = random.integers(0, 100, (96, 16, 16, 3), dtype="uint8")
    images[np.arange(96), :, :, labels] += 150
    path = tmp_path / "data.npz"
    arrays = {"x_train": images[:64], "y_train": labels[:64]}
    arrays |= {"x_test": images[64:], "y_test": labels[64:]}
    np.savez(path, **arrays)
    return path, arrays


def test_train(data, tmp_path):
    path, arrays = data
    result = run(
        *("train.py", "--data", path, "--out", tmp_path / "run"),
        *("--groups", 2, "--sizes", 8, 16, "--batch-size", 16),
        *("--dtype", "float32", "--learning-rate", 0.05),
    )
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    model = keras_resnext.ResNeXt29(
        weights=tmp_path / "run" / "weights.safetensors",
        classes=3,
        input_shape=(16, 16, 3),
    )
    assert model.get_layer("conv2_block1_2_conv").groups == 2
    x = keras_resnext.preprocess_input(arrays["x_test"])
    right = model.predict(x, verbose=0).argmax(-1) == arrays["y_test"]
    assert stored["test_accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in log] == ["epoch", "0", "1"]
