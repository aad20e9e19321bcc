"""Distillation: what both networks see, the loss, runs that are killed and taken up, and the file in the end."""
import hashlib, os, signal, subprocess, sys, tarfile, threading, time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lessonkit.data import sample
from lessonkit.data.augment import Augment
from lessonkit.data.mixing import Mix
from lessonkit.data.image_data import ImageData, imagenet_stats, Stats
from lessonkit.distill import (
    agreement, Crops, distill, distill_losses, divergence, export_student, linear_probe,
    logits_and_features, new_student, packaged_teacher, Pair, read_photos, Recipe, saved_run,
    weight_average, with_stats,
)
from lessonkit.results.intervals import wilson_interval
from lessonkit.core.files import load_tensors
from lessonkit.learner import Learner
from lessonkit.model.create import create_model
from lessonkit.train.engine import Engine

ROOT = Path(__file__).resolve().parents[1]
MAKE = ROOT / "data/resnet18_distilled/make.py"
ENGINE = Engine("cpu", "fp32")
RECIPE = Recipe(epochs=3, size=24, bs=16, lr=5e-3, average=.9)   # 9 steps with 48 photographs


def net(width, seed, classes=5, sure=1.):
    "A tiny network with batch normalization; `sure` makes its answers bolder."
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    found = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    with torch.no_grad(): found[-1].weight.mul_(sure)
    return with_stats(found, imagenet_stats)


def teacher(): return net(12, 0, sure=40.)
def student(): return net(8, 1)
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def photos(folder): return read_photos(folder, side=30)


def run(photos, recipe=RECIPE, checkpoint=None, **options): return distill(teacher(), student(), photos, recipe, ENGINE, checkpoint, **options)


# What both see

@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, features=1.)], ids=["answers", "features"])
def test_both_see_the_very_same_crop(photos, recipe):
    seen, nets = {"teacher": [], "student": []}, dict(teacher=teacher(), student=student())
    for name, n in nets.items(): n.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].clone()))
    distill(**nets, photos=photos, recipe=recipe, engine=ENGINE)
    assert len(seen["teacher"]) == len(seen["student"]) == 9
    for a, b in zip(seen["teacher"], seen["student"]): assert torch.equal(a, b) and a.shape == (16, 3, 24, 24) and 0 <= a.min() and a.max() <= 1
    assert len({v.sum().item() for v in seen["teacher"]}) == 9   # and another one in each step


def test_crops_are_cut_from_the_photographs_and_mixed(photos):
    plain = Crops.of(photos, 24, 48)
    x = next(plain.batches(0)).x
    shrunk = torch.nn.functional.interpolate(photos.pixels.float() / 255, 24, mode="bilinear")   # 30 to 24 pixels, point for point
    assert torch.allclose(x, shrunk, atol=1e-5)
    calm = Augment(flip=False, max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0)             # nothing but the mixing
    mixed = next(Crops.of(photos, 24, 48, augment=calm, mix=Mix(mixup=1.)).batches(0)).x
    away = (mixed - x).flatten(1).norm(dim=1)
    assert away.max() > 1
    for m, own in zip(mixed.flatten(1), x.flatten(1)):   # each lies between its own picture and another one, nearer to its own
        d = x.flatten(1) - own
        share = ((m - own) * d).sum(1) / d.square().sum(1).clamp(min=1e-9)
        rest = (own + share[:, None] * d - m).norm(dim=1)
        assert rest.min() < 1e-3 and -1e-4 <= share[rest.argmin()] <= .5 + 1e-4
    assert torch.equal(next(Crops.of(photos, 24, 48, mix=Mix(mixup=1.)).batches(0)).x, x)        # without augmentation it is for questions, and nothing is mixed


def test_ahead_or_not_the_same_crops_and_no_thread_is_left(photos):
    crops = RECIPE.crops(photos)
    now, ahead = (list(crops.batches(1, 0, 2, ahead=k)) for k in (0, 2))
    assert len(now) == 3 and all(torch.equal(a.x, b.x) and torch.equal(a.index, b.index) for a, b in zip(now, ahead, strict=True))
    assert [b.x.sum() for b in crops.batches(1, 0, 2, start=2)] == [now[2].x.sum()]
    threads, batches = threading.active_count(), crops.batches(1, 0, 2, ahead=2)
    next(batches)
    batches.close()
    assert threading.active_count() == threads


def test_teacher_stays_as_it_is(photos):
    t = teacher().train()
    before = {k: v.clone() for k, v in t.state_dict().items()}
    distill(t, student(), photos, RECIPE, ENGINE)
    assert same(before, t.state_dict()) and not t.training and not any(p.requires_grad or p.grad is not None for p in t.parameters())


# The loss

@pytest.mark.parametrize("temperature", [.5, 1., 4.])
def test_loss_by_hand(temperature):
    rng = np.random.default_rng(0)
    s, t = rng.normal(0, 3, (2, 7, 11))
    def soft(z): return (e := np.exp(z / temperature)) / e.sum(1, keepdims=True)
    p, q = soft(t), soft(s)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(1)
    assert divergence(torch.tensor(s), torch.tensor(t), temperature).numpy() == pytest.approx(by_hand, rel=1e-5)
    assert not np.allclose(by_hand, temperature**2 * (q * np.log(q / p)).sum(1))   # the direction matters here


def test_gradient_does_not_fade_with_the_temperature():
    "At high temperatures T² KL tends to half the squared distance of the centerd logits over c: its gradient to (s - t) / c (Hinton et al. 2015, section 2.1)."
    torch.manual_seed(0)
    s, t = (z - z.mean(1, keepdim=True) for z in torch.randn(2, 3, 10, dtype=torch.float64))
    s.requires_grad_()
    divergence(s, t, 200.).sum().backward()
    assert torch.allclose(s.grad, (s - t).detach() / 10, atol=1e-2 * s.grad.abs().max().item())


def test_loss_of_a_step_is_the_mean_over_its_crops(photos):
    t, s = teacher(), student()
    batch = next(RECIPE.crops(photos).batches(42, 0, 0))
    said = s.train()(batch.x)
    expected = divergence(said, t.eval()(batch.x)).mean().item()
    assert run(photos)[1].losses[0] == pytest.approx(expected, rel=1e-5)


def test_features_are_compared_by_angle_after_the_bridge(photos):
    torch.manual_seed(2)
    pair = Pair(teacher(), student(), features=True).train()
    x = next(RECIPE.crops(photos).batches(0)).x
    said, known, own, theirs = pair(x)
    with torch.no_grad(): pooled = logits_and_features(pair.teacher, x)[1]
    assert torch.allclose(theirs, (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt(), atol=1e-4)
    angle = (own * theirs).sum(1) / own.norm(dim=1) / theirs.norm(dim=1)
    assert torch.allclose(distill_losses((said, known, own, theirs), features=.3), divergence(said, known) + .3 * (1 - angle), atol=1e-5)
    assert pair.bridge.weight.shape == (12, 8) and "bridge.weight" in pair.learned() and not any(k.startswith("teacher") for k in pair.learned())


def test_student_comes_nearer_to_its_teacher(photos):
    known, kept = photos.held_out(.25)
    first = agreement(teacher(), student(), kept, 24, ENGINE)
    average, record = distill(teacher(), student(), known, replace(RECIPE, epochs=25, lr=2e-2), ENGINE)
    then = agreement(teacher(), average, kept, 24, ENGINE)
    assert then.divergence < first.divergence / 2 and then.same.k > first.same.k and np.mean(record.losses[-5:]) < np.mean(record.losses[:5]) / 2


# Runs that break off

class Pulled(Exception): pass


def broken(photos, recipe, checkpoint, at):
    "A run in which the plug is pulled in the step `at`, before it is saved."
    def pull(step):
        if step.index == at: raise Pulled
    with pytest.raises(Pulled): run(photos, recipe, checkpoint, every=0, after_step=pull)


@pytest.mark.parametrize("recipe, cuts", [(RECIPE, [0]), (RECIPE, [1, 4, 8]), (RECIPE, [3]), (replace(RECIPE, features=.5, temperature=2.), [5])],
                         ids=["before anything is saved", "three times", "between epochs", "with a bridge"])
def test_killed_and_taken_up_equals_undisturbed(photos, tmp_path, recipe, cuts):
    whole = student()
    undisturbed, record = distill(teacher(), whole, photos, recipe, ENGINE)
    for at in cuts: broken(photos, recipe, tmp_path / "run", at)
    taken = student()
    resumed, second = distill(teacher(), taken, photos, recipe, ENGINE, tmp_path / "run")
    assert asdict(second) == asdict(record) and len(record.losses) == 9
    assert same(resumed.state_dict(), undisturbed.state_dict()) and same(taken.state_dict(), whole.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_ctrl_c_saves(photos, tmp_path):
    saved = []
    def press(step):
        if step.index == 4: os.kill(os.getpid(), signal.SIGINT)
    _, record = run(photos, RECIPE, tmp_path / "run", after_step=press, after_save=lambda average, record: saved.append(len(record.losses)))
    assert saved == [5] == [len(record.losses)]
    assert same(run(photos, RECIPE, tmp_path / "run")[0].state_dict(), run(photos)[0].state_dict())


def test_finished_run_stays_finished(photos, tmp_path):
    first = run(photos, RECIPE, tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    again = run(photos, RECIPE, tmp_path / "run")
    assert same(first[0].state_dict(), again[0].state_dict()) and (tmp_path / "run").read_bytes() == content


@pytest.mark.parametrize("change, says", [(dict(lr=1e-3), "lr was 0.005, now it is 0.001"), (dict(epochs=4), "epochs was 3"), (dict(features=1.), "features was 0.0")])
def test_another_recipe_is_refused(photos, tmp_path, change, says):
    broken(photos, RECIPE, tmp_path / "run", 2)
    with pytest.raises(ValueError, match=says): run(photos, replace(RECIPE, **change), tmp_path / "run")


def test_other_photographs_another_teacher_and_other_files_are_refused(photos, tmp_path):
    broken(photos, RECIPE, tmp_path / "run", 2)
    with pytest.raises(ValueError, match="photographs was '48, 30 px"): run(photos[range(47)], RECIPE, tmp_path / "run")
    with pytest.raises(ValueError, match="teacher was"): distill(net(12, 9), student(), photos, RECIPE, ENGINE, tmp_path / "run")
    torch.save(dict(a=1), tmp_path / "other")
    with pytest.raises(ValueError, match="'other' is not a checkpoint of a distillation"): saved_run(tmp_path / "other")
    (tmp_path / "half").write_bytes((tmp_path / "run").read_bytes()[:500])
    with pytest.raises(ValueError, match="'half' can't be read"): saved_run(tmp_path / "half")


def test_a_loss_that_explodes_ends_the_run_and_spares_the_checkpoint(photos, tmp_path):
    broken(photos, RECIPE, tmp_path / "run", 4)
    saved = saved_run(tmp_path / "run")
    saved["learned"]["student.net.0.weight"][0, 0, 0, 0] = float("inf")
    torch.save(saved, tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    with pytest.raises(FloatingPointError, match="at step 4: begin anew with a smaller lr than 0.005"): run(photos, RECIPE, tmp_path / "run", every=0)
    assert content == (tmp_path / "run").read_bytes()


def test_average_by_hand():
    "The average of weights and of batch normalization's statistics, with the decay growing up to its limit."
    torch.manual_seed(0)
    model, expected = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), {}
    average = weight_average(model, .3)
    for k in range(6):
        model(torch.randn(4, 3))
        with torch.no_grad(): model[0].weight.add_(torch.randn(2, 3))
        average.update_parameters(model)
        decay = min(.3, (1 + k) / (10 + k)) if k else 0.
        expected = {n: v.clone() if not k else decay * expected[n] + (1 - decay) * v for n, v in model.state_dict().items() if v.is_floating_point()}
    state = average.module.state_dict()
    for n, v in expected.items(): assert torch.allclose(state[n], v, atol=1e-6), n
    assert not torch.allclose(state["1.running_mean"], model[1].running_mean)


# Photographs

def test_folders_and_tars_alike(folder, photos, tmp_path):
    files = sorted(folder.glob("*.jpg"))
    for k in range(2):
        with tarfile.open(tmp_path / f"{k}.tar", "w") as tar:
            for f in files[k::2]: tar.add(f, f.name)
    for given in ([tmp_path], [tmp_path / "1.tar", tmp_path / "0.tar"]):
        found = read_photos(*given, side=30)
        assert found.names == photos.names and torch.equal(found.pixels, photos.pixels) and torch.equal(found.aspects, photos.aspects)


def test_unreadable_photographs_are_left_out_and_said(tmp_path):
    good = [p.name for p in sample.odd_files(tmp_path).values() if p.name not in ("text.jpg", "empty.jpg", "truncated.jpg")]
    with pytest.warns(UserWarning, match="3 of 8 files can't be read and are left out.*empty.jpg"): found = read_photos(tmp_path, side=16)
    assert list(found.names) == sorted(good) and found.aspects[found.names.index("exif_rotated.jpg")] < 1   # upright
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none of the 0 files"): read_photos(tmp_path / "none")


def test_held_out_photographs_are_a_lot_of_their_own(photos):
    known, kept = photos.held_out(.25)
    assert len(kept) == 12 and len(known) == 36 and not {*known.names} & {*kept.names}
    assert torch.equal(kept.pixels, photos.pixels[[photos.names.index(n) for n in kept.names]])
    assert photos.held_out(.25)[1].names == kept.names != photos.held_out(.25, seed=1)[1].names


# Networks and figures

def test_packaged_teacher_is_the_backbone_of_the_course():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, pooled = logits_and_features(packaged_teacher(), x)
        features = create_model(n_out=2).eval().features(x)
    assert logits.shape == (2, 1000) and torch.allclose(pooled, features[:, 1280:], atol=1e-5)


def test_agreement_by_hand(photos):
    t, s = teacher(), student()
    x = next(Crops.of(photos, 24, 48).batches(0)).x
    with torch.no_grad(): theirs, own = t.eval()(x), s.eval()(x)
    found = agreement(t, s.train(), photos, 24, ENGINE, bs=20)
    assert found.same == wilson_interval(int((theirs.argmax(1) == own.argmax(1)).sum()), 48) and s.training
    each = divergence(own, theirs)
    assert found.divergence == pytest.approx(each.mean().item(), rel=1e-4) and found.error == pytest.approx(each.std().item() / 48**.5, rel=1e-4)
    assert "same first answer" in str(found)


def test_file_of_weights(folder, tmp_path):
    from torchvision.models import resnet18
    made = new_student(seed=3)
    path = tmp_path / "student.safetensors"
    digest = export_student(path, made, dict(recipe=asdict(RECIPE), steps=7))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() and path.stat().st_size < 24e6
    tensors, page = load_tensors(path)
    assert Recipe(**page["recipe"]) == RECIPE and page["steps"] == 7 and Stats(**{k: tuple(v) for k, v in page["stats"].items()}) == imagenet_stats
    assert all(v.dtype == torch.float16 for v in tensors.values() if v.is_floating_point())
    theirs = resnet18(weights=None)
    theirs.load_state_dict(tensors)   # every name and shape is torchvision's
    x = torch.rand(2, 3, 64, 64)
    for n in (theirs, made): n.eval()
    standard = (x - torch.tensor(imagenet_stats.mean)[:, None, None]) / torch.tensor(imagenet_stats.std)[:, None, None]
    with torch.no_grad(): assert torch.allclose(theirs(standard), made(x), atol=2e-2)
    learn = Learner(ImageData.from_name_re(folder, r"^(.+)_\d+", size=32, bs=16), "resnet18", weights=path, model_dir=tmp_path, device="cpu", precision="fp32", cache=False, show=False)
    with torch.no_grad(): assert torch.allclose(learn.model.eval().features(x)[:, 512:], logits_and_features(made, x)[1], atol=2e-2)
    export_student(path, made, {}, head=False)
    assert {*tensors} - {*load_tensors(path)[0]} == {"fc.weight", "fc.bias"}


def test_broken_students_are_not_written(tmp_path):
    made = student()
    with torch.no_grad(): made.net[0].weight[0] = 70000.   # more than 16 bits can hold
    with pytest.raises(ValueError, match="'0.weight' holds numbers that are not finite in 16 bits"): export_student(tmp_path / "s.safetensors", made, {})
    assert not list(tmp_path.iterdir())


def test_linear_probe_learns_from_training_pictures_only(folder):
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=32, bs=16)
    found = linear_probe(data, "resnet18", None, ENGINE)
    assert found.n == data.valid.n and found.k >= 6 and found == linear_probe(data, "resnet18", None, ENGINE)
    turned = replace(data, valid=replace(data.valid, targets=(data.valid.targets + 1) % 3))
    assert linear_probe(turned, "resnet18", None, ENGINE).k <= data.valid.n - found.k


# The script

def test_script_killed_and_started_again(folder, tmp_path):
    "A real kill, while it runs; then the same file of weights as without."
    def command(out): return [sys.executable, "-P", MAKE, "--photos", folder, "--out", out / "s.safetensors", "--student", "shufflenet_v2_x0_5", "--epochs", "2", "--size", "32",
                              "--side", "36", "--bs", "8", "--held-out", ".2", "--every", "0", "--device", "cpu", "--precision", "fp32"]
    env = os.environ | dict(OMP_NUM_THREADS="1")
    for name in ("killed", "whole"): (tmp_path / name).mkdir()
    whole = subprocess.Popen(command(tmp_path / "whole"), env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process = subprocess.Popen(command(tmp_path / "killed"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    started = time.monotonic()
    while not (tmp_path / "killed/s.run").exists() and process.poll() is None and time.monotonic() - started < 120: time.sleep(.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
    assert len(saved_run(tmp_path / "killed/s.run")["record"]["losses"]) < 10
    again = subprocess.run(command(tmp_path / "killed"), env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = whole.communicate()[0]
    assert again.returncode == whole.returncode == 0, again.stdout[-2000:] + said[-2000:]
    first, second = ((tmp_path / name / "s.safetensors").read_bytes() for name in ("killed", "whole"))
    assert first == second and f"SHA-256 {hashlib.sha256(first).hexdigest()}" in again.stdout
    page = load_tensors(tmp_path / "whole/s.safetensors")[1]
    assert page["arch"] == "shufflenet_v2_x0_5" and page["steps"] == page["of"] == 10 and page["photographs"] == 38 and page["agreement"]["n"] == 10
    assert f"divergence {page['divergence']:.3f}" in said and (tmp_path / "whole/s_raw.safetensors").exists()
