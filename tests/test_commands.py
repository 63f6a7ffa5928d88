"""The package's own command line."""

import contextlib
import csv
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.__main__ import main
from keras_resnext.commands import arguments, console, exporting, listing
from keras_resnext.registry import ARCHITECTURES, CHECKPOINTS, resolve

# Each network is asked once: to trace it would take longer.
pytestmark = pytest.mark.usefixtures("eagerly")
PICTURES = pathlib.Path(keras_resnext.__file__).with_name("pictures")
SCRIPTS = PICTURES.parents[1] / "scripts"


def python(*words, path=()):
    """Runs a process of its own; returns its status, output and errors."""
    where = [*map(str, path), str(PICTURES.parents[1])]
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(where)},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


def run(*words, path=()):
    """Runs a command in a process of its own."""
    return python("-m", "keras_resnext", *words, path=path)


@pytest.fixture
def without_keras(tmp_path):
    """A place to search for modules first, in which Keras is broken."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "keras.py").write_text("raise SystemExit('Keras was imported')")
    return str(folder)


# --- All commands ------------------------------------------------------------


def test_help_has_an_example_of_each_command(capsys):
    for words in ([], *([name] for name in arguments.COMMANDS)):
        with pytest.raises(SystemExit) as end:
            main([*words, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0
        assert " ".join(["\n    keras-resnext", *words]) in text


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    version = f"keras_resnext {keras_resnext.__version__}\n"
    assert capsys.readouterr().out == version


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "required: {list,predict,export}"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["list", "--filter", "resnet50", "nonsense"], "--filter must leave"),
        (["list", "--json", "--markdown"], "not allowed with"),
        (["predict"], "required: PICTURE"),
        (["predict", "no.jpg"], "must be a file or folder that is there"),
        (["predict", ""], "must be a path. Received: ''"),
        (["predict", "ResNet-50", "."], "Pass that as --network ResNet-50."),
        (["predict", "hf://a/b", "."], "Pass that as --network hf://a/b."),
        (["predict", "x.keras", "."], "Pass that as --network x.keras."),
        (["predict", ".", "--csv", "a.jpg"], "that ends in .csv"),
        (["predict", ".", "--csv", "no/a.csv"], "in a folder to write to"),
        (["predict", ".", "--csv", "FOLDER.csv"], "must name a file that ends"),
        (["predict", ".", "--top", "0"], "must be an integer from 1"),
        (["export", "resnext29"], "required: --out"),
        (["export", "resnext29", "--out", "x", "--format", "y"], "choose from"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    words, sentence, without_keras, tmp_path
):
    (tmp_path / "FOLDER.csv").mkdir()
    words = [word.replace("FOLDER", str(tmp_path / "FOLDER")) for word in words]
    status, output, errors = run(*words, path=[without_keras])
    assert (status, output) == (2, "")
    assert sentence in errors
    assert "Traceback" not in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("name", [file.stem for file in SCRIPTS.glob("*.py")])
def test_scripts_help_and_refuse_without_keras(name, without_keras):
    """Which takes seconds."""
    script = SCRIPTS / f"{name}.py"
    status, output, errors = python(script, "--help", path=[without_keras])
    assert (status, errors) == (0, "") and f"{name}.py" in output
    status, output, errors = python(script, "--nonsense", path=[without_keras])
    assert (status, output) == (2, "") and len(errors.splitlines()) == 1


# --- list --------------------------------------------------------------------


def test_list_needs_no_keras(without_keras):
    for words in (["list"], ["list", "--json"], ["--version"]):
        status, output, errors = run(*words, path=[without_keras])
        assert (status, errors) == (0, "") and output


@pytest.mark.parametrize("option", [[], ["--markdown"]])
def test_list_has_a_line_for_everything(option, capsys):
    main(["list", *option])
    output = capsys.readouterr().out
    for name, tag in CHECKPOINTS:
        assert re.search(rf"^(\| )?{name}[ |]+{tag} ", output, re.M)
    for name in set(ARCHITECTURES).difference(name for name, _ in CHECKPOINTS):
        size = f"{ARCHITECTURES[name].num_params:,}"
        assert re.search(rf"{name}[ |]+-[ |]+{size}[ |]+[0-9.]+ ", output)
    assert re.search(
        r"resnext50_32x4d[ |]+imagenet1k_v1 [ |]+25,028,904[ |]+4\.23[ |]+"
        r"77\.618 / 93\.698[ |]+bsd-3-clause[ |]+256/224 bilinear",
        output,
    )


def test_list_marks_what_imagenet_loads(capsys):
    main(["list"])
    starred = re.findall(r"^(\S+) +(\S+) \* ", capsys.readouterr().out, re.M)
    with_one = set()
    for name in ARCHITECTURES:
        try:
            with_one.add((name, resolve(name, "imagenet").tag))
        except ValueError:
            continue
    assert set(starred) == with_one and len(starred) == len(with_one) > 10


def test_list_as_json(capsys):
    main(["list", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    tagged = {(row["architecture"], row["tag"]): row for row in rows}
    assert {key for key in tagged if key[1]} == set(CHECKPOINTS)
    row = tagged["resnext50_32x4d", "imagenet1k_v1"]
    assert row["licence"] == "bsd-3-clause" and row["commercial"]
    assert (row["num_params"], row["top1"]) == (25_028_904, 77.618)
    assert row["constructor"] == "ResNeXt50"


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["64X4D"], {"resnext101_64x4d"}),
        (["resnext101", "apache"], {"resnext101_32x4d", "resnext101_64x4d"}),
        (["152*4d"], {"resnext152_32x4d"}),
    ],
)
def test_list_with_a_filter(texts, names, capsys):
    main(["list", "--json", "--filter", *texts])
    rows = json.loads(capsys.readouterr().out)
    assert names <= {row["architecture"] for row in rows}
    for row in rows:
        text = " ".join(map(str, row.values())).lower()
        assert all(t.lower().partition("*")[0] in text for t in texts)


def test_docs_have_the_table():
    docs = PICTURES.parents[1] / "docs" / "weights.md"
    table = listing.markdown(map(listing.cells, listing.checkpoints()))
    assert table in docs.read_text("utf-8"), (
        "Put what `python -m keras_resnext list --markdown` prints there."
    )


# --- predict -----------------------------------------------------------------


def rows(output):
    """Returns `{picture: [(class, percent), …]}` of a printed table."""
    table = {}
    for line in output.splitlines()[1:]:
        picture, guesses = re.split("  +", line)
        table[picture] = re.findall(r"(\S.*?) ([\d.]+)%(?:, )?", guesses)
    return table


def test_predict_with_the_net_that_ships(tmp_path, capsys):
    folder = tmp_path / "holidays" / "2026"
    folder.mkdir(parents=True)
    shutil.copy(PICTURES / "rocket.jpg", folder)
    for name in ("README.md", ".DS_Store"):
        (folder / name).write_text("no picture")
    cat, out = PICTURES / "chelsea.jpg", tmp_path / "out.csv"
    words = ["predict", str(cat), str(tmp_path / "holidays")]
    assert main([*words, "--csv", str(out), "--batch-size", "1"]) == 0
    output, errors = capsys.readouterr()
    table = rows(output)
    assert list(table) == [str(cat), str(folder / "rocket.jpg")]
    for guesses, name in zip(table.values(), ("cat", "ship"), strict=True):
        assert guesses[0][0] == name and float(guesses[0][1]) > 80
        assert len(guesses) == 5
    assert "README.md" in errors and ".DS_Store" not in errors
    model = keras_resnext.ResNeXt29(weights="cifar10")
    transform = keras_resnext.eval_transform("resnext29/cifar10")
    scores = model(np.stack([transform(path) for path in table]))
    expected = keras_resnext.decode_predictions(scores, top=5)
    with open(out, newline="") as file:
        header, *written = csv.reader(file)
    assert header[:3] == ["picture", "class_1", "score_1"]
    assert len(header) == 11
    for row, picture, best in zip(written, table, expected, strict=True):
        assert row[0] == picture
        assert row[1::2] == [name for _, name, _ in best]
        np.testing.assert_allclose(
            np.array(row[2::2], float), [s for *_, s in best], atol=1e-5
        )


def test_predict_prints_what_readme_says(monkeypatch, capsys):
    readme = PICTURES.parents[1] / "README.md"
    words, printed = re.search(
        r"keras-resnext (predict .*)\n(?:.*\n)*?```\n\n```\n((?:.*\n)*?)```",
        readme.read_text("utf-8"),
    ).groups()
    monkeypatch.chdir(readme.parent)
    assert main(words.split()) == 0
    now, said = rows(capsys.readouterr().out), rows(printed)
    assert list(now) == list(said)
    for picture, guesses in said.items():
        for (name, share), (expected, rest) in zip(
            now[picture], guesses, strict=True
        ):
            assert name == expected
            # Each kind of processor rounds in its own way.
            assert float(share) == pytest.approx(float(rest), abs=0.2)


def test_predict_ends_with_2_where_a_named_picture_is_broken(tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    good = str(PICTURES / "chelsea.jpg")
    assert main(["predict", good, str(broken)]) == 2
    output, errors = capsys.readouterr()
    assert list(rows(output)) == [good]
    assert "Skipped" in errors and "broken.jpg" in errors
    out = tmp_path / "out.csv"
    with pytest.raises(SystemExit) as end:
        main(["predict", str(tmp_path), "--csv", str(out)])
    assert end.value.code == 2 and not out.exists()
    assert "One picture or more that can be read" in capsys.readouterr().err


def test_predict_says_and_writes_names_of_any_kind(tmp_path, capsys):
    names = (b"latin\xfc.jpg", b"two\nlines\x1b.jpg", "katze_ü.jpg".encode())
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy(os.fsencode(PICTURES / "chelsea.jpg"), path)
    out = tmp_path / "out.csv"
    status = main(["predict", str(tmp_path), "--csv", str(out), "--top", "1"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert status == 0 and len(lines) == 3
    shown = {line.split("  ")[0].rpartition("/")[2] for line in lines}
    assert shown == {r"latin\udcfc.jpg", r"two\nlines\x1b.jpg", "katze_ü.jpg"}
    written = out.read_bytes()
    assert all(name in written for name in names)


def test_output_that_knows_few_letters():
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    with contextlib.redirect_stdout(stream), console.plain_errors():
        print("ü")
    stream.seek(0)
    assert stream.read() == "\\xfc\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes")
def test_predict_does_not_wait_for_a_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    shutil.copy(PICTURES / "chelsea.jpg", tmp_path)
    words = ["predict", str(tmp_path), "--top", "1"]
    assert main(words) == 0 and not capsys.readouterr().err
    words.insert(1, str(tmp_path / "pipe.jpg"))
    assert main(words) == 2
    assert "pipe.jpg' (it is no regular file)" in capsys.readouterr().err


@pytest.fixture
def own(tmp_path):
    """A file of a network of a person's own, three classes of one colour."""
    x = keras.Input((8, 8, 3))
    y = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(x, keras.layers.Dense(3, activation="softmax")(y))
    model.set_weights([np.eye(3) * 3, np.zeros(3)])
    model.save(tmp_path / "own.keras")
    picture = tmp_path / "green.png"
    Image.new("RGB", (20, 30), (0, 255, 0)).save(picture)
    return tmp_path / "own.keras", picture


def test_networks_larger_than_their_files(own, tmp_path, capsys):
    """Keras would make room for all of it before it finds no numbers."""
    network, picture = own
    with zipfile.ZipFile(network) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    dense = config["config"]["layers"][-1]["config"]
    dense["units"] = 10**12  # 16 TB
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "large.keras", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with zipfile.ZipFile(tmp_path / "packed.keras", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part, zipfile.ZIP_DEFLATED)
    for name, reason in (
        ("large", "its network has 4,000,000,000,000 numbers, and the file "),
        ("packed", "its entries are compressed or overlap"),
    ):
        words = ["predict", str(picture), "--network", str(network)]
        words[-1] = str(tmp_path / f"{name}.keras")
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert reason in capsys.readouterr().err


def test_networks_that_were_compiled(own, capsys):
    """With a loss that only their training had."""
    network, picture = own

    def own_loss(truth, found):
        return keras.ops.mean(found)

    model = keras.models.load_model(network)
    model.compile("adam", own_loss)
    model.save(network)
    assert main(["predict", str(picture), "--network", str(network)]) == 0
    assert "class 1" in capsys.readouterr().out


def test_predict_with_an_own_network(own, tmp_path, capsys):
    network, picture = own
    words = ["predict", str(picture), "--network", str(network), "--top", "2"]
    assert main(words) == 0
    output, errors = capsys.readouterr()
    assert rows(output)[str(picture)][0][0] == "class 1"
    assert "8/8 bilinear" in errors  # of which nothing is known
    labels = tmp_path / "labels.txt"
    # As an editor on Windows may write it, with a mark at the start.
    labels.write_text("red\ngreen\nblue\n", "utf-8-sig")
    assert main([*words, "--labels", str(labels), "--top", "3"]) == 0
    best = [name for name, _ in rows(capsys.readouterr().out)[str(picture)]]
    assert best[0] == "green" and sorted(best) == ["blue", "green", "red"]
    labels.write_text("red\ngreen\n")
    with pytest.raises(SystemExit) as end:
        main([*words, "--labels", str(labels)])
    assert end.value.code == 2
    assert "2 names for 3 classes" in capsys.readouterr().err
    for encoding in ("latin-1", "utf-16"):
        labels.write_text("rouge\nvert\nb\xe9ige\n", encoding)
        for command in (words, ["export", str(network), "--out", "none"]):
            with pytest.raises(SystemExit):
                main([*command, "--labels", str(labels)])
            error = capsys.readouterr().err
            sentence = "--labels must be a text file in UTF-8. Received: "
            assert f"{sentence}{labels} (" in error
    # As train.py writes it.
    options = {"test_size": 8, "sizes": [8], "test_resize": None}
    options |= {"model": "resnext29", "weights": "cifar10"}
    names = ["rouge", "vert", "bleu"]
    text = json.dumps({"options": options, "classes": names})
    (tmp_path / "result.json").write_text(text)
    assert main(words) == 0
    output, errors = capsys.readouterr()
    assert rows(output)[str(picture)][0][0] == "vert" and not errors
    for changes in (
        *({"test_size": side} for side in (60_000, "32", -3, 32.5)),
        {"test_resize": 10**6},
        {"model": ["resnext29"]},
        {"classes": [1, 2, 3]},
        {"classes": ["rouge", "vert", "\x1b[2J"]},
        {"test_size": None, "sizes": []},
        "[" * 100_000,
    ):
        if isinstance(changes, dict):
            stranger = {"options": options | changes, "classes": names}
            changes = json.dumps(stranger | changes)
        (tmp_path / "result.json").write_text(changes)
        assert main(words) == 0
        output, errors = capsys.readouterr()
        assert "vert" not in output and "8/8 bilinear" in errors


def test_pictures_have_their_channels_last(own):
    """Whatever Keras's own file of settings says."""
    before = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        assert main(["predict", str(own[1])]) == 0
    finally:
        keras.config.set_image_data_format(before)


def test_a_keras_that_would_run_code(own, monkeypatch, capsys):
    """Before 3.13.2 a file could have it do so."""
    network, picture = own
    monkeypatch.setattr(keras, "__version__", "3.13.1")
    with pytest.raises(SystemExit):
        main(["predict", str(picture), "--network", str(network)])
    assert "Keras 3.13.2 or newer is required" in capsys.readouterr().err


def test_what_is_hidden_is_no_picture(tmp_path, capsys):
    shutil.copy(PICTURES / "chelsea.jpg", tmp_path)
    (tmp_path / ".trash").mkdir()
    shutil.copy(PICTURES / "rocket.jpg", tmp_path / ".trash")
    assert main(["predict", str(tmp_path), "--top", "1"]) == 0
    assert list(rows(capsys.readouterr().out)) == [
        str(tmp_path / "chelsea.jpg")
    ]


def test_a_network_that_was_meant(own, tmp_path, capsys):
    for name, advice in (
        ("resnext5", "Pass one of resnext50_32x4d, "),
        (str(own[0].parent), "Pass the .keras file, as model.keras in"),
        (str(tmp_path / "gone.keras"), "must be a .keras file that is there"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["predict", str(own[1]), "--network", name])
        output, errors = capsys.readouterr()
        assert (end.value.code, output) == (2, "") and advice in errors
        assert "wide_resnet" not in errors  # no list of all


@pytest.mark.parametrize("option", ["--batch 4", "--max-loss 2.5"])
def test_export_heeds_what_it_is_told_or_says_so(option, tmp_path, capsys):
    words = ["export", "resnext29", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main([*words, *option.split()])
    assert end.value.code == 2
    name = option.split()[0]
    assert (
        f"{name} must be left out without `fastest`, which alone heeds it. "
        f"Received: {option}. " in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("", "must not end in .onnx for saved_model. Received: path='"),
        ("--precision bfloat16", "must not end in .onnx for saved_model"),
        ("--format openvino", 'Pass format="onnx" (--format onnx on the '),
        ("--format fastest", "must not end in .onnx for fastest"),
        ("--format onnx --precision all", "must be a folder for several"),
        ("--format litert onnx", "must be a folder for several artifacts"),
    ],
)
def test_export_takes_a_file_for_one_alone(options, error, tmp_path, capsys):
    for package in ("tf2onnx", "onnxruntime", "ai_edge_litert", "openvino"):
        pytest.importorskip(package, reason="a runtime is missing")
    out = tmp_path / "net.onnx"
    words = ["export", "resnext29", "--out", str(out), *options.split()]
    if "all" in options:
        words += ["--calibration", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and error in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_export_writes_nothing_twice():
    names = ["saved_model", "onnx", "saved_model"]
    assert exporting.artifacts(names, ["float32", "float32"], None) == [
        ("saved_model", "float32"),
        ("onnx", "float32"),
    ]


def test_unknown_options_are_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["list", "--fliter", "resnet"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "unrecognized arguments: --fliter resnet. See" in error
    assert "keras-resnext list --help" in error


@pytest.mark.parametrize("backend", ["tensorfow", "jax", ""])
def test_a_backend_that_is_not_there(backend, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    if not backend:
        monkeypatch.delenv("KERAS_BACKEND")
        backend = "tensorflow"
    (tmp_path / f"{backend}.py").write_text(
        f"raise ModuleNotFoundError('No module', name={backend!r})"
    )
    picture = PICTURES / "chelsea.jpg"
    status, output, errors = run("predict", picture, path=[tmp_path])
    assert (status, output) == (2, "") and "Traceback" not in errors
    assert f"Received: {backend} (" in errors.splitlines()[-1]
    assert "where KERAS_BACKEND is not set, ~/.keras/ker" in errors


@pytest.mark.parametrize(
    ("backend", "installed", "advice"),
    [
        ("torch", "", "Run `pip install torch`; where"),
        ("torch", "jax", "torch`, or set KERAS_BACKEND=jax, which is installe"),
        ("tensorfow", "jax", "Set KERAS_BACKEND=jax, which is installed; w"),
        ("tensorfow", "", "Run `pip install tensorflow`; where"),
    ],
)
def test_a_backend_that_is_there(backend, installed, advice, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    for name in ("tensorflow", "jax", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        console.importlib.util, "find_spec", lambda name: name in installed
    )
    error = ModuleNotFoundError(f"No module {backend!r}", name=backend)
    text = console.sentence(error)
    assert f"Received: {backend} (No module '{backend}'). " in text
    assert advice in text
    # One that is imported is there, whatever else is missing.
    monkeypatch.setitem(sys.modules, backend, sys)
    assert "A backend" not in console.sentence(error)


def test_logits_are_no_percentages(own, capsys):
    network, picture = own
    model = keras.models.load_model(network)
    model.layers[-1].activation = keras.activations.linear
    model.layers[-1].bias.assign([0.0, 0.0, -0.5])
    model.save(network)
    assert main(["predict", str(picture), "--network", str(network)]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert "%" not in line and re.findall(r"-?\d\.\d\d", line)[2][0] == "-"


def test_predict_takes_classifiers_alone(own, tmp_path, capsys):
    network, picture = own
    words = ["predict", str(picture), "--network", str(network)]
    with pytest.raises(SystemExit) as end:
        main([*words, "--checkpoint", "resnext29/cifar10"])
    assert end.value.code == 2
    sentence = "32 pixels for 8x8. Pass another --checkpoint."
    assert sentence in capsys.readouterr().err
    for option in (["--weights", "cifar10"], ["--classes", "3"]):
        with pytest.raises(SystemExit) as end:
            main([*words, *option])
        assert end.value.code == 2
        assert "must be named alone" in capsys.readouterr().err
    x = keras.Input((8, 8, 3))
    for outputs in (x, [keras.layers.Flatten()(x)] * 2):
        keras.Model(x, outputs).save(network)
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert "one score for each class" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_in_a_process_of_its_own(own, tmp_path):
    network, picture = own
    status, output, _ = run("predict", picture, "--network", network)
    assert status == 0 and "class 1" in output
    status, output, errors = run("predict", picture, "--network", "resnext")
    assert (status, output) == (2, "")
    assert "must be a .keras file or an architecture" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("scripts/train.py --data pictures --out run", "keras"),
        ("scripts/evaluate.py resnext29 --data pictures", "keras"),
        ("scripts/explain.py resnext29 --data pictures --out run", "keras"),
        ("scripts/quickstart.py", "keras"),
        ("scripts/benchmark.py", "numpy"),
        ("scripts/cardinality.py", "numpy"),
        ("scripts/serving_client.py", "requests"),
        ("-m keras_resnext predict .", "keras"),
    ],
)
def test_control_c_while_modules_are_imported(words, module, tmp_path):
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    words = words.replace("scripts", str(SCRIPTS)).split()
    status, _, errors = python(*words, path=[tmp_path])
    assert (status, errors) == (130, "Interrupted.\n")


@pytest.mark.parametrize(
    "command",
    [
        "__keras_later__ = True\n"
        "from keras_resnext.commands import console\n"
        "console.plain_errors()(signal.raise_signal)(signal.SIGINT)\n",
        "import sys, keras_resnext.__main__\n"
        "from keras_resnext.commands import listing\n"
        "listing.run = lambda args: signal.raise_signal(signal.SIGINT)\n"
        "sys.argv = ['keras-resnext', 'list']\n"
        "keras_resnext.__main__.main()\n",
    ],
)
def test_control_c_while_a_command_ends(command, tmp_path):
    script = tmp_path / "keras-resnext.py"  # without Keras
    script.write_text(
        "import atexit, signal\n"
        f"atexit.register(signal.raise_signal, signal.SIGINT)\n{command}"
    )
    status, _, errors = python(script)
    assert (status, errors) == (130, 2 * "Interrupted.\n")


def test_control_c_ends_with_130(own, monkeypatch, capsys):
    from keras_resnext.commands import networks

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "load", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["predict", str(own[1])])
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


# --- The package -------------------------------------------------------------


def test_help_and_completion_have_the_public_names():
    names = set(keras_resnext.__all__)
    assert len(names) == len(keras_resnext.__all__)
    for net in ARCHITECTURES.values():
        assert net.constructor in names
    assert {"export", "transfer", "weights", "eval_transform"} <= names
    assert set(dir(keras_resnext)) == names | {"__version__"}
    for name in names:
        assert getattr(keras_resnext, name).__doc__


@pytest.mark.parametrize(
    ("lines", "loaded"),
    [
        ("import keras_resnext", True),
        ("__keras_later__ = True; import keras_resnext", False),
        (
            "__keras_later__ = True; from keras_resnext import ResNeXt50",
            True,
        ),
    ],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_keras_is_loaded_at_once_unless_a_program_says_later(
    lines, loaded, as_module, without_keras, tmp_path
):
    """Else Keras finds no layers of ours in a file that it loads."""
    file = tmp_path / "keras_resnext_of_mine.py"
    file.write_text(f"{lines}; print('no Keras')")
    words = ("-m", file.stem) if as_module else (file,)
    status, output, errors = python(*words, path=[without_keras, tmp_path])
    expected = (1, "") if loaded else (0, "no Keras\n")
    assert (status, output) == expected
    assert ("Keras was imported" in errors) == loaded


def test_a_package_that_runs_as_a_module_has_the_names(without_keras, tmp_path):
    """While Python looks for it, its own name is not known yet."""
    package = tmp_path / "trainer"
    package.mkdir()
    (package / "__init__.py").write_text("import keras_resnext")
    (package / "__main__.py").write_text("")
    # An argument of that name is no module that runs.
    words = ("-m", "trainer", "--network", "keras_resnext")
    errors = python(*words, path=[without_keras, tmp_path])[2]
    assert "Keras was imported" in errors
