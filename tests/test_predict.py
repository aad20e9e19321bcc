"""Predictions as values: what is picked, joined, written; what test-time augmentation shows and how it is averaged; new files."""
import math
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn

import lessonkit.data
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.loader import Batch, Loader
from lessonkit.model.create import create_model
from lessonkit.data.augment import NO_AUGMENT
from lessonkit.train.features import precompute
from lessonkit.results.predict import predict_files, predict_one, predict_set
from lessonkit.results.preds import Preds
from lessonkit.results.tta import mean_preds, TTA, tta_set, tta_views
from lessonkit.train.engine import Engine

KINDS = ("single", "multi", "number")
CPU = Engine("cpu", "fp32")


def make(n=7, kind="single", c=3, targets=True, paths=True, seed=0):
    "Predictions whose every part tells which item it belongs to."
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, c, generator=g)
    if kind == "single": probs, y = probs / probs.sum(1, keepdim=True), torch.arange(n) % c
    else: y = (torch.rand(n, c, generator=g) > .5).float() if kind == "multi" else torch.rand(n, c, generator=g)
    return Preds(probs, y if targets else None, torch.arange(n).float() if targets else None, tuple(Path(f"folder/{seed}_{i}.jpg") for i in range(n)) if paths else (), Task(kind, tuple("abcdefgh"[:c]) if kind != "number" else ()))


def same(a, b):
    return (torch.equal(a.probs, b.probs) and a.paths == b.paths and (a.classes, a.kind) == (b.classes, b.kind)
            and all(x is y if x is None or y is None else torch.equal(x, y) for x, y in ((a.targets, b.targets), (a.losses, b.losses))))


# ---- some of them
@st.composite
def positions(draw):
    n = draw(st.integers(0, 8))
    kind = draw(st.sampled_from(["list", "array", "tensor", "mask", "slice", "one"] if n else ["slice", "mask", "empty"]))
    mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    some = draw(st.lists(st.integers(-n, n - 1), max_size=12)) if n else []
    ends = st.none() | st.integers(-10, 10)
    idx = {"list": some, "array": np.array(some, dtype=np.int64), "tensor": torch.tensor(some, dtype=torch.int64), "empty": [], "one": some[0] if some else 0,
           "mask": draw(st.sampled_from([np.array(mask, dtype=bool), torch.tensor(mask, dtype=torch.bool), pd.Series(mask, dtype=bool)])),
           "slice": slice(draw(ends), draw(ends), draw(st.sampled_from([None, 1, 2, -1, -3])))}[kind]
    want = list(range(n))[idx] if kind == "slice" else [i for i, m in enumerate(mask) if m] if kind == "mask" else [idx] if kind == "one" else some
    return n, idx, [i % n for i in want]


@settings(max_examples=150, deadline=None)
@given(chosen=positions(), kind=st.sampled_from(KINDS), targets=st.booleans(), paths=st.booleans())
def test_all_parts_of_what_is_picked_belong_together(chosen, kind, targets, paths):
    n, idx, want = chosen
    whole = make(n, kind, targets=targets, paths=paths)
    part = whole[idx]
    assert isinstance(part, Preds) and len(part) == len(want) and part.kind == kind and part.classes == whole.classes
    assert part.probs.tolist() == [whole.probs[i].tolist() for i in want] and part.probs.shape[1] == 3
    assert part.paths == (tuple(whole.paths[i] for i in want) if paths else ())
    if not targets: assert part.targets is None and part.losses is None
    else: assert part.losses.tolist() == want and part.targets.tolist() == [whole.targets[i].tolist() for i in want]


@pytest.mark.parametrize("idx", [7, [0, -8], [True] * 6, "a", 1.5, (0, 1), None, [[0, 1], [2, 3]]])
def test_what_is_no_position_is_an_error(idx):
    with pytest.raises(IndexError, match="7 predictions|one list"): make()[idx]


def test_going_through_them_gives_one_after_the_other():
    assert [p.paths[0] for p in make()] == list(make().paths)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), kind=st.sampled_from(KINDS), targets=st.booleans(), paths=st.booleans())
def test_parts_joined_are_the_whole(sizes, kind, targets, paths):
    whole, at = make(sum(sizes), kind, targets=targets, paths=paths), np.cumsum([0, *sizes])
    assert same(Preds.join([whole[a:b] for a, b in zip(at, at[1:])]), whole)


def test_what_does_not_go_together_is_not_joined():
    p = make()
    for other in (replace(p, classes=("x", "y", "z")), make(kind="multi"), make(c=2), make(kind="number")):
        with pytest.raises(ValueError, match="same kind and classes"): Preds.join([p, other])
    for other, missing in ((replace(p, paths=()), r"paths=\(\)"), (replace(p, losses=None), "losses=None"), (make(targets=False), "targets=None")):
        with pytest.raises(ValueError, match=f"1 of 2 sets .*{missing}"): Preds.join([other, p])
    with pytest.raises(ValueError, match="kind 'number'|'number' with 1"): Preds.join([make(kind="number", c=1), make(kind="number", c=2)])
    with pytest.raises(ValueError, match="nothing to join"): Preds.join([])


# ---- numbers
def test_log_probabilities_are_finite_and_margins_those_of_the_two_best():
    p = Preds(torch.tensor([[1., 0., 0.], [.5, .2, .3]]), None, None, (), Task("single", ("a", "b", "c")))
    assert torch.isfinite(p.log_probs).all() and p.log_probs[1].tolist() == pytest.approx([math.log(v) for v in (.5, .2, .3)])
    assert p.margin.tolist() == pytest.approx([1, .2])
    assert torch.equal(make(kind="multi").log_probs, make(kind="multi").probs.log())
    for wrong in (lambda: make(kind="number").log_probs, lambda: make(kind="multi").margin, lambda: make(kind="multi").pred):
        with pytest.raises(ValueError, match="these are"): incorrect_indices()
    with pytest.raises(ValueError, match="only one"): make(c=1).margin


# ---- tables
NAMES = ("a, b", 'the "third"', "größer", "loss")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [True, False])
def test_a_table_written_and_read_is_the_same(kind, targets, tmp_path):
    p = make(9, kind, c=4, targets=targets)
    p = replace(p, classes=() if kind == "number" else NAMES, probs=p.probs.clone().index_fill_(1, torch.tensor([0]), 1.) if kind == "multi" else p.probs)
    table, path = p.to_frame(probs=True), p.to_csv(tmp_path / "p.csv")
    read = pd.read_csv(path, float_precision="round_trip")
    if kind == "multi" and targets: read["actual"] = read["actual"].fillna("")     # where no label holds
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    assert list(read.file) == [f"0_{i}.jpg" for i in range(9)]
    if kind != "number":
        last = ["a, b", 'the "third"', "größer", "p_loss" if targets else "loss"]
        assert list(table)[-4:] == last and torch.equal(torch.tensor(table[last].to_numpy()).float(), p.probs)
    assert list(pd.read_csv(p.to_csv(tmp_path / "q.csv", probs=False))) == list(p.to_frame())


def test_columns_say_what_was_said():
    p = make()
    cols = p.columns()
    assert list(cols) == ["file", "actual", "predicted", "probability", "probability_actual", "loss", "margin"]
    for i in range(len(p)):
        assert cols["actual"][i] == "abc"[i % 3] and cols["predicted"][i] == "abc"[int(p.probs[i].argmax())] and cols["loss"][i] == i
        assert cols["probability"][i] == float(p.probs[i].max()) and cols["probability_actual"][i] == float(p.probs[i, i % 3])
    assert "margin" not in make(c=1).columns() and make()[[]].columns().keys() == make(paths=False).columns().keys()


# ---- competitions
def test_dogs_against_cats_wants_a_number_and_a_probability(tmp_path):
    p = Preds(torch.tensor([[.25, .75], [.5, .5]]), None, None, (Path("test/1.jpg"), Path("test/10.jpg")), Task("single", ("cats", "dogs")))
    p.submission(tmp_path / "s.csv", label="dogs")
    assert (tmp_path / "s.csv").read_text() == "id,label\n1,0.75\n10,0.5\n"


def test_breeds_want_a_class_or_a_column_each(tmp_path):
    p = replace(make(2), probs=torch.tensor([[.25, .5, .25], [1., 0., 0.]]), paths=(Path("x/ff.1.jpg"), Path("x/00.png")))
    assert p.submission(label_name="breed").to_csv(index=False) == "id,breed\nff.1,b\n00,a\n"
    assert p.submission(label="probs").to_csv(index=False) == "id,a,b,c\nff.1,0.25,0.5,0.25\n00,1.0,0.0,0.0\n"
    assert p.submission(id_name="file", ext=True).to_csv(index=False) == "file,label\nff.1.jpg,b\n00.png,a\n"


def test_satellites_want_all_labels_that_hold():
    p = replace(make(2, "multi"), probs=torch.tensor([[.9, .1, .6], [.3, .2, .1]]), paths=(Path("train_1.tif"), Path("train_2.tif")))
    assert p.submission(None, "image_name", "tags").to_csv(index=False) == "image_name,tags\ntrain_1,a c\ntrain_2,\n"
    assert p.submission(threshold=.25).label.tolist() == ["a c", "a"] and p.submission(label="c").label.tolist() == pytest.approx([.6, .1])


def test_numbers_are_submitted_as_they_are():
    p = make(3, "number", c=1)
    assert list(p.submission(label_name="age")) == ["id", "age"] and p.submission().label.tolist() == p.probs[:, 0].tolist()
    assert list(make(3, "number", c=2).submission()) == ["id", "label_0", "label_1"]
    assert list(replace(make(3, "number", c=2), classes=("x", "y")).submission()) == ["id", "x", "y"]
    with pytest.raises(ValueError, match="numbers have no classes"): p.submission(label="probs")


def test_a_submission_that_would_be_refused_is_not_made(tmp_path):
    p = make(2)
    for paths, kw, what in (((), {}, "have none"), ((Path("a/1.jpg"), Path("b/1.jpg")), {}, "'1': ext=True"), ((Path("a/1.jpg"), Path("b/1.jpg")), dict(ext=True), "a name of its own"),
                            (p.paths, dict(label="d"), "got 'd'"), (p.paths, dict(label="probs", id_name="b"), "another id_name")):
        with pytest.raises(ValueError, match=what): replace(p, paths=paths).submission(tmp_path / "s.csv", **kw)
    assert not (tmp_path / "s.csv").exists()


# ---- test-time augmentation
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])   # left top, left bottom, right top, right bottom


class Color(nn.Module):
    "Says the mean color. Counts how often it is asked."
    asked = 0

    def forward(self, x):
        self.asked += 1
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    "Six pictures of four colored quarters each; the fourth and later ones twice as wide, of eighths: their outer ones have the colors."
    folder, files = tmp_path_factory.mktemp("quarters"), []
    for i in range(6):
        right = 64 if i < 3 else 192                     # where the right quarters begin
        a = np.full((128, right + 64, 3), 128, np.uint8)
        for (y, x), c in zip(((0, 0), (64, 0), (0, right), (64, right)), COLOURS.numpy()): a[y:y + 64, x:x + 64] = c
        files.append(folder / f"{i}.png")
        Image.fromarray(a).save(files[-1])
    return Loader(tuple(files), None, size=32, presize=128, bs=2, threads=1)


ONLY_FLIP = replace(NO_AUGMENT, flip=True)


def test_corners_see_the_corners(quarters):
    for index, batch in enumerate(quarters.batches()):
        looks = tta_views(quarters, None, form="corners", scale=2)
        assert len(looks) == 4
        for look, color in zip(looks, COLOURS):
            seen = look(batch, index)
            assert seen.shape == (2, 3, 32, 32)
            assert (seen[..., 1:-1, 1:-1] - color[:, None, None] / 255).abs().max() < 1e-5      # at the rim a neighbor shines in


def test_a_gentler_zoom_shows_most_of_its_own_quarter(quarters):
    batch = next(quarters.batches())
    for look, color in zip(tta_views(quarters, None, form="corners"), COLOURS):
        own = ((look(batch, 0) - color[:, None, None] / 255).abs().amax(1) < .02).float().mean((1, 2))
        assert torch.allclose(own, torch.full((2,), (1.35 / 2) ** 2), atol=.05)     # it sees 1/1.35 of each side, and its quarter is half of one


@pytest.mark.parametrize("augment, mirrored", [(ONLY_FLIP, True), (replace(NO_AUGMENT, flip_vert=True), True), (NO_AUGMENT, False), (None, False)])
def test_corners_are_mirrored_only_where_training_mirrors(quarters, augment, mirrored):
    batch = next(quarters.batches())
    seen = [look(batch, 0) for look in tta_views(quarters, augment, form="corners")]
    assert len(seen) == (8 if mirrored else 4)
    for plain, flipped in zip(seen[:4], seen[4:]): assert torch.allclose(flipped, plain.flip(3), atol=1e-5)


@pytest.mark.parametrize("form", ["random", "corners"])
def test_no_view_is_mirrored_where_training_did_not_mirror(quarters, form):
    batch, augment = next(quarters.batches()), augmentations(do_flip=False, max_zoom=1., max_rotate=10, max_warp=0)
    for look in tta_views(quarters, augment, form=form, n=30, scale=1.):
        x = look(batch, 0)
        left, right = x[..., 4:9], x[..., -9:-4]
        assert (right[:, 2].mean((1, 2)) > left[:, 2].mean((1, 2))).all()          # blue and white are on the right


def test_corners_leave_turn_tilt_and_light_to_chance(quarters):
    batch = next(quarters.batches())
    for vary in (dict(max_rotate=10), dict(max_warp=.2), dict(max_lighting=.2)):
        a, b = (tta_views(quarters, replace(NO_AUGMENT, p_affine=1, p_lighting=1, **vary), form="corners", seed=s)[0](batch, 0) for s in (1, 2))
        assert not torch.allclose(a, b, atol=1e-2)
    for left_out in (dict(max_zoom=2), dict(random_crop=True), dict(min_scale=.1), dict(flip=True)):
        a, b = (tta_views(quarters, replace(NO_AUGMENT, p_affine=1, **left_out), form="corners", seed=s)[0](batch, 0) for s in (1, 2))
        assert torch.equal(a, b)


def by_hand(kind, colors):
    "What `Color` makes of a picture of one color or several in equal parts, worked out in NumPy."
    z = colors.double().numpy() / 255
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True) if kind == "single" else 1 / (1 + np.exp(-z)) if kind == "multi" else z


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment, n", [(None, 4), (ONLY_FLIP, 8)])
def test_the_blend_is_the_formula(quarters, kind, augment, n):
    y = dict(single=torch.tensor([0, 1, 2]), multi=torch.tensor([[1., 0, 0]] * 3), number=torch.tensor([[.5, .5, 0]] * 3))[kind]
    loader = replace(quarters, paths=quarters.paths[:3], targets=y, size=64)         # the square ones
    classes = () if kind == "number" else ("red", "green", "blue")
    found = tta_set(Color(), loader, augment, CPU, Task(kind, classes), form="corners", scale=2)
    plain, views = by_hand(kind, COLOURS.double().mean(0)), by_hand(kind, COLOURS)
    assert isinstance(found, TTA) and len(found.views) == n and found.beta == .4
    assert np.allclose(found.plain.probs, plain, atol=1e-6)
    for k, view in enumerate(found.views): assert np.allclose(view.probs, views[k % 4], atol=1e-6) and view.paths == loader.paths
    exact = .4 * found.plain.probs.double() + .6 * sum(v.probs.double() for v in found.views) / n
    assert torch.allclose(found.preds.probs.double(), exact, atol=1e-6) and np.allclose(exact, .4 * plain + .6 * views.mean(0), atol=1e-6)
    assert found.preds.kind == kind and torch.equal(found.preds.targets, y) and found.preds.classes == classes
    p, rows = exact.numpy(), range(3)
    losses = dict(single=lambda: -np.log(p[rows, y if kind == "single" else 0]), multi=lambda: -np.log([[r[0], 1 - r[1], 1 - r[2]] for r in p]).mean(1),
                  number=lambda: ((p - y.numpy()) ** 2).mean(1))[kind]()
    assert np.allclose(found.preds.losses, losses, atol=1e-4)


def test_beta_and_the_forms_defaults(quarters):
    say = lambda **kw: tta_set(Color(), quarters, ONLY_FLIP, CPU, Task("single", ("r", "g", "b")), **kw)
    assert say().beta == .25 and len(say().views) == 4 and say(form="corners").beta == .4 and say(n=2, beta=0).beta == 0
    old = say(beta=1 / 5)                                                            # 0.7: the mean of five
    assert torch.allclose(old.preds.probs, torch.stack([old.plain.probs, *(v.probs for v in old.views)]).mean(0), atol=1e-6)
    for beta in (-.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"): say(beta=beta)
    with pytest.raises(ValueError, match="form is"): say(form="corner")
    with pytest.raises(ValueError, match="n is"): say(n=0)
    with pytest.raises(ValueError, match="zoom"): say(form="corners", scale=.9)


def test_a_model_that_sees_nothing_says_the_same_to_all_views(quarters):
    class Blind(nn.Module):
        def forward(self, x): return torch.tensor([1., 2., 3.]).repeat(len(x), 1)
    for form in ("random", "corners"):
        found = tta_set(Blind(), quarters, augmentations(), CPU, Task("single", ("a", "b", "c")), form=form)
        assert all(torch.equal(v.probs, found.plain.probs) for v in found.views) and torch.allclose(found.preds.probs, found.plain.probs, atol=1e-6)


def test_each_file_is_opened_once_and_each_view_asked_once(quarters, monkeypatch):
    opened, real = [], lessonkit.data.images.open_pixels
    monkeypatch.setattr(lessonkit.data, "open_pixels", lambda source, *a: opened.append(source) or real(source, *a))
    for form, views in (("random", 5), ("corners", 8)):
        opened.clear()
        model = Color()
        tta_set(model, quarters, ONLY_FLIP, CPU, Task("single", ("r", "g", "b")), form=form, n=5)
        assert sorted(opened) == sorted(quarters.paths) and model.asked == len(quarters) * (1 + views)


def test_chance_depends_on_the_seed_alone(quarters):
    before = torch.get_rng_state()
    say = lambda loader=quarters, **kw: tta_set(Color(), loader, augmentations(), CPU, Task("single", ("r", "g", "b")), **kw)
    a, b = say(), say(replace(quarters, threads=4, shuffle=True, augment=augmentations()))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x.probs, y.probs) for x, y in zip(a.views, b.views)) and torch.equal(a.plain.probs, b.plain.probs)
    assert all(not torch.equal(x.probs, y.probs) for x, y in zip(a.views, say(seed=1).views))
    assert len({v.probs.numpy().tobytes() for v in a.views}) == 4
    assert torch.equal(a.plain.probs, predict_set(Color(), quarters, CPU, Task("single", ("r", "g", "b"))).probs)
    assert torch.equal(say(n=2).views[1].probs, a.views[1].probs)                    # a view does not depend on how many there are


def test_no_random_views_where_training_knew_none(quarters):
    for augment in (None, NO_AUGMENT):
        with pytest.raises(ValueError, match="form='corners', or train with augmentation"): tta_set(Color(), quarters, augment, CPU, Task("single", ("r", "g", "b")))
        assert len(tta_set(Color(), quarters, augment, CPU, Task("single", ("r", "g", "b")), form="corners").views) == 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ImageData.from_name_re(sample.tiny(tmp_path_factory.mktemp("d") / "t"), r"^(.+)_\d+", size=16, bs=8, augment=augmentations())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("resnet18", n_out=3, weights=None).eval()


def test_features_are_no_pictures(data, model):
    model.freeze_to(-1)
    features = precompute(model, data, CPU).valid
    for ask in (lambda: tta_set(model.head, features, data.augment, CPU, data.task), lambda: predict_files(model, data.valid.paths, features, CPU, data.task),
                lambda: predict_one(model, data.valid.paths[0], features, CPU, data.task)):
        with pytest.raises(ValueError, match="holds features instead"): ask()


def test_views_of_a_real_network_in_training_mode_change_nothing(data, model):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = tta_set(model, data.valid, data.augment, CPU, data.task)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.allclose(found.preds.probs.sum(1), torch.ones(data.valid.n), atol=1e-5) and found.preds.paths == data.valid.paths
    assert same(mean_preds([found.plain, *found.views], [1, 1, 1, 1, 1]), replace(found, beta=.2).preds)


# ---- new files
@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("many"), []
    for i in range(500):
        files.append(folder / f"{i:03}.png")
        Image.fromarray(np.full((6, 6, 3), i % 256, np.uint8)).save(files[-1])
    return files


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("cache", [None, "memory"])
def test_thousands_of_files_pass_through_a_few_at_a_time(many, monkeypatch, ahead, cache):
    alive, most, real = weakref.WeakSet(), dict(pictures=0, batches=0), lessonkit.data.images.open_pixels
    pictures = weakref.WeakValueDictionary()

    def opened(source, *a):
        found = real(source, *a)
        pictures[source] = found[0]
        most["pictures"] = max(most["pictures"], len(pictures))
        return found

    class Watched(Batch):
        def __init__(self, *a, **kw):
            super().__init__(*a, **kw)
            alive.add(self)
            most["batches"] = max(most["batches"], len(alive))
        __hash__ = object.__hash__
    monkeypatch.setattr(lessonkit.data, "open_pixels", opened)
    monkeypatch.setattr(lessonkit.data, "Batch", Watched)
    engine = Engine("cpu", "fp32")
    engine.ahead = ahead
    like = Loader(tuple(many[:1]), torch.tensor([0]), size=6, presize=6, bs=10, threads=2, cache=cache)
    found = predict_files(Color(), many, like, engine, Task("number"))
    assert found.paths == tuple(many) and torch.allclose(found.probs[:, 0], torch.arange(500) % 256 / 255, atol=1e-5)
    assert 10 <= most["pictures"] <= (ahead + 3) * 10 and 1 <= most["batches"] <= 4 and not like._kept


def test_unreadable_files_are_left_out_with_one_warning(many, tmp_path):
    bad = [tmp_path / f"bad_{i}.jpg" for i in range(7)]
    for f in bad[1:]: f.write_bytes(b"no picture")
    files = [bad[0], *many[:3], *bad[1:], many[3]]                                   # the first does not even exist
    like = Loader((), None, size=6, presize=6, bs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = predict_files(Color(), files, like, CPU, Task("number"))
    assert len(caught) == 1 and caught[0].filename == __file__
    said = str(caught[0].message)
    assert "7 of 11 files" in said and all(f"bad_{i}.jpg" in said for i in range(5)) and "bad_5" not in said and "No such file" in said and "identify" in said
    assert found.paths == tuple(many[:4]) and torch.allclose(found.probs[:, 0], torch.arange(4) / 255, atol=1e-5) and found.targets is None and found.losses is None
    with pytest.raises(ValueError, match="none of the 7 files could be read: .*bad_4"): predict_files(Color(), bad, like, CPU, Task("number"))


def test_pictures_of_any_form_go_side_by_side(many):
    a = np.full((6, 6, 3), 51, np.uint8)
    items = [str(many[3]), many[4], many[5].read_bytes(), Image.open(many[6]), a, a[..., 0], torch.from_numpy(a)]
    like = Loader(tuple(many[:1]), None, size=6, presize=6, bs=4)
    found = predict_files(Color(), items, like, CPU, Task("number"))
    assert found.paths == () and torch.allclose(found.probs[:, 0] * 255, torch.tensor([3., 4, 5, 6, 51, 51, 51]), atol=1e-3)
    assert predict_files(Color(), items[:2], like, CPU, Task("number")).paths == (many[3], many[4])
    assert predict_files(Color(), iter(many[:5]), like, CPU, Task("number")).paths == tuple(many[:5])
    for wrong in ([], str(many[0]), many[0], b"bytes"):
        with pytest.raises(ValueError, match="no files|list of pictures"): predict_files(Color(), wrong, like, CPU, Task("number"))


def test_one_file_and_a_list_of_one_agree(data, model):
    for f in data.valid.paths[:2]:
        assert torch.allclose(predict_files(model, [f], data.valid, CPU, data.task).probs[0], predict_one(model, f, data.valid, CPU, data.task).probs, atol=1e-6)
