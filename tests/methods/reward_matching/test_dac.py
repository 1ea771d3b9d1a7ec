"""DAC: what it refuses. Its level is in test_gusts.py."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.reward_matching import demonstrations

from understudy import make
from understudy.commands.train import _collection_env
from understudy.core import DataError, DataWarning, UserError
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.fit_method import fit_method
from understudy.learn.preflight import demonstration_findings, tell
from understudy.learn.train import train
from understudy.methods import find_method

STATE = "observation.state"


def test_starts_of_the_fork_spread():
    for spread in (0.03, 0.25):
        env = Fork(400, spread=spread)
        starts = np.stack([e.steps[STATE][0] for e in rollout(env.expert(), env, 400, recording_seed(0))])
        assert starts.std() == pytest.approx(spread, rel=0.06)


def test_it_practices_in_an_environment(tmp_path):
    with pytest.raises(UserError, match=r"no environment to collect them in(.|\n)*--env ENV"):
        train(find_method("dac"), demonstrations(0), tmp_path / "run", progress=False)


def test_without_practice_all_episodes_cannot_be_demonstrations():
    offline = replace(find_method("dac"), collection=None)
    with pytest.raises(DataError, match=r"all 3 episodes are demonstrations(.|\n)*--prior(.|\n)*--delete"):
        fit_method(offline, demonstrations(0), 0)


def test_demonstrations_of_another_environment_are_refused_before_anything_is_trained(tmp_path):
    env = make("particle", 2)
    with pytest.raises(UserError, match=r"observation.state(.|\n)*shape"):
        train(find_method("dac"), demonstrations(0), tmp_path / "run", env=env, progress=False)
    with pytest.raises(UserError, match=r"particle, column 'observation.state'(.|\n)*take demonstrations of this one"):
        _collection_env(find_method("dac"), demonstrations(0), SimpleNamespace(env="particle", trust=()))


def test_demonstrations_that_failed_are_named_unless_they_are_no_experts():
    def check(*metadata):
        data = Dataset([Episode(e.steps, {**e.metadata, **facts})
                        for e, facts in zip(demonstrations(0), metadata, strict=False)])
        tell(demonstration_findings(find_method("dac"), data))
    with pytest.warns(DataWarning, match="1 of 2 demonstrations did not succeed.*--filter success=true"):
        check({"success": False}, {"success": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check({"success": True}, {"success": False, "expert": False}, {"success": True})
