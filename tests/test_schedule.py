"""Schedules: restarts where they belong to the last bit, plain data, and 0.7's loops, which counted steps instead of positions."""
import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings, strategies as st

from lessonkit.train import schedules as S
from lessonkit.train.schedules import (
    cycle_ends, flat_cos, one_cycle, one_cycle_linear, one_cycle_momentum, Piece, Schedule, sgdr,
    triangular,
)

CYCLES = [(1, 1, 1), (3, 1, 1), (3, 1, 2), (2, 3, 2), (4, 1, 3), (7, 2, 1), (5, 1, 2), (10, 1, 1)]
SCHEDULES = [S.constant(.3), one_cycle(), one_cycle_momentum(), sgdr(), sgdr(4, 2, 1, warmup=0), flat_cos(), flat_cos(0), triangular(),
             S.triangular_momentum(), one_cycle_linear(), S.one_cycle_linear_momentum(), S.linear_ramp(2., 1.), S.exp_ramp(1e-7, 10)]


def old_sgdr(n_cycles, cycle_len, cycle_mult, per_epoch):
    "The factors of 0.7, which kept a counter and a length that is multiplied."
    length, factors = cycle_len * per_epoch, []
    for cycle in range(n_cycles):
        for k in range(length):
            factors.append(.01 if cycle == 0 and k < length / 20 else (math.cos(math.pi * k / length) + 1) / 2)
        length *= cycle_mult
    return factors


@pytest.mark.parametrize("cycles", CYCLES)
def test_every_cycle_begins_at_its_peak_at_any_number_of_steps(cycles):
    ends, curve, warm = cycle_ends(*cycles), sgdr(*cycles, warmup=0), sgdr(*cycles)
    for per_epoch in range(1, 201):
        n = ends[-1] * per_epoch
        first = [e * per_epoch for e in (0, *ends[:-1])]
        assert [curve(k / n) for k in first] == [1] * len(first), per_epoch
        assert [warm(k / n) for k in first[1:]] == [1] * (len(first) - 1), per_epoch
        if cycles[1] * per_epoch > 1: assert all(curve((k - 1) / n) < 1 and curve((k + 1) / n) < 1 for k in first[1:])


@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize("per_epoch", [1, 7, 10, 19, 20, 21, 100, 360])
def test_it_is_what_counting_gives(cycles, per_epoch):
    theirs = old_sgdr(*cycles, per_epoch)
    assert [sgdr(*cycles)(k / len(theirs)) for k in range(len(theirs))] == pytest.approx(theirs, abs=1e-12)


def test_number_of_epochs():
    assert cycle_ends(3, 1, 2)[-1] == 7 and cycle_ends(3, 1, 1)[-1] == 3 and cycle_ends(3, 2, 2)[-1] == 14
    for n, length, mult in CYCLES:
        if mult > 1: assert cycle_ends(n, length, mult)[-1] == length * (mult**n - 1) // (mult - 1)


@pytest.mark.parametrize("wrong, says", [(dict(n_cycles=0), "n_cycles.*got 0"), (dict(cycle_len=1.5), "cycle_len.*got 1.5"), (dict(cycle_mult=2.), "cycle_mult.*got 2.0"),
                                         (dict(cycle_mult=0), "cycle_mult.*got 0"), (dict(warmup=1), "warmup.*got 1"), (dict(floor=-1), "floor.*got -1")])
def test_what_cycles_can_not_be(wrong, says):
    with pytest.raises(ValueError, match=says): sgdr(**wrong)


@pytest.mark.parametrize("warmup", [.1, 1 / 3, .25])
def test_the_warm_up_ends_at_the_step_it_names(warmup):
    for per_epoch in (12, 60, 120):
        n, warm = 7 * per_epoch, warmup * per_epoch
        at_floor = [k for k in range(n) if sgdr(warmup=warmup, floor=.2)(k / n) == .2]
        assert at_floor == list(range(math.ceil(warm - 1e-9)))


@pytest.mark.parametrize("curve", SCHEDULES)
@given(position=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_file_keeps_a_schedule(curve, position):
    again = Schedule(**json.loads(json.dumps(asdict(curve))))
    assert again == curve and again(position) == curve(position)
    ends = [v for p in curve.pieces for v in (p.start, p.stop)]
    assert min(ends) * (1 - 1e-9) <= curve(position) <= max(ends) * (1 + 1e-9)


def test_files_from_before_pieces_had_a_beginning_are_read():
    assert Schedule([dict(until=1., shape="linear", start=0., stop=1.)])(.25) == .25


@pytest.mark.parametrize("curve", [one_cycle(), flat_cos(), triangular(), one_cycle_linear(), one_cycle_momentum(), S.triangular_momentum(), S.one_cycle_linear_momentum()])
def test_no_jumps(curve):
    values = [curve(k / 5000) for k in range(5001)]
    assert max(abs(a - b) for a, b in zip(values, values[1:])) < .01


@pytest.mark.parametrize("steps", [100, 200, 340])
def test_triangles_are_those_of_07(steps):
    div, cut_div, cut = 32, 10, steps // 10
    theirs = [(1 + (k / cut if k <= cut else 1 - (k - cut) / (steps - cut)) * (div - 1)) / div for k in range(steps)]
    assert [triangular(div, cut_div)(k / steps) for k in range(steps)] == pytest.approx(theirs)
    div, half = 10, steps * 45 // 100
    theirs = []
    for k in range(steps):
        if k > 2 * half: theirs.append((1 - .99 * (k - 2 * half) / (steps - 2 * half)) / div)
        else: theirs.append((1 + (k / half if k <= half else 1 - (k - half) / half) * (div - 1)) / div)
    assert [one_cycle_linear(div, .1)(k / steps) for k in range(steps)] == pytest.approx(theirs)


@pytest.mark.parametrize("rate, momentum", [(one_cycle(.3), one_cycle_momentum(pct_start=.3)), (triangular(cut_div=4), S.triangular_momentum(cut_div=4)),
                                            (one_cycle_linear(pct_final=.2), S.one_cycle_linear_momentum(pct_final=.2))])
def test_momentum_is_lowest_where_the_rate_is_highest(rate, momentum):
    at = [k / 1000 for k in range(1000)]
    assert max(at, key=rate) == pytest.approx(min(at, key=momentum)) and (momentum(0), min(map(momentum, at))) == pytest.approx((.95, .85))


def test_momentum_may_end_elsewhere():
    for make in (one_cycle_momentum, S.triangular_momentum, S.one_cycle_linear_momentum):
        assert make((.9, .8, .7))(1) == pytest.approx(.7) and make((.9, .8))(1) == pytest.approx(.9)
        for wrong in ((.9,), (.9, .8, .7, .6), (.9, 1.)):
            with pytest.raises(ValueError, match="got"): make(wrong)


def test_flat_cos_is_two_pieces_or_one():
    assert [flat_cos(.5, 10)(p) for p in (0, .49, .5, .75, 1)] == pytest.approx([1, 1, 1, .55, .1]) and len(flat_cos(0).pieces) == 1


def test_pieces_that_can_not_be():
    for pieces, says in (([Piece(1., "linear", 0, 1, since=.1)], "at its begin, 0"), ([Piece(.5, "flat", 1, 1), Piece(1., "flat", 1, 1, since=-.1)], "got -0.1"),
                         ([Piece(1., "exponential", 1, 0)], "above 0; got 1 and 0"), ([Piece(1., "round", 1, 0)], "round")):
        with pytest.raises(ValueError, match=says): Schedule(tuple(pieces))
