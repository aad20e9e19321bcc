"""Answers to the page on networks, right and wrong; test_exercises.py tries them."""
import numpy as np
import torch

LINES = np.array([[-1, -1, -1], [2, 2, 2], [-1, -1, -1]])

RIGHT = {
    "one-sum": [14, "14", torch.tensor([[14.]])],
    "map-size": [(48, 28), [48, 28], np.array([48, 28]), torch.Size([48, 28])],
    "conv-weights": [2400, "2400", 32 * 75.],
    "level-lines": [
        LINES,
        (LINES / 6).tolist(),
        torch.tensor(LINES),
        [[0, -1, 0], [0, 2, 0], [0, -1, 0]],
        [-1, -2, -1, 2, 4, 2, -1, -2, -1],
    ],
}
WRONG = { # answer, and a word of the reason
    "one-sum": [
        (22, "added"),
        (18, "middle"),
        (19, "Multiply first"),
        (34, "all pixels"),
        (0, "sum of the weights"),
        (-14, "you have -14"),
        ((14, 1), "got 2"),
    ],
    "map-size": [
        ((28, 48), "other way round"),
        ((96, 56), "Pooling"),
        ((50, 30), "border"),
        ((47.5, 27.5), "places"),
        ((49, 29), "3 × 3"),
        (48, "got 1 number"),
    ],
    "conv-weights": [
        (800, "one channel"),
        (75, "single filter"),
        (2432, "bias"),
        (864, "3 × 3"),
        (480, "25 places"),
        (7200, "you have 7200"),
    ],
    "level-lines": [
        (np.zeros((3, 3)), "zeros"),
        ([[0] * 3, [1] * 3, [0] * 3], "add up to 3"),
        (LINES.T, "nothing positive"),
        ([[-1] * 3, [-1, 8, -1], [-1] * 3], "upright lines"),
        ([[2] * 3, [-1] * 3, [-1] * 3], "nothing positive"),
        (LINES[:2], "got 6 numbers"),
    ],
}
