"""Mistakes that the tests have to notice: tests/test_mutations.py makes each of them in a copy.

A mutation is a name, a module (such as "train/schedules"), text that occurs in the module exactly
once, the wrong text, and the tests that must fail, by their pytest ids.
`tests/test_notebooks.py::test_module[NAME.ipynb]` is a notebook's own tests. List few tests, and
quick ones. Before the mutations, all of them run once on a sound copy.
"""

# name, module, text, wrong text, tests
MUTATIONS = [
    ("cosine starts where it should stop",
     "train/schedules",
     "stop + (start - stop) / 2 * (1 + math.cos(math.pi * t))",
     "start + (stop - start) / 2 * (1 + math.cos(math.pi * t))",
     ["tests/test_schedule.py::test_positions_give_the_same_as_counting"]),

    ("restarts miss their step in the last digit",
     "train/schedules",
     "float(Fraction(epochs) / ends[-1])",
     "float(epochs) * (1 / ends[-1])",
     ["tests/test_schedule.py::test_every_cycle_begins_at_its_peak_at_any_number_of_steps"]),

    ("the finder leaves gradients behind",
     "train/lr_finder",
     "p.grad, p.requires_grad = grad, trains",
     "p.requires_grad = trains",
     ["tests/test_lr_finder.py::test_a_whole_run_leaves_nothing",
      "tests/test_lr_finder.py::test_nothing_is_left_whatever_happens"]),

    ("a skipped step moves the schedule",
     "train/loop",
     "moved += stepped",
     "moved += 1",
     ["tests/test_train.py::test_a_skipped_step_does_not_move_the_schedule"]),

    ("every epoch in the same order",
     "train/loop",
     "loader.batches(seed, fit, epoch, start",
     "loader.batches(seed, fit, 0, start",
     ["tests/test_train.py::test_every_epoch_has_another_order"]),

    ("training that is resumed begins its epoch anew",
     "train/loop",
     "first, seen = max(start, begin), 0",
     "first, seen = begin, 0",
     ["tests/test_train.py::test_start_gives_each_step_the_same_images"]),

    ("gradients are kept from step to step",
     "train/engine",
     "optimizer.zero_grad(set_to_none=True)",
     "pass",
     ["tests/test_train.py::test_clip_limits_the_step"]),

    ("features outlive the images they are of",
     "train/trainer",
     "return self.body == body and self.source is source",
     "return self.body == body",
     ["tests/test_learner.py::test_features_are_never_stale"]),

    ("training that is resumed begins with a new optimizer",
     "train/run",
     "if state := self.state: state.restore(optimizer, engine)",
     "pass",
     ["tests/test_resume.py::test_every_way_to_train[sgd]"]),

    ("skipped steps are forgotten",
     "train/run",
     "skipped=record.skipped, mix",
     "skipped=0, mix",
     ["tests/test_resume.py::test_every_way_to_train[overflows]"]),

    ("a checkpoint without the best epoch",
     "train/checkpoints",
     "tensors = best | (state.tensors if state else {})",
     "tensors = state.tensors if state else {}",
     ["tests/test_resume.py::test_checkpoints_after_epochs_only"]),

    ("smallest losses first",
     "results/selections",
     "preds.losses.sort(descending=largest",
     "preds.losses.sort(descending=not largest",
     ["tests/test_selections.py::test_top_losses_are_sorted_and_stable"]),

    ("most certain first",
     "results/selections",
     "return idx[values[idx].sort(stable=True)",
     "return idx[values[idx].sort(stable=True, descending=True)",
     ["tests/test_selections.py::test_selections_agree_with_plain_sorting"]),

    ("of two classes by entropy",
     "results/selections",
     "return (probs[:, 1].double() - .5).abs()",
     "return -torch.special.entr(probs.double()).sum(1)",
     ["tests/test_selections.py::test_of_two_classes_the_most_uncertain_is_nearest_to_one_half"]),

    ("dogs among the most correct cats",
     "results/selections",
     "(preds.targets == a) & (preds.pred == p)",
     "preds.pred == p",
     ["tests/test_selections.py::test_selections_agree_with_plain_sorting"]),

    ("gained and lost swapped",
     "results/intervals",
     "gained, lost = (now & ~was)",
     "lost, gained = (now & ~was)",
     ["tests/test_intervals.py::test_compare_errors_is_mcnemars_exact_test"]),

    ("a temperature multiplies",
     "results/calibration",
     "log_probs / check_temperature(temperature)",
     "log_probs * check_temperature(temperature)",
     ["tests/test_calibrate.py::test_a_temperature_divides_the_logits"]),

    ("temperatures are judged on their own images",
     "results/calibration",
     "search_temperature(log_probs[chosen], targets[chosen])",
     "search_temperature(log_probs, targets)",
     ["tests/test_calibrate.py::test_no_image_influences_its_own_temperature"]),

    ("a bias keeps its temperature",
     "results/calibration",
     "for p in last.parameters(): p.div_(temperature)",
     "last.weight.div_(temperature)",
     ["tests/test_calibrate.py::test_a_folded_temperature_is_the_applied_one"]),

    ("the hook stays",
     "results/explain",
     "held.callback(layer.register_forward_hook(capture).remove)",
     "layer.register_forward_hook(capture)",
     ["tests/test_explain.py::test_the_hook_is_removed_and_the_modes_are_restored"]),

    ("places against count as places for",
     "results/explain",
     "activations.detach()).relu()",
     "activations.detach()).abs()",
     ["tests/test_explain.py::test_by_hand"]),

    ("pairs of later blocks misplaced",
     "data/duplicates",
     "pairs.append(at + start)",
     "pairs.append(at)",
     ["tests/test_duplicates.py::test_close_pairs_are_all_close_pairs"]),

    ("half as near",
     "data/duplicates",
     "close_pairs(left, 64 - 2 * near, right)",
     "close_pairs(left, 64 - near, right)",
     ["tests/test_duplicates.py::test_near_is_the_largest_distance"]),

    ("the fixed crop counts for less than beta",
     "results/tta",
     "[(1 - self.beta) / n] * n",
     "[1 - self.beta] * n",
     ["tests/test_predict.py::test_the_average_is_the_formula"]),

    ("mirrored although training did not",
     "results/tta",
     "augment is not None and augment.mirrors",
     "True",
     ["tests/test_predict.py::test_corners_are_mirrored_only_where_training_mirrors"]),

    ("all random views are the same",
     "results/tta",
     'seeded_rng(seed, "tta", k, number)',
     'seeded_rng(seed, "tta", 0, number)',
     ["tests/test_predict.py::test_random_views_differ_and_do_not_depend_on_how_many_there_are"]),

    ("black images for unreadable files",
     "results/predict",
     "if i not in failed]",
     "if i >= 0]",
     ["tests/test_predict.py::test_unreadable_files_are_left_out_with_a_single_warning"]),

    ("all views are the first",
     "train/engine",
     "x = view(batch, number)",
     "x = views[0](batch, number)",
     ["tests/test_train.py::test_each_image_is_opened_once_for_all_views"]),

    ("groups are divided",
     "data/splits",
     "return np.flatnonzero(np.isin(groups, order[:taken]))",
     "return np.sort(order[:taken])",
     ["tests/test_data.py::test_groups_stay_whole"]),

    ("the largest probability said to be the actual class's",
     "plot/pictures",
     "format_probability(row['probability_actual'])",
     "format_probability(row['probability'])",
     ["tests/test_plot_pictures.py"
      "::test_the_highest_probability_is_never_written_beside_another_class"]),

    ("a heat map laid over another image",
     "plot/pictures",
     "heatmaps(chosen_positions(idx, len(preds)).tolist())",
     "heatmaps(sorted(chosen_positions(idx, len(preds)).tolist()))",
     ["tests/test_plot_pictures.py::test_a_heatmap_is_laid_over_its_image"]),

    ("shares of columns for shares of rows",
     "plot/scores",
     "np.maximum(self.totals, 1)[:, None]",
     "np.maximum(self.totals, 1)",
     ["tests/test_plot_scores.py::test_matrix_cells"]),

    ("the smallest confusions called out",
     "plot/scores",
     "sorted((-values[i, j], -counts[i, j], i, j)",
     "sorted((values[i, j], -counts[i, j], i, j)",
     ["tests/test_plot_scores.py::test_a_matrix_of_many_classes_calls_out_the_largest"]),

    ("divergence in the other direction",
     "distill",
     "F.kl_div(q, p, reduction",
     "F.kl_div(p, q, reduction",
     ["tests/test_distill.py::test_loss_by_hand"]),

    ("a distillation that is resumed begins its epoch anew",
     "distill",
     "return computed_ahead(make, range(start, len(indices)), ahead)",
     "return computed_ahead(make, range(len(indices)), ahead)",
     ["tests/test_distill.py::test_a_resumed_run_equals_an_undisturbed_one"]),

    ("training folder for validation folder",
     "data/datasets",
     'label, part == "valid") for f',
     'label, part == "train") for f',
     ["tests/test_datasets.py::test_dogs_and_cats_become_image_data"]),

    ("confusion matrix on its side",
     "results/scores",
     "preds.targets*c + preds.pred",
     "preds.pred*c + preds.targets",
     ["tests/test_scores.py::test_the_confusion_matrix_is_sklearns"]),
]
