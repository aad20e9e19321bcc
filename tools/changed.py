"""Which notebooks differ from main: `make test` runs those as they stand, too.

`make quick` takes those that were changed last, as many as fit into its time. How long each took
when it last ran is in out/notebook_seconds.json.
"""
import json, subprocess
from pathlib import Path

MAIN = ("origin/main", "main")
DAY = 24 * 60 * 60
UNKNOWN = 6.   # seconds of a notebook that has not been measured
MEASURED = "out/notebook_seconds.json"


def git(root, *words):
    "What git prints, or None if it fails (no git, not a repository, no such commit)."
    try: done = subprocess.run(["git", *words], cwd=root, text=True, capture_output=True)
    except FileNotFoundError: return None
    return done.stdout.strip() if done.returncode == 0 else None


def base(root):
    """The commit to compare with, or None if there is none.

    On a branch it is where the branch left main. On main itself, as in CI, it is the last commit
    that is a day older than the newest one: what was merged together is tested together.
    """
    head = git(root, "rev-parse", "HEAD")
    for main in MAIN:
        fork = git(root, "merge-base", "HEAD", main)
        if fork and fork != head: return fork
    newest = git(root, "log", "-1", "--format=%ct")
    if not newest: return None
    return git(root, "rev-list", "-1", f"--before={int(newest) - DAY}", "HEAD") or None


def notebooks(root):
    "Names of the changed notebooks, as paths below nbs/: all of them where git can't tell."
    folder = Path(root) / "nbs"
    everything = {path.relative_to(folder).as_posix() for path in folder.rglob("*.ipynb")}
    commit = base(root)
    if commit is None: return everything
    differ = git(root, "diff", "--name-only", "--relative", commit, "--", "nbs") or ""
    new = git(root, "ls-files", "--others", "--exclude-standard", "--", "nbs") or ""
    names = {name.removeprefix("nbs/") for name in (differ + "\n" + new).splitlines()}
    return everything & names


def newest_first(root, names):
    "The names in the order of their last change: what isn't committed yet, then commit by commit."
    folder = Path(root) / "nbs"
    def age(name): return -(folder / name).stat().st_mtime
    listed = (("diff", "--name-only", "--relative", "HEAD", "--", "nbs"),
              ("ls-files", "--others", "--exclude-standard", "--", "nbs"))
    printed = "\n".join(git(root, *words) or "" for words in listed)
    fresh = {line.removeprefix("nbs/") for line in printed.splitlines()} & set(names)
    commits = git(root, "log", "--format=", "--name-only", "--relative", "--", "nbs") or ""
    in_commits = [line.removeprefix("nbs/") for line in commits.splitlines()]
    order = [*sorted(fresh, key=age), *in_commits, *sorted(names, key=age)]
    return [name for name in dict.fromkeys(order) if name in names]


def fitting(names, seconds, limit):
    "The first names that take at most `limit` seconds in all; one that is too long is left out."
    kept = []
    for name in names:
        took = seconds.get(name, UNKNOWN)
        if took > limit: continue
        kept.append(name)
        limit -= took
    return kept


def measured(root):
    "The seconds that notebooks took, by name: {} if none were measured here."
    try: found = json.loads((Path(root) / MEASURED).read_text())
    except (OSError, ValueError): return {}
    return found if isinstance(found, dict) else {}


def keep_measured(root, seconds):
    "Note how long notebooks took, for the next time."
    path = Path(root) / MEASURED
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(measured(root) | seconds, indent=1, sort_keys=True))
