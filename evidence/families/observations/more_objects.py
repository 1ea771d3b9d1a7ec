"""Row 265: a policy that reads objects as a set, tried with more objects than it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, train_policy
from evidence.worlds.curation import cached_load
from understudy.core import Feature, normal, part, uniform
from understudy.data.episode import Dataset
from understudy.data.operations import Operation
from understudy.envs.toy import Toy, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor, PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.method import Method
from understudy.methods.representation.ec_diffuser import ObjectEncoder, ec_diffuser
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP

OBJECTS, SLOTS = "observation.objects", 5
THREE, FOUR, PUT = "success with 3", "success with 4", "at goal of 4"
REACH = 0.1  # as near as this a block is taken, and lies where it should; the table is 2 wide


class Layout(Toy):
    """Blocks on a table, each to be put where its goal is. One step takes a block and puts it somewhere.

    observation.objects (SLOTS, 5): of each block 1, its position and its goal, from -1 to 1; zeros where there is no
    block. action (4): where to take and where to put. It ends with success once all blocks lie at their goals.

    Args:
        counts: Numbers of blocks. Each episode draws one of them.
    """

    state_columns = (OBJECTS,)

    def __init__(self, rows: int = 1, limit: int = 8, counts: tuple[int, ...] = (1, 2, 3)):
        self.counts = np.array(counts)
        self.features = {OBJECTS: Feature("float32", (SLOTS, 5)),
                         "action": named_vector("take.x", "take.y", "put.x", "put.y")}
        self.metadata = {"env": "layout", "version": 1, "fps": 1, "limit": limit, "optimum": 1.0,
                         "success": "all blocks lie at their goals"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        count = self.counts[(uniform(key, torch.zeros_like(key), (1,)).numpy()[:, 0] * len(self.counts)).astype(int)]
        order = uniform(key, torch.zeros_like(key), (12,), stream=1).numpy().argsort(1)  # of 4 x 3 places
        shift = uniform(key, torch.zeros_like(key), (12, 2), stream=2).numpy() - 0.5
        places = np.stack([-0.75 + 0.5 * (order % 4), -0.66 + 0.66 * (order // 4)], 2) + 0.2 * shift
        exists = np.arange(SLOTS) < count[:, None]
        blocks = np.concatenate([exists[:, :, None], places[:, :SLOTS], places[:, SLOTS:2 * SLOTS]], 2)
        return {"objects": (blocks * exists[:, :, None]).astype(np.float32)}

    def observe(self):
        return {OBJECTS: self.state["objects"]}

    def state_from_columns(self, steps):
        return {"objects": steps[OBJECTS]}

    def advance(self, action):
        objects = self.state["objects"]
        exists = objects[:, :, 0] > 0
        gap = np.where(exists, np.linalg.norm(objects[:, :, 1:3] - action[:, None, :2], axis=2), np.inf)
        taken = np.flatnonzero(gap.min(1) < REACH)
        objects[taken, gap.argmin(1)[taken], 1:3] = action[taken, 2:]
        success = (self.at_goal() | ~exists).all(1)
        return success, success, np.zeros_like(success)

    def at_goal(self):
        return np.linalg.norm(self.state["objects"][:, :, 1:3] - self.state["objects"][:, :, 3:], axis=2) < REACH

    def expert(self):
        return LayoutExpert()

    def map(self):
        return {"x": (-1, 1), "y": (-1, 1), "path": ("action", 2, 3), "shapes": []}

    def frame(self, row):
        from understudy.envs.raster import render_map

        return render_map(self.map(), [
            {"kind": "circle", "at": tuple(map(float, block[at:at + 2])), "radius": radius, "role": role}
            for block in self.state["objects"][row] if block[0]
            for at, radius, role in ((3, 0.1, "goal"), (1, 0.06, "block"))])


@dataclass(frozen=True)
class LayoutExpert(CountingActor):
    """Takes one of the blocks that are not at their goals, whichever chance says."""

    noise: float = 0.01

    def act(self, obs, state):
        objects = obs[OBJECTS]
        waits = (objects[:, :, 0] > 0) & ((objects[:, :, 1:3] - objects[:, :, 3:]).norm(dim=2) >= REACH)
        lot = uniform(state["key"], state["count"], (SLOTS,), stream=3)
        chosen = torch.where(waits, lot, -1).argmax(1)
        action = objects[torch.arange(len(objects)), chosen, 1:]
        action = action + self.noise * normal(state["key"], state["count"], (4,), stream=4)
        return action.float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class Layouts(DemonstrationSource):
    """Demonstrations with one to three blocks, the first ones of `SLOTS`."""

    episodes: int = 1500

    @cached_load
    def load(self, seed):
        return rollout(LayoutExpert(), Layout(100), self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class ShuffledSlots(Operation):
    """Puts the blocks of each episode into slots by chance, so that a network without sets sees every slot."""

    def apply(self, data):
        return data.map(lambda e: e.replace({OBJECTS: e.steps[OBJECTS][:, np.random.default_rng(
            e.metadata["number"]).permutation(SLOTS)]}))


@part
class NumberedObjects(ObjectEncoder):
    """Tokens that also say in which slot an object is, as a trained embedding."""

    def build(self, features, n_obs_steps):
        net = super().build(features, n_obs_steps)
        net.layers = _Numbered(net.layers, net.tokens, net.width)
        return net


class _Numbered(torch.nn.Module):
    def __init__(self, layers, tokens, width):
        super().__init__()
        self.layers, self.places = layers, torch.nn.Parameter(torch.randn(tokens, width))

    def forward(self, objects):
        return self.layers(objects) + self.places


def success_with_more(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """Success with 2, 3 and 4 blocks, and the fraction of 4 blocks that lie at their goals in the end."""
    policy = train_policy(experiment, method, data, seed)
    actor, measured = PolicyActor(FixedBatch(policy, ROWS), method.executor), {}
    for count, name in ((2, "success"), (3, THREE), (4, FOUR)):
        rollouts = rollout(actor, Layout(ROWS, counts=(count,)), episodes, seed=starts)
        measured[name] = [float(e.metadata["success"]) for e in rollouts]
    ends = np.stack([e.steps[OBJECTS][-1, :4, 1:] for e in rollouts])
    return {**measured, PUT: list((np.linalg.norm(ends[..., :2] - ends[..., 2:], axis=2) < REACH).mean(1))}


SETS = ec_diffuser(width=64)
SETS = replace(SETS, learner=replace(SETS.learner, steps=2000))
ACTIONS = replace(SETS, learner=replace(SETS.learner, auxiliary_losses=()))
FLAT = replace(ACTIONS, policy=replace(SETS.policy, trunk=MLP(256, 2), encoder=ConcatEncoder()))
TABLE = Experiment(Layouts(), env="evidence.families.observations.more_objects:Layout", measure=success_with_more,
                   first_seed=1740, n_seeds=6, episodes=200, levels={"set": 0.7},
                   arms={
    "set": SETS,
    "actions alone": ACTIONS,
    "flat": FLAT,
    "flat, other slots": replace(FLAT, transforms=(ShuffledSlots(),)),
    "regression": replace(ACTIONS, policy=replace(SETS.policy, head=Regression("l1"))),
    "numbered": replace(SETS, policy=replace(SETS.policy, encoder=NumberedObjects(64)))})
