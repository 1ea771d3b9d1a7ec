"""What the page says of a watched policy below the picture: its plans, and its doubt."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from nicegui import ui

from .pictures import COLORS, HEIGHT, WIDTH
from .plans import Foresight

PANELS = 3  # charts of curves side by side, at most
PANEL, TITLE, GAP = 76, 22, 8  # px, of such a chart: its height, the title above, and the space between two
PLANS_HELP = ("What the policy planned when it chose its last action. A policy that draws its plans at random is asked "
              "several times: where they go apart, it could do one or the other.")
DOUBT_HELP = ("The failure detector of this policy measures at each step how unsure it is. From the dashed line on it "
              "raises an alarm. It cannot know whether the episode will fail.")


class PlanView:
    """The lines below the picture that say what a policy plans, and charts of what no picture shows."""

    def __init__(self):
        self._shown: Foresight | None = Foresight()
        with ui.column().classes("w-full gap-1") as self._view:
            self._plans = ui.label().classes("text-caption")
            self._plans.tooltip(PLANS_HELP)
            self._curves = ui.html("", sanitize=False).classes("w-full")
            with ui.row().classes("w-full items-center gap-x-4 gap-y-0"):
                self._doubt = ui.label().classes("text-caption")
                self._doubt.tooltip(DOUBT_HELP)
                self._alarm = ui.label().classes("text-negative").props("aria-live=polite")
            self._chart = ui.html("", sanitize=False).classes("w-full")
        self.show(None)

    def show(self, foresight: Foresight | None) -> None:
        """Shows the plans of a moment. None hides everything."""
        if foresight is self._shown:
            return
        self._shown = foresight
        self._view.set_visibility(foresight is not None)
        foresight = foresight or Foresight()
        self._plans.text, self._doubt.text = plans_text(foresight), doubt_text(foresight)
        self._curves.content = curves_svg(foresight.curves, foresight.names)
        self._chart.content = doubt_svg(foresight)
        self._alarm.text = "In doubt: it may fail." if foresight.is_in_doubt else ""


def plans_text(foresight: Foresight) -> str:
    """Says how many plans are drawn, and how far they are apart."""
    count, what = len(foresight.lines), "lines"
    if not count:
        count, what = len(foresight.curves), "curves"
    if not count:
        return foresight.note
    ahead = "the next step" if foresight.n_steps == 1 else f"the next {foresight.n_steps} steps"
    if count == 1:
        text = f"The policy has one plan for {ahead}."
    else:
        text = f"The {what} are {count} plans for {ahead}. " + (
            f"Their ends are up to {foresight.spread:.0%} of the picture apart." if foresight.lines else
            f"They are up to {foresight.spread:.0%} of the range of an action apart.")
    return f"{text} {foresight.note}".strip()


def doubt_text(foresight: Foresight) -> str:
    """Says how large the doubt is, and from which on an alarm is raised. Empty without a calibration."""
    if not foresight.doubts:
        return ""
    return f"Doubt: {foresight.doubts[-1][1]:.3g}. Alarm from {foresight.threshold:.3g} on."


def curves_svg(curves: np.ndarray, names: Sequence[str]) -> str:
    """Returns plans as SVG: a small chart of each component of the action, from its lowest to its highest value.

    Args:
        curves: Plans, (n, steps, A), from 0 to 1.
    """
    if not curves.size:
        return ""
    count = curves.shape[2]
    across = min(count, PANELS)
    wide = WIDTH / across
    places = np.linspace(0, wide - GAP, curves.shape[1] + 1)  # a step lasts until the next one

    def panel(component: int) -> str:
        levels = PANEL - GAP - curves[:, :, component] * (PANEL - GAP - TITLE)
        lines = "".join(_polyline(places, np.append(line, line[-1])) for line in levels)
        return (f'<g transform="translate({component % across * wide:.1f} {component // across * PANEL})">'
                f'<text y="{TITLE - 5}" font-size="16" fill="currentColor">{html.escape(names[component])}</text>'
                f'<rect y="{TITLE}" width="{wide - GAP:.1f}" height="{PANEL - GAP - TITLE}" fill="currentColor" '
                f'opacity="0.1"/>{lines}</g>')
    ends = [f"{name} {line.min():.0%} to {line.max():.0%}"
            for name, line in zip(names, curves[:, -1].T, strict=True)]
    label = html.escape(f"Planned actions, as parts of their range. In the last step: {', '.join(ends)}.")
    return (f'<svg viewBox="0 0 {WIDTH} {-(-count // across) * PANEL}" role="img" aria-label="{label}" '
            f'style="width: 100%">{"".join(map(panel, range(count)))}</svg>')


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    points = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{COLORS[0]}" stroke-width="2"/>'


def doubt_svg(foresight: Foresight) -> str:
    """Returns the doubt over the steps of an episode as SVG, with a dashed line at the threshold."""
    if not foresight.doubts:
        return ""
    steps, doubts = map(np.array, zip(*foresight.doubts, strict=True))
    low, high = min(doubts.min(), foresight.threshold), max(doubts.max(), foresight.threshold)

    def level(doubt: Any) -> Any:
        return HEIGHT / 2 - 6 - (doubt - low) / max(high - low, 1e-9) * (HEIGHT / 2 - 12)
    places = 4 + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (WIDTH - 8)
    at = level(foresight.threshold)
    label = html.escape(f"Doubt over {len(doubts)} steps, from {doubts.min():.3g} to {doubts.max():.3g}. "
                        f"Alarm from {foresight.threshold:.3g} on.")
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT // 2}" role="img" aria-label="{label}" style="width: 100%">'
            f'<line x1="0" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="{COLORS[1]}" stroke-width="2" '
            f'stroke-dasharray="6 4"/>{_polyline(places, level(doubts))}</svg>')
