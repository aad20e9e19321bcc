"""Ruff on the package, the notebooks, the tests and the tools: `python tools/lint.py`.

pyproject.toml says which rules. The exported package may have long lines: the notebooks it comes
from may not, and nbdev wraps the `__all__` that it writes at 120.
"""
import json, subprocess, sys
from collections import defaultdict
from pathlib import Path

from allowed import ROOT, without_allowed

FOLDERS = ["lessonkit", "nbs", "data", "tests", "tools"]
# Not rewritten yet. Remove a file from the list when you have: it may not get longer.
LONG_LINES_ALLOWED = [
    "data/resnet18_distilled/make.py",
    "nbs/00_sample.ipynb",
    "nbs/01_data.ipynb",
    "nbs/02_augment.ipynb",
    "nbs/03_model.ipynb",
    "nbs/04_schedule.ipynb",
    "nbs/05_train.ipynb",
    "nbs/06_precompute.ipynb",
    "nbs/07_lr_finder.ipynb",
    "nbs/08_predict.ipynb",
    "nbs/09_interpret.ipynb",
    "nbs/09b_calibrate.ipynb",
    "nbs/09c_explain.ipynb",
    "nbs/09d_duplicates.ipynb",
    "nbs/10_plot.ipynb",
    "nbs/10b_plot_pictures.ipynb",
    "nbs/10c_plot_scores.ipynb",
    "nbs/11_learner.ipynb",
    "nbs/12_datasets.ipynb",
    "nbs/14_exercises.ipynb",
    "nbs/15_distil.ipynb",
    "nbs/20_all.ipynb",
    "nbs/core/00_testing.ipynb",
    "tests/benchmarks/accuracy.py",
    "tests/benchmarks/architectures.py",
    "tests/benchmarks/bare.py",
    "tests/benchmarks/common.py",
    "tests/benchmarks/ours.py",
    "tests/benchmarks/peer.py",
    "tests/benchmarks/pets_difficulty.py",
    "tests/benchmarks/run.py",
    "tests/benchmarks/solar.py",
    "tests/benchmarks/time_to_accuracy.py",
    "tests/conftest.py",
    "tests/making.py",
    "tests/resuming.py",
    "tests/test_calibrate.py",
    "tests/test_datasets.py",
    "tests/test_distil.py",
    "tests/test_duplicates.py",
    "tests/test_exercises.py",
    "tests/test_exercises_02.py",
    "tests/test_exercises_03.py",
    "tests/test_exercises_05.py",
    "tests/test_explain.py",
    "tests/test_learner.py",
    "tests/test_lr_finder.py",
    "tests/test_model.py",
    "tests/test_mutations.py",
    "tests/test_notebooks.py",
    "tests/test_plot.py",
    "tests/test_plot_pictures.py",
    "tests/test_plot_scores.py",
    "tests/test_precompute.py",
    "tests/test_predict.py",
    "tests/test_project.py",
    "tests/test_resume.py",
    "tests/test_stop.py",
    "tests/test_wheel.py",
    "tools/checks.py",
    "tools/run_tests.py",
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
