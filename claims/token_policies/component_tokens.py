"""Row 024: does a token for each number help a pretrained policy to act while a sensor has failed?"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.checkpoint import FromStage
from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature, put, uniform
from understudy.data.codec import Normalizer
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.base import EnvWrapper
from understudy.envs.toys.planar_arms import ARMS, PlanarArms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage, build_actor
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.representation.pasta import (
    ComponentTokenEncoder,
    ComponentTokenNet,
    MaskedTokenPrediction,
    NextTokenPrediction,
)
from understudy.nets.ema import ConstantDecay
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

Level = Literal["component", "modality"]
ROWS = 100  # environments side by side; results do not depend on it
LINKS = 4  # of the longest arm; the numbers of others are padded
STATE, SENSORS, TARGET = "observation.state", "observation.sensors", "observation.environment_state"
BODIES, NEW_BODY = ("two", "three", "four"), "human"
WIDTH, DEPTH, FRACTION = 32, 2, 0.3  # of the transformer; of tokens that are hidden
PRETRAINING_STEPS, STEPS, BATCH = 1200, 300, 64
OPTIMIZER, EMA = OptimizerConfig(lr=3e-3), ConstantDecay(0.99)


class FrontArm(PlanarArms):
    """`PlanarArms` that begins bent to one side, with the target in front of it."""

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (3 + len(self.lengths),)).numpy().astype(np.float32)
        angle, radius = 1.2 * (drawn[:, 0] - 0.5), 0.5 + 0.4 * drawn[:, 1]
        joints = 2.0 / len(self.lengths) + 0.6 * (drawn[:, 3:] - 0.5)
        joints[:, 0] = -1.0 + 1.0 * (drawn[:, 2] - 0.5)
        return {"joints": joints, "target": np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)}


class ArmSensors(EnvWrapper):
    """Arms of two to four links with the same columns, and with flags of which sensors work.

    observation.state (6): four angles, and the position of the tip. observation.sensors (6): 1 where the number is
    given, 0 where the arm has no such joint or the sensor has failed. Missing numbers are 0. action (4).

    Args:
        env: The arm.
        dead: Whether one of the arm's own sensors fails for the whole episode.
    """

    def __init__(self, env: PlanarArms, dead: bool):
        super().__init__(env)
        self.dead, self.links = dead, len(env.lengths)
        self.failed = torch.zeros(env.rows, dtype=torch.int64)
        self.features = {**env.features, STATE: Feature("float32", (LINKS + 2,)),
                         SENSORS: Feature("float32", (LINKS + 2,)), "action": Feature("float32", (LINKS,))}

    def reset(self, which, key):
        drawn = uniform(key, torch.zeros_like(key), (1,), stream=9)[:, 0]
        self.failed = put(self.failed, which, (drawn * (self.links + 2)).long())
        return self._observed(self.env.reset(which, key), self.failed)

    def step(self, action):
        out = self.env.step(action[:, : self.links])
        return replace(out, obs=self._observed(out.obs, self.failed))

    def _observed(self, obs, failed):
        return {**obs, **padded_columns(obs[STATE], self.links, failed if self.dead else None)}


def padded_columns(state: torch.Tensor, links: int, failed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The padded state and its flags, (rows, 6) each."""
    own = [*range(links), LINKS, LINKS + 1]
    padded, flags = (state.new_zeros(len(state), LINKS + 2) for _ in range(2))
    flags[:, own] = 1
    if failed is not None:
        flags[torch.arange(len(state)), torch.tensor(own)[failed]] = 0
    padded[:, own] = state
    return {STATE: padded * flags, SENSORS: flags}


def padded_episode(episode: Episode, links: int) -> Episode:
    """A recorded episode with the columns of `ArmSensors`, without a failure."""
    state = torch.from_numpy(np.array(episode.steps[STATE]))
    padded = {k: v.numpy() for k, v in padded_columns(state, links, None).items()}
    action = np.asarray(episode.steps["action"])
    padded["action"] = np.concatenate([action, np.zeros((len(action), LINKS - links), action.dtype)], 1)
    episode = episode.replace(padded)
    features = {k: Feature("float32", v.shape[1:]) for k, v in padded.items()}
    return replace(episode, schema={**episode.schema, **features})


@dataclass(frozen=True)
class ArmDemonstrations(DemonstrationSource):
    """Demonstrations of several arms to pretrain on, and few of another one. All reach."""

    n_prior: int = 100  # of each arm
    n_task: int = 10
    probe_sizes = {"n_prior": 20}

    @cached_load
    def load(self, seed):
        demonstrations = []
        for part, names, episodes in (("prior", BODIES, self.n_prior), ("task", (NEW_BODY,), self.n_task)):
            for i, arm in enumerate(names):
                env = FrontArm(min(episodes, 25), arm=arm)
                rollouts = rollout(env.expert(), env, episodes, recording_seed(seed), first=1000 * i)
                same = (padded_episode(e, len(ARMS[arm])) for e in rollouts)
                demonstrations += [replace(e, metadata={**e.metadata, "dataset": part}) for e in same]
        return Dataset(demonstrations)


@dataclass(frozen=True)
class Adaptation:
    """A policy for the new arm, on a transformer that was trained on the others.

    Args:
        method: The method with its stage.
        is_permuted: The components exchange their embeddings before the adaptation, in random order.
    """

    method: Method
    is_permuted: bool = False


def pretrained_method(level: Level = "component", objective: str = "masked", adapt: str = "full") -> Method:
    """Both levels have the same networks, number of steps in a window, batches and numbers of updates."""
    encoder = ComponentTokenEncoder(WIDTH, DEPTH, 4, level, causal=objective == "next", flags=((STATE, SENSORS),))
    policy = PolicyConfig(Regression(), FeedForward((128,)), encoder, Normalizer(unscaled=(SENSORS,)), Window(2, 1),
                          inputs=("observation.last_action", STATE, SENSORS, TARGET))
    loss = NextTokenPrediction() if objective == "next" else MaskedTokenPrediction(FRACTION)
    pretraining = RepresentationLearning((loss,), PRETRAINING_STEPS, BATCH, optimizer=OPTIMIZER, ema=EMA)
    stage = Stage("encoder", Method(policy, RecedingHorizon(1), pretraining, (LastAction(),)))
    load = ("codec",) if adapt == "scratch" else ("codec", "encoder")
    adapted = InitializeFrom(FromStage("encoder"), load, () if adapt == "probing" else load)
    return replace(stage.method, learner=BehaviorCloning(STEPS, BATCH, OPTIMIZER, ema=EMA), stages=(stage,),
                   initialize_from=(adapted,))


def adapted_arm(name: str, *options) -> Arm:
    return Arm(name, (Adaptation(pretrained_method(*options)),))


def adapted_success(
    experiment, option: Adaptation, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains the transformer and the policy, and rolls the policy out.

    Returns:
        "success" of each episode with all sensors, and "failed sensor": success of each with one that has failed.
    """
    prior, task = (data.filter(lambda e, part=part: e.metadata["dataset"] == part) for part in ("prior", "task"))
    stage = train_once(experiment, option.method.stages[0].method, prior, seed)
    if option.is_permuted:
        stage = replace(stage, modules={"policy": with_permuted_embeddings(stage.policy, seed)})
    trained = fit_method(option.method, task, seed, stages={"encoder": stage})
    rows = min(ROWS, episodes)
    actor = build_actor(trained.method, trained.modules, rows)
    measures = {}
    for name, dead in (("success", False), ("failed sensor", True)):
        rollouts = rollout(actor, ArmSensors(FrontArm(rows, arm=NEW_BODY), dead), episodes, seed=starts)
        measures[name] = [float(e.metadata["success"]) for e in rollouts]
    return measures


def with_permuted_embeddings(policy: Policy, seed: int) -> Policy:
    """A copy of a policy whose components have each other's embeddings."""
    policy = deepcopy(policy)
    net = policy.encoder
    assert isinstance(net, ComponentTokenNet)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(net.n_components))
    with torch.no_grad():
        for weights in (net.value_embedding, net.presence_embedding, net.component_embedding):
            weights.copy_(weights[order])
    return policy


def with_permuted_components(experiment: Experiment) -> Experiment:
    """The components of pretrained encoders with a token for each number exchange their embeddings."""
    return experiment.change_options(lambda o: replace(o, is_permuted=True), "component")


REACH = Experiment(
    ArmDemonstrations(),
    "planar_arms",
    (
        adapted_arm("component"),
        adapted_arm("modality", "modality"),
        adapted_arm("scratch", "component", "masked", "scratch"),
        adapted_arm("component, next token", "component", "next"),
        adapted_arm("component, probing", "component", "masked", "probing"),
        adapted_arm("modality, probing", "modality", "masked", "probing"),
    ),
    adapted_success,
    seeds=(2400, 2401, 2402, 2403, 2404),
    episodes=200,
    measures=(("failed sensor", RATE),),
    starts_seed=2400,
    sanity=(("modality", "success", 0.6), ("component", "success", 0.4)),
)
FAILED_SENSOR = GreaterThan("failed sensor", "component", "modality")
FEW_DEMONSTRATIONS = GreaterThan("success", "component", "scratch")

CLAIM = Claim(
    name="component-tokens",
    rows=("024",),
    parts=(
        ClaimPart("few demonstrations", REACH, AllOf((FAILED_SENSOR, FEW_DEMONSTRATIONS))),
        ClaimPart("objectives", REACH, EquivalentTo("success", "component", "component, next token", 0.1),
                  is_decisive=False),
        ClaimPart("probing", REACH, GreaterThan("failed sensor", "component, probing", "modality, probing"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(
        with_permuted_components, "few demonstrations", removes=(FAILED_SENSOR, FEW_DEMONSTRATIONS)
    ),
)
