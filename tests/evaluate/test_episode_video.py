"""Films of episodes."""

import base64
import io
import xml.etree.ElementTree as xml

import av
import numpy as np
import pytest
from fixtures.reports import checked, of, svg

from understudy.data.episode import Episode
from understudy.envs.toys.fork import Fork
from understudy.envs.toys.push import Push
from understudy.evaluate import plots
from understudy.evaluate.episode_video import film_strip
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.report import (
    write_report,
)
from understudy.execute.actor import NoisyActor


def test_a_figure_stands_alone_with_the_colors_of_the_page(runs):
    figure = plots.trajectories([runs["steady"].episodes[0]], Fork(1).map())
    root = xml.fromstring(figure.standalone_svg())
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "prefers-color-scheme" in root[0].text


def pixels(image):
    """The PNG that stands in an <image>."""
    data = base64.b64decode(image.get("href").removeprefix("data:image/png;base64,"))
    with av.open(io.BytesIO(data)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def test_a_strip_holds_the_very_frames(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 20, 40, 3), dtype=np.uint8)
    e = Episode({"observation.images.front": pictures, "action": np.zeros((29, 1), np.float32)})
    root = svg(figure := film_strip(e, 5))
    images, labels = of(root, "image"), [t.text for t in root.iter("text")]
    assert labels == ["step 0", "step 7", "step 14", "step 22", "step 29"] and "front" in figure.alt_text
    for image, step in zip(images, (0, 7, 14, 22, 29), strict=True):
        np.testing.assert_array_equal(pixels(image), pictures[step])
        assert float(image.get("width")) == pytest.approx(2 * float(image.get("height")), rel=1e-3)
    x, top = ([float(i.get(k)) for i in images] for k in "xy")
    assert top[0] == top[3] < top[4] and x[0] == x[4] and x == sorted(x[:4]) + x[4:]
    assert float(images[3].get("x")) + float(images[3].get("width")) == pytest.approx(plots.WIDTH, abs=0.1)
    grey = Episode({"observation.images.g": pictures[:3, ..., :1].repeat(10, 1).repeat(10, 2),
                    "action": np.zeros((3, 1))})
    grey_pixels = pixels(of(svg(film_strip(grey)), "image")[0])
    assert grey_pixels.shape == (96, 192, 3) and (grey_pixels == grey_pixels[..., :1]).all()
    assert film_strip(Episode({"action": np.zeros((3, 1), np.float32)})) is None


def test_the_report_shows_what_the_camera_saw(tmp_path):
    env = Push(4, limit=40, images=True, size=16)
    runs = {n: evaluate(NoisyActor(env.expert(), 2, std), env, 4, 0) for n, std in (("steady", 0.0), ("lost", 9.0))}
    page_ = checked(write_report(tmp_path / "r.html", runs=runs, env=env))
    well = [e.successes for e in runs.values()]
    strips = sum(len(set(w.tolist())) for w in well)
    assert page_.seen.count("image") == 8 * strips and "What they saw" in page_.text
    for name, w in zip(runs, well, strict=True):
        for outcome, words in ((True, "succeeds"), (False, "does not succeed")):
            if outcome in w:
                assert f"{name}: episode {w.tolist().index(outcome)} {words}" in page_.text
    assert (
        "saw"
        not in checked(write_report(tmp_path / "s.html", runs={"a": evaluate(Fork().expert(), Fork(2), 2, 0)})).text
    )
