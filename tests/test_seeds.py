"""Every call of the five old notes, and the test that executes it.

The page "From old notes" has the same table for readers. Its text comes from this file:
`python tests/test_seeds.py` prints it.
"""
import ast, re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTES = ROOT / "nbs/old_notes"
HEADING = "## Every call of the five notes"

# Under the name of a test: the calls it executes, in the order of the note, so that a test may
# come more than once. A line that is indented further goes on with the call before it. "picture"
# stands before what a note shows as a picture or a table only, without the call that made it, and
# "name" before what it only names.

DOGS_CATS_07 = r"""
test_the_first_cat_is_an_array_of_bytes
    from fastai.imports import *
    from fastai.transforms import *
    from fastai.conv_learner import *
    from fastai.model import *
    from fastai.dataset import *
    from fastai.sgdr import *
    from fastai.plots import *
    PATH = "data/dogscats/"
    sz=224
    files = !ls {PATH}valid/cats | head
    img = plt.imread(f'{PATH}valid/cats/{files[0]}')
    plt.imshow(img);
    img.shape
    img[:4,:4]
test_the_first_model_learns_in_three_epochs
    arch=resnet34
    data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz))
    learn = ConvLearner.pretrained(arch, data, precompute=True)
    learn.fit(0.01, 3)
test_labels_and_classes
    data.val_y
    data.classes
test_the_first_model_learns_in_three_epochs
    log_preds = learn.predict()
    log_preds[:10]
test_pictures_show_files_with_their_probability_of_dog
    preds = np.argmax(log_preds, axis=1)
    probs = np.exp(log_preds[:,1])
    def rand_by_mask(mask): return np.random.choice(np.where(mask)[0], 4, replace=False)
    def rand_by_correct(is_correct): return rand_by_mask((preds == data.val_y)==is_correct)
test_crops_are_what_the_network_sees
    imgs = np.stack([data.val_ds[x][0] for x in idxs])
    plots(data.val_ds.denorm(imgs), rows=1, titles=title_probs)
test_pictures_show_files_with_their_probability_of_dog
    np.array(PIL.Image.open(PATH+ds.fnames[idx]))
    plots(imgs, rows=1, titles=title_probs, figsize=(16,8))
    plot_val_with_title(rand_by_correct(True), "Correctly classified")
    plot_val_with_title(rand_by_correct(False), "Incorrectly classified")
    plot_val_with_title(most_by_correct(0, True), "Most correct cats")
    plot_val_with_title(most_by_correct(1, True), "Most correct dogs")
    plot_val_with_title(most_by_correct(0, False), "Most incorrect cats")
    plot_val_with_title(most_by_correct(1, False), "Most incorrect dogs")
    most_uncertain = np.argsort(np.abs(probs -0.5))[:4]
    plot_val_with_title(most_uncertain, "Most uncertain predictions")
test_the_finder_grows_the_rate_in_equal_ratios
    lrf=learn.lr_find()
    learn.sched.plot_lr()
    learn.sched.plot()
test_six_versions_of_one_image_differ
    tfms = tfms_from_model(resnet34, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
    data = ImageClassifierData.from_paths(PATH, bs=2, tfms=tfms, num_workers=1)
    x,_ = next(iter(data.aug_dl))
    data.trn_ds.denorm(x)[1]
    ims = np.stack([get_augs() for i in range(6)])
    plots(ims, rows=2)
test_precomputed_features_are_of_plain_images
    data = ImageClassifierData.from_paths(PATH, tfms=tfms)
    learn.fit(1e-2, 1)
    learn.precompute=False
test_cycles_restart_at_the_full_rate
    learn.fit(1e-2, 3, cycle_len=1)
    learn.sched.plot_lr()
test_models_are_in_the_data_folder
    learn.save('224_lastlayer')
    learn.load('224_lastlayer')
test_batch_normalization_learns_only_when_all_is_unfrozen
    learn.unfreeze()
test_earlier_layers_have_smaller_rates
    lr=np.array([1e-4,1e-3,1e-2])
test_cycles_restart_at_the_full_rate
    learn.fit(lr, 3, cycle_len=1, cycle_mult=2)
test_models_are_in_the_data_folder
    learn.save('224_all')
    learn.load('224_all')
test_tta_has_five_views_and_both_eras_can_average_them
    log_preds,y = learn.TTA()
    accuracy(log_preds,y)
    probs = np.mean(np.exp(log_preds),0)
    accuracy_np(probs, y)
test_the_confusion_matrix_is_printed_and_drawn
    from sklearn.metrics import confusion_matrix
    cm = confusion_matrix(y, preds)
    plot_confusion_matrix(cm, data.classes)
test_the_notebook_explains_its_first_model
    tfms = tfms_from_model(resnet34, sz)
    learn = ConvLearner.pretrained(resnet34, data, precompute=True)
test_the_toy_loss
    binary_loss(acts, preds)
"""

SUMMARY_07 = r"""
test_the_summary_predicts_log_probabilities
    from fastai.imports import *
    from fastai.transforms import *
    from fastai.conv_learner import *
    from fastai.model import *
    from fastai.dataset import *
    from fastai.sgdr import *
    from fastai.plots import *
    PATH = "data/dogscats"
    sz = 224
    arch=resnet34
    data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz))
    learn = ConvLearner.pretrained(arch, data, precompute=True)
    learn.fit(0.01, 2)
    log_preds = learn.predict()
    preds = np.argmax(log_preds, axis=1)
    probs = np.exp(log_preds[:,1])
test_the_summary_finds_a_rate
    learn.lr_find()
    learn.sched.plot_lr()
    learn.sched.plot()
test_the_summary_trains_seven_epochs_and_not_six
    tfms = tfms_from_model(resnet34, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
    data = ImageClassifierData.from_paths(PATH, tfms=tfms)
    learn.fit(1e-2, 1)
    learn.precompute=False
    learn.fit(1e-2, 3, cycle_len=1)
    learn.unfreeze()
    lr=np.array([1e-4,1e-3,1e-2])
    learn.fit(lr, 3, cycle_len=1, cycle_mult=2)
"""

PETS_V1 = r"""
test_s0_data
    pat = r'/([^/]+)_\d+.jpg$'
    data = ImageDataBunch.from_name_re(path_img, fnames, pat, ds_tfms=get_transforms(),
        size=224, bs=64,).normalize(imagenet_stats)
test_s0_training
    learn = create_cnn(data, models.resnet34, metrics=error_rate)
    learn.fit_one_cycle(4)
test_s0_rates_and_momentum_plot
    picture: learn.recorder.plot_lr(show_moms=True)
test_s0_finder
    learn.lr_find()
    learn.recorder.plot()
test_s0_most_confused
    interp.most_confused(min_val=n)
"""

LAKES_V1 = r"""
test_s1_other_factories
    name: ImageDataBunch.from_df
    name: ImageDataBunch.from_csv
    name: ImageDataBunch.from_lists
    name: ImageDataBunch.from_name_func
    name: ImageDataBunch.from_name_re
test_s1_data
    batch_size= 16
    data = ImageDataBunch.from_folder(path = 'parent_directory/',
        ds_tfms=get_transforms(do_flip=False), size=224, bs=batch_size, test="test").normalize()
    picture: data
test_s1_batch
    picture: data.show_batch(rows=3, figsize=(7,6))
test_s1_data
    picture: data.classes
test_s1_unfreezing_trains_everything
    learn = cnn_learner(data, models.resnet34, metrics=error_rate)
    learn.fit_one_cycle(4)
test_s1_top_losses
    interp = ClassificationInterpretation.from_learner(learn)
    losses,idxs = interp.top_losses()
    interp.plot_top_losses(9, figsize=(15,11))
test_s1_confusion_matrix
    picture: interp.plot_confusion_matrix()
test_s1_finder
    picture: learn.recorder.plot()
test_s1_unfreezing_trains_everything
    learn.unfreeze()
    learn.fit_one_cycle(4)
test_s1_table_of_test_images
    picture: learn.get_preds(ds_type=DatasetType.Test)
"""

PETS_V2 = r"""
test_data
    from fastai2.vision.all import *
    path = untar_data(URLs.PETS)
    path.ls()
    img = (path/'images').ls()[0]
    pets = DataBlock(blocks = (ImageBlock, CategoryBlock), get_items = get_image_files,
        splitter= RandomSplitter(valid_pct = 0.2, seed=seed),
        get_y= using_attr(RegexLabeller(r'(.+)_\d+.jpg$'),'name'),
        item_tfms=Resize(460), batch_tfms=aug_transforms(min_scale = 0.9,size=224))
    dls = pets.dataloaders(path/"images")
    dls.show_batch()
test_fine_tune_prints_two_tables
    learn = cnn_learner(dls, resnet34, metrics=error_rate)
    learn.fine_tune(3)
    learn.recorder.plot_loss()
test_results
    learn.show_results()
    interp = ClassificationInterpretation.from_learner(learn)
    interp.plot_confusion_matrix(figsize=(12,12), dpi=60)
    interp.plot_top_losses(9, figsize=(15,10))
    interp.most_confused(min_val=3)
test_rates_that_are_found
    learn = cnn_learner(dls, resnet34, metrics=error_rate)
    lr_min,lr_steep = learn.lr_find()
    print(f"Minimum/10: {lr_min:.2e}, steepest point: {lr_steep:.2e}")
test_one_cycle_frozen_then_unfrozen
    learn.fit_one_cycle(3, 3e-3)
    learn.unfreeze()
    learn.lr_find()
    learn.fit_one_cycle(6, lr_max=slice(1e-6,1e-4))
test_a_larger_network_in_16_bits
    learn = cnn_learner(dls, resnet101, metrics=error_rate).to_fp16()
    learn.fine_tune(6, freeze_epochs=3)
test_the_source_of_fine_tune_shows_what_happens
    ??learn.fine_tune
"""


class Note(NamedTuple):
    "An old note."
    version: str
    tests: str       # the file that executes it
    notebook: str    # where it is rebuilt
    text: str        # its tests and calls


OLD_NOTES = [
    Note("0.7", "test_seeds_07.py", "01_dogs_cats_07.ipynb", DOGS_CATS_07),
    Note("0.7", "test_seeds_07.py", "02_summary_07.ipynb", SUMMARY_07),
    Note("v1", "test_seeds_v1.py", "03_pets_v1.ipynb", PETS_V1),
    Note("v1", "test_seeds_v1.py", "04_lakes_v1.ipynb", LAKES_V1),
    Note("v2", "test_seeds_v2.py", "05_pets_v2.ipynb", PETS_V2),
]


class Call(NamedTuple):
    "A call of an old note."
    test: str
    code: str
    kind: str = "call"   # "call", "picture" or "name"


def calls_of(note):
    "The calls of a note, in its order."
    found, test = [], None
    for line in note.text.strip().splitlines():
        kind, text = re.fullmatch(r" *(?:(picture|name): )?(.*)", line).groups()
        if not line.startswith(" "): test = text
        elif line.startswith(" " * 8):
            begun = found.pop()
            found.append(begun._replace(code=f"{begun.code} {text}"))
        else: found.append(Call(test, text, kind or "call"))
    return found


def plain(code): return "".join(code.split())


# ---- each call is in the text that its test executes

@cache
def definitions(file):
    "{name: tree} of the functions and constants of a test file; None: its source."
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    found = {None: source}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef): found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {name.id: node for target in node.targets for name in ast.walk(target)
                      if isinstance(name, ast.Name)}
    return found


@cache
def executed(file, test):
    "All texts and code that a test uses: its own, and those of its fixtures and constants."
    known, names, waiting = definitions(file), set(), [test]
    while waiting:
        name = waiting.pop()
        if name in names or name not in known: continue
        names.add(name)
        nodes = list(ast.walk(known[name]))
        waiting += [node.id for node in nodes if isinstance(node, ast.Name)]
        waiting += [node.arg for node in nodes if isinstance(node, ast.arg)]   # fixtures
    texts = []
    for node in (known[name] for name in sorted(names)):
        texts.append(ast.get_source_segment(known[None], node))
        texts += [part.value for part in ast.walk(node)
                  if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return "\n".join(plain(text) for text in texts)


def problem(file, call):
    "What is wrong with a row of the table; None if nothing is."
    if call.test not in definitions(file): return f"{file} has no {call.test}"
    if plain(call.code) not in executed(file, call.test):
        return f"{call.test} of {file} doesn't execute {call.code}"


@pytest.mark.parametrize("note", OLD_NOTES, ids=[note.notebook for note in OLD_NOTES])
def test_every_call_is_executed(note):
    found = [problem(note.tests, call) for call in calls_of(note)]
    assert [text for text in found if text] == []


@pytest.mark.parametrize("test, code, text", [
    ("test_s0_nothing", "learn.fit(1)", "has no test_s0_nothing"),
    ("test_s0_finder", "interp.report()", "doesn't execute interp.report()"),
    ("test_s0_finder", "losses,idxs = interp.top_losses()", "doesn't execute losses,idxs"),
])
def test_a_wrong_row_is_found(test, code, text):
    assert text in problem("test_seeds_v1.py", Call(test, code))


def test_no_row_is_lost():
    assert [len(calls_of(note)) for note in OLD_NOTES] == [69, 27, 8, 20, 25]
    assert len({call.test for note in OLD_NOTES for call in calls_of(note)}) > 30


# ---- the page for readers

def cells(file):
    if not file.exists(): pytest.skip(f"{file.name} isn't there yet")
    return nbformat.read(file, 4).cells


def begin(code):
    "What a call begins with, up to its arguments: readers' folders and figures are others."
    return re.split(r"""[("']""", plain(code))[0]


@pytest.mark.parametrize("note", OLD_NOTES, ids=[note.notebook for note in OLD_NOTES])
def test_the_rebuilt_notebook_has_every_call(note):
    code = "\n".join(plain(c.source) for c in cells(NOTES / note.notebook) if c.cell_type == "code")
    missing = [call.code for call in calls_of(note)
               if call.kind != "name" and begin(call.code) not in code]
    assert missing == []


def rows():
    "The rows of the page's table; what two notes of one version have in common comes once."
    found = {}
    for note in OLD_NOTES:
        link = f"[{note.notebook[:2]}]({note.notebook})"
        for call in calls_of(note):
            place = "named only" if call.kind == "name" else link
            row = found.setdefault((plain(call.code), note.version), (call, {}))
            row[1][place] = True
    for (_, version), (call, places) in found.items():
        star = " \\*" if call.kind == "picture" else ""
        code = call.code.replace("|", "\\|")
        yield f"| `{code}`{star} | {version} | {', '.join(places)} |"


def table():
    "The table of the page."
    return "\n".join(["| call | version | notebook |", "| --- | --- | --- |", *rows()])


def test_the_page_lists_every_call():
    found = [cell.source for cell in cells(NOTES / "00_from_old_notes.ipynb")
             if cell.source.startswith(HEADING)]
    assert len(found) == 1
    shown = [line for line in found[0].splitlines() if line.startswith("|")]
    assert shown == table().splitlines(), "python tests/test_seeds.py prints what it should be"


if __name__ == "__main__": print(table())
