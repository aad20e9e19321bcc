"""Grad-CAM: equal to captum's, exact where it can be worked out, and it changes nothing."""
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from hypothesis import given, strategies as st
from torch import nn
from torchvision.models import densenet121, resnet18

from lessonkit.data import sample
from lessonkit.data.augment import augmentations, to_inputs
from lessonkit.data.image_data import ImageData, imagenet_stats
from lessonkit.data.loader import Loader
from lessonkit.model.classifier import Classifier
from lessonkit.model.create import create_model
from lessonkit.results.explain import capture_activations, grad_cam, heat_maps
from lessonkit.train.engine import Engine
from lessonkit.train.features import FeatureLoader
from tiers import examples

ENGINE = Engine("cpu", "fp32")


def small(n_out=3, seed=0):
    "A classifier with a grid of 8 by 8 for 32 pixels, whose batch normalization has statistics."
    torch.manual_seed(seed)
    def layers(n_in, n_out):
        return nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
    body = nn.Sequential(*layers(3, 6), *layers(6, 8))
    model = Classifier(body, 8, n_out, imagenet_stats, [("body", [body])])
    model.train()(torch.rand(8, 3, 32, 32))
    return model


def images(n=3, size=32, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def scaled(cam): return cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-30)


def reference(model, layer, x, target):
    "captum's map, which is neither cut at zero (by choice) nor divided by its maximum."
    cam = LayerGradCam(model.eval(), layer).attribute(x, target=target, relu_attributions=True)
    return scaled(cam.detach()[:, 0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = sample.tiny(tmp_path_factory.mktemp("tiny"))
    return ImageData.from_name_re(folder, r"^(.+)_\d+", size=32, bs=13)


# --- the same as captum

@pytest.mark.parametrize("layer, side", [("layer4", 3), ("layer2", 12)])
def test_a_plain_resnet_as_captum_has_it(layer, side):
    torch.manual_seed(0)
    model, x, target = resnet18(num_classes=5), images(3, 96), torch.tensor([0, 4, 2])
    layer = model.get_submodule(layer)
    got, want = grad_cam(model, x, target, layer), reference(model, layer, x, target)
    assert got.shape == want.shape
    assert got.shape[-1] == side
    assert want.amax((1, 2)).sum() >= 2, "a map of zeros would compare nothing"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["mlp", "linear"])
@pytest.mark.parametrize("frozen", [0, -1])
def test_a_classifier_as_captum_has_it(frozen, head):
    model, x = create_model("resnet18", n_out=4, weights=None, head=head), images(4, 96)
    torch.manual_seed(0)
    if head == "linear": nn.init.normal_(model.head[1].weight)
    want = {target: reference(model, model.body.layer4, x, target) for target in (0, 3)}
    assert torch.stack(list(want.values())).amax((0, 1, 2, 3)) == 1
    model.freeze_to(frozen)
    for target, cam in want.items():
        torch.testing.assert_close(grad_cam(model, x, target), cam, rtol=1e-4, atol=1e-5)


def test_a_layer_before_one_that_works_in_place():
    "What comes after the layer overwrites its output; the map is of the output itself."
    model, x = small(), images()
    before = model.body[4]
    activation = model.eval().body[:5](model.normalize(x)).detach().requires_grad_()
    score = model.head(model.pool(activation.relu()))[:, 1].sum()
    gradient, = torch.autograd.grad(score, activation)
    cam = (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach()
    want = cam / cam.amax((1, 2), keepdim=True)
    torch.testing.assert_close(grad_cam(model, x, 1, before), want, rtol=1e-4, atol=1e-6)


def test_a_densenet_whose_body_is_followed_by_work_in_place():
    torch.manual_seed(0)
    dense = densenet121(num_classes=2)
    assert grad_cam(dense, images(2, 64), 0, dense.features).shape == (2, 2, 2)


# --- worked out

class Weighted(nn.Module):
    "A convolution that lets everything through, the mean over all places, and one linear layer."
    def __init__(self, weight):
        super().__init__()
        self.body, self.weight = nn.Conv2d(3, 3, 1, bias=False), nn.Parameter(torch.tensor(weight))
        self.body.weight.data = torch.eye(3)[..., None, None]

    def forward(self, x): return self.body(x).mean((2, 3)) @ self.weight.T


def test_by_hand():
    model = Weighted([[1., 0, -2], [-1, 0, 0], [0, 0, 0]])
    x = torch.tensor([[[8., 0], [4, 6]], [[9, 9], [9, 9]], [[1, 1], [0, 3]]])[None]
    # 8 - 2, 0 - 2, 4 - 0, 6 - 6
    assert torch.equal(grad_cam(model, x, 0), torch.tensor([[[1., 0], [4/6, 0]]]))
    # everything speaks against class 1, and nothing influences class 2
    for target in (1, 2): assert torch.equal(grad_cam(model, x, target), torch.zeros(1, 2, 2))
    # the scores are 4.5 - 2.5, -4.5 and 0
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, 0))
    assert torch.equal(grad_cam(model, -x), grad_cam(model, -x, 1))


def test_each_image_has_a_map_of_its_own():
    model, x, target = small(), images(5), torch.tensor([0, 1, 2, 1, 0])
    maps = grad_cam(model, x, target)
    for i in range(5):
        alone = grad_cam(model, x[i:i+1], target[i:i+1])
        torch.testing.assert_close(maps[i:i+1], alone, rtol=1e-4, atol=1e-5)
    assert grad_cam(model, x[:0]).shape == (0, 8, 8)


def test_targets_come_in_several_forms():
    model, x, target = small(), images(5), torch.tensor([0, 1, 2, 1, 0])
    maps = grad_cam(model, x, target)
    for same in (target.tolist(), target.int(), target.numpy()):
        assert torch.equal(grad_cam(model, x, same), maps)
    assert torch.equal(grad_cam(model, x, 1), grad_cam(model, x, [1] * 5))
    assert not torch.equal(grad_cam(model, x, 1), maps)


@examples(30)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-12, 1e-3, 1., 1e6]),
       target=st.integers(0, 2))
def test_maps_lie_between_zero_and_one(seed, scale, target):
    model = small(seed=seed % 7)
    with torch.no_grad(): model.head[-1].weight.mul_(scale)
    maps = grad_cam(model, images(4, seed=seed), target)
    peak = maps.amax((1, 2))
    assert maps.isfinite().all()
    assert maps.min() >= 0
    assert ((peak == 0) | (peak == 1)).all()


def test_a_dead_body_gives_zeros():
    model = small()
    with torch.no_grad():
        model.body[4].weight.zero_()
        model.body[4].bias.fill_(-1.)
    assert torch.equal(grad_cam(model, images()), torch.zeros(3, 8, 8))


# --- a planted case

def brightness_detector():
    "Class 1 is 'something bright': channel 0 is active where the mean of a patch is above .9."
    body = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.ReLU())
    with torch.no_grad():
        mean = torch.full((3, 4, 4), 1 / 48)
        body[0].weight.copy_(torch.stack([mean, -mean]))
        body[0].bias.copy_(torch.tensor([-.9, .9]))
    model = Classifier(body, 2, 2, imagenet_stats, [("body", [body])])
    model.normalize = nn.Identity()
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.head = nn.Linear(2, 2)
    with torch.no_grad(): model.head.weight.copy_(torch.tensor([[0., 1.], [1., 0.]]))
    return model


@pytest.mark.parametrize("row, column", [(0, 0), (2, 5), (7, 7)])
def test_all_of_the_map_is_where_the_evidence_is(row, column):
    model, x = brightness_detector(), images(1) * .5
    x[:, :, row*4:row*4+4, column*4:column*4+4] = 1.
    bright, dull = grad_cam(model, x, 1)[0], grad_cam(model, x, 0)[0]
    assert bright[row, column] == 1
    assert bright.sum() == 1
    assert dull[row, column] == 0
    assert (dull > 0).sum() == 63


# --- nothing changes

def snapshot(model):
    def hooks(m): return len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
    gradients = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
    return dict(modes=[m.training for m in model.modules()],
                trained=[p.requires_grad for p in model.parameters()], gradients=gradients,
                tensors=[t.clone() for t in model.state_dict().values()],
                hooks=[hooks(m) for m in model.modules()])


def assert_same(after, before):
    for name in before:
        for u, v in zip(after[name], before[name], strict=True):
            if isinstance(u, torch.Tensor): assert torch.equal(u, v), name
            else: assert u == v, name


def modes_set_by_hand(frozen):
    model = small().freeze_to(frozen).train()
    model.body[1].eval()  # neither all training nor all evaluation
    return model


@pytest.mark.parametrize("frozen", [0, -1])
@pytest.mark.parametrize("waiting", [False, True])
def test_the_model_does_not_change(frozen, waiting):
    model, x = modes_set_by_hand(frozen), images()
    if waiting: model(x).sum().backward()  # gradients that wait for a step
    model.body[0].register_forward_hook(lambda *_: None)  # somebody else's
    before, random = snapshot(model), torch.get_rng_state()
    maps = grad_cam(model, x)
    assert_same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert not maps.requires_grad
    assert not x.requires_grad
    assert torch.equal(grad_cam(model, x), maps), "dropout plays a part"


class Interrupted(nn.Module):
    def forward(self, x): raise KeyboardInterrupt


def fail_in_head(model, x):
    model.head[1] = Interrupted()
    return lambda: grad_cam(model, x, 0)


def fail_for_target(model, x): return lambda: grad_cam(model, x, 7)
def fail_for_layer(model, x): return lambda: grad_cam(model, x, 0, model.pool)
def fail_for_input(model, x): return lambda: grad_cam(model, x[:, :2], 0)


@pytest.mark.parametrize("error, prepare", [
    (KeyboardInterrupt, fail_in_head), (ValueError, fail_for_target),
    (ValueError, fail_for_layer), (RuntimeError, fail_for_input)])
def test_nothing_changes_when_it_fails(error, prepare):
    model = small().freeze_to(-1).train()
    call = prepare(model, images())
    before = snapshot(model)
    with pytest.raises(error): call()
    assert_same(snapshot(model), before)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_maps_are_the_same_in_any_mode_of_the_caller():
    model, x = small().freeze_to(-1), images()
    want = grad_cam(model, x)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, x + 0), want)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert torch.equal(grad_cam(model, x), want)
        assert not torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(grad_cam(model, x), want)
    assert torch.equal(grad_cam(model, x.clone().requires_grad_()), want)


def test_maps_are_computed_in_32_bits():
    model, x = small(), images()
    assert grad_cam(model, x).dtype == torch.float32
    assert grad_cam(model, x.bfloat16()).dtype == torch.float32


def test_the_hook_is_removed_and_the_modes_are_restored():
    model = small().train()
    with pytest.raises(ZeroDivisionError), capture_activations(model, model.body):
        assert model.body._forward_hooks
        assert not any(m.training for m in model.modules())
        1 / 0
    assert not model.body._forward_hooks
    assert all(m.training for m in model.modules())


# --- errors

@pytest.mark.parametrize("target", [3, -1, [0, 1, 3]])
def test_classes_that_the_model_does_not_have_are_errors(target):
    with pytest.raises(ValueError, match=r"outputs 0 to 2; got target \[(3|-1)\]"):
        grad_cam(small(), images(), target)


@pytest.mark.parametrize("target", [
    [0, 1], torch.zeros(3, 3, dtype=torch.long), .5, True, [0., 1., 2.]])
def test_targets_that_do_not_fit_the_images_are_errors(target):
    with pytest.raises(ValueError, match="one for each of the 3 images"):
        grad_cam(small(), images(), target)


@pytest.mark.parametrize("target", ["circle", ["circle"] * 3])
def test_names_are_not_class_numbers(target):
    with pytest.raises(TypeError, match="data.classes.index"): grad_cam(small(), images(), target)


def test_layers_without_a_grid_are_errors():
    model, x = small(), images()
    with pytest.raises(ValueError, match="no part named 'body'.*layer="): grad_cam(resnet18(), x)
    with pytest.raises(ValueError, match=r"\(3, 16\).*before the pooling"):
        grad_cam(model, x, layer=model.pool)
    with pytest.raises(ValueError, match="0 times"): grad_cam(model, x, layer=nn.ReLU())
    block = resnet18().layer4[1]
    net = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="ReLU, ran 2 times"):
        grad_cam(net, torch.rand(1, 512, 4, 4), layer=block.relu)


# --- whole loaders

@pytest.mark.parametrize("n_out", [3, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_maps_of_a_loader(tiny, n_out, precision):
    model = small(n_out)
    few = replace(tiny.train, paths=tiny.train.paths[:7], targets=None, bs=3)  # it shuffles
    x = torch.cat([to_inputs(b, few) for b in replace(few, shuffle=False).batches()])
    for target in (None, torch.arange(7) % n_out, 0):
        maps = heat_maps(model.train(), few, Engine("cpu", precision), target)
        coarse = grad_cam(model, x, target)
        large = F.interpolate(coarse[:, None], (32, 32), mode="bilinear")[:, 0]
        assert maps.shape == (7, 32, 32)
        assert maps.dtype == torch.float32
        assert 0 <= maps.min()
        assert maps.max() <= 1
        torch.testing.assert_close(maps, large, rtol=1e-4, atol=1e-5)
    assert model.training


def test_only_the_images_of_the_loader_are_opened(tiny, monkeypatch):
    opened, item = [], Loader.item
    def counting(self, i):
        opened.append(self.paths[i])
        return item(self, i)
    monkeypatch.setattr(Loader, "item", counting)
    few = replace(tiny.valid, paths=tiny.valid.paths[2:5], targets=tiny.valid.targets[2:5])
    assert heat_maps(small(), few, ENGINE).shape == (3, 32, 32)
    assert sorted(opened) == sorted(few.paths)


def test_training_images_are_not_augmented(tiny):
    few = replace(tiny.train, paths=tiny.train.paths[:4], targets=None)
    augmented = replace(few, augment=augmentations())
    maps = heat_maps(small(), augmented, ENGINE)
    assert torch.equal(maps, heat_maps(small(), few, ENGINE))


def test_an_empty_loader_has_no_maps(tiny):
    empty = replace(tiny.valid, paths=(), targets=None)
    assert heat_maps(small(), empty, ENGINE).shape == (0, 32, 32)


def test_loaders_without_maps_are_errors(tiny):
    model, n = small(), tiny.valid.n
    options = {f.name: getattr(tiny.valid, f.name) for f in fields(Loader)}
    features = FeatureLoader(**options, features=torch.zeros(n, 16))
    with pytest.raises(ValueError, match="features"): heat_maps(model, features, ENGINE)
    with pytest.raises(ValueError, match=f"2 targets for {n} images"):
        heat_maps(model, tiny.valid, ENGINE, [0, 1])
