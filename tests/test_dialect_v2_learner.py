"""The learner of fastai v2's dialect: schedules at known points, callbacks, losses, predictions."""
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lessonkit.core.testing import assert_close, assert_equal, assert_in, assert_raises
from lessonkit.data import sample
from lessonkit.dialects import fastai2 as v2
from lessonkit.dialects.registry import forget_remarks, NotSupported, settings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "40 tiny images of three classes; the class is in the name."
    return sample.tiny(tmp_path_factory.mktemp("v2")/"shapes", n=40)


@pytest.fixture(autouse=True)
def fresh():
    forget_remarks()
    yield
    settings.use()


def shape_of(name): return name.rpartition("_")[0]


def loaders(images, size=8, bs=8, label_func=shape_of, **options):
    return v2.ImageDataLoaders.from_name_func(
        images, v2.get_image_files(images), label_func=label_func, valid_pct=.2, seed=42,
        item_tfms=v2.Resize(size), bs=bs, **options)


def net(n_out=3, size=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, n_out))


def learner(images, n_out=3, bs=8, label_func=shape_of, **options):
    learn = v2.Learner(loaders(images, bs=bs, label_func=label_func), net(n_out), **options)
    learn.kit.show = False
    return learn


# Schedules

def test_one_cycle_has_the_golden_rates(images):
    learn = learner(images)
    learn.fit_one_cycle(25, 3e-3)   # 25 epochs of 4 batches
    at = [0, 10, 25, 50, 75, 99]
    lrs, moms = np.array(learn.recorder.lrs), np.array(learn.recorder.moms)
    assert_equal(len(lrs), 100)
    assert_close(lrs[at], [1.2e-4, .00111502, .003, .00225001, .000750023, 1.34574e-6], rtol=1e-4)
    assert_close(moms[at], [.95, .915451, .85, .875, .925, .949956], rtol=1e-5)


def test_lr_find_has_the_golden_rates_and_leaves_no_trace(images):
    learn = learner(images, bs=3)
    before = learn.model[1].weight.detach().clone()
    found = learn.lr_find(stop_div=False, show_plot=False)
    rates = np.array(learn.recorder.found.rates)
    assert_close(rates[[0, 10, 50, 99]], [1e-7, 6.3096e-7, 1e-3, 8.3176], rtol=1e-4)
    assert_equal(learn.model[1].weight.detach(), before)
    lr_min, lr_steep = found
    assert_equal([lr_min, lr_steep], [found.minimum, found.steep])
    assert_in(f"valley={found.valley}", repr(found))
    rules = v2.minimum, v2.steep, v2.valley, v2.slide
    chosen = learn.lr_find(show_plot=False, suggest_funcs=rules)
    assert_equal(len(list(chosen)), 4)


def test_sgdr_falls_to_zero_without_warm_up(images):
    learn = learner(images)
    learn.fit_sgdr(2, 1, lr_max=1e-2)   # 1 + 2 epochs of 4 batches
    lrs = learn.recorder.lrs
    assert_equal(len(lrs), 12)
    assert_close([lrs[0], lrs[2], lrs[4], lrs[8]], [1e-2, 5e-3, 1e-2, 5e-3])
    learn.fit_sgdr(2, 1, cycle_mult=1)   # v2 divided by zero here
    assert_close([learn.recorder.lrs[0], learn.recorder.lrs[4]], [1e-3, 1e-3])


def test_flat_cos_and_fit_take_the_learners_rate(images):
    learn = learner(images, lr=.02)
    learn.fit_flat_cos(1)
    assert_close(learn.recorder.lrs, [.02, .02, .02, .02])
    learn.fit_flat_cos(1, pct_start=.5)
    assert_close(learn.recorder.lrs[3], .01, rtol=1e-3)
    learn.fit(1)
    assert_equal(learn.recorder.lrs, [.02] * 4)


def test_rates_for_groups(images):
    def split(m): return [v2.params(part) for part in m]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    learn = v2.Learner(loaders(images), model, splitter=split)
    learn.kit.show = False
    for given, rates in ((slice(1e-6, 1e-4), [1e-6, 1e-5, 1e-4]), (slice(2e-3), [2e-4, 2e-4, 2e-3]),
                         (1e-3, [1e-3] * 3), ([1e-5, 1e-4, 1e-3], [1e-5, 1e-4, 1e-3])):
        learn.fit(1, given)
        assert_close(learn.opt.hypers.itemgot("lr"), rates)
    learn.freeze()
    assert_equal([p.requires_grad for p in model.parameters()], [False] * 4 + [True] * 2)
    learn.freeze_to(1)
    assert_equal([p.requires_grad for p in model.parameters()], [False] * 2 + [True] * 4)


def test_one_group_takes_a_slice_and_cannot_be_frozen(images):
    learn = learner(images)
    learn.freeze()
    learn.fit(1, slice(1e-5, 1e-3))   # v1 divided by zero here
    assert_close(learn.recorder.lrs[0], 1e-3)


def test_fine_tune_freezes_then_unfreezes(images):
    learn = v2.cnn_learner(loaders(images, 32), v2.resnet18, pretrained=False)
    learn.kit.show = False
    learn.fine_tune(1, 1e-2, freeze_epochs=2, lr_mult=10)
    frozen, whole = learn.kit.history.fits
    assert_equal([len(frozen.rows), len(whole.rows)], [2, 1])
    assert_close(max(r[-1] for r in frozen.lrs), 1e-2, rtol=.05)
    assert_close(whole.lrs[0], [1e-4, 1e-3 / 10**.5, 1e-3], rtol=1e-5)   # a fifth of the peaks
    learn.fine_tune(1, lr_max=4e-3)   # v2 raised a TypeError here
    assert_close(learn.kit.history.fits[-1].lrs[0][-1], 2e-3 / 5)


def test_older_words_for_the_rate(images):
    learn = learner(images)
    learn.fit_one_cycle(1, max_lr=1e-2)
    assert_close(learn.recorder.lrs[0], 1e-2 / 25)
    with pytest.warns(UserWarning, match="fit_one_cycle has no epoch="):
        learn.fit_one_cycle(1, epoch=3)
    with assert_raises(NotSupported, "resume"): learn.fit(1, start_epoch=1)


# Callbacks

def test_callbacks_that_watch_a_column(images):
    learn = learner(images, metrics=v2.accuracy)
    watched = [v2.SaveModelCallback(monitor="accuracy", fname="best"),
               v2.EarlyStoppingCallback(monitor="accuracy", min_delta=2., patience=2)]
    learn.fit(9, 1e-3, cbs=watched)
    assert_equal(len(learn.recorder.values), 3)   # no accuracy is better by 2
    best = max(row[2] for row in learn.recorder.values)
    assert_close(learn.validate()[1], best)
    assert (learn.path/"models/best.safetensors").is_file()
    with assert_raises(ValueError, "'f1_score' is no column"):
        learn.fit(1, cbs=v2.SaveModelCallback(monitor="f1_score"))


def test_a_reduced_rate_is_recorded(images):
    learn = learner(images)
    learn.fit(3, 1e-3, cbs=v2.ReduceLROnPlateau(min_delta=100., patience=1, factor=10))
    assert_close(learn.recorder.lrs[::4], [1e-3, 1e-3, 1e-4])


def test_csv_logger_and_options_of_the_engine(images):
    learn = learner(images, metrics=v2.accuracy, cbs=v2.CSVLogger())
    learn.fit(2, 1e-3, cbs=[v2.MixUp(.4), v2.GradientClip(.1), v2.TerminateOnNaNCallback()])
    table = learn.csv_logger.read_log()
    assert_equal(list(table.columns)[:4], ["epoch", "train_loss", "valid_loss", "accuracy"])
    assert_equal(len(table), 2)
    assert_equal(learn.kit.trainer.mix.mixup, 0)   # only for that fit
    learn.remove_cb(v2.CSVLogger)
    assert_equal(list(learn.cbs), [])


class Watcher(v2.Callback):
    "Notes what it sees."
    def __init__(self): self.seen = []
    def before_fit(self): self.seen.append(f"fit of {self.n_epoch}")
    def after_batch(self): self.seen.append(round(self.pct_train, 2))
    def after_epoch(self):
        self.seen.append(f"epoch {self.epoch}, {len(self.recorder.values)} rows")
        if self.epoch == 1: raise v2.CancelFitException


def test_your_own_callback(images):
    learn, watcher = learner(images), Watcher()
    learn.fit(3, 1e-3, cbs=watcher)
    assert_equal(watcher.seen, ["fit of 3", .08, .17, .25, .33, "epoch 0, 1 rows",
                                .42, .5, .58, .67, "epoch 1, 2 rows"])
    class Reaches(v2.Callback):
        def after_pred(self): pass
    with assert_raises(NotSupported, "Reaches.after_pred.*item_tfms"): learn.fit(1, cbs=Reaches())


# Losses and metrics

@pytest.mark.parametrize("loss", [
    v2.LabelSmoothingCrossEntropy(.2), v2.LabelSmoothingCrossEntropyFlat(eps=.2),
    v2.FocalLossFlat(gamma=1.), v2.CrossEntropyLossFlat(weight=torch.tensor([1., 2., 3.])),
    lambda inp, targ: nn.functional.cross_entropy(inp, targ)])
def test_the_validation_loss_is_your_loss(images, loss):
    learn = learner(images, loss_func=loss)
    learn.fit(1, 1e-3)
    probs, targets, losses = learn.get_preds(with_loss=True)
    per_image = [loss(p[None].log(), t[None]).item() for p, t in zip(probs, targets)]
    if getattr(loss, "func", None) and getattr(loss.func, "weight", None) is not None:
        per_image = [v * loss.func.weight[t] for v, t in zip(per_image, targets)]
    assert_close(losses, per_image, rtol=.02, atol=1e-3)
    assert_close(learn.recorder.values[-1][1], losses.mean(), rtol=1e-4)


def test_several_labels(images):
    block = v2.DataBlock(blocks=(v2.ImageBlock, v2.MultiCategoryBlock), item_tfms=v2.Resize(8),
                         get_items=v2.get_image_files, splitter=v2.RandomSplitter(seed=1),
                         get_y=lambda file: [shape_of(file.name), "image"])
    metrics = [partial(v2.accuracy_multi, thresh=.2), v2.F1ScoreMulti(thresh=.2)]
    learn = v2.Learner(block.dataloaders(images, bs=8), net(4), metrics=metrics)
    learn.kit.show = False
    learn.fit(1, 1e-3)
    assert_equal(list(learn.recorder.metric_names[3:5]), ["accuracy_multi", "f1_score"])
    probs, targets = learn.get_preds()
    expected = v2.accuracy_multi(probs, targets, thresh=.2, sigmoid=False)
    assert_close(learn.validate()[1], expected, rtol=1e-5)
    learn.metrics = partial(v2.accuracy_multi, thresh=.99)
    assert_close(learn.validate()[1], v2.accuracy_multi(probs, targets, .99, sigmoid=False))
    learn.loss_func = v2.BCEWithLogitsLossFlat(thresh=.01)
    names, which, _ = learn.predict(v2.get_image_files(images)[0])
    assert_equal([len(names), which.dtype], [int(which.sum()), torch.bool])


def test_optimizers(images):
    for opt_func in (v2.ranger, partial(v2.SGD, mom=.9), v2.RMSProp, v2.Lamb,
                     partial(v2.OptimWrapper, opt=torch.optim.Adam)):
        learn = learner(images, opt_func=opt_func)
        before = learn.model[1].weight.detach().clone()
        learn.fit(1, 1e-2)
        assert not torch.equal(learn.model[1].weight, before)
    learn = learner(images, opt_func=partial(v2.SGD, mom=.9), wd=.3)
    assert_equal(learn.kit.trainer.wd, .3)


# Predictions

def test_predictions_as_tuples(images):
    learn = learner(images, metrics=v2.accuracy)
    files = v2.get_image_files(images)
    x, y = learn.dls.one_batch()
    probs, targets = learn.get_preds(dl=[(x, y)])
    assert_close(probs, learn.model(x).softmax(1).detach(), atol=1e-5)
    assert_equal(targets.tolist(), y.tolist())
    train = learn.get_preds(ds_idx=0)
    assert_equal(train[1].tolist(), learn.dls.train.kit_loader.targets.tolist())
    raw = learn.get_preds(act=lambda z: z)[0]
    assert_close(raw.softmax(1), learn.get_preds()[0], atol=.02)
    same = [learn.predict(item)[1].item() for item in (
        files[0], str(files[0]), v2.PILImage.create(files[0]), files[0].read_bytes())]
    assert_equal(len(set(same)), 1)


def test_bool_labels_are_words(images):
    learn = learner(images, label_func=lambda name: name.startswith("circle"), n_out=2)
    assert_equal(list(learn.dls.vocab), [False, True])
    is_circle, number, probs = learn.predict(v2.get_image_files(images)[0])
    assert_equal([is_circle, probs.shape], [str(learn.dls.vocab[int(number)]), (2,)])


def test_tta(images):
    learn = v2.Learner(loaders(images, batch_tfms=v2.aug_transforms()), net())
    plain, targets = learn.get_preds()
    blend, same = learn.tta(n=2, beta=.5)
    views, again = learn.tta(n=2, beta=None)[0]
    assert_close(again, plain, atol=1e-5)
    assert_close(blend, (views + plain) / 2, atol=1e-5)
    assert_equal(same.tolist(), targets.tolist())
    largest, _ = learn.tta(n=2, use_max=True)
    assert_close(largest, torch.maximum(views, plain), atol=1e-5)


def test_other_data_for_the_same_learner(images):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learn = v2.Learner(loaders(images), nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Linear(4, 3)))
    learn.kit.show = False
    learn.dls = loaders(images, 16)
    learn.fit(1)
    assert_equal(learn.kit.data.size, 16)
    learn.dbunch = loaders(images, 12)
    assert_equal(learn.kit.data.size, 12)


def test_a_network_that_starts_at_random_sees_plain_pixels(images):
    learn = v2.cnn_learner(loaders(images, 32), v2.resnet18, pretrained=False)
    x, _ = learn.dls.one_batch()
    assert x.min() >= 0
    assert_close(learn.kit.model.normalize(x), x)
    assert_equal(learn.kit.model.frozen, 0)


# Files

def test_export_says_what_became_of_the_pickle(images, capsys, tmp_path):
    learn = v2.vision_learner(loaders(images, 32), v2.resnet18, pretrained=False, path=tmp_path)
    learn.export()
    assert_in("export.pkl was a pickle", capsys.readouterr().out)
    inf = v2.load_learner(tmp_path/"export.pkl")
    assert_equal(list(inf.dls.vocab), list(learn.dls.vocab))
    files = v2.get_image_files(images)[:3]
    probs, _ = inf.get_preds(dl=inf.dls.test_dl(files))
    assert_close(probs, learn.get_preds(dl=learn.dls.test_dl(files))[0], atol=1e-5)
    with assert_raises(NotSupported, "own network"): learner(images).export()


def test_old_interpretation(images, capsys):
    learn = learner(images)
    interp = v2.ClassificationInterpretation.from_learner(learn)
    matrix = interp.confusion_matrix()
    assert_equal(matrix.sum(), 8)
    assert_equal(sum(n for *_, n in interp.most_confused()), int(matrix.sum() - matrix.trace()))
    losses, idx, items = interp.top_losses(3, items=True)
    assert_equal([items[0], len(losses)], [learn.dls.valid.items[int(idx[0])], 3])
    p = learn.get_preds()[0][idx[0], interp.targs[idx[0]]]
    assert_close(losses[0], -p.log(), rtol=1e-4)
    fig = interp.top_losses_figure(idx, 3)
    assert_in(f" / {losses[0]:.2f} / {p:.2f}", fig.axes[0].get_title().replace("\n", " "))
    interp.print_classification_report()
    assert_in("precision", capsys.readouterr().out)


def test_names_that_are_not_supported_say_so():
    with assert_raises(NotSupported, "unet_learner.*segmentation"): v2.unet_learner(None, None)
    with assert_raises(NotSupported, "ActivationStats.*register_forward_hook"):
        v2.ActivationStats(with_hist=True)
    with assert_raises(ValueError, "got 'resnet18'.*vision_learner"):
        v2.Learner(SimpleNamespace(), v2.resnet18)
