"""Properties of lessonkit.interpret over random predictions, and its agreement with scikit-learn and the closed formulas."""
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lessonkit import interpret as I
from lessonkit.results.preds import Preds


def made(n=20, c=3, seed=0, targets=True, paths=False, kind="single", digits=None):
    "Random predictions; `digits` rounds the probabilities, so that there are ties."
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, c, generator=g).double()
    if kind == "single": probs = probs/probs.sum(1, keepdim=True)
    if digits is not None: probs = probs.mul(10**digits).round()/10**digits
    y = torch.randint(0, c, (n,), generator=g) if kind == "single" else (torch.rand(n, c, generator=g) > .5).double()
    if kind == "number": y = torch.randn(n, c, generator=g).double()
    losses = -probs.clamp(min=1e-9).log().gather(1, y[:, None])[:, 0] if kind == "single" else (probs - y).square().mean(1)
    if not targets: losses = None
    classes = tuple(f"class{i:02}" for i in range(c))
    files = tuple(Path(f"some/where/{i}.jpg") for i in range(n)) if paths else ()
    return Preds(probs, y if targets else None, losses, files, Task(kind, classes))


sizes = dict(n=st.integers(1, 60), c=st.integers(2, 8), seed=st.integers(0, 10_000), digits=st.sampled_from([None, 1]))
quick = settings(max_examples=60, deadline=None)


# --- metrics

@quick
@given(**sizes)
def test_accuracy_and_matrix_agree_with_sklearn(n, c, seed, digits):
    from sklearn import metrics as sk
    p = made(n, c, seed, digits=digits)
    y, said = p.targets.numpy(), p.probs.argmax(1).numpy()
    assert math.isclose(I.accuracy(p), sk.accuracy_score(y, said)) and math.isclose(I.error_rate(p), 1 - I.accuracy(p), abs_tol=1e-12)
    cm = I.confusion_matrix(p)
    assert np.array_equal(cm, sk.confusion_matrix(y, said, labels=range(c))) and np.issubdtype(cm.dtype, np.integer)
    assert cm.sum() == n and cm.trace() == n - len(I.wrong(p)) and np.array_equal(cm.sum(1), np.bincount(y, minlength=c))


@quick
@given(seed=st.integers(0, 1000), parts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_metric_weighs_samples_not_batches(seed, parts):
    p, lo, total = made(sum(parts), 3, seed), 0, 0.
    for size in parts:
        part = Preds(p.probs[lo:lo + size], p.targets[lo:lo + size], None, (), Task("single", p.classes))
        total, lo = total + size*I.accuracy(part), lo + size
    assert math.isclose(I.accuracy(p), total/lo)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "samples"])
def test_fbeta_is_sklearns(average):
    from sklearn.metrics import fbeta_score
    p = made(40, 4, 3, kind="multi")
    want = fbeta_score(p.targets.bool().numpy(), (p.probs > .3).numpy(), beta=2, average=average, zero_division=0)
    assert math.isclose(I.fbeta(p, average=average, thresh=.3), want)
    single = made(40, 4, 3)
    if average == "samples": return
    want = fbeta_score(single.targets, single.probs.argmax(1), beta=1, average=average)
    assert math.isclose(I.fbeta(single, beta=1, average=average), want)


def test_multi_and_number_metrics():
    p = made(30, 4, 1, kind="multi")
    assert math.isclose(I.accuracy_multi(p), ((p.probs > .5).numpy() == p.targets.bool().numpy()).mean())
    q = made(30, 2, 1, kind="number")
    diff = (q.probs - q.targets).numpy()
    assert math.isclose(I.mse(q), (diff**2).mean()) and math.isclose(I.rmse(q)**2, I.mse(q)) and math.isclose(I.mae(q), abs(diff).mean())
    assert all(isinstance(m(x), float) for k, x in dict(single=made(), multi=p, number=q).items() for m in I.default_metrics(k))


# --- intervals

@quick
@given(n=st.integers(1, 3000), share=st.floats(0, 1), level=st.sampled_from([.5, .9, .95, .99]))
def test_wilson_against_the_formula(n, share, level):
    from statistics import NormalDist
    k, z = round(share*n), NormalDist().inv_cdf((1 + level)/2)
    w, p = I.wilson(k, n, level), round(share*n)/n
    mid, half = (p + z*z/(2*n))/(1 + z*z/n), z/(1 + z*z/n)*math.sqrt(p*(1 - p)/n + z*z/(4*n*n))
    assert w.low == pytest.approx(max(0, mid - half), abs=1e-9) and w.high == pytest.approx(min(1, mid + half), abs=1e-9)
    assert 0 <= w.low <= w.value <= w.high <= 1 and w.low < w.high and (w.k, w.n, w.level) == (k, n, level)
    other = I.wilson(n - k, n, level)
    assert w.low == pytest.approx(1 - other.high, abs=1e-9)


def test_interval_words_and_errors():
    assert str(I.wilson(98, 1478)) == repr(I.wilson(98, 1478)) == "6.6% (5.5% to 8.0%, 98 of 1478)"
    p = made(50, 3, 5)
    e, a = I.error_interval(p), I.accuracy_interval(p)
    assert e.value == pytest.approx(I.error_rate(p)) and a.value == pytest.approx(I.accuracy(p)) and e.k + a.k == e.n == a.n == 50
    with pytest.raises(AttributeError): e.value = 0
    for bad in [(5, 4), (-1, 4), (0, 0)]:
        with pytest.raises(ValueError, match=f"{bad[0]} of {bad[1]}"): I.wilson(*bad)
    with pytest.raises(ValueError, match="95"): I.wilson(1, 4, 95)


# --- selections

@quick
@given(k=st.one_of(st.none(), st.integers(1, 80)), largest=st.booleans(), **sizes)
def test_top_losses(n, c, seed, digits, k, largest):
    p = made(n, c, seed, digits=digits)
    losses, idx = I.top_losses(p, k, largest)
    assert len(losses) == len(idx) == min(n if k is None else k, n) and len(set(idx.tolist())) == len(idx)
    assert torch.equal(losses, p.losses[idx])
    want = sorted(range(n), key=lambda i: -p.losses[i] if largest else p.losses[i])  # sorted() is stable
    assert idx.tolist() == want[:len(idx)]


def test_top_losses_not_a_number():
    nan, inf = math.nan, math.inf
    p = Preds(torch.eye(5), torch.arange(5), torch.tensor([1, nan, inf, nan, 2.]), (), Task("single", tuple("abcde")))
    assert I.top_losses(p)[1].tolist() == [1, 3, 2, 4, 0] and I.top_losses(p, largest=False)[1].tolist() == [0, 4, 2, 1, 3]


def two_classes(n, seed, spread, digits=None):
    "float32, as a model gives them: at a small spread all are near 1/2, at a large one the surer class is 1.0 in float32."
    g = torch.Generator().manual_seed(seed)
    probs = (spread*torch.randn(n, 2, generator=g)).softmax(1)
    if digits is not None: probs = probs.mul(10**digits).round()/10**digits
    y = torch.randint(0, 2, (n,), generator=g)
    return Preds(probs, y, -probs.clamp_min(1e-30).log()[range(n), y], (), Task("single", ("cat", "dog")))


WAYS = "margin", "entropy", "least_confidence"
binary = dict(n=st.integers(1, 60), seed=st.integers(0, 10_000), spread=st.sampled_from([1e-7, 1e-3, 1., 30.]), digits=st.sampled_from([None, 1]))


@quick
@given(by=st.sampled_from(WAYS), **binary)
def test_of_two_classes_the_most_uncertain_is_the_nearest_to_one_half(n, seed, spread, digits, by):
    p = two_classes(n, seed, spread, digits)
    assert I.most_uncertain(p, by=by).tolist() == sorted(range(n), key=lambda i: abs(p.probs[i, 1].item() - .5))


@quick
@given(**binary)
def test_of_two_classes_the_most_correct_are_those_of_the_old_lesson(n, seed, spread, digits):
    p = two_classes(n, seed, spread, digits)
    for label, is_correct in product((0, 1), (True, False)):
        sign = -1 if (label == 1) == is_correct else 1  # the rule of 2017, as it was meant: by sign*p(class 1)
        among = [i for i in range(n) if p.targets[i] == label and (p.probs[i].argmax() == p.targets[i]) == is_correct]
        got = (I.most_correct if is_correct else I.most_incorrect)(p, label)
        assert got.tolist() == sorted(among, key=lambda i: sign*p.probs[i, 1].item())
        assert got.tolist() == I.in_cell(p, label, label if is_correct else 1 - label).tolist()


many = sizes | dict(c=st.integers(2, 40), k=st.one_of(st.none(), st.integers(1, 80)))


def selections(p, label, other):
    "Each selection by name: what it gives for k, the positions it chooses among, and a key to sort them by, smallest first."
    n, probs, said = len(p), p.probs.double(), p.probs.argmax(1)
    ranked, true = probs.sort(1, descending=True).values, p.targets
    entropy = -(probs*probs.clamp_min(1e-300).log()).sum(1)
    among = lambda mask: mask.nonzero()[:, 0].tolist()
    return {"right": (lambda k: I.right(p)[:k], among(said == true), range(n)),
            "wrong": (lambda k: I.wrong(p)[:k], among(said != true), range(n)),
            "most correct": (lambda k: I.most_correct(p, label, k), among((said == true) & (true == label)), -probs[:, label]),
            "most incorrect": (lambda k: I.most_incorrect(p, p.classes[label], k), among((said != true) & (true == label)), probs[:, label]),
            "in a cell": (lambda k: I.in_cell(p, label, other, k), among((true == label) & (said == other)), -probs[:, other]),
            "margin": (lambda k: I.most_uncertain(p, k), range(n), (ranked[:, 0] - ranked[:, 1])),
            "entropy": (lambda k: I.most_uncertain(p, k, by="entropy"), range(n), -entropy),
            "least confidence": (lambda k: I.most_uncertain(p, k, by="least_confidence"), range(n), ranked[:, 0])}


@quick
@given(**many)
def test_selections(n, c, seed, digits, k):
    p = made(n, c, seed, digits=digits)
    for name, (select, among, key) in selections(p, seed % c, (seed + seed % 3) % c).items():
        got = select(k)
        assert got.dtype == torch.int64 and got.shape == (min(k or n, len(among)),), name
        assert len(set(got.tolist())) == len(got) and set(got.tolist()) <= set(among), name
        if name == "entropy":  # its last digit depends on the order of the sum
            assert all(key[a] <= key[b] + 1e-12 for a, b in zip(got[:-1], got[1:])), name
        elif c > 2 or name not in ("margin", "least confidence"):  # of two classes: above
            assert got.tolist() == sorted(among, key=lambda i: float(key[i]))[:k], name  # sorted() is stable


@quick
@given(n=st.integers(1, 60), c=st.integers(2, 40), seed=st.integers(0, 10_000))
def test_selections_do_not_depend_on_the_order_of_the_data(n, c, seed):
    p = made(n, c, seed)
    at = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for (name, (here, *_)), (there, *_) in zip(selections(p, 0, 1).items(), selections(p[at], 0, 1).values()):
        if name in ("right", "wrong"): assert at[there(None)].sort().values.tolist() == here(None).tolist()
        else: assert at[there(None)].tolist() == here(None).tolist(), name
    hardest = I.one_per_class(p[at], I.top_losses(p[at])[1])
    assert at[hardest].tolist() == I.one_per_class(p, I.top_losses(p)[1]).tolist()


@pytest.mark.parametrize("c", [2, 3, 40])
def test_the_same_numbers_in_other_places_are_as_uncertain(c):
    g = torch.Generator().manual_seed(c)
    row = torch.rand(c, generator=g).double()
    probs = torch.stack([row[torch.randperm(c, generator=g)] for _ in range(50)])/row.sum()
    p = Preds(probs, None, None, (), Task("single", tuple(map(str, range(c)))))
    for by in WAYS:
        if c > 2: assert I.most_uncertain(p, by=by).tolist() == list(range(50))


@pytest.mark.parametrize("c", [2, 3, 7])
def test_probabilities_that_are_not_numbers_come_last(c):
    p = made(30, c, 2)
    p.probs[4] = p.probs[17, 0] = math.nan
    for by in WAYS: assert I.most_uncertain(p, by=by)[-2:].tolist() == [4, 17]
    p.probs[17] = math.nan
    for label in range(c):
        for got in (I.most_incorrect(p, label), I.most_correct(p, label)):
            lost = [i in (4, 17) for i in got.tolist()]
            assert lost == sorted(lost)
    last = Preds(torch.tensor([[math.nan]*3, [.2, .5, .3], [math.nan]*3, [.1, .6, .3]]), torch.tensor([1, 0, 1, 0]), None, (), Task("single", tuple("abc")))
    assert I.most_incorrect(last, "b").tolist() == [0, 2] and I.most_incorrect(last, "a").tolist() == [3, 1]


@quick
@given(draw=st.integers(0, 5), **many)
def test_random_choice(n, c, seed, digits, k, draw):
    p = made(n, c, seed, digits=digits)
    before = torch.get_rng_state()
    for choose, among in [(I.random_right, I.right(p)), (I.random_wrong, I.wrong(p))]:
        got, every = choose(p, k, draw).tolist(), choose(p, None, draw).tolist()
        assert sorted(every) == among.tolist() and got == every[:k] and len(choose(p)) == min(4, len(among))
    assert torch.equal(before, torch.get_rng_state())


def test_random_choice_depends_on_the_seed_and_favors_nobody():
    p = made(40, 3, 1)
    first = [int(I.random_wrong(p, 1, seed)[0]) for seed in range(400)]
    assert set(first) == set(I.wrong(p).tolist()) and max(map(first.count, first)) < 60  # about 15 each


@quick
@given(**sizes)
def test_one_per_class(n, c, seed, digits):
    p = made(n, c, seed, digits=digits)
    for order in (list(range(n)), I.top_losses(p)[1].tolist(), I.wrong(p).tolist()):
        want = [next(i for i in order if p.targets[i] == k) for k in range(c) if any(p.targets[i] == k for i in order)]
        for kind in (list, np.array, torch.tensor, tuple): assert I.one_per_class(p, kind(order)).tolist() == want
    assert I.one_per_class(p).tolist() == I.one_per_class(p, range(n)).tolist() == I.one_per_class(p, torch.arange(n)).tolist()


def test_classes_by_name_and_number():
    p = made(c=3)
    assert [I.class_index(p, x) for x in ("class01", 1, np.int64(1), np.str_("class01"), torch.tensor(1))] == [1]*5
    digits = Preds(torch.eye(3), None, None, (), Task("single", (7, 0, 1)))
    assert [I.class_index(digits, x) for x in (7, 0, 1, 2)] == [0, 1, 2, 2]  # a name before a number
    with pytest.raises(ValueError, match="'class1'.*'class01'.*0 to 2"): I.class_index(p, "class1")
    for bad in (3, -1, True, 1., None, "pug"):
        with pytest.raises(ValueError, match="no class"): I.class_index(p, bad)
    with pytest.raises(ValueError, match="kind 'number'"): I.class_index(made(kind="number"), 0)
    for f in (I.most_correct, I.most_incorrect):
        with pytest.raises(ValueError, match="no class 'pug'"): f(p, "pug")
    with pytest.raises(ValueError, match="no class 9"): I.in_cell(p, 0, 9)


def test_nothing_to_choose_from():
    p = made()
    none = p[[]]
    sure = Preds(torch.eye(3), torch.arange(3), torch.zeros(3), (), Task("single", tuple("abc")))
    empties = [I.right(none), I.wrong(none), I.random_right(none), I.most_correct(none, 0), I.in_cell(none, 0, 1), I.most_uncertain(none),
               I.top_losses(none)[1], I.one_per_class(none), I.one_per_class(p, []), I.wrong(sure), I.random_wrong(sure),
               I.most_incorrect(sure, "a", 4), I.in_cell(sure, "a", "b")]
    assert all(e.dtype == torch.int64 and e.shape == (0,) for e in empties)
    assert len(p[I.wrong(sure)]) == 0  # and can be used to choose


@quick
@given(min_val=st.integers(1, 4), **sizes)
def test_most_confused(n, c, seed, digits, min_val):
    p = made(n, c, seed, digits=digits)
    got, cm = I.most_confused(p, min_val), I.confusion_matrix(p)
    cells = [(p.classes[a], p.classes[b], int(cm[a, b])) for a in range(c) for b in range(c) if a != b and cm[a, b] >= min_val]
    assert got == sorted(cells, key=lambda t: -t[2])  # row by row among equals
    assert all(type(a) is str and type(b) is str and type(k) is int for a, b, k in got)
    if min_val == 1: assert sum(k for *_, k in got) == len(I.wrong(p))


# --- one model against another

def other_answers(p, seed):
    "Predictions of the same items by another model."
    q = made(len(p), p.probs.shape[1], seed)
    return Preds(q.probs, p.targets, None, p.paths, Task("single", p.classes))


@quick
@given(n=st.integers(1, 60), c=st.integers(2, 8), seed=st.integers(0, 10_000))
def test_compare_is_mcnemars_exact_test(n, c, seed):
    a = made(n, c, seed, paths=True)
    b = other_answers(a, seed + 1)
    got, back = I.compare(a, b), I.compare(b, a)
    was, now = set(I.wrong(a).tolist()), set(I.wrong(b).tolist())
    assert (got.gained, got.lost) == (len(was - now), len(now - was)) == (back.lost, back.gained)
    m = got.gained + got.lost
    tail = sum(math.comb(m, i) for i in range(min(got.gained, got.lost) + 1))/2**m
    assert got.p == pytest.approx(min(1, 2*tail)) == back.p
    assert (got.before.k, got.after.k) == (len(was), len(now)) and got.before == I.error_interval(a) and got.after.level == .95
    assert I.compare(a, b, .5).before == I.error_interval(a, .5)


def test_comparison_in_words():
    def with_mistakes(*at):
        probs = torch.eye(2)[[int(i in at) for i in range(100)]]
        return Preds(probs, torch.zeros(100, dtype=torch.long), None, (), Task("single", ("a", "b")))
    got = I.compare(with_mistakes(*range(12)), with_mistakes(*range(3, 13)))
    assert str(got) == repr(got) == (f"before {I.wilson(12, 100)}, after {I.wilson(10, 100)}: 3 gained, 1 lost, p = 0.62")
    assert str(I.compare(with_mistakes(*range(40)), with_mistakes())).endswith("40 gained, 0 lost, p < 0.0001")
    same = I.compare(with_mistakes(), with_mistakes())
    assert same.p == 1 and type(same.gained) is int and type(same.p) is float and str(same).endswith("0 gained, 0 lost, p = 1")


def test_only_the_same_items_are_compared():
    a = made(20, 3, 1, paths=True)
    b = other_answers(a, 2)
    for bad, words in [(b[:19], "20 and of 19 items"), (b[[1, 0, *range(2, 20)]], "position 0.*0.jpg.*1.jpg"),
                       (made(20, 4, 1, paths=True), "classes differ"),
                       (Preds(b.probs, (a.targets + (torch.arange(20) == 7)) % 3, None, a.paths, Task("single", a.classes)), "position 7.*true class")]:
        with pytest.raises(ValueError, match=f"same items.*{words}"): I.compare(a, bad)
    assert I.compare(a, Preds(b.probs, b.targets, None, (), Task("single", b.classes))).p == I.compare(a, b).p  # arrays have no paths
    for one in (made(targets=False), made(kind="multi")):
        for pair in ((one, made()), (made(), one)):
            with pytest.raises(ValueError, match="^compare"): I.compare(*pair)


# --- class by class

@settings(quick, max_examples=25)
@given(kind=st.sampled_from(["single", "multi"]), thresh=st.sampled_from([.3, .5]), **sizes | dict(c=st.integers(1, 8)))
def test_report_counts(kind, thresh, n, c, seed, digits):
    p = made(n, c, seed, digits=digits, kind=kind)
    t = I.report(p, thresh=thresh)
    one_hot = lambda idx: np.eye(c, dtype=bool)[idx.numpy()]
    y, said = (one_hot(p.targets), one_hot(p.probs.argmax(1))) if kind == "single" else (p.targets.numpy() > .5, p.probs.numpy() > thresh)
    hits = (y & said).sum(0)
    share = lambda a, b: np.divide(a, b, out=np.zeros(c), where=b > 0)
    assert list(t) == ["precision", "recall", "f1", "n", "predicted"] and tuple(t.index) == p.classes and t.index.name == "class"
    assert np.array_equal(t.n, y.sum(0)) and np.array_equal(t.predicted, said.sum(0))
    assert np.allclose(t.precision, share(hits, said.sum(0))) and np.allclose(t.recall, share(hits, y.sum(0)))
    assert np.allclose(t.f1, share(2*hits, y.sum(0) + said.sum(0)))


# --- two classes

@quick
@given(n=st.integers(2, 60), seed=st.integers(0, 10_000), digits=st.sampled_from([None, 1]), positive=st.sampled_from([None, 0, 1, "class00", "class01"]))
def test_curves_count_what_lies_above_a_threshold(n, seed, digits, positive):
    p = made(n, 2, seed, digits=digits)
    p.targets[:2] = torch.tensor([0, 1])  # some of each
    i = 1 if positive is None else I.class_index(p, positive)
    score, y = p.probs[:, i].numpy(), p.targets.numpy() == i
    roc, pr = I.roc(p, positive), I.precision_recall(p, positive)
    for curve in (roc, pr):
        assert curve.positive == p.classes[i] and len(curve.x) == len(curve.y) == len(curve.thresholds)
        assert curve.thresholds[0] == math.inf and (np.diff(curve.thresholds) < 0).all() and (np.diff(curve.x) >= 0).all()
        assert (curve.x[0], curve.x[-1]) == (0, 1)
        for a, b, t in zip(curve.x, curve.y, curve.thresholds):
            yes = score >= t
            recall, alarms = yes[y].mean(), yes[~y].mean()
            want = (alarms, recall) if curve is roc else (recall, y[yes].mean() if yes.any() else 1)
            assert np.allclose((a, b), want)
    pairs = np.sign(score[y][:, None] - score[~y][None])
    assert roc.kind == "roc" and math.isclose(roc.area, (pairs.mean() + 1)/2)  # ties count half
    assert pr.kind == "precision_recall" and math.isclose(pr.area, (np.diff(pr.x)*pr.y[1:]).sum())
    assert math.isclose(pr.y[-1], y.mean()) and type(roc.area) is type(pr.area) is float
    assert repr(roc) == f"roc of '{p.classes[i]}': area {roc.area:.3f}, {len(roc.x)} points"


@pytest.mark.parametrize("f", [I.roc, I.precision_recall])
def test_curves_need_both_of_two_classes(f):
    name = f.__name__
    with pytest.raises(ValueError, match=f"{name} is for two classes.*3"): f(made(c=3))
    with pytest.raises(ValueError, match="no class 'pug'"): f(made(c=2), "pug")
    p = made(c=2)
    with pytest.raises(ValueError, match="all 20 pictures are of 'class01'"):
        f(Preds(p.probs, torch.ones(20, dtype=torch.long), None, (), Task("single", p.classes)))
    p.probs[3:5] = math.nan
    with pytest.raises(ValueError, match="2 of 20 probabilities are not numbers"): f(p)


# --- bad input

single_only = [I.accuracy, I.error_rate, I.error_interval, I.accuracy_interval, I.confusion_matrix, I.most_confused, I.right, I.wrong,
               I.random_right, I.random_wrong, I.one_per_class, lambda p: I.most_correct(p, 0), lambda p: I.most_incorrect(p, 0),
               lambda p: I.in_cell(p, 0, 1), I.roc, I.precision_recall, lambda p: I.compare(p, p)]


@pytest.mark.parametrize("f", single_only)
def test_no_labels_or_wrong_kind(f):
    name = "" if f.__name__ == "<lambda>" else f.__name__
    with pytest.raises(ValueError, match=f"^{name}.*true labels.*validation set"): f(made(targets=False))
    with pytest.raises(ValueError, match="'single'.*'multi'.*accuracy_multi"): f(made(kind="multi"))


def test_other_bad_input():
    for f, kind in [(I.accuracy_multi, "multi"), (I.mse, "number"), (I.mae, "number"), (I.rmse, "number")]:
        with pytest.raises(ValueError, match=f"'{kind}'.*'single'.*error_rate"): f(made())
    with pytest.raises(ValueError, match="none.*validation set"): I.top_losses(made(targets=False))
    with pytest.raises(ValueError, match="single"): I.most_uncertain(made(kind="multi"))
    with pytest.raises(ValueError, match="margin.*'doubt'"): I.most_uncertain(made(), by="doubt")
    with pytest.raises(ValueError, match="at least two"): I.most_uncertain(made(c=1))
    for bad in ([0, 20], [-1], [.5], torch.ones(20, dtype=bool), [[1, 2]]):
        with pytest.raises(ValueError, match="positions between 0 and 19"): I.one_per_class(made(), bad)
    for f in (I.top_losses, I.most_uncertain, I.random_right, I.random_wrong, lambda p, k: I.most_correct(p, 0, k),
              lambda p, k: I.most_incorrect(p, 0, k), lambda p, k: I.in_cell(p, 0, 1, k)):
        for k in (0, -2):
            with pytest.raises(ValueError, match=f"at least 1, not {k}"): f(made(), k)
        for k in (1.5, "9", True):
            with pytest.raises(TypeError, match="whole number"): f(made(), k)
    p = made()
    for y in (p.targets + 1, p.targets - 1):
        with pytest.raises(ValueError, match="between 0 and 2"): I.accuracy(Preds(p.probs, y, None, (), Task("single", p.classes)))
    with pytest.raises(ValueError, match=r"\(20, 1\).*\(20,\)"):
        I.mse(Preds(p.probs[:, :1], p.probs[:, 0], None, (), Task("number", ("x",))))  # would broadcast to 20 by 20
    with pytest.raises(ValueError, match="at least one"): I.accuracy(Preds(p.probs[:0], p.targets[:0], None, (), Task("single", p.classes)))
    with pytest.raises(TypeError, match="Preds.*ndarray"): I.accuracy(p.probs.numpy())
    with pytest.raises(ValueError, match="'words'"): I.default_metrics("words")
    with pytest.raises(ValueError, match="min_val"): I.most_confused(p, 0)


# --- what it costs

def test_imports_are_light():
    code = "import sys, lessonkit.interpret; print(*[m for m in ('matplotlib', 'pandas', 'sklearn', 'scipy', 'timm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == ""
