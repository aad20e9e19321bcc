"""The wheel, and environments that have it and nothing of the repository: `python tools/kit_wheel.py FOLDER` builds it there."""
import importlib.util, os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(folder, root=ROOT):
    "Build the wheel from a copy, so that what an earlier build left (build/lib, egg-info) cannot slip in; returns its path."
    with tempfile.TemporaryDirectory() as tmp:
        for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(root / name, tmp)
        shutil.copytree(root / "lessonkit", f"{tmp}/lessonkit", ignore=shutil.ignore_patterns("__pycache__", "_modidx.py"))
        run([sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), tmp])
    return next(Path(folder).glob("lessonkit-*.whl"))


def environment(folder, wheel=None, coverage=False):
    """A new environment in `folder` that shares torch and the other heavy packages with this one; returns its python.

    The sharing is one line in a .pth file. Such a line is a plain folder: the .pth files *in* it are not read, so an
    editable lessonkit installed there stays invisible, and the wheel is the only lessonkit there can be.
    """
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = Path(folder) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    heavy = Path(importlib.util.find_spec("torch").origin).parents[1]
    (site / "shared.pth").write_text(f"{heavy}\n")
    if coverage: (site / "zz_coverage.pth").write_text("import coverage; coverage.process_startup()\n")
    if wheel: run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)])
    return python


def run(command):
    "Run it; its output when it went well, an error with all it said when not."
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if done.returncode: raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    print(build(sys.argv[1]))
