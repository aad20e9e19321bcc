"""A loss of your own takes the place of the usual one in training and wherever losses are shown."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

from lessonkit.core.losses import OwnLoss, sample_batch
from lessonkit.core.task import item_losses, Task
from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.data.mixing import Mix, mix_batch
from lessonkit.learner import Learner
from lessonkit.results.selections import top_losses
from lessonkit.train.engine import Engine
from lessonkit.train.loop import backward_batch
from lessonkit.train.memory import passes_to_divide
from tiers import examples

ENGINE = Engine("cpu", "fp32")
PAT = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("data") / "tiny", n=36)


@pytest.fixture(scope="module")
def data(folder):
    return ImageData.from_name_re(folder, PAT, size=24, bs=8)


def small_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 6, 3, 2), nn.ReLU())


def make(data, **options):
    torch.manual_seed(0)
    common = dict(weights=None, head="mlp", precision="fp32", device="cpu", show=False)
    return Learner(data, small_net(), **common | options)


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


# ---- losses that say the same in several ways

def each(outputs, targets): return item_losses(outputs, targets, "single")
def mean(outputs, targets): return F.cross_entropy(outputs, targets)
def numbers_only(outputs, targets):
    return -outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
def mean_of_numbers(outputs, targets): return numbers_only(outputs, targets).mean()

SAME = dict(each=each, mean=mean, function=F.cross_entropy, module=nn.CrossEntropyLoss(),
            numbers=numbers_only, mean_of_numbers=mean_of_numbers)


@pytest.fixture(scope="module")
def usual(data):
    learn = make(data)
    learn.fit_one_cycle(1, 1e-2)
    return learn


def test_the_usual_loss_given_by_hand_changes_no_bit(data, usual):
    learn = make(data, loss=each)
    learn.fit_one_cycle(1, 1e-2)
    assert torch.equal(weights(learn), weights(usual))
    assert learn.history.fits[0].losses == usual.history.fits[0].losses
    assert learn.validate() == usual.validate()


@pytest.mark.parametrize("name", [name for name in SAME if name != "each"])
def test_the_same_loss_in_another_form(data, usual, name):
    learn = make(data, loss=SAME[name])
    learn.fit_one_cycle(1, 1e-2)
    assert torch.allclose(weights(learn), weights(usual), atol=1e-5)
    assert learn.get_preds().losses.tolist() == pytest.approx(usual.get_preds().losses.tolist(),
                                                              abs=1e-4)


@pytest.mark.parametrize("name", ["each", "module", "numbers"])
@pytest.mark.parametrize("options", [dict(mixup=.4, smoothing=.1), dict(class_weights=[1, 2, 5]),
                                     dict(cutmix=1., class_weights="balanced")], ids=str)
def test_mixing_and_class_weights_count_as_with_the_usual_loss(data, name, options):
    expected, learn = make(data, **options), make(data, loss=SAME[name], **options)
    for one in (expected, learn): one.fit_one_cycle(1, 1e-2)
    assert torch.allclose(weights(learn), weights(expected), atol=1e-5)


def test_a_mean_alone_can_be_mixed_or_weighted_only_where_it_takes_shares(data):
    make(data, loss=mean, mixup=.4).fit(1, 1e-3)
    with pytest.raises(ValueError, match="mixing images or smoothing labels needs the loss of"):
        make(data, loss=mean_of_numbers, mixup=.4).fit(1, 1e-3)
    with pytest.raises(ValueError, match="class_weights needs the loss of each image"):
        make(data, loss=mean_of_numbers, class_weights="balanced")


@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 2**32))
@examples(40)
def test_shares_of_classes_are_expanded(n, c, seed):
    task = Task("single", range(c))
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, c, generator=generator)
    shares = torch.rand(n, c, generator=generator) + 1e-3
    shares = shares / shares.sum(1, keepdim=True)
    factors = torch.rand(c, generator=generator) + .1
    for class_weights in (None, factors):
        own = OwnLoss(numbers_only, task, class_weights=class_weights)
        expected = task.losses(outputs, shares, class_weights)
        assert torch.allclose(own(outputs, shares), expected, rtol=1e-4, atol=1e-5)


# ---- batches that go through in parts

def root_of_mean(outputs, targets): return F.cross_entropy(outputs, targets).sqrt()

def gradients(model, batch, loader, loss, micro):
    model.zero_grad()
    mix = Mix(mixup=.4)
    def mixing(x, y, generator): return mix_batch(x, y, mix, Task("single", range(3)), generator)
    value = backward_batch(model, batch, loader, loss, ENGINE, (42, 0, 0, 0), len(batch.index),
                           mixing, micro)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return value, torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("loss", [each, mean, root_of_mean, numbers_only])
def test_parts_of_a_batch_add_up_whatever_the_loss_is(data, loss):
    "Also for a loss that is no mean over images, and needs the outputs of the whole batch."
    torch.manual_seed(0)
    learn = Learner(data, small_net(), weights=None, head="linear", precision="fp32",
                    device="cpu", show=False)
    model, own = learn.model.train(), OwnLoss(loss, data.task)
    nn.init.normal_(model.head[1].weight)
    batch = next(data.train.batches(0, 0))
    whole = gradients(model, batch, data.train, own, None)
    parts = gradients(model, batch, data.train, own, 3)
    assert whole[0].item() == pytest.approx(parts[0].item(), rel=1e-5)
    assert torch.allclose(whole[1], parts[1], rtol=1e-3, atol=1e-6)


def test_a_loss_of_the_batch_divides_the_body_only(data):
    model = make(data).model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d): m.eval()
    assert passes_to_divide(model) == 1
    assert passes_to_divide(model, needs_batch=True) == 2
    assert passes_to_divide(nn.Sequential(nn.Conv2d(3, 3, 1)), needs_batch=True) == 0


@pytest.mark.parametrize("loss", [each, mean])
def test_training_within_a_memory_limit(data, loss):
    "With 1 byte, images go through one at a time."
    whole, divided = (make(data, loss=loss, memory_limit=limit) for limit in (math.inf, 1))
    for learn in (whole, divided): learn.fit_one_cycle(1, 1e-3)
    assert torch.allclose(weights(divided), weights(whole), atol=1e-4)


# ---- where losses are shown

def absolute(outputs, targets): return (outputs.softmax(1).gather(1, targets[:, None]) - 1).abs()

def test_losses_of_predictions_are_those_of_the_own_loss(data):
    learn = make(data, loss=absolute)
    learn.fit(1, 1e-3)
    preds = learn.get_preds()
    rows = torch.arange(len(preds))
    expected = 1 - preds.probs[rows, preds.targets]
    assert torch.allclose(preds.losses, expected, atol=1e-6)
    assert learn.validate()["valid_loss"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert list(top_losses(preds, 3)[1]) == expected.argsort(descending=True)[:3].tolist()
    assert preds[:4].own_loss is preds.own_loss
    blend = learn.tta(form="corners")
    assert torch.allclose(blend.losses, 1 - blend.probs[rows, blend.targets], atol=1e-5)


def test_another_loss_makes_new_predictions(data):
    learn = make(data)
    before = learn.get_preds()
    learn.trainer.loss = absolute
    assert not torch.allclose(learn.get_preds().losses, before.losses)
    assert learn.trainer.loss is absolute
    learn.trainer.loss = None
    assert torch.equal(learn.get_preds().losses, before.losses)


def test_saved_models_are_averaged_with_it(data, tmp_path):
    learn = make(data, loss=absolute, model_dir=tmp_path)
    for name in ("a", "b"):
        learn.fit(1, 1e-2)
        learn.save(name)
    preds = learn.average(["a", "b"])
    rows = torch.arange(len(preds))
    assert torch.allclose(preds.losses, 1 - preds.probs[rows, preds.targets], atol=1e-5)


def test_the_learning_rate_finder_minimizes_it(data):
    usual, own = make(data).lr_find(num_it=5), make(data, loss=each).lr_find(num_it=5)
    other = make(data, loss=absolute).lr_find(num_it=5)
    assert own.losses == usual.losses
    assert other.losses != usual.losses


# ---- several labels, and numbers

@pytest.mark.parametrize("kind,loss", [
    ("multi", nn.BCEWithLogitsLoss()), ("multi", F.binary_cross_entropy_with_logits),
    ("number", F.mse_loss), ("number", lambda outputs, targets: (outputs - targets).square())])
def test_other_tasks(folder, kind, loss):
    files = sorted(folder.iterdir())
    labels = [[f.name[0], "image"] if i % 2 else [f.name[0]] for i, f in enumerate(files)]
    if kind == "number": labels = [i / 36 for i in range(len(files))]
    data = ImageData.from_lists(folder, files, labels, kind=kind, size=24, bs=8)
    usual, own = make(data), make(data, loss=loss)
    for learn in (usual, own): learn.fit(1, 1e-3)
    assert torch.allclose(weights(own), weights(usual), atol=1e-5)
    assert torch.allclose(own.get_preds().losses, usual.get_preds().losses, atol=1e-5)


def test_what_cannot_be_a_loss_is_refused_when_the_learner_is_made(data):
    for wrong in (nn.CrossEntropyLoss, "focal", 3):
        with pytest.raises(ValueError, match="loss is a function of outputs and targets"):
            make(data, loss=wrong)
    for c in range(2, 7):
        with pytest.raises(ValueError, match="the loss l1 can't be used here"):
            OwnLoss(l1, Task("single", range(c)))


def l1(outputs, targets):
    if outputs.shape == targets.shape: return F.l1_loss(outputs, targets)
    return (outputs - targets).abs().mean()  # works by broadcasting if c happens to be n


# ---- heads

def test_a_linear_head_is_not_solved_for_an_own_loss(data):
    common = dict(precision="fp32", device="cpu", show=False, cache=False)
    learn = Learner(data, loss=each, **common)
    assert (learn.trainer.solvable, learn.trainer.has_linear_head) == (False, True)
    assert learn.trainer.uses_solved_rates is False
    learn.fit(1)
    notes = " ".join(learn.history.fits[0].notes)
    assert "the head starts at zero" in notes
    assert "solved on" not in notes
    assert "the head trains on its features" in notes
    assert learn.history.fits[0].lrs[0][-1] == 3e-3
    assert learn.history.fits[0].losses[0] == pytest.approx(math.log(3), rel=1e-5)
    solved = Learner(data, **common)
    solved.fit(1)
    assert "solved on" in " ".join(solved.history.fits[0].notes)
    assert solved.trainer.penalty is not None
    solved.trainer.loss = mean
    assert solved.trainer.penalty is None  # weight decay takes its place
    assert solved.trainer.weight_decay[-1] == .01


# ---- checkpoints

class Ends:
    "An observer that ends the process, as far as training can tell, before a checkpoint is saved."
    def __init__(self, after): self.after = after
    def epoch(self, row, record):
        if row["epoch"] == self.after: raise KeyboardInterrupt


def test_resuming_needs_the_same_loss(data, tmp_path):
    whole = make(data, loss=mean, model_dir=tmp_path)
    whole.fit_one_cycle(3, 1e-2)
    crashed = make(data, loss=mean, model_dir=tmp_path)
    crashed.trainer.observers.append(Ends(after=1))
    with pytest.raises(KeyboardInterrupt): crashed.fit_one_cycle(3, 1e-2, checkpoint="run")
    other = make(data, model_dir=tmp_path).load("run")
    with pytest.raises(ValueError, match="can't resume exactly: loss was 'mean', now None"):
        other.resume()
    again = make(data, loss=mean, model_dir=tmp_path).load("run")
    assert len(again.history.fits[0].rows) == 1
    again.resume()
    assert torch.equal(weights(again), weights(whole))
    assert "loss" not in make(data).trainer.conditions()


def test_a_loss_in_which_a_batch_counts_is_never_taken_apart():
    outputs, targets = sample_batch(Task("single", "abc"), 6)
    own = OwnLoss(root_of_mean, Task("single", "abc"))
    assert own.needs_batch
    assert own.single is None
    expected = root_of_mean(outputs, targets).item()
    assert own(outputs, targets).tolist() == pytest.approx([expected] * 6)
    alone = [root_of_mean(outputs[i:i+1], targets[i:i+1]).item() for i in range(6)]
    assert own.of_each(outputs, targets).tolist() == pytest.approx(alone)


def test_weights_of_a_module_are_used_as_it_says():
    task, factors = Task("single", "abc"), torch.tensor([1., 2., 4.])
    own = OwnLoss(nn.CrossEntropyLoss(weight=factors), task)
    outputs, targets = sample_batch(task, 8)
    batch = F.cross_entropy(outputs, targets, factors)
    assert own(outputs, targets).mean().item() == pytest.approx(batch.item())
    alone = F.cross_entropy(outputs, targets, factors, reduction="none")
    assert torch.allclose(own.of_each(outputs, targets), alone)
