"""What is checked when data is made: files, labels, both sides of the split, tables and settings.

Each test is a kind of mistake that once went through without a word, with its relatives.
"""
import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from lessonkit.core.task import plain_labels
from lessonkit.data.augment import augmentations
from lessonkit.data.folders import file_id, locate
from lessonkit.data.image_data import ImageData, Stats
from lessonkit.data.images import image_files
from lessonkit.data.labels import read_table
from lessonkit.data.splits import check_valid_idx
from tiers import examples

OPTIONS = dict(size=16, bs=4, valid_pct=.25)
links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


def paint(path, color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (color * 7 % 256, color % 256, 40)).save(path)


def fill(folder, classes=("cat", "dog"), n=6):
    "A folder with a folder for each class."
    for c, name in enumerate(classes):
        for i in range(n): paint(folder / name / f"{i}.png", 50 * c + i)
    return folder


@pytest.fixture
def nested(tmp_path):
    "Folders for training, validation and test, each with a folder for each class."
    for part in ("train", "valid", "test"): fill(tmp_path / "d" / part)
    return tmp_path / "d"


@pytest.fixture
def flat(tmp_path):
    "Twenty files, their names, and their labels."
    folder = tmp_path / "flat"
    for i in range(20): paint(folder / f"{'dog' if i % 2 else 'cat'}_{i:02}.png", i)
    files = image_files(folder)
    return folder, files, [f.name[:3] for f in files]


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sides(data):
    return [{file_id(p) for p in loader.paths} for loader in (data.train, data.valid)]


# One file is one file.

@links
@pytest.mark.parametrize("spelling", ["test", "../d/test", "./test/", "train/../test", "absolute",
                                      "relative", "link", "files", "linked files"])
@pytest.mark.parametrize("factory", ["folder", "folder_pct", "train_dot", "re", "func"])
def test_test_folders_are_never_trained_on(nested, monkeypatch, spelling, factory, quiet):
    monkeypatch.chdir(nested.parent)
    (nested.parent / "elsewhere").symlink_to(nested / "test")
    linked = nested.parent / "linked"
    linked.mkdir()
    for i, f in enumerate(image_files(nested / "test")): (linked / f"{i}.png").symlink_to(f)
    tests = dict(absolute=nested / "test", relative=Path("d/test"),
                 link=nested.parent / "elsewhere", files=image_files("d/test"))
    test = tests.get(spelling, image_files(linked) if spelling == "linked files" else spelling)
    options = dict(size=16, bs=4, test=test)
    if factory == "folder": data = ImageData.from_folder("d", **options)
    elif factory == "folder_pct": data = ImageData.from_folder("d", valid_pct=.25, **options)
    elif factory == "train_dot":
        (nested / "valid").rename(nested.parent / "held")
        data = ImageData.from_folder("d", train=".", valid=nested.parent / "held", **options)
    elif factory == "re": data = ImageData.from_name_re("d", r"/(cat|dog)/", **options)
    else: data = ImageData.from_name_func("d", lambda p: p.parent.name, **options)
    assert data.test.n == 12
    held = {file_id(f) for f in data.test.paths}
    assert not held & set.union(*sides(data))
    assert data.train.n + data.valid.n == 24


def test_labels_are_not_read_from_names_in_the_test_folder(flat):
    folder, files, _ = flat
    for i in range(3): paint(folder / "test" / f"unnamed{i}.png", 90 + i)
    data = ImageData.from_name_re(folder, r"^(\w{3})_\d", test="test", **OPTIONS)
    assert (data.train.n + data.valid.n, data.test.n) == (20, 3)


def test_a_test_folder_among_listed_files_is_an_error(flat):
    folder, files, labels = flat
    (folder / "test").mkdir()
    for f in files[:2]: shutil.move(f, folder / "test" / f.name)
    files = image_files(folder)
    labels = [f.name[:3] for f in files]
    with pytest.raises(ValueError, match="2 test images are among .*cat_00.png"):
        ImageData.from_lists(folder, files, labels, test="test", **OPTIONS)
    with pytest.warns(UserWarning, match="2 test images are among"):
        ImageData.from_lists(folder, files, labels, test=files[:2], **OPTIONS)


@links
@pytest.mark.parametrize("change", ["train_dot", "same", "link", "inner"])
def test_a_file_on_both_sides_is_named(nested, change):
    options = dict(size=16, bs=4)
    if change == "train_dot": options |= dict(train=".")
    elif change == "same": options |= dict(valid="train")
    elif change == "link":
        (nested / "held").symlink_to(nested / "train")
        options |= dict(valid="held")
    else: options |= dict(valid="train/cat")
    with pytest.raises(ValueError, match=r"training or for validation.*\d\.png.*row \d+") as e:
        ImageData.from_folder(nested, **options)
    assert "'training' in row" in str(e.value)


@links
def test_hard_links_are_files_of_their_own(tmp_path, flat):
    "A program that saves room may have linked equal files, also of different classes."
    folder = tmp_path / "hard"
    folder.mkdir()
    for i in range(20): os.link(flat[1][0], folder / f"{'ab'[i % 2]}_{i}.png")
    data = ImageData.from_name_re(folder, r"^(.)_", size=16, bs=4)
    assert data.train.n + data.valid.n == 20


@links
def test_a_row_that_is_there_twice_counts_once(flat):
    folder, files, labels = flat
    (folder.parent / "link").symlink_to(folder)
    again = [folder / ".." / "flat" / files[0].name, str(folder.parent / "link" / files[1].name)]
    plain = ImageData.from_lists(folder, files, labels, **OPTIONS)
    with pytest.warns(UserWarning, match="3 of 23 files are listed before"):
        data = ImageData.from_lists(folder, [*files, *again, files[2].name],
                                    labels + labels[:3], **OPTIONS)
    assert (data.train.paths, data.valid.paths) == (plain.train.paths, plain.valid.paths)
    mask = [i % 4 == 0 for i in range(20)]
    with pytest.warns(UserWarning, match="1 of 21 files"):
        data = ImageData.from_lists(folder, [*files, files[0]], labels + labels[:1],
                                    valid_idx=mask + [True], size=16, bs=4)
    assert data.valid.paths == tuple(files[::4])
    with pytest.raises(ValueError, match="training or for validation"):
        ImageData.from_lists(folder, [*files, files[0]], labels + labels[:1],
                             valid_idx=mask + [False], size=16, bs=4)


@pytest.mark.parametrize("first, second", [
    ("cat", "dog"), (1, 2), (1., 2.), (["a"], ["a", "b"]), ((1., 2.), (1., 3.)), (True, False),
])
def test_two_labels_for_one_file_are_both_named(flat, first, second):
    folder, files, _ = flat
    labels = [first, second] * 10
    with pytest.raises(ValueError, match="two labels.*in row 1 and .* in row 20") as e:
        ImageData.from_lists(folder, [*files, files[1]], [*labels, first], **OPTIONS)
    assert files[1].name in str(e.value)
    with pytest.warns(UserWarning, match="count once"):
        ImageData.from_lists(folder, [*files, files[1]], [*labels, labels[1]], **OPTIONS)


def test_a_table_with_a_row_for_each_label_is_refused(flat):
    folder, files, _ = flat
    table = pd.DataFrame({"f": [f.name for f in files for _ in range(2)], "l": ["a", "b"] * 20})
    with pytest.raises(ValueError, match="two labels.*label_delim"):
        ImageData.from_df(folder, table, **OPTIONS)


# Names are relative to the folder.

FACTORIES = {
    "lists": lambda p, names, labels, **o: ImageData.from_lists(p, names, labels, **o),
    "re": lambda p, names, labels, **o: ImageData.from_name_re(p, "(cat|dog)", names, **o),
    "func": lambda p, names, labels, **o: ImageData.from_name_func(p, lambda f: f.name[:3], names,
                                                                   **o),
    "df": lambda p, names, labels, **o: ImageData.from_df(
        p, pd.DataFrame({"f": [str(n) for n in names], "l": labels}), **o),
    "build": lambda p, names, labels, **o: ImageData.build(p, list(map(str, names)), labels, **o),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_working_directory_never_wins(flat, tmp_path, monkeypatch, factory):
    folder, files, labels = flat
    here = tmp_path / "here"
    for f in files[:3]: paint(here / f.name, 99)
    monkeypatch.chdir(here)
    names = [f.name for f in files]
    for path in ("../flat", folder, str(folder)):
        data = FACTORIES[factory](path, names, labels, **OPTIONS)
        found = {os.path.realpath(p) for p in (*data.train.paths, *data.valid.paths)}
        assert found == {os.path.realpath(f) for f in files}
    files[0].unlink()  # the one beside us is no substitute
    with pytest.raises(FileNotFoundError, match="1 of 20 files do not exist"):
        FACTORIES[factory](folder, names, labels, **OPTIONS)


@pytest.mark.parametrize("factory", FACTORIES)
def test_listed_paths_are_meant_as_they_are(flat, monkeypatch, factory):
    folder, files, labels = flat
    monkeypatch.chdir(folder.parent)
    for path, names in (("flat", image_files("flat")), (folder, image_files("flat")),
                        ("flat", files), (".", image_files("flat"))):
        data = FACTORIES[factory](path, names, labels, **OPTIONS)
        assert data.train.n + data.valid.n == 20


def test_home_is_expanded_everywhere(nested, monkeypatch):
    monkeypatch.setenv("HOME", str(nested.parent))
    monkeypatch.setenv("USERPROFILE", str(nested.parent))
    data = ImageData.from_folder("~/d", test="~/d/test", size=16, bs=4)
    assert (data.path, data.test.n) == (nested, 12)
    data = ImageData.from_folder("~/d", train="~/d/train", valid="~/d/valid", size=16, bs=4)
    assert (data.train.n, data.valid.n) == (12, 12)
    names = [f"~/d/train/cat/{i}.png" for i in range(6)]
    data = ImageData.from_lists("~/d", names, list("ababab"), **OPTIONS)
    assert data.train.paths[0].parent == nested / "train" / "cat"
    table = pd.DataFrame({"f": names, "l": list("ababab")})
    table.to_csv(nested / "labels.csv", index=False)
    ImageData.from_csv("~/d", "~/d/labels.csv", **OPTIONS)
    table.assign(f=[f"{i}.png" for i in range(6)]).to_csv(nested / "labels.csv", index=False)
    ImageData.from_csv("~/d", folder="~/d/train/cat", **OPTIONS)
    assert not Path("~").exists()


@pytest.mark.parametrize("name", ["~odd.png", " padded.png ", "~", "ä b#.png"])
def test_odd_names_are_names(tmp_path, name):
    (tmp_path / name).touch()
    assert locate(tmp_path, name) == tmp_path / name


# Tables.

WORDS = [["01", "1", "2"], ["007", "042", "113"], ["1e5", "2e5", "3e5"], ["1.0", "2.0", "3.0"],
         ["None", "mild", "severe"], ["NA", "EU", "AS"], ["null", "x", "y"], ["nan", "inf", "-inf"],
         ["True", "False", "maybe"], ["1_000", "2", "3"], ["2024-01-01", "1/2", "3:30"],
         ["N/A", "#N/A", "n/a"], ["0x1F", "1E5", "+1"]]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0].replace("/", "-"))
def test_words_of_a_csv_file_stay_words(tmp_path, words):
    for i in range(12): paint(tmp_path / f"{i:04}.png", i)
    rows = "".join(f"{i:04},{words[i % 3]}\n" for i in range(12))
    (tmp_path / "labels.csv").write_text("id,label\n" + rows)
    data = ImageData.from_csv(tmp_path, suffix=".png", **OPTIONS)
    assert (data.kind, data.classes) == ("single", tuple(sorted(words)))


def test_numbers_of_a_csv_file_are_said_to_be_numbers(flat):
    folder, files, _ = flat
    table = pd.DataFrame({"f": [f.name for f in files], "x": [i / 2 for i in range(20)],
                          "age": range(20)})
    table.to_csv(folder / "labels.csv", index=False)
    for column in ("x", "age"):
        data = ImageData.from_csv(folder, label_col=column, kind="number", **OPTIONS)
        assert data.kind == "number"
        frame = ImageData.from_df(folder, table, label_col=column, kind="number", **OPTIONS)
        assert torch.equal(data.train.targets, frame.train.targets)
    assert ImageData.from_df(folder, table, label_col="x", **OPTIONS).kind == "number"
    with pytest.raises(ValueError, match="say kind='number'"):
        ImageData.from_csv(folder, label_col="x", **OPTIONS)
    points = ImageData.from_csv(folder, label_col=["x", "age"], **OPTIONS)
    assert (points.kind, points.c) == ("number", 2)
    with pytest.raises(ValueError, match=f"label 0 .{files[0].name}.: .* is not a finite number"):
        ImageData.from_csv(folder, label_col="f", kind="number", **OPTIONS)


@pytest.mark.parametrize("blank", ["", " ", '""', '"  "'])
def test_blank_cells_are_refused_with_their_row(flat, blank):
    folder, files, labels = flat
    rows = [[f.name, label, "p1"] for f, label in zip(files, labels)]
    for column, what in ((0, "file names"), (1, "labels")):
        cells = [list(row) for row in rows]
        cells[7][column] = blank
        text = "\n".join(",".join(row) for row in cells)
        (folder / "labels.csv").write_text(f"name,label,group\n{text}\n")
        with pytest.raises(ValueError, match=f"1 empty {what}, first in row 7"):
            ImageData.from_csv(folder, **OPTIONS)
    cells = [list(row) for row in rows]
    cells[3][2] = blank
    text = "\n".join(",".join(row) for row in cells)
    (folder / "labels.csv").write_text(f"name,label,group\n{text}\n")
    with pytest.raises(ValueError, match="1 of 20 images have no group .positions 3"):
        ImageData.from_csv(folder, group_col="group", **OPTIONS)


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, pd.NaT, "", "  "])
def test_missing_labels_of_a_frame_are_refused(flat, missing):
    folder, files, labels = flat
    table = pd.DataFrame({"f": [f.name for f in files], "l": labels}, dtype=object)
    table.loc[4, "l"] = missing
    with pytest.raises(ValueError, match="1 empty labels, first in row 4"):
        ImageData.from_df(folder, table, **OPTIONS)


def test_blanks_around_names_and_labels_do_not_count(flat):
    folder, files, labels = flat
    rows = "\n".join(f" {f.name} , {label} " for f, label in zip(files, labels))
    (folder / "labels.csv").write_text(f" name , label \n{rows}\n")
    for options in (dict(), dict(fn_col="name", label_col="label")):
        data = ImageData.from_csv(folder, **options, **OPTIONS)
        assert data.classes == ("cat", "dog")
    rows = "\n".join(f" {f.stem} , {label} " for f, label in zip(files, labels))
    (folder / "labels.csv").write_text(f"name,label\n{rows}\n")
    assert ImageData.from_csv(folder, suffix=".png", **OPTIONS).c == 2
    padded = pd.DataFrame({"f": [f"  {f.name}" for f in files],
                           "l": [f"{label} " for label in labels]})
    assert ImageData.from_df(folder, padded, **OPTIONS).classes == ("cat", "dog")


@pytest.mark.parametrize("content", [
    b"", b"\n\n", b"id,label\n", b"\xff\xfe\x00bad", b"\x89PNG\r\n\x1a\n\0\0", b"PK\x03\x04\0\0",
    "id,label\na,é".encode("latin-1"), "id,label\na,b".encode("utf-16"), b"id,label\na,b,c\n",
    b"id,label\na\n", b'id,label\n"a,b\n', b"id;label\na;b\n", b"id\tlabel\na\tb\n",
])
def test_what_is_no_table_says_why(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match="labels.csv"): ImageData.from_csv(tmp_path, **OPTIONS)


cells = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@examples(50)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6),
       delimiter=st.sampled_from(",;\t|"))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, rows, delimiter):
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows: return
    file = tmp_path_factory.mktemp("csv") / "labels.csv"
    frame = pd.DataFrame(rows, columns=["name", "label"])
    frame.to_csv(file, sep=delimiter, index=False, quoting=1)
    found = read_table(file, delimiter)
    assert found.values.tolist() == [list(row) for row in rows]


# Your own split.

def test_masks_are_masks_in_every_factory(flat):
    folder, files, labels = flat
    mask = np.arange(20) % 4 == 0
    expected = tuple(files[::4])
    table = pd.DataFrame({"f": [f.name for f in files], "l": labels, "fold": np.arange(20) % 4})
    options = dict(size=16, bs=4)
    for idx in (mask, mask.tolist(), torch.from_numpy(mask), pd.Series(mask), mask.astype(int),
                np.flatnonzero(mask), set(np.flatnonzero(mask).tolist()), range(0, 20, 4)):
        data = ImageData.from_lists(folder, files, labels, valid_idx=idx, **options)
        assert data.valid.paths == expected
        data = ImageData.from_df(folder, table, valid_idx=idx, **options)
        assert data.valid.paths == expected
        data = ImageData.from_name_re(folder, "^(.{3})", valid_idx=idx, **options)
        assert data.valid.paths == expected


def test_rows_of_a_table_are_found_by_their_labels(flat):
    folder, files, labels = flat
    table = pd.DataFrame({"f": [f.name for f in files], "l": labels, "fold": np.arange(20) % 4})
    options = dict(size=16, bs=4)
    shuffled = table.sample(frac=1, random_state=0)
    for df in (table, shuffled, shuffled.reset_index(drop=True), table.set_index("f", drop=False)):
        expected = set(files[::4])
        data = ImageData.from_df(folder, df, valid_idx=df.index[df.fold == 0], **options)
        assert set(data.valid.paths) == expected
        data = ImageData.from_df(folder, df, valid_idx=df.fold == 0, **options)
        assert set(data.valid.paths) == expected
    data = ImageData.from_df(folder, shuffled, valid_idx=table.fold == 0, **options)
    assert set(data.valid.paths) == set(files[::4])
    with pytest.raises(ValueError, match="labels of rows that the table doesn't have"):
        ImageData.from_df(folder, table, valid_idx=pd.Index([99]), **options)


@examples(100)
@given(n=st.integers(3, 40), data=st.data())
def test_positions_and_masks_agree(n, data):
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    positions = [i for i, on in enumerate(mask) if on]
    if len(positions) in (0, n):
        with pytest.raises(ValueError): check_valid_idx(mask, n)
        return
    order = data.draw(st.permutations(positions))
    for idx in (mask, np.array(mask), torch.tensor(mask), order, set(order), np.array(mask, int)):
        assert check_valid_idx(idx, n).tolist() == positions


def column_of(word, other):
    return [word if i % 4 == 0 else other for i in range(20)]


@pytest.mark.parametrize("word, other", [
    (True, False), (1, 0), (1., 0.), ("True", "False"), ("yes", "no"), ("valid", "train"),
    ("1", "0"), ("VALIDATION", "Training"), (np.True_, np.False_), ("Y", "n"), (" true ", "false"),
])
def test_columns_that_say_what_is_for_validation(flat, word, other):
    folder, files, labels = flat
    table = pd.DataFrame({"f": [f.name for f in files], "l": labels, "v": column_of(word, other)})
    for df in (table, table.astype({"v": object}), table.astype({"v": "category"})):
        data = ImageData.from_df(folder, df, valid_col="v", size=16, bs=4)
        assert data.valid.paths == tuple(files[::4])
    table.to_csv(folder / "labels.csv", index=False)
    data = ImageData.from_csv(folder, valid_col=2, size=16, bs=4)
    assert data.valid.paths == tuple(files[::4])


@pytest.mark.parametrize("word, other, message", [
    (1, 2, "got 2"), ("fold0", "fold1", "got 'fold0'"), (1., None, "blank in 15 of 20"),
    (True, np.nan, "blank"), ("yes", "", "blank"), (.5, 0, "got 0.5"), ("test", "train", "'test'"),
    (-1, 0, "got -1"), (pd.Timestamp(2020, 1, 1), False, "got Timestamp"),
])
def test_columns_that_may_mean_anything(flat, word, other, message):
    folder, files, labels = flat
    table = pd.DataFrame({"f": [f.name for f in files], "l": labels, "v": column_of(word, other)})
    with pytest.raises(ValueError, match=f"column 'v'.*{message}"):
        ImageData.from_df(folder, table, valid_col="v", size=16, bs=4)


def test_two_answers_to_one_question_are_refused(flat, nested):
    folder, files, labels = flat
    table = pd.DataFrame({"f": [f.name for f in files], "l": labels, "v": column_of(1, 0)})
    with pytest.raises(ValueError, match="valid_col and valid_idx both"):
        ImageData.from_df(folder, table, valid_col="v", valid_idx=[0], size=16)
    with pytest.raises(ValueError, match="group_col and groups both"):
        ImageData.from_df(folder, table, group_col="v", groups=range(20), size=16)
    with pytest.raises(ValueError, match="leave valid_idx out"):
        ImageData.from_folder(nested, valid_idx=[0], size=16)


# Kinds of labels.

def made(flat, labels, **options):
    folder, files, _ = flat
    return ImageData.from_lists(folder, files, labels, **OPTIONS | options)


def alternating(a, b): return [a, b] * 10


@pytest.mark.parametrize("labels", [
    alternating(["cat"], "dog"), alternating("cat", ["dog", "x"]), alternating(0, "dog"),
    alternating(True, "dog"), alternating(1.5, "dog"), alternating({"cat"}, "dog"),
    alternating(True, 2), alternating(True, 1.5), alternating(["a"], [3]),
    alternating([1.5], ["a"]),
    ["a"] * 19 + [1], ["a"] * 19 + [["b"]], alternating((1., 2.), 3.), alternating(["a", 1], ["b"]),
])
def test_labels_of_mixed_kinds_are_refused_with_two_examples(flat, labels):
    with pytest.raises(ValueError, match=r"label \d+ .* is .*") as e: made(flat, labels)
    assert "different kinds" in str(e.value)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, "", " "])
@pytest.mark.parametrize("other", ["cat", 1, 1., True])
def test_labels_that_are_missing_are_refused_with_their_position(flat, missing, other):
    labels = [other] * 20
    labels[13] = missing
    name = flat[1][13].name
    with pytest.raises(ValueError, match=f"label 13 .{name}."): made(flat, labels)
    with pytest.raises(ValueError, match=f"label 13 .{name}."):
        made(flat, [["a"] if i != 13 else ["a", missing] for i in range(20)])


KINDS = {
    "number": [
        alternating(1, 1.5), alternating(1., 2), alternating((1, 2.5), (3, 4)),
        np.linspace(0, 1, 20), torch.linspace(0, 1, 20), np.ones((20, 2)),
    ],
    "single": [
        alternating("a", "b"), alternating(1, 2), alternating(True, False), np.arange(20) % 2,
        torch.arange(20) % 2, pd.Series(alternating("a", "b"), index=range(20, 0, -1)),
        pd.Categorical(alternating("a", "b")), iter(alternating("a", "b")),
    ],
    "multi": [
        alternating([], ["a"]), alternating([1], [1, 2]), alternating({"a"}, {"b", "a"}),
        alternating([True], [True, False]), alternating(np.array([1]), np.array([1, 2])),
    ],
}
CASES = [(labels, kind) for kind, several in KINDS.items() for labels in several]

@pytest.mark.parametrize("labels, kind", CASES, ids=[str(i) for i in range(len(CASES))])
def test_all_labels_tell_the_kind(flat, labels, kind):
    data = made(flat, labels)
    assert data.kind == kind
    assert json.loads(json.dumps(asdict(data.task))) == asdict(data.task) | dict(
        classes=list(data.classes))


@pytest.mark.parametrize("labels", [
    [(i % 5, i % 7) for i in range(20)], np.array([(i % 5, i % 7) for i in range(20)]),
    torch.tensor([(1, 0), (0, 1)] * 10), [[1, 1], [2, 1]] * 10,
])
def test_whole_numbers_in_rows_have_to_be_explained(flat, labels):
    with pytest.raises(ValueError, match="kind='number' or kind='multi'"): made(flat, labels)
    points = made(flat, labels, kind="number")
    assert (points.kind, points.c) == ("number", 2)
    assert made(flat, labels, kind="multi").kind == "multi"


@pytest.mark.parametrize("rows", [
    [[1, 1], [0, 1]] * 10, [[True, True], [False, True]] * 10, np.eye(4)[[0, 1, 2, 3] * 5],
    np.eye(4, dtype=int)[[0, 1, 2, 3] * 5], torch.eye(3).bool()[[0, 1] * 10],
])
def test_rows_of_zeros_and_ones_are_no_names_of_labels(flat, rows):
    with pytest.raises(ValueError, match="zeros and ones, one for each label.*flatnonzero"):
        made(flat, rows, kind="multi")
    named = made(flat, [np.flatnonzero(row) for row in rows], kind="multi")
    assert named.valid.targets.sum(1).min() > 0


def test_what_the_call_says_counts(flat):
    ages = [20 + i for i in range(20)]
    data = made(flat, ages, kind="number")
    assert (data.kind, data.classes, data.c) == ("number", (), 1)
    assert sorted(torch.cat([data.train.targets, data.valid.targets]).flatten().tolist()) == ages
    assert made(flat, alternating(1., 2.), kind="single").classes == (1., 2.)
    assert made(flat, alternating("a", "b"), kind="multi").classes == ("a", "b")
    assert made(flat, alternating("1.5", "2"), kind="number").kind == "number"
    words = alternating("a", "b")
    for labels, kind in ((alternating(["a"], ["b"]), "single"), (words, "number"),
                         (alternating([1., 2.], [3.]), "number"), (words, "classes")):
        with pytest.raises(ValueError): made(flat, labels, kind=kind)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), "inf", "nan", "1,5", "one"])
def test_numbers_to_predict_are_finite(flat, value):
    labels = [1.] * 20
    labels[5] = value
    with pytest.raises(ValueError, match="label 5 .*is not a finite number|different kinds"):
        made(flat, labels)
    with pytest.raises(ValueError, match="label 5 .*is not a finite number"):
        made(flat, labels, kind="number")


@pytest.mark.parametrize("label", [
    b"cat", pd.Timestamp(2020, 1, 1), np.datetime64("2020-01-01"), 1j, {"a": 1}, object(),
    pd.Interval(0, 1), np.bytes_(b"cat"),
])
def test_what_cannot_be_saved_is_refused(flat, label):
    with pytest.raises(TypeError, match="label 3 .*text, a number or a bool"):
        made(flat, ["a"] * 3 + [label] + ["b"] * 16)
    with pytest.raises(TypeError, match="label 3 "):
        made(flat, [["a"]] * 3 + [[label]] + [["b"]] * 16)
    with pytest.raises(TypeError, match="classes: label 1"):
        made(flat, alternating("a", "b"), classes=["a", label])


@pytest.mark.parametrize("labels, expected", [
    (np.array(alternating(3, 7)), (3, 7)), (np.array(alternating(True, False)), (False, True)),
    (alternating(Path("a/b"), Path("c")), ("a/b", "c")),
    (np.array(alternating("a", "b")), ("a", "b")),
    (np.array(alternating(3, 7), np.uint8), (3, 7)), (torch.tensor(alternating(3, 7)), (3, 7)),
    (pd.Series(alternating(3, 7), dtype="Int64"), (3, 7)),
])
def test_classes_are_plain_values(flat, labels, expected):
    data = made(flat, labels)
    assert data.classes == expected
    assert [type(c) for c in data.classes] == [type(c) for c in expected]
    classes = np.array(expected[::-1])
    given_order = made(flat, labels, classes=classes)
    assert given_order.classes == expected[::-1]
    assert [type(c) for c in given_order.classes] == [type(c) for c in data.classes]


scalars = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False),
                    st.text("ab ", max_size=3))


@examples(100)
@given(labels=st.lists(st.one_of(scalars, st.lists(scalars, max_size=3)), min_size=1, max_size=6))
def test_any_labels_are_plain_or_refused(labels):
    try: kind, plain = plain_labels(labels)
    except ValueError as e:
        assert "label " in str(e)
        return
    assert len(plain) == len(labels)
    flat_values = [v for label in plain for v in (label if isinstance(label, list) else [label])]
    types = {type(v) for v in flat_values}
    assert types <= {str} or types <= {bool} or types <= {int} or types == {float}
    assert (kind == "number") == (types == {float})
    assert json.loads(json.dumps(plain)) == plain


def test_names_that_look_the_same_are_one_mistake(flat):
    for a, b in (("cat", "cat "), ("\u00e9", "e\u0301"), (" x", "x")):
        with pytest.raises(ValueError, match="differ only in blanks"): made(flat, alternating(a, b))


def test_no_label_at_all_is_an_answer(flat, quiet):
    folder, files, _ = flat
    data = made(flat, [["a", "b"], [], ["b"], ["a"]] * 5)
    assert data.classes == ("a", "b")
    targets = torch.cat([data.train.targets, data.valid.targets])
    assert int((targets.sum(1) == 0).sum()) == 5
    table = pd.DataFrame({"f": [f.name for f in files], "t": ["a; b", "", "b;;", "a "] * 5})
    for df in (table, table.assign(t=["a; b", None, "b", " a"] * 5)):
        data = ImageData.from_df(folder, df, label_delim=";", **OPTIONS)
        assert (data.kind, data.classes) == ("multi", ("a", "b"))
    table.to_csv(folder / "labels.csv", index=False)
    data = ImageData.from_csv(folder, label_delim=";", **OPTIONS)
    assert (data.kind, data.classes) == ("multi", ("a", "b"))
    with pytest.raises(ValueError, match="no training image has a label"): made(flat, [[]] * 20)


@pytest.mark.parametrize("convert", [int, bool, float, str])
def test_columns_of_zeros_and_ones_are_labels(flat, convert, quiet):
    folder, files, _ = flat
    table = pd.DataFrame({"f": [f.name for f in files], "healthy": [i % 2 for i in range(20)],
                          "rust": [i % 3 == 0 for i in range(20)]})
    table = table.assign(healthy=[convert(v) for v in table.healthy],
                         rust=[convert(int(v)) for v in table.rust])
    columns = ["healthy", "rust"]
    for data in (ImageData.from_df(folder, table, label_col=columns, **OPTIONS),
                 ImageData.from_df(folder, table, label_col=[1, 2], **OPTIONS)):
        assert (data.kind, data.classes) == ("multi", ("healthy", "rust"))
        row = files.index(data.valid.paths[0])
        assert data.valid.targets[0].tolist() == [row % 2, row % 3 == 0]
    table.to_csv(folder / "labels.csv", index=False)
    data = ImageData.from_csv(folder, label_col=columns, **OPTIONS)
    assert (data.kind, data.classes) == ("multi", ("healthy", "rust"))
    if convert is str: return
    numbers = ImageData.from_df(folder, table, label_col=columns, kind="number", **OPTIONS)
    assert (numbers.kind, numbers.c) == ("number", 2)


# Classes that vanish, and classes that nobody meant.

LOST = {
    "empty": lambda fox: None,
    "texts": lambda fox: (fox / "a.txt").write_text("x"),
    "odd ending": lambda fox: shutil.copy(fox.parent / "cat" / "0.png", fox / "0.photo"),
    "heic": lambda fox: (fox / "0.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40)),
    "pdf": lambda fox: (fox / "a.pdf").write_bytes(b"%PDF-1.4"),
    "deep and empty": lambda fox: (fox / "a" / "b").mkdir(parents=True),
    "hidden": lambda fox: shutil.copy(fox.parent / "cat" / "0.png", fox / ".0.png"),
    "broken": lambda fox: [(fox / f"{i}.png").write_text("broken") for i in range(3)],
    "no bytes": lambda fox: (fox / "0.jpg").touch(),
    "dangling": lambda fox: (fox / "0.jpg").symlink_to("nowhere.jpg"),
}


@links
@pytest.mark.parametrize("what", LOST)
@pytest.mark.parametrize("layout", ["one", "split"])
def test_a_class_that_vanishes_is_named(tmp_path, what, layout):
    root = fill(tmp_path / "d" / "train" if layout == "split" else tmp_path / "d")
    (root / "fox").mkdir()
    LOST[what](root / "fox")
    if layout == "split": fill(tmp_path / "d" / "valid", n=2)
    with pytest.warns(UserWarning) as caught:
        options = OPTIONS if layout == "one" else dict(size=16, bs=4)
        data = ImageData.from_folder(tmp_path / "d", **options)
    assert data.classes == ("cat", "dog")
    messages = [str(w.message) for w in caught]
    assert any("'fox'" in m and ("no classes" in m or "are gone" in m) for m in messages)


@links
@pytest.mark.parametrize("link", ["nowhere", "cat", ".", "elsewhere"])
def test_linked_class_folders(tmp_path, link):
    root = fill(tmp_path / "d")
    fill(tmp_path / "elsewhere", ("fox",))
    target = tmp_path / "elsewhere" / "fox" if link == "elsewhere" else link
    (root / "fox").symlink_to(target)
    if link == "elsewhere":
        assert ImageData.from_folder(root, **OPTIONS).classes == ("cat", "dog", "fox")
        return
    with pytest.warns(UserWarning, match="'fox' .*(nowhere|another name|that it lies in)"):
        assert ImageData.from_folder(root, **OPTIONS).classes == ("cat", "dog")


def test_classes_that_nobody_meant_are_named(nested, quiet):
    ImageData.from_folder(nested, size=16, bs=4)
    ImageData.from_folder(nested, test="test", **OPTIONS)
    paint(nested / "train" / "cat" / "young" / "a.png", 201)
    with pytest.raises(UserWarning, match="1 in 'cat.young' count as the class 'young'"):
        ImageData.from_folder(nested, size=16, bs=4)
    shutil.rmtree(nested / "train" / "cat" / "young")
    paint(nested / "train" / "stray.png", 202)
    with pytest.raises(UserWarning, match="1 in '.' count as the class 'train'"):
        ImageData.from_folder(nested, size=16, bs=4)


# Nothing to train on, to validate or to test.

@pytest.mark.parametrize("side", ["train", "valid", "test"])
@pytest.mark.parametrize("damage", ["unreadable", "empty"])
def test_a_side_with_nothing_in_it_is_refused(nested, side, damage):
    for f in image_files(nested / side):
        if damage == "empty": f.unlink()
        else: f.write_text("version https://git-lfs.github.com/spec/v1\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError) as e:
            ImageData.from_folder(nested, test="test", size=16, bs=4)
    words = dict(train="training", valid="validation", test="test")
    if damage == "empty": assert f"no images found in {str(nested / side)!r}" in str(e.value)
    else:
        assert f"none of the 12 {words[side]} images can be read: 0.png, 1.png, " in str(e.value)
        assert "git lfs pull" in str(e.value)


def test_tests_without_images_are_refused(flat):
    folder, files, labels = flat
    (folder / "none").mkdir()
    for test in ([], (), "none", folder / "none", np.array([])):
        with pytest.raises(ValueError, match="nothing to test on|test is an empty list"):
            made(flat, labels, test=test)
    for test in ("nowhere", ["nowhere.png"], folder / "nowhere"):
        with pytest.raises(FileNotFoundError): made(flat, labels, test=test)
    for test in (3, {"a.png"}, [3]):
        with pytest.raises((TypeError, ValueError), match="test"): made(flat, labels, test=test)


# Settings.

WRONG = dict(
    size=(0, 32., "32", True, [32]), presize=(48., 300.5, "48", 8, True, 0),
    bs=(2.5, "8", 0, -1, None, True, 70.), threads=(-3, "4", 1.5, 0),
    workers=(-1, "4", 1.5, True), channels=(0, "3", 3., None),
    augment=(True, "side_on", augmentations, [augmentations()], lambda x: x),
    stats=((.5, .5), "imagenet", .5, Stats((.5, .5), (1, 1))), fit=("stretch", None, True),
    cache=("disk", True, False), check=("fast", True, False), sampling=("fair", None),
    classes=(["cat", "dog", "cat"], "cat", {"cat", "dog"}, ["cat"], [], ["cat", None], 3),
    valid_pct=("0.2", 0, 1, 20, None, True, float("nan")), seed=(-1, "a", 1.5, None),
    split=("fair", None), valid_idx=("3", [.5], [99], [-1], []), kind=("regression", True),
    groups=("abc", [1, 2], {1, 2}, 3),
)


def setting_name(value): # the order in a set differs between processes
    return None if isinstance(value, (str, set)) else repr(value)[:20]


@pytest.mark.parametrize("name, value", [(k, v) for k, values in WRONG.items() for v in values],
                         ids=setting_name)
def test_a_wrong_setting_is_named_where_it_is_given(flat, name, value):
    word = dict(valid_idx="valid_idx|validation").get(name, name)
    with pytest.raises(ValueError, match=word): made(flat, flat[2], **{name: value})


def test_settings_are_plain_values(flat):
    data = made(flat, flat[2], size=np.int64(16), presize=np.int32(20), bs=np.uint8(4),
                channels=np.int64(3), threads=torch.tensor(2), workers=np.int64(0),
                seed=np.int64(42), valid_pct=np.float32(.25))
    plain = made(flat, flat[2], size=16, presize=20, bs=4, channels=3, threads=2)
    assert data.valid.paths == plain.valid.paths
    for loader in (data.train, data.resized(np.int64(24)).valid):
        names = ("size", "presize", "bs", "channels", "threads", "workers")
        assert {type(getattr(loader, k)) for k in names} == {int}
    stats = data.normalize(Stats(np.float32([.5] * 3), torch.ones(3))).stats
    assert {type(v) for v in stats.mean + stats.std} == {float}
    for wrong in ((.5, .5), "imagenet"):
        with pytest.raises(ValueError, match="stats"): data.normalize(wrong)


@pytest.mark.parametrize("path", [None, 3, b"d", "", "a\0b"])
def test_what_is_no_path_is_refused(path):
    for make in (lambda: ImageData.from_folder(path), lambda: ImageData.from_name_re(path, "(.)"),
                 lambda: ImageData.from_csv(path), lambda: ImageData.from_lists(path, [], [])):
        with pytest.raises((TypeError, ValueError), match="path"): make()


def test_labels_and_files_are_lists(flat):
    folder, files, labels = flat
    for wrong in ("cat", set(labels), dict(zip(files, labels)), None, 3):
        with pytest.raises(ValueError, match="labels is a list"):
            ImageData.from_lists(folder, files, wrong, **OPTIONS)
    for wrong in (files[0], str(files[0]), set(files), None, 3):
        with pytest.raises(ValueError, match="fnames is a list"):
            ImageData.from_lists(folder, wrong, labels, **OPTIONS)
    with pytest.raises(ValueError, match="label_func is a function"):
        ImageData.from_name_func(folder, "cat", **OPTIONS)
    for pattern in (None, 3, "(", "no group", files):
        with pytest.raises(ValueError, match="pattern|regular"):
            ImageData.from_name_re(folder, pattern, **OPTIONS)


def test_a_test_folder_that_is_everything_is_refused(nested):
    for make in (lambda test: ImageData.from_name_re(nested, "(cat|dog)", test=test),
                 lambda test: ImageData.from_folder(nested, test=test),
                 lambda test: ImageData.from_folder(nested, valid_pct=.2, test=test)):
        for test in (".", nested, nested.parent):
            with pytest.raises(ValueError, match="are also those to test on"): make(test)


def test_tests_may_be_any_iterable(flat):
    folder, files, _ = flat
    for test in (iter(files[:4]), tuple(files[:4]), np.array(files[:4]), pd.Series(files[:4])):
        data = ImageData.from_name_re(folder, "^(.{3})", test=test, **OPTIONS)
        assert (data.test.n, data.train.n + data.valid.n) == (4, 16)
