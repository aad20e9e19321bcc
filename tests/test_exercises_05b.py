"""Answers to the exercises of page 5b, right and wrong; test_exercises.py tries them."""
RIGHT = {
    "which-kind": [
        ["single", "multi", "number", "multi"],
        "single, multi, number, multi",
        {"A": "single", "B": "multi", "C": "number", "D": "multi"},
    ],
    "by-threshold": [3, 3., "3"],
    "mean-answer": [(5 ** .5, 2), [2.236, 2.0]],
}
WRONG = { # answer, and a word of the reason
    "which-kind": [
        (["single", "single", "number", "multi"], "both"),
        (["multi", "multi", "number", "multi"], "exactly one"),
        (["single", "multi", "single", "multi"], "closer"),
        (["single", "multi", "number", "single"], "none of them"),
        (["single", "multi"], "four words"),
    ],
    "by-threshold": [
        (1, "by itself"),
        (2, "0.5"),
        (4, "threshold itself"),
        (.6, "whole number"),
    ],
    "mean-answer": [
        ((5, 2), "square root"),
        ((2, 5 ** .5), "way around"),
        ((0, 0), "cancel"),
        ((5 ** .5, 0), "cancel"),
        ((1, 1), "errors are"),
    ],
}
