"""Ctrl-C at any moment; and one seed gives one model, whatever else happens around training."""
import os, random, signal

import numpy as np
import pytest
import torch

from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.learner import Learner
from lessonkit.results.metrics import error_rate
from lessonkit.train.run import Run
from resuming import data_of, make, outcome, processes

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes can be forked here")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return processes(tmp_path_factory.mktemp("cache"))


# ---- Ctrl-C

@pytest.fixture(scope="module")
def pressed(run, images, tmp_path_factory):
    "Twenty fits, each with Ctrl-C at a random moment."
    status, result = run("press", "two phases", images, tmp_path_factory.mktemp("pressed"), 20, 1)
    assert status == 0, result["error"]
    return result


def where(fit):
    "For a test's message."
    return f"stopped at {fit['moment']:.3f} of the run, after {fit['steps']} steps"


@needs_fork
@pytest.mark.slow
def test_ctrl_c_at_twenty_random_moments_leaves_whole_steps(pressed):
    for fit in pressed["interrupted"]:
        steps = sum(fit["steps"])
        # It may raise before the first step, and when everything is done.
        assert not fit["error"] or not steps or fit["finished"], where(fit)
        assert all(len(lengths) == 1 for lengths in fit["lengths"]), fit
        assert fit["rows"] == fit["ends"], fit
        assert fit["rows"] == [n // 6 for n in fit["steps"]], fit
        weights, optimizer = pressed["states"][str(steps)]
        between_epochs = steps % 6 == 0
        if fit["finished"]: assert fit["end"] == pressed["whole"]
        else: assert fit["state"] == [weights, None if between_epochs else optimizer], where(fit)
    assert len({sum(fit["steps"]) for fit in pressed["interrupted"]}) > 5   # spread over the run


def without_interrupts(outcome):
    "Apart from the notes about being interrupted."
    def kept(fit): return [note for note in fit["notes"] if "progress is saved" not in note]
    return outcome | dict(fits=[fit | dict(notes=kept(fit)) for fit in outcome["fits"]])


@needs_fork
@pytest.mark.slow
def test_after_ctrl_c_resume_ends_like_the_whole_run(pressed):
    whole = without_interrupts(pressed["whole"])
    for fit in pressed["interrupted"]:
        assert fit["error"] or without_interrupts(fit["end"]) == whole, where(fit)


@needs_fork
def test_ctrl_c_twice_raises_and_resume_is_exact_or_refuses(run, images, tmp_path):
    status, result = run("press", "two phases", images, tmp_path, 12, 2, True)
    assert status == 0, result["error"]
    assert any(fit["error"] and sum(fit["steps"]) for fit in result["interrupted"])
    whole = without_interrupts(result["whole"])
    for fit in result["interrupted"]:
        assert fit.get("refused") or without_interrupts(fit["end"]) == whole, where(fit)


def test_ctrl_c_at_the_very_end_is_too_late(images, tmp_path, monkeypatch):
    "While the best weights are put back, there is nothing left to stop."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    learn = make("features in memory", images, tmp_path)
    restore_best = Run.restore_best
    def press(run, *args):
        signal.raise_signal(signal.SIGINT)
        restore_best(run, *args)
    monkeypatch.setattr(Run, "restore_best", press)
    try: learn.fit(2, 1e-2, keep_best="score")
    finally: signal.signal(signal.SIGINT, before)
    assert "put back" in learn.history.fits[0].notes[-1]


def test_a_metric_that_fails_can_be_made_up_for(images, tmp_path):
    "Its row is computed when training resumes."
    failures = []
    def flaky(preds):
        if not failures:
            failures.append(preds)
            raise ZeroDivisionError
        return 0.
    def steady(preds): return 0.
    steady.__name__ = "flaky"   # the same column

    plain, learn = (make("features in memory", images, tmp_path) for _ in range(2))
    plain.metrics, learn.metrics = [steady], [flaky]
    plain.fit(2, 1e-2)
    with pytest.raises(ZeroDivisionError): learn.fit(2, 1e-2)
    learn.save("between")
    learn.resume()
    assert outcome(learn) == outcome(plain)

    other = make("features in memory", images, tmp_path)
    other.metrics = plain.metrics
    other.load("between").resume()
    assert outcome(other) == outcome(plain)


# ---- one seed, one model

@pytest.fixture(scope="module")
def new(images, tmp_path_factory):
    "Makes learners that are alike."
    folder = tmp_path_factory.mktemp("models")
    usual = dict(weights=None, precision="fp32", device="cpu", mixup=.4, cutmix=1.,
                 model_dir=folder, show=False)
    def new(threads=2, **options):
        data = data_of(images, augment=augmentations(), threads=threads)
        return Learner(data, "timm:test_efficientnet", error_rate, **usual | options)
    return new


@pytest.fixture(scope="module")
def plain(new):
    "The outcome of one fit and of two, with nothing around them."
    learn = new()
    learn.fit_one_cycle(2, 1e-2)
    first = outcome(learn)
    learn.fit(1, 1e-3)
    return first, outcome(learn)


def generators():
    "The states of the global random generators."
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("threads", [1, 5])
def test_one_model_whatever_the_number_of_loader_threads(new, plain, threads):
    learn = new(threads)
    learn.fit_one_cycle(2, 1e-2)
    assert outcome(learn) == plain[0]


def use(learn):
    "Everything but training; and draw from the generators, as other code does."
    random.random()
    np.random.rand()
    torch.rand(3)
    before = generators()
    learn.lr_find(num_it=7)
    learn.validate()
    learn.get_preds("train")
    learn.predict(learn.data.valid.paths[0])
    learn.save("m")
    learn.summary()
    learn.average(["m", "m"])
    assert generators() == before


def test_one_model_whatever_is_done_before_and_between(new, plain):
    learn = new()
    use(learn)
    learn.fit_one_cycle(2, 1e-2)
    assert outcome(learn) == plain[0]
    use(learn)
    learn.fit(1, 1e-3)
    assert outcome(learn) == plain[1]


def test_a_second_fit_draws_other_numbers(new):
    "With so small a rate the weights stay, so that only order and augmentation can differ."
    learn = new(optimizer="sgd", ps=0.)
    for _ in range(2): learn.fit(1, 1e-30)
    first, second = learn.history.fits
    assert max(abs(a - b) for a, b in zip(first.losses, second.losses)) > .01


def test_training_leaves_the_global_generators_alone(new):
    before = generators()
    new().fit_one_cycle(1, checkpoint="run", keep_best="error_rate", accumulate=2, clip=1.)
    assert generators() == before


def test_two_learners_side_by_side(new, plain):
    "The inner one trains whenever the outer one validates."
    inner, outer = new(), new()
    def nested(preds):
        if inner.history.fits: inner.fit(1, 1e-3)
        else: inner.fit_one_cycle(2, 1e-2)
        return 0.
    outer.metrics = [error_rate, nested]
    outer.fit_one_cycle(2, 1e-2)
    assert outcome(inner) == plain[1]
    assert outcome(outer)["weights"] == plain[0]["weights"]
    outer.metrics.pop()
    outer.fit(1, 1e-3)
    assert outcome(outer)["weights"] == plain[1]["weights"]
