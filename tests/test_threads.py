"""Several threads predict and train at once: each gets what it would get alone."""
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from lessonkit.core.rng import FairLock, evaluating, seeded_torch
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.loader import Loader
from lessonkit.learner import Learner
from lessonkit.train.engine import Engine, model_outputs
from tiers import few

PATTERN = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("threads") / "t")
    return ImageData.from_name_re(folder, PATTERN, size=32, bs=8, augment=augmentations())


@pytest.fixture
def learner(data, tmp_path):
    def make(**options):
        chosen = dict(weights=None, show=False, precision="fp32", device="cpu", model_dir=tmp_path)
        return Learner(data, "resnet18", **(chosen | options))
    return make


@pytest.fixture(autouse=True)
def switch_often():
    "Threads take turns much more often than usual, so that few repetitions are enough."
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def at_once(*calls):
    "Call functions in threads of their own, all starting together; their results in order."
    ready = threading.Barrier(len(calls))
    def start(call):
        ready.wait()
        return call()
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(start, call) for call in calls]]


def repeated(call, times): return lambda: [call() for _ in range(times)]


def state_of(model):
    "Weights and averages, and the mode of every layer."
    return ({name: v.clone() for name, v in model.state_dict().items()},
            [m.training for m in model.modules()])


def assert_same_state(model, before):
    weights, modes = state_of(model)
    for name, v in weights.items(): assert torch.equal(v, before[0][name]), name
    assert modes == before[1]


def scattered_modes(model):
    "Every third layer evaluates, the others train: nothing that `train()` could restore."
    for i, m in enumerate(model.modules()): m.training = i % 3 != 1


@pytest.mark.parametrize("threads", few(1, [4, 2, 8]))
def test_threads_predict_what_one_would(learner, threads):
    learn = learner()
    scattered_modes(learn.model)
    items, before = learn.data.valid.paths[:threads], state_of(learn.model)
    alone = [learn.predict(item) for item in items]
    def ask(item): return lambda: [learn.predict(item) for _ in range(12)]
    for answers, expected in zip(at_once(*map(ask, items)), alone):
        for answer in answers:
            assert torch.equal(answer.probs, expected.probs)
            assert answer.label == expected.label
    assert_same_state(learn.model, before)


@pytest.mark.slow
def test_all_ways_to_predict_can_run_at_once(learner):
    learn = learner()
    learn.save("a")
    learn.fit(1, 1e-3)
    learn.save("b")
    scattered_modes(learn.model)
    files = list(learn.data.valid.paths)
    calls = [lambda: learn.get_preds(files).probs, lambda: learn.tta(n=2).probs,
             lambda: learn.heat_maps([0, 1, 2]), lambda: learn.average(["a", "b"]).probs,
             lambda: learn.get_preds("train").probs, lambda: learn.predict(files[3]).probs]
    before = state_of(learn.model)
    alone = [call() for call in calls]
    for results, expected in zip(at_once(*[repeated(call, 4) for call in calls]), alone):
        for result in results: assert torch.equal(result, expected)
    assert_same_state(learn.model, before)
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_a_thread_that_trains_is_not_disturbed_by_others_that_predict(learner):
    def train(learn): learn.fit_one_cycle(2, 2e-3)
    alone, learn = learner(), learner()
    train(alone)
    done = threading.Event()
    def fit():
        try: train(learn)
        finally: done.set()
    def ask():
        asked = 0
        while not done.is_set():
            for p in (learn.predict(learn.data.valid.paths[asked % 9]), learn.get_preds()[0]):
                assert abs(float(p.probs.sum()) - 1) < 1e-4
            asked += 1
        return asked
    _, first, second = at_once(fit, ask, ask)
    assert_same_state(learn.model, state_of(alone.model))
    assert [f.losses for f in learn.history.fits] == [f.losses for f in alone.history.fits]
    assert [r["valid_loss"] for f in learn.history.fits for r in f.rows] == \
        [r["valid_loss"] for f in alone.history.fits for r in f.rows]
    assert min(first, second) > 2  # nobody is kept waiting until the end


def test_predictions_of_a_set_come_from_the_same_weights(data):
    "All images are the same, so all rows have to be: even while every step changes the weights."
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    engine, done = Engine("cpu", "fp32"), threading.Event()
    loader = Loader((data.valid.paths[0],) * 12, None, size=8, presize=8, bs=2)
    def step():
        try:
            for _ in range(400):
                with seeded_torch(1), torch.no_grad(): net[1].weight += .01
                done.wait(.001)
        finally: done.set()
    def ask():
        found = []
        while not done.is_set(): found.append(model_outputs(net, loader, engine))
        return found
    _, outputs = at_once(step, ask)
    assert len({float(rows[0, 0]) for rows in outputs}) > 1
    for rows in outputs: assert torch.equal(rows, rows[:1].expand_as(rows))


def test_calibrating_twice_at_once_is_calibrating_twice(learner):
    alone, learn = learner(), learner()
    for each in (alone, learn): each.fit(1, 1e-3)
    for _ in range(2): alone.calibrate()
    at_once(learn.calibrate, learn.calibrate)
    assert_same_state(learn.model, state_of(alone.model))


def generators(): return torch.get_rng_state().tolist(), random.getstate(), \
    [np.asarray(part).tolist() for part in np.random.get_state()]


@pytest.mark.slow
def test_two_learners_in_two_threads_train_as_they_would_alone(learner):
    def train(seed):
        learn = learner(seed=seed, mixup=.4)
        learn.lr_find(num_it=4)
        learn.fit_one_cycle(2, 2e-3)
        return learn
    alone = [train(seed) for seed in (1, 2)]
    before = generators()
    both = at_once(lambda: train(1), lambda: train(2))
    assert generators() == before
    for learn, expected in zip(both, alone):
        assert_same_state(learn.model, state_of(expected.model))
        assert learn.history.fits[-1].losses == expected.history.fits[-1].losses


# ---- the lock
def test_a_key_gives_the_same_numbers_in_every_thread():
    def draw(key):
        with seeded_torch(key): return [torch.rand(50).tolist() for _ in range(20)]
    before, alone = torch.get_rng_state(), [draw(key) for key in range(8)]
    for found in at_once(*[repeated(lambda: [draw(key) for key in range(8)], 20)] * 4):
        assert found == [alone] * 20
    assert torch.equal(torch.get_rng_state(), before)


def test_a_lock_is_given_back_after_an_error_and_an_interrupt():
    lock = FairLock()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), lock, lock: raise error
    def take():
        with lock: return "taken"
    assert at_once(take) == ["taken"]


def test_an_interrupt_right_after_waiting_leaves_the_lock_to_others():
    class Interrupted(FairLock):
        interrupts = True
        def acquire(self):
            super().acquire()
            if self.interrupts: raise KeyboardInterrupt
    lock = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        with lock: pass
    lock.interrupts = False
    def take():
        with lock: return "taken"
    assert at_once(take) == ["taken"]


def test_modules_with_a_train_method_of_their_own_are_put_back_too():
    class Merging(nn.Linear):
        "Like LoRA: merges something into its weights for evaluation."
        merged = False
        def train(self, mode=True):
            if mode == self.merged:
                self.merged = not mode
                with torch.no_grad(): self.weight += 1 if self.merged else -1
            return super().train(mode)
    net = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2)).train()
    net[1].eval()
    weight = net[0].weight.detach().clone()
    with evaluating(net):
        assert net[0].merged
        assert torch.allclose(net[0].weight, weight + 1)
    assert torch.allclose(net[0].weight, weight, atol=1e-6)
    assert [m.training for m in net.modules()] == [True, True, False]
