"""Published experiments in cells, for published.py, which has their protocols: two toys, and block pushing in PyBullet
and in the plane.

Each table has cells, one for each setting and method. A cell trains one seed, which takes minutes, or an hour for
`bet-every-step`, and returns the values of each episode.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys import particle, peg_insertion
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.base import Head
from understudy.heads.denoising.flow import Flow
from understudy.heads.energy.energy import EnergyModel
from understudy.heads.likelihood.regression import Regression
from understudy.heads.one_step.mip import MIP
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.bc_rnn_gmm import bc_rnn_gmm
from understudy.methods.behavior_cloning.bet import bet
from understudy.methods.behavior_cloning.ibc import ibc
from understudy.nets.base import Trunk
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig


@dataclass(frozen=True)
class Size:
    """How much is run."""

    folder: str = "published"
    dimensions: tuple[int, ...] = (2, 8, 16)
    tolerances: tuple[float, ...] = (0.03, 0.01)
    demonstrations: int = 2000  # of the particle
    updates: tuple[int, int, int] = (12_000, 15_000, 2500)  # of energy, of regression, and of the heads of MIP's table
    pegs: int = 50  # demonstrations of peg_insertion
    episodes: int = 100
    peg_episodes: int = 400
    held_out: int = 40  # episodes in which the errors of actions are measured
    pushes: int = 1000  # demonstrations of block pushing
    push_episodes: int = 100


FULL = Size()
TINY = Size("published-tiny", (2,), (0.03,), 20, (4, 4, 4), 12, 4, 4, 5)


@dataclass(frozen=True)
class Cell:
    """One setting with one method.

    Attributes:
        name: Name of its file, without the seed.
        run: Trains and judges one seed.
    """

    name: str
    run: Callable[[int], dict]


def trained(head: Head, data: Dataset, seed: int, steps: int, batch: int, lr: float, executed: int,
            **policy) -> tuple[Policy, PolicyActor, float]:
    """Behavior cloning with this head: the policy, the actor that executes it, and the CPU seconds of training."""
    method = Method(PolicyConfig(head, **policy), RecedingHorizon(executed),
                    BehaviorCloning(steps, batch, optimizer=OptimizerConfig(lr=lr, warmup_steps=min(100, steps // 2))))
    began = time.process_time()
    trained_policy = fit_method(method, data, seed).policy
    return trained_policy, PolicyActor(FixedBatch(trained_policy, 50), method.executor), time.process_time() - began


def success(actor, env, episodes: int) -> list[int]:
    """Success of each episode from the starts of seed 0."""
    return [int(e.metadata["success"]) for e in rollout(actor, env, episodes, seed=0)]


# -- the particle of Implicit Behavioral Cloning --------------------------------------------------------------------

ENERGY = EnergyModel(4, "langevin", n_candidates=32, n_iterations=25, negatives="langevin", n_chain_iterations=5,
                     gradient_margin=1.0, step_size=1.0, langevin_noise=0.25, max_step=0.5)
PARTICLE_HEADS: dict[str, tuple[Head, Trunk, int]] = {  # with the network and the batch size
    "energy": (ENERGY, FeedForward((128, 128)), 128), "regression": (Regression(), MLP(128, 1), 256)}


def particle_cell(size: Size, dim: int, name: str, seed: int) -> dict:
    """Success of each episode of one method in `dim` dimensions."""
    env = make(f"particle:{dim}", rows=50, stay=True)
    data = rollout(particle.ParticleExpert(near=0.01), env, size.demonstrations, recording_seed(seed))
    head, trunk, batch = PARTICLE_HEADS[name]
    updates = size.updates[list(PARTICLE_HEADS).index(name)]
    _, actor, seconds = trained(head, data, seed, updates, batch, 3e-3, 1, trunk=trunk, encoder=ConcatEncoder(),
                                window=Window(2, 1))
    return {"success": success(actor, env, size.episodes), "updates": updates, "seconds": round(seconds, 1)}


# -- the ablation of MIP ----------------------------------------------------------------------------------------------

MIP_HEADS: dict[str, Head] = {
    "regression": MIP(two_steps=False), "no-noise": MIP(noise_scale=0.0), "mip": MIP(), "flow": Flow(n_steps=9)}
EXECUTED, NEIGHBORS = 8, 5
PERTURBATION = 0.4 * peg_insertion.STEP  # standard deviation: 0.02 m and 0.08 rad


@dataclass(frozen=True)
class Chunks:
    """What an expert does from states: the steps of its episodes that are followed by at least eight actions.

    Attributes:
        obs: The observations before and at each step, (n, 2, ...) by column.
        actions: The actions from each step on, (n, EXECUTED, 3).
        episode: Number of the episode of each step, (n,).
    """

    obs: dict[str, np.ndarray]
    actions: np.ndarray
    episode: np.ndarray

    def take(self, which: np.ndarray) -> Chunks:
        return Chunks({k: v[which] for k, v in self.obs.items()}, self.actions[which], self.episode[which])

    def poses(self) -> np.ndarray:
        """The peg as its hole sees it at each step, in units of the largest action, (n, 3)."""
        hole, outline = self._holes()
        return peg_insertion.to_hole(self.obs["observation.state"][:, -1], hole, outline) / peg_insertion.STEP

    def seen_from_hole(self, actions: np.ndarray) -> np.ndarray:
        """Actions (n, H, 3) along the wall, away from it, and of the angle."""
        cos, sin = np.cos(self._holes()[0][:, 2:]), np.sin(self._holes()[0][:, 2:])
        x, y, turn = np.moveaxis(actions, 2, 0)
        return np.stack([cos * x + sin * y, cos * y - sin * x, turn], 2)

    def _holes(self) -> tuple[np.ndarray, np.ndarray]:
        around = self.obs["observation.environment_state"][:, -1]
        return around[:, :3], peg_insertion.outline_of(around[:, 3:])


def chunks_of(data: Dataset) -> Chunks:
    """The chunks of all episodes."""
    starts = [(i, e, t) for i, e in enumerate(data) for t in range(len(e) - EXECUTED + 1)]
    obs = {k: np.stack([e.steps[k][[max(t - 1, 0), t]] for _, e, t in starts])
           for k in peg_insertion.PegInsertion.state_columns}
    return Chunks(obs, np.stack([e.steps["action"][t:t + EXECUTED] for _, e, t in starts]),
                  np.array([i for i, _, _ in starts]))


def peg(tolerance: float, rows: int):
    return make("peg_insertion", rows=rows, tolerance=tolerance, outlines=(2,))


def expert_episodes(tolerance: float, episodes: int, seed: int) -> Dataset:
    """Successful episodes of the expert."""
    env = peg(tolerance, 50)
    return rollout(env.expert(), env, episodes, seed).filter(lambda e: e.metadata["success"])


@functools.cache
def held_out(tolerance: float, episodes: int) -> tuple[Chunks, Chunks]:
    """The chunks of expert episodes that nothing is trained on, and those of the expert from perturbed poses.

    The pose of the peg is moved by a normal offset, the same in both observations. Poses in the wall, and those from
    which the expert is done before eight steps, are left out of both.
    """
    chunks = chunks_of(expert_episodes(tolerance, episodes, seed=1))
    offset = np.random.default_rng(0).normal(size=(len(chunks.episode), 1, 3)) * PERTURBATION
    moved = {**chunks.obs, "observation.state": (chunks.obs["observation.state"] + offset).astype(np.float32)}
    env = peg(tolerance, len(chunks.episode))
    rows = torch.arange(env.rows)
    expert = peg_insertion.PegInsertionExpert(tolerance, noise=0.0)
    obs = env.restore(rows, {k: torch.from_numpy(v[:, -1]) for k, v in moved.items()})
    state, actions = expert.start(obs, keys(0, range(env.rows))), []
    usable = Chunks(moved, chunks.actions, chunks.episode).poses()[:, 1] > 0
    for _ in range(EXECUTED):
        action, state = expert.act(obs, state)
        actions.append(action.clamp(-1, 1).numpy())
        out = env.step(action)
        obs = out.obs
        if len(actions) < EXECUTED:
            usable &= ~out.terminated.numpy()
    return chunks.take(usable), Chunks(moved, np.stack(actions, 1), chunks.episode).take(usable)


def off_manifold(actions: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Root mean square of what is left of chunks when they are projected onto the span of other chunks, (n,).

    Args:
        actions: Chunks, (n, H, A).
        neighbors: Chunks that span a subspace for each, (n, k, H, A).
    """
    targets, basis = actions.reshape(len(actions), -1), neighbors.reshape(*neighbors.shape[:2], -1).swapaxes(1, 2)
    fitted = basis @ (np.linalg.pinv(basis, rcond=1e-6) @ targets[..., None])
    return rms(targets[..., None] - fitted)


def rms(x: np.ndarray) -> np.ndarray:
    """Root mean square of each row, (n,)."""
    return np.sqrt(np.square(x.reshape(len(x), -1)).mean(1))


def nearest_chunks(data: Chunks, queries: Chunks) -> np.ndarray:
    """The actions, as the hole sees them, of the steps of the data with the nearest poses, (n, NEIGHBORS, H, 3)."""
    apart = np.square(queries.poses()[:, None] - data.poses()).sum(2)
    return data.seen_from_hole(data.actions)[np.argsort(apart, 1)[:, :NEIGHBORS]]


def planned(policy: Policy, queries: Chunks) -> np.ndarray:
    """The actions that a policy would execute, (n, EXECUTED, A)."""
    n = len(queries.episode)
    obs = {k: torch.from_numpy(v) for k, v in queries.obs.items()}
    with torch.no_grad():
        plan = policy.plan(obs, policy.noise(keys(0, range(n)), torch.zeros(n, dtype=torch.int64)))
    return plan[:, :EXECUTED].clamp(-1, 1).numpy()


def mip_cell(size: Size, tolerance: float, name: str, seed: int) -> dict:
    """Success of each episode, and errors of the actions of each held-out episode."""
    data = expert_episodes(tolerance, size.pegs, recording_seed(seed))
    policy, actor, seconds = trained(MIP_HEADS[name], data, seed, size.updates[2], 128, 3e-3, EXECUTED,
                                     trunk=MLP(128, 1), window=Window(2, 16))
    chunks, moved = held_out(tolerance, size.held_out)
    at_moved, neighbors = planned(policy, moved), nearest_chunks(chunks_of(data), moved)

    def by_episode(x):
        return [round(float(x[chunks.episode == i].mean()), 5) for i in np.unique(chunks.episode)]
    return {"success": success(actor, peg(tolerance, 50), size.peg_episodes),
            "validation": by_episode(rms(planned(policy, chunks) - chunks.actions)),
            "off_expert": by_episode(rms(at_moved - moved.actions)),
            "off_manifold": by_episode(off_manifold(moved.seen_from_hole(at_moved), neighbors)),
            "expert_off_manifold": by_episode(off_manifold(moved.seen_from_hole(moved.actions), neighbors)),
            "updates": size.updates[2], "seconds": round(seconds, 1)}


# -- block pushing ----------------------------------------------------------------------------------------------------

def _with_updates(method: Method, updates: int, lr: float | None = None) -> Method:
    """The method with other updates, and another learning rate unless it is None."""
    learner = replace(method.learner, steps=updates)
    if lr is not None:
        learner = replace(learner, optimizer=replace(learner.optimizer, lr=lr))
    return replace(method, learner=learner)


PUSH_METHODS: dict[str, dict[str, Method]] = {
    "block-pushing": {"bet": _with_updates(bet(), 20_000),
                      "bet-every-step": _with_updates(bet(every_step=True), 100_000, 1e-3),
                      "lstm-gmm": _with_updates(bc_rnn_gmm(), 4000), "ibc": _with_updates(ibc(), 10_000)},
    "blocks": {"bet": _with_updates(bet(every_step=True), 10_000, 1e-3), "lstm-gmm": _with_updates(bc_rnn_gmm(), 2500),
               "ibc": _with_updates(ibc(), 2500)}}
PUSH_ENVS = {"block-pushing": "block_pushing/multimodal", "blocks": "blocks"}
PUSH_ROWS = 20


@functools.cache
def push_demonstrations(episodes: int) -> Dataset:
    """Successful episodes of the expert in PyBullet, the same ones for all seeds. They are kept, because they take ten
    minutes."""
    path = Path("runs", "published", f"block-pushing-{episodes}")
    if not path.exists():
        write_dataset(_pushed("block-pushing", episodes, 0), path)
    return open_dataset(path)


def _pushed(table: str, episodes: int, seed: int) -> Dataset:
    """Successful episodes of the expert."""
    env = make(PUSH_ENVS[table], rows=PUSH_ROWS)
    return rollout(env.expert(), env, episodes, recording_seed(seed)).filter(lambda e: e.metadata["success"])


def push_cell(size: Size, table: str, name: str, seed: int) -> dict:
    """Of each episode of a method, whether one block was pushed onto a target, and whether both were."""
    in_pybullet, method = table == "block-pushing", PUSH_METHODS[table][name]
    data = push_demonstrations(size.pushes) if in_pybullet else _pushed(table, size.pushes, seed)
    began = time.process_time()
    policy = fit_method(method, data, seed).policy
    seconds = time.process_time() - began
    acted = rollout(PolicyActor(FixedBatch(policy, PUSH_ROWS), method.executor), make(PUSH_ENVS[table], rows=PUSH_ROWS),
                    size.push_episodes, seed=0)
    one = [e.metadata["one"] if in_pybullet else e.metadata["mode"] >= 0 for e in acted]
    return {"one": [int(o) for o in one], "success": [int(e.metadata["success"]) for e in acted],
            "updates": method.learner.steps, "demonstrations": len(data), "seconds": round(seconds, 1)}


def cells(table: str, size: Size = FULL) -> list[Cell]:
    """The cells of a table: "particle", "mip", "block-pushing" or "blocks"."""
    if table in PUSH_METHODS:
        return [Cell(f"{table}-{name}", functools.partial(push_cell, size, table, name))
                for name in PUSH_METHODS[table]]
    if table == "particle":
        return [Cell(f"particle-{dim}-{name}", functools.partial(particle_cell, size, dim, name))
                for dim in size.dimensions for name in PARTICLE_HEADS]
    return [Cell(f"mip-{tolerance:g}-{name}", functools.partial(mip_cell, size, tolerance, name))
            for tolerance in size.tolerances for name in MIP_HEADS]
