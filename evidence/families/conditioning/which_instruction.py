"""How to tell a policy what to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from evidence.measures import deployed_actor, flags
from evidence.worlds.curation import cached_load
from evidence.worlds.zone_table import (
    BLOCKS,
    GOAL,
    MISSION,
    N_BLOCKS,
    OBJECTS,
    STATE,
    WORDS,
    InstructedTable,
    MovedBlocks,
    objects_from,
)
from understudy.checkpoint import FromStage
from understudy.core import Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.segments import CutSegments
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import Hierarchical
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from understudy.learn.cloning.attention_supervision import AttentionSupervision
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Encoder
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.object_attention import ObjectAttentionEncoder
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side
EVENT, NUMBER = "event", "block"  # of each step: what the words of the event say, and which block they name


@dataclass(frozen=True)
class AnnotatedRuns(DemonstrationSource):
    """Runs of two events in play, in which two blocks were moved once, with labels: a sentence for the run, and one for
    each of its events.

    Args:
        episodes: Number of episodes of play, of 300 steps.
        n_runs: Number of runs that are labeled, and of which all arms learn.
    """

    episodes: int
    n_runs: int

    @cached_load
    def load(self, seed):
        env = InstructedTable(min(ROWS, self.episodes), 300, n_named=0)
        play = rollout(env.expert(), env, self.episodes, recording_seed(seed))
        runs = CutSegments(MovedBlocks(2), 2).apply(play)
        chosen = np.random.default_rng(seed).permutation(len(runs))[:self.n_runs]
        return Dataset([annotate(run) for run in runs.select(chosen)])


def annotate(run: Episode) -> Episode:
    """A run with its sentence, and the words of the present event at each step."""
    n, events = len(run), MovedBlocks().detect(run)
    current = np.searchsorted([e.stop for e in events[:-1]], np.arange(n + 1), "right")
    words = np.array([zones_named(e.task) for e in events])[current]
    columns = {MISSION: np.tile(zones_named(run.metadata["task"]), (n + 1, 1)), WORDS: words, EVENT: words[:-1],
               NUMBER: words[:-1].argmax(1, keepdims=True),
               OBJECTS: objects_from(run.steps[STATE], run.steps[BLOCKS].reshape(-1, N_BLOCKS, 2))}
    number = Feature("int64", (1,), "discrete", num_classes=(N_BLOCKS,))
    schema = {**run.schema, NUMBER: number, **dict.fromkeys((MISSION, WORDS, EVENT), InstructedTable().features[GOAL])}
    return replace(run.replace(columns), schema=schema)


def zones_named(task: str) -> list[int]:
    return list(map(int, task.split()))


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success", 0 or 1 per start."""
    actor = deployed_actor(experiment, method, data, seed, ROWS)
    return flags(rollout(actor, make(experiment.env, rows=ROWS, trust=TRUSTED), episodes, seed=starts))


STEPS, BATCH, OPTIMIZER, HEAD = 1500, 128, OptimizerConfig(lr=3e-3), GMM(3, min_std=0.3)
TOKENS, WHOLE, HALF = TokenEncoder(32), MLP(128, 2), MLP(88, 2)  # of the parameters of the trunk


def cloning(*inputs: str, encoder: Encoder = TOKENS, transforms: tuple[Operation, ...] = (),
            losses: tuple[AuxiliaryLoss, ...] = (), **policy) -> Method:
    """The same head, trunk and updates. Arms differ in what tells them what to do."""
    config = PolicyConfig(HEAD, WHOLE, encoder, inputs=(*inputs, STATE, BLOCKS), **policy)
    learner = BehaviorCloning(STEPS, BATCH, OPTIMIZER, auxiliary_losses=losses)
    return Method(config, RecedingHorizon(), learner, transforms)


def thoughts(trunk: MLP, steps: int) -> Method:
    """One policy reads the sentence of the run and says which event it is in, and another one reads this and acts.

    Args:
        trunk: Network of each of them.
        steps: Updates of each of them.
    """
    say = PolicyConfig(Categorical(), trunk, TOKENS, target=EVENT, inputs=(MISSION, STATE, BLOCKS))
    act, learner = cloning(WORDS), BehaviorCloning(steps, BATCH, OPTIMIZER)
    return replace(act, policy=replace(act.policy, trunk=trunk), learner=learner,
                   stages=(Stage("thoughts", Method(say, learner=learner)),),
                   inference=(Hierarchical(FromStage("thoughts"), as_key=WORDS),))


@dataclass(frozen=True)
class ExchangedBlocks(Operation):
    """Gives each run the labels of blocks of the next one, stretched to its length."""

    def apply(self, data):
        return Dataset([self._exchanged(e, data[(i + 1) % len(data)]) for i, e in enumerate(data)], data.metadata)

    def _exchanged(self, episode, other):
        numbers = np.asarray(other.steps[NUMBER])[np.arange(len(episode)) * len(other) // len(episode)]
        return replace(episode.replace({NUMBER: numbers}), schema=episode.schema)


def attention(*operations: Operation) -> Method:
    """The sentence attends to one of the blocks, and labels say to which."""
    return cloning(MISSION, OBJECTS, encoder=ObjectAttentionEncoder(OBJECTS, MISSION, encoder=TOKENS),
                   losses=(AttentionSupervision(NUMBER),), codec=Normalizer(unscaled=(OBJECTS,)),
                   transforms=operations)


TABLE = Experiment(
    AnnotatedRuns(100, 400), env=f"{InstructedTable.__module__}:InstructedTable", measure=success, first_seed=1200,
    episodes=300, levels={"one sentence": 0.3, "live speaker": 0.8}, arms={
        "one sentence": cloning(MISSION),
        "attention": attention(),
        "thought cloning": thoughts(HALF, STEPS // 2),
        "thought cloning, twice the updates": thoughts(WHOLE, STEPS),
        "live speaker": cloning(WORDS),
        "exchanged labels": attention(ExchangedBlocks())})
