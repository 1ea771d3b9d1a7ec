"""Row 272: do policies that learn to think aloud learn from fewer demonstrations, and carry over to new missions?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature
from understudy.data.column_changes import ColumnChange
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.text_columns import ThoughtText
from understudy.envs.toys.gridworld_tasks import ORDERS, GridworldTasks, parse_missions
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from understudy.learn.method import Method, build_actor
from understudy.learn.objectives.class_prediction import ClassPrediction
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.reasoning.thought_cloning import thought_cloning
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.text_encoder import ByteEncoder
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
TASK, ORDER, THOUGHT = "observation.task", "observation.order", "thought"
INPUTS = (ORDER, "observation.state", "observation.environment_state")
THOUGHTS = np.array(("get key", "open door", "get ball", "fill pad"))  # of each stage
LONGEST = 9  # bytes of a thought
SEEN, UNSEEN = (0, 2, 3, 5), (1, 4)  # missions of the demonstrations, and others
STEPS, THOUGHT_STEPS = 2000, 400
WIDTH, THOUGHT_WIDTH, EQUAL_WIDTH = 128, 64, 400


@dataclass(frozen=True)
class ThinkingExpert(DemonstrationSource):
    """Successful demonstrations of four missions. The expert says at each step which stage it works on.

    Args:
        episodes: Number of episodes to roll out.
    """

    episodes: int

    def load(self, seed):
        env = GridworldTasks(ROWS, missions=SEEN)
        rollouts = rollout(env.expert(), env, self.episodes, recording_seed(seed))
        return Dataset([think_aloud(e) for e in rollouts if e.metadata["success"]])


def think_aloud(episode: Episode) -> Episode:
    """The episode with the thought of each step."""
    stage = np.asarray(episode.steps["simulator.subgoal"])[: len(episode), 0]
    return episode.replace({THOUGHT: THOUGHTS[stage]})


@dataclass(frozen=True)
class MissionOrder(ColumnChange):
    """Adds the stages of the mission in their order, (T+1, 4) classes, in place of its words."""

    def __call__(self, episode):
        feature = Feature("int64", (4,), "discrete", num_classes=(4,) * 4)
        episode = episode.replace({ORDER: np.array(ORDERS)[parse_missions(np.asarray(episode.steps[TASK]))]})
        return replace(episode, schema={**episode.schema, ORDER: feature})

    def step(self, obs, last, state):
        return {ORDER: torch.tensor(ORDERS)[torch.from_numpy(parse_missions(obs[TASK].numpy()))]}, state


@dataclass(frozen=True)
class ExchangedThoughts(Operation):
    """Gives each episode the thoughts of the next one, stretched to its length."""

    def apply(self, data):
        return Dataset([e.replace({THOUGHT: stretch_to(data[(i + 1) % len(data)].steps[THOUGHT], len(e))})
                        for i, e in enumerate(data)], data.metadata)


def stretch_to(column: np.ndarray, length: int) -> np.ndarray:
    return np.asarray(column)[np.arange(length) * len(column) // length]


def done_in_order(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                  ) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        One value per start. "seen" and "unseen": 0 or 1, whether a mission was done that was demonstrated, and one that
        was not. "change": the second minus the first.
    """
    trained = train_once(experiment, method, data, seed)
    rows = min(ROWS, episodes)
    actor = build_actor(trained.method, trained.modules, rows, features=trained.features)
    measures = {}
    for name, missions in (("seen", SEEN), ("unseen", UNSEEN)):
        rollouts = rollout(actor, GridworldTasks(rows, missions=missions), episodes, seed=starts)
        measures[name] = [float(e.metadata["success"]) for e in rollouts]
    return {**measures, "change": [b - a for a, b in zip(measures["seen"], measures["unseen"], strict=True)]}


def clone_thoughts(*operations: Operation) -> Method:
    """Thought cloning with small networks and few updates."""
    method = thought_cloning(THOUGHT, LONGEST, WIDTH, features=GridworldTasks().features)
    (stage,) = method.stages
    think = replace(stage.method.policy, trunk=FeedForward((THOUGHT_WIDTH,) * 2), encoder=ENCODER, inputs=INPUTS)
    thinking = replace(stage.method, policy=think, learner=learner(THOUGHT_STEPS),
                       transforms=(*operations, MissionOrder(), *stage.method.transforms))
    act = replace(method.policy, encoder=ENCODER, inputs=(*INPUTS, ThoughtText().into))
    return replace(method, policy=act, learner=learner(STEPS - THOUGHT_STEPS),
                   transforms=(*operations, MissionOrder(), *method.transforms),
                   stages=(replace(stage, method=thinking),))


def clone_actions(width: int, *auxiliary_losses: AuxiliaryLoss) -> Method:
    """Behavior cloning, with or without a prediction of thoughts that nothing reads."""
    policy = PolicyConfig(Categorical(temperature=1.0), FeedForward((width, width)), ENCODER, inputs=INPUTS)
    thoughts = (ThoughtText(THOUGHT, LONGEST, "thought.text"),) if auxiliary_losses else ()
    return Method(policy, RecedingHorizon(), replace(learner(STEPS), auxiliary_losses=auxiliary_losses),
                  (MissionOrder(), *thoughts))


def learner(steps: int) -> BehaviorCloning:
    return BehaviorCloning(steps, 64, OptimizerConfig(lr=2e-3, warmup_steps=100))


def with_exchanged_thoughts(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(Arm("thoughts", (clone_thoughts(ExchangedThoughts()),)))


ENCODER = TokenEncoder(32, text=ByteEncoder(16))
UNREAD = ClassPrediction("thought.text", (256,) * LONGEST, FeedForward((THOUGHT_WIDTH,)), 2.0, "hidden", (1, WIDTH))
MISSIONS = Experiment(
    ThinkingExpert(150),
    "gridworld_tasks",
    (
        Arm("thoughts", (clone_thoughts(),)),
        Arm("actions", (clone_actions(EQUAL_WIDTH),)),
        Arm("unread thoughts", (clone_actions(WIDTH, UNREAD),)),
    ),
    done_in_order,
    tuned_by="seen",
    seeds=tuple(range(720, 728)),
    episodes=100,
    measures=(("seen", RATE), ("unseen", RATE), ("change", Measure("real", "rate"))),
    starts_seed=720,
    looks=((5, 0.02), (8, 0.03)),
    sanity=(("thoughts", "seen", 0.5), ("actions", "seen", 0.4), ("unread thoughts", "seen", 0.4)),
)
MORE = replace(MISSIONS, source=ThinkingExpert(300), arms=MISSIONS.arms[:2], seeds=MISSIONS.seeds[:5], looks=(),
               sanity=())
OVER_ACTIONS = GreaterThan("seen", "thoughts", "actions", 0.05)
OVER_UNREAD = GreaterThan("seen", "thoughts", "unread thoughts", 0.05)
GROWS = GreaterThan("change", "thoughts", "actions")
UNSEEN_RULES = GreaterThan("unseen", "thoughts", "actions"), GreaterThan("unseen", "thoughts", "unread thoughts")

CLAIM = Claim(
    name="thought-cloning",
    rows=("272",),
    parts=(
        ClaimPart("150 demonstrations", MISSIONS, AllOf((OVER_ACTIONS, OVER_UNREAD, GROWS))),
        ClaimPart("unseen missions", replace(MISSIONS, looks=(), seeds=MISSIONS.seeds[:5]), AllOf(UNSEEN_RULES),
                  is_decisive=False),
        ClaimPart("300 demonstrations", MORE, GreaterThan("seen", "thoughts", "actions"), is_decisive=False),
    ),
    negative_control=NegativeControl(
        with_exchanged_thoughts, "150 demonstrations", removes=(OVER_ACTIONS, OVER_UNREAD)
    ),
)
