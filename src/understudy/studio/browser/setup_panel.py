"""The step of the studio before all others: set up a robot."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection
from datetime import datetime

from nicegui import ui
from nicegui.events import KeyEventArguments

from ...robots.calibration import MAX_STEPS
from .jobs import Job
from .page import StudioPage
from .panel import Panel
from .robot_setup import (
    CALIBRATE,
    CHECK,
    FIND_PORT,
    MOTORS,
    TELEOPERATE,
    ArmFindings,
    RobotSetup,
    SetupArm,
)

WORST = 30.0  # degrees, at which the bar of a joint ends
MOVED = 9  # degrees, from which on a joint counts as moved in a calibration
GRID = "display:grid;grid-template-columns:auto 1fr auto;gap:6px 16px;align-items:center;width:100%"


class SetupPanel(Panel):
    """Sets up the arms of the robot: ports, servos, calibrations.

    Args:
        tab: Its place on the rail.
    """

    title, jobs = "Set up", (FIND_PORT, MOTORS, CALIBRATE, CHECK, TELEOPERATE)

    def __init__(self, page: StudioPage, setup: RobotSetup, tab: ui.tab):
        super().__init__(page)
        self.setup, self.tab = setup, tab
        self._shown: tuple = ()
        self._ranges: ui.html | None = None  # of the joints that a person moves

    @property
    def _leads(self) -> bool:
        """Whether a command of this step runs."""
        jobs = self.studio.jobs
        return jobs.is_busy and jobs.job is not None and jobs.job.title in self.jobs

    def content(self):
        arms, findings = self.setup.arms(), self.setup.findings()
        differing = {each.title for each in findings if each.differing}
        to_do = [arm for arm in arms if not arm.is_ready or arm.title in differing]
        self.tab.props(f'label="{self.title} {"!" if to_do else "✓"}" '
                       f'aria-label="{self.title}: {"to do" if to_do else "done"}"')
        if self._leads:
            return
        ui.label(_next_step(arms, differing)).classes("text-h6")
        with ui.row().classes("w-full gap-4"):
            for arm in arms:
                _show_arm(arm)
        for each in findings:
            _show_findings(each)
        if arms:
            chosen = next((arm for arm in arms if arm.title == self.choices.get("arm")), [*to_do, arms[0]][0])
            self._actions_of(chosen, arms, chosen in to_do)
        if self.setup.is_ready:
            if arms:
                self._action("Check", self.setup.check, "Compares the arms with their calibrations. Nothing moves.",
                             not findings)
            self._action("Teleoperate", self.setup.teleoperate,
                         "The leader moves the robot, and nothing is recorded. Keep a hand at the power switch.",
                         not to_do and bool(findings or not arms))

    def _actions_of(self, arm: SetupArm, arms: list[SetupArm], is_to_do: bool) -> None:
        """Buttons for one arm, which the person chooses."""
        if len(arms) > 1:
            def choose(event) -> None:
                self.choices["arm"] = event.value
                self.build.refresh()
            ui.toggle([each.title for each in arms], value=arm.title, on_change=choose).props(
                'no-caps aria-label="Which arm"')
        self._action("Find port", lambda: self.setup.find_port(arm),
                     "Finds the port of this arm. You pull its USB cable once.", not arm.named.port)
        if not arm.named.port:
            return
        self._action("Set up motors", lambda: self.setup.set_up_motors(arm),
                     "For a new arm: gives each motor its number. You connect one motor after the other.")
        self._action("Calibrate", lambda: self.setup.calibrate(arm),
                     "You put the arm into the middle of its range, and then move every joint from end to end.",
                     is_to_do)

    def _action(self, text: str, make: Callable[[], Job], sentence: str, is_primary: bool = False) -> None:
        """A button that starts a command, and what it does."""
        async def start() -> None:
            self.choices.pop("arm", None)  # the next arm that is not ready comes then
            await self.studio.start_job(make())
        with ui.row().classes("w-full items-center no-wrap gap-4"):
            self.button(text, start, waits=True).classes("w-36 shrink-0").props("" if is_primary else "outline")
            ui.label(sentence)

    # -- what a person does -----------------------------------------------------------------------------------------

    def _answer(self, text: str) -> None:
        if self.setup.dialog.question is not None:
            self.setup.dialog.question = None
            self.setup.dialog.lines.clear()  # they were about the question
            if text == "y":  # servos get another calibration
                self.setup.forget_findings()
            self.studio.jobs.answer(text)
            self._follow()

    def _press(self, event: KeyEventArguments) -> None:
        if event.key.enter and event.action.keydown and not event.action.repeat:
            self._answer("")

    # -- what a command says and asks -------------------------------------------------------------------------------

    @ui.refreshable_method
    def progress(self) -> None:
        dialog, job = self.setup.dialog, self.studio.jobs.job
        self._shown, self._ranges = (dialog.question, len(dialog.lines)), None
        if job is None or job.title not in self.jobs:
            return
        if not self._leads:
            _show_end(job, dialog.lines)
            return
        ui.timer(0.2, self._follow)
        ui.label(f"{job.title}: {dialog.arm.title}" if dialog.arm else job.title).classes(
            "text-subtitle1 text-weight-medium")
        if dialog.lines:
            ui.label(dialog.lines[-1])
        if dialog.question is None:
            ui.linear_progress(show_value=False).props("indeterminate aria-hidden=true")
        else:
            ui.label(dialog.question).classes("text-h6").props("role=status aria-live=assertive")
            self._ranges = ui.html("", sanitize=False).classes("w-full text-body1")
        with ui.row().classes("items-center"):
            if dialog.question is not None and dialog.is_choice:
                ui.button("Yes", on_click=lambda: self._answer("y")).props("size=lg")
                ui.button("No", on_click=lambda: self._answer("n")).props("outline size=lg")
            elif dialog.question is not None:
                enter = ui.button("Enter", on_click=lambda: self._answer("")).props("size=lg")
                ui.run_javascript(f"getHtmlElement({enter.id})?.focus()")
                ui.keyboard(self._press)
            if job.title != TELEOPERATE or dialog.question is None:
                ui.button("Stop", on_click=self.studio.jobs.stop).props("outline")

    def _follow(self) -> None:
        """Shows what the command has said since, and where the joints are."""
        dialog = self.setup.dialog
        if self._shown != (dialog.question, len(dialog.lines)):
            self.progress.refresh()
        elif self._ranges is not None and dialog.positions and dialog.arm is not None:
            self._ranges.content = ranges_html(dialog.positions, dialog.arm.named.kind.full_turn)


def _next_step(arms: list[SetupArm], differing: Collection[str]) -> str:
    if not arms:
        return "This robot needs no calibration here."
    if without := next((arm for arm in arms if not arm.named.port), None):
        return f"{without.title}: the port is not known"
    if without := next((arm for arm in arms if arm.calibration is None), None):
        return f"{without.title}: not calibrated"
    if differing:
        return f"{' and '.join(sorted(differing))}: not as calibrated"
    return "Ready: " + ("all arms are calibrated" if len(arms) > 1 else "the arm is calibrated")


def _show_arm(arm: SetupArm) -> None:
    with ui.column().classes("gap-0 grow basis-52"):
        ui.label(arm.title).classes("text-subtitle1 text-weight-medium")
        ui.label(" · ".join(filter(None, (arm.named.kind.name, arm.named.id, arm.named.port)))).classes("break-all")
        if arm.calibration is None:
            ui.label("✗ not calibrated").classes("text-negative")
        else:
            day = datetime.fromtimestamp(arm.calibration.stat().st_mtime)
            ui.label(f"✓ calibrated on {day.day} {day:%b %Y}").classes("text-primary")
            ui.label(str(arm.calibration)).classes("text-caption break-all")


def _show_end(job: Job, lines: list[str]) -> None:
    """Shows how a command has ended, with the remedy of an error."""
    if job.state != "failed":
        if job.title != CHECK or job.state != "done":  # its findings say more
            ui.label(lines[-1] if lines and job.state == "done" else f"{job.title}: {job.state}.")
        return
    with ui.column().classes("w-full gap-1").props("role=alert"):
        ui.label(f"{job.title} failed").classes("text-h6 text-negative")
        for line in map(str.strip, job.tail):
            if line.startswith("-> "):
                ui.label(f"What to do: {line[3:]}").classes("text-subtitle1 text-weight-medium break-words w-full")
            else:
                ui.label(line.removeprefix("understudy: ")).classes("break-words w-full")


def _show_findings(findings: ArmFindings) -> None:
    """Shows how far each joint is from its calibration."""
    n_wrong, count = len(findings.differing), len(findings.joints)
    if not n_wrong:
        ui.label(f"✓ {findings.title}: all {count} joints are as calibrated").classes("text-subtitle1 text-primary")
        return
    ui.label(f"{findings.title}: {n_wrong} of {count} joints {'differs' if n_wrong == 1 else 'differ'} from the "
             "calibration").classes("text-subtitle1 text-weight-medium")
    with ui.element("div").style(GRID):
        for joint in findings.joints:
            ui.label(joint.joint.replace("_", " "))
            ui.html(_bar(0.0, min(joint.amount / WORST, 1.0), "#c2570c"), sanitize=False)
            ui.label(joint.text).classes("text-negative text-weight-medium" if joint.is_wrong else "")
    ui.label("If this is the right arm, calibrate it again. Otherwise find its port.").classes("text-subtitle1")


def ranges_html(positions: dict[str, tuple[int, int, int]], full_turn: tuple[str, ...]) -> str:
    """Shows in which ranges a person has moved the joints of an arm.

    Args:
        full_turn: Joints that turn freely, and need not be moved.
    """
    rows = []
    for joint, (low, now, high) in positions.items():
        degrees = (high - low) * 360 / (MAX_STEPS + 1)
        words = ("turns freely" if joint in full_turn else "not moved yet" if degrees < MOVED else
                 f"moved {degrees:.0f}°")
        bar = _bar(low / MAX_STEPS, high / MAX_STEPS, "var(--studio-first)", now / MAX_STEPS)
        rows.append(f"<div>{html.escape(joint.replace('_', ' '))}</div>{bar}<div>{words}</div>")
    return f'<div style="{GRID}">{"".join(rows)}</div>'


def _bar(low: float, high: float, color: str, mark: float | None = None) -> str:
    """A bar between two shares of its width, with a mark, as SVG."""
    line = "" if mark is None else f'<rect x="{100 * mark - 0.5:.1f}" width="1" height="10" fill="currentColor"/>'
    return ('<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" style="width:100%;height:12px">'
            '<rect width="100" height="10" fill="currentColor" opacity="0.12"/>'
            f'<rect x="{100 * low:.1f}" width="{100 * (high - low):.1f}" height="10" fill="{color}"/>{line}</svg>')
