"""The whole comparison, in one run, on one machine: the bare loop, the kit and fastai take turns, each in a process of its own.

    python tests/benchmarks/run.py --kit .venv/bin/python --peer out/peer/bin/python        # about 17 minutes on 2 idle cores
    python tests/benchmarks/run.py ... --try                                                # does it all run? tiny, worthless numbers
    python tests/benchmarks/run.py --table out/benchmarks/result.jsonl                      # the table of an earlier run

Every line of the result (--out) is JSON: first the machine, then each process, at last the goals with ratio, n and spread. A process starts when
other processes leave the cores alone, and is repeated (twice at most) if they did not while it ran. Ratios are taken within a round, between
processes that ran next to each other; given are their median, lowest and highest.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from collections import defaultdict
from pathlib import Path

from common import machine, make_photographs

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
QUIET = .05                                         # share of all cores that others may use


# ---- one process

def busy_cpu():
    "CPU seconds that the machine has spent on anything since it started."
    ticks = list(map(int, open("/proc/stat").readline().split()[1:9]))
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(give_up=180):
    "Seconds waited until the others left the cores alone for two seconds; None if they never did."
    start = time.monotonic()
    while time.monotonic() - start < give_up:
        before = busy_cpu(); time.sleep(2)
        if (busy_cpu() - before) / 2 / os.cpu_count() < QUIET: return round(time.monotonic() - start)
    return None


def run_once(command):
    "What the process said (its last line), its seconds, and the share of all cores that others used meanwhile."
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "LESSONKIT_KEEP_MEMORY", "PYTHONWARNINGS")}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start, before = time.monotonic(), busy_cpu()
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, env=env, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)  # with its workers, which it has waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        wall, busy = time.monotonic() - start, busy_cpu() - before
        out.seek(0); err.seek(0)
        if process.returncode: return dict(error=(err.read().strip() or "no message").splitlines()[-1][:300], exit=process.returncode)
        others = max(0, busy - used.ru_utime - used.ru_stime) / wall / os.cpu_count()
        return dict(json.loads(out.read().strip().splitlines()[-1]), process_s=round(wall, 1), others=round(others, 3))


def run(command, write, patient=True, **tags):
    for attempt in range(3 if patient else 1):
        waited = wait_for_quiet() if patient else 0
        row = dict(tags, attempt=attempt, waited_s=waited, **run_once(command))
        row["disturbed"] = row.get("others", 0) > QUIET
        row["last"] = "error" in row or not row["disturbed"] or attempt == 2 or not patient
        write(row)
        if row["last"]: return row


# ---- all of them

IMPORTS = {"data": "from lessonkit.data import ImageData", "all": "from lessonkit.all import *", "fastai": "from fastai.vision.all import *"}
TIME_IMPORT = """import time, json; a = time.perf_counter()
import torch, torchvision
b = time.perf_counter()
{}
print(json.dumps(dict(torch_s=round(b - a, 3), over_torch_s=round(time.perf_counter() - b, 3))))"""


def all_runs(a, write):
    photos = make_photographs(a.work / "photographs", 640)
    bf16 = bool(machine()["bf16"])
    precisions = ["fp32", "bf16"] if bf16 else ["fp32"]
    small = ["--arch", "resnet18", "--bs", "16"] if a.try_out else []
    cells = {224: dict(n=256, steps=4, tasks="first_batch,epoch,predict"), 128: dict(n=384, steps=6, tasks="first_batch,epoch,predict,frozen,features")}
    for size, cell in cells.items():
        n, warmup, predict, side = (32, 16, 16, 64) if a.try_out else (cell["n"], 128, 128, size)
        if "cells" not in a.parts: break
        shared = [photos, "--size", side, "--n", n, "--warmup", warmup, "--predict", predict, *small]
        for r in range(a.repeats):
            turns = []
            for p in precisions:
                profile = ",profile" if r == 0 else ""
                turns += [("bare", p, [a.kit, HERE / "bare.py", "--size", side, "--precision", p, "--steps", 1 if a.try_out else cell["steps"], *small]),
                          ("ours", p, [a.kit, HERE / "ours.py", *shared, "--precision", p, "--tasks", cell["tasks"] + profile])]
            turns.append(("fastai", "fp32", [a.peer, HERE / "peer.py", *shared, "--tasks", cell["tasks"]]))
            for side_, p, command in (turns if r % 2 == 0 else turns[::-1]):
                run(command, write, not a.try_out, part="cells", round=r, cell=size, who=side_, what=p)
    if "control" in a.parts:
        for r in range(a.repeats):
            for who, python in (("kit's torch", a.kit), ("peer's torch", a.peer)):
                command = [python, HERE / "bare.py", "--plain", "--size", 64 if a.try_out else 128, "--steps", 1 if a.try_out else 4, *small]
                run(command, write, not a.try_out, part="control", round=r, cell=128, who=who, what="plain")
    if "imports" in a.parts:
        for name, line in IMPORTS.items():          # once for nothing: the files are then in the page cache
            run_once([a.peer if name == "fastai" else a.kit, "-W", "ignore", "-c", TIME_IMPORT.format(line)])
        for r in range(1 if a.try_out else 5):
            for name, line in IMPORTS.items():
                command = [a.peer if name == "fastai" else a.kit, "-W", "ignore", "-c", TIME_IMPORT.format(line)]
                run(command, write, not a.try_out, part="imports", round=r, cell=0, who=name, what="import")


# ---- the table

def goals(rows):
    "One dict a goal: what, goal, median, low, high, n (rounds), met, and the seconds or images a second behind it."
    last, found = {}, []
    for row in rows:
        if row.get("last") and "error" not in row: last[row["part"], row["cell"], row["who"], row["what"], row["round"]] = row
    rounds = sorted({k[-1] for k in last})

    def goal(what, limit, f, at_least=True, form="{:.2f}x"):
        "f takes `get(who, what, cell, value, part)` of one round; rounds with a missing value are passed over."
        values, raw = [], defaultdict(list)
        for r in rounds:
            def get(who, prec, cell, value, part="cells"):
                v = last[part, cell, who, prec, r][value]
                raw[f"{who} {prec} {value}"].append(v)
                return v
            try: values.append(f(get))
            except KeyError: continue
        if not values: return
        median = statistics.median(values)
        met = None if limit is None else median >= limit if at_least else median <= limit
        found.append(dict(what=what, goal="" if limit is None else ("at least " if at_least else "at most ") + form.format(limit), median=round(median, 4),
                          low=round(min(values), 4), high=round(max(values), 4), n=len(values), met=met, form=form,
                          behind={k: round(statistics.median(v), 3) for k, v in raw.items()}))

    for cell in (128, 224):
        for p in ("fp32", "bf16"):
            goal(f"unfrozen, {cell} px, {p}: images/s over the bare loop's", .9, lambda g: g("ours", p, cell, "img_s") / g("bare", p, cell, "img_s"))
        for p, limit in (("fp32", 1.6), ("bf16", 2.5)):
            goal(f"unfrozen, {cell} px, {p}: images/s over fastai's", limit, lambda g: g("ours", p, cell, "img_s") / g("fastai", "fp32", cell, "img_s"))
    best = max((k[3] for k in last if k[2] == "ours"), default="fp32", key=("fp32", "bf16").index)  # what precision="auto" takes: the goals are for it
    for p in ("fp32", "bf16"):
        limit = (lambda v: v if p == best else None)
        goal(f"frozen epoch, 128 px, {p}, augmented: fastai's time over ours", limit(3), lambda g: g("fastai", "fp32", 128, "frozen_s") / g("ours", p, 128, "frozen_s"))
        goal(f"frozen epoch, 128 px, {p}, plain, first time (features are made)", limit(3), lambda g: g("fastai", "fp32", 128, "features_first_s") / g("ours", p, 128, "features_first_s"))
        goal(f"frozen epoch, 128 px, {p}, plain, from features", limit(50), lambda g: g("fastai", "fp32", 128, "features_s") / g("ours", p, 128, "features_s"), form="{:.0f}x")
    for cell in (128, 224):
        for p in ("fp32", "bf16"):
            goal(f"predict 128 pictures, {cell} px, {p}: fastai's time over ours", 3 if p == best else None, lambda g: g("fastai", "fp32", cell, "predict_s") / g("ours", p, cell, "predict_s"))
    for cell in (128, 224):
        goal(f"first batch, {cell} px", .5, lambda g: g("ours", "fp32", cell, "first_batch_s"), False, "{:.2f} s")
        goal(f"first batch, {cell} px, fastai", None, lambda g: g("fastai", "fp32", cell, "first_batch_s"), False, "{:.2f} s")
    for name, limit in (("data", .5), ("all", 1.5), ("fastai", None)):
        goal(f"`{IMPORTS[name]}` over torch, torchvision", limit, lambda g: g(name, "import", 0, "over_torch_s", "imports"), False, "{:.2f} s")
    for cell in (128, 224):
        for p in ("fp32", "bf16"):
            goal(f"peak memory of an unfrozen epoch, {cell} px, {p}: ours over fastai's main process", 1,
                 lambda g: g("ours", p, cell, "peak_mb") / g("fastai", "fp32", cell, "peak_mb"), False)
    goal("control: plain torch loop, kit's environment over peer's", None,
         lambda g: g("kit's torch", "plain", 128, "img_s", "control") / g("peer's torch", "plain", 128, "img_s", "control"))
    return found


def show(rows):
    facts = next((r for r in rows if r.get("part") == "machine"), {})
    print(f"\n{facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('memory_gb')} GB, {', '.join(facts.get('bf16', [])) or 'no bf16'}; {facts.get('date')}")
    print("\n| what | goal | median (lowest to highest) | n | met | behind it |\n| --- | --- | --- | --- | --- | --- |")
    for g in goals(rows):
        f = g["form"].format
        print(f"| {g['what']} | {g['goal']} | {f(g['median'])} ({f(g['low'])} to {f(g['high'])}) | {g['n']} | {dict([(True, 'yes'), (False, 'NO'), (None, '')])[g['met']]} | "
              + ", ".join(f"{k} {v:g}" for k, v in g["behind"].items()) + " |")
    for r in rows:
        if "profile" in r: print(f"\nprofile of an unfrozen epoch, {r['cell']} px, {r['what']}: {r['profile']}", end="")
    print()
    kept = [r for r in rows if r.get("last")]
    print(f"\n{len(kept)} processes; {sum('error' in r for r in kept)} failed; {sum(r.get('disturbed', False) for r in kept)} disturbed even after repeats.")
    for r in kept:
        if "error" in r: print(f"  failed: {r['who']} {r['what']} {r['cell']} round {r['round']}: {r['error']}")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--kit", default=sys.executable, help="python of the kit's environment")
    ap.add_argument("--peer", help="python of fastai's environment")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--parts", default="cells,control,imports")
    ap.add_argument("--work", type=Path, default=ROOT / "out" / "benchmarks")
    ap.add_argument("--out", type=Path, help="the result, JSON lines; default: result.jsonl in --work")
    ap.add_argument("--try", dest="try_out", action="store_true", help="tiny, to see that all runs")
    ap.add_argument("--table", type=Path, help="only print the table of this result")
    a = ap.parse_args()
    if a.table: return show([json.loads(line) for line in a.table.read_text().splitlines()])
    if not a.peer: ap.error("--peer: the python of an environment with fastai (see README.md)")
    a.work.mkdir(parents=True, exist_ok=True)
    out, rows, start = a.out or a.work / "result.jsonl", [], time.monotonic()
    out.write_text("")

    def write(row):
        rows.append(row)
        with open(out, "a") as f: f.write(json.dumps(row) + "\n")
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] " + " ".join(str(row.get(k)) for k in ("cell", "who", "what", "round")),
              *(f"{k}={row[k]}" for k in ("img_s", "predict_s", "frozen_s", "features_s", "over_torch_s", "peak_mb", "others", "error") if k in row), flush=True)

    rev = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    write(dict(part="machine", **machine(), date=time.strftime("%Y-%m-%d %H:%M"), commit=rev, try_out=a.try_out))
    all_runs(a, write)
    for g in goals(rows):
        with open(out, "a") as f: f.write(json.dumps(dict(part="goal", **g)) + "\n")
    show(rows)


if __name__ == "__main__": main()
