"""fastai's side: the same tasks as ours.py, with fastai's names. Runs in the peer's environment.

    peer.py FOLDER --size 224 --n 256 --tasks first_batch,epoch,predict

The images, their number, batch size, network (random weights), schedule and kinds of augmentation
are those of ours.py; item size, workers, precision and memory format are fastai's own. Resize(460),
or twice the size for small images, is fastai's usual presize; `--item-size` takes another one. Two
tasks are `fine_tune` again, as somebody might try to speed it up: `fine_tune_no_workers` and
`fine_tune_channels_last`.
"""
import argparse
import contextlib
import resource
import statistics
import tempfile
import warnings
from pathlib import Path

from common import cycled, emit, left_behind, now, PAT, peak_mb, pick_files, versions

warnings.filterwarnings("ignore")
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--item-size", type=int, default=0)
parser.add_argument("--arch", default="resnet34")
parser.add_argument("--bs", type=int, default=64)
parser.add_argument("--n", type=int, default=256)
parser.add_argument("--predict", type=int, default=128)
parser.add_argument("--views", type=int, default=4)
parser.add_argument("--warmup", type=int, default=128)
parser.add_argument("--steps", type=int, default=30, help="of the learning-rate finder")
parser.add_argument("--tasks", default="first_batch,epoch,predict")
args = parser.parse_args()

begun = now()
import torch  # noqa: E402
from fastai.callback.channelslast import ChannelsLast  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    aug_transforms, Callback, error_rate, ImageDataLoaders, imagenet_stats, models, Normalize,
    Resize, vision_learner,
)
import_s = now() - begun


def make_data(n, augment=True, **options):
    usual = args.item_size or (460 if args.size > 160 else 2 * args.size)
    tfms = aug_transforms(size=args.size, min_scale=.75) if augment else []
    normalize = Normalize.from_stats(*imagenet_stats)  # pretrained=True would add it itself
    return ImageDataLoaders.from_name_re(
        Path(args.folder), pick_files(args.folder, n), PAT, valid_pct=.2, seed=42,
        bs=min(args.bs, n), item_tfms=Resize(usual if augment else args.size),
        batch_tfms=[*tfms, normalize], **options)


def make_learner(dls):
    torch.manual_seed(0)
    arch = getattr(models, args.arch)
    learn = vision_learner(dls, arch, pretrained=False, metrics=error_rate)
    learn.unfreeze()
    return learn


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield


class Ends(Callback):
    "Notes when the training part of an epoch is over."
    def after_train(self): ends.append(now())


ends = []


def timed_fit(learn):
    "Seconds of an epoch's training part, and of all of it."
    with quiet(learn):
        start = now()
        learn.fit_one_cycle(1, cbs=Ends())
        return ends[-1] - start, now() - start


def timed_fine_tune(learn):
    with quiet(learn):
        start = now()
        learn.fine_tune(1)
        return round(now() - start, 3)


# The tasks

def first_batch():
    start = now()
    next(iter(dls.train))
    return dict(first_batch_s=round(now() - start, 3))


def epoch(learn):
    trained, total = timed_fit(learn)
    return dict(train_s=round(trained, 3), epoch_s=round(total, 3),
                img_s=round(args.n / trained, 2), peak_mb=peak_mb(),
                worker_peak_mb=peak_mb(resource.RUSAGE_CHILDREN))


def predict(learn):
    start = now()
    with quiet(learn):
        preds = learn.get_preds(dl=dls.test_dl(dls.train_ds.items[:args.predict]))
    return dict(predict_s=round(now() - start, 3), predict_n=len(preds[0]))


def tta(learn):
    valid = dls.test_dl(cycled(list(dls.valid_ds.items), args.predict), with_labels=True)
    with quiet(learn):
        start = now()
        learn.get_preds(dl=valid)
        plain = now() - start
        start = now()
        learn.tta(dl=valid, n=args.views)
    return dict(plain_s=round(plain, 3), tta_s=round(now() - start, 3), views=args.views + 1)


def save(learn):
    "Not the same as a checkpoint: weights and optimizer, but no position and no history."
    with tempfile.TemporaryDirectory() as folder:
        learn.model_dir, saves = Path(folder), []
        for _ in range(5):
            start = now()
            file = learn.save("halfway")
            saves.append(now() - start)
        size = file.stat().st_size
    return dict(save_s=round(statistics.median(saves), 3), save_mb=round(size / 2**20, 1))


def lr_find():
    learn = make_learner(dls)
    with left_behind(args.folder, ".") as left, quiet(learn):
        start = now()
        learn.lr_find(num_it=args.steps, stop_div=False, show_plot=False)
        took, peak = now() - start, peak_mb()
    if "models" in left: (Path(args.folder) / "models").rmdir()  # the next run is to show it again
    return dict(lr_find_s=round(took, 3), lr_find_steps=len(learn.recorder.losses),
                lr_find_peak_mb=peak, lr_find_left=left)


def features():
    "fastai has none: a frozen epoch without augmentation, which the kit's features replace."
    learn = make_learner(make_data(args.n, augment=False))
    learn.freeze()
    took = round(timed_fit(learn)[1], 3)
    return dict(features_first_s=took, features_s=took)


tasks = args.tasks.split(",")
start = now()
dls = make_data(args.n)
out = dict(make_data_s=round(now() - start, 3))
if "first_batch" in tasks: out |= first_batch()
if set(tasks) - {"first_batch", "features"}:
    if args.warmup: timed_fit(make_learner(make_data(args.warmup)))
    learn = make_learner(dls)
if "epoch" in tasks: out |= epoch(learn)
if "predict" in tasks: out |= predict(learn)
if "tta" in tasks: out |= tta(learn)
if "frozen" in tasks:
    learn.freeze()
    out["frozen_s"] = round(timed_fit(learn)[1], 3)
if "fine_tune" in tasks:
    out["fine_tune_s"] = timed_fine_tune(learn)
    out["fine_tune_peak_mb"] = peak_mb()
if "save" in tasks: out |= save(learn)
if "lr_find" in tasks: out |= lr_find()
if "features" in tasks: out |= features()
if "fine_tune_no_workers" in tasks:
    out["fine_tune_no_workers_s"] = timed_fine_tune(make_learner(make_data(args.n, num_workers=0)))
if "fine_tune_channels_last" in tasks:
    learn = make_learner(dls)
    learn.add_cb(ChannelsLast())
    out["fine_tune_channels_last_s"] = timed_fine_tune(learn)
emit(side="fastai", size=args.size, precision="fp32", arch=args.arch, bs=args.bs, n=args.n, **out,
     end_peak_mb=peak_mb(), import_s=round(import_s, 2), threads=torch.get_num_threads(),
     workers=dls.train.fake_l.num_workers, versions=versions("fastai", "fastcore"))
