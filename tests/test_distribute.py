"""Training on several devices and machines, against one of them."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import types

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train import SHALLOW, command, keep, state

import keras_resnext
import train
from training import distribute

TESTS = pathlib.Path(__file__).parent
BATCHES, BATCH = 3, 8


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Batches, and the weights to start from: the files' paths by name."""
    folder = tmp_path_factory.mktemp("start")
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (BATCHES, BATCH))
    images = random.standard_normal((BATCHES, BATCH, 8, 8, 3), dtype="f4")
    # The halves of a batch differ, so that their statistics do.
    images[:, : BATCH // 2] *= 3
    images[np.arange(3)[:, None], np.arange(BATCH), :, :, labels] += 1
    targets = np.eye(3, dtype="f4")[labels]
    np.savez(folder / "batches.npz", images=images, labels=targets)
    keras_resnext.weights.save(network(), folder / "net.safetensors", "f4")
    return {
        "batches": folder / "batches.npz",
        "weights": folder / "net.safetensors",
    }


def network(weights=None):
    """Returns the network of replicas.py."""
    return keras_resnext.ResNeXt(
        (1,), 2, 8, True, weights, None, (8, 8, 3), None, 3, stem="cifar"
    )


def cluster():
    """Returns TF_CONFIG for each of two workers on this machine."""
    with socket.socket() as one, socket.socket() as two:
        for server in (one, two):
            server.bind(("127.0.0.1", 0))
        ports = [server.getsockname()[1] for server in (one, two)]
    workers = [f"127.0.0.1:{port}" for port in ports]
    return [
        json.dumps(
            {
                "cluster": {"worker": workers},
                "task": {"type": "worker", "index": index},
            }
        )
        for index in range(2)
    ]


@pytest.fixture
def begin():
    """Starts Python in a process of its own; none outlives the test."""
    started = []

    def begin(*command, **environment):
        # A file, as a pipe that nobody reads can fill up.
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
        started.append((process, output))
        return process

    yield begin
    for process, output in started:
        process.kill()
        process.wait()
        output.seek(0)
        print(output.read())  # which pytest shows if the test fails
        output.close()


def end(*processes):
    """Waits until all have ended, and well."""
    assert [process.wait() for process in processes] == [0] * len(processes)


def replicas(strategy, devices, start, out):
    """Returns the command line that runs replicas.py."""
    return (
        *(TESTS / "replicas.py", strategy, devices),
        *(start["batches"], start["weights"], out),
    )


def by_hand(start):
    """Returns losses and variables of two replicas, one after the other.

    Each normalises half of the batch with its own statistics. The gradients
    are averaged, and so are the moving statistics.
    """
    import tensorflow as tf

    model = network(start["weights"])
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    loss = keras.losses.CategoricalCrossentropy()
    with np.load(start["batches"]) as file:
        pairs = list(zip(file["images"], file["labels"], strict=True))
    losses = []
    for images, labels in pairs:
        before = [v.numpy() for v in model.non_trainable_variables]
        found = []
        for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
            for variable, value in zip(
                model.non_trainable_variables, before, strict=True
            ):
                variable.assign(value)
            with tf.GradientTape() as tape:
                value = loss(labels[half], model(images[half], training=True))
            gradients = tape.gradient(value, model.trainable_weights)
            statistics = [v.numpy() for v in model.non_trainable_variables]
            found.append((value, gradients, statistics))
        value, gradients, statistics = zip(*found, strict=True)
        losses.append(np.mean(value))
        optimizer.apply(
            [(a + b) / 2 for a, b in zip(*gradients, strict=True)],
            model.trainable_weights,
        )
        for variable, a, b in zip(
            model.non_trainable_variables, *statistics, strict=True
        ):
            variable.assign((a + b) / 2)
    # Keras reports the mean of all steps so far.
    means = np.cumsum(losses) / np.arange(1, 1 + len(losses))
    return means, model


def check(path, losses, model):
    """Compares what replicas.py wrote."""
    with np.load(path) as found:
        np.testing.assert_allclose(found["losses"], losses, rtol=1e-4)
        for variable in model.variables:
            np.testing.assert_allclose(
                found[variable.path],
                keras.ops.convert_to_numpy(variable),
                *(1e-3, 1e-4),
                err_msg=variable.path,
            )


tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="about tf.distribute"
)


@pytest.mark.slow
@tensorflow_only
def test_two_devices_and_two_workers(begin, start, tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in ("devices", "zero", "one")]
    processes = [begin(*replicas("mirrored", 2, start, paths[0]))]
    processes += [
        begin(*replicas("multi_worker", 1, start, path), TF_CONFIG=config)
        for path, config in zip(paths[1:], cluster(), strict=True)
    ]
    losses, model = by_hand(start)
    end(*processes)
    for path in paths:
        check(path, losses, model)


@pytest.mark.slow
@tensorflow_only
@pytest.mark.parametrize(
    "onednn, sizes", [("1", "(None, None), (8, 8)"), ("0", "(None, None),")]
)
def test_replica_without_an_image(begin, onednn, sizes):
    """Nine images in batches of four leave one, for the first of two."""
    code = f"sizes = {sizes}"
    code += """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
import keras_resnext
x = np.random.default_rng(0).normal(1, 2, (9, 8, 8, 3)).astype("float32")
y = np.arange(9) % 3
for size in sizes:
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = keras_resnext.ResNeXt(
            (1, 1), 2, 8, input_shape=(*size, 3), classes=3, stem="cifar",
            squeeze_excite=True, average_shortcut=True, anti_aliased=True,
        )
        still = keras.optimizers.SGD(0.0)
        model.compile(still, "sparse_categorical_crossentropy")
        pooled = keras.Sequential([
            keras.Input((*size, 3)),
            keras_resnext.layers.GroupedConv2D(6, 3, 2, groups=3),
            keras_resnext.layers.MaxPooling2D(3, 1),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ])
        pooled.compile("sgd", "sparse_categorical_crossentropy")
    pooled.fit(x, y, batch_size=4, verbose=0)
    for weight in pooled.weights:
        assert np.isfinite(weight.numpy()).all(), weight.path
    conv, bn = model.get_layer("conv1_conv"), model.get_layer("conv1_bn")
    maps = tf.nn.conv2d(x, conv.kernel.numpy(), 1, "SAME").numpy()
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for variable in model.variables:
        assert np.isfinite(variable.numpy()).all(), variable.path
    losses = keras.losses.sparse_categorical_crossentropy(y, model(x))
    found = model.evaluate(x, y, batch_size=4, verbose=0)
    np.testing.assert_allclose(found, losses.numpy().mean(), 1e-4)
    mean, variance = 0.0, 1.0
    for batch in (maps[:4], maps[4:8], maps[8:]):
        means, variances = [], []
        for share in (batch[:2], batch[2:]) if len(batch) > 1 else (batch,):
            means.append(0.9 * mean + 0.1 * share.mean((0, 1, 2)))
            new = share.var((0, 1, 2), ddof=1)
            variances.append(0.9 * variance + 0.1 * new)
        if len(batch) == 1:  # the other replica stays as it was
            means.append(mean)
            variances.append(variance)
        mean, variance = np.mean(means, 0), np.mean(variances, 0)
    np.testing.assert_allclose(bn.moving_mean.numpy(), mean, 1e-3, 1e-5)
    np.testing.assert_allclose(bn.moving_variance.numpy(), variance, 1e-3)
"""
    end(begin("-c", code, TF_ENABLE_ONEDNN_OPTS=onednn))


@pytest.mark.slow
@tensorflow_only
def test_workers_go_on_after_kill(begin, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (96, 8, 8, 3), dtype="uint8")
    labels = np.arange(96) % 3
    np.savez(
        tmp_path / "data.npz",
        **{"x_train": images[:80], "y_train": labels[:80]},
        **{"x_test": images[80:], "y_test": labels[80:]},
    )
    trained = keras_resnext.ResNeXt((1,), 2, 4, stem="cifar", classes=3)
    keras_resnext.weights.save(trained, tmp_path / "net.safetensors")

    def training(out, before=""):
        line = command(
            *("--data", tmp_path / "data.npz", "--out", out),
            # A new classifier alone, on features: quick.
            *("--recipe", "finetune", "--groups", 2),
            *("--weights", tmp_path / "net.safetensors"),
            *("--sizes", 8, "--epochs", 2, "--batch-size", 16),
            *("--dtype", "float32", "--save-every", 1),
            *("--strategy", "multi_worker"),
            before=SHALLOW.replace("(1, 1, 1)", "(1,)") + before,
        )
        return [begin(*line[1:], TF_CONFIG=config) for config in cluster()]

    whole = tmp_path / "whole"
    keeping, cut = keep((1, 3), whole)
    end(*training(whole, keeping))
    assert state(cut)[0]["step"] == 3
    assert not json.loads((cut / "result.json").read_text())["finished"]
    end(*training(cut))
    once = load_file(whole / "weights.safetensors")
    again = load_file(cut / "weights.safetensors")
    assert once.keys() == again.keys()
    for name, array in once.items():
        np.testing.assert_array_equal(again[name], array, name)
    log = (cut / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 2  # a header and the chief's epochs, once each


def test_batch_that_devices_cannot_share(tmp_path, monkeypatch, run_here):
    images, labels = np.zeros((30, 8, 8, 3), "uint8"), np.arange(30) % 3
    parts = {"x_train": images, "y_train": labels}
    parts |= {"x_test": images, "y_test": labels}
    np.savez(tmp_path / "data.npz", **parts)
    two = types.SimpleNamespace(replicas=2)
    monkeypatch.setattr(distribute, "choose", lambda *_: two)
    answer = run_here(
        *(train.main, "--data", tmp_path / "data.npz"),
        *("--out", tmp_path / "out", "--batch-size", "15"),
        *("--dtype", "float32", "--no-deterministic"),
    )
    assert answer.returncode == 1
    assert "--batch-size 15 for 2 devices" in answer.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config",
    [
        *("", "{}", '{"cluster": {"worker": []}}'),
        '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["b:1"]}, '
        '"task": {"type": "evaluator", "index": 0}}',
    ],
)
def test_multi_worker_needs_a_cluster(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=r"Received: (TF_CONFIG|multi_worker)"):
        distribute.choose("multi_worker")


@tensorflow_only
@pytest.mark.parametrize("name", ["mirrored", "multi_worker"])
def test_replicas_do_not_accumulate(tmp_path, run_here, name):
    images, labels = np.zeros((30, 8, 8, 3), "uint8"), np.arange(30) % 3
    parts = {"x_train": images, "y_train": labels}
    parts |= {"x_test": images, "y_test": labels}
    np.savez(tmp_path / "data.npz", **parts)
    answer = run_here(
        *(train.main, "--data", tmp_path / "data.npz", "--batch-size", 5),
        *("--out", tmp_path / "out", "--strategy", name, "--accumulate", 2),
        *("--dtype", "float32", "--no-deterministic"),
    )
    assert answer.returncode == 1
    message = f"Received: --accumulate 2 with --strategy {name}. Leave"
    assert message in answer.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@tensorflow_only
def test_the_second_phase_has_a_step_of_its_own():
    import tensorflow as tf

    # Of one worker, which needs no cluster.
    workers = object.__new__(distribute.MultiWorker)
    workers.strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x, y = np.eye(4, dtype="f4"), np.eye(2, dtype="f4")[[0, 1, 0, 1]]
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4, True)
    with workers.scope():
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)]
        )
    first, second = model.layers
    for epoch, frozen in enumerate((True, False)):
        first.trainable = not frozen
        before = first.get_weights()[0], second.get_weights()[0]
        with workers.scope():
            model.compile("sgd", "mse", metrics=["mae"])
            model.optimizer.build(model.trainable_variables)
        logs = workers.fit(
            model,
            batches,
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=1,
            callbacks=[],
        ).history
        assert set(logs) == {"loss", "mae"}
        after = first.get_weights()[0], second.get_weights()[0]
        changed = [
            not np.array_equal(*pair)
            for pair in zip(before, after, strict=True)
        ]
        assert changed == [not frozen, True]
