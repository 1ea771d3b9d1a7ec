"""What to do with the past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import ROWS, deployed_actor, flags
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.past_verification import PastVerification
from understudy.execute.planners import Hierarchical
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.base import Head, RampTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.contextvla import PooledHistoryEncoder
from understudy.nets.base import Encoder, EncoderNet
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

HISTORY, FUTURE = 12, 4  # observed rows, and actions from the current one on
PAST = HISTORY - 1
DIFFUSION = Diffusion(5, n_train_steps=50, prediction="sample")
WHOLE_PLANS = Diffusion(16, prediction="sample")
STATE, VISITED = "observation.state", "simulator.state"
RESULT, READ = "procedure", "observation.procedure"  # what the expert has computed: as a target, and to be read


@dataclass(frozen=True)
class ExplainedDemonstrations(DemonstrationSource):
    """Episodes of the expert, with the goal to which it goes at each step: what it computes before it acts."""

    episodes: int = 200

    def load(self, seed):
        env = make("particle", rows=25)
        episodes = rollout(expert_of(env), env, self.episodes, recording_seed(seed)).filter(
            lambda e: e.metadata["success"])
        return Dataset([self._explained(e) for e in episodes], episodes.metadata)

    def _explained(self, episode):
        at, first = episode.steps[STATE][:, :2], episode.steps[STATE][:, 4:6]
        onward = np.maximum.accumulate(np.linalg.norm(at - first, axis=1) < 0.04).astype(np.float32)[:, None]
        return episode.replace({READ: onward, RESULT: onward[:-1]})


@dataclass(frozen=True)
class RepeatedStep(Encoder):
    """The observation of the current step in place of those of past steps."""

    encoder: Encoder

    def build(self, features, n_obs_steps):
        return _RepeatedStepNet(self.encoder.build(features, n_obs_steps))


class _RepeatedStepNet(EncoderNet):
    def __init__(self, encoder: EncoderNet):
        super().__init__()
        self.encoder = encoder
        self.tokens, self.width, self.token_obs_steps = encoder.tokens, encoder.width, encoder.token_obs_steps

    def forward(self, obs, rng=None):
        return self.encoder({name: x[:, -1:].expand_as(x) for name, x in obs.items()}, rng)


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success", 0 or 1 per start."""
    actor = deployed_actor(experiment, method, data, seed, ROWS)
    return flags(rollout(actor, make(experiment.env, rows=ROWS), episodes, seed=starts))


def policy_of(head: Head, window: Window, encoder: Encoder | None = None, inputs: tuple[str, ...] = (STATE,),
              target: str = "action") -> PolicyConfig:
    return PolicyConfig(head, MLP(160, 1), encoder or ConcatEncoder(), window=window, inputs=inputs, target=target)


def method_of(policy: PolicyConfig, executor: Executor | None = None, **more) -> Method:
    """The same network, updates and learning rate for every arm."""
    return Method(policy, executor or RecedingHorizon(), BehaviorCloning(1500, 64, OptimizerConfig(lr=2e-3)), **more)


def past_targets(executor: Executor) -> Method:
    return method_of(policy_of(DIFFUSION, Window(HISTORY, PAST + FUTURE, action_offset=-PAST)), executor)


def tokens(pool_after: int | None) -> Method:
    encoder = PooledHistoryEncoder(2, pool_after, 2, encoder=TokenEncoder(32))
    return method_of(policy_of(DIFFUSION, Window(HISTORY, FUTURE, obs_pad_mask=True), encoder))


def first_goal_always(episode: Episode) -> Episode:
    """The episode with a computation that says nothing."""
    return episode.replace({name: 0 * episode.steps[name] for name in (READ, RESULT)})


def procedure(*transforms) -> Method:
    """One policy reads the history and computes where the expert goes, and another reads both and acts."""
    window = Window(HISTORY, HISTORY, action_offset=-PAST)
    think = Stage("procedure", method_of(policy_of(DIFFUSION, window, target=RESULT), transforms=transforms))
    act = policy_of(DIFFUSION, Window(HISTORY, FUTURE), inputs=(STATE, READ))
    return method_of(act, transforms=transforms, stages=(think,),
                     inference=(Hierarchical(FromStage("procedure"), as_key=READ),))


def streaming(head: Diffusion, executor: Executor) -> Method:
    return method_of(policy_of(head, Window(HISTORY, 16)), executor)


TABLE = Experiment(ExplainedDemonstrations(), env="particle", measure=success, first_seed=660, n_seeds=5, episodes=200,
                   levels={"history": 0.3, "what is hidden": 0.8}, arms={
    "one observation": method_of(policy_of(DIFFUSION, Window(1, FUTURE))),
    "history": method_of(policy_of(DIFFUSION, Window(HISTORY, FUTURE))),
    "past targets": past_targets(RecedingHorizon(1, PAST)),
    "past-token prediction": past_targets(PastVerification(1, PAST)),
    "tokens of the history": tokens(None),
    "pooled history": tokens(1),
    "procedure cloning": procedure(),
    "nothing computed": procedure(first_goal_always),
    "chunks": streaming(WHOLE_PLANS, RecedingHorizon(4)),
    "streaming": streaming(Diffusion(16, prediction="sample", times=RampTimes(4)), StreamingExecutor(4, 4)),
    "what is hidden": method_of(policy_of(DIFFUSION, Window(1, FUTURE), inputs=(STATE, VISITED))),
    "repeated observation": method_of(policy_of(
        DIFFUSION, Window(HISTORY, FUTURE), RepeatedStep(ConcatEncoder())))})
