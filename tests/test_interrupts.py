"""Ctrl-C, once or several times: whatever is put back is put back, and it takes effect soon."""
import os, random, signal, subprocess, sys, textwrap, threading, time, warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lessonkit.core.interrupts import (
    entered, interrupt_flag, restoring, run_in_threads, uninterrupted,
)
from lessonkit.core.rng import torch_lock
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.distill import distill, read_photos, Recipe, with_stats
from lessonkit.learner import Learner
from lessonkit.results.calibration import fold_temperature, TEMPERATURES
from lessonkit.train.lr_finder import preserve_state
from lessonkit.train.run import copy_weights
from tiers import few

posix = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no signals between processes")


# ---- bursts of presses

def is_inside(frame, code):
    "Does a function with this code run in this frame, or in one that called it?"
    while frame and frame.f_code is not code: frame = frame.f_back
    return frame is not None


def interrupted(work, press):
    "Work while a thread presses. The error, if one is raised in the work itself."
    def call(): work()
    def handle(signum, frame):   # a press that comes too late is of no interest
        if is_inside(frame, ignore.__code__): return
        if frame is None or is_inside(frame, call.__code__): raise KeyboardInterrupt
    def ignore(unraisable):   # in a finalizer, which Python calls at any time
        if unraisable.exc_type is not KeyboardInterrupt: hook(unraisable)
    before, hook = signal.signal(signal.SIGINT, handle), sys.unraisablehook
    sys.unraisablehook = ignore
    thread = threading.Thread(target=press)
    thread.start()
    try: call()
    except KeyboardInterrupt as e: return e
    finally:
        ended.append(time.monotonic())
        thread.join()
        sys.unraisablehook = hook
        assert signal.getsignal(signal.SIGINT) is handle
        signal.signal(signal.SIGINT, before)

ended = []   # when the work was


class Bursts:
    "Calls a function while Ctrl-C is pressed several times in quick succession."
    def __init__(self, seed): self.rng = random.Random(seed)

    def __call__(self, work, longest):
        "Press at a random moment of `longest` seconds. Says whether that interrupted the work."
        def press():
            time.sleep(self.rng.uniform(0, longest))
            for _ in range(self.rng.randint(2, 6)):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(self.rng.choice([0, 1e-5, 1e-4, 1e-3]))
        return interrupted(work, press) is not None


def state_of(model):
    "All that must be as before: weights, averages, gradients, flags, modes, generators."
    tensors = {name: v.clone() for name, v in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    trained = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    numpy_state = np.random.get_state()[1].tolist()
    return tensors, grads, (trained, modes, random.getstate(), numpy_state,
                            torch.get_rng_state().tolist(), torch.is_grad_enabled(),
                            torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))


def assert_same(state, before):
    for name, value in before[0].items(): assert torch.equal(state[0][name], value), name
    for grad, expected in zip(state[1], before[1], strict=True):
        assert (grad is None) == (expected is None)
        assert grad is None or torch.equal(grad, expected)
    assert state[2] == before[2]


def assert_lock_is_free():
    taken = []
    def take():
        with torch_lock: taken.append(True)
    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    assert taken


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=40)


def new_learner(images, folder):
    data = ImageData.from_name_re(images, r"^(.+)_\d+", size=24, bs=8, augment=augmentations())
    return Learner(data, "timm:test_efficientnet", weights=None, show=False, device="cpu",
                   precision="bf16", model_dir=folder)


@pytest.fixture(scope="module")
def learn(images, tmp_path_factory):
    learn = new_learner(images, tmp_path_factory.mktemp("models"))
    learn.fit(1, 1e-2, keep_best="valid_loss")
    for name in ("one", "two"): learn.save(name)
    learn.model.train()
    for p in list(learn.model.parameters())[::2]: p.grad = torch.ones_like(p)
    return learn


WORK = {
    "lr_find": lambda learn: learn.lr_find(num_it=4, show_plot=False),
    "tta": lambda learn: learn.tta(n=2),
    "average": lambda learn: learn.average(["one", "two"]),
    "heat_maps": lambda learn: learn.heat_maps([0, 1, 2]),
    "get_preds": lambda learn: learn.get_preds("train"),
}
rounds = pytest.mark.parametrize("seed, n", few(1, [(0, 12), (1, 300)]))


@posix
@rounds
@pytest.mark.parametrize("name", WORK)
def test_nothing_is_changed_by_bursts_of_ctrl_c(learn, name, seed, n):
    before, bursts, count = state_of(learn.model), Bursts(seed), 0
    for _ in range(2):   # the first time takes longer
        learn.predictions.__init__()
        started = time.monotonic()
        WORK[name](learn)
    longest = time.monotonic() - started
    for _ in range(n):
        learn.predictions.__init__()
        count += bursts(lambda: WORK[name](learn), longest / 2)
        assert_same(state_of(learn.model), before)
    assert count
    assert_lock_is_free()


@posix
@rounds
def test_weights_are_copied_all_or_not_at_all(learn, seed, n):
    "As by `restore_best` and `load`, and divided by `calibrate`."
    old = {name: v.clone() for name, v in learn.model.state_dict().items()}
    new = {name: v + 1 for name, v in old.items()}
    bursts, changed = Bursts(seed), 0
    for _ in range(2 * n):
        bursts(lambda: copy_weights(learn.model, new), .01)
        now = {name: torch.equal(v, new[name]) for name, v in learn.model.state_dict().items()}
        assert len(set(now.values())) == 1, now
        changed += all(now.values())
        copy_weights(learn.model, old)
    assert changed


@posix
@rounds
def test_state_is_put_back_whenever_the_presses_come(seed, n):
    "Most of the time here is spent in putting things back."
    net = nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(60)])
    before, bursts = state_of(net), Bursts(seed)
    def work():
        with preserve_state(net):
            net.eval().requires_grad_(False)
            for v in net.state_dict().values(): v.add_(1)
            torch.rand(1)
    for _ in range(10 * n):
        bursts(work, .01)
        assert_same(state_of(net), before)


@posix
def test_best_weights_belong_to_the_best_epoch(images, tmp_path):
    "However a fit with `keep_best` is interrupted, `restore_best` gives what the progress says."
    bursts = Bursts(3)
    data = ImageData.from_name_re(images, r"^(.+)_\d+", size=24, bs=20)
    for _ in range(6):
        learn = Learner(data, "timm:test_efficientnet", weights=None, show=False, device="cpu",
                        precision="fp32", model_dir=tmp_path)
        bursts(lambda: learn.fit(3, 1e-2, keep_best="valid_loss"), 1.)
        if learn.run is None or not learn.run.best_weights: continue
        learn.restore_best()
        assert learn.validate()["valid_loss"] == pytest.approx(learn.run.progress.best, rel=1e-5)


# ---- a temperature, folded into the weights

def weights_of(model): return {name: v.clone() for name, v in model.state_dict().items()}


@pytest.fixture
def uncalibrated(images, tmp_path):
    "A learner, its weights, and its weights after `calibrate`."
    learn = new_learner(images, tmp_path)
    learn.fit(4, 1e-2)   # it has to know something
    before = weights_of(learn.model)
    assert learn.calibrate().temperature < TEMPERATURES[1]
    after = weights_of(learn.model)
    differ = {name for name, v in after.items() if not torch.equal(v, before[name])}
    head = max(int(name.split(".")[1]) for name in after if name.startswith("head."))
    assert differ == {f"head.{head}.weight", f"head.{head}.bias"}
    return learn, before, after


@posix
@rounds
def test_calibrate_changes_all_weights_or_none_in_bursts_of_ctrl_c(uncalibrated, seed, n):
    learn, before, after = uncalibrated
    copy_weights(learn.model, before)
    bursts, modes, count = Bursts(seed), state_of(learn.model)[2], 0
    started = time.monotonic()
    learn.calibrate()
    longest = time.monotonic() - started
    for _ in range(n):
        copy_weights(learn.model, before)
        learn.predictions.__init__()
        count += bursts(learn.calibrate, longest)
        found = learn.model.state_dict()
        differ = {name for name, v in before.items() if not torch.equal(v, found[name])}
        expected = after if differ else before
        for name, v in found.items(): assert torch.equal(v, expected[name]), name
        assert state_of(learn.model)[2] == modes
    assert count
    assert_lock_is_free()


def test_a_temperature_is_folded_as_a_whole():
    "However far the folding has got when Ctrl-C is pressed."
    head = nn.Linear(3, 2)
    before = weights_of(head)
    after = {name: v / 2 for name, v in before.items()}
    def fold(): fold_temperature(head, 2.)
    def is_folding(frame): return is_inside(frame, fold_temperature.__code__)
    moments = moments_of(fold, is_folding)
    assert moments > 20
    found = set()
    for n in range(1, moments + 1):
        copy_weights(head, before)
        assert PressAt(n, is_folding)(fold)
        whole = [all(torch.equal(v, state[name]) for name, v in head.state_dict().items())
                 for state in (before, after)]
        assert any(whole), f"moment {n} of {moments}"
        found.add(whole.index(True))
    assert found == {0, 1}


# ---- torch's modes

MODES = ("autograd/grad_mode.py", "amp/autocast_mode.py", "optim/optimizer.py",
         "utils/_contextlib.py")   # where torch changes them


class PressAt:
    "Calls a function and presses Ctrl-C twice at its n-th moment in frames that `where` chooses."
    def __init__(self, n, where): self.n, self.where, self.count = n, where, 0

    def watch(self, frame, event, arg):
        if not self.where(frame): return
        self.count += 1
        if self.count != self.n: return
        sys.setprofile(None)
        for _ in range(2): signal.raise_signal(signal.SIGINT)   # the first one ends a fit later

    def __call__(self, work):
        "Says whether that interrupted the function."
        sys.setprofile(self.watch)
        try: work()
        except KeyboardInterrupt: return True
        finally: sys.setprofile(None)
        return False


def moments_of(work, where):
    "How many there are: calls and returns of functions in Python and in C."
    press = PressAt(0, where)
    press(work)
    return press.count


def changes_modes(frame):
    "Is torch changing a mode here, or did a step of an optimizer call this, which changes one?"
    if Path(frame.f_code.co_filename).as_posix().endswith(MODES): return True
    return frame.f_back is not None and frame.f_back.f_code.co_name == "_use_grad"


@cache
def tiny_network(name):
    layers = (nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return with_stats(nn.Sequential(*layers), imagenet_stats)


def distill_photos(learn):
    "One epoch, with all photographs of a learner."
    photos = read_photos(learn.data.path, side=30)
    recipe = Recipe(epochs=1, size=24, bs=16, features=1.)
    distill(tiny_network("teacher"), tiny_network("student"), photos, recipe, learn.engine)


ENTRIES = WORK | {
    "Learner": lambda learn: new_learner(learn.data.path, learn.model_dir),
    "fit": lambda learn: learn.fit(1, 1e-3),
    "calibrate": lambda learn: learn.calibrate(),
    "load": lambda learn: learn.load("one"),
    "summary": lambda learn: learn.summary(),
    "distill": distill_photos,
}


@pytest.fixture(scope="module")
def other(images, tmp_path_factory):
    "A learner that may be changed."
    other = new_learner(images, tmp_path_factory.mktemp("models"))
    for name in ("one", "two"): other.save(name)
    return other


def modes_of_torch():
    torch.autocast_increment_nesting()
    depth = torch.autocast_decrement_nesting()   # contexts of autocast
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"), depth)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("seed, n", few(1, [(0, 8), (1, 60)]))
def test_modes_of_torch_are_put_back_wherever_ctrl_c_comes(other, name, seed, n):
    "Inside of `no_grad`, too, when it has turned gradients off and isn't entered yet."
    def work():
        other.predictions.__init__()
        ENTRIES[name](other)
    work()   # the first time does more
    before, rng = modes_of_torch(), random.Random(seed)
    moments = moments_of(work, changes_modes)
    assert moments > 10
    for _ in range(n):
        press = PressAt(rng.randint(1, moments), changes_modes)
        press(work)   # where Ctrl-C is delayed, a fit may end before it takes effect
        assert press.count == press.n
        assert modes_of_torch() == before, f"moment {press.n} of {moments}"
    assert_lock_is_free()


def test_a_mode_that_nobody_puts_back_is_found():
    "The test above notices what it is there for."
    def work():
        for _ in range(3):
            with torch.no_grad(): pass
    moments, found = moments_of(work, changes_modes), []
    for n in range(1, moments + 1):
        assert PressAt(n, changes_modes)(work)
        found.append(torch.is_grad_enabled())
        torch.set_grad_enabled(True)
    assert set(found) == {True, False}


# ---- soon

def after_press(work, delay):
    "Press Ctrl-C after `delay` seconds. Seconds from there until `work` ends, and the error."
    pressed = []
    def press():
        time.sleep(delay)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    error = interrupted(work, press)
    return ended[-1] - pressed[0], error


def working_threads():
    return [t for t in threading.enumerate() if t.name.startswith("lessonkit")]


@posix
def test_features_are_interrupted_at_once_and_resume_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path / "cache"))
    flat = sample.tiny(tmp_path / "flat", n=400, size=64)
    data = ImageData.from_name_re(flat, r"^(.+)_\d+", size=160, bs=64)
    learn = Learner(data, show=False, device="cpu", model_dir=tmp_path, precision="fp32")
    taken, error = after_press(lambda: learn.fit(1), 1.)
    assert 0 < taken < 1.5 and error is None   # half a second on a machine that does nothing else
    assert "resume()" in learn.history.fits[0].notes[-1]
    assert "computes them anew" in capsys.readouterr().out
    assert learn.history.fits[0].losses == []
    time.sleep(.5)
    assert not working_threads()
    assert not learn.run.finished and learn.trainer.features is None


@posix
def test_get_preds_is_interrupted_while_images_are_opened(images, learn, monkeypatch):
    from lessonkit.data import loader
    original = loader.open_pixels
    def slowly(*args, **options):
        time.sleep(.05)
        return original(*args, **options)
    monkeypatch.setattr(loader, "open_pixels", slowly)
    learn.predictions.__init__()
    taken, error = after_press(lambda: learn.get_preds("train"), .2)
    assert 0 < taken < .5 and error is not None
    time.sleep(.3)
    assert not working_threads()


@posix
def test_threads_stop_though_the_first_error_is_kept_in_a_traceback():
    begun = []
    def work(i):
        begun.append(i)
        time.sleep(.02)
    taken, error = after_press(lambda: run_in_threads(work, range(1000), threads=3), .1)
    assert 0 < taken < .4 and error is not None
    n = len(begun)
    time.sleep(.2)
    assert len(begun) <= n + 3 and not working_threads()


# ---- whose signal it is

def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], text=True, timeout=120,
                          capture_output=True, **options)


@posix
def test_a_job_that_ignores_sigint_is_not_stopped_by_it(images, tmp_path):
    result = run_python(f"""
        import os, signal, threading
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from lessonkit.all import *
        data = ImageData.from_name_re({str(images)!r}, r"^(.+)_\\d+", size=24, bs=8)
        learn = Learner(data, "timm:test_efficientnet", weights=None, show=False, device="cpu")
        original = learn.trainer.losses
        def press(*args):
            os.kill(os.getpid(), signal.SIGINT)
            return original(*args)
        learn.trainer.losses = press
        learn.fit(2, 1e-3)
        learn.lr_find(num_it=3)
        print(len(learn.history.fits[0].rows), learn.history.fits[0].notes)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    """)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 ") and "interrupted" not in result.stdout


def test_a_handler_of_c_code_is_left_alone(monkeypatch):
    "`signal.getsignal` says None then, and what it was can't be put back."
    def refuse(*args): raise AssertionError("the handler was replaced")
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", refuse)
    done = []
    with interrupt_flag() as flag, uninterrupted(), restoring(lambda: done.append(1)), entered():
        assert not flag.is_set()
    assert done == [1]


def test_a_handler_of_the_program_is_called_and_comes_back():
    calls = []
    def own(signum, frame): calls.append(signum)
    before = signal.signal(signal.SIGINT, own)
    try:
        with uninterrupted():
            for _ in range(3): signal.raise_signal(signal.SIGINT)
            assert calls == []
        with restoring(lambda: signal.raise_signal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        assert calls == [signal.SIGINT] * 3
        assert signal.getsignal(signal.SIGINT) is own
    finally: signal.signal(signal.SIGINT, before)


def test_contexts_may_be_nested_and_used_in_threads():
    errors = []
    def work():
        try:
            with interrupt_flag(), restoring(lambda: None), uninterrupted(): pass
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert errors == []


# ---- images that can't be read

def damaged(folder, **options):
    "A set in which two training images, and one for validation, are damaged after it was made."
    sample.tiny(folder, n=40)
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=24, **dict(bs=8) | options)
    files = [*data.train.paths[:2], data.valid.paths[0]]
    for file in files: file.write_bytes(file.read_bytes()[:200])
    return data, files


@pytest.mark.parametrize("options, learner", [
    (dict(augment=augmentations()), dict(arch="timm:test_efficientnet", weights=None, mixup=.4)),
    (dict(bs=2), dict(arch="timm:test_efficientnet", weights=None)),
    (dict(cache="memory"), dict(arch="timm:test_efficientnet", weights=None)),
    (dict(), dict()),   # a frozen body: features
])
def test_training_survives_damaged_images_and_names_them(tmp_path, options, learner):
    data, files = damaged(tmp_path / "images", **options)
    learn = Learner(data, show=False, device="cpu", precision="fp32", model_dir=tmp_path,
                    cache=False, **learner)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn.fit(2, 1e-3)
    fit, = learn.history.fits
    assert len(fit.rows) == 2 and np.isfinite(fit.losses).all()
    note, = [note for note in fit.notes if "can't be read" in note]
    assert "3 of 40" in note and all(file.name in note for file in files)
    said, = [str(w.message) for w in caught if "left out of training" in str(w.message)]
    assert all(file.name in said for file in files)


def test_unreadable_images_change_nothing_but_themselves(images, tmp_path):
    "Where none is damaged, a loader that notes them gives the same training to the last bit."
    data = ImageData.from_name_re(images, r"^(.+)_\d+", size=24, bs=8)
    batches = list(data.train.batches(1, 2))
    assert data.train.failed is None
    noting = type(data.train)(**data.train.settings(failed={}))
    for batch, other in zip(batches, noting.batches(1, 2), strict=True):
        assert torch.equal(batch.x, other.x) and torch.equal(batch.index, other.index)


# ---- batches of one

@pytest.mark.parametrize("n, bs, sizes", [
    (7, 2, [3, 2, 2]), (3, 2, [3]), (5, 1, [3, 2]), (2, 1, [2]), (21, 4, [4, 4, 4, 3, 3, 3]),
    (8, 2, [2] * 4), (30, 16, [15] * 2), (4, 3, [2, 2]),
])
def test_no_training_batch_has_one_image(images, n, bs, sizes):
    data = ImageData.from_name_re(images, r"^(.+)_\d+", size=24)
    loader = type(data.train)(**data.train.settings(
        paths=data.train.paths[:n], targets=data.train.targets[:n], bs=bs))
    assert [len(batch.index) for batch in loader.batches(0)] == sizes
    assert len(loader) == len(sizes)
