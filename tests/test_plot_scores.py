"""Diagrams of scores: the numbers drawn are the numbers counted, names and call-outs never cover each other, words for those who don't see it."""
import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from lessonkit.plot import scores as S
from lessonkit.results.calibration import (
    apply_temperature, calibration_error, reliability, risk_coverage,
)
from lessonkit.results.metrics import accuracy, error_rate
from lessonkit.results.scores import confusion_matrix, precision_recall, roc
from lessonkit.results.preds import Preds
from making import predictions

FOUND_IS_ENOUGH = (Phase.explicit, Phase.reuse, Phase.generate)   # drawing is slow, and to make a failure smaller draws hundreds of times
NAMES = ["staffordshire_bull_terrier", "american_pit_bull_terrier", "British_Shorthair"] + [f"breed_{i:03}" for i in range(120)]


def made(n=30, c=5, seed=0, skill=2., targets=True): return predictions(c, n, seed, skill, targets=targets, classes=NAMES[:c])


def counted(cm, names=None):
    "Predictions with this confusion matrix."
    c = len(cm)
    y, said = (torch.tensor([pair[k] for pair in np.ndindex(c, c) for _ in range(cm[pair])]) for k in (0, 1))
    return Preds(torch.eye(c)[said], y, None, (), Task("single", tuple(names or NAMES[:c])))


def drawn(fig, ax=0):
    "The values in the colors of a matrix."
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
            "reliability": S.plot_reliability({"a": made(2000, 9), "b": made(500, 3)}), "roc": S.plot_roc({"a": made(2000, 2), "b": made(50, 2)}),
            "pr": S.plot_precision_recall(made(5000, 2)), "risk": S.plot_risk_coverage({"a": made(5000, 9), "b": made(50, 9)}),
            "matrix100": S.plot_confusion_matrix(made(5000, 100, skill=4)), "shares100": S.plot_confusion_matrix(made(5000, 100, skill=3), True)}


def test_every_picture_is_small_has_words_and_is_no_open_figure():
    from matplotlib import pyplot
    before = pyplot.get_fignums()
    for name, fig in pictures().items():
        mime, file = fig.image()
        assert mime == "image/png" and len(file) <= 37_000 and fig.dpi == 60, (name, len(file))
        assert Image.open(io.BytesIO(file)).width > .85*60*fig.get_figwidth(), name   # it needed no shrinking
        assert len(fig.alt) > 40, name
    assert pyplot.get_fignums() == before


def test_matplotlib_is_drawn_without_pyplot():
    code = "import sys, lessonkit.plot_scores; print('matplotlib.pyplot' in sys.modules, 'pandas' in sys.modules, 'sklearn' in sys.modules, 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]*4


CURVES = {S.plot_reliability: 5, S.plot_roc: 2, S.plot_precision_recall: 2, S.plot_risk_coverage: 5}   # and a number of classes each takes


@pytest.mark.parametrize("plot", CURVES)
def test_curves_on_axes_given_by_name_and_in_the_dark(plot):
    p, q = made(80, CURVES[plot]), made(80, CURVES[plot], seed=1)
    own = Figure(figsize=(9, 4))
    left, right = own.subplots(1, 2)
    assert plot({"before": p, "after": q}, ax=right) is own and len(own.axes) == 2 and not left.lines and right.get_xlabel() and right.get_ylabel()
    said = [t.get_text() for t in right.get_legend().get_texts()]
    assert said[0].startswith("before: ") and said[1].startswith("after: ")
    fig = plot({"before": p, "after": q}, figsize=(5, 4))
    assert tuple(fig.get_size_inches()) == (5, 4) and "before: " in fig.alt and "after: " in fig.alt
    assert [t.get_text() for t in fig.legends[0].get_texts()] == said
    with style.context("dark_background"): dark, cycle = plot(p), mpl.colors.to_hex("C0")
    assert cycle in {mpl.colors.to_hex(line.get_color()) for line in dark.axes[0].lines}   # the style's own colors, also when the style is left
    assert dark.get_facecolor()[:3] == (0, 0, 0) and dark.axes[0].yaxis.label.get_color() == "white"
    if dark.legends: assert {t.get_color() for t in dark.legends[0].get_texts()} == {"white"}
    else: assert dark.axes[0].title.get_color() == "white"


def test_diagrams_in_one_figure_are_all_said():
    fig = S._figure((9, 4), S.Picture.alt)
    left, right = fig.subplots(1, 2)
    one, two = S.plot_confusion_matrix(made(40, 3), ax=left).alt, S.plot_risk_coverage(made(40, 3), ax=right).alt
    assert one.startswith("confusion matrix") and two == f"{one}; {S.plot_risk_coverage(made(40, 3)).alt}"


@pytest.mark.parametrize("plot", CURVES)
def test_curves_say_what_they_do_not_take(plot):
    c = CURVES[plot]
    with pytest.raises(ValueError, match=f"{plot.__name__}.*none in this dict"): plot({})
    with pytest.raises(TypeError, match=f"{plot.__name__} takes Preds.*list"): plot([.1, .9])
    with pytest.raises(TypeError, match="not str"): plot({"a": made(9, c), "b": "c"})
    with pytest.raises(ValueError, match="true labels"): plot(made(9, c, targets=False))
    with pytest.raises(ValueError, match="'multi'"): plot(Preds(torch.rand(3, 2), torch.ones(3, 2), None, (), Task("multi", ("a", "b"))))


# --- reliability

@pytest.mark.parametrize("n, c, bins", [(600, 5, 15), (600, 2, 10), (1, 3, 15), (7, 12, 1), (40, 3, 50)])
def test_reliability_draws_its_table(n, c, bins):
    p = made(n, c)
    t, fig = reliability(p, bins), S.plot_reliability(p, bins)
    above, below = fig.axes
    points, = [line for line in above.lines if line.get_marker() == "o"]
    assert np.allclose(points.get_data(), t[["confidence", "accuracy"]].T)
    assert np.allclose([[*s[0], s[1, 1]] for s in above.collections[0].get_segments()], t[["confidence", "low", "high"]])
    diagonal, = [line for line in above.lines if line.get_linestyle() == "--"]
    assert list(map(list, diagonal.get_data())) == [[0, 1], [0, 1]]
    counts, edges, _ = below.patches[0].get_data()
    assert {b: counts[b] for b in np.flatnonzero(counts)} == t.n.to_dict() and np.allclose(edges, np.linspace(0, 1, bins + 1))
    words = f"{p.probs.max(1).values.double().mean():.1%} sure on average, {accuracy(p):.1%} right (ECE {calibration_error(p, bins):.3f})"
    assert above.get_title() == words and fig.alt == (f"reliability diagram, confidence against share of right answers: {words}, {n} pictures, "
                                                      f"{t.n.iloc[-1]} of them at {t.confidence.iloc[-1]:.0%}")
    assert above.get_xlim()[0] < t.confidence.min() and above.get_xlim()[1] > 1   # everything is in sight


def test_reliability_of_several():
    p = made(400, 4)
    fig = S.plot_reliability({"before": p, "after": apply_temperature(p, 2.5)})
    above, below = fig.axes
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [f"{name}: {q.probs.max(1).values.double().mean():.1%} sure on average, {accuracy(p):.1%} right "
                                                                 f"(ECE {calibration_error(q):.3f})" for name, q in (("before", p), ("after", apply_temperature(p, 2.5)))]
    assert len(below.patches) == 2 and not any(patch.get_fill() for patch in below.patches)
    a, b = (line.get_xdata() for line in above.lines if line.get_marker() in "os")
    assert not set(a) & set(b)   # their intervals stand side by side


def test_words_beside_the_reliability_cover_nothing():
    fig = S.plot_reliability(made(300, 3))
    fig.draw_without_rendering()
    word, = fig.axes[0].texts
    assert word.get_window_extent().x0 >= fig.axes[0].bbox.x1 and word.get_window_extent().x1 <= fig.bbox.x1 and word.get_window_extent().height <= fig.axes[0].bbox.height


# --- all thresholds

@pytest.mark.parametrize("positive, at", [(None, 1), (NAMES[0], 0), (1, 1)])
@pytest.mark.parametrize("plot, curve", [(S.plot_roc, roc), (S.plot_precision_recall, precision_recall)])
def test_curves_of_two_classes(plot, curve, positive, at):
    p = made(300, 2, skill=.8)
    p = p[(p.targets == 1) | (torch.arange(300) % 5 == 0)]   # the classes are not as frequent
    fig, c, cm = plot(p, positive), curve(p, positive), confusion_matrix(p)
    line, dot, chance = fig.axes[0].lines
    assert np.allclose(line.get_data(), (c.x, c.y))
    found = cm[at, at]/cm[at].sum()
    if curve is roc:
        assert [v[0] for v in dot.get_data()] == [cm[1 - at, at]/cm[1 - at].sum(), found] and list(map(list, chance.get_data())) == [[0, 1], [0, 1]]
        assert line.get_drawstyle() == "default" and "called" in fig.axes[0].get_xlabel() and "found" in fig.axes[0].get_ylabel()
    else:
        share = (p.targets == at).double().mean().item()
        assert [v[0] for v in dot.get_data()] == [found, cm[at, at]/cm[:, at].sum()] and chance.get_ydata() == pytest.approx([share, share])
        steps = np.r_[0, np.diff(c.x)] @ c.y   # what steps-pre draws: each precision holds back to the recall before
        assert line.get_drawstyle() == "steps-pre" and steps == pytest.approx(c.area)
    words = [t.get_text() for t in fig.legends[0].get_texts()]
    assert words[0] == f"area {c.area:.3f}" and words[2].startswith("chance")
    assert f"curve of {NAMES[at]!r}: area {c.area:.3f}; at one half " in fig.alt and f"{found:.1%}" in fig.alt


def test_lines_of_chance():
    p, few = made(300, 2), made(300, 2)[(made(300, 2).targets == 0) | (torch.arange(300) % 9 == 0)]
    chances = lambda fig: [t.get_text() for t in fig.legends[0].get_texts() if "chance" in t.get_text()]
    share = lambda p: f"chance: {(p.targets == 1).double().mean():.2g}, the share of {NAMES[1]!r}"
    assert chances(S.plot_precision_recall({"a": p, "b": few})) == [f"a: {share(p)}", f"b: {share(few)}"]
    assert chances(S.plot_precision_recall({"a": p, "b": apply_temperature(p, 2)})) == [share(p)] and chances(S.plot_roc({"a": p, "b": few})) == ["chance"]


def test_nothing_called_positive():
    p = Preds(torch.tensor([[.9, .1], [.8, .2], [.7, .3]]), torch.tensor([0, 1, 0]), None, (), Task("single", ("a", "b")))
    dot = S.plot_precision_recall(p).axes[0].lines[1]
    assert [v[0] for v in dot.get_data()] == [0, 1]   # as the curve has it


def test_curves_of_two_classes_errors():
    for plot in (S.plot_roc, S.plot_precision_recall):
        with pytest.raises(ValueError, match="two classes.* 3"): plot(made(30, 3))
        with pytest.raises(ValueError, match="nobody"): plot(made(30, 2), positive="nobody")
        other = Preds(*[getattr(made(30, 2), k) for k in ("probs", "targets", "losses")], (), ("x", "y"), "single")
        with pytest.raises(ValueError, match="same classes.*x, y"): plot({"a": made(30, 2), "b": other})
        with pytest.raises(ValueError, match="all 3"): plot(made(30, 2)[(made(30, 2).targets == 0).nonzero().flatten()[:3]])


# --- risk and coverage

def test_risk_draws_its_table():
    p = made(500, 4)
    t, fig = risk_coverage(p), S.plot_risk_coverage(p)
    ax = fig.axes[0]
    curve, everything, *dots = ax.lines
    assert np.allclose(curve.get_data(), t[["coverage", "error"]].T) and everything.get_ydata()[0] == pytest.approx(error_rate(p))
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in band.round(9)} >= {tuple(v) for v in t[["coverage", "low"]].to_numpy().round(9)} | {tuple(v) for v in t[["coverage", "high"]].to_numpy().round(9)}
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] >= t.high[t.coverage >= .1].max()
    surest = lambda share: error_rate(p[p.probs.max(1).values.sort(descending=True, stable=True).indices[:int(500*share)]])
    assert ax.get_title() == f"{error_rate(p):.1%} of all answers wrong, {surest(.5):.1%} of the surest half"
    assert fig.alt == f"error against coverage: {ax.get_title()}, {surest(.8):.1%} of the surest 80%, 500 pictures"
    sure = p.probs.max(1).values
    said = {float(a.get_text()): a.xy for a in ax.texts}
    assert len(said) >= 3 and len(dots) == len(said)
    for threshold, (x, y) in said.items():
        kept = (sure >= threshold).nonzero().flatten()
        assert x == pytest.approx(len(kept)/500) and y == pytest.approx(error_rate(p[kept]))


@settings(max_examples=6, deadline=None, phases=FOUND_IS_ENOUGH)
@given(n=st.integers(1, 300), c=st.integers(2, 9), skill=st.floats(0, 9))
def test_thresholds_never_cover_each_other(n, c, skill):
    fig = S.plot_risk_coverage(made(n, c, skill=skill))
    fig.draw_without_rendering()
    for t in fig.axes[0].texts: assert t.xy[0] >= .05
    assert apart(boxes(fig.axes[0].texts))


def test_risk_of_equal_confidences_and_of_one():
    flat = Preds(torch.tensor([[.6, .4]]*4), torch.tensor([0, 0, 0, 1]), None, (), Task("single", ("a", "b")))
    fig = S.plot_risk_coverage(flat)
    assert fig.axes[0].lines[0].get_marker() == "o" and fig.axes[0].get_title() == "25.0% of all answers wrong, 25.0% of the surest half" and not fig.axes[0].texts
    S.plot_risk_coverage(made(1, 3)).image()


# --- the confusion matrix

def contrast(a, b):
    hi, lo = sorted([S._light(a), S._light(b)], reverse=True)
    return (hi + .05)/(lo + .05)


@settings(max_examples=10, deadline=None, phases=FOUND_IS_ENOUGH)
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


@settings(max_examples=8, deadline=None, phases=FOUND_IS_ENOUGH)
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


def test_a_number_stands_nearest_to_its_own_frame():
    "Two frames side by side, and the only empty place beyond the wrong one."
    cm = np.eye(100, dtype=int)*20
    cm[40:61, 65:82] = 1
    cm[50, 80], cm[50, 81] = 28, 26
    fig = S.plot_confusion_matrix(counted(cm))
    ax = fig.axes[0]
    assert framed(ax) == [(50, 80), (50, 81)] and len(numbers(ax)) == 2
    for t in numbers(ax):
        x, y = t.get_position()
        assert t.get_text() == str(cm[min(framed(ax), key=lambda at: np.hypot(at[0] - y, at[1] - x))])


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


def test_matrix_axes_sizes_and_colors():
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
    clear = {"figure.facecolor": "none", "axes.facecolor": "none"}   # the page shines through: which it is, the color of the text tells
    for text, dark in (("black", False), ("white", True)):
        with mpl.rc_context(clear | {"text.color": text}): assert (S._light(S.plot_confusion_matrix(p).axes[0].images[1].cmap(0.)[:3]) < .3) == dark
    part = Figure(facecolor="black").subfigures(1, 2)[0]
    S.plot_confusion_matrix(p, ax=part.add_subplot(facecolor="none"))
    assert S._light(part.axes[0].images[1].cmap(0.)[:3]) < .1


def test_matrix_long_names_are_cut():
    fig = S.plot_confusion_matrix(counted(np.eye(2, dtype=int), ["x"*31, "y"*30]))
    assert names(fig.axes[0].yaxis) == ["x"*29 + "…", "y"*30]


def test_matrix_errors():
    with pytest.raises(ValueError, match="true labels"): S.plot_confusion_matrix(made(targets=False))
    multi = Preds(torch.rand(3, 2), torch.ones(3, 2), None, (), Task("multi", ("a", "b")))
    with pytest.raises(ValueError, match="'multi'"): S.plot_confusion_matrix(multi)
    with pytest.raises(TypeError, match="learn.get_preds"): S.plot_confusion_matrix(np.eye(3))
