"""The old notes on v1, executed as they stand: only folders, and caps from outside the text.

S0 sorts pets by name patterns, S1 lakes by folders. Numbers in schedules are those of v1.
"""
import ast

import numpy as np
import pandas as pd
import pytest
import torch

import lessonkit.dialects
from lessonkit.data import sample
from lessonkit.dialects.registry import settings
from pictures import photo

LAKES = "Emerald", "Grassi", "Louise", "Minnewanka", "Moraine"
PACKAGED = dict(arch="packaged", epochs=2, size=64)


def run(text, names):
    "Execute old code; the value of its last line, if that is an expression."
    tree = ast.parse(text.strip())
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "note", "exec"), names)
    if last is None: return None
    return eval(compile(ast.Expression(last.value), "note", "eval"), names)


@pytest.fixture(scope="module")
def v1():
    "The extension is on, with the packaged network and small images."
    lessonkit.dialects.activate("v1", **PACKAGED)
    yield
    lessonkit.dialects.deactivate()
    settings.use()


def fresh():
    "What a notebook begins with."
    names = {}
    exec("from fastai.vision import *\nfrom fastai.metrics import error_rate", names)
    return names


# ---- S0

S0_DATA = r"""
pat = r'/([^/]+)_\d+.jpg$'
data = ImageDataBunch.from_name_re(path_img,
                                   fnames,
                                   pat,
                                   ds_tfms=get_transforms(),
                                   size=224,
                                   bs=64,
                                   ).normalize(imagenet_stats)
"""


@pytest.fixture(scope="module")
def s0(v1, tmp_path_factory):
    "The names of the first note, after its last training line."
    folder = sample.tiny(tmp_path_factory.mktemp("s0")/"images", n=42, size=64)
    names = fresh() | dict(path_img=folder, fnames=sorted(folder.glob("*.jpg")))
    run(S0_DATA, names)
    run("learn = create_cnn(data, models.resnet34, metrics=error_rate)", names)
    run("learn.fit_one_cycle(4)", names)
    return names


def test_s0_data(s0):
    data = s0["data"]
    assert data.classes == ["circle", "square", "stripes"]
    assert [len(data.train_ds), len(data.valid_ds)] == [34, 8]     # int(.2 * 42)
    assert data.kit.augment.mirrors
    mean, std = s0["imagenet_stats"]
    assert data.kit.stats.mean == pytest.approx([float(v) for v in mean])
    assert data.kit.stats.std == pytest.approx([float(v) for v in std])


def test_s0_training(s0):
    learn = s0["learn"]
    kit = learn.kit
    assert [len(learn.layer_groups), kit.model.frozen, kit.model.train_bn] == [3, 2, True]
    assert learn.recorder.metrics_names == ["error_rate"]
    assert len(learn.recorder.val_losses) == 2                     # capped from outside
    first = kit.history.fits[0].lrs[0]
    assert first == pytest.approx([3e-4 / 25, 3e-4 / 25, 3e-3 / 25])


def test_s0_finder(s0):
    before = [p.detach().clone() for p in s0["learn"].model.parameters()]
    fig = run("learn.lr_find()\nlearn.recorder.plot()", s0)
    after = s0["learn"].model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    ax, = fig.axes
    assert [ax.get_xscale(), ax.get_xlabel()] == ["log", "learning rate"]
    assert s0["learn"].recorder.lrs[0] == pytest.approx(1e-7)


def test_s0_rates_and_momentum_plot(s0):
    "The figure of the note: both, by iteration."
    run("learn.fit_one_cycle(4)", s0)
    rates, momentum = run("learn.recorder.plot_lr(show_moms=True)", s0).axes
    drawn = rates.get_lines()[0].get_ydata()
    assert list(drawn) == s0["learn"].recorder.lrs
    assert momentum.get_lines()[0].get_ydata()[0] == pytest.approx(.95)


def test_s0_most_confused(s0):
    run("interp = ClassificationInterpretation.from_learner(learn)", s0)
    everything = run("interp.most_confused(min_val=n)", s0 | dict(n=1))
    counts = run("interp.confusion_matrix()", s0)
    assert sum(n for *_, n in everything) == counts.sum() - np.trace(counts)
    assert everything == sorted(everything, key=lambda pair: -pair[2])
    two = run("interp.most_confused(min_val=n)", s0 | dict(n=2))
    assert two == [pair for pair in everything if pair[2] >= 2]


def test_s0_schedule_at_the_numbers_of_v1(v1, tmp_path):
    "A hundred batches, with a peak of 3e-3."
    folder = sample.tiny(tmp_path/"images", n=25, size=32)
    names = fresh() | dict(path_img=folder, fnames=sorted(folder.glob("*.jpg")))
    run(S0_DATA.replace("bs=64", "bs=2").replace("size=224", "size=32"), names)
    run("learn = Learner(data, simple_cnn((3, 8, 3)))", names)
    settings.use(arch="packaged", size=64, epochs=10)
    try: run("learn.fit_one_cycle(10)", names)
    finally: settings.use(**PACKAGED)
    rates, moms = names["learn"].recorder.lrs, names["learn"].recorder.moms
    assert len(rates) == 100
    golden = {0: 1.2e-4, 15: .00156, 30: .003, 65: .0015, 99: 1.522e-6}
    assert [rates[i] for i in golden] == pytest.approx(list(golden.values()), rel=1e-3)
    assert [moms[i] for i in (0, 30, 65)] == pytest.approx([.95, .85, .9])


# ---- S1

S1_DATA = """
batch_size= 16

data = ImageDataBunch.from_folder(path = 'parent_directory/',
        ds_tfms=get_transforms(do_flip=False),
        size=224,
        bs=batch_size,
        test="test").normalize()
"""
S1_TRAINING = """
learn = cnn_learner(data, models.resnet34, metrics=error_rate)

# We will train for 4 epochs (4 cycles through all our data).

learn.fit_one_cycle(4)
"""
S1_LOSSES = """
interp = ClassificationInterpretation.from_learner(learn)
losses,idxs = interp.top_losses()

interp.plot_top_losses(9, figsize=(15,11))
"""


def make_lakes(folder):
    "Five classes in train and valid, and a test folder without labels."
    for number, lake in enumerate(LAKES):
        for k in range(8):
            part = folder/("train" if k < 6 else "valid")/lake
            part.mkdir(parents=True, exist_ok=True)
            photo(100 * number + k, 90, 70).save(part/f"{lake}{k}.jpg")
    (folder/"test").mkdir()
    for k, lake in enumerate(LAKES): photo(900 + k, 90, 70).save(folder/f"test/{lake}.jpg")
    return folder


@pytest.fixture(scope="module")
def s1(v1, tmp_path_factory):
    "The names of the second note, after its first training."
    folder = make_lakes(tmp_path_factory.mktemp("s1")/"lakes")
    names = fresh()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)                      # a relative path, as in the note
        run(S1_DATA.replace("parent_directory", "lakes"), names)
        run(S1_TRAINING, names)
        yield names


def test_s1_data(s1):
    data = s1["data"]
    assert data.classes == list(LAKES)                  # the test folder is no class
    assert [len(data.train_ds), len(data.valid_ds), len(data.test_ds)] == [30, 10, 5]
    assert not data.kit.augment.mirrors                 # do_flip=False
    said = repr(data)
    assert all(text in said for text in ("Train: ", "(30 items)", "Valid: ", "(10 items)",
                                         "Test: ", "(5 items)", "Emerald"))


def test_s1_normalize_without_stats_takes_those_of_a_batch(s1):
    stats = s1["data"].kit.stats
    assert stats.mean != pytest.approx([.485, .456, .406], abs=1e-3)
    assert all(0 < v < 1 for v in stats.mean)


def test_s1_batch(s1):
    fig = run("data.show_batch(rows=3, figsize=(7,6))", s1)
    titles = [ax.get_title() for ax in fig.axes]
    assert len(titles) == 9
    assert set(titles) <= set(LAKES)


def test_s1_top_losses(s1):
    fig = run(S1_LOSSES, s1)
    losses, idxs = s1["losses"], s1["idxs"]
    assert [len(losses), len(set(idxs.tolist()))] == [10, 10]
    assert losses.tolist() == sorted(losses.tolist(), reverse=True)
    assert len(fig.axes) == 9
    predicted, rest = fig.axes[0].get_title().replace("\n", " ").split("/", 1)
    actual, loss, probability = rest.split(" / ")
    data, interp = s1["data"], s1["interp"]
    i = int(idxs[0])
    assert predicted == data.classes[interp.pred_class[i]]
    assert actual == data.classes[interp.y_true[i]]
    assert loss == f"{float(losses[0]):.2f}"
    assert probability == f"{float(interp.preds[i][interp.y_true[i]]):.2f}"
    assert "Prediction/Actual/Loss/Probability" in fig.alt


def test_s1_confusion_matrix(s1):
    run(S1_LOSSES, s1)
    fig = run("interp.plot_confusion_matrix()", s1)
    ax = fig.axes[0]
    assert [ax.get_xlabel(), ax.get_ylabel()] == ["Predicted", "Actual"]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(LAKES)
    assert run("interp.confusion_matrix().sum(1).tolist()", s1) == [2] * 5


def test_s1_finder(s1):
    "The curve that the note shows before it unfreezes."
    ax, = run("learn.lr_find()\nlearn.recorder.plot()", s1).axes
    rates = [rate for line in ax.get_lines() for rate in line.get_xdata()]
    assert ax.get_xscale() == "log"
    assert min(rates) == pytest.approx(1e-7)
    assert s1["learn"].kit.model.frozen == 2


def test_s1_unfreezing_trains_everything(s1):
    before = s1["learn"].model[0][0].weight.detach().clone()
    run("learn.unfreeze()\nlearn.fit_one_cycle(4)", s1)
    assert not torch.equal(before, s1["learn"].model[0][0].weight)
    assert all(p.requires_grad for p in s1["learn"].model.parameters())


def test_s1_table_of_test_images(s1):
    preds, y = run("learn.get_preds(ds_type=DatasetType.Test)", s1)
    assert [preds.shape, y.tolist()] == [(5, 5), [0] * 5]
    items = run("data.test_ds.items", s1)
    table = pd.DataFrame(dict(Actual=[item.stem for item in items],
                              Prediction=[s1["data"].classes[i] for i in preds.argmax(1)]))
    assert sorted(table.Actual) == sorted(LAKES)
    assert set(table.Prediction) <= set(LAKES)


# ---- the other factories that S1 names

def table_of(folder):
    files = sorted(folder.glob("*.jpg"))
    return pd.DataFrame(dict(name=[f.name for f in files],
                             label=[f.name.split("_")[0] for f in files]))


FACTORIES = {
    "from_df": "ImageDataBunch.from_df(path, df, ds_tfms=get_transforms(), size=24)",
    "from_csv": "ImageDataBunch.from_csv(path, ds_tfms=get_transforms(), size=24)",
    "from_lists": "ImageDataBunch.from_lists(path, fnames, labels=labels, size=24)",
    "from_name_func": "ImageDataBunch.from_name_func(path, fnames, "
                      "label_func = lambda x: x.name.split('_')[0], size=24)",
    "from_name_re": r"ImageDataBunch.from_name_re(path, fnames, r'/([^/]+)_\d+.jpg$', size=24)",
}


@pytest.mark.parametrize("call", FACTORIES.values(), ids=FACTORIES)
def test_s1_other_factories(v1, tmp_path, call):
    folder = sample.tiny(tmp_path/"images", n=15, size=24)
    df = table_of(folder)
    df.to_csv(folder/"labels.csv", index=False)
    fnames = [folder/name for name in df.name]
    names = fresh() | dict(path=folder, df=df, fnames=fnames, labels=df.label.tolist())
    data = run(call, names)
    assert data.classes == ["circle", "square", "stripes"]
    assert [len(data.train_ds), len(data.valid_ds)] == [12, 3]
