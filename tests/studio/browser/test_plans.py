"""What a watched policy plans, as the page draws it, and its doubt."""

import re
import threading

import numpy as np
import pytest
import torch
from fixtures.studios import press, served, tab

from understudy import make
from understudy.cli import main
from understudy.commands.studio import CommandPolicies
from understudy.core import Feature, UserError, keys
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.failure_detection import DETECTOR_FILE, ConformalThreshold, FailureDetector, SampleSpread
from understudy.execute.actor import PolicyActor
from understudy.learn.run import Run
from understudy.policy import Planner

pytest.importorskip("nicegui", reason="extra studio not installed")
from understudy.studio.browser.plan_view import curves_svg, doubt_svg, doubt_text, plans_text  # noqa: E402
from understudy.studio.browser.plans import N_PLANS, CalibratedDoubt, Foresight, PlanWatch, load_doubt  # noqa: E402
from understudy.studio.browser.project import Project  # noqa: E402

STEPS = 4


class Fan(Planner):
    """Plans to go right, and up by a tenth of the number of the sample."""

    inputs, action_dim, device = ("observation.state",), 2, torch.device("cpu")
    features = {"observation.state": Feature("float32", (2,))}
    window = Window(1, STEPS)
    action_scale = torch.ones(2)

    def plan(self, obs, noise, guides=()):
        right = torch.ones_like(noise)
        return torch.stack([right, 0.1 * noise], -1).unsqueeze(1).expand(-1, STEPS, -1)

    def noise(self, key, count):
        return (count % N_PLANS).float()


class Straight(Fan):
    is_deterministic = True


class Counting(Fan):
    """Notes how many plans it is asked for at once."""

    def __init__(self):
        self.asked = []

    def plan(self, obs, noise, guides=()):
        self.asked.append(len(noise))
        return super().plan(obs, noise)


def watching(planner, env, period=60.0, doubt=None):
    """A policy that acts one step from a start, and is watched."""
    low, high = (np.full(2, env.metadata[name]) for name in ("low", "high"))
    plans = PlanWatch(PolicyActor(planner), env.features, (low, high), period, doubt, env)
    assert plans.latest() is None
    obs = env.reset(torch.arange(1), keys(0, [0]))
    state = plans.actor.start(obs, keys(0, [0]))
    action, state = plans.actor.act(obs, state)
    return plans, obs["observation.state"][0].numpy(), action, state


def picture(env, points):
    (x, y), side = env.square
    return np.stack([(points[..., 0] - x) / side, 1 - (points[..., 1] - y) / side], -1)


def test_known_plans_are_these_lines():
    env = make("fork", 1)
    plans, start, action, _ = watching(Fan(), env)
    assert torch.equal(action, torch.tensor([[1.0, 0.0]]))  # it acts as without being watched
    moves = np.array([[[0.1 * t, 0.01 * i * t] for t in range(STEPS + 1)] for i in range(N_PLANS)])
    foresight = plans.latest()
    assert np.allclose(foresight.lines, picture(env, start + moves), atol=1e-4)
    assert foresight.spread == pytest.approx(0.01 * STEPS * (N_PLANS - 1) / env.square[1], abs=2e-4)
    assert plans_text(foresight) == ("The lines are 8 plans for the next 4 steps. "
                                     f"Their ends are up to {foresight.spread:.0%} of the picture apart.")
    plans, start, _, _ = watching(Straight(), env)
    assert np.allclose(plans.latest().lines, picture(env, start + moves[:1]), atol=1e-4)
    assert plans_text(plans.latest()) == "The policy has one plan for the next 4 steps."


def test_actions_that_are_positions_are_the_line():
    env = make("particle", 1)
    assert env.map()["control"]["step"] is None
    planner = Straight()
    planner.features = env.features
    plans, start, _, _ = watching(planner, env)
    start = start[:2]
    assert np.allclose(plans.latest().lines[0], picture(env, np.array([start, *[[1.0, 0.0]] * STEPS])), atol=1e-4)


def test_actions_without_a_place_in_the_picture_are_curves():
    env = make("maze", 1)
    low, high = np.full(2, -3.5), np.full(2, 3.5)
    plans = PlanWatch(PolicyActor(Fan()), env.features, (low, high), 60.0, None, env)
    plans.actor.start({"observation.state": torch.zeros(1, 2)}, keys(0, [0]))
    foresight = plans.latest()
    assert foresight.lines == () and np.allclose(foresight.curves[..., 0], 4.5 / 7)
    assert np.allclose(foresight.curves[:, 0, 1], 0.5 + 0.1 / 7 * np.arange(N_PLANS))
    assert plans_text(foresight).endswith("They are up to 10% of the range of an action apart.")
    assert curves_svg(foresight.curves, foresight.names).count("<polyline") == 2 * N_PLANS
    assert f"{foresight.names[1]} 50% to 60%" in curves_svg(foresight.curves, foresight.names)


def test_the_control_loop_plans_nothing_for_the_page():
    """Only the first start does, to measure how long it takes."""
    planner, env = Counting(), make("fork", 1)
    plans, *_ = watching(planner, env)
    assert planner.asked == [N_PLANS, N_PLANS, 1]
    obs = env.reset(torch.arange(1), keys(0, [1]))
    plans.actor.act(obs, plans.actor.start(obs, keys(0, [1])))
    assert planner.asked == [N_PLANS, N_PLANS, 1, 1]
    threads = [threading.Thread(target=plans.latest) for _ in range(4)]  # as of four pages
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert planner.asked == [N_PLANS, N_PLANS, 1, 1, N_PLANS]


def test_plans_that_take_longer_than_a_step_are_not_drawn():
    plans, *_ = watching(Fan(), make("fork", 1), period=0.0)
    assert plans.latest().lines == () and "takes longer than a step" in plans_text(plans.latest())


def test_doubt_with_its_threshold():
    env, level = make("fork", 1), float(0.1 * np.arange(N_PLANS).std(ddof=1) / np.sqrt(2))
    for threshold, is_in_doubt in ((level - 0.01, True), (level + 0.01, False)):
        plans, *_ = watching(Fan(), env, doubt=CalibratedDoubt(SampleSpread(N_PLANS), Dataset([]), threshold))
        foresight = plans.latest()
        assert foresight.doubts == ((0, pytest.approx(level)),) and foresight.is_in_doubt is is_in_doubt
        assert doubt_text(foresight) == f"Doubt: {level:.3g}. Alarm from {threshold:.3g} on."
        assert "stroke-dasharray" in doubt_svg(foresight)
    assert doubt_text(Foresight()) == doubt_svg(Foresight()) == ""


def calibrate(run, threshold):
    """Stores a failure detector with this threshold for the last checkpoint of a run in the fork."""
    digest = Run.fingerprint(run / "checkpoints" / f"{max(Run(run).saved_steps()):06d}")
    FailureDetector(ConformalThreshold(SampleSpread()), threshold, 20, "fork", digest).save(run / DETECTOR_FILE)


def test_only_the_detector_of_this_checkpoint_counts(tmp_path):
    main(["record", "fork", "--episodes", "2", "--out", str(tmp_path / "data")])
    main(["train", "bc-gmm", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "1"])
    run, loader = tmp_path / "run", CommandPolicies()
    assert loader.doubt(run) is None
    calibrate(run, 0.5)
    doubt = load_doubt(loader, run)
    assert (doubt.score, doubt.threshold, len(doubt.demonstrations)) == (SampleSpread(), 0.5, 2)
    FailureDetector(ConformalThreshold(SampleSpread()), 0.5, 20, "fork", "another").save(run / DETECTOR_FILE)
    problem = load_doubt(loader, run)
    assert isinstance(problem, UserError)
    plans, *_ = watching(Fan(), make("fork", 1), doubt=problem)
    assert "Its doubt is not shown" in plans_text(plans.latest()) and "another checkpoint" in plans_text(plans.latest())


PURPLE = """() => {
    const canvas = document.querySelector('.live canvas');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4) count += pixels[i] > 80 && pixels[i + 2] - pixels[i + 1] > 50;
    return count;
}"""
LAST_STEP = """() => {
    const {shapes, lines} = document.querySelector('.live'), at = shapes.at(-1).at;
    return lines.length === 8 && lines.every(([[x, y]]) => Math.hypot(x - at[0], y - at[1]) < 0.08);
}"""


@pytest.mark.slow
def test_the_page_draws_plans_and_doubt_while_a_policy_acts(page, tmp_path):
    project = Project(tmp_path / "project", "fork")
    data, run = project.folder / "demonstrations" / "1", project.folder / "runs" / "1"
    main(["record", "fork", "--episodes", "2", "--out", str(data)])
    main(["train", "bc-gmm", str(data), "--out", str(run), "--steps", "1"])
    calibrate(run, 1e-6)  # which any spread reaches
    with served(None, env=str(project.folder)) as address:
        page.goto(address)
        page.wait_for_function("() => document.querySelector('.live').lines?.length === 0")
        assert page.evaluate(PURPLE) == 0
        tab(page, "Watch")
        press(page, "Watch")
        page.get_by_text(re.compile(r"The lines are 8 plans for the next \d+ steps. Their ends are up to ")).wait_for()
        page.get_by_text("In doubt: it may fail.").wait_for()
        page.get_by_role("img", name="Doubt over").wait_for()
        press(page, "Pause")
        page.wait_for_function(LAST_STEP)  # the lines begin where the last step began
        assert page.evaluate(PURPLE) > 0
        press(page, "Stop watching")
        page.wait_for_function("() => document.querySelector('.live').lines.length === 0")
        page.get_by_text("The lines are 8 plans").wait_for(state="hidden")
        assert page.evaluate(PURPLE) == 0
