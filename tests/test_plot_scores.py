"""Diagrams of scores: they draw the numbers that were counted, and no text covers another."""
import io
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, strategies as st
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from lessonkit.core.task import Task
from lessonkit.plot.figures import contrast, luminance, new_figure
from lessonkit.plot.scores import (
    move_apart, plot_confusion_matrix, plot_precision_recall, plot_reliability, plot_risk_coverage,
    plot_roc,
)
from lessonkit.results.calibration import (
    apply_temperature, calibration_error, reliability, risk_coverage,
)
from lessonkit.results.metrics import accuracy, error_rate
from lessonkit.results.preds import Preds
from lessonkit.results.scores import confusion_matrix, precision_recall, roc
from making import apart, boxes, check_figures, legend_of, predictions
from tiers import examples

# Drawing is slow, and to make a failure smaller, hypothesis would draw hundreds of times.
FOUND_IS_ENOUGH = (Phase.explicit, Phase.reuse, Phase.generate)
NAMES = ["staffordshire_bull_terrier", "american_pit_bull_terrier", "British_Shorthair"]
NAMES += [f"breed_{i:03}" for i in range(120)]


def made(n=30, c=5, seed=0, skill=2., targets=True):
    return predictions(c, n, seed, skill, targets=targets, classes=NAMES[:c])


def counted(cm, names=None):
    "Predictions with this confusion matrix."
    c = len(cm)
    pairs = [pair for pair in np.ndindex(c, c) for _ in range(cm[pair])]
    y, predicted = torch.tensor(pairs).unbind(1)
    return Preds(torch.eye(c)[predicted], y, None, (), Task("single", tuple(names or NAMES[:c])))


def drawn(fig):
    "The values in the colors of a matrix."
    return sum(np.ma.filled(image.get_array(), 0) for image in fig.axes[0].images)


def numbers(ax): return [t for t in ax.texts if t.get_text()]


def words(texts): return [t.get_text() for t in texts]


def framed(ax): return [(round(p.get_y() + .5), round(p.get_x() + .5)) for p in ax.patches]


def names(axis): return words(axis.get_ticklabels())


def sure_of(p): return p.probs.max(1).values


# --- what all have in common

def all_figures():
    many, few = made(1478, 37, skill=3), made(50, 9)
    return {
        "matrix2": plot_confusion_matrix(made(300, 2)),
        "matrix12": plot_confusion_matrix(made(300, 12)),
        "matrix37": plot_confusion_matrix(many),
        "shares37": plot_confusion_matrix(many, True),
        "reliability": plot_reliability({"a": made(2000, 9), "b": made(500, 3)}),
        "roc": plot_roc({"a": made(2000, 2), "b": made(50, 2)}),
        "precision": plot_precision_recall(made(5000, 2)),
        "risk": plot_risk_coverage({"a": made(5000, 9), "b": few}),
        "matrix100": plot_confusion_matrix(made(5000, 100, skill=4)),
        "shares100": plot_confusion_matrix(made(5000, 100, skill=3), True),
    }


@pytest.mark.slow
def test_all_are_small_and_described():
    figures = {}
    def draw():
        figures.update(all_figures())
        return figures
    check_figures(draw, 40)
    for name, fig in figures.items():
        mime, file = fig.image()
        assert mime == "image/png", name
        width = Image.open(io.BytesIO(file)).width
        assert width > .85 * 60 * fig.get_figwidth(), name  # it needed no shrinking


CURVES = {plot_reliability: 5, plot_roc: 2, plot_precision_recall: 2, plot_risk_coverage: 5}


@pytest.mark.parametrize("plot, c", CURVES.items())  # and a number of classes each takes
def test_curves_by_name_on_own_axes_and_on_given_ones(plot, c):
    both = {"before": made(80, c), "after": made(80, c, seed=1)}
    own = Figure(figsize=(9, 4))
    left, right = own.subplots(1, 2)
    assert plot(both, ax=right) is own
    assert len(own.axes) == 2
    assert not left.lines
    assert right.get_xlabel()
    assert right.get_ylabel()
    said = words(right.get_legend().get_texts())
    assert said[0].startswith("before: ")
    assert said[1].startswith("after: ")
    fig = plot(both, figsize=(5, 4))
    assert tuple(fig.get_size_inches()) == (5, 4)
    assert "before: " in fig.alt
    assert "after: " in fig.alt
    assert legend_of(fig) == said


@pytest.mark.parametrize("plot, c", CURVES.items())
def test_curves_in_a_dark_style(plot, c):
    with style.context("dark_background"): dark, cycle = plot(made(80, c)), mpl.colors.to_hex("C0")
    colors = {mpl.colors.to_hex(line.get_color()) for line in dark.axes[0].lines}
    assert cycle in colors  # the style's own, even after the style is left
    assert dark.get_facecolor()[:3] == (0, 0, 0)
    assert dark.axes[0].yaxis.label.get_color() == "white"
    texts = dark.legends[0].get_texts() if dark.legends else [dark.axes[0].title]
    assert {t.get_color() for t in texts} == {"white"}


def test_diagrams_in_one_figure_are_all_described():
    left, right = new_figure((9, 4)).subplots(1, 2)
    one = plot_confusion_matrix(made(40, 3), ax=left).alt
    assert one.startswith("confusion matrix")
    two = plot_risk_coverage(made(40, 3), ax=right).alt
    assert two == f"{one}; {plot_risk_coverage(made(40, 3)).alt}"


@pytest.mark.parametrize("plot, c", CURVES.items())
def test_curves_say_what_they_do_not_take(plot, c):
    multi = Preds(torch.rand(3, 2), torch.ones(3, 2), None, (), Task("multi", ("a", "b")))
    with pytest.raises(ValueError, match=f"{plot.__name__}.*none in this dict"): plot({})
    with pytest.raises(TypeError, match=f"{plot.__name__} takes Preds.*list"): plot([.1, .9])
    with pytest.raises(TypeError, match="not str"): plot({"a": made(9, c), "b": "c"})
    with pytest.raises(ValueError, match="true labels"): plot(made(9, c, targets=False))
    with pytest.raises(ValueError, match="'multi'"): plot(multi)


# --- reliability

def reliability_words(p, bins=15):
    return (f"{sure_of(p).double().mean():.1%} sure on average, {accuracy(p):.1%} right "
            f"(ECE {calibration_error(p, bins):.3f})")


@pytest.mark.parametrize("n, c, bins", [(600, 5, 15), (600, 2, 10), (1, 3, 15), (7, 12, 1),
                                        (40, 3, 50)])
def test_reliability_draws_its_table(n, c, bins):
    p = made(n, c)
    t, fig = reliability(p, bins), plot_reliability(p, bins)
    above, below = fig.axes
    points, = [line for line in above.lines if line.get_marker() == "o"]
    assert np.allclose(points.get_data(), t[["confidence", "accuracy"]].T)
    intervals = [[*s[0], s[1, 1]] for s in above.collections[0].get_segments()]
    assert np.allclose(intervals, t[["confidence", "low", "high"]])
    diagonal, = [line for line in above.lines if line.get_linestyle() == "--"]
    assert list(map(list, diagonal.get_data())) == [[0, 1], [0, 1]]
    counts, edges, _ = below.patches[0].get_data()
    assert {b: counts[b] for b in np.flatnonzero(counts)} == t.n.to_dict()
    assert np.allclose(edges, np.linspace(0, 1, bins + 1))
    assert above.get_title() == reliability_words(p, bins)
    assert fig.alt == ("reliability diagram, confidence against share of right answers: "
                       f"{reliability_words(p, bins)}, {n} images, "
                       f"{t.n.iloc[-1]} of them at {t.confidence.iloc[-1]:.0%}")
    assert above.get_xlim()[0] < t.confidence.min()  # everything is in sight
    assert above.get_xlim()[1] > 1


def test_reliability_of_several():
    p = made(400, 4)
    both = {"before": p, "after": apply_temperature(p, 2.5)}
    fig = plot_reliability(both)
    above, below = fig.axes
    assert accuracy(both["after"]) == accuracy(p)
    assert legend_of(fig) == [f"{name}: {reliability_words(q)}" for name, q in both.items()]
    assert [patch.get_fill() for patch in below.patches] == [False, False]
    a, b = (line.get_xdata() for line in above.lines if line.get_marker() in "os")
    assert not set(a) & set(b)  # their intervals stand side by side


def test_words_beside_the_reliability_cover_nothing():
    fig = plot_reliability(made(300, 3))
    fig.draw_without_rendering()
    text, = boxes(fig.axes[0].texts)
    assert text.x0 >= fig.axes[0].bbox.x1
    assert text.x1 <= fig.bbox.x1
    assert text.height <= fig.axes[0].bbox.height


# --- all thresholds

def at(line): return [v[0] for v in line.get_data()]


def imbalanced():
    p = made(300, 2, skill=.8)
    return p[(p.targets == 1) | (torch.arange(300) % 5 == 0)]


POSITIVE = pytest.mark.parametrize("positive, i", [(None, 1), (NAMES[0], 0), (NAMES[1], 1)])


@POSITIVE
def test_roc_draws_its_curve(positive, i):
    p = imbalanced()
    fig, curve, cm = plot_roc(p, positive), roc(p, positive), confusion_matrix(p)
    ax = fig.axes[0]
    line, dot, chance = ax.lines
    assert np.allclose(line.get_data(), (curve.x, curve.y))
    assert line.get_drawstyle() == "default"
    found = cm[i, i] / cm[i].sum()
    assert at(dot) == [cm[1 - i, i] / cm[1 - i].sum(), found]
    assert list(map(list, chance.get_data())) == [[0, 1], [0, 1]]
    assert "called" in ax.get_xlabel()
    assert "found" in ax.get_ylabel()
    assert legend_of(fig)[0] == f"area {curve.area:.3f}"
    assert legend_of(fig)[2].startswith("chance")
    assert f"curve of {NAMES[i]!r}: area {curve.area:.3f}; at one half " in fig.alt
    assert f"{found:.1%}" in fig.alt


@POSITIVE
def test_precision_recall_draws_its_curve(positive, i):
    p = imbalanced()
    fig, curve = plot_precision_recall(p, positive), precision_recall(p, positive)
    cm = confusion_matrix(p)
    line, dot, chance = fig.axes[0].lines
    assert np.allclose(line.get_data(), (curve.x, curve.y))
    assert line.get_drawstyle() == "steps-pre"
    steps = np.r_[0, np.diff(curve.x)] @ curve.y  # each precision holds back to the recall before
    assert steps == pytest.approx(curve.area)
    found = cm[i, i] / cm[i].sum()
    assert at(dot) == [found, cm[i, i] / cm[:, i].sum()]
    share = (p.targets == i).double().mean().item()
    assert chance.get_ydata() == pytest.approx([share, share])
    assert legend_of(fig)[0] == f"area {curve.area:.3f}"
    assert legend_of(fig)[2].startswith("chance")
    assert f"curve of {NAMES[i]!r}: area {curve.area:.3f}; at one half " in fig.alt
    assert f"{found:.1%}" in fig.alt


def test_lines_of_chance():
    p = made(300, 2)
    few = p[(p.targets == 0) | (torch.arange(300) % 9 == 0)]
    def chances(fig): return [text for text in legend_of(fig) if "chance" in text]
    def share(p):
        return f"chance: {(p.targets == 1).double().mean():.2g}, the share of {NAMES[1]!r}"
    two = {"a": p, "b": few}
    assert chances(plot_precision_recall(two)) == [f"a: {share(p)}", f"b: {share(few)}"]
    same = {"a": p, "b": apply_temperature(p, 2)}
    assert chances(plot_precision_recall(same)) == [share(p)]
    assert chances(plot_roc(two)) == ["chance"]


def test_nothing_called_positive():
    probs = torch.tensor([[.9, .1], [.8, .2], [.7, .3]])
    p = Preds(probs, torch.tensor([0, 1, 0]), None, (), Task("single", ("a", "b")))
    assert at(plot_precision_recall(p).axes[0].lines[1]) == [0, 1]  # as the curve has it


@pytest.mark.parametrize("plot", [plot_roc, plot_precision_recall])
def test_curves_of_two_classes_errors(plot):
    p = made(30, 2)
    with pytest.raises(ValueError, match="two classes.* 3"): plot(made(30, 3))
    with pytest.raises(ValueError, match="nobody"): plot(p, positive="nobody")
    other = Preds(p.probs, p.targets, p.losses, (), Task("single", ("x", "y")))
    with pytest.raises(ValueError, match="same classes.*'x', 'y'"): plot({"a": p, "b": other})
    three = (p.targets == 0).nonzero().flatten()[:3]
    with pytest.raises(ValueError, match="all 3"): plot(p[three])


# --- risk and coverage

def test_risk_draws_its_table():
    p = made(500, 4)
    t, fig = risk_coverage(p), plot_risk_coverage(p)
    ax = fig.axes[0]
    curve, everything = ax.lines[:2]
    assert np.allclose(curve.get_data(), t[["coverage", "error"]].T)
    assert everything.get_ydata()[0] == pytest.approx(error_rate(p))
    band = {tuple(v) for v in ax.collections[0].get_paths()[0].vertices.round(9)}
    for edge in ("low", "high"):
        assert {tuple(v) for v in t[["coverage", edge]].to_numpy().round(9)} <= band
    assert ax.get_ylim()[0] < 0
    assert ax.get_ylim()[1] >= t.high[t.coverage >= .1].max()
    order = sure_of(p).sort(descending=True, stable=True).indices
    def surest(share): return f"{error_rate(p[order[:int(500 * share)]]):.1%}"
    title = f"{error_rate(p):.1%} of all answers wrong, {surest(.5)} of the surest half"
    assert ax.get_title() == title
    assert fig.alt == (f"error against coverage: {title}, {surest(.8)} of the surest 80%, "
                       "500 images")


def test_thresholds_are_marked_where_they_lead():
    p = made(500, 4)
    ax = plot_risk_coverage(p).axes[0]
    marked = {float(t.get_text()): t.xy for t in ax.texts}
    assert len(marked) >= 3
    assert len(ax.lines) == 2 + len(marked)
    for threshold, (x, y) in marked.items():
        kept = (sure_of(p) >= threshold).nonzero().flatten()
        assert x == pytest.approx(len(kept) / 500)
        assert y == pytest.approx(error_rate(p[kept]))


@examples(6, phases=FOUND_IS_ENOUGH)
@given(n=st.integers(1, 300), c=st.integers(2, 9), skill=st.floats(0, 9))
def test_thresholds_never_cover_each_other(n, c, skill):
    fig = plot_risk_coverage(made(n, c, skill=skill))
    fig.draw_without_rendering()
    assert all(t.xy[0] >= .05 for t in fig.axes[0].texts)
    assert apart(boxes(fig.axes[0].texts))


def test_risk_of_equal_confidences_and_of_a_single_image():
    probs, targets = torch.tensor([[.6, .4]] * 4), torch.tensor([0, 0, 0, 1])
    ax = plot_risk_coverage(Preds(probs, targets, None, (), Task("single", ("a", "b")))).axes[0]
    assert ax.lines[0].get_marker() == "o"
    assert ax.get_title() == "25.0% of all answers wrong, 25.0% of the surest half"
    assert not ax.texts
    plot_risk_coverage(made(1, 3)).image()


# --- the confusion matrix

def cell_text(value, normalize):
    if 0 < value < 1: return "<1"
    return ">99" if normalize and 99 < value < 100 else f"{value:.0f}"


@examples(10, phases=FOUND_IS_ENOUGH)
@given(c=st.integers(2, 19), seed=st.integers(0, 99), normalize=st.booleans(), dark=st.booleans(),
       cmap=st.sampled_from([None, "Blues", "viridis"]))
def test_matrix_cells(c, seed, normalize, cmap, dark):
    p = made(10 * c, c, seed)
    with style.context("dark_background" if dark else "default"):
        fig = plot_confusion_matrix(p, normalize, cmap=cmap)
    cm, ax = confusion_matrix(p), fig.axes[0]
    values = 100 * cm / np.maximum(cm.sum(1, keepdims=True), 1) if normalize else cm
    assert np.allclose(drawn(fig), values)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted", "Actual")
    assert len(ax.images) == (2 if cmap is None else 1)
    for image in ax.images: assert image.get_array().mask[cm == 0].all()  # empty cells stay empty
    cells = {tuple(round(v) for v in t.get_position()[::-1]): t for t in numbers(ax)}
    assert set(cells) == set(zip(*(a.tolist() for a in np.nonzero(cm))))
    for (i, j), t in cells.items():
        assert t.get_text() == cell_text(values[i, j], normalize)
        assert t.get_fontsize() >= 9
        image = ax.images[0 if cmap or i == j else 1]
        color = image.cmap(image.norm(values[i, j]))[:3]
        best = max(contrast("white", color), contrast("black", color))
        assert contrast(t.get_color(), color) == best >= 4.5
    rows = [f"{n} ({k})" for n, k in zip(NAMES, cm.sum(1))] if normalize else NAMES[:c]
    assert names(ax.xaxis) == NAMES[:c]
    assert names(ax.yaxis) == rows


@pytest.mark.parametrize("c, normalize", [(2, False), (12, True), (19, True)])
def test_matrix_numbers_stay_in_their_cells(c, normalize):
    fig = plot_confusion_matrix(made(3000, c, skill=1), normalize)
    ax = fig.axes[0]
    fig.draw_without_rendering()
    side = ax.get_window_extent().width / c
    for t, box in zip(numbers(ax), boxes(numbers(ax))):
        assert box.width <= side, t.get_text()
        assert box.height <= 1.3 * side, t.get_text()


@pytest.mark.parametrize("c, normalize, figsize", [
    (2, True, None), (12, True, None), (37, False, None), (37, True, (5, 5)), (100, True, None),
    (100, False, (5, 5)),
])
def test_matrix_names_do_not_overlap(c, normalize, figsize):
    fig = plot_confusion_matrix(made(3000, c, skill=4), normalize, figsize=figsize)
    fig.draw_without_rendering()
    for axis in (fig.axes[0].xaxis, fig.axes[0].yaxis):
        places = boxes(axis.get_ticklabels())
        assert apart(places, 2, 2)
        assert min(box.x0 for box in places) >= -1
        assert min(box.y0 for box in places) >= -1
        assert max(box.x1 for box in places) <= fig.bbox.x1 + 1


@pytest.mark.parametrize("second, turned", [("dog", 0), ("american_pit_bull_terrier", 90)])
def test_short_names_lie_and_long_ones_stand(second, turned):
    ax = plot_confusion_matrix(counted(np.eye(2, dtype=int) * 9, ["cat", second])).axes[0]
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {turned}


def two_confusions():
    cm = np.eye(100, dtype=int) * 30
    for (i, j), n in {(7, 70): 9, (80, 8): 5, (50, 51): 1, (3, 4): 1}.items(): cm[i, j] = n
    return cm


def test_a_matrix_of_many_classes_calls_out_the_largest():
    fig = plot_confusion_matrix(counted(two_confusions()))
    ax = fig.axes[0]
    assert framed(ax) == [(7, 70), (80, 8)]  # what happened once is not called out
    assert words(numbers(ax)) == ["9", "5"]
    assert {NAMES[7], NAMES[80]} <= set(names(ax.yaxis))
    assert {NAMES[70], NAMES[8]} <= set(names(ax.xaxis))
    def bold(axis):
        return {t.get_text() for t in axis.get_ticklabels() if t.get_fontweight() == "bold"}
    assert bold(ax.yaxis) == {NAMES[7], NAMES[80]}
    assert bold(ax.xaxis) == {NAMES[70], NAMES[8]}
    assert fig.alt == ("confusion matrix of 100 classes, 3000 of 3016 right; "
                       "most confused (actual as predicted): "
                       f"{NAMES[7]} as {NAMES[70]} 9; {NAMES[80]} as {NAMES[8]} 5")


def test_how_many_are_called_out():
    cm = two_confusions()
    assert framed(plot_confusion_matrix(counted(cm), callouts=1).axes[0]) == [(7, 70)]
    cm[7, 70] = cm[80, 8] = 1  # nothing happened twice
    assert len(framed(plot_confusion_matrix(counted(cm)).axes[0])) == 4


def test_shares_call_out_the_largest_shares():
    cm = np.eye(100, dtype=int) * 40
    cm[7, 70], cm[80, 8], cm[80, 80] = 9, 5, 5
    cm[60, 60], cm[60, 6] = 0, 1  # one of one is no 100% that deserves a frame
    fig = plot_confusion_matrix(counted(cm), normalize=True)
    ax = fig.axes[0]
    assert framed(ax) == [(80, 8), (7, 70)]
    assert words(numbers(ax)) == ["50", "18"]
    assert f"{NAMES[80]} as {NAMES[8]} 5 of 10; {NAMES[7]} as {NAMES[70]} 9 of 49" in fig.alt
    assert f"{NAMES[80]} (10)" in names(ax.yaxis)


@examples(8, phases=FOUND_IS_ENOUGH)
@given(seed=st.integers(0, 999), c=st.integers(80, 100), crowd=st.integers(3, 12),
       corner=st.integers(0, 90), figsize=st.sampled_from([None, (6, 6), (9, 5)]))
def test_call_outs_never_cover_each_other(seed, c, crowd, corner, figsize):
    "Confusions all in one small crowd of classes, anywhere along the diagonal."
    cm, at = np.eye(c, dtype=int) * 20, min(corner, c - crowd)
    cm[at:at + crowd, at:at + crowd] += np.random.default_rng(seed).integers(0, 15, (crowd, crowd))
    fig = plot_confusion_matrix(counted(cm), figsize=figsize)
    ax = fig.axes[0]
    fig.draw_without_rendering()
    texts, frames = boxes(numbers(ax)), boxes(ax.patches)
    largest = sorted(cm[~np.eye(c, dtype=bool) & (cm > 1)].tolist(), reverse=True)[:10]
    assert sorted((cm[place] for place in framed(ax)), reverse=True) == largest[:len(frames)]
    assert len(frames) >= min(len(largest), 6)
    assert {int(t.get_text()) for t in numbers(ax)} <= set(largest)
    assert len(texts) >= .8 * len(frames)
    assert apart(texts)
    assert not any(text.overlaps(frame) for text in texts for frame in frames)
    assert min((box.x0 for box in texts), default=math.inf) >= ax.bbox.x0 - 1
    assert max((box.x1 for box in texts), default=0) <= ax.bbox.x1 + 1
    assert min((box.y0 for box in texts), default=math.inf) >= ax.bbox.y0 - 1
    assert max((box.y1 for box in texts), default=0) <= ax.bbox.y1 + 1
    assert {NAMES[i] for i, _ in framed(ax)} <= set(names(ax.yaxis))
    assert {NAMES[j] for _, j in framed(ax)} <= set(names(ax.xaxis))
    for axis in (ax.xaxis, ax.yaxis): assert apart(boxes(axis.get_ticklabels()), 2, 2)


def test_a_number_stands_nearest_to_its_own_frame():
    "Two frames side by side, and the only empty place beyond the wrong one."
    cm = np.eye(100, dtype=int) * 20
    cm[40:61, 65:82] = 1
    cm[50, 80], cm[50, 81] = 28, 26
    ax = plot_confusion_matrix(counted(cm)).axes[0]
    assert framed(ax) == [(50, 80), (50, 81)]
    assert len(numbers(ax)) == 2
    for t in numbers(ax):
        x, y = t.get_position()
        nearest = min(framed(ax), key=lambda place: np.hypot(place[0] - y, place[1] - x))
        assert t.get_text() == str(cm[nearest])


@examples(50)
@given(at=st.lists(st.integers(0, 99), min_size=1, max_size=10, unique=True), gap=st.floats(.5, 9))
def test_places_moved_apart_are_inside_and_stay_where_they_can(at, gap):
    at = sorted(at)
    places = move_apart(at, gap, 0, 99)
    assert (np.diff(places) >= gap - 1e-9).all()
    assert places[0] >= 0
    assert places[-1] <= 99 + 1e-9
    if (np.diff(at) >= gap).all(): assert np.allclose(places, at)


def test_matrix_rows_without_items():
    fig = plot_confusion_matrix(counted(np.diag([2, 1, 0])), normalize=True)
    assert (drawn(fig) == np.diag([100, 100, 0])).all()
    assert words(numbers(fig.axes[0])) == ["100", "100"]
    assert names(fig.axes[0].yaxis)[2].endswith("(0)")
    assert fig.alt.endswith(f"confused (actual as predicted): none; without any items: {NAMES[2]}")


def test_a_matrix_on_given_axes():
    p, own = made(40, 3), Figure(figsize=(9, 4))
    left, right = own.subplots(1, 2)
    assert plot_confusion_matrix(p, ax=right) is own
    assert not left.images
    assert right.get_xlabel() == "Predicted"
    assert len(numbers(right)) == np.count_nonzero(confusion_matrix(p))
    small = Figure(figsize=(4, 4)).add_subplot()
    plot_confusion_matrix(made(1478, 37, skill=3), ax=small)
    assert len(framed(small)) == 10  # the axes are too small for numbers in cells


def test_the_size_of_a_matrix():
    fig = plot_confusion_matrix(made(40, 3), figsize=(5, 4), dpi=99)
    assert tuple(fig.get_size_inches()) == (5, 4)
    assert fig.dpi == 99


def faintest(ax): return luminance(ax.images[1].cmap(0.)[:3])


def test_shades_of_a_matrix_begin_near_the_page():
    p = made(40, 3)
    assert faintest(plot_confusion_matrix(p).axes[0]) > .6
    with style.context("dark_background"): fig = plot_confusion_matrix(p)
    assert fig.get_facecolor()[:3] == (0, 0, 0)
    assert fig.axes[0].get_xticklabels()[0].get_color() == "white"
    assert faintest(fig.axes[0]) < .1
    part = Figure(facecolor="black").subfigures(1, 2)[0]
    plot_confusion_matrix(p, ax=part.add_subplot(facecolor="none"))
    assert faintest(part.axes[0]) < .1


@pytest.mark.parametrize("text, dark", [("black", False), ("white", True)])
def test_the_color_of_the_text_tells_which_page_shines_through(text, dark):
    clear = {"figure.facecolor": "none", "axes.facecolor": "none", "text.color": text}
    with mpl.rc_context(clear): fig = plot_confusion_matrix(made(40, 3))
    assert (faintest(fig.axes[0]) < .3) == dark


def test_long_names_are_cut_off():
    fig = plot_confusion_matrix(counted(np.eye(2, dtype=int), ["x" * 31, "y" * 30]))
    assert names(fig.axes[0].yaxis) == ["x" * 20 + "…" + "x" * 9, "y" * 30]


def test_matrix_errors():
    multi = Preds(torch.rand(3, 2), torch.ones(3, 2), None, (), Task("multi", ("a", "b")))
    with pytest.raises(ValueError, match="true labels"): plot_confusion_matrix(made(targets=False))
    with pytest.raises(ValueError, match="'multi'"): plot_confusion_matrix(multi)
    with pytest.raises(TypeError, match="learn.get_preds"): plot_confusion_matrix(np.eye(3))
