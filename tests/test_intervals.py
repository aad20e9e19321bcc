"""Wilson's interval is scipy's, and two models are compared by McNemar's exact test."""
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from random_preds import random_preds, single_preds
from scipy.stats import binomtest

from lessonkit.results.intervals import (
    accuracy_interval, compare_errors, error_interval, mcnemar_p, require_same_items,
    wilson_bounds, wilson_interval,
)
from lessonkit.results.metrics import accuracy, error_rate
from lessonkit.results.preds import Preds
from lessonkit.results.selections import incorrect_indices
from tiers import examples

quick = examples(60)
levels = st.sampled_from([.5, .9, .95, .99])


# One share

@quick
@given(n=st.integers(1, 3000), share=st.floats(0, 1), level=levels)
def test_wilson_agrees_with_the_formula(n, share, level):
    k, z = round(share*n), NormalDist().inv_cdf((1 + level)/2)
    p = k/n
    middle = (p + z*z/(2*n))/(1 + z*z/n)
    half = z/(1 + z*z/n)*math.sqrt(p*(1 - p)/n + z*z/(4*n*n))
    found = wilson_interval(k, n, level)
    assert found.low == pytest.approx(max(0, middle - half), abs=1e-9)
    assert found.high == pytest.approx(min(1, middle + half), abs=1e-9)


@quick
@given(n=st.integers(1, 3000), share=st.floats(0, 1), level=levels)
def test_an_interval_holds_its_share_and_mirrors_that_of_the_rest(n, share, level):
    k = round(share*n)
    found, rest = wilson_interval(k, n, level), wilson_interval(n - k, n, level)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert (found.k, found.n, found.level) == (k, n, level)
    assert found.low == pytest.approx(1 - rest.high, abs=1e-9)


@quick
@given(counts=st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 1)), min_size=1, max_size=9),
       level=levels)
def test_many_bounds_at_once_are_scipys(counts, level):
    n = np.array([n for n, _ in counts])
    k = np.array([round(n*share) for n, share in counts])
    low, high = wilson_bounds(k, n, level)
    expected = [binomtest(*pair).proportion_ci(level, "wilson")
                for pair in zip(k.tolist(), n.tolist())]
    assert low == pytest.approx([ci.low for ci in expected], rel=0, abs=1e-12)
    assert high == pytest.approx([ci.high for ci in expected], rel=0, abs=1e-12)
    singles = [wilson_interval(*pair, level) for pair in zip(k, n)]
    assert [(i.low, i.high) for i in singles] == list(zip(low, high))


def test_counts_are_matched_to_one_total():
    low, high = wilson_bounds(np.arange(5), 4)
    assert low.shape == high.shape == (5,)
    assert (low[0], high[-1]) == (0, 1)


@pytest.mark.parametrize("k, n", [(5, 4), (-1, 4), (0, 0)])
def test_impossible_counts(k, n):
    with pytest.raises(ValueError, match=f"{k} of {n}"): wilson_interval(k, n)
    with pytest.raises(ValueError, match=f"{k} of {n}"): wilson_bounds([0, k], [4, n])


def test_impossible_levels():
    with pytest.raises(ValueError, match="95"): wilson_interval(1, 4, 95)
    with pytest.raises(ValueError, match="got 0$"): wilson_bounds(1, 4, 0)


def test_intervals_of_predictions():
    p = random_preds(50, 3, 5)
    errors, correct = error_interval(p), accuracy_interval(p)
    assert errors.value == pytest.approx(error_rate(p))
    assert correct.value == pytest.approx(accuracy(p))
    assert errors.k + correct.k == errors.n == correct.n == 50


def test_an_interval_in_words():
    found = wilson_interval(98, 1478)
    assert str(found) == repr(found) == "6.6% (5.5% to 8.0%, 98 of 1478)"
    with pytest.raises(AttributeError): found.value = 0


# One model against another

def other_answers(p, seed):
    "Predictions of the same items by another model."
    q = random_preds(len(p), p.probs.shape[1], seed)
    return Preds(q.probs, p.targets, None, p.paths, p.task)


@quick
@given(n=st.integers(1, 60), c=st.integers(2, 8), seed=st.integers(0, 10_000))
def test_compare_errors_is_mcnemars_exact_test(n, c, seed):
    a = random_preds(n, c, seed, paths=True)
    b = other_answers(a, seed + 1)
    found, back = compare_errors(a, b), compare_errors(b, a)
    was, now = set(incorrect_indices(a).tolist()), set(incorrect_indices(b).tolist())
    assert (found.gained, found.lost) == (len(was - now), len(now - was))
    assert (back.lost, back.gained) == (found.gained, found.lost)
    tosses = found.gained + found.lost
    tail = sum(math.comb(tosses, i) for i in range(min(found.gained, found.lost) + 1))/2**tosses
    assert found.p == pytest.approx(min(1, 2*tail))
    assert back.p == found.p == mcnemar_p(found.gained, found.lost)


@quick
@given(n=st.integers(1, 60), seed=st.integers(0, 10_000))
def test_compare_errors_has_both_intervals(n, seed):
    a = random_preds(n, 3, seed, paths=True)
    b = other_answers(a, seed + 1)
    found = compare_errors(a, b)
    assert (found.before, found.after) == (error_interval(a), error_interval(b))
    assert found.after.level == .95
    assert compare_errors(a, b, .5).before == error_interval(a, .5)


def with_mistakes(positions):
    "Predictions of 100 images, with mistakes at these positions."
    probs = torch.eye(2)[[int(i in positions) for i in range(100)]]
    return single_preds(probs, torch.zeros(100, dtype=torch.long), "ab")


def test_a_comparison_in_words():
    found = compare_errors(with_mistakes(range(12)), with_mistakes(range(3, 13)))
    before, after = wilson_interval(12, 100), wilson_interval(10, 100)
    assert str(found) == f"before {before}, after {after}: 3 gained, 1 lost, p = 0.62"
    assert repr(found) == str(found)
    better = compare_errors(with_mistakes(range(40)), with_mistakes([]))
    assert str(better).endswith("40 gained, 0 lost, p < 0.0001")


def test_a_comparison_without_differences():
    same = compare_errors(with_mistakes([]), with_mistakes([]))
    assert same.p == 1
    assert (type(same.gained), type(same.p)) == (int, float)
    assert str(same).endswith("0 gained, 0 lost, p = 1")


def test_only_predictions_of_the_same_items_are_compared():
    a = random_preds(20, 3, 1, paths=True)
    b = other_answers(a, 2)
    other_truth = (a.targets + (torch.arange(20) == 7)) % 3
    different = {
        "20 and of 19 items": b[:19],
        "position 0.*0.jpg.*1.jpg": b[[1, 0, *range(2, 20)]],
        "classes differ": random_preds(20, 4, 1, paths=True),
        "position 7.*true class": Preds(b.probs, other_truth, None, a.paths, a.task),
    }
    for message, preds in different.items():
        with pytest.raises(ValueError, match=f"^compare_errors.*same items.*{message}"):
            compare_errors(a, preds)
        with pytest.raises(ValueError, match=f"^this.*same items.*{message}"):
            require_same_items(a, preds, "this")


def test_predictions_of_arrays_have_no_paths_to_compare():
    a = random_preds(20, 3, 1, paths=True)
    b = other_answers(a, 2)
    without_paths = Preds(b.probs, b.targets, None, (), b.task)
    assert compare_errors(a, without_paths).p == compare_errors(a, b).p


# Bad input

def compare_with_itself(preds): return compare_errors(preds, preds)


@pytest.mark.parametrize("function, name", [
    (error_interval, "error_interval"), (accuracy_interval, "accuracy_interval"),
    (compare_with_itself, "compare_errors"),
])
def test_no_labels_or_another_kind(function, name):
    with pytest.raises(ValueError, match=f"^{name}.*true labels.*validation set"):
        function(random_preds(targets=False))
    with pytest.raises(ValueError, match="'single'.*'multi'.*accuracy_multi"):
        function(random_preds(kind="multi"))


@pytest.mark.parametrize("bad", [dict(targets=False), dict(kind="multi")])
def test_both_predictions_are_checked(bad):
    bad, good = random_preds(**bad), random_preds()
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="^compare_errors"): compare_errors(*pair)
