"""The two cells that lessons and old notes begin with: badges, and the installation of the kit.

`python tools/first_cells.py --write` writes them into all of these; without --write it prints both
cells of a lesson. Their text is here and nowhere else: tools/checks.py compares the notebooks.
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
# @title Colab and Kaggle: run this cell once, to install the kit. At home, `make lesson` did.
import importlib.util, os, re, subprocess, sys
from pathlib import Path

def newest_wheel(folder):
    "The kit's wheel in a folder or below it; None if there is none."
    def version(path): return [int(n) for n in re.findall(r"\\d+", path.name.split("-")[1])]
    return max(Path(folder).rglob("lessonkit-*.whl"), key=version, default=None)

def find_kit():
    "A file, a folder or an address that pip can install the kit from."
    given = os.environ.get("LESSONKIT_SOURCE", "").strip()   # a wheel, a folder or a URL
    # Where the internet is off, wheels may be attached to the notebook as a data set.
    attached = None if given else newest_wheel("/kaggle/input")
    if not given: return attached or "git+{git_url}"
    if "://" in given: return given.replace(" ", "%20")
    path = Path(given).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"LESSONKIT_SOURCE is {{given!r}}, which is not a URL, "
                                "and no file or folder on this machine")
    if path.is_file() or (path / "pyproject.toml").is_file(): return path
    if wheel := newest_wheel(path): return wheel
    raise FileNotFoundError(f"LESSONKIT_SOURCE is {{given!r}}, a folder without a wheel of the kit "
                            "(lessonkit-*.whl) and without its source (pyproject.toml)")

def install(source):
    "Install the kit with pip. Raises `RuntimeError` with what pip said if it can't."
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    is_path = isinstance(source, Path)
    pip.append(f"lessonkit{extra} @ {{source.as_uri() if is_path else source}}")
    tries = [[]]
    if is_path and source.suffix == ".whl":   # first without internet, from its folder
        tries = [["--no-index", "--find-links", str(source.parent)], ["--retries", "1"]]
    errors = []
    for options in tries:
        done = subprocess.run(pip + options, text=True, errors="replace", capture_output=True)
        if done.returncode == 0: return importlib.invalidate_caches()
        errors.append(" ".join(["pip install", *options]) + "\\n" + done.stderr + done.stdout)
    raise RuntimeError("\\n".join([f"the kit could not be installed from {{source}}:\\n", *errors]))

if importlib.util.find_spec("lessonkit") is None: install(find_kit())

import torch
if torch.cuda.is_available(): print("GPU:", torch.cuda.get_device_name())
else: print("No GPU found. Everything works without one, but takes longer.")'''
# Lessons that show the photographs of solar cells (91 MB): only they install them.
WITH_SOLAR = ["01_pets", "04_own_data"]
BADGES_ID, INSTALL_ID = "badges", "get-the-kit"   # of the cells
# The code is folded: in JupyterLab, on Colab (which shows the title), on Kaggle, and in our pages.
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "_kg_hide-input": True,
          "tags": ["hide-input"]}


def cells(root, path):
    "The text of both cells for the notebook at `path` (relative to the root)."
    parser = ConfigParser()
    parser.read(root / "settings.ini")
    extra = "[solar]" if Path(path).stem in WITH_SOLAR else ""
    values = dict(parser["DEFAULT"], path=path, extra=extra)
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
    """Lessons, and old notes: what people open on Colab or Kaggle.

    Pages from 90 on, such as the glossary, are text only.
    """
    folders = (root / "nbs" / name for name in ("lessons", "old_notes"))
    return [path for folder in folders for path in sorted(folder.glob("[0-8]*.ipynb"))]


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
        if i is not None and nb.cells[i].metadata != FOLDED:
            found.append(f"{name}: its first code cell isn't folded: "
                         "python tools/first_cells.py --write")
        if name.startswith("nbs/lessons/01_"):
            index = nbformat.read(root / "nbs/index.ipynb", 4)
            badges = cells(root, name)[0]
            if not any(badges in cell.source for cell in index.cells):
                found.append(f"nbs/index.ipynb: lacks {name}'s badges")
    return found


def fold(path):
    "Fold the first code cell of the notebook at `path`."
    nb = nbformat.read(path, 4)
    nb.cells[find(nb)[1]].metadata = nbformat.from_dict(FOLDED)
    nbformat.write(nb, path)


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
        k = i + 1
        nb.cells.insert(k, new_code_cell(id=INSTALL_ID))
    nb.cells[k].source, nb.cells[k].metadata = install, nbformat.from_dict(FOLDED)
    after = nbformat.writes(nb)
    if after != before: path.write_text(after + "\n")


if __name__ == "__main__":
    if "--write" in sys.argv:
        for path in lessons(ROOT): write(path)
    else:
        name = sys.argv[1] if len(sys.argv) > 1 else "01_pets.ipynb"
        print("\n\n".join(cells(ROOT, f"nbs/lessons/{name}")))
