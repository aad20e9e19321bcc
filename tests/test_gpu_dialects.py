"""Old notes of each generation on a GPU: they train there, and `.cuda()` means what it says.

    LESSONKIT_TEST_DEVICE=cpu pytest tests/test_gpu_dialects.py    # rehearses most of it
"""
import os

import numpy as np
import pytest
import torch

import lessonkit.dialects
from lessonkit.data import image_files, sample
from lessonkit.dialects.registry import settings

DEVICE = os.environ.get("LESSONKIT_TEST_DEVICE", "cuda")
IMPORTS = {
    "0.7": "from fastai.conv_learner import *",
    "v1": "from fastai.vision import *\nfrom fastai.metrics import error_rate",
    "v2": "from fastai.vision.all import *",
}
TRAIN = {   # what makes `learn`, and trains it
    "0.7": """
tfms = tfms_from_model(resnet34, 64, aug_tfms=transforms_side_on, max_zoom=1.1)
data = ImageClassifierData.from_paths(PATH, bs=8, tfms=tfms)
learn = ConvLearner.pretrained(resnet34, data, precompute=False)
learn.fit(1e-2, 1)
learn.unfreeze()
learn.fit(np.array([1e-4, 1e-3, 1e-2]), 1, cycle_len=1)
log_preds, y = learn.TTA()
answers = np.exp(log_preds).mean(0)
""",
    "v1": """
data = ImageDataBunch.from_folder(PATH, ds_tfms=get_transforms(), size=64, bs=8)
data.normalize(imagenet_stats)
learn = cnn_learner(data, models.resnet34, metrics=error_rate)
learn.fit_one_cycle(1)
learn.unfreeze()
learn.fit_one_cycle(1, max_lr=slice(1e-6, 1e-4))
answers, y = learn.get_preds()
""",
    "v2": """
dls = ImageDataLoaders.from_folder(PATH, valid="valid", item_tfms=Resize(64),
                                   batch_tfms=aug_transforms(), bs=8)
learn = vision_learner(dls, resnet34, metrics=error_rate)
learn.fine_tune(1)
answers, y = learn.get_preds()
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Images in train/ and valid/, with a folder for each class."
    drawn = sample.tiny(tmp_path_factory.mktemp("tiny"), n=48, size=64)
    path = tmp_path_factory.mktemp("split")
    for i, file in enumerate(image_files(drawn)):
        label = file.stem.rsplit("_", 1)[0]
        there = path / ("valid" if i % 3 == 0 else "train") / label / file.name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(file.read_bytes())
    return path


@pytest.fixture(params=list(IMPORTS))
def generation(request, folder, tmp_path, monkeypatch):
    "The names of a note that has run to the end of TRAIN."
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path/"cache"))
    monkeypatch.chdir(tmp_path)
    lessonkit.dialects.activate(request.param, arch="packaged")
    names = dict(PATH=str(folder) + "/" if request.param == "0.7" else folder)
    try:
        exec(IMPORTS[request.param] + TRAIN[request.param], names)
        yield names
    finally:
        lessonkit.dialects.deactivate()
        settings.use()


@pytest.mark.gpu
def test_old_notes_train_where_the_gpu_is(generation):
    learn = generation["learn"]
    assert {p.device.type for p in learn.model.parameters()} == {DEVICE}
    answers = np.asarray(generation["answers"], dtype=float)
    assert np.isfinite(answers).all()
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-3)


@pytest.mark.gpu
def test_what_notes_get_back_is_on_the_cpu(generation):
    answers = generation["answers"]
    if torch.is_tensor(answers): assert answers.device.type == "cpu"
    else: assert isinstance(answers, np.ndarray)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="about CUDA itself")
def test_cuda_moves(generation):
    assert torch.zeros(3).cuda().device.type == "cuda"
    assert torch.nn.Linear(2, 2).cuda().weight.device.type == "cuda"
