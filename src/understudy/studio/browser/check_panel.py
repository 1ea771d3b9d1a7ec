"""The second step of the studio: look at demonstrations, leave out, trim, label and undo."""

from __future__ import annotations

from collections.abc import Set
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
        chosen: set[int] = set()
        with ui.list().props("dense bordered separator").classes("w-full max-h-80 overflow-auto"):
            boxes = [self._line(entry, chosen) for entry in reversed(episodes)]
        self._bulk_buttons(chosen, boxes)
        with ui.row().classes("items-center"):
            self.button("Undo", self.studio.undo, waits=True).props("outline dense").set_visibility(
                len(self.studio.edits) > 1)
            self.button("Look for problems", self._audit, waits=True).props("outline dense")
        self._findings()
        ui.label("Nothing is deleted: the recordings stay as they are, and what you change here is stored next to "
                 "them.").classes("text-caption")

    def _bulk_buttons(self, chosen: set[int], boxes: list[ui.checkbox]) -> None:
        """Buttons that change all chosen demonstrations at once."""
        def choose_all() -> None:
            value = not all(box.value for box in boxes)
            for box in boxes:
                box.value = value
        with ui.row().classes("items-center gap-2"):
            ui.button("Choose all", on_click=choose_all).props("flat dense")
            ui.label("The chosen ones:")
            self.button("Leave out", lambda: self._leave_out(chosen), waits=True).props(
                'outline dense aria-label="Leave the chosen ones out"')
            for success in (True, False):
                self.button(OUTCOMES[success].capitalize(), lambda s=success: self._label(chosen, s), waits=True).props(
                    f'outline dense aria-label="The chosen ones were a {OUTCOMES[success]}"')

    def _line(self, entry: ShownEpisode, chosen: set[int]) -> ui.checkbox:
        """Shows one demonstration in the list. Returns the box by which a person chooses it."""
        used = ", interrupted and not learned" if entry.is_interrupted else ", left out" if entry.is_left_out else ""
        used += f" · {entry.note}" if entry.note else ""
        trimmed = "" if entry.stop - entry.start == len(entry.episode) else f" of {len(entry.episode)}"
        item = ui.item().classes("" if entry.is_used else "opacity-60")
        if not entry.is_left_out:
            item.on("keydown.delete", self.page.act(lambda: self._toggle(entry)))
        with item:
            with ui.item_section().props("side"):
                box = ui.checkbox(on_change=lambda e: (chosen.add if e.value else chosen.discard)(entry.number)).props(
                    f'dense aria-label="Choose demonstration {entry.number + 1}"')
            with ui.item_section().props("avatar"):
                ui.html(self.page.state.thumbnails[entry.number], sanitize=False)
            with ui.item_section():
                ui.item_label(f"Demonstration {entry.number + 1}")
                ui.item_label(f"{entry.stop - entry.start}{trimmed} steps, {OUTCOMES[entry.success]}{used}").props(
                    "caption")
            with ui.item_section().props("side"), ui.element().classes("flex flex-col sm:flex-row gap-1"):
                ui.button("Look", on_click=lambda: self._select(entry)).props(
                    f'flat dense aria-label="Look at demonstration {entry.number + 1}"')
                self.button("Take back" if entry.is_left_out else "Leave out", lambda: self._toggle(entry),
                            waits=True).props("flat dense")
        return box

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
                self.button(f"It was a {OUTCOMES[other]}", lambda: self._label({number}, other), waits=True).props(
                    "outline dense")
                self.button("Close", self._close).props("flat dense")
            with ui.row().classes("w-full items-center no-wrap"):
                note = ui.input("Note", value=entry.note).props("dense").classes("grow")
                self.button("Store note", lambda: self._note(entry, note.value), waits=True).props("outline dense")

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

    async def _leave_out(self, numbers: Set[int]) -> None:
        await self._store_left_out(self.page.state.edits.left_out | _some(numbers))

    async def _toggle(self, entry: ShownEpisode) -> None:
        await self._store_left_out(self.page.state.edits.left_out ^ {entry.number})

    async def _store_left_out(self, numbers: frozenset[int]) -> None:
        if len(numbers) == len(self.page.state.episodes):
            raise RuntimeError("at least one demonstration must stay")
        await self.studio.edit(replace(self.page.state.edits, left_out=numbers))

    async def _trim(self, entry: ShownEpisode, start: int, stop: int) -> None:
        if start >= stop:
            raise RuntimeError("at least one step must stay between the handles")
        edits = self.page.state.edits
        trims = {n: t for n, t in edits.trims.items() if n != entry.number}
        if (start, stop) != (0, len(entry.episode)):
            trims[entry.number] = start, stop
        await self.studio.edit(replace(edits, trims=trims))

    async def _label(self, numbers: Set[int], success: bool) -> None:
        edits = self.page.state.edits
        labels = {**edits.labels, **dict.fromkeys(_some(numbers), success)}
        await self.studio.edit(replace(edits, labels=labels))

    async def _note(self, entry: ShownEpisode, note: str) -> None:
        edits = self.page.state.edits
        await self.studio.edit(replace(edits, notes={**edits.notes, entry.number: note.strip()}))

    async def _close(self) -> None:
        self.page.selected = None
        self.build.refresh()

    async def _audit(self) -> None:
        await self.page.stop()
        commands, data = self.project.training_data()
        await self.studio.start_job(Job("Look for problems", [*commands, ["audit", data, "--json"]],
                                        output=f"{REPORTS}/{self.project.audit_report().name}"))


def _some(numbers: Set[int]) -> frozenset[int]:
    if not numbers:
        raise RuntimeError("choose demonstrations first, by the boxes before them")
    return frozenset(numbers)
