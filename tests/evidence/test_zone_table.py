"""The table, what happened on it, and what a speaker says."""

import numpy as np
import pytest

from evidence.worlds.zone_table import (
    BLOCKS,
    MISSION,
    STATE,
    WORDS,
    InstructedTable,
    MovedBlocks,
    PlayExpert,
    named_by_speaker,
    zones_of_blocks,
)
from understudy.data.episode import Episode
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env


@pytest.mark.parametrize("n_named", [0, 2])
def test_the_table_keeps_the_contract_and_its_expert_does_what_is_said(n_named):
    check_env(lambda rows: InstructedTable(rows, limit=20, n_named=n_named))
    episodes = rollout(PlayExpert(noise=0, wander=0), InstructedTable(20, 120, n_named), 40, seed=1)
    for episode in episodes:
        assert episode.metadata["success"] == (n_named > 0)
        mission, words, first = (episode.steps[k][:-1] for k in (MISSION, WORDS, BLOCKS))
        assert ((mission > 0).sum(1) == n_named).all() and ((words > 0).sum(1) == min(n_named, 1)).all()
        assert np.array_equal(words, np.where(words > 0, mission, 0))
        assert (mission[0] != zones_of_blocks(first[0].reshape(3, 2))).all()
        assert len(np.unique(words, axis=0)) == max(n_named, 1)


def carried(*moves) -> Episode:
    """A hand that carries blocks one after the other: (block, x) each. It approaches for two steps, from above."""
    blocks, rows = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]], np.float32), []
    for block, x in moves:
        y = blocks[block, 1]
        rows += [((blocks[block, 0], y + d), 0.0, blocks.copy()) for d in (0.16, 0.08, 0.0)]
        rows.append(((blocks[block, 0], y), 1.0, blocks.copy()))
        blocks[block, 0] = x
        rows += [((x, y), closed, blocks.copy()) for closed in (1.0, 0.0)]
    rows.append(((0.5, 0.0), 0.0, blocks.copy()))
    hand, closed, at = zip(*rows, strict=True)
    return Episode({STATE: np.column_stack([hand, closed]).astype(np.float32), BLOCKS: np.stack(at).reshape(-1, 6),
                    "action": np.zeros((len(rows) - 1, 3), np.float32)})


def test_events_are_found_where_a_block_gets_into_another_zone():
    episode = carried((0, 0.5), (1, 0.6), (2, 0.1), (1, 0.1), (1, 0.9), (0, 0.1))  # the second stays in its zone
    assert [(s.start, s.stop, s.task) for s in MovedBlocks().detect(episode)] == [
        (0, 5, "2 0 0"), (11, 17, "0 0 1"), (17, 23, "0 1 0"), (24, 29, "0 3 0"), (29, 35, "1 0 0")]
    assert [(s.start, s.stop, s.task) for s in MovedBlocks(3).detect(episode)] == [(0, 23, "2 1 1")]


def test_a_speaker_names_the_nearest_block_that_is_wrong_or_the_one_in_the_hand():
    blocks, goal = np.array([[[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]]], np.float32), np.array([[2, 2, 1]])
    empty, full = np.array([[0.1, 0.3, 0]], np.float32), np.array([[0.9, 0.8, 1]], np.float32)
    assert named_by_speaker(empty, blocks, goal).tolist() == [[2, 0, 0]]
    assert named_by_speaker(full, blocks, goal).tolist() == [[0, 0, 1]]
