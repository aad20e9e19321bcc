"""Processes that train, and die where they are told to.

These are the tasks that test_resume.py and test_stop.py run in processes of their own.
"""
import hashlib, json, multiprocessing, os, random, signal, sys, threading, traceback, warnings
from dataclasses import asdict
from itertools import count
from types import SimpleNamespace

import numpy as np
import timm
import torch
from safetensors.torch import save_file

import lessonkit.train.run as run_module
from lessonkit.core.files import load_tensors
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from lessonkit.results.metrics import error_rate, higher_is_better
from lessonkit.train.engine import Engine

PAT = r"^(.+)_\d+"
LIMIT = 600   # seconds for one process, which takes a few


class Counting(torch.optim.SGD):
    "A user's own optimizer. It keeps plain numbers for each weight and group, and they matter."
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            for p in group["params"]:
                if p.grad is None: continue
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state["speed"] = state.get("speed", 1.) * .97
                slower = state["count"] + .1 * group["calls"]
                p.sub_(p.grad, alpha=group["lr"] * state["speed"] / slower)


class Overflows(Engine):
    "Its loss scaler begins much too high and soon tries higher ones: many steps are skipped."
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2. ** 126, growth_interval=2)

    def for_training(self, model): return Overflows(self.device, self.precision)


# ---- cases

def case(method, *args, data=None, learner=None, **options):
    "A way to train: options of the data and of the learner, and what to call on it."
    def fit(learn, **more): getattr(learn, method)(*args, **options, **more)
    return SimpleNamespace(data=data or {}, learner=learner or {}, fit=fit)


AUGMENTED = dict(augment=augmentations())
PRETRAINED = dict(weights="a file")
CASES = {
    "all at once": case(
        "fine_tune", 3, 2e-2, freeze_epochs=2, keep_best="score", data=AUGMENTED,
        learner=dict(mixup=.4, cutmix=1., smoothing=.1)),
    "features": case("fine_tune", 1, 1e-2, freeze_epochs=3),
    "features in memory": case("fine_tune", 1, 1e-2, freeze_epochs=2, learner=dict(cache=False)),
    "sgd": case(
        "fit_one_cycle", 4, 1e-2, accumulate=2, clip=.1, data=AUGMENTED,
        learner=dict(optimizer="sgd", class_weights="balanced")),
    "cycles": case("fit", 2, 1e-2, cycle_len=1, cycle_mult=2, snapshots="cycle"),
    "overflows": case("fit_one_cycle", 4, 1e-2),
    "own optimizer": case("fit_one_cycle", 3, 1e-2, learner=dict(optimizer=Counting)),
    "patience": case("fit", 4, 1e-2, keep_best="score", patience=1),
    "two phases": case(
        "fine_tune", 1, 1e-2, freeze_epochs=1, keep_best="score", data=AUGMENTED),
    "solved": case(
        "fine_tune", 2, keep_best="score", freeze_to=0, data=AUGMENTED, learner=PRETRAINED),
    "solved, maps": case(
        "fine_tune", 2, keep_best="score", data=AUGMENTED,
        learner=dict(copies=2) | PRETRAINED),
}


def pretrained_body(folder):
    "A file of weights: their body counts as pretrained, and so its head is solved."
    path = folder / "body.safetensors"
    if path.exists(): return path
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = timm.create_model("test_efficientnet").state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def data_of(images, **options):
    usual = dict(size=24, bs=6, threads=2, check=None)
    return ImageData.from_name_re(images, PAT, **usual | options)


def make(name, images, folder):
    "The learner of a case; it saves in `folder`."
    usual = dict(weights=None, precision="fp32", device="cpu", model_dir=folder, show=False)
    data, options = data_of(images, **CASES[name].data), CASES[name].learner
    if options.get("weights"): options = options | dict(weights=pretrained_body(folder))
    learn = Learner(data, "timm:test_efficientnet", error_rate, **usual | options)
    if name == "overflows": learn.trainer.engine = Overflows("cpu", "fp32")
    @higher_is_better
    @higher_is_better
    def score(preds): return (.4, .2, .9, .3, .1)[rows(learn)]   # the best epoch is never the last
    learn.metrics.append(score)
    return learn


# ---- what training has come to

def rows(learn): return sum(len(f.rows) for f in learn.history.fits)


def steps(learn): return sum(len(f.losses) for f in learn.history.fits)


def digest(tensors):
    "Of names and bits."
    sha = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        sha.update(name.encode() + t.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def fits_of(learn):
    "The history as plain values, without times."
    fits = json.loads(json.dumps(asdict(learn.history)))["fits"]
    for row in (row for fit in fits for row in fit["rows"]): row.pop("time")
    return fits


def outcome(learn):
    "All that two runs have to have in common."
    snapshots = {p.name: digest(load_tensors(p)[0])
                 for p in sorted(learn.model_dir.glob("cycle_*"))}
    progress, best = None, {}
    if learn.run:
        progress = asdict(learn.run.progress)
        progress.pop("phase")
        best = learn.run.best_weights
    return dict(weights=digest(learn.model.state_dict()), best=digest(best),
                fits=fits_of(learn), snapshots=snapshots, progress=progress)


# ---- dying

def die(*_): os.kill(os.getpid(), signal.SIGKILL)


def watch_steps(learn, after_step):
    """Call `after_step(number, optimizer)` when the weights have moved and nothing is recorded yet.

    The number counts all steps of the learner, from 1.
    """
    original = run_module.train_steps
    def watched(model, loader, phase, optimizer, *args, **options):
        first = steps(learn) + 1
        taken = original(model, loader, phase, optimizer, *args, **options)
        for number, step in enumerate(taken, first):
            after_step(number, optimizer)
            yield step
    run_module.train_steps = watched


def watch_validations(learn, before):
    "Call `before(number)` in each validation, counted from 1 over all epochs of the learner."
    original = learn.metrics.pop()
    @higher_is_better
    def score(preds):
        before(rows(learn) + 1)
        return original(preds)
    learn.metrics.append(score)


def watch_calls(owner, name, before=None, after=None):
    "Call `before` and `after` with the arguments of a function, whenever that is called."
    original = getattr(owner, name)
    def watched(*args):
        if before: before(*args)
        result = original(*args)
        if after: after(*args)
        return result
    setattr(owner, name, watched)


def die_half_way(write):
    "In the middle of this write (from 1): the system ends processes that write beyond a limit."
    import resource
    writes = count(1)
    def limit(left):
        if left: return
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    watch_calls(os, "replace", after=lambda *_: limit(write - 1 - next(writes)))
    limit(write - 1)


def arrange(learn, moment, n, delay):
    """Die at step, validation, phase or write number `n`, or so many seconds later.

    Steps and validations count from 1 over the whole training, writes from 1 in this process.
    """
    def at(k):
        if k != n: return
        if delay: threading.Timer(delay, die).start()
        else: die()

    writes = count(1)
    def at_write(*_): at(next(writes))

    if moment == "step": watch_steps(learn, lambda number, _: at(number))
    elif moment == "validation": watch_validations(learn, at)
    elif moment == "between phases":
        def at_phase(run, *_): at(run.progress.phase)
        watch_calls(run_module.Run, "train_phase", before=at_phase)
    elif moment == "end of phase":   # before anything is done about it
        watch_calls(run_module.Run, "train_phase", after=die)
    elif moment in ("fsync", "replace"): watch_calls(os, moment, before=at_write)
    elif moment == "replaced": watch_calls(os, "replace", after=at_write)
    elif moment == "half written": die_half_way(n)
    else: raise ValueError(moment)


def tick_with_each_step(learn):
    "The clock for checkpoints goes on by a second with each step."
    seconds = 0
    def tick(*_):
        nonlocal seconds
        seconds += 1
    watch_steps(learn, tick)
    run_module.time = SimpleNamespace(monotonic=lambda: seconds)


# ---- what processes do

def processes(cache):
    """A function that does a task of this module in a process of its own: (exit code, result).

    The process is forked from one that has imported everything and computed nothing.
    """
    server, numbers = multiprocessing.get_context("forkserver"), count()
    server.set_forkserver_preload(["lessonkit.learner", "timm"])
    def run(task, *args):
        answer = cache / f"answer_{next(numbers)}.json"
        process = server.Process(target=child, args=(cache, task, answer, *args))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{task} {args} has not ended after {LIMIT} seconds")
        return process.exitcode, json.loads(answer.read_text()) if answer.exists() else None
    return run


def child(cache, task, answer, *args):
    "Do a task of this module; write what it returns, or its error, as JSON."
    torch.set_num_threads(1)
    os.environ["LESSONKIT_CACHE"] = str(cache)
    random.seed(os.urandom(8))   # forked generators would all be alike
    np.random.seed(random.getrandbits(32))
    torch.manual_seed(random.getrandbits(32))
    try: result = globals()[task](*args)
    except BaseException:
        answer.write_text(json.dumps({"error": traceback.format_exc()}))
        raise
    answer.write_text(json.dumps(result))


def train(name, images, folder, options, death=None, ticking=False):
    """Begin, or go on from the checkpoint in `folder`. Returns the outcome.

    The file `begun` says how many steps had been taken.
    """
    learn = make(name, images, folder)
    if ticking: tick_with_each_step(learn)
    if death: arrange(learn, *death)
    begun = (folder / "run.safetensors").is_file()
    if begun: learn.load("run")
    (folder / "begun").write_text(str(steps(learn)))
    if not begun: CASES[name].fit(learn, **options)
    elif learn.run: learn.resume()
    return outcome(learn)


def starve(name, images, folder, limit, death=None):
    """Train where no file may be longer than `limit` bytes, as if the disk were full.

    Then save by hand, with no room at all.
    """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    learn = make(name, images, folder)
    if death: arrange(learn, *death)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CASES[name].fit(learn, checkpoint="run", every=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
    try: learn.save("by_hand")
    except OSError as e: error = str(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    return dict(outcome(learn), warned=[str(w.message) for w in caught], error=error)


# ---- Ctrl-C

class Press:
    """Press Ctrl-C at calls and returns with these numbers, of all that Python makes inside.

    `count` is how many there were.
    """
    def __init__(self, *numbers): self.numbers, self.count = set(numbers), 0

    def __enter__(self): sys.setprofile(self.event)

    def __exit__(self, *_): sys.setprofile(None)

    def event(self, frame, kind, arg):
        self.count += 1
        # Python lets no Ctrl-C in between the body of a `with` and a lock's release. This would,
        # and the next thread to take the lock would wait forever.
        if kind == "c_call" and arg.__name__ == "__exit__": return
        if self.count in self.numbers: signal.raise_signal(signal.SIGINT)


def state_of(learn, optimizer):
    "Digests of the weights and of the optimizer's state; None without an optimizer."
    state = None
    if optimizer: state = digest(run_module.OptimizerState.of(optimizer, learn.engine).tensors)
    return [digest(learn.model.state_dict()), state]


def states_by_step(name, images, folder):
    "Train undisturbed. Returns the state after each number of steps, and the outcome."
    learn, original = make(name, images, folder), run_module.train_steps
    states = {0: state_of(learn, None)}
    def note(number, optimizer): states[number] = state_of(learn, optimizer)
    watch_steps(learn, note)
    CASES[name].fit(learn)
    run_module.train_steps = original
    return states, outcome(learn)


def lengths(record):
    "Of all that is recorded for each step."
    return sorted({len(record.smooth), len(record.lrs), len(record.moms), len(record.losses)})


def describe(learn):
    "How far a learner has got that was interrupted."
    fits, run = learn.history.fits, learn.run
    optimizer = run.running.optimizer if run and run.running else None
    return dict(
        finished=bool(run and run.finished), steps=[len(f.losses) for f in fits],
        lengths=[lengths(f) for f in fits], rows=[len(f.rows) for f in fits],
        ends=[len(f.ends) for f in fits], state=state_of(learn, optimizer))


def press(name, images, folder, rounds, seed, twice=False):
    """Fit with Ctrl-C at random moments, once or twice each time, and resume.

    Returns the outcome of a whole fit, the state after each of its steps, and what each
    interrupted one had come to, before it was resumed and after.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fit, rng, interrupted = CASES[name].fit, random.Random(seed), []
    states, whole = states_by_step(name, images, folder)
    counter, learn = Press(), make(name, images, folder)
    with counter: fit(learn)
    for _ in range(rounds):
        first = rng.randrange(1, counter.count)
        second = first + rng.randrange(1, 2000)
        learn, error = make(name, images, folder), False
        try:
            with Press(first, second) if twice else Press(first): fit(learn)
        except KeyboardInterrupt: error = True
        found = dict(describe(learn), moment=first / counter.count, error=error)
        try:
            if not found["finished"]: learn.resume()
            elif error: learn.restore_best()
        except ValueError as e: found["refused"] = str(e)
        interrupted.append(dict(found, end=outcome(learn)))
    return dict(whole=whole, states=states, interrupted=interrupted)
