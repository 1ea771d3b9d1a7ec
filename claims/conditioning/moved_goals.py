"""Row 237: does a return of rewards for words lead a policy to goals that are on another side than in training?"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from understudy.core import Feature, uniform
from understudy.data.column_changes import ColumnChange, ConstantColumn, LastAction, TimeLeft
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.toy import Toy, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import Method, Stage, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.return_conditioned.arp import CalibratedScorer, ScoredReturn, ScorerCalibration, TaskContrast
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
TASK, VIEW, COMMAND = "observation.task", "observation.view", "observation.return_to_go"
COLORS = ((205, 70, 62), (92, 160, 96), (70, 112, 190), (226, 182, 70))
LENGTH, AHEAD = 12, 3  # cells of the aisle; how many of them are seen, from the walker's own
SIDES = ("right", "left")
FORWARD, BACK, TAKE = range(3)


class Aisle(Toy):
    """A walker goes along an aisle between two shelves and takes the box of the color that a word names.

    Each shelf has a box in each cell. One box has the named color, at the third cell from the start or later. The
    walker sees the boxes on both sides of its cell and of the next two.

    observation.task (1): the word, a class. observation.view (24): the boxes that are seen, by side, cell and color.
    observation.return_to_go (1), with `timed`: number of steps until the box is taken on the shortest way, at the
    first step. simulator.state (31): the cell of the walker, and the color of each box. action (1): 0 forward, 1 back,
    2 take. Taking where the named box lies on either side ends the episode with reward 1, and elsewhere with -1.

    Best possible success: 1.0. `AisleExpert` attains it.

    Args:
        limit: Number of steps of an episode.
        side: Side of the named box: "right", "left" or "any".
        timed: Tell the number of steps at the start.
    """

    low, high = 0.0, 2.0
    state_columns = (TASK, "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 30, side: str = "any", timed: bool = False):
        self.side, self.timed = side, timed
        boxes = [f"{s}.{cell}" for s in SIDES for cell in range(LENGTH + AHEAD)]
        self.features = {
            TASK: Feature("int64", (1,), "discrete", num_classes=(len(COLORS),)),
            VIEW: Feature("float32", (len(SIDES) * AHEAD * len(COLORS),)),
            "simulator.state": named_vector("cell", *boxes),
            "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
        if timed:
            self.features[COMMAND] = named_vector("steps")
        self.metadata = {"env": "aisle", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "success": "the box of the named color is taken"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        n, rows = len(key), np.arange(len(key))
        drawn = uniform(key, torch.zeros_like(key), (3,)).numpy()
        named = (len(COLORS) * drawn[:, 0]).astype(np.int64)
        cell = AHEAD + ((LENGTH - AHEAD) * drawn[:, 1]).astype(np.int64)
        side = (2 * drawn[:, 2]).astype(np.int64) if self.side == "any" else np.full(n, SIDES.index(self.side))
        others = uniform(key, torch.zeros_like(key), (2 * (LENGTH + AHEAD),), stream=1).numpy()
        boxes = ((len(COLORS) - 1) * others).astype(np.int64).reshape(n, 2, -1)
        boxes = boxes + (boxes >= named[:, None, None])
        boxes[rows, side, cell] = named
        return {"cell": np.zeros(n, np.int64), "boxes": boxes, "named": named}

    def observe(self):
        s = self.state
        cells = s["cell"][:, None, None] + np.arange(AHEAD)
        visible_boxes = s["boxes"][np.arange(self.rows)[:, None, None], np.arange(2)[None, :, None], cells]
        columns = {TASK: s["named"][:, None],
                   VIEW: (visible_boxes[..., None] == range(len(COLORS))).reshape(self.rows, -1).astype(np.float32),
                   "simulator.state": np.concatenate([s["cell"][:, None], s["boxes"].reshape(self.rows, -1)],
                                                     1).astype(np.float32)}
        if self.timed:
            at = (s["boxes"] == s["named"][:, None, None]).any(1).argmax(1)
            columns[COMMAND] = (np.abs(at - s["cell"]) + 1).astype(np.float32)[:, None]
        return columns

    def state_from_columns(self, steps):
        state = np.rint(steps["simulator.state"]).astype(np.int64)
        return {"cell": state[:, 0], "boxes": state[:, 1:].reshape(len(state), 2, -1), "named": steps[TASK][:, 0]}

    def advance(self, action):
        s, chosen = self.state, np.rint(action[:, 0]).astype(np.int64)
        s["cell"] = np.clip(s["cell"] + np.array([1, -1, 0])[chosen], 0, LENGTH - 1)
        here = (s["boxes"][np.arange(self.rows), :, s["cell"]] == s["named"][:, None]).any(1)
        success, failure = (chosen == TAKE) & here, (chosen == TAKE) & ~here
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return AisleExpert()

    def map(self):
        return {"x": (-0.5, LENGTH - 0.5), "y": (-0.5, LENGTH - 0.5), "path": ("simulator.state", 0, 0), "shapes": []}

    def frame(self, row):
        canvas, flat = Canvas(1, 256, (-0.5, -LENGTH / 2), LENGTH), np.array([[1, 0]], np.float32)
        for y, side in zip((-1, 1), self.state["boxes"][row], strict=True):
            for x, color in enumerate(side[:LENGTH]):
                canvas.box(np.array([[x, y]], np.float32), flat, (0.4, 0.4), COLORS[color])
        canvas.circle(np.array([[self.state["cell"][row], 0]], np.float32), 0.3, COLOR_OF_ROLE["agent"])
        return canvas.image[0]


@dataclass(frozen=True)
class AisleExpert(Actor):
    """Goes forward until the named box is beside the walker, and takes it."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        here = boxes_of_color(obs, obs[TASK][:, 0])[:, 0]
        return torch.where(here, TAKE, FORWARD)[:, None], state


def boxes_of_color(obs, color: torch.Tensor) -> torch.Tensor:
    """In which of the cells that are seen a box of a color lies on either side, (B, 3) bool."""
    view = obs[VIEW].reshape(len(obs[VIEW]), len(SIDES), AHEAD, len(COLORS)) > 0.5
    return view[torch.arange(len(view)), :, :, color.long()].any(1)


def similarity(obs) -> torch.Tensor:
    """How near a box of the named color is: 1 beside the walker, 1/e a cell ahead, 0 out of sight."""
    return _nearness(obs, obs[TASK][:, 0])


def similarity_to_another_word(obs) -> torch.Tensor:
    """The same for the next color."""
    return _nearness(obs, (obs[TASK][:, 0] + 1) % len(COLORS))


def _nearness(obs, color):
    return (boxes_of_color(obs, color) * torch.exp(-torch.arange(float(AHEAD)))).amax(1)


@dataclass(frozen=True)
class RightSideEpisodes(DemonstrationSource):
    """Episodes of the expert with the named box on the right."""

    episodes: int = 300

    @cached_load
    def load(self, seed):
        env = Aisle(ROWS, side="right")
        return rollout(env.expert(), env, self.episodes, recording_seed(seed))


def captioned_views(n: int, seed: int) -> Dataset:
    """Views of random boxes, each with the word for a box that is seen: a near one more often, as in `similarity`.

    Args:
        n: Number of views.
    """
    rng, rate = np.random.default_rng([seed, 237]), np.exp(-np.arange(float(AHEAD)))
    colors = rng.integers(len(COLORS), size=(n, len(SIDES), AHEAD))
    word = colors[np.arange(n), rng.integers(len(SIDES), size=n), rng.choice(AHEAD, size=n, p=rate / rate.sum())]
    view = (colors[..., None] == range(len(COLORS))).reshape(n, -1).astype(np.float32)
    schema = Aisle().features
    return Dataset([Episode({VIEW: view[i:i + 1], TASK: word[i:i + 1, None], "action": np.zeros((1, 1), np.int64)},
                            schema={k: schema[k] for k in (VIEW, TASK, "action")}) for i in range(n)])


@dataclass(frozen=True)
class ScoredMethod:
    """A method, and what the scorer is told while the policy acts.

    Args:
        wrong_words: Tell the scorer another color than the policy.
        learned: The scorer is trained on random views, and replaces the one of the method.
    """

    method: Method
    wrong_words: bool = False
    learned: bool = False


def success_on_both_sides(experiment, option: ScoredMethod, data: Dataset, seed: int, episodes: int, starts: int
                          ) -> dict[str, list[float]]:
    """Trains a method on boxes on the right.

    Returns:
        0 or 1 for each start: "success" with the box on any side, "training success" with the box on the right, and
        of methods that count steps "timed success", on the right and with the true number of steps.
    """
    trained = _train_with_scorer(option.method, data, seed) if option.learned else train_once(
        experiment, option.method, data, seed)
    method = trained.method
    if option.wrong_words:
        method = replace(method, transforms=tuple(map(_with_wrong_words, method.transforms)))
    actor, measures = build_actor(method, trained.modules, ROWS), {}
    is_timed = any(isinstance(part, TimeLeft) for part in method.transforms)
    for name, side, timed in (("success", "any", False), ("training success", "right", False),
                              *((("timed success", "right", True),) if is_timed else ())):
        rollouts = rollout(actor, Aisle(ROWS, side=side, timed=timed), episodes, seed=starts)
        measures[name] = [float(e.metadata["success"]) for e in rollouts]
    return measures


def _with_wrong_words(part):
    if not isinstance(part, ScoredReturn):
        return part
    own_scorer = part.scorer
    assert isinstance(own_scorer, CalibratedScorer)
    other_scorer = CalibratedScorer(similarity_to_another_word)
    other_scorer.minimum, other_scorer.target_return = own_scorer.minimum, own_scorer.target_return
    return replace(part, scorer=other_scorer)


def _train_with_scorer(method: Method, data: Dataset, seed: int) -> FitResult:
    """The method with a scorer that is trained on random views, in place of its own."""
    scene = replace(method.stages[0].method, learner=TaskContrast(encoder=ConcatEncoder(), steps=600))
    scorer = fit_method(scene, captioned_views(4000, seed), seed)
    reward = replace(scene, learner=ScorerCalibration(FromStage("scorer", "scorer"), QUANTILE))
    calibrated = fit_method(reward, data, seed, stages={"scorer": scorer})
    return fit_method(method, data, seed, stages={"reward": calibrated})


UPDATES, HISTORY, QUANTILE = 600, 4, 0.9
POLICY = PolicyConfig(Categorical(temperature=0.0), FeedForward((128, 128)), ConcatEncoder(), window=Window(HISTORY, 1))
SCENE = replace(POLICY, window=Window(1, 1), inputs=(VIEW, TASK))
SCORED = Stage("reward", Method(SCENE, learner=ScorerCalibration(similarity, QUANTILE)))


def commanded_method(command: ColumnChange, *stages: Stage) -> Method:
    """Cloning from four views, words, last actions and values of the command, in the column of the return."""
    learner = BehaviorCloning(UPDATES, 128, OptimizerConfig(lr=1e-3))
    policy = replace(POLICY, inputs=(VIEW, TASK, "observation.last_action", COMMAND))
    return Method(policy, RecedingHorizon(1), learner, (LastAction(), command), stages)


ARP = commanded_method(ScoredReturn(FromStage("reward", "reward")), SCORED)
CLONING = commanded_method(ConstantColumn(COMMAND, 1.0))
CLOCK = commanded_method(TimeLeft(COMMAND, length=float(LENGTH)))
ARMS = tuple(Arm(name, (ScoredMethod(method),)) for name, method in (
    ("ARP", ARP), ("text cloning", CLONING), ("clock", CLOCK)))
MOVED = Experiment(
    RightSideEpisodes(),
    "aisle",
    ARMS,
    success_on_both_sides,
    seeds=tuple(range(2370, 2380)),
    episodes=400,
    measures=(("training success", RATE), ("timed success", RATE)),
    starts_seed=2370,
    sanity=(("ARP", "training success", 0.9), ("text cloning", "training success", 0.9),
            ("clock", "timed success", 0.9)),
)
LEARNED = replace(MOVED, arms=(Arm("ARP, learned scorer", (ScoredMethod(ARP, learned=True),)), ARMS[1]), sanity=(),
                  seeds=MOVED.seeds[:5])


def with_wrong_words(experiment: Experiment) -> Experiment:
    return replace(experiment.change_options(lambda o: replace(o, wrong_words=True), "ARP"), sanity=())


OVER_CLONING = GreaterThan("success", "ARP", "text cloning")
OVER_CLOCK = GreaterThan("success", "ARP", "clock")
SAME_IN_TRAINING = EquivalentTo("training success", "ARP", "text cloning", 0.05)

CLAIM = Claim(
    name="moved-goals",
    rows=("237",),
    parts=(
        ClaimPart("any side", MOVED, AllOf((OVER_CLONING, OVER_CLOCK, SAME_IN_TRAINING)), is_decisive=False),
        ClaimPart("learned scorer", LEARNED, GreaterThan("success", "ARP, learned scorer", "text cloning")),
    ),
    negative_control=NegativeControl(with_wrong_words, "any side", removes=(OVER_CLONING, OVER_CLOCK)),
)
