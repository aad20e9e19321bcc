"""A linear head in a Learner: solved before the first step, resumed, saved, tuned.

What the solver finds is compared with scikit-learn's; training goes on from it to the same bits,
however it was interrupted.
"""
import math
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from lessonkit.core.files import load_tensors, save_tensors
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.learner import Learner
from lessonkit.model.classifier import LinearHead
from lessonkit.model.linear import solve_linear
from lessonkit.results.calibration import apply_temperature
from lessonkit.results.metrics import error_rate, higher_is_better
from lessonkit.train import trainer as trainer_module
from lessonkit.train.history import FitRecord
from lessonkit.train.trainer import Trainer

ARCH = "test_efficientnet"
SOLVED = "the head was solved on the features of"


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    "60 tiny images of three classes."
    return sample.tiny(tmp_path_factory.mktemp("solved") / "flat", n=60)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    "A file of weights, so that a small body counts as pretrained."
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("body") / "body.pth"
    torch.save(timm.create_model(ARCH).state_dict(), path)
    return path


@pytest.fixture
def new(flat, body, tmp_path):
    "Makes learners that are alike."
    def new(data=None, metrics=error_rate, **options):
        usual = dict(weights=body, precision="fp32", device="cpu", model_dir=tmp_path, cache=False,
                     show=False)
        return Learner(data or data_of(flat), f"timm:{ARCH}", metrics, **usual | options)
    return new


def data_of(path, **options):
    return ImageData.from_name_re(path, r"^(.+)_\d+", **dict(size=32, bs=16) | options)


def state_of(learn): return {name: v.clone() for name, v in learn.model.state_dict().items()}


def assert_same(learn, other):
    before = other if isinstance(other, dict) else state_of(other)
    for name, v in learn.model.state_dict().items(): assert torch.equal(v, before[name]), name


def solve(learn):
    "Solve without training, and without a scale. Returns features, targets, weights and penalty."
    with pytest.MonkeyPatch.context() as patch:
        def unscaled(*args, **options): return solve_linear(*args, **options | dict(scaled=False))
        patch.setattr(trainer_module, "solve_linear", unscaled)
        learn.trainer.solve_head(FitRecord("solve"))
    loader, (standardize, linear) = learn.trainer.features.data.train, learn.model.head
    x = ((loader.features.double() - standardize.mean) / standardize.std).numpy()
    return x, loader.targets.numpy(), linear, float(learn.model.head.penalty)


def notes_of(learn): return [note for record in learn.history.fits for note in record.notes]


def count_solved(learn): return sum(SOLVED in note for note in notes_of(learn))


# ---- against scikit-learn

def assert_weights(linear, weight, bias, atol=2e-3):
    assert np.allclose(linear.weight.detach().numpy(), weight, atol=atol)
    assert np.allclose(linear.bias.detach().numpy(), bias, atol=atol)


def logistic(x, y, penalty, **options):
    from sklearn.linear_model import LogisticRegression
    total = np.sum(options.get("sample_weight", np.ones(len(x))))
    model = LogisticRegression(C=1 / (penalty * total), max_iter=10_000, tol=1e-8)
    model.fit(x, y, **options)
    return model.coef_, model.intercept_ - model.intercept_.mean()


def assert_same_classes(linear, found):
    "Adding a number to all logits changes nothing."
    weight, bias = found
    weight, mine = weight - weight.mean(0), linear.weight.detach() - linear.weight.detach().mean(0)
    assert np.allclose(mine.numpy(), weight, atol=2e-3)
    own = linear.bias.detach() - linear.bias.detach().mean()
    assert np.allclose(own.numpy(), bias, atol=5e-3)


def test_one_label(new):
    x, y, linear, penalty = solve(new())
    assert_same_classes(linear, logistic(x, y, penalty))


def test_class_weights(new):
    """Images of a heavy class count for more. The loss is a mean over images, not over weights.

    So the penalty is that of scikit-learn for as many images as there are.
    """
    from sklearn.linear_model import LogisticRegression
    x, y, linear, penalty = solve(new(class_weights=[1., 2., 5.]))
    model = LogisticRegression(C=1 / (penalty * len(x)), max_iter=10_000, tol=1e-8)
    model.fit(x, y, sample_weight=np.array([1., 2., 5.])[y])
    found = model.coef_, model.intercept_ - model.intercept_.mean()
    assert_same_classes(linear, found)


def test_smoothed_labels(new):
    "As if a share of each image had each other class."
    x, y, linear, penalty = solve(new(smoothing=.3))
    shares = np.where(np.eye(3)[y] == 1, .8, .1)
    found = logistic(np.repeat(x, 3, 0), np.tile(range(3), len(x)), penalty,
                     sample_weight=shares.ravel())
    assert_same_classes(linear, found)


def test_balanced_sampling(new, tmp_path):
    files = image_files(sample.tiny(tmp_path / "uneven", n=60))
    names = [f.name.split("_")[0] for f in files]
    rare = [f for f, name in zip(files, names) if name == "circle"][4:]
    for file in rare: file.unlink()
    data = data_of(tmp_path / "uneven", sampling="balanced")
    x, y, linear, penalty = solve(new(data))
    each = len(x) / 3 / np.bincount(y)[y]
    assert np.ptp(each) > .5
    assert_same_classes(linear, logistic(x, y, penalty, sample_weight=each))


@pytest.fixture
def table(flat):
    files = image_files(flat)
    table = pd.DataFrame({"name": [f.name for f in files]})
    kinds = table.name.str.split("_").str[0]
    table["tags"] = kinds + kinds.map({"circle": "|round"}).fillna("|straight")
    table["corners"] = kinds.map({"circle": 0., "square": 4., "stripes": 2.})
    return table


def test_several_labels(new, flat, table):
    "The loss is the mean over labels, so each of them alone has as many times the penalty."
    data = ImageData.from_df(flat, table, label_col="tags", label_delim="|", size=32, bs=16)
    x, y, linear, penalty = solve(new(data, None))
    for k in range(data.c):
        weight, _ = logistic(x, y[:, k], penalty * data.c)
        assert np.allclose(linear.weight[k].detach().numpy(), weight[0], atol=2e-3)


def test_numbers(new, flat, table):
    from sklearn.linear_model import Ridge
    data = ImageData.from_df(flat, table, label_col="corners", size=32, bs=16)
    x, y, linear, penalty = solve(new(data, None))
    model = Ridge(alpha=penalty / 2 * len(x)).fit(x, y[:, 0])  # squared errors are not halved here
    assert_weights(linear, model.coef_[None], model.intercept_)


@pytest.mark.parametrize("options", [dict(mixup=.4), dict(cutmix=1.), dict(train_bn=True), dict()])
def test_images_that_vary_are_solved_plain_and_trained_as_asked(new, flat, options):
    plain, learn = new(), new(data_of(flat, augment=augmentations()), **options)
    plain.trainer.solve_head(FitRecord("solve"))
    start, original = [], Trainer.trained_part
    def watched(trainer, record):
        start.append(state_of(learn))
        return original(trainer, record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "trained_part", watched)
        learn.fit(1, 1e-2)
    for name, v in plain.model.head.state_dict().items():
        assert torch.equal(start[0][f"head.{name}"], v), name
    reason = {"mixup": "augmented", "cutmix": "augmented", "train_bn": "train_bn"}
    assert reason.get([*options, ""][0], "augmented") in notes_of(learn)[1]
    assert not torch.equal(learn.model.head[1].weight, plain.model.head[1].weight)


def test_copies_count_for_their_image(new, flat):
    data = data_of(flat, augment=augmentations())
    learn, plain = new(data, copies=3), new(data)
    for one in (learn, plain): one.fit_one_cycle(2)
    stacked = learn.trainer.features.data.train.stacked
    assert stacked.shape[:2] == (4, 48)
    assert "3 augmented copies" in notes_of(learn)[1]
    assert "augmented, so they differ" in notes_of(plain)[1]
    assert torch.allclose(learn.model.head[0].mean, stacked.float().mean((0, 1)), atol=1e-5)


# ---- when it is solved, and when not

@pytest.mark.parametrize("fit", [
    lambda learn: learn.fit(1), lambda learn: learn.fit_one_cycle(1),
    lambda learn: learn.fit_flat_cos(1), lambda learn: learn.fine_tune(1),
    lambda learn: learn.fine_tune(1, freeze_epochs=0)])
@pytest.mark.parametrize("frozen", [0, 1, -1])
def test_every_first_fit_solves_and_no_second_one(new, fit, frozen):
    learn = new()
    learn.freeze_to(frozen)
    fit(learn)
    assert SOLVED in learn.history.fits[0].notes[0]
    fit(learn)
    assert count_solved(learn) == 1


@pytest.mark.parametrize("options", [dict(weights=None), dict(weights=None, head="linear"),
                                     dict(head="mlp"), dict(head=lambda n, c: nn.Linear(n, c))])
def test_other_heads_and_random_bodies_are_not_solved(new, options):
    learn = new(**options)
    learn.fit(1)
    assert count_solved(learn) == 0
    assert learn.trainer.penalty is None


def test_usual_rates(new):
    for options, rate in ((dict(), 1e-4), (dict(optimizer="sgd"), 3e-3), (dict(head="mlp"), 3e-3),
                          (dict(weights=None), 3e-3)):
        learn = new(**options)
        learn.fit(1)
        assert learn.history.fits[0].lrs[0][-1] == pytest.approx(rate)


def test_the_penalty_is_part_of_training(new):
    "At its solution a head stays, in spite of weight decay; another penalty pulls it away."
    learn = new(wd=10.)
    solve(learn)
    before = learn.model.head[1].weight.detach().clone()
    learn.fit(3, 1e-4)
    moved = (learn.model.head[1].weight - before).norm()
    learn.model.head.penalty.mul_(100)
    learn.fit(3, 1e-4)
    shrunk = learn.model.head[1].weight.norm() / before.norm()
    assert moved / before.norm() < .05
    assert shrunk < 1 - 2 * moved / before.norm()


def test_a_head_of_ones_own_is_put_in_by_hand(new):
    learn = new()
    learn.model.head = nn.Sequential(nn.Dropout(.2), nn.Linear(learn.model.nf, 3))
    learn.fit(1)
    assert count_solved(learn) == 0
    assert learn.trainer.conditions()["dropout"] == [.2]
    learn.save("own")
    other = new(seed=3)
    other.model.head = nn.Sequential(nn.Dropout(.2), nn.Linear(learn.model.nf, 3))
    assert_same(other.load("own"), learn)
    learn.model.head = LinearHead(learn.model.nf, 3)  # and taken out again
    learn.fit(1)
    assert count_solved(learn) == 1


def test_the_finder_leaves_an_unsolved_head_as_it_was(new):
    learn, plain = new(), new()
    before = state_of(learn)
    found = learn.lr_find(num_it=30)
    assert_same(learn, before)
    assert found.losses[0] == pytest.approx(math.log(3), abs=.02)
    assert min(found.losses) < .95 * found.losses[0]
    for one in (learn, plain): one.fit_one_cycle(2)
    assert_same(learn, plain)
    assert learn.history.fits[0].losses == plain.history.fits[0].losses


def test_a_class_without_training_images(new, flat):
    files = image_files(flat)
    held_out = [f.name for f in files if "stripes" in f.name]
    data = data_of(flat)
    keep = [i for i, p in enumerate(data.train.paths) if p.name not in held_out]
    loader = type(data.train)
    paths = tuple(data.train.paths[i] for i in keep)
    settings = dict(paths=paths, targets=data.train.targets[keep])
    data = replace(data, train=loader(**data.train.settings(**settings)),
                   train_eval=loader(**data.train_eval.settings(**settings)))
    learn = new(data)
    learn.fit(1)
    assert learn.get_preds().probs.shape[1] == 3
    assert np.isfinite(learn.validate()["valid_loss"])


# ---- saving, calibrating

def test_a_solved_head_is_saved_and_goes_on(new):
    learn = new()
    learn.fit_one_cycle(1)
    learn.save("solved")
    other = new(seed=7).load("solved")
    assert torch.equal(other.get_preds().probs, learn.get_preds().probs)
    assert float(other.model.head.penalty) == float(learn.model.head.penalty) > 0
    other.fit(1)
    assert count_solved(other) == 1   # the one that was loaded


def test_an_unsolved_head_is_saved_and_solved_later(new):
    learn, other = new(), new()
    learn.save("new")
    other.load("new").fit_one_cycle(1)
    learn.fit_one_cycle(1)
    assert_same(other, learn)


def test_checkpoints_from_before_there_was_a_choice(new, tmp_path):
    learn = new(head="mlp")
    learn.fit(1)
    file = learn.save("old")
    tensors, metadata = load_tensors(file)
    assert metadata.pop("head") == "mlp"
    save_tensors(file, tensors, metadata)
    assert_same(new(head="mlp", seed=3).load("old"), learn)
    with pytest.raises(ValueError, match="kind 'mlp', this learner 'linear'.*head='mlp'"):
        new().load("old")


def test_a_solved_head_is_calibrated(new):
    learn = new()
    solve(learn)
    learn.model.head[1].weight.data *= 3   # overconfident
    before = learn.get_preds()
    found = learn.calibrate()
    if found.temperature < 1000:
        after = apply_temperature(before, found.temperature).probs
        assert torch.allclose(learn.get_preds().probs, after, atol=1e-5)
    learn.fit(1)
    assert count_solved(learn) == 0


# ---- interrupted

@pytest.fixture
def ctrl_c():
    "Ctrl-C as in a terminal: a job in the background is started with it ignored."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def interrupted_once(monkeypatch, owner, name, press, after=False):
    "Press Ctrl-C in the first call of a function, before or after its work."
    original, pressed = getattr(owner, name), []
    def watched(*args, **options):
        first = not pressed
        pressed.append(1)
        if first and not after: press()
        result = original(*args, **options)
        if first and after: press()
        return result
    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize("owner, name, after, solved", [
    (trainer_module, "precompute", False, False), (trainer_module, "solve_linear", False, False),
    (trainer_module, "solve_linear", True, False), (LinearHead, "set_solution", False, True),
    (LinearHead, "set_solution", True, True), (Trainer, "trained_part", False, True)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_ctrl_c_around_solving(new, monkeypatch, ctrl_c, owner, name, after, solved, elsewhere):
    whole, learn = new(), new()
    whole.fit_one_cycle(3, keep_best="valid_loss", keep_start=True)
    interrupted_once(monkeypatch, owner, name, ctrl_c, after)
    learn.fit_one_cycle(3, keep_best="valid_loss", keep_start=True)
    assert learn.history.fits[0].losses == []
    assert learn.model.head.untrained != solved
    if elsewhere:
        learn.save("stopped")
        learn = new().load("stopped")
    learn.resume()
    assert_same(learn, whole)
    assert learn.history.fits[0].losses == whole.history.fits[0].losses
    assert count_solved(learn) == 1
    assert learn.run.progress == whole.run.progress


def test_usual_rates_of_fine_tune(new):
    "The late body's grow with the number of steps; SGD and rates of one's own have another plan."
    def phases(epochs=2, accumulate=1, optimizer="adamw", **options):
        learn = new(optimizer=optimizer)
        learn.fine_tune(epochs, accumulate=accumulate, **options)
        frozen, tuned = learn.run.plan.phases
        return frozen.rates[-1], tuned.frozen, tuned.rates
    head, frozen, rates = phases()
    assert (head, frozen) == (1e-4, 1)
    assert rates == pytest.approx((3e-6, 3e-5, 1e-4))       # 2 epochs of 3 steps
    assert phases(10)[2] == pytest.approx((6e-6, 6e-5, 1e-4))
    assert phases(10, 3)[2] == pytest.approx((3e-6, 3e-5, 1e-4))
    assert phases(freeze_to=0)[1] == 0
    assert phases(base_lr=1e-3)[2] == pytest.approx((1e-5, 1e-4, 1e-3))
    assert phases(optimizer="sgd") == (2e-3, 1, pytest.approx((1e-5, 1e-4, 1e-3)))


@pytest.mark.parametrize("options", [dict(), dict(freeze_to=0), dict(freeze_epochs=0)])
def test_ctrl_c_in_each_epoch_of_fine_tune(new, flat, ctrl_c, options):
    data = data_of(flat, augment=augmentations())
    def tuned(metrics):
        learn = new(data, metrics, copies=2)
        learn.fine_tune(2, **options)
        return learn
    def pressing(preds):
        ctrl_c()
        return 0.
    def quiet(preds): return 0.
    quiet.__name__ = "pressing"
    whole, learn, times = tuned(quiet), tuned(pressing), 0
    while not learn.run.finished:
        learn.save("stopped")
        learn, times = new(data, pressing, copies=2).load("stopped"), times + 1
        learn.resume()
    assert times
    assert_same(learn, whole)
    assert learn.run.progress == whole.run.progress


# ---- fine_tune

def test_tuning_that_does_not_help_is_undone(new):
    learn = new()
    learn.fine_tune(1, base_lr=30.)   # so high a rate that the body is spoiled
    note, = [note for note in notes_of(learn) if "tuning did not help" in note]
    head, tuned = learn.history.fits
    if tuned.rows:
        best = min(row["valid_loss"] for row in tuned.rows)
        assert f"{best:.6g} after the best epoch of tuning" in note or not math.isfinite(best)
    assert "on 12 validation images" in note
    before = learn.run.progress.before
    assert f"valid_loss {before:.6g}" in note
    assert learn.validate()["valid_loss"] == pytest.approx(before, rel=1e-4)
    fresh = new()
    for (name, v), w in zip(learn.model.body.state_dict().items(),
                            fresh.model.body.state_dict().values()):
        assert torch.equal(v, w), name


HELPED = ("the weights of epoch 0 of 'fine_tune, unfrozen' are put back: score 0.5, on 12 "
          "validation images; before tuning 0.3")
KEPT = ("tuning did not help, so the model is kept as it was before: score {} on 12 validation "
        "images, {} after the best epoch of tuning")


@pytest.mark.parametrize("scores, note", [
    ((.2, .3, .5, .4), HELPED), ((.2, .6, .5, .4), KEPT.format(.6, .5)),
    ((.7, .6, .5, .7), KEPT.format(.7, .7))])
def test_tuning_is_compared_with_the_head(new, scores, note):
    "With the head as it was solved, and after each epoch of its own."
    left = list(scores)
    @higher_is_better
    def score(preds): return left.pop(0)
    learn = new(metrics=score)
    learn.fine_tune(2, keep_best="score")
    assert learn.history.fits[-1].notes[-1] == note
    assert left == []


def test_without_keep_best_the_last_epoch_stays(new):
    learn = new()
    learn.fine_tune(1, keep_best=None)
    assert not [note for note in notes_of(learn) if "put back" in note or "kept" in note]
    assert learn.run.best_weights == {}
    last = learn.history.fits[-1].rows[-1]["valid_loss"]
    assert learn.validate()["valid_loss"] == pytest.approx(last, rel=1e-4)


def test_other_heads_are_tuned_as_ever(new):
    learn = new(head="mlp")
    learn.fine_tune(1)
    assert learn.run.plan.keep_best is None
    assert learn.run.plan.keep_start is False
    frozen, unfrozen = learn.run.plan.phases
    assert frozen.rates == pytest.approx((2e-4, 2e-4, 2e-3))
    assert unfrozen.rates == pytest.approx((1e-5, 1e-4, 1e-3))


@pytest.mark.parametrize("copies", [0, 2])
def test_the_late_body_is_tuned_on_maps_as_on_images(new, flat, monkeypatch, copies):
    data = data_of(flat, augment=augmentations() if copies else None)
    quick = new(data, copies=copies)
    quick.fine_tune(2, freeze_to=1, keep_best=None)
    part = quick.trainer.features.data.train.features
    assert part.ndim == 4
    assert "the rest trains on what they put out" in notes_of(quick)[-2]
    if copies: return   # the images themselves have other copies in every epoch
    monkeypatch.setattr("lessonkit.train.trainer.why_not_precompute", lambda *_: "a test")
    slow = new(data)
    slow.fine_tune(2, freeze_to=1, keep_best=None)
    for one, other in zip(quick.history.fits, slow.history.fits):
        assert one.losses == pytest.approx(other.losses, rel=1e-3)
    assert torch.allclose(quick.get_preds().probs, slow.get_preds().probs, atol=1e-3)
    frozen = {id(p) for p in quick.model.group_parameters()[0]}
    assert not any(p.requires_grad for p in quick.model.parameters() if id(p) in frozen)


# ---- memory

def test_a_memory_limit_divides_batches_and_changes_nothing_else(new):
    whole, divided = new(memory_limit=math.inf), new(memory_limit=1e8)
    for learn in (whole, divided): learn.fine_tune(1)
    assert not [note for note in notes_of(whole) if "memory_limit" in note]
    assert [note for note in notes_of(divided) if "images at a time, to save memory" in note]
    for one, other in zip(whole.history.fits, divided.history.fits):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
    divided.trainer.memory_limit = 2e9
    with pytest.raises(ValueError, match="no unfinished"): divided.resume()


def test_a_memory_limit_belongs_to_the_conditions(new):
    assert new().trainer.conditions()["memory_limit"] is None
    assert new(memory_limit=2e9).trainer.conditions()["memory_limit"] == 2e9
