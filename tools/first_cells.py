"""The two cells that every lesson begins with, badges and the installation of the kit.

`python tools/first_cells.py --write` writes them into all lessons; without --write it prints both
cells of a lesson. Their text is here and nowhere else: tools/checks.py compares the lessons.
"""
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"
KAGGLE = "https://kaggle.com"
BADGES = (
    f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
    f"({COLAB}/github/{{user}}/{{repo}}/blob/{{branch}}/{{path}})\n"
    f"[![Open in Kaggle]({KAGGLE}/static/images/open-in-kaggle.svg)]"
    f"({KAGGLE}/kernels/welcome?src={{git_url}}/blob/{{branch}}/{{path}})"
)
INSTALL = '''\
# Colab and Kaggle come without the kit: this cell installs it. At home, `make lesson` did.
import glob, importlib.util, os, subprocess, sys
if importlib.util.find_spec("lessonkit") is None:
    # Where the internet is off, the kit may be attached to the notebook as a data set.
    attached = glob.glob("/kaggle/input/**/lessonkit-*.whl", recursive=True)
    source = attached[0] if attached else "git+{git_url}"
    source = os.environ.get("LESSONKIT_SOURCE") or source   # a wheel, a folder or a URL
    if os.path.exists(source): source = "file://" + os.path.abspath(source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", f"lessonkit[solar] @ {{source}}"]
    installed = False
    if source.endswith(".whl"):   # first without internet, from the wheels in the same folder
        offline = ["--no-index", "--find-links", os.path.dirname(source)]
        installed = subprocess.run(pip + offline, capture_output=True).returncode == 0
    if not installed: subprocess.run(pip, check=True)
    importlib.invalidate_caches()

import torch
if torch.cuda.is_available(): print("GPU:", torch.cuda.get_device_name())
else: print("No GPU found. Everything works without one, but takes longer.")'''
BADGES_ID, INSTALL_ID = "badges", "get-the-kit"   # of the cells


def cells(root, path):
    "The text of both cells for the notebook at `path` (relative to the root)."
    parser = ConfigParser()
    parser.read(root / "settings.ini")
    values = dict(parser["DEFAULT"], path=path)
    return BADGES.format(**values), INSTALL.format(**values)


def first(nb, is_wanted):
    "The position of the first cell for which `is_wanted` is true, or None."
    return next((i for i, cell in enumerate(nb.cells) if is_wanted(cell)), None)


def is_badges(cell):
    return cell.cell_type == "markdown" and cell.source.startswith("[![Open in Colab]")


def find(nb):
    "The positions of the badges and of the first code cell, each of them or None."
    return first(nb, is_badges), first(nb, lambda cell: cell.cell_type == "code")


def lessons(root):
    return sorted((root / "nbs/lessons").glob("[0-9]*.ipynb"))


def problems(root=ROOT):
    "Lessons whose first cells are not the template's; a front page without lesson 1's badges."
    found = []
    for path in lessons(root):
        name = path.relative_to(root).as_posix()
        nb = nbformat.read(path, 4)
        for i, text, part in zip(find(nb), cells(root, name), ("badges", "first code cell")):
            if i is None or nb.cells[i].source != text:
                found.append(f"{name}: its {part} differ from the template: "
                             "python tools/first_cells.py --write")
        if path.name.startswith("01"):
            index = nbformat.read(root / "nbs/index.ipynb", 4)
            badges = cells(root, name)[0]
            if not any(badges in cell.source for cell in index.cells):
                found.append(f"nbs/index.ipynb: lacks {name}'s badges")
    return found


def write(path, root=ROOT):
    "Replace both cells in the notebook at `path`; insert those it lacks after the title."
    nb = nbformat.read(path, 4)
    badges, install = cells(root, path.relative_to(root).as_posix())
    before = nbformat.writes(nb)
    i = first(nb, is_badges)
    if i is None:
        i = 1
        nb.cells.insert(i, new_markdown_cell(badges, id=BADGES_ID))
    else:
        nb.cells[i].source = badges
    k = first(nb, lambda cell: cell.get("id") == INSTALL_ID)
    if k is None:
        nb.cells.insert(i + 1, new_code_cell(install, id=INSTALL_ID))
    else:
        nb.cells[k].source = install
    after = nbformat.writes(nb)
    if after != before: path.write_text(after + "\n")


if __name__ == "__main__":
    if "--write" in sys.argv:
        for path in lessons(ROOT): write(path)
    else:
        name = sys.argv[1] if len(sys.argv) > 1 else "01_pets.ipynb"
        print("\n\n".join(cells(ROOT, f"nbs/lessons/{name}")))
