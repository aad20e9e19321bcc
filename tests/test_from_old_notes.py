"""The page "From old notes": its old lines run, and what to write today exists.

Both are checked keyword by keyword: the old lines by what the command `check` says of them.
"""
import ast, inspect, re
from functools import cache
from pathlib import Path

import nbformat
import pytest

import lessonkit.all as kit
from lessonkit.all import ImageData, Learner
from lessonkit.dialects.check import check_note

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


# ---- the old lines

VERSIONS = {"Version 0.7, line by line": "0.7", "Version 1, line by line": "v1",
            "Version 2, line by line": "v2"}
BEFORE = {   # what old notes have done before they come to these lines
    "0.7": """
from fastai.conv_learner import *
from fastai.plots import *
PATH, sz, arch, val_idxs, cm = "data/", 224, resnet34, [0], None
tfms = tfms_from_model(arch, sz)
data = ImageClassifierData.from_paths(PATH, tfms=tfms)
learn = ConvLearner.pretrained(arch, data)
log_preds, y = learn.TTA()
probs = np.exp(log_preds[:,1])
def plot_val_with_title(idxs, title): plots(idxs)
def most_by_correct(y, is_correct): return probs
""",
    "v1": """
from fastai.vision import *
from fastai.metrics import error_rate
from fastai.callbacks import *
from fastai.widgets import *
path_img, fnames, pat, df, ds, idxs = Path("images"), [], "", pd.DataFrame(), [], []
path = path_img
items = ImageList.from_df(df, path).split_by_rand_pct()
data = ImageDataBunch.from_folder(path)
learn = cnn_learner(data, models.resnet34)
interp = ClassificationInterpretation.from_learner(learn)
""",
    "v2": """
from fastai.vision.all import *
from fastai.vision.widgets import *
path, img, bigger = Path("images"), None, None
files = get_image_files(path)
def is_cat(name): return name[0].isupper()
dls = ImageDataLoaders.from_folder(path)
learn = cnn_learner(dls, resnet34)
interp = ClassificationInterpretation.from_learner(learn)
""",
}


def whole(code, before):
    "A statement that stands alone, from a line of the table; `before` stands left of it there."
    if code.startswith("."): return f"items{code}"
    short = re.match(r"plot_\w+\(\)", code)
    if short and before: return before.split("(")[0].rpartition(".")[0] + "." + code
    return code


def old_lines():
    "(version, statement) for each line of code in the left column."
    for heading, rows in tables().items():
        for row in rows:
            found = []
            for code in re.findall(r"`([^`]+)`", row[0]):
                found.append(whole(code, found[-1] if found else ""))
            for code in found: yield VERSIONS[heading], code


OLD_LINES = sorted(set(old_lines()))


@cache
def report_of(version, lines, folder):
    "What `check` says of lines, one below the other, and the number of the first."
    file, before = folder / "old.py", BEFORE[version]
    file.write_text("\n".join([before, *lines]))
    return check_note(file, version), before.count("\n") + 2


def complaints(version, code, lines, folder):
    "What `check` says of one of several lines."
    report, first = report_of(version, lines, folder)
    assert [finding for finding in report.findings if finding.line < first] == []
    number = first + lines.index(code)
    return [finding.text for finding in report.findings if finding.line == number]


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("lines")


def test_there_are_old_lines_of_each_version():
    counts = [sum(version == v for version, _ in OLD_LINES) for v in ("0.7", "v1", "v2")]
    assert [count for count in counts if count < 18] == []


@pytest.mark.parametrize("version, code", OLD_LINES)
def test_old_lines_are_supported(folder, version, code):
    lines = tuple(line for v, line in OLD_LINES if v == version)
    assert complaints(version, code, lines, folder) == []


@pytest.mark.parametrize("version, code, text", [
    ("0.7", "learn.fit_one_cycle(3)", "ConvLearner.fit_one_cycle is not among the names"),
    ("v1", "data.show_batches(rows=3)", "ImageDataBunch.show_batches is not among the names"),
    ("v1", "interp.plot_top_losses(9, heatmaps=True)", "(heatmaps=) is ignored"),
    ("v2", "cnn_leaner(dls, resnet34)", "cnn_leaner is unknown"),
])
def test_old_lines_that_are_not_supported_are_found(folder, version, code, text):
    assert any(text in found for found in complaints(version, code, (code,), folder))
