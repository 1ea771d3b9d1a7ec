"""Row 250: offline RL of four tasks one after the other. Which few steps of a task must be stored, and who clones?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evidence.experiment import DemonstrationSource, Experiment
from evidence.families.task_sequence.what_to_keep import BATCH, N_INPUTS, N_ORDERS, RATE, STATE, Networks, observed_in
from evidence.memo import Memo
from understudy.audit.scores.network_scores import NetworkEnsemble, fit_regression
from understudy.audit.scores.step_table import StepTable
from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.improve.model_based_selection import fit_transitions, roll_out
from understudy.learn.targets import expectile_loss

N_TASKS, N_EXPERT, N_CLONE, CLONE_UPDATES = 4, 20, 40, (60, 200)
DISCOUNT, EXPECTILE, TARGET_DECAY, INVERSE_TEMPERATURE, MAX_WEIGHT = 0.95, 0.7, 0.99, 3.0, 20.0
HALF = BATCH // 2
WEIGHTS, ACTIONS, MODELS = Memo(), Memo(), Memo()
Selection = Literal["none", "random", "model", "shuffled model", "top return"]


def world(task: int, rows: int):
    """The particle with the goals of a task: 0.35 from the center, at the same places in the frame of the task."""
    cos, sin = 0.35 * np.cos(task * np.pi / 2), 0.35 * np.sin(task * np.pi / 2)
    return make("particle", rows=rows, fully_observed=True, goals=((0.5 + cos, 0.5 - sin), (0.5 + sin, 0.5 + cos)))


@dataclass(frozen=True)
class NetworkActor(Actor):
    """Acts as a network of states says."""

    net: NetworkEnsemble

    def start(self, obs, key):
        return {}

    @torch.no_grad()
    def act(self, obs, state):
        return self.net(obs[STATE])[0].clamp(0, 1), state


@dataclass(frozen=True)
class MixedTasks(DemonstrationSource):
    """Episodes of each task, one task after the other: of the expert, and of two half-trained clones of these.

    Args:
        size: Factor of the numbers of episodes.
    """

    size: float = 1.0

    def load(self, seed):
        n_expert, n_clone, episodes = round(N_EXPERT * self.size), round(N_CLONE * self.size), []
        for task in range(N_TASKS):
            env, first = world(task, 20), 1000 * task
            expert = rollout(env.expert(), env, n_expert, recording_seed(seed), first=first)
            state, action = (np.concatenate([e.steps[k][:len(e)] for e in expert]) for k in (STATE, "action"))
            clones = [NetworkActor(fit_regression(state, action, 1, updates, seed)) for updates in CLONE_UPDATES]
            episodes += [*expert, *(e for number, clone in enumerate(clones, 1) for e in rollout(
                clone, env, n_clone, recording_seed(seed), first=first + number * n_clone))]
        return Dataset(episodes)


class Steps:
    """The steps of all tasks, one task after the other, as policies observe them.

    A reward is by how much the way to the second goal, through the first, became shorter.

    Attributes:
        begin: Number of the first step of each task, and of all steps, (tasks + 1,).
        episode_return: Discounted return of the episode of each step, (N,).
    """

    def __init__(self, data: Dataset):
        per_task = len(data) // N_TASKS
        self.tasks = [data.select(range(i * per_task, (i + 1) * per_task)) for i in range(N_TASKS)]
        self.begin = np.cumsum([0, *(task.steps for task in self.tasks)])
        frame = torch.repeat_interleave(torch.arange(N_TASKS), torch.from_numpy(np.diff(self.begin))) * 2
        state, self.action, done = (torch.from_numpy(np.concatenate([e.steps[k][:len(e)] for e in data]))
                                    for k in (STATE, "action", "next.terminated"))
        after = torch.from_numpy(np.concatenate([e.steps[STATE][1:] for e in data]))
        self.x, self.next_x = observed_in(frame, state), observed_in(frame, after)
        self.reward, self.discount = _way(state) - _way(after), DISCOUNT * ~done
        discounted = self.reward.numpy() * DISCOUNT ** np.concatenate([np.arange(n) for n in data.lengths])
        first = np.cumsum(data.lengths) - data.lengths
        self.episode_return = np.repeat(np.add.reduceat(discounted, first), data.lengths)

    def draw(self, tasks: np.ndarray, rng) -> Tensor:
        """Numbers of steps: one of each task in an array, drawn uniformly."""
        return torch.from_numpy(self.begin[tasks] + (rng.random(tasks.shape) * np.diff(self.begin)[tasks]).astype(int))


def _way(state: Tensor) -> Tensor:
    at, first, second = state[:, :2], state[:, 4:6], state[:, 6:8]
    before = (at - first).norm(dim=1) + (first - second).norm(dim=1)
    return torch.where(state[:, 8] > 0.5, (at - second).norm(dim=1), before)


def learned_weights(steps: Steps, updates: int, seed: int) -> Tensor:
    """The weight of each step (N,) with which a learner of its task clones it, by critics of the task (IQL)."""
    rng, everyone = np.random.default_rng([seed, 3]), np.arange(N_TASKS)[:, None].repeat(HALF, 1)
    critics = NetworkEnsemble(N_INPUTS + 2, 1, 2 * N_TASKS, seed=seed)
    values = NetworkEnsemble(N_INPUTS, 1, N_TASKS, seed=seed + 1)
    target, optimizer = copy.deepcopy(critics), torch.optim.Adam([*critics.parameters(), *values.parameters()], RATE)

    def scores(networks, index):  # of two critics of each task, (2, tasks, batch)
        return networks(torch.cat([steps.x[index], steps.action[index]], -1).repeat(2, 1, 1))[..., 0].unflatten(
            0, (2, N_TASKS))

    def advantage(networks, index):
        return scores(networks, index).detach().amin(0) - values(steps.x[index])[..., 0]
    for _ in range(updates):
        index = steps.draw(everyone, rng)
        goal = steps.reward[index] + steps.discount[index] * values(steps.next_x[index])[..., 0].detach()
        expectile = expectile_loss(advantage(target, index), EXPECTILE)
        _step(optimizer, ((scores(critics, index) - goal).square().sum(0) + expectile).mean(1).sum())
        with torch.no_grad():
            for copied, source in zip(target.parameters(), critics.parameters(), strict=True):
                copied.lerp_(source, 1 - TARGET_DECAY)
    weights = []
    for task, (begin, end) in enumerate(pairwise(steps.begin)):
        gain = advantage(critics, torch.arange(begin, end).expand(N_TASKS, -1))[task].detach()
        weight = (INVERSE_TEMPERATURE * gain / gain.std()).exp().clamp(max=MAX_WEIGHT)
        weights.append(weight / weight.mean())
    return torch.cat(weights)


def learned_actions(steps: Steps, weights: Tensor, updates: int, seed: int) -> Tensor:
    """What the learner of each task does at its steps, (N, 2): by weighted cloning with a network for each."""
    learners, rng = Networks(N_TASKS, seed), np.random.default_rng([seed, 2])
    for _ in range(updates):
        index = steps.draw(np.arange(N_TASKS)[:, None].repeat(HALF, 1), rng)
        _step(learners.optimizer, distance(learners, steps.x[index], steps.action[index], weights[index]))
    with torch.no_grad():
        actions = learners(steps.x.expand(N_TASKS, -1, -1))
    return torch.cat([actions[task, begin:end] for task, (begin, end) in enumerate(pairwise(steps.begin))])


def distance(nets: Networks, x: Tensor, action: Tensor, weight: Tensor) -> Tensor:
    """Squared distances to actions, weighted, mean over the batch, sum over the networks."""
    return ((nets(x) - action).square().mean(2) * weight).mean(1).sum()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class OfflineSequence:
    """Learns the tasks one after the other, in several orders at once, with a few stored steps of earlier ones.

    Args:
        selection: Which steps of a task are stored when it is over.
        dual: Each task has a learner, whose actions the kept policy clones. Otherwise the kept policy is the learner.
        relabel: Stored steps have the actions of the kept policy instead of those in the data.
        joint: All tasks are cloned at once.
        n_stored: Number of steps that are stored of each task.
        updates: For each task.
    """

    selection: Selection = "none"
    dual: bool = True
    relabel: bool = False
    joint: bool = False
    n_stored: int = 200
    updates: int = 1000

    def learn(self, data: Dataset, seed: int) -> Networks:
        """The kept policies after the last task, one for each order."""
        rng, steps, nets = np.random.default_rng([seed, 1]), Steps(data), Networks(N_ORDERS, seed)
        orders = np.array([rng.permutation(N_TASKS) for _ in range(N_ORDERS)])
        actions, weights = self._targets(steps, seed)
        stored = torch.zeros((N_ORDERS, N_TASKS, self.n_stored), dtype=torch.int64)
        stored_action = torch.zeros((*stored.shape, 2))
        for number in range(N_TASKS):
            for _ in range(self.updates):
                tasks = orders[:, [number]].repeat(HALF, 1)
                index = steps.draw(rng.integers(N_TASKS, size=(N_ORDERS, BATCH)) if self.joint else tasks, rng)
                action, weight = actions[index], weights[index]
                if number and self.selection != "none":
                    old = np.take_along_axis(orders, rng.integers(number, size=tasks.shape), 1)
                    which = np.arange(N_ORDERS)[:, None], old, rng.integers(self.n_stored, size=tasks.shape)
                    index = torch.cat([index, stored[which]], 1)
                    action, weight = torch.cat([action, stored_action[which]], 1), F.pad(weight, (0, HALF), value=1.0)
                _step(nets.optimizer, distance(nets, steps.x[index], action, weight))
            if self.selection != "none":
                with torch.no_grad():
                    own = nets(steps.x.expand(N_ORDERS, -1, -1))
                for row, task in enumerate(orders[:, number]):
                    chosen = steps.begin[task] + self.choose(steps, task, own[row], seed, rng)
                    stored[row, task] = torch.from_numpy(chosen)
                    stored_action[row, task] = (own[row] if self.relabel else steps.action)[chosen]
        return nets

    def _targets(self, steps: Steps, seed: int) -> tuple[Tensor, Tensor]:
        """What is cloned at each step of a new task, and its weight."""
        key = seed, len(steps.x), self.updates
        weights = WEIGHTS.get(key, lambda: learned_weights(steps, self.updates, seed))
        if not self.dual:
            return steps.action, weights
        return ACTIONS.get(key, lambda: learned_actions(steps, weights, self.updates, seed)), torch.ones_like(weights)

    def choose(self, steps: Steps, task: int, own: Tensor, seed: int, rng) -> np.ndarray:
        """Which steps of a task are stored.

        Args:
            own: What the kept policy does at all steps, (N, 2).
        """
        own_task = slice(*steps.begin[task:task + 2])
        if self.selection == "random":
            return rng.permutation(len(steps.x[own_task]))[:self.n_stored]
        if self.selection == "top return":
            return np.argsort(-steps.episode_return[own_task], kind="stable")[:self.n_stored]
        table, is_shuffled = StepTable.from_data(steps.tasks[task], (STATE,)), self.selection == "shuffled model"
        order = np.random.default_rng([seed, 4, task]).permutation(len(table)) if is_shuffled else np.arange(len(table))
        learned_from = replace(table, next_state=table.next_state[order])
        model = MODELS.get((seed, task, self.updates, is_shuffled, len(table)), lambda: fit_transitions(
            learned_from, 3 * self.updates, seed))
        return np.array(roll_out(table, model, own[own_task].numpy(), self.n_stored, int(rng.integers(2**31))))


def successes(nets: Networks, n_networks: int, episodes: int, starts: int) -> np.ndarray:
    """Rate of success of each network in each task, over the same starts in each, (networks, tasks)."""
    rates, rows = [], n_networks * episodes
    for task in range(N_TASKS):
        env, success = world(task, rows), torch.zeros((rows,), dtype=torch.bool)
        obs = env.reset(torch.arange(rows), keys(starts, range(episodes)).repeat(n_networks))
        for _ in range(env.metadata["limit"]):
            state = obs[STATE].unflatten(0, (n_networks, episodes))
            with torch.no_grad():
                action = nets(observed_in(torch.full(state.shape[:2], 2 * task), state))
            result = env.step(action.flatten(0, 1))
            obs, success = result.obs, success | result.info["success"]
        rates.append(success.float().unflatten(0, (n_networks, episodes)).mean(1).numpy())
    return np.stack(rates, 1)


def final_success(experiment, arm: OfflineSequence, data: Dataset, seed: int, episodes: int, starts: int
                  ) -> dict[str, list[float]]:
    """Success in each task at the end, for each order."""
    return {"success": successes(arm.learn(data, seed), N_ORDERS, episodes, starts).flatten().tolist()}


TABLE = Experiment(
    MixedTasks(), env="particle", env_options=(("fully_observed", True),), measure=final_success, first_seed=2500,
    episodes=50, levels={"all at once": 0.65}, arms={
        "one after the other": OfflineSequence(), "all at once": OfflineSequence(joint=True),
        "dual, random": OfflineSequence("random"), "dual, model-chosen": OfflineSequence("model"),
        "dual, top return": OfflineSequence("top return"),
        "dual, random, own actions": OfflineSequence("random", relabel=True),
        "single, random": OfflineSequence("random", dual=False),
        "single, model-chosen": OfflineSequence("model", dual=False),
        "single, top return": OfflineSequence("top return", dual=False),
        "shuffled next states": OfflineSequence("shuffled model")})
