"""Wrappers that change what an actor observes, and what its actions mean.

An `ActionWrapper` has three forms. `envs.wrappers.WrappedEnv` is the environment to learn in, `WrappedActor` is the
actor to deploy, and `ActionWrapper.transform_episode` converts recorded episodes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import FromStage
from ..core import Above, AtLeast, Feature, Schema, State, Unsupported, UserError, keys, part, put, role, take
from ..data.episode import Episode
from ..data.text_columns import TaskText
from ..nets.quantization import FSQ
from ..policy import Planner, camera_sizes
from .actor import LAST_REWARD, Actor, PolicyActor
from .base import Executor
from .chunking import RecedingHorizon

BASE_ACTION = "observation.base_action"


class ActionWrapper(ABC):
    """Config of a wrapper: what an actor observes in addition, and what its actions mean. Subclasses are dataclasses.

    At each environment step, `transform_obs` is called first and `transform_action` after it. The actor chooses a new
    action every `period` steps.

    Attributes:
        period: Number of environment steps per action.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # subclasses are dataclasses
    period: int = 1

    def features(self, features: Schema) -> Schema:
        """Returns the columns that the actor observes, and its action. Raises UserError if columns do not fit."""
        return features

    def action_limits(self) -> tuple[float, float] | None:
        """Returns the lowest and the highest value of each action component of the actor. None without limits."""
        return None

    def start(self, obs: Mapping[str, Tensor], key: Tensor) -> State:
        """Returns the state before the first step. It has at least one tensor, rows first.

        Args:
            obs: The first observation of each row, (B, ...).
            key: Source of all randomness of each row, (B,) int64.
        """
        return {"key": key}

    def transform_obs(self, obs: Mapping[str, Tensor], state: State) -> tuple[Mapping[str, Tensor], State]:
        """Returns what the actor observes, and the next state.

        Args:
            obs: What the environment shows, (B, ...).
            state: The state. It is not changed in place.
        """
        return obs, state

    @abstractmethod
    def transform_action(self, obs: Mapping[str, Tensor], action: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the action that the environment executes, and the next state.

        Args:
            obs: What the environment shows, (B, ...).
            action: The actor's action, (B, A). It is the same for `period` steps.
            state: The state. It is not changed in place.
        """

    def transform_episode(self, episode: Episode) -> Episode:
        """Returns what the actor would have observed and done in a recorded episode of the environment.

        Raises:
            Unsupported: If the actions have no inverse.
        """
        raise Unsupported(f"{type(self).__name__} cannot tell which of its actions would have led to recorded ones",
                          where=type(self).__name__,
                          hint="judge the policy where it acts (understudy eval RUN ENV). Its actions are in episodes "
                               "that it collects while training, or that are recorded in WrappedEnv(env, wrapper)")

    def is_terminated(self, state: State) -> Tensor:
        """Returns whether the current action of each row is over before its period, (B,) bool.

        It is called after `transform_obs`. `WrappedActor` then chooses a new action.
        """
        return torch.zeros(_n_rows(state), dtype=torch.bool)


def wrapped_env_name(name: str, wrapper: ActionWrapper) -> str:
    """Returns the name of an environment together with a wrapper."""
    return f"{name}+{type(wrapper).__name__}"


def is_wrapped(episode: Episode, wrapper: ActionWrapper) -> bool:
    """Returns whether an episode was recorded in `WrappedEnv` with a wrapper of this class, by its metadata "env"."""
    return str(episode.metadata.get("env", "")).endswith(wrapped_env_name("", wrapper))


def _n_rows(state) -> int:
    while not isinstance(state, Tensor):
        state = next(part for part in state.values() if isinstance(part, Tensor) or part)
    return state.shape[0]


@dataclass(frozen=True)
class WrappedActor(Actor):
    """Actor for the plain environment, made of an actor for the wrapped environment.

    With a period above 1, the columns that `actor` records are repeated until its next action. The reward that it is
    told (`last.reward`) is the sum over the steps since its last action.
    """

    actor: Actor
    wrapper: ActionWrapper

    def start(self, obs, key):
        wrapped = self.wrapper.start(obs, key)
        inner_obs, _ = self.wrapper.transform_obs(obs, wrapped)
        if LAST_REWARD in obs:
            inner_obs = {**inner_obs, LAST_REWARD: torch.zeros(len(key))}
        inner = self.actor.start(inner_obs, key)
        state = {"inner": inner, "wrapper": wrapped, "reward": torch.zeros(len(key)),
                 "steps": torch.full_like(key, self.wrapper.period)}
        if self.wrapper.period > 1:  # the state is a value, so this call has no effect on it
            action, after = self.actor.act(inner_obs, inner)
            state["held"] = {"action": torch.zeros_like(action), "record": after.get("record", {})}
        return state

    def act(self, obs, state):
        inner_obs, wrapped = self.wrapper.transform_obs(obs, state["wrapper"])
        reward = state["reward"]
        if LAST_REWARD in obs:
            reward = reward + obs[LAST_REWARD]
            inner_obs = {**inner_obs, LAST_REWARD: reward}
        due = (state["steps"] >= self.wrapper.period) | self.wrapper.is_terminated(wrapped)
        inner, rows = state["inner"], due.nonzero().flatten()
        if len(rows) == len(due):
            choice, inner = self._choose(inner_obs, inner)
        else:
            choice = state["held"]
            if len(rows):
                new, after = self._choose(take(inner_obs, rows), take(inner, rows))
                choice, inner = put(choice, rows, new), put(inner, rows, after)
        action, wrapped = self.wrapper.transform_action(obs, choice["action"], wrapped)
        state = {"inner": inner, "wrapper": wrapped, "reward": torch.where(due, 0.0, reward),
                 "steps": torch.where(due, 0, state["steps"]) + 1,
                 **({"held": choice} if self.wrapper.period > 1 else {})}
        return action, {**state, "record": choice["record"]} if choice["record"] else state

    def _choose(self, obs, inner) -> tuple[State, State]:
        """Returns the inner actor's action and record, and its next state."""
        action, inner = self.actor.act(obs, inner)
        return {"action": action, "record": inner.get("record", {})}, _without_record(inner)


def _without_record(state: State) -> State:
    return {k: v for k, v in state.items() if k != "record"}


# -- wrappers ---------------------------------------------------------------------------------------------------------


@part
class ResidualWrapper(ActionWrapper):
    """Wrapper in which an action is a correction of a base policy's action, shown as `observation.base_action`.

    The environment executes ``base_action + scale * action``. With the same key, corrections of 0 give the episodes of
    the base policy.

    Args:
        base: The base policy: a planner, a stage that trained one, or an actor.
        scale: Factor of the corrections: one number, or one for each component of the action, in its units.
        period: Number of environment steps per correction. The base policy acts at every step.
        executor: Executes the plans of a base policy that is a planner.

    References:
        Ankile et al. (2024), From Imitation to Refinement: Residual RL for Precise Assembly, arXiv:2407.16677.
        Yuan et al. (2024), Policy Decorator: Model-Agnostic Online Refinement for Large Policy Model,
        arXiv:2412.13630.
    """

    base: Planner | Actor | FromStage
    scale: Annotated[float | tuple[float, ...], AtLeast(0)] = 0.1
    period: Annotated[int, AtLeast(1)] = 1
    executor: Executor = field(default_factory=RecedingHorizon)

    def features(self, features):
        action = _vector_action(features)
        if isinstance(self.scale, tuple) and len(self.scale) != action.size:
            raise UserError(f"there are {len(self.scale)} factors, but an action has {action.size} components",
                            where="ResidualWrapper.scale", hint="give one for each, or one number for all")
        return {**features, BASE_ACTION: replace(action, dtype="float32")}

    def action_limits(self):
        return -1.0, 1.0

    def start(self, obs, key):
        base = self._actor.start(obs, key)
        action, _ = self._actor.act(obs, base)  # for its shape; the state is a value
        return {"base": base, "action": torch.zeros_like(action, dtype=torch.float32)}

    def transform_obs(self, obs, state):
        action, base = self._actor.act(obs, state["base"])
        action = action.float()
        return {**obs, BASE_ACTION: action.clone()}, {"base": _without_record(base), "action": action}

    def transform_action(self, obs, action, state):
        scale = torch.tensor(self.scale) if isinstance(self.scale, tuple) else self.scale
        return state["action"] + scale * action, state

    def transform_episode(self, episode):
        """Adds the base actions and replaces the actions by corrections.

        The base policy acts along the recorded observations. It draws the same random numbers as in the recorded
        rollout if the episode has "seed" and "number". Corrections may exceed the limits if `scale` is small, and are 0
        if it is 0.

        Raises:
            Unsupported: If the period is above 1: corrections of recorded actions are not constant during a period.
        """
        if self.period != 1:
            raise Unsupported(f"recorded actions are not corrections that stay the same for {self.period} steps",
                              where="ResidualWrapper", hint="use period=1, or record episodes in WrappedEnv")
        action = np.asarray(episode.steps["action"][: len(episode)], np.float32)
        base = _actions_along(self._actor, episode)
        feature = _vector_action(episode.features())
        difference, scale = action - base[: len(episode)], np.asarray(self.scale, np.float32)
        columns = {BASE_ACTION: base, "action": np.divide(
            difference, scale, out=np.zeros_like(difference), where=np.broadcast_to(scale > 0, difference.shape))}
        return replace(episode.replace(columns), schema={
            **episode.schema, "action": replace(feature, dtype="float32", unit=None),
            BASE_ACTION: replace(feature, dtype="float32")})

    @property
    def _actor(self) -> Actor:
        return _as_actor(self.base, self.executor, "ResidualWrapper.base")


@part
class NoiseSteeringWrapper(ActionWrapper):
    """Wrapper in which an action is the noise from which a frozen policy samples its chunk.

    Args:
        policy: The policy, or the stage that trained it. It observes 1 step and plans from the current step.
        period: Number of steps executed from each chunk.
        bound: Noise is clipped to this value, since the policy was never trained with larger noise.

    References:
        Wagenmaker et al. (2025), Steering Your Diffusion Policy with Latent Space Reinforcement Learning,
        arXiv:2506.15799.
    """

    policy: Planner | FromStage
    period: Annotated[int, AtLeast(1)] = 4
    bound: Annotated[float, Above(0)] = 1.5

    def features(self, features):
        return {**features, "action": Feature("float32", (math.prod(self._noise_shape()),))}

    def action_limits(self):
        return -self.bound, self.bound

    def start(self, obs, key):
        policy = self._checked_policy()
        chunk = torch.zeros(len(key), self.period, policy.action_dim)
        return {"chunk": chunk, "step": torch.zeros_like(key)}

    def transform_action(self, obs, action, state):
        chunk, step = state["chunk"], state["step"]
        rows = (step == 0).nonzero().flatten()
        if len(rows):
            window = {k: obs[k][rows].unsqueeze(1) for k in self._checked_policy().inputs}
            plan = self.chunks(window, action[rows]).cpu()
            chunk = plan if len(rows) == len(step) else put(chunk, rows, plan)
        return chunk[torch.arange(len(step)), step], {"chunk": chunk, "step": (step + 1) % self.period}

    @torch.no_grad()
    def chunks(self, obs: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Returns the steps that are executed of the chunks to which noise leads, (B, period, A).

        Args:
            obs: Observations by column, (B, 1, ...).
            noise: Actions of the wrapper, (B, D).
        """
        policy = self._checked_policy()
        window = {k: obs[k].to(policy.device) for k in policy.inputs}
        noise = noise.clamp(-self.bound, self.bound).unflatten(1, self._noise_shape())
        return policy.plan(window, noise.to(policy.device))[:, :self.period]

    def draw_noise(self, key: Tensor) -> Tensor:
        """Returns noise as the policy draws it, (B, ...), given keys, (B,)."""
        noise = self._checked_policy().noise(key, torch.zeros_like(key))
        if not isinstance(noise, Tensor):
            raise Unsupported(f"{type(self.policy).__name__} draws several noises", where="NoiseSteeringWrapper",
                              hint="steer a policy that draws one")
        if not noise.numel():
            raise Unsupported("this policy uses no noise", where="NoiseSteeringWrapper",
                              hint="steer a generative policy, such as one with the head Flow")
        return noise

    def _noise_shape(self) -> tuple[int, ...]:
        return tuple(self.draw_noise(torch.zeros(1, dtype=torch.int64, device=self._checked_policy().device)).shape[1:])

    def _checked_policy(self) -> Planner:
        policy = _resolved_planner(self.policy, "NoiseSteeringWrapper.policy")
        window = policy.window
        if window.n_obs_steps != 1 or window.action_offset != 0:
            raise UserError(f"the policy must observe 1 step and plan from the current step, but it has {window}",
                            where="NoiseSteeringWrapper.policy",
                            hint="train it with Window(n_obs_steps=1, action_offset=0)")
        if not 1 <= self.period <= window.horizon:
            raise UserError(f"the period is {self.period}, but a chunk has {window.horizon} steps",
                            where="NoiseSteeringWrapper.period", hint=f"use a period from 1 to {window.horizon}")
        return policy


@part
class SkillWrapper(ActionWrapper):
    """Wrapper in which an action is a skill that a low-level policy reads as a column while it acts.

    A skill is a latent vector, a code or a phrase. It stays the same for `period` steps. If it is a code or a phrase,
    the action is a choice. For a code of a quantizer it is the level of each component.

    Args:
        low: The low-level policy, or the stage that trained it.
        period: Number of environment steps per skill.
        column: The column of the low-level policy that holds the skill.
        phrases: The phrases to choose from, if the column is text.
        bound: Largest absolute value of each component of a latent skill. None if it has no limits.
        quantizer: The quantizer of the `SkillAutoencoder`, if skills are codes.
    """

    low: Planner | FromStage
    period: Annotated[int, AtLeast(1)] = 10
    column: str = "observation.skill"
    phrases: tuple[str, ...] = ()
    executor: Executor = field(default_factory=RecedingHorizon)
    bound: Annotated[float | None, Above(0)] = None
    quantizer: FSQ | None = None

    def features(self, features):
        skill = self._skill()
        if self.phrases:
            skill = Feature("int64", (1,), "discrete", num_classes=(len(self.phrases),))
        elif self.quantizer is not None:
            skill = Feature("int64", skill.shape, "discrete", num_classes=self.quantizer.levels)
        return {**{k: f for k, f in features.items() if k != self.column}, "action": skill}

    def action_limits(self):
        return None if self.bound is None else (-self.bound, self.bound)

    def start(self, obs, key):
        # The low-level policy starts with the first skill, so that its history holds no skill that was never chosen.
        low = self._actor.start({**obs, self.column: self._no_skill(len(key))}, key + 1)
        return {"low": low, "key": key + 1, "is_new": torch.ones(len(key), dtype=torch.bool)}

    def transform_obs(self, obs, state):
        return {k: v for k, v in obs.items() if k != self.column}, state

    def transform_action(self, obs, action, state):
        obs, low = {**obs, self.column: self._column_value(action)}, state["low"]
        if (rows := state["is_new"].nonzero().flatten()).numel():
            low = put(low, rows, self._actor.start(take(obs, rows), state["key"][rows]))
        action, low = self._actor.act(obs, low)
        return action, {**state, "low": _without_record(low), "is_new": torch.zeros_like(state["is_new"])}

    def transform_episode(self, episode):
        """Keeps every `period`-th step and makes the recorded skill the action. Rewards are summed.

        Raises:
            Unsupported: If the episode has no column with the skill.
        """
        if self.column not in episode.steps:
            raise Unsupported(f"the episode has no column {self.column!r} with the skill of each step",
                              where="SkillWrapper", hint="add it by an operation, or record episodes in WrappedEnv")
        skill = np.asarray(episode.steps[self.column][: len(episode)])[:: self.period]
        if self.phrases:
            codes = {self._encode(text).tobytes(): i for i, text in enumerate(self.phrases)}
            if unknown_rows := [row for row in skill if row.tobytes() not in codes]:
                raise UserError(f"the skill {bytes(unknown_rows[0]).rstrip(bytes(1)).decode()!r} is not one of the "
                                f"phrases {', '.join(self.phrases)}", where="SkillWrapper.phrases",
                                hint="add it to them")
            skill = np.array([[codes[row.tobytes()]] for row in skill], np.int64)
        elif self.quantizer is not None:
            skill = self.quantizer.to_levels(torch.from_numpy(skill.copy())).numpy()
        return every_nth_step(episode, self.period, {"action": skill, self.column: None},
                              self.features(episode.features())["action"])

    @property
    def _actor(self) -> Actor:
        return _as_actor(self.low, self.executor, "SkillWrapper.low")

    def _skill(self) -> Feature:
        low = _resolved_planner(self.low, "SkillWrapper.low")
        if self.column not in low.inputs:
            raise UserError(f"the low-level policy does not read {self.column!r}; it reads {', '.join(low.inputs)}",
                            where="SkillWrapper.column", hint="name the column that holds the skill")
        feature = low.features[self.column]
        if feature.kind == "image" or (feature.kind == "text") != bool(self.phrases):
            raise UserError(f"the column {self.column!r} has kind {feature.kind!r}"
                            + (", but there are phrases" if self.phrases else ""), where="SkillWrapper",
                            hint="a skill is a vector, a choice, or text with `phrases` to choose from")
        if self.quantizer is not None and (feature.kind, feature.shape) != ("vector", (len(self.quantizer.levels),)):
            raise UserError(f"the column {self.column!r} has kind {feature.kind!r} and shape {feature.shape}, but the "
                            f"quantizer has {len(self.quantizer.levels)} components", where="SkillWrapper.quantizer",
                            hint="give the quantizer of the autoencoder that trained the low-level policy")
        return feature

    def _encode(self, text: str) -> np.ndarray:
        return TaskText(self._skill().size).encode(text)

    def _column_value(self, action: Tensor) -> Tensor:
        feature = self._skill()
        if self.quantizer is not None:
            return self.quantizer.from_levels(action)
        if not self.phrases:
            return action.unflatten(1, feature.shape).to(feature.torch_dtype)
        table = torch.from_numpy(np.stack([self._encode(text) for text in self.phrases]))
        return table[action[:, 0].long()]

    def _no_skill(self, rows: int) -> Tensor:
        feature = self._skill()
        return torch.zeros(rows, *feature.shape, dtype=feature.torch_dtype)


# -- what wrappers share ----------------------------------------------------------------------------------------------


def every_nth_step(episode: Episode, n: int, columns: Mapping[str, np.ndarray | None], action: Feature) -> Episode:
    """Returns every n-th step of an episode, as an actor with `period=n` sees it.

    Rewards of the steps in between are added up, flags (`next.*` of bool) are joined by "or", and the last row of
    columns with one row more is kept.

    Args:
        columns: Columns that are replaced; None removes one. The new columns have the rows of the result.
    """
    T, out, features = len(episode), {}, episode.features()
    first = np.arange(0, T, n)
    for name in episode.steps:
        if name in columns:
            continue
        column = np.asarray(episode.steps[name])
        if name == "next.reward" and column.dtype.kind in "iu":  # sums need more bits
            column = column.astype(np.int64)
            features = {**features, name: replace(features[name], dtype="int64", kind="vector", num_classes=None)}
        if name == "next.reward" or role(name) == "outcome" and column.dtype.kind in "fb":
            join = np.logical_or if column.dtype.kind == "b" else np.add
            out[name] = join.reduceat(column[:T], first, axis=0)
        else:
            out[name] = column[[*first, *range(T, len(column))]]
    out.update({k: v for k, v in columns.items() if v is not None})
    schema = {k: f for k, f in features.items() if k in out}
    return Episode(out, episode.metadata, schema={**schema, "action": action})


def _actions_along(actor: Actor, episode: Episode) -> np.ndarray:
    """Returns what an actor would do at each recorded observation, (T or T + 1, A)."""
    columns = {k: np.asarray(episode.steps[k]) for k, f in episode.features().items()
               if role(k) not in ("action", "outcome") and f.kind != "string"}
    rows = min((len(v) for k, v in columns.items() if role(k) == "observation"), default=len(episode))
    columns = {k: v for k, v in columns.items() if len(v) >= rows}
    if "next.reward" in episode.steps:
        reward = np.asarray(episode.steps["next.reward"][: len(episode)], np.float32).reshape(len(episode))
        columns[LAST_REWARD] = np.concatenate([np.zeros(1, np.float32), reward])
    key = keys(int(episode.metadata.get("seed") or 0), [int(episode.metadata.get("number") or 0)])
    return np.stack([action.float().numpy() for action in act_along(actor, columns, rows, key)])


def act_along(actor: Actor, columns: Mapping[str, np.ndarray], n_steps: int, key: Tensor) -> Iterator[Tensor]:
    """Yields the action of an actor, (A,), at each of the first steps of recorded columns, (T, ...) each."""
    def at(t):
        return {k: torch.from_numpy(np.array(v[t:t + 1])) for k, v in columns.items()}
    state = actor.start(at(0), key)
    for t in range(n_steps):
        action, state = actor.act(at(t), state)
        state = _without_record(state)
        yield action[0]


def _vector_action(features: Schema) -> Feature:
    if features["action"].kind != "vector":
        raise UserError(f"the actions have kind {features['action'].kind!r}, and a choice has no small correction",
                        where="ResidualWrapper", hint="use an environment whose actions are numbers")
    return features["action"]


def _resolved_planner(planner, where: str) -> Planner:
    if not isinstance(planner, Planner):
        raise UserError(f"{planner if isinstance(planner, FromStage) else type(planner).__name__} is not a policy",
                        where=where, hint="give a policy, or a method whose stages are trained")
    return planner


def _as_actor(value, executor: Executor, where: str) -> Actor:
    if isinstance(value, Actor):
        return value
    planner = _resolved_planner(value, where)
    return PolicyActor(planner, executor, camera_sizes(planner.features))
