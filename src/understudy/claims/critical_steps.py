"""Row 301: is it enough to learn the third of the steps that matter?"""

from dataclasses import dataclass, replace

import numpy as np

from ..audit.scores import Criticality
from ..envs.push import Expert
from .base import Above, Claim, Every, Experiment, Part, Sabotage, Source
from .curated import arms, cloning, closed, marked, once, shown


@dataclass(frozen=True)
class Marked(Source):
    """`episodes` demonstrations of push, of whose steps `share` are the critical ones. mixed: which these are is drawn
    by lot."""

    episodes: int
    share: float = 0.3
    noise: float = 0.03
    mixed: bool = False

    @once
    def load(self, seed):
        data = shown(Expert(noise=self.noise), "push", self.episodes, seed)
        rng = np.random.default_rng(seed)
        # The expert's unsteadiness is no change of plan: what it does is looked at over three steps.
        critical = Criticality().chosen(data.map(_smooth), self.share)
        if self.mixed:
            critical = [rng.permutation(c) for c in critical]
        lot = [rng.permutation(np.arange(len(e)) < round(self.share * len(e))) for e in data]
        return marked(data, {"all": [1.0] * len(data), "critical": critical, "random": lot})


def _smooth(episode):
    a = np.asarray(episode.steps["action"])[: len(episode)]
    padded = np.concatenate([a[:1], a, a[-1:]])
    return episode.but({"action": (padded[:-2] + padded[1:-1] + padded[2:]) / 3})


def mixed(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, mixed=True))


PUSH = Experiment(Marked(60), "push", arms("all", "critical", "random", options=(
    cloning(3e-3, steps=1500), cloning(1e-3, steps=1500))), closed, seeds=tuple(range(100, 106)))

CLAIM = Claim(
    name="critical-steps", rows=("301",),
    paper="Chen et al. 2025, ATLaS: Agent Tuning via Learning Critical Steps, arXiv 2503.02197",
    statement="In extensive experiments, an LLM finetuned on only 30% critical steps selected by ATLaS outperforms "
              "the LLM finetuned on all steps and recent open-source LLM agents.",
    here="not with language models: push, 60 scripted demonstrations, an MLP that answers one action. Critical are "
         "the 30 % of the steps at which the action, averaged over three steps, changes most: there is no language "
         "model to ask. Learning from them alone, with as many updates, succeeds more often from new starts than "
         "learning from all, and than from 30 % by lot.",
    parts=(Part("push", PUSH, Every((Above("success", "critical", "all"), Above("success", "critical", "random")))),),
    sabotage=Sabotage("the critical steps drawn by lot", mixed, "push"),
)
