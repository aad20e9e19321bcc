"""The data side of fastai v2's vocabulary: lists, blocks, splits and transforms of old notes."""
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lessonkit.data import sample
from lessonkit.data.augment import Augment
from lessonkit.data.image_data import Stats
from lessonkit.dialects import registry
from lessonkit.dialects.fastai2 import book, loaders
from lessonkit.dialects.fastai2.data_block import (
    CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, MultiCategoryBlock, RegressionBlock,
    TransformBlock,
)
from lessonkit.dialects.fastai2.datasets import Categorize, Datasets
from lessonkit.dialects.fastai2.images import (
    PILImage, PILImageBW, tensor, TensorCategory, TensorImage, to_cpu,
)
from lessonkit.dialects.fastai2.item_tfms import (
    RandomResizedCrop, RandTransform, Resize, ResizeMethod,
)
from lessonkit.dialects.fastai2.labels import (
    ColReader, get_image_files, RandomSplitter, RegexLabeller, using_attr,
)
from lessonkit.dialects.fastai2.lists import Inf, L, patch_paths, Pipeline
from lessonkit.dialects.fastai2.transforms import (
    aug_transforms, imagenet_stats, IntToFloatTensor, Normalize, plan_transforms, RandomErasing,
    Rotate, setup_aug_tfms, ToTensor, Warp, Zoom,
)
from lessonkit.dialects.registry import NotSupported, settings
from tiers import examples

SHAPES = ["circle", "square", "stripes"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("shapes"), n=24, size=20)


@pytest.fixture(scope="module")
def files(path): return get_image_files(path)


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    monkeypatch.setattr(settings, "given", {})
    registry.forget_remarks()
    patch_paths()  # another generation may have been imported


def shape_of(file): return Path(file).name.rpartition("_")[0]


def block(blocks=(ImageBlock, CategoryBlock), **options):
    usual = dict(get_items=get_image_files, get_y=shape_of, item_tfms=Resize(20),
                 splitter=RandomSplitter(.25, seed=42))
    return DataBlock(blocks=blocks, **usual | options)


@given(st.lists(st.integers(), max_size=12), st.data())
@examples(40)
def test_lists_are_indexed_like_arrays(values, data):
    items, array = L(values), np.array(values, dtype=object)
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    if values:
        assert list(items[mask]) == list(array[np.array(mask, bool)])
        where = data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=5))
        for index in (where, np.array(where, int), torch.tensor(where, dtype=torch.int64)):
            assert list(items[index]) == list(array[where] if where else [])
    part = data.draw(st.slices(len(values)))
    assert list(items[part]) == list(array[part])


@pytest.mark.parametrize("made, expected", [
    (L(1, 2).map(str), "(#2) ['1','2']"),
    (L("abc"), "(#1) ['abc']"),
    (L(None), "(#0) []"),
    (L.range(11), "(#11) [0,1,2,3,4,5,6,7,8,9...]"),
    (L(2, 1).sorted() + L(3), "(#3) [1,2,3]"),
    (L({"url": "a"}).attrgot("url"), "(#1) ['a']"),
    (L([1, 2], [3, 4]).zip(), "(#2) [(1, 3),(2, 4)]"),
    (L([(1, 2)]).starmap(lambda a, b: a + b), "(#1) [3]"),
])
def test_lists_look_as_in_old_notes(made, expected): assert repr(made) == expected


def test_paths_list_their_files(path, monkeypatch):
    assert len(path.ls(file_exts=".jpg")) == 24
    assert path.ls().sorted() == sorted(path.iterdir())
    monkeypatch.setattr(Path, "BASE_PATH", path)
    assert repr(path.ls()[0]) == "Path('circle_0.jpg')"


@pytest.mark.parametrize("seed", [0, 42])
def test_a_seed_splits_as_in_v2(seed):
    state = torch.get_rng_state()
    train, valid = RandomSplitter(seed=seed)(range(101))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(seed)
    order = torch.randperm(101).tolist()
    assert (valid, train) == (order[:20], order[20:])


@pytest.mark.parametrize("blocks", [
    (ImageBlock, CategoryBlock), [ImageBlock(), CategoryBlock()],
    (ImageBlock(cls=PILImage), CategoryBlock(vocab=SHAPES)),
    (TransformBlock(type_tfms=PILImage.create), TransformBlock(type_tfms=Categorize)),
])
def test_forms_of_blocks(blocks, path):
    dls = block(blocks).dataloaders(path, bs=4)
    assert dls.vocab == SHAPES
    assert dls.vocab.o2i["stripes"] == 2
    assert dls.vocab[torch.tensor([2, 0])] == ["stripes", "circle"]
    assert [dls.c, dls.kit.size, len(dls.train_ds), len(dls.valid_ds)] == [3, 20, 18, 6]


@pytest.mark.parametrize("label", [
    shape_of, using_attr(RegexLabeller(r"(.+)_\d+.jpg$"), "name"), RegexLabeller(r"/([a-z]+)_\d+"),
    Pipeline([lambda f: f.name, lambda name: name.split("_")[0]]),
])
def test_forms_of_labels(label, path):
    dls = block(get_y=label).dataloaders(path, bs=4)
    assert L(dls.valid_ds.items).map(shape_of) == [dls.vocab[int(y)] for _, y in dls.valid_ds]


def test_a_block_has_no_memory_of_the_classes_before(tmp_path, path):
    shapes = block([ImageBlock(), CategoryBlock()])
    two = sample.tiny(tmp_path, n=12, size=20, classes=("circle", "square"))
    first, second = shapes.dataloaders(path), shapes.dataloaders(two)
    assert [first.vocab, second.vocab] == [SHAPES, SHAPES[:2]]
    resized = shapes.new(item_tfms=Resize(16, ResizeMethod.Squish))
    assert [resized.dataloaders(path).kit.size, shapes.dataloaders(path).kit.size] == [16, 20]


def test_the_order_is_the_same_everywhere(path, files):
    splits = [[5, 3, 1, 0, 10, 11, 12, 13, 20, 21], [-1, 7, 9, 4]]
    dls = block(splitter=lambda items: splits).dataloaders(path, bs=3)
    expected = [files[i] for i in (4, 7, 9, 23)]
    assert dls.valid_ds.items == expected
    assert list(dls.valid.kit_loader.paths) == expected
    assert list(dls.train.kit_loader.paths) == dls.train_ds.items
    y = torch.cat([y for _, y in dls.valid])
    assert torch.equal(y.as_subclass(torch.Tensor), dls.valid.kit_loader.targets)
    x, y = dls.valid.one_batch()
    assert [x.shape, y.tolist()] == [(3, 3, 20, 20), dls.valid.kit_loader.targets[:3].tolist()]


def test_tables(path, files):
    table = pd.DataFrame(dict(name=[f.stem for f in files], shape=files.map(shape_of)))
    table["tags"] = table["shape"] + " drawn"
    table["is_valid"] = table.index % 4 == 0
    seen = []
    def splitter(df):
        seen.append(df)
        return df.index[~df["is_valid"]].tolist(), df.index[df["is_valid"]].tolist()
    read_name = ColReader("name", pref=path, suff=".jpg")
    several = DataBlock((ImageBlock, MultiCategoryBlock), splitter=splitter, item_tfms=Resize(20),
                        get_x=read_name, get_y=lambda row: row["tags"].split(" "))
    dsets = several.datasets(table)
    assert seen[0] is table
    idxs = torch.where(dsets.train[0][1] == 1.)[0]
    assert dsets.train.vocab[idxs] == ["circle", "drawn"]
    dls = several.dataloaders(table)
    assert [dls.kit.kind, dls.c, len(dls.valid_ds)] == ["multi", 4, 6]
    assert isinstance(dls.valid_ds.items, pd.DataFrame)
    test = dls.test_dl(table[:3], with_labels=True, rm_type_tfms=None, shuffle=False)
    assert list(test.loader.paths) == files[:3]
    assert test.loader.targets.sum(1).tolist() == [2, 2, 2]
    factory = ImageDataLoaders.from_df(table, path, suff=".jpg", label_col="tags", label_delim=" ",
                                       valid_col="is_valid", item_tfms=Resize(20), bs=4)
    assert factory.vocab == dls.vocab
    assert factory.valid.kit_loader.paths == dls.valid.kit_loader.paths


def test_bools_encoded_labels_and_numbers(path, files):
    is_round = ImageDataLoaders.from_name_func(path, files, lambda name: name[0] == "c", seed=1,
                                               item_tfms=Resize(20))
    assert is_round.vocab == [False, True]
    encoded = block((ImageBlock, MultiCategoryBlock(encoded=True, vocab=["b", "a"])),
                    get_y=lambda f: [shape_of(f) == "circle", 1]).dataloaders(path)
    assert encoded.vocab == ["b", "a"]
    assert {tuple(y.tolist()) for _, y in encoded.valid_ds} <= {(1., 1.), (0., 1.)}
    assert torch.equal(encoded.valid.kit_loader.targets[:, 1], torch.ones(6))
    number = block((ImageBlock, RegressionBlock), get_y=lambda f: len(shape_of(f)) / 2)
    dls = number.dataloaders(path, bs=4)
    assert [dls.c, dls.one_batch()[1].shape] == [1, (4,)]
    with pytest.raises(AttributeError, match="no classes"): dls.vocab


def test_a_data_set_of_functions_is_the_same(path, files):
    splits = RandomSplitter(.25, seed=42)(files)
    dsets = Datasets(files, tfms=[[PILImage.create], [shape_of, Categorize]], splits=splits)
    after_batch = [IntToFloatTensor, *aug_transforms(size=20, min_scale=.75)]
    dls = dsets.dataloaders(bs=4, after_item=[Resize(24), ToTensor()], after_batch=after_batch,
                            num_workers=0)
    whole = block(item_tfms=Resize(24), batch_tfms=aug_transforms(size=20, min_scale=.75))
    other = whole.dataloaders(path, bs=4)
    assert dls.train.kit_loader.paths == other.train.kit_loader.paths
    assert dls.kit.augment == other.kit.augment
    assert torch.equal(dls.valid.one_batch()[0], other.valid.one_batch()[0])
    assert dsets.valid[0][1] == TensorCategory(dsets.vocab.o2i[shape_of(dsets.valid.items[0])])


@pytest.mark.parametrize("item_tfms, batch_tfms, size, presize, fit, augment", [
    (Resize(460), aug_transforms(size=224, min_scale=.75), 224, 460, "crop",
     Augment(min_scale=.75)),
    (Resize(128), None, 128, None, "crop", "random_crop"),
    ([Resize(192, method="squish")], None, 192, None, "squish", None),
    (Resize((64, 64)), aug_transforms(mult=2), 64, None, "crop",
     Augment(max_rotate=20, max_warp=.4, max_lighting=.4)),
    (Resize(64), aug_transforms(flip_vert=True, max_lighting=.1, max_zoom=1.05, max_warp=0.), 64,
     None, "crop", Augment(flip_vert=True, max_lighting=.1, max_zoom=1.05, max_warp=0)),
    (RandomResizedCrop(128, min_scale=.35), aug_transforms(), 128, 216, "crop",
     Augment(min_scale=.35)),
    (Resize(64), setup_aug_tfms([Rotate(20, p=.5), Zoom(1., 1.3, p=.5)]), 64, None, "crop",
     Augment(flip=False, max_rotate=20, max_zoom=1.3, max_warp=0, max_lighting=0, p_affine=.5)),
])
def test_what_transforms_mean(item_tfms, batch_tfms, size, presize, fit, augment):
    plan = plan_transforms(item_tfms, batch_tfms)
    assert (plan.size, plan.presize, plan.fit) == (size, presize, fit)
    if augment != "random_crop": assert plan.augment == augment
    else: assert plan.augment.random_crop and not plan.augment.mirrors


def test_moves_are_those_of_fastai():
    # Pixels that are their own coordinates; the numbers are those of fastai 2.8.12.
    g = torch.linspace(-1, 1, 32)
    x = TensorImage(torch.stack([g[None].expand(32, 32), g[:, None].expand(32, 32)])[None])
    def at(image, row, column): return image[0, :, row, column].tolist()
    assert at(x.rotate(draw=30, p=1.), 10, 20) == pytest.approx([.074, -.452], abs=.015)
    assert at(x.zoom(draw=1.5, draw_x=.2, draw_y=.9), 20, 12) == pytest.approx([-.351, .46],
                                                                               abs=.015)
    assert at(x.warp(draw_x=-.2, draw_y=.1), 10, 20) == pytest.approx([.464, -.433], abs=.015)
    together = setup_aug_tfms([Rotate(draw=30, p=1., size=24),
                               Zoom(draw=1.2, draw_x=.3, draw_y=.6, p=1., size=24),
                               Warp(draw_x=-.2, draw_y=.2, p=1., size=24)])
    assert at(Pipeline(together)(x), 8, 14) == pytest.approx([.217, -.442], abs=.02)


class Marked(RandTransform):
    "Notes whether it was called for training or for validation."
    split_idx = None

    def before_call(self, b, split_idx): self.level = 255 if split_idx == 0 else 100

    def encodes(self, img: PILImage): return Image.new("RGB", img.size, (self.level,) * 3)


def test_functions_that_open_files_themselves(path):
    negative = block(get_x=lambda file: 255 - np.asarray(Image.open(file)))
    dls, plain = negative.dataloaders(path, bs=4), block().dataloaders(path, bs=4)
    both = dls.valid.one_batch()[0] + plain.valid.one_batch()[0]
    assert (both - 1).abs().max() < .01


def test_functions_know_training_from_validation(path):
    dls = block(item_tfms=[Marked(), Resize(20)]).dataloaders(path, bs=4)
    assert dls.train.one_batch()[0].min().item() == pytest.approx(1)
    assert dls.valid.one_batch()[0].max().item() == pytest.approx(100 / 255)
    assert dls.kit.train_eval.item(0)[0].max() == 100
    erased = block(batch_tfms=[RandomErasing(p=1.)]).dataloaders(path, bs=4)
    assert [len(erased.kit.train.item_tfms), len(erased.kit.valid.item_tfms)] == [1, 0]
    gray = block((ImageBlock(PILImageBW), CategoryBlock)).dataloaders(path, bs=4)
    assert gray.one_batch()[0].shape == (4, 1, 20, 20)


def test_batches_are_normalized_if_asked_for(path):
    plain, normalized = (block(batch_tfms=tfms).dataloaders(path, bs=4)
                         for tfms in (None, Normalize.from_stats(*imagenet_stats)))
    x, z = plain.valid.one_batch()[0], normalized.valid.one_batch()[0]
    assert normalized.kit.stats == Stats(*map(tuple, imagenet_stats))
    assert [plain.normalized, normalized.normalized] == [False, True]
    mean, std = (torch.tensor(v)[:, None, None] for v in imagenet_stats)
    torch.testing.assert_close(z, (x - mean) / std, check_dtype=True)
    torch.testing.assert_close(normalized.valid.decode((z,))[0], x, atol=1e-5, rtol=0)
    plain.add_normalize(normalized.stats)
    torch.testing.assert_close(plain.valid.one_batch()[0], z)
    assert "Normalize" in repr(plain.train.after_batch)


def test_one_image_many_times(files, monkeypatch):
    shown = []
    monkeypatch.setattr(loaders, "show_figure", shown.append)
    one = DataBlock(blocks=(ImageBlock(), CategoryBlock()), get_y=shape_of, item_tfms=Resize(20),
                    batch_tfms=aug_transforms())
    dls = one.dataloaders([files[0]] * 20, bs=8)
    dls.train.get_idxs = lambda: Inf.ones
    x, y = to_cpu(dls.valid.one_batch())
    assert [x.shape, set(y.tolist())] == [(4, 3, 20, 20), {0}]
    assert len(dls.train.one_batch()[0].flatten(1).unique(dim=0)) == 8
    dls.train.show_batch(max_n=8, nrows=2)
    dls.valid.show_batch(max_n=4, unique=True)
    dls.show_batch(unique=True, max_n=2, figsize=(4, 2))
    assert [len(fig.axes) for fig in shown] == [8, 1, 2]


@pytest.mark.parametrize("options, count", [
    (dict(max_n=5), 5), (dict(nrows=1, ncols=3), 3), (dict(max_n=4, rows=2, cmap="gray"), 4),
    (dict(max_n=6, nrows=2), 6), (dict(cols=2, nrows=2), 4),
])
def test_grids(options, count, path, monkeypatch):
    shown = []
    monkeypatch.setattr(loaders, "show_figure", shown.append)
    block().dataloaders(path, bs=4).show_batch(**options)
    assert len(shown[0].axes) == count


@pytest.mark.parametrize("changes, step", [
    (dict(get_items=lambda path: []), "Items of"),
    (dict(splitter=lambda items: 1 / 0), "Split"),
    (dict(get_y=RegexLabeller("nothing")), "Labels of"),
    (dict(item_tfms=lambda img: img.nothing), "nothing|lambda"),
    (dict(item_tfms=None, get_items=lambda p: [*p.ls(), p.parent/"odd.png"]), "A batch"),
])
def test_the_summary_says_which_step_fails(changes, step, path, capsys):
    Image.new("RGB", (7, 9)).save(path.parent/"odd.png")
    block(**changes).summary(path)
    *before, last = capsys.readouterr().out.strip().split("\n")
    assert last.startswith("FAILED in the step above")
    steps = [line for line in before if not line.startswith("    ")]
    assert any(word in steps[-1] + steps[-2 if len(steps) > 1 else -1] for word in step.split("|"))


def test_sizes_without_resize(path, files, tmp_path):
    dls = block(item_tfms=None).dataloaders(path, bs=4)
    assert [dls.kit.size, dls.kit.train.presize] == [20, 20]
    pixels = np.asarray(Image.open(dls.valid.items[0]), np.float32) / 255
    seen = dls.valid.one_batch()[0][0].permute(1, 2, 0)
    assert abs(seen.numpy() - pixels).max() < 1e-5
    Image.new("RGB", (30, 20)).save(tmp_path/"circle_9.png")
    wide = block(item_tfms=None, get_items=lambda p: [*files, tmp_path/"circle_9.png"])
    with pytest.raises(ValueError, match="2 sizes.*Resize"): wide.dataloaders(path)


def test_limits_from_outside(path, monkeypatch):
    monkeypatch.setattr(settings, "given", dict(images=12, size=16))
    dls = block(item_tfms=Resize(64)).dataloaders(path, bs=4)
    assert [dls.kit.size, len(dls.train_ds), len(dls.valid_ds)] == [16, 9, 3]
    assert [dls.kit.train.n, dls.kit.valid.n] == [9, 3]
    assert dls.vocab == SHAPES


def test_what_is_not_supported(path, files):
    three = block((ImageBlock, ImageBlock, CategoryBlock), get_x=[shape_of] * 2, n_inp=2)
    with pytest.raises(NotSupported, match="More than one"): three.dataloaders(path)
    rows = [{"file": f} for f in files]
    arrays = block(get_items=lambda path: rows, get_x=lambda row: np.zeros((4, 4)),
                   get_y=lambda row: shape_of(row["file"]))
    with pytest.raises(NotSupported, match="ndarray"): arrays.dataloaders(path)
    with pytest.raises(NotSupported, match="item_tfms"):
        block(batch_tfms=lambda x: x).dataloaders(path)
    with pytest.raises(NotSupported, match="squares"):
        block(item_tfms=Resize((2, 3))).dataloaders(path)
    with pytest.raises(ValueError, match="CategoryBlock"): DataBlock().dataloaders(files)
    with pytest.raises(NotSupported, match="download_images"): book.search_images_ddg("bird")


def test_unknown_keywords_are_named_once(path):
    for call in (lambda: block(blcks=1), lambda: block().dataloaders(path, tfms=1),
                 lambda: block().dataloaders(path).show_batch(row=3)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
            call()
        named = [str(w.message) for w in found if "ignored" in str(w.message)]
        assert len(named) == 1
        assert any(word in named[0] for word in ("blcks=", "tfms=", "row="))


def test_images_of_any_kind():
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    img = PILImage.create(array)
    assert (np.asarray(PILImage.create(torch.tensor(array))) == array).all()
    assert (np.asarray(PILImage.create(TensorImage(array).permute(2, 0, 1))) == array).all()
    assert [img.shape, img.to_thumb(4).size, tensor(img).shape] == [(6, 8), (4, 3), (6, 8, 3)]
    assert (np.asarray(PILImage.create(Image.fromarray(array))) == array).all()
    assert [PILImageBW.create(img).mode, Image.fromarray(array).to_thumb(4).shape] == ["L", (3, 4)]


def test_tensors_mix():
    x, y = TensorImage(torch.rand(4, 3)), TensorCategory([0, 1, 2, 0])
    loss = torch.nn.functional.cross_entropy(x, y)
    assert isinstance(loss, TensorImage)
    assert (x.argmax(1) == y).float().mean() <= 1
    assert np.asarray(y.cpu()).tolist() == [0, 1, 2, 0]
