"""Row 113: does attention to the object that a sentence names carry over to names that were never heard?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    RATE,
    AboveBound,
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.core import Feature, normal, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.raster import Canvas
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.attention_supervision import AttentionSupervision
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Encoder, capture_intermediates
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.object_attention import ObjectAttentionEncoder
from understudy.policy import Policy, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
TASK, OBJECTS, STATE, TARGET = "observation.task", "observation.objects", "observation.state", "simulator.target"
RGB = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)], np.float32)  # red, green, blue, yellow, purple
SHAPES = ("square", "circle", "triangle", "star", "cross")
PLACES = np.array([(-0.6, -0.6), (-0.6, 0.6), (0.6, -0.6), (0.6, 0.6)])  # of the objects
N_OBJECTS = len(PLACES)
SPEED, REACH = 0.2, 0.12  # per step, in halves of the table; as near as this the hand takes an object


class ShapeTable(Toy):
    """A hand takes the object that a sentence names. Two colors and two shapes lie on the table in all four
    combinations, so that the color or the shape alone leaves two objects, and nothing but the sentence names one.

    observation.task (2): the sentence, a word for the color and one for the shape. observation.objects (4, 10):
    position, color (red, green, blue) and shape (1 of 5) of each object. Each lies near another corner, in this order.

    observation.state (2): position of the hand. simulator.target (1): row of the named object. action (3): velocity,
    where 1 is 0.2 in a step, and above 0 to take. The table reaches from -1 to 1. A hand that takes within 0.12 of an
    object ends the episode, with success if it is the named one.

    Best possible success: 1.0. `ShapeTableExpert(noise=0)` attains it.

    Args:
        limit: Number of steps of an episode.
        n_names: Number of colors, and of shapes: 4 or 5.
        new_pairs: The sentence names a new pair: the first color with the first shape, the second with the second, and
            so on. Without this option there are no such objects on the table. Each of their words occurs.
    """

    state_columns = (STATE, OBJECTS, TARGET)

    def __init__(self, rows: int = 1, limit: int = 25, n_names: int = 4, new_pairs: bool = False):
        self.n_names, self.new_pairs = n_names, new_pairs
        self.features = {
            TASK: Feature("int64", (2,), "discrete", num_classes=(n_names, n_names)),
            OBJECTS: Feature("float32", (N_OBJECTS, 5 + len(SHAPES))),
            STATE: named_vector("x", "y"),
            TARGET: Feature("int64", (1,), "discrete", num_classes=(N_OBJECTS,)),
            "action": named_vector("x", "y", "take"),
        }
        self.metadata = {"env": "shape_table", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": "the hand takes the named object"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        count = torch.zeros_like(key)
        a, b, c, d = uniform(key, count, (self.n_names,)).numpy().argsort(1)[:, :4].T  # four different numbers
        colors, shapes = np.stack([a, b], 1), np.stack([a if self.new_pairs else d, c], 1)
        pairs = np.stack([colors.repeat(2, 1), np.tile(shapes, 2)], 2)  # (n, objects, 2), the new pair first
        drawn = uniform(key, count, (3,), stream=1).numpy()
        named = np.where(self.new_pairs, 0, N_OBJECTS * drawn[:, 0]).astype(np.int64)
        order = uniform(key, count, (N_OBJECTS,), stream=2).numpy().argsort(1)
        shift = uniform(key, count, (N_OBJECTS, 2), stream=3).numpy() - 0.5
        return {"hand": (1.6 * drawn[:, 1:] - 0.8).astype(np.float32), "at": (PLACES + 0.2 * shift).astype(np.float32),
                "pairs": pairs[np.arange(len(key))[:, None], order], "target": (order == named[:, None]).argmax(1)}

    def observe(self):
        s = self.state
        color, shape = s["pairs"][..., 0], s["pairs"][..., 1]
        objects = np.concatenate([s["at"], RGB[color], np.eye(len(SHAPES), dtype=np.float32)[shape]], 2)
        return {TASK: s["pairs"][np.arange(self.rows), s["target"]], OBJECTS: objects, STATE: s["hand"],
                TARGET: s["target"][:, None]}

    def state_from_columns(self, steps):
        at, color, shape = np.split(steps[OBJECTS], [2, 5], 2)
        color = np.abs(color[:, :, None] - RGB).sum(3).argmin(2)
        return {"hand": steps[STATE], "at": at, "target": steps[TARGET][:, 0],
                "pairs": np.stack([color, shape.argmax(2)], 2)}

    def advance(self, action):
        s = self.state
        s["hand"] = np.clip(s["hand"] + np.float32(SPEED) * action[:, :2], -1, 1)
        gap = distance(s["at"], s["hand"][:, None])
        takes = (action[:, 2] > 0) & (gap.min(1) < REACH)
        success = takes & (gap.argmin(1) == s["target"])
        return success, success, takes & ~success

    def expert(self):
        return ShapeTableExpert()

    def map(self):
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": (STATE, 0, 1), "shapes": []}

    def frame(self, row):
        s, canvas = {k: v[row:row + 1] for k, v in self.state.items()}, Canvas(1, 256, (-1.0, -1.0), 2.0)
        for i, (color, shape) in enumerate(s["pairs"][0]):
            red, green, blue = (int(200 * part) for part in RGB[color])
            angle = np.pi / 5 * shape * np.ones(1, np.float32)  # a shape is shown by how far a bar is turned
            canvas.box(s["at"][:, i], np.stack([np.cos(angle), np.sin(angle)], 1), (0.1, 0.04), (red, green, blue))
        canvas.circle(s["hand"], 0.03, (70, 74, 88))
        return canvas.image[0]


@dataclass(frozen=True)
class ShapeTableExpert(CountingActor):
    """Goes straight to the named object and takes it.

    Args:
        noise: Standard deviation of its unsteadiness, as a fraction of the largest velocity.
    """

    noise: float = 0.2

    def act(self, obs, state):
        hand, target = obs[STATE], obs[TARGET][:, 0]
        ahead = (obs[OBJECTS][torch.arange(len(hand)), target, :2] - hand) / SPEED
        gap = ahead.norm(dim=1, keepdim=True)
        arrived = gap < 0.6
        velocity = ahead / gap.clamp(min=1)
        velocity = velocity + self.noise * normal(state["key"], state["count"], (2,), stream=2) * ~arrived
        take = torch.where(arrived, 1.0, -1.0)
        return torch.cat([velocity, take], 1).float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class NamedObjects(DemonstrationSource):
    """Successful episodes of the expert, without new pairs.

    Args:
        n_names: Number of colors, and of shapes.
        shuffled: The sentences are permuted between the episodes.
    """

    episodes: int
    n_names: int = 4
    shuffled: bool = False

    @cached_load
    def load(self, seed):
        env = ShapeTable(min(ROWS, self.episodes), n_names=self.n_names)
        rollouts = rollout(ShapeTableExpert(), env, self.episodes, recording_seed(seed))
        demonstrations = rollouts.filter(lambda e: e.metadata["success"])
        if not self.shuffled:
            return demonstrations
        order = np.random.default_rng(seed).permutation(len(demonstrations))
        sentences = [e.steps[TASK][0] for e in demonstrations]
        return Dataset([e.replace({TASK: np.tile(sentences[other], (len(e) + 1, 1))})
                        for e, other in zip(demonstrations, order, strict=True)])


def instructed_success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                       ) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        0 or 1 per start: "success" where the sentence names a new pair, and "known success" where it does not. With
        attention also "attended": whether it is largest at the named object of a new pair, at the first step.
    """
    policy, measures = train_policy(experiment, method, data, seed), {}
    actor = PolicyActor(FixedBatch(policy, ROWS), method.executor)
    for name, new_pairs in (("known success", False), ("success", True)):
        env = ShapeTable(ROWS, new_pairs=new_pairs, **dict(experiment.env_options))
        rollouts = rollout(actor, env, episodes, seed=starts)
        measures[name] = [float(e.metadata["success"]) for e in rollouts]
        if new_pairs and isinstance(method.policy.encoder, ObjectAttentionEncoder):
            measures["attended"] = attends_named_object(policy, rollouts)
    return measures


@torch.no_grad()
def attends_named_object(policy: Policy, episodes: Dataset) -> list[float]:
    """Whether the attention at the first step is largest at the named object, 0 or 1 for each episode."""
    first = {k: torch.stack([torch.as_tensor(e.steps[k][:1]) for e in episodes]) for k in policy.inputs}
    with capture_intermediates(["object_attention"]) as captured:
        policy.eval().context(first)
    target = torch.tensor([int(e.steps[TARGET][0, 0]) for e in episodes])
    return (captured["object_attention"][:, -1].argmax(1) == target).float().tolist()


def instructed_arm(name: str, encoder: Encoder, label: bool = False,
                   inputs: tuple[str, ...] = (TASK, OBJECTS, STATE)) -> Arm:
    """The same trunk, head and updates. Arms differ in what the policy reads, and how."""
    policy = PolicyConfig(Regression(), MLP(128, 2), encoder, Normalizer(unscaled=(OBJECTS,)), Window(), inputs)
    losses = (AttentionSupervision(TARGET),) if label else ()
    learner = BehaviorCloning(UPDATES, 128, OptimizerConfig(lr=4e-3), auxiliary_losses=losses)
    return Arm(name, (Method(policy, RecedingHorizon(), learner),))


SHOWN, UPDATES = 2000, 1500
TOKENS, ATTENTION = TokenEncoder(64), ObjectAttentionEncoder(OBJECTS, TASK)
ARMS = (
    instructed_arm("attention", ATTENTION, label=True),
    instructed_arm("attention without labels", ATTENTION),
    instructed_arm("concatenation", TOKENS),
    instructed_arm("no language", TOKENS, inputs=(OBJECTS, STATE)),
)
TABLE = Experiment(
    NamedObjects(SHOWN),
    "shape_table",
    ARMS,
    instructed_success,
    seeds=tuple(range(670, 680)),
    episodes=500,
    measures=(("known success", RATE), ("attended", RATE)),
    starts_seed=670,
    looks=((5, 0.02), (10, 0.03)),
    sanity=(("attention", "known success", 0.8), ("concatenation", "known success", 0.6)),
)
REPORTED = replace(TABLE, seeds=TABLE.seeds[:5], looks=())  # the same cells
# Five colors and five shapes: each word is heard in four pairs, not in three.
MORE_NAMES = replace(REPORTED, source=NamedObjects(SHOWN, n_names=5), env_options=(("n_names", 5),), sanity=(),
                     arms=tuple(a for a in ARMS if a.name in ("attention", "concatenation")))


def with_shuffled_sentences(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffled=True), sanity=())


OVER_CONCATENATION = GreaterThan("success", "attention", "concatenation", 0.2)
FINDS_PAIRS = AboveBound("success", "attention", 0.5)
BY_CHANCE = BelowBound("success", "no language", 1 / N_OBJECTS + 0.1)

CLAIM = Claim(
    name="language-attention",
    rows=("113",),
    parts=(
        ClaimPart("new pairs", TABLE, AllOf((OVER_CONCATENATION, FINDS_PAIRS, BY_CHANCE))),
        ClaimPart("labels", REPORTED, GreaterThan("success", "attention", "attention without labels"),
                  is_decisive=False),
        ClaimPart("attention without labels", REPORTED,
                  GreaterThan("success", "attention without labels", "concatenation"), is_decisive=False),
        ClaimPart("five colors and shapes", MORE_NAMES, GreaterThan("success", "attention", "concatenation"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(with_shuffled_sentences, "new pairs", removes=(OVER_CONCATENATION, FINDS_PAIRS)),
)
