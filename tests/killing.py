"""Downloads and unpackings that are killed on their way: what tests/test_kills.py starts.

`python -P tests/killing.py` reads jobs from standard input, one a line, as JSON, and runs each in a
fork. The answer is how the fork ended: 0, or a negative number for the signal that killed it.

A fork dies at a byte (the kernel ends it when a file gets longer, or we when all files together
do) or at a step (just before it writes to, makes, moves or deletes another file or folder).
"""
import builtins, importlib, json, os, resource, signal, sys

from lessonkit.data import archives, datasets, downloads

LARGE = "filelock", "pandas", "requests"   # imported before the forks
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def die(): os.kill(os.getpid(), signal.SIGKILL)


def die_at_size(n):
    "When a file gets longer than n bytes; the first n are written."
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


def die_at_byte(n):
    "When n bytes have been written to unpacked files, all together."
    left = n

    def counting_open(path, mode="r", *args, **options):
        file = builtins.open(path, mode, *args, **options)
        if mode != "xb": return file
        write = file.write

        def write_or_die(data):
            nonlocal left
            if len(data) >= left:
                write(data[:left])
                file.flush()
                die()
            left -= len(data)
            return write(data)

        return Written(file, write_or_die)

    archives.open = counting_open


class Written:
    "A file with another way to write."
    def __init__(self, file, write): self.file, self.write = file, write

    def __enter__(self): return self

    def __exit__(self, *error): self.file.close()


def die_at_step(n):
    "Just before the nth time that a file is opened for writing, or made, moved or deleted."
    count = 0

    def hook(event, args):
        nonlocal count
        opens = event == "open" and args[2] & WRITING
        if not opens and event not in CHANGES: return
        count += 1
        if count == n: die()

    sys.addaudithook(hook)


LIMITS = dict(size=die_at_size, byte=die_at_byte, step=die_at_step)


def get(url, cache):
    os.environ["LESSONKIT_CACHE"] = cache
    datasets.get(url, download=True)


JOBS = dict(download=downloads.download, unpack=archives.unpack, get=get)


def run(job, args, limit=None, n=0, options={}):
    "In the fork: the job, with a limit."
    downloads.RETRY_PAUSE = 0
    if limit: LIMITS[limit](n)
    JOBS[job](*args, **options)


def main():
    for name in LARGE: importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                run(**json.loads(line))
                status = 0
            finally: os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__": main()
