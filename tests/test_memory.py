"""Batches that go through in parts: the same training, and less memory."""
import gc
import math
import os
import subprocess
import sys
import weakref
from contextlib import closing
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from lessonkit.core.task import Task
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData, Stats
from lessonkit.data.mixing import Mix, mix_batch
from lessonkit.model.classifier import Classifier
from lessonkit.train.engine import Engine
from lessonkit.train.loop import backward_batch, make_optimizer, Phase, train_steps
from lessonkit.train.memory import (
    activation_bytes, MEMORY_LIMIT, micro_batch, mixes_images, passes_to_divide, PROCESS_BYTES,
)
from tiers import examples

ENGINE = Engine("cpu", "fp32")
TASK = Task("single", range(3))
KEY = (42, 0, 0, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("data") / "tiny")
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=24, bs=13, augment=augmentations())
    return replace(data, train=replace(data.train, cache="memory"))


def classifier(head, dropout=0., weights="pretend"):
    "A small model in 64 bits; its batch normalization stays as it is if it has `weights`."
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    last = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(8, 6, 3, 2), nn.ReLU())
    body = nn.Sequential(first, last)
    groups = [("first", [first]), ("last", [last])]
    model = Classifier(body, 6, 3, Stats((.5,) * 3, (.25,) * 3), groups, weights=weights, head=head)
    first[1].running_mean.uniform_(-.2, .2)
    if head == "linear": nn.init.normal_(model.head[1].weight, std=.3)
    return model.freeze_to(0).double().train()


def losses(logits, targets):
    "Cross-entropy in 64 bits."
    soft = targets if targets.ndim == 2 else nn.functional.one_hot(targets, 3)
    return -(logits.log_softmax(1) * soft).sum(1)


def gradients(model, data, engine=ENGINE, **options):
    "Loss, gradients and averages after one batch."
    batch = next(data.train.batches(0))
    loss = backward_batch(Double(model), batch, data.train, losses, engine, KEY, 13, **options)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss, *grads, *(b.clone() for b in model.buffers())]


class Double(nn.Module):
    "A model that takes its inputs in 64 bits."
    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, model.head

    def features(self, x): return self.model.features(x.double())
    def forward(self, x): return self.head(self.features(x))


def assert_same(some, others):
    for a, b in zip(some, others, strict=True): assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# ---- the same gradients
def mixup(x, y, generator): return mix_batch(x, y, Mix(mixup=.4, smoothing=.1), TASK, generator)


@pytest.mark.parametrize("head, passes", [("linear", 1), ("mlp", 2)])
@pytest.mark.parametrize("mix", [None, mixup], ids=["plain", "mixup"])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_divided_batch_has_the_same_gradients(data, head, passes, mix, frozen):
    def once(micro):
        model = classifier(head).freeze_to(frozen)
        assert passes_to_divide(model) == passes
        return gradients(model, data, mix=mix, micro=micro)
    whole = once(None)
    for micro in (1, 2, 5, 12): assert_same(once(micro), whole)
    assert all(map(torch.equal, once(13), whole))


def test_averages_of_the_head_are_updated_once(data):
    model = classifier("mlp")
    gradients(model, data, micro=3)
    counted = [int(m.num_batches_tracked) for m in model.head if isinstance(m, nn.BatchNorm1d)]
    assert counted == [1, 1]


def test_both_passes_drop_the_same_units(data):
    "Gradients of the second pass belong to the features that the head saw in the first."
    seen = []
    model = classifier("mlp", dropout=.5)
    model.pool.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    gradients(model, data, micro=5)
    assert [len(x) for x in seen] == [5, 5, 3] * 2
    assert all(map(torch.equal, seen[:3], seen[3:]))
    before = torch.cat(seen[:3])
    gradients(model, data, micro=5)
    assert torch.equal(torch.cat(seen[6:9]), before)   # it depends on the key alone


def test_the_body_runs_once_where_it_is_frozen(data):
    seen = []
    model = classifier("mlp").freeze_to(-1)
    model.pool.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    gradients(model, data, micro=5)
    assert seen == [5, 5, 3]


@pytest.mark.parametrize("micro", [None, 5])
def test_what_cannot_be_divided_goes_through_whole(data, micro):
    model = classifier("linear", weights="").train()
    assert passes_to_divide(model) == 0
    seen = []
    model.pool.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    gradients(model, data, micro=micro)
    assert seen == [13]


@pytest.mark.parametrize("micro", [None, 5])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_penalty_counts_once(data, head, micro):
    def once(strength):
        model = classifier(head)
        weight = model.head[-1].weight
        penalty = None if strength is None else lambda: strength / 2 * weight.square().sum()
        return gradients(model, data, micro=micro, penalty=penalty), weight
    (without, weight), (with_penalty, _) = once(None), once(3.)
    assert torch.equal(with_penalty[0], without[0])   # the loss that is recorded
    moved = [b - a for a, b in zip(without, with_penalty) if not torch.equal(a, b)]
    assert len(moved) == 1
    assert torch.allclose(moved[0], 3 * weight.detach(), rtol=1e-6)


# ---- engines
class Scaled(Engine):
    "Scales losses, as 16-bit gradients need it."
    def __init__(self, scale):
        super().__init__("cpu", "fp32")
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("micro", [None, 5])
def test_scaled_losses(data, head, micro):
    def penalized(engine):
        model = classifier(head)
        def penalty(): return model.head[-1].weight.square().sum()
        return gradients(model, data, engine, micro=micro, penalty=penalty), model
    plain, model = penalized(ENGINE)
    scaled, _ = penalized(Scaled(2.**12))
    count = len([p for p in model.parameters() if p.grad is not None])
    assert torch.equal(plain[0], scaled[0])
    assert_same([g / 2**12 for g in scaled[1:count + 1]], plain[1:count + 1])


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_an_overflow_in_any_part_skips_the_step(data, head):
    model, engine = classifier(head), Scaled(4.)
    optimizer = make_optimizer([[p for p in model.parameters()]], "sgd")
    for group in optimizer.param_groups: group["lr"] = .1
    before = [p.detach().clone() for p in model.parameters()]
    def loss(z, y): return torch.where(torch.arange(len(z)) == 2, math.inf, 1.) * z.sum(1)
    batch = next(data.train.batches(0))
    backward_batch(Double(model), batch, data.train, loss, engine, KEY, 13, micro=5)
    assert engine.step(optimizer) is False
    assert all(map(torch.equal, before, model.parameters()))
    assert engine.scaler.get_scale() == 2


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_everything_goes_through_the_engine(data, head):
    "Engines that train on several machines average gradients in `backward`."
    class Doubles(Engine):
        def backward(self, loss): super().backward(2 * loss)
    plain = gradients(classifier(head), data, micro=5)
    doubled = gradients(classifier(head), data, Doubles("cpu", "fp32"), micro=5)
    count = len(list(classifier(head).parameters()))
    assert_same(doubled[1:count + 1], [2 * g for g in plain[1:count + 1]])


# ---- whole phases
def trained(data, head, take=None, model=None, optimizer=None, engine=ENGINE, **options):
    model = model or classifier(head)
    optimizer = optimizer or make_optimizer(model.group_parameters())
    phase = Phase(2, (1e-3, 1e-3, 1e-2))
    steps = train_steps(Double(model), data.train, phase, optimizer, losses, engine, **options)
    with closing(steps): taken = list(islice(steps, take))
    return model, optimizer, taken


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("options", [dict(), dict(accumulate=2), dict(clip=.1), dict(mix=mixup)],
                         ids=["plain", "accumulate", "clip", "mixup"])
def test_a_phase_ends_with_the_same_weights(data, head, options):
    whole, _, steps = trained(data, head, **options)
    divided, _, others = trained(data, head, micro=4, **options)
    assert [s.loss for s in others] == pytest.approx([s.loss for s in steps], rel=1e-6)
    for a, b in zip(divided.state_dict().values(), whole.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_divided_training_repeats_and_resumes_exactly(data, head):
    whole = trained(data, head, micro=4)[0].state_dict()
    again = trained(data, head, micro=4)[0].state_dict()
    model, optimizer, _ = trained(data, head, take=4, micro=4)
    trained(data, head, model=model, optimizer=optimizer, start=4, micro=4)
    for a, b, c in zip(whole.values(), again.values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("micro", [None, 4])
def test_a_step_of_several_batches_has_one_penalty(data, micro):
    calls = []
    model = classifier("linear")
    def penalty():
        calls.append(1)
        return model.head[1].weight.square().sum()
    steps = trained(data, "linear", model=model, accumulate=2, micro=micro, penalty=penalty)[2]
    assert [len(step.sizes) for step in steps] == [2, 1] * 2
    assert len(calls) == 4


# ---- how large a part may be
def test_it_depends_on_nothing_but_what_it_is_given():
    model = classifier("linear").float()
    def found(): return micro_batch(model, 64, 3, 1000, ENGINE, PROCESS_BYTES + 2.4e8)
    first = found()
    ballast = torch.ones(50_000_000)
    assert found() == first
    assert 1 < first < 1000
    del ballast


@examples(20)
@given(st.integers(1, 2000), st.floats(0, 8e8))
def test_parts_are_equal_and_no_larger_than_what_fits(bs, room):
    model = classifier("linear").float()
    micro = micro_batch(model, 48, 3, bs, ENGINE, PROCESS_BYTES + room)
    if micro is None: return
    parts = math.ceil(bs / micro)
    assert 1 <= micro < bs
    assert micro == math.ceil(bs / parts)
    less = micro_batch(model, 48, 3, bs, ENGINE, PROCESS_BYTES + room - 1e8)
    assert less is not None and less <= micro


def test_where_nothing_is_divided():
    model = classifier("linear").float()
    assert MEMORY_LIMIT == 3e9
    assert micro_batch(model, 24, 3, 64, ENGINE) is None
    assert micro_batch(model, 4000, 3, 64, ENGINE, math.inf) is None
    assert micro_batch(model, 64, 3, 1, ENGINE, 1.) is None
    assert micro_batch(model, 64, 3, 9, ENGINE, 1.) == 1
    assert micro_batch(classifier("linear", weights="").float(), 64, 3, 9, ENGINE, 1.) is None


def test_other_devices_have_no_limit_unless_they_are_given_one():
    class Elsewhere(Engine):
        device = property(lambda self: torch.device("cuda"), lambda self, value: None)
    engine = Elsewhere.__new__(Elsewhere)
    assert micro_batch(classifier("linear").float(), 4000, 3, 64, engine) is None


def test_frozen_layers_keep_nothing():
    model, x = classifier("linear").float(), torch.rand(2, 3, 64, 64)
    whole = activation_bytes(model, x, ENGINE)
    late = activation_bytes(model.freeze_to(1), x, ENGINE)
    head = activation_bytes(model.freeze_to(2), x, ENGINE)
    assert head < late < whole
    assert activation_bytes(model, x.repeat(2, 1, 1, 1), ENGINE) == pytest.approx(2 * head, rel=.01)


class Draws(nn.Module):
    "Has averages that it replaces, and others that it changes; draws random numbers."
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        self.calls = self.calls + 1
        self.total += 1
        return self.conv(x * torch.rand(()))


def test_asking_leaves_nothing_behind():
    model = nn.Sequential(Draws(), nn.Dropout(.5)).eval()
    model[1].train()
    model[0].conv.bias.grad = torch.ones(4)
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    conv, calls = model[0].conv, model[0].calls
    versions = [p._version for p in model.parameters()]
    assert micro_batch(model, 32, 3, 9, ENGINE, PROCESS_BYTES + 1e7) is None
    assert activation_bytes(model, torch.ones(2, 3, 8, 8), ENGINE) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert model[0].calls is calls
    assert (float(calls), float(model[0].total)) == (0, 0)
    assert [p._version for p in model.parameters()] == versions
    assert torch.equal(conv.bias.grad, torch.ones(4))
    assert conv.weight.grad is None


def test_nothing_stays_in_memory():
    outputs = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Sigmoid())
    hook = lambda module, inputs, output: outputs.append(weakref.ref(output))
    for layer in model: layer.register_forward_hook(hook)
    activation_bytes(model, torch.rand(2, 3, 16, 16), ENGINE)
    gc.collect()
    assert len(outputs) == 4
    assert all(output() is None for output in outputs)


def test_nothing_is_compiled():
    engine = Engine("cpu", "fp32", compile="eager")
    assert micro_batch(classifier("linear").float(), 64, 3, 9, engine, PROCESS_BYTES) == 1
    assert engine._compiled == {}


def test_batch_normalization_without_averages_always_mixes():
    assert mixes_images(nn.BatchNorm2d(3, track_running_stats=False).eval())
    others = nn.Sequential(nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3))
    assert not mixes_images(others)


TRAIN = """
import re, sys
from itertools import islice
from pathlib import Path
from lessonkit.all import *
import torch
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.model.create import create_model
from lessonkit.train.engine import Engine, keep_freed_memory, model_outputs
from lessonkit.train.loop import make_optimizer, Phase, train_steps
from lessonkit.train.memory import micro_batch

folder, size, head = sys.argv[1], int(sys.argv[2]), sys.argv[3]
keep_freed_memory()
data = ImageData.from_name_re(folder, r"^(.+)_\\d+", size=size, bs=64, augment=augmentations())
model = create_model(None, data.c, head=head).freeze_to(0)
engine = Engine("cpu", "fp32")
engine.place(model)
micro = micro_batch(model, size, 3, 64, engine)
optimizer = make_optimizer(model.group_parameters())
phase = Phase(2, (1e-4,) * len(model.groups))
steps = train_steps(model, data.train, phase, optimizer, data.task.losses, engine, micro=micro)
for step in islice(steps, 3): pass
model_outputs(model, data.valid, engine)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(micro, int(peak) * 1024)  # ru_maxrss may be that of the process that began this one
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
@pytest.mark.parametrize("size", [224, 288])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_process_keeps_to_the_limit(tmp_path, size, head):
    folder = sample.tiny(tmp_path / "many", n=240)
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, str(script), str(folder), str(size), head]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    micro, peak = map(int, done.stdout.split()[-2:])
    assert micro < 32
    assert 2e9 < peak < MEMORY_LIMIT
