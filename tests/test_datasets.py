"""Named data sets: what is found where, and the message if it isn't."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lessonkit.data import datasets, sample
from lessonkit.data.image_data import ImageData

KIT = str(Path(datasets.__file__).parents[2])  # the folder to put into PYTHONPATH


@pytest.fixture
def folder(tmp_path): return sample.tiny(tmp_path / "shapes", n=9)


def set_data_folder(monkeypatch, path):
    "Set LESSONKIT_DATA, or unset it for None."
    if path is None: monkeypatch.delenv("LESSONKIT_DATA", raising=False)
    else: monkeypatch.setenv("LESSONKIT_DATA", str(path))


def test_a_folder_of_named_files(folder):
    found = datasets.get(folder)
    assert found.name == "shapes"
    assert found.path == folder
    assert len(found.table) == 9
    assert found.table.columns.tolist() == ["file", "label"]
    assert len(found.wrong) == 0
    assert found.wrong.columns.tolist() == ["file", "label", "truth"]
    assert str(folder) not in repr(found)  # a committed output names no machine


def test_missing_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    set_data_folder(monkeypatch, None)
    with pytest.raises(FileNotFoundError, match="sample, solar, pets, dogscats"):
        datasets.get("cats")
    with pytest.raises(datasets.DatasetMissing, match="What you can do") as e:
        datasets.get_pets(tmp_path / "no")
    for words in ("LESSONKIT_DATA", ".fastai", "no"): assert words in str(e.value)
    assert datasets.find("cats") is None
    assert "sample, solar, pets, dogscats" in capsys.readouterr().out


@pytest.mark.parametrize("where, data", [
    (".fastai/data/oxford-iiit-pet/images", None),
    ("d/oxford-iiit-pet/images", "d"),
    ("flat", "flat"),
])
def test_pets_are_found_where_people_keep_them(tmp_path, folder, monkeypatch, where, data):
    monkeypatch.setenv("HOME", str(tmp_path))
    where = tmp_path / where
    where.mkdir(parents=True)
    for i, file in enumerate(folder.glob("*.jpg")):
        breed = "Abyssinian" if i % 2 else "pug"
        (where / f"{breed}_{i}.jpg").write_bytes(file.read_bytes())
    (where / "Abyssinian_1.mat").write_bytes(b"x")
    set_data_folder(monkeypatch, data and tmp_path / data)
    found = datasets.get_pets(tmp_path / "no")
    assert found.path == where
    assert found.name == "pets"
    assert set(found.table.label) == {"Abyssinian", "pug"}
    assert "SA" in found.license


def dogs_and_cats(folder, form):
    "Six small images of each kind, in one of the forms in which people have them."
    drawn = sorted(sample.tiny(folder.parent / "drawn", n=12).glob("*.jpg"))
    for i, file in enumerate(drawn):
        kind, part = ("cat", "dog")[i % 2], "valid" if i < 4 else "train"
        places = {"course": f"{part}/{kind}s", "singular": f"{part}/{kind}", "kaggle": "train"}
        place = folder / places.get(form, "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{kind}.{i}.jpg").write_bytes(file.read_bytes())
    (folder / "test1").mkdir(exist_ok=True)
    (folder / "test1/1.jpg").write_bytes(drawn[0].read_bytes())
    return folder


FORMS = [("course", {"cats", "dogs"}, "."), ("singular", {"cat", "dog"}, "."),
         ("flat", {"cat", "dog"}, "."), ("kaggle", {"cat", "dog"}, "train")]


@pytest.mark.parametrize("form, labels, at", FORMS)
def test_dogs_and_cats_in_each_form(tmp_path, form, labels, at):
    folder = dogs_and_cats(tmp_path / "animals", form)
    found = datasets.get(folder)
    assert set(found.table.label) == labels
    assert len(found.table) == 12
    assert found.path == folder / at
    assert len(found.wrong) == 0
    for file, label in zip(found.table.file, found.table.label):
        assert (found.path / file).is_file()
        assert label[:3] in Path(file).name


@pytest.mark.parametrize("form, labels, at", FORMS)
def test_dogs_and_cats_become_image_data(tmp_path, form, labels, at):
    folder = dogs_and_cats(tmp_path / "animals", form)
    found = datasets.get(folder)
    split = form in ("course", "singular")
    assert ("valid" in found.table) == split
    options = dict(valid_col="valid") if split else {}
    data = ImageData.from_df(found.path, found.table, size=32, bs=4, **options)
    assert set(data.classes) == labels
    assert data.train.n + data.valid.n == 12
    if split: assert [p.relative_to(folder).parts[0] for p in data.valid.paths] == ["valid"] * 4


def test_missing_dogs_and_cats_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    set_data_folder(monkeypatch, None)
    with pytest.raises(datasets.DatasetMissing, match="LESSONKIT_DATA .not set.") as e:
        datasets.get_dogscats(tmp_path / "no")
    for words in ("data/dogscats", ".fastai", "kaggle.com", "datasets.get('sample')"):
        assert words in str(e.value)


def test_dogs_and_cats_where_people_keep_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    set_data_folder(monkeypatch, None)
    kaggle = dogs_and_cats(tmp_path / "input/competition/deep", "kaggle")
    assert datasets.get_dogscats(tmp_path / "input").path == kaggle / "train"
    places = [(".fastai/data/dogscats", "course", None), ("data/dogscats", "course", None),
              ("teacher/dogs-vs-cats", "kaggle", "teacher"), ("mine", "course", "mine")]
    for place, form, data in places:  # each is preferred to those before it
        folder = dogs_and_cats(tmp_path / place, form)
        set_data_folder(monkeypatch, data and tmp_path / data)
        found = datasets.get_dogscats(tmp_path / "input")
        assert found.path.resolve() == (folder / "train" if form == "kaggle" else folder)
        assert found.name == "dogscats"
        assert "Asirra" in found.source


def test_folders_of_other_classes_are_a_data_set_of_their_own(tmp_path):
    found = datasets.get(sample.tiny(tmp_path / "boxes", n=30, layout="folders"))
    assert found.name == "boxes"
    assert set(found.table.label) == {"circle", "square", "stripes"}
    assert found.table.valid.sum() == 6
    assert datasets.read_dogscats(tmp_path / "boxes") is None


def test_folders_without_images_are_no_data_set(tmp_path):
    (tmp_path / "half/train/cats").mkdir(parents=True)
    (tmp_path / "half/valid/cats").mkdir(parents=True)
    with pytest.raises(datasets.DatasetMissing, match="'half' should have folders train and valid"):
        datasets.get(tmp_path / "half")


def test_cats_alone_are_not_dogs_and_cats(tmp_path):
    drawn = sample.tiny(tmp_path / "drawn", n=3)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/cat.1.jpg").write_bytes(next(drawn.glob("*.jpg")).read_bytes())
    text = "1 of 1 files in 'cats' are not called label_number.jpg: cat.1.jpg"
    with pytest.raises(ValueError, match=text): datasets.get(tmp_path / "cats")


def test_solar_without_importing_it(tmp_path):
    "In a process of its own, in which elpv_dataset is a package that can't be imported."
    package = tmp_path / "elpv_dataset"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError")
    rows = "images/a.png  0.0                 mono\nimages/b.png  0.6666666666666666  poly\n"
    (package / "data/labels.csv").write_text(rows)
    code = ("from lessonkit.data import datasets; t = datasets.get('solar').table; "
            "print(t.label.tolist(), t.doubt.tolist(), t.cell.tolist())")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), KIT])}
    run = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True)
    expected = "['functional', 'defective'] [False, True] ['mono', 'poly']"
    assert run.stdout.strip() == expected, run.stderr


def test_solar_without_the_package(monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(datasets.DatasetMissing, match=r"pip install lessonkit\[solar\]"):
        datasets.get("solar")


def test_nothing_heavy_is_imported():
    code = ("import sys; from lessonkit.data import datasets; "
            "sys.exit(bool({'pandas', 'matplotlib', 'elpv_dataset'} & set(sys.modules)))")
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": KIT})
    assert run.returncode == 0
