"""Networks that users bring along: used as they are, trained, saved, and refused by name."""
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner
from lessonkit.model.create import create_model


@pytest.fixture(scope="module")
def images(tmp_path_factory): return sample.tiny(tmp_path_factory.mktemp("own")/"flat", n=36)


def data_of(images, **options):
    usual = dict(size=32, bs=12, threads=2, check=None)
    return ImageData.from_name_re(images, r"^(.+)_\d+", **usual | options)


def learner(images, arch, size=32, **options):
    usual = dict(weights=None, precision="fp32", device="cpu", model_dir=images.parent, show=False)
    return Learner(data_of(images, size=size), arch, **usual | options)


class Bare(nn.Module):
    "No chain, and no normalization."
    def __init__(self, n_out=7):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, n_out)

    def forward(self, x): return self.last(self.conv(x).relu().mean((2, 3)))


class Skips(nn.Module):
    "What goes around a layer is in its `forward`."
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.bn, self.offset = nn.BatchNorm2d(6), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        x = self.first(x)
        return self.bn(x + self.second(x)) + self.offset


def tiny_vit(size=32): return models.VisionTransformer(size, 8, 4, 2, 32, 64)


def chain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def resnet18(**options): return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU())


NETWORKS = {
    "class": Bare, "instance": lambda: Bare(3), "partial": partial(Bare, n_out=5),
    "skips": Skips, "chain": chain, "same name": resnet18, "ViT": tiny_vit,
    "timm ViT": lambda: timm.create_model("test_vit3", img_size=32, patch_size=8),
    "timm ResNet": lambda: timm.create_model("test_resnet"),
    "changed ResNet": partial(models.resnet18, norm_layer=partial(nn.GroupNorm, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_own_networks_train_and_come_back(images, name):
    learn = learner(images, NETWORKS[name])
    assert learn.model.arch.startswith("own:")
    body = [p for ps in learn.model.group_parameters()[:-1] for p in ps]
    assert len(body) == len(set(body)) == len(list(learn.model.body.parameters()))
    before = [p.detach().clone() for p in body]
    learn.fit_one_cycle(1, 1e-2)
    assert any(not torch.equal(a, b) for a, b in zip(before, body))
    learn.save(f"own {name}")
    again = learner(images, NETWORKS[name], seed=3)
    again.load(f"own {name}")
    assert torch.equal(again.get_preds().probs, learn.get_preds().probs)


def test_a_head_of_your_own_on_a_network_of_your_own(images):
    sizes = []
    def head(n_features, n_out):
        sizes.append((n_features, n_out))
        return nn.Sequential(nn.LayerNorm(n_features), nn.Linear(n_features, n_out))
    learn = learner(images, Bare, head=head)
    assert learn.model.head_kind == "own:head"
    assert sizes == [(6, 3)]   # the network pools, so that there is no maximum beside the average
    before = learn.model.head[1].weight.detach().clone()
    learn.fit(1, 1e-2)
    assert not torch.equal(learn.model.head[1].weight, before)
    with pytest.raises(ValueError, match="lineal.*Did you mean 'linear'"):
        learner(images, Bare, head="lineal")


@pytest.mark.parametrize("name", ["skips", "chain", "ViT", "timm ResNet"])
def test_a_frozen_own_body_stays(images, name):
    learn = learner(images, NETWORKS[name], cache=True)
    learn.freeze()
    before = {k: v.clone() for k, v in learn.model.body.state_dict().items()}
    learn.fit(1, 1e-2)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.body.state_dict().items())
    assert "once" in learn.history.fits[0].notes[0]


@pytest.mark.filterwarnings("ignore:.*looks untrained")
@pytest.mark.parametrize("name", ["class", "skips", "chain", "ViT", "timm ResNet"])
def test_own_bodies_get_a_linear_head_that_is_solved(images, name):
    learn = learner(images, NETWORKS[name], weights="pretrained")
    assert learn.model.head_kind == "linear"
    assert learn.model.head.untrained
    learn.fit(1, 1e-5)
    assert not learn.model.head.untrained
    assert any("penalty" in note for note in learn.history.fits[0].notes)
    learn.save(f"own linear {name}")
    again = learner(images, NETWORKS[name], weights="pretrained", seed=3)
    again.load(f"own linear {name}")
    assert torch.equal(again.get_preds().probs, learn.get_preds().probs)


def test_a_network_is_used_itself_and_keeps_its_layers(images):
    net = Bare()
    learn = learner(images, net)
    assert learn.model.body.conv.weight is net.conv.weight
    assert isinstance(net.last, nn.Linear)
    learn.fit(1, 1e-2)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_torchvisions_own_functions_are_meant_by_identity():
    theirs = create_model(models.resnet18, weights=None)
    assert theirs.arch == "resnet18"
    assert create_model("resnet18", weights=None).state_dict().keys() == theirs.state_dict().keys()
    assert create_model(timm.models.resnet18, weights=None).arch == "resnet18"
    mine = create_model(resnet18, weights=None)
    assert (mine.arch, sum(p.numel() for p in mine.body.parameters())) == ("own:resnet18", 196)


def test_other_models_do_not_load(images):
    learner(images, Bare).save("bare")
    for other in (chain, partial(models.resnet18), "resnet18"):
        with pytest.raises(ValueError, match="own:Bare|bare"):
            learner(images, other).load("bare")


@pytest.mark.parametrize("arch, size", [(tiny_vit, 32), ("timm:test_vit3", 160)])
def test_transformers_say_which_size_they_take(images, arch, size):
    with pytest.raises(ValueError, match=f"no images of 48 pixels .* but of {size}"):
        learner(images, arch, size=48)


def test_data_of_another_size_is_refused_before_training(images):
    learn = learner(images, tiny_vit)
    with pytest.raises(ValueError, match="no images of 48 pixels"):
        learn.set_data(learn.data.resized(48))
    assert learn.data.size == 32


@pytest.mark.parametrize("wrong, text", [
    (nn.Linear, "without arguments"), (lambda a, b: a, "without arguments"),
    (Bare().half, "float16"), ([Bare()], "arch is"), (lambda: None, "made None"),
    (nn.Flatten(0), "puts out"), (nn.Conv2d(1, 2, 3), "1 channel"), (nn.Conv2d(3, 2, 99), "99")])
def test_what_is_no_network_is_refused_in_few_words(images, wrong, text):
    with pytest.raises(ValueError, match=text) as caught: learner(images, wrong)
    assert len(str(caught.value)) < 400


def test_weights_of_an_own_network(images, tmp_path):
    net = Bare()
    torch.save(net.state_dict(), tmp_path/"bare.pth")
    learn = learner(images, Bare, weights=tmp_path/"bare.pth")
    assert torch.equal(learn.model.body.conv.weight, net.conv.weight)
    assert (learn.model.weights, learn.model.frozen) == ("bare.pth", 1)
    as_given = learner(images, net, weights="pretrained")
    assert (as_given.model.weights, as_given.model.frozen) == ("as given", 1)
    with pytest.warns(UserWarning, match="looks untrained.*weights=None"):
        learner(images, chain, weights="pretrained")
    for wrong in (True, False, 3, models.ResNet18_Weights.DEFAULT):
        with pytest.raises(ValueError, match="^weights"): learner(images, Bare, weights=wrong)
