"""Which lessonkit the tests see, which tests this tier runs (tiers.py), and the last lines."""
import os, shutil, signal, sys, time
from pathlib import Path

import pytest
from hypothesis import settings

import changed
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
    # A job in the background, as `nohup make test &`, ignores Ctrl-C; some tests press it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    "Leave out what is not for this tier, and begin with the lessons: they take longest."
    left_out = [item for item in items if any(map(item.get_closest_marker, LEFT_OUT))]
    if left_out: config.hook.pytest_deselected(items=left_out)
    kept = [item for item in items if item not in left_out]
    items[:] = sorted(kept, key=lambda item: "test_lesson" not in item.name)


def pytest_runtest_setup(item):
    "Tests marked `gpu` of a module with a DEVICE also run on the one it names (test_gpu.py)."
    if item.get_closest_marker("gpu") and getattr(item.module, "DEVICE", "cuda") == "cuda":
        import torch
        if not torch.cuda.is_available(): pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def torch_is_as_before():
    "Modes of torch that a test leaves on are its own failure, and not that of those after it."
    yield
    torch = sys.modules.get("torch")
    if torch is None: return
    found = dict(gradients=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(),
                 autocast=torch.is_autocast_enabled("cpu"))
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)
    assert found == dict(gradients=True, inference=False, autocast=False)


@pytest.fixture(scope="session")
def chromium():
    "The browser, to be started with --headless and --no-sandbox (root may not start it otherwise)."
    found = list(filter(None, map(shutil.which, BROWSERS)))
    if found: return found[0]
    missing = "there is no chromium: apt-get install chromium"
    if os.environ.get("CI") == "true": pytest.fail(missing)
    pytest.skip(missing)


def name_of_notebook(report): return report.nodeid.split("[")[1].rstrip("]")


def report_notebooks(terminalreporter, reports):
    "The seconds of each notebook; in `make quick`, also the changed ones that did not run."
    terminalreporter.section("seconds of each notebook")
    for report in sorted(reports, key=lambda report: -report.duration):
        terminalreporter.write_line(f"{report.duration:7.1f} {report.nodeid.split('::')[1]}")
    modules = [report for report in reports if "::test_module[" in report.nodeid]
    changed.keep_measured(ROOT, {name_of_notebook(r): round(r.duration, 1) for r in modules})
    if TIER != "quick": return
    left = changed.notebooks(ROOT) - set(map(name_of_notebook, reports))
    names = ", ".join(sorted(left))
    if left: terminalreporter.write_line(f"changed, but left to make test: {names}")


def pytest_terminal_summary(terminalreporter, config):
    "The notebooks, and the tier in one line."
    stats = terminalreporter.stats
    reports = [report for name in ("passed", "failed") for report in stats.get(name, [])]
    calls = [r for r in reports if r.when == "call" and "test_notebooks.py::" in r.nodeid]
    notebooks = [r for r in calls if ".ipynb]" in r.nodeid]
    if notebooks: report_notebooks(terminalreporter, notebooks)
    minutes = (time.monotonic() - began) / 60
    counts = ", ".join(f"{len(stats.get(name, []))} {name}"
                       for name in ("passed", "failed", "error", "skipped"))
    terminalreporter.section("tier")
    terminalreporter.write_line(f"{TIER}: {minutes:.1f} minutes (should take at most "
                                f"{MINUTES[TIER]} on two cores): {counts}")
