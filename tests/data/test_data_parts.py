"""Augmentations, relabellings and mixtures: closed forms."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from understudy import config
from understudy.core import DataError, Feature, UserError
from understudy.data.augment import (
    ColorJitter,
    ConditionDropout,
    GaussianNoise,
    ModalityDropout,
    RandomMasking,
    RandomShift,
    SensorDropout,
)
from understudy.data.column_changes import ConstantColumn, LastAction, LastStep, Progress, Rename, ReturnToGo, TimeLeft
from understudy.data.episode import Dataset, Episode, concat_columns
from understudy.data.mixture import mix
from understudy.data.packed_columns import PackedColumns
from understudy.data.relabel import Hindsight, InterventionPenalty, NextObservation, SelectColumns
from understudy.data.tasks import SHOWN_TASK, task_texts
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.policy import Policy, PolicyConfig


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- augmentations --------------------------------------------------------------------------------------------------


def test_drop_hides_whole_windows_at_its_share_and_touches_nothing_else():
    obs = {"x": torch.randn(20_000, 3, 2), "y": torch.randn(20_000, 3, 1)}
    out = ConditionDropout("x", 0.3)(obs, rng())
    here = out["x?"]
    assert here.shape == (20_000, 3) and here.dtype == torch.bool and (here == here[:, :1]).all()
    assert stats.binomtest(int((~here[:, 0]).sum()), 20_000, 0.3).pvalue > 1e-4
    assert out["x"] is obs["x"] and out["y"] is obs["y"] and "x?" not in obs and "y?" not in out


def test_drop_never_brings_back_what_was_not_sensed():
    before = torch.rand(500, 2, generator=rng(1)) < 0.5
    out = ConditionDropout("x", 0.5)({"x": torch.zeros(500, 2, 1), "x?": before}, rng())
    assert not (out["x?"] & ~before).any() and (out["x?"] != before).any()
    assert not ConditionDropout("x", 1.0)({"x": torch.zeros(5, 2, 1)}, rng())["x?"].any()
    assert ConditionDropout("x", 0.0)({"x": torch.zeros(5, 2, 1)}, rng())["x?"].all()


def test_noise_is_normal_of_its_width():
    obs = {"x": torch.full((5000, 2, 2), 7.0), "y": torch.zeros(5000, 2, 2)}
    out = GaussianNoise("x", (0.5, 3.0))(obs, rng())
    for i, std in enumerate((0.5, 3.0)):
        assert stats.kstest((out["x"][..., i].flatten() - 7).numpy() / std, "norm").pvalue > 1e-3
    assert out["y"] is obs["y"] and (obs["x"] == 7).all()
    assert torch.equal(GaussianNoise("x", 0.0)(obs, rng())["x"], obs["x"])


@pytest.mark.parametrize("change", [ConditionDropout("x"), ModalityDropout(("x", "y")), RandomMasking(("x", "y")),
                                    GaussianNoise("x"), ColorJitter("x"), RandomShift("x")])
def test_an_augmentation_draws_from_its_generator_alone(change):
    obs = {"x": torch.randint(0, 256, (6, 2, 4, 5, 3), generator=rng(9)).to(
        torch.uint8 if isinstance(change, ColorJitter | RandomShift) else torch.float32), "y": torch.zeros(6, 2, 1)}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = change(obs, rng(1)), change(obs, rng(1)), change(obs, rng(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], two[k]) for k in one) and one.keys() == two.keys()
    if not isinstance(change, ConditionDropout | ModalityDropout | RandomMasking):
        assert not torch.equal(one["x"], other["x"])


def pixels(seed=0, size=(7, 2, 5, 6, 3)):
    return torch.randint(0, 256, size, generator=rng(seed)).to(torch.uint8)


def test_a_shift_is_padding_and_a_crop_at_a_place_drawn_uniformly():
    image = pixels(size=(3000, 2, 5, 7, 3))
    out = RandomShift("i", 2)({"i": image}, rng(3))["i"]
    assert out.shape == image.shape and out.dtype == torch.uint8
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), mode="edge"))
    same = torch.stack([(padded[:, :, i:i + 5, j:j + 7] == out).flatten(1).all(1) for i in range(5) for j in range(5)])
    assert (same.sum(0) == 1).all(), "one crop of both frames"
    assert stats.chisquare(same.sum(1).numpy()).pvalue > 1e-3
    with pytest.raises(UserError, match="pixels is 0, but must be at least 1"):
        RandomShift("i", 0)


@pytest.mark.parametrize(("change", "message"), [
    (RandomShift("observation.images.camra"), r"key: .*no column 'observation.images.camra'"
     r".*'observation.images.camera' \(image of shape \(32, 30, 3\)\).*\n.*Did you mean 'observation.images.camera'"),
    (RandomShift("observation.state"), r"key: RandomShift changes images, and 'observation.state' has the kind 'vector'"
     r".*\n.*Did you mean 'observation.images.camera'"),
    (ColorJitter("observation.state"), "key: ColorJitter changes images"),
    (GaussianNoise("observation.images.camera"), r"changes vectors(.|\n)*Did you mean 'observation.state'"),
    (RandomShift("observation.images.camera", 30), "pixels: A shift by up to 30 pixels.* 32 x 30 pixels"),
    (ConditionDropout("goal"), "key: The policy reads no column 'goal'"),
    (ModalityDropout(("observation.state", "action")), "keys: The policy reads no column 'action'"),
    (RandomMasking(("observation.state", "action")), "keys: The policy reads no column 'action'"),
    (SensorDropout("flags"), "flags: The policy reads no column 'flags'"),
])
def test_a_policy_refuses_an_augmentation_that_does_not_fit_its_columns(change, message):
    features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,)),
                "observation.images.camera": Feature("uint8", (32, 30, 3), "image")}
    with pytest.raises(UserError, match=message):
        Policy(PolicyConfig(Regression(), augmentations=(change,)), features)


def test_jitter_by_hand():
    image, spec = pixels(), ColorJitter("i", 0.4, 0.5, 0.6)
    out = spec({"i": image}, rng(5))["i"]
    draw = 2 * torch.rand(3, 7, 1, 1, 1, 1, generator=rng(5)) - 1
    assert out.dtype == torch.uint8
    for b in range(7):
        light, contrast, color = (1 + s * float(d) for s, d in zip((0.4, 0.5, 0.6), draw[:, b], strict=True))
        for t in range(2):
            x = np.clip(image[b, t].double().numpy() * light, 0, 255)
            grey = (x @ [0.299, 0.587, 0.114]).mean()
            x = np.clip(grey + contrast * (x - grey), 0, 255)
            grey = (x @ [0.299, 0.587, 0.114])[..., None]
            x = np.clip(grey + color * (x - grey), 0, 255)
            assert abs(out[b, t].numpy() - x).max() < 0.5 + 1e-3  # rounded


def test_what_jitter_leaves_alone():
    assert torch.equal(ColorJitter("i", 0, 0, 0)({"i": pixels()}, rng())["i"], pixels())
    grey = pixels()[..., :1].expand(-1, -1, -1, -1, 3).contiguous()
    assert torch.equal(ColorJitter("i", 0, 0, 0.9)({"i": grey}, rng())["i"], grey), "grey has no color to change"
    flat = torch.full((4, 1, 3, 3, 3), 120, dtype=torch.uint8)
    assert torch.equal(ColorJitter("i", 0, 0.9, 0.9)({"i": flat}, rng())["i"], flat), "one grey has no contrast"
    still = pixels()[:, :1].expand(-1, 3, -1, -1, -1)
    out = ColorJitter("i")({"i": still}, rng())["i"]
    assert torch.equal(out[:, 0], out[:, 2]), "light is the same for all rows of a window"
    one = pixels(size=(3, 1, 4, 4, 1))
    assert ColorJitter("i")({"i": one}, rng())["i"].shape == one.shape


def test_brightness_reaches_its_ends():
    x = torch.full((4000, 1, 1, 1, 3), 100, dtype=torch.uint8)
    out = ColorJitter("i", 0.5, 0, 0)({"i": x}, rng())["i"][:, 0, 0, 0, 0].double().numpy()
    assert out.min() <= 51 and out.max() >= 149 and out.min() >= 50 and out.max() <= 150
    assert stats.kstest((out - 49.5) / 101, "uniform").pvalue > 1e-3


# -- relabellings ---------------------------------------------------------------------------------------------------


def episode(n=4, **more):
    return Episode({"observation.state": np.arange(2.0 * n + 2).reshape(n + 1, 2).astype(np.float32),
                    "action": 10 + np.arange(n, dtype=np.float32)[:, None],
                    "next.reward": 2.0 ** np.arange(n), **more}, {"number": 3})


def test_hindsight_is_what_was_seen_last():
    relabeled = Hindsight()(episode())
    assert relabeled.steps["observation.goal"].tolist() == [[8, 9]] * 5 and len(relabeled) == 4
    packed = PackedColumns.from_episodes(Dataset([relabeled]), ("observation.goal",)).columns["observation.goal"]
    assert packed.array.shape == (1, 2), "kept once"


def test_return_to_go():
    r = episode().steps["next.reward"]
    assert ReturnToGo()(episode()).steps["observation.return_to_go"].ravel().tolist() == [15, 14, 12, 8, 0]
    returns = ReturnToGo(0.5)(episode()).steps["observation.return_to_go"].ravel()
    assert returns.tolist() == [sum(0.5 ** (k - t) * r[k] for k in range(t, 4)) for t in range(5)]
    column = episode().replace({"next.reward": r[:, None]})
    assert ReturnToGo(0.5)(column).steps["observation.return_to_go"].ravel().tolist() == returns.tolist()


def test_time_left_and_progress():
    relabeled = Progress()(TimeLeft()(episode()))
    assert relabeled.steps["observation.time_left"].ravel().tolist() == [4, 3, 2, 1, 0]
    assert relabeled.steps["observation.progress"].ravel().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert len(relabeled) == 4 and relabeled.features()["observation.progress"].kind == "vector"


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), t=st.integers(0, 5), choice=st.booleans())
def test_the_last_action_does_not_leak_the_present_one(n, t, choice):
    t = min(t, n - 1)
    action = np.arange(n)[:, None] if choice else np.random.default_rng(n).normal(size=(n, 2))
    one = episode(n, action=action)
    changed = action.copy()
    changed[t:] += 5
    a, b = (LastAction()(e).steps["observation.last_action"] for e in (one, one.replace({"action": changed})))
    assert np.array_equal(a[: t + 1], b[: t + 1]) and not np.array_equal(a[t + 1], b[t + 1])
    assert a.shape == (n + 1, *action.shape[1:]) and (a[0] == 0).all()
    assert np.array_equal(a[1:], action + choice)


def test_choices_of_the_last_action_know_none():
    e = dataclasses.replace(episode(4, action=np.array([0, 2, 1, 0])), schema={
        "action": Feature("int64", (), "discrete", num_classes=(3,))})
    relabeled = LastAction()(e)
    assert relabeled.steps["observation.last_action"].tolist() == [0, 1, 3, 2, 1]
    assert relabeled.features()["observation.last_action"].num_classes == (4,)
    counted = Dataset([LastAction()(episode(4, action=np.array([0, 2, 1, 0])))]).features()
    assert counted["observation.last_action"].num_classes == (4,) and counted["action"].num_classes == (3,)


def test_an_intervention_punishes_the_step_before_it():
    taken = [0, 0, 1, 1, 0, 1, 0]
    relabeled = InterventionPenalty()(episode(7, intervention=np.array(taken, bool)))
    assert relabeled.steps["next.reward"].tolist() == [0, -1, 0, 0, -1, 0, 0]
    from_start = InterventionPenalty()(episode(3, intervention=np.ones((3, 1), np.float32)))
    assert from_start.steps["next.reward"].tolist() == [0, 0, 0]


def test_words_as_bytes():
    def said(length=8, **kw):
        e = episode(3)
        e = dataclasses.replace(e, metadata={**e.metadata, **kw.pop("metadata", {})}).replace(kw)
        return TaskText(length)(e)
    relabeled = said(metadata={"task": "push"})
    column = relabeled.steps["observation.task"]
    assert column.shape == (4, 8) and column.strides[0] == 0
    assert all(bytes(row) == b"push\0\0\0\0" for row in column) and len(relabeled) == 3
    assert relabeled.features()["observation.task"] == Feature("uint8", (8,), "text")
    assert not said().steps["observation.task"].any(), "no words are an empty text"
    cut = said(metadata={"task": "1234567é9"}).steps["observation.task"][0]
    assert bytes(cut) == b"1234567\0", "é has two bytes, of which one does not fit"
    changing = said(task=np.array(["go", "go", "stop"])).steps["observation.task"]
    assert [bytes(r).rstrip(b"\0") for r in changing] == [b"go", b"go", b"stop"]
    assert said(task=np.array(["go"] * 3)).steps["observation.task"].strides[0] == 0
    assert bytes(TaskText(6).encode("abc")) == b"abc\0\0\0"


def test_words_that_the_environment_showed_are_the_task():
    rows = np.stack([TaskText(12).encode(text) for text in ("go", "go", "stop here", "stop here")])
    worded = episode(3).replace({SHOWN_TASK: rows})
    worded = dataclasses.replace(worded, schema={SHOWN_TASK: Feature("uint8", (12,), "text")})
    assert task_texts(worded).tolist() == ["go", "go", "stop here", "stop here"]
    encoded = TaskText(4)(worded).steps[SHOWN_TASK]
    assert [bytes(row).rstrip(b"\0") for row in encoded] == [b"go", b"go", b"stop", b"stop"]
    named = dataclasses.replace(worded, metadata={"task": "wait"})  # what a person wrote comes first
    assert task_texts(named).tolist() == ["wait"]
    classes = episode(3).replace({SHOWN_TASK: np.ones((4, 1), np.int64)})
    assert task_texts(classes).tolist() == [""]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("text", ["stop here", "1234567é9", "12345€7", "1234😀", "12345678", "7"])
def test_longer_words_are_cut_while_acting_as_in_training(text, optional):
    say = TaskText(8, optional=optional)
    sentences = torch.from_numpy(np.stack([TaskText(16).encode(text), TaskText(16).encode("go")]))
    last = LastStep(torch.zeros(2, dtype=torch.bool))
    encoded, _ = say.step({say.into: sentences}, last, {})
    assert bytes(encoded[say.into][0].numpy()).ljust(16, b"\0")[:8] == bytes(say.encode(text))
    assert bytes(encoded[say.into][1].numpy()).rstrip(b"\0") == b"go"


def test_keep_rename_and_constant():
    feature = Feature("float32", (2,), names=("x", "y"))
    e = dataclasses.replace(episode(), schema={"observation.state": feature})
    renamed = Rename("observation.state", "observation.arm")(e)
    assert "observation.state" not in renamed.steps and renamed.features()["observation.arm"] == feature
    assert np.array_equal(renamed.steps["observation.arm"], e.steps["observation.state"])
    assert set(SelectColumns(("action",))(e).steps) == {"action"}
    assert ConstantColumn("expert", 1.0)(e).steps["expert"].tolist() == [[1]] * 5


@pytest.mark.parametrize("change", [Hindsight("nothing"), ReturnToGo(column="nothing"),
                                    NextObservation("nothing"), LastAction("nothing"),
                                    InterventionPenalty(), SelectColumns(("nothing",)),
                                    Rename("nothing", "x")])
def test_a_missing_column_is_named_with_those_there_are(change):
    with pytest.raises(UserError, match="episode 3: there is no column .(nothing|intervention).; .* has action"):
        change(episode())


RELABELS = [
    Hindsight(),
    NextObservation(),
    TaskText(),
    ReturnToGo(),
    TimeLeft(),
    Progress(),
    LastAction(),
    ConstantColumn("c", 2.0),
    Rename("action", "b"),
    SelectColumns(("action",)),
]


@pytest.mark.parametrize("change", RELABELS, ids=lambda c: type(c).__name__)
def test_a_relabelling_is_data_and_leaves_the_episode_as_it_was(change):
    assert config.load(json.loads(json.dumps(config.dump(change)))) == change
    e = episode()
    before = {k: v.copy() for k, v in e.steps.items()}
    changed = change(e)
    assert e.steps.keys() == before.keys() and all(np.array_equal(e.steps[k], before[k]) for k in before)
    assert len(changed) == 4 and changed.metadata == e.metadata


# -- mixtures -------------------------------------------------------------------------------------------------------


def sized(*lengths, path):
    return Dataset([Episode({"action": np.full((n, 1), i, np.float32)}, {"number": i}) for i, n in enumerate(lengths)],
                   {"path": path, "fps": 10})


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), min_size=1, max_size=4),
       weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
def test_a_mixture_keeps_its_shares_whatever_the_sizes(lengths, weights):
    parts = [(sized(*n, path=str(i)), w) for i, (n, w) in enumerate(zip(lengths, weights, strict=False))]
    data, draw = mix(*parts)
    odds = [draw(e) for e in data]
    assert len(data) == sum(map(len, lengths)) and [len(o) for o in odds] == [n for p in lengths for n in p]
    total = sum(w for _, w in parts)
    mass = np.bincount([e.metadata["dataset_index"] for e in data], [o.sum() for o in odds])
    assert np.allclose(mass / mass.sum(), [w / total for _, w in parts], rtol=1e-12, atol=0)
    for part in range(len(parts)):  # within a part every step is as likely
        values = np.concatenate([o for o, e in zip(odds, data, strict=True) if e.metadata["dataset_index"] == part])
        assert (values == values[0]).all()


def test_a_mixture_in_batches():
    data, draw = mix((sized(90, 10, path="big"), 1), (sized(5, path="small"), 3), (sized(7, path="none"), 0))
    windows = Window().windows(data, (), "action", sampling_weights=draw)
    index = np.concatenate([windows.batch(1000, s).extra["index"].numpy().ravel() for s in range(20)])
    assert index.max() < 105, "weight 0 is never drawn"
    assert stats.binomtest(int((index >= 100).sum()), 20_000, 0.75).pvalue > 1e-4
    small = np.bincount(index[index >= 100] - 100, minlength=5)
    assert stats.chisquare(small).pvalue > 1e-4
    assert [m["share"] for m in data.metadata["mix"]] == [0.25, 0.75, 0.0] and data.metadata["fps"] == 10
    assert data.metadata["path"] == "big + small + none"
    assert data[0].metadata["number"] == 0 and data[2].metadata["dataset_index"] == 1
    assert config.load(config.dump(draw)) == draw


def test_mixtures_without_meaning_are_refused():
    good = sized(3, path="good")
    for weights in ((0.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(UserError, match="weights"):
            mix((good, weights[0]), (good, weights[1]))
    with pytest.raises(UserError, match="part 1: the data set has no steps"):
        mix((good, 1), (Dataset([], {"path": "empty"}), 1))
    with pytest.raises(UserError, match="weights"):
        mix()


def test_parts_at_different_rates_are_noted():
    other = Dataset(list(sized(3, path="b")), {"fps": 30, "warnings": ["old"]})
    assert any("different rates" in w for w in mix((sized(3, path="a"), 1), (other, 1))[0].metadata["warnings"])
    assert "old" in mix((sized(3, path="a"), 1), (other, 1))[0].metadata["warnings"]
    assert mix((sized(3, path="a"), 1), (sized(2, path="c"), 1))[0].metadata["warnings"] == []


@pytest.mark.parametrize("column, text", [
    ([[0.0]] * 5, "is a list, .*\n.*np.asarray"), (torch.zeros(5, 2), r"is a Tensor, .*\n.*column.numpy\(\)"),
    (3.0, "is a float, "), (np.float32(3), "is a float32, "), (np.array(3.0), "is an array without rows, "),
    (np.zeros((5, 2), complex), "is an array of complex128, .*\n.*imaginary"),
    (np.ma.masked_invalid([[0.0], [np.nan], [2.0], [3.0], [4.0]]), r"is a masked array, .*\n.*column.filled\(value\)"),
])
def test_an_episode_refuses_what_is_not_an_array(column, text):
    with pytest.raises(DataError, match=f"the column 'action' {text}"):
        Episode({"observation.state": np.zeros((5, 3), np.float32), "action": column})


def test_an_episode_refuses_columns_of_other_lengths():
    state = np.zeros((12, 3), np.float32)
    assert len(Episode({"observation.state": state, "action": np.zeros((11, 2), np.float32)})) == 11
    assert len(Episode({"observation.state": state, "action": np.zeros((12, 2), np.float32)})) == 12
    assert len(Episode({"observation.state": state}, rows=11)) == 11
    for n, text in ((7, "'observation.state' has 12 rows, but the column 'action' has 7"),
                    (14, "'action' has 14 rows, but the column 'observation.state' has 12")):
        with pytest.raises(DataError, match=text):
            Episode({"observation.state": state, "action": np.zeros((n, 2), np.float32)})
    for rows in (10, 13):
        with pytest.raises(DataError, match=f"'observation.state' has 12 rows, but the episode has {rows} steps"):
            Episode({"observation.state": state}, rows=rows)


def test_columns_of_an_episode_without_steps_are_put_side_by_side():
    empty = Episode({"observation.a": np.zeros((0, 2)), "observation.b": np.zeros((0,))})
    assert concat_columns(empty, ["observation.a", "observation.b"]).shape == (0, 3)
