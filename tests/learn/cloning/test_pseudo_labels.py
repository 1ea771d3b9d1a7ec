"""Actions that an inverse dynamics model tells."""

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage
from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.pseudo_labels import PseudoLabel
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_method


def walk(seed, part):
    """The action is the next move, which only the next position tells."""
    action = np.random.default_rng(seed).uniform(-1, 1, (20, 2)).astype(np.float32)
    position = np.concatenate([np.zeros((1, 2), np.float32), 0.3 * action.cumsum(0)])
    return Episode({"observation.state": position, "action": action}, {"dataset": part})


@pytest.mark.slow
def test_the_next_observation_tells_the_action_and_known_actions_stay():
    data = Dataset([walk(i, "task") for i in range(20)] + [walk(i, "prior") for i in range(100, 105)])
    hidden = data.map(lambda e: e if e.metadata["dataset"] == "task" else e.replace({"action": 0 * e.steps["action"]}))
    errors = []
    for window in (Window(2, obs_offset=1), Window(2)):
        inverse = Method(PolicyConfig(Regression(), window=window),
                         learner=BehaviorCloning(400, 64, OptimizerConfig(lr=3e-3)))
        labeler = fit_method(inverse, data[:20], 0).policy
        labeled = PseudoLabel(labeler).apply(hidden)
        assert all((labeled[i].steps["action"] == data[i].steps["action"]).all() for i in range(20))
        errors.append(np.mean([np.square(labeled[i].steps["action"] - data[i].steps["action"]) for i in range(20, 25)]))
    assert errors[0] < 0.01 and errors[1] > 0.25, errors  # the variance of the actions is a third
    assert not PseudoLabel(labeler, "other").apply(hidden)[20].steps["action"].any(), "only one part gets actions"


def test_the_method_trains_the_labeler_on_the_part_that_has_actions():
    check_method("ss-orl")
    stage = Stage("inverse", Method(PolicyConfig(Regression(), window=Window(2, obs_offset=1)),
                                    learner=BehaviorCloning(0)), dataset="task")
    with pytest.raises(UserError, match="is not a trained policy"):
        PseudoLabel(FromStage("inverse")).apply(Dataset([walk(0, "prior")]))
    method = Method(PolicyConfig(Regression()), learner=BehaviorCloning(0), stages=(stage,),
                    transforms=(PseudoLabel(FromStage("inverse")),))
    fit_method(method, Dataset([walk(0, "task"), walk(1, "prior")]), 0)
    with pytest.raises(UserError, match="the data have no part 'task'"):
        fit_method(method, Dataset([walk(1, "prior")]), 0)


def test_a_labeler_may_draw_one_noise_for_a_chunk():
    data = Dataset([walk(0, "prior")])
    labeler = Policy(PolicyConfig(CVAE(4), window=Window(2, obs_offset=1)), data.features()).fit_statistics(data).eval()
    batch = labeler.windows(data).gather(np.arange(20))
    expected = labeler.plan(batch.obs, torch.zeros(20, 4))[:, 0]
    assert np.array_equal(PseudoLabel(labeler).apply(data)[0].steps["action"], expected.detach().numpy())


def inverse_model(seed=0, steps=400):
    method = Method(PolicyConfig(Regression(), window=Window(2, obs_offset=1)),
                    learner=BehaviorCloning(steps, 64, OptimizerConfig(lr=3e-3)))
    return fit_method(method, Dataset([walk(i, "task") for i in range(20)]), seed).policy


def test_no_label_crosses_an_episode_and_the_last_uses_the_observation_after_it():
    labeler, episodes = inverse_model(), [walk(i, "prior") for i in (100, 101)]
    apart = [PseudoLabel(labeler).apply(Dataset([e]))[0].steps["action"] for e in episodes]
    together = PseudoLabel(labeler).apply(Dataset(episodes))
    assert all(np.allclose(together[i].steps["action"], apart[i], atol=1e-6) for i in range(2))
    assert np.abs(apart[0][-1] - episodes[0].steps["action"][-1]).max() < 0.3
    for offset in (-1, 2):
        shifted = PseudoLabel(labeler, offset=offset).apply(Dataset(episodes))
        rows = np.clip(np.arange(20) + offset, 0, 19)
        assert all(np.allclose(shifted[i].steps["action"], apart[i][rows], atol=1e-6) for i in range(2))


def test_only_missing_actions_are_replaced():
    labeler, episode = inverse_model(), walk(100, "task")
    action = episode.steps["action"].copy()
    action[5:9] = np.nan
    bare = episode.replace({"action": None})
    labeled = PseudoLabel(labeler, None, only_missing=True).apply(Dataset([bare, episode.replace({"action": action})]))
    assert np.abs(labeled[0].steps["action"] - episode.steps["action"]).mean() < 0.1
    kept = np.r_[0:5, 9:20]
    assert (labeled[1].steps["action"][kept] == action[kept]).all()
    assert (labeled[1].steps["action"][5:9] == labeled[0].steps["action"][5:9]).all()
    assert labeled.features()["action"].dtype == "float32" and labeled.lengths.tolist() == [20, 20]


def test_a_last_step_without_a_next_observation_is_left_out():
    labeler = inverse_model(steps=1)
    video = Dataset([Episode({"observation.state": walk(i, "prior").steps["observation.state"][:n]})
                     for i, n in ((100, 8), (101, 1), (102, 3))])
    labeled = PseudoLabel(labeler, None).apply(video)
    assert labeled.lengths.tolist() == [7, 2] and len(labeled[0].steps["observation.state"]) == 8
    batch = next(Window().windows(labeled, ("observation.state",), "action").scan())
    assert batch.obs["observation.state"].shape == (9, 1, 2)
    causal = fit_method(Method(PolicyConfig(Regression()), learner=BehaviorCloning(0)),
                        Dataset([walk(0, "task")]), 0).policy
    assert PseudoLabel(causal, None).apply(video).lengths.tolist() == [8, 1, 3]
    with pytest.raises(UserError, match="(?s)followed by an observation.*one observation more than there are actions"):
        PseudoLabel(labeler, None).apply(video[1:2])


def test_a_labeler_of_other_columns_is_refused():
    wide = Dataset([walk(0, "prior").replace({"observation.state": np.zeros((21, 3), np.float32)})])
    with pytest.raises(UserError, match="(?s)shape \\(2,\\).*--stage"):
        PseudoLabel(inverse_model(steps=1), None).apply(wide)


def test_a_labeler_whose_chunks_begin_in_the_past_tells_the_action_of_the_present_step():
    data = Dataset([walk(0, "prior")])
    labeler = Policy(PolicyConfig(Regression(), window=Window(3, 2, action_offset=-1, obs_offset=1)),
                     data.features()).fit_statistics(data).eval()
    batch = labeler.windows(data).gather(np.arange(20))
    expected = labeler.plan(batch.obs, torch.zeros(20, *labeler.noise_shape))[:, 1]
    assert np.array_equal(PseudoLabel(labeler).apply(data)[0].steps["action"], expected.detach().numpy())
    for window in (Window(3, action_offset=-1), Window(action_offset=1)):
        labeler = Policy(PolicyConfig(Regression(), window=window), data.features()).fit_statistics(data)
        with pytest.raises(Unsupported, match="plans no action of the current step"):
            PseudoLabel(labeler).apply(data)
