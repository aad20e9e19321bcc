"""Curves of training: they draw what was recorded, and their words never cover each other."""
import numpy as np
import pytest
from matplotlib.figure import Figure

from lessonkit.plot.training import plot_loss, plot_lr_find, plot_metrics, plot_schedule
from lessonkit.train.history import FitRecord, History
from lessonkit.train.lr_finder import LRFind, suggest_rates
from lessonkit.train.schedules import flat_cos, one_cycle, sgdr
from making import apart, boxes, check_figures, legend_of


def record(name, per_epoch, epochs, valid=True):
    n = per_epoch * epochs
    at = np.arange(n) / n
    rows = [dict(epoch=e, time=1., error=.5 ** e) for e in range(epochs)]
    if valid: rows = [row | dict(valid_loss=1 / (row["epoch"] + 1)) for row in rows]
    return FitRecord(name, losses=[1.] * n, smooth=(1 - at / 2).tolist(), moms=[.9] * n, rows=rows,
                     lrs=[(one_cycle()(p) / 10, one_cycle()(p)) for p in at],
                     ends=[per_epoch * (e + 1) for e in range(epochs)])


def two_fits(): return History([record("head", 10, 2), record("all", 10, 3)])


def lines(ax, **style):
    "The lines with these properties."
    return [l for l in ax.lines if all(getattr(l, f"get_{k}")() == v for k, v in style.items())]


def points(ax):
    "The dots of each fit: x and y."
    return [(l.get_xdata().tolist(), l.get_ydata().tolist()) for l in lines(ax, marker="o")]


# --- losses

def test_the_loss_of_several_fits():
    ax = plot_loss(two_fits()).axes[0]
    assert points(ax) == [([10, 20], [1, .5]), ([30, 40, 50], [1, .5, 1 / 3])]
    curves = [l for l in ax.lines if l.get_marker() != "o" and len(l.get_xdata()) > 2]
    assert [list(l.get_xdata()[[0, -1]]) for l in curves] == [[1, 20], [21, 50]]
    assert [l.get_xdata()[0] for l in lines(ax, linestyle=":")] == [20]
    assert [t.get_text() for t in ax.texts] == ["head", "all"]
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["training (smoothed)", "validation"]


def test_the_loss_of_the_last_fit():
    last = plot_loss(two_fits(), last=True)
    assert not last.axes[0].texts
    assert "30 steps" in last.alt


def test_a_loss_without_validation():
    plot_loss(History([record("x", 5, 2, valid=False)])).image()


# --- schedules

def peak(ax): return max(max(l.get_ydata()) for l in lines(ax, linestyle="-"))


def test_rates_and_momentum():
    rates, momentum = plot_schedule(two_fits()).axes
    assert (rates.get_ylabel(), momentum.get_ylabel()) == ("learning rate", "momentum")
    assert peak(rates) == pytest.approx(1)
    assert peak(momentum) == .9
    assert peak(plot_schedule(two_fits(), groups=0).axes[0]) == pytest.approx(.1)
    assert len(plot_schedule(two_fits(), momentum=False).axes) == 1
    assert len(plot_schedule(two_fits(), last=True).axes[0].lines[0].get_xdata()) == 30


def test_every_group_is_drawn_and_named():
    h = two_fits()
    ax = plot_schedule(h, groups="all", names=["body", "head"]).axes[0]
    assert legend_of(ax.figure) == ["body", "head"]
    drawn = {l.get_label(): l for l in ax.lines if not l.get_label().startswith("_")}
    for g, name in enumerate(("body", "head")):
        assert np.allclose(drawn[name].get_ydata(), [lrs[g] for lrs in h.fits[0].lrs])
    assert ax.get_yscale() == "log"
    assert max(drawn["body"].get_ydata()) / 30 >= ax.get_ylim()[0]
    one = plot_schedule(h, groups=-2).axes[0]
    assert not one.figure.legends
    assert np.allclose(lines(one, linestyle="-")[0].get_ydata(), drawn["body"].get_ydata())
    assert one.get_yscale() == "linear"


def test_a_group_whose_rates_are_small_in_one_fit_stays_visible():
    def fit(name, a, b):
        rates = [(a * one_cycle()(i / 20), b * one_cycle()(i / 20)) for i in range(20)]
        return FitRecord(name, losses=[1.] * 20, lrs=rates, moms=[.9] * 20)
    h = History([fit("one", 3e-4, 3e-3), fit("two", 1e-5, 1e-3)])
    assert plot_schedule(h, groups="all").axes[0].get_ylim()[0] < 1e-5


def test_a_schedule_is_drawn_as_it_is():
    line = plot_schedule(one_cycle()).axes[0].lines[0]
    assert np.allclose(line.get_ydata(), [one_cycle()(float(x)) for x in line.get_xdata()])
    ax = plot_schedule(sgdr(3, 1, 2, warmup=0), epochs=7).axes[0]
    assert ax.get_xlabel() == "epoch"
    x, y = map(np.array, ax.lines[0].get_data())
    assert x[y == 1].tolist() == [0, 1, 3]
    assert x.max() == pytest.approx(7)


def test_several_schedules():
    both = plot_schedule({"up and down": one_cycle(), "a function": lambda p: p})
    ax = both.axes[0]
    assert [l.get_label() for l in ax.lines] == ["up and down", "a function"]
    assert ax.get_xlabel() == "position in training"
    assert "up and down from 0.04 to 1e-05, highest 1" in both.alt
    assert "a function from 0 to 1" in both.alt
    own = Figure().add_subplot()
    assert plot_schedule({"a": one_cycle()}, ax=own) is own.figure
    assert own.get_legend()


@pytest.mark.parametrize("plot", [plot_loss, plot_metrics, plot_schedule])
def test_what_is_no_history_or_empty(plot):
    with pytest.raises(ValueError, match="fit_one_cycle"): plot(History())
    with pytest.raises(TypeError, match="History.*int"): plot(3)


@pytest.mark.parametrize("group", [5, -3, "most"])
def test_a_group_that_does_not_exist(group):
    with pytest.raises(ValueError, match=f"2 layer groups.*got {group!r}"):
        plot_schedule(History([record("x", 5, 1)]), groups=group)


# --- metrics

def metric_row(epoch, **scores):
    return dict(epoch=epoch, train_loss=1., valid_loss=1., time=1., **scores)


def test_metrics_have_an_axis_each_over_all_fits():
    head = FitRecord("head", losses=[1.] * 4, ends=[2, 4],
                     rows=[metric_row(e, error_rate=.5 / (e + 1)) for e in range(2)])
    both = FitRecord("all", losses=[1.] * 2, ends=[2],
                     rows=[metric_row(0, error_rate=.125, f_beta=.75)])
    h = History([head, FitRecord("stopped at once", losses=[1.]), both])
    fig = plot_metrics(h)
    assert [ax.get_ylabel() for ax in fig.axes] == ["error rate", "f beta"]
    error, f = map(points, fig.axes)
    assert error == [([1, 2], [.5, .25]), ([3], [.125])]
    assert f[1] == ([3], [.75])
    assert np.isnan(f[0][1]).all()
    assert {"0.125", "all"} <= {t.get_text() for t in fig.axes[0].texts}
    assert "error_rate by epoch, 0.125 at the end; f_beta" in fig.alt
    assert points(plot_metrics(h, last=True).axes[0]) == [([1], [.125])]


def test_many_metrics_fill_rows():
    row = dict(epoch=0, **{f"metric {i}": .5 for i in range(5)})
    fig = plot_metrics(History([FitRecord("x", losses=[1.], rows=[row], ends=[1])]))
    assert fig.axes[0].get_gridspec().get_geometry() == (2, 3)
    assert len(fig.axes) == 5


def test_fits_without_metrics():
    with pytest.raises(ValueError, match="none has ended"):
        plot_metrics(History([FitRecord("x", losses=[1.])]))
    with pytest.raises(ValueError, match="nothing but the loss"):
        plot_metrics(History([FitRecord("x", losses=[1.], rows=[metric_row(0)])]))


# --- the finder

def hump(n=100, **options):
    rates = np.geomspace(1e-7, 10, 100, endpoint=False)[:n]
    dip = 1.8 * np.exp(-((np.log10(rates) + 1.3) / 1.2) ** 2)
    losses = 2.3 - dip + np.maximum(0, np.log10(rates)) ** 2 * 30
    suggestions = suggest_rates(rates, losses, 10)
    return LRFind(tuple(rates), tuple(losses), **suggestions, skip=(10, 5), **options)


def test_the_finder_marks_what_was_found():
    find = hump(note="stopped")
    fig = plot_lr_find(find)
    ax = fig.axes[0]
    whole, read, *dots = ax.lines
    assert ax.get_xscale() == "log"
    assert len(whole.get_xdata()) == 100
    assert read.get_xdata().tolist() == list(find.rates[10:-5])
    assert whole.get_alpha() < 1
    assert read.get_alpha() is None
    x = [float(dot.get_xdata()[0]) for dot in dots]
    assert x == list(find.suggestions.values())
    y = [dot.get_ydata()[0] for dot in dots]
    assert y == pytest.approx(np.interp(x, find.rates, find.losses).tolist())
    assert {t.get_text().split("\n")[0]: t.xy[0] for t in ax.texts} == find.suggestions
    for name, rate in find.suggestions.items(): assert f"{name} {rate:.2e}" in fig.alt
    assert fig.alt.endswith("stopped")


def test_a_loss_that_explodes_is_cut_off():
    find = hump()
    bottom, top = plot_lr_find(find).axes[0].get_ylim()
    assert max(find.losses) > 4
    assert top < 3
    assert bottom < min(find.losses)


def test_a_loss_that_hardly_falls_shows_its_rise():
    rates = np.geomspace(1e-6, 1, 40)
    rise = np.maximum(0, np.log10(rates) + 2.5) ** 3
    losses = 1.25 + .05 * np.sin(np.arange(40)) + rise  # a model that is good already
    find = LRFind(tuple(rates), tuple(losses), **suggest_rates(rates, losses, 4), skip=(4, 5))
    top = plot_lr_find(find).axes[0].get_ylim()[1]
    assert top > losses.max() > 10


@pytest.mark.parametrize("at, figsize", [
    ((-6.9, -6.9, -6.9, -6.9), (4, 2.5)), ((.8, .7, .8, .79), (4, 2.5)),
    ((-3, -3, .8, .8), (6, 3.5)), ((-6.9, -2.1, -2, -2.2), (6, 3.5)),
])
def test_names_of_suggestions_never_cover_each_other(at, figsize):
    find = LRFind(hump().rates, hump().losses, *(10 ** a for a in at), skip=(10, 5))
    fig = plot_lr_find(find, figsize=figsize)
    fig.draw_without_rendering()
    texts = fig.axes[0].texts
    for t in texts: t.arrowprops = t.arrow_patch = None  # the words alone, without the lines
    places = sorted(boxes(texts), key=lambda b: b.x0)
    assert len(places) == 4
    assert apart(places)
    assert all(a.x1 < b.x0 for a, b in zip(places, places[1:]))
    assert places[0].x0 > -1
    assert places[-1].x1 < fig.bbox.x1 + 1


def test_what_was_not_tried_has_no_dot():
    "The lowest loss is the first one, so a tenth of its rate lies beyond the curve."
    rates, losses = np.geomspace(1e-6, 1, 30), np.linspace(1, 3, 30)
    find = LRFind(tuple(rates), tuple(losses), **suggest_rates(rates, losses, 0))
    fig = plot_lr_find(find)
    _, _, *dots = fig.axes[0].lines
    x = [float(dot.get_xdata()[0]) for dot in dots]
    assert x == list(find.measured.values())
    assert min(x) >= rates[0]
    assert fig.axes[0].texts[-1].get_text() == "not among the rates tried: minimum 1.0e-07"
    assert "minimum 1.00e-07 (not tried)" in fig.alt


@pytest.mark.parametrize("find", [
    LRFind((), (), note="stopped"), LRFind((1e-3,), (2.,)), LRFind((1e-3, 2e-3), (2., 2.)),
    LRFind((.1, .2, .3), (1., 2., 3.), linear=True),
])
def test_the_finder_is_drawn_however_short_it_was(find):
    fig = plot_lr_find(find)
    fig.image()
    assert fig.axes[0].get_xscale() == ("linear" if find.linear else "log")
    assert "learning-rate finder" in fig.alt
    if find.note:
        assert find.note in {t.get_text() for t in fig.axes[0].texts}
        assert find.note in fig.alt


def test_the_finder_takes_nothing_else():
    with pytest.raises(TypeError, match="LRFind.*History"): plot_lr_find(History())


def test_curves_are_small_and_described():
    def draw():
        h = History([record("one", 5, 2)])
        return {"loss": plot_loss(h), "metrics": plot_metrics(h), "finder": plot_lr_find(hump()),
                "rates": plot_schedule(h), "groups": plot_schedule(h, groups="all"),
                "schedule": plot_schedule(one_cycle()),
                "schedules": plot_schedule({"a": sgdr(), "b": flat_cos()}, epochs=7)}
    check_figures(draw, 20)
