"""Nothing of yours is deleted, nothing damaged is loaded, and nothing is saved where it shouldn't.

Files of models, of weights and of features: damaged, foreign, of another model, written by two
processes at once, and in places where nothing can be written.
"""
import json, os, pickle, random, shutil, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from lessonkit.core.files import (
    cache_dir, CheckpointError, fingerprint, load_tensors, remove_leftovers, save_tensors,
    write_atomic,
)
from lessonkit.data import sample
from lessonkit.data.image_data import ImageData, Stats
from lessonkit.data.images import image_files
from lessonkit.learner import Learner
from lessonkit.model.create import create_model
from lessonkit.model.weights import WeightsUnavailable
from tiers import few

PACKAGE = Path(__file__).resolve().parents[1]
ARCH = "timm:test_efficientnet"


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    "30 tiny images of three classes."
    return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=30, size=24)


def data_of(path, **options):
    return ImageData.from_name_re(path, r"^(.+)_\d+", **dict(size=24, bs=8) | options)


def new_learner(data, folder, arch=ARCH, **options):
    usual = dict(weights=None, precision="fp32", device="cpu", show=False)
    return Learner(data, arch, model_dir=folder, **usual | options)


def losses_of(learn): return learn.history.fits[-1].losses


def state_of(learn):
    "Everything that a load may change."
    weights = {name: v.clone() for name, v in learn.model.state_dict().items()}
    others = (learn.model.frozen, learn.model.weights, learn.history, learn.run, learn.data)
    return weights, others, learn.get_preds()


def is_unchanged(learn, before):
    weights, others, preds = before
    same = all(torch.equal(v, weights[name]) for name, v in learn.model.state_dict().items())
    now = (learn.model.frozen, learn.model.weights, learn.history, learn.run, learn.data)
    return same and all(a is b for a, b in zip(now, others)) and learn.get_preds() is preds


# ---- your own files stay

OWN = ["-20241126", "-original", "-01234567", "-best_one", ".bak", ".tmp", "~"]


def test_saving_deletes_no_file_of_yours(flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    file = learn.save("pets")
    copies = [shutil.copy(file, f"{file}{end}") for end in OWN]
    copies.append(shutil.copy(file, tmp_path / ".pets.safetensors.lessonkit-copy.tmp"))
    for copy in copies: os.utime(copy, (0, 0))
    learn.save("pets")
    assert len(list(tmp_path.iterdir())) == 1 + len(copies)


ALIVE = os.getppid()      # the process that started this one
NO_PROCESS = 2**22 + 1    # Linux gives no such number


@pytest.mark.skipif(os.name != "posix", reason="there only the time counts")
@pytest.mark.parametrize("pid, hours, stays", [
    (ALIVE, 50, True), (ALIVE, .5, True),
    (NO_PROCESS, .5, True), (NO_PROCESS, 2, False),
], ids=["alive", "alive-young", "dead-young", "dead"])
def test_only_what_the_dead_left_long_ago_is_deleted(tmp_path, monkeypatch, pid, hours, stays):
    monkeypatch.setattr(os, "replace", lambda *names: None)
    monkeypatch.setattr(os, "getpid", lambda: pid)
    write_atomic(tmp_path / "m", b"half of it")
    monkeypatch.undo()
    left, = tmp_path.iterdir()
    os.utime(left, (time.time() - 3600 * hours,) * 2)
    remove_leftovers(tmp_path / "m")
    assert left.exists() == stays


def test_a_link_to_a_model_stays_a_link(flat, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "large" / "m.safetensors")
    learn = new_learner(data_of(flat), tmp_path)
    learn.save("m")
    assert (tmp_path / "m.safetensors").is_symlink()
    assert (tmp_path / "large" / "m.safetensors").is_file()


SAVER = """
import sys, torch
from pathlib import Path
from lessonkit.core.files import save_tensors
for i in range(60):
    save_tensors(Path(sys.argv[1]), {"w": torch.full((30_000,), float(i))}, dict(format=2))
"""


def test_processes_that_save_one_file_do_not_disturb_each_other(tmp_path):
    file = tmp_path / "same.safetensors"
    command = [sys.executable, "-c", SAVER, str(file)]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    savers = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [saver.communicate(timeout=120)[1].decode() for saver in savers]
    assert errors == [""] * 3
    assert load_tensors(file)[0]["w"].unique().tolist() == [59]
    assert [p.name for p in tmp_path.iterdir()] == ["same.safetensors"]


# ---- what is loaded is what was saved

def test_no_flipped_bit_is_loaded(flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    file = learn.save("m")
    content, rng = file.read_bytes(), random.Random(0)
    header = int.from_bytes(content[:8], "little")
    before = state_of(learn)
    for k in range(200):
        at = rng.randrange(8 + header if k % 2 else len(content))
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError): learn.load("m")
    assert is_unchanged(learn, before)
    file.write_bytes(content)
    learn.load("m")


FOREIGN = {
    "empty": b"",
    "text": b"hello" * 100,
    "pickle": pickle.dumps({"a": 1}),
    "nested": (20_000).to_bytes(8, "little") + b"[" * 20_000,
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "no tensors": (2).to_bytes(8, "little") + b"{}",
    "strange entry": (9).to_bytes(8, "little") + b'{"a":"b"}',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_model_gives_one_kind_of_error(name, flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    before = state_of(learn)
    (tmp_path / "m.safetensors").write_bytes(FOREIGN[name])
    with pytest.raises(CheckpointError, match="m.safetensors"): learn.load("m")
    assert is_unchanged(learn, before)


def test_folders_and_missing_files_are_named(flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"): learn.load("folder")
    with pytest.raises(FileNotFoundError, match="no saved model 'none'"): learn.load("none")


STRANGE = [dict(arch=None), dict(weights=5), dict(frozen=99), dict(frozen=-1), dict(frozen="0"),
           dict(task=None), dict(task={"kind": "single"}), dict(task={"color": 1}), dict(size="24"),
           dict(history=[]), dict(history={"fits": [{"losses": []}]}), dict(channels=1),
           dict(history={"fits": [{"name": "fit", "losses": "abc"}]}), dict(run=[1]),
           dict(run={"plan": {"phases": []}}), dict(format="2"), dict(format=0), dict(format=99),
           dict(history=None), "without run", "without task", "without format"]


@pytest.mark.parametrize("change", STRANGE, ids=str)
def test_strange_metadata_changes_nothing(change, flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    file = learn.save("m")
    learn.fit(1)
    before = state_of(learn)
    tensors, metadata = load_tensors(file)
    if isinstance(change, str): metadata.pop(change.split()[1])
    else: metadata |= change
    save_tensors(file, tensors, metadata)
    with pytest.raises(CheckpointError): learn.load("m")
    assert is_unchanged(learn, before)


TENSORS = {
    "another type": lambda t: {k: v.double() if v.is_floating_point() else v for k, v in t.items()},
    "half": lambda t: {k: v.half() if k.endswith("head.6.bias") else v for k, v in t.items()},
    "another shape": lambda t: {k: v[:2] if k == "head.6.bias" else v for k, v in t.items()},
    "one missing": lambda t: {k: v for k, v in t.items() if k != "head.6.bias"},
    "one too many": lambda t: t | {"head.7.bias": torch.zeros(3)},
    "other names": lambda t: {f"module.{k}": v for k, v in t.items()},
    "a best epoch that does not fit": lambda t: t | {"best.head.6.bias": torch.zeros(3)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_other_tensors_change_nothing(name, flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    learn.fit(1)
    before = state_of(learn)
    file = stopped(learn, tmp_path)
    tensors, metadata = load_tensors(file)
    save_tensors(file, TENSORS[name](tensors), metadata)
    with pytest.raises(CheckpointError, match="not those of this model"): learn.load("run")
    assert is_unchanged(learn, before)


def stopped(learn, folder):
    "The checkpoint of another learner that was killed after its first save."
    other = new_learner(learn.data, folder, seed=1)
    save = other._save
    def save_and_die(*args):
        save(*args)
        raise KeyboardInterrupt
    other._save = save_and_die
    with pytest.raises(KeyboardInterrupt): other.fit(2, checkpoint="run")
    return folder / "run.safetensors"


def test_a_model_for_two_numbers_is_not_loaded_for_one(flat, tmp_path):
    files = image_files(flat)
    def numbers(k): return ImageData.from_lists(flat, files, [[.5] * k for _ in files], size=24)
    new_learner(numbers(2), tmp_path).save("two")
    learn = new_learner(numbers(1), tmp_path)
    before = state_of(learn)
    with pytest.raises(CheckpointError, match="outputs 2, this learner 1"): learn.load("two")
    assert is_unchanged(learn, before)


def test_a_file_without_a_checksum_is_from_before_checksums(flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    file = learn.save("m")
    tensors, metadata = load_tensors(file)
    for number in (1, 2):
        plain = {"lessonkit": json.dumps(metadata | dict(format=number))}
        save_file(tensors, tmp_path / f"format_{number}.safetensors", plain)
    new_learner(data_of(flat), tmp_path, seed=1).load("format_1")
    with pytest.raises(CheckpointError, match="checksum is missing"): learn.load("format_2")


def test_tied_weights_are_saved(tmp_path):
    w = torch.rand(4, 3)
    file = save_tensors(tmp_path / "a", {"a": w, "b": w, "c": w[1:], "d": w.T}, dict(format=2))
    tensors, _ = load_tensors(file)
    assert torch.equal(tensors["b"], w)
    assert torch.equal(tensors["c"], w[1:])
    assert torch.equal(tensors["d"], w.T)


def test_a_file_is_in_memory_once_it_is_loaded(tmp_path):
    file = save_tensors(tmp_path / "a", {"w": torch.arange(10_000)}, dict(format=2))
    tensors, _ = load_tensors(file)
    os.truncate(file, 100)
    assert tensors["w"].sum() == 49_995_000


# ---- files of weights

class Code:
    "Loading it as a pickle would make a file."
    def __init__(self, file): self.file = file
    def __reduce__(self): return os.system, (f"touch {self.file}",)


def bad_weights(folder):
    "Files that are no weights of a SqueezeNet, by what is wrong with them."
    state = squeezenet1_1().state_dict()
    save_file(state, folder / "good.safetensors")
    torch.save(state, folder / "good.pth")
    def put(name, content):
        (folder / name).write_bytes(content)
        return folder / name
    def pt(name, value):
        torch.save(value, folder / name)
        return folder / name
    tensors, archive = ((folder / f"good.{end}").read_bytes() for end in ("safetensors", "pth"))
    code, few = Code(folder / "was_run"), {k: v for k, v in state.items() if "features.0" not in k}
    first = next(iter(state))
    return {
        "half a safetensors file": put("half.safetensors", tensors[:10**6]),
        "half an archive": put("half.pth", archive[:10**6]),
        "a broken header": put("header.safetensors", tensors[:20] + b"X" + tensors[21:]),
        "empty, .safetensors": put("empty.safetensors", b""),
        "empty, .pth": put("empty.pth", b""),
        "text": put("text.pth", b"weights"),
        "an image": put("image.pt", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        "a pickle": put("pickle.pth", pickle.dumps(code)),
        "a pickle called .safetensors": put("pickle.safetensors", pickle.dumps(code)),
        "code": pt("code.pth", {"w": code}),
        "a whole network": pt("network.pth", squeezenet1_1()),
        "a list": pt("list.pth", [1, 2]),
        "a number": pt("number.pth", 3),
        "a tensor": pt("tensor.pth", torch.zeros(3)),
        "words": pt("words.pth", dict.fromkeys(state, "x")),
        "numbers as names": pt("names.pth", {1: torch.zeros(1)}),
        "nothing": pt("nothing.pth", {}),
        "another shape": pt("shape.pth", state | {first: torch.zeros(2, 3, 3, 3)}),
        "whole numbers": pt("whole.pth", {k: v.long() for k, v in state.items()}),
        "sparse": pt("sparse.pth", state | {first: state[first].to_sparse()}),
        "some missing": pt("few.pth", few),
        "of another network": pt("other.pth", {"fc.weight": torch.zeros(2, 2)}),
        "a folder": folder,
        "no file": folder / "none.pth",
        "a wrong hash": put("net-00000000.pth", archive),
        "no name": "",
        "NUL": "a\0b",
    }


def test_bad_files_of_weights_give_one_kind_of_error(flat, tmp_path):
    cases = bad_weights(tmp_path)
    cases["a saved model"] = new_learner(data_of(flat), tmp_path, "squeezenet1_1").save("own")
    for name, file in cases.items():
        with pytest.raises(WeightsUnavailable) as caught:
            create_model("squeezenet1_1", 3, weights=file)
        assert len(str(caught.value)) > 30, name
    assert not (tmp_path / "was_run").exists()
    nested = tmp_path / "nested.bin"
    torch.save({"epoch": 1, "state_dict": squeezenet1_1().state_dict()}, nested)
    for file in (tmp_path / "good.safetensors", str(tmp_path / "good.pth"), nested):
        create_model("squeezenet1_1", 3, weights=file)


# ---- where files are written

@pytest.mark.parametrize("name", ["run[1]", "run*", "50%", "a b", "sizes/224", "käse", "v1.5"])
def test_snapshots_are_found_under_any_good_name(name, flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    learn.fit(2, 1e-3, cycle_len=1, snapshots=name)
    assert learn.average(name).probs.shape == (len(learn.data.valid.paths), 3)
    learn.load(f"{name}_2")


BAD_NAMES = ["", " ", "../up", "a/../../up", "/tmp/elsewhere", "~/elsewhere", "a\0b", "a\nb",
             "run.", "run ", "con", "LPT1.old", "x" * 250, "..", "a\\b", 5, b"run", True]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_bad_names_are_refused_before_training(name, flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    for option in ("checkpoint", "snapshots"):
        with pytest.raises((TypeError, ValueError)): learn.fit(1, **{option: name})
    for method in (learn.save, learn.load):
        with pytest.raises((TypeError, ValueError)): method(name)
    assert learn.history.fits == []
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_lead_anywhere(flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path / "models")
    elsewhere = tmp_path / "elsewhere" / "run"
    learn.fit(2, 1e-3, cycle_len=1, checkpoint=elsewhere, snapshots=elsewhere)
    names = sorted(p.name for p in elsewhere.parent.iterdir())
    assert names == ["run.safetensors", "run_1.safetensors", "run_2.safetensors"]
    learn.average(elsewhere)
    file = learn.save("here")
    assert losses_of(new_learner(data_of(flat), tmp_path).load(file)) == losses_of(learn)


@pytest.mark.parametrize("plan", [
    dict(checkpoint="../../elsewhere/a"), dict(checkpoint="{}/elsewhere/a"),
    dict(checkpoint="pets"), dict(snapshots="../elsewhere/a"),
    dict(snapshots="{}/elsewhere/a")], ids=str)
def test_a_foreign_checkpoint_does_not_choose_where_to_write(plan, flat, tmp_path):
    models = tmp_path / "models"
    (tmp_path / "elsewhere").mkdir()
    learn = new_learner(data_of(flat), models)
    file = stopped(learn, models)
    pets = learn.save("pets").read_bytes()
    tensors, metadata = load_tensors(file)
    metadata["run"]["plan"] |= {k: v.format(tmp_path) for k, v in plan.items()}
    save_tensors(models / "foreign.safetensors", tensors, metadata)
    if "snapshots" in plan:
        with pytest.warns(UserWarning, match="no snapshots"): learn.load("foreign")
    else: learn.load("foreign")
    learn.resume(exact=False)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (models / "pets.safetensors").read_bytes() == pets
    assert load_tensors(models / "foreign.safetensors")[1]["run"] is None


# ---- what changes answers is told

def test_other_preparation_of_images_is_named(flat, tmp_path):
    new_learner(data_of(flat), tmp_path).save("m")
    learn = new_learner(data_of(flat, size=32, fit="pad"), tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match="size was 24, now 32.*fit was 'crop', now 'pad'"):
            learn.load("m")
    with pytest.warns(UserWarning, match="size was 24, now 32"): learn.average(["m", "m"])


def test_the_statistics_of_a_saved_model_stay_with_it(flat, tmp_path, recwarn):
    stats, other = Stats((.1,) * 3, (.9,) * 3), Stats((.4,) * 3, (.2,) * 3)
    saved = new_learner(data_of(flat).normalize(stats), tmp_path)
    saved.save("m")
    plain = new_learner(data_of(flat), tmp_path).load("m")
    assert torch.equal(plain.get_preds().probs, saved.get_preds().probs)
    assert not recwarn.list
    learn = new_learner(data_of(flat).normalize(other), tmp_path)
    with pytest.warns(UserWarning, match=r"0\.1.*0\.4"): learn.load("m")
    assert torch.equal(learn.get_preds().probs, saved.get_preds().probs)
    assert learn.data.stats == plain_stats(learn)


def plain_stats(learn):
    "What the model subtracts and divides by."
    normalize = learn.model.normalize
    return Stats(*(tuple(t.flatten().tolist()) for t in (normalize.mean, normalize.std)))


def test_statistics_of_new_data_are_used(flat, tmp_path):
    learn = new_learner(data_of(flat), tmp_path)
    before = learn.get_preds().probs
    stats = Stats((.25,) * 3, (.5,) * 3)
    learn.set_data(data_of(flat).normalize(stats))
    assert plain_stats(learn) == stats
    same = new_learner(data_of(flat).normalize(stats), tmp_path)
    assert torch.equal(learn.get_preds().probs, same.get_preds().probs)
    assert not torch.equal(learn.get_preds().probs, before)
    learn.set_data(data_of(flat))   # without statistics of its own
    assert plain_stats(learn) == stats
    wrong = replace(data_of(flat), stats=Stats((.5,) * 4, (.5,) * 4))
    with pytest.raises(ValueError, match="4 channels"): learn.set_data(wrong)
    assert plain_stats(learn) == stats


# ---- the same files, with other images in them

def fill(root, seed, name="{}.bmp"):
    "40 images whose names, sizes and times are always the same."
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(40):
        file = root / name.format(f"{'ab'[i % 2]}_{i}")
        Image.fromarray(rng.integers(0, 255, (30, 30, 3), np.uint8)).save(file)
        os.utime(file, (0, 0))
    return data_of(root)


def losses(data, cache):
    learn = Learner(data, show=False, cache=cache, device="cpu")
    learn.fit(1)
    return learn.history.fits[-1].losses


def test_features_of_other_images_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))
    old = losses(fill(tmp_path / "images", 0), True)
    new = losses(fill(tmp_path / "images", 1), True)
    assert new == losses(fill(tmp_path / "images", 1), False)
    assert new != old


def test_features_in_use_do_not_change_with_their_file(tmp_path, flat, monkeypatch):
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))
    for _ in range(2):   # computed; then read
        learn = Learner(data_of(flat), show=False, device="cpu")
        learn.fit(1)
        features = learn.trainer.features.data.train.features
        file, = (tmp_path / "cache" / "features").glob("*.features")
        content, before = file.read_bytes(), features.clone()
        with open(file, "r+b") as f: f.write(bytes(len(content)))
        os.truncate(file, 4096)
        assert torch.equal(features, before)
        learn.fit(1)
        file.write_bytes(content)


def test_a_file_is_read_again_after_any_change(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"1234")
    os.utime(file, (0, 0))
    seen = {fingerprint([file])}
    for content in (b"1235", b"1236"):
        file.write_bytes(content)
        os.utime(file, (0, 0))
        seen.add(fingerprint([file]))
    (tmp_path / "b").write_bytes(b"1237")
    os.utime(tmp_path / "b", (0, 0))
    os.replace(tmp_path / "b", file)
    seen.add(fingerprint([file]))
    file.unlink()
    seen.add(fingerprint([file]))
    assert len(seen) == 5


# ---- what is saved is plain

def test_settings_of_other_types_are_saved(flat, tmp_path):
    data = data_of(flat, size=np.int64(24), presize=np.int64(30))
    learn = new_learner(data, tmp_path, wd=np.float32(.01), class_weights=np.ones(3))
    learn.fit(np.int64(2), np.float32(1e-3), checkpoint="run", snapshots="s")
    assert losses_of(new_learner(data, tmp_path).load("run")) == losses_of(learn)


def label_types(n):
    files = range(n)
    return {
        "np.int64": np.arange(n) % 2, "list of int": [i % 2 for i in files],
        "np.bool": np.arange(n) % 2 == 0, "bool": [i % 2 == 0 for i in files],
        "np.str": np.array(["a", "b"] * n)[:n], "Path": [Path("ab"[i % 2]) for i in files],
        "torch": torch.arange(n) % 2,
    }


@pytest.mark.parametrize("name", label_types(2))
def test_labels_of_any_type_are_saved_and_loaded(name, flat, tmp_path):
    files = image_files(flat)
    labels = label_types(len(files))[name]
    data = ImageData.from_lists(flat, files, labels, size=24, bs=8, valid_pct=.3)
    learn = new_learner(data, tmp_path)
    learn.fit(2, checkpoint="run")
    assert new_learner(data, tmp_path).load("run").data.classes == data.classes


class Forgetful(torch.optim.SGD):
    "An optimizer whose state can't be saved."
    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]: self.state[p]["secret"] = object()


def test_what_cannot_be_saved_does_not_end_training(flat, tmp_path):
    def optimizer(groups): return Forgetful(groups, lr=.1)
    learn = new_learner(data_of(flat), tmp_path, optimizer=optimizer)
    with pytest.warns(UserWarning, match="secret.*can't be saved.*goes on without"):
        learn.fit(2, checkpoint="run")
    assert len(learn.history.fits[0].rows) == 2


# ---- without a home folder

TRAIN = """
import sys
from lessonkit.all import *
data = ImageData.from_name_re({images!r}, r"^(.+)_\\d+", size=24, bs=8)
Learner(data, show=False, model_dir={out!r}, device="cpu").fit(1)
print("trained")
"""


@pytest.mark.parametrize("refusals", [0, 1, 4, 1000])
def test_a_file_that_another_program_has_open(refusals, tmp_path, monkeypatch):
    "On Windows, it can't be replaced for a moment; then it is tried again for about a second."
    file = write_atomic(tmp_path / "a", b"old")
    waits, attempts, replace = [], iter(range(refusals)), os.replace

    def refuse(source, target):
        if next(attempts, None) is not None: raise PermissionError(13, "in use", str(target))
        replace(source, target)
    monkeypatch.setattr("lessonkit.core.files._WAITS", (.1, .2, .3, .4))
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr("time.sleep", waits.append)
    if refusals <= 4: write_atomic(file, b"new")
    else:
        with pytest.raises(PermissionError, match="in use"): write_atomic(file, b"new")
    assert file.read_bytes() == (b"new" if refusals <= 4 else b"old")
    assert waits == [.1, .2, .3, .4][:refusals]
    assert os.listdir(tmp_path) == ["a"]


def test_other_errors_of_replacing_are_raised_at_once(tmp_path, monkeypatch):
    def refuse(source, target): raise OSError(18, "another disk")
    monkeypatch.setattr("lessonkit.core.files._WAITS", (.1, .2))
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr("time.sleep", lambda s: pytest.fail("waited"))
    with pytest.raises(OSError, match="another disk"): write_atomic(tmp_path / "a", b"new")
    assert not os.listdir(tmp_path)


def test_leftovers_of_this_computer_are_told_by_one_look_at_its_name(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("platform.node", lambda: asked.append(1) or "here")
    monkeypatch.setattr(os, "replace", lambda *names: shutil.copy(*names) and None)
    monkeypatch.setattr(os, "unlink", lambda name: None)
    for name in "abc": write_atomic(tmp_path / name, b"")
    monkeypatch.undo()
    monkeypatch.setattr("platform.node", lambda: asked.append(1) or "here")
    monkeypatch.setattr("lessonkit.core.files._is_running", lambda pid: False)
    for path in tmp_path.glob(".*"): os.utime(path, (0, 0))
    asked.clear()
    remove_leftovers(tmp_path)
    assert (len(asked), sorted(os.listdir(tmp_path))) == (1, ["a", "b", "c"])


def as_nobody(code, home, folder):
    "Run code as a user without rights, in a folder; home None: HOME is not set."
    packages = [str(PACKAGE), *(p for p in sys.path if p.endswith("site-packages"))]
    env = dict(PATH=os.environ["PATH"], PYTHONPATH=os.pathsep.join(packages), TMPDIR=str(folder),
               OMP_NUM_THREADS="1")
    if home is not None: env["HOME"] = home
    command = ["setpriv", "--reuid", "54321", "--clear-groups", sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True,
                          timeout=300)


@pytest.fixture
def nobodys_folder():
    "A folder that everybody can write to."
    if not hasattr(os, "getuid") or os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become another user, with setpriv")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    if as_nobody("import numpy", None, folder).returncode:
        pytest.skip("no other user may start this Python")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("home", few(2, [None, "relative", "", "/", "/nonexistent"]))
def test_training_as_a_user_without_a_home_folder(home, nobodys_folder):
    images, out = sample.tiny(nobodys_folder / "images", n=30, size=24), nobodys_folder / "out"
    out.mkdir()
    out.chmod(0o777)
    done = as_nobody(TRAIN.format(images=str(images), out=str(out)), home, nobodys_folder)
    assert done.stdout.endswith("trained\n"), done.stderr
    assert done.stderr.count("no cache folder") == 1, done.stderr
    assert not (nobodys_folder / "relative").exists()
    assert not (nobodys_folder / "~").exists()


@pytest.mark.parametrize("home", ["", "relative", "/nonexistent/home"])
def test_without_a_home_folder_the_cache_is_temporary(home, tmp_path, monkeypatch):
    for name in ("LESSONKIT_CACHE", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("lessonkit.core.files._TEMPORARY", {})
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="no home folder.*LESSONKIT_CACHE") as caught:
        folder = cache_dir()
        assert cache_dir() == folder
    assert len(caught) == 1
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def put_into_hub(folder, net, arch):
    "Lay a network's weights into a folder as the client of Hugging Face does."
    repo = folder / f"models--timm--{arch}.{net.pretrained_cfg['tag']}"
    for part in ("refs", "snapshots/abc"): (repo / part).mkdir(parents=True)
    (repo / "refs/main").write_text("abc")
    save_file(net.state_dict(), repo / "snapshots/abc/model.safetensors")


@pytest.mark.parametrize("place", ["missing", "unwritable", "usable"])
def test_weights_of_timm_without_a_home_folder(place, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    if place == "missing": (tmp_path / "file").touch()
    else: hub.mkdir()
    usual = tmp_path / "file" / "hub" if place == "missing" else hub
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(usual))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))
    real = tempfile.TemporaryFile

    def refuse(dir=None, **options):
        if place == "unwritable" and Path(dir) == hub: raise PermissionError(13, "read-only")
        return real(dir=dir, **options)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(WeightsUnavailable, match="no download"): create_model(ARCH)
    net = timm.create_model("test_efficientnet")
    folder = hub if place == "usable" else tmp_path / "cache" / "weights"
    put_into_hub(folder, net, "test_efficientnet")
    body = create_model(ARCH).body
    assert torch.equal(body.conv_stem.weight, net.conv_stem.weight)


def test_a_folder_that_others_can_write_to_is_no_cache(tmp_path, monkeypatch):
    "Somebody else may have made it, to slip files in."
    taken = tmp_path / f"lessonkit-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    taken.mkdir()
    taken.chmod(0o777)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="no cache folder"): folder = cache_dir()
    assert folder != taken
    assert folder.is_dir()
