"""Images opened in worker processes: the same batches as from threads, and nothing left behind."""
import copy
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from lessonkit.core.workers import can_fork, WorkerError, WorkerPool, Workers
from lessonkit.data import loader as loader_module
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.formats import DECODING, limit_decoding
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files, ImageReadError
from lessonkit.data.loader import Loader
from lessonkit.learner import Learner
from lessonkit.train.engine import Engine
from tiers import few

pytestmark = pytest.mark.skipif(not can_fork(), reason="no processes can be forked here")

POOL = loader_module._POOL


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tuple(image_files(sample.tiny(tmp_path_factory.mktemp("workers") / "t")))


@pytest.fixture(autouse=True)
def ended():
    yield
    assert POOL.user is None   # nobody keeps them
    POOL.end()


@pytest.fixture
def claims(monkeypatch):
    "How often workers were asked for, and got."
    got, claim = [], POOL.claim
    def note(*args, **options):
        workers = claim(*args, **options)
        got.append(workers is not None)
        return workers
    monkeypatch.setattr(POOL, "claim", note)
    return got


def pair(files, **options):
    "The same loader with threads and with processes."
    usual = dict(targets=torch.arange(len(files)), size=16, presize=20, bs=5, threads=2)
    threads = Loader(tuple(files), **(usual | options))
    return threads, replace(threads, workers=2, _kept={},
                            failed=None if threads.failed is None else {})


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second):
        for name in ("x", "y", "aspect", "index"):
            left, right = getattr(a, name), getattr(b, name)
            assert left is right is None or torch.equal(left, right), name
        assert (a.x.dtype, a.aspect.dtype) == (b.x.dtype, b.aspect.dtype)
        assert a.x.stride() == b.x.stride()


def damaged(files, folder):
    "The files, but 3, 20 and 21 can't be read, and the last one doesn't exist."
    files, odd = list(files), sample.odd_files(folder)
    files[3] = files[20] = odd["truncated.jpg"]
    files[21], files[-1] = odd["text.jpg"], folder / "none.jpg"
    return files


# ---- the same batches

@pytest.mark.parametrize("options", few(3, [
    dict(shuffle=True), dict(pixel_range=(0, 100)), dict(channels=1), dict(shuffle=True, bs=1),
    dict(bs=11), dict(targets=None), dict(presize=33), dict(channels=4, fit="pad"),
    dict(sampling="balanced", shuffle=True, targets=torch.arange(48) % 3)]), ids=str)
def test_batches_are_the_same(files, options, claims):
    threads, processes = pair(files, **options)
    assert_same(threads.batches(1, 2), processes.batches(1, 2))
    assert_same(threads.batches(1, 3, start=1), processes.batches(1, 3, start=1))
    assert claims == [True, True]


def test_arrays_in_files_are_the_same(tmp_path, claims):
    rng, made = np.random.default_rng(0), []
    for i in range(24):
        made.append(tmp_path / f"{i}.npy")
        np.save(made[-1], rng.integers(0, 4096, (12 + i, 20, 5), np.uint16))
    assert_same(*[each.batches() for each in pair(made, channels=5, pixel_range=(0, 4095))])
    assert claims == [True]


def test_unreadable_images_are_noted_as_by_threads(files, tmp_path, claims):
    threads, processes = pair(damaged(files, tmp_path), failed={})
    assert_same(threads.batches(), processes.batches())
    assert threads.failed == processes.failed
    assert list(processes.failed) == [3, 20, 21, 47]
    assert claims == [True]


def test_an_error_is_the_one_that_threads_raise(files, tmp_path, claims):
    files = damaged(files, tmp_path)
    for chosen in (files, files[5:], files[22:]):
        errors = []
        for each in pair(chosen):
            with pytest.raises((ImageReadError, OSError)) as caught: list(each.batches())
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1]
    assert errors[0][0] is FileNotFoundError
    threads, processes = pair(files[22:-1])
    assert_same(threads.batches(), processes.batches())
    assert claims == [True] * 4


@pytest.fixture
def ahead(monkeypatch):
    "Engines for a CPU open ahead, as those for a GPU do."
    begin = Engine.__init__
    def begin_ahead(self, *args, **options):
        begin(self, *args, **options)
        self.ahead = 2
    monkeypatch.setattr(Engine, "__init__", begin_ahead)


def test_training_with_workers_gives_the_same_numbers(files, tmp_path, ahead, claims):
    histories = []
    for workers in (0, 2):
        data = ImageData.from_name_re(files[0].parent, r"^(.+)_\d+", size=16, bs=6, check=None,
                                      augment=augmentations(), workers=workers)
        learn = Learner(data, "resnet18", weights=None, device="cpu", precision="fp32",
                        show=False, model_dir=tmp_path)
        learn.fit(2, 1e-3)
        histories.append((learn.history.fits[0].losses, learn.get_preds()[0].probs))
    assert histories[0][0] == histories[1][0]
    assert torch.equal(histories[0][1], histories[1][1])
    assert claims[0] and sum(claims) >= 2   # both epochs of training


def test_random_numbers_of_the_program_are_not_touched(files):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(pair(files)[1].batches())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


# ---- what is opened in workers, and when

def test_images_kept_in_memory_are_not_asked_for_again(files, claims):
    threads, processes = pair(files, cache="memory", shuffle=True)
    processes = replace(processes, _kept={})
    batches = processes.batches(0)
    for _ in range(2): next(batches)
    batches.close()
    assert 10 <= len(processes._kept) <= 25   # two, and those opened ahead
    assert_same(threads.batches(1), processes.batches(1))   # some are kept, others not
    assert processes._kept.keys() == set(range(48))
    assert claims == [True, True]
    for i in range(48):
        (a, ratio), (b, same) = threads._kept[i], processes._kept[i]
        assert np.array_equal(a, b)
        assert ratio == same
    assert_same(threads.batches(2), processes.batches(2))
    assert claims == [True, True]   # nothing was left to open


def test_unreadable_images_are_not_kept(files, tmp_path):
    _, processes = pair(damaged(files, tmp_path), cache="memory", failed={})
    list(processes.batches())
    assert set(range(48)) - processes._kept.keys() == {3, 20, 21, 47}


class OddPath(type(Path())):
    "A path of a class of its own."


@pytest.mark.parametrize("kind", ["arrays", "bytes", "images", "other paths"])
def test_other_things_than_files_are_opened_in_threads(files, kind, claims):
    make = {"arrays": lambda f: np.asarray(Image.open(f)), "bytes": Path.read_bytes,
            "images": Image.open, "other paths": OddPath}[kind]
    assert_same(*[each.batches() for each in pair([make(f) for f in files])])
    assert claims == []


def test_workers_are_for_engines_that_open_ahead(files, claims):
    threads, processes = pair(files)
    assert_same(threads.batches(ahead=0), processes.batches(ahead=0))
    list(replace(processes, workers=0).batches())
    if not torch.cuda.is_initialized(): list(replace(processes, workers=None).batches())
    class Own(Loader):
        def item(self, i): return super().item(i)
    list(Own(**processes.settings()).batches())
    assert claims == []


def test_a_few_batches_start_no_workers_but_use_those_there_are(files, claims):
    threads, three = pair(files, bs=16)
    assert_same(threads.batches(), three.batches())
    assert claims == [False]
    list(replace(three, bs=4).batches())
    assert_same(threads.batches(), three.batches())
    assert claims == [False, True, True]
    one = replace(three, paths=files[:3], targets=None)
    list(one.batches())
    assert claims == [False, True, True]


@pytest.mark.parametrize("cores, cuda, wanted, expected", [
    (1, True, None, 0), (4, True, None, 4), (64, True, None, 16), (4, False, None, 0),
    (4, True, 0, 0), (4, False, 2, 2), (4, True, 100, 4), (64, True, 32, 32), (1, False, 3, 1)])
def test_how_many(files, monkeypatch, cores, cuda, wanted, expected):
    monkeypatch.setattr(loader_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: cuda)
    assert loader_module._count_workers(wanted, files) == expected


def test_a_worker_of_somebody_else_uses_threads(files):
    "A process of `multiprocessing` may not have any of its own."
    threads, processes = pair(files)
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool: total = pool.apply(summed, (processes,))
    assert total == summed(threads)


def summed(loader): return sum(int(batch.x.sum()) for batch in loader.batches())


@pytest.mark.gpu
def test_on_a_gpu_they_are_the_default_and_batches_are_pinned(files, claims):
    torch.cuda.init()
    threads = Loader(files, torch.arange(48), size=16, presize=20, bs=5, shuffle=True, workers=0)
    default = replace(threads, workers=None)
    assert_same(threads.batches(0), default.batches(0))
    assert claims == [True]
    assert all(batch.x.is_pinned() for batch in default.batches(1))
    on_gpu = [batch.x.cuda(non_blocking=True).cpu() for batch in default.batches(0)]
    for x, batch in zip(on_gpu, threads.batches(0), strict=True): assert torch.equal(x, batch.x)


# ---- settings and loaders change

def test_settings_that_changed_hold_in_workers(files, monkeypatch, tmp_path):
    threads, processes = pair(files)
    list(processes.batches())
    before = DECODING.limit
    try:
        limit_decoding(1e-6)
        with pytest.raises(ImageReadError, match="more than the limit"): list(processes.batches())
    finally: limit_decoding(before / 2**30)
    assert_same(threads.batches(), processes.batches())

    cut = tmp_path / "cut.jpg"
    whole = Image.effect_noise((200, 200), 90).convert("RGB")
    whole.save(cut)
    cut.write_bytes(cut.read_bytes()[:-3000])
    processes = replace(processes, paths=(*files, cut), targets=None)
    with pytest.raises(ImageReadError, match="truncated"): list(processes.batches())
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(list(processes.batches())) == 10


def test_relative_paths_start_from_where_the_program_is_now(files, monkeypatch, tmp_path):
    names = [Path(f.name) for f in files]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError): list(pair(names)[1].batches())
    monkeypatch.chdir(files[0].parent)
    assert_same(pair(files)[0].batches(), pair(names)[1].batches())


def test_all_loaders_share_workers(files, claims):
    _, processes = pair(files, presize=30)
    list(processes.batches())
    first = POOL.workers
    for other in (replace(processes, presize=20), replace(processes, paths=files[::-1]),
                  replace(processes, channels=1, pixel_range=(0, 9)), copy.deepcopy(processes),
                  pickle.loads(pickle.dumps(processes))):
        assert_same(replace(other, workers=0).batches(), other.batches())
        assert POOL.workers is first
    larger = replace(processes, presize=60)
    assert_same(replace(larger, workers=0).batches(), larger.batches())
    assert POOL.workers is not first
    assert not first.alive
    assert claims == [True] * 7


# ---- closed early, two at once

def test_a_closed_iterator_leaves_the_workers_to_the_next(files, claims):
    threads, processes = pair(files, bs=2)
    for taken in (0, 1, 5, 23):
        batches = processes.batches(taken)
        assert_same(threads.batches(taken), [*islice(batches, taken), *batches])
        batches = processes.batches(7)
        for _ in islice(batches, taken): pass
        batches.close()
    first = POOL.workers
    for _ in range(20):
        batches = processes.batches(7)
        next(batches)
        del batches
    assert_same(threads.batches(8), processes.batches(8))
    assert POOL.workers is first
    assert all(claims)


def test_a_second_caller_uses_threads(files, claims):
    threads, processes = pair(files)
    for a, b in zip(processes.batches(0), processes.batches(0), strict=True):
        assert torch.equal(a.x, b.x)
    assert claims == [True, False]
    batches = processes.batches(0)
    for _ in range(len(processes)): next(batches)
    assert_same(threads.batches(1), processes.batches(1))   # the last batch has come: they are free
    assert claims == [True, False, True, True]
    batches.close()


def test_many_threads_at_once(files):
    threads, processes = pair(files)
    expected = list(threads.batches(0))
    def run():
        for _ in range(6): assert_same(expected, processes.batches(0))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run) for _ in range(4)]: done.result()


# ---- they end

def test_idle_workers_end(files, monkeypatch):
    monkeypatch.setattr(POOL, "idle", .2)
    _, processes = pair(files)
    list(processes.batches())
    started = POOL.workers.processes
    assert len(started) >= 1
    assert all(p.is_alive() for p in started)
    wait_until(lambda: not any(p.is_alive() for p in started))
    list(processes.batches())
    assert POOL.workers.alive


def wait_until(reached, seconds=20):
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until
        time.sleep(.02)


def test_a_killed_worker_is_named_and_the_next_epoch_works(files):
    threads, processes = pair(files, bs=2, shuffle=True)
    batches = processes.batches(0)
    next(batches)
    for process in POOL.workers.processes: os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"memory ran out: .*workers=2.*workers=0"): list(batches)
    assert_same(threads.batches(1), processes.batches(1))
    for process in POOL.workers.processes: os.kill(process.pid, signal.SIGKILL)   # while idle
    wait_until(lambda: not POOL.workers.alive)
    assert_same(threads.batches(2), processes.batches(2))


def test_workers_that_cannot_be_started_are_replaced_by_threads(files, monkeypatch):
    threads, processes = pair(files)
    def refuse(*args): raise OSError("no more processes")
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.warns(UserWarning, match="no more processes.*threads instead.*workers=0"):
        assert_same(threads.batches(), processes.batches())


def test_a_forked_copy_of_the_program_leaves_them_alone(files):
    threads, processes = pair(files)
    list(processes.batches())
    first, expected = POOL.workers, summed(threads)
    pid = os.fork()
    if not pid: os._exit(summed(processes) != expected)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert first.alive
    assert_same(threads.batches(), processes.batches())
    assert POOL.workers is first


def test_interpreters_end_without_a_pool():
    workers = Workers(lambda room, x: x, 1)
    started = workers.processes
    del workers
    wait_until(lambda: not any(p.is_alive() for p in started))
    pool = WorkerPool(lambda room, x: x)
    pool.release(None)
    pool.end()


PROGRAM = """
import os, sys, threading, time
from pathlib import Path
from lessonkit.data import loader as module
from lessonkit.data.images import image_files
files = tuple(image_files(sys.argv[1]))
loader = module.Loader(files, None, size=8, presize=16, bs=2, workers=2)
def tell(*words): print(*words, flush=True)
def pids(): return [p.pid for p in module._POOL.workers.processes]
batches = loader.batches()
first = next(batches)
tell(*pids())
"""

ENDS = {
    "iterated": "for _ in batches: pass",
    "in the middle": "",
    "closed": "batches.close()",
    "an error": "raise ValueError('mine')",
    "sys.exit": "sys.exit()",
    "two iterators": "others = loader.batches(1)\nnext(others)",
}


def start(files, ending):
    return subprocess.Popen([sys.executable, "-c", PROGRAM + ending, files[0].parent],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def is_running(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError: return False


@pytest.mark.parametrize("ending", few(2, list(ENDS)))
def test_no_process_is_left_when_the_program_ends(files, ending):
    with start(files, ENDS[ending]) as program:
        out, err = program.communicate(timeout=100)
    pids = list(map(int, out.split()))
    assert pids
    assert not any(map(is_running, pids))
    assert err.count("Traceback") == (ending == "an error"), err


@pytest.mark.slow
def test_no_process_is_left_when_the_program_is_killed(files):
    with start(files, "time.sleep(100)") as program:
        pids = list(map(int, program.stdout.readline().split()))
        assert all(map(is_running, pids))
        program.kill()
        wait_until(lambda: not any(map(is_running, pids)), 30)


PRESSED = """
tell("begin")
try:
    for epoch in range(10**6):
        for batch in loader.batches(epoch): time.sleep(.001)
except KeyboardInterrupt: tell("stopped")
before = pids()
batches.close()
total = sum(len(batch.index) for batch in loader.batches())
tell(total, pids() == before)
"""


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_is_one_clean_keyboard_interrupt(files, times):
    "A terminal sends it to all processes of the group."
    with start(files, "batches.close()" + PRESSED.replace("batches.close()\n", "")) as program:
        pids = list(map(int, program.stdout.readline().split()))
        assert program.stdout.readline() == "begin\n"
        time.sleep(.3)
        for pid in pids:   # to the workers first, more than once
            for _ in range(times): os.kill(pid, signal.SIGINT)
        os.killpg(program.pid, signal.SIGINT)
        out, err = program.communicate(timeout=100)
    assert (out, err) == ("stopped\n48 True\n", "")
    assert not any(map(is_running, pids))
