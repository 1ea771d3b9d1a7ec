"""Returns of a scorer's rewards: the column, its counterpart while acting, calibration, and scorers of words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from claims.conditioning import moved_goals

from understudy.checkpoint import FromStage, load_module, save_module
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods.return_conditioned.arp import CalibratedScorer, ScoredReturn, ScorerCalibration, TaskContrast
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_column_change, check_env, check_learner

RETURN = "observation.return_to_go"


def first_number(obs):
    """A scorer: the first component of the state."""
    return obs["observation.state"][..., 0]


def episode(scores, task=0):
    n = len(scores) - 1
    return Episode({"observation.state": np.array(scores, np.float32)[:, None], "action": np.zeros((n, 1), np.float32),
                    "observation.task": np.full((n + 1, 1), task), "next.reward": np.zeros(n, np.float32)})


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
    data = moved_goals.captioned_views(50, 0)
    scene = replace(moved_goals.SCENE, window=moved_goals.SCENE.window)
    scorer = fit_method(Method(scene, learner=TaskContrast(encoder=ConcatEncoder(), steps=2)), data, 0)
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
    scorer = fit_method(Method(moved_goals.SCENE, learner=TaskContrast(encoder=ConcatEncoder(), steps=300)),
                        moved_goals.captioned_views(1000, 0), 0).modules["scorer"]
    views, higher = moved_goals.captioned_views(200, 1), []
    for view in views:
        view_obs = {k: torch.from_numpy(np.repeat(v, 4, 0)) for k,
                    v in view.steps.items() if k.startswith("observation.")}
        view_obs[moved_goals.TASK] = torch.arange(4)[:, None]
        boxes = moved_goals.boxes_of_color(view_obs, torch.arange(4))
        with torch.no_grad():
            score = scorer(view_obs)
        if (absent := ~boxes.any(1)).any():
            higher.append(bool(score[boxes[:, 0]].min() > score[absent].max()))
    assert np.mean(higher) > 0.9


def test_the_aisle_keeps_its_contract_and_its_expert_takes_the_box():
    for side in ("any", "right", "left"):
        check_env(lambda rows, side=side: moved_goals.Aisle(rows, limit=8, side=side))
        env = moved_goals.Aisle(20, side=side)
        episodes = rollout(env.expert(), env, 40, seed=1)
        assert all(e.metadata["success"] for e in episodes)
        first = [{k: v[0] for k, v in e.steps.items() if k != "action"} for e in episodes]
        boxes = np.stack([s["simulator.state"][1:].reshape(2, -1) == s[moved_goals.TASK] for s in first])
        assert (boxes.sum((1, 2)) == 1).all()
        assert boxes.any(2).any(0).tolist() == {"any": [True, True], "right": [True, False],
                                                "left": [False, True]}[side]
    timed = rollout(env.expert(), moved_goals.Aisle(20, timed=True), 40, seed=1)
    assert all(e.steps[RETURN][0, 0] == len(e) for e in timed)


@pytest.mark.slow
def test_the_return_leads_to_the_other_side_and_wrong_words_do_not():
    experiment = replace(moved_goals.MOVED, source=moved_goals.RightSideEpisodes(150))
    data, options = experiment.source.load(0), {arm.name: arm.options[0] for arm in moved_goals.ARMS}
    options["wrong words"] = replace(options["ARP"], wrong_words=True)
    measures = {name: moved_goals.success_on_both_sides(experiment, option, data, 0, 200, 0)
                for name, option in options.items() if name != "clock"}
    success = {name: float(np.mean(values["success"])) for name, values in measures.items()}
    assert success["ARP"] > success["text cloning"] + 0.2 > success["wrong words"] + 0.4
    assert np.mean(measures["text cloning"]["training success"]) > 0.9
