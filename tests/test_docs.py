"""The docs: links that lead somewhere, and the notebook from top to bottom."""

import importlib
import pathlib
import re
import shlex

import pytest

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
