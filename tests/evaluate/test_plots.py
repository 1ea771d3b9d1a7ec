"""Figures: every line is where its number says, and all can read it."""

import importlib
import math

import numpy as np
import pytest
from fixtures.reports import of, recorded_curves, svg
from folders import BENCHMARKS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import Fork
from understudy.envs.toys.push import Push
from understudy.evaluate import plots
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.plots import Axis
from understudy.evaluate.report import (
    demonstrations_section,
    training_figures,
)
from understudy.evaluate.stats import clopper_pearson, tango, wilson

EVIL = '<script>alert("&")</script>'


def points(path):
    return np.array([[float(v) for v in p.split()] for p in path.get("d")[1:].split("L")])


# -- figures -------------------------------------------------------------------------------------------------------


def test_trajectories_are_the_recorded_ways(runs):
    shaky = runs["shaky"]
    assert 0 < shaky.successes.sum() < 20
    root = svg(figure := plots.trajectories(shaky.episodes, Fork().map()))
    good, bad = of(root, "path", **{"class": "good"}), of(root, "path", **{"class": "bad"})
    assert len(good) == shaky.successes.sum() and len(bad) == len(of(root, "path", **{"class": "cross"})) == 20 - len(
        good)
    assert f"{len(good)} of 20" in figure.alt_text
    well = [e for e in shaky.episodes if e.metadata["success"]]
    unit = (plots.WIDTH - 1) / 1.6  # the map is 1.6 m wide, from -0.2, and high, from -0.8
    for e, path in zip(well, good, strict=True):
        way = e.steps["observation.state"]
        expected = np.stack([0.5 + (way[:, 0] + 0.2) * unit, 0.5 + (0.8 - way[:, 1]) * unit], 1)
        np.testing.assert_allclose(points(path), expected, atol=0.06)


def test_a_map_is_whole_and_its_names_are_not_covered(runs):
    """A fan to the right of the start leaves no room right below it, and the picture's height is no whole number."""
    for high in (0.5, 0.501, 0.5034, 0.507):
        plane = {**Fork().map(), "y": (-0.55, high)}
        root = svg(plots.trajectories(runs["steady"].episodes, plane))
        frame, box = of(root, "rect")[0], [float(v) for v in root.get("viewBox").split()]
        for coordinate, size, at in (("x", "width", 2), ("y", "height", 3)):
            low, high = float(frame.get(coordinate)), float(frame.get(coordinate)) + float(frame.get(size))
            assert low >= 0.5 and high + 0.5 <= box[at]
    ways = [points(p) for p in of(root, "path", **{"class": "good"})]
    covered = np.concatenate([a + (b - a) * t for w in ways for a, b in zip(w, w[1:], strict=False)
                              for t in np.linspace(0, 1, 50)[:, None, None]]).reshape(-1, 2)
    for name in of(root, "text"):
        x, middle, half = float(name.get("x")), float(name.get("y")) - 4, 3 * len(name.text)
        assert not ((np.abs(covered - (x, middle)) < (half, 5)).all(1)).any(), name.text
        assert half < x < plots.WIDTH - half and 5 < middle < box[3] - 5


def test_a_view_shows_everything_that_is_there(runs):
    part = plots.visible_area(Fork().map(), runs["steady"].episodes)
    at = np.concatenate([e.steps["observation.state"] for e in runs["steady"].episodes])
    for k, axis in enumerate("xy"):
        low, high = part[axis]
        assert low < at[:, k].min() and at[:, k].max() < high
        assert Fork().map()[axis][0] <= low and high <= Fork().map()[axis][1]
    assert part["y"][1] - part["y"][0] < 1.6


def test_where_goals_differ_every_episode_has_its_own_map():
    env = Push(8)
    data = evaluate(env.expert(), env, 8, 0).episodes
    root = svg(plots.trajectories(data, env.map()))
    frames, goals = of(root, "rect"), of(root, "circle", stroke="var(--goal)")
    assert len(frames) == len(goals) == 6
    size = (plots.WIDTH - 1 - 16) / 3  # half a line's width on either side
    for i, (e, frame, goal) in enumerate(zip(data, frames, goals, strict=False)):
        x, y = e.steps["observation.state"][0, 6:8]
        x_left, top = 0.5 + (size + 8) * (i % 3), 0.5 + (size + 8) * (i // 3)
        assert (float(frame.get("x")), float(frame.get("y"))) == pytest.approx((x_left, top), abs=0.1)
        assert (float(goal.get("cx")), float(goal.get("cy"))) == pytest.approx(
            (x_left + x * size, top + (1 - y) * size), abs=0.1)


def test_success_bars_are_as_long_as_the_estimates():
    bars = [("a", clopper_pearson(9, 10), "9 of 10"), (EVIL, clopper_pearson(0, 10), "0 of 10")]
    root = svg(figure := plots.success_bars(bars))
    full = plots.WIDTH - 1
    for i, (_, p, tally) in enumerate(bars):
        bar = of(root, "rect", fill=f"var(--s{i})")[0]
        assert float(bar.get("width")) == pytest.approx(max(full * p.estimate, 0.1), rel=1e-3)
        assert tally in figure.alt_text
    texts = svg(plots.success_bars([("a", clopper_pearson(189, 200), "189 of 200")])).itertext()
    assert {"94.5%", "90.4% to 97.2%"} <= set(texts)  # Clopper-Pearson: 0.9037 to 0.9722
    whiskers = [points(p) for p in of(root, "path", **{"class": "mark"})]
    assert whiskers[0][:, 0] == pytest.approx([full * bars[0][1].low, full * bars[0][1].high], abs=0.1)
    assert EVIL not in figure.svg


def test_the_labels_of_a_difference_are_not_cut_off():
    root = svg(plots.differences([("mine minus theirs", 0.6, 0.3, 0.9, True)]))
    labels = {t.text: (float(t.get("x")), t.get("text-anchor")) for t in of(root, "text", **{"class": "soft"})}
    assert labels["+100"][1] == "end" and labels["+100"][0] <= plots.WIDTH and min(labels.values())[1] != "middle"


def test_a_difference_is_drawn_on_its_side_of_none():
    for b, c, side in ((8, 1, 1), (1, 8, -1)):
        i = tango(b, c, 20)
        root = svg(figure := plots.difference_bar("mine", "theirs", i.estimate, i.low, i.high, i.level))
        middle = plots.WIDTH / 2
        dot = float(of(root, "circle")[0].get("cx"))
        whisker = points(of(root, "path", **{"class": "mark"})[0])[:, 0]
        assert (dot - middle) * side > 0 and whisker[0] < dot < whisker[1]
        assert (dot - middle) / (whisker[1] - middle) == pytest.approx(i.estimate / i.high, rel=0.02)
        assert "outside" in figure.alt_text
    assert "inside" in plots.difference_bar("a", "b", 0.0, -0.1, 0.1, 0.95).alt_text
    svg(plots.difference_bar("a", "b", -250.0, -300.0, 20.0, 0.95, percent=False))
    svg(plots.difference_bar("a", "b", float("nan"), float("nan"), float("nan"), 0.95))


# Advance of each character in DejaVu Sans, the widest of the usual fonts, in 1/2048 of the font size.
ADVANCES = {**dict.fromkeys("bdgpq", 1300), **dict.fromkeys("hnu", 1298), **dict.fromkeys("vxy", 1212),
            **dict.fromkeys("0123456789", 1303), **dict.fromkeys("ijl", 569), "a": 1255, "c": 1126, "e": 1260, "f": 721,
            "k": 1186, "m": 1995, "o": 1253, "r": 842, "s": 1067, "t": 803, "w": 1675, "z": 1075, "-": 739, " ": 651}


def label_boxes(root):
    """Left, top, right and bottom of each label of `labeled_points`, in a font of 13 pixels."""
    boxes = []
    for t in of(root, "text", **{"class": "over"}):
        width, x, y = 13 / 2048 * sum(ADVANCES[c] for c in t.text), float(t.get("x")), float(t.get("y"))
        x_left = x - width if t.get("text-anchor") == "end" else x
        boxes.append((x_left, y - 10, x_left + width, y + 3))
    return boxes


@pytest.fixture
def labeled(monkeypatch):
    """benchmarks/labeled_points.py"""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("labeled_points")


@pytest.mark.parametrize("names", [
    [f"{kind}-{n}" for kind in ("ddim", "energy", "one", "normalizing-flow") for n in (1, 11, 10, 111, 101)],
    [f"head-{n}" for n in range(101, 131)]])
def test_labels_of_dense_points_do_not_touch(labeled, names):
    rows = [(name, 30.0 + 4 * math.sin(i), wilson(96 + i % 5, 100), "head") for i, name in enumerate(names)]
    root = svg(labeled.labeled_points([*rows, ("slow", 1.0, wilson(90, 100), "head")], "speed", "success"))
    boxes, view = label_boxes(root), [float(v) for v in root.get("viewBox").split()]
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in of(root, "circle", r="5")[1:]]
    assert len(boxes) == len(dots) == len(names) + 1
    for i, a in enumerate(boxes):
        assert not any(a[0] - 1 < b[2] and b[0] < a[2] + 1 and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])
        assert a[0] > 0 and a[1] > 20 and a[2] < view[2] and a[3] < view[3]  # below the legend
    assert not any(a[0] - 5 < x < a[2] + 5 and a[1] - 4 < y < a[3] + 4 for a in boxes for x, y in dots)
    lines = [points(p) for p in root.iter("path") if p.get("stroke-width") == "0.8"]
    isolated = [a for a in boxes if not any(a[0] - 20 < x < a[2] + 20 and a[1] - 20 < y < a[3] + 20 for x, y in dots)]
    assert 3 < len(isolated) <= len(lines) <= len(names)
    for dot, end in lines:  # from a dot to a label
        assert min(math.dist(dot, d) for d in dots) < 0.1
        assert any(a[0] - 5 < end[0] < a[2] + 5 and a[1] - 5 < end[1] < a[3] + 5 for a in boxes)


def test_labels_of_points_cover_nothing_and_dots_stand_at_their_values(labeled):
    rows = [(f"head number {i}", 10.0 + i % 3, wilson(90 + i % 4, 100), ("slow", "fast")[i % 2]) for i in range(20)]
    rows.append(("the slowest", 1.0, wilson(50, 100), "slow"))
    root = svg(figure := labeled.labeled_points(rows, "speed", "success", guides=(5.0, 0.5)))
    boxes = label_boxes(root)
    assert len(boxes) == len(rows)
    shapes = of(root, "circle", r="5")[1:]  # the first is the legend's
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in shapes]
    assert len(dots) == 11
    for i, a in enumerate(boxes):
        assert a[0] > 0 and a[2] < labeled.LABELED_WIDTH
        assert not any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in dots)
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])
    legend = {t.text: float(t.get("x")) for t in of(root, "text") if t.text in ("slow", "fast")}
    second = float(of(root, "polygon")[0].get("points").split(",")[0])
    assert legend["slow"] + 6.2 * len("slow") + 12 < second < legend["fast"]
    across, down = (points(p) for p in of(root, "path", **{"class": "bad"}))
    low, high = min(x for x, _ in dots), max(x for x, _ in dots)
    assert across[0, 0] == pytest.approx(low + (high - low) * math.log(5) / math.log(12), abs=0.2)
    assert down[0, 1] == pytest.approx(dict(dots)[low], abs=0.1)  # the slowest succeeds in half of its episodes
    assert "head number 3: 10, 93%" in figure.alt_text


def test_curves_leave_out_what_is_no_number():
    series = {"loss": ([0, 1, 2, 3], [10.0, float("nan"), 0.1, 0.0])}
    root = svg(plots.curves(series, Axis("updates"), Axis("loss", log=True)))
    assert len(points(of(root, "path", **{"class": "curve"})[1])) == 2  # the first is the legend's
    assert len(points(of(svg(plots.curves(series, Axis("x"), Axis("y"))), "path", **{"class": "curve"})[1])) == 3
    assert "nothing measured" in plots.curves({"a": ([], [])}, Axis("x"), Axis("y")).svg
    times = svg(plots.curves({"a": ([0.0, 1.0, 10.0, 100.0], [0.5, 0.1, 0.2, 0.3])}, Axis("s", log=True), Axis("y")))
    at = points(of(times, "path", **{"class": "curve"})[1])[:, 0]
    assert len(at) == 3 and at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.1) and "20" in set(times.itertext())
    banded = svg(plots.curves({"a": ([0, 1], [1.0, 2.0])}, Axis("x"), Axis("y"),
                              bands={"a": ([0.5, 1.5], [1.5, 2.5])}))
    assert len(of(banded, "polygon")[0].get("points").split()) == 4


def test_a_smoothed_curve_is_drawn_over_its_points_and_a_mark_is_a_ring():
    steps, values = [0, 10, 20], [3.0, 1.0, 2.0]
    root = svg(figure := plots.curves({"a": (steps, values)}, Axis("updates", low=0), Axis("loss"), marks={"a": 10},
                                      smooth={"a": (steps, [2.0, 2.0, 2.0])}))
    (faint,) = [e for e in root.iter("path") if e.get("stroke-opacity") == "0.3"]
    (line,) = [e for e in of(root, "path", **{"class": "curve"}) if len(points(e)) == 3]
    (ring,) = of(root, "circle", fill="none")
    assert len(set(points(line)[:, 1])) == 1 and len(set(points(faint)[:, 1])) == 3
    at = points(faint)[1]
    assert (float(ring.get("cx")), float(ring.get("cy"))) == pytest.approx(tuple(at), abs=0.1)
    assert "1 at the ring" in figure.alt_text
    assert len({plots._series_style(i) for i in range(16)}) == 16


def test_a_run_has_the_same_color_in_all_figures_of_training():
    lines = {"loss": [0.5, 0.4], "score": [0.1, 0.9]}
    def curves(*keys):
        return recorded_curves([{"step": i, **{k: lines[k][i] for k in keys}} for i in range(2)])
    figures = training_figures({"a": curves("loss"), "b": curves("loss", "score")})
    loss, score = (of(svg(figure), "path", **{"class": "curve"}) for _, figure, _ in figures)
    assert len(loss) == 4 and len(score) == 2  # one in the legend, one in the figure
    of_b = {(p.get("stroke"), p.get("stroke-dasharray")) for p in score}
    assert of_b == {(loss[1].get("stroke"), loss[1].get("stroke-dasharray"))}
    assert loss[0].get("stroke") != loss[1].get("stroke")


def test_the_tasks_of_demonstrations_are_counted_wherever_they_are():
    steps = {"observation.state": np.zeros((3, 2), np.float32), "action": np.zeros((3, 1), np.float32)}
    data = Dataset([Episode(steps, {"task": task}) for task in ("put", "away", "put")])
    tiles = demonstrations_section(data).contents[0]
    assert ("tasks", "2") in tiles.items


def test_a_histogram_has_all_values():
    v = [3, 3, 4, 9, 9, 9]
    root = svg(plots.histogram(v, "steps"))
    heights = [float(r.get("height")) for r in of(root, "rect")]
    assert len(heights) == 3 and np.array(heights) / heights[1] == pytest.approx([2, 1, 3], rel=0.01)
    for values in ([5.0], [2.0, 2.0], [0.1, 0.1], [], [float("nan")], list(range(1000))):
        svg(plots.histogram(values, "steps"))


@pytest.mark.parametrize(("values", "shown"), [
    ([1e17] * 3, 1), ([1e17, 1e17 + 64], 1), ([1e300] * 2, 1), ([1.7e308, -1.7e308], 2), ([5e-324, 0.0], 1),
    ([0.1, np.nextafter(0.1, 1)], 1), ([5.3, 5.3 + 1e-10], 1), ([5.3, 5.3 + 1e-7], 2), ([1.0, 1e18], 2),
    ([1e13, 1e13 + 1], 2)])
def test_numbers_at_the_end_of_what_numbers_can_be_have_a_histogram(values, shown):
    figure = plots.histogram(values, "return")
    assert len(of(svg(figure), "rect")) == shown and "nan" not in figure.svg and "inf" not in figure.svg


def test_fans_hold_every_plan_up_to_the_end():
    truth, plans = np.sin(np.arange(20.0))[:, None], np.random.default_rng(0).normal(size=(7, 8, 1))
    root = svg(plots.plan_fan(truth, [(0, plans), (16, plans)], 0, "turn"))
    lines = [points(p) for p in of(root, "path", stroke="var(--s0)")]
    assert [len(line) for line in lines] == [8] * 7 + [4] * 7
    assert len(points(of(root, "path", **{"class": "mark"})[0])) == 20


def test_chunks_of_one_step_are_dots():
    truth, plans = np.arange(20.0)[:, None], np.random.default_rng(0).uniform(0, 19, (7, 1, 1))
    root = svg(plots.plan_fan(truth, [(0, plans), (16, plans)], 0, "turn"))
    dots, rings = of(root, "circle", fill="var(--s0)"), of(root, "circle", stroke="var(--s0)")
    assert len(dots) == 14 and len(rings) == 2
    centers = {(r.get("cx"), float(r.get("cy"))) for r in rings}
    (x0, low), (x1, high) = sorted(centers, key=lambda at: float(at[0]))
    assert [d.get("cx") for d in dots] == [x0] * 7 + [x1] * 7
    heights = [low + float(p) / 16 * (high - low) for p in plans[:, 0, 0]]
    assert [float(d.get("cy")) for d in dots] == pytest.approx(heights * 2, abs=0.2)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@example(524288.0625, 0.00390625)
def test_ticks_are_round_and_embrace_the_range(low, span):
    ticks = plots._ticks(low, low + span)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * step + 1e-9 * abs(low)
    assert ticks[0] <= low + slack and ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 8
    mantissa = float(f"{step:.4e}".split("e")[0])  # 0.00099999993, a difference of floats, is 1e-3 and not 9.9999993e-4
    assert any(mantissa == pytest.approx(m, rel=1e-4) for m in (1, 2, 2.5, 5))


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-8, 1e6), st.floats(1, 1e9))
def test_logarithmic_ticks_embrace_the_range(low, times):
    ticks = plots._log_ticks(low, low * times)
    assert ticks[0] <= low * 1.0001 and ticks[-1] >= low * times * 0.9999 and len(ticks) <= 14
    assert sorted(set(ticks)) == ticks


# -- colors -------------------------------------------------------------------------------------------------------


def channels(color):
    v = np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)  # linear light


def contrast(a, b):
    """WCAG 2.1."""
    x, y = sorted(float(channels(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (y + 0.05) / (x + 0.05)


# How the color-blind see linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
BLIND = {"protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]],
         "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                          [-0.011820, 0.042940, 0.968881]]}


def lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear.clip(0, 1)
    t = xyz / [0.9505, 1.0, 1.089]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read_and_told_apart_by_all(theme):
    c = plots.COLORS[theme]
    for ground in ("paper", "panel"):
        assert contrast(c["ink"], c[ground]) >= 7 and contrast(c["soft"], c[ground]) >= 4.5
        assert all(contrast(c[k], c[ground]) >= 3 for k in ("good", "bad", "goal", "s0", "s1", "s2", "s3"))
    for pair in (("good", "bad"), ("s0", "s1")):
        a, b = (channels(c[k]) for k in pair)
        for vision in (np.eye(3), *map(np.array, BLIND.values())):
            assert np.linalg.norm(lab(vision @ a) - lab(vision @ b)) > 40, pair
