"""The two cells every lesson begins with: badges, and getting the kit. `python tools/first_cells.py --write` puts them in.

Their text lives here and nowhere else; tools/checks.py compares. Without --write it prints both cells of the lesson named.
"""
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
BADGES = ("[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/{path})\n"
          "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src={git_url}/blob/{branch}/{path})")
INSTALL = '''\
# Colab and Kaggle come without the kit: this cell brings it. At home `make lesson` or `make lab` has.
import glob, importlib.util, os, subprocess, sys
if importlib.util.find_spec("lessonkit") is None:
    attached = glob.glob("/kaggle/input/**/lessonkit-*.whl", recursive=True)        # a data set, where the internet is off
    source = os.environ.get("LESSONKIT_SOURCE") or (attached or ["git+{git_url}"])[0]   # a wheel, a folder or a URL
    if os.path.exists(source): source = "file://" + os.path.abspath(source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", f"lessonkit[solar] @ {{source}}"]
    beside = ["--no-index", "--find-links", os.path.dirname(source)]                # wheels that lie beside the kit's own
    if not source.endswith(".whl") or subprocess.run(pip + beside, capture_output=True).returncode: subprocess.run(pip, check=True)
    importlib.invalidate_caches()

import torch
print("GPU:", torch.cuda.get_device_name()) if torch.cuda.is_available() else print("No GPU is on: that will do, only slower.")'''


def cells(root, path):
    "The text of both cells for the notebook at `path` (relative to the root)."
    parser = ConfigParser()
    parser.read(root / "settings.ini")
    values = dict(parser["DEFAULT"], path=path)
    return BADGES.format(**values), INSTALL.format(**values)


def find(nb):
    "Where in the notebook the two cells are, or None: a markdown cell that begins with the badge, the first code cell."
    badge = next((i for i, c in enumerate(nb.cells) if c.cell_type == "markdown" and c.source.startswith("[![Open in Colab]")), None)
    code = next((i for i, c in enumerate(nb.cells) if c.cell_type == "code"), None)
    return badge, code


def lessons(root): return sorted((root / "nbs/lessons").glob("[0-9]*.ipynb"))


def problems(root=ROOT):
    "Each lesson's badges and first code cell are the template's; the front page has lesson 1's badges."
    found = []
    for path in lessons(root):
        name, nb = path.relative_to(root).as_posix(), nbformat.read(path, 4)
        badge, code = find(nb)
        for i, text, what in zip((badge, code), cells(root, name), ("badges", "first code cell")):
            if i is None or nb.cells[i].source != text: found.append(f"{name}: its {what} differ from the template: python tools/first_cells.py --write")
        index = nbformat.read(root / "nbs/index.ipynb", 4)
        if path.name.startswith("01") and not any(cells(root, name)[0] in c.source for c in index.cells): found.append(f"nbs/index.ipynb: lacks {name}'s badges")
    return found


def write(path, root=ROOT):
    "Put both cells into the notebook at `path`, over their old text where they are, else after the title."
    nb, (badges, install) = nbformat.read(path, 4), cells(root, path.relative_to(root).as_posix())
    before = nbformat.writes(nb)
    badge, code = find(nb)
    if badge is None: nb.cells.insert(1, new_markdown_cell(badges, id="badges"))
    else: nb.cells[badge].source = badges
    badge, code = find(nb)
    if code is not None and nb.cells[code].source.startswith(INSTALL.split("\n")[0]): nb.cells[code].source = install
    else: nb.cells.insert(badge + 1, new_code_cell(install, id="get-the-kit"))
    if nbformat.writes(nb) != before: path.write_text(nbformat.writes(nb) + "\n")


if __name__ == "__main__":
    if "--write" in sys.argv:
        for path in lessons(ROOT): write(path)
    else: print("\n\n".join(cells(ROOT, f"nbs/lessons/{sys.argv[1] if len(sys.argv) > 1 else '01_pets.ipynb'}")))
