"""Answers to lesson 3's exercises, right and wrong; test_exercises.py tries them."""
import math

import numpy as np
import torch

from lessonkit.core.task import Task
from lessonkit.course import lesson_3
from lessonkit.results.preds import Preds
from lessonkit.results.scores import classification_report
from lessonkit.results.selections import most_incorrect, most_uncertain

P_DOG, IS_DOG = np.array(lesson_3.P_DOG), np.array(lesson_3.IS_DOG)


def brighter(pixels):
    return np.clip(pixels.astype(int) + 50, 0, 255).astype(np.uint8)


def brighter_with_torch(pixels):
    return np.uint8(torch.tensor(pixels).float().add(50).clamp(max=255).numpy())


RIGHT = {
    "shape": [(200, 300, 3), np.zeros((200, 300, 3)).shape, torch.Size([200, 300, 3])],
    "brighter": [
        brighter,
        brighter_with_torch,
        lambda pixels: np.minimum(pixels, 205) + np.uint8(50),
    ],
    "log-prob": [.8, math.exp(-.223), np.exp(np.float32(-.223)), "0.8", 80],
    "uncertain": [[2, 7], (7, 2), {2, 7}, np.argsort(np.abs(P_DOG - .5))[:2]],
    "most-incorrect": [[3, 1], torch.tensor([3, 1])],
    "precedence": [[0, 2, 5, 6], {6, 5, 2, 0}, (2, 0, 6, 5)],
    "matrix": [294 / 314, .936, .94, 93.6],
    "findings": [
        ["labels", "background", "size", "pictures"],
        "labels, background, size, pictures",
    ],
    "heat-share": [(.8, 4 / 9), [.8, .44], (80, 44.4)],
}
WRONG = { # answer, and a word of the reason
    "shape": [
        ((300, 200, 3), "rows first"),
        ((3, 200, 300), "colors last"),
        ((200, 300), "gray"),
        (180000, "three numbers"),
        (torch.tensor(3), "three numbers"),
    ],
    "brighter": [
        (lambda pixels: pixels + np.uint8(50), "44"),
        (lambda pixels: pixels.astype(int) + 50, "cut off"),
        (lambda pixels: np.clip(pixels.astype(float) + 50, 0, 255), "float64"),
        (lambda pixels: None, "returns nothing"),
        (50, "function itself"),
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
    "precedence": [
        ([5], "what was meant"),
        ([4, 5], "true and false"),
        ([1, 3, 5, 7], "all the dogs"),
        ([9], "from 0 to 7"),
    ],
    "matrix": [
        (.98, "recall"),
        (574 / 600, "accuracy"),
        (280 / 286, "answer \\*cat"),
        (.49, "all pictures"),
    ],
    "findings": [
        (["labels", "pictures", "size", "background"], "water once more"),
        (["size", "background", "labels", "pictures"], "label isn't"),
        (["labels", "background", "pictures", "size"], "won't help"),
        ("labels", "four words"),
    ],
    "heat-share": [
        ((4 / 9, .8), "way around"),
        ((.2, 4 / 9), "beside"),
        ((.8, .5), "five without"),
        ((.8, .8), "spread evenly"),
    ],
}


def preds():
    "The eight pictures of three of the questions."
    probs = torch.tensor(np.stack([1 - P_DOG, P_DOG], 1), dtype=torch.float32)
    targets = torch.tensor(IS_DOG).long()
    losses = -probs[range(8), targets].log()
    return Preds(probs, targets, losses, (), Task("single", ("cats", "dogs")))


def test_the_kit_answers_the_same():
    "The kit's own selections, for the same predictions, are the solutions."
    assert set(most_uncertain(preds(), 2).tolist()) == {2, 7}
    assert most_incorrect(preds(), "dogs", 2).tolist() == [3, 1]


def test_the_matrix_of_the_question():
    "The kit's precision and recall of such a matrix are those that the feedback tells."
    targets = torch.tensor([0] * 300 + [1] * 300)
    said = torch.tensor([0] * 280 + [1] * 20 + [0] * 6 + [1] * 294)
    probs = torch.nn.functional.one_hot(said, 2).float() * .8 + .1
    losses = -probs[range(600), targets].log()
    table = classification_report(Preds(probs, targets, losses, (), Task("single", ("c", "d"))))
    assert math.isclose(table.loc["d", "precision"], 294 / 314)
    assert math.isclose(table.loc["d", "recall"], .98)


def test_clock_arithmetic():
    "What the hint of `brighter` says of 8 bits, and the second of lesson 3's questions."
    assert np.uint8([250]) + np.uint8(50) == 44
    assert np.uint8([200]) + np.uint8(100) == 44
