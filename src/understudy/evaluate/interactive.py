"""Evaluation by a person: trials on a real robot, blind and in random order, until the question is settled.

A `Design` says what is to be settled; a `Session`, where that stands, is a value, and what happens are events, small
JSON objects: `design.update(session, event)` gives the next session. `Journal` keeps the events on the disk, each
before the next trial begins, so that whatever stops the evaluation it goes on from there.
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
from ..files import finite, sync_folder
from .sequential import Difference, Rate

LABELS = ("failure", "partial", "success")


@dataclass(frozen=True)
class Trial:
    """What the person, or the loop that runs the robot, needs to know of a trial. Not which policy it is of."""

    number: int  # of this trial, from 1; those that were spoilt count
    start: int  # of the scene, from 1: both policies meet each scene, which shall look the same to both
    key: Tensor  # (1,) int64: the randomness of the policy, for `actor.start(obs, trial.key)`


@dataclass(frozen=True)
class Round:
    """One scene, met by every policy."""

    draw: int  # which decides the order of its trials
    labels: tuple[str, ...] = ()  # of its trials so far, in their order


@dataclass(frozen=True)
class Session:
    """Where an evaluation stands."""

    rounds: tuple[Round, ...] = ()  # complete ones
    now: Round = field(default_factory=lambda: Round(0))
    trials: int = 0  # begun so far
    running: bool = False
    spoilt: tuple[int, ...] = ()  # trials that were begun and do not count, by policy
    over: bool = False


@dataclass(frozen=True)
class Design:
    """What is to be settled, by which test, with what labels: fixed before the first trial.

    policies: one name, with a `Rate` to judge it by, or two, with a `Difference`. labels: worst first; the last alone
    is a success, those between are told in the result. seed: of the orders and of the policies' randomness.
    `test.most`, if there is one, ends it after so many rounds.

    Each round is one scene and has one trial of each policy; a fair coin says which comes first. Independent coins, and
    not a pattern that balances them, because then the test holds even if whoever comes first does better (a scene that
    is fresher, a battery that is fuller), whatever happened before: with equally good policies the winner of a round is
    a fair coin itself (randomisation as the basis of a test: Fisher 1935). A round that was spoilt has its coin tossed
    again.
    """

    policies: tuple[str, ...]
    test: Rate | Difference
    labels: tuple[str, ...] = LABELS
    seed: int = 0

    def __post_init__(self):
        wanted = Rate if len(self.policies) == 1 else Difference
        if len(self.policies) not in (1, 2) or not isinstance(self.test, wanted):
            raise UserError(f"expected one policy and a rate, or two and a difference, found {len(self.policies)} and "
                            f"{type(self.test).__name__}", where="interactive",
                            do="Rate asks of one policy, Difference of two")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise UserError(f"expected two different labels or more, found {', '.join(self.labels) or 'none'}",
                            where="labels", do="worst first, success last: failure, grasped, success")

    def start(self) -> Session:
        return Session(spoilt=(0,) * len(self.policies))

    def order(self, draw: int) -> tuple[int, ...]:
        """The policies' numbers in the order of this round's trials. Other policies have other orders, so that nobody
        learns the first ones by heart."""
        salt = hashlib.sha256(json.dumps([self.seed, *self.policies]).encode()).digest()
        coin = uniform(keys(int.from_bytes(salt[:6]), [draw]), torch.zeros(1, dtype=torch.int64), (len(self.policies),))
        return tuple(coin[0].argsort().tolist())

    def policy(self, session: Session) -> int:
        """Of the trial that is running, or comes next."""
        return self.order(session.now.draw)[len(session.now.labels)]

    def trial(self, session: Session) -> Trial:
        """The one that is running, or comes next."""
        return Trial(session.trials + (not session.running), len(session.rounds) + 1,
                     keys(self.seed, [session.now.draw]))

    def next(self, session: Session) -> Literal["begin", "label", "end", "over"]:
        """What comes: a trial, its label, the end (of a question that is settled), or nothing."""
        if session.over:
            return "over"
        if session.running:
            return "label"
        return "end" if not session.now.labels and self.verdict(session) is not None else "begin"

    def update(self, session: Session, event: Mapping[str, Any]) -> Session:
        """The session after an event:

        {"event": "begin"}                      a trial begins; one that ran until then was interrupted, and is spoilt
        {"event": "label", "label": "success"}  how it went
        {"event": "spoilt"}                     it does not count, and the same policy tries again
        {"event": "scrap"}                      the round does not count, and begins anew with another order
        {"event": "correct", "label": ...}      the last label was a mistake
        {"event": "end"}                        no more trials; the policies' names may be told

        Raises UserError for what cannot come now.
        """
        s, kind = session, event.get("event")
        if s.over or kind not in ("begin", "label", "spoilt", "scrap", "correct", "end"):
            raise UserError(f"expected {'no more' if s.over else 'an event of a trial'}, found {kind!r}",
                            where="interactive", do="begin another session" if s.over else
                            "begin, label, spoilt, scrap, correct or end")
        if (kind in ("label", "spoilt")) > s.running or (kind in ("correct", "end")) & s.running:
            raise UserError(f"expected {'an end of the trial' if s.running else 'a trial to begin'}, found {kind!r}",
                            where="interactive", do="`next` says what can come")
        if kind in ("label", "correct") and event.get("label") not in self.labels:
            raise UserError(f"expected {', '.join(self.labels[:-1])} or {self.labels[-1]}, found "
                            f"{event.get('label')!r}", where="label", do="say how the trial went by one of these")
        if kind == "begin":
            if s.running:
                s = self._spoil(s, 1)
            if self.next(s) != "begin":
                raise UserError("expected no more trials, found one begun: the question is settled",
                                where="interactive", do="end the session")
            return replace(s, running=True, trials=s.trials + 1)
        if kind == "label":
            return self._labelled(replace(s, running=False), (*s.now.labels, event["label"]))
        if kind == "spoilt":
            return self._spoil(s, 1)
        if kind == "scrap":
            s = self._spoil(s, len(s.now.labels) + s.running)
            return replace(s, now=Round(s.now.draw + 1))
        if kind == "end":
            return replace(s, over=True)
        if s.now.labels:
            return replace(s, now=replace(s.now, labels=(*s.now.labels[:-1], event["label"])))
        if not s.rounds:
            raise UserError("expected a label to correct, found none", where="interactive",
                            do="label a trial first")
        *rounds, last = s.rounds
        return replace(s, rounds=(*rounds, replace(last, labels=(*last.labels[:-1], event["label"]))))

    def about(self) -> dict[str, Any]:
        """The design as JSON, for the first line of a journal."""
        than = self.test.than if isinstance(self.test, Rate) else None
        return {"policies": list(self.policies), "than": than, "level": self.test.level, "most": self.test.most,
                "labels": list(self.labels), "seed": self.seed}

    def _labelled(self, s: Session, labels: tuple[str, ...]) -> Session:
        now = replace(s.now, labels=labels)
        if len(labels) < len(self.policies):
            return replace(s, now=now)
        return replace(s, rounds=(*s.rounds, now), now=Round(now.draw + 1))

    def _spoil(self, s: Session, trials: int) -> Session:
        """The last so many trials of the round that is under way do not count."""
        order, after = self.order(s.now.draw), len(s.now.labels) + s.running
        lost = order[after - trials:after]
        return replace(s, running=False, spoilt=tuple(n + lost.count(i) for i, n in enumerate(s.spoilt)))

    # -- what it says ---------------------------------------------------------------------------------------------

    def labelled(self, session: Session) -> list[tuple[str, ...]]:
        """Of each complete round the label of every policy, in the order of `policies`."""
        return [tuple(r.labels[self.order(r.draw).index(i)] for i in range(len(self.policies)))
                for r in session.rounds]

    def state(self, session: Session) -> dict[str, int]:
        """Of the test, after the complete rounds."""
        state = self.test.start()
        for labels in self.labelled(session):
            state = self.test.update(state, *(label == self.labels[-1] for label in labels))
        return state

    def verdict(self, session: Session) -> str | None:
        """The test's, on complete rounds; None while it is not settled."""
        return self.test.verdict(self.state(session))

    def result(self, session: Session) -> dict[str, Any]:
        """All that came out, as JSON, with the policies' names. Every interval holds whenever it is looked at."""
        each, state = self.labelled(session), self.state(session)
        policies = []
        for i, name in enumerate(self.policies):
            count = {label: sum(labels[i] == label for labels in each) for label in self.labels}
            k = count[self.labels[-1]]
            alone = Rate(0.5, self.test.level).interval({"trials": len(each), "successes": k})
            policies.append({"name": name, "trials": len(each), "successes": k, "labels": count,
                             "spoilt": session.spoilt[i], "success": asdict(alone)})
        two = isinstance(self.test, Difference)
        return {"verdict": self.test.verdict(state), "rounds": len(each), "trials": session.trials,
                "most": self.test.most, "than": None if two else self.test.than, "policies": policies,
                "difference": asdict(self.test.interval(state)) if two else None,
                "p": min(1.0, 1 / self.test.evidence(state))}


# -- on the disk --------------------------------------------------------------------------------------------------


_HEAD = b'{"event": "interactive evaluation"'


class Journal:
    """JSON, a line an event, the first line of which says what the evaluation is: the record of it, too.

    A line is on the disk when `write` returns. What a crash or a power cut left of a line is cut off.
    """

    def __init__(self, path: Path, handle: int, events: Sequence[Mapping[str, Any]]):
        self.path, self.events, self._handle = path, tuple(events), handle

    @staticmethod
    @contextmanager
    def open(path: Path | str, about: Mapping[str, Any]) -> Iterator[Journal]:
        """The journal of the evaluation that `about` (JSON) describes, begun where there is none. For one process at a
        time. Raises UserError if it is of another, or damaged."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError("expected a file, or nothing, found a folder", where=path, do="name another --save")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(handle, path)
            lines = _lines(handle, path)
            journal = Journal(path, handle, lines[1:])
            if not lines:
                journal.write({"event": "interactive evaluation", **about})
                sync_folder(path.parent)
            elif lines[0].get("event") != "interactive evaluation":
                raise UserError("expected the journal of an evaluation, or nothing, found something else", where=path,
                                do="name another --save")
            else:
                _same(lines[0], json.loads(json.dumps(about)), path)
            yield journal
        finally:
            os.close(handle)

    def write(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(finite({**event, "time": datetime.now(UTC).isoformat(timespec="seconds")}), allow_nan=False)
        left = memoryview((line + "\n").encode())
        while left:
            left = left[os.write(self._handle, left):]
        os.fsync(self._handle)


def _lines(handle: int, path: Path) -> list[dict[str, Any]]:
    """All whole lines; half a line at the end is cut off."""
    with open(handle, "rb", closefd=False) as file:
        text = file.read()
    whole = text.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(text[:whole].splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(None)
        if not isinstance(found[-1], dict):
            raise UserError(f"expected a line of JSON, found something else in line {number}", where=path,
                            do="take the file from a copy, or name another --save and begin anew")
    if len(text) > whole and not found and text[:len(_HEAD)] != _HEAD[:len(text)]:
        raise UserError("expected the journal of an evaluation, or nothing, found something else", where=path,
                        do="name another --save")
    os.ftruncate(handle, whole)
    return found


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise UserError(f"expected the journal of an evaluation with {name} {_brief(wanted[name])}, found "
                            f"{_brief(found.get(name))}", where=path,
                            do="give the command it was begun with, or name another --save")


def _brief(value) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _lock(handle: int, path: Path) -> None:
    """Given back by the system when the process ends, however it ends."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError("expected nobody else to evaluate here, found another process at it", where=path,
                        do="go on there, or name another --save") from None
    except (ImportError, OSError):
        pass
