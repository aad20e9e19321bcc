"""The kit's side: one process, several tasks after each other, one JSON line.

    ours.py FOLDER --size 224 --precision bf16 --n 256 --tasks first_batch,epoch,predict
    ours.py FOLDER --size 128 --precision bf16 --n 512 --tasks epoch,profile,frozen,features

The folder holds the photographs (run.py makes them). Random weights: only speed counts here. Before the first timed epoch a fit on 128
pictures warms the process up. `profile` says where the seconds of an unfrozen epoch went.
"""
import argparse, warnings
from collections import Counter
from dataclasses import fields, replace

from common import PAT, emit, now, peak_mb, pick_files, versions

warnings.filterwarnings("ignore")
ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("folder")
ap.add_argument("--size", type=int, default=224)
ap.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
ap.add_argument("--arch", default="resnet34")
ap.add_argument("--bs", type=int, default=64)
ap.add_argument("--n", type=int, default=256, help="training pictures; a quarter as many for validation")
ap.add_argument("--predict", type=int, default=128, help="pictures to predict")
ap.add_argument("--warmup", type=int, default=128)
ap.add_argument("--tasks", default="first_batch,epoch,predict")
a = ap.parse_args()

begun = now()
import torch
from lessonkit import train
from lessonkit.augment import augmentations, to_inputs
from lessonkit.data import ImageData, Loader, key_generator
from lessonkit.learner import Learner
import_s = now() - begun


class Watched(Loader):
    "A loader that notes when an epoch of it was asked for: the first request to the validation loader is the end of training."
    def batches(self, *key, **kw):
        asked.append((self.shuffle, now()))
        yield from super().batches(*key, **kw)


asked = []
def as_a(kind, loader): return kind(**{f.name: getattr(loader, f.name) for f in fields(Loader)})


def make_data(n, augment=True):
    files = pick_files(a.folder, n)
    data = ImageData.from_name_re(a.folder, files, PAT, valid_pct=.2, size=a.size, bs=min(a.bs, n), augment=augmentations(min_scale=.75) if augment else None)
    return replace(data, train=as_a(Watched, data.train), valid=as_a(Watched, data.valid))


def make_learner(data): return Learner(data, a.arch, weights=None, precision=a.precision, show=False)


def timed_fit(learn):
    "Seconds of one epoch: its training part (loading and augmentation in, validation out), and all of it."
    asked.clear()
    start = now()
    learn.fit_one_cycle(1)
    end = now()
    trained = [t for shuffled, t in asked if not shuffled]
    return (trained[0] - start if trained else None), end - start


def profile(learn):
    "The training part of an epoch with a stamp at the end of each stage: seconds by stage."
    spent, data, kept = Counter(), learn.data, (train.to_inputs, type(learn.engine))
    def stamp(name, f):
        def wrapped(*args, **kw):
            start = now()
            result = f(*args, **kw)
            if all(shuffled for shuffled, _ in asked): spent[name] += now() - start  # validation is left out
            return result
        return wrapped
    class Waited(Loader):
        def batches(self, *key, **kw):
            inner = super().batches(*key, **kw)
            fetch = stamp("wait_for_items", lambda: next(inner, None))
            while (batch := fetch()) is not None: yield batch
    class Timed(kept[1]): forward, backward, step = (stamp(k, getattr(kept[1], k)) for k in ("forward", "backward", "step"))
    learn.data, train.to_inputs, learn.engine.__class__ = replace(data, train=as_a(Waited, data.train)), stamp("batch_stage", kept[0]), Timed
    try: total = timed_fit(learn)[0]
    finally: learn.data, train.to_inputs, learn.engine.__class__ = data, *kept
    spent["all_else"] = total - sum(spent.values())
    return dict(train_s=round(total, 2), **{f"{k}_s": round(v, 3) for k, v in spent.items()})


out, tasks = {}, a.tasks.split(",")
start = now()
data = make_data(a.n)
out["make_data_s"] = round(now() - start, 3)

if "first_batch" in tasks:
    start = now()
    batches = data.train.batches(0)
    x = to_inputs(next(batches), data.train, "cpu", key_generator(0))
    out["first_batch_s"] = round(now() - start, 3)
    batches.close()
if set(tasks) & {"epoch", "profile", "predict", "frozen"}:
    if a.warmup: timed_fit(make_learner(make_data(a.warmup)))
    learn = make_learner(data)
if "epoch" in tasks:
    trained, total = timed_fit(learn)
    out |= dict(train_s=round(trained, 3), epoch_s=round(total, 3), img_s=round(a.n / trained, 2), peak_mb=peak_mb())
if "profile" in tasks: out["profile"] = profile(learn)
if "predict" in tasks:
    files = list(data.train.paths[:a.predict])
    start = now()
    preds = learn.get_preds(files)
    out |= dict(predict_s=round(now() - start, 3), predict_n=len(preds))
if "frozen" in tasks:
    learn.freeze()
    out["frozen_s"] = round(timed_fit(learn)[1], 3)
if "features" in tasks:
    learn = make_learner(make_data(a.n, augment=False))
    learn.freeze()
    out["features_first_s"] = round(timed_fit(learn)[1], 3)
    out["features_s"] = round(timed_fit(learn)[1], 4)
    out["features_note"] = learn.history.fits[-1].notes[0]
emit(side="ours", size=a.size, precision=a.precision, arch=a.arch, bs=a.bs, n=a.n, **out, end_peak_mb=peak_mb(), import_s=round(import_s, 2),
     threads=torch.get_num_threads(), versions=versions("lessonkit", "timm"))
