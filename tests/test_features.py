"""Kept features: exact, never those of something else, and never in the way."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import lessonkit
from lessonkit.core.files import write_atomic
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.data.loader import Loader
from lessonkit.model.classifier import Classifier
from lessonkit.model.create import create_model
from lessonkit.train.engine import Engine, model_outputs
from lessonkit.train.features import (
    body_features, clear_features, FEATURE_SOURCES, feature_dir, feature_metadata, feature_path,
    IGNORED_SETTINGS, load_features, loader_metadata, precompute, save_features, source_digest,
)
from lessonkit.train.loop import make_optimizer, Phase, train_steps

PATTERN = r"^(.+)_\d+"
PACKAGE = Path(lessonkit.__file__).parent


class Counted(Engine):
    "Counts the images that pass through it, but not the fixed noise, which comes in twos."
    seen = 0

    def forward(self, model, x):
        if x.ndim == 4 and len(x) > 2: self.seen += len(x)
        return super().forward(model, x)


def cpu(): return Engine("cpu", "fp32")


def counted(): return Counted("cpu", "fp32")


def small(channels=8, arch="small", seed=0):
    "A body of a convolution and batch normalization, which has measured its averages."
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, channels, 3, 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    body = nn.Sequential(*layers)
    body(torch.rand(8, 3, 24, 24))
    groups = [("body", [body])]
    model = Classifier(body, channels, 3, imagenet_stats, groups, arch, "made up")
    return model.freeze_to(-1).eval()


def images(path, **options):
    return ImageData.from_name_re(path, PATTERN, **{"size": 24, "bs": 13} | options)


def tensors(data): return [data.train.features, data.valid.features]


def same(a, b): return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b)))


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("drawn") / "t", size=24)


@pytest.fixture
def flat(drawn, tmp_path): return shutil.copytree(drawn, tmp_path / "flat")


@pytest.fixture
def folder(tmp_path): return tmp_path / "features"


# ---- stale features are never used

def change_one(flat):
    "Another content, of the same size and time."
    file = sorted(flat.glob("circle_*"))[0]
    content, info = file.read_bytes(), file.stat()
    file.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


def replace_one(flat):
    a, b = sorted(flat.glob("circle_*"))[:2]
    shutil.copy(b, a)


def delete_one(flat): sorted(flat.glob("*"))[-1].unlink()


def nudge(name):
    def change(model):
        t = dict([*model.named_parameters(), *model.named_buffers()])[name]
        with torch.no_grad(): t.view(-1)[-1] += .01
    return change


def reverse(data):
    def turn(loader):
        return replace(loader, paths=loader.paths[::-1], targets=loader.targets.flip(0))
    return replace(data, train=turn(data.train), train_eval=turn(data.train_eval))


def scale_secretly(model):
    "A setting that no layer prints and no weight shows."
    model.body[2].forward = lambda x: x.relu() * 1.5


def use_elu(model): model.body[2] = nn.ELU()


def set_eps(model): model.body[1].eps = 1e-3


CHANGES = {
    "one bit of a file": dict(files=change_one),
    "a file has another content": dict(files=replace_one),
    "a file is gone": dict(files=delete_one),
    "the files are in another order": dict(data=reverse),
    "other files are for validation": dict(options={"seed": 7}),
    "size": dict(options={"size": 20, "presize": 24}),
    "presize": dict(options={"presize": 32}),
    "fit": dict(options={"fit": "pad"}),
    "batch size": dict(options={"bs": 39}),
    "a weight": dict(model=nudge("body.0.weight")),
    "an average of batch normalization": dict(model=nudge("body.1.running_mean")),
    "a variance of batch normalization": dict(model=nudge("body.1.running_var")),
    "the pixel statistics": dict(model=nudge("normalize.std")),
    "a layer without weights": dict(model=use_elu),
    "a setting that is not printed": dict(model=scale_secretly),
    "a number of a layer": dict(model=set_eps),
    "another network": dict(new=lambda: small(arch="smaller")),
    "channels": dict(new=lambda: small(6)),
    "precision": dict(engine=("cpu", "bf16")),
    "threads": dict(threads=2),
}
HARMLESS_HERE = {"one bit of a file", "fit", "threads", "batch size", "another network"}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def nothing(x): pass


@pytest.mark.parametrize("name", CHANGES)
def test_features_are_computed_again_after_any_change(name, flat, folder, one_thread):
    change = CHANGES[name]
    def changed_model():
        model = change.get("new", small)()
        change.get("model", nothing)(model)
        return model
    old = precompute(small(), images(flat), cpu(), folder)
    change.get("files", nothing)(flat)
    if "threads" in change: torch.set_num_threads(change["threads"])
    data = change.get("data", lambda data: data)(images(flat, **change.get("options", {})))
    model, engine = changed_model(), Counted(*change.get("engine", ("cpu", "fp32")))
    new = precompute(model, data, engine, folder)
    assert engine.seen == data.train.n + data.valid.n
    assert same(new, precompute(model, data, engine))
    if name not in HARMLESS_HERE: assert not same(new, old)   # the change would have been missed
    engine.seen = 0
    assert same(precompute(changed_model(), data, engine, folder), new)
    assert engine.seen == 0   # the new ones were kept, too


def test_a_copied_folder_is_another_one(flat, folder, tmp_path):
    "Archives unpack with the times that they were packed with, so times and sizes can be equal."
    twin = shutil.copytree(flat, tmp_path / "twin")
    for file in sorted(twin.glob("circle_*"))[:5]:
        content, info = bytearray(file.read_bytes()), file.stat()
        content[60] ^= 255
        file.write_bytes(content)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    model, engine = small(), counted()
    precompute(model, images(flat), engine, folder)
    engine.seen = 0
    data = images(twin)
    precompute(model, data, engine, folder)
    assert engine.seen == data.train.n + data.valid.n


def test_features_are_shared_where_nothing_relevant_differs(flat, folder):
    model, engine = small(), counted()
    first = precompute(model, images(flat), cpu(), folder)
    by_name = ImageData.from_name_func(flat, lambda p: p.name[:2] == "ci", size=24, bs=13)
    augmented = images(flat, augment=augmentations())
    for data in (augmented, images(flat, threads=5), images(flat, cache="memory"), by_name):
        assert same(precompute(model, data, engine, folder), first)
    other_head = small()
    for p in other_head.head.parameters(): p.data.zero_()
    assert same(precompute(other_head.train(), images(flat), engine, folder), first)
    assert engine.seen == 0
    assert other_head.head.training


def test_labels_are_those_of_the_data_at_hand(flat, folder):
    precompute(small(), images(flat), cpu(), folder)
    def shape(path): return "round" if "circle" in path.name else "angular"
    data = ImageData.from_name_func(flat, shape, size=24, bs=13)
    kept = precompute(small(), data, cpu(), folder)
    assert kept.classes == ("angular", "round")
    assert kept.train.targets is data.train.targets
    assert kept.valid.targets is data.valid.targets
    for batch in kept.train.batches(1, 2, 3):
        assert torch.equal(batch.y, data.train.targets[batch.index])


def test_every_setting_of_a_loader_is_decided_upon():
    "A new field of Loader counts until it is in IGNORED_SETTINGS, which is safe. Please decide."
    counted_settings = set(loader_metadata(Loader((), None, 8, 8), Path())) - {"files"}
    assert counted_settings == {"size", "presize", "bs", "fit", "channels", "pixel_range"}
    assert counted_settings | IGNORED_SETTINGS == {f.name for f in fields(Loader)}


def modules_called(function):
    "Names of the kit's modules whose code runs in `function`, in any thread."
    files = set()
    def note(frame, event, arg): files.add(frame.f_code.co_filename)
    threading.setprofile(note)
    sys.setprofile(note)
    try: function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    inside = [Path(f).relative_to(PACKAGE) for f in files if Path(f).is_relative_to(PACKAGE)]
    return {".".join(path.with_suffix("").parts) for path in inside}


def test_the_modules_that_images_pass_through_are_listed(flat):
    data = images(flat, augment=augmentations(), sampling="balanced")
    for fit in ("crop", "squish", "pad"):
        loader = replace(data.train, fit=fit)
        passed = modules_called(lambda: body_features(small(), loader, cpu()))
        assert {"data.images", "data.loader", "train.engine"} <= passed   # they were noticed at all
        assert passed - set(FEATURE_SOURCES) == set()
    made = modules_called(lambda: create_model("resnet18", weights=None, channels=5))
    assert {name for name in made if name.startswith("model.")} - set(FEATURE_SOURCES) == set()


def test_each_listed_module_exists_and_counts():
    digests = {source_digest([name]) for name in FEATURE_SOURCES}
    assert len(digests) == len(FEATURE_SOURCES)
    for name in FEATURE_SOURCES:
        others = [n for n in FEATURE_SOURCES if n != name]
        assert source_digest(others) != source_digest()
    with pytest.raises(FileNotFoundError): source_digest(["data.no_such_module"])


def test_balanced_sampling_draws_the_same_items(flat, folder):
    data = images(flat, sampling="balanced")
    kept = precompute(small(), data, cpu(), folder)
    for a, b in zip(data.train.batches(4, 0, 1), kept.train.batches(4, 0, 1), strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.y, b.y)
        assert torch.equal(b.x, kept.train_eval.features[b.index])


# ---- exact

def weights_of(head): return torch.cat([t.flatten().double() for t in head.state_dict().values()])


def train_head(data, module, head, engine):
    "The weights of `head` after three epochs of `module`, in which only `head` is trained."
    optimizer = make_optimizer([list(head.parameters())])
    phase = Phase(3, (1e-2,))
    steps = train_steps(module, data.train, phase, optimizer, data.task.losses, engine)
    with closing(steps):
        for _ in steps: pass
    return weights_of(head)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bs", [13, 20])   # 39 images: 3 batches of 13, or one of 20 and one of 19
def test_the_head_becomes_what_it_would_have_become(precision, bs, flat, folder):
    data, engine = images(flat, bs=bs, size=48), Engine("cpu", precision)
    def new(): return create_model(n_out=3)
    def on_features(folder):
        features, model = precompute(new(), data, engine, folder), new()
        return train_head(features, model.head, model.head, engine)
    memory = on_features(None)
    for _ in range(2): assert torch.equal(on_features(folder), memory)   # written, then read
    model = new()
    on_images = train_head(data, model, model.head, engine)
    assert (on_images - memory).abs().max() < 1e-3
    assert (on_images - weights_of(new().head)).abs().max() > .05   # it was trained at all


def test_validation_on_features_is_validation_on_images(flat, folder):
    data, model, engine = images(flat), create_model(n_out=3).eval(), Engine("cpu", "auto")
    for _ in range(2):
        kept = precompute(model, data, engine, folder)
        logits = model_outputs(model.head, kept.valid, engine)
        assert torch.equal(logits, model_outputs(model, data.valid, engine))


def test_global_random_numbers_are_not_used(flat, folder):
    model = small()
    state = torch.get_rng_state()
    precompute(model, images(flat), cpu(), folder)
    assert torch.equal(state, torch.get_rng_state())


# ---- files

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_are_read_not_mapped(dtype, folder):
    "A mapped file that gets shorter would end the process."
    train, valid = torch.ones(4000, 1000, dtype=dtype), torch.ones(3, 1000, dtype=dtype)
    save_features(folder, {"n": 1}, {"train": train, "valid": valid})
    features = load_features(folder, {"n": 1})
    file, = folder.iterdir()
    os.truncate(file, 10)
    batch = features["train"][torch.randperm(4000)[:64]]
    assert batch.shape == (64, 1000)
    assert batch.dtype == dtype
    assert not batch.is_inference()
    assert (batch == 1).all()
    assert torch.equal(features["train"], train)
    assert nn.Linear(1000, 2)(batch.float().requires_grad_()).sum().isfinite()


def test_writing_into_features_does_not_change_the_file(flat, folder):
    data, model = images(flat), small()
    precompute(model, data, cpu(), folder)
    kept = precompute(model, data, cpu(), folder)
    next(kept.train.batches(0)).x.zero_()
    assert kept.train.features.abs().sum() > 0
    kept.train.features.zero_()
    assert same(precompute(model, data, cpu(), folder), precompute(model, data, cpu()))


def test_nothing_is_written_beside_the_images(flat, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))
    def times(): return {p: p.stat().st_mtime_ns for p in (flat, *flat.iterdir())}
    before = times()
    flat.chmod(0o555)
    try: kept = precompute(small(), images(flat), cpu(), feature_dir())
    finally: flat.chmod(0o755)
    assert times() == before
    assert kept.train.n == 39
    assert [p.parent for p in (tmp_path / "cache").rglob("*.features")] == [feature_dir()]
    assert clear_features() > 0
    assert not list(feature_dir().iterdir())


def test_a_cache_folder_that_cannot_be_written_to_is_a_warning(flat, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="no cache folder.*LESSONKIT_CACHE"):
        assert feature_dir().parent.parent == tmp_path
    with pytest.warns(UserWarning, match="in memory only, not on disk"):
        kept = precompute(small(), images(flat), cpu(), tmp_path / "file" / "below")
    assert same(kept, precompute(small(), images(flat), cpu()))


def test_a_full_disk_is_a_warning(flat, folder):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save_features(folder, {"n": 1}, {"train": torch.ones(2)})
    before = contents(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))   # longer files fail as on a full disk
    try:
        with pytest.warns(UserWarning, match="in memory only, not on disk: .*too large"):
            kept = precompute(small(), images(flat), cpu(), folder)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(kept, precompute(small(), images(flat), cpu()))
    assert before == contents(folder)


DAMAGES = {
    "cut off": lambda b: b[:len(b) // 2],
    "empty": lambda b: b"",
    "one bit": lambda b: b[:-2] + bytes([b[-2] ^ 8]) + b[-1:],
    "nonsense": lambda b: b"\xff" * len(b),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_made_again(damage, flat, folder):
    data, model, engine = images(flat), small(), counted()
    good = precompute(model, data, engine)
    precompute(model, data, engine, folder)
    file, = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    engine.seen = 0
    with pytest.warns(UserWarning, match="damaged, and they will be computed again"):
        assert same(precompute(model, data, engine, folder), good)
    assert engine.seen == 48
    assert file.read_bytes() == whole
    assert same(precompute(model, data, engine, folder), good)
    assert engine.seen == 48


def test_a_file_under_the_name_of_another_is_not_used(flat, folder):
    data = images(flat)
    precompute(small(), data, cpu(), folder)
    wrong, = folder.iterdir()
    precompute(small(seed=1), data, cpu(), folder)
    right, = set(folder.iterdir()) - {wrong}
    shutil.copy(wrong, right)
    with pytest.warns(UserWarning, match="damaged"):
        kept = precompute(small(seed=1), data, cpu(), folder)
    assert same(kept, precompute(small(seed=1), data, cpu()))


def test_features_of_images_that_change_meanwhile_are_not_kept(flat, folder):
    def change(done, total):
        if done == 13: change_one(flat)
    with pytest.warns(UserWarning, match="changed while they were computed"):
        precompute(small(), images(flat), cpu(), folder, progress=change)
    assert not folder.exists()


def test_progress_is_reported_and_may_break_off(flat, folder):
    data, model, reports = images(flat), small().train(), []
    precompute(model, data, cpu(), progress=lambda *report: reports.append(report))
    assert reports == [(13, 48), (26, 48), (39, 48), (48, 48)]
    def stop(done, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): precompute(model, data, cpu(), folder, progress=stop)
    assert not folder.exists()
    assert model.training


def test_the_metadata_can_be_read(flat, folder):
    "You can look up in a file's header what it is."
    from safetensors import safe_open
    model, data, engine = small(), images(flat), cpu()
    precompute(model, data, engine, folder)
    file, = folder.iterdir()
    with safe_open(file, "pt") as f: header = json.loads(f.metadata()["lessonkit"])
    assert header["metadata"] == feature_metadata(model, data, engine)
    assert header["metadata"]["arch"] == "small"
    assert header["metadata"]["train"]["bs"] == "13"


def test_write_atomic_cleans_up_after_itself(tmp_path, monkeypatch):
    file = write_atomic(tmp_path / "a", b"first")
    def broken(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="No space left"): write_atomic(file, b"second")
    assert contents(tmp_path) == {"a": b"first"}


# ---- room

def test_features_larger_than_the_limit_stay_in_memory(flat, folder):
    save_features(folder, {"n": 1}, {"train": torch.ones(2)})
    with pytest.warns(UserWarning, match="in memory only, .*: they take 0 MB, and the limit"):
        kept = precompute(small(), images(flat), cpu(), folder, limit=2000)
    assert same(kept, precompute(small(), images(flat), cpu()))
    assert load_features(folder, {"n": 1})
    assert len(list(folder.iterdir())) == 1


def test_features_used_longest_ago_go_first(folder):
    ids, features = [{"n": i} for i in range(6)], {"train": torch.ones(50, 50)}
    files = [feature_path(folder, metadata) for metadata in ids]
    for i in range(5):
        save_features(folder, ids[i], features)
        os.utime(files[i], (i, i))
    each = files[0].stat().st_size
    load_features(folder, ids[1])
    save_features(folder, ids[5], features, limit=3 * each)
    assert [file.exists() for file in files] == [False, True, False, False, True, True]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 3 * each


def test_clearing_spares_other_files(folder, capsys):
    save_features(folder, {"n": 1}, {"train": torch.ones(2)})
    own = ["model.safetensors", "my.features", f"{'0' * 64}.features.bak", "pets.features-2"]
    for name in own: (folder / name).write_text("ours, but not the kit's features")
    size = feature_path(folder, {"n": 1}).stat().st_size
    assert clear_features(folder) == size
    assert "1 file(s) of features deleted, 0.0 MB" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == sorted(own)
    assert clear_features(folder / "none") == 0


# ---- other processes

SCRIPT = """
import os, signal, sys, torch
from lessonkit.core.files import tensor_digest
sys.path.insert(0, {tests!r})
from test_features import *
data, engine = images(Path({flat!r})), counted()
{before}
kept = precompute(small(), data, engine, Path({folder!r}))
print(engine.seen, tensor_digest(zip("ab", tensors(kept))))
"""


def start_process(flat, folder, before=""):
    tests = str(Path(__file__).parent)
    code = SCRIPT.format(tests=tests, flat=str(flat), folder=str(folder), before=before)
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=env)


def seen_and_digest(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Warning" not in err, err
    seen, digest = out.split()
    return int(seen), digest


def test_two_processes_at_once_and_one_after_them(flat, folder):
    both = [start_process(flat, folder) for _ in range(2)]
    digests = {seen_and_digest(process)[1] for process in both}
    assert len(digests) == 1
    assert len(list(folder.iterdir())) == 1
    seen, digest = seen_and_digest(start_process(flat, folder))
    assert seen == 0
    assert {digest} == digests


def test_a_process_killed_while_writing_leaves_no_half_file(flat, folder):
    kill = "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)"
    killed = start_process(flat, folder, kill)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left, = folder.iterdir()
    assert not left.name.endswith(".features")
    os.utime(left, (0, 0))   # those of the last hour are not touched
    data, model = images(flat), small()
    assert same(precompute(model, data, cpu(), folder), precompute(model, data, cpu()))
    clear_features(folder)
    assert not list(folder.iterdir())


# ---- GPU

@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision, flat, folder):
    data, engine = images(flat, size=48), Counted("cuda", precision)
    model = engine.place(create_model(n_out=3))
    first = precompute(model, data, engine, folder)
    engine.seen = 0
    second = precompute(model, data, engine, folder)
    assert engine.seen == 0
    assert same(first, second)
    assert second.train.features.device.type == "cpu"
    on_features = model_outputs(model.head, second.valid, engine).float()
    on_images = model_outputs(model, data.valid, engine).float()
    assert torch.allclose(on_features, on_images, atol=1e-5 if precision == "fp32" else .02)
