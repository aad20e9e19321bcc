"""Ctrl-C at any moment; and one seed, one model, whatever else is done before, between and beside."""
import os, random, signal

import numpy as np
import pytest
import torch

from resuming import data_of, make, outcome, processes
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.results.metrics import error_rate
from lessonkit.learner import Learner
from lessonkit.train.run import Run

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that can be forked here")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory): return processes(tmp_path_factory.mktemp("cache"))


# ---- Ctrl-C

@pytest.fixture(scope="module")
def pressed(run, pictures, tmp_path_factory):
    status, found = run("press", "two phases", pictures, tmp_path_factory.mktemp("pressed"), 20, 1)
    assert status == 0, found["error"]
    return found


@forks
def test_ctrl_c_at_twenty_random_moments_leaves_whole_steps(pressed):
    for told in pressed["told"]:
        steps, at = sum(told["steps"]), told["moment"]
        assert not told["error"] or not steps, f"KeyboardInterrupt at {at:.3f} of the run"   # before the first step: nothing has begun
        assert all(len(lengths) == 1 for lengths in told["lengths"]) and told["rows"] == told["ends"] == [n // 6 for n in told["steps"]], told
        weights, optimizer = pressed["known"][str(steps)]
        if told["finished"]: assert told["end"] == pressed["whole"]
        else: assert told["state"] == [weights, None if steps % 6 == 0 else optimizer], f"not as after step {steps}, at {at:.3f} of the run"
    assert len({sum(told["steps"]) for told in pressed["told"]}) > 5                         # they were spread over the run


def same_end(end, whole):
    "But for the remarks about the stop."
    calm = lambda found: found | dict(past=[f | dict(notes=[n for n in f["notes"] if "progress is saved" not in n]) for f in found["past"]])
    return calm(end) == calm(whole)


@forks
def test_after_ctrl_c_resume_ends_as_the_whole_run(pressed):
    for told in pressed["told"]: assert told["error"] or same_end(told["end"], pressed["whole"]), f"stopped at {told['moment']:.3f} of the run, after {told['steps']} steps"


@forks
def test_ctrl_c_twice_gets_out_and_resume_is_exact_or_refuses(run, pictures, tmp_path):
    status, found = run("press", "two phases", pictures, tmp_path, 12, 2, True)
    assert status == 0, found["error"]
    assert any(told["error"] and sum(told["steps"]) for told in found["told"])
    for told in found["told"]:
        assert told.get("refused") or same_end(told["end"], found["whole"]), f"stopped at {told['moment']:.3f} of the run, after {told['steps']} steps"


def test_ctrl_c_at_the_very_end_is_too_late(pictures, tmp_path, monkeypatch):
    "While the best weights are put back, nothing is left to stop, and nothing is left half done."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    learn = make("features in memory", pictures, tmp_path)
    put = Run.restore_best
    def pressed(run, *args):
        signal.raise_signal(signal.SIGINT)
        put(run, *args)
    monkeypatch.setattr(Run, "restore_best", pressed)
    try: learn.fit(2, 1e-2, keep_best="score")
    finally: signal.signal(signal.SIGINT, before)
    assert "put back" in learn.history.fits[0].notes[-1]


def test_a_metric_that_fails_costs_its_row_only_for_now(pictures, tmp_path):
    def flaky(preds):
        if len(failed) < 1: failed.append(1); raise ZeroDivisionError
        return 0.
    failed = []
    plain, learn = (make("features in memory", pictures, tmp_path) for _ in range(2))
    plain.metrics, learn.metrics = [lambda preds: 0.], [flaky]
    plain.metrics[0].__name__ = "flaky"
    plain.fit(2, 1e-2)
    with pytest.raises(ZeroDivisionError): learn.fit(2, 1e-2)
    learn.save("between")
    learn.resume()
    assert outcome(learn) == outcome(plain)
    other = make("features in memory", pictures, tmp_path)
    other.metrics = plain.metrics
    other.load("between").resume()
    assert outcome(other) == outcome(plain)


# ---- one seed, one model

@pytest.fixture(scope="module")
def new(pictures, tmp_path_factory):
    def new(threads=2, **kw):
        data = data_of(pictures, augment=augmentations(), threads=threads)
        return Learner(data, "timm:test_efficientnet", error_rate, **dict(weights=None, precision="fp32", device="cpu", mixup=.4, cutmix=1., model_dir=folder, show=False) | kw)
    folder = tmp_path_factory.mktemp("models")
    return new


@pytest.fixture(scope="module")
def plain(new):
    "Two fits, and nothing beside them."
    learn = new()
    learn.fit_one_cycle(2, 1e-2)
    first = outcome(learn)
    learn.fit(1, 1e-3)
    return first, outcome(learn)


def generators(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("threads", [1, 5])
def test_whatever_the_loader_threads(new, plain, threads):
    learn = new(threads)
    learn.fit_one_cycle(2, 1e-2)
    assert outcome(learn) == plain[0]


def test_whatever_is_done_before_and_between(new, plain, pictures):
    "The finder, predictions, a saved model, a look at the parts; and what others do with the generators."
    def look():
        random.random(); np.random.rand(); torch.rand(3)
        before = generators()
        learn.lr_find(num_it=7)
        learn.validate(); learn.get_preds("train"); learn.predict(learn.data.valid.paths[0]); learn.save("m"); learn.summary(); learn.average(["m", "m"])
        assert generators() == before
    learn = new()
    look(); learn.fit_one_cycle(2, 1e-2)
    assert outcome(learn) == plain[0]
    look(); learn.fit(1, 1e-3)
    assert outcome(learn) == plain[1]


def test_a_second_fit_draws_other_numbers(new):
    "With so small a rate the weights stay, so that only order and augmentation can differ."
    learn = new(optimizer="sgd", ps=0.)
    for _ in range(2): learn.fit(1, 1e-30)
    first, second = learn.history.fits
    assert max(abs(a - b) for a, b in zip(first.losses, second.losses)) > .01


def test_the_generators_are_left_alone(new):
    before = generators()
    new().fit_one_cycle(1, checkpoint="run", keep_best="error_rate", accumulate=2, clip=1.)
    assert generators() == before


def test_two_learners_side_by_side(new, plain):
    "One is trained whenever the other validates, and the other way round."
    def nested(preds):
        if inner.history.fits: inner.fit(1, 1e-3)
        else: inner.fit_one_cycle(2, 1e-2)
        return 0.
    inner, outer = new(), new()
    outer.metrics = [error_rate, nested]
    outer.fit_one_cycle(2, 1e-2)
    assert outcome(inner) == plain[1] and outcome(outer)["weights"] == plain[0]["weights"]
    outer.metrics.pop()
    outer.fit(1, 1e-3)
    assert outcome(outer)["weights"] == plain[1]["weights"]
