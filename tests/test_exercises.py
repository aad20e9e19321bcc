"""Every exercise: right answers in several forms, and plausible wrong ones with their reasons.

The answers are in test_exercises_01.py and so on, one file for each lesson.
"""
import ast
import inspect
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import test_exercises_01
import test_exercises_01b
import test_exercises_02
import test_exercises_02b
import test_exercises_03
import test_exercises_04
import test_exercises_05
import test_exercises_05b
import test_exercises_06
import lessonkit.all as kit
from lessonkit.course import exercises, lesson_1
from lessonkit.course.exercises import check, hint, solution

EXERCISES = exercises.load_exercises()
RIGHT, WRONG = {}, {}
LESSONS = (test_exercises_01, test_exercises_01b, test_exercises_02, test_exercises_02b,
           test_exercises_03, test_exercises_04, test_exercises_05, test_exercises_05b,
           test_exercises_06)
for lesson in LESSONS:
    RIGHT |= lesson.RIGHT
    WRONG |= lesson.WRONG

MALFORMED = [
    None, "", [], object(), float("nan"), {"a": "b"}, lambda: 1, b"x", [[1, 2], [3, "x"]],
]


@pytest.fixture(autouse=True)
def files(monkeypatch):
    "Pictures that need not be drawn."
    truth = {file: "beagle" for file in test_exercises_01.SPOILED}
    monkeypatch.setattr(lesson_1, "lesson_files", lambda: (test_exercises_01.FILES, truth))


def test_each_has_its_answers():
    assert set(RIGHT) == set(WRONG) == set(EXERCISES)
    assert all(len(answers) >= 2 for answers in WRONG.values())


@pytest.mark.parametrize("name, answer", [(n, a) for n, answers in RIGHT.items() for a in answers])
def test_right(name, answer):
    assert check(name, answer), check(name, answer)


@pytest.mark.parametrize(
    "name, answer, reason", [(n, *a) for n, answers in WRONG.items() for a in answers])
def test_wrong(name, answer, reason):
    said = check(name, answer)
    assert said.kind == "wrong"
    assert re.search(reason, said.text), said


@pytest.mark.parametrize("name", list(RIGHT))
@pytest.mark.parametrize("answer", MALFORMED, ids=lambda a: type(a).__name__)
def test_malformed_answers_never_raise(name, answer):
    assert check(name, answer).kind == "wrong"


@pytest.mark.parametrize("name", list(RIGHT))
def test_open_hints_and_solution(name):
    assert check(name).kind == check(name, ...).kind == "open"
    assert EXERCISES[name].question in repr(check(name))
    hints = [hint(name, i + 1).text for i in range(len(EXERCISES[name].hints))]
    assert len(hints) >= 2
    assert len(set(hints)) == len(hints)
    assert solution(name).text


@pytest.mark.parametrize("name", list(RIGHT))
def test_html_is_balanced(name):
    for feedback in (check(name), hint(name), solution(name), check(name, RIGHT[name][0])):
        html = feedback._repr_html_()
        assert html.count("<div") == html.count("</div>")
        assert html.count("<span") == html.count("</span>")
        assert "`" not in html


@pytest.mark.parametrize("name", list(RIGHT))
def test_texts_are_whole(name):
    "No heading is left in a paragraph, and none begins with the indentation of the docstring."
    asked = EXERCISES[name]
    for text in (asked.question, *asked.hints, asked.solution, asked.praise):
        assert text
        assert not re.search(r"\b(Hint|Solution|Right): ", text)
        for paragraph in text.split("\n\n"):
            code = paragraph.startswith("    ")
            assert code or ("\n" not in paragraph and "  " not in paragraph), paragraph


@pytest.mark.parametrize("ask", [check, hint, solution])
def test_unknown_name(ask):
    message = "no exercise 'nope'; there are: pattern, cats"
    with pytest.raises(ValueError, match=message): ask("nope")


def test_lessons_ask_them_all():
    lessons = Path(__file__).parents[1] / "nbs/lessons"
    for name, asked in EXERCISES.items():   # in the lesson, or in a page beside it such as 02b
        notebooks = sorted(lessons.glob(f"{asked.lesson:02}*_*.ipynb"))
        cells = [cell for notebook in notebooks for cell in nbformat.read(notebook, 4).cells]
        code = "\n".join(c.source for c in cells if c.cell_type == "code")
        assert re.search(rf"check\(\s*['\"]{name}['\"]", code), name


def test_check_needs_no_import_of_a_lesson():
    "In a fresh Python, `check` finds an exercise of any lesson."
    code = ("from lessonkit.course.exercises import EXERCISES, check\n"
            "assert not EXERCISES\n"
            "assert check('restarts', [15, 45]) and check('steps', 48)")
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


# ---- the code in hints and solutions

# What a reader has at hand when they read a hint: their learner, and what the lesson has made.
AT_HAND = dict(p_dog=np.array([.98, .3, .55, .04]), is_dog=np.array([False, True, False, True]),
               files=[Path("IMG_20240501_101500.jpg")])


def texts_of(asked):
    return [*asked.hints, asked.solution, asked.praise]


def blocks(asked):
    "The blocks of code in an exercise's texts."
    for text in texts_of(asked):
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("    "): yield textwrap.dedent(paragraph)


def methods(asked):
    "The calls of a learner's or a data set's methods in an exercise's texts, with keywords."
    for text in texts_of(asked):
        for code in [*re.findall(r"`([^`]+)`", text), *blocks(asked)]:
            try: tree = ast.parse(code.strip())
            except SyntaxError: continue   # a piece of code, such as `^` or `.jpg`
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call): continue
                owner, _, name = ast.unparse(node.func).rpartition(".")
                if owner in ("learn", "data"): yield owner, name, {k.arg for k in node.keywords}


@pytest.mark.parametrize("name", list(EXERCISES))
def test_methods_in_hints_and_solutions_exist(name):
    for owner, method, keywords in methods(EXERCISES[name]):
        found = getattr(dict(learn=kit.Learner, data=kit.ImageData)[owner], method, None)
        assert found is not None, f"{owner}.{method}"
        assert keywords <= set(inspect.signature(found).parameters), f"{owner}.{method}"


@pytest.mark.parametrize("name", list(EXERCISES))
def test_code_in_solutions_runs(name):
    "But for lines that need the lesson's learner."
    known = vars(kit) | dict(math=math, np=np, torch=torch) | AT_HAND
    for code in blocks(EXERCISES[name]):
        if not re.search(r"\blearn\b|\btop\b", code): exec(code, known)
