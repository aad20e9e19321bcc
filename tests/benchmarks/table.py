"""The table of a run: what was measured, the goals, and whether they were met."""
import statistics
from collections import defaultdict

ENOUGH = .84  # mean accuracy on the solar cells that counts as reached
PRECISIONS = "fp32", "bf16"
IMPORTS = {"data": "from lessonkit.data import ImageData",
           "all": "from lessonkit.all import *", "fastai": "from fastai.vision.all import *"}


def last_rows(rows, part):
    "The final attempt of each process of a part, if it did not fail."
    return [r for r in rows if r.get("part") == part and r.get("last") and "error" not in r]


# Accuracy against seconds

def curves(rows):
    """{(who, lines): (rows behind it, epochs)}.

    An epoch is its mean seconds, and the mean, lowest and highest accuracy over the seeds.
    """
    found = {}
    for row in last_rows(rows, "accuracy"):
        found.setdefault((row["who"], row["what"]), []).append(row)
    return {key: (mine, list(map(epoch_means, zip(*(r["curve"] for r in mine)))))
            for key, mine in found.items()}


def epoch_means(points):
    "Mean seconds; mean, lowest and highest accuracy."
    seconds, accuracies = zip(*points)
    return statistics.mean(seconds), statistics.mean(accuracies), min(accuracies), max(accuracies)


def reached(rows):
    """{(who, lines): (epoch, enough, seconds)}.

    The first epoch (from 0) whose mean accuracy is enough, or else the last one; whether it is
    enough; and the seconds at its end, by seed.
    """
    result = {}
    for key, (mine, epochs) in curves(rows).items():
        good = [e for e, (_, mean, _, _) in enumerate(epochs) if mean >= ENOUGH]
        e = good[0] if good else len(epochs) - 1
        result[key] = e, bool(good), {r["round"]: r["curve"][e][0] for r in mine}
    return result


# Goals

class Measurements:
    "The values of one round; remembers which were read."
    def __init__(self, last, round_, read):
        self.last, self.round, self.read = last, round_, read

    def __call__(self, who, what, cell, value, part="cells"):
        "A value, such as \"resume.save_s\"; of a list, its length. Raises `KeyError` if missing."
        v = self.last[part, cell, who, what, self.round]
        for key in value.split("."): v = v[key]
        if isinstance(v, list): v = len(v)
        self.read[f"{who} {what} {value}"].append(v)
        return v


class Goals:
    "Collects one dict for each row: what, goal, median, low, high, n, met, and what is behind it."
    def __init__(self, rows):
        self.rows, self.found, self.last = rows, [], {}
        for row in rows:
            if not row.get("last") or "error" in row: continue
            key = row["part"], row["cell"], row["who"], row["what"], row["round"]
            self.last[key] = row
        self.rounds = sorted({key[-1] for key in self.last})
        used = {key[3] for key in self.last if key[2] == "ours"}
        # what precision="auto" takes; the goals are for it
        self.best = "bf16" if "bf16" in used else "fp32"

    def add(self, what, limit, f, at_least=True, form="{:.2f}x"):
        "`f` takes the `Measurements` of a round; rounds in which a value is missing are skipped."
        values, read = [], defaultdict(list)
        for round_ in self.rounds:
            try: values.append(f(Measurements(self.last, round_, read)))
            except KeyError: continue
        if not values: return
        median = statistics.median(values)
        met, goal = None, ""
        if limit is not None:
            met = median >= limit if at_least else median <= limit
            goal = ("at least " if at_least else "at most ") + form.format(limit)
        behind = {name: round(statistics.median(v), 3) for name, v in read.items()}
        self.found.append(dict(
            what=what, goal=goal, median=round(median, 4), low=round(min(values), 4),
            high=round(max(values), 4), n=len(values), met=met, form=form, behind=behind))

    def ratio(self, what, limit, above, below, at_least=True, form="{:.2f}x"):
        "A quotient of two values, each given as the arguments of `Measurements`."
        self.add(what, limit, lambda get: get(*above) / get(*below), at_least, form)

    def value(self, what, limit, place, at_least=False, form="{:.2f} s"):
        "A value itself, given as the arguments of `Measurements`."
        self.add(what, limit, lambda get: get(*place), at_least, form)


def goals(rows):
    "All rows of the table, as dicts."
    found = Goals(rows)
    unfrozen_goals(found)
    frozen_goals(found)
    start_goals(found)
    for precision in PRECISIONS: toolbox_goals(found, precision)
    leftover_goals(found)
    resume_goals(found)
    for precision in PRECISIONS: tta_goals(found, precision)
    question_goals(found)
    accuracy_goals(found)
    found.ratio("control: plain torch loop, kit's environment over peer's", None,
                ("kit's torch", "plain", 128, "img_s", "control"),
                ("peer's torch", "plain", 128, "img_s", "control"))
    return found.found


def unfrozen_goals(found):
    for cell in (128, 224):
        for p in PRECISIONS:
            limit = .95 if p == "bf16" else .9
            found.ratio(f"unfrozen, {cell} px, {p}: images/s over the bare loop's", limit,
                        ("ours", p, cell, "img_s"), ("bare", p, cell, "img_s"))
        for p, limit in (("fp32", 1.6), ("bf16", 2.5)):
            found.ratio(f"unfrozen, {cell} px, {p}: images/s over fastai's", limit,
                        ("ours", p, cell, "img_s"), ("fastai", "fp32", cell, "img_s"))


def frozen_goals(found):
    rows = [("augmented: fastai's time over ours", 3, "frozen_s", "{:.2f}x"),
            ("plain, first time (features are computed)", 3, "features_first_s", "{:.2f}x"),
            ("plain, from features", 50, "features_s", "{:.0f}x")]
    for p in PRECISIONS:
        for words, limit, value, form in rows:
            found.ratio(f"frozen epoch, 128 px, {p}, {words}", limit if p == found.best else None,
                        ("fastai", "fp32", 128, value), ("ours", p, 128, value), form=form)


def start_goals(found):
    "Predictions, first batches, imports, memory."
    for cell in (128, 224):
        for p in PRECISIONS:
            found.ratio(f"predict 128 images, {cell} px, {p}: fastai's time over ours",
                        3 if p == found.best else None,
                        ("fastai", "fp32", cell, "predict_s"), ("ours", p, cell, "predict_s"))
    for cell in (128, 224):
        found.value(f"first batch, {cell} px", .5, ("ours", "fp32", cell, "first_batch_s"))
        found.value(f"first batch, {cell} px, fastai", None,
                    ("fastai", "fp32", cell, "first_batch_s"))
    for name, limit in (("data", .5), ("all", 1.5), ("fastai", None)):
        found.value(f"`{IMPORTS[name]}` over torch, torchvision", limit,
                    (name, "import", 0, "over_torch_s", "imports"))
    for cell in (128, 224):
        for p in PRECISIONS:
            found.ratio(f"peak memory of an unfrozen epoch, {cell} px, {p}: "
                        "ours over fastai's main process", 1, ("ours", p, cell, "peak_mb"),
                        ("fastai", "fp32", cell, "peak_mb"), at_least=False)


def toolbox_goals(found, p):
    def ours(value): return "ours", p, 128, value, "toolbox"
    def theirs(value): return "fastai", "fp32", 128, value, "toolbox"
    def limit(value): return value if p == found.best else None

    def lr_find_ratio(get):
        if get(*ours("lr_find_steps")) != get(*theirs("lr_find_steps")):
            raise ValueError("the two learning-rate finders took different numbers of steps")
        return get(*theirs("lr_find_s")) / get(*ours("lr_find_s"))

    found.ratio(f"fine_tune(1), 128 px, {p}: fastai's time over ours", limit(3),
                theirs("fine_tune_s"), ours("fine_tune_s"))
    for way in ("no_workers", "channels_last"):
        words = way.replace("_", " ")
        found.ratio(f"fine_tune(1), 128 px, {p}: the same, fastai with {words}", None,
                    theirs(f"fine_tune_{way}_s"), ours("fine_tune_s"))
    found.add(f"lr_find, 128 px, {p}: fastai's time over ours", limit(2.5), lr_find_ratio)
    for what in ("fine_tune", "lr_find"):
        found.ratio(f"peak memory up to the end of {what}, 128 px, {p}: "
                    "ours over fastai's main process", 1, ours(f"{what}_peak_mb"),
                    theirs(f"{what}_peak_mb"), at_least=False)
    found.ratio(f"head on cached features, a new learner's first epoch, 128 px, {p}: "
                "fastai's frozen epoch over ours", None, theirs("features_s"),
                ours("features_cached_s"), form="{:.0f}x")


def leftover_goals(found):
    for who, p, limit in (("ours", found.best, 0), ("fastai", "fp32", None)):
        found.value(f"lr_find, {who}: files and folders left in the data and the working folder",
                    limit, (who, p, 128, "lr_find_left", "toolbox"), form="{:.0f}")


def resume_goals(found):
    best, share = found.best, "{:.1%}"
    def ours(value): return "ours", best, 128, value, "toolbox"
    n = next((r["n"] for r in last_rows(found.rows, "toolbox")), 0)
    parts = [("save_s", "writing a checkpoint"), ("load_s", "load() of a fit that was stopped"),
             ("first_step_s", "load() and resume() to the end of the first new step")]
    for value, words in parts:
        found.ratio(f"{words}, 128 px, {best}: share of an epoch of {n} images", None,
                    ours(f"resume.{value}"), ours("epoch_s"), at_least=False, form=share)
    found.ratio(f"an ordinary step, 128 px, {best}: share of such an epoch", None,
                ours("resume.step_s"), ours("epoch_s"), at_least=False, form=share)
    found.value("size of a checkpoint, MiB", None, ours("resume.save_mb"), form="{:.0f}")
    found.ratio("fastai's save (weights and optimizer, nothing to resume from): its time over a "
                "checkpoint's", None, ("fastai", "fp32", 128, "save_s", "toolbox"),
                ours("resume.save_s"))


def tta_goals(found, p):
    def ours(value): return "ours", p, 128, value, "predictions"
    def theirs(value): return "fastai", "fp32", 128, value, "predictions"
    def per_view(side): return lambda g: g(*side("tta_s")) / g(*side("views")) / g(*side("plain_s"))

    found.ratio(f"TTA of 1,000 images, 4 views and the plain one, 128 px, {p}: time over fastai's",
                .5, ours("tta_s"), theirs("tta_s"), at_least=False)
    found.add(f"TTA, 128 px, {p}: time over (views) x plain prediction", 1.1,
              per_view(ours), at_least=False)
    if p == PRECISIONS[-1]:
        found.add("TTA, 128 px, fastai: time over (views) x plain prediction", None,
                  per_view(theirs), at_least=False)


def question_goals(found):
    asked = [r["interpret"] for r in last_rows(found.rows, "predictions") if "interpret" in r]
    for what in asked[0] if asked else ():
        found.value(f"10,000 predictions of 37 classes: {what}", 1,
                    ("ours", found.best, 128, f"interpret.{what}", "predictions"), form="{:.3f} s")


def accuracy_goals(found):
    "Seconds until the accuracy is reached: a ratio of means over the seeds."
    at = reached(found.rows)
    for lines in ("usual", "quick"):
        if ("ours", "usual") not in at or ("fastai", lines) not in at: continue
        our_epoch, enough, ours = at["ours", "usual"]
        their_epoch, theirs_enough, theirs = at["fastai", lines]
        ratios = [ours[seed] / theirs[seed] for seed in theirs if seed in ours]
        our_mean, their_mean = statistics.mean(ours.values()), statistics.mean(theirs.values())
        ratio = our_mean / their_mean
        what = f"seconds to {ENOUGH:.0%} on the solar cells: ours over fastai's {lines} lines"
        if not theirs_enough:
            what += (f" (theirs did not reach it by the end of epoch {their_epoch + 1}: "
                     "that time is taken)")
        behind = {f"ours, epoch {our_epoch + 1}, s": round(our_mean, 1),
                  f"fastai {lines}, epoch {their_epoch + 1}, s": round(their_mean, 1)}
        found.found.append(dict(
            what=what, goal="at most 0.25x", median=round(ratio, 4), low=round(min(ratios), 4),
            high=round(max(ratios), 4), n=len(ratios), met=enough and ratio <= .25,
            form="{:.2f}x", behind=behind))


# Markdown

def markdown(rows):
    "The table and what belongs to it."
    kept = [r for r in rows if r.get("last")]
    failed = [r for r in kept if "error" in r]
    disturbed = sum(r.get("disturbed", False) for r in kept)
    end = (f"{len(kept)} processes; {len(failed)} failed; "
           f"{disturbed} disturbed even after repeats.")
    errors = [f"  failed: {r['who']} {r['what']} {r['cell']} round {r['round']}: {r['error']}"
              for r in failed]
    return "\n".join([*facts_lines(rows), "", *goal_lines(rows), *curve_lines(rows),
                      *profile_lines(rows), "", end, *errors])


def facts_lines(rows):
    facts = next((r for r in rows if r.get("part") == "machine"), {})
    found = [r["versions"] for r in rows if "versions" in r]
    def of(name): return next((v[name] for v in found if v.get(name)), "?")
    bf16 = ", ".join(facts.get("bf16", [])) or "no bf16"
    run = f"`run.py {facts.get('args', '')}`, commit {facts.get('commit')}, {facts.get('date')}"
    cpu = f"{facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('memory_gb')} GB, {bf16}"
    lines = [f"{run}. {cpu}. fastai {of('fastai')} and the kit on torch {of('torch')}."]
    if facts.get("try_out"): lines.append("**A trial: these numbers mean nothing.**")
    return lines


def goal_lines(rows):
    lines = ["| what | goal | median (lowest to highest) | n | met | behind it |",
             "| --- | --- | --- | --- | --- | --- |"]
    met = {True: "yes", False: "NO", None: ""}
    for g in goals(rows):
        median, low, high = (g["form"].format(g[k]) for k in ("median", "low", "high"))
        behind = ", ".join(f"{k} {v:g}" for k, v in g["behind"].items())
        lines.append(f"| {g['what']} | {g['goal']} | {median} ({low} to {high}) | {g['n']} | "
                     f"{met[g['met']]} | {behind} |")
    return lines


def curve_lines(rows):
    found = curves(rows)
    if not found: return []
    lines = ["", "Accuracy on the solar cells against seconds, at the end of each epoch:", "",
             "| lines | seeds | epoch | seconds | mean accuracy (lowest to highest) |",
             "| --- | --- | --- | --- | --- |"]
    for (who, what), (mine, epochs) in found.items():
        first = mine[0]
        lr = "by default" if first["lr"] is None else f"{first['lr']:g}"
        settings = f"one cycle of {first['epochs']}, lr {lr}, bs {first['bs']}"
        for e, (s, mean, low, high) in enumerate(epochs, 1):
            lines.append(f"| {who}, {what} ({settings}) | {len(mine)} | {e} | {s:.1f} | "
                         f"{mean:.2%} ({low:.2%} to {high:.2%}) |")
    return lines


def profile_lines(rows):
    lines = []
    for row in rows:
        for key in (k for k in row if k.startswith("profile")):
            what = key.removeprefix("profile").strip("_") or "an unfrozen epoch"
            stages = ", ".join(f"{k.removesuffix('_s')} {v:g} s" for k, v in row[key].items())
            lines += ["", f"Profile of {what}, {row['cell']} px, {row['what']}: {stages}"]
    return lines
