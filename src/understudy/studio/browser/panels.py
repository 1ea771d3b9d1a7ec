"""The steps of the studio: set up of a robot, show, check, train, watch and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from nicegui import ui

from ...evaluate.stats import clopper_pearson
from ...methods import recommend
from .check_panel import CheckPanel
from .compare_panel import ComparePanel
from .jobs import Job
from .live import TakeoverInput
from .page import StudioPage
from .panel import RANGE_HELP, Panel, policy_title, whole_number
from .pictures import interval_svg
from .setup_panel import SetupPanel

USUALLY_HELP = 20  # demonstrations
SPEEDS = {0.5: "half speed", 1.0: "real time", 2.0: "twice as fast"}
UPDATE_HELP = "In one update the policy sees some steps of the demonstrations and is changed to act more like them."
# Quasar puts each panel into another one, which has no name for a screen reader.
PANEL_PROPS = ':onVnodeMounted="panel => panel.el.parentElement.removeAttribute(`role`)"'
FAMILIES = ("behavior_cloning", "chunking", "generative")  # of methods that need nothing but demonstrations


def build_panels(page: StudioPage, last: Sequence[type[Panel]] = ()) -> Callable[..., None]:
    """Builds the steps as tabs. A robot has one more, at the left.

    Args:
        last: What takes the place of the last two steps.

    Returns:
        The function that shows what has changed: the "progress" of commands, also the "numbers", or "all". With
        "numbers", the step in which the session runs keeps its buttons, because a click on a button that is just built
        again would be lost.
    """
    kinds = (ShowPanel, CheckPanel, TrainPanel, *(last or (WatchPanel, ComparePanel)))
    panels: list[Panel] = [kind(page) for kind in kinds]
    first, setup = panels[0], None
    with ui.tabs().props("no-caps dense aria-label=Steps").classes("w-full") as tabs:
        if page.studio.setup is not None:
            tabs.classes("six")
            setup = SetupPanel(page, page.studio.setup, ui.tab(SetupPanel.title))
            first = first if page.studio.setup.is_ready else setup
        for number, panel in enumerate(panels, 1):
            ui.tab(panel.title, f"{number} {panel.title}")
    panels = panels if setup is None else [setup, *panels]
    with ui.tab_panels(tabs, value=first.title, animated=False).classes("w-full"):
        for panel in panels:
            with ui.tab_panel(panel.title).props(f"aria-label={panel.title!r} {PANEL_PROPS}"):
                panel.build()
                panel.progress()

    def refresh(what: Literal["progress", "numbers", "all"]) -> None:
        for panel in panels:
            panel.progress.refresh()
            if what == "numbers" and panel.mode == page.session.mode:
                panel.numbers.refresh()
            elif what != "progress":
                panel.build.refresh()
    return refresh


class ShowPanel(Panel):
    """Records demonstrations of the person."""

    title, mode = "Show", "show"

    def count(self):
        used = sum(e.is_used for e in self.page.state.episodes)
        ui.label(f"{used} shown; {USUALLY_HELP} or more usually help.").classes("text-subtitle1")

    def content(self):
        self.numbers()
        ui.markdown(self.page.session.help)
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


class TrainPanel(Panel):
    """Trains a policy on the demonstrations."""

    title, jobs = "Train", ("Train", "Choose")

    def content(self):
        if not self.page.state.episodes:
            ui.label("There is no demonstration yet. Start with Show.")
            return
        if (choice := self.page.state.choice) is None:
            recommended = recommend(self.page.session.features)
            ui.label(f"Recommended for this data: {recommended}. It does not average different ways of doing the task, "
                     "and it trains in minutes.")
        else:
            recommended = choice["recommended"]
            ui.label(f"{choice['verdict']} Each was judged on {choice['judged_on']} starts." if choice["env"] else
                     f"{choice['verdict']} They were judged by how well they predict demonstrations, not by acting.")
        if self.choices.get("recommended") != recommended:  # what short trials have found is what to train
            self.choices.update(recommended=recommended, method=recommended)
        methods = {m["name"]: f"{m['name']}: {m['summary']}" for m in self.studio.methods
                   if m["name"] == recommended or m["family"] in FAMILIES and all(
                       need.startswith("actions") for need in m["needs"])}
        ui.select(methods, label="Method", with_input=True).bind_value(self.choices, "method").classes("w-full")
        ui.number("Updates: more take longer and learn more", min=1, step=500, precision=0).bind_value(
            self.choices, "updates").classes("w-full").tooltip(UPDATE_HELP)
        self.button("Train", self._start, waits=True)
        with ui.row().classes("items-center"):
            ui.number("Minutes", min=1, step=10, precision=0).bind_value(self.choices, "minutes").classes("w-24")
            self.button("Find the method by short trials", self._choose, waits=True).props("outline").tooltip(
                "Several methods are trained for a short time each, and judged on the same starts.")
        for policy in self.page.state.policies:
            ui.label(f"{policy_title(policy.name)}: loss {policy.losses[-1][1]:.3g} after {policy.losses[-1][0]:,} "
                     "updates" if policy.losses else policy_title(policy.name))
        if self.page.state.policies:
            ui.label("A policy is what its training had learned at the end.").classes("text-caption").tooltip(
                "An earlier moment could be chosen only by acting during the training, which the page does not do.")

    async def _choose(self) -> None:
        await self.page.stop()
        commands, data = self.project.training_data()
        words, output = self.project.choose(data, whole_number(self.choices["minutes"], "minutes"))
        await self.studio.start_job(Job("Choose", [*commands, words], output=output))

    async def _start(self) -> None:
        await self.page.stop()
        commands, data = self.project.training_data()
        out, updates = self.project.new_run(), whole_number(self.choices["updates"], "updates")
        train = ["train", self.choices["method"], data, "--out", out, "--steps", str(updates)]
        await self.studio.start_job(Job("Train", [*commands, train], out, updates))


class WatchPanel(Panel):
    """Lets a policy act. The person takes over, and the policy learns from it."""

    title, mode, jobs = "Watch", "watch", ("Improve",)

    def content(self):
        if (policy := self.choose_policy("watched", "Policy", -1)) is not None:
            self.watch(policy)
            self.numbers()

    def count(self):
        if (policy := self.choices.get("watched")) is None:
            return
        session = self.page.session
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

    def watch(self, policy: str) -> None:
        """What a person sees and presses to watch a policy."""
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

    def _give(self, command: str) -> None:
        person = self.page.session.person
        if self.studio.drives(self.page.client) and isinstance(person, TakeoverInput):
            person.command(command)
            self.page.picture.run_method("focus")

    def improving(self, policy: str) -> list[str]:
        """The first words of the command that learns from what the person did."""
        return ["improve", policy, "--with", "hg-dagger", "--supervisor", "keyboard", "--env", self.project.env]

    async def _start(self, policy: str) -> None:
        await self.page.stop()
        n_episodes = len(self.project.corrections(policy))
        out, updates = self.project.improved(policy), whole_number(self.choices["updates"], "updates")
        words = [*self.improving(policy), "--out", out, "--rounds", "1", "--episodes", str(n_episodes), "--steps",
                 str(updates)]
        await self.studio.start_job(Job("Improve", [words], out, updates))
