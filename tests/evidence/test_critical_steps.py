"""The world and the arms of the claim on critical steps are as they say."""

import numpy as np
from claims.data_curation import critical_steps

from understudy.evaluate.rollout import rollout
from understudy.testing import check_env


def test_errand_keeps_the_contract_and_its_expert_always_does_it():
    check_env(lambda rows: critical_steps.Errand(rows, limit=15, slip=0.0))
    episodes = rollout(critical_steps.ErrandScript(), critical_steps.Errand(50, limit=60, slip=0.0), 100, seed=2)
    assert all(e.metadata["success"] for e in episodes)


def test_critical_steps_are_plans_discoveries_and_deeds():
    """Each errand takes the key, opens one or two chests, delivers; before each of these it thinks of the thing."""
    episodes = rollout(critical_steps.ErrandScript(), critical_steps.Errand(50, limit=60, slip=0.0), 50, seed=3)
    openings = set()
    for e in episodes:
        critical = critical_steps.critical_steps(e)
        thought, primitive = np.divmod(np.asarray(e.steps["action"])[:, 0], 5)
        handles = primitive == critical_steps.INTERACT
        chests = int((handles & np.isin(thought, (1, 2))).sum())
        openings.add(chests)
        changes = np.r_[True, thought[1:] != thought[:-1]]
        assert np.array_equal(critical, handles | changes)
        assert handles.sum() == changes.sum() == 2 + chests
    assert openings == {1, 2}  # a chest may be empty, and then the plan is corrected


def test_arms_of_an_errand_have_as_many_steps_and_shuffling_keeps_their_number():
    data = critical_steps.ErrandDemonstrations(6).load(1)
    shuffled = critical_steps.ErrandDemonstrations(6, shuffle_steps=True).load(1)
    for e, s in zip(data, shuffled, strict=True):
        counts = {float(x.steps[f"keep.{k}"].sum()) for x in (e, s) for k in ("critical", "random")}
        assert len(counts) == 1 and e.steps["keep.all"].all()
    assert any(not np.array_equal(e.steps["keep.critical"], s.steps["keep.critical"])
               for e, s in zip(data, shuffled, strict=True))


def test_balanced_steps_have_each_action_as_often_as_the_critical_ones():
    data = critical_steps.ErrandDemonstrations(6).load(1)
    action = np.concatenate([e.steps["action"][:, 0] for e in data])
    critical, balanced = (np.concatenate([e.steps[f"keep.{k}"] for e in data]) > 0 for k in ("critical", "balanced"))
    assert np.array_equal(np.bincount(action[critical], minlength=20), np.bincount(action[balanced], minlength=20))
    assert (balanced & ~critical).any()
