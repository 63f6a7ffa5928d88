"""Networks on the Hugging Face hub: what they are of, and their files.

`huggingface_hub` downloads, resumes, verifies and caches; it works offline
from its cache, and `HF_ENDPOINT` names another server.
"""

import math
import os
import pathlib
import re

from keras_resnext import registry
from keras_resnext.weights import downloads
from keras_resnext.weights.unread import parse, printable

PREFIX = "hf://"
_NAME = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_SHA256 = re.compile("[0-9a-f]{64}")
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_SIDE = 4096  # of the pictures that a file asks for, in pixels
_MOST_CLASSES = 100_000  # ImageNet has 21,841, and a layer is as large
_MOST_LETTERS = 100  # of what messages quote
# Whose weights an old name of timm's stood for.
_OLD = re.compile("^(gluon|tv|ig|ssl|swsl)_")


def describe(name):
    """Returns what a repository says of its network, as a checkpoint.

    Args:
        name: `"hf://USER/NAME"` or `"hf://USER/NAME@REVISION"`.

    Returns:
        A `Checkpoint` with the preprocessing of timm's tests and, where the
        repository has them, the names of the classes. Its `architecture` is
        a key of `ARCHITECTURES`, if it is one of ours.

    Raises:
        ValueError: If the name or the repository's config.json is not such.
        ConnectionError: If it can't be downloaded.
        ImportError: If `huggingface_hub` is not installed.
    """
    match = _NAME.fullmatch(str(name))
    if not match:
        raise ValueError(
            "A network on the hub must be `hf://USER/NAME` or "
            f"`hf://USER/NAME@REVISION`. Received: {name!r}. Copy the name "
            "from its page."
        )
    repository, revision = match.groups()
    hub = repository if revision is None else f"{repository}@{revision}"
    path = _download(hub, _CONFIG)
    try:
        with path.open("rb") as file:
            return _checkpoint(hub, parse(file))
    except (
        *(ValueError, TypeError, KeyError),
        *(AttributeError, ArithmeticError, RecursionError),
    ) as error:
        reason = printable(f"{type(error).__name__}: {error}", 300)
        raise ValueError(
            "The config.json of a network on the hub must be one of timm's. "
            f"Received: {PREFIX}{hub} ({reason}). Pass a file of weights by "
            "its path, to the constructor of its network."
        ) from error


def fetch(hub):
    """Returns the path of a repository's weights, verified.

    Args:
        hub: The `hub` of a `Checkpoint`.

    Raises:
        ConnectionError: If they can't be downloaded.
        ValueError: If there are none, or others than the hub says.
    """
    lost = ValueError(
        f"A repository must have one of {', '.join(_WEIGHTS)}. Received: "
        f"{PREFIX}{hub}. Download its file of weights, and pass the path."
    )
    for name in _WEIGHTS:
        try:
            if path := _download(hub, name, optional=True):
                return _verified(hub, name, path)
        except ConnectionError as error:
            # Without a network, the other one may be in the cache.
            lost = lost if isinstance(lost, ConnectionError) else error
    raise lost


def _verified(hub, name, path):
    """Returns the path of a file whose SHA-256 is the one that the hub names.

    The client looks at the size alone. In its cache a file is a link to one
    that has the digest for its name; where there are no links, it is not kept.
    """
    digest = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    if not _SHA256.fullmatch(digest) or downloads.matches(path, digest):
        return path
    _delete(path)  # damaged in the cache
    path = _download(hub, name)
    if downloads.matches(path, digest):
        return path
    _delete(path)
    raise ValueError(
        f"Could not download {name}: SHA-256 {digest}, as the hub names it, is "
        f"required. Received: {PREFIX}{hub} with another one. It was deleted: "
        "call again, and if this repeats, choose another repository."
    )


def _delete(path):
    """Deletes what is damaged, for the client would not download it again."""
    path = path.resolve()
    try:
        path.unlink()
    except OSError as error:
        raise OSError(
            "A file whose SHA-256 is its name is required. Received: "
            f"'{path}', which is damaged and cannot be deleted "
            f"({error.strerror}). Delete it, or set HF_HUB_CACHE to a folder "
            "that can be written."
        ) from error


def _checkpoint(hub, config):
    """Reads what config.json says; what it leaves out is timm's default."""
    # timm's older files have all in one.
    settings = config.get("pretrained_cfg") or config

    def either(name, default):
        return settings.get(f"test_{name}") or settings.get(name) or default

    old = _OLD.sub("", str(config["architecture"]))
    try:
        architecture = registry.find_architecture(old).name
    except ValueError:
        architecture = old  # perhaps one that shows in its arrays
    channels, height, width = map(int, either("input_size", (3, 224, 224)))
    pct = float(either("crop_pct", 0.875))
    labels = config.get("label_names") or settings.get("label_names")
    row = registry.Checkpoint(
        architecture=architecture,
        tag=str(settings.get("tag") or "hub").lower(),
        url=None,
        sha256=None,
        licence=str(
            settings.get("license") or config.get("license") or "unknown"
        ).lower(),
        source=f"https://huggingface.co/{hub.partition('@')[0]}",
        resize=math.floor(height / pct),
        crop=height,
        interpolation=settings.get("interpolation") or "bicubic",
        mean=tuple(map(float, settings.get("mean") or registry.IMAGENET_MEAN)),
        std=tuple(map(float, settings.get("std") or registry.IMAGENET_STD)),
        top1=None,
        top5=None,
        classes=int(
            config.get("num_classes", settings.get("num_classes", 1000))
        ),
        hub=hub,
        labels=None if labels is None else _in_order(labels),
        crop_mode=settings.get("crop_mode") or "center",
    )
    for fault, found in (
        (f"{channels} channels", channels != 3),
        (
            f"pictures of {width}x{height} pixels",
            height != width or not 0 < height <= MAX_SIDE,
        ),
        (f"crop_pct {pct}", not height <= row.resize <= MAX_SIDE),
        *_faults(row),
        *_foreign(config, row.classes),
    ):
        if found:
            raise ValueError(f"it has {fault}")
    for text in (old, row.tag, row.licence):
        if not text.isprintable() or len(text) > _MOST_LETTERS:
            raise ValueError(f"it has the name {printable(text)}")
    return registry.check_preprocessing(row)


def _in_order(labels):
    """Returns the names of the classes: of a list, or of a dictionary by id."""
    if isinstance(labels, dict):
        ids = [str(i) for i in range(len(labels))]
        if labels.keys() != set(ids):
            raise ValueError(
                "it has `label_names` by ids that are not 0, 1 and so on"
            )
        labels = [labels[i] for i in ids]
    if not isinstance(labels, list):
        raise ValueError("it has `label_names` that are no list")
    return tuple(labels)


def _faults(row):
    """Yields what a stranger's checkpoint may have, and whether it has."""
    yield f"{row.classes} classes", not 1 <= row.classes <= _MOST_CLASSES
    labels = row.labels or ()
    yield (
        f"{len(labels)} names for {row.classes} classes",
        row.labels is not None and len(labels) != row.classes,
    )
    yield (
        "names of classes that are no text of one line",
        not all(isinstance(x, str) and registry.is_line(x) for x in labels),
    )


def _foreign(config, classes):
    """Yields what no network of this package has, and whether it is there."""
    yield (
        "a `global_pool` that is not 'avg'",
        config.get("global_pool", "avg") != "avg",
    )
    # timm 1.0.31 writes these always.
    usual = {"in_chans": 3, "num_classes": classes, "global_pool": "avg"}
    foreign = {
        key: value
        for key, value in (config.get("model_args") or {}).items()
        if key not in _TRAINING and value != usual.get(key)
    }
    yield (
        f"`model_args` {foreign}, which no network of this package has",
        bool(foreign),
    )


# Arguments of timm's networks that change nothing after training.
_TRAINING = ("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last")


def _download(hub, name, optional=False):
    """Returns the path of a file; `None` if it is optional and not there."""
    try:
        import huggingface_hub as client
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            "The package huggingface_hub is required for networks of the hub. "
            f"Received: {PREFIX}{hub} ({error}). Run `pip install "
            '"keras_resnext[hub]"`, or `pip install ".[hub]"` in a checkout.'
        ) from error
    repository, _, revision = hub.partition("@")
    try:
        return pathlib.Path(
            client.hf_hub_download(repository, name, revision=revision or None)
        )
    except Exception as error:  # its HTTP library, which changes, has its own
        if (
            optional
            and isinstance(error, errors.EntryNotFoundError)
            and not isinstance(error, errors.LocalEntryNotFoundError)
        ):
            return None
        if getattr(error, "errno", None):
            raise  # of the disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = next(
            text
            for kind, text in (
                (errors.LocalEntryNotFoundError, _OFFLINE),
                (errors.GatedRepoError, _GATED),
                (errors.RepositoryNotFoundError, _UNKNOWN),
                (errors.RevisionNotFoundError, _UNKNOWN),
                (errors.EntryNotFoundError, "Choose one that has it."),
                (Exception, "Call again: what has been received stays."),
            )
            if isinstance(error, kind)
        )
        option = revision and f" --revision {revision}"
        raise ConnectionError(
            f"Could not download {name}, which must be on the hub or in its "
            f"cache. Received: {PREFIX}{hub} ({status or type(error).__name__}"
            f"). {advice.format(repository, option)}"
        ) from error


_OFFLINE = (
    "Connect and call again, or bring it into the cache where there is a "
    f"network, by `hf download {{}} {_CONFIG} {_WEIGHTS[0]}{{}}`."
)
_GATED = (
    "Ask for access on https://huggingface.co/{}, and log in with `hf auth "
    "login`."
)
_UNKNOWN = (
    "Check the name and the revision; if it is private, log in with `hf auth "
    "login`."
)
