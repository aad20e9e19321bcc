"""Is fine-tuning worth it? `fine_tune(3)` against the head alone, on the same splits.

    OMP_NUM_THREADS=1 python tests/benchmarks/tuning.py --sets solar pets FOLDER
    python tests/benchmarks/tuning.py --table out/benchmarks/tuning.jsonl  # the table
    python tests/benchmarks/tuning.py --sets pets --try  # does it run? minutes, worthless numbers

Each split has three parts: a fifth of each class for testing, a quarter of the rest for validation,
and what is left for training. `keep_best` chooses an epoch, or the solved head, by the validation
images; the test images take no part in anything. If choosing fooled us, the gain would be larger on
validation images than on test images, and both are in the table.

- `head`: `Learner(data)` and `fit_one_cycle(5)`.
- `tuned`: `Learner(data)` and `fine_tune(3)`.
- `tuned, last`: the same with `keep_best=None`, which ends with the last epoch's weights.
- `head, augmented` and so on: the same with `augmentations()`.

Each run has its own process, which says how many minutes of processor time training took (all
threads together, with validation after each epoch) and how much memory at most. Prints JSON lines,
then tables: mean and standard deviation over splits, and the paired difference to `head`, with its
95% interval (Student's t). Splits share images, so the interval says how much the split matters.
"At least as good" means: not more than 0.3 points worse on average, and the interval reaches 0.
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from common import machine, peak_mb, versions
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from lessonkit.results.predict import predict_set
from sets import (
    add_arguments, difference_cells, held_out, Lines, print_table, read_lines, read_set, run_apart,
    scores, spread, values_of, where,
)

KEYS = ("set", "size", "seed", "way")
WAYS = [name + extra for extra in ("", ", augmented") for name in ("head", "tuned", "tuned, last")]


def chosen(values, positions): return [values[i] for i in positions]


def make_data(images, seed, size, augment):
    "Data for training; and data whose validation images are those to test on."
    test = held_out(images.labels, .2, seed)
    rest = np.setdiff1d(np.arange(len(images.files)), test)
    valid = held_out(images.labels, .25, seed, among=rest)
    data = ImageData.from_lists(
        images.path, chosen(images.files, rest), chosen(images.labels, rest), size=size,
        valid_idx=np.searchsorted(rest, valid), augment=augmentations() if augment else None)
    testing = ImageData.from_lists(images.path, images.files, images.labels, size=size,
                                   valid_idx=test)
    shared = set(data.train.paths + data.valid.paths) & set(testing.valid.paths)
    if shared: raise ValueError(f"{len(shared)} images are for training and for testing")
    return data, testing


def train(learn, way, args):
    if way.startswith("head"): learn.fit_one_cycle(5)
    elif "last" in way: learn.fine_tune(args.epochs, keep_best=None)
    else: learn.fine_tune(args.epochs)


def run(images, size, seed, way, args):
    "One split and one way."
    begun = time.process_time()
    data, testing = make_data(images, seed, size, "augmented" in way)
    learn = Learner(data, seed=seed, show=False)
    train(learn, way, args)
    valid = scores(learn.get_preds())
    minutes, peak = round((time.process_time() - begun) / 60, 3), peak_mb()
    test = scores(predict_set(learn.model, testing.valid, learn.engine, data.task))
    rows = [{k: round(v, 4) for k, v in row.items() if isinstance(v, float)}
            for record in learn.history.fits for row in record.rows]
    notes = [note for record in learn.history.fits for note in record.notes]
    return dict(minutes=minutes, peak_mb=peak, px=data.size, n_train=data.train.n, **valid,
                n_test=test["n_valid"], test_loss=test["loss"], test_accuracy=test["accuracy"],
                epochs=rows, notes=notes)


# The table

def way_row(rows, base, way):
    cells = [way]
    for value in ("accuracy", "test_accuracy"):
        mean, sd = spread([100 * r[value] for r in rows])
        cells += [f"{mean:.2f}", f"{sd:.2f}", *difference_cells(rows, base, value)]
    loss, minutes, peak = (spread([r[k] for r in rows])[0]
                           for k in ("test_loss", "minutes", "peak_mb"))
    return [*cells, f"{loss:.3f}", f"{minutes:.2f}", f"{peak / 1000:.1f}", len(rows)]


def show_table(rows):
    for name in values_of(rows, "set"):
        for size in values_of(where(rows, set=name), "size"):
            own = where(rows, set=name, size=size)
            base = where(own, way="head")
            first = own[0]
            print(f"{name}, {first['px']} px: {first['n_train']} images for training, "
                  f"{first['n_valid']} for validation, {first['n_test']} for testing\n")
            print_table(["way", "validation", "sd", "minus head (95%)", "at least as good",
                         "test", "sd", "minus head (95%)", "at least as good", "test loss",
                         "minutes", "GB at most", "splits"],
                        [way_row(where(own, way=w), base, w) for w in values_of(own, "way")])


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, "tuning")
    parser.add_argument("--size", type=int, help="of the images, in pixels; default: the kit's")
    parser.add_argument("--epochs", type=int, default=3, help="of fine_tune")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    args = parser.parse_args()
    if args.try_out:
        args.every, args.size, args.splits, args.epochs = 5, 64, 2, 1
        args.out = Path(tempfile.mkdtemp()) / "tuning.jsonl"
    return args


def main():
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    if args.table: return show_table(read_lines(args.table))
    lines = Lines(args.out, KEYS, args.go_on)
    for images in [read_set(word, args.every) for word in args.sets]:
        for seed in range(args.splits):
            for way in args.ways:
                key = dict(set=images.name, size=args.size, seed=seed, way=way)
                lines.fill(key, run_apart, run, images, args.size, seed, way, args)
    show_table(lines.rows)
    print(machine(), versions("lessonkit"))


if __name__ == "__main__": main()
