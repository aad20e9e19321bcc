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
    ("cosine starts where it should stop", "train/schedules",
     "stop + (start - stop) / 2 * (1 + math.cos(math.pi * t))",
     "start + (stop - start) / 2 * (1 + math.cos(math.pi * t))",
     ["tests/test_schedule.py::test_positions_give_the_same_as_counting"]),
    ("restarts miss their step in the last digit", "train/schedules",
     "float(Fraction(epochs) / ends[-1])", "float(epochs) * (1 / ends[-1])",
     ["tests/test_schedule.py::test_every_cycle_begins_at_its_peak_at_any_number_of_steps"]),
    ("the finder leaves gradients behind", "lr_finder", "for p, grad in grads: p.grad = grad", "pass", ["tests/test_lr_finder.py::test_a_whole_run_leaves_nothing", "tests/test_lr_finder.py::test_nothing_is_left_whatever_happens"]),
    ("a skipped step moves the schedule", "train/loop", "moved += stepped", "moved += 1",
     ["tests/test_train.py::test_a_skipped_step_does_not_move_the_schedule"]),
    ("every epoch in the same order", "train/loop",
     "loader.batches(seed, fit, epoch, start", "loader.batches(seed, fit, 0, start",
     ["tests/test_train.py::test_every_epoch_has_another_order"]),
    ("training that is resumed begins its epoch anew", "train/loop",
     "first = max(start, epoch * per_epoch)", "first = epoch * per_epoch",
     ["tests/test_train.py::test_start_gives_each_step_the_same_images"]),
    ("gradients are kept from step to step", "train/engine",
     "optimizer.zero_grad(set_to_none=True)", "pass",
     ["tests/test_train.py::test_clip_limits_the_step"]),
    ("features outlive the pictures they are of", "learner", "self._features[0] == key and self._features[1] is self.data", "self._features[0] == key", ["tests/test_learner.py::test_features_are_never_stale"]),
    ("training that is taken up begins with a new optimizer", "learner", "if isinstance(self._under_way, dict): put_training_state(optimizer, engine, self._under_way)", "if isinstance(self._under_way, dict): pass",
     ["tests/test_resume.py::test_every_way_to_train[sgd]"]),
    ("skipped steps are forgotten", "learner", "skipped=record.skipped, mix", "skipped=0, mix", ["tests/test_resume.py::test_every_way_to_train[overflows]"]),
    ("a checkpoint without the best epoch", "learner", 'tensors |= {f"best.{k}": v for k, v in self._best.items()}', "pass", ["tests/test_resume.py::test_checkpoints_after_epochs_only"]),
    ("smallest losses first", "results/selections",
     "preds.losses.sort(descending=largest", "preds.losses.sort(descending=not largest",
     ["tests/test_selections.py::test_top_losses_are_sorted_and_stable"]),
    ("most certain first", "results/selections", "return idx[values[idx].sort(stable=True)",
     "return idx[values[idx].sort(stable=True, descending=True)",
     ["tests/test_selections.py::test_selections_agree_with_plain_sorting"]),
    ("of two classes by entropy", "results/selections",
     "return (probs[:, 1].double() - .5).abs()",
     "return -torch.special.entr(probs.double()).sum(1)",
     ["tests/test_selections.py"
      "::test_of_two_classes_the_most_uncertain_is_nearest_to_one_half"]),
    ("dogs among the most correct cats", "results/selections",
     "(preds.targets == a) & (preds.pred == p)", "preds.pred == p",
     ["tests/test_selections.py::test_selections_agree_with_plain_sorting"]),
    ("gained and lost swapped", "results/intervals",
     "gained, lost = (now & ~was)", "lost, gained = (now & ~was)",
     ["tests/test_intervals.py::test_compare_errors_is_mcnemars_exact_test"]),
    ("a temperature multiplies", "results/calibration",
     "log_probs / check_temperature(temperature)", "log_probs * check_temperature(temperature)",
     ["tests/test_calibrate.py::test_a_temperature_divides_the_logits"]),
    ("temperatures are judged on their own images", "results/calibration",
     "search_temperature(log_probs[chosen], targets[chosen])",
     "search_temperature(log_probs, targets)",
     ["tests/test_calibrate.py::test_no_image_influences_its_own_temperature"]),
    ("a bias keeps its temperature", "results/calibration",
     "for p in last.parameters(): p.div_(temperature)", "last.weight.div_(temperature)",
     ["tests/test_calibrate.py::test_a_folded_temperature_is_the_applied_one"]),
    ("the hook stays", "results/explain", "        hook.remove()\n", "",
     ["tests/test_explain.py::test_the_hook_is_removed_and_the_modes_are_restored"]),
    ("places against count as places for", "results/explain",
     "activations.detach()).relu()", "activations.detach()).abs()",
     ["tests/test_explain.py::test_by_hand"]),
    ("pairs of later blocks misplaced", "duplicates", "pairs.append(at + start)", "pairs.append(at)", ["tests/test_duplicates.py::test_close_pairs_are_all_close_pairs"]),
    ("half as near", "duplicates", "close_pairs(left, 64 - 2 * near, right)", "close_pairs(left, 64 - near, right)", ["tests/test_duplicates.py::test_near_draws_the_line"]),
    ("the fixed crop counts for less than beta", "results/tta",
     "[(1 - self.beta) / n] * n", "[1 - self.beta] * n",
     ["tests/test_predict.py::test_the_average_is_the_formula"]),
    ("mirrored although training did not", "results/tta",
     "augment is not None and augment.mirrors", "True",
     ["tests/test_predict.py::test_corners_are_mirrored_only_where_training_mirrors"]),
    ("all random views are the same", "results/tta",
     'seeded_rng(seed, "tta", k, number)', 'seeded_rng(seed, "tta", 0, number)',
     ["tests/test_predict.py"
      "::test_random_views_differ_and_do_not_depend_on_how_many_there_are"]),
    ("black images for unreadable files", "results/predict", "if i not in failed]", "if i >= 0]",
     ["tests/test_predict.py::test_unreadable_files_are_left_out_with_a_single_warning"]),
    ("all views are the first", "train/engine",
     "view(batch, number) for view in", "views_of_each[0](batch, number) for view in",
     ["tests/test_train.py::test_each_image_is_opened_once_for_all_views"]),
    ("groups are divided", "data", "return np.flatnonzero(np.isin(groups, order[:taken]))", "return np.sort(order[:taken])", ["tests/test_data.py::test_groups_stay_whole"]),
    ("the largest probability said to be the actual class's", "plot_pictures", "_number(cols['probability_actual'][i])", "_number(cols['probability'][i])", ["tests/test_plot_pictures.py::test_the_largest_probability_is_never_said_to_be_anothers"]),
    ("heat laid over another picture", "plot_pictures", "heat = heat(np.atleast_1d(", "heat = heat(np.sort(", ["tests/test_plot_pictures.py::test_heat_is_laid_over_the_picture_it_is_of"]),
    ("shares of columns for shares of rows", "plot_scores", "np.maximum(n, 1)[:, None]", "np.maximum(n, 1)", ["tests/test_plot_scores.py::test_matrix_cells"]),
    ("the smallest confusions called out", "plot_scores", "sorted((-values[i, j], -cm[i, j], i, j)", "sorted((values[i, j], -cm[i, j], i, j)", ["tests/test_plot_scores.py::test_matrix_of_many_classes_calls_out_the_largest"]),
    ("divergence in the other direction", "distill", "F.kl_div(q, p, reduction", "F.kl_div(p, q, reduction", ["tests/test_distil.py::test_loss_by_hand"]),
    ("a distillation taken up begins its epoch anew", "distill", "todo = range(start, len(indices))", "todo = range(len(indices))", ["tests/test_distil.py::test_killed_and_taken_up_equals_undisturbed"]),
    ("training folder for validation folder", "datasets", 'label, part == "valid") for part', 'label, part == "train") for part', ["tests/test_datasets.py::test_dogs_and_cats_in_each_form"]),
    ("confusion matrix on its side", "results/scores",
     "preds.targets*c + preds.pred", "preds.pred*c + preds.targets",
     ["tests/test_scores.py::test_the_confusion_matrix_is_sklearns"]),
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
