"""What heads.py, tuning.py and few.py share: image sets, splits, processes, and tables.

A set is `solar` (the photographs of elpv-dataset), `pets` (drawn by the kit), or a folder that has
one folder for each class. Where a folder has `train` and `valid`, the two are taken together and
split again, and `test` is left alone. The peer's environment imports this file, too, so what
needs the kit is imported where it is used. Needs Linux or macOS (processes are forked).
"""
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import emit, interval, peak_mb, solar_cells

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageSet:
    "Files and their labels."
    name: str
    path: Path
    files: tuple[str, ...] # relative to `path`
    labels: tuple[str, ...]

    def thinned(self, every):
        "One image in so many, of each class."
        order = sorted(range(len(self.files)), key=lambda i: (self.labels[i], i))[::every]
        return ImageSet(self.name, self.path, *zip(*((self.files[i], self.labels[i])
                                                     for i in sorted(order))))


def folder_set(folder):
    folder = Path(folder)
    parts = [part for part in ("train", "valid") if (folder / part).is_dir()] or ["."]
    files = [f for part in parts for f in sorted((folder / part).glob("*/*"))
             if f.suffix.lower() in ENDINGS]
    if not files: raise SystemExit(f"{folder} has no folders with images")
    return ImageSet(folder.resolve().name, folder,
                    tuple(str(f.relative_to(folder)) for f in files),
                    tuple(f.parent.name for f in files))


def pets_set():
    from lessonkit.data.sample import pets
    folder = pets(show=False)
    names = sorted(f.name for f in folder.glob("*.jpg"))
    return ImageSet("pets", folder, tuple(names), tuple(n.rsplit("_", 1)[0] for n in names))


def read_set(word, every=1):
    "A set by name, or from a folder."
    if word == "pets": found = pets_set()
    elif word == "solar":
        path, files, labels = solar_cells()
        found = ImageSet("solar", path, tuple(files), tuple(labels))
    else: found = folder_set(word)
    return found.thinned(every) if every > 1 else found


def held_out(labels, share, seed, among=None):
    "Positions of a share of the images, the same share of each class; of those in `among`, if any."
    from sklearn.model_selection import train_test_split
    among = np.arange(len(labels)) if among is None else np.asarray(among)
    chosen = train_test_split(among, test_size=share, random_state=seed,
                              stratify=[labels[i] for i in among])[1]
    return np.sort(chosen)


def draw_some(labels, count, seed, among):
    "Positions of so many images of each class; None if a class has fewer."
    rng, chosen = np.random.default_rng([seed, count]), []
    for name in sorted(set(labels)):
        own = [i for i in among if labels[i] == name]
        if len(own) < count: return None
        chosen += rng.choice(own, count, replace=False).tolist()
    return np.sort(chosen)


# Processes

def _call_and_send(pipe, function, args):
    try:
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as cache:
            os.environ["LESSONKIT_CACHE"] = cache  # no features of an earlier run
            found = function(*args)
        minutes = round((time.process_time() - begun) / 60, 3)
        pipe.send(dict(minutes=minutes, peak_mb=peak_mb()) | found)
    except BaseException: pipe.send(traceback.format_exc())


def run_apart(function, *args):
    """The dict that a function returns, called in a process of its own.

    With its minutes of processor time (all threads) and its peak memory, imports included.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call_and_send, args=(sender, function, args))
    process.start()
    sender.close()
    try: found = receiver.recv()
    except EOFError: found = "the process died"
    process.join()
    if isinstance(found, str): raise RuntimeError(found)
    return found


# The kit

def scores(preds):
    "Accuracy and mean loss of a kit's `Preds`."
    return dict(n_valid=len(preds.targets), loss=round(float(preds.losses.mean()), 4),
                accuracy=round(float((preds.pred == preds.targets).float().mean()), 5))


def pooled_features(learn, loader, mirrored=False):
    "(n,nf): what a linear head would see of images without augmentation, averaged over places."
    from lessonkit.train.features import body_features
    def of_mirror_image(x): return learn.model.features(x.flip(3))
    compute = of_mirror_image if mirrored else None
    return body_features(learn.model, loader, learn.engine, compute=compute).float().numpy()


def image_folds(y, copies):
    "Five folds (fewer if a class has fewer images): copies train with their image, none is judged."
    from sklearn.model_selection import StratifiedKFold
    count = min(5, *Counter(y.tolist()).values())
    for train, judged in StratifiedKFold(count, shuffle=True, random_state=0).split(y, y):
        yield np.concatenate([train + k * len(y) for k in range(copies)]), judged


def logistic_regression(views, y, scoring):
    """scikit-learn's, on standardized features of each view of the images.

    C is chosen in cross-validation; the smallest of those that are equally good.
    """
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    grids = dict(accuracy=np.logspace(-4, 0, 9), neg_log_loss=np.logspace(-5, 2, 15))
    model = LogisticRegressionCV(
        Cs=grids[scoring], cv=list(image_folds(y, len(views))), scoring=scoring, max_iter=2000,
        l1_ratios=(0,), use_legacy_attributes=False)
    return make_pipeline(StandardScaler(), model).fit(np.concatenate(views), np.tile(y, len(views)))


def logistic_scores(learn, mirrored=False, scoring="accuracy"):
    "Scores of logistic regression on the features of a learner's body."
    train, valid = learn.data.train_eval, learn.data.valid
    views = [pooled_features(learn, train)]
    if mirrored: views.append(pooled_features(learn, train, mirrored=True))
    model = logistic_regression(views, train.targets.numpy(), scoring)
    probs = model.predict_proba(pooled_features(learn, valid))
    note = f"C {model[-1].C_:.2g}, chosen by {scoring}"
    return probability_scores(probs, valid.targets.numpy()) | dict(notes=[note])


def probability_scores(probs, targets):
    "Accuracy and mean loss of probabilities."
    right = probs.argmax(1) == targets
    losses = -np.log(probs[np.arange(len(probs)), targets].clip(1e-12))
    return dict(n_valid=len(right), loss=round(float(losses.mean()), 4),
                accuracy=round(float(right.mean()), 5))


# Lines and tables

def add_arguments(parser, name):
    "The arguments that all three scripts have."
    parser.add_argument("--sets", nargs="+", default=["solar", "pets"],
                        help="solar, pets, or folders with a folder for each class")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="take only one in so many images")
    parser.add_argument("--out", type=Path, default=Path(f"out/benchmarks/{name}.jsonl"))
    parser.add_argument("--go-on", action="store_true", help="keep the lines that --out has")
    parser.add_argument("--table", nargs="+", type=Path, help="only print the table of such files")
    parser.add_argument("--try", dest="try_out", action="store_true",
                        help="does it run? worthless numbers")


class Lines:
    "JSON lines in a file; those of an earlier run are kept if wanted."
    def __init__(self, path, keys, go_on):
        self.path, self.keys = path, keys
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read_lines([path]) if go_on and path.exists() else []
        if not self.rows: path.write_text("")

    def fill(self, key, measure, *args):
        "Measure what the line with this key has to say, unless there is one."
        if any(all(r[k] == key[k] for k in self.keys) for r in self.rows): return
        row = key | measure(*args)
        self.rows.append(row)
        with open(self.path, "a") as f: f.write(json.dumps(row) + "\n")
        emit(**row)


def read_lines(paths):
    return [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]


def spread(values):
    "Mean and standard deviation."
    sd = statistics.stdev(values) if len(values) > 1 else float("nan")
    return statistics.mean(values), sd


def paired(rows, base, value="accuracy"):
    "Differences in points, on the same splits."
    of = {r["seed"]: r[value] for r in base}
    return [100 * (r[value] - of[r["seed"]]) for r in rows if r["seed"] in of]


def difference_cells(rows, base, value="accuracy"):
    "Cells of a table: mean difference and interval, and whether that is at least as good."
    differences = paired(rows, base, value)
    if rows == base or not differences: return ["", ""]
    mean, half = interval(differences)
    fine = mean >= -.3 and not mean + half < 0
    if len(differences) < 2: return [f"{mean:+.1f}", ""]
    return [f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})", "yes" if fine else "no"]


def print_table(columns, rows):
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join(["---"] * len(columns)) + " |")
    for row in rows: print("| " + " | ".join(map(str, row)) + " |")
    print()


def where(rows, **values):
    return [r for r in rows if all(r[k] == v for k, v in values.items())]


def values_of(rows, name): return list(dict.fromkeys(r[name] for r in rows))
