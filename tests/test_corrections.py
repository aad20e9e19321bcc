"""The journal of corrections: what was acknowledged is never lost, and data follows it exactly."""
import errno
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from lessonkit.data.corrections import Corrections, Drop, label_from_text, label_to_text, Relabel
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.learner import Learner
from lessonkit.train.features import precompute
from tiers import examples, few

OPTIONS = dict(size=16, bs=4, valid_pct=.25)
posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")


def paint(path, color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (color * 7 % 256, color % 256, 40)).save(path)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    "Images in a folder for each class; in the names, and in a table, is the class as well."
    folder = tmp_path_factory.mktemp("data") / "pets"
    for i in range(24):
        label = ("cat", "dog", "owl")[i % 3]
        paint(folder / label / f"{label}_{i:02}.png", i)
    files = image_files(folder)
    names = [f.relative_to(folder).as_posix() for f in files]
    table = pd.DataFrame({"file": names, "label": [f.parent.name for f in files]})
    table.to_csv(folder / "labels.csv", index=False)
    return folder


def from_lists(folder, **options):
    files = image_files(folder)
    return ImageData.from_lists(folder, files, [f.parent.name for f in files], **options)

def from_name_func(folder, **options):
    return ImageData.from_name_func(folder, lambda f: f.parent.name, **options)

def from_name_re(folder, **options):
    return ImageData.from_name_re(folder, r"^(.+)_\d+", **options)

def from_folder(folder, **options): return ImageData.from_folder(folder, **options)

def from_df(folder, **options):
    return ImageData.from_df(folder, pd.read_csv(folder / "labels.csv"), **options)

def from_csv(folder, **options): return ImageData.from_csv(folder, **options)

FACTORIES = [from_lists, from_name_func, from_name_re, from_folder, from_df, from_csv]


def labels_of(data):
    "The label of each image, on both sides of the split."
    sides = dict(train=data.train_eval, valid=data.valid)
    return {name: dict(zip(loader.paths, map(data.task.decode, loader.targets)))
            for name, loader in sides.items()}

def assert_same(data, other):
    assert (data.task, data.classes) == (other.task, other.classes)
    assert labels_of(data) == labels_of(other)
    assert list(labels_of(data)["train"]) == list(labels_of(other)["train"])
    assert data.train.paths == data.train_eval.paths
    assert data.train.targets.equal(data.train_eval.targets)


# ---- data

@pytest.mark.parametrize("make", FACTORIES)
def test_every_factory_keeps_the_split(pets, tmp_path, make):
    before = make(pets, **OPTIONS)
    contents = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in image_files(pets)}
    journal = Corrections(tmp_path / "corrections.csv", before.path)
    (first, second, third, *_), (a, b, *_) = before.train.paths, before.valid.paths
    new = {first: "owl", third: "dog", a: "cat"}
    for file, label in new.items(): journal.relabel(file, label)
    for file in (second, b): journal.drop(file)
    data = make(pets, corrections=journal.file, **OPTIONS)
    expected = {side: {f: new.get(f, label) for f, label in labels.items() if f not in (second, b)}
                for side, labels in labels_of(before).items()}
    assert labels_of(data) == expected
    assert_same(data, before.corrected(str(journal.file)))
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in image_files(pets)} == contents


@pytest.mark.parametrize("split", [
    dict(split="stratified"), dict(seed=7), dict(groups=[i // 3 for i in range(24)]),
    dict(valid_idx=range(3, 9)), dict(valid_idx=[i % 4 == 0 for i in range(24)])])
def test_the_split_is_drawn_from_what_there_was(pets, tmp_path, split):
    options = dict(size=16, bs=4) | split
    before = from_lists(pets, **options)
    journal = Corrections(tmp_path / "corrections.csv", pets)
    for file in image_files(pets)[::5]: journal.relabel(file, "owl")
    journal.drop(before.valid.paths[-1])
    data = from_lists(pets, corrections=journal, **options)
    assert data.valid.paths == before.valid.paths[:-1]
    assert data.train.paths == before.train.paths


KINDS = dict(
    text=lambda i: ("cat", "dog", "owl")[i % 3], numbers_as_names=lambda i: (3, 10, 7)[i % 3],
    bools=lambda i: i % 2 == 0, several=lambda i: [["sky"], ["sky", "sea"], ["sea", "sun"]][i % 3],
    number=lambda i: i / 4, two_numbers=lambda i: [i / 4, float(i)])

def corrected_or(data, journal):
    "Corrected data; as it is, if that can't be made."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: return data.corrected(journal)
        except ValueError: return data


@examples(40)
@given(st.data(), st.sampled_from([*KINDS]), st.booleans())
def test_made_corrected_and_corrected_later_are_the_same(pets, tmp_path_factory, draw, kind, given):
    "For all kinds of labels, with classes that appear or vanish, and after any undoing."
    folder = tmp_path_factory.mktemp("journal")
    files = image_files(pets)
    old = list(map(KINDS[kind], range(len(files))))
    classes = None
    if given and kind == "text": classes = ["owl", "dog", "cat", "fox"]
    options = dict(classes=classes, valid_idx=range(6), size=16, bs=4)
    before = ImageData.from_lists(pets, files, old, **options)
    journal = Corrections(folder / "corrections.csv", pets)
    new = dict(zip(files, old))
    others = {"text": ["fox"], "several": [[], ["fox"]], "number": [.1], "numbers_as_names": [5]}
    known = [*old, *others.get(kind, [])]
    middle = before
    for _ in range(draw.draw(st.integers(0, 12))):
        file = draw.draw(st.sampled_from(files))
        label = draw.draw(st.sampled_from([*known, None]))
        if label is None: journal.drop(file)
        else: journal.relabel(file, label)
        if draw.draw(st.integers(0, 4)) == 0: middle = corrected_or(before, journal)
        for _ in range(draw.draw(st.sampled_from([0, 0, 1, 2]))): journal.undo()
    for edit in journal.edits():
        label = None if isinstance(edit, Drop) else label_from_text(edit.label, before.kind, known)
        new[pets / edit.file] = label
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: data = ImageData.from_lists(pets, files, old, corrections=journal, **options)
        except ValueError as error:  # such as a label in validation only
            with pytest.raises(ValueError) as again: before.corrected(journal)
            assert str(again.value) == str(error)
            return
        assert_same(before.corrected(journal), data)
        # of earlier corrections, only those are left that still count
        assert_same(middle.resized(20).corrected(journal).resized(16), data)
    kept = {f: label for f, label in new.items() if label is not None}
    found = {f: label for side in labels_of(data).values() for f, label in side.items()}
    if data.kind == "multi":
        kept, found = ({f: set(names) for f, names in d.items()} for d in (kept, found))
    if data.kind == "number": kept = {f: pytest.approx(v) for f, v in kept.items()}
    assert found == kept
    assert {type(c) for c in data.classes} == {type(c) for c in before.classes}


def test_what_corrections_do_not_fit_is_said(pets, tmp_path):
    files = image_files(pets)
    journal = Corrections(tmp_path / "corrections.csv", pets)
    journal.relabel("cat/moved.png", "dog")
    journal.relabel(files[0], "dgo")
    with pytest.warns(UserWarning) as caught:
        data = from_lists(pets, corrections=journal, **OPTIONS)
    said = " ".join(str(w.message) for w in caught)
    assert "1 of 2 corrected files in 'corrections.csv' are not among these images" in said
    assert "cat/moved.png" in said
    assert "1 label(s) that no image had before: 'dgo' (1)" in said
    assert "dgo" in data.classes
    with pytest.raises(ValueError, match="not among the classes given: 'dgo'"), \
            pytest.warns(UserWarning):
        from_lists(pets, corrections=journal, classes=["cat", "dog", "owl"], **OPTIONS)
    for _ in range(2): journal.undo()
    for file in files:
        if file.parent.name == "owl": journal.drop(file)
    with pytest.warns(UserWarning, match=r"1 class\(es\) are gone.*'owl' \(8\)"):
        data = from_lists(pets, corrections=journal, **OPTIONS)
    assert data.classes == ("cat", "dog")


def test_a_wrong_label_in_validation_can_be_corrected_away(tmp_path):
    "Without the journal, this data can't even be made."
    for i in range(8): paint(tmp_path / "d" / f"{'dog' if i % 2 else 'cat'}_{i}.png", i)
    paint(tmp_path / "d" / "dgo_9.png")
    options = dict(valid_idx=[0, 1, 8], size=16, bs=2)
    files = sorted((tmp_path / "d").glob("*.png"), key=lambda f: f.stem[-1])
    labels = [f.stem[:3] for f in files]
    with pytest.raises(ValueError, match="found in validation only.*'dgo'"):
        ImageData.from_lists(tmp_path / "d", files, labels, **options)
    journal = Corrections(tmp_path / "corrections.csv")
    journal.relabel("dgo_9.png", "dog")
    with pytest.warns(UserWarning, match="are gone"):
        data = ImageData.from_lists(tmp_path / "d", files, labels, corrections=journal, **options)
    assert data.label(data.valid.targets[-1]) == "dog"


def test_unreadable_files_are_known(pets, tmp_path):
    folder = tmp_path / "d"
    for i in range(12): paint(folder / f"{'dog' if i % 2 else 'cat'}_{i:02}.png", i)
    (folder / "cat_99.png").write_bytes(b"no image")
    journal = Corrections(tmp_path / "corrections.csv", folder)
    journal.drop("cat_99.png")
    with pytest.warns(UserWarning, match="can't be read") as caught:
        data = from_name_re(folder, corrections=journal, **OPTIONS)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.corrected(journal)


def test_names_of_any_kind_are_found(tmp_path):
    folder = tmp_path / "d"
    names = ["a b.png", "ä.png", "x,y.png", 'q"q.png', "日本.png", "=1+1.png", "'.png"]
    if os.name == "posix":
        names += ["line\nbreak.png", os.fsdecode(b"caf\xe9.png"), "back\\slash.png"]
    for i, name in enumerate(names * 2): paint(folder / ("cat", "dog")[i % 2] / str(i) / name, i)
    files = image_files(folder)
    labels = [f.parent.parent.name for f in files]
    journal = Corrections(tmp_path / "corrections.csv", folder)
    swapped = [{"cat": "dog", "dog": "cat"}[label] for label in labels]
    for file, label in zip(files, swapped): journal.relabel(file, label)
    data = ImageData.from_lists(folder, files, labels, corrections=journal.file, **OPTIONS)
    found = {f: label for side in labels_of(data).values() for f, label in side.items()}
    assert found == dict(zip(files, swapped))
    moved = folder.rename(tmp_path / "moved")
    again = ImageData.from_name_func(moved, lambda f: f.parent.parent.name,
                                     corrections=journal.file, **OPTIONS)
    found = {folder / f.relative_to(moved): label
             for side in labels_of(again).values() for f, label in side.items()}
    assert found == dict(zip(files, swapped))


# ---- with a learner

def test_resume_notices_corrected_labels(pets, tmp_path):
    data = from_name_re(pets, **OPTIONS)
    learn = Learner(data, "resnet18", weights=None, device="cpu", model_dir=tmp_path, show=False)
    with patch.object(learn.trainer, "observers", [Stopping()]): learn.fit_one_cycle(2)
    assert not learn.run.finished
    journal = Corrections(tmp_path / "corrections.csv", pets)
    journal.relabel(data.train.paths[0], "owl")
    learn.set_data(data.corrected(journal))
    with pytest.raises(ValueError, match="can't resume exactly: .*data"): learn.resume()
    journal.undo()
    learn.set_data(data.corrected(journal))
    learn.resume()
    assert learn.run.finished


class Stopping:
    "Presses Ctrl-C in the first epoch."
    def step(self, step, record): signal.raise_signal(signal.SIGINT)


def test_features_are_refused(pets, tmp_path):
    data = from_name_re(pets, **OPTIONS)
    learn = Learner(data, "resnet18", weights=None, device="cpu", model_dir=tmp_path, show=False)
    features = precompute(learn.model, data, learn.engine)
    with pytest.raises(ValueError, match="holds features"): features.corrected(Corrections())


# ---- the file

NAMES = st.text(min_size=1).filter(lambda s: s.strip() and "\0" not in s and "/" not in s
                                   and "\\" not in s and s not in (".", "..")
                                   and not s.startswith("~"))
LABELS = st.one_of(st.text(min_size=1).filter(str.strip), st.integers(), st.booleans(),
                   st.floats(allow_nan=False, allow_infinity=False))

@examples(60)
@given(st.lists(st.tuples(st.sampled_from(["relabel", "drop", "undo"]), NAMES, LABELS)))
def test_it_reads_what_it_wrote(tmp_path_factory, edits):
    "Against a plain list; any text may be a name or a label."
    journal = Corrections(tmp_path_factory.mktemp("journal") / "corrections.csv")
    expected, lines = [], 1
    for action, name, label in edits:
        lines += action != "undo" or bool(expected)
        if action == "relabel":
            made = journal.relabel(name, label, before=label)
            assert made == Relabel(journal.key(name), label_to_text(label), label_to_text(label))
        elif action == "drop": made = journal.drop(name)
        else:
            assert journal.undo() == (expected.pop() if expected else None)
            continue
        expected.append(made)
    assert Corrections(journal.file).edits() == expected
    assert journal.current == {edit.file: edit for edit in expected}
    if journal.file.exists():
        assert journal.file.read_bytes().decode("utf-8").count("\n") == lines


@pytest.mark.parametrize("cut", few(12, random.Random(0).sample(range(120), 120)))
def test_a_line_that_was_cut_off_spoils_no_other(tmp_path, cut):
    "As after a power cut: the edits before it stay, and so does the next one."
    journal = Corrections(tmp_path / "corrections.csv")
    made = [journal.relabel(f"a, {i}.jpg", f"dögs, {i}", "cat") for i in range(3)]
    whole = journal.file.read_bytes()
    journal.file.write_bytes(whole[:cut])
    ends = [i + 1 for i, c in enumerate(whole) if c == ord("\n")]
    safe = made[:max(sum(end <= cut for end in ends) - 1, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = journal.edits()
    assert found[:len(safe)] == safe
    assert [(e.file, e.label) for e in found] in [[(e.file, e.label) for e in made[:k]]
                                                  for k in (len(safe), len(safe) + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = journal.drop("b.jpg")
        assert Corrections(journal.file).edits() == [*found, new]
    assert journal.file.read_bytes().startswith(whole[:max(cut, ends[0])])


WRITER = """
import sys
from lessonkit.data.corrections import Corrections
journal = Corrections(sys.argv[1])
for i in range(int(sys.argv[3])):
    journal.relabel(f"{sys.argv[2]}_{i}.jpg", "dog", "cat")
    print(i, flush=True)
"""

def writer(file, name, n):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(file), name, str(n)], text=True,
                            stdout=subprocess.PIPE)

@posix
@pytest.mark.slow
def test_several_programs_and_a_kill_lose_nothing(tmp_path):
    "Three write at once, and one of them is killed: what was acknowledged is there, line by line."
    journal = Corrections(tmp_path / "corrections.csv")
    programs = {name: writer(journal.file, name, 10**6 if name == "killed" else 200)
                for name in ("a", "b", "killed")}
    for _ in range(60): programs["killed"].stdout.readline()
    programs["killed"].send_signal(signal.SIGKILL)
    acknowledged = 60 + len(programs["killed"].stdout.read().split())
    for name in ("a", "b"): assert programs[name].wait(120) == 0
    for program in programs.values():
        program.stdout.close()
        program.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edits = journal.edits()
    for name, n in dict(a=200, b=200, killed=acknowledged).items():
        own = [edit.file for edit in edits if edit.file.startswith(name)]
        assert own[:n] == [f"{name}_{i}.jpg" for i in range(n)]
        assert len(own) <= n + (name == "killed")


@posix
def test_a_full_disk_changes_nothing(tmp_path):
    "The limit on the size of a file ends a write in the middle, as a full disk does."
    journal = Corrections(tmp_path / "corrections.csv")
    journal.relabel("a.jpg", "dog")
    whole = journal.file.read_bytes()
    code = (f"import resource, signal\nfrom lessonkit.data.corrections import Corrections\n"
            f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 10},) * 2)\n"
            f"try: Corrections({str(journal.file)!r}).relabel('b.jpg', 'x' * 100)\n"
            f"except OSError as e: print(e)")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert "can't write the journal" in done.stdout, done.stderr
    assert journal.file.read_bytes() == whole
    with patch("os.fsync", side_effect=OSError(errno.EIO, "Input/output error")), \
            pytest.raises(OSError, match="can't write the journal .*give another file"):
        journal.drop("b.jpg")
    assert journal.file.read_bytes() == whole


def test_other_files_are_left_alone(tmp_path):
    photo, table = tmp_path / "a.png", tmp_path / "labels.csv"
    paint(photo)
    table.write_text("file,label\na.png,cat\n")
    for file in (photo, table):
        before = file.read_bytes(), file.stat().st_mtime_ns
        for write in (lambda j: j.drop("a.png"), lambda j: j.undo(), lambda j: j.begin()):
            with pytest.raises(ValueError, match="no journal of corrections.*not touched"):
                write(Corrections(file))
        assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    with pytest.raises(OSError, match="can't write the journal"): Corrections(tmp_path).begin()
    with pytest.raises(OSError, match="can't write the journal"): Corrections(photo / "x").begin()


def test_a_journal_from_a_spreadsheet(tmp_path):
    "With the mark that Excel puts first, its line ends, a column of notes, and no last line end."
    file = tmp_path / "corrections.csv"
    file.write_bytes("\ufefffile,action,label,before,notes\r\na.jpg,Relabel,dög,,why\r\n"
                     "b.jpg,drop,,,\r\n,,,,\r\n".encode()[:-8])
    assert Corrections(file).current == {"a.jpg": Relabel("a.jpg", "dög"), "b.jpg": Drop("b.jpg")}


def test_keys_are_relative_to_the_data(tmp_path, monkeypatch):
    paint(tmp_path / "pets" / "cat" / "1.png")
    monkeypatch.chdir(tmp_path)
    for root in ("pets", tmp_path / "pets", Path("pets")):
        journal = Corrections("c.csv", root)
        for file in ("cat/1.png", "pets/cat/1.png", tmp_path / "pets/cat/1.png", Path("cat/1.png")):
            assert journal.key(file) == "cat/1.png"
    assert Corrections("c.csv").key("cat/../cat/1.png") == "cat/1.png"
    with pytest.raises(ValueError, match="is a whole path: give that folder"):
        Corrections("c.csv").drop(tmp_path / "pets/cat/1.png")
    journal = Corrections("c.csv", "pets").begin()
    monkeypatch.chdir(tmp_path / "pets")
    assert journal.begin().file == tmp_path / "c.csv"
    assert not (tmp_path / "pets" / "c.csv").exists()
