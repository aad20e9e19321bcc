"""Your own functions for single images: how files are opened, and what comes before the squeeze."""
import random
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageChops, ImageOps
from torch import nn
from torchvision import transforms

from lessonkit.core.rng import torch_lock
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.corrections import Corrections
from lessonkit.data.duplicates import find_duplicates
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import ImageReadError
from lessonkit.data.loader import Loader
from lessonkit.learner import Learner
from lessonkit.train.engine import Engine
from lessonkit.train.features import precompute, why_not_precompute
from lessonkit.train.trainer import data_fingerprint

PAT = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("data") / "tiny", n=24)


def inverted(image): return ImageOps.invert(image)
inverted.is_random = False


def shifted(image): return ImageChops.offset(image, random.randrange(image.width))


def with_noise(image):
    "Draws from all three generators."
    pixels = np.asarray(image) // 2 + np.random.randint(0, 60)
    return torch.tensor(pixels).permute(2, 0, 1) / 255 * (.9 + .1 * torch.rand(()))


def make_data(folder, **options):
    return ImageData.from_name_re(folder, PAT, **dict(size=24, bs=8) | options)


def make(data, dropout=0., **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Dropout2d(dropout),
                        nn.Conv2d(8, 6, 3, 2), nn.ReLU())
    common = dict(weights=None, head="mlp", precision="fp32", device="cpu", show=False)
    return Learner(data, net, **common | options)


def pixels(loader, *key, **options):
    return torch.cat([batch.x for batch in loader.batches(*key, **options)])


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


# ---- all factories

FACTORIES = {
    "lists": lambda folder, files, labels, **o: ImageData.from_lists(folder, files, labels, **o),
    "name_func": lambda folder, files, labels, **o:
        ImageData.from_name_func(folder, lambda f: f.name.split("_")[0], **o),
    "name_re": lambda folder, files, labels, **o: ImageData.from_name_re(folder, PAT, **o),
    "df": lambda folder, files, labels, **o:
        ImageData.from_df(folder, pd.DataFrame(dict(f=[f.name for f in files], l=labels)), **o),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_takes_them(folder, name):
    files = sorted(folder.iterdir())
    labels = [f.name.split("_")[0] for f in files]
    def data(**options): return FACTORIES[name](folder, files, labels, size=24, bs=8, **options)
    whole, dark = data(item_tfms=[lambda image: image]), data(item_tfms=inverted)
    difference = pixels(dark.valid).int() + pixels(whole.valid) - 255
    assert difference.abs().max() <= 2  # numbers are rounded, twice


def test_folders_and_csv_files_and_the_test_set_have_them(folder, tmp_path):
    for i, file in enumerate(sorted(folder.iterdir())):
        side = ("train", "valid", "test")[i % 3]
        place = tmp_path / side / ("a" if i % 2 else "b") if side != "test" else tmp_path / side
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
    data = ImageData.from_folder(tmp_path, test="test", size=24, bs=4, item_tfms=inverted)
    loaders = (data.train, data.train_eval, data.valid, data.test)
    assert [loader.item_tfms for loader in loaders] == [(inverted,)] * 4
    lines = [f"{f.name},{f.name[0]}" for f in sorted(folder.iterdir())]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]))
    data = ImageData.from_csv(tmp_path, folder=folder, size=24, bs=4, open_with=Image.open)
    assert data.valid.open_with is Image.open


@pytest.mark.parametrize("tfm,shape", [
    (transforms.CenterCrop(20), (20, 20)), (transforms.Grayscale(3), None),
    (transforms.Compose([transforms.Resize(30), transforms.ToTensor()]), None),
    (transforms.RandomErasing(p=0), "tensor"), (np.asarray, None),
    (lambda image: np.asarray(image)[:, :, 0], None)])
def test_whatever_a_transform_returns_is_an_image(folder, tfm, shape):
    tfms = [transforms.ToTensor(), tfm] if shape == "tensor" else [tfm]
    data = make_data(folder, item_tfms=tfms)
    x = pixels(data.train, 0, 0, 0)
    assert tuple(x.shape) == (data.train.n, 3, 30, 30)
    assert x.float().std() > 5


def test_they_stay_with_data_that_is_made_from_the_data(folder, tmp_path):
    data = make_data(folder, item_tfms=inverted)
    journal = Corrections(tmp_path / "corrections.jsonl", folder)
    journal.relabel(data.train.paths[0], "square")
    for other in (data.resized(16), data.corrected(journal), data.normalize(),
                  replace(data, valid=replace(data.valid, bs=2))):
        assert (other.train.item_tfms, other.valid.item_tfms) == ((inverted,),) * 2
    learn = make(data)
    learn.set_data(data.resized(32))
    assert learn.data.valid.item_tfms == (inverted,)


def test_mistakes_show_when_the_data_is_made(folder):
    def mistaken(image): return image.nothing()
    with pytest.raises(AttributeError) as caught: make_data(folder, item_tfms=[mistaken])
    assert "item transform test_mistakes" in caught.value.__notes__[0]
    for wrong in ("flip", 3, transforms.CenterCrop):
        with pytest.raises(ValueError, match="item_tfms is a function"):
            make_data(folder, item_tfms=wrong)
    with pytest.raises(ValueError, match="open_with is a function"): make_data(folder, open_with=3)


# ---- random transforms repeat

@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("ahead", [0, 2])
def test_random_transforms_repeat_with_any_number_of_threads(folder, threads, ahead):
    data = make_data(folder, item_tfms=[shifted, with_noise])
    one = pixels(replace(data.train, threads=1), 1, 2, 3, ahead=0)
    loader = replace(data.train, threads=threads)
    random.random(), np.random.rand(), torch.rand(1)  # what was drawn before doesn't count
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(pixels(loader, 1, 2, 3, ahead=ahead), one)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_they_differ_by_epoch_fit_seed_and_image(folder):
    data = make_data(folder, item_tfms=[shifted])
    loader = replace(data.train, shuffle=False)
    keys = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3)]
    drawn = {hash(pixels(loader, *key).numpy().tobytes()) for key in keys}
    assert len(drawn) == 4
    same = Loader(**loader.settings(paths=loader.paths[:1] * 8, targets=loader.targets[:8]))
    assert len({image.numpy().tobytes() for image in pixels(same, 0)}) > 2


def test_part_of_an_epoch_is_as_in_the_whole_one(folder):
    loader = make_data(folder, item_tfms=[shifted]).train
    whole, rest = pixels(loader, 1, 0, 0), pixels(loader, 1, 0, 0, start=1)
    assert torch.equal(whole[-len(rest):], rest)


class Ends:
    def __init__(self, after): self.after = after
    def epoch(self, row, record):
        if row["epoch"] == self.after: raise KeyboardInterrupt


def test_training_with_them_is_resumed_exactly(folder, tmp_path):
    def learner(threads):
        data = make_data(folder, item_tfms=[shifted, with_noise], threads=threads)
        return make(data, dropout=.3, model_dir=tmp_path)
    whole = learner(3)
    whole.fit_one_cycle(3, 1e-2)
    crashed = learner(1)
    crashed.trainer.observers.append(Ends(1))
    with pytest.raises(KeyboardInterrupt): crashed.fit_one_cycle(3, 1e-2, checkpoint="run")
    again = learner(2).load("run")
    again.resume()
    assert torch.equal(weights(again), weights(whole))


def test_threads_that_train_and_predict_do_not_wait_for_each_other(folder):
    "Each holds the lock of the generators at times, and opens images that need it."
    data = make_data(folder, item_tfms=[shifted], threads=4)
    alone, watched = make(data, dropout=.3), make(data, dropout=.3)
    for learn in (alone, watched):  # as next to a GPU: images are opened while the model trains
        learn.engine.ahead = 2
        learn.engine.for_training = lambda model, engine=learn.engine: engine
    alone.fit_one_cycle(2, 1e-2)
    done, found = threading.Event(), []
    def predict():
        while not done.is_set(): found.append(watched._predict_with(watched.model, data.test or
                                                                    list(data.valid.paths)))
    others = [threading.Thread(target=predict, daemon=True) for _ in range(2)]
    for other in others: other.start()
    watched.fit_one_cycle(2, 1e-2)
    done.set()
    for other in others: other.join(timeout=60)
    assert not any(other.is_alive() for other in others)
    assert torch.equal(weights(watched), weights(alone))
    assert found


def test_images_are_opened_while_this_thread_holds_the_lock(folder):
    loader = make_data(folder, item_tfms=[shifted]).valid
    expected = pixels(loader)
    with torch_lock: assert torch.equal(pixels(loader), expected)


# ---- processes

def test_threads_open_images_where_processes_would(folder):
    "A process may not know a function of a notebook, such as a lambda."
    data = make_data(folder, item_tfms=lambda image: ImageOps.invert(image), bs=4)
    plain = pixels(data.train_eval)
    assert torch.equal(pixels(replace(data.train_eval, workers=2)), plain)
    assert replace(data.train_eval, workers=2)._claim_workers([torch.arange(20)] * 4) is None


# ---- features and caches

def test_features_are_computed_once_only_where_transforms_are_fixed(folder):
    fixed, varying = (make_data(folder, item_tfms=t) for t in (inverted, shifted))
    model = make(fixed, weights="pretrained").model
    assert why_not_precompute(model, fixed) == ""
    assert "item transforms may change" in why_not_precompute(model, varying)
    assert "item transforms may change" in why_not_precompute(model, varying, copies=2)


def test_features_of_transformed_images_are_never_kept_on_disk(folder, tmp_path):
    model, engine = make(make_data(folder), weights="pretrained").model, Engine("cpu", "fp32")
    found = {}
    for name, options in dict(plain={}, dark=dict(item_tfms=inverted),
                              opened=dict(open_with=lambda f: Image.open(f).rotate(90))).items():
        data = make_data(folder, **options)
        where = tmp_path / name
        found[name] = precompute(model, data, engine, where).train.features
        assert len(list(where.glob("*.features"))) == (name == "plain")
    again = precompute(model, make_data(folder, item_tfms=inverted), engine, tmp_path / "plain")
    assert torch.equal(again.train.features, found["dark"])
    assert not torch.equal(found["dark"], found["plain"])
    assert not torch.equal(found["opened"], found["plain"])


def test_a_learner_computes_features_anew_for_other_functions(folder):
    learn = make(make_data(folder), weights="pretrained")
    learn.freeze()
    plain = learn.trainer.kept_features().train.features
    learn.set_data(make_data(folder, item_tfms=inverted))
    assert not torch.equal(learn.trainer.kept_features().train.features, plain)


def test_images_in_memory_are_those_of_the_functions(folder):
    data = make_data(folder, cache="memory")
    plain = pixels(data.valid)
    assert len(data.valid._kept) == data.valid.n
    dark = Loader(**data.valid.settings(item_tfms=(inverted,)))
    assert not torch.equal(pixels(dark), plain)
    assert torch.equal(pixels(dark), pixels(replace(dark, _kept={})))


# ---- what is trained on is told apart

def test_fingerprints_name_the_functions(folder):
    options = dict(plain={}, dark=dict(item_tfms=inverted), moved=dict(item_tfms=shifted),
                   both=dict(item_tfms=[inverted, shifted]), opened=dict(open_with=Image.open))
    prints = {name: data_fingerprint(make_data(folder, **o)) for name, o in options.items()}
    assert len(set(prints.values())) == 5
    assert data_fingerprint(make_data(folder, item_tfms=inverted)) == prints["dark"]


def test_a_saved_model_is_loaded_with_a_warning_where_functions_differ(folder, tmp_path):
    saved = make(make_data(folder, item_tfms=inverted), model_dir=tmp_path)
    saved.save("dark")
    make(make_data(folder, item_tfms=inverted), model_dir=tmp_path).load("dark")
    with pytest.warns(UserWarning, match=r"item_functions was \['inverted'\], now \[\]"):
        make(make_data(folder), model_dir=tmp_path).load("dark")
    make(make_data(folder), model_dir=tmp_path).save("plain")
    make(make_data(folder), model_dir=tmp_path).load("plain")
    with pytest.warns(UserWarning, match=r"item_functions was \[\], now \['inverted'\]"):
        saved.load("plain")


def test_an_exported_classifier_holds_no_functions(folder, tmp_path):
    data = make_data(folder, item_tfms=inverted)
    learn = Learner(data, "resnet18", weights=None, precision="fp32", device="cpu", show=False)
    with pytest.raises(ValueError, match=r"functions of your own \(inverted\).*holds no code"):
        learn.export(tmp_path / "it")
    learn.set_data(make_data(folder))
    learn.export(tmp_path / "it")
    assert (tmp_path / "it.safetensors").is_file()


# ---- predictions

def test_predictions_see_what_training_saw(folder):
    data = make_data(folder, item_tfms=inverted)
    learn = make(data)
    preds, files = learn.get_preds(), list(data.valid.paths)
    assert torch.allclose(learn.get_preds(files).probs, preds.probs, atol=1e-6)
    opened = Image.open(files[0])
    opened.load()
    for item in (files[0], str(files[0]), opened, np.asarray(opened), files[0].read_bytes()):
        assert torch.allclose(learn.predict(item).probs, preds.probs[0], atol=1e-6)
    other = make(make_data(folder))
    assert not torch.allclose(other.predict(files[0]).probs, preds.probs[0], atol=1e-4)


def test_only_paths_are_opened_by_your_function(folder):
    data = make_data(folder, open_with=lambda path: ImageOps.invert(Image.open(path)))
    learn, file = make(data), data.valid.paths[0]
    dark = ImageOps.invert(Image.open(file))
    assert torch.allclose(learn.predict(dark).probs, learn.predict(file).probs, atol=1e-6)


# ---- files that can't be read

def test_training_goes_on_without_files_that_your_function_cannot_open(folder):
    files = sorted(folder.iterdir())
    bad = {files[3], files[10]}
    def careful(path):
        if path not in bad: return Image.open(path)
        return None if path == files[3] else open(path.with_name("gone"))
    with pytest.warns(UserWarning, match="2 of 24 files can't be read"):
        data = make_data(folder, open_with=careful, check="full")
    assert set(data.unreadable) == bad
    data = make_data(folder, open_with=careful)
    learn = make(data)
    with pytest.warns(UserWarning, match="careful returned None"): learn.fit(1, 1e-3)
    with pytest.raises((ImageReadError, OSError)): pixels(data.train, 0)


def test_a_mistake_in_a_function_is_never_taken_for_a_damaged_file(folder):
    calls = []
    def fails_later(image):
        calls.append(1)
        if len(calls) > 5: raise OSError("no such overlay")
        return image
    learn = make(make_data(folder, item_tfms=fails_later, threads=1))
    with pytest.raises(RuntimeError, match="no such overlay, in the item transform"):
        learn.fit(1, 1e-3)


def test_duplicates_are_found_in_the_files_themselves(folder):
    def all_gray(image): return Image.new("RGB", image.size, "gray")
    data = make_data(folder, item_tfms=all_gray)
    assert len(find_duplicates(data)) == len(find_duplicates(make_data(folder)))


def test_augmentation_comes_after_them(folder):
    def all_gray(image): return Image.new("RGB", image.size, (128, 128, 128))
    data = make_data(folder, item_tfms=all_gray, augment=augmentations(max_lighting=0))
    assert (pixels(data.train, 0) == 128).all()
