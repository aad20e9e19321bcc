"""Duplicates: planted copies are found, other images are left alone, every pair is listed once."""
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
from hypothesis import given, strategies as st
from PIL import Image, ImageEnhance, ImageOps

from lessonkit.core import files as core_files
from lessonkit.data import duplicates as D
from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import open_image
from tiers import examples

quick = examples(40)


def saved(img, quality=88):
    file = io.BytesIO()
    img.convert("RGB").save(file, "jpeg", quality=quality)
    return Image.open(file)


def half(img): return img.resize((img.width // 2, img.height // 2), Image.Resampling.BILINEAR)
def cropped(img): return img.crop((1, 1, img.width - 1, img.height - 1))


CHANGES = {
    "coarse": lambda img: saved(img, 30),
    "half": half,
    "double": lambda img: img.resize((img.width * 2, img.height * 2)),
    "brighter": lambda img: ImageEnhance.Brightness(img).enhance(1.1),
    "cropped": cropped,
    "gray": lambda img: img.convert("L"),
}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return sample.pets(tmp_path_factory.mktemp("pets") / "drawn", n=60, size=96)


@pytest.fixture(scope="module")
def planted(pets, tmp_path_factory):
    "The pets, for training, and copies of some of them, for validation: {copy: (kind, original)}."
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
    exif[0x112] = 6  # "turn me a quarter clockwise"
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    truth[folder / "turned.jpg"] = "near", files[52]
    return files, truth


def as_set(table):
    return {(r.kind, frozenset((r.a, r.b)), round(r.distance, 6)) for r in table.itertuples()}


def pairs_of(table): return [frozenset(pair) for pair in zip(table.a, table.b)]


# --- planted copies, and other images

@pytest.mark.parametrize("mirrored", [False, True])
def test_every_planted_copy_is_found_and_nothing_else(planted, mirrored):
    files, truth = planted
    table = D.find_duplicates({"train": files, "valid": list(truth)}, mirrored=mirrored)
    want = {(kind, frozenset((copy, original))) for copy, (kind, original) in truth.items()
            if mirrored or kind != "mirrored"}
    assert set(zip(table.kind, pairs_of(table))) == want
    assert len(table) == len(want)
    assert (table.split_a == "train").all()
    assert (table.split_b == "valid").all()
    assert D.split_leaks(table).equals(table)


def test_the_table_is_sorted_by_kind_and_distance(planted):
    files, truth = planted
    table = D.find_duplicates({"train": files, "valid": list(truth)}, mirrored=True)
    assert table.distance[table.kind == "exact"].tolist() == [0]
    assert table.distance.max() <= 6
    assert table.kind.tolist() == sorted(table.kind, key=D.KINDS.index)
    for _, part in table.groupby("kind"): assert part.distance.is_monotonic_increasing


def test_no_false_alarm_among_drawn_pets(pets):
    table = D.find_duplicates(sorted(pets.glob("*.jpg")), near=10, mirrored=True)
    assert len(table) == 0
    assert table.columns.tolist() == ["kind", "a", "b", "split_a", "split_b", "label_a", "label_b",
                                      "distance"]


def test_near_is_the_largest_distance(planted):
    files, truth = planted
    listed = [*files, *truth]
    found = {near: as_set(D.find_duplicates(listed, near=near)) for near in (0, 2, 6, None)}
    assert found[0] < found[2] <= found[6]
    assert found[None] == {row for row in found[6] if row[0] == "exact"}
    for near in (0, 2): assert found[near] == {row for row in found[6] if row[2] <= near}


# --- the table's form

def test_the_order_of_files_does_not_matter(planted):
    files, truth = planted
    listed = [*files, *truth]
    features = torch.randn(len(listed), 8, generator=torch.Generator().manual_seed(0))
    want = D.find_duplicates(listed, features=features, similar=.7, mirrored=True)
    assert set(want.kind) == set(D.KINDS)
    order = random.Random(3).sample(range(len(listed)), len(listed))
    shuffled = D.find_duplicates([listed[i] for i in order], features=features[order], similar=.7,
                                 mirrored=True)
    assert as_set(shuffled) == as_set(want)


@pytest.mark.parametrize("with_features", [False, True])
def test_each_pair_is_listed_once(planted, with_features):
    files, truth = planted
    listed = [*files[:6], *truth]
    features = torch.ones(len(listed), 3) if with_features else None
    table = D.find_duplicates(listed, near=31, features=features, mirrored=True)
    pairs = pairs_of(table)
    assert len(set(pairs)) == len(pairs)
    assert {len(p) for p in pairs} == {2}
    place = {p: i for i, p in enumerate(listed)}
    for a, b in zip(table.a, table.b): assert place[a] < place[b]
    if with_features:  # all of them are alike
        assert len(pairs) == len(listed) * (len(listed) - 1) // 2
        assert {"near", "mirrored", "similar"} <= set(table.kind)


def test_leaks_come_first(planted):
    files, truth = planted
    copies = list(truth)
    splits = {"train": [*files, *copies[:3]], "valid": copies[3:5], "test": copies[5:]}
    table = D.find_duplicates(splits)
    across = table.split_a != table.split_b
    assert across.tolist() == sorted(across, reverse=True)
    assert 0 < across.sum() < len(table)
    assert D.split_leaks(table).equals(table[across].reset_index(drop=True))
    assert len(D.split_leaks(D.find_duplicates([*files, *copies]))) == 0


def test_image_data_brings_splits_and_labels(tmp_path):
    folder = sample.tiny(tmp_path / "t", n=30, layout="folders")
    for a, b in (("train/circle/0.jpg", "train/square/90.jpg"),
                 ("train/circle/1.jpg", "valid/circle/91.jpg"),
                 ("valid/square/3.jpg", "test/92.jpg")):
        shutil.copy(folder / a, folder / b)
    data = ImageData.from_folder(folder, test="test", size=32, bs=8)
    table = D.find_duplicates(data, near=None)
    assert table.kind.tolist() == ["exact"] * 3
    rows = {(r.split_a, r.split_b): (r.a.parent.name, r.label_a, r.b.parent.name, r.label_b)
            for r in table.itertuples()}
    assert rows == {("train", "train"): ("circle", "circle", "square", "square"),
                    ("train", "valid"): ("circle", "circle", "circle", "circle"),
                    ("valid", "test"): ("square", "square", "test", "")}


def test_several_labels_are_written_with_commas(tmp_path):
    folder = sample.tiny(tmp_path / "t", n=9)
    files = sorted(folder.glob("*.jpg"))
    shutil.copy(files[0], folder / "copy.jpg")
    files.append(folder / "copy.jpg")
    labels = [["red", "round"], ["red"]] * 5
    data = ImageData.build(folder, files, labels, valid_idx=[2, 3], size=32, bs=8)
    row, = D.find_duplicates(data, near=None).itertuples()
    assert (row.label_a, row.label_b) == ("red, round", "red")


def test_one_path_in_two_splits_is_a_leak(pets):
    files = sorted(pets.glob("*.jpg"))[:3]
    row, = D.find_duplicates({"train": files, "valid": files[1:2]}).itertuples()
    assert (row.kind, row.split_a, row.split_b) == ("exact", "train", "valid")
    assert (row.a, row.b) == (files[1], files[1])


# --- files that are not as they should be

def test_unreadable_files_are_named_and_change_nothing_else(tmp_path, planted):
    odd, (files, truth) = sample.odd_files(tmp_path / "odd"), planted
    shutil.copy(odd["text.jpg"], tmp_path / "odd" / "text2.jpg")
    listed = [*sorted((tmp_path / "odd").iterdir()), tmp_path / "missing.jpg", *files, *truth]
    with pytest.warns(UserWarning, match=r"5 file\(s\) can't be read.*only their bytes") as caught:
        table = D.find_duplicates(listed)
    assert len(caught) == 1
    message = str(caught[0].message)
    for name in ("empty.jpg", "missing.jpg", "text.jpg", "text2.jpg", "truncated.jpg"):
        assert name in message
    assert str(tmp_path) not in message
    assert Path(caught[0].filename).name == "test_duplicates.py"
    without = D.find_duplicates([*files, *truth])
    assert as_set(without) <= as_set(table)
    extra = {(kind, frozenset(p.name for p in pair))
             for kind, pair, _ in as_set(table) - as_set(without)}
    assert ("exact", frozenset({"text.jpg", "text2.jpg"})) in extra
    for _, names in extra:  # the odd images are one image in several formats
        assert names <= set(odd) | {"text2.jpg"}


def test_a_locked_file_is_skipped(tmp_path, monkeypatch):
    for name in "abc": (tmp_path / name).write_bytes(b"same")
    assert D.same_bytes([tmp_path / n for n in "abc"]) == [(0, 1), (0, 2), (1, 2)]

    def locked(path, mode):
        if Path(path).name == "a": raise PermissionError(path)
        return open(path, mode)
    monkeypatch.setattr(core_files, "open", locked, raising=False)
    assert D.same_bytes([tmp_path / n for n in "abc"]) == [(1, 2)]


def test_only_files_of_equal_size_are_read(tmp_path, monkeypatch):
    texts = dict(a="one", b="two", c="one", d="longer", e="", f="")
    for name, text in texts.items(): (tmp_path / name).write_text(text)
    read, digest = [], D.content_digest
    monkeypatch.setattr(D, "content_digest", lambda path: read.append(path.name) or digest(path))
    assert D.same_bytes([tmp_path / n for n in texts]) == [(0, 2)]
    assert sorted(read) == ["a", "b", "c"]


def test_an_error_without_words_is_named(tmp_path, monkeypatch):
    "An empty reason would count as none, and the image as one flat color."
    file = tmp_path / "huge.png"
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(file)

    def out_of_memory(*args): raise MemoryError
    monkeypatch.setattr("lessonkit.data.images.to_mode", out_of_memory)
    with pytest.warns(UserWarning) as caught: D.find_duplicates([file])
    assert [str(w.message) for w in caught] == [
        "1 file(s) can't be read as images, so only their bytes are compared: "
        "huge.png (MemoryError)"]


@pytest.mark.parametrize("scale, ending", [(4095, "png"), (1e6, "tif")])
def test_images_of_numbers_are_compared_within_their_range(tmp_path, scale, ending):
    "12 bits of 16 are nearly black, and all black images are alike; floats can't be read at all."
    rng, files = np.random.default_rng(0), []
    a, b, d = (np.kron(rng.random((6, 8)), np.ones((8, 8))) for _ in range(3))
    shapes = dict(a=a, b=b, c=.9 * a, d=d)
    for name, shape in shapes.items():
        files.append(tmp_path / f"{name}_1.{ending}")
        pixels = (shape * scale).astype(np.uint16 if ending == "png" else np.float32)
        Image.fromarray(pixels).save(files[-1])

    def names(found): return [(p.a.stem[0], p.b.stem[0]) for p in found.itertuples()]
    alike = [("a", "c")]
    assert names(D.find_duplicates(files, pixel_range=(0, scale))) == alike
    options = dict(pixel_range=(0, scale), valid_idx=[3], size=32, bs=2)
    data = ImageData.from_lists(tmp_path, files, list("abab"), **options)
    assert names(D.find_duplicates(data)) == alike
    with pytest.warns(UserWarning): found = D.find_duplicates(data, pixel_range=(0, 1e9))
    assert not len(found)  # the range given counts, and in that one all of them are black


def test_flat_images_are_not_called_copies(tmp_path):
    noise, files = np.random.default_rng(0), []
    levels = [(255, 0), (255, 0), (250, 3), (128, 3), (10, 3), (128, 0)]
    for k, (level, spread) in enumerate(levels):
        a = np.clip(level + noise.normal(0, spread, (90, 120, 3)), 0, 255).astype(np.uint8)
        files.append(tmp_path / f"{k}.png")
        Image.fromarray(a).save(files[-1])
    text = r"6 image\(s\) are one flat color.*0.png, 1.png.*and 1 more"
    with pytest.warns(UserWarning, match=text): table = D.find_duplicates(files, mirrored=True)
    row, = table.itertuples()
    assert (row.kind, row.a.name, row.b.name) == ("exact", "0.png", "1.png")


def test_a_page_with_lines_of_text_has_a_layout():
    page = np.full((400, 300), 255, np.uint8)
    page[60:340:20, 40:260] = 120
    assert D.perceptual_hash(Image.fromarray(page)) is not None


def test_the_hash_is_the_librarys(pets):
    for f in sorted(pets.glob("*.jpg"))[::9]:
        img = open_image(f)[0]
        assert (D.perceptual_hash(img) == imagehash.phash(img).hash.flatten()).all()
        mirrored = imagehash.phash(ImageOps.mirror(img)).hash.flatten()
        assert (D.perceptual_hash(img, mirrored=True) == mirrored).all()


# --- features

@pytest.fixture
def twenty(pets):
    "Twenty files and features; 3 and 7 point the same way, 9 is all zero, 11 is opposite to 12."
    features = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    features[7] = features[3] * 5
    features[9], features[11] = 0., -features[12]
    return sorted(pets.glob("*.jpg"))[:20], features


def test_only_equal_directions_have_a_cosine_of_one(twenty):
    files, features = twenty
    row, = D.find_duplicates(files, near=None, features=features, similar=1.).itertuples()
    assert (row.kind, row.a, row.b) == ("similar", files[3], files[7])
    assert 0 <= row.distance < 1e-6


def test_features_are_compared_by_cosine(twenty):
    files, features = twenty
    cos = torch.nn.functional.cosine_similarity(features[:, None], features, dim=2)
    table = D.find_duplicates(files, near=None, features=features.double().numpy(), similar=.2)
    got = {(files.index(r.a), files.index(r.b)): r.distance for r in table.itertuples()}
    assert set(got) == {(i, j) for i, j in combinations(range(20), 2) if cos[i, j] >= .2}
    for (i, j), distance in got.items(): assert abs(distance - (1 - cos[i, j].item())) < 1e-5
    splits = {"train": files[:12], "valid": files[12:]}
    parts = {"valid": features[12:], "train": features[:12]}
    by_split = D.find_duplicates(splits, near=None, features=parts, similar=.2)
    assert as_set(by_split) == as_set(table)


def test_errors_say_what_to_do(pets):
    files = sorted(pets.glob("*.jpg"))[:4]
    for near in (-1, 32, 64, 2.5, True):
        with pytest.raises(ValueError, match=f"0 to 31.*got {near}"):
            D.find_duplicates(files, near=near)
    with pytest.raises(ValueError, match="cosine.*got 98"): D.find_duplicates(files, similar=98)
    for bad in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(4, 2, 2)):
        with pytest.raises(ValueError, match=r"one row for each image, \(4, f\); got shape"):
            D.find_duplicates(files, features=bad, near=None)
    broken = torch.tensor([[1.], [2], [float("nan")], [4]])
    with pytest.raises(ValueError, match="1 rows.*not finite"):
        D.find_duplicates(files, features=broken, near=None)
    with pytest.raises(ValueError, match=r"\['valid'\] for the splits \['train'\]"):
        D.find_duplicates({"train": files}, features={"valid": torch.zeros(4, 2)}, near=None)
    for one in ("pets", Path("pets")):
        with pytest.raises(TypeError, match="image_files"): D.find_duplicates(one)


# --- pairs and groups

@quick
@given(n=st.integers(0, 30), f=st.integers(1, 6), least=st.integers(-3, 6),
       block=st.integers(1, 40), seed=st.integers(0, 999), own=st.booleans())
def test_close_pairs_are_all_close_pairs(n, f, least, block, seed, own):
    g = torch.Generator().manual_seed(seed)
    rows, other = (torch.randint(-2, 3, (n, f), generator=g).float() for _ in range(2))
    pairs, products = D.close_pairs(rows, least, None if own else other, block)
    product = rows @ (rows if own else other).T
    close = [(i, j) for i, j in combinations(range(n), 2) if product[i, j] >= least]
    found = dict(zip(map(tuple, pairs.tolist()), products.tolist()))
    assert found == {(i, j): product[i, j].item() for i, j in close}
    assert len(pairs) == len(close)


def test_too_many_pairs(monkeypatch):
    monkeypatch.setattr(D, "MAX_PAIRS", 10)
    assert len(D.close_pairs(torch.ones(5, 1), 1)[0]) == 10
    with pytest.raises(ValueError, match="more than 10 pairs.*smaller near"):
        D.close_pairs(torch.ones(6, 1), 1)


@quick
@given(n=st.integers(1, 15), data=st.data(),
       edges=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), max_size=20))
def test_groups_are_connected_components(n, edges, data):
    "Against joining groups one pair after the other; paths 15 to 17 are in the table only."
    import pandas as pd
    name = [Path(f"{k}.jpg") for k in range(18)]
    order = data.draw(st.permutations(range(n)))
    table = pd.DataFrame(dict(a=[name[a] for a, _ in edges], b=[name[b] for _, b in edges]))
    got = D.duplicate_groups([name[k] for k in order], table)
    group = list(range(18))
    for a, b in edges: group = [group[a] if g == group[b] else g for g in group]
    for i, j in combinations(range(n), 2):
        assert (got[i] == got[j]) == (group[order[i]] == group[order[j]])
    assert list(dict.fromkeys(got)) == list(range(len(set(got))))


def test_a_split_by_groups_has_no_leaks(planted):
    files, truth = planted
    every = [*files, *truth]
    pairs = D.find_duplicates(every, mirrored=True)
    groups = D.duplicate_groups(every, pairs)
    assert len(set(groups)) == len(files)
    labels = [f"label {k % 2}" for k in range(len(every))]

    def count_leaks(seed, groups):
        data = ImageData.build(files[0].parent, every, labels, groups=groups, valid_pct=.4, size=32,
                               bs=8, seed=seed)
        return len(D.split_leaks(D.find_duplicates(data, mirrored=True)))

    assert sum(count_leaks(seed, None) for seed in range(5)) > 0
    assert [count_leaks(seed, groups) for seed in range(5)] == [0] * 5


def test_libraries_are_imported_when_used():
    code = ("import sys, lessonkit.data.duplicates; "
            "names = 'imagehash', 'scipy', 'pandas', 'matplotlib'; "
            "print([name for name in names if name in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
