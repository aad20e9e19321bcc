"""v1's learner over its own data: defaults, callbacks, forms of predictions, what is assigned."""
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lessonkit.data import sample
from lessonkit.dialects import fastai1 as v1
from lessonkit.dialects.registry import forget_remarks, NotSupported


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("v1")/"images", n=30)


@pytest.fixture
def data(folder):
    files = sorted(folder.glob("*.jpg"))
    data = v1.ImageDataBunch.from_name_func(folder, files, lambda f: f.name.split("_")[0], seed=3,
                                            ds_tfms=v1.get_transforms(), size=32, bs=8)
    return data.normalize(v1.imagenet_stats)


@pytest.fixture
def learn(data, tmp_path):
    net = v1.simple_cnn((3, 8, 3), bn=True)
    return v1.Learner(data, net, metrics=[v1.accuracy], path=tmp_path)


def columns(learn): return list(learn.kit.history.fits[-1].rows[-1])


# ---- training

def test_usual_rates_optimizer_and_decay(learn):
    learn.fit_one_cycle(1)
    kit = learn.kit
    made = kit.trainer.new_optimizer()
    assert [type(made).__name__, made.defaults["eps"]] == ["AdamW", 1e-8]
    assert {group["weight_decay"] for group in made.param_groups} == {.01}
    assert kit.history.fits[0].lrs[0][-1] == pytest.approx(3e-3 / 25)


def test_one_step_of_the_optimizer_is_adam_with_decoupled_decay():
    weight = torch.tensor([[2., -1.]])
    p = nn.Parameter(weight.clone())
    made = v1.Learner.__mro__   # the class is built over the adapter
    assert made[-2].__name__ == "_Adapted"
    from lessonkit.dialects.adapter import adam_v1
    optimizer = adam_v1([dict(params=[p], group=0, weight_decay=.1)])
    optimizer.param_groups[0]["lr"] = .01
    p.grad = torch.tensor([[.5, -2.]])
    optimizer.step()
    expected = weight * (1 - .01 * .1) - .01 * torch.sign(p.grad)   # the first step of Adam
    assert torch.allclose(p.detach(), expected, atol=1e-6)


def test_a_weight_decay_for_one_fit(learn):
    seen = []
    class Look(v1.Callback):
        def on_batch_end(self, **state): seen.append(learn._kit.trainer.wd)
    learn.fit(1, 1e-3, wd=.3, callbacks=[Look()])
    assert set(seen) == {.3}
    assert learn.kit.trainer.wd == .01
    learn.wd = .2
    assert learn.kit.trainer.wd == .2


def test_the_best_epoch_is_saved_and_put_back(learn):
    learn.callback_fns.append(partial(v1.SaveModelCallback, monitor="accuracy", name="best"))
    learn.fit_one_cycle(3, 1e-2)
    rows = learn.kit.history.fits[-1].rows
    best = max(row["accuracy"] for row in rows)
    assert float(learn.validate()[1]) == pytest.approx(best)
    assert (learn.path/"models/best.safetensors").exists()


def test_training_ends_without_improvement(learn, capsys):
    stop = v1.EarlyStoppingCallback(learn, monitor="accuracy", min_delta=2., patience=1)
    learn.fit(9, 1e-4, callbacks=stop)
    assert len(learn.recorder.val_losses) == 3   # the first one counts, then two are no better


def test_a_lower_rate_is_recorded(learn):
    lower = v1.ReduceLROnPlateauCallback(learn, monitor="accuracy", min_delta=2., factor=.5,
                                         min_lr=1e-9)
    learn.fit(3, 1e-3, callbacks=lower)
    per_epoch = [learn.recorder.lrs[end - 1] for end in learn.kit.history.fits[-1].ends]
    assert per_epoch == pytest.approx([1e-3, 1e-3, 5e-4])


def test_metrics_and_losses_can_be_assigned(learn):
    learn.metrics = [v1.error_rate, v1.KappaScore(weights="quadratic"),
                     partial(v1.fbeta, thresh=.1)][:2]
    learn.loss_func = v1.LabelSmoothingCrossEntropy()
    learn.fit(1, 1e-3)
    assert columns(learn)[3:-1] == ["error_rate", "kappa_score"]
    outputs = learn.get_preds(activ=v1.noop)[0]
    smooth = learn.loss_func(outputs, learn.get_preds()[1])
    assert float(learn.validate()[0]) == pytest.approx(float(smooth), rel=1e-2)


def test_a_metric_of_ones_own(learn):
    class Share(v1.Callback):
        def on_epoch_begin(self, **state): self.values = []
        def on_batch_end(self, last_output, last_target, **state):
            self.values.append(float((last_output.argmax(1) == last_target).float().mean()))
        def on_epoch_end(self, last_metrics, **state):
            return v1.add_metrics(last_metrics, np.mean(self.values))
    learn.metrics.append(Share())
    learn.fit(1, 1e-3)
    row = learn.kit.history.fits[-1].rows[-1]
    assert row["share"] == pytest.approx(row["accuracy"])


def test_the_log(learn):
    learn.callback_fns = [v1.CSVLogger]
    learn.fit(2, 1e-3)
    table = learn.csv_logger.read_logged_file()
    assert {"epoch", "train_loss", "valid_loss", "accuracy"} <= set(table.columns)
    assert len(table) == 2


def test_misspelled_keywords_warn_once(data):
    forget_remarks()
    with pytest.warns(UserWarning, match="metric=.*Did you mean metrics="):
        v1.Learner(data, v1.simple_cnn((3, 8, 3)), metric=v1.accuracy)


# ---- data

def test_other_images_go_on_with_the_same_network(learn, data, folder):
    learn.fit(1, 1e-3)
    files = sorted(folder.glob("*.jpg"))
    learn.data = v1.ImageDataBunch.from_name_func(
        folder, files, lambda f: f.name.split("_")[0], seed=3, size=48, bs=8)
    assert learn.kit.data.size == 48
    learn.fit(1, 1e-3)
    assert len(learn.kit.history.fits) == 2


def test_test_images_can_come_later(learn, data, folder):
    learn.fit(1, 1e-3)
    learn.data.add_test(sorted(folder.glob("*.jpg"))[:4])
    preds, y = learn.get_preds(v1.DatasetType.Test)
    assert [preds.shape, y.tolist()] == [(4, 3), [0] * 4]
    assert len(learn.kit.history.fits) == 1


def test_predictions_are_in_the_order_of_the_images(learn, data):
    preds, y = learn.get_preds()
    assert y.tolist() == [int(label) for _, label in data.valid_ds]
    image, label = data.valid_ds[0]
    category, number, probs = learn.predict(image)
    assert torch.allclose(probs, preds[0], atol=.05)   # from 8-bit pixels
    assert str(category) == data.classes[int(number)]


def test_several_labels(folder):
    files = sorted(folder.glob("*.jpg"))
    df = pd.DataFrame(dict(name=[f.name for f in files],
                           tags=["a b" if i % 2 else "b" for i in range(len(files))]))
    data = (v1.ImageList.from_df(df, folder).split_by_rand_pct(.2, seed=1)
            .label_from_df(label_delim=" ").transform(size=32).databunch(bs=8))
    learn = v1.Learner(data, v1.simple_cnn((3, 8, 2)),
                       metrics=[partial(v1.accuracy_thresh, thresh=.2), v1.fbeta])
    learn.fit(1, 1e-2)
    assert columns(learn)[3:-1] == ["accuracy_thresh", "fbeta"]
    preds, y = learn.get_preds()
    expected = v1.accuracy_thresh(preds, y, thresh=.2, sigmoid=False)
    assert float(learn.validate()[1]) == pytest.approx(float(expected))
    labels, said, raw = learn.predict(data.valid_ds[0][0], thresh=0.)
    assert [str(labels), said.tolist()] == ["a;b", [1, 1]]


def test_numbers(folder):
    files = sorted(folder.glob("*.jpg"))
    df = pd.DataFrame(dict(name=[f.name for f in files], size=np.linspace(0, 1, len(files))))
    data = (v1.ImageList.from_df(df, folder).split_by_rand_pct(.2, seed=1)
            .label_from_df(label_cls=v1.FloatList).transform(size=32).databunch(bs=8))
    def gap(preds, targets): return (preds.squeeze() - targets).abs().mean()
    learn = v1.Learner(data, v1.simple_cnn((3, 8, 1)), metrics=[v1.mse, gap, v1.mae])
    learn.fit(1, 1e-2)
    loss, mse, own, mae = learn.validate()
    assert float(loss) == pytest.approx(float(mse), rel=1e-3)
    assert float(own) == pytest.approx(float(mae))
    preds, y = learn.get_preds()
    assert [preds.shape, y.shape] == [(6, 1), (6,)]
    assert learn.predict(files[0])[2].shape == (1,)
    learn.loss_func = lambda preds, targets: (preds.view(-1) - targets).abs()
    learn.fit(1, 1e-2)
    assert float(learn.validate()[0]) == pytest.approx(float(learn.validate()[3]), rel=1e-3)
    assert learn.interpret().y_true.shape == (6,)


# ---- the network

def test_heat_map_by_hand(data):
    "As notes draw it: from hooks on the body, whose layers are frozen."
    learn = v1.cnn_learner(data, v1.models.resnet18, pretrained=False)
    learn.freeze()
    x, y = data.valid_ds[0]
    m = learn.model.eval()
    xb, _ = data.one_item(x)
    with v1.hook_output(m[0]) as hook_a:
        with v1.hook_output(m[0], grad=True) as hook_g:
            preds = m(xb)
            preds[0, int(y)].backward()
    acts, grad = hook_a.stored[0].cpu(), hook_g.stored[0][0].cpu()
    assert acts.shape == grad.shape == (512, 1, 1)
    plain = learn.kit.model(xb * learn.kit.model.normalize.std + learn.kit.model.normalize.mean)
    assert torch.allclose(preds, plain, atol=1e-4)


def test_methods_can_be_replaced(learn, monkeypatch):
    "Notes put test-time augmentation of their own into the class."
    def own(learn, ds_type=v1.DatasetType.Valid, num_pred=2):
        for _ in range(num_pred): yield v1.get_preds(learn.model, learn.dl(ds_type))[0]
    monkeypatch.setattr(v1.Learner, "tta_only", own)
    first, second = learn.tta_only(num_pred=2)
    assert torch.equal(first, second)
    assert torch.allclose(first, learn.get_preds()[0], atol=.02)


def test_exported_and_loaded(data, tmp_path, folder):
    learn = v1.cnn_learner(data, v1.models.resnet18, pretrained=False, path=tmp_path)
    learn.export()
    files = sorted(folder.glob("*.jpg"))[:3]
    loaded = v1.load_learner(tmp_path, test=v1.ImageList(files))
    preds, _ = loaded.get_preds(ds_type=v1.DatasetType.Test)
    category, number, probs = loaded.predict(v1.open_image(files[0]))
    assert torch.allclose(probs, preds[0], atol=.05)
    assert loaded.data.classes == data.classes


def test_what_is_not_supported_says_so(learn):
    for use in (lambda: v1.unet_learner(None, None), lambda: v1.ImageSegment(3), learn.export):
        with pytest.raises(NotSupported): use()
    with pytest.raises(NotSupported, match="models.xresnet50"): v1.models.xresnet50


def test_the_star_import_brings_what_notes_rely_on():
    for name in ("np", "plt", "pd", "torch", "nn", "F", "os", "Path", "partial", "random", "re",
                 "PIL", "gc", "sys", "math", "Tensor", "FloatTensor", "models", "vision",
                 "master_bar", "progress_bar", "Optional", "Tuple", "Callable", "warn", "Dataset"):
        assert name in v1.__all__
        assert hasattr(v1, name)
    assert len(set(v1.__all__)) == len(v1.__all__)
    assert "fastai" not in sys.modules   # none of it is needed
