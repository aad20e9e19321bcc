"""Relative links lead to files and headings that exist (tools/links.py)."""
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import links

ROOT = Path(__file__).resolve().parents[1]


def test_every_relative_link_leads_somewhere():
    assert links.links(ROOT) == []


def test_links_of_readme_and_notebooks_are_looked_at():
    names = {path.relative_to(ROOT).as_posix() for path in links.files(ROOT)}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "nbs/index.ipynb"} <= names
    assert any(name.startswith("data/") for name in names)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    main = "https://github.com/lessonkit/lessonkit/blob/main"
    assert {f"{main}/CONTRIBUTING.md", f"{main}/LICENSE"} <= set(links.targets(text))


@pytest.fixture
def project(tmp_path):
    "README.md, data/a b.md and nbs/one.ipynb, with headings and no links."
    (tmp_path / "data").mkdir()
    (tmp_path / "nbs").mkdir()
    readme = "# Kit\n\n## What it needs, and why\n\n## Twice\n\n## Twice\n"
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "data/a b.md").write_text("# Data\n\n<a id='by-hand'></a>\n")
    title = new_markdown_cell("# Lesson 1: `Learner` and *more*")
    cells = [title, new_code_cell("# Not a heading")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs/one.ipynb")
    return tmp_path


def add(project, text):
    with (project / "README.md").open("a") as file:
        file.write(f"\n{text}\n")


@pytest.mark.parametrize("text", [
    "[a](data/a%20b.md)", "[a](<data/a%20b.md>)", '[a](nbs/one.ipynb "Lesson 1")', "[a](nbs/)",
    "[a](#twice)", "[a](#twice-1)", "[a](#what-it-needs-and-why)", "[a](data/a%20b.md#by-hand)",
    "[a](nbs/one.ipynb#Lesson-1:-Learner-and-more)", "[a](nbs/one.ipynb#lesson-1-learner-and-more)",
    "[a](https://example.com/no)", "[a](mailto:a@example.com)", "![a](attachment:a.png)",
    "`[a](no.md)`", "```\n[a](no.md)\n```", "<!-- [a](no.md) -->", "write `` `[a](no.md)` ``",
])
def test_good_links_pass(project, text):
    add(project, text)
    assert links.links(project) == []


@pytest.mark.parametrize("text, target, problem", [
    ("[a](no.md)", "no.md", "leads to no file"),
    ("![a](pictures/no.png)", "pictures/no.png", "leads to no file"),
    ("[![a](no.svg)](https://example.com)", "no.svg", "leads to no file"),
    ("[![a](https://example.com/a.svg)](no.md)", "no.md", "leads to no file"),
    ("[a]\n\n[a]: no.md", "no.md", "leads to no file"),
    ("<img width='3' src='no.png'>", "no.png", "leads to no file"),
    ("<a href=\"no.md\">a</a>", "no.md", "leads to no file"),
    ("| [a](no.md) | b |", "no.md", "leads to no file"),
    ("[a](no_(1).md)", "no_(1).md", "leads to no file"),
    ("[a](#no)", "#no", "leads to no heading of that name"),
    ("[a](#twice-2)", "#twice-2", "leads to no heading of that name"),
    ("[a](nbs/one.ipynb#Not-a-heading)", "nbs/one.ipynb#Not-a-heading",
     "leads to no heading of that name"),
    ("[a](../elsewhere.md)", "../elsewhere.md", "leads out of the project"),
    ("[a](/README.md)", "/README.md", "starts with /: write it relative to the file"),
])
def test_broken_links_are_found(project, text, target, problem):
    add(project, text)
    assert links.links(project) == [f"README.md: the link {target!r} {problem}"]


def test_broken_link_in_a_notebook(project):
    path = project / "nbs/one.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.append(new_markdown_cell("See [the kit](../README.md) and [data](data/a.md)."))
    notebook.cells.append(new_code_cell("# [a](no.md)"))
    nbformat.write(notebook, path)
    assert links.links(project) == [
        "nbs/one.ipynb, cell 2: the link 'data/a.md' leads to no file"]
