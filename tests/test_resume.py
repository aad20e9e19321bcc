"""Training that is killed ends, once it is taken up again, with the weights it would have had: killed processes, full disks, broken files."""
import os, random, signal

import pytest

import resuming
from lessonkit.data import sample
from lessonkit.core.files import load_tensors, save_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that can be forked and killed here")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory): return resuming.processes(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(run, pictures, tmp_path_factory):
    "The outcome of a case that nobody disturbs, and that saves nothing."
    known = {}
    def whole(case):
        if case not in known: known[case] = run("train", case, pictures, tmp_path_factory.mktemp("whole"), {})
        status, found = known[case]
        assert status == 0, found["error"]
        return found
    return whole


@pytest.fixture
def killed(run, pictures, tmp_path, whole):
    "Train, die at each of `deaths` and go on; yields what the checkpoint then held. The last process may live, and must end as the undisturbed one."
    def killed(case, deaths, every=0, clock=False):
        for death in deaths:
            status, found = run("train", case, pictures, tmp_path, dict(checkpoint="run", every=every), death, clock)
            assert status == -(signal.SIGXFSZ if death[0] == "half written" else signal.SIGKILL) and found is None, f"it was to die at {death}, and ended with {status}: {found}"
            yield steps_in(tmp_path)
        status, found = run("train", case, pictures, tmp_path, dict(checkpoint="run", every=every))
        assert status == 0, found["error"]
        assert found == whole(case)
        assert not leftovers(tmp_path)
    return killed


def steps_in(folder):
    "How many steps the checkpoint knows of; None if there is none."
    if not (file := folder / "run.safetensors").is_file(): return None
    return sum(len(f["losses"]) for f in load_tensors(file)[1]["history"]["fits"])


def leftovers(folder): return [p for p in folder.iterdir() if p.suffix != ".safetensors" and p.name != "begun"]


def draw(seed, total, n): return sorted(random.Random(seed).sample(range(1, total), n))


# ---- twenty random steps of fine_tune with everything that is random: two phases, 30 steps, augmentation, mixup, CutMix, dropout, the best epoch kept

@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_steps(killed, seed):
    steps = draw(seed, 30, 5)
    assert list(killed("all at once", [("step", k, 0.) for k in steps])) == [k - 1 if k > 1 else None for k in steps]   # it died before the step was recorded


@pytest.mark.parametrize("seed", [3, 4])
def test_killed_some_time_after_random_steps(killed, seed):
    "In the middle of a step, of a validation or of a checkpoint, as it comes."
    steps, rng = draw(seed, 27, 5), random.Random(seed)
    for k, there in zip(steps, killed("all at once", [("step", k, rng.uniform(0, .03)) for k in steps])): assert there is None or there >= k - 1 or k == 1


def test_the_whole_run_is_worth_comparing(whole):
    found = whole("all at once")
    assert [len(f["losses"]) for f in found["past"]] == [12, 18] and [len(f["rows"]) for f in found["past"]] == [2, 3]
    assert found["progress"]["waited"] > 0, "the best epoch was the last, so nothing shows that an earlier one was kept"


def test_killed_in_validation_and_between_phases(killed):
    deaths = [("validation", 1, 0.), ("validation", 2, 0.), ("between phases", 1, 0.), ("validation", 4, 0.), ("validation", 5, 0.), ("plan", 0, 0.)]
    assert list(killed("all at once", deaths)) == [5, 11, 12, 23, 29, 30]


@pytest.mark.parametrize("moment, held", [("half written", [2, 5, 8]), ("fsync", [2, 5, 8]), ("replace", [2, 5, 8]), ("replaced", [3, 7, 11])])
def test_killed_in_a_checkpoint_write(killed, moment, held):
    "In the third write, and twice in the fourth after: the file of the write before is there, and good, until the new one stands in its place."
    assert list(killed("two phases", [(moment, 3, 0.), (moment, 4, 0.), (moment, 4, 0.)])) == held


def test_killed_in_the_first_write(killed):
    "There is nothing to go on from: one begins again."
    assert list(killed("two phases", [("half written", 1, 0.), ("replace", 1, 0.)])) == [None, None]


@pytest.mark.parametrize("case", ["features", "features in memory", "sgd", "cycles", "overflows", "own optimizer"])
def test_every_way_to_train(killed, whole, case):
    total = sum(len(f["losses"]) for f in whole(case)["past"])
    steps = draw(case, total, 3)
    assert list(killed(case, [("step", k, 0.) for k in steps])) == [k - 1 if k > 1 else None for k in steps]


def test_the_scaler_skips_steps(whole):
    record, = whole("overflows")["past"]
    assert 4 < record["skipped"] < len(record["losses"]) - 4


def test_checkpoints_by_time(killed):
    "Every three ticks of a clock that ticks once a step: after steps 3 and 6, the end of the epoch, and so on."
    assert list(killed("two phases", [("step", k, 0.) for k in (2, 5, 9, 12)], every=3, clock=True)) == [None, 3, 6, 9]


def test_checkpoints_after_epochs_only(killed):
    assert list(killed("all at once", [("step", k, 0.) for k in (6, 11, 12, 15, 29)], every=1e9)) == [None, 6, 6, 12, 24]


def test_killed_when_patience_had_run_out(killed, whole):
    record, = whole("patience")["past"]
    assert len(record["rows"]) == 2 and "has not improved" in record["notes"][-2]
    assert list(killed("patience", [("plan", 0, 0.)])) == [len(record["losses"])]


# ---- a disk that is full

def test_a_full_disk_costs_checkpoints_only(run, killed, whole, pictures, tmp_path):
    "The frozen phase's files have room; with the optimizer's state of all weights they have not. The last good one is there when the process dies later."
    case = "features in memory"
    assert run("train", case, pictures, tmp_path, dict(checkpoint="run", every=0), ("step", 13, 0.))[0] == -signal.SIGKILL
    (file := tmp_path / "run.safetensors").rename(file.with_stem("small"))
    room = file.with_stem("small").stat().st_size + 50_000
    status, found = run("starve", case, pictures, tmp_path, room)
    assert status == 0, found["error"]
    assert "File too large" in found["error"] and "untouched" in found["error"] and "another model_dir" in found["error"]
    assert len([w for w in found["said"] if "Training goes on without" in w]) == 1
    assert found["weights"] == whole(case)["weights"] and found["best"] == whole(case)["best"]
    file.unlink()
    assert run("starve", case, pictures, tmp_path, room, ("step", 16, 0.))[0] == -signal.SIGKILL and steps_in(tmp_path) == 12
    assert list(killed(case, [])) == []


# ---- files that are broken

def test_a_broken_checkpoint_says_so(pictures, tmp_path):
    learn = resuming.make("sgd", pictures, tmp_path)
    content = learn.save("good").read_bytes()
    for name, broken in dict(empty=b"", short=content[:len(content) // 2], head=content[:4], zeros=bytes(len(content)), text=b"hello" * 100).items():
        (tmp_path / f"{name}.safetensors").write_bytes(broken)
        before = resuming.digest(learn.model.state_dict())
        with pytest.raises(ValueError, match=f"{name}.safetensors.*not a whole.*(delete|Delete|earlier)"): learn.load(name)
        assert resuming.digest(learn.model.state_dict()) == before


def test_leftovers_of_a_killed_write_go_with_the_next(run, pictures, tmp_path):
    for _ in range(2):
        assert run("train", "two phases", pictures, tmp_path, dict(checkpoint="run", every=0), ("replace", 1, 0.))[0] == -signal.SIGKILL
        assert len(leftovers(tmp_path)) == 1                                     # a dead process can't clear up, but the next one can
    page = dict(format=1)
    save_tensors(tmp_path / "run-2.safetensors", {}, page)
    assert len(leftovers(tmp_path)) == 1                                         # this is another model's
    save_tensors(tmp_path / "run.safetensors", {}, page)
    assert not leftovers(tmp_path)
