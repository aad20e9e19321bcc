"""The learning-rate finder sees what it should, stops when it should, and leaves nothing behind."""
import copy
import math
import pickle
import random
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from lessonkit.core.task import Task
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.mixing import Mix, mix_batch
from lessonkit.learner import Learner
from lessonkit.train.engine import Engine
from lessonkit.train.loop import make_optimizer, Phase, train_steps
from lessonkit.train.lr_finder import LRFind, preserve_state, run_lr_finder, suggest_rates
from tiers import examples

ENGINE = Engine("cpu", "fp32")
TASK = Task("single", range(3))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    flat = sample.tiny(tmp_path_factory.mktemp("d") / "t")
    data = ImageData.from_name_re(flat, r"^(.+)_\d+", size=24, bs=8, augment=augmentations())
    return replace(data, train=replace(data.train, cache="memory"))


class Counts(nn.Module):
    "Counts its calls in a buffer that it replaces, and draws from every global generator."
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls = self.calls + self.training
        return x * (1 + .01 * (random.random() + np.random.rand()))


def net(frozen=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), Counts(), nn.Dropout(.3), nn.Linear(72, 3))
    if frozen: model[0].requires_grad_(False)
    return model


def find(model, data, loss=TASK.losses, engine=ENGINE, **options):
    groups = [model[:3].parameters(), model[3:].parameters()]
    return run_lr_finder(model, data.train, groups, loss, engine, **options)


def seed_globals(seed):
    random.seed(seed)
    np.random.seed(seed)


def train(model, data, fit=0):
    "The losses, and weights and buffers, after a phase of training."
    seed_globals(0)
    optimizer = make_optimizer([[p for p in model.parameters() if p.requires_grad]])
    phase = Phase(2, (1e-2,))
    steps = train_steps(model, data.train, phase, optimizer, TASK.losses, ENGINE, fit=fit)
    with closing(steps): losses = [s.loss for s in steps]
    return losses, [t.clone() for t in (*model.parameters(), *model.buffers())]


def assert_same_training(a, b):
    assert a[0] == b[0]
    assert all(map(torch.equal, a[1], b[1]))


def snapshot(model):
    "Everything that must be as before."
    tensors = {name: t.detach().clone() for name, t in model.named_parameters()}
    tensors |= {name: t.clone() for name, t in model.named_buffers()}
    tensors |= {"torch": torch.get_rng_state()}
    tensors |= {"numpy": torch.from_numpy(np.random.get_state()[1].copy())}
    return dict(
        tensors=tensors, python=random.getstate(), modes=[m.training for m in model.modules()],
        grads=[p.grad for p in model.parameters()],
        requires_grad=[p.requires_grad for p in model.parameters()])


def assert_as_before(model, before):
    now = snapshot(model)
    assert now["tensors"].keys() == before["tensors"].keys()
    for name, t in now["tensors"].items(): assert torch.equal(t, before["tensors"][name]), name
    for a, b in zip(now["grads"], before["grads"], strict=True): assert a is b
    for key in ("python", "modes", "requires_grad"): assert now[key] == before[key]


# --- reading the curve

def test_three_steps_are_enough_and_two_are_not():
    for n in range(9):
        found = suggest_rates(np.geomspace(1e-3, 1, n), np.linspace(2, 1, n))
        assert len(found) == (4 if n >= 8 else 0)
    assert len(suggest_rates([1, 2, 3], [3, 2, 1], 0, 0)) == 4


@examples(200)
@given(st.lists(st.floats(-5, 5), max_size=120), st.integers(0, 12))
def test_any_curve_is_read_without_an_error(losses, skip):
    rates = np.geomspace(1e-7, 10, len(losses))
    found = suggest_rates(rates, losses, skip)
    assert set(found) in ({"minimum", "steep", "valley", "slide"}, set())
    if not found: return
    for name in ("steep", "valley", "slide"): assert rates[0] <= found[name] <= rates[-1] * 1.001
    assert np.isclose(rates, 10 * found["minimum"]).any()


def test_suggestions_are_those_of_fastai():
    "Computed with fastai 2.8.12 from these curves, without the first 10 and last 5 of 100 steps."
    at = np.geomspace(1e-7, 10, 100, endpoint=False)
    x = np.log10(at)
    hump = 2.3 - 1.8 * np.exp(-((x + 1.3) / 1.2)**2) + np.maximum(0, x)**2 * 30
    wiggle = np.cos(np.arange(100) * 1.7)
    smooth = dict(minimum=.0047863, steep=.00630957, valley=.000131826, slide=.00173780)
    bumpy = dict(minimum=.0057544, steep=.0109648, valley=.00173780, slide=2.08930e-5)
    assert suggest_rates(at, hump) == pytest.approx(smooth, rel=1e-5)
    assert suggest_rates(at, hump + .04 * wiggle) == pytest.approx(bumpy, rel=1e-5)


# --- the run

@pytest.mark.parametrize("linear", [False, True])
def test_rates_grow_as_promised(data, linear):
    options = dict(num_it=20, start_lr=1e-4, end_lr=1e-2, stop_div=False)
    found = find(net(), data, linear=linear, **options)
    k = np.arange(20) / 20
    expected = 1e-4 + (1e-2 - 1e-4) * k if linear else 1e-4 * 100**k
    assert found.rates == pytest.approx(expected)
    assert found.linear == linear
    assert found.note == ""


STARTS = [[1e-8, 1e-7], np.array([1e-8, 1e-7]), slice(1e-8, 1e-7), slice(1e-7)]


@pytest.mark.parametrize("start", STARTS, ids=["list", "array", "slice", "open slice"])
def test_groups_keep_their_ratios(data, start):
    made = []
    def make(params):
        made.append(torch.optim.SGD(params, lr=0.))
        return made[-1]
    found = find(net(), data, start_lr=start, num_it=10, optimizer=make, stop_div=False)
    rates = {group["group"]: group["lr"] for group in made[-1].param_groups}
    assert rates[1] == found.rates[-1]
    assert rates[0] == pytest.approx(rates[1] / 10)
    assert found.rates[0] == 1e-7


def test_there_is_a_rate_for_each_group(data):
    with pytest.raises(ValueError, match="3 learning rates for 2 layer groups"):
        find(net(), data, start_lr=[1e-7] * 3)


def test_frozen_parameters_are_left_out(data):
    trained = []
    def make(params):
        trained.extend(p for group in params for p in group["params"])
        return torch.optim.SGD(params, lr=0.)
    model = net(frozen=True)
    find(model, data, num_it=2, optimizer=make)
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="every layer group is frozen"):
        find(net().requires_grad_(False), data)


def scripted(values):
    "A loss function that gives these values one after the other."
    values = iter(values)
    def loss(z, y): return z.sum(1) * 0 + next(values)
    return loss


def test_it_stops_at_four_times_the_best(data):
    found = find(net(), data, loss=scripted([1.] * 5 + [100.] * 95), start_lr=1e-3)
    assert len(found.losses) == 6
    assert found.losses[-1] > 4 > found.losses[-2]
    assert "four times its best" in found.note


def test_it_goes_on_at_less_than_four_times_the_best(data):
    mild = find(net(), data, loss=scripted([1.] * 5 + [3.9] * 95))
    assert len(mild.losses) == 50
    assert "best" not in mild.note


def test_without_stop_div_it_goes_on(data):
    found = find(net(), data, loss=scripted([1.] * 5 + [100.] * 95), stop_div=False)
    assert found.note.startswith("50 steps instead of 100")
    assert len(data.train) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stop_div", [True, False])
def test_it_stops_at_once_where_the_loss_is_not_finite(data, value, stop_div):
    found = find(net(), data, loss=scripted([1., 1., value, 1.]), stop_div=stop_div)
    assert len(found.rates) == 2
    assert all(map(math.isfinite, found.losses))
    assert f"the loss was {value}" in found.note
    assert found.suggestions == {}
    assert math.isnan(found.valley)


@pytest.mark.parametrize("bs, batches", [(39, 1), (20, 2), (13, 3), (4, 10)])
def test_few_batches_are_used_ten_times_at_most(data, bs, batches):
    few = replace(data, train=replace(data.train, bs=bs))
    assert len(few.train) == batches
    found = find(net(), few, end_lr=1e-3)
    assert len(found.rates) == min(100, 10 * batches)
    assert found.rates[-1] < 1e-3
    assert (f"{10 * batches} steps instead of 100" in found.note) == (batches < 10)
    assert found.rates[1] / found.rates[0] == pytest.approx(1e4**(1 / len(found.rates)))


@pytest.mark.parametrize("num_it", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])
def test_short_runs(data, num_it):
    found = find(net(), data, num_it=num_it)
    assert len(found.rates) == num_it
    assert bool(found.suggestions) == (num_it >= 8)
    assert len(tuple(found)) == 2
    assert repr(found)


def test_mixing_is_passed_on(data):
    def mix(x, y, generator): return mix_batch(x, y, Mix(smoothing=.5), TASK, generator)
    assert find(net(), data, num_it=5, mix=mix).losses != find(net(), data, num_it=5).losses


def test_parts_of_batches_find_the_same(data):
    def divisible():
        model = net()
        model[1].eval()
        model[1].train = lambda mode: model[1]
        model[6].p = 0.
        model[5] = nn.Identity()
        return model
    whole = find(divisible(), data, num_it=10, stop_div=False)
    parts = find(divisible(), data, num_it=10, stop_div=False, micro=3)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3)
    assert parts.losses != whole.losses


def test_the_penalty_is_trained_and_not_recorded(data):
    def losses(strength):
        model = net()
        seed_globals(0)
        def penalty(): return strength * model[7].weight.square().sum()
        options = dict(start_lr=1e-2, num_it=10, stop_div=False)
        return find(model, data, penalty=penalty, **options).losses
    without, strong = losses(0.), losses(100.)
    assert strong[0] == without[0]
    assert strong[-1] != without[-1]


def test_a_skipped_step_is_not_recorded(data):
    class Skips(Engine):
        taken = 0
        def for_training(self, model): return self
        def step(self, optimizer, clip=None):
            self.taken += 1
            return super().step(optimizer, clip) and self.taken > 3
    found = find(net(), data, num_it=12, engine=Skips("cpu", "fp32"), stop_div=False)
    assert len(found.rates) == 9
    assert found.rates[0] == 1e-7
    assert len(set(found.rates)) == 9


@pytest.mark.parametrize("wrong, message", [
    (dict(start_lr=0), "above 0"), (dict(start_lr=10), "got 10 and 10"),
    (dict(end_lr=math.inf), "inf"), (dict(num_it=0), "got 0"), (dict(num_it=9.5), "got 9.5")])
def test_wrong_settings_are_named(data, wrong, message):
    with pytest.raises(ValueError, match=message): find(net(), data, **wrong)


def test_the_result_is_plain_data():
    found = LRFind((1e-3, 1e-2), (2., 1.), .01, .02, .03, .04, "stopped early")
    assert pickle.loads(pickle.dumps(found)) == found
    assert tuple(found) == (.01, .02)
    words = [line.split()[0] for line in repr(found).splitlines()]
    assert words == ["LRFind:", "minimum", "steep", "valley", "slide", "stopped"]


# --- putting everything back

@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "frozen"])
@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_training_afterwards_is_what_it_would_have_been(data, frozen, augment):
    if not augment: data = replace(data, train=replace(data.train, augment=None))
    never, once, between = net(frozen), net(frozen), net(frozen)
    find(once, data, start_lr=1e-4, num_it=20)
    assert_same_training(train(never, data), train(once, data))
    train(between, data)
    find(between, data, start_lr=1e-4, num_it=20)
    assert_same_training(train(never, data, fit=1), train(between, data, fit=1))


def test_it_finds_the_same_every_time(data):
    model = net()
    def once():
        seed_globals(1)
        return find(model, data, num_it=20)
    first = once()
    for p in model.parameters(): p.grad = torch.ones_like(p)   # left by somebody else
    assert once() == first
    assert (model[7].bias.grad == 1).all()


class Broken(RuntimeError): pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loss", "backward", "step"])
def test_nothing_is_left_whatever_happens(data, error, where):
    class Breaks(Engine):
        calls = 0
        def for_training(self, model): return self
        def _break(self, place):
            if place != where: return
            self.calls += 1
            if self.calls == 4: raise error("here")
        def backward(self, loss):
            self._break("loss")
            super().backward(loss)
            self._break("backward")
        def step(self, optimizer, clip=None):
            super().step(optimizer, clip)
            self._break("step")
            return True
    model = net(frozen=True)
    model.train()
    model[1].eval()
    model[7].bias.grad = torch.ones(3)
    before = snapshot(model)
    with pytest.raises(error): find(model, data, engine=Breaks("cpu", "fp32"), start_lr=1e-2)
    assert_as_before(model, before)


def test_a_whole_run_leaves_nothing(data):
    model = net()
    model.eval()
    model[6].train()
    before = snapshot(model)
    find(model, data, start_lr=1e-2)
    assert_as_before(model, before)


def test_tensors_that_did_not_change_are_not_written(data):
    "Features computed from a frozen body stay valid: torch counts every write."
    model = net(frozen=True)
    model[1].eval().requires_grad_(False)
    model[1].train = lambda mode: model[1]
    body = (*model[0].parameters(), *model[1].parameters(), *model[1].buffers())
    before = [t._version for t in body]
    find(model, data, num_it=5)
    assert [t._version for t in body] == before
    assert model[7].weight._version > 0


def test_preserve_state_restores_weights_beside_one_that_is_nan():
    model = nn.Linear(2, 1)
    with torch.no_grad(): model.weight[0, 0] = math.nan
    before = model.weight.detach().clone()
    with preserve_state(model), torch.no_grad(): model.weight.fill_(3.)
    assert torch.equal(before.nan_to_num(7.), model.weight.detach().nan_to_num(7.))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(data, precision):
    engine = Engine("cuda", precision)
    model = engine.place(net())
    scale, state = engine.scaler.get_scale(), torch.cuda.get_rng_state()
    before = snapshot(model)
    found = find(model, data, engine=engine)
    assert_as_before(model, before)
    assert engine.scaler.get_scale() == scale
    assert torch.equal(state, torch.cuda.get_rng_state())
    assert len(found.rates) > 20
    assert all(t.is_cuda for t in model.state_dict().values())


def test_after_a_fit_the_finder_draws_other_random_numbers(data):
    "With those of the fit, it would see batches and dropout masks that were learned from."
    learn = Learner(data, "resnet18", weights=None, head="mlp", precision="fp32", show=False)
    def losses(): return learn.lr_find(num_it=6, show_plot=False).losses
    start = copy.deepcopy(learn.model.state_dict())
    before = losses()
    assert losses() == before
    learn.fit(1, 1e-3)
    learn.model.load_state_dict(start)
    assert losses() != before
