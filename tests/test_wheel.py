"""The wheel, in an environment of its own, with the repository out of reach."""
import re, subprocess, textwrap, zipfile
from pathlib import Path

import pytest

import first_cells, kit_wheel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory): return kit_wheel.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(built, tmp_path_factory): return kit_wheel.environment(tmp_path_factory.mktemp("user") / "env", built)


def run(python, code, cwd, *, check=True, **env):
    "Run `code` as a user would, somewhere else; -I: neither PYTHONPATH nor the current folder counts. Returns what it printed."
    done = subprocess.run([str(python), "-I", "-c", textwrap.dedent(code)], cwd=cwd, env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LESSONKIT_CACHE": f"{cwd}/cache", **env},
                          text=True, capture_output=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_module_and_asset(built):
    names = set(zipfile.ZipFile(built).namelist())
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lessonkit").rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.name not in ("_modidx.py", ".gitkeep")}
    assert files <= names, files - names
    assert all(name.startswith(("lessonkit/", "lessonkit-")) for name in names)   # no tests, tools or notebooks
    assert any(name.endswith("/LICENSE") for name in names)


def test_wheel_is_small(built): assert built.stat().st_size < 7_000_000


def test_repository_is_out_of_reach(python, tmp_path):
    where, *path = run(python, "import sys, lessonkit; print(lessonkit.__file__); print(*sys.path, sep='\\n')", tmp_path).splitlines()
    assert Path(where).is_relative_to(Path(python).parents[1]) and str(ROOT) not in path and "" not in path


def test_metadata(python, tmp_path):
    text = run(python, """
        from importlib.metadata import metadata, version
        import lessonkit
        assert version("lessonkit") == lessonkit.__version__
        m = metadata("lessonkit")
        print(m["Name"], m["License-Expression"], m["Requires-Python"], m["Author"], sep="\\n")
        print(*m.get_all("Requires-Dist"), sep="\\n")""", tmp_path).splitlines()
    assert text[:4] == ["lessonkit", "Apache-2.0", ">=3.11", "The lessonkit authors"]
    assert not any(re.match(r"(nbdev|fastcore|execnb|pytest)", line) and "extra ==" not in line for line in text[4:])


def test_every_module_imports_by_itself(python, tmp_path, built):
    "In an interpreter each, so that no module lives on what another imported."
    modules = [n[:-3].replace("/", ".").removesuffix(".__init__") for n in zipfile.ZipFile(built).namelist() if n.endswith(".py")]
    assert "lessonkit.sample" in modules
    for module in modules: run(python, f"import {module}", tmp_path)


needs_learner = pytest.mark.skipif(not (ROOT / "lessonkit/all.py").exists(), reason="lessonkit.all is not there yet")


@needs_learner
def test_all_exports_public_names_only(python, tmp_path):
    names = run(python, """
        import builtins
        before = set(dir(builtins))
        space = {}
        exec("from lessonkit.all import *", space)
        names = set(space) - {"__builtins__"}
        assert {"ImageData", "Learner"} <= names
        print(sorted(n for n in names if n.startswith("_") or n in before))""", tmp_path)
    assert names.strip() == "[]"


@needs_learner
def test_trains_outside_the_repository(python, tmp_path):
    out = run(python, """
        from pathlib import Path
        import torch
        from lessonkit.data import sample
        from lessonkit.all import ImageData, Learner
        torch.set_num_threads(1)
        path = sample.tiny(Path("tiny"))
        data = ImageData.from_name_re(path, None, r"^(.+)_\\d+\\.", size=32, bs=8)
        learn = Learner(data, weights=None, arch="resnet18")
        learn.fit_one_cycle(1)
        preds = learn.get_preds()
        assert preds.probs.shape == (len(preds), data.c) and data.c == 3
        assert torch.allclose(preds.probs.sum(1), torch.ones(len(preds)), atol=1e-5)
        print("trained")""", tmp_path)
    assert out.splitlines()[-1] == "trained"


@needs_learner
def test_readme_example_runs(python, tmp_path):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    code = "from pathlib import Path\nfrom lessonkit import sample\nimport matplotlib; matplotlib.use('agg')\nsample.tiny(Path('photos'))\n" + example
    (tmp_path / "example.py").write_text(code)
    run(python, "exec(open('example.py').read())", tmp_path)


def test_first_cell_installs_the_kit(built, tmp_path):
    "A lesson's first cell, where there is no lessonkit and LESSONKIT_SOURCE is the wheel."
    bare = kit_wheel.environment(tmp_path / "env")
    assert run(bare, "import importlib.util; print(importlib.util.find_spec('lessonkit'))", tmp_path).strip() == "None"
    cell = first_cells.cells(ROOT, "nbs/lessons/01_pets.ipynb")[1]
    out = run(bare, cell + "\nimport lessonkit; print(lessonkit.__file__)", tmp_path, LESSONKIT_SOURCE=str(built), PIP_NO_INDEX="1")
    assert "GPU" in out and Path(out.splitlines()[-1]).is_relative_to(tmp_path)
    (tmp_path / "again").mkdir()   # and when the kit is there, it installs nothing
    assert "GPU" in run(bare, cell, tmp_path / "again", LESSONKIT_SOURCE="/no/such/wheel.whl")


def test_first_cell_says_when_it_cannot(tmp_path):
    bare = kit_wheel.environment(tmp_path / "env")
    cell = first_cells.cells(ROOT, "nbs/lessons/01_pets.ipynb")[1]
    done = subprocess.run([str(bare), "-I", "-c", cell], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "LESSONKIT_SOURCE": str(tmp_path / "lessonkit-0.0-py3-none-any.whl"), "PIP_NO_INDEX": "1"},
                          text=True, capture_output=True)
    assert done.returncode != 0 and "CalledProcessError" in done.stderr


def test_first_cell_names_the_repository():
    badges, install = first_cells.cells(ROOT, "nbs/lessons/01_pets.ipynb")
    ini = dict(line.split(" = ", 1) for line in (ROOT / "settings.ini").read_text().splitlines() if " = " in line)
    assert f"git+https://github.com/{ini['user']}/{ini['repo']}" in install
    assert badges.count(f"github.com/{ini['user']}/{ini['repo']}/blob/{ini['branch']}/nbs/lessons/01_pets.ipynb") + badges.count(
        f"github/{ini['user']}/{ini['repo']}/blob/{ini['branch']}/nbs/lessons/01_pets.ipynb") == 2
