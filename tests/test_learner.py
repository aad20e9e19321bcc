"""A Learner as users work with it, and what has to hold whatever the data.

Training repeats exactly, it can be interrupted, and nothing is written beside the images.
"""
import inspect, os, signal, threading

import pytest
import torch

import lessonkit.data.images
import lessonkit.data.loader
from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.learner import Learner
from lessonkit.plot.pictures import plot_top_losses
from lessonkit.results.calibration import apply_temperature, fit_temperature
from lessonkit.results.intervals import compare_errors
from lessonkit.results.metrics import accuracy, error_rate
from lessonkit.results.predict import predict_set

PAT = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    "60 tiny images in one folder, of three classes."
    return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=60)


def data_of(path, **options):
    return ImageData.from_name_re(path, PAT, **dict(size=32, bs=16) | options)


def new_learner(data, arch="resnet18", **options):
    usual = dict(weights=None, precision="fp32", show=False, device="cpu")
    return Learner(data, arch, **usual | options)


def weights(learn):
    "Copies of all weights and averages."
    return [t.clone() for t in learn.model.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- training

@pytest.mark.parametrize("options", [dict(), dict(augment=augmentations())],
                         ids=["plain", "augmented"])
def test_one_seed_gives_one_model_whatever_the_number_of_threads(flat, options):
    def train(threads, **other):
        learn = new_learner(data_of(flat, threads=threads, **options), **other)
        torch.rand(threads)   # other code draws from the global generator, too
        learn.fit_one_cycle(2, 1e-2)
        return weights(learn)
    one = train(1)
    assert same(one, train(1))
    assert same(one, train(4))
    assert not same(one, train(1, seed=7))


def test_training_leaves_the_global_generator_alone(flat):
    state = torch.get_rng_state()
    new_learner(data_of(flat)).fit_one_cycle(1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_head_trained_on_features_fits_the_images(flat, monkeypatch):
    def train():
        learn = new_learner(data_of(flat))
        learn.freeze()
        learn.fit_one_cycle(2, 1e-2)
        return learn, learn.history.fits[0]

    def train_losses(record): return [row["train_loss"] for row in record.rows]

    quick, quick_record = train()
    assert "once" in quick_record.notes[0]
    monkeypatch.setattr("lessonkit.train.trainer.why_not_precompute", lambda *_: "a test")
    slow, slow_record = train()
    assert "a test" in slow_record.notes[0]
    assert torch.allclose(quick.get_preds().probs, slow.get_preds().probs, atol=1e-3)
    assert train_losses(quick_record) == pytest.approx(train_losses(slow_record), rel=1e-3)


def test_features_are_never_stale(flat):
    learn = new_learner(data_of(flat))
    learn.freeze()
    learn.fit_one_cycle(1)
    kept = learn.trainer.features.data
    learn.fit_one_cycle(1)
    assert learn.trainer.features.data is kept        # nothing has changed: used again
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-2)
    learn.freeze()
    learn.fit_one_cycle(1)
    assert learn.trainer.features.data is not kept    # the body has changed
    kept = learn.trainer.features.data
    learn.set_data(data_of(flat, size=40))
    learn.fit_one_cycle(1)
    assert learn.trainer.features.data is not kept    # other images
    fresh = predict_set(learn.model, learn.data.valid, learn.engine, learn.data.task)
    assert torch.allclose(learn.get_preds().probs, fresh.probs, atol=1e-4)


def test_a_rate_that_is_too_high_is_reported(flat, capsys):
    learn = new_learner(data_of(flat), optimizer="sgd")
    learn.fit(5, 1e20)
    assert "smaller learning rate" in capsys.readouterr().out
    assert learn.history.fits[0].notes[-1].startswith("stopped at step")


# ---- Ctrl-C

@pytest.fixture
def ctrl_c():
    "Ctrl-C as in a terminal: a job in the background is started with it ignored."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c_after(delay):
    "In another thread, after so many seconds. Returns the running timer."
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("delay", [.05, .15, .4])
def test_ctrl_c_ends_training_after_a_whole_step(flat, delay, capsys):
    learn = new_learner(data_of(flat, bs=4))
    timer = press_ctrl_c_after(delay)
    learn.fit_one_cycle(300, 1e-3)
    timer.join()
    record = learn.history.fits[-1]
    assert 0 < len(record.losses) < 300 * 12
    assert "progress is saved" in record.notes[-1]
    assert "progress is saved" in capsys.readouterr().out
    assert len(record.lrs) == len(record.losses)
    assert len(record.smooth) == len(record.losses)
    assert all(torch.isfinite(t).all() for t in weights(learn))
    learn.fit_one_cycle(1, 1e-3)   # and it can be trained further
    assert len(learn.history.fits) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_first_phase_leaves_out_the_second(flat):
    learn = new_learner(data_of(flat, bs=4, augment=augmentations()))
    press_ctrl_c_after(.3)
    with pytest.warns(UserWarning, match="random weights"): learn.fine_tune(1, freeze_epochs=300)
    assert [f.name for f in learn.history.fits] == ["fine_tune, frozen"]


# ---- files

def test_nothing_is_written_beside_the_images(flat, tmp_path, monkeypatch):
    def times(): return {p: p.stat().st_mtime_ns for p in [flat, *flat.rglob("*")]}
    monkeypatch.chdir(tmp_path)
    before = times()
    learn = new_learner(data_of(flat))
    learn.fit_one_cycle(1)
    learn.get_preds()
    file = learn.save("here")
    assert times() == before
    assert (tmp_path / file).is_file()
    written = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert written == ["here.safetensors"]


def test_a_save_that_fails_keeps_the_file_before_it(flat, tmp_path, monkeypatch):
    learn = new_learner(data_of(flat), model_dir=tmp_path)
    good = learn.save("m").read_bytes()
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*untouched.*model_dir"): learn.save("m")
    assert (tmp_path / "m.safetensors").read_bytes() == good
    assert len(list(tmp_path.iterdir())) == 1


def test_a_saved_model_holds_no_code(flat, tmp_path):
    from safetensors import safe_open
    file = new_learner(data_of(flat), model_dir=tmp_path).save()
    with safe_open(file, "pt") as f: metadata = f.metadata()["lessonkit"]
    assert '"classes": ["circle", "square", "stripes"]' in metadata
    assert "pickle" not in metadata


def test_a_folder_that_cannot_be_written_is_reported(flat, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file where the folder should be")
    learn = new_learner(data_of(flat), model_dir=taken)
    with pytest.raises(OSError, match="another model_dir"): learn.save()


# ---- predictions

def test_predictions_are_never_stale(flat):
    learn = new_learner(data_of(flat))
    first = learn.get_preds()
    assert learn.get_preds() is first
    with torch.no_grad(): learn.model.head[-1].bias[0] += 5
    assert not torch.equal(learn.get_preds().probs, first.probs)
    learn.set_data(data_of(flat, seed=3))
    assert learn.get_preds().paths == learn.data.valid.paths


def test_metrics_are_computed_over_the_whole_set(flat):
    "Each image of an uneven batch counts the same; any function of Preds is a metric."
    def half(preds): return .5
    learn = new_learner(data_of(flat, bs=7), metrics=[accuracy, error_rate, half])
    scores = learn.validate()
    preds = learn.get_preds()
    correct = sum(int(p) == int(y) for p, y in zip(preds.probs.argmax(1), preds.targets))
    assert scores["accuracy"] == pytest.approx(correct / 12)
    assert scores["error_rate"] == pytest.approx(1 - correct / 12)
    assert scores["half"] == .5
    loss = torch.nn.functional.nll_loss(preds.probs.log(), preds.targets)
    assert scores["valid_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_bf16_on_this_machine_agrees_with_fp32(flat):
    data = data_of(flat)
    def probs(precision):
        learn = Learner(data, precision=precision, head="mlp", show=False, device="cpu")
        return learn.get_preds().probs
    fp32, bf16 = probs("fp32"), probs("bf16")
    assert torch.allclose(fp32, bf16, atol=.1)
    assert not torch.equal(fp32, bf16)


def test_test_images_are_predicted_like_new_files(flat, tmp_path):
    folders = sample.tiny(tmp_path / "f", layout="folders")
    data = ImageData.from_folder(folders, test="test", size=32, bs=8)
    learn = new_learner(data)
    files = image_files(folders / "test")
    preds = learn.get_preds("test")
    assert preds.targets is None
    assert preds.losses is None
    assert preds.paths == tuple(files)
    assert torch.allclose(learn.get_preds(files).probs, preds.probs, atol=1e-5)


@pytest.fixture
def opened(monkeypatch):
    "The files that loaders open, in order."
    files, open_pixels = [], lessonkit.data.images.open_pixels
    def recorded(source, *args):
        files.append(source)
        return open_pixels(source, *args)
    monkeypatch.setattr(lessonkit.data.loader, "open_pixels", recorded)
    return files


def test_views_of_each_image_are_blended_and_judged(flat, capsys, opened):
    learn = new_learner(data_of(flat, augment=augmentations()), show=True)
    learn.fit_one_cycle(1, 1e-2)
    opened.clear()
    capsys.readouterr()
    blend = learn.tta(3, beta=.4)
    assert sorted(opened) == sorted(learn.data.valid.paths)   # once for all views
    printed, plain = capsys.readouterr().out, learn.get_preds()
    assert len(opened) == learn.data.valid.n                  # the plain ones were among them
    assert not torch.equal(plain.probs, blend.probs)
    assert printed == f"test-time augmentation, 3 views: {compare_errors(plain, blend)}\n"
    assert torch.equal(learn.tta(3, beta=1.).probs, plain.probs)
    assert len(learn.tta(form="corners", which="train")) == learn.data.train.n
    with pytest.raises(ValueError, match="got 'trian'"): learn.tta(which="trian")


def test_a_calibrated_model_is_still_calibrated_after_loading(flat, tmp_path):
    data = data_of(flat)
    learn = new_learner(data, model_dir=tmp_path)
    learn.fit_one_cycle(1, 1e-4)
    before = learn.get_preds()
    temperature = learn.calibrate().temperature
    assert temperature == fit_temperature(before)
    assert temperature != 1
    after = learn.get_preds()
    assert torch.equal(after.pred, before.pred)
    assert torch.allclose(after.probs, apply_temperature(before, temperature).probs, atol=1e-5)
    learn.save("calibrated")
    loaded = new_learner(data, model_dir=tmp_path, seed=1).load("calibrated")
    assert torch.equal(loaded.get_preds().probs, after.probs)


def test_a_model_that_knows_nothing_is_not_calibrated(flat, capsys):
    learn = new_learner(data_of(flat), show=True)
    learn.fit_one_cycle(2, 1e-2)
    before = weights(learn)
    with pytest.warns(UserWarning, match="no better than saying nothing"): learn.calibrate()
    assert same(before, weights(learn))
    assert "left as it is" in capsys.readouterr().out


def test_heat_maps_are_those_of_the_chosen_images(flat):
    learn = new_learner(data_of(flat))
    def gradients(): return [(p.requires_grad, p.grad) for p in learn.model.parameters()]
    weights_before, gradients_before = weights(learn), gradients()
    maps = learn.heat_maps([4, 1])
    assert torch.equal(maps[1], learn.heat_maps([1])[0])
    assert torch.equal(maps[0], learn.heat_maps(torch.tensor([4]))[0])
    assert same(weights(learn), weights_before)
    assert gradients() == gradients_before
    assert not torch.equal(learn.heat_maps([1], [0]), learn.heat_maps([1], [1]))


def test_a_broken_file_in_a_folder_of_new_images_is_left_out(flat, tmp_path):
    learn = new_learner(data_of(flat))
    folder = tmp_path / "new"
    sample.tiny(folder, n=9)
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 10 files.*broken.jpg"):
        preds = learn.predict_folder(folder)
    assert len(preds) == 9
    table = preds.to_frame().set_index("file")
    assert "can't read" in table.failed["broken.jpg"]
    assert (table.failed.drop("broken.jpg") == "").all()
    assert table.predicted.isna().sum() == 1
    assert preds.failed_paths == {preds.to_frame().file.tolist().index("broken.jpg"):
                                  folder / "broken.jpg"}
    assert torch.allclose(preds.probs[3], learn.predict(preds.paths[3]).probs, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no folder"):
        learn.predict_folder(tmp_path / "nothing")


def test_plots_use_kept_predictions(flat, monkeypatch):
    learn = new_learner(data_of(flat))
    learn.get_preds()
    def predict_again(*_): pytest.fail("the model computed its predictions again")
    monkeypatch.setattr("lessonkit.learner.predict_set", predict_again)
    figures = [
        learn.plot_correct(), learn.plot_incorrect(), learn.plot_most_correct("circle"),
        learn.plot_most_incorrect("circle"), learn.plot_most_uncertain(),
        learn.plot_top_losses(4), learn.plot_cell("circle", "square"), learn.show_results(4),
        learn.plot_confusion_matrix(), learn.plot_reliability(), learn.plot_risk_coverage()]
    assert len({fig.alt for fig in figures}) == len(figures)
    for fig in [*figures, learn.plot_correct(crop=True)]: assert fig.image()[1]


# ---- signatures and docstrings

def public_methods():
    methods = inspect.getmembers(Learner, inspect.isfunction)
    return {name: method for name, method in methods if not name.startswith("_")}


def test_a_method_that_forwards_shows_the_signature_of_its_function():
    method, function = map(inspect.signature, (Learner.plot_top_losses, plot_top_losses))
    self, *shown = method.parameters.values()
    preds, *others = function.parameters.values()
    assert self.name == "self"
    assert preds.name == "preds"
    assert shown == others
    assert method.return_annotation == function.return_annotation


@pytest.mark.parametrize("name", ["fit", "fit_one_cycle", "fit_flat_cos", "fine_tune"])
def test_each_way_to_fit_shows_the_options_of_training(name):
    parameters = inspect.signature(getattr(Learner, name)).parameters
    training = inspect.signature(Learner.train_phases).parameters.values()
    options = [p for p in training if p.kind is p.KEYWORD_ONLY]
    assert "keep_best" in [p.name for p in options]
    assert [parameters.get(p.name) for p in options] == options
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]


@pytest.mark.parametrize("name", ["plot_top_losses", "fit_one_cycle"])
def test_shown_parameters_are_described_in_the_docstring(name):
    method = public_methods()[name]
    described = inspect.getdoc(method).partition("Parameters:")[2]
    unusual = {"self", "options"}   # `**options` of a plot has no comment
    names = inspect.signature(method).parameters.keys() - unusual
    assert names
    assert [n for n in names if f"{n}:" not in described] == []


def test_every_public_method_has_a_docstring():
    assert len(public_methods()) > 40
    assert [name for name, method in public_methods().items() if not method.__doc__] == []


def test_every_public_property_has_a_docstring():
    properties = inspect.getmembers(Learner, lambda member: isinstance(member, property))
    assert [name for name, value in properties if not value.__doc__] == []


# ---- on a GPU

@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(flat, precision):
    data = data_of(flat, augment=augmentations())
    learn = new_learner(data, precision=precision, device="cuda")
    learn.fit_one_cycle(3, 1e-2)
    assert next(learn.model.parameters()).is_cuda
    assert learn.get_preds().probs.device.type == "cpu"
    assert learn.history.fits[0].losses[-1] < 3
