"""What nbdev lets pass without a word: `python tools/checks.py [PROJECT]` prints each problem.

It fails if there is one. A check takes the project's folder and returns problems, one line each.
Those that need nbdev run it on a copy, so that no check changes anything. tests/test_project.py
makes each mistake on purpose and sees that it is found.
"""
import ast, base64, io, os, re, shutil, subprocess, sys, tempfile, tokenize
from collections import defaultdict
from configparser import ConfigParser
from pathlib import Path

import nbformat

import first_cells, keep_outputs, prose_numbers, readme, spelling
from docments import docments
from lint import lint

ROOT = Path(__file__).resolve().parents[1]
# The directives a cell may have, besides the test flags in settings.ini. Keep the list short: what
# is not in it counts as a slip of the finger.
DIRECTIVES = {
    "default_exp", "export", "exporti", "exports",
    "hide", "hide_line", "eval", "echo", "output", "code-fold",
}
# Figures have 96 dots per inch and are stored with twice as many, for screens with small pixels.
PICTURE_AT_MOST = 100_000      # bytes of one picture in a committed notebook
PICTURES_AT_MOST = 1_500_000   # bytes of all pictures in a committed notebook
PICTURE_IN_TEXT = re.compile(   # an address with or without quotes, or SVG
    r"""(["'])data:image/.*?\1|data:image/[^\s"'()<>]*|<svg\b.*?</svg>""", re.S | re.I)
MACHINE_PATH = re.compile(
    r"/(?:home|root|Users|tmp|work|content|builds?)/[\w.-]+|\b[A-Z]:\\\\?Users")


def settings(root):
    parser = ConfigParser()
    parser.read(root / "settings.ini")
    return parser["DEFAULT"]


def notebooks(root):
    paths = sorted((root / "nbs").rglob("*.ipynb"))
    return [path for path in paths if ".ipynb_checkpoints" not in path.parts]


def notebook_name(path, root):
    return path.relative_to(root / "nbs").as_posix()


# ---- directives

def is_python(source):
    "Cells with magics or shell commands are not plain Python."
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def comments(source):
    """{line number: comment} of `source`.

    In plain Python, a string that looks like a comment is not one. In other cells, every line that
    begins with # counts.
    """
    if is_python(source):
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    lines = enumerate(source.splitlines(), 1)
    return {i: line.strip() for i, line in lines if line.lstrip().startswith("#")}


def parse_directive(comment):
    "`#| eval: false` is ('eval', ['false']); None if the comment is not a directive."
    if not re.match(r"#\s*\|", comment): return None
    word, *args = comment.split("|", 1)[1].replace(":", ": ").split() or [""]
    return word.rstrip(":"), args


def directive_problem(word, args):
    "What is wrong with a directive that nbdev knows and sees, or None."
    if word == "eval" and args not in (["true"], ["false"]):
        return "write true or false"
    if word == "default_exp" and len(args) != 1:
        return "write one module name"
    if word.startswith("export") and args:
        return "a notebook exports to its own module only"
    return None


def line_problem(line, comment, in_python, may_call_shell=False):
    "What is wrong with a line that has no directive, or None."
    if re.match(r"#\s*(?:default_exp|exporti?s?)\b", comment):
        return "lacks its |"
    if not in_python and not may_call_shell and re.match(r"\s*!", line):
        return "passes when the command fails: use subprocess.run(..., check=True)"
    return None


def read_directives(cell, known, may_call_shell=False):
    "The modules that a code cell names, whether it exports, and what is wrong with it."
    modules, exports, problems = [], False, []
    comment_on, in_python = comments(cell.source), is_python(cell.source)
    is_below = False   # a comment or code: nbdev reads directives at the top of a cell only
    for i, line in enumerate(cell.source.splitlines(), 1):
        comment = comment_on.get(i, "")
        directive = parse_directive(comment)
        if line.strip() and not line.lstrip().startswith("#"): is_below = True
        if directive is None:
            problem = line_problem(line, comment, in_python, may_call_shell)
            if comment: is_below = True
        else:
            word, args = directive
            if word == "hide_line":   # stands at the end of a line of code
                problem = None
            elif word not in known:
                problem = f"nbdev knows no directive {word!r}"
            elif is_below:
                problem = "stands below a comment or code, where nbdev does not see it"
            else:
                problem = directive_problem(word, args)
                if word == "default_exp": modules += args
                if word.startswith("export"): exports = True
        if problem: problems.append(f"`{line.strip()}`: {problem}")
    return modules, exports, problems


def text_cell_problem(cell, is_first):
    "What is wrong with a cell that holds no code, or None."
    if re.match(r"\s*#\s*\|", cell.source):
        return f"a directive in a {cell.cell_type} cell does nothing"
    if is_first and re.search(r"^skip_exec:\s*true", cell.source, re.M | re.I):
        return "skip_exec leaves the notebook untested"
    return None


def read_notebook(path, name, known):
    "The modules that a notebook names, and what is wrong with its directives."
    modules, exports, problems = [], False, []
    may_call_shell = name.startswith("old_notes/")   # as old notes do: `files = !ls ...`
    for n, cell in enumerate(nbformat.read(path, 4).cells):
        if cell.cell_type == "code":
            named, cell_exports, found = read_directives(cell, known, may_call_shell)
            modules += named
            exports = exports or cell_exports
        else:
            problem = text_cell_problem(cell, is_first=n == 0)
            found = [problem] if problem else []
        problems += [f"{name}, cell {n}: {problem}" for problem in found]
    if len(modules) > 1:
        problems.append(f"{name}: more than one default_exp: {', '.join(modules)}")
    if exports and not modules:
        problems.append(f"{name}: exports, but has no default_exp")
    if modules and not exports:
        problems.append(f"{name}: default_exp {modules[0]}, but no cell is exported")
    return modules, problems


def directives(root):
    """Directives that nbdev does not act on, and says nothing about.

    They are misspelled or stand below a comment or code, a test flag is not in settings.ini, or
    two notebooks name the same module.
    """
    known = DIRECTIVES | set(settings(root).get("tst_flags", "").split())
    problems, sources = [], defaultdict(list)
    for path in notebooks(root):
        name = notebook_name(path, root)
        if any(part.startswith("_") for part in Path(name).parts):
            problems.append(f"{name}: nbdev skips names that begin with _")
        modules, found = read_notebook(path, name, known)
        problems += found
        for module in modules: sources[module].append(name)
    for module, names in sources.items():
        if len(names) > 1:
            problems.append(f"{' and '.join(names)}: default_exp {module} in each: "
                            "the last one overwrites the others")
    return problems


# ---- outputs

def decoded_size(text):
    "How many bytes base64 stands for."
    return len(base64.b64decode(text))


def embedded_size(picture):
    "The bytes of a picture within HTML or Markdown: decoded where it is base64, else as written."
    _, is_base64, data = picture.partition(";base64,")
    if not is_base64: return len(picture.encode())
    return len(re.sub(r"[^A-Za-z0-9+/]", "", data)) * 3 // 4


def bundles(cell):
    "The {type: data} of a cell: of its outputs, its attachments, and its own Markdown."
    found = [output.get("data", {}) for output in cell.get("outputs", [])]
    found += cell.get("attachments", {}).values()
    if cell.cell_type == "markdown": found.append({"text/markdown": cell.source})
    return found


def picture_sizes(cell):
    "The bytes of each picture in a cell, those within HTML and Markdown included."
    sizes = []
    for bundle in bundles(cell):
        for kind, data in bundle.items():
            if kind.startswith("image/svg"):
                sizes.append(len(data.encode()))
            elif kind.startswith("image/"):
                sizes.append(decoded_size(data))
            elif kind in ("text/html", "text/markdown"):
                sizes += [embedded_size(match[0]) for match in PICTURE_IN_TEXT.finditer(data)]
    return sizes


def texts(output):
    "All text in an output."
    data = output.get("data", {})
    shown = [text for kind, text in data.items() if kind.startswith("text/")]
    return [output.get("text", ""), *output.get("traceback", []), *shown]


def pictures_and_paths(root):
    "Outputs are committed: pictures stay small, and nothing tells whose machine it was."
    problems = []
    for path in notebooks(root):
        name, total = notebook_name(path, root), 0
        for n, cell in enumerate(nbformat.read(path, 4).cells):
            for size in picture_sizes(cell):
                total += size
                if size > PICTURE_AT_MOST:
                    problems.append(f"{name}, cell {n}: a picture of {size // 1000} KB, "
                                    f"more than {PICTURE_AT_MOST // 1000}")
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    problems.append(f"{name}, cell {n}: an error is saved in the output")
                found = MACHINE_PATH.search("\n".join(texts(output)))
                if found:
                    problems.append(f"{name}, cell {n}: "
                                    f"a path of one machine in the output: {found[0]}")
        if total > PICTURES_AT_MOST:
            problems.append(f"{name}: {total // 1000} KB of pictures, "
                            f"more than {PICTURES_AT_MOST // 1000}")
    return problems


# ---- what nbdev makes

def copy(root, to):
    "The files that nbdev reads and writes."
    to = Path(to) / "project"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_modidx.py", "assets",
                                  "_proc", ".last_checked")
    for folder in ("nbs", "lessonkit"): shutil.copytree(root / folder, to / folder, ignore=skip)
    shutil.copy(root / "settings.ini", to)
    return to


def nbdev(module, command, cwd):
    "Run one nbdev command in `cwd`; returns what went wrong."
    code = f"from nbdev.{module} import {command}; {command}()"
    # A signature store of its own: nbdev_clean also marks notebooks as trusted.
    with tempfile.TemporaryDirectory() as data:
        env = dict(os.environ, JUPYTER_DATA_DIR=data)
        run = subprocess.run([sys.executable, "-P", "-c", code],
                             cwd=cwd, env=env, text=True, capture_output=True)
    return [] if run.returncode == 0 else [f"{command} failed: {run.stderr.strip()[-500:]}"]


def invalid_notebooks(root):
    "nbdev_clean only warns about what it can't read."
    problems = []
    for path in notebooks(root):
        try:
            nbformat.validate(nbformat.read(path, 4))
        except Exception as error:
            problems.append(f"{path.name}: not a valid notebook: {str(error)[:200]}")
    return problems


def clean(root):
    "nbdev_clean changes nothing, and every notebook is valid."
    problems = invalid_notebooks(root)
    with tempfile.TemporaryDirectory() as tmp:
        there = copy(root, tmp)
        problems += nbdev("clean", "nbdev_clean", there)
        for path in notebooks(root):
            name = path.relative_to(root).as_posix()
            if path.read_bytes() != (there / name).read_bytes():
                problems.append(f"{name}: not clean: nbdev_clean --fname {name}")
    return problems


def package_files(root):
    "{name: text} of the package's Python files, without nbdev's own index."
    paths = (root / "lessonkit").rglob("*.py")
    return {path.relative_to(root).as_posix(): path.read_text()
            for path in paths if path.name != "_modidx.py"}


def export_problem(name, old, new):
    "Why a file of the package is not what its notebook says (`None`: there is no such file)."
    if new is None:
        return f"{name}: no notebook makes it: a stale or hand-written module"
    if old is None:
        return f"{name}: not there: run nbdev_export"
    if old == new:
        return None
    if not new:   # nbdev fills in an empty __init__.py where a folder has none, and keeps others
        return (f"{name}: no notebook makes what it holds: stale or hand-written; "
                "delete it and run nbdev_export")
    return f"{name}: differs from its notebook: run nbdev_export"


def export(root):
    """nbdev_export, starting from nothing, makes exactly the modules that are there.

    nbdev never deletes anything: the module of a renamed notebook stays, and so does an
    `__init__.py`, no matter who wrote it. Only the package's own is not from a notebook: it
    holds the version.
    """
    with tempfile.TemporaryDirectory() as tmp:
        there = copy(root, tmp)
        for name in package_files(there):
            if name != "lessonkit/__init__.py": (there / name).unlink()
        problems = nbdev("doclinks", "nbdev_export", there)
        old, new = package_files(root), package_files(there)
    for name in sorted(old | new):
        problem = export_problem(name, old.get(name), new.get(name))
        if problem: problems.append(problem)
    return problems


def readme_current(root):
    "README.md is what nbs/index.ipynb says."
    if (root / "README.md").read_text() == readme.make(root): return []
    return ["README.md: differs from nbs/index.ipynb: python tools/readme.py"]


CHECKS = [
    directives, pictures_and_paths, clean, export, lint, docments, readme_current,
    first_cells.problems, keep_outputs.problems, prose_numbers.problems, spelling.spelling,
]


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    problems = []
    for check in CHECKS:
        problems += [f"{check.__module__}.{check.__name__}: {text}" for text in check(root)]
    print("\n".join(problems) or f"{len(CHECKS)} checks, no problem")
    sys.exit(bool(problems))
