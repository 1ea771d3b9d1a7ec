"""A step of the studio: what all five have in common."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui

from ...hints import command_line
from .page import StudioPage, command_block

RANGE_HELP = ("With few episodes the true rate is uncertain. In 95 of 100 such cases it lies in the range that is "
              "shown.")
OUTCOMES = {True: "success", False: "failure", None: "not labeled"}


class Panel:
    """One step of the rail.

    Attributes:
        title: Its name on the rail.
        mode: The mode of the session while this step runs. Empty if it never does.
        jobs: The titles of the jobs whose progress it shows.
    """

    title = mode = ""
    jobs: tuple[str, ...] = ()

    def __init__(self, page: StudioPage):
        self.page, self.studio, self.project, self.choices = page, page.studio, page.project, page.choices

    @ui.refreshable_method
    def build(self) -> None:
        self.content()

    def content(self) -> None:
        """Shows the step."""

    @ui.refreshable_method
    def numbers(self) -> None:
        """Shows what changes while the step runs, such as after each episode. `content` calls it."""
        self.count()

    def count(self) -> None:
        """Shows the numbers of the step."""

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

    def show_command(self, text: str, words: Sequence[str]) -> None:
        """Shows a command that a person runs in a terminal, in the folder of the project."""
        ui.label(text)
        lines = f"cd {shlex.quote(str(self.project.folder))}\n{command_line(*words)}"
        command_block(lines)

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


def policy_title(run_name: str) -> str:
    """The name of a policy on the page: "Policy 2" of "runs/2"."""
    return run_name.replace("runs/", "Policy ")


def whole_number(number: Any, what: str) -> int:
    if number is None or number < 1:
        raise RuntimeError(f"the number of {what} must be 1 or more")
    return int(number)
