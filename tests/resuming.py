"""Processes that train, and die where they are told to. What runs in the children of test_resume.py and test_stop.py."""
import hashlib, json, multiprocessing, os, random, signal, sys, threading, traceback
from dataclasses import asdict
from itertools import count
from types import SimpleNamespace

import numpy as np
import torch

import lessonkit.train.run as module
from lessonkit.core.files import load_tensors
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.results.metrics import error_rate
from lessonkit.learner import Learner
from lessonkit.train.engine import Engine

PAT = r"^(.+)_\d+"


class Counting(torch.optim.SGD):
    "An optimizer of one's own that counts in plain numbers, in the state of each weight and in its groups, and steps accordingly."
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            for p in group["params"]:
                if p.grad is None: continue
                state = self.state[p]
                state["count"], state["speed"] = state.get("count", 0) + 1, state.get("speed", 1.) * .97
                p.sub_(p.grad, alpha=group["lr"] * state["speed"] / (state["count"] + .1 * group["calls"]))


class Overflows(Engine):
    "A loss scaler of 16-bit training that begins much too high and soon tries higher ones: many of its steps are skipped."
    def __init__(self, *a, **kw):
        super().__init__(*a, **kw)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2. ** 126, growth_interval=2)

    def for_training(self, model): return Overflows(self.device, self.precision)


# name: of the data, of the learner, the fit
CASES = {
    "all at once": (dict(augment=augmentations()), dict(mixup=.4, cutmix=1., smoothing=.1),
                    lambda learn, **kw: learn.fine_tune(3, 2e-2, freeze_epochs=2, keep_best="score", **kw)),
    "features": (dict(), dict(), lambda learn, **kw: learn.fine_tune(1, 1e-2, freeze_epochs=3, **kw)),
    "features in memory": (dict(), dict(cache=False), lambda learn, **kw: learn.fine_tune(1, 1e-2, freeze_epochs=2, **kw)),
    "sgd": (dict(augment=augmentations()), dict(optimizer="sgd", class_weights="balanced"), lambda learn, **kw: learn.fit_one_cycle(4, 1e-2, accumulate=2, clip=.1, **kw)),
    "cycles": (dict(), dict(), lambda learn, **kw: learn.fit(2, 1e-2, cycle_len=1, cycle_mult=2, snapshots="cycle", **kw)),
    "overflows": (dict(), dict(), lambda learn, **kw: learn.fit_one_cycle(4, 1e-2, **kw)),
    "own optimizer": (dict(), dict(optimizer=Counting), lambda learn, **kw: learn.fit_one_cycle(3, 1e-2, **kw)),
    "patience": (dict(), dict(), lambda learn, **kw: learn.fit(4, 1e-2, keep_best="score", patience=1, **kw)),
    "two phases": (dict(augment=augmentations()), dict(), lambda learn, **kw: learn.fine_tune(1, 1e-2, freeze_epochs=1, keep_best="score", **kw)),
}


def data_of(pictures, **kw): return ImageData.from_name_re(pictures, PAT, **dict(size=24, bs=6, threads=2, check=None) | kw)


def make(case, pictures, folder):
    data, options, _ = CASES[case]
    learn = Learner(data_of(pictures, **data), "timm:test_efficientnet", error_rate, **dict(weights=None, precision="fp32", device="cpu", model_dir=folder, show=False) | options)
    if case == "overflows": learn.trainer.engine = Overflows("cpu", "fp32")
    def score(preds): return (.4, .2, .9, .3, .1)[rows(learn)]   # the best epoch is never the last
    learn.metrics.append(score)
    return learn


def rows(learn): return sum(len(f.rows) for f in learn.history.fits)
def steps(learn): return sum(len(f.losses) for f in learn.history.fits)


def digest(tensors):
    "Of names and bits."
    stamp = hashlib.sha256()
    for name, t in sorted(tensors.items()): stamp.update(name.encode() + t.detach().contiguous().numpy().tobytes())
    return stamp.hexdigest()[:16]


def past(learn): return [dict(f, rows=[{k: v for k, v in row.items() if k != "time"} for row in f["rows"]]) for f in json.loads(json.dumps(asdict(learn.history)))["fits"]]


def outcome(learn):
    "All that two runs have to have in common."
    kept = {p.name: digest(load_tensors(p)[0]) for p in sorted(learn.model_dir.glob("cycle_*"))}
    progress = learn.run and {k: v for k, v in asdict(learn.run.progress).items() if k != "phase"}
    best = learn.run.best_weights if learn.run else {}
    return dict(weights=digest(learn.model.state_dict()), best=digest(best), past=past(learn),
                snapshots=kept, progress=progress)


# ---- dying

def die(): os.kill(os.getpid(), signal.SIGKILL)


def watch_steps(learn, after_step):
    "Let `after_step(number of the step among all, optimizer)` see each step when the weights have moved and nothing is recorded yet."
    original = module.train_steps
    def watched(model, loader, phase, optimizer, *a, **kw):
        for taken, step in enumerate(original(model, loader, phase, optimizer, *a, **kw), steps(learn) + 1):
            after_step(taken, optimizer)
            yield step
    module.train_steps = watched


def arrange(learn, kind, n, delay):
    "Death at the step, validation or write number n (from 1, of all or, with writes, of this process), or so many seconds later."
    def at(k):
        if k == n: threading.Timer(delay, die).start() if delay else die()
    writes = count(1)
    if kind == "step": watch_steps(learn, lambda taken, _: at(taken))
    elif kind == "validation":
        score = learn.metrics.pop()
        def deadly(preds): at(rows(learn) + 1); return score(preds)
        deadly.__name__ = "score"
        learn.metrics.append(deadly)
    elif kind == "between phases":
        whole = module.Run.train_phase
        module.Run.train_phase = lambda run, *a: (at(run.progress.phase), whole(run, *a))[1]
    elif kind == "plan":  # at the end of all phases, before anything is done about it
        go = module.Run.train_phase
        module.Run.train_phase = lambda run, *a: (go(run, *a), die())[0]
    elif kind in ("fsync", "replace"):
        original = getattr(os, kind)
        setattr(os, kind, lambda *a: (at(next(writes)), original(*a))[1])
    elif kind == "replaced":
        replace = os.replace
        os.replace = lambda *a: (replace(*a), at(next(writes)))[0]
    elif kind == "half written":  # the system ends processes that write beyond a limit, in the middle of it
        import resource
        def limit(left):
            if left: return
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        replace = os.replace
        os.replace = lambda *a: (replace(*a), limit(n - 1 - next(writes)))[0]
        limit(n - 1)
    else: raise ValueError(kind)


def ticking(learn):
    "A clock for checkpoints that goes on by a second whenever it is looked at."
    ticks = count()
    module.time = SimpleNamespace(monotonic=lambda: next(ticks))


# ---- what processes do

def processes(cache):
    "A function that does a task of this module in a process of its own, forked from one that has imported everything and computed nothing: (exit code, result)."
    server, numbers = multiprocessing.get_context("forkserver"), count()
    server.set_forkserver_preload(["lessonkit.learner", "timm"])
    def run(task, *args):
        answer = cache / f"answer_{next(numbers)}.json"
        process = server.Process(target=child, args=(cache, task, answer, *args))
        process.start()
        process.join()
        return process.exitcode, json.loads(answer.read_text()) if answer.exists() else None
    return run


def child(cache, task, answer, *args):
    "Do a task of this module; write what it returns, or its error, as JSON."
    torch.set_num_threads(1)
    os.environ["LESSONKIT_CACHE"] = str(cache)
    random.seed(os.urandom(8)); np.random.seed(random.getrandbits(32)); torch.manual_seed(random.getrandbits(32))   # forked generators would all be alike
    try: found = globals()[task](*args)
    except BaseException:
        answer.write_text(json.dumps({"error": traceback.format_exc()}))
        raise
    answer.write_text(json.dumps(found))


def train(case, pictures, folder, options, death=None, clock=False):
    "Begin, or go on where the file in `folder` says. Returns the outcome; the file `begun` says how many steps had been taken."
    learn = make(case, pictures, folder)
    if clock: ticking(learn)
    if death: arrange(learn, *death)
    there = (folder / "run.safetensors").is_file()
    if there: learn.load("run")
    (folder / "begun").write_text(str(steps(learn)))
    if not there: CASES[case][2](learn, **options)
    elif learn.run: learn.resume()
    return outcome(learn)


def starve(case, pictures, folder, most, death=None):
    "Train where no file may be longer than `most` bytes: the system refuses to write more, as it does when a disk is full. Then save by hand, with no room at all."
    import resource, warnings
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, -1))
    learn = make(case, pictures, folder)
    if death: arrange(learn, *death)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        CASES[case][2](learn, checkpoint="run", every=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
    try: learn.save("by_hand")
    except OSError as e: error = str(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    return dict(outcome(learn), said=[str(w.message) for w in said], error=error)


class Press:
    "Ctrl-C at the calls and returns (of all that Python calls) with these numbers; `count` is how many there were."
    def __init__(self, *numbers): self.numbers, self.count = set(numbers), 0
    def __enter__(self): sys.setprofile(self.event)
    def __exit__(self, *a): sys.setprofile(None)
    def event(self, frame, kind, arg):
        self.count += 1
        if self.count in self.numbers: signal.raise_signal(signal.SIGINT)


def press(case, pictures, folder, rounds, seed, twice=False):
    "Fit with Ctrl-C at random moments, once or twice each time, and resume. Returns the outcome of a whole fit, what it had come to after each step, and what became of the others."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fit, rng, known, told = CASES[case][2], random.Random(seed), {}, []

    def state(learn, optimizer):
        kept = optimizer and module.OptimizerState.of(optimizer, learn.engine).tensors
        return [digest(learn.model.state_dict()), kept and digest(kept)]

    learn, original = make(case, pictures, folder), module.train_steps
    known[0] = state(learn, None)
    watch_steps(learn, lambda taken, optimizer: known.update({taken: state(learn, optimizer)}))
    fit(learn)
    module.train_steps, whole, counter = original, outcome(learn), Press()
    learn = make(case, pictures, folder)
    with counter: fit(learn)
    for _ in range(rounds):
        first = rng.randrange(1, counter.count)
        learn = make(case, pictures, folder)
        try:
            with Press(first, *[first + rng.randrange(1, 2000)] * twice): fit(learn)
            error = False
        except KeyboardInterrupt: error = True
        finished, fits = bool(learn.run and learn.run.finished), learn.history.fits
        lengths = [sorted({len(f.smooth), len(f.lrs), len(f.moms), len(f.losses)}) for f in fits]
        running = learn.run and learn.run.running
        now = state(learn, running and running.optimizer)
        told.append(dict(moment=first / counter.count, error=error, finished=finished, steps=[len(f.losses) for f in fits], lengths=lengths, rows=[len(f.rows) for f in fits], ends=[len(f.ends) for f in fits], state=now))
        try:
            if not finished: learn.resume()
            elif error: learn.restore_best()
        except ValueError as e: told[-1]["refused"] = str(e)
        told[-1]["end"] = outcome(learn)
    return dict(whole=whole, known=known, told=told)
