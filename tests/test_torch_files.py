"""Files as PyTorch writes them from what people train and average."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import re
import warnings
import zipfile

import numpy as np
import pytest
from reference import TINY, draw

from keras_resnext.weights import checkpoints

torch = pytest.importorskip("torch")
torch_resnext = pytest.importorskip("benchmarks.torch_resnext")

# PyTorch's own, when it quantises and scripts.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor"
)

CLASSES = 16


class Mode(enum.Enum):
    TRAIN = 1


class Names(collections.OrderedDict):
    """A person's own kind of dictionary."""


class Callback:
    def __init__(self):
        self.best = torch.tensor(0.5)
        self.history = [Mode.TRAIN, {1, 2}]


@functools.cache
def network():
    net = torch_resnext.Net(TINY, TINY.groups, CLASSES)
    state = {name: torch.tensor(array) for name, array in draw("tiny").items()}
    net.load_state_dict(state, strict=False)
    return net


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    def save(value, **options):
        path = tmp_path / "x.pth"
        options = {
            "_use_new_zipfile_serialization": request.param,
            **options,
        }
        torch.save(value, path, **options)
        return path

    return save


def assert_network(path):
    """What is read is the network, with these values and these names."""
    arrays = checkpoints.read(path)
    arrays = {n: a for n, a in arrays.items() if "num_batches" not in n}
    expected = draw("tiny")
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def refusal(path):
    with pytest.raises(ValueError) as caught:
        checkpoints.read(path)
    message = str(caught.value)
    assert "Download it again" not in message
    return message


@functools.cache
def training_state():
    """Everything that stands beside the weights in people's files."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 3])
    net(torch.zeros(2, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "best": torch.tensor(0.5),
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "sets": ({1, 2}, frozenset("a")),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "names": Names(a=1),
        "queue": collections.deque([1, 2], 5),
        "mode": Mode.TRAIN,
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "path": pathlib.Path("runs/1"),
        "time": datetime.datetime(2026, 1, 1),
        "callback": Callback(),
        "numpy": {"array": np.arange(3), "scalar": np.float64(1)},
        "random": [
            torch.get_rng_state(),
            np.random.default_rng(0),
            np.random.RandomState(0).get_state(),
            torch.Generator().get_state(),
        ],
        "keys": {(1, 2): 3, Mode.TRAIN: 4, torch.float32: 5, b"x": 6},
        "odd": {
            "sparse": torch.eye(2).to_sparse(),
            "complex": torch.ones(2, dtype=torch.complex64),
            "meta": torch.ones(2, device="meta"),
        },
        "numbers": [2**100, -(2**3000), 1j, range(3), slice(1), 1.5, b"x"],
        "recursive": recursive(),
        "class": dict,
    }


def recursive():
    inside = []
    inside.append((inside,))
    return inside[0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_training_state(save, protocol):
    value = {"state_dict": network().state_dict(), **training_state()}
    assert_network(save(value, pickle_protocol=protocol))


@pytest.mark.parametrize("name", sorted(training_state()))
def test_each_kind_of_state_alone(save, name):
    state = network().state_dict()
    assert_network(save({name: training_state()[name], "model": state}))


def in_a_larger_model():
    class Larger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = network()
            self.register_buffer("mean", torch.zeros(3))
            self.head = torch.nn.Linear(2, 2)

    return Larger()


def averaged(net):
    return torch.optim.swa_utils.AveragedModel(net)


def parallel(net):
    return torch.nn.DataParallel(net)


WRAPPED = {
    "averaged": lambda n: averaged(n).state_dict(),
    "parallel": lambda n: parallel(n).state_dict(),
    "averaged parallel": lambda n: averaged(parallel(n)).state_dict(),
    "parallel averaged": lambda n: parallel(averaged(n)).state_dict(),
    "compiled": lambda n: {
        f"_orig_mod.{k}": v for k, v in averaged(n).state_dict().items()
    },
    "model_ema": lambda n: {"model_ema": averaged(n).state_dict(), "epoch": 1},
    "ema_state_dict": lambda n: {"ema_state_dict": n.state_dict(), "epoch": 1},
    "state_dict_ema": lambda n: {"state_dict_ema": parallel(n).state_dict()},
    "nested": lambda n: {"ema": {"model": {"state_dict": n.state_dict()}}},
    "another name": lambda n: {"swa_weights": averaged(n).state_dict()},
    "both": lambda n: {
        "model_ema": {k: v + 1 for k, v in averaged(n).state_dict().items()},
        "model": n.state_dict(),
    },
    "averaged inside": lambda n: {
        **n.state_dict(),
        "ema": {k: v + 1 for k, v in n.state_dict().items()},
    },
    "vissl": lambda n: {
        "classy_state_dict": {
            "base_model": {
                "model": {
                    "trunk": {
                        f"_feature_blocks.{k}": v
                        for k, v in n.state_dict().items()
                    },
                    "heads": {"0.clf.0.weight": torch.ones(2, 2)},
                }
            }
        }
    },
    "lightning": lambda n: {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{k}": v for k, v in n.state_dict().items()},
        "callbacks": {"EMA": {"decay": 0.9, "mode": Mode.TRAIN}},
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=1),
    },
    "backbone": lambda n: {
        f"model.backbone.{k}": v for k, v in n.state_dict().items()
    },
    "parameters": lambda n: dict(n.state_dict(keep_vars=True)),
    "default": lambda n: collections.defaultdict(int, n.state_dict()),
    "own dictionary": lambda n: {"model": Names(n.state_dict())},
    "buffers": lambda n: {
        k: v
        if isinstance(v, torch.nn.Parameter)
        else torch.nn.Buffer(v.clone())
        for k, v in n.state_dict(keep_vars=True).items()
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped(save, name):
    assert_network(save(WRAPPED[name](network())))


def test_without_checksums(save, request):
    compute = torch.serialization.get_crc32_options()
    request.addfinalizer(lambda: torch.serialization.set_crc32_options(compute))
    torch.serialization.set_crc32_options(False)
    path = save(network().state_dict())
    assert_network(path)
    if zipfile.is_zipfile(path):  # one that is there still counts
        data = path.read_bytes()
        start = data.rindex(b"PK\1\2") + 16
        path.write_bytes(data[:start] + b"\1" + data[start + 1 :])
        with pytest.raises(ValueError, match=r"Bad CRC-32.*Download it again"):
            checkpoints.read(path)


def test_what_is_outside_of_the_prefix_is_said(save):
    path = save(in_a_larger_model().state_dict())
    with pytest.warns(UserWarning, match=r"'backbone\.'.*3 others: mean, head"):
        assert_network(path)


def test_what_is_said_is_not_damage(save):
    """`python -W error` makes an error of the sentence, and says just that."""
    path = save(in_a_larger_model().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"^The file's network has names"):
            checkpoints.read(path)


@pytest.mark.parametrize("inside", [True, False])
def test_two_networks(save, inside):
    state = network().state_dict()
    two = {"student": state, "teacher": dict(state)}
    if inside:
        two = {f"{a}.{b}": c for a in two for b, c in state.items()}
    message = refusal(save(two))
    assert re.search("2 networks.*student.*teacher.*Save the one", message)


def test_how_to_save_one_of_two_where_one_has_no_prefix(save):
    state = network().state_dict()
    state |= {f"ema.{name}": tensor for name, tensor in state.items()}
    assert "name.startswith('ema.')" in refusal(save(state))


def test_another_part_with_stages_is_no_network(save):
    state = {f"encoder.{k}": v for k, v in network().state_dict().items()}
    state["decoder.layer1.0.conv1.weight"] = torch.ones(3)
    with pytest.warns(UserWarning, match="1 others: decoder"):
        assert_network(save(state))


def test_a_whole_model(save):
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for value in (model, {"model": model, "epoch": 1}):
        message = refusal(save(value))
        assert re.search(r"Sequential.*Save `model\.state_dict", message)


UNORDINARY = {
    "sparse": lambda kernel: kernel.to_sparse(),
    "quantised": lambda kernel: torch.quantize_per_tensor(
        kernel, 0.1, 0, torch.qint8
    ),
    "meta": lambda kernel: kernel.to("meta"),
    "uint16": lambda kernel: kernel.to(torch.uint16),
    "float8": lambda kernel: kernel.to(torch.float8_e4m3fn),
    "negated": lambda kernel: torch.complex(kernel, -kernel).conj().imag,
}


@pytest.mark.parametrize("name", UNORDINARY)
def test_other_kinds_of_tensors(save, name):
    state = dict(network().state_dict())
    state["conv1.weight"] = UNORDINARY[name](state["conv1.weight"])
    message = refusal(save({"model": state}))
    assert re.search(r"conv1\.weight is no ordinary tensor", message)


def test_torchscript(tmp_path):
    path = tmp_path / "x.pt"
    torch.jit.trace(network().eval(), torch.zeros(1, 3, 32, 32)).save(path)
    assert re.search(r"TorchScript.*torch\.jit\.load", refusal(path))


def test_exported_program(tmp_path):
    path = tmp_path / "x.pt2"
    images = (torch.zeros(1, 3, 32, 32),)
    torch.export.save(torch.export.export(network().eval(), images), path)
    assert re.search("exported program.*torch.export.load", refusal(path))


def test_prefixes_in_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    for prefix in ("model.", "a.b.c.", "module.module."):
        state = {f"{prefix}{k}": v for k, v in network().state_dict().items()}
        state["n_averaged"] = torch.tensor(1)
        safetensors.save_file(state, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_network(path)
