"""Images that are changed in a known way."""

import numpy as np
import pytest

from understudy.diagnose.cameras import check_cameras, check_first_images, check_still, check_views


def images(seed, noise, n=20):
    """The scene number `seed`, n times, with noise."""
    scene = np.random.default_rng(seed).random((8, 8, 3))
    return scene + noise * np.random.default_rng([seed, int(1000 * noise)]).normal(size=(n, 8, 8, 3))


def cameras(**observed):
    return list(check_cameras({"top": images(0, 0.02), "side": images(1, 0.02)}, observed))


def test_cameras():
    top, side = images(0, 0.01), images(1, 0.01)
    assert not cameras(top=top, side=side)
    assert cameras(top=side, side=top)[0].code == "cameras-swapped"
    assert [(f.code, f.level) for f in cameras(top=images(2, 0.01), side=images(3, 0.01))] == [
        ("camera-differs", "warning")]


def test_cameras_that_see_nearly_the_same():
    """Where the views cannot be told apart, nothing is said."""
    same = images(0, 0.02)
    assert not list(check_cameras({"top": same, "side": same}, {"top": images(0, 0.01), "side": images(0, 0.03)}))


def scenes(seed, color=(0.9, 0.2, 0.1), n=30):
    """Images of a colored square somewhere on a bluish table."""
    rng = np.random.default_rng(seed)
    images = np.tile([0.3, 0.35, 0.4], (n, 24, 24, 1)) + 0.01 * rng.normal(size=(n, 24, 24, 3))
    for image, (y, x) in zip(images, rng.integers(0, 20, (n, 2)), strict=True):
        image[y:y + 4, x:x + 4] = color
    return images


@pytest.mark.parametrize("light", [1.0, 0.6])
def test_exchanged_red_and_blue_are_found_wherever_the_objects_are(light):
    """The nearest image was one with the object at the same place, whatever its color."""
    for change, code in ((lambda images: images[..., ::-1], "color-order"), (lambda images: images, "camera-differs")):
        findings = list(check_cameras({"top": scenes(0)}, {"top": light * change(scenes(1))}))
        assert [f.code for f in findings] == ([code] if code == "color-order" or light < 0.6 else [])


def test_each_camera_has_its_order_of_colors():
    recorded = {"top": scenes(0), "side": scenes(1, (0.1, 0.9, 0.4))}
    finding, = check_cameras(recorded, {"top": scenes(2), "side": scenes(3, (0.1, 0.9, 0.4))[..., ::-1]})
    assert (finding.code, finding.where.feature) == ("color-order", "side") and finding.message.startswith("side: ")


def test_gray_images_have_no_order_of_colors():
    gray = [scenes(seed).mean(-1, keepdims=True).repeat(3, -1) for seed in range(2)]
    assert not list(check_cameras({"top": gray[0]}, {"top": gray[1]}))


def test_an_image_that_never_changes():
    moves, hangs = [True] * 19 + [False], [False] * 20
    assert not list(check_still({"top": moves}, {"top": moves})) and not list(check_still({"top": moves}, {}))
    finding, = check_still({"top": moves, "side": moves}, {"top": moves, "side": hangs})
    assert (finding.code, finding.level, finding.where.feature) == ("image-never-changes", "fault", "side")
    finding, = check_still({"top": hangs}, {"top": hangs})
    assert (finding.code, finding.level) == ("image-never-changes", "warning") and "in the data" in finding.message
    assert not list(check_still({"top": [True, False] * 10}, {"top": hangs}))  # it often sees nothing that moves


def views(seed, n=12, late=0, change=lambda images: images, things=()):
    """Images of a square that moves, their rows and its places, of n episodes of 20 steps."""
    rng, episodes = np.random.default_rng(seed), []
    for _ in range(n):
        places = np.clip(rng.integers(0, 10, 2) + rng.integers(-1, 2, (20, 2)).cumsum(0), 0, 9)
        images = np.full((20, 12, 12, 3), 0.5)
        for t in range(20):
            for y, x in things:
                images[t, y:y + 3, x:x + 3] = 1
            y, x = places[max(t - late, 0)]
            images[t, y:y + 3, x:x + 3] = [0.1, 0.2, 0.7]
        episodes.append((change(images), np.arange(20), places.astype(float)))
    return episodes


def test_a_camera_that_shows_another_state_than_in_the_data():
    recorded = [(images, states) for images, _, states in views(0, 40)]

    def findings(**change):
        return [(f.code, f.value) for f in check_views("top", recorded, views(1, **change))]
    assert not findings()
    assert findings(late=6) == [("latency", 6)]
    for change in (lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x[:, 2:-2, 2:-2].repeat(2, 1).repeat(2, 2)[
            :, 2:-2, 2:-2]):
        (code, value), = findings(change=change)
        assert code == "camera-differs" and value > 3
    elsewhere = [(images, rows, states + 100) for images, rows, states in views(1, 1)]  # no state as in the data
    assert not list(check_views("top", recorded, elsewhere))
    assert [f.code for f in check_views("top", recorded, [*elsewhere, *views(1, late=6)])] == ["latency"]


def test_first_images_with_something_where_nothing_was_recorded():
    def firsts(seed, n, things):
        return {"top": np.stack([images[0] for images, _, _ in views(seed, n, things=things)])}
    recorded = firsts(0, 60, [(0, 0)])
    assert not list(check_first_images(recorded, firsts(1, 30, [(0, 0)])))
    finding, = check_first_images(recorded, firsts(1, 30, [(0, 0), (6, 6)]))
    assert finding.code == "start-states" and finding.value > 0.5
