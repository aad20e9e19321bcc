"""Run lessons from top to bottom without a screen: `python tools/run_lesson.py 1` or `... all` (see --help).

The executed notebook and an HTML page of it go to out/; the notebook in nbs/ is left as it is.
"""
import argparse, datetime, platform, subprocess, sys, time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[1]
RESULT = "final error rate"   # a lesson's last lines print one line that begins so


def lessons(which):
    found = sorted((ROOT / "nbs/lessons").glob("[0-9]*.ipynb"))
    if which != "all": found = [p for p in found if p.name.startswith(f"{int(which):02}_")]
    if not found: sys.exit(f"there is no lesson {which} in nbs/lessons")
    return found


def title(cell):
    "The first line of code that is not a comment: what the terminal shows of a cell."
    lines = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return (lines or [""])[0][:70]


def stamp():
    "Which code ran, when, where: so that a page found later can be believed."
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True).stdout.strip()
    commit = git("rev-parse", "--short=10", "HEAD") or "unknown"
    if git("status", "--porcelain", "--untracked-files=no"): commit += " with uncommitted changes"
    return dict(commit=commit, time=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), python=platform.python_version())


class Kernel(AsyncKernelManager):
    "The kernel of the environment this runs in, not what some other installation has registered as python3."
    def _kernel_spec_manager_default(self): return KernelSpecManager(kernel_dirs=[])


def execute(path, out, limit=3600):
    "Run the notebook at `path`, write it and its page to `out`; returns the line with the result, or None. `limit` is seconds for one cell."
    nb, mark, began = nbformat.read(path, 4), stamp(), time.perf_counter()
    code = [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code" and cell.source.strip()]

    def starts(cell, cell_index):
        if cell_index not in code: return
        cell.began = time.perf_counter()
        print(f"[{code.index(cell_index) + 1:3}/{len(code)}] {title(cell):70} ", end="", flush=True)

    def ends(cell, cell_index, **_): print(f"{time.perf_counter() - cell.pop('began'):7.1f} s", flush=True)

    quiet = ["--IPKernelApp.log_level=ERROR"]   # or it warns, on every start, of ports that only this machine can reach
    client = NotebookClient(nb, kernel_manager_class=Kernel, kernel_name="python3", extra_arguments=quiet, timeout=limit, resources={"metadata": {"path": str(path.parent)}}, on_cell_start=starts, on_cell_executed=ends)
    error = None
    try: client.execute()
    except CellExecutionError as caught: error = caught
    for cell in nb.cells: cell.pop("began", None)

    seconds = time.perf_counter() - began
    nb.metadata["lessonkit"] = mark
    nb.cells.append(nbformat.v4.new_markdown_cell(
        f"*Run from commit {mark['commit']} on {mark['time']}, Python {mark['python']}, in {seconds / 60:.1f} minutes.*"))
    out.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, out / path.name)
    (out / path.name).with_suffix(".html").write_text(HTMLExporter().from_notebook_node(nb)[0], encoding="utf-8")
    for file in (out / path.name, (out / path.name).with_suffix(".html")): print(file)
    if error: sys.exit(f"{path.name} stopped at an error:\n{error}")
    printed = "".join(o.text for cell in nb.cells for o in cell.get("outputs", []) if o.get("name") == "stdout").splitlines()
    return next((line for line in reversed(printed) if line.startswith(RESULT)), None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", help="a lesson's number, or all")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the executed notebook and its page go")
    parser.add_argument("--limit", type=int, default=3600, help="seconds that one cell may take")
    args = parser.parse_args()
    for path in lessons(args.which):
        print(f"{path.name}", flush=True)
        print(execute(path, args.out, args.limit) or f"{path.name} prints no {RESULT}")
