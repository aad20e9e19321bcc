"""Confusion matrices, reports and curves count what scikit-learn and plain loops count."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from random_preds import random_preds, single_preds

from lessonkit.results.scores import (
    classification_report, confusion_matrix, most_confused, precision_recall, roc,
)
from lessonkit.results.selections import class_index, incorrect_indices
from tiers import examples

quick = examples(60)
sizes = dict(n=st.integers(1, 60), c=st.integers(2, 8), seed=st.integers(0, 10_000),
             digits=st.sampled_from([None, 1]))


def close(value): return pytest.approx(value, rel=1e-9)


# Which class is taken for which

@quick
@given(**sizes)
def test_the_confusion_matrix_is_sklearns(n, c, seed, digits):
    from sklearn import metrics
    p = random_preds(n, c, seed, digits=digits)
    y, predicted = p.targets.numpy(), p.probs.argmax(1).numpy()
    counts = confusion_matrix(p)
    assert np.array_equal(counts, metrics.confusion_matrix(y, predicted, labels=range(c)))
    assert np.issubdtype(counts.dtype, np.integer)
    assert counts.sum() == n
    assert counts.trace() == n - len(incorrect_indices(p))
    assert np.array_equal(counts.sum(1), np.bincount(y, minlength=c))


@quick
@given(min_val=st.integers(1, 4), **sizes)
def test_most_confused_lists_the_cells_by_their_counts(n, c, seed, digits, min_val):
    p = random_preds(n, c, seed, digits=digits)
    found, counts = most_confused(p, min_val), confusion_matrix(p)
    cells = [(p.classes[a], p.classes[b], int(counts[a, b]))
             for a in range(c) for b in range(c) if a != b and counts[a, b] >= min_val]
    assert found == sorted(cells, key=lambda cell: -cell[2])  # row by row in ties
    for row in found: assert tuple(map(type, row)) == (str, str, int)


@quick
@given(**sizes)
def test_most_confused_counts_every_mistake(n, c, seed, digits):
    p = random_preds(n, c, seed, digits=digits)
    assert sum(k for *_, k in most_confused(p)) == len(incorrect_indices(p))


# Class by class

def share(counts, totals):
    "counts/totals, and 0 where there is nothing to count."
    return np.divide(counts, totals, out=np.zeros(len(totals)), where=totals > 0)


def yes_or_no(p, thresh):
    "What was true and what was predicted, (n,c) bool."
    if p.kind == "multi": return p.targets.numpy() > .5, p.probs.numpy() > thresh
    rows = np.eye(p.probs.shape[1], dtype=bool)
    return rows[p.targets.numpy()], rows[p.probs.argmax(1).numpy()]


@examples(25)
@given(kind=st.sampled_from(["single", "multi"]), thresh=st.sampled_from([.3, .5]),
       **sizes | dict(c=st.integers(1, 8)))
def test_the_report_counts(kind, thresh, n, c, seed, digits):
    p = random_preds(n, c, seed, digits=digits, kind=kind)
    table = classification_report(p, thresh=thresh)
    true, predicted = yes_or_no(p, thresh)
    hits, n_true, n_predicted = (true & predicted).sum(0), true.sum(0), predicted.sum(0)
    assert list(table) == ["precision", "recall", "f1", "n", "predicted"]
    assert tuple(table.index) == p.classes
    assert table.index.name == "class"
    assert np.array_equal(table.n, n_true)
    assert np.array_equal(table.predicted, n_predicted)
    assert np.allclose(table.precision, share(hits, n_predicted))
    assert np.allclose(table.recall, share(hits, n_true))
    assert np.allclose(table.f1, share(2*hits, n_true + n_predicted))


# Two classes

curves = dict(n=st.integers(2, 60), seed=st.integers(0, 10_000),
              digits=st.sampled_from([None, 1]),
              positive=st.sampled_from([None, "class00", "class01"]))


def binary_case(n, seed, digits, positive):
    "Predictions of both classes; the probabilities of the positive one, where it is, its name."
    p = random_preds(n, 2, seed, digits=digits)
    p.targets[:2] = torch.tensor([0, 1])
    i = 1 if positive is None else class_index(p, positive)
    return p, p.probs[:, i].numpy(), p.targets.numpy() == i, p.classes[i]


@quick
@given(**curves)
def test_curves_run_from_no_image_to_all(n, seed, digits, positive):
    p, _, _, name = binary_case(n, seed, digits, positive)
    for curve in (roc(p, positive), precision_recall(p, positive)):
        assert curve.positive == name
        assert len(curve.x) == len(curve.y) == len(curve.thresholds)
        assert curve.thresholds[0] == math.inf
        assert (np.diff(curve.thresholds) < 0).all()
        assert (np.diff(curve.x) >= 0).all()
        assert (curve.x[0], curve.x[-1]) == (0, 1)
        assert type(curve.area) is float


@quick
@given(**curves)
def test_curves_count_what_lies_above_a_threshold(n, seed, digits, positive):
    p, score, y, _ = binary_case(n, seed, digits, positive)
    roc_curve, pr_curve = roc(p, positive), precision_recall(p, positive)
    for curve in (roc_curve, pr_curve):
        for a, b, threshold in zip(curve.x, curve.y, curve.thresholds):
            found = score >= threshold
            recall, false_alarms = found[y].mean(), found[~y].mean()
            precision = y[found].mean() if found.any() else 1
            expected = (false_alarms, recall) if curve is roc_curve else (recall, precision)
            assert np.allclose((a, b), expected)
    assert pr_curve.y[-1] == close(y.mean())


@quick
@given(**curves)
def test_areas(n, seed, digits, positive):
    p, score, y, name = binary_case(n, seed, digits, positive)
    roc_curve, pr_curve = roc(p, positive), precision_recall(p, positive)
    pairs = np.sign(score[y][:, None] - score[~y][None])
    assert roc_curve.area == close((pairs.mean() + 1)/2)  # ties count half
    assert pr_curve.area == close((np.diff(pr_curve.x)*pr_curve.y[1:]).sum())
    assert (roc_curve.kind, pr_curve.kind) == ("roc", "precision_recall")
    points = len(roc_curve.x)
    assert repr(roc_curve) == f"roc of '{name}': area {roc_curve.area:.3f}, {points} points"


@pytest.mark.parametrize("curve", [roc, precision_recall])
def test_curves_need_both_of_two_classes(curve):
    with pytest.raises(ValueError, match=f"{curve.__name__} is for two classes.*3"):
        curve(random_preds(c=3))
    p = random_preds(c=2)
    with pytest.raises(ValueError, match="no class 'pug'"): curve(p, "pug")
    with pytest.raises(ValueError, match="all 20 images are of 'class01'"):
        curve(single_preds(p.probs, torch.ones(20, dtype=torch.long), p.classes))
    p.probs[3:5] = math.nan
    with pytest.raises(ValueError, match="2 of 20 probabilities are not numbers"): curve(p)


# Bad input

@pytest.mark.parametrize("function", [confusion_matrix, most_confused, roc, precision_recall])
def test_no_labels_or_another_kind(function):
    with pytest.raises(ValueError, match=f"^{function.__name__}.*true labels.*validation set"):
        function(random_preds(targets=False))
    with pytest.raises(ValueError, match="'single'.*'multi'.*accuracy_multi"):
        function(random_preds(kind="multi"))


def test_a_pair_is_confused_at_least_once():
    with pytest.raises(ValueError, match="min_val"): most_confused(random_preds(), 0)
