"""Two old documents for fastai 0.7, executed call by call: a lesson's notebook and its summary.

The calls are those of the documents, with their arguments. Images are drawn, the packaged network
takes the place of resnet34, and images are smaller than the 224 pixels that the calls ask for: all
of that is set from outside. Some validation images lie in the wrong folder, so that there are
mistakes to look at.
"""
import math, shutil, sys

import matplotlib
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from lessonkit.dialects import hook
from lessonkit.dialects.registry import settings
from lessonkit.results.preds import Preds
from stand_in_data import animal, save

N_TRAIN, N_VALID = 20, 11    # of each class
SWAPPED = 5                  # of the validation images of each class, in the wrong folder


def draw_dogscats(folder):
    "Cats and dogs in train/cats, train/dogs, valid/cats and valid/dogs."
    for part, n in (("train", N_TRAIN), ("valid", N_VALID)):
        for i, name in ((0, "cats"), (6, "dogs")):
            for k in range(n):
                shown = 6 - i if part == "valid" and k < SWAPPED else i
                file = folder / part / name / f"{name[:-1]}.{10001 + k}.jpg"
                save(animal(shown, k + (100 if part == "valid" else 0), 64), file)


class Notebook:
    "Cells that run in IPython; what they returned, printed and drew."
    def __init__(self, shell):
        self.shell, self.figures, self.printed = shell, {}, ""

    def __getitem__(self, name): return self.shell.user_ns[name]

    def __call__(self, cell, name=None):
        "Run a cell; its figure is kept under a name. Returns the value of its last line."
        from matplotlib import pyplot as plt
        result = self.shell.run_cell(cell, store_history=False)
        result.raise_error()
        numbers = plt.get_fignums()
        if name: self.figures[name] = [contents(plt.figure(n)) for n in numbers]
        plt.close("all")
        return result.result


def contents(fig):
    "Images, titles, lines and axis labels of a figure."
    axes = fig.axes
    return dict(images=[np.asarray(ax.images[0].get_array()) for ax in axes if ax.images],
                titles=[ax.get_title() for ax in axes],
                lines=[line.get_xydata() for ax in axes for line in ax.lines],
                labels=[(ax.get_xlabel(), ax.get_ylabel()) for ax in axes],
                texts=[text.get_text() for ax in axes for text in ax.texts],
                size=fig.get_size_inches())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old-notes")
    draw_dogscats(folder / "data" / "dogscats")
    return folder


@pytest.fixture(scope="module")
def start(folder):
    "A new notebook that has loaded the extension, in a folder with data/dogscats."
    def begin(size):
        settings.use(arch="packaged", size=size)
        notebook("%load_ext lessonkit.dialects")
        return notebook
    patch, paths = pytest.MonkeyPatch(), list(sys.path)
    patch.chdir(folder)
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    matplotlib.use("agg")
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    notebook = Notebook(shell)
    yield begin
    hook.deactivate()
    settings.use()
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()
    sys.path[:] = paths
    patch.undo()


IMPORTS = """
from fastai.imports import *
from fastai.transforms import *
from fastai.conv_learner import *
from fastai.model import *
from fastai.dataset import *
from fastai.sgdr import *
from fastai.plots import *
"""


# ---- the notebook

PICTURES = {   # cells that draw, under the names of their figures
    "Correctly classified": 'plot_val_with_title(rand_by_correct(True), "Correctly classified")',
    "Incorrectly classified":
        'plot_val_with_title(rand_by_correct(False), "Incorrectly classified")',
    "Most correct cats": 'plot_val_with_title(most_by_correct(0, True), "Most correct cats")',
    "Most correct dogs": 'plot_val_with_title(most_by_correct(1, True), "Most correct dogs")',
    "Most incorrect cats": 'plot_val_with_title(most_by_correct(0, False), "Most incorrect cats")',
    "Most incorrect dogs": 'plot_val_with_title(most_by_correct(1, False), "Most incorrect dogs")',
    "Most uncertain predictions":
        'plot_val_with_title(most_uncertain, "Most uncertain predictions")',
}

# The bodies of two functions, which the scan of the notebook has lost, and the correction of one:
# the mask needs brackets around both comparisons.
LOST = """
def most_by_mask(mask, mult):
    idxs = np.where(mask)[0]
    return idxs[np.argsort(mult * probs[idxs])[:4]]

def most_by_correct(y, is_correct):
    mult = -1 if (y==1)==is_correct else 1
    return most_by_mask(((preds == data.val_y)==is_correct) & (data.val_y == y), mult)
"""


@pytest.fixture(scope="module")
def lesson(start):
    "The lesson's notebook, from top to bottom; what it showed is in `.shown`."
    run = start(64)
    shown = run.shown = {}
    run(IMPORTS)
    run('PATH = "data/dogscats/"\nsz=224')
    run("files = !ls {PATH}valid/cats | head")
    run("img = plt.imread(f'{PATH}valid/cats/{files[0]}')\nplt.imshow(img);", "first cat")
    shown["pixels"] = run("img[:4,:4]")
    run("arch=resnet34\n"
        "data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz))\n"
        "learn = ConvLearner.pretrained(arch, data, precompute=True)\n"
        "learn.fit(0.01, 3)")
    shown["val_y"], shown["classes"] = run("data.val_y"), run("data.classes")
    run("log_preds = learn.predict()")
    shown["first model"] = run("log_preds[:10]"), run["learn"].kit.history.fits[-1]
    run("preds = np.argmax(log_preds, axis=1)\nprobs = np.exp(log_preds[:,1])")
    run("def rand_by_mask(mask): return np.random.choice(np.where(mask)[0], 4, replace=False)\n"
        "def rand_by_correct(is_correct): return rand_by_mask((preds == data.val_y)==is_correct)")
    run("def plot_val_with_title(idxs, title):\n"
        "    imgs = np.stack([data.val_ds[x][0] for x in idxs])\n"
        "    title_probs = [probs[x] for x in idxs]\n"
        "    print(title)\n"
        "    return plots(data.val_ds.denorm(imgs), rows=1, titles=title_probs)")
    run(PICTURES["Correctly classified"], "crops")
    run("def load_img_id(ds, idx): return np.array(PIL.Image.open(PATH+ds.fnames[idx]))")
    run("def plot_val_with_title(idxs, title):\n"
        "    imgs = [load_img_id(data.val_ds,x) for x in idxs]\n"
        "    title_probs = [probs[x] for x in idxs]\n"
        "    print(title)\n"
        "    return plots(imgs, rows=1, titles=title_probs, figsize=(16,8))")
    run(LOST)
    run("most_uncertain = np.argsort(np.abs(probs -0.5))[:4]")
    shown["probs"], shown["preds"] = run["probs"], run["preds"]
    for name, cell in PICTURES.items(): run(cell, name)

    run("learn = ConvLearner.pretrained(arch, data, precompute=True)")
    run("lrf=learn.lr_find()")
    run("learn.sched.plot_lr()", "rates of lr_find")
    run("learn.sched.plot()", "lr_find")
    shown["lr_find"] = run["learn"].sched
    run("tfms = tfms_from_model(resnet34, sz, aug_tfms=transforms_side_on, max_zoom=1.1)")
    run("def get_augs():\n"
        "    data = ImageClassifierData.from_paths(PATH, bs=2, tfms=tfms, num_workers=1)\n"
        "    x,_ = next(iter(data.aug_dl))\n"
        "    return data.trn_ds.denorm(x)[1]")
    run("ims = np.stack([get_augs() for i in range(6)])")
    run("plots(ims, rows=2)", "augmented")
    run("data = ImageClassifierData.from_paths(PATH, tfms=tfms)\n"
        "learn = ConvLearner.pretrained(arch, data, precompute=True)")
    run("learn.fit(1e-2, 1)")
    run("learn.precompute=False")
    run("learn.fit(1e-2, 3, cycle_len=1)")
    run("learn.sched.plot_lr()", "cycles")
    shown["cycles"] = run["learn"].sched
    run("learn.save('224_lastlayer')")
    run("learn.load('224_lastlayer')")
    run("learn.unfreeze()")
    run("lr=np.array([1e-4,1e-3,1e-2])")
    run("learn.fit(lr, 3, cycle_len=1, cycle_mult=2)")
    run("learn.sched.plot_lr()", "growing cycles")
    shown["growing cycles"] = run["learn"].sched
    run("learn.save('224_all')")
    run("learn.load('224_all')")
    shown["learner"] = run["learn"]
    run("log_preds,y = learn.TTA()")
    shown["TTA accuracy"] = run("accuracy(log_preds,y)")
    run("preds = np.argmax(log_preds, axis=1)")
    shown["TTA"] = run["log_preds"], run["y"], run["preds"]
    run("probs = np.mean(np.exp(log_preds),0)")
    shown["accuracy of the mean"] = run("accuracy_np(probs, y)")
    run("from sklearn.metrics import confusion_matrix\ncm = confusion_matrix(y, preds)")
    run("plot_confusion_matrix(cm, data.classes)", "confusion matrix")
    run("tfms = tfms_from_model(resnet34, sz)")
    run("data = ImageClassifierData.from_paths(PATH, tfms=tfms)")
    run("learn = ConvLearner.pretrained(resnet34, data, precompute=True)")
    shown["one epoch"] = run("learn.fit(1e-2, 1)")
    run("def binary_loss(y, p):\n"
        "    return np.mean(-(y * np.log(p) + (1-y)*np.log(1-p)))")
    run("acts = np.array([1, 0, 0, 1])\npreds = np.array([0.9, 0.1, 0.2, 0.8])")
    shown["binary loss"] = run("binary_loss(acts, preds)")
    return run


def swapped(y): return np.arange(2 * N_VALID) % N_VALID < SWAPPED


def test_the_first_cat_is_an_array_of_bytes(lesson):
    assert lesson["files"][0] == "cat.10001.jpg"
    img, pixels = lesson["img"], lesson.shown["pixels"]
    assert (pixels.shape, pixels.dtype) == ((4, 4, 3), np.uint8)
    assert lesson.figures["first cat"][0]["images"][0].shape == img.shape
    assert img.ndim == 3 and img.shape[2] == 3


def test_labels_and_classes(lesson):
    y = lesson.shown["val_y"]
    assert lesson.shown["classes"] == ["cats", "dogs"]
    assert y.tolist() == [0] * N_VALID + [1] * N_VALID
    assert np.issubdtype(y.dtype, np.integer)


def test_the_first_model_learns_in_three_epochs(lesson):
    log_preds, record = lesson.shown["first model"]
    assert (log_preds.shape, log_preds.dtype) == ((10, 2), np.float32)
    assert np.allclose(np.exp(log_preds).sum(1), 1, atol=1e-5)
    columns = ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert [list(row) for row in record.rows] == [columns] * 3
    assert {rates[-1] for rates in record.lrs} == {.01} and set(record.moms) == {.9}
    assert any("the frozen body ran once" in note for note in record.notes)


def test_precomputed_features_are_of_plain_images(lesson):
    "precompute=True leaves augmentation out; precompute=False brings it back."
    learn = lesson.shown["learner"]
    learn.precompute = True
    assert learn.kit.data.augment is None
    learn.precompute = False
    assert (learn.kit.data.augment.flip, learn.kit.data.augment.max_zoom) == (True, 1.1)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_files_with_their_probability_of_dog(lesson, name):
    fig, = lesson.figures[name]
    images, titles = fig["images"], [float(title) for title in fig["titles"]]
    probs, preds, y = lesson.shown["probs"], lesson.shown["preds"], lesson.shown["val_y"]
    assert len(images) == len(titles) == 4 and fig["size"].tolist() == [16, 8]
    rows = [int(np.flatnonzero(probs == np.float32(title))[0]) for title in titles]
    if "uncertain" in name:
        assert rows == np.argsort(np.abs(probs - .5))[:4].tolist()
        return
    is_correct = "incorrect" not in name.lower()
    assert ((preds[rows] == y[rows]) == is_correct).all()
    if name.startswith("Most"):
        of_class = int("dogs" in name)
        assert set(y[rows]) == {of_class}
        certain = np.abs(probs[rows] - .5)
        assert (np.diff(certain) <= 1e-7).all()      # the most certain answer first


def test_crops_are_what_the_network_sees(lesson):
    fig, = lesson.figures["crops"]
    assert [image.shape for image in fig["images"]] == [(64, 64, 3)] * 4


def test_mistakes_are_those_in_the_wrong_folder(lesson):
    preds, y = lesson.shown["preds"], lesson.shown["val_y"]
    assert ((preds != y) == swapped(y)).mean() > .7


def test_the_finder_grows_the_rate_in_equal_ratios(lesson):
    lrs = np.array(lesson.shown["lr_find"].lrs)
    assert lrs[0] == pytest.approx(1e-5)
    assert np.allclose(np.diff(np.log(lrs)), np.log(lrs[1] / lrs[0]))
    rates, = lesson.figures["rates of lr_find"][0]["lines"][:1]
    assert np.allclose(rates[:, 1], lrs)
    found = lesson.figures["lr_find"][0]
    assert np.allclose(found["lines"][0][:, 0], lrs)
    assert found["labels"][0][0] == "learning rate"


def test_six_versions_of_one_image_differ(lesson):
    ims, fig = lesson["ims"], lesson.figures["augmented"][0]
    assert ims.shape == (6, 64, 64, 3)
    assert len(fig["images"]) == 6
    for i in range(1, 6): assert np.abs(ims[i] - ims[0]).mean() > .01
    hues = ims.reshape(6, -1, 3).mean(1)
    assert np.abs(hues - hues.mean(0)).max() < .25     # still the same animal


def rates_of_07(lr, lengths, nb):
    "The schedule as 0.7 computed it, batch by batch: `nb` batches in an epoch."
    found, first = [], lengths[0] * nb
    for length in lengths:
        for t in range(length * nb):
            warm = len(found) < first / 20
            found.append(lr / 100 if warm else lr / 2 * (1 + math.cos(math.pi * t / (length * nb))))
    return found


@pytest.mark.parametrize("name, lengths", [("cycles", (1, 1, 1)), ("growing cycles", (1, 2, 4))])
def test_cycles_restart_at_the_full_rate(lesson, name, lengths):
    sched = lesson.shown[name]
    expected = rates_of_07(.01, lengths, 1)
    assert np.allclose(sched.lrs, expected, rtol=1e-6, atol=1e-12)
    assert sched.epochs == list(range(1, sum(lengths) + 1))
    fig = lesson.figures[name][0]
    assert np.allclose(fig["lines"][0][:, 1], expected)
    assert fig["labels"][0] == ("iterations", "learning rate")


def test_earlier_layers_have_smaller_rates(lesson):
    rates = np.array(lesson.shown["growing cycles"].record.lrs)
    assert np.allclose(rates, rates[:, 2:] * [.01, .1, 1])


def test_batch_normalization_learns_only_when_all_is_unfrozen(lesson):
    learn = lesson.shown["learner"]
    assert (learn.kit.model.frozen, learn.kit.model.train_bn) == (0, True)


def test_models_are_in_the_data_folder(lesson, folder):
    names = {file.stem for file in (folder / "data" / "dogscats" / "models").iterdir()}
    assert names == {"224_lastlayer", "224_all"}


def test_tta_has_five_views_and_both_eras_can_average_them(lesson):
    log_preds, y, preds = lesson.shown["TTA"]
    assert (log_preds.shape, y.tolist()) == ((5, 2 * N_VALID, 2), lesson.shown["val_y"].tolist())
    probs = np.mean(np.exp(log_preds), 0)
    assert type(probs) is np.ndarray and np.allclose(probs.sum(1), 1, atol=1e-5)
    assert preds.tolist() == probs.argmax(1).tolist()
    assert lesson.shown["TTA accuracy"] == pytest.approx((preds == y).mean())
    assert lesson.shown["accuracy of the mean"] == lesson.shown["TTA accuracy"]


def test_the_confusion_matrix_is_printed_and_drawn(lesson):
    cm, fig = lesson["cm"], lesson.figures["confusion matrix"][0]
    assert cm.sum() == 2 * N_VALID
    assert fig["titles"][0] == "Confusion matrix"
    assert {str(n) for n in cm.ravel() if n} <= set(fig["texts"])


def test_the_toy_loss(lesson):
    assert lesson.shown["binary loss"] == pytest.approx(.164252, abs=1e-6)


def test_the_notebook_explains_its_first_model(lesson):
    train, valid = lesson["tfms"]
    assert (train.sz, valid.sz, valid.augment) == (64, 64, None)
    assert (train.augment.random_crop, train.augment.flip) == (True, False)
    loss, accuracy = lesson.shown["one epoch"]
    assert loss > 0 and 0 <= accuracy <= 1


def test_the_kit_takes_over(lesson):
    "What the notebook has made goes on in lessonkit."
    kit = lesson.shown["learner"].kit
    preds = kit.get_preds()
    assert isinstance(preds, Preds) and preds.classes == ("cats", "dogs")
    assert len(kit.history.fits) == 3


# ---- the summary

@pytest.fixture(scope="module")
def summary(start, lesson):
    "The summary's calls, from top to bottom, in the same process."
    run = start(32)
    shown = run.summary = {}
    run(IMPORTS)
    run('PATH = "data/dogscats"\nsz = 224')
    run("arch=resnet34\n"
        "data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz))\n"
        "learn = ConvLearner.pretrained(arch, data, precompute=True)")
    shown["fit"] = run("learn.fit(0.01, 2)")
    run("log_preds = learn.predict()\n"
        "preds = np.argmax(log_preds, axis=1)  # from log probabilities to 0 or 1\n"
        "probs = np.exp(log_preds[:,1])        # pr(dog)")
    shown["predict"] = run["log_preds"], run["preds"], run["probs"]
    run("learn.lr_find()")
    run("learn.sched.plot_lr()", "summary: rates")
    run("learn.sched.plot()", "summary: lr_find")
    run("tfms = tfms_from_model(resnet34, sz, aug_tfms=transforms_side_on, max_zoom=1.1)\n"
        "data = ImageClassifierData.from_paths(PATH, tfms=tfms)\n"
        "learn = ConvLearner.pretrained(arch, data, precompute=True) #Need to set it false later\n"
        "learn.fit(1e-2, 1) #Learning rate and epochs can change if you like")
    run("learn.fit(1e-2, 1)\nlearn.precompute=False\nlearn.fit(1e-2, 3, cycle_len=1)")
    run("learn.unfreeze()")
    run("lr=np.array([1e-4,1e-3,1e-2])")
    run("learn.fit(lr, 3, cycle_len=1, cycle_mult=2)")
    shown["epochs"] = len(run["learn"].sched.epochs)
    return run


def test_the_summary_predicts_log_probabilities(summary):
    loss, accuracy = summary.summary["fit"]
    log_preds, preds, probs = summary.summary["predict"]
    assert log_preds.shape == (2 * N_VALID, 2) and set(preds) <= {0, 1}
    assert np.array_equal(preds, probs > .5)
    y = summary["data"].val_y
    assert accuracy == pytest.approx((preds == y).mean())
    assert loss == pytest.approx(-log_preds[np.arange(len(y)), y].mean(), rel=1e-4)


def test_the_summary_finds_a_rate(summary):
    rates, found = summary.figures["summary: rates"][0], summary.figures["summary: lr_find"][0]
    assert (rates["labels"][0], found["labels"][0][0]) == (("iterations", "learning rate"),
                                                           "learning rate")
    assert (np.diff(rates["lines"][0][:, 1]) > 0).all()


def test_the_summary_trains_seven_epochs_and_not_six(summary): assert summary.summary["epochs"] == 7


# ---- golden numbers

AT_10 = {0: 1e-4, 1: .00975528, 5: .005, 9: .000244717, 10: .01, 20: .005, 29: 6.15583e-5, 30: .01,
         50: .005, 69: 1.54133e-5}


def test_seventy_batches_at_the_rates_of_07(summary):
    "Ten batches in an epoch, with precomputed features, so that it takes no time."
    run = summary
    run("data = ImageClassifierData.from_paths(PATH, bs=4, tfms=tfms)\n"
        "learn = ConvLearner.pretrained(arch, data, precompute=True)\n"
        "learn.fit(.01, 3, cycle_len=1, cycle_mult=2)")
    lrs = run["learn"].sched.lrs
    assert len(lrs) == 70
    assert np.allclose(lrs, rates_of_07(.01, (1, 2, 4), 10), rtol=1e-6, atol=1e-12)
    for step, rate in AT_10.items(): assert lrs[step] == pytest.approx(rate, rel=1e-5)
    assert np.allclose(rates_of_07(.01, (1, 1), 100)[:6], [1e-4] * 5 + [.00993844], rtol=1e-5)


def test_the_folder_can_be_emptied_between_fits(summary, folder):
    "Old notes remove PATH/tmp to get rid of features that were computed before."
    shutil.rmtree(folder / "data" / "dogscats" / "tmp", ignore_errors=True)
    assert len(summary("learn.fit(.01, 1)")) == 2
