"""Names of classes and files of any kind, through tables, pictures, messages and spreadsheets."""
import io
import json
import os
import warnings
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from matplotlib.text import Text
from PIL import Image

from lessonkit.core.names import (
    escape_name, find_class, printable, spreadsheet_cell, unescape_name, write_csv,
)
from lessonkit.core.task import Task
from lessonkit.data.duplicates import find_duplicates
from lessonkit.plot.batches import label_lines
from lessonkit.plot.figures import CORRECT_COLOR, contrast, INCORRECT_COLOR, show_images
from lessonkit.plot.pictures import (
    plot_cell, plot_duplicates, plot_most_incorrect, plot_top_losses, show_results,
)
from lessonkit.plot.scores import (
    plot_confusion_matrix, plot_precision_recall, plot_reliability, plot_risk_coverage, plot_roc,
)
from lessonkit.results.preds import Preds
from lessonkit.results.scores import classification_report, most_confused, precision_recall, roc
from tiers import examples

LATIN = os.fsdecode(b"caf\xe9")
STRANGE = {
    "dollars": ("$5", "$10"), "math": (r"$\frac{a}$", r"$\R$"), "percent": ("100%", "a_b_%s"),
    "hidden": ("_x", "_y"), "braces": ("{0}", "{x!r}"), "backslash": ("a\\b", "\\"),
    "lines": ("a\nb", "c\rd\te"), "latin": (LATIN, "tea"), "half": ("\ud800", "b"),
    "html": ("<img src=x onerror=alert(1)>", '"&\''), "emoji": ("\N{GRINNING FACE}", "b"),
    "cjk": ("\N{CJK UNIFIED IDEOGRAPH-72AC}", "\N{CJK UNIFIED IDEOGRAPH-732B}"),
    "long": ("x" * 300, "y" * 300), "formula": ("=1+1", "-2"), "bidi": ("\u202egpj", "b"),
    "odd": ("", " "), "control": ("a\x00b", "\x1b[31m"),
}


@pytest.fixture
def four(tmp_path):
    "Files, some with names that aren't UTF-8."
    files = []
    for i, stem in enumerate(("a", "$b$", LATIN, "=1+1")):
        files.append(tmp_path / f"{stem}.png")
        Image.new("RGB", (40, 30), (60 * i, 90, 120)).save(files[-1])
    return tuple(files)


def predictions(classes, paths=()):
    probs = torch.tensor([[.9, .1], [.2, .8], [.7, .3], [.4, .6]])
    y = torch.tensor([1, 0, 0, 1])
    return Preds(probs, y, -probs[range(4), y].log(), tuple(paths), Task("single", classes))


# --- names in, names out

@pytest.mark.parametrize("classes", [
    ("cat", "dog"), (0, 1), (1, 2), (1, 0), (False, True), (True, False), ("1", "2"),
    ("True", "False"), ("class", "probs"),
])
def test_what_one_function_returns_the_next_one_takes(classes, four):
    p = predictions(classes, four)
    pairs = most_confused(p)
    assert {(a, b) for a, b, _ in pairs} == {classes, classes[::-1]}
    for a, b, n in pairs:
        assert [type(a), type(b), n] == [type(classes[0])] * 2 + [1]
        assert plot_cell(p, a, b).alt.startswith(f"1 image ({a} predicted as {b}, 1 of 1)")
        assert f"(Most incorrect: {a}, 1 of 1)" in plot_most_incorrect(p, a).alt
    for positive in classes:
        for curve in (roc(p, positive), precision_recall(p, positive)):
            assert type(curve.positive) is type(positive)
            assert curve.positive == positive
        assert repr(positive) in plot_roc(p, positive).alt
        assert repr(positive) in plot_precision_recall(p, positive).alt
    assert classification_report(p).index.tolist() == list(classes)
    if classes != ("class", "probs"):
        for i, name in enumerate(classes):
            assert p.submission(label=name)["label"].tolist() == p.probs[:, i].tolist()


@pytest.mark.parametrize("classes, label", [
    ((1, 2), 0), ((1, 2), "1"), ((1, 2), True), ((0, 1), False), ((False, True), 1),
    (("1", "2"), 1), (("cat", "dog"), 0), (("cat", "dog"), "Cat"), ((1, 2), 1.0), ((1, 2), None),
])
def test_a_position_or_another_type_is_no_name(classes, label, four):
    p = predictions(classes, four)
    functions = [lambda: plot_most_incorrect(p, label), lambda: plot_cell(p, classes[0], label)]
    if label is not None: functions += [lambda: plot_roc(p, label), lambda: roc(p, label)]
    for function in functions:
        with pytest.raises(ValueError, match="there is no class .*such as"): function()
    with pytest.raises(ValueError, match="one of the classes"): p.submission(label=label)


def test_keywords_of_a_submission_win_over_classes(four):
    p = predictions(("class", "probs"), four)
    assert p.submission()["label"].tolist() == ["class", "probs", "class", "probs"]
    assert p.submission(label="probs").columns.tolist() == ["id", "class", "probs"]


def test_numbers_of_numpy_are_names():
    assert find_class((1, 2), np.int8(2)) == find_class((1, 2), torch.tensor(2)) == 1
    assert find_class((False, True), np.bool_(True)) == 1


@pytest.mark.parametrize("names", [(1, 2), (False, True), ("$", "%")])
def test_several_labels_that_are_no_words(names):
    task = Task("multi", names)
    assert label_lines(task, torch.ones(2)) == f"{names[0]}\n{names[1]}"
    assert label_lines(task, torch.zeros(2)) == "(none)"


# --- pictures, and the words that describe them

def drawings(p):
    return [
        show_results(p), plot_top_losses(p), plot_confusion_matrix(p), plot_roc(p),
        plot_confusion_matrix(p, normalize=True), plot_precision_recall(p), plot_reliability(p),
        plot_risk_coverage(p), plot_cell(p, *p.classes[:2]),
        plot_roc({p.classes[0]: p, p.classes[1]: p}),
        plot_reliability({p.classes[0]: p, p.classes[1]: p}),
        show_images(p.paths, p.classes * 2, suptitle=p.classes[0]),
    ]


def texts_with(fig, name):
    return [t for t in fig.findobj(Text) if printable(name) in t.get_text()]


@pytest.mark.parametrize("kind", STRANGE)
def test_pictures_show_names_as_they_are(kind, four):
    p = predictions(STRANGE[kind], four)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyphs are missing for")
        figures = drawings(p)
        for fig in figures:
            html = fig.html()
            json.dumps({"alt": fig.alt, "html": html}, ensure_ascii=False).encode()
            assert fig.alt.isprintable() or "\xa0" in fig.alt
            assert html.count("<") == 1  # names are escaped
    matrix, curve, named = figures[2], figures[3], figures[9]
    for shown, i in ((matrix, 0), (matrix, 1), (curve, 1), (named, 0)):
        assert texts_with(shown, printable(p.classes[i])[:8])
    for fig in figures:
        for text in texts_with(fig, printable(p.classes[0])[:8] or "area"):
            assert not text._preprocess_math(text.get_text())[1]
            assert not text.get_usetex()


def test_names_that_begin_with_a_line_are_in_the_legend(four):
    p = predictions(("a", "b"), four)
    names = [t.get_text() for t in plot_roc({"_x": p, "y": p}).legends[0].get_texts()]
    assert sum("_x: area" in name for name in names) == 1


def test_missing_letters_are_named_once(four):
    from lessonkit.plot import figures
    fig = show_images(four[:1], ["\U0001f9ff\U0001f9ff"])
    have = figures._fonts_for(frozenset("\U0001f9ff"))[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fig.image()
    messages = [str(w.message) for w in caught]
    assert not any("missing from" in m for m in messages)
    assert any("Glyphs are missing for" in m for m in messages) != bool(have)


def test_words_in_color_have_enough_contrast():
    "4.5 is the least for text (WCAG 2, level AA), on light pages and on dark ones."
    for color in (CORRECT_COLOR, INCORRECT_COLOR):
        assert min(contrast(color, "white"), contrast(color, "black")) >= 4.5


# --- tables

@pytest.mark.parametrize("kind", STRANGE)
def test_tables_survive_and_can_be_read_back(kind, tmp_path, four):
    p = predictions(STRANGE[kind], four)
    path = p.to_csv(tmp_path / "p.csv")
    with redirect_stdout(io.StringIO()) as out:
        print(p.to_frame(), classification_report(p), most_confused(p))
    out.getvalue().encode()
    p.to_frame(probs=True).to_html().encode()
    if kind == "control": return  # pandas ends a cell at a zero byte
    table = pd.read_csv(path, keep_default_na=False)
    assert [unescape_name(name) for name in table.file] == [f.name for f in four]
    assert [unescape_name(name) for name in table.actual] == [p.classes[i] for i in p.targets]
    assert table.probability.tolist() == p.to_frame().probability.tolist()
    answers = p.submission(tmp_path / "s.csv", ext=True)
    assert [unescape_name(name) for name in answers.id] == [f.name for f in four]
    back = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    assert back.label.tolist() == answers.label.tolist()


@examples(200)
@given(st.text(st.sampled_from("a\\xu5cde89\udce9\udcff\udc80\ud800\udfff\n\xe9")))
def test_there_is_a_way_back(name):
    escape_name(name).encode()
    assert unescape_name(escape_name(name)) == name
    assert printable(name) == printable(printable(name))


FORMULAS = ("=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "=cmd|' /C calc'!A0",
            "\N{FULLWIDTH EQUALS SIGN}1", "'=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_a_formula_in_a_spreadsheet(text, tmp_path, four):
    p = predictions((text, "b"), four)
    path = p.to_csv(tmp_path / "p.csv", spreadsheet=True)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    table = pd.read_csv(path, encoding="utf-8-sig", keep_default_na=False)
    for column in table.columns:
        for cell in [column, *table[column]]:
            if isinstance(cell, str): assert not cell.lstrip().startswith(FORMULAS[:7] + ("=",))
    assert [a.removeprefix("'") for a in table.actual[:1]] == ["b"]
    assert [a[1:] for a in table.actual[1:3]] == [text] * 2


def test_numbers_are_never_changed_for_a_spreadsheet(tmp_path):
    table = pd.DataFrame({"x": [-.5, 1e-9], "n": [-3, 4], "b": [True, False], "t": ["-.5", "a"]})
    write_csv(table, tmp_path / "t.csv", spreadsheet=True)
    back = pd.read_csv(tmp_path / "t.csv", encoding="utf-8-sig")
    assert back[["x", "n", "b"]].equals(table[["x", "n", "b"]])
    assert back.t.tolist() == ["'-.5", "a"]
    assert spreadsheet_cell(-.5) == -.5


# --- many copies

def test_many_links_to_one_image(tmp_path):
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "image.png")
    (tmp_path / "links").mkdir()
    for k in range(500): os.link(tmp_path / "image.png", tmp_path / "links" / f"{k:03}.png")
    links = sorted((tmp_path / "links").iterdir())
    for near in (None, 6):
        table = find_duplicates(links, near=near)
        assert len(table) == 499
        assert set(table.a) == {links[0]}
    assert "one of 499 copies" in plot_duplicates(table, 1).alt
    split = find_duplicates({"valid": links[:200], "train": links[200:] * 2}, near=None)
    across = split[split.split_a != split.split_b]
    assert {*across.a, *across.b} == set(links)
    assert len(split) < 2 * 800


def test_many_images_that_look_the_same(tmp_path):
    "The same pixels in files that differ: their hashes are equal, and grow no table of all pairs."
    image = Image.effect_noise((40, 40), 90).convert("RGB")
    for k in range(60): image.save(tmp_path / f"{k:02}.png", pnginfo=comment(k))
    table = find_duplicates(sorted(tmp_path.iterdir()))
    assert len(table) == 59
    assert set(table.kind) == {"near"}
    assert set(table.distance) == {0}


def comment(k):
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    info.add_text("number", str(k))
    return info
