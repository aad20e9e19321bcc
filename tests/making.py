"Helpers for tests of figures: photographs, predictions of a chosen skill, and what is drawn."
import io
import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from lessonkit.core.task import Task
from lessonkit.results.preds import Preds


def photo(path, seed=0, size=(200, 150)):
    "An image with as much detail as a photograph: smooth colors and some grain."
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    grainy = smooth + rng.normal(0, 12, (size[1], size[0], 3))
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(path)
    return path


def predictions(c=5, n=40, seed=0, skill=1.5, paths=(), targets=True, classes=None):
    "Random predictions for c classes; the greater the skill, the more of them are correct."
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=g)
    scores = torch.randn(n, c, generator=g)
    scores[range(n), y] += skill
    probs = scores.softmax(1)
    losses = -probs[range(n), y].log()
    task = Task("single", tuple(classes or (f"class_{i}" for i in range(c))))
    if not targets: y = losses = None
    return Preds(probs, y, losses, tuple(paths), task)


def pixels(ax, layer=0):
    "What is drawn on axes, as an array."
    return np.asarray(ax.images[layer].get_array())


def titles(fig):
    "The titles above the images, with plain spaces."
    return [ax.get_title().replace("\xa0", " ") for ax in fig.axes]


def boxes(texts):
    "Where texts are drawn, in dots."
    return [t.get_window_extent() for t in texts]


def overlap(a, b, dx=0, dy=0):
    "Do two boxes overlap by more than dx and dy dots?"
    return a.x0 < b.x1 - dx and b.x0 < a.x1 - dx and a.y0 < b.y1 - dy and b.y0 < a.y1 - dy


def apart(boxes, dx=0, dy=0):
    "No two of these boxes overlap by more than dx and dy dots."
    return not any(overlap(a, b, dx, dy) for i, a in enumerate(boxes) for b in boxes[:i])


def legend_of(fig):
    "The names below a diagram."
    return [t.get_text() for t in fig.legends[0].get_texts()]


def check_figures(draw, shortest_alt):
    "Each figure that `draw` returns, by name, is small and described; none is left open in pyplot."
    from matplotlib import pyplot
    before = pyplot.get_fignums()
    for name, fig in draw().items():
        mime, file = fig.image()
        assert len(file) <= 56_000, name
        assert fig.dpi == 96, name
        assert mime == ("image/jpeg" if fig.photos else "image/png"), name
        assert f"image/{Image.open(io.BytesIO(file)).format.lower()}" == mime, name
        assert len(fig.alt) > shortest_alt, name
    assert pyplot.get_fignums() == before


def imported_with(module, names):
    "Which of some modules a fresh Python has imported after `import module`."
    code = f"import sys, {module}; print(*(m for m in {names!r} if m in sys.modules))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
