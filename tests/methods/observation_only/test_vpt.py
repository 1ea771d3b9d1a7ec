"""VPT: few steps have actions, and an inverse dynamics model tells the others."""

import warnings

import numpy as np
import pytest

from understudy.core import DataError, DataWarning
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.missing_actions import LabeledSteps
from understudy.learn.fit_method import fit_method
from understudy.learn.method import with_steps
from understudy.learn.train import train
from understudy.methods import find_method


def walk(seed, steps=20, kept=True):
    """The action is a function of the position, and the next move. Some episodes have no column of actions."""
    rng = np.random.default_rng(seed)
    position = [rng.uniform(-1, 1, 2)]
    for _ in range(steps):
        position.append(0.7 * position[-1] + rng.uniform(-0.1, 0.1, 2))
    position = np.array(position, np.float32)
    action = np.diff(position, axis=0)
    return Episode({"observation.state": position, **({"action": action} if kept else {})})


def short_vpt(**options):
    return with_steps(find_method("vpt", **options), 300)


def error(policy, seed):
    """Mean distance from the best action, which is -0.3 of the position."""
    windows = policy.windows(Dataset([walk(seed)]))
    batch = next(windows.scan())
    plan = policy.plan(batch.obs, policy.noise(batch.extra["index"][:, 0], batch.extra["index"][:, 0]))[:, 0]
    return float((plan + 0.3 * batch.obs["observation.state"][:, -1]).norm(dim=-1).mean())


@pytest.mark.slow
def test_an_episode_with_actions_serves_many_without():
    data = Dataset([walk(0, 40), *(walk(i, kept=False) for i in range(1, 30))])
    assert error(fit_method(short_vpt(), data, 0).policy, 99) < 0.05
    late = Dataset([*list(data)[1:], data[0]])  # the first episode has no actions
    assert error(fit_method(short_vpt(), late, 0).policy, 99) < 0.05


def test_a_run_with_actions_that_are_nan_resumes_from_its_files(tmp_path):
    hidden = [walk(i).replace({"action": np.full((20, 2), np.nan, np.float32)}) for i in range(1, 12)]
    write_dataset(Dataset([walk(0), *hidden]), tmp_path / "few.npz", "npz")
    data = open_dataset(tmp_path / "few.npz")
    options = {"device": "cpu", "progress": False, "val_fraction": [3]}
    policies = [train(with_steps(find_method("vpt", data.features()), 20), data, tmp_path / "run", **options)
                for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*(p.state_dict().values() for p in policies), strict=True))


def test_no_actions_at_all(tmp_path):
    without = Dataset([walk(i, kept=False) for i in range(6)])
    nan = Dataset([walk(i).replace({"action": np.full((20, 2), np.nan, np.float32)}) for i in range(6)])
    for data in (without, nan):
        with pytest.raises(DataError, match="(?s)no episode has actions.*understudy record"):
            fit_method(short_vpt(), data, 0)
        with pytest.raises(DataError, match="(?s)no episode has actions.*understudy record"):
            train(short_vpt(), data, tmp_path / "run", device="cpu", progress=False)


def test_actions_at_a_few_steps_are_too_few(tmp_path):
    action = np.where(np.arange(100)[:, None] < 1, 0.1, np.nan).astype("f").repeat(2, 1)
    data = Dataset([walk(0, 100).replace({"action": action})])
    with pytest.warns(DataWarning, match="only 1 of 100 steps have an action.*Record more"):
        LabeledSteps().apply(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabeledSteps().apply(Dataset([walk(0, 30), walk(1, kept=False)]))


def test_held_out_episodes_may_have_no_actions_and_may_have_all(tmp_path):
    data = Dataset([walk(0), *(walk(i, kept=False) for i in range(1, 10))])
    train(with_steps(short_vpt(), 4), data, tmp_path / "a", device="cpu", progress=False, val_fraction=[4, 5])
    with pytest.raises(DataError, match="no episode has actions"):
        train(with_steps(short_vpt(), 4), data, tmp_path / "b", device="cpu", progress=False, val_fraction=[0])


def test_labeled_steps_are_the_runs_with_actions_and_the_observation_after_them():
    episode = walk(0, 6)
    action = episode.steps["action"].copy()
    action[[0, 3]] = np.nan
    runs = LabeledSteps().apply(Dataset([walk(1, 4), episode.replace({"action": action})]))
    assert [len(e) for e in runs] == [4, 2, 2]
    assert (runs[1].steps["observation.state"] == episode.steps["observation.state"][1:4]).all()
    assert (runs[2].steps["action"] == episode.steps["action"][4:]).all()


def test_an_inverse_dynamics_model_reads_the_next_observation_and_not_the_present_one_again():
    """LeRobot's data have no observation after the last action, but the one after a run of labels that ends earlier."""
    whole = walk(0, 6)
    state, action = whole.steps["observation.state"], whole.steps["action"].copy()
    action[[0, 2, 3]] = np.nan
    short = Dataset([whole.replace({"observation.state": state[:6], "action": action})])
    for followed in (False, True):
        runs = LabeledSteps(followed).apply(short)
        assert [len(e) for e in runs] == [1, 1 if followed else 2]  # nothing follows the last step
        assert (runs[0].steps["observation.state"] == state[1:3]).all() and len(runs[0].steps["action"]) == 1
        assert (runs[1].steps["observation.state"] == state[4:6]).all()
    with pytest.raises(DataError, match="no step with an action is followed by an observation"):
        LabeledSteps(followed=True).apply(Dataset([Episode({"observation.state": state[:1], "action": action[1:2]})]))
    assert find_method("vpt", n_future=0).stages[0].method.transforms == (LabeledSteps(),)
    for name in ("vpt", "ss_orl"):
        labeling = find_method(name).stages[0].method
        windows = labeling.policy.window.windows(labeling.transforms[0].apply(short), ("observation.state",), "action")
        batch = next(windows.scan())
        np.testing.assert_allclose(batch.obs["observation.state"].diff(dim=1)[:, -1], batch.action[:, 0], atol=1e-6)


def test_episodes_of_one_step():
    data = Dataset([walk(0, 30), *(walk(i, 1, kept=False) for i in range(1, 20))])
    fit_method(with_steps(short_vpt(), 4), data, 0)
