"""Recording: rollouts that are kept as they end, so that an interrupted recording goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ..core import UserError, uniform
from ..data.episode import Dataset, Episode
from ..data.formats.lerobot import append
from ..data.formats.sniff import READ
from ..envs.base import Env, Scripted
from ..execute.actor import Actor
from .rollout import rollout, with_success


def record(env: Env, actor: Actor, episodes: int, out: Path | str, seed: int, *, by: str,
           images: Literal["video", "png"] = "video",
           watch: Callable[[int, Episode], None] = lambda n, e: None) -> Dataset:
    """The data set in `out`, with episodes number 0 to episodes-1 of `seed` in it.

    Those that are there already stay, so that the same call goes on after an interruption, and a larger number adds
    to what there is. All episodes are kept, also those without success: `meta["success"]` and `next.success` say
    which those are; only the former, of an environment that told of success for the first time when some were written.
    by: who acts, in words; kept in every episode. images: how they are stored; png loses nothing. Raises UserError if
    `out` holds something else.
    """
    out = Path(out)
    first = _there(out, env, seed, by)
    while first < episodes:
        finished: dict[int, Episode] = {}

        def keep(number: int, episode: Episode, finished=finished) -> None:
            finished[number] = replace(episode, meta={**episode.meta, "by": by})
            watch(number, episode)

        group = min(4 * env.rows, episodes - first)  # fewer would leave rows idle, more would lose more in a power cut
        facts = {"env": env.facts["env"], "fps": env.facts.get("fps"), "version": env.facts.get("version")}
        try:
            rollout(actor, env, group, seed, first=first, watch=keep)
        finally:  # when interrupted, too: those from the first on that have ended
            whole = []
            while first in finished:
                whole.append(finished[first])
                first += 1
            if whole:
                told = ("next.success" in Dataset.open(out).features() if (out / "meta" / "info.json").exists()
                        else any("next.success" in e.steps for e in whole))
                append(out, Dataset([with_success(e, told) for e in whole], facts), images=images)
    return Dataset.open(out)


def _there(out: Path, env: Env, seed: int, by: str) -> int:
    """How many episodes of this recording there are."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        return 0
    if not (out / "meta" / "info.json").exists():
        raise UserError("expected a recording, or nothing, found something else", where=out, do="name another folder")
    data = Dataset.open(out)
    for n, episode in enumerate(data):
        found = {k: episode.meta.get(k) for k in ("env", "seed", "by", "number")}
        wanted = {"env": env.facts["env"], "seed": seed, "by": by, "number": n}
        if found != wanted:
            odd = next(k for k in wanted if found[k] != wanted[k])
            raise UserError(f"expected a recording with {odd} {wanted[odd]!r}, found {found[odd]!r}",
                            where=f"{out}, episode {n}", do="name another folder, or go on as it was begun")
    return len(data)


@dataclass(frozen=True)
class Uniform(Actor):
    """Every action is as likely as every other."""

    env: Env

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        action, facts = self.env.features["action"], self.env.facts
        drawn = uniform(state["key"], state["count"], action.shape, stream=3)
        if action.choices is not None:
            chosen = (drawn * torch.tensor(action.choices)).long()
        elif "low" in facts:
            low, high = (torch.as_tensor(facts[k], dtype=torch.float64) for k in ("low", "high"))
            chosen = (low + (high - low) * drawn).float()
        else:
            raise UserError("expected actions with limits, found none", where=facts["env"],
                            do="uniform actions need limits: record --by scripted, or wrap the environment")
        return chosen, {**state, "count": state["count"] + 1}


def expert(env: Env) -> Actor:
    """The environment's own. Raises UserError if it has none."""
    if not isinstance(env, Scripted):
        raise UserError(f"{env.facts['env']} has no expert of its own", do="record --by random, or bring "
                        f"demonstrations of your own: {READ}")
    return env.expert()
