"""The wheel, and environments that have it and nothing of the repository.

`python tools/kit_wheel.py FOLDER` builds the wheel in a folder.
"""
import importlib.util, os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(folder, root=ROOT):
    "Build the wheel in `folder`; returns its path."
    with tempfile.TemporaryDirectory() as tmp:   # a copy, without what an earlier build left
        for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(root / name, tmp)
        ignored = shutil.ignore_patterns("__pycache__", "_modidx.py")
        shutil.copytree(root / "lessonkit", f"{tmp}/lessonkit", ignore=ignored)
        run([sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation",
             "--outdir", str(folder), tmp])
    return next(Path(folder).glob("lessonkit-*.whl"))


def environment(folder, wheel=None, coverage=False):
    """A new environment in `folder` that shares torch and other large packages with this one.

    Returns its python. The sharing is one line in a .pth file, which names a folder. The .pth files
    in that folder are not read, so an editable lessonkit installed there stays invisible, and the
    wheel is the only lessonkit there can be.
    """
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = Path(folder) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    shared = Path(importlib.util.find_spec("torch").origin).parents[1]
    (site / "shared.pth").write_text(f"{shared}\n")
    if coverage:
        (site / "zz_coverage.pth").write_text("import coverage; coverage.process_startup()\n")
    if wheel:
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)])
    return python


def run(command):
    "The output of a command. Raises `RuntimeError` with all that it printed if it fails."
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    print(build(sys.argv[1]))
