"""The whole comparison, in one run, on one machine: the bare loop, the kit and fastai take turns, each in a process of its own.

    python tests/benchmarks/run.py --kit .venv/bin/python --peer out/peer/bin/python        # all parts: about 40 minutes on 2 idle cores
    python tests/benchmarks/run.py ... --only toolbox,accuracy --repeats 2                  # some parts: cells, toolbox, accuracy, control, imports
    python tests/benchmarks/run.py ... --try                                                # does it all run? tiny, worthless numbers
    python tests/benchmarks/run.py --table out/benchmarks/result.jsonl                      # the table of an earlier run, or of several
    python tests/benchmarks/run.py --table out/benchmarks/*.jsonl --write                   # the same, into RESULTS.md

Every line of the result (--out) is JSON: first the machine, then each process, at last the goals with ratio, n and spread. A process starts when
other processes leave the cores alone, and is repeated (--attempts at most) if they did not while it ran. Ratios are taken within a round, between
processes that ran next to each other; given are their median, lowest and highest.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from collections import defaultdict
from pathlib import Path

from common import machine, make_photographs

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
QUIET = .05                                         # share of all cores that others may use
PARTS = "cells,toolbox,looking,accuracy,control,imports"
ENOUGH = .84                                        # mean accuracy on the solar cells that is waited for


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


def run_once(command, all_cores=True):
    "What the process said (its last line), its seconds, and the share of all cores that others used meanwhile."
    env = {k: v for k, v in os.environ.items() if k not in ("LESSONKIT_KEEP_MEMORY", "PYTHONWARNINGS") and not (all_cores and k == "OMP_NUM_THREADS")}
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


def run(command, write, attempts=3, **tags):
    "Run it until nobody disturbed it; 0 attempts: once, without waiting for quiet."
    for attempt in range(max(1, attempts)):
        waited = wait_for_quiet() if attempts else 0
        row = dict(tags, attempt=attempt, waited_s=waited, **run_once(command, bool(attempts)))
        row["disturbed"] = row.get("others", 0) > QUIET
        row["last"] = "error" in row or not row["disturbed"] or attempt + 1 >= attempts
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
    photos = make_photographs(a.work / "photographs", 640) if {"cells", "toolbox", "looking"} & set(a.only) else None
    bf16 = bool(machine()["bf16"])
    precisions = ["fp32", "bf16"] if bf16 else ["fp32"]
    small = ["--arch", "resnet18", "--bs", "16"] if a.try_out else []
    cells = {224: dict(n=256, steps=4, tasks="first_batch,epoch,predict"), 128: dict(n=384, steps=6, tasks="first_batch,epoch,predict,frozen,features")}
    for size, cell in cells.items():
        n, warmup, predict, side = (32, 16, 16, 64) if a.try_out else (cell["n"], 128, 128, size)
        if "cells" not in a.only: break
        shared = [photos, "--size", side, "--n", n, "--warmup", warmup, "--predict", predict, *small]
        for r in range(a.repeats):
            turns = []
            for p in precisions:
                profile = ",profile" if r == 0 else ""
                turns += [("bare", p, [a.kit, HERE / "bare.py", "--size", side, "--precision", p, "--steps", 1 if a.try_out else cell["steps"], *small]),
                          ("ours", p, [a.kit, HERE / "ours.py", *shared, "--precision", p, "--tasks", cell["tasks"] + profile])]
            turns.append(("fastai", "fp32", [a.peer, HERE / "peer.py", *shared, "--tasks", cell["tasks"]]))
            for side_, p, command in (turns if r % 2 == 0 else turns[::-1]):
                run(command, write, a.attempts, part="cells", round=r, cell=size, who=side_, what=p)
    if "toolbox" in a.only: toolbox(a, write, photos, precisions, small)
    if "looking" in a.only: looking(a, write, photos, precisions, small)
    if "accuracy" in a.only: accuracy(a, write)
    if "control" in a.only:
        for r in range(a.repeats):
            for who, python in (("kit's torch", a.kit), ("peer's torch", a.peer)):
                command = [python, HERE / "bare.py", "--plain", "--size", 64 if a.try_out else 128, "--steps", 1 if a.try_out else 4, *small]
                run(command, write, a.attempts, part="control", round=r, cell=128, who=who, what="plain")
    if "imports" in a.only:
        for name, line in IMPORTS.items():          # once for nothing: the files are then in the page cache
            run_once([a.peer if name == "fastai" else a.kit, "-W", "ignore", "-c", TIME_IMPORT.format(line)])
        for r in range(1 if a.try_out else 5):
            for name, line in IMPORTS.items():
                command = [a.peer if name == "fastai" else a.kit, "-W", "ignore", "-c", TIME_IMPORT.format(line)]
                run(command, write, a.attempts, part="imports", round=r, cell=0, who=name, what="import")


def toolbox(a, write, photos, precisions, small):
    "fine_tune, lr_find, features and resuming. fp32, the profiles and fastai's other settings once, in the first round; the goals are for the best precision."
    size, n, warmup, steps = (64, 32, 16, 6) if a.try_out else (128, 256, 128, 30)
    shared = [photos, "--size", size, "--n", n, "--warmup", warmup, "--steps", steps, *small]
    for r in range(a.repeats):
        once = (lambda tasks: tasks if r == 0 else "")
        turns = [("ours", precisions[-1], "fine_tune,lr_find,features,resume" + once(",profile_fine_tune,profile_lr_find")),
                 ("fastai", "fp32", "fine_tune,lr_find,save,features" + once(",fine_tune_no_workers,fine_tune_channels_last"))]
        if r == 0 and len(precisions) > 1: turns.append(("ours", "fp32", "fine_tune,lr_find,features"))
        for who, p, tasks in (turns if r % 2 == 0 else turns[::-1]):
            command = [a.kit, HERE / "ours.py", *shared, "--precision", p] if who == "ours" else [a.peer, HERE / "peer.py", *shared]
            run([*command, "--tasks", tasks], write, a.attempts, part="toolbox", round=r, cell=128, who=who, what=p)


def looking(a, write, photos, precisions, small):
    "Test-time augmentation of 1,000 pictures, and questions about 10,000 predictions."
    size, n, warmup, predict = (64, 32, 16, 40) if a.try_out else (128, 256, 128, 1000)
    shared = [photos, "--size", size, "--n", n, "--warmup", warmup, "--predict", predict, *small]
    for r in range(a.repeats):
        turns = [("ours", p, [a.kit, HERE / "ours.py", *shared, "--precision", p, "--tasks", "tta,interpret" if p == precisions[-1] else "tta"]) for p in (precisions if r == 0 else precisions[-1:])]
        turns.append(("fastai", "fp32", [a.peer, HERE / "peer.py", *shared, "--tasks", "tta"]))
        for who, p, command in (turns if r % 2 == 0 else turns[::-1]):
            run(command, write, a.attempts, part="looking", round=r, cell=128, who=who, what=p)


def accuracy(a, write):
    "Time to accuracy: a round is a seed. fastai's usual lines take minutes an epoch, so one seed of them says what there is to say."
    tiny = ["--n", 96, "--size", 64] if a.try_out else []
    for seed in range(a.seeds):
        turns = [("ours", a.kit, "kit", "usual"), ("fastai", a.peer, "fastai", "quick")] + [("fastai", a.peer, "fastai", "usual")] * (seed == 0)
        for who, python, side, lines in (turns if seed % 2 == 0 else turns[::-1]):
            command = [python, HERE / "time_to_accuracy.py", "--side", side, "--lines", lines, "--seed", seed, *tiny]
            run(command, write, a.attempts, part="accuracy", round=seed, cell=224, who=who, what=lines)


# ---- the table

def last_rows(rows, part): return [r for r in rows if r.get("part") == part and r.get("last") and "error" not in r]


def curves(rows):
    "{(who, lines): (epochs, 3) seconds, mean accuracy, lowest and highest accuracy} over the seeds, and the rows behind it."
    found = {}
    for key in dict.fromkeys((r["who"], r["what"]) for r in last_rows(rows, "accuracy")):
        mine = [r for r in last_rows(rows, "accuracy") if (r["who"], r["what"]) == key]
        epochs = list(zip(*(r["curve"] for r in mine)))
        found[key] = mine, [(statistics.mean(s for s, _ in e), statistics.mean(v for _, v in e), min(v for _, v in e), max(v for _, v in e)) for e in epochs]
    return found


def reached(rows):
    "{(who, lines): first epoch (from 0) whose mean accuracy is enough, or the last; is it enough?; seconds of each seed at its end}"
    result = {}
    for key, (mine, epochs) in curves(rows).items():
        e = next((i for i, (_, mean, _, _) in enumerate(epochs) if mean >= ENOUGH), len(epochs) - 1)
        result[key] = e, epochs[e][1] >= ENOUGH, {r["round"]: r["curve"][e][0] for r in mine}
    return result


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
                v = last[part, cell, who, prec, r]
                for key in value.split("."): v = v[key]
                if isinstance(v, list): v = len(v)
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
    best = max((k[3] for k in last if k[2] == "ours" and k[3] in ("fp32", "bf16")), default="fp32", key=("fp32", "bf16").index)  # what precision="auto" takes: the goals are for it
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
    T, share = "toolbox", "{:.1%}"
    def lr_find_ratio(g, p):
        if g("ours", p, 128, "lr_find_steps", T) != g("fastai", "fp32", 128, "lr_find_steps", T): raise ValueError("the two learning-rate finders took different numbers of steps")
        return g("fastai", "fp32", 128, "lr_find_s", T) / g("ours", p, 128, "lr_find_s", T)
    for p in ("fp32", "bf16"):
        limit = (lambda v: v if p == best else None)
        goal(f"fine_tune(1), 128 px, {p}: fastai's time over ours", limit(3), lambda g: g("fastai", "fp32", 128, "fine_tune_s", T) / g("ours", p, 128, "fine_tune_s", T))
        for way in ("no_workers", "channels_last"):
            goal(f"fine_tune(1), 128 px, {p}: the same, fastai with {way.replace('_', ' ')}", None, lambda g: g("fastai", "fp32", 128, f"fine_tune_{way}_s", T) / g("ours", p, 128, "fine_tune_s", T))
        goal(f"lr_find, 128 px, {p}: fastai's time over ours", limit(2.5), lambda g: lr_find_ratio(g, p))
        for what in ("fine_tune", "lr_find"):
            goal(f"peak memory up to the end of {what}, 128 px, {p}: ours over fastai's main process", 1,
                 lambda g: g("ours", p, 128, f"{what}_peak_mb", T) / g("fastai", "fp32", 128, f"{what}_peak_mb", T), False)
        goal(f"head on cached features, a new learner's first epoch, 128 px, {p}: fastai's frozen epoch over ours", None,
             lambda g: g("fastai", "fp32", 128, "features_s", T) / g("ours", p, 128, "features_cached_s", T), form="{:.0f}x")
    for who, p, limit in (("ours", best, 0), ("fastai", "fp32", None)):
        goal(f"lr_find, {who}: files and folders left in the data and the working folder", limit, lambda g: g(who, p, 128, "lr_find_left", T), False, "{:.0f}")
    for what, name in (("save_s", "writing a checkpoint"), ("load_s", "load() of a fit that was stopped"), ("first_step_s", "load() and resume() to the end of the first new step")):
        goal(f"{name}, 128 px, {best}: share of an epoch of {n_of(rows)} pictures", None, lambda g: g("ours", best, 128, f"resume.{what}", T) / g("ours", best, 128, "epoch_s", T), False, share)
    goal(f"an ordinary step, 128 px, {best}: share of such an epoch", None, lambda g: g("ours", best, 128, "resume.step_s", T) / g("ours", best, 128, "epoch_s", T), False, share)
    goal("size of a checkpoint, MiB", None, lambda g: g("ours", best, 128, "resume.save_mb", T), False, "{:.0f}")
    goal("fastai's save (weights and optimizer, nothing to resume from): its time over a checkpoint's", None,
         lambda g: g("fastai", "fp32", 128, "save_s", T) / g("ours", best, 128, "resume.save_s", T))
    L = "looking"
    for p in ("fp32", "bf16"):
        limit = (lambda v: v if p == best else None)
        goal(f"TTA of 1,000 pictures, 4 views and the plain one, 128 px, {p}: time over fastai's", limit(.5), lambda g: g("ours", p, 128, "tta_s", L) / g("fastai", "fp32", 128, "tta_s", L), False)
        goal(f"TTA, 128 px, {p}: time over (views) x plain prediction", limit(1.1), lambda g: g("ours", p, 128, "tta_s", L) / g("ours", p, 128, "views", L) / g("ours", p, 128, "plain_s", L), False)
    goal("TTA, 128 px, fastai: time over (views) x plain prediction", None, lambda g: g("fastai", "fp32", 128, "tta_s", L) / g("fastai", "fp32", 128, "views", L) / g("fastai", "fp32", 128, "plain_s", L), False)
    for what in next((list(r["interpret"]) for r in last_rows(rows, L) if "interpret" in r), ()):
        goal(f"10,000 predictions of 37 classes: {what}", 1, lambda g: g("ours", best, 128, f"interpret.{what}", L), False, "{:.3f} s")
    at = reached(rows)
    for lines in ("usual", "quick"):
        if ("ours", "usual") not in at or ("fastai", lines) not in at: continue
        (our_epoch, enough, mine), (epoch, theirs_enough, theirs) = at["ours", "usual"], at["fastai", lines]
        ratios = [mine[k] / theirs[k] for k in theirs if k in mine]
        ratio = statistics.mean(mine.values()) / statistics.mean(theirs.values())
        words = "" if theirs_enough else f" (theirs did not reach it by the end of epoch {epoch + 1}: that time is taken)"
        found.append(dict(what=f"seconds to {ENOUGH:.0%} on the solar cells: ours over fastai's {lines} lines{words}", goal="at most 0.25x", median=round(ratio, 4), low=round(min(ratios), 4),
                          high=round(max(ratios), 4), n=len(ratios), met=enough and ratio <= .25, form="{:.2f}x",
                          behind={f"ours, epoch {our_epoch + 1}, s": round(statistics.mean(mine.values()), 1), f"fastai {lines}, epoch {epoch + 1}, s": round(statistics.mean(theirs.values()), 1)}))
    goal("control: plain torch loop, kit's environment over peer's", None,
         lambda g: g("kit's torch", "plain", 128, "img_s", "control") / g("peer's torch", "plain", 128, "img_s", "control"))
    return found


def n_of(rows): return next((r["n"] for r in last_rows(rows, "toolbox")), 0)


def report(rows):
    "The table and what belongs to it, in Markdown."
    facts = next((r for r in rows if r.get("part") == "machine"), {})
    versions = [r["versions"] for r in rows if "versions" in r]
    of = (lambda name: next((v[name] for v in versions if v.get(name)), "?"))
    lines = [f"`run.py {facts.get('args', '')}`, commit {facts.get('commit')}, {facts.get('date')}. {facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('memory_gb')} GB, "
             f"{', '.join(facts.get('bf16', [])) or 'no bf16'}. fastai {of('fastai')} and the kit on torch {of('torch')}."]
    if facts.get("try_out"): lines.append("**A trial: these numbers mean nothing.**")
    lines += ["", "| what | goal | median (lowest to highest) | n | met | behind it |", "| --- | --- | --- | --- | --- | --- |"]
    for g in goals(rows):
        f = g["form"].format
        lines.append(f"| {g['what']} | {g['goal']} | {f(g['median'])} ({f(g['low'])} to {f(g['high'])}) | {g['n']} | {dict([(True, 'yes'), (False, 'NO'), (None, '')])[g['met']]} | "
                     + ", ".join(f"{k} {v:g}" for k, v in g["behind"].items()) + " |")
    if found := curves(rows):
        lines += ["", "Accuracy on the solar cells against seconds, at the end of each epoch:", "", "| lines | seeds | epoch | seconds | mean accuracy (lowest to highest) |", "| --- | --- | --- | --- | --- |"]
        for (who, what), (mine, epochs) in found.items():
            lines += [f"| {who}, {what} (one cycle of {mine[0]['epochs']}, lr {mine[0]['lr']:g}, bs {mine[0]['bs']}) | {len(mine)} | {e} | {s:.1f} | {mean:.2%} ({low:.2%} to {high:.2%}) |"
                      for e, (s, mean, low, high) in enumerate(epochs, 1)]
    for r in rows:
        for key in (k for k in r if k.startswith("profile")):
            what = key.removeprefix("profile").strip("_") or "an unfrozen epoch"
            lines += ["", f"Profile of {what}, {r['cell']} px, {r['what']}: " + ", ".join(f"{k.removesuffix('_s')} {v:g} s" for k, v in r[key].items())]
    kept = [r for r in rows if r.get("last")]
    lines += ["", f"{len(kept)} processes; {sum('error' in r for r in kept)} failed; {sum(r.get('disturbed', False) for r in kept)} disturbed even after repeats."]
    lines += [f"  failed: {r['who']} {r['what']} {r['cell']} round {r['round']}: {r['error']}" for r in kept if "error" in r]
    return "\n".join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--kit", default=sys.executable, help="python of the kit's environment")
    ap.add_argument("--peer", help="python of fastai's environment")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--only", default=PARTS, help=f"the parts to run: {PARTS}")
    ap.add_argument("--seeds", type=int, default=3, help="of time to accuracy")
    ap.add_argument("--attempts", type=int, default=3, help="how often a process that others disturbed is run")
    ap.add_argument("--work", type=Path, default=ROOT / "out" / "benchmarks")
    ap.add_argument("--out", type=Path, help="the result, JSON lines; default: result.jsonl in --work")
    ap.add_argument("--try", dest="try_out", action="store_true", help="tiny, to see that all runs")
    ap.add_argument("--table", type=Path, nargs="+", help="only print the tables of these results")
    ap.add_argument("--write", action="store_true", help="with --table: write them to RESULTS.md")
    a = ap.parse_args()
    if a.table:
        text = "\n\n".join(["# Results", "What the rows mean: [README.md](README.md). This page is written by `run.py --table RESULT... --write`.",
                            *(classification_report([json.loads(line) for line in f.read_text().splitlines()]) for f in a.table)]) + "\n"
        return (HERE / "RESULTS.md").write_text(text) if a.write else print(text)
    a.only = a.only.split(",")
    if strange := set(a.only) - set(PARTS.split(",")): ap.error(f"--only: no part {', '.join(sorted(strange))}; there are {PARTS}")
    if a.try_out: a.attempts, a.repeats, a.seeds = 0, 1, 1
    if not a.peer: ap.error("--peer: the python of an environment with fastai (see README.md)")
    a.work.mkdir(parents=True, exist_ok=True)
    out, rows, start = a.out or a.work / "result.jsonl", [], time.monotonic()
    out.write_text("")

    def write(row):
        rows.append(row)
        with open(out, "a") as f: f.write(json.dumps(row) + "\n")
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] " + " ".join(str(row.get(k)) for k in ("cell", "who", "what", "round")),
              *(f"{k}={row[k]}" for k in ("img_s", "predict_s", "frozen_s", "features_s", "fine_tune_s", "lr_find_s", "plain_s", "tta_s", "curve", "over_torch_s", "peak_mb", "others", "error") if k in row), flush=True)

    rev = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    write(dict(part="machine", **machine(), date=time.strftime("%Y-%m-%d %H:%M"), commit=rev, try_out=a.try_out,
               args=f"--only {','.join(a.only)} --repeats {a.repeats} --seeds {a.seeds}"))
    all_runs(a, write)
    for g in goals(rows):
        with open(out, "a") as f: f.write(json.dumps(dict(part="goal", **g)) + "\n")
    print("\n" + classification_report(rows))


if __name__ == "__main__": main()
