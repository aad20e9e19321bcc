"""Properties of lessonkit.interpret over random predictions, and its agreement with scikit-learn and the closed formulas."""
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lessonkit import interpret as I
from lessonkit.predict import Preds


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
    return Preds(probs, y if targets else None, losses, files, classes, kind)


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
        part = Preds(p.probs[lo:lo + size], p.targets[lo:lo + size], None, (), p.classes, "single")
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
    p = Preds(torch.eye(5), torch.arange(5), torch.tensor([1, nan, inf, nan, 2.]), (), tuple("abcde"), "single")
    assert I.top_losses(p)[1].tolist() == [1, 3, 2, 4, 0] and I.top_losses(p, largest=False)[1].tolist() == [0, 4, 2, 1, 3]


@quick
@given(k=st.one_of(st.none(), st.integers(1, 80)), **sizes)
def test_most_uncertain(n, c, seed, digits, k):
    p = made(n, c, seed, targets=False, digits=digits)
    m, idx = I.margin(p), I.most_uncertain(p, k)
    top = np.sort(p.probs.numpy(), 1)
    assert np.allclose(m, top[:, -1] - top[:, -2]) and (m >= 0).all()
    assert idx.tolist() == sorted(range(n), key=lambda i: m[i])[:len(idx)] and len(idx) == min(n if k is None else k, n)


@quick
@given(**sizes)
def test_wrong_is_in_order_and_complete(n, c, seed, digits):
    p = made(n, c, seed, digits=digits)
    said = p.probs.argmax(1)
    assert I.wrong(p).tolist() == [i for i in range(n) if said[i] != p.targets[i]]


@quick
@given(min_val=st.integers(1, 4), **sizes)
def test_most_confused(n, c, seed, digits, min_val):
    p = made(n, c, seed, digits=digits)
    got, cm = I.most_confused(p, min_val), I.confusion_matrix(p)
    cells = [(p.classes[a], p.classes[b], int(cm[a, b])) for a in range(c) for b in range(c) if a != b and cm[a, b] >= min_val]
    assert got == sorted(cells, key=lambda t: -t[2])  # row by row among equals
    assert all(type(a) is str and type(b) is str and type(k) is int for a, b, k in got)
    if min_val == 1: assert sum(k for *_, k in got) == len(I.wrong(p))


# --- the table

@pytest.mark.parametrize("kind,want", [("single", "file actual predicted probability probability_actual loss margin"),
                                       ("multi", "file actual predicted loss"), ("number", "file actual_class00 predicted_class00 "
                                        "actual_class01 predicted_class01 loss")])
def test_to_frame(kind, want):
    p = made(12, 2, 4, paths=True, kind=kind)
    t = I.to_frame(p)
    assert list(t) == want.split() and len(t) == 12 and t.file[3] == "3.jpg"
    bare = I.to_frame(Preds(p.probs, None, None, (), p.classes, kind))
    assert not {"file", "loss", "probability_actual"} & set(bare) and not any(c.startswith("actual") for c in bare)
    if kind == "single":
        assert (t.actual == t.predicted).mean() == pytest.approx(I.accuracy(p)) and np.allclose(t.margin, I.margin(p))
        assert np.allclose(t.loss, -np.log(t.probability_actual))


# --- bad input

single_only = [I.accuracy, I.error_rate, I.error_interval, I.accuracy_interval, I.confusion_matrix, I.most_confused, I.wrong]


@pytest.mark.parametrize("f", single_only)
def test_no_labels_or_wrong_kind(f):
    with pytest.raises(ValueError, match="true labels.*validation set"): f(made(targets=False))
    with pytest.raises(ValueError, match="'single'.*'multi'.*accuracy_multi"): f(made(kind="multi"))


def test_other_bad_input():
    for f, kind in [(I.accuracy_multi, "multi"), (I.mse, "number"), (I.mae, "number"), (I.rmse, "number")]:
        with pytest.raises(ValueError, match=f"'{kind}'.*'single'.*error_rate"): f(made())
    with pytest.raises(ValueError, match="none.*validation set"): I.top_losses(made(targets=False))
    with pytest.raises(ValueError, match="single"): I.most_uncertain(made(kind="multi"))
    for f in (I.top_losses, I.most_uncertain):
        for k in (0, -2):
            with pytest.raises(ValueError, match=f"at least 1, not {k}"): f(made(), k)
        for k in (1.5, "9", True):
            with pytest.raises(TypeError, match="whole number"): f(made(), k)
    p = made()
    for y in (p.targets + 1, p.targets - 1):
        with pytest.raises(ValueError, match="between 0 and 2"): I.accuracy(Preds(p.probs, y, None, (), p.classes, "single"))
    with pytest.raises(ValueError, match=r"\(20, 1\).*\(20,\)"):
        I.mse(Preds(p.probs[:, :1], p.probs[:, 0], None, (), ("x",), "number"))  # would broadcast to 20 by 20
    with pytest.raises(ValueError, match="at least one"): I.accuracy(Preds(p.probs[:0], p.targets[:0], None, (), p.classes, "single"))
    with pytest.raises(TypeError, match="Preds.*ndarray"): I.accuracy(p.probs.numpy())
    with pytest.raises(ValueError, match="'words'"): I.default_metrics("words")
    with pytest.raises(ValueError, match="min_val"): I.most_confused(p, 0)


# --- what it costs

def test_imports_are_light():
    code = "import sys, lessonkit.interpret; print(*[m for m in ('matplotlib', 'pandas', 'sklearn', 'scipy', 'timm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == ""
