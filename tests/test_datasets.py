"""Named data sets: what is found where, and the message if it isn't."""
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lessonkit.data import datasets, sample
from lessonkit.data.archives import ArchiveError
from lessonkit.data.downloads import DownloadError
from lessonkit.data.image_data import ImageData
from web_site import Answer, web_site

NAMES = "sample, solar, pets, dogscats, imagenette, planet"
KIT = str(Path(datasets.__file__).parents[2])  # the folder to put into PYTHONPATH


@pytest.fixture
def folder(tmp_path): return sample.tiny(tmp_path / "shapes", n=9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "What this machine has downloaded is not found."
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))


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
    with pytest.raises(FileNotFoundError, match=NAMES):
        datasets.get("cats")
    with pytest.raises(datasets.DatasetMissing, match="What you can do") as e:
        datasets.get_pets(tmp_path / "no")
    for words in ("LESSONKIT_DATA", ".fastai", "no"): assert words in str(e.value)
    assert datasets.find("cats") is None
    assert NAMES in capsys.readouterr().out


@pytest.mark.parametrize("where, data", [
    (".fastai/data/oxford-iiit-pet/images", None),
    ("cache/datasets/oxford-iiit-pet/images", None),
    ("content/oxford-iiit-pet", None),
    ("d/oxford-iiit-pet/images", "d"),
    ("flat", "flat"),
])
def test_pets_are_found_where_people_keep_them(tmp_path, folder, monkeypatch, where, data):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "COLAB", (tmp_path / "content", tmp_path / "nothing"))
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
            "heavy = {'pandas', 'matplotlib', 'elpv_dataset', 'requests'}; "
            "sys.exit(bool(heavy & set(sys.modules)))")
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": KIT})
    assert run.returncode == 0


# ---- downloads

@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_site() as site: yield site


def packed(folder, inside):
    "The bytes of a zip file."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for path in sorted(folder.rglob("*.*")):
            z.write(path, f"{inside}/{path.relative_to(folder).as_posix()}")
    return file.getvalue()


def test_checksums_are_those_that_torchvision_publishes():
    from torchvision.datasets import Imagenette, OxfordIIITPet
    published = {*OxfordIIITPet._RESOURCES, *Imagenette._ARCHIVES.values()}
    for where in (datasets._PETS, datasets._IMAGENETTE_SEARCH):
        assert (where.published.url, where.published.md5) in published
    assert datasets.IMAGENETTE == {number: names[0] for number, names in
                                   Imagenette._WNID_TO_CLASS.items()}


def published(monkeypatch, site, search, content, md5=None):
    "Let a search believe that its archive is at `site`."
    archive = getattr(datasets, search).published
    md5 = md5 or hashlib.md5(content).hexdigest()
    site["/archive"] = Answer(content)
    new = replace(archive, url=f"{site.url}/archive", md5=md5)
    changed = replace(getattr(datasets, search), published=new, usual=())
    monkeypatch.setattr(datasets, search, changed)


@pytest.fixture
def like_pets(tmp_path, folder):
    pets = tmp_path / "drawn pets"
    pets.mkdir()
    for i, file in enumerate(sorted(folder.glob("*.jpg"))):
        breed = "Abyssinian" if i % 2 else "pug"
        (pets / f"{breed}_{i}.jpg").write_bytes(file.read_bytes())
    (pets / "Abyssinian_1.mat").write_bytes(b"x")
    return packed(pets, "images")


def test_pets_are_downloaded_once(tmp_path, monkeypatch, site, like_pets):
    set_data_folder(monkeypatch, None)
    published(monkeypatch, site, "_PETS", like_pets)
    no = tmp_path / "no"
    with pytest.raises(datasets.DatasetMissing, match="download=True"): datasets.get_pets(no)
    assert site.requests == []
    found = datasets.get_pets(no, download=True)
    assert found.path == tmp_path / "cache/datasets/oxford-iiit-pet/images"
    assert set(found.table.label) == {"Abyssinian", "pug"}
    for again in (datasets.get_pets(no), datasets.get_pets(no, download=True)):
        assert again.table.equals(found.table)
    assert len(site.requests) == 1
    here = [p.name for p in (tmp_path / "cache/datasets").glob("[!.]*")]
    assert here == ["oxford-iiit-pet"]   # the archive is gone


def test_pets_with_another_checksum_are_not_used(tmp_path, monkeypatch, site, like_pets):
    set_data_folder(monkeypatch, None)
    published(monkeypatch, site, "_PETS", like_pets, md5=32*"0")
    with pytest.raises(DownloadError, match="its md5 is"):
        datasets.get_pets(tmp_path / "no", download=True)
    with pytest.raises(datasets.DatasetMissing): datasets.get_pets(tmp_path / "no")


def like_imagenette(folder, drawn):
    files = sorted(drawn.glob("*.jpg"))
    for part in ("train", "val"):
        for number in datasets.IMAGENETTE:
            place = folder / part / number
            place.mkdir(parents=True)
            (place / f"{number}_1.JPEG").write_bytes(files[0].read_bytes())
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    return folder


def test_imagenette(tmp_path, monkeypatch, site, folder):
    set_data_folder(monkeypatch, None)
    made = like_imagenette(tmp_path / "a folder", folder)
    published(monkeypatch, site, "_IMAGENETTE_SEARCH", packed(made, "imagenette2-320"))
    found = datasets.get_imagenette(tmp_path / "no", download=True)
    assert (len(found.table), len(found.labels), found.table.valid.sum()) == (20, 10, 10)
    assert "golf ball" in found.labels
    assert datasets.get(made).table.equals(found.table)
    data = ImageData.from_df(found.path, found.table, valid_col="valid", size=32, bs=4)
    assert data.classes == tuple(found.labels)


@pytest.mark.parametrize("table, images", [
    ("train_v2.csv", "train-jpg"), ("train_classes.csv", "train-jpg"), ("labels.csv", "train"),
    ("train_v2.csv/train_v2.csv", "train-jpg")])
def test_planet(tmp_path, monkeypatch, folder, table, images):
    set_data_folder(monkeypatch, None)
    deep = tmp_path / "input/some data/planet"
    (deep / table).parent.mkdir(parents=True)
    (deep / images).mkdir()
    for i, file in enumerate(sorted(folder.glob("*.jpg"))):
        (deep / images / f"train_{i}.jpg").write_bytes(file.read_bytes())
    tags = ["clear primary", "haze", "agriculture clear"]*4
    rows = [f"train_{i},{text}" for i, text in enumerate(tags)]
    (deep / table).write_text("\n".join(["image_name,tags", *rows]) + "\n")
    found = datasets.get_planet(tmp_path / "input")
    assert found.label_delim == " "
    assert found.labels == ["agriculture", "clear", "haze", "primary"]
    assert "4 labels" in repr(found)
    assert len(found.table) == 9   # three rows have no image
    assert len(found.wrong) == 0
    data = ImageData.from_df(found.path, found.table, label_delim=found.label_delim, size=32, bs=4)
    assert data.classes == tuple(found.labels)


@pytest.mark.parametrize("name", ["planet", "dogscats"])
def test_what_has_no_public_address(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    set_data_folder(monkeypatch, None)
    getter = getattr(datasets, f"get_{name}")
    with pytest.raises(datasets.DatasetMissing, match="(?s)kaggle.com.*no public address"):
        getter(tmp_path / "no", download=True)


def test_an_address(tmp_path, site, folder):
    content = packed(folder, "some folder")
    digest = hashlib.sha256(content).hexdigest()
    site["/shapes.tar.gz"] = Answer(content)
    url = f"{site.url}/shapes.tar.gz"
    with pytest.raises(datasets.DatasetMissing, match="add download=True"): datasets.get(url)
    with pytest.raises(DownloadError, match="sha256"):
        datasets.get(url, download=True, sha256=64*"0")
    found = datasets.get(url, download=True, sha256=digest)
    assert (found.name, found.source, len(found.table)) == ("shapes", url, 9)
    site["/shapes.tar.gz"] = Answer(status=404)
    assert datasets.get(url, download=True).table.equals(found.table)
    assert datasets.find(url, sha256=digest).path == found.path
    with pytest.raises(ValueError, match="archive with the sha256"):
        datasets.get(url, sha256=64*"1")


def test_a_hostile_address_leaves_nothing(tmp_path, site):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z: z.writestr("../cat_1.jpg", b"out")
    site["/x.zip"] = Answer(file.getvalue())
    for _ in range(2):
        with pytest.raises(ArchiveError, match="lead out"):
            datasets.get(f"{site.url}/x.zip", download=True)
    assert list((tmp_path / "cache").rglob("[!.]*")) == [tmp_path / "cache/datasets"]


def test_archives_and_what_is_in_them(tmp_path, folder):
    file = tmp_path / "My Shapes.ZIP"
    file.write_bytes(packed(folder, "a/b"))
    found = datasets.get(file)
    assert (found.name, found.source) == ("My Shapes", "the archive My Shapes.ZIP")
    assert len(found.table) == 9
    assert datasets.get(str(file)).path == found.path
    file.write_bytes(packed(sample.tiny(tmp_path / "more", n=6), "a"))
    assert len(datasets.get(file).table) == 6   # another archive of the same name
    with pytest.raises(ValueError, match="should be"): datasets.get(file, sha256=64*"0")
    for name in ("sample", str(folder)):
        with pytest.raises(ValueError, match="is neither"): datasets.get(name, sha256=64*"0")


LAYOUTS = {   # name: (files, labels)
    "by class": (["cat/1.jpg", "dog/2.jpg", "dog/deep/3.jpg"], {"cat", "dog"}),
    "by class, wrapped": (["x/y/cat/1.jpg", "x/y/dog/2.jpg"], {"cat", "dog"}),
    "train and val": (["train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/2.jpg"], {"a", "b"}),
    "train and test": (["train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"], {"a", "b"}),
    "train only": (["train/a/1.jpg", "train/b/2.jpg"], {"a", "b"}),
    "by name": (["a_1.jpg", "b_2.jpg", "notes.txt"], {"a", "b"}),
    "by name in images": (["images/a_1.jpg", "images/b_2.jpg", "lists/x.txt"], {"a", "b"}),
    "hidden folders": (["cat/1.jpg", "dog/2.jpg", ".trash/bird/3.jpg"], {"cat", "dog"}),
}

@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_folders(tmp_path, folder, layout):
    files, labels = LAYOUTS[layout]
    photo = next(folder.glob("*.jpg")).read_bytes()
    for file in files:
        path = tmp_path / "mine" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo)
    found = datasets.get(tmp_path / "mine")
    assert found.name == "mine"
    assert set(found.table.label) == labels
    assert all((found.path / file).is_file() for file in found.table.file)
