"""What to look at beside success: whether a policy knows several ways, stays near what was demonstrated, moves as
smoothly, is as quick, how near its failures came, and whether it decides in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.episode import Dataset, Episode
from ..envs.base import Env
from . import stats
from .behaviour import misses, modes, motion
from .behaviour.latency import Latency
from .behaviour.nearness import Demonstrated, Moved, moved, told_apart
from .behaviour.view import View, thinned
from .failures import Group, failures
from .plots import Figure
from .stats import LEVEL, Interval


@dataclass(frozen=True)
class Measure:
    """A mean over episodes, and the same of the demonstrations. count: of the episodes in the mean."""

    key: str  # in JSON
    name: str
    unit: str
    better: str  # "less", "more", or "" where it depends
    found: Interval
    count: int
    demonstrations: Interval | None = None

    def json(self) -> dict[str, Any]:
        return {**_interval(self.found), "episodes": self.count, "unit": self.unit, "better": self.better or None,
                "demonstrations": None if self.demonstrations is None else _interval(self.demonstrations)}


@dataclass(frozen=True)
class Modes:
    """Ways of doing the task: how many there are and who says so, how many successful episodes went which, and of how
    many starts each was rolled out how often."""

    ways: int
    source: str
    counts: Mapping[str, int]
    entropy: float  # over all starts, as over `counts`
    demonstrations: Mapping[str, int] | None = None
    per_start: Interval | None = None  # of those starts where any succeeded
    starts: int = 0
    repeats: int = 0

    @property
    def overlap(self) -> float | None:
        return None if self.demonstrations is None else modes.overlap(self.counts, self.demonstrations)

    @property
    def seen(self) -> int | None:
        """How many of the demonstrators' ways were gone at least once."""
        return None if self.demonstrations is None else sum(self.counts.get(w, 0) > 0 for w in self.demonstrations)

    @property
    def fair(self) -> float | None:
        return modes.fair(self.ways, self.repeats) if self.repeats else None

    def json(self) -> dict[str, Any]:
        return {"ways": self.ways, "source": self.source, "counts": dict(self.counts), "entropy": self.entropy,
                "demonstrations": None if self.demonstrations is None else dict(self.demonstrations),
                "seen": self.seen, "overlap": self.overlap,
                "entropy_per_start": None if self.per_start is None else _interval(self.per_start),
                "starts": self.starts, "repeats": self.repeats, "fair_policy": self.fair}


@dataclass(frozen=True)
class Beside:
    """Of one policy. why: of what is missing, what it would take. pictures: one of each group of failures, or None
    (`failures.pictures`)."""

    measures: tuple[Measure, ...]
    modes: Modes | None
    told_apart: Interval | None
    moved: Moved | None
    latency: Latency | None
    failures: tuple[Group, ...]
    why: tuple[str, ...]
    seed: int
    pictures: tuple[Figure | None, ...] = ()

    def json(self) -> dict[str, Any]:
        return {"measures": {m.key: m.json() for m in self.measures},
                "modes": None if self.modes is None else self.modes.json(),
                "told_from_demonstrations": None if self.told_apart is None else _interval(self.told_apart),
                "earth_movers_distance": None if self.moved is None else self.moved.json(),
                "latency": None if self.latency is None else self.latency.json(),
                "failures": [g.json() for g in self.failures], "missing": list(self.why)}

    def about(self) -> list[str]:
        """In sentences: what is no mean over episodes."""
        out = []
        if (m := self.modes) is not None:
            out.append(_ways(m))
        if (t := self.told_apart) is not None:
            out.append(f"Told from a demonstration by how it moves: {_percent(t)} (50%: it passes for one; 100%: it "
                       "never does).")
        if (e := self.moved) is not None:
            each = [f"{mine:.2g} deviations of {what} ({theirs:.2g} between halves of the demonstrations)"
                    for mine, theirs, what in ((e.states, e.usual[0], "where it is"),
                                               (e.turns, e.usual[1], "how actions change")) if math.isfinite(mine)]
            out += [f"Earth mover's distance from the demonstrations: {', '.join(each)}."] if each else []
        if (d := self.latency) is not None:
            late = "" if d.period is None else (f"; a step lasts {d.period:.3g} ms, and "
                                                f"{d.late or 'none'} took longer than that")
            out.append(f"A decision takes {_ms(d.median)} ms (median), {_ms(d.p95)} (95 of 100), {_ms(d.most)} (the "
                       f"slowest of {d.decisions}){late}.")
        return out

    def lines(self) -> list[str]:
        """In sentences: all that is no mean."""
        out = self.about()
        lost = sum(map(len, self.failures))
        for g in self.failures:
            out.append(f"{len(g)} of {lost} {'failure' if lost == 1 else 'failures'}: {g.words()}. "
                       f"{g.remedy(self.seed)}")
        return out


def beside(episodes: Dataset, env: Env | None = None, demonstrations: Dataset | None = None, *,
           repeated: Dataset | None = None, latency: Latency | None = None, level: float = LEVEL) -> Beside:
    """What these rollouts say beside success. demonstrations: what the policy learned from, or what it is measured by;
    where they share no column of numbers with the rollouts, that is said and nothing is compared. repeated: rollouts
    of the same starts (`modes.repeated`). Every interval's unit is the episode, of entropy the start."""
    why: list[str] = []
    shown, view, near = demonstrations, None, None
    if shown is not None and len(shown):
        view = View.of(shown, episodes)
        near = Demonstrated.of(shown, view)
        if near is None:
            why.append("distance to the demonstrations: they share no column of numbers with the rollouts")
            shown = None
    else:
        shown = None
        why.append("distance to the demonstrations, and their ways: not given (--demonstrations DATA)")
    if shown is None:
        view = View.of(episodes)
    fps = float((env.facts.get("fps") if env is not None else None) or episodes.fps or 0) or None
    found = _measures(episodes, shown, env, view, near, fps, level)
    ways = _modes(episodes, shown, repeated, env, view, level)
    if ways is None:
        why.append("several ways: none are told of, and the trajectories fall into no clear groups")
    elif ways.per_start is None:
        why.append("several ways from one and the same start: not rolled out (--repeats 8)")
    alike = None if shown is None or not view.width else told_apart(episodes, shown, view, fps or 1.0, level)
    if shown is not None and alike is None:
        why.append("whether it passes for a demonstration: fewer than 10 episodes of each")
    apart = None if shown is None else moved(episodes, shown, view)
    return Beside(found, ways, alike, apart, latency, failures(episodes, env, near), tuple(why),
                  int(episodes[0].meta.get("seed", 0)))


def _measures(episodes, shown, env, view, near, fps, level) -> tuple[Measure, ...]:
    some = [] if shown is None else thinned(shown)
    second, rate = ("s", fps) if fps else ("steps", 1.0)
    out: list[Measure] = []

    def put(key: str, name: str, unit: str, better: str, mine: Iterable, theirs: Iterable = ()) -> None:
        values, others = ([v for v in found if v is not None and math.isfinite(v)] for found in (mine, theirs))
        if values:
            out.append(Measure(key, name, unit, better, stats.mean(values, level), len(values),
                               stats.mean(others, level) if others else None))

    def each(value: Callable[[Episode], float | None], of: Iterable[Episode] = episodes):
        return map(value, of), map(value, some)

    def apart(e, without=None):
        """The means over its steps: of the distances from states, and of actions."""
        return [float(np.nanmean(a)) if np.isfinite(a).any() else math.nan for a in near.apart(e, without=without)]

    def pace(e):
        return motion.speed(view.states(e), rate)
    done = modes.succeeded(episodes)  # of whole movements: one that a crash cuts short would look smooth
    lost = [e for e in episodes if e.meta.get("success") is False]
    whole = "successes: " if all("success" in e.meta for e in episodes) else ""
    put("time_to_success", "time to success", second, "less", *each(lambda e: motion.success_step(e) / rate))
    put("smoothness", f"{whole}smoothness (SPARC)", "", "more",
        *each(lambda e: motion.spectral_arc_length(pace(e), rate), done))
    put("log_jerk", f"{whole}smoothness (LDLJ)", "", "more",
        *each(lambda e: motion.log_dimensionless_jerk(pace(e), rate), done))
    if view.acts is not None:
        put("action_jerk", "jerk of actions", "deviations", "less", *each(lambda e: motion.action_jerk(
            view.actions(e))))
    if near is not None:
        among = np.unique(np.linspace(0, len(some) - 1, min(20, len(some))).round().astype(int))
        mine, theirs = [apart(e) for e in episodes], [apart(some[i], int(i)) for i in among]
        for i, (key, name) in enumerate((("state_distance", "states from demonstrated ones"),
                                         ("action_distance", "actions from those done there"))):
            put(key, name, "deviations", "less", (v[i] for v in mine), (v[i] for v in theirs))
    put("failures_margin", "failures: how near they came", misses.unit(env), "less",
        (misses.margin(e, env) for e in lost))
    put("clearance", f"{whole}clear of obstacles by", misses.unit(env), "more",
        *each(lambda e: misses.clearance(e, env), done))
    return tuple(out)


def _modes(episodes, shown, repeated, env, view, level) -> Modes | None:
    found = modes.way_of(env, episodes, shown, view)
    if found is None:
        return None
    way, ways, source = found
    mine = modes.counts(episodes, way)
    theirs = None if shown is None else modes.counts(Dataset(thinned(shown)), way)
    again = None if repeated is None else modes.counts(repeated, way)
    ways = max(ways, len(set(mine) | set(theirs or ()) | set(again or ())))
    starts = len({e.meta["start"] for e in repeated}) if repeated is not None else 0
    return Modes(ways, source, dict(sorted(mine.items())), modes.entropy(list(mine.values()), ways),
                 dict(sorted(theirs.items())) if theirs else None,
                 None if repeated is None else modes.per_start(repeated, way, ways, level), starts,
                 len(repeated) // starts if starts else 0)


def _ways(m: Modes) -> str:
    def tally(counts):
        return ", ".join(f"{n} {w}" for w, n in counts.items()) or "none"
    said = f"Ways ({m.ways}, as told by {m.source}): {tally(m.counts)}"
    if m.demonstrations is not None:
        said += f"; demonstrations {tally(m.demonstrations)}"
    said += (f". Behaviour entropy {m.entropy:.2f} over all starts" if math.isfinite(m.entropy) else
             ". No behaviour entropy: nothing succeeded")
    if m.per_start is not None:
        p = m.per_start
        said += (f", {p.estimate:.2f} [{p.low:.2f}, {p.high:.2f}] from the same start ({m.starts} starts, {m.repeats} "
                 f"rollouts each, in which a policy that takes all ways alike gets {m.fair:.2f})"
                 if math.isfinite(p.estimate) else ", none of the same start, where nothing succeeded")
    if m.overlap is not None:
        said += (f". {m.seen} of the demonstrators' {len(m.demonstrations)} ways seen"
                 + (f", {m.overlap:.0%} of their proportions" if math.isfinite(m.overlap) else ""))
    return said + "."


def _interval(i: Interval) -> dict[str, float]:
    return {"estimate": i.estimate, "low": i.low, "high": i.high, "level": i.level}


def _percent(i: Interval) -> str:
    return f"{i.estimate:.0%} [{i.low:.0%}, {i.high:.0%}]"


def _ms(v: float) -> str:
    return f"{v:.3g}" if v < 100 else f"{v:.0f}"
