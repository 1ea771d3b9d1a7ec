"""The progress of a task in stages: its targets, histories that are played backwards, and what is learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.advancing import advancing
from fixtures.learning import call_step
from scipy.stats import spearmanr

from understudy.core import DataError, Feature, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.segments import ColumnSegments, StoredSegments
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import load_modules, with_steps
from understudy.learn.rewards.learned_reward import LearnedReward
from understudy.learn.train import train
from understudy.methods.reward_matching.sarm import LABELS, SARM, StageReward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, check_method, check_reward_model

STATE = "observation.state"
SMALL = StageReward(n_frames=3, width=8)
LEARNING = SARM(SMALL, batch_size=4)


def episode(texts: str = "", n: int = 0, **metadata) -> Episode:
    """An episode whose subtask at each step is a letter, or a space for none."""
    n = n or len(texts)
    steps = {STATE: np.linspace(0, 1, n + 1, dtype=np.float32)[:, None], "action": np.zeros((n, 1), np.float32)}
    return Episode({**steps, **({"subtask": np.array([*texts])} if texts else {})}, metadata)


def learner_on(data: Dataset, config: SARM = LEARNING):
    method = SARM().method(data.features())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Policy(method.policy, data.features()).fit_statistics(data)
        return config.build(policy, 0, 10, data)


def test_contracts():
    check_reward_model(SMALL)
    check_reward_model(replace(SMALL, frame_gap=2))


def test_contract_of_the_learner():
    check_learner(LEARNING, [PolicyConfig(Regression(), MLP(8, 1), inputs=(STATE,))])


def test_it_reads_pictures():
    image = {"observation.images.top": Feature("uint8", (16, 16, 3), "image"), "action": Feature("float32", (2,))}
    check_method("sarm", image)


def test_stages_cover_their_mean_fraction_and_progress_rises_within_them():
    """Of two episodes, "a" takes 2 of 4 and 6 of 8 of the labeled steps: 0.625 of the task."""
    data = Dataset([episode("aabb"), episode(" aaaaaa  bb ")])
    model = learner_on(data).nets.reward
    assert model.config.stages == ("a", "b") and model.config.fractions == pytest.approx((0.625, 0.375))
    assert model.config.detector == ColumnSegments("subtask")
    assert model.label(data[0]).steps[LABELS].tolist() == [[0, 0], [0, 0.5], [1, 0], [1, 0.5]]
    expected = [(0, 0), *((0, k / 6) for k in range(6)), (0, 1), (0, 1), (1, 0), (1, 0.5), (1, 1)]
    np.testing.assert_allclose(model.label(data[1]).steps[LABELS], expected, rtol=1e-6)


def test_labels_may_be_segments_or_missing():
    """Stages have the order of their mean starts. A stage that comes again begins again."""
    data = Dataset([episode(n=8, segments=[[0, 2, "z"], [2, 4, "a"], [4, 6, "z"], [6, 8, "a"]])])
    model = learner_on(data).nets.reward
    assert model.config.stages == ("z", "a") and model.config.fractions == (0.5, 0.5)
    assert model.config.detector == StoredSegments()
    assert model.label(data[0]).steps[LABELS].tolist() == [[0, 0], [0, 0.5], [1, 0], [1, 0.5]] * 2
    plain = learner_on(Dataset([episode(n=4)])).nets.reward
    assert plain.config.fractions == (1.0,) and plain.label(episode(n=4)).steps[LABELS][:, 1].tolist() == [
        0, 0.25, 0.5, 0.75]


def test_progress_is_what_earlier_stages_cover_and_a_fraction_of_the_present_one(monkeypatch):
    model = learner_on(Dataset([episode("aaabb")])).nets.reward
    for stage, done, expected in ((0, 0.5, 0.3), (1, 0.0, 0.6), (1, 0.25, 0.7)):
        logits = torch.nn.functional.one_hot(torch.tensor([[1 - stage, stage]]), 2).float()  # of the last frame
        prediction = logits, torch.tensor([[0.9, done]])
        monkeypatch.setattr(model, "predict", lambda frames, stage=None, result=prediction: result)
        assert model.progress({STATE: torch.zeros(1, 3, 1)}).item() == pytest.approx(expected)


def test_the_frames_are_a_gap_apart_and_end_at_the_current_one():
    data = Dataset([episode("aabbbb")])
    learner = learner_on(data, SARM(replace(SMALL, frame_gap=2), batch_size=4))
    learner.nets.reward.codec.encode_obs = lambda obs: obs
    assert learner.nets.reward.about.window == Window(5, 5, -4)
    batch = learner.batch_sampler(data).gather(np.array([1, 5]))
    torch.testing.assert_close(learner.nets.reward.frames(batch.obs)[..., 0] * 6, torch.tensor([[0., 0, 1], [1, 3, 5]]))
    four = {STATE: torch.arange(4.0).reshape(1, 4, 1)}
    assert learner.nets.reward.frames(four)[..., 0].tolist() == [[1, 3]]
    torch.testing.assert_close(batch.extra[LABELS][1, ::2], torch.tensor([[0, 0.5], [1, 0.25], [1, 0.75]]))


def test_histories_are_played_on_backwards():
    config = SARM(replace(SMALL, n_frames=4), rewind=0.5, max_rewind=2)
    learner = learner_on(Dataset([episode("aabb")]), config)
    order, counts = learner.config.rewound(2000, 4, torch.Generator().manual_seed(0))
    assert order.tolist() == [0, 1, 2, 3, 2, 1]
    rows, times = counts.sum(1).unique(return_counts=True)
    assert rows.tolist() == [4, 5, 6] and bool(counts[:, :4].all()) and not (counts[:, 5] & ~counts[:, 4]).any()
    np.testing.assert_allclose(times / 2000, [0.5, 0.25, 0.25], atol=0.03)
    assert learner.config.rewound(3, 1, torch.Generator())[0].tolist() == [0]


@pytest.mark.parametrize("teacher, rewind, gap", [(0.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.0, 2)])
def test_the_loss_is_that_by_hand(teacher, rewind, gap):
    """Cross-entropy of the stage plus squared error, over frames that count, also those played backwards."""
    data = Dataset([episode("aaabbb")])
    learner = learner_on(data, SARM(replace(SMALL, frame_gap=gap), rewind=rewind, max_rewind=1,
                                             teacher=teacher))
    model, batch = learner.nets.reward, learner.batch_sampler(data).gather(np.array([3, 5]))
    loss = call_step(learner, "progress_loss", batch, torch.Generator().manual_seed(0))
    for row, t in enumerate((3, 5)):
        steps = [max(t - 2 * gap, 0), t - gap, t, t - gap][:4 if rewind else 3]
        stage = torch.tensor([[int(t >= 3) for t in steps]])
        frames = model.frames({k: v[row:row + 1] for k, v in batch.obs.items()})[:, [0, 1, 2, 1][:len(steps)]]
        logits, done = model.predict(frames, stage if teacher else None)
        error = (done - torch.tensor([[t % 3 / 3 for t in steps]])).square()
        expected = (torch.nn.functional.cross_entropy(logits[0], stage[0], reduction="none") + error[0]).mean()
        torch.testing.assert_close(loss[row], expected)


def test_a_stopped_run_continues(tmp_path):
    data = Dataset([episode("aabbb"), episode("aaab")])
    method = replace(SARM().method(data.features()), learner=SARM(SMALL, 4, 4))

    def stop(step, learner, metrics):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(method, data, tmp_path / "stopped", callbacks=(stop,), device="cpu")
    for name in ("stopped", "whole"):
        train(method, data, tmp_path / name, device="cpu")
    stopped, whole = (load_modules(tmp_path / name)["reward"] for name in ("stopped", "whole"))
    assert stopped.config == whole.config and whole.config.stages == ("a", "b")
    assert all(torch.equal(stopped.state_dict()[k], v) for k, v in whole.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("texts", [True, False])
def test_learned_progress_orders_steps_that_go_back(texts):
    """It has seen only episodes that advance."""
    data = advancing(40, texts=texts)
    good = data.select(i for i, e in enumerate(data) if not e.metadata["goes_back"])
    model = fit_method(with_steps(SARM().method(data.features()), 400), good, 0).modules["reward"]
    correlations, steps_back, steps_on = [], [], []
    for recorded, rewarded in zip(data, LearnedReward(model).apply(data), strict=True):
        reward, place = rewarded.steps["next.reward"], recorded.steps[STATE][:, 0]
        correlations.append(spearmanr(np.concatenate([[0], np.cumsum(reward)]), place)[0])
        goes_back = recorded.steps["action"][:, 0] < 0
        steps_back.append(reward[goes_back])
        steps_on.append(reward[~goes_back])
    assert np.mean(correlations) > 0.85
    assert np.concatenate(steps_back).mean() < -0.005 < 0.015 < np.concatenate(steps_on).mean()


@pytest.mark.parametrize(("data", "message"), [
    ([episode("ab"), episode("  ")], "episode 1: no step of the episode is labeled\n.*label all episodes"),
    ([episode(n=3, segments=[[0, 3, "a"]]), episode(n=3)], "episode 1, metadata 'segments': it is missing"),
    ([episode(n=3, segments=[["0", 9, "a"]])], "episode 0, segment 0: start='0' and stop=9 are not numbers of steps"),
    ([episode(n=3, segments=[[0, 9, "a"]])], "episode 0, segment 0: start=0 and stop=9 are not part of its 3 steps"),
])
def test_labels_that_do_not_fit_are_refused(data, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        learner_on(Dataset(data))


def test_an_error_has_the_number_that_the_episode_has_in_the_data(tmp_path):
    """Others may have been held out before it."""
    write_dataset(Dataset([episode("ab"), episode("ab"), episode("  ")]), tmp_path / "data.npz")
    with pytest.raises(DataError, match="(?s)episode 2: no step .*--delete 2 --out"):
        learner_on(open_dataset(tmp_path / "data.npz").select([0, 2]))


def test_what_it_cannot_do_is_refused():
    data = Dataset([episode("ab")])
    method = SARM().method(data.features(), "stage")
    with pytest.raises(DataError, match="(?s)column 'stage': it is missing.*name a column of text"):
        fit_method(method, data, 0)
    long = replace(method.policy, window=Window(2, 2))
    with pytest.raises(Unsupported, match=r"Window\(1, 1\), and n_frames"):
        fit_method(replace(SARM().method(), policy=long), data, 0)
    with pytest.raises(Unsupported, match="a plan does not tell"):
        learner_on(data).nets.reward({}, torch.zeros(1, 1, 1))
    learner = learner_on(data)
    with pytest.raises(DataError, match="(?s)the stage 'c' is in none of the first episodes.*without a stream"):
        learner.batch_sampler(Dataset([episode("abc")]))
