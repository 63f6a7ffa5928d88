"""Export from Keras on JAX and PyTorch."""

import os
import subprocess
import sys

import pytest

# Its own backend is that of the environment.
SETUP = """
import pathlib, sys
import keras, numpy as np, keras_resnext
from keras_resnext.export import export, fold
from keras_resnext.export.formats import FORMATS, PICTURES

folder = pathlib.Path(sys.argv[1])
random = np.random.default_rng(0)

def net(**options):
    keras.utils.set_random_seed(0)
    options = dict(stem="cifar", classes=10, input_shape=(16, 16, 3)) | options
    return keras_resnext.ResNeXt((1,), 2, 4, **options)

def expect(report, *inputs, limit=1e-4):
    # What the file computes here is what the model does on its own backend.
    x = list(inputs) if len(inputs) > 1 else inputs[0]
    expected = keras.ops.convert_to_numpy(model(x))
    _, run = FORMATS[format].load(report.path)
    names = [x.name for x in model.inputs] if len(inputs) > 1 else ["images"]
    outputs = run(dict(zip(names, inputs)))
    difference = np.abs(outputs - expected).max() / np.abs(expected).max()
    assert difference < limit, (format, difference)

model = net()
images = random.normal(size=(3, 16, 16, 3)).astype("float32")
"""
# What is exported, on each of the two backends something else: what differs
# between them is how the model gets from one to TensorFlow.
JAX = """
format = "onnx"
report = export(model, folder / "net.onnx", format)
assert report.max_difference < 1e-4 and report.agreement == 1, report
expect(report, images)

format = "litert"
same = iter(PICTURES)
report = export(model, folder / "int8", format, "int8", calibration=same)
assert report.precision == "int8" and report.pictures == 2 * len(PICTURES)
expect(report, images, limit=0.5)

keras.config.set_dtype_policy("mixed_bfloat16")
model = net(input_shape=(32, 32, 3))
keras.config.set_dtype_policy("float32")
transform = keras_resnext.eval_transform("resnext29/cifar10")
format = "saved_model"
report = export(model, folder / format, format, checkpoint=transform.checkpoint)
expect(report, transform(PICTURES), limit=0.05)
assert {p.name for p in folder.iterdir()} == {"net.onnx", "int8", "saved_model"}
"""
TORCH = """
one, two = (keras.Input((16, 16, 3), name=name) for name in ("one", "two"))
shared = net(include_top=False, pooling="avg")
model = keras.Model([two, one], shared(two) - 2 * shared(one))
format = "openvino"
report = export(model, folder / format, format)
expect(report, images, images[::-1].copy())

x = keras.Input((16, 16, 3))
y = net(include_top=False)(x)
one = fold(keras.Model(x, keras.layers.UpSampling2D(2)(y)))
two = keras.layers.TimeDistributed(fold(net(include_top=False)))
y = keras.ops.mean(two(keras.ops.stack([x, 2 * x], 1)), (1, 2, 3))
model = keras.Model(x, one(x) + y[:, None, None])
format = "onnx"
report = export(model, folder / "net.onnx", format)
expect(report, images)

class Own(keras.layers.Layer):
    def call(self, x):
        return 2 * x

try:
    export(keras.Sequential([shared, Own()]), folder / "own", "onnx")
    raise SystemExit("no error")
except ValueError as error:
    assert "A model that Keras can load on TensorFlow" in str(error), error
assert {p.name for p in folder.iterdir()} == {"openvino", "net.onnx"}
"""
WITHOUT = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name == "tensorflow" else find(name, *rest)
)
try:
    export(model, folder / "net.onnx", "onnx")
    raise SystemExit("no error")
except ImportError as error:
    assert str(error).startswith("TensorFlow is required to export, also from")
    assert "Received: backend=" in str(error) and "pip install" in str(error)
assert not [*folder.iterdir()]
importlib.util.find_spec = find
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "code", "count"),
    [("jax", JAX, 3), ("torch", TORCH, 2)],
    ids=["jax", "torch"],
)
def test_export_from_another_backend(tmp_path, backend, code, count, on_jax):
    for package in (
        backend,
        "tensorflow",
        "tf2onnx",
        "onnxruntime",
        "ai_edge_litert",
        "openvino",
    ):
        pytest.importorskip(package, reason=f"{package} is missing")
    done = subprocess.run(
        [sys.executable, "-c", SETUP + WITHOUT + code, tmp_path],
        env=os.environ | on_jax | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("top-1 agreement") == count
