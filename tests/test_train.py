"""The loop as its consumers see it: what the model is fed, and what is shown."""
import io
import re
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lessonkit.core.task import item_losses
from lessonkit.data import loader as loader_module, sample
from lessonkit.data.augment import augmentations, to_inputs
from lessonkit.data.image_data import ImageData
from lessonkit.train.engine import Engine, keep_freed_memory, model_outputs
from lessonkit.train.history import FitRecord
from lessonkit.train.loop import make_optimizer, Phase, Step, train_steps
from lessonkit.train.progress import ProgressTable
from lessonkit.train.schedules import one_cycle

STEP = Step(4, 20, 1, False, .5, (8,), (1e-3,), .9, False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("data") / "tiny")
    return ImageData.from_name_re(folder, r"^(.+)_\d+", size=24, bs=39, augment=augmentations())


def with_batches_of(bs, data, **settings):
    return replace(data, train=replace(data.train, bs=bs, **settings))


class Watcher(nn.Module):
    "Keeps what it is fed, and what dropout makes of ones."
    def __init__(self):
        super().__init__()
        self.seen, self.dropped, self.layer = [], [], nn.Linear(3, 3)

    def forward(self, x):
        self.seen.append(x)
        self.dropped.append(nn.functional.dropout(torch.ones(50), training=self.training))
        return self.layer(x.mean((2, 3)))


def losses(logits, targets): return item_losses(logits, targets, "single")


def steps_of(net, data, phase, optimizer=None, engine=None, **options):
    optimizer = optimizer or make_optimizer([list(net.parameters())])
    engine = engine or Engine("cpu", "fp32")
    return closing(train_steps(net, data.train, phase, optimizer, losses, engine, **options))


def watch(data, epochs=2, **options):
    net = Watcher()
    with steps_of(net, data, Phase(epochs, (1e-3,)), **options) as steps: return net, list(steps)


def all_equal(some, others):
    return [torch.equal(a, b) for a, b in zip(some, others, strict=True)]


# ---- what the model is fed
def test_every_epoch_sees_other_views_and_drops_other_units(data):
    net, _ = watch(data)
    assert net.seen[0].shape == (39, 3, 24, 24)
    assert not torch.allclose(net.seen[0].sum(0), net.seen[1].sum(0), atol=1e-3)
    assert not torch.equal(net.dropped[0], net.dropped[1])
    again, _ = watch(data)
    assert all(all_equal(net.seen, again.seen))
    assert all(all_equal(net.dropped, again.dropped))


def test_every_epoch_has_another_order(data):
    net, _ = watch(with_batches_of(13, data, augment=None))
    first, second = torch.cat(net.seen[:3]), torch.cat(net.seen[3:])
    assert not torch.equal(first, second)
    first_means, second_means = (x.mean((1, 2, 3)).sort().values for x in (first, second))
    assert torch.equal(first_means, second_means)  # the same images all the same


def test_a_skipped_step_does_not_move_the_schedule(data):
    class SkipsSecond(Engine):
        count = 0

        def step(self, optimizer, clip=None):
            self.count += 1
            return super().step(optimizer, clip) and self.count != 2

    phase = Phase(2, (1.,), one_cycle())
    engine = SkipsSecond("cpu", "fp32")
    with steps_of(Watcher(), with_batches_of(13, data), phase, engine=engine) as steps:
        rates = [step.rates[0] for step in steps]
    assert rates == pytest.approx([one_cycle()(k / 6) for k in (0, 1, 1, 2, 3, 4)])


def test_start_gives_each_step_the_same_images(data):
    data = with_batches_of(13, data)
    whole, steps = watch(data, epochs=3)
    late, rest = watch(data, epochs=3, start=4)  # in the middle of the second epoch
    assert [step.index for step in rest] == [4, 5, 6, 7, 8]
    assert [step.rates for step in rest] == [step.rates for step in steps[4:]]
    assert all(all_equal(late.seen, whole.seen[4:]))
    assert all(all_equal(late.dropped, whole.dropped[4:]))


def test_parts_of_a_batch_see_what_the_batch_would_have_seen(data):
    "Augmentation belongs to the batch, and so does mixing: parts are cut from the result."
    def mix(x, y, generator): return x.flip(0), y.flip(0)
    torch.manual_seed(0)
    whole, steps = watch(data, mix=mix)
    torch.manual_seed(0)
    parts, others = watch(data, mix=mix, micro=16)
    assert [len(x) for x in parts.seen] == [16, 16, 7] * 2
    assert torch.equal(torch.cat(parts.seen[:3]), whole.seen[0])
    assert [step.sizes for step in others] == [(39,), (39,)]
    assert [step.loss for step in others] == pytest.approx([step.loss for step in steps], rel=1e-4)
    assert not torch.equal(parts.dropped[0], parts.dropped[1])


def test_a_skipped_step_has_no_penalty(data):
    "All images of a step are unreadable: there is nothing to train on, and nothing is pulled."
    loader = with_batches_of(13, data).train
    gone = set(loader.order(42, 0, 0)[:13].tolist())
    net, called = Watcher(), []
    def penalty():
        called.append(1)
        return net.layer.weight.square().sum()
    paths = [Path("gone") if i in gone else p for i, p in enumerate(loader.paths)]
    damaged = replace(data, train=replace(loader, paths=tuple(paths), failed={}))
    with steps_of(net, damaged, Phase(1, (1e-3,)), penalty=penalty) as steps: taken = list(steps)
    assert [step.skipped for step in taken] == [True, False, False]
    assert len(called) == 2


def test_weight_decay_may_differ_between_groups():
    body, head = nn.Linear(2, 3), nn.Linear(3, 1)
    groups = [list(body.parameters()), list(head.parameters())]
    for kind in ("adamw", "sgd"):
        optimizer = make_optimizer(groups, kind, wd=[.1, 0.])
        assert [g["weight_decay"] for g in optimizer.param_groups] == [.1, 0., 0., 0.]
    for wrong in ([], [.1], [.1] * 3):
        with pytest.raises(ValueError, match=f"wd has {len(wrong)} numbers for 2"):
            make_optimizer(groups, wd=wrong)


def test_rates_follow_the_schedule(data):
    net, phase = Watcher(), Phase(5, (1e-4, 1e-2), one_cycle())
    optimizer = make_optimizer([[net.layer.bias], [net.layer.weight]])
    with steps_of(net, with_batches_of(10, data), phase, optimizer) as steps:
        for step in steps:
            factor = one_cycle()(step.index / step.total)
            assert step.rates == pytest.approx([rate * factor for rate in phase.rates])
            assert [group["lr"] for group in optimizer.param_groups] == list(step.rates)
    assert step.index + 1 == 20
    assert step.total == 20


# ---- what is shown and recorded
def test_notebook_table_is_one_display(monkeypatch):
    drawn, displays = [], []

    class Handle:
        def update(self, html): drawn.append(html.data)

    def display(html, display_id):
        drawn.append(html.data)
        displays.append(display_id)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    table = ProgressTable(every=0)
    table.notebook = True
    table.progress(STEP, pace=1.)
    table.row(dict(epoch=0, train_loss=.5, name="<b>", time=61.))
    table.progress(STEP, pace=1.)
    table.close()
    assert displays == [True]
    assert "step 5 of 20 (25%)" in drawn[0]
    assert "00:15 left" in drawn[0]
    assert "<progress" in drawn[2]
    header = "<tr><th>epoch</th><th>train_loss</th><th>name</th><th>time</th></tr>"
    row = "<tr><td>0</td><td>0.500000</td><td>&lt;b&gt;</td><td>01:01</td></tr>"
    assert drawn[-1] == f"<table>{header}{row}</table>"


def test_terminal_progress_is_wiped_out():
    class Terminal(io.StringIO):
        def isatty(self): return True

    out = Terminal()
    with redirect_stdout(out):
        table = ProgressTable(every=0)
        table.progress(STEP, pace=1.)
        table.row(dict(epoch=0, train_loss=.25))
    assert "epoch 1, step 5 of 20" in out.getvalue()
    assert re.search(r"\r\x1b\[K +epoch  train_loss\n", out.getvalue())


def test_smooth_loss_has_no_bias_toward_zero():
    record = FitRecord("test")
    for _ in range(5): record.add(STEP)
    assert record.smooth == pytest.approx([.5] * 5)


# ---- the engine
def test_keeping_freed_memory_can_be_forbidden(monkeypatch):
    monkeypatch.setenv("LESSONKIT_KEEP_MEMORY", "0")
    assert keep_freed_memory() is False


def test_clip_limits_the_step():
    "With plain SGD, a step is the rate times the gradient, so it is at most rate times clip long."
    layer, engine = nn.Linear(4, 2), Engine("cpu", "fp32")
    optimizer = make_optimizer([list(layer.parameters())], "sgd", wd=0)
    for group in optimizer.param_groups: group.update(lr=1., momentum=0.)
    before = [p.detach().clone() for p in layer.parameters()]
    engine.backward((layer(torch.ones(8, 4)) * 100).sum())
    assert engine.step(optimizer, clip=.01)
    moves = [(old - new.detach()).flatten() for old, new in zip(before, layer.parameters())]
    assert float(torch.cat(moves).norm()) == pytest.approx(.01, rel=1e-3)
    assert [p.grad for p in layer.parameters()] == [None, None]


def test_a_model_is_compiled_once_for_all_fits_and_predictions(data, monkeypatch):
    compiled = []

    def compile(model, **options):
        compiled.append((model, options))
        return model

    monkeypatch.setattr(torch, "compile", compile)
    net, engine = Watcher(), Engine("cpu", "fp32", compile="eager")
    for _ in range(3):
        with steps_of(net, data, Phase(1, (1e-3,)), engine=engine.for_training(net)) as steps:
            list(steps)
        model_outputs(net, data.valid, engine)
    assert compiled == [(net, dict(backend="eager"))]
    other = Watcher()
    model_outputs(other, data.valid, engine.for_training(net))
    assert [model for model, _ in compiled] == [net, other]


def test_each_fit_begins_with_a_fresh_scale_of_the_loss():
    engine, layer = Engine("cpu", "fp32"), nn.Linear(1, 1)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=4., enabled=True)
    first, second = engine.for_training(layer), engine.for_training(layer)
    assert first.scaler.get_scale() != 4
    assert first.scaler is not second.scaler


# ---- outputs without training
@pytest.mark.parametrize("size, parts", [(200, [3]), (700, [2, 1]), (1200, [1, 1, 1])])
def test_large_images_go_through_in_parts(tmp_path, size, parts):
    folder = sample.tiny(tmp_path / "few", n=9)
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=size, bs=3)
    net, small = Watcher(), replace(data.train_eval, bs=1)
    outputs = model_outputs(net, data.train_eval, Engine("cpu", "fp32"))
    assert [len(x) for x in net.seen[:len(parts)]] == parts
    assert torch.allclose(outputs, model_outputs(net, small, Engine("cpu", "fp32")), atol=1e-6)


def test_each_image_is_opened_once_for_all_views(data, monkeypatch):
    opened, open_pixels = [], loader_module.open_pixels

    def watched(source, *args):
        opened.append(source)
        return open_pixels(source, *args)

    numbers = []

    def plain(batch, number):
        numbers.append(number)
        return to_inputs(batch, data.train_eval)

    def flipped(batch, number): return plain(batch, number).flip(3)
    def black(batch, number): return plain(batch, number) * 0

    monkeypatch.setattr(loader_module, "open_pixels", watched)
    net, engine = Watcher(), Engine("cpu", "fp32")
    loader = with_batches_of(13, data).train
    outputs = model_outputs(net, loader, engine, views=[plain, flipped, black])
    assert sorted(opened) == sorted(data.train.paths)
    assert numbers == [0] * 3 + [1] * 3 + [2] * 3  # 39 images, 13 at a time, three views of each
    assert outputs.shape == (3, 39, 3)
    assert torch.equal(net.seen[1], net.seen[0].flip(3))
    alone = model_outputs(net, data.train, engine)
    assert alone.shape == (39, 3)
    assert torch.allclose(outputs[0], alone, atol=1e-6)
    assert torch.allclose(outputs[1], alone, atol=1e-5)
    assert torch.allclose(outputs[2], net.layer.bias.expand(39, 3))
    assert not outputs.is_inference()
    assert net.training
