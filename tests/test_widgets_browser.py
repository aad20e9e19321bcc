"""Widgets in JupyterLab, in a real browser: clicks and keys, what the page shows, and the files.

With LESSONKIT_SHOTS=folder, pictures of the page are saved there.
"""
import csv, hashlib, re

import nbformat, psutil, pytest

from jupyter_lab import SECONDS, lab, write_notebook

pytestmark = pytest.mark.slow

CHOICE = """
from lessonkit.widgets.support import frame, InteractiveView, status_line

class Choice(InteractiveView):
    "A list of words, and a line that says which one is chosen."
    def plain(self): return "Words <to> choose from"

    def build(self, widgets):
        words = widgets.Dropdown(description="Word:", options=["first", "dd", "xylophone"])
        said = status_line()
        def say(change): said.value = f"You chose {change.new}"
        words.observe(say, "value")
        return frame([words, said], 'A "choice"')
"""


@pytest.fixture
def expect():
    "Playwright's way to wait until a part of the page is as expected."
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=1000 * SECONDS)
    return expect


# What all widgets share

def test_a_failing_cell_fails_the_test_and_nothing_goes_on(chromium, tmp_path):
    write_notebook(tmp_path / "fails.ipynb", "1 / 0")
    others, family = psutil.Process().children(recursive=True), []
    with pytest.raises(AssertionError, match="division by zero"):
        with lab(tmp_path, chromium) as jupyter:
            jupyter.open("fails.ipynb")
            family += set(psutil.Process().children(recursive=True)).difference(others)
            jupyter.run_all()
    assert len(family) > 3   # the server, a kernel, the browser and what drives it
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_widget_has_all_keys_for_itself(chromium, tmp_path, expect):
    "JupyterLab would delete the cell at d d, cut it at x, and leave it at an arrow."
    write_notebook(tmp_path / "keys.ipynb", CHOICE, "Choice()", "1 + 1")
    with lab(tmp_path, chromium) as jupyter:
        jupyter.open("keys.ipynb")
        jupyter.run_all()
        page = jupyter.page
        words = page.get_by_role("group", name='A "choice"').get_by_label("Word:")
        words.focus()
        for key, chosen in (("ArrowDown", "dd"), ("x", "xylophone"), ("ArrowUp", "dd")):
            page.keyboard.press(key)
            expect(page.get_by_role("status")).to_have_text(f"You chose {chosen}")
        expect(words).to_be_focused()
        page.keyboard.type("dd")
        expect(page.locator(".jp-CodeCell")).to_have_count(3)
        assert jupyter.problems == []


def test_without_ipywidgets_there_are_words_and_advice(chromium, tmp_path, expect):
    none = "import sys\nsys.modules['ipywidgets'] = None"
    write_notebook(tmp_path / "plain.ipynb", none, CHOICE, "Choice()")
    with lab(tmp_path, chromium) as jupyter:
        jupyter.open("plain.ipynb")
        jupyter.run_all()
        shown = jupyter.outputs.last
        expect(shown).to_contain_text("Words <to> choose from")
        expect(shown).to_contain_text("pip install ipywidgets")
        jupyter.save()
    output = nbformat.read(tmp_path / "plain.ipynb", 4).cells[2].outputs[0]
    assert sorted(output.data) == ["text/html", "text/plain"]


# ImageCleaner

CLEANER = """
from lessonkit.all import *

data = ImageData.from_name_re("shapes", r"^(.+)_\\d+", size=24, bs=8)
learn = Learner(data, show=False, cache=False)
learn.fit_one_cycle(1)
cleaner = ImageCleaner(learn, k=5)
cleaner
"""
CORRECTED = """
corrected = data.corrected(cleaner.corrections)
print(len(data.valid.paths) - len(corrected.valid.paths), "dropped")
"""


@pytest.fixture
def shapes(tmp_path):
    "A folder of drawn shapes, and a notebook that cleans their labels."
    from lessonkit.data import sample
    write_notebook(tmp_path / "clean.ipynb", CLEANER, CORRECTED)
    return sample.tiny(tmp_path / "shapes")


def checksums(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).digest() for p in sorted(folder.iterdir())}


def journal(folder):
    "The lines of the journal: file, action and label."
    with open(folder / "corrections.csv", encoding="utf-8", newline="") as file:
        return [(row["file"], row["action"], row["label"]) for row in csv.DictReader(file)]


class Cleaner:
    "What a user sees of the widget, and can press."

    def __init__(self, page):
        self.page = page
        self.view = page.get_by_role("group", name="Clean the labels of images")
        self.said = self.view.get_by_role("status")
        self.label = self.view.get_by_label("Label:")

    def button(self, name): return self.view.get_by_role("button", name=name, exact=True)

    @property
    def file(self):
        "The name of the file that is shown, from the words of its picture."
        words = self.view.get_by_role("img").get_attribute("alt")
        return re.fullmatch(r"(.+), labeled \w+", words)[1]


def test_edits_are_in_the_journal_and_outlive_the_kernel(chromium, tmp_path, shapes, expect):
    photos = checksums(shapes)
    with lab(tmp_path, chromium) as jupyter:
        jupyter.open("clean.ipynb")
        jupyter.run_all()
        cleaner = Cleaner(jupyter.page)
        expect(cleaner.view).to_contain_text("Image 1 of 5 (0 kept, 0 relabeled, 0 dropped)")
        first = cleaner.file
        cleaner.label.select_option("stripes")
        cleaner.button("Relabel").click()
        expect(cleaner.said).to_contain_text(f"{first}: relabeled as stripes")
        assert journal(tmp_path) == [(first, "relabel", "stripes")]

        second = cleaner.file
        cleaner.button("Drop").click()
        expect(cleaner.said).to_contain_text(f"{second}: dropped")
        cleaner.button("Undo").click()
        expect(cleaner.said).to_have_text(f"Undone: {second} was dropped.")
        expect(cleaner.view).to_contain_text("Image 2 of 5 (0 kept, 1 relabeled, 0 dropped)")
        cleaner.button("Drop").click()
        expect(cleaner.view).to_contain_text("Image 3 of 5 (0 kept, 1 relabeled, 1 dropped)")
        assert journal(tmp_path) == [(first, "relabel", "stripes"), (second, "drop", ""),
                                     (second, "undo", ""), (second, "drop", "")]

        jupyter.restart_kernel()
        jupyter.run_all()
        expect(cleaner.view).to_contain_text("Image 3 of 5 (0 kept, 1 relabeled, 1 dropped)")
        expect(jupyter.outputs.last).to_have_text("1 dropped")
        for file, words in ((second, "dropped"), (first, "relabeled as stripes")):
            cleaner.button("Back").click()
            expect(cleaner.view.locator(".lessonkit-badge")).to_have_text(words)
            assert cleaner.file == file
        jupyter.keep_shot("cleaner_light")
        assert jupyter.problems == []
    assert checksums(shapes) == photos


def tab_to(page, target, most=40):
    "Press Tab until the focus is on `target`."
    for _ in range(most):
        if target.evaluate("element => element === document.activeElement"): return
        page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    raise AssertionError(f"after {most} times Tab, the focus is on {focused}")


def test_the_keyboard_is_enough_to_clean(chromium, tmp_path, shapes, expect):
    with lab(tmp_path, chromium, dark=True) as jupyter:
        jupyter.open("clean.ipynb")
        page, cleaner = jupyter.page, Cleaner(jupyter.page)
        page.keyboard.press("Control+Enter")   # runs the first cell
        jupyter.wait_for_kernel()
        expect(cleaner.view).to_contain_text("Image 1 of 5")
        first = cleaner.file
        tab_to(page, cleaner.label)
        page.keyboard.type("squ")
        expect(cleaner.label).to_have_value("square")
        tab_to(page, cleaner.button("Relabel"))
        page.keyboard.press("Enter")
        expect(cleaner.said).to_contain_text(f"{first}: relabeled as square")
        second = cleaner.file
        tab_to(page, cleaner.button("Drop"))
        page.keyboard.press("Space")
        expect(cleaner.said).to_contain_text(f"{second}: dropped")
        tab_to(page, cleaner.button("Undo"))
        page.keyboard.press("Enter")
        expect(cleaner.said).to_have_text(f"Undone: {second} was dropped.")
        jupyter.keep_shot("cleaner_dark")
        expect(page.locator(".jp-CodeCell")).to_have_count(2)   # no key went to JupyterLab
        assert journal(tmp_path)[0] == (first, "relabel", "square")
        assert jupyter.problems == []
