"""Geometry, light and mixing on random parameters, against torchvision's and torch's own."""
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torchvision.transforms import functional as TF

from lessonkit.core.rng import seeded_rng
from lessonkit.core.task import Task
from lessonkit.data.augment import (
    Augment, augmentations, change_lighting, NO_AUGMENT, random_maps, transform_images,
)
from lessonkit.data.geometry import (
    apply_maps, center_crop_maps, corner_views, CORNERS, crop_maps, identity_maps, perspective_maps,
    rotation_maps, View, warp_images,
)
from lessonkit.data.mixing import Mix, mix_batch
from tiers import examples

SIDE = 96
MIDDLE = (..., slice(30, 66), slice(30, 66))
BILINEAR = TF.InterpolationMode.BILINEAR
common = examples(30)
small = st.floats(-.25, .25)
fits = st.sampled_from(["crop", "squish", "pad"])


# Geometry.

@pytest.fixture(scope="module")
def smooth():
    y, x = torch.meshgrid(torch.linspace(-3, 3, SIDE), torch.linspace(-3, 3, SIDE), indexing="ij")
    return torch.stack([(x + y).sin(), (x * 1.3).cos(), (y - x / 2).sin()])[None] / 2 + .5


def in_pixels(corners):
    "As torchvision wants them: top left, top right, bottom right, bottom left."
    return [[float((v + 1) * SIDE / 2 - .5) for v in corners[i]] for i in (0, 2, 3, 1)]


def moved_corners(moves): return CORNERS + torch.tensor(moves, dtype=torch.float64).reshape(4, 2)


@common
@given(angle=st.floats(-180, 180), zoom=st.floats(1, 2))
def test_turn_and_zoom_are_torchvisions(smooth, angle, zoom):
    one = torch.ones(1, dtype=torch.float64)
    zoomed = crop_maps(0 * one, 0 * one, one / zoom, one / zoom)
    ours = warp_images(smooth, zoomed @ rotation_maps(torch.tensor([angle])), SIDE)
    theirs = TF.affine(smooth, -angle, [0, 0], zoom, [0., 0.], BILINEAR)
    assert (ours - theirs)[MIDDLE].abs().max() < 5e-3


@common
@given(moves=st.lists(small, min_size=8, max_size=8))
def test_tilt_is_torchvisions(smooth, moves):
    corners = moved_corners(moves)
    m = perspective_maps(corners[None])
    assert torch.allclose(apply_maps(m, CORNERS)[0], corners, atol=1e-9)
    ours = warp_images(smooth, m, SIDE)
    theirs = TF.perspective(smooth, in_pixels(corners), in_pixels(CORNERS), BILINEAR)
    assert (ours - theirs)[MIDDLE].abs().max() < 2e-2


@common
@given(angle=st.floats(-90, 90), moves=st.lists(small, min_size=8, max_size=8))
def test_chained_maps_act_one_after_the_other(angle, moves):
    a = rotation_maps(torch.tensor([angle]))
    b = perspective_maps(moved_corners(moves)[None])
    points = torch.tensor([[.3, -.2], [0, 0], [-.7, .9]], dtype=torch.float64)
    one_by_one = apply_maps(a, apply_maps(b, points)[0])[0]
    assert torch.allclose(apply_maps(a @ b, points)[0], one_by_one)


@common
@given(aspect=st.floats(.2, 5), fit=fits)
def test_zero_strength_is_the_fixed_crop(aspect, fit):
    a = torch.tensor([aspect])
    fixed = center_crop_maps(a, fit)
    assert torch.allclose(random_maps(a, NO_AUGMENT, seeded_rng(0), fit), fixed)
    reach = apply_maps(fixed, CORNERS).abs().amax((0, 1))  # the whole image spans -1 to 1
    expected = dict(
        crop=(min(1, 1 / aspect), min(1, aspect)),
        squish=(1, 1),
        pad=(max(1, 1 / aspect), max(1, aspect)),
    )
    assert reach.tolist() == pytest.approx(expected[fit], rel=1e-5)


@common
@given(
    aspect=st.floats(.25, 4),
    key=st.integers(0, 10**6),
    zoom=st.floats(1, 3),
    scale=st.floats(.1, 1),
)
def test_crops_stay_inside_the_image(aspect, key, zoom, scale):
    roaming = Augment(max_rotate=0, max_warp=0, max_zoom=zoom, min_scale=scale,
                      flip_vert=key % 2 == 0)
    maps = random_maps(torch.full((20,), aspect), roaming, seeded_rng(key))
    corners = apply_maps(maps, CORNERS)
    assert corners.abs().max() <= 1 + 1e-6
    sides = (corners[:, 3] - corners[:, 0]).abs()
    true_sides = sides * torch.tensor([max(aspect, 1), max(1 / aspect, 1)])
    assert torch.allclose(true_sides[:, 0], true_sides[:, 1], rtol=1e-4)  # a square is cut out


def test_bytes_become_zero_to_one():
    x = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(48).reshape(2, 3, 4, 4)
    assert warp_images(x, identity_maps(2), 4).unique().tolist() == [0, 1]


# Views.

@common
@given(
    aspect=st.floats(.25, 4),
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    zoom=st.floats(1, 4),
    mirror=st.booleans(),
    fit=fits,
    flip=st.booleans(),
    vert=st.booleans(),
    scale=st.floats(.1, 1),
    key=st.integers(0, 100),
)
def test_a_view_is_where_it_says(aspect, x, y, zoom, mirror, fit, flip, vert, scale, key):
    "By the formula: a square of side 1/zoom that slides from edge to edge of what the fit shows."
    straight = Augment(flip=flip, flip_vert=vert, min_scale=scale, max_rotate=0, max_warp=0,
                       max_zoom=3)
    view = View(x, y, zoom, mirror)
    m = random_maps(torch.tensor([aspect]), straight, seeded_rng(key), fit, view)
    wide, high = dict(
        crop=(max(aspect, 1), max(1 / aspect, 1)),
        squish=(1, 1),
        pad=(min(aspect, 1), min(1 / aspect, 1)),
    )[fit]
    center_x, center_y = x * (max(wide, 1) - 1 / zoom), y * (max(high, 1) - 1 / zoom)
    sign = -1 if mirror else 1
    corners = [[(center_x + sign * a / zoom) / wide, (center_y + b / zoom) / high]
               for a, b in CORNERS.tolist()]
    expected = torch.tensor(corners, dtype=torch.float64)
    assert torch.allclose(apply_maps(m, CORNERS)[0], expected, atol=1e-5)


def test_corners_come_in_order():
    plain = (View(-1, -1, 2), View(-1, 1, 2), View(1, -1, 2), View(1, 1, 2))
    assert corner_views(2, mirror=False) == plain
    assert corner_views(2) == plain + tuple(replace(v, mirror=True) for v in plain)
    assert corner_views() == corner_views(1.35)


BAD_VIEWS = [dict(x=-1.1, y=0), dict(x=0, y=math.nan), dict(x=0, y=0, zoom=.99),
             dict(x=0, y=0, zoom=math.inf)]


@pytest.mark.parametrize("wrong", BAD_VIEWS)
def test_a_view_outside_the_image_is_an_error(wrong):
    with pytest.raises(ValueError, match="got"): View(**wrong)


# Chance.

@common
@given(
    level=st.floats(0, 1),
    strength=st.floats(.01, .9),
    key=st.integers(0, 1000),
    kind=st.sampled_from(["logit", "linear"]),
)
def test_light_keeps_its_range(level, strength, key, kind):
    x = torch.full((8, 3, 2, 2), level)
    augment = Augment(max_lighting=strength, lighting=kind)
    lit = change_lighting(x.clone(), augment, seeded_rng(key))
    assert lit.min() >= 0
    assert lit.max() <= 1
    assert torch.isfinite(lit).all()
    assert torch.equal(lit, change_lighting(x.clone(), augment, seeded_rng(key)))


def test_how_often_and_how_far_images_turn():
    "Turns are drawn evenly up to the limit, in three of four images."
    only = replace(NO_AUGMENT, max_rotate=10)
    m = random_maps(torch.ones(4000), only, seeded_rng(1))
    angles = torch.rad2deg(torch.atan2(m[:, 1, 0], m[:, 0, 0]))
    assert angles.abs().max() <= 10
    assert abs((angles != 0).double().mean() - .75) < .03
    assert abs(angles[angles != 0].std() - 10 / math.sqrt(3)) < .3


def test_how_often_images_are_mirrored():
    straight = Augment(max_rotate=0, max_zoom=1, max_warp=0)
    flips = random_maps(torch.ones(4000), straight, seeded_rng(2))[:, 0, 0]
    assert abs((flips < 0).double().mean() - .5) < .03
    eight = random_maps(torch.ones(4000), replace(straight, flip_vert=True), seeded_rng(3))
    assert len({tuple(v.round().int().flatten().tolist()) for v in eight}) == 8


@pytest.mark.parametrize("flip, vert, mirrors", [(False, False, False), (True, False, True),
                                                 (False, True, True)])
def test_mirrors(flip, vert, mirrors):
    assert Augment(flip=flip, flip_vert=vert).mirrors == mirrors


def test_the_same_seed_draws_the_same_crop_in_every_version():
    drawn = random_maps(torch.tensor([1.5]), Augment(flip_vert=True, min_scale=.5), seeded_rng(1))
    known = [[-.062498, .53603, -.13389], [-.89228, -.10823, .11004], [-.12223, 0, 1]]
    assert torch.allclose(drawn[0], torch.tensor(known, dtype=torch.float64), atol=1e-5)


def test_validation_is_never_random():
    x, aspect = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8), torch.tensor([.5, 1, 2])
    state = torch.get_rng_state()
    first = transform_images(x, aspect, 32)
    assert torch.equal(first, transform_images(x, aspect, 32, generator=seeded_rng(7)))
    assert torch.equal(state, torch.get_rng_state())
    varied = transform_images(x, aspect, 32, augmentations(), seeded_rng(7))
    assert not torch.equal(first, varied)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("lighting", ["logit", "linear"])
def test_any_number_of_channels(channels, lighting):
    """A channel alone becomes what it becomes among others.

    Linear light depends on the mean over all channels, so there they are all the same.
    """
    different = channels if lighting == "logit" else 1
    x = torch.randint(0, 256, (5, different, 24, 24), dtype=torch.uint8, generator=seeded_rng(0))
    x = x.expand(5, channels, 24, 24)
    def transform(x):
        return transform_images(x, torch.tensor([.5, 1, 2, 1, 1]), 16, Augment(lighting=lighting),
                                seeded_rng(1))
    out = transform(x)
    assert out.shape == (5, channels, 16, 16)
    for i in range(channels):
        assert torch.allclose(out[:, i:i + 1], transform(x[:, i:i + 1]), atol=1e-5)


# Mixing.

alphas = st.floats(.01, 4)


def one_of(n): return Task("single", range(n))


def ramps(n, h=12, w=15):
    "n images of one gray each, all different, with as many classes: each pixel tells its image."
    grays = torch.arange(n, dtype=torch.float32)[:, None, None, None]
    return grays.expand(n, 3, h, w).clone(), torch.arange(n)


@common
@given(n=st.integers(1, 12), alpha=alphas, key=st.integers(0, 10**6))
def test_mixup_blends_images_and_targets_alike(n, alpha, key):
    x, y = ramps(n)
    before = x.clone()
    mixed, soft = mix_batch(x, y, Mix(mixup=alpha), one_of(n), seeded_rng(key))
    assert torch.equal(x, before)  # the given batch is left alone
    assert soft.dtype == torch.float32
    assert torch.allclose(soft.sum(1), torch.ones(n))
    assert soft.min() >= 0
    own = soft.gather(1, y[:, None])[:, 0]
    assert own.min() >= .5  # max(lambda, 1 - lambda)
    assert own.max() <= 1
    assert ((soft > 0).sum(1) <= 2).all()  # one partner each
    blended = soft @ torch.arange(n, dtype=torch.float32)
    assert torch.allclose(mixed, blended[:, None, None, None].expand_as(mixed), atol=1e-5)


@common
@given(n=st.integers(1, 12), alpha=alphas, key=st.integers(0, 10**6))
def test_cutmix_counts_pixels(n, alpha, key):
    x, y = ramps(n)
    mixed, soft = mix_batch(x, y, Mix(cutmix=alpha), one_of(n), seeded_rng(key))
    for image, shares in zip(mixed, soft):
        counted = torch.stack([(image[0] == k).double().mean() for k in range(n)])
        assert torch.allclose(counted, shares.double(), atol=1e-6)
        assert (image == image[:1]).all()  # all channels are cut alike


@common
@given(key=st.integers(0, 10**6))
def test_cutmix_pastes_one_rectangle_in_its_place(key):
    h, w = 9, 14
    x = torch.arange(2 * 3 * h * w, dtype=torch.float32).reshape(2, 3, h, w)
    mixed, _ = mix_batch(x, torch.tensor([0, 1]), Mix(cutmix=1.), one_of(2), seeded_rng(key))
    for i in range(2):
        foreign = mixed[i] != x[i]
        assert torch.equal(mixed[i][foreign], x[1 - i][foreign])  # from the same place in the other
        rows, cols = foreign[0].any(1), foreign[0].any(0)
        assert torch.equal(foreign, (rows[:, None] & cols).expand(3, h, w))
        for line in (rows, cols):
            assert len(torch.unique_consecutive(line)) <= 3
            assert line.diff().sum() <= 2


@common
@given(
    n=st.integers(1, 8), c=st.integers(2, 9), eps=st.floats(.001, .9), key=st.integers(0, 1000)
)
def test_smoothing_is_torchs(n, c, eps, key):
    g = seeded_rng(key)
    logits, y = torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)
    state = g.get_state()
    x, soft = mix_batch(logits, y, Mix(smoothing=eps), one_of(c), g)
    assert x is logits
    assert torch.equal(state, g.get_state())  # nothing is drawn
    theirs = F.cross_entropy(logits, y, label_smoothing=eps, reduction="none")
    assert torch.allclose(F.cross_entropy(logits, soft, reduction="none"), theirs, atol=1e-5)


def test_smoothing_after_mixing_keeps_shares():
    x, y = ramps(6)
    _, plain = mix_batch(x, y, Mix(mixup=.4), one_of(6), seeded_rng(3))
    _, soft = mix_batch(x, y, Mix(mixup=.4, smoothing=.3), one_of(6), seeded_rng(3))
    assert torch.allclose(soft, plain * .7 + .05)


def test_mixing_depends_on_its_generator_only():
    x, y = ramps(16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for mix in (Mix(mixup=.4), Mix(cutmix=1.), Mix(mixup=.4, cutmix=1.)):
        a, b, other = (mix_batch(x, y, mix, one_of(16), seeded_rng(k)) for k in (5, 5, 6))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert not torch.equal(a[1], other[1])
    assert torch.equal(state, torch.get_rng_state())


def test_each_batch_gets_one_of_both():
    "CutMix leaves whole pixels of one image or the other; mixup gives each image one new gray."
    x, y = ramps(8)
    was_cut = []
    for key in range(400):
        mixed, soft = mix_batch(x, y, Mix(mixup=1., cutmix=1.), one_of(8), seeded_rng(key))
        changed = not torch.equal(soft, F.one_hot(y).float())
        was_cut.append(torch.equal(mixed, mixed.round()) and changed)
        if not was_cut[-1]: assert all(len(image.unique()) == 1 for image in mixed)
    assert .4 < sum(was_cut) / 400 < .6


def test_how_shares_are_spread():
    """Beta(1, 1) is even, so the larger share has a mean of 3/4.

    Half of the partners are of the same class: there the larger share of a class is 1.
    """
    x, y = ramps(2, 2, 2)
    x, y = x.repeat(4000, 1, 1, 1), y.repeat(4000)
    def larger(alpha): return mix_batch(x, y, Mix(mixup=alpha), one_of(2), seeded_rng(0))[1].amax(1)
    assert abs((larger(1.) == 1).float().mean() - .5) < .03
    assert abs(larger(1.).mean() - (1 + .75) / 2) < .01
    assert larger(.1).mean() > .96  # most images are nearly left alone
    assert abs(larger(50.).mean() - .75) < .04  # half and half


def test_cutmix_centers_reach_every_pixel():
    x, y = ramps(2, 10, 10)
    x, y = x.repeat(500, 1, 1, 1), y.repeat(500)
    mixed, _ = mix_batch(x, y, Mix(cutmix=1.), one_of(2), seeded_rng(0))
    often = (mixed != x).float().mean((0, 1))
    assert often.min() > .05
    assert torch.allclose(often, often.flip(0), atol=.08)
    assert torch.allclose(often, often.T, atol=.08)
    # rectangles are cut off at the border, so the middle is hit more often
    assert often[4:6, 4:6].mean() > 1.3 * often[0, 0]


@pytest.mark.parametrize("task", [Task("multi", range(2)), Task("number", n_values=2)], ids=str)
def test_other_kinds_of_targets(task):
    x, _ = ramps(6)
    y = x[:, :2, 0, 0] + torch.tensor([0., 10.])
    mixed, soft = mix_batch(x, y, Mix(mixup=1.), task, seeded_rng(0))
    assert torch.allclose(mixed[:, :2, 0, 0] + torch.tensor([0., 10.]), soft, atol=1e-5)
    with pytest.raises(ValueError, match="Leave out smoothing=0.1"):
        mix_batch(x, y, Mix(smoothing=.1), task, seeded_rng(0))


def test_cutmix_of_several_labels_but_not_of_numbers():
    x, y = ramps(5)
    several = Task("multi", range(5))
    mixed, soft = mix_batch(x, F.one_hot(y).float(), Mix(cutmix=1.), several, seeded_rng(0))
    assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(5.), atol=1e-5)
    with pytest.raises(ValueError, match="Leave out cutmix=1"):
        mix_batch(x, y[:, None].float(), Mix(cutmix=1.), Task("number"), seeded_rng(0))


def test_nothing_to_mix():
    x, y = ramps(3)
    same_x, same_y = mix_batch(x, y, Mix(), one_of(3), seeded_rng(0))
    assert same_x is x
    assert same_y is y
    with pytest.raises(ValueError, match=r"shape \(3, 7\)"):
        mix_batch(torch.rand(3, 7), y, Mix(cutmix=1.), one_of(3), seeded_rng(0))


def test_a_batch_of_one_is_its_own_partner():
    x, y = ramps(1)
    alone, soft = mix_batch(x, y, Mix(mixup=.4, cutmix=1.), one_of(3), seeded_rng(0))
    assert torch.equal(alone, x)
    assert torch.equal(soft, torch.tensor([[1., 0, 0]]))


WAKES = """
import os, torch
from lessonkit.core.rng import seeded_rng
from lessonkit.data.augment import Augment, change_lighting, random_maps, to_inputs
from lessonkit.data.loader import Batch
torch.set_num_threads(4)
def threads(): return len(os.listdir("/proc/self/task"))
image = torch.empty(64, 3, 8, 8, device="meta")   # in place of a GPU: only what draws is computed
before = threads()
for augment in (Augment(), Augment(flip_vert=True, lighting="linear", min_scale=.3, max_shift=.2)):
    random_maps(torch.ones(64), augment, seeded_rng(0))
    change_lighting(image, augment, seeded_rng(0))
print(threads() - before)
torch.linalg.solve(torch.eye(8).repeat(64, 1, 1), torch.ones(64, 8))
print(threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of a process in /proc")
def test_drawing_a_batch_wakes_no_threads_of_torch():
    "They go on spinning after the work is done, and a GPU's next step waits for a core."
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    printed = subprocess.check_output([sys.executable, "-P", "-c", WAKES], env=env, text=True)
    drawing, solving = map(int, printed.split())
    assert drawing == 0
    assert solving > 0   # it would have been seen


@pytest.mark.gpu
def test_mixing_on_a_gpu_is_mixing_on_the_cpu():
    x, y = ramps(8)
    for mix in (Mix(mixup=.4, smoothing=.1), Mix(cutmix=1.)):
        here = mix_batch(x, y, mix, one_of(8), seeded_rng(0))
        there = mix_batch(x.cuda(), y.cuda(), mix, one_of(8), seeded_rng(0))
        for h, t in zip(here, there):
            assert t.is_cuda
            assert torch.allclose(h, t.cpu(), atol=1e-6)
