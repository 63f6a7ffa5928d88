"""Training: its data, recipes and batches, and the script as users run it."""

import csv
import dataclasses
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.registry import IMAGENET_MEAN, IMAGENET_STD

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import augment  # noqa: E402
import batches  # noqa: E402
import data  # noqa: E402
import recipes  # noqa: E402
import train  # noqa: E402

QUICK = dataclasses.replace(recipes.RECIPES["quick"], batch_size=16)
# Takes TensorFlow away before the script starts, as if not installed.
BARE = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(*arguments):
    return [sys.executable, SCRIPTS / "train.py", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False
    )


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
    names = np.array(["blue", "red", "green"])[arrays["y_test"]]
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
    (moved / "red" / "0.png").unlink()
    _, again = data.load(moved)
    assert {pathlib.Path(p).name for p in again.images} == held - {"0.png"}
    _, other = data.load(moved, seed=1)
    assert {pathlib.Path(p).name for p in other.images} != held
    path, label = again.images[0], again.labels[0]
    assert pathlib.Path(path).parent.name == again.classes[label]


def test_a_folder_may_have_its_own_division(folder):
    root = folder.with_name("root")
    (root / "train").mkdir(parents=True)
    for name in ("red", "green", "blue"):
        (folder / name).rename(root / "train" / name)
    with pytest.raises(ValueError, match=r"must have val/ or test/, too"):
        data.load(root)
    (root / "val" / "red").mkdir(parents=True)
    (root / "train" / "red" / "0.png").rename(root / "val" / "red" / "0.png")
    train_split, test_split = data.load(root)
    assert len(train_split.images) == 31
    assert test_split.images == [str(root / "val" / "red" / "0.png")]
    assert test_split.labels.tolist() == [2]
    (root / "val" / "red").rename(root / "val" / "pink")
    with pytest.raises(ValueError, match=r"classes of train/.*pink.*alone"):
        data.load(root)


def test_corrupt_pictures_are_named(folder, capsys):
    whole = (folder / "red" / "0.png").read_bytes()
    (folder / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "red" / "notes.txt").write_text("no picture")
    train_split, test_split = data.load(folder)
    assert len(train_split.images) + len(test_split.images) == 31
    lines = capsys.readouterr().err.splitlines()
    skipped = [line for line in lines if line.startswith("Skipped: ")]
    assert len(skipped) == 2
    assert str(folder / "red" / "0.png") in skipped[0]
    assert str(folder / "red" / "notes.txt") in skipped[1]
    with pytest.raises(ValueError, match=r"red.0\.png \(.*Remove it"):
        data.load(folder, on_corrupt="fail")


def test_folders_without_pictures_are_named(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold pictures.*empty without"):
        data.load(folder)
    with pytest.raises(ValueError, match="one folder of pictures for each"):
        data.load(folder / "empty")


def test_too_little_to_learn_is_said(folder):
    for name in ("red", "green"):
        (folder / name).rename(folder.with_name(name))
    with pytest.raises(ValueError, match=r"two classes\. Received: blue alone"):
        data.require_trainable(*data.load(folder))
    (folder / "green").mkdir()
    folder.with_name("green").joinpath("1.png").rename(folder / "green/1.png")
    with pytest.raises(ValueError, match=r"none of green\. Add"):
        data.require_trainable(*data.load(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((2, 8, 8, 3))}, "x_test must be uint8"),
        ({"x_test": np.zeros((2, 8, 8), "u1")}, r"x_test.*\(2, 8, 8\)"),
        ({"y_test": np.zeros(3, int)}, "3 of int64 for 2 images"),
        ({"y_test": np.array([-1, 0])}, "integer from 0"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, change, message):
    images, labels = np.zeros((2, 8, 8, 3), "u1"), np.array([0, 1])
    arrays = {"x_train": images, "y_train": labels}
    arrays |= {"x_test": images, "y_test": labels} | change
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "data.npz")


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


def test_a_sigmoid_for_each_class_has_targets_of_0_and_1(split):
    recipe = dataclasses.replace(QUICK, loss="sigmoid", mixup=1.0)
    for _, targets in _epoch(batches.Plan(split, recipe, 16, 0), 0):
        assert set(np.unique(targets)) == {0, 1}
        assert targets.sum(1).max() == 2


def test_crops_are_windows_of_the_padded_image():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (50, 6, 8, 3), dtype="uint8")
    crops = augment.pad_and_crop(images, np.random.default_rng(1))
    offsets = set()
    for image, crop in zip(images, crops, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        places = [
            (i, j)
            for i in range(9)
            for j in range(9)
            if np.array_equal(padded[i : i + 6, j : j + 8], crop)
        ]
        assert len(places) >= 1
        offsets.add(places[0])
    assert len(offsets) > 20


def test_single_pictures_are_augmented_at_random():
    gradient = np.arange(32 * 32 * 3, dtype="uint16").reshape(32, 32, 3)
    image = Image.fromarray((gradient // 13).astype("uint8"))
    for change in (
        augment.trivial_augment,
        lambda image, random: augment.rand_augment(image, random, 7),
        lambda image, random: augment.resized_crop(image, 32, random),
    ):
        results = [
            np.asarray(change(image, np.random.default_rng(seed % 30)))
            for seed in range(60)
        ]
        assert {result.shape for result in results} == {(32, 32, 3)}
        np.testing.assert_array_equal(results[:30], results[30:])
        assert len({result.tobytes() for result in results}) > 15


# Recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_makes_an_optimizer(name):
    recipe = recipes.RECIPES[name]
    assert "https://" in recipe.source
    steps = 100 * recipe.epochs
    optimizer = train.make_optimizer(recipe, steps)
    rate = optimizer._learning_rate
    peak = max(float(rate(step)) for step in range(0, steps, 50))
    assert peak == pytest.approx(recipe.learning_rate, rel=1e-2)
    assert float(rate(steps)) <= recipe.learning_rate / 100 * 1.01
    model = keras_resnext.ResNeXt([1], 2, 4, stem="cifar", classes=3)
    optimizer.build(model.trainable_variables)
    decayed = {
        v.name
        for v in model.trainable_variables
        if optimizer._use_weight_decay(v)
    }
    assert decayed == {"kernel"}


def test_the_papers_rate_falls_to_a_tenth_twice():
    rate = train.make_optimizer(recipes.RECIPES["paper_cifar"], 3000)
    rates = [
        float(rate._learning_rate(step))
        for step in (0, 1499, 1501, 2249, 2251, 2999)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    wrong = dataclasses.replace(recipes.RECIPES["paper_cifar"], warm_up=0.1)
    with pytest.raises(ValueError, match="warm-up goes with"):
        train.make_optimizer(wrong, 3000)


# The script


def test_train(archive, arrays, tmp_path):
    out = tmp_path / "run"
    result = run(
        *("--data", archive, "--out", out, "--groups", 2),
        *("--sizes", 8, 16, "--batch-size", 16),
        *("--dtype", "float32", "--learning-rate", 0.05),
    )
    assert result.returncode == 0, result.stderr
    assert "Waiting for data: " in result.stdout
    stored = json.loads((out / "result.json").read_text())
    x = keras_resnext.preprocess_input(arrays["x_test"])
    for source in ("weights.safetensors", "model.keras"):
        model = keras_resnext.ResNeXt29(
            weights=out / source, classes=3, input_shape=(16, 16, 3)
        )
        assert model.get_layer("conv2_block1_2_conv").groups == 2
        guesses = model.predict(x, verbose=0)
        right = guesses.argmax(-1) == arrays["y_test"]
        accuracy = stored["test_accuracy"]
        assert accuracy == pytest.approx(right.mean(), abs=1e-4)
    loaded = keras.models.load_model(out / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), guesses, rtol=1e-4, atol=1e-5
    )
    assert 0 < stored["idle"] < 1
    rows = log(out)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    with Image.open(out / "training.png") as picture:
        assert picture.size == (1200, 350)
    assert not list(out.glob("*.part*"))
