"""The loop as its consumers see it: what the model is fed, what is shown."""
import io
import re
from contextlib import closing, redirect_stdout
from dataclasses import replace

import pytest
import torch
from torch import nn

from lessonkit import sample
from lessonkit.data.augment import augmentations, to_inputs
from lessonkit.data.image_data import ImageData
from lessonkit.train.schedules import one_cycle
from lessonkit.core.task import item_losses
from lessonkit.train.engine import Engine, keep_freed_memory, model_outputs
from lessonkit.train.history import FitRecord
from lessonkit.train.loop import make_optimizer, Phase, Step, train_steps
from lessonkit.train.progress import ProgressTable

STEP = Step(4, 20, 1, False, .5, (8,), (1e-3,), .9, False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ImageData.from_name_re(sample.tiny(tmp_path_factory.mktemp("d") / "t"), r"^(.+)_\d+", size=24, bs=39, augment=augmentations())


class Watcher(nn.Module):
    "Keeps what it is fed, and what dropout made of ones."
    def __init__(self):
        super().__init__()
        self.seen, self.dropped, self.layer = [], [], nn.Linear(3, 3)

    def forward(self, x):
        self.seen.append(x)
        self.dropped.append(nn.functional.dropout(torch.ones(50), training=self.training))
        return self.layer(x.mean((2, 3)))


def watch(data, epochs=2, **kw):
    net = Watcher()
    with closing(train_steps(net, data.train, Phase(epochs, (1e-3,)), make_optimizer([list(net.parameters())]), lambda z, y: item_losses(z, y, "single"), Engine("cpu", "fp32"), **kw)) as steps:
        return net, list(steps)


def test_every_epoch_sees_other_views_and_drops_other_units(data):
    net, _ = watch(data)
    assert net.seen[0].shape == (39, 3, 24, 24) and not torch.allclose(net.seen[0].sum(0), net.seen[1].sum(0), atol=1e-3)
    assert not torch.equal(net.dropped[0], net.dropped[1])
    again, _ = watch(data)
    assert all(torch.equal(a, b) for a, b in zip(net.seen + net.dropped, again.seen + again.dropped))


def test_every_epoch_has_another_order(data):
    net, _ = watch(replace(data, train=replace(data.train, bs=13, augment=None)))
    first, second = torch.cat(net.seen[:3]), torch.cat(net.seen[3:])
    assert not torch.equal(first, second)
    assert torch.equal(first.mean((1, 2, 3)).sort().values, second.mean((1, 2, 3)).sort().values)   # the same pictures all the same


def test_a_skipped_step_does_not_move_the_schedule(data):
    class Skips(Engine):
        def step(self, optimizer, clip=None):
            self.count = getattr(self, "count", 0) + 1
            return super().step(optimizer, clip) and self.count != 2
    net = Watcher()
    small = replace(data.train, bs=13)
    with closing(train_steps(net, small, Phase(2, (1.,), one_cycle()), make_optimizer([list(net.parameters())]), lambda z, y: item_losses(z, y, "single"), Skips("cpu", "fp32"))) as steps:
        rates = [s.rates[0] for s in steps]
    assert rates == pytest.approx([one_cycle()(k / 6) for k in (0, 1, 1, 2, 3, 4)])


def test_start_gives_the_step_the_same_picture(data):
    data = replace(data, train=replace(data.train, bs=13))
    whole, steps = watch(data, epochs=3)
    late, rest = watch(data, epochs=3, start=4)          # in the middle of the second epoch
    assert [s.index for s in rest] == [4, 5, 6, 7, 8] and [s.rates for s in rest] == [s.rates for s in steps[4:]]
    assert all(torch.equal(a, b) for a, b in zip(late.seen + late.dropped, whole.seen[4:] + whole.dropped[4:]))


def test_rates_follow_the_schedule(data):
    net = Watcher()
    phase = Phase(5, (1e-4, 1e-2), one_cycle())
    opt = make_optimizer([[net.layer.bias], [net.layer.weight]])
    small = replace(data.train, bs=10)
    with closing(train_steps(net, small, phase, opt, lambda z, y: item_losses(z, y, "single"), Engine("cpu", "fp32"))) as steps:
        for s in steps:
            assert s.rates == pytest.approx([r * one_cycle()(s.index / s.total) for r in phase.rates])
            assert [g["lr"] for g in opt.param_groups] == list(s.rates)
    assert s.index + 1 == s.total == 20


def test_notebook_table_is_one_display(monkeypatch):
    drawn = []
    class Handle:
        def update(self, html): drawn.append(html.data)
    def display(html, display_id): drawn.append(html.data); return Handle()
    monkeypatch.setattr("IPython.display.display", display)
    table = ProgressTable(every=0)
    table.notebook = True
    table.progress(STEP, pace=1.)
    table.row(dict(epoch=0, train_loss=.5, name="<b>", time=61.))
    table.progress(STEP, pace=1.)
    table.close()
    assert "step 5 of 20 (25%)" in drawn[0] and "left" in drawn[0] and "<progress" in drawn[2]
    assert drawn[-1] == ("<table><tr><th>epoch</th><th>train_loss</th><th>name</th><th>time</th></tr>"
                         "<tr><td>0</td><td>0.500000</td><td>&lt;b&gt;</td><td>01:01</td></tr></table>")


def test_terminal_progress_is_wiped():
    class Tty(io.StringIO):
        def isatty(self): return True
    out = Tty()
    with redirect_stdout(out):
        table = ProgressTable(every=0)
        table.progress(STEP, pace=1.)
        table.row(dict(epoch=0, train_loss=.25))
    assert "epoch 1, step 5 of 20" in out.getvalue() and re.search(r"\r\x1b\[K +epoch  train_loss\n", out.getvalue())


def test_smooth_loss_is_debiased():
    record = FitRecord("x")
    for _ in range(5): record.add(STEP)
    assert record.smooth == pytest.approx([.5] * 5)


def test_keep_memory_can_be_forbidden(monkeypatch):
    monkeypatch.setenv("LESSONKIT_KEEP_MEMORY", "0")
    assert keep_freed_memory() is False


def test_clip_bounds_the_move():
    "With plain SGD a step is the rate times the gradient, so its length is bounded by rate times clip."
    layer = nn.Linear(4, 2)
    opt = make_optimizer([list(layer.parameters())], "sgd", wd=0)
    for g in opt.param_groups: g["lr"], g["momentum"] = 1., 0.
    before = [p.detach().clone() for p in layer.parameters()]
    engine = Engine("cpu", "fp32")
    engine.backward((layer(torch.ones(8, 4)) * 100).sum())
    assert engine.step(opt, clip=.01)
    assert float(torch.cat([(a - b).flatten() for a, b in zip(before, map(torch.detach, layer.parameters()))]).norm()) == pytest.approx(.01, rel=1e-3)
    assert all(p.grad is None for p in layer.parameters())


# ---- asking
def test_several_views_of_each_picture_and_one_opening_of_it(data, monkeypatch):
    import lessonkit.data
    opened, real, net, numbers = [], lessonkit.data.images.open_pixels, Watcher(), []
    monkeypatch.setattr(lessonkit.data, "open_pixels", lambda source, *a: opened.append(source) or real(source, *a))
    def plain(batch, number):
        numbers.append(number)
        return to_inputs(batch, data.train_eval)
    found = model_outputs(net, replace(data.train, bs=13), Engine("cpu", "fp32"), views=[plain, lambda batch, number: plain(batch, number).flip(3), lambda batch, number: plain(batch, number) * 0])
    assert sorted(opened) == sorted(data.train.paths) and numbers == [0] * 3 + [1] * 3 + [2] * 3     # 39 pictures, 13 at a time
    alone = model_outputs(net, data.train, Engine("cpu", "fp32"))
    assert found.shape == (3, 39, 3) and alone.shape == (39, 3) and torch.allclose(found[0], alone, atol=1e-6)
    assert torch.allclose(found[1], alone, atol=1e-5) and torch.allclose(found[2], net.layer.bias.expand(39, 3))
    assert not found.is_inference() and torch.equal(net.seen[1], net.seen[0].flip(3)) and net.training


def test_a_model_is_compiled_once_for_all_fits_and_predictions(data, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **kw: compiled.append((model, kw)) or model)
    net, engine = Watcher(), Engine("cpu", "fp32", compile="a backend")
    for _ in range(3):
        engine_of_fit = engine.for_training(net)
        opt = make_optimizer([list(net.parameters())])
        with closing(train_steps(net, data.train, Phase(1, (1e-3,)), opt, lambda z, y: item_losses(z, y, "single"), engine_of_fit)) as steps: list(steps)
        model_outputs(net, data.valid, engine)
    assert compiled == [(net, dict(backend="a backend"))]
    other = Watcher()
    model_outputs(other, data.valid, engine.for_training(net))
    assert [m for m, _ in compiled] == [net, other]


def test_each_fit_begins_with_a_fresh_scale_of_the_loss():
    engine = Engine("cpu", "fp32")
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=4., enabled=True)
    assert engine.for_training(nn.Linear(1, 1)).scaler.get_scale() != 4 and engine.for_training(nn.Linear(1, 1)).scaler is not engine.for_training(nn.Linear(1, 1)).scaler
