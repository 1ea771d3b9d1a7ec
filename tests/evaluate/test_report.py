"""The report: that every line is where its number says, that nothing comes from elsewhere, and that all can read it."""

import base64
import importlib
import io
import math
import re
import xml.etree.ElementTree as xml
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from folders import BENCHMARKS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import Fork
from understudy.envs.toys.push import Push
from understudy.evaluate import plots
from understudy.evaluate.action_prediction import (
    ActionPrediction,
    EpisodePlanSamples,
    ErrorBreakdown,
    PlanSamples,
    PredictionError,
    UncertainStep,
)
from understudy.evaluate.behavior_metrics import measure_behavior
from understudy.evaluate.episode_video import film_strip, write_video
from understudy.evaluate.evaluation import compare, evaluate, evaluation_of
from understudy.evaluate.failures import failure_figures
from understudy.evaluate.plots import Axis
from understudy.evaluate.report import (
    Commands,
    Paragraph,
    Section,
    StatTiles,
    Table,
    demonstrations_section,
    training_figures,
    write_page,
    write_prediction_report,
    write_report,
)
from understudy.evaluate.stats import Interval, clopper_pearson, tango, wilson
from understudy.execute.actor import NoisyActor
from understudy.learn.training_curves import TrainingCurves, read_curves

EVIL = '<script>alert("&")</script>'


def svg(figure):
    root = xml.fromstring(figure.svg)
    assert root.get("role") == "img" and root.get("aria-label") == figure.alt_text and len(figure.alt_text) > 10
    return root


def points(path):
    return np.array([[float(v) for v in p.split()] for p in path.get("d")[1:].split("L")])


def of(root, tag, **attributes):
    return [e for e in root.iter(tag) if all(e.get(k.replace("_", "-")) == v for k, v in attributes.items())]


@pytest.fixture(scope="module")
def runs():
    def go(std):
        env = Fork(20)
        return evaluate(NoisyActor(env.expert(), 2, std), Fork(20), 20, 0)
    return {"steady": go(0.0), "shaky": go(2.0)}


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
        for far, size, at in (("x", "width", 2), ("y", "height", 3)):
            low, high = float(frame.get(far)), float(frame.get(far)) + float(frame.get(size))
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
        left, top = 0.5 + (size + 8) * (i % 3), 0.5 + (size + 8) * (i // 3)
        assert (float(frame.get("x")), float(frame.get("y"))) == pytest.approx((left, top), abs=0.1)
        assert (float(goal.get("cx")), float(goal.get("cy"))) == pytest.approx(
            (left + x * size, top + (1 - y) * size), abs=0.1)


def test_success_bars_are_as_long_as_the_estimates():
    found = [("a", clopper_pearson(9, 10), "9 of 10"), (EVIL, clopper_pearson(0, 10), "0 of 10")]
    root = svg(figure := plots.success_bars(found))
    full = plots.WIDTH - 1
    for i, (_, p, tally) in enumerate(found):
        bar = of(root, "rect", fill=f"var(--s{i})")[0]
        assert float(bar.get("width")) == pytest.approx(max(full * p.estimate, 0.1), rel=1e-3)
        assert tally in figure.alt_text
    shown = svg(plots.success_bars([("a", clopper_pearson(189, 200), "189 of 200")])).itertext()
    assert {"94.5%", "90.4% to 97.2%"} <= set(shown)  # Clopper-Pearson: 0.9037 to 0.9722
    whiskers = [points(p) for p in of(root, "path", **{"class": "mark"})]
    assert whiskers[0][:, 0] == pytest.approx([full * found[0][1].low, full * found[0][1].high], abs=0.1)
    assert EVIL not in figure.svg


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
        left = x - width if t.get("text-anchor") == "end" else x
        boxes.append((left, y - 10, left + width, y + 3))
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
    far = [a for a in boxes if not any(a[0] - 20 < x < a[2] + 20 and a[1] - 20 < y < a[3] + 20 for x, y in dots)]
    assert 3 < len(far) <= len(lines) <= len(names)
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


def recorded_curves(lines):
    """A run with these lines of metrics.jsonl."""
    return TrainingCurves(Path(), read_curves(lines), None, None, None, "")


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
    for odd in ([5.0], [2.0, 2.0], [0.1, 0.1], [], [float("nan")], list(range(1000))):
        svg(plots.histogram(odd, "steps"))


@pytest.mark.parametrize(("values", "shown"), [
    ([1e17] * 3, 1), ([1e17, 1e17 + 64], 1), ([1e300] * 2, 1), ([1.7e308, -1.7e308], 2), ([5e-324, 0.0], 1),
    ([0.1, np.nextafter(0.1, 1)], 1), ([5.3, 5.3 + 1e-10], 1), ([5.3, 5.3 + 1e-7], 2), ([1.0, 1e18], 2),
    ([1e13, 1e13 + 1], 2)])
def test_numbers_at_the_end_of_what_numbers_can_be_have_a_histogram(values, shown):
    found = plots.histogram(values, "return")
    assert len(of(svg(found), "rect")) == shown and "nan" not in found.svg and "inf" not in found.svg


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
    where = {(r.get("cx"), float(r.get("cy"))) for r in rings}
    (x0, low), (x1, high) = sorted(where, key=lambda at: float(at[0]))
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
        for seen in (np.eye(3), *map(np.array, BLIND.values())):
            assert np.linalg.norm(lab(seen @ a) - lab(seen @ b)) > 40, pair


# -- pages ---------------------------------------------------------------------------------------------------------


class Checked(HTMLParser):
    """Every tag is closed, and nothing points elsewhere."""

    EMPTY = {"meta", "!doctype", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        assert all(k not in ("src", "href", "onload", "onclick") or v.startswith("data:image/png;base64,")
                   for k, v in attributes)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.remove(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def checked(path):
    text = path.read_text(encoding="utf-8")
    found = Checked(text)
    assert "script" not in found.seen and "link" not in found.seen and "iframe" not in found.seen
    assert not re.search(r"https?://|@import|url\(|//[a-z]", re.sub(r"base64,[\w+/=]*", "", text))
    assert "default-src 'none'" in text and "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    for figure in re.findall(r"<svg.*?</svg>", text, re.S):
        xml.fromstring(figure)
    return found


def test_the_report_of_two_policies_tells_it_all(runs, tmp_path):
    steady, shaky = runs.values()
    lines = [{"step": s, "loss": 1 / s, "seconds": 1.0} for s in range(1, 20)]
    lines += [{"step": 10, "validation/energy": 0.5, "score": 0.7}, {"step": 20, "validation/energy": 0.4}]
    found = checked(
        write_report(
            tmp_path / "r.html",
            runs=runs,
            env=Fork(),
            training={"steady": recorded_curves(lines), "shaky": recorded_curves(lines[:19])},
            data=steady.episodes,
            commands=[("understudy eval a b", "Again")],
            title="Fork",
        )
    )
    assert found.seen.count("svg") == 9  # two maps, bars, difference, loss, error, score, what was shown, lengths
    for words in ("steady succeeds more often than shaky", "20 of 20 against", "this checkpoint", "understudy eval a b",
                  Fork().metadata["success"], "observation.state", "Losses of different heads", "Clopper–Pearson"):
        assert words in found.text, words
    p = compare(steady, shaky)
    assert f"{100 * p.low:+.1f} to {100 * p.high:+.1f}".replace("-", "−") in found.text


def test_failure_groups_open_and_two_policies_stand_in_columns(runs, tmp_path):
    """Every group can be opened to see its episodes; measures of two policies are two columns of one table."""
    env = Fork(50)
    measured = {}
    for name, found in runs.items():
        b = measure_behavior(found.episodes, env)
        measured[name] = replace(b, failure_figures=tuple(failure_figures(b.failures, found.episodes, env)))
    commands = [("understudy eval a fork --html r.html", "The same again:")]
    text = write_report(tmp_path / "r.html", runs=runs, env=env, behavior=measured, commands=commands).read_text()
    groups = [g for b in measured.values() for g in b.failures]
    assert groups and text.count("<details>") == len(groups) == text.count('<div class="group">')
    shown = sum(min(len(g), 6) for g in groups)
    assert len(re.findall(r"<h3>Episode \d+ fails</h3>", text)) == shown
    assert text.count("succeeds from the most similar start") == len(groups)
    curves = plots.component_curves([np.array([0.5, 1.0])], "elbow", 1, 0.0, 1.0)
    assert "elbow" in set(svg(curves).itertext())
    assert text.count('<div class="columns">') == 2  # failures, and what is said beside the table
    table = re.search(r"<table>.*?</table>", text[text.index("Behavior metrics"):], re.DOTALL)[0]
    head = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)
    assert head[0] == "mean of an episode" and head[1:3] == list(runs) and text.count("mean of an episode") == 1
    jerk = next(m for m in next(iter(measured.values())).metrics if m.key == "action_jerk").value
    assert f"{jerk.estimate:.3g} [{jerk.low:.3g}, {jerk.high:.3g}]" in table
    last = text[text.index("What to do next"):]
    assert "Record more demonstrations" in last and commands[0][0] in last


def test_the_report_of_one_policy_without_map_or_success(runs, tmp_path):
    def bare(e):
        return Episode({k: v for k, v in e.steps.items() if k != "next.success"},
                       {k: v for k, v in e.metadata.items() if k != "success"})
    e = evaluation_of(runs["shaky"].episodes.map(bare))
    found = checked(write_report(tmp_path / "r.html", runs={"alone": e}))
    assert "mean return" in found.text and "a mean return of" in found.text and "succe" not in found.text.lower()
    other = checked(write_report(tmp_path / "s.html", runs={"one": e, "two": e}))
    assert "sign-flip" in other.text and "sign-flip" not in found.text  # the methods on the page, and no others
    shaky = checked(write_report(tmp_path / "t.html", runs={"shaky": runs["shaky"]}))
    assert "Clopper–Pearson" in shaky.text and "Tango" not in shaky.text and "McNemar" not in shaky.text
    assert "Tango" in checked(write_report(tmp_path / "u.html", runs=runs)).text
    assert "Cannot tell whether one or two is better" in other.text


def test_text_from_strangers_stays_text(runs, tmp_path):
    e = runs["steady"].episodes[0]
    feature = Feature("float32", (2,), names=(EVIL, "y"), unit=EVIL)
    odd = Dataset([replace(e.replace({EVIL: np.zeros(len(e), np.float32)}), schema={"action": feature})] * 2)
    found = checked(write_report(tmp_path / "r.html", runs={EVIL: runs["steady"]}, env=Fork(), data=odd, title=EVIL,
                                 training={EVIL: recorded_curves([{"step": 1, "loss": 1.0}])}, commands=[(EVIL, EVIL)]))
    assert found.text.count(EVIL) >= 6
    every = (Paragraph(EVIL), StatTiles(((EVIL, EVIL),)), Table((EVIL,), ((EVIL,),)), Commands(((EVIL, EVIL),)))
    found = checked(write_page(tmp_path / "p.html", EVIL, [Section(EVIL, every, EVIL)], verdict=(EVIL, EVIL, EVIL),
                               footer=EVIL))
    assert found.text.count(EVIL) == 15


def test_a_report_is_written_whole_or_not_at_all(runs, tmp_path):
    write_report(tmp_path / "r.html", runs=runs)
    before = (tmp_path / "r.html").read_text()
    with pytest.raises(UserError):
        write_report(tmp_path / "r.html", runs={"a": runs["steady"], "b": evaluate(Fork().expert(), Fork(4), 4, 1)})
    assert (tmp_path / "r.html").read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_the_report_on_recorded_episodes_says_what_it_is_not(tmp_path):
    rng = np.random.default_rng(0)
    some = Interval(0.4, 0.3, 0.5)
    fans = EpisodePlanSamples(
        3,
        rng.normal(size=(20, 2)),
        (PlanSamples(0, rng.normal(size=(5, 4, 2))), PlanSamples(18, rng.normal(size=(5, 4, 2)))),
    )
    parts = (ErrorBreakdown("lift", 0.3, 0.2), ErrorBreakdown(EVIL, 0.4, 0.1))
    tenths = tuple(ErrorBreakdown(f"{10 * i}-{10 * i + 10}%", 0.1 * i, 0.05) for i in range(10))
    unknown = Interval(0.2, float("nan"), float("nan"))
    found = ActionPrediction(
        "door",
        "held out",
        (3,),
        20,
        20,
        5,
        some,
        some,
        unknown,
        0.9,
        0.7,
        0.75,
        parts,
        "rad",
        tuple(ErrorBreakdown(str(h), 0.1, 0.1) for h in range(4)),
        tenths,
        (UncertainStep(3, 18, 1.2),),
        (fans,),
        (error := PredictionError("all", 0.02, 0.3, 0.1, 0.9, False), replace(some, estimate=0.02)),
        (replace(error, name="lift"), replace(error, name=EVIL, r2=None, is_constant=True)),
    )
    page_ = checked(write_prediction_report(found, tmp_path / "r.html"))
    assert "This is not a success rate" in page_.text and "energy score is 0.4" in page_.text and "70%" in page_.text
    assert "off by 0.02 rad on average" in page_.text and "never changes" in page_.text
    assert page_.seen.count("svg") == 5 and EVIL in page_.text
    certain = replace(found, samples=1, coverage=None, expected_coverage=None, uncertain_steps=())
    assert "cannot say where it is unsure" in checked(write_prediction_report(certain, tmp_path / "c.html")).text


# -- film ----------------------------------------------------------------------------------------------------------


def frames(path):
    with av.open(str(path)) as file:
        return [f.to_ndarray(format="rgb24") for f in file.decode(video=0)], file.streams.video[0].average_rate


def test_a_film_shows_every_step(runs, tmp_path):
    e, env = runs["steady"].episodes[0], Fork(1)
    shown, rate = frames(write_video(e, tmp_path / "a.mp4", env))
    assert len(shown) == len(e) + 1 and rate == 10  # and what was seen last
    fifth = torch.from_numpy(e.steps["observation.state"][5:6].copy())
    env.restore(torch.zeros(1, dtype=torch.int64), {"observation.state": fifth})
    assert np.abs(shown[5].astype(int) - env.frame(0)).mean() < 4 < np.abs(shown[5].astype(int) - shown[9]).max()
    shown, _ = frames(write_video(e, tmp_path / "a.gif", env, fps=5))
    assert len(shown) == len(e) + 1
    root = xml.fromstring(write_video(e, tmp_path / "a.svg", env).read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "prefers-color-scheme" in root[0].text


def test_a_film_of_a_camera_needs_no_environment(tmp_path):
    picture = np.zeros((6, 33, 47, 3), np.uint8)  # odd sizes
    picture[:, :, :, 0] = (40 * np.arange(6))[:, None, None]
    e = Episode({"observation.images.front": picture, "action": np.zeros((6, 1), np.float32)})
    shown, _ = frames(write_video(e, tmp_path / "a.mp4"))
    assert len(shown) == 6 and shown[0].shape == (34, 48, 3)
    assert [f[..., 0].mean() for f in shown] == pytest.approx([40 * i for i in range(6)], abs=6)


def pixels(image):
    """The PNG that stands in an <image>."""
    data = base64.b64decode(image.get("href").removeprefix("data:image/png;base64,"))
    with av.open(io.BytesIO(data)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def test_a_strip_holds_the_very_frames(tmp_path):
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (30, 20, 40, 3), dtype=np.uint8)
    e = Episode({"observation.images.front": seen, "action": np.zeros((29, 1), np.float32)})
    root = svg(figure := film_strip(e, 5))
    images, labels = of(root, "image"), [t.text for t in root.iter("text")]
    assert labels == ["step 0", "step 7", "step 14", "step 22", "step 29"] and "front" in figure.alt_text
    for image, step in zip(images, (0, 7, 14, 22, 29), strict=True):
        np.testing.assert_array_equal(pixels(image), seen[step])
        assert float(image.get("width")) == pytest.approx(2 * float(image.get("height")), rel=1e-3)
    left, top = ([float(i.get(k)) for i in images] for k in "xy")
    assert top[0] == top[3] < top[4] and left[0] == left[4] and left == sorted(left[:4]) + left[4:]
    assert float(images[3].get("x")) + float(images[3].get("width")) == pytest.approx(plots.WIDTH, abs=0.1)
    grey = Episode({"observation.images.g": seen[:3, ..., :1].repeat(10, 1).repeat(10, 2), "action": np.zeros((3, 1))})
    shown = pixels(of(svg(film_strip(grey)), "image")[0])
    assert shown.shape == (96, 192, 3) and (shown == shown[..., :1]).all()
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


def test_what_cannot_be_filmed_says_so(tmp_path):
    e = Episode({"action": np.zeros((3, 1), np.float32)})
    for name, env in (("a.mp4", None), ("a.svg", None), ("a.avi", Fork())):
        with pytest.raises(UserError, match=re.escape(name)):
            write_video(e, tmp_path / name, env)
    assert not list(tmp_path.iterdir())
