"""Named data sets: what is found where, and what is said when it is not."""
import os, subprocess, sys
from pathlib import Path

import pytest

from lessonkit import datasets, sample


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
    with pytest.raises(FileNotFoundError, match="sample, solar, pets"): datasets.get("cats")
    with pytest.raises(datasets.DatasetMissing, match="Ways out") as e: datasets._pets(tmp_path / "no")
    assert "LESSONKIT_DATA" in str(e.value) and ".fastai" in str(e.value) and "no" in str(e.value)
    assert datasets.find("cats") is None and "sample, solar, pets" in capsys.readouterr().out


def test_pets_are_found_where_people_keep_them(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for where, var in ((tmp_path / ".fastai/data/oxford-iiit-pet/images", None), (tmp_path / "d/oxford-iiit-pet/images", tmp_path / "d"), (tmp_path / "flat", tmp_path / "flat")):
        where.mkdir(parents=True)
        for i, file in enumerate(folder.glob("*.jpg")): (where / f"{'Abyssinian' if i % 2 else 'pug'}_{i}.jpg").write_bytes(file.read_bytes())
        (where / "Abyssinian_1.mat").write_bytes(b"x")
        monkeypatch.setenv("LESSONKIT_DATA", str(var)) if var else monkeypatch.delenv("LESSONKIT_DATA", raising=False)
        found = datasets._pets(tmp_path / "no")
        assert found.path == where and found.name == "pets" and set(found.table.label) == {"Abyssinian", "pug"} and "SA" in found.licence


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
