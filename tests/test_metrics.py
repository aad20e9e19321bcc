"""Metrics agree with scikit-learn and NumPy, and refuse predictions that they don't fit."""
import functools
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from random_preds import random_preds, single_preds

from lessonkit.core.task import Task
from lessonkit.results.calibration import calibration_error, nll
from lessonkit.results.metrics import (
    accuracy, accuracy_multi, column_mode, compute_scores, default_metrics, error_rate, fbeta,
    is_correct, mae, metric_mode, metric_name, metric_names, mse, rmse,
)
from lessonkit.results.preds import Preds
from tiers import examples

quick = examples(60)


def close(value): return pytest.approx(value, rel=1e-9)


@quick
@given(n=st.integers(1, 60), c=st.integers(2, 8), seed=st.integers(0, 10_000),
       digits=st.sampled_from([None, 1]))
def test_accuracy_agrees_with_sklearn(n, c, seed, digits):
    from sklearn.metrics import accuracy_score
    p = random_preds(n, c, seed, digits=digits)
    y, predicted = p.targets.numpy(), p.probs.argmax(1).numpy()
    assert accuracy(p) == close(accuracy_score(y, predicted))
    assert error_rate(p) == pytest.approx(1 - accuracy(p), rel=1e-9, abs=1e-12)
    assert is_correct(p).tolist() == (y == predicted).tolist()


@quick
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_metric_weighs_images_not_batches(seed, sizes):
    p = random_preds(sum(sizes), 3, seed)
    start, total = 0, 0.
    for size in sizes:
        total += size*accuracy(p[start:start + size])
        start += size
    assert accuracy(p) == close(total/start)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "samples"])
def test_fbeta_of_several_labels_is_sklearns(average):
    from sklearn.metrics import fbeta_score
    p = random_preds(40, 4, 3, kind="multi")
    y, predicted = p.targets.bool().numpy(), (p.probs > .3).numpy()
    expected = fbeta_score(y, predicted, beta=2, average=average, zero_division=0)
    assert fbeta(p, average=average, thresh=.3) == close(expected)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_fbeta_of_one_label_is_sklearns(average):
    from sklearn.metrics import fbeta_score
    p = random_preds(40, 4, 3)
    expected = fbeta_score(p.targets, p.probs.argmax(1), beta=1, average=average)
    assert fbeta(p, beta=1, average=average) == close(expected)


def test_accuracy_of_several_labels():
    p = random_preds(30, 4, 1, kind="multi")
    same = (p.probs > .5).numpy() == p.targets.bool().numpy()
    assert accuracy_multi(p) == close(same.mean())


def test_metrics_of_numbers():
    p = random_preds(30, 2, 1, kind="number")
    diff = (p.probs - p.targets).numpy()
    assert mse(p) == close((diff**2).mean())
    assert rmse(p)**2 == close(mse(p))
    assert mae(p) == close(abs(diff).mean())


# A row of the training table

@pytest.mark.parametrize("kind", ["single", "multi", "number"])
def test_default_metrics_return_floats(kind):
    p = random_preds(kind=kind)
    for metric in default_metrics(p.task): assert isinstance(metric(p), float), metric


def test_names_of_metrics():
    class MyMetric:
        def __call__(self, preds): return 0

    assert metric_name(error_rate) == "error_rate"
    assert metric_name(MyMetric()) == "MyMetric"


@pytest.mark.parametrize("metrics", [
    [partial(fbeta, beta=1), partial(fbeta, beta=2)], [partial(fbeta, beta=1)] * 3,
    [lambda preds: 1., lambda preds: 2.], [accuracy, accuracy, accuracy]])
def test_each_metric_has_a_column_of_its_own(metrics):
    names = metric_names(metrics)
    assert len(set(names)) == len(metrics)
    p = random_preds()
    scores = compute_scores(p, metrics)
    assert list(scores) == ["valid_loss", *names]
    assert list(scores.values())[1:] == [float(metric(p)) for metric in metrics]


def test_numbered_names_leave_others_alone():
    def f_2(preds): return 0.
    def f(preds): return 0.
    assert metric_names([f_2, f, f, f]) == ["f_2", "f", "f_3", "f_4"]


def test_every_metric_of_the_kit_says_which_way_is_better():
    high = (accuracy, accuracy_multi, fbeta)
    low = (error_rate, mse, rmse, mae, nll, calibration_error)
    assert [metric_mode(m) for m in high] == ["max"] * 3
    assert [metric_mode(m) for m in low] == ["min"] * 6
    assert [column_mode(c, low) for c in ("nll", "rmse", "valid_loss")] == ["min"] * 3


def test_a_name_says_nothing_about_the_direction():
    def error(preds): return 0.
    def loss_of_time(preds): return 0.
    def accuracy(preds): return 0.   # not the kit's
    for metric in (error, loss_of_time, accuracy):
        with pytest.raises(ValueError, match="low values of .* or high ones"):
            column_mode(metric.__name__, [metric])


def test_wrapped_metrics_keep_their_direction():
    @functools.wraps(error_rate)
    def wrapped(preds): return error_rate(preds)
    assert metric_mode(wrapped) == "min"
    assert metric_mode(partial(partial(fbeta, beta=1), thresh=.3)) == "max"
    class Mine:
        lower_is_better = True
        def __call__(self, preds): return 0.
    assert metric_mode(Mine()) == "min"
    Mine.lower_is_better = "yes"
    with pytest.raises(ValueError, match="lower_is_better is True or False"): metric_mode(Mine())


def test_scores_are_plain_floats_in_the_order_of_the_metrics():
    p = random_preds()
    def twelve(preds): return torch.tensor(12)
    scores = compute_scores(p, [twelve, error_rate])
    assert list(scores) == ["valid_loss", "twelve", "error_rate"]
    assert list(scores.values()) == [p.losses.mean().item(), 12, error_rate(p)]
    assert {type(score) for score in scores.values()} == {float}
    with pytest.raises(ValueError, match="^compute_scores.*true labels"):
        compute_scores(random_preds(targets=False), [])


# Bad input

@pytest.mark.parametrize("metric", [accuracy, error_rate, is_correct])
def test_single_label_metrics_refuse_other_predictions(metric):
    with pytest.raises(ValueError, match=f"^{metric.__name__}.*true labels.*validation set"):
        metric(random_preds(targets=False))
    with pytest.raises(ValueError, match="'single'.*'multi'.*accuracy_multi"):
        metric(random_preds(kind="multi"))


@pytest.mark.parametrize("metric, kind", [(accuracy_multi, "multi"), (mse, "number"),
                                          (mae, "number"), (rmse, "number")])
def test_other_metrics_refuse_single_labels(metric, kind):
    with pytest.raises(ValueError, match=f"'{kind}'.*'single'.*error_rate"): metric(random_preds())


def test_targets_that_do_not_fit():
    p = random_preds()
    for y in (p.targets + 1, p.targets - 1):
        with pytest.raises(ValueError, match="between 0 and 2"):
            accuracy(single_preds(p.probs, y, p.classes))
    with pytest.raises(ValueError, match=r"\(20, 1\).*\(20,\)"):  # would broadcast to 20 by 20
        mse(Preds(p.probs[:, :1], p.probs[:, 0], None, (), Task("number", ("x",))))


def test_what_are_no_predictions():
    p = random_preds()
    with pytest.raises(ValueError, match="at least one"): accuracy(p[[]])
    with pytest.raises(TypeError, match="Preds.*ndarray"): accuracy(p.probs.numpy())


# Importing

def test_imports_are_light():
    heavy = ("matplotlib", "pandas", "sklearn", "scipy", "timm")
    code = ("import sys; from lessonkit.results import metrics, intervals, selections, scores; "
            f"print(*[m for m in {heavy} if m in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
