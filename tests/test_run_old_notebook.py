"""tools/run_old_notebook.py: which cells ran, why others didn't, and what the kernel is told."""
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import run_old_notebook
from run_old_notebook import Cell, cause_of, defined, environment, find_cause, summary

CELLS = {
    "variables": "import os, time\n[os.environ[n] for n in ('HOME', 'LESSONKIT_MAX_EPOCHS')]",
    "folder": "os.getcwd()",
    "magic": "%matplotlib inline\nfiles = !echo one",
    "old pandas": "import pandas as pd\nframe = pd.DataFrame().append({})",
    "lacks frame": "frame.head()",
    "later": "width",
    "missing": "rows = open('OLD/rows.csv').readlines()",
    "not supported": "from lessonkit.dialects.registry import not_supported\n"
                     "text = not_supported('TextList', 'read text', 'Use another kit.')",
    "lacks text": "text.show_batch()",
    "stuck": "time.sleep(60)",
    "widget": "import ipywidgets\nout = ipywidgets.Output()\nout.clear_output()",
    "goes on": "width = 1 + 1\nwidth",
}


def write(path, *sources):
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), *cells]), path)
    return path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    "One notebook, run once: its cells by name, what they gave, and the folder."
    folder = tmp_path_factory.mktemp("old")
    (folder / "work").mkdir()
    notebook = write(folder / "old.ipynb", *CELLS.values(), "  \n")
    cells, nb = run_old_notebook.run(
        notebook, folder / "work", folder, limit=3, replace={"OLD": "new"}, epochs=1)
    return dict(zip(["line", *CELLS], cells)), dict(zip(["line", *CELLS], nb.cells)), folder


def result(cell):
    "The value that an executed cell shows."
    return [o["data"]["text/plain"] for o in cell.outputs if o.output_type == "execute_result"]


def test_the_line_comes_first_and_empty_cells_are_left_out(outcome):
    cells, nb, _ = outcome
    assert cells["line"].source == "%load_ext lessonkit.dialects"
    assert [cell.number for cell in cells.values()] == list(range(len(CELLS) + 1))
    assert len(nb) == len(cells)


def test_the_line_is_an_extension(outcome):
    cells, nb, _ = outcome
    assert cells["line"].error == ""
    shown = "".join(output.get("text", "") for output in nb["line"].outputs)
    assert "not an IPython extension" not in shown


def test_the_kernel_has_its_own_home_its_folder_and_the_caps(outcome):
    _, nb, folder = outcome
    assert result(nb["variables"]) == [repr([str(folder), "1"])]
    assert result(nb["folder"]) == [repr(str(folder / "work"))]


def test_cells_after_an_error_run(outcome):
    cells, nb, _ = outcome
    assert cells["magic"].error == ""
    assert cells["widget"].error == ""
    assert cells["goes on"].error == ""
    assert result(nb["goes on"]) == ["2"]


@pytest.mark.parametrize("name, cause", [
    ("old pandas", "library"), ("later", "notebook"), ("missing", "data"),
    ("not supported", "unsupported"), ("stuck", "kit")])
def test_causes(outcome, name, cause):
    cell = outcome[0][name]
    assert cell.cause == cause
    assert cell.after is None


@pytest.mark.parametrize("name, origin", [
    ("lacks frame", "old pandas"), ("lacks text", "not supported")])
def test_a_cell_that_lacks_a_name_has_the_cause_of_the_cell_that_should_define_it(
        outcome, name, origin):
    cell, earlier = outcome[0][name], outcome[0][origin]
    assert cell.error.startswith("NameError")
    assert cell.cause == earlier.cause
    assert cell.after == earlier.number


def test_a_cell_that_takes_too_long_is_interrupted(outcome):
    cell = outcome[0]["stuck"]
    assert cell.error == "TimeoutError: took more than 3 s"
    assert cell.seconds < 20


def test_paths_may_be_replaced(outcome):
    assert "'new/rows.csv'" in outcome[0]["missing"].error


def test_the_summary_counts_the_causes(outcome):
    cells = list(outcome[0].values())
    assert summary(cells) == ("12 cells, 10 of them vision: 5 ran; failed: 1 data, 2 library, "
                              "2 unsupported, 1 notebook, 1 kit")


def failed(error, *files, source=""):
    lines = [f"File {file}:12, in some_function(x)" for file in files]
    return Cell(1, source, error=error, traceback=lines)


KIT = "/env/lib/python3.13/site-packages/lessonkit/learner.py"
PANDAS = "/env/lib/python3.13/site-packages/pandas/core/frame.py"


@pytest.mark.parametrize("error, files, cause", [
    ("AttributeError: module 'PIL.Image' has no attribute 'ANTIALIAS'", (), "library"),
    ("AttributeError: module 'numpy' has no attribute 'float'. `np.float` was", (), "library"),
    ("AttributeError: 'DataFrame' object has no attribute 'ix'", (), "library"),
    ("ModuleNotFoundError: No module named 'seaborn'", (), "library"),
    ("ImportError: cannot import name 'imread' from 'scipy.misc' (x.py)", (), "library"),
    ("AttributeError: 'Styler' object has no attribute 'hide_index'", (), "library"),
    ("KeyError: 'id'", (PANDAS,), "library"),
    ("ModuleNotFoundError: No module named 'fastai.vision.gan'", (), "kit"),
    ("AttributeError: 'ImageDataBunch' object has no attribute 'shape'", (), "kit"),
    ("KeyError: 'id'", (KIT, PANDAS), "kit"),
    ("TypeError: fit() missing 1 required argument", (), "kit"),
    ("URLError: <urlopen error [Errno -2] Name or service not known>", (KIT,), "network"),
    ("DatasetMissing: imdb is not on this machine", (KIT,), "network"),
    ("FileNotFoundError: there is no data/bears", (KIT,), "data"),
    ("NotSupported: TextList is not supported here", (KIT,), "unsupported"),
    ("UnsupportedModule: fastai.text is not supported here", (KIT,), "unsupported"),
    ("SyntaxError: invalid syntax", (), "notebook"),
])
def test_the_cause_follows_from_the_error_and_the_files_it_went_through(error, files, cause):
    assert cause_of(failed(error, *files)) == cause


def test_a_name_that_nobody_defines_is_our_fault():
    cell = failed("NameError: name 'get_transforms' is not defined")
    find_cause(cell, [cell])
    assert cell.cause == "kit"
    assert cell.after is None


def test_blame_goes_back_to_the_first_cell():
    first = failed("URLError: no", source="path = untar_data(URLs.X)")
    find_cause(first, [first])
    second = Cell(2, "data = load(path)", error="NameError: name 'path' is not defined")
    find_cause(second, [first, first, second])
    third = Cell(3, "data", error="NameError: name 'data' is not defined")
    find_cause(third, [first, first, second, third])
    assert third.cause == "network"
    assert third.after == first.number


def test_a_missing_file_may_come_from_an_old_value():
    cells = [Cell(0, "learn = images()"),
             failed("UnsupportedModule: text", source="learn = text()"),
             Cell(2, "learn.predict('A good film!')", error="FileNotFoundError: 'A good film!'")]
    for cell in cells: find_cause(cell, cells)
    assert cells[2].cause == "unsupported"
    assert cells[2].after == 1


def test_the_names_a_cell_defines():
    source = """%matplotlib inline
import numpy as np, os.path
from x import y as z
files = !ls
%time a, b = f(c)
for i in d: e = 1
def g(h): pass
class C: pass
learn.fit?
??learn.fit"""
    assert defined(source) >= {"np", "os", "z", "files", "a", "b", "i", "e", "g", "C"}
    assert not defined(source) & {"c", "d", "h", "f", "learn", "x", "y"}
    assert defined("this is not Python") == set()


def test_pip_may_install_nothing_and_fonts_stay_where_they_are(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    env = environment("/new/home", size=64, arch=None)
    assert env["HOME"] == "/new/home"
    assert env["LESSONKIT_MAX_SIZE"] == "64"
    assert env["XDG_CACHE_HOME"] == str(Path.home() / ".cache")
    assert env["PIP_NO_INDEX"] == "1"
    assert env.get("LESSONKIT_ARCH") == os.environ.get("LESSONKIT_ARCH")


def test_the_command_line(tmp_path, capsys, monkeypatch):
    cells = [Cell(0, "%load_ext x"), Cell(1, "# Fit\nfit(1)", 1.25, "TypeError: no", "kit")]
    calls = []

    def run(path, folder, home, limit, replace, show, **caps):
        calls.append((path.name, folder, limit, replace, caps))
        for cell in cells: show(cell, 1)
        return cells, new_notebook()

    monkeypatch.setattr(run_old_notebook, "run", run)
    file = tmp_path / "cells.json"
    words = ["a.ipynb", "--epochs", "1", "--replace", "/kaggle/", "../", "--json", str(file)]
    assert run_old_notebook.main(words) == 1
    caps = dict(arch=None, epochs=1, images=None, size=None)
    assert calls == [("a.ipynb", None, 300, {"/kaggle/": "../"}, caps)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["[  1/1] failed    1.2 s  fit(1)", "          kit: TypeError: no"]
    assert lines[-1] == "a.ipynb: 1 cells, 1 of them vision: 0 ran; failed: 1 kit"
    assert json.loads(file.read_text())[1]["error"] == "TypeError: no"
