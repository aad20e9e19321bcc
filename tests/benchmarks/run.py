"""The whole comparison, in one run, on one machine.

The bare loop, the kit and fastai take turns, each in a process of its own.

    python tests/benchmarks/run.py --kit .venv/bin/python --peer out/peer/bin/python
        all parts: about 40 minutes on 2 idle cores
    python tests/benchmarks/run.py ... --only toolbox,accuracy --repeats 2
        some parts
    python tests/benchmarks/run.py ... --try
        does it all run? tiny, worthless numbers
    python tests/benchmarks/run.py --table out/benchmarks/result.jsonl
        the table of an earlier run, or of several; with --write, into RESULTS.md

Every line of the result (--out) is JSON: first the machine, then each process, and finally the
goals with ratio, n and spread. A process starts when other processes leave the cores alone, and is
repeated (--attempts at most) if they did not while it ran. Ratios are taken within a round, between
processes that ran one after the other; the table has their median, lowest and highest.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, make_photographs
from table import goals, IMPORTS, markdown

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUIET = .05  # share of all cores that other processes may use
PARTS = "cells,toolbox,predictions,accuracy,control,imports"


# One process

def busy_cpu():
    "CPU seconds that the machine has spent on anything since it started."
    with open("/proc/stat") as f: ticks = list(map(int, f.readline().split()[1:9]))
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(give_up=180):
    "Seconds until other processes left the cores alone for two seconds; None: they never did."
    start = time.monotonic()
    while time.monotonic() - start < give_up:
        before = busy_cpu()
        time.sleep(2)
        share = (busy_cpu() - before) / 2 / os.cpu_count()
        if share < QUIET: return round(time.monotonic() - start)
    return None


def clean_environment(all_cores):
    unset = {"LESSONKIT_KEEP_MEMORY", "PYTHONWARNINGS"}
    if all_cores: unset.add("OMP_NUM_THREADS")
    return {k: v for k, v in os.environ.items() if k not in unset}


def run_once(command, all_cores=True):
    "What a process printed (its last line), its seconds, and the share of cores that others used."
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start, before = time.monotonic(), busy_cpu()
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, cwd=ROOT,
                                   env=clean_environment(all_cores))
        _, status, used = os.wait4(process.pid, 0)  # with its workers, which it has waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        wall, busy = time.monotonic() - start, busy_cpu() - before
        out.seek(0)
        err.seek(0)
        if process.returncode:
            message = (err.read().strip() or "no message").splitlines()[-1]
            return dict(error=message[:300], exit=process.returncode)
        others = max(0, busy - used.ru_utime - used.ru_stime) / wall / os.cpu_count()
        printed = json.loads(out.read().strip().splitlines()[-1])
    return dict(printed, process_s=round(wall, 1), others=round(others, 3))


def run(command, write, attempts=3, **tags):
    "Run it until nothing disturbed it; 0 attempts: once, without waiting for quiet."
    for attempt in range(max(1, attempts)):
        waited = wait_for_quiet() if attempts else 0
        row = dict(tags, attempt=attempt, waited_s=waited, **run_once(command, bool(attempts)))
        row["disturbed"] = row.get("others", 0) > QUIET
        row["last"] = "error" in row or not row["disturbed"] or attempt + 1 >= attempts
        write(row)
        if row["last"]: return row


# All of them

class Benchmark:
    "The parts of the comparison, each of which starts processes in turns."
    def __init__(self, args, write):
        self.args, self.write, self.tiny = args, write, args.try_out
        self.precisions = ["fp32", "bf16"] if machine()["bf16"] else ["fp32"]
        self.network = ["--arch", "resnet18", "--bs", "16"] if self.tiny else []
        needed = {"cells", "toolbox", "predictions"} & set(args.only)
        self.photos = make_photographs(args.work / "photographs", 640) if needed else None

    def all_parts(self):
        for part in PARTS.split(","):
            if part in self.args.only: getattr(self, part)()

    def take_turns(self, turns, part, round_, cell):
        "Run (who, what, command) one after the other; every second round backwards."
        for who, what, command in turns if round_ % 2 == 0 else turns[::-1]:
            run(command, self.write, self.args.attempts, part=part, round=round_, cell=cell,
                who=who, what=what)

    def ours(self, precision, tasks, shared):
        command = [self.args.kit, HERE / "ours.py", *shared, "--precision", precision]
        return "ours", precision, [*command, "--tasks", tasks]

    def theirs(self, tasks, shared):
        return "fastai", "fp32", [self.args.peer, HERE / "peer.py", *shared, "--tasks", tasks]

    def shared(self, size, n, warmup, **options):
        "Arguments of both sides."
        options = dict(size=size, n=n, warmup=warmup, **options)
        flat = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [self.photos, *flat, *self.network]

    def cells(self):
        "Epochs, predictions, first batch; at two sizes."
        cells = [(224, 256, 4, "first_batch,epoch,predict"),
                 (128, 384, 6, "first_batch,epoch,predict,frozen,features")]
        for size, n, steps, tasks in cells:
            side, n, warmup, predict = (64, 32, 16, 16) if self.tiny else (size, n, 128, 128)
            steps = 1 if self.tiny else steps
            shared = self.shared(side, n, warmup, predict=predict)
            for r in range(self.args.repeats):
                turns = []
                for p in self.precisions:
                    bare = [self.args.kit, HERE / "bare.py", "--size", side, "--precision", p,
                            "--steps", steps, *self.network]
                    profile = ",profile" if r == 0 else ""
                    turns += [("bare", p, bare), self.ours(p, tasks + profile, shared)]
                self.take_turns([*turns, self.theirs(tasks, shared)], "cells", r, size)

    def toolbox(self):
        """fine_tune, lr_find, features and resuming.

        fp32, the profiles and fastai's other settings run only in the first round; the goals are
        for the best precision.
        """
        size, n, warmup, steps = (64, 32, 16, 6) if self.tiny else (128, 256, 128, 30)
        shared = self.shared(size, n, warmup, steps=steps)
        for r in range(self.args.repeats):
            ours, theirs = "fine_tune,lr_find,features,resume", "fine_tune,lr_find,save,features"
            if r == 0:
                ours += ",profile_fine_tune,profile_lr_find"
                theirs += ",fine_tune_no_workers,fine_tune_channels_last"
            turns = [self.ours(self.precisions[-1], ours, shared), self.theirs(theirs, shared)]
            if r == 0 and len(self.precisions) > 1:
                turns.append(self.ours("fp32", "fine_tune,lr_find,features", shared))
            self.take_turns(turns, "toolbox", r, 128)

    def predictions(self):
        "Test-time augmentation of 1,000 images, and questions about 10,000 predictions."
        size, n, warmup, predict = (64, 32, 16, 40) if self.tiny else (128, 256, 128, 1000)
        shared, best = self.shared(size, n, warmup, predict=predict), self.precisions[-1]
        for r in range(self.args.repeats):
            precisions = self.precisions if r == 0 else [best]
            turns = [self.ours(p, "tta,interpret" if p == best else "tta", shared)
                     for p in precisions]
            self.take_turns([*turns, self.theirs("tta", shared)], "predictions", r, 128)

    def accuracy(self):
        """Time to accuracy: a round is a seed.

        fastai's usual lines take minutes for each epoch, so one seed of them is enough to see it.
        """
        tiny = ["--n", 96, "--size", 64] if self.tiny else []
        kit, peer = self.args.kit, self.args.peer
        for seed in range(self.args.seeds):
            sides = [("ours", kit, "kit", "usual"), ("fastai", peer, "fastai", "quick")]
            if seed == 0: sides.append(("fastai", peer, "fastai", "usual"))
            turns = [(who, lines, [python, HERE / "time_to_accuracy.py", "--side", side, "--lines",
                                   lines, "--seed", seed, *tiny])
                     for who, python, side, lines in sides]
            self.take_turns(turns, "accuracy", seed, 224)

    def control(self):
        "A plain torch loop in both environments."
        size, steps = (64, 1) if self.tiny else (128, 4)
        options = ["--plain", "--size", size, "--steps", steps, *self.network]
        pythons = {"kit's torch": self.args.kit, "peer's torch": self.args.peer}
        for r in range(self.args.repeats):
            for who, python in pythons.items():
                run([python, HERE / "bare.py", *options], self.write, self.args.attempts,
                    part="control", round=r, cell=128, who=who, what="plain")

    def imports(self):
        commands = {name: self.import_command(name) for name in IMPORTS}
        for command in commands.values(): run_once(command)  # the files are then in the page cache
        for r in range(1 if self.tiny else 5):
            for name, command in commands.items():
                run(command, self.write, self.args.attempts, part="imports", round=r, cell=0,
                    who=name, what="import")

    def import_command(self, name):
        python = self.args.peer if name == "fastai" else self.args.kit
        return [python, "-W", "ignore", "-c", TIME_IMPORT.format(IMPORTS[name])]


TIME_IMPORT = """import time, json; a = time.perf_counter()
import torch, torchvision
b = time.perf_counter()
{}
c = time.perf_counter()
print(json.dumps(dict(torch_s=round(b - a, 3), over_torch_s=round(c - b, 3))))"""
SHOWN = ("img_s", "predict_s", "frozen_s", "features_s", "fine_tune_s", "lr_find_s", "plain_s",
         "tta_s", "curve", "over_torch_s", "peak_mb", "others", "error")


class Log:
    "Writes rows to a file as they come, and shows what is in them."
    def __init__(self, path):
        self.path, self.rows, self.start = path, [], time.monotonic()
        path.write_text("")

    def __call__(self, row):
        self.rows.append(row)
        self.append(row)
        minutes = (time.monotonic() - self.start) / 60
        tags = " ".join(str(row.get(k)) for k in ("cell", "who", "what", "round"))
        values = " ".join(f"{k}={row[k]}" for k in SHOWN if k in row)
        print(f"[{minutes:5.1f} min] {tags} {values}", flush=True)

    def append(self, row):
        with open(self.path, "a") as f: f.write(json.dumps(row) + "\n")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kit", default=sys.executable, help="python of the kit's environment")
    parser.add_argument("--peer", help="python of fastai's environment")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=PARTS, help=f"the parts to run: {PARTS}")
    parser.add_argument("--seeds", type=int, default=3, help="of time to accuracy")
    parser.add_argument("--attempts", type=int, default=3,
                        help="how often a process is run at most if others disturb it")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "benchmarks")
    parser.add_argument("--out", type=Path,
                        help="the result, JSON lines; default: result.jsonl in --work")
    parser.add_argument("--try", dest="try_out", action="store_true",
                        help="tiny, to see that everything runs")
    parser.add_argument("--table", type=Path, nargs="+",
                        help="only print the tables of these results")
    parser.add_argument("--write", action="store_true", help="with --table: write RESULTS.md")
    args = parser.parse_args()
    if args.table: return args
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(PARTS.split(",")):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {PARTS}")
    if args.try_out: args.attempts, args.repeats, args.seeds = 0, 1, 1
    if not args.peer:
        parser.error("--peer: the python of an environment with fastai (see README.md)")
    return args


def show_tables(paths, write):
    "Print the tables of earlier runs, or write them to RESULTS.md."
    intro = ("What the rows mean: [README.md](README.md). "
             "This page is written by `run.py --table RESULT... --write`.")
    def rows(path): return [json.loads(line) for line in path.read_text().splitlines()]
    tables = [markdown(rows(path)) for path in paths]
    text = "\n\n".join(["# Results", intro, *tables])
    if write: (HERE / "RESULTS.md").write_text(text + "\n")
    else: print(text)


def main():
    args = parse_arguments()
    if args.table: return show_tables(args.table, args.write)
    args.work.mkdir(parents=True, exist_ok=True)
    log = Log(args.out or args.work / "result.jsonl")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT,
                            capture_output=True, text=True).stdout.strip()
    settings = f"--only {','.join(args.only)} --repeats {args.repeats} --seeds {args.seeds}"
    log(dict(part="machine", **machine(), date=time.strftime("%Y-%m-%d %H:%M"), commit=commit,
             try_out=args.try_out, args=settings))
    Benchmark(args, log).all_parts()
    for goal in goals(log.rows): log.append(dict(part="goal", **goal))
    print("\n" + markdown(log.rows))


if __name__ == "__main__": main()
