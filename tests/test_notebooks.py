"""Each notebook in a process of its own, under a time limit, two at once.

A library notebook runs twice, both times by nbdev_test. Once as it stands. And once with each exported cell replaced by
an import of what it defines, so that the notebook's tests are tests of the installed module: nbdev_test by itself runs
the cells and would never notice that the module lacks an import.

Lesson 1 runs whole, from the wheel. The other lessons run every cell on a small setting: LESSONKIT_SMALL=1.
"""
import os, re, shutil, subprocess, sys, symtable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

import run_lesson

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300            # seconds for a library notebook; they are meant to take seconds
LESSON_LIMIT = 1200    # and for a lesson, on a machine slower than the one its six minutes are promised for
NOTEBOOKS = sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if not {"lessons", ".ipynb_checkpoints"} & set(p.parts))
LIBRARY = [name for name in NOTEBOOKS if "default_exp" in (ROOT / "nbs" / name).read_text()]
LESSONS = [p.name for p in run_lesson.lessons("all")] if list((ROOT / "nbs/lessons").glob("[0-9]*.ipynb")) else []


def imports(source, module):
    "The imports that stand for an exported cell: every name it binds, by that name, out of the module."
    names = sorted(s.get_name() for s in symtable.symtable(source, "cell", "exec").get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace())
    stars = [f"from lessonkit.{module} import *"] if re.search(r"^from .* import \*", source, re.M) else []
    return "\n".join(stars + [f"from lessonkit.{module} import {name}" for name in names if not re.fullmatch(r"__\w+__|_all_", name)])


def against_module(path):
    "Rewrite the notebook at `path` in place: its exported cells become imports."
    nb = nbformat.read(path, 4)
    module = next(m[1] for c in nb.cells if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M)))
    for cell in nb.cells:
        if cell.cell_type == "code" and re.search(r"^#\|\s*export", cell.source, re.M): cell.source = imports(cell.source, module)
    nbformat.write(nb, path)


def run(command, cwd, limit, **env):
    "The exit code and all that was printed; stopped, with its children, after `limit` seconds."
    process = subprocess.Popen([str(c) for c in command], cwd=cwd, env=os.environ | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try: return process.returncode, process.communicate(timeout=limit)[0], process.wait()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return None, f"{process.communicate()[0]}\nstopped after {limit} seconds", process.wait()


def nbdev_test(name, project, limit=LIMIT):
    "Run nbdev_test on one notebook of `project`. nbdev puts the project's folder on sys.path, so it must not hold lessonkit/."
    assert not (project / "lessonkit").exists()
    code = f"from nbdev.test import nbdev_test; nbdev_test(path={str(project / 'nbs' / name)!r})"
    _, text, status = run([sys.executable, "-P", "-c", code], project, limit, MPLBACKEND="agg")
    # "No files were eligible for testing" is a success for nbdev
    return "" if status == 0 and "Success." in text else text or "nothing was printed"


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    "The notebooks that this session asks for, under way two at once: (name, way) -> future."
    wanted = [item.callspec.params["name"] + "|" + item.originalname for item in request.session.items if "results" in item.fixturenames]
    with ThreadPoolExecutor(2) as pool:
        futures = {}
        for key in wanted:
            name, test = key.split("|")
            project = tmp_path_factory.mktemp("project") / "p"     # a copy each: notebooks write beside themselves
            shutil.copytree(ROOT / "nbs", project / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
            shutil.copy(ROOT / "settings.ini", project)
            if test == "test_module": against_module(project / "nbs" / name)
            futures[name, test] = pool.submit(nbdev_test, name, project)
        yield futures
        for future in futures.values(): future.cancel()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name, results):
    if error := results[name, "test_notebook"].result(): pytest.fail(error[-6000:], pytrace=False)


@pytest.mark.parametrize("name", LIBRARY)
def test_module(name, results):
    if error := results[name, "test_module"].result(): pytest.fail(error[-6000:], pytrace=False)


@pytest.mark.parametrize("name", LESSONS)
def test_lesson(name):
    whole = name.startswith("01_")
    out = ROOT / "out" / "test" / "lessons"
    env = {} if whole else dict(LESSONKIT_SMALL="1")
    env["OMP_NUM_THREADS"] = ""   # nothing else runs now: all cores, as a reader's
    _, text, status = run([sys.executable, run_lesson.__file__, int(name.split("_")[0]), "--out", out], ROOT, LESSON_LIMIT, **env)
    assert status == 0, text[-6000:]
    assert (out / name).exists() and (out / name).with_suffix(".html").exists()
    if whole: assert re.search(rf"^{run_lesson.RESULT}.*\d.*95%", text, re.M), f"no {run_lesson.RESULT} with its interval:\n{text[-1000:]}"


# The harness itself: it has to fail where it should.

def project_with(tmp_path, *cells):
    project = tmp_path / "project"
    (project / "nbs").mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", project)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata.kernelspec = dict(name="python3", language="python", display_name="python3")
    nbformat.write(nb, project / "nbs/00_x.ipynb")
    return project


def test_harness_passes_and_fails(tmp_path):
    assert nbdev_test("00_x.ipynb", project_with(tmp_path / "good", "assert 1 + 1 == 2")) == ""
    assert "AssertionError" in nbdev_test("00_x.ipynb", project_with(tmp_path / "bad", "assert 1 + 1 == 3"))
    assert "stopped after 2 seconds" in nbdev_test("00_x.ipynb", project_with(tmp_path / "slow", "import time; time.sleep(60)"), limit=2)
    assert "No files were eligible" in nbdev_test("_x.ipynb", project_with(tmp_path / "none", "1"))


def test_slow_flag_is_skipped_and_unknown_flag_runs(tmp_path):
    assert nbdev_test("00_x.ipynb", project_with(tmp_path / "slow", "#| slow\nassert False")) == ""
    assert "AssertionError" in nbdev_test("00_x.ipynb", project_with(tmp_path / "solw", "#| solw\nassert False"))


def test_module_run_uses_the_module(tmp_path):
    "A cell that defines what the installed package does not have passes as it stands and fails against the module."
    cells = "#| default_exp __init__", "#| export\nimport os\ndef not_in_the_wheel(): return 1", "assert not_in_the_wheel() == 1"
    project = project_with(tmp_path, *cells)
    assert nbdev_test("00_x.ipynb", project) == ""
    against_module(project / "nbs/00_x.ipynb")
    assert "ImportError" in nbdev_test("00_x.ipynb", project)
    assert imports("import os.path\nfrom a import b as c\nX = 1\nclass D: y = 2\ndef f():\n    z = 3\nfor i in range(2): pass", "m").splitlines() == [
        f"from lessonkit.m import {n}" for n in ("D", "X", "c", "f", "i", "os")]
