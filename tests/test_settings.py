"""Settings of learners and of fits: checked where they are given, by their names."""
import math

import numpy as np
import pytest
import torch

from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from lessonkit.results.metrics import accuracy, error_rate, higher_is_better, lower_is_better


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("settings")/"flat", n=36)
    return ImageData.from_name_re(folder, r"^(.+)_\d+", size=24, bs=12, threads=2, check=None)


def learner(data, metrics=error_rate, **options):
    usual = dict(weights=None, precision="fp32", device="cpu", model_dir=data.path/"models",
                 show=False)
    return Learner(data, "timm:test_efficientnet", metrics, **usual | options)


WRONG = dict(
    weights=(True, False, 1, "Pretrained"), ps=(-.1, 1.5, "half", [.25, .5]),
    head=("lineal", 3, True, torch.nn.Linear(2, 3)),
    copies=(-1, 1.5, None, True, "2"), memory_limit=(0, -1, "3 GB", math.nan, True),
    train_bn=("yes", None, 1), optimizer=("adam", "SGD", 3, None), wd=(-1, "0.1", None, math.nan),
    mixup=(-1, "0.4", True), cutmix=(math.inf, None), smoothing=(1., "a little"),
    class_weights=("Balanced", [1, 2], 3.), precision=("fp8", "float32", torch.float16, []),
    device=("gpu", "cuda:99", 3.5), compile=(None, 1), seed=(-1, .5, "42", None, True),
    cache=("yes", None), show=("no", 1), metrics=("accuracy", 3, [None], {"a": accuracy}))


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_a_learner(data, name):
    for value in WRONG[name]:
        word = "metric" if name == "metrics" else name
        with pytest.raises(ValueError, match=f"^(a )?{word}") as caught:
            learner(data, **{name: value})
        assert "got" in str(caught.value) or "can't be used" in str(caught.value)


RATES = ("1e-3", 0, -1e-3, math.nan, math.inf, True, [1e-3] * 7, slice(None), {1e-3},
         [[1e-3]])
EPOCHS = (0, -1, 1.5, 2., "3", None, True, np.float32(2), [1])
FITS = [("fit", "lr"), ("fit_one_cycle", "lr_max"), ("fit_flat_cos", "lr"),
        ("fine_tune", "base_lr")]
OPTIONS = dict(patience=(0, 1.5, "2"), clip=(0, -1, "1", math.nan), accumulate=(0, None, 1.5),
               every=(-1, "60", None), keep_best=("acuracy", True, 3), mode=("lower", "max", 0),
               keep_start=("yes", None))


@pytest.mark.parametrize("method, rate", FITS)
def test_settings_of_a_fit(data, method, rate):
    learn = learner(data)
    before = {name: v.clone() for name, v in learn.model.state_dict().items()}
    fit = getattr(learn, method)
    for value in EPOCHS:
        with pytest.raises(ValueError, match="^epochs is a whole number above 0; got"): fit(value)
    for value in RATES:
        with pytest.raises(ValueError, match=f"^{rate}\\b"): fit(1, value)
    for name, values in OPTIONS.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}\\b"): fit(1, **{name: value})
    with pytest.raises(TypeError, match=f"'max_lr': here it is called '{rate}'"):
        fit(1, max_lr=1e-2)
    assert learn.history.fits == [] and learn.run is None
    assert all(torch.equal(v, before[name]) for name, v in learn.model.state_dict().items())


@pytest.mark.parametrize("method, wrong", [
    ("fit", dict(cycle_len=0)), ("fit", dict(cycle_len=1.5)),
    ("fit", dict(cycle_len=1, cycle_mult="2")),
    ("fit_one_cycle", dict(pct_start=0)), ("fit_one_cycle", dict(pct_start="0.3")),
    ("fit_one_cycle", dict(div=None)), ("fit_one_cycle", dict(div_final=.5)),
    ("fit_one_cycle", dict(moms=.9)), ("fit_one_cycle", dict(moms=(.9, "x"))),
    ("fit_flat_cos", dict(pct_start=1)), ("fit_flat_cos", dict(div_final="x")),
    ("fine_tune", dict(freeze_epochs=-1)), ("fine_tune", dict(freeze_epochs=1.)),
    ("fine_tune", dict(lr_mult=0)), ("fine_tune", dict(lr_mult="100")),
    ("fine_tune", dict(freeze_to=3)), ("fine_tune", dict(freeze_to="late body")),
    ("lr_find", dict(start_lr="1e-7")), ("lr_find", dict(start_lr=0)), ("lr_find", dict(end_lr=-1)),
    ("lr_find", dict(num_it=10.)), ("lr_find", dict(num_it="100"))])
def test_settings_of_one_kind_of_fit(data, method, wrong):
    learn = learner(data)
    args = () if method == "lr_find" else (1,)
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=name if name != "moms" else "mom"):
        getattr(learn, method)(*args, **wrong)
    assert learn.history.fits == []


def test_scalars_of_numpy_and_torch_are_numbers(data):
    plain, learn = learner(data), learner(data, seed=np.int64(42), wd=np.float64(.01))
    plain.fit_one_cycle(2, 1e-2, clip=1., accumulate=2, patience=5)
    learn.fit_one_cycle(np.int64(2), np.float64(1e-2), clip=np.float64(1), accumulate=np.int8(2),
                        patience=torch.tensor(5))
    assert learn.history.fits[0].losses == plain.history.fits[0].losses
    learn.fit(1, torch.tensor(1e-3), checkpoint="run")
    learn.load("run")


def test_checks_of_data(data):
    with pytest.raises(TypeError, match="takes its ImageData first; got 'resnet18'"):
        Learner("resnet18", data)
    with pytest.raises(TypeError, match="takes an ImageData"): learner(data).set_data(data.path)


# ---- the best epoch

def values(*numbers, name="glossiness"):
    left = list(numbers)
    def metric(preds): return left.pop(0)
    metric.__name__ = name
    return metric


@pytest.mark.parametrize("decorate, mode, best", [
    (lower_is_better, None, "epoch 1"), (higher_is_better, None, "epoch 2"),
    (lambda metric: metric, "min", "epoch 1"), (lambda metric: metric, "max", "epoch 2")])
@pytest.mark.parametrize("name", ["glossiness", "loss_of_time", "error"])
def test_the_best_epoch_is_what_the_metric_says(data, decorate, mode, best, name):
    learn = learner(data, decorate(values(.5, .1, .9, name=name)))
    learn.fit(3, 1e-3, keep_best=name, mode=mode)
    assert best in learn.history.fits[0].notes[-1]


def test_an_unknown_direction_is_asked_for_before_training(data):
    learn = learner(data, [error_rate, values(.5, .1, .9)])
    for options in (dict(keep_best="glossiness"), dict(keep_best="glossiness", patience=1)):
        with pytest.raises(ValueError, match="low values of 'glossiness' better, or high ones"):
            learn.fit(3, 1e-3, **options)
    assert learn.history.fits == []
    learn.fit(1, 1e-3, patience=1)   # which watches the loss


@pytest.mark.parametrize("metrics, text", [
    (lambda preds, targets: 0., "predictions alone"), ([lambda: 0.], "predictions alone"),
    (values(1., name="valid_loss"), "can't be called 'valid_loss'"),
    (values(1., name="time"), "can't be called 'time'"), (dict, "is a class")])
def test_metrics_are_checked_when_the_learner_is_made(data, metrics, text):
    with pytest.raises(ValueError, match=text): learner(data, metrics)


def test_metrics_that_were_exchanged_are_checked_before_training(data):
    learn = learner(data)
    learn.metrics = ["accuracy"]
    with pytest.raises(ValueError, match="function itself: accuracy"): learn.fit(1, 1e-3)
    learn.metrics = accuracy
    learn.fit(1, 1e-3)
    assert "accuracy" in learn.history.fits[0].rows[0]
    learn.metrics = [lambda preds: None]
    with pytest.raises(ValueError, match="'lambda' returned None"): learn.fit(1, 1e-3)
