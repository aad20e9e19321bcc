"""Pictures: the right words in them, only the files that are shown opened, small when saved, nothing left open."""
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Fake

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from lessonkit import plot as P
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.train.lr_finder import LRFind, suggest_rates
from lessonkit.train.schedules import flat_cos, one_cycle, sgdr
from lessonkit.train.history import FitRecord, History
from making import photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        for name in ("pug", "samoyed"): photo(folder/f"{name}_{i}.jpg", i, (200, 150) if i % 2 else (150, 200))
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return ImageData.from_name_func(folder, lambda name: Path(name).stem.split("_")[0], sorted(folder.glob("*.jpg")), size=64, bs=8,
                                    augment=augmentations())


def titles(fig): return [ax.get_title().replace("\xa0", " ") for ax in fig.axes]


def overlap(fig):
    "Do any two titles of the grid overlap, or run out of the figure?"
    fig.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in fig.axes]
    inside = all(b.x0 >= -3 and b.x1 <= fig.bbox.x1 + 3 for b in boxes)
    return not inside or any(a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 and b.y0 < a.y1
                             for i, a in enumerate(boxes) for b in boxes[:i])


# --- the grid

@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 13), ncols=st.one_of(st.none(), st.integers(1, 20)))
def test_grid_holds_each_picture_once_in_order(n, ncols):
    images = [np.full((4, 5, 3), 10*i, np.uint8) for i in range(n)]
    fig = P.show_images(images, [str(i) for i in range(n)], ncols=ncols)
    assert titles(fig) == [str(i) for i in range(n)] and [ax.images[0].get_array()[0, 0, 0] for ax in fig.axes] == [10*i for i in range(n)]
    rows, cols = fig.axes[0].get_gridspec().get_geometry()
    assert (rows - 1)*cols < n <= rows*cols and cols == min(ncols or cols, n)


def test_grid_is_upright_small_and_takes_any_picture(tmp_path):
    img = Image.new("RGB", (1200, 600), "red")
    img.paste("blue", (0, 0, 600, 600))
    exif = img.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    img.save(tmp_path/"turned.jpg", exif=exif)
    Image.new("L", (30, 20), 77).save(tmp_path/"gray.png")
    fig = P.show_images([tmp_path/"turned.jpg", str(tmp_path/"gray.png"), torch.rand(1, 9, 9), np.zeros((9, 9), np.uint8)])
    turned, gray, *rest = [ax.images[0].get_array() for ax in fig.axes]
    assert turned.shape == (400, 200, 3) and turned[5, 100, 2] > 200 and turned[-5, 100, 0] > 200  # blue was left, is now above
    assert (gray == 77).all() and all(a.shape == (9, 9, 3) for a in rest)


def test_grid_errors():
    one = [np.zeros((4, 4, 3), np.uint8)]
    for bad, words in [(lambda: P.show_images([]), "no pictures"), (lambda: P.show_images(one, ["a", "b"]), "1 pictures and 2 titles"),
                       (lambda: P.show_images(one, ["a"], colors=[]), "0 colors"), (lambda: P.show_images(one, ncols=0), "not 0"),
                       (lambda: P.show_images([torch.randn(3, 8, 8)*3]), "normalized")]:
        with pytest.raises(ValueError, match=words): bad()


def test_titles_stand_on_one_line_and_never_overlap(folder):
    "Also where pictures are of different shapes, and names as long as breeds have them."
    files = sorted(folder.glob("*.jpg"))
    for names in (["staffordshire_bull_terrier"]*8, [f"a: {w}\nb: {w} 0.12" for w in ("pug", "american_pit_bull_terrier")*4]):
        fig = P.show_images(files[:8], names, ncols=4, suptitle="some words above them all")
        assert not overlap(fig)
        bottoms, tops = ([f(ax) for ax in fig.axes] for f in (lambda ax: ax.title.get_window_extent().y0, lambda ax: ax.get_window_extent().y1))
        heading = fig._suptitle.get_window_extent()
        assert all(heading.y0 >= ax.title.get_window_extent().y1 for ax in fig.axes)
        for row in (slice(0, 4), slice(4, 8)): assert max(bottoms[row]) - min(bottoms[row]) < 3 and max(tops[row]) - min(tops[row]) < 1
        assert len({ax.get_window_extent().height for ax in fig.axes}) > 1   # the pictures differ in shape


# --- heat maps and pictures that can't be shown

@settings(max_examples=20, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), seed=st.integers(0, 99), tensor=st.booleans())
def test_heat_is_clear_where_it_is_zero_and_never_hides_the_picture(h, w, seed, tensor):
    heat = np.random.default_rng(seed).random((h, w))*(np.random.default_rng(seed + 1).random((h, w)) > .5)
    colors = P._colored(torch.from_numpy(heat) if tensor else heat, (w, h))   # at its own size nothing is interpolated
    assert colors.shape == (h, w, 4) and (colors[heat < .1][:, 3] < 1e-6).all() and (colors[heat > .9][:, 3] > .549).all() and colors[..., 3].max(initial=0) <= .5501
    order = np.argsort(heat.ravel())
    assert (np.diff(colors[..., 3].ravel()[order]) >= -1e-6).all()
    bright = colors[..., :3].ravel().reshape(-1, 3)[order] @ [.2126, .7152, .0722]
    assert (np.diff(bright) > -.01).all()   # more is also brighter: readable without seeing any color


def test_heat_fills_the_picture_it_is_of(folder):
    files = sorted(folder.glob("*.jpg"))[:2]
    left, right = np.eye(2)[[0, 0]], np.eye(2)[[1, 1]]
    fig = P.show_images(files, heat=torch.from_numpy(np.stack([left, right])))
    for ax, side in zip(fig.axes, (0, -1)):
        picture, over = ax.images
        strength = np.asarray(over.get_array())[..., 3].mean(0)
        assert over.get_array().shape[:2] == picture.get_array().shape[:2] and over.get_extent() == picture.get_extent()
        assert strength[side] > .5 and strength[-1 - side] < .01
    assert "heat map" in fig.alt
    for bad in (np.ones((2, 2, 2)), np.ones(2), np.full((2, 2), 1.1), np.full((2, 2), -.1), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="lies in .0,1"): P.show_images(files[:1], heat=[bad])
    with pytest.raises(ValueError, match="2 pictures and 1 heat maps"): P.show_images(files, heat=[left])


def test_what_cannot_be_opened_leaves_a_tile_with_the_reason(folder, tmp_path):
    (tmp_path/"broken.jpg").write_bytes(b"no picture")
    (tmp_path/"torn.npy").write_bytes(b"no array")
    bad = [tmp_path/"gone.jpg", tmp_path/"broken.jpg", str(tmp_path/"torn.npy"), tmp_path/"gone.npy", b"no picture", tmp_path]
    fig = P.show_images([next(folder.glob("*.jpg")), *bad], list("abcdefg"), heat=[np.ones((2, 2))]*7)
    assert titles(fig) == list("abcdefg") and [len(ax.texts) for ax in fig.axes] == [0] + [1]*6 and [len(ax.images) for ax in fig.axes] == [2] + [1]*6
    assert fig.alt.count("can't be shown") == 6 and fig.alt.count("there is no such file") == 2 and str(tmp_path) not in fig.alt and "0x" not in fig.alt
    for i, name in ((2, "gone.jpg"), (3, "broken.jpg"), (4, "torn.npy"), (5, "gone.npy"), (6, "the bytes given")): assert f"Picture {i} can't be shown: {name}: " in fig.alt
    with pytest.raises(ValueError, match="normalized"): P.show_images([torch.randn(3, 8, 8)*3])   # a mistake of the caller's is an error as before


# --- weight, words and leftovers

def drawn(folder, data):
    h = Fake(fits=[record("one", 5, 2)])
    return {"batch": P.show_batch(data), "unique": P.show_batch(data, unique=True),
            "heat": P.show_images(sorted(folder.glob("*.jpg")), heat=np.ones((24, 2, 2))),
            "loss": P.plot_loss(h), "schedule": P.plot_schedule(h), "groups": P.plot_schedule(h, groups="all"), "bare": P.plot_schedule(one_cycle()),
            "bares": P.plot_schedule({"a": sgdr(), "b": flat_cos()}, epochs=7), "metrics": P.plot_metrics(h), "finder": P.plot_lr_find(hump())}


def test_every_picture_is_small_has_words_and_is_no_open_figure(folder, data):
    from matplotlib import pyplot
    before = pyplot.get_fignums()
    for name, fig in drawn(folder, data).items():
        mime, file = fig.image()
        assert len(file) <= 37_000 and fig.dpi == 60, (name, len(file))
        assert Image.open(io.BytesIO(file)).format == ("JPEG" if fig.photos else "PNG") and (mime == "image/jpeg") == fig.photos
        assert len(fig.alt) > 20, name
    assert pyplot.get_fignums() == before


def test_a_notebook_shows_a_picture_once_with_its_words(monkeypatch, data):
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, metadata, raw: shown.append((bundle, metadata)))
    P.show_batch(data, n=2)._ipython_display_()
    (bundle, metadata), = shown
    assert set(bundle) == {"image/jpeg", "text/plain"} and metadata["image/jpeg"]["alt"] == bundle["text/plain"]
    assert bundle["text/plain"].startswith("2 pictures: ")


def test_dark_style(folder):
    from matplotlib import style
    with style.context("dark_background"): fig = P.show_images(sorted(folder.glob("*.jpg"))[:2], ["a", "b"], suptitle="both")
    assert fig.get_facecolor()[:3] == (0, 0, 0) and {t.get_color() for t in (*(ax.title for ax in fig.axes), *fig.texts)} == {"white"}


@pytest.mark.parametrize("text, face, paper", [("black", "none", 255), ("white", "none", 0), ("#ddd", "none", 0), ("white", "#222", 0x22), ("black", "white", 255), ("black", (1, 1, 1, 0), 255)])
@pytest.mark.parametrize("photos", [True, False])
def test_words_can_be_read_without_a_background(folder, text, face, paper, photos):
    "A JPEG can't be transparent, and what Pillow takes for transparent is black."
    import matplotlib as mpl
    with mpl.rc_context({"figure.facecolor": face, "text.color": text}): fig = P.show_images([np.full((9, 9, 3), 128, np.uint8)], ["title"])
    fig.photos = photos
    assert abs(np.asarray(Image.open(io.BytesIO(fig.image()[1])).convert("RGB"))[0, 0].astype(int) - paper).max() <= 8


def test_matplotlib_is_drawn_without_pyplot():
    code = "import sys, lessonkit.plot; print('matplotlib.pyplot' in sys.modules, 'pandas' in sys.modules, 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]*3


# --- batches

@pytest.mark.parametrize("split", ["train", "train_eval", "valid"])
def test_batch_titles_are_the_labels(data, split):
    loader = getattr(data, split)
    fig = P.show_batch(data, n=100, split=split, seed=2)
    assert len(fig.axes) == loader.n  # all there are
    assert sorted(titles(fig)) == sorted(p.stem.split("_")[0] for p in loader.paths)
    assert all(ax.images[0].get_array().shape == (64, 64, 3) for ax in fig.axes)


def test_batch_unique_is_one_picture_augmented(data):
    fig = P.show_batch(data, n=6, unique=True)
    arrays = [np.asarray(ax.images[0].get_array()) for ax in fig.axes]
    assert len(set(titles(fig))) == 1 and len(arrays) == 6
    assert len({a.tobytes() for a in arrays}) == 6
    again = P.show_batch(data, n=6, unique=True)
    assert all((a == ax.images[0].get_array()).all() for a, ax in zip(arrays, again.axes))


def test_batch_other_kinds_and_errors(folder, data):
    files = sorted(folder.glob("*.jpg"))
    multi = ImageData.from_lists(folder, files, [["fur", "tail"] if i % 2 else ["fur"] for i in range(24)], size=32, bs=8)
    assert set(titles(P.show_batch(multi, n=9))) == {"fur", "fur\ntail"}
    number = ImageData.from_lists(folder, files, [i/4 for i in range(24)], size=32, bs=8)
    assert {float(t) for t in titles(P.show_batch(number, n=9))} <= {i/4 for i in range(24)}
    with pytest.raises(ValueError, match="'test'.*train"): P.show_batch(data, split="test")
    with pytest.raises(ValueError, match="'trian'"): P.show_batch(data, split="trian")
    with pytest.raises(ValueError, match="not 0"): P.show_batch(data, n=0)
    with pytest.raises(ValueError, match="augment=augmentations"): P.show_batch(multi, unique=True)


# --- losses and schedules

def record(name, n, epochs, valid=True):
    at = np.arange(n*epochs)/(n*epochs)
    return Fake(name=name, losses=[1.]*len(at), smooth=(1 - at/2).tolist(), lrs=[(one_cycle()(p)/10, one_cycle()(p)) for p in at],
                moms=[.9]*len(at), rows=[{"epoch": e, "time": 1., "error": .5**e, **({"valid_loss": 1/(e + 1)} if valid else {})} for e in range(epochs)],
                ends=[n*(e + 1) for e in range(epochs)], notes=[])


def test_loss_of_several_fits():
    h = Fake(fits=[record("head", 10, 2), record("all", 10, 3)])
    ax = P.plot_loss(h).axes[0]
    dots = [(l.get_xdata().tolist(), l.get_ydata().tolist()) for l in ax.lines if l.get_marker() == "o"]
    assert dots == [([10, 20], [1, .5]), ([30, 40, 50], [1, .5, 1/3])]
    lines = [l for l in ax.lines if l.get_marker() != "o" and len(l.get_xdata()) > 2]
    assert [list(l.get_xdata()[[0, -1]]) for l in lines] == [[1, 20], [21, 50]]
    assert [l.get_xdata()[0] for l in ax.lines if l.get_linestyle() == ":"] == [20] and [t.get_text() for t in ax.texts] == ["head", "all"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["training (smoothed)", "validation"]
    last = P.plot_loss(h, last=True)
    assert not last.axes[0].texts and "30 steps" in last.alt
    P.plot_loss(Fake(fits=[record("x", 5, 2, valid=False)])).image()  # no validation: no dots, no crash


def test_schedule():
    h = Fake(fits=[record("head", 10, 2), record("all", 10, 3)])
    lr, mom = P.plot_schedule(h).axes
    assert (lr.get_ylabel(), mom.get_ylabel()) == ("learning rate", "momentum")
    peak = lambda ax: max(max(l.get_ydata()) for l in ax.lines if l.get_linestyle() == "-")
    assert peak(lr) == pytest.approx(1) and peak(mom) == .9 and peak(P.plot_schedule(h, groups=0).axes[0]) == pytest.approx(.1)
    assert len(P.plot_schedule(h, momentum=False).axes) == 1
    assert len(P.plot_schedule(h, last=True).axes[0].lines[0].get_xdata()) == 30
    bare = P.plot_schedule(one_cycle()).axes[0].lines[0]
    assert np.allclose(bare.get_ydata(), [one_cycle()(float(x)) for x in bare.get_xdata()])


def test_history_errors():
    for f in (P.plot_loss, P.plot_metrics, P.plot_schedule):
        with pytest.raises(ValueError, match="fit_one_cycle"): f(Fake(fits=[]))
        with pytest.raises(TypeError, match="History.*int"): f(3)
    for group in (5, -3, "most"):
        with pytest.raises(ValueError, match=f"2 layer groups.*not {group!r}"): P.plot_schedule(Fake(fits=[record("x", 5, 1)]), groups=group)
    with pytest.raises(ValueError, match="none has ended"): P.plot_metrics(Fake(fits=[FitRecord("x", losses=[1.])]))
    with pytest.raises(ValueError, match="nothing but the loss"): P.plot_metrics(Fake(fits=[FitRecord("x", losses=[1.], rows=[dict(epoch=0, train_loss=1., valid_loss=1., time=1.)])]))


def lines(ax, **look): return [l for l in ax.lines if all(getattr(l, f"get_{k}")() == v for k, v in look.items())]


def test_every_group_is_drawn_and_named():
    h = Fake(fits=[record("head", 10, 2), record("all", 10, 3)])
    ax = P.plot_schedule(h, groups="all", names=["body", "head"]).axes[0]
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["body", "head"]
    drawn = {l.get_label(): l for l in ax.lines if not l.get_label().startswith("_")}
    assert [np.allclose(drawn[k].get_ydata(), [lr[g] for lr in h.fits[0].lrs]) for g, k in enumerate(("body", "head"))] == [True, True]
    assert ax.get_yscale() == "log" and max(drawn["body"].get_ydata())/30 >= ax.get_ylim()[0]
    one = P.plot_schedule(h, groups=-2).axes[0]
    assert not one.figure.legends and np.allclose(lines(one, linestyle="-")[0].get_ydata(), drawn["body"].get_ydata()) and one.get_yscale() == "linear"


def test_a_group_whose_rates_are_small_in_one_fit_stays_visible():
    at = np.arange(20)/20
    fits = [Fake(name=n, losses=[1.]*20, lrs=[(a*one_cycle()(p), b*one_cycle()(p)) for p in at], moms=[.9]*20) for n, a, b in (("one", 3e-4, 3e-3), ("two", 1e-5, 1e-3))]
    assert P.plot_schedule(Fake(fits=fits), groups="all").axes[0].get_ylim()[0] < 1e-5


def test_bare_schedules():
    curve = P.plot_schedule(sgdr(3, 1, 2, warmup=0), epochs=7).axes[0]
    assert curve.get_xlabel() == "epoch"
    x, y = map(np.array, curve.lines[0].get_data())
    assert x[y == 1].tolist() == [0, 1, 3] and x.max() == pytest.approx(7)
    both = P.plot_schedule({"up and down": one_cycle(), "a function": lambda p: p})
    assert [l.get_label() for l in both.axes[0].lines] == ["up and down", "a function"] and both.axes[0].get_xlabel() == "position in training"
    assert "up and down from 0.04 to 1e-05, highest 1" in both.alt and "a function from 0 to 1" in both.alt
    from matplotlib.figure import Figure
    own = Figure().add_subplot()
    assert P.plot_schedule({"a": one_cycle()}, ax=own) is own.figure and own.get_legend()


# --- metrics

def test_metrics_have_an_axis_each_over_all_fits():
    h = History([FitRecord("head", losses=[1.]*4, rows=[dict(epoch=e, train_loss=1., valid_loss=1., error_rate=.5/(e + 1), time=1.) for e in range(2)], ends=[2, 4]),
                 FitRecord("stopped at once", losses=[1.]),
                 FitRecord("all", losses=[1.]*2, rows=[dict(epoch=0, train_loss=1., valid_loss=1., error_rate=.125, f_beta=.75, time=1.)], ends=[2])])
    fig = P.plot_metrics(h)
    assert [ax.get_ylabel() for ax in fig.axes] == ["error rate", "f beta"]
    error, f = ([(l.get_xdata().tolist(), l.get_ydata().tolist()) for l in lines(ax, marker="o")] for ax in fig.axes)
    assert error == [([1, 2], [.5, .25]), ([3], [.125])] and f[1] == ([3], [.75]) and np.isnan(f[0][1]).all()
    assert {"0.125", "all"} <= {t.get_text() for t in fig.axes[0].texts} and "error_rate by epoch, 0.125 at the end; f_beta" in fig.alt
    assert [l.get_xdata().tolist() for l in lines(P.plot_metrics(h, last=True).axes[0], marker="o")] == [[1]]


def test_many_metrics_fill_rows():
    row = dict(epoch=0, **{f"metric {i}": .5 for i in range(5)})
    fig = P.plot_metrics(Fake(fits=[FitRecord("x", losses=[1.], rows=[row], ends=[1])]))
    assert fig.axes[0].get_gridspec().get_geometry() == (2, 3) and len(fig.axes) == 5


# --- the finder

def hump(n=100, **kw):
    rates = np.geomspace(1e-7, 10, 100, endpoint=False)[:n]
    losses = 2.3 - 1.8*np.exp(-((np.log10(rates) + 1.3)/1.2)**2) + np.maximum(0, np.log10(rates))**2*30
    return LRFind(tuple(rates), tuple(losses), **suggest_rates(rates, losses, 10), skip=(10, 5), **kw)


def test_the_finder_marks_what_was_found():
    find = hump(note="stopped")
    fig = P.plot_lr_find(find)
    ax = fig.axes[0]
    whole, read, *dots = ax.lines
    assert ax.get_xscale() == "log" and len(whole.get_xdata()) == 100 and read.get_xdata().tolist() == list(find.rates[10:-5])
    assert whole.get_alpha() < 1 and read.get_alpha() is None
    assert [d.get_xdata()[0] for d in dots] == list(find.suggestions.values())
    assert all(d.get_ydata()[0] == pytest.approx(np.interp(d.get_xdata()[0], find.rates, find.losses)) for d in dots)
    assert {t.get_text().split("\n")[0]: t.xy[0] for t in ax.texts} == find.suggestions
    assert all(f"{k} {v:.2e}" in fig.alt for k, v in find.suggestions.items()) and fig.alt.endswith("stopped")
    assert max(find.losses) > 4 and ax.get_ylim()[1] < 3 and ax.get_ylim()[0] < min(find.losses)   # what explodes is cut off


def test_a_loss_that_hardly_falls_shows_its_rise():
    rates = np.geomspace(1e-6, 1, 40)
    losses = 1.25 + .05*np.sin(np.arange(40)) + np.maximum(0, np.log10(rates) + 2.5)**3   # a model that is good already
    assert P.plot_lr_find(LRFind(tuple(rates), tuple(losses), **suggest_rates(rates, losses, 4), skip=(4, 5))).axes[0].get_ylim()[1] > losses.max() > 10


@pytest.mark.parametrize("at, figsize", [((-7, -7, -7, -7), (4, 2.5)), ((1, .9, 1, .99), (4, 2.5)), ((-3, -3, 1, 1), (6, 3.5)), ((-9, -2.1, -2, -2.2), (6, 3.5))])
def test_names_of_suggestions_never_cover_each_other(at, figsize):
    find = LRFind(hump().rates, hump().losses, *(10**a for a in at), skip=(10, 5))
    fig = P.plot_lr_find(find, figsize=figsize)
    fig.draw_without_rendering()
    for t in fig.axes[0].texts: t.arrowprops = t.arrow_patch = None   # the words alone, without the line to the dot
    boxes = sorted((t.get_window_extent() for t in fig.axes[0].texts), key=lambda b: b.x0)
    assert len(boxes) == 4 and all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
    assert boxes[0].x0 > -1 and boxes[-1].x1 < fig.bbox.x1 + 1


@pytest.mark.parametrize("find", [LRFind((), (), note="stopped"), LRFind((1e-3,), (2.,)), LRFind((1e-3, 2e-3), (2., 2.)), LRFind((.1, .2, .3), (1., 2., 3.), linear=True)])
def test_the_finder_is_drawn_however_short_it_was(find):
    fig = P.plot_lr_find(find)
    fig.image()
    assert fig.axes[0].get_xscale() == ("linear" if find.linear else "log") and "learning-rate finder" in fig.alt
    if find.note: assert find.note in {t.get_text() for t in fig.axes[0].texts} and find.note in fig.alt


def test_the_finder_takes_nothing_else():
    with pytest.raises(TypeError, match="LRFind.*History"): P.plot_lr_find(History())
