"""Random predictions with a seed, for the tests of results."""
from pathlib import Path

import torch

from lessonkit.core.task import Task
from lessonkit.results.preds import Preds


def random_preds(n=20, c=3, seed=0, targets=True, paths=False, kind="single", digits=None):
    "`n` predictions of `c` columns; `digits` rounds the probabilities, so that there are ties."
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, c, generator=g).double()
    if kind == "single": probs = probs/probs.sum(1, keepdim=True)
    if digits is not None: probs = probs.mul(10**digits).round()/10**digits
    y, losses = random_targets(probs, kind, g)
    if not targets: y = losses = None
    classes = tuple(f"class{i:02}" for i in range(c))
    files = tuple(Path(f"some/where/{i}.jpg") for i in range(n)) if paths else ()
    return Preds(probs, y, losses, files, Task(kind, classes))


def random_targets(probs, kind, generator):
    "Targets of one kind, and what the losses of `probs` are."
    n, c = probs.shape
    if kind == "single":
        y = torch.randint(0, c, (n,), generator=generator)
        return y, -probs.clamp(min=1e-9).log().gather(1, y[:, None])[:, 0]
    y = (torch.rand(n, c, generator=generator) > .5).double()
    if kind == "number": y = torch.randn(n, c, generator=generator).double()
    return y, (probs - y).square().mean(1)


def single_preds(probs, y, classes, losses=None):
    "Predictions of one label each."
    return Preds(probs, y, losses, (), Task("single", tuple(classes)))
