"""Retrieval, alignment and replay: the frame, the labels of alignment, the phases, and the method on a toy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage
from understudy.commands.parts.method import build_method
from understudy.core import Feature, Unsupported, UserError, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import mix
from understudy.data.operations import Crop
from understudy.data.relabel import FirstObservation, MotionToFirst
from understudy.data.window import Window
from understudy.envs.episode_wrappers import DemoStateReset
from understudy.envs.toys.peg_insertion import STEP, PegInsertion
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.methods.retrieval.retrieve_align_replay import AlignedReplay, PlanarFrame, rotate
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_executor, check_wrapper, random_dataset

PEG, HOLE, GOAL = "observation.state", "observation.environment_state", "observation.goal"
EFFECTOR = PlanarFrame(PEG, (HOLE,))


# -- the frame --------------------------------------------------------------------------------------------------------


def test_a_quarter_turn_to_the_left_sees_what_is_ahead_on_the_left():
    turned = torch.tensor([[1.0, 2.0, math.pi / 2]])
    turned_obs, _ = EFFECTOR.transform_obs({PEG: turned, HOLE: torch.tensor([[1.0, 5.0, -math.pi, 7.0]])}, {})
    torch.testing.assert_close(turned_obs[HOLE],
                               torch.tensor([[3.0, 0.0, math.pi / 2, 7.0]]))  # ahead is +y of the world
    assert torch.equal(turned_obs[PEG], turned)
    action, _ = EFFECTOR.transform_action({PEG: turned}, torch.tensor([[1.0, 0.5, 0.2]]), {})
    torch.testing.assert_close(action, torch.tensor([[-0.5, 1.0, 0.2]]))


def test_nothing_changes_where_the_whole_scene_is_moved():
    generator = torch.Generator().manual_seed(0)
    peg, hole = torch.randn(5, 3, generator=generator), torch.randn(5, 11, generator=generator)
    shift, angle = torch.tensor([0.3, -2.0]), torch.full((5,), 1.1)

    def moved(pose):
        place = rotate(pose[:, :2], angle) + shift
        return torch.cat([place, pose[:, 2:3] + angle.unsqueeze(1), pose[:, 3:]], 1)
    for frame, column in ((EFFECTOR, HOLE), (PlanarFrame(HOLE, (PEG,)), PEG)):
        here = frame.transform_obs({PEG: peg, HOLE: hole}, {})[0][column]
        there = frame.transform_obs({PEG: moved(peg), HOLE: moved(hole)}, {})[0][column]
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frame", [EFFECTOR, PlanarFrame(HOLE, (PEG,)), PlanarFrame(PEG, ())], ids=str)
def test_frames_keep_the_contract_of_wrappers(frame):
    check_wrapper(lambda rows: PegInsertion(rows, limit=20), frame)


def test_a_frame_needs_a_pose():
    with pytest.raises(UserError, match="no column 'observation.arm'"):
        PlanarFrame("observation.arm", ()).features(PegInsertion().features)
    with pytest.raises(UserError, match="with 3 or more numbers"):
        PlanarFrame(PEG, ()).features({**PegInsertion().features, PEG: Feature("float32", (2,))})


# -- what alignment learns from ---------------------------------------------------------------------------------------


def test_labels_lead_straight_to_the_first_pose():
    pose = np.array([[1, 1, 0.5], [1, 1.02, 0.5], [1.3, 0.6, 0.7], [9, 9, 9]], np.float32)
    episode = MotionToFirst(PEG, (0.1, 0.1, 0.2))(Episode({PEG: pose, "action": np.zeros((3, 3), np.float32)}))
    expected = [[0, 0, 0], [0, -0.2, 0], np.array([-3, 4, -1]) / math.sqrt(26)]  # of length 1 at most
    np.testing.assert_allclose(episode.steps["action"], expected, atol=1e-5)
    with pytest.raises(UserError, match="a component for each component of the action"):
        MotionToFirst(PEG)(Episode({PEG: pose, "action": np.zeros((3, 2), np.float32)}))


def test_the_first_observation_is_the_goal():
    episode = FirstObservation(PEG)(Episode({PEG: np.arange(4.0)[:, None], "action": np.zeros((3, 1))}))
    assert episode.steps[GOAL].ravel().tolist() == [0, 0, 0, 0]


# -- the phases -------------------------------------------------------------------------------------------------------


def demonstrations(*starts: float) -> Dataset:
    """Three steps each, from these places. The action of step t of demonstration e is 10 e + t."""
    return Dataset([Episode({PEG: start + np.arange(3, dtype=np.float32)[:, None],
                             "action": 10 * i + np.arange(3, dtype=np.float32)[:, None]})
                    for i, start in enumerate(starts)])


def memory(data: Dataset, target: str = "action", horizon: int = 2) -> Policy:
    config = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), codec=Normalizer("identity", "identity"),
                          window=Window(horizon=horizon), inputs=(PEG,), target=target)
    return Policy(config, data.features()).fit_statistics(data).eval()


class Servo(Policy):
    """The action is the difference to the goal."""

    def plan(self, obs, noise, guides=()):
        return obs[GOAL] - obs[PEG]


def servo() -> Servo:
    data = FirstObservation(PEG)(demonstrations(0.0)[0])
    config = PolicyConfig(Regression(), trunk=MLP(8, 1), encoder=ConcatEncoder(), inputs=(PEG, GOAL))
    return Servo(config, data.features())


def acted(executor, policy, *places):
    state, out = executor.start(policy, {PEG: torch.tensor([[[places[0]]]])}, torch.tensor([1])), []
    for place in places:
        action, state = executor.act(policy, {PEG: torch.tensor([[[place]]])}, state)
        out.append(round(action.item(), 4))
    return out


def test_a_demonstration_is_chosen_then_aligned_with_and_then_repeated():
    data = demonstrations(0.0, 5.0)
    run = AlignedReplay(memory(Crop(0, 1).apply(data), PEG, 1), servo(), max_steps=3)
    policy = memory(data)
    # It goes to where the nearer demonstration began, whatever lies in between, and then no longer looks.
    assert acted(run, policy, 4.5, 1.0, 4.96, 99.0, 99.0) == [0.5, 4.0, 10, 11, 12]
    assert acted(run, policy, 1.0, 0.0, 0.0, 0.0, 0.5) == [-1.0, 0, 1, 2, -0.5]  # then alignment begins again
    assert acted(run, policy, 1.0, 1.0, 1.0, 1.0) == [-1.0, -1.0, -1.0, 0]  # not for ever
    assert acted(replace(run, aligner=None), policy, 1.0, 1.0, 1.0, 1.0) == [0, 1, 2, 0]


def test_aligned_replay_keeps_the_contract_of_executors():
    features = {PEG: Feature("float32", (3,)), HOLE: Feature("float32", (3,)), "action": Feature("float32", (2,))}
    config = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), window=Window(1, 2))
    data = random_dataset(features, steps=9)
    look = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), inputs=(PEG,), target=HOLE)
    first = Crop(0, 1).apply(data)
    goal = data.map(FirstObservation(HOLE))
    aligner = Policy(PolicyConfig(Regression(), MLP(8, 1), ConcatEncoder(), inputs=(HOLE, GOAL)), goal.features())
    check_executor(AlignedReplay(Policy(look, data.features()).fit_statistics(first).eval(),
                                 aligner.fit_statistics(goal).eval(), max_steps=2), config)


def test_what_is_missing_is_named():
    data = demonstrations(0.0, 5.0)
    look = memory(Crop(0, 1).apply(data), PEG, 1)
    with pytest.raises(Unsupported, match="not stored in the policy"):
        AlignedReplay(look, None).check_planner(servo())
    with pytest.raises(UserError, match="where a demonstration ends"):
        AlignedReplay(look, None).check_planner(memory(data, horizon=1))
    with pytest.raises(Unsupported, match="not a policy with a memory"):
        acted(AlignedReplay(FromStage("retrieval"), None), memory(data), 0.0)
    with pytest.raises(Unsupported, match="AlignedReplay.aligner"):
        acted(AlignedReplay(look, FromStage("alignment")), memory(data), 0.0)
    with pytest.raises(UserError, match="knows 2 demonstrations, and the policy 1"):
        acted(AlignedReplay(look, None), memory(data[:1]), 0.0)
    other = Policy(replace(servo().config, inputs=(HOLE, GOAL)),
                   {HOLE: Feature("float32", (1,)), GOAL: Feature("float32", (1,)), "action": Feature("float32", (1,))})
    with pytest.raises(UserError, match="does not read 'observation.environment_state'"):
        acted(AlignedReplay(look, other), memory(data), 0.0)


# -- the method -------------------------------------------------------------------------------------------------------


def test_options_with_several_numbers_are_words_in_a_row():
    def built(*options):
        return build_method("retrieve-align-replay", options, (), None, ())
    assert built("--step", "0.05", "0.1", "--frame", PEG, "--poses", HOLE) == find_method(
        "retrieve-align-replay", step=(0.05, 0.1), frame=PEG, poses=(HOLE,))
    with pytest.raises(UserError, match="unexpected argument '4'"):
        built("--first", "3", "4")


class Wander(Actor):
    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key), "first": obs[PEG].clone()}

    def act(self, obs, state):
        place = (2 * uniform(state["key"], state["count"] // 8, (3,)) - 1) * torch.tensor([0.6, 0.6, 0.8])
        motion = (state["first"] + place - obs[PEG]) / torch.from_numpy(STEP)
        return motion.clamp(-1, 1).float(), {**state, "count": state["count"] + 1}


def test_one_demonstration_puts_a_peg_into_a_hole_that_stands_anywhere():
    """In the frame of the peg. In the world's frame, the same demonstration is of no use."""
    def build(rows, limit=80):
        return PegInsertion(rows, limit, 0.02, (1,))
    demonstration = rollout(build(1).expert(), build(1), 1, seed=0)
    start = Crop(-6, -5).apply(demonstration)
    play = rollout(Wander(), DemoStateReset(build(40, 40), start), 40, seed=1)
    data, _ = mix(task=(demonstration, 1.0), prior=(play, 1.0))
    method = find_method("retrieve-align-replay", frame=PEG, poses=(HOLE,), step=tuple(map(float, STEP)), first=-6)
    retrieval, alignment = method.stages
    alignment = replace(alignment, method=replace(alignment.method, learner=replace(
        alignment.method.learner, steps=600)))
    rates = []
    for frame in (EFFECTOR, None):
        stages = tuple(replace(s, method=replace(s.method, wrapper=frame)) for s in (retrieval, alignment))
        result = fit_method(replace(method, wrapper=frame, stages=stages), data, seed=0)
        rates.append(float(evaluate(result.actor, build(50), 50).successes.mean()))
    assert rates[0] > 0.7 and rates[1] < 0.3
