"""What is found in data before training."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from understudy.core import DataWarning, UserError
from understudy.data.codec import Normalizer
from understudy.data.column_changes import ReturnToGo
from understudy.data.episode import Dataset, Episode
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.method import Method
from understudy.learn.preflight import ConstantComponent, constant_components, preflight, tell
from understudy.methods import find_method
from understudy.policy import Policy, PolicyConfig
from understudy.testing import STATE

WAVE = np.sin(np.arange(40, dtype=np.float64))
CLONING = Method(PolicyConfig(Regression(), window=Window(1, 4)))


def episode(seed=0, steps=12, **columns):
    rng = np.random.default_rng(seed)
    return Episode({STATE: rng.normal(size=(steps, 3)).astype(np.float32),
                    "action": rng.normal(size=(steps, 2)).astype(np.float32), **columns}, {"task": "push"})


def episodes(n=6, **options):
    return Dataset([episode(i, **options) for i in range(n)])


def with_window(**fields):
    return replace(CLONING, policy=replace(CLONING.policy, window=Window(**fields)))


def with_labels(data, **metadata):
    return Dataset([replace(e, metadata={**e.metadata, **metadata}) for e in data])


def rewards(value, ends):
    return {"next.reward": np.full(12, value, np.float32), "next.terminated": np.arange(12) == (11 if ends else 12)}


IQL, TO_GO = find_method("iql"), replace(CLONING, transforms=(ReturnToGo(target=100.0),))
WARNINGS = [
    (CLONING, Dataset([*episodes(), episode()]), "copies of earlier episodes: 1 of 7; "),
    (CLONING, episodes(1), "There is one episode to learn from"),
    (CLONING, episodes(steps=1), "No episode has more than one step"),
    (CLONING, Dataset([*episodes(), *with_labels([episode(9)], interrupted=True)]), "1 of 7 episodes was interrupted"),
    (with_window(horizon=64), episodes(), "horizon=64, but no episode has more than 12 steps"),
    (CLONING, episodes(action=np.arange(12)[:, None] * 40), "441 choices that have no order"),
    (CLONING, episodes(**{"observation.clock": 1.7e9 + np.arange(12.)[:, None]}), "which rounds them to multiples of"),
    (IQL, episodes(**rewards(1.0, ends=True)), "all 5 episodes terminate after 12 steps, as with a time limit"),
    (TO_GO, Dataset([episode(i, **rewards(1.0, ends=True)) for i in range(3)]), "the return of all 3 episodes is 12"),
    (TO_GO, Dataset([episode(i, **rewards(0.1 * i, ends=True)) for i in range(3)]), "the target return is 100"),
    (find_method("dac"), with_labels(episodes(3, **rewards(0.0, ends=False)), success=False), "3 of 3 demonstrations"),
]
ERRORS = [
    (CLONING, Dataset([]), "there are no episodes"),
    (CLONING, Dataset([*episodes(), episode(steps=0)]), "episode 6: the episode has no steps"),
    (CLONING, with_labels(episodes(), interrupted=True), "every episode was interrupted"),
    (replace(CLONING, transforms=(TaskText(),)), with_labels(episodes(), task=""), "no episode has a task in words"),
    (IQL, episodes(), "IQL learns from next.reward and next.terminated, but there is no column next.reward"),
    (IQL, episodes(**rewards(0.0, ends=True)), "all rewards are 0, so that no action is better than another"),
    (CLONING, Dataset([Episode({STATE: WAVE[:, None]})]), "there is no column 'action' to learn"),
    (CLONING, Dataset([Episode({"action": WAVE[:, None]})]), "no column is an observation"),
    (CLONING, Dataset([*episodes(), Episode({"action": np.zeros((3, 2))})]), "episode 6: there is no column"),
    (CLONING, episodes(action=np.full((12, 1), -1)), "action has integers from -1 on"),
    (CLONING, episodes(action=np.array(["left"] * 12)), "column 'action' contains text, not numbers"),
    (CLONING, episodes(action=np.zeros((12, 1), np.uint8)), "values of type uint8, which are read as text"),
    (CLONING, episodes(action=np.full((12, 1), np.nan, np.float32)), "episode 0, step 0, action[0]: the value is not"),
    (CLONING, episodes(**{"observation.image": np.zeros((12, 16, 16, 3), np.float32)}), "which is read as a vector"),
    (with_window(action_offset=30), episodes(), "no episode is long enough for the targets"),
    (find_method("gcivl"), episodes(steps=1), "no episode has two steps"),
    (find_method("dac"), with_labels(episodes(), expert=False), "none of the 6 episodes is a demonstration"),
    (find_method("one-shot"), Dataset([with_labels([episode(i)], task=str(i))[0] for i in range(3)]),
     "the 3 episodes show 3 tasks"),
]


@pytest.fixture(autouse=True)
def nothing_is_built(request, monkeypatch):
    if "method" in request.fixturenames:
        monkeypatch.setattr(Policy, "__init__", lambda *_: pytest.fail("a policy was built"))


@pytest.mark.parametrize(("method", "data", "text"), WARNINGS)
def test_each_doubt_is_found_once(method, data, text):
    checked = preflight(method, data)
    assert sum(text in warning for warning in checked.warnings) == 1 and checked.error is None
    with pytest.warns(DataWarning) as told:
        tell(checked.findings)
    assert [str(w.message) for w in told] == checked.warnings


@pytest.mark.parametrize(("method", "data", "text"), ERRORS)
def test_what_ends_a_training_is_found_before_it(method, data, text):
    checked = preflight(method, data)
    assert text in str(checked.error) and checked.findings[-1] is checked.error
    with pytest.raises(UserError), pytest.warns(DataWarning) if checked.warnings else nullcontext():
        tell(checked.findings)


def test_good_data_have_no_findings():
    checked = preflight(CLONING, episodes(10))
    assert not checked.findings and len(checked.split.held_out) == 1
    assert len(checked.episodes.complete) == 10 and len(checked.episodes.learned) == 9
    assert len(checked.fingerprints["digests"]) == 10


def policy_and_data(codec, state, action):
    columns = {STATE: np.stack(state, 1).astype(np.float32), "action": np.stack(action, 1).astype(np.float32)}
    data = Dataset([Episode({name: x[:20] for name, x in columns.items()}),
                    Episode({name: x[20:] for name, x in columns.items()})])
    return Policy(PolicyConfig(Regression(), codec=codec), data.features()).fit_statistics(data), data


def test_a_policy_with_a_coarse_floor_names_what_it_does_not_learn():
    """As policies of earlier versions have it: their floor was 1e-4 in any unit."""
    old, data = policy_and_data(Normalizer(min_scale=1e-4), [WAVE, 2e-5 * WAVE, 0 * WAVE], [3e-5 * WAVE, WAVE])
    hidden = constant_components(old, data)
    assert [(c.column, c.index) for c in hidden] == [(STATE, 1), ("action", 0)]
    assert hidden[1] == ConstantComponent("action", 0, hidden[1].name, pytest.approx(-3e-5, rel=1e-3),
                                          pytest.approx(3e-5, rel=1e-3))
    new, _ = policy_and_data(Normalizer(), [WAVE, 2e-5 * WAVE, 0 * WAVE], [3e-5 * WAVE, WAVE])
    assert constant_components(new, data) == ()


def test_rounding_is_not_named():
    last_bits = np.float32(1000) + np.spacing(np.float32(1000)) * np.sign(WAVE)
    policy, data = policy_and_data(Normalizer(), [WAVE, last_bits, 3e-8 * WAVE], [WAVE, WAVE])
    assert [(c.column, c.index) for c in constant_components(policy, data)] == [(STATE, 2)]


def test_policies_without_statistics_hide_nothing():
    policy, data = policy_and_data(Normalizer(obs="identity", target="identity"), [1e-9 * WAVE], [WAVE, 1e-12 * WAVE])
    assert constant_components(policy, data) == ()
    policy, data = policy_and_data(Normalizer(relative=STATE), [WAVE, WAVE], [WAVE, WAVE + 0.1])
    assert constant_components(policy, data) == ()
