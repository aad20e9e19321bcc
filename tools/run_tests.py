"""`make test`: build the wheel, install it beside (not in) .venv, and run every test against it; arguments go to pytest.

Everything runs in an environment that has the wheel and shares the heavy packages, so what is tested is what a user
gets: the repository's own lessonkit/ is not importable in it. Coverage is of the wheel's lessonkit too, gathered from
pytest and from every process it starts (notebooks, lessons).
"""
import os, shutil, subprocess, sys
from pathlib import Path

import kit_wheel

ROOT = Path(__file__).resolve().parents[1]
out = ROOT / "out" / "test"
shutil.rmtree(out, ignore_errors=True)
python = kit_wheel.environment(out / "env", kit_wheel.build(out), coverage=True)

env = dict(os.environ,
    LESSONKIT_TEST_WHEEL="1",                            # tests/conftest.py then insists that lessonkit comes from the wheel
    LESSONKIT_CACHE=str(out / "cache"),                  # drawn pictures and features: shared by the run, new in each
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),   # two notebooks at once on two cores
    JUPYTER_PATH=f"{sys.prefix}/share/jupyter",          # the page templates that came with nbconvert
    PYTHONSAFEPATH="1",                                  # the current folder is not on sys.path,
    PYTHONPATH=str(ROOT / "tools"),                      # nor a script's own, so that of tools/ is named
    COVERAGE_PROCESS_START=str(ROOT / "pyproject.toml"), COVERAGE_FILE=str(out / "coverage" / "data"))
(out / "coverage").mkdir()
whole = ["--cov", "--cov-report=term-missing:skip-covered"] if len(sys.argv) == 1 else []   # a part of the tests covers a part
sys.exit(subprocess.run([python, "-P", "-m", "pytest", *whole, *sys.argv[1:]], cwd=ROOT, env=env).returncode)
