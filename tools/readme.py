"""README.md from nbs/index.ipynb, with nbconvert (nbdev_readme needs Quarto): `python tools/readme.py [--check]`."""
import re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def link(match):
    "The notebook lives in nbs/, README.md above it: `lessons/x` becomes `nbs/lessons/x`, `../x` becomes `x`."
    target = match[2]
    if re.match(r"[a-z]+:|#|/", target): return match[0]
    return match[1] + (target[3:] if target.startswith("../") else f"nbs/{target}") + match[3]


def make(root=ROOT):
    nb = nbformat.read(root / "nbs/index.ipynb", 4)
    nb.cells = [cell for cell in nb.cells if not re.match(r"#\|\s*hide\b", cell.source)]
    for cell in nb.cells: cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M) if cell.cell_type == "code" else cell.source
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get("outputs"): raise SystemExit("nbs/index.ipynb: an output is a picture, which README.md has no place for")
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)   # links in code are not links
    parts[::2] = [re.sub(r"(\]\()([^)\s]+)(\))", link, part) for part in parts[::2]]
    return "<!-- Made from nbs/index.ipynb by tools/readme.py: edit that. -->\n\n" + re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip() + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit(0 if (ROOT / "README.md").read_text() == make() else "README.md differs from nbs/index.ipynb: python tools/readme.py")
    (ROOT / "README.md").write_text(make())
