"""Row 169: does a trunk that was trained without tasks, and then frozen, learn tasks from few demonstrations?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load
from claims.worlds.named_places import N_PLACES, PLACES, RATE_COLUMN, STATE, TASK, NamedPlaces
from understudy.checkpoint import FromStage
from understudy.claims.base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.core import Feature, normal, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.envs.toy import distance
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage, build_actor
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import ForwardDynamics, InverseDynamics, MaskedPrediction
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.methods.representation.dualmind import PromptedEncoder
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
VIEW, LABELED = "observation.view", "labeled"
CLUTTER, SIZE = 8, 64  # what moves in the view besides the point; components of the view
NEAR = 0.25  # m: as near as this is at a place


class CrowdedPlaces(NamedPlaces):
    """`NamedPlaces` with a view in which other things move too.

    observation.view (10): the position of the point, and eight other numbers from -1 to 1, each of which swings at its
    own rate. A place is reached within 0.25 m. The rest is as in `NamedPlaces`, without the position as a goal.
    simulator.state also has the phases and rates of the other numbers.

    Args:
        limit: Number of steps of an episode.
    """

    def __init__(self, rows: int = 1, limit: int = 30):
        super().__init__(rows, limit)
        self.features = {**self.features, VIEW: Feature("float32", (2 + CLUTTER,)),
                         "simulator.state": Feature("float32", (1 + 2 * CLUTTER,))}

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (2 * CLUTTER,), stream=3).numpy().astype(np.float32)
        return {**super().initial_state(key), "phase": np.float32(2 * np.pi) * drawn[:, :CLUTTER],
                "rate": np.float32(0.6) * (drawn[:, CLUTTER:] - np.float32(0.5))}

    def observe(self):
        s = self.state
        around = np.sin(s["phase"])
        hidden = [s["place"][:, None].astype(np.float32), s["phase"], s["rate"]]
        return {**super().observe(), VIEW: np.concatenate([s["at"], around], 1),
                "simulator.state": np.concatenate(hidden, 1)}

    def state_from_columns(self, steps):
        phase, rate = np.split(steps["simulator.state"][:, 1:], 2, 1)
        return {**super().state_from_columns(steps), "phase": phase, "rate": rate}

    def advance(self, action):
        s = self.state
        s["phase"] = s["phase"] + s["rate"]
        super().advance(action)
        success = distance(s["at"], PLACES[s["place"]]) < NEAR
        return success, success, np.zeros_like(success)

    def expert(self):
        return StraightWalker()


@dataclass(frozen=True)
class StraightWalker(CountingActor):
    """Goes straight to the named place.

    Args:
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    noise: float = 0.2

    def act(self, obs, state):
        ahead = torch.from_numpy(PLACES)[obs[TASK][:, 0]] - obs[STATE]
        action = ahead / ahead.norm(dim=1, keepdim=True).clamp(min=0.1)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}


def seen_places(rows: int) -> RandomFeatureObs:
    """The environment, whose view is seen through a fixed random network."""
    return RandomFeatureObs(CrowdedPlaces(rows), SIZE, VIEW, scale=1.5)


@dataclass(frozen=True)
class PlayAndDemonstrations(DemonstrationSource):
    """Successful episodes of the expert. Most have no words and are called "play".

    Args:
        play: Number of episodes without words.
        per_place: Number of demonstrations for each place, which have words.
    """

    play: int = 300
    per_place: int = 5
    probe_sizes = {"play": 50}

    @cached_load
    def load(self, seed):
        env, n = seen_places(ROWS), 80 + 2 * N_PLACES * self.per_place
        rollouts = rollout(CrowdedPlaces().expert(), env, self.play + n, recording_seed(seed))
        demonstrations = [e for e in rollouts if e.metadata["success"]]
        play, remaining = demonstrations[:self.play], demonstrations[self.play:]
        words = np.array([e.steps[TASK][0, 0] for e in remaining])
        few = [remaining[i] for place in range(N_PLACES) for i in np.flatnonzero(words == place)[:self.per_place]]
        assert len(few) == N_PLACES * self.per_place, "there are too few demonstrations of a place"
        return Dataset([_marked(e, some is few, 0.5 / sum(map(len, some))) for some in (play, few) for e in some])


def _marked(episode: Episode, has_words: bool, rate: float) -> Episode:
    """An episode with columns that say whether it has words, and how often its steps are drawn if all sets are."""
    n = len(episode)
    new_columns = {TASK + "?": np.full(n + 1, has_words), LABELED: np.full((n, 1), has_words, np.float32),
                   RATE_COLUMN: np.full((n, 1), rate, np.float32)}
    if not has_words:
        new_columns[TASK] = np.zeros_like(episode.steps[TASK])
    return episode.replace(new_columns)


@dataclass(frozen=True)
class TwoPhaseMethod:
    """How a policy learns from play and few demonstrations.

    Args:
        first: Updates of the trunk on play. If 0, a trunk that is taken over is random.
        second: Updates on the demonstrations.
        trunk: What the second phase does with the trunk of the first: keep it "frozen", or "train" it too. "new" trains
            another one in its place, on the demonstrations. "all" does so on all episodes, half of each batch without
            words. "joint" also does, and adds the losses of the first phase, which alone see the steps without words.
        is_shuffled: The observations of each episode of play are in random order.
    """

    first: int
    second: int
    trunk: Literal["frozen", "train", "new", "all", "joint"] = "frozen"
    is_shuffled: bool = False

    @property
    def uses_all(self) -> bool:
        """Whether the policy learns from the episodes without words, too."""
        return self.trunk in ("all", "joint")

    @property
    def method(self) -> Method:
        """The method, with the first phase as its stage."""
        learner = BehaviorCloning(self.second, BATCH, OPTIMIZER)
        if self.uses_all:
            learner = replace(learner, sampling_column=RATE_COLUMN)
        if self.trunk == "joint":
            learner = replace(learner, auxiliary_losses=OBJECTIVES, sample_weights=ColumnWeights(LABELED, 1.0, 0.0))
        method = Method(POLICY, RecedingHorizon(2), learner)
        if self.trunk not in ("frozen", "train"):
            return method
        bare = replace(POLICY, encoder=replace(ENCODER, prompted=False))
        first = RepresentationLearning(OBJECTIVES, self.first, BATCH, optimizer=OPTIMIZER)
        trained = ("encoder.trunk",) if self.trunk == "train" else ()
        taken = InitializeFrom(FromStage("trunk"), ("codec", "encoder.trunk"), trained)
        return replace(method, stages=(Stage("trunk", Method(bare, learner=first)),), initialize_from=(taken,))


def success_by_words(experiment, option: TwoPhaseMethod, data: Dataset, seed: int, episodes: int, starts: int
                     ) -> dict[str, list[float]]:
    """Trains in both phases and rolls out with words. "success" of each start."""
    play = data.filter(lambda e: not e.steps[TASK + "?"][0])
    few = data.filter(lambda e: bool(e.steps[TASK + "?"][0]))
    stages = {s.name: fit_method(s.method, shuffled_in_time(play, seed) if option.is_shuffled else play, seed)
              for s in option.method.stages}
    trained = fit_method(option.method, data if option.uses_all else few, seed, stages=stages)
    rows = min(ROWS, episodes)
    rollouts = rollout(build_actor(trained.method, trained.modules, rows), seen_places(rows), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts]}


def shuffled_in_time(data: Dataset, seed: int) -> Dataset:
    """The observations of each episode in random order."""
    def shuffled(number: int, episode: Episode) -> Episode:
        order = np.random.default_rng([seed, number]).permutation(len(episode) + 1)
        return episode.replace({VIEW: np.asarray(episode.steps[VIEW])[order]})
    return Dataset([shuffled(number, episode) for number, episode in enumerate(data)])


FIRST, SECOND, BATCH, OPTIMIZER = 700, 300, 128, OptimizerConfig(lr=3e-3)
OBJECTIVES = (ForwardDynamics(hidden=(128,)), InverseDynamics(trunk=FeedForward((128,))),
              MaskedPrediction(trunk=FeedForward((128,))))
ENCODER = PromptedEncoder(TASK, encoder=TokenEncoder(64), depth=2)
POLICY = PolicyConfig(Regression(), FeedForward((64,)), ENCODER, window=Window(1, 4), inputs=(VIEW, TASK, TASK + "?"))
DUAL = Arm("dual", (TwoPhaseMethod(FIRST, SECOND),))
CLONING = Arm("cloning", (TwoPhaseMethod(0, FIRST + SECOND, "new"),))
CLONING_ALL = Arm("cloning, all episodes", (TwoPhaseMethod(0, FIRST + SECOND, "all"),))
FEW = Experiment(
    PlayAndDemonstrations(),
    "crowded_places",
    (DUAL, Arm("random trunk", (TwoPhaseMethod(0, FIRST + SECOND),)), CLONING, CLONING_ALL),
    success_by_words,
    seeds=tuple(range(1690, 1700)),
    episodes=400,
    starts_seed=1690,
    sanity=(("dual", "success", 0.6), ("cloning", "success", 0.4), ("random trunk", "success", 0.2)),
)
SHORT = replace(FEW, seeds=FEW.seeds[:5], sanity=())  # its cells of the arms above are the same
OTHERS = replace(SHORT, arms=(
    DUAL,
    CLONING,
    Arm("fine-tuning", (TwoPhaseMethod(FIRST, SECOND, "train"),)),
    Arm("joint", (TwoPhaseMethod(0, FIRST + SECOND, "joint"),)),
))
MANY = replace(SHORT, source=PlayAndDemonstrations(per_place=40), arms=(DUAL, CLONING))


def with_shuffled_play(experiment: Experiment) -> Experiment:
    return replace(experiment.change_options(lambda o: replace(o, is_shuffled=True), "dual"), sanity=())


OVER_RANDOM = GreaterThan("success", "dual", "random trunk", 0.1)
OVER_CLONING = GreaterThan("success", "dual", "cloning")
OVER_ALL = GreaterThan("success", "dual", "cloning, all episodes")

CLAIM = Claim(
    name="dual-phase",
    rows=("169",),
    parts=(
        ClaimPart("few demonstrations", FEW, AllOf((OVER_RANDOM, OVER_CLONING, OVER_ALL))),
        ClaimPart("fine-tuning", OTHERS, GreaterThan("success", "fine-tuning", "cloning"), is_decisive=False),
        ClaimPart("one phase", OTHERS, GreaterThan("success", "dual", "joint"), is_decisive=False),
        ClaimPart("many demonstrations", MANY, GreaterThan("success", "dual", "cloning", -0.05), is_decisive=False),
    ),
    negative_control=NegativeControl(with_shuffled_play, "few demonstrations", removes=(OVER_RANDOM,)),
)
