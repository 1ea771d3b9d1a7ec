"""The page of the studio: the live picture, the five steps, and what all open pages share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nicegui import Client, run, ui
from nicegui.element import Element

from ...core import UserError
from ...methods import describe_methods
from .jobs import Job, JobRunner
from .live import COMMANDS, LiveSession, Picture
from .pictures import picture_svg
from .plan_view import PlanView
from .plans import Foresight, Line
from .project import Edits, Project, ProjectComparison, ShownEpisode, TrainedPolicy
from .robot_setup import RobotSetup
from .robot_trials import StoredTrials

PICTURES_PER_SECOND = 20
UPDATES = 2_000  # of a training, unless the person chooses others
STARTS = 50  # of a comparison
MINUTES = 30  # of the trials that find a method
THUMBNAIL = 44  # px


class LivePicture(Element, component="live_picture.js"):
    """The picture of the environment. With the focus, it sends what is held: keys, pointer or gamepad.

    At most one picture is on its way to the browser. A slow one is not sent all pictures late, but fewer of them.
    """

    def __init__(self, label: str):
        super().__init__()
        self._props["label"] = label
        self._sent, self._loaded = 0, 0
        self.on("loaded", self._note_loaded)

    @property
    def is_ready(self) -> bool:
        """Whether the browser has the last picture, so that it can be sent another one."""
        return self._loaded == self._sent

    def draw(self, shapes: list[dict[str, Any]], lines: Sequence[Line] = ()) -> None:
        """Sends a picture.

        Args:
            shapes: As `ShapeList` describes it.
            lines: What is drawn over it: see `Foresight`.
        """
        self._sent += 1
        self.run_method("draw", shapes, lines, self._sent)

    def _note_loaded(self, event) -> None:
        self._loaded = event.args


@dataclass(frozen=True)
class ProjectState:
    """What a page shows of the folder of a project, read at one moment.

    Attributes:
        thumbnails: A picture of each episode, as SVG.
    """

    episodes: list[ShownEpisode]
    thumbnails: list[str]
    edits: Edits
    findings: list[dict[str, Any]] | None
    policies: list[TrainedPolicy]
    comparison: ProjectComparison | None
    trials: StoredTrials | None
    choice: dict[str, Any] | None
    exports: list[str]

    @classmethod
    def read(cls, project: Project, session: LiveSession) -> ProjectState:
        episodes = project.episodes()
        thumbnails = [picture_svg(session.thumbnail(e), THUMBNAIL) for e in episodes]
        return cls(episodes, thumbnails, project.edits(), project.findings() if episodes else None, project.policies(),
                   project.comparison(), project.trials(), project.choice(), project.exports())


class Studio:
    """What all pages share: the project, the live session, the running command, and which page may drive.

    Args:
        setup: How the robot of the project is set up. None if it is about no robot.

    Attributes:
        edits: What the person has changed about the demonstrations, in order, so that it can be undone.
        methods: What `describe_methods` says. It is asked once, because it reads the source of all methods, for which
            a robot would stand still.
    """

    def __init__(self, session: LiveSession, setup: RobotSetup | None = None):
        self.project, self.session, self.setup = session.project, session, setup
        self.jobs = JobRunner(self.project.folder, self._job_ended)
        self.edits = self.project.edit_history()
        self.methods = describe_methods()
        self.driver = ""  # the id of the client whose input counts

    def drives(self, client: Client) -> bool:
        """Whether the input of a page counts. The first page drives until it is closed."""
        driver = Client.instances.get(self.driver)
        if driver is None or not driver.has_socket_connection:  # closed, or loaded again
            self.driver = client.id
        return self.driver == client.id

    def _job_ended(self, job: Job) -> None:
        changes = self.session.changes
        if self.setup is not None and (self.setup.take_over(job)
                                       or job.state == "done" and not self.session.has_picture):  # it may be ready now
            self.session = self.setup.open()
        self.session.changes = changes + 1

    async def start_job(self, job: Job) -> None:
        await run.io_bound(self.session.stop)  # its recording is complete then
        self.jobs.start(job)

    async def edit(self, edits: Edits) -> None:
        """Stores what the person has changed as a new view."""
        await self.start_job(Job("Check", self.project.edit(edits)))
        self.edits.append(edits)

    async def undo(self) -> None:
        """Takes the last change back, as a further view."""
        if len(self.edits) == 1:
            raise RuntimeError("there is nothing to take back")
        await self.start_job(Job("Check", self.project.edit(self.edits[-2])))
        self.edits.pop()


def command_block(text: str) -> ui.code:
    """Commands with a button that copies them."""
    block = ui.code(text, language="bash").classes("w-full")
    block.copy_button.props('aria-label="Copy the commands"')
    return block


class StudioPage:
    """One open page.

    Args:
        build_panels: Builds the five steps. Returns the function that shows what has changed in them.

    Attributes:
        choices: What the person has chosen on this page, by name.
        progress: How far the running command is: "share" from 0 to 1, and "text".
        selected: Number of the demonstration that is looked at, and the step of it. None for the live picture.
    """

    def __init__(self, studio: Studio, build_panels: Callable[[StudioPage], Callable[..., None]]):
        self.studio, self.project = studio, studio.project
        self.client = ui.context.client
        self.state = ProjectState.read(self.project, studio.session)
        self.choices: dict[str, Any] = {"updates": UPDATES, "starts": STARTS, "minutes": MINUTES,
                                        "exports": False}
        self.progress: dict[str, Any] = {"share": 0.0, "text": ""}
        self.selected: tuple[int, int] | None = None
        self._picture, self._changes, self._job = None, -1, (studio.jobs.job, studio.jobs.state)
        self._content, self._refreshing = self._what_panels_show(), asyncio.Lock()
        self._advance()
        ui.colors(primary="#00796b")
        self._header()
        with ui.row().classes("w-full justify-center items-start gap-6"):
            with ui.column().classes("w-full max-w-[560px] gap-1") as self.scene:
                self.picture = LivePicture(self.session.label).classes("w-full")
                self.picture.on("held", self._receive_held).on("order", self._receive_command)
                self.status = ui.label().props("role=status aria-live=polite").classes("text-body1 min-h-6")
                self.plans = PlanView()
                self.problem = ui.label().classes("text-negative whitespace-pre-wrap").props("role=alert")
            with ui.column().classes("w-full max-w-[560px]"):
                self._refresh_panels = build_panels(self)
                with ui.expansion("Show commands").classes("w-full"):
                    ui.label("Everything that this page does is a command, and everything stays on the computer that "
                             f"serves it, in {self.project.folder}:").classes("text-caption")
                    self.commands = command_block("")
        self._show_commands()
        ui.timer(1 / PICTURES_PER_SECOND, self._refresh_picture)
        ui.timer(0.4, self.refresh)

    @property
    def session(self) -> LiveSession:
        return self.studio.session

    def _header(self) -> None:
        dark = ui.dark_mode(None)
        with ui.header().classes("items-center no-wrap"):
            ui.label("understudy studio").classes("text-h6 whitespace-nowrap").props("role=heading aria-level=1")
            ui.label(f"{self.project.env} · {self.project.folder.name}").classes("opacity-80 min-w-0 truncate")
            ui.space()
            ui.button(icon="contrast", on_click=lambda: dark.set_value(not dark.value)).props(
                'flat color=white aria-label="Light or dark"').tooltip("Light or dark")

    # -- what a person does ---------------------------------------------------------------------------------------

    def act(self, action: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Returns the handler of a button, which tells what is wrong."""
        async def handle() -> None:
            try:
                await action()
            except (UserError, RuntimeError) as error:
                ui.notify(str(error), type="negative", multi_line=True, close_button="Close")
            self._changes = -1
            await self.refresh()
        return handle

    async def begin(self, mode: Any, policy: str = "") -> None:
        """Begins to show the task, or to watch a policy."""
        if not self.studio.drives(self.client):
            raise RuntimeError("another page drives; close it, and this one can")
        if self.studio.jobs.is_busy:  # it may hold the ports of the robot
            raise RuntimeError("a command is running; wait for it or stop it")
        self.selected = None
        self.session.start(mode, policy)
        self.picture.run_method("focus")

    async def stop(self) -> None:
        await run.io_bound(self.session.stop)

    def select(self, number: int, step: int) -> None:
        """Looks at a step of a recorded demonstration."""
        self.selected = number, step

    def _receive_held(self, event) -> None:
        keys, axes = event.args["held"], event.args["axes"]
        if self.studio.drives(self.client):
            across, up = (min(max(float(level), -1.0), 1.0) for level in axes)
            self.session.person.receive([key for key in keys if isinstance(key, str)], (across, up))

    def _receive_command(self, event) -> None:
        if self.studio.drives(self.client) and event.args in COMMANDS:
            self.session.person.command(COMMANDS[event.args])

    # -- what is shown --------------------------------------------------------------------------------------------

    async def _refresh_picture(self) -> None:
        if not self.picture.is_ready:
            return
        live = self.session.mode != "idle"
        if live or self.selected is None:
            picture = await run.io_bound(self.session.picture)
            foresight = await run.io_bound(self.session.foresight)  # may follow its picture
            if picture is not None and (picture.number, live, foresight) != self._picture:
                self._picture = picture.number, live, foresight
                self._draw(picture if live else replace(picture, text="", is_person=False), foresight)
        elif self.selected != self._picture:
            number, step = self._picture = self.selected
            demonstration = self.state.episodes[number]
            try:
                shapes = await run.io_bound(self.session.recorded, demonstration, step)
            except UserError as error:  # such as a damaged video
                self.problem.text, shapes = str(error), None
            if shapes is not None:
                text = f"Demonstration {number + 1}, step {step} of {len(demonstration.episode)}"
                self._draw(Picture(0, shapes, text, False))

    def _show_scene(self) -> None:
        """Leaves the picture out where there can be none."""
        # An element that NiceGUI calls invisible is deaf, so the last picture would never count as loaded.
        self.picture.classes(**{"remove" if self.session.has_picture else "add": "hidden"})
        self.scene.set_visibility(self.session.has_picture or bool(self.problem.text))

    def _draw(self, picture: Picture, foresight: Foresight | None = None) -> None:
        self.picture.draw(picture.shapes, foresight.lines if foresight else ())
        self.picture.classes(**{"add" if picture.is_person else "remove": "person"})
        self.status.text = picture.text
        self.plans.show(foresight)

    def _show_commands(self) -> None:
        self.commands.content = "\n".join(self.studio.jobs.history()) or "# no command yet"

    def _advance(self) -> None:
        """Says how far the running command is."""
        job = self.studio.jobs.job
        if job is not None and self.studio.jobs.is_busy:
            step, seconds_left = self.studio.jobs.progress()
            remaining = "" if seconds_left is None else f", about {seconds_left:.0f} s left"
            counted = f"{step:,} of {job.steps:,} updates" if job.steps else "running"
            self.progress.update(share=step / job.steps if job.steps else 0.0,
                                 text=f"{job.title}: {counted}{remaining}")

    def _what_panels_show(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Returns what decides which buttons the panels have, and what else they show."""
        trials, session = self.state.trials, self.session
        buttons = (session, session.mode, session.watched, self.studio.jobs.is_busy,
                   trials is not None and trials.is_over, [policy.name for policy in self.state.policies])
        return buttons, (self.state, tuple(session.tally))

    async def refresh(self) -> None:
        """Shows what has changed since the last call.

        Nothing else is built again, because a click on a button that is just built again would be lost.
        """
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        self._advance()
        jobs = self.studio.jobs
        if self._job != (jobs.job, jobs.state):
            self._job = jobs.job, jobs.state
            self._show_commands()
            self._refresh_panels("progress")
        if self._changes == (changes := self.session.changes):
            return
        self._changes = changes
        problems = [*self.project.problems, *([self.session.error] if self.session.error else [])]
        try:
            self.state = await run.io_bound(ProjectState.read, self.project, self.session) or self.state
        except UserError as error:  # the files were changed from outside
            problems.append(str(error))
        self.problem.text = "\n".join(problems)
        self._show_scene()
        previous = self._content
        if previous != (content := self._what_panels_show()):
            self._content = content
            self._refresh_panels("all" if previous[0] != content[0] else "numbers")
