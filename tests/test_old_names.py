"""The names and keywords that old notes use, each tried against the dialect of its version.

tests/old_names.csv lists them. `Learner.fit` is a method, `Learner.precompute=` an assignment, and
`Data.val_ds[]` an item. `Data`, `Interp` and the like stand for the objects that notes give short
names to (`CLASSES`). Segmentation, points and medical images are answered by `UNSUPPORTED`.
`python tests/test_old_names.py` counts the answers.
"""
import csv, inspect, re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from lessonkit.dialects.hook import dialect, module_of, name_table, PATCHABLE
from lessonkit.dialects.kinds import (
    can_assign, Instance, is_ours, keywords_of, Known, kind_of_attribute, kind_of_result,
    kind_of_value, Several, with_attribute,
)
from lessonkit.dialects.registry import Unsupported

CLASSES = {
    "0.7": dict(Learner="ConvLearner", Data="ImageClassifierData"),
    "v1": dict(Data="ImageDataBunch", ItemSplit="ItemLists", Interp="ClassificationInterpretation"),
    "v2": dict(DL="TfmdDL", Interp="ClassificationInterpretation"),
}
FOREIGN = {"Image.data.shape", "Datasets.train[][]"}   # the last step is torch's or a tuple's
ROWS = list(csv.DictReader((Path(__file__).parent / "old_names.csv").open(encoding="utf-8")))


class Missing(Exception):
    "The dialect doesn't have it."


def first_kind(version, name, is_alone):
    "The kind of the first part of a name: of a class, an instance if something follows."
    space, unsupported = dialect(version), name_table(version, "UNSUPPORTED")
    name = CLASSES[version].get(name, name)
    if name not in space.__all__:
        if name in unsupported: return "unsupported"
        raise Missing(name)
    value = getattr(space, name)
    if isinstance(value, Unsupported): return "unsupported"
    if not is_alone and isinstance(value, type) and is_ours(value): return Instance(value)
    return kind_of_value(value)


def next_kind(kind, step, unsupported):
    "What an attribute or item of a kind is; None if it belongs to another library."
    if step == "[]":
        if isinstance(kind, Several): return kind.items[0]
        if not hasattr(kind.type, "__getitem__"): raise Missing(step)
        return kind_of_result(kind_of_attribute(kind.type, "__getitem__"))
    if isinstance(kind, Known):
        if not hasattr(kind.value, step): raise Missing(step)
        return kind_of_value(getattr(kind.value, step))
    if f"{kind.type.__name__}.{step}" in unsupported: return "unsupported"
    having = with_attribute(kind.type, step)
    if having is None: raise Missing(f"{kind.type.__name__} has no {step}")
    return kind_of_attribute(having, step)


def kind_of(version, name):
    "The kind of a name, or \"unsupported\"; None if it belongs to another library."
    plain = name.removesuffix("=")
    if plain.startswith("vision.data.") and plain.split(".")[-1] in PATCHABLE: return None
    first, *steps = re.findall(r"\w+|\[\]", plain)
    unsupported = name_table(version, "UNSUPPORTED")
    kind = first_kind(version, first, is_alone=not steps)
    for i, step in enumerate(steps):
        if kind == "unsupported": return kind
        if kind is None:
            if name in FOREIGN: return None
            raise Missing(f"{name}: nothing says what has the attribute {step}")
        if plain != name and i == len(steps) - 1: return assigned(kind, step)
        kind = next_kind(kind, step, unsupported)
    return kind


def assigned(kind, step):
    "An attribute that notes assign to: has that an effect?"
    if isinstance(kind, Known): found = hasattr(kind.value, step)
    else:
        having = with_attribute(kind.type, step) or kind.type
        is_method = inspect.isfunction(getattr(having, step, None))   # of the class: a patch
        found = is_method or can_assign(having, step)
    if not found: raise Missing(f"{step}=")


def keyword_kind(version, kind, keyword):
    "\"supported\", \"ignored\", \"warned of\", \"not known\" (passed on) or \"missing\"."
    ignored, called = name_table(version, "IGNORED"), kind
    if isinstance(kind, Instance): called = kind_of_attribute(kind.type, "__call__")
    name = getattr(called.value, "__name__", "")
    owners = [base.__name__ for base in called.owner.__mro__] if called.owner else []
    if not is_ours(called.value): return "supported"   # by torch or torchvision, that is
    if any(keyword in ignored.get(n, ()) for n in [*(f"{o}.{name}" for o in owners), name]):
        return "ignored"
    taken = keywords_of(called)
    if keyword in taken.names: return "supported"
    if taken.is_open: return "not known"
    return "warned of" if taken.takes_others else "missing"


@cache
def answer(version, name, keywords):
    "What becomes of a name, and of each keyword."
    if name == "__version__": return ("supported", {}) if module_of(version, "fastai") else None
    kind = kind_of(version, name)
    if kind == "unsupported": return kind, {}
    given = keywords.split()
    return "supported", {keyword: keyword_kind(version, kind, keyword) for keyword in given}


IDS = [f"{row['generation']} {row['name']}" for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_name_is_answered(row):
    _, keywords = answer(row["generation"], row["name"], row["keywords"])
    assert [name for name, kind in keywords.items() if kind == "missing"] == []


@pytest.mark.parametrize("version, name", [
    ("0.7", "fit_one_cycle"), ("v1", "Learner.fitt"), ("v1", "Data.train_ds.nothing"),
    ("v2", "Learner.loss="), ("v2", "URLs.NOTHING")])
def test_missing_names_are_found(version, name):
    with pytest.raises(Missing): answer(version, name, "")


@pytest.mark.parametrize("version, name, keyword, kind", [
    ("v1", "Learner.validate", "figsize", "missing"), ("v1", "Data.show_batch", "row", "warned of"),
    ("v2", "Learner.save", "with_opt", "ignored"),
    ("0.7", "Learner.fit", "cycle_len", "supported")])
def test_keywords_are_told_apart(version, name, keyword, kind):
    assert answer(version, name, keyword) == ("supported", {keyword: kind})


def test_unsupported_names_are_found():
    assert answer("v2", "dicom_windows.brain", "") == ("unsupported", {})


def summary():
    "Lines that count the answers."
    names, keywords = Counter(), Counter()
    for row in ROWS:
        try: found, given = answer(row["generation"], row["name"], row["keywords"])
        except Missing: found, given = "missing", {}
        names[row["generation"], found] += 1
        for kind in given.values(): keywords[row["generation"], kind] += 1
    yield from (f"{what} {version}: {n} {kind}" for what, found in
                (("names", names), ("keywords", keywords)) for (version, kind), n in found.items())


if __name__ == "__main__": print(*summary(), sep="\n")
