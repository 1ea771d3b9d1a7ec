"""Row 049: points steer a flow policy on the fork, with and without the gradient of its network."""

from __future__ import annotations

from dataclasses import dataclass

from evidence.experiment import Experiment, ExpertDemonstrations
from evidence.measures import train_policy
from evidence.worlds.fork import ROWS, chunk_method, passes_left
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.envs.toys.fork import GOAL, PILLAR
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.execute.steering import Steered
from understudy.heads.denoising.flow import Flow

WAY = tuple((x, y) for x, y in ((0.3, 0.3), (PILLAR[0], 0.45), (0.9, 0.3), GOAL))  # past the pillar on the left
FLOW = chunk_method(Flow(10), 1500, 8)


@dataclass(frozen=True)
class SteeredFlow:
    """The flow policy of all arms, which points steer to the left.

    Args:
        scale: Strength of the guidance. 0 is the plain policy.
        through_network: Whether the gradient passes back through the network.
    """

    scale: float
    through_network: bool = True


def success_on_the_left(
    experiment, option: SteeredFlow, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains the policy and rolls it out.

    Returns:
        "success", and "left" of the rollouts that succeed and pass the pillar on the left, as 0 or 1 per rollout.
    """
    policy = FixedBatch(train_policy(experiment, FLOW, data, seed), ROWS)
    steered = Steered(policy, WAY, step=0.1, scale=option.scale, through_network=option.through_network)
    rollouts = rollout(PolicyActor(steered, FLOW.executor), make(experiment.env, rows=ROWS), episodes, seed=starts)
    success = [float(e.metadata["success"]) for e in rollouts]
    return {"success": success, "left": [s * passes_left(e) for s, e in zip(success, rollouts, strict=True)]}


TABLE = Experiment(ExpertDemonstrations("fork", 100), measure=success_on_the_left, first_seed=5640, n_seeds=10,
                   levels={"unguided": 0.3}, arms={
    "unguided": SteeredFlow(0.0),
    "through the network": SteeredFlow(30.0),
    "past the network": SteeredFlow(30.0, False)})
