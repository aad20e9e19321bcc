"""The kit's side: one process, several tasks one after the other, one JSON line.

    ours.py FOLDER --size 224 --precision bf16 --n 256 --tasks first_batch,epoch,predict
    ours.py FOLDER --size 128 --precision bf16 --n 384 --tasks epoch,profile,frozen,features
    ours.py FOLDER --size 128 --precision bf16 --n 256 --predict 1000 --tasks tta,interpret
    ours.py FOLDER --size 128 --precision bf16 --n 256 --tasks fine_tune,lr_find,features,resume,\
profile_fine_tune,profile_lr_find

The folder has the photographs (run.py makes them). Weights are random: only speed counts here.
Before the first timed epoch, a fit on 128 images warms the process up. The `profile` tasks do
something once more and say where its seconds went.
"""
import argparse
import os
import signal
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from itertools import count
from pathlib import Path

from common import cycled, emit, left_behind, now, PAT, peak_mb, pick_files, versions

warnings.filterwarnings("ignore")
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
parser.add_argument("--arch", default="resnet34")
parser.add_argument("--bs", type=int, default=64)
parser.add_argument("--n", type=int, default=256,
                    help="training images; a quarter as many for validation")
parser.add_argument("--predict", type=int, default=128, help="images to predict")
parser.add_argument("--views", type=int, default=4, help="random views of test-time augmentation")
parser.add_argument("--warmup", type=int, default=128, help="training images of the warm-up")
parser.add_argument("--steps", type=int, default=30, help="of the learning-rate finder")
parser.add_argument("--tasks", default="first_batch,epoch,predict")
args = parser.parse_args()
scratch = Path(tempfile.mkdtemp())
os.environ["LESSONKIT_CACHE"] = str(scratch / "cache")  # no features of an earlier run

begun = now()
import torch  # noqa: E402

from lessonkit.core.rng import seeded_rng  # noqa: E402
from lessonkit.core.task import Task  # noqa: E402
from lessonkit.data.augment import augmentations, to_inputs  # noqa: E402
from lessonkit.data.image_data import ImageData  # noqa: E402
from lessonkit.data.loader import Loader  # noqa: E402
from lessonkit.learner import Learner  # noqa: E402
from lessonkit.plot.pictures import plot_top_losses  # noqa: E402
from lessonkit.results import intervals, scores, selections  # noqa: E402
from lessonkit.results.preds import Preds  # noqa: E402
from lessonkit.train import loop  # noqa: E402
from lessonkit.train.engine import Engine  # noqa: E402
import_s = now() - begun


class Watched(Loader):
    """A loader that notes when an epoch of it was asked for.

    The first request to the validation loader is the end of training.
    """
    def batches(self, *key, **options):
        requests.append((self.shuffle, now()))
        yield from super().batches(*key, **options)


requests = []


def as_a(kind, loader): return kind(**{f.name: getattr(loader, f.name) for f in fields(Loader)})


def make_data(n, augment=True):
    augment = augmentations(min_scale=.75) if augment else None
    files = pick_files(args.folder, n)
    data = ImageData.from_name_re(args.folder, PAT, files, valid_pct=.2, size=args.size,
                                  bs=min(args.bs, n), augment=augment)
    return replace(data, train=as_a(Watched, data.train), valid=as_a(Watched, data.valid))


def make_learner(data):
    return Learner(data, args.arch, weights=None, precision=args.precision,
                   model_dir=scratch / "models", show=False)


def find_rate(learn): return learn.lr_find(num_it=args.steps, stop_div=False, show_plot=False)


def seconds(f, *arguments):
    start = now()
    f(*arguments)
    return now() - start


def timed_fit(learn):
    "Seconds of an epoch's training part (loading and augmentation included), and of all of it."
    requests.clear()
    start = now()
    learn.fit_one_cycle(1)
    end = now()
    trained = [t for is_training, t in requests if not is_training]
    return (trained[0] - start if trained else None), end - start


# Where the seconds go

class Profile:
    "Counts seconds by stage while something runs; what happens in validation is not divided up."
    def __init__(self):
        self.spent, self.validating = Counter(), []

    def timed(self, stage: str, f: Callable) -> Callable:
        "The same function; its seconds are counted for a stage."
        def wrapped(*arguments, **options):
            start = now()
            result = f(*arguments, **options)
            if not self.validating: self.spent[stage] += now() - start
            return result
        return wrapped

    def training_loader(self, loader):
        "The same loader; the time in which the loop waits for it is counted."
        profile = self
        class Waited(Loader):
            def batches(self, *key, **options):
                inner = super().batches(*key, **options)
                fetch = profile.timed("wait_for_items", lambda: next(inner, None))
                while (batch := fetch()) is not None: yield batch
        return as_a(Waited, loader)

    def validation_loader(self, loader):
        "The same loader; the time from its first batch to its last is counted as validation."
        profile = self
        class Judged(Loader):
            def batches(self, *key, **options):
                profile.validating.append(now())
                yield from super().batches(*key, **options)
                profile.spent["validation"] += now() - profile.validating.pop()
        return as_a(Judged, loader)


def profile(learn, work):
    "Seconds of `work(learn)` by stage."
    stages = [(loop, "to_inputs", "batch_stage"), (Engine, "forward", "forward"),
              (Engine, "backward", "backward"), (Engine, "step", "step")]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in stages]
    found, data = Profile(), learn.data
    learn.set_data(replace(data, train=found.training_loader(data.train),
                           valid=found.validation_loader(data.valid)))
    for owner, name, stage in stages: setattr(owner, name, found.timed(stage, getattr(owner, name)))
    try: total = seconds(work, learn)
    finally:
        learn.set_data(data)
        for owner, name, f in kept: setattr(owner, name, f)
    found.spent["all_else"] = total - sum(found.spent.values())
    rounded = {f"{stage}_s": round(s, 3) for stage, s in found.spent.items()}
    return dict(total_s=round(total, 2), **rounded)


# Resuming

class Interrupted(Loader):
    "Notes when each batch was asked for, and presses Ctrl-C in an epoch's third step."
    def batches(self, *key, **options):
        with closing(super().batches(*key, **options)) as inner:
            for i in count(1):
                requests.append((True, now()))
                batch = next(inner, None)
                if batch is None: return
                if i == min(3, len(self)): os.kill(os.getpid(), signal.SIGINT)
                yield batch


def resume_cost(data):
    """What saving costs, and the seconds to the first new step.

    A fit of two epochs is stopped after three steps, saved, and resumed by another learner.
    """
    data = replace(data, train=as_a(Interrupted, data.train))
    learn = make_learner(data)
    requests.clear()
    learn.fit_one_cycle(2)
    step = requests[-1][1] - requests[-2][1]  # from asking for a batch to asking for the next
    saves = [seconds(learn.save, "halfway") for _ in range(5)]
    size = (scratch / "models" / "halfway.safetensors").stat().st_size
    again = make_learner(data)
    requests.clear()
    start = now()
    again.load("halfway")
    loaded = now() - start
    again.resume()
    return dict(save_s=round(statistics.median(saves), 3), save_mb=round(size / 2**20, 1),
                load_s=round(loaded, 3), first_step_s=round(requests[1][1] - start, 3),
                step_s=round(step, 3), steps_before=len(learn.history.fits[-1].losses))


# Predictions

def tta_cost(learn):
    "Seconds to predict the images plainly, and with n random views and the plain one."
    paths = tuple(cycled(learn.data.valid.paths, args.predict))
    targets = torch.arange(args.predict) % learn.data.c
    valid = replace(learn.data.valid, paths=paths, targets=targets)
    learn.set_data(replace(learn.data, valid=valid))
    plain = seconds(learn.get_preds)
    tta = seconds(learn.tta, args.views)
    return dict(plain_s=round(plain, 3), tta_s=round(tta, 3), views=args.views + 1)


def made_up_preds(files, n=10_000, c=37):
    "Predictions of c classes that are correct most of the time."
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, c, generator=generator)
    y = torch.randint(c, (n,), generator=generator)
    rows = torch.arange(n)
    logits[rows, y] += 4
    probs = logits.softmax(1)
    task = Task("single", tuple(f"class{i}" for i in range(c)))
    return Preds(probs, y, -probs[rows, y].log(), tuple(cycled(files, n)), task)


def question_costs(files):
    "Seconds of each question about 10,000 predictions, and of drawing nine images out of them."
    questions = dict(
        error_interval=intervals.error_interval, top_losses=selections.top_losses,
        most_uncertain=selections.most_uncertain, confusion_matrix=scores.confusion_matrix,
        most_confused=scores.most_confused, classification_report=scores.classification_report,
        to_frame=Preds.to_frame, plot_top_losses=lambda p: plot_top_losses(p).image(),
        most_correct=lambda p: selections.most_correct(p, p.classes[0]),
        most_incorrect=lambda p: selections.most_incorrect(p, p.classes[0]),
        one_per_class=selections.one_per_class)
    preds = made_up_preds(files)
    scores.classification_report(preds)  # the first use imports scikit-learn
    plot_top_losses(preds)  # ... and matplotlib
    def cost(f): return statistics.median(seconds(f, preds) for _ in range(3))
    return {name: round(cost(f), 4) for name, f in questions.items()}


# The tasks

def first_batch():
    "Seconds until a new loader has given its first augmented batch."
    start = now()
    batches = data.train.batches(0)
    to_inputs(next(batches), data.train, "cpu", seeded_rng(0))
    took = now() - start
    batches.close()
    return dict(first_batch_s=round(took, 3))


def epoch(learn):
    trained, total = timed_fit(learn)
    return dict(train_s=round(trained, 3), epoch_s=round(total, 3),
                img_s=round(args.n / trained, 2), peak_mb=peak_mb())


def predict(learn):
    files = list(data.train.paths[:args.predict])
    start = now()
    preds = learn.get_preds(files)
    return dict(predict_s=round(now() - start, 3), predict_n=len(preds))


def lr_find():
    learn = make_learner(data)
    with left_behind(args.folder, ".") as left:
        start = now()
        steps = len(find_rate(learn).losses)
        took, peak = now() - start, peak_mb()
    return dict(lr_find_s=round(took, 3), lr_find_steps=steps, lr_find_peak_mb=peak,
                lr_find_left=left)


def features():
    "Frozen epochs without augmentation: features are made, then at hand, then on disk."
    learn = make_learner(make_data(args.n, augment=False))
    learn.freeze()
    first, second = timed_fit(learn)[1], timed_fit(learn)[1]
    note = learn.history.fits[-1].notes[0]
    learn = make_learner(learn.data)
    learn.freeze()
    cached = timed_fit(learn)[1]
    return dict(features_first_s=round(first, 3), features_s=round(second, 4), features_note=note,
                features_cached_s=round(cached, 4))


tasks = args.tasks.split(",")
start = now()
data = make_data(args.n)
out = dict(make_data_s=round(now() - start, 3))
if "first_batch" in tasks: out |= first_batch()
if set(tasks) - {"first_batch", "features"}:
    if args.warmup: timed_fit(make_learner(make_data(args.warmup)))
    learn = make_learner(data)
if "epoch" in tasks: out |= epoch(learn)
if "profile" in tasks: out["profile"] = profile(learn, lambda learn: learn.fit_one_cycle(1))
if "predict" in tasks: out |= predict(learn)
if "tta" in tasks: out |= tta_cost(make_learner(data))
if "interpret" in tasks: out["interpret"] = question_costs(data.train.paths)
if "frozen" in tasks:
    learn.freeze()
    out["frozen_s"] = round(timed_fit(learn)[1], 3)
if "fine_tune" in tasks:
    out["fine_tune_s"] = round(seconds(learn.fine_tune, 1), 3)
    out["fine_tune_peak_mb"] = peak_mb()
if "lr_find" in tasks: out |= lr_find()
if "features" in tasks: out |= features()
if "resume" in tasks:
    out["resume"] = resume_cost(data)
    out["epoch_s"] = round(timed_fit(make_learner(data))[1], 3)
if "profile_fine_tune" in tasks:
    out["profile_fine_tune"] = profile(make_learner(data), lambda learn: learn.fine_tune(1))
if "profile_lr_find" in tasks: out["profile_lr_find"] = profile(make_learner(data), find_rate)
emit(side="ours", size=args.size, precision=args.precision, arch=args.arch, bs=args.bs, n=args.n,
     **out, end_peak_mb=peak_mb(), import_s=round(import_s, 2), threads=torch.get_num_threads(),
     versions=versions("lessonkit", "timm"))
