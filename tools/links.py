"""Relative links in Markdown files and notebooks lead somewhere: `python tools/links.py`.

Links to other sites are not checked: a test must not need the internet.
"""
import re, sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["data", "nbs", "tests", ".github"]

FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1", re.M | re.S)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
# [text](target "title"), ![text](target), also with <target>; the text may hold a link or a picture
INLINE = re.compile(r"\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+[\"'][^)]*)?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]^]+\]:\s+<?([^\s>]+)", re.M)
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)\s*=\s*[\"']([^\"']+)", re.I)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.I)

HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
NAMED = re.compile(r"<[a-z0-9]+\b[^>]*?\b(?:id|name)\s*=\s*[\"']([^\"']+)", re.I)


def files(root):
    "Markdown files and notebooks of the project."
    paths = list(root.glob("*.md"))
    for folder in FOLDERS:
        paths += (root / folder).rglob("*.md")
        paths += (root / folder).rglob("*.ipynb")
    return sorted(path for path in paths if ".ipynb_checkpoints" not in path.parts)


def markdown(path):
    "{place: text} of a file; of a notebook one text for each Markdown cell."
    if path.suffix != ".ipynb":
        return {"": path.read_text(encoding="utf-8")}
    cells = nbformat.read(path, 4).cells
    return {f", cell {i}": cell.source
            for i, cell in enumerate(cells) if cell.cell_type == "markdown"}


def targets(text):
    "The targets of all links and pictures in Markdown `text`."
    text = CODE.sub("", FENCED.sub("", COMMENT.sub("", text)))
    return [target for pattern in (INLINE, REFERENCE, HTML) for target in pattern.findall(text)]


def plain(heading):
    "A heading's text without emphasis, code marks and link targets."
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")


def anchors(path):
    "What may follow # in a link to the file: as GitHub writes it, and as Jupyter does."
    found = set()
    count = Counter()
    for text in markdown(path).values():
        text = FENCED.sub("", COMMENT.sub("", text))
        found.update(NAMED.findall(text))
        for heading in map(plain, HEADING.findall(text)):
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            found.add(f"{slug}-{count[slug]}" if count[slug] else slug)
            count[slug] += 1
            if path.suffix == ".ipynb":
                found.add(heading.replace(" ", "-"))
    return found


def broken(target, source, root):
    "What is wrong with the link `target` in the file `source`, or None."
    if ELSEWHERE.match(target):
        return None
    name, _, anchor = unquote(target).partition("#")
    if name.startswith("/"):
        return "starts with /: write it relative to the file"
    path = (source.parent / name).resolve() if name else source
    if not path.is_relative_to(root):
        return "leads out of the project"
    if not path.exists():
        return "leads to no file"
    if anchor and path.suffix in (".md", ".ipynb") and anchor not in anchors(path):
        return "leads to no heading of that name"
    return None


def links(root):
    "Relative links that lead nowhere, one line each."
    problems = []
    for source in files(root):
        name = source.relative_to(root).as_posix()
        for place, text in markdown(source).items():
            for target in targets(text):
                problem = broken(target, source, root)
                if problem:
                    problems.append(f"{name}{place}: the link {target!r} {problem}")
    return problems


if __name__ == "__main__":
    problems = links(ROOT)
    print("\n".join(problems) or "links: no problem")
    sys.exit(bool(problems))
