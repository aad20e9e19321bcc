"""Linear heads are solved as scikit-learn solves them, whatever the shape of the problem."""
import math
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F

from lessonkit.core.task import Task
from lessonkit.model.classifier import LinearHead
from lessonkit.model import linear
from lessonkit.model.linear import feature_stats, make_folds, PENALTIES
from tiers import examples

common = examples(20)


# most tests are of the plain loss, without a scale
solve_linear = partial(linear.solve_linear, scaled=False)


def single(c): return Task("single", tuple(range(c))).losses


def photos(n=90, nf=20, c=3, key=0, noise=2.):
    "Features of `n` made-up photos in different units, and their classes."
    g = torch.Generator().manual_seed(key)
    x = torch.randn(n, nf, generator=g)
    y = (x @ torch.randn(nf, c, generator=g) + noise * torch.randn(n, c, generator=g)).argmax(1)
    y[:2 * c] = torch.arange(2 * c) % c   # two of each class, at least
    return x * torch.linspace(1, 5, nf) + torch.linspace(-9, 9, nf), y


def logits_of(solution, x):
    return ((x - solution.mean) / solution.std) @ solution.weight.T + solution.bias


def assert_same_head(a, b, atol=3e-4):
    assert a.penalty == b.penalty
    for name in ("weight", "bias"):
        ours, theirs = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=atol)


def objective(solution, x, y, losses, weight, bias):
    "What is minimized, in 64 bits, of weights and biases."
    standardized = (x.double() - solution.mean) / solution.std
    loss = losses(standardized @ weight.T + bias, y).double().mean()
    return loss + solution.penalty / 2 * weight.square().sum()


def slopes(solution, x, y, losses):
    "The gradient of the objective where the solution is; zeros at the bottom."
    weight, bias = (t.double().requires_grad_() for t in (solution.weight, solution.bias))
    return torch.autograd.grad(objective(solution, x, y, losses, weight, bias), (weight, bias))


# ---- the same as scikit-learn

@pytest.mark.parametrize("n, nf", [(200, 20), (60, 150)])   # more images, or more features
@pytest.mark.parametrize("c", [2, 5])
@pytest.mark.parametrize("penalty", [3.2, .1, .001])
def test_logistic_regression_is_scikit_learns(n, nf, c, penalty):
    from sklearn.linear_model import LogisticRegression
    x, y = photos(n, nf, c)
    solution = solve_linear(x, y, single(c), penalties=[penalty])
    standardized = ((x - solution.mean) / solution.std).double()
    # of two classes it has the difference of their weights, whose square counts twice as much
    rows, halved = (1, 2) if c == 2 else (c, 1)
    theirs = LogisticRegression(C=halved / (penalty * n), tol=1e-10, max_iter=10_000)
    theirs.fit(standardized, y)
    weight = solution.weight.double()
    if rows == 1: weight = weight[1:] - weight[:1]
    torch.testing.assert_close(weight, torch.tensor(theirs.coef_), rtol=2e-3, atol=5e-4)
    probabilities = torch.tensor(theirs.predict_proba(standardized)).float()
    torch.testing.assert_close(logits_of(solution, x).softmax(1), probabilities, rtol=0, atol=5e-4)


@pytest.mark.parametrize("n, nf, k", [(80, 10, 1), (40, 100, 1), (80, 10, 3)])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_numbers_are_scikit_learns_ridge_regression(n, nf, k, scale):
    from sklearn.linear_model import Ridge
    x, _ = photos(n, nf)
    g = torch.Generator().manual_seed(1)
    y = scale * ((x[:, :k] - x[:, :k].mean(0)) + torch.randn(n, k, generator=g) + 3)
    penalty = .1
    solution = solve_linear(x, y, Task("number", n_values=k).losses, penalties=[penalty])
    standardized = ((x - solution.mean) / solution.std).double()
    theirs = Ridge(alpha=penalty * n * k / 2).fit(standardized, y.double())
    expected = torch.tensor(theirs.predict(standardized)).view(n, k) / scale
    torch.testing.assert_close(logits_of(solution, x).double() / scale, expected, rtol=1e-4,
                               atol=2e-4)
    coefficients = torch.tensor(theirs.coef_).view(k, nf) / scale
    torch.testing.assert_close(solution.weight.double() / scale, coefficients, rtol=1e-3, atol=2e-4)


def test_several_labels_are_logistic_regressions_side_by_side():
    from sklearn.linear_model import LogisticRegression
    x, y = photos(120, 15, 4)
    labels = torch.stack([y == 0, y < 2, y == 3], 1).float()
    solution = solve_linear(x, labels, Task("multi", ("a", "b", "c")).losses, penalties=[.03])
    standardized = ((x - solution.mean) / solution.std).double()
    probabilities = logits_of(solution, x).sigmoid()
    for k in range(3):   # the loss is the mean over labels, so that each is penalized three times
        theirs = LogisticRegression(C=1 / (3 * .03 * 120), tol=1e-10, max_iter=10_000)
        expected = theirs.fit(standardized, labels[:, k]).predict_proba(standardized)[:, 1]
        np.testing.assert_allclose(probabilities[:, k], expected, atol=5e-4)


def test_the_cross_validated_loss_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    x, y = photos(100, 12, 3)
    solution = solve_linear(x, y, single(3), penalties=(1, .1, .01), folds=4, seed=7)
    standardized, fold = ((x - solution.mean) / solution.std).double(), make_folds(y, 4, 7)
    assert len(solution.table) == 3
    for penalty, loss, error in solution.table:
        expected = torch.zeros(100, dtype=torch.float64)
        for k in range(4):
            rest = fold != k
            theirs = LogisticRegression(C=1 / (penalty * int(rest.sum())), max_iter=10_000)
            theirs.fit(standardized[rest], y[rest])
            logs = torch.tensor(theirs.predict_log_proba(standardized[~rest]))
            expected[~rest] = -logs.gather(1, y[~rest, None])[:, 0]
        assert loss == pytest.approx(float(expected.mean()), abs=2e-3)
        assert error == pytest.approx(float(expected.std(correction=0)) / 10, rel=.02)
    assert solution.penalty == min(solution.table, key=lambda row: row[1])[0]


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("kind", ["single", "multi", "number"])
def test_folds_solved_one_by_one_give_the_same_table(kind, copies, monkeypatch):
    "Together or apart, as there is room: no head of a fold depends on another."
    x, y = photos(90, 40, 3)
    g = torch.Generator().manual_seed(2)
    x = torch.stack([x + .1 * torch.randn(x.shape, generator=g) for _ in range(copies)])
    targets = dict(single=y, multi=torch.eye(3)[y], number=x[0, :, :2])[kind]
    losses = Task(kind, () if kind == "number" else ("a", "b", "c"),
                  n_values=2 if kind == "number" else 0).losses
    weights = 1 + torch.arange(90) % 3
    together = linear.solve_linear(x, targets, losses, weights=weights)
    monkeypatch.setattr(linear, "_AT_ONCE", 1)
    apart = linear.solve_linear(x, targets, losses, weights=weights)
    np.testing.assert_allclose(np.array(together.table)[:, :2], np.array(apart.table)[:, :2],
                               rtol=2e-2, atol=2e-3)
    assert together.penalty == pytest.approx(apart.penalty, rel=.1)


def test_a_loss_is_never_asked_about_an_image_that_was_held_out():
    "What is infinite there must not spoil what the others say."
    x, y = photos(60, 8, 3)
    task, seen = single(3), []
    def losses(logits, targets):
        seen.append(len(targets))
        return task(logits, targets)
    linear.solve_linear(x, y, losses, penalties=(1, .1), folds=4)
    assert 3 * 60 in seen and 4 * 60 not in seen   # each of four heads learns from three quarters


# ---- properties of the solution

@common
@given(n=st.integers(4, 60), nf=st.integers(1, 80), c=st.integers(2, 6), key=st.integers(0, 999),
       penalty=st.sampled_from(PENALTIES))
def test_every_slope_is_flat_at_the_bottom(n, nf, c, key, penalty):
    x, y = photos(max(n, 2 * c), nf, c, key)
    solution = solve_linear(x, y, single(c), penalties=[penalty], n_out=c)
    for slope in slopes(solution, x, y, single(c)):
        assert slope.abs().max() < 2e-4 * max(1, penalty)
    assert solution.weight.shape == (c, nf)


def test_fewer_images_than_features_lose_nothing():
    "The rotation is exact: weights of the small problem solve the large one."
    x, y = photos(30, 400, 3)
    solution = solve_linear(x, y, single(3), penalties=[.01])
    for slope in slopes(solution, x, y, single(3)): assert slope.abs().max() < 1e-5
    standardized = ((x - solution.mean) / solution.std).double()
    # all of the weights lie in the space of the images
    inside = torch.linalg.lstsq(standardized.T, solution.weight.double().T).solution
    torch.testing.assert_close(standardized.T @ inside, solution.weight.double().T, rtol=0,
                               atol=1e-6)


@common
@given(key=st.integers(0, 999), nf=st.integers(2, 60), factor=st.floats(1e-4, 1e4))
def test_the_unit_of_the_features_does_not_matter(key, nf, factor):
    x, y = photos(40, nf, 3, key)
    of_meters = solve_linear(x, y, single(3), penalties=[.1])
    of_feet = solve_linear(factor * x, y, single(3), penalties=[.1])
    torch.testing.assert_close(logits_of(of_meters, x), logits_of(of_feet, factor * x), rtol=1e-3,
                               atol=2e-3)


def test_each_feature_may_have_a_unit_of_its_own():
    "Unless it varies by less than a tenth of what is usual."
    x, y = photos(60, 10, 3)
    units = torch.logspace(-.2, .2, 10)
    plain, other = (solve_linear(scaled, y, single(3)) for scaled in (x, units * x + 2))
    assert_same_head(plain, other)
    torch.testing.assert_close(other.std, units * plain.std)


def test_constant_features_have_no_weight():
    x, y = photos(60, 10, 3)
    padded = torch.cat([x, torch.full((60, 1), .1), torch.zeros(60, 1)], 1)
    plain, solution = (solve_linear(features, y, single(3)) for features in (x, padded))
    assert (solution.std > 0).all()
    assert solution.weight[:, 10:].abs().max() < 1e-6
    torch.testing.assert_close(logits_of(solution, padded), logits_of(plain, x), rtol=0, atol=5e-3)


def test_a_feature_that_hardly_varies_is_not_blown_up():
    x, y = photos(60, 10, 3)
    x[:, 4] = 1e-6 * x[:, 4]
    std = feature_stats(x)[1]
    assert std[4] == pytest.approx(.1 * float(x.std(0, correction=0).square().mean().sqrt()))
    assert torch.equal(std[:4], x[:, :4].double().std(0, correction=0).float())


# ---- copies, weights and images that are left out

def test_copies_are_repeated_rows():
    x, y = photos(50, 12, 3)
    moved = x + .5 * torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(5))
    copies = torch.cat([x[None], moved])
    solution = solve_linear(copies, y, single(3), penalties=[.1])
    repeated = solve_linear(copies.flatten(0, 1), y.repeat(3), single(3), penalties=[.1])
    assert_same_head(solution, repeated)
    flat = solve_linear(copies.flatten(0, 1), y, single(3), penalties=[.1], copies=3)
    assert torch.equal(flat.weight, solution.weight)


def test_copies_of_an_image_are_in_one_fold():
    "Otherwise a copy in another fold would give its image away, and no penalty would look best."
    x, _ = photos(40, 60, 2)
    y = torch.arange(40) % 2   # nothing to learn
    plain = solve_linear(x, y, single(2))
    doubled = solve_linear(torch.stack([x, x]), y, single(2))
    assert doubled.penalty == plain.penalty
    np.testing.assert_allclose(doubled.table, plain.table, rtol=.01)
    given_away = solve_linear(torch.cat([x, x]), y.repeat(2), single(2))
    assert given_away.penalty < plain.penalty


def test_weights_are_repeated_rows():
    x, y = photos(50, 12, 3)
    times = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0))
    weighted = solve_linear(x, y, single(3), penalties=[.1], weights=times)
    rows = torch.arange(50).repeat_interleave(times)
    assert_same_head(weighted, solve_linear(x[rows], y[rows], single(3), penalties=[.1]))
    tripled = solve_linear(x, y, single(3), penalties=[.1], weights=3. * times)
    assert_same_head(weighted, tripled)
    torch.testing.assert_close(weighted.mean, feature_stats(x[rows])[0])
    assert weighted.note == "penalty 0.1, as given"   # images that don't count are no loss


def test_unreadable_images_are_left_out_and_counted():
    x, y = photos(50, 12, 3)
    damaged = x.clone()
    damaged[7], damaged[20, 3] = math.nan, math.inf
    rest = [i for i in range(50) if i not in (7, 20)]
    solution = solve_linear(damaged, y, single(3), penalties=[.1])
    assert_same_head(solution, solve_linear(x[rest], y[rest], single(3), penalties=[.1]))
    assert solution.note == "penalty 0.1, as given; images without features: 2"
    assert all(t.isfinite().all() for t in (solution.weight, solution.bias, solution.std))
    with pytest.raises(ValueError, match="none of 50 images"):
        solve_linear(torch.full_like(x, math.nan), y, single(3))


# ---- the scale

def test_the_loss_at_the_best_scale_chooses():
    x, y = photos(80, 60, 3, noise=6.)
    plain, scaled = (linear.solve_linear(x, y, single(3), scaled=on) for on in (False, True))
    assert plain.scale == 1
    losses = [dict((row[0], row[1]) for row in solution.table) for solution in (plain, scaled)]
    both = losses[0].keys() & losses[1].keys()
    assert all(losses[1][p] <= losses[0][p] for p in both)
    searched = min(scaled.table, key=lambda row: row[1])[0]
    assert f"penalty {searched:.3g}, chosen of" in scaled.note
    assert f"scale {scaled.scale:.2g}" in scaled.note
    unscaled = solve_linear(x, y, single(3), penalties=[searched])
    torch.testing.assert_close(scaled.weight, scaled.scale * unscaled.weight)
    torch.testing.assert_close(scaled.bias, scaled.scale * unscaled.bias)


def test_the_penalty_of_a_scaled_head_keeps_its_length():
    x, y = photos(80, 60, 3, noise=6.)
    solution = linear.solve_linear(x, y, single(3))
    slope, _ = slopes(solution, x, y, single(3))
    weight = solution.weight.double()
    along = float((slope * weight).sum()) / float(weight.norm() ** 2)
    assert solution.penalty == 0 or abs(along) < 1e-4
    assert solution.penalty >= 0


# ---- kinds of targets

def test_shares_of_classes_are_cross_entropy_with_soft_targets():
    x, y = photos(60, 12, 3)
    hard = solve_linear(x, y, single(3))
    as_shares = solve_linear(x, torch.eye(3)[y], single(3))
    assert_same_head(hard, as_shares)
    soft = .8 * torch.eye(3)[y] + .2 / 3
    solution = solve_linear(x, soft, single(3), penalties=[.01])
    for slope in slopes(solution, x, soft, single(3)): assert slope.abs().max() < 2e-5


def test_class_weights_and_smoothing_come_with_the_losses():
    x, y = photos(60, 12, 3)
    def losses(logits, y):
        weights = torch.tensor([1., 5, 1])
        return F.cross_entropy(logits.float(), y, weights, reduction="none", label_smoothing=.1)
    solution = solve_linear(x, y, losses)
    for slope in slopes(solution, x, y, losses): assert slope.abs().max() < 5e-5


def test_a_class_with_a_single_image_is_never_held_out():
    x, y = photos(40, 10, 3)
    y[0] = 3
    assert make_folds(y)[0] == -1
    measured = []   # the classes of images whose loss is measured without training on them
    def losses(logits, targets):
        if not logits.requires_grad: measured.append(set(targets.tolist()))
        return single(4)(logits, targets)
    solution = solve_linear(x, y, losses)
    assert measured.pop(0) == {0, 1, 2, 3}   # of all images, to know the scale of the loss
    assert measured == [{0, 1, 2}] * len(solution.table)
    assert max(loss for _, loss, _ in solution.table) < 2 * math.log(4)


@pytest.mark.parametrize("n", [1, 3])
def test_one_image_for_each_class_needs_no_cross_validation(n):
    x, y = photos(6, 10, 3)[0][:n], torch.arange(n)
    solution = solve_linear(x, y, single(3), n_out=3)
    assert solution.note == "penalty 0.1, the middle one: too few images for cross-validation"
    assert solution.table == ()
    assert logits_of(solution, x).argmax(1).tolist() == list(range(n))


def test_a_class_without_images_gets_a_finite_and_tiny_chance():
    x, y = photos(60, 10, 3)
    solution = solve_linear(x, y, single(5), n_out=5)
    assert solution.weight.shape == (5, 10)
    assert solution.bias.isfinite().all()
    assert logits_of(solution, x).softmax(1)[:, 3:].max() < 1e-4
    with_three = logits_of(solve_linear(x, y, single(3)), x).softmax(1)
    torch.testing.assert_close(logits_of(solution, x)[:, :3].softmax(1), with_three, rtol=0,
                               atol=2e-3)


def test_a_single_class_is_no_problem():
    x, _ = photos(20, 5)
    solution = solve_linear(x, torch.zeros(20, dtype=torch.int64), single(1))
    assert not solution.weight.any()
    assert solution.penalty == max(PENALTIES)   # ties go to the strongest


def test_ties_go_to_the_strongest_penalty():
    x, y = photos(30, 5)
    solution = solve_linear(x, y, lambda logits, y: 0 * logits.sum(1) + 1, penalties=(1, 2, .5))
    assert len({loss for _, loss, _ in solution.table}) == 1
    assert len(solution.table) == 3
    assert solution.penalty == 2


def test_the_note_warns_of_the_end_of_the_range():
    x, y = photos(60, 10, 3)
    best = solve_linear(x, y, single(3)).penalty
    assert min(PENALTIES) < best < max(PENALTIES)
    for factors, end in (((1, 3, 9), "weakest"), ((1, 1 / 3, 1 / 9), "strongest")):
        solution = solve_linear(x, y, single(3), penalties=[best * f for f in factors])
        assert solution.penalty == best
        assert f"(the {end} of them" in solution.note
    assert "of them" not in solve_linear(x, y, single(3)).note


# ---- how it computes

def test_the_same_bits_each_time():
    x, y = photos(80, 120, 4)
    first, second = (solve_linear(x, y, single(4)) for _ in range(2))
    torch.rand(3)   # the global generator is neither used nor moved
    for name in ("weight", "bias", "mean", "std"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.table == second.table
    state = torch.get_rng_state()
    other = solve_linear(x, y, single(4), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.table != first.table


def test_the_modes_of_the_caller_do_not_matter():
    x, y = photos(40, 60, 3)
    plain = solve_linear(x, y, single(3))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = solve_linear(x.clone(), y.clone(), single(3))
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    with torch.no_grad(): without_gradients = solve_linear(x.requires_grad_(), y, single(3))
    for other in (inside, without_gradients):
        assert torch.equal(other.weight, plain.weight)
        assert not other.weight.requires_grad
        assert not other.weight.is_inference()


def test_features_in_16_bits_are_solved_in_64():
    x, y = photos(40, 60, 3)
    assert_same_head(solve_linear(x.half(), y, single(3), penalties=[.1]),
                     solve_linear(x.half().double(), y, single(3), penalties=[.1]))


def test_a_solution_goes_into_a_head():
    x, y = photos(60, 12, 3)
    head, solution = LinearHead(12, 3), solve_linear(x, y, single(3))
    assert head.untrained
    head.set_solution(solution)
    assert not head.untrained
    torch.testing.assert_close(head(x), logits_of(solution, x))
    loss = single(3)(head(x), y).mean() + head.penalty_loss()
    loss.backward()   # at the bottom
    assert all(p.grad.abs().max() < 2e-4 for p in head.parameters())
    with pytest.raises(ValueError, match=r"\(2, 12\), and the solution \(3, 12\)"):
        LinearHead(12, 2).set_solution(solution)


@pytest.mark.slow
def test_two_thousand_images_of_37_classes_take_seconds():
    x, y = photos(2000, 1280, 37, noise=30.)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin = time.process_time()
        solution = solve_linear(x, y, single(37))
    assert time.process_time() - begin < 120   # about 10 on one core
    assert len(solution.table) >= 4


@pytest.mark.parametrize("wrong, text", [
    (dict(x=torch.rand(30, 2, 5, 5)), r"shape \(30, 2, 5, 5\) with copies=1"),
    (dict(copies=7), r"shape \(30, 5\) with copies=7"), (dict(copies=0), "copies is .* above 0"),
    (dict(y=torch.zeros(29, dtype=torch.int64)), "features of 30 images, and targets of 29"),
    (dict(y=torch.zeros(30)), r"got shape \(30,\) of torch.float32"),
    (dict(weights=-torch.ones(30)), "finite numbers, at least 0, one for each of 30"),
    (dict(weights=torch.ones(3)), "one for each of 30"), (dict(penalties=[]), "empty"),
    (dict(penalties=[1, -1]), "each penalty is .* above 0; got -1"), (dict(folds=1), "folds is"),
    (dict(n_out=1), "need 3 outputs; got n_out=1"), (dict(weights=torch.zeros(30)), "none of 30")])
def test_what_does_not_fit_is_refused(wrong, text):
    x, y = photos(30, 5)
    with pytest.raises(ValueError, match=text):
        solve_linear(**dict(dict(x=x, y=y, losses=single(3)), **wrong))
