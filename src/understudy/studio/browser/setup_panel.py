"""The step of the studio before all others: set up a robot."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
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
    REPORT,
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
        arms, is_ready = self.setup.arms(), self.setup.is_ready
        self.tab.props(f'label="{self.title} {"✓" if is_ready else "!"}" '
                       f'aria-label="{self.title}: {"ready" if is_ready else "not ready"}"')
        if self._leads:
            return
        findings = self.setup.findings()
        chosen = next((arm for arm in arms if arm.title == self.choices.get("arm")), None) or next(
            (arm for arm in arms if not arm.is_ready), arms[0] if arms else None)
        ui.label(_next_step(arms)).classes("text-h6")
        with ui.row().classes("w-full gap-4"):
            for arm in arms:
                _show_arm(arm)
        if chosen is not None:
            self._actions_of(chosen, arms, any(joint.is_wrong for each in findings for joint in each.joints))
        if arms and is_ready:
            self._action("Check", self._check, "Compares the arms with their calibrations. Nothing moves.",
                         not findings)
        if is_ready:
            self._action("Teleoperate", self._start(self.setup.teleoperate),
                         "The leader moves the robot, and nothing is recorded. Keep a hand at the power switch.",
                         not arms or bool(findings) and not any(j.is_wrong for f in findings for j in f.joints))
        for each in findings:
            _show_findings(each)

    def _actions_of(self, arm: SetupArm, arms: list[SetupArm], differs: bool) -> None:
        """Buttons for one arm, which the person chooses."""
        if len(arms) > 1:
            def choose(event) -> None:
                self.choices["arm"] = event.value
                self.build.refresh()
            ui.toggle([each.title for each in arms], value=arm.title, on_change=choose).props(
                'no-caps aria-label="Which arm"')
        self._action("Find port", self._start(lambda: self.setup.find_port(arm)),
                     "You pull the USB cable of this arm once.", not arm.named.port)
        if not arm.named.port:
            return
        self._action("Set up motors", self._start(lambda: self.setup.set_up_motors(arm)),
                     "For a new arm: gives each motor its number. You connect one motor after the other.")
        self._action("Calibrate", self._start(lambda: self.setup.calibrate(arm)),
                     "You put the arm into the middle of its range, and then move every joint from end to end.",
                     arm.calibration is None or differs)

    def _action(self, text: str, action: Callable[[], Awaitable[None]], sentence: str, is_primary: bool = False
                ) -> None:
        with ui.row().classes("w-full items-center no-wrap gap-4"):
            self.button(text, action, waits=True).classes("w-36 shrink-0").props("" if is_primary else "outline")
            ui.label(sentence)

    # -- what a person does -----------------------------------------------------------------------------------------

    def _start(self, make: Callable[[], Job]) -> Callable[[], Awaitable[None]]:
        async def start() -> None:
            self.choices.pop("arm", None)  # the next arm that is not ready comes then
            await self.studio.start_job(make())
        return start

    async def _check(self) -> None:
        report = self.project.folder / REPORT
        report.parent.mkdir(exist_ok=True)
        report.unlink(missing_ok=True)  # an error must not stand beside what was found before
        await self.studio.start_job(self.setup.check())

    def _answer(self, text: str) -> None:
        if self.setup.dialog.question is not None:
            self.setup.dialog.question = None
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
        with ui.row():
            if dialog.question is not None and dialog.is_choice:
                ui.button("Yes", on_click=lambda: self._answer("y"))
                ui.button("No", on_click=lambda: self._answer("n")).props("outline")
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


def _next_step(arms: list[SetupArm]) -> str:
    if not arms:
        return "This robot needs no calibration here."
    if without := next((arm for arm in arms if not arm.named.port), None):
        return f"{without.title}: the port is not known"
    if without := next((arm for arm in arms if arm.calibration is None), None):
        return f"{without.title}: not calibrated"
    return "Ready: " + ("all arms are calibrated" if len(arms) > 1 else "the arm is calibrated")


def _show_arm(arm: SetupArm) -> None:
    with ui.column().classes("gap-0 grow basis-52"):
        ui.label(arm.title).classes("text-subtitle1 text-weight-medium")
        ui.label(" · ".join(filter(None, (arm.named.kind.name, arm.named.id, arm.named.port)))).classes("break-all")
        if arm.calibration is None:
            ui.label("✗ not calibrated").classes("text-negative")
        else:
            day = datetime.fromtimestamp(arm.calibration.stat().st_mtime)
            ui.label(f"✓ calibrated on {day:%d %b %Y}").classes("text-primary")
            ui.label(str(arm.calibration)).classes("text-caption break-all")


def _show_end(job: Job, lines: list[str]) -> None:
    """Shows how a command has ended, with the remedy of an error."""
    if job.state != "failed":
        ui.label(lines[-1] if lines and job.state == "done" and job.title != CHECK else f"{job.title}: {job.state}.")
        return
    with ui.column().classes("w-full gap-1").props("role=alert"):
        ui.label(f"{job.title} failed").classes("text-h6 text-negative")
        for line in job.tail:
            remedy = line.strip().startswith("->")
            ui.label(line.strip().removeprefix("-> ")).classes(
                "break-words w-full " + ("text-weight-medium" if remedy else "whitespace-pre-wrap"))


def _show_findings(findings: ArmFindings) -> None:
    """Shows how far each joint is from its calibration."""
    wrong = [joint for joint in findings.joints if joint.is_wrong]
    ui.label(f"{findings.title}: " + (f"{len(wrong)} of {len(findings.joints)} joints differ from the calibration"
                                      if wrong else "as calibrated")).classes("text-subtitle1 text-weight-medium")
    with ui.element("div").style(GRID):
        for joint in findings.joints:
            ui.label(joint.joint.replace("_", " "))
            ui.html(_bar(0.0, min(joint.amount / WORST, 1.0), "#c2570c"), sanitize=False)
            ui.label(joint.text).classes("text-negative text-weight-medium" if joint.is_wrong else "")
    if wrong:
        ui.label("If this is the right arm, calibrate it again. Otherwise find its port.")


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
