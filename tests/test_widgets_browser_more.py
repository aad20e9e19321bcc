"""TryIt, LRPicker and LivePlot in JupyterLab: what the page shows, and what the kernel gets."""
import re

import nbformat
import pytest
from PIL import Image

from jupyter_lab import lab, SECONDS, write_notebook
from lessonkit.data import sample
from lessonkit.plot.charts import rate_text

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=1000 * SECONDS)
pytestmark = pytest.mark.slow
THEMES = pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.nightly)])

LEARNER = r"""
from lessonkit.all import *
data = ImageData.from_name_re("shapes", r"^(.+)_\d+", size=32, bs=8, seed=1)
learn = Learner(data, "timm:test_efficientnet", weights=None, show=False)
"""

FINDER = """
import numpy as np
from lessonkit.all import LRPicker
from lessonkit.train.lr_finder import LRFind, suggest_rates
rates = np.geomspace(1e-7, 10, 100, endpoint=False)[:92]
corners = [-7, -4.5, -3, -1.3, -.5, .2], [2.5, 2.4, 1.7, .9, 1.3, 5]
losses = np.interp(np.log10(rates), *corners) + .02 * np.sin(np.arange(92))
suggested = suggest_rates(rates, losses, 10)
found = LRFind(tuple(rates), tuple(losses), **suggested, skip=(10, 5))
picker = LRPicker(found)
"""


@pytest.fixture
def folder(tmp_path):
    "A folder with a few drawn shapes."
    sample.tiny(tmp_path / "shapes", n=40)
    return tmp_path


def theme(dark):
    "For the name of a picture."
    return "dark" if dark else "light"


def saved_outputs(path):
    "The outputs of all cells in a saved notebook."
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def printed(jupyter, code):
    "What the kernel prints for a line of code, which becomes the last cell."
    jupyter.page.evaluate("""code => {
        const {model} = window.jupyterapp.shell.currentWidget.content;
        model.sharedModel.addCell({cell_type: 'code', source: code});
    }""", f"print({code})")
    jupyter.page.evaluate("""() => {
        const {content} = window.jupyterapp.shell.currentWidget;
        content.activeCellIndex = content.model.cells.length - 1;
    }""")
    jupyter.command("notebook:run-cell")
    jupyter.wait_for_kernel()
    return jupyter.outputs.last.inner_text().strip()


# ---- LRPicker

@THEMES
def test_a_learning_rate_is_picked(chromium, tmp_path, dark):
    write_notebook(tmp_path / "pick.ipynb", FINDER + "picker")
    with lab(tmp_path, chromium, dark) as jupyter:
        jupyter.open("pick.ipynb")
        jupyter.run_all()
        view = jupyter.page.locator(".lessonkit-view")
        handle = view.get_by_role("slider")
        chart = view.locator("svg[role=img]")
        expect(chart).to_have_attribute("aria-label", re.compile("finder's curve with the rate"))
        start = float(printed(jupyter, "picker.lr"))
        handle.focus()
        expect(view.get_by_role("slider", name="learning rate")).to_be_focused()
        for _ in range(10): jupyter.page.keyboard.press("ArrowRight")
        # ten steps of the slider, and up to one more to its nearest step
        moved = [rate_text(start * 10 ** (.02 * steps)) for steps in (9, 9.5, 10, 10.5, 11)]
        words = "|".join(f"rate {rate}," for rate in moved)
        expect(chart).to_have_attribute("aria-label", re.compile(words))
        assert rate_text(float(printed(jupyter, "picker.lr"))) in moved
        button = view.get_by_role("button", name=re.compile("minimum"))
        rate = button.inner_text().split()[1]
        button.click()
        expect(chart).to_have_attribute("aria-label", re.compile(f"rate {rate},"))
        expect(view.get_by_role("status")).to_have_text(f"learning rate {rate}")
        jupyter.keep_shot(f"lr_picker_{theme(dark)}")
        assert jupyter.problems == []


# ---- TryIt

def upload(view, file):
    "Choose a file in the dialog that the button opens; returns the page's input element."
    with view.page.expect_file_chooser() as dialog:
        view.get_by_role("button", name=re.compile("Choose a photo")).click()
    dialog.value.set_files(file)
    return dialog.value.element

TRY = LEARNER + """
learn.fit_one_cycle(2, 1e-2)
tryit = TryIt(learn, threshold=.4)
tryit
"""


@THEMES
def test_a_photo_is_tried(chromium, folder, dark):
    write_notebook(folder / "try.ipynb", TRY)
    photo = sorted((folder / "shapes").glob("circle*"))[0]
    large = folder / "IMG_0001 é.jpg"
    Image.open(photo).convert("RGB").resize((3000, 4000)).save(large, quality=95)
    (folder / "notes.jpg").write_text("this is no image")
    with lab(folder, chromium, dark) as jupyter:
        jupyter.open("try.ipynb")
        jupyter.run_all()
        view = jupyter.page.locator(".lessonkit-view")
        assert upload(view, large).get_attribute("accept") == "image/*"
        words = re.compile("IMG_0001 é.jpg.*heat map")
        expect(view.locator("img")).to_have_attribute("alt", words)
        said = view.locator("h3").inner_text()
        assert said == printed(jupyter, "tryit.answer.text")
        assert view.locator("tr").count() == 3
        jupyter.keep_shot(f"try_it_{theme(dark)}")

        view.get_by_label("heat map").uncheck()
        expect(view.locator("img")).not_to_have_attribute("alt", re.compile("heat map"))
        for _ in range(2):   # it goes on after that, also with a file that it had before
            upload(view, folder / "notes.jpg")
            expect(view).to_contain_text("notes.jpg can't be used")
            expect(view.locator("img")).to_have_count(0)
            upload(view, photo)
            expect(view.locator("img")).to_have_attribute("alt", re.compile(photo.name))
        assert jupyter.problems == []


def test_a_doubtful_photo_gets_no_answer(chromium, folder):
    write_notebook(folder / "try.ipynb", TRY.replace("threshold=.4", "threshold=1"))
    with lab(folder, chromium) as jupyter:
        jupyter.open("try.ipynb")
        jupyter.run_all()
        view = jupyter.page.locator(".lessonkit-view")
        upload(view, next((folder / "shapes").glob("*")))
        expect(view.locator("h3")).to_have_text("I don't know")
        expect(view).to_contain_text("Below 1, there is no answer.")
        jupyter.keep_shot("try_it_unsure_light")


# ---- LivePlot

LIVE = """
class Waits:
    "An observer that waits in the first step of epoch 5, until a file is there."
    steps = 0
    def step(self, step, record):
        import time
        self.steps += 1
        while self.steps == 21 and not Path("go on").exists(): time.sleep(.05)

live = LivePlot(learn, every=0)
with live:
    learn.trainer.observers.append(Waits())
    learn.fit_one_cycle(6, 1e-2)
"""


@THEMES
def test_a_plot_lives_and_stays(chromium, folder, dark):
    write_notebook(folder / "live.ipynb", LEARNER.replace("show=False", "show=True") + LIVE)
    with lab(folder, chromium, dark) as jupyter:
        jupyter.open("live.ipynb")
        jupyter.page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        charts = jupyter.page.locator(".jp-Notebook svg[role=img]")
        words = re.compile("loss after 21 of 24 steps: .*, validation ")
        expect(charts.first).to_have_attribute("aria-label", words)
        words = re.compile("error_rate after epoch 5")
        expect(charts.nth(1)).to_have_attribute("aria-label", words)
        jupyter.keep_shot(f"live_plot_training_{theme(dark)}")
        (folder / "go on").touch()
        picture = jupyter.page.locator(".jp-Notebook img[alt]")
        expect(picture).to_have_attribute("alt", re.compile("loss over 24 steps"))
        assert charts.count() == 0
        jupyter.wait_for_kernel()
        jupyter.keep_shot(f"live_plot_end_{theme(dark)}")
        jupyter.save()
        assert jupyter.problems == []
    shown = [output.data.get("text/html", "") for output in saved_outputs(folder / "live.ipynb")
             if output.output_type == "display_data"]
    assert sum("<img alt=\"loss over 24 steps" in html for html in shown) == 1
    assert not any("<svg" in html for html in shown)


def test_a_stop_button_leaves_the_picture(chromium, folder):
    write_notebook(folder / "live.ipynb", LEARNER + LIVE)
    with lab(folder, chromium) as jupyter:
        jupyter.open("live.ipynb")
        jupyter.page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        charts = jupyter.page.locator(".jp-Notebook svg[role=img]")
        expect(charts.first).to_have_attribute("aria-label", re.compile("loss after 21 of 24"))
        jupyter.command("notebook:interrupt-kernel")
        (folder / "go on").touch()
        picture = jupyter.page.locator(".jp-Notebook img[alt]")
        expect(picture).to_have_attribute("alt", re.compile("loss over 2[12] steps"))
