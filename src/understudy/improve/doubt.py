"""Gates by doubt: the policy asks for help where an ensemble disagrees or where a critic predicts failure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..core import Above, AtLeast, AtMost, DataError, State, Unsupported, UserError, keys, part, role
from ..data.episode import Dataset, Episode
from ..data.mixture import ROUND
from ..execute.actor import Actor, PolicyActor
from ..execute.doubt import DOUBT
from ..execute.planners import FixedBatch
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.critics.fitted_q import FittedQ, FittedQLearner
from ..learn.fit import fit
from ..learn.fit_method import ROWS
from ..learn.method import Method
from ..learn.stacked import fit_seeds
from ..learn.targets import REWARD, TERMINATED
from ..policy import camera_sizes
from .gates import INTERVENTION, BuiltGate, Gate
from .unlearned_steps import UNLEARNED, UnflaggedParts

SUCCESS = "next.success"
HOLD_OUT_EVERY = 5  # episodes
SEED_STRIDE = 1000  # between the seeds of two rounds


def quantile_threshold(values: np.ndarray, fraction: float) -> float:
    """Returns the threshold that at most a given fraction of the values exceeds."""
    ordered = np.sort(np.asarray(values, float))
    above = int(fraction * len(ordered) + 1e-9)
    return float(ordered[len(ordered) - above - 1]) if above < len(ordered) else -np.inf


class Doubt(ABC):
    """A measure of doubt: a number for each step that is larger where the policy is more likely to need help."""

    @abstractmethod
    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Returns the state of the measure before the first step. Arguments as in `Actor.start`."""

    @abstractmethod
    def rate(self, obs: Mapping[str, Tensor], action: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the doubt about the action in each environment, (B,), and the next state.

        Args:
            action: The action of the policy, (B, A).
        """


@part
class QuantileGate(Gate):
    """Base class of gates that ask for help by themselves, so that nobody has to watch.

    The supervisor takes over where the doubt exceeds a threshold, and gives back control where the doubt does not
    exceed a second, lower threshold. Both are quantiles of the doubt at the steps at which the policy acted in earlier
    rounds. Until the policy has acted, they are quantiles over every fifth episode, and the networks that measure doubt
    are not trained on these episodes.

    Args:
        budget: Fraction of the policy's steps at which doubt is above the threshold. The supervisor acts at more steps
            than this, because it continues until doubt is low again.
        release: Fraction of the policy's steps at which doubt is above the lower threshold.
    """

    needs_attention = False

    budget: Annotated[float, Above(0), AtMost(1)] = 0.1
    release: Annotated[float, AtLeast(0), AtMost(1)] = 0.5

    def __post_init__(self):
        if self.release < self.budget:
            raise UserError(f"doubt is low again for {self.release:g} of the steps or more, which is less than the "
                            f"{self.budget:g} above the threshold", where=f"{type(self).__name__}.release",
                            hint="use a release of at least the budget")

    @abstractmethod
    def build_doubt(self, training, number: int, data: Dataset) -> Doubt:
        """Builds the measure of doubt for one collection round.

        Args:
            training: As in `Gate.build`.
            data: The episodes on which its networks are trained.
        """

    def build(self, training, number):
        data, steps = training.stored, own_steps(training.stored)
        if not steps:
            held_out = range(0, len(data), HOLD_OUT_EVERY)
            steps = [(e, np.ones(len(e), bool)) for e in data.select(held_out)]
            if len(data) > 1:
                data = data.select(i for i in range(len(data)) if i not in held_out)
        doubt = self.build_doubt(training, number, data)
        values = doubt_along(doubt, steps)
        high, low = (quantile_threshold(values, share) for share in (self.budget, self.release))
        return BuiltQuantileGate(doubt, high, low)


@dataclass(frozen=True)
class BuiltQuantileGate(BuiltGate):
    """Gate that asks the supervisor where the doubt exceeds `threshold`, until it falls to `release`."""

    needs_attention = False
    asks_always = False

    doubt: Doubt
    threshold: float
    release: float

    def start(self, obs, key, number):
        return {"doubt": self.doubt.start(obs, key), "acts": torch.zeros(len(key), dtype=torch.bool)}

    def wants_advice(self, obs, action, state):
        value, doubt = self.doubt.rate(obs, action, state["doubt"])
        acts = value > torch.where(state["acts"], self.release, self.threshold)
        return acts, {"doubt": doubt, "acts": acts, "record": {DOUBT: value}}

    def decide(self, obs, action, supervisor_action, state):
        return state["acts"], state


@part
class EitherGate(Gate):
    """Gate that lets the supervisor act where any of several gates asks for it, and stores the doubt of the first one.

    Args:
        gates: Gates by doubt.
    """

    needs_attention = False

    gates: Annotated[tuple[QuantileGate, ...], AtLeast(1)]

    def build(self, training, number):
        return BuiltEitherGate(tuple(gate.build(training, number) for gate in self.gates))


@dataclass(frozen=True)
class BuiltEitherGate(BuiltGate):
    """The built form of an `EitherGate`, which decides at each step."""

    needs_attention = False
    asks_always = False

    gates: tuple[BuiltGate, ...]

    def start(self, obs, key, number):
        return {str(i): gate.start(obs, key, number) for i, gate in enumerate(self.gates)}

    def wants_advice(self, obs, action, state):
        results = [gate.wants_advice(obs, action, state[str(i)]) for i, gate in enumerate(self.gates)]
        asked = torch.stack([asks for asks, _ in results]).any(0)
        return asked, {str(i): inner for i, (_, inner) in enumerate(results)}

    def decide(self, obs, action, supervisor_action, state):
        results = [gate.decide(obs, action, supervisor_action, state[str(i)]) for i, gate in enumerate(self.gates)]
        acts = torch.stack([acts for acts, _ in results]).any(0)
        states = [dict(inner) for _, inner in results]
        records = [inner.pop("record", {}) for inner in states]
        return acts, {**{str(i): inner for i, inner in enumerate(states)}, "record": records[0]}


# -- disagreement ---------------------------------------------------------------------------------------------------


@part
class EnsembleGate(QuantileGate):
    """Gate by doubt whose doubt is the disagreement of an ensemble, trained anew before each collection round.

    The members differ in their initial weights and in the order of the data. The policy itself acts, and not their
    mean.

    Args:
        n_members: Number of policies in the ensemble.
        steps: Updates of each member.

    References:
        Menda et al. (2019), EnsembleDAgger: A Bayesian Approach to Safe Imitation Learning, arXiv:1807.08364, which
        also compares with the action of the expert.
    """

    n_members: Annotated[int, AtLeast(2)] = 5
    steps: Annotated[int, AtLeast(1)] = 500

    def build_doubt(self, training, number, data):
        config, policy = training.learner.config, training.learner.policy
        if policy.target.kind == "discrete":
            raise Unsupported("the spread of an ensemble is that of numbers, and the actions are classes",
                              where="EnsembleGate", hint="choose a gate that compares actions, such as --with safe")
        assert isinstance(config, BehaviorCloning)
        seeds = [training.seed + SEED_STRIDE * (number + 1) + i for i in range(self.n_members)]
        trained = fit_seeds(Method(policy.config, learner=replace(config, steps=self.steps)), data, seeds)
        scale = np.concatenate([_actions(e) for e in data]).std(0)
        return EnsembleSpread(tuple(training.actor(result.policy) for result in trained),
                              torch.from_numpy(np.maximum(scale, 1e-6)).float())


@dataclass(frozen=True)
class EnsembleSpread(Doubt):
    """The standard deviation of what several actors would do, as the root mean square over the components.

    Args:
        scale: A deviation of 1 in each component, (A,).
    """

    actors: tuple[Actor, ...]
    scale: Tensor

    def start(self, obs, key):
        return {str(i): actor.start(obs, key) for i, actor in enumerate(self.actors)}

    def rate(self, obs, action, state):
        results = [actor.act(obs, state[str(i)]) for i, actor in enumerate(self.actors)]
        actions = torch.stack([member.float() for member, _ in results]) / self.scale
        states = {str(i): {k: v for k, v in inner.items() if k != "record"} for i, (_, inner) in enumerate(results)}
        return actions.var(0, correction=0).mean(1).sqrt(), states


# -- risk -----------------------------------------------------------------------------------------------------------


@part
class RiskGate(QuantileGate):
    """Gate by doubt whose doubt is the predicted probability of failure: 1 minus the success that a critic predicts.

    The critic is trained anew before each round, on all stored episodes, for the policy as it is. Its reward is 1 at
    the first success, and the episode ends there.

    Args:
        critic: How it is trained.

    References:
        Hoque et al. (2021), ThriftyDAgger: Budget-Aware Novelty and Risk Gating for Interactive Imitation Learning,
        arXiv:2109.08273.
    """

    critic: FittedQ = field(default_factory=lambda: FittedQ(steps=2000, n_resamples=2))

    def build_doubt(self, training, number, data):
        policy = training.learner.trained_policy
        data = Dataset(UnflaggedParts(data.map(success_as_reward), UNLEARNED), data.metadata)
        if missing := [name for name in policy.inputs if name not in training.env.features]:
            raise Unsupported(f"the policy reads {missing[0]!r}, which the environment does not show and a critic of "
                              "single steps does not have", where="RiskGate", hint="use --with ensemble")
        seed = training.seed + SEED_STRIDE * (number + 1)
        config = replace(self.critic, skip=max(-policy.window.action_offset, 0), n_action_steps=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the first weights
            learner = config.build(policy, seed, config.steps, data)
        sampler = learner.batch_sampler(data)
        fit(learner, lambda n: sampler.batch(config.batch_size, n, seed), config.steps)
        return FailureRisk(learner, PolicyActor(policy, image_sizes=camera_sizes(policy.features)))


def success_as_reward(episode: Episode) -> Episode:
    """Sets the reward to 1 at steps that reach success, and ends each episode at the first of them."""
    if SUCCESS in episode.steps:
        success = np.asarray(episode.steps[SUCCESS][:len(episode)], bool).reshape(-1)
    elif "success" in episode.metadata:  # what a person has called the whole episode
        success = (np.arange(len(episode)) == len(episode) - 1) & bool(episode.metadata["success"])
    else:
        raise DataError(f"the episode has no column {SUCCESS!r}, and no \"success\" in its metadata, so that nobody "
                        "knows which steps lead to failure", where="RiskGate",
                        hint="use data of an environment that defines success, or --with ensemble")
    terminated = np.zeros(len(episode), bool)
    if TERMINATED in episode.steps:
        terminated = np.asarray(episode.steps[TERMINATED][:len(episode)], bool).reshape(-1)
    return episode.replace({REWARD: success.astype(np.float32), TERMINATED: terminated | success})


@dataclass(frozen=True)
class FailureRisk(Doubt):
    """Measure of doubt: one minus the success that a critic predicts.

    Args:
        history: Keeps the observations that the critic reads.
    """

    learner: FittedQLearner
    history: PolicyActor

    def start(self, obs, key):
        return {"seen": self.history.first_windows(obs, key)[1]}

    @torch.no_grad()
    def rate(self, obs, action, state):
        windows, plans = self.history.next_windows(obs, state["seen"]), action.float().unsqueeze(1)
        score = FixedBatch(self.history.planner, ROWS).in_groups(
            lambda *rows: self.learner.critic.scores(*rows)[0], len(action), windows, plans.to(self.learner.device))
        return 1 - self.learner.scale * score.cpu(), {"seen": windows}


# -- doubt of recorded steps ------------------------------------------------------------------------------------------


def doubt_along(doubt: Doubt, steps: list[tuple[Episode, np.ndarray]]) -> np.ndarray:
    """Returns the doubt about the recorded actions at recorded steps.

    Args:
        steps: Episodes, and which of their steps count, (T,) bool.
    """
    values = []
    for first in range(0, len(steps), ROWS):
        group = steps[first:first + ROWS]
        columns = [{k: np.asarray(v) for k, v in e.steps.items() if role(k) == "observation"} for e, _ in group]
        names, lengths = set.intersection(*map(set, columns)), [len(e) for e, _ in group]
        key, state = keys(0, range(first, first + len(group))), None
        for t in range(max(lengths)):
            at = [min(t, n - 1) for n in lengths]
            obs = {k: torch.from_numpy(np.stack([c[k][i] for c, i in zip(columns, at, strict=True)])) for k in names}
            action = torch.from_numpy(np.stack([_actions(e)[i] for (e, _), i in zip(group, at, strict=True)])).float()
            state = doubt.start(obs, key) if state is None else state
            value, state = doubt.rate(obs, action, state)
            values += [float(v) for v, (_, counts), n in zip(value, group, lengths, strict=True) if t < n and counts[t]]
    return np.array(values)


def _actions(episode: Episode) -> np.ndarray:
    return np.asarray(episode.steps["action"][:len(episode)], float).reshape(len(episode), -1)


def own_steps(data: Dataset) -> list[tuple[Episode, np.ndarray]]:
    """Returns the episodes of earlier rounds in which the policy acted, each with a mask of these steps, (T,) bool."""
    collected = [(e, ~np.asarray(e.steps[INTERVENTION][:len(e)], bool).reshape(-1)) for e in data
                 if ROUND in e.metadata and INTERVENTION in e.steps]
    return [(episode, counts) for episode, counts in collected if counts.any()]
