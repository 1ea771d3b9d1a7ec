"""Blocks on a table."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import UserError, keys
from understudy.envs.toys import tabletop
from understudy.envs.toys.tabletop import BINS, COLORS, CONTROLS, MISSIONS, Tabletop
from understudy.evaluate.rollout import rollout


def table(env, hand, blocks, mission, held=-1, closed=0.0):
    return env.restore(torch.tensor([0]), {
        "observation.state": torch.tensor([[*hand, closed]]), "simulator.state": torch.tensor([[mission, held]]),
        "observation.environment_state": torch.tensor([[v for at in blocks for v in at]])})


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("blocks", [1, 6])
def test_the_expert_puts_every_block_into_its_bin(control, blocks):
    env = Tabletop(300, control=control, blocks=blocks)
    episodes = rollout(replace(env.expert(), noise=0.0), env, 300)
    assert all(e.metadata["success"] for e in episodes)
    tasks = {bytes(e.steps["observation.task"][0]).rstrip(b"\0").decode() for e in episodes}
    assert tasks == set(MISSIONS[:len(BINS) * blocks])  # every mission with these blocks is drawn


def test_blocks_begin_apart_and_below_the_bins():
    at = Tabletop(500, blocks=6).initial_state(keys(0, np.arange(500)))["blocks"]
    gaps = np.linalg.norm(at[:, :, None] - at[:, None], axis=3) + np.eye(6)
    assert gaps.min() > 2 * tabletop.BLOCK and at[..., 1].max() + tabletop.BLOCK < 0.9 - tabletop.BIN[1]


def test_a_hand_takes_a_block_only_by_closing_on_it():
    env, positions, still = Tabletop(1, blocks=2), [(0.3, 0.3), (0.7, 0.3)], [0.0, 0.0]
    def step(*action):
        out = env.step(torch.tensor([action]))
        return out, env.state["held"][0]
    table(env, (0.33, 0.3), positions, 0)
    assert step(*still, 1.0)[1] == 0
    assert env.state["blocks"][0, 0] == pytest.approx([0.33, 0.3])  # it jumps into the hand
    assert step(1.0, 0.0, 1.0)[1] == 0 and env.state["blocks"][0, 0] == pytest.approx([0.41, 0.3])
    assert step(*still, -1.0)[1] == -1 and step(1.0, 0.0, -1.0)[1] == -1
    assert env.state["blocks"][0, 0] == pytest.approx([0.41, 0.3])
    table(env, (0.36, 0.3), positions, 0)
    assert step(*still, 1.0)[1] == -1  # 0.06 m is too far,
    assert step(-0.75, 0.0, 1.0)[1] == -1  # and a closed hand takes nothing


def test_a_block_counts_when_it_is_let_go_in_the_right_bin():
    env, middle = Tabletop(1, blocks=2), [(0.5, 0.9), (0.7, 0.3)]
    for mission, done in (("put the red block into the middle bin", True),
                          ("put the red block into the left bin", False),
                          ("put the green block into the middle bin", False)):
        table(env, (0.5, 0.9), middle, MISSIONS.index(mission), held=0, closed=1.0)
        assert not env.step(torch.tensor([[0.0, 0.0, 1.0]])).terminated[0]
        out = env.step(torch.tensor([[0.0, 0.0, -1.0]]))
        assert (out.terminated[0], out.reward[0]) == (done, float(done))


def test_the_second_camera_shows_heights_and_hides_what_is_behind():
    env = Tabletop(1, blocks=2, camera_size=64)
    top, side = "observation.images.top", "observation.images.side"

    def middle(image, color):
        """Mean (line, column) of the pixels of a color. None if there are none."""
        pixels = np.argwhere((np.abs(image[0].numpy().astype(int) - COLORS[color]) < 3).all(2))
        return pixels.mean(0) if len(pixels) else None
    lies, hangs = (table(env, (0.5, 0.4), [(0.5, 0.4), (0.2, 0.6)], 0, held=held_block, closed=1.0)
                   for held_block in (-1, 0))
    assert torch.equal(lies[top], hangs[top]) and not torch.equal(lies[side], hangs[side])
    lifted = middle(lies[side], "red") - middle(hangs[side], "red")
    assert lifted == pytest.approx([64 * (tabletop.HAND - tabletop.TABLE - 2 * tabletop.BLOCK), 0], abs=2)
    assert (middle(lies[side], "green") == middle(hangs[side], "green")).all()
    for green, visible, hidden in ((0.6, "red", "green"), (0.2, "green", "red")):
        views = table(env, (0.9, 0.9), [(0.5, 0.4), (0.5, green)], 0)
        assert middle(views[side], visible) is not None and middle(views[side], hidden) is None
        assert middle(views[top], hidden) is not None
    assert not any("images" in name for name in Tabletop(1).features)


def test_a_click_says_the_same_as_the_words():
    words, click = Tabletop(20), Tabletop(20, instruction="click")
    worded, clicked = (e.reset(torch.arange(20), keys(0, range(20))) for e in (words, click))
    for row in range(20):
        text = bytes(worded["observation.task"][row].numpy()).rstrip(b"\0").decode()
        _, _, color, _, _, _, side, _ = text.split()
        block = worded["observation.environment_state"][row].reshape(-1, 2)[list(COLORS).index(color)]
        expected = [*block.tolist(), *tabletop.CENTERS[BINS.index(side)]]
        assert clicked["observation.click"][row].tolist() == pytest.approx(expected)
    with pytest.raises(UserError, match="there is no control 'keys'"):
        Tabletop(control="keys")


@pytest.mark.parametrize("control", CONTROLS)
def test_a_block_that_slips_is_knocked_a_tenth_of_a_meter_in_every_direction(control):
    n = 2000
    env = Tabletop(n, control=control, blocks=2, slip=0.3)
    env.reset(torch.arange(n), keys(0, range(n)))
    env.state["blocks"][:] = [(0.5, 0.4), (0.1, 0.1)]
    env.state["hand"][:] = (0.51, 0.4)
    env.step(torch.tensor([[0.0, 0.0, 1.0] if control == "velocity" else [0.02, -0.2, 0.0, 0.0]]).expand(n, -1))
    at, put = env.state["blocks"], (0.51, 0.4) if control == "velocity" else (0.5, 0.5)
    slips = (at[:, 0] != np.float32(put)).any(1)
    assert slips.mean() == pytest.approx(0.3, abs=0.03) and (at[:, 1] == np.float32([0.1, 0.1])).all()
    away = at[slips, 0] - [0.5, 0.4]
    assert np.linalg.norm(away, axis=1) == pytest.approx(tabletop.KNOCK) and away.mean(0) == pytest.approx(0, abs=0.01)
    if control == "velocity":
        assert np.array_equal(env.state["held"], np.where(slips, -1, 0)) and env.state["closed"].all()
        before = at.copy()
        env.step(torch.tensor([[0.0, 0.0, 1.0]]).expand(n, -1))
        assert np.array_equal(before, env.state["blocks"])  # a hand that stays closed neither takes nor knocks


def test_blocks_that_slip_stay_on_the_table_and_in_front_of_the_bins():
    env = Tabletop(500, blocks=1, slip=1.0)
    env.reset(torch.arange(500), keys(0, range(500)))
    expert = env.expert()
    obs, state = env._observation(), expert.start({}, env.key)
    for _ in range(60):
        action, state = expert.act(obs, state)
        obs = env.step(action).obs
        at = env.state["blocks"][:, 0]
        assert at.min() >= np.float32(tabletop.BLOCK) and at[:, 0].max() <= np.float32(1 - tabletop.BLOCK)
        assert at[:, 1].max() < 0.9 - tabletop.BIN[1]
    assert at[:, 0].max() == np.float32(1 - tabletop.BLOCK)  # some came to the edge


@pytest.mark.parametrize("slip", [-0.1, 1.5])
def test_a_slip_that_is_no_probability_is_refused(slip):
    with pytest.raises(UserError, match=f"the probability slip is {slip}"):
        Tabletop(slip=slip)
