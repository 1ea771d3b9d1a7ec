"""Contracts of environments and shifts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from ..core import UserError, keys
from ..data.episode import Dataset
from ..envs.base import Env, HasExpert, PlanarMap, Renderable, Restorable
from ..envs.shifts import Shift
from ..evaluate.recording import UniformRandomActor
from ..evaluate.rollout import rollout
from ..execute.actor import Actor, NoisyActor
from .base import require


def check_env(build: Callable[[int], Env], episodes: int = 4, seed: int = 0) -> None:
    """Checks the contract of an environment.

    Columns must be as `features` declares. An episode must depend on its key alone, and not on the number of other
    rows. One row must be able to restart alone. Episodes must end. Values that were returned must never change
    afterwards. Further interfaces (expert, restore, frame, map) must keep their contracts.

    Args:
        build: `build(rows)` makes that many copies of the environment.
    """
    with closing(build(3)) as env:
        obs = _env_shows(env)
        _env_starts_rows_alone(env, obs)
        _env_has_its_capabilities(env)
    runs = []
    for rows in (1, 3, 2 * episodes):
        with closing(build(rows)) as env:
            runs.append(rollout(_random_actor(env), env, episodes, seed))
            if rows == 3 and isinstance(env, Restorable):
                _env_restores(env, runs[-1])
    for rows, run in zip((3, 2 * episodes), runs[1:], strict=True):
        _same_runs(runs[0], run, f"an episode must depend on its key alone, also with {rows} rows")
    require(len({Dataset([replace(e, metadata={})]).fingerprint() for e in runs[0]}) > 1,
            "other keys must give other episodes")


def check_shift(build: Callable[[int], Env], shift: Shift, episodes: int = 3, seed: int = 0) -> None:
    """Checks the contract of a shift.

    At severity 0, environment and actor give the same episodes as without the shift, bit for bit. At its first and last
    level, the environment keeps the contract of environments, and an episode depends on its key alone.

    Args:
        build: `build(rows)` makes that many copies of the environment without the shift.
    """
    def run(rows, severity):
        with closing(build(rows)) as env:
            actor = _random_actor(env) if not isinstance(env, HasExpert) else env.expert()
            if severity is None:
                return rollout(actor, env, episodes, seed)
            return rollout(shift.actor(actor, severity), shift.world(env, severity), episodes, seed)
    require(min(shift.levels) > 0 and list(shift.levels) == sorted(set(shift.levels)), "levels rise from above 0")
    _same_runs(run(2, None), run(2, 0), "severity 0 must be the environment itself")
    for level in (shift.levels[0], shift.levels[-1]):
        check_env(lambda rows, level=level: shift.world(build(rows), level), episodes, seed)
        _same_runs(run(1, level), run(episodes + 1, level),
                   f"severity {level} must not depend on the number of other rows")


def _same_runs(one, other, what):
    for a, b in zip(one, other, strict=True):
        require(a.metadata == b.metadata, f"{what}: its metadata are {dict(a.metadata)} and {dict(b.metadata)}")
        require(set(a.steps) == set(b.steps), f"{what}: its columns are {sorted(a.steps)} and {sorted(b.steps)}")
        for k in a.steps:
            require(a.steps[k].dtype == b.steps[k].dtype and a.steps[k].tobytes() == b.steps[k].tobytes(),
                    f"{what}, but {k!r} of episode {a.metadata['number']} differs")


def _random_actor(env) -> Actor:
    action = env.features["action"]
    return UniformRandomActor(env) if action.num_classes or "low" in env.metadata else NoisyActor(None, action.size)


def _env_shows(env):
    for key in ("env", "version", "fps", "limit", "success"):
        require(key in env.metadata, f"metadata must have {key!r}, if only None")
    obs = env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    require(set(obs) == set(env.features) - {"action"}, f"observations are {sorted(obs)}, features say otherwise")
    actor = _random_actor(env)
    action, _ = actor.act(obs, actor.start(obs, keys(0, range(env.rows))))
    before = {k: v.clone() for k, v in obs.items()}
    out = env.step(action)
    for name, column in (*obs.items(), *out.obs.items()):
        f = env.features[name]
        require(
            column.shape == (env.rows, *f.shape) and str(column.dtype) == f"torch.{f.dtype}"
            and column.device.type == "cpu",
            f"{name} is {tuple(column.shape)} {column.dtype}, its feature says {(env.rows, *f.shape)} {f.dtype}",
        )
    require(all(torch.equal(obs[k], before[k]) for k in obs), "a step must not change observations already given")
    for name, dtype in (("reward", torch.float32), ("terminated", torch.bool), ("truncated", torch.bool)):
        value = getattr(out, name)
        require(value.shape == (env.rows,) and value.dtype == dtype, f"{name} must be (rows,) {dtype}")
    require(
        ("success" in out.info) == (env.metadata["success"] is not None), "metadata['success'] says whether info has it"
    )
    require(all(v.shape[:1] == (env.rows,) for v in out.info.values()), "infos have rows first")
    return obs


def _env_starts_rows_alone(env, obs):
    again = env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    require(all(torch.equal(obs[k], again[k]) for k in obs), "the same keys must start the same")
    other = env.reset(torch.tensor([1]), keys(1, [99]))
    require(all(torch.equal(other[k][[0, 2]], obs[k][[0, 2]]) for k in obs), "other rows must not notice a reset")
    back = env.reset(torch.tensor([1]), keys(0, [1]))
    require(all(torch.equal(back[k], obs[k]) for k in obs), "a row's start must depend on its key alone")


def _env_has_its_capabilities(env):
    obs = env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    if isinstance(env, HasExpert):
        expert = env.expert()
        action, _ = expert.act(obs, expert.start(obs, keys(0, range(env.rows))))
        require(action.shape == (env.rows, *env.features["action"].shape) and bool(action.isfinite().all()),
                "an expert gives (rows, A) finite actions")
    if isinstance(env, Renderable):
        try:
            frame = env.frame(1)
        except UserError:  # this machine cannot draw, and the message says so
            frame = np.zeros((1, 1, 3), np.uint8)
        require(frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, "a frame is (H, W, 3) uint8")
    if isinstance(env, PlanarMap):
        plane = env.map()
        column, i, j = plane["path"]
        at = obs[column][:, [i, j]]
        low, high = zip(plane["x"], plane["y"], strict=True)
        require(bool(((at >= torch.tensor(low)) & (at <= torch.tensor(high))).all()), "starts must lie on the map")


def _env_restores(env, run):
    """Checks that restoring a step and repeating its action leads to the next one, with randomness by the key alone."""
    first = {k: torch.from_numpy(np.repeat(v[:1], 2, 0)) for k, v in run[0].steps.items()}
    action = torch.from_numpy(np.repeat(run[0].steps["action"][:1], env.rows, 0))
    for rows in ([0, 2], [1, 2]):
        env.restore(torch.tensor(rows), first, torch.tensor([7, 7]))
        for _ in range(2):
            out = env.step(action)
            require(all(np.array_equal(v[rows[0]].numpy(), v[rows[1]].numpy()) for v in out.obs.values()),
                    "what follows a restored state must depend on its key alone")
    for episode in run[:2]:
        steps = episode.steps
        at = sorted({0, len(episode) // 2, len(episode) - 1})
        for t in at:
            row = torch.tensor([1])
            restored = env.restore(row, {k: torch.from_numpy(steps[k][t:t + 1]) for k in steps})
            out = env.step(torch.from_numpy(np.repeat(steps["action"][t:t + 1], env.rows, 0)))
            for k in restored:
                require(np.array_equal(restored[k][1].numpy(), steps[k][t]), f"{k!r} restored is not as recorded")
                require(
                    np.array_equal(out.obs[k][1].numpy(), steps[k][t + 1]), f"{k!r} of the next step is not as recorded"
                )
            for k, value in (("next.reward", out.reward), ("next.terminated", out.terminated)):
                require(value[1].item() == steps[k][t], f"{k!r} after restoring is not as recorded")
