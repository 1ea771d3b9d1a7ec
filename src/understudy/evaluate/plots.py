"""Draws figures as SVG, with alternative text, sharp at any size, in light and dark mode.

Colors are the colors of Okabe and Ito (2008) or similar, which color-blind people can distinguish. Nothing is shown by
color alone.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ..data.episode import Episode
from ..data.video import encode_png
from .behavior.clearance import planar_points
from .behavior.scaling import evenly_spaced_indices
from .stats import Interval

WIDTH = 420  # width of every plot, so that its text has the size of the page's text, also on a phone
MAX_EPISODES = 200  # largest number of episodes with drawn trajectories
DASH_PATTERNS = ("none", "7 4", "2 4", "9 3 2 3")
Point = tuple[float, float]
Points = Iterable[Point]
Values = Sequence[float] | np.ndarray

# Inline SVG inherits custom properties from the page; a standalone file must contain them.
COLORS = {
    "light": {"paper": "#ffffff", "panel": "#f5f7f9", "ink": "#1a1f26", "soft": "#58626e", "line": "#e1e5ea",
              "block": "#cbd2da", "edge": "#aab4bf", "goal": "#00805d", "good": "#0072b2", "bad": "#d55e00",
              "s0": "#0072b2", "s1": "#b06f00", "s2": "#00805d", "s3": "#9a4f96"},
    "dark": {"paper": "#0e1216", "panel": "#161b21", "ink": "#e9edf1", "soft": "#9ba7b4", "line": "#2a323b",
             "block": "#39434e", "edge": "#56626f", "goal": "#3fc79a", "good": "#56b4e9", "bad": "#ff8f4a",
             "s0": "#56b4e9", "s1": "#f0b23c", "s2": "#3fc79a", "s3": "#d79ad2"},
}
FONT = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def _variables(theme: str) -> str:
    return "".join(f"--{k}:{v};" for k, v in COLORS[theme].items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables("light")}}}
@media (prefers-color-scheme:dark){{:root{{{_variables("dark")}}}}}
:root[data-theme=light]{{color-scheme:light;{_variables("light")}}}
:root[data-theme=dark]{{color-scheme:dark;{_variables("dark")}}}
.plot{{display:block;width:100%;height:auto;font-family:{FONT};font-size:13px;font-variant-numeric:tabular-nums}}
.plot path{{fill:none;stroke-linejoin:round;stroke-linecap:round}}
.plot text{{fill:var(--ink)}} .plot .soft{{fill:var(--soft);font-size:12px}}
.plot .name{{font-size:15px;font-weight:600}} .plot .strong{{font-weight:600}}
.plot .over{{paint-order:stroke;stroke:var(--panel);stroke-width:4px;stroke-linejoin:round}}
.plot .grid{{stroke:var(--line)}} .plot .base{{stroke:var(--edge);stroke-width:1.5}}
.plot .good{{stroke:var(--good);stroke-width:1.6}}
.plot .bad{{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3}}
.plot .context{{stroke:var(--soft);stroke-width:1;stroke-opacity:.28}}
.plot .cross{{stroke:var(--bad);stroke-width:2}} .plot .curve{{stroke-width:2.2}}
.plot .halo{{stroke:var(--paper);stroke-width:5;stroke-opacity:.75}} .plot .mark{{stroke:var(--ink);stroke-width:2}}
""".strip()


@dataclass(frozen=True)
class Figure:
    svg: str
    alt_text: str  # describes the figure in words

    def standalone_svg(self) -> str:
        """Returns the SVG as a separate file."""
        style = _tag("style", STYLE + "\n.plot{background:var(--paper)}")
        return self.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", ">" + style, 1)


# -- trajectories -------------------------------------------------------------------------------------------------


def trajectories(data: Sequence[Episode], plane: Mapping[str, Any], *, context: Sequence[Episode] = ()) -> Figure:
    """Draws trajectories over a map: a solid line succeeds, a dashed one with a cross does not.

    Args:
        data: The episodes. Where marks, such as goals, differ by episode, the first six have a map each.
        context: Episodes that are drawn as thin gray lines below, on a map that all share.
    """
    episodes, many = list(data), 6
    well = [_outcome(e) for e in episodes]
    if plane.get("marks"):
        episodes, well, gap = episodes[:many], well[:many], 8.0
        columns = min(len(episodes), 3)
        size = (WIDTH - 1 - gap * (columns - 1)) / columns
        parts, height = [], 0.0
        for i, e in enumerate(episodes):
            ground = _MapPanel(plane, size, 0.5 + (size + gap) * (i % columns), 0.5 + (height + gap) * (i // columns))
            height = ground.height
            marks = [{**mark, "at": planar_points(e, mark["column"])[0]} for mark in plane["marks"]]  # of its beginning
            parts += [ground.frame(), *ground.shapes([*plane["shapes"], *marks]), ground.trajectory_path(e, 1.0)]
        rows = -(-len(episodes) // columns)
        return _figure(parts, rows * (height + gap) - gap + 1,
                       f"Trajectories of {len(episodes)} episodes, each over its own map. {_outcome_text(well)}")
    ground = _MapPanel(plane, WIDTH - 1, 0.5, 0.5)
    # Failures are drawn last, so that a few of them are not hidden.
    drawn = sorted(episodes[:MAX_EPISODES], key=lambda e: _outcome(e) is False)
    strength = max(0.3, min(1.0, 4.5 / math.sqrt(len(drawn) + 1)))
    parts = [ground.frame(), *ground.shapes(plane["shapes"]),
             *(_path(ground.points(e), "context") for e in context),
             *(ground.trajectory_path(e, strength) for e in drawn), *ground.names(plane["shapes"], [*drawn, *context])]
    some = "" if len(episodes) <= MAX_EPISODES else f" The first {MAX_EPISODES} are drawn."
    return _figure(parts, ground.height + 1, f"Trajectories over the map. {_outcome_text(well)}{some}")


def visible_area(plane: Mapping[str, Any], data: Iterable[Episode]) -> dict[str, Any]:
    """Returns the part of a map, without marks, that contains episodes and shapes."""
    if plane.get("marks"):
        return dict(plane)
    points = [planar_points(e, plane["path"]) for e in data]
    for s in plane["shapes"]:
        points.append(np.array([[s["at"][k] + sign * s["radius"] for k in (0, 1)] for sign in (-1, 1)]))
    low, high = (f(np.concatenate(points), axis=0) for f in (np.nanmin, np.nanmax))
    margin = 0.06 * (high - low).max()
    return {**plane, **{axis: (max(float(low[k] - margin), plane[axis][0]),
                               min(float(high[k] + margin), plane[axis][1])) for k, axis in enumerate("xy")}}


class _MapPanel:
    """A map of the given width at (x_start, top) in a figure."""

    SHAPE_STYLES = {"obstacle": {"fill": "var(--block)", "stroke": "var(--edge)"},
             "goal": {"fill": "var(--goal)", "fill_opacity": 0.16, "stroke": "var(--goal)", "stroke_width": 1.6},
             "waypoint": {"fill": "none", "stroke": "var(--goal)", "stroke_width": 1.6, "stroke_dasharray": "3 3"}}
    DEFAULT_STYLE = {"fill": "none", "stroke": "var(--soft)", "stroke_dasharray": "2 3"}

    def __init__(self, plane: Mapping[str, Any], width: float, x_start: float = 0.0, top: float = 0.0):
        (self.x0, x1), (self.y0, y1) = plane["x"], plane["y"]
        self.unit, self.x_start, self.top, self.width = width / (x1 - self.x0), x_start, top, width
        self.height, self.path = self.unit * (y1 - self.y0), plane["path"]

    def to_pixels(self, point) -> tuple[float, float]:
        x, y = point
        return self.x_start + (x - self.x0) * self.unit, self.top + self.height - (y - self.y0) * self.unit

    def frame(self) -> str:
        return _tag("rect", x=self.x_start, y=self.top, width=self.width, height=self.height, rx=6, fill="var(--panel)",
                    stroke="var(--line)")

    def shapes(self, shapes) -> list[str]:
        return [
            _circle(
                self.to_pixels(s["at"]), s["radius"] * self.unit, **self.SHAPE_STYLES.get(s["role"], self.DEFAULT_STYLE)
            )
            for s in shapes
            if s["kind"] == "circle"
        ]

    def names(self, shapes, episodes: Sequence[Episode]) -> list[str]:
        """Draws the labels of shapes: inside if there is room, otherwise where the trajectories cover them least."""
        ways = [np.linspace(w[:-1], w[1:], 8).reshape(-1, 2) for w in map(np.array, map(self.points, episodes))]
        covered, low = np.concatenate([*ways, np.zeros((0, 2))]), np.array([self.x_start, self.top])
        high, out = low + (self.width, self.height), []
        for s in shapes:
            at, r = np.array(self.to_pixels(s["at"])), s["radius"] * self.unit
            half = np.array([3.5 * len(s["role"]), 8.0])  # half of the width and height of the text
            places = [at] if r > 30 else [at + side for d in (12, 26, 40) for side in ((0, r + d), (0, -r - d))]

            def crowd(place, half=half):
                inside = (place - half >= low).all() and (place + half <= high).all()
                return (np.abs(covered - place) < half).all(1).sum() if inside else math.inf
            x, y = min(places, key=crowd)
            out.append(_text((x, y + 4), s["role"], "soft" if r > 30 else "soft over", "middle"))
        return out

    def points(self, episode: Episode) -> list[tuple[float, float]]:
        rows = planar_points(episode, self.path)
        return [self.to_pixels(p) for p in rows[evenly_spaced_indices(len(rows), 240)]]

    def trajectory_path(self, episode: Episode, strength: float) -> str:
        points = self.points(episode)
        well, (x, y) = _outcome(episode), points[-1]
        if well is False:
            return (_path(points, "bad", stroke_opacity=min(1.0, 1.3 * strength))
                    + _tag("path", **{"class": "cross"}, d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"))
        end = _circle((x, y), 2.2, fill="var(--good)") if well else ""
        return _path(points, "good", stroke_opacity=strength) + end


def _outcome(episode: Episode) -> bool | None:
    if "success" in episode.metadata:
        return bool(episode.metadata["success"])
    return bool(np.any(episode.steps["next.success"])) if "next.success" in episode.steps else None


def _outcome_text(is_success: Sequence[bool | None]) -> str:
    if all(w is None for w in is_success):
        return f"{len(is_success)} episodes."
    return (
        f"{sum(bool(w) for w in is_success)} of {len(is_success)} episodes succeed, drawn solid; the others are "
        f"dashed and end "
        "in a cross.")


# -- images ------------------------------------------------------------------------------------------------------


def film_strip(frames: Sequence[np.ndarray], labels: Sequence[str], what: str) -> Figure:
    """Draws a figure of frames in reading order, each above its label, stored without loss.

    Args:
        frames: Images of one size, (H, W, 3) uint8 each.
        what: Description of the figure, for readers who do not see it.
    """
    columns, gap, below = 4, 8.0, 20.0
    width = (WIDTH - gap * (columns - 1)) / columns
    height = width * frames[0].shape[0] / frames[0].shape[1]
    parts = []
    for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        x, y = (width + gap) * (i % columns), (height + below + gap) * (i // columns)
        data = base64.b64encode(encode_png(frame)).decode()
        parts += [_tag("image", x=x, y=y, width=width, height=height, href=f"data:image/png;base64,{data}"),
                  _text((x, y + height + 14), label, "soft")]
    rows = -(-len(frames) // columns)
    return _figure(parts, rows * (height + below + gap) - gap,
                   f"{what}: {len(frames)} frames, {labels[0]} to {labels[-1]}.")


# -- intervals ----------------------------------------------------------------------------------------------------


def success_bars(rows: Sequence[tuple[str, Interval, str]]) -> Figure:
    """Draws one row (name, success, tally) per policy: a bar up to the estimate, and the interval over it."""
    parts, descriptions, step = [], [], 62
    right, bottom = WIDTH - 1, step * len(rows) + 6
    parts += _grid_lines([(right * v, f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75, 1)], 20, bottom)
    for i, (name, p, tally) in enumerate(rows):
        top = step * i
        end = _tag("tspan", escape(f"{p.estimate:.1%}"), **{"class": "strong"})
        end += _tag("tspan", escape(f"{p.low:.1%} to {p.high:.1%}"), dx=8, fill="var(--soft)")
        bar: dict[str, Any] = {"x": 0, "y": top + 32, "height": 16, "rx": 3}
        parts += [_tag("rect", x=0, y=top, width=WIDTH, height=28, fill="var(--paper)"),
                  _text((0, top + 22), _truncate(name, 26), "name"),
                  _tag("text", end, x=WIDTH, y=top + 22, text_anchor="end"),
                  _tag("rect", **bar, width=right, fill="var(--line)", fill_opacity=0.6),
                  _tag("rect", **bar, width=max(right * p.estimate, 0.1), fill=f"var(--s{i % 4})"),
                  _error_bar(right * p.low, right * p.high, top + 40)]
        descriptions.append(f"{name}: {tally}, {p.estimate:.1%}, {p.level:.0%} interval {p.low:.1%} to {p.high:.1%}")
    return _figure(parts, bottom + 22, "Success. " + "; ".join(descriptions) + ".")


def difference_bar(first: str, second: str, difference: float, low: float, high: float, level: float, *,
                   percent: bool = True) -> Figure:
    """Draws a paired difference, first minus second, with its interval.

    Args:
        percent: Whether the values are rates, shown in percentage points.
    """
    x, show, parts = _difference_axis((difference, low, high), 1.15, percent, 26, 92)
    unit = " points" if percent else ""
    parts += [_text((0, 14), f"← {_truncate(second)} better", "soft"),
              _text((WIDTH, 14), f"{_truncate(first)} better →", "soft", "end")]
    if math.isfinite(difference):
        label = min(max(x(difference), 60), WIDTH - 60)
        parts += [_tag("rect", x=label - 56, y=34, width=112, height=22, fill="var(--paper)"),
                  _text((label, 50), show(difference) + unit, "name", "middle")]
        if math.isfinite(low) and math.isfinite(high):
            parts.append(_error_bar(x(low), x(high), 72))
        parts.append(_circle((x(difference), 72), 6, fill="var(--ink)", stroke="var(--paper)", stroke_width=2))
    words = (f"{first} minus {second}: {show(difference)}{unit}, {level:.0%} interval {show(low)} to {show(high)}{unit}"
             f"; no difference is {'inside' if low <= 0 <= high else 'outside'} the interval.")
    return _figure(parts, 114, words)


def differences(rows: Sequence[tuple[str, float, float, float, bool]], *, percent: bool = True) -> Figure:
    """Draws one row with a difference per pair, on one scale.

    Args:
        rows: Name, difference, lower limit, upper limit, and whether the pair can be told apart. A pair that can be
            told apart has a full dot, and a pair that cannot has a ring.
    """
    step, descriptions = 44, []
    bottom = step * len(rows) + 4
    x, show, parts = _difference_axis([v for row in rows for v in row[1:4]], 1.1, percent, 20, bottom)
    for i, (name, difference, low, high, apart) in enumerate(rows):
        top = step * i
        parts += [
            _tag("rect", x=0, y=top, width=WIDTH, height=20, fill="var(--paper)"),
            _text((0, top + 15), _truncate(name, 44)),
            _text((WIDTH, top + 15), show(difference), "strong", "end"),
        ]
        if math.isfinite(low) and math.isfinite(high):
            parts.append(_error_bar(x(low), x(high), top + 31))
        if math.isfinite(difference):
            parts.append(_circle((x(difference), top + 31), 5, fill="var(--ink)" if apart else "var(--paper)",
                                 stroke="var(--paper)" if apart else "var(--ink)", stroke_width=2))
        descriptions.append(f"{name}: {show(difference)}, interval {show(low)} to {show(high)}, "
                            f"{'told apart' if apart else 'cannot tell'}")
    unit = " in percentage points" if percent else ""
    return _figure(parts, bottom + 22, f"Differences{unit}. {'; '.join(descriptions)}.")


def _difference_axis(values: Iterable[float], room: float, percent: bool, top: float, bottom: float
                     ) -> tuple[Callable[[float], float], Callable[[float], str], list[str]]:
    """Draws the axis of differences: positions, labels, and grid lines around zero."""
    reach = max((abs(v) for v in values if math.isfinite(v)), default=1.0) * room or 1.0
    if percent:  # only a few scales, so that pages can be compared
        reach = next(r for r in (0.1, 0.25, 0.5, 1.0) if r >= min(reach, 1.0))
    middle, half = WIDTH / 2, WIDTH / 2 - 16

    def x(v: float) -> float:
        return middle + half * v / reach

    def show(v: float) -> str:
        return _format_number(100 * v if percent else v, sign=True)
    ticks = [(x(v * reach), show(v * reach)) for v in (-1, -0.5, 0, 0.5, 1)]
    return x, show, [*_grid_lines(ticks, top, bottom), _path([(middle, top), (middle, bottom)], "base")]


def _error_bar(a: float, b: float, y: float) -> str:
    a, b = min(max(a, 1), WIDTH - 1), min(max(b, 1), WIDTH - 1)
    caps = "".join(_path([(v, y - 5), (v, y + 5)], "mark") for v in (a, b))
    return _path([(a, y), (b, y)], "halo") + _path([(a, y), (b, y)], "mark") + caps


def _grid_lines(ticks: Sequence[tuple[float, str]], top: float, bottom: float) -> list[str]:
    parts = []
    for at, label in ticks:
        anchor = "start" if at < 20 else "end" if at > WIDTH - 20 else "middle"
        parts += [_path([(at, top), (at, bottom)], "grid"), _text((at, bottom + 16), label, "soft", anchor)]
    return parts


# -- curves, histograms, fans ---------------------------------------------------------------------------------------


class _Axes:
    """Draws axes: a frame with round numbers on its left and bottom sides."""

    x_start, x_end = 50.0, WIDTH - 6.0

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_name: str, top: float, bottom: float, *,
                 log: bool = False, whole: bool = False, log_x: bool = False):
        self.x_range, self.x_name, self.top, self.bottom, self.log, self.whole = x, x_name, top, bottom, log, whole
        self.log_x = log_x
        self.y_ticks = _log_ticks(*y) if log else _ticks(*y)
        self.y_range = min(y[0], self.y_ticks[0]), max(y[1], self.y_ticks[-1])

    def x(self, v: float) -> float:
        v, a, b = (math.log(t) for t in (v, *self.x_range)) if self.log_x else (v, *self.x_range)
        return self.x_start + (self.x_end - self.x_start) * ((v - a) / (b - a) if b > a else 0.5)

    def y(self, v: float) -> float:
        v, a, b = (math.log(t) for t in (v, *self.y_range)) if self.log else (v, *self.y_range)
        return self.bottom - (self.bottom - self.top) * ((v - a) / (b - a) if b > a else 0.5)

    def points(self, xs, ys) -> list[tuple[float, float]]:
        return [(self.x(a), self.y(b)) for a, b in zip(xs, ys, strict=True) if math.isfinite(a) and math.isfinite(b)]

    def grid(self, as_fraction: bool = False) -> list[str]:
        return [part for t in self.y_ticks for part in (
            _path([(self.x_start, self.y(t)), (self.x_end, self.y(t))], "grid"),
            _text((self.x_start - 7, self.y(t) + 4), f"{t:.0%}" if as_fraction else _format_number(t), "soft", "end"))]

    def axis_lines(self) -> list[str]:
        low, high = self.x_range
        ticks = _log_ticks(low, high) if self.log_x else _ticks(low, high)
        labels = [(t, _format_number(t)) for t in ticks if low <= t <= high and (t == round(t) or not self.whole)]
        return self.bottom_line([(min(self.x(t), self.x_end - 3.5 * len(label) + 6), label) for t, label in labels])

    def bottom_line(self, labels: Iterable[tuple[float, str]]) -> list[str]:
        return [_path([(self.x_start, self.bottom), (self.x_end, self.bottom)], "base"),
                *(_text((x, self.bottom + 17), label, "soft", "middle") for x, label in labels),
                _text(((self.x_start + self.x_end) / 2, self.bottom + 36), self.x_name, "soft", "middle")]

    @property
    def height(self) -> float:
        return self.bottom + 44


@dataclass(frozen=True)
class Axis:
    """An axis of the figure that `curves` draws.

    Args:
        low: Lower end. None for the lowest value of the data.
        high: Upper end. None for the highest value of the data.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False

    def limits(self, values: np.ndarray) -> tuple[float, float]:
        """Returns the ends of the axis for these values."""
        return values.min() if self.low is None else self.low, values.max() if self.high is None else self.high


def curves(series: Mapping[str, tuple[Values, Values]], x: Axis, y: Axis, *, dots: bool = False,
           bands: Mapping[str, tuple[Values, Values]] | None = None,
           smooth: Mapping[str, tuple[Values, Values]] | None = None,
           marks: Mapping[str, float] | None = None, names: Sequence[str] | None = None) -> Figure:
    """Draws curves over one axis, each with its own color and dash pattern.

    Args:
        series: Name -> (x, y). What is not finite, or not positive on a logarithmic axis, is left out.
        y: What is measured. Its name is only in the alternative text.
        bands: Name -> (low, high) around that series.
        smooth: Name -> (x, y) of a smoothed series. It is drawn as the line, and the series itself faintly behind it.
        marks: Name -> x of the point of that series that gets a ring.
        names: The series of all figures of a page, where some figures lack a few: each has the same color in all.
    """
    styles = {name: _series_style(i) for i, name in enumerate(names or series)}
    bands, smooth, marks = bands or {}, smooth or {}, marks or {}
    curve_points, plotted_values = {}, []
    for name, (xs, ys) in series.items():
        xs, ys = np.asarray(xs, float), np.asarray(ys, float)
        keep = np.isfinite(xs) & np.isfinite(ys) & ((ys > 0) | (not y.log)) & ((xs > 0) | (not x.log))
        at = np.flatnonzero(keep)[evenly_spaced_indices(int(keep.sum()), 400)]
        curve_points[name] = xs[at], ys[at], tuple(np.asarray(b, float)[at] for b in bands.get(name, ()))
        plotted_values += [ys[keep], *(np.asarray(b, float)[keep] for b in bands.get(name, ()))]
    values = np.concatenate(plotted_values)
    values = values[np.isfinite(values)]
    if not len(values):
        return _empty_figure(y.name)
    steps = np.concatenate([xs for xs, _, _ in curve_points.values()])
    legend, rows = _legend({name: styles[name] for name in curve_points})
    axes = _Axes(x.limits(steps), y.limits(values), x.name, 20 * rows + 14, 20 * rows + 230, log=y.log, log_x=x.log)
    parts, front, descriptions = [*legend, *axes.grid()], [], []
    for name, (xs, ys, band) in curve_points.items():
        color, dash = styles[name]
        if band and len(xs):
            ring = axes.points([*xs, *xs[::-1]], [*band[1], *band[0][::-1]])
            parts.append(_tag("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in ring), fill=color,
                              fill_opacity=0.15))
        points = axes.points(xs, ys)
        if name in smooth:
            parts.append(_path(points, stroke=color, stroke_width=1, stroke_opacity=0.3))
            points = axes.points(*smooth[name])
        (front if name in smooth else parts).append(_path(points, "curve", stroke=color, stroke_dasharray=dash))
        if dots or len(points) == 1:
            parts += [_circle(p, 3, fill=color) for p in points]
        if len(ys):
            descriptions.append(f"{name} from {_format_number(ys[0])} to {_format_number(ys[-1])}")
        if len(ringed := np.flatnonzero(xs == marks[name]) if name in marks else ()):
            value = ys[ringed[0]]
            front.append(_circle((axes.x(marks[name]), axes.y(value)), 5, fill="none", stroke=color, stroke_width=2))
            descriptions[-1] += f", {_format_number(value)} at the ring"
    return _figure(parts + front + axes.axis_lines(), axes.height,
                   f"{y.name} over {x.name}{' (logarithmic)' if y.log else ''}: {'; '.join(descriptions)}.")


def _series_style(i: int) -> tuple[str, str]:
    """Returns color and dash pattern of the i-th curve. The first 16 differ, and the first four in both."""
    return f"var(--s{i % 4})", DASH_PATTERNS[(i + i // 4) % 4]


def component_curves(rows: Sequence[np.ndarray], name: str, last_step: int, low: float, high: float, *,
                     context: Sequence[np.ndarray] = ()) -> Figure:
    """Draws one component of failed episodes over their steps, as dashed lines that end in a cross.

    Args:
        context: Its values in other episodes, drawn as thin gray lines below.
    """
    axes = _Axes((0, max(last_step, 1)), (low, high), "step", 26, 206, whole=True)
    parts = [_text((axes.x_start, 12), _truncate(name, 60), "soft"), *axes.grid()]
    strength = max(0.3, min(1.0, 4.5 / math.sqrt(len(rows) + 1)))

    def points(values) -> list[tuple[float, float]]:
        at = evenly_spaced_indices(len(values), 240)
        return axes.points(at, np.asarray(values, float)[at])
    parts += [_path(points(values), "context") for values in context]
    for line in filter(None, map(points, rows)):
        x, y = line[-1]
        parts += [_path(line, "bad", stroke_opacity=strength),
                  _tag("path", **{"class": "cross"}, d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6")]
    return _figure(parts + axes.axis_lines(), axes.height, f"{name} of {len(rows)} failed episodes over their steps"
                   f"{f', and of {len(context)} successes in gray' if context else ''}.")


def levels_plot(names: Sequence[str], values: Sequence[Interval], x_name: str, half_value: float = math.nan, *,
                as_fraction: bool = True) -> Figure:
    """Draws a value with its interval at each of several evenly spaced levels.

    Args:
        half_value: Where to draw a line. NaN for none.
        as_fraction: Whether values are fractions from 0 to 1.
    """
    ends = [v for i in values for v in (i.low, i.high, i.estimate) if math.isfinite(v)]
    axes = _Axes((0, max(len(names) - 1, 1)), (0.0, 1.0) if as_fraction else (min(0.0, *ends), max(ends)), x_name,
                 12, 190)
    inside = 24.0  # so that the first and last dot have room

    def x(i: float) -> float:
        return axes.x_start + inside + (axes.x_end - axes.x_start - 2 * inside) * i / max(len(names) - 1, 1)
    parts = axes.grid(as_fraction)
    finite = [i for i, v in enumerate(values) if math.isfinite(v.low) and math.isfinite(v.high)]
    ring = [(x(i), axes.y(values[i].low)) for i in finite] + [(x(i), axes.y(values[i].high)) for i in finite[::-1]]
    parts.append(_tag("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in ring), fill="var(--s0)",
                      fill_opacity=0.15))
    if math.isfinite(half_value):
        parts += [_path([(axes.x_start, axes.y(half_value)), (axes.x_end, axes.y(half_value))], "bad"),
                  _text((axes.x_end - 2, axes.y(half_value) - 5), "half", "soft over", "end")]
    line = [(x(i), axes.y(v.estimate)) for i, v in enumerate(values) if math.isfinite(v.estimate)]
    parts += [_path(line, "curve", stroke="var(--s0)"), *(_circle(p, 3.5, fill="var(--s0)") for p in line),
              *axes.bottom_line((x(i), name) for i, name in enumerate(names))]
    show = (lambda v: f"{v:.0%}") if as_fraction else _format_number
    description = "; ".join(f"{name}: {show(v.estimate)}, interval {show(v.low)} to {show(v.high)}"
                            for name, v in zip(names, values, strict=True))
    return _figure(parts, axes.height, f"By {x_name}. {description}.")


def histogram(values: Values, x_name: str, of: str = "episodes") -> Figure:
    """Draws a histogram. Bars of whole numbers each cover the same number of integers.

    Args:
        values: The values. Values that are not finite are left out.
    """
    v = np.asarray(values, float)
    v = v[np.isfinite(v)]
    if not len(v):
        return _empty_figure(x_name)
    drawn = v.clip(-1e300, 1e300)  # beyond this, differences overflow
    low, high, bins = float(drawn.min()), float(drawn.max()), 24
    finest = float(np.spacing(max(abs(low), abs(high))))
    whole = finest < 1e-2 and bool((v == v.round()).all())
    if whole:
        width = math.ceil((high - low + 1) / bins)
        bins = math.ceil((high - low + 1) / width)
        room = max(0, 9 - bins) // 2 * width  # two bars alone would look like two blocks
        low, high, bins = low - 0.5 - room, low - 0.5 + width * bins + room, bins + 2 * room // width
    elif high - low <= max(1e-9 * max(abs(low), abs(high)), 100 * bins * finest):  # values that no scale can separate
        room = max(0.5, 100 * finest)
        low, high, bins = low - room, high + room, 1
    count, edges = np.histogram(drawn, bins, (low, high))
    axes = _Axes((low, high), (0, int(count.max())), x_name, 10, 190, whole=whole)
    axes.y_ticks = [t for t in axes.y_ticks if t == round(t)]
    parts = axes.grid()
    for n, a, b in zip(count, edges[:-1], edges[1:], strict=True):
        if n:
            x, y = axes.x(a), axes.y(n)
            parts.append(_tag("rect", x=x + 1, y=y, width=max(axes.x(b) - x - 2, 1), height=axes.bottom - y, rx=1.5,
                              fill="var(--s0)", fill_opacity=0.85))
    return _figure(
        parts + axes.axis_lines(),
        axes.height,
        f"Histogram of {x_name}: {len(v)} {of}, from {_format_number(v.min())} to {_format_number(v.max())}, half of "
        f"them "
        f"up to {_format_number(float(np.median(v)))}.")


def bars(rows: Sequence[tuple[str, float, float | None]], name: str, reference_name: str = "") -> Figure:
    """Draws one bar per row, with a tick at a second value, if there is one.

    Args:
        rows: Label, value, and second value or None.
    """
    x_start, x_end, step = 128.0, WIDTH - 58.0, 28
    top = 26 if reference_name else 2
    finite_values = [v for row in rows for v in row[1:] if v is not None and math.isfinite(v)]
    most = max(finite_values, default=1.0) or 1.0
    parts = [] if not reference_name else [
        _tag("rect", x=0, y=2, width=14, height=11, rx=2, fill="var(--s0)"), _text((20, 12), name, "soft"),
        _path([(WIDTH / 2, 2), (WIDTH / 2, 13)], "mark"), _text((WIDTH / 2 + 8, 12), reference_name, "soft")]
    descriptions = []
    for i, (label, value, other) in enumerate(rows):
        y, width = top + step * i, (x_end - x_start) * value / most if math.isfinite(value) else 0.0
        parts += [_text((x_start - 9, y + 18), _truncate(label, 18), "", "end"),
                  _tag("rect", x=x_start, y=y + 5, width=max(width, 0.1), height=17, rx=3, fill="var(--s0)",
                       fill_opacity=0.85),
                  _text((WIDTH, y + 18), _format_number(value), "soft", "end")]
        if other is not None and math.isfinite(other):
            at = x_start + (x_end - x_start) * other / most
            parts += [_path([(at, y + 4), (at, y + 23)], cls) for cls in ("halo", "mark")]
        descriptions.append(
            f"{label} {_format_number(value)}"
            + ("" if other is None else f" ({reference_name} {_format_number(other)})"))
    return _figure(parts, top + step * len(rows) + 2, f"{name}: {'; '.join(descriptions)}.")


def plan_fan(actions: np.ndarray, chunks: Sequence[tuple[int, np.ndarray]], component: int, name: str) -> Figure:
    """Draws one component of recorded actions as a strong line, with sampled chunks of a policy.

    Args:
        actions: Recorded actions, (T, A).
        chunks: The step at which chunks start, and the chunks (K, H, A). They are lines, or dots if they have one step.
    """
    truth = np.asarray(actions, float)[:, component]
    length = len(truth)
    drawn = [(s, np.asarray(p, float)[:, :length - s, component]) for s, p in chunks]
    values = np.concatenate([truth, *(p.reshape(-1) for _, p in drawn)])
    values = values[np.isfinite(values)]
    axes = _Axes((0, max(length - 1, 1)), (values.min(), values.max()), "step", 8, 170, whole=True)
    parts = axes.grid()
    for step, plans in drawn:
        parts += [_path(axes.points(range(step, step + len(plan)), plan), stroke="var(--s0)", stroke_width=1.4,
                        stroke_opacity=min(1.0, 1.6 / math.sqrt(len(plans)))) for plan in plans]
    parts.append(_path(axes.points(range(length), truth), "mark"))
    parts += [_circle((axes.x(s), axes.y(truth[s])), 3.2, fill="var(--paper)", stroke="var(--s0)", stroke_width=2)
              for s, _ in drawn]
    for step, plans in drawn:  # a line of one point would be invisible
        parts += [_circle((axes.x(step), axes.y(plan[0])), 2.2, fill="var(--s0)", fill_opacity=1.6 / max(
            math.sqrt(len(plans)), 1.6)) for plan in plans if len(plan) == 1]
    kind = "dots" if is_single_step(chunks) else "lines"
    return _figure(parts + axes.axis_lines(), axes.height,
                   f"{name} over an episode: what was recorded as a strong line, and what the policy might do from each"
                   f" of {len(drawn)} steps as a fan of {max((len(p) for _, p in drawn), default=0)} {kind}.")


def is_single_step(chunks: Sequence[tuple[int, np.ndarray]]) -> bool:
    """Returns whether each chunk has only one step, and is drawn as a dot."""
    return all(np.shape(plans)[1] == 1 for _, plans in chunks)


# -- pieces -------------------------------------------------------------------------------------------------------


def _figure(parts: Sequence[str], height: float, words: str) -> Figure:
    box = f"0 0 {WIDTH} {math.ceil(height)}"
    return Figure(_tag("svg", "".join(parts), **{"class": "plot", "viewBox": box}, role="img", aria_label=words), words)


def _empty_figure(name: str) -> Figure:
    return _figure([_text((WIDTH / 2, 50), "nothing measured", "soft", "middle")], 90, f"{name}: nothing measured.")


def _tag(name: str, inside: str = "", **attributes) -> str:
    """Builds an SVG element. `inside` is markup. Attributes are escaped, and their underscores become hyphens."""
    markup = "".join(f' {k.replace("_", "-")}="{escape(f"{v:.4g}" if isinstance(v, float) else str(v))}"'
                     for k, v in attributes.items())
    return f"<{name}{markup}>{inside}</{name}>" if inside or name in ("svg", "text") else f"<{name}{markup}/>"


def _text(at: tuple[float, float], words: object, kind: str = "", anchor: str = "start") -> str:
    return _tag("text", escape(str(words)), x=float(at[0]), y=float(at[1]), text_anchor=anchor, **{"class": kind})


def _path(points: Points, kind: str = "", **attributes) -> str:
    line = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    return _tag("path", d=line if len(line) > 1 else "M0 0", **({"class": kind} if kind else {}), **attributes)


def _circle(at: tuple[float, float], radius: float, **attributes) -> str:
    return _tag("circle", cx=float(at[0]), cy=float(at[1]), r=float(radius), **attributes)


def _legend(styles: Mapping[str, tuple[str, str]]) -> tuple[list[str], int]:
    """Draws the legend of curves, and returns it with its number of rows."""
    parts, x, row = [], 0.0, 0
    for name, (color, dash) in styles.items():
        width = 52 + 7.4 * len(_truncate(name, 40))
        if x and x + width > WIDTH:
            x, row = 0.0, row + 1
        y = 9.0 + 20 * row
        parts += [
            _path([(x + 1, y), (x + 25, y)], "curve", stroke=color, stroke_dasharray=dash),
            _text((x + 32, y + 4), _truncate(name, 40)),
        ]
        x += width
    return parts, row + 1


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers from at or below `low` to at or above `high`, for an axis."""
    low, high = (float(v) if abs(v) > 1e-200 else 0.0 for v in (low, high))
    span = high - low if high - low > 1e-9 * max(abs(low), abs(high)) else 0.0
    raw = (span or abs(high) or 1.0) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers for a logarithmic axis: 1, 2 and 5 times powers of ten, or only powers of ten."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 3:
        every = math.ceil((last - first) / 6)
        return [10.0**i for i in range(first, last + every, every)]
    all_ = [m * 10.0**i for i in range(first, last + 1) for m in (1, 2, 5)]
    under = max(t for t in all_ if t <= low * 1.000001)
    over = min((t for t in all_ if t >= high * 0.999999), default=10.0**last)
    return [t for t in all_ if under <= t <= over]


def _format_number(v: float, sign: bool = False) -> str:
    """Formats a number with three digits, or a whole number in full, with a true minus sign."""
    if not math.isfinite(v):
        return "–"
    v = 0.0 if v == 0 else float(v)
    text = f"{v:,.0f}" if v == round(v) and abs(v) < 1e7 else f"{v:.3g}"
    return ("+" + text if sign and v > 0 else text).replace("-", "−")


def _truncate(text: str, max_length: int = 24) -> str:
    return text if len(text) <= max_length else text[:max_length - 1] + "…"
