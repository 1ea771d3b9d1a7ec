"""Returns of a scorer's rewards: the column, its counterpart while acting, calibration, and scorers of words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage, load_module, save_module
from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods.return_conditioned.arp import CalibratedScorer, ScoredReturn, ScorerCalibration, TaskContrast
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_column_change, check_learner

RETURN = "observation.return_to_go"


def first_number(obs):
    """A scorer: the first component of the state."""
    return obs["observation.state"][..., 0]


def episode(scores, task=0):
    n = len(scores) - 1
    return Episode({"observation.state": np.array(scores, np.float32)[:, None], "action": np.zeros((n, 1), np.float32),
                    "observation.task": np.full((n + 1, 1), task), "next.reward": np.zeros(n, np.float32)})


VIEW, TASK = "observation.view", "observation.task"
SCENE = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(), inputs=(VIEW, TASK))


def captioned_views(n, seed):
    """Views of boxes of four colors, three cells ahead on both sides, with the word for one: a near one more often."""
    rng, rate = np.random.default_rng(seed), np.exp(-np.arange(3.0))
    colors = rng.integers(4, size=(n, 2, 3))
    word = colors[np.arange(n), rng.integers(2, size=n), rng.choice(3, size=n, p=rate / rate.sum())]
    view = np.eye(4, dtype=np.float32)[colors].reshape(n, 24)
    schema = {TASK: Feature("int64", (1,), "discrete", num_classes=(4,))}
    return Dataset([Episode({VIEW: view[i:i + 1], TASK: word[i:i + 1, None], "action": np.zeros((1, 1), np.float32)},
                            schema=schema) for i in range(n)])


DATA = Dataset([episode([3, 1, 4, 9]), episode([2, 6, 8])])  # the last observation has no action


def test_rewards_are_scores_minus_the_lowest_of_the_data():
    scorer = CalibratedScorer(first_number).calibrate(DATA, 1.0)
    assert (float(scorer.minimum), float(scorer.target_return)) == (1.0, 6.0)  # returns 5 and 6
    assert [e.steps[RETURN].ravel().tolist() for e in DATA.map(ScoredReturn(scorer))] == [[5, 3, 3, 0], [6, 5, 0]]
    assert float(CalibratedScorer(first_number).calibrate(DATA, 0.5).target_return) == 5.5
    with pytest.raises(UserError, match="one number for each observation"):
        CalibratedScorer(lambda obs: obs["observation.state"]).calibrate(DATA, 1.0)


def test_the_return_falls_by_what_the_scorer_gives_while_acting():
    scorer = CalibratedScorer(first_number).calibrate(DATA, 1.0)
    check_column_change(ScoredReturn(scorer), DATA)
    for change, target in ((ScoredReturn(scorer), 6.0), (ScoredReturn(scorer, target=4.0), 4.0)):
        asked = [change.start({}, torch.zeros(2, dtype=torch.int64))["value"].tolist() for _ in range(2)]
        assert asked == [[[target], [target]]] * 2
    with pytest.raises(UserError, match="is not a trained module"):
        ScoredReturn(FromStage("reward", "reward")).check_online()


def test_a_checkpoint_keeps_the_scorer_and_its_calibration(tmp_path):
    save_module(CalibratedScorer(first_number).calibrate(DATA, 1.0), tmp_path / "function")
    loaded = load_module(tmp_path / "function", (__name__.split(".")[0],))
    assert isinstance(loaded, CalibratedScorer) and loaded.scorer is first_number
    assert (float(loaded.minimum), float(loaded.target_return)) == (1.0, 6.0)
    data = captioned_views(50, 0)
    scorer = fit_method(Method(SCENE, learner=TaskContrast(encoder=ConcatEncoder(), steps=2)), data, 0)
    whole = CalibratedScorer(scorer.modules["scorer"]).calibrate(data, 0.9)
    save_module(whole, tmp_path / "module")
    loaded = load_module(tmp_path / "module")
    assert isinstance(loaded, CalibratedScorer)
    assert torch.equal(loaded.scores(data[0]), whole.scores(data[0])) and torch.equal(loaded.minimum, whole.minimum)


def test_learners_of_scorers_keep_their_contract():
    words = PolicyConfig(Regression(), MLP(16, 1), inputs=("observation.state", "observation.task"))
    check_learner(TaskContrast(hidden=(8,), size=4, batch_size=8), (words,))
    check_learner(ScorerCalibration(first_number, batch_size=8))
    with pytest.raises(UserError, match="name the column of the words"):
        check_learner(TaskContrast("observation.words"), (words,))


def test_the_contrastive_scorer_prefers_what_the_words_say():
    """On new views, the word for a box beside the walker scores higher than a word for no box that is seen."""
    scorer = fit_method(Method(SCENE, learner=TaskContrast(encoder=ConcatEncoder(), steps=300)),
                        captioned_views(1000, 0), 0).modules["scorer"]
    views, higher = captioned_views(200, 1), []
    for view in views:
        view_obs = {k: torch.from_numpy(np.repeat(v, 4, 0)) for k,
                    v in view.steps.items() if k.startswith("observation.")}
        view_obs[TASK] = torch.arange(4)[:, None]
        boxes = view_obs[VIEW].reshape(4, 2, 3, 4)[torch.arange(4), :, :, torch.arange(4)].bool().any(1)
        with torch.no_grad():
            score = scorer(view_obs)
        if (absent := ~boxes.any(1)).any():
            higher.append(bool(score[boxes[:, 0]].min() > score[absent].max()))
    assert np.mean(higher) > 0.9
