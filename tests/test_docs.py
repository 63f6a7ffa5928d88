"""The docs: links that lead somewhere, and the notebook from top to bottom."""

import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import keras_resnext
from keras_resnext import __main__ as command_line
from keras_resnext.commands import arguments

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def test_there_are_pages():
    assert {ROOT / "README.md", ROOT / "docs/index.md"} < set(PAGES)
    assert any(LINK.search(page.read_text("utf-8")) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        assert (page.parent / target).is_file(), target


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180


def commands():
    """Returns the page, the program and the words of each command."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                for i, word in enumerate(words):
                    name = word.rpartition("/")[2]
                    if name == "keras-resnext" or "scripts/" in word:
                        found.append((page.name, name, words[i + 1 :]))
    # The tables of docs/train.md have the options alone.
    text = (ROOT / "docs/train.md").read_text("utf-8")
    for options in re.findall(r"\| `(--.*?)` \|", text):
        words = ["--data", "flowers/", *options.split(), "--out", "runs/NAME"]
        found.append(("train.md", "train.py", words))
    return found


@pytest.mark.parametrize(("page", "program", "words"), commands())
def test_commands_exist(page, program, words, monkeypatch):
    """Each one is read; the files that it names need not be there."""
    if program == "keras-resnext":
        monkeypatch.setattr(arguments, "_there", pathlib.Path)
        monkeypatch.setattr(arguments, "_csv", pathlib.Path)
        command_line.parser().parse_args(words)
        return
    script = importlib.import_module(program.removesuffix(".py"))
    monkeypatch.setattr("sys.argv", [program, *words])
    if program != "quickstart.py":
        script.parse_arguments()


def test_commands_are_found():
    programs = {program for _, program, _ in commands()}
    assert {"keras-resnext", "train.py", "benchmark.py"} < programs


def test_what_keras_says_of_a_file_whose_layers_it_does_not_know(tmp_path):
    path = tmp_path / "model.keras"
    keras_resnext.ResNeXt((1,), 2, 4, stem="cifar", classes=3).save(path)
    load = f"import keras; keras.saving.load_model({str(path)!r})"
    environment = dict(os.environ)
    if importlib.util.find_spec("jax"):  # which Keras's NumPy needs
        environment["KERAS_BACKEND"] = "numpy"  # imported at once
    answer = subprocess.run(
        [sys.executable, "-c", load],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    heading = next(
        line
        for line in (ROOT / "docs/errors.md").read_text("utf-8").splitlines()
        if "Could not locate class" in line
    )
    for words in re.findall("`(.*?)`", heading):
        assert words.strip("… ") in answer.stderr
    for page in ("README.md", "docs/weights.md", "docs/errors.md"):
        text = " ".join((ROOT / page).read_text("utf-8").split())
        assert re.search("`.keras` file.*`import keras_resnext` first", text)


@pytest.mark.slow
def test_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="pip install '.[test]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install '.[test]'")
    notebook = nbformat.read(ROOT / "docs/finetune.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    printed = "".join(
        output.get("text", "")
        for cell in client.nb.cells
        for output in cell.get("outputs", ())
    )
    first, second = map(float, re.findall(r"([\d.]+)% with", printed))
    assert 75 < first < second
    assert (tmp_path / "digits.keras").is_file()
