"""The project's own checks (tools/checks.py): none finds anything here, and each finds its trap."""
import ast, base64, io, json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import checks, first_cells, keep_outputs, links, pages, readme, run_lesson, small

ROOT = Path(__file__).resolve().parents[1]


def name_of(check):
    return f"{check.__module__}.{check.__name__}"


@pytest.mark.parametrize("check", checks.CHECKS, ids=name_of)
def test_the_project_is_in_order(check):
    assert check(ROOT) == []


# ---- traps, seeded in a small project that is in order

def is_markdown(source):
    return bool(re.match(r"# [A-Z]\w*(\n|$)|\[!|---", source))


def notebook(path, *sources):
    "A clean notebook: markdown where a cell begins with `# Title`, `[!` or `---`, else code."
    cells = []
    for i, source in enumerate(sources):
        new_cell = new_markdown_cell if is_markdown(source) else new_code_cell
        cells.append(new_cell(source, id=f"cell{i}"))
    nb = new_notebook(cells=cells)
    nb.metadata.kernelspec = dict(name="python3", language="python", display_name="python3")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, nb)
    return path


def write(path, nb):
    "As nbdev_clean would."
    path.write_text(nbformat.writes(nb) + "\n")


TITLE, MODULE = "# One\n\n> First.", "#| default_exp one"
AREA = """\
#| export
import math
def area(
    r,   # radius
):
    return math.pi * r ** 2"""
TWICE = """\
#| export
def twice(
    r,   # radius
):
    return 2 * area(r)"""
INDEX = """\
# Kit

See [lesson 1](lessons/01_pets.ipynb), [how](../CONTRIBUTING.md) and [it](https://example.com)."""


@pytest.fixture
def project(tmp_path):
    "A project with two modules, a lesson and a front page."
    (tmp_path / "lessonkit").mkdir()
    for name in ("settings.ini", "pyproject.toml", "lessonkit/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    notebook(tmp_path / "nbs/00_one.ipynb", TITLE, MODULE, AREA, "assert area(0) == 0")
    notebook(tmp_path / "nbs/01_two.ipynb", "# Two\n\n> Second.", "#| default_exp two",
             "#| export\nfrom lessonkit.one import area", TWICE)
    badges, install = first_cells.cells(tmp_path, "nbs/lessons/01_pets.ipynb")
    lesson = notebook(tmp_path / "nbs/lessons/01_pets.ipynb", "# Pets", badges, install, "1 + 1")
    first_cells.fold(lesson)
    notebook(tmp_path / "nbs/index.ipynb", INDEX, badges)
    assert checks.nbdev("doclinks", "nbdev_export", tmp_path) == []
    (tmp_path / "README.md").write_text(readme.make(tmp_path))
    return tmp_path


def found(project, check): return "\n".join(check(project))


def rewrite(project, *cells):
    "Replace the first notebook: its title, its module's name and these cells."
    notebook(project / "nbs/00_one.ipynb", TITLE, MODULE, *cells)


def export(project):
    checks.nbdev("doclinks", "nbdev_export", project)


def test_the_small_project_is_in_order(project):
    assert [problem for check in checks.CHECKS for problem in check(project)] == []
    assert (project / "lessonkit/two.py").exists()


# ---- directives

@pytest.mark.parametrize("cell, message", [
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
def test_directive_traps(project, cell, message):
    rewrite(project, "#| export\nx = 1", cell)
    assert message in found(project, checks.directives)


@pytest.mark.parametrize("cell", [
    "#| hide\n1",
    "#|export\ny = 2",
    "#| slow\n1",
    "#| eval: false\n1",
    "text = '#| exprot'\nmore = '''\n#| default_exp no\n!ls\n'''",
    "1 # a | b",
    "x = 1 #| hide_line",
])
def test_cells_that_are_no_traps(project, cell):
    rewrite(project, "#| export\nx = 1", cell)
    assert found(project, checks.directives) == ""


def test_old_notes_may_call_the_shell(project):
    note = project / "nbs/old_notes/01_x.ipynb"
    badges, install = first_cells.cells(project, "nbs/old_notes/01_x.ipynb")
    first_cells.fold(notebook(note, "# X", badges, install, "files = !ls\n!ls"))
    assert [problem for check in checks.CHECKS for problem in check(project)] == []
    notebook(note, "# X", "files = !ls", "#| exprot\n1")
    assert "no directive 'exprot'" in found(project, checks.directives)
    assert "old_notes/01_x.ipynb: its badges differ" in found(project, first_cells.problems)


def test_a_directive_in_markdown(project):
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[2].cell_type = "markdown"
    for key in ("outputs", "execution_count"): nb.cells[2].pop(key)
    nbformat.write(nb, path)
    assert "in a markdown cell" in found(project, checks.directives)


def test_two_notebooks_for_one_module(project):
    notebook(project / "nbs/02_again.ipynb", MODULE, "#| export\nx = 1")
    text = found(project, checks.directives)
    assert "00_one.ipynb and 02_again.ipynb: default_exp one" in text


def test_exports_without_a_module_and_a_module_without_exports(project):
    notebook(project / "nbs/02_a.ipynb", "#| export\nx = 1")
    notebook(project / "nbs/03_b.ipynb", "#| default_exp b", "x = 1")
    text = found(project, checks.directives)
    assert "02_a.ipynb: exports, but has no default_exp" in text
    assert "03_b.ipynb: default_exp b, but no cell is exported" in text


def test_notebooks_that_nbdev_passes_over(project):
    notebook(project / "nbs/_02_a.ipynb", "assert False")
    notebook(project / "nbs/03_b.ipynb", "---\nskip_exec: true\n---", "assert False")
    text = found(project, checks.directives)
    assert "_02_a.ipynb: nbdev skips" in text
    assert "skip_exec" in text


# ---- the exported package

def test_a_renamed_notebook_leaves_its_module(project):
    path = project / "nbs/01_two.ipynb"
    cells = [cell.source for cell in nbformat.read(path, 4).cells]
    path.unlink()
    renamed = [cell.replace("default_exp two", "default_exp double") for cell in cells]
    notebook(project / "nbs/01_double.ipynb", *renamed)
    export(project)
    assert (project / "lessonkit/two.py").exists()   # the trap
    assert "lessonkit/two.py: no notebook makes it" in found(project, checks.export)


def test_a_module_that_was_edited_or_not_exported(project):
    edited = project / "lessonkit/two.py"
    edited.write_text(edited.read_text().replace("2 *", "3 *"))
    (project / "lessonkit/one.py").unlink()
    text = found(project, checks.export)
    assert "two.py: differs from its notebook" in text
    assert "one.py: not there" in text


# A folder's `__init__.py` is exported from a notebook. nbdev makes an empty one where there is
# none, and never looks at it again.


@pytest.fixture
def folder(project):
    "The project with a module in a folder, and with a notebook for the folder's `__init__.py`."
    square = AREA.replace("import math\n", "").replace("math.pi * ", "").replace("area", "square")
    notebook(project / "nbs/shapes/00_square.ipynb", "# Square\n\n> Third.",
             "#| default_exp shapes.square", square)
    notebook(project / "nbs/shapes/99_shapes.ipynb", "# Shapes\n\n> All shapes.",
             "#| default_exp shapes.__init__",
             "#| export\nfrom lessonkit.shapes.square import square\n_all_ = ['square']")
    export(project)
    return project


def test_a_folder_with_its_init_is_in_order(folder):
    text = (folder / "lessonkit/shapes/__init__.py").read_text()
    assert "from .square import square" in text
    assert [problem for check in checks.CHECKS for problem in check(folder)] == []


def test_an_empty_init_needs_no_notebook(folder):
    (folder / "nbs/shapes/99_shapes.ipynb").unlink()
    (folder / "lessonkit/shapes/__init__.py").unlink()
    export(folder)
    assert (folder / "lessonkit/shapes/__init__.py").read_text() == ""
    assert checks.export(folder) == []


def test_a_hand_written_init(folder):
    (folder / "nbs/shapes/99_shapes.ipynb").unlink()
    init = folder / "lessonkit/shapes/__init__.py"
    init.write_text("from .square import square\n")
    export(folder)
    assert init.read_text() != ""   # the trap
    assert "shapes/__init__.py: no notebook makes what it holds" in found(folder, checks.export)


def test_the_init_of_a_notebook_that_was_deleted(folder):
    (folder / "nbs/shapes/99_shapes.ipynb").unlink()
    export(folder)
    text = (folder / "lessonkit/shapes/__init__.py").read_text()
    assert "AUTOGENERATED" in text   # the trap
    assert "shapes/__init__.py: no notebook makes what it holds" in found(folder, checks.export)


def test_an_init_that_was_edited_or_not_exported(folder):
    init = folder / "lessonkit/shapes/__init__.py"
    init.write_text(init.read_text() + "x = 1\n")
    assert "shapes/__init__.py: differs from its notebook" in found(folder, checks.export)
    init.unlink()
    assert "shapes/__init__.py: not there" in found(folder, checks.export)


def test_a_folder_that_has_no_notebook_any_more(folder):
    shutil.rmtree(folder / "nbs/shapes")
    text = found(folder, checks.export)
    assert "shapes/square.py: no notebook makes it" in text
    assert "shapes/__init__.py: no notebook makes it" in text


def test_the_package_keeps_its_own_init(project):
    "It holds the version, which nbdev_export writes into it."
    init = project / "lessonkit/__init__.py"
    init.write_text("__version__ = '0'\n")
    assert "lessonkit/__init__.py: differs" in found(project, checks.export)
    export(project)
    assert checks.export(project) == []


def test_export_leaves_the_type_marker(project):
    "py.typed tells type checkers that the package's annotations count; no notebook makes it."
    assert (ROOT / "lessonkit/py.typed").exists()
    marker = project / "lessonkit/py.typed"
    marker.touch()
    assert checks.nbdev("doclinks", "nbdev_export", project) == []
    assert marker.exists()
    assert checks.export(project) == []


def test_an_import_that_was_not_exported(project):
    "Passes in the notebook, fails for the user."
    rewrite(project, "import math", AREA.replace("import math\n", ""))
    export(project)
    text = found(project, checks.lint)
    assert "F821" in text
    assert "`math`" in text


def test_an_import_that_is_not_used(project):
    rewrite(project, AREA.replace("import math", "import os, math"))
    export(project)
    text = found(project, checks.lint)
    assert "F401" in text
    assert "`os`" in text


# ---- clean notebooks

def test_a_notebook_that_is_not_clean(project):
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[3].execution_count = 7
    write(path, nb)
    assert "nbs/00_one.ipynb: not clean" in found(project, checks.clean)


def test_tags_survive_cleaning(project):
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[3].metadata["tags"] = ["keep"]
    write(path, nb)
    assert found(project, checks.clean) == ""


def test_a_broken_notebook(project):
    "nbdev_clean only warns about what it cannot read."
    path = project / "nbs/00_one.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"] = [dict(cell_type="code", source="1")]
    path.write_text(json.dumps(nb))
    assert "not a valid notebook" in found(project, checks.clean)


# ---- outputs

def show(project, *outputs):
    "Replace the outputs of the first notebook's last cell."
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[3].outputs = list(outputs)
    write(path, nb)


def encoded(size):
    "That many bytes in base64."
    return base64.b64encode(bytes(size)).decode()


def displayed(kind, data):
    return new_output("display_data", {kind: data})


def test_a_large_picture_an_error_and_a_machine_path(project):
    show(project,
         displayed("image/png", encoded(120_000)),
         new_output("stream", text="read /home/ada/pets"),
         new_output("error", ename="ValueError", evalue="no", traceback=[]))
    text = found(project, checks.pictures_and_paths)
    assert "a picture of 120 KB" in text
    assert "/home/ada" in text
    assert "an error is saved" in text


def as_png(size): return "image/png", encoded(size)


def as_html(size): return "text/html", f"<p><img src='data:image/png;base64,{encoded(size)}'></p>"


def as_html_without_quotes(size):
    return "text/html", f"<img src=data:image/jpeg;base64,{encoded(size)} width=9>"


def as_html_in_lines(size):
    lines = base64.encodebytes(bytes(size)).decode()
    return "text/html", f'<img src="data:image/png;base64,\n{lines}">'


def as_markdown(size): return "text/markdown", f"![a](data:image/png;base64,{encoded(size)})"


def as_svg(size): return "image/svg+xml", "<svg>" + "x" * (size - 11) + "</svg>"


def as_svg_in_html(size): return "text/html", f"<b>a</b>{as_svg(size)[1]}<b>b</b>"


PICTURES = [as_png, as_html, as_html_without_quotes, as_html_in_lines, as_markdown, as_svg,
            as_svg_in_html]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.__name__)
def test_a_picture_has_at_most_100_kb(picture, project):
    show(project, displayed(*picture(checks.PICTURE_AT_MOST)))
    assert checks.pictures_and_paths(project) == []
    show(project, displayed(*picture(checks.PICTURE_AT_MOST + 1)))
    problem = "00_one.ipynb, cell 3: a picture of 100 KB, more than 100"
    assert checks.pictures_and_paths(project) == [problem]


def test_the_pictures_of_a_notebook_have_at_most_1500_kb(project):
    png, html = displayed(*as_png(100_000)), displayed(*as_html(100_000))
    many = [png] * 8 + [html] * 7
    show(project, *many)
    assert checks.pictures_and_paths(project) == []
    show(project, *many, displayed(*as_svg(2_000)))
    problem = "00_one.ipynb: 1502 KB of pictures, more than 1500"
    assert checks.pictures_and_paths(project) == [problem]


def test_several_pictures_in_one_html_output(project):
    html = as_html(60_000)[1]
    show(project, displayed("text/html", html * 2))
    assert checks.pictures_and_paths(project) == []
    show(project, displayed("text/html", html + as_html(130_000)[1]))
    problem = "00_one.ipynb, cell 3: a picture of 130 KB, more than 100"
    assert checks.pictures_and_paths(project) == [problem]


def test_pictures_in_the_text_of_a_notebook(project):
    path = project / "nbs/00_one.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[0].source += "\n\n" + as_markdown(110_000)[1]
    nb.cells[0].attachments = {"a.png": dict([as_png(120_000)])}
    write(path, nb)
    text = found(project, checks.pictures_and_paths)
    assert "00_one.ipynb, cell 0: a picture of 110 KB" in text
    assert "00_one.ipynb, cell 0: a picture of 120 KB" in text


def test_outputs_that_must_not_be_committed(project):
    path = project / "nbs/lessons/01_pets.ipynb"
    nb = nbformat.read(path, 4)
    source = "# output not committed: the photographs are not ours\nshow()"
    shown = new_output("stream", text="a picture")
    nb.cells.append(new_code_cell(source, id="last", outputs=[shown]))
    nbformat.write(nb, path)
    assert "01_pets.ipynb: 1 cells" in found(project, keep_outputs.problems)
    keep_outputs.strip(nb)
    nbformat.write(nb, path)
    assert found(project, keep_outputs.problems) == ""


# ---- the README and the first cells of lessons

def test_a_readme_that_is_out_of_date(project):
    notebook(project / "nbs/index.ipynb", "# Kit\n\nAnother word.")
    assert "README.md: differs" in found(project, checks.readme_current)


def test_links_in_the_readme_and_hidden_cells(project):
    text = (project / "README.md").read_text()
    main = "https://github.com/lessonkit/lessonkit/blob/main"
    assert f"({main}/nbs/lessons/01_pets.ipynb)" in text
    assert f"[how]({main}/CONTRIBUTING.md)" in text
    assert "(https://example.com)" in text
    notebook(project / "nbs/index.ipynb", "#| hide\nsecret = 1", "#| eval: false\nshown = 1")
    text = readme.make(project)
    assert "secret" not in text
    assert "shown" in text
    assert "#|" not in text


def test_links_work_where_only_the_readme_is(project):
    "As on PyPI."
    (project / "nbs/index.ipynb").unlink()
    notebook(project / "nbs/index.ipynb", "# Kit\n\n"
             "![a pet](front.jpg) [![b](../b.png)](lessons/)\n"
             "[c](#kit) [d](https://example.com/d)\n```bash\n[x](y)\n```")
    lines = readme.make(project).splitlines()
    raw = "https://raw.githubusercontent.com/lessonkit/lessonkit/main"
    tree = "https://github.com/lessonkit/lessonkit/tree/main"
    assert lines[4:7] == [
        f"![a pet]({raw}/nbs/front.jpg) [![b]({raw}/b.png)]({tree}/nbs/lessons/)",
        "[c](#kit) [d](https://example.com/d)", "```bash"]
    assert "[x](y)" in lines


def test_all_links_of_our_readme_are_absolute():
    targets = links.targets((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 20
    assert [t for t in targets if not re.match(r"https://|#", t)] == []


def test_the_readme_has_a_picture_that_is_in_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    here = "https://raw.githubusercontent.com/lessonkit/lessonkit/main/"
    pictures = re.findall(rf"!\[([^\]]+)\]\({re.escape(here)}([^)]+)\)", text)
    assert len(pictures) == 1
    for words, name in pictures:
        assert len(words) > 20   # for those who can't see it
        assert 10_000 < (ROOT / name).stat().st_size <= checks.PICTURE_AT_MOST


def test_first_cells_are_the_templates(project):
    lesson = project / "nbs/lessons/01_pets.ipynb"
    notebook(lesson, "# Pets", "import sys", "1 + 1")
    text = found(project, first_cells.problems)
    assert "its badges differ" in text
    assert "its first code cell differ" in text
    first_cells.write(lesson, project)
    first_cells.write(lesson, project)   # a second time changes nothing
    assert found(project, first_cells.problems) == ""
    first_lines = [cell.source.split("\n")[0] for cell in nbformat.read(lesson, 4).cells]
    assert first_lines[-2:] == ["import sys", "1 + 1"]
    assert len(first_lines) == 5


def test_the_code_that_installs_the_kit_is_folded(project):
    lesson = project / "nbs/lessons/01_pets.ipynb"
    assert first_cells.problems(project) == []
    nb = nbformat.read(lesson, 4)
    install = next(cell for cell in nb.cells if cell.cell_type == "code")
    page = pages.as_page(nb)
    assert "find_kit" not in page
    assert "1 + 1" in re.sub("<[^>]+>", "", page)
    del install.metadata["jupyter"]
    nbformat.write(nb, lesson)
    assert "its first code cell isn't folded" in found(project, first_cells.problems)
    first_cells.write(lesson, project)
    assert found(project, first_cells.problems) == ""


def test_first_cells_are_made_from_the_address_of_the_repository(project):
    ini = project / "settings.ini"
    ini.write_text(ini.read_text().replace("user = lessonkit", "user = somebody"))
    text = found(project, first_cells.problems)
    assert "its badges differ" in text
    assert "lacks nbs/lessons/01_pets.ipynb's badges" in text


# ---- from the command line

@pytest.mark.slow
def test_checks_fail_on_the_command_line(project):
    def run():
        command = [sys.executable, checks.__file__, project]
        return subprocess.run(command, text=True, capture_output=True)
    assert run().returncode == 0
    (project / "README.md").write_text("old")
    failed = run()
    assert failed.returncode == 1
    assert "readme_current" in failed.stdout


@pytest.fixture
def other_kernel(tmp_path, monkeypatch):
    "A kernel that another installation has registered as python3, and that does not start."
    file = tmp_path / "jupyter/kernels/python3/kernel.json"
    file.parent.mkdir(parents=True)
    spec = dict(argv=["false"], display_name="other", language="python")
    file.write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", f"{tmp_path}/jupyter:{os.environ.get('JUPYTER_PATH', '')}")


RESULT = "final error rate: 7% (95% interval 5% to 9%)"


@pytest.mark.usefixtures("other_kernel")
def test_run_lesson(tmp_path):
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "# X",
                      "import sys; print('something', sys.executable)",
                      f"print({RESULT!r})\n2 + 2")
    before = lesson.read_bytes()
    assert run_lesson.execute(lesson, tmp_path / "out") == RESULT
    assert lesson.read_bytes() == before
    nb = nbformat.read(tmp_path / "out/01_x.ipynb", 4)
    assert nb.cells[2].outputs[1].data["text/plain"] == "4"
    assert nb.cells[1].outputs[0].text.split()[1] == sys.executable   # of this environment
    assert "Run from commit" in nb.cells[-1].source
    assert nb.metadata["lessonkit"].keys() == {"commit", "time", "python", "small"}
    assert "something" in (tmp_path / "out/01_x.html").read_text()


def test_run_lesson_takes_any_notebook_by_its_path(tmp_path):
    path = notebook(tmp_path / "mine.ipynb", "1 + 1")
    assert run_lesson.lessons(str(path)) == [path]
    for number, name in (("1", "01_pets"), ("01", "01_pets"), ("1b", "01b_network")):
        assert [path.stem for path in run_lesson.lessons(number)] == [name]
    with pytest.raises(SystemExit, match="there is no lesson 99"): run_lesson.lessons("99")
    with pytest.raises(SystemExit, match="x is no number of a lesson"): run_lesson.lessons("x")
    every = [path.stem for path in run_lesson.lessons("all")]
    assert every[:2] == ["01_pets", "01b_network"]


def test_an_executed_lesson_shows_the_pictures_of_widgets(tmp_path):
    view = {run_lesson.WIDGET: dict(model_id="1"), "text/html": "<b>a picture</b>"}
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb",
                      f"from IPython.display import display\ndisplay({view}, raw=True)")
    run_lesson.execute(lesson, tmp_path / "out")
    shown = nbformat.read(tmp_path / "out/01_x.ipynb", 4).cells[0].outputs[0].data
    assert shown == {"text/html": "<b>a picture</b>"}
    assert "<b>a picture</b>" in (tmp_path / "out/01_x.html").read_text()


def test_a_lesson_runs_on_little_data_and_its_outputs_are_not_kept(tmp_path, monkeypatch):
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "print(sum(range(100)))")
    monkeypatch.setitem(small.TABLE, "01_x", [("range(100)", "range(3)")])
    before = lesson.read_bytes()
    for in_small, printed in ((True, "3"), (False, "4950")):
        run_lesson.execute(lesson, tmp_path / "out", in_small=in_small)
        nb = nbformat.read(tmp_path / "out/01_x.ipynb", 4)
        assert nb.cells[0].outputs[0].text.strip() == printed
        assert ("on little data" in nb.cells[-1].source) == in_small
        assert lesson.read_bytes() == before
        if in_small:
            with pytest.raises(SystemExit, match="on little data: run it whole"):
                keep_outputs.keep(tmp_path / "out/01_x.ipynb", tmp_path)
    keep_outputs.keep(tmp_path / "out/01_x.ipynb", tmp_path)
    assert "4950" in lesson.read_text()


def test_run_lesson_stops_at_an_error(tmp_path):
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "1/0", "print('final error rate: 0%')")
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        run_lesson.execute(lesson, tmp_path / "out")
    assert (tmp_path / "out/01_x.html").exists()   # the page shows where


def test_run_lesson_writes_over_no_other_notebook(tmp_path):
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "1 + 1")
    mine = notebook(tmp_path / "mine/01_x.ipynb", "2 + 2")
    for folder in (lesson.parent, mine.parent):
        before = (folder / "01_x.ipynb").read_bytes()
        with pytest.raises(SystemExit, match="is not a notebook that this has executed"):
            run_lesson.execute(lesson, folder)
        assert (folder / "01_x.ipynb").read_bytes() == before
        assert not (folder / "01_x.html").exists()
    for _ in range(2): run_lesson.execute(lesson, tmp_path / "out")   # its own it replaces


# ---- settings.ini, pyproject.toml and the README agree

@pytest.fixture(scope="module")
def toml():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirement_name(requirement): return re.match(r"[\w-]+", requirement)[0]


def for_users(toml):
    "What a user may install: the dependencies, and the extras solar, lab, heic and larger."
    extras = toml["optional-dependencies"]
    return sum((extras[name] for name in ("solar", "lab", "heic", "larger")), toml["dependencies"])


def test_settings_and_pyproject_agree(toml):
    ini = checks.settings(ROOT)
    assert f'__version__ = "{ini["version"]}"' in (ROOT / "lessonkit/__init__.py").read_text()
    assert "version" in toml["dynamic"]
    assert toml["name"] == ini["lib_name"]
    assert toml["description"] == ini["description"]
    assert toml["urls"]["Repository"] == ini["git_url"]
    assert toml["requires-python"] == f">={ini['min_python']}"
    assert toml["authors"] == [{"name": ini["author"]}]
    assert toml["license"] == "Apache-2.0"
    assert ini["license"] == "apache2"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert ini["update_pyproject"] == "False"   # or nbdev_export writes its own: no build with that


def test_nbdev_3_would_read_the_same_settings(toml):
    ini = checks.settings(ROOT)
    nbdev = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]
    assert nbdev["tst_flags"] == ini["tst_flags"]
    assert " ".join(nbdev["allowed_cell_metadata_keys"]) == ini["allowed_cell_metadata_keys"]
    # what it doesn't say has these values in nbdev 3, or comes from [project]
    defaults = dict(nbs_path="nbs", recursive="True", readme_nb="index.ipynb", clean_ids="True",
                    clear_all="False", put_version_in_init="True", jupyter_hooks="False",
                    lib_path=toml["name"], branch="main")
    assert {name: ini[name] for name in defaults} == defaults


def test_the_readme_gives_a_reason_for_each_dependency(toml):
    text = (ROOT / "README.md").read_text()
    table = re.findall(r"^\| *`([\w-]+)`[^|]*\|[^|]*\w[^|]*\|$", text, re.M)
    assert sorted(table) == sorted(map(requirement_name, for_users(toml)))


def imported_packages(path):
    "The top-level packages that a module imports, also inside its functions."
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_imported_package_is_declared(toml):
    "As a dependency of this project, not as one that another happens to bring."
    # IPython is imported in notebooks only, where it always is
    installed_as = dict(PIL="pillow", sklearn="scikit-learn", IPython="ipywidgets")
    imported = set()
    for path in (ROOT / "lessonkit").rglob("*.py"): imported |= imported_packages(path)
    imported -= sys.stdlib_module_names | {"lessonkit"}
    assert "torch" in imported
    imported -= {"graphviz"}   # old notes draw with it; without it they get its text
    needed = {installed_as.get(name, name).replace("-", "_") for name in imported}
    declared = {requirement_name(r).replace("-", "_") for r in for_users(toml)}
    assert needed <= declared, needed - declared


def test_the_tool_chain_is_pinned(toml):
    dev = set(toml["optional-dependencies"]["dev"])
    assert {"nbdev==2.4.14", "execnb<0.2", "fastcore<2"} <= dev
    tools = ("nbdev", "execnb", "fastcore", "fastai")
    assert [r for r in toml["dependencies"] if r.startswith(tools)] == []


def test_what_is_kept_of_outputs_is_small_and_names_no_machine(tmp_path):
    lesson = notebook(tmp_path / "nbs/lessons/01_x.ipynb", "show()")
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype="u1")
    Image.fromarray(noise).resize((1200, 1200)).save(picture, "PNG")
    shown = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "a picture"}
    nb = nbformat.read(lesson, 4)
    nb.cells[0].outputs = [new_output("display_data", data=shown),
                           new_output("stream", text=f"/tmp/tmpab_1/x {Path.home()}/y")]
    executed = tmp_path / "out/01_x.ipynb"
    executed.parent.mkdir()
    nbformat.write(nb, executed)
    keep_outputs.keep(executed, tmp_path)
    first, second = nbformat.read(lesson, 4).cells[0].outputs
    assert first.data.keys() == {"image/jpeg", "text/plain"}
    assert len(base64.b64decode(first.data["image/jpeg"])) < len(picture.getvalue()) / 2
    assert second.text == "/temporary/x ~/y"
