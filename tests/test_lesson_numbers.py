"""Numbers that a lesson stores because they took long to compute: they are the benchmark's."""
import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]

# The recipes of lesson 2's last picture, and their rows in the benchmark's table.
RECIPES = {
    "head alone": "head alone",
    "two layers": "two layers",
    "fine_tune(2, keep_best=None)": "fine_tune(2, keep_best=None)",
    "augmented, fine_tune(5)": "varied, fine_tune(5)",
    "head alone, 192 pixels": "head alone, 192 px",
    "augmented, smoothed, fine_tune(8)": "varied, smoothed, fine_tune(8)",
}


def stored_mistakes():
    "{recipe: mistakes of 3,600 by seed} in lesson 2."
    notebook = nbformat.read(ROOT/"nbs/lessons/02_better_model.ipynb", 4)
    source, = [cell.source for cell in notebook.cells if "\nmistakes = {" in cell.source]
    literal = re.search(r"^mistakes = ({.*?})", source, re.M | re.S)[1]
    return ast.literal_eval(literal)


def benchmark_rows():
    "{recipe: (mean, standard deviation)} as they are printed in the results, in percent."
    text = (ROOT/"tests/benchmarks/RESULTS_ACCURACY.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| (.+?) \| 5 \| [\d ]+ \| ([\d.]+)% \| ([\d.]+) \|$", re.M)
    return {m[1]: (m[2], m[3]) for m in row.finditer(text)}


def test_every_recipe_is_known():
    assert set(stored_mistakes()) == set(RECIPES)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_lesson_2_stores_what_the_benchmark_found(recipe):
    shares = [100 * count / 3600 for count in stored_mistakes()[recipe]]
    expected = benchmark_rows()[RECIPES[recipe]]
    assert (f"{statistics.mean(shares):.1f}", f"{statistics.stdev(shares):.2f}") == expected
