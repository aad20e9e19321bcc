"""Figures and grids: every image in its place, legible titles, small files, nothing left open."""
import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from matplotlib import style
from PIL import Image

from lessonkit.plot.figures import heatmap_colors, show_images
from making import apart, boxes, check_figures, imported_with, photo, pixels, titles
from tiers import examples


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [photo(folder/f"{i:02}.jpg", i, (200, 150) if i % 2 else (150, 200)) for i in range(24)]


@pytest.mark.parametrize("module", ["figures", "batches", "training", "pictures", "scores"])
def test_importing_a_module_loads_nothing_heavy(module):
    heavy = ["matplotlib.pyplot", "pandas", "sklearn"]
    if module == "scores": heavy.append("scipy")
    assert imported_with(f"lessonkit.plot.{module}", heavy) == []


# --- the grid

@examples(15)
@given(n=st.integers(1, 13), ncols=st.one_of(st.none(), st.integers(1, 20)))
def test_a_grid_holds_each_image_once_in_order(n, ncols):
    images = [np.full((4, 5, 3), 10 * i, np.uint8) for i in range(n)]
    fig = show_images(images, [str(i) for i in range(n)], ncols=ncols)
    assert titles(fig) == [str(i) for i in range(n)]
    assert [pixels(ax)[0, 0, 0] for ax in fig.axes] == [10 * i for i in range(n)]
    rows, cols = fig.axes[0].get_gridspec().get_geometry()
    assert (rows - 1) * cols < n <= rows * cols
    assert cols == min(ncols or cols, n)


def test_images_are_upright_small_and_of_any_kind(tmp_path):
    img = Image.new("RGB", (1200, 600), "red")
    img.paste("blue", (0, 0, 600, 600))
    exif = img.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    img.save(tmp_path/"turned.jpg", exif=exif)
    Image.new("L", (30, 20), 77).save(tmp_path/"gray.png")
    paths = [tmp_path/"turned.jpg", str(tmp_path/"gray.png")]
    fig = show_images([*paths, torch.rand(1, 9, 9), np.zeros((9, 9), np.uint8)])
    turned, gray, *rest = [pixels(ax) for ax in fig.axes]
    assert turned.shape == (400, 200, 3)
    assert turned[5, 100, 2] > 200  # blue was on the left, and is above now
    assert turned[-5, 100, 0] > 200
    assert (gray == 77).all()
    assert [a.shape for a in rest] == [(9, 9, 3)] * 2


@pytest.mark.parametrize("images, options, words", [
    (0, {}, "no images"),
    (1, dict(titles=["a", "b"]), "1 images and 2 titles"),
    (1, dict(titles=["a"], colors=[]), "0 colors"),
    (1, dict(ncols=0), "ncols is a whole number above 0; got 0"),
])
def test_wrong_lengths_are_named(images, options, words):
    with pytest.raises(ValueError, match=words):
        show_images([np.zeros((4, 4, 3), np.uint8)] * images, **options)


def test_normalized_images_are_refused():
    with pytest.raises(ValueError, match="normalized"): show_images([torch.randn(3, 8, 8) * 3])


@pytest.mark.parametrize("names", [
    ["staffordshire_bull_terrier"] * 8,
    [f"a: {name}\nb: {name} 0.12" for name in ("pug", "american_pit_bull_terrier") * 4],
])
def test_titles_are_aligned_and_never_overlap(files, names):
    "Even where images have different shapes, and names are as long as those of breeds."
    fig = show_images(files[:8], names, ncols=4, suptitle="some words above them all")
    fig.draw_without_rendering()
    places = boxes(ax.title for ax in fig.axes)
    assert apart(places, dx=1)
    assert min(b.x0 for b in places) >= -3
    assert max(b.x1 for b in places) <= fig.bbox.x1 + 3
    heading = fig._suptitle.get_window_extent()
    assert all(heading.y0 >= b.y1 for b in places)
    bottoms = [b.y0 for b in places]
    tops = [b.y1 for b in boxes(fig.axes)]
    for row in (slice(0, 4), slice(4, 8)):
        assert max(bottoms[row]) - min(bottoms[row]) < 3
        assert max(tops[row]) - min(tops[row]) < 1
    assert len({b.height for b in boxes(fig.axes)}) > 1  # the images do differ in shape


# --- heat maps, and images that can't be shown

@examples(20)
@given(h=st.integers(1, 9), w=st.integers(1, 9), seed=st.integers(0, 99), tensor=st.booleans())
def test_a_heatmap_is_clear_where_it_is_zero_and_never_hides_the_image(h, w, seed, tensor):
    heat = np.random.default_rng(seed).random((h, w))
    heat *= np.random.default_rng(seed + 1).random((h, w)) > .5
    colors = heatmap_colors(torch.from_numpy(heat) if tensor else heat, (w, h))  # nothing is scaled
    assert colors.shape == (h, w, 4)
    assert (colors[heat < .1][:, 3] < 1e-6).all()
    assert (colors[heat > .9][:, 3] > .549).all()
    assert colors[..., 3].max(initial=0) <= .5501
    order = np.argsort(heat.ravel())
    assert (np.diff(colors[..., 3].ravel()[order]) >= -1e-6).all()
    bright = colors[..., :3].ravel().reshape(-1, 3)[order] @ [.2126, .7152, .0722]
    assert (np.diff(bright) > -.01).all()  # more is also brighter: readable without color


def test_a_heatmap_fills_its_image(files):
    left, right = np.eye(2)[[0, 0]], np.eye(2)[[1, 1]]
    fig = show_images(files[:2], heatmaps=torch.from_numpy(np.stack([left, right])))
    for ax, side in zip(fig.axes, (0, -1)):
        image, over = ax.images
        opacity = pixels(ax, 1)[..., 3].mean(0)
        assert pixels(ax, 1).shape[:2] == pixels(ax).shape[:2]
        assert over.get_extent() == image.get_extent()
        assert opacity[side] > .5
        assert opacity[-1 - side] < .01
    assert "heat map" in fig.alt


@pytest.mark.parametrize("bad", [np.ones((2, 2, 2)), np.ones(2), np.full((2, 2), 1.1),
                                 np.full((2, 2), -.1), np.full((2, 2), np.nan)])
def test_a_bad_heatmap_is_refused(files, bad):
    with pytest.raises(ValueError, match="lies in .0,1"): show_images(files[:1], heatmaps=[bad])


def test_each_image_needs_a_heatmap(files):
    with pytest.raises(ValueError, match="2 images and 1 heat maps"):
        show_images(files[:2], heatmaps=[np.ones((2, 2))])


def test_what_cannot_be_opened_leaves_a_tile_with_the_reason(files, tmp_path):
    broken, torn = tmp_path/"broken.jpg", tmp_path/"torn.npy"
    broken.write_bytes(b"no image")
    torn.write_bytes(b"no array")
    bad = [tmp_path/"gone.jpg", broken, str(torn), tmp_path/"gone.npy", b"no image", tmp_path]
    fig = show_images([files[0], *bad], list("abcdefg"), heatmaps=[np.ones((2, 2))] * 7)
    assert titles(fig) == list("abcdefg")
    assert [len(ax.texts) for ax in fig.axes] == [0] + [1] * 6
    assert [len(ax.images) for ax in fig.axes] == [2] + [1] * 6
    assert fig.alt.count("can't be shown") == 6
    assert fig.alt.count("there is no such file") == 2
    assert str(tmp_path) not in fig.alt
    assert "0x" not in fig.alt
    names = ["gone.jpg", "broken.jpg", "torn.npy", "gone.npy", "the bytes given"]
    for i, name in enumerate(names, 2): assert f"Image {i} can't be shown: {name}: " in fig.alt


# --- how it is shown

def test_grids_are_small_and_described(files):
    check_figures(lambda: {"heat maps": show_images(files, heatmaps=np.ones((24, 2, 2)))}, 20)


def test_a_notebook_shows_a_figure_once_with_its_words(monkeypatch, files):
    import IPython.display
    shown = []
    def display(content, raw): shown.append(content)
    monkeypatch.setattr(IPython.display, "display", display)
    show_images(files[:2], ["a", "b"])._ipython_display_()
    content, = shown
    assert set(content) == {"text/html", "text/plain"}
    assert content["text/plain"] == "2 images: a; b"
    assert '<img alt="2 images: a; b" width="' in content["text/html"]
    assert "src=\"data:image/jpeg;base64," in content["text/html"]


def test_a_dark_style(files):
    with style.context("dark_background"):
        fig = show_images(files[:2], ["a", "b"], suptitle="both")
    assert fig.get_facecolor()[:3] == (0, 0, 0)
    assert {t.get_color() for t in (*(ax.title for ax in fig.axes), *fig.texts)} == {"white"}


@pytest.mark.parametrize("text, face, level", [
    ("black", "none", 255), ("white", "none", 0), ("#ddd", "none", 0), ("white", "#222", 0x22),
    ("black", "white", 255), ("black", (1, 1, 1, 0), 255),
])
@pytest.mark.parametrize("photos", [True, False])
def test_words_can_be_read_without_a_background(text, face, level, photos):
    "A JPEG can't be transparent, and what Pillow takes for transparent is black."
    with mpl.rc_context({"figure.facecolor": face, "text.color": text}):
        fig = show_images([np.full((9, 9, 3), 128, np.uint8)], ["title"])
    fig.photos = photos
    corner = np.asarray(Image.open(io.BytesIO(fig.image()[1])).convert("RGB"))[0, 0]
    assert abs(corner.astype(int) - level).max() <= 8
