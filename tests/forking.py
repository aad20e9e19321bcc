"""Run pytest many times without importing torch each time: what tests/test_mutations.py starts.

`python -P tests/forking.py` imports the large packages, but not lessonkit, and then reads jobs from
standard input, one a line, as JSON: the folder that holds a copy of lessonkit, the arguments for
pytest, and the file for what it prints. A job runs in a fork; the answer is pytest's exit code.
"""
import importlib, json, os, signal, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGE = ("torch torchvision timm numpy pandas PIL.Image scipy.stats sklearn.metrics imagehash "
         "matplotlib.pyplot safetensors.torch hypothesis nbformat pytest").split()
LIMIT = 600   # seconds for one job: a mistake may make a loop endless


def run(folder, args, log):
    "In the fork: pytest on the copy in `folder`, which comes before every other lessonkit."
    signal.alarm(LIMIT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(written, stream)
    first = [folder, str(ROOT / "tools")]
    sys.path[:0] = first
    os.environ["PYTHONPATH"] = os.pathsep.join(first)   # for the processes that tests start
    return int(sys.modules["pytest"].main(args))


def main():
    for name in LARGE: importlib.import_module(name)
    assert "lessonkit" not in sys.modules
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 3   # pytest's own code for an internal error
            try: status = run(**job)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__": main()
