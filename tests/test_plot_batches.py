"""Batches as the model sees them: the right labels, augmented anew each time."""
import pytest

from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.plot.batches import show_batch
from making import check_figures, photo, pixels, titles


def label(path): return path.stem.split("_")[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        size = (200, 150) if i % 2 else (150, 200)
        for name in ("pug", "samoyed"): photo(folder/f"{name}_{i}.jpg", i, size)
    return sorted(folder.glob("*.jpg"))


@pytest.fixture(scope="module")
def data(files):
    return ImageData.from_name_func(files[0].parent, label, files, size=64, bs=8,
                                    augment=augmentations())


@pytest.mark.parametrize("split", ["train", "train_eval", "valid"])
def test_titles_are_the_labels(data, split):
    loader = getattr(data, split)
    fig = show_batch(data, n=100, split=split, seed=2)
    assert len(fig.axes) == loader.n  # all there are
    assert sorted(titles(fig)) == sorted(map(label, loader.paths))
    assert {pixels(ax).shape for ax in fig.axes} == {(64, 64, 3)}


def test_unique_is_one_image_augmented_each_time(data):
    fig = show_batch(data, n=6, unique=True)
    arrays = [pixels(ax) for ax in fig.axes]
    assert len(set(titles(fig))) == 1
    assert len(arrays) == 6
    assert len({a.tobytes() for a in arrays}) == 6
    again = show_batch(data, n=6, unique=True)
    assert all((a == pixels(ax)).all() for a, ax in zip(arrays, again.axes))


def test_several_labels_and_numbers(files):
    folder = files[0].parent
    tags = [["fur", "tail"] if i % 2 else ["fur"] for i in range(24)]
    several = ImageData.from_lists(folder, files, tags, size=32, bs=8)
    assert set(titles(show_batch(several, n=9))) == {"fur", "fur\ntail"}
    number = ImageData.from_lists(folder, files, [i / 4 for i in range(24)], size=32, bs=8)
    assert {float(t) for t in titles(show_batch(number, n=9))} <= {i / 4 for i in range(24)}
    with pytest.raises(ValueError, match="augment=augmentations"): show_batch(several, unique=True)


def test_errors(data):
    with pytest.raises(ValueError, match="'test'.*train"): show_batch(data, split="test")
    with pytest.raises(ValueError, match="'trian'"): show_batch(data, split="trian")
    with pytest.raises(ValueError, match="not 0"): show_batch(data, n=0)


def test_batches_are_small_and_described(data):
    check_figures(lambda: {"batch": show_batch(data), "one": show_batch(data, unique=True)}, 20)
    assert show_batch(data, n=2).alt.startswith("2 images: ")
