"""Run an old notebook with the dialects: `python tools/run_old_notebook.py OLD.ipynb`.

A first cell with `%load_ext lessonkit.dialects` is added; the notebook runs in a kernel of its own,
cell by cell, and goes on after an error. For each cell you see whether it ran, and if it failed,
the last line of the error and whose fault it is:

    network      something has to be downloaded
    data         a file is missing
    library      today's pandas, Pillow, NumPy, ... no longer do it, or a package isn't installed
    unsupported  the dialect says so: text, tables, segmentation, ...
    notebook     a mistake of the notebook, such as a name that only a later cell defines
    kit          lessonkit should have done it

A cell that only lacks a name from an earlier failed cell has that cell's cause. Caps make a run
short: `--epochs 1 --images 64 --size 64 --arch packaged`. This runs whatever code is in the
notebook: run it in a folder that may be lost (--folder, --home). pip is told to install nothing.
"""
import argparse, ast, json, logging, os, re, sys, time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell

from run_lesson import Kernel, title

LINE = "%load_ext lessonkit.dialects"
CAPS = dict(arch="LESSONKIT_ARCH", epochs="LESSONKIT_MAX_EPOCHS",
            images="LESSONKIT_MAX_IMAGES", size="LESSONKIT_MAX_SIZE")
CAUSES = ("network", "data", "library", "unsupported", "notebook", "kit")
SILENT = logging.getLogger("run_old_notebook")   # of the client, which reports each time-out
SILENT.propagate = False
SILENT.addHandler(logging.NullHandler())
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Cell:
    "A code cell and what became of it."
    number: int              # of the code cell, from 1; the added line is 0
    source: str
    seconds: float = 0.
    error: str = ""          # the error's last line; empty if the cell ran
    cause: str = ""          # one of CAUSES, if it failed
    after: int | None = None   # number of the earlier cell that is to blame
    traceback: list = field(default_factory=list, repr=False)   # lines without colors


# Running

def environment(home=None, **caps):
    "The variables of the kernel: another HOME, limits for the dialects, and no pip."
    env = os.environ | dict(PIP_NO_INDEX="1", PIP_DRY_RUN="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))   # fonts, weights
    if home: env |= dict(HOME=str(home), USERPROFILE=str(home))
    return env | {CAPS[name]: str(value) for name, value in caps.items() if value is not None}


def read_cells(path, replace=None):
    "The code of a notebook: cells that aren't empty. `replace` maps old paths to new ones."
    nb = nbformat.read(path, 4)
    sources = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    for old, new in (replace or {}).items():
        sources = [source.replace(old, new) for source in sources]
    return [source for source in sources if source.strip()]


def run(path, folder=None, home=None, limit=300, replace=None, show=None, **caps):
    """Run a notebook with the line added; returns its cells, the added one first.

    `folder` is where it runs (its own folder otherwise), `limit` the seconds that each cell may
    take, `replace` a dict of paths to put in place of others, `show` a function called with each
    cell when it is done. Returns the executed notebook, too.
    """
    cells = [Cell(i, source) for i, source in enumerate([LINE, *read_cells(path, replace)])]
    nb = nbformat.v4.new_notebook(cells=[new_code_cell(cell.source) for cell in cells])
    timeout = dict(ename="TimeoutError", evalue=f"took more than {limit} s", traceback=[])
    client = NotebookClient(
        nb, kernel_manager_class=Kernel, kernel_name="python3", allow_errors=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"], log=SILENT, timeout=limit,
        resources={"metadata": {"path": str(folder or Path(path).parent)}},
        interrupt_on_timeout=True, error_on_timeout=timeout)
    with client.setup_kernel(env=environment(home, **caps)):
        for cell in cells:
            run_cell(client, cell)
            find_cause(cell, cells)
            if show: show(cell, len(cells) - 1)
            if cell.error.startswith("DeadKernelError"): break
    return cells[:cell.number + 1], nb


def run_cell(client, cell):
    "Run one cell, and note its error."
    began = time.perf_counter()
    reply = {}
    client.on_cell_executed = lambda execute_reply, **_: reply.update(execute_reply["content"])
    try: client.execute_cell(client.nb.cells[cell.number], cell.number)
    except DeadKernelError:
        reply = dict(status="error", ename="DeadKernelError", evalue="the kernel died")
    cell.seconds = round(time.perf_counter() - began, 2)
    if reply["status"] == "ok": return
    words = ANSI.sub("", reply["evalue"]).strip().splitlines() or [""]
    cell.error = f"{reply['ename']}: {words[0] if len(words) == 1 else ' '.join(words)}"
    cell.traceback = ANSI.sub("", "\n".join(reply.get("traceback", []))).splitlines()


# Whose fault it is

NETWORK = re.compile(
    r"URLError|HTTPError|ConnectionError|ConnectTimeout|gaierror|MaxRetry|RatelimitException|"
    r"DDGSException|DownloadError|resolve host|name resolution|Name or service not known|"
    r"Network is unreachable|[Cc]ould not be downloaded|can't be downloaded|DatasetMissing")
DATA = re.compile(r"FileNotFoundError|NotADirectoryError|No such file or directory")
LIBRARIES = ("pandas", "PIL", "numpy", "matplotlib", "sklearn", "scipy", "torchvision", "IPython")
PACKAGES = "(numpy|PIL|pandas|matplotlib|scipy|sklearn|torch|torchvision|IPython)"
CLASSES = r"(DataFrame|Series|Index|Styler|\w*Axes\w*|FreeTypeFont|ImageDraw)"
MODERN = re.compile(
    rf"module '?{PACKAGES}[\w.]*'? has no attribute|'{CLASSES}' object has no attribute|"
    rf"np\.(int|float|bool|object)\b|cannot import name .* from '?{PACKAGES}")
OURS = re.compile(r"(fastai|fastai2|fastbook|lessonkit)\b")


def find_cause(cell, cells):
    "Set the cause of a failed cell, and the earlier cell that it comes from."
    if not cell.error: return
    cell.cause = cause_of(cell)
    lacking = re.match(r"NameError: name '(\w+)' is not defined", cell.error)
    if lacking: blame(cell, lacking.group(1), cells)
    elif cell.cause == "data": blame_old_value(cell, cells)


def cause_of(cell):
    "The cause of an error, by its last line and the files that it went through."
    name, _, message = cell.error.partition(": ")
    files = re.findall(r"File (\S+?):\d+", "\n".join(cell.traceback))
    if name in ("NotSupported", "UnsupportedModule"): return "unsupported"
    if NETWORK.search(cell.error): return "network"
    if DATA.search(cell.error): return "data"
    if name in ("SyntaxError", "IndentationError"): return "notebook"
    if name in ("ModuleNotFoundError", "ImportError") and not OURS.search(message):
        return "library"
    if any("lessonkit" in Path(file).parts for file in files): return "kit"
    if MODERN.search(message): return "library"
    if files and set(LIBRARIES) & set(Path(files[-1]).parts): return "library"
    return "kit"


def blame(cell, name, cells):
    "A name is missing: find the failed cell that should have defined it, else a later one."
    before = [c for c in cells[:cell.number] if c.error and name in defined(c.source)]
    if before:
        cell.cause, cell.after = before[-1].cause, before[-1].after or before[-1].number
    elif any(name in defined(c.source) for c in cells[cell.number:]):
        cell.cause = "notebook"


def blame_old_value(cell, cells):
    "A file is missing: perhaps a failed cell should have given one of the names another value."
    for name in re.findall(r"\b[A-Za-z_]\w*", cell.source):
        before = [c for c in cells[:cell.number] if name in defined(c.source)]
        if before and before[-1].error: return blame(cell, name, cells)


IPYTHON = (                                # what IPython reads, and Python instead
    (r"^(\s*)%time\s+", r"\1"),           # %time x = f()
    (r"^(\s*\w+ *=) *[!%].*", r"\1 None"),   # files = !ls
    (r"^(\s*)(?:[!%?].*|[\w.]+\?+)$", r"\1pass"))   # !ls, %matplotlib inline, learn.fit?


def without_magics(source):
    "Python that can be parsed: lines that only IPython understands are replaced."
    lines = source.splitlines()
    for pattern, replacement in IPYTHON:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return "\n".join(lines)


def defined(source):
    "The names that a cell defines at its top level, imports included; none if it has an error."
    try: tree = ast.parse(without_magics(source))
    except SyntaxError: return set()
    names = {node.id for node in ast.walk(tree)
             if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names.add(node.name)
        if isinstance(node, ast.alias): names.add((node.asname or node.name).split(".")[0])
    return names


# Reporting

def summary(cells):
    "One line: how many cells ran, and how many failed for each cause."
    cells = cells[1:]
    failed = [cell for cell in cells if cell.error]
    counts = Counter(cell.cause for cell in failed)
    causes = ", ".join(f"{counts[cause]} {cause}" for cause in CAUSES if counts[cause])
    vision = len(cells) - counts["unsupported"]
    line = f"{len(cells)} cells, {vision} of them vision: {len(cells) - len(failed)} ran"
    return f"{line}; failed: {causes}" if failed else line


def show_cell(cell, n):
    "Print a line for a cell, and one for its error."
    state = "failed" if cell.error else "ran"
    print(f"[{cell.number:3}/{n}] {state:6} {cell.seconds:6.1f} s  {title(cell)}", flush=True)
    if not cell.error: return
    after = "" if cell.after is None else f", after cell {cell.after}"
    print(f"          {cell.cause}{after}: {cell.error[:400]}", flush=True)


def parse_arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--folder", type=Path, help="run it here instead of in its own folder")
    parser.add_argument("--home", type=Path, help="its HOME: untar_data looks in .fastai/data")
    parser.add_argument("--limit", type=int, default=300, help="seconds that one cell may take")
    parser.add_argument("--arch", help="'packaged', or the network to use instead")
    for name in ("epochs", "images", "size"):
        parser.add_argument(f"--{name}", type=int, help=f"at most so many {name}")
    parser.add_argument("--replace", nargs=2, action="append", default=[], metavar=("OLD", "NEW"),
                        help="text to replace, such as an absolute path")
    parser.add_argument("--out", type=Path, help="write the executed notebook here")
    parser.add_argument("--json", type=Path, help="write the cells with their tracebacks here")
    return parser.parse_args(words)


def main(words=None):
    args = parse_arguments(words)
    caps = {name: getattr(args, name) for name in CAPS}
    cells, nb = run(args.notebook, args.folder, args.home, args.limit, dict(args.replace),
                    show_cell, **caps)
    if args.out: nbformat.write(nb, args.out)
    if args.json:
        args.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1), "utf-8")
    print(f"{args.notebook.name}: {summary(cells)}")
    return int(any(cell.cause == "kit" for cell in cells))


if __name__ == "__main__": sys.exit(main())
