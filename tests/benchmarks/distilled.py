"""Is the ResNet-18 inside the kit as good as EfficientNet-Lite0, and how much faster to train?

    python tests/benchmarks/distilled.py --folders FOLDER ...    # about 25 minutes of 2 idle cores
    python tests/benchmarks/distilled.py --table out/benchmarks/distilled.jsonl  # only the summary
    python tests/benchmarks/distilled.py --try                   # does it run? worthless numbers

Three bodies: `lite0`, which you get if you name no network; `student`, the ResNet-18 inside the
kit, or the weights in a file (--student); `random`, a ResNet-18 that starts with random weights.
The images: drawn pets, solar cells, and the folders given. In these an image's label is the name of
the folder that it is in, and whatever is called train, valid or test is put together. A seed sets
the split (75/25, stratified) and everything random; a data set's images are the same for all seeds.

Two ways to use a body. `probe`: logistic regression on the features of the frozen body. `tune`:
fine_tune with its usual settings, augmented, the head first and then everything. The random body is
trained as a whole for as many epochs, because a frozen one would have nothing to offer.

The bodies take turns within each seed, in another order each time, so times are compared between
runs that follow each other. They are those of whole epochs, validation included. Seeds are the
outer loop: when --minutes are over, the seed that is running is still finished for this data set.

Prints JSON lines: one for each run; then a summary for each data set and way: mean accuracy over
the seeds; student minus lite0 in points, with its 95% interval (Student's t); lite0's time over the
student's, as median, lowest and highest. The last line applies the rule by which the student would
become the network that you get without naming one: within 3 points of lite0 (the mean over data
sets, for both ways), and unfrozen epochs at least 2.5 times as fast. Needs elpv-dataset.
"""
import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from common import interval, machine
from lessonkit.data import datasets
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.distill import linear_probe
from lessonkit.learner import Learner
from lessonkit.results.intervals import wilson_interval

POINTS, TIMES = 3., 2.5  # the rule


def bodies(student):
    "{name: (arch, weights)}."
    return dict(lite0=(None, "pretrained"), student=("resnet18", student),
                random=("resnet18", None))


def pick(path, files, labels, n):
    "Folder, files and labels of n random images, always the same; of all if there are fewer."
    keep = np.sort(np.random.default_rng(0).permutation(len(files))[:n])
    return path, [files[i] for i in keep], [labels[i] for i in keep]


def data_sets(folders, n):
    "{name: (folder, files, labels)}."
    found = {}
    for name in ("sample", "solar"):
        images = datasets.get(name)
        found[name] = pick(images.path, list(images.table.file), list(images.table.label), n)
    for folder in folders:
        files = image_files(folder)
        found[folder.name] = pick(folder, files, [f.parent.name for f in files], n)
    return found


def probe(data, arch, weights):
    found = linear_probe(data, arch, weights)
    return dict(k=found.k, n=found.n)


def tune(data, arch, weights, seed, epochs):
    learn = Learner(data, arch, weights=weights, head="mlp", seed=seed, cache=False, show=False)
    start = time.process_time()
    if weights is None: learn.fit_one_cycle(1 + epochs)
    else: learn.fine_tune(epochs)
    cpu = time.process_time() - start
    preds = learn.get_preds()
    *frozen, tuned = (sum(row["time"] for row in fit.rows) for fit in learn.history.fits)
    return dict(k=int((preds.pred == preds.targets).sum()), n=len(preds),
                frozen_s=round(sum(frozen), 2), unfrozen_s=round(tuned, 2), cpu_s=round(cpu, 2),
                precision=learn.engine.precision)


def run_seed(name, images, seed, args, write):
    "All bodies on one split of one data set."
    path, files, labels = images
    data = ImageData.from_lists(path, files, labels, valid_pct=.25, split="stratified", seed=seed,
                                size=args.size, bs=args.bs, augment=augmentations())
    turn = list(bodies(args.student).items())
    first = seed % len(turn)
    for body, (arch, weights) in turn[first:] + turn[:first]:
        key = dict(data=name, body=body, seed=seed, size=args.size)
        start = time.perf_counter()
        found = probe(data, arch, weights)
        write(key | dict(way="probe", **found, seconds=round(time.perf_counter() - start, 2)))
        write(key | dict(way="tune", **tune(data, arch, weights, seed, args.epochs)))


def select(rows, **key):
    "{seed: row} of the rows with these values."
    chosen = [r for r in rows if all(r[k] == v for k, v in key.items())]
    return {r["seed"]: r for r in chosen}


def percent(row): return 100 * row["k"] / row["n"]


def summarize(rows, name, way):
    "The line for one data set and way."
    of = {body: select(rows, data=name, way=way, body=body) for body in bodies(None)}
    seeds = sorted(set.intersection(*(set(found) for found in of.values())))
    line = dict(data=name, way=way, seeds=len(seeds))
    for body, found in of.items():
        k, n = (sum(found[seed][key] for seed in seeds) for key in "kn")
        share = wilson_interval(k, n)
        line[body] = round(100 * share.value, 1)
        line[f"{body}_interval"] = [round(100 * share.low, 1), round(100 * share.high, 1)]
        line["n"] = n
    mean, half = interval([percent(of["student"][seed]) - percent(of["lite0"][seed])
                           for seed in seeds])
    line |= dict(difference=round(mean, 2), interval=[round(mean - half, 2), round(mean + half, 2)])
    if way == "tune": line |= time_ratios(of["lite0"], of["student"], seeds)
    return line


def time_ratios(lite0, student, seeds):
    "{part: [median, lowest, highest]} of lite0's time over the student's."
    line = {}
    for part in ("frozen_s", "unfrozen_s", "cpu_s"):
        ratios = [lite0[seed][part] / student[seed][part] for seed in seeds]
        found = (statistics.median(ratios), min(ratios), max(ratios))
        line[f"ratio_{part}"] = [round(ratio, 2) for ratio in found]
    return line


def verdict(rows, lines):
    "What the rule says of all of them together."
    differences = {way: statistics.mean(line["difference"] for line in lines if line["way"] == way)
                   for way in ("probe", "tune")}
    times = {(r["data"], r["seed"], r["body"]): r["unfrozen_s"] for r in rows if r["way"] == "tune"}
    pairs = [(times.get((name, seed, "lite0")), seconds)
             for (name, seed, body), seconds in times.items() if body == "student"]
    ratios = [lite0 / student for lite0, student in pairs if lite0]
    ratio = statistics.median(ratios)
    return dict(mean_differences={way: round(d, 2) for way, d in differences.items()},
                worst_difference=min(line["difference"] for line in lines),
                unfrozen_ratio=round(ratio, 2), pairs=len(ratios),
                close_enough=all(d >= -POINTS for d in differences.values()),
                fast_enough=ratio >= TIMES)


def show_summary(rows):
    names = list(dict.fromkeys(r["data"] for r in rows))
    lines = [summarize(rows, name, way) for name in names for way in ("probe", "tune")]
    for line in lines: print(json.dumps(line))
    print(json.dumps(verdict(rows, lines)))


def measure(args, out):
    "Run everything; the rows."
    rows, start = [], time.monotonic()

    def write(row):
        rows.append(row)
        for file in (out, None): print(json.dumps(row), file=file, flush=True)

    images = data_sets(args.folders, args.n)
    for seed in map(int, args.seeds.split(",")):
        for name, of in images.items():
            if rows and time.monotonic() - start > 60 * args.minutes: return rows
            run_seed(name, of, seed, args, write)
    return rows


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=Path, nargs="*", default=[],
                        help="of images, in folders named for their classes")
    parser.add_argument("--student", default="lessonkit",
                        help="weights of the student: a file, or those inside the kit")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--n", type=int, default=1000, help="most images of a data set")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--bs", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="with everything unfrozen")
    parser.add_argument("--minutes", type=float, default=22., help="start nothing new after these")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/distilled.jsonl"))
    parser.add_argument("--table", type=Path, help="only print the summary of this file")
    parser.add_argument("--try", dest="try_out", action="store_true",
                        help="does it run? worthless numbers")
    args = parser.parse_args()
    if args.try_out:
        args.n, args.size, args.epochs, args.seeds = 60, 64, 1, "0,1"
        args.out = Path(tempfile.mkdtemp()) / "distilled.jsonl"
    return args


def main():
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    if args.table:
        rows = [json.loads(line) for line in args.table.read_text().splitlines()]
    else:
        print(json.dumps(machine()), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with open(args.out, "w") as out: rows = measure(args, out)
    show_summary(rows)


if __name__ == "__main__": main()
