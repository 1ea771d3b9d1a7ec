"""Contracts of executors, speakers and action wrappers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from ..core import Unsupported, keys, put, take, tree_map
from ..data.episode import Episode
from ..envs.base import Env
from ..envs.wrappers import WrappedEnv
from ..evaluate.rollout import rollout
from ..execute.actor import Actor
from ..execute.base import ActionConditionedExecutor, Executor
from ..execute.instruction import Speaker
from ..execute.planners import PlannerWrapper
from ..execute.wrappers import ActionWrapper, WrappedActor
from ..policy import Planner, Policy, PolicyConfig
from .base import _rng, _structure, require, require_equal, require_finite
from .envs import _random_actor, check_env
from .random_data import random_batch


@torch.no_grad()
def check_executor(executor: Executor, config: PolicyConfig, steps: int = 12,
                   inference: tuple[PlannerWrapper, ...] = ()) -> None:
    """Checks the contract of an executor.

    Its actions depend on the planner, its state keeps its structure, rows do not influence each other, one row can be
    restarted alone, and the same keys give the same actions. If it is an `ActionConditionedExecutor`, its plans also
    continue the executed actions.

    Args:
        config: A policy that the executor can run. Its inputs are columns of three numbers.
        inference: How the policy plans, as in `Method.inference`. The only module that they can name is "policy".
    """
    def built(policy: Policy) -> Planner:
        planner: Planner = policy
        for part in inference:
            planner = part.over(planner, {"policy": policy})
        return planner

    plain, other = (random_batch(config, seed=seed)[0] for seed in range(2))
    rng = _rng(0)
    for weight in other.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=rng)
    policy, another = built(plain), built(other)
    executor.check_planner(policy)
    obs = [{k: torch.randn(3, policy.window.n_obs_steps, *policy.features[k].shape, generator=rng)
            for k in policy.inputs} for _ in range(steps)]
    key, new = torch.tensor([11, 22, 33]), torch.tensor([44])
    everyone, alone, middle = torch.arange(3), torch.tensor([1]), steps // 2 - 1

    def run(rows, key, restart=None, since=0, policy=policy):
        state, out = executor.start(policy, take(obs[since], rows), key), []
        structure = _structure(state)
        for n, step_obs in enumerate(obs[since:]):
            if restart == n:
                state = put(state, alone, executor.start(policy, take(step_obs, alone), new))
            before, copied = state, tree_map(torch.clone, state)
            action, state = executor.act(policy, take(step_obs, rows), before)
            # NaN is not equal to itself, so that a state with NaN would seem to have changed
            require_finite(action, (len(key), policy.action_dim), f"the actions of step {since + n}", "(B, A)")
            tree_map(_require_unchanged, before, copied)
            require(_structure(state) == structure, "a state's structure must never change")
            out.append(action)
        return torch.stack(out)
    whole = run(everyone, key)
    require_equal(run(everyone, key), whole, "the same keys must give the same actions")
    require(not torch.allclose(run(everyone, key, policy=another), whole),
            f"two policies with different plans give the same actions: `act` of {type(executor).__name__} must execute "
            "what its planner plans")
    require_equal(run(alone, key[1:2])[:, 0], whole[:, 1], "a row must not depend on the other rows", 1e-3)
    reset = run(everyone, key, middle)
    require_equal(reset[:, [0, 2]], whole[:, [0, 2]], "other rows must not notice that one is restarted", 1e-3)
    require_equal(reset[middle:, 1], run(alone, new, since=middle)[:, 0], "a restarted row must be as new", 1e-3)
    if isinstance(executor, ActionConditionedExecutor):
        _check_plan_after_actions(executor, plain, obs[0], key)


def _check_plan_after_actions(executor: ActionConditionedExecutor, policy: Policy, obs, key: Tensor) -> None:
    n_past = -policy.window.action_offset
    require(n_past > 0, "the window must reach back to the executed actions: action_offset < 0")
    executed = torch.randn(len(key), n_past, policy.action_dim, generator=_rng(1))
    mask, noise = torch.ones(executed.shape[:2], dtype=torch.bool), policy.noise(key, torch.zeros_like(key))
    plan = executor.plan(policy, obs, executed, mask, noise)
    require(plan.shape == (len(key), policy.window.horizon, policy.action_dim), "a plan must be (B, H, A)")
    require_equal(plan[:, :n_past], executed, "the first steps of a plan are the executed actions", 1e-4)
    other = executor.plan(policy, obs, executed + 1, mask, noise)
    require(not torch.allclose(other[:, n_past:], plan[:, n_past:]), "a plan must depend on the executed actions")
    first = executor.plan(policy, obs, executed, ~mask, noise)
    require_equal(executor.plan(policy, obs, executed + 1, ~mask, noise)[:, n_past:], first[:, n_past:],
                  "actions before the start of an episode must not matter")
    action, _ = executor.act(policy, obs, executor.start(policy, obs, key))
    require_equal(action, first[:, n_past], "the first action of an episode must be the first planned one", 1e-4)


def _require_unchanged(now: Tensor, before: Tensor) -> Tensor:
    require_equal(now, before, "a state must not be changed in place")
    return now


def check_speaker(speaker: Speaker, observations: Sequence[Mapping[str, Tensor]]) -> None:
    """Checks the contract of a speaker whose words depend on what it sees alone.

    It says one text to each row, rows do not depend on each other, no state is changed in place, and a restarted row
    continues as a new one.

    Args:
        observations: What an environment shows at two or more steps, by column, (B, ...) each with B of 2 or more.
    """
    rows = len(next(iter(observations[0].values())))
    key = keys(0, range(rows))

    def speak(which: Sequence[int], state) -> list[tuple[str, ...]]:
        texts = []
        for obs in observations:
            before = tree_map(Tensor.clone, state)
            chosen_obs = take(obs, list(which))
            words, upcoming = speaker.speak(chosen_obs, state)
            require(not isinstance(words, str) and len(words) == len(which) and all(isinstance(w, str) for w in words),
                    f"it must say one text to each of {len(which)} rows, and said {words!r}")
            tree_map(_require_unchanged, state, before)
            require(_structure(upcoming) == _structure(state), "the state must keep its structure")
            texts.append(tuple(words))
            state = upcoming
        return texts

    together = speak(range(rows), speaker.start(observations[0], key))
    for row in range(rows):
        alone = speak([row], speaker.start(take(observations[0], [row]), key[[row]]))
        require(alone == [(words[row],) for words in together], "what it says to a row must not depend on other rows")
    _, state = speaker.speak(observations[0], speaker.start(observations[-1], key))
    again = put(state, [1], speaker.start(take(observations[0], [1]), key[[1]]))
    require([words[1] for words in speak(range(rows), again)] == [words[1] for words in together],
            "a restarted row must continue as a new one")


def check_wrapper(build: Callable[[int], Env], wrapper: ActionWrapper, episodes: int = 4, seed: int = 0) -> None:
    """Checks the contract of an action wrapper in an environment.

    - `WrappedEnv` keeps the contract of environments.
    - With a period of 1, `WrappedEnv` and `WrappedActor` give the same episodes, bit for bit.
    - With a longer period, they give the same outcomes: success, returns and lengths. The reward of an action is the
      discounted sum of its steps, which ends with the episode. Time limits are divided by the period.
    - `transform_episode` converts the episodes of `WrappedActor` into episodes of `WrappedEnv`, or raises
    `Unsupported`.
    - The state of the wrapper keeps its structure.

    A wrapper that ends actions early (`is_terminated`) is checked in one row.

    Args:
        build: `build(rows)` makes that many copies of the environment.
        wrapper: The wrapper. Policies in it should be `FixedBatch`, so that plans do not depend on the other rows.
    """
    with closing(build(2)) as env:
        above = WrappedEnv(env, wrapper)
        first_obs = above.reset(torch.arange(2), keys(seed, range(2)))
        _wrapper_state_keeps_its_structure(env, wrapper, first_obs, _random_actor(above))
    rows = 1 if _wrapper_ends_actions(build, wrapper, seed) else 3
    if rows > 1:
        check_env(lambda n: WrappedEnv(build(n), wrapper), episodes, seed)
    with closing(build(rows)) as env:
        above = WrappedEnv(env, wrapper)
        if env.metadata.get("limit"):
            require(above.metadata["limit"] == -(-env.metadata["limit"] // wrapper.period),
                    "time limits must be divided by the period")
        actor = _ShownRecorder(_random_actor(above))
        learning = rollout(actor, above, episodes, seed)
        acting = rollout(WrappedActor(actor, wrapper), env, episodes, seed)
        discounted = rollout(actor, WrappedEnv(env, wrapper, 0.5), episodes, seed)
    for one, other, low in zip(learning, acting, discounted, strict=True):
        _same_outcome(one, other, low, 0.5)
        _converts(wrapper, one, other)


class _ShownRecorder(Actor):
    """Records what an actor observes and does, and the number of its action."""

    def __init__(self, actor):
        self.actor = actor

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "count": torch.zeros_like(key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        columns = {k: v.clone() for k, v in (*obs.items(), ("action", action), ("count", state["count"]))}
        return action, {"inner": inner, "count": state["count"] + 1,
                        "record": {f"shown.{k}": v for k, v in columns.items()}}


def _wrapper_ends_actions(build, wrapper, seed) -> bool:
    with closing(WrappedEnv(build(2), wrapper)) as env:
        try:
            rollout(_random_actor(env), env, 2, seed)
        except Unsupported:
            return True
    return False


def _wrapper_state_keeps_its_structure(env, wrapper, first_obs, actor):
    rows, key = torch.arange(env.rows), keys(0, range(env.rows))
    obs = env.reset(rows, key)
    state = wrapper.start(obs, key)
    _, after_obs = wrapper.transform_obs(obs, state)
    action, _ = actor.act(first_obs, actor.start(first_obs, key))
    _, after_action = wrapper.transform_action(obs, action, after_obs)
    for new in (after_obs, after_action):
        require(_structure(new) == _structure(state), "the state of a wrapper must keep its names, shapes and dtypes")
    over = wrapper.is_terminated(after_action)
    require(over.shape == (env.rows,) and over.dtype == torch.bool, "is_terminated must be (B,) bool")


def _same_outcome(one: Episode, other: Episode, discounted: Episode, discount: float) -> None:
    """Checks that two episodes have the same outcome."""
    count = other.steps["shown.count"]
    begins = np.flatnonzero(np.append(True, count[1:] != count[:-1]))  # the steps at which the actor was asked
    require(len(one) == len(begins), f"the actor acts {len(begins)} times in {len(other)} steps, but {len(one)} times "
                                     "in the wrapped environment")
    for name in (k for k in other.steps if k.startswith("shown.")):
        require(np.array_equal(other.steps[name][begins], one.steps[name]),
                f"{name.removeprefix('shown.')!r} of the wrapped actor must be that of the wrapped environment")
    reward, ends = other.steps["next.reward"], np.append(begins[1:], len(other))
    for episode, factor in ((one, 1.0), (discounted, discount)):
        total = [sum(factor**i * r for i, r in enumerate(reward[a:b])) for a, b in zip(begins, ends, strict=True)]
        require(np.allclose(episode.steps["next.reward"], total, rtol=1e-5, atol=1e-6),
                "the reward of an action must be the discounted sum over its steps, which ends with the episode")
    for name in ("next.terminated", "next.truncated", "next.success"):
        if name in other.steps:
            joined = np.logical_or.reduceat(other.steps[name], begins)
            require(np.array_equal(one.steps[name], joined), f"{name!r} must be true if it is at any step of an action")


def _converts(wrapper, one: Episode, other: Episode) -> None:
    recorded = other.replace({k: None for k in other.steps if k.startswith("shown.")})
    try:
        converted = wrapper.transform_episode(recorded)
    except Unsupported:
        return
    require(len(converted) == len(one), "a converted episode must have one step per action")
    for name in set(converted.steps) - {"next.reward"}:
        require(name in one.steps, f"a converted episode has the column {name!r}, and the wrapped environment has not")
        expected, actual = (np.asarray(e.steps[name]) for e in (one, converted))
        require(expected.shape == actual.shape, f"{name!r} has shape {actual.shape} in a converted episode, not "
                                            f"{expected.shape}")
        is_close = np.array_equal(expected, actual) if expected.dtype.kind != "f" else np.allclose(
            expected, actual, rtol=1e-3, atol=1e-4)
        require(is_close, f"{name!r} of a converted episode must be that of the wrapped environment")
