"""Schedules: exact restarts, plain data, and the loops of fastai 0.7, which counted steps."""
import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given, strategies as st

from lessonkit.train.schedules import (
    constant, cycle_ends, exp_ramp, flat_cos, linear_ramp, one_cycle, one_cycle_linear,
    one_cycle_linear_momentum, one_cycle_momentum, Piece, Schedule, sgdr, triangular,
    triangular_momentum,
)
from tiers import examples

CYCLES = [(1, 1, 1), (3, 1, 1), (3, 1, 2), (2, 3, 2), (4, 1, 3), (7, 2, 1), (5, 1, 2), (10, 1, 1)]
CONTINUOUS = [one_cycle(), flat_cos(), triangular(), one_cycle_linear(), one_cycle_momentum(),
              triangular_momentum(), one_cycle_linear_momentum()]
SCHEDULES = [*CONTINUOUS, constant(.3), sgdr(), sgdr(4, 2, 1, warmup=0), flat_cos(0),
             linear_ramp(2., 1.), exp_ramp(1e-7, 10)]


def counted_sgdr(n_cycles, cycle_len, cycle_mult, per_epoch):
    "The factors of fastai 0.7, which kept a counter and a length that was multiplied."
    length, factors = cycle_len * per_epoch, []
    for cycle in range(n_cycles):
        for step in range(length):
            warmup = cycle == 0 and step < length / 20
            factors.append(.01 if warmup else (math.cos(math.pi * step / length) + 1) / 2)
        length *= cycle_mult
    return factors


@pytest.mark.parametrize("cycles", CYCLES)
def test_every_cycle_begins_at_its_peak_at_any_number_of_steps(cycles):
    ends, curve, warm = cycle_ends(*cycles), sgdr(*cycles, warmup=0), sgdr(*cycles)
    for per_epoch in range(1, 201):
        n = ends[-1] * per_epoch
        first = [end * per_epoch for end in (0, *ends[:-1])]
        assert [curve(step / n) for step in first] == [1] * len(first), per_epoch
        assert [warm(step / n) for step in first[1:]] == [1] * (len(first) - 1), per_epoch
        if cycles[1] * per_epoch == 1: continue  # a cycle of a single step has no other
        for step in first[1:]:
            assert curve((step - 1) / n) < 1
            assert curve((step + 1) / n) < 1


@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize("per_epoch", [1, 7, 10, 19, 20, 21, 100, 360])
def test_positions_give_the_same_as_counting(cycles, per_epoch):
    theirs = counted_sgdr(*cycles, per_epoch)
    ours = [sgdr(*cycles)(step / len(theirs)) for step in range(len(theirs))]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_number_of_epochs():
    assert cycle_ends(3, 1, 2)[-1] == 7
    assert cycle_ends(3, 1, 1)[-1] == 3
    assert cycle_ends(3, 2, 2)[-1] == 14
    for n, length, mult in CYCLES:
        if mult == 1: continue
        assert cycle_ends(n, length, mult)[-1] == length * (mult**n - 1) // (mult - 1)


@pytest.mark.parametrize("options, message", [
    (dict(n_cycles=0), "n_cycles.*got 0"),
    (dict(cycle_len=1.5), "cycle_len.*got 1.5"),
    (dict(cycle_mult=2.), "cycle_mult.*got 2.0"),
    (dict(cycle_mult=0), "cycle_mult.*got 0"),
    (dict(warmup=1), "warmup.*got 1"),
    (dict(floor=-1), "floor.*got -1"),
])
def test_impossible_cycles_are_refused(options, message):
    with pytest.raises(ValueError, match=message): sgdr(**options)


@pytest.mark.parametrize("warmup", [.1, 1 / 3, .25])
def test_the_warm_up_ends_at_the_step_it_names(warmup):
    for per_epoch in (12, 60, 120):
        n, warm_steps = 7 * per_epoch, warmup * per_epoch
        curve = sgdr(warmup=warmup, floor=.2)
        at_floor = [step for step in range(n) if curve(step / n) == .2]
        assert at_floor == list(range(math.ceil(warm_steps - 1e-9)))


@pytest.mark.parametrize("curve", SCHEDULES)
@given(position=st.floats(0, 1))
@examples(30)
def test_a_file_keeps_a_schedule(curve, position):
    again = Schedule(**json.loads(json.dumps(asdict(curve))))
    assert again == curve
    assert again(position) == curve(position)


@pytest.mark.parametrize("curve", SCHEDULES)
@given(position=st.floats(0, 1))
@examples(30)
def test_values_stay_between_the_ends_of_the_pieces(curve, position):
    ends = [value for p in curve.pieces for value in (p.start, p.stop)]
    assert min(ends) * (1 - 1e-9) <= curve(position)
    assert curve(position) <= max(ends) * (1 + 1e-9)


def test_files_from_before_pieces_had_since_can_be_read():
    assert Schedule([dict(until=1., shape="linear", start=0., stop=1.)])(.25) == .25


@pytest.mark.parametrize("curve", CONTINUOUS)
def test_no_jumps(curve):
    values = [curve(k / 5000) for k in range(5001)]
    assert max(abs(a - b) for a, b in zip(values, values[1:])) < .01


@pytest.mark.parametrize("steps", [100, 200, 340])
def test_triangles_are_those_of_fastai_07(steps):
    div, cut_div, cut = 32, 10, steps // 10
    def factor(step):
        share = step / cut if step <= cut else 1 - (step - cut) / (steps - cut)
        return (1 + share * (div - 1)) / div
    ours = [triangular(div, cut_div)(step / steps) for step in range(steps)]
    assert ours == pytest.approx([factor(step) for step in range(steps)])


@pytest.mark.parametrize("steps", [100, 200, 340])
def test_linear_one_cycle_is_that_of_fastai_07(steps):
    div, half = 10, steps * 45 // 100
    def factor(step):
        if step > 2 * half: return (1 - .99 * (step - 2 * half) / (steps - 2 * half)) / div
        share = step / half if step <= half else 1 - (step - half) / half
        return (1 + share * (div - 1)) / div
    ours = [one_cycle_linear(div, .1)(step / steps) for step in range(steps)]
    assert ours == pytest.approx([factor(step) for step in range(steps)])


@pytest.mark.parametrize("rate, momentum", [
    (one_cycle(.3), one_cycle_momentum(pct_start=.3)),
    (triangular(cut_div=4), triangular_momentum(cut_div=4)),
    (one_cycle_linear(pct_final=.2), one_cycle_linear_momentum(pct_final=.2)),
])
def test_momentum_is_lowest_where_the_rate_is_highest(rate, momentum):
    positions = [k / 1000 for k in range(1000)]
    assert max(positions, key=rate) == pytest.approx(min(positions, key=momentum))
    assert momentum(0) == pytest.approx(.95)
    assert min(map(momentum, positions)) == pytest.approx(.85)


@pytest.mark.parametrize("make", [
    one_cycle_momentum, triangular_momentum, one_cycle_linear_momentum,
])
def test_momentum_may_end_elsewhere(make):
    assert make((.9, .8, .7))(1) == pytest.approx(.7)
    assert make((.9, .8))(1) == pytest.approx(.9)
    for moms in ((.9,), (.9, .8, .7, .6), (.9, 1.)):
        with pytest.raises(ValueError, match="got"): make(moms)


def test_flat_cos_has_two_pieces_or_one():
    values = [flat_cos(.5, 10)(p) for p in (0, .49, .5, .75, 1)]
    assert values == pytest.approx([1, 1, 1, .55, .1])
    assert len(flat_cos(0).pieces) == 1


@pytest.mark.parametrize("pieces, message", [
    ([Piece(1., "linear", 0, 1, since=.1)], "begin of its piece, 0.0; got 0.1"),
    ([Piece(.5, "flat", 1, 1), Piece(1., "flat", 1, 1, since=-.1)], "got -0.1"),
    ([Piece(1., "exponential", 1, 0)], "above 0; got 1 and 0"),
    ([Piece(1., "round", 1, 0)], "round"),
])
def test_impossible_pieces_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message): Schedule(tuple(pieces))
