"""BCO and ABCO: demonstrations without actions, and practice in an environment."""

from dataclasses import replace

import numpy as np
import pytest

from understudy import make
from understudy.core import DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.missing_actions import PlaceholderActions
from understudy.data.mixture import ROUND, mix
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.improve.collection import PerNewStep
from understudy.learn.fit_method import fit_method
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.observation_only.abco import ABCO
from understudy.testing import check_collection

ENV = "fork"


def videos(n=20):
    env = make(ENV, rows=n)
    return rollout(env.expert(), env, n, seed=1).map(lambda e: e.replace({"action": None}))


def practice(n=20):
    env = make(ENV, rows=n)
    return rollout(UniformRandomActor(env), env, n, seed=2)


def small(name, initial_updates=4, n_rounds=2, **options):
    method = find_method(name, n_rounds=n_rounds, n_episodes=3, **options)
    rounds = replace(method.collection, initial_updates=initial_updates, updates=PerNewStep(0.1))
    return replace(method, collection=rounds, learner=replace(method.learner, batch_size=32))


def test_videos_and_practice_of_random_actions(tmp_path):
    shown = videos()
    nan = [e.replace({"action": np.full((len(e), 2), np.nan, np.float32)}) for e in shown]
    write_dataset(Dataset(nan, shown.metadata), tmp_path / "videos.npz", "npz")
    for i, videos_of_a_kind in enumerate((shown, open_dataset(tmp_path / "videos.npz"))):
        data, weights = mix(task=(videos_of_a_kind, 0.5), prior=(practice(), 0.5))
        train(small("bco"), data, tmp_path / f"run{i}", device="cpu", progress=False, env=make(ENV, 3),
              sampling_weights=weights)


@pytest.mark.slow
def test_bco_learns_from_videos_what_cloning_learns_from_actions():
    data = mix(task=(videos(50), 0.5), prior=(practice(50), 0.5))[0]
    method = small("bco", 1500, 3)
    result = fit_method(method, data, 0, env=make(ENV, 10))
    assert evaluate(result.actor, make(ENV, 25), episodes=100).success.estimate > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bco", "abco", "cilo"])
def test_rounds_resume(name):
    check_collection(small(name), mix(task=(videos(4), 0.5), prior=(practice(4), 0.5))[0], lambda rows: make(ENV, rows))


def test_no_practice_at_all_names_the_commands():
    with pytest.raises(DataError, match="(?s)no episode has actions.*--actor random.*--prior"):
        fit_method(small("bco"), videos(3), 0, env=make(ENV, 2))


def test_an_environment_without_success_is_refused_by_abco():
    env = make("four_rooms:play", 2)
    shown, tried = (rollout(env.expert(), env, 2, seed=i) for i in range(2))
    with pytest.raises(UserError, match="does not say whether it succeeded"):
        fit_method(small("abco"), mix(task=(shown, 0.5), prior=(tried, 0.5))[0], 0, env=env)


def tried(action, success=None):
    metadata = {} if success is None else {ROUND: 3, "success": success}
    steps = {"observation.state": np.zeros((len(action) + 1, 1), np.float32), "action": np.array(action)[:, None]}
    return Episode(steps, metadata)


@pytest.mark.parametrize("by_class", [False, True])
def test_abco_draws_as_much_of_its_successes_as_it_has_and_no_failure(by_class):
    learner = ABCO(balance_classes=by_class)
    episodes = [tried([0, 0, 0, 1, 2]), tried([0, 1, 1], True), tried([1, 1], False), tried([0], False),
                tried([2, 2, 2], False)]

    def masses(data):
        weights = learner.practice_weights(data)
        rates = [weights(e) for e in data]
        total = sum(r.sum() for r in rates)
        return [{a: r[e.steps["action"][:, 0] == a].sum() / total for a in range(3)}
                for r, e in zip(rates, data, strict=True)]
    first, success, *failures = masses(episodes)
    expected = [[0.75 / 3, 0.75 / 3, 1 / 3], [0.25 / 3, 0.25 / 3, 0]] if by_class else [
        [0.75 * 3 / 5, 0.75 / 5, 0.75 / 5], [0.25 / 3, 0.25 * 2 / 3, 0]]
    assert np.allclose([list(first.values()), list(success.values())], expected)
    assert not any(sum(f.values()) for f in failures)
    alone = masses([episodes[0], *episodes[2:]])[0]  # no success yet
    assert np.allclose(list(alone.values()), [1 / 3] * 3 if by_class else [0.6, 0.2, 0.2])


def test_placeholders_are_recorded_actions_and_recorded_ones_stay():
    shown, tried = videos(2), practice(2)
    short = shown[0].replace({k: shown[0].steps[k][:5] for k in shown[0].steps})  # no observation after the last step
    filled = PlaceholderActions().apply(Dataset([short, shown[1], *tried]))
    assert filled.lengths.tolist() == [4, *Dataset([shown[1], *tried]).lengths]
    recorded = {tuple(a) for e in tried for a in e.steps["action"]}
    assert {tuple(a) for a in filled[1].steps["action"]} <= recorded
    assert all((filled[2 + i].steps["action"] == tried[i].steps["action"]).all() for i in range(2))
    assert np.isfinite(filled[0].steps["action"]).all()
