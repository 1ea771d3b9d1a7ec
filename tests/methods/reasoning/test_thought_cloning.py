"""Thoughts as text: a column, a target, an input, and the method that is made of them."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.core import Feature, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.text_columns import ThoughtText
from understudy.data.window import Window
from understudy.execute.planners import Hierarchical
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.text_encoder import ByteEncoder
from understudy.policy import Planner, Policy, PolicyConfig
from understudy.testing import check_column_change

STATE, THOUGHT = "observation.state", "observation.thought"
FEATURES = {STATE: Feature("float32", (2,)), "thought": Feature("string", (), "string"),
            "action": Feature("int64", (1,), "discrete", num_classes=(4,))}


def light_data(steps: int = 60) -> Dataset:
    """One of two lights is on. The expert says which side it goes to, and goes there."""
    light = np.random.default_rng(0).integers(2, size=steps + 1)
    thought = np.array(["left", "go right"])[light[:-1]]
    return Dataset([Episode({STATE: np.eye(2, dtype=np.float32)[light], "thought": thought,
                             "action": 1 + 2 * light[:-1, None]}, schema=FEATURES)])


def test_a_thought_is_bytes_at_each_step_and_repeated_after_the_last():
    episode = Episode({STATE: np.zeros((4, 2), np.float32), "thought": np.array(["a", "b", "éé"]),
                       "action": np.zeros((3, 1), int)}, schema=FEATURES)
    column = ThoughtText(max_bytes=3)(episode).steps[THOUGHT]
    assert column.dtype == np.uint8
    assert column.tolist() == [[97, 0, 0], [98, 0, 0], [195, 169, 0], [195, 169, 0]]  # cut after a whole character
    assert ThoughtText(max_bytes=3)(episode).features()[THOUGHT] == Feature("uint8", (3,), "text")
    check_column_change(ThoughtText(), Dataset([episode]), (THOUGHT,))
    with pytest.raises(UserError, match="needs the thoughts of the expert as text"):
        ThoughtText("subtask")(episode)


def test_the_bytes_of_a_text_are_the_classes_of_a_target():
    data = light_data().map(ThoughtText(max_bytes=8, into="words"))
    policy = Policy(PolicyConfig(Categorical(), FeedForward((8,)), inputs=(STATE,), target="words"), data.features())
    policy.fit_statistics(data)
    batch = policy.windows(data).batch(5, 0)
    coded = policy.encode_batch(batch)
    assert coded.shape == (5, 1, 8 * 256) and (coded.sum(-1) == 8).all()
    assert torch.equal(policy.decode(coded, batch.obs), batch.action.float())
    for parameter in policy.net.parameters():
        torch.nn.init.zeros_(parameter)
    loss = policy.loss(batch, torch.Generator())  # all bytes are equally likely, and their losses are summed
    torch.testing.assert_close(loss, torch.full((5, 1), 8 * np.log(256), dtype=loss.dtype))


@dataclass(frozen=True)
class Says(Planner):
    """Says the same at all times."""

    text: str
    inputs, features, window, action_dim = (STATE,), {STATE: FEATURES[STATE]}, Window(), 8
    device = torch.device("cpu")

    def noise(self, key, count):
        return torch.zeros(len(key), 0)

    def plan(self, obs, noise, guides=()):
        thought_bytes = torch.tensor(ThoughtText(max_bytes=8)(light_data(2)[0].replace(
            {"thought": np.array([self.text] * 2)})).steps[THOUGHT][0])
        return thought_bytes.float().expand(len(obs[STATE]), 1, 8)


def test_the_policy_reads_what_was_thought_as_text():
    data = light_data().map(ThoughtText(max_bytes=8))
    config = PolicyConfig(Categorical(), FeedForward((8,)), TokenEncoder(8, text=ByteEncoder(8)),
                          inputs=(STATE, THOUGHT))
    low = Policy(config, data.features()).fit_statistics(data).eval()
    batch = low.windows(data).gather(np.arange(4))
    noise = {"high": torch.zeros(4, 0), "low": low.noise(keys(0, range(4)), torch.zeros(4, dtype=torch.int64))}
    for text in ("left", "go right"):
        thought_bytes = next(e.steps[THOUGHT][i] for e in data for i in range(60) if e.steps["thought"][i] == text)
        obs = {STATE: batch.obs[STATE], THOUGHT: torch.tensor(thought_bytes).expand(4, 1, 8)}
        plan = Hierarchical(Says(text), low, THOUGHT).plan({STATE: batch.obs[STATE]}, noise)
        assert torch.equal(plan, low.plan(obs, noise["low"]))


@pytest.mark.parametrize("discrete", [True, False])
def test_the_method_thinks_and_then_acts(discrete):
    data = light_data()
    if not discrete:
        data = data.map(lambda e: replace(e.replace({"action": np.asarray(e.steps["action"], np.float32)}), schema={
            **FEATURES, "action": Feature("float32", (1,))}))
    method = find_method("thought-cloning", data.features(), max_bytes=8, width=32, steps=150)
    (stage,) = method.stages
    result = fit_method(method, data, 0)
    planner = result.method.inference[0].over(result.policy, result.modules)
    assert isinstance(planner, Hierarchical) and stage.method.policy.target == "thought.text"
    obs = {STATE: torch.eye(2).unsqueeze(1)}
    noise = planner.noise(keys(0, range(2)), torch.zeros(2, dtype=torch.int64))
    thoughts = planner.high.plan(obs, noise["high"])[:, 0].to(torch.uint8).numpy()
    assert [bytes(row).rstrip(b"\0").decode() for row in thoughts] == ["left", "go right"]
    torch.testing.assert_close(planner.plan(obs, noise).flatten(), torch.tensor([1.0, 3.0]), rtol=0, atol=0.2)
    assert THOUGHT not in planner.inputs  # nothing has to give it while acting


def test_the_optimum_of_both_policies_where_thoughts_are_drawn_by_lot():
    """By either light the expert thinks "a" or "b", the one of them three times as often, and goes to 1 for "a" and to
    3 for "b". The smallest loss of a thought is the entropy of these chances, 0.5623. Who acts on the likelier thought
    goes to 1 or 3, and the mean action of cloning without thoughts would be 1.5 or 2.5."""
    light, thought = np.repeat([0, 1], 40), np.repeat([0, 1, 0, 1], (30, 10, 10, 30))
    steps = {STATE: np.eye(2, dtype=np.float32)[np.append(light, 0)], "thought": np.array(["a", "b"])[thought],
             "action": 1 + 2 * thought[:, None].astype(np.float32)}
    data = Dataset([Episode(steps, schema={**FEATURES, "action": Feature("float32", (1,))})])
    method = find_method("thought-cloning", data.features(), max_bytes=1, width=64, steps=200)
    result = fit_method(method, data, 0)
    planner = result.method.inference[0].over(result.policy, result.modules)
    obs = {STATE: torch.eye(2).unsqueeze(1)}
    noise = planner.noise(keys(0, range(2)), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(planner.plan(obs, noise).flatten(), torch.tensor([1.0, 3.0]), rtol=0, atol=0.1)
    thoughts = planner.high
    labeled = data.map(ThoughtText(max_bytes=1, into="thought.text"))
    loss = thoughts.loss(thoughts.windows(labeled).gather(np.arange(80)), torch.Generator())
    assert float(loss.mean()) == pytest.approx(0.5623, abs=0.02)
    for thought, goes_to in ((ord("a"), 1.0), (ord("b"), 3.0)):  # by either light
        told = planner.low.plan({**obs, THOUGHT: torch.full((2, 1, 1), thought, dtype=torch.uint8)}, noise["low"])
        torch.testing.assert_close(told.flatten(), torch.full((2,), goes_to), rtol=0, atol=0.1)
