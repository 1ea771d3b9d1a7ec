"""Takeovers from a policy that another program trains: they are recorded, and nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core import UserError, role
from ..data.episode import Dataset, Episode
from ..evaluate.evaluation import recording_seed
from ..execute.actor import Actor
from ..files import read_json, write_json
from .collection import FIRST_EPISODE, StoredRounds, unfinished_round, with_costs
from .gates import INTERVENTION, GatedActor, HumanGate
from .journal import EpisodeJournal, WatchedEnv
from .unlearned_steps import UNLEARNED, UnflaggedParts

_POLICY_ACTED = "policy_acted"  # column: the opposite of `intervention`


def record_takeovers(actor: Actor, env: WatchedEnv, person: Actor, n_episodes: int, seed: int, folder: Path,
                     settings: Mapping[str, Any]) -> Dataset:
    """Returns episodes in which a person watches a policy and takes over, as one round of HG-DAgger collects them.

    Steps and episodes are journaled, so that a further call with the same folder continues.

    Args:
        actor: The policy.
        person: The actor through which the person acts, such as a `TakeoverSupervisor`.
        folder: The folder in which rounds are stored. These episodes are round 0.
        settings: What has to be the same when a recording continues, by the names of arguments. Plain JSON values.

    Raises:
        UserError: The folder has a recording with other settings.

    References:
        Kelly et al. (2019), HG-DAgger: Interactive Imitation Learning with Human Experts, arXiv:1810.02890.
    """
    stored = read_json(path) if (path := folder / "settings.json").exists() else settings
    for name, value in settings.items():
        if value != stored.get(name):
            raise UserError(f"{name} is {value}, and was {stored.get(name)} when this recording began", where=path,
                            hint="use the options of the first call, or another --out")
    write_json(path, settings)
    rounds = StoredRounds(folder)
    if 0 not in rounds:
        gated = GatedActor(env.watched(actor), person, HumanGate(), replans=False)
        episodes = EpisodeJournal(unfinished_round(folder, 0)).rollout(gated, env, n_episodes, recording_seed(seed),
                                                                       first=FIRST_EPISODE)
        rounds.store(0, episodes.map(partial(with_costs, True, True)))
    return rounds[0]


def takeover_episodes(data: Dataset, task: str | None = None) -> Dataset:
    """Returns the part of each takeover that is to be learned, as one episode each.

    It has the observations and the action alone, as demonstrations do.

    Args:
        task: The task in words, for the metadata.
    """
    flagged = data.map(lambda e: e.replace({_POLICY_ACTED: ~np.asarray(e.steps[INTERVENTION][:len(e)], bool)}))

    def demonstration(episode: Episode) -> Episode:
        others = dict.fromkeys(name for name in episode.steps if name != "action" and role(name) != "observation")
        return replace(episode.replace(others), metadata={**episode.metadata, **({"task": task} if task else {})})

    return Dataset(UnflaggedParts(flagged, (_POLICY_ACTED, *UNLEARNED)), data.metadata).map(demonstration)
