"""Run nbdev_test on many notebooks without importing torch each time: for tests/test_notebooks.py.

`python -P tests/notebook_server.py` imports the large packages, but not lessonkit, and then reads
jobs from standard input, one a line, as JSON: the notebook, the project's folder, the seconds it
may take, the file for what it prints, and the settings for coverage, if that is measured. A job
runs in a fork of its own, as if it were a new process; the answer is its exit code, or null if it
was stopped.
"""
import importlib, json, os, signal, sys, time

LARGE = ("torch torchvision timm numpy pandas PIL.Image scipy.stats sklearn.metrics imagehash "
         "matplotlib.pyplot safetensors.torch nbdev.test execnb.shell").split()


def start_coverage(settings):
    "In the fork: measure coverage. Returns a function that writes it down."
    if not settings: return lambda: None
    os.environ["COVERAGE_PROCESS_START"] = settings   # for processes of the notebook, too
    import coverage
    running = coverage.process_startup(force=True)
    def save():
        running.stop()
        running.save()
    return save


def run(path, cwd, log, measured):
    "In the fork: nbdev_test on one notebook, in the project's folder."
    os.setsid()   # so that its own processes end with it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(written, stream)
    os.chdir(cwd)
    save = start_coverage(measured)
    try: sys.modules["nbdev.test"].nbdev_test(path=path)
    except SystemExit as error: return 0 if error.code is None else int(error.code)
    finally: save()
    return 0


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


def main():
    for name in LARGE: importlib.import_module(name)
    assert "lessonkit" not in sys.modules
    for line in sys.stdin:
        job = json.loads(line)
        limit = job.pop("limit")
        pid = os.fork()
        if not pid:
            status = 1
            try: status = run(**job)
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(json.dumps(wait(pid, limit)), flush=True)


if __name__ == "__main__": main()
