"""Is the project ready for this tag? `python tools/release.py v0.1.0`, before the release is built.

Uses the standard library only.
"""
import re, sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(root, tag):
    "What contradicts the `tag`: version numbers, or a changelog that doesn't tell of it."
    settings = ConfigParser()
    settings.read(root / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    package = (root / "lessonkit/__init__.py").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but settings.ini says {version}: tag v{version}")
    if f'__version__ = "{version}"' not in package:
        found.append(f"lessonkit/__init__.py does not say {version}: make notebooks")
    if not re.search(rf"^version: {re.escape(version)}$", citation, re.M):
        found.append(f"CITATION.cff does not say {version}")
    heading = re.search(rf"^## {re.escape(version)}\b(.*)$", changelog, re.M)
    if not heading:
        found.append(f"CHANGELOG.md has no section {version}")
    elif "unreleased" in heading[1]:
        found.append(f"CHANGELOG.md calls {version} unreleased: write the date")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = problems(ROOT, sys.argv[1])
    print("\n".join(found) or f"ready for {sys.argv[1]}")
    sys.exit(bool(found))
