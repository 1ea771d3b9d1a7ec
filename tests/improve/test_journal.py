"""Episodes that somebody supervised are on the disk when they end, and are not asked for twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fixtures.collections import LIMIT, STATE, Constant, ScriptedPerson, collected, contents, fork, method, rounds, run

from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.improve.collection import FIRST_EPISODE, RolloutCollector
from understudy.improve.gates import HumanGate
from understudy.improve.journal import MARK, EpisodeDiscarded, EpisodeJournal


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


@dataclass(frozen=True)
class Person(Actor):
    """Acts with `value` and is in control from step 3 on. At the step of `plan` with that number, something happens.

    Args:
        plan: What is raised, by the number of the step over all episodes.
        mark: What the person says of each episode.
    """

    value: float = 0.3
    plan: dict = field(default_factory=dict)
    mark: int = 0
    steps: list = field(default_factory=list)
    starts: list = field(default_factory=list)

    def start(self, obs, key):
        self.starts.append(obs[STATE][0].tolist())
        return {"step": torch.zeros_like(key)}

    def act(self, obs, state):
        self.steps.append(obs[STATE][0].tolist())
        if (error := self.plan.pop(len(self.steps), None)) is not None:
            raise error
        rows = len(obs[STATE])
        record = {"intervention": state["step"] >= 3, MARK: torch.full((rows,), self.mark, dtype=torch.int8)}
        return torch.full((rows, 2), self.value), {"step": state["step"] + 1, "record": record}


def supervised(**fields):
    return method(rounds(2, collector=RolloutCollector(3, supervisor="person", gate=HumanGate()), **fields))


def test_a_journal_gives_the_episodes_of_a_rollout_and_runs_none_twice(tmp_path):
    env = fork(3)
    whole = rollout(env.expert(), env, 6, 5, first=10)
    for folder in (None, tmp_path / "journal"):
        journal = EpisodeJournal(folder)
        for number in (11, 14):  # as if a kill had left these
            journal.store(number, whole[number - 10])
        again = EpisodeJournal(folder, journal.in_memory)
        data = again.rollout(env.expert(), env, 6, 5, first=10)
        assert data.fingerprint() == whole.fingerprint() and data.metadata == whole.metadata
        assert [e.metadata for e in data] == [e.metadata for e in whole]
        assert again.rollout(None, env, 6, 5, first=10).fingerprint() == whole.fingerprint()  # nobody has to act


def test_an_episode_that_is_discarded_starts_again_at_the_same_place():
    person = Person(plan={LIMIT + 4: EpisodeDiscarded()})
    data = EpisodeJournal(None).rollout(person, fork(1), 3, 0)
    assert person.starts[1] == person.starts[2] and len({tuple(s) for s in person.starts}) == 3
    assert len(person.steps) == 3 * LIMIT + 4
    assert data.fingerprint() == EpisodeJournal(None).rollout(Person(), fork(1), 3, 0).fingerprint()


@pytest.mark.parametrize(("mark", "success"), [(1, True), (-1, False), (0, False)])
def test_success_is_what_the_person_says(mark, success):
    data = EpisodeJournal(None).rollout(Person(mark=mark), fork(1), 2, 0)
    assert [e.metadata["success"] for e in data] == [success] * 2 and MARK not in data.features()


def test_no_episode_of_a_person_is_asked_for_twice(demos, tmp_path):
    """The process dies in the second episode, and in the third in the next attempt."""
    run(tmp_path / "whole", supervised(), demos, fork(1), person=Person())
    out, asked = tmp_path / "run", []
    for at, stored in ((LIMIT + 5, [0]), (LIMIT + 5, [0, 1])):
        person = Person(plan={at: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            run(out, supervised(), demos, fork(1), person=person)
        folder = next(iter((out / "collection").glob("unfinished-*")))
        assert sorted(int(p.name) - FIRST_EPISODE for p in folder.iterdir()) == stored
        asked += person.starts
    person = Person()
    run(out, supervised(), demos, fork(1), person=person)
    asked += person.starts
    assert len({tuple(start) for start in asked}) == 6 and len(asked) == 8  # twice a running one begins again
    assert not list((out / "collection").glob("unfinished-*"))
    assert contents(out) == contents(tmp_path / "whole")


def test_what_a_person_did_stays_if_the_person_acts_otherwise_later(demos, tmp_path):
    person = Person(0.3, plan={LIMIT + 5: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", supervised(), demos, fork(1), person=person)
    run(tmp_path / "run", supervised(), demos, fork(1), person=Person(-0.3))
    first = collected(tmp_path / "run")[0]
    signs = [np.sign(e.steps["executed_action"][e.steps["intervention"]]).mean() for e in first]
    assert signs == [1, -1, -1]


def test_each_step_has_what_both_wanted_and_what_was_sent_and_each_episode_its_costs(demos, tmp_path):
    run(tmp_path / "run", supervised(relabel=()), demos, person=ScriptedPerson(Constant(0.25)))
    data = open_dataset(tmp_path / "run" / "collection" / "000000" / "episodes.npz")
    for e in data:
        acted = e.steps["intervention"]
        assert acted.tolist() == [3 <= t < 7 for t in range(len(e))]
        assert (e.steps["supervisor_action"] == 0.25).all() and not (e.steps["policy_action"] == 0.25).any()
        sent = np.where(acted[:, None], e.steps["supervisor_action"], e.steps["policy_action"])
        assert np.array_equal(e.steps["action"], sent)
        assert [e.metadata[name] for name in ("acted", "labeled", "watched")] == [4, 0, len(e) - 4]
    run(tmp_path / "labeled", method(rounds(2)), demos)
    for e in collected(tmp_path / "labeled")[0]:
        acted = int(e.steps["intervention"].sum())
        assert [e.metadata[name] for name in ("acted", "labeled", "watched")] == [acted, len(e) - acted, 0]
        assert np.array_equal(e.steps["executed_action"][~e.steps["intervention"]],
                              e.steps["policy_action"][~e.steps["intervention"]])
