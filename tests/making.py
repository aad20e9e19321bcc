"""What tests of pictures and diagrams draw from: photographs with as much detail as real ones, and predictions of a chosen skill."""
import numpy as np
import torch
from PIL import Image

from lessonkit.results.preds import Preds


def photo(path, seed=0, size=(200, 150)):
    "A picture with as much detail as a photograph: smooth colors and some grain."
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    Image.fromarray((np.asarray(small) + rng.normal(0, 12, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)).save(path)
    return path


def predictions(c=5, n=40, seed=0, skill=1.5, paths=(), targets=True, classes=None):
    "Random predictions of c classes, the more often right the greater the skill."
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=g)
    scores = torch.randn(n, c, generator=g)
    scores[range(n), y] += skill
    probs = scores.softmax(1)
    losses = -probs[range(n), y].log()
    return Preds(probs, y if targets else None, losses if targets else None, tuple(paths), Task("single", tuple(classes or (f"class_{i}" for i in range(c)))))
