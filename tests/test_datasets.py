"""Named data sets: what is found where, and what is said when it is not."""
import os, subprocess, sys
from pathlib import Path

import pytest

from lessonkit import sample
from lessonkit.data import datasets
from lessonkit.data.image_data import ImageData


@pytest.fixture
def folder(tmp_path): return sample.tiny(tmp_path / "shapes", n=9)


def test_a_folder_of_named_files(folder):
    found = datasets.get(folder)
    assert found.name == "shapes" and found.path == folder and len(found.table) == 9 and found.table.columns.tolist() == ["file", "label"]
    assert len(found.wrong) == 0 and found.wrong.columns.tolist() == ["file", "label", "truth"]
    assert str(folder) not in repr(found)          # a committed output names no machine


def test_missing_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LESSONKIT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="sample, solar, pets, dogscats"): datasets.get("cats")
    with pytest.raises(datasets.DatasetMissing, match="Ways out") as e: datasets._pets(tmp_path / "no")
    assert "LESSONKIT_DATA" in str(e.value) and ".fastai" in str(e.value) and "no" in str(e.value)
    assert datasets.find("cats") is None and "sample, solar, pets, dogscats" in capsys.readouterr().out


def test_pets_are_found_where_people_keep_them(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for where, var in ((tmp_path / ".fastai/data/oxford-iiit-pet/images", None), (tmp_path / "d/oxford-iiit-pet/images", tmp_path / "d"), (tmp_path / "flat", tmp_path / "flat")):
        where.mkdir(parents=True)
        for i, file in enumerate(folder.glob("*.jpg")): (where / f"{'Abyssinian' if i % 2 else 'pug'}_{i}.jpg").write_bytes(file.read_bytes())
        (where / "Abyssinian_1.mat").write_bytes(b"x")
        monkeypatch.setenv("LESSONKIT_DATA", str(var)) if var else monkeypatch.delenv("LESSONKIT_DATA", raising=False)
        found = datasets._pets(tmp_path / "no")
        assert found.path == where and found.name == "pets" and set(found.table.label) == {"Abyssinian", "pug"} and "SA" in found.license


def dogs_and_cats(folder, form):
    "Six small pictures of each kind, in one of the forms in which they lie about."
    drawn = sorted(sample.tiny(folder.parent / "drawn", n=12).glob("*.jpg"))
    for i, file in enumerate(drawn):
        kind, part = ("cat", "dog")[i % 2], "valid" if i < 4 else "train"
        place = {"course": f"{part}/{kind}s", "singular": f"{part}/{kind}", "flat": "", "kaggle": "train"}[form]
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{kind}.{i}.jpg").write_bytes(file.read_bytes())
    (folder / "test1").mkdir(exist_ok=True)
    (folder / "test1/1.jpg").write_bytes(drawn[0].read_bytes())
    return folder


@pytest.mark.parametrize("form, labels, at", [("course", {"cats", "dogs"}, "."), ("singular", {"cat", "dog"}, "."), ("flat", {"cat", "dog"}, "."), ("kaggle", {"cat", "dog"}, "train")])
def test_dogs_and_cats_in_each_form(tmp_path, form, labels, at):
    folder = dogs_and_cats(tmp_path / "animals", form)
    found = datasets.get(folder)
    assert set(found.table.label) == labels and len(found.table) == 12 and found.path == folder / at and len(found.wrong) == 0
    assert all((found.path / f).is_file() and label[:3] in Path(f).name for f, label in zip(found.table.file, found.table.label))
    split = form in ("course", "singular")
    assert ("valid" in found.table) == split
    options = dict(valid_col="valid") if split else {}
    data = ImageData.from_df(found.path, found.table, size=32, bs=4, **options)
    assert set(data.classes) == labels and data.train.n + data.valid.n == 12
    if split: assert [p.relative_to(folder).parts[0] for p in data.valid.paths] == ["valid"] * 4


def test_dogs_and_cats_where_people_keep_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LESSONKIT_DATA", raising=False)
    nothing = tmp_path / "no"
    with pytest.raises(datasets.DatasetMissing, match="LESSONKIT_DATA .not set.") as e: datasets._dogscats(nothing)
    for words in ("data/dogscats", ".fastai", "kaggle.com", "datasets.get('sample')"): assert words in str(e.value)
    kaggle = dogs_and_cats(tmp_path / "input/competition/deep", "kaggle")
    assert datasets._dogscats(tmp_path / "input").path == kaggle / "train"
    for place, form, var in ((".fastai/data/dogscats", "course", None), ("data/dogscats", "course", None), ("teacher/dogs-vs-cats", "kaggle", "teacher"), ("mine", "course", "mine")):
        folder = dogs_and_cats(tmp_path / place, form)
        monkeypatch.setenv("LESSONKIT_DATA", str(tmp_path / var)) if var else monkeypatch.delenv("LESSONKIT_DATA", raising=False)
        found = datasets._dogscats(tmp_path / "input")     # each goes before those before
        assert found.path.resolve() == (folder / "train" if form == "kaggle" else folder) and found.name == "dogscats" and "Asirra" in found.source


def test_folders_that_are_something_else(tmp_path):
    "Other classes are a data set of their own; half a folder is none; a folder of cats alone is not dogs and cats."
    found = datasets.get(sample.tiny(tmp_path / "boxes", n=30, layout="folders"))
    assert found.name == "boxes" and set(found.table.label) == {"circle", "square", "stripes"} and found.table.valid.sum() == 6
    assert datasets._dogscats_at(tmp_path / "boxes", **datasets._DOGSCATS) is None
    (tmp_path / "half/train/cats").mkdir(parents=True)
    (tmp_path / "half/valid/cats").mkdir(parents=True)
    with pytest.raises(datasets.DatasetMissing, match="'half' should have folders train and valid"): datasets.get(tmp_path / "half")
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/cat.1.jpg").write_bytes(next((tmp_path / "boxes/train/circle").iterdir()).read_bytes())
    with pytest.raises(ValueError, match="1 of 1 files in 'cats' are not called label_number.jpg, such as cat.1.jpg"): datasets.get(tmp_path / "cats")


def test_solar_without_importing_it(tmp_path):
    "In a process of its own, in which elpv_dataset is a package that can't be imported."
    package = tmp_path / "elpv_dataset"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError")
    (package / "data/labels.csv").write_text("images/a.png  0.0                 mono\nimages/b.png  0.6666666666666666  poly\n")
    code = "from lessonkit import datasets; t = datasets.get('solar').table; print(t.label.tolist(), t.doubt.tolist(), t.cell.tolist())"
    path = os.pathsep.join([str(tmp_path), str(Path(datasets.__file__).parents[1])])
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, text=True, capture_output=True)
    assert run.stdout.strip() == "['functional', 'defective'] [False, True] ['mono', 'poly']", run.stderr


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(datasets.DatasetMissing, match=r"pip install lessonkit\[solar\]"): datasets.get("solar")


def test_nothing_that_is_imported_is_heavy():
    code = "import sys; from lessonkit import datasets; sys.exit(bool({'pandas', 'matplotlib', 'elpv_dataset'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(datasets.__file__).parents[1])}).returncode == 0
