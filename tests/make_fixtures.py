"""Writes the files of `tests/fixtures` with real PyTorch and Keras.

    pip install torch safetensors keras
    KERAS_BACKEND=torch python tests/make_fixtures.py

torch_zip.pth, torch_legacy.pth and tiny.safetensors hold one state dict of
every kind of tensor, tiny.keras and tiny.weights.h5 one model. `arrays` and
`keras_arrays` are what a reader must return, so that the tests need neither
PyTorch nor stored values. training.pth holds `network_arrays` as the average
of a training, whose state stands beside it. The net.* files hold the smallest
whole network, `reference.draw("tiny")`.
"""

import argparse
import collections
import datetime
import pathlib

import numpy as np
from reference import draw

FOLDER = pathlib.Path(__file__).parent / "fixtures"


def arrays():
    """Returns the values of the fixtures, name to array, in their order."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype("float32")

    return {
        "conv1.weight": normal(8, 3, 7, 7),
        "bn1.weight": normal(8),
        "bn1.bias": normal(8),
        "bn1.running_mean": normal(8),
        "bn1.running_var": normal(8) ** 2,
        "bn1.num_batches_tracked": np.array(7, "int64"),
        "layer1.0.conv2.weight": normal(8, 2, 3, 3),
        "fc.weight": normal(5, 8),
        "fc.bias": normal(5),
        "transposed": normal(3, 4),
        "strided": normal(3, 2),
        "shared.a": normal(4),
        "shared.b": normal(4),
        "half": normal(6).astype("float16"),
        # Eighths below 16 have no more than the 8 bits of bfloat16.
        "bfloat16": rng.integers(-127, 128, (2, 3)).astype("float32") / 8,
        "double": rng.normal(size=3),
        "bytes": np.arange(5, dtype="uint8"),
        "flags": np.array([True, False, True]),
        "empty": normal(0, 3),
    }


def network_arrays():
    """Returns those of `arrays` that have names of a network."""
    found = arrays()
    names = [name for name in found if "." in name and "shared" not in name]
    return {name: found[name] for name in names}


def save_training():
    import torch

    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 3])
    average = {"n_averaged": torch.tensor(5)}
    for name, array in network_arrays().items():
        average[f"module.model.{name}"] = torch.tensor(array)
    value = {
        "model_ema": average,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(path=pathlib.PurePosixPath("a"), seed=2**99),
        "kinds": [torch.float16, torch.device("cpu"), torch.Size([1]), dict],
        "sets": ({1, 2}, frozenset("a"), np.float64(1), np.arange(3)),
        "default": collections.defaultdict(list, a=[1]),
        "time": datetime.date(2026, 1, 1),
        "random": torch.get_rng_state(),
        "sparse": torch.eye(2).to_sparse(),
    }
    torch.save(value, FOLDER / "training.pth", pickle_protocol=4)


def tensors():
    """Returns the same values as PyTorch tensors of every awkward kind."""
    import torch

    state = {name: torch.tensor(array) for name, array in arrays().items()}
    state["conv1.weight"] = torch.nn.Parameter(state["conv1.weight"])
    state["transposed"] = state["transposed"].T.contiguous().T
    wide = torch.zeros(3, 5)
    wide[:, 1::2] = state["strided"]
    state["strided"] = wide[:, 1::2]
    shared = torch.cat([state["shared.a"], state["shared.b"]])
    state["shared.a"], state["shared.b"] = shared[:4], shared[4:]
    state["bfloat16"] = state["bfloat16"].bfloat16()
    return state


def keras_arrays():
    """Returns the values of the Keras fixtures."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv1_conv/kernel": (3, 3, 3, 4),
        "conv1_bn/gamma": (4,),
        "conv1_bn/beta": (4,),
        "conv1_bn/moving_mean": (4,),
        "conv1_bn/moving_variance": (4,),
        "predictions/kernel": (4, 2),
        "predictions/bias": (2,),
    }
    return {n: rng.random(s).astype("float32") for n, s in shapes.items()}


def save_keras():
    import keras

    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv1_conv")(inputs)
    x = keras.layers.BatchNormalization(name="conv1_bn")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = keras.layers.Dense(2, name="predictions")(x)
    model = keras.Model(inputs, x, name="tiny")
    model.set_weights(list(keras_arrays().values()))
    model.save(FOLDER / "tiny.keras")
    model.save_weights(FOLDER / "tiny.weights.h5")


def save_net():
    import safetensors.torch
    import torch

    net = {name: torch.tensor(array) for name, array in draw("tiny").items()}
    net["bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(net, FOLDER / "net_zip.pth")
    torch.save(
        {"state_dict": {f"module.{name}": net[name] for name in net}},
        FOLDER / "net_legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    safetensors.torch.save_file(net, FOLDER / "net.safetensors")


def main():
    import safetensors.torch
    import torch

    FOLDER.mkdir(exist_ok=True)
    save_keras()
    save_net()
    save_training()
    # A module's state dict carries `_metadata`, which pickle stores by BUILD.
    state = torch.nn.Linear(1, 1).state_dict()
    state.clear()
    state.update(tensors())
    torch.save(state, FOLDER / "torch_zip.pth")
    torch.save(
        state,
        FOLDER / "torch_legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    safetensors.torch.save_file(
        {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        },
        FOLDER / "tiny.safetensors",
    )


if __name__ == "__main__":
    main()
