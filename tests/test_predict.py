"""Predictions as values: choosing, joining, writing; test-time augmentation; new files."""
import io
import math
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn

from lessonkit.data import sample
from lessonkit.core.task import Task
from lessonkit.data.augment import NO_AUGMENT, augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import open_pixels
from lessonkit.data.loader import Batch, Loader
from lessonkit.learner import Learner
from lessonkit.model.create import create_model
from lessonkit.results.predict import Prediction, predict_files, predict_one, predict_set
from lessonkit.results.preds import Preds
from lessonkit.results.tta import TTA, mean_preds, tta_set, tta_views
from lessonkit.train.engine import Engine
from lessonkit.train.features import precompute
from tiers import examples

KINDS = ("single", "multi", "number")
CPU = Engine("cpu", "fp32")
COLORS_TASK = Task("single", ("r", "g", "b"))


def make(n=7, kind="single", c=3, targets=True, paths=True, seed=0):
    "Predictions whose every part tells which item it belongs to."
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, c, generator=g)
    if kind == "single":
        probs, y = probs / probs.sum(1, keepdim=True), torch.arange(n) % c
    else:
        y = torch.rand(n, c, generator=g)
        if kind == "multi": y = (y > .5).float()
    files = tuple(Path(f"folder/{seed}_{i}.jpg") for i in range(n)) if paths else ()
    task = Task(kind, tuple("abcdefgh"[:c]) if kind != "number" else ())
    if not targets: return Preds(probs, None, None, files, task)
    return Preds(probs, y, torch.arange(n).float(), files, task)


def assert_same(a, b):
    assert torch.equal(a.probs, b.probs)
    assert a.paths == b.paths
    assert a.task == b.task
    assert torch.equal(a.index, b.index)
    assert a.failed == b.failed
    for x, y in ((a.targets, b.targets), (a.losses, b.losses)):
        if y is None: assert x is None
        else: assert torch.equal(x, y)


# ---- some of them
@st.composite
def positions(draw):
    "How many predictions there are, an index, and the positions that it should choose."
    n = draw(st.integers(0, 8))
    forms = ["list", "array", "tensor", "mask", "slice", "one"] if n else ["slice", "mask", "empty"]
    form = draw(st.sampled_from(forms))
    if form == "slice":
        ends = st.none() | st.integers(-10, 10)
        step = draw(st.sampled_from([None, 1, 2, -1, -3]))
        idx = slice(draw(ends), draw(ends), step)
        return n, idx, list(range(n))[idx]
    if form == "mask":
        mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        masks = [np.array(mask, dtype=bool), torch.tensor(mask, dtype=torch.bool),
                 pd.Series(mask, dtype=bool)]
        return n, draw(st.sampled_from(masks)), [i for i, chosen in enumerate(mask) if chosen]
    if form == "empty": return n, [], []
    if form == "one":
        at = draw(st.integers(-n, n - 1))
        return n, at, [at % n]
    some = draw(st.lists(st.integers(-n, n - 1), max_size=12))
    as_form = {"list": some, "array": np.array(some, dtype=np.int64),
               "tensor": torch.tensor(some, dtype=torch.int64)}
    return n, as_form[form], [i % n for i in some]


@examples(150)
@given(chosen=positions(), kind=st.sampled_from(KINDS), targets=st.booleans(), paths=st.booleans())
def test_all_parts_of_chosen_predictions_belong_together(chosen, kind, targets, paths):
    n, idx, want = chosen
    whole = make(n, kind, targets=targets, paths=paths)
    part = whole[idx]
    assert isinstance(part, Preds)
    assert len(part) == len(want)
    assert part.task == whole.task
    assert part.probs.shape[1] == 3
    assert part.probs.tolist() == [whole.probs[i].tolist() for i in want]
    assert part.paths == (tuple(whole.paths[i] for i in want) if paths else ())
    if not targets:
        assert part.targets is None
        assert part.losses is None
    else:
        assert part.losses.tolist() == want
        assert part.targets.tolist() == [whole.targets[i].tolist() for i in want]


@pytest.mark.parametrize("idx", [7, [0, -8], [True] * 6, "a", 1.5, (0, 1), None, [[0, 1], [2, 3]]])
def test_an_index_that_is_no_position_is_an_error(idx):
    with pytest.raises(IndexError, match="7 predictions|one list"): make()[idx]


@pytest.mark.parametrize("idx", [[True, 2], [0, np.False_], [1, True, 1, 1, 1, 1, 1]])
def test_a_mixture_of_mask_and_positions_is_an_error(idx):
    with pytest.raises(IndexError, match="mixture"): make()[idx]


def with_failed(n=4, **options):
    "Predictions of `n` items out of `n` + 2: those at 1 and 3 could not be read."
    index = torch.tensor([i for i in range(n + 2) if i not in (1, 3)])
    lost = {1: Path("folder/lost_1.jpg"), 3: Path("folder/lost_3.jpg")}
    reasons = {1: "it is empty", 3: "it is cut off"}
    return replace(make(n, **options), index=index, failed=reasons, failed_paths=lost)


def test_rows_keep_their_positions_in_what_was_asked_for():
    p = with_failed()
    assert make().index.tolist() == list(range(7))
    assert [p[i].index.item() for i in range(4)] == [0, 2, 4, 5]
    assert p[[3, 0]].index.tolist() == [5, 0]
    assert p[p.losses > 1].index.tolist() == [4, 5]
    assert p[[3, 0]].failed == {}  # a selection
    assert p[[3, 0, 1, 2]].failed == p.failed  # all of them, in another order
    with pytest.raises(ValueError, match="4 predictions but 3 index"):
        replace(p, index=torch.arange(3))


def test_joined_sets_have_joined_positions():
    p, whole = with_failed(), make()
    both = Preds.join([p, whole])
    assert both.index.tolist() == [0, 2, 4, 5, *range(6, 13)]
    assert both.failed == p.failed
    again = Preds.join([whole, p])
    assert again.index.tolist() == [*range(7), 7, 9, 11, 12]
    assert again.failed == {8: "it is empty", 10: "it is cut off"}
    assert again.failed_paths == {8: Path("folder/lost_1.jpg"), 10: Path("folder/lost_3.jpg")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [True, False])
def test_a_table_has_a_row_for_each_item(tmp_path, kind, targets):
    p = with_failed(kind=kind, targets=targets)
    table = p.to_frame(probs=True)
    assert table["index"].tolist() == list(range(6))
    assert table["failed"].tolist() == ["", "it is empty", "", "it is cut off", "", ""]
    assert table["file"].tolist()[1] == "lost_1.jpg"
    unanswered = table.filter(like="predicted").isna().all(axis=1)
    assert unanswered.tolist() == [i in (1, 3) for i in range(6)]
    assert pd.read_csv(p.to_csv(tmp_path / "p.csv"))["index"].tolist() == list(range(6))
    without_paths = replace(p, paths=(), failed_paths={}).to_frame()
    assert without_paths["index"].tolist() == list(range(6))
    assert len(p[:2].to_frame()) == 2


def test_no_row_of_a_submission_gets_lost(tmp_path):
    p = with_failed()
    with pytest.raises(ValueError, match="2 files could not be read .*it is empty, it is cut off"):
        p.submission(tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()
    assert p.submission(missing="omit").id.tolist() == [f"0_{i}" for i in range(4)]
    filled = p.submission(missing="b")
    assert filled.id.tolist() == ["0_0", "lost_1", "0_1", "lost_3", "0_2", "0_3"]
    assert filled.label.tolist()[1::2][:2] == ["b", "b"]
    probs = p.submission(label="probs", missing=1/3, ext=True)
    assert probs.id[1] == "lost_1.jpg"
    assert probs.loc[3, ["a", "b", "c"]].tolist() == [1/3] * 3
    assert make().submission(missing="b").equals(make().submission())
    same_name = replace(p, failed_paths={1: Path("other/0_0.jpg"), 3: Path("other/3.jpg")})
    with pytest.raises(ValueError, match="'0_0': ext=True"): same_name.submission(missing="b")


def test_means_are_of_the_same_rows():
    p = with_failed()
    other = replace(p, index=torch.tensor([0, 1, 4, 5]))
    assert mean_preds([p, p]).failed == p.failed
    with pytest.raises(ValueError, match="same items"): mean_preds([p, other])


def test_iterating_gives_one_after_the_other():
    assert [p.paths[0] for p in make()] == list(make().paths)


@examples(40)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), kind=st.sampled_from(KINDS),
       targets=st.booleans(), paths=st.booleans())
def test_joined_parts_are_the_whole(sizes, kind, targets, paths):
    whole = make(sum(sizes), kind, targets=targets, paths=paths)
    ends = np.cumsum([0, *sizes])
    parts = [whole[start:end] for start, end in zip(ends, ends[1:])]
    assert_same(Preds.join(parts), whole)


def test_predictions_of_different_tasks_are_not_joined():
    p = make()
    renamed = replace(p, task=Task("single", ("x", "y", "z")))
    for other in (renamed, make(kind="multi"), make(c=2), make(kind="number")):
        with pytest.raises(ValueError, match="same kind and classes"): Preds.join([p, other])
    with pytest.raises(ValueError, match="'number' with 1 columns .* and 'number' with 2"):
        Preds.join([make(kind="number", c=1), make(kind="number", c=2)])
    with pytest.raises(ValueError, match="nothing to join"): Preds.join([])


def test_sets_are_not_joined_if_only_some_have_targets_losses_or_paths():
    p = make()
    others = {r"paths=\(\)": replace(p, paths=()), "losses=None": replace(p, losses=None),
              "targets=None": make(targets=False)}
    for missing, other in others.items():
        with pytest.raises(ValueError, match=f"1 of 2 sets .*{missing}"): Preds.join([other, p])


# ---- numbers
def test_log_probabilities_are_finite():
    p = Preds(torch.tensor([[1., 0., 0.], [.5, .2, .3]]), None, None, (),
              Task("single", ("a", "b", "c")))
    assert torch.isfinite(p.log_probs).all()
    assert p.log_probs[1].tolist() == pytest.approx([math.log(v) for v in (.5, .2, .3)])
    assert torch.equal(make(kind="multi").log_probs, make(kind="multi").probs.log())


def test_margins_lie_between_the_two_best_classes():
    p = Preds(torch.tensor([[1., 0., 0.], [.5, .2, .3]]), None, None, (),
              Task("single", ("a", "b", "c")))
    assert p.margin.tolist() == pytest.approx([1, .2])
    with pytest.raises(ValueError, match="only one"): make(c=1).margin


def test_values_that_make_no_sense_for_a_task_are_errors():
    for kind, name in (("number", "log_probs"), ("multi", "margin"), ("multi", "pred")):
        p = make(kind=kind)
        with pytest.raises(ValueError, match=f"this one is '{kind}'"): getattr(p, name)


# ---- tables
NAMES = ("a, b", 'the "third"', "größer", "loss")


def with_difficult_names(kind, targets):
    "Nine predictions with classes whose names need quotes in a file."
    p = make(9, kind, c=4, targets=targets)
    if kind == "number": return p
    p = replace(p, task=Task(kind, NAMES))
    if kind == "single": return p
    always_one_label = p.probs.clone().index_fill_(1, torch.tensor([0]), 1.)
    return replace(p, probs=always_one_label)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [True, False])
def test_a_table_written_and_read_is_the_same(kind, targets, tmp_path):
    p = with_difficult_names(kind, targets)
    table, path = p.to_frame(probs=True), p.to_csv(tmp_path / "p.csv")
    read = pd.read_csv(path)
    if kind == "multi" and targets: read["actual"] = read["actual"].fillna("")  # no label applies
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    assert list(read.file) == [f"0_{i}.jpg" for i in range(9)]
    assert list(pd.read_csv(p.to_csv(tmp_path / "q.csv", probs=False))) == list(p.to_frame())
    if kind == "number": return
    last = ["a, b", 'the "third"', "größer", "p_loss" if targets else "loss"]
    assert list(table)[-4:] == last
    assert torch.equal(torch.tensor(table[last].to_numpy()).float(), p.probs)


def test_columns_hold_what_was_predicted():
    p = make()
    columns = p.columns()
    assert list(columns) == ["file", "actual", "predicted", "probability", "probability_actual",
                             "loss", "margin"]
    for i in range(len(p)):
        assert columns["actual"][i] == "abc"[i % 3]
        assert columns["predicted"][i] == "abc"[int(p.probs[i].argmax())]
        assert columns["loss"][i] == i
        assert columns["probability"][i] == float(p.probs[i].max())
        assert columns["probability_actual"][i] == float(p.probs[i, i % 3])


def test_columns_that_make_no_sense_are_left_out():
    assert "margin" not in make(c=1).columns()
    assert make()[[]].columns().keys() == make(paths=False).columns().keys()


# ---- competitions
def test_a_submission_with_a_number_and_a_probability(tmp_path):
    p = Preds(torch.tensor([[.25, .75], [.5, .5]]), None, None,
              (Path("test/1.jpg"), Path("test/10.jpg")), Task("single", ("cats", "dogs")))
    p.submission(tmp_path / "s.csv", label="dogs")
    assert (tmp_path / "s.csv").read_text() == "id,label\n1,0.75\n10,0.5\n"


def test_a_submission_with_a_class_or_a_column_for_each():
    p = replace(make(2), probs=torch.tensor([[.25, .5, .25], [1., 0., 0.]]),
                paths=(Path("x/ff.1.jpg"), Path("x/00.png")))
    def written(**options): return p.submission(**options).to_csv(index=False)
    assert written(label_name="breed") == "id,breed\nff.1,b\n00,a\n"
    assert written(label="probs") == "id,a,b,c\nff.1,0.25,0.5,0.25\n00,1.0,0.0,0.0\n"
    assert written(id_name="file", ext=True) == "file,label\nff.1.jpg,b\n00.png,a\n"


def test_a_submission_with_all_labels_that_apply():
    p = replace(make(2, "multi"), probs=torch.tensor([[.9, .1, .6], [.3, .2, .1]]),
                paths=(Path("train_1.tif"), Path("train_2.tif")))
    tags = p.submission(None, "image_name", "tags")
    assert tags.to_csv(index=False) == "image_name,tags\ntrain_1,a c\ntrain_2,\n"
    assert p.submission(threshold=.25).label.tolist() == ["a c", "a"]
    assert p.submission(label="c").label.tolist() == pytest.approx([.6, .1])


def test_numbers_are_submitted_as_they_are():
    p, pairs = make(3, "number", c=1), make(3, "number", c=2)
    assert list(p.submission(label_name="age")) == ["id", "age"]
    assert p.submission().label.tolist() == p.probs[:, 0].tolist()
    assert list(pairs.submission()) == ["id", "label_0", "label_1"]
    named = replace(pairs, task=Task("number", ("x", "y")))
    assert list(named.submission()) == ["id", "x", "y"]
    with pytest.raises(ValueError, match="numbers have no classes"): p.submission(label="probs")


SAME_NAME = (Path("a/1.jpg"), Path("b/1.jpg"))


@pytest.mark.parametrize("paths, options, message", [
    ((), {}, "have none"),
    (SAME_NAME, {}, "'1': ext=True"),
    (SAME_NAME, dict(ext=True), "a name of its own"),
    (None, dict(label="d"), "one of the classes.*'d'"),
    (None, dict(label="probs", id_name="b"), "another id_name")])
def test_a_submission_that_would_be_refused_is_not_written(tmp_path, paths, options, message):
    p = make(2)
    if paths is not None: p = replace(p, paths=paths)
    with pytest.raises(ValueError, match=message): p.submission(tmp_path / "s.csv", **options)
    assert not (tmp_path / "s.csv").exists()


# ---- test-time augmentation
# left top, left bottom, right top, right bottom
COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
ONLY_FLIP = replace(NO_AUGMENT, flip=True)


class Color(nn.Module):
    "Predicts the mean color, and counts how often it is called."
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.mean((2, 3))


def four_quarters(right):
    "An image of four colored quarters, 64 pixels each; `right` is where the right ones begin."
    pixels = np.full((128, right + 64, 3), 128, np.uint8)
    for (y, x), color in zip(((0, 0), (64, 0), (0, right), (64, right)), COLORS.numpy()):
        pixels[y:y + 64, x:x + 64] = color
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    "Three square images of four colored quarters, and three twice as wide with colored corners."
    folder = tmp_path_factory.mktemp("quarters")
    files = tuple(folder / f"{i}.png" for i in range(6))
    for i, file in enumerate(files): four_quarters(64 if i < 3 else 192).save(file)
    return Loader(files, None, size=32, presize=128, bs=2, threads=1)


def tta_of(loader, augment=ONLY_FLIP, model=None, task=COLORS_TASK, **options):
    return tta_set(model or Color(), loader, augment, CPU, task, **options)


def test_corners_see_the_corners(quarters):
    for number, batch in enumerate(quarters.batches()):
        views = tta_views(quarters, None, form="corners", scale=2)
        assert len(views) == 4
        for view, color in zip(views, COLORS):
            seen = view(batch, number)
            assert seen.shape == (2, 3, 32, 32)
            inner = seen[..., 1:-1, 1:-1]  # a neighbor shines in at the border
            assert (inner - color[:, None, None] / 255).abs().max() < 1e-5


def test_a_gentler_zoom_shows_most_of_its_own_quarter(quarters):
    batch = next(quarters.batches())
    share = (1.35 / 2) ** 2  # it sees 1/1.35 of each side, and its quarter is half of a side
    for view, color in zip(tta_views(quarters, None, form="corners"), COLORS):
        difference = (view(batch, 0) - color[:, None, None] / 255).abs().amax(1)
        own = (difference < .02).float().mean((1, 2))
        assert torch.allclose(own, torch.full((2,), share), atol=.05)


@pytest.mark.parametrize("augment, mirrored", [
    (ONLY_FLIP, True), (replace(NO_AUGMENT, flip_vert=True), True), (NO_AUGMENT, False),
    (None, False)])
def test_corners_are_mirrored_only_where_training_mirrors(quarters, augment, mirrored):
    batch = next(quarters.batches())
    seen = [view(batch, 0) for view in tta_views(quarters, augment, form="corners")]
    assert len(seen) == (8 if mirrored else 4)
    for plain, flipped in zip(seen[:4], seen[4:]):
        assert torch.allclose(flipped, plain.flip(3), atol=1e-5)


@pytest.mark.parametrize("form", ["random", "corners"])
def test_no_view_is_mirrored_where_training_did_not_mirror(quarters, form):
    batch = next(quarters.batches())
    augment = augmentations(do_flip=False, max_zoom=1., max_rotate=10, max_warp=0)
    for view in tta_views(quarters, augment, form=form, n=30, scale=1.):
        x = view(batch, 0)
        left, right = x[:, 2, :, 4:9].mean((1, 2)), x[:, 2, :, -9:-4].mean((1, 2))
        assert (right > left).all()  # blue and white are on the right


def first_corner(loader, augment, seed):
    return tta_views(loader, augment, form="corners", seed=seed)[0](next(loader.batches()), 0)


@pytest.mark.parametrize("vary", [dict(max_rotate=10), dict(max_warp=.2), dict(max_lighting=.2)])
def test_rotation_tilt_and_light_of_corners_are_random(quarters, vary):
    augment = replace(NO_AUGMENT, p_affine=1, p_lighting=1, **vary)
    one, other = (first_corner(quarters, augment, seed) for seed in (1, 2))
    assert not torch.allclose(one, other, atol=1e-2)


@pytest.mark.parametrize("vary", [dict(max_zoom=2), dict(random_crop=True), dict(min_scale=.1),
                                  dict(flip=True)])
def test_crop_zoom_and_mirroring_of_corners_are_not_random(quarters, vary):
    augment = replace(NO_AUGMENT, p_affine=1, **vary)
    one, other = (first_corner(quarters, augment, seed) for seed in (1, 2))
    assert torch.equal(one, other)


def by_hand(kind, colors):
    "What `Color` predicts for images of one color, or of several in equal parts, in NumPy."
    z = colors.double().numpy() / 255
    if kind == "single": return np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return 1 / (1 + np.exp(-z)) if kind == "multi" else z


def losses_by_hand(kind, p, y):
    if kind == "single": return -np.log(p[range(3), y])
    if kind == "multi": return -np.log([[r[0], 1 - r[1], 1 - r[2]] for r in p]).mean(1)
    return ((p - y.numpy()) ** 2).mean(1)


TARGETS = {"single": torch.tensor([0, 1, 2]), "multi": torch.tensor([[1., 0, 0]] * 3),
           "number": torch.tensor([[.5, .5, 0]] * 3)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment, n", [(None, 4), (ONLY_FLIP, 8)])
def test_the_average_is_the_formula(quarters, kind, augment, n):
    y, task = TARGETS[kind], Task(kind, () if kind == "number" else ("red", "green", "blue"))
    square = replace(quarters, paths=quarters.paths[:3], targets=y, size=64)
    found = tta_of(square, augment, task=task, form="corners", scale=2)
    assert isinstance(found, TTA)
    assert len(found.views) == n
    assert found.beta == .4
    plain, views = by_hand(kind, COLORS.double().mean(0)), by_hand(kind, COLORS)
    assert np.allclose(found.plain.probs, plain, atol=1e-6)
    for k, view in enumerate(found.views):
        assert np.allclose(view.probs, views[k % 4], atol=1e-6)
        assert view.paths == square.paths
    mean_view = sum(view.probs.double() for view in found.views) / n
    exact = .4 * found.plain.probs.double() + .6 * mean_view
    assert torch.allclose(found.preds.probs.double(), exact, atol=1e-6)
    assert np.allclose(exact, .4 * plain + .6 * views.mean(0), atol=1e-6)
    assert found.preds.task == task
    assert torch.equal(found.preds.targets, y)
    assert np.allclose(found.preds.losses, losses_by_hand(kind, exact.numpy(), y), atol=1e-4)


def test_beta_and_its_defaults(quarters):
    found = tta_of(quarters)
    assert found.beta == .25
    assert len(found.views) == 4
    assert tta_of(quarters, form="corners").beta == .4
    assert tta_of(quarters, n=2, beta=0).beta == 0
    old = tta_of(quarters, beta=1 / 5)  # version 0.7: the mean of five
    mean = torch.stack([old.plain.probs, *(v.probs for v in old.views)]).mean(0)
    assert torch.allclose(old.preds.probs, mean, atol=1e-6)


@pytest.mark.parametrize("options, message", [
    (dict(beta=-.1), "^beta .*from 0 to 1"), (dict(beta=1.1), "^beta .*from 0 to 1"),
    (dict(beta=math.nan), "^beta .*got nan"), (dict(beta="a"), "^beta .*got 'a'"),
    (dict(form="corner"), "form is"), (dict(n=0), "^n .*got 0"), (dict(n="4"), "^n .*got '4'"),
    (dict(form="corners", scale=.9), "^scale .*at least 1; got 0.9"),
    (dict(scale="a"), "^scale .*got 'a'")])
def test_options_that_make_no_sense_are_errors(quarters, options, message):
    with pytest.raises(ValueError, match=message): tta_of(quarters, **options)


@pytest.mark.parametrize("form", ["random", "corners"])
def test_a_model_that_sees_nothing_answers_the_same_for_all_views(quarters, form):
    class Blind(nn.Module):
        def forward(self, x): return torch.tensor([1., 2., 3.]).repeat(len(x), 1)
    found = tta_of(quarters, augmentations(), Blind(), form=form)
    for view in found.views: assert torch.equal(view.probs, found.plain.probs)
    assert torch.allclose(found.preds.probs, found.plain.probs, atol=1e-6)


@pytest.mark.parametrize("form, views", [("random", 5), ("corners", 8)])
def test_each_file_is_opened_once_for_all_views(quarters, monkeypatch, form, views):
    opened = []
    def counting(source, *args):
        opened.append(source)
        return open_pixels(source, *args)
    monkeypatch.setattr("lessonkit.data.loader.open_pixels", counting)
    model = Color()
    tta_of(quarters, model=model, form=form, n=5)
    assert sorted(opened) == sorted(quarters.paths)
    assert model.calls == len(quarters) * (1 + views)


def test_random_views_depend_on_the_seed_alone(quarters):
    before, augment = torch.get_rng_state(), augmentations()
    one = tta_of(quarters, augment)
    same = tta_of(replace(quarters, threads=4, shuffle=True, augment=augment), augment)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.plain.probs, same.plain.probs)
    for x, y in zip(one.views, same.views): assert torch.equal(x.probs, y.probs)
    other = tta_of(quarters, augment, seed=1)
    for x, y in zip(one.views, other.views): assert not torch.equal(x.probs, y.probs)


def test_random_views_differ_and_do_not_depend_on_how_many_there_are(quarters):
    four = tta_of(quarters, augmentations())
    assert len({view.probs.numpy().tobytes() for view in four.views}) == 4
    two = tta_of(quarters, augmentations(), n=2)
    assert torch.equal(two.views[1].probs, four.views[1].probs)
    plain = predict_set(Color(), quarters, CPU, COLORS_TASK)
    assert torch.equal(four.plain.probs, plain.probs)


@pytest.mark.parametrize("augment", [None, NO_AUGMENT])
def test_no_random_views_without_augmentation_in_training(quarters, augment):
    with pytest.raises(ValueError, match="form='corners', or train with augmentation"):
        tta_of(quarters, augment)
    assert len(tta_of(quarters, augment, form="corners").views) == 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("d") / "t")
    return ImageData.from_name_re(folder, r"^(.+)_\d+", size=16, bs=8, augment=augmentations())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("resnet18", n_out=3, weights=None).eval()


def test_features_are_not_images(data, model):
    model.freeze_to(-1)
    features = precompute(model, data, CPU).valid
    with pytest.raises(ValueError, match="holds features instead"):
        tta_set(model.head, features, data.augment, CPU, data.task)
    with pytest.raises(ValueError, match="holds features instead"):
        predict_files(model, data.valid.paths, features, CPU, data.task)
    with pytest.raises(ValueError, match="holds features instead"):
        predict_one(model, data.valid.paths[0], features, CPU, data.task)


def test_tta_of_a_network_in_training_mode_changes_nothing(data, model):
    model.train()
    before = {name: v.clone() for name, v in model.state_dict().items()}
    found = tta_of(data.valid, data.augment, model, data.task)
    assert model.training
    for name, v in model.state_dict().items(): assert torch.equal(v, before[name])
    assert torch.allclose(found.preds.probs.sum(1), torch.ones(data.valid.n), atol=1e-5)
    assert found.preds.paths == data.valid.paths
    all_the_same = mean_preds([found.plain, *found.views], [1, 1, 1, 1, 1])
    assert_same(all_the_same, replace(found, beta=.2).preds)


# ---- new files
@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "500 gray files: the gray of number i is i, and after 255 it begins again."
    folder = tmp_path_factory.mktemp("many")
    files = [folder / f"{i:03}.png" for i in range(500)]
    for i, file in enumerate(files):
        Image.fromarray(np.full((6, 6, 3), i % 256, np.uint8)).save(file)
    return files


def predicted(files, like): return predict_files(Color(), files, like, CPU, Task("number"))


class Alive:
    "Counts how many images and batches exist at the same time, at most."
    def __init__(self):
        self.images, self.batches = weakref.WeakValueDictionary(), weakref.WeakSet()
        self.most_images = self.most_batches = 0

    def opened(self, source, *args):
        pixels, aspect = open_pixels(source, *args)
        self.images[source] = pixels
        self.most_images = max(self.most_images, len(self.images))
        return pixels, aspect

    def batch_class(self):
        alive = self
        class Watched(Batch):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                alive.batches.add(self)
                alive.most_batches = max(alive.most_batches, len(alive.batches))
            __hash__ = object.__hash__
        return Watched


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("cache", [None, "memory"])
def test_of_thousands_of_files_only_a_few_are_in_memory(many, monkeypatch, ahead, cache):
    alive = Alive()
    monkeypatch.setattr("lessonkit.data.loader.open_pixels", alive.opened)
    monkeypatch.setattr("lessonkit.data.loader.Batch", alive.batch_class())
    engine = Engine("cpu", "fp32")
    engine.ahead = ahead
    like = Loader(tuple(many[:1]), torch.tensor([0]), size=6, presize=6, bs=10, threads=2,
                  cache=cache)
    found = predict_files(Color(), many, like, engine, Task("number"))
    assert found.paths == tuple(many)
    assert torch.allclose(found.probs[:, 0], torch.arange(500) % 256 / 255, atol=1e-5)
    assert 1 <= alive.most_images <= (ahead + 3) * 10
    assert 1 <= alive.most_batches <= 4
    assert not like._kept


def test_unreadable_files_are_left_out_with_a_single_warning(many, tmp_path):
    bad = [tmp_path / f"bad_{i}.jpg" for i in range(7)]
    for f in bad[1:]: f.write_bytes(b"not an image")  # the first does not even exist
    files = [bad[0], *many[:3], *bad[1:], many[3]]
    like = Loader((), None, size=6, presize=6, bs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = predicted(files, like)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    for text in ("7 of 11 files", "No such file", "identify", *(f"bad_{i}.jpg" for i in range(5))):
        assert text in message
    assert "bad_5" not in message
    assert found.paths == tuple(many[:4])
    assert torch.allclose(found.probs[:, 0], torch.arange(4) / 255, atol=1e-5)
    assert found.targets is None
    assert found.losses is None
    with pytest.raises(ValueError, match="none of the 7 files could be read: .*bad_4"):
        predicted(bad, like)


def test_images_of_any_form_can_be_mixed(many):
    pixels = np.full((6, 6, 3), 51, np.uint8)
    items = [str(many[3]), many[4], many[5].read_bytes(), Image.open(many[6]), pixels,
             pixels[..., 0], torch.from_numpy(pixels)]
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    found, gray = predicted(items, like), torch.tensor([3., 4, 5, 6, 51, 51, 51])
    assert found.paths == ()
    assert torch.allclose(found.probs[:, 0] * 255, gray, atol=1e-3)
    assert predicted(items[:2], like).paths == (many[3], many[4])
    assert predicted(iter(many[:5]), like).paths == tuple(many[:5])


def test_what_is_no_list_of_images_is_an_error(many):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    for wrong in ([], str(many[0]), many[0], b"bytes"):
        with pytest.raises(ValueError, match="no files|list of images"): predicted(wrong, like)


def single_images(file):
    "One image in many forms."
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return [file, str(file), file.read_bytes(), bytearray(file.read_bytes()),
            memoryview(file.read_bytes()), io.BytesIO(file.read_bytes()), Image.open(file),
            pixels, pixels[..., 0], pixels.transpose(2, 0, 1), torch.from_numpy(pixels.copy()),
            torch.from_numpy(pixels.copy()).permute(2, 0, 1)]


@pytest.mark.parametrize("form", range(12))
def test_one_image_is_never_a_list_of_images(many, form):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    one = single_images(many[77])[form]
    with pytest.raises(ValueError, match="one image, and a list of images is wanted.*predict"):
        predicted(one, like)
    assert predicted([one], like).probs[0, 0] * 255 == pytest.approx(77, abs=1e-3)
    for _ in range(2):  # a file can be read twice
        alone = predict_one(Color(), one, like, CPU, Task("number"))
        assert alone.probs[0] * 255 == pytest.approx(77, abs=1e-3)


def test_arrays_of_several_images_and_columns_of_paths_are_lists(many):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    batch = np.stack([np.full((6, 6, 3), i, np.uint8) for i in (3, 4)])
    names = pd.Series(many[3:5], index=["x", "y"])
    for several in (batch, torch.from_numpy(batch), torch.from_numpy(batch).permute(0, 3, 1, 2),
                    list(batch), names, names.astype(str), np.array(many[3:5], dtype=str),
                    (f for f in many[3:5]), {"a": many[3], "b": many[4]}.values()):
        gray = predicted(several, like).probs[:, 0] * 255
        assert gray.tolist() == pytest.approx([3, 4], abs=.01)


@pytest.mark.parametrize("wrong, message", [
    (pd.DataFrame({"name": ["a.png"], "x": [1]}), r"column of paths, such as df\['name'\]"),
    ({"a.png"}, "a set .* order"), ({"a.png": 1}, "a dict .* order"),
    (np.zeros(5), r"shape \(5,\)"),
    (np.zeros((2, 2, 5, 5, 3)), "shape"), (np.zeros((0, 5, 5, 3), np.uint8), "no files"),
    (7, "got 7"), (None, "got None"), ((), "no files"), (object(), "list of images")])
def test_what_holds_no_images_is_refused_with_advice(many, wrong, message):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    with pytest.raises(ValueError, match=message): predicted(wrong, like)


@pytest.mark.parametrize("several", [
    ["a.png"], ("a.png", "b.png"), pd.Series(["a.png"]), np.zeros((1, 6, 6, 3), np.uint8),
    torch.zeros(2, 3, 6, 6), pd.DataFrame({"f": ["a.png"]}), None, 5, np.zeros(4)])
def test_several_images_are_not_one(many, several):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    with pytest.raises(ValueError, match="predict takes one image"):
        predict_one(Color(), several, like, CPU, Task("number"))


class NoWords:
    "A file that fails without saying why."
    def __init__(self, error): self.error = error
    def read(self, *_): raise self.error
    def seek(self, *_): return 0
    def tell(self): return 0


def test_every_item_gets_a_row_or_a_reason_each_time(many):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=3)
    with Image.open(many[9]) as closed: pass
    raw = many[200].read_bytes()
    items = [raw[:40], many[5], None, closed, "", "a\0b", NoWords(EOFError()), 3.5, many[6],
             [many[1]], np.zeros((0, 4, 3), np.uint8), NoWords(MemoryError()), str(many[7]),
             "missing.png"]
    message = r"11 of 14 files .*number 0, .*; and 6 more.*\.failed"
    for _ in range(3):
        with pytest.warns(UserWarning, match=message):
            found = predicted(items, like)
        assert found.index.tolist() == [1, 8, 12]
        assert (found.probs[:, 0] * 255).tolist() == pytest.approx([5, 6, 7], abs=1e-3)
        assert sorted([*found.failed, *found.index.tolist()]) == list(range(14))
        for reason in found.failed.values(): assert reason.split(": ", 1)[-1].strip()
        assert "EOFError" in found.failed[6]
        assert "MemoryError" in found.failed[11]
    assert like.failed is None


def test_the_image_that_was_given_is_as_before(many, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(
        tmp_path / "i.jpg")
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4, channels=3)
    for gray in (like, replace(like, channels=1)):
        img, pixels = Image.open(tmp_path / "i.jpg"), np.asarray(Image.open(tmp_path / "i.jpg"))
        array = pixels.copy()
        predict_one(Color(), img, gray, CPU, Task("number"))
        predict_files(Color(), [img, array, img], gray, CPU, Task("number"))
        assert (img.size, img.mode) == ((30, 40), "RGB")
        assert np.array_equal(np.asarray(img), pixels)
        assert np.array_equal(array, pixels)


def test_a_prediction_has_names_and_no_positions(many):
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    p = predict_one(Color(), many[5], like, CPU, Task("single", ("r", "g", "b")))
    assert isinstance(p, Prediction)
    assert (p.label, p.probability) == ("r", float(p.probs[0]))
    def unpack(): label, index, probabilities = p
    for misuse in (unpack, lambda: p[0], lambda: p[-1], lambda: p[:2], lambda: len(p), lambda: [*p],
                   lambda: tuple(p), lambda: "r" in p, lambda: max(p)):
        with pytest.raises(TypeError, match=r"\.label .*\.probability .*\.probs"): misuse()
    with pytest.raises(AttributeError): p.label = "g"
    assert bool(p)
    assert "label='r'" in repr(p)


def test_one_file_and_a_list_of_one_agree(data, model):
    for f in data.valid.paths[:2]:
        listed = predict_files(model, [f], data.valid, CPU, data.task)
        alone = predict_one(model, f, data.valid, CPU, data.task)
        assert torch.allclose(listed.probs[0], alone.probs, atol=1e-6)


# ---- sets whose files vanish
@pytest.fixture
def fragile(tmp_path):
    "A learner whose files may be deleted."
    folder = sample.tiny(tmp_path / "train")
    sample.tiny(tmp_path / "test", n=6, seed=5)
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=16, bs=4, test=tmp_path / "test")
    return Learner(data, "resnet18", weights=None, show=False, precision="fp32", device="cpu",
                   model_dir=tmp_path / "models")


@pytest.mark.parametrize("which", ["valid", "test"])
def test_sets_whose_files_vanish_keep_rows_and_items_together(fragile, which):
    learn = fragile
    loader, whole = getattr(learn.data, which), learn.get_preds(which)
    gone = [loader.paths[1], loader.paths[3]]
    kept = [f.read_bytes() for f in gone]
    for f in gone: f.unlink()
    learn.set_data(learn.data.resized(16))  # so that they are predicted anew
    rest = [i for i in range(loader.n) if i not in (1, 3)]
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"2 of {loader.n} files .*number 1, .*number 3"):
            found = learn.get_preds(which)
        assert found.index.tolist() == rest
        assert found.paths == tuple(loader.paths[i] for i in rest)
        assert torch.allclose(found.probs, whole.probs[rest], atol=1e-6)
        assert list(found.failed_paths.values()) == gone
        if which == "valid": assert torch.equal(found.targets, whole.targets[rest])
    with pytest.raises(ValueError, match="2 files could not be read"): found.submission()
    with pytest.warns(UserWarning, match="2 of "): blend = learn.tta(form="corners", which=which)
    assert blend.failed == found.failed
    for f, content in zip(gone, kept): f.write_bytes(content)
    assert torch.equal(learn.get_preds(which).probs, whole.probs)  # they are there again


def test_heat_maps_of_rows_are_those_of_their_images(fragile):
    learn, seen = fragile, []
    learn.data.valid.paths[0].unlink()
    with pytest.warns(UserWarning, match="number 0"): p = learn.get_preds()
    learn.heat_maps = lambda idx: seen.append(idx.tolist()) or torch.zeros(len(idx), 16, 16)
    with pytest.warns(UserWarning, match="number 0"): learn.plot_top_losses(2, heatmap=True)
    assert seen == [p.index[p.losses.argsort(descending=True)[:2]].tolist()]


def test_nothing_that_can_be_read_is_an_error(fragile):
    for f in fragile.data.test.paths: f.unlink()
    with pytest.raises(ValueError, match="none of the 18 files|none of the 6 files"):
        fragile.get_preds("test")


def test_heat_maps_take_positions_and_masks_and_nothing_else(fragile):
    n = fragile.data.valid.n
    mask = torch.zeros(n, dtype=torch.bool)
    mask[[1, 2]] = True
    assert torch.equal(fragile.heat_maps(mask), fragile.heat_maps([1, 2 - n]))
    for wrong in ([True, 2], [n], [1.5], ["a"]):
        with pytest.raises(IndexError): fragile.heat_maps(wrong)
    for wrong in ([True, False], [-1, 0]):
        with pytest.raises((TypeError, ValueError)): fragile.heat_maps([0, 1], wrong)


def test_averages_take_generators(fragile):
    files = list(fragile.data.valid.paths)
    for name in ("a", "b"): fragile.save(name)
    mean = fragile.average(["a", "b"], (f for f in files))
    assert torch.allclose(mean.probs, fragile.get_preds(files).probs, atol=1e-6)
