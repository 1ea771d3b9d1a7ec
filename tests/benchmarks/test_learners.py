"""The learners of a question have equal networks, batches, rates and updates."""

import sys

import pytest
from folders import BENCHMARKS

from understudy.nets.feed_forward import FeedForward


@pytest.fixture
def learners(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    import learners

    yield learners
    sys.modules.pop("learners")


@pytest.mark.parametrize("name", ["mixed", "rewards", "goals"])
def test_arms_differ_in_nothing_but_the_learner(learners, name):
    question = learners.QUESTIONS[name]
    source = question.source if name != "rewards" else learners.Successes(3)
    data = source.load(100) if name != "goals" else learners.Walks(2).load(100)
    for arm in question.arms.values():
        method = learners.build(question, arm, data, learners.FULL)
        for one in (method, *(stage.method for stage in method.stages)):
            assert one.policy.trunk == FeedForward((64, 64)) and one.learner.steps == question.updates
            assert (one.learner.batch_size, one.learner.optimizer.lr) == (128, 1e-3)
            for part in ("critic", "value", "reward"):
                assert getattr(getattr(one.learner, part, None), "hidden", (64, 64)) == (64, 64)
        assert (method.collection is None) == (arm.n_rounds == 0)
        assert method.collection is None or method.collection.n_rounds == arm.n_rounds


def test_a_table_has_all_seeds_or_does_not_appear(learners, tmp_path, monkeypatch):
    monkeypatch.setattr(learners.measure, "RESULTS", tmp_path)
    size, question = learners.Size("cells", (0, 1), 4), learners.QUESTIONS["mixed"]
    for seed in size.seeds:
        assert learners._section(size, "mixed") == ""
        for arm in question.arms:
            won = [1, 1, 1, 0] if arm == "`iql`" else [0, 0, 1, 0]
            learners.write_json(learners.cell_path(size, "mixed", seed, arm), {"success": won, "seconds": 1.0})
    section = learners._section(size, "mixed")
    assert "2 training seeds, 4 starts" in section and section.splitlines()[6].startswith("| `iql` | 75")
