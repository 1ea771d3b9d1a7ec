"""Row 047: may the validation loss choose the checkpoint?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core import keys
from ..data.episode import Dataset
from ..data.window import Window
from ..envs import make
from ..evaluate.judge import during, recording
from ..evaluate.rollout import rollout
from ..execute.actor import Plays
from ..execute.chunked import Receding
from ..execute.planners import Fixed
from ..heads.gmm import GMM
from ..learn.clone import Cloning
from ..learn.fit import fit
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.ema import Constant
from ..nets.encoders import Flat
from ..nets.mlp import MLP
from ..policy import Policy, Recipe
from .base import Above, Arm, Claim, Experiment, Part, Sabotage, Source
from .curated import once
from .measures import ROWS

CHECKPOINTS = 10
HELD_OUT = 20  # demonstrations for the validation loss


@dataclass(frozen=True)
class Drawn(Source):
    """`episodes` demonstrations to learn from, drawn anew for each training seed, and before them HELD_OUT others."""

    env: str
    episodes: int

    @once
    def load(self, seed):
        env = make(self.env, rows=ROWS)
        return rollout(env.expert(), env, HELD_OUT + self.episodes, recording(seed))


@dataclass(frozen=True)
class Chosen:
    """`method`, of whose checkpoints that one acts which is best `by`: "loss", of the held-out demonstrations, or
    "rollouts"."""

    method: Method
    by: str


def best_checkpoint(experiment, method: Chosen, data: Dataset, seed: int, episodes: int,
                    starts: int) -> dict[str, list[float]]:
    """success, of the checkpoint that was chosen. step: its number, from 0 to 1."""
    ran = _run(experiment, method.method, data, seed, episodes, starts)
    chosen = int(np.argmin(ran["loss"])) if method.by == "loss" else int(np.argmax(ran["rollouts"]))
    return {"success": ran["success"][chosen], "step": [(chosen + 1) / CHECKPOINTS]}


_runs: dict = {}  # what choosers look at is one training


def _run(experiment, method, data, seed, episodes, starts):
    key = experiment.source, method, seed, episodes, starts
    if key in _runs:
        return _runs[key]
    held, shown = data.pick(range(HELD_OUT)), data.pick(range(HELD_OUT, len(data)))
    torch.manual_seed(seed)
    policy = Policy(method.policy, shown.features()).fit(shown)
    learner, windows = method.learn.build(policy, seed, method.learn.steps), policy.windows(shown)
    batches, env = list(policy.windows(held).scan(512)), make(experiment.env, rows=ROWS)
    seen: dict[str, list] = {"loss": [], "rollouts": [], "success": []}

    def look(step, learner, _):
        if step % (method.learn.steps // CHECKPOINTS):
            return
        now = learner.trained
        training = now.training
        now.eval()
        with torch.no_grad():
            loss = [now.loss(b, torch.Generator().manual_seed(int(keys(seed, [i])[0]))) for i, b in enumerate(batches)]
        seen["loss"].append(float(torch.cat(loss).mean()))
        actor = Plays(Fixed(now, ROWS), method.run)
        seen["rollouts"].append(np.mean([e.meta["success"] for e in rollout(actor, env, 50, during(seed))]))
        seen["success"].append([float(e.meta["success"]) for e in rollout(actor, env, episodes, starts)])
        now.train(training)

    fit(learner, lambda n: windows.batch(method.learn.batch, n, seed), method.learn.steps, watch=(look,))
    _runs[key] = seen
    return seen


def plenty(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, episodes=500))


BASE = Method(Recipe(GMM(), trunk=MLP(64, 1), encoder=Flat(), window=Window(1, 8)), Receding(4),
              Cloning(steps=1000, ema=Constant(0.0), optim=Optim(rate=3e-3)))
FORK = Experiment(Drawn("fork", 10), "fork", tuple(Arm(by, (Chosen(BASE, by),)) for by in ("rollouts", "loss")),
                  best_checkpoint, seeds=tuple(range(100, 106)), kinds=(("step", "bounded"),))

CLAIM = Claim(
    name="checkpoint-selection", rows=("047",),
    paper="Mandlekar et al. 2021, What Matters in Learning from Offline Human Demonstrations for Robot Manipulation, "
          "arXiv 2108.03298",
    statement="Based on the study, we derive a series of lessons including the sensitivity to different algorithmic "
              "design choices, the dependence on the quality of the demonstrations, and the variability based on the "
              "stopping criteria due to the different objectives in training and evaluation.",
    here="the last of these: fork, 10 scripted demonstrations that go either way, a mixture of Gaussians (an MLP of "
         "64 x 1 blocks) in chunks of 8, 1,000 updates, 10 checkpoints. The checkpoint with the lowest loss on 20 "
         "held-out demonstrations succeeds more than 0.1 less often, from new starts, than the one that did best in 50 "
         "rollouts from others. Both choose among the checkpoints of the same training; there is nothing to tune.",
    parts=(Part("fork", FORK, Above("success", "rollouts", "loss", 0.1)),),
    sabotage=Sabotage("500 demonstrations in place of 10", plenty, "fork"),
)
