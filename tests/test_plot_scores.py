"""Diagrams of scores: the numbers drawn are the numbers counted, names and call-outs never cover each other, words for those who don't see it."""
import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from lessonkit import plot_scores as S
from lessonkit.interpret import confusion_matrix
from lessonkit.predict import Preds

NAMES = ["staffordshire_bull_terrier", "american_pit_bull_terrier", "British_Shorthair"] + [f"breed_{i:03}" for i in range(120)]


def made(n=30, c=5, seed=0, skill=2., targets=True):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=g)
    scores = torch.randn(n, c, generator=g)
    scores[range(n), y] += skill
    probs = scores.softmax(1)
    losses = -probs[range(n), y].log()
    return Preds(probs, y if targets else None, losses if targets else None, (), tuple(NAMES[:c]), "single")


def counted(cm, names=None):
    "Predictions with this confusion matrix."
    c = len(cm)
    y, said = (torch.tensor([pair[k] for pair in np.ndindex(c, c) for _ in range(cm[pair])]) for k in (0, 1))
    return Preds(torch.eye(c)[said], y, None, (), tuple(names or NAMES[:c]), "single")


def drawn(fig, ax=0):
    "The values in the colours of a matrix."
    return sum(np.ma.filled(image.get_array(), 0) for image in fig.axes[ax].images)


def numbers(ax): return [t for t in ax.texts if t.get_text()]


def framed(ax): return [(round(p.get_y() + .5), round(p.get_x() + .5)) for p in ax.patches]


def names(axis): return [t.get_text() for t in axis.get_ticklabels()]


def boxes(texts): return [t.get_window_extent() for t in texts]


def apart(boxes, by=0):
    "No two of these boxes overlap by more than `by` dots."
    return not any(a.x0 < b.x1 - by and b.x0 < a.x1 - by and a.y0 < b.y1 - by and b.y0 < a.y1 - by for i, a in enumerate(boxes) for b in boxes[:i])


# --- what all have in common

def pictures():
    return {"matrix2": S.plot_confusion_matrix(made(300, 2)), "matrix12": S.plot_confusion_matrix(made(300, 12)),
            "matrix37": S.plot_confusion_matrix(made(1478, 37, skill=3)), "shares37": S.plot_confusion_matrix(made(1478, 37, skill=3), True),
            "matrix100": S.plot_confusion_matrix(made(5000, 100, skill=4)), "shares100": S.plot_confusion_matrix(made(5000, 100, skill=3), True)}


def test_every_picture_is_small_has_words_and_is_no_open_figure():
    from matplotlib import pyplot
    before = pyplot.get_fignums()
    for name, fig in pictures().items():
        mime, file = fig.image()
        assert mime == "image/png" and len(file) <= 37_000 and fig.dpi == 60, (name, len(file))
        shown = io.BytesIO()
        fig.savefig(shown, dpi=60, bbox_inches="tight")
        assert Image.open(io.BytesIO(file)).size == Image.open(shown).size, name   # it needed no shrinking
        assert len(fig.alt) > 40, name
    assert pyplot.get_fignums() == before


def test_matplotlib_is_drawn_without_pyplot():
    code = "import sys, lessonkit.plot_scores; print('matplotlib.pyplot' in sys.modules, 'pandas' in sys.modules, 'sklearn' in sys.modules, 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]*4


# --- the confusion matrix

def contrast(a, b):
    hi, lo = sorted([S._light(a), S._light(b)], reverse=True)
    return (hi + .05)/(lo + .05)


@settings(max_examples=10, deadline=None)
@given(c=st.integers(2, 40), seed=st.integers(0, 99), normalize=st.booleans(), cmap=st.sampled_from([None, "Blues", "viridis"]), dark=st.booleans())
def test_matrix_cells(c, seed, normalize, cmap, dark):
    p = made(10*c, c, seed)
    with style.context("dark_background" if dark else "default"): fig = S.plot_confusion_matrix(p, normalize, cmap=cmap)
    cm, ax = confusion_matrix(p), fig.axes[0]
    values = 100*cm/np.maximum(cm.sum(1, keepdims=True), 1) if normalize else cm
    assert np.allclose(drawn(fig), values) and (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted", "Actual")
    assert len(ax.images) == (2 if cmap is None else 1) and all(i.get_array().mask[cm == 0].all() for i in ax.images)   # empty cells stay empty
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in numbers(ax)}
    assert set(cells) == set(zip(*(a.tolist() for a in np.nonzero(cm))))
    for (i, j), t in cells.items():
        v = values[i, j]
        assert t.get_text() == ("<1" if 0 < v < 1 else ">99" if normalize and 99 < v < 100 else f"{v:.0f}") and t.get_fontsize() >= 7.5
        image = ax.images[0 if cmap or i == j else 1]
        cell = image.cmap(image.norm(v))[:3]
        assert contrast(t.get_color(), cell) >= 4.5 and contrast(t.get_color(), cell) == max(contrast("white", cell), contrast("black", cell))
    assert names(ax.xaxis) == NAMES[:c]
    assert names(ax.yaxis) == ([f"{n} ({k})" for n, k in zip(NAMES, cm.sum(1))] if normalize else NAMES[:c])


def test_matrix_numbers_stay_in_their_cells():
    for c, normalize in ((2, False), (12, True), (37, True)):
        fig = S.plot_confusion_matrix(made(3000, c, skill=1), normalize)
        ax = fig.axes[0]
        fig.draw_without_rendering()
        side = ax.get_window_extent().width/c
        for t, b in zip(numbers(ax), boxes(numbers(ax))): assert b.width <= side and b.height <= 1.3*side, (c, t.get_text())


@pytest.mark.parametrize("c, normalize, figsize", [(2, True, None), (12, True, None), (37, False, None), (37, True, (5, 5)), (100, True, None), (100, False, (5, 5))])
def test_matrix_names_do_not_overlap(c, normalize, figsize):
    fig = S.plot_confusion_matrix(made(3000, c, skill=4), normalize, figsize=figsize)
    fig.draw_without_rendering()
    for axis in (fig.axes[0].xaxis, fig.axes[0].yaxis): assert apart(boxes(axis.get_ticklabels()), 2)
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= fig.bbox.x1 + 1 for b in boxes(fig.axes[0].get_yticklabels() + fig.axes[0].get_xticklabels()))


def test_names_of_two_classes_lie_and_long_ones_stand():
    turned = lambda names: {t.get_rotation() for t in S.plot_confusion_matrix(counted(np.eye(2, dtype=int)*9, names)).axes[0].get_xticklabels()}
    assert turned(["cat", "dog"]) == {0} and turned(["cat", "american_pit_bull_terrier"]) == {90}


def test_matrix_of_many_classes_calls_out_the_largest():
    cm = np.eye(100, dtype=int)*30
    for (i, j), n in {(7, 70): 9, (80, 8): 5, (50, 51): 1, (3, 4): 1}.items(): cm[i, j] = n
    fig = S.plot_confusion_matrix(counted(cm))
    ax = fig.axes[0]
    assert framed(ax) == [(7, 70), (80, 8)] and [t.get_text() for t in numbers(ax)] == ["9", "5"]   # a confusion that happened once is none to call out
    assert {NAMES[7], NAMES[80]} <= set(names(ax.yaxis)) and {NAMES[70], NAMES[8]} <= set(names(ax.xaxis))
    bold = lambda axis: {t.get_text() for t in axis.get_ticklabels() if t.get_fontweight() == "bold"}
    assert (bold(ax.yaxis), bold(ax.xaxis)) == ({NAMES[7], NAMES[80]}, {NAMES[70], NAMES[8]})
    assert fig.alt == f"confusion matrix of 100 classes, 3000 of 3016 right; most confused (actual as predicted): {NAMES[7]} as {NAMES[70]} 9; {NAMES[80]} as {NAMES[8]} 5"
    assert framed(S.plot_confusion_matrix(counted(cm), callouts=1).axes[0]) == [(7, 70)]
    cm[7, 70] = cm[80, 8] = 1
    assert len(framed(S.plot_confusion_matrix(counted(cm)).axes[0])) == 4   # where nothing happened twice, what happened once


def test_shares_call_out_the_largest_shares():
    cm = np.eye(100, dtype=int)*40
    cm[7, 70], cm[80, 8] = 9, 5
    cm[80, 80], cm[60, 60], cm[60, 6] = 5, 0, 1
    fig = S.plot_confusion_matrix(counted(cm), normalize=True)
    assert framed(fig.axes[0]) == [(80, 8), (7, 70)] and [t.get_text() for t in numbers(fig.axes[0])] == ["50", "18"]   # one of one is no 100% worth a frame
    assert f"{NAMES[80]} as {NAMES[8]} 5 of 10; {NAMES[7]} as {NAMES[70]} 9 of 49" in fig.alt
    assert f"{NAMES[80]} (10)" in names(fig.axes[0].yaxis)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), c=st.integers(80, 100), crowd=st.integers(3, 12), corner=st.integers(0, 90), figsize=st.sampled_from([None, (6, 6), (9, 5)]))
def test_call_outs_never_cover_each_other(seed, c, crowd, corner, figsize):
    "Confusions all in one small crowd of classes, anywhere along the diagonal."
    rng, cm, at = np.random.default_rng(seed), np.eye(c, dtype=int)*20, min(corner, c - crowd)
    cm[at:at + crowd, at:at + crowd] += rng.integers(0, 15, (crowd, crowd))
    fig = S.plot_confusion_matrix(counted(cm), figsize=figsize)
    ax = fig.axes[0]
    fig.draw_without_rendering()
    said, frames = boxes(numbers(ax)), [p.get_window_extent() for p in ax.patches]
    off = sorted((cm[i, j] for i in range(c) for j in range(c) if i != j and cm[i, j] > 1), reverse=True)
    largest = off[:min(10, len(off))]
    assert sorted((cm[at] for at in framed(ax)), reverse=True) == largest[:len(frames)] and len(frames) >= min(len(largest), 6)
    assert all(int(t.get_text()) in largest for t in numbers(ax)) and len(said) >= .8*len(frames)
    assert apart(said) and all(not a.overlaps(b) for a in said for b in frames)
    assert all(ax.bbox.x0 - 1 <= b.x0 and b.x1 <= ax.bbox.x1 + 1 and ax.bbox.y0 - 1 <= b.y0 and b.y1 <= ax.bbox.y1 + 1 for b in said)
    assert {NAMES[i] for i, j in framed(ax)} <= set(names(ax.yaxis)) and {NAMES[j] for i, j in framed(ax)} <= set(names(ax.xaxis))
    for axis in (ax.xaxis, ax.yaxis): assert apart(boxes(axis.get_ticklabels()), 2)


@settings(max_examples=50, deadline=None)
@given(at=st.lists(st.integers(0, 99), min_size=1, max_size=10, unique=True), gap=st.floats(.5, 9))
def test_spread_places_are_apart_inside_and_stay_where_they_can(at, gap):
    at = sorted(at)
    places = S._spread(at, gap, 0, 99)
    assert (np.diff(places) >= gap - 1e-9).all() and places[0] >= 0 and places[-1] <= 99 + 1e-9
    if (np.diff(at) >= gap).all(): assert np.allclose(places, at)


def test_matrix_rows_without_items():
    fig = S.plot_confusion_matrix(counted(np.diag([2, 1, 0])), normalize=True)
    assert np.isfinite(drawn(fig)).all() and (drawn(fig) == np.diag([100, 100, 0])).all() and [t.get_text() for t in numbers(fig.axes[0])] == ["100", "100"]
    assert names(fig.axes[0].yaxis)[2].endswith("(0)") and fig.alt.endswith(f"confused (actual as predicted): none; without any items: {NAMES[2]}")


def test_matrix_axes_sizes_and_colours():
    p, own = made(40, 3), Figure(figsize=(9, 4))
    left, right = own.subplots(1, 2)
    assert S.plot_confusion_matrix(p, ax=right) is own and not left.images and right.get_xlabel() == "Predicted" and len(numbers(right)) == np.count_nonzero(confusion_matrix(p))
    small = Figure(figsize=(4, 4)).add_subplot()
    S.plot_confusion_matrix(made(1478, 37, skill=3), ax=small)
    assert len(framed(small)) == 10   # the axes are too small for numbers in cells
    fig = S.plot_confusion_matrix(p, figsize=(5, 4), dpi=99)
    assert tuple(fig.get_size_inches()) == (5, 4) and fig.dpi == 99
    with style.context("dark_background"): fig = S.plot_confusion_matrix(p)
    assert fig.get_facecolor()[:3] == (0, 0, 0) and fig.axes[0].get_xticklabels()[0].get_color() == "white"
    faint = fig.axes[0].images[1].cmap(0.)[:3]
    assert S._light(faint) < .1 and S._light(S.plot_confusion_matrix(p).axes[0].images[1].cmap(0.)[:3]) > .6   # shades begin near the page
    clear = {"figure.facecolor": "none", "axes.facecolor": "none"}
    with mpl.rc_context(clear): assert S._light(S.plot_confusion_matrix(p).axes[0].images[1].cmap(0.)[:3]) > .6


def test_matrix_long_names_are_cut():
    fig = S.plot_confusion_matrix(counted(np.eye(2, dtype=int), ["x"*31, "y"*30]))
    assert names(fig.axes[0].yaxis) == ["x"*29 + "…", "y"*30]


def test_matrix_errors():
    with pytest.raises(ValueError, match="true labels"): S.plot_confusion_matrix(made(targets=False))
    multi = Preds(torch.rand(3, 2), torch.ones(3, 2), None, (), ("a", "b"), "multi")
    with pytest.raises(ValueError, match="'multi'"): S.plot_confusion_matrix(multi)
    with pytest.raises(TypeError, match="learn.get_preds"): S.plot_confusion_matrix(np.eye(3))
