"""The accuracy that scripts/evaluate.py measures, against another way."""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import evaluate
import keras_resnext
from common import classifier, data, files
from keras_resnext.commands import networks
from keras_resnext.export import serving
from keras_resnext.export.formats import Job

# Each network is asked once: to trace it would take longer.
pytestmark = pytest.mark.usefixtures("eagerly")
SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
PACKAGED = pathlib.Path(keras_resnext.__file__).with_name("pictures")
COLOURS = {
    # WordNet ids of three of ImageNet's classes, not in the order of a
    # folder with others, and the outputs they have there.
    "n02123045": (281, (255, 0, 0)),
    "n01440764": (0, (0, 255, 0)),
    "n07753592": (954, (0, 0, 255)),
}
TRANSFORM = keras_resnext.eval_transform("resnext29/cifar10")


def colour_net(outputs, rows):
    """Returns a network that tells classes by the pictures' mean colour.

    `rows` is a dict from an output to its weights of red, green and blue.
    """
    x = keras.Input((32, 32, 3))
    y = keras.layers.GlobalAveragePooling2D()(x)
    y = keras.layers.Dense(outputs)(y)
    model = keras.Model(x, y)
    kernel = np.zeros((3, outputs), "float32")
    for output, row in rows.items():
        kernel[:, output] = row
    bias = np.full(outputs, -1.0)
    bias[list(rows)] = 0
    model.layers[-1].set_weights([kernel, bias])
    return model


def greedy_net():
    """Returns one that takes green for a class which the data lacks."""
    rows = {281: (1, 0, 0), 0: (0, 1, 0), 954: (0, 0, 1), 7: (0, 2, 0)}
    return colour_net(1000, rows)


@pytest.fixture
def folder(tmp_path):
    """Class folders of six pictures: red, red, red, green, green, blue."""
    counts = dict(zip(COLOURS, (3, 2, 1), strict=True))
    for wnid, (_, colour) in COLOURS.items():
        (tmp_path / "pictures" / wnid).mkdir(parents=True)
        for i in range(counts[wnid]):
            path = tmp_path / "pictures" / wnid / f"{wnid}_{i}.png"
            Image.new("RGB", (40, 36), colour).save(path)
    return tmp_path / "pictures"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_scores_classes_present_and_all(folder):
    _, split = data.load(folder, holdout=1.0)
    result, labels, predictions, names = evaluate.evaluate(
        greedy_net(), split, TRANSFORM, batch_size=4
    )
    # Two of six pictures are green, for which output 7 is greater.
    assert result == {
        "images": 6,
        "accuracy": [
            {"classes": 1000, "top1": pytest.approx(66.666667), "top5": 100.0},
            {"classes": 3, "top1": 100.0, "top5": 100.0},
        ],
    }
    # The folders' order is that of their names: green, red, blue.
    assert labels.tolist() == predictions.tolist() == [0, 0, 1, 1, 1, 2]
    assert names == ["tench", "tabby", "banana"]


@pytest.fixture
def trained(tmp_path):
    """Path of a network of two classes, beside what train.py says of it."""
    path = tmp_path / "run" / "model.keras"
    path.parent.mkdir()
    colour_net(2, {0: (1, 0, 0), 1: (0, 0, 1)}).save(path)
    options = {"test_size": 32, "test_resize": 32, "holdout": 0.5, "seed": 1}
    options |= {"model": "resnext29", "weights": None}
    result = {"classes": ["blue", "red"], "options": options}
    path.with_name("result.json").write_text(json.dumps(result))
    return path


@pytest.fixture
def many(tmp_path):
    """A folder of two classes, without a test part."""
    for name in ("blue", "red"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for i in range(30):
            path = tmp_path / "many" / name / f"{name}{i}.png"
            Image.new("RGB", (32, 32), name).save(path)
    return tmp_path / "many"


def test_the_test_pictures_are_the_trainings(trained, many, run_here):
    line = (evaluate.main, trained, "--data", many, "--out", trained.parent)
    shares = {(): (0.5, 1), ("--seed", 3): (0.5, 3), ("--holdout", 1): (1, 1)}
    for words, (holdout, seed) in shares.items():
        ended = run_here(*line, *words)
        assert ended.returncode == 0, ended.stderr
        taken = {"--holdout": holdout, "--seed": seed}
        taken = {n: v for n, v in taken.items() if n not in words}
        taken = " ".join(f"{name} {value}" for name, value in taken.items())
        file = trained.with_name("result.json")
        assert f"Test pictures as {file} has them: {taken}." in ended.stderr
        written = trained.with_name("evaluation.json").read_text()
        _, test = data.load(many, holdout=holdout, seed=seed)
        assert json.loads(written)["images"] == len(test.images)
    # What the training wrote is there still, and needed for its sizes.
    assert json.loads(file.read_text())["classes"] == ["blue", "red"]


@pytest.mark.parametrize(
    # No space of ASCII; what joins letters, as in Persian; a new character.
    "name",
    ["full\u3000width", "می\u200cشود", "\U0001fae9", "a,b | $c$"],
)
def test_names_of_classes_in_all_scripts(trained, name):
    path = trained.with_name("result.json")
    result = json.loads(path.read_text()) | {"classes": ["blue", name]}
    path.write_text(json.dumps(result))
    assert networks.trained(trained).labels == ("blue", name)
    path.write_text(json.dumps(result | {"classes": ["blue", "\x1b[1m"]}))
    assert networks.trained(trained) is None


def test_weights_that_were_trained_need_no_number_of_classes(trained):
    names = ("weights", "classes", "checkpoint")
    args = argparse.Namespace(
        model="resnext29", accept_noncommercial=False, **dict.fromkeys(names)
    )
    args.weights = str(trained.with_name("weights.safetensors"))
    shape = {"groups": 2, "width_per_group": 32, "planes": 4}
    small = keras_resnext.ResNeXt29(weights=None, classes=2, **shape)
    keras_resnext.weights.save(small, args.weights)
    model, row = networks.load(args)
    assert (model.output_shape, row.labels) == ((None, 2), ("blue", "red"))


def test_another_programs_result_divides_nothing(trained, many, run_here):
    line = (evaluate.main, trained, "--data", many, "--out", trained.parent)
    line += ("--checkpoint", "resnext29/cifar10")
    for text in ("", "[]", '{"options": 1}', '{"options": {"holdout": "x"}}'):
        trained.with_name("result.json").write_text(text)
        ended = run_here(*line)
        assert ended.returncode == 0, ended.stderr
        written = trained.with_name("evaluation.json").read_text()
        options = json.loads(written)["options"]
        assert (options["holdout"], options["seed"]) == ("0.2", "0")
        text = "those of --holdout 0.2 --seed 0, as no result.json says"
        assert text in ended.stderr


@pytest.mark.parametrize(
    ("holdout", "parts", "said"), [(None, 0, True), (1, 0, False), (None, 2, 0)]
)
def test_an_unknown_division_is_said(many, capsys, holdout, parts, said):
    """As of an export, which may have been trained with these pictures."""
    for part in ("train", "val")[:parts]:
        shutil.copytree(many, many.with_name("divided") / part)
    source = many.with_name("divided") if parts else many
    args = argparse.Namespace(
        **{"model": None, "weights": None, "data": str(source)},
        **{"data_dir": None, "holdout": holdout, "seed": None},
        on_corrupt="skip",
    )
    data.load_test(args)
    assert ("no result.json says" in capsys.readouterr().err) == said


def test_what_is_not_measured_is_not_read(many, run_here, tmp_path):
    (many / "train").mkdir()
    for name in ("blue", "red"):
        (many / name).rename(many / "train" / name)
        (many / "val" / name).mkdir(parents=True)
        (many / "train" / name / f"{name}0.png").rename(
            many / "val" / name / f"{name}0.png"
        )
    (many / "train" / "red" / "broken.png").write_bytes(b"none")
    (test,) = data.load(many, on_corrupt="fail", parts=["test"])
    assert (test.classes, len(test.images)) == (["blue", "red"], 2)
    with pytest.raises(ValueError, match=r"broken\.png"):
        data.load(many, on_corrupt="fail")
    # Of a folder without parts, those that are held out.
    whole = many / "train"
    _, expected = data.load(whole)
    checked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_fault", lambda path: checked.append(path))
        (test,) = data.load(whole, parts=["test"])
    assert test.images == expected.images
    assert set(map(str, checked)) == set(expected.images)
    # Of an archive, its arrays.
    images, labels = np.zeros((3, 8, 8, 3), "uint8"), np.array([0, 1, 2])
    parts = {"x_train": np.zeros(3), "y_train": labels}
    parts |= {"x_test": images[:2], "y_test": labels[:2]}
    np.savez(tmp_path / "a.npz", **parts)
    (test,) = data.load(tmp_path / "a.npz", parts=["test"])
    assert test.classes == ["0", "1", "2"] and len(test.images) == 2


def test_hidden_folders_beside_pictures(folder, tmp_path):
    flat = tmp_path / "flat"
    (flat / ".ipynb_checkpoints").mkdir(parents=True)
    (flat / "__MACOSX").mkdir()
    for path in folder.rglob("*.png"):
        path.rename(flat / path.name)
    (flat / "._n01440764_0.png").write_bytes(b"what macOS adds")
    split = evaluate.load_pictures(argparse.Namespace(data=flat))
    assert split.classes == sorted(COLOURS) and len(split.images) == 6


def test_names_of_files_give_the_classes(folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        path.rename(flat / path.name)
    split = evaluate.named_pictures(flat)
    assert split.classes == sorted(COLOURS)
    result, labels, *_ = evaluate.evaluate(greedy_net(), split, TRANSFORM)
    assert [among["top1"] for among in result["accuracy"]] == [66.666667, 100.0]
    assert labels.tolist() == [0, 0, 1, 1, 1, 2]


def test_accuracy_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores, labels = random.random((500, 12)), random.integers(0, 12, 500)
    found = evaluate.accuracy(scores, labels)
    for k in (1, 5):
        share = metrics.top_k_accuracy_score(labels, scores, k=k)
        assert found[f"top{k}"] == pytest.approx(100 * share, abs=1e-3)


def test_equal_scores_earn_nothing():
    scores, labels = np.zeros((8, 10)), np.array([9] * 8)
    assert evaluate.accuracy(scores, labels)["top5"] == 0


def test_a_table_rounds_once():
    args = argparse.Namespace(model="a|b.keras", weights=None, data=".")
    labels = np.repeat([0, 2], [64, 28])
    among = evaluate.accuracy(np.tile([3, 2, 1], (92, 1)), labels)
    result = {"images": 92, "accuracy": [among]}
    assert evaluate.table(args, result) == (
        r"| a\|b.keras | - | . | 92 | 3 | 69.57 | 100.00 |" + "\n"
    )


def test_fewer_than_five_outputs():
    scores, labels = np.eye(3), np.array([0, 1, 0])
    found = evaluate.accuracy(scores, labels)
    assert found == {"classes": 3, "top1": 66.666667, "top5": 100.0}


CIFAR10 = TRANSFORM.checkpoint
TWELVE = sorted(map(str, range(12)))


@pytest.mark.parametrize(
    ("classes", "number", "row", "outputs", "names"),
    [
        (["truck", "cat"], 10, None, [9, 3], ["airplane", "automobile"]),
        (["a", "b"], 2, None, [0, 1], ["a", "b"]),
        # The network's own names, whose order is not that of folders.
        (["daisy", "rose"], 2, ("rose", "daisy"), [1, 0], ["rose", "daisy"]),
        (["rose"], 2, ("rose", "daisy"), [0], ["rose", "daisy"]),
        (["0", "1"], 2, ("rose", "daisy"), [0, 1], ["rose", "daisy"]),
        # As macOS writes it.
        (["M\u00f6we"], 2, ("Gans", "Mo\u0308we"), [1], ["Gans"]),
        (["Mo\u0308we"], 2, ("Gans", "M\u00f6we"), [1], ["Gans"]),
        (["M\u00f6we"], 2, ("M\u00f6we", "Mo\u0308we"), [0], ["M\u00f6we"]),
        # Folders named by numbers are sorted as words.
        (TWELVE, 12, tuple("abcdefghijkl"), map(int, TWELVE), ["a", "b"]),
        (TWELVE, 12, None, range(12), ["0", "1", "10"]),
        # Two of ImageNet's classes are cranes.
        (["n02012849", "n03126707"], 1000, None, [134, 517], ["tench"]),
        # Ten digits are CIFAR-10's classes only where it is its network.
        (list("0123456789"), 10, CIFAR10, range(10), ["airplane"]),
        (list("0123456789"), 10, (), range(10), ["0", "1"]),
        (list("0123456789"), 10, None, range(10), ["0", "1"]),
    ],
)
def test_which_output_a_class_is(classes, number, row, outputs, names, capsys):
    if isinstance(row, tuple):
        row = dataclasses.replace(CIFAR10, classes=number, labels=row)
    found, called = classifier.outputs_of(classes, number, row)
    assert found.tolist() == list(outputs)
    assert len(called) == number and called[: len(names)] == names
    assert not capsys.readouterr().err


def test_classes_in_order_are_told(capsys):
    own = dataclasses.replace(CIFAR10, classes=2, labels=("rose", "daisy"))
    found, called = classifier.outputs_of(["Gänseblume", "Rose"], 2, own)
    assert (found.tolist(), called) == ([0, 1], ["rose", "daisy"])
    assert "order, Gänseblume for rose, Rose for daisy, " in (
        capsys.readouterr().err
    )


def test_classes_that_the_network_does_not_have():
    for classes in (["a", "b"], ["crane"]):
        with pytest.raises(ValueError, match=r"class.* for 1000 outputs"):
            classifier.outputs_of(classes, 1000)
    own = dataclasses.replace(CIFAR10, labels=tuple("abcdefghij"))
    with pytest.raises(ValueError, match=r"2 classes for 10 .* cat, dog\."):
        classifier.outputs_of(["cat", "dog"], 10, own)
    own = dataclasses.replace(CIFAR10, classes=2, labels=("rose", "daisy"))
    # What the network has is not what is wrong.
    with pytest.raises(ValueError, match=r"for 2 outputs.* called tulip\."):
        classifier.outputs_of(["daisy", "tulip"], 2, own)


def test_corrupt_pictures(folder, capsys):
    broken = folder / "n02123045" / "n02123045_1.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    paths = sorted(map(str, folder.rglob("*.png")))
    split = data.Split(paths, np.array([0, 0, 1, 1, 1, 2]), sorted(COLOURS))
    result, labels, *_ = evaluate.evaluate(greedy_net(), split, TRANSFORM)
    # Three of the five that are left are not green.
    assert result["images"] == 5
    assert result["accuracy"][0]["top1"] == 60.0
    assert labels.tolist() == [0, 0, 1, 1, 2]
    assert capsys.readouterr().err.count(str(broken)) == 1
    with pytest.raises(ValueError, match=str(broken)):
        evaluate.evaluate(greedy_net(), split, TRANSFORM, on_corrupt="fail")


@pytest.fixture
def archive(tmp_path):
    """The packaged photographs and their mirror images, with some labels."""
    images = np.stack(
        [
            np.asarray(Image.open(path).convert("RGB").resize((32, 32)))
            for path in sorted(PACKAGED.glob("*.jpg"))
        ]
    )
    images = np.concatenate([images, images[:, :, ::-1], 255 - images])
    labels = np.array([0, 3, 1, 0, 7, 3, 6, 8, 2, 3, 5, 9])
    path = tmp_path / "data.npz"
    none = {"x_train": images[:0], "y_train": labels[:0]}
    np.savez(path, x_test=images, y_test=labels, **none)
    return path


def test_shipped_weights(archive, tmp_path, run_here):
    result = run_here(
        *(evaluate.main, "resnext29", "--weights", "cifar10"),
        *("--data", archive, "--out", tmp_path / "run"),
    )
    assert result.returncode == 0, result.stderr
    with np.load(archive) as file:
        images, labels = file["x_test"], file["y_test"]
    # Keras's own way to its own metrics.
    model = keras_resnext.ResNeXt29(weights="cifar10")
    model.compile(
        loss="sparse_categorical_crossentropy",
        metrics=[
            keras.metrics.SparseTopKCategoricalAccuracy(k, name=f"top{k}")
            for k in (1, 5)
        ],
    )
    images = keras_resnext.preprocess_input(images)
    _, top1, top5 = model.evaluate(images, labels, verbose=0)
    assert 0 < top1 < top5 < 1
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert stored["accuracy"] == [
        {
            "classes": 10,
            "top1": pytest.approx(100 * top1, abs=1e-3),
            "top5": pytest.approx(100 * top5, abs=1e-3),
        }
    ]
    assert stored["preprocessing"]["tag"] == "cifar10"
    row = (tmp_path / "run" / "evaluation.md").read_text()
    assert row == (
        f"| resnext29 | cifar10 | data.npz | 12 | 10 | {100 * top1:.2f} "
        f"| {100 * top5:.2f} |\n"
    )
    assert row in result.stdout
    if importlib.util.find_spec("matplotlib"):
        Image.open(tmp_path / "run" / "confusion.png").verify()


# What a machine without TensorFlow does: it can't be imported.
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_file_without_tensorflow(folder, tmp_path, on_jax):
    pytest.importorskip("jax")
    greedy_net().save(tmp_path / "net.keras")
    result = run(
        *("-c", WITHOUT_TENSORFLOW, SCRIPTS / "evaluate.py"),
        *(tmp_path / "net.keras", "--checkpoint", "resnext29/cifar10"),
        *("--resize", 40, "--data", folder, "--holdout", 1),
        *("--out", tmp_path / "run"),
        **on_jax,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "evaluation.md").read_text() == (
        "| net.keras | - | pictures | 6 | 1,000 | 66.67 | 100.00 |\n"
        "| net.keras | - | pictures | 6 | 3 | 100.00 | 100.00 |\n"
    )
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert stored["preprocessing"]["resize"] == 40
    assert "jax" in stored["versions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnext51"], "The network must be a .keras file or an archit"),
        (["resnext29", "--weights", "a.pth"], r"a\.pth"),
        (["mine.keras"], "--checkpoint must say which"),
        (["gone.keras", "--checkpoint", "resnet18"], "gone.keras"),
    ],
)
def test_says_what_is_wrong(folder, monkeypatch, arguments, message):
    script = str(SCRIPTS / "evaluate.py")
    monkeypatch.chdir(folder.parent)
    pathlib.Path("mine.keras").touch()
    monkeypatch.setattr(
        sys, "argv", [script, *arguments, "--data", str(folder)]
    )
    with pytest.raises(SystemExit, match=message):
        evaluate.main()


def test_an_unwritable_folder_is_said_so(folder, tmp_path, monkeypatch, capsys):
    greedy_net().save(tmp_path / "net.keras")
    (tmp_path / "out").write_text("")
    command = ["evaluate", str(tmp_path / "net.keras"), "--data", str(folder)]
    command += ["--checkpoint", "resnext29/cifar10", "--holdout", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    with monkeypatch.context() as patch:  # before anything is read
        patch.setattr(evaluate, "load_pictures", None)
        with pytest.raises(SystemExit, match="--out must be a folder that can"):
            evaluate.main()
    # If it becomes so meanwhile, what was measured is not lost.
    monkeypatch.setattr(files, "require_writable", lambda folder: None)
    with pytest.raises(SystemExit, match="--out must be a folder that can be"):
        evaluate.main()
    assert "| net.keras | - | pictures | 6 | " in capsys.readouterr().out


def test_folder_of_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"WordNet ids .* with neither"):
        evaluate.named_pictures(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_an_artifact_in_its_runtime(folder, tmp_path, monkeypatch, dtype):
    pytest.importorskip("onnxruntime", reason="a runtime is missing")
    pytest.importorskip("tf2onnx", reason="a converter is missing")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow exports")
    from keras_resnext.export import export

    row = dataclasses.replace(TRANSFORM.checkpoint, classes=1000)
    model = greedy_net()
    if dtype == "uint8":  # it normalises by itself
        x = keras.Input(model.input_shape[1:], dtype=dtype)
        y = keras.ops.cast(x, "float32")
        model = keras.Model(x, model(keras_resnext.preprocess_input(y)))
    export(model, tmp_path / "net.onnx", "onnx", checkpoint=row)
    model.save(tmp_path / "net.keras")
    tag = f"{row.architecture}/{row.tag}"
    sizes = ["--resize", str(row.resize), "--crop", str(row.crop)]
    for name, words in (
        ("net.onnx", ["--artifact"]),
        ("net.keras", ["--checkpoint", tag, *sizes]),
    ):
        command = ["evaluate", *words, str(tmp_path / name)]
        command += ["--data", str(folder), "--holdout", "1"]
        command += ["--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        evaluate.main()
        assert (tmp_path / "out" / "evaluation.md").read_text() == (
            f"| {name} | - | pictures | 6 | 1,000 | 66.67 | 100.00 |\n"
            f"| {name} | - | pictures | 6 | 3 | 100.00 | 100.00 |\n"
        )


def test_an_artifact_that_says_nothing(folder, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx", reason="pip install '.[export]'")
    keras_resnext.export.export(greedy_net(), tmp_path / "net.onnx", "onnx")
    words = ["--artifact", tmp_path / "net.onnx", "--data", folder]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    with pytest.raises(SystemExit, match=r"net\.onnx without net\.onnx\.json"):
        evaluate.main()


def test_what_an_artifact_says_is_checked(tmp_path):
    path = tmp_path / "net.onnx"
    file = serving.facts_of(path)
    row = TRANSFORM.checkpoint
    net, labels = greedy_net(), ["é"] * 1000
    facts = Job(net, "float32", 32, {}, None, row, labels, 5, 1).facts()
    serving.write_facts(facts, file)
    row, dtype = networks.exported(path)
    assert (row.classes, row.labels, dtype) == (1000, ("é",) * 1000, "float32")
    for field in ("resize", "crop", "interpolation", "mean", "std"):
        assert getattr(row, field) == getattr(TRANSFORM.checkpoint, field)
    for wrong in (
        *("", "[]", "[" * 100_000, "{}", file.read_text()[:50]),
        *({"crop": 10**9}, {"crop": 48.0}, {"resize": None}, {"labels": 3}),
        *({"labels": ["\x1b[31m"]}, {"labels": [1]}, {"dtype": "pixels"}),
        *({"mean": [1]}, {"std": "abc"}, {"interpolation": "lanczos"}),
    ):
        if isinstance(wrong, dict):
            wrong = json.dumps(facts | wrong)
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"Received: .*net\.onnx\.json, "):
            networks.exported(path)
    file.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="Export the network again"):
        networks.exported(path)


def test_either_a_network_or_an_artifact(monkeypatch, capsys):
    for words in ([], ["resnext29", "--artifact", "net.onnx"]):
        command = ["evaluate", *words, "--data", "x"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit):
            evaluate.parse_arguments()
        assert "A network or --artifact" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(["--resize", "40"], ["--crop", "32"], ["--weights", "cifar10"]),
        *(["--classes", "10"], ["--checkpoint", "resnet18"]),
        ["--accept-noncommercial"],
    ],
)
def test_an_artifact_takes_no_options_of_networks(monkeypatch, capsys, words):
    command = ["evaluate", "--artifact", "net.onnx", "--data", "x", *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        evaluate.parse_arguments()
    message = f"says which preprocessing pictures get. Received: {words[0]}. "
    assert message in capsys.readouterr().err


def test_no_path_is_not_this_folder(folder, monkeypatch):
    (path := next(folder.rglob("*.png"))).rename(folder.parent / path.name)
    folder.rename(folder.parent / ".pictures")
    monkeypatch.chdir(folder.parent)
    command = ["evaluate", "resnext29", "--data", ""]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match=r"--data must be .* Received: ''\."):
        evaluate.load_pictures(evaluate.parse_arguments())


def test_a_network_on_the_hub_has_no_other_weights():
    args = argparse.Namespace(model="hf://somebody/fine-tuned", weights=None)
    args.data, args.artifact = "data.npz", None
    among = {"classes": 10, "top1": 90.0, "top5": 99.0}
    row = evaluate.table(args, {"images": 12, "accuracy": [among]})
    assert row == "| fine-tuned | - | data.npz | 12 | 10 | 90.00 | 99.00 |\n"


def test_a_file_of_weights_gets_the_usual_preprocessing(capsys):
    file = PACKAGED.with_name("resnext29_cifar10.safetensors")
    args = argparse.Namespace(
        model="resnext29",
        weights=str(file),
        classes=None,
        checkpoint=None,
        accept_noncommercial=False,
        artifact=None,
        resize=None,
        crop=None,
    )
    _, row = evaluate.load_model(args)
    assert (row.architecture, row.tag) == ("resnext29", "cifar10")
    said = capsys.readouterr().err
    assert str(file) in said and "preprocessing of resnext29/cifar10" in said
    # What is passed counts, and is no surprise.
    args.checkpoint, args.crop = "resnext50_32x4d/imagenet1k_v2", 64
    _, row = evaluate.load_model(args)
    assert (row.tag, row.crop) == ("imagenet1k_v2", 64)
    assert not capsys.readouterr().err
    assert networks.assumed("resnext50_32x4d").architecture == "resnext50_32x4d"
    assert (
        networks.assumed("wide_resnet101_2").architecture == "wide_resnet101_2"
    )
