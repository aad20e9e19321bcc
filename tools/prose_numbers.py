"""Numbers in a lesson's text that nothing on its page says: `python tools/prose_numbers.py`.

A number with a decimal point or a percent sign must stand, rounded, in an output or in the code of
its page. What comes from somewhere else is listed in prose_numbers.csv, with where it comes from.
So when a lesson is run again and its numbers change, the sentences that quote them are found.
"""
import csv, re, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
TABLE = "tools/prose_numbers.csv"
NUMBER = re.compile(
    r"(?<![\w.,/-])(\d[\d,]*(?:\.\d+)?|\.\d+)(e-?\d+)?(\s?%|\s(?:percent|points?)\b)?")
# Code, formulas, addresses, and what HTML elements are called and how they look
NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|<[^>]+>|https?://\S+", re.S)
EXERCISES = "## Exercises"   # their numbers are the questions' own


def is_quoted(match):
    "Does a number look like a result, with decimals or percent?"
    return "." in match[1] or bool(match[3])


def prose_numbers(nb):
    "(cell number, number as it is written) for all cells of text before the exercises."
    found = []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "markdown": continue
        if cell.source.startswith(EXERCISES): break
        text = NOT_PROSE.sub(" ", cell.source)
        matches = [m for m in NUMBER.finditer(text) if is_quoted(m)]
        found += [(i, m[0].strip()) for m in matches]
    return found


def texts(cell):
    "What a code cell says, and what came out of it."
    yield cell.source
    for output in cell.get("outputs", []):
        if "text" in output: yield output["text"]
        data = output.get("data", {})
        yield data.get("text/plain", "")
        html = re.sub(r"data:image/[^\"']*", " ", data.get("text/html", ""))
        yield " ".join(re.findall(r'alt="([^"]*)"', html))
        yield re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.S)


def values(nb):
    "All numbers in code and outputs; 12% is 12 and 0.12."
    said = "\n".join(text for cell in nb.cells if cell.cell_type == "code" for text in texts(cell))
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", said)
    found = re.findall(r"(?<![\w.])(\d*\.?\d+(?:e[-+]?\d+)?)(%?)", plain)
    return {float(v) for v, _ in found} | {float(v) / 100 for v, percent in found if percent}


def is_said(written, known):
    "Is a number, as it is written, one of the known ones, rounded? Percent may be shares."
    match = NUMBER.fullmatch(written)
    digits = match[1].replace(",", "")
    places = len(digits.partition(".")[2])
    power = float(f"1{match[2] or ''}")
    value, half = float(digits) * power, .5001 * 10**-places * power
    scales = (1, 100) if match[3] else (1,)
    return any(abs(v * scale - value) <= half for v in known for scale in scales)


def sources(root):
    "{(page, number): where it comes from} of the table."
    path = root / TABLE
    if not path.exists(): return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["page"], row["number"]): row["source"] for row in csv.DictReader(file)}


def problems(root):
    "Numbers that neither the page nor the table explains, and rows of the table without a number."
    found, listed = [], sources(root)
    seen = set()
    for path in sorted((root / "nbs/lessons").glob("0*.ipynb")):
        nb, page = nbformat.read(path, 4), path.stem
        known = values(nb)
        for cell, written in prose_numbers(nb):
            seen.add((page, written))
            if (page, written) in listed or is_said(written, known): continue
            found.append(f"{page}, cell {cell}: nothing on the page says {written!r}: "
                         f"correct it, or add a row to {TABLE}")
    for page, written in sorted(set(listed) - seen):
        found.append(f"{TABLE}: {page} has no {written!r} any more: delete the row")
    for (page, written), source in listed.items():
        if len(source.strip()) < 4: found.append(f"{TABLE}: {page}, {written!r} has no source")
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    missing = problems(root)
    print("\n".join(missing) or "every number in the lessons' text has its source")
    sys.exit(bool(missing))
