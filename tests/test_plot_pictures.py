"""Images with predictions: the right ones, with the probability of the class that is named.

Only the files that are shown are opened, and a file that is gone doesn't stop the others.
"""
import inspect
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, strategies as st
from matplotlib import style
from PIL import Image

from lessonkit.core.task import Task
from lessonkit.data import images as images_module
from lessonkit.data.augment import to_inputs
from lessonkit.data.image_data import ImageData
from lessonkit.plot import figures as figures_module, pictures
from lessonkit.plot.figures import CORRECT_COLOR, heatmap_colors, INCORRECT_COLOR
from lessonkit.plot.pictures import (
    format_probability, plot_cell, plot_correct, plot_duplicates, plot_incorrect, plot_items,
    plot_most_correct, plot_most_incorrect, plot_most_uncertain, plot_top_losses, show_results,
)
from lessonkit.results.predict import preds_from_logits
from lessonkit.results.preds import Preds
from lessonkit.results.scores import most_confused
from lessonkit.results.selections import (
    correct_indices, in_cell, incorrect_indices, most_correct, most_incorrect, most_uncertain,
    random_correct, random_incorrect, top_losses,
)
from lessonkit.train.features import FeatureLoader
from tiers import examples
from making import boxes, check_figures, overlap, photo, pixels, predictions

BREEDS = """
    Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll
    Russian_Blue Siamese Sphynx american_bulldog american_pit_bull_terrier basset_hound beagle boxer
    chihuahua english_cocker_spaniel english_setter german_shorthaired great_pyrenees havanese
    japanese_chin keeshond leonberger miniature_pinscher newfoundland pomeranian pug saint_bernard
    samoyed scottish_terrier shiba_inu staffordshire_bull_terrier wheaten_terrier yorkshire_terrier
""".split()
NAMES = {2: ("cat", "dog"), 12: tuple(BREEDS[8:20]), 37: tuple(BREEDS)}
LONG_A, LONG_B = BREEDS[34], BREEDS[13]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [folder/f"{'pug' if i % 2 else 'samoyed'}_{i:02}.jpg" for i in range(40)]
    return tuple(photo(path, i, (120, 90) if i % 3 else (90, 120)) for i, path in enumerate(paths))


@pytest.fixture(scope="module")
def data(files):
    def label(path): return Path(path).stem.split("_")[0]
    return ImageData.from_name_func(files[0].parent, label, files, size=48, bs=8, check=None)


def made(c=5, *args, classes=None, **options):
    return predictions(c, *args, classes=classes or NAMES.get(c), **options)


def both_ways(preds):
    "A class of which some images are right and some wrong."
    wrong = preds.targets[incorrect_indices(preds)].tolist()
    return preds.classes[next(c for c in wrong if len(most_correct(preds, preds.classes[c])))]


def all_of(p, label, k=4, **options):
    "All that choose for themselves, by name: positions that should be shown, and the figure."
    a, b, _ = most_confused(p)[0]
    return {
        "correct": (random_correct(p, k), plot_correct(p, k, **options)),
        "incorrect": (random_incorrect(p, k), plot_incorrect(p, k, **options)),
        "most correct": (most_correct(p, label, k), plot_most_correct(p, label, k, **options)),
        "most incorrect": (most_incorrect(p, label, k),
                           plot_most_incorrect(p, label, k, **options)),
        "uncertain": (most_uncertain(p, k), plot_most_uncertain(p, k, **options)),
        "cell": (in_cell(p, a, b, k), plot_cell(p, a, b, k, **options)),
        "top": (top_losses(p, k)[1], plot_top_losses(p, k, **options)),
        "smallest": (top_losses(p, k, False)[1], plot_top_losses(p, k, False, **options)),
    }


def one_line(title):
    "A title without its line breaks; names may break after an underscore."
    return " ".join(title.replace("_\n", "_").split())


def captions(fig): return [one_line(ax.get_title()) for ax in fig.axes]


def heading(fig): return fig.get_suptitle().replace("\n", " ")


def opened(path): return np.asarray(Image.open(path))


def crowded(fig):
    "Do titles overlap each other, the heading or an image, or run out of the figure?"
    fig.draw_without_rendering()
    words = boxes(ax.title for ax in fig.axes)
    if fig._suptitle is not None: words += boxes([fig._suptitle])
    others = words + boxes(fig.axes)
    right, top = fig.bbox.x1 + 2, fig.bbox.y1 + 2
    if not all(b.x0 >= -2 and b.x1 <= right and b.y1 <= top for b in words): return True
    return any(overlap(a, b, 1, 1) for a in words for b in others if a is not b)


# --- what the captions say

def truth(p, i):
    "What has to stand above image i, whatever else does."
    def share(c):
        value = float(p.probs[i, c])
        if .005 <= value < .995: return f"{value:.2f}"
        return "<0.01" if value < .5 else ">0.99"
    actual, predicted = int(p.targets[i]), int(p.probs[i].argmax())
    words = f"actual: {p.classes[actual]} {share(actual)} predicted: {p.classes[predicted]}"
    return f"{words} ✓" if actual == predicted else f"{words} {share(predicted)} ✗"


@pytest.mark.parametrize("c", [2, 12, 37])
@pytest.mark.parametrize("seed", range(3))
def test_every_caption_is_true_and_belongs_to_its_image(files, c, seed):
    p = made(c, 200, seed, 1.2 if c == 2 else 2.5, files * 5)
    for name, (idx, fig) in all_of(p, both_ways(p)).items():
        assert len(fig.axes) == len(idx), name
        for ax, i, words in zip(fig.axes, idx.tolist(), captions(fig)):
            assert words.startswith(truth(p, i)), name
            correct = p.pred[i] == p.targets[i]
            assert ax.title.get_color() == (CORRECT_COLOR if correct else INCORRECT_COLOR)
            if name in ("top", "smallest"): assert words.endswith(f"loss: {p.losses[i]:.2f}")
            assert (pixels(ax) == opened(p.paths[i])).all(), name
        assert fig.alt.count("actual: ") == len(idx), name
        assert fig.alt.count("predicted: ") == len(idx), name
        for word in captions(fig)[0].split(): assert word in fig.alt


def test_the_highest_probability_is_never_written_beside_another_class(files):
    "Sure and wrong: libraries have written the 0.90 of the mistake beside the actual class."
    probs, losses = torch.tensor([[.1, .9], [.3, .7]]), torch.tensor([2.3, .4])
    p = Preds(probs, torch.tensor([0, 1]), losses, files[:2], Task("single", ("cat", "dog")))
    mistake = "actual: cat 0.10 predicted: dog 0.90 ✗"
    assert captions(plot_top_losses(p, 1)) == [f"{mistake} loss: 2.30"]
    assert captions(plot_most_incorrect(p, "cat")) == [mistake]
    assert captions(plot_most_correct(p, "dog")) == ["actual: dog 0.70 predicted: dog ✓"]
    unlabeled = replace(p, targets=None, losses=None)
    expected = ["predicted: dog 0.70", "predicted: dog 0.90"]
    assert captions(plot_most_uncertain(unlabeled)) == expected
    assert sorted(captions(show_results(unlabeled))) == expected


@pytest.mark.parametrize("p, words", [
    (0., "<0.01"), (.00499, "<0.01"), (.005, "0.01"), (.5, "0.50"), (.994, "0.99"),
    (.9951, ">0.99"), (1., ">0.99"), (float("nan"), "nan"),
])
def test_no_probability_looks_more_certain_than_it_is(p, words):
    assert format_probability(p) == words


def test_the_second_class_is_named_where_nothing_else_names_it(files):
    probs = torch.tensor([[.4, .35, .25], [.35, .25, .4], [.42, .3, .28]])
    targets = torch.tensor([1, 2, 1])
    p = Preds(probs, targets, None, files[:3], Task("single", ("a", "b", "c")))
    by_position = dict(zip(most_uncertain(p).tolist(), captions(plot_most_uncertain(p))))
    assert by_position == {0: "actual: b 0.35 predicted: a 0.40 ✗",
                           1: "actual: c 0.40 predicted: c ✓ then: a 0.35",
                           2: "actual: b 0.30 predicted: a 0.42 ✗"}
    unlabeled = captions(plot_most_uncertain(replace(p, targets=None)))
    assert "predicted: a 0.42 then: b 0.30" in unlabeled


def test_random_results(files):
    p = made(3, skill=.7, paths=files)
    fig = show_results(p, k=100)
    assert sorted(captions(fig)) == sorted(truth(p, i) for i in range(40))
    assert {ax.title.get_color() for ax in fig.axes} == {CORRECT_COLOR, INCORRECT_COLOR}
    assert captions(show_results(p, seed=1)) == captions(show_results(p, seed=1))
    assert captions(show_results(p, seed=1)) != captions(show_results(p, seed=2))


def test_several_labels(files):
    probs = torch.tensor([[.9, .1], [.9, .9], [.1, .1]])
    targets = torch.tensor([[1., 0], [1, 0], [0, 0]])
    losses = torch.tensor([.1, 1., .1])
    p = Preds(probs, targets, losses, files[:3], Task("multi", ("a", "b")))
    assert sorted(captions(show_results(p))) == ["actual: (none) predicted: (none) ✓",
                                                 "actual: a predicted: a ✓",
                                                 "actual: a predicted: a;b ✗"]
    assert captions(plot_top_losses(p, 1)) == ["actual: a predicted: a;b ✗ loss: 1.00"]


def test_numbers(files):
    probs, losses = torch.tensor([[1.23456], [2.]]), torch.tensor([.0551, 1.])
    p = Preds(probs, torch.ones(2, 1), losses, files[:2], Task("number"))
    assert captions(plot_top_losses(p)) == ["actual: 1 predicted: 2 loss: 1.00",
                                            "actual: 1 predicted: 1.235 loss: 0.06"]
    colors = {ax.title.get_color() for ax in show_results(p).axes}
    assert not colors & {CORRECT_COLOR, INCORRECT_COLOR}


def test_classes_need_not_be_words(files):
    task = Task("single", (False, 7))
    p = Preds(torch.tensor([[.2, .8]]), torch.tensor([0]), None, files[:1], task)
    assert captions(show_results(p)) == ["actual: False 0.20 predicted: 7 0.80 ✗"]


def test_headings_count(files):
    p = made(2, skill=1., paths=files)
    assert heading(plot_correct(p)) == f"Correct, 4 of {len(correct_indices(p))}"
    n = len(incorrect_indices(p))
    assert heading(plot_incorrect(p, 2, seed=3)) == f"Incorrect, 2 of {n}"
    n = len(most_correct(p, "dog"))
    assert heading(plot_most_correct(p, "dog", 3)) == f"Most correct: dog, 3 of {n}"
    n = len(most_incorrect(p, "cat"))  # fewer than asked for is fine
    assert heading(plot_most_incorrect(p, "cat", 99)) == f"Most incorrect: cat, {n} of {n}"
    assert heading(plot_cell(p, "cat", "dog", 1)) == f"cat predicted as dog, 1 of {n}"
    assert heading(plot_most_uncertain(p, by="entropy")) == "Most uncertain, 4 of 40"
    assert heading(plot_top_losses(p)) == "Largest losses, 9 of 40"
    assert heading(show_results(p)) == ""
    assert heading(plot_items(p, [1], "mine")) == "mine"


# --- which are shown

@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_items_come_in_the_order_asked_for(files, kind):
    fig = plot_items(made(paths=files), kind([3, 1, 1]))
    assert len(fig.axes) == 3
    for ax, i in zip(fig.axes, (3, 1, 1)): assert (pixels(ax) == opened(files[i])).all()


def test_items_by_mask_slice_and_number(files):
    p = made(paths=files)
    large = p.losses > p.losses.median()
    expected = [truth(p, i) for i in range(40) if large[i]]
    assert captions(plot_items(p, large)) == expected
    expected = [truth(p, i) for i in (2, 3, 4)]
    assert captions(plot_items(p, slice(2, 5))) == expected
    assert captions(plot_items(p, range(2, 5))) == expected
    assert captions(plot_items(p, 7)) == [truth(p, 7)]
    with pytest.raises(IndexError, match="40"): plot_items(p, [40])


def all_right(p): return p[correct_indices(p)]


def all_wrong(p): return p[incorrect_indices(p)]


NOTHING = {
    "Correct": lambda p: plot_correct(all_wrong(p)),
    "Incorrect": lambda p: plot_incorrect(all_right(p), crop=3, heatmap=len),
    "Most correct: dog": lambda p: plot_most_correct(all_wrong(p), "dog"),
    "Most incorrect: cat": lambda p: plot_most_incorrect(all_right(p), "cat"),
    "dog predicted as cat": lambda p: plot_cell(all_right(p), "dog", "cat"),
    "Most uncertain": lambda p: plot_most_uncertain(p[[]]),
    "Largest losses": lambda p: plot_top_losses(p[[]]),
    "Blurred": lambda p: plot_items(p, torch.zeros(40, dtype=torch.bool), "Blurred"),
    "Images": lambda p: show_results(p[[]]),
}


@pytest.mark.parametrize("what", NOTHING)
def test_nothing_to_show_says_of_what(what):
    "Even without paths: there is nothing to open."
    fig = NOTHING[what](made(2, skill=1.))
    assert fig.alt == f"{what}: none"
    assert " ".join(fig.texts[0].get_text().split()) == fig.alt
    assert not fig.axes
    mime, file = fig.image()
    width, height = Image.open(io.BytesIO(file)).size
    assert mime == "image/png"
    assert height < 80 < width <= 96 * 5 + 20


@examples(8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(k=st.integers(1, 9), seed=st.integers(0, 99), crops=st.booleans())
def test_only_the_shown_files_are_opened(tmp_path_factory, data, monkeypatch, k, seed, crops):
    folder = tmp_path_factory.mktemp("few")
    paths = [folder/f"{i}.jpg" for i in range(10_000)]  # none of them exists yet
    p, asked = made(2, 10_000, seed, 1., paths), []
    open_image = images_module.open_image
    def watched(source, *args, **options):
        asked.append(source)
        return open_image(source, *args, **options)
    shown = {plot_top_losses: top_losses(p, k)[1], plot_incorrect: random_incorrect(p, k),
             plot_most_uncertain: most_uncertain(p, k)}
    with monkeypatch.context() as m:
        for module in (figures_module, images_module): m.setattr(module, "open_image", watched)
        for show, idx in shown.items():
            for i in idx.tolist(): photo(p.paths[i], size=(20, 20))
            asked.clear()
            assert "can't be shown" not in show(p, k, crop=data if crops else False).alt
            files = sorted(f for f in asked if isinstance(f, Path))
            assert files == sorted(p.paths[i] for i in idx)


def test_crops_are_what_the_model_sees(files, data):
    valid = data.valid
    p = made(2, valid.n, paths=valid.paths, classes=("pug", "samoyed"))
    seen = torch.cat([to_inputs(batch, valid) for batch in valid.batches()])
    features = FeatureLoader(**valid.settings(), features=torch.zeros(valid.n, 4))
    shuffled = replace(valid, bs=2, shuffle=True, cache="memory")
    for loader in (valid, features, shuffled):
        fig = plot_items(p, [5, 0, 3], crop=replace(data, valid=loader))
        for i, ax in zip((5, 0, 3), fig.axes):
            expected = (seen[i].permute(1, 2, 0) * 255).numpy()
            assert np.abs(pixels(ax).astype(float) - expected).max() <= .51
        assert not loader._kept
        assert loader.failed is None


# --- files that can't be shown

@pytest.mark.parametrize("crops", [False, True])
def test_a_file_that_is_gone_leaves_a_tile_with_the_reason(files, data, tmp_path, crops):
    (tmp_path/"torn.jpg").write_bytes(files[0].read_bytes()[:500])
    p = made(2, paths=(tmp_path/"gone.jpg", tmp_path/"torn.jpg") + files[2:])
    options = dict(crop=data, heatmap=np.full((3, 2, 2), .5)) if crops else {}
    fig = plot_items(p, [0, 1, 2], **options)
    assert captions(fig) == [truth(p, i) for i in range(3)]
    gone, torn, fine = [" ".join(t.get_text() for t in ax.texts).split() for ax in fig.axes]
    assert " ".join(gone) == "gone.jpg: there is no such file"
    assert torn[0] == "torn.jpg:"
    assert "damaged" in " ".join(torn)
    assert not fine
    assert "Image 1 can't be shown: gone.jpg: there is no such file" in fig.alt
    assert "Image 2 can't be shown: torn.jpg" in fig.alt
    assert str(tmp_path) not in fig.alt
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1 + crops]  # no map over a tile
    fig.draw_without_rendering()
    for ax in fig.axes[:2]:
        text, tile = ax.texts[0].get_window_extent(), ax.get_window_extent()
        assert tile.x0 <= text.x0 <= text.x1 <= tile.x1
        assert tile.y0 <= text.y0 <= text.y1 <= tile.y1
        assert ax.texts[0].get_color() == "black"  # legible in any style
        assert (pixels(ax) > 150).all()


# --- heat maps, and what needs the data

def test_a_heatmap_is_laid_over_its_image(files, data):
    p, asked = made(2, paths=files), []
    maps = {i: np.full((2, 2), i / 40) for i in range(40)}
    def heatmaps(positions):
        asked.append(positions)
        return [maps[i] for i in positions]
    fig = plot_top_losses(p, 5, crop=data, heatmap=heatmaps)
    idx = top_losses(p, 5)[1].tolist()
    assert asked == [idx]
    assert {type(i) for i in asked[0]} == {int}
    for ax, i in zip(fig.axes, idx):
        assert np.allclose(pixels(ax, 1), heatmap_colors(maps[i], (48, 48)))
        assert ax.images[1].get_extent() == ax.images[0].get_extent()
    assert "heat map" not in plot_top_losses(p, 5, crop=data).alt
    with pytest.raises(ValueError, match="cut square.*crop=data"):
        plot_top_losses(p, 5, heatmap=np.zeros((5, 2, 2)))
    with pytest.raises(ValueError, match="5 images and 4 heat maps"):
        plot_top_losses(p, 5, crop=data, heatmap=np.zeros((4, 2, 2)))


SHOW = {
    "plot_items": lambda p, **options: plot_items(p, [0, 1], **options),
    "plot_correct": plot_correct,
    "plot_incorrect": plot_incorrect,
    "plot_most_correct": lambda p, **options: plot_most_correct(p, p.classes[0], **options),
    "plot_most_incorrect": lambda p, **options: plot_most_incorrect(p, p.classes[0], **options),
    "plot_most_uncertain": plot_most_uncertain,
    "plot_top_losses": plot_top_losses,
    "plot_cell": lambda p, **options: plot_cell(p, *p.classes[:2], **options),
    "show_results": show_results,
}


@pytest.mark.parametrize("name", SHOW)
def test_every_function_has_the_same_options(files, data, name):
    parameters = inspect.signature(getattr(pictures, name)).parameters
    assert [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY][:4] == [
        "crop", "heatmap", "ncols", "figsize"]
    show, p = SHOW[name], made(2, skill=1., paths=files)
    def ones(positions): return np.ones((len(positions), 3, 3))
    fig = show(p, crop=data, heatmap=ones, ncols=1, figsize=(3, 9))
    assert "heat map" in fig.alt
    assert fig.axes[0].get_gridspec().ncols == 1
    assert tuple(fig.get_size_inches()) == (3, 9)


@pytest.mark.parametrize("option", ["crop", "heatmap"])
@pytest.mark.parametrize("name", SHOW)
def test_predictions_alone_have_no_data(files, name, option):
    with pytest.raises(ValueError, match=f"{option}=True.*crop=data.*learner's method"):
        SHOW[name](made(2, skill=1., paths=files), **{option: True})


# --- errors

def first_class(p): return p.classes[0] if getattr(p, "classes", ()) else "none"


SINGLE = [plot_correct, plot_incorrect, plot_most_uncertain,
          lambda p, k=4: plot_most_correct(p, first_class(p), k),
          lambda p, k=4: plot_most_incorrect(p, first_class(p), k),
          lambda p, k=4: plot_cell(p, first_class(p), first_class(p), k)]


@pytest.mark.parametrize("show", [*SINGLE, plot_top_losses, show_results])
def test_errors_of_all(files, show):
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1, not {k}"): show(made(3, paths=files), k)
    with pytest.raises(ValueError, match="no paths.*show_images"): show(made(3, 400))
    with pytest.raises(TypeError, match="Preds"): show([1])


@pytest.mark.parametrize("show", SINGLE)
def test_errors_of_those_for_single_labels(files, show):
    task = Task("multi", ("a", "b"))
    multi = Preds(torch.rand(3, 2), torch.ones(3, 2), torch.ones(3), files[:3], task)
    number = Preds(torch.rand(3, 1), torch.ones(3, 1), torch.ones(3), files[:3], Task("number"))
    for other in (multi, number):
        with pytest.raises(ValueError, match=f"kind 'single'.*kind '{other.kind}'"): show(other)
    if show is plot_most_uncertain: return
    with pytest.raises(ValueError, match="true labels"):
        show(replace(made(3, paths=files), targets=None, losses=None))


def test_other_errors(files):
    p = made(3, paths=files)
    with pytest.raises(ValueError, match="none .a test set"):
        plot_top_losses(replace(p, targets=None, losses=None))
    unknown = "'klass_1'.*'class_1'"
    with pytest.raises(ValueError, match=unknown): plot_most_correct(p, "klass_1")
    with pytest.raises(ValueError, match=unknown): plot_cell(p, "klass_1", "class_1")
    with pytest.raises(ValueError, match=unknown): plot_cell(p, "class_1", "klass_1")
    with pytest.raises(ValueError, match="by is one of"): plot_most_uncertain(p, by="doubt")


# --- duplicates

def table(files, n=3, **change):
    import pandas as pd
    kinds = [("exact", 0), ("near", 5), ("similar", .0125)]
    rows = []
    for i in range(n):
        kind, distance = kinds[i % 3]
        row = dict(kind=kind, a=files[i], b=files[-1 - i], split_a="train", split_b="valid",
                   label_a=LONG_A, label_b=LONG_B, distance=distance)
        rows.append(row | change)
    columns = ["kind", "a", "b", "split_a", "split_b", "label_a", "label_b", "distance"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("n, k, ncols, grid", [
    (3, 6, None, (2, 2)), (7, 6, 3, (2, 3)), (1, 6, None, (1, 1)), (3, 2, 1, (2, 1)),
    (2, 6, 9, (1, 2)),
])
def test_duplicates_stand_in_pairs(files, n, k, ncols, grid):
    fig, shown = plot_duplicates(table(files, n), k, ncols), min(n, k)
    pairs = fig.subfigs[:shown]
    assert len(fig.axes) == 2 * shown
    assert {len(pair.axes) for pair in pairs} == {2}
    assert len(fig.subfigs) == grid[0] * grid[1]
    headings = ["exact", "near, 5 of 64 bits differ", "similar, cosine 0.988"]
    names = [f"train: {LONG_A}", f"valid: {LONG_B}"]
    for i, pair in enumerate(pairs):
        left, right = pair.axes
        assert (pixels(left) == opened(files[i])).all()
        assert (pixels(right) == opened(files[-1 - i])).all()
        assert pair.get_suptitle() == headings[i % 3]
        assert [one_line(ax.get_title()) for ax in pair.axes] == names
    assert fig.alt.startswith(f"{shown} of {n} pairs")
    assert fig.alt.count(" and ".join(names)) == shown
    fig.draw_without_rendering()
    places = boxes(ax.title for ax in fig.axes)
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])


def test_duplicates_without_labels_files_or_rows(files):
    assert plot_duplicates(table(files, 0)).alt == "Duplicates: none"
    bare = table(files, 1, split_a="", label_a="", label_b="", b=Path("gone.jpg"))
    fig = plot_duplicates(bare)
    assert [ax.get_title() for ax in fig.axes] == [files[0].name, "valid"]
    assert fig.alt.endswith("An image can't be shown: gone.jpg: there is no such file")
    with pytest.raises(ValueError, match="not 0"): plot_duplicates(table(files), 0)


def test_duplicates_that_were_found(files, tmp_path):
    from lessonkit.data.duplicates import find_duplicates
    (tmp_path/"copy.jpg").write_bytes(files[3].read_bytes())
    found = find_duplicates({"train": files[:5], "valid": [tmp_path/"copy.jpg"]}, near=None)
    assert plot_duplicates(found).alt == "1 of 1 pairs of duplicates: exact (train and valid)"


# --- how it looks

@pytest.mark.parametrize("c", [2, 12, 37])
def test_words_are_legible_and_cover_nothing(files, data, c):
    p = made(c, 200, 0, 1.2 if c == 2 else 2.5, files * 5)
    figures = {name: fig for name, (_, fig) in all_of(p, both_ways(p)).items()}
    figures["nine"], figures["results"] = plot_top_losses(p), show_results(p)
    figures["crops"] = plot_top_losses(p, crop=data, heatmap=np.ones((9, 2, 2)))
    for name, fig in figures.items():
        assert not crowded(fig), name
        assert min(ax.title.get_fontsize() for ax in fig.axes) >= 9, name
        places = [ax.get_subplotspec().get_position(fig) for ax in fig.axes]
        assert len({round(place.width, 4) for place in places}) == 1
        mime, file = fig.image()
        assert mime == "image/jpeg"
        assert len(file) <= 56_000, name
        assert fig.dpi == 96


@pytest.mark.slow
def test_a_hundred_images_stay_small(files):
    fig = plot_items(made(37, 400, paths=files * 10), range(0, 400, 4), "A hundred")
    assert len(fig.axes) == 100
    assert len(fig.image()[1]) <= 56_000


def test_a_dark_style(files):
    p = replace(made(2, paths=files), targets=None, losses=None)
    with style.context("dark_background"):
        figures = [plot_most_uncertain(p, 2), plot_duplicates(table(files, 1)),
                   plot_items(p, [], "x")]
    for fig in figures:
        words = [t for part in (fig, *fig.subfigs) for t in part.texts]
        words += [ax.title for ax in fig.axes]
        assert {t.get_color() for t in words} == {"white"}
        assert fig.get_facecolor()[:3] == (0, 0, 0)


def test_no_figure_stays_open(files):
    def draw():
        return {"correct": plot_correct(made(2, paths=files)),
                "duplicates": plot_duplicates(table(files))}
    check_figures(draw, 20)


# ---- images of more than 8 bits

def test_images_are_drawn_as_the_data_reads_them(tmp_path):
    for i in range(20):
        value = 700 if i % 2 else 2000  # nearly black, if the range were that of 16 bits
        path = tmp_path / f"{'ab'[i % 2]}_{i}.png"
        Image.fromarray(np.full((20, 20), value, np.uint16)).save(path)
    twelve = ImageData.from_name_re(tmp_path, r"^(.)_", size=16, presize=16, bs=4,
                                    pixel_range=(0, 4095))
    preds = preds_from_logits(torch.zeros(twelve.valid.n, 2), twelve.valid, twelve.task)
    for crop in (False, twelve):
        fig = plot_items(preds, slice(None), crop=crop)
        drawn = [ax.images[0].get_array() for ax in fig.axes if ax.images]
        whites = [1 if pixels.dtype.kind == "f" else 255 for pixels in drawn]
        shades = [np.median(np.asarray(pixels)) / white for pixels, white in zip(drawn, whites)]
        expected = [(2000 if path.stem.startswith("a") else 700) / 4095 for path in preds.paths]
        assert np.allclose(shades, expected, atol=.01)
    assert Preds.join([preds, preds]).pixel_range == (0, 4095)
