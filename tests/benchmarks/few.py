"""How many images does it take? Learning curves of the default code, of others, and of fastai.

    OMP_NUM_THREADS=1 python tests/benchmarks/few.py --sets solar FOLDER --peer out/peer/bin/python
    python tests/benchmarks/few.py --table out/benchmarks/few.jsonl  # the table
    python tests/benchmarks/few.py --sets pets --try  # does it run? minutes, worthless numbers

For each draw, a quarter of each class is for validation; of the rest, so many images of each class
are drawn for training, the same ones for all ways (`--splits` says how many draws):

- `default`: the kit's `Learner(data)` and `fit_one_cycle(5)`.
- `logistic`: scikit-learn's LogisticRegression on the features of the same frozen body at the same
  size, averaged over places and standardized; C has the best accuracy in 5-fold cross-validation.
- `fastai`: the usual lines, `fine_tune(5)` with the same network: Resize(460), then aug_transforms
  with crops of 224 pixels. It runs in an environment of its own (README.md has the setup), and is
  left out without `--peer`.

A number of images that a class doesn't have is left out. Each run has its own process, which says
how many minutes of processor time it took, workers included. Prints JSON lines, then tables: mean
and standard deviation over draws, and the paired differences between the default code and the
others, with 95% intervals (Student's t). Draws share images, more so the more there are.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from common import load_packaged_weights, machine, peak_mb, versions
from sets import (
    add_arguments, difference_cells, draw_some, held_out, ImageSet, Lines, logistic_scores,
    print_table, probability_scores, read_lines, read_set, run_apart, scores, spread, values_of,
    where,
)

KEYS = ("set", "count", "seed", "way")


def positions(images, count, seed):
    "Positions of images for training and for validation; None for both if there are too few."
    valid = held_out(images.labels, .25, seed)
    rest = np.setdiff1d(np.arange(len(images.files)), valid)
    train = draw_some(images.labels, count, seed, rest)
    return (None, None) if train is None else (train, valid)


# The kit

def make_data(images, count, seed, size):
    from lessonkit.data.image_data import ImageData
    train, valid = positions(images, count, seed)
    both = np.concatenate([train, valid])
    return ImageData.from_lists(
        images.path, [images.files[i] for i in both], [images.labels[i] for i in both], size=size,
        valid_idx=range(len(train), len(both)))


def make_learner(images, count, seed, size):
    from lessonkit.learner import Learner
    return Learner(make_data(images, count, seed, size), seed=seed, show=False)


def default(images, count, seed, args):
    learn = make_learner(images, count, seed, args.size)
    learn.fit_one_cycle(5)
    return scores(learn.get_preds()) | dict(notes=learn.history.fits[-1].notes)


def logistic(images, count, seed, args):
    return logistic_scores(make_learner(images, count, seed, args.size))


# fastai

def cpu_minutes(): return sum(os.times()[:4]) / 60  # with the workers that have ended


def fastai_lines(images, count, seed, size, epochs):
    "Runs in the peer's environment."
    import pandas as pd
    from fastai.vision.all import (
        accuracy, aug_transforms, ImageDataLoaders, Normalize, Resize, set_seed, vision_learner,
    )
    train, valid = positions(images, count, seed)
    both = [*train, *valid]
    table = pd.DataFrame(dict(name=[images.files[i] for i in both],
                              label=[images.labels[i] for i in both],
                              valid=[False] * len(train) + [True] * len(valid)))
    begun = cpu_minutes()
    set_seed(seed)
    normalize = Normalize.from_stats((127 / 255,) * 3, (128 / 255,) * 3)
    dls = ImageDataLoaders.from_df(
        table, images.path, valid_col="valid", bs=min(64, len(train)), item_tfms=Resize(460),
        batch_tfms=[*aug_transforms(size=size, min_scale=.75), normalize])
    learn = vision_learner(dls, "tf_efficientnet_lite0", pretrained=False, metrics=accuracy)
    load_packaged_weights(learn.model[0].model)
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(epochs)
        probs, targets = learn.get_preds()
    return dict(minutes=round(cpu_minutes() - begun, 3), peak_mb=peak_mb(),
                **probability_scores(probs.numpy(), targets.numpy()))


def run_peer(images, count, seed, args):
    "A run of fastai: its JSON line, as a dict."
    values = dict(images=vars(images) | dict(path=str(images.path)), count=count, seed=seed,
                  size=args.fastai_size, epochs=args.fastai_epochs)
    done = subprocess.run([args.peer, __file__, "--one"], input=json.dumps(values), text=True,
                          capture_output=True)
    if done.returncode: raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_one():
    "The peer's side of `run_peer`."
    values = json.load(sys.stdin)
    names = values.pop("images")
    images = ImageSet(names["name"], Path(names["path"]), names["files"], names["labels"])
    print(json.dumps(fastai_lines(images, **values)))


def run(images, count, seed, way, args):
    if way == "fastai": return run_peer(images, count, seed, args)
    return run_apart(dict(default=default, logistic=logistic)[way], images, count, seed, args)


# The table

def count_row(rows, count):
    cells, base = [count], where(rows, way="default")
    for way in ("default", "logistic", "fastai"):
        own = where(rows, way=way)
        if not own:
            cells += [""] * (2 if way == "default" else 3)
            continue
        mean, sd = spread([100 * r["accuracy"] for r in own])
        cells.append(f"{mean:.1f} ± {sd:.1f}")
        if way != "default": cells.append(difference_cells(base, own)[0])
        cells.append(f"{spread([r['minutes'] for r in own])[0]:.2f}")
    return [*cells, len(base)]


def show_table(rows):
    columns = ["images per class", "default, %", "min"]
    for way in ("logistic", "fastai"): columns += [f"{way}, %", f"default minus {way} (95%)", "min"]
    for name in values_of(rows, "set"):
        own = where(rows, set=name)
        print(f"{name}: {own[0]['n_valid']} images for validation; mean ± standard deviation\n")
        print_table([*columns, "draws"],
                    [count_row(where(own, count=c), c) for c in values_of(own, "count")])


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, "few")
    parser.add_argument("--counts", nargs="+", type=int, default=[5, 10, 20, 50],
                        help="images of each class to train on")
    parser.add_argument("--size", type=int, help="of the images, in pixels; default: the kit's")
    parser.add_argument("--ways", nargs="+", choices=["default", "logistic", "fastai"],
                        default=["default", "logistic", "fastai"])
    parser.add_argument("--peer", help="the Python of the environment that has fastai")
    parser.add_argument("--fastai-epochs", type=int, default=5)
    parser.add_argument("--fastai-size", type=int, default=224)
    parser.add_argument("--one", action="store_true", help="of fastai, as standard input says")
    args = parser.parse_args()
    if args.try_out:
        args.every, args.counts, args.size, args.splits = 3, [2, 5], 64, 2
        args.fastai_epochs, args.fastai_size = 1, 64
        args.out = Path(tempfile.mkdtemp()) / "few.jsonl"
    if not args.peer: args.ways = [way for way in args.ways if way != "fastai"]
    return args


def main():
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    if args.one: return run_one()
    if args.table: return show_table(read_lines(args.table))
    import lessonkit.learner  # noqa: F401 -- once, before processes are forked
    lines = Lines(args.out, KEYS, args.go_on)
    for images in [read_set(word, args.every) for word in args.sets]:
        for seed in range(args.splits):
            for count in args.counts:
                if positions(images, count, seed)[0] is None: continue
                for way in args.ways:
                    key = dict(set=images.name, count=count, seed=seed, way=way)
                    lines.fill(key, run, images, count, seed, way, args)
    show_table(lines.rows)
    print(machine(), versions("lessonkit", "scikit-learn"))


if __name__ == "__main__": main()
