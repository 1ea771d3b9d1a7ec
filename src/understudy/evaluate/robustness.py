"""Measures robustness: how success falls as the environment is changed more, and where it halves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from ..core import UserError, role
from ..envs import shifts
from ..envs.base import Env, EnvWrapper, HasExpert, Renderable
from ..envs.shifts import Shift
from ..execute.actor import Actor
from ..files import replace_nonfinite
from ..hints import join_and
from . import episode_video, plots, stats
from .evaluation import compare_outcomes, episode_return, tuning_seed
from .recording import UniformRandomActor
from .report import Content, Figures, Section, Table, write_page
from .rollout import rollout
from .stats import LEVEL, Interval
from .workers import WorkerCount, WorkerPool, single_threaded

# (name of the shift or None, severity) -> actor and environment of a worker
SetupAtSeverity = Callable[[str | None, float], tuple[Actor, Env]]
Outcome = tuple[bool | None, float]  # success of an episode, and its return

N_BOOTSTRAP = 2000  # bootstrap draws
N_REFERENCE_EPISODES = 16  # episodes for measuring the standard deviation of observations


@dataclass(frozen=True)
class HalfSuccessLevel:
    """The severity of a shift at which success (or return) is half of its value at severity 0.

    inf: not within the tested severities. nan: there is nothing to halve. `low` and `high` are tested severities or
    inf. `max_severity` is the largest tested severity.
    """

    severity: float
    low: float
    high: float
    max_severity: float
    level: float = LEVEL

    def __str__(self) -> str:
        if math.isnan(self.severity):
            return "nothing to halve"
        at = f"not up to {self.max_severity:g}" if math.isinf(self.severity) else f"{self.severity:.3g}"
        return f"{at} [{self.low:g}, {'beyond' if math.isinf(self.high) else f'{self.high:g}'}]"


@dataclass(frozen=True)
class SeveritySweep:
    """Results of one shift at each severity, from 0 upward, on the same starts."""

    shift: Shift
    severities: tuple[float, ...]  # (L,) the first is 0
    success: np.ndarray | None  # (L, episodes) bool; None where the environment defines none
    returns: np.ndarray  # (L, episodes)

    def success_rates(self, level: float = LEVEL) -> list[Interval]:
        """Returns an interval of the success rate (or of the mean return, if there is no success) at each severity."""
        if self.success is None:
            return [stats.bootstrap_mean(r, level) for r in self.returns]
        return [stats.clopper_pearson(int(s.sum()), len(s), level) for s in self.success]

    def paired_changes(self, level: float = LEVEL) -> list[tuple[Interval, float]]:
        """Returns the paired change of each severity from severity 0, with McNemar's p-value for success.

        Severity 0 does not differ from itself, so its interval is 0 to 0.
        """
        if self.success is None:
            return [(stats.bootstrap_mean(values - self.returns[0], level), math.nan) for values in self.returns]
        changes = [compare_outcomes(values, self.success[0], "success", level) for values in self.success[1:]]
        return [(Interval(0.0, 0.0, 0.0, level), 1.0),
                *((Interval(c.difference, c.low, c.high, level), c.p_value) for c in changes)]

    def half_success_level(self, level: float = LEVEL) -> HalfSuccessLevel:
        return half_success_level(self.severities, self.returns if self.success is None else self.success, level)


def half_success_level(severities: Sequence[float], values: np.ndarray, level: float = LEVEL) -> HalfSuccessLevel:
    """Finds the severity at which the mean has fallen to half of its value at severity 0.

    The only assumption is that the mean does not rise with the severity, and it is fitted accordingly (isotonic
    regression; Brunk 1955). `severity` is where straight lines between the fitted means cross the half. The interval
    does not assume straight lines.

    In each of 2,000 bootstrap draws of the starts, with all severities together, the half is crossed between two
    neighboring tested severities. `low` and `high` are quantiles of the lower and of the upper one. The interval is
    therefore never narrower than the distance between two tested severities. With fewer than six episodes (at a level
    of 0.95) it excludes nothing.

    Args:
        severities: L severities that rise from 0.
        values: (L, episodes), with the same starts at each severity.
    """
    x, tried = np.asarray(values, float), np.asarray(severities, float)
    if tried[0] != 0 or (np.diff(tried) <= 0).any():
        raise ValueError(f"severities must rise from 0, unlike {list(severities)}")
    at, _, _ = _half_crossing(tried, x.mean(1))
    if math.isnan(at):
        return HalfSuccessLevel(math.nan, math.nan, math.nan, float(tried[-1]), level)
    if stats.are_too_few(x.shape[1], level):  # draws of one start are all equal
        return HalfSuccessLevel(at, 0.0, math.inf, float(tried[-1]), level)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(x.shape[1], np.full(x.shape[1], 1 / x.shape[1]), N_BOOTSTRAP) / x.shape[1]
    ends = np.array([_half_crossing(tried, mean)[1:] for mean in weights @ x.T])
    tail = (1 - level) / 2
    # Quantiles are drawn values, without interpolation between finite and infinite ones.
    low = np.quantile(ends[:, 0], tail, method="inverted_cdf")
    high = np.quantile(ends[:, 1], 1 - tail, method="inverted_cdf")
    return HalfSuccessLevel(at, float(low), float(high), float(tried[-1]), level)


def _half_crossing(tried: np.ndarray, means: np.ndarray) -> tuple[float, float, float]:
    """Returns where the half is crossed, and the two neighboring severities."""
    fitted = scipy.optimize.isotonic_regression(means, increasing=False).x
    half = means[0] / 2
    if not half > 0:
        return math.nan, 0.0, math.inf
    under = np.flatnonzero(fitted <= half + 1e-12)
    if not len(under):
        return math.inf, float(tried[-1]), math.inf
    i = int(under[0])
    share = (fitted[i - 1] - half) / (fitted[i - 1] - fitted[i])
    return float(tried[i - 1] + share * (tried[i] - tried[i - 1])), float(tried[i - 1]), float(tried[i])


# -- running the levels -------------------------------------------------------------------------------------


def available_shifts(env: Env) -> dict[str, Shift]:
    """Returns all shifts that this environment supports, by name (`envs.shifts`).

    The unit of noise is measured: the standard deviation of each component over 16 episodes of the expert, or of
    uniformly random actions if there is no expert.
    """
    @cache
    def measured() -> dict[str, Tensor]:
        return observation_std(env)
    return shifts.available_shifts(env, measured)


def observation_std(env: Env) -> dict[str, Tensor]:
    """Returns the standard deviation of each observed component over the reference episodes, by column."""
    actor = env.expert() if isinstance(env, HasExpert) else UniformRandomActor(env)
    data = rollout(actor, env, N_REFERENCE_EPISODES, tuning_seed(0))
    return {k: torch.from_numpy(np.concatenate([np.asarray(e.steps[k]) for e in data]).std(0))
            for k, f in env.features.items() if role(k) == "observation" and f.kind == "vector"}


@dataclass(frozen=True)
class SweepWorkers:
    """Worker processes that share the episodes of a level of a sweep. They are started again at each level.

    Args:
        count: Number of processes.
        setup: Makes the actor and the environment at a severity of a shift, given by its name, or None. A function of
            a module, or a functools.partial of one with picklable values.
    """

    count: WorkerCount
    setup: SetupAtSeverity


def sweep_severities(
    actor: Actor,
    build: Callable[[], Env],
    shifts: Sequence[Shift],
    episodes: int = 50,
    seed: int = 0,
    *,
    results: ResultsFile | None = None,
    watch: Callable[[int], None] = lambda n: None,
    workers: SweepWorkers | None = None,
) -> list[SeveritySweep]:
    """Runs episodes 0 to episodes-1 of a seed at every level of every shift, and once without a shift.

    Args:
        build: Makes a new copy of the environment, because a shift may change it. Its number of rows affects only the
            time.
        results: File for finished episodes. A later call continues from it, for the same environment, seed and actor.
        watch: Called with the number of finished episodes, including episodes from the file.
        workers: Processes that share the episodes. None to run all in this process.
    """
    if episodes < 1:
        raise UserError(f"at least one episode is needed, not {episodes}", where="robustness", hint="such as 50")
    sweep = _Sweep(actor, build, episodes, seed, results or ResultsFile(None), watch, workers)
    base = sweep.run(None, 0.0)
    every = [[base, *(sweep.run(shift, level) for level in shift.levels)] for shift in shifts]
    has_success = any(won is not None for rungs in every for rung in rungs for won, _ in rung)
    return [SeveritySweep(shift, (0.0, *map(float, shift.levels)),
                          np.array([[bool(won) for won, _ in rung] for rung in rungs]) if has_success else None,
                          np.array([[value for _, value in rung] for rung in rungs]))
            for shift, rungs in zip(shifts, every, strict=True)]


@dataclass
class _Sweep:
    """A sweep of severities, and the number of its episodes that are finished: see `sweep_severities`."""

    actor: Actor
    build: Callable[[], Env]
    episodes: int
    seed: int
    results: ResultsFile
    watch: Callable[[int], None]
    workers: SweepWorkers | None
    n_finished: int = 0

    def run(self, shift: Shift | None, severity: float) -> list[Outcome]:
        """Returns the outcomes of all episodes at a severity of a shift, including outcomes in the file."""
        env, actor = self.build(), self.actor
        try:
            about = {"env": env.metadata["env"], "version": str(env.metadata["version"]), "seed": self.seed,
                     "shift": None if shift is None else shift.name, "severity": severity}
            if shift is not None:
                with single_threaded():  # like every worker
                    actor, env = shift.actor(actor, severity), shift.world(env, severity)
            outcomes = self.results.read(about)[:self.episodes]
            self._count(len(outcomes))
            if len(outcomes) < self.episodes:
                self._finish(outcomes, about, actor, env)
            return outcomes
        finally:
            env.close()

    def _finish(self, outcomes: list[Outcome], about: Mapping[str, Any], actor: Actor, env: Env) -> None:
        """Runs the episodes that have no outcome yet, and adds their outcomes."""
        local, workers = (actor, env), self.workers
        pool = WorkerPool(lambda: local, local=local) if workers is None else WorkerPool(
            partial(workers.setup, about["shift"], about["severity"]), workers.count, local=local)
        with pool as crew:
            while len(outcomes) < self.episodes:
                group = min(2 * env.rows * crew.count, self.episodes - len(outcomes))  # with fewer, rows would be idle
                new = [(e.metadata.get("success"), episode_return(e)) for e in crew.rollout(
                    group, self.seed, first=len(outcomes), watch=lambda number, episode: self._count(1))]
                self.results.write(about, len(outcomes), new)
                outcomes += new

    def _count(self, n_episodes: int) -> None:
        self.n_finished += n_episodes
        self.watch(self.n_finished)


class ResultsFile:
    """A file of outcomes: a line for each group of finished episodes, on the disk before the next group starts.

    Args:
        file: None to store nothing.
        actor_name: Name of the actor that had these outcomes. Outcomes of other actors in the same file are not read.
    """

    def __init__(self, file: Path | None, actor_name: str = ""):
        self.file, self.actor_name, self.lines = file, actor_name, []
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes() if file.exists() else b""
            if content and not content.startswith(b'{"about"'[:len(content)]):
                raise UserError("the file was not written by understudy robustness", where=file,
                                hint="name another file")
            with open(file, "ab") as out:  # fail before anything is run
                out.write(b"\n" * (content != b"" and not content.endswith(b"\n")))  # after a power cut
            for text in content.splitlines():
                try:
                    self.lines.append(json.loads(text))
                except ValueError:  # the last line
                    continue

    def read(self, about: Mapping[str, Any]) -> list[Outcome]:
        """Reads the stored outcomes of all episodes from number 0 on."""
        outcomes: list[Outcome] = []
        for line in self.lines:
            if line.get("about") == {**about, "by": self.actor_name} and line["first"] <= len(outcomes):
                outcomes[line["first"]:] = [
                    (won, math.nan if value is None else value) for won, value in line["episodes"]]
        return outcomes

    def write(self, about, first: int, episodes) -> None:
        if self.file is None:
            return
        line = {"about": {**about, "by": self.actor_name}, "first": first, "episodes": episodes}
        with open(self.file, "ab") as out:
            out.write(json.dumps(replace_nonfinite(line)).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())


# -- reports ---------------------------------------------------------------------------------------------------


def sweeps_to_json(sweeps: Sequence[SeveritySweep]) -> dict[str, Any]:
    """Converts sweeps to JSON: the levels of each shift, and where its value halves (null: not within the levels)."""
    out = {}
    for c in sweeps:
        value = "return" if c.success is None else "success"
        fall = c.half_success_level()
        out[c.shift.name] = {
            "what": c.shift.description, "unit": c.shift.unit,
            "levels": [{"level": s, value: r.to_json(), "change": {**d.to_json(), "p": p}}
                       for s, r, (d, p) in zip(c.severities, c.success_rates(), c.paired_changes(), strict=True)],
            "halves": {"at": fall.severity, "low": fall.low, "high": fall.high, "tried": fall.max_severity}}
    return out


def sweep_figure(sweep: SeveritySweep) -> plots.Figure:
    """Draws the value at each level with its band, and half of the first value."""
    rates = sweep.success_rates()
    return plots.levels_plot(
        [f"{s:g}" for s in sweep.severities],
        rates,
        f"level, {sweep.shift.unit}",
        rates[0].estimate / 2,
        as_fraction=sweep.success is not None)


def hardest_episode(
    actor: Actor, build: Callable[[int], Env], sweep: SeveritySweep, seed: int = 0
) -> tuple[int, plots.Figure] | None:
    """Returns an episode at the hardest level of a sweep: the first failure, if there is one.

    Returns:
        Number of the episode, and four frames of it. None if nothing can be drawn.
    """
    number = int((~sweep.success[-1]).argmax()) if sweep.success is not None else 0
    env = build(1)
    try:
        world, who = sweep.shift.world(env, sweep.severities[-1]), sweep.shift.actor(actor, sweep.severities[-1])
        if any(f.kind == "image" for f in env.features.values()):
            strip = episode_video.film_strip(rollout(who, world, 1, seed, first=number)[0], 4)
            return None if strip is None else (number, strip)
        if not isinstance(env, Renderable):
            return None
        watched = _FrameCapture(world, env)
        rollout(who, watched, 1, seed, first=number)
        frames = [watched.frames[i] for i in np.linspace(0, len(watched.frames) - 1, 4).round().astype(int)]
        return number, plots.film_strip([f for _, f in frames], [f"step {t}" for t, _ in frames],
                                        f"{sweep.shift.description}, {sweep.severities[-1]:g} {sweep.shift.unit}")
    except UserError:  # this machine cannot render
        return None
    finally:
        env.close()


class _FrameCapture(EnvWrapper):
    """Wraps an environment to capture the first, the last and at most 32 evenly spaced frames of row 0."""

    def __init__(self, env: Env, camera: Renderable):
        super().__init__(env)
        self.metadata, self.camera = env.metadata, camera
        self.frames: list[tuple[int, np.ndarray]] = []
        self.clock, self.interval = 0, 1

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        self.frames = [(0, self.camera.frame(0))]
        return obs

    def step(self, action):
        out = self.env.step(action)
        self.clock += 1
        if self.clock % self.interval == 0 or bool((out.terminated | out.truncated)[0]):
            self.frames.append((self.clock, self.camera.frame(0)))
        if len(self.frames) > 32:
            self.interval *= 2
            self.frames = [(t, f) for t, f in self.frames if t % self.interval == 0 or t == self.clock]
        return out


def verdict_parts(sweeps: Sequence[SeveritySweep]) -> tuple[str, str]:
    """Returns, in words, the result without a shift, and which shifts halve it."""
    first, of = sweeps[0], "return" if sweeps[0].success is None else "success"
    n = first.returns.shape[1]
    rate = first.success_rates()[0]
    head = (f"{int(first.success[0].sum())} of {n} episodes succeed where nothing is shifted"
            if first.success is not None else
            f"A mean return of {rate.estimate:.4g} over {n} episodes where nothing is shifted")
    falls = {c.shift.name: c.half_success_level() for c in sweeps}
    down = [
        f"{c.shift.name} at {at:.3g} {c.shift.unit}"
        for c in sweeps
        if math.isfinite(at := falls[c.shift.name].severity)
    ]
    kept = [name for name, fall in falls.items() if math.isinf(fall.severity)]
    sentences = [f"Half of it is left under {join_and(down)}."] if down else []
    sentences += [f"More than half is left at every level of {join_and(kept)}."] if kept else []
    sentences += ["There is nothing to halve."] if not down and not kept else []
    return f"{head} ({_format_interval(rate, of)}).", " ".join(sentences)


def _format_interval(i: Interval, metric: str) -> str:
    if math.isnan(i.low):
        return "too few episodes for an interval"
    return "95% interval " + (f"{i.low:.1%} to {i.high:.1%}" if metric == "success" else f"{i.low:.4g} to {i.high:.4g}")


def write_report(path: Path | str, sweeps: Sequence[SeveritySweep], name: str, env: Env,
                 hardest_episodes: Mapping[str, tuple[int, plots.Figure]] | None = None) -> Path:
    """Writes a page with a curve of success over severity for each shift.

    Args:
        hardest_episodes: By the name of the shift, the number of an episode at its hardest level and frames of it.
    """
    of, hardest_episodes = "return" if sweeps[0].success is None else "success", hardest_episodes or {}
    items = tuple(
        (f"{c.shift.name}: {c.shift.description}", sweep_figure(c), f"Where it halves: {c.half_success_level()}.")
        for c in sweeps)
    success = f" Success: {env.metadata['success']}." if env.metadata.get("success") else ""
    sections = [Section("Worlds that differ more and more", (Figures(items),),
                        f"The same {sweeps[0].returns.shape[1]} starts at every level; 0 is the environment as it is. "
                        f"The dashed line is half of the {of} there.{success}")]
    scale, header = (100, ("success (%)", "change (points)")) if of == "success" else (1, ("return", "change"))
    table = tuple(
        (c.shift.name, f"{s:g}\u00a0{c.shift.unit}", *(scale * v for v in (r.estimate, r.low, r.high)),
         *(scale * v for v in (d.estimate, d.low, d.high)))
        for c in sweeps
        for s, r, (d, _) in zip(c.severities, c.success_rates(), c.paired_changes(), strict=True))
    if hardest_episodes:
        contents: list[Content] = [Figures(tuple(
            (f"{c.shift.name}: {c.severities[-1]:g} {c.shift.unit}", hardest_episodes[c.shift.name][1],
             f"Episode {hardest_episodes[c.shift.name][0]}.") for c in sweeps if c.shift.name in hardest_episodes))]
        sections.append(Section("The hardest level of each", tuple(contents),
                                "An episode that did not succeed there, if there was one."))
    sections.append(Section("Figures", (
        Table(("shift", "level", header[0], "low", "high", header[1], "low", "high"), table),)))
    method = ("Success: Clopper–Pearson intervals; change: Tango's, on the same starts." if of == "success" else
              "Intervals: bootstrap.")
    return write_page(
        path,
        f"{name} in shifted worlds of {env.metadata['env']}",
        sections,
        verdict=verdict_parts(sweeps),
        footer=f"{method} Halving: isotonic regression, bootstrap over starts.")
