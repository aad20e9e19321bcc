"""The tiers: which notebooks count as changed, and what is left out of which tier."""
import os, subprocess, sys
from pathlib import Path

import pytest

import changed
import test_notebooks
import tiers

DAY = 24 * 60 * 60
NOON = 1_700_000_000   # seconds since 1970: when the history below begins


@pytest.fixture
def history(tmp_path):
    "history(day, notebooks...): write these and commit them that many days after the beginning."
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.com"]

    def git(*words, **env):
        command = ["git", *identity, *words]
        subprocess.run(command, cwd=tmp_path, env=os.environ | env, check=True, capture_output=True)

    def history(day, *names):
        for name in names: write(tmp_path, name, f"day {day}")
        date = f"{int(NOON + day * DAY)} +0000"
        git("add", "-A")
        git("commit", "-m", f"day {day}", GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)

    git("init", "--initial-branch", "main")
    history.git, history.root = git, tmp_path
    history(0, "one.ipynb", "data/two.ipynb", "three.ipynb")
    return history


def write(root, name, text):
    path = root / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_on_a_branch_what_it_changed(history):
    history(5, "three.ipynb")
    history.git("checkout", "-b", "branch")
    history(5.1, "data/two.ipynb")
    history(9, "four.ipynb")
    write(history.root, "five.ipynb", "not added yet")
    assert changed.notebooks(history.root) == {"data/two.ipynb", "four.ipynb", "five.ipynb"}
    (history.root / "nbs/four.ipynb").unlink()
    assert changed.notebooks(history.root) == {"data/two.ipynb", "five.ipynb"}


def test_on_main_what_the_last_day_changed(history):
    history(5, "one.ipynb")
    history(7.5, "data/two.ipynb")
    history(8, "three.ipynb")
    assert changed.notebooks(history.root) == {"data/two.ipynb", "three.ipynb"}


def test_on_main_what_has_not_been_pushed(history):
    history.git("update-ref", "refs/remotes/origin/main", "HEAD")
    history(3, "one.ipynb")
    history(7, "three.ipynb")
    assert changed.notebooks(history.root) == {"one.ipynb", "three.ipynb"}


def test_all_where_git_cannot_tell(history, tmp_path_factory):
    "A history that begins with its newest day, and a folder that is no repository."
    everything = {"one.ipynb", "data/two.ipynb", "three.ipynb"}
    assert changed.notebooks(history.root) == everything
    plain = tmp_path_factory.mktemp("plain")
    write(plain, "one.ipynb", "1")
    assert changed.notebooks(plain) == {"one.ipynb"}


def test_newest_first(history):
    "What isn't committed yet, then the newest commit; and the rest, in an order that stays."
    history(5, "data/two.ipynb", "four.ipynb")
    history(7, "four.ipynb")
    write(history.root, "three.ipynb", "changed")
    write(history.root, "five.ipynb", "new")
    os.utime(history.root / "nbs/three.ipynb", (NOON, NOON))
    names = {"one.ipynb", "data/two.ipynb", "three.ipynb", "four.ipynb", "five.ipynb"}
    order = ["five.ipynb", "three.ipynb", "four.ipynb", "data/two.ipynb", "one.ipynb"]
    assert changed.newest_first(history.root, names) == order
    assert changed.newest_first(history.root, names - {"five.ipynb"}) == order[1:]
    assert changed.newest_first(history.root, []) == []


def test_newest_first_without_git(tmp_path):
    for name, day in (("old.ipynb", 1), ("new.ipynb", 3), ("middle.ipynb", 2)):
        write(tmp_path, name, "1")
        os.utime(tmp_path / "nbs" / name, (NOON + day * DAY,) * 2)
    order = ["new.ipynb", "middle.ipynb", "old.ipynb"]
    assert changed.newest_first(tmp_path, set(order)) == order


@pytest.mark.parametrize("limit, kept", [
    (0, []), (4, ["c"]), (10, ["a"]), (13, ["a", "c"]), (19, ["a", "c", "d"]), (100, list("abcd")),
])
def test_as_many_notebooks_as_fit(limit, kept):
    "A long one doesn't keep a shorter one from running; one that isn't measured takes 6 seconds."
    assert changed.UNKNOWN == 6
    seconds = dict(a=10, b=30, c=3)
    assert changed.fitting("abcd", seconds, limit) == kept


def test_seconds_are_kept_from_run_to_run(tmp_path):
    assert changed.measured(tmp_path) == {}
    changed.keep_measured(tmp_path, {"a.ipynb": 2.5, "b.ipynb": 3.})
    changed.keep_measured(tmp_path, {"a.ipynb": 4.})
    assert changed.measured(tmp_path) == {"a.ipynb": 4., "b.ipynb": 3.}
    for damaged in ("", "[1]", "{"):
        (tmp_path / changed.MEASURED).write_text(damaged)
        assert changed.measured(tmp_path) == {}


def test_notebooks_of_quick_fit_into_its_time():
    "Whatever was changed: those that run now take no longer than they may."
    seconds = changed.measured(test_notebooks.ROOT)
    taken = [seconds.get(name, changed.UNKNOWN) for name in test_notebooks.QUICK]
    assert taken and sum(taken) <= tiers.NOTEBOOK_SECONDS < 60 * tiers.MINUTES["quick"]
    assert set(test_notebooks.QUICK) <= set(test_notebooks.LIBRARY)


TESTS = """
import pytest
from hypothesis import settings
from tiers import examples, few

def test_always(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.nightly
def test_nightly(): pass
@pytest.mark.parametrize("a, b", few(1, [(1, 2), (3, 4)]))
def test_few(a, b): assert b == a + 1
def test_examples(): assert examples(20).max_examples == EXAMPLES
def test_profile(): assert settings().max_examples == 5 * EXAMPLES and settings().deadline is None
"""


@pytest.mark.slow
@pytest.mark.parametrize("tier, count, number", [
    ("quick", 4, 5),
    ("test", 5, 20),
    ("nightly", 7, 200),
])
def test_what_runs_in_each_tier(tmp_path, tier, count, number):
    file = tmp_path / "test_x.py"
    file.write_text(f"EXAMPLES = {number}\n" + TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "conftest"]
    folders = [str(Path(module.__file__).parent) for module in (tiers, changed)]
    paths = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    env = os.environ | dict(LESSONKIT_TIER=tier, PYTHONPATH=paths)
    env.pop("COVERAGE_PROCESS_START", None)
    ini = Path(tiers.__file__).parents[1] / "pyproject.toml"
    done = subprocess.run([*command, "-c", str(ini), str(file)], env=env, cwd=tmp_path,
                          text=True, capture_output=True)
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr
    assert f"{tier}: " in done.stdout and f"{count} passed, 0 failed" in done.stdout
