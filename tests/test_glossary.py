"""The glossary is in order, and each entry says where its word is explained.

That its links lead to sections that exist is in test_links.py.
"""
import re
from pathlib import Path

import nbformat
import pytest

LESSONS = Path(__file__).resolve().parents[1] / "nbs/lessons"


def entries():
    "(term, text) in the order of the page."
    cells = nbformat.read(LESSONS / "90_glossary.ipynb", 4).cells
    text = "\n\n".join(cell.source for cell in cells)
    parts = re.split(r"^### (.+)$", text, flags=re.M)[1:]
    return [(term, re.split(r"^## ", body, flags=re.M)[0].strip())
            for term, body in zip(parts[::2], parts[1::2])]


def test_terms_are_in_alphabetical_order():
    terms = [term.lower() for term, _ in entries()]
    assert len(terms) > 70
    assert terms == sorted(set(terms))


def test_letters_hold_their_terms():
    for cell in nbformat.read(LESSONS / "90_glossary.ipynb", 4).cells[1:]:
        letter = re.match(r"## (.)$", cell.source, re.M)[1]
        terms = re.findall(r"^### (.+)$", cell.source, re.M)
        assert {term[0].upper() for term in terms} == {letter}


@pytest.mark.parametrize("term, text", entries(), ids=lambda value: value[:20])
def test_an_entry_is_short_and_names_its_section(term, text):
    words, _, section = text.rpartition(" (")
    link = re.fullmatch(r"\[.+\]\(0\d\w*\.ipynb(#\S+)?\)\)", section)
    assert link, section
    assert len(words.split()) <= 50
