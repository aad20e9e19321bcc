"""Put the outputs of an executed lesson into the notebook in nbs/: `python tools/keep_outputs.py out/01_pets.ipynb`.

Pictures that are not the project's stay out: a cell that draws some says so in a comment (MARK), and is committed without its output.
"""
import re, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^\s*# output not committed\b", re.M)


def strip(nb):
    "Clear the outputs of all marked cells; returns how many had some."
    marked = [c for c in nb.cells if c.cell_type == "code" and MARK.search(c.source) and c.outputs]
    for cell in marked: cell.outputs, cell.execution_count = [], None
    return len(marked)


def keep(executed, root=ROOT):
    "Copy outputs from the notebook `executed` to the lesson of the same name, whose code must be the same."
    path = next((root / "nbs").rglob(executed.name))
    ran, nb = nbformat.read(executed, 4), nbformat.read(path, 4)
    theirs, ours = ([c for c in n.cells if c.cell_type == "code"] for n in (ran, nb))
    if [c.source for c in theirs] != [c.source for c in ours]: sys.exit(f"{path.name} has changed since it was run: run it again")
    for old, new in zip(ours, theirs): old.outputs, old.execution_count = new.outputs, new.execution_count
    print(f"{path.name}: outputs kept, of {strip(nb)} marked cells left out")
    nbformat.write(nb, path)


def problems(root=ROOT):
    "No marked cell has an output."
    found = []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if n := strip(nbformat.read(path, 4)): found.append(f"{path.name}: {n} cells whose output must not be committed have some: python tools/keep_outputs.py --strip")
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--strip"]:
        for path in (ROOT / "nbs").rglob("*.ipynb"):
            nb = nbformat.read(path, 4)
            if strip(nb): nbformat.write(nb, path)
    else:
        for name in sys.argv[1:]: keep(Path(name))
