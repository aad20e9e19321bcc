"""What a user does with a Learner, and what must hold whatever the data: repeatable, stoppable, nothing written beside the pictures."""
import os, signal, threading

import pytest
import torch

from lessonkit.data import sample
from lessonkit.data.augment import augmentations
from lessonkit.results.calibration import apply_temperature, fit_temperature
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.results.intervals import compare_errors
from lessonkit.results.metrics import accuracy, error_rate
from lessonkit.learner import Learner
from lessonkit.results.predict import predict_set

PAT = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def flat(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=60)


def data_of(path, **kw): return ImageData.from_name_re(path, PAT, **dict(size=32, bs=16) | kw)
def learner(data, arch="resnet18", **kw): return Learner(data, arch, **dict(weights=None, precision="fp32", show=False, device="cpu") | kw)
def weights(learn): return [t.clone() for t in learn.model.state_dict().values()]
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("kw", [dict(), dict(augment=augmentations())], ids=["plain", "augmented"])
def test_one_seed_one_model_whatever_the_threads(flat, kw):
    def train(threads, **other):
        learn = learner(data_of(flat, threads=threads, **kw), **other)
        torch.rand(threads)                          # somebody else's use of the global generator
        learn.fit_one_cycle(2, 1e-2)
        return weights(learn)
    one = train(1)
    assert same(one, train(1)) and same(one, train(4))
    assert not same(one, train(1, seed=7))


def test_training_leaves_the_global_generator_alone(flat):
    state = torch.get_rng_state()
    learner(data_of(flat)).fit_one_cycle(1)
    assert torch.equal(state, torch.get_rng_state())


def test_head_on_features_becomes_the_head_on_pictures(flat, monkeypatch):
    def train():
        learn = learner(data_of(flat))
        learn.freeze()
        learn.fit_one_cycle(2, 1e-2)
        return learn
    quick = train()
    assert "once" in quick.history.fits[0].notes[0]
    monkeypatch.setattr("lessonkit.train.trainer.why_not_precompute", lambda *_: "a test")
    slow = train()
    assert "a test" in slow.history.fits[0].notes[0]
    assert torch.allclose(quick.get_preds().probs, slow.get_preds().probs, atol=1e-3)
    assert [r["train_loss"] for r in quick.history.fits[0].rows] == pytest.approx([r["train_loss"] for r in slow.history.fits[0].rows], rel=1e-3)


def test_features_are_never_stale(flat):
    learn = learner(data_of(flat))
    learn.freeze(); learn.fit_one_cycle(1)
    kept = learn.trainer.features.data
    learn.fit_one_cycle(1)
    assert learn.trainer.features.data is kept                # nothing changed: used again
    learn.unfreeze(); learn.fit_one_cycle(1, 1e-2)
    learn.freeze(); learn.fit_one_cycle(1)
    assert learn.trainer.features.data is not kept            # the body changed
    kept = learn.trainer.features.data
    learn.set_data(data_of(flat, size=40))
    learn.fit_one_cycle(1)
    assert learn.trainer.features.data is not kept            # other pictures
    assert torch.allclose(learn.get_preds().probs, predict_set(learn.model, learn.data.valid, learn.engine, learn.data.task).probs, atol=1e-4)


def test_predictions_are_never_stale(flat):
    learn = learner(data_of(flat))
    first = learn.get_preds()
    assert learn.get_preds() is first
    with torch.no_grad(): learn.model.head[-1].bias[0] += 5
    assert not torch.equal(learn.get_preds().probs, first.probs)
    learn.set_data(data_of(flat, seed=3))
    assert learn.get_preds().paths == learn.data.valid.paths


def test_metrics_are_over_the_whole_set(flat):
    "Uneven batches weigh what they hold; any function of Preds is a metric."
    def half(preds): return .5
    learn = learner(data_of(flat, bs=7), metrics=[accuracy, error_rate, half])
    scores = learn.validate()
    preds = learn.get_preds()
    right = sum(int(p) == int(y) for p, y in zip(preds.probs.argmax(1), preds.targets))
    assert scores["accuracy"] == pytest.approx(right / 12) and scores["error_rate"] == pytest.approx(1 - right / 12) and scores["half"] == .5
    assert scores["valid_loss"] == pytest.approx(float(torch.nn.functional.nll_loss(preds.probs.log(), preds.targets)), rel=1e-4)


@pytest.fixture
def ctrl_c():
    "Ctrl-C as in a terminal: a job in the background is started with it ignored."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("delay", [.05, .15, .4])
def test_ctrl_c_ends_after_a_whole_step(flat, delay, capsys):
    learn = learner(data_of(flat, bs=4))
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    learn.fit_one_cycle(300, 1e-3)
    timer.join()
    record = learn.history.fits[-1]
    assert 0 < len(record.losses) < 300 * 12 and "progress is saved" in record.notes[-1] and "progress is saved" in capsys.readouterr().out
    assert len(record.lrs) == len(record.losses) == len(record.smooth)
    assert all(torch.isfinite(t).all() for t in weights(learn))
    learn.fit_one_cycle(1, 1e-3)                     # and it can go on
    assert len(learn.history.fits) == 2 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_in_the_first_phase_leaves_out_the_second(flat):
    learn = learner(data_of(flat, bs=4, augment=augmentations()))
    threading.Timer(.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.warns(UserWarning, match="random weights"): learn.fine_tune(1, freeze_epochs=300)
    assert [f.name for f in learn.history.fits] == ["fine_tune, frozen"]


def test_a_rate_that_is_too_high_says_so(flat, capsys):
    learn = learner(data_of(flat), optimizer="sgd")
    learn.fit(5, 1e20)
    assert "smaller learning rate" in capsys.readouterr().out and learn.history.fits[0].notes[-1].startswith("stopped at step")


def test_nothing_is_written_beside_the_pictures(flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in [flat, *flat.rglob("*")]}
    learn = learner(data_of(flat))
    learn.fit_one_cycle(1); learn.get_preds(); file = learn.save("here")
    assert {p: p.stat().st_mtime_ns for p in [flat, *flat.rglob("*")]} == before
    assert (tmp_path / file).is_file() and [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["here.safetensors"]


def test_a_save_that_fails_keeps_what_was_there(flat, tmp_path, monkeypatch):
    learn = learner(data_of(flat), model_dir=tmp_path)
    good = learn.save("m").read_bytes()
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*untouched.*model_dir"): learn.save("m")
    assert (tmp_path / "m.safetensors").read_bytes() == good and len(list(tmp_path.iterdir())) == 1


def test_a_saved_model_holds_no_code(flat, tmp_path):
    from safetensors import safe_open
    with safe_open(learner(data_of(flat), model_dir=tmp_path).save(), "pt") as f:
        page = f.metadata()["lessonkit"]
        assert '"classes": ["circle", "square", "stripes"]' in page and "pickle" not in page


def test_read_only_folder_message(flat, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="another model_dir"): learner(data_of(flat), model_dir=tmp_path / "taken").save()


def test_bf16_on_this_machine_agrees_with_fp32(flat):
    data = data_of(flat)
    a, b = (Learner(data, precision=p, show=False, device="cpu").get_preds().probs for p in ("fp32", "bf16"))
    assert torch.allclose(a, b, atol=.1) and not torch.equal(a, b)


def test_test_pictures_and_new_files(flat, tmp_path):
    folders = sample.tiny(tmp_path / "f", layout="folders")
    data = ImageData.from_folder(folders, test="test", size=32, bs=8)
    learn = learner(data)
    preds = learn.get_preds("test")
    assert preds.targets is None and preds.losses is None and preds.paths == tuple(image_files(folders / "test"))
    again = learn.get_preds(image_files(folders / "test"))
    assert torch.allclose(again.probs, preds.probs, atol=1e-5)


def test_views_of_each_picture_are_blended_and_judged(flat, capsys, monkeypatch):
    import lessonkit.data.loader
    learn = learner(data_of(flat, augment=augmentations()), show=True)
    learn.fit_one_cycle(1, 1e-2)
    opened = []
    true_open = lessonkit.data.images.open_pixels
    monkeypatch.setattr(lessonkit.data.loader, "open_pixels", lambda source, *a: opened.append(source) or true_open(source, *a))
    capsys.readouterr()
    blend = learn.tta(3, beta=.4)
    assert sorted(opened) == sorted(learn.data.valid.paths)          # once for all views
    said, plain = capsys.readouterr().out, learn.get_preds()
    assert len(opened) == learn.data.valid.n and not torch.equal(plain.probs, blend.probs)
    assert said == f"test-time augmentation, 3 views: {compare_errors(plain, blend)}\n"
    assert torch.equal(learn.tta(3, beta=1.).probs, plain.probs)
    assert len(learn.tta(form="corners", which="train")) == learn.data.train.n
    with pytest.raises(ValueError, match="got 'trian'"): learn.tta(which="trian")


def test_a_calibrated_model_stays_so_when_it_is_saved(flat, tmp_path):
    data = data_of(flat)
    learn = learner(data, model_dir=tmp_path)
    learn.fit_one_cycle(1, 1e-4)
    before = learn.get_preds()
    found = learn.calibrate()
    assert found.temperature == fit_temperature(before) != 1
    assert torch.equal(learn.get_preds().pred, before.pred)
    assert torch.allclose(learn.get_preds().probs, apply_temperature(before, found.temperature).probs, atol=1e-5)
    learn.save("calibrated")
    assert torch.equal(learner(data, model_dir=tmp_path, seed=1).load("calibrated").get_preds().probs, learn.get_preds().probs)


def test_a_model_that_knows_nothing_is_not_calibrated_away(flat, capsys):
    learn = learner(data_of(flat), show=True)
    learn.fit_one_cycle(2, 1e-2)
    before = weights(learn)
    with pytest.warns(UserWarning, match="no better than saying nothing"): learn.calibrate()
    assert same(before, weights(learn)) and "left as it is" in capsys.readouterr().out


def test_heat_maps_are_of_the_pictures_that_were_asked_for(flat):
    learn = learner(data_of(flat))
    weights_before, state = weights(learn), [(p.requires_grad, p.grad) for p in learn.model.parameters()]
    maps = learn.heat_maps([4, 1])
    assert torch.equal(maps[1], learn.heat_maps([1])[0]) and torch.equal(maps[0], learn.heat_maps(torch.tensor([4]))[0])
    assert same(weights(learn), weights_before) and [(p.requires_grad, p.grad) for p in learn.model.parameters()] == state
    assert not torch.equal(learn.heat_maps([1], [0]), learn.heat_maps([1], [1]))


def test_a_folder_of_new_pictures_with_a_broken_one(flat, tmp_path):
    learn = learner(data_of(flat))
    sample.tiny(tmp_path / "new", n=9)
    (tmp_path / "new" / "broken.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 10 files.*broken.jpg"): preds = learn.predict_folder(tmp_path / "new")
    assert len(preds) == 9 and "broken.jpg" not in set(preds.to_frame().file)
    assert torch.allclose(preds.probs[3], learn.predict(preds.paths[3]).probs, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no folder"): learn.predict_folder(tmp_path / "nothing")


def test_pictures_are_drawn_from_kept_predictions(flat, monkeypatch):
    learn = learner(data_of(flat))
    learn.get_preds()
    monkeypatch.setattr("lessonkit.learner.predict_set", lambda *_: pytest.fail("the model was asked again"))
    drawn = [learn.plot_correct(), learn.plot_incorrect(), learn.plot_most_correct("circle"), learn.plot_most_incorrect("circle"), learn.plot_most_uncertain(), learn.plot_top_losses(4),
             learn.plot_cell("circle", "square"), learn.show_results(4), learn.plot_confusion_matrix(), learn.plot_reliability(), learn.plot_risk_coverage(), learn.plot_correct(crop=True)]
    assert len({fig.alt for fig in drawn[:-1]}) == len(drawn) - 1 and all(fig.image()[1] for fig in drawn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(flat, precision):
    learn = learner(data_of(flat, augment=augmentations()), precision=precision, device="cuda")
    learn.fit_one_cycle(3, 1e-2)
    assert next(learn.model.parameters()).is_cuda and learn.get_preds().probs.device.type == "cpu" and learn.history.fits[0].losses[-1] < 3
