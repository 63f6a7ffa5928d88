"""Export from Keras on JAX and PyTorch."""

import os
import subprocess
import sys

import pytest

CODE = """
import pathlib, sys
import keras, numpy as np, keras_resnext
from keras_resnext.export import export
from keras_resnext.export.formats import FORMATS

assert keras.backend.backend() == {backend!r}
folder = pathlib.Path(sys.argv[1])
keras.utils.set_random_seed(0)
model = keras_resnext.ResNeXt(
    (1,), 2, 4, stem="cifar", classes=10, input_shape=(16, 16, 3)
)
report = export(model, folder / "net.onnx", "onnx")
assert report.max_difference < 1e-4 and report.agreement == 1, report
images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype("float32")
_, run = FORMATS["onnx"].load(report.path)
expected = keras.ops.convert_to_numpy(model(images))
assert np.abs(run(images) - expected).max() < 1e-4

class Own(keras.layers.Layer):
    def call(self, x):
        return 2 * x

for wrong, words in (
    (keras.Sequential([model, Own()]), "A model that Keras can load on Tens"),
    (model, "`path` must not be a folder of other things"),
):
    try:
        export(wrong, folder, "onnx")
        raise SystemExit("no error")
    except (ValueError, FileExistsError) as error:
        assert words in str(error), error
assert [p.name for p in folder.iterdir()] == ["net.onnx"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_export_from_another_backend(tmp_path, backend):
    for package in (backend, "tensorflow", "tf2onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is missing")
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(backend=backend), tmp_path],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "top-1 agreement 100.0%" in done.stdout
