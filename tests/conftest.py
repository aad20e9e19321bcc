"""Which lessonkit the tests see, which tests this tier runs (tiers.py), and the last lines."""
import os, shutil, time
from pathlib import Path

import pytest
from hypothesis import settings

import lessonkit
from tiers import LEFT_OUT, MINUTES, SHARE, TIER

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
began = time.monotonic()

settings.register_profile(TIER, max_examples=round(100 * SHARE), deadline=None)
settings.load_profile(TIER)


def pytest_report_header(config):
    return f"tier {TIER}, lessonkit {lessonkit.__version__} from {Path(lessonkit.__file__).parent}"


def pytest_configure(config):
    "`make test` tests the wheel: the repository's own folder must not have slipped in front of it."
    folder = Path(lessonkit.__file__).parent
    installed = folder != ROOT / "lessonkit" and "site-packages" in folder.parts
    if os.environ.get("LESSONKIT_TEST_WHEEL") and not installed:
        raise RuntimeError(f"these tests are of the wheel, but lessonkit comes from {folder}")


def pytest_collection_modifyitems(config, items):
    "Leave out what is not for this tier, and begin with the lessons: they take longest."
    left_out = [item for item in items if any(map(item.get_closest_marker, LEFT_OUT))]
    if left_out: config.hook.pytest_deselected(items=left_out)
    kept = [item for item in items if item not in left_out]
    items[:] = sorted(kept, key=lambda item: "test_lesson" not in item.name)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch
        if not torch.cuda.is_available(): pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def chromium():
    "The browser, to be started with --headless and --no-sandbox (root may not start it otherwise)."
    found = list(filter(None, map(shutil.which, BROWSERS)))
    if found: return found[0]
    missing = "there is no chromium: apt-get install chromium"
    if os.environ.get("CI") == "true": pytest.fail(missing)
    pytest.skip(missing)


def pytest_terminal_summary(terminalreporter, config):
    "The seconds of each notebook, and the tier in one line."
    stats = terminalreporter.stats
    reports = [report for name in ("passed", "failed") for report in stats.get(name, [])]
    calls = [r for r in reports if r.when == "call" and "test_notebooks.py::" in r.nodeid]
    notebooks = [r for r in calls if ".ipynb]" in r.nodeid]
    if notebooks: terminalreporter.section("seconds of each notebook")
    for report in sorted(notebooks, key=lambda report: -report.duration):
        terminalreporter.write_line(f"{report.duration:7.1f} {report.nodeid.split('::')[1]}")
    minutes = (time.monotonic() - began) / 60
    counts = ", ".join(f"{len(stats.get(name, []))} {name}"
                       for name in ("passed", "failed", "error", "skipped"))
    terminalreporter.section("tier")
    terminalreporter.write_line(f"{TIER}: {minutes:.1f} minutes (should take at most "
                                f"{MINUTES[TIER]} on two cores): {counts}")
