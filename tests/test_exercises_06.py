"""Answers to lesson 6's exercises, right and wrong; test_exercises.py tries them."""
import math
from itertools import permutations

import numpy as np
import pytest
import torch

from lessonkit.course.exercises import check
from lessonkit.train.schedules import cycle_ends, exp_ramp, flat_cos, Piece, Schedule, sgdr


def falling(f):
    "1 until 0.75, then f of the share of the last quarter that has passed."
    return lambda position: 1. if position < .75 else f((position - .75) / .25)


RIGHT = {
    "first-loss": [math.log(37), 3.6, "3.61", torch.tensor(3.611), {"loss": 3.6109}],
    "five-lines": [
        [3, 2, 5, 1, 4],
        [3, 4, 2, 5, 1],
        (3, 2, 4, 5, 1),
        "3, 2, 5, 1, 4",
        np.array([3, 2, 5, 1, 4]),
    ],
    "velocity": [(-1.1, .61), torch.tensor([-1.1, .61]), {"velocity": -1.1, "weight": .61}],
    "first-step": [(-.01, .01), (-.01, .009995), torch.tensor([-.01, .01])],
    "flat-then-down": [
        flat_cos(),
        falling(lambda t: (1 + math.cos(math.pi * t)) / 2),
        lambda p: np.cos(max(0, p - .75) * 2 * math.pi)**2,
        Schedule((Piece(.75, "flat", 1., 1.), Piece(1., "cosine", 1., 0.))),
    ],
    "restarts": [
        [15, 45],
        (45, 15),
        {15, 45},
        torch.tensor([15, 45]),
        [15 * e for e in cycle_ends(3, 1, 2)[:-1]],
    ],
    "growing-rate": [
        (.001, 1.26),
        (1e-3, 10**.1),
        [exp_ramp(1e-6, 1)(.5), exp_ramp(1, 1e6)(1 / 60)],
    ],
}
WRONG = { # answer, and a word of the reason
    "first-loss": [
        (-3.61, "negative"),
        (1 / 37, "probability"),
        (1.57, "base 10"),
        (5.21, "base 2"),
        (2.48, "12 breeds"),
        (8.9, "you have 8.9"),
        ((3.6, 1), "got 2"),
    ],
    "five-lines": [
        ([3, 2, 5, 4, 1], "never learn"),
        ([3, 2, 1, 5, 4], "batch before"),
        ([2, 3, 5, 1, 4], "opens the loop"),
        ([3, 5, 2, 1, 4], "not calculated yet"),
        ("32541", "never learn"),
        ([3, 2, 5, 1], "got 4"),
    ],
    "velocity": [
        ((.61, -1.1), "way around"),
        ((-2, .7), "without momentum"),
        ((-1.1, .39), "subtracted"),
        ((.7, .43), "an average"),
        ((-1, .6), "only a share"),
        ((-.8, .58), "not the slope"),
        ((-1.1, .6), "velocity is right"),
    ],
    "first-step": [
        ((.01, -.01), "to the left"),
        ((-.5, .0002), "plain gradient descent"),
        ((-.01, -.01), "different signs"),
        ((-1, 1), "times the learning rate"),
        ((-.001, .001), "what it lacks"),
    ],
    "flat-then-down": [
        (falling(lambda t: 1 - t), "straight line"),
        (falling(lambda t: math.cos(math.pi / 2 * t)), "a quarter of a cosine"),
        (falling(lambda t: (1 + math.cos(math.pi * (.75 + t / 4))) / 2), "jumps"),
        (falling(lambda t: (1 + math.cos(math.pi * t / 4)) / 2), "too slow"),
        (falling(lambda t: (1 - math.cos(math.pi * t)) / 2), "goes up"),
        (flat_cos(.5), "Until 0.75"),
        (lambda p: math.inf, "Until 0.75"),
        (lambda p: math.nan, "Until 0.75"),
    ],
    "restarts": [
        ([1, 3], "epochs"),
        ([15, 45, 105], "training is over"),
        ([0, 15, 45], "Step 0"),
        ([14, 44], "step after"),
        ([16, 46], "from 0"),
        ([15, 30], "equal length"),
        (15, "another one"),
        (torch.tensor(15), "another one"),
        ([15, 44], "one after the other"),
    ],
    "growing-rate": [
        ((1.26, .001), "way around"),
        ((.5, 1.26), "differences"),
        ((.00112, 1.26), "one half"),
        ((.001, 10), "takes ten steps"),
        ((.001, .1), "powers of ten"),
        ((.001, 1e6 / 60), "not added"),
    ],
}


def test_a_last_layer_of_zeros_has_the_first_loss():
    last = torch.nn.Linear(5, 37)
    for p in last.parameters(): torch.nn.init.zeros_(p)
    loss = torch.nn.functional.cross_entropy(last(torch.randn(8, 5)), torch.arange(8))
    assert check("first-loss", loss)


def test_the_restarts_are_true():
    rates = [sgdr(3, 1, 2)(step / 105) for step in range(105)]
    assert [i for i in range(2, 105) if rates[i] > rates[i - 1]] == [15, 45]
    assert rates[15] == rates[45] == 1


def test_adam_takes_the_first_step():
    weights = torch.tensor([0., 0.], requires_grad=True)
    weights.grad = torch.tensor([50., -.02])
    torch.optim.AdamW([weights], lr=.01, betas=(.9, .99), eps=1e-5).step()
    assert check("first-step", weights.detach())


def test_sgd_has_this_velocity():
    weight = torch.tensor([.5], requires_grad=True)
    weight.grad = torch.tensor([-2.])
    optimizer = torch.optim.SGD([weight], lr=.1, momentum=.9)
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([1.])
    optimizer.step()
    velocity = optimizer.state[weight]["momentum_buffer"]
    assert check("velocity", (velocity.item(), weight.item()))


def test_equal_differences_spend_54_steps_above_a_tenth():
    rates = [i / 60 + 1e-6 * (1 - i / 60) for i in range(60)]
    assert sum(rate > .1 for rate in rates) == 54


LINES = { # of "five-lines", for the loss x * w, whose slope is x
    1: "w -= g\n    moved.append((w, loss))",
    2: "loss = x * w",
    4: "g = 0",
    5: "g += x",
}


def trains(order):
    "Does a loop with these lines, run in Python, do what training does?"
    if order[0] != 3: return False
    if order.index(5) < order.index(2): return False  # slopes of a loss that isn't there yet
    space = dict(w=1., g=0., moved=[])
    code = "for x in (1., 2., 4.):\n" + "".join(f"    {LINES[line]}\n" for line in order[1:])
    try: exec(code, space)
    except NameError: return False  # a step before there is a loss
    return [w for w, _ in space["moved"]] == [0., -2., -6.]


@pytest.mark.parametrize("order", list(permutations(range(1, 6))))
def test_five_lines_knows_every_order(order):
    assert bool(check("five-lines", order)) == trains(order)
