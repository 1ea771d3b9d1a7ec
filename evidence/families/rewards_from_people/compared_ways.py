"""Row 035: somebody prefers one way past a pillar. Compare pairs of own episodes, or clone the preferred ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from evidence.experiment import Experiment, ExpertDemonstrations
from evidence.measures import train_policy
from evidence.worlds.fork import ROWS, chunk_method, passes_left
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.behavior.modes import rollout_repeated_starts
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.heads.denoising.flow import Flow
from understudy.improve.preferences import Segment, comparison
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.reward_matching.flow_dpo import FlowDPO
from understudy.policy import Policy

FLOW = chunk_method(Flow(10), 1500, 8)
COMPARED = 12  # steps of each segment, from the start until the pillar is next to it
P_ERROR = 0.05  # fraction of wrong answers


@dataclass(frozen=True)
class Preferred:
    """How the flow policy is tuned with 300 pairs of its episodes, both from one start.

    Args:
        by: "pairs" compares both episodes where one is preferred, "winners" clones the preferred ones, and "chance"
            compares them with random answers.
    """

    by: Literal["nothing", "pairs", "winners", "chance"]
    updates: int = 400
    lr: float = 5e-4
    n_pairs: int = 300

    def tuned(self, policy: Policy, seed: int) -> Policy:
        """The tuned policy."""
        actor = PolicyActor(FixedBatch(policy, ROWS), FLOW.executor)
        own = rollout_repeated_starts(actor, make("fork", rows=ROWS), self.n_pairs, 2, seed=recording_seed(seed))
        preferred = [bool(e.metadata["success"]) and passes_left(e) for e in own]
        rng = np.random.default_rng([seed, 1])
        decided = [i for i in range(0, len(own), 2)
                   if preferred[i] != preferred[i + 1] and min(own.lengths[i:i + 2]) >= COMPARED]
        first = {i: preferred[i] != bool(rng.random() < (0.5 if self.by == "chance" else P_ERROR)) for i in decided}
        if self.by == "winners":
            data = own.select([i if first[i] else i + 1 for i in decided])
            learner = BehaviorCloning(self.updates, 128, OptimizerConfig(lr=self.lr))
        else:
            data = Dataset([comparison(own, (Segment(i, 0), Segment(i + 1, 0)), COMPARED,
                                       "first" if first[i] else "second") for i in decided])
            learner = FlowDPO(self.updates, 32, 1.0, OptimizerConfig(lr=self.lr))
        return fit_method(Method(FLOW.policy, FLOW.executor, learner), data, seed, policy=policy).policy


def success_on_the_left(
    experiment, option: Preferred, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains the policy, tunes it, and rolls it out.

    Returns:
        "success", and "left" of the rollouts that succeed and pass the pillar on the left, as 0 or 1 per rollout.
    """
    policy = train_policy(experiment, FLOW, data, seed)
    policy = policy if option.by == "nothing" else option.tuned(policy, seed)
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), FLOW.executor), make("fork", rows=ROWS), episodes,
                       seed=starts)
    success = [float(e.metadata["success"]) for e in rollouts]
    return {"success": success, "left": [s * passes_left(e) for s, e in zip(success, rollouts, strict=True)]}


TABLE = Experiment(ExpertDemonstrations("fork", 100), measure=success_on_the_left, first_seed=5760, n_seeds=10,
                   levels={"winners cloned": 0.6}, arms={
    "untuned": Preferred("nothing"),
    "winners cloned": Preferred("winners", 1500, 3e-3),
    "Flow-DPO": Preferred("pairs"),
    "random answers": Preferred("chance")})
