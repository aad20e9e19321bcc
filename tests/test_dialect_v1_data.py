"""Data in the words of fastai v1: each call that old notebooks make, over the kit's ImageData."""
import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from hypothesis import given, strategies as st
from tiers import examples
from torch.utils.data import DataLoader

from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.datasets import DatasetMissing
from lessonkit.data.downloads import DownloadError
from lessonkit.dialects import hook
from lessonkit.dialects.fastai1 import (
    brightness, Category, CategoryList, Config, contrast, crop, crop_pad, cutout, DatasetType,
    dihedral, flip_lr, FloatList, get_image_files, get_transforms, Image, image2np, ImageDataBunch,
    ImageList, imagenet_stats, ItemList, jitter, load_data, MultiCategoryList, open_image, pad,
    perspective_warp, pil2tensor, plot_multi, rand_crop, rand_pad, rand_resize_crop, rand_zoom,
    ResizeMethod, rgb_randomize, rotate, set_all_seed, show_image, skew, squish, symmetric_warp,
    tilt, untar_data, URLs, zoom, zoom_crop,
)
from lessonkit.dialects.fastai1.kit_data import build_kit
from lessonkit.dialects.fastai1.transforms import split_tfms
from lessonkit.dialects.registry import forget_remarks, NotSupported, settings

N, SIZE = 24, 32
TFMS = get_transforms()


def species(f): return "cat" if Path(f).name[0].isupper() else "dog"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    "A folder of drawn pets, two of each breed, with tables beside them."
    folder = sample.pets(tmp_path_factory.mktemp("v1")/"pets", N, 48, show=False)
    files = sorted(folder.glob("*.jpg"))
    table = pd.DataFrame({
        "name": [f.stem for f in files], "label": [species(f) for f in files],
        "tags": [f"{species(f)} {'small' if i % 3 else 'large'}" for i, f in enumerate(files)],
        "weight": [i / 4 for i in range(N)], "is_valid": [i % 4 == 0 for i in range(N)],
        "cat": [int(species(f) == "cat") for f in files], "fat": [i % 2 for i in range(N)]})
    table.to_csv(folder/"labels.csv", index=False)
    return folder


@pytest.fixture
def df(path): return pd.read_csv(path/"labels.csv")


@pytest.fixture
def images(path): return ImageList.from_csv(path, "labels.csv", suffix=".jpg")


@pytest.fixture(autouse=True)
def fresh():
    forget_remarks()
    settings.use()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ training images are fewer than a batch")
        yield


def same_order(data):
    "Do the lists and the kit's loaders have the same images in the same order?"
    pairs = (data.train_ds, data.kit.train_eval), (data.valid_ds, data.kit.valid)
    return all(list(map(Path, ds.items)) == list(loader.paths) for ds, loader in pairs)


# The data block API

LABELED = {
    "folder": lambda x: x.label_from_folder(),
    "func": lambda x: x.label_from_func(species),
    "re": lambda x: x.label_from_re(r"/([^/]+)_\d+.jpg$"),
    "df": lambda x: x.label_from_df(cols="label"),
    "multi": lambda x: x.label_from_df(cols="tags", label_delim=" "),
    "sep": lambda x: x.label_from_df("tags", sep=" "),
    "multi class": lambda x: x.label_from_func(lambda f: [species(f)],
                                               label_cls=MultiCategoryList),
    "columns": lambda x: x.label_from_df(cols=["cat", "fat"]),
    "float": lambda x: x.label_from_df(cols="weight"),
    "as float": lambda x: x.label_from_df(cols="fat", label_cls=FloatList),
    "two floats": lambda x: x.label_from_df(cols=["weight", "fat"], label_cls=FloatList),
    "as class": lambda x: x.label_from_df(cols="fat", label_cls=CategoryList),
    "const": lambda x: x.label_const(1, classes=[0, 1]),
}
CLASSES = {"func": ["cat", "dog"], "multi": ["cat", "dog", "large", "small"],
           "columns": ["cat", "fat"], "as class": [0, 1], "float": None}
WIDTHS = {"two floats": 2, "as float": 1, "sep": 4, "multi class": 2, "const": 2, "df": 2}


@pytest.mark.parametrize("how", [how for how in LABELED if how != "folder"])
def test_each_way_to_label_gives_the_task_of_v1(images, how):
    np.random.seed(1)
    parts = images.split_by_rand_pct(.25)
    if how == "re": parts = images.split_by_idx(range(0, N, 2))
    labeled = LABELED[how](parts).transform(TFMS, size=SIZE)
    data = labeled.databunch(bs=8).normalize(imagenet_stats)
    if how in CLASSES: assert data.classes == CLASSES[how]
    if how in WIDTHS: assert data.c == WIDTHS[how]
    assert data.kit.c == data.c
    assert same_order(data)
    assert list(data.kit.classes) == (data.classes or [])
    image, label = data.valid_ds[0]
    target = torch.as_tensor(label.data, dtype=torch.float32).reshape(-1)
    assert torch.equal(target, data.kit.valid.targets[0].float().reshape(-1))


SPLIT = {
    "rand": (lambda x: x.split_by_rand_pct(.25, seed=3), 6),
    "old rand": (lambda x: x.random_split_by_pct(valid_pct=.5), 12),
    "idx": (lambda x: x.split_by_idx(valid_idx=[0, 3]), 2),
    "idxs": (lambda x: x.split_by_idxs(train_idx=list(range(2, N)), valid_idx=[0, 1]), 2),
    "df": (lambda x: x.split_from_df(col="is_valid"), 6),
    "func": (lambda x: x.split_by_valid_func(lambda f: "_1" in Path(f).name), 12),
    "files": (lambda x: x.split_by_files(["pug_1.jpg", "pug_2.jpg"]), 2),
    "none": (lambda x: x.split_none(), 0),
    "zero": (lambda x: x.split_by_rand_pct(0.), 0),
}


@pytest.mark.parametrize("how", SPLIT)
def test_each_way_to_split(images, how):
    split, n_valid = SPLIT[how]
    parts = split(images)
    assert len(parts.valid) == n_valid
    data = parts.label_from_func(species).transform(TFMS, size=SIZE).databunch()
    assert len(data.valid_ds) == n_valid
    assert data.empty_val == (n_valid == 0)
    if n_valid: assert same_order(data)
    else: assert [data.kit.train.n, data.kit.valid.n] == [N, N // 2]


def test_folders_split_and_label(path, tmp_path):
    for i, f in enumerate(sorted(path.glob("*.jpg"))):
        part = "test" if i > 20 else f"{'valid' if i % 4 == 0 else 'train'}/{species(f)}"
        (tmp_path/part).mkdir(parents=True, exist_ok=True)
        (tmp_path/part/f.name).symlink_to(f)
    parts = ImageList.from_folder(tmp_path).split_by_folder(train="train", valid="valid")
    data = (parts.label_from_folder().add_test_folder().transform(TFMS, size=SIZE)
            .databunch(num_workers=0, path="."))
    assert [len(data.train_ds), len(data.valid_ds), len(data.test_ds)] == [15, 6, 3]
    assert [str(data.path), data.kit.train.workers] == [".", 0]
    factory = ImageDataBunch.from_folder(tmp_path, test="test", ds_tfms=TFMS, size=SIZE, bs=4)
    assert factory.classes == ["cat", "dog"]
    assert same_order(factory)
    assert factory.kit.test.n == 3
    named = ImageDataBunch.from_folder(path=tmp_path, train="train", valid_pct=.3, test="test")
    assert len(named.train_ds) + len(named.valid_ds) == 21   # the test set stays out


def test_planet_as_lesson_3_has_it(images):
    np.random.seed(42)
    tfms = get_transforms(flip_vert=True, max_lighting=.1, max_zoom=1.05, max_warp=0.)
    src = images.split_by_rand_pct(.2).label_from_df(cols=2, label_delim=" ")
    data = src.transform(tfms, size=24).databunch(bs=4).normalize(imagenet_stats)
    larger = src.transform(tfms, size=48).databunch(bs=4).normalize(imagenet_stats)
    assert data.kit.valid.paths == larger.kit.valid.paths
    assert larger.train_ds[0][0].shape == (3, 48, 48)
    augment = larger.kit.augment
    assert [augment.flip_vert, augment.max_warp, augment.max_zoom] == [True, 0, 1.05]
    images, labels = data.one_batch()
    assert [images.shape, labels.shape] == [(4, 3, 24, 24), (4, 4)]


def test_labels_only_in_validation_are_left_out(images):
    parts = images.split_by_idx([0, 1])
    with pytest.warns(UserWarning, match="no training image has: odd"):
        labeled = parts.label_from_func(lambda f: "odd" if "Abyssinian_1" in f else species(f))
    assert len(labeled.valid) == 1


def test_filter_and_add(path):
    found = ImageList.from_folder(path).filter_by_func(lambda f: species(f) == "cat")
    assert len(found) == N // 2
    assert len(found.add(ImageList.from_folder(path))) == N * 3 // 2
    assert len(ImageList.from_folder(path).filter_by_rand(.5, seed=1)) < N


def test_messages_for_calls_in_the_wrong_order(images):
    with pytest.raises(ValueError, match="split first"): images.label_from_folder()
    with pytest.raises(ValueError, match="neither split nor labeled"): images.databunch()
    with pytest.raises(ValueError, match="have no labels yet"): images.split_none().databunch()
    with pytest.raises(ValueError, match="tfms is a pair"):
        images.split_none().label_from_func(species).transform(TFMS[0])


# ImageDataBunch

def test_the_factories_agree(path, df):
    fnames = get_image_files(path)
    common = dict(ds_tfms=TFMS, size=SIZE, bs=8, num_workers=0)
    factories = [
        lambda: ImageDataBunch.from_lists(path, fnames, labels=list(df.label), **common),
        lambda: ImageDataBunch.from_name_func(path, fnames, label_func=species, **common),
        lambda: ImageDataBunch.from_df(path=path, df=df, suffix=".jpg", valid_pct=.2, **common),
        lambda: ImageDataBunch.from_csv(path, csv_labels="labels.csv", folder=".", suffix=".jpg",
                                        fn_col="name", label_col="label", **common),
    ]
    made = []
    for factory in factories:
        np.random.seed(7)
        made.append(factory())
    for data in made:
        assert data.classes == ["cat", "dog"]
        assert same_order(data)
        assert [Path(f) for f in data.valid_ds.items] == list(map(Path, made[0].valid_ds.items))
    np.random.seed(7)
    breeds = ImageDataBunch.from_name_re(path, fnames, r"/([^/]+)_\d+.jpg$", valid_pct=.25,
                                         **common)
    expected = np.random.RandomState(7).permutation(N)[:N // 4]
    shown = {Path(f) for f in breeds.valid_ds.items}
    assert shown <= {fnames[i] for i in expected}
    with pytest.raises(ValueError, match="doesn't match"):
        ImageDataBunch.from_name_re(path, fnames, r"(\d+)\.png$")


def test_labels_of_files_with_one_name_stay_apart(path, tmp_path):
    for folder in ("a", "b"):
        (tmp_path/folder).mkdir()
        for f in list(path.glob("*.jpg"))[:6]: shutil.copy(f, tmp_path/folder)
    files = sorted(tmp_path.glob("?/*.jpg"))
    data = ImageDataBunch.from_lists(tmp_path, files, [f.parent.name for f in files], size=SIZE)
    for ds in (data.train_ds, data.valid_ds):
        assert [str(ds.y[i]) for i in range(len(ds))] == [f.parent.name for f in ds.items]


def test_normalize_in_place_once(path, df):
    data = ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, bs=8)
    plain = data.kit
    assert plain.stats.mean == (0, 0, 0)
    assert data.normalize(imagenet_stats) is data
    assert data.kit is not plain
    assert data.kit.stats.mean == (.485, .456, .406)
    with pytest.raises(ValueError, match="Can not call normalize twice"): data.normalize()
    x = data.one_batch(DatasetType.Valid, denorm=False)[0]
    assert torch.allclose(data.norm(data.denorm(x)), x, atol=1e-4)
    own = ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, bs=64).normalize()
    x = own.one_batch(DatasetType.Fix, denorm=False)[0]
    assert x.mean((0, 2, 3)).abs().max() < .3


def test_a_test_set_after_the_data_exists(path, df):
    data = ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, bs=8)
    before, files = data.kit, get_image_files(path)[:3]
    assert [data.test_ds, data.test_dl, data.dl(DatasetType.Test)] == [None, None, None]
    data.add_test(ImageList.from_folder(path)[[0, 1, 2]])
    assert data.kit.train is before.train   # nothing is opened or drawn anew
    assert list(data.test_ds.items) == list(data.test_ds.x.items) == files
    image, label = data.test_ds[0]
    assert [image.shape, repr(label)] == [(3, SIZE, SIZE), "EmptyLabel "]
    data.batch_size = 5
    assert [data.kit.train.bs, data.kit.test.bs, data.batch_size] == [5, 5, 5]
    assert [data.kit.test.n, [len(x) for x, _ in data.test_dl]] == [3, [3]]
    data.add_test(items=[str(f) for f in files], label="cat")
    assert data.test_ds.y.items.tolist() == [0, 0, 0]


def test_what_the_reader_sees_of_data(path, df):
    data = ImageDataBunch.from_df(path, df, suffix=".jpg", ds_tfms=TFMS, size=SIZE, bs=8)
    text = repr(data)
    for part in ("ImageDataBunch;\n\nTrain: LabelList (20 items)\nx: ImageList\nImage (3, 32, 32)",
                 "\ny: CategoryList\n", "\n\nValid: LabelList (4 items)", "\n\nTest: None"):
        assert part in text
    with pytest.warns(UserWarning, match="has no row="):
        figure = data.show_batch(rows=2, figsize=(5, 5), row=7)
    assert len([ax for ax in figure.axes if ax.images]) == 4
    assert tuple(figure.get_size_inches()) == (5, 5)
    assert {ax.get_title() for ax in figure.axes} <= {"cat", "dog"}
    assert len(data.show_batch(3, DatasetType.Valid).axes) == 4
    assert [len(data.fix_ds), len(data.train_ds), data.train_ds.c] == [20, 20, 2]
    assert data.train_ds.y.c2i.items() == {"cat": 0, "dog": 1}.items()
    assert data.train_ds.tfms == TFMS[0]
    assert [x.shape for x, _ in data.valid_dl] == [(4, 3, SIZE, SIZE)]
    assert sum(len(y) for _, y in data.train_dl) == 20


def test_what_is_shown_is_what_the_model_gets(path, df):
    data = ImageDataBunch.from_df(path, df, suffix=".jpg", ds_tfms=TFMS, size=SIZE, bs=64)
    data.normalize(imagenet_stats)
    x, _ = data.one_batch(DatasetType.Valid)
    shown = torch.stack([image.data for image, _ in data.valid_ds])
    assert (x - shown).abs().mean() < .01
    item, zero = data.one_item(open_image(data.valid_ds.items[0]))
    assert torch.allclose(data.denorm(item)[0], x[0], atol=.02)
    assert zero.tolist() == [0]
    set_all_seed(0)
    a, b = data.train_ds[0][0].data, data.train_ds[0][0].data
    assert not torch.equal(a, b)   # varied anew
    set_all_seed(0)
    assert torch.equal(data.train_ds[0][0].data, a)


def test_classes_without_images(tmp_path):
    data = ImageDataBunch.single_from_classes(tmp_path, ["cat", "dog"], ds_tfms=TFMS, size=SIZE)
    data.normalize(imagenet_stats)
    assert [data.classes, len(data.train_ds), data.kit.classes] == [["cat", "dog"], 0,
                                                                    ("cat", "dog")]
    assert data.kit.stats.std == (.229, .224, .225)
    assert data.one_item(Image(torch.rand(3, 50, 60)))[0].shape == (1, 3, SIZE, SIZE)


def test_saved_and_loaded(path, images):
    data = images.split_by_rand_pct(.25).label_from_df().transform(TFMS, size=SIZE).databunch()
    data.save("saved.pkl")
    again = load_data(path, "saved.pkl", bs=4).normalize(imagenet_stats)
    assert again.kit.valid.paths == data.kit.valid.paths
    assert [again.kit.augment, again.kit.size, again.batch_size] == [data.kit.augment, SIZE, 4]
    (path/"old.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="wasn't saved by lessonkit"): load_data(path, "old.pkl")


def test_broken_files_leave_the_lists_too(path, tmp_path):
    for f in path.glob("*.jpg"): (tmp_path/f.name).symlink_to(f)
    (tmp_path/"Birman_9.jpg").write_text("no image")
    parts = ImageList.from_folder(tmp_path).split_by_idx([0, 1, 2])
    with pytest.warns(UserWarning, match="Birman_9"):
        data = parts.label_from_func(species).transform(size=SIZE).databunch()
    assert [len(data.train_ds), len(data.train_ds.y)] == [N - 3, N - 3]
    assert same_order(data)


def test_limits_from_outside(path, images):
    settings.use(images=8, size=16)
    data = images.split_by_rand_pct(.25).label_from_df().transform(TFMS, size=64).databunch(bs=4)
    assert len(data.train_ds) + len(data.valid_ds) == 8
    assert [data.kit.size, data.valid_ds[0][0].shape] == [16, (3, 16, 16)]
    assert same_order(data)


# Sizes and transforms

@pytest.mark.parametrize("options,expected", [
    (dict(size=40), (40, "crop")), (dict(size=(40, 40)), (40, "squish")),
    (dict(size=40, resize_method=ResizeMethod.SQUISH), (40, "squish")),
    (dict(size=40, resize_method=ResizeMethod.PAD, padding_mode="zeros"), (40, "pad")),
    (dict(size=(20, 80)), (40, "squish")), (dict(size=40, mult=32), (64, "crop")), ({}, None)])
def test_sizes(images, options, expected):
    labeled = images.split_by_idx([0, 1]).label_from_df().transform(TFMS, **options)
    kit = build_kit(labeled, images.path)
    if expected is None: expected = kit.size, "crop"
    assert (kit.size, kit.train.fit) == expected
    assert labeled.valid[0][0].shape[0] == 3


def test_mnist_without_a_size(tmp_path):
    for part, n in (("train", 3), ("valid", 2)):
        for digit in "37":
            (tmp_path/part/digit).mkdir(parents=True)
            for i in range(n): Image(torch.rand(3, 28, 28)).save(tmp_path/part/digit/f"{i}.png")
    data = ImageDataBunch.from_folder(tmp_path, ds_tfms=(rand_pad(2, 28), []), bs=64)
    data.normalize(imagenet_stats)
    image, label = data.train_ds[0]
    assert [image.shape, str(label)] == [(3, 28, 28), "3"]
    assert [data.kit.size, data.kit.train.presize, data.kit.augment] == [28, 28, None]
    raw = open_image(data.valid_ds.items[0]).data
    assert torch.allclose(data.one_batch(DatasetType.Valid)[0][0], raw, atol=.01)   # untouched
    train, raw = data.kit.train, open_image(data.train_ds.items[0]).data
    moved = torch.tensor(train.item(0, 1)[0]).permute(2, 0, 1) / 255
    padded = torch.nn.functional.pad(raw[None], [2] * 4, mode="reflect")[0]
    places = [padded[:, y:y + 28, x:x + 28] for y in range(5) for x in range(5)]
    assert min((moved - place).abs().max() for place in places) < .01


@examples(40)
@given(st.booleans(), st.booleans(), st.sampled_from([0., 10., 45.]), st.sampled_from([1., 1.3]),
       st.sampled_from([0., .1, .4]), st.sampled_from([0., .2]), st.sampled_from([.5, .75, 1.]),
       st.sampled_from([.5, .75]))
def test_get_transforms_is_an_augment(flip, vert, rotate, zoom, light, warp, p, p_light):
    train, valid = get_transforms(flip, vert, rotate, zoom, light, warp, p, p_light)
    augment, rest = split_tfms(train)
    assert [rest, split_tfms(valid)] == [[], (None, [])]
    assert [augment.mirrors, augment.flip_vert] == [flip, flip and vert]
    assert [augment.max_rotate, augment.max_zoom] == [rotate, zoom]
    assert [augment.max_lighting, augment.max_warp, augment.random_crop] == [light, warp, True]
    if rotate or warp or zoom > 1: assert augment.p_affine == p
    if light: assert augment.p_lighting == p_light


def test_other_transforms_change_training_images_only(path, df):
    black = cutout(n_holes=4, length=64)
    data = ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, bs=4,
                                  ds_tfms=get_transforms(xtra_tfms=[black]))
    assert data.kit.augment == augmentations()
    assert [len(data.kit.train.item_tfms), data.kit.valid.item_tfms] == [1, ()]
    assert data.kit.train.item(0, 1)[0].mean() < data.kit.train_eval.item(0)[0].mean() / 2
    same = data.kit.train.item(0, 5)[0]
    assert np.array_equal(same, data.kit.train.item(0, 5)[0])   # as its epoch says


@pytest.mark.parametrize("tfm", [
    rotate(degrees=(0, 90)), zoom(scale=(.8, 1.2)), squish(scale=(.5, 2), p=.5), jitter(
        magnitude=(-.05, .05)), skew(direction=(0, 7), magnitude=.2), tilt(direction=1,
        magnitude=(-.2, .2)), symmetric_warp(magnitude=(-.4, .2), p=.5), dihedral(k=3),
    contrast(scale=(.5, 2)), brightness(change=.7), flip_lr(p=.2), rgb_randomize(p=.5),
    perspective_warp(magnitude=(-.2, .2)), rand_zoom(scale=(1, 1.5)), zoom_crop((.7, 1.4), True),
    rand_resize_crop(SIZE), rand_crop(), crop_pad(), pad(padding=4), crop(size=20)], ids=repr)
def test_each_transform_applies_to_one_image_and_to_data(tfm):
    image = Image(torch.rand(3, 40, 60))
    changed = image.apply_tfms(tfm, size=SIZE)
    assert changed.shape == (3, SIZE, SIZE)
    assert torch.isfinite(changed.data).all()
    assert [float(changed.data.min()) >= 0, float(changed.data.max()) <= 1] == [True, True]
    assert image.apply_tfms(tfm).data.ndim == 3
    augment, rest = split_tfms(tfm)
    assert augment is not None or rest or tfm.__name__ == "crop_pad"


def test_a_transform_of_another_library_says_what_to_do(path, df):
    with pytest.raises(TypeError, match="is no transform of v1"):
        ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, ds_tfms=([torch.flip], []))
    with pytest.raises(NotSupported, match="tfm_y=True"):
        ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, tfm_y=True)


# Ways of one's own to open images

class Dark(ImageList):
    def open(self, fn): return Image(super().open(fn).data / 4)


class ByPosition(ImageList):
    def get(self, i): return Image(torch.full((3, 20, 20), i / 100))


class Digits(ImageList):
    def open(self, fn): return Image(pil2tensor(fn.reshape(8, 8), np.float32).div_(255))


def test_an_own_open_is_what_the_model_sees(path, df):
    data = (Dark.from_df(df, path, suffix=".jpg").split_by_rand_pct(.25).label_from_df()
            .transform(size=SIZE).databunch(bs=8))
    data.add_test(Dark.from_df(df, path, suffix=".jpg")[[0, 1]])
    assert [len(data.kit.train.function_names), data.kit.test.n] == [1, 2]
    for dl in (data.train_dl, data.valid_dl, data.test_dl):
        assert next(iter(dl))[0].max() <= .26
    assert isinstance(data.train_ds[[0, 1]].x, Dark)


def test_an_own_get_knows_its_position(path, df):
    images = ByPosition.from_df(df, path, suffix=".jpg")
    data = images.split_by_idx([0, 1]).label_from_df().transform(size=20).databunch()
    assert [round(float(x.mean()) * 100) for x in data.one_batch(DatasetType.Fix)[0]] == [
        *range(N - 2)]


def test_pixels_in_a_table(tmp_path):
    table = pd.DataFrame(np.random.RandomState(0).randint(0, 256, (12, 64)))
    table["label"] = [0, 1] * 6
    pixels = list(range(64))
    with patch.dict(os.environ, LESSONKIT_CACHE=str(tmp_path)):
        data = (Digits.from_df(table, cols=pixels).split_by_idx([10, 11])
                .label_from_df(cols="label").transform(size=8).databunch(bs=4))
        data.add_test(Digits.from_df(table, cols=pixels)[[3]])
    assert [data.kit.channels, data.classes, data.kit.size] == [1, [0, 1], 8]
    x, _ = data.one_batch(DatasetType.Test)
    assert np.array_equal((x[0, 0] * 255).round().numpy().ravel(), table.iloc[3, :64].to_numpy())


def test_rows_of_pixels_put_into_items_afterwards(tmp_path):
    "The way of most notebooks on handwritten digits."
    table = pd.DataFrame(np.random.RandomState(1).randint(0, 256, (12, 64)))
    table.insert(0, "label", [3, 8] * 6)
    table.to_csv(tmp_path/"train.csv", index=False)

    class Rows(ImageList):
        def open(self, fn):
            return Image(pil2tensor(np.stack((fn.reshape(8, 8),) * 3, axis=-1), dtype=np.float32))

        @classmethod
        def from_csv_custom(cls, path, csv_name, start=1, header="infer", **options):
            df = pd.read_csv(Path(path)/csv_name, header=header)
            found = super().from_df(df, path=path, cols=0, **options)
            found.items = df.iloc[:, start:].apply(lambda x: x.values / 255., axis=1).values
            return found

    with patch.dict(os.environ, LESSONKIT_CACHE=str(tmp_path)):
        test = Rows.from_csv_custom(path=tmp_path, csv_name="train.csv")
        data = (Rows.from_csv_custom(tmp_path, "train.csv").split_by_rand_pct(.25)
                .label_from_df(cols="label").add_test(test, label=3)
                .databunch(bs=4, num_workers=0).normalize(imagenet_stats))
    assert [data.classes, data.kit.size, data.kit.channels, len(data.test_ds)] == [[3, 8], 8, 3, 12]
    shown = data.one_batch(DatasetType.Test)[0][0, 0] * 255
    assert np.array_equal(shown.round().numpy().ravel(), table.iloc[0, 1:].to_numpy())


def test_a_function_in_the_place_of_open_image(path, df):
    def half(fn, convert_mode, after_open): return Image(torch.full((3, 30, 30), .5))

    hook.activate("v1", arch="packaged")
    try:
        import fastai.vision
        fastai.vision.data.open_image = half
        data = ImageDataBunch.from_df(path, df, suffix=".jpg", size=SIZE, bs=4)
        assert torch.allclose(data.one_batch()[0], torch.tensor(.5), atol=.01)
        assert torch.allclose(data.valid_ds[0][0].data, torch.tensor(.5), atol=.01)
    finally: hook.deactivate()


def brightness_in(file): return Image(torch.full((3, SIZE, SIZE), float(file.read_text())))


class Brightness(ItemList):
    "Items of a reader's own kind."
    def get(self, i): return brightness_in(self.items[i])


@pytest.mark.parametrize("own", (Brightness.from_folder, partial(
    ItemList.from_folder, create_func=brightness_in)))
def test_items_of_your_own_come_from_a_folder_and_in_loaders(tmp_path, own):
    for k in range(8):
        (tmp_path/f"{k % 2}").mkdir(exist_ok=True)
        (tmp_path/f"{k % 2}"/f"{k}.txt").write_text(f"{k / 10}")
    lists = own(tmp_path, extensions=[".txt"]).split_by_idx([6, 7]).label_from_folder()
    data = ImageDataBunch(*(DataLoader(part, 3) for part in (lists.train, lists.valid)))
    x, y = data.one_batch(DatasetType.Valid)
    assert torch.allclose(x.mean((1, 2, 3)), torch.tensor([.5, .7]), atol=.01)
    assert (y.tolist(), data.batch_size, data.classes) == ([1, 1], 3, ["0", "1"])


# Files and named data sets

def test_images_as_lesson_6_takes_them(path):
    image = open_image(get_image_files(path)[0])
    assert image2np(image.data).shape == (*image.size, 3)
    axes = show_image(torch.rand(1, 5, 5), figsize=(2, 2))
    image.show(ax=axes, title="a pet", y=Category(0, "cat"), cmap="gray")
    assert axes.get_title() == "a pet"
    plot_multi(lambda i, j, ax: image.show(ax, y=Category(0, f"{i}{j}")), 2, 3, figsize=(8, 8))
    assert plt.gcf().axes[-1].get_title() == "12"
    plt.close("all")
    flipped = image.apply_tfms([flip_lr()])
    assert torch.equal(flipped.data, image.data.flip(2))
    assert pil2tensor(PIL.Image.new("L", (4, 3)), dtype=np.float32).shape == (1, 3, 4)


def test_data_sets_are_found_or_the_advice_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path/"home"))
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("LESSONKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (Config.data_path()/"planet_sample"/"train").mkdir(parents=True)
    assert untar_data(URLs.PLANET_SAMPLE) == Config.data_path()/"planet_sample"
    (tmp_path/"data/mnist_tiny/train").mkdir(parents=True)
    assert untar_data(url=URLs.MNIST_TINY).ls()[0].name == "train"
    def offline(*args, **options): raise DownloadError("no connection")
    monkeypatch.setattr("lessonkit.data.datasets.download_and_unpack", offline)
    with pytest.raises(DatasetMissing, match="LESSONKIT_DATA") as missing: untar_data(URLs.DOGS)
    assert "no connection" in str(missing.value)
    with pytest.raises(NotSupported, match="texts, tables or sounds"): URLs.IMDB_SAMPLE
    with pytest.raises(AttributeError, match="there are PETS"): URLs.PETTS
