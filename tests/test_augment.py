"""Geometry and light of the batch stage, on random parameters, against torchvision's own."""
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchvision.transforms import functional as TF

from lessonkit.augment import CORNERS, Augment, apply_map, augmentations, batch_stage, eye, fixed_map, light, perspective, random_map, rotation, warp, window
from lessonkit.data import key_generator

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
    ours = warp(smooth, window(0 * one, 0 * one, one / zoom, one / zoom) @ rotation(torch.tensor([angle])), SIDE)
    theirs = TF.affine(smooth, -angle, [0, 0], zoom, [0., 0.], BILINEAR)
    assert (ours - theirs)[MIDDLE].abs().max() < 5e-3


@common
@given(moves=st.lists(small, min_size=8, max_size=8))
def test_tilt_is_torchvisions(smooth, moves):
    corners = CORNERS + torch.tensor(moves, dtype=torch.float64).reshape(4, 2)
    m = perspective(corners[None])
    assert torch.allclose(apply_map(m, CORNERS)[0], corners, atol=1e-9)
    ours, theirs = warp(smooth, m, SIDE), TF.perspective(smooth, pixels(corners), pixels(CORNERS), BILINEAR)
    assert (ours - theirs)[MIDDLE].abs().max() < 2e-2


@common
@given(angle=st.floats(-90, 90), moves=st.lists(small, min_size=8, max_size=8))
def test_chained_maps_act_one_after_the_other(angle, moves):
    a, b = rotation(torch.tensor([angle])), perspective((CORNERS + torch.tensor(moves, dtype=torch.float64).reshape(4, 2))[None])
    points = torch.tensor([[.3, -.2], [0, 0], [-.7, .9]], dtype=torch.float64)
    assert torch.allclose(apply_map(a @ b, points)[0], apply_map(a, apply_map(b, points)[0])[0])


@common
@given(aspect=st.floats(.2, 5), fit=st.sampled_from(["crop", "squish", "pad"]))
def test_zero_strength_is_the_fixed_crop(aspect, fit):
    calm = Augment(flip=False, max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0, random_crop=False)
    a = torch.tensor([aspect])
    assert torch.allclose(random_map(a, calm, key_generator(0), fit), fixed_map(a, fit))
    reach = apply_map(fixed_map(a, fit), CORNERS).abs().amax((0, 1))       # of the whole picture, which spans -1 to 1
    wanted = {"crop": (min(1, 1 / aspect), min(1, aspect)), "squish": (1, 1), "pad": (max(1, 1 / aspect), max(1, aspect))}[fit]
    assert reach.tolist() == pytest.approx(wanted, rel=1e-5)


@common
@given(aspect=st.floats(.25, 4), key=st.integers(0, 10**6), zoom=st.floats(1, 3), scale=st.floats(.1, 1))
def test_crops_stay_inside_the_picture(aspect, key, zoom, scale):
    roaming = Augment(max_rotate=0, max_warp=0, max_zoom=zoom, min_scale=scale, flip_vert=key % 2 == 0)
    corners = apply_map(random_map(torch.full((20,), aspect), roaming, key_generator(key)), CORNERS)
    assert corners.abs().max() <= 1 + 1e-6
    sides = torch.stack([corners[:, 3, i] - corners[:, 0, i] for i in (0, 1)], 1).abs() * torch.tensor([max(aspect, 1 / aspect) if aspect > 1 else 1, max(aspect, 1 / aspect) if aspect < 1 else 1])
    assert torch.allclose(sides[:, 0], sides[:, 1], rtol=1e-4)              # what is cut out of the true picture is a square


@common
@given(level=st.floats(0, 1), strength=st.floats(.01, .9), key=st.integers(0, 1000), kind=st.sampled_from(["logit", "linear"]))
def test_light_keeps_its_range(level, strength, key, kind):
    x = torch.full((8, 3, 2, 2), level)
    lit = light(x.clone(), Augment(max_lighting=strength, lighting=kind), key_generator(key))
    assert 0 <= lit.min() and lit.max() <= 1 and torch.isfinite(lit).all()
    assert torch.equal(lit, light(x.clone(), Augment(max_lighting=strength, lighting=kind), key_generator(key)))


def test_how_often_and_how_far():
    "Turns are drawn evenly up to the limit, in three of four pictures."
    only = Augment(flip=False, max_rotate=10, max_zoom=1, max_warp=0, random_crop=False)
    m = random_map(torch.ones(4000), only, key_generator(1))
    angles = torch.rad2deg(torch.atan2(m[:, 1, 0], m[:, 0, 0]))
    assert angles.abs().max() <= 10 and abs((angles != 0).double().mean() - .75) < .03
    assert abs(angles[angles != 0].std() - 10 / math.sqrt(3)) < .3
    flips = random_map(torch.ones(4000), Augment(max_rotate=0, max_zoom=1, max_warp=0), key_generator(2))[:, 0, 0]
    assert abs((flips < 0).double().mean() - .5) < .03
    eight = random_map(torch.ones(4000), Augment(flip_vert=True, max_rotate=0, max_zoom=1, max_warp=0), key_generator(3))
    views = {tuple(v.round().int().flatten().tolist()) for v in eight}
    assert len(views) == 8


def test_validation_is_never_random():
    x, aspect = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8), torch.tensor([.5, 1, 2])
    state = torch.get_rng_state()
    first = batch_stage(x, aspect, 32)
    assert torch.equal(first, batch_stage(x, aspect, 32, generator=key_generator(7))) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, batch_stage(x, aspect, 32, augmentations(), key_generator(7)))


def test_bytes_become_zero_to_one():
    assert warp(torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(48).reshape(2, 3, 4, 4), eye(2), 4).unique().tolist() == [0, 1]
