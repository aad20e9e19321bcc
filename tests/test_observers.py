"""Observers are told of every step and epoch, and whatever they do, training is as without them."""
import random, re, signal, threading, timeit, warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lessonkit.data import sample
from lessonkit.train.history import FitRecord
from lessonkit.train.loop import Step
from lessonkit.train.progress import Observers
from resuming import CASES, make, outcome, rows, steps
from tiers import few

CASE = "two phases"   # of two epochs, with six steps each


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=40)


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    "What training comes to when nobody watches."
    learn = make(CASE, images, tmp_path_factory.mktemp("plain"))
    CASES[CASE].fit(learn)
    return without_notes(outcome(learn))


def without_notes(outcome):
    return outcome | dict(fits=[fit | dict(notes=[]) for fit in outcome["fits"]])


def watched(images, folder, *observers, case=CASE):
    "A learner with observers."
    learn = make(case, images, folder)
    learn.trainer.observers += observers
    return learn


class Acts:
    "An observer that notes what it is told of, and acts at the `at`-th event."
    def __init__(self, act=None, at=None): self.act, self.at, self.events = act, at, []

    def step(self, step, record):
        self.happened("step", step.index, len(record.losses), record.losses[-1])

    def epoch(self, row, record):
        self.happened("epoch", row["epoch"], len(record.rows), row["valid_loss"])

    def happened(self, *event):
        self.events.append(event)
        if self.act and self.at in (None, len(self.events)): self.act()


@contextmanager
def usual_handler():
    "Ctrl-C raises `KeyboardInterrupt`, also where a job in the background would ignore it."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try: yield
    finally: signal.signal(signal.SIGINT, before)


def press(times):
    for _ in range(times): signal.raise_signal(signal.SIGINT)


# ---- what they are told

def test_every_step_and_every_epoch_in_order(images, tmp_path):
    watcher = Acts()
    learn = watched(images, tmp_path, watcher)
    CASES[CASE].fit(learn)
    expected = []
    for fit in learn.history.fits:
        for step, loss in enumerate(fit.losses, 1):
            expected.append(("step", step - 1, step, loss))
            if step not in fit.ends: continue
            number = fit.ends.index(step)
            expected.append(("epoch", number, number + 1, fit.rows[number]["valid_loss"]))
    assert watcher.events == expected
    assert len(expected) == 14


def test_the_last_row_is_told_when_patience_runs_out(images, tmp_path):
    watcher = Acts()
    learn = watched(images, tmp_path, watcher, case="patience")
    CASES["patience"].fit(learn)
    told = [event for event in watcher.events if event[0] == "epoch"]
    assert [event[1] for event in told] == [row["epoch"] for row in learn.history.fits[0].rows]
    assert len(told) < 4   # it ended early


def test_a_loss_that_is_not_finite_is_told(images, tmp_path):
    watcher = Acts()
    learn = watched(images, tmp_path, watcher, case="features in memory")
    learn.fit(2, 1e30)
    assert len(watcher.events) == len(learn.history.fits[0].losses) < 12
    assert not np.isfinite(watcher.events[-1][-1])


def test_one_method_is_enough(images, tmp_path):
    class Rows:
        def __init__(self): self.rows = []
        def epoch(self, row, record): self.rows.append(row)

    logger = Rows()
    learn = watched(images, tmp_path, logger)
    CASES[CASE].fit(learn)
    assert logger.rows == [row for fit in learn.history.fits for row in fit.rows]


def test_what_is_no_observer_is_refused_before_training(images, tmp_path, plain):
    learn = watched(images, tmp_path, "tensorboard")
    with pytest.raises(TypeError, match=r"step\(step, record\).*'tensorboard' has neither"):
        CASES[CASE].fit(learn)
    assert not steps(learn)
    learn.trainer.observers.clear()
    learn.resume()
    assert without_notes(outcome(learn)) == plain


def test_the_finder_is_not_observed(images, tmp_path):
    watcher = Acts()
    watched(images, tmp_path, watcher).lr_find(num_it=4, show_plot=False)
    assert watcher.events == []


def test_they_may_come_and_go_while_training(images, tmp_path):
    late = Acts()
    def change(): learn.trainer.observers[:] = [late]
    early = Acts(change, at=3)
    learn = watched(images, tmp_path, early)
    CASES[CASE].fit(learn)
    assert len(early.events) == 3
    assert len(late.events) == 11


# ---- whatever they do, training is as without them

def disturb(learn):
    "What training must not depend on: generators, modes, gradients, predictions."
    def act():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        torch.rand(7)
        learn.get_preds("train")
        learn.model.eval()
        torch.randn(3, requires_grad=True).sum().backward()
    return act


@pytest.mark.parametrize("case", few(1, [CASE, "overflows", "solved, maps", "cycles"]))
def test_what_they_do_makes_no_difference(images, tmp_path, case):
    plain = make(case, images, tmp_path / "plain")
    learn = watched(images, tmp_path / "watched", case=case)
    learn.trainer.observers.append(Acts(disturb(learn)))
    for each in (plain, learn): CASES[case].fit(each)
    assert outcome(learn) == outcome(plain)


def test_a_changed_row_is_a_copy(images, tmp_path):
    class Spoils:
        def epoch(self, row, record): row.clear()

    learn = watched(images, tmp_path, Spoils(), Acts())
    CASES[CASE].fit(learn)
    assert all("valid_loss" in row for fit in learn.history.fits for row in fit.rows)


@pytest.mark.parametrize("at", few(3, [1, 7, 14, *range(2, 7), *range(8, 14)]))
def test_one_that_raises_is_left_out(images, tmp_path, plain, at):
    def fail(): raise OSError("no space left")
    failing, watcher = Acts(fail, at), Acts()
    learn = watched(images, tmp_path, failing, watcher)
    with pytest.warns(UserWarning, match="observer Acts raised OSError.*no space left.*in fail"):
        CASES[CASE].fit(learn)
    assert without_notes(outcome(learn)) == plain
    assert (len(failing.events), len(watcher.events)) == (at, 14)
    notes = [note for fit in learn.history.fits for note in fit.notes]
    assert sum("observer Acts was left out" in note for note in notes) == 1
    with warnings.catch_warnings():   # it gets another chance in the next fit
        warnings.simplefilter("error")
        learn.fit(1, 1e-3)
    assert len(failing.events) > at


def test_running_out_of_memory_in_an_observer_ends_nothing(images, tmp_path, plain):
    def fail(): raise torch.OutOfMemoryError("CUDA out of memory.")
    learn = watched(images, tmp_path, Acts(fail, 3))
    with pytest.warns(UserWarning, match="out of memory.*goes on without it"):
        CASES[CASE].fit(learn)
    assert without_notes(outcome(learn)) == plain


@pytest.mark.parametrize("at", few(2, [3, 7, 14]))
def test_where_warnings_are_errors_training_can_be_resumed(images, tmp_path, plain, at):
    def fail(): raise OSError("no space left")
    learn = watched(images, tmp_path, Acts(fail, at))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the observer")
        with pytest.raises(UserWarning, match="no space left"): CASES[CASE].fit(learn)
        learn.resume()
    assert without_notes(outcome(learn)) == plain


# ---- Ctrl-C

@pytest.mark.parametrize("at", few(3, [2, 6, 9, *range(3, 6), 7, 8, *range(10, 13)]))
def test_ctrl_c_in_an_observer_ends_training_after_the_step(images, tmp_path, plain, at):
    learn = watched(images, tmp_path, Acts(lambda: press(1), at))
    with usual_handler(): CASES[CASE].fit(learn)
    told = [6 * (at > 7) + min(at - 7 * (at > 7), 6)]   # the seventh and fourteenth are epochs
    assert [steps(learn)] == told
    assert not learn.run.finished
    learn.resume()
    assert without_notes(outcome(learn)) == plain


def test_ctrl_c_in_the_last_step_comes_too_late(images, tmp_path, plain):
    learn = watched(images, tmp_path, Acts(lambda: press(1), at=13))
    with usual_handler(): CASES[CASE].fit(learn)
    assert learn.run.finished
    assert without_notes(outcome(learn)) == plain


@pytest.mark.parametrize("at", few(4, [2, 6, 7, 13, 1, 3, 4, 5, *range(8, 13), 14]))
def test_a_second_ctrl_c_in_an_observer_raises_and_resume_is_exact(images, tmp_path, plain, at):
    "No step is half done then, so there is no reason to refuse."
    learn = watched(images, tmp_path, Acts(lambda: press(2), at))
    with usual_handler(), pytest.raises(KeyboardInterrupt): CASES[CASE].fit(learn)
    assert not learn.run.broken
    learn.trainer.observers.clear()
    learn.resume()
    assert without_notes(outcome(learn)) == plain


def test_a_second_ctrl_c_in_the_step_after_counts_as_half_done(images, tmp_path):
    "That an observer was interrupted once is forgotten when training goes on."
    learn = watched(images, tmp_path, Acts(lambda: press(2), 2))
    with usual_handler():
        with pytest.raises(KeyboardInterrupt): CASES[CASE].fit(learn)
        losses = learn.trainer.losses
        def pressed(*args):
            press(2)
            return losses(*args)
        learn.trainer.losses = pressed
        with pytest.raises(KeyboardInterrupt): learn.resume()
    assert learn.run.broken


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals between threads")
def test_a_hanging_observer_can_be_interrupted(images, tmp_path, plain):
    me = threading.get_ident()
    def hang():
        press(1)
        threading.Timer(.2, signal.pthread_kill, [me, signal.SIGINT]).start()
        threading.Event().wait(60)
        raise AssertionError("nothing interrupted it")
    learn = watched(images, tmp_path, Acts(hang, 4))
    with usual_handler(), pytest.raises(KeyboardInterrupt): CASES[CASE].fit(learn)
    learn.trainer.observers.clear()
    learn.resume()
    assert without_notes(outcome(learn)) == plain


# ---- saving

@pytest.mark.parametrize("at", few(3, [3, 6, 7, 1, 10, 13]))
def test_a_model_saved_by_an_observer_can_be_resumed(images, tmp_path, plain, at):
    "In the middle of an epoch, before its validation, and after it."
    learn = watched(images, tmp_path)
    learn.trainer.observers.append(Acts(lambda: learn.save("then"), at))
    CASES[CASE].fit(learn)
    other = make(CASE, images, tmp_path).load("then")
    assert (rows(other), steps(other)) == (at // 7, at - at // 7)
    other.resume()
    assert without_notes(outcome(other)) == plain


# ---- speed

def test_without_observers_a_step_costs_nothing():
    "Less than a thousandth of the quickest step."
    nobody, record = Observers([]), FitRecord("fit")
    step = Step(0, 2, 0, False, 1., (1,), (1.,), .9, False)
    seconds = min(timeit.repeat(lambda: nobody.step(step, record), number=1000, repeat=5)) / 1000
    assert seconds < 2e-5


def test_the_warning_names_the_line(images, tmp_path):
    def fail(): raise ZeroDivisionError
    observers, record = Observers([Acts(fail)]), FitRecord("fit")
    step = Step(0, 2, 0, False, 1., (1,), (1.,), .9, False)
    record.losses.append(1.)
    with pytest.warns(UserWarning) as caught: observers.step(step, record)
    assert re.search(r"in fail \(line \d+ of test_observers.py\)", str(caught[0].message))
