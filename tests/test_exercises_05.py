"""Answers to lesson 5's exercises, right and wrong; test_exercises.py tries them."""
import math

import numpy as np
import torch

from lessonkit.course import lesson_5
from lessonkit.course.exercises import load_exercises
from lessonkit.results.calibration import apply_temperature, threshold_for
from lessonkit.results.preds import Preds
from lessonkit.core.task import Task


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


def newest_by_numpy(dates):
    return np.argsort(dates)[-(len(dates) // 4):]


def newest_by_hand(dates):
    in_order = sorted(range(len(dates)), key=lambda i: dates[i])
    return in_order[-(len(dates) // 4):]


def newest_as_mask(dates):
    first = sorted(dates)[-(len(dates) // 4)]
    return [date >= first for date in dates]


RIGHT = {
    "by-if": [loop("-math.log(p)", "-math.log(1 - p)"), with_numpy],
    "lower-loss": [[.99, .01, .01, .99], torch.tensor([.97, .03, .03, .97])],
    "soften": [.75, "0.75", 75, 3 / 4],
    "dont-know": [(.6, 1 / 6), [.6, .17], (60, 16.7)],
    "other-half": [(.85, .25), [.85, 1 / 4], (.85, 25)],
    "leaky": [[1, 2, 5, 6], {1, 2, 5, 6}, (6, 5, 2, 1), np.array([1, 2, 5, 6])],
    "which-split": [
        ["group", "random", "time", "group", "random"],
        "group random time group random",
    ],
    "newest": [newest_by_numpy, newest_by_hand, newest_as_mask],
    "folds": [(5, 32, 40), [5., 32., 40.]],
    "report": [("B", 12.0), ["B", 12], "B 12.0", ("b", .12)],
}
WRONG = { # answer, and a word of the reason
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
    "soften": [
        (.45, "logits that are divided"),
        (.95, "sum of both"),
        (.988, "surer"),
        ((.75, .25), "one probability"),
    ],
    "dont-know": [
        ((.6, .1), "six answers"),
        ((.6, .3), "among the six"),
        ((.4, .5), "not\\* answer"),
        ((1 / 6, .6), "way around"),
    ],
    "other-half": [
        ((.85, 0), "how it was chosen"),
        ((.85, 1 / 6), "only four"),
        ((.85, 1 / 7), "both halves"),
        ((.95, 0), "more answers"),
        ((.8, .25), "is wrong"),
    ],
    "leaky": [
        ([2, 5], "luck helped"),
        ([1, 2, 3, 5, 6], "\\(3\\) is harmless"),
        ([1, 2, 4, 5, 6], "\\(4\\) is harmless"),
        ([1, 2, 5], "new test set"),
        ([7], "from 1 to 6"),
    ],
    "which-split": [
        (["random"] * 5, "recognize the patient"),
        (["group", "random", "random", "group", "random"], "a minute ago"),
        (["group", "random", "time", "group", "group"], "whole class"),
        (["group", "random"], "five words"),
    ],
    "newest": [
        (lambda dates: list(range(6, 8)), "last in the list"),
        (lambda dates: np.argsort(dates)[:2], "oldest"),
        (lambda dates: sorted(dates)[-2:], "returns dates"),
        (lambda dates: np.argsort(dates)[-1], "returns 1 position"),
    ],
    "folds": [
        ((5, 8, 40), "learns from the others"),
        ((10, 36, 40), "one for each series"),
        ((5, 36, 40), "two series"),
        ((5, 32, 200), "must not judge"),
        ((5, 32, 8), "one of the models"),
    ],
    "report": [
        (("C", 10.0), "left to judge"),
        (("B", 9.5), "low partly by luck"),
        (("D", 11.5), "there for choosing"),
        (("B", 10.75), "mean of both"),
    ],
}


def preds(answers):
    "Predictions of two classes: {probability of the first: is that right?}"
    first = torch.tensor(list(answers), dtype=torch.float64)
    probs = torch.stack([first, 1 - first], 1)
    targets = torch.tensor([0 if right else 1 for right in answers.values()])
    losses = -probs[range(len(first)), targets].log()
    return Preds(probs, targets, losses, (), Task("single", ("right", "wrong")))


def test_the_kit_answers_the_same():
    "The kit's own temperature and threshold are those of the solutions."
    softened = apply_temperature(preds({.9: True}), 2)
    assert abs(float(softened.probs[0, 0]) - .75) < 1e-6
    choose = {.95: True, .9: True, .85: True, .8: False, .7: True, .6: False}
    assert threshold_for(preds(choose), error=0) == .85


def test_the_numbers_are_true():
    "What questions and solutions say about the loss is so."
    probs = torch.tensor([.9, .1, .2, .8], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, 1], dtype=torch.float64)
    loss = torch.nn.functional.binary_cross_entropy(probs, labels)
    assert f"{loss:.6f}" == "0.164252"
    assert "0.164" in load_exercises()["lower-loss"].question


def test_all_projects_have_reasons():
    "Each wrong word of `which-split` has a reason of its own."
    for right, reasons in lesson_5._PROJECTS.values():
        assert set(reasons) == {"random", "group", "time"} - {right}
