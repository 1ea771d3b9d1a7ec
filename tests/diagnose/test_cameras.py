"""Images that are changed in a known way."""

import numpy as np
import pytest

from understudy.diagnose.cameras import check_cameras, check_still


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
