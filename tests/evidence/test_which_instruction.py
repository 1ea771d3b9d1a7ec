"""Labels of runs say what happened in them."""

import numpy as np

from evidence.families.conditioning import which_instruction
from evidence.worlds import zone_table


def test_labels_of_runs_say_which_block_the_hand_holds_and_where_the_blocks_lie_at_the_end():
    for run in which_instruction.AnnotatedRuns(2, 12).load(1):
        state, blocks = (np.asarray(run.steps[k]) for k in (zone_table.STATE, zone_table.BLOCKS))
        at, number, words = blocks.reshape(len(blocks), 3, 2), run.steps["block"][:, 0], run.steps["event"]
        mission = run.steps[zone_table.MISSION]
        end = zone_table.zones_of_blocks(at[-1])
        assert (mission == mission[0]).all() and np.array_equal(mission[0], np.where(mission[0] > 0, end, 0))
        holds = state[:-1, 2] > 0.5
        assert holds.any() and np.array_equal(np.linalg.norm(at - state[:, None, :2], axis=2)[:-1][holds].argmin(1),
                                              number[holds])
        assert np.array_equal(words, mission[:-1] * np.eye(3, dtype=int)[number]) and len(set(number)) == 2
        nearby = run.steps[zone_table.OBJECTS]
        assert np.allclose(nearby[..., :2] + state[:, None, :2], at, atol=1e-6)


def test_exchanged_labels_are_those_of_the_next_run_and_nothing_else_changes():
    data = which_instruction.AnnotatedRuns(2, 5).load(1)
    for i, (one, other) in enumerate(zip(data, which_instruction.ExchangedBlocks().apply(data), strict=True)):
        assert {k for k in one.steps if not np.array_equal(one.steps[k], other.steps[k])} == {"block"}
        following = data[(i + 1) % 5].steps["block"]
        last = (len(one) - 1) * len(following) // len(one)
        assert np.array_equal(other.steps["block"][[0, -1]], following[[0, last]])
        assert len(other.steps["block"]) == len(one)
