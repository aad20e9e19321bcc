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
from tiers import few
from torch import nn

import lessonkit
from lessonkit.core.files import write_atomic
from lessonkit.core.rng import evaluating, seeded_rng
from lessonkit.data import sample
from lessonkit.data.augment import Augment, augmentations, NO_AUGMENT, to_inputs
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.data.loader import Loader
from lessonkit.data.mixing import Mix
from lessonkit.model.classifier import Classifier
from lessonkit.model.create import create_model
from lessonkit.train.engine import Engine, model_outputs
from lessonkit.train.features import (
    body_features, clear_features, FEATURE_SOURCES, feature_dir, feature_metadata, feature_path,
    frozen_part, IGNORED_SETTINGS, load_features, loader_metadata, precompute, save_features,
    source_digest, why_not_precompute,
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


def deep(weights="made up", head="mlp", **options):
    "An early and a late body of a convolution and batch normalization each; the early is frozen."
    torch.manual_seed(0)
    def block(c_in, c_out):
        conv = nn.Conv2d(c_in, c_out, 3, 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())
    early, late = block(3, 8), block(8, 16)
    body = nn.Sequential(early, late)
    body(torch.rand(8, 3, 24, 24))
    groups = [("early body", [early]), ("late body", [late])]
    model = Classifier(body, 16, 3, imagenet_stats, groups, "deep", weights, head=head, **options)
    return model.freeze_to(1).eval()


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


BATCH_SIZES = [13, 20]   # 39 images: 3 batches of 13, or one of 20 and one of 19


class DoubleEngine(Engine):
    "Computes in double precision, where differences can't grow to anything."

    def forward(self, model, x): return model(x.double())


def optimizer_of(model, kind="sgd"):
    return make_optimizer([[p for p in ps if p.requires_grad] for ps in model.group_parameters()],
                          kind)


def steps_of(module, data, optimizer, engine, epochs=3, **options):
    phase = Phase(epochs, (2e-2,) * 3)
    return train_steps(module, data.train, phase, optimizer, data.task.losses, engine, **options)


def train_late(model, data, engine, on_maps, folder=None, kind="sgd"):
    "Weights and averages of the whole model after three epochs of late body and head."
    module = frozen_part(model).rest if on_maps else model
    if on_maps: data = precompute(model, data, engine, folder)
    with closing(steps_of(module, data, optimizer_of(model, kind), engine)) as steps:
        for _ in steps: pass
    return weights_of(model)


@pytest.mark.parametrize("weights", ["made up", ""])   # "": the late body measures its averages
@pytest.mark.parametrize("bs", BATCH_SIZES)
def test_the_late_body_becomes_what_it_would_have_become(bs, weights, flat):
    data, engine = images(flat, bs=bs), DoubleEngine("cpu", "fp32")
    def new(): return deep(weights).double()
    on_maps, on_images = (train_late(new(), data, engine, kind) for kind in (True, False))
    assert (on_maps - on_images).abs().max() < 1e-10
    assert (on_images - weights_of(new())).abs().max() > .01   # it was trained at all


NETWORKS = {
    "small": (24, deep),
    "packaged": (48, lambda: create_model(n_out=3, head="mlp").freeze_to(1)),
    "packaged, linear": (48, lambda: create_model(n_out=3).freeze_to(1)),
    "random": (32, lambda: create_model("resnet18", 3, None).freeze_to(1)),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", few(2, list(NETWORKS)))
def test_real_networks_and_precisions(name, precision, flat, folder):
    size, new = NETWORKS[name]
    data, engine = images(flat, bs=20, size=size), Engine("cpu", precision)
    memory = train_late(new(), data, engine, True)
    for _ in range(2):   # written, then read
        assert torch.equal(train_late(new(), data, engine, True, folder), memory)
    assert len(list(folder.iterdir())) == 1
    on_images = train_late(new(), data, engine, False)
    moved = (on_images - weights_of(new())).norm()
    assert (on_images - memory).norm() < (1e-3 if precision == "fp32" else .1) * moved


def test_the_optimizer_and_dropout_see_no_difference(flat):
    "AdamW divides by its averages, and dropout draws the same numbers for late body and head."
    data, engine = images(flat, bs=20), DoubleEngine("cpu", "fp32")
    def new():
        model = deep().double()
        model.body[1].append(nn.Dropout(.3))
        return model
    on_maps, on_images = (train_late(new(), data, engine, on_maps, kind="adamw")
                          for on_maps in (True, False))
    assert (on_maps - on_images).abs().max() < 1e-9


@pytest.mark.parametrize("new", [deep, NETWORKS["packaged"][1]])
def test_validation_on_maps_is_validation_on_images(new, flat, folder):
    data, model, engine = images(flat), new().eval(), cpu()
    for _ in range(2):
        kept = precompute(model, data, engine, folder)
        logits = model_outputs(frozen_part(model).rest, kept.valid, engine)
        assert torch.equal(logits, model_outputs(model, data.valid, engine))


def test_training_on_maps_leaves_the_early_body_alone(flat):
    model, data = deep(""), images(flat)
    early = {name: t.clone() for name, t in model.body[0].state_dict().items()}
    train_late(model, data, cpu(), True)
    for name, t in model.body[0].state_dict().items(): assert torch.equal(t, early[name])
    assert not any(p.grad is not None for p in model.body[0].parameters())
    assert not any(m.training for m in model.body[0].modules())


def test_the_whole_body_whatever_is_frozen(flat):
    "The features that a linear head is solved on, before the late body is fine-tuned."
    data, model = images(flat), deep()
    frozen = precompute(deep().freeze_to(-1), data, cpu())
    for n in (0, 1):
        model.freeze_to(n)
        trained = [p.requires_grad for p in model.parameters()]
        kept = precompute(model, data, cpu(), depth=-1)
        assert same(kept, frozen)
        assert model.frozen == n
        assert [p.requires_grad for p in model.parameters()] == trained
    assert frozen.train.stacked.shape == (39, 32)
    assert frozen_part(model, -1).rest is model.head


def test_what_cannot_be_cut_is_refused(flat):
    model = create_model("timm:test_vit", 3, None).freeze_to(1)
    assert frozen_part(model) is None
    with pytest.raises(ValueError, match="early body, late body, head. the first 1 can't be run"):
        precompute(model, images(flat), cpu())
    assert frozen_part(model, -1).pooled


# ---- copies

def augmented(flat, **options):
    return images(flat, **{"augment": augmentations(max_rotate=30)} | options)


def which_variants(loader, epoch, start=0):
    "Of each item of an epoch, in order: its position, and which of its variants was drawn."
    found = []
    for batch in loader.batches(42, 0, epoch, start=start):
        for x, i in zip(batch.x, batch.index.tolist()):
            equal = [torch.equal(x, variant) for variant in loader.stacked[:, i]]
            assert sum(equal) == 1
            found.append((i, equal.index(True)))
    return found


@pytest.mark.parametrize("depth", [1, -1])
def test_copies_are_what_the_loader_makes(depth, flat):
    data, model = augmented(flat), deep()
    part, kept = frozen_part(model, depth), precompute(model, data, cpu(), depth=depth, copies=3,
                                                       seed=7)
    stack = kept.train.stacked
    assert stack.shape[:2] == (4, 39)
    plain = precompute(model, images(flat), cpu(), depth=depth)
    assert torch.equal(stack[0], plain.train.stacked)
    for loader in (kept.train_eval, kept.valid): assert loader.variants is None
    assert torch.equal(kept.train_eval.stacked, plain.train.stacked)
    assert torch.equal(kept.valid.stacked, plain.valid.stacked)
    for number, batch in enumerate(data.train_eval.batches()):
        for k in (1, 2, 3):
            x = to_inputs(batch, data.train, "cpu", seeded_rng(7, "copy", k, number))
            with evaluating(model), torch.inference_mode(): own = cpu().forward(part.compute, x)
            assert torch.equal(own, stack[k, batch.index])
    assert not torch.equal(stack[1], stack[2])
    other = precompute(model, data, cpu(), depth=depth, copies=3, seed=8).train.stacked
    assert not torch.equal(other[1], stack[1])


def test_fewer_copies_are_the_first_of_more(flat):
    "So that a run with more copies sees the same ones, and others."
    data, model = augmented(flat), deep()
    two, five = (precompute(model, data, cpu(), copies=n).train.stacked for n in (2, 5))
    assert torch.equal(two, five[:3])


def test_an_epoch_draws_one_of_the_copies_for_each_item(flat):
    loader = precompute(deep(), augmented(flat), cpu(), copies=3).train
    order = [i for i, _ in which_variants(loader, 0)]
    assert sorted(order) == list(range(39))
    assert order == loader.order(42, 0, 0).tolist()
    assert which_variants(loader, 0) == which_variants(loader, 0)
    assert dict(which_variants(loader, 0)) != dict(which_variants(loader, 1))
    for start in (1, 2):
        assert which_variants(loader, 3, start) == which_variants(loader, 3)[13 * start:]
    drawn = torch.tensor([sorted(which_variants(loader, epoch)) for epoch in range(60)])[..., 1]
    counts = drawn.flatten().bincount(minlength=4)
    expected = drawn.numel() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 16.3   # chi squared, p = .001
    for of_item in drawn.T: assert set(of_item.tolist()) == {0, 1, 2, 3}


def test_balanced_sampling_draws_a_copy_for_each_occurrence(flat):
    "An image that comes several times in an epoch need not be the same one each time."
    data = augmented(flat, sampling="balanced")
    loader = precompute(deep(), data, cpu(), copies=3).train
    for a, b in zip(data.train.batches(42, 0, 1), loader.batches(42, 0, 1), strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.y, b.y)
    drawn = which_variants(loader, 1)
    assert len(set(i for i, _ in drawn)) < len(drawn)
    assert len(set(drawn)) > len(set(i for i, _ in drawn))


def test_no_copies_without_augmentation(flat, folder):
    for augment in (None, NO_AUGMENT):
        kept = precompute(deep(), images(flat, augment=augment), cpu(), folder, copies=4)
        assert kept.train.variants is None
    assert len(list(folder.iterdir())) == 1   # the same features


@pytest.mark.parametrize("copies", [0, 2])
def test_training_on_maps_resumes_exactly(copies, flat, folder):
    data, engine = augmented(flat, bs=10), cpu()   # 4 batches of 9 or 10
    def begin():
        model = deep("")
        kept = precompute(model, data, engine, folder, copies=copies)
        return model, frozen_part(model).rest, kept, optimizer_of(model, "adamw")
    model, rest, kept, optimizer = begin()
    with closing(steps_of(rest, kept, optimizer, engine)) as steps:
        for step in steps:
            if step.index == 5: break   # in the middle of the second epoch
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    state = optimizer.state_dict()
    other, rest, kept, optimizer = begin()
    other.load_state_dict(weights)
    optimizer.load_state_dict(state)
    with closing(steps_of(rest, kept, optimizer, engine, start=6)) as steps:
        assert [step.index for step in steps] == list(range(6, 12))
    through, rest, kept, optimizer = begin()
    with closing(steps_of(rest, kept, optimizer, engine)) as steps:
        for _ in steps: pass
    assert torch.equal(weights_of(other), weights_of(through))
    assert not torch.equal(weights_of(model), weights_of(through))


@pytest.mark.parametrize("depth", [1, -1])
@pytest.mark.parametrize("copies", [0, 2])
def test_unreadable_images_have_no_features_at_any_depth(copies, depth, flat, folder):
    data, model = augmented(flat), deep()
    data.train.paths[5].write_bytes(b"no image")
    data.valid.paths[3].write_bytes(b"no image")
    for place in (folder, folder, None):   # computed, read, and in memory only
        kept = precompute(model, data, cpu(), place, depth=depth, copies=copies)
        variants = kept.train.stacked if copies else kept.train.stacked[None]
        for features, position in [*((part, 5) for part in variants), (kept.valid.stacked, 3)]:
            missing = features.flatten(1).isnan()
            assert missing.all(1).nonzero().flatten().tolist() == [position]
            assert missing.any(1).sum() == 1
        assert (list(kept.train.unreadable), list(kept.valid.unreadable)) == ([5], [3])


def test_training_on_maps_leaves_out_unreadable_images(flat):
    data, model = augmented(flat), deep()
    data.train.paths[5].write_bytes(b"no image")
    kept = precompute(model, data, cpu(), copies=2)
    noting = replace(kept, train=replace(kept.train, failed={}))
    steps = list(steps_of(frozen_part(model).rest, noting, optimizer_of(model), cpu()))
    assert sum(sum(step.sizes) for step in steps) == 3 * 38
    assert list(noting.train.failed) == [5]
    assert weights_of(model).isfinite().all()


def test_progress_counts_the_copies(flat):
    reports = []
    precompute(deep(), augmented(flat), cpu(), copies=2, progress=lambda *now: reports.append(now))
    assert [done for done, _ in reports] == [*range(13, 118, 13), 39 * 3 + 9]
    assert {total for _, total in reports} == {39 * 3 + 9}


# ---- stale maps and copies are never used, and others are

def test_maps_do_not_depend_on_what_is_trained(flat, folder):
    data, engine, model = images(flat), counted(), deep()
    first = precompute(model, data, engine, folder)
    assert engine.seen == 48
    for name in ("body.1.0.weight", "body.1.1.running_mean", "head.6.weight"): nudge(name)(model)
    assert same(precompute(model, data, engine, folder), first)
    assert engine.seen == 48
    for count, name in enumerate(("body.0.0.weight", "body.0.1.running_var", "normalize.std"), 2):
        nudge(name)(model)
        assert not same(precompute(model, data, engine, folder), first)
        assert engine.seen == 48 * count


def test_each_depth_and_kind_of_copies_has_its_own_file(flat, folder):
    plain, model, engine = images(flat), deep(), counted()
    flipped = augmented(flat, augment=Augment(max_rotate=0))
    kinds = [(plain, dict()), (plain, dict(depth=-1)), (flipped, dict(copies=1)),
             (flipped, dict(copies=2)), (flipped, dict(copies=2, seed=1)),
             (augmented(flat), dict(copies=2)), (flipped, dict(copies=2, depth=-1))]
    for count, (data, options) in enumerate(kinds, 1):
        first = precompute(model, data, engine, folder, **options)
        seen = engine.seen
        again = precompute(model, data, engine, folder, **options)
        assert engine.seen == seen
        assert torch.equal(again.train.stacked, first.train.stacked)
        assert len(list(folder.iterdir())) == count


def test_larger_images_have_maps_of_their_own(flat, folder):
    data, model, engine = images(flat), deep(), counted()
    small_maps = precompute(model, data, engine, folder)
    engine.seen = 0
    large_maps = precompute(model, data.resized(32), engine, folder)
    assert engine.seen == 48
    assert small_maps.train.features.shape == (39, 8, 11, 11)
    assert large_maps.train.features.shape == (39, 8, 15, 15)


def test_copies_pass_through_listed_modules_only(flat):
    data, model = augmented(flat), deep()
    kept = modules_called(lambda: precompute(model, data, cpu(), copies=2))
    assert {"data.augment", "data.geometry", "model.classifier"} <= kept
    assert kept - set(FEATURE_SOURCES) - {"data.image_data", "core.files", "core.task"} == set()


def test_copies_leave_random_numbers_and_modes_alone(flat):
    model = deep().train()
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    kept = precompute(model, augmented(flat), cpu(), copies=2)
    for _ in kept.train.batches(0): pass
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes


# ---- reasons and room

def test_reasons_that_stand_against_features(flat):
    data, varied, mixup = images(flat), augmented(flat), Mix(mixup=.4)
    assert why_not_precompute(deep(), data) == ""
    assert why_not_precompute(deep(), data.resized(32)) == ""
    assert why_not_precompute(deep(), varied, copies=2) == ""
    assert why_not_precompute(deep(), varied, Mix(smoothing=.1), copies=2) == ""
    for depth in (1, 2):
        def new(): return deep().freeze_to(depth)
        assert "augmented" in why_not_precompute(new(), varied)
        assert "augmented" in why_not_precompute(new(), varied.resized(32))
        for copies in (0, 2): assert "mixup" in why_not_precompute(new(), data, mixup, copies)
        trains_bn = deep(train_bn=True).freeze_to(depth)
        assert "train_bn" in why_not_precompute(trains_bn, varied, copies=2)
    assert why_not_precompute(deep().freeze_to(0), data) == "the body is being trained"
    whole = create_model("timm:test_vit", 3, None).freeze_to(1)
    assert "can't run alone" in why_not_precompute(whole, data)
    assert why_not_precompute(whole.freeze_to(-1), data) == ""


def test_the_limit_of_memory_counts_every_copy_and_byte(flat, monkeypatch):
    data, varied, model = images(flat), augmented(flat), deep()
    of_map, of_features = 8 * 11 * 11 * 4, 32 * 4
    def limit(n): monkeypatch.setattr("lessonkit.train.features.MAPS_LIMIT", n)
    limit(of_map * 48)
    assert why_not_precompute(model, data) == ""
    assert why_not_precompute(model, data, copies=9) == ""   # there are none to be made
    too_much = why_not_precompute(model, varied, copies=1)
    assert "its frozen layers would take 0.0 GB" in too_much
    assert "smaller images or fewer copies" in too_much
    assert why_not_precompute(model, varied, copies=1, engine=Engine("cpu", "bf16")) == ""
    limit(of_map * 48 - 1)
    assert "(take smaller images to stay" in why_not_precompute(model, data)
    model.freeze_to(-1)
    limit(of_features * (39 * 4 + 9))
    assert why_not_precompute(model, varied, copies=3) == ""
    assert "would take" in why_not_precompute(model, varied, copies=4)
    limit(0)
    assert why_not_precompute(model, data) == ""   # plain features of the whole body always fit


def test_what_is_asked_is_what_is_kept(flat):
    "The size in memory that a reason is about is the real one."
    for precision in ("fp32", "bf16"):
        engine, model = Engine("cpu", precision), deep()
        kept = precompute(model, augmented(flat), engine, copies=2)
        real = kept.train.stacked.nbytes + kept.valid.stacked.nbytes
        assert real == 48 * kept.train.features[0].nbytes + 2 * 39 * kept.train.features[0].nbytes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lessonkit.train.features.MAPS_LIMIT", real)
            assert why_not_precompute(model, augmented(flat), None, 2, engine) == ""
            patch.setattr("lessonkit.train.features.MAPS_LIMIT", real - 1)
            assert "would take" in why_not_precompute(model, augmented(flat), None, 2, engine)


def test_large_maps_stay_in_memory(flat, folder, recwarn):
    "Those of more than a tenth of the limit for all files; that is no reason for a warning."
    data, model, engine = images(flat), deep(), counted()
    n_bytes = 48 * 8 * 11 * 11 * 4
    kept = precompute(model, data, engine, folder, limit=10 * n_bytes - 1)
    assert not folder.exists()
    assert same(kept, precompute(model, data, engine, folder, limit=10 * n_bytes))
    assert len(list(folder.iterdir())) == 1
    assert engine.seen == 2 * 48
    precompute(model, data, engine, folder, depth=-1, limit=10 * n_bytes - 1)
    assert len(list(folder.iterdir())) == 2   # features of the whole body are small
    assert not recwarn.list


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bs, head", [(13, "mlp"), (20, "mlp"), (20, "linear")])
def test_the_head_becomes_what_it_would_have_become(precision, bs, head, flat, folder):
    data, engine = images(flat, bs=bs, size=48), Engine("cpu", precision)
    def new(): return create_model(n_out=3, head=head)
    def on_features(folder):
        features, model = precompute(new(), data, engine, folder), new()
        return train_head(features, model.head, model.head, engine)
    memory = on_features(None)
    for _ in range(2): assert torch.equal(on_features(folder), memory)   # written, then read
    model = new()
    on_images = train_head(data, model, model.head, engine)
    assert (on_images - memory).abs().max() < 1e-3
    assert (on_images - weights_of(new().head)).abs().max() > .02   # it was trained at all


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
    data, engine = augmented(flat, size=48), Counted("cuda", precision)
    model = engine.place(create_model(n_out=3, head="mlp"))
    for depth in (1, -1):
        def kept(): return precompute(model, data, engine, folder, depth=depth, copies=2)
        first = kept()
        engine.seen = 0
        second = kept()
        assert engine.seen == 0
        assert torch.equal(first.train.stacked, second.train.stacked)
        assert same(first, second)
        assert second.train.features.device.type == "cpu"
        rest = frozen_part(model, depth).rest
        on_features = model_outputs(rest, second.valid, engine).float()
        on_images = model_outputs(model, data.valid, engine).float()
        assert torch.allclose(on_features, on_images, atol=1e-5 if precision == "fp32" else .02)
