"""Rollouts: runs a policy in an environment and returns the episodes as a data set."""

from __future__ import annotations

import math
import numbers
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import NonFiniteAction, UserCodeError, UserError, as_seed, keys, put, replaceable, take
from ..data.episode import Dataset, Episode
from ..envs.base import Env, StepResult
from ..envs.flags import check_flags
from ..execute.actor import LAST_REWARD, Actor, check_action
from ..user_code import describe_place

MAX_EPISODE_STEPS = 100_000  # steps; without a time limit, an idle policy may never end an episode


@replaceable
def rollout(actor: Actor, env: Env, episodes: int, seed: int = 0, *, first: int = 0,
            watch: Callable[[int, Episode], None] = lambda n, e: None,
            watch_step: Callable[[Sequence[int], Mapping[str, np.ndarray]], None] = lambda n, columns: None) -> Dataset:
    """Runs episodes number first to first+episodes-1. The key of each determines it, whatever `env.rows` is.

    Exactly these episodes run to their ends, because taking the first that finish would favor short ones. Their
    metadata are "number", "seed", "env", the values of the environment's last `info`, and "success" if it is defined:
    was there success at any step? If `info` reports success for the first time, earlier steps count as unsuccessful.
    The actor also observes `last.reward` (B,), the reward of the step before, which is not recorded.

    Args:
        watch: Called as `watch(number, episode)` when an episode ends.
        watch_step: Called as `watch_step(numbers, columns)` after each step, with the number of the episode of each
            row, or -1, and the columns of the step, (rows, ...).
    """
    if not isinstance(actor, Actor):
        raise UserError(f"{type(actor).__name__} is not an actor", where="rollout",
                        hint="PolicyActor(policy, executor) makes one of a policy")
    if isinstance(episodes, bool) or not isinstance(episodes, numbers.Integral) or episodes < 0:
        raise UserError(f"the number of episodes is {episodes!r}, but must be an int, 0 or more", where="rollout",
                        hint="such as rollout(actor, env, 50)")
    running, finished = _RunningEpisodes(actor, env, range(first, first + episodes), as_seed(seed)), {}
    while len(finished) < episodes:
        running.step()
        watch_step(running.number, running.history[-1])
        for number, episode in running.take_finished():
            finished[number] = episode
            watch(number, episode)
        running.begin_next()
    return as_dataset([finished[n] for n in range(first, first + episodes)], env.metadata)


@replaceable
def rollout_steps(actor: Actor, env: Env, n_steps: int, seed: int, *, first: int = 0, usual_length: float = 1.0
                  ) -> Dataset:
    """Runs complete episodes, from number `first` on, until they have at least `n_steps` steps together.

    The episodes do not depend on `env.rows`. Episodes that turn out not to be needed are dropped.

    Args:
        usual_length: Of an episode. As many run at once as are needed if they are that long.
    """
    def number_needed(steps: int) -> int:
        return math.ceil((n_steps - steps) / max(usual_length, 1.0))
    running = _RunningEpisodes(actor, env, range(first, first + number_needed(0)), as_seed(seed))
    finished: dict[int, Episode] = {}
    n_kept = steps = 0
    while steps < n_steps:
        running.begin_next()  # not after the last step: a reset may move a robot
        running.step()
        if not running.ended:
            continue
        finished.update(running.take_finished())
        while steps < n_steps and first + n_kept in finished:
            steps += len(finished[first + n_kept])
            n_kept += 1
        running.stop = max(running.stop, first + len(finished) + number_needed(sum(map(len, finished.values()))))
    return as_dataset([finished[first + i] for i in range(n_kept)], env.metadata)


def first_steps(actor: Actor, env: Env, n_steps: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Runs the first steps of episode 0 of a seed.

    Returns:
        The columns of each step, and the observation after the last one. Fewer than `n_steps` if the episode ends.
    """
    running = _RunningEpisodes(actor, env, range(1), as_seed(seed))
    while running.clock < n_steps and not running.ended:
        running.step()
    last = {name: value.numpy() for name, value in running.obs.items()}
    return [{name: values[0].copy() for name, values in step.items()} for step in (*running.history, last)]


def as_dataset(episodes: Sequence[Episode], metadata: Mapping[str, Any]) -> Dataset:
    """Returns rollouts as a data set. All have `next.success` if the environment has reported success so far."""
    is_reported = any("next.success" in e.steps for e in episodes)
    return Dataset([with_success_column(e) for e in episodes] if is_reported else episodes,
                   {name: metadata.get(name) for name in ("env", "fps", "version")})


def with_success_column(episode: Episode) -> Episode:
    """Returns the episode. It is a failure if no success was reported."""
    if "next.success" in episode.steps:
        return episode
    return replace(episode.replace({"next.success": np.zeros(len(episode), bool)}),
                   metadata={**episode.metadata, "success": False})


class _RunningEpisodes:
    """Episodes that run side by side, one in each row of an environment.

    Attributes:
        number: Number of the episode of each row. -1 for none.
        stop: Number of the first episode that is not to begin.
    """

    def __init__(self, actor: Actor, env: Env, episodes: range, seed: int):
        self.actor, self.env, self.seed, self.stop = actor, env, seed, episodes.stop
        rows = min(env.rows, len(episodes))
        self.number = [*episodes[:rows], *[-1] * (env.rows - rows)]
        self.upcoming = episodes.start + rows
        self.began, self.clock = [0] * env.rows, 0
        self.live, self.needed = torch.tensor(self.number) >= 0, 0  # `needed`: start of the earliest live episode
        key = keys(seed, range(episodes.start, episodes.start + env.rows))
        begun = torch.arange(max(rows, 1))
        self.obs, self.reward = env.reset(begun, key[begun]), torch.zeros(env.rows)
        _check_observation(self.obs, env, "reset")
        with _locate_errors(env, self.number, self.began, 0):
            self.state = actor.start(_fill_idle_rows({**self.obs, LAST_REWARD: self.reward}, self.live), key)
        self.history: deque[dict[str, np.ndarray]] = deque()
        self.ended: list[int] = []
        self.info: Mapping[str, Tensor] = {}

    def step(self) -> None:
        """Acts once in all rows. Then `ended` has the rows in which an episode ends with this step."""
        env, live = self.env, self.live
        with _locate_errors(env, self.number, self.began, self.clock):
            actor_obs = {**self.obs, LAST_REWARD: self.reward}
            action, state = self.actor.act(actor_obs if live.all() else _fill_idle_rows(actor_obs, live), self.state)
            _check_action_shape(action, env)
            check_action(torch.where(live.unsqueeze(1), action, 0.0))  # actions of rows without an episode are not used
        self.state = dict(state)
        result = _check_flags(env.step(action), live, env)
        if self.clock == 0:
            _check_observation(result.obs, env, "step")
        if not (finite := result.reward.isfinite() | ~live).all():
            row = int((~finite).int().argmax())
            raise UserCodeError(f"the reward is {result.reward[row].item()}", hint="correct the environment: no return "
                                "can be computed", where=f"{env.metadata['env']}, episode {self.number[row]}, step "
                                                         f"{self.clock - self.began[row]}")
        if env.features["action"].kind == "discrete":  # a policy plans classes as float32
            action = action.to(env.features["action"].torch_dtype)
        record = {"action": action, "next.reward": result.reward, "next.terminated": result.terminated,
                  "next.truncated": result.truncated & ~result.terminated,
                  **({"next.success": result.info["success"]} if "success" in result.info else {}),
                  # removed after writing, so that the structure of the state does not change
                  **self.state.pop("record", {})}
        if "next.success" in record and self.history and "next.success" not in self.history[0]:
            for past in self.history:
                past["next.success"] = np.zeros(env.rows, bool)
        self.history.append({k: v.numpy().copy() for k, v in {**self.obs, **record}.items()})
        self.clock, self.obs, self.reward, self.info = self.clock + 1, result.obs, result.reward, result.info
        if self.clock - self.needed > MAX_EPISODE_STEPS:
            raise UserError(f"an episode did not end within {MAX_EPISODE_STEPS} steps",
                            where=env.metadata["env"], hint="give the environment a time limit (max_episode_steps)")
        self.ended = (live & (result.terminated | result.truncated)).nonzero().flatten().tolist()

    def take_finished(self) -> Iterator[tuple[int, Episode]]:
        """Yields the episodes that have ended, with their numbers. Their rows get the numbers of the next episodes."""
        for row, steps in _finished_columns(self.history, self.clock, self.began, self.ended).items():
            for k, v in self.obs.items():  # the last observation: one row more
                steps[k] = np.concatenate([steps[k], v[row].numpy()[None]])
            metadata = {k: v[row].item() for k, v in self.info.items() if v[row].numel() == 1}
            if "next.success" in steps:  # success at any step
                metadata["success"] = bool(steps["next.success"].any())
            number = self.number[row]
            yield number, Episode(
                steps, {**metadata, "number": number, "seed": self.seed, "env": self.env.metadata["env"]},
                schema={k: f for k, f in self.env.features.items() if k in steps})
            self.number[row] = -1

    def begin_next(self) -> None:
        """Begins the next episodes, if some have ended, in the rows that have none."""
        if not self.ended:
            return
        if fresh := [row for row, n in enumerate(self.number) if n < 0][:self.stop - self.upcoming]:
            numbers_of_fresh = [*range(self.upcoming, self.upcoming + len(fresh))]
            self.upcoming += len(fresh)
            for row, number in zip(fresh, numbers_of_fresh, strict=True):
                self.number[row], self.began[row] = number, self.clock
            rows, key = torch.tensor(fresh), keys(self.seed, numbers_of_fresh)
            self.obs, self.reward = self.env.reset(rows, key), put(self.reward, rows, torch.zeros(len(rows)))
            with _locate_errors(self.env, numbers_of_fresh, [0] * len(fresh), 0):
                start = self.actor.start(take({**self.obs, LAST_REWARD: self.reward}, rows), key)
                self.state = put(self.state, rows, start)
        self.live = torch.tensor(self.number) >= 0
        self.needed = min((b for b, n in zip(self.began, self.number, strict=True) if n >= 0), default=self.clock)
        while self.clock - len(self.history) < self.needed:
            self.history.popleft()


@contextmanager
def _locate_errors(env: Env, episodes: Sequence[int], began: Sequence[int], clock: int) -> Iterator[None]:
    """Adds the episode and the step to errors about NaN and infinite actions."""
    try:
        yield
    except NonFiniteAction as error:
        place = f"{env.metadata['env']}, episode {episodes[error.row]}, step {clock - began[error.row]}"
        raise NonFiniteAction(error.problem, error.row, error.column, place=place, hint=error.hint) from None


def _fill_idle_rows(obs: Mapping[str, Tensor], live: Tensor) -> dict[str, Tensor]:
    """Gives idle rows the observation of the first active one, because an ended episode may show anything."""
    rows = torch.arange(len(live))
    return take(obs, torch.where(live, rows, live.int().argmax()))


def _check_observation(obs: Mapping[str, Tensor], env: Env, method: str) -> None:
    """Raises UserCodeError if an environment does not return the columns that it declares in `features`."""
    declared = {k: (env.rows, *f.shape) for k, f in env.features.items() if k != "action"}
    returned_shapes = {k: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for k, v in obs.items()}
    for name in dict.fromkeys([*declared, *returned_shapes]):
        if declared.get(name) != returned_shapes.get(name):
            raise UserCodeError(
                f"returns {name} of shape {returned_shapes[name]}" if name in returned_shapes
                else f"returns no column {name}",
                where=describe_place(getattr(env, method)),
                hint=f"its features declare tensors of shape {declared[name]}, rows first" if name in declared
                else f"its features declare {', '.join(declared)}")


def _check_flags(result: StepResult, live: Tensor, env: Env) -> StepResult:
    """Returns the step result with bool flags. Raises UserCodeError if active rows have other flags."""
    flags = {"terminated": result.terminated, "truncated": result.truncated,
             **({"success": result.info["success"]} if "success" in result.info else {})}
    if all(isinstance(f, Tensor) and f.dtype == torch.bool and f.shape == live.shape for f in flags.values()):
        return result
    flags = {name: torch.from_numpy(check_flags(values, name, live.numpy(), describe_place(env.step)))
             for name, values in flags.items()}
    return replace(result, terminated=flags.pop("terminated"), truncated=flags.pop("truncated"),
                   info={**result.info, **flags})


def _check_action_shape(action: Tensor, env: Env) -> None:
    if tuple(action.shape) != (env.rows, env.features["action"].size):
        raise UserError(f"the actions have shape {tuple(action.shape)}, but the environment takes "
                        f"({env.rows}, {env.features['action'].size})", where=env.metadata["env"],
                        hint="use the environment that the policy was trained for, or train a policy for this one")


def _finished_columns(history, clock, began, rows) -> dict[int, dict[str, np.ndarray]]:
    """Returns the columns of the episodes that end now in these rows, by row."""
    cut = {}
    for start in {began[r] for r in rows}:
        steps = list(history)[start - (clock - len(history)):]
        blocks = {k: np.stack([s[k] for s in steps]) for k in steps[0]}
        for row in (r for r in rows if began[r] == start):
            cut[row] = {k: v[:, row].copy() for k, v in blocks.items()}
    return dict(sorted(cut.items()))
