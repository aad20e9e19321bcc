"""fastai's side: the same tasks as ours.py, with fastai's names. Runs in the peer's environment.

    peer.py FOLDER --size 224 --n 256 --tasks first_batch,epoch,predict

The pictures, their number, batch size, network (random weights), schedule and kinds of augmentation are those of ours.py; item size, workers,
precision and memory format are fastai's own. Resize(460), or twice the size for small pictures, is fastai's usual presize; `--item-size` takes another.
Two tasks are `fine_tune` again as one might try to quicken it: `fine_tune_no_workers` and `fine_tune_channels_last`.
"""
import argparse, contextlib, resource, statistics, tempfile, warnings
from pathlib import Path

from common import PAT, cycled, emit, left_behind, now, peak_mb, pick_files, versions

warnings.filterwarnings("ignore")
ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("folder")
ap.add_argument("--size", type=int, default=224)
ap.add_argument("--item-size", type=int, default=0)
ap.add_argument("--arch", default="resnet34")
ap.add_argument("--bs", type=int, default=64)
ap.add_argument("--n", type=int, default=256)
ap.add_argument("--predict", type=int, default=128)
ap.add_argument("--views", type=int, default=4)
ap.add_argument("--warmup", type=int, default=128)
ap.add_argument("--steps", type=int, default=30, help="of the learning-rate finder")
ap.add_argument("--tasks", default="first_batch,epoch,predict")
a = ap.parse_args()

begun = now()
import torch
from fastai.vision.all import Callback, ImageDataLoaders, Normalize, Resize, aug_transforms, error_rate, imagenet_stats, models, vision_learner
from fastai.callback.channelslast import ChannelsLast
import_s = now() - begun


def make_data(n, augment=True, **options):
    item = (a.item_size or (460 if a.size > 160 else 2 * a.size)) if augment else a.size
    tfms = aug_transforms(size=a.size, min_scale=.75) if augment else []
    return ImageDataLoaders.from_name_re(Path(a.folder), PAT, pick_files(a.folder, n), valid_pct=.2, seed=42, bs=min(a.bs, n), item_tfms=Resize(item),
                                         batch_tfms=[*tfms, Normalize.from_stats(*imagenet_stats)], **options)  # pretrained=True would add Normalize itself


def make_learner(dls):
    torch.manual_seed(0)
    learn = vision_learner(dls, getattr(models, a.arch), pretrained=False, metrics=error_rate)
    learn.unfreeze()
    return learn


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield


class Ends(Callback):
    def after_train(self): ends.append(now())


ends = []


def timed_fit(learn):
    with quiet(learn):
        start = now()
        learn.fit_one_cycle(1, cbs=Ends())
        return ends[-1] - start, now() - start


def timed_fine_tune(learn):
    with quiet(learn):
        start = now()
        learn.fine_tune(1)
        return round(now() - start, 3)


out, tasks = {}, a.tasks.split(",")
start = now()
dls = make_data(a.n)
out["make_data_s"] = round(now() - start, 3)

if "first_batch" in tasks:
    start = now()
    x, y = next(iter(dls.train))
    out["first_batch_s"] = round(now() - start, 3)
if set(tasks) - {"first_batch", "features"}:
    if a.warmup: timed_fit(make_learner(make_data(a.warmup)))
    learn = make_learner(dls)
if "epoch" in tasks:
    trained, total = timed_fit(learn)
    out |= dict(train_s=round(trained, 3), epoch_s=round(total, 3), img_s=round(a.n / trained, 2), peak_mb=peak_mb(), worker_peak_mb=peak_mb(resource.RUSAGE_CHILDREN))
if "predict" in tasks:
    start = now()
    with quiet(learn): preds = learn.get_preds(dl=dls.test_dl(dls.train_ds.items[:a.predict]))
    out |= dict(predict_s=round(now() - start, 3), predict_n=len(preds[0]))
if "tta" in tasks:
    valid = dls.test_dl(cycled(list(dls.valid_ds.items), a.predict), with_labels=True)
    with quiet(learn):
        start = now()
        learn.get_preds(dl=valid)
        plain = now() - start
        start = now()
        learn.tta(dl=valid, n=a.views)
    out |= dict(plain_s=round(plain, 3), tta_s=round(now() - start, 3), views=a.views + 1)
if "frozen" in tasks:
    learn.freeze()
    out["frozen_s"] = round(timed_fit(learn)[1], 3)
if "fine_tune" in tasks: out |= dict(fine_tune_s=timed_fine_tune(learn), fine_tune_peak_mb=peak_mb())
if "save" in tasks:                                 # not the like of a checkpoint: weights and optimizer, no position, no history
    with tempfile.TemporaryDirectory() as folder:
        learn.model_dir, saves = Path(folder), []
        for _ in range(5):
            start = now()
            file = learn.save("halfway")
            saves.append(now() - start)
        out |= dict(save_s=round(statistics.median(saves), 3), save_mb=round(file.stat().st_size / 2**20, 1))
if "lr_find" in tasks:
    learn = make_learner(dls)
    with left_behind(a.folder, ".") as left, quiet(learn):
        start = now()
        learn.lr_find(num_it=a.steps, stop_div=False, show_plot=False)
        out |= dict(lr_find_s=round(now() - start, 3), lr_find_steps=len(learn.recorder.losses), lr_find_peak_mb=peak_mb())
    out["lr_find_left"] = left
    if "models" in left: (Path(a.folder) / "models").rmdir()  # so that the next run can say so again
if "features" in tasks:                             # fastai has none: its frozen epoch without augmentation, as what the kit's features stand for
    learn = make_learner(make_data(a.n, augment=False))
    learn.freeze()
    out["features_first_s"] = out["features_s"] = round(timed_fit(learn)[1], 3)
if "fine_tune_no_workers" in tasks: out["fine_tune_no_workers_s"] = timed_fine_tune(make_learner(make_data(a.n, num_workers=0)))
if "fine_tune_channels_last" in tasks:
    learn = make_learner(dls)
    learn.add_cb(ChannelsLast())
    out["fine_tune_channels_last_s"] = timed_fine_tune(learn)
emit(side="fastai", size=a.size, precision="fp32", arch=a.arch, bs=a.bs, n=a.n, **out, end_peak_mb=peak_mb(), import_s=round(import_s, 2),
     threads=torch.get_num_threads(), workers=dls.train.fake_l.num_workers, versions=versions("fastai", "fastcore"))
