"""The browser that tests of pages use. Where there is none they are skipped; in CI they fail."""
import subprocess

import pytest


@pytest.mark.slow
def test_the_browser_runs_a_page(chromium, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p id=p></p><script>document.getElementById('p').append(6 * 7)</script>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    assert '<p id="p">42</p>' in done.stdout, done.stderr[-2000:]
