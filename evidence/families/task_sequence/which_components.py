"""Row 070: five hidden contexts, one after the other. Does a system of three components do more than each alone?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evidence.experiment import DemonstrationSource, Experiment
from evidence.families.task_sequence.what_to_keep import (
    BATCH,
    N_ORDERS,
    N_TASKS,
    STATE,
    Networks,
    observed_in,
)
from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.lifelong import lifelong_metrics
from understudy.evaluate.rollout import rollout
from understudy.improve.drift_detection import DriftDetector
from understudy.learn.cloning.elastic_weights import elastic_penalty

N_CONTEXTS, N_STORED, N_SHOWN, HALF, WEIGHT = 5, 200, 5, BATCH // 2, 1.0


def world(context: int, rows: int):
    """The particle with the goals of a context: 0.35 from the center, at the same places in its frame."""
    angle = context * 2 * np.pi / N_TASKS
    cos, sin = 0.35 * np.cos(angle), 0.35 * np.sin(angle)
    return make("particle", rows=rows, fully_observed=True, goals=((0.5 + cos, 0.5 - sin), (0.5 + sin, 0.5 + cos)))


@dataclass(frozen=True)
class ContextDemonstrations(DemonstrationSource):
    """Demonstrations of the particle in each context, one context after the other."""

    per_context: int = 40

    def load(self, seed):
        envs = [world(context, 20) for context in range(N_CONTEXTS)]
        return Dataset([e for i, env in enumerate(envs) for e in rollout(
            env.expert(), env, self.per_context, recording_seed(seed), first=1000 * i)])


def observed(context: np.ndarray, number: np.ndarray, state: Tensor) -> Tensor:
    """States (..., 9) in the frame of a hidden context, and the number that the policy takes for it."""
    frame = observed_in(torch.from_numpy(context), state)[..., :state.shape[-1]]
    return torch.cat([frame, F.one_hot(torch.from_numpy(number), N_TASKS).float()], -1)


class ContextSteps:
    """The steps of all demonstrations, one context after the other."""

    def __init__(self, data: Dataset):
        self.state, self.action = (torch.from_numpy(np.concatenate([e.steps[name][:len(e)] for e in data]))
                                   for name in (STATE, "action"))
        self.size = data.lengths.reshape(N_CONTEXTS, -1).sum(1)
        self.begin = np.cumsum(self.size) - self.size

    def draw(self, context: np.ndarray, number: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(self.begin[context] + (rng.random(context.shape) * self.size[context]).astype(int))
        return observed(context, number, self.state[index]), self.action[index]


class Reservoir:
    """Steps of networks that are drawn uniformly from all that came so far: inputs and actions (networks, n, size)."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.n, self.stored = rng, 0, [torch.zeros(N_ORDERS, N_STORED, size) for size in (9 + N_TASKS, 2)]

    def add(self, *steps: Tensor) -> None:
        for i in range(steps[0].shape[1]):
            slot = self.n if self.n < N_STORED else self.rng.integers(self.n + 1)
            self.n += 1
            if slot < N_STORED:
                for stored, new in zip(self.stored, steps, strict=True):
                    stored[:, slot] = new[:, i]

    def draw(self, n: int) -> list[Tensor]:
        index = self.rng.integers(min(self.n, N_STORED), size=(N_ORDERS, n))
        return [s[torch.arange(N_ORDERS)[:, None], torch.from_numpy(index)] for s in self.stored]


@dataclass(frozen=True)
class Course:
    """A learner of five contexts in turn, in several orders at once, and its components.

    Args:
        replay: Half of each batch is of 200 stored steps.
        elastic: Weight of EWC, with an anchor after each context.
        numbers: What tells the network which context it is in: nothing, a drift detector, the truth, or a number that
            grows at four random updates.
        joint: All contexts are learned at once.
    """

    replay: bool = False
    elastic: float = 0.0
    numbers: Literal["none", "detected", "true", "random"] = "none"
    joint: bool = False
    updates: int = 400  # in a context

    def learn(self, data: Dataset, seed: int, evaluate) -> tuple[np.ndarray, np.ndarray]:
        """Trains.

        Returns:
            Success in each context, in the order of training, before any training and after each,
            (orders, contexts + 1, contexts), and the highest number of each order.
        """
        rng = np.random.default_rng([seed, 1])
        orders = np.array([rng.permutation(N_CONTEXTS) for _ in range(N_ORDERS)])
        nets, steps = Networks(N_ORDERS, seed), ContextSteps(data)
        changes = np.sort(rng.integers(N_CONTEXTS * self.updates, size=(N_ORDERS, N_CONTEXTS - 1)))
        detectors, stored = [DriftDetector() for _ in orders], Reservoir(rng)
        number, anchors, matrix = np.zeros(N_ORDERS, int), [], [evaluate(nets, np.zeros(N_ORDERS, int))]
        for update in range(N_CONTEXTS * self.updates):
            block = np.full((N_ORDERS, BATCH), update // self.updates)
            if self.joint:
                block = rng.integers(N_CONTEXTS, size=block.shape)
            if self.numbers == "true":
                number = np.full(N_ORDERS, N_CONTEXTS - 1 if self.joint else block[0, 0])
            if self.numbers == "random":
                number = (changes <= update).sum(1)
            numbers = block if self.numbers == "true" else np.repeat(number[:, None], BATCH, 1)
            x, action = steps.draw(np.take_along_axis(orders, block, 1), numbers, rng)
            if self.numbers == "detected":
                with torch.no_grad():
                    loss = (nets(x) - action).square().mean((1, 2)).log().tolist()
                alarms = [detector.update(value) for detector, value in zip(detectors, loss, strict=True)]
                number = np.minimum(number + alarms, N_TASKS - 1)
            if self.replay:
                stored.add(x[:, :HALF], action[:, :HALF])
                x, action = (torch.cat([new[:, :HALF], old], 1)
                             for new, old in zip((x, action), stored.draw(HALF), strict=True))
            self._update(nets, x, action, anchors)
            if (update + 1) % self.updates == 0:
                matrix.append(evaluate(nets, number))
                if self.elastic:
                    present = (a[:, :1].repeat(1024, 1) for a in (np.take_along_axis(orders, block, 1), numbers))
                    fisher = nets.fisher(*steps.draw(*present, rng))
                    anchors.append((fisher, [p.detach().clone() for p in nets.parameters]))
        matrices = np.take_along_axis(np.stack(matrix, 1), orders[:, None], 2)
        return matrices, number

    def _update(self, nets, x, action, anchors):
        loss = (nets(x) - action).square().mean((1, 2)).sum()
        for fisher, old in anchors:
            loss = loss + self.elastic * elastic_penalty(nets.parameters, fisher, old)
        nets.optimizer.zero_grad()
        loss.backward()
        nets.optimizer.step()


def successes(nets, highest: np.ndarray, episodes: int, starts: int) -> np.ndarray:
    """Rate of success of each network in each context, over the same starts, (networks, contexts).

    The expert acts in the first steps of an episode. A network then acts with that number, of those up to its highest
    one, with which it predicted these actions best.
    """
    shape = len(highest), episodes
    rows, start_keys, rates = len(highest) * episodes, keys(starts, range(episodes)).repeat(len(highest)), []
    for number in range(N_CONTEXTS):
        env, context = world(number, rows), np.full(shape, number)
        expert, obs, success = (env.expert(), env.reset(torch.arange(rows), start_keys),
                                torch.zeros((rows,), dtype=torch.bool))
        expert_state, error = expert.start(obs, start_keys), np.zeros((N_TASKS, *shape))
        error[np.arange(N_TASKS)[:, None] > highest] = np.inf
        for t in range(env.metadata["limit"]):
            state = obs[STATE].unflatten(0, shape)
            with torch.no_grad():
                if t < N_SHOWN:
                    action, expert_state = expert.act(obs, expert_state)
                    for i in range(highest.max() + 1):
                        planned = nets(observed(context, np.full(shape, i), state)).flatten(0, 1)
                        error[i] += (planned - action).square().sum(1).unflatten(0, shape).numpy()
                else:
                    action = nets(observed(context, error.argmin(0), state)).flatten(0, 1)
            result = env.step(action)
            obs, success = result.obs, success | result.info["success"]
        rates.append(success.float().unflatten(0, shape).mean(-1).numpy())
    return np.stack(rates, 1)


def course_metrics(experiment, arm: Course, data: Dataset, seed: int, episodes: int, starts: int
                   ) -> dict[str, list[float]]:
    """Success in each context at the end, metrics of each order, and the numbers that each order uses."""
    matrices, number = arm.learn(data, seed, lambda nets, highest: successes(
        nets, highest, episodes, starts))
    metrics = [lifelong_metrics(matrix) for matrix in matrices]
    return {"success": matrices[:, -1].flatten().tolist(), "maintenance": [m.maintenance for m in metrics],
            "forward": [m.forward for m in metrics], "numbers": (number + 1.0).tolist()}


TABLE = Experiment(
    ContextDemonstrations(), env="particle", env_options=(("fully_observed", True),), measure=course_metrics,
    first_seed=3600, n_seeds=10, episodes=30,
    levels={"all at once, contexts told": 0.8}, arms={
        "one after the other": Course(), "replay": Course(replay=True), "EWC": Course(elastic=WEIGHT),
        "detector": Course(numbers="detected"), "replay, EWC": Course(True, WEIGHT),
        "replay, detector": Course(True, numbers="detected"), "EWC, detector": Course(False, WEIGHT, "detected"),
        "all three": Course(True, WEIGHT, "detected"), "all at once": Course(joint=True),
        "all at once, contexts told": Course(joint=True, numbers="true"),
        "all three, random": Course(True, WEIGHT, "random")})
