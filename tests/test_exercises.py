"""Each exercise of the lessons: a right answer in several forms, and plausible wrong ones with the reason that they get."""
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import test_exercises_02, test_exercises_03, test_exercises_05
from lessonkit import exercises
from lessonkit.exercises import EXERCISES, check, hint, solution
from lessonkit.results.intervals import wilson_interval
from lessonkit.train.schedules import one_cycle

HELD = [f"pug_{i}.jpg" for i in range(40)]
SPOILED = HELD[3:13]

CORRECT_COLOR = {
    "pattern": [r"^\d+-(.+)\.\w+$", re.compile(r"-(.+)\.")],
    "cats": [lambda p: "cat" if p.name[0].isupper() else "dog", lambda p: "dog" if p.name[0].islower() else "cat"],
    "steps": [48, 48., np.int64(48), torch.tensor([48])],
    "one-cycle": [[.0004, .01, .005, 1e-7], np.array([.01 * one_cycle()(p) for p in (0, .25, .625, 1)])],
    "loss": [(.105, 2.303), torch.tensor([.9, .1]).log().neg()],
    "overfitting": [4, "4"],
    "interval": [wilson_interval(24, 240), (.1, .068, .144), [10, 6.8, 14.4]],
    "confused": [("Ragdoll", "Birman"), (2, 0), "Ragdoll Birman"],
    "wrong-labels": [SPOILED, set(SPOILED[:6]), [HELD.index(f) for f in SPOILED], torch.arange(3, 9), [Path("photos", f) for f in SPOILED]],
}
INCORRECT_COLOR = {   # answer -> a word of the reason
    "pattern": [(r"^\d+-.+\.jpg$", "round brackets"), (r"(.+)\.\w+$", "number"), (r"^(.+)_\d+\.jpg$", "not match")],
    "cats": [(lambda p: "cat" if str(p)[0].isupper() else "dog", "path.name|is a cat"), (lambda p: "dog" if p.name[0].isupper() else "cat", "dog for every cat"), (lambda p: p.name[0].isupper(), "True and False")],
    "steps": [(45, "40"), (46.875, "part of a step"), (16, "one epoch")],
    "one-cycle": [([.001, .01, .005, 1e-7], "25"), ([.04, 1, .5, 1e-5], "factors"), ([.0004, .01, .00625, 1e-7], "half-way")],
    "loss": [((2.303, .105), "other way round"), ((.0458, 1), "base 10"), ((.1, .9), "logarithm")],
    "overfitting": [(2, "it is not"), (3, "lowest"), (5, "before")],
    "interval": [(wilson_interval(216, 240), "accuracy"), ((.1, .06205, .13795), "textbook"), (wilson_interval(24, 240, .9), "95%")],
    "confused": [(("Birman", "Ragdoll"), "way round"), (("pug", "pug"), "diagonal"), (("Ragdoll", "Persian"), "larger")],
    "wrong-labels": [(SPOILED[:2], "at least five"), (HELD[20:30], "0 have"), (HELD, "10 have"), ([99], "Positions"), (["cat.jpg"], "no `cat.jpg`")],
}
for later in (test_exercises_02, test_exercises_03, test_exercises_05):
    CORRECT_COLOR |= later.RIGHT
    INCORRECT_COLOR |= later.WRONG


@pytest.fixture(autouse=True)
def files(monkeypatch):
    "Nothing is drawn for this."
    monkeypatch.setattr(exercises, "_lesson_files", lambda: (HELD, {f: "beagle" for f in SPOILED}))


def test_each_has_its_answers(): assert set(CORRECT_COLOR) == set(INCORRECT_COLOR) == set(EXERCISES) and all(len(v) >= 2 for v in INCORRECT_COLOR.values())


@pytest.mark.parametrize("name, answer", [(n, a) for n, answers in CORRECT_COLOR.items() for a in answers])
def test_right(name, answer): assert check(name, answer), check(name, answer)


@pytest.mark.parametrize("name, answer, why", [(n, *a) for n, answers in INCORRECT_COLOR.items() for a in answers])
def test_wrong(name, answer, why):
    said = check(name, answer)
    assert said.kind == "wrong" and re.search(why, said.text), said


@pytest.mark.parametrize("name", list(CORRECT_COLOR))
@pytest.mark.parametrize("answer", [None, "", [], object(), float("nan"), {"a": "b"}, lambda: 1, b"x", [[1, 2], [3, "x"]]], ids=lambda a: type(a).__name__)
def test_nothing_makes_it_stumble(name, answer):
    assert check(name, answer).kind == "wrong"


@pytest.mark.parametrize("name", list(CORRECT_COLOR))
def test_open_hints_and_solution(name):
    assert check(name).kind == check(name, ...).kind == "open" and EXERCISES[name].question in repr(check(name))
    said = [hint(name, i + 1).text for i in range(len(EXERCISES[name].hints))]
    assert len(said) >= 2 and len(set(said)) == len(said) and solution(name).text
    for feedback in (check(name), hint(name), solution(name), check(name, CORRECT_COLOR[name][0])):
        html = feedback._repr_html_()
        assert html.count("<div") == html.count("</div>") and html.count("<span") == html.count("</span>") and "`" not in html


@pytest.mark.parametrize("ask", [check, hint, solution])
def test_unknown_name(ask):
    with pytest.raises(ValueError, match="no exercise 'nope'; there are: pattern, cats"): ask("nope")


def test_lessons_ask_them_all():
    for number in {e.lesson for e in EXERCISES.values()}:
        lesson, = (Path(__file__).parents[1] / "nbs/lessons").glob(f"{number:02}_*.ipynb")
        code = "\n".join(c.source for c in nbformat.read(lesson, 4).cells if c.cell_type == "code")
        for e in EXERCISES.values():
            if e.lesson == number: assert re.search(rf"check\(\s*['\"]{e.name}['\"]", code), e.name
