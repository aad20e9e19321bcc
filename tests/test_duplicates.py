"""Duplicates: what was planted is found, innocents are left alone, and every pair is there once."""
import io
import random
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageEnhance, ImageOps

from lessonkit.data import duplicates as D
from lessonkit import sample
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import open_image

quick = settings(max_examples=40, deadline=None)


def saved(img, quality=88):
    file = io.BytesIO()
    img.convert("RGB").save(file, "jpeg", quality=quality)
    return Image.open(file)


CHANGES = {"coarse": lambda img: saved(img, 30), "half": lambda img: img.resize((img.width // 2, img.height // 2), Image.Resampling.BILINEAR),
           "double": lambda img: img.resize((img.width * 2, img.height * 2)), "brighter": lambda img: ImageEnhance.Brightness(img).enhance(1.1),
           "cropped": lambda img: img.crop((1, 1, img.width - 1, img.height - 1)), "gray": lambda img: img.convert("L")}


@pytest.fixture(scope="module")
def pets(tmp_path_factory): return sample.pets(tmp_path_factory.mktemp("pets") / "drawn", n=60, size=96)


@pytest.fixture(scope="module")
def planted(pets, tmp_path_factory):
    "The pets in training, and in validation copies of some: {copy: (kind, original)}."
    folder, truth = tmp_path_factory.mktemp("planted"), {}
    files = sorted(pets.glob("*.jpg"))
    for k, (name, change) in enumerate(CHANGES.items()):
        truth[folder / f"{name}.jpg"] = "near", files[7 * k]
        saved(change(Image.open(files[7 * k]))).save(folder / f"{name}.jpg")
    truth[folder / "same.bmp"] = "exact", files[50]
    shutil.copy(files[50], folder / "same.bmp")     # the name says BMP; the bytes are what counts
    truth[folder / "mirror.jpg"] = "mirrored", files[51]
    saved(ImageOps.mirror(Image.open(files[51]))).save(folder / "mirror.jpg")
    turned, exif = Image.open(files[52]).rotate(90, expand=True), Image.Exif()
    exif[0x112] = 6                                 # "turn me a quarter clockwise"
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    truth[folder / "turned.jpg"] = "near", files[52]
    return files, truth


def as_set(table): return {(kind, frozenset((a, b)), round(d, 6)) for kind, a, b, d in zip(table.kind, table.a, table.b, table.distance)}


# --- planted and innocent

@pytest.mark.parametrize("mirrored", [False, True])
def test_all_that_was_planted_and_nothing_else(planted, mirrored):
    files, truth = planted
    table = D.find_duplicates({"train": files, "valid": list(truth)}, mirrored=mirrored)
    want = {(kind, frozenset((copy, original))) for copy, (kind, original) in truth.items() if mirrored or kind != "mirrored"}
    assert {(kind, pair) for kind, pair, _ in as_set(table)} == want and len(table) == len(want)
    assert (table.split_a == "train").all() and (table.split_b == "valid").all() and D.leaks(table).equals(table)
    assert table.distance[table.kind == "exact"].tolist() == [0] and table.distance.max() <= 6
    assert table.kind.tolist() == sorted(table.kind, key=D._KINDS.index)
    assert all(part.distance.is_monotonic_increasing for _, part in table.groupby("kind"))


def test_no_false_alarm_among_the_drawn(pets):
    table = D.find_duplicates(sorted(pets.glob("*.jpg")), near=10, mirrored=True)
    assert len(table) == 0 and table.columns.tolist() == ["kind", "a", "b", "split_a", "split_b", "label_a", "label_b", "distance"]


def test_near_draws_the_line(planted):
    files, truth = planted
    found = {near: as_set(D.find_duplicates([*files, *truth], near=near)) for near in (0, 2, 6, None)}
    assert found[0] < found[2] <= found[6] and found[None] == {row for row in found[6] if row[0] == "exact"}
    for near in (0, 2): assert found[near] == {row for row in found[6] if row[2] <= near}


# --- the table's form

def test_the_order_of_files_does_not_matter(planted):
    files, truth = planted
    listed = [*files, *truth]
    features = torch.randn(len(listed), 8, generator=torch.Generator().manual_seed(0))
    want = D.find_duplicates(listed, features=features, similar=.7, mirrored=True)
    assert set(want.kind) == set(D._KINDS)
    order = random.Random(3).sample(range(len(listed)), len(listed))
    assert as_set(D.find_duplicates([listed[i] for i in order], features=features[order], similar=.7, mirrored=True)) == as_set(want)


def test_each_pair_once_as_the_strictest_kind(planted):
    files, truth = planted
    listed = [*files[:6], *truth]
    for features in (None, torch.ones(len(listed), 3)):
        table = D.find_duplicates(listed, near=31, features=features, mirrored=True)
        pairs = [frozenset(p) for p in zip(table.a, table.b)]
        assert len(set(pairs)) == len(pairs) and all(len(p) == 2 for p in pairs)
        place = {p: i for i, p in enumerate(listed)}
        assert all(place[a] < place[b] for a, b in zip(table.a, table.b))
    assert len(pairs) == len(listed) * (len(listed) - 1) // 2 and {"near", "mirrored", "similar"} <= set(table.kind)


def test_leaks_come_first(planted):
    files, truth = planted
    copies = list(truth)
    table = D.find_duplicates({"train": [*files, *copies[:3]], "valid": copies[3:5], "test": copies[5:]})
    across = table.split_a != table.split_b
    assert across.tolist() == sorted(across, reverse=True) and 0 < across.sum() < len(table)
    assert D.leaks(table).equals(table[across].reset_index(drop=True))
    assert len(D.leaks(D.find_duplicates([*files, *copies]))) == 0


def test_image_data_brings_splits_and_labels(tmp_path):
    folder = sample.tiny(tmp_path / "t", n=30, layout="folders")
    for a, b in (("train/circle/0.jpg", "train/square/90.jpg"), ("train/circle/1.jpg", "valid/circle/91.jpg"), ("valid/square/3.jpg", "test/92.jpg")):
        shutil.copy(folder / a, folder / b)
    data = ImageData.from_folder(folder, test="test", size=32, bs=8)
    table = D.find_duplicates(data, near=None)
    assert set(table.kind) == {"exact"} and len(table) == 3
    rows = {(sa, sb): (a.parent.name, la, b.parent.name, lb) for a, b, sa, sb, la, lb in zip(table.a, table.b, table.split_a, table.split_b, table.label_a, table.label_b)}
    assert rows == {("train", "train"): ("circle", "circle", "square", "square"), ("train", "valid"): ("circle", "circle", "circle", "circle"),
                    ("valid", "test"): ("square", "square", "test", "")}
    several = ImageData.build(folder, data.train.paths, [["red", "round"], ["red"]] * (data.train.n // 2) + [["red"]] * (data.train.n % 2), valid_idx=[0, 1], size=32, bs=8)
    assert set(D.find_duplicates(several, near=None).label_a) <= {"red", "red, round"}


def test_one_path_in_two_splits_is_a_leak(pets):
    files = sorted(pets.glob("*.jpg"))[:3]
    row, = D.find_duplicates({"train": files, "valid": files[1:2]}).itertuples()
    assert (row.kind, row.a, row.b, row.split_a, row.split_b) == ("exact", files[1], files[1], "train", "valid")


# --- files that are not as they should be

def test_the_unreadable_is_named_and_no_more(tmp_path, planted):
    odd, (files, truth) = sample.odd_files(tmp_path / "odd"), planted
    shutil.copy(odd["text.jpg"], tmp_path / "odd" / "text2.jpg")
    listed = [*sorted((tmp_path / "odd").iterdir()), tmp_path / "missing.jpg", *files, *truth]
    with pytest.warns(UserWarning, match=r"5 file\(s\) can't be opened.*compared by their bytes only") as said: table = D.find_duplicates(listed)
    assert len(said) == 1 and all(name in str(said[0].message) for name in ("empty.jpg", "missing.jpg", "text.jpg", "text2.jpg", "truncated.jpg"))
    assert str(tmp_path) not in str(said[0].message) and Path(said[0].filename).name == "test_duplicates.py"
    without = D.find_duplicates([*files, *truth])
    extra = {(kind, frozenset(p.name for p in pair)) for kind, pair, _ in as_set(table) - as_set(without)}
    assert as_set(without) <= as_set(table) and ("exact", frozenset({"text.jpg", "text2.jpg"})) in extra
    assert all(names <= set(odd) | {"text2.jpg"} for _, names in extra)   # the odd pictures are one picture in several formats


def test_a_locked_file(tmp_path, monkeypatch):
    for name in "abc": (tmp_path / name).write_bytes(b"same")
    assert D.same_bytes([tmp_path / n for n in "abc"]) == [(0, 1), (0, 2), (1, 2)]
    def locked(path, mode):
        if Path(path).name == "a": raise PermissionError(path)
        return open(path, mode)
    monkeypatch.setattr(D, "open", locked, raising=False)
    assert D.same_bytes([tmp_path / n for n in "abc"]) == [(1, 2)]


def test_only_files_of_equal_size_are_read(tmp_path, monkeypatch):
    for name, text in dict(a="one", b="two", c="one", d="longer", e="", f="").items(): (tmp_path / name).write_text(text)
    read, digest = [], D._digest
    monkeypatch.setattr(D, "_digest", lambda path: read.append(path.name) or digest(path))
    assert D.same_bytes([tmp_path / n for n in "abcdef"]) == [(0, 2)] and sorted(read) == ["a", "b", "c"]


def test_flat_pictures_are_no_copies_of_each_other(tmp_path):
    noise, files = np.random.default_rng(0), []
    for k, (level, spread) in enumerate([(255, 0), (255, 0), (250, 3), (128, 3), (10, 3), (128, 0)]):
        a = np.clip(level + noise.normal(0, spread, (90, 120, 3)), 0, 255).astype(np.uint8)
        files.append(tmp_path / f"{k}.png")
        Image.fromarray(a).save(files[-1])
    with pytest.warns(UserWarning, match=r"6 picture\(s\) are one flat color.*0.png; 1.png.*and 1 more"): table = D.find_duplicates(files, mirrored=True)
    assert [(r.kind, r.a.name, r.b.name) for r in table.itertuples()] == [("exact", "0.png", "1.png")]
    page = np.full((400, 300), 255, np.uint8)
    page[60:340:20, 40:260] = 120                   # a page with lines of text has a layout
    assert D.perceptual_hash(Image.fromarray(page)) is not None


def test_the_hash_is_the_librarys(pets):
    for f in sorted(pets.glob("*.jpg"))[::9]:
        img = open_image(f)[0]
        assert (D.perceptual_hash(img) == imagehash.phash(img).hash.flatten()).all()
        assert (D.perceptual_hash(img, mirrored=True) == imagehash.phash(ImageOps.mirror(img)).hash.flatten()).all()


# --- features

def test_features_by_cosine(pets):
    files = sorted(pets.glob("*.jpg"))[:20]
    features = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    features[7] = features[3] * 5
    features[9], features[11] = 0., -features[12]                  # all zero is like nothing, and the opposite is not alike
    row, = D.find_duplicates(files, near=None, features=features, similar=1.).itertuples()
    assert (row.kind, row.a, row.b) == ("similar", files[3], files[7]) and 0 <= row.distance < 1e-6
    cos = torch.nn.functional.cosine_similarity(features[:, None], features, dim=2)
    table = D.find_duplicates(files, near=None, features=features.double().numpy(), similar=.2)
    assert {frozenset((a, b)) for a, b in zip(table.a, table.b)} == {frozenset((files[i], files[j])) for i, j in combinations(range(20), 2) if cos[i, j] >= .2}
    got = {(files.index(r.a), files.index(r.b)): r.distance for r in table.itertuples()}
    assert all(abs(d - (1 - cos[i, j].item())) < 1e-5 for (i, j), d in got.items())
    splits, parts = {"train": files[:12], "valid": files[12:]}, {"valid": features[12:], "train": features[:12]}
    assert as_set(D.find_duplicates(splits, near=None, features=parts, similar=.2)) == as_set(table)


def test_errors_say_what_to_do(pets):
    files = sorted(pets.glob("*.jpg"))[:4]
    for near in (-1, 32, 64, 2.5, True):
        with pytest.raises(ValueError, match=f"0 to 31.*got {near}"): D.find_duplicates(files, near=near)
    with pytest.raises(ValueError, match="cosine.*got 98"): D.find_duplicates(files, similar=98)
    for bad in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(4, 2, 2)):
        with pytest.raises(ValueError, match=r"a row a picture, \(4, f\); got shape"): D.find_duplicates(files, features=bad, near=None)
    with pytest.raises(ValueError, match="1 rows.*not finite"): D.find_duplicates(files, features=torch.tensor([[1.], [2], [float("nan")], [4]]), near=None)
    with pytest.raises(ValueError, match=r"\['valid'\] for the splits \['train'\]"): D.find_duplicates({"train": files}, features={"valid": torch.zeros(4, 2)}, near=None)
    for one in ("pets", Path("pets")):
        with pytest.raises(TypeError, match="image_files"): D.find_duplicates(one)


# --- pairs and groups

@quick
@given(n=st.integers(0, 30), f=st.integers(1, 6), least=st.integers(-3, 6), block=st.integers(1, 40), seed=st.integers(0, 999), own=st.booleans())
def test_close_pairs_are_all_close_pairs(n, f, least, block, seed, own):
    g = torch.Generator().manual_seed(seed)
    rows, other = (torch.randint(-2, 3, (n, f), generator=g).float() for _ in range(2))
    pairs, products = D.close_pairs(rows, least, None if own else other, block)
    product = rows @ (rows if own else other).T
    want = {(i, j): product[i, j].item() for i, j in combinations(range(n), 2) if product[i, j] >= least}
    assert dict(zip(map(tuple, pairs.tolist()), products.tolist())) == want and len(pairs) == len(want)


def test_too_many_pairs(monkeypatch):
    monkeypatch.setattr(D, "_PAIRS_AT_MOST", 10)
    assert len(D.close_pairs(torch.ones(5, 1), 1)[0]) == 10
    with pytest.raises(ValueError, match="more than 10 pairs.*smaller near"): D.close_pairs(torch.ones(6, 1), 1)


@quick
@given(n=st.integers(1, 15), edges=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), max_size=20), data=st.data())
def test_groups_hang_together(n, edges, data):
    "Against joining groups one pair after the other; paths 15 to 17 are in the table only."
    import pandas as pd
    name = [Path(f"{k}.jpg") for k in range(18)]
    order = data.draw(st.permutations(range(n)))
    table = pd.DataFrame(dict(a=[name[a] for a, _ in edges], b=[name[b] for _, b in edges]))
    got = D.duplicate_groups([name[k] for k in order], table)
    group = list(range(18))
    for a, b in edges: group = [group[a] if g == group[b] else g for g in group]
    assert all((got[i] == got[j]) == (group[order[i]] == group[order[j]]) for i in range(n) for j in range(n))
    assert list(dict.fromkeys(got)) == list(range(len(set(got))))


def test_a_split_by_groups_has_no_leaks(planted):
    files, truth = planted
    every = [*files, *truth]
    pairs = D.find_duplicates(every, mirrored=True)
    groups = D.duplicate_groups(every, pairs)
    assert len(set(groups)) == len(files)
    leaky = 0
    for seed in range(5):
        options = dict(valid_pct=.4, size=32, bs=8, seed=seed)
        labels = [f"label {k % 2}" for k in range(len(every))]
        leaky += len(D.leaks(D.find_duplicates(ImageData.build(files[0].parent, every, labels, **options), mirrored=True)))
        assert len(D.leaks(D.find_duplicates(ImageData.build(files[0].parent, every, labels, groups=groups, **options), mirrored=True))) == 0
    assert leaky > 0


def test_libraries_are_imported_when_used():
    code = "import sys, lessonkit.duplicates; print([m for m in ('imagehash', 'scipy', 'pandas', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
