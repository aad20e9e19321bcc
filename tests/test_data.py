"""Properties of the way from files to batches, on random sizes and labels."""
import os
import threading
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn
from torchvision import models

from lessonkit.core.files import fingerprint
from lessonkit.core.rng import seeded_rng
from lessonkit.core.task import Task
from lessonkit.data import sample
from lessonkit.data.augment import augmentations, to_inputs
from lessonkit.data.image_data import DEFAULT_SIZE, ImageData
from lessonkit.data.images import (
    image_files, ImageReadError, MODES, open_image, open_pixels, to_mode, unreadable_images,
)
from lessonkit.data.loader import even_batches, Loader
from lessonkit.data.splits import split_indices
from lessonkit.learner import Learner
from lessonkit.model.bodies import ImageSizeError
from lessonkit.train.checkpoints import load_checkpoint
from tiers import examples

common = examples(50)
PATTERN = r"^(.+)_\d+"


# Batches and random numbers.

@common
@given(n=st.integers(1, 500), bs=st.integers(1, 70))
def test_batches_are_few_and_even(n, bs):
    parts = even_batches(torch.arange(n), bs)
    sizes = [len(p) for p in parts]
    assert torch.cat(parts).tolist() == list(range(n))
    assert len(parts) == -(-n // bs)
    assert max(sizes) <= bs
    assert max(sizes) - min(sizes) <= 1


key_parts = st.tuples(
    st.integers(0, 5), st.integers(0, 5), st.sampled_from(["order", "augment", "dropout"])
)


@common
@given(keys=st.lists(key_parts, min_size=2, max_size=6, unique=True))
def test_other_keys_other_numbers(keys):
    def draw(key): return torch.rand(4, generator=seeded_rng(*key), dtype=torch.float64).tolist()
    draws = [tuple(draw(key)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(draw(key)) for key in keys]


# Splits.

@common
@given(
    counts=st.lists(st.integers(4, 40), min_size=2, max_size=5),
    pct=st.floats(.15, .6),
    seed=st.integers(0, 1000),
    way=st.sampled_from(["random", "stratified"]),
)
def test_splits(counts, pct, seed, way):
    labels = [c for c, k in enumerate(counts) for _ in range(k)]
    try: held = split_indices(labels, pct, way, seed)
    except ValueError as e:  # not enough room for all classes on one side
        assert way == "stratified"
        assert "at least two images" in str(e)
        return
    assert len(held) == int(pct * len(labels))
    assert len(set(held.tolist())) == len(held)
    assert held.tolist() == sorted(held)
    assert held.tolist() == split_indices(labels, pct, way, seed).tolist()
    if way == "stratified":
        shares = Counter(labels[i] for i in held)
        assert all(abs(shares[c] - pct * k) <= 1.5 for c, k in enumerate(counts))


@common
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=30),
    pct=st.floats(.1, .6),
    seed=st.integers(0, 1000),
    way=st.sampled_from(["random", "stratified"]),
)
def test_groups_stay_whole(sizes, pct, seed, way):
    groups = [f"g{g}" for g, k in enumerate(sizes) for _ in range(k)]
    labels = [i % 2 for i in range(len(groups))]
    try: held = split_indices(labels, pct, way, seed, groups)
    except ValueError as e:
        too_few_groups = way == "stratified" and "several groups" in str(e)
        assert "for validation" in str(e) or too_few_groups
        return
    kept = np.setdiff1d(np.arange(len(groups)), held)
    assert len(held) > 0
    assert len(kept) > 0
    assert {groups[i] for i in held} & {groups[i] for i in kept} == set()
    assert held.tolist() == split_indices(labels, pct, way, seed, groups).tolist()
    if way == "random": assert abs(len(held) - int(pct * len(groups))) <= max(sizes)


def test_groups_of_a_table(tmp_path):
    files = sorted(sample.tiny(tmp_path, n=24, layout="flat").glob("*.jpg"))
    names = [f.name for f in files]
    animal = dict(zip(names, [i // 4 for i in range(24)]))
    table = pd.DataFrame(dict(file=names, label=[name[:2] for name in names],
                              animal=[animal[name] for name in names]))
    data = ImageData.from_df(tmp_path, table, group_col="animal", split="stratified", size=16, bs=8,
                             valid_pct=.34)
    train, valid = ({animal[f.name] for f in side.paths} for side in (data.train, data.valid))
    assert train | valid == set(range(6))
    assert train & valid == set()
    with pytest.raises(ValueError, match="no column 'owner'"):
        ImageData.from_df(tmp_path, table, group_col="owner")
    with pytest.raises(ValueError, match="24 images but 2 groups"):
        ImageData.from_df(tmp_path, table, groups=[0, 1])
    with pytest.raises(ValueError, match="lie on both sides"):
        ImageData.from_df(tmp_path, table, group_col="animal", valid_idx=[0, 9])


# Loaders.

def test_a_tolerant_loader_reports_what_it_could_not_read(tmp_path):
    files = sorted(sample.tiny(tmp_path, n=6, layout="flat").glob("*.jpg"))
    files[2].write_bytes(b"no image")
    files[4].unlink()
    loader = Loader(tuple(files), None, size=16, presize=20, bs=4, failed={})
    x = torch.cat([b.x for b in loader.batches()])
    assert sorted(loader.failed) == [2, 4]
    for i in (2, 4): assert files[i].name in loader.failed[i]
    assert [bool(image.any()) for image in x] == [True, True, False, True, False, True]
    strict = Loader(tuple(files[4:]), None, size=16, presize=20)
    with pytest.raises(FileNotFoundError): strict.item(0)


@common
@given(rows=st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=8))
def test_several_labels_come_back(rows):
    y = Task("multi", tuple("abcd")).encode([sorted(r) for r in rows])
    assert [{c for c, v in zip("abcd", row) if v} for row in y] == rows


def test_an_image_that_breaks_later_is_named(tmp_path):
    "A file can pass the check when the data is made, and be damaged before it is read."
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), PATTERN, size=32, bs=16)
    victim = data.train.paths[5]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ImageReadError, match=victim.name): list(data.train.batches(0, 0))


def test_closing_early_stops_the_threads(tmp_path):
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), PATTERN, size=32, bs=4)
    batches = data.train.batches(0, 0)
    next(batches)
    mine = [t for t in threading.enumerate() if t.name.startswith("lessonkit")]
    assert len(mine) > 0
    batches.close()
    for t in mine: t.join(5)
    assert not any(t.is_alive() for t in mine)


def test_same_name_in_two_folders_are_two_items(tmp_path):
    folders = [sample.tiny(tmp_path / "a", n=12), sample.tiny(tmp_path / "b", n=12, seed=1)]
    files = sorted(p for f in folders for p in f.iterdir())
    names = [f.parent.name for f in files]
    data = ImageData.from_lists(tmp_path, files, names, size=32, bs=8)
    for loader in (data.train, data.valid):
        assert [data.label(y) for y in loader.targets] == [p.parent.name for p in loader.paths]


def test_train_eval_is_train_without_chance(tmp_path):
    data = ImageData.from_name_re(sample.tiny(tmp_path / "t"), PATTERN, size=32, bs=39,
                                  augment=augmentations())
    a, b = (next(data.train_eval.batches(k)) for k in (0, 1))
    assert a.index.tolist() == list(range(data.train.n))
    assert torch.equal(to_inputs(a, data.train_eval), to_inputs(b, data.train_eval))
    assert data.train.augment is not None
    assert data.train_eval.augment is None
    assert data.valid.augment is None


@pytest.mark.skipif(os.name == "nt", reason="Windows does not allow such names")
def test_odd_names_are_fine(tmp_path):
    flat = sample.tiny(tmp_path / "t", n=12)
    for i, p in enumerate(sorted(flat.glob("*"))): p.rename(p.with_name(f"ça va? #{i} {p.name}"))
    assert ImageData.from_name_re(flat, r"(circle|square|stripes)", size=32, bs=4).c == 3


# Balanced sampling.

@common
@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=6), key=st.integers(0, 10**6))
def test_balanced_sampling(counts, key):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    loader = Loader(tuple(range(len(y))), y, size=8, presize=8, shuffle=True, sampling="balanced")
    drawn = torch.cat([loader.order(key, epoch) for epoch in range(40)])
    assert len(drawn) == 40 * len(y)
    assert torch.equal(loader.order(key, 3), loader.order(key, 3))

    # every class is equally likely
    share = torch.bincount(y[drawn], minlength=len(counts)) / len(drawn)
    spread = (1 / len(counts) / len(drawn)) ** .5
    assert (share - 1 / len(counts)).abs().max() < 5.5 * spread

    # and so is every image of a class
    first = y[drawn] == 0
    within = torch.bincount(drawn[first], minlength=counts[0])[:counts[0]] / first.sum()
    spread = (1 / counts[0] / first.sum()) ** .5
    assert (within - 1 / counts[0]).abs().max() < 5.5 * spread


def rare_and_common(folder, **options):
    "Data in which one image in eight is rare."
    files = image_files(sample.tiny(folder))
    labels = ["rare" if i % 8 == 0 else "common" for i in range(len(files))]
    return ImageData.from_lists(folder, files, labels, valid_pct=.25, split="stratified", size=16,
                                bs=8, **options)


def test_balanced_data_is_sampled_in_training_only(tmp_path):
    plain = rare_and_common(tmp_path)
    data = rare_and_common(tmp_path, sampling="balanced", test=image_files(tmp_path)[:3])
    assert data.train.sampling == "balanced"
    assert {data.train_eval.sampling, data.valid.sampling, data.test.sampling} == {"even"}
    assert data.train.paths == plain.train.paths
    assert data.valid.paths == plain.valid.paths
    assert len(data.train) == len(plain.train)
    for loader in (data.train_eval, data.valid):
        index = torch.cat([b.index for b in loader.batches(5)])
        assert index.tolist() == list(range(loader.n))


def test_balanced_batches_follow_the_order(tmp_path):
    data = rare_and_common(tmp_path, sampling="balanced")
    batches = list(data.train.batches(1, 2))
    assert torch.equal(torch.cat([b.index for b in batches]), data.train.order(1, 2))
    assert len(data.train.order(1, 2).unique()) < data.train.n
    for b in batches: assert torch.equal(b.y, data.train.targets[b.index])


@pytest.mark.parametrize("label", [lambda name: [name], lambda name: float(len(name))])
def test_only_classes_can_be_balanced(tmp_path, label):
    files = image_files(sample.tiny(tmp_path))
    labels = [label("rare" if i % 8 == 0 else "common") for i in range(len(files))]
    with pytest.raises(ValueError, match="balanced sampling .* is for tasks of kind 'single'"):
        ImageData.from_lists(tmp_path, files, labels, size=16, bs=8, sampling="balanced")


# The same data at another size.

def test_resized_differs_in_size_only(tmp_path):
    files = image_files(sample.tiny(tmp_path))
    data = ImageData.from_lists(
        tmp_path, files, [f.name[0] for f in files], size=16, bs=8, sampling="balanced", fit="pad",
        augment=augmentations(), cache="memory", test=files[:3], channels=1, threads=3,
    ).normalize()
    list(data.train.batches(0))
    other = data.resized(24)
    loaders = {"train", "train_eval", "valid", "test"}
    for name in loaders:
        a, b = vars(getattr(data, name)), vars(getattr(other, name))
        changed = {k for k in a if k != "targets" and a[k] != b[k]}
        assert changed <= {"size", "presize", "_kept"}
        assert a["targets"] is b["targets"]
        assert (b["size"], b["presize"], b["_kept"]) == (24, 30, {})
    assert {k for k, v in vars(data).items() if getattr(other, k) is not v} == loaders
    assert torch.equal(data.train.order(3), other.train.order(3))
    assert data.resized(24, 24).valid.presize == 24
    there_and_back = next(other.resized(16).train.batches(0))
    assert torch.equal(there_and_back.x, next(data.train.batches(0)).x)
    for wrong in (0, 16.):
        with pytest.raises(ValueError, match="whole number"): data.resized(wrong)


# The default size.

@pytest.fixture(scope="module")
def flat(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("sizes")/"flat", n=30)


def of_any_size(flat, **options): return ImageData.from_name_re(flat, PATTERN, bs=12, **options)


@pytest.fixture(scope="module")
def images_of_any_size(flat): return of_any_size(flat)


def only_takes(size):
    return models.VisionTransformer(size, 32, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)


def learner(data, arch, **options):
    usual = dict(weights=None, precision="fp32", device="cpu", model_dir=data.path.parent)
    return Learner(data, arch, **usual | options)


def test_the_default_size_holds_for_all_factories(flat):
    files = image_files(flat)
    labels = [f.name.split("_")[0] for f in files]
    table = pd.DataFrame(dict(name=[f.name for f in files], label=labels))
    csv = flat.parent / "names.csv"
    table.to_csv(csv, index=False)
    for data in (of_any_size(flat), ImageData.from_lists(flat, files, labels, bs=12),
                 ImageData.from_df(flat, table, bs=12, size=None),
                 ImageData.from_csv(flat, csv, bs=12),
                 ImageData.from_name_func(flat, lambda f: f.name[0], bs=12),
                 ImageData.build(flat, files, labels, bs=12)):
        assert (data.size, data.valid.presize, data.size_chosen) == (DEFAULT_SIZE, 360, False)
        assert data.train_eval.size == data.valid.size == DEFAULT_SIZE


@common
@given(size=st.integers(1, 400), more=st.integers(0, 99))
def test_a_size_is_a_choice_unless_a_network_made_it(images_of_any_size, size, more):
    chosen = images_of_any_size.resized(size, size + more)
    assert (chosen.size, chosen.size_chosen) == (size, True)
    fitting = images_of_any_size.resized_for_network(size)
    assert (fitting.size, fitting.size_chosen) == (size, False)
    assert fitting.train.presize == max(size, round(1.25 * size))
    assert fitting.valid.paths == images_of_any_size.valid.paths


def test_a_network_of_one_size_gets_it_where_nobody_chose(flat, capsys):
    data = of_any_size(flat)
    learn = learner(data, only_takes(64))
    notes = [line for line in capsys.readouterr().out.splitlines() if "288" in line]
    assert notes == ["own:VisionTransformer takes no images of 288 pixels, the default size: here "
                     "they have 64"]
    assert (learn.data.size, learn.data.valid.presize, data.size) == (64, 80, 288)
    assert learn.get_preds().probs.shape == (data.valid.n, 3)
    learn.set_data(of_any_size(flat, augment=augmentations()))
    assert "here they have 64" in capsys.readouterr().out
    assert (learn.data.size, learn.data.augment) == (64, augmentations())
    for chosen in (data.resized(288), of_any_size(flat, size=32)):
        with pytest.raises(ImageSizeError, match="but of 64: set size=64"):
            learner(chosen, only_takes(64))
        with pytest.raises(ImageSizeError, match="set size=64"): learn.set_data(chosen)
    assert learn.data.size == 64


def test_networks_of_any_size_get_the_default(flat, capsys):
    learn = learner(of_any_size(flat), models.resnet18)
    assert learn.data.size == DEFAULT_SIZE
    assert "288" not in capsys.readouterr().out
    only_default = nn.Sequential(nn.Conv2d(3, 2, 32, 32), nn.Flatten(), nn.Linear(162, 3))
    assert learner(of_any_size(flat), only_default).data.size == DEFAULT_SIZE


def test_a_saved_model_has_the_size_that_fitted(flat, capsys, recwarn):
    data = of_any_size(flat)
    learner(data, only_takes(64), seed=1).save("fitted")
    saved = load_checkpoint(flat.parent / "fitted.safetensors").metadata
    assert (saved["size"], saved["presize"]) == (64, 80)
    loaded = learner(data, only_takes(64), seed=2).load("fitted")
    assert not [w for w in recwarn if "size" in str(w.message) and "was" in str(w.message)]
    again = learner(data, only_takes(64), seed=3).load("fitted")
    assert torch.equal(loaded.get_preds().probs, again.get_preds().probs)


# Fingerprints of files.

def replaced(files, path):
    "The first file, moved; the others as they are."
    return [files[0].rename(path), *files[1:]]


def one_byte_more(files):
    files[0].write_bytes(files[0].read_bytes() + b"x")
    return files


def another_byte(files):
    "Of the same size, and changed at the same time."
    time = files[-1].stat().st_mtime_ns
    files[-1].write_bytes(b"y" * len(files[-1].read_bytes()))
    os.utime(files[-1], ns=(0, time))
    return files


CHANGES = {
    "a file more": lambda files: [*files, files[0].with_name("new.png")],
    "a file fewer": lambda files: files[:-1],
    "another order": lambda files: files[1:] + files[:1],
    "another name": lambda files: replaced(files, files[0].with_name("renamed.png")),
    "another folder": lambda files: replaced(files, files[0].parent / "sub" / files[0].name),
    "a byte more": one_byte_more,
    "another byte": another_byte,
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_sees_each_change(tmp_path, change):
    folder = tmp_path / "näme of\nfolder"
    (folder / "sub").mkdir(parents=True)
    for i in range(5): (folder / f"{i}.png").write_bytes(b"x" * i)
    (folder / "new.png").write_bytes(b"")
    files = sorted(folder.glob("[0-9].png"))
    root = folder if "folder" in change else None
    before = fingerprint(files, root)
    assert len(before) == 64
    assert before == fingerprint([str(f) for f in files], root and str(root))
    assert fingerprint(CHANGES[change](files), root) != before


def test_fingerprint_does_not_mind_the_time_of_a_copy(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    before = fingerprint([file])
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    assert fingerprint([file]) == before


def test_fingerprint_follows_a_folder_that_moves(tmp_path):
    here, there = tmp_path / "a", tmp_path / "b"
    (here / "sub").mkdir(parents=True)
    for name in ("x.png", "sub/x.png"): (here / name).write_bytes(b"1")
    def files(root): return [root / "sub" / "x.png", root / "x.png"]
    relative, absolute = fingerprint(files(here), here), fingerprint(files(here))
    os.rename(here, there)
    assert fingerprint(files(there), there) == relative
    assert fingerprint(files(there)) != absolute
    assert fingerprint(files(here)) != absolute  # they are gone


# Opening images.

ALL_MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("wanted", MODES.values())
def test_every_mode_becomes_the_one_wanted(mode, wanted):
    img = to_mode(Image.new(mode, (5, 4)), wanted)
    assert img.mode == wanted
    assert img.size == (5, 4)


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.rot90(np.fliplr(a), 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(np.fliplr(a), -1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(tmp_path, orientation):
    "All eight ways to hold a camera give the same image."
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = 255  # white at the top left
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    exif = stored.getexif()
    exif[274] = orientation
    stored.save(tmp_path / "o.png", exif=exif)
    seen = np.asarray(open_image(tmp_path / "o.png")[0])
    assert (seen == upright).all()


@common
@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    channels=st.sampled_from([2, 4, 5, 13]),
    size=st.integers(1, 30),
    key=st.integers(0, 100),
)
def test_channels_are_resized_one_by_one(tmp_path_factory, h, w, channels, size, key):
    a = np.random.default_rng(key).integers(0, 256, (h, w, channels), dtype=np.uint8)
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.asfortranarray(a) if key % 2 else a)
    pixels, aspect = open_pixels(path, size, channels)
    assert pixels.shape == (size, size, channels)
    assert pixels.dtype == np.uint8
    assert aspect == w / h
    for i in range(channels):
        assert (pixels[..., i] == np.asarray(open_image(a[..., i], size, 1)[0])).all()
    assert (open_pixels(a, None, channels)[0] == a).all()
    assert unreadable_images([path], channels=channels) == {}
    if channels > 2:  # as Pillow does it with three at once
        rgb = open_image(a[..., :3], size)[0]
        assert (np.asarray(rgb) == pixels[..., :3]).all()


def test_gray_is_the_brightness_of_the_colors(tmp_path):
    img = Image.effect_noise((64, 48), 80).convert("RGB").resize((60, 44))
    img.putpixel((3, 3), (255, 0, 0))
    for name in ("a.png", "a.jpg"): img.save(tmp_path / name, quality=95)
    gray = open_pixels(tmp_path / "a.png", None, 1)[0]
    assert (gray[..., 0] == np.asarray(img.convert("L"))).all()
    inks = Image.open(tmp_path / "a.jpg").convert("CMYK")
    inks.save(tmp_path / "cmyk.jpg", quality=95)
    for name in ("a.jpg", "cmyk.jpg"):
        colors, gray = (open_pixels(tmp_path / name, 20, c)[0].astype(float) for c in (3, 1))
        assert gray.shape == (20, 20, 1)
        assert np.abs(colors @ [.299, .587, .114] - gray[..., 0]).max() < 2.5


def test_opacity_is_kept_when_wanted(tmp_path):
    half, full = tmp_path / "half.png", tmp_path / "full.png"
    Image.new("RGBA", (8, 8), (10, 200, 30, 128)).save(half)
    Image.new("RGB", (8, 8), (10, 200, 30)).save(full)
    colors = np.unique(open_pixels(half, 4, 4)[0].reshape(-1, 4), axis=0)
    assert colors[0, 3] == 128
    assert (open_pixels(full, 4, 4)[0] == [10, 200, 30, 255]).all()
    over_white = open_pixels(half, 4, 3)[0][0, 0].tolist()
    assert over_white == pytest.approx([132, 227, 142], abs=1)


# Images with many channels.

def test_arrays_that_do_not_fit_are_named(tmp_path):
    arrays = dict(
        five=np.zeros((4, 4, 5), np.uint8),
        float=np.full((4, 4, 6), 7.),
        line=np.zeros(4, np.uint8),
        objects=np.array([{}], dtype=object),
    )
    for name, a in arrays.items(): np.save(tmp_path / f"{name}.npy", a)
    five = tmp_path / "five.npy"
    (tmp_path / "short.npy").write_bytes(five.read_bytes()[:-1])
    (tmp_path / "text.npy").write_text("not an array")
    files = image_files(tmp_path, channels=6)
    assert len(files) == 6
    assert image_files(tmp_path) == []
    reasons = unreadable_images(files, channels=6)
    assert len(reasons) == 6
    assert "(float64) go from 7 to 7" in reasons[tmp_path / "float.npy"]
    assert "shape (4, 4, 5)" in reasons[five]
    unreadable = {p.stem for p in unreadable_images(files, channels=5)}
    assert unreadable == {"float", "line", "objects", "short", "text"}
    for f in files:
        with pytest.raises(ImageReadError, match=f.name): open_pixels(f, 4, 6)
    wanted = "five.npy.*5 channels where 3 are wanted: give channels=5"
    with pytest.raises(ImageReadError, match=wanted): open_pixels(five, 4)


def save_bands(folder, names):
    "An image of seven channels for each name."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (9, 12, 7), dtype=np.uint8))


def test_data_of_many_channels(tmp_path):
    save_bands(tmp_path, [f"{kind}_{i}" for kind in "ab" for i in range(10)])
    for side in ("train", "valid"):
        for kind in "ab": save_bands(tmp_path / "folders" / side / kind, range(3))
    options = dict(size=8, bs=4, channels=7)
    flat = ImageData.from_name_func(tmp_path, lambda p: p.name[0], sorted(tmp_path.glob("*.npy")),
                                    test="folders/valid", **options)
    folders = ImageData.from_folder(tmp_path / "folders", **options)
    for data in (flat, folders):
        assert data.channels == 7
        assert next(data.train.batches(0)).x.shape[1:] == (7, 10, 10)
        assert "7 channel(s)" in repr(data)
    assert (flat.test.n, folders.train.n, folders.valid.n) == (6, 6, 6)
