"""Generalisation, measured: what a policy does in worlds that differ from its own by more and more, and where its success
halves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from ..core import role
from ..data.episode import Episode
from ..envs import shifted
from ..envs.base import Env, Scripted
from ..envs.shifted import Shift
from ..execute.actor import Actor
from ..files import finite
from . import stats
from .judge import tuning
from .record import Uniform
from .rollout import rollout
from .stats import LEVEL, Interval

DRAWS = 2000  # of the bootstrap
REFERENCE = 16  # episodes that say how much each component of what is seen varies


@dataclass(frozen=True)
class Fall:
    """At which severity a value has come down to half of what it is at severity 0. inf: not within what was tried; nan:
    there is nothing to halve. `low` and `high` are severities that were tried (or inf). tried: the largest."""

    at: float
    low: float
    high: float
    tried: float
    level: float = LEVEL

    def __str__(self) -> str:
        if math.isnan(self.at):
            return "nothing to halve"
        at = f"not up to {self.tried:g}" if math.isinf(self.at) else f"{self.at:.3g}"
        return f"{at} [{self.low:g}, {'beyond' if math.isinf(self.high) else f'{self.high:g}'}]"


@dataclass(frozen=True)
class Climb:
    """One shift: what happened at each severity, from 0 on, on the same starts."""

    shift: Shift
    severities: tuple[float, ...]  # (L,) the first is 0
    success: np.ndarray | None  # (L, episodes) bool; None where the environment defines none
    returns: np.ndarray  # (L, episodes)

    def rates(self, level: float = LEVEL) -> list[Interval]:
        """Of the success at each severity (of the mean return, where there is no success)."""
        if self.success is None:
            return [stats.mean(r, level) for r in self.returns]
        return [stats.clopper_pearson(int(s.sum()), len(s), level) for s in self.success]

    def changes(self, level: float = LEVEL) -> list[tuple[Interval, float]]:
        """Each severity's minus that of severity 0, paired, and for success McNemar's p that it is chance (for
        returns nan)."""
        out = []
        for i in range(len(self.severities)):
            if self.success is None:
                out.append((stats.mean(self.returns[i] - self.returns[0], level), math.nan))
            else:
                only, lost = (int((x & ~y).sum()) for x, y in (self.success[[i, 0]], self.success[[0, i]]))
                out.append((stats.tango(only, lost, self.success.shape[1], level), stats.mcnemar(only, lost)))
        return out

    def falls(self, level: float = LEVEL) -> Fall:
        return halves(self.severities, self.returns if self.success is None else self.success, level)


def halves(severities: Sequence[float], values: np.ndarray, level: float = LEVEL) -> Fall:
    """Where the mean of `values` (L, episodes; the same starts at each of the L severities, which rise from 0) has come
    down to half of what it is at severity 0.

    Supposed is only that the mean does not rise with the severity: it is fitted so (isotonic regression; Brunk 1955).
    `at` is where straight lines between the fitted means cross the half. The interval supposes no lines: in each of
    2,000 bootstrap draws of the starts, all severities together, the half is crossed somewhere between two neighbours
    of those that were tried, and low and high are quantiles of the lower and of the upper of them. So it is never
    narrower than the steps of the ladder.
    """
    x, tried = np.asarray(values, float), np.asarray(severities, float)
    if tried[0] != 0 or (np.diff(tried) <= 0).any():
        raise ValueError(f"expected severities that rise from 0, found {list(severities)}")
    at, _, _ = _cross(tried, x.mean(1))
    if math.isnan(at):
        return Fall(math.nan, math.nan, math.nan, float(tried[-1]), level)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(x.shape[1], np.full(x.shape[1], 1 / x.shape[1]), DRAWS) / x.shape[1]
    ends = np.array([_cross(tried, mean)[1:] for mean in weights @ x.T])
    tail = (1 - level) / 2
    # Quantiles that are drawn values: between one that is finite and one that is not there is nothing.
    low = np.quantile(ends[:, 0], tail, method="inverted_cdf")
    high = np.quantile(ends[:, 1], 1 - tail, method="inverted_cdf")
    return Fall(at, float(low), float(high), float(tried[-1]), level)


def _cross(tried: np.ndarray, means: np.ndarray) -> tuple[float, float, float]:
    """Where the half is crossed, and between which two severities."""
    fitted = optimize.isotonic_regression(means, increasing=False).x
    half = fitted[0] / 2
    if not half > 0:
        return math.nan, 0.0, math.inf
    under = np.flatnonzero(fitted <= half + 1e-12)
    if not len(under):
        return math.inf, float(tried[-1]), math.inf
    i = int(under[0])
    share = (fitted[i - 1] - half) / (fitted[i - 1] - fitted[i])
    return float(tried[i - 1] + share * (tried[i] - tried[i - 1])), float(tried[i - 1]), float(tried[i])


# -- going up ---------------------------------------------------------------------------------------------------------


def shifts(env: Env) -> dict[str, Shift]:
    """All that this environment can have, by name (`envs.shifted`). The unit of noise is measured in it: how much each
    component varies over 16 episodes of its expert or, where it has none, of uniformly random actions."""
    @cache
    def measured() -> dict[str, Tensor]:
        return spread(env)
    return shifted.shifts(env, measured)


def spread(env: Env) -> dict[str, Tensor]:
    """Column -> the standard deviation of each component that is seen, over the reference episodes."""
    actor = env.expert() if isinstance(env, Scripted) else Uniform(env)
    data = rollout(actor, env, REFERENCE, tuning(0))
    return {k: torch.from_numpy(np.concatenate([np.asarray(e.steps[k]) for e in data]).std(0))
            for k, f in env.features.items() if role(k) == "observation" and f.kind == "vector"}


def ladder(actor: Actor, build: Callable[[], Env], shifts: Sequence[Shift], episodes: int = 50, seed: int = 0, *,
           kept: Path | None = None, by: str = "", watch: Callable[[int], None] = lambda n: None) -> list[Climb]:
    """Rolls out episodes 0 to episodes-1 of `seed` at every level of every shift, and once without any.

    build: makes the environment anew, since a shift may change it. kept: a file that takes what has been run, and from
    which a later call goes on: of the same environment, seed and actor, who is `by`. watch: sees how many episodes
    there are by now, those that were kept among them.
    """
    kept = _Kept(kept, by)
    done = 0

    def run(shift: Shift | None, severity: float) -> list[tuple[bool | None, float]]:
        nonlocal done
        env = build()
        try:
            about = {"env": env.facts["env"], "version": str(env.facts["version"]), "seed": seed,
                     "shift": None if shift is None else shift.name, "severity": severity}
            who = actor
            if shift is not None:
                who = shift.actor(actor, severity)
                env = shift.world(env, severity)
            found = kept.read(about)[:episodes]
            done += len(found)
            watch(done)

            def tick(number, episode):
                nonlocal done
                done += 1
                watch(done)
            while len(found) < episodes:
                group = min(4 * env.rows, episodes - len(found))  # fewer would leave rows idle
                new = [_outcome(e) for e in rollout(who, env, group, seed, first=len(found), watch=tick)]
                kept.write(about, len(found), new)
                found += new
            return found
        finally:
            env.close()
    base = run(None, 0.0)
    every = [[base, *(run(shift, level) for level in shift.levels)] for shift in shifts]
    told = any(won is not None for rungs in every for rung in rungs for won, _ in rung)
    return [Climb(shift, (0.0, *map(float, shift.levels)),
                  np.array([[bool(won) for won, _ in rung] for rung in rungs]) if told else None,
                  np.array([[value for _, value in rung] for rung in rungs]))
            for shift, rungs in zip(shifts, every, strict=True)]


def _outcome(episode: Episode) -> tuple[bool | None, float]:
    return episode.meta.get("success"), float(np.sum(episode.steps["next.reward"], dtype=np.float64))


class _Kept:
    """A line for each group of episodes that has been run, on the disk before the next begins."""

    def __init__(self, file: Path | None, by: str):
        self.file, self.by, self.lines = file, by, []
        if file is not None and file.exists():
            for text in file.read_bytes().splitlines():
                try:
                    self.lines.append(json.loads(text))
                except ValueError:  # the last one, when the power went
                    continue

    def read(self, about: Mapping[str, Any]) -> list[tuple[bool | None, float]]:
        """All episodes from number 0 on."""
        found: list[tuple[bool | None, float]] = []
        for line in self.lines:
            if line.get("about") == {**about, "by": self.by} and line["first"] <= len(found):
                found[line["first"]:] = [(won, math.nan if value is None else value) for won, value in line["episodes"]]
        return found

    def write(self, about, first: int, episodes) -> None:
        if self.file is None:
            return
        line = {"about": {**about, "by": self.by}, "first": first, "episodes": episodes}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab") as out:
            out.write(b"\n" * bool(out.tell() and not _ends(self.file)) + json.dumps(finite(line)).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())


def _ends(file: Path) -> bool:
    """Whether its last line is whole."""
    with open(file, "rb") as text:
        text.seek(-1, os.SEEK_END)
        return text.read() == b"\n"


# -- what is told ---------------------------------------------------------------------------------------------------


def document(climbs: Sequence[Climb]) -> dict[str, Any]:
    """For JSON: of each shift its levels, and where its value halves (null: not within what was tried)."""
    def interval(i: Interval) -> dict[str, float]:
        return {"estimate": i.estimate, "low": i.low, "high": i.high}
    out = {}
    for c in climbs:
        value = "return" if c.success is None else "success"
        fall = c.falls()
        out[c.shift.name] = {
            "what": c.shift.what, "unit": c.shift.unit,
            "levels": [{"level": s, value: interval(r), "change": {**interval(d), "p": p}}
                       for s, r, (d, p) in zip(c.severities, c.rates(), c.changes(), strict=True)],
            "halves": {"at": fall.at, "low": fall.low, "high": fall.high, "tried": fall.tried}}
    return out
