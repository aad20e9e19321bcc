"""Properties of lessonkit.calibrate: planted temperatures are found, answers never change, and what is promised holds."""
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lessonkit.results import calibration as C
from lessonkit.results.intervals import wilson_interval
from lessonkit.results.metrics import error_rate
from lessonkit.results.preds import Preds


def made(n=2000, c=4, sharpen=1., seed=0, spread=2., digits=None):
    "Labels drawn from the probabilities, which are then sharpened by a known factor; `digits` rounds them, so that there are ties."
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, c, generator=g, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    probs = (sharpen * logits).softmax(1).float()
    if digits is not None: probs = probs.mul(10**digits).round() / 10**digits
    losses = -probs.clamp_min(1e-38).log().gather(1, y[:, None])[:, 0]
    return Preds(probs, y, losses, (), Task("single", tuple(f"class{i}" for i in range(c))))


def few(probs, y=None): return Preds(torch.tensor(probs), None if y is None else torch.tensor(y), None, (), Task("single", tuple("abcde"[:len(probs[0])])))


sizes = dict(n=st.integers(1, 60), c=st.integers(2, 6), seed=st.integers(0, 10_000), digits=st.sampled_from([None, 1]))
quick = settings(max_examples=60, deadline=None)


# --- how far probabilities keep their word

@quick
@given(**sizes, bins=st.integers(1, 40))
def test_ece_is_the_formula_and_knows_no_order(n, c, seed, digits, bins):
    p = made(n, c, 1.5, seed, digits=digits)
    sure, pred = p.probs.max(1)
    ece = 0.
    for b in range(bins):   # straight from the paper: ((b)/bins, (b+1)/bins]
        low, high = (torch.tensor(x / bins, dtype=sure.dtype) for x in (b, b + 1))
        here = (sure > low) & (sure <= high) if b < bins - 1 else sure > low
        if here.any(): ece += here.double().mean().item() * abs((pred == p.targets)[here].double().mean() - sure[here].double().mean()).item()
    got = C.calibration_error(p, bins)
    assert 0 <= got <= 1 and math.isclose(got, ece, abs_tol=1e-6)
    assert math.isclose(C.calibration_error(p[torch.randperm(n)], bins), got, abs_tol=1e-9)


@quick
@given(**sizes, bins=st.integers(1, 40))
def test_reliability_counts_every_picture_once(n, c, seed, digits, bins):
    p = made(n, c, 1, seed, digits=digits)
    t = C.reliability(p, bins)
    assert list(t.columns) == ["confidence", "accuracy", "n", "low", "high"] and t.index.is_monotonic_increasing and t.index.is_unique
    assert t.n.sum() == n and (t.n > 0).all() and math.isclose((t.n * t.accuracy).sum() / n, 1 - error_rate(p))
    assert (t.confidence >= t.index / bins - 1e-6).all() and (t.confidence <= (t.index + 1) / bins + 1e-6).all()
    for row in t.itertuples():
        one = wilson_interval(round(row.accuracy * row.n), row.n)
        assert np.allclose([one.low, one.high], [row.low, row.high], atol=1e-9)


def test_a_border_belongs_to_the_bin_below():
    assert C.reliability(few([[.5, .5], [.51, .49], [1., 0.]], [0, 0, 0]), 10).index.tolist() == [4, 5, 9]


def test_ece_of_the_honest_is_what_chance_gives():
    "And where chance is asked 50 times, its 95% are kept about so often."
    below = sum(C.calibration_error(p) <= C.chance_calibration_error(p, times=100)[1] for p in (made(300, seed=s) for s in range(50)))
    assert 42 <= below
    boastful = made(300, sharpen=3)
    assert C.calibration_error(boastful) > C.chance_calibration_error(boastful)[1]
    mean, high = C.chance_calibration_error(made(300))
    assert 0 < mean < high and mean == pytest.approx(np.mean([C.calibration_error(made(300, seed=s)) for s in range(50)]), rel=.15)


def test_few_pictures_and_many_bins_make_ece_large():
    assert C.calibration_error(made(4000)) < C.calibration_error(made(4000), 100) and C.chance_calibration_error(made(100))[0] > 3 * C.chance_calibration_error(made(4000))[0]


# --- temperature

@pytest.mark.parametrize("planted", [.5, 1, 2.5, 6])
def test_the_planted_temperature_is_found(planted):
    p = made(sharpen=planted)
    found = C.fit_temperature(p)
    low, high = C.temperature_interval(p, found)
    sigma = math.log(high / low) / (2 * 1.96)
    assert abs(math.log(found / planted)) < 3.5 * sigma and sigma < .05
    if planted != 1: assert C.calibration_error(C.scaled(p, found)) < C.calibration_error(p) / 2 and C.nll(C.scaled(p, found)) < C.nll(p)


def test_no_other_temperature_has_a_smaller_loss():
    p = made(300, sharpen=3, seed=4)
    found = C.fit_temperature(p)
    assert all(C.nll(C.scaled(p, found)) <= C.nll(C.scaled(p, t)) + 1e-9 for t in np.geomspace(.02, 50, 200))


def test_the_interval_holds_the_truth_about_19_times_of_20():
    holds = [low < 2 < high for p in (made(400, sharpen=2, seed=s) for s in range(100)) for low, high in [C.temperature_interval(p, C.fit_temperature(p))]]
    assert 88 <= sum(holds) <= 99


@quick
@given(**sizes, t=st.floats(.05, 40))
def test_no_class_overtakes_another(n, c, seed, digits, t):
    p = made(n, c, 1, seed, digits=digits)
    q = C.scaled(p, t)
    assert torch.allclose(q.probs.sum(1), torch.ones(n), atol=1e-5) and q.targets is p.targets and q.classes == p.classes
    best = q.probs.gather(1, p.pred[:, None])[:, 0]
    assert (best == q.probs.max(1).values).all()
    order = p.probs.sort(dim=1).indices
    assert (q.probs.gather(1, order).diff(dim=1) >= -1e-7).all()
    assert torch.allclose((-q.losses).exp(), q.probs.gather(1, p.targets[:, None])[:, 0], atol=1e-5)


@quick
@given(seed=st.integers(0, 10_000), s=st.floats(.5, 4), t=st.floats(.5, 4))
def test_two_temperatures_multiply_and_the_inverse_undoes(seed, s, t):
    p = made(30, 3, 1, seed, spread=1)
    assert torch.allclose(C.scaled(C.scaled(p, s), t).probs, C.scaled(p, s*t).probs, atol=1e-5)
    assert torch.allclose(C.scaled(C.scaled(p, s), 1/s).probs, p.probs, atol=1e-5)


def test_scaled_is_the_softmax_of_the_divided_logits():
    z = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = Preds(z.softmax(1).float(), None, None, (), Task("single", tuple("abcd")))
    assert torch.allclose(C.scaled(p, 1.7).probs, (z / 1.7).softmax(1).float(), atol=1e-6) and C.scaled(p, 1.7).losses is None
    assert C.scaled(p, 1.7).probs.dtype == torch.float32


def test_probability_zero_is_a_number():
    p = few([[1., 0., 0.]] * 10, [0] * 9 + [1])   # ten times certain, once wrong
    assert C.nll(p) == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / 10, rel=1e-5)
    q = C.scaled(p, C.fit_temperature(p))
    assert torch.allclose(q.probs, torch.tensor([.9, .05, .05]), atol=1e-4)   # what the labels say
    assert C.nll(q) == pytest.approx(-.9 * math.log(.9) - .1 * math.log(.05), rel=1e-6)


def test_words_where_there_is_no_best_temperature():
    with pytest.warns(UserWarning, match="all 1 answers are right"): assert C.fit_temperature(few([[.7, .3]], [0])) == 1
    with pytest.warns(UserWarning, match="no better than saying nothing.*1000"): assert C.fit_temperature(few([[.7, .3]], [1])) == 1000
    with pytest.warns(UserWarning, match="all 2 answers are right"): assert C.fit_temperature(few([[1.], [1.]], [0, 0])) == 1   # one class only
    with pytest.warns(UserWarning, match="lower bound, 0.02"): assert C.fit_temperature(made(sharpen=.01)) == .02
    for p in (few([[1., 0], [0, 1]], [0, 1]), few([[.5, .5]], [1])): assert C.temperature_interval(p, 1) == C.TEMPERATURES


def test_errors_say_what_to_do():
    p = made(20)
    multi = Preds(p.probs, torch.zeros(20, 4), None, (), Task("multi", p.classes))
    number = Preds(p.probs, torch.zeros(20, 4), None, (), Task("number"))
    nan = replace(p, probs=torch.where(torch.arange(20)[:, None] == 3, math.nan, p.probs))
    for f in (C.reliability, C.calibration_error, C.nll, C.fit_temperature, C.calibrate, C.risk_coverage, lambda p: C.threshold_for(p, .1), lambda p: C.temperature_interval(p, 1)):
        with pytest.raises(ValueError, match="true labels"): f(replace(p, targets=None, losses=None))
    for f in (C.reliability, C.chance_calibration_error, C.fit_temperature, C.calibrate, C.risk_coverage, lambda p: C.scaled(p, 2), lambda p: C.decide(p, .5)):
        for other in (multi, number):
            with pytest.raises(ValueError, match="'single'"): f(other)
        with pytest.raises(ValueError, match="1 of 20.*position 3.*nan"): f(nan)
        with pytest.raises(ValueError, match="at least one prediction"): f(p[:0])
        with pytest.raises(TypeError, match="takes Preds"): f(p.probs)
    with pytest.raises(ValueError, match="are these logits"): C.calibration_error(replace(p, probs=p.probs * 30 - 5))


# --- cross-fitting

def test_calibrate_before_and_after():
    p = made(sharpen=2.5)
    c = C.calibrate(p)
    assert c.temperature == C.fit_temperature(p) and (c.low, c.high) == C.temperature_interval(p, c.temperature) and c.low < 2.5 < c.high
    assert c.ece_before == C.calibration_error(p) and c.ece_after == C.calibration_error(c.preds) < c.ece_before / 3
    assert c.nll_before == C.nll(p) and c.nll_after == C.nll(c.preds) < c.nll_before and c.nll_after > C.nll(C.scaled(p, c.temperature))
    assert torch.equal(c.preds.pred, p.pred) and c.preds.losses.mean().item() == pytest.approx(c.nll_after, rel=1e-5)
    assert "over-confident" in repr(c) and f"{c.ece_before:.3f} -> {c.ece_after:.3f}" in repr(c)
    assert C.calibrate(p, bins=5).ece_before == C.calibration_error(p, 5)


@pytest.mark.parametrize("folds", [2, 5, 40])
def test_no_picture_has_a_say_in_its_own_temperature(folds):
    p = made(40, sharpen=2, seed=3, spread=1)
    y = p.targets.clone()
    y[7] = (y[7] + 1) % 4
    before, after = (C.calibrate(q, folds=folds).preds.probs for q in (p, replace(p, targets=y)))
    changed = (before != after).any(1)
    assert not changed[7] and changed.sum() >= 40 - math.ceil(40 / folds) - 2   # two may be rounded to the same


def test_fewer_pictures_than_folds_and_one_warning():
    assert len(C.calibrate(few([[.7, .3], [.6, .4], [.2, .8], [.9, .1]], [1, 1, 1, 0])).preds) == 4
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        c = C.calibrate(few([[.9, .1]] * 6, [0] * 6))
    assert len(said) == 1 and c.temperature == 1 and (c.low, c.high) == C.TEMPERATURES and c.ece_before == pytest.approx(c.ece_after)
    with pytest.raises(ValueError, match="at least 2"): C.calibrate(few([[.9, .1]], [0]))


# --- into the model

@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_temperature_is_the_scaled_one(bias):
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias)).eval()
    x, weight = 5 * torch.randn(20, 8), head[-1].weight
    def says():
        with torch.no_grad(): return Preds(head(x).softmax(1), None, None, (), Task("single", tuple("abc")))
    before, first = says(), head[2].weight.clone()
    assert C.fold_temperature(head, 2.) is None
    assert torch.allclose(says().probs, C.scaled(before, 2).probs, atol=1e-6) and not torch.allclose(says().probs, before.probs, atol=1e-3)
    C.fold_temperature(head, 1.5)
    assert torch.allclose(says().probs, C.scaled(before, 3).probs, atol=1e-6)
    assert head[-1].weight is weight and weight.requires_grad and weight.is_leaf and torch.equal(head[2].weight, first)   # an optimizer still holds it


def test_a_temperature_is_not_folded_into_something_else():
    for head in (nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), nn.Sequential(), nn.ReLU()):
        with pytest.raises(TypeError, match="linear layer"): C.fold_temperature(head, 2)
    head = nn.Sequential(nn.Linear(2, 2))
    weight = head[0].weight.clone()
    for t in (0, -1., math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"): C.fold_temperature(head, t)
    assert torch.equal(head[0].weight, weight)


# --- don't know

@quick
@given(**sizes)
def test_risk_coverage_against_the_definition(n, c, seed, digits):
    p = made(n, c, 1, seed, digits=digits)
    t = C.risk_coverage(p)
    assert list(t.columns) == ["threshold", "coverage", "error", "n", "low", "high"]
    assert t.coverage.is_monotonic_increasing and t.coverage.is_unique and t.threshold.is_monotonic_decreasing and t.threshold.is_unique
    assert t.coverage.iloc[-1] == 1 and math.isclose(t.error.iloc[-1], error_rate(p))
    sure, wrong = p.probs.max(1).values, p.pred != p.targets
    for row in t.itertuples():
        yes = sure >= row.threshold
        one = wilson_interval(int(wrong[yes].sum()), int(yes.sum()))
        assert row.n == one.n and math.isclose(row.coverage, one.n / n) and math.isclose(row.error, one.value)
        assert np.allclose([row.low, row.high], [one.low, one.high], atol=1e-9)


@quick
@given(**sizes, error=st.floats(0, 1), cautious=st.booleans())
def test_a_threshold_keeps_its_word_on_its_own_pictures(n, c, seed, digits, error, cautious):
    p = made(n, c, 1, seed, digits=digits)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        t = C.threshold_for(p, error, cautious)
    yes, table = C.accepted(p, t), C.risk_coverage(p)
    judged = table.high if cautious else table.error
    if t == math.inf: assert len(yes) == 0 and (judged > error).all() and len(said) == 1 and "nothing is accepted" in str(said[0].message)
    else:
        w = wilson_interval(int((p.pred != p.targets)[yes].sum()), len(yes))
        assert not said and len(yes) >= 1 and (w.high if cautious else w.value) <= error + 1e-12
        assert (judged[table.n > len(yes)] > error).all()   # and no milder one does


def test_caution_keeps_a_promise_that_optimizm_breaks():
    new, broken = C.risk_coverage(made(20_000, spread=3, seed=99_999)), {}
    for cautious in (False, True):
        chosen = [C.threshold_for(made(500, spread=3, seed=s), .1, cautious) for s in range(60)]
        broken[cautious] = sum(new.error[new.threshold >= t].iloc[-1] > .1 for t in chosen)
    assert broken[True] <= 4 and broken[False] >= 18


@quick
@given(**sizes, threshold=st.floats(0, 1.2))
def test_decide_answers_exactly_the_accepted(n, c, seed, digits, threshold):
    p = made(n, c, 1, seed, digits=digits)
    p = replace(p, targets=None, losses=None)
    yes, said = C.accepted(p, threshold), C.decide(p, threshold)
    assert len(said) == n and [i for i, label in enumerate(said) if label is not None] == yes.tolist() and yes.dtype == torch.int64
    assert all(label in (None, p.classes[c]) for label, c in zip(said, p.pred.tolist()))
    assert yes.tolist() == [i for i in range(n) if p.probs[i].max() >= threshold]


def test_a_threshold_of_two_digits_means_what_it_says():
    assert C.decide(few([[.8, .2], [.79, .21]]), .8) == ["a", None]


@quick
@given(n=st.integers(1, 60), seed=st.integers(0, 1000), t=st.floats(.7, 3))
def test_for_two_classes_the_curve_knows_no_temperature(n, seed, t):
    p = made(n, 2, 1, seed, spread=1)
    before, after = C.risk_coverage(p), C.risk_coverage(C.scaled(p, t))
    both = set(before.n) & set(after.n)   # rounding can join two that were all but equal
    assert len(both) >= .9 * len(before)
    assert before[before.n.isin(both)][["n", "error"]].values.tolist() == after[after.n.isin(both)][["n", "error"]].values.tolist()


def test_thresholds_are_shares_and_never_nan():
    for error in (-.1, 5, math.nan):
        with pytest.raises(ValueError, match=f"not {error}"): C.threshold_for(made(20), error)
    with pytest.raises(ValueError, match="not nan"): C.accepted(made(20), math.nan)
