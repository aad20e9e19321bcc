"""The project's own checks (tools/checks.py): none finds anything here, and each finds the trap it is for."""
import ast, json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import checks, first_cells, keep_outputs, readme, run_lesson

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: f"{check.__module__}.{check.__name__}")
def test_project_is_in_order(check):
    assert check(ROOT) == []


# Traps, seeded in a small project that is in order.

def notebook(path, *cells):
    "A clean notebook: markdown where a cell begins with `# Title`, `[!` or `---`, else code."
    nb = new_notebook(cells=[(new_markdown_cell if re.match(r"# [A-Z]\w*(\n|$)|\[!|---", c) else new_code_cell)(c, id=f"cell{i}") for i, c in enumerate(cells)])
    nb.metadata.kernelspec = dict(name="python3", language="python", display_name="python3")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(nb) + "\n")
    return path


@pytest.fixture
def project(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "lessonkit").mkdir()
    (tmp_path / "lessonkit/__init__.py").write_text((ROOT / "lessonkit/__init__.py").read_text())
    area = "#| export\nimport math\ndef area(\n    r,   # radius\n):\n    return math.pi * r ** 2"
    notebook(
        tmp_path / "nbs/00_one.ipynb",
        "# One\n\n> First.", "#| default_exp one", area, "assert area(0) == 0")
    twice = "#| export\ndef twice(\n    r,   # radius\n):\n    return 2 * area(r)"
    notebook(
        tmp_path / "nbs/01_two.ipynb",
        "# Two\n\n> Second.", "#| default_exp two",
        "#| export\nfrom lessonkit.one import area", twice)
    badges, install = first_cells.cells(tmp_path, "nbs/lessons/01_pets.ipynb")
    notebook(tmp_path / "nbs/lessons/01_pets.ipynb", "# Pets", badges, install, "1 + 1")
    notebook(tmp_path / "nbs/index.ipynb", "# Kit\n\nSee [lesson 1](lessons/01_pets.ipynb), [how](../CONTRIBUTING.md) and [it](https://example.com).", badges)
    assert checks.nbdev("doclinks", "nbdev_export", tmp_path) == []
    (tmp_path / "README.md").write_text(readme.make(tmp_path))
    return tmp_path


def found(project, check): return "\n".join(check(project))


def test_small_project_is_in_order(project):
    assert [problem for check in checks.CHECKS for problem in check(project)] == []
    assert (project / "lessonkit/two.py").exists()


@pytest.mark.parametrize("cell, says", [
    ("#| exprot\ndef f(): pass", "no directive 'exprot'"),
    ("#| slwo\nassert False", "no directive 'slwo'"),
    ("# a word first\n#| export\ndef f(): pass", "below a comment or code"),
    ("import os\n#| export\ndef f(): pass", "below a comment or code"),
    ("def f(): #| export\n    pass", "below a comment or code"),
    ("#export\ndef f(): pass", "lacks its |"),
    ("# exports\ndef f(): pass", "lacks its |"),
    ("#| default_exp", "one module name"),
    ("#| default_exp three", "more than one default_exp"),
    ("#| export two\ndef f(): pass", "its own module only"),
    ("#| eval: flase\nf()", "true or false"),
    ("!ls no-such-file", "passes when the command fails"),
])
def test_directive_traps(project, cell, says):
    notebook(project / "nbs/00_one.ipynb", "# One\n\n> First.", "#| default_exp one", "#| export\nx = 1", cell)
    assert says in found(project, checks.directives)


@pytest.mark.parametrize("cell", ["#| hide\n1", "#|export\ny = 2", "#| slow\n1", "#| eval: false\n1", "text = '#| exprot'\nmore = '''\n#| default_exp no\n!ls\n'''", "1 # a | b", "x = 1 #| hide_line"])
def test_what_is_no_trap(project, cell):
    notebook(project / "nbs/00_one.ipynb", "# One\n\n> First.", "#| default_exp one", "#| export\nx = 1", cell)
    assert found(project, checks.directives) == ""


def test_directive_in_markdown(project):
    nb = nbformat.read(project / "nbs/00_one.ipynb", 4)
    nb.cells[2].cell_type = "markdown"
    for key in ("outputs", "execution_count"): nb.cells[2].pop(key)
    nbformat.write(nb, project / "nbs/00_one.ipynb")
    assert "in a markdown cell" in found(project, checks.directives)


def test_two_notebooks_for_one_module(project):
    notebook(project / "nbs/02_again.ipynb", "#| default_exp one", "#| export\nx = 1")
    assert "00_one.ipynb and 02_again.ipynb: default_exp one" in found(project, checks.directives)


def test_exports_without_a_module_and_module_without_exports(project):
    notebook(project / "nbs/02_a.ipynb", "#| export\nx = 1")
    notebook(project / "nbs/03_b.ipynb", "#| default_exp b", "x = 1")
    assert "02_a.ipynb: exports, but has no default_exp" in found(project, checks.directives)
    assert "03_b.ipynb: default_exp b, but no cell is exported" in found(project, checks.directives)


def test_notebooks_that_nbdev_passes_over(project):
    notebook(project / "nbs/_02_a.ipynb", "assert False")
    notebook(project / "nbs/03_b.ipynb", "---\nskip_exec: true\n---", "assert False")
    assert "_02_a.ipynb: nbdev skips" in found(project, checks.directives)
    assert "skip_exec" in found(project, checks.directives)


def test_renamed_notebook_leaves_its_module(project):
    cells = [c.source for c in nbformat.read(project / "nbs/01_two.ipynb", 4).cells]
    (project / "nbs/01_two.ipynb").unlink()
    notebook(project / "nbs/01_double.ipynb", *(c.replace("default_exp two", "default_exp double") for c in cells))
    checks.nbdev("doclinks", "nbdev_export", project)
    assert (project / "lessonkit/two.py").exists()   # the trap
    assert "lessonkit/two.py: no notebook makes it" in found(project, checks.export)


def test_module_edited_or_not_exported(project):
    (project / "lessonkit/two.py").write_text((project / "lessonkit/two.py").read_text().replace("2 *", "3 *"))
    (project / "lessonkit/one.py").unlink()
    text = found(project, checks.export)
    assert "two.py: differs from its notebook" in text and "one.py: not there" in text


def test_export_leaves_the_type_marker(project):
    "py.typed tells type checkers that the package's annotations count; no notebook makes it."
    assert (ROOT / "lessonkit/py.typed").exists()
    marker = project / "lessonkit/py.typed"
    marker.touch()
    assert checks.nbdev("doclinks", "nbdev_export", project) == []
    assert marker.exists()
    assert checks.export(project) == []


def test_import_that_was_not_exported(project):
    "Passes in the notebook, fails for the user."
    notebook(project / "nbs/00_one.ipynb", "# One\n\n> First.", "#| default_exp one", "import math", "#| export\ndef area(r): return math.pi * r ** 2")
    checks.nbdev("doclinks", "nbdev_export", project)
    assert "F821" in found(project, checks.lint) and "math" in found(project, checks.lint)


def test_import_that_is_not_used(project):
    notebook(project / "nbs/00_one.ipynb", "# One\n\n> First.", "#| default_exp one", "#| export\nimport os, math\ndef area(r): return math.pi * r ** 2")
    checks.nbdev("doclinks", "nbdev_export", project)
    assert "F401" in found(project, checks.lint) and "os" in found(project, checks.lint)


def test_dirty_notebook(project):
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[3].execution_count = 7
    path.write_text(nbformat.writes(nb) + "\n")
    assert "nbs/00_one.ipynb: not clean" in found(project, checks.clean)


def test_tags_survive_cleaning(project):
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[3].metadata["tags"] = ["keep"]
    path.write_text(nbformat.writes(nb) + "\n")
    assert found(project, checks.clean) == ""


def test_broken_notebook(project):
    "nbdev_clean only warns about what it cannot read."
    path = project / "nbs/00_one.ipynb"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(cells=[dict(cell_type="code", source="1")])))
    assert "not a valid notebook" in found(project, checks.clean)


def test_stale_readme(project):
    notebook(project / "nbs/index.ipynb", "# Kit\n\nAnother word.")
    assert "README.md: differs" in found(project, checks.readme_current)


def test_readme_links_and_hidden_cells(project):
    text = (project / "README.md").read_text()
    assert "(nbs/lessons/01_pets.ipynb)" in text and "[how](CONTRIBUTING.md)" in text and "(https://example.com)" in text
    notebook(project / "nbs/index.ipynb", "#| hide\nsecret = 1", "#| eval: false\nshown = 1")
    text = readme.make(project)
    assert "secret" not in text and "shown" in text and "#|" not in text


def test_large_picture_error_and_machine_path(project):
    from nbformat.v4 import new_output
    import base64
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[3].outputs = [new_output("display_data", {"image/png": base64.b64encode(bytes(60_000)).decode()}),
                           new_output("stream", text="read /home/ada/pets"), new_output("error", ename="ValueError", evalue="no", traceback=[])]
    path.write_text(nbformat.writes(nb) + "\n")
    text = found(project, checks.pictures_and_paths)
    assert "60 KB" in text and "/home/ada" in text and "an error is saved" in text


def test_first_cells_are_the_templates(project):
    lesson = project / "nbs/lessons/01_pets.ipynb"
    notebook(lesson, "# Pets", "import sys", "1 + 1")
    assert "its badges differ" in found(project, first_cells.problems) and "its first code cell differ" in found(project, first_cells.problems)
    first_cells.write(lesson, project)
    first_cells.write(lesson, project)   # a second time changes nothing
    assert found(project, first_cells.problems) == ""
    cells = nbformat.read(lesson, 4).cells
    assert [c.source.split("\n")[0] for c in cells][-2:] == ["import sys", "1 + 1"] and len(cells) == 5
    ini = project / "settings.ini"
    ini.write_text(ini.read_text().replace("user = lessonkit", "user = somebody"))
    assert "its badges differ" in found(project, first_cells.problems)   # built from the repository's URL
    assert "lacks nbs/lessons/01_pets.ipynb's badges" in found(project, first_cells.problems)


def test_checks_command_line_fails(project):
    run = lambda: subprocess.run([sys.executable, checks.__file__, project], text=True, capture_output=True)
    assert run().returncode == 0
    (project / "README.md").write_text("old")
    assert run().returncode == 1 and "readme_current" in run().stdout


def test_run_lesson(tmp_path, monkeypatch):
    other = tmp_path / "jupyter/kernels/python3/kernel.json"   # a kernel some other installation has registered by that name
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(dict(argv=["false"], display_name="other", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", f"{tmp_path}/jupyter:{os.environ.get('JUPYTER_PATH', '')}")
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "# X", "import sys; print('something', sys.executable)", "print('final error rate: 7% (95% interval 5% to 9%)')\n2 + 2")
    before = lesson.read_bytes()
    assert run_lesson.execute(lesson, tmp_path / "out") == "final error rate: 7% (95% interval 5% to 9%)"
    nb = nbformat.read(tmp_path / "out/01_x.ipynb", 4)
    assert nb.cells[2].outputs[1].data["text/plain"] == "4" and "Run from commit" in nb.cells[-1].source
    assert nb.metadata["lessonkit"].keys() == {"commit", "time", "python"}
    assert "something" in (tmp_path / "out/01_x.html").read_text() and lesson.read_bytes() == before
    assert nb.cells[1].outputs[0].text.split()[1] == sys.executable   # the kernel of this environment


def test_run_lesson_stops_at_an_error(tmp_path, capsys):
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "1/0", "print('final error rate: 0%')")
    with pytest.raises(SystemExit, match="ZeroDivisionError"): run_lesson.execute(lesson, tmp_path / "out")
    assert (tmp_path / "out/01_x.html").exists()   # the page shows where


# settings.ini, pyproject.toml and the README say the same.

def project_table(): return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_settings_and_pyproject_agree():
    ini, toml = checks.settings(ROOT), project_table()
    assert f'__version__ = "{ini["version"]}"' in (ROOT / "lessonkit/__init__.py").read_text() and "version" in toml["dynamic"]
    assert (toml["name"], toml["description"], toml["urls"]["Repository"]) == (ini["lib_name"], ini["description"], ini["git_url"])
    assert toml["requires-python"] == f">={ini['min_python']}" and toml["authors"] == [{"name": ini["author"]}]
    assert toml["license"] == "Apache-2.0" and ini["license"] == "apache2" and "Apache License" in (ROOT / "LICENSE").read_text()
    assert ini["update_pyproject"] == "False"   # or nbdev_export writes its own, which does not build


def test_readme_gives_a_reason_for_each_dependency():
    name = lambda requirement: re.match(r"[\w-]+", requirement)[0]
    toml, text = project_table(), (ROOT / "README.md").read_text()
    table = re.findall(r"^\| *`([\w-]+)`[^|]*\|[^|]*\w[^|]*\|$", text, re.M)
    extras = [r for extra in ("solar", "lab") for r in toml["optional-dependencies"][extra]]
    assert sorted(table) == sorted(map(name, toml["dependencies"] + extras))


def test_every_import_is_declared():
    "What the package imports, also inside its functions, is a dependency of its own, not one that another happens to bring."
    called = dict(PIL="pillow", sklearn="scikit-learn", IPython="ipywidgets")   # IPython: in notebooks only, where it always is
    toml = project_table()
    extras = toml["optional-dependencies"]
    declared = {re.match(r"[\w-]+", r)[0].replace("-", "_") for r in toml["dependencies"] + extras["solar"] + extras["lab"]}
    imported = set()
    for path in (ROOT / "lessonkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import): imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.split(".")[0])
    imported -= sys.stdlib_module_names | {"lessonkit"}
    assert "torch" in imported and {called.get(name, name).replace("-", "_") for name in imported} <= declared


def test_tool_chain_is_pinned():
    dev = project_table()["optional-dependencies"]["dev"]
    assert {"nbdev==2.4.14", "execnb<0.2", "fastcore<2"} <= set(dev)
    assert not any(r.startswith(("nbdev", "execnb", "fastcore", "fastai")) for r in project_table()["dependencies"])


def test_outputs_that_must_not_be_committed(project):
    path = project / "nbs/lessons/01_pets.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells.append(new_code_cell("# output not committed: the photographs are not ours\nshow()", id="last", outputs=[nbformat.v4.new_output("stream", text="a picture")]))
    nbformat.write(nb, path)
    assert "01_pets.ipynb: 1 cells" in found(project, keep_outputs.problems)
    keep_outputs.strip(nb)
    nbformat.write(nb, path)
    assert found(project, keep_outputs.problems) == ""
