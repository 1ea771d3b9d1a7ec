"""The page of the studio: show, check, train, watch and compare."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nicegui import Client, app, run, ui
from nicegui.element import Element

from ..core import UserError
from ..evaluate.stats import clopper_pearson
from ..methods import recommend
from .jobs import Job, JobRunner
from .live import COMMANDS, LiveSession
from .project import Project

STEPS = ("Show", "Check", "Train", "Watch", "Compare")
USUALLY_HELP = 20  # demonstrations
PICTURES_PER_SECOND = 20
UPDATES = 2_000  # of a training, unless the person chooses others
STARTS = 50  # of a comparison


class LivePicture(Element, component="live_picture.js"):
    """The picture of the environment. With the focus, it sends the keys that are held.

    Args:
        label: What a screen reader says.
    """

    def __init__(self, label: str):
        super().__init__()
        self._props["label"] = label


class Studio:
    """What all pages share: the project, the live session, the running command, and which page may drive."""

    def __init__(self, project: Project):
        self.project, self.session, self.jobs = project, LiveSession(project), JobRunner(self._job_ended)
        self.driver = ""  # the id of the client whose keys count

    def drives(self, client: Client) -> bool:
        """Whether the keys of a page count. The first page drives until it is closed."""
        if self.driver not in Client.instances:
            self.driver = client.id
        return self.driver == client.id

    def _job_ended(self, job: Job) -> None:
        self.session.changes += 1

    async def start_job(self, job: Job) -> None:
        await run.io_bound(self.session.stop)  # its recording is complete then
        self.jobs.start(job)


class StudioPage:
    """One open page."""

    def __init__(self, studio: Studio):
        self.studio, self.project, self.session = studio, studio.project, studio.session
        self.client = ui.context.client
        self._picture, self._changes, self._job = 0, -1, None
        self.choices: dict[str, Any] = {"updates": UPDATES, "policy": None, "rival": None}
        self.episodes, self.policies, self.comparison = [], [], None
        self._build()
        ui.timer(1 / PICTURES_PER_SECOND, self._refresh_picture)
        ui.timer(0.4, self._refresh_state)

    # -- layout ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        ui.colors(primary="#00796b")
        dark = ui.dark_mode(None)
        with ui.header().classes("items-center"):
            ui.label("understudy studio").classes("text-h6")
            ui.label(f"{self.project.env} · {self.project.folder.name}").classes("opacity-80")
            ui.space()
            ui.button("Light or dark", on_click=lambda: dark.set_value(not dark.value)).props("flat color=white")
        with ui.row().classes("w-full justify-center items-start gap-6"):
            with ui.column().classes("w-full max-w-[560px]"):
                self.picture = LivePicture("Live picture. Arrow keys move. Y is success, N is failure, Enter ends the "
                                           "episode, X discards it.")
                self.picture.classes("w-full").on("held", self._receive_held).on("order", self._receive_command)
                self.status = ui.label().props("role=status aria-live=polite").classes("text-body1")
                self.problem = ui.label().classes("text-negative whitespace-pre-wrap").props("role=alert")
            with ui.column().classes("w-full max-w-[560px]"):
                with ui.tabs().props("no-caps dense").classes("w-full") as tabs:
                    for number, name in enumerate(STEPS, 1):
                        ui.tab(name, f"{number} {name}")
                with ui.tab_panels(tabs, value=STEPS[0], animated=False).classes("w-full"):
                    for name, build in zip(STEPS, (self._show, self._check, self._train, self._watch, self._compare),
                                           strict=True):
                        with ui.tab_panel(name):
                            build()
                self._commands()

    @ui.refreshable_method
    def _show(self) -> None:
        used = sum(e.is_used for e in self.episodes)
        ui.label(f"{used} shown; {USUALLY_HELP} or more usually help.").mark("n-shown")
        ui.markdown("Move with the **arrow keys**. The first press begins an episode. **Enter** ends it early, **Y** "
                    "and **N** say whether it was a success, and **X** discards it.")
        with ui.row():
            if self.session.mode == "show":
                ui.button("Stop showing", on_click=self._act(self._stop)).props("color=negative")
                ui.button("Discard this one", on_click=lambda: self.session.keys.command("discard")).props("outline")
            else:
                ui.button("Start showing", on_click=self._act(self._start_showing))

    @ui.refreshable_method
    def _check(self) -> None:
        if not self.episodes:
            ui.label("There is no demonstration yet. Begin with Show.")
            return
        failed = [e for e in self.episodes if e.success is False and e.is_used]
        if failed:
            with ui.row().classes("items-center"):
                ui.label(f"{len(failed)} of them failed. A policy imitates failures, too.")
                ui.button("Leave failures out", on_click=self._act(
                    lambda: self._select(self.project.left_out() | {e.number for e in failed}))).props("outline dense")
        with ui.list().props("dense bordered separator").classes("w-full"):
            for episode in reversed(self.episodes):
                with ui.item():
                    with ui.item_section():
                        outcome = {True: "success", False: "failure", None: "not labeled"}[episode.success]
                        ui.item_label(f"Demonstration {episode.number + 1}")
                        ui.item_label(f"{episode.steps} steps, {outcome}").props("caption")
                    with ui.item_section().props("side"):
                        ui.button("Leave out" if episode.is_used else "Take back", on_click=self._act(
                            lambda n=episode.number: self._select(self.project.left_out() ^ {n}))).props(
                                "flat dense").mark(f"toggle-{episode.number}")
        ui.label("Nothing is deleted: what you leave out stays in the recording.").classes("text-caption")

    @ui.refreshable_method
    def _train(self) -> None:
        method = self._method()
        ui.label(f"The recommended method for this data is {method}." if method else
                 "There is no demonstration yet. Begin with Show.")
        ui.number("Updates: more take longer and learn more", min=1, step=500).bind_value(
            self.choices, "updates").classes("w-full")
        with ui.row():
            ui.button("Train", on_click=self._act(self._start_training)).set_enabled(
                bool(method) and not self.studio.jobs.is_busy)
        self._progress("Train")
        for policy in self.policies:
            ui.label(f"{_title(policy.name)}: loss {policy.losses[-1][1]:.3g} after {policy.losses[-1][0]:,} updates"
                     if policy.losses else _title(policy.name))

    @ui.refreshable_method
    def _watch(self) -> None:
        if not self._choose_policy("policy", "Policy"):
            return
        ui.markdown("Hold an **arrow key** to take over, and release it to give back. **Y** and **N** end the episode "
                    "as a success or a failure.")
        with ui.row():
            if self.session.mode == "watch":
                ui.button("Stop watching", on_click=self._act(self._stop)).props("color=negative")
            else:
                ui.button("Watch", on_click=self._act(self._start_watching))
        won, count = self.session.tally
        if count:
            interval = clopper_pearson(won, count)
            ui.label(f"{won} of {count} succeeded: the true rate is between {interval.low:.0%} and "
                     f"{interval.high:.0%}.").tooltip(
                "With few episodes the true rate is uncertain. In 95 of 100 such cases it lies in this range.")
        policy = next((p for p in self.policies if p.name == self.choices["policy"]), None)
        if policy is not None and policy.n_corrections:
            ui.label(f"{policy.n_corrections} watched episodes are stored. The policy can learn from what you did.")
            ui.button("Learn from them", on_click=self._act(self._start_improving)).set_enabled(
                not self.studio.jobs.is_busy)
        self._progress("Improve")

    @ui.refreshable_method
    def _compare(self) -> None:
        if len(self.policies) < 2:
            ui.label("A comparison needs two policies: train one, watch it, and let it learn from your corrections.")
            return
        self._choose_policy("policy", "Policy")
        self._choose_policy("rival", "compared with")
        ui.button(f"Compare on the same {STARTS} starts", on_click=self._act(self._start_comparing)).set_enabled(
            not self.studio.jobs.is_busy)
        self._progress("Compare")
        if (report := self.comparison) is not None:
            for entry in report["policies"]:
                success = entry["success"]
                ui.label(f"{_title(entry['name'])}: {success['estimate']:.0%} [{success['low']:.0%} to "
                         f"{success['high']:.0%}]")
                ui.linear_progress(success["estimate"], show_value=False).props("aria-hidden=true")
            ui.label(report["verdict"]).classes("text-body1 text-weight-medium").mark("verdict")

    def _commands(self) -> None:
        with ui.expansion("Show commands").classes("w-full"):
            ui.label("Everything that this page does is a command, and everything stays on this computer.").classes(
                "text-caption")
            self.commands = ui.code("", language="bash").classes("w-full")

    @ui.refreshable_method
    def _progress(self, title: str) -> None:
        job = self.studio.jobs.job
        if job is None or job.title != title:
            return
        if self.studio.jobs.is_busy:
            step, left = job.progress()
            ui.linear_progress(step / job.steps if job.steps else None, show_value=False)
            remaining = "" if left is None else f", about {left:.0f} s left"
            ui.label(f"{title}: {f'{step:,} of {job.steps:,} updates' if job.steps else 'running'}{remaining}")
            ui.button("Stop, keep it" if job.run else "Stop", on_click=self.studio.jobs.stop).props("outline dense")
        elif job.state == "failed":
            ui.label(f"{title} failed:").classes("text-negative")
            ui.label("\n".join(job.tail)).classes("whitespace-pre-wrap font-mono text-caption").props("role=alert")
        else:
            ui.label(f"{title}: {job.state}.")

    def _choose_policy(self, key: str, label: str) -> bool:
        """A choice between the policies. Returns False if there is none, and says so."""
        names = [policy.name for policy in self.policies]
        if not names:
            ui.label("There is no policy yet. Begin with Train.")
            return False
        if self.choices[key] not in names:
            self.choices[key] = names[-1] if key == "policy" else names[0]
        ui.select({name: _title(name) for name in names}, label=label).bind_value(self.choices, key).classes("w-full")
        return True

    # -- what a person does ---------------------------------------------------------------------------------------

    def _act(self, action: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """The handler of a button, which tells what is wrong."""
        async def handle() -> None:
            try:
                await action()
            except (UserError, RuntimeError) as error:
                ui.notify(str(error), type="negative", multi_line=True)
            self._changes = -1
            await self._refresh_state()
        return handle

    def _receive_held(self, event) -> None:
        if self.studio.drives(self.client):
            self.session.keys.receive([key for key in event.args if isinstance(key, str)])

    def _receive_command(self, event) -> None:
        if self.studio.drives(self.client) and event.args in COMMANDS:
            self.session.keys.command(COMMANDS[event.args])

    def _check_drives(self) -> None:
        if not self.studio.drives(self.client):
            raise RuntimeError("another page drives; close it, and this one can")

    async def _start_showing(self) -> None:
        self._check_drives()
        self.session.start("show")
        self.picture.run_method("focus")

    async def _start_watching(self) -> None:
        self._check_drives()
        self.session.start("watch", self.choices["policy"])
        self.picture.run_method("focus")

    async def _stop(self) -> None:
        await run.io_bound(self.session.stop)

    async def _select(self, left_out: set[int]) -> None:
        if len(left_out) == len(self.episodes):
            raise RuntimeError("at least one demonstration must stay")
        await self.studio.start_job(Job("Check", self.project.select(left_out), self.project.folder))

    def _method(self) -> str | None:
        return recommend(self.session.env.features) if self.episodes else None

    async def _start_training(self) -> None:
        await run.io_bound(self.session.stop)
        commands, data = self.project.training_data()
        out, updates = self.project.new_run(), int(self.choices["updates"])
        train = ["train", str(self._method()), data, "--out", out, "--steps", str(updates)]
        await self.studio.start_job(Job("Train", [*commands, train], self.project.folder, out, updates))

    async def _start_improving(self) -> None:
        run_name, updates = self.choices["policy"], int(self.choices["updates"])
        out = self.project.improved(run_name)
        words = ["improve", run_name, "--with", "hg-dagger", "--supervisor", "keyboard", "--env", self.project.env,
                 "--out", out, "--rounds", "1", "--episodes", str(len(self.project.corrections(run_name))), "--steps",
                 str(updates)]
        await self.studio.start_job(Job("Improve", [words], self.project.folder, out, updates))

    async def _start_comparing(self) -> None:
        first, second = self.choices["rival"], self.choices["policy"]
        if first == second:
            raise RuntimeError("choose two policies")
        words = ["compare", first, second, "--env", self.project.env, "--episodes", str(STARTS), "--json"]
        await self.studio.start_job(Job("Compare", [words], self.project.folder, output=self.project.new_report()))

    # -- what is shown --------------------------------------------------------------------------------------------

    def _refresh_picture(self) -> None:
        picture = self.session.picture
        if picture.number != self._picture:
            self._picture = picture.number
            self.picture.run_method("draw", picture.shapes)
            change = {"add" if picture.is_person else "remove": "person"}
            self.picture.classes(**change)
            self.status.text = picture.text

    async def _refresh_state(self) -> None:
        job = self.studio.jobs.job
        if self.studio.jobs.is_busy or job is not self._job:
            self._job = job
            self._progress.refresh()
            self.commands.content = "\n".join(job.texts) if job else ""
        if self._changes == (changes := self.session.changes):
            return
        self._changes = changes
        self.episodes, self.policies, self.comparison = await run.io_bound(lambda: (
            self.project.episodes(), self.project.policies(), self.project.comparison()))
        self.problem.text = "\n".join([*self.project.problems, *([self.session.error] if self.session.error else [])])
        for section in (self._show, self._check, self._train, self._watch, self._compare):
            section.refresh()


def _title(run_name: str) -> str:
    return f"Policy {Path(run_name).name}"


def serve_studio(project: Project, port: int, show: bool) -> None:
    """Serves the studio of a project on this machine until the process is interrupted.

    Args:
        show: Whether to open a browser.
    """
    from .server import OnlyThisOrigin

    studio = Studio(project)

    @ui.page("/", title="understudy studio")
    def page() -> None:
        StudioPage(studio)

    @app.on_shutdown
    def end() -> None:
        studio.jobs.stop()
        studio.session.stop()
    app.add_middleware(OnlyThisOrigin, port=port)
    ui.add_css(Path(__file__).with_name("studio.css").read_text(encoding="utf-8"), shared=True)
    ui.run(host="127.0.0.1", port=port, show=show, reload=False, title="understudy studio", dark=None,
           show_welcome_message=False, uvicorn_logging_level="warning")
