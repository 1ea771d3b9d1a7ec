"""The five steps of the studio: show, check, train, watch and compare."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from nicegui import ui

from ...evaluate.stats import clopper_pearson
from ...methods import describe_methods, recommend
from .jobs import Job
from .live import TakeoverInput
from .page import StudioPage
from .pictures import action_chart_svg, interval_svg
from .project import REPORTS, ShownEpisode

USUALLY_HELP = 20  # demonstrations
OUTCOMES = {True: "success", False: "failure", None: "not labeled"}
SPEEDS = {0.5: "half speed", 1.0: "real time", 2.0: "twice as fast"}
RANGE_HELP = ("With few episodes the true rate is uncertain. In 95 of 100 such cases it lies in the range that is "
              "demonstration.")
UPDATE_HELP = "In one update the policy sees some steps of the demonstrations and is changed to act more like them."
FAMILIES = ("behavior_cloning", "chunking", "generative")  # of methods that need nothing but demonstrations


def build_panels(page: StudioPage) -> Callable[..., None]:
    """Builds the five steps as tabs.

    Returns:
        The function that shows what has changed: `refresh(progress_only=...)`.
    """
    panels = [ShowPanel(page), CheckPanel(page), TrainPanel(page), WatchPanel(page), ComparePanel(page)]
    with ui.tabs().props("no-caps dense").classes("w-full") as tabs:
        for number, panel in enumerate(panels, 1):
            ui.tab(panel.title, f"{number} {panel.title}")
    with ui.tab_panels(tabs, value=panels[0].title, animated=False).classes("w-full"):
        for panel in panels:
            with ui.tab_panel(panel.title):
                panel.build()
                panel.progress()

    def refresh(progress_only: bool) -> None:
        for panel in panels:
            panel.progress.refresh()
            if not progress_only:
                panel.build.refresh()
    return refresh


class Panel:
    """One step of the rail.

    Attributes:
        title: Its name on the rail.
        jobs: The titles of the jobs whose progress it shows.
    """

    title = ""
    jobs: tuple[str, ...] = ()

    def __init__(self, page: StudioPage):
        self.page, self.studio, self.project, self.choices = page, page.studio, page.project, page.choices

    @ui.refreshable_method
    def build(self) -> None:
        self.content()

    def content(self) -> None:
        """Shows the step."""

    @ui.refreshable_method
    def progress(self) -> None:
        """Shows how far the command of this step is, or how it ended."""
        jobs, job = self.studio.jobs, self.studio.jobs.job
        if job is None or job.title not in self.jobs:
            return
        if jobs.is_busy:
            ui.linear_progress(show_value=False).bind_value_from(self.page.progress, "share").props(
                f"aria-hidden=true {'' if job.steps else 'indeterminate'}")
            ui.label().bind_text_from(self.page.progress, "text")
            ui.button("Stop, keep it" if job.run else "Stop", on_click=jobs.stop).props("outline dense")
            return
        if job.state == "failed":
            ui.label(f"{job.title} failed:").classes("text-negative")
            ui.label("\n".join(job.tail)).classes("whitespace-pre-wrap font-mono text-caption").props("role=alert")
        else:
            ui.label(f"{job.title}: {job.state}.")
        if job.state in ("stopped", "interrupted", "failed"):
            self.button(f"Continue: {job.title}", self._resume).props("outline dense")

    async def _resume(self) -> None:
        self.studio.jobs.resume()

    def button(self, text: str, action: Callable[[], Awaitable[None]], waits: bool = False) -> ui.button:
        """A button that tells what is wrong.

        Args:
            waits: Whether it cannot be pressed while a command runs.
        """
        button = ui.button(text, on_click=self.page.act(action))
        if waits:
            button.set_enabled(not self.studio.jobs.is_busy)
        return button

    def choose_policy(self, key: str, label: str, default: int) -> str | None:
        """A choice between the policies. Returns the chosen one. If there is none, it says so and returns None."""
        names = [policy.name for policy in self.page.state.policies]
        if not names:
            ui.label("There is no policy yet. Start with Train.")
            return None
        if self.choices.get(f"{key} of") != names:  # a new policy is the one to look at
            self.choices.update({key: names[max(default, -len(names))], f"{key} of": names})

        def choose(event) -> None:
            self.choices[key] = event.value
            self.build.refresh()
        ui.select({name: policy_title(name) for name in names}, value=self.choices[key], label=label,
                  on_change=choose).classes("w-full")
        return self.choices[key]


class ShowPanel(Panel):
    """Records demonstrations of the person."""

    title = "Show"

    def content(self):
        used = sum(e.is_used for e in self.page.state.episodes)
        ui.label(f"{used} shown; {USUALLY_HELP} or more usually help.").classes("text-subtitle1")
        ui.markdown("Move with the **arrow keys**, by dragging in the picture, or with a gamepad. The first movement "
                    "begins a demonstration. **Enter** ends it early, **Y** and **N** say whether it was a success, "
                    "and **X** discards it. The next one begins by itself.")
        with ui.row():
            if self.page.session.mode != "show":
                self.button("Start showing", lambda: self.page.begin("show"), waits=True)
                return
            self.button("Stop showing", self.page.stop).props("color=negative").tooltip(
                "The demonstration that runs now is discarded.")
            for text, command in (("Success", "success"), ("Failure", "failure"), ("Discard", "discard"),
                                  ("Next", "enter")):
                ui.button(text, on_click=lambda c=command: self._give(c)).props("outline")

    def _give(self, command: str) -> None:
        if self.studio.drives(self.page.client):
            self.page.session.person.command(command)
            self.page.picture.run_method("focus")


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


class TrainPanel(Panel):
    """Trains a policy on the demonstrations."""

    title, jobs = "Train", ("Train",)

    def content(self):
        if not self.page.state.episodes:
            ui.label("There is no demonstration yet. Start with Show.")
            return
        recommended = recommend(self.page.session.env.features)
        self.choices.setdefault("method", recommended)
        ui.label(f"Recommended for this data: {recommended}. It does not average different ways of doing the task, and "
                 "it trains in minutes.")
        methods = {m["name"]: f"{m['name']}: {m['summary']}" for m in describe_methods()
                   if m["family"] in FAMILIES and all(need.startswith("actions") for need in m["needs"])}
        ui.select(methods, label="Method", with_input=True).bind_value(self.choices, "method").classes("w-full")
        ui.number("Updates: more take longer and learn more", min=1, step=500, precision=0).bind_value(
            self.choices, "updates").classes("w-full").tooltip(UPDATE_HELP)
        self.button("Train", self._start, waits=True)
        for policy in self.page.state.policies:
            ui.label(f"{policy_title(policy.name)}: loss {policy.losses[-1][1]:.3g} after {policy.losses[-1][0]:,} "
                     "updates" if policy.losses else policy_title(policy.name))

    async def _start(self) -> None:
        await self.page.stop()
        commands, data = self.project.training_data()
        out, updates = self.project.new_run(), _whole(self.choices["updates"], "updates")
        train = ["train", self.choices["method"], data, "--out", out, "--steps", str(updates)]
        await self.studio.start_job(Job("Train", [*commands, train], out, updates))


class WatchPanel(Panel):
    """Lets a policy act. The person takes over, and the policy learns from it."""

    title, jobs = "Watch", ("Improve",)

    def content(self):
        if (policy := self.choose_policy("watched", "Policy", -1)) is None:
            return
        ui.markdown("Hold an **arrow key** to take over, and release it to give back. **Y** and **N** end the episode "
                    "as a success or a failure, **X** discards it, **P** pauses, and **.** makes one step of a paused "
                    "policy.")
        session = self.page.session
        with ui.row().classes("items-center"):
            if session.mode != "watch":
                self.button("Watch", lambda: self.page.begin("watch", policy), waits=True)
            else:
                self.button("Stop watching", self.page.stop).props("color=negative")
                for text, command in (("Pause", "pause"), ("One step", "step")):
                    ui.button(text, on_click=lambda c=command: self._give(c)).props("outline")
                ui.toggle(SPEEDS, value=session.clock.speed, on_change=lambda e: session.clock.set_speed(
                    e.value)).props("no-caps dense aria-label=Speed")
        won, count = session.tally
        if count and session.watched == policy:
            interval = clopper_pearson(won, count)
            ui.label(f"{won} of {count} succeeded: the true rate is between {interval.low:.0%} and "
                     f"{interval.high:.0%}.").tooltip(RANGE_HELP)
            ui.html(interval_svg(won / count, interval.low, interval.high), sanitize=False).classes("w-full")
        waiting = next((p.n_corrections for p in self.page.state.policies if p.name == policy), 0)
        if waiting:
            ui.label(f"{waiting} watched episodes are stored. The policy can learn from what you did.")
            if session.mode != "watch":
                self.button("Learn from them", lambda: self._start(policy), waits=True)

    def _give(self, command: str) -> None:
        person = self.page.session.person
        if self.studio.drives(self.page.client) and isinstance(person, TakeoverInput):
            person.command(command)
            self.page.picture.run_method("focus")

    async def _start(self, policy: str) -> None:
        await self.page.stop()
        n_episodes = len(self.project.corrections(policy))
        out, updates = self.project.improved(policy), _whole(self.choices["updates"], "updates")
        words = ["improve", policy, "--with", "hg-dagger", "--supervisor", "keyboard", "--env", self.project.env,
                 "--out", out, "--rounds", "1", "--episodes", str(n_episodes), "--steps", str(updates)]
        await self.studio.start_job(Job("Improve", [words], out, updates))


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
        starts = _whole(self.choices["starts"], "starts")
        words = ["compare", first, second, "--env", self.project.env, "--episodes", str(starts), "--json"]
        await self.studio.start_job(Job("Compare", [words], output=self.project.new_report()))


def policy_title(run_name: str) -> str:
    """The name of a policy on the page: "Policy 2" of "runs/2"."""
    return run_name.replace("runs/", "Policy ")


def _whole(number: Any, what: str) -> int:
    if number is None or number < 1:
        raise RuntimeError(f"the number of {what} must be 1 or more")
    return int(number)
