"""Rows 306 and 315: goals that are named later, from walks with other goals or none."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment, expert_of
from evidence.measures import ROWS, flags, train_once
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.algorithm import loss
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.goal_conditioned import goal_of
from understudy.learn.method import Method, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.gcbc import gcbc
from understudy.methods.goal_conditioned.dwsl import DWSL
from understudy.methods.goal_conditioned.gcivl import GCIVL
from understudy.methods.goal_conditioned.hilp import HILP
from understudy.methods.goal_conditioned.hiql import HIQL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward

STYLES = ("play", "play-40", "play-80", "stitch")
CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


@dataclass(frozen=True)
class Walks(DemonstrationSource):
    """Walks through four rooms without goals, as many in each style. The parts of the mixture have its name."""

    episodes: int = 100

    def load(self, seed):
        walks = []
        for number, style in enumerate(STYLES):
            env = make(f"four_rooms:{style}", ROWS)
            recorded = rollout(expert_of(env), env, self.episodes, recording_seed(seed), first=100_000 * number)
            walks += [replace(e, metadata={**e.metadata, DATASET_NAME: style}) for e in recorded]
        return Dataset(walks)


class PermutedDWSL(DWSL):
    """DWSL whose distances are those to the goals of other steps."""

    @loss("distance")
    def distance_loss(self, nets, batch, rng):
        goal = goal_of(nets.policy).into
        return super().distance_loss(nets, batch.replace(obs={**batch.obs, goal: batch.obs[goal].roll(1, 0)}), rng)


class RandomHILP(HILP):
    """HILP whose representation stays as it was drawn."""

    phi_loss = None

    def bounds(self, policy, data):
        return {"critic/score": self.value_bound()}


def goal_rollouts(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                  ) -> dict[str, list[float]]:
    """Success of the actor that a method deploys, with its subgoals or directions."""
    result = train_once(experiment, method, data, seed)
    actor = build_actor(result.method, result.modules, ROWS, features=result.features)
    env = make(experiment.env, rows=min(ROWS, episodes), trust=TRUSTED)
    return flags(rollout(actor, env, episodes, seed=starts))


def small(method: Method, style: str, learner: type | None = None) -> Method:
    """The method, or another learner, with two layers of 64 and 4,000 updates, on the walks of one style."""
    changes = {"steps": 4000, "batch_size": 128, "optimizer": CONSTANT}
    if hasattr(method.learner, "critic"):
        changes["critic"] = CriticConfig((64, 64), ConcatEncoder(), layer_norm=True)
    config = replace(method.learner, **changes)
    if learner is not None:
        config = learner(**vars(config))
    policy = replace(method.policy, trunk=FeedForward((64, 64), "gelu"), encoder=ConcatEncoder())
    return replace(method, policy=policy, learner=config,
                   transforms=(Filter(DATASET_NAME, equals=(style,)), *method.transforms))


def table(arms: dict[str, Method], **levels: float) -> Experiment:
    return Experiment(Walks(), env="four_rooms", measure=goal_rollouts, first_seed=740, episodes=300, arms=arms,
                      levels=levels)


DWSL_METHOD, GCIVL_METHOD, HILP_METHOD = DWSL(n_bins=75).method(), GCIVL().method(), HILP().method()
RANDOM_WALKS = table({
    "GCBC": small(gcbc(), "play-80"),
    "DWSL": small(DWSL_METHOD, "play-80"),
    "GCIVL": small(GCIVL_METHOD, "play-80"),
    "permuted goals": small(DWSL_METHOD, "play-80", PermutedDWSL)})
PLAY = table({"GCBC": small(gcbc(), "play"), "DWSL": small(DWSL_METHOD, "play")}, GCBC=0.4)
STITCHED = table({
    "GCBC": small(gcbc(), "stitch"),
    "HILP": small(HILP_METHOD, "stitch"),
    "GCIVL": small(GCIVL_METHOD, "stitch"),
    "HIQL": small(HIQL().method(), "stitch"),
    "random phi": small(HILP_METHOD, "stitch", RandomHILP)}, GCBC=0.3)
