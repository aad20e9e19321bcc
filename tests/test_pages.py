"""HTML pages of executed notebooks: whole without a network, described, readable on paper."""
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import pages
from jupyter_lab import browser_page

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "nbs/lessons").glob("[0-9]*.ipynb"))
DOT = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
       "AABJRU5ErkJggg==")   # a PNG of one pixel
TEXTS = ["# A page\n\n[Next](02_better_model.ipynb#Summary), [code](../plot/00_figures.ipynb), "
         "[up](#A-page), [paper](https://example.com/x)",
         "[![Open in Colab](https://example.com/badge.svg)](https://example.com/colab)",
         "Inline $a_1^2$ and\n\n$$-\\bigl(y \\log p + (1-y) \\log(1-p)\\bigr)$$",
         "\\begin{equation}a = \\frac{1}{2}\\end{equation}",
         "| name |" + " a_wide_column |" * 12 + "\n|---|" + "---|" * 12]


def drawing(**metadata):
    output = new_output("display_data", {"image/png": DOT, "text/plain": "<Figure>"})
    return new_code_cell("import x\n\nplt.plot(x)\n", outputs=[output], metadata=metadata)


@pytest.fixture(scope="module")
def notebook():
    long = new_code_cell("a = " + " + ".join(f"number_{i}" for i in range(9)) + "   # the sum")
    return new_notebook(cells=[*map(new_markdown_cell, TEXTS), long, drawing()])


@pytest.fixture(scope="module")
def page(notebook):
    return pages.as_page(notebook, ROOT / "nbs/lessons/01_pets.ipynb")


@pytest.fixture(scope="module")
def soup(page):
    return BeautifulSoup(page, "html.parser")


def requests(soup):
    "The addresses that a browser would ask for by itself."
    found = [tag.get(name) for tag in soup.find_all(["img", "script", "link", "iframe", "source"])
             for name in ("src", "href") if tag.get(name)]
    found += re.findall(r"(?:url\(|@import )[\"']?(\w+:[^\"')]*)", str(soup.head))
    return [address for address in found if not address.startswith("data:")]


def undescribed(soup):
    "The pictures whose words say nothing."
    nothing = re.compile(r"\s*(a figure|picture|image|No description.*)?\s*")
    return [image for image in soup.find_all("img") if nothing.fullmatch(image.get("alt", ""))]


def test_a_page_asks_for_nothing(soup):
    assert requests(soup) == []
    assert soup.find("script") is None
    assert soup.find("a", href="https://example.com/colab").get_text() == "Open in Colab"


def test_formulas_are_drawn_by_the_browser(soup):
    formulas = soup.find_all("math")
    assert [formula.get("display") for formula in formulas] == ["inline", "block", "block"]
    assert "$" not in soup.find("main").get_text()
    drawn = str(formulas[1]).replace("></mspace>", "/>")
    assert f"y</mi>{pages.SPACE}<mi>log</mi>{pages.SPACE}<mi>p" in drawn
    assert "log</mi><mo" in str(formulas[1])        # log(1-p), without
    assert pages.formula(r"\nonsense{", "inline") == r"<code>\nonsense{</code>"


def test_pictures_are_described(soup, notebook):
    assert [image["alt"] for image in soup.find_all("img")] == ["picture drawn by: plt.plot(x)"]
    assert undescribed(soup) == []
    cell = drawing()
    cell.outputs[0].metadata["image/png"] = dict(alt="a line that rises")
    named = pages.as_page(new_notebook(cells=[cell]))
    assert 'alt="a line that rises"' in named
    assert "text/html" not in notebook.cells[-1].outputs[0].data   # a copy was changed
    silent = BeautifulSoup('<img alt="a figure"><img><img alt="a dog">', "html.parser")
    assert len(undescribed(silent)) == 2


def test_links_lead_to_pages_and_to_the_repository(soup):
    targets = [link["href"] for link in soup.find("h1").find_next("p").find_all("a")]
    assert targets[0] == "02_better_model.html#Summary"
    assert targets[1].startswith("https://github.com/")
    assert targets[1].endswith("/blob/main/nbs/plot/00_figures.ipynb")
    assert targets[2:] == ["#A-page", "https://example.com/x"]
    assert soup.title.string == "A page"


def test_folded_cells_are_left_out():
    folded = new_code_cell("find_kit()", metadata=dict(tags=["hide-input"]))
    assert "find_kit" not in pages.as_page(new_notebook(cells=[folded]))


@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(1200, False), (390, False), (390, True)])
def test_a_page_fits_the_screen(tmp_path, page, chromium, width, dark):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with browser_page(chromium, dark, size=(width, 900)) as tab:
        tab.goto((tmp_path / "page.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        shades = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", shades)[:3])) < 100) == dark


@pytest.mark.slow
def test_nothing_is_cut_off_on_paper(tmp_path, page, chromium):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with browser_page(chromium, dark=True, size=(690, 900)) as tab:   # as wide as A4 in its margins
        tab.goto((tmp_path / "page.html").as_uri())
        tab.emulate_media(media="print")
        cut = tab.evaluate("""() => [...document.querySelectorAll('pre, table, img, p')].filter(
            e => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth + 1
            && e.tagName != 'IMG').map(e => e.outerHTML.slice(0, 80))""")
        assert cut == []
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)", "white")   # not dark


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])
def test_lessons_as_pages(path):
    "Of the outputs as they are stored."
    soup = BeautifulSoup(pages.as_page(nbformat.read(path, 4), path), "html.parser")
    assert requests(soup) == []
    assert undescribed(soup) == []
    assert not re.search(r"\$\$|\\begin\{", soup.find("main").get_text())
    names = {tag["id"] for tag in soup.find_all(id=True)}
    inside = [link["href"][1:] for link in soup.find_all("a", href=re.compile("^#."))]
    assert [name for name in inside if name not in names] == []
