"""Scaled: what it undoes, what it counts, and what it leaves alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from understudy.core import Batch, Feature, Unsupported, UserError
from understudy.data import running_statistics
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.testing import STATE, check_codec, random_dataset

KINDS = ("zscore", "minmax", "quantile", "identity")
EPS = np.finfo(np.float32).eps


def coder(spec, action, state=None, mask=None, sensed=None, names=(STATE,), size=None):
    """Fitted on one batch: action (B, H, A), state (B, To, S)."""
    action = torch.as_tensor(np.asarray(action, np.float32))
    state = torch.zeros(len(action), 1, 2) if state is None else torch.as_tensor(np.asarray(state, np.float32))
    obs = {STATE: state} if sensed is None else {STATE: state, STATE + "?": sensed}
    mask = torch.ones(action.shape[:2], dtype=torch.bool) if mask is None else mask
    features = {STATE: Feature("float32", tuple(state.shape[2:])), "action": Feature("float32", (action.shape[-1],))}
    codec = spec.build(features, names, "action")
    codec.fit_statistics(lambda: iter([Batch(obs, action, mask)]))
    return codec, action, obs


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    check_codec(Normalizer(kind, kind))
    check_codec(Normalizer(kind, kind, relative=STATE))
    check_codec(Normalizer(kind, kind, relative=STATE, components=((1, 0),)))
    check_codec(Normalizer(kind, kind), Feature("int64", (2,), "discrete", num_classes=(3, 4)))


# Either exactly constant or clearly moving: what lies between is the floor's business, tested below.
VALUES = st.one_of(st.just(0.0), st.floats(-1e4, 1e4, width=32).filter(lambda x: abs(x) > 1e-2))
ARRAYS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 4), st.just(3)), elements=VALUES)


@settings(max_examples=150, deadline=None)
@given(action=ARRAYS, kind=st.sampled_from(KINDS), relative=st.booleans(), seed=st.integers(0, 99))
def test_decode_undoes_encode_to_float_rounding(action, kind, relative, seed):
    state = np.random.default_rng(seed).normal(size=(len(action), 2, 3)) * 10
    spec = Normalizer(target=kind, relative=STATE if relative else None)
    codec, action, obs = coder(spec, action, state)
    coded = codec.encode(action, obs)
    back = codec.decode(coded, obs)
    # The size of every number that was added up on the way there and back.
    shift = obs[STATE][:, -1:].abs() if relative else torch.zeros(())
    size = action.abs() + shift + codec.action_transform.offset.abs() + (codec.action_transform.scale * coded).abs()
    moving = codec.action_transform.scale > 0
    assert ((back - action).abs() <= 8 * EPS * size + torch.where(moving, 0.0, spec.min_scale)).all()
    if kind == "identity" and not relative:
        assert torch.equal(back, action)


def test_statistics_are_numpys():
    rng = np.random.default_rng(0)
    action, state = rng.normal(3, 2, (500, 4, 2)), rng.gamma(2, 1, (500, 3, 2))
    mask = torch.as_tensor(rng.random((500, 4)) < 0.7)
    real, newest = action.astype(np.float32)[mask.numpy()], state[:, -1].astype(np.float32)

    codec, *_ = coder(Normalizer("zscore", "zscore"), action, state, mask)
    np.testing.assert_allclose(codec.action_transform.offset, real.mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(codec.action_transform.scale, real.std(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(codec.obs_transforms[0].offset, newest.mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(codec.obs_transforms[0].scale, newest.std(0, dtype=float), rtol=1e-6)

    codec, *_ = coder(Normalizer("minmax", "minmax"), action, state, mask)
    np.testing.assert_allclose(codec.action_transform.offset - codec.action_transform.scale, real.min(0), rtol=1e-5)
    np.testing.assert_allclose(codec.action_transform.offset + codec.action_transform.scale, real.max(0), rtol=1e-6)

    codec, *_ = coder(Normalizer("quantile", "quantile"), action, state, mask)
    low, high = np.percentile(real.astype(float), [1, 99], axis=0)
    np.testing.assert_allclose(codec.action_transform.offset, (low + high) / 2, rtol=1e-6)
    np.testing.assert_allclose(codec.action_transform.scale, (high - low) / 2, rtol=1e-6)


def test_ranges_are_reached_and_nothing_is_clipped():
    action = np.random.default_rng(1).normal(size=(2000, 1, 2)) * [1, 50] + [5, -300]
    codec, action, obs = coder(Normalizer(target="minmax"), action)
    coded = codec.encode(action, obs)
    torch.testing.assert_close(coded.amin((0, 1)), -torch.ones(2))
    torch.testing.assert_close(coded.amax((0, 1)), torch.ones(2))
    codec, action, obs = coder(Normalizer(target="quantile"), action)
    share = (codec.encode(action, obs).abs() > 1).float().mean((0, 1))
    torch.testing.assert_close(share, torch.full((2,), 0.02), atol=1e-3, rtol=0)


def test_parts_in_any_number_give_the_same():
    """Means and variances are joined without cancellation: a mean of a million beside a spread of one."""
    x = torch.as_tensor(np.random.default_rng(2).normal(1e6, 1, (999, 1, 1)).astype(np.float32))
    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    for cut in (999, 100, 7):
        codec = Normalizer("zscore", "zscore").build(features, (STATE,), "action")
        codec.fit_statistics(
            lambda cut=cut: (Batch({STATE: p}, p, torch.ones(len(p), 1, dtype=torch.bool)) for p in x.split(cut))
        )
        np.testing.assert_allclose(codec.action_transform.scale, x.double().std(correction=0), rtol=1e-6)


def test_one_pass():
    passes = []
    codec = Normalizer().build({STATE: Feature("float32", (2,)), "action": Feature("float32", (2,))}, (STATE,),
                               "action")
    batch = Batch({STATE: torch.randn(9, 1, 2)}, torch.randn(9, 1, 2), torch.ones(9, 1, dtype=torch.bool))
    codec.fit_statistics(lambda: passes.append(1) or iter([batch]))
    assert passes == [1]


def test_many_rows_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(running_statistics.RunningStatistics, "max_samples", 4096)
    statistics = running_statistics.RunningStatistics()
    for part in torch.arange(200_000.0).unsqueeze(1).split(5000):
        statistics.add(part)
    for q in (0.01, 0.5, 0.99):  # within five standard deviations of an even sample's percentile
        assert abs(float(statistics._percentile(q)) / 200_000 - q) < 5 * np.sqrt(q * (1 - q) / 4096)


@pytest.mark.parametrize("kind", ("zscore", "minmax", "quantile"))
def test_what_never_moved(kind):
    rng = np.random.default_rng(3)
    action = rng.normal(size=(50, 2, 4))
    action[..., 1] = 0.3
    action[..., 2] = 7 + 1e-6 * rng.normal(size=(50, 2))  # a sensor's noise
    action[..., 3] = 2e5 + 0.015625 * rng.integers(0, 2, (50, 2))  # the last bit of float32 at that size
    codec, action, obs = coder(Normalizer(kind, kind), action, action)
    coded = codec.encode(action + 100, obs)
    assert (coded[..., 1:] == 0).all() and (coded[..., 0] != 0).all()
    assert (codec.encode_obs({STATE: obs[STATE] + 1})[STATE][..., 1:] == 0).all()
    back = codec.decode(torch.randn(50, 2, 4), obs)
    assert (back[..., 1] == np.float32(0.3)).all()
    assert ((back[..., 2] - 7).abs() < 1e-5).all() and ((back[..., 3] - 2e5).abs() <= 0.016).all()


def test_quantiles_see_what_moves_seldom():
    action = np.full((1000, 1, 1), -1.0)
    action[:3] = 1.0  # a gripper that closes in 3 steps of 1000
    codec, action, obs = coder(Normalizer(target="quantile"), action)
    assert codec.encode(action, obs).unique().tolist() == [-1.0, 1.0]


def test_relative_actions():
    rng = np.random.default_rng(4)
    state = rng.normal(size=(60, 2, 3)) * 5
    delta = rng.uniform(-1, 1, (60, 4, 2))
    action = state[:, -1:, [2, 0]] + delta
    spec = Normalizer(target="minmax", relative=STATE, components=((0, 2), (1, 0)))
    codec, action, obs = coder(spec, action, state)
    low, high = delta.min((0, 1)), delta.max((0, 1))
    np.testing.assert_allclose(codec.encode(action, obs), (delta - low) / (high - low) * 2 - 1, atol=2e-5)
    part = Normalizer(target="identity", relative=STATE, components=((1, 0),))
    codec, action, obs = coder(part, action, state)
    coded = codec.encode(action, obs)
    torch.testing.assert_close(coded[..., 0], action[..., 0])
    torch.testing.assert_close(coded[..., 1], action[..., 1] - obs[STATE][:, -1:, 0])


@pytest.mark.parametrize("spec, words", [
    (Normalizer(relative="observation.nothing"), "does not read 'observation.nothing'"),
    (Normalizer(relative=STATE), "2 components and 'observation.state' 3"),
    (Normalizer(relative=STATE, components=((0, 3),)), r"pair \(0, 3\) is out of range")])
def test_relative_to_what_is_not_there(spec, words):
    features = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}
    with pytest.raises(UserError, match=words):
        spec.build(features, (STATE,), "action")


def test_padding_does_not_count():
    action = np.random.default_rng(5).uniform(-1, 1, (40, 3, 2))
    mask = torch.ones(40, 3, dtype=torch.bool)
    mask[:, 2] = False
    spoiled = action.copy()
    spoiled[:, 2] = 1e6
    for kind in KINDS:
        one, two = (coder(Normalizer(kind, kind), a, mask=mask)[0] for a in (action, spoiled))
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_what_was_not_sensed_neither_counts_nor_shows():
    state = np.random.default_rng(6).normal(size=(40, 1, 2))
    sensed = torch.arange(40).unsqueeze(1) < 30
    broken = state.copy()
    broken[30:] = np.nan
    codec, _, obs = coder(Normalizer(), np.zeros((40, 1, 1)), broken, sensed=sensed)
    np.testing.assert_allclose(codec.obs_transforms[0].offset, state[:30, 0].mean(0), atol=1e-6)
    assert (codec.encode_obs(obs)[STATE][30:] == 0).all()


def test_choices():
    feature = Feature("int64", (2,), "discrete", num_classes=(3, 2))
    features = {STATE: Feature("float32", (1,)), "action": feature}
    codec = Normalizer().build(features, (STATE,), "action")
    assert (codec.width, codec.num_classes) == (5, (3, 2))
    ids = torch.cartesian_prod(torch.arange(3), torch.arange(2)).unsqueeze(1)
    batch = Batch({STATE: torch.randn(6, 1, 1)}, ids, torch.ones(6, 1, dtype=torch.bool))
    codec.fit_statistics(lambda: iter([batch]))
    coded = codec.encode(ids, batch.obs)
    assert coded[5, 0].tolist() == [0, 0, 1, 0, 1] and (coded.sum(-1) == 2).all()
    assert torch.equal(codec.decode(coded - 0.3, batch.obs), ids.float())
    with pytest.raises(UserError, match="classes from"):
        codec.fit_statistics(lambda: iter([batch.replace(action=ids + 1)]))
    with pytest.raises(UserError, match="number of classes"):
        Normalizer().build({**features, "action": Feature("int64", (2,), "discrete")}, (STATE,), "action")
    with pytest.raises(Unsupported):
        Normalizer(relative=STATE).build(features, (STATE,), "action")


def test_only_numbers_are_touched():
    features = {
        STATE: Feature("float32", (2,)),
        "observation.image": Feature("uint8", (3, 3, 1), "image"),
        "observation.mode": Feature("int64", (1,), "discrete", num_classes=(4,)),
        "action": Feature("float32", (1,)),
    }
    inputs = tuple(features)[:-1]
    windows = Window(2, 2).windows(random_dataset(features), inputs, "action")
    codec = Normalizer().build(features, inputs, "action")
    codec.fit_statistics(windows.scan)
    batch = windows.batch(8, 0)
    encoded = codec.encode_obs(batch.obs)
    assert torch.equal(encoded["observation.image"], batch.obs["observation.image"])
    assert torch.equal(encoded["observation.mode"], batch.obs["observation.mode"])
    assert not torch.equal(encoded[STATE], batch.obs[STATE])


def test_bad_data_is_named():
    with pytest.raises(UserError, match=r"observation.state: .*component 1"):
        coder(Normalizer(), np.zeros((3, 1, 1)), [[[0, np.nan]], [[0, 1]], [[0, 1]]])
    with pytest.raises(UserError, match="the target: .*component 0"):
        coder(Normalizer(), [[[np.inf]], [[0.0]]])
    with pytest.raises(UserError, match="no windows"):
        codec = Normalizer().build({"action": Feature("float32", (1,))}, (), "action")
        codec.fit_statistics(lambda: iter([]))


def test_unfitted_statistics_are_refused_until_loaded():
    features = {STATE: Feature("float32", (2,)), "action": Feature("float32", (2,))}
    codec = Normalizer().build(features, (STATE,), "action")
    x = {STATE: torch.randn(3, 1, 2)}
    for use in (lambda: codec.encode_obs(x), lambda: codec.encode(x[STATE], x), lambda: codec.decode(x[STATE], x)):
        with pytest.raises(UserError, match="have not been computed"):
            use()
    fitted, *_ = coder(Normalizer(), np.random.default_rng(0).normal(size=(9, 1, 2)))
    codec.load_state_dict(fitted.state_dict())
    assert torch.equal(codec.encode(x[STATE], x), fitted.encode(x[STATE], x))
    plain = Normalizer("identity", "identity").build(features, (STATE,), "action")  # there is nothing to fit
    assert torch.equal(plain.encode(x[STATE], x), x[STATE])


def test_an_observation_of_one_number_a_step_has_statistics():
    rng = np.random.default_rng(0)
    data = Dataset([Episode({"observation.depth": (5 * rng.normal(size=40) + 3).astype(np.float32),
                             "action": rng.normal(size=(40, 2)).astype(np.float32)})])
    window = Window(n_obs_steps=2)
    fitted = Normalizer().build(data.features(), ("observation.depth",), "action")
    fitted.fit_statistics(lambda: window.windows(data, ("observation.depth",), "action").scan())
    column = data[0].steps["observation.depth"]
    coded = fitted.encode_obs({"observation.depth": torch.tensor(column[None, :2])})["observation.depth"]
    torch.testing.assert_close(coded, torch.tensor((column - column.mean()) / column.std())[None, :2], rtol=1e-4,
                               atol=1e-4)


def is_learned(spec, action):
    """For each component of actions (T, A): whether its coded values reach 0.5, and decode undoes them."""
    codec, action, obs = coder(spec, np.asarray(action)[:, None], np.asarray(action)[:, None])
    coded = codec.encode(action, obs)
    change = (codec.decode(coded, obs) - action).abs().amax((0, 1)) <= 1e-5 * action.abs().amax((0, 1))
    learned = (coded.abs().amax((0, 1)) > 0.5) & change
    assert torch.equal(learned, codec.encode_obs(obs)[STATE].abs().amax((0, 1)) > 0.5)
    return learned.tolist()


WAVE = np.sin(np.linspace(0, 20, 200))


@pytest.mark.parametrize("kind", ("zscore", "minmax", "quantile"))
@pytest.mark.parametrize("size", (1e-3, 4e-5, 1e-6, 1e-9, 1e-11))
def test_what_moves_is_learned_in_any_unit(kind, size):
    assert is_learned(Normalizer(kind, kind), size * np.stack([WAVE, WAVE**2, 0 * WAVE + 1], 1)) == [True, True, False]


@pytest.mark.parametrize("kind", ("zscore", "minmax", "quantile"))
def test_units_may_be_mixed_in_a_column(kind):
    """Encoder ticks beside amperes beside metres for each step."""
    action = np.stack([2000 + 1000 * WAVE, 3e-4 * WAVE, 2e-6 * WAVE], 1)
    assert is_learned(Normalizer(kind, kind), action) == [True, True, True]


@pytest.mark.parametrize("kind", ("zscore", "minmax", "quantile"))
@pytest.mark.parametrize("offset", (1.0, -1000.0, 3e6))
def test_rounding_is_not_learned(kind, offset):
    """The last bits of float32 around an offset, and what arithmetic with numbers near 1 leaves of a zero."""
    rng = np.random.default_rng(0)
    last_bits = np.float32(offset) + np.spacing(np.float32(offset)) * rng.integers(-1, 2, 200)
    residue = 6e-8 * rng.uniform(-0.5, 0.5, 200)
    assert is_learned(Normalizer(kind, kind), np.stack([WAVE, last_bits, residue], 1)) == [True, False, False]


def test_displacements_are_as_exact_as_the_positions():
    """The difference of two numbers near 1000 has the rounding of these, and one of numbers near 0 has none."""
    rng = np.random.default_rng(0)
    bit = np.spacing(np.float32(1000))
    state = np.stack([1000 + bit * rng.integers(-1, 2, 200), 1000 + WAVE, 1e-5 * rng.normal(size=200)], 1)
    action = state + np.stack([bit * rng.integers(-1, 2, 200), 0.01 * WAVE, 2e-6 * WAVE], 1)
    codec, action, obs = coder(Normalizer(relative=STATE), action[:, None], state[:, None])
    assert (codec.encode(action, obs).abs().amax((0, 1)) > 0.5).tolist() == [False, True, True]


def test_a_floor_can_be_chosen():
    action = np.stack([WAVE, 1e-3 * WAVE], 1)
    assert is_learned(Normalizer(min_scale=1e-2), action) == [True, False]
    assert is_learned(Normalizer(min_scale=0), np.stack([WAVE, 1e-15 * WAVE], 1)) == [True, True]
