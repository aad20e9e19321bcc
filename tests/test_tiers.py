"""The tiers: which notebooks count as changed, and what is left out of which tier."""
import os, subprocess, sys
from pathlib import Path

import pytest

import changed
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
    here = str(Path(tiers.__file__).parent)
    paths = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    env = os.environ | dict(LESSONKIT_TIER=tier, PYTHONPATH=paths)
    env.pop("COVERAGE_PROCESS_START", None)
    ini = Path(tiers.__file__).parents[1] / "pyproject.toml"
    done = subprocess.run([*command, "-c", str(ini), str(file)], env=env, cwd=tmp_path,
                          text=True, capture_output=True)
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr
    assert f"{tier}: " in done.stdout and f"{count} passed, 0 failed" in done.stdout
