"""Which head, at which image size? The default code, other heads, and logistic regression.

    OMP_NUM_THREADS=1 python tests/benchmarks/heads.py --sets solar pets FOLDER --sizes 224 288
    python tests/benchmarks/heads.py --table out/benchmarks/heads.jsonl  # the table
    python tests/benchmarks/heads.py --sets pets --try  # does it run? minutes, worthless numbers

Each split takes a quarter of each class for validation. Everything else is the same for all ways:
EfficientNet-Lite0, frozen, images without augmentation. Only `larger` has another network.

- `default`: `Learner(data)` and `fit_one_cycle(5)`, as in the README.
- `copies`: the same, with features of some copies of each image, which are mirrored at random.
- `larger`: the same with EfficientNet-Lite2, from the extra `lessonkit[larger]`.
- `mlp`: `Learner(data, head="mlp")` and `fit_one_cycle(5)`, the head of two layers.
- `logistic`: scikit-learn's LogisticRegression on the same features (averaged over places,
  standardized); C has the best accuracy in 5-fold cross-validation on the training images.
- `logistic, by loss`: C has the least loss there.
- `logistic, mirrored`: with the features of each training image's mirror image, too.

Each run has its own process, which says how many minutes of processor time it took (all threads
together, from making the data to predictions) and how much memory at most. Prints JSON lines, then
tables: mean and standard deviation over splits, and the paired difference to `logistic` with its
95% interval (Student's t). Splits share images, so the interval says how much the split matters.
"At least as good" means: not more than 0.3 points worse on average, and the interval reaches 0.
"""
import argparse
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from common import machine, versions
from lessonkit.data.augment import NO_AUGMENT
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from sets import (
    add_arguments, difference_cells, held_out, Lines, logistic_scores, print_table, read_lines,
    read_set, run_apart, scores, spread, values_of, where,
)

KEYS = ("set", "size", "seed", "way")
MIRRORED = replace(NO_AUGMENT, flip=True)


def make_data(images, size, seed, **options):
    return ImageData.from_lists(images.path, images.files, images.labels, size=size,
                                valid_idx=held_out(images.labels, .25, seed), **options)


# Ways: each takes a set, a size, a seed and a number of copies, and returns what is written down

def fit(data, seed, **options):
    learn = Learner(data, seed=seed, show=False, **options)
    learn.fit_one_cycle(5)
    return scores(learn.get_preds()) | dict(notes=learn.history.fits[-1].notes)


def default(images, size, seed, copies): return fit(make_data(images, size, seed), seed)


def with_copies(images, size, seed, copies):
    return fit(make_data(images, size, seed, augment=MIRRORED), seed, copies=copies)


def larger(images, size, seed, copies):
    return fit(make_data(images, size, seed), seed, arch="tf_efficientnet_lite2")


def mlp(images, size, seed, copies): return fit(make_data(images, size, seed), seed, head="mlp")


def logistic(images, size, seed, mirrored=False, scoring="accuracy"):
    learn = Learner(make_data(images, size, seed), seed=seed, show=False)
    return logistic_scores(learn, mirrored, scoring)


WAYS = {
    "default": default, "copies": with_copies, "larger": larger, "mlp": mlp,
    "logistic": lambda images, size, seed, copies: logistic(images, size, seed),
    "logistic, by loss":
        lambda images, size, seed, copies: logistic(images, size, seed, scoring="neg_log_loss"),
    "logistic, mirrored":
        lambda images, size, seed, copies: logistic(images, size, seed, mirrored=True),
}


def run(images, size, seed, way, args):
    return dict(n=len(images.files)) | WAYS[way](images, size, seed, args.copies)


# The table

def way_row(rows, base, way, size):
    accuracy, sd = spread([100 * r["accuracy"] for r in rows])
    loss, minutes, peak = (spread([r[k] for r in rows])[0] for k in ("loss", "minutes", "peak_mb"))
    return [size, way, f"{accuracy:.2f}", f"{sd:.2f}", f"{loss:.3f}",
            *difference_cells(rows, base), f"{minutes:.2f}", f"{peak / 1000:.1f}", len(rows)]


def show_table(rows):
    for name in values_of(rows, "set"):
        own, table = where(rows, set=name), []
        for size in values_of(own, "size"):
            base = where(own, size=size, way="logistic")
            for way in values_of(where(own, size=size), "way"):
                table.append(way_row(where(own, size=size, way=way), base, way, size))
        print(f"{name}: {own[0]['n']} images, {own[0]['n_valid']} of them for validation\n")
        print_table(["px", "way", "accuracy", "sd", "loss", "minus logistic, points (95%)",
                     "at least as good", "minutes", "GB at most", "splits"], table)
        show_sizes(own)


def show_sizes(own):
    "The default code at each size, against the first; and the larger network against it."
    sizes, table = values_of(own, "size"), []
    base = where(own, size=sizes[0], way="default")
    for size in sizes if base else []:
        default, larger = (where(own, size=size, way=way) for way in ("default", "larger"))
        if size != sizes[0]:
            table.append([f"{size} px minus {sizes[0]} px", difference_cells(default, base)[0]])
        if larger and default:
            table.append([f"larger minus default, {size} px", difference_cells(larger, default)[0]])
    if table: print_table(["default code", "points (95%)"], table)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, "heads")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 288])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--copies", type=int, default=3, help="of each training image")
    args = parser.parse_args()
    if args.try_out:
        args.every, args.sizes, args.splits, args.copies = 5, [64, 96], 2, 1
        args.out = Path(tempfile.mkdtemp()) / "heads.jsonl"
    return args


def main():
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    if args.table: return show_table(read_lines(args.table))
    lines = Lines(args.out, KEYS, args.go_on)
    for images in [read_set(word, args.every) for word in args.sets]:
        for seed in range(args.splits):
            for size in args.sizes:
                for way in args.ways:
                    key = dict(set=images.name, size=size, seed=seed, way=way)
                    lines.fill(key, run_apart, run, images, size, seed, way, args)
    show_table(lines.rows)
    print(machine(), versions("lessonkit", "scikit-learn"))


if __name__ == "__main__": main()
