"""Training that is killed and resumed ends with the weights it would have had anyway.

Processes are killed at many moments, disks are full, files are broken.
"""
import os, random, signal, time

import pytest

import resuming
from lessonkit.core.files import load_tensors, save_tensors
from lessonkit.data import sample
from tiers import few

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes can be forked here")
pytestmark = [pytest.mark.slow, needs_fork]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return resuming.processes(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(run, images, tmp_path_factory):
    "The outcome of a case that nothing disturbs, and that saves nothing."
    known = {}
    def whole(case):
        if case not in known:
            known[case] = run("train", case, images, tmp_path_factory.mktemp("whole"), {})
        status, result = known[case]
        assert status == 0, result["error"]
        return result
    return whole


@pytest.fixture
def killed(run, images, tmp_path, whole):
    """Train, die at each of `deaths` and go on; yields how many steps the checkpoint then held.

    The last process may live, and must end like the undisturbed one.
    """
    def killed(case, deaths, every=0, ticking=False):
        options = dict(checkpoint="run", every=every)
        for death in deaths:
            status, result = run("train", case, images, tmp_path, options, death, ticking)
            by = signal.SIGXFSZ if death[0] == "half written" else signal.SIGKILL
            assert status == -by, f"it was to die at {death}, and ended with {status}: {result}"
            assert result is None
            yield steps_in(tmp_path)
        status, result = run("train", case, images, tmp_path, options)
        assert status == 0, result["error"]
        assert result == whole(case)
        for file in leftovers(tmp_path): make_old(file)
        save_tensors(tmp_path / "run.safetensors", {}, {})
        assert not leftovers(tmp_path)
    return killed


def steps_in(folder):
    "How many steps the checkpoint knows of; None if there is none."
    file = folder / "run.safetensors"
    if not file.is_file(): return None
    metadata = load_tensors(file)[1]
    return sum(len(fit["losses"]) for fit in metadata["history"]["fits"])


def leftovers(folder):
    "Files that an interrupted write left behind."
    return [p for p in folder.iterdir() if p.suffix != ".safetensors" and p.name != "begun"]


def make_old(file):
    "Two hours are enough: leftovers of the last hour are not touched."
    os.utime(file, (time.time() - 7200,) * 2)


def draw(seed, total, n):
    "`n` random steps out of `total`, in order, but not the last one."
    return sorted(random.Random(seed).sample(range(1, total), n))


def at_steps(numbers):
    "Deaths at these steps."
    return [("step", number, 0.) for number in numbers]


def steps_before(numbers):
    "What a checkpoint holds after deaths at these steps: a step dies before it is recorded."
    return [number - 1 if number > 1 else None for number in numbers]


# ---- random steps of a fine_tune with everything that is random
# (two phases, 30 steps, augmentation, mixup, CutMix, dropout, the best epoch kept)

@pytest.mark.parametrize("seed", few(1, range(1, 9)))
def test_killed_at_random_steps(killed, seed):
    steps = draw(seed, 30, 5)
    assert list(killed("all at once", at_steps(steps))) == steps_before(steps)


@pytest.mark.parametrize("seed", few(1, range(3, 11)))
def test_killed_some_time_after_random_steps(killed, seed):
    "In the middle of a step, a validation or a checkpoint, as it happens."
    steps, rng = draw(seed, 27, 5), random.Random(seed)
    deaths = [("step", number, rng.uniform(0, .03)) for number in steps]
    for number, held in zip(steps, killed("all at once", deaths)):
        assert held is None or held >= number - 1 or number == 1


def test_the_whole_run_is_worth_comparing(whole):
    result = whole("all at once")
    assert [len(fit["losses"]) for fit in result["fits"]] == [12, 18]
    assert [len(fit["rows"]) for fit in result["fits"]] == [2, 3]
    last_is_best = "the best epoch was the last, so nothing shows that an earlier one was kept"
    assert result["progress"]["waited"] > 0, last_is_best


def test_killed_in_validation_and_between_phases(killed):
    moments = [("validation", 1), ("validation", 2), ("between phases", 1), ("validation", 4),
               ("validation", 5), ("end of phase", 0)]
    deaths = [(moment, n, 0.) for moment, n in moments]
    assert list(killed("all at once", deaths)) == [5, 11, 12, 23, 29, 30]


@pytest.mark.parametrize("moment, held", [
    ("half written", [2, 5, 8]),
    ("fsync", [2, 5, 8]),
    ("replace", [2, 5, 8]),
    ("replaced", [3, 7, 11]),
])
def test_killed_in_a_checkpoint_write(killed, moment, held):
    """In the third write, and twice in the fourth after it.

    The file of the write before is there, and good, until the new one stands in its place.
    """
    deaths = [(moment, write, 0.) for write in (3, 4, 4)]
    assert list(killed("two phases", deaths)) == held


def test_killed_in_the_first_write(killed):
    "There is nothing to go on from, so training begins again."
    deaths = [("half written", 1, 0.), ("replace", 1, 0.)]
    assert list(killed("two phases", deaths)) == [None, None]


@pytest.mark.parametrize("case", [
    "features", "features in memory", "sgd", "cycles", "overflows", "own optimizer", "solved",
    "solved, maps"])
def test_every_way_to_train(killed, whole, case):
    total = sum(len(fit["losses"]) for fit in whole(case)["fits"])
    steps = draw(case, total, 3)
    assert list(killed(case, at_steps(steps))) == steps_before(steps)


def test_the_scaler_skips_steps(whole):
    record, = whole("overflows")["fits"]
    assert 4 < record["skipped"] < len(record["losses"]) - 4


def test_checkpoints_by_time(killed):
    """Every three ticks of a clock that ticks once a step.

    That is after steps 3 and 6, which ends the epoch, and so on.
    """
    held = killed("two phases", at_steps([2, 5, 9, 12]), every=3, ticking=True)
    assert list(held) == [None, 3, 6, 9]


def test_checkpoints_after_epochs_only(killed):
    held = killed("all at once", at_steps([6, 11, 12, 15, 29]), every=1e9)
    assert list(held) == [None, 6, 6, 12, 24]


def test_killed_when_patience_had_run_out(killed, whole):
    record, = whole("patience")["fits"]
    assert len(record["rows"]) == 2
    assert "has not improved" in record["notes"][-2]
    assert list(killed("patience", [("end of phase", 0, 0.)])) == [len(record["losses"])]


# ---- a disk that is full

def test_a_full_disk_costs_checkpoints_only(run, killed, whole, images, tmp_path):
    """There is room for the frozen phase's files, but not for the optimizer's state of all weights.

    When the process dies later, the last good checkpoint is there.
    """
    case, options = "features in memory", dict(checkpoint="run", every=0)
    file, small = tmp_path / "run.safetensors", tmp_path / "small.safetensors"
    status, _ = run("train", case, images, tmp_path, options, ("step", 13, 0.))
    assert status == -signal.SIGKILL
    file.rename(small)
    limit = small.stat().st_size + 50_000

    status, result = run("starve", case, images, tmp_path, limit)
    assert status == 0, result["error"]
    for part in ("File too large", "untouched", "another model_dir"):
        assert part in result["error"]
    assert len([w for w in result["warned"] if "Training goes on without" in w]) == 1
    assert result["weights"] == whole(case)["weights"]
    assert result["best"] == whole(case)["best"]

    file.unlink()
    status, _ = run("starve", case, images, tmp_path, limit, ("step", 16, 0.))
    assert status == -signal.SIGKILL
    assert steps_in(tmp_path) == 12
    assert list(killed(case, [])) == []


# ---- files that are broken

def test_a_broken_checkpoint_is_reported_and_changes_nothing(images, tmp_path):
    learn = resuming.make("sgd", images, tmp_path)
    content = learn.save("good").read_bytes()
    broken = dict(empty=b"", short=content[:len(content) // 2], head=content[:4],
                  zeros=bytes(len(content)), text=b"hello" * 100)
    for name, what in broken.items():
        (tmp_path / f"{name}.safetensors").write_bytes(what)
        before = resuming.digest(learn.model.state_dict())
        message = f"{name}.safetensors.*not a whole.*(delete|Delete|earlier)"
        with pytest.raises(ValueError, match=message): learn.load(name)
        assert resuming.digest(learn.model.state_dict()) == before


def test_leftovers_of_a_killed_write_go_with_a_later_one(run, images, tmp_path):
    options, metadata = dict(checkpoint="run", every=0), dict(format=2)
    for n in (1, 2):   # a dead process can't clear up, but a later one can
        death = ("replace", 1, 0.)
        status, _ = run("train", "two phases", images, tmp_path, options, death)
        assert status == -signal.SIGKILL
        assert len(leftovers(tmp_path)) == n   # the first one may be of a process that lives
    for file in leftovers(tmp_path): make_old(file)
    save_tensors(tmp_path / "run-2.safetensors", {}, metadata)
    assert len(leftovers(tmp_path)) == 2   # these are another model's
    save_tensors(tmp_path / "run.safetensors", {}, metadata)
    assert not leftovers(tmp_path)
