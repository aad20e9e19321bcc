"""Do the tests notice when the engine is wrong? Each mutation is seeded in a copy of the package; a test must fail.

A row of the table: a name, the module, its text (there exactly once), the wrong text, and the tests that must notice, by
their pytest ids. `tests/test_notebooks.py::test_module[NAME.ipynb]` is a notebook's own tests. Keep them few and quick:
each runs once on the sound copy and once on the mutated one.
"""
import os, shutil, subprocess, sys
from functools import cache
from pathlib import Path

import pytest

import lessonkit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(lessonkit.__file__).parent

MUTATIONS = [
    # name, module, text, wrong text, tests
    ("cosine starts where it should stop", "schedule", "stop + (start - stop) / 2 * (1 + math.cos(math.pi * t))", "start + (stop - start) / 2 * (1 + math.cos(math.pi * t))",
     ["tests/test_notebooks.py::test_module[04_schedule.ipynb]"]),
    ("restarts miss their step in the last digit", "schedule", "float(Fraction(epochs) / ends[-1])", "float(epochs) * (1 / ends[-1])", ["tests/test_schedule.py::test_every_cycle_begins_at_its_peak_at_any_number_of_steps"]),
    ("the finder leaves gradients behind", "lr_finder", "for p, grad in grads: p.grad = grad", "pass", ["tests/test_lr_finder.py::test_a_whole_run_leaves_nothing", "tests/test_lr_finder.py::test_nothing_is_left_whatever_happens"]),
    ("a skipped step moves the schedule", "train", "moved += stepped", "moved += 1", ["tests/test_train.py::test_a_skipped_step_does_not_move_the_schedule"]),
    ("every epoch in the same order", "train", "loader.batches(seed, fit, epoch, start", "loader.batches(seed, fit, 0, start", ["tests/test_train.py::test_every_epoch_has_another_order"]),
    ("a run taken up begins its epoch anew", "train", "first = max(start, epoch * per_epoch)", "first = epoch * per_epoch", ["tests/test_train.py::test_start_gives_the_step_the_same_picture"]),
    ("gradients are kept from step to step", "train", "optimiser.zero_grad(set_to_none=True)", "pass", ["tests/test_train.py::test_clip_bounds_the_move"]),
    ("features outlive the pictures they are of", "learner", "self._features[0] == key and self._features[1] is self.data", "self._features[0] == key", ["tests/test_learner.py::test_features_are_never_stale"]),
    ("training that is taken up begins with a new optimiser", "learner", "if isinstance(self._under_way, dict): _put_state(optimiser, engine, self._under_way)", "if isinstance(self._under_way, dict): pass",
     ["tests/test_resume.py::test_every_way_to_train[sgd]"]),
    ("skipped steps are forgotten", "learner", "skipped=record.skipped, mix", "skipped=0, mix", ["tests/test_resume.py::test_every_way_to_train[overflows]"]),
    ("a checkpoint without the best epoch", "learner", 'tensors |= {f"best.{k}": v for k, v in self._best.items()}', "pass", ["tests/test_resume.py::test_checkpoints_after_epochs_only"]),
    ("smallest losses first", "interpret", "preds.losses.sort(descending=largest", "preds.losses.sort(descending=not largest", ["tests/test_interpret.py::test_top_losses"]),
    ("most certain first", "interpret", "margin(preds).sort(stable=True)", "margin(preds).sort(stable=True, descending=True)", ["tests/test_interpret.py::test_most_uncertain"]),
    ("confusion matrix on its side", "interpret", "preds.targets*c + preds.probs.argmax(1)", "preds.probs.argmax(1)*c + preds.targets", ["tests/test_interpret.py::test_accuracy_and_matrix_agree_with_sklearn"]),
]


def run(package_folder, tests):
    "pytest's exit code with the package in `package_folder` before every other: 0 passed, 1 a test failed, more: it did not come to testing."
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(package_folder), str(ROOT / "tools")]), PYTHONDONTWRITEBYTECODE="1")
    for name in ("COVERAGE_PROCESS_START", "LESSONKIT_TEST_WHEEL"): env.pop(name, None)   # the copy is neither the wheel nor to be counted
    done = subprocess.run([sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", *tests], cwd=ROOT, env=env, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    def copy():
        folder = tmp_path_factory.mktemp("copy")
        shutil.copytree(PACKAGE, folder / "lessonkit", ignore=shutil.ignore_patterns("__pycache__"))
        return folder
    return copy


@pytest.fixture(scope="module")
def sound(copies):
    folder = copies()
    return cache(lambda tests: run(folder, tests))


@pytest.mark.parametrize("name, module, text, wrong, tests", MUTATIONS, ids=[m[0].replace(" ", "-") for m in MUTATIONS])
def test_mutation_is_noticed(name, module, text, wrong, tests, copies, sound):
    folder = copies()
    path = folder / "lessonkit" / f"{module}.py"
    source = path.read_text()
    assert source.count(text) == 1, f"the text of {name!r} is in {module} {source.count(text)} times"
    path.write_text(source.replace(text, wrong))
    compile(path.read_text(), path, "exec")   # it shall fail a test, not fail to import
    status, out = sound(tuple(tests))
    assert status == 0, f"fails without the mutation:\n{out[-3000:]}"
    status, out = run(folder, tests)
    assert status == 1, f"{name}: nobody noticed (pytest said {status}):\n{out[-3000:]}"


def test_the_copy_is_what_is_tested(copies):
    folder = copies()
    (folder / "probe.py").write_text("def test(): import lessonkit; assert lessonkit.__file__.startswith(%r)" % str(folder))
    assert run(folder, [folder / "probe.py"])[0] == 0
