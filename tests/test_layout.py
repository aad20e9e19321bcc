"""The layout of the package: what may import what, how long things may be, and the star import.

Each rule is a function that takes a package's folder and returns problems, one line each. None
finds a problem in the kit, and each finds those that are seeded in a small package.
"""
import ast, re, subprocess, sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lessonkit"

# Folders and modules, first to last: each may import from itself and from those before it.
ORDER = ["core", "data", "model", "train", "results", "plot", "export", "distill", "learner",
         "widgets", "dialects", "course", "all", "__main__"]

# Of a module, a class and a function, without signatures, docstrings and lines without code.
LONGEST = dict(module=350, class_=250, function=40)
EXCEPTIONS = {}   # what may be longer, such as "data/sample.py: pets", and how long

# Modules, and names of modules, that are not available from the folder itself. Users need
# `draw_pet`, not the steps of a drawing, and `check`, not the exercises that it looks up. And they
# write `sample.pets()` and `datasets.get()`. The vocabularies of old notes overlap, so that each is
# imported on its own; the folder with the hook imports fast.
NOT_IN_FOLDER = re.compile(r"""
    data\.(breeds|canvas|anatomy|camera|fur|coats|faces|scenes|mountains|trail) |
    data\.drawing\.expose |
    data\.(sample|datasets|phone|shelter|archives|downloads)\.(?!download_images)[a-z]\w* |
    course\.lesson_\d+b? |
    dialects\.fastai(07|1|2)(\..*)? |
    dialects\.(adapter|urls|notes|today|kinds|reading|check|convert|__main__)\.\w+
""", re.VERBOSE)

# Names that a reader's own variable may have, or that say nothing without their module.
COMMON_WORDS = set("""
    accepted basic clock compare decide differences eye found get leaks letter light names
    outputs perspective picture report right rotation scaled still summary table test train
    valid warp wilson window wrong
""".split())


# ---- what modules import

def modules(package):
    "{dotted name: path} of all modules in a package, without what nbdev keeps for itself."
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] == "__init__": parts = parts[:-1]
        if parts[-1] != "_modidx": found[".".join(parts)] = path
    return found


def folder_of(name):
    "The entry in ORDER that a module belongs to; empty for the package itself."
    return [*name.split("."), ""][1]


class Import(NamedTuple):
    "One imported name."
    module: str      # that it is imported from, or that is imported
    name: str        # empty for `import module`
    local: str       # what it is called in the importing module
    line: int


def imports(name, path):
    "All imports of a module, also those in its functions, with absolute names."
    package = name.split(".")
    if path.name != "__init__.py": package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", alias.asname or alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                yield Import(module, alias.name, alias.asname or alias.name, node.lineno)


def imported_module(found, known):
    "The module of the kit that an import is from, or None."
    full = f"{found.module}.{found.name}"
    if full in known: return full
    return found.module if found.module in known else None


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def place(package, path, line=None):
    "Where a problem is."
    file = path.relative_to(package).as_posix()
    return f"{file}, line {line}" if line else file


def wrong_direction(package):
    "Imports only point up the list."
    known, problems = modules(package), []
    for name, path in known.items():
        folder = folder_of(name)
        if folder and folder not in ORDER:
            problems.append(f"{place(package, path)}: {folder!r} is not in the list of folders")
            continue
        allowed = ORDER[:ORDER.index(folder) + 1] if folder else []
        for found in imports(name, path):
            module = imported_module(found, known)
            if module and folder_of(module) not in ["", *allowed]:
                problems.append(f"{place(package, path, found.line)}: imports from {module}")
    return problems


def private_names(package):
    "No module imports another module's private name, or reads it as an attribute."
    known, problems = modules(package), []
    for name, path in known.items():
        names = set()   # of imported modules
        for found in imports(name, path):
            module = imported_module(found, known)
            if module is None: continue
            if is_private(found.name):
                problems.append(f"{place(package, path, found.line)}: imports {found.name}")
            if module != found.module or not found.name: names.add(found.local)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not is_private(node.attr): continue
            if ast.unparse(node.value) in names:
                problems.append(f"{place(package, path, node.lineno)}: reads {ast.unparse(node)}")
    return problems


def own_folder(package):
    "Within a folder we import from its modules: `from . import name` would be a circle."
    known, problems = modules(package), []
    for name, path in known.items():
        if path.name == "__init__.py": continue
        own = name.rpartition(".")[0]
        for found in imports(name, path):
            module = imported_module(found, known)
            if module == own and own != package.name:
                problems.append(f"{place(package, path, found.line)}: imports from its own folder")
    return problems


def matplotlib_outside_plot(package):
    "matplotlib takes a while to import, so only plot/ does it, and old notes, which expect `plt`."
    problems = []
    for name, path in modules(package).items():
        for found in imports(name, path):
            is_matplotlib = found.module.split(".")[0] == "matplotlib"
            if is_matplotlib and folder_of(name) not in ("plot", "dialects"):
                problems.append(f"{place(package, path, found.line)}: imports matplotlib")
    return problems


# ---- what a folder makes available

def names_in(path):
    "`__all__` of a module, or None if that is not a list of strings."
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign): continue
        if [ast.unparse(target) for target in node.targets] != ["__all__"]: continue
        if not isinstance(node.value, ast.List): return None
        values = [e.value for e in node.value.elts if isinstance(e, ast.Constant)]
        complete = len(values) == len(node.value.elts)
        return values if complete and all(isinstance(value, str) for value in values) else None
    return None


def public_names(package, folder):
    "{name: the modules that define it}, without what a folder keeps to its modules."
    found = {}
    for name, path in modules(package).items():
        short = name.removeprefix(f"{package.name}.")
        if not short.startswith(f"{folder}.") or NOT_IN_FOLDER.fullmatch(short): continue
        for public in names_in(path) or []:
            if NOT_IN_FOLDER.fullmatch(f"{short}.{public}"): continue
            found.setdefault(public, []).append(short)
    return found


def folders(package):
    return [folder for folder in ORDER if (package / folder).is_dir()]


def incomplete_folders(package):
    "`lessonkit.data` has all public names of its modules. An `__init__.py` without any is fine."
    problems = []
    for folder in folders(package):
        init = package / folder / "__init__.py"
        listed, expected = names_in(init), public_names(package, folder)
        if not listed: continue
        where = place(package, init)
        problems += [f"{where}: lacks {name}" for name in sorted(expected.keys() - set(listed))]
        problems += [f"{where}: has {name}, which is not public in any of its modules"
                     for name in sorted(set(listed) - expected.keys())]
    return problems


def clashing_names(package):
    "A public name belongs to one module of its folder, and is not called like one of them."
    problems = []
    for folder in folders(package):
        stems = {path.stem for path in (package / folder).glob("*.py")}
        for name, owners in public_names(package, folder).items():
            if len(owners) > 1: problems.append(f"{name} is in {' and in '.join(owners)}")
            if name in stems: problems.append(f"{owners[0]}.{name} hides the module of that name")
    return problems


# ---- how long things are

def is_docstring(node):
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant): return False
    return isinstance(node.value.value, str)


def uncounted(tree):
    "The numbers of all lines that belong to signatures and docstrings."
    lines = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if not node.body: continue   # an empty module
        first = node.body[0]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines.update(range(node.lineno, first.lineno))
        if is_docstring(first): lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def lengths(text):
    "(kind, name, number of lines of code) of a module and of all its classes and functions."
    tree, lines = ast.parse(text), text.split("\n")
    left_out = uncounted(tree)
    code = [n for n, line in enumerate(lines, 1)
            if n not in left_out and line.strip() and not line.strip().startswith("#")]
    yield "module", "", len(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef): kind = "class_"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): kind = "function"
        else: continue
        yield kind, node.name, sum(node.lineno <= n <= node.end_lineno for n in code)


def too_long(package, exceptions=EXCEPTIONS):
    "Modules, classes and functions that do not fit on a few screens."
    problems, used = [], set()
    for path in modules(package).values():
        for kind, name, length in lengths(path.read_text()):
            if length <= LONGEST[kind]: continue
            where = f"{place(package, path)}: {name}" if name else place(package, path)
            used.add(where)
            if length > exceptions.get(where, LONGEST[kind]):
                problems.append(f"{where} has {length} lines, more than {LONGEST[kind]}")
    stale = sorted(exceptions.keys() - used)
    return problems + [f"EXCEPTIONS: {where} is short enough now" for where in stale]


# ---- the kit

RULES = [wrong_direction, private_names, own_folder, matplotlib_outside_plot, incomplete_folders,
         clashing_names, too_long]


def test_the_kit_has_all_these_folders_and_modules():
    found = {folder_of(name) for name in modules(PACKAGE)}
    assert found == {"", *ORDER}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_kit_keeps_the_rule(rule):
    assert rule(PACKAGE) == []


@pytest.mark.slow
def test_nothing_below_plot_brings_matplotlib():
    "Not through another package either."
    below = ORDER[:ORDER.index("plot")]
    names = [name for name in modules(PACKAGE) if folder_of(name) in below]
    code = f"import sys, {', '.join(names)}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr


# ---- seeded violations

FUNCTION = '''\
def f(
    a,   # first
    b,   # second
):
    """Says what it does.

    On several lines.
    """
    # and why
    if a:
        return b

    return a
'''


def make_package(folder, files):
    "A package with these files; `__init__.py` is added to each folder."
    package = folder / "lessonkit"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in (package, *(p for p in package.iterdir() if p.is_dir())):
        (path / "__init__.py").touch()
    return package


GOOD = {
    "__init__.py": "__version__ = '1'\n",
    "_modidx.py": "from matplotlib import _nothing\n",
    "core/files.py": "import os\nfrom .. import __version__\n_own = 1\n__all__ = ['a']\n",
    "core/rng.py": "from lessonkit.core.files import a\n__all__ = ['b']\n",
    "core/__init__.py": "from .files import a\nfrom .rng import b\n__all__ = ['a', 'b']\n",
    "data/sample.py": "from ..core import files, rng\nfrom . import images\nfiles.a, rng.b\n",
    "data/images.py": "import lessonkit\nlessonkit.__version__\n",
    "data/breeds.py": "__all__ = ['SHAPES']\n",
    "data/drawing.py": "__all__ = ['expose', 'draw_pet']\n",
    "data/__init__.py": "from .drawing import draw_pet\n__all__ = ['draw_pet']\n",
    "plot/scores.py": "import matplotlib\nfrom matplotlib import figure\n",
    "all.py": "from .plot import scores\nfrom .core.files import a\n__all__ = ['scores', 'a']\n",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_package_keeps_the_rule(rule, tmp_path):
    assert rule(make_package(tmp_path, GOOD)) == []


@pytest.mark.parametrize("rule, file, text, problem", [
    (wrong_direction, "core/bad.py", "from ..data.sample import tiny",
     "core/bad.py, line 1: imports from lessonkit.data.sample"),
    (wrong_direction, "core/bad.py", "from ..data import sample",
     "core/bad.py, line 1: imports from lessonkit.data.sample"),
    (wrong_direction, "core/bad.py", "import os\nimport lessonkit.data.sample",
     "core/bad.py, line 2: imports from lessonkit.data.sample"),
    (wrong_direction, "core/bad.py", "from lessonkit import data",
     "core/bad.py, line 1: imports from lessonkit.data"),
    (wrong_direction, "data/bad.py", "def f():\n    from .. import plot",
     "data/bad.py, line 2: imports from lessonkit.plot"),
    (wrong_direction, "plot/bad.py", "from ..all import a",
     "plot/bad.py, line 1: imports from lessonkit.all"),
    (wrong_direction, "__init__.py", "from .core import files",
     "__init__.py, line 1: imports from lessonkit.core.files"),
    (wrong_direction, "tools.py", "x = 1", "tools.py: 'tools' is not in the list of folders"),
    (wrong_direction, "shelf/__init__.py", "x = 1",
     "shelf/__init__.py: 'shelf' is not in the list of folders"),
    (private_names, "data/bad.py", "from ..core.files import _own",
     "data/bad.py, line 1: imports _own"),
    (private_names, "data/bad.py", "from ..core.files import _own as own",
     "data/bad.py, line 1: imports _own"),
    (private_names, "core/bad.py", "def f():\n    from .files import _own",
     "core/bad.py, line 2: imports _own"),
    (private_names, "data/bad.py", "from ..core import files\nfiles._own",
     "data/bad.py, line 2: reads files._own"),
    (private_names, "data/bad.py", "import lessonkit.core.files as f\nf._own()",
     "data/bad.py, line 2: reads f._own"),
    (private_names, "data/bad.py", "import lessonkit.core.files\nlessonkit.core.files._own",
     "data/bad.py, line 2: reads lessonkit.core.files._own"),
    (own_folder, "core/bad.py", "from . import a",
     "core/bad.py, line 1: imports from its own folder"),
    (own_folder, "core/bad.py", "from lessonkit.core import a",
     "core/bad.py, line 1: imports from its own folder"),
    (matplotlib_outside_plot, "data/bad.py", "import matplotlib.pyplot as plt",
     "data/bad.py, line 1: imports matplotlib"),
    (matplotlib_outside_plot, "learner.py", "def f():\n    from matplotlib import figure",
     "learner.py, line 2: imports matplotlib"),
    (incomplete_folders, "core/bad.py", "__all__ = ['c']", "core/__init__.py: lacks c"),
    (incomplete_folders, "core/__init__.py", "__all__ = ['a', 'b', 'c']",
     "core/__init__.py: has c, which is not public in any of its modules"),
    (incomplete_folders, "data/__init__.py", "__all__ = ['draw_pet', 'SHAPES']",
     "data/__init__.py: has SHAPES, which is not public in any of its modules"),
    (clashing_names, "core/rng.py", "__all__ = ['a', 'b']", "a is in core.files and in core.rng"),
    (clashing_names, "core/rng.py", "__all__ = ['rng', 'b']",
     "core.rng.rng hides the module of that name"),
    (too_long, "core/bad.py", "x = 1\n" * 351, "core/bad.py has 351 lines, more than 350"),
    (too_long, "core/bad.py", "class C:\n" + "    x = 1\n" * 250,
     "core/bad.py: C has 251 lines, more than 250"),
    (too_long, "core/bad.py", FUNCTION + "    x = 1\n" * 38,
     "core/bad.py: f has 41 lines, more than 40"),
    (too_long, "core/bad.py", "class C:\n    def f(self):\n" + "        x = 1\n" * 41,
     "core/bad.py: f has 41 lines, more than 40"),
])
def test_violations_are_found(rule, file, text, problem, tmp_path):
    package = make_package(tmp_path, GOOD | {file: text})
    assert rule(package) == [problem]


@pytest.mark.parametrize("text", [
    "x = 1\n" * 350,
    FUNCTION + "    x = 1\n" * 37,
    FUNCTION + "\n    # a comment\n" * 100,
    "def f(\n" + "".join(f"    a{i}=1,   # a number\n" for i in range(99)) + "): return 1\n",
])
def test_what_is_as_long_as_it_may_be(text, tmp_path):
    assert too_long(make_package(tmp_path, {"core/good.py": text})) == []


def test_exceptions_may_not_grow_or_outlive_their_reason(tmp_path):
    package = make_package(tmp_path, {"core/long.py": FUNCTION + "    x = 1\n" * 40})
    assert too_long(package, {"core/long.py: f": 43}) == []
    problem = "core/long.py: f has 43 lines, more than 40"
    assert too_long(package, {"core/long.py: f": 42}) == [problem]
    stale = "EXCEPTIONS: core/files.py: g is short enough now"
    assert too_long(package, {"core/long.py: f": 43, "core/files.py: g": 50}) == [stale]


# ---- the star import, as an editor sees it

STAR = PACKAGE / "all.py"


def star_problems(path):
    "`__all__` is a literal list, and each of its names is imported by that name."
    listed = names_in(path)
    if listed is None: return ["__all__ is not a list of strings"]
    imported = list(imports("lessonkit.all", path))
    bound = {found.local for found in imported}
    problems = [f"{found.module} is imported with a star"
                for found in imported if found.name == "*"]
    problems += [f"{name} is not imported" for name in listed if name not in bound]
    problems += [f"{name} is listed twice" for name in set(listed) if listed.count(name) > 1]
    return problems + [f"{name} is imported and not listed" for name in bound - set(listed) - {"*"}]


def test_the_star_import_is_plain_to_editors():
    assert star_problems(STAR) == []


@pytest.mark.parametrize("text, problem", [
    ("from .core.files import a\n__all__ = ['a'] + ['b']", "__all__ is not a list of strings"),
    ("from .core.files import a\n__all__ = [*dir()]", "__all__ is not a list of strings"),
    ("from .core.files import a", "__all__ is not a list of strings"),
    ("from .core.files import a\n__all__ = ['a', 'b']", "b is not imported"),
    ("from .core.files import a\n__all__ = ['a', 'a']", "a is listed twice"),
    ("from .core.files import a, b\n__all__ = ['a']", "b is imported and not listed"),
    ("from .core.files import *\n__all__ = []", "lessonkit.core.files is imported with a star"),
])
def test_what_editors_cannot_see_is_found(text, problem, tmp_path):
    file = tmp_path / "all.py"
    file.write_text(text)
    assert star_problems(file) == [problem]


def test_the_star_import_has_about_a_hundred_names():
    assert 90 <= len(names_in(STAR)) <= 110


def test_no_name_of_the_star_import_is_a_common_word():
    assert {name for name in names_in(STAR) if name.lower() in COMMON_WORDS} == set()


def test_the_star_import_brings_what_it_lists():
    space = {}
    exec("from lessonkit.all import *", space)
    assert space.keys() - {"__builtins__"} == set(names_in(STAR))
