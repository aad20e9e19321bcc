"""README.md from nbs/index.ipynb: `python tools/readme.py [--check]`.

With nbconvert, because nbdev_readme needs Quarto.
"""
import re, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit that. -->"


def addresses(root):
    "Where the hosting site has files, folders and pictures of the project."
    parser = ConfigParser()
    parser.read(root / "settings.ini")
    ini = parser["DEFAULT"]
    raw = f"https://raw.githubusercontent.com/{ini['user']}/{ini['repo']}/{ini['branch']}/"
    url = ini["git_url"]
    branch = ini["branch"]
    return dict(file=f"{url}/blob/{branch}/", folder=f"{url}/tree/{branch}/", picture=raw)


def absolute(target, kind, places):
    "A target in nbs/index.ipynb as an address: PyPI shows README.md, too, and has no other file."
    if re.match(r"[a-z]+:|#|/", target): return target
    path = target[3:] if target.startswith("../") else f"nbs/{target}"
    if kind == "file" and path.endswith("/"): kind = "folder"
    return places[kind] + path


def with_links(text, places):
    "The text with absolute links and pictures, except in blocks of code."
    def picture(match): return match[1] + absolute(match[2], "picture", places) + match[3]
    def link(match): return match[1] + absolute(match[2], "file", places) + match[3]
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    for i, part in enumerate(parts[::2]):
        part = re.sub(r"(!\[[^\]]*\]\()([^)\s]+)(\))", picture, part)
        parts[2 * i] = re.sub(r"(\]\()([^)\s]+)(\))", link, part)
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
    body = re.sub(r"\n{3,}", "\n\n", with_links(text, addresses(root))).strip()
    return f"{NOTE}\n\n{body}\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" not in sys.argv:
        path.write_text(make())
    elif path.read_text() != make():
        sys.exit("README.md differs from nbs/index.ipynb: python tools/readme.py")
