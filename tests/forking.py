"""Run many jobs without importing torch each time: for test_mutations.py and test_notebooks.py.

`python -P tests/forking.py pytest` (or `notebook`) imports the large packages, but not lessonkit,
and then reads jobs from standard input, one a line, as JSON: the seconds it may take (`limit`), the
file for what it prints (`log`), and the arguments of the function below. A job runs in a fork of
its own, as if it were a new process; the answer is its exit code, or null if it was stopped.
"""
import importlib, json, os, signal, sys, time, traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGE = ("torch torchvision timm numpy pandas PIL.Image scipy.stats sklearn.metrics imagehash "
         "matplotlib.pyplot safetensors.torch").split()


def run_pytest(folder, args):
    "Pytest on the copy of lessonkit in `folder`, which comes before every other."
    first = [folder, str(ROOT / "tools")]
    sys.path[:0] = first
    os.environ["PYTHONPATH"] = os.pathsep.join(first)   # for the processes that tests start
    return int(sys.modules["pytest"].main(args))


def start_coverage(settings):
    "Measure coverage, if there are settings for it. Returns a function that writes it down."
    if not settings: return lambda: None
    os.environ["COVERAGE_PROCESS_START"] = settings   # for processes of the notebook, too
    import coverage
    running = coverage.process_startup(force=True)
    def save():
        running.stop()
        running.save()
    return save


def run_notebook(path, cwd, measured):
    "nbdev_test on the notebook at `path`, in the project's folder `cwd`."
    os.chdir(cwd)
    save = start_coverage(measured)
    try: sys.modules["nbdev.test"].nbdev_test(path=path)
    except SystemExit as error: return 0 if error.code is None else int(error.code)
    finally: save()
    return 0


# What runs a job, and the packages that it needs besides.
KINDS = dict(pytest=(run_pytest, ["hypothesis", "nbformat", "pytest"]),
             notebook=(run_notebook, ["nbdev.test", "execnb.shell"]))


def in_fork(run, job, log):
    "In the fork: do the job and end."
    status = 3   # pytest's own code for an internal error
    try:
        os.setsid()   # so that its own processes end with it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2): os.dup2(written, stream)
        status = run(**job)
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid, limit):
    "The exit code of a fork; None if it takes too long, and then it is stopped."
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main(kind):
    run, more = KINDS[kind]
    for name in LARGE + more: importlib.import_module(name)
    assert "lessonkit" not in sys.modules
    for line in sys.stdin:
        job = json.loads(line)
        limit, log = job.pop("limit"), job.pop("log")
        pid = os.fork()
        if not pid: in_fork(run, job, log)
        print(json.dumps(wait(pid, limit)), flush=True)


if __name__ == "__main__": main(sys.argv[1])
