"""The last two steps of the studio of a robot: watch a policy and take over, and compare two in blind trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import ui

from ...execute.chunking import ChunkedExecutor
from ...learn.method import Method
from .compare_panel import ComparePanel
from .page import StudioPage
from .panel import RANGE_HELP, policy_title
from .panels import WatchPanel
from .pictures import interval_svg
from .robot_live import RobotLiveSession
from .robot_trials import StoredTrials

ACTS = ("person", "policy", "held", "late", "lost")  # phases of an episode
Order = tuple[str, str, tuple[str, ...]]  # a button: its text, its command, and the phases in which it is shown
WATCH_ORDERS: tuple[Order, ...] = (
    ("Begin the episode", "enter", ("waits",)), ("Connect again", "enter", ("lost",)),
    ("Hold", "pause", ("policy", "person")), ("Continue", "pause", ("held",)),
    ("Take over", "takeover", ("policy",)), ("Give back", "takeover", ("person",)),
    ("Success", "success", ACTS), ("Failure", "failure", ACTS), ("Discard", "discard", ACTS))
TRIAL_ORDERS: tuple[Order, ...] = (
    ("Begin the trial", "enter", ("waits",)), ("Show the result", "enter", ("ends",)),
    ("Success", "success", ("acts", "asks")), ("Failure", "failure", ("acts", "asks")),
    ("Repeat", "discard", ("acts", "asks")), ("It was a success", "success", ("waits", "ends")),
    ("It was a failure", "failure", ("waits", "ends")), ("End the comparison", "end", ("waits",)))
TRIAL_HELP = ("In each round, both policies act once from the same scene, and you are not told which one it is. **Y** "
              "and **N** say whether a trial was a success, and **X** repeats it. The trials end when the answer is "
              "certain.")


class RobotWatchPanel(WatchPanel):
    """Lets a policy act on the robot. The person takes over with the leader arm, and the policy learns from it."""

    def watch(self, policy):
        session = self.page.session
        if not isinstance(session, RobotLiveSession):
            ui.markdown(session.help)
            return
        if session.mode != "watch":
            show_what_acts(self.page, policy)
            self.button("Watch", lambda: self.page.begin("watch", policy), waits=True).tooltip(
                "The motors hold the present pose. Nothing moves before you begin an episode.")
            return
        ui.markdown("**Enter** begins an episode, after you have arranged the scene. **Move the leader arm**, or press "
                    "**T**, to take over. **T** gives back; then put the leader down, because once it has rested for "
                    "a second, moving it takes over again. **P** holds the robot, and continues. **Y** and **N** end "
                    "the episode as a success or a failure, **X** discards it, and **U** says that your last takeover "
                    "is not learned.")
        order_buttons(self.page, WATCH_ORDERS)
        self.button("Stop watching", self.page.stop).props("color=negative").tooltip(
            "The arms are released. Hold the robot if it can fall.")

    def improving(self, policy):
        return ["improve", policy, "--with", "hg-dagger", "--supervisor", "leader",
                *self.project.robot_words("--robot", "--teleop")]


class TrialPanel(ComparePanel):
    """Lets the person judge two policies in blind trials on the robot."""

    mode = "judge"

    def compare(self, first, second):
        session, trials = self.page.session, self.page.state.trials
        if not isinstance(session, RobotLiveSession):
            ui.markdown(session.help)
            return
        if session.mode == "judge":
            ui.markdown(TRIAL_HELP)
            order_buttons(self.page, TRIAL_ORDERS)
            self.button("Stop for now", self.page.stop).props("color=negative").tooltip(
                "The robot is released, and what you have answered is kept.")
        else:
            show_what_acts(self.page, first, second)
            ui.markdown(TRIAL_HELP)
            is_begun = trials is not None and not trials.is_over and trials.policies == (first, second)
            self.button("Continue the trials" if is_begun else "Begin blind trials",
                        lambda: self._judge(first, second), waits=True)
        ui.label().bind_text_from(self.page, "state", backward=lambda state: _count_trials(state.trials))

    def result(self):
        trials = self.page.state.trials
        if trials is not None and trials.is_over:
            _show_result(trials)
            self.show_command("The same in a terminal:", ["eval", *self.project.trials_command(
                *trials.policies)[0][:-1], f"{trials.path.parent.name}/{trials.path.name}"])

    async def _judge(self, first: str, second: str) -> None:
        if first == second:
            raise RuntimeError("choose two policies")
        robot_session(self.page).rivals = first, second
        await self.page.begin("judge")


def robot_session(page: StudioPage) -> RobotLiveSession:
    session = page.session
    assert isinstance(session, RobotLiveSession)
    return session


def order_buttons(page: StudioPage, orders: tuple[Order, ...]) -> None:
    """Buttons of what a person can say now. Keys say the same."""
    def give(command: str) -> None:
        if page.studio.drives(page.client):
            page.session.person.command(command)
            page.picture.run_method("focus")
    with ui.row():
        for text, command, phases in orders:
            button = ui.button(text, on_click=lambda c=command: give(c))
            button.props("outline" if command != "enter" else "").bind_visibility_from(
                page.session, "phase", backward=lambda phase, phases=phases: phase in phases)


def show_what_acts(page: StudioPage, *policies: str) -> None:
    """Says what will move the robot, before anything moves."""
    session = robot_session(page)
    with ui.card().props("flat bordered").classes("w-full gap-1"):
        ui.label("What will move the robot").classes("text-subtitle2")
        for policy in policies:
            ui.label(f"{policy_title(policy)}: {describe_policy(page.project.folder / policy)}")
        rates = {f"{session.policies.rate(page.project.folder / policy):g}" for policy in policies}
        limits, unit = session.robot.limits, session.features["action"].unit or "units"
        ui.label(f"{' or '.join(sorted(rates))} steps per second, for {session.times.episode:g} s at most. No joint "
                 f"moves faster than {max(limits.max_velocity):g} {unit} per second.")
        with ui.expansion("Limits of each joint").classes("w-full").props("dense header-class=q-px-none"):
            ui.table(rows=joint_limits(session), columns=[
                {"name": name, "label": label, "field": name, "align": "left" if name == "joint" else "right"}
                for name, label in (("joint", "Joint"), ("low", "From"), ("high", "To"), ("speed", "Per second"))]
                     ).props("dense flat hide-pagination").classes("w-full")


def describe_policy(run: Path) -> str:
    """Says of which method a policy is, and how many steps it plans at once."""
    method = Method.load(run)
    horizon, executor = method.policy.window.horizon, method.executor
    done = executor.n_action_steps if isinstance(executor, ChunkedExecutor) else 1
    return (f"plans {horizon} steps at once, and acts {done} of them before the next plan." if horizon > 1 else
            "plans one step at a time.")


def joint_limits(session: RobotLiveSession) -> list[dict[str, Any]]:
    limits, action = session.robot.limits, session.features["action"]
    names = action.names or tuple(f"joint {i}" for i in range(len(limits.low)))
    return [{"joint": name.removesuffix(".pos"), "low": f"{low:.0f}", "high": f"{high:.0f}", "speed": f"{speed:.0f}"}
            for name, low, high, speed in zip(names, limits.low, limits.high, limits.max_velocity, strict=True)]


def _count_trials(trials: StoredTrials | None) -> str:
    if trials is None or trials.is_over:
        return ""
    rounds, begun = trials.counts
    return f"{rounds} complete rounds, {begun} trials begun. The result is shown at the end."


def _show_result(trials: StoredTrials) -> None:
    result = trials.result()
    ui.label(f"In {result['rounds']} rounds of blind trials:").classes("text-subtitle2")
    for entry in result["policies"] if result["rounds"] else ():
        success = entry["success"]
        ui.label(f"{policy_title(entry['name'])}: {entry['successes']} of {entry['trials']}, {success['estimate']:.0%} "
                 f"[{success['low']:.0%} to {success['high']:.0%}]").tooltip(RANGE_HELP)
        ui.html(interval_svg(success["estimate"], success["low"], success["high"]), sanitize=False).classes("w-full")
    ui.label(result["verdict"].replace("runs/", "Policy ")).classes("text-body1 text-weight-medium")


ROBOT_PANELS = (RobotWatchPanel, TrialPanel)
