"""Distillation: what both networks see, the loss, runs that are resumed, and the file."""
import hashlib
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from lessonkit.core.files import load_tensors
from lessonkit.data import sample
from lessonkit.data.augment import Augment
from lessonkit.data.image_data import ImageData, imagenet_stats, Stats
from lessonkit.data.mixing import Mix
from lessonkit.distill import (
    agreement, Crops, distill, distill_losses, divergence, export_student, linear_probe,
    logits_and_features, new_student, packaged_teacher, read_photos, read_run, Recipe,
    TeacherStudent, weight_average, with_stats,
)
from lessonkit.learner import Learner
from lessonkit.model.create import create_model
from lessonkit.results.intervals import wilson_interval
from lessonkit.train.engine import Engine

ROOT = Path(__file__).resolve().parents[1]
MAKE = ROOT / "data/resnet18_distilled/make.py"
ENGINE = Engine("cpu", "fp32")
RECIPE = Recipe(epochs=3, size=24, bs=16, lr=5e-3, average=.9)  # 9 steps with 48 photographs


def net(width, seed, classes=5, sure=1.):
    "A tiny network with batch normalization; `sure` makes its answers bolder."
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    with torch.no_grad(): head[-1].weight.mul_(sure)
    return with_stats(nn.Sequential(*body, *head), imagenet_stats)


def teacher(): return net(12, 0, sure=40.)
def student(): return net(8, 1)
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def photos(folder): return read_photos(folder, side=30)


def run(photos, recipe=RECIPE, checkpoint=None, **options):
    return distill(teacher(), student(), photos, recipe, ENGINE, checkpoint, **options)


# What both see

@pytest.mark.parametrize("features", [0., 1.])
def test_both_see_the_very_same_crops(photos, features):
    recipe = replace(RECIPE, features=features)
    nets, seen = dict(teacher=teacher(), student=student()), dict(teacher=[], student=[])
    def watch(name): return lambda net, inputs: seen[name].append(inputs[0].clone())
    for name, n in nets.items(): n.register_forward_pre_hook(watch(name))
    distill(**nets, photos=photos, recipe=recipe, engine=ENGINE)
    assert len(seen["teacher"]) == len(seen["student"]) == 9
    for a, b in zip(seen["teacher"], seen["student"]):
        assert torch.equal(a, b)
        assert a.shape == (16, 3, 24, 24)
        assert a.min() >= 0
        assert a.max() <= 1
    assert len({v.sum().item() for v in seen["teacher"]}) == 9  # each step has crops of its own


def test_crops_without_augmentation_are_center_crops_and_not_mixed(photos):
    x = next(Crops.of(photos, 24, 48).batches(0)).x
    # from 30 to 24 pixels, point for point
    shrunk = interpolate(photos.pixels.float() / 255, 24, mode="bilinear")
    assert torch.allclose(x, shrunk, atol=1e-5)
    mixing = Crops.of(photos, 24, 48, mix=Mix(mixup=1.))
    assert torch.equal(next(mixing.batches(0)).x, x)


def test_each_mixed_crop_lies_between_its_own_image_and_another_one(photos):
    still = Augment(flip=False, max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0)
    x = next(Crops.of(photos, 24, 48).batches(0)).x.flatten(1)
    mixed = next(Crops.of(photos, 24, 48, augment=still, mix=Mix(mixup=1.)).batches(0)).x.flatten(1)
    assert (mixed - x).norm(dim=1).max() > 1
    for m, own in zip(mixed, x):
        d = x - own
        share = ((m - own) * d).sum(1) / d.square().sum(1).clamp(min=1e-9)
        rest = (own + share[:, None] * d - m).norm(dim=1)
        assert rest.min() < 1e-3
        assert -1e-4 <= share[rest.argmin()] <= .5 + 1e-4  # nearer to its own


def test_crops_are_the_same_whether_or_not_a_thread_makes_them(photos):
    crops = RECIPE.crops(photos)
    now, ahead = (list(crops.batches(1, 0, 2, ahead=k)) for k in (0, 2))
    assert len(now) == 3
    for a, b in zip(now, ahead, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.index, b.index)
    assert [b.x.sum() for b in crops.batches(1, 0, 2, start=2)] == [now[2].x.sum()]


def test_closing_the_batches_ends_their_thread(photos):
    threads, batches = threading.active_count(), RECIPE.crops(photos).batches(1, 0, 2, ahead=2)
    next(batches)
    batches.close()
    assert threading.active_count() == threads


def test_the_teacher_does_not_change(photos):
    t = teacher().train()
    before = {k: v.clone() for k, v in t.state_dict().items()}
    distill(t, student(), photos, RECIPE, ENGINE)
    assert same(before, t.state_dict())
    assert not t.training
    assert not any(p.requires_grad for p in t.parameters())
    assert [p.grad for p in t.parameters() if p.grad is not None] == []


# The loss

@pytest.mark.parametrize("temperature", [.5, 1., 4.])
def test_loss_by_hand(temperature):
    rng = np.random.default_rng(0)
    s, t = rng.normal(0, 3, (2, 7, 11))

    def soft(z):
        e = np.exp(z / temperature)
        return e / e.sum(1, keepdims=True)

    p, q = soft(t), soft(s)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(1)
    found = divergence(torch.tensor(s), torch.tensor(t), temperature).numpy()
    assert found == pytest.approx(by_hand, rel=1e-5)
    other_direction = temperature**2 * (q * np.log(q / p)).sum(1)
    assert not np.allclose(by_hand, other_direction)  # so the test would notice


def test_gradient_does_not_fade_with_the_temperature():
    """At high temperatures T² KL tends to half the squared distance of the centered logits over c.

    So its gradient tends to (s - t) / c (Hinton et al. 2015, section 2.1).
    """
    torch.manual_seed(0)
    s, t = (z - z.mean(1, keepdim=True) for z in torch.randn(2, 3, 10, dtype=torch.float64))
    s.requires_grad_()
    divergence(s, t, 200.).sum().backward()
    assert torch.allclose(s.grad, (s - t).detach() / 10, atol=1e-2 * s.grad.abs().max().item())


def test_loss_of_a_step_is_the_mean_over_its_crops(photos):
    t, s = teacher(), student()
    batch = next(RECIPE.crops(photos).batches(42, 0, 0))
    answer = s.train()(batch.x)
    expected = divergence(answer, t.eval()(batch.x)).mean().item()
    assert run(photos)[1].losses[0] == pytest.approx(expected, rel=1e-5)


def test_features_are_compared_by_angle_after_the_bridge(photos):
    torch.manual_seed(2)
    pair = TeacherStudent(teacher(), student(), features=True).train()
    x = next(RECIPE.crops(photos).batches(0)).x
    answer, known, own, theirs = pair(x)
    with torch.no_grad(): pooled = logits_and_features(pair.teacher, x)[1]
    standardized = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(theirs, standardized, atol=1e-4)
    cosine = (own * theirs).sum(1) / own.norm(dim=1) / theirs.norm(dim=1)
    expected = divergence(answer, known) + .3 * (1 - cosine)
    losses = distill_losses((answer, known, own, theirs), features=.3)
    assert torch.allclose(losses, expected, atol=1e-5)


def test_the_bridge_is_trained_and_the_teacher_is_not():
    pair = TeacherStudent(teacher(), student(), features=True)
    assert pair.bridge.weight.shape == (12, 8)
    assert "bridge.weight" in pair.trained_state()
    assert not [k for k in pair.trained_state() if k.startswith("teacher")]


def test_student_gets_closer_to_its_teacher(photos):
    training, held_out = photos.held_out(.25)
    first = agreement(teacher(), student(), held_out, 24, ENGINE)
    recipe = replace(RECIPE, epochs=25, lr=2e-2)
    average, record = distill(teacher(), student(), training, recipe, ENGINE)
    then = agreement(teacher(), average, held_out, 24, ENGINE)
    assert then.divergence < first.divergence / 2
    assert then.same.k > first.same.k
    assert np.mean(record.losses[-5:]) < np.mean(record.losses[:5]) / 2


# Runs that break off

class PulledPlug(Exception): pass


def break_off(photos, recipe, checkpoint, at):
    "A run in which somebody pulls the plug in the step `at`, before it is saved."
    def pull(step):
        if step.index == at: raise PulledPlug
    with pytest.raises(PulledPlug): run(photos, recipe, checkpoint, every=0, after_step=pull)


@pytest.mark.parametrize("recipe, cuts", [
    pytest.param(RECIPE, [0], id="before anything is saved"),
    pytest.param(RECIPE, [1, 4, 8], id="three times"),
    pytest.param(RECIPE, [3], id="between epochs"),
    pytest.param(replace(RECIPE, features=.5, temperature=2.), [5], id="with a bridge"),
])
def test_a_resumed_run_equals_an_undisturbed_one(photos, tmp_path, recipe, cuts):
    first = student()
    undisturbed, record = distill(teacher(), first, photos, recipe, ENGINE)
    for at in cuts: break_off(photos, recipe, tmp_path / "run", at)
    second = student()
    resumed, again = distill(teacher(), second, photos, recipe, ENGINE, tmp_path / "run")
    assert asdict(again) == asdict(record)
    assert len(record.losses) == 9
    assert same(resumed.state_dict(), undisturbed.state_dict())
    assert same(second.state_dict(), first.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_ctrl_c_saves(photos, tmp_path):
    saved = []
    def press(step):
        if step.index == 4: os.kill(os.getpid(), signal.SIGINT)
    def after_save(average, record): saved.append(len(record.losses))
    _, record = run(photos, RECIPE, tmp_path / "run", after_step=press, after_save=after_save)
    assert saved == [5]
    assert len(record.losses) == 5
    resumed, _ = run(photos, RECIPE, tmp_path / "run")
    assert same(resumed.state_dict(), run(photos)[0].state_dict())


def test_a_finished_run_stays_finished(photos, tmp_path):
    first = run(photos, RECIPE, tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    again = run(photos, RECIPE, tmp_path / "run")
    assert same(first[0].state_dict(), again[0].state_dict())
    assert (tmp_path / "run").read_bytes() == content


@pytest.mark.parametrize("change, text", [
    (dict(lr=1e-3), "lr was 0.005, now 0.001"),
    (dict(epochs=4), "epochs was 3"),
    (dict(features=1.), "features was 0.0"),
])
def test_another_recipe_is_refused(photos, tmp_path, change, text):
    break_off(photos, RECIPE, tmp_path / "run", 2)
    with pytest.raises(ValueError, match=text):
        run(photos, replace(RECIPE, **change), tmp_path / "run")


def test_other_photographs_and_another_teacher_are_refused(photos, tmp_path):
    break_off(photos, RECIPE, tmp_path / "run", 2)
    with pytest.raises(ValueError, match="photographs was '48, 30 px"):
        run(photos[range(47)], RECIPE, tmp_path / "run")
    with pytest.raises(ValueError, match="teacher was"):
        distill(net(12, 9), student(), photos, RECIPE, ENGINE, tmp_path / "run")


def test_other_files_are_refused(photos, tmp_path):
    break_off(photos, RECIPE, tmp_path / "run", 2)
    torch.save(dict(a=1), tmp_path / "other")
    with pytest.raises(ValueError, match="'other' is not a checkpoint of a distillation"):
        read_run(tmp_path / "other")
    (tmp_path / "half").write_bytes((tmp_path / "run").read_bytes()[:500])
    with pytest.raises(ValueError, match="'half' can't be read"): read_run(tmp_path / "half")


def test_damaged_checkpoints_are_refused_and_change_nothing(photos, tmp_path):
    break_off(photos, RECIPE, tmp_path / "run", 4)
    content, saved = (tmp_path / "run").read_bytes(), read_run(tmp_path / "run")
    rng, model = random.Random(0), student()
    before = {name: v.clone() for name, v in model.state_dict().items()}
    def refused():
        with pytest.raises(ValueError, match="'run'"):
            distill(teacher(), model, photos, RECIPE, ENGINE, tmp_path / "run")
        assert same(model.state_dict(), before)
    weight = next(v for v in saved["trained"].values() if v.ndim == 2)
    numbers = weight.numpy().tobytes()
    place = content.index(numbers)
    for _ in range(20):
        damaged = bytearray(content)
        damaged[place + rng.randrange(len(numbers))] ^= 1 << rng.randrange(8)
        (tmp_path / "run").write_bytes(damaged)
        refused()
    for part, wrong in (("record", {"steps": 3}), ("average", {}), ("trained", {}),
                        ("optimizer", {}), ("trained", None)):
        torch.save(saved | {part: wrong}, tmp_path / "run")
        refused()


def test_a_loss_that_explodes_ends_the_run_and_spares_the_checkpoint(photos, tmp_path):
    break_off(photos, RECIPE, tmp_path / "run", 4)
    saved = read_run(tmp_path / "run")
    saved["trained"]["student.net.0.weight"][0, 0, 0, 0] = float("inf")
    torch.save(saved, tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    text = "at step 4: start again with a smaller lr than 0.005"
    with pytest.raises(FloatingPointError, match=text):
        run(photos, RECIPE, tmp_path / "run", every=0)
    assert content == (tmp_path / "run").read_bytes()


def test_average_by_hand():
    "The average of weights and of batch normalization's statistics; its decay grows up to a limit."
    torch.manual_seed(0)
    model, expected = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), {}
    average = weight_average(model, .3)
    for k in range(6):
        model(torch.randn(4, 3))
        with torch.no_grad(): model[0].weight.add_(torch.randn(2, 3))
        average.update_parameters(model)
        decay = min(.3, (1 + k) / (10 + k)) if k else 0.
        for name, v in model.state_dict().items():
            if not v.is_floating_point(): continue
            before = expected.get(name, torch.zeros_like(v))
            expected[name] = decay * before + (1 - decay) * v
    state = average.module.state_dict()
    for name, v in expected.items(): assert torch.allclose(state[name], v, atol=1e-6), name
    assert not torch.allclose(state["1.running_mean"], model[1].running_mean)


# Photographs

def test_folders_and_tar_files_give_the_same_photographs(folder, photos, tmp_path):
    files = sorted(folder.glob("*.jpg"))
    for k in range(2):
        with tarfile.open(tmp_path / f"{k}.tar", "w") as tar:
            for f in files[k::2]: tar.add(f, f.name)
    for given in ([tmp_path], [tmp_path / "1.tar", tmp_path / "0.tar"]):
        found = read_photos(*given, side=30)
        assert found.names == photos.names
        assert torch.equal(found.pixels, photos.pixels)
        assert torch.equal(found.aspects, photos.aspects)


def test_unreadable_photographs_are_left_out_and_named(tmp_path):
    odd = [p.name for p in sample.odd_files(tmp_path).values()]
    good = sorted(set(odd) - {"text.jpg", "empty.jpg", "truncated.jpg"})
    text = "3 of 8 files can't be read and are left out.*empty.jpg"
    with pytest.warns(UserWarning, match=text): found = read_photos(tmp_path, side=16)
    assert list(found.names) == good
    assert found.aspects[good.index("exif_rotated.jpg")] < 1  # upright


def test_a_folder_without_photographs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the 0 files"): read_photos(tmp_path)


def test_held_out_photographs_depend_on_the_seed_only(photos):
    training, held_out = photos.held_out(.25)
    assert (len(training), len(held_out)) == (36, 12)
    assert not {*training.names} & {*held_out.names}
    positions = [photos.names.index(name) for name in held_out.names]
    assert torch.equal(held_out.pixels, photos.pixels[positions])
    assert photos.held_out(.25)[1].names == held_out.names
    assert photos.held_out(.25, seed=1)[1].names != held_out.names


# Networks and figures

def test_packaged_teacher_is_the_backbone_of_the_course():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, pooled = logits_and_features(packaged_teacher(), x)
        features = create_model(n_out=2, head="linear").eval().features(x)
    assert logits.shape == (2, 1000)
    assert torch.allclose(pooled, features, atol=1e-5)


def test_agreement_by_hand(photos):
    t, s = teacher(), student()
    x = next(Crops.of(photos, 24, 48).batches(0)).x
    with torch.no_grad(): theirs, own = t.eval()(x), s.eval()(x)
    found = agreement(t, s.train(), photos, 24, ENGINE, bs=20)
    assert s.training
    assert found.same == wilson_interval(int((theirs.argmax(1) == own.argmax(1)).sum()), 48)
    each = divergence(own, theirs)
    assert found.divergence == pytest.approx(each.mean().item(), rel=1e-4)
    assert found.error == pytest.approx(each.std().item() / 48**.5, rel=1e-4)
    assert "same first answer" in str(found)


@pytest.fixture
def exported(tmp_path):
    "A new student, and its file."
    made = new_student(seed=3)
    path = tmp_path / "student.safetensors"
    digest = export_student(path, made, dict(recipe=asdict(RECIPE), steps=7))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return made.eval(), path


def test_the_file_says_how_its_weights_were_made(exported):
    _, path = exported
    tensors, metadata = load_tensors(path)
    assert path.stat().st_size < 24e6
    assert Recipe(**metadata["recipe"]) == RECIPE
    assert metadata["steps"] == 7
    assert Stats(**{k: tuple(v) for k, v in metadata["stats"].items()}) == imagenet_stats
    floats = {v.dtype for v in tensors.values() if v.is_floating_point()}
    assert floats == {torch.float16}


def test_the_file_fits_torchvisions_network(exported):
    from torchvision.models import resnet18
    made, path = exported
    theirs = resnet18(weights=None).eval()
    theirs.load_state_dict(load_tensors(path)[0])  # every name and shape is torchvision's
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in (imagenet_stats.mean, imagenet_stats.std))
    with torch.no_grad(): assert torch.allclose(theirs((x - mean) / std), made(x), atol=2e-2)


def test_a_learner_takes_the_file(exported, folder, tmp_path):
    made, path = exported
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=32, bs=16)
    learn = Learner(data, "resnet18", weights=path, model_dir=tmp_path, device="cpu",
                    precision="fp32", cache=False, show=False)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = learn.model.eval().features(x)
        assert torch.allclose(features, logits_and_features(made, x)[1], atol=2e-2)


def test_the_classifier_can_be_left_out_of_the_file(exported):
    made, path = exported
    tensors, _ = load_tensors(path)
    export_student(path, made, {}, head=False)
    assert {*tensors} - {*load_tensors(path)[0]} == {"fc.weight", "fc.bias"}


def test_broken_students_are_not_written(tmp_path):
    made = student()
    with torch.no_grad(): made.net[0].weight[0] = 70000.  # more than 16 bits can hold
    text = "'0.weight' has numbers that are not finite in 16 bits"
    with pytest.raises(ValueError, match=text):
        export_student(tmp_path / "s.safetensors", made, {})
    assert not list(tmp_path.iterdir())


def test_linear_probe_learns_from_training_images_only(folder):
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=32, bs=16)
    found = linear_probe(data, "resnet18", None, ENGINE)
    assert found.n == data.valid.n
    assert found.k >= 6
    assert found == linear_probe(data, "resnet18", None, ENGINE)
    turned = replace(data, valid=replace(data.valid, targets=(data.valid.targets + 1) % 3))
    assert linear_probe(turned, "resnet18", None, ENGINE).k <= data.valid.n - found.k


# The script

def script(folder, out):
    "The command that runs make.py for ten steps."
    options = {"--student": "shufflenet_v2_x0_5", "--epochs": "2", "--size": "32", "--side": "36",
               "--bs": "8", "--held-out": ".2", "--every": "0", "--device": "cpu",
               "--precision": "fp32"}
    flat = [word for pair in options.items() for word in pair]
    return [sys.executable, "-P", MAKE, "--photos", folder, "--out", out / "s.safetensors", *flat]


def run_script(folder, out):
    env = os.environ | dict(OMP_NUM_THREADS="1")
    done = subprocess.run(script(folder, out), env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def kill_script(folder, out):
    "Start the script and kill it once it has saved something."
    env = os.environ | dict(OMP_NUM_THREADS="1")
    process = subprocess.Popen(script(folder, out), env=env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (out / "s.run").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    assert len(read_run(out / "s.run")["record"]["losses"]) < 10


@pytest.mark.slow
def test_script_killed_and_started_again(folder, tmp_path):
    "A real kill while it runs: afterwards, the same file of weights as without."
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    kill_script(folder, killed)
    again, output = run_script(folder, killed), run_script(folder, whole)
    first, second = ((out / "s.safetensors").read_bytes() for out in (killed, whole))
    assert first == second
    assert f"SHA-256 {hashlib.sha256(first).hexdigest()}" in again
    assert (whole / "s_raw.safetensors").exists()
    metadata = load_tensors(whole / "s.safetensors")[1]
    assert metadata["arch"] == "shufflenet_v2_x0_5"
    assert (metadata["steps"], metadata["of"]) == (10, 10)
    assert metadata["photographs"] == 38
    assert metadata["agreement"]["n"] == 10
    assert f"divergence {metadata['divergence']:.3f}" in output
