"""The old note on v2, executed as it stands: only the folder of the pets is ours, and small."""
import ast, inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest

import lessonkit.dialects
from lessonkit.core.testing import assert_close, assert_equal, assert_in
from lessonkit.dialects.registry import forget_remarks, settings
from pictures import photo

BREEDS = "Abyssinian", "Birman", "Ragdoll", "beagle"


def run(text, names):
    "Execute old code; the value of its last line, if that is an expression."
    tree = ast.parse(text.strip())
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "note", "exec"), names)
    if last is None: return None
    return eval(compile(ast.Expression(last.value), "note", "eval"), names)


PETS = r"""
pets = DataBlock(
    blocks = (ImageBlock, CategoryBlock),
    get_items = get_image_files,
    splitter= RandomSplitter(valid_pct = 0.2, seed=seed),
    get_y= using_attr(RegexLabeller(r'(.+)_\d+.jpg$'),'name'),
    item_tfms=Resize(460),
    batch_tfms=aug_transforms(min_scale = 0.9,size=224)
    )
"""


@pytest.fixture(scope="module")
def note(tmp_path_factory):
    "The names of the note after its imports and data, and the figures that were shown."
    home = tmp_path_factory.mktemp("home")
    for i in range(24):
        file = home/"data/oxford-iiit-pet/images"/f"{BREEDS[i % 4]}_{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(i, 40, 30).save(file)
    patch = pytest.MonkeyPatch()
    patch.setenv("FASTAI_HOME", str(home))
    forget_remarks()
    lessonkit.dialects.activate("v2", arch="packaged", size=32)
    names, shown = {}, []
    run("from fastai2.vision.all import *\nseed = 42", names)
    for module in ("loaders", "learner", "interpretation"):
        patch.setattr(f"lessonkit.dialects.fastai2.{module}.show_figure", shown.append)
    names["shown"] = shown
    run("path = untar_data(URLs.PETS) #Sample dataset from fastai2", names)
    run(PETS, names)
    run('dls = pets.dataloaders(path/"images")', names)
    run("learn = cnn_learner(dls, resnet34, metrics=error_rate)", names)
    yield names
    lessonkit.dialects.deactivate()
    settings.use()
    patch.undo()
    plt.close("all")


@pytest.fixture(autouse=True)
def no_figures(note):
    plt.close("all")
    note["shown"].clear()


def fits(learn): return learn.kit.history.fits


def test_data(note):
    listed = run("path.ls()", note)
    assert_equal([repr(listed).startswith("(#1) ["), listed[0].name], [True, "images"])
    assert_equal(run("img = (path/'images').ls()[0]\nimg", note).suffix, ".jpg")
    dls = note["dls"]
    assert_equal([list(dls.vocab), dls.c], [list(BREEDS), 4])
    assert_equal([len(dls.train_ds), len(dls.valid_ds)], [20, 4])   # int(.2 * 24) for validation
    augment = dls.kit.augment
    assert_equal([augment.flip, augment.max_rotate, augment.min_scale], [True, 10, .9])
    assert_equal(dls.kit.size, 32)   # 224 in the note, and a limit from outside
    run("dls.show_batch()", note)
    assert_equal(len(note["shown"][0].axes), 9)


def test_fine_tune_prints_two_tables(note, capsys):
    learn = note["learn"]
    run("learn.fine_tune(3)", note)
    printed = capsys.readouterr().out
    header = ["epoch", "train_loss", "valid_loss", "error_rate", "time"]
    rows = [line.split() for line in printed.splitlines()]
    assert_equal(rows.count(header), 2)
    frozen, whole = fits(learn)[-2:]
    assert_equal([len(frozen.rows), len(whole.rows)], [1, 3])
    assert_close(frozen.lrs[0][-1], 2e-3 / 25)
    assert_close(whole.lrs[0], [1e-5 / 5, 1e-4 / 5, 1e-3 / 5])
    for row in whole.rows: assert (row["error_rate"] * 4).is_integer()   # of four images
    run("learn.recorder.plot_loss()", note)
    training, validation = plt.gca().lines[:2]
    assert_equal([len(training.get_ydata()), len(validation.get_ydata())], [3, 3])
    assert_equal([plt.gca().get_xlabel(), plt.gca().get_ylabel()], ["step", "loss"])


def test_results(note):
    run("learn.show_results()", note)
    shown = note["shown"][0]
    assert_equal(len(shown.axes), 4)   # all there are
    titles = [ax.get_title() for ax in shown.axes]
    for title in titles: assert_in("actual:", title)
    run("""interp = ClassificationInterpretation.from_learner(learn)
interp.plot_confusion_matrix(figsize=(12,12), dpi=60)""", note)
    ax = plt.gca()
    assert_equal([ax.get_title(), ax.get_ylabel(), ax.get_xlabel()],
                 ["Confusion matrix", "Actual", "Predicted"])
    assert_equal([label.get_text() for label in ax.get_xticklabels()], list(BREEDS))
    assert_equal([tuple(ax.figure.get_size_inches()), ax.figure.dpi], [(12, 12), 60])
    run("interp.plot_top_losses(9, figsize=(15,10))", note)
    top = note["shown"][-1]
    assert_equal(top.get_suptitle(), "Prediction/Actual/Loss/Probability")
    losses, idx = note["interp"].top_losses()
    p = note["interp"].preds[idx[0], note["interp"].targs[idx[0]]]
    assert_in(f" / {losses[0]:.2f} / {p:.2f}", top.axes[0].get_title().replace("\n", " "))
    found = run("interp.most_confused(min_val=3)", note)
    everything = note["interp"].most_confused(min_val=1)
    assert_equal(found, [pair for pair in everything if pair[2] >= 3])
    matrix = note["interp"].confusion_matrix()
    assert_equal(sum(n for *_, n in everything), int(matrix.sum() - matrix.trace()))


def test_rates_that_are_found(note, capsys):
    run("""learn = cnn_learner(dls, resnet34, metrics=error_rate)
lr_min,lr_steep = learn.lr_find()
print(f"Minimum/10: {lr_min:.2e}, steepest point: {lr_steep:.2e}")""", note)
    found = note["learn"].recorder.found
    said = f"Minimum/10: {found.minimum:.2e}, steepest point: {found.steep:.2e}"
    assert_in(said, capsys.readouterr().out)
    assert_equal([plt.gca().get_xscale(), plt.gca().get_xlabel()], ["log", "learning rate"])


def test_one_cycle_frozen_then_unfrozen(note):
    run("learn.fit_one_cycle(3, 3e-3)", note)
    learn = note["learn"]
    assert_equal(learn.kit.model.frozen, 2)
    assert_close(learn.recorder.lrs[0], 1.2e-4)   # of one batch an epoch: 0, 1/3 and 2/3
    assert_close(learn.recorder.lrs[1], one_cycle(3e-3, 1 / 3))
    suggested = run("learn.unfreeze()\nlearn.lr_find()", note)
    assert repr(suggested).startswith("SuggestedLRs(lr_min=")
    assert_in(", lr_steep=", repr(suggested))
    run("learn.fit_one_cycle(6, lr_max=slice(1e-6,1e-4))", note)
    assert_equal([learn.kit.model.frozen, len(learn.recorder.values)], [0, 6])
    assert_close(fits(learn)[-1].lrs[0], [1e-6 / 25, 1e-5 / 25, 1e-4 / 25])
    run("learn.recorder.plot_loss()", note)
    assert_equal(len(plt.gca().lines[1].get_ydata()), 6)   # the last fit only


def one_cycle(peak, position, pct_start=.25, div=25., div_final=1e5):
    "The rate of v2's cycle."
    if position < pct_start: start, stop, t = 1 / div, 1, position / pct_start
    else: start, stop, t = 1, 1 / div_final, (position - pct_start) / (1 - pct_start)
    return peak * (stop + (start - stop) / 2 * (1 + np.cos(np.pi * t)))


def test_the_golden_numbers():
    at = np.array([0, 10, 25, 50, 75, 99]) / 100
    golden = [1.2e-4, .00111502, .003, .00225001, .000750023, 1.34574e-6]
    assert_close([one_cycle(3e-3, p) for p in at], golden, rtol=1e-4)


def test_a_larger_network_in_16_bits(note):
    run("""learn = cnn_learner(dls, resnet101, metrics=error_rate).to_fp16()
learn.fine_tune(6, freeze_epochs=3)""", note)
    frozen, whole = fits(note["learn"])
    assert_equal([len(frozen.rows), len(whole.rows)], [3, 6])
    run("learn.recorder.plot_loss()", note)
    assert_equal(len(plt.gca().lines[0].get_ydata()), 6)


def test_the_source_of_fine_tune_shows_what_happens(note):
    method = note["learn"].fine_tune   # what ??learn.fine_tune shows
    for part in ("self.freeze()", "self.unfreeze()", "self.fit_one_cycle(freeze_epochs",
                 "base_lr / lr_mult"): assert_in(part, inspect.getsource(method))
    for name in ("epochs", "base_lr", "freeze_epochs", "lr_mult", "pct_start", "div"):
        assert_in(name, inspect.signature(method).parameters)
