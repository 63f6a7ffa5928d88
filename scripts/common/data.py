"""Loads pictures for training, evaluation and explanation.

train, test = load("cifar10.npz")
train, test = load("photographs/")  # class folders, or train/ and val/
train, test = load("tfds:cifar10", data_dir="~/tensorflow_datasets")
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from keras_resnext import pillow, processor
from keras_resnext.commands import console
from keras_resnext.registry import is_line

PARTS = ("train", "test")
_NPZ = ("x_train", "y_train", "x_test", "y_test")
# Names of the parts, as the folders of many datasets have them.
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("val", "valid", "validation", "test", "testing")
_PART = re.compile(
    rf"(?<![a-z])({'|'.join(_TRAIN_FOLDERS + _TEST_FOLDERS)})(?:set)?(?![a-z])"
)
# A prepared set of pictures of many sizes is held in memory up to here.
_MOST_BYTES = 4 << 30
_MOST_CLASSES = 100_000  # ImageNet-21k has 21,841
_MANY = 10_000  # pictures; to read fewer takes seconds


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a data source.

    Attributes:
        images: Random access to pictures, each of which `eval_transform`
            takes: a uint8 array `(n, height, width, 3)`, a list of paths, or
            a sequence of encoded pictures as `bytes`.
        labels: int64 array `(n,)`.
        classes: Names of the classes, in the order of the labels.
    """

    images: Sequence
    labels: np.ndarray
    classes: list[str]


# How data without a test part is divided, unless something else is asked for.
_DIVISION = {"holdout": 0.2, "seed": 0}


def add_arguments(parser, trained=False):
    """Adds the options that `load` needs.

    Args:
        parser: A `console.Parser`.
        trained: Whether a network is there that may have been trained with a
            part of the data: see `load_test`.
    """
    add = parser.add_argument
    add("--data", required=True, help=".npz, folder or tfds:NAME")
    add(
        "--data-dir",
        help="where TensorFlow datasets are prepared\n"
        "(default: ~/tensorflow_datasets)",
    )
    texts = {
        "holdout": "share to test with, of data without a test part; 1 for all",
        "seed": "of all that is random, that share included",
    }
    for name, kind in (("holdout", console.SHARE), ("seed", console.SEED)):
        usual, text = _DIVISION[name], texts[name]
        if trained:
            text += f"\n(default: the network's training's, else {usual})"
        add(
            f"--{name}",
            type=kind,
            default=None if trained else usual,
            help=text,
        )
    add(
        "--on-corrupt",
        choices=["skip", "fail"],
        default="skip",
        help="whether to report pictures that cannot be read, or to stop",
    )


def load_test(args):
    """Returns what a trained network is tested with, and reads nothing else.

    Args:
        args: What `add_arguments` and `arguments.add_network` have read.
    """
    _divide_as_trained(args)
    (test,) = load(
        *(args.data, args.data_dir, args.holdout, args.seed),
        *(args.on_corrupt, ["test"]),
    )
    return test


def _divide_as_trained(args):
    """Sets --holdout and --seed where the command line does not.

    They are those that train.py has left in result.json beside the network,
    or its weights: its test pictures are then those that it has not seen.
    """
    model = args.model if str(args.model).endswith(".keras") else args.weights
    known, place = {}, None
    if model and os.path.isfile(model):
        place = pathlib.Path(model).with_name("result.json")
        known = _trained_division(place)
    found = _DIVISION | known
    taken = {n: v for n, v in found.items() if getattr(args, n) is None}
    vars(args).update(taken)
    words = " ".join(f"--{name} {value}" for name, value in taken.items())
    if any(value != _DIVISION[name] for name, value in taken.items()):
        print(f"Test pictures as {place} has them: {words}.", file=sys.stderr)
    elif len(taken) == len(_DIVISION) and not known and _to_divide(args.data):
        print(
            f"Test pictures are those of {words}, as no result.json says how "
            f"a training divided {args.data}. Pass its own, so that it has "
            "not seen them, or --holdout 1 for all.",
            file=sys.stderr,
        )


def _to_divide(source):
    """Tells whether `load` holds out a share of the pictures in a folder."""
    path = pathlib.Path(source)
    return bool(source) and path.is_dir() and not _divided(path)


def _trained_division(path):
    """Returns how the data of a training was divided; nothing, if unknown."""
    try:
        options = json.loads(path.read_text("utf-8"))["options"]
        return {
            "holdout": console.SHARE(options["holdout"]),
            "seed": console.SEED(options["seed"]),
        }
    except (
        *(OSError, LookupError, TypeError, ValueError, RecursionError),
        argparse.ArgumentTypeError,
    ):
        return {}  # It may be anybody's, as the network is.


def load(
    source,
    data_dir=None,
    holdout=_DIVISION["holdout"],
    seed=_DIVISION["seed"],
    on_corrupt="skip",
    parts=PARTS,
):
    """Returns the parts of a data source.

    Args:
        source: `"tfds:NAME"`; the path of an `.npz` file with x_train,
            y_train, x_test and y_test; or a folder of class folders, or of
            `train/` and `val/` (or `test/`) that hold class folders.
        data_dir: Where TensorFlow Datasets are prepared, or `None` for their
            own default.
        holdout: Share of the pictures to test with, 0..1, where the source
            has no part for that. In folders, a hash of the file's path below
            its class decides, so that every machine decides alike.
        seed: Makes another division of it.
        on_corrupt: `"skip"` reports each file of a folder that is no picture
            and leaves it out; `"fail"` raises.
        parts: Which of `PARTS` are needed; no picture of the other is read.

    Returns:
        A tuple of a `Split` for each of these, with the same `classes`.

    Raises:
        FileNotFoundError: If there is nothing at that path.
        ImportError: If tensorflow-datasets is missing.
        ValueError: If the source holds no pictures in such an order.
    """
    source = os.fspath(source)
    if not source:  # as of a variable of the shell that is not set
        raise ValueError(
            "--data must be an .npz file, a folder or tfds:NAME. Received: "
            "''. Check the path."
        )
    if source.startswith("tfds:"):
        name = source.removeprefix("tfds:")
        return _load_tfds(name, data_dir, holdout, parts)
    path = pathlib.Path(source)
    if path.is_dir():
        return _load_folder(path, holdout, seed, on_corrupt, parts)
    if not path.exists():
        raise FileNotFoundError(
            "--data must be an .npz file, a folder or tfds:NAME. Received: "
            f"{source}, which does not exist. Check the path."
        )
    return _load_npz(path, parts)


def require_apart(source, out):
    """Checks that what is written would not be among the classes.

    Raises:
        ValueError: If the folder to write to is in that of class folders.
    """
    path = pathlib.Path(source)
    if not source or not path.is_dir():
        return
    for folder in _divided(path).values() or [path]:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                "--out must not be where the class folders are, and be taken "
                f"for one. Received: {out} in {folder}. Choose another one."
            )


def digest(*splits):
    """Returns what tells these pictures, and their classes, from others.

    Of paths the last part and the file's bytes count, so that a folder may be
    moved; where there are so many files that reading them takes long, their
    sizes; of pictures that are read where they are needed, the labels.
    """
    found = hashlib.sha256()
    for split in splits:
        found.update(json.dumps(split.classes).encode())
        found.update(np.ascontiguousarray(split.labels))
        images = split.images
        if isinstance(images, np.ndarray):
            found.update(np.ascontiguousarray(images))
        elif isinstance(images, list):
            whole = len(images) < _MANY
            for image in images:
                if not isinstance(image, bytes):
                    image = _identity(pathlib.Path(image), whole)
                found.update(image)
    return found.hexdigest()[:16]


def _identity(file, whole):
    """Returns a file's name, its size and, if they are wanted, its bytes."""
    content = file.read_bytes() if whole else b""
    return os.fsencode(f"{file.name}/{file.stat().st_size}/") + content


def require_trainable(train, test):
    """Checks that there is something to learn and something to test with.

    Raises:
        ValueError: If there is one class only, if a class has no picture in
            one of the parts, or if result.json could not say its name.
    """
    classes = train.classes
    bad = [name for name in classes if not is_line(name)]
    if bad:
        raise ValueError(
            "The name of a class must be one line in UTF-8, without control "
            f"characters. Received: {bad[0]!r}. Rename its folder."
        )
    if len(classes) < 2:
        raise ValueError(
            "A classifier needs at least two classes. Received: "
            f"{f'{classes[0]} alone' if classes else 'no pictures'}. Add a "
            "class to the data."
        )
    for part, split in (("train", train), ("test", test)):
        counts = np.bincount(split.labels, minlength=len(classes))
        lacking = [classes[i] for i in np.flatnonzero(counts == 0)]
        if lacking:
            raise ValueError(
                f"Each class needs at least one picture to {part} with. "
                f"Received: none of {', '.join(lacking[:5])}"
                f"{', ...' if lacking[5:] else ''}. Add pictures, number "
                "the classes of an .npz file from 0 without gaps, or change "
                "--holdout or --seed, which divide a folder."
            )


def _load_npz(path, parts):
    if not zipfile.is_zipfile(path):  # which is what an .npz is
        raise ValueError(
            "--data must be an .npz file, a folder or tfds:NAME. Received: "
            f"{path}, which is neither. Check the path, or write one with "
            "numpy.savez."
        )
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            missing = sorted(set(_NPZ) - set(file))
            # All labels, as they tell how many classes there are.
            wanted = {"y_train", "y_test"} | {f"x_{part}" for part in parts}
            arrays = {name: file[name] for name in wanted & set(file)}
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, zlib, NumPy, and the system
        raise ValueError(
            "--data must be an .npz file that can be read. Received: "
            f"{path} ({error}). Write it again with numpy.savez."
        ) from error
    if missing:
        raise ValueError(
            f"--data must hold {', '.join(_NPZ)}. Received: {path} "
            f"without {', '.join(missing)}. Write them with numpy.savez, or "
            "unpack an archive of pictures."
        )
    images = {part: _images(path, f"x_{part}", arrays) for part in parts}
    labels = {part: _labels(path, part, arrays) for part in PARTS}
    count = max(1 + int(each.max(initial=-1)) for each in labels.values())
    classes = [str(i) for i in range(count)]
    return tuple(Split(images[n], labels[n], classes) for n in parts)


def _images(path, name, arrays):
    """Returns the pictures of one part, if they are such."""
    images = arrays[name]
    shaped = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != "uint8" or not shaped or 0 in images.shape[1:]:
        raise ValueError(
            f"{name} must be uint8 of the shape (count, height, width, "
            f"3). Received: {images.dtype} of {images.shape} in {path}. "
            "Convert it to RGB values of 0..255."
        )
    return images


def _labels(path, part, arrays):
    """Returns the labels of one part, int64, if they are such."""
    labels = arrays[f"y_{part}"]
    # Where these pictures are not needed, any number of them will do.
    count = len(arrays.get(f"x_{part}", np.atleast_1d(labels)))
    whole = np.issubdtype(labels.dtype, np.integer)
    shaped = labels.shape in ((count,), (count, 1))
    if not whole or not shaped or labels.min(initial=0) < 0:
        least = f", the least {labels.min()}" if whole and shaped else ""
        raise ValueError(
            f"y_{part} must hold an integer from 0 for each image. "
            f"Received: {labels.dtype} of {labels.shape}{least} for {count} "
            f"images in {path}. Number the classes from 0."
        )
    labels = labels.ravel()
    most = int(labels.max(initial=0))  # of unsigned ones, too
    if most >= _MOST_CLASSES:
        raise ValueError(
            f"y_{part} must number at most {_MOST_CLASSES:,} classes. "
            f"Received: {most} in {path}. Number the classes from 0, without "
            "gaps."
        )
    return labels.astype("int64")


def _load_folder(path, holdout, seed, on_corrupt, parts):
    """Returns parts of a folder of class folders."""
    if divided := _divided(path):
        folders = {part: _unwrapped(f) for part, f in divided.items()}
        train, other = (folders[part] for part in PARTS)
        advice = f"Make them, or pass {train} to hold out a share of it."
        found = {
            "train": _class_folders(train),
            "test": _class_folders(other, advice),
        }
        classes = list(found["train"])
        unknown = sorted(set(found["test"]) - set(classes))
        if unknown:
            raise ValueError(
                f"{other.name}/ must have the classes of "
                f"{train.name}/. Received: "
                f"{', '.join(unknown[:5])} in {other} alone. Rename these "
                "folders, or remove them."
            )
        for part in parts:
            sound = _sound(folders[part], found[part], on_corrupt)
            _require_pictures(folders[part], sound)
            found[part] = sound
    else:
        whole = _class_folders(path)
        classes = list(whole)
        part_of = {
            file: "test" if _share(f"{seed}/{below}") < holdout else "train"
            for name, files in whole.items()
            for file in files
            # Each picture may have a folder, and all of them the same name.
            for below in [file.relative_to(path / name).as_posix()]
        }
        needed = {
            name: [file for file in files if part_of[file] in parts]
            for name, files in whole.items()
        }
        sound = _sound(path, needed, on_corrupt)
        if set(parts) == set(PARTS):
            _require_pictures(path, sound)
        found = {
            part: {
                name: [file for file in files if part_of[file] == part]
                for name, files in sound.items()
            }
            for part in parts
        }
    return tuple(_split(found[part], classes) for part in parts)


def _divided(path):
    """Returns the folder of each part; nothing, of a folder of classes.

    Their names may have more in common, as seg_train/ and seg_test/ have.
    """
    found = _named_parts(path)
    plain = _chosen(found.pop("", {}))
    # Without another part, train/ may be a class, of trains.
    if plain and ("test" in plain or _holds_classes(plain["train"])):
        if "test" not in plain:
            name = plain["train"].name
            raise ValueError(
                f"A folder with {name}/ must have val/ or test/, too. "
                f"Received: {path}. Add one, or pass {plain['train']} to hold "
                "out a share of it."
            )
        return plain
    pairs = [
        parts
        for parts in map(_chosen, found.values())
        if "test" in parts and _holds_classes(parts["train"])
    ]
    return pairs[0] if len(pairs) == 1 else {}


def _named_parts(path):
    """Returns folders by the rest of their names, and by the word for a part.

    Capitals do not count: of Train/ the rest is "", of seg_train/ "seg_".
    """
    found = {}
    for child in sorted(path.iterdir()):
        match = _PART.search(child.name.lower())
        if match and is_class(child):
            rest = _PART.sub("", child.name.lower(), count=1)
            found.setdefault(rest, {})[match[1]] = child
    return found


def _chosen(folders):
    """Returns the folder of each part; {} where none is to train with."""
    parts = {
        part: next((folders[name] for name in names if name in folders), None)
        for part, names in (("train", _TRAIN_FOLDERS), ("test", _TEST_FOLDERS))
    }
    if parts["train"] is None:
        return {}
    return {part: folder for part, folder in parts.items() if folder}


def _holds_classes(folder):
    return any(map(is_class, folder.iterdir()))


def _unwrapped(folder):
    """Goes into a folder alone in one of its name, as archives have them."""
    inside = [child for child in folder.iterdir() if is_class(child)]
    names = [child.name.lower() for child in inside]
    wrapped = names == [folder.name.lower()] and _holds_classes(inside[0])
    return inside[0] if wrapped else folder


def is_class(path):
    """Tells whether a path is a folder that may be a class."""
    return path.is_dir() and not pillow.is_hidden(path.name)


def _split(pictures, classes):
    """Returns the `Split` of lists of paths by class."""
    pairs = [
        (str(file), label)
        for label, name in enumerate(classes)
        for file in pictures.get(name, ())
    ]
    files, labels = zip(*pairs, strict=True) if pairs else ((), ())
    return Split(list(files), np.array(labels, "int64"), classes)


def _share(name):
    """Returns a number in 0..1 that looks random and depends on the name."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return int(digest[:8], 16) / 2**32


def _class_folders(folder, advice="Make them."):
    """Returns the paths of the files in each class folder, by its name."""
    classes = {
        # Of links those that lead to no file: each is named, as what is lost.
        child.name: pillow.files_in(child, links=True)
        for child in sorted(folder.iterdir())
        if is_class(child)
    }
    if not classes:
        raise ValueError(
            "The folder must hold one folder of pictures for each class. "
            f"Received: {folder} without any. {advice}"
        )
    _require_pictures(folder, classes)
    return classes


def _require_pictures(folder, classes):
    """Checks that each class has files left."""
    for name, files in classes.items():
        if not files:
            raise ValueError(
                "Each class folder must hold pictures. Received: "
                f"{folder / name} without any. Add some, or remove the folder."
            )


def _sound(folder, classes, on_corrupt):
    """Returns those of the files in each class that are pictures."""
    files = [file for children in classes.values() for file in children]
    corrupt = _corrupt(folder, files)
    for file, fault in corrupt.items():
        if on_corrupt == "fail":
            raise ValueError(
                "All files must be pictures that Pillow can decode. Received: "
                f"{file} ({fault}). Remove it, or pass --on-corrupt skip."
            )
        print(f"Skipped: {file} ({fault})", file=sys.stderr)
    return {
        name: [file for file in children if file not in corrupt]
        for name, children in classes.items()
    }


def _corrupt(folder, files):
    """Returns those of the files that are no pictures, and what is wrong.

    Decoding a million takes long: what was sound once, and has its size and
    time of change still, is not decoded again.
    """
    marks = {str(file.relative_to(folder)): _mark(file) for file in files}
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    home = pathlib.Path(processor.keras_home(), "keras_resnext")
    memory = home / f"decoded-{name}.json"
    known = _recall(memory)
    new = [
        file
        for file, (path, mark) in zip(files, marks.items(), strict=True)
        if known.get(path) != mark
    ]
    # Pillow decodes outside of Python's lock, so threads do it in parallel.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        bar = tqdm(
            pool.map(_fault, new),
            f"Checking {folder}",
            len(new),
            unit=" pictures",
            disable=None,
        )
        faults = dict(zip(new, bar, strict=True))
    corrupt = {file: fault for file, fault in faults.items() if fault}
    if len(new) - len(corrupt) >= _MANY:
        for file in corrupt:
            del marks[str(file.relative_to(folder))]
        _remember(memory, known | marks)
    return corrupt


def _mark(file):
    """Returns what tells whether a file has changed."""
    try:
        stat = file.stat()
    except OSError:  # a link to nothing
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _recall(path):
    """Returns what was found sound before; nothing, if that is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError):
        return {}


def _remember(path, marks):
    """Writes what was found sound, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A place of its own, as several machines may do so at a time.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = pathlib.Path(folder, path.name)
            part.write_text(json.dumps(marks))
            part.replace(path)
    except OSError as error:
        print(f"To be checked again next time: {error}", file=sys.stderr)


def _fault(path):
    """Returns what is wrong with a picture, or `None`."""
    if path.is_dir():
        return "links to folders are not followed"
    try:
        pillow.decode(path, draft=(1, 1))  # JPEG: all bytes, few pixels
    except (OSError, ValueError) as error:
        reason = error.__cause__ or error
        return str(reason).partition("\n")[0] or type(reason).__name__


class _Records(Sequence):
    """Encoded pictures of a `tfds.data_source`, read where they are asked."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bytes(self.source[int(index)]["image"])


def _load_tfds(name, data_dir, holdout, wanted):
    """Returns parts of a TensorFlow Dataset; prepares it where needed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "tfds:NAME needs tensorflow-datasets and TensorFlow. Received: "
            f'{error}. Run `pip install ".[train]"` in a checkout, or pass an '
            ".npz file or a folder."
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except (
        tfds.core.DatasetNotFoundError,
        tfds.download.DownloadError,
        OSError,  # no network
        ValueError,  # no name
        AssertionError,  # must be downloaded by hand
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            "tfds:NAME must be a prepared dataset, or a known one that can be "
            f"downloaded. Received: {name!r} ({reason}). Check the name and "
            "--data-dir, or run `tfds build` where there is a network."
        ) from error
    _require_classification(name, builder.info.features)
    if "train" not in builder.info.splits:
        raise ValueError(
            "A dataset must have a part called train. Received: "
            f"{name!r} with {', '.join(builder.info.splits)} alone. Choose "
            "another one, or write its pictures into class folders."
        )
    # ImageNet's part called test has no labels: validation comes first.
    other = next((n for n in _TEST_FOLDERS if n in builder.info.splits), None)
    counts = {n: s.num_examples for n, s in builder.info.splits.items()}
    parts = [(part, counts[part]) for part in ("train", other) if part]
    if other is None:
        # Not in percent, of which a small share is none.
        kept = round(counts["train"] * (1 - holdout))
        rest = counts["train"] - kept
        parts = [(f"train[:{kept}]", kept), (f"train[{kept}:]", rest)]
    found = dict(zip(PARTS, parts, strict=True))
    return tuple(_tfds_split(builder, *found[part]) for part in wanted)


def _require_classification(name, features):
    """Raises if the features of a dataset are not pictures of named classes."""
    import tensorflow_datasets as tfds

    if not {"image", "label"} <= set(features):
        raise ValueError(
            "A dataset must have the features image and label. Received: "
            f"{name!r} with {', '.join(features)}. Choose one for "
            "classification."
        )
    label = features["label"]
    named = isinstance(label, tfds.features.ClassLabel) and label.num_classes
    if not named:
        raise ValueError(
            "The label must be a ClassLabel of known classes. Received: "
            f"{type(label).__name__} in {name!r}. Choose a dataset for "
            "classification, or write its pictures into class folders."
        )
    shape, dtype = features["image"].shape, features["image"].np_dtype
    # Of several things both are dictionaries.
    shaped = isinstance(shape, tuple) and len(shape) == 3
    if dtype != np.uint8 or not shaped or shape[2] not in (1, 3):
        dtype = getattr(dtype, "__name__", dtype)
        raise ValueError(
            "The image must be uint8 of the shape (height, width, 3), or 1 "
            f"for grey. Received: {dtype} of {shape} in {name!r}. Convert it "
            "to RGB values of 0..255, in class folders or an .npz file."
        )


def _tfds_split(builder, part, size):
    """Returns one part: decoded if it is small, else encoded pictures."""
    import tensorflow_datasets as tfds

    feature, label = (builder.info.features[n] for n in ("image", "label"))
    classes = list(label.names)
    if not size:  # which is an error to read
        return Split([], np.zeros(0, "int64"), classes)
    decoders = None
    if None in feature.shape or size * np.prod(feature.shape) > _MOST_BYTES:
        decoders = {"image": tfds.decode.SkipDecoding()}
    source = _tfds_source(builder, part, decoders)
    # Only the labels of what stays on disk are kept.
    on_disk = decoders and hasattr(source, "__getitem__")
    images, labels = [], []
    for example in tqdm(
        source, f"Reading {part}", size, unit=" pictures", disable=None
    ):
        labels.append(int(example["label"]))
        if not on_disk:
            images.append(example["image"])
    if min(labels) < 0:  # as where a contest keeps them to itself
        raise ValueError(
            "Each picture must have a label from 0. Received: "
            f"{min(labels)} in {part} of {builder.info.full_name}. Choose "
            "another dataset, or write its pictures into class folders."
        )
    if on_disk:
        images = _Records(source)
    elif not decoders:
        images = np.stack(images)
        if images.shape[-1] == 1:
            images = images.repeat(3, -1)
    return Split(images, np.array(labels, "int64"), classes)


def _tfds_source(builder, part, decoders):
    """Returns the examples of a part, with random access where there is."""
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(part, decoders=decoders)
    except NotImplementedError as error:  # no random access to TFRecord files
        # Of a share of a part, TFDS knows the number of pictures alone.
        some, whole = (
            builder.info.splits[name] for name in (part, part.partition("[")[0])
        )
        share = some.num_examples / whole.num_examples
        if decoders and share * whole.num_bytes > _MOST_BYTES:
            raise ValueError(
                "A dataset that does not fit into memory must be prepared as "
                f"array_record. Received: {builder.info.full_name} as "
                f"{builder.info.file_format}. Run `tfds convert_format`."
            ) from error
        return tfds.as_numpy(builder.as_dataset(part, decoders=decoders))
