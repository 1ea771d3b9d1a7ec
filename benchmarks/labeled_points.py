"""A figure of many labeled dots, whose labels do not cover each other."""

import math
from collections.abc import Iterator, Mapping, Sequence

from understudy.evaluate.plots import Figure, Point, _Axes, _circle, _format_number, _path, _tag, _text
from understudy.evaluate.stats import Interval

LABELED_WIDTH = 720
Line = tuple[Point, Point]
Box = tuple[float, float, float, float]  # left, top, right and bottom


def labeled_points(rows: Sequence[tuple[str, float, Interval, str]], x_name: str, y_name: str, *,
                   guides: tuple[float, float] | None = None) -> Figure:
    """Figure of rates over a logarithmic axis: a labeled dot for each row, with its interval.

    Labels do not cover each other or a dot. One that has no room next to its dot is joined to it by a line. The figure
    is wider than others, because it holds many labels.

    Args:
        rows: Name, x above 0, rate with its interval, and the kind of the row. Each kind has its own color and shape.
        x_name: Label of the x axis.
        y_name: What the rate is, for the alternative text.
        guides: x and y of two dashed lines.
    """
    kinds = list(dict.fromkeys(kind for *_, kind in rows))
    xs = [x for _, x, _, _ in rows]
    axes = _Axes((min(xs) / 1.4, max(xs) * 1.4), (0.0, 1.0), x_name, 66, 506, log_x=True)
    axes.x_end = LABELED_WIDTH - 10.0
    at = {name: (axes.x(x), axes.y(rate.estimate)) for name, x, rate, _ in rows}
    parts, x = [], axes.x_start + 6
    for i, kind in enumerate(kinds):
        parts += [_shape((x, 14), i), _text((x + 10, 18), kind)]
        x += 34 + 7.4 * len(kind)
    parts += [part for t in axes.y_ticks for part in (
        _path([(axes.x_start, axes.y(t)), (axes.x_end, axes.y(t))], "grid"),
        _text((axes.x_start - 7, axes.y(t) + 4), f"{t:.0%}", "soft", "end"))]
    if guides is not None:
        x, y = axes.x(guides[0]), axes.y(min(max(guides[1], 0.0), 1.0))
        parts += [_path([(x, axes.top), (x, axes.bottom)], "bad"), _path([(axes.x_start, y), (axes.x_end, y)], "bad")]
    dots, over, captions = [], [], []
    for name, x, rate, kind in rows:
        here = at[name]
        parts.append(_path([(here[0], axes.y(rate.low)), (here[0], axes.y(rate.high))], "context"))
        dots.append(_shape(here, kinds.index(kind)))
        captions.append(f"{name}: {_format_number(x)}, {rate.estimate:.0%}, interval {rate.low:.0%} to {rate.high:.0%}")
    frame = axes.x_start + 2, axes.top - 40, axes.x_end, axes.bottom - 2  # two rows of labels are above 100 %
    for name, (box, line) in _place_labels(at, frame).items():
        if line is not None:
            over.insert(0, _path(line, stroke="var(--soft)", stroke_width=0.8))
        ends = box[2] < at[name][0]  # at its right, next to the dot, also where the font is narrow
        over.append(_text((box[2] - 2 if ends else box[0] + 2, box[3] - 4), name, "over", "end" if ends else "start"))
    words = f"{y_name} over {x_name} (logarithmic). {'; '.join(captions)}."
    size = f"0 0 {LABELED_WIDTH} {math.ceil(axes.height)}"
    inside = "".join(parts + axes.axis_lines() + over + dots)
    return Figure(_tag("svg", inside, **{"class": "plot", "viewBox": size}, role="img", aria_label=words), words)


_LABEL_ANGLES = (0, 180, 60, -60, 120, -120, 30, -30, 150, -150, 45, -45, 135, -135, 15, -15, 165, -165, 75, -75, 105,
                 -105)  # degrees, the best first


def _place_labels(dots: Mapping[str, Point], frame: Box) -> dict[str, tuple[Box, Line | None]]:
    """The box of the label of each dot and, if it is not next to its dot, the line that joins both.

    Each label takes the place that is nearest to its dot and where neither it nor its line is on another label, dot or
    line. If there is none, it takes the one that costs least. Labels that were placed early are placed again, because
    they did not know the later ones.

    Args:
        dots: Name -> center of its dot.
        frame: Where labels may be.
    """
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in dots.values()]
    placed: dict[str, tuple[Box, Line | None]] = {}

    def costs(here: Point, box: Box, line: Line | None, others: list[tuple[Box, Line | None]]) -> Iterator[float]:
        # In pixels of distance. Nothing outweighs a label that is covered.
        yield 1e6 * sum(_overlap(box, taken) for taken in (*marks, *(other_line for other_line, _ in others)))
        if line is not None:  # dots that lie on each other cannot be avoided
            yield 100 * sum(_passes(line, mark) for mark in marks if not _overlap(mark, (*here, *here)))
            yield 100 * sum(_passes(line, other_line) for other_line, _ in others)
            yield 60 * sum(_cross(line, joint) for _, joint in others if joint is not None)
        yield 100 * sum(_passes(joint, box) for _, joint in others if joint is not None)

    def n_near(name: str) -> int:
        x, y = dots[name]
        return sum(_overlap(mark, (x - 120, y - 24, x + 120, y + 24)) for mark in marks)
    order = sorted(dots, key=n_near, reverse=True)  # labels in a crowd have the least choice
    for _ in range(4):
        for name in order:
            here = dots[name]
            others, best = [place for other, place in placed.items() if other != name], math.inf
            for distance, box, line in _label_places(here, _label_width(name), frame):
                if distance >= best:
                    break
                total = distance
                for cost in costs(here, box, line, others):
                    if (total := total + cost) >= best:
                        break
                else:
                    best, placed[name] = total, (box, line)
    return placed


def _label_places(here: Point, width: float, frame: Box) -> Iterator[tuple[float, Box, Line | None]]:
    """Distance, box and line of the places for a label, from near to far. One above or below has no line, because it
    would be on the interval of the dot, so it must be near."""
    half, is_placed = 8.0, False
    for distance in range(8, 400, 6):
        for angle in (*_LABEL_ANGLES, *((90, -90) if distance == 14 else ())):
            x = here[0] + distance * math.cos(math.radians(angle))
            y = here[1] + distance * math.sin(math.radians(angle))
            label_start = x - (0 if abs(angle) < 90 else width if abs(angle) > 90 else width / 2)
            box = label_start, y - half, label_start + width, y + half
            if frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]:
                end = min(max(here[0], box[0]), box[2]), min(max(here[1], box[1]), box[3])
                yield distance, box, (here, end) if math.dist(here, end) > 10 else None
                is_placed = True
    if not is_placed:
        yield 0.0, (here[0] + 8, here[1] - half, here[0] + 8 + width, here[1] + half), None


def _label_width(text: str) -> float:
    """Width of a text in the widest of the usual fonts, with its outline. Others leave some room."""
    return 4 + sum(13.0 if c in "mwMW" else 5.4 if c in "fijlrt-. " else 10.3 if c.isupper() else 8.3 for c in text)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _passes(line: Line, box: Box) -> bool:
    """Whether a line passes through a box."""
    first, last = 0.0, 1.0
    for i, (a, b) in enumerate(zip(*line, strict=True)):
        if a == b and not box[i] < a < box[i + 2]:
            return False
        if a != b:
            enters, leaves = sorted(((box[i] - a) / (b - a), (box[i + 2] - a) / (b - a)))
            first, last = max(first, enters), min(last, leaves)
    return first < last


def _cross(one: Line, other: Line) -> bool:
    def side(line: Line, at: Point) -> float:
        (a, b), (c, d) = line
        return (c - a) * (at[1] - b) - (d - b) * (at[0] - a)
    return all(side(p, q[0]) * side(p, q[1]) < 0 for p, q in ((one, other), (other, one)))


def _shape(at: tuple[float, float], i: int) -> str:
    """A dot, a square, a triangle or a diamond."""
    x, y = at
    if i % 4 == 0:
        return _circle(at, 5, fill="var(--s0)")
    corners = {1: ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)), 2: ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
               3: ((0, -6), (6, 0), (0, 6), (-6, 0))}[i % 4]
    return _tag("polygon", points=" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners), fill=f"var(--s{i % 4})")
