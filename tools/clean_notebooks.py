"""`nbdev_clean` for some notebooks, as the git hook needs it.

`python tools/clean_notebooks.py FILE ...` fails if it changed one.
"""
import sys
from pathlib import Path

from nbdev.clean import nbdev_clean


def clean(paths):
    "Clean the notebooks in place; returns those that were not clean."
    changed = []
    for path in map(Path, paths):
        before = path.read_bytes()
        nbdev_clean(fname=str(path))
        if path.read_bytes() != before:
            changed.append(path)
    return changed


if __name__ == "__main__":
    changed = clean(sys.argv[1:])
    for path in changed:
        print(f"cleaned {path.as_posix()}: git add it again")
    sys.exit(bool(changed))
