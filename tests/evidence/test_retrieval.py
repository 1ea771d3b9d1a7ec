"""The log of demonstrations and play is as it says."""

import numpy as np
import torch

from evidence.families.retrieval import few_demonstrations as few
from understudy.envs.toys.peg_insertion import STEP
from understudy.methods.retrieval.retrieve_align_replay import rotate


def test_a_log_of_demonstrations_and_play_surrounds_one_demonstration_of_each_outline():
    data = few.TaskAndLog(n_hidden=2, play=6).load(1)
    task, hidden, play = data[:5], data[5:15], data[15:]
    assert [e.metadata[few.DATASET_NAME] for e in data] == ["task"] * 5 + ["prior"] * 16
    assert [e.metadata[few.DEMONSTRATION] for e in data] == [True] * 15 + [False] * 6
    outlines = [[tuple(e.steps[few.OUTLINE][0]) for e in part] for part in (task, hidden)]
    assert len(set(outlines[0])) == 5 and sorted(outlines[1]) == sorted(2 * outlines[0])
    ends = [e.steps[few.PEG][-1 - few.LAST_STEPS] for e in task]
    assert all(min(np.abs(e.steps[few.PEG][0] - end).max() for end in ends) < 1e-6 for e in play)


def test_demonstrated_velocities_are_in_the_frame_of_the_peg():
    """Turned by the angle of the peg, they are the motion of its tip, before it touches the wall."""
    for episode in few.TaskAndLog(n_hidden=0, play=1).load(1)[:5]:
        pose, action = (torch.from_numpy(np.asarray(episode.steps[k])[:3]) for k in (few.PEG, "action"))
        motion = torch.from_numpy(np.diff(np.asarray(episode.steps[few.PEG])[:3], axis=0) / STEP)
        turned = rotate(action, pose[:, 2])[:2].clamp(-1, 1)
        torch.testing.assert_close(motion[:, 2], turned[:, 2], atol=1e-4, rtol=0)
        torch.testing.assert_close(motion[:, :2], turned[:, :2], atol=1e-4, rtol=0)
