"""Pictures of right and wrong: the right ones, the probability of the class that is named, only the files that are shown, nothing dies of a file that is gone."""
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from matplotlib import style
from PIL import Image

from lessonkit import interpret as I
from lessonkit import plot
from lessonkit.plot import pictures as P
from lessonkit.data.image_data import ImageData
from lessonkit.train.features import FeatureLoader
from lessonkit.results.preds import Preds
from making import photo, predictions

PETS = """Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll Russian_Blue Siamese Sphynx american_bulldog
american_pit_bull_terrier basset_hound beagle boxer chihuahua english_cocker_spaniel english_setter german_shorthaired great_pyrenees havanese japanese_chin keeshond
leonberger miniature_pinscher newfoundland pomeranian pug saint_bernard samoyed scottish_terrier shiba_inu staffordshire_bull_terrier wheaten_terrier yorkshire_terrier""".split()
NAMES = {2: ("cat", "dog"), 12: tuple(PETS[8:20]), 37: tuple(PETS)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return tuple(photo(folder/f"{'pug' if i % 2 else 'samoyed'}_{i:02}.jpg", i, (120, 90) if i % 3 else (90, 120)) for i in range(40))


@pytest.fixture(scope="module")
def data(files): return ImageData.from_name_func(files[0].parent, lambda f: Path(f).stem.split("_")[0], files, size=48, bs=8, check=None)


def made(c=5, *args, classes=None, **kw): return predictions(c, *args, classes=classes or NAMES.get(c), **kw)


def five(p, label, k=4, **kw):
    "The five kinds, and the others that choose for themselves, by name: (positions that should be shown, figure)."
    a, b, _ = (*I.most_confused(p)[0],)
    return {"correct": (I.random_right(p, k), P.plot_correct(p, k, **kw)), "incorrect": (I.random_wrong(p, k), P.plot_incorrect(p, k, **kw)),
            "most correct": (I.most_correct(p, label, k), P.plot_most_correct(p, label, k, **kw)),
            "most incorrect": (I.most_incorrect(p, label, k), P.plot_most_incorrect(p, label, k, **kw)),
            "uncertain": (I.most_uncertain(p, k), P.plot_most_uncertain(p, k, **kw)), "cell": (I.in_cell(p, a, b, k), P.plot_cell(p, a, b, k, **kw)),
            "top": (I.top_losses(p, k)[1], P.plot_top_losses(p, k, **kw)), "smallest": (I.top_losses(p, k, False)[1], P.plot_top_losses(p, k, False, **kw))}


def captions(fig): return [" ".join(ax.get_title().split()) for ax in fig.axes]
def heading(fig): return fig.get_suptitle().replace("\n", " ")


def crowded(fig):
    "Do titles overlap each other, the heading or a picture, or run out of the figure?"
    fig.draw_without_rendering()
    titles = [ax.title.get_window_extent() for ax in fig.axes]
    words = titles + [t.get_window_extent() for t in [fig._suptitle] if t is not None]
    others = words + [ax.get_window_extent() for ax in fig.axes]
    inside = all(b.x0 >= -2 and b.x1 <= fig.bbox.x1 + 2 and b.y1 <= fig.bbox.y1 + 2 for b in words)
    return not inside or any(a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1 for a in words for b in others if a is not b)


# --- what the captions say

def truth(p, i):
    "What has to stand over picture i, whatever else does."
    c, said = int(p.targets[i]), int(p.probs[i].argmax())
    share = lambda j: (f"{v:.2f}" if .005 <= (v := float(p.probs[i, j])) < .995 else "<0.01" if v < .5 else ">0.99")
    return f"actual: {p.classes[c]} {share(c)} predicted: {p.classes[said]}" + (" ✓" if c == said else f" {share(said)} ✗")


@pytest.mark.parametrize("c", [2, 12, 37])
@pytest.mark.parametrize("seed", range(3))
def test_every_caption_is_true_and_of_the_right_picture(files, c, seed):
    p = made(c, 200, seed, 1.2 if c == 2 else 2.5, files*5)
    label = p.classes[next(c for c in p.targets[I.wrong(p)].tolist() if len(I.most_correct(p, c)))]
    for name, (idx, fig) in five(p, label).items():
        assert len(fig.axes) == len(idx), name
        for ax, i in zip(fig.axes, idx.tolist()):
            words = " ".join(ax.get_title().split())
            assert words.startswith(truth(p, i)), (name, words)
            assert ax.title.get_color() == (plot.RIGHT if p.pred[i] == p.targets[i] else plot.WRONG)
            if name in ("top", "smallest"): assert words.endswith(f"loss: {p.losses[i]:.2f}")
            assert (ax.images[0].get_array() == np.asarray(Image.open(p.paths[i]))).all(), name
        assert fig.alt.count("actual: ") == fig.alt.count("predicted: ") == len(idx) and all(w in fig.alt for w in captions(fig)[0].split())


def test_the_largest_probability_is_never_said_to_be_anothers(files):
    "Sure and wrong: libraries have written the 0.90 of the mistake beside the truth."
    p = Preds(torch.tensor([[.1, .9], [.3, .7]]), torch.tensor([0, 1]), torch.tensor([2.3, .4]), files[:2], Task("single", ("cat", "dog")))
    assert captions(P.plot_top_losses(p, 1)) == ["actual: cat 0.10 predicted: dog 0.90 ✗ loss: 2.30"]
    assert captions(P.plot_most_incorrect(p, "cat")) == ["actual: cat 0.10 predicted: dog 0.90 ✗"] and captions(P.plot_most_correct(p, "dog")) == ["actual: dog 0.70 predicted: dog ✓"]
    bare = replace(p, targets=None, losses=None)
    assert captions(P.plot_most_uncertain(bare)) == ["predicted: dog 0.70", "predicted: dog 0.90"] == sorted(captions(P.show_results(bare)))


@pytest.mark.parametrize("p, words", [(0., "<0.01"), (.00499, "<0.01"), (.005, "0.01"), (.5, "0.50"), (.994, "0.99"), (.9951, ">0.99"), (1., ">0.99"), (float("nan"), "nan")])
def test_no_probability_looks_more_certain_than_it_is(p, words): assert P._number(p) == words


def test_the_second_class_is_named_where_nothing_else_names_it(files):
    p = Preds(torch.tensor([[.4, .35, .25], [.35, .25, .4], [.42, .3, .28]]), torch.tensor([1, 2, 1]), None, files[:3], Task("single", ("a", "b", "c")))
    said = dict(zip(I.most_uncertain(p).tolist(), captions(P.plot_most_uncertain(p))))
    assert said == {0: "actual: b 0.35 predicted: a 0.40 ✗", 1: "actual: c 0.40 predicted: c ✓ then: a 0.35", 2: "actual: b 0.30 predicted: a 0.42 ✗"}
    assert "predicted: a 0.42 then: b 0.30" in captions(P.plot_most_uncertain(replace(p, targets=None)))


def test_results_of_every_kind(files):
    p = made(3, skill=.7, paths=files)
    fig = P.show_results(p, k=100)
    assert sorted(captions(fig)) == sorted(truth(p, i) for i in range(40)) and {ax.title.get_color() for ax in fig.axes} == {plot.RIGHT, plot.WRONG}
    assert captions(P.show_results(p, seed=1)) == captions(P.show_results(p, seed=1)) != captions(P.show_results(p, seed=2))
    multi = Preds(torch.tensor([[.9, .1], [.9, .9], [.1, .1]]), torch.tensor([[1., 0], [1, 0], [0, 0]]), torch.tensor([.1, 1., .1]), files[:3], Task("multi", ("a", "b")))
    assert sorted(captions(P.show_results(multi))) == ["actual: (none) predicted: (none) ✓", "actual: a predicted: a ✓", "actual: a predicted: a;b ✗"]
    assert captions(P.plot_top_losses(multi, 1)) == ["actual: a predicted: a;b ✗ loss: 1.00"]
    number = Preds(torch.tensor([[1.23456], [2.]]), torch.ones(2, 1), torch.tensor([.0551, 1.]), files[:2], Task("number"))
    assert captions(P.plot_top_losses(number)) == ["actual: 1 predicted: 2 loss: 1.00", "actual: 1 predicted: 1.235 loss: 0.06"]
    assert all(ax.title.get_color() not in (plot.RIGHT, plot.WRONG) for ax in P.show_results(number).axes)
    whole = Preds(torch.tensor([[.2, .8]]), torch.tensor([0]), None, files[:1], Task("single", (False, 7)))   # classes need not be words
    assert captions(P.show_results(whole)) == ["actual: False 0.20 predicted: 7 0.80 ✗"]


def test_headings_count(files):
    p = made(2, skill=1., paths=files)
    right, wrong = len(I.right(p)), len(I.wrong(p))
    assert heading(P.plot_correct(p)) == f"Correct, 4 of {right}" and heading(P.plot_incorrect(p, 2, seed=3)) == f"Incorrect, 2 of {wrong}"
    assert heading(P.plot_most_correct(p, 1, 3)) == f"Most correct: dog, 3 of {len(I.most_correct(p, 1))}"
    few = I.most_incorrect(p, "cat")
    assert heading(P.plot_most_incorrect(p, "cat", 99)) == f"Most incorrect: cat, {len(few)} of {len(few)}"   # fewer than asked for is fine
    assert heading(P.plot_cell(p, "cat", "dog", 1)) == f"cat predicted as dog, 1 of {len(few)}"
    assert heading(P.plot_most_uncertain(p, by="entropy")) == "Most uncertain, 4 of 40" and heading(P.plot_top_losses(p)) == "Largest losses, 9 of 40"
    assert not heading(P.show_results(p)) and heading(P.plot_items(p, [1], "mine")) == "mine"


# --- which are shown

@pytest.mark.parametrize("idx", [[3, 1, 1], torch.tensor([3, 1, 1]), np.array([3, 1, 1])], ids=["list", "tensor", "array"])
def test_items_come_in_the_order_asked_for(files, idx):
    p = made(paths=files)
    assert [(ax.images[0].get_array() == np.asarray(Image.open(files[i]))).all() for ax, i in zip(P.plot_items(p, idx).axes, (3, 1, 1))] == [True]*3


def test_items_by_mask_slice_and_number(files):
    p = made(paths=files)
    assert captions(P.plot_items(p, p.losses > p.losses.median())) == [truth(p, i) for i in range(40) if p.losses[i] > p.losses.median()]
    assert captions(P.plot_items(p, slice(2, 5))) == captions(P.plot_items(p, range(2, 5))) == [truth(p, i) for i in (2, 3, 4)] and captions(P.plot_items(p, 7)) == [truth(p, 7)]
    with pytest.raises(IndexError, match="40"): P.plot_items(p, [40])


NOTHING = {"Correct": lambda p: P.plot_correct(p[I.wrong(p)]), "Incorrect": lambda p: P.plot_incorrect(p[I.right(p)], data=3, heat=len),
           "Most correct: dog": lambda p: P.plot_most_correct(p[I.wrong(p)], "dog"), "Most incorrect: cat": lambda p: P.plot_most_incorrect(p[I.right(p)], "cat"),
           "dog predicted as cat": lambda p: P.plot_cell(p[I.right(p)], 1, 0), "Most uncertain": lambda p: P.plot_most_uncertain(p[[]]),
           "Largest losses": lambda p: P.plot_top_losses(p[[]]), "Blurred": lambda p: P.plot_items(p, torch.zeros(40, dtype=torch.bool), "Blurred"),
           "Pictures": lambda p: P.show_results(p[[]])}


@pytest.mark.parametrize("what", NOTHING)
def test_nothing_to_show_says_of_what(what):
    "Even without paths: there is nothing to open."
    fig = NOTHING[what](made(2, skill=1.))
    assert fig.alt == f"{what}: none" == " ".join(fig.texts[0].get_text().split()) and not fig.axes
    mime, file = fig.image()
    width, height = Image.open(io.BytesIO(file)).size
    assert mime == "image/png" and height < 60 < width <= 60*5 + 20


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(k=st.integers(1, 9), seed=st.integers(0, 99), crops=st.booleans())
def test_only_the_shown_files_are_opened(tmp_path_factory, data, monkeypatch, k, seed, crops):
    folder = tmp_path_factory.mktemp("few")
    p, opened = made(2, 10_000, seed, 1., [folder/f"{i}.jpg" for i in range(10_000)]), []   # no other file exists
    from lessonkit import data as module
    with monkeypatch.context() as m:
        for where in (plot, module): m.setattr(where, "open_image", lambda source, *args, f=module.open_image, **kw: opened.append(source) or f(source, *args, **kw))
        for show, idx in ((P.plot_top_losses, I.top_losses(p, k)[1]), (P.plot_incorrect, I.random_wrong(p, k)), (P.plot_most_uncertain, I.most_uncertain(p, k))):
            for i in idx.tolist(): photo(p.paths[i], size=(20, 20))
            opened.clear()
            assert "can't be shown" not in show(p, k, data=data if crops else None).alt
            assert sorted(f for f in opened if isinstance(f, Path)) == sorted(p.paths[i] for i in idx)


def test_crops_are_what_the_model_sees(files, data):
    from lessonkit.data.augment import to_inputs
    paths = data.valid.paths
    p = made(2, len(paths), paths=paths, classes=("pug", "samoyed"))
    seen = torch.cat([to_inputs(b, data.valid) for b in data.valid.batches()])
    features = replace(data, valid=FeatureLoader(**{f: getattr(data.valid, f) for f in data.valid.__dataclass_fields__}, features=torch.zeros(len(paths), 4)))
    for d in (data, features, replace(data, valid=replace(data.valid, bs=2, shuffle=True, cache="memory"))):
        for i, ax in zip((5, 0, 3), P.plot_items(p, [5, 0, 3], data=d).axes):
            assert np.abs(np.asarray(ax.images[0].get_array(), float) - (seen[i].permute(1, 2, 0)*255).numpy()).max() <= .51
        assert not d.valid._kept and data.valid.failed is None


# --- files that can't be shown

@pytest.mark.parametrize("crops", [False, True])
def test_a_file_that_is_gone_leaves_a_tile_with_the_reason(files, data, tmp_path, crops):
    (tmp_path/"torn.jpg").write_bytes(files[0].read_bytes()[:500])
    p = made(2, paths=(tmp_path/"gone.jpg", tmp_path/"torn.jpg") + files[2:])
    heat = np.full((3, 2, 2), .5) if crops else None
    fig = P.plot_items(p, [0, 1, 2], data=data if crops else None, heat=heat)
    assert captions(fig) == [truth(p, i) for i in range(3)]
    why = [" ".join(t.get_text() for t in ax.texts).split() for ax in fig.axes]
    assert " ".join(why[0]) == "gone.jpg: there is no such file" and why[1][0] == "torn.jpg:" and "Truncated" in why[1] and not why[2]
    assert "Picture 1 can't be shown: gone.jpg: there is no such file" in fig.alt and "Picture 2 can't be shown: torn.jpg" in fig.alt and str(tmp_path) not in fig.alt
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1 + crops]   # no map over a tile
    fig.draw_without_rendering()
    for ax in fig.axes[:2]:
        box, tile = ax.texts[0].get_window_extent(), ax.get_window_extent()
        assert tile.x0 <= box.x0 and box.x1 <= tile.x1 and tile.y0 <= box.y0 and box.y1 <= tile.y1
        assert ax.texts[0].get_color() == "black" and (ax.images[0].get_array() > 150).all()   # legible in any style


# --- heat maps

def test_heat_is_laid_over_the_picture_it_is_of(files, data):
    p, asked = made(2, paths=files), []
    maps = {i: np.full((2, 2), i/40) for i in range(40)}
    fig = P.plot_top_losses(p, 5, data=data, heat=lambda at: asked.append(at) or [maps[i] for i in at])
    idx = I.top_losses(p, 5)[1].tolist()
    assert asked == [idx] and all(type(i) is int for i in asked[0])
    for ax, i in zip(fig.axes, idx):
        assert np.allclose(ax.images[1].get_array(), plot._colored(maps[i], (48, 48))) and ax.images[1].get_extent() == ax.images[0].get_extent()
    for show in (P.plot_correct, P.plot_incorrect, P.plot_most_uncertain, P.show_results): assert "heat map" in show(p, 2, data=data, heat=lambda at: np.ones((len(at), 3, 3))).alt
    assert "heat map" not in P.plot_top_losses(p, 5, data=data).alt
    with pytest.raises(ValueError, match="cut square.*data="): P.plot_top_losses(p, 5, heat=np.zeros((5, 2, 2)))
    with pytest.raises(ValueError, match="5 pictures and 4 heat maps"): P.plot_top_losses(p, 5, data=data, heat=np.zeros((4, 2, 2)))


# --- errors

def test_errors(files):
    p = made(3, paths=files)
    single = [P.plot_correct, P.plot_incorrect, P.plot_most_uncertain, lambda p, k=4: P.plot_most_correct(p, 0, k), lambda p, k=4: P.plot_most_incorrect(p, 0, k), lambda p, k=4: P.plot_cell(p, 0, 0, k)]
    for show in (*single, P.plot_top_losses, P.show_results):
        for k in (0, -1):
            with pytest.raises(ValueError, match=f"at least 1, not {k}"): show(p, k)
        with pytest.raises(ValueError, match="no paths.*show_images"): show(made(3, 400))
        with pytest.raises(TypeError, match="Preds"): show([1])
    multi = Preds(torch.rand(3, 2), torch.ones(3, 2), torch.ones(3), files[:3], Task("multi", ("a", "b")))
    number = Preds(torch.rand(3, 1), torch.ones(3, 1), torch.ones(3), files[:3], Task("number"))
    for show in single:
        for other in (multi, number):
            with pytest.raises(ValueError, match=f"kind 'single'.*kind '{other.kind}'"): show(other)
    for show in set(single) - {P.plot_most_uncertain}:
        with pytest.raises(ValueError, match="true labels"): show(replace(p, targets=None, losses=None))
    with pytest.raises(ValueError, match="none .a test set"): P.plot_top_losses(replace(p, targets=None, losses=None))
    for f in (lambda: P.plot_most_correct(p, "klass_1"), lambda: P.plot_cell(p, "klass_1", "class_1"), lambda: P.plot_cell(p, "class_1", "klass_1")):
        with pytest.raises(ValueError, match="'klass_1'.*'class_1'"): f()
    with pytest.raises(ValueError, match="by is one of"): P.plot_most_uncertain(p, by="doubt")


# --- duplicates

def table(files, n=3, **change):
    import pandas as pd
    rows = [dict(kind=("exact", "near", "similar")[i % 3], a=files[i], b=files[-1 - i], split_a="train", split_b="valid", label_a=PETS[34], label_b=PETS[13], distance=(0, 5, .0125)[i % 3]) | change
            for i in range(n)]
    return pd.DataFrame(rows, columns=["kind", "a", "b", "split_a", "split_b", "label_a", "label_b", "distance"])


@pytest.mark.parametrize("n, k, ncols, grid", [(3, 6, None, (2, 2)), (7, 6, 3, (2, 3)), (1, 6, None, (1, 1)), (3, 2, 1, (2, 1)), (2, 6, 9, (1, 2))])
def test_duplicates_stand_in_pairs(files, n, k, ncols, grid):
    fig, shown = P.plot_duplicates(table(files, n), k, ncols), min(n, k)
    # matplotlib 3.9 lists them column by column: sort them from top left to bottom right
    by_place = sorted(fig.subfigs, key=lambda cell: (-round(cell.bbox.y0), cell.bbox.x0))
    pairs = by_place[:shown]
    assert len(fig.axes) == 2*shown and all(len(cell.axes) == 2 for cell in pairs) and len(fig.subfigs) == grid[0]*grid[1]
    for i, cell in enumerate(pairs):
        for ax, f in zip(cell.axes, (files[i], files[-1 - i])): assert (ax.images[0].get_array() == np.asarray(Image.open(f))).all()
        assert cell.get_suptitle() == ("exact", "near, 5 of 64 bits differ", "similar, cosine 0.988")[i % 3]
        assert [ax.get_title().replace("\n", " ") for ax in cell.axes] == [f"train: {PETS[34]}", f"valid: {PETS[13]}"]
    assert fig.alt.startswith(f"{shown} of {n} pairs") and fig.alt.count(f"train: {PETS[34]} and valid: {PETS[13]}") == shown
    fig.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in fig.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_duplicates_without_labels_files_or_rows(files):
    assert P.plot_duplicates(table(files, 0)).alt == "Duplicates: none"
    fig = P.plot_duplicates(table(files, 1, split_a="", label_a="", label_b="", b=Path("gone.jpg")))
    assert [ax.get_title() for ax in fig.axes] == [files[0].name, "valid"] and fig.alt.endswith("can't be shown: gone.jpg: there is no such file")
    with pytest.raises(ValueError, match="not 0"): P.plot_duplicates(table(files), 0)


def test_duplicates_that_were_found(files, tmp_path):
    from lessonkit.data.duplicates import find_duplicates
    (tmp_path/"copy.jpg").write_bytes(files[3].read_bytes())
    fig = P.plot_duplicates(find_duplicates({"train": files[:5], "valid": [tmp_path/"copy.jpg"]}, near=None))
    assert fig.alt == "1 of 1 pairs of duplicates: exact (train and valid)"


# --- how it looks

@pytest.mark.parametrize("c", [2, 12, 37])
def test_words_are_legible_and_cover_nothing_and_the_weight_is_small(files, data, c):
    p = made(c, 200, 0, 1.2 if c == 2 else 2.5, files*5)
    label = p.classes[next(c for c in p.targets[I.wrong(p)].tolist() if len(I.most_correct(p, c)))]
    shown = {name: fig for name, (_, fig) in five(p, label).items()} | {"nine": P.plot_top_losses(p), "results": P.show_results(p), "crops": P.plot_top_losses(p, data=data, heat=np.ones((9, 2, 2)))}
    for name, fig in shown.items():
        assert not crowded(fig), name
        assert min(ax.title.get_fontsize() for ax in fig.axes) >= 10, name
        assert len({round(ax.get_subplotspec().get_position(fig).width, 4) for ax in fig.axes}) == 1
        mime, file = fig.image()
        assert mime == "image/jpeg" and len(file) <= 37_000 and fig.dpi == 60, (name, len(file))


def test_a_hundred_pictures_stay_small(files):
    fig = P.plot_items(made(37, 400, paths=files*10), range(0, 400, 4), "A hundred")
    assert len(fig.axes) == 100 and len(fig.image()[1]) <= 37_000


def test_dark_pages(files):
    p = replace(made(2, paths=files), targets=None, losses=None)
    with style.context("dark_background"): figs = [P.plot_most_uncertain(p, 2), P.plot_duplicates(table(files, 1)), P.plot_items(p, [], "x")]
    for fig in figs:
        words = [t for f in (fig, *fig.subfigs) for t in f.texts] + [ax.title for ax in fig.axes]
        assert words and {t.get_color() for t in words} == {"white"} and fig.get_facecolor()[:3] == (0, 0, 0)


def test_no_figure_stays_open_and_little_is_imported(files):
    code = "import sys, lessonkit.plot_pictures; print(*(m in sys.modules for m in ('matplotlib.pyplot', 'pandas', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]*3
    from matplotlib import pyplot
    before = pyplot.get_fignums()
    P.plot_correct(made(2, paths=files)), P.plot_duplicates(table(files))
    assert pyplot.get_fignums() == before
