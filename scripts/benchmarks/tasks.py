"""What all contenders get, and what they read of it.

`prepare` has written the files of a task's folder.
"""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable

import numpy as np

from common.threads import THREADS  # noqa: F401, for the engines
from keras_resnext.registry import ARCHITECTURES

LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Task:
    """What all contenders of a comparison get.

    Attributes:
        folder: Where `prepare` put weights, images, logits and artifacts.
        network: Name of a row of `keras_resnext.registry.ARCHITECTURES`.
        side: Of the images, in pixels.
        batch: Images in one call or one step.
        train: Whether to train rather than to classify.
        clients: Threads that call at the same time.
        steps: Of training in one call.
        groups: Of the network, or `None` for the architecture's.
        width_per_group: The same.
    """

    folder: pathlib.Path
    network: str
    side: int
    batch: int
    train: bool = False
    clients: int = 1
    steps: int = 4
    groups: int | None = None
    width_per_group: int | None = None

    @property
    def images_per_call(self):
        """Number of images that one call works on."""
        return self.batch * (self.steps if self.train else self.clients)

    @property
    def expected(self):
        """The file of what PyTorch computes."""
        return self.folder / ("losses.npy" if self.train else "logits.npy")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        key: Name for the command line.
        name: Name for tables.
        make: From a `Task` and `options` to the function to be timed.
        precision: Type in which it computes.
        options: Keyword arguments of `make`.
        ours: Whether it is this package's.
        goal: Ratio that is wanted, if any: of a peer's time to ours, or of
            our float32's to that of fewer bits.
        artifact: Format and precision of the file that it reads, if any; the
            formats of `prepare.PEERS` are PyTorch's.
        backend: Keras's, in its process.
        against: Key of the one that it is compared with, or `None` for the
            fastest of ours in its precision.
    """

    key: str
    name: str
    make: Callable
    precision: str = "float32"
    options: dict = dataclasses.field(default_factory=dict)
    ours: bool = False
    goal: float | None = None
    artifact: tuple[str, str] | None = None
    backend: str = "tensorflow"
    against: str | None = None


def versions():
    """Returns the version of each package that may take part."""
    found = {}
    for package in (
        "keras",
        "tensorflow",
        "jax",
        "torch",
        "onnxruntime",
        "openvino",
        "ai-edge-litert",
        "nncf",
    ):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def artifact(task, format, precision):
    """Returns where the file in that format and precision is."""
    path = task.folder / f"{format}-{precision}"
    return path / "1" if format == "saved_model" else path


def network(task):
    """Returns the row of the registry, with the task's groups and width."""
    row = ARCHITECTURES[task.network]
    return dataclasses.replace(
        row,
        groups=task.groups or row.groups,
        width_per_group=task.width_per_group or row.width_per_group,
    )


def images(task, count=None):
    """Returns as many of the images as there are in a batch, or `count`."""
    return np.load(task.folder / "images.npy")[: count or task.batch]


def steps(task):
    """Returns images and labels of one training call."""
    inputs = np.concatenate([images(task)] * task.steps)
    return inputs, np.arange(len(inputs)) % network(task).classes
