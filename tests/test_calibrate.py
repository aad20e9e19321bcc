"""Calibration: planted temperatures are found, answers never change, and promises hold."""
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from lessonkit.core.task import Task
from lessonkit.results.calibration import (
    TEMPERATURES, accepted_indices, apply_temperature, calibrate, calibration_error,
    chance_calibration_error, decide_or_abstain, fit_temperature, fold_temperature, nll,
    reliability, risk_coverage, temperature_interval, threshold_for,
)
from lessonkit.results.intervals import wilson_interval
from lessonkit.results.metrics import error_rate
from lessonkit.results.preds import Preds
from tiers import examples


def made(n=2000, c=4, sharpen=1., seed=0, spread=2., digits=None):
    "Labels drawn from probabilities, which are then sharpened; `digits` rounds them, for ties."
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, c, generator=g, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    probs = (sharpen * logits).softmax(1).float()
    if digits is not None: probs = probs.mul(10**digits).round() / 10**digits
    losses = -probs.clamp_min(1e-38).log().gather(1, y[:, None])[:, 0]
    return Preds(probs, y, losses, (), Task("single", tuple(f"class{i}" for i in range(c))))


def few(probs, y=None):
    task = Task("single", tuple("abcde"[:len(probs[0])]))
    return Preds(torch.tensor(probs), None if y is None else torch.tensor(y), None, (), task)


def of_labels(p): return p.probs.gather(1, p.targets[:, None])[:, 0]


sizes = dict(n=st.integers(1, 60), c=st.integers(2, 6), seed=st.integers(0, 10_000),
             digits=st.sampled_from([None, 1]))
quick = examples(60)


# --- how far probabilities can be trusted

def ece_by_definition(p, bins):
    "Straight from the paper, with bins (b/bins, (b+1)/bins]."
    sure, pred = p.probs.max(1)
    correct, ece = (pred == p.targets).double(), 0.
    for b in range(bins):
        low, high = (torch.tensor(x / bins, dtype=sure.dtype) for x in (b, b + 1))
        here = (sure > low) & (sure <= high) if b < bins - 1 else sure > low
        if not here.any(): continue
        gap = correct[here].mean() - sure[here].double().mean()
        ece += here.double().mean().item() * abs(gap).item()
    return ece


@quick
@given(**sizes, bins=st.integers(1, 40))
def test_ece_is_the_formula_in_any_order(n, c, seed, digits, bins):
    p = made(n, c, 1.5, seed, digits=digits)
    got = calibration_error(p, bins)
    assert 0 <= got <= 1
    assert math.isclose(got, ece_by_definition(p, bins), abs_tol=1e-6)
    assert math.isclose(calibration_error(p[torch.randperm(n)], bins), got, abs_tol=1e-9)


@quick
@given(**sizes, bins=st.integers(1, 40))
def test_reliability_counts_every_image_once(n, c, seed, digits, bins):
    p = made(n, c, 1, seed, digits=digits)
    t = reliability(p, bins)
    assert list(t.columns) == ["confidence", "accuracy", "n", "low", "high"]
    assert t.index.is_monotonic_increasing
    assert t.index.is_unique
    assert t.n.sum() == n
    assert (t.n > 0).all()
    assert math.isclose((t.n * t.accuracy).sum() / n, 1 - error_rate(p))
    assert (t.confidence >= t.index / bins - 1e-6).all()
    assert (t.confidence <= (t.index + 1) / bins + 1e-6).all()
    for row in t.itertuples():
        one = wilson_interval(round(row.accuracy * row.n), row.n)
        assert np.allclose([one.low, one.high], [row.low, row.high], atol=1e-9)


def test_a_border_belongs_to_the_bin_below():
    p = few([[.5, .5], [.51, .49], [1., 0.]], [0, 0, 0])
    assert reliability(p, 10).index.tolist() == [4, 5, 9]


def test_the_calibrated_stay_within_chance():
    "Of 50 calibrated models about 95% should stay below the value that 95% stay below."
    below = 0
    for seed in range(50):
        p = made(300, seed=seed)
        below += calibration_error(p) <= chance_calibration_error(p, times=100)[1]
    assert 42 <= below
    overconfident = made(300, sharpen=3)
    assert calibration_error(overconfident) > chance_calibration_error(overconfident)[1]


def test_chance_predicts_the_mean_error_of_the_calibrated():
    mean, high = chance_calibration_error(made(300))
    assert 0 < mean < high
    errors = [calibration_error(made(300, seed=s)) for s in range(50)]
    assert mean == pytest.approx(np.mean(errors), rel=.15)


def test_few_images_and_many_bins_make_ece_large():
    assert calibration_error(made(4000)) < calibration_error(made(4000), 100)
    small, large = chance_calibration_error(made(100))[0], chance_calibration_error(made(4000))[0]
    assert small > 3 * large


# --- temperature

@pytest.mark.parametrize("planted", [.5, 1, 2.5, 6])
def test_the_planted_temperature_is_found(planted):
    p = made(sharpen=planted)
    found = fit_temperature(p)
    low, high = temperature_interval(p, found)
    sigma = math.log(high / low) / (2 * 1.96)
    assert abs(math.log(found / planted)) < 3.5 * sigma
    assert sigma < .05
    if planted == 1: return
    corrected = apply_temperature(p, found)
    assert calibration_error(corrected) < calibration_error(p) / 2
    assert nll(corrected) < nll(p)


def test_no_other_temperature_has_a_smaller_loss():
    p = made(300, sharpen=3, seed=4)
    smallest = nll(apply_temperature(p, fit_temperature(p)))
    for t in np.geomspace(.02, 50, 200): assert smallest <= nll(apply_temperature(p, t)) + 1e-9


def test_the_interval_holds_the_truth_about_19_times_out_of_20():
    holds = 0
    for seed in range(100):
        p = made(400, sharpen=2, seed=seed)
        low, high = temperature_interval(p, fit_temperature(p))
        holds += low < 2 < high
    assert 88 <= holds <= 99


@quick
@given(**sizes, t=st.floats(.05, 40))
def test_no_class_overtakes_another(n, c, seed, digits, t):
    p = made(n, c, 1, seed, digits=digits)
    q = apply_temperature(p, t)
    assert torch.allclose(q.probs.sum(1), torch.ones(n), atol=1e-5)
    assert q.targets is p.targets
    assert q.task == p.task
    best = q.probs.gather(1, p.pred[:, None])[:, 0]
    assert (best == q.probs.max(1).values).all()
    order = p.probs.sort(dim=1).indices
    assert (q.probs.gather(1, order).diff(dim=1) >= -1e-7).all()
    assert torch.allclose((-q.losses).exp(), of_labels(q), atol=1e-5)


@quick
@given(seed=st.integers(0, 10_000), s=st.floats(.5, 4), t=st.floats(.5, 4))
def test_two_temperatures_multiply_and_the_inverse_undoes(seed, s, t):
    p = made(30, 3, 1, seed, spread=1)
    once = apply_temperature(p, s)
    product = apply_temperature(p, s*t)
    assert torch.allclose(apply_temperature(once, t).probs, product.probs, atol=1e-5)
    assert torch.allclose(apply_temperature(once, 1/s).probs, p.probs, atol=1e-5)


def test_a_temperature_divides_the_logits():
    z = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = Preds(z.softmax(1).float(), None, None, (), Task("single", tuple("abcd")))
    q = apply_temperature(p, 1.7)
    assert torch.allclose(q.probs, (z / 1.7).softmax(1).float(), atol=1e-6)
    assert q.losses is None
    assert q.probs.dtype == torch.float32


def test_a_probability_of_zero_has_a_finite_loss():
    p = few([[1., 0., 0.]] * 10, [0] * 9 + [1])  # ten times certain, once wrong
    largest = -math.log(torch.finfo(torch.float32).tiny)
    assert nll(p) == pytest.approx(largest / 10, rel=1e-5)
    q = apply_temperature(p, fit_temperature(p))
    assert torch.allclose(q.probs, torch.tensor([.9, .05, .05]), atol=1e-4)  # as the labels are
    assert nll(q) == pytest.approx(-.9 * math.log(.9) - .1 * math.log(.05), rel=1e-6)


@pytest.mark.parametrize("p, message, temperature", [
    (few([[.7, .3]], [0]), "all 1 answers are right", 1),
    (few([[.7, .3]], [1]), "no better than saying nothing.*1000", 1000),
    (few([[1.], [1.]], [0, 0]), "all 2 answers are right", 1),  # one class only
    (made(sharpen=.01), "lower bound, 0.02", .02)])
def test_a_warning_where_there_is_no_best_temperature(p, message, temperature):
    with pytest.warns(UserWarning, match=message): assert fit_temperature(p) == temperature


def test_the_interval_is_the_whole_range_where_images_cannot_tell():
    for p in (few([[1., 0], [0, 1]], [0, 1]), few([[.5, .5]], [1])):
        assert temperature_interval(p, 1) == TEMPERATURES


NEED_LABELS = [reliability, calibration_error, nll, fit_temperature, calibrate, risk_coverage,
               lambda p: threshold_for(p, .1), lambda p: temperature_interval(p, 1)]
NEED_PROBABILITIES = [reliability, chance_calibration_error, fit_temperature, calibrate,
                      risk_coverage, lambda p: apply_temperature(p, 2),
                      lambda p: decide_or_abstain(p, .5)]


@pytest.mark.parametrize("f", NEED_LABELS)
def test_errors_without_labels(f):
    unlabeled = replace(made(20), targets=None, losses=None)
    with pytest.raises(ValueError, match="true labels"): f(unlabeled)


@pytest.mark.parametrize("f", NEED_PROBABILITIES)
def test_errors_for_what_are_no_probabilities_of_classes(f):
    p = made(20)
    several = Preds(p.probs, torch.zeros(20, 4), None, (), Task("multi", p.classes))
    numbers = Preds(p.probs, torch.zeros(20, 4), None, (), Task("number"))
    nan = replace(p, probs=torch.where(torch.arange(20)[:, None] == 3, math.nan, p.probs))
    for other in (several, numbers):
        with pytest.raises(ValueError, match="'single'"): f(other)
    with pytest.raises(ValueError, match="1 of 20.*position 3.*nan"): f(nan)
    with pytest.raises(ValueError, match="at least one prediction"): f(p[:0])
    with pytest.raises(TypeError, match="takes Preds"): f(p.probs)


def test_logits_are_not_taken_for_probabilities():
    p = made(20)
    with pytest.raises(ValueError, match="are these logits"):
        calibration_error(replace(p, probs=p.probs * 30 - 5))


# --- cross-fitting

def test_calibrate_fits_on_all_images():
    p = made(sharpen=2.5)
    c = calibrate(p)
    assert c.temperature == fit_temperature(p)
    assert (c.low, c.high) == temperature_interval(p, c.temperature)
    assert c.low < 2.5 < c.high


def test_calibrate_before_and_after():
    p = made(sharpen=2.5)
    c = calibrate(p)
    assert c.ece_before == calibration_error(p)
    assert c.ece_after == calibration_error(c.preds)
    assert c.ece_after < c.ece_before / 3
    assert c.nll_before == nll(p)
    assert c.nll_after == nll(c.preds)
    assert nll(apply_temperature(p, c.temperature)) < c.nll_after < c.nll_before
    assert torch.equal(c.preds.pred, p.pred)
    assert c.preds.losses.mean().item() == pytest.approx(c.nll_after, rel=1e-5)
    assert "overconfident" in repr(c)
    assert f"{c.ece_before:.3f} -> {c.ece_after:.3f}" in repr(c)
    assert calibrate(p, bins=5).ece_before == calibration_error(p, 5)


@pytest.mark.parametrize("folds", [2, 5, 40])
def test_no_image_influences_its_own_temperature(folds):
    p = made(40, sharpen=2, seed=3, spread=1)
    y = p.targets.clone()
    y[7] = (y[7] + 1) % 4
    before, after = (calibrate(q, folds=folds).preds.probs for q in (p, replace(p, targets=y)))
    changed = (before != after).any(1)
    assert not changed[7]
    assert changed.sum() >= 40 - math.ceil(40 / folds) - 2  # two may be rounded to the same


def test_fewer_images_than_folds():
    four = few([[.7, .3], [.6, .4], [.2, .8], [.9, .1]], [1, 1, 1, 0])
    assert len(calibrate(four).preds) == 4
    with pytest.raises(ValueError, match="at least 2"): calibrate(few([[.9, .1]], [0]))


def test_calibrate_warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        c = calibrate(few([[.9, .1]] * 6, [0] * 6))
    assert len(caught) == 1
    assert c.temperature == 1
    assert (c.low, c.high) == TEMPERATURES
    assert c.ece_before == pytest.approx(c.ece_after)


# --- into the model

@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_temperature_is_the_applied_one(bias):
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(),
                         nn.Linear(6, 3, bias=bias)).eval()
    x, weight, first = 5 * torch.randn(20, 8), head[-1].weight, head[2].weight.clone()
    def predict():
        with torch.no_grad(): probs = head(x).softmax(1)
        return Preds(probs, None, None, (), Task("single", tuple("abc")))
    before = predict()
    assert fold_temperature(head, 2.) is None
    assert torch.allclose(predict().probs, apply_temperature(before, 2).probs, atol=1e-6)
    assert not torch.allclose(predict().probs, before.probs, atol=1e-3)
    fold_temperature(head, 1.5)
    assert torch.allclose(predict().probs, apply_temperature(before, 3).probs, atol=1e-6)
    assert head[-1].weight is weight  # an optimizer still holds it
    assert weight.requires_grad
    assert weight.is_leaf
    assert torch.equal(head[2].weight, first)


@pytest.mark.parametrize("head", [nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), nn.Sequential(),
                                  nn.ReLU()])
def test_a_temperature_is_folded_into_linear_layers_only(head):
    with pytest.raises(TypeError, match="linear layer"): fold_temperature(head, 2)


def test_an_impossible_temperature_changes_nothing():
    head = nn.Sequential(nn.Linear(2, 2))
    weight = head[0].weight.clone()
    for t in (0, -1., math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"): fold_temperature(head, t)
    assert torch.equal(head[0].weight, weight)


# --- don't know

@quick
@given(**sizes)
def test_risk_coverage_against_the_definition(n, c, seed, digits):
    p = made(n, c, 1, seed, digits=digits)
    t = risk_coverage(p)
    assert list(t.columns) == ["threshold", "coverage", "error", "n", "low", "high"]
    assert t.coverage.is_monotonic_increasing
    assert t.coverage.is_unique
    assert t.threshold.is_monotonic_decreasing
    assert t.threshold.is_unique
    assert t.coverage.iloc[-1] == 1
    assert math.isclose(t.error.iloc[-1], error_rate(p))
    sure, wrong = p.probs.max(1).values, p.pred != p.targets
    for row in t.itertuples():
        accepted = sure >= row.threshold
        one = wilson_interval(int(wrong[accepted].sum()), int(accepted.sum()))
        assert row.n == one.n
        assert math.isclose(row.coverage, one.n / n)
        assert math.isclose(row.error, one.value)
        assert np.allclose([row.low, row.high], [one.low, one.high], atol=1e-9)


@quick
@given(**sizes, error=st.floats(0, 1), cautious=st.booleans())
def test_a_threshold_keeps_its_promise_on_its_own_images(n, c, seed, digits, error, cautious):
    p = made(n, c, 1, seed, digits=digits)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t = threshold_for(p, error, cautious)
    accepted, table = accepted_indices(p, t), risk_coverage(p)
    judged = table.high if cautious else table.error
    if t == math.inf:
        assert len(accepted) == 0
        assert (judged > error).all()
        assert len(caught) == 1
        assert "nothing is accepted" in str(caught[0].message)
        return
    w = wilson_interval(int((p.pred != p.targets)[accepted].sum()), len(accepted))
    assert not caught
    assert len(accepted) >= 1
    assert (w.high if cautious else w.value) <= error + 1e-12
    assert (judged[table.n > len(accepted)] > error).all()  # and no milder one does


def test_caution_keeps_a_promise_that_optimism_breaks():
    new, broken = risk_coverage(made(20_000, spread=3, seed=99_999)), {}
    for cautious in (False, True):
        chosen = [threshold_for(made(500, spread=3, seed=s), .1, cautious) for s in range(60)]
        broken[cautious] = sum(new.error[new.threshold >= t].iloc[-1] > .1 for t in chosen)
    assert broken[True] <= 4
    assert broken[False] >= 18


@quick
@given(**sizes, threshold=st.floats(0, 1.2))
def test_exactly_the_accepted_images_are_answered(n, c, seed, digits, threshold):
    p = replace(made(n, c, 1, seed, digits=digits), targets=None, losses=None)
    accepted, answers = accepted_indices(p, threshold), decide_or_abstain(p, threshold)
    assert len(answers) == n
    assert accepted.dtype == torch.int64
    assert [i for i, label in enumerate(answers) if label is not None] == accepted.tolist()
    for label, k in zip(answers, p.pred.tolist()): assert label in (None, p.classes[k])
    assert accepted.tolist() == [i for i in range(n) if p.probs[i].max() >= threshold]


def test_a_threshold_of_two_digits_is_exact():
    assert decide_or_abstain(few([[.8, .2], [.79, .21]]), .8) == ["a", None]


@quick
@given(n=st.integers(1, 60), seed=st.integers(0, 1000), t=st.floats(.7, 3))
def test_for_two_classes_no_temperature_changes_the_curve(n, seed, t):
    p = made(n, 2, 1, seed, spread=1)
    before, after = risk_coverage(p), risk_coverage(apply_temperature(p, t))
    both = set(before.n) & set(after.n)  # rounding can join two that were almost equal
    assert len(both) >= .9 * len(before)
    def points(table): return table[table.n.isin(both)][["n", "error"]].values.tolist()
    assert points(before) == points(after)


def test_thresholds_are_shares_and_never_nan():
    for error in (-.1, 5, math.nan):
        with pytest.raises(ValueError, match=f"not {error}"): threshold_for(made(20), error)
    with pytest.raises(ValueError, match="not nan"): accepted_indices(made(20), math.nan)
