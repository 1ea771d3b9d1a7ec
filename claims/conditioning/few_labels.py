"""Row 375: do goals from play teach a policy to follow words, if few episodes have words?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from claims.worlds.curation import cached_load
from claims.worlds.named_places import (
    N_PLACES,
    RATE_COLUMN,
    ROWS,
    STATE,
    TARGET,
    TASK,
    NamedPlaces,
)
from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.data.augment import ModalityDropout
from understudy.data.column_changes import OptionalColumn
from understudy.data.episode import Dataset
from understudy.data.window import Goal, Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.denoising.edm import EDM
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from understudy.learn.method import Method, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.mdt import ContrastiveAlignment, Foresight, GoalEncoder
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig


@dataclass(frozen=True)
class LabeledPlay(DemonstrationSource):
    """Successful episodes of the expert, of which few have words.

    Args:
        episodes: Number of episodes to roll out.
        per_place: Number of episodes with words for each place.
        shuffled: The words are exchanged between the episodes that have them, so that all are wrong.
    """

    episodes: int
    per_place: int = 1
    shuffled: bool = False

    @cached_load
    def load(self, seed):
        env = NamedPlaces(ROWS)
        demonstrations = list(rollout(env.expert(), env, self.episodes, recording_seed(seed)).filter(
            lambda e: e.metadata["success"]))
        words = np.array([e.steps[TASK][0] for e in demonstrations])
        labeled = np.concatenate([np.flatnonzero(words[:, 0] == p)[:self.per_place] for p in range(N_PLACES)])
        if self.shuffled:
            words[labeled] = words[np.roll(labeled, np.random.default_rng(seed).integers(1, len(labeled)))]
        has_words = np.isin(np.arange(len(demonstrations)), labeled)
        steps = np.array([len(e) for e in demonstrations])
        rate = np.where(has_words, 0.5 / steps[has_words].sum(), 0.5 / steps[~has_words].sum())
        return Dataset([e.replace({TASK: np.tile(words[i], (len(e) + 1, 1)),
                                   TASK + "?": np.full(len(e) + 1, has_words[i]),
                                   RATE_COLUMN: np.full((len(e), 1), rate[i], np.float32)})
                        for i, e in enumerate(demonstrations)])


@dataclass(frozen=True)
class TrainedOn:
    """A method, and whether it learns from the episodes with words alone."""

    method: Method
    labeled_only: bool = False


def prompted_success(experiment, option: TrainedOn, data: Dataset, seed: int, episodes: int, starts: int
                     ) -> dict[str, list[float]]:
    """Trains a method and prompts it.

    Returns:
        0 or 1 per start: "success" if words name the place, and "goal success" if its position is the goal.
    """
    if option.labeled_only:
        data = data.filter(lambda e: bool(e.steps[TASK + "?"][0]))
    policy = train_policy(experiment, option.method, data, seed)
    actor, measures = build_actor(option.method, {"policy": policy}, ROWS), {}
    for name, by_goal in (("success", False), ("goal success", True)):
        if TARGET in policy.inputs or not by_goal:
            env = NamedPlaces(ROWS, by_goal=by_goal, **dict(experiment.env_options))
            measures[name] = [float(e.metadata["success"]) for e in rollout(actor, env, episodes, seed=starts)]
    return measures


def goals_arm(name: str, losses: tuple[AuxiliaryLoss, ...] = (), goals: bool = True) -> Arm:
    """The same head, trunk and updates. Arms differ in what they learn from, and in their auxiliary losses."""
    inputs = (TARGET, TASK) if goals else (TASK,)
    policy = PolicyConfig(
        EDM(5, sigma_min=0.05, sigma_max=1.0, log_sigma_mean=-0.69, log_sigma_std=0.9), MLP(128, 1),
        GoalEncoder(inputs, TokenEncoder(64)), augmentations=(ModalityDropout(inputs),),
        window=Window(1, 4, goals=(Goal(STATE, into=TARGET, discount=0.9),) if goals else ()))
    learner = BehaviorCloning(UPDATES, 128, OptimizerConfig(lr=3e-3), sampling_column=RATE_COLUMN,
                              auxiliary_losses=losses)
    transforms = (OptionalColumn(TARGET, like=STATE),) if goals else ()
    return Arm(name, (TrainedOn(Method(policy, RecedingHorizon(4), learner, transforms), labeled_only=not goals),))


SHOWN, UPDATES = 400, 700
ALIGNMENT, FORESIGHT = ContrastiveAlignment(TARGET, TASK), Foresight(STATE)
ARMS = (
    goals_arm("MDT", (ALIGNMENT, FORESIGHT)),
    goals_arm("goals and words", ()),
    goals_arm("words alone", (), goals=False),
)
PLAY = Experiment(
    LabeledPlay(SHOWN),
    "named_places",
    ARMS,
    prompted_success,
    seeds=tuple(range(750, 758)),
    episodes=400,
    measures=(("goal success", RATE),),
    starts_seed=750,
    looks=((4, 0.02), (8, 0.03)),
    sanity=(("words alone", "success", 0.2), ("goals and words", "goal success", 0.9)),
)
LOSSES = replace(PLAY, seeds=PLAY.seeds[:5], looks=(), sanity=(), arms=(  # the first of these cells are the same
    *ARMS[:2], goals_arm("alignment", (ALIGNMENT,)), goals_arm("foresight", (FORESIGHT,))))


def with_wrong_words(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffled=True), sanity=())


OVER_WORDS = GreaterThan("success", "MDT", "words alone", 0.2)
OVER_SHARED = GreaterThan("success", "MDT", "goals and words")

CLAIM = Claim(
    name="few-labels",
    rows=("375",),
    parts=(
        ClaimPart("words", PLAY, AllOf((OVER_WORDS, OVER_SHARED))),
        ClaimPart("alignment alone", LOSSES, GreaterThan("success", "alignment", "goals and words"),
                  is_decisive=False),
        ClaimPart("foresight alone", LOSSES, GreaterThan("success", "foresight", "goals and words"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(with_wrong_words, "words", removes=(OVER_WORDS, OVER_SHARED)),
)
