"""Copy the outputs of an executed lesson into the notebook in nbs/.

`python tools/keep_outputs.py out/01_pets.ipynb`. Photographs that are not the project's stay out:
a cell that shows some says so in a comment (MARK), and is committed without its output.
`--strip` clears the outputs of such cells in all notebooks.
"""
import base64, io, re, sys
from pathlib import Path

import nbformat
from PIL import Image

import run_lesson

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^\s*# output not committed\b", re.M)
TEMPORARY = re.compile(r"/tmp/tmp\w+")   # a folder that was made for one run


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def strip(nb):
    "Clear the outputs of all marked cells; returns how many had some."
    marked = [cell for cell in code_cells(nb) if MARK.search(cell.source) and cell.outputs]
    for cell in marked: cell.outputs, cell.execution_count = [], None
    return len(marked)


def rename_temporary(value):
    "Texts of an output, with other names for folders that only one run or one machine has."
    if isinstance(value, str):
        return TEMPORARY.sub("/temporary", value).replace(f"{Path.home()}/", "~/")
    if isinstance(value, list): return [rename_temporary(each) for each in value]
    if isinstance(value, dict):
        return nbformat.from_dict({key: rename_temporary(each) for key, each in value.items()})
    return value


def compress(output, most=90_000):
    "Large PNG pictures become JPEG: matplotlib's own are many times what a page should hold."
    data = output.get("data", {})
    content = base64.b64decode(data.get("image/png", ""))
    if len(content) <= most: return
    picture, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    picture.thumbnail((900, 900))
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    del data["image/png"]
    data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode() + "\n"


def keep(executed, root=ROOT):
    "Copy outputs from the notebook `executed` to the lesson of the same name, with the same code."
    path = next((root / "nbs").rglob(executed.name))
    nb = nbformat.read(path, 4)
    new = nbformat.read(executed, 4)
    if new.metadata.get("lessonkit", {}).get("small"):
        sys.exit(f"{executed} was run on little data: run it whole")
    new_cells, old_cells = code_cells(new), code_cells(nb)
    if [cell.source for cell in new_cells] != [cell.source for cell in old_cells]:
        sys.exit(f"{path.name} has changed since it was run: run it again")
    for old, new in zip(old_cells, new_cells):
        old.outputs = rename_temporary(new.outputs)
        for output in old.outputs: compress(output)
        old.execution_count = new.execution_count
    run_lesson.leave_out_widgets(nb)
    print(f"{path.name}: outputs copied, except those of {strip(nb)} marked cells")
    nbformat.write(nb, path)


def problems(root=ROOT):
    "Notebooks that have outputs in marked cells."
    found = []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if n := strip(nbformat.read(path, 4)):
            found.append(f"{path.name}: {n} cells whose output must not be committed have some: "
                         "python tools/keep_outputs.py --strip")
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--strip"]:
        for path in (ROOT / "nbs").rglob("*.ipynb"):
            nb = nbformat.read(path, 4)
            if strip(nb): nbformat.write(nb, path)
    else:
        for name in sys.argv[1:]: keep(Path(name))
