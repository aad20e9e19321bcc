"""The kit's side: one process, several tasks after each other, one JSON line.

    ours.py FOLDER --size 224 --precision bf16 --n 256 --tasks first_batch,epoch,predict
    ours.py FOLDER --size 128 --precision bf16 --n 384 --tasks epoch,profile,frozen,features
    ours.py FOLDER --size 128 --precision bf16 --n 256 --predict 1000 --tasks tta,interpret
    ours.py FOLDER --size 128 --precision bf16 --n 256 --tasks fine_tune,lr_find,features,resume,profile_fine_tune,profile_lr_find

The folder holds the photographs (run.py makes them). Random weights: only speed counts here. Before the first timed epoch a fit on 128
pictures warms the process up. The `profile` tasks do a thing once more and say where its seconds went.
"""
import argparse, os, signal, statistics, tempfile, warnings
from collections import Counter
from contextlib import closing
from dataclasses import fields, replace
from itertools import count
from pathlib import Path

from common import PAT, cycled, emit, left_behind, now, peak_mb, pick_files, versions

warnings.filterwarnings("ignore")
ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("folder")
ap.add_argument("--size", type=int, default=224)
ap.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
ap.add_argument("--arch", default="resnet34")
ap.add_argument("--bs", type=int, default=64)
ap.add_argument("--n", type=int, default=256, help="training pictures; a quarter as many for validation")
ap.add_argument("--predict", type=int, default=128, help="pictures to predict")
ap.add_argument("--views", type=int, default=4, help="random ones, of test-time augmentation")
ap.add_argument("--warmup", type=int, default=128)
ap.add_argument("--steps", type=int, default=30, help="of the learning-rate finder")
ap.add_argument("--tasks", default="first_batch,epoch,predict")
a = ap.parse_args()
scratch = Path(tempfile.mkdtemp())
os.environ["LESSONKIT_CACHE"] = str(scratch / "cache")  # no features of an earlier run

begun = now()
import torch
from lessonkit import interpret, train
from lessonkit.plot import pictures as plot_pictures
from lessonkit.data.augment import augmentations, to_inputs
from lessonkit.core.rng import seeded_rng
from lessonkit.data.image_data import ImageData
from lessonkit.data.loader import Loader
from lessonkit.learner import Learner
from lessonkit.results.preds import Preds
from lessonkit.train.engine import Engine
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
    data = ImageData.from_name_re(a.folder, PAT, files, valid_pct=.2, size=a.size, bs=min(a.bs, n), augment=augmentations(min_scale=.75) if augment else None)
    return replace(data, train=as_a(Watched, data.train), valid=as_a(Watched, data.valid))


def make_learner(data): return Learner(data, a.arch, weights=None, precision=a.precision, model_dir=scratch / "models", show=False)
def find(learn): return learn.lr_find(num_it=a.steps, stop_div=False, show_plot=False)


def seconds(f, *args):
    start = now()
    f(*args)
    return now() - start


def timed_fit(learn):
    "Seconds of one epoch: its training part (loading and augmentation in, validation out), and all of it."
    asked.clear()
    start = now()
    learn.fit_one_cycle(1)
    end = now()
    trained = [t for shuffled, t in asked if not shuffled]
    return (trained[0] - start if trained else None), end - start


def profile(learn, work):
    "Seconds of `work(learn)` by stage, with a stamp at the end of each; what validation takes is not taken apart."
    spent, validating, data = Counter(), [], learn.data
    kept = {(owner, name): getattr(owner, name) for owner, name in ((train, "to_inputs"), (Engine, "forward"), (Engine, "backward"), (Engine, "step"))}
    def stamp(name, f):
        def wrapped(*args, **kw):
            start = now()
            result = f(*args, **kw)
            if not validating: spent[name] += now() - start
            return result
        return wrapped
    class Waited(Loader):
        def batches(self, *key, **kw):
            inner = super().batches(*key, **kw)
            fetch = stamp("wait_for_items", lambda: next(inner, None))
            while (batch := fetch()) is not None: yield batch
    class Judged(Loader):
        def batches(self, *key, **kw):
            validating.append(now())
            yield from super().batches(*key, **kw)
            spent["validation"] += now() - validating.pop()
    learn.data = replace(data, train=as_a(Waited, data.train), valid=as_a(Judged, data.valid))
    for (owner, name), f in kept.items(): setattr(owner, name, stamp("transform_images" if name == "to_inputs" else name, f))
    try: total = seconds(work, learn)
    finally:
        learn.data = data
        for (owner, name), f in kept.items(): setattr(owner, name, f)
    spent["all_else"] = total - sum(spent.values())
    return dict(total_s=round(total, 2), **{f"{k}_s": round(v, 3) for k, v in spent.items()})


class Interrupted(Loader):
    "A training loader that notes when each batch was asked for, and presses Ctrl-C in an epoch's third step."
    def batches(self, *key, **kw):
        with closing(super().batches(*key, **kw)) as inner:
            for i in count(1):
                asked.append((True, now()))
                if (batch := next(inner, None)) is None: return
                if i == min(3, len(self)): os.kill(os.getpid(), signal.SIGINT)
                yield batch


def resume_cost(data):
    "A fit of two epochs is stopped after three steps, saved and resumed by another learner: what saving costs, and the seconds to the first new step."
    data = replace(data, train=as_a(Interrupted, data.train))
    learn = make_learner(data)
    asked.clear()
    learn.fit_one_cycle(2)
    step = asked[-1][1] - asked[-2][1]              # from asking for a batch to asking for the next
    saves = [seconds(learn.save, "halfway") for _ in range(5)]
    size = (scratch / "models" / "halfway.safetensors").stat().st_size
    again = make_learner(data)
    asked.clear()
    start = now()
    again.load("halfway")
    loaded = now() - start
    again.resume()
    return dict(save_s=round(statistics.median(saves), 3), save_mb=round(size / 2**20, 1), load_s=round(loaded, 3), first_step_s=round(asked[1][1] - start, 3),
                step_s=round(step, 3), steps_before=len(learn.history.fits[-1].losses))


def tta_cost(learn):
    "Seconds to predict the pictures plainly, and with n random views and the plain one."
    learn.data = replace(learn.data, valid=replace(learn.data.valid, paths=tuple(cycled(learn.data.valid.paths, a.predict)), targets=torch.arange(a.predict) % learn.data.c))
    plain = seconds(learn.get_preds)
    return dict(plain_s=round(plain, 3), tta_s=round(seconds(learn.tta, a.views), 3), views=a.views + 1)


def interpret_cost(files, n=10_000, c=37):
    "Seconds of each question about n predictions of c classes, and of drawing nine pictures out of them."
    generator = torch.Generator().manual_seed(0)
    logits, y = 2 * torch.randn(n, c, generator=generator), torch.randint(c, (n,), generator=generator)
    logits[torch.arange(n), y] += 4
    probs = logits.softmax(1)
    preds = Preds(probs, y, -probs[torch.arange(n), y].log(), tuple(cycled(files, n)), Task("single", tuple(f"class{i}" for i in range(c))))
    asked = dict(error_interval=interpret.error_interval, top_losses=interpret.top_losses, most_uncertain=interpret.most_uncertain, confusion_matrix=interpret.confusion_matrix,
                 most_confused=interpret.most_confused, report=interpret.report, to_frame=Preds.to_frame, plot_top_losses=lambda p: plot_pictures.plot_top_losses(p).image(),
                 most_correct=lambda p: interpret.most_correct(p, 0), most_incorrect=lambda p: interpret.most_incorrect(p, 0), one_per_class=interpret.one_per_class)
    interpret.report(preds), plot_pictures.plot_top_losses(preds)  # scikit-learn and matplotlib are imported at their first use
    return {name: round(statistics.median(seconds(f, preds) for _ in range(3)), 4) for name, f in asked.items()}


out, tasks = {}, a.tasks.split(",")
start = now()
data = make_data(a.n)
out["make_data_s"] = round(now() - start, 3)

if "first_batch" in tasks:
    start = now()
    batches = data.train.batches(0)
    x = to_inputs(next(batches), data.train, "cpu", seeded_rng(0))
    out["first_batch_s"] = round(now() - start, 3)
    batches.close()
if set(tasks) - {"first_batch", "features"}:
    if a.warmup: timed_fit(make_learner(make_data(a.warmup)))
    learn = make_learner(data)
if "epoch" in tasks:
    trained, total = timed_fit(learn)
    out |= dict(train_s=round(trained, 3), epoch_s=round(total, 3), img_s=round(a.n / trained, 2), peak_mb=peak_mb())
if "profile" in tasks: out["profile"] = profile(learn, lambda learn: learn.fit_one_cycle(1))
if "predict" in tasks:
    files = list(data.train.paths[:a.predict])
    start = now()
    preds = learn.get_preds(files)
    out |= dict(predict_s=round(now() - start, 3), predict_n=len(preds))
if "tta" in tasks: out |= tta_cost(make_learner(data))
if "interpret" in tasks: out["interpret"] = interpret_cost(data.train.paths)
if "frozen" in tasks:
    learn.freeze()
    out["frozen_s"] = round(timed_fit(learn)[1], 3)
if "fine_tune" in tasks: out |= dict(fine_tune_s=round(seconds(learn.fine_tune, 1), 3), fine_tune_peak_mb=peak_mb())
if "lr_find" in tasks:
    learn = make_learner(data)
    with left_behind(a.folder, ".") as left:
        start = now()
        steps = len(find(learn).losses)
        out |= dict(lr_find_s=round(now() - start, 3), lr_find_steps=steps, lr_find_peak_mb=peak_mb())
    out["lr_find_left"] = left
if "features" in tasks:
    learn = make_learner(make_data(a.n, augment=False))
    learn.freeze()
    out["features_first_s"] = round(timed_fit(learn)[1], 3)
    out["features_s"] = round(timed_fit(learn)[1], 4)
    out["features_note"] = learn.history.fits[-1].notes[0]
    learn = make_learner(learn.data)
    learn.freeze()
    out["features_cached_s"] = round(timed_fit(learn)[1], 4)
if "resume" in tasks: out |= dict(resume=resume_cost(data), epoch_s=round(timed_fit(make_learner(data))[1], 3))
if "profile_fine_tune" in tasks: out["profile_fine_tune"] = profile(make_learner(data), lambda learn: learn.fine_tune(1))
if "profile_lr_find" in tasks: out["profile_lr_find"] = profile(make_learner(data), find)
emit(side="ours", size=a.size, precision=a.precision, arch=a.arch, bs=a.bs, n=a.n, **out, end_peak_mb=peak_mb(), import_s=round(import_s, 2),
     threads=torch.get_num_threads(), versions=versions("lessonkit", "timm"))
