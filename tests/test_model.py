"""Bodies of any number of channels, layer groups and freezing, in several families of networks."""
import copy

import pytest
import torch
import torchvision
from hypothesis import given, strategies as st
from torch import nn

from lessonkit.data.image_data import imagenet_stats, Stats
from lessonkit.model.classifier import ConcatPool, Normalize, NORMS
from lessonkit.model.create import adapt_channels, adapt_stats, create_model, model_summary
from tiers import examples

FAMILIES = ["resnet18", "tf_efficientnet_lite0", "mobilenet_v3_small", "densenet121",
            "squeezenet1_1", "regnet_y_400mf", "timm:resnet10t"]
common = examples(30)
equal_stats = Stats((.45,) * 3, (.25,) * 3)   # the same for each channel


def first_convolution(model):
    return next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))


def assert_same_state(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


# ---- channels

def channels_and_weights(w):
    "Numbers of channels, each with what the weights `w` of the first convolution become."
    yield 1, w.sum(1, keepdim=True)
    yield 2, w[:, :2] * 1.5
    yield 5, torch.cat([w, torch.zeros_like(w[:, :2])], 1)


@pytest.mark.parametrize("arch", FAMILIES)
def test_channels_change_only_the_first_convolution(arch):
    color = create_model(arch, n_out=3, weights=None, stats=equal_stats)
    state = color.state_dict()
    for channels, wanted in channels_and_weights(first_convolution(color).weight):
        model = create_model(arch, n_out=3, weights=None, stats=equal_stats, channels=channels)
        first = first_convolution(model)
        assert model.channels == channels
        assert first.in_channels == channels
        assert torch.equal(first.weight, wanted)
        other = {name for name, v in model.state_dict().items()
                 if v.shape != state[name].shape or not torch.equal(v, state[name])}
        name = next(name for name, m in model.named_modules() if m is first)
        assert other == {f"{name}.weight", "normalize.mean", "normalize.std"}   # not the head
        grouped = {id(p) for group in model.group_parameters() for p in group}
        assert grouped == {id(p) for p in model.parameters()}
        with torch.inference_mode(): out = model.eval()(torch.rand(2, channels, 96, 80))
        assert out.shape == (2, 3)


@pytest.mark.parametrize("arch, weights", [("resnet18", None), ("densenet121", None),
                                           (None, "pretrained")])
def test_a_gray_image_gets_the_answer_of_its_colored_copy(arch, weights):
    def double(channels):
        model = create_model(arch, n_out=4, weights=weights, stats=equal_stats, channels=channels)
        return model.eval().double()
    color, gray = double(3), double(1)
    x = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    with torch.inference_mode(): expected, found = color(x.expand(2, 3, 64, 64)), gray(x)
    assert torch.allclose(expected, found, atol=1e-4)   # the sum is rounded to 32 bits


def test_further_channels_are_ignored_at_first_and_learned_when_unfrozen():
    three, five = (create_model(n_out=4, channels=c).eval().double() for c in (3, 5))
    x = torch.rand(3, 5, 64, 64, dtype=torch.float64)
    noisy = torch.cat([x[:, :3], torch.rand(3, 2, 64, 64, dtype=torch.float64)], 1)
    with torch.inference_mode():
        assert torch.allclose(five(x), three(x[:, :3]), rtol=1e-6, atol=1e-9)
        assert torch.allclose(five(x), five(noisy), rtol=1e-9)
    five.freeze_to(0)(x).sum().backward()
    assert (first_convolution(five).weight.grad[:, 3:] != 0).any()


@common
@given(channels=st.integers(1, 9), means=st.tuples(*[st.floats(0, 1)] * 3),
       stds=st.tuples(*[st.floats(.01, 1)] * 3))
def test_statistics_follow_the_channels(channels, means, stds):
    rgb = Stats(means, stds)
    adapted = adapt_stats(rgb, channels)
    kept = 0 if channels == 1 else min(channels, 3)
    for values, of_rgb in ((adapted.mean, means), (adapted.std, stds)):
        assert len(values) == channels
        assert values[:kept] == of_rgb[:kept]
        assert values[kept:] == pytest.approx([sum(of_rgb) / 3] * (channels - kept))
    assert adapt_stats(adapted, channels) is adapted


def test_own_statistics_have_to_fit_the_channels():
    own = Stats((.1, .2, .3, .4), (.5, .6, .7, .8))
    model = create_model("resnet18", weights=None, stats=own, channels=4)
    assert model.normalize.mean.flatten().tolist() == pytest.approx(own.mean)
    with pytest.raises(ValueError, match="statistics are of 4 channels, and the images have 3"):
        create_model("resnet18", weights=None, stats=own)
    with pytest.raises(ValueError, match="channels is .* above 0; got 0"):
        create_model("resnet18", weights=None, channels=0)


def test_bodies_that_do_not_start_with_colors_are_refused():
    folded = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3))
    before = copy.deepcopy(folded.state_dict())
    with pytest.raises(ValueError, match="no first convolution that takes 3 channels"):
        adapt_channels(folded, 5)
    adapt_channels(folded, 3)
    assert_same_state(folded, before)


def test_weights_for_colors_can_be_loaded_for_other_channels(tmp_path):
    net = torchvision.models.resnet18(weights=None)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    model = create_model("resnet18", weights=tmp_path / "mine.pth", channels=1)
    assert torch.equal(model.body.conv1.weight, net.conv1.weight.sum(1, keepdim=True))
    assert model.frozen == 2


# ---- groups

@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize("arch", FAMILIES)
def test_groups_are_frozen_as_a_whole(arch, train_bn):
    model = create_model(arch, n_out=3, weights=None)
    model.weights, model.train_bn = "as if pretrained", train_bn
    count = len(model.groups)
    for n in range(-count, count):
        assert model.freeze_to(n).train().frozen == n % count
        for i, layer in model.group_layers():
            norm, frozen = isinstance(layer, NORMS), i < n % count
            trained = not frozen or (norm and train_bn)
            assert all(p.requires_grad == trained for p in layer.parameters(recurse=False))
            in_training = train_bn if norm else not frozen
            assert layer.training == (in_training or i == count - 1)
    assert not any(m.training for m in model.eval().modules())


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_layer_is_in_one_group(arch):
    model = create_model(arch, n_out=3, weights=None)
    layers = [id(layer) for _, layer in model.group_layers()]
    assert len(set(layers)) == len(layers)
    with_parameters = [m for m in model.modules() if list(m.parameters(recurse=False))]
    assert {id(m) for m in with_parameters} <= set(layers)


# ---- layers

@common
@given(n=st.integers(1, 3), f=st.integers(1, 6), h=st.integers(1, 7), w=st.integers(1, 7),
       key=st.integers(0, 1000))
def test_pool_and_normalize(n, f, h, w, key):
    x = torch.rand(n, f, h, w, generator=torch.Generator().manual_seed(key))
    pooled = ConcatPool()(x)
    assert torch.equal(pooled[:, :f], x.flatten(2).max(2).values)
    assert torch.allclose(pooled[:, f:], x.flatten(2).mean(2), atol=1e-6)
    stats = Stats(tuple(x.mean((0, 2, 3)).tolist()), (.5,) * f)
    assert Normalize(stats)(x).mean((0, 2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_summary_leaves_the_model_as_it_was(channels):
    model = create_model("resnet18", n_out=5, weights=None, channels=channels).freeze_to(1).train()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    table = model_summary(model, 64)
    assert table.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert table.trained.sum() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert table.output.iloc[0] == "64x32x32"
    assert table.parameters.iloc[0] == 64 * channels * 49
    assert modes == [m.training for m in model.modules()]
    assert not any(m._forward_hooks for m in model.modules())
    assert_same_state(model, state)


def test_the_number_of_channels_is_that_of_the_statistics():
    assert create_model("resnet18", weights=None, stats=imagenet_stats).channels == 3
