"""The page "From old notes": what it tells readers to write today exists, keyword by keyword."""
import ast, inspect, re
from pathlib import Path

import nbformat
import pytest

import lessonkit.all as kit
import lessonkit.data
from lessonkit.all import ImageData, Learner

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "nbs/old_notes/00_from_old_notes.ipynb"
# What stands for a reader's own values in the tables.
OWN_NAMES = {"PATH", "path", "path_img", "pat", "sz", "fnames", "files", "df", "preds", "data",
             "img", "is_cat", "learn", "found", "p"}


def tables():
    "{heading: rows} of the tables of old and new lines."
    found = {}
    for cell in nbformat.read(PAGE, 4).cells:
        if "| old line | today |" not in cell.source: continue
        heading, _, text = cell.source.partition("\n\n")
        lines = [line[1:-1].split("|") for line in text.splitlines()[2:]]
        found[heading.removeprefix("## ")] = [[part.strip() for part in line] for line in lines]
    return found


def today():
    "(heading, code) for each line of code in the middle column."
    for heading, rows in tables().items():
        for row in rows:
            for code in re.findall(r"`([^`]+)`", row[1]): yield heading, code


def keywords_of(function):
    "All keywords that it documents; options it hands on are in its signature, too."
    return set(inspect.signature(function).parameters)


def resolve(name):
    "The function or class that a call names."
    if name == "slice": return slice
    owners = dict(learn=Learner, data=ImageData)
    first, *rest = name.split(".")
    found = owners[first] if first in owners else getattr(kit, first)
    for part in rest: found = getattr(found, part)
    return found


def problems(code):
    "Names and keywords in a line of code that the kit doesn't have."
    if setting := re.fullmatch(r"(\w+)=(.+)", code):
        known = keywords_of(Learner) | keywords_of(ImageData.from_folder)
        return [] if setting[1] in known else [f"no setting {setting[1]!r}"]
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            known = node.id in OWN_NAMES or hasattr(kit, node.id) or node.id == "slice"
            if not known: found.append(f"no name {node.id!r}")
        if not isinstance(node, ast.Call): continue
        name, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        if name in OWN_NAMES or not given: continue
        unknown = given - keywords_of(resolve(name))
        if unknown: found.append(f"{name} has no {sorted(unknown)}")
    return found


def missing(code):
    "Calls in a line of code that the kit doesn't have."
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = [ast.unparse(call) for call in calls]
    def exists(name):
        try: return bool(resolve(name))
        except AttributeError: return False
    return [f"no {name}()" for name in names if name not in OWN_NAMES and not exists(name)]


def test_there_is_a_table_for_each_generation():
    assert list(tables()) == [f"Version {v}, line by line" for v in ("0.7", "1", "2")]
    assert [heading for heading, rows in tables().items() if len(rows) < 15] == []
    assert {len(row) for rows in tables().values() for row in rows} == {3}


@pytest.mark.parametrize("code", sorted({code for _, code in today()}))
def test_what_to_write_today_exists(code):
    if code.startswith(("from ", "import ")): return exec(code, {})
    assert missing(code) == []
    assert problems(code) == []


@pytest.mark.parametrize("code, problem", [
    ("Learner(data, header='mlp')", "Learner has no ['header']"),
    ("heads='mlp'", "no setting 'heads'"),
    ("ImageData.from_csv(PATH, folders='train')", "ImageData.from_csv has no ['folders']"),
    ("accuracy(predictions)", "no name 'predictions'"),
])
def test_unknown_names_and_keywords_are_found(code, problem):
    assert problems(code) == [problem]


def test_unknown_functions_are_found():
    assert missing("learn.get_predictions()") == ["no learn.get_predictions()"]
    assert missing("learn.fit(make_it(3))") == ["no make_it()"]
