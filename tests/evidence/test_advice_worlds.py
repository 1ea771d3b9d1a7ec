"""The worlds in which advice is judged: how they are drawn, and what their demonstrators do."""

from dataclasses import replace

import numpy as np
import pytest

from evidence import advice
from evidence.families.advice.recordings import FirstSteps
from evidence.families.advice.worlds import TASKS, Demonstrations, Demonstrator, Parts, WrongActions, drawn


def test_worlds_are_drawn_by_their_seed():
    assert drawn(TASKS, 0)[:3] == ["reach-v3", "door-close-v3", "plate-slide-v3"]
    assert drawn(TASKS, 1)[:3] == ["push-v3", "window-open-v3", "drawer-open-v3"]
    assert sorted(drawn(TASKS, 5)) == sorted(TASKS)


WORLDS = {"several-ways": "reach", "chunks": "push", "pushes": "window-open", "many-starts": "reach",
          "clone-successes": "sweep-into", "wrong-actions": "coffee-button", "average-weights": "sweep-into",
          "slips": "reach"}


def one_step(arms):
    """The arms, where those of both worlds may learn from another number of steps."""
    return {name: replace(arm, transforms=tuple(replace(t, n_steps=1) if isinstance(t, FirstSteps) else t
                                                for t in arm.transforms)) for name, arm in arms.items()}


@pytest.mark.parametrize("name", advice.sentences())
def test_a_sentence_has_two_worlds_with_the_same_two_arms(name):
    sentence = advice.sentences()[name]
    assert sentence.worlds == (f"{name}-here", f"{name}-there")
    first, second = (sentence.tables[world].load_experiment() for world in sentence.worlds)
    assert one_step(first.arms) == one_step(second.arms) and set(first.arms) == {sentence.arm, sentence.rival}
    assert all(sentence.tables[world].rival == sentence.rival for world in sentence.worlds)
    assert first.n_seeds == second.n_seeds == 10 and first.env != second.env
    assert second.env == f"metaworld/{WORLDS[name]}-v3"


def test_sentences_have_seeds_of_their_own():
    firsts = [s.tables[s.worlds[0]].load_experiment().first_seed for s in advice.sentences().values()]
    assert len(set(firsts)) == len(firsts) and min(np.diff(sorted(firsts)), default=10) >= 10 and min(firsts) >= 7000


def episodes_of(**habits):
    return Demonstrations("fork", 20, Demonstrator("fork", **habits), failures=True).load(3)


def test_a_demonstrator_pauses_once():
    for e in episodes_of(pause=6):
        still = np.flatnonzero((e.steps["action"] == 0).all(1))
        assert list(still) == list(range(still[0], still[0] + len(still))) and still[0] == 12 and len(still) <= 6


def test_detours_go_to_both_sides():
    with_detours, plain = (np.array([e.steps["action"][0, 1] for e in episodes_of(detour=d)]) for d in (0.1, 0.0))
    assert np.abs(with_detours - plain) == pytest.approx(np.full(len(plain), 0.1), abs=1e-5)
    assert len(set(np.sign(with_detours - plain))) == 2


def test_lost_episodes_fail():
    assert 0.2 < np.mean([e.metadata["success"] for e in episodes_of(lost_share=0.5)]) < 0.8
    assert not any(e.metadata["success"] for e in episodes_of(lost_share=1.0))


def test_a_fifth_of_the_actions_are_wrong():
    changed = np.concatenate([(WrongActions(0.2)(e).steps["action"] == 1).all(1) for e in episodes_of()])
    assert 0.1 < changed.mean() < 0.3


def test_parts_are_named():
    one = Demonstrations("fork", 4, Demonstrator("fork"))
    few = Demonstrations("fork", 4, Demonstrator("fork"), starts=2)
    data = Parts("fork", (("many", one), ("few", few))).load(3)
    starts = {name: {tuple(e.steps["observation.state"][0]) for e in data if e.metadata["part"] == name}
              for name in ("many", "few")}
    assert len(starts["many"]) >= 3 and len(starts["few"]) <= 2
