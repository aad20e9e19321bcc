"""Which notebooks differ from main: `make test` runs those as they stand, too."""
import subprocess
from pathlib import Path

MAIN = ("origin/main", "main")
DAY = 24 * 60 * 60


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
