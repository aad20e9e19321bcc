"""Which lessonkit the tests see."""
import os
from pathlib import Path

import lessonkit

ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header(config): return f"lessonkit {lessonkit.__version__} from {Path(lessonkit.__file__).parent}"


def pytest_configure(config):
    "`make test` tests the wheel: the repository's own folder must not have slipped in front of it."
    if os.environ.get("LESSONKIT_TEST_WHEEL") and (Path(lessonkit.__file__).parent == ROOT / "lessonkit" or "site-packages" not in lessonkit.__file__):
        raise RuntimeError(f"these tests are of the wheel, but lessonkit comes from {lessonkit.__file__}")
