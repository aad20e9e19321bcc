"""Answers to the exercises of page 2b, right and wrong; test_exercises.py tries them."""
RIGHT = {
    "cut-off": [(25, 25), [.25, .25], {"crop": 25, "pad": 25.}],
    "flips": [
        ["mirror", "none", "all"],
        ("mirror", "none", "all"),
        {"pets": "mirror", "letters": "none", "fields": "all"},
        "mirror none all",
    ],
    "untrue-labels": [["B", "C", "E"], "b, c, e", {"C", "E", "B"}, "B, C and E"],
}
WRONG = { # answer, and a word of the reason
    "cut-off": [
        ((75, 75), "What is lost"),
        ((25, 75), "covers"),
        ((.75, .25), "what it keeps"),
        ((25, 100 / 3), "whole square"),
        ((25, 0), "first is right"),
        ((0, 25), "Draw both"),
    ],
    "flips": [
        (["mirror", "mirror", "all"], "it is a d"),
        (["all", "none", "all"], "ceiling"),
        ("none none none", "counts twice"),
        (["yes", "no", "yes"], "three words"),
    ],
    "untrue-labels": [
        ("A, B, C, E", "mirrored dog"),
        (["B", "C", "D", "E"], "another light"),
        ("B, C", "hands"),
        ("B, E", "percentage"),
        ("C, E", "mirror do"),
        ("none", "Expected letters"),
    ],
}
