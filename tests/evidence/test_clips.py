"""Clips of row 064: their reward, and the stored states to which their pictures are projected."""

import pytest
import torch

from evidence.families.goals import clips
from evidence.families.goals.named_goals import Walks


def test_the_reward_counts_frames_in_reach_and_is_1_for_the_frames_themselves():
    frames = torch.tensor([[0.0, 0.0], [0.9, 0.0], [1.8, 0.0], [5.0, 0.0]])
    clip = clips.Clip(frames, frames, frames, torch.Generator())
    assert clip.reward(frames).mean() == pytest.approx(1)
    shares = torch.tensor([2 / 4, 3 / 4, 2 / 4, 1 / 4])  # frames within 1 m of each frame, itself one of them
    torch.testing.assert_close(clip.reward(frames), shares / 0.5)
    assert clip.reward(torch.tensor([[0.0, 1.1], [0.45, 0.0]])).tolist() == [0.0, 1.0]


def test_pictures_are_projected_to_stored_states_nearby_and_exactly_without_another_camera(monkeypatch):
    data, far, usual = Walks(30).load(0), {}, clips.TINT
    for tint in (usual, 0.0):
        monkeypatch.setattr(clips, "TINT", tint)
        filmed = clips.film(data, 0)
        far[tint] = torch.cat([(c.frames - c.retrieved).norm(dim=-1) for c in filmed])
        same = torch.stack([torch.cdist(c.retrieved, c.stored).amin(1) for c in filmed])
        assert len(filmed) == 20 and (same < 0.01).all()
    assert far[0.0].median() < 0.15 < far[usual].median() < 0.6
    span = torch.stack([c.frames.amax(0) - c.frames.amin(0) for c in filmed])
    assert span.max() < 3.5 and not torch.equal(filmed[0].frames, clips.film(data, 1)[0].frames)
