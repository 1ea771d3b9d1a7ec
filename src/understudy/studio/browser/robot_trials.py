"""Blind trials of two policies on a robot, which a person judges on the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ...evaluate.evaluation import sequential_verdict_parts
from ...evaluate.interactive import Trial, TrialDesign, TrialLog, TrialSession
from ...evaluate.sequential import SequentialDifferenceTest
from ...execute.actor import Actor
from ...robots.acting import act_on_robot
from ...robots.safety import SafeRobot
from .robot_commands import TrialCommands

PERIOD = 0.05  # s, between two looks at what the person says while the robot holds
TrialPhase = Literal["rests", "waits", "acts", "asks", "ends"]


@dataclass(frozen=True)
class PreparedTrials:
    """Blind trials that can begin.

    Args:
        about: What the journal says of them, so that only the same ones are continued in it.
        actors: Of the policies, in their order.
    """

    design: TrialDesign
    about: Mapping[str, Any]
    actors: Sequence[Actor]


@dataclass
class BlindTrials:
    """Runs trials on a connected robot, and asks the person who sees it. Nothing says which policy acts.

    Args:
        seconds: Longest duration of a trial.
        show: Shows one line of text.
        changed: Called after each event.

    Attributes:
        phase: What happens now: it waits for the beginning of a trial, a policy acts, the person is asked how the trial
            went, or enough trials have been judged.
    """

    trials: PreparedTrials
    journal: TrialLog
    robot: SafeRobot
    person: TrialCommands
    fps: float
    seconds: float
    show: Callable[[str], None]
    changed: Callable[[], None]
    phase: TrialPhase = "rests"

    def run(self) -> None:
        """Runs all trials that are left.

        Raises:
            KeyboardInterrupt: The person has stopped. The same trials can be continued later.
        """
        session = self.journal.session(self.trials.design)
        while (step := self.trials.design.next_event(session)) != "over":
            session = {"begin": self._begin, "label": self._label, "end": self._end}[step](session)

    def _record(self, session: TrialSession, event: dict[str, Any]) -> TrialSession:
        after = self.trials.design.update(session, event)
        self.journal.write(event)
        self.changed()
        return after

    def _wait(self, phase: TrialPhase, text: str, commands: Sequence[str]) -> str:
        """Waits for one of these commands."""
        self.phase = phase
        while True:
            for command in self.person.commands():
                if command == "quit":
                    raise KeyboardInterrupt
                if command in commands:
                    return command
            self.show(text)
            time.sleep(PERIOD)

    def _begin(self, session: TrialSession) -> TrialSession:
        design = self.trials.design
        trial, is_second = design.current_trial(session), bool(session.current_round.labels)
        scene = "set the scene as it was for the first" if is_second else "set a new scene, which you can set once more"
        last = design.last_label(session)
        command = self._wait("waits", f"Round {trial.start}, {'second' if is_second else 'first'} of two trials: "
                             f"{scene}" + f". The last one was a {last}" * bool(last),
                             ("enter", "end", *(("success", "failure") if last else ())))
        if command == "end":
            return self._record(session, design.final_event(session))
        if command != "enter":  # the last answer was a mistake
            return self._record(session, {"event": "correct", "label": command})
        return self._act(self._record(session, {"event": "begin"}), trial)

    def _act(self, session: TrialSession, trial: Trial) -> TrialSession:
        def show(text: str) -> None:  # its counts of late steps would tell the slower policy
            self.phase = "acts"
            self.show("One of the two acts")
        design, self.phase = self.trials.design, "rests"
        with self.person.acting():
            done = act_on_robot(self.robot, self.trials.actors[design.current_policy(session)], trial.key, fps=self.fps,
                                seconds=self.seconds, keys=self.person, show=show)
        if done.ended == "discard":
            return self._record(session, {"event": "spoilt"})
        if done.success is None:
            return session
        return self._record(session, {"event": "label", "label": design.labels[-1 if done.success else 0]})

    def _label(self, session: TrialSession) -> TrialSession:
        labels = self.trials.design.labels
        command = self._wait("asks", f"How did trial {session.n_trials} go? X repeats it",
                             ("success", "failure", "discard"))
        if command == "discard":
            return self._record(session, {"event": "spoilt"})
        return self._record(session, {"event": "label", "label": labels[-1 if command == "success" else 0]})

    def _end(self, session: TrialSession) -> TrialSession:
        design = self.trials.design
        why = ("it would hardly be settled within what is left" if design.verdict(session) == "futile" else
               "it is settled")
        command = self._wait("ends", f"Enough: {why}. The last one was a {design.last_label(session)}. Enter shows the "
                             "result", ("enter", "success", "failure"))
        if command != "enter":
            return self._record(session, {"event": "correct", "label": command})
        return self._record(session, design.final_event(session))


@dataclass(frozen=True)
class StoredTrials:
    """Blind trials that are stored in a file of `understudy eval --interactive`.

    Args:
        events: Its complete lines. The first one tells the question. Two that differ in them alone are equal, so that
            no button is built again while a person answers.
    """

    path: Path
    events: list[dict[str, Any]] = field(compare=False)

    @classmethod
    def read(cls, path: Path) -> StoredTrials:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return cls(path, [json.loads(line) for line in lines if line.endswith("\n")])

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(self.events[0]["policies"])

    @cached_property
    def _session(self) -> tuple[TrialDesign, TrialSession]:
        about = self.events[0]
        test = SequentialDifferenceTest(about["level"], about["most"])
        design = TrialDesign(self.policies, test, tuple(about["labels"]), about["seed"])
        session = design.start()
        for event in self.events[1:]:
            session = design.update(session, event)
        return design, session

    @property
    def counts(self) -> tuple[int, int]:
        """Complete rounds, and trials that were begun. They do not tell which policy is better."""
        session = self._session[1]
        return len(session.rounds), session.n_trials

    @property
    def is_over(self) -> bool:
        return self._session[1].is_over

    def result(self) -> dict[str, Any]:
        """What `understudy eval --interactive --json` prints, and the verdict. Once it is over."""
        design, session = self._session
        assert isinstance(design.test, SequentialDifferenceTest)
        result = design.result(session)
        won = [policy["successes"] for policy in result["policies"]]
        parts = sequential_verdict_parts(design.test, design.test_state(session), won, design.policies, "rounds")
        return {**result, "verdict": parts[0] if result["rounds"] else "No round was completed: nothing can be said."}
