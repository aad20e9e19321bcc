"""Grad-CAM: equal to captum's, exact where it can be worked out, finds what was planted, and leaves no trace."""
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from hypothesis import given, settings, strategies as st
from torch import nn
from torchvision.models import densenet121, resnet18

from lessonkit.data import sample
from lessonkit.data.augment import to_inputs
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.data.loader import Loader
from lessonkit.UNKNOWN_explain import _caught
from lessonkit.results.explain import grad_cam, heat_maps
from lessonkit.model.classifier import Classifier
from lessonkit.model.create import create_model
from lessonkit.train.features import FeatureLoader
from lessonkit.train.engine import Engine


def small(n_out=3, seed=0):
    "A classifier with a grid of 8 by 8 for 32 pixels, whose batch normalization has seen something."
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    model = Classifier(body, 8, n_out, imagenet_stats, [("body", [body])])
    model.train()(torch.rand(8, 3, 32, 32))
    return model


def pictures(n=3, size=32, seed=0): return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def reference(model, layer, x, target):
    "captum's map, which is neither cut at zero (by choice) nor normalized."
    cam = LayerGradCam(model.eval(), layer).attribute(x, target=target, relu_attributions=True).detach()[:, 0]
    return cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ImageData.from_name_re(sample.tiny(tmp_path_factory.mktemp("tiny")), r"^(.+)_\d+", size=32, bs=13)


# --- the same as captum

def test_plain_resnet_as_captum_has_it():
    torch.manual_seed(0)
    model, x, target = resnet18(num_classes=5), pictures(3, 96), torch.tensor([0, 4, 2])
    for layer in (model.layer4, model.layer2):
        got = grad_cam(model, x, target, layer)
        want = reference(model, layer, x, target)
        assert got.shape == want.shape and got.shape[-1] == (3 if layer is model.layer4 else 12)
        assert want.amax((1, 2)).sum() >= 2, "a map of zeros would compare nothing"
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, -1])
def test_classifier_as_captum_has_it(frozen):
    model, x = create_model("resnet18", n_out=4, weights=None), pictures(4, 96)
    want = [reference(model, model.body.layer4, x, target) for target in (0, 3)]
    assert torch.stack(want).amax((0, 1, 2, 3)) == 1
    model.freeze_to(frozen)
    for target, w in zip((0, 3), want): torch.testing.assert_close(grad_cam(model, x, target), w, rtol=1e-4, atol=1e-5)


def test_a_layer_before_one_that_works_in_place():
    "What comes after the layer overwrites its answer; the map is of the answer itself. DenseNet's body ends like that, too."
    model, x = small(), pictures()
    before = model.body[4]
    activation = model.eval().body[:5](model.normalize(x)).detach().requires_grad_()
    gradient, = torch.autograd.grad(model.head(model.pool(activation.relu()))[:, 1].sum(), activation)
    cam = (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach()
    torch.testing.assert_close(grad_cam(model, x, 1, before), cam / cam.amax((1, 2), keepdim=True), rtol=1e-4, atol=1e-6)
    torch.manual_seed(0)
    dense = densenet121(num_classes=2)
    assert grad_cam(dense, pictures(2, 64), 0, dense.features).shape == (2, 2, 2)


# --- worked out

class Weighed(nn.Module):
    "A convolution that lets everything through, the mean over all places, and one linear layer."
    def __init__(self, weight):
        super().__init__()
        self.body, self.weight = nn.Conv2d(3, 3, 1, bias=False), nn.Parameter(torch.tensor(weight))
        self.body.weight.data = torch.eye(3)[..., None, None]

    def forward(self, x): return self.body(x).mean((2, 3)) @ self.weight.T


def test_by_hand():
    model = Weighed([[1., 0, -2], [-1, 0, 0], [0, 0, 0]])
    x = torch.tensor([[[8., 0], [4, 6]], [[9, 9], [9, 9]], [[1, 1], [0, 3]]])[None]
    assert torch.equal(grad_cam(model, x, 0), torch.tensor([[[1., 0], [4/6, 0]]]))   # 8 - 2, 0 - 2, 4 - 0, 6 - 6
    assert torch.equal(grad_cam(model, x, 1), torch.zeros(1, 2, 2))                    # everything speaks against it
    assert torch.equal(grad_cam(model, x, 2), torch.zeros(1, 2, 2))                    # nothing has a say
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, 0))                      # scores 4.5 - 2.5, -4.5 and 0
    assert torch.equal(grad_cam(model, -x), grad_cam(model, -x, 1))


def test_each_picture_by_itself():
    model, x, target = small(), pictures(5), torch.tensor([0, 1, 2, 1, 0])
    maps = grad_cam(model, x, target)
    for i in range(5): torch.testing.assert_close(maps[i:i+1], grad_cam(model, x[i:i+1], target[i:i+1]), rtol=1e-4, atol=1e-5)
    for same in (target.tolist(), target.int(), target.numpy()): assert torch.equal(grad_cam(model, x, same), maps)
    assert torch.equal(grad_cam(model, x, 1), grad_cam(model, x, [1] * 5)) and not torch.equal(grad_cam(model, x, 1), maps)
    assert grad_cam(model, x[:0]).shape == (0, 8, 8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-12, 1e-3, 1., 1e6]), target=st.integers(0, 2))
def test_between_zero_and_one(seed, scale, target):
    model = small(seed=seed % 7)
    with torch.no_grad(): model.head[-1].weight.mul_(scale)
    maps = grad_cam(model, pictures(4, seed=seed), target)
    peak = maps.amax((1, 2))
    assert maps.isfinite().all() and maps.min() >= 0 and ((peak == 0) | (peak == 1)).all()


def test_dead_body_gives_zeros():
    model = small()
    with torch.no_grad(): model.body[4].weight.zero_(), model.body[4].bias.fill_(-1.)
    assert torch.equal(grad_cam(model, pictures()), torch.zeros(3, 8, 8))


# --- a planted case

@pytest.mark.parametrize("row, column", [(0, 0), (2, 5), (7, 7)])
def test_all_of_the_map_is_where_the_evidence_is(row, column):
    "The class is 'something bright': the body fires where a pixel is above .9, and there is one bright patch."
    body = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.ReLU())
    with torch.no_grad():
        body[0].weight.copy_(torch.stack([torch.full((3, 4, 4), 1 / 48), torch.full((3, 4, 4), -1 / 48)]))
        body[0].bias.copy_(torch.tensor([-.9, .9]))
    model = Classifier(body, 2, 2, imagenet_stats, [("body", [body])])
    model.normalize = nn.Identity()
    model.pool, model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(2, 2)
    with torch.no_grad(): model.head.weight.copy_(torch.tensor([[0., 1.], [1., 0.]]))
    x = pictures(1) * .5
    x[:, :, row*4:row*4+4, column*4:column*4+4] = 1.
    bright, dull = grad_cam(model, x, 1)[0], grad_cam(model, x, 0)[0]
    assert bright[row, column] == 1 and bright.sum() == 1
    assert dull[row, column] == 0 and (dull > 0).sum() == 63


# --- no trace

def snapshot(model):
    return dict(modes=[m.training for m in model.modules()], trains=[p.requires_grad for p in model.parameters()],
                gradients=[p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
                tensors=[t.clone() for t in model.state_dict().values()],
                hooks=[len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()])


def same(a, b):
    for k in a:
        for u, v in zip(a[k], b[k], strict=True): assert torch.equal(u, v) if isinstance(u, torch.Tensor) else u is v or u == v, k


@pytest.mark.parametrize("frozen", [0, -1])
@pytest.mark.parametrize("waiting", [False, True])
def test_nothing_of_the_model_has_changed(frozen, waiting):
    model, x = small().freeze_to(frozen).train(), pictures()
    model.body[1].eval()                                       # set by hand: neither all training nor all evaluation
    if waiting: model(x).sum().backward()                      # gradients that wait for a step
    model.body[0].register_forward_hook(lambda *_: None)       # somebody else's
    before, random = snapshot(model), torch.get_rng_state()
    maps = grad_cam(model, x)
    same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random) and not maps.requires_grad and not x.requires_grad
    assert torch.equal(grad_cam(model, x), maps), "dropout has a say"


class Stumble(nn.Module):
    def forward(self, x): raise KeyboardInterrupt


@pytest.mark.parametrize("error, how", [(KeyboardInterrupt, "head"), (ValueError, "target"), (ValueError, "layer"), (RuntimeError, "input")])
def test_nothing_has_changed_when_it_fails(error, how):
    model, x = small().freeze_to(-1).train(), pictures()
    if how == "head": model.head[1] = Stumble()
    before = snapshot(model)
    with pytest.raises(error): grad_cam(model, x[:, :2] if how == "input" else x, 7 if how == "target" else 0, model.pool if how == "layer" else None)
    same(snapshot(model), before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_whatever_mode_the_caller_is_in():
    model, x = small().freeze_to(-1), pictures()
    want = grad_cam(model, x)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, x + 0), want)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad(): assert torch.equal(grad_cam(model, x), want) and not torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(grad_cam(model, x), want)
    assert want.dtype == torch.float32 and grad_cam(model, x.bfloat16()).dtype == torch.float32
    assert torch.equal(grad_cam(model, x.clone().requires_grad_()), want)


def test_the_hook_is_gone_and_the_modes_are_back():
    model = small().train()
    with pytest.raises(ZeroDivisionError), _caught(model, model.body):
        assert model.body._forward_hooks and not any(m.training for m in model.modules())
        1 / 0
    assert not model.body._forward_hooks and all(m.training for m in model.modules())


# --- errors

def test_errors_say_what_to_do():
    model, x = small(), pictures()
    for target in (3, -1, [0, 1, 3]):
        with pytest.raises(ValueError, match=r"outputs 0 to 2; got target \[(3|-1)\]"): grad_cam(model, x, target)
    for target in ([0, 1], torch.zeros(3, 3, dtype=torch.long), .5, True, [0., 1., 2.]):
        with pytest.raises(ValueError, match="one for each of the 3 pictures"): grad_cam(model, x, target)
    with pytest.raises(TypeError, match="data.classes.index"): grad_cam(model, x, "circle")
    with pytest.raises(TypeError, match="data.classes.index"): grad_cam(model, x, ["circle"] * 3)
    with pytest.raises(ValueError, match="no part named 'body'.*layer="): grad_cam(resnet18(), x)
    with pytest.raises(ValueError, match=r"\(3, 16\).*before the pooling"): grad_cam(model, x, layer=model.pool)
    with pytest.raises(ValueError, match="0 times"): grad_cam(model, x, layer=nn.ReLU())
    block = resnet18().layer4[1]
    with pytest.raises(ValueError, match="ReLU, answered 2 times"): grad_cam(nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(1, 512, 4, 4), layer=block.relu)


# --- whole loaders

@pytest.mark.parametrize("kind, n_out", [("single", 3), ("multi", 3), ("number", 1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_maps_of_a_loader(tiny, kind, n_out, precision):
    model, few = small(n_out), replace(tiny.train, paths=tiny.train.paths[:7], targets=None, bs=3)   # it shuffles: not here
    labels = torch.arange(7) % n_out
    for target in (None, labels, 0):
        maps = heat_maps(model.train(), few, Engine("cpu", precision), target)
        x = torch.cat([to_inputs(b, few) for b in replace(few, shuffle=False).batches()])
        coarse = grad_cam(model, x, target)
        assert maps.shape == (7, 32, 32) and maps.dtype == torch.float32 and 0 <= maps.min() and maps.max() <= 1
        torch.testing.assert_close(maps, F.interpolate(coarse[:, None], (32, 32), mode="bilinear")[:, 0], rtol=1e-4, atol=1e-5)
    assert model.training


def test_only_the_loaders_items_are_opened(tiny, monkeypatch):
    opened, item = [], Loader.item
    monkeypatch.setattr(Loader, "item", lambda self, i: opened.append(self.paths[i]) or item(self, i))
    few = replace(tiny.valid, paths=tiny.valid.paths[2:5], targets=tiny.valid.targets[2:5])
    assert heat_maps(small(), few, Engine("cpu", "fp32")).shape == (3, 32, 32)
    assert sorted(opened) == sorted(few.paths)


def test_the_training_pictures_are_not_augmented(tiny):
    from lessonkit.data.augment import augmentations
    few = replace(tiny.train, paths=tiny.train.paths[:4], targets=None)
    wild = replace(few, augment=augmentations())
    assert torch.equal(heat_maps(small(), wild, Engine("cpu", "fp32")), heat_maps(small(), few, Engine("cpu", "fp32")))


def test_loaders_that_have_no_maps(tiny):
    model, engine = small(), Engine("cpu", "fp32")
    assert heat_maps(model, replace(tiny.valid, paths=(), targets=None), engine).shape == (0, 32, 32)
    features = FeatureLoader(**{f.name: getattr(tiny.valid, f.name) for f in fields(Loader)}, features=torch.zeros(tiny.valid.n, 16))
    with pytest.raises(ValueError, match="features"): heat_maps(model, features, engine)
    with pytest.raises(ValueError, match=f"2 targets for {tiny.valid.n} pictures"): heat_maps(model, tiny.valid, engine, [0, 1])
