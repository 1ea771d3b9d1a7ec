"""The second step of the studio: look at demonstrations, leave out, trim, label and undo."""

from __future__ import annotations

from dataclasses import replace

from nicegui import ui

from .jobs import Job
from .panel import OUTCOMES, Panel
from .pictures import action_chart_svg
from .project import REPORTS, ShownEpisode


class CheckPanel(Panel):
    """Shows what was recorded, and what is left out, trimmed and labeled."""

    title, jobs = "Check", ("Check", "Look for problems")

    def content(self):
        episodes = self.page.state.episodes
        if not episodes:
            ui.label("There is no demonstration yet. Start with Show.")
            return
        failed = {e.number for e in episodes if e.success is False and e.is_used}
        if failed and len(failed) < sum(e.is_used for e in episodes):
            with ui.row().classes("items-center"):
                ui.label(f"{len(failed)} of them failed. A policy imitates failures, too.")
                self.button("Leave failures out", lambda: self._leave_out(failed), waits=True).props("outline dense")
        if self.page.selected is not None:
            self._scrubber(episodes[self.page.selected[0]])
        with ui.list().props("dense bordered separator").classes("w-full max-h-80 overflow-auto"):
            for entry in reversed(episodes):
                self._line(entry)
        with ui.row().classes("items-center"):
            self.button("Undo", self.studio.undo, waits=True).props("outline dense").set_visibility(
                len(self.studio.edits) > 1)
            self.button("Look for problems", self._audit, waits=True).props("outline dense")
        self._findings()
        ui.label("Nothing is deleted: the recordings stay as they are, and what you change here is stored beside "
                 "them.").classes("text-caption")

    def _line(self, entry: ShownEpisode) -> None:
        used = ", interrupted and not learned" if entry.is_interrupted else ", left out" if entry.is_left_out else ""
        trimmed = "" if entry.stop - entry.start == len(entry.episode) else f" of {len(entry.episode)}"
        with ui.item().classes("" if entry.is_used else "opacity-60"):
            with ui.item_section().props("avatar"):
                ui.html(self.page.state.thumbnails[entry.number], sanitize=False)
            with ui.item_section():
                ui.item_label(f"Demonstration {entry.number + 1}")
                ui.item_label(f"{entry.stop - entry.start}{trimmed} steps, {OUTCOMES[entry.success]}{used}").props(
                    "caption")
            with ui.item_section().props("side"), ui.row().classes("gap-1 no-wrap"):
                ui.button("Look", on_click=lambda: self._select(entry)).props(
                    f'flat dense aria-label="Look at demonstration {entry.number + 1}"')
                self.button("Take back" if entry.is_left_out else "Leave out", lambda: self._toggle(entry),
                            waits=True).props("flat dense")

    def _select(self, entry: ShownEpisode) -> None:
        self.page.select(entry.number, entry.start)
        self.build.refresh()

    def _scrubber(self, entry: ShownEpisode) -> None:
        """Shows one demonstration step by step, in the picture and in a chart, and trims and labels it."""
        number, step = self.page.selected or (0, 0)
        n = len(entry.episode)
        step = min(step, n - 1)
        with ui.card().classes("w-full gap-1").props(f'aria-label="Demonstration {number + 1}"'):
            ui.label(f"Demonstration {number + 1}: actions over time").classes("text-subtitle2")
            chart = ui.html(action_chart_svg(entry.episode, entry.start, entry.stop, step), sanitize=False).classes(
                "w-full")
            trim = {"min": entry.start, "max": entry.stop}

            def look(event) -> None:
                self.page.select(number, int(event.value))
                chart.content = action_chart_svg(entry.episode, trim["min"], trim["max"], int(event.value))
            ui.slider(min=0, max=n - 1, value=step, on_change=look).props(
                f'label aria-label="Step of demonstration {number + 1}"')

            def shade(event) -> None:
                trim.update(event.value)
                chart.content = action_chart_svg(entry.episode, trim["min"], trim["max"], (
                    self.page.selected or (0, 0))[1])
            ui.label("Learn only the steps between the handles:").classes("text-caption")
            ui.range(min=0, max=n, value=dict(trim), on_change=shade).props('label aria-label="Steps to learn"')
            with ui.row():
                self.button("Trim", lambda: self._trim(entry, trim["min"], trim["max"]), waits=True).props(
                    "outline dense")
                other = entry.success is not True
                self.button(f"It was a {OUTCOMES[other]}", lambda: self._label(entry, other), waits=True).props(
                    "outline dense")
                self.button("Close", self._close).props("flat dense")

    def _findings(self) -> None:
        findings = self.page.state.findings
        if findings is None:
            return
        ui.label("No problem was found." if not findings else "What was found:").classes("text-subtitle2")
        for finding in findings:
            numbers = [self.project.project_number(n) for n in finding["episodes"]]
            with ui.card().classes("w-full gap-1"):
                ui.label(f"{finding['severity']}: {finding['message']}")
                ui.label(finding["remedy"]).classes("text-caption")
                with ui.row():
                    if numbers:
                        step = self.page.state.episodes[numbers[0]].start + (finding["where"]["step"] or 0)
                        ui.button(f"Look at demonstration {numbers[0] + 1}", on_click=lambda n=numbers[0], s=step: (
                            self.page.select(n, s), self.build.refresh())).props("flat dense")
                    if numbers and len(numbers) < sum(e.is_used for e in self.page.state.episodes):
                        self.button("Leave them out" if len(numbers) > 1 else "Leave it out",
                                    lambda n=frozenset(numbers): self._leave_out(n), waits=True).props("outline dense")

    # -- what a person does ---------------------------------------------------------------------------------------

    async def _leave_out(self, numbers) -> None:
        edits = self.page.state.edits
        await self.studio.edit(replace(edits, left_out=edits.left_out | numbers))

    async def _toggle(self, entry: ShownEpisode) -> None:
        edits = self.page.state.edits
        left_out = edits.left_out ^ {entry.number}
        if len(left_out) == len(self.page.state.episodes):
            raise RuntimeError("at least one demonstration must stay")
        await self.studio.edit(replace(edits, left_out=left_out))

    async def _trim(self, entry: ShownEpisode, start: int, stop: int) -> None:
        if start >= stop:
            raise RuntimeError("at least one step must stay between the handles")
        edits = self.page.state.edits
        trims = {n: t for n, t in edits.trims.items() if n != entry.number}
        if (start, stop) != (0, len(entry.episode)):
            trims[entry.number] = start, stop
        await self.studio.edit(replace(edits, trims=trims))

    async def _label(self, entry: ShownEpisode, success: bool) -> None:
        edits = self.page.state.edits
        await self.studio.edit(replace(edits, labels={**edits.labels, entry.number: success}))

    async def _close(self) -> None:
        self.page.selected = None
        self.build.refresh()

    async def _audit(self) -> None:
        await self.page.stop()
        commands, data = self.project.training_data()
        await self.studio.start_job(Job("Look for problems", [*commands, ["audit", data, "--json"]],
                                        output=f"{REPORTS}/{self.project.audit_report().name}"))
