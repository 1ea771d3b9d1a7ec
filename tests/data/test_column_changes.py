"""Column changes: a policy sees the same columns in training and while acting."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.cli import main
from understudy.commands.serve import ServeOptions, load_service
from understudy.core import Feature, Unsupported, UserError, keys
from understudy.data import column_changes, relabel, text_columns
from understudy.data.column_changes import (
    ColumnChange,
    ColumnPadding,
    ConstantColumn,
    LastAction,
    LastStep,
    OptionalColumn,
    Progress,
    Rename,
    ReturnToGo,
    SelectComponents,
    TimeLeft,
    changed_features,
)
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.relabel import (
    ConcatColumns,
    FirstObservation,
    Hindsight,
    InterventionPenalty,
    MotionToFirst,
    NextObservation,
    ScaledReward,
    SelectColumns,
)
from understudy.data.text_columns import TaskText, ThoughtText
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import LAST_REWARD, Actor, ObservationWrapper, PolicyActor, TransformedActor
from understudy.execute.latency import delay_actor
from understudy.execute.wrappers import ResidualWrapper, WrappedActor
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import (
    Method,
    TrainedRun,
    build_actor,
    find_references,
    load_actor,
    policy_features,
    training_data,
)
from understudy.learn.train import train
from understudy.methods import find_method, method_files
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import ContractViolation, check_column_change, random_dataset

STATE, LAST = "observation.state", "observation.last_action"
FEATURES = {STATE: Feature("float32", (2,)), "action": Feature("float32", (2,)), "next.reward": Feature("float32", ()),
            "intervention": Feature("bool", ()), "thought": Feature("string", (), "string")}


def episodes(discrete: bool = False, count: int = 3) -> Dataset:
    action = Feature("int64", (2,), "discrete", num_classes=(3, 4)) if discrete else FEATURES["action"]
    data = random_dataset({STATE: FEATURES[STATE], "action": action, "next.reward": FEATURES["next.reward"]},
                          count, steps=5)
    return Dataset([replace(e, metadata={**e.metadata, "task": "push"}) for e in data])


# -- every column change ----------------------------------------------------------------------------------------------


EXAMPLES = [Hindsight(), TaskText(), ReturnToGo(), TimeLeft(), Progress(), LastAction(), InterventionPenalty(),
            ConstantColumn("observation.expert", 1.0), SelectColumns(("action",)), ColumnPadding(STATE, 3),
            Rename(STATE, "observation.arm"), ConcatColumns(("action", STATE)), SelectComponents(STATE, (1,)),
            NextObservation(), OptionalColumn(STATE, like=STATE), ThoughtText(), FirstObservation(),
            MotionToFirst(), ScaledReward(2.0, -1.0)]

# Columns that functions of recorded episodes add, and what gives them while acting.
PROVIDED = {"observation.goal": "OGBench", "observation.next": "InverseDynamicsPlanner",
            "observation.procedure": "IteratedPlanner", "observation.thought": "Hierarchical",
            "observation.skill_class": "Hierarchical"}


def test_there_is_an_example_of_every_column_change():
    classes = {value for module in (column_changes, relabel, text_columns) for value in vars(module).values()
               if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__}
    assert {type(example) for example in EXAMPLES} == classes - {column_changes.LastStep}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not isinstance(e, ColumnChange)],
                         ids=lambda e: type(e).__name__)
def test_what_a_function_of_episodes_adds_is_known_while_acting(example):
    check_column_change(example, random_dataset(FEATURES, 3, 5), tuple(PROVIDED))


@dataclass(frozen=True)
class Mean:
    """The mean of the whole episode, which nobody knows before its end."""

    def __call__(self, episode):
        column = np.asarray(episode.steps[STATE])
        return episode.replace({"observation.mean": np.broadcast_to(column.mean(0), column.shape)})


def test_a_column_that_nothing_computes_while_acting_is_rejected():
    with pytest.raises(ContractViolation, match="Mean adds observation.mean, which no environment shows"):
        check_column_change(Mean(), episodes())
    with pytest.raises(ContractViolation, match="Hindsight adds observation.goal"):
        check_column_change(Hindsight(), episodes())
    check_column_change(Mean(), episodes(), provided=("observation.mean",))


@pytest.mark.parametrize("name", method_files())
def test_named_methods_read_only_what_is_known_while_acting(name):
    features = {**FEATURES, "observation.images.front": Feature("uint8", (96, 96, 3), "image"),
                "observation.points": Feature("float32", (8, 3)), "observation.objects": Feature("float32", (2, 3)),
                "observation.prompt.words": Feature("int64", (7,), "discrete", num_classes=(4,) * 7),
                "observation.prompt.objects": Feature("float32", (7, 3)),
                "observation.grid": Feature("int64", (3, 3), "discrete", num_classes=(3,) * 9),
                "observation.cell": Feature("int64", (2,), "discrete", num_classes=(3, 3))}
    sizes = {"fourier-transporter": 5, "chauffeurnet": 8}  # two places and an angle, and four points of a path
    if name in sizes:
        features["action"] = Feature("float32", (sizes[name],))
    if name in ("discrete-bcq", "discrete-cql", "discrete-sac", "dqn", "nfq"):
        features["action"] = Feature("int64", (1,), "discrete", num_classes=(3,))
    if name == "skill-bc":
        features["skill"] = Feature("int64", (1,), "discrete", num_classes=(3,))
    if name in ("pad", "uwm"):  # an operation before adds it
        features["action_known"] = Feature("float32", ())
    if name in ("flow-dpo", "preference-reward"):
        features |= {k: Feature("int64", (1,), "discrete", num_classes=(3,)) for k in ("segment", "preference")}
    for part in find_method(name, features).transforms:
        if any(find_references(part)):
            assert isinstance(part, (ColumnChange, Operation))
        elif not isinstance(part, Operation):
            columns = {**features, part.column: features[part.like]} if isinstance(part, OptionalColumn) else features
            if isinstance(part, ReturnToGo):  # a return that stays the same is not that of the data
                part = replace(part, subtract_rewards=True)
            data = random_dataset(columns, 2, 5)
            if isinstance(part, Progress):  # all episodes take as long
                part, data = replace(part, length=5), data[:1] + data[:1]
            check_column_change(part, data, tuple(PROVIDED))


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("example", [e for e in EXAMPLES if isinstance(e, ColumnChange)
                                     and not isinstance(e, Progress)] + [ReturnToGo(0.5), TaskText(optional=True)],
                         ids=lambda e: type(e).__name__)
def test_column_changes_keep_the_contract(example, discrete):
    check_column_change(example, episodes(discrete))


def test_the_environment_gets_the_action_without_padding():
    check_column_change(ColumnPadding("action", 4), episodes())


def test_progress_needs_a_length():
    check_column_change(Progress(length=5), episodes()[:1] + episodes()[:1])
    with pytest.raises(UserError, match=r"(?s)how long the episode will be is not known.*Progress\(length=...\)"):
        check_column_change(Progress(), episodes())
    with pytest.raises(ContractViolation, match="same values while acting as in training"):
        check_column_change(Progress(length=9), episodes())


@dataclass(frozen=True)
class Altered(ColumnChange):
    """A column change that acts as another."""

    offline: ColumnChange
    online: ColumnChange

    def __call__(self, episode):
        return self.offline(episode)

    def start(self, obs, key):
        return self.online.start(obs, key)

    def step(self, obs, last, state):
        return self.online.step(obs, last, state)

    def transform_action(self, action, size):
        return self.online.transform_action(action, size)


@dataclass(frozen=True)
class Leaking(LastAction):
    def step(self, obs, last, state):
        return {self.into: last.action.flip(0)}, state


@dataclass(frozen=True)
class OfOtherType(ReturnToGo):
    def step(self, obs, last, state):
        columns, state = super().step(obs, last, state)
        return columns, {**state, "value": state["value"].double()}


@pytest.mark.parametrize(("broken", "words"), [
    (Altered(ReturnToGo(), ReturnToGo(0.5)), "same values"),
    (Altered(LastAction(), Rename(STATE, "observation.arm")), "same values"),  # the first value alone is given
    (Altered(ColumnPadding(STATE, 3), LastAction()), "does not give"),
    (Altered(ReturnToGo(), TimeLeft("observation.return_to_go")), "same values"), (Leaking(), "same values"),
    (Altered(ColumnPadding("action", 4), LastAction()), "recorded action"),
    (OfOtherType(), "names, shapes and dtypes")])
def test_what_breaks_the_contract_is_found(broken, words):
    with pytest.raises(ContractViolation, match=words):
        check_column_change(broken, episodes())


def test_schemas_after_column_changes():
    features = changed_features(FEATURES,
                                [LastAction(), ColumnPadding("action", 4), Rename("nothing", "observation.x")])
    assert features[LAST].shape == (2,) and features["action"].shape == (4,) and "observation.x" not in features


# -- acting -----------------------------------------------------------------------------------------------------------


def method(*transforms, **fields) -> Method:
    return Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(2, 1), **fields),
                  learner=BehaviorCloning(2, 8), transforms=transforms)


@pytest.fixture(scope="module")
def data():
    env = Fork(10)
    return rollout(env.expert(), env, 10, seed=0)


@dataclass(frozen=True)
class Watched(Actor):
    """Records what an actor observes."""

    actor: Actor

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        return action, {"inner": inner, "record": {f"seen.{k}": v.clone() for k, v in obs.items()}}


def watched(actor: TransformedActor) -> TransformedActor:
    return replace(actor, actor=Watched(actor.actor))


def test_a_policy_sees_the_same_columns_as_in_training(data):
    trained_method = method(LastAction(), ReturnToGo(target=5.0), ConstantColumn("observation.expert", 1.0))
    result = fit_method(trained_method, data, 0)
    assert LAST in result.policy.inputs
    episodes = rollout(watched(result.actor), Fork(3, limit=9), 7, seed=1)  # more episodes than rows: rows begin anew
    for e in episodes:
        plain = e.replace({k: None for k in e.steps if k.startswith("seen.")})
        for name in (LAST, "observation.expert", STATE):
            want = LastAction()(ConstantColumn("observation.expert", 1.0)(plain)).steps[name][: len(e)]
            np.testing.assert_array_equal(e.steps[f"seen.{name}"], want)
        spent = np.cumsum(np.append(0, e.steps["next.reward"]))[: len(e)]
        np.testing.assert_allclose(e.steps["seen.observation.return_to_go"][:, 0], 5 - spent, atol=1e-5)
        assert LAST_REWARD not in e.steps


def test_transforms_see_what_those_before_them_added():
    @dataclass(frozen=True)
    class Still(Actor):
        def start(self, obs, key):
            return {"key": key}

        def act(self, obs, state):
            return torch.ones(len(state["key"]), 2), state
    chain = (LastAction(), Rename(LAST, "observation.before"), ColumnPadding("observation.before", 4))
    actor = TransformedActor(Watched(Still()), chain, FEATURES["action"])
    episodes = rollout(actor, Fork(2, limit=4), 2)
    np.testing.assert_array_equal(episodes[0].steps["seen.observation.before"][:2], [[0, 0, 0, 0], [1, 1, 0, 0]])


def test_the_last_choice_of_a_policy_is_shown_as_in_training():
    """A policy plans classes as float32. Choices count from 1, and 0 means that there was none."""
    choice = Feature("int64", (1,), "discrete", num_classes=(3,))

    @dataclass(frozen=True)
    class Second(Actor):
        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return torch.ones(2, 1), {"record": {"seen": obs[LAST]}}
    actor = TransformedActor(Second(), (LastAction(),), choice)
    obs, last_choices = {STATE: torch.zeros(2, 2)}, []
    state = actor.start(obs, keys(0, range(2)))
    for _ in range(3):
        _, state = actor.act(obs, state)
        last_choices.append(state["record"]["seen"])
    assert [s.flatten().tolist() for s in last_choices] == [[0, 0], [2, 2], [2, 2]]
    assert all(s.dtype == torch.int64 for s in last_choices)


def test_a_return_is_that_of_one_number_per_step():
    steps = {STATE: np.zeros((3, 2), np.float32), "next.reward": np.ones((3, 2))}
    with pytest.raises(UserError, match="column 'next.reward': there are 2 numbers per step"):
        ReturnToGo()(Episode(steps))
    assert ReturnToGo()(Episode({**steps, "next.reward": np.ones((3, 1))})).steps["observation.return_to_go"][0] == 3


def test_where_no_reward_is_known_the_error_says_what_to_do(data):
    actor = fit_method(method(ReturnToGo(target=1.0)), data, 0).actor
    obs, key = {STATE: torch.zeros(1, 2)}, keys(0, [0])
    with pytest.raises(UserError, match=r"(?s)the reward of the last step is not known here.*last\.reward"):
        actor.start(obs, key)
    with_reward = {**obs, LAST_REWARD: torch.zeros(1)}
    actor.act(with_reward, actor.start(with_reward, key))
    with pytest.raises(UserError, match=r"(?s)return that the policy shall reach is not known.*ObservationWrapper"):
        fit_method(method(ReturnToGo()), data, 0).actor.start(with_reward, key)
    asked = ObservationWrapper(fit_method(method(ReturnToGo()), data, 0).actor,
                               {"observation.return_to_go": torch.tensor([2.0])})
    assert len(rollout(asked, Fork(2, limit=5), 2)) == 2
    with pytest.raises(Unsupported, match="'intervention' is not known while acting"):
        ReturnToGo(column="intervention").check_online()
    with pytest.raises(UserError, match="(?s)with a discount of 0, no return.*subtract_rewards=False"):
        fit_method(method(ReturnToGo(discount=0.0, target=1.0)), data, 0).actor.start(with_reward, key)
    constant = fit_method(method(ReturnToGo(discount=0.0, target=1.0, subtract_rewards=False)), data, 0).actor
    assert constant.act(with_reward, constant.start(with_reward, key))[0].isfinite().all()
    with pytest.raises(Unsupported, match="is not an action"):
        LastAction(STATE).check_online()
    with pytest.raises(UserError, match="the last action is not known here"):
        TransformedActor(asked, (LastAction(),)).start(with_reward, key)


def test_words_are_given_by_the_environment_or_a_wrapper(data):
    worded = Dataset([replace(e, metadata={**e.metadata, "task": "pass"}) for e in data])
    actor = fit_method(method(TaskText(8)), worded, 0).actor
    with pytest.raises(UserError, match="(?s)nothing gives the column 'observation.task'.*--task 'WORDS'"):
        rollout(actor, Fork(1, limit=3), 1)
    words = {"observation.task": torch.tensor(TaskText(8).encode("pass"))}
    assert len(rollout(ObservationWrapper(actor, words), Fork(1, limit=3), 1)) == 1


def test_actions_are_cut_back_to_those_of_the_robot(data):
    trained_method = method(ColumnPadding(STATE, 3), ColumnPadding("action", 4), LastAction(), inputs=(STATE, LAST))
    result = fit_method(trained_method, data, 0)
    assert result.policy.features[LAST].shape == (4,) and result.policy.action_dim == 4
    episodes = rollout(watched(result.actor), Fork(2, limit=6), 3, seed=1)
    e = episodes[0]
    assert e.steps["action"].shape == (len(e), 2) and e.steps[f"seen.{STATE}"].shape == (len(e), 3)
    np.testing.assert_array_equal(e.steps[f"seen.{LAST}"][1:, :2], e.steps["action"][:-1])
    unknown = build_actor(result.method, result.modules)
    with pytest.raises(UserError, match="(?s)how many the robot has is not known.*features=env.features"):
        rollout(unknown, Fork(2), 1)
    wide = replace(result.actor.transforms[0], size=1)
    with pytest.raises(UserError, match="2 components, but the policy reads 1"):
        rollout(replace(result.actor, transforms=(wide,)), Fork(2), 1)


def test_runs_act_with_their_transforms(data, tmp_path, capsys):
    trained_method = method(LastAction(), ReturnToGo(target=1.0), ColumnPadding("action", 3))
    scores = []

    def score(actor):
        scores.append(len(rollout(actor, Fork(2, limit=5), 2)))
        return 0.0
    train(trained_method, data, tmp_path / "run", device="cpu", progress=False, score=score)
    assert scores
    with pytest.raises(UserError, match="how many the robot has is not known"):
        rollout(load_actor(tmp_path / "run"), Fork(2, limit=5), 2)
    actor = load_actor(tmp_path / "run", rows=4, features=Fork(1).features)
    assert len(rollout(actor, Fork(2, limit=5), 2)) == 2
    slow = delay_actor(actor, 2)
    assert isinstance(slow, TransformedActor) and len(rollout(slow, Fork(2, limit=5), 2)) == 2
    trained = TrainedRun.load(tmp_path / "run")
    features = policy_features(trained.method, Fork(1).features)
    assert {LAST, "observation.return_to_go", STATE} < set(features) and features["action"].shape == (3,)
    assert main(["eval", str(tmp_path / "run"), "fork", "--episodes", "4"]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "policy.onnx")]) == 0
    output = capsys.readouterr().out
    assert "does not compute what LastAction, ReturnToGo, ColumnPadding adds" in output
    assert f"understudy eval {tmp_path / 'run'} fork" in output, "and not the file"


def test_clients_of_a_server_send_only_what_it_does_not_compute(data, tmp_path):
    trained_method = method(ConstantColumn("observation.expert", 1.0), LastAction(), TaskText(8))
    data = Dataset([replace(e, metadata={**e.metadata, "task": "pass"}) for e in data])
    train(trained_method, data, tmp_path / "run", device="cpu", progress=False)
    served = load_service(ServeOptions(run=tmp_path / "run")).served
    assert set(served.columns) == {STATE, "observation.task"} and isinstance(served.actor, TransformedActor)
    train(method(TaskText(8)), data, tmp_path / "words", device="cpu", progress=False)
    assert isinstance(load_service(ServeOptions(run=tmp_path / "words")).served.actor, PolicyActor)


def test_column_changes_stand_behind_the_wrapper(data):
    result = fit_method(replace(method(LastAction()), wrapper=ResidualWrapper(Fork(1).expert())), data, 0)
    assert isinstance(result.actor, WrappedActor) and isinstance(result.actor.actor, TransformedActor)
    inner = result.actor.actor
    episodes = rollout(replace(result.actor, actor=watched(inner)), Fork(2, limit=6), 2)
    above = training_data(Dataset([e.replace({k: None for k in e.steps if k.startswith("seen.")}) for e in episodes]),
                          result.method)
    for e, relabeled in zip(episodes, above, strict=True):
        np.testing.assert_allclose(e.steps[f"seen.{LAST}"], relabeled.steps[LAST][: len(e)], atol=1e-4)
    other_method = replace(result.method, transforms=(LastAction(), Same()))
    for use in (lambda: build_actor(other_method, result.modules), lambda: training_data(data, other_method)):
        with pytest.raises(Unsupported, match="LastAction stands before an operation"):
            use()


@dataclass(frozen=True)
class Same(Operation):
    def apply(self, *data):
        return data[0]


def test_components_that_cannot_be_selected_are_refused():
    with pytest.raises(UserError, match="no components are named"):
        SelectComponents(STATE, ())
    with pytest.raises(UserError, match="there is no component 7"):
        SelectComponents(STATE, (7,))(episodes()[0])
    with pytest.raises(UserError, match="has 1 components, but the policy reads component 1"):
        SelectComponents(STATE, (1,)).step({STATE: torch.zeros(2, 1)}, None, ())


def test_longer_texts_are_cut_as_in_the_training_data_for_any_number_of_rows():
    change, texts = TaskText(8), ["put it there", "größer", "go"]
    encoded = torch.tensor(np.stack([TaskText(16).encode(text) for text in texts]))
    for rows in (3, 0):
        shown, _ = change.step({change.into: encoded[:rows]}, LastStep(torch.zeros(rows, dtype=torch.bool)), {})
        expected = [change.encode(text).tolist() for text in texts[:rows]]
        assert shown[change.into].shape == (rows, 8) and shown[change.into].tolist() == expected
