"""Each notebook in a process of its own, under a time limit. (The process is a fork of one that has
imported torch, which would take longer than most notebooks.)

A library notebook runs with each exported cell replaced by an import of what it defines, so that
its tests are tests of the installed module: nbdev_test by itself runs the cells and would never
notice that the module lacks an import. As it stands it runs only if it differs from main, and in
`make nightly`. Both times nbdev_test runs it. `make quick` takes the changed notebooks alone,
against the module: those changed last, as many as its time allows. If none has changed, a few.

`make test` runs lesson 1 whole, and every cell of the other lessons and of the old notes on
little data; `make nightly` runs all of them whole.
"""
import functools, json, os, re, shutil, subprocess, sys, symtable
from pathlib import Path

import nbformat
import pytest

import changed, forking, run_lesson
from tiers import NOTEBOOK_SECONDS, TIER

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300            # seconds for a library notebook; they are meant to take seconds
LESSON_LIMIT = 1800    # and for a lesson, on one core of a busy machine
FEW = 6                # if no notebook has changed, `make quick` takes one in so many
LEAVE = shutil.ignore_patterns(".ipynb_checkpoints", "models")
ELSEWHERE = {"lessons", "old_notes", ".ipynb_checkpoints"}   # folders that need a kernel, or none
LITTLE = dict(LESSONKIT_SMALL="1")                           # what makes a lesson small
LITTLE_OLD = dict(LESSONKIT_MAX_EPOCHS="1", LESSONKIT_MAX_IMAGES="60", LESSONKIT_MAX_SIZE="64")


def notebooks():
    "The names of all but the lessons and the old notes."
    paths = sorted((ROOT / "nbs").rglob("*.ipynb"))
    names = [path.relative_to(ROOT / "nbs") for path in paths]
    return [n.as_posix() for n in names if not ELSEWHERE & set(n.parts)]


def numbered(folder):
    return [path.name for path in sorted((ROOT / "nbs" / folder).glob("[0-9]*.ipynb"))]


NOTEBOOKS = notebooks()
LIBRARY = [name for name in NOTEBOOKS if "default_exp" in (ROOT / "nbs" / name).read_text()]
CHANGED = changed.notebooks(ROOT)
AS_THEY_STAND = CHANGED | set(NOTEBOOKS) - set(LIBRARY)
WANTED = changed.newest_first(ROOT, CHANGED.intersection(LIBRARY)) or LIBRARY[::FEW]
QUICK = changed.fitting(WANTED, changed.measured(ROOT), NOTEBOOK_SECONDS)


def marked(names, mark, without):
    "The names for parametrize, with `mark` on all but those in `without`."
    mark = getattr(pytest.mark, mark)
    return [pytest.param(name, marks=[] if name in without else [mark]) for name in names]


def imports(source, module):
    "The imports that stand for an exported cell: of every name it binds, out of the module."
    source = re.sub(r"^if TYPE_CHECKING:.*(\n[ \t].*)*", "", source, flags=re.M)   # never bound
    symbols = symtable.symtable(source, "cell", "exec").get_symbols()
    names = sorted(s.get_name() for s in symbols
                   if s.is_assigned() or s.is_imported() or s.is_namespace())
    names = [name for name in names if not re.fullmatch(r"__\w+__|_all_", name)]
    star = re.search(r"^from .* import \*", source, re.M)
    if star: names = ["*", *names]
    return "\n".join(f"from lessonkit.{module} import {name}" for name in names)


def against_module(path):
    "Rewrite the notebook at `path` in place: its exported cells become imports."
    nb = nbformat.read(path, 4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    source = "\n".join(cell.source for cell in cells)
    module = re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M)[1]
    for cell in cells:
        exported = re.search(r"^#\|\s*export", cell.source, re.M)
        if exported: cell.source = imports(cell.source, module)
    nbformat.write(nb, path)


def run(command, cwd, limit, **env):
    "Its exit code (None if stopped after `limit` seconds, with its children), and all it printed."
    printed = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process = subprocess.Popen([str(c) for c in command], cwd=cwd, env=os.environ | env,
                               start_new_session=True, **printed)
    try:
        text = process.communicate(timeout=limit)[0]
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return None, f"{process.communicate()[0]}\nstopped after {limit} seconds"


@functools.cache
def server():
    "A process that has imported torch, and forks for each notebook (tests/forking.py)."
    env = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-P", forking.__file__, "notebook"]
    return subprocess.Popen(command, env=env | dict(MPLBACKEND="agg"), **pipes)


def nbdev_test(name, project, limit=LIMIT):
    """Run nbdev_test on one notebook of `project`; returns "", or what was printed if it failed.

    nbdev puts the project's folder on sys.path, so it must not hold lessonkit/.
    """
    assert not (project / "lessonkit").exists()
    log = project / "printed.txt"
    job = dict(path=str(project / "nbs" / name), cwd=str(project), log=str(log), limit=limit,
               measured=os.environ.get("COVERAGE_PROCESS_START", ""))
    print(json.dumps(job), file=server().stdin, flush=True)
    status, text = json.loads(server().stdout.readline()), log.read_text()
    # "No files were eligible for testing" is a success for nbdev
    if status == 0 and "Success." in text: return ""
    if status is None: return f"{text}\nstopped after {limit} seconds"
    return text or "nothing was printed"


@pytest.fixture
def project(tmp_path):
    "A copy of the notebooks: they write beside themselves."
    folder = tmp_path / "p"
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=LEAVE)
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


def run_whole(path, env):
    "Run a notebook in a kernel, and return what was printed; the page is in out/."
    out = ROOT / "out" / TIER / path.parent.name
    command = [sys.executable, run_lesson.__file__, path, "--out", out]
    status, text = run(command, ROOT, LESSON_LIMIT, **env)
    print(text)   # the seconds of each cell
    assert status == 0, text[-6000:]
    pages = [out / path.name, (out / path.name).with_suffix(".html")]
    assert [page for page in pages if not page.exists()] == []
    return text


@pytest.mark.parametrize("name", numbered("lessons"))
@pytest.mark.slow
def test_lesson(name):
    whole = TIER == "nightly" or name.startswith("01_")
    text = run_whole(ROOT / "nbs/lessons" / name, {} if whole else LITTLE)
    result = re.search(rf"^{run_lesson.RESULT}.*\d.*95%", text, re.M)
    if name.startswith("01_"):
        assert result, f"no {run_lesson.RESULT} with its interval:\n{text[-1000:]}"


@pytest.mark.slow
def test_lesson_1_on_pictures_without_a_list_of_true_labels(tmp_path):
    "Its small form is such a folder, as a reader's own pictures are: no word on true labels."
    path = ROOT / "nbs/lessons/01_pets.ipynb"
    command = [sys.executable, run_lesson.__file__, path, "--out", tmp_path]
    status, text = run(command, ROOT, LESSON_LIMIT, **LITTLE)
    assert status == 0, text[-6000:]
    printed = "\n".join(run_lesson.printed_lines(nbformat.read(tmp_path / path.name, 4)))
    assert "Nobody has a list of the wrong labels here" in printed
    assert "against the labels" in printed
    assert not re.search("against the truth|spoiled|drawn pets", printed)


@pytest.mark.parametrize("name", numbered("old_notes"))
@pytest.mark.slow
def test_old_note(name):
    run_whole(ROOT / "nbs/old_notes" / name, {} if TIER == "nightly" else LITTLE_OLD)


@pytest.mark.parametrize("name", marked(LIBRARY, "slow", without=QUICK))
def test_module(name, project):
    against_module(project / "nbs" / name)
    if error := nbdev_test(name, project): pytest.fail(error[-6000:], pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(NOTEBOOKS, "nightly", without=AS_THEY_STAND))
def test_notebook(name, project):
    if error := nbdev_test(name, project): pytest.fail(error[-6000:], pytrace=False)


# The harness itself: it has to fail where it should.

def project_with(tmp_path, *cells):
    project = tmp_path / "project"
    (project / "nbs").mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", project)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata.kernelspec = dict(name="python3", language="python", display_name="python3")
    nbformat.write(nb, project / "nbs/00_x.ipynb")
    return project


@pytest.mark.slow
def test_harness_passes_and_fails(tmp_path):
    good = project_with(tmp_path / "good", "assert 1 + 1 == 2")
    bad = project_with(tmp_path / "bad", "assert 1 + 1 == 3")
    slow = project_with(tmp_path / "slow", "import time; time.sleep(60)")
    assert nbdev_test("00_x.ipynb", good) == ""
    assert "AssertionError" in nbdev_test("00_x.ipynb", bad)
    assert "stopped after 2 seconds" in nbdev_test("00_x.ipynb", slow, limit=2)
    none = project_with(tmp_path / "none", "1")
    assert "No files were eligible" in nbdev_test("_x.ipynb", none)


@pytest.mark.slow
def test_slow_flag_is_skipped_and_unknown_flag_runs(tmp_path):
    slow = project_with(tmp_path / "slow", "#| slow\nassert False")
    mistyped = project_with(tmp_path / "solw", "#| solw\nassert False")
    assert nbdev_test("00_x.ipynb", slow) == ""
    assert "AssertionError" in nbdev_test("00_x.ipynb", mistyped)


@pytest.mark.slow
def test_module_run_uses_the_module(tmp_path):
    "What the installed package does not define is found against the module, and only there."
    project = project_with(
        tmp_path, "#| default_exp __init__",
        "#| export\nimport os\ndef not_in_the_wheel(): return 1", "assert not_in_the_wheel() == 1")
    assert nbdev_test("00_x.ipynb", project) == ""
    against_module(project / "nbs/00_x.ipynb")
    assert "ImportError" in nbdev_test("00_x.ipynb", project)


def test_imports_of_a_cell():
    cell = """import os.path
from a import b as c
X = 1
class D: y = 2
def f():
    z = 3
for i in range(2): pass"""
    lines = [f"from lessonkit.m import {name}" for name in ("D", "X", "c", "f", "i", "os")]
    assert imports(cell, "m").splitlines() == lines
    checked = "if TYPE_CHECKING: from a import B\nif TYPE_CHECKING:\n    import c\nE = 1"
    assert imports(checked, "m") == "from lessonkit.m import E"
    assert imports("from a import *\nX = 1", "m").splitlines()[0] == "from lessonkit.m import *"
