"""Row 003: what does not align with the other demonstrations can go.

A twin with the circle at the same time of every demonstration was tried on the seeds of pilots and changed nothing: a
circle ends where it began, and so is passed over even if all drive it. The twin is therefore a shuffle. A first run, on
the seeds 100 to 105, was undecided by the spread of so few and is a pilot: eighteen others judge.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load, curated_arms, curated_success, successful_rollouts, with_keep_columns
from understudy.audit.scores import Alignment
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.core import uniform
from understudy.envs.toys.fork import ForkExpert
from understudy.execute.actor import Actor


@dataclass(frozen=True)
class DetourExpert(Actor):
    """The expert, but for a circle of `around` steps at full speed that it drives once, at a time that its key says. It
    records `extraneous`."""

    expert: ForkExpert
    detour_steps: int

    def start(self, obs, key):
        share = uniform(key, torch.zeros_like(key), (1,), stream=5)[:, 0]
        at = 1 + (share * 9).long()
        return {"expert": self.expert.start(obs, key), "clock": torch.zeros_like(key), "at": at}

    def act(self, obs, state):
        plain, expert = self.expert.act(obs, state["expert"])
        turn = (state["clock"] - state["at"]).float()
        busy = (turn >= 0) & (turn < self.detour_steps)
        angle = 2 * torch.pi * turn / self.detour_steps
        circle = torch.stack([-torch.cos(angle), -torch.sin(angle)], 1)
        action = torch.where(busy.unsqueeze(1), circle, plain)
        return action, {"expert": expert, "clock": state["clock"] + 1, "at": state["at"],
                        "record": {"extraneous": busy}}


@dataclass(frozen=True)
class DetourDemonstrations(DemonstrationSource):
    episodes: int
    detour_steps: int
    noise: float = 0.05
    shuffle_scores: bool = False

    @cached_load
    def load(self, seed):
        data = successful_rollouts(
            DetourExpert(ForkExpert(side=1, noise=self.noise), self.detour_steps), "fork", self.episodes, seed
        )
        true = [~e.steps["extraneous"] for e in data]
        kept = [s > 0.5 for s in Alignment(inputs=("observation.state",), seed=seed).steps(data)]
        rng = np.random.default_rng(seed)
        if self.shuffle_scores:
            kept = [rng.permutation(k) for k in kept]
        share = np.mean(np.concatenate(kept))
        chance = [rng.random(len(e)) < share for e in data]
        clean = [e.replace({"extraneous": None}) for e in data]
        figures = {"f1.aligned": _f1_score(kept, true), "f1.random": _f1_score(chance, true)}
        return with_keep_columns(clean, {"all": [1.0] * len(data), "aligned": kept, "random": chance, "true": true},
                                 {"figures": figures})


def _f1_score(kept, true) -> float:
    """Of the extraneous steps as found ones."""
    predicted, extraneous = ~np.concatenate(kept), ~np.concatenate(true)
    return float(2 * (predicted & extraneous).sum() / max(predicted.sum() + extraneous.sum(), 1))


def shuffled_scores(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffle_scores=True))


FORK = Experiment(DetourDemonstrations(30, 8), "fork", curated_arms("all", "aligned", "random", "true"),
                  curated_success, seeds=tuple(range(120, 138)), env_options=(("limit", 18),),
                  measures=(("f1", SCORE),))

CLAIM = Claim(
    name="extraneous-segments",
    rows=("003",),
    parts=(
        ClaimPart(
            "fork",
            FORK,
            AllOf(
                (
                    GreaterThan("success", "aligned", "all"),
                    GreaterThan("success", "aligned", "random"),
                    EquivalentTo("success", "aligned", "true", 0.1),
                )
            ),
        ),
        ClaimPart("found", FORK, AboveBound("f1", "aligned", 0.8), is_decisive=False),
    ),
    negative_control=NegativeControl(
        shuffled_scores, "fork", removes=(GreaterThan("success", "aligned", "random"),), probed=False
    ),
)
