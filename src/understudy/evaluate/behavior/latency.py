"""How long a decision takes in the loop, of one robot, on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ...core import keys, role
from ...data.episode import Episode
from ...execute.actor import LAST_REWARD, Actor


@dataclass(frozen=True)
class LatencySummary:
    """Milliseconds from an observation to its action. Where chunks are carried out, most decisions only take the next
    step of one, and the slow ones are those that plan: so the median says little, and the largest is what the robot
    waits for."""

    median: float
    p95: float
    max: float
    decisions: int
    period: float | None  # ms between two steps, where the frequency is known
    n_late: int | None  # decisions that took longer than that

    @property
    def period_fraction(self) -> float | None:
        """Of the period that the slowest decision but one in twenty takes."""
        return None if self.period is None else self.p95 / self.period

    def to_json(self) -> dict[str, float | int | None]:
        return {"median_ms": self.median, "p95_ms": self.p95, "max_ms": self.max, "decisions": self.decisions,
                "period_ms": self.period, "share_of_period": self.period_fraction, "late": self.n_late}


def measure_latency(actor: Actor, episodes: Iterable[Episode], fps: float | None = None, decisions: int = 200,
            seconds: float = 3.0) -> LatencySummary:
    """Shows the actor what these episodes saw, one row at a time, as a robot would, and times what it does: that many
    decisions, or as many as these seconds hold. The first episode's first decisions warm up and are not counted."""
    took, began = [], time.perf_counter()
    for warm, episode in _with_warmup(episodes):
        columns = {k: np.asarray(episode.steps[k]) for k in episode.steps
                   if role(k) not in ("action", "outcome", "index")}
        columns = {k: v for k, v in columns.items() if v.dtype.kind in "fiub"}
        if "next.reward" in episode.steps:
            reward = np.asarray(episode.steps["next.reward"], np.float32).reshape(len(episode.steps["next.reward"]))
            columns[LAST_REWARD] = np.append(np.float32(0), reward)
        state = None
        for t in range(min(len(episode), 20) if warm else len(episode)):
            obs = {k: torch.from_numpy(np.array(v[t:t + 1])) for k, v in columns.items()}
            if state is None:
                state = actor.start(obs, keys(0, [0]))
            since = time.perf_counter()
            _, state = actor.act(obs, state)
            spent = time.perf_counter() - since
            state = {k: v for k, v in state.items() if k != "record"}
            if not warm:
                took.append(1e3 * spent)
            if len(took) >= decisions or time.perf_counter() - began > seconds and took:
                return _summarize(took, fps)
    return _summarize(took, fps)


def _with_warmup(episodes: Iterable[Episode]):
    """(whether to warm up, episode): the first one twice."""
    for i, e in enumerate(episodes):
        if i == 0:
            yield True, e
        yield False, e


def _summarize(took: list[float], fps: float | None) -> LatencySummary:
    period = 1e3 / fps if fps else None
    return LatencySummary(float(np.median(took)), float(np.percentile(took, 95)), max(took), len(took), period,
                   None if period is None else sum(t > period for t in took))
