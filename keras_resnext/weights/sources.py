"""Where weights come from: the argument of the constructors, and its file."""

import os
import pathlib
import re

from keras_resnext import registry
from keras_resnext.weights import downloads, hub


def choose(architecture, weights, accept_noncommercial=False):
    """Turns the `weights` argument of a constructor into a source.

    Args:
        architecture: Name of an architecture, or `None` for a network that
            has no tags.
        weights: `None`, a tag, a path, `"hf://USER/NAME"` or
            `"hf://USER/NAME@REVISION"`, or a `registry.Checkpoint`.
        accept_noncommercial: Whether rows with a non-commercial licence may
            be chosen.

    Returns:
        `None`, a `Checkpoint`, or a `pathlib.Path`.

    Raises:
        ValueError: if no such tag or file is known, if what is on the hub is
            of another architecture, or if the licence needs
            `accept_noncommercial=True`.
        ConnectionError: if the hub can't be reached.
    """
    if weights is None:
        return None
    if isinstance(weights, registry.Checkpoint):
        name = f"{weights.architecture}/{weights.tag}"
        advice = "Build that network, or pass another row."
        return _row(architecture, weights, name, accept_noncommercial, advice)
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            "`weights` must be None, a tag, a path or a row of CHECKPOINTS. "
            f"Received: weights={type(weights).__name__}. Save arrays in a "
            "file and pass its path, or print the tags with `python -m "
            "keras_resnext list`."
        )
    name = os.fspath(weights)
    if name.startswith(hub.PREFIX):
        row = hub.describe(name)
        advice = (
            "If that is a ResNet or ResNeXt, load it with "
            f"`keras_resnext.from_hub({row.hub!r})`."
        )
        return _row(architecture, row, name, accept_noncommercial, advice)
    if architecture is None:
        return pathlib.Path(name)
    architecture = registry.find_architecture(architecture).name
    tag = name.lower()
    is_tag = tag == "imagenet" or (architecture, tag) in registry.CHECKPOINTS
    if not is_tag and (os.path.exists(name) or re.search(r"[/\\.]", name)):
        return pathlib.Path(name)
    return registry.resolve(architecture, name, accept_noncommercial)


def _row(architecture, row, name, accept_noncommercial, advice):
    """Returns a checkpoint that did not come of a tag, if it can fit."""
    wanted = architecture and registry.find_architecture(architecture).name
    if wanted not in (None, row.architecture):
        raise ValueError(
            f"`weights` must be a checkpoint of {wanted}. Received: "
            f"weights={name!r}, which is {row.architecture}. {advice}"
        )
    return registry.accepted(row, name, accept_noncommercial)


def locate(source):
    """Returns the path of a source's file; downloads it where needed.

    Raises:
        FileNotFoundError: if a path does not exist.
        ConnectionError: if a checkpoint can't be downloaded.
        ValueError: if the downloaded file is not the expected one.
    """
    if isinstance(source, registry.Checkpoint):
        if source.hub:
            return hub.fetch(source.hub)
        if source.url:
            return downloads.fetch(source.url, source.sha256)
        packaged = pathlib.Path(__file__).parents[1] / source.file
        own = pathlib.Path(source.file)
        source = packaged if packaged.is_file() else own
    if not source.is_file():
        advice = (
            "Check the path, or print the tags with `python -m keras_resnext "
            "list`."
        )
        if source.is_dir():
            advice = "Check the path: it is a folder. Pass a file in it."
        # Of a URL, `Path` keeps one slash.
        shown = re.sub(r"^(\w{2,}:/)", r"\1/", str(source))
        if shown != str(source):
            advice = "Download the file, and pass its path."
        raise FileNotFoundError(
            "`weights` must be None, the path of a file or, for the named "
            f"constructors, a tag. Received: weights='{shown}', which is no "
            f"file. {advice}"
        )
    return source
