"""Row 375: do goals from play teach a policy to follow words, if few episodes have words?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core import Feature, normal, uniform
from ..data.augment import ModalityDropout
from ..data.episode import Dataset
from ..data.relabel import OptionalColumn
from ..data.window import Goal, Window
from ..envs.toy import Toy, distance, named_vector
from ..evaluate.evaluation import recording_seed
from ..evaluate.rollout import rollout
from ..execute.actor import Actor
from ..execute.chunking import RecedingHorizon
from ..heads.edm import EDM
from ..learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ..learn.goal_losses import ContrastiveAlignment, Foresight
from ..learn.method import Method, build_actor
from ..learn.optimizer import OptimizerConfig
from ..nets.encoders import TokenEncoder
from ..nets.goal_encoder import GoalEncoder
from ..nets.mlp import MLP
from ..policy import PolicyConfig
from .base import (
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
from .curation import cached_load
from .measures import train_policy

ROWS, N_PLACES = 100, 8  # environments side by side; places on a circle
STATE, TASK, TARGET, RATE_COLUMN = "observation.state", "observation.task", "observation.goal", "sampling_rate"
ANGLES = 2 * np.pi * np.arange(N_PLACES) / N_PLACES
PLACES, RADIUS = 0.8 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32), 0.12  # m


class NamedPlaces(Toy):
    """A point goes from anywhere to the one of eight places on a circle that a word names.

    observation.state (2): position, m, from -1 to 1. observation.task (1): the word, a class. observation.task? (1):
    whether it is given. observation.goal (2): position of the place, if `by_goal`. simulator.state (1): number of the
    place. action (2): velocity, m/s, clipped to [-1, 1]. A step is 0.1 s. Reaching the place ends the episode with
    success.

    Best possible success: 1.0. `Expert(noise=0)` attains it.

    Args:
        rows: Number of copies.
        limit: Number of steps of an episode.
        by_goal: The place is given by its position and not by its word.
    """

    state_columns = (STATE, "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 30, by_goal: bool = False):
        self.by_goal = by_goal
        at = named_vector("x", "y", unit="m")
        self.features = {STATE: at, TASK: Feature("int64", (1,), "discrete", num_classes=(N_PLACES,)),
                         TASK + "?": Feature("bool", ()), "simulator.state": named_vector("place"),
                         "action": named_vector("x", "y", unit="m/s")}
        if by_goal:
            self.features[TARGET] = at
        self.metadata = {"env": "named_places", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": f"within {RADIUS} m of the place that is named"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (3,)).numpy()
        return {"at": (2 * drawn[:, :2] - 1).astype(np.float32), "place": (N_PLACES * drawn[:, 2]).astype(np.int64)}

    def observe(self):
        place = self.state["place"]
        goal = {TARGET: PLACES[place]} if self.by_goal else {}
        return {STATE: self.state["at"], TASK: place[:, None], TASK + "?": np.full(self.rows, not self.by_goal),
                "simulator.state": place[:, None].astype(np.float32), **goal}

    def state_from_columns(self, steps):
        return {"at": steps[STATE], "place": np.rint(steps["simulator.state"][:, 0]).astype(np.int64)}

    def advance(self, action):
        s = self.state
        s["at"] = np.clip(s["at"] + np.float32(0.1) * action, -1, 1)
        success = distance(s["at"], PLACES[s["place"]]) < RADIUS
        return success, success, np.zeros_like(success)

    def expert(self):
        return Expert()

    def map(self):
        places = [{"kind": "circle", "at": tuple(map(float, at)), "radius": RADIUS, "role": "goal"} for at in PLACES]
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": (STATE, 0, 1), "shapes": places}

    def frame(self, row):
        from ..envs.raster import render_map

        at = self.state["at"][row]
        return render_map(self.map(), [{"kind": "circle", "at": tuple(at), "radius": 0.03, "role": "agent"}])


@dataclass(frozen=True)
class Expert(Actor):
    """Goes to the named place in a curve, to the left or to the right.

    Args:
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    noise: float = 0.2

    def start(self, obs, key):
        side = torch.where(normal(key, torch.zeros_like(key), (1,), stream=6)[:, 0] > 0, 1.0, -1.0)
        return {"side": side, "key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        ahead = torch.from_numpy(PLACES)[obs[TASK][:, 0]] - obs[STATE]
        gap = ahead.norm(dim=1, keepdim=True)
        turn = 0.8 * state["side"] * gap[:, 0].clamp(max=1)
        across = torch.stack([-ahead[:, 1], ahead[:, 0]], 1)
        heading = turn.cos()[:, None] * ahead + turn.sin()[:, None] * across
        action = heading / gap.clamp(min=0.1) + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}


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
        shown = list(rollout(env.expert(), env, self.episodes, recording_seed(seed)).filter(
            lambda e: e.metadata["success"]))
        words = np.array([e.steps[TASK][0] for e in shown])
        labeled = np.concatenate([np.flatnonzero(words[:, 0] == p)[:self.per_place] for p in range(N_PLACES)])
        if self.shuffled:
            words[labeled] = words[np.roll(labeled, np.random.default_rng(seed).integers(1, len(labeled)))]
        has_words = np.isin(np.arange(len(shown)), labeled)
        steps = np.array([len(e) for e in shown])
        rate = np.where(has_words, 0.5 / steps[has_words].sum(), 0.5 / steps[~has_words].sum())
        return Dataset([e.replace({TASK: np.tile(words[i], (len(e) + 1, 1)),
                                   TASK + "?": np.full(len(e) + 1, has_words[i]),
                                   RATE_COLUMN: np.full((len(e), 1), rate[i], np.float32)})
                        for i, e in enumerate(shown)])


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


def make_arm(name: str, losses: tuple[AuxiliaryLoss, ...] = (), goals: bool = True) -> Arm:
    """The same head, trunk and updates. Arms differ in what they learn from, and in their auxiliary losses."""
    given = (TARGET, TASK) if goals else (TASK,)
    policy = PolicyConfig(
        EDM(5, sigma_min=0.05, sigma_max=1.0, log_sigma_mean=-0.69, log_sigma_std=0.9), MLP(128, 1),
        GoalEncoder(given, TokenEncoder(64)), augmentations=(ModalityDropout(given),),
        window=Window(1, 4, goals=(Goal(STATE, into=TARGET, discount=0.9),) if goals else ()))
    learner = BehaviorCloning(UPDATES, 128, OptimizerConfig(lr=3e-3), sampling_column=RATE_COLUMN,
                              auxiliary_losses=losses)
    transforms = (OptionalColumn(TARGET, like=STATE),) if goals else ()
    return Arm(name, (TrainedOn(Method(policy, RecedingHorizon(4), learner, transforms), labeled_only=not goals),))


SHOWN, UPDATES = 400, 700
ALIGNMENT, FORESIGHT = ContrastiveAlignment(TARGET, TASK), Foresight(STATE)
ARMS = (
    make_arm("MDT", (ALIGNMENT, FORESIGHT)),
    make_arm("goals and words", ()),
    make_arm("words alone", (), goals=False),
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
    *ARMS[:2], make_arm("alignment", (ALIGNMENT,)), make_arm("foresight", (FORESIGHT,))))


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
