"""The kit on a GPU: what it computes, what it leaves behind, and what it says when memory runs out.

    LESSONKIT_TEST_DEVICE=cpu pytest tests/test_gpu.py    # rehearses all but what is CUDA's own
"""
import _thread
import gc
import math
import os
import random
import signal
import threading
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # before CUDA is used: see `exact`

import lessonkit.train.engine as engine_module
from lessonkit.core.rng import seeded_rng
from lessonkit.data import sample
from lessonkit.data.augment import augmentations, to_inputs
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.data.mixing import Mix, mix_batch
from lessonkit.distill import (
    agreement, distill, export_student, new_student, packaged_teacher, read_photos, Recipe,
    with_stats,
)
from lessonkit.learner import Learner
from lessonkit.plot.batches import show_batch
from lessonkit.results.metrics import error_rate
from lessonkit.train.engine import Engine, is_out_of_memory, model_outputs, OutOfMemory
from lessonkit.train.features import body_features, feature_metadata
from lessonkit.train.loop import make_optimizer, Phase, train_steps

DEVICE = os.environ.get("LESSONKIT_TEST_DEVICE", "cuda")
CUDA = DEVICE.startswith("cuda")
PAT = r"^(.+)_\d+"
TINY = "timm:test_efficientnet"   # 0.4 M parameters
MIXED = dict(mixup=.4, cutmix=1., smoothing=.1)

gpu = pytest.mark.gpu
cuda_itself = pytest.mark.skipif(not CUDA, reason="about CUDA itself")


@pytest.fixture(scope="module")
def flat(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("tiny"), n=80, size=40)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    "Kept features and models of each test lie in folders of its own."
    monkeypatch.setenv("LESSONKIT_CACHE", str(tmp_path/"cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def exact(monkeypatch):
    "Operations that repeat to the bit, where there are any; warnings name the others."
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_tf32():
    "Convolutions in 32 bits: by default CUDA rounds what they multiply to 11 bits (TF32)."
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def data_of(flat, **options):
    usual = dict(size=32, bs=16, cache="memory", threads=4)
    return ImageData.from_name_re(flat, PAT, **usual | options)


def learner(data, arch="resnet18", device=DEVICE, precision="fp32", **options):
    usual = dict(weights=None, show=False, cache=False)
    return Learner(data, arch, device=device, precision=precision, **usual | options)


def packaged(data, **options): return learner(data, None, **dict(weights="pretrained") | options)


def weights(learn): return {k: v.cpu().clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def farthest(a, b): return max((v.double() - b[k].double()).abs().max() for k, v in a.items())


def memory():
    gc.collect()
    return torch.cuda.memory_allocated() if CUDA else 0


def gpu_random(): return torch.cuda.get_rng_state() if CUDA else torch.get_rng_state()


def at_batch(learn, number, act):
    "Call `act()` in the loss of this batch, counted from 1."
    original, count = learn.trainer.losses, 0
    def losses(*args):
        nonlocal count
        count += 1
        if count == number: act()
        return original(*args)
    learn.trainer.losses = losses


def press(): signal.raise_signal(signal.SIGINT)


# ---- lesson 1

@gpu
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_lesson_1(precision, tmp_path):
    path = sample.pets(tmp_path/"pets", n=96, size=100, show=False)
    data = ImageData.from_name_re(path, r"^(.+)_\d+\.\w+$", size=96)
    learn = Learner(data, device=DEVICE, precision=precision, show=False)
    learn.fit_one_cycle(3, 1e-2)
    knows_nothing = math.log(12)
    assert max(learn.history.fits[0].losses) < knows_nothing / 4   # its head was solved before
    assert next(learn.model.parameters()).device.type == torch.device(DEVICE).type

    preds = learn.get_preds()
    assert preds.probs.device.type == "cpu"
    assert preds.probs.isfinite().all()
    assert torch.allclose(preds.probs.sum(1), torch.ones(len(preds)), atol=1e-4)
    top, positions = learn.top_losses(5)
    assert torch.equal(preds.losses[positions], top)
    assert int(np.asarray(learn.confusion_matrix()).sum()) == len(preds)
    assert isinstance(learn.most_confused(), list)
    assert len(learn.report()) > 0
    answer = learn.predict(data.valid.paths[0])
    assert torch.allclose(answer.probs, preds.probs[0], atol=.02)
    assert len(learn.summary()) > 2
    figures = [
        show_batch(data, 4), learn.show_results(), learn.plot_top_losses(4, heatmap=True),
        learn.plot_confusion_matrix(), learn.plot_loss(), learn.plot_metrics(),
        learn.plot_schedule(), learn.plot_reliability()]
    for figure in figures: assert len(figure.image()[1]) > 1000

    tuned = Learner(data, device=DEVICE, precision=precision, show=False)
    tuned.fine_tune(2, freeze_epochs=1)
    losses = [v for fit in tuned.history.fits for v in fit.losses]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < knows_nothing / 4


@gpu
@pytest.mark.parametrize("there, here", [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_model_that_is_saved_there_predicts_the_same_here(there, here, flat, no_tf32):
    data = data_of(flat, size=64)
    first = packaged(data, device=there)
    first.fit_one_cycle(2, 1e-2)
    first.unfreeze()
    first.fit(1, 1e-4)
    first.save("pets")
    second = packaged(data, device=here).load("pets")
    assert same(weights(first), weights(second))
    assert torch.allclose(first.get_preds().probs, second.get_preds().probs, atol=1e-3)
    assert second.engine.device.type == here.partition(":")[0]
    second.fit(1, 1e-4)
    assert all(map(math.isfinite, second.history.fits[-1].losses))


# ---- precision

@gpu
def test_fp32_is_what_the_cpu_computes(flat, no_tf32):
    data = data_of(flat, size=64)
    still = dict(head="mlp", ps=0.)  # dropout differs
    here, there = packaged(data, device="cpu", **still), packaged(data, **still)
    logits = [model_outputs(n.model, data.valid, n.engine) for n in (here, there)]
    assert torch.allclose(*logits, atol=2e-3, rtol=1e-3)
    losses = []
    for learn in here, there:
        learn.unfreeze()
        learn.fit(2, 1e-4)
        losses.append(torch.tensor(learn.history.fits[0].losses))
    assert torch.allclose(losses[0][:2], losses[1][:2], rtol=.01, atol=.01)
    assert torch.allclose(*losses, rtol=.3, atol=.1)


@gpu
@pytest.mark.parametrize("precision, most", [("fp32", .02), ("fp16", .04), ("bf16", .2)])
def test_precisions_agree(precision, most, flat):
    "By default, also in fp32, convolutions on a GPU are rounded (TF32)."
    data = data_of(flat, size=64)
    plain = packaged(data, device="cpu")
    plain.fit_one_cycle(3, 1e-2)
    plain.save("plain")
    learn = packaged(data, precision=precision).load("plain")
    if CUDA: assert learn.engine.precision == precision
    difference = (learn.get_preds().probs - plain.get_preds().probs).abs()
    assert difference.max() < most
    assert difference.mean() < most / 5


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(precision, flat):
    learn = learner(data_of(flat, augment=augmentations()), precision=precision)
    learn.fit_one_cycle(12, 3e-3, clip=1., accumulate=2)
    assert next(learn.model.parameters()).dtype == torch.float32
    losses = learn.history.fits[0].losses
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-4:]) < .8 * np.mean(losses[:4]), losses


class Overflows(Engine):
    "Its loss scaler begins much too high, so that gradients overflow in the first steps."
    def for_training(self, model):
        engine = Overflows(self.device, "fp16" if CUDA else "fp32")
        scale = 2. ** (28 if CUDA else 126)
        engine.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale)
        return engine


@gpu
@pytest.mark.parametrize("clip", [None, 1.])
def test_a_step_that_overflows_moves_nothing(clip, flat):
    learn = learner(data_of(flat, bs=8), TINY)
    engine = Overflows(DEVICE, "fp32").for_training(learn.model)
    model, phase = learn.model, Phase(5, (1e-3,))
    optimizer = make_optimizer([list(model.parameters())])
    names = dict(model.named_parameters())
    def now(): return {name: p.detach().cpu().clone() for name, p in names.items()}
    def taken():
        counts = {int(s["step"]) for s in optimizer.state.values() if "step" in s}
        return counts.pop() if counts else 0
    before, scale, moved = now(), engine.scaler.get_scale(), 0
    steps = train_steps(model, learn.data.train, phase, optimizer, learn.trainer.losses, engine,
                        clip=clip)
    skipped = 0
    for step in steps:
        after, new_scale = now(), engine.scaler.get_scale()
        assert same(before, after) == step.skipped, step.index
        assert new_scale == (scale / 2 if step.skipped else scale)
        moved, skipped = moved + (not step.skipped), skipped + step.skipped
        assert taken() == moved
        before, scale = after, new_scale
    assert skipped > 1
    assert moved > 1


@gpu
def test_skipped_steps_are_recorded_and_resumed(flat, exact, tmp_path):
    data = data_of(flat, bs=8)
    def new():
        learn = learner(data, TINY)
        learn.trainer.engine = Overflows(DEVICE, "fp32")
        return learn
    plain, cut = new(), new()
    plain.fit_one_cycle(5, 1e-2)
    assert plain.history.fits[0].skipped > 1
    at_batch(cut, 12, press)
    cut.fit_one_cycle(5, 1e-2, checkpoint="run")
    cut.save("run")
    later = new().load("run")
    later.resume()
    assert later.history.fits[0].losses == plain.history.fits[0].losses
    assert same(weights(plain), weights(later))


# ---- channels last

@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_images_and_weights_are_channels_last(precision, flat, no_tf32):
    learn = learner(data_of(flat), precision=precision)
    seen = []
    def look(layer, inputs):
        tensors = inputs[0], layer.weight
        seen.append(all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors))
    convolutions = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)]
    hook = convolutions[1].register_forward_pre_hook(look)
    first = convolutions[0].register_forward_pre_hook(look)
    learn.fit(1, 1e-3)
    outputs = model_outputs(learn.model, learn.data.valid, learn.engine).float()
    hook.remove()
    first.remove()
    assert len(seen) > 4
    assert all(seen)
    learn.model.to(memory_format=torch.contiguous_format)
    other = model_outputs(learn.model, learn.data.valid, learn.engine).float()
    assert torch.allclose(outputs, other, atol=1e-3 if precision == "fp32" else .1)


# ---- the same bits

def trained(data, precision, kind, name=None, cut=None):
    "A learner after a fit; `cut`: Ctrl-C in this batch, then a new learner goes on from the file."
    make = packaged if kind == "features" else learner
    options = MIXED if kind == "augmented" else {}
    learn = make(data, precision=precision, **options)
    if cut: at_batch(learn, cut, press)
    learn.fit_one_cycle(3, 1e-2, keep_best="valid_loss", checkpoint=name)
    if not cut: return learn
    assert "interrupted after step" in learn.history.fits[0].notes[-1]
    learn.save(name)
    later = make(data, precision=precision, **options).load(name)
    later.resume()
    return later


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["augmented", "features"])
def test_resumed_to_the_same_bits(kind, precision, flat, exact):
    data = data_of(flat, augment=augmentations() if kind == "augmented" else None)
    plain = trained(data, precision, kind)
    again = trained(data, precision, kind)
    assert plain.history.fits[0].losses == again.history.fits[0].losses
    assert same(weights(plain), weights(again))
    resumed = trained(data, precision, kind, "run", cut=7)
    assert resumed.history.fits[0].losses == plain.history.fits[0].losses
    assert same(weights(plain), weights(resumed))


@gpu
@pytest.mark.parametrize("arch", ["resnet18", TINY, None])
@pytest.mark.parametrize("way", ["fit", "lr_find", "heat_maps", "tta", "calibrate"])
def test_strict_settings_allow(way, arch, flat, exact):
    "`seed_everything(deterministic=True)` refuses operations that don't repeat: are there any?"
    options = dict(weights="pretrained") if arch is None else {}
    learn = learner(data_of(flat, augment=augmentations()), arch, **options)
    learn.unfreeze()
    torch.use_deterministic_algorithms(True)
    use(learn, way)


@gpu
@pytest.mark.parametrize("kind", ["augmented", "features"])
def test_without_settings_two_runs_are_close(kind, flat):
    data = data_of(flat, augment=augmentations() if kind == "augmented" else None)
    first, second = (trained(data, "fp32", kind) for _ in range(2))
    a, b = (torch.tensor(learn.history.fits[0].losses) for learn in (first, second))
    apart = farthest(weights(first), weights(second))
    warnings.warn(f"{kind}: without deterministic settings, two runs on {DEVICE}: losses differ "
                  f"by {(a - b).abs().max():.2g} at most, weights by {apart:.2g}")
    assert torch.allclose(a[:2], b[:2], atol=.01)


# ---- no traces

@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_lr_find_leaves_no_trace(precision, flat, exact):
    data = data_of(flat, augment=augmentations())
    fits = []
    for looks in (False, True):
        learn = learner(data, precision=precision)
        learn.fit(1, 1e-3)
        before, allocated = weights(learn), memory()
        state = [gpu_random(), torch.get_rng_state(), random.getstate()]
        if looks:
            found = learn.lr_find(num_it=30)
            assert len(found.rates) > 5
        now = [gpu_random(), torch.get_rng_state(), random.getstate()]
        assert torch.equal(now[0], state[0])
        assert torch.equal(now[1], state[1])
        assert now[2] == state[2]
        assert same(before, weights(learn))
        assert memory() <= allocated + 2**24   # weights take 45 MB
        assert all(p.grad is None for p in learn.model.parameters())
        learn.fit(1, 1e-3)
        fits.append((learn.history.fits[1].losses, weights(learn)))
    assert fits[0][0] == fits[1][0]
    assert same(fits[0][1], fits[1][1])


@pytest.mark.parametrize("device", ["cpu", pytest.param(DEVICE, marks=gpu)])
def test_other_generators_are_left_alone(device, flat):
    "Seeding the CPU's generator with `torch.manual_seed` would seed those of all GPUs."
    before, here = gpu_random() if torch.cuda.is_available() else None, torch.get_rng_state()
    learn = learner(data_of(flat), device=device)
    learn.fit(1, 1e-3)
    new_student("resnet18", 5)
    assert torch.equal(torch.get_rng_state(), here)
    if before is not None: assert torch.equal(gpu_random(), before)


# ---- predictions of all kinds

@pytest.fixture(scope="module")
def trained_file(flat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    learn = learner(data_of(flat, augment=augmentations()), device="cpu", model_dir=folder)
    learn.fit_one_cycle(3, 1e-2)
    return learn.save()


@pytest.fixture
def pair(flat, trained_file, no_tf32):
    "A learner on the CPU and one on the GPU, with the same weights, trained a little."
    data = data_of(flat, augment=augmentations())
    return tuple(learner(data, device=device).load(trained_file) for device in ("cpu", DEVICE))


def assert_near(pair, compute, atol=1e-3):
    here, there = map(compute, pair)
    assert there.device.type == "cpu"
    assert torch.allclose(here, there, atol=atol), (here - there).abs().max()


@gpu
@pytest.mark.parametrize("which", ["valid", "train"])
def test_predictions_are_the_cpus(which, pair, flat):
    assert_near(pair, lambda learn: learn.get_preds(which).probs)
    assert_near(pair, lambda learn: learn.get_preds(sorted(flat.iterdir())[:7]).probs)
    assert_near(pair, lambda learn: learn.predict_folder(flat).probs)
    assert_near(pair, lambda learn: learn.predict(min(flat.iterdir())).probs)
    assert_near(pair, lambda learn: torch.tensor(learn.validate()["valid_loss"]))


@gpu
@pytest.mark.parametrize("options", [dict(), dict(n=2, beta=0.), dict(form="corners")])
def test_test_time_augmentation_is_the_cpus(options, pair):
    assert_near(pair, lambda learn: learn.tta(**options).probs)


@gpu
@pytest.mark.parametrize("target", [None, [0, 1, 2], torch.tensor([0, 1, 2])])
def test_heat_maps_are_the_cpus(target, pair):
    assert_near(pair, lambda learn: learn.heat_maps([0, 3, 5], target), atol=.02)


@gpu
def test_calibration_is_the_cpus(pair):
    here, there = (learn.calibrate().temperature for learn in pair)
    assert there == pytest.approx(here, rel=.01)
    assert_near(pair, lambda learn: learn.get_preds().probs, 5e-3)


@gpu
def test_averaged_models_and_snapshots(flat):
    learn = learner(data_of(flat))
    learn.fit(2, 1e-3, cycle_len=1, snapshots="cycle")
    before = weights(learn)
    preds = learn.average("cycle")
    assert preds.probs.isfinite().all()
    assert same(before, weights(learn))


@gpu
@pytest.mark.parametrize("kind", ["multi", "number", "weighted", "sgd"])
def test_other_tasks_and_settings(kind, flat):
    files = sorted(flat.iterdir())
    known = [f.name.partition("_")[0] for f in files]
    labels = dict(multi=[[k, "shape"] for k in known], number=[float(len(k)) for k in known])
    data = ImageData.from_lists(flat, files, labels.get(kind, known), size=32, bs=16)
    options = dict(weighted=dict(class_weights="balanced", mixup=.4), sgd=dict(optimizer="sgd"),
                   multi=dict(cutmix=1.))
    learn = learner(data, precision="auto", **options.get(kind, {}))
    learn.fit(1, 1e-3)
    learn.fit_flat_cos(2, 1e-3, keep_best="valid_loss")
    assert learn.get_preds().probs.isfinite().all()
    assert learn.tta(form="corners").probs.isfinite().all()
    learn.set_data(data.resized(48))
    learn.fit(1, 1e-3)
    assert all(math.isfinite(v) for fit in learn.history.fits for v in fit.losses)


@gpu
@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=.4, smoothing=.1), Mix(cutmix=1.)])
@pytest.mark.parametrize("fit", ["crop", "squish", "pad"])
def test_inputs_are_the_cpus(mix, fit, flat):
    data = data_of(flat, augment=augmentations(flip_vert=True, min_scale=.3), fit=fit)
    batch = next(iter(data.train.batches(0)))
    def made(device):
        x = to_inputs(batch, data.train, device, seeded_rng(1, "augment"))
        return mix_batch(x, batch.y.to(device), mix, data.task, seeded_rng(1, "mix"))
    (x, y), (x_there, y_there) = made("cpu"), made(DEVICE)
    assert x_there.device.type == torch.device(DEVICE).type
    assert y_there.device.type == torch.device(DEVICE).type
    assert torch.allclose(x, x_there.cpu(), atol=2e-3)
    assert torch.allclose(y, y_there.cpu(), atol=1e-6)


# ---- features

@gpu
@pytest.mark.parametrize("precision, atol", [("fp32", 2e-3), ("bf16", .1), ("fp16", .02)])
def test_features_are_what_the_body_puts_out(precision, atol, flat, no_tf32):
    data = data_of(flat, size=64)
    kept = packaged(data, precision=precision, cache=True)
    kept.fit_one_cycle(2, 1e-2)
    assert "features" in str(kept.history.fits[0].notes)
    features = kept.trainer.features.data
    assert features.train.features.device.type == "cpu"
    again = body_features(kept.model, data.valid, kept.engine)
    assert torch.equal(features.valid.features, again)
    plain = packaged(data, device="cpu")
    if CUDA or precision == "fp32":
        own = body_features(plain.model, data.valid, plain.engine)
        assert (again.float() - own).norm() / own.norm() < atol
    on_images = model_outputs(kept.model, data.valid, kept.engine).float().softmax(1)
    assert torch.allclose(kept.get_preds().probs, on_images, atol=atol)
    found = packaged(data, precision=precision, cache=True)
    calls = []
    hook = found.model.body.register_forward_hook(lambda *_: calls.append(1))
    found.fit_one_cycle(2, 1e-2)
    hook.remove()
    n_noise = 1   # what the body makes of noise is part of what features are known by
    assert len(calls) <= 2 * n_noise


@gpu
@cuda_itself
def test_features_know_device_and_precision(flat):
    data, known = data_of(flat), []
    for device, precision in (("cpu", "fp32"), (DEVICE, "fp32"), (DEVICE, "bf16")):
        learn = packaged(data, device=device, precision=precision)
        known.append(feature_metadata(learn.model, data, learn.engine))
    assert [k["device"] for k in known] == ["cpu", "cuda", "cuda"]
    assert [k["dtype"] for k in known] == ["torch.float32", "torch.float32", "torch.bfloat16"]
    assert known[0]["weights"] == known[1]["weights"] == known[2]["weights"]
    assert known[1]["processor"] == torch.cuda.get_device_name()
    again = packaged(data, precision="fp32")
    assert feature_metadata(again.model, data, again.engine) == known[1]


# ---- Ctrl-C

@gpu
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_ctrl_c_ends_a_fit_after_its_step(batch, flat):
    learn = learner(data_of(flat), precision="auto")
    at_batch(learn, batch, press)
    learn.fit(3, 1e-3)
    assert len(learn.history.fits[0].losses) == batch
    assert f"interrupted after step {batch}" in learn.history.fits[0].notes[-1]
    assert learn.get_preds().probs.isfinite().all()
    learn.resume()
    assert len(learn.history.fits[0].losses) == 3 * len(learn.data.train)
    learn.fit(1, 1e-3)


@gpu
def test_a_second_ctrl_c_ends_it_at_once(flat):
    learn = learner(data_of(flat), precision="auto")
    def twice():
        press()
        press()
    at_batch(learn, 5, twice)
    with pytest.raises(KeyboardInterrupt): learn.fit(3, 1e-3)
    assert len(learn.history.fits[0].losses) == 4
    with pytest.raises(ValueError, match="broken off in the middle"): learn.resume()
    assert torch.is_grad_enabled()
    assert learn.get_preds().probs.isfinite().all()
    learn.fit(1, 1e-3)
    assert math.isfinite(learn.history.fits[1].losses[-1])


@gpu
def test_ctrl_c_at_any_time(flat):
    learn = learner(data_of(flat), precision="auto")
    learn.fit(1, 1e-3)
    timer = threading.Timer(.3, _thread.interrupt_main)
    timer.start()
    learn.fit(200, 1e-3)
    timer.join()
    record = learn.history.fits[1]
    assert 0 < len(record.losses) < 200 * len(learn.data.train)
    assert "interrupted" in record.notes[-1]
    assert learn.lr_find(num_it=10).rates
    assert learn.get_preds().probs.isfinite().all()


# ---- memory

class TooSmall:
    "Inside, a model's body has no memory for more than `most` images."
    def __init__(self, learn, most, error=torch.OutOfMemoryError):
        self.body, self.most, self.error = learn.model.body, most, error

    def __enter__(self): self.hook = self.body.register_forward_hook(self.check)

    def __exit__(self, *_): self.hook.remove()

    def check(self, body, inputs, output):
        if len(inputs[0]) <= self.most: return
        text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 1.00 GiB."
        raise self.error(text)


def use(learn, way):
    "Do something that needs memory."
    ways = dict(
        fit=lambda: learn.fit(2, 1e-3), one_cycle=lambda: learn.fit_one_cycle(2, accumulate=2),
        lr_find=lambda: learn.lr_find(num_it=5), get_preds=learn.get_preds, tta=learn.tta,
        heat_maps=lambda: learn.heat_maps(range(12)), calibrate=learn.calibrate,
        validate=learn.validate)
    return ways[way]()


WAYS = ["fit", "one_cycle", "lr_find", "get_preds", "tta", "heat_maps", "calibrate", "validate"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_advice_when_memory_runs_out(way, error, flat):
    data = data_of(flat, augment=augmentations())
    learn = learner(data, TINY, device="cpu")
    learn.fit(1, 1e-3)
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    learn.set_data(data.resized(48))
    with TooSmall(learn, 8, error), pytest.raises(OutOfMemory) as caught: use(learn, way)
    text = str(caught.value)
    for part in ("'cpu'", "48 pixels", "Tried to allocate 2.00 GiB"): assert part in text
    assert f"Take bs={6 if way == 'heat_maps' else 8} " in text
    assert "total of 1.00 GiB" not in text
    if way in ("fit", "one_cycle"): assert "accumulate=2" in text
    assert is_out_of_memory(caught.value)
    assert isinstance(caught.value.__cause__, error)
    assert all(p.grad is None for p in learn.model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in learn.model.named_parameters())
    small = data_of(flat, bs=8, augment=augmentations())
    learn.set_data(small)
    with TooSmall(learn, 8): use(learn, way)
    learn.fit(1, 1e-3)
    assert len(learn.history.fits[-1].losses) == len(small.train)


@gpu
@pytest.mark.parametrize("way", WAYS)
def test_memory_that_runs_out_keeps_no_tensors(way, flat, monkeypatch):
    "A notebook keeps the last error, and a traceback would keep the tensors of its functions."
    learn, outputs, left = learner(data_of(flat, augment=augmentations()), TINY), [], []
    def watch(body, inputs, output): outputs.append(weakref.ref(output))
    def count_left(device): left.append(sum(ref() is not None for ref in outputs))
    monkeypatch.setattr(engine_module, "free_cached_memory", count_left)
    hook = learn.model.body.register_forward_hook(watch)
    with TooSmall(learn, 8), pytest.raises(OutOfMemory) as caught: use(learn, way)
    hook.remove()
    assert outputs
    assert left == [0]
    assert caught.value.__cause__ is not None


def test_a_fit_that_ran_out_of_memory_is_not_resumed_exactly(flat):
    learn = learner(data_of(flat), device="cpu")
    at_batch(learn, 3, lambda: TooSmall.check(
        type("Small", (), dict(most=0, error=torch.OutOfMemoryError)), None, [[1]], None))
    with pytest.raises(OutOfMemory): learn.fit(2, 1e-3)
    assert len(learn.history.fits[0].losses) == 2
    with pytest.raises(ValueError, match="broken off in the middle"): learn.resume()
    learn.resume(exact=False)
    assert len(learn.history.fits[0].losses) == 2 * len(learn.data.train)


def test_features_that_need_too_much_memory(flat):
    learn = packaged(data_of(flat), device="cpu")
    with TooSmall(learn, 8), pytest.raises(OutOfMemory, match="bs=8 "): learn.fit(1, 1e-3)
    learn.set_data(data_of(flat, bs=8))
    with TooSmall(learn, 8): learn.fit(1, 1e-3)


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes")])
def test_other_errors_are_as_they_were(error, flat):
    learn = learner(data_of(flat), device="cpu")
    def fail(): raise error
    at_batch(learn, 2, fail)
    with pytest.raises(type(error)) as caught: learn.fit(1, 1e-3)
    assert caught.value is error


@pytest.fixture
def little_memory():
    "A function that leaves so many bytes of the GPU to this process."
    total = torch.cuda.get_device_properties(0).total_memory
    def limit(left):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + left) / total)
    yield limit
    torch.cuda.set_per_process_memory_fraction(1.)
    torch.cuda.empty_cache()


@gpu
@cuda_itself
@pytest.mark.parametrize("way", ["fit", "lr_find"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_that_needs_too_much_memory(precision, way, flat, little_memory):
    learn = learner(data_of(flat, size=256, bs=64), precision=precision)
    small = data_of(flat, size=64, bs=8)
    learn.set_data(small)
    learn.fit(1, 1e-3)
    learn.set_data(data_of(flat, size=320, bs=64))
    before, allocated = weights(learn), memory()
    little_memory(500 * 2**20)
    with pytest.raises(OutOfMemory, match="bs=32 .*accumulate=2" if way == "fit" else "bs=32 "):
        use(learn, way)
    assert memory() < allocated + 150 * 2**20   # the optimizer's averages
    assert all(p.grad is None for p in learn.model.parameters())
    after = weights(learn)
    names = [name for name, _ in learn.model.named_parameters()]
    assert all(torch.equal(before[name], after[name]) for name in names)
    learn.set_data(small)
    learn.fit(1, 1e-3)
    assert math.isfinite(learn.history.fits[-1].losses[-1])
    assert learn.get_preds().probs.isfinite().all()


@gpu
@cuda_itself
@pytest.mark.parametrize("way", ["get_preds", "heat_maps"])
def test_predictions_that_need_too_much_memory(way, flat, little_memory):
    large = data_of(flat, size=512, bs=64, valid_pct=.6)
    learn = learner(large)
    allocated = memory()
    little_memory(150 * 2**20)
    with pytest.raises(OutOfMemory, match="48 at 512 pixels|12 at 512 pixels"): use(learn, way)
    assert memory() <= allocated + 2**26
    learn.set_data(data_of(flat, size=64, bs=2))
    use(learn, way)
    little_memory(20 * 2**30)
    learn.set_data(large)
    use(learn, way)


# ---- distillation

@gpu
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_distillation(precision, flat, exact, tmp_path):
    photos = read_photos(flat, side=48)
    recipe = Recipe(epochs=2, size=32, bs=16, features=1., lr=1e-3, average=.9)  # 10 steps
    engine = Engine(DEVICE, precision) if CUDA else Engine(DEVICE, "fp32")
    def student():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
        return with_stats(net, imagenet_stats)
    teacher = packaged_teacher()
    def run(**options): return distill(teacher, student(), photos, recipe, engine, **options)
    plain, record = run()
    assert len(record.losses) == 10
    assert all(map(math.isfinite, record.losses))
    def stop(step):
        if step.index == 3: press()
    _, cut = run(checkpoint=tmp_path/"run.pt", after_step=stop)
    assert len(cut.losses) == 4
    resumed, whole = run(checkpoint=tmp_path/"run.pt")
    assert whole.losses == record.losses
    assert same(plain.state_dict(), resumed.state_dict())
    assert len(export_student(tmp_path/"student.safetensors", plain, {})) == 64
    assert math.isfinite(agreement(teacher, plain, photos, 32, engine).divergence)


@gpu
def test_photos_on_the_device(flat):
    photos = read_photos(flat, side=48)
    recipe = Recipe(epochs=1, size=32, bs=16)
    there = replace(photos, pixels=photos.pixels.to(DEVICE))
    index = torch.arange(5)
    crops = [recipe.crops(p, d).crop(index, 7).x for p, d in ((photos, "cpu"), (there, DEVICE))]
    assert torch.allclose(crops[0], crops[1].cpu(), atol=2e-3)


# ---- threads

@gpu
def test_two_learners_in_two_threads(flat, exact):
    data = data_of(flat, augment=augmentations())
    def work(seed):
        learn = learner(data, precision="auto", seed=seed, metrics=error_rate)
        learn.fit(2, 1e-3)
        return weights(learn), learn.get_preds().probs
    alone = [work(seed) for seed in (1, 2)]
    together, failed = {}, []
    def in_thread(seed):
        try: together[seed] = work(seed)
        except Exception as e: failed.append(e)
    threads = [threading.Thread(target=in_thread, args=(seed,)) for seed in (1, 2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failed
    for seed, (own_weights, own_probs) in zip((1, 2), alone):
        assert same(together[seed][0], own_weights)
        assert torch.equal(together[seed][1], own_probs)
