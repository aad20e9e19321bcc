"""Run lessons from top to bottom without a browser: `python tools/run_lesson.py 1` or `... all`.

Side pages have a letter, as in `... 1b`. Instead of a number, the path of any notebook will do.
The executed notebook and an HTML page of it go to out/; the notebook in nbs/ is left as it is.
`--small` runs a lesson on little data (tools/small.py).
"""
import argparse, platform, re, subprocess, sys, time
from datetime import datetime, timezone
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import pages, small

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
RESULT = "final error rate"   # the last cell of a lesson prints one line that begins like this


def lessons(which):
    "A notebook by its path, a page by its number (1, 01, 1b), or all. Exits if there is none."
    if which.endswith(".ipynb"): return [Path(which).resolve()]
    found = sorted((ROOT / "nbs/lessons").glob("[0-9]*.ipynb"))
    if which == "all": return found
    number = re.fullmatch(r"0*(\d+)([a-z]?)", which.lower())
    if number is None: sys.exit(f"{which} is no number of a lesson: write 1, 1b, or all")
    found = [path for path in found if path.name.startswith(f"{int(number[1]):02}{number[2]}_")]
    if not found: sys.exit(f"there is no lesson {which} in nbs/lessons")
    return found


def title(cell):
    "The first line of code that is not a comment: what the terminal shows of a cell."
    lines = [line for line in cell.source.splitlines() if line.strip()]
    code = [line for line in lines if not line.lstrip().startswith("#")]
    return code[0][:70] if code else ""


def git(*words):
    "What a git command prints; empty if it fails."
    command = ["git", *words]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout.strip()


def stamp():
    "Which code ran, when, and with which Python: an HTML page says where it comes from."
    commit = git("rev-parse", "--short=10", "HEAD") or "unknown"
    if git("status", "--porcelain", "--untracked-files=no"): commit += " with uncommitted changes"
    now = datetime.now(timezone.utc)
    return dict(commit=commit, time=now.strftime("%Y-%m-%d %H:%M UTC"),
                python=platform.python_version())


class Kernel(AsyncKernelManager):
    "The kernel of this environment, not what another installation has registered as python3."
    def _kernel_spec_manager_default(self): return KernelSpecManager(kernel_dirs=[])


def run_cells(nb, folder, limit):
    "Execute all cells in `folder`, print how long each took; returns the error, or None."
    code = [i for i, c in enumerate(nb.cells) if c.cell_type == "code" and c.source.strip()]
    began = {}

    def starts(cell, cell_index):
        if cell_index not in code: return
        began[cell_index] = time.perf_counter()
        number = code.index(cell_index) + 1
        print(f"[{number:3}/{len(code)}] {title(cell):70} ", end="", flush=True)

    def ends(cell, cell_index, **_):
        print(f"{time.perf_counter() - began[cell_index]:7.1f} s", flush=True)

    # Without this, each start warns of ports that only this machine can reach.
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(
        nb, kernel_manager_class=Kernel, kernel_name="python3", extra_arguments=quiet,
        timeout=limit, resources={"metadata": {"path": str(folder)}}, store_widget_state=False,
        on_cell_start=starts, on_cell_executed=ends)
    try: client.execute()
    except CellExecutionError as error: return error
    finally: leave_out_widgets(nb)
    return None


def leave_out_widgets(nb):
    "Keep the pictures of widgets only: of a widget whose kernel is gone, Jupyter shows nothing."
    for output in (o for cell in nb.cells for o in cell.get("outputs", [])):
        data = output.get("data", {})
        if "text/html" in data: data.pop(WIDGET, None)


def printed_lines(nb):
    "All lines that the cells of an executed notebook have printed."
    outputs = [o for cell in nb.cells for o in cell.get("outputs", [])]
    return "".join(o.text for o in outputs if o.get("name") == "stdout").splitlines()


def check_output(notebook):
    "Exit if a notebook would be written over that we have not executed, such as the lesson itself."
    if notebook.exists() and "lessonkit" not in nbformat.read(notebook, 4).metadata:
        sys.exit(f"{notebook} is not a notebook that this has executed: "
                 "give another folder as --out")


def execute(path, out, limit=3600, in_small=False):
    """Run the notebook at `path`, and write it and its page to the folder `out`.

    `limit` is the number of seconds that a cell may take; `in_small` runs it on little data.
    Returns the line with the result, or None. Exits with the error if a cell raises one, after
    writing both files.
    """
    check_output(out / path.name)
    nb = nbformat.read(path, 4)
    mark = stamp() | dict(small=in_small)
    if in_small: small.shrink(nb, small.TABLE.get(path.stem, []))
    began = time.perf_counter()
    error = run_cells(nb, path.parent, limit)
    minutes = (time.perf_counter() - began) / 60

    nb.metadata["lessonkit"] = mark
    nb.cells.append(nbformat.v4.new_markdown_cell(
        f"*Run{' on little data' if in_small else ''} from commit {mark['commit']} "
        f"on {mark['time']}, Python {mark['python']}, in {minutes:.1f} minutes.*"))
    out.mkdir(parents=True, exist_ok=True)
    notebook = out / path.name
    page = notebook.with_suffix(".html")
    nbformat.write(nb, notebook)
    page.write_text(pages.as_page(nb, path), encoding="utf-8")
    print(notebook, page, sep="\n")
    if error: sys.exit(f"{path.name} stopped at an error:\n{error}")
    results = [line for line in printed_lines(nb) if line.startswith(RESULT)]
    return results[-1] if results else None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", help="a lesson's number (1, 1b), all, or a notebook")
    parser.add_argument("--out", type=Path, default=ROOT / "out",
                        help="where the executed notebook and its page go")
    parser.add_argument("--limit", type=int, default=3600, help="seconds that one cell may take")
    parser.add_argument("--small", action="store_true", default=small.is_wanted(),
                        help="on little data, as tests do; also with LESSONKIT_SMALL=1")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()
    for path in lessons(args.which):
        print(path.name, flush=True)
        print(execute(path, args.out, args.limit, args.small) or f"{path.name} prints no {RESULT}")
