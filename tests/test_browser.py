"""The browser that tests of pages use. Where there is none they are skipped; in CI they fail."""
import io
import json
import re
import subprocess
from html import unescape

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_the_browser_runs_a_page(chromium, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p id=p></p><script>document.getElementById('p').append(6 * 7)</script>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    assert '<p id="p">42</p>' in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_exported_pages_keep_the_words_of_a_figure(chromium, tmp_path):
    "JupyterLab and nbconvert drop a picture's metadata; an <img> with alt and width gets through."
    import nbformat
    from nbconvert import HTMLExporter

    from lessonkit.plot.figures import show_images
    fig = show_images([np.full((30, 40, 3), 128, np.uint8)], ['$5 "a" <b> & caf\udce9'])
    content = {"text/html": fig.html(), "text/plain": fig.alt}
    output = nbformat.v4.new_output("display_data", content)
    cell = nbformat.v4.new_code_cell("fig", outputs=[output])
    html, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    page = tmp_path / "page.html"
    script = ("<p id=p></p><script>const i = document.querySelector('img[alt]');"
              "document.getElementById('p').append(JSON.stringify([i.alt, i.width]))</script>")
    page.write_text(html.replace("</body>", f"{script}</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    shown = re.search('<p id="p">(.*?)</p>', done.stdout).group(1)
    words, width = json.loads(unescape(shown))
    assert words == r'1 image: $5 "a" <b> & caf\xe9'
    drawn = Image.open(io.BytesIO(fig.image()[1]))
    assert drawn.width == pytest.approx(2 * width, abs=1)
