"""Long lines, undescribed parameters and spelling (tools/lint.py, docments.py, spelling.py)."""
import shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import allowed, docments, lint, spelling

ROOT = Path(__file__).resolve().parents[1]
LONG = "x = " + " + ".join(["1000"] * 20)   # 136 characters
BRITISH = "col" + "our"


def write(path, *sources):
    "A notebook of code cells, except that a source that begins with `# ` is markdown."
    cells = [new_markdown_cell(s) if s.startswith("# ") else new_code_cell(s) for s in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture
def project(tmp_path):
    "A folder with the rules of this project and a module without a mistake."
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("lessonkit", "tests", "nbs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lessonkit/one.py").write_text("one = 1\n")
    return tmp_path


# Lines of at most 100 characters

def test_long_lines_in_notebooks_tests_and_tools_are_found(project):
    write(project / "nbs/00_one.ipynb", "x = 1", LONG)
    (project / "tests/test_one.py").write_text(f"x = 1\n\n{LONG}\n")
    problems = lint.lint(project)
    assert [problem.split(" (")[0] for problem in problems] == [
        "nbs/00_one.ipynb: cell 2, line 1: E501 Line too long",
        "tests/test_one.py: line 3: E501 Line too long"]


def test_exactly_100_characters_are_not_too_long(project):
    line = "x = " + "1" * 96
    (project / "tests/test_one.py").write_text(line + "\n")
    assert lint.lint(project) == []
    (project / "tests/test_one.py").write_text(line + "1\n")
    assert len(lint.lint(project)) == 1


def test_long_lines_are_allowed_in_markdown_and_in_the_exported_package(project):
    write(project / "nbs/00_one.ipynb", "# A title\n\n" + "word " * 60)
    (project / "lessonkit/two.py").write_text(f"{LONG}\n")
    assert lint.lint(project) == []


def test_a_long_line_is_allowed_in_a_listed_file_only(project):
    for name in ("test_one.py", "test_two.py"):
        (project / "tests" / name).write_text(f"{LONG}\n")
    problems = lint.lint(project, allowed=["tests/test_one.py"])
    assert len(problems) == 1
    assert problems[0].startswith("tests/test_two.py: line 1: E501")
    assert lint.lint(project, allowed=["tests/*.py"]) == []


def test_a_listed_file_that_keeps_the_rule_must_leave_the_list(project):
    (project / "tests/test_one.py").write_text("x = 1\n")
    problem = "LONG_LINES_ALLOWED: tests/test_one.py keeps the rule now: remove it from the list"
    assert lint.lint(project, allowed=["tests/*.py"]) == [problem]


def test_a_listed_file_that_is_gone_must_leave_the_list():
    problems = lint.lint(ROOT, allowed=[*lint.LONG_LINES_ALLOWED, "tests/no_such_file.py"])
    assert problems == [
        "LONG_LINES_ALLOWED: 'tests/no_such_file.py' matches no file: remove it from the list"]


def test_undefined_names_are_found_in_notebooks_and_in_listed_files(project):
    write(project / "nbs/00_one.ipynb", "from lessonkit.all import *", "import os", "print(1)")
    assert lint.lint(project) == []   # star imports and unused ones are usual in lessons
    (project / "tests/test_one.py").write_text(f"{LONG}\nprint(math.pi)\n")
    problems = lint.lint(project, allowed=["tests/test_one.py"])
    assert problems == ["tests/test_one.py: line 2: F821 Undefined name `math`"]


# A comment for every public parameter

@pytest.mark.parametrize("source, expected", [
    ("def f(a): pass", [("f", "a")]),
    ("def f(a): pass  # for all of it", []),
    ("def f(a, b): pass  # which of the two?", [("f", "a"), ("f", "b")]),
    ("def f(\n    a,  # one\n    b,  # another\n): pass", []),
    ("def f(\n    a,  # one\n    b,\n): pass", [("f", "b")]),
    ("def f(\n    # a comment that needs\n    # two lines\n    a,\n): pass", []),
    ("def f(\n    a='# no comment',\n): pass", [("f", "a")]),
    ("def f(\n    a,  # one\n    /,\n    *,\n    b,\n): pass", [("f", "b")]),
    ("def f(*files): pass", [("f", "files")]),
    ("def f(**kwargs): pass", []),
    ("def f(_cache=None): pass", []),
    ("async def f(a): pass", [("f", "a")]),
    ("def _f(a): pass", []),
    ("@patch\ndef f(self: C, a): pass", [("f", "a")]),
    ("def f():\n    def inner(a): pass", []),
    ("class C:\n    def m(self, a): pass", [("C.m", "a")]),
    ("class C:\n    def __init__(self, a): pass", [("C.__init__", "a")]),
    ("class C:\n    def __eq__(self, other): pass", []),
    ("class C:\n    def _m(self, a): pass", []),
    ("class _C:\n    def m(self, a): pass", []),
    ("class C:\n    @staticmethod\n    def m(a): pass", [("C.m", "a")]),
    ("class C:\n    @classmethod\n    def m(cls, a): pass", [("C.m", "a")]),
    ("class C:\n    @size.setter\n    def size(self, a): pass", []),
    ("class C:\n    a: int", []),
    ("@dataclass\nclass C:\n    a: int", [("C", "a")]),
    ("@dataclass(frozen=True)\nclass C:\n    a: int  # how many\n    b: int = 1", [("C", "b")]),
    ("@dataclasses.dataclass\nclass C:\n    a: int\n    _b: int", [("C", "a")]),
    ("@dataclass\nclass C:\n    all: ClassVar[list] = []", []),
    ("class C(NamedTuple):\n    a: int", [("C", "a")]),
])
def test_parameters_without_a_comment(source, expected):
    assert docments.missing(source) == expected


def test_docments_of_a_project(project):
    (project / "lessonkit/two.py").write_text("def twice(x): return 2 * x\n")
    (project / "lessonkit/_modidx.py").write_text("def f(a): pass\n")
    problem = "lessonkit/two.py: twice: no comment on the line of its parameter 'x'"
    assert docments.docments(project) == [problem]
    assert docments.docments(project, allowed=["lessonkit/two.py"]) == []
    stale = docments.docments(project, allowed=["lessonkit/[a-z]*.py"])
    assert stale == [
        "DOCMENTS_MISSING_ALLOWED: lessonkit/one.py keeps the rule now: remove it from the list"]


def test_shrink_removes_what_is_out_of_date(tmp_path, monkeypatch, capsys):
    list_file = tmp_path / "lint.py"
    list_file.write_text('LONG_LINES_ALLOWED = [\n    "a.py",\n    "b.py",\n    "c.py",\n]\n')
    problems = ["LONG_LINES_ALLOWED: a.py keeps the rule now: remove it from the list",
                "LONG_LINES_ALLOWED: 'c.py' matches no file: remove it from the list"]
    monkeypatch.setattr(lint, "__file__", str(list_file))
    monkeypatch.setattr(lint, "lint", lambda root: problems)
    monkeypatch.setattr(docments, "docments", lambda root: [])
    allowed.shrink()
    assert list_file.read_text() == 'LONG_LINES_ALLOWED = [\n    "b.py",\n]\n'
    assert "lint.py: 2 entries removed" in capsys.readouterr().out


# Spelling

@pytest.fixture
def codespell():
    pytest.importorskip("codespell_lib")


def test_spelling_of_notebooks_text_and_code(project, codespell):
    write(project / "nbs/00_one.ipynb", f"# A {BRITISH}", f"x = 1\nplot_{BRITISH} = 2")
    (project / "CONTRIBUTING.md").write_text("Rec" + "ieve it.\n")
    (project / "tests/test_one.py").write_text(f"# {BRITISH}s\n")
    assert spelling.spelling(project) == [
        "CONTRIBUTING.md: line 1: Rec" + "ieve ==> Receive",
        f"nbs/00_one.ipynb: cell 0, line 1: {BRITISH} ==> color",
        f"nbs/00_one.ipynb: cell 1, line 2: {BRITISH} ==> color",
        f"tests/test_one.py: line 1: {BRITISH}s ==> colors"]


def test_spelling_passes_over_outputs_and_what_is_made_from_notebooks(project, codespell):
    cell = new_code_cell("1", outputs=[new_output("stream", text=BRITISH)])
    nbformat.write(new_notebook(cells=[cell]), project / "nbs/00_one.ipynb")
    (project / "README.md").write_text(BRITISH)
    (project / "lessonkit/two.py").write_text(f"# {BRITISH}")
    assert spelling.spelling(project) == []


def test_spelling_of_some_files(project, codespell):
    for name in ("a.md", "b.md"):
        (project / name).write_text(BRITISH)
    assert spelling.spelling(project, [Path("b.md")]) == [f"b.md: line 1: {BRITISH} ==> color"]


@pytest.mark.parametrize("tool", ["lint.py", "docments.py"])
def test_tools_run_from_the_command_line(tool):
    run = subprocess.run([sys.executable, ROOT / "tools" / tool], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
