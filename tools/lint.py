"""Ruff on the package, the notebooks, the tests and the tools: `python tools/lint.py`.

pyproject.toml says which rules. The exported package may have long lines: the notebooks it comes
from may not, and nbdev wraps the `__all__` that it writes at 120 characters.
"""
import json, subprocess, sys
from collections import defaultdict
from pathlib import Path

from allowed import ROOT, without_allowed

FOLDERS = ["lessonkit", "nbs", "data", "tests", "tools"]
# Not rewritten yet. When you rewrite a file, remove it: the list may not get longer.
LONG_LINES_ALLOWED = [
]


def ruff(root):
    "What ruff reports: a list of dicts (filename, code, message, location, cell)."
    folders = [folder for folder in FOLDERS if (root / folder).exists()]
    command = ["ruff", "check", "--no-cache", "--output-format", "json", *folders]
    run = subprocess.run([sys.executable, "-P", "-m", *command],
                         cwd=root, text=True, encoding="utf-8", capture_output=True)
    if run.returncode > 1:
        raise RuntimeError(f"ruff failed: {run.stderr}")
    return json.loads(run.stdout)


def lint(root, allowed=LONG_LINES_ALLOWED):
    "Undefined and unused names, and lines of more than 100 characters outside `allowed`."
    problems = []
    too_long = defaultdict(list)
    for hit in ruff(root):
        name = Path(hit["filename"]).relative_to(root).as_posix()
        cell = f"cell {hit['cell']}, " if hit.get("cell") else ""
        problem = f"{name}: {cell}line {hit['location']['row']}: {hit['code']} {hit['message']}"
        if hit["code"] == "E501":
            too_long[name].append(problem)
        else:
            problems.append(problem)
    return problems + without_allowed(too_long, allowed, "LONG_LINES_ALLOWED", root)


if __name__ == "__main__":
    problems = lint(ROOT)
    print("\n".join(problems) or "ruff: no problem")
    sys.exit(bool(problems))
