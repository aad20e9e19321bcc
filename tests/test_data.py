"""Properties of the way from files to batches, on random sizes and labels."""
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from lessonkit import sample
from lessonkit.core.files import fingerprint
from lessonkit.core.rng import seeded_rng
from lessonkit.core.task import encode
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import (
    check_images, image_files, ImageReadError, MODES, open_image, open_pixels, to_mode,
)
from lessonkit.data.loader import even_batches, Loader
from lessonkit.data.splits import split_indices

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
    draws = [tuple(torch.rand(4, generator=seeded_rng(*k), dtype=torch.float64).tolist()) for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(4, generator=seeded_rng(*k), dtype=torch.float64).tolist()) for k in keys]


@common
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=30), pct=st.floats(.1, .6), seed=st.integers(0, 1000), way=st.sampled_from(["random", "stratified"]))
def test_groups_stay_whole(sizes, pct, seed, way):
    groups = [f"g{g}" for g, k in enumerate(sizes) for _ in range(k)]
    labels = [i % 2 for i in range(len(groups))]
    try: held = split_indices(labels, pct, way, seed, groups)
    except ValueError as e:
        assert "for validation" in str(e) or way == "stratified" and "several groups" in str(e)
        return
    kept = np.setdiff1d(np.arange(len(groups)), held)
    assert len(held) and len(kept) and not {groups[i] for i in held} & {groups[i] for i in kept}
    assert (held == split_indices(labels, pct, way, seed, groups)).all()
    if way == "random": assert abs(len(held) - int(pct * len(groups))) <= max(sizes)


def test_groups_of_a_table(tmp_path):
    import pandas as pd
    files = sorted(sample.tiny(tmp_path, n=24, layout="flat").glob("*.jpg"))
    table = pd.DataFrame(dict(file=[f.name for f in files], label=[f.name[:2] for f in files], animal=[i // 4 for i in range(24)]))
    data = ImageData.from_df(tmp_path, table, group_col="animal", split="stratified", size=16, bs=8, valid_pct=.34)
    animals = [{int(table.animal[table.file == f.name].iloc[0]) for f in loader.paths} for loader in (data.train, data.valid)]
    assert animals[0] | animals[1] == set(range(6)) and not animals[0] & animals[1]
    with pytest.raises(ValueError, match="no column 'owner'"): ImageData.from_df(tmp_path, table, group_col="owner")
    with pytest.raises(ValueError, match="24 pictures but 2 groups"): ImageData.from_df(tmp_path, table, groups=[0, 1])
    with pytest.raises(ValueError, match="lie on both sides"): ImageData.from_df(tmp_path, table, group_col="animal", valid_idx=[0, 9])


def test_a_tolerant_loader_reports_what_it_could_not_read(tmp_path):
    files = sorted(sample.tiny(tmp_path, n=6, layout="flat").glob("*.jpg"))
    files[2].write_bytes(b"no picture"); files[4].unlink()
    loader = Loader(tuple(files), None, size=16, presize=20, bs=4, failed={})
    x = torch.cat([b.x for b in loader.batches()])
    assert sorted(loader.failed) == [2, 4] and all(files[i].name in loader.failed[i] for i in (2, 4))
    assert [bool(p.any()) for p in x] == [True, True, False, True, False, True]
    with pytest.raises(FileNotFoundError): Loader(tuple(files[4:]), None, size=16, presize=20).item(0)


@common
@given(rows=st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=8))
def test_several_labels_come_back(rows):
    y = encode([sorted(r) for r in rows], "multi", "abcd")
    assert [{c for c, v in zip("abcd", row) if v} for row in y] == rows


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
@pytest.mark.parametrize("wanted", MODES.values())
def test_every_mode_becomes_the_one_wanted(mode, wanted):
    img = to_mode(Image.new(mode, (5, 4)), wanted)
    assert img.mode == wanted and img.size == (5, 4)


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
    data = ImageData.from_name_re(flat, r"^(.+)_\d+", size=32, bs=16)
    victim = data.train.paths[5]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ImageReadError, match=victim.name): list(data.train.batches(0, 0))


def test_closing_early_stops_the_threads(tmp_path):
    import threading
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), r"^(.+)_\d+", size=32, bs=4)
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
    from lessonkit.data.augment import augmentations, to_inputs
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), r"^(.+)_\d+", size=32, bs=39, augment=augmentations())
    a, b = (next(data.train_eval.batches(k)) for k in (0, 1))
    assert torch.equal(a.index, torch.arange(data.train.n)) and torch.equal(to_inputs(a, data.train_eval), to_inputs(b, data.train_eval))
    assert data.train.augment is not None and data.train_eval.augment is None and data.valid.augment is None


@pytest.mark.skipif(os.name == "nt", reason="names of that kind are not allowed there")
def test_odd_names_are_fine(tmp_path):
    flat = sample.tiny(tmp_path / "t", n=12)
    for i, p in enumerate(sorted(flat.glob("*"))): p.rename(p.with_name(f"ça va? #{i} {p.name}"))
    assert ImageData.from_name_re(flat, r"(circle|square|stripes)", size=32, bs=4).c == 3


@common
@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=6), key=st.integers(0, 10**6))
def test_balanced_sampling(counts, key):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    loader = Loader(tuple(range(len(y))), y, size=8, presize=8, shuffle=True, sampling="balanced")
    drawn = torch.cat([loader.order(key, epoch) for epoch in range(40)])
    assert len(drawn) == 40 * len(y) and torch.equal(loader.order(key, 3), loader.order(key, 3))
    share, spread = torch.bincount(y[drawn], minlength=len(counts)) / len(drawn), (1 / len(counts) / len(drawn)) ** .5
    assert (share - 1 / len(counts)).abs().max() < 5.5 * spread               # every class alike
    first = (y[drawn] == 0)
    within = torch.bincount(drawn[first], minlength=counts[0])[:counts[0]] / first.sum()
    assert (within - 1 / counts[0]).abs().max() < 5.5 * (1 / counts[0] / first.sum()) ** .5   # every picture of a class alike


def test_balanced_data_is_sampled_in_training_only(tmp_path):
    files = image_files(sample.tiny(tmp_path))
    labels = ["rare" if i % 8 == 0 else "common" for i in range(len(files))]
    common = dict(valid_pct=.25, split="stratified", size=16, bs=8)
    data = ImageData.from_lists(tmp_path, files, labels, **common, sampling="balanced", test=files[:3])
    plain = ImageData.from_lists(tmp_path, files, labels, **common)
    assert data.train.sampling == "balanced" and {data.train_eval.sampling, data.valid.sampling, data.test.sampling} == {"even"}
    assert data.train.paths == plain.train.paths and data.valid.paths == plain.valid.paths and len(data.train) == len(plain.train)
    for loader in (data.train_eval, data.valid): assert torch.cat([b.index for b in loader.batches(5)]).tolist() == list(range(loader.n))
    batches = list(data.train.batches(1, 2))
    assert torch.equal(torch.cat([b.index for b in batches]), data.train.order(1, 2))
    assert len(data.train.order(1, 2).unique()) < data.train.n
    assert all(torch.equal(b.y, data.train.targets[b.index]) for b in batches)
    for labels in ([[w] for w in labels], [float(len(w)) for w in labels]):
        with pytest.raises(ValueError, match="sampling='balanced' makes the classes equally likely"):
            ImageData.from_lists(tmp_path, files, labels, size=16, bs=8, sampling="balanced")


CHANGES = {
    "a file more": lambda files: files + [files[0].with_name("new.png")],
    "a file fewer": lambda files: files[:-1],
    "another order": lambda files: files[1:] + files[:1],
    "another name": lambda files: [files[0].rename(files[0].with_name("renamed.png")), *files[1:]],
    "another folder": lambda files: [files[0].rename(files[0].parent / "sub" / files[0].name), *files[1:]],
    "a byte more": lambda files: files[0].write_bytes(files[0].read_bytes() + b"x") and files,
    "another time": lambda files: os.utime(files[0], ns=(0, files[0].stat().st_mtime_ns + 1)) or files,
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("times", [True, False])
def test_fingerprint_sees_each_change(tmp_path, what, times):
    folder = tmp_path / "näme of\nfolder"
    (folder / "sub").mkdir(parents=True)
    for i in range(5): (folder / f"{i}.png").write_bytes(b"x" * i)
    (folder / "new.png").write_bytes(b"")
    for f in folder.glob("*.png"): os.utime(f, ns=(0, 10**18))
    files = sorted(folder.glob("[0-9].png"))
    root = folder if "folder" in what else None
    before = fingerprint(files, root, times)
    assert before == fingerprint([str(f) for f in files], root and str(root), times) and len(before) == 64
    changed = CHANGES[what](files)
    same_time = what == "another time" or what == "a byte more"
    assert (fingerprint(changed, root, times) == before) == (what == "another time" and not times)
    assert same_time or fingerprint(changed, root, False) != before


def test_fingerprint_follows_a_folder_that_moves(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    for name in ("x.png", "sub/x.png"): (tmp_path / "a" / name).write_bytes(b"1")
    files = lambda root: [root / "sub" / "x.png", root / "x.png"]
    before, absolute = fingerprint(files(tmp_path / "a"), tmp_path / "a"), fingerprint(files(tmp_path / "a"))
    os.rename(tmp_path / "a", tmp_path / "b")
    assert fingerprint(files(tmp_path / "b"), tmp_path / "b") == before and fingerprint(files(tmp_path / "b")) != absolute
    with pytest.raises(FileNotFoundError): fingerprint(files(tmp_path / "a"))


def test_resized_differs_in_size_only(tmp_path):
    files = image_files(sample.tiny(tmp_path))
    data = ImageData.from_lists(tmp_path, files, [f.name[0] for f in files], size=16, bs=8, sampling="balanced", fit="pad", augment="any",
                                cache="memory", test=files[:3], channels=1, threads=3).normalize()
    list(data.train.batches(0))
    other = data.resized(24)
    for name in ("train", "train_eval", "valid", "test"):
        a, b = vars(getattr(data, name)), vars(getattr(other, name))
        assert {k for k in a if k != "targets" and a[k] != b[k]} <= {"size", "presize", "_kept"} and a["targets"] is b["targets"]
        assert (b["size"], b["presize"], b["_kept"]) == (24, 30, {})
    assert {k for k, v in vars(data).items() if getattr(other, k) is not v} == {"train", "train_eval", "valid", "test"}
    assert torch.equal(data.train.order(3), other.train.order(3)) and data.resized(24, 24).valid.presize == 24
    back = next(other.resized(16).train.batches(0))
    assert torch.equal(back.x, next(data.train.batches(0)).x)                 # there and back again
    for wrong, value in (("whole number", 0), ("whole number", 16.)):
        with pytest.raises(ValueError, match=wrong): data.resized(value)


@common
@given(h=st.integers(1, 40), w=st.integers(1, 40), channels=st.sampled_from([2, 4, 5, 13]), size=st.integers(1, 30), key=st.integers(0, 100))
def test_channels_are_resized_one_by_one(tmp_path_factory, h, w, channels, size, key):
    a = np.random.default_rng(key).integers(0, 256, (h, w, channels), dtype=np.uint8)
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.asfortranarray(a) if key % 2 else a)
    pixels, aspect = open_pixels(path, size, channels)
    assert pixels.shape == (size, size, channels) and pixels.dtype == np.uint8 and aspect == w / h
    for i in range(channels): assert (pixels[..., i] == np.asarray(open_image(a[..., i], size, 1)[0])).all()
    assert (open_pixels(a, None, channels)[0] == a).all() and not check_images([path], channels=channels)
    rgb = open_image(a[..., :3], size)[0] if channels > 2 else None
    assert rgb is None or (np.asarray(rgb) == pixels[..., :3]).all()          # as Pillow does it with all three at once


def test_gray_is_the_brightness_of_the_colors(tmp_path):
    img = Image.effect_noise((64, 48), 80).convert("RGB").resize((60, 44))
    img.putpixel((3, 3), (255, 0, 0))
    for name in ("a.png", "a.jpg"): img.save(tmp_path / name, quality=95)
    assert (open_pixels(tmp_path / "a.png", None, 1)[0][..., 0] == np.asarray(img.convert("L"))).all()
    inks = Image.open(tmp_path / "a.jpg").convert("CMYK")
    inks.save(tmp_path / "cmyk.jpg", quality=95)
    for name in ("a.jpg", "cmyk.jpg"):
        colored, gray = (open_pixels(tmp_path / name, 20, c)[0].astype(float) for c in (3, 1))
        assert gray.shape == (20, 20, 1) and np.abs(colored @ [.299, .587, .114] - gray[..., 0]).max() < 2.5


def test_opacity_is_kept_when_wanted(tmp_path):
    Image.new("RGBA", (8, 8), (10, 200, 30, 128)).save(tmp_path / "half.png")
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "full.png")
    assert np.unique(open_pixels(tmp_path / "half.png", 4, 4)[0].reshape(-1, 4), axis=0)[0, 3] == 128
    assert (open_pixels(tmp_path / "full.png", 4, 4)[0] == [10, 200, 30, 255]).all()
    assert open_pixels(tmp_path / "half.png", 4, 3)[0][0, 0].tolist() == pytest.approx([132, 227, 142], abs=1)   # over white


def test_arrays_that_do_not_fit_are_named(tmp_path):
    for name, a in (("five", np.zeros((4, 4, 5), np.uint8)), ("float", np.zeros((4, 4, 6))), ("line", np.zeros(4, np.uint8)),
                    ("objects", np.array([{}], dtype=object))):
        np.save(tmp_path / f"{name}.npy", a)
    whole = (tmp_path / "five.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-1])
    (tmp_path / "text.npy").write_text("not an array")
    files = image_files(tmp_path, channels=6)
    assert len(files) == 6 and not image_files(tmp_path)
    reasons = check_images(files, channels=6)
    assert len(reasons) == 6 and "type float64" in reasons[tmp_path / "float.npy"] and "shape (4, 4, 5)" in reasons[tmp_path / "five.npy"]
    assert {p.stem for p in check_images(files, channels=5)} == {"float", "line", "objects", "short", "text"}
    for f in files:
        with pytest.raises(ImageReadError, match=f.name): open_pixels(f, 4, 6)
    with pytest.raises(ImageReadError, match="five.npy.*5 channels where 3 are wanted: give channels=5"): open_pixels(tmp_path / "five.npy", 4)


def test_data_of_many_channels(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        for i in range(10): np.save(tmp_path / f"{kind}_{i}.npy", rng.integers(0, 256, (9, 12, 7), dtype=np.uint8))
    for k in ("train", "valid"):
        for kind in ("a", "b"):
            (tmp_path / "folders" / k / kind).mkdir(parents=True)
            for i in range(3): np.save(tmp_path / "folders" / k / kind / f"{i}.npy", rng.integers(0, 256, (9, 12, 7), dtype=np.uint8))
    common = dict(size=8, bs=4, channels=7)
    flat = ImageData.from_name_func(tmp_path, lambda p: p.name[0], sorted(tmp_path.glob("*.npy")), **common, test="folders/valid")
    folders = ImageData.from_folder(tmp_path / "folders", **common)
    for data in (flat, folders):
        assert data.channels == 7 and next(data.train.batches(0)).x.shape[1:] == (7, 10, 10) and "7 channel(s)" in repr(data)
    assert flat.test.n == 6 and folders.train.n == folders.valid.n == 6
