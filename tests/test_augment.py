"""Geometry and light of the batch stage, on random parameters, against torchvision's own."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torchvision.transforms import functional as TF

from lessonkit.data.augment import (
    apply_maps, Augment, augmentations, batch_stage, center_crop_maps, change_lighting,
    corner_views, CORNERS, crop_maps, identity_maps, perspective_maps, random_maps, rotation_maps,
    View, warp_images,
)
from lessonkit.data.mixing import Mix, mix_batch
from lessonkit.core.rng import seeded_rng

SIDE = 96
MIDDLE = (..., slice(30, 66), slice(30, 66))
BILINEAR = TF.InterpolationMode.BILINEAR
common = settings(max_examples=30, deadline=None)
small = st.floats(-.25, .25)


@pytest.fixture(scope="module")
def smooth():
    y, x = torch.meshgrid(torch.linspace(-3, 3, SIDE), torch.linspace(-3, 3, SIDE), indexing="ij")
    return torch.stack([(x + y).sin(), (x * 1.3).cos(), (y - x / 2).sin()])[None] / 2 + .5


def pixels(points): return [[float((v + 1) * SIDE / 2 - .5) for v in points[i]] for i in (0, 2, 3, 1)]   # torchvision wants TL, TR, BR, BL


@common
@given(angle=st.floats(-180, 180), zoom=st.floats(1, 2))
def test_turn_and_zoom_are_torchvisions(smooth, angle, zoom):
    one = torch.ones(1, dtype=torch.float64)
    ours = warp_images(smooth, crop_maps(0 * one, 0 * one, one / zoom, one / zoom) @ rotation_maps(torch.tensor([angle])), SIDE)
    theirs = TF.affine(smooth, -angle, [0, 0], zoom, [0., 0.], BILINEAR)
    assert (ours - theirs)[MIDDLE].abs().max() < 5e-3


@common
@given(moves=st.lists(small, min_size=8, max_size=8))
def test_tilt_is_torchvisions(smooth, moves):
    corners = CORNERS + torch.tensor(moves, dtype=torch.float64).reshape(4, 2)
    m = perspective_maps(corners[None])
    assert torch.allclose(apply_maps(m, CORNERS)[0], corners, atol=1e-9)
    ours, theirs = warp_images(smooth, m, SIDE), TF.perspective(smooth, pixels(corners), pixels(CORNERS), BILINEAR)
    assert (ours - theirs)[MIDDLE].abs().max() < 2e-2


@common
@given(angle=st.floats(-90, 90), moves=st.lists(small, min_size=8, max_size=8))
def test_chained_maps_act_one_after_the_other(angle, moves):
    a, b = rotation_maps(torch.tensor([angle])), perspective_maps((CORNERS + torch.tensor(moves, dtype=torch.float64).reshape(4, 2))[None])
    points = torch.tensor([[.3, -.2], [0, 0], [-.7, .9]], dtype=torch.float64)
    assert torch.allclose(apply_maps(a @ b, points)[0], apply_maps(a, apply_maps(b, points)[0])[0])


@common
@given(aspect=st.floats(.2, 5), fit=st.sampled_from(["crop", "squish", "pad"]))
def test_zero_strength_is_the_fixed_crop(aspect, fit):
    calm = Augment(flip=False, max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0, random_crop=False)
    a = torch.tensor([aspect])
    assert torch.allclose(random_maps(a, calm, seeded_rng(0), fit), center_crop_maps(a, fit))
    reach = apply_maps(center_crop_maps(a, fit), CORNERS).abs().amax((0, 1))       # of the whole picture, which spans -1 to 1
    wanted = {"crop": (min(1, 1 / aspect), min(1, aspect)), "squish": (1, 1), "pad": (max(1, 1 / aspect), max(1, aspect))}[fit]
    assert reach.tolist() == pytest.approx(wanted, rel=1e-5)


@common
@given(aspect=st.floats(.25, 4), key=st.integers(0, 10**6), zoom=st.floats(1, 3), scale=st.floats(.1, 1))
def test_crops_stay_inside_the_picture(aspect, key, zoom, scale):
    roaming = Augment(max_rotate=0, max_warp=0, max_zoom=zoom, min_scale=scale, flip_vert=key % 2 == 0)
    corners = apply_maps(random_maps(torch.full((20,), aspect), roaming, seeded_rng(key)), CORNERS)
    assert corners.abs().max() <= 1 + 1e-6
    sides = torch.stack([corners[:, 3, i] - corners[:, 0, i] for i in (0, 1)], 1).abs() * torch.tensor([max(aspect, 1 / aspect) if aspect > 1 else 1, max(aspect, 1 / aspect) if aspect < 1 else 1])
    assert torch.allclose(sides[:, 0], sides[:, 1], rtol=1e-4)              # what is cut out of the true picture is a square


@common
@given(level=st.floats(0, 1), strength=st.floats(.01, .9), key=st.integers(0, 1000), kind=st.sampled_from(["logit", "linear"]))
def test_light_keeps_its_range(level, strength, key, kind):
    x = torch.full((8, 3, 2, 2), level)
    lit = change_lighting(x.clone(), Augment(max_lighting=strength, lighting=kind), seeded_rng(key))
    assert 0 <= lit.min() and lit.max() <= 1 and torch.isfinite(lit).all()
    assert torch.equal(lit, change_lighting(x.clone(), Augment(max_lighting=strength, lighting=kind), seeded_rng(key)))


def test_how_often_and_how_far():
    "Turns are drawn evenly up to the limit, in three of four pictures."
    only = Augment(flip=False, max_rotate=10, max_zoom=1, max_warp=0, random_crop=False)
    m = random_maps(torch.ones(4000), only, seeded_rng(1))
    angles = torch.rad2deg(torch.atan2(m[:, 1, 0], m[:, 0, 0]))
    assert angles.abs().max() <= 10 and abs((angles != 0).double().mean() - .75) < .03
    assert abs(angles[angles != 0].std() - 10 / math.sqrt(3)) < .3
    flips = random_maps(torch.ones(4000), Augment(max_rotate=0, max_zoom=1, max_warp=0), seeded_rng(2))[:, 0, 0]
    assert abs((flips < 0).double().mean() - .5) < .03
    eight = random_maps(torch.ones(4000), Augment(flip_vert=True, max_rotate=0, max_zoom=1, max_warp=0), seeded_rng(3))
    views = {tuple(v.round().int().flatten().tolist()) for v in eight}
    assert len(views) == 8


def test_the_same_seed_draws_the_same_crop_in_every_version():
    drawn = random_maps(torch.tensor([1.5]), Augment(flip_vert=True, min_scale=.5), seeded_rng(1))
    known = [[-.062498, .53603, -.13389], [-.89228, -.10823, .11004], [-.12223, 0, 1]]
    assert torch.allclose(drawn[0], torch.tensor(known, dtype=torch.float64), atol=1e-5)


@common
@given(aspect=st.floats(.25, 4), x=st.floats(-1, 1), y=st.floats(-1, 1), zoom=st.floats(1, 4), mirror=st.booleans(), fit=st.sampled_from(["crop", "squish", "pad"]),
       flip=st.booleans(), vert=st.booleans(), scale=st.floats(.1, 1), key=st.integers(0, 100))
def test_a_view_is_where_it_says_and_nothing_but_turn_and_tilt_is_drawn(aspect, x, y, zoom, mirror, fit, flip, vert, scale, key):
    "By the formula: a square of side 1/zoom that slides from edge to edge of what the fit shows."
    shape, straight = torch.tensor([aspect]), Augment(flip=flip, flip_vert=vert, min_scale=scale, max_rotate=0, max_warp=0, max_zoom=3)
    m = random_maps(shape, straight, seeded_rng(key), fit, View(x, y, zoom, mirror))
    wide, high = {"crop": (max(aspect, 1), max(1 / aspect, 1)), "squish": (1, 1), "pad": (min(aspect, 1), min(1 / aspect, 1))}[fit]
    corners = [[(x * (max(wide, 1) - 1 / zoom) + (-a if mirror else a) / zoom) / wide, (y * (max(high, 1) - 1 / zoom) + b / zoom) / high] for a, b in CORNERS.tolist()]
    assert torch.allclose(apply_maps(m, CORNERS)[0], torch.tensor(corners, dtype=torch.float64), atol=1e-5)


def test_corners_come_in_order_and_only_as_asked():
    assert corner_views(2, mirror=False) == (View(-1, -1, 2), View(-1, 1, 2), View(1, -1, 2), View(1, 1, 2))
    assert [(v.x, v.y, v.zoom) for v in corner_views()[4:]] == [(v.x, v.y, v.zoom) for v in corner_views()[:4]] and all(v.mirror for v in corner_views()[4:])
    assert corner_views()[0].zoom == 1.35
    for wrong in (dict(x=-1.1, y=0), dict(x=0, y=math.nan), dict(x=0, y=0, zoom=.99), dict(x=0, y=0, zoom=math.inf)):
        with pytest.raises(ValueError, match="got"): View(**wrong)
    assert [Augment(flip=f, flip_vert=v).mirrors for f, v in ((False, False), (True, False), (False, True))] == [False, True, True]


def test_validation_is_never_random():
    x, aspect = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8), torch.tensor([.5, 1, 2])
    state = torch.get_rng_state()
    first = batch_stage(x, aspect, 32)
    assert torch.equal(first, batch_stage(x, aspect, 32, generator=seeded_rng(7))) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, batch_stage(x, aspect, 32, augmentations(), seeded_rng(7)))


def test_bytes_become_zero_to_one():
    assert warp_images(torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(48).reshape(2, 3, 4, 4), identity_maps(2), 4).unique().tolist() == [0, 1]


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("lighting", ["logit", "linear"])
def test_any_number_of_channels(channels, lighting):
    "Each channel alone through the batch stage is what it is among the others. (Linear light looks at the mean over all: equal ones then.)"
    drawn = channels if lighting == "logit" else 1
    x = torch.randint(0, 256, (5, drawn, 24, 24), dtype=torch.uint8, generator=seeded_rng(0)).expand(5, channels, 24, 24)
    augment, aspect = Augment(lighting=lighting), torch.tensor([.5, 1, 2, 1, 1])
    out = batch_stage(x, aspect, 16, augment, seeded_rng(1))
    assert out.shape == (5, channels, 16, 16)
    for i in range(channels):
        assert torch.allclose(out[:, i:i + 1], batch_stage(x[:, i:i + 1], aspect, 16, augment, seeded_rng(1)), atol=1e-5)


def ramps(n, h=12, w=15):
    "n constant pictures of n different grays, with as many classes: each pixel tells which picture it is from."
    return torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 3, h, w).clone(), torch.arange(n)


alphas = st.floats(.01, 4)


@common
@given(n=st.integers(1, 12), alpha=alphas, key=st.integers(0, 10**6))
def test_mixup_lerps_pictures_and_targets_alike(n, alpha, key):
    x, y = ramps(n)
    before = x.clone()
    mixed, soft = mix_batch(x, y, Mix(mixup=alpha), Task("single", range(n)), seeded_rng(key))
    assert torch.equal(x, before)                                            # the batch given is left alone
    assert soft.dtype == torch.float32 and torch.allclose(soft.sum(1), torch.ones(n)) and soft.min() >= 0
    own = soft.gather(1, y[:, None])[:, 0]
    assert own.min() >= .5 and own.max() <= 1                                # max(lambda, 1 - lambda)
    assert ((soft > 0).sum(1) <= 2).all()                                    # one partner each
    assert torch.allclose(mixed, (soft @ torch.arange(n, dtype=torch.float32))[:, None, None, None].expand_as(mixed), atol=1e-5)


@common
@given(n=st.integers(1, 12), alpha=alphas, key=st.integers(0, 10**6))
def test_cutmix_counts_pixels(n, alpha, key):
    x, y = ramps(n)
    mixed, soft = mix_batch(x, y, Mix(cutmix=alpha), Task("single", range(n)), seeded_rng(key))
    for picture, shares in zip(mixed, soft):
        counted = torch.stack([(picture[0] == k).double().mean() for k in range(n)])
        assert torch.allclose(counted, shares.double(), atol=1e-6)
        assert (picture == picture[:1]).all()                                # all channels are cut alike


@common
@given(key=st.integers(0, 10**6))
def test_cutmix_pastes_one_rectangle_in_its_place(key):
    h, w = 9, 14
    x = torch.arange(2 * 3 * h * w, dtype=torch.float32).reshape(2, 3, h, w)
    mixed, soft = mix_batch(x, torch.tensor([0, 1]), Mix(cutmix=1.), Task("single", range(2)), seeded_rng(key))
    for i in range(2):
        foreign = (mixed[i] != x[i])
        assert torch.equal(mixed[i][foreign], x[1 - i][foreign])             # what is not its own is the other's, from the same place
        rows, cols = foreign[0].any(1), foreign[0].any(0)
        assert torch.equal(foreign, (rows[:, None] & cols).expand(3, h, w))  # and a rectangle
        for line in (rows, cols): assert len(torch.unique_consecutive(line)) <= 3 and line.diff().sum() <= 2


@common
@given(n=st.integers(1, 8), c=st.integers(2, 9), eps=st.floats(.001, .9), key=st.integers(0, 1000))
def test_smoothing_is_torchs(n, c, eps, key):
    g = seeded_rng(key)
    logits, y = torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)
    state = g.get_state()
    x, soft = mix_batch(logits, y, Mix(smoothing=eps), Task("single", range(c)), g)
    assert x is logits and torch.equal(state, g.get_state())                 # nothing is drawn, and features pass as they are
    theirs = F.cross_entropy(logits, y, label_smoothing=eps, reduction="none")
    assert torch.allclose(F.cross_entropy(logits, soft, reduction="none"), theirs, atol=1e-5)


def test_smoothing_after_mixing_keeps_shares():
    x, y = ramps(6)
    plain, soft = (mix_batch(x, y, Mix(mixup=.4, smoothing=e), Task("single", range(6)), seeded_rng(3))[1] for e in (0., .3))
    assert torch.allclose(soft, plain * .7 + .05)


def test_mixing_depends_on_its_generator_only():
    x, y = ramps(16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for mix in (Mix(mixup=.4), Mix(cutmix=1.), Mix(mixup=.4, cutmix=1.)):
        a, b, other = (mix_batch(x, y, mix, Task("single", range(16)), seeded_rng(k)) for k in (5, 5, 6))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[1], other[1])
    assert torch.equal(state, torch.get_rng_state())


def test_both_are_dealt_by_the_batch():
    "CutMix leaves whole pixels of one picture or the other, mixup doesn't: each comes in about half of the batches, and never both in one."
    x, y = ramps(8)
    kinds = []
    for key in range(400):
        mixed, soft = mix_batch(x, y, Mix(mixup=1., cutmix=1.), Task("single", range(8)), seeded_rng(key))
        kinds.append(torch.equal(mixed, mixed.round()) and not torch.equal(soft, F.one_hot(y).float()))
        assert kinds[-1] or all(len(p.unique()) == 1 for p in mixed)
    assert .4 < sum(kinds) / 400 < .6


def test_how_shares_are_spread():
    "Beta(1, 1) is even: mixup's larger share has the mean 3/4. A small alpha leaves most pictures nearly alone."
    x, y = ramps(2, 2, 2)
    x, y = x.repeat(4000, 1, 1, 1), y.repeat(4000)
    larger = lambda mix: mix_batch(x, y, mix, Task("single", range(2)), seeded_rng(0))[1].amax(1)     # 1 where the partner is of the same class: half
    assert abs((larger(Mix(mixup=1.)) == 1).float().mean() - .5) < .03
    assert abs(larger(Mix(mixup=1.)).mean() - (1 + .75) / 2) < .01 and larger(Mix(mixup=.1)).mean() > .96
    assert abs(larger(Mix(mixup=50.)).mean() - .75) < .04                       # and a large one mixes half and half


def test_cutmix_centers_reach_every_pixel():
    x, y = ramps(2, 10, 10)
    x, y = x.repeat(500, 1, 1, 1), y.repeat(500)
    mixed, _ = mix_batch(x, y, Mix(cutmix=1.), Task("single", range(2)), seeded_rng(0))
    often = (mixed != x).float().mean((0, 1))
    assert often.min() > .05 and torch.allclose(often, often.flip(0), atol=.08) and torch.allclose(often, often.T, atol=.08)
    assert often[4:6, 4:6].mean() > 1.3 * often[0, 0]                        # cut off at the border, so the middle is hit more often


@pytest.mark.parametrize("kind", ["multi", "number"])
def test_other_kinds_of_targets(kind):
    x, _ = ramps(6)
    y = x[:, :2, 0, 0] + torch.tensor([0., 10.])
    mixed, soft = mix_batch(x, y, Mix(mixup=1.), Task(kind, range(2)), seeded_rng(0))
    assert torch.allclose(mixed[:, :2, 0, 0] + torch.tensor([0., 10.]), soft, atol=1e-5)
    with pytest.raises(ValueError, match="Leave out smoothing=0.1"): mix_batch(x, y, Mix(smoothing=.1), Task(kind, range(2)), seeded_rng(0))


def test_cutmix_of_several_labels_but_not_of_numbers():
    x, y = ramps(5)
    mixed, soft = mix_batch(x, F.one_hot(y).float(), Mix(cutmix=1.), Task("multi", range(5)), seeded_rng(0))
    assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(5.), atol=1e-5)
    with pytest.raises(ValueError, match="Leave out cutmix=1"):
        mix_batch(x, y[:, None].float(), Mix(cutmix=1.), Task("number", n_values=1), seeded_rng(0))


def test_nothing_to_mix():
    x, y = ramps(3)
    same_x, same_y = mix_batch(x, y, Mix(), Task("single", range(3)), seeded_rng(0))
    assert same_x is x and same_y is y
    alone, soft = mix_batch(x[:1], y[:1], Mix(mixup=.4, cutmix=1.), Task("single", range(3)), seeded_rng(0))
    assert torch.equal(alone, x[:1]) and torch.equal(soft, torch.tensor([[1., 0, 0]]))   # a batch of one is its own partner
    with pytest.raises(ValueError, match=r"shape \(3, 7\)"): mix_batch(torch.rand(3, 7), y, Mix(cutmix=1.), Task("single", range(3)), seeded_rng(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixing_on_a_gpu_is_mixing_on_the_cpu():
    x, y = ramps(8)
    for mix in (Mix(mixup=.4, smoothing=.1), Mix(cutmix=1.)):
        here, there = mix_batch(x, y, mix, Task("single", range(8)), seeded_rng(0)), mix_batch(x.cuda(), y.cuda(), mix, Task("single", range(8)), seeded_rng(0))
        assert all(t.is_cuda and torch.allclose(h, t.cpu(), atol=1e-6) for h, t in zip(here, there))
