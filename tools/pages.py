"""HTML pages of executed notebooks: whole without a network, on screens of any width, on paper.

`python tools/pages.py out/01_pets.ipynb` writes the page beside the notebook again.
"""
import functools, re, sys
from configparser import ConfigParser
from html import escape
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

ROOT = Path(__file__).resolve().parents[1]
STYLE = """
:root { color-scheme: light dark; }
main { max-width: 64rem; margin: 0 auto; }
.jp-RenderedHTMLCommon img, .jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon details { margin: 0 0 1em; }
.jp-RenderedHTMLCommon summary { cursor: pointer; }
.jp-RenderedMarkdown .highlight { margin-bottom: 1em; }
.jp-RenderedHTMLCommon math[display=block] { margin: .5em 0; font-size: 110%; }
.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }
.jp-Cell:focus-within .jp-InputArea-editor { outline: none; }
@media screen {
  .jp-RenderedHTMLCommon table { display: block; width: max-content; max-width: 100%;
    overflow-x: auto; }
}
@media screen and (max-width: 700px) {
  body.jp-Notebook { padding: 4px; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none; }
  .jp-RenderedMarkdown { padding-left: 4px; }
  .highlight pre { overflow-x: auto; }
}
@page { size: A4; margin: 14mm; }
@media print {
  body.jp-Notebook { padding: 0; }
  main { max-width: none; }
  .jp-InputPrompt, .jp-OutputPrompt, .anchor-link { display: none !important; }
  .jp-Cell { padding: 3px 0; }
  .jp-Cell-outputWrapper { margin-bottom: 8px; }
  .jp-OutputArea, .jp-OutputArea-child, .jp-OutputArea-output, .jp-InputArea,
  .jp-InputArea-editor, .jp-RenderedHTMLCommon { display: block; overflow: visible !important;
    max-width: 100%; max-height: none !important; }
  pre, code, .highlight pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
  /* 100 characters in a line */
  .jp-InputArea-editor .highlight pre { font-size: 8.3pt !important; }
  .jp-RenderedHTMLCommon table { max-width: 100%; font-size: 9pt; table-layout: auto; }
  .jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon td { white-space: normal !important;
    overflow-wrap: anywhere; }
  img, svg, math, tr, .jp-InputArea { break-inside: avoid; }
  h1, h2, h3, .jp-CodeCell:not(.jp-mod-noOutputs) .jp-Cell-inputWrapper { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
NAME = r"<mi>(?:log|ln|exp|max|min|sin|cos)</mi>"
BEFORE_NAME = re.compile(rf"(?<=</mi>)(?={NAME})|(?<=&#x00029;</mo>)(?={NAME})")
AFTER_NAME = re.compile(rf"({NAME})(?!<mo[^>]*>&#x00028;|<mspace)")
SPACE = '<mspace width=".17em"/>'


def formula(latex, display):
    "A formula as MathML, which browsers draw themselves; as code if it can't be converted."
    try: drawn = convert(latex.strip(), display=display)
    except Exception:   # the parser raises many kinds of errors
        return f"<code>{escape(latex)}</code>"
    drawn = BEFORE_NAME.sub(SPACE, drawn)   # y log p, and not ylogp
    return AFTER_NAME.sub(rf"\1{SPACE}", drawn)


class Renderer(IPythonRenderer):
    "Markdown with formulas as MathML."
    def block_math(self, body): return formula(body, "block")
    def inline_math(self, body): return formula(body, "inline")
    def latex_environment(self, name, body):
        return formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


class Exporter(HTMLExporter):
    "Pages without the code of folded cells."
    def __init__(self):
        folded = dict(enabled=True, remove_input_tags={"hide-input"})
        super().__init__(config={"TagRemovePreprocessor": folded})

    def default_filters(self):
        yield from super().default_filters()
        yield "markdown2html", lambda source: MarkdownWithMath(renderer=Renderer(
            escape=False, anchor_link_text=self.anchor_link_text)).render(source)

    def source_of(self, name):
        "The text of a file of the template."
        return self.environment.loader.get_source(self.environment, name)[0]


def dark_colors(exporter):
    "JupyterLab's dark theme, for readers whose system is dark; paper stays white."
    theme = exporter.source_of("static/theme-dark.css")
    return f"@media screen and (prefers-color-scheme: dark) {{\n{theme}\n}}"


def drawn_by(cell):
    "Words for a picture that has none: the last line of the code that drew it."
    lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
    return f"picture drawn by: {lines[-1]}" if lines else "picture"


def describe_pictures(nb):
    "A copy of a notebook where each PNG and JPEG is HTML, with words."
    nb = nbformat.from_dict(nb)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in ("image/png", "image/jpeg") if kind in data), None)
            if kind is None or "text/html" in data: continue
            words = output.metadata.get(kind, {}).get("alt") or drawn_by(cell)
            content = "".join(data[kind].split())
            data["text/html"] = f'<img alt="{escape(words)}" src="data:{kind};base64,{content}">'
    return nb


@functools.cache
def branch():
    "Where the repository's files are on the web."
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    return "{git_url}/blob/{branch}".format(**settings["DEFAULT"])


def link_target(target, path):
    "Where a link of the notebook at `path` leads to from its page: to a page, or the repository."
    name, _, anchor = target.partition("#")
    if not name or re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I): return target
    file = (path.parent / name).resolve()
    if file.parent == path.resolve().parent and file.suffix == ".ipynb":
        return Path(name).with_suffix(".html").as_posix() + (f"#{anchor}" if anchor else "")
    if not file.is_relative_to(ROOT): return target
    return f"{branch()}/{file.relative_to(ROOT).as_posix()}" + (f"#{anchor}" if anchor else "")


def as_page(nb, path=None):
    "The HTML page of a notebook; `path` is where the notebook lies in the repository."
    exporter = Exporter()
    page = exporter.from_notebook_node(describe_pictures(nb))[0]
    soup = BeautifulSoup(page, "html.parser")
    for script in soup.head.find_all("script"): script.decompose()   # all of them load something
    for text in (dark_colors(exporter), STYLE):
        style = soup.new_tag("style")
        style.string = text
        soup.head.append(style)
    for image in soup.find_all("img", src=re.compile("^https?:")):   # badges
        image.replace_with(image["alt"])
    heading = soup.find("h1")
    if heading: soup.title.string = heading.get_text().rstrip("\N{PILCROW SIGN}")
    for link in soup.find_all("a", href=True):
        if path: link["href"] = link_target(link["href"], path)
    return str(soup)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        executed = Path(name)
        source = next((ROOT / "nbs").rglob(executed.name), None)
        page = as_page(nbformat.read(executed, 4), source)
        executed.with_suffix(".html").write_text(page, encoding="utf-8")
