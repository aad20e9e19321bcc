"""Spelling, American English, by codespell: `python tools/spelling.py [FILE ...]`, else all files.

Of a notebook only the cells' sources are read: outputs hold pictures as text, and numbers. The
words to ignore are in pyproject.toml.
"""
import re, subprocess, sys, tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".ipynb", ".md", ".py", ".toml", ".ini", ".yml", ".yaml", ".cff"}
# What is made from notebooks is checked there.
MADE = re.compile(r"lessonkit/(?!assets/)|README\.md$")
# Folders of the project that hold text; of the hidden ones only that of the hosting site.
FOLDERS = ["nbs", "data", "tests", "tools", ".github", "lessonkit/assets"]


def files(root):
    "All files whose spelling counts, relative to `root`."
    paths = list(root.glob("*"))
    for folder in FOLDERS:
        paths += (root / folder).rglob("*")
    names = [path.relative_to(root) for path in paths if path.is_file()]
    return sorted(name for name in names if is_checked(name))


def is_checked(name):
    "Whether the file `name` (relative) is text that somebody wrote here."
    is_copy = ".ipynb_checkpoints" in name.parts
    return name.suffix in SUFFIXES and not is_copy and not MADE.match(name.as_posix())


def texts(path):
    "{place: text} of one file: a notebook has a text for each cell."
    if path.suffix != ".ipynb":
        text = path.read_text(encoding="utf-8")
        # the tables of the changelog list names as they once were
        if path.name == "CHANGELOG.md": text = re.sub(r"^\|.*$", "", text, flags=re.M)
        return {"": text}
    cells = nbformat.read(path, 4).cells
    return {f"cell {i}": cell.source for i, cell in enumerate(cells)}


def words_apart(text):
    "`plot_color` is two words, which codespell takes for one."
    return text.replace("_", " ")


def spelling(root, names=None):
    "Misspelled or British words, one line each: file, cell, line, the word and what to write."
    place_of = {}
    with tempfile.TemporaryDirectory() as tmp:
        for name in names or files(root):
            for place, text in texts(root / name).items():
                copy = Path(tmp) / f"{len(place_of)}.txt"
                copy.write_text(words_apart(text), encoding="utf-8")
                place_of[copy.name] = f"{name.as_posix()}: {place}, ".replace(": ,", ":")
        command = [sys.executable, "-P", "-m", "codespell_lib", "--toml", root / "pyproject.toml"]
        run = subprocess.run([*command, "."], cwd=tmp,
                             text=True, encoding="utf-8", capture_output=True)
    hits = re.findall(r"^\./(\d+\.txt):(\d+): (.*)$", run.stdout, re.M)
    if run.returncode and not hits:
        raise RuntimeError(f"codespell failed: {run.stderr}")
    hits.sort(key=lambda hit: (int(Path(hit[0]).stem), int(hit[1])))
    return [f"{place_of[copy]}line {line}: {advice}" for copy, line, advice in hits]


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    checked = [name for name in given if is_checked(name)]
    problems = spelling(ROOT, checked) if checked or not given else []
    print("\n".join(problems) or "spelling: no problem")
    sys.exit(bool(problems))
