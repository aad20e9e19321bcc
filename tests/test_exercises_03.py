"""Answers to lesson 3's exercises, right and wrong; test_exercises.py tries them."""
import math

import numpy as np
import pytest
import torch

from lessonkit.data.augment import augmentations
from lessonkit.core.task import Task
from lessonkit.course import lesson_3
from lessonkit.course.exercises import load_exercises
from lessonkit.results.selections import most_incorrect, most_uncertain
from lessonkit.results.preds import Preds
from lessonkit.train.schedules import cycle_ends, group_rates

P_DOG, IS_DOG = np.array(lesson_3.P_DOG), np.array(lesson_3.IS_DOG)


def by_if(*lines):
    "A function of (acts, preds) with these lines."
    space = {"math": math}
    exec("def binary_loss(acts, preds):\n" + "\n".join(f"    {line}" for line in lines), space)
    return space["binary_loss"]


def loop(one, zero, back="return total / len(acts)"):
    "A loss that adds `one` where the label is 1, and `zero` where it is 0."
    return by_if(
        "total = 0",
        "for y, p in zip(acts, preds):",
        f"    if y == 1: total += {one}",
        f"    else: total += {zero}",
        back,
    )


def with_numpy(acts, preds):
    return np.mean([-np.log(p if y else 1 - p) for y, p in zip(acts, preds)])


RIGHT = {
    "shape": [(200, 300, 3), np.zeros((200, 300, 3)).shape, torch.Size([200, 300, 3])],
    "log-prob": [.8, math.exp(-.223), np.exp(np.float32(-.223)), "0.8", 80],
    "uncertain": [[2, 7], (7, 2), {2, 7}, np.argsort(np.abs(P_DOG - .5))[:2]],
    "most-incorrect": [[3, 1], torch.tensor([3, 1])],
    "flips": [
        ["mirror", "none", "all"],
        ("mirror", "none", "all"),
        {"pets": "mirror", "letters": "none", "fields": "all"},
        "mirror none all",
    ],
    "how-many-cycles": [(5, 16), [5., 16.]],
    "rates-by-five": [
        [8e-5, 4e-4, 2e-3],
        (.002 / 25, .002 / 5, .002),
        slice(8e-5, 2e-3),
        np.array([8e-5, 4e-4, 2e-3]),
    ],
    "by-if": [loop("-math.log(p)", "-math.log(1 - p)"), with_numpy],
    "lower-loss": [[.99, .01, .01, .99], torch.tensor([.97, .03, .03, .97])],
    "matrix": [294 / 314, .936, .94, 93.6],
    "dont-know": [(.6, 1 / 6), [.6, .17], (60, 16.7)],
}
WRONG = { # answer, and a word of the reason
    "shape": [
        ((300, 200, 3), "rows first"),
        ((3, 200, 300), "colors last"),
        ((200, 300), "gray"),
        (180000, "three numbers"),
        (torch.tensor(3), "three numbers"),
    ],
    "log-prob": [
        (.2, "cat's"),
        (-.223, "undone"),
        (1.25, "above 1"),
        (.598, "base 10"),
        (.122, "not shares"),
    ],
    "uncertain": [
        ([3, 4], "sure that they are cats"),
        ([0, 5], "opposite"),
        ([.55, .45], "not their probabilities"),
    ],
    "most-incorrect": [
        ([3, 4], "First take the dogs"),
        ([1, 3], "worst comes first"),
        ([0, 6], "what a picture \\*is"),
        ([7, 1], "least sure"),
    ],
    "flips": [
        (["mirror", "mirror", "all"], "it is a d"),
        (["all", "none", "all"], "ceiling"),
        ("none none none", "counts twice"),
        (["yes", "no", "yes"], "three words"),
    ],
    "how-many-cycles": [
        ((5, 31), "belong to the last"),
        ((31, 1), "cycle_mult=1"),
        ((4, 8), "one more"),
        ((15, 2), "added up"),
    ],
    "rates-by-five": [
        ([2e-3, 4e-4, 8e-5], "way around"),
        (slice(4e-4, 2e-3), "a fifth"),
        ([4e-4, 4e-4, 2e-3], "not of the head's"),
        (slice(2e-3), "tenths|a fifth"),
    ],
    "by-if": [
        (loop("math.log(p)", "math.log(1 - p)"), "sign"),
        (loop("-math.log(1 - p)", "-math.log(p)"), "way around"),
        (loop("-math.log(p)", "-math.log(p)"), "1 - p"),
        (loop("-math.log(p)", "-math.log(1 - p)", "return total"), "the sum"),
        (by_if("if acts == 1: return -math.log(preds)", "return -math.log(1 - preds)"),
         "TypeError.*zip"),
    ],
    "lower-loss": [
        ([.9, .1, .2, .8], "largest part"),
        ([.95, .05, .1, .95], "below 0.05 yet"),
        ([1, 0, 0, 1], "logarithm of 0"),
        ([0, 1, 1, 0], "infinite"),
        ([99, 1, 1, 99], "between 0 and 1"),
    ],
    "matrix": [
        (.98, "recall"),
        (574 / 600, "accuracy"),
        (280 / 286, "answer \\*cat"),
        (.49, "all pictures"),
    ],
    "dont-know": [
        ((.6, .1), "six answers"),
        ((.6, .3), "among the six"),
        ((.4, .5), "not\\* answer"),
        ((1 / 6, .6), "way around"),
    ],
}


def preds():
    "The eight pictures of two of the questions."
    probs = torch.tensor(np.stack([1 - P_DOG, P_DOG], 1), dtype=torch.float32)
    targets = torch.tensor(IS_DOG).long()
    losses = -probs[range(8), targets].log()
    return Preds(probs, targets, losses, (), Task("single", ("cats", "dogs")))


def test_the_kit_answers_the_same():
    "The kit's own selections, for the same predictions, are the solutions."
    assert set(most_uncertain(preds(), 2).tolist()) == {2, 7}
    assert most_incorrect(preds(), "dogs", 2).tolist() == [3, 1]


def test_the_numbers_are_true():
    "What questions and solutions say about the kit and torch is so."
    ends = cycle_ends(5, 1, 2)
    assert ends[-1] == 31
    assert ends[-1] - ends[-2] == 16
    assert group_rates(slice(8e-5, 2e-3), "abc") == pytest.approx([8e-5, 4e-4, 2e-3])
    assert augmentations().flip
    assert not augmentations(do_flip=False).flip
    assert augmentations(flip_vert=True) != augmentations()
    probs = torch.tensor([.9, .1, .2, .8], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, 1], dtype=torch.float64)
    loss = torch.nn.functional.binary_cross_entropy(probs, labels)
    assert f"{loss:.6f}" == "0.164252"
    assert "0.164" in load_exercises()["lower-loss"].question
