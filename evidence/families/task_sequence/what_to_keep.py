"""Row 141: eight tasks one after the other. How often must old tasks reappear, and how much of them must be kept?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evidence.experiment import DemonstrationSource, Experiment, ExpertDemonstrations
from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.envs import make

STATE, N_TASKS, N_ORDERS, N_SESSIONS = "observation.state", 8, 3, 10
N_INPUTS, WIDTH, BATCH, RATE = 9 + N_TASKS, 64, 128, 1e-3
Law = Literal["none", "uniform", "power", "exponential"]


@dataclass(frozen=True)
class TaskDemonstrations(DemonstrationSource):
    """`per_task` demonstrations of the particle for each task, one task after the other."""

    per_task: int = 50

    def load(self, seed):
        return ExpertDemonstrations("particle", N_TASKS * self.per_task, options=(("fully_observed", True),)).load(seed)


def observed_in(task: Tensor, state: Tensor) -> Tensor:
    """What a policy observes of states (..., 9): in a frame that is turned by 45 degrees per task, and the task.

    Args:
        task: Numbers of tasks, (...).
    """
    angle = task * (2 * torch.pi / N_TASKS)
    cos, sin = angle.cos(), angle.sin()
    pairs = state[..., :8].unflatten(-1, (4, 2)) - torch.tensor([[0.5], [0.0], [0.5], [0.5]])
    x, y = pairs.unbind(-1)
    turned = torch.stack([cos[..., None] * x - sin[..., None] * y, sin[..., None] * x + cos[..., None] * y], -1)
    return torch.cat([turned.flatten(-2), state[..., 8:], F.one_hot(task, N_TASKS).float()], -1)


def rehearsal(law: Law, exponent: float, age: np.ndarray) -> np.ndarray:
    """Probability that each earlier task reappears.

    Args:
        age: Sessions since each task was last performed, at least 1.
    """
    weight = np.exp(-exponent * age) if law == "exponential" else age ** -(exponent if law == "power" else 0.0)
    return weight / weight.sum()


class Networks:
    """Several networks of two layers, trained at once: parameters (networks, inputs, outputs)."""

    def __init__(self, n: int, seed: int):
        rng = torch.Generator().manual_seed(seed)
        sizes = N_INPUTS, WIDTH, WIDTH, 2
        self.weights = [torch.randn((n, i, o), generator=rng) / i**0.5 for i, o in pairwise(sizes)]
        self.biases = [torch.zeros(n, 1, o) for o in sizes[1:]]
        self.parameters = [p.requires_grad_() for p in (*self.weights, *self.biases)]
        self.optimizer = torch.optim.Adam(self.parameters, RATE)

    def layers(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs of the layers, for observations (networks, batch, inputs)."""
        inputs, outputs = [], []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs.append(x if not outputs else F.silu(outputs[-1]))
            outputs.append(inputs[-1] @ weight + bias)
        return inputs, outputs

    def __call__(self, x: Tensor) -> Tensor:
        return self.layers(x)[1][-1]

    def fisher(self, x: Tensor, action: Tensor) -> list[Tensor]:
        """Mean of the squared gradient of the squared error of single steps, for each parameter."""
        inputs, outputs = self.layers(x)
        loss = (outputs[-1] - action).square().sum()
        gradients = [g.square() for g in torch.autograd.grad(loss, outputs)]
        weights = [i.square().mT @ g / x.shape[1] for i, g in zip(inputs, gradients, strict=True)]
        return [w.detach() for w in (*weights, *(g.mean(1, keepdim=True) for g in gradients))]


@dataclass(frozen=True)
class Sequence:
    """Learns the tasks one after the other, in several orders at once.

    A task has ten sessions. In each, half of a batch is of one earlier task, which is drawn by `law`.

    Args:
        law: How the chance that a task reappears depends on the sessions since it was last performed.
        exponent: Of the power, or of the exponential.
        kept: Number of demonstrations that are kept of each earlier task. None for all.
        elastic: Weight of the elastic penalty (EWC).
        joint: All tasks are learned at once.
    """

    law: Law = "none"
    exponent: float = 1.0
    kept: int | None = None
    elastic: float = 0.0
    joint: bool = False
    updates: int = 60  # in a session

    def learn(self, data: Dataset, seed: int, evaluate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trains.

        Returns:
            The orders of the tasks, success in each task after it was learned, and at the end, (orders, tasks) each.
        """
        rng, per_task = np.random.default_rng([seed, 1]), len(data) // N_TASKS
        orders = np.array([rng.permutation(N_TASKS) for _ in range(N_ORDERS)])
        nets, steps = Networks(N_ORDERS, seed), _steps_of_tasks(data, per_task, self.kept)
        first, last_session, anchors = np.zeros((N_ORDERS, N_TASKS)), np.zeros((N_ORDERS, N_TASKS), int), []
        for session in range(N_TASKS * N_SESSIONS):
            number, rows = session // N_SESSIONS, np.arange(N_ORDERS)
            new, old = orders[:, number], orders[:, :number]
            revisited = new
            if number and self.law != "none":
                age = session - np.take_along_axis(last_session, old, 1)
                revisited = np.array([rng.choice(o, p=rehearsal(self.law, self.exponent, a))
                                      for o, a in zip(old, age, strict=True)])
                last_session[rows, revisited] = session
            last_session[rows, new] = session
            for _ in range(self.updates):
                tasks = np.stack([np.repeat(new, BATCH // 2), np.repeat(revisited, BATCH // 2)])
                tasks = np.concatenate(tasks.reshape(2, N_ORDERS, -1), 1)
                if self.joint:
                    tasks = rng.integers(N_TASKS, size=tasks.shape)
                self._update(nets, *_batch(steps, tasks, new[:, None], rng), anchors)
            if (session + 1) % N_SESSIONS == 0:
                first[rows, new] = evaluate(nets, new[:, None])[:, 0]
                if self.elastic:
                    x, action = _batch(steps, np.repeat(new[:, None], 1024, 1), new[:, None], rng)
                    anchors.append((nets.fisher(x, action), [p.detach().clone() for p in nets.parameters]))
        return orders, first, evaluate(nets, np.tile(np.arange(N_TASKS), (N_ORDERS, 1)))

    def _update(self, nets, x, action, anchors):
        loss = (nets(x) - action).square().mean((1, 2)).sum()
        for fisher, anchor in anchors:
            loss = loss + self.elastic * sum((f * (p - a).square()).sum()
                                             for f, p, a in zip(fisher, nets.parameters, anchor, strict=True))
        nets.optimizer.zero_grad()
        loss.backward()
        nets.optimizer.step()


def _steps_of_tasks(data: Dataset, per_task: int, kept: int | None) -> list[tuple[Tensor, Tensor, int]]:
    """States (n, 9) and actions (n, 2) of each task, and how many of the first steps are kept when it is over."""
    columns = []
    for task in range(N_TASKS):
        episodes = list(data)[task * per_task:(task + 1) * per_task]
        state, action = (torch.from_numpy(np.concatenate([e.steps[name][:len(e)] for e in episodes]))
                         for name in (STATE, "action"))
        columns.append((state, action, sum(len(e) for e in episodes[:kept])))
    return columns


def _batch(steps, tasks: np.ndarray, new: np.ndarray, rng) -> tuple[Tensor, Tensor]:
    """Draws a step of each task (networks, batch): from all of its steps if it is new, otherwise from those kept."""
    size = np.array([[len(s[0]), s[2]] for s in steps])
    index = (rng.random(tasks.shape) * np.where(tasks == new, size[tasks, 0], size[tasks, 1])).astype(int)
    begin = np.concatenate([[0], np.cumsum(size[:-1, 0])])
    state, action = (torch.cat([s[i] for s in steps])[torch.from_numpy(begin[tasks] + index)] for i in (0, 1))
    return observed_in(torch.from_numpy(tasks), state), action


def successes(nets: Networks, tasks: np.ndarray, episodes: int, starts: int) -> np.ndarray:
    """Rate of success of each network in tasks (networks, n), over the same starts in each, (networks, n)."""
    rows = episodes * tasks.size
    env = make("particle", rows=rows, fully_observed=True)
    which, task = torch.arange(rows), torch.from_numpy(tasks).repeat_interleave(episodes, 1)
    obs = env.reset(which, keys(starts, range(episodes)).repeat(tasks.size))
    success = torch.zeros((rows,), dtype=torch.bool)
    for _ in range(env.metadata["limit"]):
        with torch.no_grad():
            action = nets(observed_in(task, obs[STATE].unflatten(0, task.shape)))
        result = env.step(action.flatten(0, 1))
        obs, success = result.obs, success | result.info["success"]
    return success.float().unflatten(0, (*tasks.shape, episodes)).mean(-1).numpy()


def final_success(experiment, arm: Sequence, data: Dataset, seed: int, episodes: int, starts: int
                  ) -> dict[str, list[float]]:
    """Success in each task at the end and what was lost of it, for each order.

    "recent": success as an environment asks for it in which a task of n tasks ago is needed 1 / n as often.
    """
    orders, first, last = arm.learn(data, seed, lambda nets, tasks: successes(nets, tasks, episodes, starts))
    need = 1 / np.arange(N_TASKS, 0, -1)
    recent = np.take_along_axis(last, orders, 1) @ need / need.sum()
    return {"success": last.flatten().tolist(), "lost": (first - last).flatten().tolist(), "recent": recent.tolist()}


TABLE = Experiment(
    TaskDemonstrations(), env="particle", env_options=(("fully_observed", True),), measure=final_success,
    first_seed=860, episodes=50, levels={"all at once": 0.65}, arms={
        "one after the other": Sequence(), "all at once": Sequence(joint=True), "EWC": Sequence(elastic=0.1),
        "uniform": Sequence("uniform"), "power law": Sequence("power"), "weak power law": Sequence("power", 0.5),
        "exponential": Sequence("exponential"), "longest ago": Sequence("power", -1.0),
        "uniform, 5 kept": Sequence("uniform", kept=5), "uniform, 20 kept": Sequence("uniform", kept=20)})
