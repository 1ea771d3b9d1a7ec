"""Row 080: two parts of an arm shall move as in two clips, and it shall point at a target. How to combine rewards?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from understudy.core import normal, part
from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.envs.toy import named_vector
from understudy.envs.toys.planar_arms import SPEED, PlanarArms
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from understudy.improve.retention import LastRounds
from understudy.improve.updates import Epochs
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.ppo import PPO, PPOLearner
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.learn.rewards.reward_models import RewardSpec
from understudy.learn.targets import REWARD
from understudy.methods.reward_matching.composite_motion import CompositeModel, CompositeReward
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

UPPER, LOWER, AIM = "observation.upper", "observation.lower", "observation.aim"
LIMIT, ROWS, RADIUS, TURN = 60, 32, 0.5, 0.2  # steps, episodes of a round, rad, and rad of a clip's phase in a step
MOTIONS = {UPPER: 1, LOWER: -1}  # which way the two joints of a part go around their circle
TOLERANCE, NEAR = 0.5, 0.2  # of a motion, relative to that of the clip, and of the aim, rad
CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5)


def direction(angle: np.ndarray) -> np.ndarray:
    """Cosine and sine, (n, 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def at_phase(phase: np.ndarray) -> np.ndarray:
    """The joints of a part of a clip, (..., 2)."""
    return RADIUS * np.stack([np.cos(phase), np.sin(phase)], -1)


class PointingArm(PlanarArms):
    """An arm of five links. The first turns all others, and the next two pairs are parts that have a style.

    observation.upper, observation.lower (4): angles of the joints of a part and how they turned in the last step, rad.
    observation.aim (2): cosine and sine of the angle from the direction in which the tip lies to that of the target.

    The reward is this cosine after the step. Episodes last until the limit.
    """

    state_columns = ("observation.state", "observation.environment_state", UPPER, LOWER)

    def __init__(self, rows: int = 1):
        super().__init__(rows, LIMIT, arm="five")
        motion = named_vector("first", "second", "turn of first", "turn of second")
        self.features = {**self.features, UPPER: motion, LOWER: motion, AIM: named_vector("cosine", "sine")}
        self.metadata = {**self.metadata, "env": "pointing_arm", "optimum": None, "success": None}

    def initial_state(self, key):
        joints = 0.3 * normal(key, torch.ones_like(key), (5,)).numpy().astype(np.float32)
        return {**super().initial_state(key), "joints": joints, "turn": np.zeros_like(joints)}

    def error(self) -> np.ndarray:
        """Angle from the direction of the tip to that of the target, (rows,)."""
        tip, target = self.tip(), self.state["target"]
        return np.arctan2(target[:, 1], target[:, 0]) - np.arctan2(tip[:, 1], tip[:, 0])

    def observe(self):
        both = np.concatenate([self.state["joints"], self.state["turn"]], 1)
        return {**super().observe(), UPPER: both[:, [1, 2, 6, 7]], LOWER: both[:, [3, 4, 8, 9]],
                AIM: direction(self.error())}

    def state_from_columns(self, steps):
        turn = np.concatenate([np.zeros_like(steps[UPPER][:, :1]), steps[UPPER][:, 2:], steps[LOWER][:, 2:]], 1)
        return {**super().state_from_columns(steps), "turn": turn}

    def advance(self, action):
        self.state["turn"] = np.float32(SPEED) * action
        self.state["joints"] = self.state["joints"] + self.state["turn"]
        nothing = np.zeros(self.rows, bool)
        return np.cos(self.error()), nothing, nothing


@dataclass(frozen=True)
class Clips(DemonstrationSource):
    """Each episode has a clip of either part. They begin anywhere, so that they do not belong together."""

    episodes: int = 20

    def load(self, seed):
        rng = np.random.default_rng(seed)

        def clip(way: int) -> np.ndarray:
            phase = 2 * np.pi * rng.random() + way * TURN * np.arange(-1, LIMIT + 1)
            joints = at_phase(phase) + rng.normal(0, 0.01, (LIMIT + 2, 2))
            return np.concatenate([joints[1:], np.diff(joints, axis=0)], 1).astype(np.float32)

        def episode() -> Episode:
            return Episode({**{name: clip(way) for name, way in MOTIONS.items()},
                            AIM: direction(2 * np.pi * rng.random(LIMIT + 1)),
                            "action": rng.uniform(-1, 1, (LIMIT, 5)).astype(np.float32),
                            REWARD: np.zeros(LIMIT, np.float32), "next.terminated": np.zeros(LIMIT, bool)})
        return Dataset([episode() for _ in range(self.episodes)])


@dataclass(frozen=True)
class Times:
    """A change of episodes: the environment's reward times a factor."""

    factor: float

    def __call__(self, episode: Episode) -> Episode:
        return episode.replace({REWARD: np.float32(self.factor) * episode.steps[REWARD]})


@part
class Summed(CompositeReward):
    """The weighted sum of the objectives is one objective."""

    def objective_weights(self, inputs):
        return (1.0,)

    def build(self, policy, data):
        return SummedModel(RewardSpec.of(self, policy), policy.features, policy.codec)


class SummedModel(CompositeModel):
    def objectives(self, batch, policy):
        objectives = super().objectives(batch, policy)
        return objectives @ objectives.new_tensor(CompositeReward.objective_weights(self.config, self.inputs))[:, None]


@part
class TogetherPPO(PPO):
    """The advantages of all objectives are standardized together, in the units of their rewards."""

    def build(self, policy, seed, steps, data):
        return TogetherPPOLearner(self, policy, seed, steps, data)


class TogetherPPOLearner(PPOLearner):
    def annotate(self, episodes, round):
        self.reward_units = [1.0] * len(self.reward_units)
        return super().annotate(episodes, round)

    def _standardized(self, x):
        return super()._standardized(x.reshape(-1, 1)).reshape(x.shape)


DISCRIMINATOR = DiscriminatorReward("gail", "next", hidden=(64, 64), penalty=1.0)


@dataclass(frozen=True)
class Practice:
    """PPO with a discriminator for either part and the reward of the arm, each with a third of the weight.

    Args:
        factor: Of the reward of the arm.
    """

    combined: Literal["apart", "summed", "together"] = "apart"
    factor: float = 1.0
    n_rounds: int = 40

    @property
    def method(self) -> Method:
        policy = PolicyConfig(SquashedGaussian("free"), FeedForward((64, 64), "tanh"), ConcatEncoder(),
                              inputs=(UPPER, LOWER, AIM))
        reward = (Summed if self.combined == "summed" else CompositeReward)((UPPER, LOWER), 1 / 3, DISCRIMINATOR)
        learner = (TogetherPPO if self.combined == "together" else PPO)(
            batch_size=256, optimizer=CONSTANT, discount=0.95, reward=reward, value=CriticConfig((64, 64), n_critics=1))
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(ROWS, TemperatureExploration()),
                                  retention=LastRounds(1), updates=Epochs(8))
        return Method(policy, learner=learner, collection=rounds, transforms=(Times(self.factor),))


def styles(episode: Episode) -> list[float]:
    """The fraction of steps in the style of the upper part, in that of the lower, and that point at the target."""
    fractions = []
    for name, way in MOTIONS.items():
        joints = np.asarray(episode.steps[name])[:, :2]
        phase = np.arctan2(joints[:-1, 1], joints[:-1, 0])
        place = np.abs(np.linalg.norm(joints[:-1], axis=1) / RADIUS - 1)
        motion = joints[1:] - joints[:-1] - (at_phase(phase + way * TURN) - at_phase(phase))
        error = np.hypot(place, np.linalg.norm(motion, axis=1) / (RADIUS * TURN))
        fractions.append(float(np.mean(error < TOLERANCE)))
    return [*fractions, float(np.mean(np.asarray(episode.steps[AIM])[1:, 0] > np.cos(NEAR)))]


def practiced(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int):
    """The fractions of steps in each style and on the target, and as "success" the smallest of those of an episode."""
    env, test_env = (make(experiment.env, rows=rows, trust=TRUSTED) for rows in (ROWS, episodes))
    method = option.method
    actor = PolicyActor(FixedBatch(fit_method(method, data, seed, env=env).policy, episodes), method.executor)
    shares = np.array([styles(e) for e in rollout(actor, test_env, episodes, starts)])
    return {"success": shares.min(1).tolist(), **dict(zip(("upper", "lower", "aim"), shares.T.tolist(), strict=True))}


APART, SUMMED = "apart", "summed"
MORE_APART, MORE_SUMMED = "apart, reward x 100", "summed, reward x 100"
TABLE = Experiment(Clips(), env=f"{__name__}:PointingArm", measure=practiced, first_seed=1960, n_seeds=5, episodes=100,
                   levels={SUMMED: 0.5}, arms={
    APART: Practice(),
    SUMMED: Practice("summed"),
    MORE_APART: Practice(factor=100.0),
    MORE_SUMMED: Practice("summed", 100.0),
    "together, reward x 100": Practice("together", 100.0)})
