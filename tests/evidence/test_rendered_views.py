"""The table of boxes and drums, and the pictures that features must draw."""

import numpy as np
import torch

from evidence.families.pictures.rendered_views import (
    FRONT,
    HALF,
    PLACES,
    TEACHER,
    TOP,
    OtherScenes,
    TwoShapes,
    ViewsAsSamples,
    pixels_of_cells,
)
from understudy.core import Batch
from understudy.evaluate.rollout import rollout


def episodes(n=20):
    env = TwoShapes(n)
    return rollout(env.expert(), env, n, seed=1)


def pictures(data, name):
    return torch.from_numpy(np.stack([np.array(e.steps[name][0]) for e in data]))


def pixel(picture, x, y):
    return picture[47 - int(48 * y), int(48 * x)].tolist()


def test_the_expert_takes_the_left_or_the_right_thing_of_the_named_shape():
    for e in episodes():
        things, (shape, is_right) = e.steps[PLACES][0, :16].reshape(4, 4), e.steps[PLACES][0, 16:].astype(int)
        of_shape = sorted(things[2 * shape:2 * shape + 2, :2].tolist())
        np.testing.assert_allclose((e.steps["action"][0] + 1) / 2, of_shape[is_right], atol=1e-6)
        assert e.metadata["success"] and of_shape[1][0] - of_shape[0][0] > 0.15


def test_from_above_a_thing_is_where_it_stands_and_from_the_front_its_top_is_further_up():
    for e in episodes():
        things = e.steps[PLACES][0, :16].reshape(4, 4)
        nearest = things[things[:, 1].argmin()]
        x, y, height, _ = nearest
        top, front = np.array(e.steps[TOP][0]), np.array(e.steps[FRONT][0])
        assert pixel(top, x, y) == pixel(front, x, y + 0.6 * height)  # the color of its upper side
        assert pixel(top, x, y) != pixel(front, x, y - 0.7 * HALF)  # nothing hides its darker lower side
        shapes = [pixel(np.array(e.steps[TEACHER][0]), *thing[:2]) for thing in things]
        assert shapes == [[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255]]


def test_a_cell_draws_its_own_pixels():
    shown = pictures(episodes(2), TOP)
    np.testing.assert_array_equal(pixels_of_cells(shown)[:, 16 * 2 + 5].unflatten(1, (3, 3, 3)),
                                  shown[:, 6:9, 15:18].permute(0, 3, 1, 2))


def test_arms_draw_what_they_say():
    data = episodes(4)
    extra = {name: pictures(data, name)[:, None] for name in (TOP, TEACHER)} | {"index": torch.arange(4)[:, None]}
    batch, zero = Batch({}, torch.zeros(4, 1, 2), torch.ones(4, 1, dtype=torch.bool), extra), torch.arange(4)
    both = torch.cat([extra[TOP], extra[TEACHER]], 4)[:, 0]
    np.testing.assert_array_equal(OtherScenes((TOP, TEACHER)).targets(batch), both[(zero - 1) % 4])
    more = ViewsAsSamples().apply(data)
    np.testing.assert_array_equal(pictures(more, FRONT), torch.cat([pictures(data, FRONT), pictures(data, TOP)]))
