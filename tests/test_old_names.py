"""The names and keywords that old notes use, each tried against the dialect of its version.

tests/old_names.csv lists them. `Learner.fit` is a method, `Learner.precompute=` an assignment, and
`Data.val_ds[]` an item. `Data`, `Interp` and the like stand for the objects that notes give short
names to (`CLASSES`). Segmentation, points and medical images are answered by `UNSUPPORTED`.
"""
import builtins, csv, re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from lessonkit.dialects.hook import dialect, module_of, name_table, PATCHABLE
from lessonkit.dialects.kinds import (
    can_assign, has_attribute, Instance, is_ours, keywords_of, Known, kind_of_attribute,
    kind_of_result, kind_of_value, Several, with_attribute,
)
from lessonkit.dialects.registry import Unsupported

CLASSES = {
    "0.7": dict(Learner="ConvLearner", Data="ImageClassifierData"),
    "v1": dict(Data="ImageDataBunch", ItemSplit="ItemLists", Interp="ClassificationInterpretation"),
    "v2": dict(DL="TfmdDL", Interp="ClassificationInterpretation"),
}
FOLLOWED = set()   # names whose last steps are an affair of numpy, torch or Python
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
    first, *steps = re.findall(r"\w+|\[\]", plain)
    unsupported = name_table(version, "UNSUPPORTED")
    kind = first_kind(version, first, is_alone=not steps)
    for i, step in enumerate(steps):
        if kind == "unsupported": return kind
        if kind is None:
            FOLLOWED.add((version, name))
            return None
        if plain != name and i == len(steps) - 1: return assigned(kind, step)
        kind = next_kind(kind, step, unsupported)
    return kind


def assigned(kind, step):
    "An attribute that notes assign to: has that an effect?"
    if isinstance(kind, Known) and step in PATCHABLE: return None
    if isinstance(kind, Known) and hasattr(kind.value, step): return None
    if isinstance(kind, Instance) and can_assign(with_attribute(kind.type, step) or kind.type, step):
        return None
    raise Missing(f"{step}=")


def keyword_kind(version, kind, keyword):
    "\"supported\", \"ignored\", \"warned of\" or \"missing\"."
    ignored, called = name_table(version, "IGNORED"), kind
    if isinstance(kind, Instance): called = kind_of_attribute(kind.type, "__call__")
    name = getattr(called.value, "__name__", "")
    owners = [base.__name__ for base in called.owner.__mro__] if called.owner else []
    if any(keyword in ignored.get(n, ()) for n in [*(f"{o}.{name}" for o in owners), name]):
        return "ignored"
    taken = keywords_of(called)
    if keyword in taken.names or taken.is_open: return "supported"
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


if __name__ == "__main__": print(*summary(), *sorted(FOLLOWED), sep="\n")
