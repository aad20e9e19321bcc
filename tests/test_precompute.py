"""Kept features: exact, never those of something else, and never in the way."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lessonkit.train import features as module
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.data.loader import Loader
from lessonkit.model.classifier import Classifier
from lessonkit.model.create import create_model
from lessonkit.core.files import write_atomic
from lessonkit.train.features import (
    clear_features, feature_dir, feature_metadata, load_features, precompute, save_features,
)
from lessonkit.core.task import item_losses
from lessonkit.train.engine import Engine, model_outputs
from lessonkit.train.loop import make_optimizer, Phase, train_steps

PATTERN = r"^(.+)_\d+"


class Counted(Engine):
    "Counts the pictures of 24 pixels and more than two a batch: the fixed noise comes in twos."
    seen = 0

    def forward(self, model, x):
        if x.ndim == 4 and len(x) > 2: self.seen += len(x)
        return super().forward(model, x)


def small(channels=8, arch="small", seed=0):
    "A body with a convolution and batch normalization whose averages are not the ones it is born with."
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, channels, 3, 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    body(torch.rand(8, 3, 24, 24))
    return Classifier(body, channels, 3, imagenet_stats, [("body", [body])], arch, "made up").freeze_to(-1).eval()


def pictures(path, **options): return ImageData.from_name_re(path, PATTERN, **{"size": 24, "bs": 13} | options)


def tensors(data): return [data.train.features, data.valid.features]


def same(a, b): return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b)))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("drawn") / "t", size=24)


@pytest.fixture
def flat(drawn, tmp_path): return shutil.copytree(drawn, tmp_path / "flat")


@pytest.fixture
def folder(tmp_path): return tmp_path / "features"


def touched(flat):
    info = (file := sorted(flat.glob("*_3.*"))[0]).stat()
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns + 1))


def exchanged(flat):
    a, b = sorted(flat.glob("circle_*"))[:2]
    shutil.copy(b, a)


def nudged(name):
    def change(model):
        t = dict([*model.named_parameters(), *model.named_buffers()])[name]
        with torch.no_grad(): t.view(-1)[-1] += .01
    return change


def other_order(data):
    turn = lambda loader: replace(loader, paths=loader.paths[::-1], targets=loader.targets.flip(0))
    return replace(data, train=turn(data.train), train_eval=turn(data.train_eval))


def quietly(model):
    "A setting that no layer prints, no weight shows."
    model.body[2].forward = lambda x: x.relu() * 1.5


CHANGES = {
    "a file was touched": dict(files=touched), "a file has another content": dict(files=exchanged), "a file is gone": dict(files=lambda f: sorted(f.glob("*"))[-1].unlink()),
    "the files are in another order": dict(data=other_order), "other files are for validation": dict(options={"seed": 7}),
    "size": dict(options={"size": 20, "presize": 24}), "presize": dict(options={"presize": 32}), "fit": dict(options={"fit": "pad"}), "batch size": dict(options={"bs": 39}),
    "a weight": dict(model=nudged("body.0.weight")), "an average of batch normalization": dict(model=nudged("body.1.running_mean")),
    "a spread of batch normalization": dict(model=nudged("body.1.running_var")), "the standardization of pixels": dict(model=nudged("normalize.std")),
    "a layer without weights": dict(model=lambda m: m.body.__setitem__(2, nn.ELU())), "a setting that is not printed": dict(model=quietly),
    "a number of a layer": dict(model=lambda m: setattr(m.body[1], "eps", 1e-3)), "another network": dict(new=lambda: small(arch="smaller")), "channels": dict(new=lambda: small(6)),
    "precision": dict(engine=("cpu", "bf16")), "threads": dict(threads=2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_is_computed_anew(what, flat, folder):
    change, threads = CHANGES[what], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        old = precompute(small(), pictures(flat), Engine("cpu", "fp32"), folder)
        if "files" in change: change["files"](flat)
        if "threads" in change: torch.set_num_threads(change["threads"])
        model, data, engine = change.get("new", small)(), change.get("data", lambda d: d)(pictures(flat, **change.get("options", {}))), Counted(*change.get("engine", ("cpu", "fp32")))
        change.get("model", lambda m: None)(model)
        new = precompute(model, data, engine, folder)
        assert engine.seen == data.train.n + data.valid.n and same(new, precompute(model, data, engine))
        if what not in ("a file was touched", "fit", "threads", "batch size", "another network"): assert not same(new, old)   # the change would have been missed
        model, engine.seen = change.get("new", small)(), 0
        change.get("model", lambda m: None)(model)
        assert same(precompute(model, data, engine, folder), new) and engine.seen == 0                                  # and is kept in turn
    finally: torch.set_num_threads(threads)


def test_a_file_of_the_same_size_and_date_elsewhere_is_another(flat, folder, tmp_path):
    "Archives unpack with the dates that they were packed with."
    twin = shutil.copytree(flat, tmp_path / "twin")
    for file in sorted(twin.glob("circle_*"))[:5]:
        content, info = bytearray(file.read_bytes()), file.stat()
        content[60] ^= 255
        file.write_bytes(content)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    model, engine = small(), Counted("cpu", "fp32")
    precompute(model, pictures(flat), engine, folder)
    engine.seen = 0
    data = pictures(twin)
    precompute(model, data, engine, folder)
    assert engine.seen == data.train.n + data.valid.n


def test_what_does_not_matter_is_shared(flat, folder):
    model = small()
    first = precompute(model, pictures(flat), Engine("cpu", "fp32"), folder)
    others = [pictures(flat, augment=augmentations()), pictures(flat, threads=5), pictures(flat, cache="memory"),
              ImageData.from_name_func(flat, lambda p: p.name[:2] == "ci", size=24, bs=13)]
    for data in others:
        engine = Counted("cpu", "fp32")
        assert same(precompute(model, data, engine, folder), first) and engine.seen == 0
    other_head = small()
    for p in other_head.head.parameters(): p.data.zero_()
    assert same(precompute(other_head.train(), pictures(flat), engine, folder), first) and engine.seen == 0 and other_head.head.training


def test_labels_are_those_of_the_data_at_hand(flat, folder):
    precompute(small(), pictures(flat), Engine("cpu", "fp32"), folder)
    data = ImageData.from_name_func(flat, lambda p: "round" if "circle" in p.name else "angular", size=24, bs=13)
    kept = precompute(small(), data, Engine("cpu", "fp32"), folder)
    assert kept.classes == ("angular", "round") and kept.train.targets is data.train.targets and kept.valid.targets is data.valid.targets
    assert all(torch.equal(b.y, data.train.targets[b.index]) for b in kept.train.batches(1, 2, 3))


def test_every_field_of_a_loader_is_decided_upon():
    "A new field of Loader counts until it is named in _UNSEEN, which is safe. This test makes somebody decide."
    seen = set(module._prepared(Loader((), None, 8, 8), Path())) - {"files"}
    assert seen == {"size", "presize", "bs", "fit", "channels"} and seen | module._UNSEEN == {f.name for f in fields(Loader)}


def test_balanced_sampling_draws_the_same_items(flat, folder):
    data = pictures(flat, sampling="balanced")
    kept = precompute(small(), data, Engine("cpu", "fp32"), folder)
    for a, b in zip(data.train.batches(4, 0, 1), kept.train.batches(4, 0, 1), strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.y, b.y) and torch.equal(b.x, kept.train_eval.features[b.index])


# ---- exact

def trained(data, part, model, engine, epochs=3):
    loss = lambda z, y: item_losses(z, y, "single")
    with closing(train_steps(part(model), data.train, Phase(epochs, (1e-2,)), make_optimizer([list(model.head.parameters())]), loss, engine)) as steps:
        for _ in steps: pass
    return torch.cat([t.flatten().double() for t in model.head.state_dict().values()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bs", [13, 20])   # 39 pictures are three batches of 13, or one of 20 and one of 19
def test_the_head_becomes_what_it_would_have_become(precision, bs, flat, folder):
    data, engine = pictures(flat, bs=bs, size=48), Engine("cpu", precision)
    new = lambda: create_model(n_out=3)
    head = lambda m: m.head
    memory = trained(precompute(new(), data, engine), head, new(), engine)
    for _ in range(2): assert torch.equal(trained(precompute(new(), data, engine, folder), head, new(), engine), memory)   # written, then read
    whole = trained(data, lambda m: m, new(), engine)
    assert (whole - memory).abs().max() < 1e-3
    assert (whole - torch.cat([t.flatten().double() for t in new().head.state_dict().values()])).abs().max() > .05                     # and it did move


def test_a_row_of_validation_is_what_the_whole_model_says(flat, folder):
    data, model, engine = pictures(flat), create_model(n_out=3).eval(), Engine("cpu", "auto")
    for _ in range(2):
        kept = precompute(model, data, engine, folder)
        assert torch.equal(model_outputs(model.head, kept.valid, engine), model_outputs(model, data.valid, engine))


def test_nobody_elses_random_numbers_are_used(flat, folder):
    model = small()
    state = torch.get_rng_state()
    precompute(model, pictures(flat), Engine("cpu", "fp32"), folder)
    assert torch.equal(state, torch.get_rng_state())


# ---- files

@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory is its own and what is mapped")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_are_mapped_not_read(dtype, folder):
    n = 40_000_000 // dtype.itemsize // 1000
    save_features(folder, {"n": 1}, {"train": torch.ones(n, 1000, dtype=dtype), "valid": torch.ones(3, 1000, dtype=dtype)})
    own = lambda: int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1000
    before = own()
    found = load_features(folder, {"n": 1})
    assert own() - before < 10_000_000 and next(folder.iterdir()).name in Path("/proc/self/maps").read_text()
    batch = found["train"][torch.randperm(n)[:64]]
    assert batch.shape == (64, 1000) and batch.dtype == dtype and not batch.is_inference() and (batch == 1).all()
    assert torch.equal(nn.Linear(1000, 2)(batch.float().requires_grad_()).sum().isfinite(), torch.tensor(True))


def test_whoever_writes_into_features_does_not_write_into_the_file(flat, folder):
    data, model = pictures(flat), small()
    precompute(model, data, Engine("cpu", "fp32"), folder)
    kept = precompute(model, data, Engine("cpu", "fp32"), folder)
    next(kept.train.batches(0)).x.zero_()
    assert kept.train.features.abs().sum() > 0
    kept.train.features.zero_()
    assert same(precompute(model, data, Engine("cpu", "fp32"), folder), precompute(model, data, Engine("cpu", "fp32")))


def test_nothing_is_written_beside_the_pictures(flat, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))
    before = {p: p.stat().st_mtime_ns for p in (flat, *flat.iterdir())}
    flat.chmod(0o555)
    try: kept = precompute(small(), pictures(flat), Engine("cpu", "fp32"), feature_dir())
    finally: flat.chmod(0o755)
    assert before == {p: p.stat().st_mtime_ns for p in (flat, *flat.iterdir())} and kept.train.n == 39
    assert [p.parent for p in (tmp_path / "cache").rglob("*.features")] == [feature_dir()] and clear_features() > 0 and not list(feature_dir().iterdir())


def test_a_cache_folder_that_cannot_be_written_to_is_a_warning(flat, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept on disk.*LESSONKIT_CACHE"): assert feature_dir() is None
    with pytest.warns(UserWarning, match="in memory only, not on disk"): kept = precompute(small(), pictures(flat), Engine("cpu", "fp32"), tmp_path / "file" / "below")
    assert same(kept, precompute(small(), pictures(flat), Engine("cpu", "fp32")))


def test_a_full_disk_is_a_warning(flat, folder):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save_features(folder, {"n": 1}, {"train": torch.ones(2)})
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))   # a write beyond it fails as one on a full disk does
    try:
        with pytest.warns(UserWarning, match="in memory only, not on disk: .*too large"): kept = precompute(small(), pictures(flat), Engine("cpu", "fp32"), folder)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(kept, precompute(small(), pictures(flat), Engine("cpu", "fp32"))) and before == {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b[:-2] + bytes([b[-2] ^ 8]) + b[-1:], lambda b: b"\xff" * len(b)],
                         ids=["cut off", "empty", "one bit", "nonsense"])
def test_a_damaged_file_is_noticed_and_made_again(damage, flat, folder):
    data, model, engine = pictures(flat), small(), Counted("cpu", "fp32")
    good = precompute(model, data, engine)
    precompute(model, data, engine, folder)
    file, = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    engine.seen = 0
    with pytest.warns(UserWarning, match="damaged and will be made again"): assert same(precompute(model, data, engine, folder), good)
    assert engine.seen == 48 and file.read_bytes() == whole
    assert same(precompute(model, data, engine, folder), good) and engine.seen == 48


def test_a_file_put_under_another_name_is_not_believed(flat, folder):
    data, engine = pictures(flat), Engine("cpu", "fp32")
    precompute(small(), data, engine, folder)
    wrong, = folder.iterdir()
    precompute(small(seed=1), data, engine, folder)
    right, = set(folder.iterdir()) - {wrong}
    shutil.copy(wrong, right)
    with pytest.warns(UserWarning, match="damaged"): assert same(precompute(small(seed=1), data, engine, folder), precompute(small(seed=1), data, engine))


def test_pictures_that_change_meanwhile_are_not_kept(flat, folder):
    data, model = pictures(flat), small()
    def change(done, total):
        if done == 13: touched(flat)
    with pytest.warns(UserWarning, match="changed while they were computed"): precompute(model, data, Engine("cpu", "fp32"), folder, progress=change)
    assert not folder.exists()


def test_progress_is_told_and_may_break_off(flat, folder):
    data, model, told = pictures(flat), small().train(), []
    precompute(model, data, Engine("cpu", "fp32"), progress=lambda *a: told.append(a))
    assert told == [(13, 48), (26, 48), (39, 48), (48, 48)]
    def stop(done, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): precompute(model, data, Engine("cpu", "fp32"), folder, progress=stop)
    assert not folder.exists() and model.training


# ---- room

def test_a_set_larger_than_the_limit_stays_in_memory(flat, folder):
    save_features(folder, {"n": 1}, {"train": torch.ones(2)})
    with pytest.warns(UserWarning, match="in memory only, not on disk: they take 0 MB, and the limit"): kept = precompute(small(), pictures(flat), Engine("cpu", "fp32"), folder, limit=2000)
    assert same(kept, precompute(small(), pictures(flat), Engine("cpu", "fp32"))) and load_features(folder, {"n": 1}) and len(list(folder.iterdir())) == 1


def test_the_ones_used_longest_ago_go_first(folder):
    pages, features = [{"n": i} for i in range(6)], {"train": torch.ones(50, 50)}
    file = lambda p: module._place(folder, p)
    for i, p in enumerate(pages[:5]):
        save_features(folder, p, features)
        os.utime(file(p), (i, i))
    each = file(pages[0]).stat().st_size
    load_features(folder, pages[1])
    save_features(folder, pages[5], features, limit=3 * each)
    assert [file(p).exists() for p in pages] == [False, True, False, False, True, True]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 3 * each


def test_clearing_spares_what_is_not_ours(folder, capsys):
    save_features(folder, {"n": 1}, {"train": torch.ones(2)})
    (folder / "model.safetensors").write_text("ours, but no features")
    size = sum(p.stat().st_size for p in folder.glob("*.features"))
    assert clear_features(folder) == size and "1 file(s) of features deleted, 0.0 MB" in capsys.readouterr().out
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"] and clear_features(folder / "none") == 0


# ---- other processes

SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_precompute import *
data, engine = pictures(Path({flat!r})), Counted("cpu", "fp32")
{before}
kept = precompute(small(), data, engine, Path({folder!r}))
print(engine.seen, module.tensor_digest(zip("ab", tensors(kept))))
"""


def process(flat, folder, before=""):
    code = SCRIPT.format(tests=str(Path(__file__).parent), flat=str(flat), folder=str(folder), before=before)
    package = str(Path(module.__file__).parents[1])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def answer(running):
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0 and "Warning" not in err, err
    seen, digest = out.split()
    return int(seen), digest


def test_two_processes_at_once_and_one_after_them(flat, folder):
    both = [process(flat, folder) for _ in range(2)]
    digests = {logits_and_features(p)[1] for p in both}
    assert len(digests) == 1 and len(list(folder.iterdir())) == 1
    seen, digest = logits_and_features(process(flat, folder))
    assert seen == 0 and {digest} == digests


def test_killed_while_writing_leaves_no_half_file(flat, folder):
    killed = process(flat, folder, "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left, = folder.iterdir()
    assert not left.name.endswith(".features")
    data, model, engine = pictures(flat), small(), Engine("cpu", "fp32")
    assert same(precompute(model, data, engine, folder), precompute(model, data, engine))
    clear_features(folder)
    assert not list(folder.iterdir())


def test_the_page_can_be_read(flat, folder):
    "Who wonders what a file is finds it in its head."
    from safetensors import safe_open
    model, data, engine = small(), pictures(flat), Engine("cpu", "fp32")
    precompute(model, data, engine, folder)
    with safe_open(next(folder.iterdir()), "pt") as f: page = json.loads(f.metadata()["lessonkit"])["page"]
    assert page == feature_metadata(model, data, engine) and page["arch"] == "small" and page["train"]["bs"] == "13"


def test_write_whole_cleans_up_after_itself(tmp_path, monkeypatch):
    file = write_atomic(tmp_path / "a", b"first")
    def broken(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="No space left"): write_atomic(file, b"second")
    assert file.read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision, flat, folder):
    data, engine = pictures(flat, size=48), Counted("cuda", precision)
    model = engine.place(create_model(n_out=3))
    first = precompute(model, data, engine, folder)
    engine.seen = 0
    second = precompute(model, data, engine, folder)
    assert engine.seen == 0 and same(first, second) and second.train.features.device.type == "cpu"
    assert torch.allclose(model_outputs(model.head, second.valid, engine).float(), model_outputs(model, data.valid, engine).float(), atol=1e-5 if precision == "fp32" else .02)
