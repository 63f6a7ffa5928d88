"""The docs: links that lead somewhere, and the notebook from top to bottom."""

import pathlib
import re

import pytest

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
