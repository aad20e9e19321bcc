"""Properties of the way from files to batches, on random sizes and labels."""
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from lessonkit import sample
from lessonkit.data import ImageData, ImageReadError, encode, even_batches, key_generator, open_image, split_indices, to_rgb

common = settings(max_examples=50, deadline=None)


@common
@given(n=st.integers(1, 500), bs=st.integers(1, 70))
def test_batches_are_few_and_even(n, bs):
    parts = even_batches(torch.arange(n), bs)
    sizes = [len(p) for p in parts]
    assert torch.cat(parts).tolist() == list(range(n))
    assert len(parts) == -(-n // bs) and max(sizes) <= bs and max(sizes) - min(sizes) <= 1


@common
@given(counts=st.lists(st.integers(4, 40), min_size=2, max_size=5), pct=st.floats(.15, .6), seed=st.integers(0, 1000), way=st.sampled_from(["random", "stratified"]))
def test_splits(counts, pct, seed, way):
    labels = [c for c, k in enumerate(counts) for _ in range(k)]
    try: held = split_indices(labels, pct, way, seed)
    except ValueError as e:                              # too few places for all classes on one side
        assert way == "stratified" and "at least two pictures" in str(e)
        return
    assert len(set(held.tolist())) == len(held) == int(pct * len(labels)) and (held == np.sort(held)).all()
    assert (held == split_indices(labels, pct, way, seed)).all()
    if way == "stratified":
        shares = Counter(labels[i] for i in held)
        assert all(abs(shares[c] - pct * k) <= 1.5 for c, k in enumerate(counts))


@common
@given(keys=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["order", "augment", "dropout"])), min_size=2, max_size=6, unique=True))
def test_other_keys_other_numbers(keys):
    draws = [tuple(torch.rand(4, generator=key_generator(*k), dtype=torch.float64).tolist()) for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(4, generator=key_generator(*k), dtype=torch.float64).tolist()) for k in keys]


@common
@given(rows=st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=8))
def test_several_labels_come_back(rows):
    y = encode([sorted(r) for r in rows], "multi", "abcd")
    assert [{c for c, v in zip("abcd", row) if v} for row in y] == rows


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    img = to_rgb(Image.new(mode, (5, 4)))
    assert img.mode == "RGB" and img.size == (5, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    "All eight ways a camera can be held show the same picture."
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = 255                              # white at the top left
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.rot90(np.fliplr(a), 1),
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(np.fliplr(a), -1), 8: lambda a: np.rot90(a, -1)}[orientation]
    stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
    exif = stored.getexif(); exif[274] = orientation
    stored.save(tmp_path / "o.png", exif=exif)
    seen = np.asarray(open_image(tmp_path / "o.png")[0])
    assert (seen == upright).all()


def test_a_picture_that_breaks_later_is_named(tmp_path):
    "The check at construction can be passed, and the file be damaged before it is read."
    flat = sample.tiny(tmp_path / "t")
    data = ImageData.from_name_re(flat, None, r"^(.+)_\d+", size=32, bs=16)
    victim = data.train.paths[5]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ImageReadError, match=victim.name): list(data.train.batches(0, 0))


def test_closing_early_stops_the_threads(tmp_path):
    import threading
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), None, r"^(.+)_\d+", size=32, bs=4)
    batches = data.train.batches(0, 0)
    next(batches)
    mine = [t for t in threading.enumerate() if t.name.startswith("lessonkit")]
    batches.close()
    for t in mine: t.join(5)
    assert mine and not any(t.is_alive() for t in mine)


def test_same_name_in_two_folders_are_two_items(tmp_path):
    folders = [sample.tiny(tmp_path / "a", n=12), sample.tiny(tmp_path / "b", n=12, seed=1)]
    files = sorted(p for f in folders for p in f.iterdir())
    data = ImageData.from_lists(tmp_path, files, [f.parent.name for f in files], size=32, bs=8)
    assert all(data.label(y) == p.parent.name for loader in (data.train, data.valid) for p, y in zip(loader.paths, loader.targets))


def test_train_eval_is_train_without_chance(tmp_path):
    from lessonkit.augment import augmentations, to_inputs
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), None, r"^(.+)_\d+", size=32, bs=39, augment=augmentations())
    a, b = (next(data.train_eval.batches(k)) for k in (0, 1))
    assert torch.equal(a.index, torch.arange(data.train.n)) and torch.equal(to_inputs(a, data.train_eval), to_inputs(b, data.train_eval))
    assert data.train.augment is not None and data.train_eval.augment is None and data.valid.augment is None


@pytest.mark.skipif(os.name == "nt", reason="names of that kind are not allowed there")
def test_odd_names_are_fine(tmp_path):
    flat = sample.tiny(tmp_path / "t", n=12)
    for i, p in enumerate(sorted(flat.glob("*"))): p.rename(p.with_name(f"ça va? #{i} {p.name}"))
    assert ImageData.from_name_re(flat, None, r"(circle|square|stripes)", size=32, bs=4).c == 3
