"""Pictures of what was learnt."""

import base64
import csv
import io
import json
import os
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import explain as script
import keras_resnext
from common import data, grad_cam, pictures

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="Grad-CAM uses TensorFlow's tape",
    ),
    # Each network is asked once: to trace it would take longer.
    pytest.mark.usefixtures("eagerly"),
]
for package in ("matplotlib", "sklearn"):
    pytest.importorskip(package, reason="pip install '.[examples]'")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Gives the path of a network of two classes: less red, or more."""
    base = keras_resnext.ResNeXt(
        (1, 1), 2, 4, include_top=False, stem="cifar", pooling="avg"
    )
    network = keras.Sequential([base, keras.layers.Dense(2, "softmax")])
    path = tmp_path_factory.mktemp("run") / "model.keras"
    network.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Gives a folder of two classes, with a file that is no picture."""
    random = np.random.default_rng(0)
    for name in ("blue", "red"):
        for i in range(12):
            file = tmp_path / "data" / name / f"{name}{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (16, 16, 3), "uint8")
            Image.fromarray(pixels).save(file)
    (tmp_path / "data" / "red" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "data"


def test_page(model, folder, tmp_path, run_here):
    log = model.with_name("log.csv")
    log.write_text(
        "epoch,loss,val_loss,accuracy,val_accuracy,learning_rate\n"
        "0,1,1.2,0.5,0.4,0.1\n1,0.8,1.1,0.6,0.5,0.05\n"
    )
    # The pictures' size is train.py's.
    options = {"test_size": None, "sizes": [8, 16], "test_resize": None}
    options |= {"model": "resnext29", "weights": None}
    (model.parent / "result.json").write_text(
        json.dumps({"options": options, "classes": ["a", "b"]})
    )
    out = tmp_path / "out"
    options = ("--data", folder, "--holdout", 0.5)
    options += ("--count", 5, "--out", out)
    result = run_here(script.main, model, *options)
    assert result.returncode == 0, result.stderr
    assert "Skipped: " in result.stderr and "bad.png" in result.stderr
    names = {"worst.png", "best.png", "confusion.png", "training.png"}
    others = {"explain.html", "predictions.csv"}
    assert {f.name for f in out.iterdir()} == names | others
    page = (out / "explain.html").read_text()
    inside = {
        base64.b64decode(text)
        for text in re.findall(r"data:image/png;base64,([^\"]+)", page)
    }
    names = ("confusion.png", "training.png")
    assert inside == {(out / name).read_bytes() for name in names}
    _check_cards(page, folder)
    _check_table(out / "predictions.csv", page, folder)
    right = re.search(r"([\d.]+)% of the test pictures", result.stdout)[0]
    assert right in page
    log.unlink()
    (model.parent / "result.json").unlink()


def test_names_that_matplotlib_cannot_read(model, tmp_path, run_here):
    """Two dollars would begin and end a formula; and one is not UTF-8."""
    folder = tmp_path / "$a_b_{c$"
    for name in (b"$\\frac$1$", b"caf\xe9 $"):
        place = folder / os.fsdecode(name)
        place.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(place / f"{place.name}.png")
    options = ("--size", 16, "--data", folder, "--holdout", 1)
    log = model.with_name("log.csv")
    log.write_text("epoch,loss,accuracy,learning_rate\n0,1,0.5,0.1\n")
    result = run_here(script.main, model, *options, "--out", tmp_path / "$x_$")
    log.unlink()
    assert result.returncode == 0, result.stderr
    written = {path.name for path in (tmp_path / "$x_$").iterdir()}
    assert {"best.png", "confusion.png", "explain.html"} <= written


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("a$b_c$", "a$b_c$"),
        ("$1", "$1"),
        ("caf\udce9", r"caf\udce9"),
        (r"\$a$", r"\$a$"),
    ],
)
def test_texts_are_drawn_as_they_are(name, drawn):
    plt = pictures.pyplot()
    figure = plt.figure()
    title = figure.suptitle(pictures.plain(name))
    assert title._preprocess_math(title.get_text()) == (drawn, False)
    plt.close(figure)


def _check_cards(page, folder):
    """Each picture is there with its heat map and its path."""
    cards = re.findall(r"<figure>.*?</figure>", page)
    assert len(cards) == 10
    for card in cards:
        link, name = re.search(
            r'<a href="file://(.*?)">(.*?)</a>', card
        ).groups()
        assert link == str(folder / name) and (folder / name).exists()
        plain, heated = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
            for text in re.findall(r"data:image/jpeg;base64,([^\"]+)", card)
        )
        # As sharp as the file has it, and not the network's 16 pixels.
        assert plain.shape == heated.shape == (160, 160, 3)
        with Image.open(folder / name) as file:
            file = file.convert("RGB").resize((160, 160), Image.BILINEAR)
        assert np.abs(np.asarray(file, float) - plain).mean() < 12
        assert np.abs(heated.astype(float) - plain).mean() > 12
    assert page.count('<p class="key">nothing <span') == 2


def _check_table(path, page, folder):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held = data.load(folder, holdout=0.5)[1]
    assert {row["picture"] for row in rows} == {
        str(pathlib.Path(image).relative_to(folder)) for image in held.images
    }
    truths = [float(row["probability"]) for row in rows]
    assert truths == sorted(truths)
    for row in rows:
        right = row["class"] == row["predicted"]
        assert right == (row["probability"] == row["its_probability"])
    worst = re.findall(r'">([^<]*)</a></figcaption>', page)[:5]
    assert worst == [row["picture"] for row in rows[:5]]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(size=None), r"--size must be given .* --size=None\. Pass"),
        (dict(model="other"), r"a \.keras file or an arch.*Received: other"),
        (
            dict(model="resnext29", weights="cifar10"),
            r"Received: 2 classes for 10 outputs, .* blue, red\. Pass",
        ),
        (dict(holdout=0), r"Pictures to test with .*: 0 pictures\. Add some"),
        (dict(on_corrupt="fail"), r"Received: .*bad\.png \(.*\)\. Remove"),
        (dict(data="one"), r"Received: 1 classes for 2 outputs, .*Pass"),
        (dict(data="empty"), r"Received: .*void without any\. Add some"),
        (dict(data="nowhere"), r"Received: nowhere, .* Check the path"),
    ],
)
def test_bad_input(options, message, model, folder, tmp_path, run_here):
    given = dict(model=model, size=16, data=folder, on_corrupt="skip")
    given |= dict(holdout=0.5) | options
    if given["data"] == "one":
        (folder / "blue").rename(tmp_path / "blue")
        given["data"] = folder
    elif given["data"] == "empty":
        (folder / "void").mkdir()
        given["data"] = folder
    arguments = [given.pop("model"), "--out", tmp_path / "out"]
    for name, value in given.items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", value]
    result = run_here(script.main, *arguments)
    assert result.returncode == 1
    assert re.search(message, result.stderr.splitlines()[-1])
    assert not (tmp_path / "out").exists()


def test_an_unwritable_page_is_said_so(
    model, folder, tmp_path, run_here, monkeypatch
):
    (tmp_path / "out").write_text("")
    monkeypatch.setattr(data, "load", None)  # before anything is read
    options = ("--size", 16, "--data", folder, "--out", tmp_path / "out")
    result = run_here(script.main, model, *options)
    assert result.returncode == 1
    message = "--out must be a folder that can be written"
    assert result.stderr.splitlines()[-1].startswith(message)


def test_another_backend_is_said_so_first(
    model, folder, tmp_path, run_here, monkeypatch
):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(data, "load", None)
    options = ("--size", 16, "--data", folder, "--out", tmp_path / "out")
    result = run_here(script.main, model, *options)
    assert result.returncode == 1
    assert "Received: jax. Set KERAS_BACKEND=tensorflow." in result.stderr


def test_worst_and_best_are_the_least_and_most_probable_truths():
    labels = np.array([0, 1, 2, 0, 1])
    scores = np.array(
        [
            [0.2, 0.7, 0.1],  # taken for 1
            [0.1, 0.8, 0.1],
            [0.3, 0.3, 0.4],
            [0.95, 0.0, 0.05],
            [0.99, 0.01, 0.0],  # taken for 0
        ]
    )
    chosen = script.pages(labels, scores, 3)
    assert chosen["worst"].tolist() == [4, 0, 2]
    assert chosen["best"].tolist() == [3, 1, 2]
    captions = [script.caption(labels[i], scores[i], "abc") for i in (0, 3)]
    assert captions == ["a 20%, taken for b 70%", "a 95%"]


def test_confusion_counts(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        pictures, "save", lambda figure, _: drawn.append(figure)
    )
    pictures.confusion([0, 0, 0, 0, 2], [0, 0, 0, 2, 1], "abc", "none.png")
    (axis,) = drawn[0].axes
    shares = axis.images[0].get_array().tolist()
    assert shares == [[0.75, 0, 0.25], [0, 0, 0], [0, 1, 0]]
    assert sorted(t.get_text() for t in axis.texts if t.get_text()) == [
        *("100%", "25%", "75%"),
    ]
    assert axis.get_title() == "3 of 5 right"
    pictures.pyplot().close(drawn[0])


def test_pages_of_a_checkpoint(folder, tmp_path, monkeypatch, capsys):
    """Three of ten classes, by an architecture and its weights."""
    for path in folder.rglob("*.png"):  # five of each class are enough
        if path.stem[-1] not in "012":
            path.unlink()
    (folder / "red").rename(folder / "ship")
    (folder / "blue").rename(folder / "cat")
    drawn = {}

    def overlays(examples, title, path):
        drawn[path.stem] = examples

    monkeypatch.setattr(pictures, "overlays", overlays)
    command = ["explain", "resnext29", "--weights", "cifar10", "--data"]
    command += [str(folder), "--holdout", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--count", "30"])
    script.main()

    paths = sorted(folder.rglob("*.png"))
    transform = keras_resnext.eval_transform("resnext29/cifar10")
    model = keras_resnext.ResNeXt29(weights="cifar10")
    scores = model(np.stack([transform(path) for path in paths]))
    truth = np.asarray(scores)[range(10), [3] * 5 + [8] * 5]
    for page, order in (("worst", 1), ("best", -1)):
        captions = [caption for _, _, caption in drawn[page]]
        found = [float(re.search(r" (\d+)%", text)[1]) for text in captions]
        expected = 100 * np.sort(truth)[::order]
        np.testing.assert_allclose(found, expected, atol=0.51)
        assert all(text.startswith(("cat ", "ship ")) for text in captions)
    right = (np.asarray(scores).argmax(-1) == [3] * 5 + [8] * 5).mean()
    assert f"{right:.2%} of the test pictures" in capsys.readouterr().out


def _sequential(base, top):
    flip = keras.layers.RandomFlip("horizontal")
    return keras.Sequential([keras.Input((16, 16, 3)), flip, base, top])


def _siamese(base, top):
    a, b = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    return keras.Model([a, b], top(keras.layers.Add()([base(a), base(b)])))


def _frames(base, top):
    x = keras.Input((2, 16, 16, 3))
    y = keras.layers.TimeDistributed(base)(x)
    y = keras.layers.GlobalAveragePooling1D()(y)
    return keras.Model(x, top(y))


def _ending(*layers):
    return lambda base, top: keras.Sequential([base, top, *layers])


HEADS = {
    "sequential": _sequential,
    "one graph": lambda base, top: keras.Model(
        base.inputs[0], top(base.output)
    ),
    "siamese": _siamese,
    "frames": _frames,
    "softmax apart": _ending(keras.layers.Softmax()),
    "activation apart": _ending(keras.layers.Activation("softmax")),
    "a head of its own": lambda base, top: keras.Sequential(
        [base, keras.Sequential([keras.Input((512,)), top])]
    ),
    "bytes": lambda base, top: keras.Sequential(
        [keras.Input((16, 16, 3), dtype="uint8"), base, top]
    ),
}


@pytest.mark.parametrize("form", HEADS)
def test_heat_maps(form):
    # Pooling and one dense layer: the gradient is known without a tape.
    base = keras_resnext.ResNeXt(
        (1, 1), 2, 4, include_top=False, stem="cifar", pooling="avg"
    )
    apart = form.endswith("apart")
    top = keras.layers.Dense(3, None if apart else "softmax")
    random = np.random.default_rng(0)
    top.build((None, 512))
    # Something speaks for each class, and something against it.
    top.kernel.assign(random.uniform(-0.8, 1, (512, 3)))
    network = HEADS[form](base, top)
    x = random.standard_normal((6, 16, 16, 3), "float32")
    if form == "bytes":
        x = random.integers(0, 256, x.shape, "uint8")
    classes = np.array([2, 0, 1, 1, 2, 0])
    expected = _expected(base, top, x, classes)
    activations = [network.layers[-1].__dict__.get("activation")]
    if form == "siamese":
        expected = [expected, _expected(base, top, x[::-1], classes)]
        x = [x, x[::-1]]
    elif form == "frames":
        x, classes = x.reshape(3, 2, 16, 16, 3), classes[:3]
        heat = [_expected(base, top, x[:, i], classes) for i in range(2)]
        expected = np.stack(heat, 1)
    for frozen in (False, True):
        network.trainable = not frozen
        found = grad_cam.grad_cam(network, x, classes)
        for one, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, right, atol=1e-4)
        # The network is as it was.
        assert grad_cam.activation(network) is keras.activations.softmax
        assert activations == [network.layers[-1].__dict__.get("activation")]


def _expected(base, top, x, classes):
    """Returns heat maps by the definition, of a linear head."""
    maps = keras_resnext.transfer.features(base, ["conv3"])(x)["conv3"]
    kernel = keras.ops.convert_to_numpy(top.kernel)
    heat = np.einsum("nhwc,cn->nhw", np.asarray(maps), kernel[:, classes])
    heat = np.maximum(heat, 0)
    return heat / heat.max((1, 2), keepdims=True)


def test_heat_maps_need_feature_maps():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"must have feature maps .* without"):
        grad_cam.grad_cam(model, np.zeros((1, 4)), [0])


def test_heat_maps_come_in_batches(monkeypatch):
    computed = []

    def heat(model, images, classes):
        assert len(images) == len(classes)
        computed.append(len(images))
        return np.full((len(images), 2, 2), len(computed), "float32")

    monkeypatch.setattr(grad_cam, "grad_cam", heat)
    images = keras.Input((32, 32, 3))
    model = keras.Model(images, keras.layers.Identity()(images))
    shown = script.show(
        *(model, list(np.zeros((5, 32, 32, 3), "uint8")), "abcde"),
        keras_resnext.eval_transform("resnext29/cifar10"),
        *("vwxyz", np.arange(5), 2),
    )
    assert computed == [2, 2, 1]
    assert [one.heat[0, 0] for one in shown] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("lines", ["epoch,loss\n0,1.5\n", "a,b\n1,2\n", "x\n"])
def test_a_log_of_another_program_has_no_curves(lines, tmp_path, capsys):
    (tmp_path / "log.csv").write_text(lines)
    script.draw_training(tmp_path / "log.csv", tmp_path / "training.png")
    assert "log.csv is not train.py's" in capsys.readouterr().err
    assert not (tmp_path / "training.png").exists()
