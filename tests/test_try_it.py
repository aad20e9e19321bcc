"""TryIt with every kind of task, image and network, in words, as a figure, and as a page."""
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.export.exported import load_classifier
from lessonkit.learner import Learner
from lessonkit.plot.figures import NotebookFigure
from lessonkit.widgets.try_it import answer_html, image_loader, TryIt

NAMES = ["circle", "square <b>", "stripes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    sample.tiny(folder / "flat", n=24)
    return folder


def learner_of(folder, labels, arch="timm:test_efficientnet", **options):
    files = sorted((folder / "flat").glob("*"))
    data = ImageData.from_lists(folder / "flat", files, [labels(i) for i in range(len(files))],
                                size=32, bs=8, threads=2, **options)
    return Learner(data, arch, weights=None, show=False, device="cpu", precision="fp32",
                   model_dir=folder)


TASKS = {
    "single": lambda i: NAMES[i % 3],
    "multi": lambda i: NAMES[:1 + i % 3],
    "number": lambda i: i / 7,
    "numbers": lambda i: [i / 7, -float(i)],
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", TASKS)
def test_every_task(folder, kind, channels):
    learn = learner_of(folder, TASKS[kind], channels=channels)
    learn.fit(1, 1e-3)
    photo = learn.data.valid.paths[0]
    file = learn.export(folder / f"{kind}_{channels}.safetensors")
    exported = load_classifier(file, device="cpu", precision="fp32")
    for classifier in (learn, exported):
        tryit = TryIt(classifier)
        figure = tryit.show(photo)
        assert isinstance(figure, NotebookFigure)
        assert figure.alt.startswith(tryit.answer.text)
        assert "with a heat map" in figure.alt
        assert len(figure.axes) == (1 if kind.startswith("number") else 2)
        assert len(figure.image()[1]) <= 56_000
        assert tryit.answer.view.shape == (channels, 32, 32)
        html = answer_html(tryit.answer, photo.name)
        assert html.count("<tr>") == (0 if kind.startswith("number") else 3)
        assert "<b>" not in html
    assert torch.allclose(tryit.answer.probs, TryIt(learn).ask(photo).probs, atol=1e-4)


def test_a_threshold_for_labels(folder):
    learn = learner_of(folder, TASKS["multi"])
    learn.fit(1, 1e-3)
    photo = learn.data.valid.paths[0]
    assert TryIt(learn, 1.).ask(photo).text == "none of the labels"
    assert TryIt(learn, 0.).ask(photo).text == ", ".join(NAMES)
    assert not TryIt(learn, 1.).ask(photo).unsure   # no label is an answer, too


def test_a_threshold_makes_no_sense_for_numbers(folder):
    with pytest.raises(ValueError, match="threshold"):
        TryIt(learner_of(folder, TASKS["number"]), .5)


def test_an_exported_threshold_is_used_unless_another_is_given(folder):
    learn = learner_of(folder, TASKS["single"])
    photo = learn.data.valid.paths[0]
    exported = load_classifier(learn.export(folder / "unsure", threshold=1.))
    assert TryIt(exported).ask(photo).text == "I don't know"
    assert TryIt(exported, 0.).ask(photo).text != "I don't know"
    assert TryIt(exported, 0.).threshold == 0


class Bare(nn.Module):
    "A network without a body that a heat map could be made of."
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3 * 32 * 32, 3)

    def forward(self, x): return self.last(x.flatten(1))


def test_without_a_heat_map_it_says_why(folder):
    learn = learner_of(folder, TASKS["single"], Bare())
    tryit = TryIt(learn)
    figure = tryit.show(learn.data.valid.paths[0])
    assert tryit.answer.heatmap is None
    assert "There is no heat map: " in answer_html(tryit.answer, "a.jpg")
    assert "heat map" not in figure.alt
    assert TryIt(learn, heatmap=False).ask(learn.data.valid.paths[0]).note == ""


@pytest.mark.parametrize("make", [
    lambda path: path, str, lambda path: path.read_bytes(), lambda path: open(path, "rb"),
    lambda path: Image.open(path), lambda path: np.asarray(Image.open(path).convert("RGB"))])
def test_every_kind_of_item(folder, make):
    learn = learner_of(folder, TASKS["single"])
    photo = learn.data.valid.paths[0]
    expected = learn.predict(photo).probs
    assert torch.allclose(TryIt(learn).ask(make(photo)).probs, expected, atol=1e-5)


def test_a_large_photo_turned_by_its_exif(folder):
    "The view is upright, and as large as the model's images."
    learn = learner_of(folder, TASKS["single"])
    photo = Image.new("RGB", (1600, 1200), "black")
    photo.paste("white", (0, 0, 1600, 300))   # at the top; turned by 180 degrees, at the bottom
    exif = Image.Exif()
    exif[274] = 3
    file = io.BytesIO()
    photo.save(file, "jpeg", exif=exif)
    view = TryIt(learn).ask(file.getvalue()).view
    assert view.shape == (3, 32, 32)
    assert view[:, -1].mean() > .9
    assert view[:, 0].mean() < .1


def test_what_is_no_classifier_is_refused():
    for wrong in (None, 3, "pets.safetensors", nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="TryIt takes a Learner or an exported classifier"):
            image_loader(wrong)
