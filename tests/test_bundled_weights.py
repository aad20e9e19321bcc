"""The weights inside the kit: found, checked, loaded, remembered; and how they get there."""
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torchvision import models

from lessonkit.core.files import load_tensors, save_tensors
from lessonkit.data import sample
from lessonkit.data.image_data import ImageData, imagenet_stats, Stats
from lessonkit.distill import export_student, linear_probe, new_student
from lessonkit.learner import Learner
from lessonkit.model.create import create_model
from lessonkit.model.weights import ASSETS, bundled_weights, WeightsUnavailable
from lessonkit.train.engine import Engine

ROOT = Path(__file__).resolve().parents[1]
SPLIT = ROOT / "data/resnet18_distilled/split.py"
SMALL = "shufflenet_v2_x0_5"  # torchvision's smallest networks are quick to read


def load_split():
    "The script that fills lessonkit/assets/, as a module."
    spec = importlib.util.spec_from_file_location("split_student", SPLIT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


split_student = load_split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("tiny"))
    return ImageData.from_name_re(folder, r"^(.+)_\d+", size=32, bs=16)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    "The file of a small student with random weights."
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    export_student(path, new_student(SMALL, seed=1), dict(arch=SMALL, steps=3))
    return path


@pytest.fixture
def folder(student, tmp_path):
    "A folder with the parts of that file, and their index."
    split_student.split(student, tmp_path / "assets")
    return tmp_path / "assets"


def make_learner(data, tmp_path, **options):
    options = dict(arch="resnet18", weights="lessonkit") | options
    return Learner(data, model_dir=tmp_path, device="cpu", precision="fp32", cache=False,
                   show=False, **options)


def flip(path, position):
    "Change one bit of a file."
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# What is inside the kit

def test_the_parts_hold_a_whole_resnet18():
    tensors, metadata, source = bundled_weights("resnet18")
    net = models.resnet18(weights=None)
    net.load_state_dict(tensors)
    floats = [v for v in tensors.values() if v.is_floating_point()]
    assert {v.dtype for v in floats} == {torch.float16}
    assert all(v.isfinite().all() for v in floats)
    assert metadata["arch"] == "resnet18"
    assert source == f"lessonkit's distilled resnet18, SHA-256 {metadata['student'][:16]}"


def test_they_are_those_of_a_trained_student():
    "Not those of a stand-in with random weights, which agrees with its teacher once in 1,000."
    metadata = bundled_weights("resnet18")[1]
    assert metadata["photographs"] > 10_000
    assert metadata["agreement"]["low"] > .2


def test_no_part_is_larger_than_12_mb():
    index = json.loads((ASSETS / "weights.json").read_text())
    sizes = {path.name: path.stat().st_size for path in ASSETS.glob("*.safetensors")}
    names = [f"resnet18-distilled-{i}-of-2.safetensors" for i in (1, 2)]
    assert sorted(sizes) == sorted(index["resnet18"]) == names
    assert max(sizes.values()) <= 12_000_000


def test_the_parts_together_are_the_file_that_was_split(tmp_path):
    tensors, metadata, _ = bundled_weights("resnet18")
    digest = metadata.pop("student")
    content = save_tensors(tmp_path / "student.safetensors", tensors, metadata).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_takes_the_parts_and_no_other_weights(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    names = ["lessonkit/assets/a-1-of-2.safetensors", "student.safetensors",
             "nbs/lessons/a.safetensors", "data/resnet18_distilled/student.safetensors"]
    found = subprocess.run(["git", "check-ignore", *names], cwd=tmp_path, text=True,
                           capture_output=True).stdout.split()
    assert found == names[1:]


# Learners

def test_a_learner_takes_them(data, tmp_path):
    learn = make_learner(data, tmp_path)
    tensors, metadata, source = bundled_weights("resnet18")
    assert (learn.model.arch, learn.model.weights) == ("resnet18", source)
    assert learn.model.frozen == len(learn.model.groups) - 1
    for name, value in learn.model.body.state_dict().items():
        assert torch.equal(value, tensors[name].to(value.dtype)), name
    assert repr(learn).startswith(f"Learner: resnet18 ({source})")
    learn.fit_one_cycle(1)
    preds = learn.get_preds()
    assert preds.probs.shape == (data.valid.n, data.c)
    assert preds.probs.isfinite().all()


def test_pixels_are_standardized_as_the_student_was_trained(data, tmp_path):
    stats = bundled_weights("resnet18")[1]["stats"]
    assert Stats(tuple(stats["mean"]), tuple(stats["std"])) == imagenet_stats
    normalize = make_learner(data, tmp_path).model.normalize
    assert normalize.mean.flatten().tolist() == pytest.approx(stats["mean"])
    assert normalize.std.flatten().tolist() == pytest.approx(stats["std"])


def test_the_statistics_come_from_the_file(folder, monkeypatch):
    "Not from torchvision's usual ones, should a student ever be trained with others."
    other = dict(mean=[.5, .5, .5], std=[.25, .25, .25])
    tensors, metadata, source = bundled_weights(SMALL, folder)
    import lessonkit.model.create as create
    monkeypatch.setattr(create, "bundled_weights",
                        lambda arch: (tensors, metadata | dict(stats=other), source))
    model = create_model(SMALL, weights="lessonkit")
    assert model.normalize.mean.flatten().tolist() == [.5, .5, .5]
    assert model.normalize.std.flatten().tolist() == [.25, .25, .25]


def test_the_same_network_as_from_the_whole_file(folder, student, monkeypatch):
    import lessonkit.model.create as create
    found = bundled_weights(SMALL, folder)
    monkeypatch.setattr(create, "bundled_weights", lambda arch: found)
    parts, whole = (create_model(SMALL, weights=w) for w in ("lessonkit", student))
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_saved_models_remember_where_their_weights_came_from(data, tmp_path):
    learn = make_learner(data, tmp_path)
    learn.save("mine")
    source = bundled_weights("resnet18")[2]
    assert load_tensors(tmp_path / "mine.safetensors")[1]["weights"] == source
    other = make_learner(data, tmp_path, weights=None, head="linear")
    assert other.model.weights == ""
    other.load("mine")
    assert other.model.weights == source


def test_gray_images(data):
    color = create_model("resnet18", weights="lessonkit")
    gray = create_model("resnet18", weights="lessonkit", channels=1)
    summed = color.body.conv1.weight.sum(1, keepdim=True)
    assert torch.allclose(gray.body.conv1.weight, summed)


def test_a_linear_probe_takes_them(data):
    found = linear_probe(data, "resnet18", "lessonkit", Engine("cpu", "fp32"))
    assert found.n == data.valid.n


def test_no_network_connection_is_needed(monkeypatch):
    def refuse(*args, **options): raise AssertionError("it asked for a connection")
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    assert "lessonkit" in create_model("resnet18", weights="lessonkit").weights


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_file_or_folder_of_the_same_name_does_not_matter(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind == "folder": Path("lessonkit").mkdir()
    else: Path("lessonkit").write_text("no weights")
    assert "SHA-256" in create_model("resnet18", weights="lessonkit").weights


# Other networks

@pytest.mark.parametrize(("arch", "name"), [
    ("resnet34", "resnet34"), (models.resnet50, "resnet50"), ("vgg11_bn", "vgg11_bn"),
    ("timm:resnet18", "timm:resnet18"), ("resnet10t", "timm:resnet10t"),
    (None, "timm:tf_efficientnet_lite0"), (models.resnet18(), "own:ResNet")])
def test_other_networks_are_told_which_one_there_is(arch, name):
    text = f"for torchvision's 'resnet18', and none for '{name}': pass arch='resnet18'"
    with pytest.raises(ValueError, match=text): create_model(arch, weights="lessonkit")


@pytest.mark.parametrize("word", ["lesonkit", "LessonKit", "lesson kit"])
def test_typing_errors_in_the_word(word):
    with pytest.raises(ValueError, match="Did you mean 'lessonkit'"):
        create_model("resnet18", weights=word)


# Damage

@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("place", [0, 9, .1, .5, .9, -1])
def test_one_wrong_bit_in_a_part(part, place, folder):
    path = sorted(folder.glob("*.safetensors"))[part]
    position = place if isinstance(place, int) else int(place * path.stat().st_size)
    flip(path, position)
    text = f"'{path.name}' is damaged, because its SHA-256 is not .*--force-reinstall"
    with pytest.raises(WeightsUnavailable, match=text): bundled_weights(SMALL, folder)


def test_one_wrong_bit_in_the_index(folder):
    "Wherever it is, what is read is right, or refused."
    path = folder / "weights.json"
    whole, (tensors, metadata, source) = path.read_bytes(), bundled_weights(SMALL, folder)
    refused = 0
    for position in range(len(whole)):
        flip(path, position)
        try: found = bundled_weights(SMALL, folder)
        except (WeightsUnavailable, ValueError): refused += 1
        else:
            assert found[1:] == (metadata, source)
            assert found[0].keys() == tensors.keys()
            assert all(torch.equal(v, tensors[k]) for k, v in found[0].items())
        path.write_bytes(whole)
    assert refused > .9 * len(whole)


def test_what_is_missing(folder):
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        text = f"'{path.name}' can't be read .*No such file.*--force-reinstall"
        with pytest.raises(WeightsUnavailable, match=text): bundled_weights(SMALL, folder)
        path.write_bytes(b"")
        with pytest.raises(WeightsUnavailable, match=path.name): bundled_weights(SMALL, folder)
        path.write_bytes(content)
    bundled_weights(SMALL, folder)
    shutil.rmtree(folder)
    with pytest.raises(WeightsUnavailable, match="reinstall"): bundled_weights(SMALL, folder)


def test_parts_in_place_of_each_other(folder):
    first, second = sorted(folder.glob("*.safetensors"))
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    with pytest.raises(WeightsUnavailable, match="1-of-2.safetensors' is damaged"):
        bundled_weights(SMALL, folder)


# Splitting

def test_every_tensor_is_whole_in_one_part(student, folder):
    tensors, metadata = load_tensors(student)
    parts = [load_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    names = [name for part, _ in parts for name in part]
    assert sorted(names) == sorted(tensors)
    digest = hashlib.sha256(student.read_bytes()).hexdigest()
    for part, known in parts:
        assert all(torch.equal(t, tensors[name]) for name, t in part.items())
        assert known == metadata | dict(student=digest)


def test_the_same_file_gives_the_same_parts(student, folder, tmp_path):
    split_student.split(student, tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_parts_are_about_equally_large():
    sizes = {"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}
    assert split_student.assign(sizes, 2) == [["a", "d"], ["b", "c", "e"]]
    assert split_student.assign(dict(reversed(sizes.items())), 2) == [["a", "d"], ["b", "c", "e"]]


def test_parts_that_were_there_before_are_replaced(student, folder, tmp_path):
    other = tmp_path / "other.safetensors"
    export_student(other, new_student(SMALL, seed=2), dict(arch=SMALL))
    split_student.split(other, folder, parts=3)
    names = [f"{SMALL}-distilled-{i}-of-3.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "weights.json"]
    found, expected = bundled_weights(SMALL, folder)[0], load_tensors(other)[0]
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def test_several_networks(folder, tmp_path):
    other = tmp_path / "other.safetensors"
    second = "mobilenet_v3_small"
    export_student(other, new_student(second), dict(arch=second))
    split_student.split(other, folder)
    for arch in (SMALL, second): assert bundled_weights(arch, folder)[1]["arch"] == arch
    with pytest.raises(ValueError, match=f"'{second}', '{SMALL}', and none for 'resnet18'"):
        bundled_weights("resnet18", folder)


@pytest.mark.parametrize(("metadata", "head", "text"), [
    ({}, True, "no arch in its metadata"), (dict(arch=SMALL), False, "has no classifier"),
    (dict(arch="resnet18"), True, "not those of a ResNet")])
def test_files_that_the_kit_could_not_use(metadata, head, text, tmp_path):
    path = tmp_path / "student.safetensors"
    export_student(path, new_student(SMALL), metadata, head)
    with pytest.raises((ValueError, WeightsUnavailable), match=text):
        split_student.split(path, tmp_path / "assets")
    assert not (tmp_path / "assets").exists()


def test_parts_that_would_be_too_large(student, folder, monkeypatch):
    "Then the parts that were there before stay."
    monkeypatch.setattr(split_student, "AT_MOST", 2_000_000)
    with pytest.raises(ValueError, match="1-of-3.* bytes, and 2000000 are allowed"):
        split_student.split(student, folder, parts=3)
    assert len(list(folder.iterdir())) == 3
    bundled_weights(SMALL, folder)


def test_a_file_that_make_py_did_not_write(tmp_path):
    path = save_tensors(tmp_path / "a.safetensors", dict(w=torch.ones(2)),
                        dict(format=1, stats=asdict(imagenet_stats)))
    with pytest.raises(ValueError, match="no arch, head in its metadata"):
        split_student.split(path, tmp_path / "assets")


def test_the_script(student, folder, tmp_path):
    command = [sys.executable, "-P", SPLIT, student, "--folder", tmp_path / "made"]
    done = subprocess.run(command, env=os.environ | dict(OMP_NUM_THREADS="1"), text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    *parts, source = done.stdout.splitlines()
    assert source == bundled_weights(SMALL, folder)[2]
    index = json.loads((tmp_path / "made/weights.json").read_text())[SMALL]
    assert [line.split(": ")[0] for line in parts] == list(index)
    assert [line.split()[-1] for line in parts] == list(index.values())
