"""Replays recorded actions in a simulator, to test whether they have the same effect again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..core import UserError, keys
from ..data.episode import Dataset, Episode
from ..envs.base import Env, Restorable, StepResult
from ..hints import command_line

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Divergence:
    """The first row in which a replayed episode differs from the recording.

    `difference` is the largest one, relative to the largest value of that column in the episode (absolute if that is
    0).
    """

    step: int  # step of the recorded row that differs
    column: str
    difference: float


@dataclass(frozen=True)
class ReplayedEpisode:
    """The result of replaying one episode. `max_differences` are the largest of each column, as in `Divergence`."""

    episode: int
    steps: int
    success: bool | None  # None if the environment does not define success
    recorded_success: bool | None  # None if it was not recorded
    divergence: Divergence | None
    max_differences: Mapping[str, float]


@dataclass(frozen=True)
class ReplayResult:
    env: str
    # True: restored at every recorded step; False: open loop from the first step
    restored_state: bool
    episodes: tuple[ReplayedEpisode, ...]
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        return {
            "env": self.env,
            "how": "state playback" if self.restored_state else "open loop",
            "tolerance": self.tolerance,
            "episodes": [asdict(t) for t in self.episodes],
        }

    def describe(self) -> str:
        """Describes the result in words."""
        n, divergent = len(self.episodes), [(t, t.divergence) for t in self.episodes if t.divergence is not None]
        how = "State playback" if self.restored_state else "Open loop"
        text = f"{how} of {n} episode{'s' * (n != 1)} in {self.env}: "
        if not divergent:
            text += "every step is as recorded."
        else:
            first, d = min(divergent, key=lambda pair: pair[1].step)
            text += (
                f"{n - len(divergent)} as recorded to the last step, {len(divergent)} not. The earliest: episode "
                f"{first.episode} at step {d.step} of {first.steps}, {d.column}, by {d.difference:.2g} of its largest "
                f"value (more than {self.tolerance:g}).")
        success = [t.success for t in self.episodes if t.success is not None]
        if len(success) == n:
            text += f" Success: {sum(success)} of {n}"
            recorded = [t.recorded_success for t in self.episodes if t.recorded_success is not None]
            if len(recorded) == n:
                text += f", {sum(recorded)} of {n} when recorded"
            text += "."
        return text


def replay(data: Dataset, env: Env, episodes: Sequence[int] | None = None, state: bool = False,
           tolerance: float = TOLERANCE, watch: Callable[[ReplayedEpisode], None] = lambda t: None) -> ReplayResult:
    """Replays recorded actions in an environment, and compares the result with the recording.

    Open loop: all recorded actions in order, from the same start. If the metadata say that the episode started in this
    environment with a seed and a number, these give the start. Otherwise the first step is restored. With `state`,
    every step is restored and one action is executed. This shows where the simulator differs, not only that errors
    grow.

    Args:
        episodes: Numbers of the episodes. None for all.
        tolerance: Largest relative difference that counts as equal.
    """
    numbers = range(len(data)) if episodes is None else episodes
    if bad := [n for n in numbers if not 0 <= n < len(data)]:
        raise UserError(f"there is no episode {bad[0]}; the last one is {len(data) - 1}",
                        where=data.metadata.get("path", "data set"), hint="episodes are counted from 0")
    if numbers:
        _check_shapes(data, env)
    tracks = []
    for track in (_replay_states if state else _replay_actions)(data, env, numbers, tolerance):
        tracks.append(track)
        watch(track)
    return ReplayResult(env.metadata["env"], state, tuple(tracks), tolerance)


class _ReplayComparison:
    """Collects the differences of one episode, step by step."""

    def __init__(self, number: int, episode: Episode, env: Env, tolerance: float):
        self.number, self.episode, self.tolerance = number, episode, tolerance
        self.recorded = {k: np.asarray(episode.steps[k]) for k in _compared_columns(env) if k in episode.steps}
        self.scale = {k: float(np.abs(v.astype(np.float64)).max(initial=0.0)) or 1.0 for k, v in self.recorded.items()}
        self.error = dict.fromkeys(self.recorded, 0.0)
        self.first: Divergence | None = None
        self.success: bool | None = None

    def compare_step(self, step: int, values: Mapping[str, Any], row: int) -> None:
        """Compares values[k][row] with the recorded row `step` of each column that has one."""
        for k in self.recorded.keys() & values.keys():
            if step >= len(self.recorded[k]):
                continue
            now, then = np.asarray(values[k][row], np.float64), self.recorded[k][step].astype(np.float64)
            gap = np.abs(now.reshape(-1) - then.reshape(-1)).max(initial=0.0) / self.scale[k]
            size = float(gap) if np.isfinite(gap) else np.inf
            self.error[k] = max(self.error[k], size)
            if size > self.tolerance and (self.first is None or step < self.first.step):
                self.first = Divergence(step, k, size)

    def compare_outcome(self, step: int, out: StepResult, row: int) -> None:
        self.compare_step(step, {"next.reward": out.reward, "next.terminated": out.terminated}, row)
        if "success" in out.info:
            self.success = bool(self.success) or bool(out.info["success"][row])

    def result(self) -> ReplayedEpisode:
        steps, meta = self.episode.steps, self.episode.metadata
        recorded = bool(np.any(steps["next.success"])) if "next.success" in steps else meta.get("success")
        return ReplayedEpisode(
            self.number,
            len(self.episode),
            self.success,
            None if recorded is None else bool(recorded),
            self.first,
            self.error)


def _check_shapes(data: Dataset, env: Env) -> None:
    recorded = data.features()
    for name in ("action", *(k for k in _compared_columns(env) if k in env.features)):
        if name in recorded and recorded[name].size != env.features[name].size:
            recorded_env = data[0].metadata.get("env")
            path = data.metadata.get("path")
            raise UserError(f"{name!r} has the shape {recorded[name].shape}, but {env.features[name].shape} in "
                            f"{env.metadata['env']}", where=path or "data set",
                            hint="replay it in the environment it was recorded in"
                            + (f": {command_line('replay', path or 'DATA', recorded_env)}"
                               if recorded_env and recorded_env != env.metadata["env"] else ""))


def _compared_columns(env: Env) -> list[str]:
    """Returns the columns to compare, without cameras, as videos are compressed and graphics drivers differ."""
    columns = (k for k, f in env.features.items() if k != "action" and f.kind != "image")
    return [*columns, "next.reward", "next.terminated"]


def recorded_actions(episode: Episode, number: int) -> torch.Tensor:
    """Returns the recorded actions, (T, A)."""
    if "action" not in episode.steps:
        raise UserError(f"there is no column 'action', only {', '.join(sorted(episode.steps))}",
                        where=f"episode {number}",
                        hint="rename the column: understudy view make DATA --out VIEW --rename OLD=action")
    actions = np.array(episode.steps["action"][:len(episode)]).reshape(len(episode), -1)
    if len(bad := np.flatnonzero(~np.isfinite(actions).all(1))):
        raise UserError(f"the action was not recorded: {actions[bad[0]]}", where=f"episode {number}, step {bad[0]}",
                        hint="replay another one (--episode), or a view without it: "
                             + command_line("view", "make", "DATA", "--out", "VIEW", "--delete", number))
    return torch.from_numpy(actions)


def _replay_actions(data, env, numbers, tolerance) -> Iterator[ReplayedEpisode]:
    for i in range(0, len(numbers), env.rows):
        group = list(numbers[i:i + env.rows])
        actions = [recorded_actions(data[n], n) for n in group]
        longest = max(len(a) for a in actions)
        # Rows without an episode, or without further actions, repeat actions. Their results are not used.
        plan = torch.stack([a[torch.arange(longest).clamp(max=len(a) - 1)] for a in actions])
        plan = plan[torch.arange(env.rows).clamp(max=len(group) - 1)]
        comparisons = [_ReplayComparison(n, data[n], env, tolerance) for n in group]
        going = set(range(len(group)))
        obs = reset_to_start(data, env, group)
        for step in range(longest):
            for row in going:
                comparisons[row].compare_step(step, obs, row)
            out = env.step(plan[:, step])
            for row in sorted(going):
                comparisons[row].compare_outcome(step, out, row)
                over = bool(out.terminated[row])  # the environment may have another time limit than the recording
                if over or step + 1 == len(actions[row]):
                    comparisons[row].compare_step(step + 1, out.obs, row)
                    going.discard(row)
            obs = out.obs
        yield from (s.result() for s in comparisons)


def reset_to_start(data, env, group) -> Mapping[str, torch.Tensor]:
    """Starts rows 0 to len(group) - 1 like their episodes, and returns their first observation."""
    rows = torch.arange(len(group))
    metas = [data[n].metadata for n in group]
    if all({"seed", "number"} <= m.keys() and m.get("env") == env.metadata["env"] for m in metas):
        key = torch.cat([keys(m["seed"], [m["number"]]) for m in metas])
        return env.reset(torch.arange(env.rows), key[torch.arange(env.rows).clamp(max=len(group) - 1)])
    if isinstance(env, Restorable):
        env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
        firsts = [recorded_states(data[n], [0]) for n in group]
        return env.restore(rows, {k: torch.cat([first[k] for first in firsts]) for k in firsts[0]})
    name, path = env.metadata["env"], data.metadata.get("path")
    episode_number, meta = next((n, m) for n, m in zip(group, metas, strict=True)
                                if not {"seed", "number"} <= m.keys() or m.get("env") != name)
    if other := meta.get("env", name) != name:
        began, do = f"began in {meta['env']}", ("replay it in the environment it was recorded in: "
                                                + command_line("replay", path or "DATA", meta["env"]))
    else:
        lacks = [f"'{k}'" for k in ("env", "seed", "number") if k not in meta]
        began, do = f"does not say how it began in {name} (no {', '.join(lacks)})", (
            "keep the metadata 'env', 'seed' and 'number' of each episode (docs/formats.md), as understudy record "
            "does")
    raise UserError(f"the episode {began}, and {name if other else 'that environment'} cannot be put into a recorded "
                    "state", where=f"{path or 'data set'}, episode {episode_number}", hint=do)


def _replay_states(data, env, numbers, tolerance) -> Iterator[ReplayedEpisode]:
    if not isinstance(env, Restorable):
        raise UserError(f"{env.metadata['env']} cannot be put into a recorded state", where="replay",
                        hint="replay open loop, without --state")
    for n in numbers:
        episode, actions = data[n], recorded_actions(data[n], n)
        comparison = _ReplayComparison(n, episode, env, tolerance)
        env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
        for i in range(0, len(actions), env.rows):
            steps = range(i, min(i + env.rows, len(actions)))
            rows = torch.arange(len(steps))
            env.restore(rows, recorded_states(episode, steps))
            out = env.step(actions[torch.arange(i, i + env.rows).clamp(max=len(actions) - 1)])
            for row, t in enumerate(steps):
                comparison.compare_outcome(t, out, row)
                comparison.compare_step(t + 1, out.obs, row)
        yield comparison.result()


def recorded_states(episode: Episode, steps: Sequence[int]) -> dict[str, torch.Tensor]:
    """Returns the columns that `Restorable.restore` needs of some steps of an episode, a row for each.

    These are all columns that may be part of a state: numbers of the step itself.
    """
    columns = {k: np.asarray(episode.steps[k]) for k, f in episode.features().items()
               if f.kind != "image" and not k.startswith("next.") and k != "action"}
    return {k: torch.from_numpy(v[list(steps)]) for k, v in columns.items() if v.dtype.kind in "fiub"}
