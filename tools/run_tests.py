"""Run the tests: `python tools/run_tests.py quick|test|nightly [pytest's arguments]`.

quick    the kit as it is in this environment (editable): properties, checks, changed notebooks
test     what gates: against the wheel, with coverage, and small samples of the long tests
nightly  all of it: every notebook both ways, lessons whole, every mutation, kill and example;
         without a GPU, tests of one are rehearsed on the CPU

With arguments for pytest, a part of the tier runs, in one process and without coverage.

For `test` and `nightly` the wheel is built and installed into an environment that shares the large
packages with this one, so what is tested is what a user gets: the repository's own lessonkit/
can't be imported there. Coverage is of the wheel, in all processes: pytest's own, and those that
run notebooks and lessons.
"""
import os, shutil, subprocess, sys
from pathlib import Path

import kit_wheel

ROOT = Path(__file__).resolve().parents[1]
TIERS = ("quick", "test", "nightly")
WORKERS = max(2, min(os.cpu_count() or 2, 4))   # a worker may need 2 GB


def environment(tier, out):
    "The variables that all tests see."
    # One thread for each process, and a process for each core. Two threads wait for each other
    # after every operation, and OpenMP keeps a core busy while one waits: with anything else
    # running on the machine, a test takes ten times as long. "passive" lets them sleep instead.
    threads = dict(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
                   OMP_WAIT_POLICY="passive")
    return os.environ | threads | dict(
        LESSONKIT_TIER=tier,
        LESSONKIT_CACHE=str(out / "cache"),                # drawn pictures and features: shared
        JUPYTER_PATH=f"{sys.prefix}/share/jupyter",        # the page templates of nbconvert
        PYTHONSAFEPATH="1",                                # the current folder is not on sys.path,
        PYTHONPATH=str(ROOT / "tools"))                    # so that of tools/ is named


def measured(out):
    "Further variables, and the python, for tests of the wheel with coverage."
    shutil.rmtree(out, ignore_errors=True)
    python = kit_wheel.environment(out / "env", kit_wheel.build(out), coverage=True)
    (out / "coverage").mkdir()
    return python, dict(
        LESSONKIT_TEST_WHEEL="1",                          # conftest.py insists on the wheel
        COVERAGE_PROCESS_START=str(ROOT / "pyproject.toml"),
        COVERAGE_FILE=str(out / "coverage" / "data"))


def report(python, env):
    "Print the coverage; the exit code is not 0 if it is too low."
    env = {name: value for name, value in env.items() if name != "COVERAGE_PROCESS_START"}
    coverage = [python, "-P", "-m", "coverage"]
    folder = Path(env["COVERAGE_FILE"]).parent
    subprocess.run([*coverage, "combine", "--quiet", folder], cwd=ROOT, env=env, check=True)
    shown = ["report", "--show-missing", "--skip-covered"]
    return subprocess.run([*coverage, *shown], cwd=ROOT, env=env).returncode


def main(tier, *args):
    out = ROOT / "out" / tier
    env, python = environment(tier, out), sys.executable
    if tier == "nightly" and not shutil.which("nvidia-smi"):
        env.setdefault("LESSONKIT_TEST_DEVICE", "cpu")   # tests/test_gpu.py
    if tier != "quick":
        python, more = measured(out)
        env |= more
    parallel = [] if args else ["-n", str(WORKERS), "--dist", "worksteal"]
    durations = ["--durations=15", "--durations-min=1"]
    pytest = [python, "-P", "-m", "pytest", *durations, *parallel, *args]
    status = subprocess.run(pytest, cwd=ROOT, env=env).returncode
    if tier == "quick" or args: return status
    return report(python, env) or status


if __name__ == "__main__":
    if not set(sys.argv[1:2]) & set(TIERS): sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
