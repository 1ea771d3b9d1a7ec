"""Pictures and maps of toys."""

import json
import math

import numpy as np
import pytest
import torch

from understudy import envs
from understudy.core import keys
from understudy.envs.raster import Canvas, ShapeList

TOYS = (*envs.names(), "particle:8")


def _cover(image, color):
    """How much of the picture has the color of a shape, 1 being one pixel."""
    paper, ink = np.float64([246, 244, 238]), np.float64(color)
    return ((image - paper) @ (ink - paper) / ((ink - paper) @ (ink - paper))).sum()


def test_shapes_have_their_areas():
    canvas = Canvas(2, 64, (0.0, 0.0), 1.0)
    canvas.circle(np.float32([[0.5, 0.5], [0.31, 0.72]]), 0.2, (0, 0, 0))
    for image in canvas.image:
        assert _cover(image, (0, 0, 0)) / 64 ** 2 == pytest.approx(math.pi * 0.04, rel=0.01)
    for angle in (0.0, 0.3, 1.2):
        canvas = Canvas(1, 64, (0.0, 0.0), 1.0)
        canvas.box(np.float32([[0.5, 0.5]]), np.float32([[math.cos(angle), math.sin(angle)]]), (0.2, 0.1), (0, 0, 0))
        assert _cover(canvas.image[0], (0, 0, 0)) / 64 ** 2 == pytest.approx(0.08, rel=0.02)


def test_pictures_show_where_things_are():
    canvas = Canvas(3, 32, (0.0, 0.0), 1.0)
    canvas.circle(np.float32([[0.25, 0.75], [0.75, 0.25], [-0.5, 0.5]]), 0.1, (255, 0, 0))
    red = (canvas.image[..., 1] < 10)
    assert red[0, 8, 8] and not red[0, 24, 24]  # y is up, so 0.75 is near the top
    assert red[1, 24, 24] and not red[1, 8, 8]
    assert not red[2].any()  # beyond the edge
    assert (canvas.image[2] == (246, 244, 238)).all()


@pytest.mark.parametrize("name", TOYS)
def test_maps_can_be_drawn(name):
    env = envs.make(name, 4)
    obs = env.reset(torch.arange(4), keys(0, range(4)))
    plane, frame = env.map(), env.frame(0)
    assert frame.shape == (256, 256, 3) and len(np.unique(frame.reshape(-1, 3), axis=0)) > 3
    for mark in plane.get("marks", ()):
        column, i, j = mark["column"]
        assert obs[column][:, [i, j]].shape == (4, 2)
    assert any(not np.array_equal(frame, env.frame(i)) for i in range(1, 4))


@pytest.mark.parametrize("name", TOYS)
def test_a_list_of_shapes_shows_the_same_picture(name):
    env = envs.make(name, 4)
    env.reset(torch.arange(4), keys(0, range(4)))
    shapes, canvas = ShapeList(env.square), Canvas(1, 256, (0.0, 0.0), 1.0)
    env.draw(shapes, 1)
    for shape in json.loads(json.dumps(shapes.shapes)):
        (x, y), color = shape["at"], [int(shape["color"][i:i + 2], 16) for i in (1, 3, 5)]
        at = np.float32([[x, 1 - y]])
        if "radius" in shape:
            canvas.circle(at, shape["radius"], color)
        else:
            (cos, sin), half = shape["heading"], shape["half"]
            canvas.box(at, np.float32([[cos, -sin]]), half, color)
    difference = np.abs(canvas.image[0].astype(int) - env.frame(1))
    assert (difference > 12).mean() < 1e-3  # rounded to 1/40 of a pixel: a few pixels of edges differ by a shade
