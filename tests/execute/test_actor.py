"""Actors: one key for many users, and what a user's own loop may hand over."""

import copy
import math

import numpy as np
import pytest
import torch
from fixtures.plans import KEY, Clock

from understudy.core import DataWarning, Feature, NonFiniteAction, UserError, keys, normal, put, take
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.toys.fork import SPREAD, Fork, ForkExpert
from understudy.execute.actor import NoisyActor, ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.wrappers import every_nth_step
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.vision import SmallConv
from understudy.policy import Policy, PolicyConfig
from understudy.testing import random_batch, random_dataset

# -- one key, many users --------------------------------------------------------------------------------------------


def test_the_randomness_of_an_episode_is_not_shared_by_those_who_draw_it():
    """Environment, expert, policy and exploration of an episode have the same key: what one draws says nothing of what
    another does."""
    key, count = torch.arange(400), torch.zeros(400, dtype=torch.int64)
    start = Fork(400).reset(torch.arange(400), key)["observation.state"] / SPREAD
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), window=Window(1, 4)))
    obs, expert, noisy = {"observation.state": start * SPREAD}, ForkExpert(noise=1.0), NoisyActor(None, 2)
    drawn = {
        "environment": start, "again": normal(key, count, (2,), stream=1), "plan": policy.noise(key, count)[:, 0],
        "expert": expert.act(obs, expert.start(obs, key))[0]
        - ForkExpert(noise=0.0).act(obs, expert.start(obs, key))[0],
        "exploration": noisy.act(obs, noisy.start(obs, key))[0]}
    for name, one in drawn.items():
        for other in drawn:
            if name < other:
                shared = torch.corrcoef(torch.cat([one, drawn[other]], 1).T)[:2, 2:]
                assert shared.abs().max() < 0.25, (name, other)  # five standard errors of 400 pairs


def test_rows_move_with_their_chunks():
    policy, executor = Clock(8), RecedingHorizon(4)
    state = executor.start(policy, {}, KEY)
    _, state = executor.act(policy, {"observation.state": torch.arange(3.0).reshape(3, 1, 1)}, state)
    state = put(state, torch.tensor([1]), take(state, torch.tensor([2])))
    action, _ = executor.act(policy, {"observation.state": torch.zeros(3, 1, 1)}, state)
    assert action[:, 0].tolist() == [1.0, 3.0, 3.0]


# -- what a user's own loop may hand over ----------------------------------------------------------------------------


STATE, TOP = "observation.state", "observation.images.top"
SEEN = {STATE: Feature("float32", (3,), names=("x", "y", "grip")), TOP: Feature("uint8", (16, 20, 3), "image"),
        "observation.mode": Feature("int64", (1,), "discrete", num_classes=(4,)), "action": Feature("float32", (2,))}


@pytest.fixture(scope="module")
def plays():
    policy = Policy(PolicyConfig(Regression(), trunk=MLP(8, 1), window=Window(2, 4),
                                 encoder=TokenEncoder(width=8, vision=SmallConv(channels=(8, 8), keypoints=2))), SEEN)
    return PolicyActor(policy.fit_statistics(random_dataset(SEEN)).eval(), RecedingHorizon(2), policy.image_sizes)


def looked(**changes):
    obs = {STATE: torch.ones(2, 3), TOP: torch.full((2, 16, 20, 3), 7, dtype=torch.uint8),
           "observation.mode": torch.tensor([[1], [3]])}
    return {**obs, **{{"state": STATE, "top": TOP, "mode": "observation.mode"}[k]: v for k, v in changes.items()}}


def test_one_number_may_have_no_axis(plays):
    """Files often have (N,) where environments show (1,)."""
    key, flat = keys(0, range(2)), looked(mode=torch.tensor([1, 3]))
    (action, _), (other, _) = (plays.act(obs, plays.start(obs, key)) for obs in (looked(), flat))
    assert torch.equal(action, other)
    assert not torch.equal(action, plays.act(looked(mode=torch.tensor([1, 1])), plays.start(flat, key))[0])


def test_a_class_that_was_not_trained_is_told(plays, recwarn):
    plays.start(looked(), keys(0, range(2)))
    assert not recwarn
    for mode in (4, -1):
        with pytest.warns(DataWarning, match=f"'observation.mode': component 0 is the class {mode}, which"):
            plays.start(looked(mode=torch.tensor([[1], [mode]])), keys(0, range(2)))


WRONG = [
    (looked(state=torch.ones(3)), "'observation.state': the policy reads numbers of shape (rows, 3), but this is "
                                  "float32 of shape (3,)\n  -> "
                                  "one robot is a batch of one: obs['observation.state'][None]"),
    (looked(state=torch.ones(2, 4)), "(rows, 3), but this is float32 of shape (2, 4)\n  -> give "
                                     "what the policy was trained to read, rows first: x, y, grip"),
    (looked(state=np.ones((2, 3), complex)), "reads numbers of shape (rows, 3), but this is complex128"),
    (looked(state=np.array([["a"] * 3] * 2)), "not an array of numbers but <U1 of shape (2, 3)"),
    (looked(state=[[1.0], [1.0, 2.0]]), "not an array of numbers but list"),
    (looked(state=None), "not an array of numbers but None"),
    (looked(mode=torch.ones(2, 1)), "'observation.mode': the policy reads integers of shape (rows, 1), but this is f"),
    (looked(top=torch.zeros(2, 3, 16, 20, dtype=torch.uint8)), "-> channels come last"),
    (looked(top=torch.zeros(2, 16, 20, 3)), "reads uint8 pixels of shape (rows, 16, 20, 3), but this is float32"),
    (looked(top=torch.zeros(2, 16, 20, 4, dtype=torch.uint8)), "16, 20, 3), but this is uint8 of shape (2, 16, 20, 4)"),
    (looked(mode=torch.ones(3, 1, dtype=torch.int64)), "it has 3 rows instead of 2"),
    (looked(state=torch.tensor([[0.0, 0, 0], [0, math.nan, 0]])),
     "row 1, observation 'observation.state': component 'y' is not finite: nan\n  -> fix"),
    (looked(state=np.array([[math.inf, 0, 0], [0, 0, math.nan]])), "row 0, observation 'observation.state': "
                                                                   "component 'x' is not finite: inf"),
    ({k: v for k, v in looked().items() if k != STATE}, "there is no column 'observation.state'; there are obser"
                                                        "vation.images.top, observation.mode\n  -> "),
    ({"observation.stat": 0, **{k: v for k, v in looked().items() if k != STATE}}, "did you mean 'observation.stat'?"),
    (torch.ones(2, 3), "obs: observations must be a dict of columns, but this is float32 of shape (2, 3)\n  -> give"),
    (None, "obs: observations must be a dict of columns, but this is None"),
]


@pytest.mark.parametrize(("obs", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_observation_says_what_was_expected_what_came_and_what_to_do(plays, obs, words):
    key = keys(0, range(2))
    state = plays.start(looked(), key)
    for call in (lambda: plays.start(obs, key), lambda: plays.act(obs, state)):
        with pytest.raises(UserError) as error:
            call()
        assert words in str(error.value) and error.value.hint
        assert isinstance(error.value, NonFiniteAction) == ("finite" in words)


def test_what_can_be_read_as_it_was_trained_is_read(plays):
    """Lists, arrays of doubles, mirrored views, whole numbers and frames of another size: the very same actions."""
    key = keys(0, range(2))
    state = plays.start(looked(), key)
    action, _ = plays.act(looked(), state)
    twice = np.full((2, 32, 40, 3), 7, np.uint8)
    for obs in (looked(state=[[1.0] * 3] * 2), looked(state=np.ones((2, 3))), looked(state=np.ones((2, 3), np.float32)[
            ::-1]), looked(state=np.ones((2, 3), int)), looked(top=twice), {**looked(), "other": "text", 3: None}):
        assert torch.equal(plays.act(obs, plays.start(obs, key))[0], action)
        assert torch.equal(plays.act(obs, state)[0], action)
    with pytest.raises(UserError, match="policy.image_sizes. brings frames to the policy's size"):
        PolicyActor(plays.planner).start(looked(top=twice), key)


def test_rows_keys_and_states_have_to_belong_together(plays):
    key = keys(0, range(2))
    state = plays.start(looked(), key)
    one = {k: v[:1] for k, v in looked().items()}
    with pytest.raises(UserError, match="it has 1 rows instead of 2"):
        plays.act(one, state)
    for invalid in (0, key[:1], key.float(), [1, 2]):
        with pytest.raises(UserError, match=r"key: the keys must be int64 numbers of shape \(2,\).*\n.*keys\(seed"):
            plays.start(looked(), invalid)
    for invalid in (None, key, {}):
        with pytest.raises(UserError, match="state: the state must be what start or act returned"):
            plays.act(looked(), invalid)
    with pytest.raises(UserError, match="must be a dict of columns"):
        ObservationWrapper(plays, {"observation.goal": torch.zeros(2)}).start(torch.zeros(2, 3), key)


def test_a_plan_that_is_no_number_is_refused(plays):
    broken = copy.deepcopy(plays.planner)
    with torch.no_grad():
        next(iter(broken.net.parameters())).fill_(math.nan)
    actor, key = PolicyActor(broken, image_sizes=broken.image_sizes), keys(0, range(2))
    with pytest.raises(
        NonFiniteAction, match=r"row 0: the action is not finite: \[nan, nan\]\n.*diverged"
    ) as error:
        actor.act(looked(), actor.start(looked(), key))
    assert error.value.row == 0


def test_what_was_not_sensed_may_hold_anything():
    features = {"observation.a": Feature("float32", (3,)), "observation.a?": Feature("bool", ()),
                "action": Feature("float32", (2,))}
    data = random_dataset({k: v for k, v in features.items() if not k.endswith("?")})
    data = Dataset([e.replace({"observation.a?": np.arange(len(e)) % 2 == 0}) for e in data])
    actor, key = (
        PolicyActor(Policy(PolicyConfig(Regression(), trunk=MLP(8, 1)), features).fit_statistics(data).eval()),
        keys(0, range(2)),
    )

    def did(value, sensed):
        obs = {"observation.a": torch.full((2, 3), value), "observation.a?": torch.tensor([sensed] * 2)}
        return actor.act(obs, actor.start(obs, key))[0]
    assert torch.equal(did(math.nan, False), did(5.0, False)) and not torch.equal(did(5.0, True), did(5.0, False))


@pytest.mark.parametrize("dtype, stored", [("float32", "float32"), ("int64", "int64"), ("uint8", "int64")])
def test_rewards_of_any_type_are_added_up_between_the_steps_of_a_wrapper(dtype, stored):
    steps = {"observation.state": np.zeros((6, 2), np.float32), "action": np.zeros((5, 1), np.float32),
             "next.reward": np.array([100, 200, 3, 4, 5], dtype)}
    half = every_nth_step(Episode(steps), 2, {"action": np.zeros((3, 1), np.float32)}, Feature("float32", (1,)))
    assert half.steps["next.reward"].tolist() == [300, 7, 5]
    assert half.features()["next.reward"].dtype == half.steps["next.reward"].dtype == stored
