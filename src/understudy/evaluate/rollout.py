"""Acting is recording: a rollout is a dataset like any other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from ..core import UserError, keys, put, take
from ..data.episode import Dataset, Episode
from ..envs.base import Env
from ..execute.actor import Actor

LONGEST = 100_000  # steps; an environment without a time limit may never let an idle policy go


class NotFinite(UserError, FloatingPointError):
    """An actor gave an action that is no number."""


def rollout(actor: Actor, env: Env, episodes: int, seed: int = 0, *, first: int = 0,
            watch: Callable[[int, Episode], None] = lambda n, e: None) -> Dataset:
    """Episodes number first to first+episodes-1, each decided by its own key, whatever `env.rows` is.

    Exactly these are run to their ends: taking the first that finish would favour short ones. `watch(number,
    episode)` sees each as it ends. Their facts: "number", "seed", "env", what the environment's last `info` held, and
    "success", where it defines one: was it one at any step?
    """
    last = first + episodes
    rows = min(env.rows, episodes)
    number = list(range(first, first + rows)) + [-1] * (env.rows - rows)
    key = keys(seed, range(first, first + env.rows))
    obs = env.reset(torch.arange(env.rows), key)
    state = actor.start(obs, key)
    history: deque[dict[str, np.ndarray]] = deque()  # steps of all rows, from the earliest that is still needed
    began, clock, upcoming = [0] * env.rows, 0, first + rows
    done: dict[int, Episode] = {}
    while len(done) < episodes:
        action, state = actor.act(obs, state)
        state = dict(state)
        bad = (~action.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        for row in (r for r in bad if number[r] >= 0):  # an environment would quietly count it as a failure
            raise NotFinite(f"expected a finite action, found {action[row].tolist()}",
                            where=f"{env.facts['env']}, episode {number[row]}, step {clock - began[row]}",
                            do="the policy has diverged: look at its training curve, or take another checkpoint")
        out = env.step(action)
        record = {"action": action, "next.reward": out.reward, "next.terminated": out.terminated,
                  "next.truncated": out.truncated & ~out.terminated,
                  **({"next.success": out.info["success"]} if "success" in out.info else {}),
                  **state.pop("record", {})}  # written once and gone: the rest of a state keeps its shape
        history.append({k: v.numpy().copy() for k, v in {**obs, **record}.items()})
        clock, obs = clock + 1, out.obs
        if clock - min((b for b, n in zip(began, number, strict=True) if n >= 0)) > LONGEST:
            raise UserError(f"expected every episode to end, found one of more than {LONGEST} steps",
                            where=env.facts["env"], do="give the environment a time limit (max_episode_steps)")
        ended = [r for r in (out.terminated | out.truncated).nonzero().flatten().tolist() if number[r] >= 0]
        for row, steps in _cut(history, clock, began, ended).items():
            for k, v in obs.items():  # what was seen last: one row more
                steps[k] = np.concatenate([steps[k], v[row].numpy()[None]])
            facts = {k: v[row].item() for k, v in out.info.items() if v[row].numel() == 1}
            if "next.success" in steps:  # at any of its steps
                facts["success"] = bool(steps["next.success"].any())
            n = number[row]
            done[n] = Episode(steps, {"number": n, "seed": seed, "env": env.facts["env"], **facts},
                              schema={k: f for k, f in env.features.items() if k in steps})
            watch(n, done[n])
            number[row] = upcoming if upcoming < last else -1
            began[row], upcoming = clock, upcoming + 1
        if fresh := [r for r in ended if number[r] >= 0]:
            which, new = torch.tensor(fresh), keys(seed, [number[r] for r in fresh])
            obs = env.reset(which, new)
            state = put(state, which, actor.start(take(obs, which), new))
        needed = min((b for b, n in zip(began, number, strict=True) if n >= 0), default=clock)
        while clock - len(history) < needed:
            history.popleft()
    return Dataset([done[n] for n in range(first, last)],
                   {"env": env.facts["env"], "fps": env.facts.get("fps"), "version": env.facts.get("version")})


def _cut(history, clock, began, rows) -> dict[int, dict[str, np.ndarray]]:
    """The columns of the episodes that end now in these rows; rows that began together are stacked together."""
    cut = {}
    for start in {began[r] for r in rows}:
        steps = list(history)[start - (clock - len(history)):]
        blocks = {k: np.stack([s[k] for s in steps]) for k in steps[0]}
        for row in (r for r in rows if began[r] == start):
            cut[row] = {k: v[:, row].copy() for k, v in blocks.items()}
    return dict(sorted(cut.items()))
