"""The benchmark's arithmetic, and each part of it at work on a small scale."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

import keras_resnext
from keras_resnext import processor
from keras_resnext.registry import ARCHITECTURES, usual

if keras.backend.backend() != "tensorflow":
    pytest.skip("the exports are TensorFlow's", allow_module_level=True)
import benchmark
from benchmarks import (
    compare,
    contenders,
    growth,
    prepare,
    serve,
    tasks,
    worker,
)
from benchmarks.engines import keras as keras_engine
from keras_resnext.export import serving
from keras_resnext.export.formats import Job

BENCHMARK = pathlib.Path(__file__).parents[1] / "scripts" / "benchmark.py"


def result(key, times, precision="float32", ours=False, **options):
    who = tasks.Contender(key, key, None, precision, ours=ours, **options)
    same = {"loaded_mb": 567.0, "peak_mb": 1234.0, "processors": 2.0}
    turns = [{"ms": t, **same} for t in times]
    return compare.Result(who, 1e-6, turns, images=8, steps=1)


# The machine is half as fast in the last two rounds.
RESULTS = [
    result("slower", [12, 12, 24, 24], ours=True),
    result("ours", [10, 10, 20, 20], ours=True),
    result("half", [5, 5, 10, 10], "bfloat16", ours=True),
    result("peer", [20, 21, 40, 42], goal=1.3),
    result("bf16 peer", [15, 15, 30, 30], "bfloat16"),
]


def test_ratios_are_those_of_neighbours():
    assert compare.ratios(RESULTS) == pytest.approx([None, None, 2, 2.05, 3])
    # The ratio of the medians would be that of two moments.
    drifting = result("a", [10, 20, 20]), result("b", [10, 10, 20])
    assert compare.paired_ratio(*drifting) == 1


def test_peer_without_ours_of_its_precision():
    alone = [RESULTS[0], RESULTS[4], result("x", [1] * 4, "int8")]
    assert compare.ratios(alone) == pytest.approx([None, 1.25, 1 / 16])
    assert compare.ratios(RESULTS[3:]) == [None, None]


def test_who_names_another_is_compared_with_that():
    pair = [
        result("file", [30] * 4),
        result("peer's file", [33] * 4, against="file"),
        result("int8", [10] * 4, "int8", against="file"),
        result("peer's int8", [12] * 4, "int8", against="int8"),
    ]
    found = compare.ratios([*RESULTS[:2], *pair])
    assert found[3:] == pytest.approx([1.1, 3, 1.2])


def test_the_machine_has_the_threads_that_worked(monkeypatch):
    """`taskset` can leave a process some of the processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4321)
    assert compare.machine()["threads"] == tasks.THREADS
    assert 4321 not in compare.machine().values()


def test_the_report_says_what_is_compared_with_what():
    assert "compared with one row" in " ".join(compare.EXPLANATION.split())


def test_table():
    lines = compare.table(RESULTS).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3] == (
        "| **ours** | float32 | 15.0 | 533.3 |  |  "
        "| 567 | 1,234 | 2.0 | 1e-06 |"
    )
    assert lines[5] == (
        "| peer | float32 | 30.5 | 262.3 | 2.05 | 1.30 "
        "| 567 | 1,234 | 2.0 | 1e-06 |"
    )


def test_summary_has_a_table_for_those_who_took_part_together():
    again = [result("slower", [9] * 4, ours=True), *RESULTS[1:]]
    sections = {"Batch 1": RESULTS, "Batch 8": again, "Train": RESULTS[:1]}
    text = compare.summary(sections)
    both, alone = text.split("\n\n")
    assert both.splitlines()[0] == (
        "| ms (ratio) | precision | Batch 1 | Batch 8 | goal |"
    )
    assert "| peer | float32 | 30.5 (2.05) | 30.5 (3.39) | 1.3 |" in both
    assert alone.splitlines()[2:] == ["| **slower** | float32 | 18.0 |  |"]


def test_report_has_all_that_was_measured(tmp_path):
    stock = result("stock", [9000] * 4)
    sections = {"Inference, batch 8": [*RESULTS, stock], "Training": RESULTS}
    compare.write(tmp_path / "c", "Title", {"flags": ["avx", "fma"]}, sections)
    text = (tmp_path / "c.md").read_text()
    assert text.startswith("# Title\n\nflags avx fma\n")
    assert "## Training\n\n| | precision" in text
    stored = json.loads((tmp_path / "c.json").read_text())
    peer = stored["sections"]["Training"][3]
    assert [turn["ms"] for turn in peer["turns"]] == [20, 21, 40, 42]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {
        "c.md",
        "c.json",
        "c.png",
    }


CPUINFO = """\
processor\t: 0
model name\t: AMD EPYC: 7B13
flags\t\t: fpu sse2 avx2 fma
power management:

processor\t: 1
model name\t: another
flags\t\t: fpu avx avx2 avx512f
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    "text, name, flags, told",
    [
        (CPUINFO, "AMD EPYC: 7B13", "fpu sse2 avx2 fma", ["avx2", "fma"]),
        (ARM, "a kind", "", ["asimd", "bf16"]),
        (None, "a kind", "", None),  # as on macOS and Windows
    ],
)
def test_the_processor_is_told(tmp_path, monkeypatch, text, name, flags, told):
    path = tmp_path / "cpuinfo"
    if text:
        path.write_text(text)
    files = types.SimpleNamespace(Path=lambda _: path)
    monkeypatch.setattr(processor, "pathlib", files)
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor.platform, "machine", lambda: "a kind")
    processor.facts.cache_clear()
    try:
        assert processor.name() == name
        assert processor.flags() == set(flags.split())
        found = compare.machine()
    finally:
        processor.facts.cache_clear()
    assert (found["cpu"], found.get("flags")) == (name, told)
    assert f"cpu {name}, " in compare.describe(found)


def test_other_outputs_are_not_timed():
    who = RESULTS[3].contender
    expected = np.array([[1.0, -4.0], [2.0, 3.0]])
    assert compare.check(who, expected[:1] + 0.04, expected, 0.011) == (
        pytest.approx(0.01)
    )
    for outputs in (expected + 0.05, expected * np.nan):
        with pytest.raises(ValueError, match="The outputs of peer must be wit"):
            compare.check(who, outputs, expected, 0.01)


def test_multiplications_are_counted(unallocated):
    model = growth.build(224, 32)
    gmacs = ARCHITECTURES["resnext50_32x4d"].gmacs
    assert growth.macs(model) / 1e9 == pytest.approx(gmacs, abs=0.01)
    small = keras_resnext.ResNeXt((1,), 2, input_shape=(64, 64, 3), classes=10)
    for groups, width in growth.WIDTHS.items():
        inner = groups * width
        cost = 2 * 256 * inner + 9 * inner * width
        assert cost == pytest.approx(70_000, rel=0.1), groups
    kernels = [w for w in small.weights if w.name == "kernel"]
    sides = [32, *[16] * 4, 0]
    assert growth.macs(small) == sum(
        np.prod(kernel.shape) * max(side, 1) ** 2
        for kernel, side in zip(kernels, sides, strict=True)
    )


def test_points_vary_one_thing_at_a_time():
    points = list(growth.points({"batches": [1, 2], "switches": ["none"]}))
    base = {"batches": 8, "sides": 224, "cardinalities": 32, "switches": "none"}
    assert points == [
        ("batches", base | {"batches": 1}),
        ("batches", base | {"batches": 2}),
        ("switches", base),
    ]


def test_switches_grow(unallocated):
    usual, *others = (
        {type(layer) for layer in growth.build(32, 1, switch).layers}
        for switch in growth.SERIES["switches"]
    )
    assert len(others) == 2 and all(layers - usual for layers in others)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, BENCHMARK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


# Training in processes: `test_gpu_needs_no_tensorflow`.
@pytest.mark.slow
def test_compare_measures_in_processes(tmp_path):
    pytest.importorskip("torch", reason="pip install '.[parity]'")
    answer = run(
        *("compare", "--network", "resnext29", "--groups", 2, "--side", 16),
        *("--batches", 2, "--train-batch", 0, "--rounds", 2),
        *("--seconds", 0.01, "--out", tmp_path),
        *("--only", "predict_on_batch", "torch"),
    )
    assert answer.returncode == 0, answer.stderr
    stored = json.loads((tmp_path / "compare.json").read_text())
    (rows,) = stored["sections"].values()
    assert [row["key"] for row in rows] == ["predict_on_batch", "torch"]
    for row in rows:
        assert row["difference"] < 2e-2
        assert [turn["ms"] > 0 for turn in row["turns"]] == [True] * 2
        assert row["turns"][0]["peak_mb"] > row["turns"][0]["loaded_mb"] > 50
    assert (tmp_path / "compare.png").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's, of its own export
def test_others_compute_what_pytorch_does(tmp_path, monkeypatch):
    """What the processes of `compare` read, and what they make of it."""
    for package in ("onnxscript", "onnxruntime", "tf2onnx", "torch"):
        pytest.importorskip(package, reason="pip install '.[export,parity]'")
    monkeypatch.setattr(worker, "set_up", lambda backend: None)
    monkeypatch.setattr(tasks, "THREADS", 1)
    row = dataclasses.replace(ARCHITECTURES["resnext29"], depths=(1,))
    monkeypatch.setitem(ARCHITECTURES, "resnext29", row)
    task = tasks.Task(tmp_path, "resnext29", 16, batch=2, groups=2)
    keys = ("shares_float32", "onnxruntime", "onnxruntime_torch")
    chosen = [who for who in contenders.INFERENCE if who.key in keys]
    prepare.prepare(task, [who.artifact for who in chosen])
    expected = np.load(task.expected)
    for who in chosen:
        outputs = who.make(task, **who.options)()
        assert outputs.shape == (2, 10)
        assert compare.check(who, outputs, expected, 1e-3) >= 0
    task = dataclasses.replace(task, train=True)
    prepare.prepare(task)
    (who,) = (c for c in contenders.TRAINING if c.key == "fit_dataset")
    loss = who.make(task, **who.options)()
    assert compare.check(who, loss, np.load(task.expected), 2e-2) >= 0


@pytest.mark.slow
def test_gpu_needs_no_tensorflow(tmp_path, on_jax):
    """PyTorch's side in a process: `test_compare_measures_in_processes`."""
    pytest.importorskip("torch", reason="pip install -e '.[parity]'")
    pytest.importorskip("jax")
    for name in ("tensorflow", "tf2onnx"):
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text(
            f"raise ImportError('{name} is not installed')"
        )
    first = [str(tmp_path / "without"), os.environ.get("PYTHONPATH")]
    answer = run(
        *("gpu", "--network", "resnext29", "--groups", 2, "--side", 16),
        *("--width-per-group", 8, "--batches", 2, "--train-batch", 2),
        *("--steps", 2, "--rounds", 1, "--seconds", 0.01, "--out", tmp_path),
        *("--only", "jax_float32"),
        **on_jax | {"PYTHONPATH": os.pathsep.join(filter(None, first))},
    )
    assert answer.returncode == 0, answer.stderr
    stored = json.loads((tmp_path / "gpu.json").read_text())
    for section in stored["sections"].values():
        (row,) = section
        assert row["key"] == "jax_float32"
        assert row["difference"] < 2e-2
        assert row["images_per_second"] > 0
    assert len(stored["sections"]) == 2
    asked = keras_resnext.ResNeXt29(weights=None, groups=2, width_per_group=8)
    learnt = sum(w.numpy().size for w in asked.trainable_weights)
    assert stored["parameters"] == learnt


def test_pieces_are_exchanged():
    model = keras_resnext.ResNeXt((1, 2), 2, 4, planes=16, stem="cifar")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = model.predict_on_batch(x)
    sums = keras_engine.exchanged(
        model, {keras_resnext.layers.Add: keras.layers.Add}
    )
    kinds = [type(layer) for layer in sums.layers]
    assert kinds.count(keras.layers.Add) == 3
    assert keras_resnext.layers.Add not in kinds
    np.testing.assert_allclose(sums.predict_on_batch(x), expected, 1e-4, 1e-7)
    less = keras_engine.without_groups(model)
    shapes = [tuple(layer.output.shape) for layer in model.layers]
    assert [tuple(layer.output.shape) for layer in less.layers] == shapes
    less.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(less.train_on_batch(x, np.arange(2)))
    assert not np.allclose(less.predict_on_batch(x), expected, 1e-4, 1e-7)


def test_unknown_network_is_one_sentence(tmp_path, run_here):
    words = ("compare", "--network", "vgg", "--out", tmp_path)
    answer = run_here(benchmark.main, *words)
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert "argument --network: `architecture` must be a known one." in last
    assert "Received: architecture='vgg'. Pass one of resnext50_32x4d" in last


def test_graphs_need_tensorflow(run_here, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    answer = run_here(benchmark.main, "layer")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "`layer` measures graphs of TensorFlow. Received: jax as Keras's "
        "backend. Set KERAS_BACKEND=tensorflow."
    )


@pytest.mark.slow
def test_serve_asks_from_many_clients(tmp_path):
    for package in ("grpc", "tensorflow_serving"):
        pytest.importorskip(package, reason="pip install '.[export]'")
    from keras_resnext.export import export

    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1,), 2, 4, input_shape=(32, 32, 3), classes=10, stem="cifar"
    )
    export(model, tmp_path / "served", checkpoint="resnext29/cifar10")
    answer = run(
        *("serve", tmp_path / "served", "--clients", 1, 3),
        *("--seconds", 0.2, "--out", tmp_path / "out"),
    )
    assert answer.returncode == 0, answer.stderr
    lines = (tmp_path / "out" / "serve.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[4:]]
    assert [row[:3] for row in rows] == [
        [service, signature, clients]
        for service in ("least latency", "most pictures a second")
        for signature in ("serving_bytes", "serving_default")
        for clients in ("1", "3")
    ]
    for *_, speed, median, worst in rows:
        assert float(speed) > 0 and 0 < float(median) <= float(worst)


def test_a_server_that_is_down_is_one_sentence(tmp_path, run_here):
    pytest.importorskip("tensorflow_serving", reason="pip install '.[export]'")
    server = ("--grpc", "localhost:1", "--side", 32, "--out", tmp_path)
    answer = run_here(benchmark.main, "serve", tmp_path, *server)
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("A server that answers is required. Received: UNAV")
    line = ("serve", tmp_path / "none", "--out", tmp_path)
    answer = run_here(benchmark.main, *line)
    assert answer.returncode == 1
    assert "A folder that `export` wrote as a SavedMo" in answer.stderr


def test_a_servers_pictures_have_the_models_side(
    tmp_path, run_here, monkeypatch
):
    for package in ("grpc", "tensorflow_serving"):
        pytest.importorskip(package, reason="pip install '.[export]'")
    path, asked = tmp_path / "served" / "1", []
    path.mkdir(parents=True)
    x, row = keras.Input((48, 48, 3)), usual(64, 48)
    net = keras.Model(x, keras.layers.Flatten()(x))
    job = Job(net, "float32", 48, {}, None, row, [], 5, 1)
    serving.write_facts(job.facts(), serving.facts_of(path))
    monkeypatch.setattr(
        serve, "_requests", lambda model, side: asked.append(side) or {}
    )
    line = ("serve", path.parent, "--grpc", "localhost:1", "--out", tmp_path)
    for words in ((), ("--side", 64)):
        answer = run_here(benchmark.main, *line, *words)
        assert answer.returncode == 0, answer.stderr
    assert asked == [48, 64]


def test_help_of_a_verb_says_what_it_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "layer", "--help"])
    with pytest.raises(SystemExit):
        benchmark.parse_arguments()
    assert benchmark.layer.__doc__ in capsys.readouterr().out
