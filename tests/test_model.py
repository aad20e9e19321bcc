"""Bodies of any number of channels, groups of layers, and what freezing them means, over several families of networks."""
import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lessonkit.data.image_data import imagenet_stats, Stats
from lessonkit.model.classifier import ConcatPool, Normalize, NORMS
from lessonkit.model.create import adapt_channels, adapt_stats, create_model, model_summary

FAMILIES = ["resnet18", "tf_efficientnet_lite0", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "regnet_y_400mf", "timm:resnet10t"]
common = settings(max_examples=30, deadline=None)
alike = Stats((.45,) * 3, (.25,) * 3)   # the same for each channel


def first_convolution(model): return next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("arch", FAMILIES)
def test_only_the_first_convolution_knows_of_channels(arch):
    colors = create_model(arch, n_out=3, weights=None, stats=alike)
    w, rest = first_convolution(colors).weight, colors.state_dict()
    for channels, wanted in ((1, w.sum(1, keepdim=True)), (2, w[:, :2] * 1.5), (5, torch.cat([w, torch.zeros_like(w[:, :2])], 1))):
        model = create_model(arch, n_out=3, weights=None, stats=alike, channels=channels)
        assert model.channels == channels == first_convolution(model).in_channels and torch.equal(first_convolution(model).weight, wanted)
        other = {k for k, v in model.state_dict().items() if v.shape != rest[k].shape or not torch.equal(v, rest[k])}
        name = next(k for k, m in model.named_modules() if m is first_convolution(model))
        assert other == {f"{name}.weight", "normalize.mean", "normalize.std"}      # the head is drawn alike, too
        assert {id(p) for g in model.group_parameters() for p in g} == {id(p) for p in model.parameters()}
        with torch.inference_mode(): assert model.eval()(torch.rand(2, channels, 96, 80)).shape == (2, 3)


@pytest.mark.parametrize("arch, weights", [("resnet18", None), ("densenet121", None), (None, "pretrained")])
def test_a_gray_picture_gets_the_answers_of_its_colored_copy(arch, weights):
    colors, gray = (create_model(arch, n_out=4, weights=weights, stats=alike, channels=c).eval().double() for c in (3, 1))
    x = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    with torch.inference_mode(): assert torch.allclose(colors(x.expand(2, 3, 64, 64)), gray(x), atol=1e-4)   # the sum is rounded to 32 bits


def test_further_channels_are_ignored_at_first_and_learned_when_unfrozen():
    three, five = (create_model(n_out=4, channels=c).eval().double() for c in (3, 5))
    x = torch.rand(3, 5, 64, 64, dtype=torch.float64)
    noisy = torch.cat([x[:, :3], torch.rand(3, 2, 64, 64, dtype=torch.float64)], 1)
    with torch.inference_mode():
        assert torch.allclose(five(x), three(x[:, :3]), rtol=1e-6, atol=1e-9) and torch.allclose(five(x), five(noisy), rtol=1e-9)
    five.freeze_to(0)(x).sum().backward()
    assert (first_convolution(five).weight.grad[:, 3:] != 0).any()


@common
@given(channels=st.integers(1, 9), means=st.tuples(*[st.floats(0, 1)] * 3), stds=st.tuples(*[st.floats(.01, 1)] * 3))
def test_statistics_follow_the_channels(channels, means, stds):
    rgb = Stats(means, stds)
    got = adapt_stats(rgb, channels)
    assert len(got.mean) == len(got.std) == channels
    kept = 0 if channels == 1 else min(channels, 3)
    assert got.mean[:kept] == rgb.mean[:kept] and got.std[:kept] == rgb.std[:kept]
    for own, v in ((got.mean, means), (got.std, stds)): assert own[kept:] == pytest.approx([sum(v) / 3] * (channels - kept))
    assert adapt_stats(got, channels) is got


def test_statistics_of_ones_own():
    mine = Stats((.1, .2, .3, .4), (.5, .6, .7, .8))
    assert create_model("resnet18", weights=None, stats=mine, channels=4).normalize.mean.flatten().tolist() == pytest.approx(mine.mean)
    with pytest.raises(ValueError, match="statistics are of 4 channels, and the pictures have 3"):
        create_model("resnet18", weights=None, stats=mine)
    with pytest.raises(ValueError, match="channels is .* at least 1; got 0"): create_model("resnet18", weights=None, channels=0)


def test_bodies_that_do_not_begin_with_colors_are_refused():
    folded = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3))
    before = copy.deepcopy(folded.state_dict())
    with pytest.raises(ValueError, match="no first convolution that takes 3 channels"): adapt_channels(folded, 5)
    adapt_channels(folded, 3)
    assert all(torch.equal(v, before[k]) for k, v in folded.state_dict().items())


def test_a_file_of_weights_for_colors_serves_other_channels(tmp_path):
    import torchvision
    net = torchvision.models.resnet18(weights=None)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    model = create_model("resnet18", weights=tmp_path / "mine.pth", channels=1)
    assert torch.equal(model.body.conv1.weight, net.conv1.weight.sum(1, keepdim=True)) and model.frozen == 2


@pytest.mark.parametrize("arch", FAMILIES)
def test_freezing_is_by_groups(arch):
    model = create_model(arch, n_out=3, weights=None)
    count = len(model.groups)
    model.weights = "as if pretrained"
    for train_bn in (False, True):
        model.train_bn = train_bn
        for n in range(-count, count):
            assert model.freeze_to(n).train().frozen == n % count
            for i, (_, modules) in enumerate(model.groups):
                for layer in (layer for m in modules for layer in m.modules()):
                    norm, frozen = isinstance(layer, NORMS), i < n % count
                    assert all(p.requires_grad == (not frozen or norm and train_bn) for p in layer.parameters(recurse=False))
                    assert layer.training == (i == count - 1 or (train_bn if norm else not frozen))
    assert not any(m.training for m in model.eval().modules())


@common
@given(n=st.integers(1, 3), f=st.integers(1, 6), h=st.integers(1, 7), w=st.integers(1, 7), key=st.integers(0, 1000))
def test_pool_and_normalize(n, f, h, w, key):
    x = torch.rand(n, f, h, w, generator=torch.Generator().manual_seed(key))
    pooled = ConcatPool()(x)
    assert torch.equal(pooled[:, :f], x.flatten(2).max(2).values) and torch.allclose(pooled[:, f:], x.flatten(2).mean(2), atol=1e-6)
    stats = Stats(tuple(x.mean((0, 2, 3)).tolist()), (.5,) * f)
    assert Normalize(stats)(x).mean((0, 2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_summary_of_any_channels_leaves_the_model_as_it_was(channels):
    model = create_model("resnet18", n_out=5, weights=None, channels=channels).freeze_to(1).train()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    table = model_summary(model, 64)
    assert table.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert table.trained.sum() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert table.output.iloc[0] == "64x32x32" and table.parameters.iloc[0] == 64 * channels * 49
    assert modes == [m.training for m in model.modules()] and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert create_model("resnet18", weights=None, stats=imagenet_stats).channels == 3
