"""Recording: rollouts that are kept as they end, so that an interrupted recording goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..core import UserError, uniform
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset
from ..data.formats.detection import READABLE_FORMATS
from ..data.recorder import Recorder, repair, warn_of_losses
from ..envs.base import Env, HasExpert
from ..execute.actor import Actor
from .rollout import rollout
from .workers import WorkerPool

GROUP_SIZE = 64  # episodes for each worker that are rolled out at once: fewer leave rows idle, more are held in memory


def record_episodes(env: Env, actor: Actor, episodes: int, out: Path | str, seed: int, *, actor_name: str,
           images: Literal["video", "png"] = "video",
           watch: Callable[[int, Episode], None] = lambda n, e: None,
           on_saved: Callable[[int], None] = lambda n: None, workers: WorkerPool | None = None,
           fps: float | None = None) -> Dataset:
    """The data set in `out`, with episodes number 0 to episodes-1 of `seed` in it.

    Those that are there already stay, so that the same call goes on after an interruption, and a larger number adds
    to what there is. All episodes are kept, also those without success: `meta["success"]` and `next.success` say
    which those are; only the former, of an environment that told of success for the first time when some were written.
    by: who acts, in words; kept in every episode. images: how they are stored; png loses nothing. saved: called from
    another thread with the number of each episode, in order, once it would survive a power cut. crew: who rolls
    out, in place of `actor` and `env` here. fps: steps a second of an environment that does not say its own. Raises
    UserError if `out` holds something else.
    """
    out = Path(out)
    first = n_recorded(out, env, seed, actor_name)
    recorder: Recorder | None = None
    finished: dict[int, Episode] = {}

    def put_down() -> None:
        """The episodes that have ended and those before them, too: so the numbers in the data have no gap."""
        nonlocal recorder, first
        while first in finished:
            if recorder is None:
                schema = open_dataset(out).features() if first else finished[first].features()
                recorder = Recorder(schema, out, fps=env.metadata.get("fps") or fps, clock=None, images=images,
                                    on_saved=on_saved, require_observation=False)
            recorder.add(finished.pop(first))
            first += 1

    def keep(number: int, episode: Episode) -> None:
        told = env.metadata.get("simulator")
        finished[number] = replace(episode, metadata={**episode.metadata, "by": actor_name, **_task_metadata(episode),
                                                  **({"simulator": told} if told else {})})
        put_down()
        watch(number, episode)

    try:
        while first < episodes:
            if workers is None:
                rollout(actor, env, min(4 * env.rows, episodes - first), seed, first=first, watch=keep)
            else:
                group = 4 * env.rows if workers.count == 1 else GROUP_SIZE * workers.count
                workers.rollout(min(group, episodes - first), seed, first=first, watch=keep)
            if recorder is not None:
                recorder.flush()
    finally:  # when interrupted, too
        try:
            put_down()
        finally:
            if recorder is not None:
                recorder.close()
    return open_dataset(out)


def _task_metadata(episode: Episode) -> dict[str, str]:
    """The words that an environment shows (as `Say` writes them) are the task of the episode."""
    said = episode.steps.get("observation.task")
    if said is None or episode.features()["observation.task"].kind != "text":
        return {}
    return {"task": bytes(np.asarray(said)[0]).rstrip(b"\0").decode(errors="replace")}


def n_recorded(out: Path, env: Env, seed: int, actor_name: str) -> int:
    """How many episodes of this recording there are; what an interruption left is put into its files first."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        return 0
    if not (out / "meta" / "info.json").exists():
        raise UserError("expected a recording, or nothing, found something else", where=out, hint="name another folder")
    warn_of_losses(out, repair(out))
    data = open_dataset(out)
    for n, episode in enumerate(data):
        found = {k: episode.metadata.get(k) for k in ("env", "seed", "by", "number")}
        wanted = {"env": env.metadata["env"], "seed": seed, "by": actor_name, "number": n}
        if found != wanted:
            odd = next(k for k in wanted if found[k] != wanted[k])
            raise UserError(f"expected a recording with {odd} {wanted[odd]!r}, found {found[odd]!r}",
                            where=f"{out}, episode {n}", hint="name another folder, or go on as it was begun")
    return len(data)


@dataclass(frozen=True)
class UniformRandomActor(Actor):
    """Every action is as likely as every other."""

    env: Env

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        action, facts = self.env.features["action"], self.env.metadata
        drawn = uniform(state["key"], state["count"], action.shape, stream=3)
        if action.num_classes is not None:
            chosen = (drawn * torch.tensor(action.num_classes)).long()
        elif "low" in facts:
            low, high = (torch.as_tensor(facts[k], dtype=torch.float64) for k in ("low", "high"))
            chosen = (low + (high - low) * drawn).float()
        else:
            raise UserError("expected actions with limits, found none", where=facts["env"],
                            hint="uniform actions need limits: record --actor scripted, or wrap the environment")
        return chosen, {**state, "count": state["count"] + 1}


def expert_actor(env: Env) -> Actor:
    """The environment's own. Raises UserError if it has none."""
    if not isinstance(env, HasExpert):
        raise UserError(f"{env.metadata['env']} has no expert of its own", hint="record --actor random, or bring "
                        f"demonstrations of your own: {READABLE_FORMATS}")
    return env.expert()
