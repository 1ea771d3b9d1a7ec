"""What `train`, `fit_method` and other entries refuse at once, and that messages count episodes as the user does."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.cli import main
from understudy.core import ConfigError, DataWarning, UserError, keys
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

METHOD = Method(PolicyConfig(Regression(), trunk=MLP(8, 1), window=Window(2, 4)), RecedingHorizon(2),
                BehaviorCloning(steps=2, batch_size=4))


def episode(steps=12, width=3, seed=0, **more):
    rng = np.random.default_rng([steps, seed])
    return Episode({"observation.state": rng.normal(size=(steps, width)).astype(np.float32),
                    "action": rng.normal(size=(steps, 2)).astype(np.float32), **more})


def episodes(odd=None, place=7, n=10):
    return Dataset([odd if odd is not None and i == place else episode(seed=i) for i in range(n)])


def run_train(data, folder, **options):
    return train(METHOD, data, folder, device="cpu", progress=False, **options)


@pytest.mark.parametrize("val_fraction", [0.1, 0.4, [0, 1, 2]])
def test_messages_count_the_episodes_of_the_user(tmp_path, val_fraction):
    for other, text in ((episode(width=2), r"episode 7, column 'observation.state': the shape is \(2,\)"),
                        (episode().replace({"action": np.zeros((9, 2), np.float32)}),
                         "episode 7, column 'observation.state': there are 12 rows, but the episode has 9 steps"),
                        (Episode({"action": episode().steps["action"]}),
                         "episode 7: there is no column 'observation.s"),
                        (episode(0), "episode 7: the episode has no steps")):
        with pytest.raises(UserError, match=text):
            run_train(episodes(other), tmp_path / "run", val_fraction=val_fraction)
        with pytest.raises(UserError, match="episode 7"):
            fit_method(METHOD, episodes(other), seed=0)


def test_nan_is_located_in_memory_too():
    invalid_episode = episode()
    invalid_episode.steps["action"][5, 1] = np.nan
    with pytest.raises(UserError, match=r"data set, episode 2, step 5, action\[1\]: the value is not finite"):
        fit_method(METHOD, episodes(invalid_episode, 2), seed=0)


def test_data_without_steps_are_refused(tmp_path):
    for data, text in ((Dataset([episode(0)] * 3), "episode 0: the episode has no steps"),
                       (Dataset([]), "there are no episodes")):
        with pytest.raises(UserError, match=text):
            run_train(data, tmp_path / "run")
        with pytest.raises(UserError, match=text):
            fit_method(METHOD, data, seed=0)
        with pytest.raises(UserError, match=text):
            Window(2, 4).windows(data, ("observation.state",), "action")


def test_save_freq_is_a_number_of_updates(tmp_path):
    for bad in (-1, 0, 0.5, True):
        with pytest.raises(UserError, match=f"save_freq is {bad}, but must be (a whole number )?at least 1"):
            run_train(episodes(), tmp_path / "run", save_freq=bad)


def test_what_is_not_a_method_data_or_seed_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    for method, data, seed, text in (
            ("bc", episodes(), 0, r"the method is the text 'bc', but must be a Method\n  -> find_method\('bc'\)"),
            (METHOD.policy, episodes(), 0, r"the method is a PolicyConfig.*\n  -> Method\(config\)"),
            (METHOD, "mine.npz", 0, r"text 'mine.npz', but must be a Dataset\n.*open_dataset\('mine.npz'\)"),
            (METHOD, path, 0, "open_dataset"),
            (METHOD, list(episodes()), 0, r"the data are a list, but must be a Dataset\n  -> Dataset\(episodes\)"),
            *((METHOD, episodes(), bad, "the seed is .*, but must be an int below")
              for bad in (None, 1.5, 2**70, True, "0", np.float64(3)))):
        with pytest.raises(UserError, match=text):
            train(method, data, tmp_path / "run", seed=seed, device="cpu", progress=False)
        with pytest.raises(UserError, match=text):
            fit_method(method, data, seed)


def test_a_seed_may_be_a_number_of_numpy(tmp_path):
    env, weights = make("fork", rows=2), []
    for seed in (3, np.int64(3)):
        weights.append(fit_method(METHOD, episodes(), seed).policy.state_dict())
        train(METHOD, episodes(), tmp_path / "run", seed=seed, device="cpu", progress=False)  # the second continues it
        assert type(rollout(env.expert(), env, np.int64(1), seed)[0].metadata["seed"]) is int
        assert torch.equal(keys(seed, [0, 1]), keys(3, [0, 1]))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_the_executor_is_checked_before_the_training(tmp_path):
    long = Method(METHOD.policy, RecedingHorizon(9), METHOD.learner)
    with pytest.raises(UserError, match="9") as refusal:
        train(long, episodes(), tmp_path / "run", device="cpu", progress=False)
    with pytest.raises(UserError) as in_memory:
        fit_method(long, episodes(), seed=0)
    assert str(refusal.value) == str(in_memory.value)


def test_texts_are_no_observations(tmp_path):
    for column in (np.array(["near", "far", "near"]), np.array([None, 1, "x"], object)):
        data = Dataset([Episode({"observation.state": column, "action": np.zeros((3, 2), np.float32)})])
        with pytest.raises(UserError,
                           match="column 'observation.state' contains text or objects, not numbers") as refusal:
            run_train(data, tmp_path / "run")
        assert "--rename" not in str(refusal.value)
        with pytest.raises(UserError, match="contains text or objects"):
            fit_method(METHOD, data, seed=0)


def integer_actions(dtype, top):
    action = np.linspace(0, top, 24).reshape(12, 2).astype(dtype)
    return Dataset([Episode({"observation.state": np.zeros((12, 3), np.float32), "action": action}) for _ in range(4)])


def test_integers_that_are_hardly_choices_are_told():
    with pytest.warns(DataWarning, match=r"'action' has whole numbers \(type int64\).*512 choices.*float32"):
        fit_method(METHOD, integer_actions(np.int64, 511), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_method(METHOD, integer_actions(np.int64, 17), 0)
        fit_method(METHOD, integer_actions(np.float32, 511), 0)


def test_windows_of_which_most_is_padding_are_told():
    def sized(**window):
        return replace(METHOD, policy=replace(METHOD.policy, window=replace(METHOD.policy.window, **window)))
    for window, text in (({"horizon": 37}, "horizon=37, but no episode has more than 12 steps.* --horizon, "),
                         ({"n_obs_steps": 40}, "n_obs_steps=40, but .* --n-obs-steps, "),
                         ({"n_obs_steps": 40, "horizon": 40}, "horizon=40 and n_obs_steps=40, but")):
        with pytest.warns(DataWarning, match=f"longer than the longest episode: {text}") as caught:
            fit_method(sized(**window), episodes(episode(5)), 0)
        assert len(caught) == 1
    with warnings.catch_warnings():  # no more than two thirds of each window are padding
        warnings.simplefilter("error")
        fit_method(sized(n_obs_steps=36, horizon=36), episodes(episode(5)), 0)
        fit_method(sized(horizon=37), episodes(episode(13)), 0)


def test_train_tells_once_of_windows_of_which_most_is_padding(tmp_path, capsys):
    write_dataset(episodes(), tmp_path / "data.npz")
    train_it = ["train", "bc", str(tmp_path / "data.npz"), "--steps", "2", "--out"]
    assert main([*train_it, str(tmp_path / "run"), "--horizon", "37"]) == 0
    assert capsys.readouterr().err.count("warning: The window is longer than the longest episode: horizon=37") == 1
    assert main([*train_it, str(tmp_path / "other")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_training_that_ends_while_the_learning_rate_rises_is_told(tmp_path, capsys):
    write_dataset(episodes(), tmp_path / "data.npz")
    train_it = ["train", "bc", str(tmp_path / "data.npz"), "--optimizer.warmup-steps", "3", "--out"]
    assert main([*train_it, str(tmp_path / "short"), "--steps", "3"]) == 0
    told = "rises for 3 updates, and training has 3, so that it only reaches 75% of its value"
    assert capsys.readouterr().err.replace("\n", " ").count(told) == 1
    assert main([*train_it, str(tmp_path / "long"), "--steps", "4"]) == 0
    assert "warning" not in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(METHOD, episodes(), tmp_path / "none", steps=0)


def test_bytes_are_no_actions():
    with pytest.raises(UserError, match="'action' has values of type uint8, which are read as text.*\n  -> .*float32"):
        fit_method(METHOD, integer_actions(np.uint8, 200), 0)


@pytest.mark.parametrize("fields, text", [
    ({"head": "flow"}, "PolicyConfig.head: head is 'flow', but must be an object of a class of Head"),
    ({"head": Regression}, r"head is Regression, but must be an .*\n  -> Regression\(\) makes one"),
    ({"head": Regression(), "trunk": MLP}, r"PolicyConfig.trunk: .*\n  -> MLP\(\) makes one"),
    ({"head": Regression(), "window": 8}, "PolicyConfig.window: window is 8"),
    ({"head": Regression(), "inputs": "observation.state"}, r"inputs=\('observation.state',\)"),
])
def test_parts_of_a_policy_are_checked(fields, text):
    with pytest.raises(ConfigError, match=text):
        PolicyConfig(**fields)


@pytest.mark.parametrize("fields, text", [
    ({"policy": Regression()}, "Method.policy: policy is Regression.*, but must be an object of a class of Pol"),
    ({"learner": BehaviorCloning}, r"Method.learner: .*\n  -> BehaviorCloning\(\) makes one"),
    ({"executor": RecedingHorizon}, r"Method.executor: .*\n  -> RecedingHorizon\(\) makes one"),
    ({"transforms": LastAction()}, r"(?s)Method.transforms: transforms is LastAction.*transforms=\(LastAction\(\),\)"),
])
def test_parts_of_a_method_are_checked(fields, text):
    with pytest.raises(ConfigError, match=text):
        replace(METHOD, **fields)


def test_a_policy_does_not_read_what_it_predicts():
    data = episodes()
    copying = replace(METHOD.policy, inputs=(*data.features(),))
    assert "action" in copying.inputs
    with pytest.raises(UserError, match="(?s)the policy reads 'action' at the step at which it predicts.*LastAction"):
        fit_method(replace(METHOD, policy=copying), data, 0)


def test_keys_and_rollouts_are_checked():
    for bad in (0.5, None, "0", True):
        with pytest.raises(UserError, match=f"the seed is {bad!r}, but must be an int"):
            keys(bad, [0])
    with pytest.raises(UserError, match=r"are 3, but must be a list\n  -> such as keys\(0, \[3\]\)"):
        keys(0, 3)
    env = make("fork", rows=2)
    for bad in (-3, 2.5, None, True):
        with pytest.raises(UserError, match=f"the number of episodes is {bad!r}, but must be an int"):
            rollout(env.expert(), env, bad)


def test_the_export_of_a_folder_is_refused(tmp_path):
    from understudy.deploy.onnx import export

    with pytest.raises(UserError, match=r"the policy is 'runs/x', but must be a Policy\n.*load_policy\('runs/x'\)"):
        export("runs/x", tmp_path / "x.onnx")


@pytest.mark.parametrize("val_fraction, leaked", [([7], True), ([2, 7], False), (0.0, False)])
def test_copies_of_episodes_are_told(tmp_path, val_fraction, leaked):
    parts = list(episodes(n=7))
    with pytest.warns(DataWarning, match="copies of earlier episodes: 1 of 8; ") as caught:
        run_train(Dataset([*parts, parts[2]]), tmp_path / "run", val_fraction=val_fraction)
    (text,) = (str(w.message) for w in caught if "copies" in str(w.message))
    assert ("held-out episodes with a copy in training: 1 of 1; the validation error is too low" in text) == leaked
    assert ("each counts twice in training" in text) != leaked
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        run_train(Dataset(parts), tmp_path / "other", val_fraction=val_fraction if val_fraction == 0.0 else [2])


def test_an_unknown_option_of_train_is_told(tmp_path):
    with pytest.raises(ConfigError, match="train: there is no option 'stepz'.*\n  -> did you mean 'steps'") as error:
        run_train(episodes(n=2), tmp_path / "run", stepz=2)
    assert error.value.where == "train" and not (tmp_path / "run").exists()


def test_an_environment_of_gymnasium_is_refused():
    import gymnasium

    with pytest.raises(UserError, match="(?s)the environment is of the type .*, but must be an Env.*make"):
        fit_method(find_method("sac"), episodes(), 0, env=gymnasium.make("Pendulum-v1"))
