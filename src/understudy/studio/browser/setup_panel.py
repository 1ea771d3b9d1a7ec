"""The step of the studio before all others: set up a robot."""

from __future__ import annotations

from datetime import datetime

from nicegui import ui

from .jobs import Job
from .page import StudioPage
from .panel import Panel
from .robot_setup import CALIBRATE, CHECK, REPORT, ArmFindings, RobotSetup, SetupArm

WORST = 30.0  # degrees, at which the bar of a joint ends


class SetupPanel(Panel):
    """Sets up the arms of the robot: ports, servos, calibrations.

    Args:
        tab: Its place on the rail.
    """

    title, jobs = "Set up", (CALIBRATE, CHECK)

    def __init__(self, page: StudioPage, setup: RobotSetup, tab: ui.tab):
        super().__init__(page)
        self.setup, self.tab = setup, tab

    def content(self):
        arms, is_ready = self.setup.arms(), self.setup.is_ready
        self.tab.props(f'label="{self.title} {"✓" if is_ready else "!"}" '
                       f'aria-label="{self.title}: {"ready" if is_ready else "not ready"}"')
        ui.label(self._next_step(arms)).classes("text-h6")
        with ui.row().classes("w-full gap-4"):
            for arm in arms:
                _show_arm(arm)
        self._actions(arms)
        for findings in self.setup.findings():
            _show_findings(findings)

    def _next_step(self, arms: list[SetupArm]) -> str:
        if not arms:
            return "This robot needs no calibration here."
        if without := next((arm for arm in arms if not arm.named.port), None):
            return f"{without.title}: the port is not known."
        if without := next((arm for arm in arms if arm.calibration is None), None):
            return f"{without.title}: not calibrated."
        return "All arms are calibrated."

    def _actions(self, arms: list[SetupArm]) -> None:
        if arms and self.setup.is_ready:
            self._action("Check", self._check, "Compares the arms with their calibrations. Nothing moves.")

    def _action(self, text: str, action, sentence: str, is_primary: bool = False) -> None:
        with ui.row().classes("w-full items-center no-wrap gap-4"):
            self.button(text, action, waits=True).classes("w-36 shrink-0").props("" if is_primary else "outline")
            ui.label(sentence)

    async def _check(self) -> None:
        report = self.project.folder / REPORT
        report.parent.mkdir(exist_ok=True)
        report.unlink(missing_ok=True)  # an error must not stand beside what was found before
        await self.studio.start_job(Job(CHECK, [self.setup.check()], output=REPORT))


def _show_arm(arm: SetupArm) -> None:
    with ui.column().classes("gap-0 grow"):
        ui.label(arm.title).classes("text-subtitle1 text-weight-medium")
        ui.label(" · ".join(filter(None, (arm.named.kind.name, arm.named.id, arm.named.port)))).classes("break-all")
        if arm.calibration is None:
            ui.label("✗ not calibrated").classes("text-negative")
        else:
            day = datetime.fromtimestamp(arm.calibration.stat().st_mtime)
            ui.label(f"✓ calibrated on {day:%d %b %Y}").classes("text-primary")
            ui.label(str(arm.calibration)).classes("text-caption break-all")


def _show_findings(findings: ArmFindings) -> None:
    """Shows how far each joint is from its calibration."""
    wrong = [joint for joint in findings.joints if joint.is_wrong]
    ui.label(f"{findings.title}: " + (f"{len(wrong)} of {len(findings.joints)} joints differ from the calibration."
                                      if wrong else "as calibrated.")).classes("text-subtitle1 text-weight-medium")
    with ui.element("div").classes("grid grid-cols-[auto_1fr_auto] gap-x-4 gap-y-1 w-full items-center"):
        for joint in findings.joints:
            ui.label(joint.joint.replace("_", " "))
            ui.html(_bar(min(joint.amount / WORST, 1.0)), sanitize=False)
            ui.label(joint.text).classes("text-negative text-weight-medium" if joint.is_wrong else "")
    if wrong:
        ui.label("If this is the right arm, calibrate it again. Otherwise find its port.")


def _bar(share: float) -> str:
    return ('<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" style="width:100%;height:10px">'
            '<rect width="100" height="10" fill="currentColor" opacity="0.12"/>'
            f'<rect width="{100 * share:.1f}" height="10" fill="#c2570c"/></svg>')
