"""Every artifact in its own runtime, as a stranger would load it."""

import argparse
import base64
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import errno
import functools
import gc
import http.server
import importlib.util
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import requests
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from PIL import Image

import keras_resnext
from keras_resnext import __main__ as command_line
from keras_resnext.commands import (
    arguments,
    exporting,
    networks,
    random_weights,
)
from keras_resnext.export import __main__ as child
from keras_resnext.export import artifact as module
from keras_resnext.export import (
    fastest,
    formats,
    preparing,
    serving,
    swap,
)
from keras_resnext.export.folding import fold
from keras_resnext.preprocessing import eval_transform
from keras_resnext.registry import ARCHITECTURES, CHECKPOINTS

if keras.backend.backend() != "tensorflow":
    pytest.skip("export is TensorFlow's", allow_module_level=True)
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# An export compares what it writes with what `predict` gives.
pytestmark = pytest.mark.usefixtures("eagerly")

export = module.export
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {
    "saved_model": "tensorflow",
    "onnx": "tf2onnx",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
}
# The small one shows all but what its size can show. The weights which ship,
# and rounding that stays small through 50 layers, go through one format, as
# all get the same folded network; 60 MB, in one layer, through the others.
SLOW = (
    *(("saved_model", name) for name in ("resnext29", "resnext50_32x4d")),
    *((format, "large") for format in ("onnx", "litert", "openvino")),
)
EXPORTS = [
    *((format, "small") for format in PACKAGES),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW),
]
BROKEN = (
    "A JPEG, PNG, GIF or BMP picture that can be decoded, of at most "
    "200,000,000 pixels and sides of at most 1 to 100, is required."
)


def row(side, classes):
    usual = eval_transform("resnext50_32x4d").checkpoint
    return dataclasses.replace(
        usual, resize=side + 4, crop=side, classes=classes
    )


def jpegs():
    return [path.read_bytes() for path in formats.PICTURES]


@functools.cache
def photographs(side):
    transform = eval_transform(row(side, 10))
    return np.stack([transform(path) for path in formats.PICTURES])


def lively(model, side):
    return random_weights.fill(model, photographs(side))


def tiny(**options):
    options = {"groups": 4, "classes": 10, "stem": "cifar"} | options
    keras.utils.set_random_seed(0)
    return keras_resnext.ResNeXt((1, 1), input_shape=(32, 32, 3), **options)


@pytest.fixture(scope="module")
def small():
    return lively(tiny(), 32)


@pytest.fixture(scope="module")
def least():
    """What takes least time, for what happens to any model's files."""
    keras.utils.set_random_seed(2)
    x = keras.Input((32, 32, 3))
    y = keras.layers.Conv2D(4, 3)(x)
    y = keras.layers.GlobalAveragePooling2D()(y)
    y = keras.layers.Dense(10, "softmax", name="predictions")(y)
    return lively(keras.Model(x, y), 32)


def large():
    """60 MB of weights in one layer."""
    keras.utils.set_random_seed(0)
    x = keras.Input((32, 32, 3))
    y = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, 2)(x))
    y = keras.layers.Dense(60_000_000 // 4 // 900, "relu")(y)
    y = keras.layers.Dense(10, "softmax", name="predictions")(y)
    return lively(keras.Model(x, y), 32)


@pytest.fixture(scope="module")
def wide():
    """As little, but a megabyte: more than goes on a small disk."""
    x = keras.Input((32, 32, 3))
    y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x))
    y = keras.layers.Dense(500)(keras.layers.Dense(500)(y))
    y = keras.layers.Dense(10, "softmax", name="predictions")(y)
    return lively(keras.Model(x, y), 32)


@pytest.fixture(scope="module")
def network(small):
    """From a name to its model and the side of its images."""

    @functools.cache
    def make(name):
        if name == "small":
            return small, 32
        if name == "resnext29":
            return keras_resnext.ResNeXt29(weights="cifar10"), 32
        if name == "large":
            return large(), 32
        keras.utils.set_random_seed(0)
        model = keras_resnext.ResNeXt50(weights=None, input_shape=(64, 64, 3))
        return lively(model, 64), 64

    return make


@pytest.fixture(scope="module")
def artifact(network, tmp_path_factory):
    """From a network's name and a format to the report of its export."""
    made = {}

    def make(name, format):
        pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
        if (name, format) not in made:
            if (name, format) == ("large", "onnx"):
                needs_memory(4, "tf2onnx copies 60 MB of weights")
            model, side = network(name)
            path = tmp_path_factory.mktemp(name) / format
            checkpoint = row(side, model.output_shape[1])
            made[name, format] = export(
                model, path, format, checkpoint=checkpoint
            )
        return made[name, format]

    return make


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """From a format to the small network in float32, without more."""
    path = tmp_path_factory.mktemp("whole")
    return functools.cache(lambda f: export(small, path / f, f))


def needs_memory(gigabytes, reason):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed
    facts = pathlib.Path("/proc/meminfo").read_text().split("\n")
    (free,) = (int(f.split()[1]) for f in facts if "MemAvailable" in f)
    if free < gigabytes * 1e6:
        pytest.skip(f"{gigabytes} GB of free memory are needed: {reason}")


def files(path):
    return [p for p in (path, *path.rglob("*")) if p.is_file()]


def compiles(path):
    """Whether something in an artifact needs XLA."""
    return any(b"_XlaMustCompile" in p.read_bytes() for p in files(path))


@functools.cache
def loaded(path):
    """Loads a version once: that takes longer than its answers do."""
    return tf.saved_model.load(str(path))


def classify(path, pictures):
    """Asks as every export has done."""
    ask = loaded(path).signatures["serving_bytes"]
    answer = ask(tf.constant(pictures))
    return {name: value.numpy() for name, value in answer.items()}


def difference(outputs, expected):
    return np.abs(outputs - expected).max() / np.abs(expected).max()


# --- Folding -----------------------------------------------------------------


def test_folded_logits_are_the_models(small):
    model = keras.models.clone_model(
        small, clone_function=lambda layer: _logits(layer)
    )
    model.set_weights(small.get_weights())
    folded = fold(model)
    images = photographs(32)
    assert difference(folded(images), model(images)) < 1e-5
    kinds = {type(layer).__name__ for layer in folded.layers}
    assert "BatchNormalization" not in kinds


def _logits(layer):
    config = layer.get_config()
    if layer.name == "predictions":
        config["activation"] = None
    return type(layer).from_config(config)


def test_fold_leaves_what_cannot_be_folded():
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(inputs)  # follows no convolution
    x = layers.Conv2D(8, 3, activation="relu")(x)
    x = layers.BatchNormalization()(x)  # follows a ReLU
    y = layers.Conv2D(8, 3, padding="same")(x)  # has a second consumer
    x = layers.Add()([layers.BatchNormalization()(y), y])
    x = layers.Conv2D(8, 3, groups=2)(x)
    x = layers.BatchNormalization(scale=False, center=False)(x)  # folds
    nested = keras.Sequential(
        [layers.Conv2D(4, 1, use_bias=False), layers.BatchNormalization()]
    )
    model = keras.Model(inputs, nested(x))
    random = np.random.default_rng(0)
    model.set_weights(
        [random.uniform(0.5, 1.5, w.shape) for w in model.get_weights()]
    )
    images = random.normal(size=(2, 8, 8, 3)).astype("float32")
    folded = fold(model)
    assert difference(folded(images), model(images)) < 1e-5
    kinds = [type(layer).__name__ for layer in folded.layers]
    assert kinds.count("BatchNormalization") == 3


def test_fold_takes_a_model_out_of_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = tiny()
    finally:
        keras.config.set_dtype_policy("float32")
    exact = lively(tiny(), 32)
    mixed.set_weights(exact.get_weights())
    images = photographs(32)
    folded = fold(mixed)
    assert {layer.dtype_policy.name for layer in folded.layers} == {"float32"}
    assert difference(folded(images), exact(images)) < 1e-5
    policies = {
        layer.name: layer.dtype_policy.name
        for layer in fold(mixed, "bfloat16").layers
    }
    assert policies["conv2_block1_out"] == "bfloat16"
    assert policies["avg_pool"] == "float32"


# --- Every format ------------------------------------------------------------


@pytest.mark.parametrize(("format", "name"), EXPORTS)
def test_artifact_in_its_runtime(artifact, network, name, format):
    report = artifact(name, format)
    assert report.max_difference < 1e-5
    assert report.agreement == 1.0
    assert report.size == sum(p.stat().st_size for p in files(report.path))
    assert not compiles(report.path)
    model, side = network(name)
    images = photographs(side)
    expected = np.asarray(model(images))
    run = RUNTIMES[format](report.path)
    for batch in (slice(0, 1), slice(0, 4), slice(1, 3)):
        outputs = run(images[batch])
        assert difference(outputs, expected[batch]) < 1e-4


def tensorflow(path):
    run = loaded(path).signatures["serving_default"]
    return lambda x: run(tf.constant(x))["outputs"].numpy()


def onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda x: session.run(["outputs"], {"images": x})[0]


def litert(path):
    from ai_edge_litert.interpreter import Interpreter

    def run(images):
        interpreter = Interpreter(str(path))
        interpreter.resize_tensor_input(0, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, images)
        interpreter.invoke()
        return interpreter.get_tensor(
            interpreter.get_output_details()[0]["index"]
        )

    return run


def openvino(path):
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path / "model.xml", "CPU", hint)
    return lambda x: model({"images": x})["outputs"]


RUNTIMES = {
    "saved_model": tensorflow,
    "onnx": onnx,
    "litert": litert,
    "openvino": openvino,
}


@pytest.mark.parametrize(
    ("format", "precision", "allowed"),
    [
        ("saved_model", "bfloat16", 0.05),
        ("saved_model", "float16", 0.01),
        ("onnx", "float16", 0.01),
        ("litert", "float16", 0.01),
        ("litert", "int8", 0.3),
        ("onnx", "int8", 0.3),
        pytest.param("openvino", "int8", 0.3, marks=pytest.mark.slow),
        pytest.param("openvino", "float16", 0.01, marks=pytest.mark.slow),
    ],
)
def test_reduced_precision(small, whole, tmp_path, format, precision, allowed):
    pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
    if (format, precision) == ("openvino", "int8"):
        pytest.importorskip("nncf", reason="it quantises for OpenVINO")
    report = export(
        small,
        tmp_path / "part",
        format,
        precision,
        calibration=photographs(32),
    )
    assert report.precision == precision
    assert report.pictures == 4
    assert 0 < report.max_difference < allowed
    assert report.agreement >= 0.75
    assert report.size < whole(format).size
    assert not compiles(report.path)
    outputs = RUNTIMES[format](report.path)(photographs(32))
    assert outputs.dtype == "float32"


ZEROS = [0, 0, 1, 1, 0, 0, 1, 2]


@pytest.mark.parametrize(
    "relu, sides, value, options, merged",
    [
        ("Relu", ZEROS, 0.0, "", True),
        ("Relu", [0, 0, 0, 0, 0, 0, 1, 1], 0.0, "", True),
        ("Relu", ZEROS, 0.0, 'auto_pad = "VALID"', True),
        ("Neg", ZEROS, 0.0, "", False),  # zeros are above what is there
        ("Relu", ZEROS, 1.0, "", False),
        ("Relu", ZEROS, 0.0, 'auto_pad = "SAME_UPPER"', False),
        ("Relu", ZEROS, 0.0, "pads = [1, 0, 0, 0]", False),
        ("Relu", [0, 1, 1, 1, 0, 0, 1, 1], 0.0, "", False),  # a channel
        ("Relu", [0, 0, 3, 1, 0, 0, 1, 1], 0.0, "", False),
        ("Relu", [0, 0, -1, 1, 0, 0, 1, 1], 0.0, "", False),
    ],
)
def test_maxima_pad_themselves_in_onnx(relu, sides, value, options, merged):
    onnx = pytest.importorskip("onnx", reason="a runtime is missing")
    onnxruntime = pytest.importorskip("onnxruntime", reason="it is missing")
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        graph (float[2, 3, 8, 9] x) => (float[n, c, h, w] y)
        <int64[8] sides = {{{", ".join(map(str, sides))}}},
         float value = {{{value}}}> {{
            a = {relu} (x)
            b = Pad (a, sides, value)
            y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]
                         {", " * bool(options)}{options}> (b)
        }}""")

    def run():
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return session.run(None, {"x": x})[0]

    x = np.random.default_rng(0).standard_normal((2, 3, 8, 9), "float32")
    expected = run()
    formats._pad_in_pooling(model.graph)
    np.testing.assert_array_equal(run(), expected)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == [relu, *["Pad"] * (not merged), "MaxPool"]
    assert len(model.graph.initializer) == (0 if merged else 2)


@pytest.mark.slow  # three exports
def test_no_stem_pads_apart_in_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="a runtime is missing")
    pytest.importorskip(PACKAGES["onnx"], reason="a converter is missing")
    for stem in ("imagenet", "deep", "legacy"):
        keras.utils.set_random_seed(0)
        net = keras_resnext.ResNeXt(
            (1,), 2, 8, stem=stem, planes=16, input_shape=(32, 32, 3)
        )
        export(net, tmp_path / stem, "onnx")
        nodes = onnx.load(tmp_path / stem).graph.node
        kinds = [node.op_type for node in nodes]
        assert "Pad" not in kinds and kinds.count("MaxPool") == 1


@pytest.mark.slow
def test_sizes_may_be_open(tmp_path):
    """LiteRT alone gets a fixed size; features are exported, too."""
    model = keras_resnext.ResNeXt((1, 1), 4, include_top=False, pooling="avg")
    images = np.zeros((2, 48, 40, 3), "float32")
    for format in ("saved_model", "onnx", "openvino"):
        pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
        report = export(model, tmp_path / format, format)
        outputs = RUNTIMES[format](report.path)(images)
        assert np.allclose(outputs, model(images), atol=1e-5)
    pytest.importorskip(PACKAGES["litert"], reason="a runtime is missing")
    report = export(model, tmp_path / "litert", "litert")
    outputs = RUNTIMES["litert"](report.path)(np.zeros((2, 224, 224, 3), "f"))
    assert outputs.shape == (2, 512)


def test_artifact_does_not_depend_on_the_machine(small, tmp_path, monkeypatch):
    """Where gradients are missing, layers split; artifacts must not."""
    operations = []
    for direct in (True, False):
        monkeypatch.setattr(
            "keras_resnext.layers._trains_directly", lambda _, d=direct: d
        )
        path = export(small, tmp_path / str(direct)).path
        loaded = tf.saved_model.load(str(path))
        graph = loaded.signatures["serving_default"].graph.as_graph_def()
        nodes = [n for f in graph.library.function for n in f.node_def]
        operations.append(sorted(node.op for node in nodes))
    assert operations[0] == operations[1]
    convolutions = [w for w in small.weights if "conv/kernel" in w.path]
    assert operations[0].count("Conv2D") == len(convolutions)


# --- The fastest ---


@pytest.mark.slow  # seven exports
def test_the_fastest_is_kept_alone(least, tmp_path, capsys):
    for package in (*PACKAGES.values(), "nncf"):
        pytest.importorskip(package, reason="a runtime is missing")
    out = tmp_path / "out"
    options = dict(calibration=photographs(32), precision=["float32", "int8"])
    options |= dict(checkpoint=row(32, 10), max_loss=30, batch=2)
    report = export(least, out, "fastest", **options)
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if "|" in line]
    times = [float(cells[4]) for cells in rows[2:]]
    assert len(times) == 7, printed
    assert min(times) == pytest.approx(report.latency, abs=0.06)
    kept = report.path.relative_to(out).parts[0]
    facts = [f"{kept}.json"] * report.path.is_file()
    assert sorted(os.listdir(out)) == [kept, *facts]
    code = printed.split("Kept:")[1].split("\n\n")[1]
    images = photographs(32)
    found = {"images": images}
    exec(code, found)
    gap = np.abs(np.asarray(found["outputs"]) - least(images)).max()
    assert gap < (0.3 if report.precision == "int8" else 1e-4)


def test_the_fastest_must_agree(least, tmp_path, monkeypatch):
    """The quick one is wrong; another is kept, or none."""
    kind = formats.FORMATS["onnx"]
    wrong = dataclasses.replace(
        kind,
        load=lambda path: ("It", lambda x: np.eye(10)[np.zeros(len(x), int)]),
    )
    everything = {"onnx": wrong, "saved_model": formats.FORMATS["saved_model"]}
    monkeypatch.setattr(fastest, "FORMATS", everything)
    predict, calls = keras.Model.predict, []
    monkeypatch.setattr(
        keras.Model,
        "predict",
        lambda *args, **options: calls.append(1) or predict(*args, **options),
    )
    options = dict(calibration=photographs(32), precision="float32")
    report = export(least, tmp_path, "fastest", **options)
    assert report.path == tmp_path / "saved_model" / "1"
    assert len(calls) == 2  # however many are compared
    assert (tmp_path / "saved_model" / "batching_parameters.txt").exists()
    del everything["saved_model"]
    with pytest.raises(ValueError, match=r"must lose at most 0.5 %.*max_loss"):
        export(least, tmp_path, "fastest", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"saved_model"}


@pytest.mark.parametrize("kind", ["one score", "class map"])
def test_the_fastest_must_agree_without_classes(
    kind, tmp_path, monkeypatch, capsys
):
    x = keras.Input((32, 32, 3))
    y = keras.layers.Conv2D(3, 3)(x)
    if kind == "one score":  # for two classes, of which it says the second
        y = keras.layers.GlobalAveragePooling2D()(y)
        y = keras.layers.Dense(
            1, "sigmoid", kernel_initializer="zeros", bias_initializer="ones"
        )(y)
    else:
        y = keras.ops.argmax(y, -1)
    model = keras.Model(x, y)
    shape = np.shape(model(photographs(32)))[1:]
    wrong = dataclasses.replace(
        formats.FORMATS["saved_model"],
        load=lambda path: (
            "It",
            lambda x: np.full((len(x), *shape), -9, y.dtype),
        ),
    )
    monkeypatch.setattr(fastest, "FORMATS", {"saved_model": wrong})
    with pytest.raises(ValueError, match=r"must lose at most 0.5 %.*100\.0"):
        export(model, tmp_path, "fastest", precision="float32")


def test_notes_and_table_have_their_own_lines(
    least, tmp_path, monkeypatch, capsys
):
    kind = formats.FORMATS["saved_model"]
    monkeypatch.setattr(fastest, "FORMATS", {"saved_model": kind})
    pictures = shutil.copytree(formats.PICTURES[0].parent, tmp_path / "p")
    options = dict(calibration=pictures, precision="float32", max_loss=100)
    export(least, tmp_path / "out", "fastest", **options)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Skipped 1 of 5 ") and first.endswith(": README.")
    assert second.startswith("| engine | precision |")


def test_only_its_own_facts_go_with_the_fastest(tmp_path):
    made, out = tmp_path / "made", tmp_path / "out"
    for folder in (made, out):
        folder.mkdir()
        for name in ("model.onnx", "model.tflite"):
            (folder / name).write_text(folder.name)
            (folder / f"{name}.json").write_text(folder.name)
    report = module.Report(made / "model.onnx", "It", "int8", 1, 0, 1, 1, 1)
    one = fastest.Candidate("onnx", "int8", report, times=[2.0])
    assert fastest._keep(one, out).path == out / "model.onnx"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "model.onnx": "made",
        "model.onnx.json": "made",
        "model.tflite": "out",
        "model.tflite.json": "out",
    }


def test_why_nothing_can_be_the_fastest(least, tmp_path, monkeypatch):
    def fail(job, path):
        raise RuntimeError("of a converter")

    kind = dataclasses.replace(formats.FORMATS["onnx"], write=fail)
    monkeypatch.setattr(fastest, "FORMATS", {"onnx": kind})
    monkeypatch.setitem(formats.FORMATS, "onnx", kind)
    with pytest.raises(
        ValueError, match=r"At least one format.*of a converter"
    ):
        export(least, tmp_path, "fastest", precision="float32")
    assert not [*tmp_path.iterdir()]


def test_the_fastest_leaves_the_settings_of_a_server(
    least, tmp_path, monkeypatch
):
    kind = formats.FORMATS["saved_model"]
    monkeypatch.setattr(fastest, "FORMATS", {"saved_model": kind})
    settings = tmp_path / "saved_model" / "batching_parameters.txt"
    settings.parent.mkdir()
    settings.write_text("mine")
    export(least, tmp_path, "fastest", precision="float32")
    assert settings.read_text() == "mine"
    assert (settings.parent / "1").is_dir()


def test_command_line_keeps_the_fastest(least, tmp_path, monkeypatch, capsys):
    kind = formats.FORMATS["saved_model"]
    monkeypatch.setattr(fastest, "FORMATS", {"saved_model": kind})
    least.save(tmp_path / "small.keras")
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "small.keras"), "--out", str(out)]
    command += ["--format", "fastest", "--batch", "2", "--max-loss", "100"]
    command_line.main([*command, "--precision", "float32"])
    printed = capsys.readouterr().out
    assert "ms a picture, batch 2 |" in printed
    assert "bfloat16" not in printed
    assert f"Kept: {out / 'saved_model' / '1'}" in printed
    with pytest.raises(SystemExit):
        command_line.main([*command, "--max-loss", "-1"])
    assert "a number from 0" in capsys.readouterr().err


def test_labels_of_folders_count():
    files = [pathlib.Path("p", name, "1.png") for name in ("dog", "cat")]
    names = list("abcdefgh") + ["cat", "dog"]
    assert fastest.labels_of("p", files, names).tolist() == [9, 8]
    assert fastest.labels_of("p", files, names[:9]) is None
    assert fastest.labels_of(np.zeros(2), (), names) is None
    assert fastest.labels_of("p", files[:1], ["dog"]) is None


# --- What an artifact says of itself ---


def facts_in_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert image.shape[0] == output.shape[0] == "batch"
    found = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in found.items()}


def facts_in_openvino(path):
    import openvino

    model = openvino.Core().read_model(path / "model.xml")
    (image,) = model.get_parameters()
    assert image.layout == openvino.Layout("NHWC")
    found = model.get_rt_info("preprocessing").value
    return {
        name: json.loads(model.get_rt_info(["preprocessing", name]).astype(str))
        for name in found
    }


def facts_in_litert(path):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (entry,) = (m for m in model.metadata if m.name == b"preprocessing")
    return json.loads(bytes(model.buffers[entry.buffer].data))


def facts_in_saved_model(path):
    return json.loads((path / "assets/preprocessing.json").read_text())


FACTS = {
    "saved_model": facts_in_saved_model,
    "onnx": facts_in_onnx,
    "litert": facts_in_litert,
    "openvino": facts_in_openvino,
}


@pytest.mark.parametrize("format", PACKAGES)
def test_artifacts_say_what_they_eat(artifact, format):
    path = artifact("small", format).path
    checkpoint = row(32, 10)
    text = beside(path).read_text("utf-8")
    for facts in (FACTS[format](path), json.loads(text)):
        for name in ("resize", "crop", "interpolation", "licence"):
            assert facts[name] == getattr(checkpoint, name)
        for name in ("mean", "std"):
            assert facts[name] == list(getattr(checkpoint, name))
        assert facts["labels"][0] == "airplane" and len(facts["labels"]) == 10


def test_what_a_file_was_before_is_not_said_of_the_new_one(least, tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    path = tmp_path / "net.onnx"
    export(least, path, "onnx", checkpoint=row(32, 10))
    assert beside(path).exists()
    export(least, path, "onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_what_is_not_said_by_us_stays(least, tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    path = tmp_path / "net.onnx"
    for content in ("mine", "[]", '{"mean": 3}', "[" * 100_000):
        beside(path).write_text(content)
        with pytest.raises(FileExistsError, match=r"has not written\. Move"):
            export(least, path, "onnx")
        assert beside(path).read_text() == content and not path.exists()


def beside(path):
    """Returns what an artifact says of its inputs, in a file."""
    if path.is_dir():
        return path / "preprocessing.json"
    return path.with_name(f"{path.name}.json")


def documented(folder, path):
    """Returns the lines of docs/export.md for what a folder gets."""
    name = {"onnx": "model.onnx", "litert": "model.tflite"}
    name = name.get(path.name, path.name)
    (folder / name).symlink_to(path)
    shutil.copy(beside(path), folder / "model.onnx.json")
    shutil.copy(formats.PICTURES[1], folder / "cat.jpg")
    text = (ROOT / "docs/export.md").read_text("utf-8")
    text = text.split("## Without this package")[1].split("\n## ")[0]
    first, *engines = re.findall("```python\n(.*?)```", text, re.DOTALL)
    (engine,) = (lines for lines in engines if f'"{name}' in lines)
    return first + engine


def classifies(network, *lines, folder):
    """Runs lines without the package; checks the answer that they print."""
    block = 'import sys; sys.modules["keras_resnext"] = None\n'
    result = subprocess.run(
        [sys.executable, "-c", block + "".join(lines)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    label, score = result.stdout.split()[-2:]
    model, side = network
    scores = np.asarray(model(photographs(side)[1:2]))
    ((_, expected, best),) = keras_resnext.decode_predictions(scores, 1)[0]
    assert label == expected
    assert float(score) == pytest.approx(best, abs=1e-3)


# With TensorFlow: `test_fresh_process_without_the_package`.
@pytest.mark.parametrize("format", ["onnx", "litert", "openvino"])
def test_documented_lines_classify_without_the_package(
    artifact, network, tmp_path, format
):
    path = artifact("small", format).path
    lines = documented(tmp_path, path)
    classifies(network("small"), lines, folder=tmp_path)


def test_openvino_is_loaded_as_it_was_compared(monkeypatch):
    """By default it computes in bfloat16 where the processor can."""
    openvino = pytest.importorskip("openvino", reason="a runtime is missing")
    configs = []

    def compile_model(path, device, *config):
        configs.append(config)
        return lambda _: {"outputs": np.eye(2)[:1]}

    monkeypatch.setattr(openvino, "compile_model", compile_model)
    printed = formats.FORMATS["openvino"].code.format(path="x")
    page = (ROOT / "docs/export.md").read_text("utf-8")
    (block,) = re.findall("```python\n(import openvino.*?)```", page, re.DOTALL)
    for lines in (printed, block):
        exec(lines, {"images": None, "facts": {"labels": "ab"}})
    assert configs == 2 * [({"INFERENCE_PRECISION_HINT": "f32"},)]


# --- TensorFlow Serving ------------------------------------------------------


def serve(path, requests, onednn):
    """Answers requests by TensorFlow Serving's load path.

    Each is the name of a signature and its only input. See serving_loader.py.
    """
    if sys.platform != "linux":
        pytest.skip("the library has another name")
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((path / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    asked, names = [], []
    for signature, value in requests:
        (feed,) = signatures[signature].inputs.values()
        outputs = signatures[signature].outputs
        names.append(list(outputs))
        fetches = [outputs[name].name for name in names[-1]]
        asked.append((feed.name, value, fetches))
    loader = ROOT / "tests/serving_loader.py"
    answer = subprocess.run(
        [sys.executable, loader, tf.sysconfig.get_lib(), path],
        input=pickle.dumps(asked),
        capture_output=True,
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn},
    )
    assert answer.returncode == 0, answer.stderr.decode()
    replies = pickle.loads(answer.stdout)
    return [
        dict(zip(keys, values, strict=True))
        for keys, values in zip(names, replies, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "onednn"),
    [("small", "1"), ("small", "0"), ("resnext50_32x4d", "1")],
)
def test_as_tensorflow_serving_loads_it(artifact, network, name, onednn):
    model, side = network(name)
    path = artifact(name, "saved_model").path
    images = photographs(side)
    expected = np.asarray(model(images))
    requests = [
        (signature, values[:count])
        for count in (1, 4)
        for signature, values in (
            ("serving_default", images),
            ("serving_bytes", jpegs()),
        )
    ]
    replies = serve(path, requests, onednn)
    for (signature, values), answer in zip(requests, replies, strict=True):
        count = len(values)
        if signature == "serving_default":
            assert difference(answer["outputs"], expected[:count]) < 1e-4
            continue
        best = -np.sort(-expected)[:count, :5]
        assert answer["labels"].shape == best.shape
        assert difference(answer["scores"], best) < 0.02
        assert not answer["errors"].any()


@pytest.mark.slow
def test_stock_grouped_convolution_fails_where_ours_works(tmp_path):
    """Else the loader would prove nothing."""
    inputs = keras.Input((8, 8, 8))
    stock = keras.Model(inputs, keras.layers.Conv2D(8, 3, groups=2)(inputs))
    stock.export(tmp_path / "stock", verbose=False)
    assert compiles(tmp_path / "stock")
    images = np.zeros((1, 8, 8, 8), "float32")
    with pytest.raises(AssertionError, match="XLA compilation disabled"):
        serve(tmp_path / "stock", [("serving_default", images)], "1")
    ours = export(stock, tmp_path / "ours").path
    (answer,) = serve(ours, [("serving_default", images)], "0")
    assert answer["outputs"].shape == (1, 6, 6, 8)
    # Of another rank, with a bias and a ReLU that Grappler would fuse.
    rows = keras.layers.Conv1D(8, 3, groups=2, activation="relu")
    rows = rows(keras.layers.Reshape((64, 8))(inputs))
    ours = export(keras.Model(inputs, rows), tmp_path / "rows").path
    for onednn in ("0", "1"):
        (answer,) = serve(ours, [("serving_default", images)], onednn)
        assert answer["outputs"].shape == (1, 62, 8)


# The deep one: the loader above, which has no Python of TensorFlow at all.
@pytest.mark.parametrize(
    "name", ["small", pytest.param("resnext29", marks=pytest.mark.slow)]
)
def test_fresh_process_without_the_package(artifact, network, name, tmp_path):
    code = """
sys.modules["keras"] = None
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("1")
data = np.load("data.npz")
for count in (1, 3):
    images, expected = data["images"][:count], data["expected"][:count]
    run = model.signatures["serving_default"]
    outputs = run(tf.constant(images))["outputs"].numpy()
    assert np.abs(outputs - expected).max() < 1e-4 * expected.max()
    run = model.signatures["serving_bytes"]
    answer = run(tf.constant(data["pictures"][:count]))
    assert answer["labels"].shape == (count, 5)
    scores = answer["scores"].numpy()[:, 0] / expected.max(-1)
    assert np.abs(scores - 1).max() < 0.02
"""
    model, side = network(name)
    images = photographs(side)
    np.savez(
        tmp_path / "data.npz",
        images=images,
        expected=np.asarray(model(images)),
        pictures=np.array(jpegs()),
    )
    lines = documented(tmp_path, artifact(name, "saved_model").path)
    classifies(network(name), code, lines, folder=tmp_path)


def test_broken_pictures_have_their_own_errors(artifact):
    path = artifact("small", "saved_model").path
    good = jpegs()
    mixed = [good[0], b"no picture", good[1], good[2][:5000], b""]
    answer = classify(path, mixed)
    assert [e.decode() for e in answer["errors"]] == [
        "",
        BROKEN,
        "",
        BROKEN,
        BROKEN,
    ]
    for i in (1, 3, 4):
        assert not answer["scores"][i].any() and not any(answer["labels"][i])
    alone = classify(path, [good[0], good[1]])
    assert np.allclose(answer["scores"][[0, 2]], alone["scores"], rtol=1e-4)
    assert (answer["labels"][[0, 2]] == alone["labels"]).all()


def test_calibration_skips_what_is_no_picture(least, tmp_path):
    pytest.importorskip(PACKAGES["litert"], reason="a runtime is missing")
    pictures = tmp_path / "pictures"
    shutil.copytree(formats.PICTURES[0].parent, pictures)
    for name in ("README.md", ".DS_Store"):
        (pictures / name).write_bytes(b"no picture")
    export_int8 = functools.partial(export, least, tmp_path / "a", "litert")
    report = export_int8("int8", calibration=pictures)
    count = len(files(pictures)) - 1  # what is hidden does not count
    (note, *_) = report.notes
    assert note.startswith(f"Skipped 2 of {count} files in {pictures}, ")
    assert note.endswith(": README, README.md.")
    only = tmp_path / "only"
    only.mkdir()
    (only / "README.md").write_text("no picture")
    with pytest.raises(ValueError, match="must be one picture or more"):
        export_int8("int8", calibration=only)


@pytest.mark.slow
def test_classes_have_their_names(artifact, network):
    model, side = network("resnext50_32x4d")
    path = artifact("resnext50_32x4d", "saved_model").path
    answer = classify(path, jpegs())
    decoded = keras_resnext.decode_predictions(model(photographs(side)))
    for names, best in zip(answer["labels"], decoded, strict=True):
        assert names[0].decode() == best[0][1]
    labels = (path / "assets" / "labels.txt").read_text("utf-8").splitlines()
    assert len(labels) == 1000 and labels[281] == "tabby"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_transform_in_the_graph_is_pillows(interpolation):
    """Within two of 255 levels, and a hundredth of one on average."""
    checkpoint = dataclasses.replace(row(96, 10), interpolation=interpolation)
    transform = eval_transform(checkpoint)
    levels = 255 * np.array(checkpoint.std)
    for data in pictures():
        actual = serving.transform(tf.constant(data), checkpoint)
        gap = np.abs(actual - transform(data)) * levels
        assert gap.max() < 2.01
        assert gap.mean() < 0.02


def pictures():
    """JPEG and PNG; RGB, grey, transparent; large, and smaller than a cut."""
    image = Image.open(formats.PICTURES[1])
    kinds = [
        (image, "JPEG"),
        (image, "PNG"),
        (image.convert("L"), "JPEG"),
        (image.convert("L"), "PNG"),
        (image.convert("RGBA"), "PNG"),
        (image.resize((41, 60)), "PNG"),
        (image.resize((901, 600)), "PNG"),
        (image, "BMP"),
    ]
    for picture, kind in kinds:
        file = io.BytesIO()
        picture.save(file, kind)
        yield file.getvalue()


def test_transform_pads_what_is_smaller_than_the_cut():
    checkpoint = dataclasses.replace(row(96, 10), resize=63)
    for data in pictures():
        expected = eval_transform(checkpoint)(data)
        actual = serving.transform(tf.constant(data), checkpoint)
        assert np.abs(actual - expected).max() < 2.01 / 255 / 0.224


def test_warm_up_requests(artifact):
    logs = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="tensorflow-serving-api is missing",
    )
    path = artifact("small", "saved_model").path
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    requests = [
        logs.PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(file))
    ]
    model = loaded(path)
    asked = []
    for request in requests:
        asked.append(request.model_spec.signature_name)
        ((name, value),) = request.inputs.items()
        inputs = {name: tf.constant(tf.make_ndarray(value))}
        model.signatures[asked[-1]](**inputs)
    assert asked == ["serving_default", "serving_bytes"]


def batching_message():
    """TensorFlow Serving's `BatchingParameters`, which its package lacks.

    Source: session_bundle_config.proto of TensorFlow Serving 2.20.
    """
    proto = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = proto.message_type.add(name="BatchingParameters")
    for number, name, kind in (
        (1, "max_batch_size", "Int64Value"),
        (2, "batch_timeout_micros", "Int64Value"),
        (3, "max_enqueued_batches", "Int64Value"),
        (4, "num_batch_threads", "Int64Value"),
        (8, "enable_large_batch_splitting", "BoolValue"),
        (9, "max_execution_batch_size", "Int64Value"),
    ):
        message.field.add(
            name=name,
            number=number,
            type="TYPE_MESSAGE",
            type_name=f".google.protobuf.{kind}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(proto.SerializeToString())
    found = pool.FindMessageTypeByName("BatchingParameters")
    return message_factory.GetMessageClass(found)()


def test_batching_parameters_are_tensorflow_servings(artifact):
    folder = artifact("small", "saved_model").path.parent
    text = (folder / "batching_parameters.txt").read_text("utf-8")
    parameters = text_format.Parse(text, batching_message())
    # The server's own count: one for each processor.
    assert not parameters.HasField("num_batch_threads")
    # A larger request is divided; the proto wants this order of the two.
    assert parameters.enable_large_batch_splitting.value
    assert parameters.max_execution_batch_size.value == 8
    assert parameters.max_batch_size.value >= 64
    assert parameters.batch_timeout_micros.value == 2000
    assert parameters.max_enqueued_batches.value > 1


# --- Clients -----------------------------------------------------------------


def script(name):
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "scripts" / f"{name}.py"
    )
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def folder(tmp_path):
    """Three good pictures and a broken one."""
    for path in formats.PICTURES[:3]:
        shutil.copy(path, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def classify_with_client(monkeypatch, capsys, folder, *options):
    arguments = ["client", str(folder), "--model", "m", "--batch-size", "3"]
    monkeypatch.setattr(sys, "argv", [*arguments, *options])
    capsys.readouterr()  # what an export printed that this test had to make
    with pytest.raises(SystemExit) as end:
        script("serving_client").main()
    return end.value.code, capsys.readouterr().out.splitlines()


def check_lines(code, lines, folder, path):
    assert code == 1  # one picture is broken
    assert lines[1] == f"{folder / 'broken.jpg'}: {BROKEN}"
    answer = classify(path, jpegs()[:3])
    for line, labels, scores in zip(
        (lines[0], *lines[2:]),
        answer["labels"],
        answer["scores"],
        strict=True,
    ):
        assert f": {labels[0].decode()} {scores[0]:.1%}, " in line


def test_grpc_client(artifact, folder, monkeypatch, capsys):
    grpc = pytest.importorskip("grpc", reason="grpcio is missing")
    pytest.importorskip(
        "tensorflow_serving", reason="tensorflow-serving-api is missing"
    )
    from tensorflow_serving.apis import (
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    path = artifact("small", "saved_model").path
    usual = {"labels": [[b"a"]], "scores": [[0.5]], "errors": [b""]}
    others = {}
    for name, outputs in {
        "one axis": {"labels": [b"a"]},
        "numbers": {"labels": [[1]]},
        "errors as numbers": {"errors": [0]},
        "one error": {"errors": b""},
        "no errors": {"errors": np.zeros(0, object)},
        "bytes": {"labels": [[b"\xff"]]},
    }.items():
        others[name] = predict_pb2.PredictResponse()
        for output, value in (usual | outputs).items():
            proto = tf.make_tensor_proto(value)
            others[name].outputs[output].CopyFrom(proto)

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            if request.model_spec.name in others:
                return others[request.model_spec.name]
            if request.model_spec.name != "m":
                context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
            assert request.model_spec.signature_name == "serving_bytes"
            values = tf.make_ndarray(request.inputs["pictures"])
            response = predict_pb2.PredictResponse()
            for name, value in classify(path, list(values)).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Servicer(), server
    )
    target = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    options = ["--grpc", target]
    try:
        code, lines = classify_with_client(
            monkeypatch, capsys, folder, *options
        )
        check_lines(code, lines, folder, path)
        code, _ = classify_with_client(
            monkeypatch, capsys, folder, *options, "--model", "other"
        )
        assert f"--grpc={target} (NOT_FOUND: no such model). Start it" in code
        for name in others:
            code, _ = classify_with_client(
                monkeypatch, capsys, folder, *options, "--model", name
            )
            assert f"another answer from {target} (" in code
    finally:
        server.stop(None).wait()


def test_rest_client(artifact, folder, monkeypatch, capsys):
    """Against TensorFlow Serving's row format, as its guide describes it."""
    path = artifact("small", "saved_model").path

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known = self.path == "/v1/models/m:predict"
            answer = predict(json.loads(body)) if known else {"error": "no"}
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    def predict(request):
        assert request["signature_name"] == "serving_bytes"
        data = [base64.b64decode(i["b64"]) for i in request["instances"]]
        answer = classify(path, data)
        rows = zip(
            np.char.decode(answer["labels"].astype("S"), "utf-8").tolist(),
            answer["scores"].tolist(),
            [e.decode() for e in answer["errors"]],
            strict=True,
        )
        names = ("labels", "scores", "errors")
        return {"predictions": [dict(zip(names, row)) for row in rows]}  # noqa: B905

    with http.server.HTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://localhost:{server.server_port}"
        try:
            code, lines = classify_with_client(
                monkeypatch, capsys, folder, "--rest", url
            )
            check_lines(code, lines, folder, path)
            code, _ = classify_with_client(
                monkeypatch, capsys, folder, "--rest", url, "--model", "o"
            )
            assert f"Received: --rest={url} (404: " in code
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "paths, message",
    [
        (["nowhere.jpg"], "nowhere.jpg, which does not exist"),
        (
            [str(formats.PICTURES[0])],
            "Received: --rest=http://localhost:1 (Connection refused)",
        ),
    ],
)
def test_client_says_what_is_missing(monkeypatch, paths, message):
    options = ["--model", "m", "--rest", "http://localhost:1"]
    monkeypatch.setattr(sys, "argv", ["client", *paths, *options])
    monkeypatch.setenv("NO_PROXY", "localhost")
    with pytest.raises(SystemExit, match=re.escape(message)):
        script("serving_client").main()


@pytest.mark.parametrize(
    "reason, advice",
    [
        ("Task size 64 is larger than maximum input batch size 32", "smaller"),
        ("failed to connect to all addresses", "Start it, or check the addr"),
        ("503: exceeds quota", "Start it, or check the address"),
    ],
)
def test_client_says_the_way_out(reason, advice):
    error = script("serving_client")._refusal("--grpc=h:1", reason, 64)
    assert f"({reason}). " in str(error) and advice in str(error)
    assert str(error).count("Received: ") == 1


def test_grpc_client_names_missing_packages(monkeypatch):
    words = ["client", str(formats.PICTURES[0]), "--model", "m"]
    monkeypatch.setattr(sys, "argv", [*words, "--grpc", "localhost:1"])
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    message = "--grpc needs the packages grpcio and tensorflow-serving-api. "
    with pytest.raises(SystemExit, match=f"{message}.*Run `pip install"):
        script("serving_client").main()


@pytest.mark.parametrize(
    "answer",
    [
        (["cat"], [0.5, 0.5], ""),
        (["cat"], ["half"], ""),
        (["cat"], [float("nan")], ""),
        (["cat"], None, ""),
    ],
)
def test_answers_of_another_model(answer):
    with pytest.raises(ValueError, match=r"another answer from h:1 .*--model"):
        script("serving_client").describe(answer, "h:1")


def test_a_page_is_cut_and_a_name_is_quoted(monkeypatch):
    asked = []

    def post(self, url, **_):
        asked.append(url)
        answer = requests.Response()
        answer.status_code, answer._content = 404, b"<html>" * 1000
        return answer

    monkeypatch.setattr(requests.Session, "post", post)
    ask = script("serving_client").rest("http://h:1/", "a b/c?d", 1)
    with pytest.raises(OSError) as error:
        ask([b""])
    assert len(str(error.value)) < 500
    assert asked == ["http://h:1/v1/models/a%20b%2Fc%3Fd:predict"]
    monkeypatch.setattr(sys, "argv", ["client", ".", "--model", ""])
    with pytest.raises(SystemExit):
        script("serving_client").parse_arguments()


def test_addresses_begin_with_http(monkeypatch):
    with pytest.raises(
        SystemExit, match=r"--rest=localhost:8501\. Begin it with http://"
    ):
        script("serving_client").rest("localhost:8501", "m", 1)


def test_client_ends_with_a_sentence(tmp_path):
    (tmp_path / "grpc").mkdir()
    (tmp_path / "grpc" / "__init__.py").write_text("raise ImportError('gone')")
    result = subprocess.run(
        [sys.executable, ROOT / "scripts/serving_client.py", "--model", "m"]
        + ["--grpc", "localhost:1", formats.PICTURES[0]],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("--grpc needs the packages grpcio and tensorflow-s")
    assert "(gone). Run `pip install" in line


def test_client_goes_on_after_pictures_that_cannot_be_read(
    tmp_path, monkeypatch, capsys
):
    client = script("serving_client")
    good = tmp_path / "good.jpg"
    good.write_bytes(b"good")
    answers = lambda *_: lambda data: [([d.decode()], [0.5], "") for d in data]  # noqa: E731
    monkeypatch.setattr(client, "rest", answers)
    bad = (
        "/proc/self/mem"  # nobody can read it from its beginning, root neither
    )
    command = ["client", bad, str(good), "--model", "m", "--batch-size"]
    for size in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [*command, size])
        with pytest.raises(SystemExit) as end:
            client.main()
        assert end.value.code == 1
        assert capsys.readouterr().out.splitlines() == [
            f"{bad}: Input/output error.",
            f"{good}: good 50.0%",
        ]


def test_client_wants_pictures_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["client", str(tmp_path), "--model", "m"])
    with pytest.raises(SystemExit, match=r"Received: .*, which has no files"):
        script("serving_client").main()


@pytest.mark.parametrize("answer", ["<html>", "{}", "[]"])
def test_client_of_another_server(monkeypatch, answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://localhost:{server.server_port}"
        message = rf"Received: (--rest=|another answer from ){url} \("
        with pytest.raises((OSError, ValueError), match=message):
            script("serving_client").rest(url, "m", 60.0)([b"picture"])
        thread.join()


def test_command_line(least, tmp_path, capsys):
    least.save(tmp_path / "small.keras")
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
    command = ["export", str(tmp_path / "small.keras"), "--out", str(tmp_path)]
    command_line.main(command)
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / '1'}: TensorFlow {tf.__version__}")
    assert "without the signature serving_bytes" in out
    with pytest.raises(SystemExit) as end:
        command_line.main(command)
    assert end.value.code == 2
    assert "Pass version=2" in capsys.readouterr().err


def test_all_commands_give_whole_numbers_to_what_takes_them(
    least, tmp_path, capsys
):
    """A model that normalises by itself answers as it does in Keras."""
    x = keras.Input((32, 32, 3), dtype="uint8")
    y = keras_resnext.preprocess_input(keras.ops.cast(x, "float32"))
    model = keras.Model(x, least(y))
    model.save(tmp_path / "own.keras")
    pixels = np.asarray(Image.open(formats.PICTURES[0]).resize((32, 32)))
    Image.fromarray(pixels).save(tmp_path / "one.png")
    best = model.predict(pixels[None], verbose=0).max()
    words = [
        str(tmp_path / "one.png"),
        "--network",
        str(tmp_path / "own.keras"),
    ]
    command_line.main(["predict", *words, "--checkpoint", "resnext29/cifar10"])
    printed = capsys.readouterr().out
    assert f"{best:.1%}" in printed


def test_command_line_takes_what_training_wrote(least, tmp_path):
    least.save(tmp_path / "model.keras")
    options = {"test_size": 32, "sizes": [24], "test_resize": None}
    options |= {"model": "resnext29", "weights": "cifar10"}
    result = {"options": options, "classes": list("abcdefghij")}
    (tmp_path / "result.json").write_text(json.dumps(result))
    pytest.importorskip(PACKAGES["onnx"], reason="a runtime is missing")
    command = ["export", str(tmp_path / "model.keras"), "--out", str(tmp_path)]
    command_line.main([*command, "--format", "onnx"])
    # What stands in an artifact is what its pictures get.
    facts = facts_in_onnx(tmp_path / "model.onnx")
    assert facts["labels"] == list("abcdefghij")
    assert (facts["resize"], facts["crop"]) == (32, 32)
    assert facts["checkpoint"] == f"resnext29/{tmp_path.name}"
    assert facts["licence"] == CHECKPOINTS["resnext29", "cifar10"].licence


@pytest.mark.slow
def test_command_line_writes_all_that_exist(least, tmp_path, capsys):
    for package in PACKAGES.values():
        pytest.importorskip(package, reason="a runtime is missing")
    least.save(tmp_path / "small.keras")
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "small.keras"), "--out", str(out)]
    command += ["--format", "all", "--precision", "float16", "int8"]
    with pytest.raises(SystemExit) as end:
        command_line.main(command)
    assert end.value.code == 2 and not out.exists()
    assert "Received: --calibration None" in capsys.readouterr().err
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in formats.PICTURES:
        shutil.copy(picture, pictures)
    command_line.main([*command, "--calibration", str(pictures)])
    assert {path.name for path in out.iterdir()} == {
        "float16",
        "model.float16.onnx",
        "model.int8.onnx",
        "model.float16.tflite",
        "model.int8.tflite",
        "openvino.float16",
        "openvino.int8",
    }
    lines = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert lines[0].count("|") == 8
    cells = [line.split(" | ")[1:3] for line in lines[2:]]
    assert [(name.split()[0], precision) for name, precision in cells] == [
        ("TensorFlow", "float16"),
        ("ONNX", "float16"),
        ("ONNX", "int8"),
        ("LiteRT", "float16"),
        ("LiteRT", "int8"),
        ("OpenVINO", "float16"),
        ("OpenVINO", "int8"),
    ]


def test_command_line_names_of_float32_stay():
    place, out = exporting.place, pathlib.Path("out")
    assert place(out, "saved_model", "float32") == out
    assert place(out, "saved_model", "bfloat16") == out / "bfloat16"
    assert place(out, "onnx", "float32") == out / "model.onnx"
    assert place(out, "openvino", "float32") == out / "openvino"
    assert place(out, "onnx", "int8") == out / "model.int8.onnx"
    file = pathlib.Path("net.onnx")
    assert {place(file, "onnx", p) for p in ("float32", "int8")} == {file}


def test_command_line_has_every_format_and_precision():
    names = list(formats.FORMATS)
    assert names == list(arguments.FORMATS)
    assert names == list(PACKAGES) == list(RUNTIMES) == list(FACTS)
    kinds = formats.FORMATS.values()
    precisions = {p for kind in kinds for p in kind.precisions}
    assert set(arguments.PRECISIONS) == precisions
    page = (ROOT / "docs/export.md").read_text("utf-8")
    assert all(f"\n| `{name}` |" in page for name in names)


def named(model, **options):
    usual = dict(weights="imagenet", accept_noncommercial=False)
    usual |= dict(classes=None, checkpoint=None) | options
    return argparse.Namespace(model=str(model), **usual)


def test_networks_have_random_weights():
    model, row = networks.load(named("resnext29", weights="random"))
    assert row.architecture == "resnext29"
    assert model.input_shape == (None, 32, 32, 3)
    transform = eval_transform(row)
    scores = model(np.stack([transform(path) for path in formats.PICTURES]))
    assert np.asarray(scores).max() > 0.3  # a fresh one: 0.12
    assert not np.any(model.get_layer("conv1_bn").moving_mean == 0)


def test_networks_have_the_preprocessing_of_their_training(
    least, tmp_path, monkeypatch
):
    least.save(tmp_path / "small.keras")
    arguments = named(tmp_path / "small.keras", weights=None)
    assert networks.load(arguments)[1] is None
    file = tmp_path / "result.json"
    for content in ("[]", "no json", '{"options": {"seed": "0"}}'):
        file.write_text(content)
        assert networks.load(arguments)[1] is None
    options = {"test_size": None, "sizes": [24, 32], "test_resize": 36}
    options |= {"model": "resnext29", "weights": None}
    names = list("abcdefghij")
    file.write_text(json.dumps({"options": options, "classes": names}))
    model, row = networks.load(arguments)
    assert (row.resize, row.crop) == (36, 32)
    assert model.output_shape == (None, 10)
    _, row = networks.load(arguments, resize=40)
    assert (row.resize, row.crop) == (40, 32)
    arguments.checkpoint = "resnet50/imagenet1k_v2"
    row = networks.load(arguments)[1]
    assert (row.resize, row.crop, row.labels) == (232, 224, tuple(names))
    # Weights are no other ones by another preprocessing.
    assert (row.tag, row.licence) == (tmp_path.name, "unknown")
    # The same for the weights alone, which train.py writes, too.
    shallow = dataclasses.replace(ARCHITECTURES["resnext29"], depths=(1, 1, 1))
    monkeypatch.setitem(ARCHITECTURES, "resnext29", shallow)
    net = keras_resnext.ResNeXt29(weights=None, classes=3, groups=2)
    keras_resnext.weights.save(net, tmp_path / "weights.safetensors")
    options = dict(weights=tmp_path / "weights.safetensors", classes=3)
    model, row = networks.load(named("resnext29", **options))
    assert row.crop == 32 and model.output_shape == (None, 3)


def test_networks_of_any_licence():
    given = dict(weights="cifar10", accept_noncommercial=True)
    model, row = networks.load(named("resnext29", **given))
    assert row.tag == "cifar10" and model.name == "resnext29"
    tag = dict(weights="fb_wsl_ig1b_ft_in1k")
    with pytest.raises(ValueError, match="accept_noncommercial=True"):
        networks.find(named("resnext101_32x8d", **tag))
    file, row = networks.find(
        named("resnext101_32x8d", accept_noncommercial=True, **tag)
    )
    assert file is None and not row.commercial


# --- Bad input ---------------------------------------------------------------


def text(tree):
    return {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "coreml"}, "`format` must be one of saved_model, onnx, "),
        (
            {"format": "openvino", "precision": "bfloat16"},
            "`precision` must be one of float32, float16, int8 for openvino",
        ),
        (
            {"format": "litert", "precision": "int8"},
            "int8 needs pictures .* Received: calibration=None. Pass a folder",
        ),
        ({"version": 0}, "`version` must be a positive integer"),
        ({"format": "fastest", "batch": 0}, "`batch` must be a positive"),
        ({"format": "fastest", "top": 0}, "`top` must be a positive"),
        ({"format": "fastest", "version": 3}, "`version` must be left out"),
        ({"format": "fastest", "max_loss": -1}, "`max_loss` must be a perc"),
        ({"format": "fastest", "precision": "int4"}, "`precision` must be so"),
        ({"top": 0}, "`top` must be a positive integer"),
        ({"labels": ["a"]}, "`labels` needs a `checkpoint`"),
        *(
            ({"checkpoint": row(32, 10), "labels": labels}, message)
            for labels, message in (
                (dict.fromkeys("abcdefghij"), "the model's 10 classes"),
                ("abcdefghij", "the model's 10 classes.*'abcdefghij'"),
                (list("abc"), "the model's 10 classes.*'3 of them'"),
                (list(range(10)), "must be names of one line each"),
                (["a\tb"] * 10, "must be names of one line each"),
            )
        ),
        (
            {"checkpoint": "resnext50_32x4d", "labels": list("abcdefghij")},
            "must take images of 288x288 pixels.*input_shape=.32, 32, 3",
        ),
        *(
            ({"calibration": nothing}, "`calibration` must be one picture or m")
            for nothing in (
                *([], 5, np.zeros((0, 32, 32, 3))),
                {"images": np.full((2, 32, 32, 3), np.nan).tolist()},
            )
        ),
        *(
            ({"calibration": path}, "must be a folder of .*Pass one picture as")
            for path in (formats.PICTURES[0], "nowhere", "pictures.npz")
        ),
        (
            {"calibration": np.zeros((2, 8, 8, 3))},
            r"must be inputs \[\(32, 32, 3\)\], as .*calibration_shapes=",
        ),
    ],
)
def test_bad_arguments(small, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export(small, tmp_path / "artifact", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", formats.FORMATS)
def test_outputs_that_are_one_or_the_input(format, small, tmp_path):
    pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
    scores = small.output
    outputs = {"a": scores, "b": scores, "pictures": small.input}
    model = keras.Model(small.input, outputs)
    report = export(model, tmp_path / "artifact", format)
    assert report.max_difference < 1e-4


def test_no_output_hides_another_ones_nan(tmp_path):
    x = keras.Input((32, 32, 3))
    y = keras.layers.Conv2D(4, 3, activation="relu", bias_initializer="ones")(x)
    large = y * 300.0 * 300.0  # infinite in sixteen bits
    model = keras.Model(
        x, {"a": keras.layers.Dense(3)(y), "b": large / (large + 1.0)}
    )
    with pytest.raises(ValueError, match=r"must be within .*difference=nan"):
        export(model, tmp_path / "served", precision="float16", tolerance=9)
    assert not (tmp_path / "served" / "1").exists()


def test_pictures_that_memory_does_not_hold(least, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_MOST", 4 * 4 * 32 * 32 * 3)
    pictures = [formats.PICTURES[0]] * 5
    with pytest.raises(ValueError, match=r"must be 4 pictures .*pictures=5"):
        preparing.job(least, None, None, 5, pictures, 10**6)


def test_each_input_has_its_own_numbers():
    levels = keras.Input((8, 8, 3), dtype="uint8", name="levels")
    numbers = keras.Input((8, 8, 3), name="numbers")
    y = keras.ops.cast(levels, "float32") + numbers
    model = keras.Model([levels, numbers], keras.layers.Flatten()(y))
    arrays = {
        "levels": np.full((2, 8, 8, 3), 99.7, "float32"),
        "numbers": np.full((2, 8, 8, 3), 0.4, "float32"),
    }
    job, _, _ = preparing.job(model, None, None, 5, arrays, 10**6)
    assert (job.calibration["levels"] == 100).all()
    assert (job.calibration["numbers"] == np.float32(0.4)).all()
    assert (job.samples["levels"] == 100).all()
    # The packaged photographs: as they are, and normalised.
    job, _, _ = preparing.job(model, None, None, 5, None, 10**6)
    assert job.samples["levels"].max() > 200
    assert -3 < job.samples["numbers"].min() < 0
    assert job.samples["numbers"][:4].max() < 3


def test_what_normalises_twice_is_told(least, tmp_path):
    x = keras.Input((32, 32, 3))
    scale = keras.layers.Rescaling(1 / 255, name="scale")
    model = keras.Model(x, least(scale(x)))
    report = export(model, tmp_path / "float", checkpoint=row(32, 10))
    assert "again by the layer scale. If" in "".join(report.notes)
    whole = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(whole, least(scale(whole)))
    report = export(model, tmp_path / "whole", checkpoint=row(32, 10))
    assert "again by" not in "".join(report.notes)


def test_own_classes_and_limit_of_pixels(least, tmp_path):
    *_, pooled, _ = (layer.output for layer in least.layers)
    model = keras.Model(least.input, keras.layers.Dense(3, "softmax")(pooled))
    with pytest.raises(
        ValueError, match="`labels` must name the model's 3 classes"
    ):
        export(model, tmp_path / "a", checkpoint=row(32, 10))
    pixels = [tf.io.decode_jpeg(data) for data in jpegs()]
    limit = max(np.prod(image.shape[:2]).item() for image in pixels)
    names = ["ant", "bee", "fly"]
    options = {"checkpoint": row(32, 10), "max_pixels": limit, "labels": names}
    report = export(model, tmp_path / "a", **options)
    large = io.BytesIO()
    Image.new("RGB", (limit // 500, 501)).save(large, "PNG")
    answer = classify(report.path, [jpegs()[0], large.getvalue()])
    assert sorted(label.decode() for label in answer["labels"][0]) == names
    fine, error = (e.decode() for e in answer["errors"])
    assert not fine and f"of at most {limit:,} pixels" in error
    maps = keras.Model(least.input, least.layers[1].output)
    with pytest.raises(ValueError, match="A model of classes is required"):
        export(maps, tmp_path / "b", checkpoint=row(32, 10))


def test_models_that_cannot_be_exported(small, tmp_path):
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="must be a functional or sequential"):
        export(Own(), tmp_path / "a")
    inputs = keras.Input((3, 8, 8))
    pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_first")
    first = keras.Model(inputs, pooled(inputs))
    with pytest.raises(ValueError, match="must have its channels last"):
        export(first, tmp_path / "a")
    x = keras.Input((8, 8, 3))
    head = keras.layers.Dense(2)
    eight = keras.Model(x, head(x))
    head.quantize("int8")
    with pytest.raises(ValueError, match="must not have been quantised"):
        export(eight, tmp_path / "a")


@pytest.mark.parametrize("format", ["onnx", "litert", "openvino"])
def test_missing_extra(small, tmp_path, monkeypatch, format):
    monkeypatch.setitem(sys.modules, PACKAGES[format], None)
    with pytest.raises(ImportError, match=r'Run `pip install "\.\[export\]"'):
        export(small, tmp_path / "a", format)


def test_missing_quantizer(small, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="a runtime is missing")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=r"nncf is required.*pip install"):
        export(small, tmp_path / "a", "openvino", "int8", calibration=[b""])


@pytest.mark.parametrize("name", ["net.bin", "folder", "absent.onnx"])
def test_what_is_no_artifact(tmp_path, name):
    (tmp_path / "net.bin").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="An artifact must be a "):
        formats.load(tmp_path / name)


def test_errors_go_back_to_another_backend(least, tmp_path):
    """What its process on TensorFlow does; here without one."""
    least.save(tmp_path / "model.keras")
    images = np.zeros((2, 32, 32, 3), "float32")
    options = {"path": tmp_path, "format": "onnx"}
    job = [images], [np.asarray(least(images))], options
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    child.main(tmp_path)
    error = pickle.loads((tmp_path / "answer").read_bytes())
    assert type(error) is FileExistsError
    assert "must not be a folder of other things" in str(error)


def test_without_serving_api_no_warm_up(least, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    report = export(least, tmp_path)
    assert "No tensorflow-serving-api: without warm-up" in report.notes[1]
    assert not (report.path / "assets.extra").exists()


def test_a_version_is_a_number_of_ascii_digits(least, tmp_path):
    for name in ("1", "007", "\N{SUPERSCRIPT TWO}", "\u0663", "-4", "8.bin"):
        (tmp_path / name).mkdir()
    found = serving.versions(tmp_path)
    assert found == {1: tmp_path / "1", 7: tmp_path / "007"}
    assert serving.versions(tmp_path / "absent") == {}
    with pytest.raises(FileExistsError, match=r"Pass version=8 "):
        export(least, tmp_path)
    made = tmp_path / "made"
    made.mkdir()
    report = module.Report(made, "It", "float32", 1, 0, 1, 1, 1)
    one = fastest.Candidate("saved_model", "float32", report, times=[2.0])
    kept = tmp_path / "saved_model"
    (kept / "\N{SUPERSCRIPT TWO}").mkdir(parents=True)
    assert fastest._keep(one, tmp_path).path == kept / "1"


def test_existing_version_is_kept(least, tmp_path):
    export(least, tmp_path)
    before = text(tmp_path)
    for version in (None, 1):
        with pytest.raises(
            FileExistsError, match=r"'.*/1', which exists\. Pass version=2"
        ):
            export(least, tmp_path, version=version)
    assert text(tmp_path) == before
    assert export(least, tmp_path, version=2).path == tmp_path / "2"


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_folder_of_other_things_is_kept(least, tmp_path, format):
    pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="not be a folder of other"):
        export(least, tmp_path, format)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_is_no_folder_of_openvino(least, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="a runtime is missing")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(module, "folded", None)  # nothing is begun
    with pytest.raises(FileExistsError, match="must not be a file for openv"):
        export(least, tmp_path / "file", "openvino")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_tensorflow_cannot_compute_is_no_fault_of_the_disk(
    least, tmp_path, monkeypatch
):
    def fail(*_):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")

    kind = formats.FORMATS["saved_model"]
    for new in ({"write": fail}, {"load": lambda _: ("It", fail)}):
        changed = {"saved_model": dataclasses.replace(kind, **new)}
        monkeypatch.setattr(module, "FORMATS", changed)
        with pytest.raises(
            ValueError, match=r"A model is required .*shapes differ.*Nothing"
        ):
            export(least, tmp_path / "served")
        assert not (tmp_path / "served" / "1").exists()


@pytest.mark.parametrize("format", PACKAGES)
def test_unwritable_folder(least, tmp_path, format):
    pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match="a folder that can be written and has room"
    ):
        export(least, tmp_path / "file" / "artifact", format)


def test_batching_parameters_that_cannot_be_written(
    least, tmp_path, monkeypatch
):
    def write_text(path, text, encoding):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_text", write_text)
    with pytest.raises(OSError, match=r"has room.*No space left on device"):
        export(least, tmp_path / "servable")
    assert not files(tmp_path)


@contextlib.contextmanager
def disk(path, kilobytes):
    """Mounts a disk of that size at `path`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"]
    path.mkdir()
    try:
        subprocess.run([*command, path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs more rights")
    try:
        yield
    finally:
        # Lazily: an error keeps what OpenVINO has mapped there.
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("format", PACKAGES)
def test_full_disk(wide, tmp_path, format):
    pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
    with disk(tmp_path / "disk", 64):
        with pytest.raises(
            OSError, match="a folder that can be written and has room"
        ):
            export(wide, tmp_path / "disk" / "artifact", format)
        assert not files(tmp_path / "disk")


def test_full_disk_under_openvino(wide, tmp_path):
    """Its own writer fails, when all else has gone in."""
    pytest.importorskip("openvino", reason="a runtime is missing")
    report = export(wide, tmp_path / "artifact", "openvino")
    saved = export(wide, tmp_path / "servable").size
    kilobytes = (saved + report.size // 2) // 1000
    with disk(tmp_path / "disk", kilobytes):
        with pytest.raises(OSError, match=r"has room.*OpenVINO could not"):
            export(wide, tmp_path / "disk" / "artifact", "openvino")
        assert not files(tmp_path / "disk")


KILLED = """
import os, pathlib, runpy, signal, sys

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

final = pathlib.Path(sys.argv[1])
if sys.argv[2] == "swapping":
    pathlib.Path.replace = kill
with runpy.run_path(sys.argv[4])["moved"](final) as part:
    part.mkdir() if sys.argv[3] == "folder" else part.write_text("new")
    if sys.argv[2] == "writing":
        kill()
    print("ready", flush=True)
    if sys.argv[2] == "waiting":
        input()
"""


def start_export(path, moment, kind):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, path, moment, kind, swap.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("moment", ["writing", "swapping"])
def test_the_next_export_recovers_from_a_killed_one(tmp_path, kind, moment):
    path = tmp_path / "artifact"
    path.mkdir() if kind == "folder" else path.write_text("old")
    if kind == "folder":
        (path / "model.xml").write_text("old")
    before = text(tmp_path)
    with start_export(path, moment, kind) as process:
        assert process.wait() == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) > (moment == "writing")
    # One of another name, which fails.
    with pytest.raises(RuntimeError), swap.moved(tmp_path / "other"):
        assert path.exists()
        raise RuntimeError("pulled plug")
    assert text(tmp_path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_exports_at_once_leave_each_other_alone(tmp_path):
    path = tmp_path / "artifact"
    mine = tmp_path / f".mine{swap._MARK}x"  # of nobody's making
    mine.mkdir()
    with start_export(path, "waiting", "file") as other:
        assert other.stdout.readline() == "ready\n"
        with swap.moved(path) as part:
            part.write_text("mine")
        assert path.read_text() == "mine"
        other.communicate("\n")
    assert other.returncode == 0 and path.read_text() == "new"
    assert set(tmp_path.iterdir()) == {path, mine}


def test_a_version_that_another_export_wrote_first_stays(tmp_path):
    with (
        pytest.raises(FileExistsError, match=r"meanwhile\. Call again\.$"),
        swap.moved(tmp_path / "1", new=True) as late,
    ):
        late.mkdir()
        with swap.moved(tmp_path / "1", new=True) as first:
            first.mkdir()
            (first / "first").touch()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("format", ["onnx", "litert", "openvino"])
def test_old_artifact_survives(least, tmp_path, monkeypatch, format):
    pytest.importorskip(PACKAGES[format], reason="a runtime is missing")
    path = tmp_path / "artifact"
    path.mkdir() if format == "openvino" else path.write_text("old")
    if format == "openvino":
        (path / "model.xml").write_text("old")
    before = text(tmp_path)
    kind = formats.FORMATS[format]

    def wrong(path):
        return "It", lambda x: np.ones((len(x), 10))

    def interrupt(path):
        raise KeyboardInterrupt

    def pull_plug(self, target):
        raise RuntimeError("pulled plug")

    wrongly = r"What It computes must be within 1.0e-04.*another `format`"
    for load, replace, error, match in (
        (wrong, None, ValueError, wrongly),
        (interrupt, None, KeyboardInterrupt, None),
        (kind.load, pull_plug, RuntimeError, "pulled plug"),
    ):
        loads = dataclasses.replace(kind, load=load)
        with monkeypatch.context() as patch:
            patch.setitem(formats.FORMATS, format, loads)
            if replace:
                patch.setattr(pathlib.Path, "replace", replace)
            with pytest.raises(error, match=match):
                export(least, path, format)
        assert text(tmp_path) == before
        assert list(tmp_path.iterdir()) == [path]
    export(least, path, format)
    assert text(tmp_path) != before
