"""Notebooks in the style of each old generation, whole, in a real kernel, on stand-in data.

We wrote them: no public notebook is part of this project. Each uses the calls that people used
most; cells that begin with `assert` check what an old note would have shown.
"""
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from run_old_notebook import run, summary
from stand_in_data import (UNTAR, WORK, cactus, dogscats, loose_images, make, pets, planet,
                           three_bears)

CAPS = dict(epochs=1, images=150, size=64, arch="packaged")

DOGS_AND_CATS_07 = [
    "%reload_ext autoreload\n%autoreload 2\n%matplotlib inline",
    "from fastai.imports import *\nfrom fastai.transforms import *\n"
    "from fastai.conv_learner import *\nfrom fastai.model import *\n"
    "from fastai.dataset import *\nfrom fastai.sgdr import *\nfrom fastai.plots import *",
    "PATH = 'data/dogscats/'\nsz = 224\narch = resnet34",
    "files = !ls {PATH}valid/cats | head\nimg = plt.imread(f'{PATH}valid/cats/{files[0]}')\n"
    "plt.imshow(img)",
    "data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz), bs=16)\n"
    "learn = ConvLearner.pretrained(arch, data, precompute=True)\nlearn.fit(0.01, 2)",
    "assert data.classes == ['cats', 'dogs']\ndata.val_y",
    "log_preds = learn.predict()\npreds = np.argmax(log_preds, axis=1)\n"
    "probs = np.exp(log_preds[:, 1])\nlog_preds.shape",
    "assert log_preds.shape == (len(data.val_y), 2)\n"
    "assert np.allclose(np.exp(log_preds).sum(1), 1, atol=1e-5)",
    "idxs = np.random.choice(np.where(preds == data.val_y)[0], 4, replace=False)\n"
    "imgs = np.stack([data.val_ds[x][0] for x in idxs])\n"
    "plots(data.val_ds.denorm(imgs), rows=1, titles=[f'{p:.2f}' for p in probs[idxs]])",
    "def load_img_id(ds, idx): return np.array(PIL.Image.open(PATH + ds.fnames[idx]))\n"
    "load_img_id(data.val_ds, 0).shape",
    "lrf = learn.lr_find()\nlearn.sched.plot_lr()",
    "learn.sched.plot()",
    "tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)\n"
    "data = ImageClassifierData.from_paths(PATH, tfms=tfms, bs=16)\n"
    "learn = ConvLearner.pretrained(arch, data, precompute=True, ps=0.5)",
    "learn.fit(1e-2, 1)\nlearn.precompute = False\nlearn.fit(1e-2, 3, cycle_len=1)",
    "learn.save('224_lastlayer')\nlearn.load('224_lastlayer')",
    "learn.unfreeze()\nlr = np.array([1e-4, 1e-3, 1e-2])\n"
    "learn.fit(lr, 3, cycle_len=1, cycle_mult=2)\nlearn.sched.plot_lr()",
    "log_preds, y = learn.TTA()\nprobs = np.mean(np.exp(log_preds), 0)\naccuracy_np(probs, y)",
    "assert probs.shape == (len(y), 2)\nassert 0 <= accuracy_np(probs, y) <= 1",
    "from sklearn.metrics import confusion_matrix\n"
    "cm = confusion_matrix(y, np.argmax(probs, axis=1))\nplot_confusion_matrix(cm, data.classes)",
]

PLANET_07 = [
    "from fastai.conv_learner import *\nPATH = 'data/planet/'\nlabel_csv = f'{PATH}train_v2.csv'",
    "n = len(list(open(label_csv))) - 1\nval_idxs = get_cv_idxs(n)\n"
    "assert len(val_idxs) == int(n * .2)",
    "def get_data(sz):\n    tfms = tfms_from_model(resnet34, sz, aug_tfms=transforms_top_down,\n"
    "                           max_zoom=1.05)\n"
    "    return ImageClassifierData.from_csv(PATH, 'train-jpg', label_csv, tfms=tfms,\n"
    "                                        suffix='.jpg', val_idxs=val_idxs, bs=16,\n"
    "                                        test_name='test-jpg')",
    "data = get_data(64)\nx, y = next(iter(data.val_dl))\nlist(zip(data.classes, y[0]))",
    "assert y.shape[1] == len(data.classes)",
    "learn = ConvLearner.pretrained(resnet34, data, metrics=[accuracy_thresh(.5)])\n"
    "learn.fit(.1, 1, cycle_len=1)",
    "learn.set_data(get_data(48))\nlearn.freeze()\nlearn.fit(.1, 1)",
    "preds = learn.predict(is_test=True)\nassert preds.shape == (6, len(data.classes))\n"
    "[f[9:] for f in data.test_ds.fnames]",
]

PETS_V1 = [
    "%reload_ext autoreload\n%autoreload 2\n%matplotlib inline",
    "from fastai.vision import *\nfrom fastai.metrics import error_rate",
    "bs = 16\npath = untar_data(URLs.PETS)\npath.ls()",
    "path_img = path/'images'\nfnames = get_image_files(path_img)\nnp.random.seed(2)\n"
    "pat = r'/([^/]+)_\\d+.jpg$'",
    "data = ImageDataBunch.from_name_re(path_img, fnames, pat, ds_tfms=get_transforms(),\n"
    "                                   size=64, bs=bs, num_workers=0)\n"
    "data = data.normalize(imagenet_stats)",
    "data.show_batch(rows=3, figsize=(7, 6))",
    "assert len(data.classes) == data.c == 37\nprint(data.classes)",
    "learn = cnn_learner(data, models.resnet34, metrics=error_rate)\nlearn.fit_one_cycle(4)",
    "learn.save('stage-1')",
    "interp = ClassificationInterpretation.from_learner(learn)\n"
    "losses, idxs = interp.top_losses()\n"
    "assert len(data.valid_ds) == len(losses) == len(idxs)",
    "interp.plot_top_losses(4, figsize=(7, 7))",
    "interp.plot_confusion_matrix(figsize=(12, 12), dpi=60)\ninterp.most_confused(min_val=2)",
    "learn.unfreeze()\nlearn.fit_one_cycle(1)\nlearn.load('stage-1');",
    "learn.lr_find()\nlearn.recorder.plot(suggestion=True)",
    "learn.unfreeze()\nlearn.fit_one_cycle(2, max_lr=slice(1e-6, 1e-4))\n"
    "learn.recorder.plot_losses()",
    "preds, y = learn.get_preds(ds_type=DatasetType.Valid)\n"
    "assert preds.shape == (len(data.valid_ds), 37)",
    "img, label = data.valid_ds[0]\npred_class, pred_idx, outputs = learn.predict(img)\n"
    "assert str(pred_class) in data.classes",
    "learn.export()\nlearn = load_learner(path_img)\nlearn.predict(open_image(fnames[0]))",
]

CACTUS_V1 = [
    "from fastai import *\nfrom fastai.vision import *\nimport pandas as pd",
    "path = Path('../input/aerial-cactus-identification')\n"
    "train_df = pd.read_csv(path/'train.csv')\n"
    "test_df = pd.read_csv(path/'sample_submission.csv')",
    "tfms = get_transforms(do_flip=True, flip_vert=True, max_rotate=10.0, max_zoom=1.1,\n"
    "                      max_lighting=0.2, max_warp=0.2, p_affine=0.75, p_lighting=0.75)",
    "test_img = ImageList.from_df(test_df, path=path/'test', folder='test')",
    "np.random.seed(7)\n"
    "src = (ImageList.from_df(train_df, path=path/'train', folder='train')\n"
    "       .split_by_rand_pct(0.2)\n       .label_from_df()\n       .add_test(test_img))",
    "data = (src.transform(tfms, size=64)\n"
    "        .databunch(path='.', bs=16, num_workers=0).normalize(imagenet_stats))",
    "learn = cnn_learner(data, models.densenet161, metrics=[error_rate, accuracy],\n"
    "                    model_dir='models')",
    "learn.lr_find()\nlearn.recorder.plot()",
    "learn.fit_one_cycle(2, slice(3e-2))",
    "preds, _ = learn.get_preds(ds_type=DatasetType.Test)\n"
    "test_df.has_cactus = preds.numpy()[:, 1]",
    "assert len(preds) == len(test_df) == 8\ntest_df.to_csv('submission.csv', index=False)",
    "tta, y = learn.TTA(ds_type=DatasetType.Valid)\naccuracy(tta, y)",
]

BEARS_V2 = [
    "from fastai.vision.all import *\nfrom fastai.vision.widgets import *",
    "path = Path('bears')\nfns = get_image_files(path)\nfns",
    "failed = verify_images(fns)\nfailed.map(Path.unlink);",
    "bears = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files,\n"
    "                  splitter=RandomSplitter(valid_pct=0.2, seed=42), get_y=parent_label,\n"
    "                  item_tfms=Resize(64))\ndls = bears.dataloaders(path, bs=16)",
    "dls.valid.show_batch(max_n=4, nrows=1)",
    "bears = bears.new(item_tfms=Resize(64, ResizeMethod.Pad, pad_mode='zeros'))\n"
    "dls = bears.dataloaders(path, bs=16)\ndls.valid.show_batch(max_n=4, nrows=1)",
    "bears = bears.new(item_tfms=RandomResizedCrop(64, min_scale=0.5),\n"
    "                  batch_tfms=aug_transforms(mult=2))\ndls = bears.dataloaders(path, bs=16)\n"
    "dls.train.show_batch(max_n=8, nrows=2, unique=True)",
    "learn = cnn_learner(dls, resnet18, metrics=error_rate)\nlearn.fine_tune(4)",
    "assert list(dls.vocab) == ['black', 'grizzly', 'teddy']",
    "interp = ClassificationInterpretation.from_learner(learn)\ninterp.plot_confusion_matrix()",
    "interp.plot_top_losses(5, nrows=1)",
    "cleaner = ImageClassifierCleaner(learn)\ncleaner",
    "for idx in cleaner.delete(): cleaner.fns[idx].unlink()\n"
    "for idx, cat in cleaner.change(): shutil.move(str(cleaner.fns[idx]), path/cat)",
    "learn.export()\nlearn_inf = load_learner(Path()/'export.pkl')\nlearn_inf.dls.vocab",
    "pred, pred_idx, probs = learn_inf.predict('images/grizzly.jpg')\n"
    "assert pred in learn_inf.dls.vocab\nassert pred == dls.vocab[pred_idx]",
    "btn_upload = widgets.FileUpload()\nout_pl = widgets.Output()\nlbl_pred = widgets.Label()\n"
    "VBox([widgets.Label('Select your bear!'), btn_upload, out_pl, lbl_pred])",
]

PETS_V2 = [
    "from fastbook import *\nfrom fastai2.vision.all import *",
    "path = untar_data(URLs.PETS)\nPath.BASE_PATH = path\npath.ls()",
    "pets = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files,\n"
    "                 splitter=RandomSplitter(seed=42),\n"
    "                 get_y=using_attr(RegexLabeller(r'(.+)_\\d+.jpg$'), 'name'),\n"
    "                 item_tfms=Resize(80),\n"
    "                 batch_tfms=aug_transforms(size=64, min_scale=0.75))\n"
    "dls = pets.dataloaders(path/'images', bs=16)",
    "dls.show_batch(nrows=1, ncols=3)",
    "pets.summary(path/'images')",
    "learn = cnn_learner(dls, resnet34, metrics=error_rate)\n"
    "lr_min, lr_steep = learn.lr_find()\n"
    "print(f'Minimum/10: {lr_min:.2e}, steepest point: {lr_steep:.2e}')",
    "learn.fit_one_cycle(3, 3e-3)\nlearn.unfreeze()\n"
    "learn.fit_one_cycle(6, lr_max=slice(1e-6, 1e-4))\nlearn.recorder.plot_loss()",
    "x, y = dls.one_batch()\nassert x.shape[1:] == (3, 64, 64)\nassert len(dls.vocab) == 37",
    "preds, targs = learn.get_preds()\nassert preds.shape[1] == 37\naccuracy(preds, targs)",
    "learn.show_results(max_n=4)\nlearn.save('stage-1');",
    "from fastai2.callback.fp16 import *\nlearn = cnn_learner(dls, resnet50,\n"
    "    metrics=[error_rate, accuracy]).to_fp16()\nlearn.fine_tune(6, freeze_epochs=3)",
    "preds, targs = learn.tta()\nerror_rate(preds, targs)",
    "tst_dl = dls.test_dl(get_image_files(path/'images')[:8])\n"
    "probs, _, idxs = learn.get_preds(dl=tst_dl, with_decoded=True)\nassert len(idxs) == 8",
]

NOTEBOOKS = {
    "0.7, dogs and cats": (DOGS_AND_CATS_07, {"data/dogscats": dogscats}),
    "0.7, satellite images": (PLANET_07, {"data/planet": planet}),
    "v1, pets": (PETS_V1, {f"{UNTAR}/oxford-iiit-pet": pets}),
    "v1, cactuses": (CACTUS_V1, {"course/nbs/input/aerial-cactus-identification": cactus}),
    "v2, bears": (BEARS_V2, {f"{WORK}/bears": three_bears, WORK: loose_images}),
    "v2, pets": (PETS_V2, {f"{UNTAR}/oxford-iiit-pet": pets}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs(name, tmp_path):
    sources, places = NOTEBOOKS[name]
    folder = make(tmp_path, places)
    notebook = folder / "old.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), notebook)
    cells, _ = run(notebook, folder, tmp_path / "home", limit=120, **CAPS)
    failed = [f"{cell.source}\n{cell.error}" for cell in cells if cell.error]
    assert not failed, "\n\n".join([summary(cells), *failed])
