"""Action wrappers: the environment to learn in, the actor to deploy, and recorded episodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import envs
from understudy.checkpoint import FromStage
from understudy.cli import main
from understudy.core import Feature, Unsupported, UserError, keys
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.envs.base import Env, StepResult
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.envs.wrappers import WrappedEnv
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import LAST_REWARD, Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.execute.wrappers import (
    BASE_ACTION,
    ActionWrapper,
    NoiseSteeringWrapper,
    ResidualWrapper,
    SkillWrapper,
    WrappedActor,
)
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage, TrainedRun, build_actor, load_actor, training_data
from understudy.learn.train import train
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import ContractViolation, check_wrapper, random_batch

SKILL, STATE = "observation.skill", "observation.state"


@dataclass(frozen=True)
class Constant(Actor):
    value: torch.Tensor

    def start(self, obs, key):
        return {"none": key}

    def act(self, obs, state):
        return self.value.expand(len(state["none"]), -1), state


@pytest.fixture(scope="module")
def data():
    return rollout(ForkExpert(), Fork(20), 20, seed=0)


def fitted(data, window=None, head=None) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(head or Flow(n_steps=2), MLP(16, 1), window=window or Window(1, 6))
    return Policy(config, data.features()).fit_statistics(data).eval()


@pytest.fixture(scope="module")
def policy(data):
    return fitted(data)


def with_skills(data: Dataset, column: np.ndarray | None = None, feature: Feature | None = None) -> Dataset:
    rng = np.random.default_rng(0)

    def add(episode):
        rows = len(episode) + 1
        skills = rng.normal(size=(rows, 2)).astype(np.float32) if column is None else column[rng.integers(2, size=rows)]
        schema = {**episode.schema, **({} if feature is None else {SKILL: feature})}
        return replace(episode.replace({SKILL: skills}), schema=schema)
    return Dataset([add(episode) for episode in data])


# -- the contract -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeat(ActionWrapper):
    period: int = 4

    def transform_action(self, obs, action, state):
        return action, state


@dataclass(frozen=True)
class UntilFar(ActionWrapper):
    """The action is a direction that is kept for `period` steps, or until the point crosses a line."""

    period: int = 8

    def start(self, obs, key):
        return {"crossed": torch.zeros(len(key), dtype=torch.bool), "before": obs[STATE][:, 1] > 0.1}

    def transform_obs(self, obs, state):
        now = obs[STATE][:, 1] > 0.1
        return obs, {"crossed": now != state["before"], "before": now}

    def transform_action(self, obs, action, state):
        return action, state

    def is_terminated(self, state):
        return state["crossed"]

    def action_limits(self):
        return -1.0, 1.0


PHRASES = ("go left", "go right")


def skill_wrapper(kind: str, data: Dataset, period: int) -> SkillWrapper:
    column, feature = None, None
    if kind == "phrase":
        column = np.stack([TaskText(12).encode(text) for text in PHRASES])
        feature = Feature("uint8", (12,), "text")
    if kind == "code":
        column, feature = np.array([[0], [1]]), Feature("int64", (1,), "discrete", num_classes=(2,))
    low = fitted(with_skills(data, column, feature), Window(2, 4), Regression())
    return SkillWrapper(FixedBatch(low), period, phrases=PHRASES if kind == "phrase" else ())


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("kind", ["expert", "policy", "steering", "latent", "phrase", "code"])
def test_wrappers_keep_the_contract(kind, period, data, policy):
    wrapper = {
        "expert": lambda: ResidualWrapper(ForkExpert(noise=0.3), 0.2, period),
        "policy": lambda: ResidualWrapper(FixedBatch(fitted(data, Window(2, 6))), 0.2, period, RecedingHorizon(2)),
        "steering": lambda: NoiseSteeringWrapper(FixedBatch(policy), period),
    }.get(kind, lambda: skill_wrapper(kind, data, period))()
    check_wrapper(lambda rows: Fork(rows, limit=20), wrapper)


def test_actions_that_end_early_are_checked_too():
    check_wrapper(lambda rows: Fork(rows, limit=20), UntilFar(), episodes=6)
    episodes = rollout(WrappedActor(Constant(torch.tensor([1.0, 0.0])), UntilFar()), Fork(3), 3, seed=0)
    assert len(episodes) == 3
    with pytest.raises(Unsupported, match="an action ended before its period"):
        env = WrappedEnv(Fork(9), UntilFar())
        rollout(Constant(torch.tensor([0.5, 1.0])), env, 9, seed=0)


@dataclass(frozen=True)
class Delayed(UntilFar):
    """Repeats an action of the step before: its state tells more than one step at a time."""

    def start(self, obs, key):
        return {**super().start(obs, key), "last": torch.zeros(len(key), 2)}

    def transform_obs(self, obs, state):
        visible, new = super().transform_obs(obs, state)
        return visible, {**state, **new}

    def transform_action(self, obs, action, state):
        return state["last"], {**state, "last": action}

    def is_terminated(self, state):
        return torch.zeros_like(state["crossed"])


@dataclass(frozen=True)
class WrongInverse(ResidualWrapper):
    def transform_episode(self, episode):
        converted = super().transform_episode(episode)
        return converted.replace({"action": converted.steps["action"] * 2})


@dataclass(frozen=True)
class GrowingState(Delayed):
    def transform_action(self, obs, action, state):
        return action, {**state, "more": action}


class CallCount(Repeat):
    """Remembers outside the state how often it was called."""

    def transform_action(self, obs, action, state):
        calls.append(1)
        return action * (len(calls) % 3), state

    def action_limits(self):
        return -1.0, 1.0


calls: list[int] = []


@pytest.mark.parametrize(("wrapper", "words"), [
    (WrongInverse(ForkExpert()), "'action' of a converted episode"), (GrowingState(), "names, shapes and dtypes"),
    (CallCount(), "an episode must depend on its key alone")], ids=lambda w: type(w).__name__)
def test_what_breaks_the_contract_is_found(wrapper, words):
    with pytest.raises(ContractViolation, match=words):
        check_wrapper(lambda rows: Fork(rows, limit=20), wrapper)


def test_a_wrapper_with_memory_in_its_state_keeps_it():
    check_wrapper(lambda rows: Fork(rows, limit=20), Delayed(period=2))


# -- the environment --------------------------------------------------------------------------------------------------


class Counter(Env):
    """Rewards 1, 2, 3, ... A row ends after as many steps as its key says."""

    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (2,))}
    metadata = {"env": "counter", "version": 1, "fps": 10, "limit": 7, "success": None}

    def __init__(self, rows):
        self.rows, self.clock, self.key = rows, torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)

    def reset(self, which, key):
        self.clock, self.key = self.clock.clone(), self.key.clone()
        self.clock[which], self.key[which] = 0, key
        return {STATE: self.clock[:, None]}

    def step(self, action):
        self.clock = self.clock + 1
        return StepResult({STATE: self.clock[:, None]}, self.clock, self.clock >= self.key,
                          torch.zeros(self.rows, dtype=torch.bool))


def test_rewards_are_discounted_and_end_with_the_episode():
    env = WrappedEnv(Counter(2), Repeat(), discount=0.5)
    env.reset(torch.arange(2), torch.tensor([3, 6]))
    first = env.step(torch.zeros(2, 2))
    torch.testing.assert_close(first.reward, torch.tensor([1 + 2 / 2 + 3 / 4, 1 + 2 / 2 + 3 / 4 + 4 / 8]))
    assert first.terminated.tolist() == [True, False] and first.obs[STATE][:, 0].tolist() == [3, 4]
    second = env.step(torch.zeros(2, 2))
    assert second.reward[1] == 5 + 6 / 2 and second.terminated[1]
    assert env.metadata["limit"] == 2 and env.metadata["fps"] == 2.5
    with pytest.raises(UserError, match="lasts at least 1 step"):
        WrappedEnv(Counter(2), Repeat(0))


def test_the_wrapped_actor_is_told_the_sum_of_rewards():
    @dataclass(frozen=True)
    class Told(Actor):
        def start(self, obs, key):
            return {"count": torch.zeros_like(key)}

        def act(self, obs, state):
            reward = obs[LAST_REWARD]
            return torch.zeros(len(reward), 2), {"count": state["count"] + 1, "record": {"told": reward}}
    episodes = rollout(WrappedActor(Told(), Repeat()), _Ends(2), 2)
    assert episodes[0].steps["told"].tolist() == [0, 0, 0, 0, 10, 10, 10, 10, 26]
    plain = rollout(Told(), _Ends(2), 2)
    assert plain[0].steps["told"].tolist() == list(range(9))
    assert LAST_REWARD not in plain[0].steps


class _Ends(Counter):
    def reset(self, which, key):
        return super().reset(which, torch.full_like(key, 9))


# -- residuals --------------------------------------------------------------------------------------------------------


def test_corrections_of_zero_are_the_base_itself():
    base = rollout(ForkExpert(noise=0.2), Fork(3), 7, seed=3)
    env = WrappedEnv(Fork(3), ResidualWrapper(ForkExpert(noise=0.2)))
    episodes = rollout(Constant(torch.zeros(2)), env, 7, seed=3)
    for a, b in zip(base, episodes, strict=True):
        np.testing.assert_array_equal(a.steps[STATE], b.steps[STATE])
        np.testing.assert_array_equal(a.steps["action"], b.steps[BASE_ACTION][:-1])


def test_corrections_are_added_in_their_scale():
    env, plain = WrappedEnv(Fork(2), ResidualWrapper(Constant(torch.tensor([0.5, 0.0])), 0.1)), Fork(2)
    for e in (env, plain):
        e.reset(torch.arange(2), keys(0, range(2)))
    a = env.step(torch.tensor([[1.0, -1.0], [0.0, 2.0]])).obs[STATE]
    b = plain.step(torch.tensor([[0.6, -0.1], [0.5, 0.2]])).obs[STATE]
    torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


def test_recorded_actions_become_corrections():
    wrapper = ResidualWrapper(Constant(torch.tensor([0.5, 0.0])), 0.5)
    episode = Episode({STATE: np.zeros((3, 2), np.float32), "action": np.float32([[1, 0], [0, 1]])}, {"number": 3})
    converted = wrapper.transform_episode(episode)
    np.testing.assert_array_equal(converted.steps["action"], [[1, 0], [-1, 2]])
    np.testing.assert_array_equal(converted.steps[BASE_ACTION], [[0.5, 0]] * 3)
    assert converted.metadata == {"number": 3} and set(converted.features()) == {STATE, "action", BASE_ACTION}
    with pytest.raises(Unsupported, match="stay the same for 2 steps"):
        replace(wrapper, period=2).transform_episode(episode)
    with pytest.raises(UserError, match="a choice has no small correction"):
        WrappedEnv(envs.make("words"), wrapper)


# -- noise ------------------------------------------------------------------------------------------------------------


def test_steering_with_the_noise_that_would_have_been_drawn_changes_nothing(policy):
    @dataclass(frozen=True)
    class Drawn(Actor):
        def start(self, obs, key):
            return {"key": key, "count": torch.zeros_like(key)}

        def act(self, obs, state):
            return policy.noise(state["key"], state["count"]).flatten(1), {**state, "count": state["count"] + 1}
    wrapper = NoiseSteeringWrapper(policy, 4, bound=100.0)
    plain = rollout(PolicyActor(policy, RecedingHorizon(4)), Fork(4, limit=20), 6, seed=1)
    above = rollout(Drawn(), WrappedEnv(Fork(4, limit=20), wrapper), 6, seed=1)
    below = rollout(WrappedActor(Drawn(), wrapper), Fork(4, limit=20), 6, seed=1)
    for a, b, c in zip(plain, above, below, strict=True):
        np.testing.assert_allclose(b.steps[STATE][:-1], a.steps[STATE][:-1:4], atol=1e-6)
        np.testing.assert_allclose(b.steps[STATE][-1], a.steps[STATE][-1], atol=1e-6)
        np.testing.assert_allclose(c.steps[STATE], a.steps[STATE], atol=1e-6)
        assert b.steps["next.reward"].sum() == pytest.approx(a.steps["next.reward"].sum())
        assert a.metadata["success"] == b.metadata["success"] and len(b) == -(-len(a) // 4)


def test_steering_clips_the_noise_and_says_what_it_needs(policy):
    env = WrappedEnv(Fork(2), NoiseSteeringWrapper(policy, 3, bound=1.0))
    assert env.features["action"].shape == (12,) and (env.metadata["low"], env.metadata["high"]) == (-1.0, 1.0)
    states = []
    for size in (1.0, 50.0):
        env.reset(torch.arange(2), keys(0, range(2)))
        states.append(env.step(torch.full((2, 12), size)).obs[STATE])
    torch.testing.assert_close(*states, atol=0, rtol=0)
    with pytest.raises(UserError, match="a period from 1 to 6"):
        WrappedEnv(Fork(2), NoiseSteeringWrapper(policy, 7))
    late, _ = random_batch(PolicyConfig(Flow(n_steps=2), window=Window(1, 4, action_offset=-1)))
    with pytest.raises(UserError, match="plan from the current step, but it has .*action_offset=-1"):
        WrappedEnv(Fork(2), NoiseSteeringWrapper(late, 2))
    certain, _ = random_batch(PolicyConfig(Regression(), window=Window(1, 4)))
    with pytest.raises(Unsupported, match="uses no noise"):
        WrappedEnv(Fork(2), NoiseSteeringWrapper(certain, 2))
    with pytest.raises(Unsupported, match="NoiseSteeringWrapper cannot tell"):
        NoiseSteeringWrapper(policy).transform_episode(Episode({}))


# -- skills -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steady(Actor):
    """A skill for each number of its action."""

    def start(self, obs, key):
        return {"count": torch.zeros_like(key)}

    def act(self, obs, state):
        return state["count"].float()[:, None].expand(-1, 2), {"count": state["count"] + 1}


def test_the_low_level_policy_reads_each_skill_for_its_period(data):
    wrapper = skill_wrapper("latent", data, 3)
    skills_read = []

    class Watched(FixedBatch):
        def plan(self, obs, noise, guides=()):
            skills_read.append(obs[SKILL][:, :, 0].tolist())
            return super().plan(obs, noise, guides)
    wrapper = replace(wrapper, low=Watched(wrapper.low.planner))
    rollout(WrappedActor(Steady(), wrapper), Fork(1, limit=5), 1)
    # Windows of two rows. The history starts with the first skill.
    assert skills_read == [[[0, 0]], [[0, 0]], [[0, 0]], [[0, 1]], [[1, 1]]]


def test_recorded_skills_become_actions(data):
    wrapper = skill_wrapper("phrase", data, 2)
    text = np.stack([TaskText(12).encode(PHRASES[i]) for i in (1, 1, 0, 0, 1)])
    steps = {STATE: np.arange(12, dtype=np.float32).reshape(6, 2), "action": np.zeros((5, 2), np.float32), SKILL: text,
             "next.reward": np.float32([1, 2, 3, 4, 5]), "next.terminated": np.array([False] * 4 + [True])}
    converted = wrapper.transform_episode(Episode(steps, schema={SKILL: Feature("uint8", (12,), "text")}))
    assert converted.steps["action"].tolist() == [[1], [0], [1]] and SKILL not in converted.steps
    assert converted.steps[STATE][:, 0].tolist() == [0, 4, 8, 10]
    assert converted.steps["next.reward"].tolist() == [3, 7, 5]
    assert converted.steps["next.terminated"].tolist() == [False, False, True]
    assert converted.features()["action"].num_classes == (2,)
    with pytest.raises(UserError, match="'sing' is not one of the phrases go left, go right"):
        unknown_skills = np.stack([TaskText(12).encode("sing")] * 5)
        wrapper.transform_episode(Episode({**steps, SKILL: unknown_skills}))
    with pytest.raises(Unsupported, match="no column 'observation.skill'"):
        wrapper.transform_episode(data[0])
    with pytest.raises(UserError, match="does not read 'observation.word'"):
        WrappedEnv(Fork(1), replace(wrapper, column="observation.word"))
    with pytest.raises(UserError, match="kind 'text'"):
        WrappedEnv(Fork(1), replace(wrapper, phrases=()))


# -- methods ----------------------------------------------------------------------------------------------------------


def base_method(**fields) -> Method:
    config = PolicyConfig(Flow(n_steps=2), MLP(8, 1), window=Window(1, 4))
    return Method(config, RecedingHorizon(2), BehaviorCloning(3, 16), **fields)


def residual_method(**fields) -> Method:
    config = PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 1))
    return Method(config, learner=BehaviorCloning(3, 16), stages=(Stage("base", base_method()),),
                  wrapper=ResidualWrapper(FromStage("base"), 0.3, executor=RecedingHorizon(2)), **fields)


@pytest.mark.slow
def test_training_converts_episodes_and_everything_that_acts_uses_the_wrapper(data, tmp_path, capsys):
    method = residual_method()
    scores = []

    def score(actor):
        assert isinstance(actor, WrappedActor) and isinstance(actor.wrapper.base, FixedBatch)
        scores.append(evaluate(actor, Fork(4, limit=20), 4).returns.estimate)
        return scores[-1]
    policy = train(method, data, tmp_path / "run", device="cpu", progress=False, score=score, save_freq=2)
    assert policy.inputs == (BASE_ACTION, STATE) and scores
    trained = TrainedRun.load(tmp_path / "run")
    converted = training_data(data, trained.method)
    base = Policy.load(tmp_path / "run" / "stages" / "base")
    assert isinstance(trained.method.wrapper.base, Policy)
    np.testing.assert_array_equal(converted[0].steps["action"],
                                  ResidualWrapper(base, 0.3, executor=RecedingHorizon(2)).transform_episode(
                                      data[0]).steps["action"])
    whole = fit_method(method, data, 0)
    same = train(method, data, tmp_path / "same", device="cpu", progress=False, val_fraction=0)
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in whole.policy.state_dict().items())

    actor = load_actor(tmp_path / "run", rows=4)
    acting = rollout(actor, Fork(4, limit=20), 4, seed=2)
    above = rollout(build_actor(replace(trained.method, wrapper=None), trained.modules, rows=4),
                    WrappedEnv(Fork(4, limit=20), actor.wrapper), 4, seed=2)
    for a, b in zip(acting, above, strict=True):
        np.testing.assert_array_equal(a.steps[STATE], b.steps[STATE])

    def run(*args):
        code = main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out + captured.err
    code, captured = run("eval", tmp_path / "run", "fork", "--episodes", 4)
    assert code == 0, captured
    code, captured = run("compare", tmp_path / "run", tmp_path / "same", "--env", "fork", "--episodes", 4)
    assert code == 0, captured
    code, captured = run("export", tmp_path / "run", "--out", tmp_path / "policy.onnx")
    assert code == 2 and "ResidualWrapper" in captured and not Path(tmp_path / "policy.onnx").exists()
    code, captured = run("eval", tmp_path / "run", "push", "--episodes", 4)
    assert code == 2 and "column" in captured


def test_what_a_wrapper_cannot_convert_is_refused_before_training(data, tmp_path):
    method = replace(residual_method(), wrapper=NoiseSteeringWrapper(FromStage("base"), 2))
    with pytest.raises(Unsupported, match="NoiseSteeringWrapper cannot tell"):
        train(method, data, tmp_path / "run", device="cpu", progress=False)
    with pytest.raises(Unsupported, match="NoiseSteeringWrapper cannot tell"):
        fit_method(method, data, 0)
    with pytest.raises(UserError, match="is not a policy"):
        build_actor(method, {"policy": fit_method(base_method(), data, 0).policy}).start(
            {STATE: torch.zeros(1, 2)}, keys(0, [0]))


def test_steering_is_trained_on_collected_episodes(data, tmp_path):
    """There is no noise that demonstrations tell. Episodes of the wrapped environment are learned from as they are."""
    base = fit_method(base_method(), data, 0)
    wrapper = NoiseSteeringWrapper(FixedBatch(base.policy), 2, bound=1.0)
    env = WrappedEnv(Fork(4, limit=8), wrapper)
    first = rollout(UniformRandomActor(env), env, 4, seed=0)
    rounds = CollectionRounds(2, RolloutCollector(3, GaussianExploration(0.1)), updates=PerNewStep(0.2))
    method = Method(PolicyConfig(Regression(), MLP(8, 1)), learner=BehaviorCloning(3, 8), collection=rounds,
                    stages=(Stage("base", base_method()),), wrapper=replace(wrapper, policy=FromStage("base")))
    reports = []
    result = fit_method(method, first, 0, env=Fork(4, limit=8), stages={"base": base}, callbacks=[
        lambda n, learner, metrics: reports.append(metrics)])
    assert sum("round" in m for m in reports) == 2 and result.policy.action_dim == 8
    assert {m["round/episodes"] for m in reports if "round" in m} == {3}
    assert isinstance(result.actor, WrappedActor) and len(rollout(result.actor, Fork(2, limit=8), 2)) == 2
    supervised = replace(rounds, collector=RolloutCollector(3, supervisor="expert"))
    with pytest.raises(Unsupported, match="a supervisor acts in the environment"):
        fit_method(replace(method, collection=supervised), first, 0, env=Fork(4, limit=8), stages={"base": base})


@dataclass(frozen=True)
class AddSkills(Operation):
    def apply(self, *data):
        return with_skills(*data)


def test_operations_come_before_the_wrapper_and_relabelings_after_it(data):
    low = fitted(with_skills(data), Window(2, 4), Regression())
    method = Method(PolicyConfig(Regression()), transforms=(AddSkills(), LastAction()), wrapper=SkillWrapper(low, 3))
    windows_data = training_data(data, method)
    skills = with_skills(data)[0].steps[SKILL][: len(data[0])][::3]
    np.testing.assert_array_equal(windows_data[0].steps["action"], skills)
    np.testing.assert_array_equal(windows_data[0].steps["observation.last_action"][1:], skills)
