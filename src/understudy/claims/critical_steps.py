"""Row 301: is it enough to learn the third of the steps that matter?"""

from dataclasses import dataclass, replace

import numpy as np

from ..audit.scores import Criticality
from ..envs.push import Expert
from .base import AllOf, Claim, ClaimPart, DemonstrationSource, Experiment, GreaterThan, NegativeControl
from .curation import arms, cached_load, cloning_method, curated_success, successful_rollouts, with_keep_columns


@dataclass(frozen=True)
class CriticalStepDemonstrations(DemonstrationSource):
    """`episodes` demonstrations of push, of whose steps `share` are the critical ones. mixed: which these are is drawn
    by lot."""

    episodes: int
    critical_fraction: float = 0.3
    noise: float = 0.03
    shuffle_steps: bool = False

    @cached_load
    def load(self, seed):
        data = successful_rollouts(Expert(noise=self.noise), "push", self.episodes, seed)
        rng = np.random.default_rng(seed)
        # The expert's unsteadiness is no change of plan: what it does is looked at over three steps.
        critical = Criticality().critical_steps(data.map(_smooth_actions), self.critical_fraction)
        if self.shuffle_steps:
            critical = [rng.permutation(c) for c in critical]
        lot = [rng.permutation(np.arange(len(e)) < round(self.critical_fraction * len(e))) for e in data]
        return with_keep_columns(data, {"all": [1.0] * len(data), "critical": critical, "random": lot})


def _smooth_actions(episode):
    a = np.asarray(episode.steps["action"])[: len(episode)]
    padded = np.concatenate([a[:1], a, a[-1:]])
    return episode.replace({"action": (padded[:-2] + padded[1:-1] + padded[2:]) / 3})


def shuffled_steps(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffle_steps=True))


PUSH = Experiment(CriticalStepDemonstrations(60), "push", arms("all", "critical", "random", options=(
    cloning_method(3e-3, steps=1500), cloning_method(1e-3, steps=1500))), curated_success, seeds=tuple(range(100, 106)))

CLAIM = Claim(
    name="critical-steps",
    rows=("301",),
    paper="Chen et al. 2025, ATLaS: Agent Tuning via Learning Critical Steps, arXiv 2503.02197",
    statement="In extensive experiments, an LLM finetuned on only 30% critical steps selected by ATLaS outperforms "
    "the LLM finetuned on all steps and recent open-source LLM agents.",
    setup="not with language models: push, 60 scripted demonstrations, an MLP that answers one action. Critical are "
    "the 30 % of the steps at which the action, averaged over three steps, changes most: there is no language "
    "model to ask. Learning from them alone, with as many updates, succeeds more often from new starts than "
    "learning from all, and than from a random 30 %.",
    parts=(
        ClaimPart(
            "push",
            PUSH,
            AllOf((GreaterThan("success", "critical", "all"), GreaterThan("success", "critical", "random"))),
        ),
    ),
    negative_control=NegativeControl(
        "the critical steps drawn at random", shuffled_steps, "push",
        removes=(GreaterThan("success", "critical", "random"),),
    ),
)
