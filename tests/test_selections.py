"""Selections agree with plain sorting, and don't depend on how the data is ordered."""
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from random_preds import random_preds, single_preds

from lessonkit.results.selections import (
    class_index, correct_indices, in_cell, incorrect_indices, most_correct, most_incorrect,
    most_uncertain, one_per_class, random_correct, random_incorrect, top_losses,
)
from tiers import examples

quick = examples(60)
sizes = dict(n=st.integers(1, 60), c=st.integers(2, 8), seed=st.integers(0, 10_000),
             digits=st.sampled_from([None, 1]))
counts = st.one_of(st.none(), st.integers(1, 80))
many = sizes | dict(c=st.integers(2, 40), k=counts)
MEASURES = "margin", "entropy", "least_confidence"


# Losses

@quick
@given(k=counts, largest=st.booleans(), **sizes)
def test_top_losses_are_sorted_and_stable(n, c, seed, digits, k, largest):
    p = random_preds(n, c, seed, digits=digits)
    losses, idx = top_losses(p, k, largest)
    sign = -1 if largest else 1
    expected = sorted(range(n), key=lambda i: sign*p.losses[i])  # sorted() is stable
    assert idx.tolist() == expected[:k]
    assert torch.equal(losses, p.losses[idx])


def test_a_loss_that_is_not_a_number_is_the_largest():
    losses = torch.tensor([1, math.nan, math.inf, math.nan, 2.])
    p = single_preds(torch.eye(5), torch.arange(5), "abcde", losses)
    assert top_losses(p)[1].tolist() == [1, 3, 2, 4, 0]
    assert top_losses(p, largest=False)[1].tolist() == [0, 4, 2, 1, 3]


# Two classes

def two_classes(n, seed, spread, digits=None):
    """float32, as a model gives them. With a small spread, all are near 1/2; with a large one, the
    more probable class is 1.0 in float32."""
    g = torch.Generator().manual_seed(seed)
    probs = (spread*torch.randn(n, 2, generator=g)).softmax(1)
    if digits is not None: probs = probs.mul(10**digits).round()/10**digits
    y = torch.randint(0, 2, (n,), generator=g)
    return single_preds(probs, y, ("cat", "dog"), -probs.clamp_min(1e-30).log()[range(n), y])


binary = dict(n=st.integers(1, 60), seed=st.integers(0, 10_000),
              spread=st.sampled_from([1e-7, 1e-3, 1., 30.]), digits=st.sampled_from([None, 1]))


@quick
@given(by=st.sampled_from(MEASURES), **binary)
def test_of_two_classes_the_most_uncertain_is_nearest_to_one_half(n, seed, spread, digits, by):
    p = two_classes(n, seed, spread, digits)
    expected = sorted(range(n), key=lambda i: abs(p.probs[i, 1].item() - .5))
    assert most_uncertain(p, by=by).tolist() == expected


@quick
@given(**binary)
def test_of_two_classes_the_most_correct_are_those_of_the_old_lesson(n, seed, spread, digits):
    p = two_classes(n, seed, spread, digits)
    hit = p.probs.argmax(1) == p.targets
    for label, correct in product((0, 1), (True, False)):
        sign = -1 if (label == 1) == correct else 1  # the rule of 2017, as it was meant
        among = [i for i in range(n) if p.targets[i] == label and hit[i] == correct]
        expected = sorted(among, key=lambda i: sign*p.probs[i, 1].item())
        select = most_correct if correct else most_incorrect
        name, other = p.classes[label], p.classes[label if correct else 1 - label]
        assert select(p, name).tolist() == expected
        assert in_cell(p, name, other).tolist() == expected


# All selections against plain sorting

def selections(p, label, other):
    """Each selection by name: what it gives for k, a mask of what it chooses among, and the values
    it sorts by, smallest first."""
    probs, true, predicted = p.probs.double(), p.targets, p.probs.argmax(1)
    hit, every, order = predicted == true, torch.ones(len(p), dtype=bool), torch.arange(len(p))
    largest = probs.sort(1, descending=True).values
    entropy = -(probs*probs.clamp_min(1e-300).log()).sum(1)
    cell = (true == label) & (predicted == other)
    def uncertain(by): return lambda k: most_uncertain(p, k, by=by)
    return {
        "correct": (lambda k: correct_indices(p)[:k], hit, order),
        "incorrect": (lambda k: incorrect_indices(p)[:k], ~hit, order),
        "most correct": (lambda k: most_correct(p, p.classes[label], k), hit & (true == label),
                         -probs[:, label]),
        "most incorrect": (lambda k: most_incorrect(p, p.classes[label], k),
                           ~hit & (true == label), probs[:, label]),
        "in a cell": (lambda k: in_cell(p, p.classes[label], p.classes[other], k), cell,
                      -probs[:, other]),
        "margin": (lambda k: most_uncertain(p, k), every, largest[:, 0] - largest[:, 1]),
        "entropy": (uncertain("entropy"), every, -entropy),
        "least confidence": (uncertain("least_confidence"), every, largest[:, 0]),
    }


@quick
@given(**many)
def test_selections_agree_with_plain_sorting(n, c, seed, digits, k):
    p = random_preds(n, c, seed, digits=digits)
    label, other = seed % c, (seed + seed % 3) % c
    for name, (select, mask, values) in selections(p, label, other).items():
        chosen, among = select(k), mask.nonzero()[:, 0].tolist()
        assert chosen.dtype == torch.int64, name
        assert chosen.shape == (min(k or n, len(among)),), name
        assert len(set(chosen.tolist())) == len(chosen), name
        assert set(chosen.tolist()) <= set(among), name
        if name == "entropy":  # its last digit depends on the order of the sum
            assert (values[chosen].diff() >= -1e-12).all(), name
        elif c > 2 or name not in ("margin", "least confidence"):  # two classes: see above
            expected = sorted(among, key=lambda i: float(values[i]))[:k]  # sorted() is stable
            assert chosen.tolist() == expected, name


@quick
@given(n=st.integers(1, 60), c=st.integers(2, 40), seed=st.integers(0, 10_000))
def test_selections_do_not_depend_on_the_order_of_the_data(n, c, seed):
    p = random_preds(n, c, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = selections(p[order], 0, 1)
    for name, (select, *_) in selections(p, 0, 1).items():
        here, there = select(None), order[moved[name][0](None)]
        if name in ("correct", "incorrect"): there = there.sort().values
        assert there.tolist() == here.tolist(), name


@quick
@given(n=st.integers(1, 60), c=st.integers(2, 40), seed=st.integers(0, 10_000))
def test_the_hardest_of_each_class_do_not_depend_on_the_order_of_the_data(n, c, seed):
    p = random_preds(n, c, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    there = one_per_class(p[order], top_losses(p[order])[1])
    assert order[there].tolist() == one_per_class(p, top_losses(p)[1]).tolist()


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("c", [3, 40])
def test_the_same_probabilities_of_other_classes_are_as_uncertain(c, by):
    g = torch.Generator().manual_seed(c)
    row = torch.rand(c, generator=g).double()
    probs = torch.stack([row[torch.randperm(c, generator=g)] for _ in range(50)])/row.sum()
    p = single_preds(probs, None, map(str, range(c)))
    assert most_uncertain(p, by=by).tolist() == list(range(50))


@pytest.mark.parametrize("c", [2, 3, 7])
def test_probabilities_that_are_not_numbers_come_last(c):
    p = random_preds(30, c, 2)
    p.probs[4] = p.probs[17, 0] = math.nan
    for by in MEASURES: assert most_uncertain(p, by=by)[-2:].tolist() == [4, 17]
    p.probs[17] = math.nan
    for label, select in product(p.classes, (most_incorrect, most_correct)):
        missing = [i in (4, 17) for i in select(p, label).tolist()]
        assert missing == sorted(missing)


def test_mistakes_whose_probabilities_are_not_numbers_come_last():
    nothing = [math.nan]*3
    probs = torch.tensor([nothing, [.2, .5, .3], nothing, [.1, .6, .3]])
    p = single_preds(probs, torch.tensor([1, 0, 1, 0]), "abc")
    assert most_incorrect(p, "b").tolist() == [0, 2]
    assert most_incorrect(p, "a").tolist() == [3, 1]


# At random

@quick
@given(draw=st.integers(0, 5), **many)
def test_a_random_choice_begins_the_same_for_every_k(n, c, seed, digits, k, draw):
    p = random_preds(n, c, seed, digits=digits)
    state = torch.get_rng_state()
    choices = {random_correct: correct_indices(p), random_incorrect: incorrect_indices(p)}
    for choose, among in choices.items():
        every = choose(p, None, draw).tolist()
        assert sorted(every) == among.tolist()
        assert choose(p, k, draw).tolist() == every[:k]
        assert len(choose(p)) == min(4, len(among))
    assert torch.equal(state, torch.get_rng_state())


def test_a_random_choice_depends_on_the_seed_and_favors_none():
    p = random_preds(40, 3, 1)
    first = [int(random_incorrect(p, 1, seed)[0]) for seed in range(400)]
    assert set(first) == set(incorrect_indices(p).tolist())
    assert max(map(first.count, first)) < 60  # about 15 each


# Classes

@quick
@given(**sizes)
def test_one_per_class_takes_the_first_of_any_order(n, c, seed, digits):
    p = random_preds(n, c, seed, digits=digits)
    hardest, mistakes = top_losses(p)[1].tolist(), incorrect_indices(p).tolist()
    for order in (list(range(n)), hardest, mistakes):
        firsts = {int(p.targets[i]): i for i in reversed(order)}
        expected = [firsts[label] for label in sorted(firsts)]
        for kind in (list, np.array, torch.tensor, tuple):
            assert one_per_class(p, kind(order)).tolist() == expected
    every = one_per_class(p).tolist()
    assert one_per_class(p, range(n)).tolist() == every
    assert one_per_class(p, torch.arange(n)).tolist() == every


@pytest.mark.parametrize("order", [
    [0, 20], [-1], [.5], torch.ones(20, dtype=bool), [[1, 2]],
])
def test_one_per_class_takes_positions_only(order):
    with pytest.raises(ValueError, match="positions between 0 and 19"):
        one_per_class(random_preds(), order)


def test_a_name_is_a_name_and_never_a_position():
    p = random_preds(c=3)
    for label in ("class01", np.str_("class01")): assert class_index(p, label) == 1
    digits = single_preds(torch.eye(3), None, (7, 0, 1))
    assert [class_index(digits, label) for label in (7, 0, 1)] == [0, 1, 2]
    for label in (np.int64(0), np.uint8(0), torch.tensor(0)): assert class_index(digits, label) == 1
    bools = single_preds(torch.eye(2), None, (False, True))
    assert [class_index(bools, label) for label in (np.True_, False)] == [1, 0]
    for classes, label in ((digits, 2), (digits, True), (digits, "7"), (digits, 1.), (bools, 1)):
        with pytest.raises(ValueError, match="no class"): class_index(classes, label)


@pytest.mark.parametrize("label", [0, 1, 3, -1, True, 1., None, "pug", np.int64(1)])
def test_there_is_no_such_class(label):
    p = random_preds(c=3)
    with pytest.raises(ValueError, match="no class"): class_index(p, label)


def test_an_unknown_class_is_named():
    p = random_preds(c=3)
    with pytest.raises(ValueError, match="'class1'.*'class01'"): class_index(p, "class1")
    with pytest.raises(ValueError, match="no class 'pug'"): most_correct(p, "pug")
    with pytest.raises(ValueError, match="no class 'pug'"): most_incorrect(p, "pug")
    with pytest.raises(ValueError, match="no class 9"): in_cell(p, "class00", 9)


# Nothing to choose from

def test_nothing_to_choose_from():
    p = random_preds()
    none = p[[]]
    perfect = single_preds(torch.eye(3), torch.arange(3), "abc", torch.zeros(3))
    empty = [
        correct_indices(none), incorrect_indices(none), random_correct(none),
        most_correct(none, "class00"), in_cell(none, "class00", "class01"),
        most_uncertain(none), top_losses(none)[1],
        one_per_class(none), one_per_class(p, []), incorrect_indices(perfect),
        random_incorrect(perfect), most_incorrect(perfect, "a", 4), in_cell(perfect, "a", "b"),
    ]
    assert [e.shape for e in empty] == [(0,)]*len(empty)
    assert {e.dtype for e in empty} == {torch.int64}
    assert len(p[incorrect_indices(perfect)]) == 0  # it can be used to choose


# Bad input

def first_correct(p, k=None): return most_correct(p, "class00", k)
def first_incorrect(p, k=None): return most_incorrect(p, "class00", k)
def first_cell(p, k=None): return in_cell(p, "class00", "class01", k)


@pytest.mark.parametrize("select, name", [
    (correct_indices, "correct_indices"), (incorrect_indices, "incorrect_indices"),
    (random_correct, "random_correct"), (random_incorrect, "random_incorrect"),
    (one_per_class, "one_per_class"), (first_correct, "most_correct"),
    (first_incorrect, "most_incorrect"), (first_cell, "in_cell"),
])
def test_no_labels_or_another_kind(select, name):
    with pytest.raises(ValueError, match=f"^{name}.*true labels.*validation set"):
        select(random_preds(targets=False))
    with pytest.raises(ValueError, match="'single'.*'multi'.*accuracy_multi"):
        select(random_preds(kind="multi"))


@pytest.mark.parametrize("select", [
    top_losses, most_uncertain, random_correct, random_incorrect, first_correct, first_incorrect,
    first_cell,
])
def test_how_many_is_a_whole_number_of_at_least_1(select):
    for k in (0, -2):
        with pytest.raises(ValueError, match=f"at least 1, not {k}"): select(random_preds(), k)
    for k in (1.5, "9", True):
        with pytest.raises(TypeError, match="whole number"): select(random_preds(), k)


def test_other_bad_input():
    with pytest.raises(ValueError, match="none.*validation set"):
        top_losses(random_preds(targets=False))
    with pytest.raises(ValueError, match="single"): most_uncertain(random_preds(kind="multi"))
    with pytest.raises(ValueError, match="margin.*'doubt'"):
        most_uncertain(random_preds(), by="doubt")
    with pytest.raises(ValueError, match="at least two"): most_uncertain(random_preds(c=1))
    with pytest.raises(ValueError, match="kind 'number'"):
        class_index(random_preds(kind="number"), 0)
