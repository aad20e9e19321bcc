"""Answers to lesson 2's exercises, right and wrong; test_exercises.py tries them."""
import torch

from lessonkit.results.intervals import mean_interval
from lessonkit.train.schedules import cycle_ends, group_rates

GROUPS = "early body", "late body", "head"


def by_hand(*lines):
    "A function of (learn, epochs, lr) with these lines."
    space = {}
    exec("def two_phases(learn, epochs, lr):\n" + "\n".join(f"    {line}" for line in lines), space)
    return space["two_phases"]


FREEZE, HEAD, THAW = "learn.freeze()", "learn.fit_one_cycle(1, lr)", "learn.unfreeze()"
ALL = "learn.fit_one_cycle(epochs, slice(lr/200, lr/2))"

GAIN = mean_interval([-.5, -.8, -.4, -.4, -.7])   # of five seeds, in points

RIGHT = {
    "lr-min": [.01, "1e-2", torch.tensor(.01)],
    "group-rates": [
        [4e-6, 4e-5, 4e-4],
        group_rates(slice(4e-6, 4e-4), GROUPS),
        torch.tensor([4e-6, 4e-5, 4e-4]),
    ],
    "groups": [["late body", "head"], "late body, head", (1, 2), {"head", "late body"}],
    "fine-tune-rates": [(2e-5, 2e-4, 2e-3), group_rates(slice(2e-5, 2e-3), GROUPS)],
    "cycles": [30, 30., cycle_ends(4, 2, 2)[-1]],
    "luck": ["B", ["b"], ("B",)],
    "two-runs": [2.5, "2.49", 1.96 * (.9**2 + .9**2)**.5, .025],
    "paired-seeds": [(-.79, -.33), [GAIN.low, GAIN.high], torch.tensor([-.786, -.334])],
    "best-epoch": [(6, 4), [6., 4.], torch.tensor([6, 4])],
    "bfloat16": [256, torch.tensor(256., dtype=torch.bfloat16)],
    "by-hand": [
        by_hand(FREEZE, HEAD, THAW, ALL),
        by_hand(
            "learn.freeze_to(-1)",
            "learn.fit_one_cycle(epochs=1, lr_max=slice(lr))",
            "learn.freeze_to(0)",
            "learn.fit_one_cycle(epochs, [lr/200, lr/20, lr/2], pct_start=.3)",
        ),
    ],
}
WRONG = { # answer, and a word of the reason
    "lr-min": [(.1, "a tenth of it"), (.001, "once too often"), (1, "exploded")],
    "group-rates": [
        ([4e-6, 2.02e-4, 4e-4], "by difference"),
        ([4e-5, 4e-5, 4e-4], "one number"),
        ([4e-4, 4e-5, 4e-6], "way around"),
    ],
    "groups": [
        ("head", "freeze_to.-1"),
        (list(GROUPS), "unfreeze"),
        ([0, 1], "before"),
        ("late body", "follows"),
    ],
    "fine-tune-rates": [
        ((4e-5, 4e-4, 4e-3), "Between the two"),
        ((4e-4, 4e-4, 4e-3), "first phase"),
        ((2e-5, 1.01e-3, 2e-3), "Both ends"),
    ],
    "cycles": [(16, "added up"), (8, "equally long"), (15, "takes 2 epochs"), (14, "third")],
    "luck": [
        ("A", "12 heads"),
        ("A, B", "12 heads"),
        (["B", "C"], "it lost 30"),
        ("none", "letters"),
    ],
    "two-runs": [
        (1.76, "Both runs vary"),
        (.9, "single run"),
        (1.27, "of the difference"),
        (3.53, "squares are"),
    ],
    "paired-seeds": [
        ((.33, .79), "old less new"),
        ((-.33, -.79), "lower end"),
        ((-1.7, .6), "apart"),
        ((-.93, -.19), "single differences"),
    ],
    "best-epoch": [
        ((4, 6), "way around"),
        ((7, 7), "never reached"),
        ((4, 2), "resets the count"),
        ((6, 2), "smallest loss"),
    ],
    "bfloat16": [
        (2048, "float16"),
        (2**24, "float32"),
        (257, "257"),
        (128, "129"),
        (512, "smallest"),
    ],
    "by-hand": [
        (by_hand(HEAD, ALL), "still frozen"),
        (by_hand(THAW, HEAD, ALL), "comes first"),
        (by_hand(HEAD), "is called once;"),
        (by_hand("learn.fine_tune(epochs, lr)"), "itself"),
        (by_hand(FREEZE, HEAD, THAW, "learn.fit_one_cycle(3, slice(lr/200, lr/2))"),
         "should be 1 and 5"),
        (by_hand(HEAD, THAW, "learn.fit_one_cycle(epochs, slice(lr/2, lr/200))"), "turn the slice"),
    ],
}


def test_the_numbers_are_true():
    "What the solutions say about the kit is so."
    numbers = torch.arange(1, 400).bfloat16()
    assert int(numbers[numbers + 1 == numbers][0]) == 256
    assert cycle_ends(4, 2, 2) == (2, 6, 14, 30)
