"""Answers to lesson 1's exercises, right and wrong; test_exercises.py tries them."""
import re
from pathlib import Path

import numpy as np
import torch

from lessonkit.results.intervals import wilson_interval
from lessonkit.train.schedules import one_cycle

FILES = [f"pug_{i}.jpg" for i in range(40)]
SPOILED = FILES[3:13]

RIGHT = {
    "pattern": [r"^\d+-(.+)\.\w+$", re.compile(r"-(.+)\.")],
    "cats": [
        lambda p: "cat" if p.name[0].isupper() else "dog",
        lambda p: "dog" if p.name[0].islower() else "cat",
    ],
    "head-size": [47_397, 37 * 1281., np.int64(47_397), "47397"],
    "steps": [48, 48., np.int64(48), torch.tensor([48])],
    "one-cycle": [
        [.0004, .01, .005, 1e-7],
        np.array([.01 * one_cycle()(p) for p in (0, .25, .625, 1)]),
    ],
    "loss": [(.105, 2.303), torch.tensor([.9, .1]).log().neg()],
    "overfitting": [4, "4"],
    "interval": [wilson_interval(24, 240), (.1, .068, .144), [10, 6.8, 14.4]],
    "confused": [("Ragdoll", "Birman"), (2, 0), "Ragdoll Birman"],
    "wrong-labels": [
        SPOILED,
        set(SPOILED[:6]),
        [FILES.index(f) for f in SPOILED],
        torch.arange(3, 9),
        [Path("photos", f) for f in SPOILED],
    ],
}
WRONG = { # answer, and a word of the reason
    "pattern": [
        (r"^\d+-.+\.jpg$", "no parentheses"),
        (r"(.+)\.\w+$", "number"),
        (r"^(.+)_\d+\.jpg$", "not match"),
        (3, "Expected a pattern .str.*got int"),
    ],
    "cats": [
        (lambda p: "cat" if str(p)[0].isupper() else "dog", "path.name|is a cat"),
        (lambda p: "dog" if p.name[0].isupper() else "cat", "dog for every cat"),
        (lambda p: p.name[0].isupper(), "True and False"),
    ],
    "head-size": [
        (37 * 1280, "biases are missing"),
        (37 * 15_372, "12 breeds together"),
        (49 * 1281, "only the 37"),
    ],
    "steps": [(45, "40"), (46.875, "part of a step"), (16, "one epoch")],
    "one-cycle": [
        ([.001, .01, .005, 1e-7], "25"),
        ([.04, 1, .5, 1e-5], "factors"),
        ([.0004, .01, .00625, 1e-7], "halfway"),
    ],
    "loss": [
        ((2.303, .105), "other way around"),
        ((.0458, 1), "base 10"),
        ((.1, .9), "logarithm"),
    ],
    "overfitting": [(2, "it is not"), (3, "lowest"), (5, "before")],
    "interval": [
        (wilson_interval(216, 240), "accuracy"),
        ((.1, .06205, .13795), "textbook"),
        (wilson_interval(24, 240, .9), "95%"),
    ],
    "confused": [
        (("Birman", "Ragdoll"), "way around"),
        (("pug", "pug"), "diagonal"),
        (("Ragdoll", "Persian"), "larger"),
    ],
    "wrong-labels": [
        (SPOILED[:2], "at least five"),
        (FILES[20:30], "0 have"),
        (FILES, "10 have"),
        ([99], "Positions"),
        (["cat.jpg"], "no `cat.jpg`"),
    ],
}
