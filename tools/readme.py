"""README.md from nbs/index.ipynb: `python tools/readme.py [--check]`.

With nbconvert, because nbdev_readme needs Quarto.
"""
import re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit that. -->"


def link(match):
    "A link for README.md, one folder up: `lessons/x` becomes `nbs/lessons/x`, `../x` becomes `x`."
    before, target, after = match.groups()
    if re.match(r"[a-z]+:|#|/", target): return match[0]
    target = target[3:] if target.startswith("../") else f"nbs/{target}"
    return before + target + after


def with_links(text):
    "The text with all links changed by `link`, except in blocks of code."
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    parts[::2] = [re.sub(r"(\]\()([^)\s]+)(\))", link, part) for part in parts[::2]]
    return "".join(parts)


def make(root=ROOT):
    "The text of README.md. Exits if an output is a picture."
    nb = nbformat.read(root / "nbs/index.ipynb", 4)
    nb.cells = [cell for cell in nb.cells if not re.match(r"#\|\s*hide\b", cell.source)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get("outputs"):
        raise SystemExit("nbs/index.ipynb: an output is a picture, "
                         "which README.md has no place for")
    body = re.sub(r"\n{3,}", "\n\n", with_links(text)).strip()
    return f"{NOTE}\n\n{body}\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" not in sys.argv:
        path.write_text(make())
    elif path.read_text() != make():
        sys.exit("README.md differs from nbs/index.ipynb: python tools/readme.py")
