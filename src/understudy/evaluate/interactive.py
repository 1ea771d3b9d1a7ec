"""Evaluation by a person: blind trials on a real robot in random order, until the result is clear.

A `TrialDesign` defines the question. A `TrialSession`, a value, is the state of the evaluation. Each event is a small
JSON object, and `design.update(session, event)` returns the next session. `TrialLog` writes each event to disk before
the next trial starts, so that an interrupted evaluation can continue.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import UserError, keys, uniform
from ..files import replace_nonfinite, sync_folder, try_lock
from .sequential import SequentialDifferenceTest, SequentialRateTest

LABELS = ("failure", "partial", "success")


@dataclass(frozen=True)
class Trial:
    """A trial as the person who runs it sees it, which does not reveal the policy."""

    index: int  # number of this trial, from 1; spoiled trials count
    start: int  # number of the scene, from 1; each scene must look the same for both policies
    key: Tensor  # (1,) int64: the randomness of the policy, for `actor.start(obs, trial.key)`


@dataclass(frozen=True)
class Round:
    """One scene (start), with one trial of every policy."""

    index: int  # decides the order of its trials
    labels: tuple[str, ...] = ()  # labels of the trials of this round so far, in order


@dataclass(frozen=True)
class TrialSession:
    """The state of an evaluation by a person: the trials so far."""

    rounds: tuple[Round, ...] = ()  # complete ones
    current_round: Round = field(default_factory=lambda: Round(0))
    n_trials: int = 0  # started so far
    is_running: bool = False
    discarded: tuple[int, ...] = ()  # trials that were started and do not count, by policy
    is_over: bool = False


@dataclass(frozen=True)
class TrialDesign:
    """The question, the test and the labels, fixed before the first trial.

    Each round is one scene with one trial of each policy. A fair coin decides which policy goes first. The coins are
    independent, not balanced. The test is then valid even if the first trial has an advantage (a fresh scene, a full
    battery), whatever happened before: with equally good policies, the winner of a round is a fair coin itself
    (randomization as the basis of a test: Fisher 1935). The coin of a spoiled round is tossed again.

    Args:
        policies: One name with a `SequentialRateTest`, or two names with a `SequentialDifferenceTest`.
        test: The test. `test.max_rollouts` limits the number of rounds.
        labels: Labels from worst to best. Only the last label is a success. The remaining labels are reported in the
            result.
        seed: Seed of the orders and of the randomness of the policies.
    """

    policies: tuple[str, ...]
    test: SequentialRateTest | SequentialDifferenceTest
    labels: tuple[str, ...] = LABELS
    seed: int = 0

    def __post_init__(self):
        test_class = SequentialRateTest if len(self.policies) == 1 else SequentialDifferenceTest
        if len(self.policies) not in (1, 2) or not isinstance(self.test, test_class):
            raise UserError(f"the test does not fit: {len(self.policies)} policies with a "
                            f"{type(self.test).__name__}", where="interactive",
                            hint="use SequentialRateTest for one policy, SequentialDifferenceTest for two")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise UserError(f"at least two different labels are needed, not {', '.join(self.labels) or 'none'}",
                            where="labels", hint="worst first, success last: failure, grasped, success")

    def start(self) -> TrialSession:
        return TrialSession(discarded=(0,) * len(self.policies))

    def policy_order(self, draw: int) -> tuple[int, ...]:
        """Returns the order of the policies in the trials of a round, as indices.

        It depends on the names of the policies, so that nobody can learn the first orders by heart.
        """
        salt = hashlib.sha256(json.dumps([self.seed, *self.policies]).encode()).digest()
        coin = uniform(keys(int.from_bytes(salt[:6]), [draw]), torch.zeros(1, dtype=torch.int64), (len(self.policies),))
        return tuple(coin[0].argsort().tolist())

    def current_policy(self, session: TrialSession) -> int:
        """Returns the index of the policy of the current or next trial."""
        return self.policy_order(session.current_round.index)[len(session.current_round.labels)]

    def current_trial(self, session: TrialSession) -> Trial:
        """Returns the current or next trial."""
        return Trial(session.n_trials + (not session.is_running), len(session.rounds) + 1,
                     keys(self.seed, [session.current_round.index]))

    def next_event(self, session: TrialSession) -> Literal["begin", "label", "end", "over"]:
        """Returns what comes next: a trial, its label, the end (if the result is clear), or nothing."""
        if session.is_over:
            return "over"
        if session.is_running:
            return "label"
        return "end" if not session.current_round.labels and self.verdict(session) is not None else "begin"

    def update(self, session: TrialSession, event: Mapping[str, Any]) -> TrialSession:
        """Returns the session after an event.

        Args:
            event: One of:

                ``{"event": "begin"}``                      a trial starts; a trial that was running counts as spoiled
                ``{"event": "label", "label": "success"}``  the result of the trial
                ``{"event": "spoilt"}``                     the trial does not count, and the same policy tries again
                ``{"event": "scrap"}``                      the round does not count, and is repeated in another order
                ``{"event": "correct", "label": ...}``      replaces the last label
                ``{"event": "end"}``                        no more trials; the names of the policies may be shown
        """
        s, kind = session, event.get("event")
        if s.is_over or kind not in ("begin", "label", "spoilt", "scrap", "correct", "end"):
            raise UserError(f"the session is over, but {kind!r} came" if s.is_over else
                            f"{kind!r} is not an event of a trial",
                            where="interactive", hint="begin another session" if s.is_over else
                            "begin, label, spoilt, scrap, correct or end")
        if (kind in ("label", "spoilt")) > s.is_running or (kind in ("correct", "end")) & s.is_running:
            raise UserError(f"{kind!r} came, but {'a' if s.is_running else 'no'} trial is running", where="interactive",
                            hint="`next_event` says what can come")
        if kind in ("label", "correct") and event.get("label") not in self.labels:
            raise UserError(f"the label must be {', '.join(self.labels[:-1])} or {self.labels[-1]}, not "
                            f"{event.get('label')!r}", where="label", hint="use one of these labels")
        if kind == "begin":
            if s.is_running:
                s = self._discard(s, 1)
            if self.next_event(s) != "begin":
                raise UserError("a trial was started although the result is clear",
                                where="interactive", hint="end the session")
            return replace(s, is_running=True, n_trials=s.n_trials + 1)
        if kind == "label":
            return self._add_labels(replace(s, is_running=False), (*s.current_round.labels, event["label"]))
        if kind == "spoilt":
            return self._discard(s, 1)
        if kind == "scrap":
            s = self._discard(s, len(s.current_round.labels) + s.is_running)
            return replace(s, current_round=Round(s.current_round.index + 1))
        if kind == "end":
            return replace(s, is_over=True)
        if s.current_round.labels:
            return replace(
                s, current_round=replace(s.current_round, labels=(*s.current_round.labels[:-1], event["label"])))
        if not s.rounds:
            raise UserError("there is no label to correct", where="interactive",
                            hint="label a trial first")
        *rounds, last = s.rounds
        return replace(s, rounds=(*rounds, replace(last, labels=(*last.labels[:-1], event["label"]))))

    def final_event(self, session: TrialSession) -> dict[str, Any]:
        """Returns the last event of a session: the policy of each trial, and the result."""
        order = [[self.policies[i] for i in self.policy_order(r.index)] for r in session.rounds]
        return {"event": "end", "orders": order, "result": self.result(session)}

    def last_label(self, session: TrialSession) -> str:
        """Returns the label that was given last, or "" if there is none."""
        rounds = [*session.rounds, session.current_round]
        return next((r.labels[-1] for r in reversed(rounds) if r.labels), "")

    def to_json(self) -> dict[str, Any]:
        """Returns the design as JSON, for the first line of a journal."""
        threshold = self.test.threshold if isinstance(self.test, SequentialRateTest) else None
        return {
            "policies": list(self.policies),
            "threshold": threshold,
            "level": self.test.level,
            "most": self.test.max_rollouts,
            "labels": list(self.labels),
            "seed": self.seed,
        }

    def _add_labels(self, s: TrialSession, labels: tuple[str, ...]) -> TrialSession:
        now = replace(s.current_round, labels=labels)
        if len(labels) < len(self.policies):
            return replace(s, current_round=now)
        return replace(s, rounds=(*s.rounds, now), current_round=Round(now.index + 1))

    def _discard(self, s: TrialSession, trials: int) -> TrialSession:
        """Discards the last trials of the current round."""
        order, after = self.policy_order(s.current_round.index), len(s.current_round.labels) + s.is_running
        redone = order[after - trials:after]
        return replace(s, is_running=False, discarded=tuple(n + redone.count(i) for i, n in enumerate(s.discarded)))

    # -- results ---------------------------------------------------------------------------------------------

    def complete_rounds(self, session: TrialSession) -> list[tuple[str, ...]]:
        """Returns the label of every policy, in the order of `policies`, for each complete round."""
        return [tuple(r.labels[self.policy_order(r.index).index(i)] for i in range(len(self.policies)))
                for r in session.rounds]

    def test_state(self, session: TrialSession) -> dict[str, int]:
        """Returns the state of the test after the complete rounds."""
        state = self.test.start()
        for labels in self.complete_rounds(session):
            state = self.test.update(state, *(label == self.labels[-1] for label in labels))
        return state

    def verdict(self, session: TrialSession) -> str | None:
        """Returns the verdict of the test on complete rounds. None while it is not clear."""
        return self.test.verdict(self.test_state(session))

    def result(self, session: TrialSession) -> dict[str, Any]:
        """Returns the complete result as JSON, with policy names. Every interval is valid at any moment."""
        each, state = self.complete_rounds(session), self.test_state(session)
        policies = []
        for i, name in enumerate(self.policies):
            count = {label: sum(labels[i] == label for labels in each) for label in self.labels}
            k = count[self.labels[-1]]
            alone = SequentialRateTest(0.5, self.test.level).interval({"trials": len(each), "successes": k})
            policies.append({"name": name, "trials": len(each), "successes": k, "labels": count,
                             "spoilt": session.discarded[i], "success": asdict(alone)})
        two = isinstance(self.test, SequentialDifferenceTest)
        return {"verdict": self.test.verdict(state), "rounds": len(each), "trials": session.n_trials,
                "most": self.test.max_rollouts, "threshold": None if two else self.test.threshold, "policies": policies,
                "difference": asdict(self.test.interval(state)) if two else None,
                "p": min(1.0, 1 / self.test.e_value(state))}


# -- on the disk --------------------------------------------------------------------------------------------------


_FIRST_LINE = b'{"event": "interactive evaluation"'
_NO_JOURNAL = "this file does not hold an evaluation that can be continued"


class TrialLog:
    """Journal of an evaluation by a person: one JSON line per event. The first line describes the evaluation.

    A line is on the disk when `write` returns. An incomplete last line, after a crash or a power cut, is removed.
    """

    def __init__(self, path: Path, handle: int, events: Sequence[Mapping[str, Any]]):
        self.path, self.events, self._handle = path, tuple(events), handle

    @staticmethod
    @contextmanager
    def open(path: Path | str, about: Mapping[str, Any]) -> Iterator[TrialLog]:
        """Opens or creates the journal of an evaluation, for one process at a time."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError("this is a folder, not a file", where=path, hint="name another --save")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not try_lock(handle):
                raise UserError("another process is using this file", where=path,
                                hint="continue there, or choose another --save")
            lines = _lines(handle, path)
            journal = TrialLog(path, handle, lines[1:])
            if not lines:
                journal.write({"event": "interactive evaluation", **about})
                sync_folder(path.parent)
            elif lines[0].get("event") != "interactive evaluation":
                raise UserError(_NO_JOURNAL, where=path, hint="name another --save")
            else:
                _check_same_design(lines[0], json.loads(json.dumps(about)), path)
            yield journal
        finally:
            os.close(handle)

    def session(self, design: TrialDesign) -> TrialSession:
        """Returns the session after the events that were stored before."""
        session = design.start()
        for number, event in enumerate(self.events, 2):
            try:
                session = design.update(session, event)
            except UserError as error:
                raise UserError(f"line {number} makes no sense: {error.problem}", where=self.path,
                                hint="take the file from a copy, or start again with another --save") from None
        return session

    def write(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(
            replace_nonfinite({**event, "time": datetime.now(UTC).isoformat(timespec="seconds")}), allow_nan=False)
        unwritten = memoryview((line + "\n").encode())
        while unwritten:
            unwritten = unwritten[os.write(self._handle, unwritten):]
        os.fsync(self._handle)


def _lines(handle: int, path: Path) -> list[dict[str, Any]]:
    """Returns all complete lines of the journal, and removes an incomplete last line."""
    with open(handle, "rb", closefd=False) as file:
        text = file.read()
    whole = text.rfind(b"\n") + 1
    events: list[dict[str, Any]] = []
    for number, line in enumerate(text[:whole].splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            events.append(value)
        else:
            raise UserError(f"line {number} is not JSON", where=path,
                            hint="restore the file from a copy, or start again with another --save")
    if len(text) > whole and not events and text[:len(_FIRST_LINE)] != _FIRST_LINE[:len(text)]:
        raise UserError(_NO_JOURNAL, where=path, hint="name another --save")
    os.ftruncate(handle, whole)
    return events


def _check_same_design(stored: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    stored = {"options": [], **stored}
    options = {"most": "--episodes", **{name: f"--{name}" for name in ("threshold", "labels", "seed")}}
    for name in expected:
        if stored.get(name) != expected[name]:
            raise UserError("its trials are of other weights of these policies, which have been trained since"
                            if name == "weights" else f"its trials were begun with {options.get(name, name)} "
                            f"{_shorten(stored.get(name))}, and not {_shorten(expected[name])}", where=path,
                            hint="name another --save, or give the command it was begun with")


def _shorten(value) -> str:
    return " and ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
