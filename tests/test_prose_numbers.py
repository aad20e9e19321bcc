"""Numbers in the lessons' text are those of their outputs (tools/prose_numbers.py)."""
import csv
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import prose_numbers

ROOT = Path(__file__).resolve().parents[1]


def page(text, printed="", code="x = 1", html=""):
    "A notebook with one paragraph and one cell of code with its output."
    data = {"text/plain": "a figure", "text/html": html}
    outputs = [new_output("stream", text=printed), new_output("display_data", data=data)]
    return new_notebook(cells=[new_markdown_cell(text), new_code_cell(code, outputs=outputs)])


def project(folder, nb, rows=()):
    "A project with this lesson and this table of sources."
    (folder / "nbs/lessons").mkdir(parents=True)
    (folder / "tools").mkdir()
    nbformat.write(nb, folder / "nbs/lessons/01_page.ipynb")
    with (folder / prose_numbers.TABLE).open("w", newline="") as file:
        csv.writer(file).writerows([("page", "number", "source"), *rows])
    return folder


def test_every_number_in_a_lesson_has_its_source():
    assert prose_numbers.problems(ROOT) == []


@pytest.mark.parametrize("text, printed", [
    ("12.1% were wrong", "error 12.1% (8.1% to 17.0%)"),
    ("12% were wrong", "error 12.14%"),
    ("12 percent were wrong", "0.1214"),
    ("a loss of 0.61", "0.6098"),
    ("a loss of .61", "0.6098"),
    ("a rate of 3.6e-3", "0.00363"),
    ("1.4 points better", "0.0138"),
    ("22,426.5 images", "22426.5"),
    ("no number at all, but 4 legs", ""),
])
def test_rounded_numbers_are_found(text, printed, tmp_path):
    assert prose_numbers.problems(project(tmp_path, page(text, printed))) == []


@pytest.mark.parametrize("text, printed", [
    ("12.1% were wrong", "error 12.4%"),
    ("12% were wrong", "error 12.6%"),
    ("a loss of 0.61", "0.6151"),
    ("a loss of 0.61", "61"),
    ("a rate of 3.6e-3", "0.0041"),
    ("1.4 points better", ""),
])
def test_other_numbers_are_not(text, printed, tmp_path):
    problem, = prose_numbers.problems(project(tmp_path, page(text, printed)))
    assert "01_page, cell 0" in problem


def test_code_tables_and_descriptions_of_pictures_count(tmp_path):
    table = "<table><tr><td>7.25</td></tr></table>"
    html = table + '<img alt="a cat: 0.81" src="data:image/png;base64,9.99">'
    nb = page("of 7.25, 0.81 and 0.003", html=html, code="rate = 3e-3")
    assert prose_numbers.problems(project(tmp_path, nb)) == []


def test_what_pictures_are_made_of_does_not(tmp_path):
    nb = page("of 9.99", html='<img alt="" src="data:image/png;base64,9.99">')
    assert len(prose_numbers.problems(project(tmp_path, nb))) == 1


def test_code_formulas_and_links_are_no_prose(tmp_path):
    text = "`lr=0.25`, $0.75$, [a paper](https://x.org/1706.04599), <b style='width:1.5em'>b</b>"
    assert prose_numbers.problems(project(tmp_path, page(text))) == []


def test_the_table_explains_and_is_kept_short(tmp_path):
    rows = [("01_page", "12.1%", "RESULTS_ACCURACY.md, five seeds"), ("01_page", "9%", "gone"),
            ("01_page", "3.5", "?")]
    found = prose_numbers.problems(project(tmp_path, page("12.1% and 3.5"), rows))
    assert [problem.split(": ")[1] for problem in found] == [
        "01_page has no '9%' any more", "01_page, '3.5' has no source"]
