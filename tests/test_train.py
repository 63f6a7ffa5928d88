"""Training: its data, recipes and batches, and the script as users run it."""

import argparse
import collections
import csv
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import types

import keras
import numpy as np
import pytest
from PIL import Image, ImageFilter
from safetensors.numpy import load_file, save_file

import explain
import keras_resnext
import train
from common import data, files
from keras_resnext import processor
from keras_resnext.commands import networks
from keras_resnext.registry import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD
from training import (
    augment,
    batches,
    board,
    distribute,
    job,
    models,
    phases,
    recipes,
    report,
    resume,
)

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
SHIPPED = pathlib.Path(keras_resnext.__file__).with_name(
    "resnext29_cifar10.safetensors"
)

QUICK = dataclasses.replace(recipes.RECIPES["quick"], batch_size=16)
# Takes TensorFlow away before the script starts, as if not installed.
BARE = 'import sys; sys.modules["tensorflow"] = None\n'
# Copies the folder, with what a kill would leave there, as soon as its state of
# that epoch and step is on disk: no run of its own has to be killed for it.
KEEP = """
import pathlib, shutil
from training import resume
def write_and_keep(run, write=resume.Run.write, **now):
    write(run, **now)
    place = run.epoch, now.get("step", run.step)
    if (place, run.path.parent) == ({}, pathlib.Path({!r})):
        shutil.copytree(run.path.parent, {!r})
resume.Run.write = write_and_keep
"""
# Leaves one block a stage of the network, where the others prove no more.
SHALLOW = """
import dataclasses
from keras_resnext.registry import ARCHITECTURES
row = ARCHITECTURES["resnext29"]
ARCHITECTURES["resnext29"] = dataclasses.replace(row, depths=(1, 1, 1))
"""
SCRIPT = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
{}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(*arguments, before=""):
    """Returns a command line; `before` is Python to run ahead of it."""
    start = ["-c", SCRIPT.format(before)] if before else []
    script = SCRIPTS / "train.py"
    return [sys.executable, *start, str(script), *map(str, arguments)]


def run(*arguments, before="", **environment):
    return subprocess.run(
        command(*arguments, before=before),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def keep(place, folder):
    """Returns Python that leaves a copy of a run's folder, and its path.

    It has what a kill would have left when the state was that of an epoch and
    a step.
    """
    copy = folder.with_name("{}-{}-{}".format(folder.name, *place))
    return KEEP.format(place, str(folder), str(copy)), copy


def assert_equal_runs(one, other):
    """Checks that two trainings have ended bit by bit alike."""
    expected, found = state(one)[1], state(other)[1]
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    name = "weights.safetensors"
    assert (other / name).read_bytes() == (one / name).read_bytes()
    for row, again in zip(log(one), log(other), strict=True):
        assert row | {"seconds": None} == again | {"seconds": None}


def state(folder):
    """Returns a run's state: what it is about, and all variables."""
    with np.load(folder / "state.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("about"))), arrays


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def arrays():
    """Images of three classes that even a small training tells apart."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = random.integers(0, 100, (96, 16, 16, 3), dtype="uint8")
    images[np.arange(96), :, :, labels] += 150
    arrays = {"x_train": images[:64], "y_train": labels[:64]}
    return arrays | {"x_test": images[64:], "y_test": labels[64:]}


@pytest.fixture(scope="module")
def archive(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def folder(arrays, tmp_path):
    """The test images in class folders, without a division in two."""
    path = tmp_path / "pictures"
    names = np.array(["red", "green", "blue"])[arrays["y_test"]]
    for i, (name, image) in enumerate(
        zip(names, arrays["x_test"], strict=True)
    ):
        (path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / name / f"{i}.png")
    return path


@pytest.fixture
def split(arrays):
    return data.Split(arrays["x_train"], arrays["y_train"], list("rgb"))


# Data


def test_a_folder_is_divided_by_its_files_names(folder, arrays):
    train_split, test_split = data.load(folder)
    assert train_split.classes == ["blue", "green", "red"]
    assert len(train_split.images) + len(test_split.images) == 32
    assert 2 <= len(test_split.images) <= 12
    held = {pathlib.Path(path).name for path in test_split.images}
    # Where the folder is, and what else is in it, plays no part.
    moved = folder.rename(folder.with_name("moved"))
    (moved / "red" / "2.png").unlink()
    _, again = data.load(moved)
    assert {pathlib.Path(p).name for p in again.images} == held - {"2.png"}
    _, other = data.load(moved, seed=1)
    assert {pathlib.Path(p).name for p in other.images} != held
    path, label = again.images[0], again.labels[0]
    assert pathlib.Path(path).parent.name == again.classes[label]


def test_a_name_that_is_not_utf_8(folder, tmp_path):
    picture = folder / "red" / "2.png"
    picture.rename(os.fsdecode(os.fsencode(folder / "red") + b"/caf\xe9.png"))
    splits = data.load(folder)
    names = [pathlib.Path(p).name for split in splits for p in split.images]
    (name,) = (name for name in names if name.startswith("caf"))
    assert os.fsencode(name) == b"caf\xe9.png" and len(names) == 32
    data.digest(*splits)
    files.write(tmp_path / "list.txt", name)
    assert (tmp_path / "list.txt").read_text() == r"caf\udce9.png"


def test_a_folder_may_have_its_own_division(folder):
    root = folder.with_name("root")
    (root / "train").mkdir(parents=True)
    for name in ("red", "green", "blue"):
        (folder / name).rename(root / "train" / name)
    with pytest.raises(ValueError, match=r"must have val/ or test/, too"):
        data.load(root)
    (root / "val" / "red").mkdir(parents=True)
    (root / "train" / "red" / "2.png").rename(root / "val" / "red" / "2.png")
    train_split, test_split = data.load(root)
    assert len(train_split.images) == 31
    assert test_split.images == [str(root / "val" / "red" / "2.png")]
    assert test_split.labels.tolist() == [2]
    (root / "val" / "red").rename(root / "val" / "pink")
    with pytest.raises(ValueError, match=r"classes of train/.*pink.*alone"):
        data.load(root)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("Train", "Test"), ("training", "validation")),
        *(("TRAINING", "Testing"), ("seg_train", "seg_test")),
        *(("Training_Set", "test_set"), ("train-images", "val-images")),
        *(("trainset", "testset"), ("train2012", "val2012")),
    ],
)
def test_parts_are_no_classes(folder, one, other):
    root = folder.with_name("root")
    (root / one).mkdir(parents=True)
    (folder / "red").rename(root / one / "red")
    folder.rename(root / other)
    with pytest.raises(ValueError, match=f"classes of {one}/.*blue, green in"):
        data.load(root)
    (root / other / "blue").rename(root / one / "blue")
    (root / other / "green").rename(root / other / "red")
    train_split, test_split = data.load(root)
    assert train_split.classes == test_split.classes == ["blue", "red"]
    assert len(train_split.images) + len(test_split.images) == 32
    assert set(test_split.labels) == {1}


def test_parts_in_folders_of_their_names(folder):
    """As some archives have them."""
    root = folder.with_name("root")
    for part in ("seg_train", "seg_test"):
        shutil.copytree(folder, root / part / part)
    for split, part in zip(
        data.load(root), ("seg_train", "seg_test"), strict=True
    ):
        assert split.classes == ["blue", "green", "red"]
        assert {pathlib.Path(p).parts[-3] for p in split.images} == {part}
    with pytest.raises(
        ValueError, match=r"--out must not be.*seg_train\. Choose"
    ):
        data.require_apart(root, root / "seg_train" / "out")


def test_valid_comes_before_test(folder):
    for name in ("train", "valid", "test"):
        shutil.copytree(folder, folder.with_name("root") / name)
    _, test_split = data.load(folder.with_name("root"))
    assert {pathlib.Path(p).parts[-3] for p in test_split.images} == {"valid"}


@pytest.mark.parametrize(
    "names",
    [
        *(("train",), ("steam_train",), ("strain", "contest", "valley")),
        *(("train_1", "test_2"), ("cat_train", "cat_test")),  # no classes below
    ],
)
def test_a_class_may_be_called_train(folder, names):
    """As of pictures of vehicles."""
    for old, new in zip(("red", "blue", "green"), names, strict=False):
        (folder / old).rename(folder / new)
        (folder / new / ".ipynb_checkpoints").mkdir()
    parts = data.load(folder)
    assert set(names) <= set(parts[0].classes)
    assert len(parts[0].classes) == 3
    assert sum(len(part.images) for part in parts) == 32


@pytest.mark.parametrize("names", [("train", "test"), ("x_train", "x_test")])
def test_test_pictures_without_classes(folder, names):
    """As of a competition: there is nothing to compare the answers with."""
    root = folder.with_name("root")
    train, test = (root / name for name in names)
    shutil.copytree(folder, train)
    shutil.copytree(folder / "red", test)
    advice = rf"Received: {test} without any\. Make them, or pass {train} to"
    with pytest.raises(ValueError, match=advice):
        data.load(root)


def test_several_pairs_of_parts_are_no_parts(folder):
    """Nothing tells which one is meant: each is a class, as its name is."""
    root = folder.with_name("root")
    names = [f"{part}_{i}" for part in ("test", "train") for i in (1, 2)]
    for name in names:
        shutil.copytree(folder, root / name)
    assert data.load(root)[0].classes == names


def test_corrupt_pictures_are_named(folder, capsys):
    whole = (folder / "red" / "2.png").read_bytes()
    (folder / "red" / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "red" / "notes.txt").write_text("no picture")
    train_split, test_split = data.load(folder)
    assert len(train_split.images) + len(test_split.images) == 31
    lines = capsys.readouterr().err.splitlines()
    skipped = [line for line in lines if line.startswith("Skipped: ")]
    assert len(skipped) == 2
    assert str(folder / "red" / "2.png") in skipped[0]
    assert str(folder / "red" / "notes.txt") in skipped[1]
    with pytest.raises(ValueError, match=r"red.2\.png \(.*Remove it"):
        data.load(folder, on_corrupt="fail")


def test_what_a_test_would_refuse_is_named_before_the_training(folder, capsys):
    Image.new("F", (8, 8)).save(folder / "red" / "float.tiff")
    Image.new("RGB", (904, 9)).save(folder / "red" / "narrow.png")
    Image.new("RGB", (8, 8)).save(folder / "red" / "program.png", "EPS")
    parts = data.load(folder)
    assert sum(len(split.images) for split in parts) == 32
    lines = capsys.readouterr().err.splitlines()
    for line, reason in zip(
        [line for line in lines if line.startswith("Skipped: ")],
        ("have no range", "904 x 9 pixels", "in none of the formats JPEG"),
        strict=True,
    ):
        assert reason in line


def test_sixteen_bits_are_scaled_in_training_too(tmp_path):
    grey = np.arange(64, dtype="uint16").reshape(8, 8) * 1024
    Image.fromarray(grey).save(tmp_path / "grey.png")
    decoded = np.asarray(batches._decoded(str(tmp_path / "grey.png")))
    assert decoded.shape == (8, 8, 3)
    np.testing.assert_array_equal(decoded[..., 1], grey >> 8)


def test_pictures_of_one_name_are_divided(folder):
    """As of patients, or of scenes, with a folder for each."""
    for path in list(folder.rglob("*.png")):
        path.with_suffix("").mkdir()
        path.rename(path.with_suffix("") / "scan.png")
    parts = data.load(folder, holdout=0.5)
    data.require_trainable(*parts)
    assert sum(len(part.images) for part in parts) == 32


def test_links_that_lead_to_no_picture_are_named(folder, capsys):
    (folder / "red" / "lost.png").symlink_to("gone.png")
    (folder / "red" / "more").symlink_to(folder / "blue")
    (folder / "red" / "same.png").symlink_to(folder / "red" / "2.png")
    parts = data.load(folder)
    assert sum(len(part.images) for part in parts) == 33
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"Skipped: {folder / 'red' / 'lost.png'} (")
    assert "No such file" in first
    assert second.startswith(f"Skipped: {folder / 'red' / 'more'} (links to")
    with pytest.raises(ValueError, match=r"lost\.png \(.*Remove it"):
        data.load(folder, on_corrupt="fail")


def test_hidden_folders_hold_no_pictures(folder, capsys):
    first = data.load(folder)
    for hidden in (
        *(folder / "red" / ".ipynb_checkpoints", folder / "__MACOSX"),
        *(folder / "red" / "@eaDir" / "2.png", folder / "lost+found"),
    ):
        hidden.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(hidden / "copy.png")
    (folder / "red" / "Thumbs.db").write_bytes(b"of Windows")
    again = data.load(folder)
    assert not capsys.readouterr().err
    assert [s.images for s in again] == [s.images for s in first]
    assert again[0].classes == first[0].classes


def test_sound_pictures_are_decoded_once(folder, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_HOME", str(folder.with_name("home")))
    monkeypatch.setattr(data, "_MANY", 1)
    (folder / "red" / "notes.txt").write_text("no picture")
    decoded, fault = [], data._fault
    monkeypatch.setattr(
        data, "_fault", lambda path: decoded.append(path.name) or fault(path)
    )
    first = data.load(folder)
    assert len(decoded) == 33
    decoded.clear()
    picture = folder / "red" / "2.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    train_split, test_split = data.load(folder)
    assert sorted(decoded) == ["2.png", "notes.txt"]
    found = {*train_split.images, *test_split.images}
    assert found == {*first[0].images, *first[1].images} - {str(picture)}
    lines = capsys.readouterr().err.splitlines()
    skipped = [line for line in lines if line.startswith("Skipped: ")]
    assert ["notes.txt" in line for line in skipped] == [True, False, True]


def test_folders_without_pictures_are_named(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold pictures.*empty without"):
        data.load(folder)
    with pytest.raises(ValueError, match="one folder of pictures for each"):
        data.load(folder / "empty")


@pytest.mark.parametrize("name", ["two\nlines", "caf\udce9", "\x1b[1mred"])
def test_names_that_nothing_can_say(split, name):
    """Evaluation would not find them in result.json, after the training."""
    split = dataclasses.replace(split, classes=["r", "g", name])
    with pytest.raises(ValueError, match=r"one line in UTF-8.*Rename") as error:
        data.require_trainable(split, split)
    assert repr(name) in str(error.value)


def test_too_little_to_learn_is_said(folder):
    for name in ("red", "green"):
        (folder / name).rename(folder.with_name(name))
    with pytest.raises(ValueError, match=r"two classes\. Received: blue alone"):
        data.require_trainable(*data.load(folder))
    (folder / "green").mkdir()
    folder.with_name("green").joinpath("0.png").rename(folder / "green/0.png")
    with pytest.raises(ValueError, match=r"none of green\. Add"):
        data.require_trainable(*data.load(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((2, 8, 8, 3))}, "x_test must be uint8"),
        ({"x_test": np.zeros((2, 8, 8), "u1")}, r"x_test.*\(2, 8, 8\)"),
        (
            {"y_test": np.zeros(3, int)},
            r"int64 of \(3,\) for 2 images",
        ),
        ({"y_test": np.array([-1, 0])}, "the least -1 for 2"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, change, message):
    images, labels = np.zeros((2, 8, 8, 3), "u1"), np.array([0, 1])
    arrays = {"x_train": images, "y_train": labels}
    arrays |= {"x_test": images, "y_test": labels} | change
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "data.npz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "file_format",
    ["array_record", pytest.param("tfrecord", marks=pytest.mark.slow)],
)
def test_tensorflow_datasets_are_read(
    tmp_path, file_format, small_training, run_here
):
    tfds = pytest.importorskip("tensorflow_datasets")
    random = np.random.default_rng(0)
    pictures = random.integers(0, 255, (16, 8, 8, 3), dtype="uint8")

    class Squares(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        SHAPE, PART, COUNT = (8, 8, 3), "train", 4

        def _info(self):
            features = {
                "image": tfds.features.Image(
                    shape=self.SHAPE, encoding_format="png"
                ),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {self.PART: self._generate_examples(range(self.COUNT))}

        def _generate_examples(self, chosen):
            for i in chosen:
                yield i, {"image": pictures[i], "label": i % 2}

    class Rectangles(Squares, skip_registration=True):
        SHAPE = (None, None, 3)

    class Tests(Squares, skip_registration=True):
        PART = "test"

    class Many(Squares, skip_registration=True):
        COUNT = 16

    for builder in (Squares, Rectangles):
        builder(
            data_dir=tmp_path, file_format=file_format
        ).download_and_prepare()
        name = f"tfds:{builder.__name__.lower()}"
        # There is no part to test with.
        parts = data.load(name, data_dir=tmp_path, holdout=0.25)
        assert [len(part.images) for part in parts] == [3, 1]
        assert parts[0].classes == ["a", "b"]
        for part in parts:
            for image, label in zip(part.images, part.labels, strict=True):
                if builder is Rectangles:  # as many sizes are: encoded
                    image = np.asarray(Image.open(io.BytesIO(image)))
                (index,) = np.flatnonzero((pictures == image).all((1, 2, 3)))
                assert label == index % 2
    Tests(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    with pytest.raises(ValueError, match="Received: 'tests' with test alone"):
        data.load("tfds:tests", data_dir=tmp_path)
    with pytest.raises(ValueError, match="Received: 'nothing'"):
        data.load("tfds:nothing", data_dir=tmp_path)
    Many(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    result = run_here(
        *(train.main, "--data", "tfds:many", "--data-dir", tmp_path),
        *("--holdout", 0.5, "--recipe", "finetune", "--sizes", 8, *HERE),
        *("--batch-size", 4, "--epochs", 1, "--out", tmp_path / "out"),
        *("--weights", "cifar10"),  # which `small_training` leaves alone
    )
    assert result.returncode == 0, result.stderr
    described = json.loads((tmp_path / "out" / "result.json").read_text())
    assert described["classes"] == ["a", "b"]
    assert described["options"]["pictures"] == [8, 8]


@pytest.fixture
def prepare(tmp_path):
    """Gives what prepares a TensorFlow dataset of four pictures."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Given(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(self.FEATURES)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, label in enumerate(self.LABELS):
                yield i, {"image": self.IMAGE, "label": label}

    def prepare(
        image=None,
        label=None,
        labels=(0, 1, 0, 1),
        shape=(8, 8, 3),
        file_format="array_record",
    ):
        Given.FEATURES = {
            "image": image or tfds.features.Image(shape=shape),
            "label": label or tfds.features.ClassLabel(names=["a", "b"]),
        }
        feature = Given.FEATURES["image"]
        Given.IMAGE, Given.LABELS = np.zeros(shape, feature.np_dtype), labels
        Given(data_dir=tmp_path, file_format=file_format).download_and_prepare()
        return "tfds:given", tmp_path

    return prepare


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8, 8, 1), "uint16"), ((8, 8, 1), "float32"), ((8, 8, 4), "uint8")],
)
def test_tensorflow_datasets_of_other_values(prepare, shape, dtype):
    tfds = pytest.importorskip("tensorflow_datasets")
    image = tfds.features.Image(
        shape=shape, dtype=np.dtype(dtype).type, encoding_format="png"
    )
    given = prepare(image, shape=shape)
    with pytest.raises(ValueError, match="must be uint8 of the") as caught:
        data.load(*given)
    assert f"Received: {dtype} of {shape} in 'given'." in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorflow_datasets_of_several_pictures_each(prepare):
    tfds = pytest.importorskip("tensorflow_datasets")
    image = tfds.features.Tensor(shape=(2, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"uint8 of \(2, 8, 8, 3\) in"):
        data.load(*prepare(image, shape=(2, 8, 8, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["Scalar", "Sequence", "Text"])
def test_tensorflow_datasets_of_other_labels(prepare, kind):
    tfds = pytest.importorskip("tensorflow_datasets")
    label, labels = {
        "Scalar": (tfds.features.Scalar(np.int64), (0, 1)),
        "Sequence": (
            tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)),
            ([0], [0, 1]),
        ),
        "Text": (tfds.features.Text(), ("a", "b")),
    }[kind]
    given = prepare(label=label, labels=labels)
    with pytest.raises(ValueError, match="must be a ClassLabel") as caught:
        data.load(*given)
    assert f"Received: {kind} in 'given'. Choose" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorflow_datasets_without_some_labels(prepare):
    given = prepare(labels=(0, 1, -1, -1))
    with pytest.raises(ValueError, match=r"from 0\. Received: -1 in train\["):
        data.load(*given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shares_of_tensorflow_datasets(prepare):
    given = prepare()
    for holdout, sizes in (
        *((0, [4, 0]), (0.001, [4, 0]), (0.125, [4, 0])),
        *((0.2, [3, 1]), (0.5, [2, 2]), (0.999, [0, 4]), (1, [0, 4])),
    ):
        parts = data.load(*given, holdout=holdout)
        assert [len(part.images) for part in parts] == sizes, holdout
        assert [len(part.labels) for part in parts] == sizes
        assert all(part.classes == ["a", "b"] for part in parts)
        if 0 in sizes:
            with pytest.raises(ValueError, match=r"Received: none of a, b\."):
                data.require_trainable(*parts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tfrecords_that_do_not_fit_into_memory(prepare, monkeypatch):
    given = prepare(file_format="tfrecord")
    (test,) = data.load(*given, holdout=0.25, parts=["test"])
    assert len(test.images) == 1
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("given", data_dir=given[1])
    one = builder.info.splits["train"].num_bytes // 4
    monkeypatch.setattr(data, "_MOST_BYTES", 2 * one)
    with pytest.raises(ValueError, match="must be prepared as array_record"):
        data.load(*given, holdout=0.25)
    # One of four fits.
    (test,) = data.load(*given, holdout=0.25, parts=["test"])
    assert len(test.images) == 1


# Batches


def _epoch(plan, epoch, first=0):
    return [
        tuple(keras.ops.convert_to_numpy(part) for part in batch)
        for batch in batches.Stream(plan).epoch(epoch, first)
    ]


ALL = dataclasses.replace(
    QUICK, augment="rand", magnitude=7, mixup=0.2, cutmix=1.0, erasing=0.5
)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
@pytest.mark.parametrize("recipe", [QUICK, ALL])
def test_a_batch_depends_on_seed_epoch_and_step_alone(split, recipe):
    plan = batches.Plan(split, recipe, 12, 0)
    whole, rest = _epoch(plan, 3), _epoch(plan, 3, first=2)
    assert len(whole) == 4
    for one, other in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    assert whole[0][0].shape == (16, 12, 12, 3)
    for other in (plan, dataclasses.replace(plan, seed=1)):
        epoch = 3 if other.seed else 4
        assert not np.array_equal(whole[0][0], _epoch(other, epoch)[0][0])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "change", [{}, {"augment": "rand"}, {"crop": "resized"}, {"repeats": 4}]
)
def test_the_form_of_a_batch_is_known_before_it_is_made(
    split, folder, change, workers
):
    recipe = dataclasses.replace(QUICK, **change)
    wide = np.zeros((64, 9, 14, 3), "uint8")
    features = np.zeros((64, 5), "float32")
    for images in (split.images, wide, features, data.load(folder)[0].images):
        labels = split.labels[: len(images)]
        some = data.Split(images, labels, split.classes)
        for worker in range(workers):
            plan = batches.Plan(some, recipe, 12, 0, worker, workers)
            made = [np.asarray(part) for part in plan.batch(0, 0)]
            forms = [(part.shape, part.dtype) for part in made]
            assert plan.forms == forms


def test_an_epoch_begins_without_a_batch(split, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the others need no shapes")
    stream = batches.Stream(batches.Plan(split, QUICK, 12, 0))
    monkeypatch.setattr(batches.Plan, "batch", lambda *_: pytest.fail("made"))
    images, targets = stream.epoch(0).element_spec
    assert images.shape.as_list() == [16, None, None, 3]  # of all sizes
    assert targets.shape == (16, 3)


def test_few_batches_are_made_ahead(split, monkeypatch):
    recipe = dataclasses.replace(QUICK, batch_size=4)
    plan = batches.Plan(split, recipe, 12, 0)
    assert batches.Stream(plan, 3).ahead == 6
    assert batches.Stream(plan, 3).threads == 3
    monkeypatch.setattr(batches, "_MOST_BYTES", 5 * 4 * 12 * 12 * 3 * 4)
    stream, made = batches.Stream(plan, 64), []
    assert (stream.ahead, stream.threads) == (5, 5)
    batch = batches.Plan.batch
    monkeypatch.setattr(
        batches.Plan,
        "batch",
        lambda plan, epoch, step: made.append(step) or batch(plan, epoch, step),
    )
    for taken, _ in enumerate(stream._generator(0, 0), 1):
        assert len(made) <= taken + 5
    assert sorted(made) == list(range(16))


def test_as_few_are_made_ahead_by_tensorflow(split, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the others use no tf.data")
    recipe = dataclasses.replace(QUICK, batch_size=2)
    stream = batches.Stream(batches.Plan(split, recipe, 12, 0), 2)
    stream.ahead = 3
    made, batch = [], batches.Plan.batch
    monkeypatch.setattr(
        batches.Plan,
        "batch",
        lambda plan, epoch, step: made.append(step) or batch(plan, epoch, step),
    )
    for taken, _ in enumerate(stream.epoch(0), 1):
        time.sleep(0.02)  # in which more could be made
        assert len(made) <= taken + 3
    assert sorted(made) == list(range(32))


def test_what_is_compiled_serves_all_epochs(split):
    plan = batches.Plan(split, ALL, 12, 0)
    later = dataclasses.replace(plan, seed=1)
    one, two, other = (
        batches.Stream(each)._finish
        for each in (plan, later, dataclasses.replace(plan, size=16))
    )
    assert one is two and one is not other


def test_targets_to_test_with_are_small(split):
    """ImageNet-21k has 21,841 classes."""
    labels = np.array([2, 0, 19_999])
    split = data.Split(split.images[:3], labels, list(map(str, range(20_000))))
    tracemalloc.start()
    _, targets = batches.Unchanged(split, QUICK)[0]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (targets.shape, targets.dtype) == ((3, 20_000), "float32")
    assert targets.argmax(1).tolist() == labels.tolist()
    assert targets.sum() == 3 and most < 10e6


def test_every_picture_comes_once_in_an_epoch(split):
    numbered = np.zeros((64, 4, 4, 3), "uint8")
    numbered += np.arange(64, dtype="uint8")[:, None, None, None]
    plain = dataclasses.replace(QUICK, crop="fit", flip=False)
    plan = batches.Plan(
        dataclasses.replace(split, images=numbered), plain, 4, 0
    )
    orders = []
    for epoch in (0, 1):
        seen, labels, _ = zip(
            *(plan.batch(epoch, step) for step in range(plan.steps)),
            strict=True,
        )
        orders.append(np.concatenate(seen)[:, 0, 0, 0].tolist())
        assert sorted(orders[-1]) == list(range(64))
        expected = split.labels[orders[-1]]
        np.testing.assert_array_equal(np.concatenate(labels), expected)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("shape", [(8, 15), (8, 13), (15, 8), (9, 8)])
def test_arrays_are_cut_to_squares_as_in_the_test(shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, *shape, 3), dtype="uint8")
    split = data.Split(images, np.arange(16) % 3, list("rgb"))
    plain = dataclasses.replace(QUICK, crop="fit", flip=False, sizes=(8,))
    plan = batches.Plan(split, plain, 8, 0)
    seen, labels, _ = plan.batch(0, 0)
    tested, targets = batches.Unchanged(split, plain)[0]
    chosen = plan._chosen(0, 0)
    np.testing.assert_array_equal(labels, targets.argmax(1)[chosen])
    np.testing.assert_allclose(
        keras_resnext.preprocess_input(seen), tested[chosen], atol=1e-5
    )


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX's seeds are of another type"
)
def test_one_thread_draws_on_torch(split, monkeypatch):
    """Its beta distributions take the generator of all threads."""
    threads = set()
    draw = keras.layers.MixUp.get_random_transformation

    def note(*args, **options):
        threads.add(threading.current_thread())
        return draw(*args, **options)

    monkeypatch.setattr(keras.layers.MixUp, "get_random_transformation", note)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    recipe = dataclasses.replace(QUICK, mixup=0.2)
    stream = batches.Stream(batches.Plan(split, recipe, 8, 0), threads=4)
    assert len(list(stream.epoch(0))) == 4
    assert threads == {threading.current_thread()}


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
@pytest.mark.parametrize(
    "mixing", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
)
def test_mixed_targets_say_what_is_in_the_picture(mixing):
    levels = np.array([0, 100, 250], "uint8")
    labels = np.arange(48) % 3
    images = np.broadcast_to(
        levels[labels][:, None, None, None], (48, 24, 24, 3)
    ).copy()
    recipe = dataclasses.replace(QUICK, crop="fit", flip=False, **mixing)
    recipe = dataclasses.replace(recipe, batch_size=24)
    plan = batches.Plan(data.Split(images, labels, list("rgb")), recipe, 24, 0)
    mixed = 0
    for x, y in _epoch(plan, 0) + _epoch(plan, 1):
        seen = x[..., 0].mean((1, 2)) * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        seen *= 255
        # A border of the part pasted in may lie between two pixels.
        np.testing.assert_allclose(y @ levels, seen, atol=250 * 2 / 24)
        np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
        mixed += (y.max(1) < 0.99).sum()
    assert mixed > 20


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
def test_a_sigmoid_for_each_class_has_targets_of_0_and_1(split):
    recipe = dataclasses.replace(QUICK, loss="sigmoid", mixup=1.0)
    for _, targets in _epoch(batches.Plan(split, recipe, 16, 0), 0):
        assert set(np.unique(targets)) == {0, 1}
        assert targets.sum(1).max() == 2


@pytest.mark.parametrize(
    ("colour", "border"),
    [
        (None, {"mode": "reflect"}),
        ([7] * 3, {"mode": "constant", "constant_values": 7}),
    ],
)
def test_crops_are_windows_of_the_padded_image(colour, border):
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (50, 6, 8, 3), dtype="uint8")
    crops = augment.pad_and_crop(images, np.random.default_rng(1), colour)
    offsets = set()
    for image, crop in zip(images, crops, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), **border)
        places = [
            (i, j)
            for i in range(9)
            for j in range(9)
            if np.array_equal(padded[i : i + 6, j : j + 8], crop)
        ]
        assert len(places) >= 1
        offsets.add(places[0])
    assert len(offsets) > 20


def test_the_papers_border_is_zero_after_normalisation(split):
    recipe = dataclasses.replace(recipes.RECIPES["paper_cifar"], batch_size=64)
    ((images, _),) = _epoch(batches.Plan(split, recipe, 16, 0), 0)
    zero = (np.abs(images) < 0.01).all(-1)
    lines = zero.all(1).sum() + zero.all(2).sum()  # 20/9 a side, on average
    assert 64 * 3 < lines < 64 * 6


def test_single_pictures_are_augmented_at_random():
    gradient = np.arange(32 * 32 * 3, dtype="uint16").reshape(32, 32, 3)
    image = Image.fromarray((gradient // 13).astype("uint8"))
    for change in (
        augment.trivial_augment,
        lambda image, random: augment.rand_augment(image, random, 7, (9, 9, 9)),
        augment.change_colours,
        lambda image, random: augment.resized_crop(image, 32, random),
    ):
        results = [
            np.asarray(change(image, np.random.default_rng(seed % 30)))
            for seed in range(60)
        ]
        assert {result.shape for result in results} == {(32, 32, 3)}
        np.testing.assert_array_equal(results[:30], results[30:])
        assert len({result.tobytes() for result in results}) > 15


def test_each_operation_does_what_its_name_says():
    y, x = np.mgrid[:32, :32].astype("float64")
    ramps = np.stack([4 * x, 4 * y, 200 - 4 * x], -1)  # red tells x, green y
    image = Image.fromarray(ramps.astype("uint8"))
    grey = ramps @ [0.299, 0.587, 0.114]
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH), "float64")
    inside = np.s_[:20, :20]  # of the picture, after it has moved

    def ramp(dx, dy):
        return np.stack([4 * (x + dx), 4 * (y + dy), 200 - 4 * (x + dx)], -1)

    expected = {
        "identity": (0, ramps),
        "shear_x": (0.25, ramp(0.25 * (y + 0.5), 0)),
        "shear_y": (0.25, ramp(0, 0.25 * (x + 0.5))),
        "shift_x": (3.5, ramp(3.5, 0)),
        "shift_y": (3.5, ramp(0, 3.5)),
        "rotate": (90, np.rot90(ramps)),
        "brightness": (-0.5, ramps / 2),
        "color": (0.5, grey[..., None] + 1.5 * (ramps - grey[..., None])),
        "contrast": (-0.5, (ramps + grey.mean()) / 2),
        "sharpness": (-0.5, (ramps + smooth) / 2),
        "posterize": (2, ramps // 64 * 64),
        "solarize": (100, np.where(ramps < 100, ramps, 255 - ramps)),
        "add": (30, np.where(ramps < 128, ramps + 30, ramps)),
        "autocontrast": (0, (ramps - [0, 0, 76]) * 255 / 124),
        # 32 pixels of each level, and Pillow's whole number of them, 3, a step.
        "equalize": (0, np.stack([x, y, 31 - x], -1) * 32 / 3),
        "invert": (0, 255 - ramps),
    }
    assert expected.keys() == augment._OPERATIONS.keys()
    for name, (value, result) in expected.items():
        found = np.asarray(augment._OPERATIONS[name](image, value, None))
        np.testing.assert_allclose(
            found[inside], result.clip(0, 255)[inside], atol=1.5, err_msg=name
        )


def test_rand_augment_is_timms(monkeypatch):
    """Operations and values of its `rand-m7-inc1`, on 200 pixels."""
    expected = {
        **dict.fromkeys(("shear_x", "shear_y"), 0.21),
        **dict.fromkeys(("shift_x", "shift_y"), 63),
        "rotate": 21,
        **dict.fromkeys(("brightness", "color", "contrast"), 0.63),
        "sharpness": 0.63,
        **{"posterize": 2, "solarize": 77, "add": 77},
        **dict.fromkeys(("autocontrast", "equalize", "invert"), 0),
    }
    applied = []
    monkeypatch.setattr(
        augment,
        "_OPERATIONS",
        {
            name: lambda i, x, fill, name=name: (
                applied.append((name, x, fill)) or i
            )
            for name in expected
        },
    )
    random = np.random.default_rng(0)
    exactly = types.SimpleNamespace(
        random=random.random,
        integers=random.integers,
        normal=lambda mean, deviation: mean,
    )
    image, counts = Image.new("RGB", (200, 200)), collections.Counter()
    for _ in range(4000):
        done = len(applied)
        augment.rand_augment(image, exactly, 7, [1, 2, 3])
        counts[len(applied) - done] += 1
    # Each of two with a probability of a half.
    shares = [counts[i] / 4000 for i in range(3)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)
    assert {fill for _, _, fill in applied} == {(1, 2, 3)}
    signs = collections.defaultdict(set)
    for name, value, _ in applied:
        assert abs(value) == pytest.approx(expected[name])
        signs[name].add(np.sign(value))
    assert signs.keys() == expected.keys()
    signed = {name for name, found in signs.items() if -1 in found}
    assert signed == set(list(expected)[:9])


def test_rand_augment_at_its_strongest():
    noise = np.random.default_rng(0).integers(256, size=(16, 16, 3))
    image = Image.fromarray(noise.astype("uint8"))
    for seed in range(60):
        random = np.random.default_rng(seed)
        augment.rand_augment(image, random, 10, (0, 0, 0))


class Drawn:
    """Stands for a random generator whose draws are known."""

    def __init__(self, order, shares, normal):
        self.order, self.shares, self.drawn = order, iter(shares), normal

    def permutation(self, n):
        assert n == len(self.order)
        return self.order

    def uniform(self, least, most):
        assert (least, most) == (-0.4, 0.4)
        return next(self.shares)

    def normal(self, mean, deviation, n):
        assert (mean, deviation, n) == (0, 0.1, len(self.drawn))
        return np.array(self.drawn)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_colours_change_as_in_the_papers_code(order):
    y, x = np.mgrid[:16, :16]
    pixels = np.stack([80 + 2 * x, 90 + 2 * y, 130 - x], -1).astype("uint8")

    def blend(image, other, share):
        return other + (1 + share) * (image - other)

    def grey(image):
        return (image @ [0.299, 0.587, 0.114])[..., None]

    expected, shares = pixels.astype("float64"), [0.3, -0.2, 0.1]
    for step, share in zip(order, shares, strict=True):
        other = (0, grey(expected).mean(), grey(expected))[step]
        expected = blend(expected, other, share)
    # The first direction is about the same in all three: it makes lighter or
    # darker; the second parts red from blue.
    directions = [[-0.5675, 0.7192], [-0.5808, -0.0045], [-0.5836, -0.6948]]
    light = np.array(directions) @ [0.2175 * -0.1, 0.0188 * 0.2]
    found = augment.change_colours(
        Image.fromarray(pixels), Drawn(order, shares, [-0.1, 0.2, 0])
    )
    # Pillow cuts off the fraction each time.
    np.testing.assert_allclose(
        np.asarray(found), expected + 255 * light, atol=3
    )


def test_colours_stay_within_8_bits():
    black = Image.new("RGB", (4, 4))
    dark = Drawn([0, 1, 2], [0, 0, 0], [3.0, 0, 0])  # 0.37 below zero
    assert not np.asarray(augment.change_colours(black, dark)).any()


@pytest.mark.parametrize("workers", [1, 2])
def test_repeated_pictures_come_together(split, workers):
    """Each of them as often in one batch, and changed anew each time."""
    recipe = dataclasses.replace(
        recipes.RECIPES["paper_cifar"], batch_size=12, repeats=4
    )
    # Its number stands for a picture's label.
    numbered = dataclasses.replace(
        split,
        labels=np.arange(len(split.labels)),
        classes=[str(i) for i in range(len(split.labels))],
    )
    plans = [
        batches.Plan(numbered, recipe, 16, 0, worker, workers)
        for worker in range(workers)
    ]
    seen = []
    for step in range(plans[0].steps):
        parts = [plan.batch(1, step) for plan in plans]
        images = np.concatenate([images for images, _, _ in parts])
        numbers = np.concatenate([labels for _, labels, _ in parts])
        different, counts = np.unique(numbers, return_counts=True)
        assert counts.tolist() == [4, 4, 4]
        seen.extend(different)
        for number in different:
            same = images[numbers == number]
            assert len({image.tobytes() for image in same}) > 1
        for _, share, _ in parts:  # each worker sees all of them
            assert set(share) == set(different)
    assert len(set(seen)) == len(seen) == 3 * plans[0].steps


def test_repeats_need_not_divide_the_batch(split):
    recipe = dataclasses.replace(QUICK, batch_size=16, repeats=3)
    plan = batches.Plan(split, recipe, 16, 0)
    order = np.concatenate([plan._chosen(0, i) for i in range(plan.steps)])
    counts = np.unique(order, return_counts=True)[1]
    assert len(order) == 16 * plan.steps
    assert sorted(counts)[1:] == [3] * (len(counts) - 1)


def test_erasing_takes_a_part_of_a_share_of_the_pictures(split):
    images = np.concatenate([split.images] * 4)
    labels = np.arange(256) % 3
    recipe = dataclasses.replace(QUICK, batch_size=256, erasing=0.25)
    plain = dataclasses.replace(recipe, erasing=0.0)
    many = data.Split(images, labels, split.classes)
    (erased, _), (whole, _) = (
        _epoch(batches.Plan(many, each, 16, 0), 0)[0]
        for each in (recipe, plain)
    )
    # What JAX compiles it rounds otherwise.
    changed = (np.abs(erased - whole) > 1e-4).any(-1)
    assert 256 * 0.15 < changed.any((1, 2)).sum() < 256 * 0.35
    np.testing.assert_allclose(erased[changed], 0, atol=1e-5)  # mean colour
    for part in changed[changed.any((1, 2))]:
        rows, columns = part.any(1), part.any(0)
        np.testing.assert_array_equal(part, np.outer(rows, columns))
        assert 0.005 < part.mean() < 0.45


# Recipes


@pytest.fixture(scope="module")
def variables():
    """What is trained of a network of one block."""
    model = keras_resnext.ResNeXt([1], 2, 4, stem="cifar", classes=3)
    return model.trainable_variables


def test_help_offers_no_value_that_is_refused():
    assert "None" not in " ".join(recipes.descriptions().values())


@pytest.mark.parametrize(
    "words, size, resize",
    [
        ("paper_imagenet --sizes 32 64", None, 73),  # 256 of 224
        ("torchvision_v2 --sizes 88", 112, 116),  # 224, 232 of 176
        ("torchvision_v2 --test-size 112", 112, 116),
        ("torchvision_v2 --test-resize 256", 224, 256),
        ("torchvision_v2 --epochs 3", 224, 232),
        ("rsb_a2 --sizes 64 --test-size 96", 96, 101),
        ("cifar --sizes 24", None, None),
    ],
)
def test_sizes_to_test_with_go_with_those_to_train_with(
    monkeypatch, words, size, resize
):
    line = "train.py --data none --out run --recipe " + words
    monkeypatch.setattr(sys, "argv", line.split())
    _, recipe = train.parse_arguments()
    assert (recipe.test_size, recipe.test_resize) == (size, resize)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_makes_an_optimizer(name, variables):
    recipe = recipes.RECIPES[name]
    assert "https://" in recipe.source
    page = pathlib.Path(__file__).parents[1] / "docs/train.md"
    assert f"\n| `{name}` |" in page.read_text("utf-8")
    steps = 100 * recipe.epochs
    optimizer = models.make_optimizer(recipe, steps)
    rate = optimizer._learning_rate
    peak = max(float(rate(step)) for step in range(0, steps, recipe.epochs))
    assert peak == pytest.approx(recipe.learning_rate, rel=1e-2)
    assert float(rate(steps)) <= recipe.learning_rate / 100 * 1.01
    optimizer.build(variables)
    decayed = {v.name for v in variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


def test_the_papers_rate_falls_to_a_tenth_twice():
    rate = models.make_optimizer(recipes.RECIPES["paper_cifar"], 3000)
    rates = [
        float(rate._learning_rate(step))
        for step in (0, 1499, 1501, 2249, 2251, 2999)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    wrong = dataclasses.replace(recipes.RECIPES["paper_cifar"], warm_up=0.1)
    with pytest.raises(ValueError, match="warm-up goes with"):
        models.make_optimizer(wrong, 3000)


@pytest.mark.parametrize(("share", "steps"), [(0.99, 4), (0.6, 1)])
def test_a_warm_up_leaves_a_step_to_fall(share, steps):
    recipe = dataclasses.replace(QUICK, warm_up=share)
    rate = models.make_optimizer(recipe, steps)._learning_rate
    rates = [float(rate(step)) for step in range(steps + 1)]
    assert rates[-2:] == pytest.approx([recipe.learning_rate, 0])
    assert rates == sorted(rates[:-1]) + rates[-1:]


def test_schedules_are_made_before_anything_is_written(
    archive, tmp_path, monkeypatch, small_training, run_here
):
    made = []

    def make(recipe, steps):
        made.append(steps)
        if len(made) == 2:
            raise ValueError("Both phases are known.")

    monkeypatch.setattr(models, "make_optimizer", make)
    ended = run_here(
        *(train.main, "--data", archive, "--out", tmp_path / "run", *HERE),
        *("--recipe", "finetune", "--sizes", 8, "--batch-size", 16),
        *("--epochs", 3, "--unfreeze-epochs", 2, "--unfreeze-lr", 0.01),
        *("--weights", "cifar10"),
    )
    assert ended.returncode == 1
    assert "Both phases are known." in ended.stderr
    assert made == [12, 8]  # of 64 pictures
    assert not (tmp_path / "run").exists()


def test_steps_without_milestones_are_a_constant_rate(variables):
    recipe = dataclasses.replace(
        recipes.RECIPES["paper_cifar"], milestones=(), learning_rate=0.05
    )
    optimizer = models.make_optimizer(recipe, 3000)
    optimizer.build(variables)
    for step in (0, 2999):
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--milestones 0.5", "an effect only with --schedule steps"),
        (
            "--recipe rsb_a2 --no-nesterov",
            "an effect only with --optimizer sgd",
        ),
        (
            "--augment trivial --magnitude 7",
            "an effect only with --augment rand",
        ),
        ("--dropout 0.5", "an effect only with --new-top"),
        ("--unfreeze-lr 0.1", "an effect only with --unfreeze-epochs"),
        (
            "--recipe paper_cifar --milestones 0.75 0.5",
            "must be in rising order. Received: 0.75 0.5. Sort them.",
        ),
        ("--recipe paper_cifar --milestones 0.5 0.5", "in rising order"),
        ("--sizes 8 16 24 --epochs 2", "3 of them with --epochs 2."),
        ("--zero-gamma --weights cifar10", "--zero-gamma with --weights"),
        ("--recipe finetune", "--freeze backbone without --weights, as of"),
        ("--freeze conv2", "--freeze conv2 without --weights, as of --recipe"),
    ],
)
def test_fields_without_effect_are_refused(tmp_path, run_here, words, sentence):
    out = tmp_path / "run"
    line = ("--data", tmp_path / "none", "--out", out, *words.split())
    result = run_here(train.main, *line)
    assert result.returncode == 2
    assert sentence in result.stderr and not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        "--schedule steps --warm-up 0",
        "--schedule steps --milestones 0.3 0.6",
        "--recipe paper_cifar --milestones 0 0.5 1",
        "--recipe rsb_a2 --magnitude 3",
        "--recipe finetune --weights cifar10 --dropout 0 --unfreeze-epochs 1 "
        "--unfreeze-lr 0.1",
        # What a recipe holds is not given here.
        "--recipe rsb_a2 --augment none",
        "--recipe paper_cifar --schedule cosine",
        "--sizes 8 16 --epochs 1 --unfreeze-epochs 1",
        "--sizes 8 16",
        "--recipe quick --epochs 2 --weights cifar10",
    ],
)
def test_fields_that_go_together_are_taken(monkeypatch, words):
    line = ["train.py", "--data", "none", "--out", "run", *words.split()]
    monkeypatch.setattr(sys, "argv", line)
    train.parse_arguments()


def test_weights_decay_as_through_the_momentum():
    recipe = dataclasses.replace(
        recipes.RECIPES["paper_cifar"], weight_decay=1e-3
    )
    optimizer = models.make_optimizer(recipe, 3000)
    kernel = keras.Variable(1.0, name="kernel")

    def apply():
        optimizer.apply([keras.ops.zeros(())], [kernel])

    apply()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        apply = tf.function(apply)
    for _ in range(299):
        apply()
    weight, velocity = 1.0, 0.0
    for _ in range(300):  # torch.optim.SGD
        gradient = 1e-3 * weight
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity)
    assert weight == pytest.approx(0.74, abs=0.01)
    assert float(kernel.numpy()) == pytest.approx(weight, abs=0.005)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("paper_imagenet", [1.9, 2.71]),  # the gradient, and 0.9 of the next
        ("torchvision_v1", [1, 1.9]),
        ("torchvision_v2", [1, 1.9]),
    ],
)
def test_the_momentum_is_that_of_the_source(name, moved):
    recipe = dataclasses.replace(
        recipes.RECIPES[name], warm_up=0, ema=0, weight_decay=0
    )
    optimizer = models.make_optimizer(recipe, 10000)
    kernel = keras.Variable(0.0, name="kernel")
    values = [0.0]
    for _ in moved:
        optimizer.apply([keras.ops.ones(())], [kernel])
        values.append(float(kernel.numpy()))
    steps = -np.diff(values) / recipe.learning_rate
    np.testing.assert_allclose(steps, moved, rtol=1e-4)


def _lamb(weight, gradients, rate, decay):
    """Returns a weight after some steps, by the formulas of timm's Lamb."""
    mean = square = 0
    for count, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        size = np.sqrt(square / (1 - 0.999**count)) + 1e-6
        step = mean / (1 - 0.9**count) / size + decay * weight
        norms = np.linalg.norm(weight), np.linalg.norm(step)
        trust = norms[0] / norms[1] if decay and min(norms) > 0 else 1
        weight = weight - rate * trust * step
    return weight


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lamb_is_timms(accumulate):
    recipe = dataclasses.replace(
        recipes.RECIPES["rsb_a3"],
        **dict(warm_up=0, schedule="steps", milestones=()),
        accumulate=accumulate,
    )
    random = np.random.default_rng(0)
    starts = {
        "kernel": random.normal(0, 0.05, (3, 3, 2, 4)),
        "gamma": np.zeros(3),
        "beta": np.ones(3),
        "bias": random.normal(0, 0.05, 3),
    }
    variables = [
        keras.Variable(start, name=name, dtype="float32")
        for name, start in starts.items()
    ]
    gradients = [  # short enough not to be clipped
        [random.normal(0, 0.05, v.shape) for v in starts.values()]
        for _ in range(5)
    ]
    optimizer = models.make_optimizer(recipe, 10000)
    for each in gradients:
        for _ in range(accumulate):
            given = [keras.ops.convert_to_tensor(g, "float32") for g in each]
            optimizer.apply(given, variables)
    for variable, *steps in zip(variables, *gradients, strict=True):
        decay = 0.02 if variable.name == "kernel" else 0
        expected = _lamb(starts[variable.name], steps, 8e-3, decay)
        found = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.abs(found - starts[variable.name]).min() > 1e-6


def test_lamb_leaves_zero():
    """As last gammas do, with which a block starts as the identity."""
    recipe = dataclasses.replace(recipes.RECIPES["rsb_a2"], warm_up=0)
    optimizer = models.make_optimizer(recipe, 10000)
    gamma = keras.Variable(np.zeros(8, "float32"), name="gamma")
    for _ in range(10):
        optimizer.apply([keras.ops.full((8,), -1e-3)], [gamma])
    found = keras.ops.convert_to_numpy(gamma)
    np.testing.assert_allclose(found, 10 * recipe.learning_rate, rtol=1e-2)


def test_lamb_is_saved_with_a_model(vectors, tmp_path):
    recipe = dataclasses.replace(PLAIN, optimizer="lamb", weight_decay=0.02)
    model, targets = _linear(recipe), np.eye(3)[vectors.labels]
    model.train_on_batch(vectors.images, targets)
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    assert isinstance(again.optimizer, models.Lamb)
    for one, other in zip(
        again.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# One step after the other, on a network small enough to reckon with.


PLAIN = dataclasses.replace(
    QUICK,
    batch_size=8,
    epochs=1,
    warm_up=0,
    schedule="steps",
    milestones=(0.99,),
    label_smoothing=0,
)


@pytest.fixture
def vectors():
    random = np.random.default_rng(0)
    images = random.normal(size=(24, 4)).astype("float32")
    return data.Split(images, np.arange(24) % 3, list("rgb"))


def _linear(recipe, weights=None):
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3, name="predictions")(inputs)
    model = keras.Model(inputs, outputs)
    if weights:
        model.set_weights(weights)
    models.compile_model(model, recipe, 1000)
    return model


def _loss(split, weights, smoothing=0.0):
    logits = split.images @ weights[0] + weights[1]
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(3)[split.labels] + smoothing / 3
    return -(targets * logs).sum(1).mean()


def test_label_smoothing_is_in_the_loss(vectors):
    targets = np.eye(3)[vectors.labels]
    for smoothing in (0.0, 0.3):
        recipe = dataclasses.replace(PLAIN, label_smoothing=smoothing)
        model = _linear(recipe)
        loss, _ = model.evaluate(vectors.images, targets, verbose=0)
        expected = _loss(vectors, model.get_weights(), smoothing)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_two_halves_accumulate_to_the_step_of_the_whole(vectors):
    targets = np.eye(3)[vectors.labels]
    model = _linear(PLAIN)
    start = model.get_weights()
    model.train_on_batch(vectors.images, targets)
    halves = _linear(dataclasses.replace(PLAIN, accumulate=2), start)
    halves.train_on_batch(vectors.images[:12], targets[:12])
    for one, other in zip(halves.get_weights(), start, strict=True):
        np.testing.assert_array_equal(one, other)
    halves.train_on_batch(vectors.images[12:], targets[12:])
    for one, other, old in zip(
        halves.get_weights(), model.get_weights(), start, strict=True
    ):
        assert np.abs(one - old).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# What `train.py` may not set here, where other tests follow.
HERE = ("--dtype", "float32", "--no-deterministic")


class Spy(report.Progress):
    """Notes the weights after each step."""

    def on_train_batch_end(self, batch, logs=None):
        self.noted.append(self.model.get_weights())


def _learn(recipe, model, vectors, folder):
    """Returns where a training stands, and the weights after each step."""
    pytest.importorskip("tensorboard")
    about = {
        "batch_size": recipe.batch_size,
        "pictures": [len(vectors.labels)] * 2,
    }
    place = resume.Run(folder, about)
    spy = Spy(3, 0, 8)
    spy.noted = []
    phases.learn(
        phases.Phase(recipe, 0, model, model, vectors, vectors),
        place,
        argparse.Namespace(seed=0, save_every=500, test_every=2, out=folder),
        distribute.Single(),
        spy,
        board.Board(folder / "tensorboard", place, model),
    )
    return place, spy.noted


def test_the_moving_average_is_tested_and_saved(vectors, tmp_path):
    recipe = dataclasses.replace(PLAIN, ema=0.8)
    model = _linear(recipe)
    place, noted = _learn(recipe, model, vectors, tmp_path)
    first, *others = noted
    assert len(others) == 2
    average = first  # as Keras does; it begins with no weights of chance
    for weights in others:
        average = [
            0.8 * mean + 0.2 * new
            for mean, new in zip(average, weights, strict=True)
        ]
    saved = keras.models.load_model(tmp_path / "model.keras")
    for ended in (saved, model):
        for one, mean, last in zip(
            ended.get_weights(), average, others[-1], strict=True
        ):
            np.testing.assert_allclose(one, mean, rtol=1e-5, atol=1e-6)
            assert np.abs(one - last).max() > 1e-3
    loss = place.rows[0]["val_loss"]
    assert loss == pytest.approx(_loss(vectors, average), rel=1e-5)
    # What goes on is the training itself, not its average.
    np.testing.assert_array_equal(place.arrays[0], others[-1][0])


@pytest.mark.parametrize("ema", [0.8, 0])
def test_the_moving_average_has_statistics_of_its_own(vectors, tmp_path, ema):
    recipe = dataclasses.replace(PLAIN, ema=ema, epochs=2)
    x = inputs = keras.Input((4,))
    for layer in (
        keras.layers.Dense(5, name="dense"),
        keras.layers.BatchNormalization(momentum=0.9, name="counts"),
        keras.layers.BatchNormalization(trainable=False, name="frozen"),
        keras.layers.Dense(3, name="predictions"),
    ):
        x = layer(x)
    model = keras.Model(inputs, x)
    models.compile_model(model, recipe, 1000)
    place, noted = _learn(recipe, model, vectors, tmp_path)
    trained = noted[-1]  # the last weights are those of the last step
    saved = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(
        saved.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)

    kernel, bias = model.get_layer("dense").get_weights()
    statistics = model.get_layer("counts").get_weights()[2:]
    expected = trained[4:6]
    assert np.abs(kernel - trained[0]).max() > 1e-3 or not ema
    plan = batches.Plan(vectors, recipe, 32, 0)
    for step in range(44 if ema else 0):
        chosen, *_ = plan.batch(2 + step // plan.steps, step % plan.steps)
        y = chosen @ kernel + bias
        expected = [
            0.9 * old + 0.1 * new
            for old, new in zip(expected, (y.mean(0), y.var(0)), strict=True)
        ]
    np.testing.assert_allclose(statistics, expected, rtol=1e-4, atol=1e-5)
    frozen = model.get_layer("frozen").get_weights()[2:]
    np.testing.assert_array_equal(frozen, [np.zeros(5), np.ones(5)])
    # What goes on is the training itself, with its own.
    for one, last in zip(place.arrays, trained, strict=False):
        np.testing.assert_array_equal(one, last)


@pytest.mark.parametrize("killed", ["evaluate", "save"])
def test_killed_in_a_test_only_that_is_done_again(
    vectors, tmp_path, monkeypatch, killed
):
    recipe = dataclasses.replace(PLAIN, ema=0.8, epochs=4)
    whole, part = _linear(recipe), _linear(recipe)
    part.set_weights(whole.get_weights())
    ended, noted = _learn(recipe, whole, vectors, tmp_path / "whole")
    assert len(noted) == 12

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phases if killed == "evaluate" else models, killed, kill)
        with pytest.raises(KeyboardInterrupt):
            _learn(recipe, part, vectors, tmp_path / "part")
    # In another process, which begins with other weights.
    again, rest = _learn(recipe, _linear(recipe), vectors, tmp_path / "part")
    assert len(rest) == 6  # steps of the epochs after that test
    for one, other in zip(again.arrays, ended.arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(again.rows, ended.rows, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
        assert list(one) == list(other)
    assert log(tmp_path / "part")[3]["val_loss"]
    one, other = (
        keras.models.load_model(tmp_path / name / "model.keras").get_weights()
        for name in ("part", "whole")
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_was_found_is_told(split):
    """Else a folder too far up, or down, is learnt without a word."""
    few = data.Split(split.images[:9], split.labels[:9], split.classes)
    text = "Trains with 64 pictures and tests with 9, of 3 classes: r, g, b."
    assert report.describe_data(split, few) == text
    many = data.Split(split.images, split.labels, list("abcdef"))
    assert report.describe_data(many, few).endswith(": a, b, c, d, e, ...")


def test_the_gain_of_features_is_told():
    one = report.describe_features(12, [{"seconds": 3}])
    assert "12.00 s once, then 3.000 s for an epoch" in one
    assert "a ratio of 4.0. Without them each epoch would take at least" in one
    rows = [{"seconds": n} for n in (30, 32, 34)]  # compiles in the first
    assert "a ratio of 6.0." in report.describe_features(12, rows)


# The script


@pytest.fixture(scope="module")
def options(archive):
    return (
        *("--data", archive, "--groups", 2),
        *("--sizes", 8, 16, "--epochs", 2, "--batch-size", 8),
        *("--stochastic-depth", 0.3, "--mixup", 0.2, "--ema", 0.7),
        *("--learning-rate", 0.05),
    )


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The weights that ship, of the network that `SHALLOW` leaves."""
    path = tmp_path_factory.mktemp("weights") / "shallow.safetensors"
    kept = {
        name: array
        for name, array in load_file(SHIPPED).items()
        if "block" not in name or "_block1_" in name
    }
    save_file(kept, path)
    return path


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    """Folder of a complete run, and what it printed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    result = run(*options, "--out", out, before=SHALLOW)
    assert result.returncode == 0, result.stderr
    assert "Unsupported dtype" not in result.stderr  # TensorBoard, of bfloat16
    return out, result.stdout


def test_train(trained, arrays, monkeypatch):
    out, output = trained
    row = ARCHITECTURES["resnext29"]
    monkeypatch.setitem(ARCHITECTURES, "resnext29", row)  # put back later
    exec(SHALLOW)
    assert "Waiting for data: " in output
    stored = json.loads((out / "result.json").read_text())
    x = keras_resnext.preprocess_input(arrays["x_test"])
    for source in ("weights.safetensors", "model.keras"):
        model = keras_resnext.ResNeXt29(
            weights=out / source, classes=3, input_shape=(16, 16, 3)
        )
        assert model.get_layer("conv2_block1_2_conv").groups == 2
        guesses = keras.ops.convert_to_numpy(model(x, training=False))
        right = guesses.argmax(-1) == arrays["y_test"]
        accuracy = stored["test_accuracy"]
        assert accuracy == pytest.approx(right.mean(), abs=1e-4)
    loaded = keras.models.load_model(out / "model.keras")
    # It was trained in bfloat16, and is for use in float32.
    assert {layer.dtype_policy.name for layer in loaded.layers} == {"float32"}
    scores = keras.ops.convert_to_numpy(loaded(x, training=False))
    np.testing.assert_allclose(scores, guesses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    assert scores.min() >= 0 and scores.max() <= 1
    assert 0 < stored["idle"] < 1
    rows = log(out)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [row["size"] for row in rows] == ["8", "16"]
    assert "epoch 2, 16x16 pixels: loss" in output
    with Image.open(out / "training.png") as picture:
        assert picture.size == (1200, 350)
    _check_tensorboard(out / "tensorboard", rows)
    assert not list(out.glob("*.part*"))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export is TensorFlow's"
)
def test_what_was_trained_can_be_exported(
    trained, tmp_path, monkeypatch, eagerly
):
    from keras_resnext.export import export, preparing

    # Of pictures of any size, those of the size that it was trained with.
    monkeypatch.setattr(preparing, "_SIDE", 16)
    model = keras.models.load_model(trained[0] / "model.keras")
    report = export(model, tmp_path / "served")
    assert report.max_difference < 1e-4
    assert (tmp_path / "served" / "1" / "saved_model.pb").exists()


def test_rows_of_an_earlier_version_stay_in_the_log(tmp_path):
    rows = [{"epoch": 0, "loss": 1.5, "val_loss": 2, "seconds": 3}]
    rows.append({"epoch": 1, "loss": 1.25, "size": 32, "seconds": 4})
    report.write_log(tmp_path / "log.csv", rows)
    first, second = log(tmp_path)
    assert list(first) == ["epoch", "loss", "val_loss", "seconds", "size"]
    assert first["val_loss"] == "2" and first["size"] == ""
    assert second["val_loss"] == "" and second["size"] == "32"


def test_a_path_that_is_not_utf_8_is_shown(tmp_path):
    pytest.importorskip("tensorboard")
    run = resume.Run(tmp_path, {"data": "caf\udce9"})
    board.Board(tmp_path / "board", run, _linear(PLAIN))


def _check_tensorboard(path, rows):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) == 3  # one for each run, however many epochs

    def read(run):
        return accumulator.EventAccumulator(str(path / run)).Reload()

    nodes = {node.name: node for node in read("train").Graph().node}
    inside = [n for n in nodes if n.startswith("resnext29/conv2/block1/")]
    assert "resnext29/conv2/block1/2_conv" in inside
    assert len(inside) == 13  # with the projection and stochastic depth
    add = nodes["resnext29/conv2/block1/add"]
    assert set(add.input) == {
        "resnext29/conv2/block1/0_bn",
        "resnext29/conv2/block1/drop",
    }
    for run, prefix in (("train", ""), ("validation", "val_")):
        for tag in ("loss", "accuracy"):
            found = read(run).Tensors(tag)
            values = [event.tensor_proto.float_val[0] for event in found]
            expected = [float(row[prefix + tag]) for row in rows]
            assert values == pytest.approx(expected)
    content = read(".").SummaryMetadata("_hparams_/session_start_info")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    info = plugin.parse_session_start_info_plugin_data(
        content.plugin_data.content
    )
    assert info.hparams["mixup"].number_value == pytest.approx(0.2)
    assert info.hparams["recipe"].string_value == "quick"


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(
    archive, shipped, tmp_path
):
    """In two phases: a new classifier, then everything at a lower rate."""
    whole = tmp_path / "whole"
    options = (
        *("--data", archive, "--recipe", "finetune", "--weights", shipped),
        *("--sizes", 8, 16, "--epochs", 2, "--batch-size", 16),
        *("--dtype", "float32"),
        *("--stochastic-depth", 0.3, "--mixup", 0.2, "--ema", 0.3),
        *("--epochs", 1, "--unfreeze-epochs", 1, "--unfreeze-lr", 0.01),
        *("--save-every", 1, "--out"),
    )
    keeping, killed = keep((1, 0), whole)  # as if killed between epochs
    keeping_too, in_test = keep((1, 4), whole)  # in the last epoch's test
    result = run(*options, whole, before=SHALLOW + keeping + keeping_too)
    assert result.returncode == 0, result.stderr
    about, arrays = state(whole)
    assert (about["phase"], about["epoch"]) == (1, 2)
    tuned = load_file(whole / "weights.safetensors")
    assert len(arrays) > len(tuned)  # not the classifier's alone
    assert not all(np.array_equal(a, b) for a, b in _pairs(tuned))

    assert state(killed)[0]["phase"] == 0 and len(log(killed)) == 1
    begun = (killed / "state.npz").stat().st_mtime_ns
    with subprocess.Popen(
        command(*options, killed, before=SHALLOW),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            if (killed / "state.npz").stat().st_mtime_ns > begun:
                process.send_signal(signal.SIGKILL)  # at any moment after that
                break
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    stored = json.loads((killed / "result.json").read_text())
    assert not stored["finished"]
    assert f"{float(log(killed)[0]['val_accuracy']):.4f}" == (
        f"{stored['test_accuracy']:.4f}"
    )
    assert networks.trained(killed / "model.keras").classes == 3
    assert state(killed)[0]["step"] > 0
    result = run(*options, killed, before=SHALLOW)
    assert result.returncode == 0, result.stderr
    assert [row["epoch"] for row in log(killed)] == ["0", "1"]
    assert_equal_runs(whole, killed)

    assert len(log(in_test)) == 1
    result = run(*options, in_test, before=SHALLOW)
    assert result.returncode == 0, result.stderr
    assert_equal_runs(whole, in_test)


def test_what_takes_long_is_done_seldom():
    """As writing a network of which an epoch trains a classifier alone."""
    now, done = [0.0], []

    def work():
        done.append(now[0])
        now[0] += 1

    seldom = phases.Seldom(lambda: now[0])
    for i in range(42):
        seldom(work, must=i == 22)
        now[0] += 0.5
    assert done == [0, 10, 13, 23]


@pytest.mark.slow
def test_another_seed_is_another_training(
    archive, tmp_path, small_training, run_here
):
    size = ("--sizes", 8, "--batch-size", 16, "--epochs", 1)
    line = (train.main, "--data", archive, *size, *HERE)
    for seed in (0, 1):
        result = run_here(*line, "--out", tmp_path / str(seed), "--seed", seed)
        assert result.returncode == 0, result.stderr
    one, other = (
        (tmp_path / seed / "weights.safetensors").read_bytes() for seed in "01"
    )
    assert one != other
    result = run_here(*line, "--out", tmp_path / "0", "--seed", 1)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert "Received: seed was 0 and is 1 in" in message


@pytest.mark.slow
def test_it_trains_on_torch_without_tensorflow(archive, tmp_path):
    pytest.importorskip("torch")
    result = run(
        *("--data", archive, "--out", tmp_path / "run", "--groups", 2),
        *("--sizes", 8, "--epochs", 1, "--batch-size", 16, "--cutmix", 1),
        before=BARE + SHALLOW,
        KERAS_BACKEND="torch",
    )
    assert result.returncode == 0, result.stderr
    assert len(log(tmp_path / "run")) == 1
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "torch" in stored["versions"]


@pytest.mark.slow
def test_fine_tuning(folder, tmp_path, run_here):
    out = tmp_path / "frozen"
    result = run_here(
        *(train.main, "--data", folder, "--out", out, *HERE),
        *("--recipe", "finetune", "--weights", "cifar10", "--epochs", 3),
        *("--sizes", 16, "--batch-size", 8, "--freeze", "conv4"),
        *("--test-every", 2),
    )
    assert result.returncode == 0, result.stderr
    assert "for an epoch on them, a ratio of" in result.stdout
    assert [bool(row["val_accuracy"]) for row in log(out)] == [0, 1, 1]
    assert float(log(out)[-1]["val_accuracy"]) > 0.6
    explain.draw_training(out / "log.csv", out / "again.png")
    assert (out / "again.png").stat().st_size > 10_000
    tuned = load_file(out / "weights.safetensors")
    assert tuned.keys() == load_file(SHIPPED).keys()
    assert tuned["predictions/kernel"].shape == (1024, 3)
    same = [np.array_equal(a, b) for a, b in _pairs(tuned)]
    assert len(same) > 100 and all(same)


def _pairs(tuned):
    """Yields each tuned array, and that of the network that ships."""
    arrays = load_file(SHIPPED)
    for name, array in tuned.items():
        if not name.startswith("predictions"):
            yield array, arrays[name]


def test_groups_belong_to_the_net_for_small_images():
    args = argparse.Namespace(
        model="resnet18",
        groups=2,
        width_per_group=None,
        planes=None,
        weights=None,
        accept_noncommercial=False,
    )
    with pytest.raises(ValueError, match="belong to resnext29"):
        models.build(args, QUICK, 3)


def test_weights_of_other_classes_need_a_new_top(tmp_path, monkeypatch):
    args = argparse.Namespace(
        model="resnext29",
        groups=None,
        width_per_group=None,
        planes=None,
        weights="cifar10",
        accept_noncommercial=False,
    )
    network = models.build(args, QUICK, 10)
    models.save(network, QUICK, tmp_path / "model.keras")
    for args.weights in ("cifar10", str(tmp_path / "model.keras")):
        with pytest.raises(ValueError, match="the 3 classes of the") as caught:
            models.build(args, QUICK, 3)
        message = str(caught.value)
        assert f"Received: {args.weights} with 10. Pass --new-top" in message
    # What it says to pass is there, and does it.
    for options in (["--new-top"], ["--recipe", "finetune"]):
        line = ["train.py", "--data", "pictures", "--out", "run", *options]
        line += ["--weights", "cifar10"]
        monkeypatch.setattr(sys, "argv", line)
        _, recipe = train.parse_arguments()
        assert recipe.new_top
    tuned = models.build(args, recipe, 3)
    assert tuned.output_shape == (None, 3)
    for layer in ("conv1_conv", "conv4_block3_3_bn"):
        for one, other in zip(
            tuned.get_layer(layer).get_weights(),
            network.get_layer(layer).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


def test_keras_json_does_not_turn_pictures():
    """Whose image_data_format is where channels are."""
    keras.config.set_image_data_format("channels_first")
    args = argparse.Namespace(deterministic=False, seed=0, dtype="float32")
    try:
        job.configure(args)
        assert keras.config.image_data_format() == "channels_last"
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("name", ["tensorboard", "matplotlib"])
def test_a_missing_package_is_named_first(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    line = ["train.py", "--data", "none", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match=f"no {name}. Run `pip install"):
        train.main()
    assert not (tmp_path / "run").exists()


def test_partly_frozen_networks_see_augmented_pictures(split, tmp_path):
    recipe = dataclasses.replace(recipes.RECIPES["finetune"], freeze="conv2")
    model = keras_resnext.ResNeXt([1, 1], 2, 4, stem="cifar", classes=3)
    models.freeze(model, "conv2")
    phase = phases.Phase(recipe, 0, model, model, split, split)
    start = resume.Run(tmp_path, {}), distribute.Single()
    assert phases.with_features(phase, *start) is phase
    models.freeze(model, "backbone")
    flipped = dataclasses.replace(recipe, flip=True)
    phase = dataclasses.replace(phase, recipe=flipped)
    assert phases.with_features(phase, *start) is phase


def test_the_backbone_ends_with_its_last_stage():
    # In the order of letters the tenth comes before the second.
    model = keras_resnext.ResNeXt(
        [1] * 9, 1, 64, stem="cifar", planes=1, input_shape=(None, None, 3)
    )
    models.freeze(model, "backbone")
    assert {v.path for v in model.trainable_variables} == {
        "predictions/kernel",
        "predictions/bias",
    }


@pytest.mark.parametrize(
    "change", [{"stochastic_depth": 0.5}, {"sizes": (8, 16)}]
)
def test_features_that_differ_are_not_computed_once(split, tmp_path, change):
    recipe = dataclasses.replace(recipes.RECIPES["finetune"], **change)
    model = keras_resnext.ResNeXt(
        [1], 2, 4, stem="cifar", classes=3, input_shape=(None, None, 3)
    )
    models.freeze(model, "backbone")
    phase = phases.Phase(recipe, 0, model, model, split, split)
    start = resume.Run(tmp_path, {}), distribute.Single()
    assert phases.with_features(phase, *start) is phase


def test_features_to_train_with_are_of_the_size_to_train_with(
    split, tmp_path, eagerly
):
    recipe = dataclasses.replace(
        recipes.RECIPES["finetune"],
        sizes=(8, 8),
        test_size=16,
        test_resize=20,
    )
    model = keras_resnext.ResNeXt(
        [1], 2, 4, stem="cifar", classes=3, input_shape=(None, None, 3)
    )
    models.freeze(model, "backbone")
    phase = phases.Phase(recipe, 0, model, model, split, split)
    found = phases.with_features(
        phase, resume.Run(tmp_path, {}), distribute.Single()
    )
    backbone = keras.Model(model.inputs, model.get_layer("avg_pool").output)
    for part, sizes in ((found.train, (8, 8)), (found.test, (20, 16))):
        row = dataclasses.replace(
            keras_resnext.eval_transform("resnet50/imagenet1k_v1").checkpoint,
            **dict(zip(("resize", "crop"), sizes, strict=True)),
        )
        pictures = keras_resnext.eval_transform(row)(split.images)
        np.testing.assert_allclose(
            part.images, backbone.predict(pictures, verbose=0), rtol=1e-4
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "65"], "--batch-size 65 with 64 pictures"),
        (["--weights", "cifar10", "--new-top", "--freeze", "conv9"], "'conv9'"),
    ],
)
def test_it_says_what_is_wrong(archive, tmp_path, options, message, run_here):
    result = run_here(
        *(train.main, "--data", archive, "--out", tmp_path / "run"),
        *("--batch-size", 16, *HERE, *options),
    )
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_training_without_bounds_is_said_so(
    archive, tmp_path, small_training, run_here
):
    result = run_here(
        *(train.main, "--data", archive, "--out", tmp_path / "run", *HERE),
        *("--sizes", 8, "--epochs", 2, "--batch-size", 16),
        *("--learning-rate", 1e30, "--warm-up", 0),
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("The loss must stay finite."), result.stderr
    assert "in epoch 0" in last
    assert not (tmp_path / "run" / "model.keras").exists()


def test_train_says_what_the_data_lacks(tmp_path, run_here):
    np.savez(tmp_path / "data.npz", x_train=np.zeros(3))
    words = ("--data", tmp_path / "data.npz", "--out", tmp_path / "run", *HERE)
    result = run_here(train.main, *words)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert "without x_test, y_test, y_train" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_data_that_is_none_is_said_so(tmp_path, content):
    path = tmp_path / "data.npz"
    if content:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError)) as caught:
        data.load(path)
    message = str(caught.value)
    assert message.startswith("--data must be an .npz file")
    assert str(path) in message


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    files.write(tmp_path / "file", "old")
    with pytest.raises(OSError, match="disk full"):
        files.write(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "flags, gpu, expected",
    [
        ({"avx2"}, False, "float32"),
        ({"avx2", "avx512f", "avx512_vnni"}, False, "float32"),
        ({"avx2", "avx512_bf16"}, False, "mixed_bfloat16"),
        ({"avx2", "amx_bf16"}, False, "mixed_bfloat16"),
        (set(), False, "float32"),  # macOS, ARM: nothing is known
        ({"avx2"}, True, "mixed_bfloat16"),
    ],
)
def test_dtype_is_what_the_machine_computes(monkeypatch, flags, gpu, expected):
    monkeypatch.setattr(processor, "flags", lambda: frozenset(flags))
    monkeypatch.setattr(distribute, "has_gpu", lambda: gpu)
    dtype, reason = job.choose_dtype()
    assert dtype == expected
    if not gpu:
        assert processor.instruction_set() in reason
