"""The fifth step of the studio: compare policies, see where they fail, and export."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from .jobs import Job
from .panel import RANGE_HELP, Panel, policy_title, whole_number
from .pictures import interval_svg


class ComparePanel(Panel):
    """Compares two policies on the same starts."""

    title, jobs = "Compare", ("Compare",)

    def content(self):
        if len(self.page.state.policies) < 2:
            ui.label("A comparison needs two policies: train one, watch it, and let it learn from your corrections.")
            return
        first = self.choose_policy("compared", "Policy", -1)
        second = self.choose_policy("rival", "compared with", -2)
        ui.number("Starts: more make the answer more certain", min=2, step=50, precision=0).bind_value(
            self.choices, "starts").classes("w-full")
        self.button("Compare", lambda: self._start(str(second), str(first)), waits=True)
        if (report := self.page.state.comparison) is not None:
            self._show_report(report)

    def _show_report(self, report: dict[str, Any]) -> None:
        ui.label(f"On the same {report['episodes']} starts:").classes("text-subtitle2")
        for entry in report["policies"]:
            success = entry["success"]
            ui.label(f"{policy_title(entry['name'])}: {success['estimate']:.0%} [{success['low']:.0%} to "
                     f"{success['high']:.0%}]").tooltip(RANGE_HELP)
            ui.html(interval_svg(success["estimate"], success["low"], success["high"]), sanitize=False).classes(
                "w-full")
        ui.label(report["verdict"].replace("runs/", "Policy ")).classes("text-body1 text-weight-medium")

    async def _start(self, first: str, second: str) -> None:
        if first == second:
            raise RuntimeError("choose two policies")
        starts = whole_number(self.choices["starts"], "starts")
        words = ["compare", first, second, "--env", self.project.env, "--episodes", str(starts), "--json"]
        await self.studio.start_job(Job("Compare", [words], output=self.project.new_report()))
