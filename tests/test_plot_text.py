"""Every diagram is readable on the page: no text below 9 points at the size it is shown."""
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text

import lessonkit.plot as plot
from lessonkit.core.task import Task
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from lessonkit.results.preds import Preds
from lessonkit.train.history import FitRecord, History
from lessonkit.train.lr_finder import LRFind, suggest_rates
from lessonkit.train.schedules import flat_cos, one_cycle
from making import photo, predictions

LEAST = 9        # points
PAGE = 820       # pixels: what JupyterLab and a printed page have room for, about
PIXELS = 4 / 3   # of the page, in a point
BREEDS = ["american_pit_bull_terrier", "German_shorthaired", "pug", "British_Shorthair"]
BREEDS += [f"breed_{i}" for i in range(40)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return tuple(photo(folder / f"{i % 2}_a_long_name_of_a_file_{i:05}.jpg", i) for i in range(12))


def history():
    "Two fits whose loss falls, with two metrics."
    def fit(name, epochs):
        n = 8 * epochs
        falls = (2 / np.arange(1, n + 1)).tolist()
        measured = dict(valid_loss=.5, error_rate=.125, f1=.7, time=1.)
        rows = [dict(epoch=e, **measured) for e in range(epochs)]
        return FitRecord(name, losses=falls, smooth=falls, moms=[.9] * n, rows=rows,
                         lrs=[(1e-4, 1e-3)] * n, ends=[8 * (e + 1) for e in range(epochs)])
    return History([fit("the head alone", 2), fit("all layers", 3)])


def finder():
    rates = np.geomspace(1e-6, 1, 60)
    losses = 2.5 - 1.5 / (1 + (1e-3 / rates) ** 2) + 20 * np.maximum(0, rates - .1)
    return LRFind(tuple(rates), tuple(losses), **suggest_rates(rates, losses), skip=(6, 5))


def numbers():
    "Predicted numbers that are nearly right."
    true = torch.linspace(0, 50, 30)[:, None]
    said = true + 3 * torch.sin(true)
    return Preds(said, true, (said - true).square().mean(1), (), Task("number"))


def duplicates(files):
    import pandas as pd
    return pd.DataFrame([dict(kind=kind, a=files[0], b=files[1], distance=3, split_a="train",
                              split_b="valid", label_a=BREEDS[0], label_b=BREEDS[1])
                         for kind in ("exact", "near", "similar")])


@pytest.fixture(scope="module")
def figures(files):
    "{function: what draws figures with it}, of all public functions that return one."
    few = predictions(12, 60, classes=BREEDS[:12], paths=files * 5)
    two = predictions(2, 60, classes=BREEDS[:2])
    many = predictions(37, 900, classes=BREEDS[:37], skill=3)
    named = {"before": two, "after, with a long name": predictions(2, 60, 1, classes=BREEDS[:2])}
    data = ImageData.from_name_func(files[0].parent, lambda path: BREEDS[int(Path(path).name[0])],
                                    files, size=48, bs=4, check=None)
    learn = Learner(data, show=False, cache=False)
    edges = dict(upright=[[-1, 0, 1]] * 3, soft=np.full((3, 3), 1 / 9))
    numbered = np.arange(64).reshape(8, 8)
    pictures = dict(
        plot_cell=lambda: [plot.plot_cell(few, *few.classes[:2])],
        plot_correct=lambda: [plot.plot_correct(few)],
        plot_incorrect=lambda: [plot.plot_incorrect(few)],
        plot_most_correct=lambda: [plot.plot_most_correct(few, few.classes[0])],
        plot_most_incorrect=lambda: [plot.plot_most_incorrect(few, few.classes[0])],
        plot_most_uncertain=lambda: [plot.plot_most_uncertain(few, 9)],
        plot_top_losses=lambda: [plot.plot_top_losses(few, 9)],
        show_results=lambda: [plot.show_results(few)],
        plot_items=lambda: [plot.plot_items(few, range(5), "Five of them")],
        plot_duplicates=lambda: [plot.plot_duplicates(duplicates(files))],
        plot_prediction=lambda: [plot.plot_prediction(files[0], few.probs[0], few.task)],
        plot_maps=lambda: [plot.plot_maps(files[0], edges)],
        plot_heads=lambda: [plot.plot_heads(learn, (0, 1))],
        plot_units=lambda: [plot.plot_units(learn, learn.model.body[2], 3)],
        show_batch=lambda: [plot.show_batch(data)],
        show_images=lambda: [plot.show_images(files, BREEDS[:12]),
                             plot.show_images([*files[:4], "gone.jpg"], BREEDS[:5])],
    )
    charts = dict(
        plot_network=lambda: [plot.plot_network(learn)],
        plot_filter=lambda: [plot.plot_filter(numbered, edges["upright"])],
        plot_pooling=lambda: [plot.plot_pooling(numbered)],
        plot_loss=lambda: [plot.plot_loss(history())],
        plot_metrics=lambda: [plot.plot_metrics(history())],
        plot_training=lambda: [plot.plot_training(history(), metrics=n) for n in (1, 2)],
        plot_schedule=lambda: [plot.plot_schedule(history(), groups="all", names=["body", "head"]),
                               plot.plot_schedule(dict(a=one_cycle(), b=flat_cos()))],
        plot_runs=lambda: [plot.plot_runs(dict(plain=[.1, .12, .13], augmented=[.08, .1, .11]))],
        plot_numbers=lambda: [plot.plot_numbers(numbers(), unit="percent")],
        plot_lr_find=lambda: [plot.plot_lr_find(finder(), lr=1e-3)],
        plot_confusion_matrix=lambda: [plot.plot_confusion_matrix(p, n)
                                       for p in (two, few, many) for n in (False, True)],
        plot_roc=lambda: [plot.plot_roc(two), plot.plot_roc(named)],
        plot_precision_recall=lambda: [plot.plot_precision_recall(named)],
        plot_reliability=lambda: [plot.plot_reliability(few), plot.plot_reliability(named)],
        plot_risk_coverage=lambda: [plot.plot_risk_coverage(few), plot.plot_risk_coverage(named)],
    )
    return pictures | charts


def drawing_functions():
    "The names of all public functions of lessonkit.plot that return a figure."
    functions = [(name, getattr(plot, name)) for name in plot.__all__]
    return {name for name, f in functions if inspect.isfunction(f)
            and re.match("plot_|show_", name) and "Figure" in str(inspect.signature(f))}


def texts(fig):
    "All texts of a figure that are seen."
    fig.draw_without_rendering()
    hidden = {label for ax in fig.axes if not ax.axison for axis in (ax.xaxis, ax.yaxis)
              for label in axis.get_ticklabels()}
    found = [text for text in set(fig.findobj(Text)) - hidden
             if text.get_visible() and text.get_text().strip()]
    inside = fig.bbox.padded(2)
    return [text for text in found if inside.overlaps(text.get_window_extent())]


def shown_points(fig, text):
    "The size of a text on the page, which makes figures smaller that are too wide for it."
    shrunk = min(1, PAGE / fig.bbox.width)
    return text.get_fontsize() * fig.dpi / 72 / PIXELS * shrunk


def too_small(fig):
    return {text.get_text(): round(float(shown_points(fig, text)), 1) for text in texts(fig)
            if shown_points(fig, text) < LEAST - .01}


def test_every_function_that_draws_is_looked_at(figures):
    assert set(figures) == drawing_functions()


@pytest.mark.parametrize("name", sorted(drawing_functions()))
def test_no_text_is_too_small(name, figures):
    for fig in figures[name]():
        assert texts(fig) or name == "show_images"
        assert too_small(fig) == {}
        assert fig.bbox.width <= 1.1 * PAGE


def test_small_text_is_found():
    fig = plot.new_figure((4, 3))
    fig.add_subplot().set_title("a title", fontsize=8)
    assert too_small(fig) == {"a title": 8}
    wide = plot.new_figure((20, 3))
    wide.add_subplot().set_title("a title", fontsize=10)
    assert too_small(wide)["a title"] < 5
