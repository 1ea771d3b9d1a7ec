"""The fifth step of the studio: compare policies, see where they fail, and export."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from .jobs import Job
from .live import ToySession
from .panel import RANGE_HELP, Panel, policy_title, whole_number
from .pictures import interval_svg, picture_svg
from .project import EXPORTS, RUNS, ProjectComparison

SIDE = 250  # px, of the pictures of two policies next to each other; they shrink on a phone


class ComparePanel(Panel):
    """Compares two policies on the same starts."""

    title, jobs = "Compare", ("Compare", "Export")

    def content(self):
        policies = [policy.name for policy in self.page.state.policies]
        if len(policies) < 2:
            ui.label("A comparison needs two policies: train one, watch it, and let it learn from your corrections.")
        else:
            first = self.choose_policy("compared", "Policy", -1)
            second = self.choose_policy("rival", "compared with", -2)
            self.compare(str(first), str(second))
        self.result()
        if policies:
            self._exports(policies)

    def compare(self, first: str, second: str) -> None:
        """What a person presses to compare two policies."""
        ui.number("Starts: more make the answer more certain", min=2, step=50, precision=0).bind_value(
            self.choices, "starts").classes("w-full")
        self.button("Compare", lambda: self._start(second, first), waits=True)

    def result(self) -> None:
        """Shows the newest comparison."""
        if (comparison := self.page.state.comparison) is not None:
            self._show_report(comparison.report)
            if comparison.rollouts:
                self._show_failures(comparison)

    def _show_report(self, report: dict[str, Any]) -> None:
        ui.label(f"On the same {report['episodes']} starts:").classes("text-subtitle2")
        for entry in report["policies"]:
            success = entry["success"]
            ui.label(f"{policy_title(entry['name'])}: {success['estimate']:.0%} [{success['low']:.0%} to "
                     f"{success['high']:.0%}]").tooltip(RANGE_HELP)
            ui.html(interval_svg(success["estimate"], success["low"], success["high"]), sanitize=False).classes(
                "w-full")
        verdict = report["verdict"].replace("runs/", "Policy ").partition(". ")[0]
        ui.label(f"{verdict}.").classes("text-body1 text-weight-medium")
        for needed in report["needed"]:
            starts = needed["episodes"] or 2 * report["episodes"]  # no number is known if they seem to be equal
            self.button(f"Compare on {starts:,} starts",
                        lambda n=needed, s=starts: self._start(n["a"], n["b"], s), waits=True).props("outline dense")

    def _show_failures(self, comparison: ProjectComparison) -> None:
        """Shows what both policies did from a start from which one failed, next to each other."""
        failures = comparison.failures()
        if not failures:
            ui.label("Both succeeded from all starts.")
            return
        names = [policy_title(policy["name"]) for policy in comparison.report["policies"]]
        titles = {number: f"Start {number + 1}: " + ", ".join(
            f"{name} {'succeeded' if success else 'failed'}" for name, success in zip(names, won, strict=True))
            for number, won in failures.items()}
        pictures: list[ui.html] = []
        session = self.page.session
        assert isinstance(session, ToySession)
        recorded = session.pictures

        def draw() -> None:
            for picture, data in zip(pictures, comparison.rollouts, strict=True):
                episode = data[start.value]
                step = min(round(moment.value), len(episode) - 1)
                picture.content = picture_svg(recorded.shapes(episode, step), SIDE)

        def show_start() -> None:
            last = max(len(data[start.value]) for data in comparison.rollouts) - 1
            moment.props(f"max={last}")
            moment.value = last  # how it ended
            draw()
        start = ui.select(titles, value=next(iter(titles)), label="See where they fail", on_change=show_start).classes(
            "w-full")
        with ui.grid(columns=2).classes("w-full gap-4"):
            for name in names:
                with ui.column().classes("gap-1"):
                    pictures.append(ui.html("", sanitize=False).classes("w-full pair"))
                    ui.label(name).classes("text-caption")
        moment = ui.slider(min=0, max=1, value=0, on_change=draw).props('label aria-label="Step of both"')
        show_start()

    def _exports(self, policies: list[str]) -> None:
        """Buttons that write files for other software."""
        with ui.expansion("Take it elsewhere").bind_value(self.choices, "exports").classes("w-full"):
            exported = self.choose_policy("exported", "Policy", -1)
            with ui.row().classes("items-center"):
                self.button("Policy as an ONNX file", lambda: self._export(str(exported)), waits=True).props(
                    "outline dense")
                self.button("Demonstrations for LeRobot", self._convert, waits=True).props("outline dense")
                comparison = self.page.state.comparison
                if comparison is not None and comparison.page.exists():
                    ui.button("Comparison as a web page", on_click=lambda: ui.download.file(comparison.page)).props(
                        "outline dense")
            for path in self.page.state.exports:
                ui.label(f"Written to {path}").classes("text-caption")

    # -- what a person does ---------------------------------------------------------------------------------------

    async def _start(self, first: str, second: str, starts: int | None = None) -> None:
        if first == second:
            raise RuntimeError("choose two policies")
        words, output = self.project.compare(first, second, starts or whole_number(self.choices["starts"], "starts"))
        await self.studio.start_job(Job("Compare", [words], output=output))

    async def _export(self, policy: str) -> None:
        out = f"{EXPORTS}/{policy.replace(RUNS + '/', 'policy-')}.onnx"
        await self.studio.start_job(Job("Export", [["export", policy, "--out", out]]))

    async def _convert(self) -> None:
        await self.page.stop()
        commands, data = self.project.training_data()
        await self.studio.start_job(Job("Export", [*commands, ["convert", data, self.project.new_export()]]))
