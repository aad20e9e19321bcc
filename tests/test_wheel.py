"""The wheel, in an environment of its own, with the repository out of reach."""
import os, re, subprocess, textwrap, zipfile
from pathlib import Path

import pytest

import first_cells, kit_wheel

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return kit_wheel.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    return kit_wheel.environment(tmp_path_factory.mktemp("user") / "env", built)


def run(python, code, cwd, *, check=True, **env):
    """Run `code` as a user would, in another folder. Returns what it prints.

    With -I, neither PYTHONPATH nor the current folder counts.
    """
    user = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LESSONKIT_CACHE": f"{cwd}/cache"}
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([str(python), "-I", "-c", textwrap.dedent(code)], cwd=cwd,
                          env=user | threads | env, text=True, capture_output=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_asset(built):
    names = set(zipfile.ZipFile(built).namelist())
    paths = [p for p in (ROOT / "lessonkit").rglob("*") if p.is_file()]
    paths = [p for p in paths if "__pycache__" not in p.parts]
    files = {p.relative_to(ROOT).as_posix() for p in paths
             if p.name not in ("_modidx.py", ".gitkeep")}
    assert files <= names, files - names
    others = [name for name in names if not name.startswith(("lessonkit/", "lessonkit-"))]
    assert others == []   # no tests, tools or notebooks
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_wheel_is_small(built):
    assert built.stat().st_size < 30_000_000  # mostly the weights inside the kit


def test_the_repository_is_out_of_reach(python, tmp_path):
    code = "import sys, lessonkit; print(lessonkit.__file__, *sys.path, sep='\\n')"
    where, *path = run(python, code, tmp_path).splitlines()
    assert Path(where).is_relative_to(Path(python).parents[1])
    assert str(ROOT) not in path
    assert "" not in path


def test_the_metadata_of_the_package(python, tmp_path):
    text = run(python, """
        from importlib.metadata import metadata, version
        import lessonkit
        assert version("lessonkit") == lessonkit.__version__
        m = metadata("lessonkit")
        print(m["Name"], m["License-Expression"], m["Requires-Python"], m["Author"], sep="\\n")
        print(*m.get_all("Requires-Dist"), sep="\\n")""", tmp_path).splitlines()
    assert text[:4] == ["lessonkit", "Apache-2.0", ">=3.11", "The lessonkit authors"]
    needed = [line for line in text[4:] if "extra ==" not in line]
    assert [line for line in needed if re.match(r"(nbdev|fastcore|execnb|pytest)", line)] == []


@pytest.fixture(scope="module")
def modules(built):
    "The names of all modules in the wheel."
    files = [name for name in zipfile.ZipFile(built).namelist() if name.endswith(".py")]
    modules = [f[:-3].replace("/", ".").removesuffix(".__init__") for f in files]
    assert len(modules) > 20
    assert "lessonkit.all" in modules
    return modules


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes can be forked here")
def test_every_module_imports_by_itself(python, tmp_path, modules):
    "Each in a fork of one process without lessonkit: none needs what another has imported."
    run(python, f"""
        import importlib, os, sys
        import torchvision, timm, pandas, scipy.stats

        failed = []
        for module in {modules}:
            assert "lessonkit" not in sys.modules
            pid = os.fork()
            if not pid:
                importlib.import_module(module)
                os._exit(0)
            if os.waitpid(pid, 0)[1]: failed.append(module)
        sys.exit(" ".join(failed) or 0)""", tmp_path)


@pytest.mark.nightly
def test_every_module_imports_in_an_interpreter_of_its_own(python, tmp_path, modules):
    for module in modules: run(python, f"import {module}", tmp_path)


def test_all_holds_public_names_only(python, tmp_path):
    names = run(python, """
        import builtins
        before = set(dir(builtins))
        space = {}
        exec("from lessonkit.all import *", space)
        names = set(space) - {"__builtins__"}
        assert {"ImageData", "Learner"} <= names
        print(sorted(n for n in names if n.startswith("_") or n in before))""", tmp_path)
    assert names.strip() == "[]"


def test_training_works_outside_the_repository(python, tmp_path):
    out = run(python, """
        from pathlib import Path
        import torch
        from lessonkit.all import ImageData, Learner
        from lessonkit.data import sample
        torch.set_num_threads(1)
        path = sample.tiny(Path("tiny"))
        data = ImageData.from_name_re(path, r"^(.+)_\\d+\\.", size=32, bs=8)
        learn = Learner(data, weights=None, arch="resnet18")
        learn.fit_one_cycle(1)
        preds = learn.get_preds()
        assert preds.probs.shape == (len(preds), data.c)
        assert data.c == 3
        assert torch.allclose(preds.probs.sum(1), torch.ones(len(preds)), atol=1e-5)
        print("trained")""", tmp_path)
    assert out.splitlines()[-1] == "trained"


def test_the_weights_inside_the_kit_need_no_network(python, tmp_path):
    out = run(python, """
        import socket
        from lessonkit.model import create_model
        def refuse(*args, **options): raise AssertionError("it asked for a connection")
        socket.socket = refuse
        print(create_model("resnet18", weights="lessonkit").weights)""", tmp_path)
    assert out.startswith("lessonkit's distilled resnet18, SHA-256 ")


def test_the_example_in_the_readme_runs(python, tmp_path):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    before = textwrap.dedent("""\
        from pathlib import Path
        from lessonkit.data import sample
        import matplotlib
        matplotlib.use("agg")
        sample.tiny(Path("photos"))
        """)
    (tmp_path / "example.py").write_text(before + example)
    run(python, "exec(open('example.py').read())", tmp_path)


def test_the_first_cell_of_a_lesson_installs_the_kit(built, tmp_path):
    "Where there is no lessonkit, and LESSONKIT_SOURCE is the wheel."
    bare = kit_wheel.environment(tmp_path / "env")
    find = "from importlib.util import find_spec; print(find_spec('lessonkit'))"
    assert run(bare, find, tmp_path).strip() == "None"
    cell = first_cells.cells(ROOT, "nbs/lessons/01_pets.ipynb")[1]
    where = "\nimport lessonkit; print(lessonkit.__file__)"
    out = run(bare, cell + where, tmp_path, LESSONKIT_SOURCE=str(built), PIP_NO_INDEX="1")
    assert "GPU" in out
    assert Path(out.splitlines()[-1]).is_relative_to(tmp_path)
    (tmp_path / "again").mkdir()   # once the kit is there, nothing is installed
    assert "GPU" in run(bare, cell, tmp_path / "again", LESSONKIT_SOURCE="/no/such/wheel.whl")


def test_the_first_cell_fails_without_a_wheel(tmp_path):
    bare = kit_wheel.environment(tmp_path / "env")
    cell = first_cells.cells(ROOT, "nbs/lessons/01_pets.ipynb")[1]
    missing = str(tmp_path / "lessonkit-0.0-py3-none-any.whl")
    env = {"PATH": "/usr/bin:/bin", "LESSONKIT_SOURCE": missing, "PIP_NO_INDEX": "1"}
    command = [str(bare), "-I", "-c", cell]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode != 0
    assert "which is not a URL, and no file or folder on this machine" in done.stderr


def test_first_cells_name_the_repository():
    lesson = "nbs/lessons/01_pets.ipynb"
    badges, install = first_cells.cells(ROOT, lesson)
    lines = (ROOT / "settings.ini").read_text().splitlines()
    ini = dict(line.split(" = ", 1) for line in lines if " = " in line)
    repository = f"{ini['user']}/{ini['repo']}"
    page = f"{repository}/blob/{ini['branch']}/{lesson}"
    assert f"git+https://github.com/{repository}" in install
    assert badges.count(f"github.com/{page}") + badges.count(f"github/{page}") == 2
